//! What was said about a kernel: one JSON object a line, of four kinds.
//!
//! ```json
//! {"kernel":"6.1.0-50-amd64"}
//! {"program":"redirect_in","instructions":57012}
//! {"check":"clsact, lan0: redirect in a VLAN","outcome":"ok","detail":""}
//! {"end":true}
//! ```
//! `instructions` is null where the kernel does not say (below 5.16) or did not load the program; `outcome` is `ok`, `absent` (this kernel
//! cannot, and need not) or `failed`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

#[derive(Debug, Default)]
pub(crate) struct Report {
    kernel: String,
    /// Of each program; none where the kernel does not tell.
    instructions: BTreeMap<String, Option<u64>>,
    held: usize,
    failed: usize,
    ended: bool,
}

impl Report {
    /// Takes a line in, and tells it to whoever watches.
    pub(crate) fn line(&mut self, line: &str) {
        let Ok(fact) = serde_json::from_str::<Value>(line) else {
            return self.failed(&format!("no fact: {line}"));
        };
        let text = |key: &str| fact[key].as_str().unwrap_or_default().to_owned();
        if fact["kernel"].is_string() {
            self.kernel = text("kernel");
        } else if fact["program"].is_string() {
            self.instructions.insert(text("program"), fact["instructions"].as_u64());
        } else if fact["check"].is_string() {
            match text("outcome").as_str() {
                "ok" => self.held += 1,
                "absent" => {}
                _ => self.failed += 1,
            }
            let detail = text("detail");
            let detail = if detail.is_empty() { detail } else { format!(" ({detail})") };
            eprintln!("    {:6} {}{detail}", text("outcome"), text("check"));
        } else {
            self.ended = fact["end"] == true;
        }
    }

    /// Something went wrong outside of the guest.
    pub(crate) fn failed(&mut self, what: &str) {
        self.failed += 1;
        eprintln!("    failed {what}");
    }

    pub(crate) fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Whether everything was looked at and held.
    pub(crate) fn is_good(&self) -> bool {
        self.ended && self.failed == 0 && self.held > 0
    }
}

/// The programs of every kernel, with the instructions that its verifier walked.
pub(crate) fn print_instructions(reports: &[Report]) {
    print!("{}", table(reports));
}

fn table(reports: &[Report]) -> String {
    let programs: BTreeSet<_> = reports.iter().flat_map(|report| report.instructions.keys()).collect();
    let mut rows = vec![vec!["verified instructions".to_owned()]];
    rows[0].extend(reports.iter().map(|report| report.kernel.clone()));
    for program in programs {
        let count = |report: &Report| match report.instructions.get(program) {
            Some(Some(count)) => count.to_string(),
            Some(None) => "loaded".to_owned(),
            None => "-".to_owned(),
        };
        rows.push([vec![program.clone()], reports.iter().map(count).collect()].concat());
    }
    let widths: Vec<_> =
        (0..=reports.len()).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let (name, counts) = row.split_first().expect("a row has a name");
        let counts = counts.iter().zip(&widths[1..]).map(|(count, width)| format!("  {count:>width$}"));
        format!("{name:<width$}{}\n", counts.collect::<String>(), width = widths[0])
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::{Report, table};

    fn report(lines: &[&str]) -> Report {
        let mut report = Report::default();
        for line in lines {
            report.line(line);
        }
        report
    }

    #[test]
    fn only_a_report_to_the_end_without_a_failure_is_good() {
        let ok = r#"{"check":"a","outcome":"ok","detail":""}"#;
        let absent = r#"{"check":"b","outcome":"absent","detail":"too old"}"#;
        let end = r#"{"end":true}"#;
        assert!(report(&[ok, absent, end]).is_good());
        for bad in [
            &[ok][..],
            &[absent, end],
            &[ok, r#"{"check":"c","outcome":"failed","detail":""}"#, end],
            &[ok, r#"{"check":"c","outcome":"other","detail":""}"#, end],
            &[ok, "Kernel panic", end],
            &[],
        ] {
            assert!(!report(bad).is_good(), "{bad:?}");
        }
    }

    #[test]
    fn programs_by_kernel() {
        let old = report(&[r#"{"kernel":"5.10.0"}"#, r#"{"program":"tc","instructions":null}"#]);
        let new = report(&[
            r#"{"kernel":"6.1.0"}"#,
            r#"{"program":"xdp","instructions":39019}"#,
            r#"{"program":"tc","instructions":7062}"#,
        ]);
        let expected = "verified instructions  5.10.0  6.1.0\n\
                        tc                     loaded   7062\n\
                        xdp                         -  39019\n";
        assert_eq!(table(&[old, new]), expected);
    }
}
