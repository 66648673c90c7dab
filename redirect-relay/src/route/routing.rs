//! The table that answers "which route?": built from what the operator said, and never changed; what changes is another table.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    domain::{Domain, parent},
    gateway::{Gateway, GatewayInvalid, Group, Name, Status},
    limits::{DESCRIPTION_MAX, GROUP_MEMBERS_MAX, ROUTES_PER_DOMAIN_MAX},
    route::model::{Conditions, ManagedDomain, Pattern, Route, Target},
};

/// Everything that says where mail goes, as the store holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutingSpec {
    #[serde(default)]
    pub gateways: Vec<Gateway>,
    #[serde(default)]
    pub groups: Vec<Group>,
    #[serde(default)]
    pub routes: Vec<Route>,
    #[serde(default)]
    pub managed: Vec<ManagedDomain>,
}

/// Why a [`RoutingSpec`] makes no [`Routing`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoutingFault {
    #[error("gateway {gateway}: {fault}")]
    Gateway { gateway: Name, fault: GatewayInvalid },
    #[error("{0} is the name of two gateways or groups")]
    NameTaken(Name),
    #[error("group {0} has no members, or more than {GROUP_MEMBERS_MAX}")]
    GroupSize(Name),
    #[error("the description of group {0} must be one line of at most {DESCRIPTION_MAX} octets")]
    GroupDescription(Name),
    #[error("group {group} has the gateway {gateway} twice")]
    MemberTwice { group: Name, gateway: Name },
    #[error("group {group} has the gateway {gateway}, which does not exist")]
    NoMember { group: Name, gateway: Name },
    #[error("route {route} leads to {target}, which does not exist")]
    NoTarget { route: String, target: Target },
    #[error("managed domain {domain} leads to {target}, which does not exist")]
    NoManagedTarget { domain: Domain, target: Target },
    #[error("route {0} is there twice")]
    RouteTwice(String),
    #[error("route {0}: {1}")]
    Route(String, &'static str),
    #[error("{0} has more than {ROUTES_PER_DOMAIN_MAX} routes")]
    TooManyRoutes(Pattern),
    #[error("{0} is a managed domain and cannot be a route")]
    Managed(Domain),
    #[error("managed domain {0} is there twice")]
    ManagedTwice(Domain),
}

/// What a decision depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'a> {
    /// The recipient's domain in lower-case A-labels; `None` for an address literal or a bare `postmaster`.
    pub domain: Option<&'a str>,
    /// The sender's domain, likewise; `None` for the null sender.
    pub sender: Option<&'a str>,
    pub class: &'a str,
    /// What MAIL declares with SIZE, octets; else 0.
    pub size: u64,
    /// MT-PRIORITY (RFC 6710); else 0.
    pub priority: i8,
}

/// The route of a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    pub target: &'a Target,
    /// `None`: the target of a managed domain.
    pub route: Option<&'a Route>,
}

/// One look-up on the way to a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Step {
    pub pattern: Pattern,
    pub managed: bool,
    /// Routes of that pattern whose conditions did not hold.
    pub passed_over: Vec<String>,
    pub taken: bool,
}

/// A decision with the way to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = RouteDecision))]
pub struct Explanation {
    pub steps: Vec<Step>,
    pub route: Option<Route>,
    pub target: Option<Target>,
    /// The gateways that the target stands for, the first rank first.
    pub gateways: Vec<Name>,
}

/// Routes, gateways and groups at one moment. One transaction uses one of these from its first recipient to its end.
#[derive(Debug, Clone, Default)]
pub struct Routing {
    gateways: BTreeMap<Name, Arc<Gateway>>,
    groups: BTreeMap<Name, Arc<Group>>,
    exact: ByDomain,
    suffixes: ByDomain,
    default: Arc<[Route]>,
    managed: Arc<HashMap<Domain, Option<Target>>>,
    /// The targets of all routes and managed domains that name a domain, by the class that they are for, and how many lead there.
    by_domain: BTreeMap<Option<Name>, BTreeMap<Target, usize>>,
}

/// Parts of a [`ByDomain`]: of 100,000 domains, 400 are in each.
const PARTS: usize = 256;

type Part = HashMap<Domain, Arc<[Route]>>;

/// Routes by domain. Tables that differ in a few domains share the parts in which they do not, so that one of 100,000 changes in
/// microseconds.
#[derive(Debug, Clone)]
struct ByDomain {
    hasher: RandomState,
    parts: Box<[Arc<Part>]>,
}

impl Default for ByDomain {
    fn default() -> Self {
        Self { hasher: RandomState::new(), parts: (0..PARTS).map(|_| Arc::default()).collect() }
    }
}

impl ByDomain {
    fn part(&self, domain: &str) -> usize {
        // The remainder is below `PARTS`.
        usize::try_from(self.hasher.hash_one(domain) % PARTS as u64).unwrap_or(0)
    }

    fn get(&self, domain: &str) -> &[Route] {
        self.parts[self.part(domain)].get(domain).map_or(&[], |routes| routes)
    }

    /// Puts these in place of a domain's routes, and gives those back.
    fn replace(&mut self, domain: Domain, routes: Arc<[Route]>) -> Arc<[Route]> {
        let part = self.part(domain.as_str());
        let part = Arc::make_mut(&mut self.parts[part]);
        let before = if routes.is_empty() { part.remove(&domain) } else { part.insert(domain, routes) };
        before.unwrap_or_default()
    }
}

/// A place where routes may be found.
enum Place<'a> {
    Managed(Option<&'a Target>),
    Routes(&'a [Route]),
}

impl Routing {
    pub fn build(spec: RoutingSpec) -> Result<Self, Vec<RoutingFault>> {
        let mut faults = Vec::new();
        let mut routing = Self::default();
        for gateway in spec.gateways {
            let name = gateway.name.clone();
            faults.extend(
                gateway.check().into_iter().map(|fault| RoutingFault::Gateway { gateway: name.clone(), fault }),
            );
            if routing.gateways.insert(name.clone(), Arc::new(gateway)).is_some() {
                faults.push(RoutingFault::NameTaken(name));
            }
        }
        for group in spec.groups {
            routing.add_group(group, &mut faults);
        }
        let mut managed = HashMap::new();
        for ManagedDomain { domain, target } in spec.managed {
            if let Some(target) = target.as_ref().filter(|target| !routing.has(target)) {
                faults.push(RoutingFault::NoManagedTarget { domain: domain.clone(), target: target.clone() });
            }
            if let Some(target) = &target {
                *routing.by_domain.entry(None).or_default().entry(target.clone()).or_default() += 1;
            }
            if managed.insert(domain.clone(), target).is_some() {
                faults.push(RoutingFault::ManagedTwice(domain));
            }
        }
        routing.managed = Arc::new(managed);
        let mut by_pattern: BTreeMap<Pattern, Vec<Route>> = BTreeMap::new();
        for route in spec.routes {
            by_pattern.entry(route.domain.clone()).or_default().push(route);
        }
        for (pattern, routes) in by_pattern {
            routing.set_routes(pattern, routes, &mut faults);
        }
        if faults.is_empty() { Ok(routing) } else { Err(faults) }
    }

    /// With `routes` in place of all that there were of one pattern; all of them are of that pattern. Costs the same however many there are of
    /// others.
    pub fn with_routes(&self, pattern: Pattern, routes: Vec<Route>) -> Result<Self, Vec<RoutingFault>> {
        let (mut routing, mut faults) = (self.clone(), Vec::new());
        routing.set_routes(pattern, routes, &mut faults);
        if faults.is_empty() { Ok(routing) } else { Err(faults) }
    }

    fn set_routes(&mut self, pattern: Pattern, mut routes: Vec<Route>, faults: &mut Vec<RoutingFault>) {
        self.check_routes(&pattern, &routes, faults);
        routes.sort_by_key(|route| (route.order, usize::MAX - route.conditions.count()));
        let routes = Arc::from(routes);
        let before = match pattern {
            Pattern::Exact(domain) => self.exact.replace(domain, Arc::clone(&routes)),
            Pattern::Suffix(domain) => self.suffixes.replace(domain, Arc::clone(&routes)),
            Pattern::Default => {
                self.default = routes;
                return;
            }
        };
        for route in &*routes {
            *self.targets_of(route).entry(route.target.clone()).or_default() += 1;
        }
        for route in &*before {
            let targets = self.targets_of(route);
            let left = targets.get(&route.target).map_or(0, |count| count - 1);
            if left == 0 {
                targets.remove(&route.target);
            } else {
                targets.insert(route.target.clone(), left);
            }
        }
    }

    fn targets_of(&mut self, route: &Route) -> &mut BTreeMap<Target, usize> {
        self.by_domain.entry(route.conditions.class.clone()).or_default()
    }

    fn add_group(&mut self, group: Group, faults: &mut Vec<RoutingFault>) {
        let name = group.name.clone();
        if !(1..=GROUP_MEMBERS_MAX).contains(&group.members.len()) {
            faults.push(RoutingFault::GroupSize(name.clone()));
        }
        if group.description.len() > DESCRIPTION_MAX || group.description.chars().any(char::is_control) {
            faults.push(RoutingFault::GroupDescription(name.clone()));
        }
        let mut seen = BTreeSet::new();
        for member in &group.members {
            let gateway = member.gateway.clone();
            if !seen.insert(&member.gateway) {
                faults.push(RoutingFault::MemberTwice { group: name.clone(), gateway });
            } else if !self.gateways.contains_key(&gateway) {
                faults.push(RoutingFault::NoMember { group: name.clone(), gateway });
            }
        }
        if self.gateways.contains_key(&name) || self.groups.insert(name.clone(), Arc::new(group)).is_some() {
            faults.push(RoutingFault::NameTaken(name));
        }
    }

    fn check_routes(&self, pattern: &Pattern, routes: &[Route], faults: &mut Vec<RoutingFault>) {
        if let Pattern::Exact(domain) = pattern
            && self.managed.contains_key(domain)
        {
            faults.push(RoutingFault::Managed(domain.clone()));
        }
        if routes.len() > ROUTES_PER_DOMAIN_MAX {
            return faults.push(RoutingFault::TooManyRoutes(pattern.clone()));
        }
        for (index, route) in routes.iter().enumerate() {
            if !self.has(&route.target) {
                faults.push(RoutingFault::NoTarget { route: route.to_string(), target: route.target.clone() });
            }
            if routes[..index].iter().any(|other| other.key() == route.key()) {
                faults.push(RoutingFault::RouteTwice(route.to_string()));
            }
            if let Some(fault) = route_fault(route) {
                faults.push(RoutingFault::Route(route.to_string(), fault));
            }
        }
    }

    fn has(&self, target: &Target) -> bool {
        match target {
            Target::Gateway(name) => self.gateways.contains_key(name),
            Target::Group(name) => self.groups.contains_key(name),
        }
    }

    pub fn gateway(&self, name: &Name) -> Option<&Arc<Gateway>> {
        self.gateways.get(name)
    }

    pub fn group(&self, name: &Name) -> Option<&Arc<Group>> {
        self.groups.get(name)
    }

    pub fn gateways(&self) -> impl Iterator<Item = &Arc<Gateway>> {
        self.gateways.values()
    }

    /// The gateways of a target with their ranks.
    pub fn members(&self, target: &Target) -> Vec<(u16, &Arc<Gateway>)> {
        match target {
            Target::Gateway(name) => self.gateways.get(name).map(|gateway| (0, gateway)).into_iter().collect(),
            Target::Group(name) => {
                let members = self.groups.get(name).map_or(&[][..], |group| &group.members);
                let mut members: Vec<_> = members
                    .iter()
                    .filter_map(|member| Some((member.rank, self.gateways.get(&member.gateway)?)))
                    .collect();
                members.sort_by_key(|(rank, _)| *rank);
                members
            }
        }
    }

    pub fn decide(&self, query: &Query<'_>) -> Option<Decision<'_>> {
        self.places(query.domain).find_map(|(_, place)| place.decide(query))
    }

    /// Every target that a message of this class may have, some of them several times. Whether a route of one domain hides another is not looked at.
    fn targets(&self, class: &str) -> impl Iterator<Item = &Target> {
        self.domain_targets(class).chain(self.default_routes(class).map(|route| &route.target))
    }

    fn domain_targets(&self, class: &str) -> impl Iterator<Item = &Target> {
        let concerns = move |named: &Option<Name>| named.as_ref().is_none_or(|name| name.as_str() == class);
        self.by_domain.iter().filter(move |(named, _)| concerns(named)).flat_map(|(_, targets)| targets.keys())
    }

    /// The routes `*` that a message of this class may take: those behind one without further conditions are out of its reach.
    fn default_routes(&self, class: &str) -> impl Iterator<Item = &Route> {
        self.default.iter().filter(move |route| route.conditions.concern(class)).scan(true, |open, route| {
            let reached = *open;
            *open &= !route.conditions.are_only_class();
            reached.then_some(route)
        })
    }

    /// The only target that a message of this class can have, whoever its recipients are.
    pub fn only_target(&self, class: &str) -> Option<&Target> {
        self.own_target(class).filter(|own| self.targets(class).all(|target| target == *own))
    }

    /// Where mail of this class goes that nothing else is said of: the gateway or group of the class, or the one for everybody.
    pub fn own_target(&self, class: &str) -> Option<&Target> {
        let last = self.default_routes(class).last().filter(|route| route.conditions.are_only_class())?;
        Some(&last.target)
    }

    /// The gateways of [`Self::own_target`] that may be shown a client's password: TLS, and who answers is known.
    pub fn bridges(&self, class: &str, allow_unprotected: bool) -> impl Iterator<Item = &Arc<Gateway>> {
        let gateways = self.own_target(class).into_iter().flat_map(|target| self.members(target));
        let enabled = gateways.map(|(_, gateway)| gateway).filter(|gateway| gateway.status == Status::Enabled);
        enabled.filter(move |gateway| allow_unprotected || gateway.is_verified())
    }

    /// Whether mail of this class may go to more than one target, by the recipients' domains.
    pub fn splits(&self, class: &str) -> bool {
        let mut targets = self.targets(class);
        let first = targets.next();
        self.domain_targets(class).next().is_some() && targets.any(|target| Some(target) != first)
    }

    /// The gateways that mail of this class may go to, some of them several times.
    pub fn gateways_of(&self, class: &str) -> impl Iterator<Item = &Arc<Gateway>> {
        self.targets(class).flat_map(|target| self.members(target)).map(|(_, gateway)| gateway)
    }

    pub fn explain(&self, query: &Query<'_>) -> Explanation {
        let mut steps = Vec::new();
        let mut decision = None;
        for (pattern, place) in self.places(query.domain) {
            decision = place.decide(query);
            let passed = match &place {
                Place::Managed(_) => &[][..],
                Place::Routes(routes) => {
                    let taken = decision.and_then(|decision| decision.route);
                    let end = routes.iter().position(|route| taken.is_some_and(|taken| std::ptr::eq(taken, route)));
                    &routes[..end.unwrap_or(routes.len())]
                }
            };
            steps.push(Step {
                pattern: pattern.pattern(),
                managed: matches!(place, Place::Managed(_)),
                passed_over: passed.iter().map(ToString::to_string).collect(),
                taken: decision.is_some(),
            });
            if decision.is_some() {
                break;
            }
        }
        let target = decision.map(|decision| decision.target);
        Explanation {
            steps,
            route: decision.and_then(|decision| decision.route).cloned(),
            target: target.cloned(),
            gateways: target.map_or_else(Vec::new, |target| {
                self.members(target).into_iter().map(|(_, gateway)| gateway.name.clone()).collect()
            }),
        }
    }

    /// Where a domain's routes may be, the most specific place first: at most one look-up for each label and three more.
    /// What follows a managed domain is `*` only.
    fn places<'s, 'q>(&'s self, domain: Option<&'q str>) -> impl Iterator<Item = (At<'q>, Place<'s>)> + use<'s, 'q> {
        let managed = domain.and_then(|domain| self.managed.get(domain));
        let lookups = domain.into_iter().flat_map(move |domain| {
            let suffixes = std::iter::successors(parent(domain), |name| parent(name)).map(At::Suffix);
            let below = managed.is_none().then_some(std::iter::once(At::Exact(domain)).chain(suffixes));
            managed.is_some().then_some(At::Managed(domain)).into_iter().chain(below.into_iter().flatten())
        });
        lookups.chain(std::iter::once(At::Default)).map(move |at| {
            let place = match at {
                At::Managed(_) => Place::Managed(managed.and_then(Option::as_ref)),
                At::Exact(name) => Place::Routes(self.exact.get(name)),
                At::Suffix(name) => Place::Routes(self.suffixes.get(name)),
                At::Default => Place::Routes(&self.default),
            };
            (at, place)
        })
    }
}

/// What a look-up asks for.
#[derive(Debug, Clone, Copy)]
enum At<'a> {
    Managed(&'a str),
    Exact(&'a str),
    Suffix(&'a str),
    Default,
}

impl At<'_> {
    fn pattern(self) -> Pattern {
        // What a recipient's path may hold is a domain name by the same grammar.
        let domain = |name: &str| name.parse().expect("the domain of a query is a domain name");
        match self {
            Self::Managed(name) | Self::Exact(name) => Pattern::Exact(domain(name)),
            Self::Suffix(name) => Pattern::Suffix(domain(name)),
            Self::Default => Pattern::Default,
        }
    }
}

impl<'a> Place<'a> {
    fn decide(&self, query: &Query<'_>) -> Option<Decision<'a>> {
        match self {
            Self::Managed(target) => target.map(|target| Decision { target, route: None }),
            Self::Routes(routes) => routes
                .iter()
                .find(|route| route.conditions.hold(query))
                .map(|route| Decision { target: &route.target, route: Some(route) }),
        }
    }
}

impl Conditions {
    fn concern(&self, class: &str) -> bool {
        self.class.as_ref().is_none_or(|name| name.as_str() == class)
    }

    /// They hold for every message of the class.
    fn are_only_class(&self) -> bool {
        matches!(self, Self { sender: None, size: None, priority: None, class: _ })
    }

    pub fn hold(&self, query: &Query<'_>) -> bool {
        let Self { sender, class: _, size, priority } = self;
        self.concern(query.class)
            && sender.as_ref().is_none_or(|pattern| pattern.contains(query.sender))
            && size.as_ref().is_none_or(|range| (range.min..=range.max).contains(&query.size))
            && priority.as_ref().is_none_or(|range| range.contains(query.priority))
    }
}

/// What is wrong with a route by itself.
pub(crate) fn route_fault(route: &Route) -> Option<&'static str> {
    let Conditions { size, priority, .. } = &route.conditions;
    if size.is_some_and(|range| range.min > range.max) {
        Some("the size range is empty")
    } else if priority.is_some_and(|range| !range.is_valid()) {
        Some("the priority range is not within -9 to 9")
    } else if route.note.len() > DESCRIPTION_MAX || route.note.chars().any(char::is_control) {
        Some("the note must be one line of text")
    } else {
        None
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let kind = if step.managed { "managed domain" } else { "route" };
            for passed in &step.passed_over {
                writeln!(f, "{kind} {passed}: its conditions do not hold")?;
            }
            match (&self.route, step.taken) {
                (Some(route), true) => writeln!(f, "{kind} {route}: taken")?,
                (_, true) => writeln!(f, "{kind} {}: taken", step.pattern)?,
                (_, false) if step.managed => writeln!(f, "{kind} {}: names no gateway", step.pattern)?,
                (_, false) if step.passed_over.is_empty() => writeln!(f, "no route {}", step.pattern)?,
                (_, false) => {}
            }
        }
        match &self.target {
            None => f.write_str("no route: mail is refused with 451 4.3.5"),
            Some(target) => {
                let gateways: Vec<_> = self.gateways.iter().map(Name::as_str).collect();
                write!(f, "{target}: {}", gateways.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn spec(routes: &str, managed: &str) -> RoutingSpec {
        let gateways: Vec<_> = ["a", "b", "c", "d"]
            .iter()
            .map(|name| format!(r#"{{"name":"{name}","address":"{name}.gw.example"}}"#))
            .collect();
        let json = format!(
            r#"{{"gateways":[{}],"groups":[{{"name":"g","members":[{{"gateway":"b","rank":1}},{{"gateway":"a"}}]}}],
            "routes":[{routes}],"managed":[{managed}]}}"#,
            gateways.join(",")
        );
        serde_json::from_str(&json).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    /// `routes`: "domain target conditions...", conditions as JSON.
    fn routing(routes: &[(&str, &str, &str)], managed: &str) -> Routing {
        let mut json = String::new();
        for (index, (domain, gateway, conditions)) in routes.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(json, r#"{comma}{{"domain":"{domain}","gateway":"{gateway}"{conditions}}}"#).unwrap();
        }
        Routing::build(spec(&json, managed)).unwrap()
    }

    fn query(domain: &str) -> Query<'_> {
        let domain = if domain.is_empty() { None } else { Some(domain) };
        Query { domain, sender: Some("sender.example"), class: "guests", size: 0, priority: 0 }
    }

    fn decided(routing: &Routing, query: &Query<'_>) -> String {
        let decision = routing.decide(query);
        let explained = routing.explain(query);
        assert_eq!(explained.target.as_ref(), decision.map(|decision| decision.target), "explain says the same");
        decision.map_or_else(|| "none".to_owned(), |decision| decision.target.to_string())
    }

    #[test]
    fn the_most_specific_domain_wins_whatever_the_order() {
        let routing =
            routing(&[("*", "a", ""), (".example", "b", ""), (".x.example", "c", ""), ("y.x.example", "d", "")], "");
        for (domain, expected) in [
            ("y.x.example", "gateway d"),
            ("z.x.example", "gateway c"),
            ("z.y.x.example", "gateway c"),
            ("x.example", "gateway b"),
            ("example", "gateway a"),
            ("other", "gateway a"),
            ("", "gateway a"),
        ] {
            assert_eq!(decided(&routing, &query(domain)), expected, "{domain:?}");
        }
    }

    #[test]
    fn a_route_whose_conditions_do_not_hold_is_passed_over() {
        let routes = [
            ("x.example", "a", r#","class":"staff""#),
            ("x.example", "b", r#","sender":".sender.example""#),
            (".example", "c", r#","size":{"min":1000}"#),
            ("*", "d", r#","priority":{"min":0,"max":9}"#),
        ];
        let routing = routing(&routes, "");
        let base = query("x.example");
        assert_eq!(decided(&routing, &base), "gateway d");
        assert_eq!(decided(&routing, &Query { class: "staff", ..base }), "gateway a");
        assert_eq!(decided(&routing, &Query { sender: Some("a.sender.example"), ..base }), "gateway b");
        assert_eq!(decided(&routing, &Query { sender: None, ..base }), "gateway d");
        assert_eq!(decided(&routing, &Query { size: 1000, ..base }), "gateway c");
        assert_eq!(decided(&routing, &Query { size: 999, ..base }), "gateway d");
        assert_eq!(decided(&routing, &Query { priority: -1, ..base }), "none");
        assert_eq!(
            routing.explain(&Query { priority: -1, ..base }).to_string(),
            "route x.example (class staff): its conditions do not hold\n\
             route x.example (sender .sender.example): its conditions do not hold\n\
             route .example (size from 1000): its conditions do not hold\n\
             route * (priority 0 to 9): its conditions do not hold\n\
             no route: mail is refused with 451 4.3.5"
        );
    }

    #[test]
    fn order_comes_before_conditions_and_more_conditions_before_fewer() {
        let routes = [
            ("x", "a", ""),
            ("x", "b", r#","class":"guests""#),
            ("x", "c", r#","class":"guests","sender":"sender.example""#),
            ("x", "d", r#","order":1,"size":{"min":5}"#),
        ];
        let routing = routing(&routes, "");
        let base = query("x");
        assert_eq!(decided(&routing, &base), "gateway c");
        assert_eq!(decided(&routing, &Query { sender: None, ..base }), "gateway b");
        assert_eq!(decided(&routing, &Query { class: "staff", ..base }), "gateway a");
        assert_eq!(decided(&routing, &Query { size: 5, ..base }), "gateway d");
    }

    #[test]
    fn a_managed_domain_goes_its_own_way_or_by_default() {
        let routes = [("*", "a", ""), (".example", "b", "")];
        let routing = routing(&routes, r#"{"domain":"own.example","gateway":"c"},{"domain":"our.example"}"#.replace(
            r#","gateway":"c""#, r#","target":{"gateway":"c"}"#).as_str());
        assert_eq!(decided(&routing, &query("own.example")), "gateway c");
        assert_eq!(decided(&routing, &query("our.example")), "gateway a");
        assert_eq!(decided(&routing, &query("sub.own.example")), "gateway b");
        assert_eq!(
            routing.explain(&query("our.example")).to_string(),
            "managed domain our.example: names no gateway\nroute *: taken\ngateway a: a"
        );
    }

    #[test]
    fn a_group_lists_its_gateways_by_rank() {
        let routing = Routing::build(spec(r#"{"domain":"*","group":"g"}"#, "")).unwrap();
        assert_eq!(routing.explain(&query("x")).to_string(), "no route x\nroute *: taken\ngroup g: a, b");
    }

    #[test]
    fn what_makes_no_routing() {
        let check = |routes: &str, managed: &str, expected: &[&str]| {
            let faults = Routing::build(spec(routes, managed)).unwrap_err();
            assert_eq!(faults.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        };
        check(r#"{"domain":"x","gateway":"no"}"#, "", &["route x leads to gateway no, which does not exist"]);
        check(r#"{"domain":"x","group":"a"}"#, "", &["route x leads to group a, which does not exist"]);
        check(r#"{"domain":"x","gateway":"a"},{"domain":"X","gateway":"b"}"#, "", &["route x is there twice"]);
        check(
            r#"{"domain":"x","gateway":"a","size":{"min":2,"max":1}}"#,
            "",
            &["route x (size 2 to 1): the size range is empty"],
        );
        check(
            r#"{"domain":"B\u00fccher.example","gateway":"a"}"#,
            r#"{"domain":"xn--bcher-kva.example"}"#,
            &["xn--bcher-kva.example is a managed domain and cannot be a route"],
        );
        check("", r#"{"domain":"x"},{"domain":"x"}"#, &["managed domain x is there twice"]);
        check(
            "",
            r#"{"domain":"x","target":{"gateway":"no"}}"#,
            &["managed domain x leads to gateway no, which does not exist"],
        );
        let many: Vec<_> = (0..=ROUTES_PER_DOMAIN_MAX)
            .map(|order| format!(r#"{{"domain":"x","order":{order},"gateway":"a"}}"#))
            .collect();
        check(&many.join(","), "", &["x has more than 64 routes"]);
        let mut twice = spec("", "");
        twice.gateways.push(twice.gateways[0].clone());
        let member = twice.groups[0].members[0].clone();
        twice.groups[0].members.push(member);
        let mut other = twice.groups[0].clone();
        other.members.clear();
        other.description = "two\nlines".to_owned();
        twice.groups.push(other);
        twice.gateways[1].port = 0;
        let faults = Routing::build(twice).unwrap_err();
        assert_eq!(
            faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "gateway b: port: must be 1 to 65535",
                "a is the name of two gateways or groups",
                "group g has the gateway b twice",
                "group g has no members, or more than 64",
                "the description of group g must be one line of at most 1024 octets",
                "g is the name of two gateways or groups",
            ]
        );
    }

    #[test]
    fn a_hundred_thousand_routes_cost_one_look_up_for_each_label() {
        let mut all = spec(r#"{"domain":"*","gateway":"d"}"#, "");
        let name = |text: &str| text.parse::<Name>().unwrap();
        for index in 0..100_000 {
            let domain = if index % 2 == 0 { format!("d{index}.example") } else { format!(".s{index}.example") };
            all.routes.push(Route::new(domain.parse().unwrap(), Target::Gateway(name("a"))));
        }
        let routing = Routing::build(all).unwrap();
        for (domain, steps, target) in [
            ("d500.example", 1, "gateway a"),
            ("x.y.z.s501.example", 4, "gateway a"),
            ("x.y.z.s502.example", 6, "gateway d"),
            ("a.b.c.d.e.f.g.h", 9, "gateway d"),
        ] {
            let explained = routing.explain(&query(domain));
            assert_eq!(explained.steps.len(), steps, "{domain}");
            assert_eq!(decided(&routing, &query(domain)), target);
        }
    }

    /// The only target and the gateways of class guests, and whether its mail splits.
    fn check_reach(routes: &[(&str, &str, &str)], managed: &str, only: Option<&str>, gateways: &str, splits: bool) {
        let routing = routing(routes, managed);
        let found = routing.only_target("guests").map(ToString::to_string);
        assert_eq!(found, only.map(|gateway| format!("gateway {gateway}")), "{routes:?}");
        let names: BTreeSet<_> = routing.gateways_of("guests").map(|gateway| gateway.name.as_str()).collect();
        assert_eq!(names.into_iter().collect::<String>(), gateways, "{routes:?}");
        assert_eq!(routing.splits("guests"), splits, "{routes:?}");
    }

    #[test]
    fn where_the_mail_of_a_class_may_go() {
        const GUESTS: &str = r#","class":"guests""#;
        const STAFF: &str = r#","class":"staff""#;
        const LARGE: &str = r#","size":{"min":1000}"#;
        check_reach(&[("*", "a", "")], "", Some("a"), "a", false);
        check_reach(&[], "", None, "", false);
        // The gateway of a class stands before the one for everybody.
        check_reach(&[("*", "a", GUESTS), ("*", "b", "")], "", Some("a"), "a", false);
        check_reach(&[("*", "a", STAFF), ("*", "b", "")], "", Some("b"), "b", false);
        check_reach(&[("*", "a", STAFF)], "", None, "", false);
        check_reach(&[("*", "a", GUESTS), ("*", "c", STAFF), ("*", "b", "")], "", Some("a"), "a", false);
        // Another condition decides within the class, and what it does not hold for goes on.
        check_reach(&[("*", "a", LARGE), ("*", "b", "")], "", None, "ab", false);
        check_reach(&[("*", "a", LARGE), ("*", "a", "")], "", Some("a"), "a", false);
        check_reach(&[("*", "a", LARGE)], "", None, "a", false);
        // Domains: those of other classes do not count.
        check_reach(&[("*", "a", ""), ("x", "b", "")], "", None, "ab", true);
        check_reach(&[("*", "a", ""), ("x", "a", "")], "", Some("a"), "a", false);
        check_reach(&[("*", "a", ""), ("x", "b", STAFF)], "", Some("a"), "a", false);
        check_reach(&[("*", "a", ""), (".x", "b", GUESTS)], "", None, "ab", true);
        check_reach(&[("x", "b", "")], "", None, "b", false);
        // Managed domains go their own way, or by default.
        check_reach(&[("*", "a", "")], r#"{"domain":"x"}"#, Some("a"), "a", false);
        check_reach(&[("*", "a", "")], r#"{"domain":"x","target":{"gateway":"b"}}"#, None, "ab", true);
        check_reach(&[("*", "a", "")], r#"{"domain":"x","target":{"group":"g"}}"#, None, "ab", true);
    }

    proptest! {
        /// A table that came about by changes decides like one that was built whole.
        #[test]
        fn changed_or_built_it_is_the_same_table(
            changes in proptest::collection::vec(
                (prop_oneof![Just("*"), Just("a"), Just(".a"), Just("b.a"), Just(".b.a")], proptest::collection::vec((0usize..4, 0usize..3), 0..3)),
                0..12,
            ),
        ) {
            let mut changed = routing(&[], "");
            let mut last: BTreeMap<&str, Vec<Route>> = BTreeMap::new();
            for (pattern, to) in &changes {
                let routes: Vec<Route> = to.iter().enumerate().map(|(order, (gateway, class))| {
                    let target = Target::Gateway(["a", "b", "c", "d"][*gateway].parse().unwrap());
                    let class = [None, Some("guests"), Some("staff")][*class].map(|class| class.parse().unwrap());
                    let conditions = Conditions { class, ..Conditions::default() };
                    let order = u16::try_from(order).unwrap();
                    Route { order, conditions, ..Route::new(pattern.parse().unwrap(), target) }
                }).collect();
                changed = changed.with_routes(pattern.parse().unwrap(), routes.clone()).unwrap();
                last.insert(pattern, routes);
            }
            let mut whole = spec("", "");
            whole.routes = last.into_values().flatten().collect();
            let built = Routing::build(whole).unwrap();
            for class in ["guests", "staff", "others"] {
                for domain in ["a", "b.a", "c.a", "c.b.a", "x"] {
                    let query = Query { class, ..query(domain) };
                    prop_assert_eq!(changed.explain(&query), built.explain(&query));
                }
                prop_assert_eq!(changed.only_target(class), built.only_target(class));
                prop_assert_eq!(changed.splits(class), built.splits(class));
                let targets = |routing: &Routing| routing.targets(class).cloned().collect::<BTreeSet<_>>();
                prop_assert_eq!(targets(&changed), targets(&built));
            }
        }

        /// The table agrees with a search through the list that knows nothing of look-ups.
        #[test]
        fn the_table_is_the_list(
            patterns in proptest::collection::vec(("(\\.)?[ab](\\.[ab]){0,2}", 0usize..4), 0..12),
            domain in "[ab](\\.[ab]){0,3}",
        ) {
            let mut seen = BTreeMap::new();
            for (pattern, gateway) in &patterns {
                seen.entry(pattern.clone()).or_insert(["a", "b", "c", "d"][*gateway]);
            }
            let routes: Vec<_> = seen.iter().map(|(pattern, gateway)| (pattern.as_str(), *gateway, "")).collect();
            let routing = routing(&routes, "");
            let best = seen
                .iter()
                .filter(|(pattern, _)| **pattern == domain || (pattern.starts_with('.') && domain.ends_with(pattern.as_str())))
                .max_by_key(|(pattern, _)| (!pattern.starts_with('.'), pattern.len()));
            let expected = best.map_or_else(|| "none".to_owned(), |(_, gateway)| format!("gateway {gateway}"));
            prop_assert_eq!(decided(&routing, &query(&domain)), expected);
        }
    }
}
