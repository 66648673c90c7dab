//! Sessions on threads of their own.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread::{self, ThreadId, available_parallelism},
};

use redirect_relay::{ClientAddr, Directory, Identity, OriginalDst, Relay, Workers, route::Routing, run, tend};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::{BODY, Client, FakeGateway, at, settings};

/// Tells which threads serve.
struct Attentive {
    routing: Arc<Routing>,
    served: Mutex<HashMap<ThreadId, usize>>,
}

impl Directory for Attentive {
    async fn identify(&self, peer: SocketAddr, local: SocketAddr) -> Option<Identity> {
        *self.served.lock().unwrap().entry(thread::current().id()).or_default() += 1;
        Some(Identity {
            client: ClientAddr::new(peer),
            original: OriginalDst::new(local),
            class: "c".into(),
            policy: Arc::default(),
        })
    }

    fn routing(&self) -> Arc<Routing> {
        Arc::clone(&self.routing)
    }

    fn listeners(&self) -> Vec<SocketAddr> {
        Vec::new()
    }
}

async fn send(client: &mut Client) {
    client.envelope().await;
    client.send([BODY, ".\r\n"].concat()).await;
    client.expect("250 2.0.0").await;
}

#[tokio::test]
async fn sessions_are_shared_out_and_gateways_serve_all_threads() {
    let gateway = FakeGateway::start(Vec::new());
    let routing = Arc::new(Routing::build(at(&[gateway.address])).unwrap());
    let relay = Arc::new(Relay::new(settings(), Attentive { routing, served: Mutex::default() }));
    let workers = Arc::new(Workers::start().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(run(listener, Arc::clone(&relay), Arc::clone(&workers), shutdown.clone()));

    let threads = available_parallelism().unwrap().get();
    let mut clients = Vec::new();
    for _ in 0..2 * threads {
        let mut client = Client::connect(address).await;
        client.greet().await;
        clients.push(client);
    }
    let served = relay.directory().served.lock().unwrap().clone();
    assert!(!served.contains_key(&thread::current().id()));
    assert_eq!((served.len(), served.values().sum::<usize>()), (threads, clients.len()));
    assert!(served.values().all(|sessions| *sessions == 2), "{served:?}");

    // One after the other, by threads that take turns: one connection serves them all.
    for client in &mut clients {
        send(client).await;
    }
    let seen = gateway.seen();
    assert_eq!((seen.connections, seen.messages.len()), (1, clients.len()));

    // What is idle belongs to a thread that goes on until nobody needs it.
    shutdown.cancel();
    for client in &mut clients {
        client.expect("421 4.3.2").await;
    }
    task.await.unwrap();
    tend(relay, shutdown).await;
    assert!(gateway.seen().commands.contains(&"QUIT".to_owned()));
}
