//! `/v1/kernel:diff` and `/v1/kernel:reconcile`: the store against the kernel.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    error::{ApiError, Code, Problem},
    types::paths,
};
use crate::{dataplane::Operation, limits, reconcile::task::Drift};

/// What the reconciler does to bring the kernel to the store, if it compares everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KernelDiff {
    /// Number of the configuration's newest state.
    pub revision: u64,
    /// Number of the state that the kernel says it holds.
    pub applied: u64,
    /// Subscribers one by one, though they would be changed all at once; 1,000 operations at most.
    pub operations: Vec<KernelOperation>,
    /// How many there are.
    pub total: u64,
}

/// A step from what the kernel holds to what it should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KernelOperation {
    #[schema(example = "set_subscriber")]
    pub operation: String,
    /// A prefix, an interface, or the number of a class or relay in the kernel.
    #[schema(example = "10.20.0.0/16")]
    pub subject: String,
}

impl From<&Operation> for KernelOperation {
    fn from(operation: &Operation) -> Self {
        let (name, subject) = match operation {
            Operation::SetRelay { id, .. } => ("set_relay", id.to_string()),
            Operation::ClearRelay { id } => ("clear_relay", id.to_string()),
            Operation::SetClass { id, .. } => ("set_class", id.to_string()),
            Operation::ClearClass { id } => ("clear_class", id.to_string()),
            Operation::SetSubscriber { prefix, .. } => ("set_subscriber", prefix.to_string()),
            Operation::RemoveSubscriber { prefix } => ("remove_subscriber", prefix.to_string()),
            // Plans that name each subscriber have none of these three.
            Operation::StageSubscribers(changes) => ("stage_subscribers", changes.len().to_string()),
            Operation::SwitchSubscribers => ("switch_subscribers", String::new()),
            Operation::SettleSubscribers(changes) => ("settle_subscribers", changes.len().to_string()),
            Operation::Attach { name, .. } => ("attach", name.clone()),
            Operation::Detach { name } => ("detach", name.clone()),
            Operation::SetRevision(revision) => ("set_revision", revision.to_string()),
        };
        Self { operation: name.to_owned(), subject }
    }
}

/// Reads all of both sides, which takes about a second for each million subscribers.
#[utoipa::path(get, path = paths::KERNEL_DIFF, tag = "status", responses((status = 200, body = KernelDiff), (status = 503, body = Problem)))]
pub(super) async fn kernel_diff(State(app): App) -> Result<Json<KernelDiff>, ApiError> {
    Ok(Json(app.reconciler.drift().await?.into()))
}

/// Does at once what otherwise comes every five minutes: compares everything, and mends what differs. Answers what was done; `applied` is the
/// revision that the kernel holds afterwards.
#[utoipa::path(post, path = paths::KERNEL_RECONCILE, tag = "status", responses((status = 200, body = KernelDiff), (status = 503, body = Problem)))]
pub(super) async fn reconcile_kernel(State(app): App) -> Result<Json<KernelDiff>, ApiError> {
    let done = app.reconciler.reconcile().await?;
    match app.reconciler.observed().fault() {
        None => Ok(Json(done.into())),
        Some(fault) => Err(ApiError::new(Code::Unavailable, format!("the kernel does not follow the store: {fault}"))),
    }
}

impl From<Drift> for KernelDiff {
    fn from(drift: Drift) -> Self {
        Self {
            revision: drift.revision,
            applied: drift.applied,
            operations: drift.operations.iter().take(limits::DRIFT_OPERATIONS_MAX).map(KernelOperation::from).collect(),
            total: drift.operations.len() as u64,
        }
    }
}
