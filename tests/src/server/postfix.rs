//! Postfix: as a gateway, and as an ordinary mail server that sends.

use std::{fs, net::IpAddr, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{COMMAND, DELIVERED, DOMAIN, HOSTNAME, PORT, READY, SIZE_MAX, TLS_PORT, Terms, fill_passwords};
use crate::{
    lab::Lab,
    netns::Namespace,
    process::{Daemon, wait_until},
    root::{MAILBOX, POSTDROP, POSTFIX, Root, SYSTEM},
};

/// What lies over the host's `/usr`: nothing where Postfix is installed.
pub(super) fn packages() -> &'static [&'static str] {
    if Path::new("/usr/lib/postfix/sbin/master").is_file() { &["sasl"] } else { &["postfix", "sasl"] }
}

const MAIN: &str = "compatibility_level = 3.6
queue_directory = /var/spool/postfix
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
data_directory = /var/lib/postfix
mail_owner = postfix
setgid_group = postdrop
maillog_file = /var/log/postfix.log
alias_maps =
alias_database =
mydestination =
default_process_limit = 100
smtputf8_enable = yes
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
";

const MASTER: &str = "postlog unix-dgram n - n - 1 postlogd
pickup unix n - n 1 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
smtp unix - - n - - smtp
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
tlsmgr unix - - n 1000? 1 tlsmgr
scache unix - - n - 1 scache
proxymap unix - - n - - proxymap
showq unix n - n - - showq
";

/// Makes what installing the package would, and the command that starts it.
fn install(root: &Root, main: &str, master: &str) -> Result<Command> {
    root.folder("etc/postfix", SYSTEM, 0o755)?;
    root.file("etc/postfix/main.cf", [MAIN, main].concat(), SYSTEM, 0o644)?;
    root.file("etc/postfix/master.cf", [MASTER, master].concat(), SYSTEM, 0o644)?;
    root.folder("var/lib/postfix", POSTFIX, 0o700)?;
    root.folder("var/spool/postfix", SYSTEM, 0o755)?;
    let own =
        ["active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"];
    for name in own {
        root.folder(&format!("var/spool/postfix/{name}"), POSTFIX, 0o700)?;
    }
    root.folder("var/spool/postfix/pid", SYSTEM, 0o755)?;
    for name in ["maildrop", "public"] {
        root.folder(&format!("var/spool/postfix/{name}"), POSTDROP, 0o730)?;
        std::os::unix::fs::chown(root.path(&format!("var/spool/postfix/{name}")), Some(POSTFIX.id()), None)?;
    }
    let mut command = root.command("/usr/lib/postfix/sbin/master");
    command.args(["-c", "/etc/postfix", "-d"]);
    Ok(command)
}

pub(super) fn prepare(root: &Root, host: &Namespace, terms: Terms) -> Result<Command> {
    let mut main = format!(
        "myhostname = {HOSTNAME}
mynetworks =
smtpd_relay_restrictions = reject_unauth_destination
message_size_limit = {SIZE_MAX}
virtual_mailbox_domains = {DOMAIN}
virtual_mailbox_base = /mails
virtual_mailbox_maps = static:box/
virtual_mailbox_limit = 0
virtual_uid_maps = static:{user}
virtual_gid_maps = static:{user}
",
        user = MAILBOX.id()
    );
    let mut master = format!("{PORT} inet n - n - - smtpd\n");
    if let Some(certificate) = terms.certificate {
        root.file("etc/key.pem", certificate.key(), SYSTEM, 0o600)?;
        main +=
            "smtpd_tls_security_level = may\nsmtpd_tls_cert_file = /etc/cert.pem\nsmtpd_tls_key_file = /etc/key.pem\n";
        let port = TLS_PORT.to_string();
        master.extend([port.as_str(), " inet n - n - - smtpd\n -o smtpd_tls_wrappermode=yes\n"]);
    }
    if let Some(account) = terms.account {
        fill_passwords(root, host, account, POSTFIX)?;
        main += "smtpd_sasl_auth_enable = yes
smtpd_sasl_local_domain = $myhostname
smtpd_sasl_security_options = noanonymous
smtpd_recipient_restrictions = permit_sasl_authenticated, reject
";
    }
    let command = install(root, &main, &master)?;
    root.folder("etc/postfix/sasl", SYSTEM, 0o755)?;
    let mechanisms = "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN LOGIN SCRAM-SHA-256\n";
    root.file("etc/postfix/sasl/smtpd.conf", mechanisms, SYSTEM, 0o644)?;
    Ok(command)
}

/// A Postfix that sends all mail to one server.
pub struct Sender {
    // Stopped by dropping it.
    _daemon: Daemon,
    root: Root,
}

impl Sender {
    /// Its connections come from `address` and go to port 25 of `server`.
    pub fn start(lab: &Lab, host: &Namespace, address: IpAddr, server: IpAddr) -> Result<Self> {
        let (name, bind) =
            if address.is_ipv4() { ("sender", "smtp_bind_address") } else { ("sender6", "smtp_bind_address6") };
        let root = Root::new(lab, name, packages())?;
        let main = format!(
            "myhostname = mail.client.example\nrelayhost = [{server}]:25\n{bind} = {address}\nsmtp_host_lookup = native\nmaximal_backoff_time = 3s\n\
             minimal_backoff_time = 3s\nqueue_run_delay = 3s\n"
        );
        let mut daemon = lab.start(host, name, &mut install(&root, &main, "")?)?;
        let pickup = root.path("var/spool/postfix/public/pickup");
        daemon.wait_until_ready(READY, |_| Ok(pickup.exists()))?;
        Ok(Self { _daemon: daemon, root })
    }

    /// Puts a message into its queue; lines end with LF.
    pub fn submit(&self, host: &Namespace, from: &str, to: &[&str], message: &[u8]) -> Result<()> {
        self.root.file("tmp/message", message, SYSTEM, 0o644)?;
        let mut command = self.root.command("sh");
        command.args(["-c", "exec /usr/sbin/sendmail -i \"$@\" < /tmp/message", "sh", "-f", from]).args(to);
        let finished = host.run(&mut command, COMMAND)?;
        ensure!(finished.status.success(), "sendmail: {}{}", finished.stderr, finished.stdout);
        Ok(())
    }

    /// Waits until nothing is left in its queue.
    pub fn wait_until_sent(&self) -> Result<()> {
        let sent = wait_until("empty queue", DELIVERED, || {
            for queue in ["maildrop", "incoming", "active", "deferred"] {
                let folder = self.root.path("var/spool/postfix").join(queue);
                if !is_empty(&folder)? {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        });
        sent.with_context(|| self.log())
    }

    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.root.path("var/log/postfix.log")).unwrap_or_default()
    }
}

/// Whether no file is in a queue, which may be split over folders of one letter.
fn is_empty(queue: &Path) -> Result<bool> {
    for entry in fs::read_dir(queue).with_context(|| format!("list {}", queue.display()))? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() || !is_empty(&entry.path())? {
            return Ok(false);
        }
    }
    Ok(true)
}
