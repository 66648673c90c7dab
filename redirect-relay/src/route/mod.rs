//! Routes: which gateway takes the mail for which recipient (smart hosts), as values and pure functions.
//!
//! The most specific domain decides: an exact domain before `.suffix`, a longer suffix before a shorter one, `*` last.
//! Among the routes of one domain the lower `order` is asked first, then the one with more conditions. A route whose
//! conditions do not hold is passed over, and the search goes on, up to `*`. So the search costs one look-up for each
//! label of the recipient's domain, however many routes there are.

mod files;
mod lint;
mod model;
mod routing;

pub use self::{
    files::{
        Exported, ImportFault, RouteDiff, diff, export_csv, export_json, export_transport, import_csv, import_json,
        import_transport,
    },
    lint::{Concern, Finding, lint},
    model::{Conditions, ManagedDomain, Pattern, PatternInvalid, Route, SenderPattern, SizeRange, Target},
    routing::{Decision, Explanation, Query, Routing, RoutingFault, RoutingSpec, Step},
};
