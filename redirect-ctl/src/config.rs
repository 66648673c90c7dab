//! The bootstrap file: TOML in, validated [`Settings`] out, or one line that names the file, the key and the remedy.
//!
//! The file holds what must be known before the API can be: interfaces, sockets, the store's path, table sizes, the relay's listeners.
//! Everything else is set over REST. Keys are taken from the table one by one, so that every message knows its key and what is left over
//! is unknown.

mod access;

use std::{
    fmt, fs,
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    path::{Path, PathBuf},
    time::Duration,
};

use redirect_common::maps;
use toml::{Table, Value};

use crate::{
    dataplane::{Hook, OnExit, Role},
    desired::{self, Delivery, Interface, InterfaceName, Invalid, Origin, Source},
    host::Numbers,
    limits,
    store::FileResources,
    subscribers::{Priorities, Priority},
};

pub use self::access::{AccessSettings, Clients, TlsSettings};

pub const DEFAULT_FILE: &str = "/etc/redirect/redirectd.toml";
pub const DEFAULT_SOCKET: &str = "/run/redirect/api.sock";
pub const DEFAULT_STORE: &str = "/var/lib/redirect/redirect.db";
pub const DEFAULT_PINS: &str = "/sys/fs/bpf/redirectd";

/// Everything that the daemon knows before it has a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Named in refusals to change what it owns.
    pub file: PathBuf,
    pub sockets: Vec<PathBuf>,
    pub access: AccessSettings,
    pub store: PathBuf,
    pub dataplane: DataplaneSettings,
    /// Of the sources of subscribers.
    pub priorities: Priorities,
    pub relay: RelaySettings,
    pub health: HealthSettings,
    pub routing: Numbers,
    pub interfaces: Vec<Interface>,
    pub log: LogFormat,
}

/// Sizes of the kernel's tables, and what becomes of them without a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataplaneSettings {
    /// Established flows of each family.
    pub flows_max: u32,
    /// Hosts of each family, and as many prefixes of each family again.
    pub subscribers_max: u32,
    /// Events that each CPU reports within a second.
    pub events_per_second: u32,
    /// A folder of a BPF file system, where programs, tables and attachments stay while no daemon runs.
    pub pins: PathBuf,
    pub on_exit: OnExit,
    /// Without a daemon for longer, classes decide by `on_daemon_down`; 0: never.
    pub daemon_timeout_s: u32,
}

/// The embedded relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelaySettings {
    pub hostname: String,
    pub ipv4: Option<SocketAddrV4>,
    pub ipv6: Option<SocketAddrV6>,
    pub delivery: Delivery,
    pub message_size_max_bytes: u64,
    pub sessions_max: u32,
    pub connect_timeout: Duration,
    /// Between two probes of a gateway; `None` for no probes.
    pub gateway_probe_interval: Option<Duration>,
}

impl RelaySettings {
    pub fn listeners(&self) -> impl Iterator<Item = SocketAddr> {
        self.ipv4.map(SocketAddr::V4).into_iter().chain(self.ipv6.map(SocketAddr::V6))
    }
}

/// How relays are asked whether they live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthSettings {
    /// From one probe to the next; `None` where nobody is asked.
    pub interval: Option<Duration>,
    /// For a connection and the greeting together.
    pub timeout: Duration,
    /// Failed probes in a row after which a relay counts as down.
    pub down_after: u32,
    /// Good probes in a row after which it counts as up again.
    pub up_after: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Settings {
    /// What the file contributes to the desired state.
    pub fn resources(&self) -> FileResources {
        FileResources {
            file: self.file.clone(),
            relay_ipv4: self.relay.ipv4,
            relay_ipv6: self.relay.ipv6,
            relay_delivery: self.relay.delivery,
            interfaces: self.interfaces.clone(),
            subscribers_max: self.dataplane.subscribers_max.into(),
            priorities: self.priorities,
        }
    }

    /// Beside the store: hashes of the tokens.
    pub fn tokens(&self) -> PathBuf {
        self.store.with_added_extension("tokens")
    }

    /// Beside the store: who changed what.
    pub fn audit(&self) -> PathBuf {
        self.store.with_added_extension("audit")
    }

    /// Beside the store: what was found of the sysctls that are changed.
    pub fn sysctl_notes(&self) -> PathBuf {
        self.store.with_added_extension("sysctls")
    }
}

/// One line: file, key, what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    file: PathBuf,
    key: String,
    problem: String,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line is the contract: whatever a value or a library brought along must not break it.
        let text = format!("{}: {}: {}", self.file.display(), self.key, self.problem);
        let words: Vec<_> = text.split(|c: char| c.is_control()).filter(|word| !word.is_empty()).collect();
        f.write_str(&words.join(" "))
    }
}

/// Reads and checks the file at `path`. `host_name` is the relay's name where the file gives none.
pub fn load(path: &Path, host_name: &str) -> Result<Settings, Error> {
    let text = fs::read_to_string(path).map_err(|error| Error {
        file: path.to_owned(),
        key: "(file)".to_owned(),
        problem: format!("cannot be read: {error}; create it or name another one with --config"),
    })?;
    parse(path, &text, host_name)
}

/// The pure part of [`load`].
pub fn parse(path: &Path, text: &str, host_name: &str) -> Result<Settings, Error> {
    let reader = Reader { file: path };
    let table: Table = text.parse().map_err(|error| reader.syntax_error(text, &error))?;
    let mut root = reader.section(
        "",
        table,
        &["api", "access", "store", "dataplane", "subscribers", "relay", "health", "routing", "interface", "log"],
    )?;

    let mut api = root.section("api", access::API_KEYS)?;
    let sockets = api.paths("sockets", DEFAULT_SOCKET)?;
    let access = access::read(&mut api, &mut root.section("access", access::ACCESS_KEYS)?)?;
    let mut store = root.section("store", &["path"])?;
    let store = store.path("path", DEFAULT_STORE)?;

    let mut dataplane = root.section("dataplane", DATAPLANE_KEYS)?;
    let dataplane = DataplaneSettings {
        flows_max: dataplane.integer("flows_max", maps::FLOWS_MAX, 1_024, 4_194_304)?,
        subscribers_max: dataplane.integer("subscribers_max", maps::SUBSCRIBERS_MAX, 16, 16_777_216)?,
        events_per_second: dataplane.integer("events_per_second", limits::EVENTS_PER_SECOND, 0, 100_000)?,
        pins: dataplane.path("pins", DEFAULT_PINS)?,
        on_exit: dataplane.word("on_exit", OnExit::Keep.name(), |word| Ok(word.parse::<OnExit>()?))?,
        daemon_timeout_s: dataplane.integer("daemon_timeout_s", limits::DAEMON_TIMEOUT_S, 0, 86_400)?,
    };

    let mut subscribers = root.section("subscribers", &["priority"])?;
    let mut priority = subscribers.section("priority", Origin::WORDS)?;
    let most = Priority::MAX;
    let mut of_source = |source: Origin| {
        let default = Priorities::default().of(source);
        let found = priority.integer(source.name(), default.into(), 0, most.into())?;
        Ok(u16::try_from(found).unwrap_or(most))
    };
    let priorities = Priorities {
        operator: of_source(Origin::Operator)?,
        portal: of_source(Origin::Portal)?,
        radius: of_source(Origin::Radius)?,
        dhcp: of_source(Origin::Dhcp)?,
    };

    let mut relay = root.section("relay", RELAY_KEYS)?;
    let delivery = relay.word("delivery", Delivery::Auto.name(), |word| Ok(word.parse::<Delivery>()?))?;
    let (ipv4, ipv6) = relay.listeners("listen", delivery)?;
    let relay = RelaySettings {
        hostname: relay.host_name("hostname", host_name)?,
        ipv4,
        ipv6,
        delivery,
        // RFC 5321 section 4.5.3.1.7: at least 64 KiB must be taken.
        message_size_max_bytes: relay.integer("message_size_max", 36_700_160, 65_536, 1 << 30)?.into(),
        sessions_max: relay.integer("sessions_max", 10_000, 1, 1_000_000)?,
        connect_timeout: Duration::from_secs(relay.integer("connect_timeout_s", 30, 1, 300)?.into()),
        gateway_probe_interval: interval(relay.integer("gateway_probe_interval_s", 30, 0, 3_600)?),
    };

    let mut health = root.section("health", &["interval_s", "timeout_s", "down_after", "up_after"])?;
    let health = HealthSettings {
        interval: interval(health.integer("interval_s", limits::HEALTH_INTERVAL_S, 0, 300)?),
        timeout: Duration::from_secs(health.integer("timeout_s", limits::HEALTH_TIMEOUT_S, 1, 60)?.into()),
        down_after: health.integer("down_after", limits::HEALTH_DOWN_AFTER, 1, 100)?,
        up_after: health.integer("up_after", limits::HEALTH_UP_AFTER, 1, 100)?,
    };

    let routing = root.section("routing", ROUTING_KEYS)?.routing()?;
    let interfaces = root.interfaces("interface")?;
    let mut log = root.section("log", &["format"])?;
    let log = log.word("format", "text", |word| match word {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(Invalid(format!("{word:?} is none of text, json"))),
    })?;
    Ok(Settings {
        file: path.to_owned(),
        sockets,
        access,
        store,
        dataplane,
        priorities,
        relay,
        health,
        routing,
        interfaces,
        log,
    })
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    file: &'a Path,
}

impl<'a> Reader<'a> {
    fn error(self, key: impl Into<String>, problem: impl Into<String>) -> Error {
        Error { file: self.file.to_owned(), key: key.into(), problem: problem.into() }
    }

    /// TOML that is none: the line stands for the key where the key cannot be told.
    fn syntax_error(self, text: &str, error: &toml::de::Error) -> Error {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let line_number = text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
        let line = text.lines().nth(line_number - 1).unwrap_or_default().trim();
        let key = line.split(['=', '#']).next().unwrap_or_default().trim().trim_matches(['[', ']']);
        let key = if key.is_empty() { format!("line {line_number}") } else { format!("line {line_number}, {key}") };
        self.error(
            key,
            format!("not TOML: {}; correct the line (strings stand in double quotes)", error.message().trim()),
        )
    }

    fn section(self, path: &str, table: Table, known: &'static [&'static str]) -> Result<Section<'a>, Error> {
        let section = Section { reader: self, path: path.to_owned(), table };
        if let Some(unknown) = section.table.keys().find(|key| !known.contains(&key.as_str())) {
            let remedy = match nearest(unknown, known) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("remove it; known here: {}", known.join(", ")),
            };
            return Err(self.error(section.key(unknown), format!("unknown key; {remedy}")));
        }
        Ok(section)
    }
}

/// A table of the file and where it stands.
struct Section<'a> {
    reader: Reader<'a>,
    path: String,
    table: Table,
}

impl<'a> Section<'a> {
    fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn error(&self, key: &str, problem: impl Into<String>) -> Error {
        self.reader.error(self.key(key), problem)
    }

    fn wrong_type(&self, key: &str, found: &Value, wanted: &str) -> Error {
        let article = if found.type_str().starts_with(['a', 'i']) { "an" } else { "a" };
        self.error(key, format!("is {article} {}; give {wanted}", found.type_str()))
    }

    fn section(&mut self, key: &str, known: &'static [&'static str]) -> Result<Section<'a>, Error> {
        match self.table.remove(key) {
            None => self.reader.section(&self.key(key), Table::new(), known),
            Some(Value::Table(table)) => self.reader.section(&self.key(key), table, known),
            Some(other) => Err(self.wrong_type(key, &other, &format!("a table: [{}]", self.key(key)))),
        }
    }

    fn string(&mut self, key: &str, wanted: &str) -> Result<Option<String>, Error> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(key, &other, wanted)),
        }
    }

    fn word<T>(&mut self, key: &str, default: &str, read: impl FnOnce(&str) -> Result<T, Invalid>) -> Result<T, Error> {
        let text = self.string(key, "a word in double quotes")?.unwrap_or_else(|| default.to_owned());
        read(&text).map_err(|invalid| self.error(key, invalid.0))
    }

    fn integer(&mut self, key: &str, default: u32, least: u32, most: u32) -> Result<u32, Error> {
        let range = format!("a whole number from {least} to {most}");
        match self.table.remove(key) {
            None => Ok(default),
            Some(Value::Integer(number)) => u32::try_from(number)
                .ok()
                .filter(|number| (least..=most).contains(number))
                .ok_or_else(|| self.error(key, format!("{number} is out of range; give {range}"))),
            Some(other) => Err(self.wrong_type(key, &other, &range)),
        }
    }

    fn boolean(&mut self, key: &str, default: bool) -> Result<bool, Error> {
        match self.table.remove(key) {
            None => Ok(default),
            Some(Value::Boolean(value)) => Ok(value),
            Some(other) => Err(self.wrong_type(key, &other, "true or false")),
        }
    }

    fn path(&mut self, key: &str, default: &str) -> Result<PathBuf, Error> {
        let text = self.string(key, "an absolute path in double quotes")?.unwrap_or_else(|| default.to_owned());
        self.absolute(key, &text)
    }

    fn optional_path(&mut self, key: &str) -> Result<Option<PathBuf>, Error> {
        let text = self.string(key, "an absolute path in double quotes")?;
        text.map(|text| self.absolute(key, &text)).transpose()
    }

    fn absolute(&self, key: &str, text: &str) -> Result<PathBuf, Error> {
        let path = PathBuf::from(text);
        if !path.is_absolute() || text.ends_with('/') {
            return Err(self.error(
                key,
                format!("{text:?} is not the absolute path of a file; begin with / and end with its name"),
            ));
        }
        Ok(path)
    }

    fn list(&mut self, key: &str, of: &str) -> Result<Option<Vec<Value>>, Error> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(self.wrong_type(key, &other, &format!("a list of {of} in [ ]"))),
        }
    }

    fn paths(&mut self, key: &str, default: &str) -> Result<Vec<PathBuf>, Error> {
        let Some(values) = self.list(key, "paths")? else { return Ok(vec![PathBuf::from(default)]) };
        let mut paths = Vec::new();
        for (index, value) in values.iter().enumerate() {
            let key = format!("{key}[{index}]");
            let Value::String(text) = value else {
                return Err(self.wrong_type(&key, value, "a path in double quotes"));
            };
            let path = self.absolute(&key, text)?;
            // sun_path has 108 bytes, the closing NUL included.
            if text.len() > 107 {
                return Err(self.error(
                    &key,
                    format!("has {} bytes; a Unix socket's path has at most 107, shorten it", text.len()),
                ));
            }
            if paths.contains(&path) {
                return Err(self.error(&key, format!("{text} is listed twice; remove one")));
            }
            paths.push(path);
        }
        if paths.is_empty() {
            return Err(self.error(
                key,
                format!("is empty, so nobody could reach the daemon; give a path such as {DEFAULT_SOCKET:?}"),
            ));
        }
        Ok(paths)
    }

    fn listeners(
        &mut self,
        key: &str,
        delivery: Delivery,
    ) -> Result<(Option<SocketAddrV4>, Option<SocketAddrV6>), Error> {
        let (mut ipv4, mut ipv6) = (None, None);
        for (index, value) in self.list(key, "addresses")?.unwrap_or_default().iter().enumerate() {
            let key = format!("{key}[{index}]");
            let wanted = "ADDRESS:PORT such as \"10.20.0.1:2525\" or \"[fd00:20::1]:2525\"";
            let Value::String(text) = value else { return Err(self.wrong_type(&key, value, wanted)) };
            let address: SocketAddr =
                text.parse().map_err(|_| self.error(&key, format!("{text:?} is no address; give {wanted}")))?;
            desired::endpoint(address, delivery).map_err(|invalid| self.error(&key, invalid.0))?;
            let (family, taken) = match address {
                SocketAddr::V4(v4) => ("IPv4", ipv4.replace(v4).is_some()),
                SocketAddr::V6(v6) => ("IPv6", ipv6.replace(v6).is_some()),
            };
            if taken {
                return Err(self.error(&key, format!("{text} is a second {family} listener; keep one of each family")));
            }
        }
        Ok((ipv4, ipv6))
    }

    fn host_name(&mut self, key: &str, default: &str) -> Result<String, Error> {
        match self.string(key, "a host name in double quotes")? {
            None => Ok(desired::host_name(default).unwrap_or_else(|_| "localhost".to_owned())),
            Some(text) => desired::host_name(&text).map_err(|_| {
                self.error(key, format!("{text:?} is not a host name; give one such as \"relay.example.net\""))
            }),
        }
    }

    fn routing(&mut self) -> Result<Numbers, Error> {
        let default = Numbers::default();
        let numbers = Numbers {
            mark: self.integer("mark", default.mark, 1, u32::MAX)?,
            mark_mask: self.integer("mark_mask", default.mark_mask, 1, u32::MAX)?,
            // Below the tables of the kernel's own (default, main, local), and above them.
            steer_table: self.integer("steer_table", default.steer_table, 1, u32::MAX)?,
            source_table: self.integer("source_table", default.source_table, 1, u32::MAX)?,
            // 0 is the rule about this host's addresses, 32766 the one about the main table.
            priority: self.integer("priority", default.priority, 1, 32_765)?,
            // The lower ones are taken (iproute2's rt_protos).
            protocol: self.integer("protocol", default.protocol.into(), 20, 255)?.try_into().unwrap_or(u8::MAX),
        };
        if numbers.mark & !numbers.mark_mask != 0 {
            let problem = format!("{:#x} has bits outside routing.mark_mask ({:#x})", numbers.mark, numbers.mark_mask);
            return Err(self.error("mark", problem));
        }
        for (key, table) in [("steer_table", numbers.steer_table), ("source_table", numbers.source_table)] {
            if (253..=255).contains(&table) {
                return Err(self.error(key, format!("{table} is a table of the kernel's own; give another number")));
            }
        }
        if numbers.steer_table == numbers.source_table {
            return Err(self.error("source_table", "is routing.steer_table as well; give another number"));
        }
        Ok(numbers)
    }

    fn interfaces(&mut self, key: &str) -> Result<Vec<Interface>, Error> {
        let tables = match self.table.remove(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(tables)) => tables,
            Some(other) => return Err(self.wrong_type(key, &other, &format!("one [[{key}]] for each"))),
        };
        let mut interfaces: Vec<Interface> = Vec::new();
        for (index, table) in tables.into_iter().enumerate() {
            let path = format!("{key}[{index}]");
            let Value::Table(table) = table else {
                return Err(self.wrong_type(&path, &table, &format!("one [[{key}]] for each")));
            };
            let mut section = self.reader.section(&path, table, &["name", "role", "hook", "foreign_sources"])?;
            let Some(name) = section.string("name", "the interface's name in double quotes")? else {
                return Err(section.error("name", "is missing; give the interface's name as `ip link` shows it"));
            };
            let name: InterfaceName = name.parse().map_err(|invalid: Invalid| section.error("name", invalid.0))?;
            if interfaces.iter().any(|other| other.name == name) {
                return Err(section.error("name", format!("{name} is listed twice; remove one")));
            }
            let role = section.word("role", Role::Subscriber.name(), |word| Ok(word.parse::<Role>()?))?;
            let hook = section.word("hook", Hook::Auto.name(), |word| Ok(word.parse::<Hook>()?))?;
            let foreign_sources = section.boolean("foreign_sources", false)?;
            interfaces.push(Interface { name, role, hook, foreign_sources, source: Source::File });
        }
        Ok(interfaces)
    }
}

/// Between two probes; 0 stands for none.
fn interval(seconds: u32) -> Option<Duration> {
    (seconds != 0).then(|| Duration::from_secs(seconds.into()))
}

const DATAPLANE_KEYS: &[&str] =
    &["flows_max", "subscribers_max", "events_per_second", "pins", "on_exit", "daemon_timeout_s"];
const RELAY_KEYS: &[&str] = &[
    "hostname",
    "listen",
    "delivery",
    "message_size_max",
    "sessions_max",
    "connect_timeout_s",
    "gateway_probe_interval_s",
];
const ROUTING_KEYS: &[&str] = &["mark", "mark_mask", "steer_table", "source_table", "priority", "protocol"];

/// The known word that a typing mistake was probably meant to be.
fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let candidate = known.iter().copied().min_by_key(|candidate| edits(word, candidate))?;
    // More than a third of the letters wrong is another word, not a slip; a missing unit ("_s", "_max") is a slip.
    let slip = edits(word, candidate) <= candidate.len().div_ceil(3)
        || (word.len() > 3 && (candidate.starts_with(word) || word.starts_with(candidate)));
    slip.then_some(candidate)
}

/// Insertions, deletions and replacements that lead from one word to the other (Levenshtein).
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, left) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, right) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"
        [api]
        sockets = ["/run/redirect/api.sock"]
        [store]
        path = "/var/lib/redirect/redirect.db"
        [dataplane]
        flows_max = 65536
        subscribers_max = 65536
        pins = "/sys/fs/bpf/redirectd"
        on_exit = "keep"
        daemon_timeout_s = 30
        [subscribers.priority]
        operator = 400
        portal = 300
        radius = 200
        dhcp = 100
        [relay]
        hostname = "relay.example.net"
        listen = ["10.20.0.1:2525", "[fd00:20::1]:2525"]
        delivery = "auto"
        message_size_max = 36700160
        sessions_max = 10000
        connect_timeout_s = 30
        gateway_probe_interval_s = 30
        [health]
        interval_s = 5
        timeout_s = 3
        down_after = 3
        up_after = 2
        [routing]
        mark = 0x25000000
        mark_mask = 0xff000000
        steer_table = 2525
        source_table = 2526
        priority = 25
        protocol = 125
        [[interface]]
        name = "lan0"
        role = "subscriber"
        hook = "auto"
        foreign_sources = false
        [log]
        format = "text"
    "#;

    fn read(text: &str) -> Result<Settings, Error> {
        parse(Path::new("/etc/r.toml"), text, "router7")
    }

    #[test]
    fn the_defaults_are_the_documented_values() {
        let full = read(FULL).unwrap();
        let empty = read("").unwrap();
        assert_eq!(empty.relay.hostname, "router7");
        assert_eq!(full.interfaces.len(), 1);
        assert_eq!(full.relay.listeners().count(), 2);
        let same = Settings {
            interfaces: vec![],
            relay: RelaySettings { hostname: "router7".to_owned(), ipv4: None, ipv6: None, ..full.relay.clone() },
            ..full
        };
        assert_eq!(empty, same);
    }

    #[test]
    fn a_host_name_that_is_none_does_not_keep_the_daemon_from_starting() {
        assert_eq!(parse(Path::new("f"), "", "my_host!").unwrap().relay.hostname, "localhost");
    }

    /// File, what the line says after "/etc/r.toml: ".
    const BAD: &[(&str, &str)] = &[
        (
            "flows_max = 1",
            "flows_max: unknown key; remove it; known here: api, access, store, dataplane, subscribers, relay, health, routing, interface, log",
        ),
        ("[dataplan]\n", "dataplan: unknown key; did you mean dataplane?"),
        ("[dataplane]\nflow_max = 1", "dataplane.flow_max: unknown key; did you mean flows_max?"),
        ("[relay]\nconnect_timeout = 3", "relay.connect_timeout: unknown key; did you mean connect_timeout_s?"),
        (
            "[dataplane]\nflows_max = 10",
            "dataplane.flows_max: 10 is out of range; give a whole number from 1024 to 4194304",
        ),
        (
            "[dataplane]\nflows_max = -1",
            "dataplane.flows_max: -1 is out of range; give a whole number from 1024 to 4194304",
        ),
        (
            "[dataplane]\nflows_max = \"many\"",
            "dataplane.flows_max: is a string; give a whole number from 1024 to 4194304",
        ),
        ("[dataplane]\nflows_max = 1.5", "dataplane.flows_max: is a float; give a whole number from 1024 to 4194304"),
        ("[dataplane]\non_exit = \"stay\"", "dataplane.on_exit: \"stay\" is none of keep, detach"),
        (
            "[dataplane]\npins = \"bpf\"",
            "dataplane.pins: \"bpf\" is not the absolute path of a file; begin with / and end with its name",
        ),
        ("api = 3", "api: is an integer; give a table: [api]"),
        ("[api]\nsockets = \"/run/x\"", "api.sockets: is a string; give a list of paths in [ ]"),
        (
            "[api]\nsockets = []",
            "api.sockets: is empty, so nobody could reach the daemon; give a path such as \"/run/redirect/api.sock\"",
        ),
        (
            "[api]\nsockets = [\"api.sock\"]",
            "api.sockets[0]: \"api.sock\" is not the absolute path of a file; begin with / and end with its name",
        ),
        ("[api]\nsockets = [\"/a\", \"/a\"]", "api.sockets[1]: /a is listed twice; remove one"),
        (
            "[api]\nlisten = \"8443\"",
            "api.listen[0]: \"8443\" is no address; give ADDRESS:PORT such as \"10.20.0.1:8443\" or \"[fd00:20::1]:8443\"",
        ),
        (
            "[api]\nlisten = \"10.0.0.1:8443\"",
            "api.authentication: is missing: anybody who reaches 10.0.0.1:8443 could change anything; give [\"token\"], or [\"certificate\"] \
             with api.client_ca, or both",
        ),
        (
            "[api]\nlisten = \"127.0.0.1:8443\"\nauthentication = []",
            "api.authentication: is missing: anybody who reaches 127.0.0.1:8443 could change anything; give [\"token\"], or [\"certificate\"] \
             with api.client_ca, or both",
        ),
        ("[api]\nauthentication = [\"password\"]", "api.authentication[0]: \"password\" is none of token, certificate"),
        (
            "[api]\nlisten = [\"127.0.0.1:8080\", \"10.0.0.1:8443\"]\nauthentication = [\"token\"]",
            "api.certificate: is missing: 10.0.0.1:8443 is no loopback address, and tokens would go over the network in clear; give \
             api.certificate and api.key",
        ),
        (
            "[api]\nlisten = \"127.0.0.1:8443\"\nauthentication = [\"certificate\"]\nclient_ca = \"/ca\"",
            "api.certificate: is missing: clients' certificates are a part of TLS; give api.certificate and api.key",
        ),
        (
            "[api]\nlisten = \"127.0.0.1:8443\"\nauthentication = [\"certificate\"]\ncertificate = \"/c\"\nkey = \"/k\"",
            "api.client_ca: is missing: api.authentication has \"certificate\"; give the file of the authority that signs clients' certificates",
        ),
        (
            "[api]\nlisten = \"127.0.0.1:8443\"\nauthentication = [\"token\"]\nclient_ca = \"/ca\"",
            "api.client_ca: is given, but api.authentication has no \"certificate\"; add it, or remove this",
        ),
        ("[api]\ncertificate = \"/c\"", "api.key: is missing; give the file of the key of api.certificate"),
        (
            "[api]\nsocket_mode = \"0066\"",
            "api.socket_mode: \"0066\" is not a mode; give the mode in octal digits, such as \"0660\", with 6 for the owner at least",
        ),
        (
            "[access.users]\nanna = \"boss\"",
            "access.users.anna: \"boss\" is none of viewer, integrator, operator, admin",
        ),
        ("[access]\ngroups = [\"x\"]", "access.groups: is an array; give a table of names and roles: [access.groups]"),
        (
            "[store]\npath = \"db\"",
            "store.path: \"db\" is not the absolute path of a file; begin with / and end with its name",
        ),
        (
            "[relay]\nlisten = [\"10.0.0.1\"]",
            "relay.listen[0]: \"10.0.0.1\" is no address; give ADDRESS:PORT such as \"10.20.0.1:2525\" or \"[fd00:20::1]:2525\"",
        ),
        (
            "[relay]\nlisten = [\"127.0.0.1:25\"]",
            "relay.listen[0]: 127.0.0.1 is a loopback address, which redirected packets cannot reach; give an address of an interface of this \
             router or of the relay's host",
        ),
        ("[relay]\ndelivery = \"dnat\"", "relay.delivery: \"dnat\" is none of auto, rewrite, steer"),
        (
            "[relay]\nlisten = [\"0.0.0.0:25\"]",
            "relay.listen[0]: 0.0.0.0 is the unspecified address, which redirected packets cannot reach; give an address of an interface of \
             this router or of the relay's host",
        ),
        ("[relay]\nlisten = [\"10.0.0.1:0\"]", "relay.listen[0]: 10.0.0.1:0 has no port; give one from 1 to 65535"),
        (
            "[relay]\nlisten = [\"10.0.0.1:25\", \"10.0.0.2:25\"]",
            "relay.listen[1]: 10.0.0.2:25 is a second IPv4 listener; keep one of each family",
        ),
        (
            "[relay]\nhostname = \"not a name\"",
            "relay.hostname: \"not a name\" is not a host name; give one such as \"relay.example.net\"",
        ),
        ("[health]\ninterval_s = -1", "health.interval_s: -1 is out of range; give a whole number from 0 to 300"),
        ("[health]\ntimeout = 3", "health.timeout: unknown key; did you mean timeout_s?"),
        ("[routing]\nmark = 0x1", "routing.mark: 0x1 has bits outside routing.mark_mask (0xff000000)"),
        ("[routing]\nmark = 0", "routing.mark: 0 is out of range; give a whole number from 1 to 4294967295"),
        (
            "[routing]\nsteer_table = 254",
            "routing.steer_table: 254 is a table of the kernel's own; give another number",
        ),
        ("[routing]\nsource_table = 2525", "routing.source_table: is routing.steer_table as well; give another number"),
        ("[routing]\npriority = 0", "routing.priority: 0 is out of range; give a whole number from 1 to 32765"),
        ("[routing]\nprotocol = 4", "routing.protocol: 4 is out of range; give a whole number from 20 to 255"),
        ("[[interface]]\n", "interface[0].name: is missing; give the interface's name as `ip link` shows it"),
        ("[interface]\nname = \"lan0\"", "interface: is a table; give one [[interface]] for each"),
        ("[[interface]]\nname = \"lan0\"\nrole = \"wan\"", "interface[0].role: \"wan\" is none of subscriber"),
        ("[[interface]]\nname = \"lan0\"\nhook = \"ebpf\"", "interface[0].hook: \"ebpf\" is none of auto, xdp, tc"),
        (
            "[[interface]]\nname = \"lan0\"\nforeign_sources = \"yes\"",
            "interface[0].foreign_sources: is a string; give true or false",
        ),
        (
            "[[interface]]\nname = \"lan0\"\n[[interface]]\nname = \"lan0\"",
            "interface[1].name: lan0 is listed twice; remove one",
        ),
        (
            "[[interface]]\nname = \"a b\"",
            "interface[0].name: \"a b\" cannot be the name of an interface: give one of `ip link`, at most 15 characters",
        ),
        ("[log]\nformat = \"xml\"", "log.format: \"xml\" is none of text, json"),
    ];

    #[test]
    fn a_bad_file_is_one_line_with_key_and_remedy() {
        for (text, expected) in BAD {
            let line = read(text).unwrap_err().to_string();
            assert_eq!(line, format!("/etc/r.toml: {expected}"), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_no_toml_is_one_line_with_its_place() {
        for (text, place) in [
            ("[dataplane]\nflows_max = \n", "/etc/r.toml: line 2, flows_max: not TOML: "),
            ("[dataplane\n", "/etc/r.toml: line 1, dataplane: not TOML: "),
            ("[relay]\nhostname = relay\n", "/etc/r.toml: line 2, hostname: not TOML: "),
            ("[relay]\nhostname = \"relay\n", "/etc/r.toml: line 2, hostname: not TOML: "),
            ("[log]\nformat = \"text\"\nformat = \"json\"\n", "/etc/r.toml: line 3, format: not TOML: "),
            ("\u{0}", "/etc/r.toml: line 1"),
        ] {
            let line = read(text).unwrap_err().to_string();
            assert!(line.starts_with(place), "{line}");
            assert!(!line.chars().any(char::is_control), "{line:?}");
            assert!(line.contains("; correct the line"), "{line}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_one_line_with_a_remedy() {
        let line = load(Path::new("/nowhere/redirectd.toml"), "h").unwrap_err().to_string();
        assert!(line.starts_with("/nowhere/redirectd.toml: (file): cannot be read: "), "{line}");
        assert!(line.ends_with("; create it or name another one with --config"), "{line}");
    }
}
