//! A million subscribers: into store and kernel from a file, out again, and one of them changed, beside a set of nftables with intervals and a
//! set of ipset. Each of the three fills its kernel in a namespace of its own; only ours writes to a disk as well.

use std::{
    fmt::Write as _,
    fs,
    io::Read as _,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use redirect_tests::{Lab, Product, binary, configuration, with_dataplane};

use crate::{
    options::Options,
    report::{Report, Row, Unit},
    rest::Connection,
};

pub(crate) const COUNT: u32 = 1_000_000;
const TURNS: usize = 3;
/// Changes of one subscriber within a turn; the median counts.
const CHANGES: usize = 20;
const LIMIT: Duration = Duration::from_mins(2);

/// What one of them took.
#[derive(Clone, Copy)]
struct Sample {
    /// Until the kernel holds a million, in seconds.
    import_s: f64,
    /// The most that the process held meanwhile, in MiB.
    memory_mib: f64,
    export_s: f64,
    /// Until the kernel holds the change of one, in milliseconds.
    change_ms: f64,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let turns = if options.quick { 1 } else { TURNS };
    let (mut bare, mut full, mut nft_set, mut ip_set) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for turn in 0..turns {
        eprintln!("turn {} of {turns}", turn + 1);
        bare.push(ours(Record::Bare)?);
        nft_set.push(nft()?);
        full.push(ours(Record::Full)?);
        ip_set.push(ipset()?);
    }
    let mut rows = Vec::new();
    for (peer, theirs) in [("nft, set with intervals", &nft_set), ("ipset, hash:ip", &ip_set)] {
        let name = |row: &str| format!("{row}_1m_beside_{}", peer.split(',').next().unwrap_or(peer));
        let pairs = |of: fn(&Sample) -> f64, ours: &[Sample]| -> Vec<_> {
            ours.iter().zip(theirs).map(|(ours, theirs)| (of(ours), of(theirs))).collect()
        };
        let mut row = |title: &str, unit, of: fn(&Sample) -> f64, ours: &[Sample]| {
            rows.push(Row::new(&name(title), unit, peer, &pairs(of, ours)));
        };
        row("import", Unit::SECONDS, |sample| sample.import_s, &bare);
        row("import_with_session_user_mac", Unit::SECONDS, |sample| sample.import_s, &full);
        row("memory", Unit::MEBIBYTES, |sample| sample.memory_mib, &full);
        row("export", Unit::SECONDS, |sample| sample.export_s, &full);
        row("change_of_one", Unit::MILLISECONDS, |sample| sample.change_ms, &full);
    }
    Ok(Report { suite: "subscribers", rows: options.retain(rows) })
}

/// Of the subscriber with this number.
pub(crate) fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 0, 0)) + number)
}

fn addresses() -> impl Iterator<Item = Ipv4Addr> {
    (0..COUNT).map(address)
}

#[derive(Clone, Copy)]
pub(crate) enum Record {
    /// Address and class, as in the peers' sets.
    Bare,
    /// With all that RADIUS tells.
    Full,
}

/// A daemon with the million in its kernel, and how many seconds the import took.
pub(crate) fn filled(lab: &Lab, record: Record) -> Result<(Product, f64)> {
    // All of the bench is one caller.
    let text = configuration(lab.folder(), "tc").replacen("[store]", "[access]\nrequests_per_second = 0\n\n[store]", 1);
    let text = with_dataplane(&text, "subscribers_max = 1048576\nflows_max = 1024");
    let product = Product::start(lab, &text)?;
    let mut lines = String::new();
    for (number, address) in addresses().enumerate() {
        match record {
            Record::Bare => writeln!(lines, r#"{{"prefix":"{address}","class":"bypass","source":"radius"}}"#)?,
            Record::Full => writeln!(
                lines,
                r#"{{"prefix":"{address}","class":"bypass","source":"radius","session":"8A{number:08X}","user":"user-{number}@example.net","mac":"02:00:{:02x}:{:02x}:{:02x}:01","expires":"2099-01-01T00:00:00Z"}}"#,
                number >> 16 & 0xff,
                number >> 8 & 0xff,
                number & 0xff
            )?,
        }
    }
    let file = write(lab, "subscribers.ndjson", &lines)?;
    let start = Instant::now();
    product.ctl_within(lab, &["subscriber", "import", "--mode", "replace", "--yes", &file], LIMIT)?;
    let import_s = start.elapsed().as_secs_f64();
    ensure_filled(lab, &product)?;
    Ok((product, import_s))
}

/// Whether all of the million is in the kernel.
pub(crate) fn ensure_filled(lab: &Lab, product: &Product) -> Result<()> {
    let status = product.json(lab, &["status"])?;
    ensure!(
        status["applied"] == status["revision"] && status["subscribers"] == COUNT,
        "not all of it is there: {status}"
    );
    Ok(())
}

fn ours(record: Record) -> Result<Sample> {
    let lab = Lab::new()?;
    let (product, import_s) = filled(&lab, record)?;

    let start = Instant::now();
    let lines = export(&lab, &product)?;
    let export_s = start.elapsed().as_secs_f64();
    ensure!(lines == COUNT as usize, "{lines} lines");

    let mut connection = Connection::open(product.socket())?;
    let mut changes = Vec::new();
    for change in 0..CHANGES {
        let class = if change % 2 == 0 { "blocked" } else { "bypass" };
        let start = Instant::now();
        connection.put("10.64.200.7", class)?;
        changes.push(start.elapsed().as_secs_f64() * 1_000.0);
        let explained = product.json(&lab, &["explain", "10.64.200.7", "203.0.113.10"])?;
        ensure!(explained["class"] == class, "the kernel does not hold what was acknowledged: {explained}");
    }
    Ok(Sample { import_s, memory_mib: peak_mib(product.id())?, export_s, change_ms: median(changes) })
}

/// By the tool, whose lines are read and counted.
fn export(lab: &Lab, product: &Product) -> Result<usize> {
    let host = format!("unix://{}", product.socket().display());
    let mut command = Command::new(binary("redirect-ctl")?);
    command.args(["--host", &host, "subscriber", "export"]).stdout(Stdio::piped());
    let mut child = lab.router.enter(|| command.spawn()).context("run redirect-ctl")?;
    let mut output = child.stdout.take().context("no standard output")?;
    let mut buffer = vec![0; 1 << 18];
    let mut lines = 0;
    loop {
        let read = output.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        lines += buffer[..read].split(|byte| *byte == b'\n').count() - 1;
    }
    ensure!(child.wait()?.success(), "redirect-ctl subscriber export failed");
    Ok(lines)
}

/// A set with intervals, since subscribers are prefixes.
fn nft() -> Result<Sample> {
    let lab = Lab::new()?;
    let mut rules = "table ip measured {\nset subscribers {\ntype ipv4_addr\nflags interval\nelements = {\n".to_owned();
    for address in addresses() {
        writeln!(rules, "{address},")?;
    }
    rules += "}\n}\n}\n";
    let file = write(&lab, "rules.nft", &rules)?;
    let import = timed(&lab, &["nft", "-f", &file])?;
    let export = timed(&lab, &["nft", "list", "set", "ip", "measured", "subscribers"])?;
    let mut changes = Vec::new();
    for change in 0..3 {
        let verb = if change % 2 == 0 { "delete" } else { "add" };
        let done = timed(&lab, &["nft", verb, "element", "ip", "measured", "subscribers", "{ 10.64.200.7 }"])?;
        changes.push(done.seconds * 1_000.0);
    }
    Ok(Sample {
        import_s: import.seconds,
        memory_mib: import.peak_mib,
        export_s: export.seconds,
        change_ms: median(changes),
    })
}

fn ipset() -> Result<Sample> {
    let lab = Lab::new()?;
    let mut commands = "create subscribers hash:ip hashsize 524288 maxelem 1048576\n".to_owned();
    for address in addresses() {
        writeln!(commands, "add subscribers {address}")?;
    }
    let file = write(&lab, "subscribers.ipset", &commands)?;
    let import = timed(&lab, &["ipset", "restore", "-file", &file])?;
    let export = timed(&lab, &["ipset", "save", "subscribers"])?;
    let mut changes = Vec::new();
    for change in 0..CHANGES {
        let verb = if change % 2 == 0 { "del" } else { "add" };
        changes.push(timed(&lab, &["ipset", verb, "subscribers", "10.64.200.7"])?.seconds * 1_000.0);
    }
    Ok(Sample {
        import_s: import.seconds,
        memory_mib: import.peak_mib,
        export_s: export.seconds,
        change_ms: median(changes),
    })
}

struct Timed {
    seconds: f64,
    peak_mib: f64,
}

/// Runs a program to its end; `time` tells what it held.
fn timed(lab: &Lab, words: &[&str]) -> Result<Timed> {
    let mut command = Command::new("sh");
    // The last line on standard error is of the shell's own child: VmHWM while it waits to be collected is gone, so the peak is sampled.
    command.args(["-c", r#""$@" >/dev/null & child=$!; peak=0
        while now=$(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\) kB/\1/p' /proc/$child/status 2>/dev/null) && [ -n "$now" ]; do peak=$now; sleep 0.02; done
        wait $child || exit 1; echo "$peak""#, "sh"]);
    command.args(words);
    let start = Instant::now();
    let finished = lab.router.run(&mut command, LIMIT)?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(finished.status.success(), "{}: {}", words.join(" "), finished.stderr.trim());
    let peak_kb: f64 = finished.stdout.trim().parse().context("read the peak of memory")?;
    Ok(Timed { seconds, peak_mib: peak_kb / 1_024.0 })
}

fn write(lab: &Lab, name: &str, text: &str) -> Result<String> {
    let path: PathBuf = lab.folder().join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path.display().to_string())
}

fn peak_mib(process: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1_024.0)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
