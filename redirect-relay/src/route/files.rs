//! Routes as files: CSV, JSON and the text form of Postfix's transport table, read whole or not at all, and written.

mod csv;
mod json;
mod transport;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{
    limits::{FAULTS_MAX, ROUTES_MAX},
    route::{
        Route,
        model::{Conditions, Pattern},
        routing::route_fault,
    },
};

pub use self::{
    csv::{export_csv, import_csv},
    json::{export_json, import_json},
    transport::{export_transport, import_transport},
};

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("line {line}: {text}")]
pub struct ImportFault {
    /// From 1.
    pub line: usize,
    pub text: String,
}

/// A text form, and the routes that it cannot express.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    pub text: String,
    pub omitted: Vec<Route>,
}

/// What a file changes. Routes are the same by domain, order and conditions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteDiff {
    pub added: Vec<Route>,
    pub removed: Vec<Route>,
    /// Before and after.
    pub changed: Vec<(Route, Route)>,
    pub unchanged: usize,
}

/// The difference between the routes there are and those that shall be, each in its list's order.
pub fn diff(current: &[Route], next: &[Route]) -> RouteDiff {
    let mut old: HashMap<_, &Route> = current.iter().map(|route| (route.key(), route)).collect();
    let mut diff = RouteDiff::default();
    for route in next {
        match old.remove(&route.key()) {
            None => diff.added.push(route.clone()),
            Some(before) if before == route => diff.unchanged += 1,
            Some(before) => diff.changed.push((before.clone(), route.clone())),
        }
    }
    diff.removed = current.iter().filter(|route| old.contains_key(&route.key())).cloned().collect();
    diff
}

impl RouteDiff {
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// Collects routes with their lines, and what is wrong with them.
struct Reader<F> {
    refuse: F,
    routes: Vec<(usize, Route)>,
    faults: Vec<ImportFault>,
}

impl<F: Fn(&Route) -> Option<String>> Reader<F> {
    /// `refuse` knows what a route may not be for what is around it, such as a managed domain.
    fn new(refuse: F) -> Self {
        Self { refuse, routes: Vec::new(), faults: Vec::new() }
    }

    fn fault(&mut self, line: usize, text: impl Into<String>) {
        self.faults.push(ImportFault { line, text: text.into() });
    }

    fn route(&mut self, line: usize, route: Route) {
        let fault = route_fault(&route).map(str::to_owned).or_else(|| (self.refuse)(&route));
        match fault {
            Some(fault) => self.fault(line, fault),
            None => self.routes.push((line, route)),
        }
    }

    /// All of the routes, or all that is wrong as far as a reader has the patience.
    fn finish(mut self) -> Result<Vec<Route>, Vec<ImportFault>> {
        let mut seen: HashMap<(&Pattern, u16, &Conditions), usize> = HashMap::new();
        let mut twice = Vec::new();
        for (line, route) in &self.routes {
            if let Some(first) = seen.insert(route.key(), *line) {
                twice.push(ImportFault { line: *line, text: format!("{route} is in line {first} already") });
            }
        }
        self.faults.extend(twice);
        if let Some((line, _)) = self.routes.get(ROUTES_MAX) {
            self.faults.push(ImportFault { line: *line, text: format!("more than {ROUTES_MAX} routes") });
        }
        if self.faults.is_empty() {
            return Ok(self.routes.into_iter().map(|(_, route)| route).collect());
        }
        self.faults.sort_by_key(|fault| fault.line);
        self.faults.truncate(FAULTS_MAX);
        Err(self.faults)
    }
}

/// Editors of some systems begin a file with a byte order mark.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        gateway::{Gateway, PriorityRange},
        route::{SenderPattern, SizeRange, Target},
    };

    fn route(json: &str) -> Route {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn differences() {
        let a = route(r#"{"domain":"a","gateway":"g"}"#);
        let b = route(r#"{"domain":"b","gateway":"g"}"#);
        let b2 = route(r#"{"domain":"b","gateway":"h"}"#);
        let b_class = route(r#"{"domain":"b","class":"x","gateway":"g"}"#);
        let c = route(r#"{"domain":"c","gateway":"g"}"#);
        let got = diff(&[a.clone(), b.clone(), c.clone()], &[b2.clone(), b_class.clone(), a]);
        let expected = RouteDiff { added: vec![b_class], removed: vec![c], changed: vec![(b, b2)], unchanged: 1 };
        assert_eq!(got, expected);
    }

    fn domain() -> impl Strategy<Value = String> {
        "[a-z0-9]{1,8}(\\.[a-z]{2,5}){0,2}"
    }

    prop_compose! {
        fn any_route()(
            pattern in prop_oneof![domain(), domain().prop_map(|d| format!(".{d}")), Just("*".to_owned())],
            order in prop_oneof![Just(100), 0u16..],
            sender in proptest::option::of(prop_oneof![domain(), domain().prop_map(|d| format!(".{d}")), Just("<>".to_owned())]),
            class in proptest::option::of("[a-z][a-z0-9-]{0,5}"),
            size in proptest::option::of((0u64..1000, prop_oneof![Just(u64::MAX), 1000u64..9000])),
            priority in proptest::option::of((-9i8..0, 0i8..=9)),
            group in any::<bool>(),
            name in "[a-z][a-z0-9.-]{0,5}",
            note in "[ -~\u{e9}]{0,20}",
        ) -> Route {
            let name = name.parse().unwrap();
            Route {
                domain: pattern.parse().unwrap(),
                order,
                conditions: Conditions {
                    sender: sender.map(|sender| sender.parse::<SenderPattern>().unwrap()),
                    class: class.map(|class| class.parse().unwrap()),
                    size: size.map(|(min, max)| SizeRange { min, max }),
                    priority: priority.map(|(min, max)| PriorityRange { min, max }),
                },
                target: if group { Target::Group(name) } else { Target::Gateway(name) },
                note,
            }
        }
    }

    fn distinct(routes: Vec<Route>) -> Vec<Route> {
        let mut seen = std::collections::HashSet::new();
        let keep: Vec<bool> =
            routes.iter().map(|r| seen.insert((r.domain.clone(), r.order, r.conditions.clone()))).collect();
        routes.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(route, _)| route).collect()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(routes in proptest::collection::vec(any_route(), 0..20)) {
            let routes = distinct(routes);
            prop_assert_eq!(import_csv(&export_csv(&routes), |_| None), Ok(routes.clone()));
            prop_assert_eq!(import_json(&export_json(&routes), |_| None), Ok(routes.clone()));
            let gateways: Vec<Gateway> = routes.iter().filter_map(|route| match &route.target {
                Target::Gateway(name) => Some(name.clone()),
                Target::Group(_) => None,
            }).collect::<std::collections::BTreeSet<_>>().into_iter().enumerate().map(|(index, name)| {
                let host = if index % 2 == 0 { format!("192.0.2.{index}") } else { format!("mx{index}.example") };
                Gateway::new(name, host.parse().unwrap(), 25 + u16::try_from(index % 3).unwrap())
            }).collect();
            let Exported { text, omitted } = export_transport(&routes, &gateways);
            let read = import_transport(&text, &gateways, |_| None).unwrap();
            prop_assert_eq!(read.len() + omitted.len(), routes.len());
            for route in read {
                prop_assert!(routes.iter().any(|other| other.key() == route.key() && other.target == route.target));
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[a-z.,*#\"\\[\\]{}: \n\r=<>-]{0,200}") {
            let gateways = [Gateway::new("g".parse().unwrap(), "a.b".parse().unwrap(), 25)];
            let lines = text.lines().count().max(1);
            for result in [import_csv(&text, |_| None), import_json(&text, |_| None), import_transport(&text, &gateways, |_| None)] {
                if let Err(faults) = result {
                    prop_assert!(!faults.is_empty());
                    prop_assert!(faults.iter().all(|fault| (1..=lines).contains(&fault.line)), "{faults:?} of {lines}");
                }
            }
        }
    }
}
