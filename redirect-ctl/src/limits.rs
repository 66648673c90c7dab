//! Every bound of the control plane in one place: sizes, counts, waits. Units stand last in the names.

use std::time::Duration;

use redirect_common::{maps, policy::POOL_SLOTS};

/// Bytes of a request body, files of routes apart. The largest legitimate one is a thousand keys of routes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a request's head (request line and headers).
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Connections to all API sockets together; those beyond wait in the kernel's accept queue.
pub const API_CONNECTIONS_MAX: usize = 256;
/// A client has this long to send a request's head, which also bounds an idle kept-alive connection.
pub const API_HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A request is answered within this time, body and store included.
pub const API_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A change waits this long for the kernel to hold it before it is answered with `Redirect-Applied: false`.
pub const API_APPLY_WAIT: Duration = Duration::from_secs(2);
/// Requests in flight at a stop have this long to finish.
pub const API_DRAIN: Duration = Duration::from_secs(2);
/// How often a merge patch is tried while others change its resource: more than there are API connections that could.
pub const PATCH_ATTEMPTS_MAX: usize = 300;
/// Rows of a page where the request does not say.
pub const PAGE_ROWS_DEFAULT: u32 = 100;
/// Rows of a page at most; the cursor leads to the rest.
pub const PAGE_ROWS_MAX: u32 = 1_000;
/// Bytes of a host name (RFC 1035 section 2.3.4).
pub const HOST_BYTES_MAX: usize = 253;
/// Bytes of an interface's name (`IFNAMSIZ` less the NUL).
pub const INTERFACE_BYTES_MAX: usize = 15;
/// Gateways: each may hold connections of its own and is probed.
pub const GATEWAYS_MAX: u64 = 256;
/// Groups of gateways.
pub const GROUPS_MAX: u64 = 64;
/// Routes: some 300 bytes of memory each; the table is built anew, from all of them, when gateways, groups, classes or managed domains change.
pub const ROUTES_MAX: u64 = 100_000;
/// Managed domains.
pub const MANAGED_DOMAINS_MAX: u64 = 10_000;
/// Certificates of the embedded relay.
pub const CERTIFICATES_MAX: u64 = 64;
/// A certificate that ends within this time is worth a look: two weeks, in which one that renews itself would have done so.
pub const CERTIFICATE_WARNING_S: i64 = 14 * 24 * 60 * 60;
/// Users of the embedded relay: each is some 200 bytes of memory, and all are read anew for each change of one.
pub const USERS_MAX: u64 = 10_000;
/// Bytes of a user's name.
pub const USERNAME_BYTES_MAX: usize = 255;
/// Bytes of a user's password.
pub const PASSWORD_BYTES_MAX: usize = 255;
/// Prefixes of a class's list of who may send without AUTH, of each kind.
pub const ACCESS_PREFIXES_MAX: usize = 256;
/// Bytes of a file of routes: [`ROUTES_MAX`] lines of 160 bytes.
pub const IMPORT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Imports of subscribers at the same time: each holds its whole file, in a form of some 120 bytes a line.
pub const IMPORTS_MAX: usize = 1;
/// How long an import waits for its place.
pub const IMPORT_PLACE_WAIT: Duration = Duration::from_secs(2);
/// Exports of subscribers at the same time: each keeps a reader of the store busy.
pub const EXPORTS_MAX: usize = 2;
/// An import of subscribers is answered within this time, the file's upload included.
pub const IMPORT_TIMEOUT: Duration = Duration::from_mins(5);
/// An import waits this long for the kernel to hold it: a million subscribers take some seconds.
pub const IMPORT_APPLY_WAIT: Duration = Duration::from_secs(30);
/// Who neither sends the next piece of a file nor takes it within this time is given up.
pub const BODY_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Pieces of a file that wait to be read, each as large as the connection's buffer.
pub const IMPORT_QUEUE_MAX: usize = 16;
/// Bytes of a file of subscribers; how many there may be is bounded by the kernel's tables.
pub const SUBSCRIBERS_BYTES_MAX: usize = 2 * 1024 * 1024 * 1024;
/// Bytes of a line of it: twice what one takes that has all labels, each character of them escaped.
pub const LINE_OF_FILE_BYTES_MAX: usize = 64 * 1024;
/// Faults of a file that an answer tells.
pub const LINE_FAULTS_MAX: usize = 100;
/// Bytes of an idempotency key.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Bytes that an export gathers before it sends them.
pub const EXPORT_CHUNK_BYTES: usize = 64 * 1024;
/// Chunks of an export that wait for its reader.
pub const EXPORT_QUEUE_MAX: usize = 8;
/// Bytes of a configuration as a whole: [`ROUTES_MAX`] routes of 250 bytes, and some room.
pub const CONFIGURATION_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Nodes of a YAML file that holds one: a route of six members has 13, and a gateway hardly more than 60.
pub const YAML_NODES_MAX: usize = 2_000_000;
/// A configuration as a whole is answered within this time: with [`ROUTES_MAX`] routes it is seconds of work.
pub const CONFIGURATION_TIMEOUT: Duration = Duration::from_mins(1);
/// Resources of each kind of change that a diff lists.
pub const DIFF_LISTED_MAX: usize = 1_000;
/// Faults of a document that an answer lists.
pub const FAULTS_LISTED_MAX: usize = 100;
/// States of the configuration that the history keeps.
pub const HISTORY_MAX: usize = 50;
/// Bytes of their documents together; what does not change from one to the next counts once. Beyond it fewer are kept, two at least.
pub const HISTORY_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The shortest and the longest time that a commit may wait for its confirmation: seconds are enough for a script, a day for a night.
pub const CONFIRM_S: (u64, u64) = (1, 24 * 60 * 60);
/// Bytes of a commit's comment.
pub const COMMENT_BYTES_MAX: usize = 1_000;
/// Bytes of the name of who commits.
pub const AUTHOR_BYTES_MAX: usize = 100;
/// Changes of each kind that an answer lists.
pub const IMPORT_LISTED_MAX: usize = 100;
/// Verifications of gateways at the same time: each connects to wherever its request says.
pub const VERIFICATIONS_MAX: usize = 4;
/// A verification is answered within this time; its stages have deadlines of their own.
pub const VERIFY_TIMEOUT: Duration = Duration::from_mins(3);
/// Interfaces, those of the file included.
pub const INTERFACES_MAX: u64 = 1_024;

/// Bytes of a session, a user, or the text of a label: what an attribute of RADIUS takes (RFC 2865 section 5).
pub const SUBSCRIBER_TEXT_BYTES_MAX: usize = 253;
/// Labels of a fact about a subscriber.
pub const LABELS_MAX: usize = 16;
/// Bytes of a label's name.
pub const LABEL_NAME_BYTES_MAX: usize = 64;
/// Extensions of facts that are known in memory only, some 60 bytes each; beyond it they are written at once.
pub const EXTENSIONS_MAX: usize = 1_048_576;

/// Relays of one class: half the places of a pool, so that weights have room to differ.
pub const POOL_RELAYS_MAX: usize = POOL_SLOTS / 2;
/// Connections: the most that a limit of a class can say, far above what one subscriber has.
pub const COUNT_LIMIT_MAX: u32 = 1_000_000;
/// How long a lock of a class lasts where the class does not say, in seconds.
pub const LOCK_S_DEFAULT: u32 = 600;
/// The longest lock, in seconds: 30 days.
pub const LOCK_S_MAX: u32 = 30 * 24 * 60 * 60;

/// How often a relay is asked whether it lives, where the file does not say.
pub const HEALTH_INTERVAL_S: u32 = 5;
/// Its greeting comes within this time, connecting included, where the file does not say.
pub const HEALTH_TIMEOUT_S: u32 = 3;
/// Failed probes in a row after which a relay counts as down, where the file does not say.
pub const HEALTH_DOWN_AFTER: u32 = 3;
/// Good probes in a row after which it counts as up again, where the file does not say.
pub const HEALTH_UP_AFTER: u32 = 2;
/// Probes come earlier or later than the interval by up to this part of it, so that they do not march in step.
pub const HEALTH_JITTER_PERCENT: u64 = 10;
/// Probes at the same time; others wait for their turn.
pub const HEALTH_PROBES_MAX: usize = 32;
/// Bytes of a relay's greeting that a probe reads; RFC 5321 section 4.5.3.1.5 has 512 for a line.
pub const HEALTH_GREETING_BYTES_MAX: usize = 4_096;
/// Characters of a relay's greeting that an error quotes.
pub const HEALTH_QUOTE_MAX: usize = 80;

/// Groups of a local user that are looked at: the kernel's own bound (`NGROUPS_MAX`).
pub const PEER_GROUPS_MAX: usize = 65_536;
/// Tokens: all of them are in memory, and each change writes the file anew.
pub const TOKENS_MAX: usize = 1_000;
/// Bytes of each file of the audit: some 40,000 records.
pub const AUDIT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Files of the audit; the oldest goes when another one begins.
pub const AUDIT_FILES: usize = 8;
/// Bytes of a path that a record of the audit shows.
pub const AUDIT_PATH_BYTES_MAX: usize = 1_024;
/// Bytes of a line of the audit: the path, which JSON may make six times as long, and the rest.
pub const AUDIT_LINE_BYTES_MAX: u64 = 16 * 1024;
/// Refusals that the audit lists, in each second and at once; those beyond are counted, so that who is refused cannot push out the rest.
pub const AUDIT_REFUSALS: (u64, u64) = (10, 200);
/// Requests of one caller in each second where the file does not say; twice as many at once.
pub const REQUESTS_PER_SECOND: u32 = 2_000;
/// Failed authentications of one address (IPv6: /64) in each minute, all of which may come at once.
pub const AUTH_FAILURES_PER_MINUTE: u64 = 30;
/// Callers and addresses whose rates are remembered at the same time, of each kind.
pub const RATES_MAX: usize = 4_096;
/// Bytes of a client's own `X-Request-Id`.
pub const REQUEST_ID_BYTES_MAX: usize = 64;
/// Connections to all TCP listeners together; apart from those of the Unix sockets, so that the network cannot shut the router's own tools out.
pub const API_TCP_CONNECTIONS_MAX: usize = 256;
/// Connections from one address (IPv6: /64).
pub const API_TCP_CONNECTIONS_OF_ONE_MAX: usize = 64;
/// A client on TCP has this long for the TLS handshake, and for the head of each request.
pub const API_TCP_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// What was sent to a client on TCP and is not acknowledged, or not taken, for so long ends the connection.
pub const API_TCP_USER_TIMEOUT: Duration = Duration::from_mins(1);
/// Bytes of a body that a handler holds in memory, where [`BODY_BYTES_MAX`] would not do: a file of routes, or a configuration.
pub const LARGE_BODY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Such bodies that are taken at the same time.
pub const LARGE_BODIES_MAX: usize = 4;

/// Changes that wait for the store's writer.
pub const STORE_QUEUE_MAX: usize = 256;
/// Changes that share one commit, and so one fsync.
pub const STORE_GROUP_MAX: usize = 64;
/// Connections that read the store at the same time.
pub const STORE_READERS_MAX: usize = 4;
/// Pages of the store that a connection keeps in memory, in KiB; SQLite's own default.
pub const STORE_CACHE_KIB: i64 = 2_000;
/// The same during an import: the indexes of a million facts.
pub const IMPORT_CACHE_KIB: i64 = 64 * 1024;
/// Pages of the journal from which on a commit empties it; SQLite's own default.
pub const STORE_CHECKPOINT_PAGES: i64 = 1_000;
/// Bytes of the journal's file that stay when it has been emptied.
pub const STORE_JOURNAL_BYTES: i64 = 16 * 1024 * 1024;
/// How long the result of an import is known by its idempotency key.
pub const IMPORT_KEY_AGE_MAX_S: i64 = 24 * 60 * 60;
/// Results of imports that are known at the same time; the oldest goes.
pub const IMPORT_KEYS_MAX: u32 = 1_000;
/// Facts that one commit of the expiry removes.
pub const EXPIRY_BATCH_MAX: u32 = 1_000;
/// How often the expiry looks for facts that are due.
pub const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

/// Touched keys that wait for the reconciler; beyond it reads everything instead.
pub const TOUCHED_KEYS_MAX: usize = 10_000;
/// Questions (flows, counters) that wait for the reconciler.
pub const RECONCILE_QUEUE_MAX: usize = 64;
/// A full comparison of store and kernel happens at least this often.
pub const FULL_SYNC_INTERVAL: Duration = Duration::from_mins(5);
/// First wait after an error; doubles up to the next constant.
pub const RETRY_MIN: Duration = Duration::from_millis(200);
/// Longest wait between two attempts after errors.
pub const RETRY_MAX: Duration = Duration::from_secs(10);
/// Longest wait between two attempts to attach to an interface: a PPP device that comes back should not wait long.
pub const INTERFACE_RETRY_MAX: Duration = Duration::from_secs(2);
/// Subscribers that are written before the reconciler looks at the clock and at events again: some 50 ms.
pub const SUBSCRIBERS_STEP: usize = 16_384;
/// Longer than any program runs for a packet, where the kernel cannot say that none is running any more.
pub const PROGRAM_RUN_MAX: Duration = Duration::from_millis(100);
/// Step of the packet path's coarse clock.
pub const TICK: Duration = Duration::from_secs(1);
/// Events that each CPU reports within a second where the file does not say.
pub const EVENTS_PER_SECOND: u32 = 1_000;
/// Pace of reading them: at the default rate the ring buffer takes those of 70 CPUs in between.
pub const EVENTS_INTERVAL: Duration = Duration::from_millis(50);
/// Events that one reading takes: as many as the ring buffer holds, 64 bytes and a header of 8 each.
pub const EVENTS_BATCH_MAX: usize = maps::EVENTS_BYTES as usize / 72;
/// Events that wait for a subscriber of the daemon's; a slower one loses the oldest and is told how many.
pub const EVENTS_QUEUE_MAX: usize = 4_096;
/// Rows of the log of changes, some 60 bytes each: who was away for fewer changes than that reads on where it was.
pub const CHANGES_LOGGED_MAX: i64 = 100_000;
/// Rows of the log that one reading takes.
pub const CHANGES_READ_MAX: u32 = 256;
/// Requests that watch the changes of the configuration; an eighth of the API's connections.
pub const CHANGE_WATCHERS_MAX: usize = 32;
/// A watcher of changes hears something at least this often, so that it notices a connection that is gone.
pub const CHANGES_HEARTBEAT: Duration = Duration::from_secs(15);
/// Requests that watch flows; an eighth of the API's connections.
pub const EVENT_WATCHERS_MAX: usize = 32;

/// Pace of the collection of idle flows.
pub const COLLECT_INTERVAL: Duration = Duration::from_millis(250);
/// A sweep over all flows takes about this long where the next constant allows it.
pub const COLLECT_SWEEP: Duration = Duration::from_secs(30);
/// Entries that one step of the collection looks at, at least and at most: about 1 microsecond each, so 3 % of a CPU at most.
pub const COLLECT_ENTRIES: (usize, usize) = (512, 8_192);

/// The kernel answers a netlink request within this time.
pub const NETLINK_TIMEOUT: Duration = Duration::from_secs(5);
/// Foreign sources that are remembered: half of the neighbours that the kernel keeps by default (`gc_thresh3`, 1,024), so that forged ones
/// leave room for the rest.
pub const FOREIGN_SOURCES_MAX: usize = 512;
/// Who has not answered an ARP request by then is not there: the kernel gives up after three, a second apart.
pub const FOREIGN_SOURCE_PROBATION: Duration = Duration::from_secs(5);
/// A foreign source without a packet for so long is forgotten. Longer than the longest silence of SMTP, 10 minutes for the reply to a
/// message (RFC 5321 section 4.5.3.2.6).
pub const FOREIGN_SOURCE_IDLE_MAX: Duration = Duration::from_mins(15);

/// Attachments are removed within this time at a stop; what is left goes with the process.
pub const DETACH_WAIT: Duration = Duration::from_secs(5);
/// The longest delay of a tar-pit: clients wait 5 minutes for most replies (RFC 5321 section 4.5.3.2).
pub const TARPIT_MAX: Duration = Duration::from_mins(4);
/// Locks that the relay asks for and that wait for the kernel; those beyond are lost, and asked for again.
pub const RELAY_LOCKS_MAX: usize = 1_024;
/// Sessions of the relay have this long to finish their message at a stop.
pub const RELAY_DRAIN: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted by a listener of the relay; the kernel takes no more than `net.core.somaxconn`, 4,096 by default.
pub const RELAY_ACCEPT_QUEUE: u32 = 4_096;

/// Bytes of log lines that wait to be written: some 2,000 records of messages.
pub const LOG_BYTES_MAX: usize = 1024 * 1024;
/// A line of the log waits so long for others, so that they are written together.
pub const LOG_DELAY: Duration = Duration::from_millis(50);

/// Bytes of a line with a password, or with the answer to a question, that the CLI reads.
pub const LINE_BYTES_MAX: u64 = 1_024;
/// Bytes of an answer that the CLI accepts.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The CLI's deadline for one answer where `--timeout` does not say.
pub const CLI_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest duration that the CLI takes, a century: a point in time that far ahead is still one.
pub const DURATION_MAX: Duration = Duration::from_hours(100 * 365 * 24);

/// Bytes of what another program prints that `doctor` and `support-bundle` look at: a ruleset of tens of thousands of lines.
pub const TOOL_OUTPUT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Rows of each list in a support bundle: enough to see what is meant, and little enough to be read.
pub const BUNDLE_ROWS_MAX: u32 = PAGE_ROWS_MAX;

/// Lines of the daemon's log in a support bundle.
pub const BUNDLE_LOG_LINES: u32 = 5_000;

/// How often `--watch` looks for what is no change of the configuration, such as health: as often as a person looks on.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// How long `--watch` waits for more changes after the first of a swarm, so that it asks a few times a second at most.
pub const WATCH_DELAY: Duration = Duration::from_millis(250);

/// Keys that `top` has not looked at yet: nobody types faster than it draws.
pub const TOP_KEYS_MAX: usize = 64;

/// Operations that `/v1/kernel:diff` lists; the others are counted.
pub const DRIFT_OPERATIONS_MAX: usize = 1_000;

const _: () = assert!(PAGE_ROWS_DEFAULT <= PAGE_ROWS_MAX);
const _: () = assert!(API_APPLY_WAIT.as_secs() < API_REQUEST_TIMEOUT.as_secs());
const _: () = assert!(COLLECT_ENTRIES.0 <= COLLECT_ENTRIES.1);

/// Without a sign of the daemon for so long, it counts as down. An upgrade takes a few seconds, most of them for the verifier.
pub const DAEMON_TIMEOUT_S: u32 = 30;
