//! Every stage of a conversation with a gateway times every way it can fail: what the client is told, that the gateway never
//! has a message that the client was not told of (except where the relay says that it cannot know), and that nothing is left
//! over: no task, no descriptor.
//!
//! A process of its own, because it counts the descriptors of the process.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

#[path = "../loopback/support.rs"]
#[expect(dead_code, reason = "shared with the other tests of the crate, which use more of it")]
mod support;

use std::{fs, sync::Arc, time::Duration};

use redirect_relay::gateway::{Account, Encryption, Gateway, Mechanism, Secret};
use rustls::{ServerConfig, pki_types::pem::PemObject};
use tokio::runtime::{Builder, Handle};

use crate::support::{BODY, Client, Do, FakeGateway, Nature, Running, Stage, plain, settings, to};

/// What the gateway does instead of its usual answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Hang,
    Close,
    Later,
    Never,
    Shutdown,
    Garbage,
    BareLf,
    Mixed,
    Wrong,
    /// The usual answer, and one more: to the next command, before that was sent.
    Extra,
    /// The usual answer, and then the end.
    AnswerAndClose,
}

const FAULTS: [Fault; 11] = [
    Fault::Hang,
    Fault::Close,
    Fault::Later,
    Fault::Never,
    Fault::Shutdown,
    Fault::Garbage,
    Fault::BareLf,
    Fault::Mixed,
    Fault::Wrong,
    Fault::Extra,
    Fault::AnswerAndClose,
];

const STAGES: [Stage; 12] = [
    Stage::Banner,
    Stage::Ehlo,
    Stage::Starttls,
    Stage::Xclient,
    Stage::Auth,
    Stage::Mail,
    Stage::Rcpt,
    Stage::Data,
    Stage::Body,
    Stage::Dot,
    Stage::Rset,
    Stage::Quit,
];

fn usual(stage: Stage) -> &'static str {
    match stage {
        Stage::Banner => "220 g ready\r\n",
        Stage::Ehlo => "250-g\r\n250-PIPELINING\r\n250-STARTTLS\r\n250-XCLIENT ADDR\r\n250 AUTH PLAIN\r\n",
        Stage::Starttls | Stage::Xclient => "220 go\r\n",
        Stage::Auth => "235 ok\r\n",
        Stage::Data => "354 go\r\n",
        Stage::Quit => "221 bye\r\n",
        Stage::Body => "",
        Stage::Mail | Stage::Rcpt | Stage::Dot | Stage::Rset => "250 ok\r\n",
    }
}

fn act(stage: Stage, fault: Fault) -> Do {
    let say = |text: &str| Do::Say(text.to_owned());
    match fault {
        Fault::Hang => Do::Hang,
        Fault::Close => Do::Close,
        Fault::Later => say("451 4.3.0 later\r\n"),
        Fault::Never => say("554 5.3.0 never\r\n"),
        Fault::Shutdown => say("421 4.3.2 closing\r\n"),
        Fault::Garbage => say("\x16\x03 what\r\n"),
        Fault::BareLf => say("250 ok\n"),
        Fault::Mixed => say("250-ok\r\n550 no\r\n"),
        Fault::Wrong => say(if stage == Stage::Data { "250 ok\r\n" } else { "354 go\r\n" }),
        Fault::Extra => Do::Say(format!("{}250 extra\r\n", usual(stage))),
        Fault::AnswerAndClose => Do::SayAndClose(usual(stage).to_owned()),
    }
}

/// The last reply of the transaction, and whether the gateway may have the message.
fn expected(stage: Stage, fault: Fault) -> (&'static str, Delivery) {
    use Delivery::{No, Unknown, Yes};
    use Fault::{AnswerAndClose, Extra, Later, Never, Shutdown, Wrong};
    const LOST: &str = "451 4.4.2 The connection";
    match (stage, fault) {
        // Refusals before MAIL are no verdict on the message.
        (Stage::Banner | Stage::Ehlo | Stage::Xclient, Later | Never | Shutdown) => ("451 4.3.2", No),
        (Stage::Starttls, Later | Never | Shutdown) => ("451 4.7.5", No),
        (Stage::Auth, Later | Never | Shutdown) => ("451 4.7.0", No),
        (Stage::Mail | Stage::Rcpt | Stage::Data, Later) => ("451 4.3.0 later", No),
        (Stage::Mail | Stage::Rcpt | Stage::Data, Never) => ("554 5.3.0 never", No),
        (Stage::Mail | Stage::Rcpt | Stage::Data, Shutdown) => ("451 4.3.2 closing", No),
        (Stage::Body, Extra | AnswerAndClose) => unreachable!("there is no answer that could be followed"),
        // It takes the rest, and nobody knows what it made of it.
        (Stage::Body, Fault::Hang) => ("451 4.4.2 Outcome unknown", Unknown),
        // Silence, the end, and what fits nothing. Whatever it says within a body, it says out of turn.
        (
            Stage::Banner
            | Stage::Ehlo
            | Stage::Starttls
            | Stage::Xclient
            | Stage::Auth
            | Stage::Mail
            | Stage::Rcpt
            | Stage::Data
            | Stage::Body,
            _,
        ) => (LOST, No),
        (Stage::Dot, Later) => ("451 4.3.0 later", Yes),
        (Stage::Dot, Never) => ("554 5.3.0 never", Yes),
        (Stage::Dot, Shutdown) => ("451 4.3.2 closing", Yes),
        (Stage::Dot, Extra | AnswerAndClose) => ("250 2.0.0 ok", Yes),
        (Stage::Dot, Fault::Hang | Fault::Close | Fault::Garbage | Fault::BareLf | Fault::Mixed | Wrong) => {
            ("451 4.4.2 Outcome unknown", Unknown)
        }
        // After the verdict nothing is the client's concern any more.
        (Stage::Rset | Stage::Quit, _) => ("250 2.0.0 queued", Yes),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    No,
    /// It came to its dot, and the client has the gateway's own answer.
    Yes,
    Unknown,
}

/// One transaction; the last reply that it gets.
async fn transaction(client: &mut Client) -> String {
    client.ask("MAIL FROM:<a@b.example>", "250 2.1.0").await;
    let reply = client.ask("RCPT TO:<c@d.example>", "").await;
    if !reply.starts_with("250") {
        return reply;
    }
    let reply = client.ask("DATA", "").await;
    if !reply.starts_with("354") {
        return reply;
    }
    client.send(BODY).await;
    // Time for the body so far to leave, and for the gateway to say something in the middle.
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.send(format!("{BODY}.\r\n")).await;
    client.reply().await
}

fn gateway(fake: &FakeGateway) -> Gateway {
    let mut gateway = plain("g", fake.address);
    gateway.encryption = Encryption::StarttlsRequired;
    gateway.xclient = true;
    let password = Secret::new("hunter2".into());
    let account = Account { mechanism: Mechanism::default(), username: "u".into(), password, allow_unprotected: true };
    gateway.account = Some(account);
    gateway
}

async fn case(stage: Stage, fault: Fault, tls: Arc<ServerConfig>) {
    let case = format!("{stage:?} {fault:?}");
    let nature = Nature { tls: Some(tls), offers: vec!["XCLIENT ADDR", "AUTH PLAIN"], ..Nature::default() };
    let fake = FakeGateway::with(nature, vec![(stage, act(stage, fault))]);
    let relay = Running::start(settings(), Some("configured"), Some(to(vec![gateway(&fake)]))).await;
    let mut client = relay.client().await;
    client.greet().await;
    if stage == Stage::Rset {
        client.ask("MAIL FROM:<a@b.example>", "250").await;
        client.ask("RCPT TO:<c@d.example>", "250").await;
        client.ask("RSET", "250").await;
    }
    let begun = tokio::time::Instant::now();
    let reply = transaction(&mut client).await;
    let (told, delivery) = expected(stage, fault);
    assert!(reply.starts_with(told), "{case}: expected {told:?}, got {reply:?}");
    let limit = if delivery == Delivery::Unknown { 600 } else { 300 };
    assert!(begun.elapsed() < Duration::from_secs(limit), "{case}: the client's own wait is over");
    client.ask("NOOP", "250").await;
    client.ask("QUIT", "221").await;
    client.ended().await;
    let counters = relay.stop().await;
    let seen = fake.seen();
    match delivery {
        Delivery::No => assert_eq!(seen.messages.len(), 0, "{case}: {seen:?}"),
        Delivery::Yes => assert_eq!(seen.messages.len(), 1, "{case}: {seen:?}"),
        Delivery::Unknown => assert!(seen.messages.len() <= 1, "{case}: {seen:?}"),
    }
    assert_eq!(counters.duplicate_risk, u64::from(delivery == Delivery::Unknown), "{case}");
    let accepted = u64::from(reply.starts_with("250"));
    assert_eq!(counters.messages_accepted, accepted, "{case}");
    drop(client);
    fake.stop().await;
    // Tasks that were told to end need a turn to do so.
    for _ in 0..100 {
        if Handle::current().metrics().num_alive_tasks() == 0 {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("{case}: {} tasks are left", Handle::current().metrics().num_alive_tasks());
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn certificate() -> Arc<ServerConfig> {
    let made = rcgen::generate_simple_self_signed(["g.example".into()]).unwrap();
    let key = made.signing_key.serialize_pem();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap())
}

#[test]
fn attacks_40_to_44_the_fault_matrix() {
    let tls = certificate();
    let run = |stage, fault| {
        // Time stands still but for waits that nothing else can end, so a hang of minutes takes none.
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(case(stage, fault, Arc::clone(&tls)));
    };
    run(Stage::Banner, Fault::Close);
    let base = descriptors();
    let mut cases = 0;
    for stage in STAGES {
        for fault in FAULTS {
            if stage == Stage::Body && matches!(fault, Fault::Extra | Fault::AnswerAndClose) {
                continue;
            }
            run(stage, fault);
            assert_eq!(descriptors(), base, "{stage:?} {fault:?} leaves descriptors open");
            cases += 1;
        }
    }
    assert_eq!(cases, 12 * 11 - 2);
}
