//! What is allowed and yet hardly meant: routes that never decide, passwords and mail in clear.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{
    gateway::{Account, Encryption, Gateway, Group, Mechanism, Name, Status, Verification},
    route::{Pattern, Route, RoutingSpec, Target},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Concern {
    /// Another route decides wherever this one could.
    ShadowedRoute,
    /// Only the gateways are disabled or draining that the route leads to.
    DeadRoute,
    /// The route takes priorities that its gateway does not.
    ImpossiblePriority,
    /// A password crosses a connection that is not encrypted, or not verified.
    CleartextAccount,
    /// Mail goes in clear to the gateway, or clients of the class are offered no TLS: the caller knows of classes.
    TlsNone,
    /// Mail goes in clear where the gateway, or who sits between, does not offer TLS.
    TlsOptional,
    /// Mail that came over TLS may go on in clear.
    Downgrade,
    /// TLS with a gateway that nobody verified.
    TlsUnverified,
    /// Out of service, by its probes and its mail: the caller knows.
    UnreachableGateway,
    /// Clients of the class may log in without TLS: the caller knows, as of what follows.
    AuthCleartext,
    /// The class's gateway need not be verified, nor have TLS, to be shown its clients' passwords.
    BridgeUnprotected,
    /// The class's gateway may not be shown its clients' passwords, so that they cannot log in.
    BridgeNotOffered,
    /// The certificate has expired, or is about to.
    CertificateExpires,
    /// No route leads to the gateway.
    UnusedGateway,
    /// Recipients without a route of their own are refused.
    NoDefaultRoute,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Finding {
    pub concern: Concern,
    /// A gateway, a route as it is shown, a class or a certificate.
    pub subject: String,
    pub text: String,
}

/// Everything worth a look, the routes first, in the order of the lists.
pub fn lint(spec: &RoutingSpec) -> Vec<Finding> {
    let gateways: HashMap<&Name, &Gateway> = spec.gateways.iter().map(|gateway| (&gateway.name, gateway)).collect();
    let groups: HashMap<&Name, &Group> = spec.groups.iter().map(|group| (&group.name, group)).collect();
    let members = |target: &Target| -> Vec<&Gateway> {
        let names: Vec<&Name> = match target {
            Target::Gateway(name) => vec![name],
            Target::Group(name) => groups
                .get(name)
                .map(|group| group.members.iter().map(|member| &member.gateway).collect())
                .unwrap_or_default(),
        };
        names.into_iter().filter_map(|name| gateways.get(name).copied()).collect()
    };
    let mut findings = Vec::new();
    let mut by_domain: HashMap<&Pattern, Vec<&Route>> = HashMap::new();
    for route in &spec.routes {
        by_domain.entry(&route.domain).or_default().push(route);
    }
    for routes in by_domain.values_mut() {
        routes.sort_by_key(|route| (route.order, usize::MAX - route.conditions.count()));
    }
    for route in &spec.routes {
        let before = by_domain[&route.domain].iter().take_while(|other| other.key() != route.key());
        if let Some(other) = before.copied().find(|other| other.conditions.cover(&route.conditions)) {
            findings.push(Finding {
                concern: Concern::ShadowedRoute,
                subject: route.to_string(),
                text: format!("{other} is asked first and always decides"),
            });
        }
        findings.extend(route_findings(route, &members(&route.target)));
    }
    if !spec.routes.iter().any(|route| route.domain == Pattern::Default && route.conditions.count() == 0) {
        findings.push(Finding {
            concern: Concern::NoDefaultRoute,
            subject: "*".into(),
            text: "recipients without a route of their own are refused with 451 4.3.5".into(),
        });
    }
    let targets = spec.routes.iter().map(|route| &route.target);
    let targets = targets.chain(spec.managed.iter().filter_map(|domain| domain.target.as_ref()));
    let used: std::collections::HashSet<&Name> = targets.flat_map(members).map(|gateway| &gateway.name).collect();
    for gateway in &spec.gateways {
        findings.extend(gateway_findings(gateway, used.contains(&gateway.name)));
    }
    findings
}

fn route_findings(route: &Route, gateways: &[&Gateway]) -> Vec<Finding> {
    let finding = |concern, text: &str| Finding { concern, subject: route.to_string(), text: text.to_owned() };
    let enabled: Vec<_> = gateways.iter().filter(|gateway| gateway.status == Status::Enabled).collect();
    if enabled.is_empty() {
        return vec![finding(Concern::DeadRoute, "none of its gateways is enabled")];
    }
    let takes =
        |priority: i8| enabled.iter().any(|gateway| gateway.priorities.is_none_or(|range| range.contains(priority)));
    let wanted = route.conditions.priority.map_or(-9..=9, |range| range.min..=range.max);
    let refused: Vec<_> = wanted.filter(|priority| !takes(*priority)).map(|priority| priority.to_string()).collect();
    if refused.is_empty() {
        return Vec::new();
    }
    let text = format!("its gateways do not take mail of the priorities {}", refused.join(", "));
    vec![finding(Concern::ImpossiblePriority, &text)]
}

fn gateway_findings(gateway: &Gateway, used: bool) -> Vec<Finding> {
    let finding = |concern, text: &str| Finding { concern, subject: gateway.name.to_string(), text: text.to_owned() };
    let mut findings = Vec::new();
    if !used {
        findings.push(finding(Concern::UnusedGateway, "no route leads to it"));
    }
    if gateway.status == Status::Disabled {
        return findings;
    }
    let verified = gateway.verification != Verification::None {};
    if let Some(Account { mechanism, .. }) = &gateway.account
        && !verified
        && *mechanism != Mechanism::ScramSha256
    {
        findings.push(finding(Concern::CleartextAccount, "its password goes to whoever answers"));
    }
    if gateway.allow_downgrade && matches!(gateway.encryption, Encryption::None | Encryption::Starttls) {
        findings.push(finding(Concern::Downgrade, "mail that came over TLS may go on in clear"));
    }
    match gateway.encryption {
        Encryption::None => findings.push(finding(Concern::TlsNone, "mail goes in clear")),
        Encryption::Starttls => {
            findings.push(finding(Concern::TlsOptional, "mail goes in clear where STARTTLS is not offered, or hidden"));
        }
        Encryption::StarttlsRequired | Encryption::Implicit if !verified => {
            findings.push(finding(Concern::TlsUnverified, "any certificate is believed"));
        }
        Encryption::StarttlsRequired | Encryption::Implicit => {}
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAFE: &str = r#""encryption":"implicit","verification":{"mode":"ca"}"#;

    fn check(gateways: &str, routes: &str, expected: &[(Concern, &str, &str)]) {
        let json = format!(r#"{{"gateways":[{gateways}],"routes":[{routes}]}}"#);
        let spec: RoutingSpec = serde_json::from_str(&json).unwrap();
        let found = lint(&spec);
        let found: Vec<_> = found.iter().map(|f| (f.concern, f.subject.as_str(), f.text.as_str())).collect();
        assert_eq!(found, expected, "{json}");
    }

    fn safe(name: &str, rest: &str) -> String {
        format!(r#"{{"name":"{name}","address":"{name}.example",{SAFE}{rest}}}"#)
    }

    #[test]
    fn nothing_to_say() {
        check(&safe("a", ""), r#"{"domain":"*","gateway":"a"},{"domain":"x","class":"c","gateway":"a"}"#, &[]);
    }

    #[test]
    fn routes() {
        let default = r#"{"domain":"*","gateway":"a"}"#;
        let a = safe("a", "");
        check(
            &a,
            &format!(
                r#"{default},{{"domain":"x","order":5,"sender":".s","gateway":"a"}},{{"domain":"x","sender":"t.s","class":"c","gateway":"a"}},
                {{"domain":"x","sender":"t.s","order":4,"gateway":"a"}},{{"domain":".x","sender":"t.s","class":"c","gateway":"a"}}"#
            ),
            &[(
                Concern::ShadowedRoute,
                "x (sender t.s, class c)",
                "x (sender t.s) [4] is asked first and always decides",
            )],
        );
        check(
            &a,
            r#"{"domain":"x","gateway":"a"}"#,
            &[(Concern::NoDefaultRoute, "*", "recipients without a route of their own are refused with 451 4.3.5")],
        );
        check(
            &safe("a", r#","status":"draining""#),
            default,
            &[(Concern::DeadRoute, "*", "none of its gateways is enabled")],
        );
        check(
            &safe("a", r#","priorities":{"min":0,"max":9}"#),
            r#"{"domain":"*","gateway":"a"},{"domain":"x","priority":{"min":-2,"max":3},"gateway":"a"}"#,
            &[
                (
                    Concern::ImpossiblePriority,
                    "*",
                    "its gateways do not take mail of the priorities -9, -8, -7, -6, -5, -4, -3, -2, -1",
                ),
                (
                    Concern::ImpossiblePriority,
                    "x (priority -2 to 3)",
                    "its gateways do not take mail of the priorities -2, -1",
                ),
            ],
        );
        check(&format!("{a},{}", safe("b", "")), default, &[(Concern::UnusedGateway, "b", "no route leads to it")]);
    }

    #[test]
    fn gateways_in_clear() {
        let default = r#"{"domain":"*","gateway":"a"}"#;
        let gateway = |rest: &str| format!(r#"{{"name":"a","address":"a.example"{rest}}}"#);
        let none = (Concern::TlsNone, "a", "mail goes in clear");
        let optional = (Concern::TlsOptional, "a", "mail goes in clear where STARTTLS is not offered, or hidden");
        let account = (Concern::CleartextAccount, "a", "its password goes to whoever answers");
        check(&gateway(r#","encryption":"none""#), default, &[none]);
        let downgrade = (Concern::Downgrade, "a", "mail that came over TLS may go on in clear");
        check(&gateway(r#","encryption":"none","allow_downgrade":true"#), default, &[downgrade, none]);
        check(&gateway(""), default, &[optional]);
        check(
            &gateway(r#","account":{"username":"u","password":"p","allow_unprotected":true}"#),
            default,
            &[account, optional],
        );
        check(
            &gateway(r#","account":{"mechanism":"SCRAM-SHA-256","username":"u","password":"p"}"#),
            default,
            &[optional],
        );
        check(
            &gateway(r#","encryption":"implicit""#),
            default,
            &[(Concern::TlsUnverified, "a", "any certificate is believed")],
        );
    }
}
