//! Mail of redirected subscribers: what reaches the gateway, byte for byte, and what must not.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{
    net::{IpAddr, Shutdown, SocketAddr},
    sync::Barrier,
    thread,
    time::Duration,
};

use anyhow::Result;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use redirect_tests::{
    Family, Mode, Namespace, Product, SILENCE, Scene,
    capture::Capture,
    in_every_mode, postfix,
    smtp::{Client, Mail, Manner, PATIENCE, Reply, Server, port_25},
    tcp::noise,
    wait_until,
};

const FROM: &str = "guest@client.example";
const TO: &str = "friend@internet.example";

in_every_mode!(
    mail_is_byte_exact,
    ten_mebibytes_are_byte_exact,
    every_mtu_will_do,
    smuggling_never_ends_a_message,
    a_message_without_an_end_is_not_delivered,
    a_thousand_connections_at_once,
    the_gateway_refuses_connections,
);

fn connect(scene: &Scene, family: Family) -> Client {
    Client::connect(&scene.lab.client, (family.redirected(), 0), port_25(family.server())).unwrap()
}

/// What the gateway got is one `Received:` field that names the subscriber, and then the message.
#[track_caller]
fn check_delivered(mail: &Mail, message: &[u8], subscriber: IpAddr) {
    let (received, rest) = mail.split_received().expect("the relay adds Received");
    let received = String::from_utf8_lossy(received);
    assert!(received.contains(&subscriber.to_string()), "{received}");
    assert!(rest == message, "{} bytes differ from the {} that were sent", rest.len(), message.len());
}

/// Lines of the given lengths, of any byte that may stand in a line (RFC 6152: all but NUL, CR and LF).
fn lines(lengths: impl IntoIterator<Item = usize>) -> Vec<u8> {
    let mut bytes = noise(0x2525).filter(|byte| !matches!(byte, 0 | b'\r' | b'\n'));
    let mut message = Vec::new();
    for length in lengths {
        message.extend(bytes.by_ref().take(length));
        message.extend(b"\r\n");
    }
    message
}

fn mail_is_byte_exact(scene: &mut Scene) {
    let header = "Subject: a message\r\nFrom: <guest@client.example>\r\n\r\n";
    let messages: [(&str, Vec<u8>); 8] = [
        ("no byte", Vec::new()),
        ("one byte", b"x\r\n".to_vec()),
        ("an empty line", b"\r\n".to_vec()),
        ("header and body", format!("{header}Hello.\r\n").into_bytes()),
        ("dots at the start of lines", b".\r\n..\r\n...x\r\n.x\r\n \r\n\r\n.\r\n".to_vec()),
        ("a line of 998 octets", lines([998, 0, 998, 997, 1])),
        ("a dot before 997 octets", [&b"."[..], &lines([997])].concat()),
        ("lines of every length", lines(0..=998)),
    ];
    let mut delivered = 0;
    for family in Family::BOTH {
        let mut client = connect(scene, family);
        client.hello().unwrap();
        for (what, message) in &messages {
            let reply = client.deliver(FROM, TO, message).unwrap();
            assert_eq!(reply.code, 250, "{what} over {family:?}: {reply:?}");
            delivered += 1;
            // Cut-through: the client's 250 comes after the gateway's, so the message is there.
            let mails = scene.gateway.mails();
            assert_eq!(mails.len(), delivered, "{what} over {family:?}");
            let mail = mails.last().unwrap();
            check_delivered(mail, message, family.redirected());
            assert_eq!((mail.from.as_str(), mail.to.as_slice()), (FROM, &[TO.to_owned()][..]), "{what}");
        }
        client.expect("QUIT", 221).unwrap();
    }
    assert_eq!(scene.internet.peers(), [], "nothing reaches the server that was dialled");
    assert_eq!(scene.gateway.cut(), []);
}

fn ten_mebibytes_are_byte_exact(scene: &mut Scene) {
    let lengths = noise(7).map(|byte| usize::from(byte) * 3);
    let mut size = 0;
    let mut message = lines(lengths.take_while(|length| {
        size += length + 2;
        size < 10 << 20
    }));
    message.resize((10 << 20) - 2, b'x');
    message.extend(b"\r\n");
    for family in Family::BOTH {
        let reply = connect(scene, family).converse(FROM, TO, &message).unwrap();
        assert_eq!(reply.code, 250, "{reply:?}");
        check_delivered(scene.gateway.mails().last().unwrap(), &message, family.redirected());
    }
    assert_eq!(scene.gateway.mails().len(), 2);
    assert_eq!(scene.internet.peers(), []);
}

fn every_mtu_will_do(scene: &mut Scene) {
    // Of a frame beyond a page the driver hands a program the first buffer.
    let mtus = [1280, 1492, 3000, 9000];
    let message = lines((0..2000).map(|number| number % 998));
    for mtu in mtus {
        let resize = |host: &Namespace, device: &str| host.ip(&[format!("link set {device} mtu {mtu}")]).unwrap();
        resize(&scene.lab.client, "eth0");
        resize(&scene.lab.router, "lan0");
        for family in Family::BOTH {
            let reply = connect(scene, family).converse(FROM, TO, &message).unwrap();
            assert_eq!(reply.code, 250, "MTU {mtu}: {reply:?}");
            check_delivered(scene.gateway.mails().last().unwrap(), &message, family.redirected());
        }
    }
    assert_eq!(scene.gateway.mails().len(), mtus.len() * 2);
}

fn smuggling_never_ends_a_message(scene: &mut Scene) {
    let forms: [(&str, &[u8]); 9] = [
        ("LF . LF", b"\n.\n"),
        ("LF . CRLF", b"\n.\r\n"),
        ("CRLF . LF", b"\r\n.\n"),
        ("CR . CR", b"\r.\r"),
        ("CR . CRLF", b"\r.\r\n"),
        ("CRLF . CR", b"\r\n.\r"),
        ("CRLF . CR CRLF", b"\r\n.\r\r\n"),
        ("CRLF . NUL CRLF", b"\r\n.\0\r\n"),
        ("LF CR . CRLF", b"\n\r.\r\n"),
    ];
    for family in Family::BOTH {
        for (name, form) in forms {
            let before = scene.gateway.mails().len();
            let mut client = connect(scene, family);
            client.hello().unwrap();
            client.begin(FROM, TO).unwrap();
            let smuggled =
                b"MAIL FROM:<smuggler@evil.example>\r\nRCPT TO:<victim@internet.example>\r\nDATA\r\nsmuggled\r\n.\r\n";
            client.send(&[&b"Subject: s\r\n\r\nfirst"[..], form, smuggled, b"QUIT\r\n"].concat()).unwrap();
            // Whatever the relay replies, and whether it replies or hangs up: one message at most, and whole.
            let replies: Vec<Reply> = std::iter::from_fn(|| client.reply().ok()).collect();
            let mails = scene.gateway.mails();
            let new = mails.get(before..).unwrap();
            assert!(new.len() <= 1, "{name} over {family:?}: {} messages, replies {replies:?}", new.len());
            for mail in new {
                assert_eq!(mail.from, FROM, "{name}");
                assert!(
                    mail.data.ends_with(b"smuggled\r\n"),
                    "{name}: the message was cut: {}",
                    mail.data.escape_ascii()
                );
            }
            let taken = replies.iter().filter(|reply| reply.code == 250).count();
            assert_eq!(taken, new.len(), "{name}: {replies:?}");
        }
        // None of this harms the next conversation.
        assert_eq!(connect(scene, family).converse(FROM, TO, b"x\r\n").unwrap().code, 250);
    }
}

fn a_message_without_an_end_is_not_delivered(scene: &mut Scene) {
    let ends: [&[u8]; 5] = [b"half a line", b"a line\r\n", b"a line\r\n.", b"a line\r\n.\r", b"a line\n.\n"];
    for family in Family::BOTH {
        for end in ends {
            let mut client = connect(scene, family);
            client.hello().unwrap();
            client.begin(FROM, TO).unwrap();
            client.send(end).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let rest = client.drain().unwrap_or_default();
            assert!(!rest.starts_with(b"250"), "{}: {}", end.escape_ascii(), rest.escape_ascii());
        }
    }
    thread::sleep(SILENCE);
    assert_eq!(scene.gateway.mails(), []);
}

fn a_thousand_connections_at_once(scene: &mut Scene) {
    const CONNECTIONS: usize = 1000;
    // Client and servers are threads of this process, each with its sockets and copies of them.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();

    let all_connected = Barrier::new(CONNECTIONS);
    let message = |number: usize| format!("Subject: {number}\r\n\r\n{}\r\n", "x".repeat(number)).into_bytes();
    let family = |number: usize| Family::BOTH[number % 2];
    let lost: Vec<String> = thread::scope(|scope| {
        let client = |number: usize| {
            let (scene, all_connected) = (&*scene, &all_connected);
            let converse = move || -> Result<Reply> {
                let mut client = connect(scene, family(number));
                let hello = client.hello();
                all_connected.wait();
                hello?;
                let reply = client.deliver(&format!("{number}@client.example"), TO, &message(number))?;
                client.expect("QUIT", 221)?;
                Ok(reply)
            };
            thread::Builder::new().stack_size(256 * 1024).spawn_scoped(scope, converse).unwrap()
        };
        let clients: Vec<_> = (0..CONNECTIONS).map(client).collect();
        let outcomes = clients.into_iter().map(|client| client.join().unwrap());
        let lost = outcomes.enumerate().filter_map(|(number, outcome)| match outcome {
            Ok(reply) if reply.code == 250 => None,
            Ok(reply) => Some(format!("connection {number}: {reply:?}")),
            Err(error) => Some(format!("connection {number}: {error:#}")),
        });
        lost.collect()
    });
    assert_eq!(lost.len(), 0, "lost {} of {CONNECTIONS}, such as {:?}", lost.len(), lost.first());

    let mut mails = scene.gateway.mails();
    assert_eq!(mails.len(), CONNECTIONS);
    let number = |mail: &Mail| mail.from.split('@').next().unwrap().parse::<usize>().unwrap();
    mails.sort_by_key(number);
    for (expected, mail) in mails.iter().enumerate() {
        assert_eq!(number(mail), expected);
        check_delivered(mail, &message(expected), family(expected).redirected());
    }
    assert_eq!(scene.internet.peers(), []);
}

/// Speaks until a reply is not what a willing server gives, and returns that.
fn refusal(client: &mut Client) -> Reply {
    let greeting = client.reply().unwrap();
    if greeting.code != 220 {
        return greeting;
    }
    let steps = ["EHLO client.example", &format!("MAIL FROM:<{FROM}>"), &format!("RCPT TO:<{TO}>"), "DATA", "x\r\n."];
    for step in steps {
        let reply = client.command(step).unwrap();
        if !matches!(reply.code, 250 | 354) || (step == "x\r\n.") {
            return reply;
        }
    }
    unreachable!("the last step returns")
}

#[track_caller]
fn check_temporary(reply: &Reply) {
    assert!((400..500).contains(&reply.code), "{reply:?}");
    assert!(reply.enhanced().is_some_and(|code| code.starts_with("4.")), "{reply:?}");
}

fn the_gateway_refuses_connections(scene: &mut Scene) {
    let to_the_gateway = Capture::start(&scene.lab, &scene.lab.gateway, "eth0", "tcp port 25").unwrap();
    // From here on its port is closed.
    let elsewhere = SocketAddr::new(Family::V4.gateway(), 2526);
    scene.gateway = Server::start(&scene.lab.gateway, "elsewhere", &[elsewhere], Manner::Accepts).unwrap();
    for family in Family::BOTH {
        let mut client = connect(scene, family);
        check_temporary(&refusal(&mut client));
        // The session goes on, or ends in order.
        assert!(client.command("QUIT").is_ok_and(|reply| reply.code == 221 || reply.code == 421));
    }
    to_the_gateway.wait_for("attempt", |packet| packet.tcp().is_some()).unwrap();

    // And when it is back, mail goes through again.
    let address = port_25(Family::V4.gateway());
    scene.gateway = Server::start(&scene.lab.gateway, "gateway", &[address], Manner::Accepts).unwrap();
    for family in Family::BOTH {
        assert_eq!(connect(scene, family).converse(FROM, TO, b"x\r\n").unwrap().code, 250);
    }
    assert_eq!(scene.gateway.mails().len(), 2);
}

#[test]
fn the_gateway_is_silent() {
    let scene = Scene::new(Mode::Tc).unwrap();
    // Not even a reset comes back.
    scene.lab.gateway.ip(&["link set eth0 down"]).unwrap();
    for family in Family::BOTH {
        check_temporary(&refusal(&mut connect(&scene, family)));
    }
    assert_eq!(scene.gateway.mails(), []);
    assert_eq!(scene.gateway.cut(), []);
}

/// Who is not told that a message was taken sends it again.
#[test]
fn a_stop_waits_for_the_reply_to_a_message_on_its_way() {
    let mut scene = Scene::with_gateway(Mode::Tc, Manner::Ponders).unwrap();
    let mut client = connect(&scene, Family::V4);
    client.hello().unwrap();
    client.begin(FROM, TO).unwrap();
    client.send(b"x\r\n.\r\n").unwrap();
    wait_until("message", PATIENCE, || Ok(scene.gateway.mails().pop())).unwrap();
    let stopping = thread::scope(|scope| {
        let stopping = scope.spawn(|| scene.product.stop().unwrap());
        assert_eq!(client.reply().unwrap().code, 250);
        stopping.join().unwrap()
    });
    assert!(stopping.success());
    assert_eq!(scene.gateway.mails().len(), 1);
}

#[test]
fn the_gateway_hangs_up_after_the_message() {
    let scene = Scene::with_gateway(Mode::Tc, Manner::HangsUpAfterTheMessage).unwrap();
    for (family, delivered) in Family::BOTH.into_iter().zip(1..) {
        check_temporary(&refusal(&mut connect(&scene, family)));
        // Its fate is unknown, so it is not tried again.
        thread::sleep(SILENCE / 4);
        assert_eq!(scene.gateway.mails().len(), delivered);
    }
}

#[test]
fn postfix_smtp_source_delivers_a_hundred() {
    let scene = Scene::new(Mode::Tc).unwrap();
    let mut command = postfix::program("smtp-source").unwrap();
    let server = Family::V4.server();
    command.args(["-s", "20", "-m", "100", "-l", "3000", "-f", FROM, "-t", TO]).arg(format!("inet:{server}:25"));
    let finished = scene.lab.client.run(&mut command, Duration::from_mins(1)).unwrap();
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr);
    assert_eq!(scene.gateway.mails().len(), 100);
}

/// Everything that is known of a message is in its one line of the log, and of what it says and of its people nothing.
#[test]
fn a_message_leaves_a_record() {
    let mut scene = Scene::new(Mode::Steer).unwrap();
    scene.product.stop().unwrap();
    let configuration = Mode::Steer.configuration(&scene.lab) + "\n[log]\nformat = \"json\"\n";
    scene.product = Product::start(&scene.lab, &configuration).unwrap();
    let mut client = connect(&scene, Family::V4);
    client.hello().unwrap();
    client.begin(FROM, TO).unwrap();
    client.send(b"Subject: midnight\r\n\r\nat the bridge\r\n.\r\n").unwrap();
    assert_eq!(client.reply().unwrap().code, 250);
    let record = wait_until("record", PATIENCE, || {
        let log = scene.product.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        Ok(lines.map(|line| line["fields"].clone()).find(|fields| fields["message"] == "message"))
    })
    .unwrap();
    let expected: [(&str, serde_json::Value); 13] = [
        ("class", "configured".into()),
        ("original", port_25(Family::V4.server()).to_string().into()),
        ("gateway", "default".into()),
        ("egress", "192.0.2.1".into()),
        ("size", 36.into()),
        ("recipients", 1.into()),
        ("recipients_refused", 0.into()),
        ("outcome", "accepted".into()),
        ("cause", "gateway".into()),
        ("tls", false.into()),
        ("authenticated", false.into()),
        ("duplicate_risk", false.into()),
        ("client_gone", false.into()),
    ];
    for (name, value) in expected {
        assert_eq!(record[name], value, "{name} of {record}");
    }
    let subscriber: SocketAddr = record["subscriber"].as_str().unwrap().parse().unwrap();
    assert_eq!(subscriber.ip(), Family::V4.redirected());
    for name in ["reply", "gateway_mail", "gateway_recipient", "gateway_verdict"] {
        assert!(record[name].as_str().unwrap().starts_with("250 2."), "{name} of {record}");
    }
    assert_eq!(record["gateway_data"], "354 3.0.0");
    let times = ["gateway_ready_ms", "recipient_ms", "data_ms", "sent_ms", "duration_ms"];
    let times: Vec<_> = times.iter().map(|name| record[*name].as_u64().expect("a time for each step")).collect();
    assert!(times.is_sorted(), "{record}");
    let log = scene.product.log();
    for private in [FROM, TO, "midnight", "bridge"] {
        assert!(!log.contains(private), "{private}: {log}");
    }
}

/// The gateway that breaks off after the final dot: its record says that the message may come twice.
#[test]
fn a_risk_of_duplicates_is_on_record() {
    let scene = Scene::with_gateway(Mode::Steer, Manner::HangsUpAfterTheMessage).unwrap();
    check_temporary(&refusal(&mut connect(&scene, Family::V4)));
    let record = wait_until("record", PATIENCE, || {
        let log = scene.product.log();
        Ok(log.lines().find(|line| line.contains(": message ")).map(str::to_owned))
    })
    .unwrap();
    for field in ["outcome=\"deferred\"", "cause=\"outcome_unknown\"", "duplicate_risk=true", "reply=451 4.4.2"] {
        assert!(record.contains(field), "{field} in {record}");
    }
}
