//! `postfix-check` on real settings, by Postfix's own postconf.
#![expect(clippy::unwrap_used, reason = "a test ends at its first failure")]

use std::{fs, path::Path, process::Command};

use redirect_tests::{binary, postfix};
use serde_json::Value;
use tempfile::TempDir;

const MASTER: &str = "smtp inet n - n - - smtpd\n2525 inet n - n - - smtpd\n  -o smtpd_forbid_bare_newline=no\n";

/// The exit code, what is printed as JSON, and the complaint, empty where there is none.
fn check(folder: &Path) -> (Option<i32>, Vec<Value>, String) {
    let postconf = postfix::program("postconf").unwrap();
    let mut command = Command::new(binary("redirect-ctl").unwrap());
    command
        .args(["-o", "json", "postfix-check", "--config-dir"])
        .arg(folder)
        .arg("--postconf")
        .arg(postconf.get_program());
    command.envs(postconf.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    let findings = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), findings, complaint(&output.stderr))
}

/// With `-o json` the complaint is one JSON object in one line.
fn complaint(stderr: &[u8]) -> String {
    let text = str::from_utf8(stderr).unwrap();
    if text.is_empty() {
        return String::new();
    }
    assert_eq!(text.lines().count(), 1, "{text}");
    let complaint: Value = serde_json::from_str(text).unwrap();
    assert_eq!(complaint["code"], "failed");
    complaint["detail"].as_str().unwrap().to_owned()
}

fn faults(findings: &[Value]) -> Vec<String> {
    let words = |finding: &Value| {
        ["level", "place", "parameter"].map(|key| finding[key].as_str().unwrap().to_owned()).join(" ")
    };
    findings.iter().filter(|finding| finding["level"] == "error").map(words).collect()
}

#[test]
fn settings_of_a_real_postfix() {
    let folder = TempDir::new().unwrap();
    let configure = |main: &str, master: &str| {
        fs::write(folder.path().join("main.cf"), format!("compatibility_level = 3.6\n{main}")).unwrap();
        fs::write(folder.path().join("master.cf"), master).unwrap();
        check(folder.path())
    };
    let plain = MASTER.lines().next().unwrap();

    let (code, findings, complaint) = configure("smtpd_forbid_bare_newline = no\n", plain);
    assert_eq!((code, faults(&findings)), (Some(1), vec!["error main.cf smtpd_forbid_bare_newline".to_owned()]));
    assert!(complaint.starts_with("1 of Postfix's settings accepts smuggled ends of data"), "{complaint}");

    // Its own default excludes everybody in mynetworks.
    let (code, findings, _) =
        configure("mynetworks = 127.0.0.0/8, 10.20.0.0/16\nsmtpd_forbid_bare_newline = normalize\n", plain);
    assert_eq!(
        (code, faults(&findings)),
        (Some(1), vec!["error main.cf smtpd_forbid_bare_newline_exclusions".to_owned()])
    );
    let exclusions = findings.iter().find(|finding| finding["level"] == "error").unwrap();
    assert_eq!(exclusions["value"], "127.0.0.0/8, 10.20.0.0/16");

    let safe = "smtpd_forbid_bare_newline = normalize\nsmtpd_forbid_bare_newline_exclusions =\n";
    let (code, findings, complaint) = configure(safe, plain);
    assert_eq!((code, faults(&findings), complaint), (Some(0), vec![], String::new()));

    let (code, findings, _) = configure(safe, MASTER);
    assert_eq!((code, faults(&findings)), (Some(1), vec!["error 2525/inet smtpd_forbid_bare_newline".to_owned()]));
}

#[test]
fn what_cannot_be_asked_is_an_error() {
    let folder = TempDir::new().unwrap();
    let (code, findings, complaint) = check(folder.path());
    assert_eq!((code, findings.len()), (Some(1), 0));
    assert!(complaint.contains("main.cf"), "{complaint}");
}
