//! The whole daemon in process: real socket, real store, real relay on loopback, and the model in the kernel's place.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod access;
mod api;
mod bad_input;
mod binary;
mod cli;
mod clients;
mod commits;
mod conditions;
mod configuration;
mod daemon;
mod events;
mod health;
mod inspect;
mod log;
mod mail;
mod observe;
mod openapi;
mod patch;
mod reconcile;
mod store;
mod subscribers;
mod support;
mod verbs;
