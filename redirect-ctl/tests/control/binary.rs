//! `redirectd` as a process, as far as it goes without root: its command line and its configuration.

use std::{
    fs,
    process::{Command, Output},
};

use tempfile::TempDir;

fn redirectd(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_redirectd")).args(args).output().unwrap()
}

#[test]
fn a_bad_configuration_is_one_line_and_exit_code_2_and_nothing_is_made() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("redirectd.toml");
    let path = file.to_str().unwrap();
    let store = dir.path().join("store.db");
    for (text, line) in [
        ("[relay]\nlisten = [\"127.0.0.1:25\"]", "relay.listen[0]: 127.0.0.1 is a loopback address"),
        ("[[interface]]\nname = \"lan0\"\nrole = \"wan\"", "interface[0].role: \"wan\" is none of subscriber"),
        ("[dataplane]\nflow_max = 1", "dataplane.flow_max: unknown key; did you mean flows_max?"),
        ("flows", "line 1, flows: not TOML"),
    ] {
        fs::write(&file, format!("{text}\n[store]\npath = \"{}\"\n", store.display())).unwrap();
        let output = redirectd(&["--config", path]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.starts_with(&format!("redirectd: {path}: {line}")), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(output.stdout.is_empty());
        assert!(!store.exists());
    }
    let output = redirectd(&["--config", "/nowhere/redirectd.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1);
}

#[test]
fn check_reads_the_file_and_leaves() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("redirectd.toml");
    fs::write(&file, "[[interface]]\nname = \"lan0\"\n").unwrap();
    let output = redirectd(&["--config", file.to_str().unwrap(), "--check"]);
    assert_eq!((output.status.code(), output.stdout.len(), output.stderr.len()), (Some(0), 0, 0));
}

#[test]
fn a_wrong_command_line_is_exit_code_2_and_help_is_none() {
    assert_eq!(redirectd(&["--confg"]).status.code(), Some(2));
    let help = redirectd(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8(help.stdout).unwrap().contains("Exit codes"));
}
