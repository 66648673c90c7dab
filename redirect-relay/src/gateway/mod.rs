//! Gateways: what the operator says of them ([`model`]), and how the relay reaches them.

mod model;
mod secret;

pub use self::{
    model::{
        Account, AddressInvalid, Balance, Egress, EgressAddress, Encryption, Gateway, GatewayInvalid, GatewayLimits,
        Group, Host, Mechanism, Member, Name, NameInvalid, Pin, PriorityRange, Status, Strategy, Verification,
    },
    secret::Secret,
};
