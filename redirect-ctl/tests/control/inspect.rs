//! `redirect-ctl` about the host and itself: help, completions, manual pages, `doctor`, `kernel diff`, `support-bundle`, `top`.

use std::{
    fs::{self, File},
    io::Read as _,
};

use clap::CommandFactory as _;
use redirect_ctl::cli::{Cli, DaemonCli};
use serde_json::{Value, json};

use crate::support::{Lab, ctl};

/// Every command without verbs below it, by its words.
fn commands(command: &clap::Command, words: &str, found: &mut Vec<(String, clap::Command)>) {
    let mut below = command.get_subcommands().filter(|below| below.get_name() != "help").peekable();
    if below.peek().is_none() {
        found.push((words.to_owned(), command.clone()));
    }
    for command in below {
        commands(command, &format!("{words} {}", command.get_name()), found);
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    let mut found = Vec::new();
    commands(&Cli::command(), "redirect-ctl", &mut found);
    commands(&DaemonCli::command(), "redirectd", &mut found);
    assert!(found.len() > 50, "{}", found.len());
    for (words, command) in found {
        assert!(command.get_about().is_some(), "{words} has no help");
        let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let example = examples.lines().any(|line| line.contains(&words));
        assert!(example, "{words} has no example");
        for argument in command.get_arguments() {
            let is_named = argument.get_long().is_some() || argument.get_help().is_some() || argument.is_positional();
            assert!(is_named, "{words}: {}", argument.get_id());
        }
    }
}

#[tokio::test]
async fn completions_and_manual_pages_are_generated() {
    for (shell, sign) in
        [("bash", "complete -F"), ("zsh", "#compdef redirect-ctl"), ("fish", "complete -c redirect-ctl")]
    {
        let script = ctl("unix:///nowhere", &["completion", shell]).await;
        assert_eq!((script.code, script.stderr.as_str()), (0, ""));
        assert!(script.stdout.contains(sign) && script.stdout.contains("support-bundle"), "{shell}");
    }
    let folder = tempfile::TempDir::new().unwrap();
    let man = ctl("unix:///nowhere", &["man", folder.path().to_str().unwrap()]).await;
    assert_eq!(man.code, 0, "{}", man.stderr);
    for (page, part) in [
        ("redirect-ctl.1", "redirect\\-ctl"),
        ("redirect-ctl-class-set.1", "on\\-relay\\-down"),
        ("redirect-ctl-doctor.1", "doctor"),
        ("redirectd.8", "RUST_LOG"),
    ] {
        let text = fs::read_to_string(folder.path().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".SH NAME") && text.contains(part), "{page}:\n{text}");
    }
    assert!(!folder.path().join("redirect-ctl-man.1").exists(), "it is hidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_shown_as_what_would_be_done_and_nothing_is_changed() {
    let lab = Lab::start().await;
    lab.ctl(&["subscriber", "set", "10.0.0.1", "--class", "bypass"]).await;
    let none = lab.ctl(&["kernel", "diff"]).await;
    assert_eq!((none.code, none.stdout.as_str(), none.stderr.as_str()), (0, "OPERATION  SUBJECT\n", ""));

    let prefix = "10.0.0.1/32".parse().unwrap();
    let taken = lab.model.state().subscribers.remove(&prefix).unwrap();
    lab.model.state().subscribers.insert("10.9.0.0/16".parse().unwrap(), taken);
    let drift = lab.ctl(&["kernel", "diff"]).await;
    assert_eq!(drift.code, 6, "{}", drift.stderr);
    assert_eq!(
        drift.stdout,
        "OPERATION          SUBJECT\nremove_subscriber  10.9.0.0/16\nset_subscriber     10.0.0.1/32\n"
    );
    assert!(drift.stderr.contains("2 operations away"), "{}", drift.stderr);
    let json: Value = serde_json::from_str(&lab.ctl(&["-o", "json", "kernel", "diff"]).await.stdout).unwrap();
    assert_eq!((&json["total"], &json["revision"], &json["applied"]), (&json!(2), &json!(3), &json!(3)));
    assert!(!lab.model.state().subscribers.contains_key(&prefix), "the question changed something");

    // Asked for, it is mended at once.
    let mended = lab.ctl(&["kernel", "reconcile"]).await;
    assert_eq!((mended.code, &mended.stdout), (0, &drift.stdout), "{}", mended.stderr);
    assert_eq!(mended.stderr, "redirect-ctl: the kernel holds revision 3; it was 2 operations away\n");
    assert!(lab.model.state().subscribers.contains_key(&prefix));
    assert_eq!(lab.ctl(&["kernel", "diff"]).await.code, 0);
    lab.model.state().subscribers.clear();
    lab.model.state().fault = Some(Box::new(|what| what.starts_with("set")));
    let refused = lab.ctl(&["kernel", "reconcile"]).await;
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
    assert!(refused.stderr.contains("the kernel does not follow the store"), "{}", refused.stderr);
    lab.model.state().fault = None;
    assert_eq!(lab.ctl(&["kernel", "reconcile"]).await.code, 0, "it waits for no other attempt");
    assert!(lab.model.state().subscribers.contains_key(&prefix));

    // What a change touched is still brought into the kernel after a look at everything.
    lab.ctl(&["subscriber", "set", "10.0.0.2", "--class", "bypass"]).await;
    assert!(lab.model.state().subscribers.contains_key(&"10.0.0.2/32".parse().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_what_is_wrong_and_what_to_do() {
    let lab = Lab::start().await;
    let config = lab.dir.path().join("redirectd.toml");
    fs::write(&config, "[[interface]]\nname = \"nosuch0\"\nrole = \"subscriber\"\n").unwrap();
    let config = config.to_str().unwrap();
    let found = async |host: &str| -> (u8, Vec<Value>) {
        let output = ctl(host, &["doctor", "--config", config, "-o", "json"]).await;
        let findings = serde_json::from_str(&output.stdout);
        (output.code, findings.unwrap_or_else(|error| panic!("{error}: {}{}", output.stdout, output.stderr)))
    };
    let level = |findings: &[Value], check: &str, subject: &str| -> Value {
        let finding = findings.iter().find(|finding| finding["check"] == check && finding["subject"] == subject);
        finding.map(|finding| finding["level"].clone()).unwrap_or_default()
    };
    let host = format!("unix://{}", lab.settings.sockets[0].display());
    let (code, with_daemon) = found(&host).await;
    // The model's interface is no device of this host.
    assert_eq!((code, level(&with_daemon, "interface", "lan0")), (1, json!("fail")));
    assert_eq!(level(&with_daemon, "daemon", ""), "ok");
    assert_eq!(level(&with_daemon, "kernel", "").as_str().map(|level| level != "fail"), Some(true));

    let (code, without) = found("unix:///nowhere/api.sock").await;
    assert_eq!((code, level(&without, "daemon", "")), (1, json!("fail")));
    assert_eq!(level(&without, "interface", "nosuch0"), "fail", "{without:?}");
    for finding in without.iter().filter(|finding| finding["level"] != "ok") {
        assert!(finding["remedy"].is_string(), "{finding}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_support_bundle_has_no_secrets() {
    let lab = Lab::start().await;
    let password = lab.dir.path().join("password");
    fs::write(&password, "hunter2-gateway\n").unwrap();
    let config = lab.dir.path().join("redirectd.toml");
    fs::write(
        &config,
        "api_token = \"hunter2-config\"\nlisten = \"198.51.100.77:25\"\n# -----BEGIN PRIVATE KEY-----\nhunter2\n",
    )
    .unwrap();
    let gateway = ["gateway", "set", "mx", "--address", "198.51.100.77", "--username", "me", "--allow-unprotected"];
    let set = lab.ctl(&[&gateway[..], &["--password-file", password.to_str().unwrap()]].concat()).await;
    assert_eq!(set.code, 0, "{}", set.stderr);

    for anonymize in [false, true] {
        let file = lab.dir.path().join(format!("bundle-{anonymize}.tar.gz"));
        let mut args = vec!["support-bundle", file.to_str().unwrap(), "--config", config.to_str().unwrap()];
        args.extend(anonymize.then_some("--anonymize"));
        let dry = lab.ctl(&[&args[..], &["--dry-run"]].concat()).await;
        assert!(dry.stdout.contains("status.json\n") && !file.exists(), "{}", dry.stderr);
        let output = lab.ctl(&args).await;
        assert_eq!(output.code, 0, "{}", output.stderr);
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);

        let mut all = String::new();
        let mut names = Vec::new();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&file).unwrap()));
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            names.push(entry.path().unwrap().display().to_string());
            entry.read_to_string(&mut all).unwrap();
        }
        for name in [
            "status.json",
            "doctor.json",
            "gateways.json",
            "kernel-diff.json",
            "metrics.txt",
            "redirectd.toml",
            "missing.txt",
        ] {
            assert!(names.contains(&format!("redirect-support/{name}")), "{name} is missing in {names:?}");
        }
        assert!(!all.contains("hunter2"), "a secret is in the bundle");
        assert_eq!(all.contains("198.51.100.77"), !anonymize);
        assert!(all.contains("misconfigured"));
        assert_eq!(lab.ctl(&args).await.code, 1, "an archive is never overwritten");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn top_needs_a_terminal() {
    let lab = Lab::start().await;
    let output = lab.ctl(&["top"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (2, ""));
    assert!(output.stderr.contains("draws on a terminal"), "{}", output.stderr);
}

#[tokio::test]
async fn kernel_commands_say_what_they_need() {
    let unknown = ctl("unix:///nowhere", &["kernel", "dump", "NO_SUCH_MAP"]).await;
    assert_eq!((unknown.code, unknown.stdout.as_str()), (1, ""));
    assert!(!unknown.stderr.is_empty());
}
