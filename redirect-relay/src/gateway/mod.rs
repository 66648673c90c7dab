//! Gateways: what the operator says of them (`model`), and how the relay reaches them.

mod allowance;
mod capabilities;
mod dial;
mod egress;
mod fleet;
mod guard;
mod health;
mod introduce;
mod model;
mod opening;
mod resolve;
mod sasl;
mod secret;
mod select;
mod tend;
mod tls;
mod verify;

pub(crate) use self::{
    allowance::{Allowance, Item},
    capabilities::Extensions,
    dial::quit,
    fleet::{Attempt, Fleet, Lease, Want},
    introduce::Introduction,
};
pub use self::{
    capabilities::Capabilities,
    fleet::GatewayState,
    model::{
        Account, AddressInvalid, Balance, Egress, EgressAddress, Encryption, Gateway, GatewayInvalid, GatewayLimits,
        GatewayQuota, Group, Host, Mechanism, Member, Name, NameInvalid, Pin, PriorityRange, Status, Strategy,
        Verification,
    },
    opening::{OpenError, OpenReason, Stage},
    sasl::SaslError,
    secret::Secret,
    tend::tend,
    tls::TlsInvalid,
    verify::{CertificateReport, StageReport, VerifyReport},
};
