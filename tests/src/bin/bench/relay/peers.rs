//! The relays that ours is measured beside: Debian's, each set up as a careful administrator would for this task, and with as many workers as
//! there are CPUs where it asks for a number.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::{Group, User};
use redirect_tests::{Lab, postfix, unpacked};

use super::{
    authority::Authority,
    site::{PEER, Running, SESSIONS_MAX, SINK},
    tls::Certificate,
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Octets as they come: it knows no SMTP.
    Haproxy,
    NginxMail,
    /// With a buffer that takes a whole message. Without it nginx waits for the sink's delayed acknowledgment.
    NginxMail64k,
    /// With its default buffer, and STARTTLS.
    NginxMailTls,
    /// Postfix that hands mail on while the client waits.
    PostfixProxyFilter,
    /// Postfix with a queue: its rate is what it accepts, its CPU time that of handing on as well.
    PostfixRelay,
}

impl Peer {
    /// Those that are sent mail in clear.
    pub(crate) const ALL: [Self; 5] =
        [Self::Haproxy, Self::NginxMail, Self::NginxMail64k, Self::PostfixProxyFilter, Self::PostfixRelay];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::NginxMail => "nginx_mail",
            Self::NginxMail64k => "nginx_mail_64k",
            Self::NginxMailTls => "nginx_mail_tls",
            Self::PostfixProxyFilter => "postfix_proxy_filter",
            Self::PostfixRelay => "postfix_relay",
        }
    }
}

/// Starts a peer in the lab's router.
pub(crate) fn start(peer: Peer, lab: &Lab) -> Result<Running> {
    match peer {
        Peer::Haproxy => haproxy(lab),
        Peer::NginxMail => nginx(lab, ""),
        Peer::NginxMail64k => nginx(lab, "smtp_client_buffer 64k;"),
        Peer::NginxMailTls => {
            let Certificate { chain, key } = Certificate::new(lab.folder())?;
            let (chain, key) = (chain.display(), key.display());
            nginx(lab, &format!("starttls on; ssl_certificate {chain}; ssl_certificate_key {key};"))
        }
        Peer::PostfixProxyFilter => postfix(lab, &format!("\n  -o smtpd_proxy_filter=inet:{SINK}")),
        Peer::PostfixRelay => postfix(lab, ""),
    }
}

fn program(package: &str) -> Result<PathBuf> {
    let file = unpacked(package)?.join("usr/sbin").join(package);
    ensure!(file.is_file(), "{} is missing: `cargo xtask bench relay` unpacks it", file.display());
    Ok(file)
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

fn haproxy(lab: &Lab) -> Result<Running> {
    let file = lab.folder().join("haproxy.cfg");
    let text = format!(
        "defaults
  mode tcp
  timeout connect 30s
  timeout client 5m
  timeout server 5m
listen mail
  bind {PEER}
  server sink {SINK}
"
    );
    write(&file, &text)?;
    let mut command = Command::new(program("haproxy")?);
    let daemon = lab.start(&lab.router, "haproxy", command.arg("-db").arg("-f").arg(&file))?;
    Ok(Running { daemon, _authority: None, queue: None })
}

fn nginx(lab: &Lab, more: &str) -> Result<Running> {
    let authority = Authority::start(&lab.router)?;
    let (folder, module) =
        (lab.folder().display(), unpacked("nginx")?.join("usr/lib/nginx/modules/ngx_mail_module.so"));
    let file = lab.folder().join("nginx.conf");
    let text = format!(
        "load_module {module};
daemon off;
user nobody nogroup;
worker_processes auto;
pid {folder}/nginx.pid;
events {{ worker_connections {connections}; }}
mail {{
  server_name relay.example.net;
  auth_http {authority}/;
  xclient off;
  server {{
    listen {PEER};
    protocol smtp;
    smtp_auth none;
    {more}
  }}
}}
",
        module = module.display(),
        // One to the client, one to the sink.
        connections = 2 * SESSIONS_MAX,
        authority = authority.address,
    );
    write(&file, &text)?;
    let mut command = Command::new(program("nginx")?);
    command.arg("-e").arg(lab.folder().join("nginx-error.log")).arg("-c").arg(&file);
    let daemon = lab.start(&lab.router, "nginx", &mut command)?;
    Ok(Running { daemon, _authority: Some(authority), queue: None })
}

/// Users that every Debian has: the package's own exist only where it is installed.
const MAIL_OWNER: &str = "daemon";
const PRIVILEGES: &str = "nobody";
const SETGID_GROUP: &str = "operator";

/// Postfix without DNS, without look-ups of clients' names, and with a process for each of the clients that it is measured with.
fn postfix(lab: &Lab, smtpd_options: &str) -> Result<Running> {
    let commands = postfix::program("smtp-sink")?;
    let sbin = Path::new(commands.get_program()).parent().context("a program lies in a folder")?;
    let library = sbin.parent().context("sbin lies in a folder")?.join("lib/postfix");
    let folder = lab.folder().join("postfix");
    let queue = folder.join("queue");
    let master_cf = format!(
        "{PEER} inet n - n - - smtpd{smtpd_options}
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n - 0 flush
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
proxymap unix - - n - - proxymap
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"
    );
    let main_cf = format!(
        "compatibility_level = 3.6
queue_directory = {queue}
data_directory = {folder}/data
command_directory = {sbin}
daemon_directory = {library}/sbin
shlib_directory = {library}
meta_directory = {folder}
mail_owner = {MAIL_OWNER}
default_privs = {PRIVILEGES}
setgid_group = {SETGID_GROUP}
import_environment = MAIL_CONFIG TZ LANG=C LD_LIBRARY_PATH={library}
maillog_file = {folder}/mail.log
maillog_file_prefixes = {folder}
myhostname = relay.example.net
mydestination =
local_recipient_maps =
mynetworks = 10.20.0.0/16
inet_protocols = ipv4
disable_dns_lookups = yes
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_mynetworks, reject
relayhost = [{sink}]:{port}
alias_maps =
default_process_limit = 200
",
        folder = folder.display(),
        queue = queue.display(),
        sbin = sbin.display(),
        library = library.display(),
        sink = SINK.ip(),
        port = SINK.port(),
    );
    make_queue(&folder)?;
    write(&folder.join("main.cf"), &main_cf)?;
    write(&folder.join("master.cf"), &master_cf)?;
    let mut command = Command::new(library.join("sbin/master"));
    command.arg("-d").arg("-c").arg(&folder).env("LD_LIBRARY_PATH", &library);
    let daemon = lab.start(&lab.router, "postfix", &mut command)?;
    Ok(Running { daemon, _authority: None, queue: Some(queue) })
}

/// The folders that Postfix's start script makes, with the rights that postfix-files(5) gives them.
fn make_queue(folder: &Path) -> Result<()> {
    let owner = User::from_name(MAIL_OWNER)?.with_context(|| format!("no user {MAIL_OWNER}"))?.uid.as_raw();
    let group = Group::from_name(SETGID_GROUP)?.with_context(|| format!("no group {SETGID_GROUP}"))?.gid.as_raw();
    let make = |path: PathBuf, mode: u32, owner: u32, group: Option<u32>| {
        fs::create_dir(&path)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
            .and_then(|()| chown(&path, Some(owner), group))
            .with_context(|| format!("make {}", path.display()))
    };
    make(folder.to_path_buf(), 0o755, 0, None)?;
    make(folder.join("data"), 0o700, owner, None)?;
    let queue = folder.join("queue");
    make(queue.clone(), 0o755, 0, None)?;
    make(queue.join("pid"), 0o755, 0, None)?;
    make(queue.join("public"), 0o710, owner, Some(group))?;
    make(queue.join("maildrop"), 0o730, owner, Some(group))?;
    let private =
        ["active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"];
    private.into_iter().try_for_each(|name| make(queue.join(name), 0o700, owner, None))
}

/// Messages in a folder of the queue, which may spread them over folders of its own.
pub(crate) fn queued(queue: &Path, name: &str) -> Result<usize> {
    let folder = queue.join(name);
    let entries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    let counts = entries.flatten().map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => queued(&folder, &entry.file_name().to_string_lossy()),
        _ => Ok(1),
    });
    counts.sum()
}
