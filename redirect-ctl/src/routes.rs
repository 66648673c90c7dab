//! Routes as the control plane handles them: their keys, and the table that the relay gets.

use std::{fmt, str::FromStr};

use redirect_relay::{
    gateway::{Name, PriorityRange},
    route::{Conditions, ManagedDomain, Pattern, Route, RoutingSpec, SizeRange, Target},
};

use crate::desired::{DEFAULT_GATEWAY, Invalid, Tables, text_on_the_wire};

/// What tells a route from all others, as text: `DOMAIN[;order=N][;sender=PATTERN][;class=NAME][;size=[MIN]..[MAX]][;priority=MIN..MAX]`, the
/// parts in this order. One key has one spelling.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteKey {
    pub domain: Pattern,
    pub order: u16,
    pub conditions: Conditions,
}

text_on_the_wire! { RouteKey = ".example.com;class=guests" }

impl RouteKey {
    pub fn of(route: &Route) -> Self {
        let (domain, order, conditions) = route.key();
        Self { domain: domain.clone(), order, conditions: conditions.clone() }
    }

    pub fn with(self, target: Target, note: String) -> Route {
        Route { domain: self.domain, order: self.order, conditions: self.conditions, target, note }
    }

    /// Where it stands among all routes: below its domain's parent. `example.com` is at `com.example`, `.example.com` at `com.example.`, `*` first.
    pub fn place(&self) -> String {
        place(&self.domain)
    }
}

/// Where the routes of a pattern stand; see [`RouteKey::place`].
pub fn place(pattern: &Pattern) -> String {
    match pattern {
        Pattern::Default => String::new(),
        Pattern::Exact(domain) => reversed(domain.as_str()),
        Pattern::Suffix(domain) => reversed(domain.as_str()) + ".",
    }
}

/// `www.example.com` as `com.example.www`.
pub fn reversed(domain: &str) -> String {
    domain.rsplit('.').collect::<Vec<_>>().join(".")
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conditions { sender, class, size, priority } = &self.conditions;
        self.domain.fmt(f)?;
        if self.order != Route::USUAL_ORDER {
            write!(f, ";order={}", self.order)?;
        }
        if let Some(sender) = sender {
            write!(f, ";sender={sender}")?;
        }
        if let Some(class) = class {
            write!(f, ";class={class}")?;
        }
        match size {
            Some(SizeRange { min, max: u64::MAX }) => write!(f, ";size={min}..")?,
            Some(SizeRange { min, max }) => write!(f, ";size={min}..{max}")?,
            None => {}
        }
        if let Some(PriorityRange { min, max }) = priority {
            write!(f, ";priority={min}..{max}")?;
        }
        Ok(())
    }
}

impl FromStr for RouteKey {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = |why: &dyn fmt::Display| Invalid(format!("{text:?} is not a route: {why}"));
        let mut parts = text.split(';');
        let domain = parts.next().unwrap_or_default().parse().map_err(|error| wrong(&error))?;
        let mut key = Self { domain, order: Route::USUAL_ORDER, conditions: Conditions::default() };
        let Conditions { sender, class, size, priority } = &mut key.conditions;
        let mut last = 0;
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let place = ["order", "sender", "class", "size", "priority"].iter().position(|known| *known == name);
            let place = place
                .ok_or_else(|| wrong(&format_args!("{name:?} is none of order, sender, class, size and priority")))?;
            if place < last {
                return Err(wrong(&"its parts are order, sender, class, size, priority, in this order, each once"));
            }
            last = place + 1;
            match place {
                0 => key.order = value.parse().map_err(|error| wrong(&format_args!("order: {error}")))?,
                1 => *sender = Some(value.parse().map_err(|error| wrong(&error))?),
                2 => *class = Some(value.parse().map_err(|error| wrong(&error))?),
                3 => *size = Some(size_range(value).map_err(|error| wrong(&error))?),
                _ => *priority = Some(priority_range(value).map_err(|error| wrong(&error))?),
            }
        }
        Ok(key)
    }
}

/// `MIN..MAX`, `MIN..` or `..MAX`, in octets.
pub fn size_range(text: &str) -> Result<SizeRange, Invalid> {
    let wrong = || Invalid(format!("{text:?} is not a range of sizes: give octets such as 0..1000000, or 1000000.."));
    let (min, max) = text.split_once("..").ok_or_else(wrong)?;
    let bound = |text: &str, open: u64| if text.is_empty() { Ok(open) } else { text.parse().map_err(|_| wrong()) };
    Ok(SizeRange { min: bound(min, 0)?, max: bound(max, u64::MAX)? })
}

/// `MIN..MAX`.
pub fn priority_range(text: &str) -> Result<PriorityRange, Invalid> {
    let wrong = || Invalid(format!("{text:?} is not a range of priorities: give two of -9 to 9, such as -9..-1"));
    let (min, max) = text.split_once("..").ok_or_else(wrong)?;
    let bound = |text: &str| text.parse().map_err(|_| wrong());
    Ok(PriorityRange { min: bound(min)?, max: bound(max)? })
}

/// Everything that says where mail goes. The gateway of a class is a route `*` on the condition of that class; a route of the operator's with the
/// same key takes its place. What is named `default` is the last route of all.
pub fn spec(tables: &Tables, mut routes: Vec<Route>, managed: Vec<ManagedDomain>) -> RoutingSpec {
    let implied = tables.classes.values().filter_map(|class| {
        let conditions = Conditions { class: Some(class.spec.name.clone()), ..Conditions::default() };
        let target = target(tables, class.spec.gateway.as_ref()?)?;
        Some(Route { conditions, note: "the class's gateway".to_owned(), ..Route::new(Pattern::Default, target) })
    });
    let default = DEFAULT_GATEWAY.parse().expect("the constant is a name");
    let last = target(tables, &default).map(|target| Route {
        order: u16::MAX,
        note: "for want of a route".to_owned(),
        ..Route::new(Pattern::Default, target)
    });
    for route in implied.chain(last) {
        if routes.iter().all(|other| other.domain != Pattern::Default || other.key() != route.key()) {
            routes.push(route);
        }
    }
    RoutingSpec {
        gateways: tables.gateways.values().cloned().collect(),
        groups: tables.groups.values().cloned().collect(),
        routes,
        managed,
    }
}

/// The gateway or group of that name.
pub fn target(tables: &Tables, name: &Name) -> Option<Target> {
    if tables.gateways.contains_key(name) {
        Some(Target::Gateway(name.clone()))
    } else {
        tables.groups.contains_key(name).then(|| Target::Group(name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_spelling() {
        let check = |text: &str, expected: Option<&str>| {
            let got = text.parse::<RouteKey>().map(|key| key.to_string()).ok();
            assert_eq!(got.as_deref(), expected, "{text:?}");
        };
        check("Example.COM", Some("example.com"));
        check("*", Some("*"));
        check("*;order=100", Some("*"));
        check(
            "*;order=7;sender=<>;class=a;size=..5;priority=-9..-1",
            Some("*;order=7;sender=<>;class=a;size=0..5;priority=-9..-1"),
        );
        check(".B\u{fc}cher.example;sender=.A;size=5..", Some(".xn--bcher-kva.example;sender=.a;size=5.."));
        for text in [
            "",
            "a..b",
            "a;",
            "a;b",
            "a;order=",
            "a;order=65536",
            "a;order=1;order=2",
            "a;class=x;sender=y",
            "a;size=5",
            "a;size=a..b",
            "a;priority=1",
            "a;priority=..1",
            "a;class=b c",
            "a;sender=*",
            "a=b",
            "a;target=x",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn places_put_what_is_below_a_domain_together() {
        let mut keys: Vec<RouteKey> =
            ["b.a", ".a", "*", "a-b", "a", "x.b.a", ".b.a", "b"].map(|key| key.parse().unwrap()).into();
        keys.sort_by_key(RouteKey::place);
        let keys: Vec<_> = keys.iter().map(ToString::to_string).collect();
        assert_eq!(keys, ["*", "a", "a-b", ".a", "b.a", ".b.a", "x.b.a", "b"]);
    }
}
