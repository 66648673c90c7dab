//! Subscribers on the wire.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::ImportMode;
use crate::{
    desired::{Name, Origin, Prefix, Time},
    revision::Versioned,
    subscribers::{self, Fact, Known, Labels, Login, Mac, Priorities, Priority, Session},
};

/// What one source says of a prefix: a line of import and export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubscriberRecord {
    pub prefix: Prefix,
    pub class: Name,
    /// Who says so; a source has one say in a prefix.
    #[serde(default = "operator")]
    pub source: Origin,
    /// Where it is not given, the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u16>, minimum = 0, maximum = 1000)]
    pub priority: Option<Priority>,
    /// Of the source: whoever ends another session does not end this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Login>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// It is forgotten at this time.
    #[serde(default)]
    pub expires: Option<Time>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

pub(crate) fn operator() -> Origin {
    Origin::Operator
}

impl From<Fact> for SubscriberRecord {
    fn from(fact: Fact) -> Self {
        Self {
            prefix: Prefix(fact.prefix),
            class: fact.class,
            source: fact.source,
            priority: fact.priority,
            session: fact.session,
            user: fact.user,
            mac: fact.mac,
            expires: fact.expires_s.map(|seconds| Time { seconds }),
            labels: fact.labels,
        }
    }
}

/// A prefix and what decides about it. The longest prefix that covers an address decides. Its revision is that of the last change of anything that
/// is known of the prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Subscriber {
    /// Of the source that decides.
    #[serde(flatten)]
    pub record: SubscriberRecord,
    /// What each source says, by rank: the first one decides. Only where a single subscriber is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<Contender>,
}

impl From<Fact> for Subscriber {
    fn from(fact: Fact) -> Self {
        Self { record: fact.into(), facts: Vec::new() }
    }
}

impl Subscriber {
    /// By the fact that decides.
    pub(crate) fn by(known: Known) -> Versioned<Self> {
        Versioned { resource: known.fact.into(), revision: known.revision }
    }

    /// With all its facts; `None` where there is none.
    pub(crate) fn whole(subscriber: subscribers::Subscriber, priorities: Priorities) -> Option<Versioned<Self>> {
        let facts = subscriber.facts.iter().map(|known| Contender::new(known, priorities)).collect();
        let decides = Self::by(subscriber.facts.into_iter().next()?);
        Some(decides.map(|decides| Self { facts, ..decides }))
    }
}

/// What one source says, beside what others say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Contender {
    pub source: Origin,
    /// The highest decides, and of equal ones the newest.
    #[schema(value_type = u16)]
    pub priority: u16,
    pub class: Name,
    /// Whether it decides.
    pub effective: bool,
    pub session: Option<Session>,
    pub user: Option<Login>,
    pub mac: Option<Mac>,
    pub expires: Option<Time>,
    pub labels: Labels,
    pub revision: u64,
}

impl Contender {
    fn new(known: &Known, priorities: Priorities) -> Self {
        let Fact { source, class, priority, expires_s, session, user, mac, labels, .. } = known.fact.clone();
        Self {
            source,
            priority: priority.map_or_else(|| priorities.of(source), Priority::get),
            class,
            effective: known.effective,
            session,
            user,
            mac,
            expires: expires_s.map(|seconds| Time { seconds }),
            labels,
            revision: known.revision,
        }
    }
}

/// What a source says from here on; what others say of the prefix is left alone.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubscriberPut {
    /// If given, the same as in the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Prefix>,
    pub class: Name,
    #[serde(default = "operator")]
    pub source: Origin,
    /// Where it is not given, the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u16>, minimum = 0, maximum = 1000)]
    pub priority: Option<Priority>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Login>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    #[serde(default)]
    pub expires: Option<Time>,
    /// Instead of `expires`: seconds from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub ttl_s: Option<u32>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Ignored.
    #[serde(default, skip_serializing)]
    #[schema(value_type = Option<u64>, read_only)]
    pub revision: Option<serde_json::Value>,
    /// Ignored.
    #[serde(default, skip_serializing)]
    #[schema(value_type = Option<Vec<Contender>>, read_only)]
    pub facts: Option<serde_json::Value>,
}

/// Which subscribers a list or an export holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct SubscriberListQuery {
    /// Rows of the page; 100 where not given, 1000 at most. Not of NDJSON, which holds all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Say how many there are in all, in `count`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub count: bool,
    /// Only subscribers of this class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Only prefixes inside this one, itself included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
    /// Only what this source says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<Origin>)]
    pub source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Only what expires before this time (RFC 3339), as far as that is written: an extension may be known in memory only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_before: Option<String>,
    /// Only what changed after this revision. What was deleted since does not show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_since: Option<u64>,
}

/// Which fact of a prefix is to go.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct SubscriberDeleteQuery {
    /// Only what this source says; all of it where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<Origin>)]
    pub source: Option<String>,
    /// Only of this session: a late end of a session that another one has followed deletes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// Which facts are to go; those that all given members hold for.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubscriberDelete {
    #[serde(default)]
    pub within: Option<Prefix>,
    #[serde(default)]
    pub source: Option<Origin>,
    #[serde(default)]
    pub class: Option<Name>,
    #[serde(default)]
    pub session: Option<Session>,
    #[serde(default)]
    pub user: Option<Login>,
    #[serde(default)]
    pub mac: Option<Mac>,
    #[serde(default)]
    pub labels: Labels,
    /// If given, nothing is deleted unless so many match.
    #[serde(default)]
    pub count: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct SubscriberImportQuery {
    /// What becomes of facts that the file does not name.
    #[serde(default)]
    pub mode: ImportMode,
    /// Tell what would change, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Of every line; with `mode=replace` only what this source said goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<Origin>)]
    pub source: Option<String>,
}

/// What an import did, or would do, to facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SubscriberImport {
    pub added: u64,
    pub changed: u64,
    pub removed: u64,
    pub unchanged: u64,
    /// Lines that were left out, because their time has come.
    pub expired: u64,
    /// The first that would change, of a dry run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<SubscriberChange>,
}

impl SubscriberImport {
    pub fn is_empty(&self) -> bool {
        self.added + self.changed + self.removed == 0
    }
}

/// What would become of a fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SubscriberChange {
    pub before: Option<SubscriberRecord>,
    pub after: Option<SubscriberRecord>,
}

/// A line of a file that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineFault {
    /// From 1 on.
    pub line: u64,
    /// JSON pointer (RFC 6901) into the line.
    pub pointer: String,
    /// As `code` of a problem.
    #[schema(example = "invalid")]
    pub code: String,
    pub detail: String,
}

/// The first faults of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineFaults {
    pub total: u64,
    pub first: Vec<LineFault>,
}
