//! `support-bundle`: what those who are to help need to know, in one archive, without secrets.
//!
//! Whatever cannot be had is left out and named in `missing.txt`: a bundle is wanted most when things do not work.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

use flate2::{Compression, write::GzEncoder};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Context, Error, doctor, failed, kernel};
use crate::{
    api::types::paths,
    cli,
    desired::Time,
    doctor::{findings, look},
    limits,
    redact::{Anonymizer, hide_secrets, hide_secrets_in_text},
};

/// What the API tells, and the file that it goes to.
const ANSWERS: &[(&str, &str)] = &[
    ("status.json", paths::STATUS),
    ("stats.json", paths::STATS),
    ("interfaces.json", paths::INTERFACES),
    ("classes.json", paths::CLASSES),
    ("relays.json", paths::RELAYS),
    ("gateways.json", paths::GATEWAYS),
    ("groups.json", paths::GROUPS),
    ("locks.json", paths::LOCKS),
    ("lint.json", paths::LINT),
    ("kernel-diff.json", paths::KERNEL_DIFF),
];

/// Lists that may be long.
const LISTS: &[(&str, &str)] = &[
    ("flows.json", paths::FLOWS),
    ("subscribers.json", paths::SUBSCRIBERS),
    ("routes.json", paths::ROUTES),
    ("managed-domains.json", paths::MANAGED_DOMAINS),
];

/// What other programs print.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("uname.txt", &["uname", "-a"]),
    ("ip-link.txt", &["ip", "-d", "-s", "link"]),
    ("ip-address.txt", &["ip", "address"]),
    ("ip-route.txt", &["ip", "route", "show", "table", "all"]),
    ("ip-route6.txt", &["ip", "-6", "route", "show", "table", "all"]),
    ("ip-rule.txt", &["ip", "rule"]),
    ("ip-rule6.txt", &["ip", "-6", "rule"]),
    ("tc-qdisc.txt", &["tc", "-s", "qdisc"]),
    ("nft.txt", &["nft", "-t", "list", "ruleset"]),
    ("sockets.txt", &["ss", "-tln"]),
];

/// Files of the host.
const FILES: &[(&str, &str)] = &[
    ("os-release.txt", "/etc/os-release"),
    ("meminfo.txt", "/proc/meminfo"),
    ("loadavg.txt", "/proc/loadavg"),
    ("mounts.txt", "/proc/self/mounts"),
];

pub(super) async fn run(context: &mut Context<'_>, args: cli::SupportBundle) -> Result<(), Error> {
    let time = Time::now().to_string().replace(':', "");
    let file = args.file.clone().unwrap_or_else(|| PathBuf::from(format!("redirect-support-{time}.tar.gz")));
    let entries = collect(context, &args).await;
    let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    let answer = json!({"file": file, "entries": names});
    if context.dry_run {
        return context.done(&answer, &names.join("\n"));
    }
    write(&file, &entries).map_err(|error| failed(&file, &error))?;
    context.done(&answer, &format!("{} written: look at it before you send it", file.display()))
}

/// Files by name, each of [`limits::TOOL_OUTPUT_BYTES_MAX`] bytes at most, without secrets.
async fn collect(context: &Context<'_>, args: &cli::SupportBundle) -> Vec<(String, String)> {
    let mut bundle = Bundle { entries: Vec::new(), missing: Vec::new() };
    let client = &context.client;
    bundle.json(
        "versions.json",
        Ok::<_, String>(json!({"redirect-ctl": env!("CARGO_PKG_VERSION"), "time": Time::now()})),
    );
    let facts = doctor::facts(context, &args.config, &[]).await;
    bundle.json("doctor.json", Ok::<_, String>(findings(&facts)));
    for (name, path) in ANSWERS {
        bundle.json(name, client.get::<Value>(path).await);
    }
    for (name, path) in LISTS {
        bundle.json(name, client.get::<Value>(&format!("{path}?limit={}", limits::BUNDLE_ROWS_MAX)).await);
    }
    bundle.text("metrics.txt", client.text(paths::METRICS).await);
    bundle.json("kernel-maps.json", kernel::maps());
    bundle.json("kernel-programs.json", kernel::programs());
    bundle.json("kernel-links.json", kernel::links());
    bundle.text("redirectd.toml", std::fs::read_to_string(&args.config));
    for (name, path) in FILES {
        bundle.text(name, std::fs::read_to_string(path));
    }
    let ran = |text: Option<String>| text.ok_or("the program is not there, failed, or took too long");
    for (name, words) in PROGRAMS {
        bundle.text(name, ran(look::run(words[0], &words[1..], context.timeout).await));
    }
    for device in &facts.devices {
        for hook in ["ingress", "egress"] {
            let name = format!("tc-filter-{}-{hook}.txt", device.name);
            let words = ["-s", "filter", "show", "dev", device.name.as_str(), hook];
            bundle.text(&name, ran(look::run("tc", &words, context.timeout).await));
        }
    }
    let lines = limits::BUNDLE_LOG_LINES.to_string();
    let log = look::run("journalctl", &["--no-pager", "-u", "redirectd", "-n", &lines], context.timeout).await;
    bundle.text("log.txt", ran(log));
    let missing = bundle.missing.join("\n");
    bundle.text("missing.txt", Ok::<_, String>(missing));
    let mut anonymizer = Anonymizer::default();
    let anonymize = |(name, text): (String, String)| {
        let text = if args.anonymize { anonymizer.anonymize(&text) } else { text };
        (name, text)
    };
    bundle.entries.into_iter().map(anonymize).collect()
}

struct Bundle {
    entries: Vec<(String, String)>,
    /// What could not be had, and why.
    missing: Vec<String>,
}

impl Bundle {
    fn json(&mut self, name: &str, value: Result<impl Serialize, impl ToString>) {
        let value = value.map_err(|error| error.to_string());
        let text = value.and_then(|value| {
            let mut value = serde_json::to_value(value).map_err(|error| error.to_string())?;
            hide_secrets(&mut value);
            serde_json::to_string_pretty(&value).map_err(|error| error.to_string())
        });
        self.add(name, text);
    }

    fn text(&mut self, name: &str, text: Result<String, impl ToString>) {
        self.add(name, text.map(|text| hide_secrets_in_text(&text)).map_err(|error| error.to_string()));
    }

    fn add(&mut self, name: &str, text: Result<String, String>) {
        match text {
            Ok(mut text) => {
                text.truncate(text.floor_char_boundary(limits::TOOL_OUTPUT_BYTES_MAX));
                self.entries.push((name.to_owned(), text));
            }
            Err(error) => self.missing.push(format!("{name}: {error}")),
        }
    }
}

/// Readable by its owner only.
fn write(file: &std::path::Path, entries: &[(String, String)]) -> io::Result<()> {
    let archive = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    let mut tar = tar::Builder::new(GzEncoder::new(archive, Compression::default()));
    for (name, text) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(Time::now().seconds).unwrap_or(0));
        tar.append_data(&mut header, format!("redirect-support/{name}"), text.as_bytes())?;
    }
    tar.into_inner()?.finish()?.flush()
}
