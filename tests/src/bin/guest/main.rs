//! The product on one kernel: every program loaded, and subscribers redirected, let through and rejected on every kind of link.
//!
//! `cargo xtask test kernels` boots it as the first process of a virtual machine, or runs it on the kernel at hand. It reports one fact a line, as
//! JSON: `xtask/src/kernels/report.rs` has the form.

mod boot;
mod links;
mod pppoe;
mod stage;

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use aya::util::KernelVersion;
use redirect_common::maps::names;
use redirect_ctl::dataplane::{
    Mode,
    kernel::{Capacities, load},
};
use serde_json::{Value, json};

use self::stage::Stage;

fn main() -> ExitCode {
    if boot::is_first_process() {
        // An error ends the first process, and with it the machine: the kernel's console has the reason.
        let port = boot::prepare().expect("the machine has what it was built with");
        look(Report { out: Box::new(port), has_every_link: true });
        boot::switch_off();
    }
    look(Report { out: Box::new(io::stdout()), has_every_link: false });
    ExitCode::SUCCESS
}

/// Where facts go.
struct Report {
    out: Box<dyn Write>,
    /// Whether this kernel must have every kind of link.
    has_every_link: bool,
}

impl Report {
    fn say(&mut self, fact: &Value) {
        writeln!(self.out, "{fact}").and_then(|()| self.out.flush()).expect("whoever started this reads its facts");
    }

    fn check(&mut self, what: impl fmt::Display, outcome: Result<()>) {
        let (outcome, detail) = match outcome {
            Ok(()) => ("ok", String::new()),
            Err(error) => ("failed", format!("{error:#}")),
        };
        self.say(&json!({"check": what.to_string(), "outcome": outcome, "detail": detail}));
    }

    /// Something that this kernel cannot do and need not.
    fn absent(&mut self, what: impl fmt::Display, why: &str) {
        self.say(&json!({"check": what.to_string(), "outcome": "absent", "detail": why}));
    }
}

/// What the version of a kernel promises.
struct Kernel {
    /// Frames in several buffers, which the XDP program takes.
    xdp: bool,
    tc: Mode,
    /// The number of verified instructions in what the kernel says about a program.
    counts: bool,
}

impl Kernel {
    fn of(version: KernelVersion) -> Self {
        Self {
            xdp: version >= KernelVersion::new(5, 18, 0),
            tc: if version >= KernelVersion::new(6, 6, 0) { Mode::Tcx } else { Mode::Clsact },
            counts: version >= KernelVersion::new(5, 16, 0),
        }
    }
}

fn look(mut report: Report) {
    let outcome = look_at(&mut report);
    report.check("looked at everything", outcome);
    report.say(&json!({"end": true}));
}

fn look_at(report: &mut Report) -> Result<()> {
    let kernel = Kernel::of(KernelVersion::current()?);
    report.say(&json!({"kernel": nix::sys::utsname::uname()?.release().to_string_lossy()}));
    programs(report, &kernel)?;
    for stage in &Stage::ALL {
        stage.play(report, &kernel);
    }
    Ok(())
}

fn programs(report: &mut Report, kernel: &Kernel) -> Result<()> {
    let object = load(Capacities::default())?;
    for (name, program) in object.programs() {
        let what = format!("{name} is loaded");
        if name == names::XDP_INGRESS && !kernel.xdp {
            report.absent(what, "frames in several buffers need Linux 5.18");
            continue;
        }
        let counted = program.info().map(|info| info.verified_instruction_count());
        report.say(&json!({"program": name, "instructions": counted.as_ref().ok().copied().flatten()}));
        let outcome = counted.map_err(Into::into).and_then(|count| {
            ensure!(count.is_some() == kernel.counts, "{count:?} verified instructions");
            Ok(())
        });
        report.check(what, outcome);
    }
    Ok(())
}
