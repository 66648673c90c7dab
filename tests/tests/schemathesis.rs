//! What the description allows, and what it forbids, asked of the daemon by schemathesis, which shares no code with us.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{
    fs, io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use redirect_tests::{Mode, Scene, binary};
use serde_json::{Value, json};

/// Operations that take minutes, or never end: verifying dials whoever the request names, and the others tell what happens.
const NOT_ASKED: &str = "^/v1/(gateways:verify|events|flows:watch|trace)$";

#[test]
fn schemathesis_finds_nothing() {
    let scene = Scene::new(Mode::Tc).unwrap();
    furnish(&scene).unwrap();
    let address = on_loopback(scene.product.socket()).unwrap();
    let folder = scene.product.socket().parent().unwrap().to_owned();
    // It takes less than a minute.
    let output = Command::new("timeout")
        .arg("240")
        .arg(program())
        .current_dir(&folder)
        .env("SCHEMATHESIS_HOOKS", Path::new(env!("CARGO_MANIFEST_DIR")).join("schemathesis.py"))
        .arg("--config-file")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("schemathesis.toml"))
        .args(["run", &format!("http://{address}/openapi.json"), "--exclude-path-regex", NOT_ASKED])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "8"])
        .args(["--workers", "1", "--generation-deterministic", "--no-color", "--request-timeout", "10"])
        .args(["--checks", "all", "--exclude-checks", NOT_CHECKED])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}\n{}", String::from_utf8_lossy(&output.stderr), scene.product.log());
    assert!(text.contains("Test cases"), "it asked nothing: {text}");
}

/// A value may fit its schema and still name something that is not there; and a member that only answers have is ignored, whatever it is.
const NOT_CHECKED: &str = "positive_data_acceptance,negative_data_rejection";

/// Something of each kind, so that there is something to show.
fn furnish(scene: &Scene) -> anyhow::Result<()> {
    let Scene { lab, product, .. } = scene;
    let mut document: Value = serde_json::from_str(&product.ctl(lab, &["config", "show", "--format", "json"])?)?;
    document["relays"] = json!([{"name": "dmz", "ipv4": "192.0.2.25:25"}]);
    document["groups"] = json!([{"name": "both", "members": [{"gateway": "default"}]}]);
    document["routes"] = json!([{"domain": ".example.org", "order": 7, "sender": "<>", "class": "bypass", "size": {"min": 1_000},
        "priority": {"min": 1, "max": 9}, "group": "both", "note": "n"}]);
    document["managed_domains"] = json!([{"domain": "example.net", "target": {"gateway": "default"}}]);
    let file = lab.folder().join("configuration.json");
    fs::write(&file, document.to_string())?;
    product.ctl(lab, &["config", "commit", file.to_str().unwrap_or_default(), "--yes"])?;
    let said = ["--source", "radius", "--session", "s", "--user", "anna", "--mac", "020000000009", "--label", "nas=n"];
    product.ctl(lab, &[&["subscriber", "set", "10.20.0.9", "--class", "bypass"][..], &said].concat())?;
    product.ctl(lab, &["subscriber", "set", "10.20.0.9", "--class", "blocked"])?;
    product.ctl(lab, &["token", "create", "portal", "--role", "integrator"])?;
    Ok(())
}

fn program() -> PathBuf {
    let target = binary("redirectd").unwrap().ancestors().nth(2).unwrap().to_owned();
    let program = target.join("lab/schemathesis/bin/schemathesis");
    assert!(program.is_file(), "schemathesis is not in {}; run cargo xtask setup", program.display());
    program
}

/// It knows no Unix sockets: a port of loopback leads to ours, for as long as the test runs.
fn on_loopback(socket: &Path) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let socket = socket.to_owned();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = UnixStream::connect(&socket) else { break };
            let (Ok(client_again), Ok(server_again)) = (client.try_clone(), server.try_clone()) else { break };
            thread::spawn(move || pass(client, &server_again, |server| server.shutdown(Shutdown::Write)));
            thread::spawn(move || pass(server, &client_again, |client: &TcpStream| client.shutdown(Shutdown::Write)));
        }
    });
    Ok(address)
}

fn pass<F: io::Read, T>(mut from: F, to: &T, end: impl Fn(&T) -> io::Result<()>)
where
    for<'t> &'t T: io::Write,
{
    // Either side may leave in the middle.
    let _ = io::copy(&mut from, &mut &*to);
    let _ = end(to);
}
