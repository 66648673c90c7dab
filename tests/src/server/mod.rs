//! Mail servers of other makers, as gateways that operators have: Postfix, Exim and `OpenSMTPD`, each in a root folder of its own.

mod certificate;
mod exim;
mod opensmtpd;
mod postfix;

use std::{
    fs, io,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

pub use self::certificate::Certificate;
pub use self::postfix::Sender;
use crate::{
    lab::Lab,
    netns::Namespace,
    process::{Daemon, Finished, wait_until},
    root::{MAILBOX, Root, SYSTEM},
};

const READY: Duration = Duration::from_secs(30);
const COMMAND: Duration = Duration::from_secs(30);
/// A server that has taken a message delivers it when it comes to that.
const DELIVERED: Duration = Duration::from_secs(30);

/// How the servers call themselves: the name in their certificate.
pub const HOSTNAME: &str = "gateway.example.net";
/// Where they take mail for; anything else they refuse.
pub const DOMAIN: &str = "internet.example";
/// Octets of a message that they take.
pub const SIZE_MAX: usize = 1024 * 1024;

/// The ports in the clear, with STARTTLS where there is a certificate, and with TLS from the first octet.
pub const PORT: u16 = 2525;
pub const TLS_PORT: u16 = 4465;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Software {
    Postfix,
    Exim,
    OpenSmtpd,
}

/// Whose mail a server takes, once it asks.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    pub name: &'static str,
    pub password: &'static str,
}

pub const ACCOUNT: Account = Account { name: "relay", password: "se:cret pass=word" };

/// What a server asks of its clients, and has for them.
#[derive(Clone, Copy, Default)]
pub struct Terms<'a> {
    pub certificate: Option<&'a Certificate>,
    /// Who does not log in is refused.
    pub account: Option<Account>,
}

pub struct MailServer {
    // Stopped by dropping it.
    _daemon: Daemon,
    root: Root,
    log: &'static str,
}

impl MailServer {
    pub fn start(lab: &Lab, host: &Namespace, software: Software, terms: Terms) -> Result<Self> {
        let name = format!("{software:?}").to_lowercase();
        let (packages, log): (&[&str], _) = match software {
            Software::Postfix => (postfix::packages(), "var/log/postfix.log"),
            Software::Exim => (&["exim", "sasl"], "var/log/exim/main"),
            Software::OpenSmtpd => (&["opensmtpd"], "var/log/output"),
        };
        let root = Root::new(lab, &name, packages)?;
        root.folder("mails", MAILBOX, 0o755)?;
        if let Some(certificate) = terms.certificate {
            root.file("etc/cert.pem", certificate.chain(), SYSTEM, 0o644)?;
        }
        let mut command = match software {
            Software::Postfix => postfix::prepare(&root, host, terms)?,
            Software::Exim => exim::prepare(&root, host, terms)?,
            Software::OpenSmtpd => opensmtpd::prepare(&root, terms)?,
        };
        let mut daemon = lab.start(host, &name, &mut command)?;
        let ports = [Some(PORT), terms.certificate.map(|_| TLS_PORT)];
        let ready = daemon.wait_until_ready(READY, |_| {
            let mut listens = ports.iter().flatten().map(|port| SocketAddr::new([127, 0, 0, 1].into(), *port));
            Ok(host.enter(|| listens.all(|address| TcpStream::connect_timeout(&address, READY).is_ok())))
        });
        let server = Self { _daemon: daemon, root, log };
        ready.with_context(|| server.log())?;
        Ok(server)
    }

    /// Every message that it has put into the mailbox, in no order; lines end with LF.
    pub fn mails(&self) -> Result<Vec<StoredMail>> {
        let folder = self.root.path("mails/box/new");
        let files = match fs::read_dir(&folder) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("list {}", folder.display())),
        };
        files.map(|file| Ok(StoredMail { text: fs::read(file?.path())? })).collect()
    }

    /// Waits for the n-th message and returns all.
    pub fn wait_for(&self, count: usize) -> Result<Vec<StoredMail>> {
        let mails = wait_until(&format!("{count} messages in the mailbox"), DELIVERED, || {
            let mails = self.mails()?;
            Ok((mails.len() >= count).then_some(mails))
        });
        mails.with_context(|| self.log())
    }

    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.root.path(self.log)).unwrap_or_default()
    }
}

/// A message as it lies in a mailbox.
#[derive(Clone, Debug)]
pub struct StoredMail {
    pub text: Vec<u8>,
}

impl StoredMail {
    /// What follows the field `Received:` that `host` wrote; those of later hosts stand above it.
    #[must_use]
    pub fn as_handed_to(&self, host: &str) -> Option<&[u8]> {
        let mut rest = self.text.as_slice();
        loop {
            let (field, after) = split_field(rest)?;
            rest = after;
            let text = String::from_utf8_lossy(field);
            if text.starts_with("Received:") && text.contains(&format!("by {host}")) {
                return Some(rest);
            }
        }
    }
}

impl StoredMail {
    /// How the server says that it got the message, in lower case: RFC 3848's words.
    #[must_use]
    pub fn protocol(&self) -> Option<String> {
        let mut rest = self.text.as_slice();
        loop {
            let (field, after) = split_field(rest)?;
            rest = after;
            let text = String::from_utf8_lossy(field).to_lowercase();
            if text.starts_with("received:") {
                let mut words = text.split_whitespace().skip_while(|word| *word != "with");
                return words.nth(1).map(str::to_owned);
            }
        }
    }
}

/// The first field of a header with its continuation lines, and the rest.
fn split_field(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut end = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if end > 0 && !line.starts_with(b" ") && !line.starts_with(b"\t") {
            break;
        }
        end += line.len();
    }
    (end > 1).then(|| text.split_at(end))
}

/// Fills the password file of Cyrus SASL, which Postfix and Exim ask.
fn fill_passwords(root: &Root, host: &Namespace, account: Account, owner: crate::root::User) -> Result<()> {
    // The password comes from a file because a program in the lab has no standard input.
    root.file("etc/password", account.password, SYSTEM, 0o600)?;
    let mut command = root.command("sh");
    command.args(["-c", "saslpasswd2 -p -c -u \"$1\" \"$2\" < /etc/password", "sh", HOSTNAME, account.name]);
    let Finished { status, stderr, .. } = host.run(&mut command, COMMAND)?;
    ensure!(status.success(), "saslpasswd2: {stderr}");
    let passwords = fs::read(root.path("etc/sasldb2")).context("read the passwords")?;
    root.file("etc/sasldb2", passwords, owner, 0o600)
}

#[cfg(test)]
mod tests {
    use super::StoredMail;

    #[test]
    fn message_below_the_fields_of_later_hosts() {
        let mail = |text: &str| StoredMail { text: text.as_bytes().to_vec() };
        let text = "Return-Path: <a@b>\nReceived: from r\n\tby gateway\nReceived: from c\n\tby relay (x)\nReceived: from d\n\tby c\n\nbody\n";
        assert_eq!(mail(text).as_handed_to("relay"), Some(&b"Received: from d\n\tby c\n\nbody\n"[..]));
        assert_eq!(mail(text).as_handed_to("elsewhere"), None);
        assert_eq!(mail("\nReceived: from c\n\tby relay\n").as_handed_to("relay"), None, "the body");
        assert_eq!(mail("").as_handed_to("relay"), None);
    }
}
