//! Routes as the operator sets them, seen by a subscriber and by the gateways.

use redirect_tests::{
    Family, Mode, Scene,
    smtp::{Client, port_25},
};

const FROM: &str = "guest@client.example";
const MESSAGE: &[u8] = b"Subject: routes\r\n\r\nHello.\r\n";

/// Recipients by gateway: those of the operator's, and those of the smart host.
fn arrived(scene: &Scene) -> [Vec<String>; 2] {
    [&scene.gateway, &scene.internet].map(|server| server.mails().into_iter().flat_map(|mail| mail.to).collect())
}

#[test]
fn the_recipient_decides_which_gateway_gets_the_mail_and_a_change_holds_for_the_next_message() {
    let scene = Scene::new(Mode::Tc).unwrap();
    let ctl = |args: &[&str]| scene.product.ctl(&scene.lab, args).unwrap();
    let smart = Family::V4.other_server().to_string();
    ctl(&["gateway", "set", "smart", "--address", &smart]);
    ctl(&["group", "set", "hosts", "--member", "smart"]);
    ctl(&["route", "set", ".smart.example", "--group", "hosts"]);
    ctl(&["managed-domain", "set", "own.smart.example"]);

    let mut client =
        Client::connect(&scene.lab.client, (Family::V4.redirected(), 0), port_25(Family::V4.server())).unwrap();
    client.hello().unwrap();
    for to in ["a@elsewhere.example", "b@www.Smart.example", "c@smart.example", "d@own.smart.example"] {
        assert_eq!(client.deliver(FROM, to, MESSAGE).unwrap().code, 250, "{to}");
    }
    let mine = ["a@elsewhere.example", "c@smart.example", "d@own.smart.example"].map(str::to_owned);
    assert_eq!(
        arrived(&scene).map(|to| to.iter().map(|to| to.to_lowercase()).collect::<Vec<_>>()),
        [mine.to_vec(), vec!["b@www.smart.example".to_owned()]]
    );

    // In the open session.
    ctl(&["route", "delete", ".smart.example"]);
    ctl(&["route", "set", "elsewhere.example", "--class", "configured", "--gateway", "smart"]);
    for to in ["e@www.smart.example", "f@elsewhere.example"] {
        assert_eq!(client.deliver(FROM, to, MESSAGE).unwrap().code, 250, "{to}");
    }
    let [mine, smart] = arrived(&scene);
    assert_eq!(mine[3..], ["e@www.smart.example"]);
    assert_eq!(smart[1..], ["f@elsewhere.example"]);
    client.expect("QUIT", 221).unwrap();
}
