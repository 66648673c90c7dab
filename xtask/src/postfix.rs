//! Postfix's `smtp-sink`, a mail server that stores what it receives, without Postfix.
//!
//! Installing the package would configure a mail system, start it, and remove the one that the machine has.

use std::path::PathBuf;

use anyhow::Result;

use crate::{debian, exec};

/// Where the package is unpacked; the lab looks for `usr/sbin` and `usr/lib/postfix` below.
fn folder() -> Result<PathBuf> {
    Ok(exec::target_dir()?.join("lab/postfix"))
}

pub(crate) fn is_present() -> Result<bool> {
    Ok(exec::find("smtp-sink").is_some() || folder()?.join("usr/sbin/smtp-sink").is_file())
}

pub(crate) fn unpack() -> Result<()> {
    debian::unpack("postfix", &[], &folder()?)
}
