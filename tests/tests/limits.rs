//! What a class says about one subscriber, as the operator sets it: limits, locks, and what becomes of open connections when the class changes.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{io, net::IpAddr, thread, time::Duration};

use redirect_tests::{
    Family, SILENCE, Scene, in_every_mode,
    smtp::{Client, PATIENCE, port_25},
    wait_until,
};

in_every_mode!(
    who_connects_too_often_is_locked,
    a_lock_holds_until_it_is_removed,
    who_has_too_many_open_gets_no_more,
    a_change_of_class_resets_what_is_open_or_keeps_it,
    a_change_of_class_ends_what_is_open_though_nobody_speaks,
);

/// Within this time a client's kernel acknowledges what it got last (200 ms at most), and speaks no more.
const ACKNOWLEDGED: Duration = Duration::from_millis(500);

fn connect(scene: &Scene, from: IpAddr, limit: Duration) -> io::Result<Client> {
    let family = if from.is_ipv4() { Family::V4 } else { Family::V6 };
    let mut client = Client::connect_within(&scene.lab.client, (from, 0), port_25(family.server()), limit)?;
    client.hello().map_err(io::Error::other)?;
    Ok(client)
}

fn set_class(scene: &Scene, from: IpAddr, class: &str) {
    scene.ctl(&["subscriber", "set", &from.to_string(), "--class", class]).unwrap();
}

/// Addresses of `lock list`.
fn locked(scene: &Scene) -> Vec<String> {
    let locks = scene.product.json(&scene.lab, &["lock", "list"]).unwrap();
    locks.as_array().unwrap().iter().map(|lock| lock["address"].as_str().unwrap().to_owned()).collect()
}

fn packets(scene: &Scene, class: &str, reason: &str) -> u64 {
    let stats = scene.product.json(&scene.lab, &["stats"]).unwrap();
    let rows = stats["reasons"].as_array().unwrap();
    let row = rows.iter().find(|row| row["class"] == class && row["reason"] == reason);
    row.map_or(0, |row| row["packets"].as_u64().unwrap())
}

fn who_connects_too_often_is_locked(scene: &mut Scene) {
    const CONNECTIONS: usize = 20;
    let words = "class set slow --action redirect --relay embedded --rate 1 --burst 2 --lock-after 5 --lock-for 1h";
    scene.ctl(&words.split(' ').collect::<Vec<_>>()).unwrap();
    for (family, address) in Family::BOTH.into_iter().zip(["10.20.0.10", "fd00:20::/64"]) {
        let from = family.redirected();
        set_class(scene, from, "slow");
        let scene = &*scene;
        let taken = thread::scope(|scope| {
            let tries = [(); CONNECTIONS].map(|()| scope.spawn(|| connect(scene, from, SILENCE)));
            tries.map(|tried| tried.join().unwrap()).iter().filter(|tried| tried.is_ok()).count()
        });
        // The burst, and one for each second that the tries took; a client sends its SYN again and may have luck.
        assert!((2..CONNECTIONS - 5).contains(&taken), "{taken} connections");
        assert!(packets(scene, "slow", "rate_limited") >= 5);
        wait_until("a lock", PATIENCE, || Ok(locked(scene).contains(&address.to_owned()).then_some(()))).unwrap();
        assert_eq!(connect(scene, from, SILENCE).err().map(|error| error.kind()), Some(io::ErrorKind::TimedOut));
        assert!(packets(scene, "slow", "locked") > 0);

        // Without the lock, and in a class without limits, nothing is left of it.
        scene.ctl(&["lock", "remove", address]).unwrap();
        set_class(scene, from, "misconfigured");
        connect(scene, from, PATIENCE).unwrap();
    }
}

fn a_lock_holds_until_it_is_removed(scene: &mut Scene) {
    for family in Family::BOTH {
        // Where the class passes, and where it redirects; IPv6 by another address of the /64.
        for from in [family.redirected(), family.bypass()] {
            let mut before = connect(scene, from, PATIENCE).unwrap();
            let address = if from.is_ipv4() { from.to_string() } else { "fd00:20::beef".to_owned() };
            scene.ctl(&["lock", "add", &address, "--for", "1h"]).unwrap();
            assert_eq!(connect(scene, from, SILENCE).err().map(|error| error.kind()), Some(io::ErrorKind::TimedOut));
            before.expect("NOOP", 250).unwrap();
            scene.ctl(&["lock", "remove", &address]).unwrap();
            connect(scene, from, PATIENCE).unwrap();
        }
        // It runs out by itself.
        let from = family.redirected();
        scene.ctl(&["lock", "add", &from.to_string(), "--for", "2s"]).unwrap();
        connect(scene, from, PATIENCE).unwrap();
    }
    assert_eq!(locked(scene), Vec::<String>::new());
}

fn who_has_too_many_open_gets_no_more(scene: &mut Scene) {
    scene.ctl(&["class", "set", "few", "--action", "redirect", "--relay", "embedded", "--open-max", "2"]).unwrap();
    for family in Family::BOTH {
        let from = family.redirected();
        set_class(scene, from, "few");
        let [mut first, mut second] = [(); 2].map(|()| connect(scene, from, PATIENCE).unwrap());
        assert_eq!(connect(scene, from, SILENCE).err().map(|error| error.kind()), Some(io::ErrorKind::TimedOut));
        assert!(packets(scene, "few", "open_limited") > 0);
        first.expect("QUIT", 221).unwrap();
        drop(first);
        let _third = connect(scene, from, PATIENCE).unwrap();
        assert_eq!(connect(scene, from, SILENCE).err().map(|error| error.kind()), Some(io::ErrorKind::TimedOut));
        second.expect("NOOP", 250).unwrap();
    }
}

fn a_change_of_class_resets_what_is_open_or_keeps_it(scene: &mut Scene) {
    let _answering = scene.let_xdp_answer().unwrap();
    scene.ctl(&["class", "set", "patient", "--action", "pass", "--on-class-change", "keep"]).unwrap();
    for family in Family::BOTH {
        let from = family.redirected();
        for (class, reset) in [("patient", false), ("bypass", true)] {
            set_class(scene, from, "misconfigured");
            let mut client = connect(scene, from, PATIENCE).unwrap();
            set_class(scene, from, class);
            let reply = client.command("NOOP").map(|reply| reply.code).map_err(|error| error.kind());
            assert_eq!(reply, if reset { Err(io::ErrorKind::ConnectionReset) } else { Ok(250) }, "{class}");
            // Whatever becomes of that one, the next follows the new class.
            let mut next = connect(scene, from, PATIENCE).unwrap();
            next.expect("QUIT", 221).unwrap();
        }
    }
    assert_eq!(scene.internet.peers().len(), 4);
}

fn a_change_of_class_ends_what_is_open_though_nobody_speaks(scene: &mut Scene) {
    for family in Family::BOTH {
        let from = family.redirected();
        set_class(scene, from, "misconfigured");
        set_class(scene, family.blocked(), "misconfigured");
        let mut client = connect(scene, from, PATIENCE).unwrap();
        let mut other = connect(scene, family.blocked(), PATIENCE).unwrap();
        assert_eq!(sessions(scene), 2);
        thread::sleep(ACKNOWLEDGED);
        set_class(scene, from, "bypass");
        assert_eq!(client.reply().map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
        wait_until("end of the session", PATIENCE, || Ok((sessions(scene) == 1).then_some(()))).unwrap();
        other.expect("QUIT", 221).unwrap();
        drop(other);
        wait_until("end of the other session", PATIENCE, || Ok((sessions(scene) == 0).then_some(()))).unwrap();
    }
}

/// Of the embedded relay.
fn sessions(scene: &Scene) -> u64 {
    scene.product.json(&scene.lab, &["status"]).unwrap()["relay"]["sessions_active"].as_u64().unwrap()
}
