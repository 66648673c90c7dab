//! The product in five minutes: a mail client, a router that takes its connection over, and the mail at the operator's
//! gateway, all on this machine in network namespaces. Every claim that is told is checked.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    net::IpAddr,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use redirect_tests::{
    Family, Finished, Lab, Product, configuration,
    postfix::{SmtpSink, StoredMail},
    remove_kept,
    smtp::{port_25, split_received},
};
use serde_json::json;

const FROM: &str = "guest@hotel.example";
const TO: &str = "friend@internet.example";

/// How long the blocked subscriber's client tries; the others get an answer in milliseconds.
const CONNECT_TIMEOUT_S: &str = "3";
const CLIENT: Duration = Duration::from_mins(1);

/// Shows a redirected mail from the client to the operator's gateway.
#[derive(Parser)]
#[command(name = "cargo xtask demo", after_help = "Exit code: 0 if every check held, 1 if not.")]
struct Args {
    /// Leave the lab up and print how to enter and how to remove it
    #[arg(long)]
    keep: bool,
    /// End with one JSON object of the checks on standard output; the story goes to standard error
    #[arg(long)]
    json: bool,
    /// Remove the labs that `--keep` left up
    #[arg(long, conflicts_with_all = ["keep", "json"])]
    remove: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut story = Story { to_stderr: args.json, checks: Vec::new(), step: 0 };
    let started = Instant::now();
    let outcome = if args.remove { remove(&mut story) } else { play(&mut story, args.keep) };
    if let Err(error) = &outcome {
        eprintln!("demo: {error:#}");
    }
    let held = story.checks.iter().filter(|check| check.held).count();
    let ok = outcome.is_ok() && held == story.checks.len();
    if !args.remove && outcome.is_ok() {
        story.tell(&format!("\n{held} of {} checks held.", story.checks.len()));
    }
    if args.json {
        let checks: Vec<_> = story
            .checks
            .iter()
            .map(|check| json!({"step": check.step, "name": check.name, "held": check.held}))
            .collect();
        let error = outcome.err().map(|error| format!("{error:#}"));
        let seconds = started.elapsed().as_secs();
        println!("{}", json!({"ok": ok, "checks": checks, "error": error, "seconds": seconds}));
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Check {
    step: u32,
    name: String,
    held: bool,
}

/// What is told, and what was checked.
struct Story {
    to_stderr: bool,
    checks: Vec<Check>,
    step: u32,
}

impl Story {
    fn tell(&self, text: &str) {
        // A reader that went away is no reason to leave the lab half done.
        let _ = if self.to_stderr { writeln!(io::stderr(), "{text}") } else { writeln!(io::stdout(), "{text}") };
    }

    fn step(&mut self, title: &str) {
        self.step += 1;
        self.tell(&format!("\n{}. {title}", self.step));
    }

    fn indented(&self, text: &str) {
        for line in text.trim_end().lines() {
            self.tell(&format!("     {line}"));
        }
    }

    fn check(&mut self, name: impl Into<String>, held: bool) {
        let name = name.into();
        self.tell(&format!("   {} {name}", if held { "ok  " } else { "FAIL" }));
        self.checks.push(Check { step: self.step, name, held });
    }
}

fn remove(story: &mut Story) -> Result<()> {
    let removed = remove_kept()?;
    story.tell(&if removed.is_empty() {
        "no lab was kept".to_owned()
    } else {
        format!("removed {}", removed.join(", "))
    });
    Ok(())
}

/// The lab with what runs in it.
struct Stage {
    product: Product,
    internet: Vec<SmtpSink>,
    gateway: SmtpSink,
    lab: Lab,
}

impl Stage {
    /// Runs `redirect-ctl`, showing the command and what it prints.
    fn ctl(&self, story: &Story, words: &[&str]) -> Result<()> {
        story.tell(&format!("   $ redirect-ctl {}", words.join(" ")));
        story.indented(&self.product.ctl(&self.lab, words)?);
        Ok(())
    }

    /// All that reached the servers on the Internet, and the gateway.
    fn arrived(&self) -> Result<(Vec<StoredMail>, Vec<StoredMail>)> {
        let mut internet = Vec::new();
        for sink in &self.internet {
            internet.extend(sink.mails()?);
        }
        Ok((internet, self.gateway.mails()?))
    }
}

fn play(story: &mut Story, keep: bool) -> Result<()> {
    let interfaces = interfaces_of_this_machine();
    let mut stage = set_up(story)?;
    configure(story, &stage)?;
    redirected(story, &stage)?;
    let_through(story, &stage)?;
    blocked(story, &stage)?;

    story.step("What the router counted");
    stage.ctl(story, &["stats"])?;
    stage.ctl(story, &["status"])?;

    if keep {
        return leave(story, &stage);
    }
    stop(story, &mut stage)?;

    story.step("Everything is removed");
    let (id, folder) = (stage.lab.id().to_owned(), stage.lab.folder().to_path_buf());
    drop(stage);
    let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let left = namespaces.filter(|name| name.file_name().to_string_lossy().starts_with(&id)).count();
    story.check("no namespace and no file of the lab is left", left == 0 && !folder.exists());
    story.check("this machine's own interfaces are what they were", interfaces_of_this_machine() == interfaces);
    Ok(())
}

fn interfaces_of_this_machine() -> BTreeSet<OsString> {
    fs::read_dir("/sys/class/net").into_iter().flatten().flatten().map(|device| device.file_name()).collect()
}

fn set_up(story: &mut Story) -> Result<Stage> {
    story.step("Four hosts, each a network namespace of this machine");
    let lab = Lab::new()?;
    story.indented(
        "client                              router                  internet\n\
         10.20.0.10 .20 .30 ---------- lan0  redirectd  wan0 ------- 203.0.113.10      someone's mail server\n\
         fd00:20::10 ::20 ::30                    mx0                2001:db8:113::10\n\
         \u{20}                                         |\n\
         \u{20}                                      gateway  192.0.2.25  the operator's mail server",
    );
    let gateway = SmtpSink::start(&lab, &lab.gateway, "gateway.example.net", port_25(Family::V4.gateway()))?;
    let mut internet = Vec::new();
    for family in Family::BOTH {
        let name = format!("mx-{family:?}.internet.example").to_lowercase();
        internet.push(SmtpSink::start(&lab, &lab.internet, &name, port_25(family.server()))?);
    }
    story.tell("   Postfix's smtp-sink listens on port 25 of the gateway and of the Internet's server.");

    story.step("redirectd in the router, on the built-in defaults and this file");
    let text = configuration(lab.folder(), "auto");
    story.indented(&text);
    let product = Product::start(&lab, &text)?;
    let stage = Stage { product, internet, gateway, lab };
    stage.ctl(story, &["interface", "list"])?;
    let interfaces = stage.product.json(&stage.lab, &["interface", "get", "lan0"])?;
    story.check("the programs are attached to lan0", interfaces["status"]["attached"] == true);
    Ok(stage)
}

fn configure(story: &mut Story, stage: &Stage) -> Result<()> {
    story.step("Who is who: everybody is misconfigured, one is let through, one is blocked");
    let gateway = Family::V4.gateway().to_string();
    stage.ctl(story, &["gateway", "set", "default", "--address", &gateway, "--port", "25"])?;
    for everybody in ["0.0.0.0/0", "::/0"] {
        stage.ctl(story, &["subscriber", "set", everybody, "--class", "misconfigured"])?;
    }
    for family in Family::BOTH {
        stage.ctl(story, &["subscriber", "set", &family.bypass().to_string(), "--class", "bypass"])?;
        stage.ctl(story, &["subscriber", "set", &family.blocked().to_string(), "--class", "blocked"])?;
    }
    stage.ctl(story, &["subscriber", "list"])?;
    stage.ctl(story, &["class", "list"])
}

fn redirected(story: &mut Story, stage: &Stage) -> Result<()> {
    for family in Family::BOTH {
        let (client, server) = (family.redirected(), family.server());
        story.step(&format!("Redirect: {client} sends a mail to the server {server}"));
        let message = message("redirected", family);
        let (internet_before, gateway_before) = stage.arrived()?;
        let swaks = send(story, stage, client, server, &message)?;
        story.check("the client delivered its mail", swaks.status.success());
        story.check("it was the relay that answered", greeting(&swaks).contains("relay.example.net"));

        let (internet, gateway) = stage.arrived()?;
        let new: Vec<_> =
            gateway.iter().filter(|mail| gateway_before.iter().all(|old| old.data != mail.data)).collect();
        story.check("one mail more is at the gateway", gateway.len() == gateway_before.len() + 1 && new.len() == 1);
        if let [mail] = new.as_slice() {
            let received = split_received(&mail.data);
            let (received, rest) = received.map_or((String::new(), &mail.data[..]), |(received, rest)| {
                (String::from_utf8_lossy(received).into_owned(), rest)
            });
            story.tell("   The relay put this before it, and changed nothing else:");
            story.indented(&received);
            story.check("byte for byte what the client sent", rest == message.as_bytes());
            story.check("from and to the same addresses", mail.from == FROM && mail.to == [TO]);
            story.check(format!("its Received names the subscriber {client}"), received.contains(&client.to_string()));
        }
        story.check("nothing reached the Internet's server", internet.len() == internet_before.len());
        stage.ctl(story, &["flow", "list", "--client", &client.to_string()])?;
    }
    Ok(())
}

fn let_through(story: &mut Story, stage: &Stage) -> Result<()> {
    for family in Family::BOTH {
        let (client, server) = (family.bypass(), family.server());
        story.step(&format!("Pass: {client} sends a mail to the server {server}"));
        let message = message("let through", family);
        let (internet_before, gateway_before) = stage.arrived()?;
        let swaks = send(story, stage, client, server, &message)?;
        story.check("the client delivered its mail", swaks.status.success());
        story.check("it was the Internet's server that answered", greeting(&swaks).contains("internet.example"));

        let (internet, gateway) = stage.arrived()?;
        let new: Vec<_> =
            internet.iter().filter(|mail| internet_before.iter().all(|old| old.data != mail.data)).collect();
        story.check("one mail more is at that server", internet.len() == internet_before.len() + 1 && new.len() == 1);
        if let [mail] = new.as_slice() {
            story.check("byte for byte what the client sent", mail.data == message.as_bytes());
            story.check(format!("the server was talking to {client} itself"), mail.peer == client);
        }
        story.check("nothing reached the gateway", gateway.len() == gateway_before.len());
    }
    Ok(())
}

fn blocked(story: &mut Story, stage: &Stage) -> Result<()> {
    for family in Family::BOTH {
        let (client, server) = (family.blocked(), family.server());
        story.step(&format!("Block: {client} sends a mail to the server {server}"));
        let (internet_before, gateway_before) = stage.arrived()?;
        let swaks = send(story, stage, client, server, &message("blocked", family))?;
        // Code 2 of swaks(1): no connection.
        story.check("the client got no connection", swaks.code() == Some(2));
        let (internet, gateway) = stage.arrived()?;
        story.check("nothing reached the Internet's server", internet.len() == internet_before.len());
        story.check("nothing reached the gateway", gateway.len() == gateway_before.len());
    }
    Ok(())
}

fn stop(story: &mut Story, stage: &mut Stage) -> Result<()> {
    story.step("SIGTERM: redirectd takes its programs off the interface and ends");
    let status = stage.product.stop()?;
    story.check("it ended with exit code 0", status.code() == Some(0));
    let family = Family::V4;
    let (internet_before, gateway_before) = stage.arrived()?;
    let swaks = send(story, stage, family.redirected(), family.server(), &message("without redirectd", family))?;
    story.check(
        "without it the same client reaches the Internet's server",
        greeting(&swaks).contains("internet.example"),
    );
    let (internet, gateway) = stage.arrived()?;
    story.check(
        "its mail is there",
        internet.len() == internet_before.len() + 1 && gateway.len() == gateway_before.len(),
    );
    Ok(())
}

fn leave(story: &mut Story, stage: &Stage) -> Result<()> {
    story.step("The lab stays up");
    stage.lab.keep()?;
    let (client, router) = (stage.lab.client.name(), stage.lab.router.name());
    let mut text = String::new();
    writeln!(text, "a shell at the subscribers:  ip netns exec {client} bash")?;
    writeln!(text, "a shell in the router:       ip netns exec {router} bash")?;
    writeln!(
        text,
        "another mail:                ip netns exec {client} swaks --server {server} \\",
        server = Family::V4.server()
    )?;
    writeln!(text, "                               --local-interface {} --to {TO}", Family::V4.redirected())?;
    let ctl = redirect_tests::binary("redirect-ctl")?;
    writeln!(
        text,
        "the router's state:          {} --host unix://{} status",
        ctl.display(),
        stage.product.socket().display()
    )?;
    writeln!(text, "logs and mails:              {}", stage.lab.folder().display())?;
    write!(text, "remove it:                   cargo xtask demo --remove")?;
    story.indented(&text);
    Ok(())
}

/// A mail with what transport likes to damage: dots at the start of lines, a long line, bytes beyond ASCII, space at the end.
fn message(what: &str, family: Family) -> String {
    format!(
        "From: <{FROM}>\nTo: <{TO}>\nSubject: {what} over {family:?}\nMessage-ID: <{}.{family:?}@hotel.example>\n\n\
         Grüße aus Zimmer 25.\n.\n..\n.dot\n \n\n{}\ntrailing space \nend\n",
        what.replace(' ', "-"),
        "long ".repeat(190)
    )
}

/// Sends a mail with swaks and shows the part of the conversation that tells who answered.
fn send(story: &Story, stage: &Stage, client: IpAddr, server: IpAddr, message: &str) -> Result<Finished> {
    let file = stage.lab.folder().join("message.txt");
    // swaks ends the data with a line break of its own.
    let data = message.strip_suffix('\n').context("a message ends with a line break")?;
    fs::write(&file, data).with_context(|| format!("write {}", file.display()))?;
    let mut swaks = Command::new("swaks");
    swaks.args([
        "--server",
        &if server.is_ipv6() { format!("[{server}]") } else { server.to_string() },
        "--port",
        "25",
    ]);
    swaks.args(["--local-interface", &client.to_string(), "--timeout", CONNECT_TIMEOUT_S]);
    swaks
        .args(["--ehlo", "laptop.hotel.example", "--from", FROM, "--to", TO, "--data"])
        .arg(format!("@{}", file.display()));
    story.tell(&format!(
        "   $ swaks --server {server} --local-interface {client} --from {FROM} --to {TO} --data @message.txt"
    ));
    let finished = stage.lab.client.run(&mut swaks, CLIENT)?;
    ensure!(finished.code() != Some(1), "swaks cannot run: {}", finished.stderr.trim());
    // The greeting and the reply to the message say it all.
    let telling = ["===", "***", "<-  220", "<-  250 2.0.0", "<** "];
    let lines = finished.stdout.lines().chain(finished.stderr.lines());
    for line in lines.filter(|line| telling.iter().any(|start| line.starts_with(start))) {
        story.indented(line);
    }
    Ok(finished)
}

fn greeting(swaks: &Finished) -> &str {
    swaks.stdout.lines().find_map(|line| line.strip_prefix("<-  220 ")).unwrap_or_default()
}
