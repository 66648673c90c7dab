//! `cargo xtask test kernels`: the product on Debian's kernels, each booted in a virtual machine, and on the kernel that runs here.
//!
//! What is looked at is in `tests/src/bin/guest`, which is the first process of the virtual machine; it reports one fact a line.

pub(crate) mod archive;
pub(crate) mod initramfs;
pub(crate) mod machine;
mod report;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use self::{archive::Image, initramfs::Initramfs, machine::Machine, report::Report};
use crate::{
    exec::{self, Root},
    setup,
};

/// The series, and the release of Debian that has it. Oldest first.
const KERNELS: [(&str, &str); 3] = [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "bookworm-backports")];

/// The kernel that runs here.
const HOST: &str = "host";

/// What a boot may take, and takes half of on two CPUs that much else keeps busy.
const LIMIT: Duration = Duration::from_hours(1);

/// What the lab runs, besides the product.
const PROGRAMS: [&str; 5] = ["sh", "sleep", "rm", "ip", "ethtool"];

/// Programs of this workspace.
const PRODUCT: [&str; 2] = ["redirectd", "redirect-ctl"];
const GUEST: &str = "guest";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this kernel; may be repeated
    #[arg(long = "kernel", value_name = "SERIES", value_parser = clap::builder::PossibleValuesParser::new(names()))]
    kernels: Vec<String>,
}

fn names() -> impl Iterator<Item = &'static str> {
    KERNELS.into_iter().map(|(series, _)| series).chain([HOST])
}

impl Args {
    fn wants(&self, kernel: &str) -> bool {
        self.kernels.is_empty() || self.kernels.iter().any(|wanted| wanted == kernel)
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(std::env::consts::ARCH == "x86_64", "the kernels are for x86-64, and so has to be what is built here");
    let host =
        args.wants(HOST).then(|| Root::require("the kernel of this machine (it loads eBPF programs)")).transpose()?;
    setup::ensure()?;
    setup::ensure_tools(&archive::TOOLS)?;
    build()?;

    let folder = exec::target_dir()?.join("kernels");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let mut reports = Vec::new();
    for (series, suite) in KERNELS.into_iter().filter(|(series, _)| args.wants(series)) {
        let image = archive::image(series, suite, &folder.join(series))?;
        reports.push(boot(&image, &folder.join(format!("{series}.console")))?);
    }
    if let Some(root) = host {
        exec::say("on the kernel of this machine");
        reports.push(here(root)?);
    }
    report::print_instructions(&reports);
    let failed: Vec<_> = reports.iter().filter(|report| !report.is_good()).map(Report::kernel).collect();
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("failed on {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn build() -> Result<()> {
    exec::say("building the workspace");
    let mut build = exec::cargo();
    build.args(["build", "--quiet", "-p", "redirect-ctl", "-p", "redirect-tests"]);
    build.args(PRODUCT.iter().chain([&GUEST]).flat_map(|name| ["--bin", name]));
    let status = build.status()?;
    ensure!(status.success(), "{} failed", exec::spelled(&build));
    Ok(())
}

fn boot(image: &Image, console: &Path) -> Result<Report> {
    let machine = Machine::find()?;
    let initramfs = console.with_extension("cpio");
    root_file_system(image)?.write(&initramfs)?;
    exec::say(format!("booting Linux {}", image.release));
    let mut report = Report::default();
    let ended = machine.run(image, &initramfs, console, LIMIT, |line| report.line(line));
    fs::remove_file(&initramfs)?;
    if let Err(error) = ended {
        report.failed(&format!("{error:#}"));
    }
    if !report.is_good() {
        eprintln!("the kernel's messages are in {}; the last of them:", console.display());
        let messages = fs::read(console).unwrap_or_default();
        let messages = String::from_utf8_lossy(&messages);
        let messages: Vec<_> = messages.lines().collect();
        messages[messages.len().saturating_sub(30)..].iter().for_each(|line| eprintln!("    {line}"));
    }
    Ok(report)
}

/// The guest as `/init`, the product beside it, and what both need.
fn root_file_system(image: &Image) -> Result<Initramfs> {
    let built = exec::target_dir()?.join("debug");
    let stripped = exec::target_dir()?.join("kernels/stripped");
    fs::create_dir_all(&stripped)?;
    let mut initramfs = Initramfs::new();
    for folder in ["proc", "sys", "run", "tmp"] {
        initramfs.folder(folder);
    }
    initramfs.program("init", &initramfs::stripped(&built.join(GUEST), &stripped)?)?;
    for name in PRODUCT {
        initramfs.program(name, &initramfs::stripped(&built.join(name), &stripped)?)?;
    }
    for name in PROGRAMS {
        let program = exec::find(name).with_context(|| format!("there is no program {name}"))?;
        initramfs.program(PathBuf::from("bin").join(name), &program)?;
    }
    initramfs.modules(&image.modules)?;
    Ok(initramfs)
}

fn here(root: Root) -> Result<Report> {
    let mut command: Command = root.command(exec::target_dir()?.join("debug").join(GUEST));
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("run the checks")?;
    let mut report = Report::default();
    String::from_utf8_lossy(&output.stdout).lines().for_each(|line| report.line(line));
    if !output.status.success() {
        report.failed(&format!("the checks ended with {}", output.status));
    }
    Ok(report)
}
