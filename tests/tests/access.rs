//! Who may use the API of the daemon as it is deployed: local users by their socket, others over the network with TLS. Other people's programs
//! ask: curl, and openssl makes the certificates.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{fs, path::Path, process::Command, time::Duration};

use redirect_tests::{Lab, Namespace, Product, configuration, wait_until};

const LIMIT: Duration = Duration::from_secs(30);

fn openssl(lab: &Lab, words: &str) {
    let mut command = Command::new("openssl");
    command.current_dir(lab.folder()).args(words.split(' '));
    let done = lab.router.run(&mut command, LIMIT).unwrap();
    assert!(done.status.success(), "openssl {words}: {}", done.stderr);
}

/// An authority, the router's certificate, and those of two clients, the second one of an authority of its own.
fn certificates(lab: &Lab) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1";
    let authority = "-addext basicConstraints=critical,CA:TRUE";
    for name in ["ca", "other"] {
        openssl(lab, &format!("req -x509 {key} -subj /CN={name} {authority} -keyout {name}.key -out {name}.pem"));
    }
    for (name, names, ca) in [
        ("server", "IP:10.20.0.1", "ca"),
        ("portal", "DNS:portal.example", "ca"),
        ("forged", "DNS:portal.example", "other"),
    ] {
        let signed = format!("-CA {ca}.pem -CAkey {ca}.key -addext basicConstraints=CA:FALSE");
        openssl(
            lab,
            &format!(
                "req -x509 {key} -subj /CN={name} -addext subjectAltName={names} {signed} -keyout {name}.key -out {name}.pem"
            ),
        );
    }
}

/// The status of an answer, and its text; 000 where there is none.
fn curl(lab: &Lab, host: &Namespace, before: &[&str], words: &[&str]) -> (String, String) {
    let mut line: Vec<&str> = before.to_vec();
    line.extend(["curl", "-s", "-m", "20", "-w", "\n%{http_code}"]);
    line.extend(words);
    let mut command = Command::new(line[0]);
    command.current_dir(lab.folder()).args(&line[1..]);
    let text = host.run(&mut command, LIMIT).unwrap().stdout;
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

fn start(lab: &Lab) -> Product {
    let folder = lab.folder().display();
    let access = format!(
        r#"socket_mode = "0666"
listen = "10.20.0.1:8443"
authentication = ["token", "certificate"]
certificate = "{folder}/server.pem"
key = "{folder}/server.key"
client_ca = "{folder}/ca.pem"

[access.users]
7001 = "viewer"
[access.groups]
7002 = "integrator"
[access.certificates]
"portal.example" = "integrator"
"#
    );
    let text = configuration(lab.folder(), "xdp").replacen("[store]", &format!("{access}\n[store]"), 1);
    Product::start(lab, &text).unwrap()
}

#[test]
fn local_users_have_the_role_of_their_name_and_groups() {
    let lab = Lab::new().unwrap();
    certificates(&lab);
    let product = start(&lab);
    let socket = product.socket().display().to_string();
    let status = |ids: [&str; 3], method: &str, path: &str| {
        let [user, group, groups] = ids;
        let before = ["setpriv", "--reuid", user, "--regid", group, groups];
        let url = format!("http://d{path}");
        let data = if method == "PUT" { r#"{"class":"bypass"}"# } else { "" };
        let words = ["--unix-socket", &socket, "-X", method, "-H", "Content-Type: application/json", "-d", data, &url];
        curl(&lab, &lab.router, &before, &words)
    };
    let (viewer, portal) = (["7001", "7001", "--clear-groups"], ["7009", "7009", "--groups=7001,7002"]);
    let (own_group, nobody) = (["7009", "7002", "--clear-groups"], ["7009", "7009", "--groups=0,7001"]);
    let subscriber = "/v1/subscribers/10.20.0.10";
    for (ids, method, path, wanted) in [
        (viewer, "GET", "/v1/status", "200"),
        (viewer, "PUT", subscriber, "403"),
        (viewer, "GET", "/v1/tokens", "403"),
        (portal, "PUT", subscriber, "201"),
        (own_group, "GET", subscriber, "200"),
        (portal, "GET", "/v1/status", "403"),
        (nobody, "GET", "/v1/status", "403"),
        (nobody, "GET", "/livez", "200"),
    ] {
        let (status, text) = status(ids, method, path);
        assert_eq!(status, wanted, "{ids:?} {method} {path}: {text}");
    }
    let (_, text) = status(nobody, "GET", "/v1/status");
    assert!(text.contains("uid:7009 has no role; name it under [access]"), "{text}");
}

#[test]
fn the_network_needs_tls_and_a_token_or_a_certificate() {
    let lab = Lab::new().unwrap();
    certificates(&lab);
    let product = start(&lab);
    let ask = |words: &[&str]| curl(&lab, &lab.client, &[], words);
    let url = "https://10.20.0.1:8443/v1/classes";
    let made = product.ctl(&lab, &["token", "create", "noc", "--role", "viewer"]).unwrap();
    let token = made.trim_end();
    let bearer = format!("Authorization: Bearer {token}");

    assert_eq!(ask(&["--cacert", "ca.pem", url]).0, "401");
    assert_eq!(ask(&["--cacert", "ca.pem", "-H", &bearer, url]).0, "200");
    assert_eq!(ask(&["--cacert", "ca.pem", "-H", &bearer, "-X", "DELETE", &format!("{url}/x")]).0, "403");
    assert_eq!(ask(&["--cacert", "other.pem", "-H", &bearer, url]).0, "000", "a router that is not trusted");
    assert_eq!(ask(&["-H", &bearer, "http://10.20.0.1:8443/v1/classes"]).0, "000", "in clear");
    let portal = ["--cacert", "ca.pem", "--cert", "portal.pem", "--key", "portal.key"];
    assert_eq!(ask(&[&portal[..], &[url]].concat()).0, "200");
    assert_eq!(ask(&[&portal[..], &["https://10.20.0.1:8443/v1/status"]].concat()).0, "403");
    assert_eq!(ask(&["--cacert", "ca.pem", "--cert", "forged.pem", "--key", "forged.key", url]).0, "000");
    product.ctl(&lab, &["token", "revoke", "noc"]).unwrap();
    let (status, text) = ask(&["--cacert", "ca.pem", "-H", &bearer, url]);
    assert_eq!(status, "401", "{text}");

    // A handshake that does not go on takes nobody's place.
    let mut silent = Command::new("timeout");
    silent.args(["2", "bash", "-c", "exec 3<>/dev/tcp/10.20.0.1/8443; sleep 1; head -c 1 <&3"]);
    lab.client.run(&mut silent, LIMIT).unwrap();
    assert_eq!(ask(&[&portal[..], &[url]].concat()).0, "200");

    let audit = product.ctl(&lab, &["-o", "json", "audit", "list", "--all"]).unwrap();
    for who in ["uid:0", "token:noc/", "unknown"] {
        assert!(audit.contains(who), "{who} is not in {audit}");
    }
    let secret = token.rsplit('_').next().unwrap();
    for file in ["redirect.db.audit", "redirect.db.tokens"] {
        let kept = fs::read_to_string(lab.folder().join(file)).unwrap();
        assert!(!kept.contains(secret), "{file}: {kept}");
    }
    assert!(!product.log().contains(secret) && !audit.contains(secret));
    assert!(product.log().contains("audit"), "the log tells of it too");
}

#[test]
fn what_was_answered_is_in_the_audit_after_a_kill() {
    let lab = Lab::new().unwrap();
    certificates(&lab);
    for round in 0..3 {
        let mut product = start(&lab);
        let socket = product.socket().to_owned();
        let answered = lab.folder().join(format!("answered{round}"));
        let script = writing(&socket, &answered, round);
        let mut writer =
            lab.start(&lab.router, &format!("writer{round}"), Command::new("bash").args(["-c", &script])).unwrap();
        let lines = || fs::read_to_string(&answered).unwrap_or_default().lines().count();
        wait_until("some answers", LIMIT, || Ok((lines() > 20 + round * 7).then_some(()))).unwrap();
        product.kill().unwrap();
        let _ = writer.stop(nix::sys::signal::Signal::SIGKILL);

        let product = start(&lab);
        let audit = product.json(&lab, &["audit", "list", "--all"]).unwrap();
        let records = audit.as_array().unwrap();
        for line in fs::read_to_string(&answered).unwrap().lines() {
            let ok = |record: &&serde_json::Value| record["resource"] == line && record["result"] == "ok";
            assert_eq!(records.iter().filter(ok).count(), 1, "round {round}: {line}");
        }
        let numbers: Vec<_> = records.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
        assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "a number is missing: {numbers:?}");
    }
}

/// Puts one subscriber after the other, and notes those that were answered.
fn writing(socket: &Path, answered: &Path, round: usize) -> String {
    let (socket, answered) = (socket.display(), answered.display());
    format!(
        r#"for n in $(seq 1 250); do
             path=/v1/subscribers/10.7.{round}.$n
             curl -sf -m 5 --unix-socket {socket} -X PUT -H Content-Type:application/json -d '{{"class":"bypass"}}' http://d$path >/dev/null && echo $path >> {answered} || exit
           done"#
    )
}
