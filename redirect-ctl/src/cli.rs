//! The command line of `redirect-ctl` and `redirectd`: clap types only. Nouns read, verbs change.

mod configuration;
mod global;
mod inspect;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, builder::PossibleValuesParser, builder::TypedValueParser};
use clap_complete::Shell;
use redirect_relay::{
    Domain, Quota, Rate, Tarpit,
    gateway::{
        Balance, EgressAddress, Encryption, GatewayQuota, Host, Mechanism, Member, Pin, PriorityRange, Status, Strategy,
    },
    route::{SenderPattern, SizeRange},
};
use serde::de::DeserializeOwned;

use crate::{
    access::AccessRole,
    api::types::{ImportMode, RouteFormat},
    clients::Username,
    config, dataplane,
    desired::{self, Counted, InterfaceName, Name, PoolRelay, Prefix, Time},
    limits,
    routes::{self, RouteKey},
    smtp,
    subscribers::{Login, Mac, Priority, Session},
};

pub use self::{
    configuration::{ConfigCommit, ConfigDiff, ConfigFile, ConfigHow, ConfigRollback, ConfigShow, ConfigVerb},
    global::{Credentials, Global, Output},
    inspect::{Doctor, KernelVerb, SupportBundle, Top},
};

/// Inspect and drive redirectd.
#[derive(Debug, Parser)]
#[command(name = "redirect-ctl", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub noun: Noun,
}

const EXAMPLES: &str = "\
Examples:
  redirect-ctl status
  redirect-ctl gateway set default --address mx.example.net
  redirect-ctl subscriber set 10.20.0.0/16 --class configured
  redirect-ctl subscriber set 10.20.3.7 --class authenticated --source portal --ttl 8h
  redirect-ctl flow list --client 10.20.3.7 -o json
  redirect-ctl subscriber list --class blocked -o name
  redirect-ctl class set guests --action block --dry-run

Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 conflict, 5 redirectd cannot be reached, 6 there are differences";

#[derive(Debug, Subcommand)]
pub enum Noun {
    /// Whether everything works: revision, interfaces, flows, relay
    #[command(after_help = "Examples:\n  redirect-ctl status\n  redirect-ctl status --watch")]
    Status(Watch),
    /// Packets and bytes by reason, and by class or interface
    #[command(
        after_help = "Examples:\n  redirect-ctl stats --by interface\n  redirect-ctl stats --by reason --watch 5"
    )]
    Stats(Stats),
    /// What would become of a new connection, or of a message, and why; nothing else comes of the question
    #[command(after_help = "Examples:\n  redirect-ctl explain 10.20.3.7 203.0.113.9\n  \
                      redirect-ctl explain --from me@a.example --rcpt you@b.example --class configured\n  redirect-ctl explain fd00:20::7 [2001:db8::1]:25 --interface lan0")]
    Explain(Explain),
    /// Redirected connections
    #[command(subcommand)]
    Flow(FlowVerb),
    /// Changes of the configuration as they happen
    #[command(subcommand)]
    Event(EventVerb),
    /// Print what happens in sessions with the embedded relay, until interrupted: no contents, no passwords, nobody's name
    #[command(
        after_help = "Examples:\n  redirect-ctl trace --subscriber 10.20.3.7\n  redirect-ctl -o json trace --subscriber 2001:db8:3::/64"
    )]
    Trace(Trace),
    /// Subscribers who may not open connections to port 25 for a while
    #[command(subcommand)]
    Lock(LockVerb),
    /// Prefixes and their classes
    #[command(subcommand)]
    Subscriber(SubscriberVerb),
    /// Named policies
    #[command(subcommand)]
    Class(ClassVerb),
    /// Endpoints that take redirected flows
    #[command(subcommand)]
    Relay(RelayVerb),
    /// Network devices that carry the programs
    #[command(subcommand)]
    Interface(InterfaceVerb),
    /// Upstream SMTP servers of the embedded relay
    #[command(subcommand)]
    Gateway(GatewayVerb),
    /// Gateways that stand in for each other
    #[command(subcommand)]
    Group(GroupVerb),
    /// Which gateway takes the mail for which recipients (smart hosts)
    #[command(subcommand)]
    Route(RouteVerb),
    /// What the embedded relay shows clients that begin TLS
    #[command(subcommand)]
    Certificate(CertificateVerb),
    /// Who may log in at the embedded relay where a class says --auth local
    #[command(subcommand)]
    User(UserVerb),
    /// All of the above but subscribers together: show it, compare it, replace it, take that back
    #[command(subcommand)]
    Config(ConfigVerb),
    /// What is allowed and yet hardly meant: shadowed routes, mail and passwords in clear, gateways out of reach; exit code 1 if there is any
    #[command(after_help = "Example:\n  redirect-ctl lint")]
    Lint,
    /// Bearer tokens: who may use the API over TCP
    #[command(subcommand)]
    Token(TokenVerb),
    /// Who changed what, and who was refused
    #[command(subcommand)]
    Audit(AuditVerb),
    /// The operator's own domains, which cannot be routes
    #[command(subcommand)]
    ManagedDomain(ManagedDomainVerb),
    /// Whether a Postfix that takes redirected mail accepts smuggled ends of data; exit code 1 if so
    #[command(
        after_help = "Examples:\n  redirect-ctl postfix-check\n  redirect-ctl postfix-check --config-dir /etc/postfix-relay\n  \
                      redirect-ctl -o json postfix-check --postconf /opt/postfix/sbin/postconf"
    )]
    PostfixCheck(PostfixCheck),
    /// Remove what redirectd leaves on this host when it stops: programs, tables, rules and routes, settings. Needs no daemon
    #[command(
        after_help = "Examples:\n  systemctl stop redirectd && redirect-ctl uninstall\n  redirect-ctl uninstall --purge --config /etc/redirect/redirectd.toml"
    )]
    Uninstall(Uninstall),
    /// What happens at the moment: traffic, relays, gateways, the busiest subscribers; until q is pressed
    #[command(after_help = "Example:\n  redirect-ctl top --interval 5")]
    Top(Top),
    /// What may be wrong with this host, and what to do about it; exit code 1 if something does not work
    #[command(
        after_help = "Examples:\n  redirect-ctl doctor\n  redirect-ctl doctor --columns level,check,remedy --sort level\n  \
                      redirect-ctl doctor --interface eth1 -o json"
    )]
    Doctor(Doctor),
    /// What of ours is in the kernel
    #[command(subcommand)]
    Kernel(KernelVerb),
    /// Write an archive for those who are to help: versions, state, counters, logs, the host's network; without secrets
    #[command(
        after_help = "Examples:\n  redirect-ctl support-bundle\n  redirect-ctl support-bundle --anonymize /tmp/ticket-7.tar.gz"
    )]
    SupportBundle(SupportBundle),
    /// The versions of redirect-ctl and of the redirectd that answers
    #[command(after_help = "Example:\n  redirect-ctl version -o json")]
    Version,
    /// Print the completion script of a shell
    #[command(after_help = "Examples:\n  redirect-ctl completion bash > /etc/bash_completion.d/redirect-ctl\n  \
                            redirect-ctl completion fish > ~/.config/fish/completions/redirect-ctl.fish")]
    Completion { shell: Shell },
    /// Write the manual pages of redirect-ctl and redirectd into a folder
    #[command(hide = true, after_help = "Example:\n  redirect-ctl man /usr/local/share/man")]
    Man { folder: PathBuf },
}

/// Whether an answer is printed once.
#[derive(Clone, Copy, Debug, Args)]
pub struct Watch {
    /// Print it again whenever it is another one, until interrupted
    #[arg(long)]
    pub watch: bool,
}

#[derive(Debug, Args)]
pub struct PostfixCheck {
    /// The folder of main.cf and master.cf [default: Postfix's own]
    #[arg(long, value_name = "FOLDER")]
    pub config_dir: Option<PathBuf>,
    /// The program that knows the settings
    #[arg(long, value_name = "PROGRAM", default_value = "postconf")]
    pub postconf: PathBuf,
}

#[derive(Debug, Args)]
pub struct Stats {
    /// What the rows are put together by
    #[arg(long, value_enum, default_value_t = StatsBy::Class)]
    pub by: StatsBy,
    /// Show what comes per second, again and again [default: every 2 seconds]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub watch: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatsBy {
    Class,
    Interface,
    Reason,
}

#[derive(Debug, Args)]
pub struct Explain {
    /// The subscriber's address
    #[arg(value_name = "SRC", required_unless_present = "rcpt", conflicts_with = "rcpt", requires = "destination")]
    pub source: Option<std::net::IpAddr>,
    /// The server's address; :25 may follow
    #[arg(value_name = "DST")]
    pub destination: Option<String>,
    /// The subscriber's port [default: one that meets no flow]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), requires = "source")]
    pub sport: Option<u16>,
    /// Where the connection would come in [default: the first interface that carries the programs]
    #[arg(long, requires = "source")]
    pub interface: Option<InterfaceName>,
    /// Which way a message to this recipient would go: an address or a domain
    #[arg(long, value_name = "RECIPIENT", requires = "from", requires = "class")]
    pub rcpt: Option<String>,
    /// The sender of that message: an address, a domain, or <>
    #[arg(long, value_name = "SENDER", requires = "rcpt")]
    pub from: Option<String>,
    /// The class of the subscriber who sends it
    #[arg(long, requires = "rcpt")]
    pub class: Option<Name>,
    /// Octets that its client declares
    #[arg(long, value_name = "OCTETS", requires = "rcpt")]
    pub size: Option<u64>,
    /// Its priority, -9 to 9
    #[arg(long, value_name = "N", allow_hyphen_values = true, requires = "rcpt")]
    pub priority: Option<i8>,
}

#[derive(Debug, Args)]
pub struct FlowWatch {
    /// Only events of this class
    #[arg(long)]
    pub class: Option<Name>,
    /// Only those of clients inside this prefix, or of this address
    #[arg(long, value_name = "PREFIX")]
    pub client: Option<Prefix>,
    /// Only those with this reason
    #[arg(long)]
    pub reason: Option<String>,
}

#[derive(Debug, Args)]
pub struct Trace {
    /// Sessions of clients inside this prefix, or of this address
    #[arg(long, value_name = "PREFIX")]
    pub subscriber: Prefix,
}

#[derive(Debug, Subcommand)]
pub enum EventVerb {
    /// Print what changes in the configuration, by whomever, until interrupted
    #[command(
        after_help = "Examples:\n  redirect-ctl event watch --type class --type relay\n  redirect-ctl -o json event watch --since 1201"
    )]
    Watch(EventWatch),
}

#[derive(Debug, Args)]
pub struct EventWatch {
    /// Only changes of this type, such as class or `managed_domain`; may be repeated
    #[arg(long = "type", value_name = "TYPE")]
    pub types: Vec<String>,
    #[command(flatten)]
    pub since: Since,
}

/// Where changes begin.
#[derive(Clone, Copy, Debug, Args)]
pub struct Since {
    /// Begin after this revision, as far back as redirectd's log reaches; without it, now
    #[arg(long, value_name = "REVISION")]
    pub since: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub enum FlowVerb {
    /// Print new flows and refusals as they happen, until interrupted
    #[command(after_help = "Example:\n  redirect-ctl flow watch --class guests --reason class_block")]
    Watch(FlowWatch),
    /// List redirected connections
    #[command(
        after_help = "Examples:\n  redirect-ctl flow list --client 10.20.3.7\n  redirect-ctl flow list --client 10.20.0.0/16 --relay postfix"
    )]
    List(FlowList),
    /// What was the original destination of a connection that a relay sees?
    #[command(after_help = "Example:\n  redirect-ctl flow original --relay 192.0.2.25:25 --client 10.20.3.7:40000")]
    Original(FlowOriginal),
}

#[derive(Debug, Args)]
pub struct FlowList {
    /// Only flows of clients inside this prefix, or of this address
    #[arg(long, value_name = "PREFIX")]
    pub client: Option<Prefix>,
    /// Only flows of this class
    #[arg(long)]
    pub class: Option<Name>,
    /// Only flows that are rewritten to this relay
    #[arg(long)]
    pub relay: Option<Name>,
    /// Rows at most
    #[arg(long, default_value_t = limits::PAGE_ROWS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::PAGE_ROWS_MAX)))]
    pub limit: u32,
}

#[derive(Debug, Args)]
pub struct FlowOriginal {
    /// The relay's end of the connection
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub relay: std::net::SocketAddr,
    /// The other end, as the relay sees it
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub client: std::net::SocketAddr,
}

#[derive(Debug, Subcommand)]
pub enum LockVerb {
    /// List locked subscribers
    #[command(after_help = "Example:\n  redirect-ctl lock list")]
    List,
    /// Lock a subscriber, or change how long
    #[command(after_help = "Example:\n  redirect-ctl lock add 10.20.3.7 --for 1h")]
    Add(LockAdd),
    /// Unlock a subscriber
    #[command(after_help = "Example:\n  redirect-ctl lock remove 10.20.3.7")]
    Remove {
        #[arg(help = COUNTED)]
        address: Counted,
    },
}

#[derive(Debug, Args)]
pub struct LockAdd {
    #[arg(help = COUNTED)]
    pub address: Counted,
    /// How long, from now on; 30 days at most
    #[arg(long = "for", value_name = "DURATION", value_parser = lock_duration)]
    pub duration: Duration,
}

const COUNTED: &str = "An address; one of IPv6 stands for its /64";

#[derive(Debug, Subcommand)]
pub enum SubscriberVerb {
    /// List subscribers
    #[command(after_help = "Example:\n  redirect-ctl subscriber list --within 10.20.0.0/16 --class authenticated")]
    List(SubscriberList),
    /// Show one subscriber
    #[command(after_help = "Example:\n  redirect-ctl subscriber get 10.20.3.7")]
    Get {
        prefix: Prefix,
        #[command(flatten)]
        watch: Watch,
    },
    /// Say what a prefix is, in place of what the same source said before
    #[command(
        after_help = "Example:\n  redirect-ctl subscriber set 10.20.3.7 --class authenticated --source portal --ttl 8h"
    )]
    Set(SubscriberSet),
    /// Delete a subscriber, what one source says of it, or many facts at once
    #[command(
        after_help = "Examples:\n  redirect-ctl subscriber delete 10.20.3.7\n  redirect-ctl subscriber delete 10.20.3.7 --source radius --session 8A01\n  \
                      redirect-ctl subscriber delete --source radius --label nas=bng-3 --yes"
    )]
    Delete(SubscriberDelete),
    /// Put a file of facts, a JSON object a line: all of them, or none
    #[command(after_help = "Examples:\n  redirect-ctl subscriber import guests.ndjson --dry-run\n  \
                      redirect-ctl subscriber import --mode replace --source radius --yes - <sessions.ndjson")]
    Import(SubscriberImportArgs),
    /// Print all facts, a JSON object a line, as import takes them
    #[command(after_help = "Example:\n  redirect-ctl subscriber export >subscribers.ndjson")]
    Export(SubscriberFilter),
    /// Show how a file differs from what is known; exit code 6 if it does
    #[command(after_help = "Example:\n  redirect-ctl subscriber diff subscribers.ndjson")]
    Diff(SubscriberFile),
    /// Put a subscriber into a class that blocks, as the operator, until it is released
    #[command(
        after_help = "Examples:\n  redirect-ctl subscriber quarantine 10.20.3.7\n  redirect-ctl subscriber quarantine 10.20.3.7 --ttl 24h"
    )]
    Quarantine(SubscriberQuarantine),
    /// Forget what the operator said of a subscriber: what other sources say, or a shorter prefix, decides again
    #[command(after_help = "Example:\n  redirect-ctl subscriber release 10.20.3.7")]
    Release { prefix: Prefix },
    /// Print changes of subscribers as they happen, until interrupted
    #[command(after_help = "Example:\n  redirect-ctl subscriber watch --since 1201")]
    Watch(Since),
    /// Who changed what is said of a subscriber, from the audit; imports and other changes of many at once are among it
    #[command(after_help = "Examples:\n  redirect-ctl subscriber history 10.20.3.7\n  \
                      redirect-ctl subscriber history 10.20.3.7 --since 24h")]
    History(SubscriberHistory),
}

#[derive(Debug, Args)]
pub struct SubscriberQuarantine {
    /// ADDRESS/LENGTH, or one address
    pub prefix: Prefix,
    /// The class that it gets
    #[arg(long, default_value = "blocked")]
    pub class: Name,
    /// Release it after this time
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub ttl: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct SubscriberHistory {
    /// ADDRESS/LENGTH, or one address
    pub prefix: Prefix,
    #[command(flatten)]
    pub records: AuditList,
}

/// Which facts are meant: those that all of these are true of.
#[derive(Debug, Args)]
pub struct SubscriberFacts {
    /// Only prefixes inside this one
    #[arg(long, value_name = "PREFIX")]
    pub within: Option<Prefix>,
    /// Only what this source says
    #[arg(long, value_parser = word::<desired::Origin>(desired::Origin::WORDS))]
    pub source: Option<desired::Origin>,
    /// Only with this class
    #[arg(long)]
    pub class: Option<Name>,
    /// Only of this session
    #[arg(long)]
    pub session: Option<Session>,
    /// Only of this user
    #[arg(long)]
    pub user: Option<Login>,
    /// Only of this hardware address
    #[arg(long)]
    pub mac: Option<Mac>,
}

#[derive(Debug, Args)]
pub struct SubscriberDelete {
    #[arg(required_unless_present_any = ["within", "source", "class", "session", "user", "mac", "labels"], conflicts_with_all = ["within", "class", "user", "mac", "labels", "count"])]
    pub prefix: Option<Prefix>,
    #[command(flatten)]
    pub facts: SubscriberFacts,
    /// Only with this label; all of them if given more than once
    #[arg(long = "label", value_name = "NAME=TEXT", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Only if so many match
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}

#[derive(Debug, Args)]
pub struct SubscriberFile {
    /// A JSON object a line; "-" for standard input
    pub file: PathBuf,
    /// Who says so: of every line; what other sources say is left alone
    #[arg(long, value_parser = word::<desired::Origin>(desired::Origin::WORDS))]
    pub source: Option<desired::Origin>,
}

#[derive(Debug, Args)]
pub struct SubscriberImportArgs {
    #[command(flatten)]
    pub file: SubscriberFile,
    /// What becomes of facts that the file does not name: they stay (merge) or go (replace)
    #[arg(long, default_value = "merge", value_parser = word::<ImportMode>(ImportMode::WORDS))]
    pub mode: ImportMode,
}

#[derive(Debug, Args)]
pub struct SubscriberFilter {
    #[command(flatten)]
    pub facts: SubscriberFacts,
    /// Only what expires before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub expires_before: Option<Time>,
    /// Only what changed after this revision
    #[arg(long, value_name = "REVISION")]
    pub changed_since: Option<u64>,
}

#[derive(Debug, Args)]
pub struct SubscriberList {
    #[command(flatten)]
    pub filter: SubscriberFilter,
    #[command(flatten)]
    pub watch: Watch,
    /// Rows at most
    #[arg(long, default_value_t = limits::PAGE_ROWS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Every row
    #[arg(long, conflicts_with_all = ["limit", "watch"])]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct SubscriberSet {
    /// ADDRESS/LENGTH, or one address
    pub prefix: Prefix,
    #[arg(long)]
    pub class: Name,
    /// Who says so
    #[arg(long, default_value = "operator", value_parser = word::<desired::Origin>(desired::Origin::WORDS))]
    pub source: desired::Origin,
    /// How much that weighs beside what other sources say, 0 to 1000 [default: by the source]
    #[arg(long, value_name = "N", value_parser = priority)]
    pub priority: Option<Priority>,
    /// Of the source; whoever ends another session does not end this one
    #[arg(long)]
    pub session: Option<Session>,
    /// Who logged in
    #[arg(long)]
    pub user: Option<Login>,
    /// The hardware address
    #[arg(long)]
    pub mac: Option<Mac>,
    /// What else it is to be found by; once for each
    #[arg(long = "label", value_name = "NAME=TEXT", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Forget it at this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub expires: Option<Time>,
    /// Forget it after this time
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "expires")]
    pub ttl: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub enum ClassVerb {
    /// List classes
    #[command(after_help = "Examples:\n  redirect-ctl class list -o wide\n  redirect-ctl class list --watch -o ndjson")]
    List(Watch),
    /// Show one class
    #[command(after_help = "Example:\n  redirect-ctl class get guests -o yaml")]
    Get { name: Name },
    /// Create a class, or replace all of it
    #[command(
        after_help = "Examples:\n  redirect-ctl class set guests --action redirect --relay embedded --on-relay-down block\n  \
                      redirect-ctl class set guests --action redirect --relay a:3 --relay b --rate 5 --open-max 20 --lock-after 100 --lock-for 1h\n  \
                      redirect-ctl class set guests --action redirect --relay embedded --quota messages=100/1h:20 --quota recipients=500/1h \\\n    \
                      --tarpit 1s..60s --lock-strikes 50/10m --lock-strikes-for 1h\n  \
                      redirect-ctl class set staff --action redirect --relay embedded --tls offer --certificate relay --auth local \\\n    \
                      --unauthenticated deny --allow-unauthenticated 10.20.9.0/24\n  \
                      redirect-ctl class set office --action redirect --relay embedded --gateway isp --tls offer --certificate relay --auth bridge"
    )]
    Set(Box<ClassSet>),
    /// Delete a class that nobody uses
    #[command(after_help = "Example:\n  redirect-ctl class delete guests")]
    Delete { name: Name },
}

#[derive(Debug, Args)]
pub struct Uninstall {
    /// The bootstrap file, which says where things are; the defaults hold where there is none
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    pub config: PathBuf,
    /// Remove the store too: everything that was configured over the API
    #[arg(long)]
    pub purge: bool,
    /// Even while redirectd runs, which goes on without its programs until it is stopped
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct ClassSet {
    pub name: Name,
    /// What is done with port-25 flows
    #[arg(long, value_parser = word::<desired::Action>(desired::Action::WORDS))]
    pub action: desired::Action,
    /// A relay of the pool that redirected flows are shared out among; once for each
    #[arg(long = "relay", value_name = "NAME[:WEIGHT]")]
    pub relays: Vec<PoolRelay>,
    /// What is done with a flow that should be redirected and cannot be
    #[arg(long, default_value = "pass", value_parser = word::<desired::Fallback>(desired::Fallback::WORDS))]
    pub on_relay_down: desired::Fallback,
    /// What becomes of a live flow when its subscriber gets another class
    #[arg(long, default_value = "reset", value_parser = word::<desired::OnClassChange>(desired::OnClassChange::WORDS))]
    pub on_class_change: desired::OnClassChange,
    /// What is done with a new flow that should be redirected while redirectd is down, as `dataplane.daemon_timeout_s` has it
    #[arg(long, default_value = "keep", value_parser = word::<desired::OnDaemonDown>(desired::OnDaemonDown::WORDS))]
    pub on_daemon_down: desired::OnDaemonDown,
    /// New connections per second that one subscriber may open
    #[arg(long, value_name = "N")]
    pub rate: Option<u32>,
    /// New connections at once, before the rate counts [default: the rate]
    #[arg(long, value_name = "N")]
    pub burst: Option<u32>,
    /// Redirected connections that one subscriber may have open
    #[arg(long, value_name = "N")]
    pub open_max: Option<u32>,
    /// Refused connections within a minute after which a subscriber is locked
    #[arg(long, value_name = "N")]
    pub lock_after: Option<u32>,
    /// How long [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = lock_duration)]
    pub lock_for: Option<Duration>,
    /// The gateway or group that its mail goes to, unless a route says otherwise [default: the one named default]
    #[arg(long)]
    pub gateway: Option<Name>,
    #[command(flatten)]
    pub smtp: SmtpArgs,
}

/// How the embedded relay treats the clients of a class.
#[derive(Debug, Args)]
#[command(next_help_heading = "The embedded relay")]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub struct SmtpArgs {
    /// TLS toward clients
    #[arg(long, default_value = "none", value_parser = word::<smtp::SmtpTls>(smtp::SmtpTls::WORDS))]
    pub tls: smtp::SmtpTls,
    /// What clients are shown, with --tls offer
    #[arg(long, value_name = "NAME")]
    pub certificate: Option<Name>,
    /// AUTH of clients
    #[arg(long, default_value = "off", value_parser = word::<smtp::SmtpAuth>(smtp::SmtpAuth::WORDS))]
    pub auth: smtp::SmtpAuth,
    /// AUTH also without TLS: passwords in clear
    #[arg(long)]
    pub auth_cleartext: bool,
    /// With --auth bridge: gateways that nobody verified may see the clients' passwords
    #[arg(long)]
    pub bridge_unprotected: bool,
    /// Whether clients that none of the following two lists holds may send without AUTH
    #[arg(long, default_value = "allow", value_parser = word::<smtp::SmtpAccess>(smtp::SmtpAccess::WORDS))]
    pub unauthenticated: smtp::SmtpAccess,
    /// Clients that may send without AUTH; the longest prefix decides; once for each
    #[arg(long, value_name = "PREFIX")]
    pub allow_unauthenticated: Vec<Prefix>,
    /// Clients that may not
    #[arg(long, value_name = "PREFIX")]
    pub deny_unauthenticated: Vec<Prefix>,
    #[arg(long = "quota", help = "What one subscriber may do, of connections, messages, notifications, recipients, octets, invalid_recipients and auth_failures; once for each", value_name = "KIND=COUNT/PERIOD[:BURST]", value_parser = rate_of::<Quota>)]
    pub quotas: Vec<(String, Rate)>,
    /// The same for all subscribers of the class together
    #[arg(long = "class-quota", value_name = "KIND=COUNT/PERIOD[:BURST]", value_parser = rate_of::<Quota>)]
    pub class_quotas: Vec<(String, Rate)>,
    /// Sessions that one subscriber may have open
    #[arg(long, value_name = "N")]
    pub sessions_max: Option<u32>,
    /// Recipients of a message from <>
    #[arg(long, value_name = "N")]
    pub notification_recipients_max: Option<u32>,
    /// Refuse mail to addresses such as user@[192.0.2.1]
    #[arg(long)]
    pub refuse_literals: bool,
    /// Refuse lines beyond 998 octets
    #[arg(long)]
    pub refuse_long_lines: bool,
    /// What becomes of a bare LF in a message
    #[arg(long, default_value = "reject", value_parser = word::<smtp::SmtpLineEndings>(smtp::SmtpLineEndings::WORDS))]
    pub line_endings: smtp::SmtpLineEndings,
    /// Offer MT-PRIORITY: clients say which priority their mail has
    #[arg(long)]
    pub mt_priority: bool,
    /// Answer abuse late: the first delay, doubled each time, and the longest
    #[arg(long, value_name = "DELAY..MAX", value_parser = tarpit)]
    pub tarpit: Option<Tarpit>,
    /// Lock a subscriber in the kernel after more refusals for quotas and cut sessions than this
    #[arg(long, value_name = "COUNT/PERIOD[:BURST]", value_parser = rate, requires = "lock_strikes_for")]
    pub lock_strikes: Option<Rate>,
    /// How long
    #[arg(long, value_name = "DURATION", value_parser = lock_duration, requires = "lock_strikes")]
    pub lock_strikes_for: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub enum RelayVerb {
    /// List relays
    #[command(after_help = "Examples:\n  redirect-ctl relay list\n  redirect-ctl relay list --watch")]
    List(Watch),
    /// Show one relay
    #[command(after_help = "Example:\n  redirect-ctl relay get postfix")]
    Get { name: Name },
    /// Create a relay, or replace all of it
    #[command(after_help = "Example:\n  redirect-ctl relay set postfix --ipv4 10.9.0.25:25 --ipv6 [fd00:9::25]:25")]
    Set(RelaySet),
    /// Ask whether a relay lives, or all of them; exit code 1 if one that is enabled is down
    #[command(after_help = "Examples:\n  redirect-ctl relay check\n  redirect-ctl relay check postfix")]
    Check { name: Option<Name> },
    /// Let new flows go to a relay
    #[command(visible_alias = "undrain", after_help = "Example:\n  redirect-ctl relay enable postfix")]
    Enable { name: Name },
    /// Let no new flows go to a relay; those that it has go on
    #[command(after_help = "Example:\n  redirect-ctl relay drain postfix")]
    Drain { name: Name },
    /// The same, and do not ask whether it lives
    #[command(after_help = "Example:\n  redirect-ctl relay disable postfix")]
    Disable { name: Name },
    /// Delete a relay that no class uses
    #[command(after_help = "Example:\n  redirect-ctl relay delete postfix")]
    Delete { name: Name },
}

#[derive(Debug, Args)]
pub struct RelaySet {
    pub name: Name,
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub ipv4: Option<std::net::SocketAddrV4>,
    #[arg(long, value_name = "[ADDRESS]:PORT", required_unless_present = "ipv4")]
    pub ipv6: Option<std::net::SocketAddrV6>,
    /// How flows reach it
    #[arg(long, default_value = "auto", value_parser = word::<desired::Delivery>(desired::Delivery::WORDS))]
    pub delivery: desired::Delivery,
    /// Whether new flows go there
    #[arg(long, default_value = "enabled", value_parser = word::<desired::RelayStatus>(desired::RelayStatus::WORDS))]
    pub status: desired::RelayStatus,
}

#[derive(Debug, Subcommand)]
pub enum InterfaceVerb {
    /// List interfaces
    #[command(after_help = "Example:\n  redirect-ctl interface list")]
    List(Watch),
    /// Show one interface
    #[command(after_help = "Example:\n  redirect-ctl interface get lan0")]
    Get { name: InterfaceName },
    /// Attach to an interface, or change how
    #[command(visible_alias = "attach", after_help = "Example:\n  redirect-ctl interface set lan0 --hook tc")]
    Set(InterfaceSet),
    /// Detach from an interface
    #[command(visible_alias = "detach", after_help = "Example:\n  redirect-ctl interface delete lan0")]
    Delete { name: InterfaceName },
}

#[derive(Debug, Args)]
pub struct InterfaceSet {
    pub name: InterfaceName,
    #[arg(long, default_value = "subscriber", value_parser = word::<dataplane::Role>(dataplane::Role::WORDS))]
    pub role: dataplane::Role,
    /// Where the programs go
    #[arg(long, default_value = "auto", value_parser = word::<dataplane::Hook>(dataplane::Hook::WORDS))]
    pub hook: dataplane::Hook,
    /// Serve subscribers with addresses of other networks as well
    #[arg(
        long,
        long_help = "Serve subscribers with addresses of other networks as well: by proxy ARP, a loose rp_filter, and routes to them"
    )]
    pub foreign_sources: bool,
}

#[derive(Debug, Subcommand)]
pub enum GatewayVerb {
    /// List gateways
    #[command(after_help = "Example:\n  redirect-ctl gateway list -o wide")]
    List(Watch),
    /// Show one gateway
    #[command(after_help = "Example:\n  redirect-ctl gateway get isp -o yaml")]
    Get { name: Name },
    /// Create a gateway, or replace all of it
    #[command(after_help = "Examples:\n  redirect-ctl gateway set default --address mx.example.net\n  \
                      redirect-ctl gateway set isp --address smtp.isp.example --port 465 --encryption implicit --verification ca \\\n    \
                      --username hotel7 --password-file /root/isp.password\n  \
                      pass show isp | redirect-ctl gateway set isp --address smtp.isp.example --port 587 \\\n    \
                      --encryption starttls_required --verification ca --mechanism SCRAM-SHA-256 --username hotel7 --password-file -")]
    Set(Box<GatewaySet>),
    /// Try a gateway as mail would use it, up to a message that is given up; exit code 1 if none could go there
    #[command(after_help = "Example:\n  redirect-ctl gateway verify isp")]
    Verify { name: Name },
    /// Let mail go to a gateway
    #[command(after_help = "Example:\n  redirect-ctl gateway enable isp")]
    Enable { name: Name },
    /// Let no new messages go to a gateway; those under way go on
    #[command(after_help = "Example:\n  redirect-ctl gateway drain isp")]
    Drain { name: Name },
    /// Let no mail go to a gateway
    #[command(after_help = "Example:\n  redirect-ctl gateway disable isp")]
    Disable { name: Name },
    /// Delete a gateway that nothing uses
    #[command(after_help = "Example:\n  redirect-ctl gateway delete isp")]
    Delete { name: Name },
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub struct GatewaySet {
    pub name: Name,
    /// IP address or host name
    #[arg(long)]
    pub address: Host,
    #[arg(long, default_value_t = redirect_common::SMTP_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    #[arg(long, default_value = "")]
    pub description: String,
    /// Whether the connection is encrypted
    #[arg(long, default_value = "starttls", value_parser = serde_word::<Encryption>(ENCRYPTIONS))]
    pub encryption: Encryption,
    /// Whom its certificate must convince
    #[arg(long, default_value = "none", value_parser = ["none", "ca", "pin"])]
    pub verification: String,
    /// Authorities in PEM, on the router [default: the system's]
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// SHA-256 of its certificate, with verification pin
    #[arg(long, value_name = "SHA256", required_if_eq("verification", "pin"))]
    pub pin: Option<Pin>,
    /// The name in its certificate [default: the address, if that is a name]
    #[arg(long, value_name = "NAME")]
    pub sni: Option<Domain>,
    /// Who we are there
    #[arg(long)]
    pub username: Option<String>,
    /// The password is the first line of this file, or of standard input for "-" [default: the known one]
    #[arg(long, value_name = "FILE", requires = "username")]
    pub password_file: Option<PathBuf>,
    #[arg(long, default_value = "PLAIN", value_parser = serde_word::<Mechanism>(MECHANISMS))]
    pub mechanism: Mechanism,
    /// The password may go to a server that nobody verified
    #[arg(long, requires = "username")]
    pub allow_unprotected: bool,
    #[arg(long, default_value = "enabled", value_parser = serde_word::<Status>(STATUSES))]
    pub status: Status,
    /// Its share among the members of a group, 1 to 1000
    #[arg(long, default_value_t = 1)]
    pub weight: u16,
    /// The messages that it takes, by priority
    #[arg(long, value_name = "MIN..MAX", value_parser = routes::priority_range, allow_hyphen_values = true)]
    pub priorities: Option<PriorityRange>,
    /// Connections open at one time
    #[arg(long, value_name = "N")]
    pub connections_max: Option<u32>,
    #[arg(long, value_name = "N")]
    pub messages_per_second_max: Option<u32>,
    #[arg(long, value_name = "N")]
    pub recipients_per_message_max: Option<u32>,
    #[arg(long = "quota", help = "What may go to it, of connections, messages, recipients and octets; once for each", value_name = "KIND=COUNT/PERIOD[:BURST]", value_parser = rate_of::<GatewayQuota>)]
    pub quotas: Vec<(String, Rate)>,
    /// An address of ours that connections leave from, and our name there; once for each
    #[arg(long, value_name = "ADDRESS[=HELO]", value_parser = egress)]
    pub egress: Vec<EgressAddress>,
    /// How an egress address is chosen
    #[arg(long, default_value = "sticky", value_parser = serde_word::<Strategy>(STRATEGIES))]
    pub strategy: Strategy,
    /// A part of a refusal that means "this egress address is on a block list"; once for each
    #[arg(long = "block-pattern", value_name = "TEXT")]
    pub block_patterns: Vec<String>,
    /// How long an egress address is left out then
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub suspension: Duration,
    /// Send a PROXY header (version 2) with the subscriber's address
    #[arg(long)]
    pub proxy_protocol: bool,
    /// Tell the subscriber's address with XCLIENT
    #[arg(long)]
    pub xclient: bool,
    /// Its address may be a loopback or link-local one
    #[arg(long)]
    pub allow_local: bool,
    /// Mail that came over TLS may go to it in clear
    #[arg(long)]
    pub allow_downgrade: bool,
    /// Try it first, and save it only if mail could go there
    #[arg(long)]
    pub verify: bool,
}

pub(crate) const ENCRYPTIONS: &[&str] = &["none", "starttls", "starttls_required", "implicit"];
pub(crate) const MECHANISMS: &[&str] = &["PLAIN", "LOGIN", "SCRAM-SHA-256"];
pub(crate) const STATUSES: &[&str] = &["enabled", "disabled", "draining"];
pub(crate) const STRATEGIES: &[&str] = &["sticky", "round_robin", "on_block"];
pub(crate) const BALANCES: &[&str] = &["round_robin", "least_outstanding"];

#[derive(Debug, Subcommand)]
pub enum GroupVerb {
    /// List groups
    #[command(after_help = "Example:\n  redirect-ctl group list")]
    List,
    /// Show one group
    #[command(after_help = "Example:\n  redirect-ctl group get out")]
    Get { name: Name },
    /// Create a group, or replace all of it
    #[command(after_help = "Example:\n  redirect-ctl group set out --member mx1 --member mx2 --member backup:1")]
    Set(GroupSet),
    /// Delete a group that nothing uses
    #[command(after_help = "Example:\n  redirect-ctl group delete out")]
    Delete { name: Name },
}

#[derive(Debug, Args)]
pub struct GroupSet {
    pub name: Name,
    /// A gateway and its rank: a higher one is used only when none of a lower one can be; once for each
    #[arg(long = "member", value_name = "GATEWAY[:RANK]", value_parser = member, required = true)]
    pub members: Vec<Member>,
    /// How mail is shared among the members of one rank
    #[arg(long, default_value = "round_robin", value_parser = serde_word::<Balance>(BALANCES))]
    pub balance: Balance,
    #[arg(long, default_value = "")]
    pub description: String,
}

#[derive(Debug, Subcommand)]
pub enum RouteVerb {
    /// List routes
    #[command(after_help = "Example:\n  redirect-ctl route list --within example.com --target mx2")]
    List(RouteList),
    /// Show one route
    #[command(after_help = "Example:\n  redirect-ctl route get example.com")]
    Get {
        #[arg(help = ROUTE_KEY)]
        key: RouteKey,
    },
    /// Create a route, or replace it
    #[command(
        after_help = "Examples:\n  redirect-ctl route set example.com --gateway mx2\n  redirect-ctl route set .example.com --group out --note \"ticket 7\"\n  \
                      redirect-ctl route set '*' --class guests --size 1000000.. --gateway bulk"
    )]
    Set(RouteSet),
    /// Delete a route; or with --within, --target or --class all of those, after their number was confirmed
    #[command(
        after_help = "Examples:\n  redirect-ctl route delete example.com\n  redirect-ctl route delete '*;class=guests;size=1000000..'\n  \
                      redirect-ctl route delete --target mx2 --yes"
    )]
    Delete(RouteDelete),
    /// Put the routes of a file, all or none, after what would change was confirmed
    #[command(
        after_help = "Examples:\n  redirect-ctl route import routes.csv --dry-run\n  redirect-ctl route import routes.json --replace --yes\n  \
                      redirect-ctl route import --format transport /etc/postfix/transport\n  ssh mx cat routes.csv | redirect-ctl route import --format csv --yes -"
    )]
    Import(RouteImport),
    /// Print all routes as a file
    #[command(after_help = "Example:\n  redirect-ctl route export --format csv > routes.csv")]
    Export {
        #[arg(long, value_parser = word::<RouteFormat>(RouteFormat::WORDS))]
        format: RouteFormat,
    },
}

#[derive(Debug, Args)]
pub struct RouteImport {
    /// "-" for standard input
    pub file: PathBuf,
    /// Its form: CSV, JSON, or the text of Postfix's transport(5) [default: by the file's ending]
    #[arg(long, value_parser = word::<RouteFormat>(RouteFormat::WORDS))]
    pub format: Option<RouteFormat>,
    /// Delete the routes that the file does not name
    #[arg(long)]
    pub replace: bool,
}

const ROUTE_KEY: &str = "As `route list` shows it, such as example.com, .example.com, * or '*;class=guests'";

#[derive(Debug, Args)]
pub struct RouteList {
    #[command(flatten)]
    pub filter: RouteFilter,
    /// Rows at most
    #[arg(long, default_value_t = limits::PAGE_ROWS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Every row
    #[arg(long, conflicts_with = "limit")]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct RouteFilter {
    /// Only routes of this domain and of those below it
    #[arg(long, value_name = "DOMAIN")]
    pub within: Option<Domain>,
    /// Only routes to this gateway or group
    #[arg(long, value_name = "NAME")]
    pub target: Option<Name>,
    /// Only routes on the condition of this class
    #[arg(long)]
    pub class: Option<Name>,
}

#[derive(Debug, Args)]
pub struct RouteSet {
    /// example.com, .example.com for what is below it, or * for the rest; conditions may follow as `route list` shows them
    pub key: RouteKey,
    /// The gateway that takes the mail
    #[arg(long, required_unless_present = "group", conflicts_with = "group")]
    pub gateway: Option<Name>,
    /// The group that takes the mail
    #[arg(long)]
    pub group: Option<Name>,
    /// Among the routes of one domain, the lowest is asked first [default: 100]
    #[arg(long, value_name = "N")]
    pub order: Option<u16>,
    /// Only for senders of this domain: example.com, .example.com, or <> for notifications
    #[arg(long, value_name = "PATTERN")]
    pub sender: Option<SenderPattern>,
    /// Only for subscribers of this class
    #[arg(long)]
    pub class: Option<Name>,
    /// Only for messages of so many octets
    #[arg(long, value_name = "MIN..MAX", value_parser = routes::size_range)]
    pub size: Option<SizeRange>,
    /// Only for messages of these priorities
    #[arg(long, value_name = "MIN..MAX", value_parser = routes::priority_range, allow_hyphen_values = true)]
    pub priority: Option<PriorityRange>,
    #[arg(long, default_value = "")]
    pub note: String,
}

#[derive(Debug, Args)]
pub struct RouteDelete {
    #[arg(help = ROUTE_KEY, required_unless_present_any = ["within", "target", "class"], conflicts_with_all = ["within", "target", "class"])]
    pub key: Option<RouteKey>,
    #[command(flatten)]
    pub filter: RouteFilter,
}

#[derive(Debug, Subcommand)]
pub enum ManagedDomainVerb {
    /// List managed domains
    #[command(after_help = "Example:\n  redirect-ctl managed-domain list")]
    List,
    /// Show one managed domain
    #[command(after_help = "Example:\n  redirect-ctl managed-domain get example.org")]
    Get { domain: Domain },
    /// Create a managed domain, or replace it
    #[command(
        after_help = "Examples:\n  redirect-ctl managed-domain set example.org\n  redirect-ctl managed-domain set example.org --gateway mx1"
    )]
    Set(ManagedDomainSet),
    /// Delete a managed domain
    #[command(after_help = "Example:\n  redirect-ctl managed-domain delete example.org")]
    Delete { domain: Domain },
}

#[derive(Debug, Args)]
pub struct ManagedDomainSet {
    pub domain: Domain,
    /// The gateway that takes its mail [default: that of the route *]
    #[arg(long, conflicts_with = "group")]
    pub gateway: Option<Name>,
    /// The group that takes its mail
    #[arg(long)]
    pub group: Option<Name>,
}

#[derive(Debug, Subcommand)]
pub enum CertificateVerb {
    /// List certificates
    #[command(after_help = "Example:\n  redirect-ctl certificate list")]
    List,
    /// Show one certificate; with -o json its chain too
    #[command(after_help = "Example:\n  redirect-ctl certificate get relay -o json")]
    Get { name: Name },
    /// Create a certificate, or replace it: sessions that begin afterwards are shown this one
    #[command(
        after_help = "Examples:\n  redirect-ctl certificate set relay --chain-file fullchain.pem --key-file privkey.pem\n  \
                      redirect-ctl class set guests --action redirect --relay embedded --tls offer --certificate relay"
    )]
    Set(CertificateSet),
    /// Delete a certificate that no class names
    #[command(after_help = "Example:\n  redirect-ctl certificate delete relay")]
    Delete { name: Name },
}

#[derive(Debug, Args)]
pub struct CertificateSet {
    pub name: Name,
    /// The chain in PEM, our own certificate first; "-" for standard input
    #[arg(long, value_name = "FILE")]
    pub chain_file: PathBuf,
    /// Its private key in PEM; "-" for standard input [default: the known one]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum UserVerb {
    /// List users
    #[command(after_help = "Example:\n  redirect-ctl user list")]
    List,
    /// Show one user
    #[command(after_help = "Example:\n  redirect-ctl user get anna")]
    Get { name: Username },
    /// Create a user, or give it another password
    #[command(after_help = "Examples:\n  redirect-ctl user set anna --password-file /root/anna.password\n  \
                      pass show anna | redirect-ctl user set anna@example.net --password-file -")]
    Set(UserSet),
    /// Delete a user
    #[command(after_help = "Example:\n  redirect-ctl user delete anna")]
    Delete { name: Username },
}

#[derive(Debug, Args)]
pub struct UserSet {
    pub name: Username,
    /// The password is the first line of this file, or of standard input for "-"
    #[arg(long, value_name = "FILE")]
    pub password_file: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Make a token and print it, this once
    #[command(
        after_help = "Examples:\n  redirect-ctl token create prometheus --role viewer > /etc/prometheus/redirect.token\n  \
                      redirect-ctl token create portal --role integrator --within 10.20.0.0/16 --ttl 8760h"
    )]
    Create(TokenCreate),
    /// List tokens, without their texts
    #[command(after_help = "Example:\n  redirect-ctl token list")]
    List,
    /// Make a token useless, from now on
    #[command(after_help = "Example:\n  redirect-ctl token revoke portal")]
    Revoke { name: Name },
}

#[derive(Debug, Args)]
pub struct TokenCreate {
    pub name: Name,
    /// What it may do
    #[arg(long, value_parser = word::<AccessRole>(AccessRole::WORDS))]
    pub role: AccessRole,
    /// Only subscribers inside this prefix; for integrators
    #[arg(long, value_name = "PREFIX")]
    pub within: Option<Prefix>,
    /// How long it is good for [default: until it is revoked]
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "expires")]
    pub ttl: Option<Duration>,
    /// Until when it is good (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub expires: Option<Time>,
}

#[derive(Debug, Subcommand)]
pub enum AuditVerb {
    /// Show the newest records
    #[command(
        after_help = "Examples:\n  redirect-ctl audit list\n  redirect-ctl audit list --since 24h\n  redirect-ctl -o json audit list --all"
    )]
    List(AuditList),
    /// Print records as they are made, until interrupted
    #[command(after_help = "Example:\n  redirect-ctl audit watch")]
    Watch,
}

#[derive(Debug, Args)]
pub struct AuditList {
    /// The last so many
    #[arg(long, default_value_t = limits::PAGE_ROWS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::PAGE_ROWS_MAX)))]
    pub limit: u32,
    /// All that are not older than this
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "limit")]
    pub since: Option<Duration>,
    /// All that there are
    #[arg(long, conflicts_with_all = ["limit", "since"])]
    pub all: bool,
}

/// Decides what happens to subscribers' port-25 flows.
#[derive(Debug, Parser)]
#[command(
    name = "redirectd",
    version,
    after_help = "Example:\n  redirectd --config /etc/redirect/redirectd.toml --check\n\nThe filter of the log is RUST_LOG, such as \
                  RUST_LOG=debug.\nExit codes: 0 ok, 1 error, 2 bad configuration or usage"
)]
pub struct DaemonCli {
    /// The bootstrap file
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    pub config: PathBuf,
    /// Check the file and leave
    #[arg(long)]
    pub check: bool,
    /// Programs to load in place of those that came along: for tests of upgrades
    #[arg(long, value_name = "FILE", hide = true)]
    pub object: Option<PathBuf>,
}

fn label(text: &str) -> Result<(String, String), desired::Invalid> {
    let pair = text.split_once('=').map(|(name, text)| (name.to_owned(), text.to_owned()));
    pair.ok_or_else(|| desired::Invalid(format!("{text:?} is not NAME=TEXT")))
}

fn priority(text: &str) -> Result<Priority, desired::Invalid> {
    let number = text.parse::<i64>().map_err(|_| desired::Invalid(format!("{text:?} is not a number")))?;
    Priority::try_from(number)
}

/// A word of a fixed list, so that --help and mistakes show the list.
fn word<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: std::str::FromStr<Err = dataplane::UnknownWord> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| word.parse::<T>())
}

/// A word of a type that knows its words for the API.
fn serde_word<T: DeserializeOwned + Clone + Send + Sync + 'static>(
    words: &'static [&'static str],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(words).try_map(|word| serde_json::from_value(word.into()))
}

/// `COUNT/PERIOD`, or `COUNT/PERIOD:BURST`.
fn rate(text: &str) -> Result<Rate, String> {
    let wrong =
        || format!("{text:?} is not a rate: give COUNT/PERIOD[:BURST] such as 100/1h or 100/1h:20, of a day at most");
    let (rate, burst) = text.split_once(':').map_or((text, None), |(rate, burst)| (rate, Some(burst)));
    let (count, period) = rate.split_once('/').ok_or_else(wrong)?;
    let count: u64 = count.parse().map_err(|_| wrong())?;
    let burst = burst.map_or(Ok(count), |burst| burst.parse().map_err(|_| wrong()))?;
    let period = duration(period)?;
    Rate::new(count, period, burst).filter(|_| period.subsec_nanos() == 0).ok_or_else(wrong)
}

/// `KIND=RATE`.
/// The kinds are the members of `Q`.
fn rate_of<Q: DeserializeOwned>(text: &str) -> Result<(String, Rate), String> {
    let (kind, text) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KIND=COUNT/PERIOD[:BURST]"))?;
    let rate = rate(text)?;
    let mut members = serde_json::Map::new();
    members.insert(kind.to_owned(), serde_json::to_value(rate).map_err(|error| error.to_string())?);
    serde_json::from_value::<Q>(members.into()).map_err(|error| error.to_string())?;
    Ok((kind.to_owned(), rate))
}

/// `DELAY..MAX`.
fn tarpit(text: &str) -> Result<Tarpit, String> {
    let (delay, delay_max) =
        text.split_once("..").ok_or_else(|| format!("{text:?} is not DELAY..MAX such as 1s..60s"))?;
    Ok(Tarpit { delay: duration(delay)?, delay_max: duration(delay_max)? })
}

/// `ADDRESS`, or `ADDRESS=HELO`.
fn egress(text: &str) -> Result<EgressAddress, String> {
    let (address, helo) = text.split_once('=').map_or((text, None), |(address, helo)| (address, Some(helo)));
    let address = address.parse().map_err(|_| format!("{address:?} is not an IP address"))?;
    let helo = helo.map(str::parse).transpose().map_err(|error: redirect_relay::InvalidDomain| error.to_string())?;
    Ok(EgressAddress { address, helo })
}

/// `GATEWAY`, or `GATEWAY:RANK`.
fn member(text: &str) -> Result<Member, String> {
    let (name, rank) = text.split_once(':').unwrap_or((text, "0"));
    let rank = rank.parse().map_err(|_| format!("{text:?} is not GATEWAY or GATEWAY:RANK"))?;
    let gateway = name.parse().map_err(|error: redirect_relay::gateway::NameInvalid| error.to_string())?;
    Ok(Member { gateway, rank })
}

/// A duration that a lock may have, in whole seconds.
fn lock_duration(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    let most = Duration::from_secs(limits::LOCK_S_MAX.into());
    if duration.subsec_nanos() != 0 || duration > most {
        return Err(format!("{text:?} is not a lock's duration: give whole seconds, 30 days (720h) at most"));
    }
    Ok(duration)
}

/// `10s`, `8h`, `1h 30m`: more than nothing, a century at most.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration: give one such as 10s, 30m or 8h");
    let duration: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    let duration = Duration::try_from(duration).map_err(|_| wrong())?;
    if duration.is_zero() || duration > limits::DURATION_MAX { Err(wrong()) } else { Ok(duration) }
}
