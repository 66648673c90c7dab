//! AUTH by bridge with real gateways: whose credentials they see, on which connection, and what becomes of it.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::AtomicU32},
    time::Duration,
};

use redirect_relay::{
    Auth, Policy, Settings,
    gateway::{Gateway, Mechanism},
    route::{Route, Routing, Target},
};

use crate::{
    gateways::{account, authority, deliver, with_tls},
    support::{Client, Do, FakeGateway, Nature, Running, Site, Stage, plain, settings, to},
};

/// NUL anna NUL first; NUL bert NUL second; the gateway's account; and nobody's.
const ANNA: &str = "AGFubmEAZmlyc3Q=";
const BERT: &str = "AGJlcnQAc2Vjb25k";
const HOTEL: &str = "AHUAaHVudGVyMg==";
const NOBODY: &str = "AGFubmEAd3Jvbmc=";

fn knowing(users: &[&'static str]) -> Nature {
    Nature { offers: vec!["AUTH PLAIN LOGIN"], users: users.to_vec(), ..Nature::default() }
}

async fn relay_to(allow_unprotected: bool, settings: Settings, gateways: Vec<Gateway>) -> Running {
    let policy = Policy { auth: Auth::Bridge { allow_unprotected }, auth_cleartext: true, ..Policy::default() };
    let site = Site {
        class: Some("configured"),
        policy: Arc::new(policy),
        original: "198.51.100.9:25".parse().unwrap(),
        routing: Mutex::new(Arc::new(Routing::build(to(gateways)).unwrap())),
        listeners: Mutex::default(),
        locks: AtomicU32::new(0),
    };
    Running::at_site(settings, site).await
}

async fn log_in(relay: &Running, credentials: &str, expected: &str) -> Client {
    let mut client = relay.client().await;
    client.greet().await;
    client.ask(&format!("AUTH PLAIN {credentials}"), expected).await;
    client
}

fn auths(gateway: &FakeGateway) -> Vec<String> {
    gateway.seen().commands.iter().filter_map(|line| Some(line.strip_prefix("AUTH PLAIN ")?.to_owned())).collect()
}

#[tokio::test]
async fn each_client_has_a_connection_of_its_own_that_nobody_has_after_it() {
    let authority = authority("mx.example");
    let nature = Nature { tls: Some(Arc::clone(&authority.server)), ..knowing(&[ANNA, BERT, HOTEL]) };
    let gateway = FakeGateway::with(nature, vec![]);
    let mut spec = with_tls(&authority, gateway.address);
    spec.account = Some(account(Mechanism::Plain));
    let relay = relay_to(false, settings(), vec![spec]).await;
    let mut anna = log_in(&relay, ANNA, "235 2.7.0").await;
    let mut bert = log_in(&relay, BERT, "235 2.7.0").await;
    assert!(deliver(&mut anna).await.starts_with("250 2.0.0 queued"));
    assert!(deliver(&mut bert).await.starts_with("250 2.0.0 queued"));
    assert!(deliver(&mut anna).await.starts_with("250 2.0.0 queued"));
    assert_eq!((gateway.seen().connections, auths(&gateway)), (2, vec![ANNA.to_owned(), BERT.to_owned()]));
    let state = &relay.relay.gateways()[0];
    assert_eq!((state.connections, state.idle), (2, 0), "{state:?}");
    for client in [&mut anna, &mut bert] {
        client.ask("QUIT", "221").await;
    }
    gateway.until("both ends", |seen| seen.commands.iter().filter(|line| *line == "QUIT").count() == 2).await;
    // Who does not log in goes by the gateway's account, and the next one after him by the same connection.
    for _ in 0..2 {
        let mut other = relay.client().await;
        other.greet().await;
        assert!(deliver(&mut other).await.starts_with("250 2.0.0 queued"));
        other.ask("QUIT", "221").await;
        relay.until("the end", |counters| counters.sessions_active == 0).await;
    }
    assert_eq!((gateway.seen().connections, auths(&gateway)), (3, [ANNA, BERT, HOTEL].map(str::to_owned).into()));
    let counters = relay.stop().await;
    assert_eq!((counters.messages_accepted, counters.auth_failures), (5, 0));
}

/// Guessing must not keep others from the gateway, and is no reason to ask another.
#[tokio::test]
async fn attack_36_wrong_passwords_are_nobodys_fault_but_the_clients() {
    let (first, second) = (FakeGateway::with(knowing(&[ANNA]), vec![]), FakeGateway::with(knowing(&[NOBODY]), vec![]));
    let gateways = vec![plain("g0", first.address), plain("g1", second.address)];
    let relay = relay_to(true, settings(), gateways).await;
    for _ in 0..5 {
        log_in(&relay, NOBODY, "535 5.7.8").await.ask("QUIT", "221").await;
    }
    assert_eq!((first.seen().connections, second.seen().connections), (5, 0));
    for state in relay.relay.gateways() {
        assert_eq!((state.up, state.last_error, state.connections), (true, None, 0));
    }
    let mut anna = log_in(&relay, ANNA, "235 2.7.0").await;
    assert!(deliver(&mut anna).await.starts_with("250 2.0.0 queued"));
    anna.ask("QUIT", "221").await;
    let counters = relay.stop().await;
    assert_eq!((counters.auth_failures, counters.gateway_failures), (5, 0));
}

/// A gateway that cannot tell for the moment is another matter.
#[tokio::test]
async fn attack_42_the_next_gateway_is_asked_when_the_first_cannot_tell() {
    let busy = vec![(Stage::Auth, Do::Say("454 4.7.0 later\r\n".into()))];
    let (first, second) = (FakeGateway::with(knowing(&[]), busy.clone()), FakeGateway::with(knowing(&[ANNA]), vec![]));
    let relay = relay_to(true, settings(), vec![plain("g0", first.address), plain("g1", second.address)]).await;
    let mut anna = log_in(&relay, ANNA, "235 2.7.0").await;
    // Routes are not asked: all mail goes by the connection that there is.
    let mut spec = to(vec![plain("g0", first.address), plain("g1", second.address)]);
    spec.routes.push(Route::new("d.example".parse().unwrap(), Target::Gateway("g0".parse().unwrap())));
    *relay.relay.directory().routing.lock().unwrap() = Arc::new(Routing::build(spec).unwrap());
    assert!(deliver(&mut anna).await.starts_with("250 2.0.0 queued"));
    assert_eq!((first.seen().messages.len(), second.seen().messages.len()), (0, 1));
    drop(anna);
    relay.stop().await;

    // Nobody can tell: not there, not willing, not in time.
    let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let mut settings = settings();
    settings.timeouts.open = Duration::from_millis(500);
    let silent = FakeGateway::with(knowing(&[]), vec![(Stage::Auth, Do::Hang)]);
    let without = FakeGateway::start(vec![]);
    let busy = FakeGateway::with(knowing(&[]), busy);
    for address in [nowhere, silent.address, without.address, busy.address] {
        let relay = relay_to(true, settings.clone(), vec![plain("g0", address)]).await;
        let mut anna = log_in(&relay, ANNA, "454 4.7.0").await;
        anna.ask("NOOP", "250").await;
        anna.ask("QUIT", "221").await;
        assert_eq!(relay.stop().await.auth_failures, 0);
    }
}

#[tokio::test]
async fn a_gateway_that_leaves_takes_the_session_with_it() {
    let gateway =
        FakeGateway::with(knowing(&[ANNA]), vec![(Stage::Dot, Do::SayAndClose("250 2.0.0 queued\r\n".into()))]);
    let relay = relay_to(true, settings(), vec![plain("g0", gateway.address)]).await;
    let mut anna = log_in(&relay, ANNA, "235 2.7.0").await;
    assert!(deliver(&mut anna).await.starts_with("250 2.0.0 queued"));
    // The relay may not have seen the end yet, and then tells of it at the recipient.
    let mail = anna.ask("MAIL FROM:<a@b.example>", "").await;
    if mail.starts_with("250") {
        anna.ask("RCPT TO:<c@d.example>", "451 4.4.2").await;
        anna.ask("RSET", "250").await;
        anna.ask("MAIL FROM:<a@b.example>", "421 4.4.2").await;
    } else {
        assert!(mail.starts_with("421 4.4.2"), "{mail}");
    }
    anna.ended().await;
    assert_eq!(gateway.seen().connections, 1);
    relay.stop().await;
}

#[tokio::test]
async fn it_is_offered_where_a_gateway_may_see_passwords_and_wants_to() {
    let offers = async |relay: &Running| {
        let mut client = relay.client().await;
        client.expect("220").await;
        let offers = client.ask("EHLO pc.example", "250-").await;
        client.ask("QUIT", "221").await;
        offers.contains("AUTH PLAIN LOGIN")
    };
    let authority = authority("mx.example");
    let nature = Nature { tls: Some(Arc::clone(&authority.server)), ..Nature::default() };
    let gateway = FakeGateway::with(nature, vec![]);
    for (allow, spec, expected) in [
        (false, plain("g0", gateway.address), false),
        (true, plain("g0", gateway.address), true),
        (false, with_tls(&authority, gateway.address), true),
    ] {
        let relay = relay_to(allow, settings(), vec![spec]).await;
        assert_eq!(offers(&relay).await, expected);
        // It has no AUTH, as the first message finds out.
        let mut client = relay.client().await;
        client.greet().await;
        assert!(deliver(&mut client).await.starts_with("250 2.0.0 queued"));
        client.ask("QUIT", "221").await;
        assert!(!offers(&relay).await);
        relay.stop().await;
    }
}
