//! `redirect-ctl` in process: what it prints, where, and its exit codes.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use redirect_ctl::{
    commands::{self, Env},
    limits,
};
use serde_json::{Value, json};

use crate::support::{Lab, ctl, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn nouns_list_get_set_and_delete() {
    let lab = Lab::start().await;
    for (args, stdout) in [
        ("gateway set mx --address mx.example.net --description main", "gateway mx set (revision 3)\n"),
        (
            "relay set postfix --ipv4 10.9.0.25:25 --ipv6 [fd00::25]:25 --status disabled",
            "relay postfix set (revision 4)\n",
        ),
        (
            "class set gold --action redirect --relay postfix:3 --relay embedded --on-relay-down block --on-class-change keep \
             --rate 5 --open-max 20 --lock-after 100 --lock-for 1h --gateway mx",
            "class gold set (revision 5)\n",
        ),
        ("subscriber set 10.20.0.0/16 --class gold", "subscriber 10.20.0.0/16 set (revision 6)\n"),
        (
            "subscriber set fd00::7 --class bypass --source portal --expires 2099-12-01T00:00:00Z",
            "subscriber fd00::7/128 set (revision 7)\n",
        ),
        ("interface set lan1 --hook xdp --foreign-sources", "interface lan1 set (revision 8)\n"),
        (
            "gateway list",
            "NAME  ADDRESS         PORT  ENCRYPTION  STATUS   HEALTH  CONNECTIONS  OUTSTANDING  DESCRIPTION\n\
             mx    mx.example.net  25    starttls    enabled  up      0            0            main\n",
        ),
        (
            "gateway list -o wide --columns name,verification,user,weight",
            "NAME  VERIFICATION  USER  WEIGHT\nmx    none          -     1\n",
        ),
        (
            "relay list",
            "NAME      IPV4          IPV6           DELIVERY  STATUS    HEALTH  FLOWS  SOURCE\n\
             embedded  -             -              auto      enabled   -       0      file\n\
             postfix   10.9.0.25:25  [fd00::25]:25  auto      disabled  -       0      api\n",
        ),
        (
            "class get gold",
            "NAME  ACTION    RELAYS              ON-RELAY-DOWN  ON-CLASS-CHANGE  LIMITS                                                 \
             GATEWAY\n\
             gold  redirect  postfix:3,embedded  block          keep             \
             rate=5,burst=5,open_max=20,lock_after=100,lock_s=3600  mx\n",
        ),
        ("class get bypass --no-headers", "bypass  pass  -  pass  reset  -  -\n"),
        (
            "subscriber list",
            "PREFIX        CLASS   SOURCE    EXPIRES\n\
             10.20.0.0/16  gold    operator  -\n\
             fd00::7/128   bypass  portal    2099-12-01T00:00:00Z\n",
        ),
        ("subscriber list --class gold --no-headers", "10.20.0.0/16  gold  operator  -\n"),
        ("subscriber list --within 10.0.0.0/8 --no-headers", "10.20.0.0/16  gold  operator  -\n"),
        ("subscriber get 10.20.0.0/16 --no-headers", "10.20.0.0/16  gold  operator  -\n"),
        (
            "interface list",
            "NAME  ROLE        HOOK  MODE  FOREIGN-SOURCES  SOURCE  ERROR\n\
             lan0  subscriber  auto  tcx   no               file    -\n\
             lan1  subscriber  xdp   xdp   yes              api     -\n",
        ),
        ("flow list", "CLIENT  SERVER  RELAY  PORT  CLASS  STATE  DELIVERY  AGE  IDLE\n"),
        ("stats", "CLASS  REASON  VERDICT  PACKETS  BYTES\n"),
        ("interface delete lan1", "interface lan1 deleted (revision 9)\n"),
        ("subscriber delete 10.20.0.0/16", "subscriber 10.20.0.0/16 deleted (revision 10)\n"),
        ("subscriber delete fd00::7", "subscriber fd00::7/128 deleted (revision 11)\n"),
        ("class delete gold", "class gold deleted (revision 12)\n"),
        ("relay delete postfix", "relay postfix deleted (revision 13)\n"),
        ("gateway delete mx", "gateway mx deleted (revision 14)\n"),
    ] {
        let output = lab.ctl(&args.split(' ').collect::<Vec<_>>()).await;
        assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.code), (stdout, "", 0), "{args}");
    }
    let status = lab.ctl(&["status"]).await;
    for line in
        ["revision              14 (kernel: 14)", "interface lan0        attached, tcx", "error                 -"]
    {
        assert!(status.stdout.lines().any(|found| found == line), "{line} is missing in\n{}", status.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_and_the_status_of_relays_have_verbs() {
    let lab = Lab::start().await;
    for (args, stdout) in [
        ("lock list", "ADDRESS  LEFT\n"),
        ("lock add 10.20.3.7 --for 1h", "10.20.3.7 locked for 1h0m\n"),
        ("lock add fd00:20::7 --for 720h", "fd00:20::/64 locked for 30d0h\n"),
        ("lock remove fd00:20::/64", "fd00:20::/64 unlocked\n"),
        ("lock remove 10.20.3.7", "10.20.3.7 unlocked\n"),
        ("relay set postfix --ipv4 10.9.0.25:25 --status draining", "relay postfix set (revision 3)\n"),
        ("relay disable postfix", "relay postfix set (revision 4)\n"),
        ("relay get postfix --no-headers", "postfix  10.9.0.25:25  -  auto  disabled  -  0  api\n"),
        ("relay enable embedded", "relay embedded set (revision 4)\n"),
        ("relay drain embedded", "relay embedded set (revision 5)\n"),
        ("relay get embedded --no-headers", "embedded  -  -  auto  draining  -  0  file\n"),
        ("relay enable embedded", "relay embedded set (revision 6)\n"),
    ] {
        let output = lab.ctl(&args.split(' ').collect::<Vec<_>>()).await;
        assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.code), (stdout, "", 0), "{args}");
    }
    let json = lab.ctl(&["-o", "json", "lock", "add", "10.20.3.7", "--for", "60s"]).await.stdout;
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), json!({"address": "10.20.3.7", "left_s": 60}));
    let list = lab.ctl(&["lock", "list", "--no-headers"]).await.stdout;
    assert!(list.starts_with("10.20.3.7  "), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_the_resource_and_nothing_else() {
    let lab = Lab::start().await;
    let json = async |args: &str| -> Value {
        let mut words = vec!["-o", "json"];
        words.extend(args.split(' '));
        let output = lab.ctl(&words).await;
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{args}");
        serde_json::from_str(&output.stdout).unwrap()
    };
    let bypass =
        json!({"prefix": "10.1.2.3/32", "class": "bypass", "source": "operator", "expires": null, "revision": 3});
    let whole = json("subscriber set 10.1.2.3 --class bypass").await;
    assert_eq!(json("subscriber get 10.1.2.3").await, whole);
    assert_eq!(whole["facts"][0]["class"], "bypass");
    assert_eq!(json("subscriber list").await, json!([bypass]));
    assert_eq!(json("subscriber delete 10.1.2.3").await, json!({"revision": 4, "applied": true}));
    assert_eq!(json("flow list").await, json!([]));
    assert_eq!(json("stats").await, json!({"reasons": [], "interfaces": []}));
    assert_eq!(json("status").await["revision"], 4);
    assert_eq!(json("class list").await.as_array().unwrap().len(), 5);
    assert_eq!(json("relay get embedded").await["source"], "file");
    assert_eq!(json("interface get lan0").await["status"]["mode"], "tcx");
    assert_eq!(json("gateway list").await, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_list_has_every_form() {
    let lab = Lab::start().await;
    for args in ["subscriber set 10.1.0.0/16 --class bypass", "subscriber set 9.0.0.0/8 --class configured"] {
        assert_eq!(lab.ctl(&args.split(' ').collect::<Vec<_>>()).await.code, 0);
    }
    for (args, stdout) in [
        ("subscriber list -o name", "9.0.0.0/8\n10.1.0.0/16\n"),
        (
            "subscriber list --sort -prefix --columns class,prefix --no-headers",
            "bypass      10.1.0.0/16\nconfigured  9.0.0.0/8\n",
        ),
        (
            "subscriber list -o ndjson",
            "{\"prefix\":\"9.0.0.0/8\",\"class\":\"configured\",\"source\":\"operator\",\"expires\":null,\"revision\":4}\n\
             {\"prefix\":\"10.1.0.0/16\",\"class\":\"bypass\",\"source\":\"operator\",\"expires\":null,\"revision\":3}\n",
        ),
        (
            "subscriber list -o ndjson --sort class",
            "{\"prefix\":\"10.1.0.0/16\",\"class\":\"bypass\",\"source\":\"operator\",\"expires\":null,\"revision\":3}\n\
             {\"prefix\":\"9.0.0.0/8\",\"class\":\"configured\",\"source\":\"operator\",\"expires\":null,\"revision\":4}\n",
        ),
        (
            "subscriber list --class configured -o yaml",
            "- prefix: 9.0.0.0/8\n  class: configured\n  source: operator\n  expires: null\n  revision: 4\n",
        ),
        ("subscriber get 9.0.0.0/8 -o name", "9.0.0.0/8\n"),
        ("class list -o name --sort name", "authenticated\nblocked\nbypass\nconfigured\nmisconfigured\n"),
        ("class get bypass -o wide --no-headers", "bypass  pass  -  pass  reset  keep  -  -  none  off  -\n"),
        ("subscriber set 9.0.0.0/8 --class bypass -o name", "9.0.0.0/8\n"),
        ("status --columns fact --sort -fact --no-headers", "version\n"),
    ] {
        let output = lab.ctl(&args.split(' ').collect::<Vec<_>>()).await;
        let expected =
            if args.starts_with("status") { output.stdout.starts_with(stdout) } else { output.stdout == stdout };
        assert!(expected && output.code == 0, "{args}: {}{}", output.stdout, output.stderr);
    }
    for (args, stderr) in [
        (
            "subscriber list --columns colour",
            "there is no column \"colour\"; there are PREFIX,CLASS,SOURCE,EXPIRES,SESSION,USER,MAC,REVISION\n",
        ),
        ("status -o name", "nothing here has a name: -o name is for lists of resources\n"),
    ] {
        let output = lab.ctl(&args.split(' ').collect::<Vec<_>>()).await;
        assert_eq!((output.code, output.stdout.as_str(), output.stderr), (2, "", format!("redirect-ctl: {stderr}")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_shows_what_would_change_and_changes_nothing() {
    let lab = Lab::start().await;
    lab.ctl(&["class", "set", "gold", "--action", "pass"]).await;
    lab.ctl(&["subscriber", "set", "10.0.0.0/8", "--class", "gold"]).await;
    let password = lab.dir.path().join("password");
    std::fs::write(&password, "hunter2\n").unwrap();
    let gateway =
        format!("gateway set mx --address mx.example.net --username me --password-file {}", password.display());
    for (args, stdout, stderr) in [
        (
            "class set gold --action block --rate 5",
            "MEMBER        BEFORE  AFTER\n/action       pass    block\n/limits/rate  -       5\n",
            "PUT /v1/classes/gold would change it",
        ),
        ("class set gold --action pass", "MEMBER  BEFORE  AFTER\n", "PUT /v1/classes/gold would change nothing"),
        (
            "subscriber set 10.0.0.7 --class gold",
            "MEMBER   BEFORE  AFTER\n/class   -       gold\n/source  -       operator\n",
            "PUT /v1/subscribers/10.0.0.7%2F32 would create it",
        ),
        (
            "relay drain embedded",
            "MEMBER   BEFORE   AFTER\n/status  enabled  draining\n",
            "PUT /v1/relays/embedded would change it",
        ),
        (
            "lock add 10.0.0.7 --for 1h",
            "MEMBER       BEFORE  AFTER\n/duration_s  -       3600\n",
            "PUT /v1/locks/10.0.0.7 is what would be asked for",
        ),
    ] {
        let output = lab.ctl(&[&args.split(' ').collect::<Vec<_>>()[..], &["--dry-run"]].concat()).await;
        let expected = format!("redirect-ctl: dry run: {stderr}\n");
        assert_eq!(
            (output.stdout.as_str(), output.stderr.as_str(), output.code),
            (stdout, expected.as_str(), 0),
            "{args}"
        );
    }
    let secret = lab.ctl(&[&gateway.split(' ').collect::<Vec<_>>()[..], &["--dry-run", "-o", "json"]].concat()).await;
    assert!(!secret.stdout.contains("hunter2") && secret.stdout.contains("(secret)"), "{}", secret.stdout);
    let class = lab.ctl(&["class", "delete", "gold", "--dry-run"]).await;
    assert!(class.stdout.contains("\n/action ") && class.code == 0, "{}", class.stdout);
    assert_eq!(class.stderr, "redirect-ctl: dry run: DELETE /v1/classes/gold would delete it\n");
    let nobody = lab.ctl(&["subscriber", "delete", "10.9.9.9", "--dry-run"]).await;
    assert_eq!((nobody.code, nobody.stderr.as_str()), (3, "redirect-ctl: there is no subscriber 10.9.9.9/32\n"));
    assert_eq!(lab.client.status().await.unwrap().revision, 4);
    assert_eq!(lab.ctl(&["lock", "list", "-o", "name"]).await.stdout, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_json_where_answers_are() {
    let lab = Lab::start().await;
    let problem = async |args: &str| -> (u8, Value) {
        let output = lab.ctl(&[&["-o", "json"], &args.split(' ').collect::<Vec<_>>()[..]].concat()).await;
        assert_eq!(output.stdout, "");
        (output.code, serde_json::from_str(&output.stderr).unwrap())
    };
    let (code, not_found) = problem("class get nobody").await;
    assert_eq!((code, &not_found["code"], &not_found["status"]), (3, &json!("not_found"), &json!(404)));
    let (code, invalid) = problem("subscriber set 10.0.0.1 --class nobody").await;
    assert_eq!((code, &invalid["errors"][0]["pointer"]), (1, &json!("/class")));
    let unreachable = ctl("unix:///nowhere/api.sock", &["-o", "ndjson", "status"]).await;
    assert_eq!(serde_json::from_str::<Value>(&unreachable.stderr).unwrap()["code"], "unreachable");
}

#[tokio::test(flavor = "multi_thread")]
async fn problems_have_one_line_and_their_exit_code() {
    let lab = Lab::start().await;
    lab.ctl(&["subscriber", "set", "10.0.0.0/8", "--class", "bypass"]).await;
    for (args, code, stderr) in [
        ("class get nobody", 3, "redirect-ctl: there is no class nobody\n"),
        ("subscriber delete 10.9.9.9", 3, "redirect-ctl: there is no subscriber 10.9.9.9/32\n"),
        ("class delete bypass", 4, "redirect-ctl: class bypass is in use by subscriber 10.0.0.0/8\n"),
        (
            "interface delete lan0",
            4,
            "redirect-ctl: interface lan0 is defined in /etc/redirect/test.toml; change it there and restart redirectd\n",
        ),
        (
            "subscriber set 10.0.0.1 --class nobody",
            1,
            "redirect-ctl: /class: there is no class nobody; create it first\n",
        ),
        (
            "class set gold --action redirect",
            1,
            "redirect-ctl: /relays: action redirect needs a relay, such as [{\"name\": \"embedded\"}]\n",
        ),
        ("flow list --class nobody", 1, "redirect-ctl: ?class: there is no class nobody\n"),
        ("flow list --relay nobody", 1, "redirect-ctl: ?relay: there is no relay nobody\n"),
        (
            "flow original --relay 192.0.2.25:25 --client 10.0.0.1:40000",
            3,
            "redirect-ctl: no redirected flow goes from 10.0.0.1:40000 to 192.0.2.25:25\n",
        ),
        ("lock remove 10.0.0.1", 3, "redirect-ctl: 10.0.0.1 is not locked\n"),
        ("relay drain nobody", 3, "redirect-ctl: there is no relay nobody\n"),
    ] {
        let output = lab.ctl(&args.split(' ').collect::<Vec<_>>()).await;
        assert_eq!((output.stderr.as_str(), output.stdout.as_str(), output.code), (stderr, "", code), "{args}");
    }
}

#[tokio::test]
async fn usage_is_an_error_of_its_own() {
    for args in [
        "",
        "subscriber",
        "subscriber set 10.0.0.0/8",
        "subscriber set 10.0.0.1/8 --class bypass",
        "subscriber set 10.0.0.0/8 --class bypass --ttl 1h --expires 2099-01-01T00:00:00Z",
        "subscriber set 10.0.0.0/8 --class bypass --ttl 0s",
        "subscriber set 10.0.0.0/8 --class bypass --ttl soon",
        "class set gold --action refuse",
        "relay set postfix",
        "relay set postfix --ipv4 10.9.0.25:25 --status off",
        "class set gold --action redirect --relay embedded:0",
        "class set gold --action pass --rate many",
        "class set gold --action pass --rate 5 --lock-after 9 --lock-for 721h",
        "lock add 10.0.0.1",
        "lock add 10.0.0.0/24 --for 1h",
        "lock add 10.0.0.1 --for 500ms",
        "flow original --relay 192.0.2.25 --client 10.0.0.1:40000",
        "gateway set mx --address 300.1.1.1",
        "gateway set mx --address mx --port 0",
        "interface set lan0 --role relay",
        "flow list --limit 0",
        "-o xml status",
        "--host http://localhost status",
        "--host unix://relative status",
        "--host http://10.0.0.1:8080 status",
        "--cert cert.pem status",
        "token create portal",
        "token create portal --role boss",
        "audit list --all --limit 3",
        "--timeout never status",
    ] {
        let words: Vec<_> = args.split(' ').filter(|word| !word.is_empty()).collect();
        let output = ctl("unix:///nowhere", &words).await;
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{args}: {}", output.stderr);
        assert!(!output.stderr.is_empty());
    }
    let output = ctl("tcp://x", &["status"]).await;
    assert_eq!(
        (output.code, output.stderr.as_str()),
        (
            2,
            "redirect-ctl: REDIRECT_HOST: \"tcp://x\" is not a host: give unix:///PATH/TO/SOCKET or https://NAME:PORT\n"
        )
    );
}

#[tokio::test]
async fn help_is_an_answer_with_examples() {
    for args in [
        &["--help"][..],
        &["subscriber", "set", "--help"],
        &["class", "set", "--help"],
        &["flow", "list", "--help"],
        &["trace", "--help"],
    ] {
        let output = ctl("unix:///nowhere", args).await;
        assert_eq!((output.code, output.stderr.as_str()), (0, ""));
        assert!(output.stdout.contains("Example"), "{}", output.stdout);
    }
    assert!(ctl("unix:///nowhere", &["--version"]).await.stdout.starts_with("redirect-ctl "));
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_unreachable() {
    let output = ctl("unix:///nowhere/api.sock", &["status"]).await;
    assert_eq!(output.code, 5);
    assert!(
        output.stderr.starts_with("redirect-ctl: cannot reach redirectd at /nowhere/api.sock: "),
        "{}",
        output.stderr
    );

    // One that takes the connection and says nothing.
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("mute.sock");
    let _listener = tokio::net::UnixListener::bind(&path).unwrap();
    let output = ctl(&format!("unix://{}", path.display()), &["--timeout", "100ms", "status"]).await;
    assert_eq!((output.code, output.stderr.contains("no answer from redirectd")), (5, true), "{}", output.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lists_say_that_they_are_cut_and_can_be_complete() {
    let lab = Lab::start().await;
    for host in 0..5 {
        lab.ctl(&["subscriber", "set", &format!("10.0.0.{host}"), "--class", "bypass"]).await;
    }
    let cut = lab.ctl(&["subscriber", "list", "--limit", "2", "--no-headers"]).await;
    assert_eq!(cut.stdout.lines().count(), 2);
    assert_eq!(cut.stderr, "redirect-ctl: showing the first 2 subscribers; use --all, or raise --limit\n");
    let all = lab.ctl(&["subscriber", "list", "--all", "--no-headers"]).await;
    assert_eq!((all.stdout.lines().count(), all.stderr.as_str()), (5, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ttl_becomes_a_time_and_the_subscriber_goes() {
    let lab = Lab::start().await;
    lab.ctl(&["subscriber", "set", "10.0.0.1", "--class", "bypass", "--ttl", "1s"]).await;
    assert_eq!(lab.model.state().subscribers.len(), 1);
    crate::support::eventually("it expires", || async { lab.model.state().subscribers.is_empty() }).await;
    assert_eq!(lab.ctl(&["subscriber", "get", "10.0.0.1"]).await.code, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_kernel_is_a_warning() {
    let lab = Lab::start().await;
    lab.model.state().fault = Some(Box::new(|what| what.starts_with("set")));
    let output = lab.ctl(&["subscriber", "set", "10.0.0.1", "--class", "bypass"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (0, "subscriber 10.0.0.1/32 set (revision 3)\n"));
    assert_eq!(
        output.stderr,
        "redirect-ctl: revision 3 is stored, but the kernel does not hold it yet; see redirect-ctl status\n"
    );
}

/// What a command has printed so far, for those who look on.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `args` print while classes come, each after the answer that has the one before, until the daemon stops; in a `hurry`, nobody waits.
async fn watched(args: &str, is_terminal: bool, classes: &[&str], hurry: bool) -> String {
    let lab = Lab::start().await;
    let host = format!("unix://{}", lab.settings.sockets[0].display());
    let args: Vec<String> = ["redirect-ctl"].into_iter().chain(args.split(' ')).map(str::to_owned).collect();
    let printed = Printed::default();
    let (mut stdout, mut stderr) = (printed.clone(), Vec::new());
    let getenv = |name: &str| (name == "REDIRECT_HOST").then(|| host.clone());
    let mut env = Env {
        stdout: &mut stdout,
        stderr: &mut stderr,
        stdin: &mut io::empty(),
        getenv: &getenv,
        is_terminal,
        progress: false,
    };
    let change = async {
        eventually("it is printed", || async { !printed.text().is_empty() }).await;
        for class in classes {
            assert_eq!(lab.ctl(&["class", "set", class, "--action", "pass"]).await.code, 0);
            if !hurry {
                eventually("it is printed again", || async { printed.text().contains(class) }).await;
            }
        }
        if !hurry {
            // Nothing has changed since the last one.
            tokio::time::sleep(limits::WATCH_INTERVAL * 3 / 2).await;
        }
        lab.shutdown.cancel();
    };
    let (code, ()) = tokio::join!(Box::pin(commands::run(&mut env, &args)), change);
    assert_eq!((code, String::from_utf8(stderr).unwrap().as_str()), (0, "redirect-ctl: redirectd stopped\n"));
    printed.text()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_watched_is_printed_again_when_it_changes_and_only_then() {
    let before = "misconfigured\nconfigured\nauthenticated\nbypass\nblocked\n";
    let names = watched("class list --watch -o name", false, &["gold", "silver"], false).await;
    assert_eq!(names, format!("{before}\n{before}gold\n\n{before}gold\nsilver\n"));

    let clear = "\u{1b}[H\u{1b}[2J";
    let screen = watched("class list --watch --columns name --no-headers", true, &["gold"], false).await;
    assert_eq!(screen, format!("{clear}{before}{clear}{before}gold\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_answer_that_is_watched_is_a_document() {
    let lines = watched("-o ndjson class list --watch", false, &["gold"], false).await;
    let counts: Vec<_> =
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap().as_array().unwrap().len()).collect();
    assert_eq!(counts, [5, 6]);

    let documents = watched("-o json class list --watch", false, &["gold"], false).await;
    let documents = serde_json::Deserializer::from_str(&documents).into_iter::<Value>();
    let counts: Vec<_> = documents.map(|document| document.unwrap().as_array().unwrap().len()).collect();
    assert_eq!(counts, [5, 6]);

    let documents = watched("-o yaml class list --watch", false, &["gold"], false).await;
    assert_eq!(documents.matches("---\n").count(), 2, "{documents}");
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_ends_well_where_the_daemon_stops_right_after_a_change() {
    let names = watched("class list --watch -o name", false, &["gold"], true).await;
    assert!(names.starts_with("misconfigured\n"), "{names}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_watched_is_told_so() {
    let lab = Lab::start().await;
    for args in [&["subscriber", "list", "--all", "--watch"][..], &["group", "list", "--watch"]] {
        assert_eq!(lab.ctl(args).await.code, 2, "{args:?}");
    }
    let nobody = lab.ctl(&["subscriber", "get", "10.1.2.3", "--watch"]).await;
    assert_eq!((nobody.code, nobody.stdout.as_str()), (3, ""));
}
