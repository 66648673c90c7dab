//! `[api]` and `[access]`: where the API listens, and who may use it.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use toml::Value;

use super::{Error, Section};
use crate::{
    access::{AccessRole, PeersSettings, Principal},
    limits,
};

pub(super) const API_KEYS: &[&str] =
    &["sockets", "socket_mode", "socket_group", "listen", "authentication", "certificate", "key", "client_ca"];
pub(super) const ACCESS_KEYS: &[&str] = &["users", "groups", "certificates", "requests_per_second"];

/// Everything about who may use the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessSettings {
    pub socket_mode: u32,
    /// The daemon's own where the file names none.
    pub socket_group: Option<Principal>,
    pub listeners: Vec<SocketAddr>,
    pub tls: Option<TlsSettings>,
    pub peers: PeersSettings,
    /// Of one caller; `None` for any number.
    pub requests_per_second: Option<u32>,
}

impl Default for AccessSettings {
    fn default() -> Self {
        Self {
            socket_mode: 0o660,
            socket_group: None,
            listeners: Vec::new(),
            tls: None,
            peers: PeersSettings::default(),
            requests_per_second: Some(limits::REQUESTS_PER_SECOND),
        }
    }
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub clients: Clients,
}

/// Whether clients show certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Tokens only.
    Unasked,
    /// A certificate that this authority signed, or a token.
    May(PathBuf),
    Must(PathBuf),
}

pub(super) fn read(api: &mut Section<'_>, access: &mut Section<'_>) -> Result<AccessSettings, Error> {
    let default = AccessSettings::default();
    let listeners = listeners(api)?;
    let methods = methods(api)?;
    let peers = PeersSettings {
        users: principals(access, "users")?,
        groups: principals(access, "groups")?,
        certificates: roles(access, "certificates")?
            .into_iter()
            .map(|(name, role)| (name.to_ascii_lowercase(), role))
            .collect(),
    };
    let requests = access.integer("requests_per_second", limits::REQUESTS_PER_SECOND, 0, 1_000_000)?;
    Ok(AccessSettings {
        socket_mode: mode(api)?.unwrap_or(default.socket_mode),
        socket_group: api.string("socket_group", "a group's name in double quotes")?.map(principal),
        tls: tls(api, &listeners, methods.as_deref())?,
        listeners,
        peers,
        requests_per_second: (requests != 0).then_some(requests),
    })
}

fn listeners(api: &mut Section<'_>) -> Result<Vec<SocketAddr>, Error> {
    let wanted = "ADDRESS:PORT such as \"10.20.0.1:8443\" or \"[fd00:20::1]:8443\"";
    let values = match api.table.remove("listen") {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(one) => vec![one],
    };
    let mut listeners = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let key = format!("listen[{index}]");
        let Value::String(text) = value else { return Err(api.wrong_type(&key, value, wanted)) };
        let address: SocketAddr =
            text.parse().map_err(|_| api.error(&key, format!("{text:?} is no address; give {wanted}")))?;
        if address.port() == 0 {
            return Err(api.error(&key, format!("{text} has no port; give one from 1 to 65535")));
        }
        if listeners.contains(&address) {
            return Err(api.error(&key, format!("{text} is listed twice; remove one")));
        }
        listeners.push(address);
    }
    Ok(listeners)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Token,
    Certificate,
}

/// `None` where the file says nothing.
fn methods(api: &mut Section<'_>) -> Result<Option<Vec<Method>>, Error> {
    let Some(values) = api.list("authentication", "words")? else { return Ok(None) };
    let method = |(index, value): (usize, &Value)| {
        let key = format!("authentication[{index}]");
        match value.as_str() {
            Some("token") => Ok(Method::Token),
            Some("certificate") => Ok(Method::Certificate),
            Some(word) => Err(api.error(&key, format!("{word:?} is none of token, certificate"))),
            None => Err(api.wrong_type(&key, value, "\"token\" or \"certificate\"")),
        }
    };
    values.iter().enumerate().map(method).collect::<Result<_, _>>().map(Some)
}

/// Nothing listens on TCP without a way to tell who asks, and nothing but loopback without TLS.
fn tls(
    api: &mut Section<'_>,
    listeners: &[SocketAddr],
    methods: Option<&[Method]>,
) -> Result<Option<TlsSettings>, Error> {
    let (certificate, key) = (api.optional_path("certificate")?, api.optional_path("key")?);
    let authority = api.optional_path("client_ca")?;
    let methods = methods.unwrap_or_default();
    if let Some(listener) = listeners.first().filter(|_| methods.is_empty()) {
        let text = format!(
            "is missing: anybody who reaches {listener} could change anything; give [\"token\"], or [\"certificate\"] with api.client_ca, or both"
        );
        return Err(api.error("authentication", text));
    }
    let clients = match (authority, methods.contains(&Method::Certificate), methods.contains(&Method::Token)) {
        (Some(_), false, _) => {
            let text = "is given, but api.authentication has no \"certificate\"; add it, or remove this";
            return Err(api.error("client_ca", text));
        }
        (None, true, _) => {
            let text = "is missing: api.authentication has \"certificate\"; give the file of the authority that signs clients' certificates";
            return Err(api.error("client_ca", text));
        }
        (None, false, _) => Clients::Unasked,
        (Some(authority), true, true) => Clients::May(authority),
        (Some(authority), true, false) => Clients::Must(authority),
    };
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(TlsSettings { certificate, key, clients })),
        (Some(_), None) => Err(api.error("key", "is missing; give the file of the key of api.certificate")),
        (None, Some(_)) => Err(api.error("certificate", "is missing; give the file of the certificate of api.key")),
        (None, None) => {
            let why = match listeners.iter().find(|listener| !listener.ip().is_loopback()) {
                Some(listener) => {
                    format!("{listener} is no loopback address, and tokens would go over the network in clear")
                }
                None if clients != Clients::Unasked => "clients' certificates are a part of TLS".to_owned(),
                None => return Ok(None),
            };
            Err(api.error("certificate", format!("is missing: {why}; give api.certificate and api.key")))
        }
    }
}

fn mode(api: &mut Section<'_>) -> Result<Option<u32>, Error> {
    let wanted = "the mode in octal digits, such as \"0660\", with 6 for the owner at least";
    let Some(text) = api.string("socket_mode", wanted)? else { return Ok(None) };
    let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o777 && mode & 0o600 == 0o600);
    mode.map(Some).ok_or_else(|| api.error("socket_mode", format!("{text:?} is not a mode; give {wanted}")))
}

fn principal(text: String) -> Principal {
    text.parse().map_or(Principal::Name(text), Principal::Id)
}

fn principals(access: &mut Section<'_>, key: &str) -> Result<BTreeMap<Principal, AccessRole>, Error> {
    Ok(roles(access, key)?.into_iter().map(|(name, role)| (principal(name), role)).collect())
}

/// A table of names and roles.
fn roles(access: &mut Section<'_>, key: &str) -> Result<Vec<(String, AccessRole)>, Error> {
    let table = match access.table.remove(key) {
        None => return Ok(Vec::new()),
        Some(Value::Table(table)) => table,
        Some(other) => {
            return Err(access.wrong_type(key, &other, &format!("a table of names and roles: [{}]", access.key(key))));
        }
    };
    let role = |(name, value): (String, Value)| {
        let key = format!("{key}.{name}");
        let Value::String(word) = &value else {
            return Err(access.wrong_type(&key, &value, "a role in double quotes"));
        };
        let role = word.parse::<AccessRole>().map_err(|unknown| access.error(&key, unknown.to_string()))?;
        Ok((name, role))
    };
    table.into_iter().map(role).collect()
}
