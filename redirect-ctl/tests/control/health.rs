//! Relays that live, die and flap, on real sockets, and the pools that follow them.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
};

use redirect_common::policy::{self, POOL_SLOTS};
use redirect_ctl::{
    dataplane::Operation,
    desired::{Action, ClassSpec, Delivery, Fallback, Limits, OnClassChange, OnDaemonDown, RelaySpec, RelayStatus},
    smtp::Smtp,
    store::{self, Change},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{Lab, eventually, settings};

const GOOD: &str = "220 mx.example.net ESMTP\r\n";
const BUSY: &str = "421 too busy\r\n";

/// A relay that greets by a script, and then for ever by its last line.
#[derive(Clone)]
struct Server {
    address: SocketAddr,
    greetings: Arc<Mutex<VecDeque<&'static str>>>,
}

impl Server {
    async fn start(greetings: &[&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self { address, greetings: Arc::new(Mutex::new(greetings.iter().copied().collect())) };
        let greetings = Arc::clone(&server.greetings);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let greeting = {
                    let mut greetings = greetings.lock().unwrap();
                    if greetings.len() > 1 { greetings.pop_front().unwrap() } else { greetings[0] }
                };
                let _ = stream.write_all(greeting.as_bytes()).await;
                let mut rest = Vec::new();
                if greeting == GOOD {
                    // Until the prober hangs up, which it does after our farewell.
                    let _ = stream.read_buf(&mut rest).await;
                    assert_eq!(String::from_utf8_lossy(&rest), "QUIT\r\n");
                    let _ = stream.write_all(b"221 bye\r\n").await;
                }
            }
        });
        server
    }

    fn script(&self, greetings: &[&'static str]) {
        *self.greetings.lock().unwrap() = greetings.iter().copied().collect();
    }

    /// Greetings of the script that have not been asked for.
    fn left(&self) -> usize {
        self.greetings.lock().unwrap().len()
    }
}

/// A daemon with the class `gold`, number 6, and its relays, numbers 2 and up with weights 3, 2, 1, which the API would not take on loopback.
async fn lab_with(relays: &[SocketAddr]) -> Lab {
    let dir = TempDir::new().unwrap();
    let settings = settings(&dir);
    let (store, writer) = store::open(&settings.store, &settings.resources()).unwrap();
    let writer = thread::spawn(|| writer.run());
    let mut pool = Vec::new();
    for (index, address) in relays.iter().enumerate() {
        let SocketAddr::V4(address) = address else { panic!("loopback is IPv4") };
        let name = format!("r{index}");
        let spec = RelaySpec {
            name: name.parse().unwrap(),
            ipv4: Some(*address),
            ipv6: None,
            delivery: Delivery::Auto,
            status: RelayStatus::Enabled,
        };
        store.change(Change::PutRelay(spec)).await.unwrap();
        pool.push(format!("{name}:{}", 3 - index).parse().unwrap());
    }
    let gold = ClassSpec {
        name: "gold".parse().unwrap(),
        action: Action::Redirect,
        relays: pool,
        on_relay_down: Fallback::Block,
        on_class_change: OnClassChange::Reset,
        on_daemon_down: OnDaemonDown::Keep,
        limits: Limits::default(),
        gateway: None,
        smtp: Smtp::default(),
    };
    store.change(Change::PutClass(gold)).await.unwrap();
    drop(store);
    tokio::task::spawn_blocking(|| writer.join().unwrap()).await.unwrap();
    Lab::launch_on(dir, |_| settings).await
}

/// The places that the relays 2, 3 and 4 have in the pool of `gold`; nobody else has any, and there is no pool of IPv6.
fn places(lab: &Lab) -> [usize; 3] {
    places_of(&lab.model.state().classes[&6])
}

fn places_of(class: &policy::Class) -> [usize; 3] {
    let count = |relay| (0..POOL_SLOTS).filter(|place| class.relay_ipv4(*place) == relay).count();
    assert_eq!(count(0) + count(2) + count(3) + count(4), POOL_SLOTS);
    assert!((0..POOL_SLOTS).all(|place| class.relay_ipv6(place) == 0));
    [2, 3, 4].map(count)
}

async fn health(lab: &Lab, relay: &str) -> Value {
    lab.get(&format!("/v1/relays/{relay}")).await.expect(200).json()["health"]["ipv4"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pool_follows_relays_that_die_and_come_back() {
    let (first, second) = (Server::start(&[GOOD]).await, Server::start(&[GOOD]).await);
    // Nobody listens there, and for the time of the first probes it counts as up.
    let dead = crate::support::free_port();
    let lab = lab_with(&[first.address, second.address, dead]).await;
    let begun = lab.model.state().log.iter().find_map(|operation| match operation {
        Operation::SetClass { id: 6, class } => Some(places_of(class)),
        _ => None,
    });
    assert_eq!(begun, Some([16, 11, 5]), "before anybody was asked");
    eventually("the dead one is out", || async { places(&lab) == [19, 13, 0] }).await;
    let known = health(&lab, "r2").await;
    assert_eq!(known["state"], "down");
    assert!(known["error"].as_str().unwrap().starts_with("cannot connect: "), "{known}");
    eventually("the first is known", || async { health(&lab, "r0").await["state"] == "up" }).await;
    assert_eq!(health(&lab, "r0").await["error"], json!(null));

    let log = lab.model.state().log.len();
    first.script(&[BUSY]);
    eventually("the first is out", || async { places(&lab) == [0, 32, 0] }).await;
    assert_eq!(health(&lab, "r0").await["error"], r#"it says "421 too busy""#);
    second.script(&["HTTP/1.1 400 Bad Request\r\n"]);
    eventually("nobody is left", || async { places(&lab) == [0, 0, 0] }).await;
    assert_eq!(lab.model.state().classes[&6].on_relay_down(), policy::Fallback::Block);
    {
        let state = lab.model.state();
        let written: Vec<_> = state.log[log..].iter().map(ToString::to_string).collect();
        assert_eq!(written, ["set class 6", "set class 6"], "only classes whose pools change are written");
    }
    let metrics = lab.get("/metrics").await.text;
    for line in [r#"redirect_relay_up{relay="r0",family="ipv4"} 0"#, r#"redirect_relay_up{relay="r2",family="ipv4"} 0"#]
    {
        assert!(metrics.lines().any(|found| found == line), "{line} is missing in\n{metrics}");
    }
    lab.get("/readyz").await.expect(200);
    let table = lab.ctl(&["relay", "list", "--no-headers"]).await.stdout;
    assert!(table.lines().any(|line| line.starts_with("r0 ") && line.contains("  enabled  down  0")), "{table}");

    first.script(&[GOOD]);
    second.script(&[GOOD]);
    eventually("both are back", || async { places(&lab) == [19, 13, 0] }).await;
    assert_eq!(health(&lab, "r0").await["error"], json!(null));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flapping_within_the_hysteresis_changes_nothing() {
    let (calm, flapping) = (Server::start(&[GOOD]).await, Server::start(&[GOOD]).await);
    let lab = lab_with(&[calm.address, flapping.address]).await;
    eventually("both are known", || async {
        health(&lab, "r0").await["state"] == "up" && health(&lab, "r1").await["state"] == "up"
    })
    .await;
    let written = || lab.model.state().log.len();
    let before = written();
    // Never three failures in a row.
    flapping.script(&[BUSY, BUSY, GOOD, BUSY, BUSY, GOOD, BUSY, GOOD]);
    eventually("the script is done", || async { flapping.left() == 1 }).await;
    assert_eq!((places(&lab), written()), ([19, 13, 0], before));

    flapping.script(&[BUSY]);
    eventually("it is down", || async { places(&lab) == [32, 0, 0] }).await;
    let before = written();
    // Never two successes in a row.
    flapping.script(&[GOOD, BUSY, GOOD, BUSY, BUSY, GOOD, BUSY]);
    eventually("the script is done", || async { flapping.left() == 1 }).await;
    assert_eq!((places(&lab), written()), ([32, 0, 0], before));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_relay_is_up_while_it_listens_and_nobody_probes_it() {
    let relay = crate::support::free_port();
    let lab = Lab::with(|settings, _| {
        let SocketAddr::V4(v4) = relay else { unreachable!("loopback is IPv4") };
        settings.relay.ipv4 = Some(v4);
    })
    .await;
    assert_eq!(health(&lab, "embedded").await["state"], "up");
    tokio::time::sleep(lab.settings.health.interval.unwrap() * 5).await;
    assert_eq!(health(&lab, "embedded").await["state"], "up");
    assert_eq!(lab.get("/v1/status").await.json()["relay"]["sessions_opened"], 0);
    lab.stop().await;
}
