//! A commit that cuts mail off is taken back without anybody's help, and mail flows again.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{fs, time::Duration};

use redirect_tests::{
    Family, Mode, Product, SILENCE, Scene,
    smtp::{Client, port_25},
    wait_until,
};

const LIMIT: Duration = Duration::from_secs(30);

/// Whether the relay greets the subscribers.
fn greets(scene: &Scene) -> bool {
    Family::BOTH.iter().all(|family| {
        let client =
            Client::connect_within(&scene.lab.client, (family.redirected(), 0), port_25(family.server()), SILENCE);
        let reply = client.and_then(|mut client| client.reply());
        reply.is_ok_and(|reply| reply.lines[0].starts_with("relay.example.net "))
    })
}

/// Writes the configuration into a file in which the class of the subscribers is blocked, and commits it.
fn cut_off(scene: &Scene, confirm: &str) {
    let shown = scene.ctl(&["-o", "json", "config", "show"]).unwrap();
    let mut document: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let classes = document["classes"].as_array_mut().unwrap();
    classes.iter_mut().find(|class| class["name"] == "configured").unwrap()["action"] = "block".into();
    let file = scene.lab.folder().join("cut.json");
    fs::write(&file, document.to_string()).unwrap();
    scene.ctl(&["config", "commit", file.to_str().unwrap(), "--confirm", confirm, "--yes"]).unwrap();
}

#[test]
fn a_commit_that_nobody_confirms_is_taken_back() {
    let mut scene = Scene::new(Mode::Tc).unwrap();
    assert!(greets(&scene));
    cut_off(&scene, "5s");
    assert!(!greets(&scene), "the commit holds at once");
    wait_until("mail flows again", LIMIT, || Ok(greets(&scene).then_some(()))).unwrap();

    // The daemon dies meanwhile, and its time ends while nobody is there.
    cut_off(&scene, "3s");
    scene.product.kill().unwrap();
    std::thread::sleep(Duration::from_secs(4));
    scene.product = Product::start(&scene.lab, &Mode::Tc.configuration(&scene.lab)).unwrap();
    assert!(greets(&scene), "{}", scene.product.log());
    assert!(scene.product.log().contains("not confirmed in time"), "{}", scene.product.log());

    // And what is confirmed stays.
    cut_off(&scene, "2s");
    scene.ctl(&["config", "confirm"]).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert!(!greets(&scene));
    scene.ctl(&["config", "rollback", "--yes"]).unwrap();
    assert!(greets(&scene));
}
