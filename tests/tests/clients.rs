//! What subscribers' mail programs meet at the relay: TLS with the operator's certificate, and logins; with msmtp, which believes to talk to
//! the server that it dialled.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{fs, path::PathBuf, process::Command, time::Duration};

use redirect_tests::{
    Family, Finished, Mode, Scene,
    server::{ACCOUNT, Certificate, DOMAIN, HOSTNAME, MailServer, Software, TLS_PORT, Terms},
    smtp::{Client, port_25},
    unpacked, wait_until,
};

const LIMIT: Duration = Duration::from_mins(1);
const FROM: &str = "guest@client.example";

/// A scene whose class `configured` has these rules, and TLS with a certificate; who does not log in may not send.
struct Office {
    scene: Scene,
    certificate: Certificate,
}

impl Office {
    fn new(mode: Mode, rules: &[&str]) -> Self {
        let scene = Scene::new(mode).unwrap();
        let certificate = Certificate::new(&scene.lab.folder().join("operator.pem")).unwrap();
        let office = Self { scene, certificate };
        office.set_certificate();
        let class = ["class", "set", "configured", "--action", "redirect", "--relay", "embedded"];
        let tls = ["--tls", "offer", "--certificate", "relay", "--unauthenticated", "deny"];
        office.scene.ctl(&[&class[..], &tls, rules].concat()).unwrap();
        office
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.scene.lab.folder().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn set_certificate(&self) {
        let (chain, key) =
            (self.file("chain.pem", self.certificate.chain()), self.file("key.pem", self.certificate.key()));
        let files = ["--chain-file", chain.to_str().unwrap(), "--key-file", key.to_str().unwrap()];
        self.scene.ctl(&[&["certificate", "set", "relay"][..], &files].concat()).unwrap();
    }

    /// Sends a message over TLS, which must be with `certificate`, as this user.
    fn send(&self, certificate: &Certificate, mechanism: &str, (user, password): (&str, &str)) -> Finished {
        let message = self.file("message", "Subject: from the office\n\nHello.\n");
        let password = self.file("password", password);
        let mut command = Command::new("sh");
        command
            .args(["-c", "message=$1 && shift && exec \"$@\" < \"$message\"", "sh"])
            .arg(message)
            .arg(unpacked("msmtp").unwrap().join("usr/bin/msmtp"))
            .args(["--port=25", "--domain=client.example", "--tls=on", "--tls-starttls=on"])
            .arg(format!("--tls-trust-file={}", certificate.authority().display()))
            .arg(format!("--tls-host-override={HOSTNAME}"))
            .args([format!("--auth={mechanism}"), format!("--user={user}")])
            .arg(format!("--passwordeval=cat {}", password.display()))
            .arg(format!("--host={}", Family::V4.server()))
            .arg(format!("--source-ip={}", Family::V4.redirected()))
            .args([format!("--from={FROM}"), format!("friend@{DOMAIN}")]);
        self.scene.lab.client.run(&mut command, LIMIT).unwrap()
    }

    #[track_caller]
    fn check_sent(&self, mechanism: &str, account: (&str, &str)) {
        let finished = self.send(&self.certificate, mechanism, account);
        assert_eq!(finished.code(), Some(0), "{}\n{}", finished.stderr, self.scene.product.log());
    }

    #[track_caller]
    fn check_denied(&self, account: (&str, &str)) {
        let finished = self.send(&self.certificate, "plain", account);
        assert_ne!(finished.code(), Some(0));
        assert!(finished.stderr.contains("535"), "{}", finished.stderr);
    }

    /// What was given to the daemon or to the relay stays there.
    fn check_log(&self, secrets: &[&str]) {
        let log = self.scene.product.log();
        let key = self.certificate.key().lines().nth(1).unwrap();
        for secret in secrets.iter().chain([&key]) {
            assert!(!log.contains(secret), "{secret} is in the log: {log}");
        }
    }
}

/// The gateway of these is the test's own.
fn log_in_at_the_relay(mode: Mode) {
    let mut office = Office::new(mode, &["--auth", "local"]);
    // What comes over TLS goes on in clear only where that is said.
    let gateway = Family::V4.gateway().to_string();
    office
        .scene
        .ctl(&["gateway", "set", "default", "--address", &gateway, "--port", "25", "--allow-downgrade"])
        .unwrap();
    let password = office.file("anna", "correct horse\n");
    office.scene.ctl(&["user", "set", "anna@hotel.example", "--password-file", password.to_str().unwrap()]).unwrap();
    let anna = ("anna@hotel.example", "correct horse");
    for mechanism in ["plain", "login"] {
        office.check_sent(mechanism, anna);
    }
    office.check_denied(("anna@hotel.example", "battery staple"));
    office.check_denied(("bert", "correct horse"));
    // Neither without TLS nor without a login.
    let address = (Family::V4.redirected(), 0);
    let mut client = Client::connect(&office.scene.lab.client, address, port_25(Family::V4.server())).unwrap();
    client.hello().unwrap();
    let offers = client.expect("EHLO client.example", 250).unwrap().lines;
    assert!(offers.iter().any(|line| line == "STARTTLS") && !offers.iter().any(|line| line.starts_with("AUTH")));
    client.expect(&format!("MAIL FROM:<{FROM}>"), 530).unwrap();
    client.expect("AUTH PLAIN AGEAYg==", 538).unwrap();
    drop(client);

    // Renewed while the daemon runs: the next session has it.
    let before = std::mem::replace(
        &mut office.certificate,
        Certificate::new(&office.scene.lab.folder().join("renewed.pem")).unwrap(),
    );
    office.set_certificate();
    assert_ne!(office.send(&before, "plain", anna).code(), Some(0), "the old certificate");
    office.check_sent("plain", anna);

    let mails = office.scene.gateway.mails();
    assert_eq!(mails.len(), 3);
    for mail in &mails {
        let (received, _) = mail.split_received().unwrap();
        let received = String::from_utf8_lossy(received);
        assert!(received.contains(" with ESMTPSA (class configured"), "{received}");
    }
    assert_eq!(office.scene.internet.peers(), [], "nothing reaches the server that was dialled");
    office.check_log(&["correct horse", "battery staple"]);
}

#[test]
fn log_in_at_the_relay_rewritten() {
    log_in_at_the_relay(Mode::Tc);
}

#[test]
fn log_in_at_the_relay_steered() {
    log_in_at_the_relay(Mode::Steer);
}

/// Postfix at the gateway knows the account; the relay has none of its own.
#[test]
fn log_in_at_the_gateway() {
    let office = Office::new(Mode::Tc, &["--auth", "bridge"]);
    let lab = &office.scene.lab;
    let certificate = Certificate::new(&lab.folder().join("gateway.pem")).unwrap();
    let terms = Terms { certificate: Some(&certificate), account: Some(ACCOUNT) };
    let server = MailServer::start(lab, &lab.gateway, Software::Postfix, terms).unwrap();
    let (address, port) = (Family::V4.gateway().to_string(), TLS_PORT.to_string());
    let gateway = ["gateway", "set", "default", "--address", &address, "--port", &port, "--encryption", "implicit"];
    let authority = certificate.authority().to_str().unwrap();
    let verification = ["--verification", "ca", "--ca-file", authority, "--sni", HOSTNAME];
    office.scene.ctl(&[&gateway[..], &verification].concat()).unwrap();

    let account = (ACCOUNT.name, ACCOUNT.password);
    for (sent, mechanism) in ["plain", "login"].into_iter().enumerate() {
        office.check_sent(mechanism, account);
        let mails = server.wait_for(sent + 1).unwrap();
        assert!(mails.iter().all(|mail| mail.protocol().as_deref() == Some("esmtpsa")));
    }
    office.check_denied((ACCOUNT.name, "battery staple"));
    let released = wait_until("no connection is kept for others", LIMIT, || {
        let gateways = office.scene.product.json(lab, &["gateway", "list"])?;
        let state = &gateways[0]["state"];
        Ok((state["up"] == true && state["connections"] == 0 && state["idle"] == 0).then_some(()))
    });
    released.unwrap();
    assert_eq!(server.wait_for(2).unwrap().len(), 2);
    office.check_log(&[ACCOUNT.password, "battery staple"]);
}
