//! The text of Postfix's transport table (`transport(5)`): `domain smtp:[host]:port`.

use std::{collections::HashMap, fmt::Write as _};

use crate::{
    gateway::{Gateway, Host, Name},
    route::{
        Conditions, Route, Target,
        files::{Exported, ImportFault, Reader, without_mark},
        model::usual_order,
    },
};

/// Reads a transport table. A next hop becomes the gateway with its host and port; brackets, which keep Postfix from asking
/// for MX records, make no difference, for a gateway is a host.
///
/// All or nothing, as [`import_csv`](crate::route::import_csv). Not understood, and so refused: keys with a local part,
/// transports other than `smtp` and `relay`, entries without a next hop.
pub fn import_transport(
    text: &str,
    gateways: &[Gateway],
    refuse: impl Fn(&Route) -> Option<String>,
) -> Result<Vec<Route>, Vec<ImportFault>> {
    let mut reader = Reader::new(refuse);
    let mut by_address: HashMap<(&Host, u16), Vec<&Name>> = HashMap::new();
    for gateway in gateways {
        by_address.entry((&gateway.address, gateway.port)).or_default().push(&gateway.name);
    }
    for (line, entry) in entries(without_mark(text)) {
        match route(&entry, &by_address) {
            Ok(route) => reader.route(line, route),
            Err(fault) => reader.fault(line, fault),
        }
    }
    reader.finish()
}

/// Logical lines with the number of their first: a line that begins with white space continues the one before it, comments
/// and empty lines are as if they were not there.
fn entries(text: &str) -> Vec<(usize, String)> {
    let mut entries: Vec<(usize, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        match entries.last_mut().filter(|_| line.starts_with([' ', '\t'])) {
            Some((_, entry)) => {
                entry.push(' ');
                entry.push_str(line.trim());
            }
            None => entries.push((index + 1, line.trim().to_owned())),
        }
    }
    entries
}

fn route(entry: &str, by_address: &HashMap<(&Host, u16), Vec<&Name>>) -> Result<Route, String> {
    let (key, value) = entry.split_once([' ', '\t']).ok_or("must be a domain and where it goes")?;
    if key.contains('@') {
        return Err(format!("{key:?} is for one mail address, and routes are for domains"));
    }
    let domain = key.parse().map_err(|error: crate::route::PatternInvalid| error.to_string())?;
    let (transport, next) = value.trim().split_once(':').ok_or("must be a transport, a colon and a next hop")?;
    if !matches!(transport, "smtp" | "relay") {
        return Err(format!("the transport {transport:?} is neither smtp nor relay"));
    }
    let (host, port) = next_hop(next).ok_or_else(|| format!("{next:?} is not a next hop such as [host]:port"))?;
    match by_address.get(&(&host, port)).map(Vec::as_slice) {
        Some([name]) => Ok(Route::new(domain, Target::Gateway((*name).clone()))),
        Some([first, second, ..]) => {
            Err(format!("{host}:{port} is the address of several gateways, {first} and {second}"))
        }
        Some([]) | None => Err(format!("no gateway has the address {host} and port {port}")),
    }
}

/// `[host]`, `[host]:port`, `host`, `host:port`; `[ipv6:address]` as Postfix writes it.
fn next_hop(text: &str) -> Option<(Host, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let host = host.strip_prefix("ipv6:").or_else(|| host.strip_prefix("IPv6:")).unwrap_or(host);
    let port = match port {
        None | Some("smtp") => 25,
        Some("submission") => 587,
        Some(port) => port.parse().ok().filter(|port| *port > 0)?,
    };
    Some((host.parse().ok()?, port))
}

/// What a transport table can say: routes without conditions that lead to a gateway. The others are listed as omitted.
pub fn export_transport(routes: &[Route], gateways: &[Gateway]) -> Exported {
    let by_name: HashMap<&Name, &Gateway> = gateways.iter().map(|gateway| (&gateway.name, gateway)).collect();
    let mut exported = Exported { text: String::new(), omitted: Vec::new() };
    for route in routes {
        let gateway = match &route.target {
            Target::Gateway(name) => by_name.get(name),
            Target::Group(_) => None,
        };
        let plain = route.conditions == Conditions::default() && route.order == usual_order();
        let Some(Gateway { address, port, .. }) = gateway.filter(|_| plain) else {
            exported.omitted.push(route.clone());
            continue;
        };
        let host = match address {
            Host::Address(std::net::IpAddr::V6(ip)) => format!("ipv6:{ip}"),
            other => other.to_string(),
        };
        writeln!(exported.text, "{} smtp:[{host}]:{port}", route.domain).expect("a string takes every write");
    }
    exported
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateways() -> Vec<Gateway> {
        let gateway =
            |(name, host, port): (&str, &str, u16)| Gateway::new(name.parse().unwrap(), host.parse().unwrap(), port);
        [
            ("a", "mx.example", 25),
            ("b", "mx.example", 587),
            ("c", "192.0.2.1", 25),
            ("d", "2001:db8::1", 25),
            ("e", "twin.example", 25),
            ("f", "twin.example", 25),
        ]
        .map(gateway)
        .to_vec()
    }

    fn check(text: &str, expected: Result<&[&str], &[&str]>) {
        let own = |route: &Route| (route.domain.to_string() == "own.example").then(|| "is a managed domain".to_owned());
        let got = import_transport(text, &gateways(), own);
        let got = got.map(|routes| routes.iter().map(|route| format!("{route} {}", route.target)).collect::<Vec<_>>());
        let got = got.map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>());
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(got, expected.map(owned).map_err(owned), "{text:?}");
    }

    #[test]
    fn tables() {
        check(
            "# comment\nx.example\tsmtp:[mx.example]\r\n\n.x.example relay:[mx.example]:submission\n*   smtp:192.0.2.1\n\
             B\u{fc}cher.example\n  # between\n  smtp:[ipv6:2001:db8::1]:25\ny smtp:MX.example:587\n",
            Ok(&[
                "x.example gateway a",
                ".x.example gateway b",
                "* gateway c",
                "xn--bcher-kva.example gateway d",
                "y gateway b",
            ]),
        );
    }

    #[test]
    fn faults_have_their_lines() {
        check(
            "x\n\
             user@x smtp:[mx.example]\n\
             x_y smtp:[mx.example]\n\
             x error:mailbox\n\
             x local:\n\
             x smtp:\n\
             x smtp:[mx.example]:0\n\
             x smtp:[mx.example]:26\n\
             # comment\n\
             x\n  smtp:[other.example]\n\
             x smtp:[twin.example]\n\
             own.example smtp:[mx.example]\n\
             z smtp:[mx.example]\n\
             z smtp:[mx.example]:587\n",
            Err(&[
                "line 1: must be a domain and where it goes",
                "line 2: \"user@x\" is for one mail address, and routes are for domains",
                "line 3: \"x_y\" is neither a domain, nor a domain after a dot, nor *",
                "line 4: the transport \"error\" is neither smtp nor relay",
                "line 5: the transport \"local\" is neither smtp nor relay",
                "line 6: \"\" is not a next hop such as [host]:port",
                "line 7: \"[mx.example]:0\" is not a next hop such as [host]:port",
                "line 8: no gateway has the address mx.example and port 26",
                "line 10: no gateway has the address other.example and port 25",
                "line 12: twin.example:25 is the address of several gateways, e and f",
                "line 13: is a managed domain",
                "line 15: z is in line 14 already",
            ]),
        );
    }

    #[test]
    fn what_it_cannot_say_is_omitted() {
        let routes: Vec<Route> = [
            r#"{"domain":"x","gateway":"d"}"#,
            r#"{"domain":"*","gateway":"b"}"#,
            r#"{"domain":"x","gateway":"a","class":"guests"}"#,
            r#"{"domain":"y","group":"g"}"#,
        ]
        .map(|json| serde_json::from_str(json).unwrap())
        .to_vec();
        let Exported { text, omitted } = export_transport(&routes, &gateways());
        assert_eq!(text, "x smtp:[ipv6:2001:db8::1]:25\n* smtp:[mx.example]:587\n");
        assert_eq!(omitted, routes[2..]);
    }
}
