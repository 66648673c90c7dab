//! The lab itself: what it connects, what it captures, and that nothing of it stays.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use redirect_tests::{
    Family, Lab,
    capture::{Capture, Segment, TCP_SYN},
    postfix::SmtpSink,
    raw::{self, Wire},
    smtp::{Client, Manner, Server, port_25},
    wait_until,
};

const PATIENCE: Duration = Duration::from_secs(10);

fn namespaces_of(id: &str) -> usize {
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    names.filter(|name| name.file_name().to_string_lossy().starts_with(id)).count()
}

#[test]
fn hosts_reach_each_other() {
    let lab = Lab::new().unwrap();
    for family in Family::BOTH {
        let reached = [(&lab.client, &lab.internet, family.server()), (&lab.router, &lab.gateway, family.gateway())];
        for (from, to, address) in reached {
            let address = SocketAddr::from((address, 8025));
            let listener = to.enter(|| TcpListener::bind(address)).unwrap();
            from.enter(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap();
            listener.accept().unwrap();
        }
    }
}

#[test]
fn nothing_stays() {
    let lab = Lab::new().unwrap();
    let (id, folder) = (lab.id().to_owned(), lab.folder().to_path_buf());
    let daemon = lab.start(&lab.client, "sleep", Command::new("sleep").arg("600")).unwrap();
    let process = Path::new("/proc").join(daemon.id().to_string());
    assert_eq!(namespaces_of(&id), 4);
    assert!(folder.exists() && process.exists());

    // In this order the lab has to end the process by itself.
    drop(lab);
    drop(daemon);
    assert_eq!(namespaces_of(&id), 0);
    assert!(!folder.exists());
    assert!(!process.exists());
}

#[test]
fn nothing_stays_of_a_process_that_is_killed() {
    // This test again as a process of its own, which waits in the middle of its lab for its end.
    const INSIDE: &str = "REDIRECT_LAB_INSIDE";
    if let Ok(file) = std::env::var(INSIDE) {
        let lab = Lab::new().unwrap();
        let daemon = lab.start(&lab.client, "sleep", Command::new("sleep").arg("600")).unwrap();
        fs::write(file, format!("{} {}", lab.id(), daemon.id())).unwrap();
        loop {
            std::thread::park();
        }
    }

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("inside");
    let mut inside = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nothing_stays_of_a_process_that_is_killed"])
        .env(INSIDE, &file)
        .spawn()
        .unwrap();
    let text = wait_until("lab of the process", PATIENCE, || {
        Ok(fs::read_to_string(&file).ok().filter(|text| text.contains(' ')))
    });
    inside.kill().unwrap();
    inside.wait().unwrap();

    let text = text.unwrap();
    let (id, sleep) = text.split_once(' ').unwrap();
    let sleep = Path::new("/proc").join(sleep);
    wait_until("end of what it started", PATIENCE, || Ok((namespaces_of(id) == 0 && !sleep.exists()).then_some(())))
        .unwrap();
}

#[test]
fn mail_and_capture_without_the_product() {
    let lab = Lab::new().unwrap();
    lab.offloads(&lab.client, "eth0", false).unwrap();
    for family in Family::BOTH {
        let (client, server) = (family.redirected(), port_25(family.server()));
        let capture = Capture::start(&lab, &lab.internet, "eth0", "tcp port 25").unwrap();
        let internet = Server::start(&lab.internet, "internet", &[server], Manner::Accepts).unwrap();

        let message = b"Subject: s\r\n\r\n.dot\r\n..\r\n\xff\r\n";
        let connection = Client::connect(&lab.client, (client, 0), server).unwrap();
        let port = connection.local_addr().unwrap();
        let reply = connection.converse("a@client.example", "b@internet.example", message).unwrap();
        assert_eq!(reply.enhanced(), Some("2.0.0"));

        let mails = internet.wait_for(1).unwrap();
        assert_eq!(mails.len(), 1);
        assert_eq!(mails[0].data, message);
        assert_eq!((mails[0].peer, mails[0].server), (port, server));
        assert_eq!(
            (mails[0].from.as_str(), &mails[0].to[..]),
            ("a@client.example", &["b@internet.example".to_owned()][..])
        );

        let goodbye = |segment: &Segment| segment.from == port && segment.data == b"QUIT\r\n";
        capture.wait_for("QUIT", |packet| packet.tcp().is_some_and(|segment| goodbye(&segment))).unwrap();
        let segments: Vec<_> = capture.stop().unwrap().iter().map(|packet| packet.tcp().unwrap()).collect();
        assert!(segments.iter().all(|segment| [segment.from, segment.to].contains(&port)));
        assert!(segments.iter().filter(|segment| segment.from == port).all(|segment| segment.checksum_holds));
    }
}

#[test]
fn smtp_sink_stores_what_a_client_sends() {
    let lab = Lab::new().unwrap();
    for family in Family::BOTH {
        let server = port_25(family.server());
        let sink = SmtpSink::start(&lab, &lab.internet, &format!("sink-{family:?}"), server).unwrap();
        let client = Client::connect(&lab.client, (family.redirected(), 0), server).unwrap();
        client.converse("a@client.example", "b@internet.example", b"Subject: s\r\n\r\n.dot\r\n\r\n").unwrap();
        let mails = sink.mails().unwrap();
        assert_eq!(mails.len(), 1);
        assert_eq!(mails[0].data, b"Subject: s\n\n.dot\n\n");
        assert_eq!(mails[0].peer, family.redirected());
        assert_eq!(mails[0].from, "a@client.example");
    }
}

#[test]
fn frames_by_hand_arrive_as_they_were_sent() {
    let lab = Lab::new().unwrap();
    let capture = Capture::start(&lab, &lab.router, "lan0", "").unwrap();
    let mut frames = vec![raw::ethernet(0x88b5, b"garbage")];
    for family in Family::BOTH {
        let (from, to) = (family.redirected(), family.server());
        frames.push(raw::ip(from, to, raw::PROTOCOL_UDP, &raw::udp((from, 9), (to, 9), b"odd")));
        frames.push(raw::ip(from, to, raw::PROTOCOL_TCP, &raw::tcp((from, 9), (to, 9), TCP_SYN, b"")));
    }
    let wire = Wire::open(&lab.client, "eth0").unwrap();
    for frame in &frames {
        wire.send(frame).unwrap();
        capture.wait_for("frame", |packet| packet.frame == *frame).unwrap();
    }
    // The server answers them with resets, whose checksums veth leaves unfinished.
    let segments = capture.stop().unwrap().into_iter().filter_map(|packet| packet.tcp());
    let ours: Vec<_> = segments.filter(|segment| segment.flags == TCP_SYN).collect();
    assert_eq!(ours.len(), 2);
    assert!(ours.iter().all(|segment| segment.checksum_holds && segment.data.is_empty()));
}
