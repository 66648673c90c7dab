//! The product between mail servers and clients of other makers.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use redirect_tests::{
    Family, Holdings, Mode, Namespace, Scene, postfix,
    server::{DOMAIN, MailServer, PORT, SIZE_MAX, Sender, Software, StoredMail, Terms},
    smtp::{Client, Mail, port_25},
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
    fn new(software: Software, terms: Terms) -> Self {
        let scene = Scene::new(Mode::Tc).unwrap();
        let server = MailServer::start(&scene.lab, &scene.lab.gateway, software, terms).unwrap();
        let address = Family::V4.gateway().to_string();
        scene.ctl(&["gateway", "set", "default", "--address", &address, "--port", &PORT.to_string()]).unwrap();
        let before = scene.product.holdings(&scene.lab).unwrap();
        Self { scene, server, before }
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

/// Everything that the daemon took for the connections of a test is given back.
fn check_released(scene: &Scene, before: Holdings) {
    let back = wait_until("return to what was held before", LIMIT, || {
        let now = scene.product.holdings(&scene.lab)?;
        Ok((now == before).then_some(()))
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
    let stage = Stage::new(software, Terms::default());
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
    let stage = Stage::new(software, Terms::default());
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
    let stage = Stage::new(software, Terms::default());
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

macro_rules! with_every_gateway {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use redirect_tests::server::Software;

            #[test]
            fn postfix() {
                super::$name(Software::Postfix);
            }

            #[test]
            fn exim() {
                super::$name(Software::Exim);
            }

            #[test]
            fn opensmtpd() {
                super::$name(Software::OpenSmtpd);
            }
        }
    )+};
}

with_every_gateway!(a_gateway_takes_mail_as_it_is, a_gateway_refuses, a_gateway_takes_eight_bit_text_and_chunks);

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
    check_released(&scene, before);
}
