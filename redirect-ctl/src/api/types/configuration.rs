//! Of the configuration as a whole.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::configuration::{Commit, Diff, Document, PendingCommit, text::DocumentFormat};

#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ConfigurationQuery {
    /// Rather than what `Accept` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DocumentFormat>,
}

/// A document that could be committed, and how many resources that would add, change and remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigurationCheck {
    /// Of the configuration that it was held against.
    pub revision: u64,
    pub added: u64,
    pub changed: u64,
    pub removed: u64,
    pub unchanged: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ConfigurationDiffQuery {
    /// From this state of the history (0 is the last one) instead of the configuration as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<u32>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct CommitQuery {
    /// Who commits; how redirectd knows them is put behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Why: one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Seconds, or a duration such as `10m`, a day at most: after that the commit is taken back, unless it is confirmed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_within: Option<String>,
    /// Tell what would change, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct RollbackQuery {
    /// To this state of the history: 0 is the last one, which takes back single changes since; 1, where not given, the one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<u32>,
    /// Who commits; how redirectd knows them is put behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Why: one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Tell what would change, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a commit or a rollback did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CommitReport {
    pub dry_run: bool,
    pub diff: Diff,
    /// Null where nothing was changed.
    pub commit: Option<Commit>,
}

/// A state of the configuration in the history, with what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigurationState {
    pub commit: Commit,
    pub configuration: Document,
}

/// The configuration as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigurationStatus {
    /// That changed it last; subscribers' changes leave it as it is.
    pub revision: u64,
    /// That is taken back at its deadline, unless it is confirmed before.
    pub pending: Option<PendingCommit>,
}
