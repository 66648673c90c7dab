//! What tells two configurations apart, resource by resource, without showing a secret.

use std::collections::BTreeMap;

use redirect_relay::{
    Verifier,
    gateway::{Gateway, Group},
    route::{ManagedDomain, Route},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Configuration, document};
use crate::{
    clients::CertificateSpec,
    dataplane::words,
    desired::{ClassSpec, Interface, RelaySpec},
    limits,
};

words! {
    /// A kind of resource of the configuration.
    ResourceKind {
        Certificate = "certificate",
        User = "user",
        Interface = "interface",
        Relay = "relay",
        Gateway = "gateway",
        Group = "group",
        Class = "class",
        Route = "route",
        ManagedDomain = "managed_domain",
    }
}

/// What leads from one configuration to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diff {
    pub added: ResourceChanges,
    pub changed: ResourceChanges,
    pub removed: ResourceChanges,
    /// Resources that stay as they are.
    pub unchanged: u64,
}

/// How many resources, and the first 1,000 of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResourceChanges {
    pub count: u64,
    pub items: Vec<ResourceChange>,
}

impl ResourceChanges {
    fn push(&mut self, change: impl FnOnce() -> ResourceChange) {
        self.count += 1;
        if self.items.len() < limits::DIFF_LISTED_MAX {
            self.items.push(change());
        }
    }
}

/// One resource before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResourceChange {
    pub kind: ResourceKind,
    /// Its name, domain or key.
    pub key: String,
    /// Absent where it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub before: Option<Value>,
    /// Absent where it will not be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub after: Option<Value>,
    /// Pointers (RFC 6901) to what differs, where it is there before and after. A secret that differs is named too, and not shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
}

impl Diff {
    /// From `before` to `after`.
    pub fn between(before: &Configuration, after: &Configuration) -> Self {
        use ResourceKind as Kind;
        let mut diff = Self::default();
        let (b, a) = (before, after);
        diff.section(Kind::Certificate, [&b.certificates, &a.certificates], ToString::to_string, document::certificate);
        diff.section(Kind::User, [&b.users, &a.users], ToString::to_string, document::user);
        diff.section(Kind::Interface, [&b.interfaces, &a.interfaces], ToString::to_string, document::interface);
        diff.section(Kind::Relay, [&b.relays, &a.relays], ToString::to_string, document::relay);
        diff.section(Kind::Gateway, [&b.gateways, &a.gateways], ToString::to_string, |_, gateway| gateway);
        diff.section(Kind::Group, [&b.groups, &a.groups], ToString::to_string, |_, group| group);
        diff.section(Kind::Class, [&b.classes, &a.classes], ToString::to_string, document::class);
        diff.section(Kind::Route, [&b.routes, &a.routes], |(_, key)| key.clone(), document::route);
        let managed = [&b.managed_domains, &a.managed_domains];
        diff.section(Kind::ManagedDomain, managed, ToString::to_string, |_, managed| managed);
        diff
    }

    pub const fn is_empty(&self) -> bool {
        self.added.count == 0 && self.changed.count == 0 && self.removed.count == 0
    }

    /// `shown`: what the document has of it.
    fn section<'c, K: Ord, V: Hidden, D: Serialize>(
        &mut self,
        kind: ResourceKind,
        [before, after]: [&'c BTreeMap<K, V>; 2],
        name: impl Fn(&K) -> String,
        shown: impl Fn(&'c K, &'c V) -> D,
    ) {
        let shown = |key, value| document::value(&shown(key, value));
        for (key, value) in before.iter().filter(|(key, _)| !after.contains_key(key)) {
            let members = Vec::new();
            self.removed.push(|| ResourceChange {
                kind,
                key: name(key),
                before: Some(shown(key, value)),
                after: None,
                members,
            });
        }
        for (key, value) in after {
            match before.get(key) {
                Some(known) if known == value => self.unchanged += 1,
                Some(known) => self.changed.push(|| {
                    let (before, after) = (shown(key, known), shown(key, value));
                    let mut members = Vec::new();
                    differing("", Some(&before), Some(&after), &mut members);
                    members.extend(known.hidden(value).map(str::to_owned));
                    ResourceChange { kind, key: name(key), before: Some(before), after: Some(after), members }
                }),
                None => {
                    let members = Vec::new();
                    self.added.push(|| ResourceChange {
                        kind,
                        key: name(key),
                        before: None,
                        after: Some(shown(key, value)),
                        members,
                    });
                }
            }
        }
    }
}

/// A resource that may hold what no document shows.
trait Hidden: PartialEq {
    /// The member that is not shown and differs.
    fn hidden(&self, _other: &Self) -> Option<&'static str> {
        None
    }
}

impl Hidden for CertificateSpec {
    fn hidden(&self, other: &Self) -> Option<&'static str> {
        (self.key != other.key).then_some("/key")
    }
}

impl Hidden for Verifier {
    fn hidden(&self, other: &Self) -> Option<&'static str> {
        (self != other).then_some("/password")
    }
}

impl Hidden for Gateway {
    fn hidden(&self, other: &Self) -> Option<&'static str> {
        let (Some(account), Some(other)) = (&self.account, &other.account) else { return None };
        (account.password != other.password).then_some("/account/password")
    }
}

impl Hidden for Interface {}
impl Hidden for RelaySpec {}
impl Hidden for Group {}
impl Hidden for ClassSpec {}
impl Hidden for Route {}
impl Hidden for ManagedDomain {}

/// Pointers to what differs: members of objects one by one, lists as a whole.
fn differing(pointer: &str, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<String>) {
    if before == after {
        return;
    }
    let (Some(Value::Object(before)), Some(Value::Object(after))) = (before, after) else {
        return found.push(pointer.to_owned());
    };
    let mut names: Vec<_> = before.keys().chain(after.keys().filter(|name| !before.contains_key(*name))).collect();
    names.sort_unstable();
    for name in names {
        let pointer = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
        differing(&pointer, before.get(name), after.get(name), found);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::configuration::{Document, Known, Purpose};

    fn configuration(document: &Value) -> Configuration {
        let document: Document = serde_json::from_value(document.clone()).unwrap();
        document.resolve(&Known::default(), Purpose::Restore).unwrap_or_else(|faults| panic!("{faults:?}"))
    }

    fn base() -> Value {
        json!({
            "relays": [{"name": "dmz", "ipv4": "192.0.2.25:25"}],
            "gateways": [{"name": "mx", "address": "mx.example", "account": {"username": "us", "password": "a", "allow_unprotected": true}}],
            "classes": [{"name": "guests", "action": "redirect", "relays": [{"name": "dmz"}], "limits": {"rate": 5}}],
            "routes": [{"domain": "example.com", "gateway": "mx"}],
        })
    }

    /// What each line of the diff says: kind, key and members.
    fn lines(changes: &ResourceChanges) -> Vec<String> {
        changes.items.iter().map(|item| format!("{} {} {}", item.kind, item.key, item.members.join(" "))).collect()
    }

    #[test]
    fn each_kind_of_change_is_named() {
        let before = configuration(&base());
        let check = |edit: fn(&mut Value), added: &[&str], changed: &[&str], removed: &[&str]| {
            let mut document = base();
            edit(&mut document);
            let after = configuration(&document);
            let diff = Diff::between(&before, &after);
            assert_eq!(
                (lines(&diff.added), lines(&diff.changed), lines(&diff.removed)),
                (
                    added.iter().map(ToString::to_string).collect(),
                    changed.iter().map(ToString::to_string).collect(),
                    removed.iter().map(ToString::to_string).collect()
                )
            );
            assert_eq!(diff.unchanged + diff.changed.count + diff.removed.count, 4);
            let back = Diff::between(&after, &before);
            assert_eq!((back.added.count, back.removed.count), (diff.removed.count, diff.added.count));
            assert_eq!(diff.is_empty(), before == after);
            let text = serde_json::to_string(&diff).unwrap();
            assert!(!text.contains("password\":"), "{text}");
        };
        check(|_| (), &[], &[], &[]);
        check(
            |all| all["classes"][0]["limits"] = json!({"rate": 6, "burst": 9}),
            &[],
            &["class guests /limits/burst /limits/rate"],
            &[],
        );
        check(
            |all| all["gateways"][0]["account"]["password"] = json!("b"),
            &[],
            &["gateway mx /account/password"],
            &[],
        );
        check(
            |all| {
                all["gateways"][0]["account"]["password"] = json!("b");
                all["gateways"][0]["port"] = json!(587);
            },
            &[],
            &["gateway mx /port /account/password"],
            &[],
        );
        check(
            |all| all["routes"][0]["order"] = json!(7),
            &["route example.com;order=7 "],
            &[],
            &["route example.com "],
        );
        check(|all| all["routes"] = json!([]), &[], &[], &["route example.com "]);
        check(
            |all| all["managed_domains"] = json!([{"domain": "example.net"}]),
            &["managed_domain example.net "],
            &[],
            &[],
        );
        check(|all| all["classes"][0]["relays"][0]["weight"] = json!(2), &[], &["class guests /relays"], &[]);
    }

    #[test]
    fn a_long_diff_is_counted_and_cut() {
        let mut document = base();
        document["routes"] = (0..=limits::DIFF_LISTED_MAX)
            .map(|n| json!({"domain": format!("d{n}.example"), "gateway": "mx"}))
            .collect();
        let diff = Diff::between(&configuration(&base()), &configuration(&document));
        assert_eq!((diff.added.count, diff.added.items.len()), (1_001, 1_000));
        assert_eq!((diff.removed.count, diff.unchanged), (1, 3));
    }
}
