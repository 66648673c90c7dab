//! `OpenSMTPD` as a gateway.

use std::process::Command;

use anyhow::Result;

use super::{DOMAIN, HOSTNAME, PORT, SIZE_MAX, TLS_PORT, Terms};
use crate::root::{MAILBOX, Root, SYSTEM};

pub(super) fn prepare(root: &Root, terms: Terms) -> Result<Command> {
    root.folder("var/lib/opensmtpd", SYSTEM, 0o755)?;
    root.folder("var/lib/opensmtpd/empty", SYSTEM, 0o755)?;
    if let Some(certificate) = terms.certificate {
        root.file("etc/key.pem", certificate.key(), SYSTEM, 0o600)?;
    }
    root.file("etc/smtpd.conf", configuration(terms), SYSTEM, 0o644)?;
    let mut command = root.command("sh");
    // In the foreground. It writes its log to where it was started.
    command.args(["-c", "exec /usr/sbin/smtpd -d > /var/log/output 2>&1"]);
    Ok(command)
}

fn configuration(terms: Terms) -> String {
    let tls = terms.certificate.map_or(String::new(), |_| {
        format!("pki box cert \"/etc/cert.pem\"\npki box key \"/etc/key.pem\"\nlisten on 0.0.0.0 port {TLS_PORT} smtps pki box hostname {HOSTNAME}\n")
    });
    let starttls = terms.certificate.map_or("", |_| "tls pki box");
    format!(
        r#"smtp max-message-size "{SIZE_MAX}"
table anyone {{ "@" = "{user}" }}
{tls}listen on 0.0.0.0 port {PORT} {starttls} hostname {HOSTNAME}
action box maildir "/mails/box" virtual <anyone>
match from any for domain "{DOMAIN}" action box
"#,
        user = MAILBOX.name,
    )
}
