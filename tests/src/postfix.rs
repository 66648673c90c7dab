//! Postfix's `smtp-sink`: a mail server from other hands that stores each message in a file.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{lab::Lab, netns::Namespace, process::Daemon, product::profile_folder};

const READY: Duration = Duration::from_secs(10);

/// The user whose rights it takes: it refuses to stay root.
const USER: &str = "nobody";

pub struct SmtpSink {
    // Stopped by dropping it.
    _daemon: Daemon,
    mails: PathBuf,
}

/// A message in the form that smtp-sink stores: lines end with LF, the dots are undone.
#[derive(Clone, Debug)]
pub struct StoredMail {
    /// Who delivered it.
    pub peer: IpAddr,
    pub from: String,
    pub to: Vec<String>,
    /// The header and body as received.
    pub data: Vec<u8>,
}

impl SmtpSink {
    /// `name` is in the greeting, and names the folder of its messages.
    pub fn start(lab: &Lab, host: &Namespace, name: &str, address: SocketAddr) -> Result<Self> {
        let mails = lab.folder().join(name);
        fs::create_dir_all(&mails).with_context(|| format!("create {}", mails.display()))?;
        // It writes as another user.
        for folder in [lab.folder(), &mails] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o777))?;
        }
        let mut command = program("smtp-sink")?;
        let (family, target) = match address {
            SocketAddr::V4(_) => ("-4", address.to_string()),
            SocketAddr::V6(_) => ("-6", address.to_string()),
        };
        command
            .args([family, "-u", USER, "-h", name, "-m", "1024", "-d"])
            .arg(mails.join("mail."))
            .args([&target, "1024"]);
        let mut daemon = lab.start(host, name, &mut command)?;
        daemon.wait_until_ready(READY, |_| Ok(host.enter(|| TcpStream::connect_timeout(&address, READY)).is_ok()))?;
        Ok(Self { _daemon: daemon, mails })
    }

    /// Every message so far, in no order. A message is whole once its client has the reply to it.
    pub fn mails(&self) -> Result<Vec<StoredMail>> {
        let files = fs::read_dir(&self.mails).with_context(|| format!("list {}", self.mails.display()))?;
        let mut mails = Vec::new();
        for file in files.flatten() {
            let text = fs::read(file.path()).with_context(|| format!("read {}", file.path().display()))?;
            mails.push(parse(&text).with_context(|| format!("{} is not as smtp-sink writes", file.path().display()))?);
        }
        Ok(mails)
    }
}

/// A program of Postfix as installed, or as `cargo xtask setup` unpacks it.
pub fn program(name: &str) -> Result<Command> {
    let installed = Path::new("/usr/sbin").join(name);
    if installed.is_file() {
        return Ok(Command::new(installed));
    }
    let profile = profile_folder()?;
    let unpacked = profile.parent().context("a profile lies in the target directory")?.join("lab/postfix/usr");
    let file = unpacked.join("sbin").join(name);
    ensure!(file.is_file(), "Postfix's {name} is missing: run `cargo xtask setup`");
    let mut command = Command::new(file);
    command.env("LD_LIBRARY_PATH", unpacked.join("lib/postfix"));
    Ok(command)
}

/// Takes apart what smtp-sink(1) calls its message dump: fields about the conversation, a `Received:` field of its own, the
/// message, an empty line.
fn parse(text: &[u8]) -> Option<StoredMail> {
    let mut mail =
        StoredMail { peer: Ipv4Addr::UNSPECIFIED.into(), from: String::new(), to: Vec::new(), data: Vec::new() };
    let mut rest = text;
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n')? + 1;
        let (line, after) = rest.split_at(end);
        let line = std::str::from_utf8(line).ok()?.trim_end();
        rest = after;
        if let Some(peer) = line.strip_prefix("X-Client-Addr: ") {
            mail.peer = peer.strip_prefix("ipv6:").unwrap_or(peer).parse().ok()?;
        } else if let Some(from) = line.strip_prefix("X-Mail-Args: ") {
            mail.from = path(from);
        } else if let Some(to) = line.strip_prefix("X-Rcpt-Args: ") {
            mail.to.push(path(to));
        } else if line.starts_with("Received: ") {
            break;
        }
    }
    while rest.starts_with(b"\t") {
        rest = &rest[rest.iter().position(|byte| *byte == b'\n')? + 1..];
    }
    mail.data = rest.strip_suffix(b"\n")?.to_vec();
    Some(mail)
}

/// What stands between the angle brackets; parameters may follow.
fn path(arguments: &str) -> String {
    let path = arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    path.map_or(arguments, |(path, _)| path).to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::parse;

    #[test]
    fn dump_of_smtp_sink() {
        // Written by smtp-sink of Postfix 3.7.11.
        let dump = b"X-Client-Addr: 127.0.0.1\nX-Client-Proto: ESMTP\nX-Helo-Args: a\nX-Mail-Args: <a@b> SIZE=9\nX-Rcpt-Args: <c@d>\n\
            X-Rcpt-Args: <e@f>\nReceived: from a ([127.0.0.1])\n\tby sink.example (smtp-sink) with ESMTP id 30735670;\n\
            \tSun, 22 Nov 2026 01:46:07 +0000 (UTC)\nReceived: from x\n\tby y\nSubject: s\n\n.dot\n\n\n";
        let mail = parse(dump).expect("well-formed");
        assert_eq!((mail.peer, mail.from.as_str()), (Ipv4Addr::LOCALHOST.into(), "a@b"));
        assert_eq!(mail.to, ["c@d", "e@f"]);
        assert_eq!(mail.data, b"Received: from x\n\tby y\nSubject: s\n\n.dot\n\n");
        assert!(parse(b"X-Client-Addr: 127.0.0.1\n").is_none(), "cut short");
    }
}
