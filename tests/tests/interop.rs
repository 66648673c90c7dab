//! The product between mail servers and clients of other makers.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command, time::Duration};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use redirect_tests::{
    Family, Holdings, Mode, Namespace, Scene, postfix,
    server::{
        ACCOUNT, Certificate, DOMAIN, HOSTNAME, MailServer, PORT, SIZE_MAX, Sender, Software, StoredMail, TLS_PORT,
        Terms,
    },
    smtp::{Client, Mail, Reply, port_25},
    unpacked, wait_until,
};

const FROM: &str = "guest@client.example";
const RELAY: &str = "relay.example.net";
const LIMIT: Duration = Duration::from_mins(1);

/// A scene with a gateway of this make, and what the daemon holds before anybody connects.
struct Stage {
    scene: Scene,
    server: MailServer,
    before: Holdings,
}

impl Stage {
    fn new(software: Software) -> Self {
        let scene = Scene::new(Mode::Tc).unwrap();
        Self::with(scene, software, Terms::default())
    }

    fn with(scene: Scene, software: Software, terms: Terms) -> Self {
        let server = MailServer::start(&scene.lab, &scene.lab.gateway, software, terms).unwrap();
        let before = scene.product.holdings(&scene.lab).unwrap();
        let stage = Self { scene, server, before };
        stage.set_gateway(PORT, &[]);
        stage
    }

    fn set_gateway(&self, port: u16, more: &[&str]) {
        let (address, port) = (Family::V4.gateway().to_string(), port.to_string());
        let words = ["gateway", "set", "default", "--address", &address, "--port", &port];
        self.scene.ctl(&[&words, more].concat()).unwrap();
    }

    /// The reply to the recipient, or to the whole message where that was taken.
    fn send(&self, message: &[u8]) -> Reply {
        let mut client = self.connect(Family::V4);
        client.expect(&format!("MAIL FROM:<{FROM}>"), 250).unwrap();
        let reply = client.command(&format!("RCPT TO:<friend@{DOMAIN}>")).unwrap();
        if reply.code != 250 {
            return reply;
        }
        client.expect("DATA", 354).unwrap();
        client.send(message).unwrap();
        client.command(".").unwrap()
    }

    fn connect(&self, family: Family) -> Client {
        let mut client =
            Client::connect(&self.scene.lab.client, (family.redirected(), 0), port_25(family.server())).unwrap();
        let greeting = client.hello().unwrap();
        assert!(greeting.lines[0].starts_with(RELAY), "{greeting:?}");
        client
    }

    /// Waits until this many messages are in the mailbox, no more and no less, and returns them.
    fn mails(&self, count: usize) -> Vec<StoredMail> {
        let mails = self.server.wait_for(count).unwrap();
        assert_eq!(mails.len(), count, "{}", self.server.log());
        mails
    }

    /// What must hold at the end of each test.
    fn finish(self) {
        check_released(&self.scene, self.before);
        assert_eq!(self.scene.internet.peers(), [], "nothing reaches the server that was dialled");
    }
}

/// Everything that the daemon took for the connections of a test is given back, but connections to the gateway that wait for the next message.
fn check_released(scene: &Scene, before: Holdings) {
    const IDLE_MAX: usize = 32;
    check_held(scene, before, |now| {
        now.sessions == before.sessions && now.descriptors <= before.descriptors + IDLE_MAX
    });
}

/// The same when those have had their time as well.
fn check_all_released(scene: &Scene, before: Holdings) {
    check_held(scene, before, |now| now == before);
}

fn check_held(scene: &Scene, before: Holdings, is_back: impl Fn(Holdings) -> bool) {
    let back = wait_until("return to what was held before", LIMIT, || {
        Ok(is_back(scene.product.holdings(&scene.lab)?).then_some(()))
    });
    back.unwrap_or_else(|error| panic!("{error:#}: {before:?}, now {:?}", scene.product.holdings(&scene.lab)));
}

/// As it lies in a mailbox: the ends of lines are LF.
fn stored(message: &[u8]) -> Vec<u8> {
    message.iter().copied().filter(|byte| *byte != b'\r').collect()
}

fn header(id: &str) -> String {
    format!(
        "Date: Sun, 22 Nov 2026 08:00:00 +0000\r\nFrom: <{FROM}>\r\nTo: <friend@{DOMAIN}>\r\nMessage-ID: <{id}@client.example>\r\n\
         Subject: {id}\r\n\r\n"
    )
}

/// Messages that a server might spoil, with their numbers in the `Message-ID:`.
fn messages() -> Vec<Vec<u8>> {
    let bodies: [&[u8]; 7] = [
        b"Hello.\r\n",
        b"\r\n\r\nempty lines around\r\n\r\n\r\n",
        b"From here on\r\n>From there on\r\nfrom\r\n",
        &[&b"."[..], &[b'x'; 997], b"\r\n"].concat(),
        &b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n".repeat(10_000),
        b".\r\n..\r\n...x\r\n.x\r\n \r\n\r\n.\r\n",
        b"",
    ];
    bodies.iter().enumerate().map(|(number, body)| [header(&number.to_string()).as_bytes(), body].concat()).collect()
}

/// Each message is in the mailbox as often as it was sent, octet for octet below what the relay wrote.
#[track_caller]
fn check_stored(mails: &[StoredMail], expected: &[Vec<u8>]) {
    let mut found: Vec<_> =
        mails.iter().map(|mail| mail.as_handed_to(RELAY).expect("the relay's field").to_vec()).collect();
    let mut expected: Vec<_> = expected.iter().map(|message| stored(message)).collect();
    found.sort();
    expected.sort();
    for (found, expected) in found.iter().zip(&expected) {
        assert!(found == expected, "{}\nis not\n{}", found.escape_ascii(), expected.escape_ascii());
    }
    assert_eq!(found.len(), expected.len());
}

fn a_gateway_takes_mail_as_it_is(software: Software) {
    let stage = Stage::new(software);
    let mut expected = Vec::new();
    for family in Family::BOTH {
        let mut client = stage.connect(family);
        for message in messages() {
            let reply = client.deliver(FROM, &format!("friend@{DOMAIN}"), &message).unwrap();
            assert_eq!(reply.code, 250, "{reply:?}");
            expected.push(message);
        }
        client.expect("QUIT", 221).unwrap();
    }
    check_stored(&stage.mails(expected.len()), &expected);
    stage.finish();
}

/// What a gateway refuses is refused to the client, and the next message goes through.
fn a_gateway_refuses(software: Software) {
    let stage = Stage::new(software);
    let friend = format!("friend@{DOMAIN}");
    let message = [header("good").as_bytes(), b"Hello.\r\n"].concat();
    let mut client = stage.connect(Family::V4);

    // A recipient of several.
    client.expect(&format!("MAIL FROM:<{FROM}>"), 250).unwrap();
    client.expect(&format!("RCPT TO:<{friend}>"), 250).unwrap();
    let refused = client.command("RCPT TO:<friend@elsewhere.example>").unwrap();
    assert!((500..600).contains(&refused.code), "{refused:?}");
    client.expect("DATA", 354).unwrap();
    client.send(&message).unwrap();
    client.expect(".", 250).unwrap();

    // The only recipient; then another message in the same session.
    client.expect(&format!("MAIL FROM:<{FROM}>"), 250).unwrap();
    let refused = client.command("RCPT TO:<friend@elsewhere.example>").unwrap();
    assert!((500..600).contains(&refused.code), "{refused:?}");
    client.expect("RSET", 250).unwrap();
    assert_eq!(client.deliver(FROM, &friend, &message).unwrap().code, 250);

    // Too large: said beforehand, which OpenSMTPD does not listen to, and found out.
    let large = [header("large").into_bytes(), b"0123456789abcdef\r\n".repeat(SIZE_MAX / 16)].concat();
    let said = client.command(&format!("MAIL FROM:<{FROM}> SIZE={}", large.len())).unwrap();
    let refused = if said.code == 250 { client.command(&format!("RCPT TO:<{friend}>")).unwrap() } else { said };
    assert_eq!(refused.code, if software == Software::OpenSmtpd { 250 } else { 552 }, "{refused:?}");
    client.expect("RSET", 250).unwrap();
    let refused = client.deliver(FROM, &friend, &large).unwrap();
    assert!((500..600).contains(&refused.code), "{refused:?}");

    assert_eq!(client.deliver(FROM, &friend, &message).unwrap().code, 250);
    client.expect("QUIT", 221).unwrap();
    check_stored(&stage.mails(3), &vec![message; 3]);
    stage.finish();
}

fn a_gateway_takes_eight_bit_text_and_chunks(software: Software) {
    let stage = Stage::new(software);
    let message = [header("8bit").as_bytes(), "Grüße\r\n".as_bytes(), &[0x80, 0xff, b'\r', b'\n']].concat();
    let mut client = stage.connect(Family::V6);
    let envelope = |client: &mut Client, parameters: &str| {
        client.expect(&format!("MAIL FROM:<{FROM}> BODY=8BITMIME{parameters}"), 250).unwrap();
        client.expect(&format!("RCPT TO:<friend@{DOMAIN}>"), 250).unwrap();
    };
    envelope(&mut client, &format!(" SIZE={}", message.len()));
    client.expect("DATA", 354).unwrap();
    client.send(&message).unwrap();
    client.expect(".", 250).unwrap();

    // Whole, and in three chunks of which the last is empty.
    let (head, tail) = message.split_at(message.len() / 2);
    for chunks in [&[&message[..]][..], &[head, tail, b""]] {
        envelope(&mut client, "");
        for (place, chunk) in chunks.iter().enumerate() {
            let last = if place + 1 == chunks.len() { " LAST" } else { "" };
            client.send(&[format!("BDAT {}{last}\r\n", chunk.len()).as_bytes(), chunk].concat()).unwrap();
            let reply = client.reply().unwrap();
            assert_eq!(reply.code, 250, "{reply:?}");
        }
    }
    client.expect("QUIT", 221).unwrap();
    check_stored(&stage.mails(3), &vec![message; 3]);
    stage.finish();
}

/// Each test with each of its gateways.
macro_rules! with_gateways {
    ($($name:ident: $($gateway:ident = $software:ident),+;)+) => {$(
        mod $name {
            use redirect_tests::server::Software;

            $(
                #[test]
                fn $gateway() {
                    super::$name(Software::$software);
                }
            )+
        }
    )+};
}

with_gateways! {
    a_gateway_takes_mail_as_it_is: postfix = Postfix, exim = Exim, opensmtpd = OpenSmtpd;
    a_gateway_refuses: postfix = Postfix, exim = Exim, opensmtpd = OpenSmtpd;
    a_gateway_takes_eight_bit_text_and_chunks: postfix = Postfix, exim = Exim, opensmtpd = OpenSmtpd;
}

/// A gateway with a certificate and an account, without which it takes nothing, and the files that name both to the daemon.
struct Secured {
    stage: Stage,
    certificate: Certificate,
    password: PathBuf,
}

impl Secured {
    fn new(software: Software) -> Self {
        let scene = Scene::new(Mode::Tc).unwrap();
        let certificate = Certificate::new(&scene.lab.folder().join("authority.pem")).unwrap();
        let password = scene.lab.folder().join("password");
        fs::write(&password, ACCOUNT.password).unwrap();
        let terms = Terms { certificate: Some(&certificate), account: Some(ACCOUNT) };
        let stage = Stage::with(scene, software, terms);
        Self { stage, certificate, password }
    }

    /// How the daemon is to connect, whom to believe, and how to log in.
    fn set_gateway(&self, encryption: &str, verification: &[&str], mechanism: &str) {
        let port = if encryption == "implicit" { TLS_PORT } else { PORT };
        let encryption = ["--encryption", encryption, "--sni", HOSTNAME];
        let password = self.password.to_str().unwrap();
        let account = ["--username", ACCOUNT.name, "--password-file", password, "--mechanism", mechanism];
        self.stage.set_gateway(port, &[&encryption, verification, &account].concat());
    }
}

const MECHANISMS: [&str; 3] = ["PLAIN", "LOGIN", "SCRAM-SHA-256"];

/// Over TLS or not, whoever vouches for the certificate, by every mechanism.
fn mail_goes_through_tls_and_auth(software: Software) {
    let secured = Secured::new(software);
    let authority = ["--verification", "ca", "--ca-file", secured.certificate.authority().to_str().unwrap()];
    let pin = secured.certificate.pin();
    let pin = ["--verification", "pin", "--pin", &pin];
    // Who verifies a certificate insists on TLS, and who does not has to allow the password.
    let ways: [(&str, &[&str]); 4] = [
        ("none", &["--allow-unprotected"]),
        ("starttls", &["--allow-unprotected"]),
        ("starttls_required", &pin),
        ("implicit", &authority),
    ];
    let mut expected = Vec::new();
    for (encryption, verification) in ways {
        for mechanism in MECHANISMS {
            secured.set_gateway(encryption, verification, mechanism);
            let message = [header(&expected.len().to_string()).as_bytes(), b"Hello.\r\n"].concat();
            let reply = secured.stage.send(&message);
            assert_eq!(reply.code, 250, "{encryption} {mechanism}: {reply:?} {}", secured.stage.server.log());
            expected.push(message);
            let mails = secured.stage.mails(expected.len());
            let protocols: BTreeSet<_> = mails.iter().filter_map(StoredMail::protocol).collect();
            // RFC 3848: with TLS, and by a client that has logged in.
            let with = if encryption == "none" { "esmtpa" } else { "esmtpsa" };
            assert!(protocols.contains(with), "{encryption} {mechanism}: {protocols:?}");
            assert!(encryption != "none" || protocols.len() == 1, "{mechanism}: {protocols:?}");
        }
    }
    check_stored(&secured.stage.mails(expected.len()), &expected);
    check_all_released(&secured.stage.scene, secured.stage.before);
    secured.stage.finish();
}

/// Nothing is sent to a server that is not who it should be, nor where the account is refused.
fn what_cannot_be_trusted_gets_no_mail(software: Software) {
    let secured = Secured::new(software);
    let stranger = Certificate::new(&secured.stage.scene.lab.folder().join("stranger.pem")).unwrap();
    let stranger_pin = stranger.pin();
    let own = secured.certificate.authority().to_str().unwrap();
    let ways: [&[&str]; 3] = [
        &["--verification", "ca", "--ca-file", stranger.authority().to_str().unwrap()],
        &["--verification", "pin", "--pin", &stranger_pin],
        &["--verification", "ca", "--ca-file", own, "--sni", "another.example.net"],
    ];
    let message = [header("0").as_bytes(), b"Hello.\r\n"].concat();
    let refused = |what: &str| {
        let reply = secured.stage.send(&message);
        assert!((400..500).contains(&reply.code), "{what}: {reply:?}");
    };
    for way in ways {
        for encryption in ["starttls_required", "implicit"] {
            let port = if encryption == "implicit" { TLS_PORT } else { PORT };
            let sni: &[&str] = if way.contains(&"--sni") { &[] } else { &["--sni", HOSTNAME] };
            secured.stage.set_gateway(port, &[&["--encryption", encryption], sni, way].concat());
            refused(&format!("{encryption} {way:?}"));
        }
    }
    fs::write(&secured.password, "wrong").unwrap();
    for mechanism in MECHANISMS {
        secured.set_gateway("starttls_required", &["--verification", "ca", "--ca-file", own], mechanism);
        refused(mechanism);
    }
    assert_eq!(secured.stage.server.mails().unwrap().len(), 0);
    fs::write(&secured.password, ACCOUNT.password).unwrap();
    secured.set_gateway("starttls_required", &["--verification", "ca", "--ca-file", own], MECHANISMS[0]);
    let reply = secured.stage.send(&message);
    assert_eq!(reply.code, 250, "{reply:?}");
    check_stored(&secured.stage.mails(1), &[message]);
    secured.stage.finish();
}

// OpenSMTPD of Debian 12 (6.8.0p2) cannot sign a handshake with that system's OpenSSL 3: its issue 1239.
with_gateways! {
    mail_goes_through_tls_and_auth: postfix = Postfix, exim = Exim;
    what_cannot_be_trusted_gets_no_mail: postfix = Postfix, exim = Exim;
}

/// A server without TLS is spoken to in the clear where that is allowed, and not at all where it is not.
#[test]
fn opensmtpd_without_tls() {
    let stage = Stage::new(Software::OpenSmtpd);
    let message = [header("0").as_bytes(), b"Hello.\r\n"].concat();
    stage.set_gateway(PORT, &["--encryption", "starttls_required"]);
    let reply = stage.send(&message);
    assert!((400..500).contains(&reply.code), "{reply:?}");
    for encryption in ["starttls", "none"] {
        stage.set_gateway(PORT, &["--encryption", encryption]);
        assert_eq!(stage.send(&message).code, 250, "{encryption}");
    }
    check_stored(&stage.mails(2), &vec![message; 2]);
    stage.finish();
}

/// What a gateway has said that it can do is offered, and works to its end: a report on the delivery in the words of the client, and an address
/// outside ASCII.
#[test]
fn postfix_reports_and_takes_internationalized_mail() {
    let stage = Stage::new(Software::Postfix);
    let sender = format!("guest@{DOMAIN}");
    let message = [header("first").as_bytes(), b"Hello.\r\n"].concat();
    // A gateway that nobody has met is not known to do either.
    let mut client = stage.connect(Family::V4);
    assert_eq!(client.command(&format!("MAIL FROM:<{sender}> RET=HDRS")).unwrap().code, 555);
    assert_eq!(client.deliver(FROM, &format!("friend@{DOMAIN}"), &message).unwrap().code, 250);
    client.expect("QUIT", 221).unwrap();
    stage.mails(1);

    let mut client = stage.connect(Family::V4);
    let offers = client.expect("EHLO client.example", 250).unwrap().lines;
    let size = format!("SIZE {SIZE_MAX}");
    for keyword in ["DSN", "SMTPUTF8", "8BITMIME", &size] {
        assert!(offers.iter().any(|line| line == keyword), "{keyword}: {offers:?}");
    }
    client.expect(&format!("MAIL FROM:<{sender}> RET=HDRS ENVID=QQ314159"), 250).unwrap();
    let recipient = "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Friend@elsewhere.example";
    client.expect(&format!("RCPT TO:<friend@{DOMAIN}> {recipient}"), 250).unwrap();
    client.expect("DATA", 354).unwrap();
    client.send(&message).unwrap();
    client.expect(".", 250).unwrap();
    let mails = stage.mails(3);
    let texts: Vec<_> = mails.iter().map(|mail| String::from_utf8_lossy(&mail.text)).collect();
    let report = texts.iter().find(|text| text.contains("multipart/report")).expect("a report");
    let fields =
        ["Original-Envelope-Id: QQ314159", "Original-Recipient: rfc822;Friend@elsewhere.example", "Action: delivered"];
    for field in fields {
        assert!(report.contains(field), "{field}: {report}");
    }
    assert!(report.contains("text/rfc822-headers") && !report.contains("Hello."), "headers only: {report}");

    let message = format!("From: <{sender}>\r\nSubject: Gr\u{fc}\u{df}e\r\n\r\n\u{3b4}\r\n");
    client.expect(&format!("MAIL FROM:<g\u{e4}st@{DOMAIN}> SMTPUTF8 BODY=8BITMIME"), 250).unwrap();
    client.expect(&format!("RCPT TO:<fr\u{e4}nd@{DOMAIN}>"), 250).unwrap();
    client.expect("DATA", 354).unwrap();
    client.send(message.as_bytes()).unwrap();
    client.expect(".", 250).unwrap();
    client.expect("QUIT", 221).unwrap();
    let mails = stage.mails(4);
    let mail = mails.iter().find(|mail| mail.protocol().as_deref() == Some("utf8smtp")).expect("a mail by UTF8SMTP");
    let text = String::from_utf8(mail.text.clone()).unwrap();
    assert!(text.contains(&format!("fr\u{e4}nd@{DOMAIN}")), "{text}");
    assert_eq!(mail.as_handed_to(RELAY).unwrap(), stored(message.as_bytes()));
    stage.finish();
}

/// A scene whose gateway is the test's own server, and what the daemon holds before anybody connects.
fn scene() -> (Scene, Holdings) {
    let scene = Scene::new(Mode::Tc).unwrap();
    let before = scene.product.holdings(&scene.lab).unwrap();
    (scene, before)
}

/// Runs a client to its end, which must be a good one.
fn run(host: &Namespace, command: &mut Command) {
    let finished = host.run(command, LIMIT).unwrap();
    assert_eq!(finished.code(), Some(0), "{}{}", finished.stderr, finished.stdout);
}

/// What the gateway got is what was sent, below the relay's field and those that the client itself adds.
#[track_caller]
fn check_handed_on(mail: &Mail, message: &[u8]) {
    let (received, rest) = mail.split_received().expect("the relay adds Received");
    assert!(String::from_utf8_lossy(received).contains(&format!("by {RELAY}")));
    assert!(rest.ends_with(message), "{}\nis not\n{}", rest.escape_ascii(), message.escape_ascii());
    assert_eq!(mail.from, FROM);
    assert_eq!(mail.to.iter().map(String::as_str).collect::<BTreeSet<_>>(), BTreeSet::from(RECIPIENTS));
}

const RECIPIENTS: [&str; 2] = ["friend@internet.example", "friend@elsewhere.example"];

#[test]
fn swaks_delivers() {
    let (scene, before) = scene();
    let file = scene.lab.folder().join("message");
    // The last two are not for it: it takes a dot alone for an end, and adds a body where there is none.
    let messages = &messages()[..5];
    let ways: [&[&str]; 3] = [&[], &["--pipeline"], &["--protocol", "SMTP"]];
    for family in Family::BOTH {
        for (way, message) in ways.iter().flat_map(|way| messages.iter().map(move |message| (*way, message))) {
            // It ends the last line itself.
            let text = stored(message);
            fs::write(&file, text.strip_suffix(b"\n").unwrap()).unwrap();
            let mut swaks = Command::new("swaks");
            swaks
                .args(["--server", &family.server().to_string(), "--local-interface", &family.redirected().to_string()])
                .args(["--from", FROM, "--to", &RECIPIENTS.join(","), "--suppress-data", "--data"])
                .arg(format!("@{}", file.display()))
                .args(way);
            run(&scene.lab.client, &mut swaks);
            check_handed_on(scene.gateway.mails().last().unwrap(), message);
        }
    }
    assert_eq!(scene.gateway.mails().len(), 2 * ways.len() * messages.len());
    check_released(&scene, before);
}

#[test]
fn msmtp_delivers() {
    let (scene, before) = scene();
    let msmtp = unpacked("msmtp").unwrap().join("usr/bin/msmtp");
    let file = scene.lab.folder().join("message");
    for family in Family::BOTH {
        for message in messages() {
            fs::write(&file, stored(&message)).unwrap();
            let mut command = Command::new("sh");
            command
                .args(["-c", "message=$1 && shift && exec \"$@\" < \"$message\"", "sh"])
                .arg(&file)
                .arg(&msmtp)
                .args(["--port=25", "--domain=client.example", "--auth=off", "--tls=off"])
                .arg(format!("--host={}", family.server()))
                .arg(format!("--source-ip={}", family.redirected()))
                .arg(format!("--from={FROM}"))
                .args(RECIPIENTS);
            run(&scene.lab.client, &mut command);
            check_handed_on(scene.gateway.mails().last().unwrap(), &message);
        }
    }
    assert_eq!(scene.gateway.mails().len(), 2 * messages().len());
    check_released(&scene, before);
}

/// A mail server with a queue of its own that believes to talk to a server on the Internet.
#[test]
fn postfix_delivers_its_queue() {
    const ROUNDS: usize = 5;
    let (scene, before) = scene();
    for family in Family::BOTH {
        let host = &scene.lab.client;
        let sender = Sender::start(&scene.lab, host, family.redirected(), family.server()).unwrap();
        for message in std::iter::repeat_n(messages(), ROUNDS).flatten() {
            sender.submit(host, FROM, &RECIPIENTS, &stored(&message)).unwrap();
        }
        sender.wait_until_sent().unwrap();
        assert_eq!(sender.log().matches("status=sent").count(), ROUNDS * messages().len() * 2, "{}", sender.log());
    }
    let mut mails = scene.gateway.mails();
    assert_eq!(mails.len(), 2 * ROUNDS * messages().len());
    // Its queue has no order.
    let number = |mail: &Mail| {
        let text = String::from_utf8_lossy(&mail.data);
        text.split_once("Message-ID: <").unwrap().1.split_once('@').unwrap().0.parse::<usize>().unwrap()
    };
    mails.sort_by_key(number);
    for (mail, message) in mails.iter().zip(messages().iter().flat_map(|one| std::iter::repeat_n(one, 2 * ROUNDS))) {
        check_handed_on(mail, message);
    }
    check_released(&scene, before);
}

#[test]
fn smtp_source_delivers_by_a_thousand_sessions_at_once() {
    const SESSIONS: usize = 1000;
    // The gateway is threads of this process, each with its sockets.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let (scene, before) = scene();
    let source = |host: &Namespace, count: usize, server: String| {
        let program = postfix::program("smtp-source").unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", r#"ulimit -n 4096 && exec "$0" "$@""#]).arg(program.get_program());
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let count = count.to_string();
        command.args(["-s", &count, "-m", &count, "-l", "4096", "-f", FROM, "-t", RECIPIENTS[0], &server]);
        run(host, &mut command);
    };
    // What it sends, straight from the gateway's own host.
    source(&scene.lab.gateway, 1, format!("inet:{}:25", Family::V4.gateway()));
    let [reference] = &scene.gateway.mails()[..] else { panic!("one message") };
    let unique = |data: &[u8]| {
        let text = String::from_utf8(data.to_vec()).unwrap();
        let (id, rest): (Vec<_>, Vec<_>) =
            text.split_inclusive("\r\n").partition(|line| line.to_ascii_lowercase().starts_with("message-id:"));
        let rest: Vec<_> = rest.into_iter().filter(|line| !line.starts_with("Date:")).collect();
        (id.concat(), rest.concat())
    };
    let (_, expected) = unique(&reference.data);

    source(&scene.lab.client, SESSIONS, format!("inet:{}:25", Family::V4.server()));
    let mails = scene.gateway.mails();
    let mut ids = BTreeSet::new();
    for mail in &mails[1..] {
        let (received, rest) = mail.split_received().expect("the relay adds Received");
        assert!(String::from_utf8_lossy(received).contains("[10.20.0.10]"));
        let (id, rest) = unique(rest);
        assert!(rest == expected, "{rest}\nis not\n{expected}");
        assert!(ids.insert(id), "twice the same");
    }
    assert_eq!((mails.len() - 1, ids.len()), (SESSIONS, SESSIONS));
    check_all_released(&scene, before);
}
