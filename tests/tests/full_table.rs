//! The table of established flows is full: those in it are not touched, and the class says what becomes of the next.

use std::{io, thread, time::Duration};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use redirect_tests::{
    Family, Lab, Mode, Product,
    smtp::{Client, PATIENCE, port_25},
    wait_until, with_dataplane,
};

/// The smallest that a configuration can have, of each family.
const FLOWS_MAX: usize = 1_024;

#[test]
fn who_finds_the_table_full_is_treated_as_its_class_says() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let lab = Lab::new().unwrap();
    let configuration = with_dataplane(&Mode::Tc.configuration(&lab), &format!("flows_max = {FLOWS_MAX}"));
    let product = Product::start(&lab, &configuration).unwrap();
    let ctl = |words: &[&str]| product.ctl(&lab, words).unwrap();
    for fallback in ["pass", "reject"] {
        ctl(&["class", "set", fallback, "--action", "redirect", "--relay", "embedded", "--on-relay-down", fallback]);
    }
    let (from, other, to) = (Family::V4.redirected(), Family::V4.bypass(), port_25(Family::V4.server()));
    ctl(&["subscriber", "set", &from.to_string(), "--class", "pass"]);
    let connect = |from| Client::connect_within(&lab.client, (from, 0), to, PATIENCE);
    let packets = |reason: &str| {
        let status = product.json(&lab, &["status"]).unwrap();
        status["reasons"][reason]["packets"].as_u64().unwrap_or(0)
    };

    let mut clients: Vec<_> = (0..FLOWS_MAX).map(|_| connect(from).unwrap()).collect();
    for client in &mut clients {
        assert_eq!(client.reply().unwrap().code, 220);
    }
    assert_eq!((packets("flow_promoted"), packets("flow_unpromoted")), (FLOWS_MAX as u64, 0));

    // Half-open, it works all the same.
    let mut late = connect(from).unwrap();
    assert_eq!(late.reply().unwrap().code, 220);
    late.expect("NOOP", 250).unwrap();
    assert!(packets("flow_unpromoted") > 0);

    ctl(&["subscriber", "set", &other.to_string(), "--class", "reject"]);
    // The relay has answered, so it may look connected for a moment.
    let refused = connect(other).and_then(|mut client| client.reply());
    assert_eq!(refused.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
    assert!(packets("flow_unpromoted_reject") > 0);

    // Nobody else has noticed; and a place that gets free is taken.
    for client in &mut clients {
        client.expect("NOOP", 250).unwrap();
    }
    assert_eq!(packets("flow_promoted"), FLOWS_MAX as u64);
    clients[0].expect("QUIT", 221).unwrap();
    clients.remove(0);
    wait_until("a place", PATIENCE, || {
        // The relay bears no more than 200 of these.
        thread::sleep(Duration::from_millis(500));
        late.expect("NOOP", 250)?;
        Ok((packets("flow_promoted") > FLOWS_MAX as u64).then_some(()))
    })
    .unwrap();
    late.expect("QUIT", 221).unwrap();
}
