//! Exim in front, as Debian builds it with everything (exim4-daemon-heavy).

use std::process::Command;

use anyhow::Result;

use super::{Account, DOMAIN, HOSTNAME, PORT, SIZE_MAX, TLS_PORT, Terms, fill_passwords};
use crate::{
    netns::Namespace,
    root::{EXIM, MAILBOX, Root, SYSTEM},
};

pub(super) fn prepare(root: &Root, host: &Namespace, terms: Terms) -> Result<Command> {
    root.folder("var/spool/exim4", EXIM, 0o755)?;
    root.folder("var/log/exim", EXIM, 0o755)?;
    if let Some(certificate) = terms.certificate {
        root.file("etc/key.pem", certificate.key(), EXIM, 0o600)?;
    }
    if let Some(account) = terms.account {
        fill_passwords(root, host, account, EXIM)?;
    }
    root.folder("etc/exim4", SYSTEM, 0o755)?;
    root.file("etc/exim4/exim4.conf", configuration(terms), SYSTEM, 0o644)?;
    let mut command = root.command("/usr/sbin/exim4");
    // In the foreground, and what is taken is delivered at once.
    command.args(["-bdf", "-odb"]);
    Ok(command)
}

fn configuration(terms: Terms) -> String {
    let tls = terms.certificate.map_or("tls_advertise_hosts =".to_owned(), |_| {
        format!(
            "daemon_smtp_ports = {PORT} : {TLS_PORT}\ntls_on_connect_ports = {TLS_PORT}\ntls_advertise_hosts = *\n\
             tls_certificate = /etc/cert.pem\ntls_privatekey = /etc/key.pem"
        )
    });
    let ports = if terms.certificate.is_some() { String::new() } else { format!("daemon_smtp_ports = {PORT}") };
    let (who, authenticators) =
        terms.account.map_or(("hosts = *", String::new()), |account| ("authenticated = *", authenticators(account)));
    format!(
        r"primary_hostname = {HOSTNAME}
spool_directory = /var/spool/exim4
log_file_path = /var/log/exim/%s
exim_path = /usr/sbin/exim4
local_interfaces = <; 0.0.0.0 ; ::0
{ports}
{tls}
message_size_limit = {SIZE_MAX}
dsn_advertise_hosts = *
smtp_accept_max = 0
smtp_accept_queue_per_connection = 0
acl_smtp_rcpt = recipient
acl_smtp_data = accept

begin acl
recipient:
  accept domains = {DOMAIN}
         {who}
  deny message = not for you

begin routers
box:
  driver = accept
  transport = box

begin transports
box:
  driver = appendfile
  directory = /mails/box
  maildir_format
  user = {user}

begin authenticators
{authenticators}",
        user = MAILBOX.name,
    )
}

/// Two by hand, and one that Cyrus SASL does.
fn authenticators(Account { name, password }: Account) -> String {
    format!(
        r"plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{ {{eq{{$auth2}}{{{name}}}}} {{eq{{$auth3}}{{{password}}}}} }} }}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = <| Username: | Password:
  server_condition = ${{if and{{ {{eq{{$auth1}}{{{name}}}}} {{eq{{$auth2}}{{{password}}}}} }} }}
  server_set_id = $auth1
scram:
  driver = cyrus_sasl
  public_name = SCRAM-SHA-256
  server_realm = {HOSTNAME}
  server_set_id = $auth1
"
    )
}
