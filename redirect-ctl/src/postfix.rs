//! Whether the settings of a Postfix that takes redirected mail let a subscriber end a message where other servers do not ("SMTP smuggling",
//! CVE-2023-51764). Pure; what it judges are answers of postconf(1).
//!
//! Behind a redirect every subscriber talks to Postfix with an address of its own network. That is what `$mynetworks` means, and what
//! Postfix's defence excludes as it is delivered.

use std::collections::BTreeMap;

use serde::Serialize;

/// How much a setting matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Weakens the defence of others.
    Warning,
    /// Accepts smuggled ends of data.
    Error,
}

impl Level {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What one setting means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// `main.cf`, or the service of `master.cf` that has a setting of its own, such as `smtp/inet`.
    pub place: String,
    pub parameter: &'static str,
    /// Null where this Postfix has no such parameter.
    pub value: Option<String>,
    pub text: String,
    /// Null where nothing is to be done.
    pub remedy: Option<String>,
}

/// Parameters and their values, as `postconf -x` prints them: `name = value`, with every default.
type Parameters = BTreeMap<String, String>;

/// Judges `main`, the output of `postconf -x`, and for each service with settings of its own, of `master`, the output of `postconf -Px`, the same
/// again. The findings of one place follow each other.
#[must_use]
pub fn check(main: &str, master: &str) -> Vec<Finding> {
    let main: Parameters = main.lines().filter_map(setting).collect();
    let mut services: BTreeMap<String, Parameters> = BTreeMap::new();
    for (name, value) in master.lines().filter_map(setting) {
        // service/type/parameter
        let Some((service, parameter)) = name.rsplit_once('/') else { continue };
        if JUDGED.contains(&parameter) {
            let own = services.entry(service.to_owned()).or_insert_with(|| main.clone());
            own.insert(parameter.to_owned(), value);
        }
    }
    let mut findings = judge("main.cf", &main);
    for (service, parameters) in &services {
        findings.extend(judge(service, parameters));
    }
    findings
}

const FORBID: &str = "smtpd_forbid_bare_newline";
const EXCLUSIONS: &str = "smtpd_forbid_bare_newline_exclusions";
const PIPELINING: &str = "smtpd_forbid_unauth_pipelining";
const DATA_RESTRICTIONS: &str = "smtpd_data_restrictions";
const STRAY: &str = "cleanup_replace_stray_cr_lf";
const JUDGED: [&str; 5] = [FORBID, EXCLUSIONS, PIPELINING, DATA_RESTRICTIONS, STRAY];

fn setting(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once('=')?;
    Some((name.trim().to_owned(), value.trim().to_owned()))
}

fn judge(place: &str, parameters: &Parameters) -> Vec<Finding> {
    let value = |name| parameters.get(name).map(String::as_str);
    let finding = |parameter, level, text: &str, remedy: Option<String>| Finding {
        level,
        place: place.to_owned(),
        parameter,
        value: value(parameter).map(str::to_owned),
        text: text.to_owned(),
        remedy,
    };
    let set = |parameter, to| {
        Some(if place == "main.cf" {
            format!("postconf -e '{parameter} = {to}'")
        } else {
            format!("postconf -P '{place}/{parameter} = {to}'")
        })
    };
    let mut findings = Vec::new();
    let defends = match value(FORBID) {
        Some("yes" | "normalize" | "note" | "reject") => {
            findings.push(finding(FORBID, Level::Ok, "only CRLF.CRLF ends a message", None));
            true
        }
        Some(_) => {
            let text = "LF.LF, LF.CRLF, CRLF.LF and CRLF.CR CRLF end a message too";
            findings.push(finding(FORBID, Level::Error, text, set(FORBID, "normalize")));
            false
        }
        None => {
            let version = value("mail_version").unwrap_or("unknown");
            let text = format!("this Postfix (version {version}) takes LF.LF and its like for the end of a message");
            let remedy = Some("upgrade to 3.5.25, 3.6.15, 3.7.11, 3.8.6, 3.9.0 or later".to_owned());
            findings.push(finding(FORBID, Level::Error, &text, remedy));
            false
        }
    };
    if defends {
        let excluded = words(value(EXCLUSIONS).unwrap_or_default()).any(|network| !is_loopback(network));
        findings.push(if excluded {
            let text = "clients in these networks are not held to it, and subscribers may be among them";
            finding(EXCLUSIONS, Level::Error, text, set(EXCLUSIONS, ""))
        } else {
            finding(EXCLUSIONS, Level::Ok, "no subscriber is excluded", None)
        });
    }
    let rejects_early =
        words(value(DATA_RESTRICTIONS).unwrap_or_default()).any(|word| word == "reject_unauth_pipelining");
    findings.push(if value(PIPELINING) == Some("yes") || rejects_early {
        finding(PIPELINING, Level::Ok, "commands that come too early are refused", None)
    } else {
        let text = "commands that come too early are taken, which smuggling relies on";
        let remedy = match value(PIPELINING) {
            Some(_) => set(PIPELINING, "yes"),
            None => set(DATA_RESTRICTIONS, "reject_unauth_pipelining"),
        };
        finding(PIPELINING, Level::Warning, text, remedy)
    });
    findings.push(match value(STRAY) {
        Some("yes") => finding(STRAY, Level::Ok, "no bare CR or LF is sent on", None),
        Some(_) => finding(
            STRAY,
            Level::Warning,
            "a bare CR or LF in a message is sent on to the next server",
            set(STRAY, "yes"),
        ),
        None => {
            let text = "a bare CR in a message is sent on to the next server; Postfix 3.9 and later can replace it";
            finding(STRAY, Level::Warning, text, Some("upgrade to 3.9 or later".to_owned()))
        }
    });
    findings
}

/// The entries of a list of Postfix's.
fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split([',', ' ', '\t']).filter(|word| !word.is_empty())
}

/// Redirected connections never come from there.
fn is_loopback(network: &str) -> bool {
    network.starts_with("127.") || network == "[::1]/128" || network == "[::1]" || network.starts_with("[::ffff:127.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAFE: &str = "mail_version = 3.9.1\nsmtpd_forbid_bare_newline = normalize\nsmtpd_forbid_bare_newline_exclusions =\n\
        smtpd_forbid_unauth_pipelining = yes\nsmtpd_data_restrictions =\ncleanup_replace_stray_cr_lf = yes\n";

    /// What is not all right, as `level place parameter`.
    fn faults(main: &str, master: &str) -> Vec<String> {
        let findings = check(main, master).into_iter().filter(|finding| finding.level != Level::Ok);
        findings
            .map(|finding| {
                assert!(finding.remedy.is_some(), "{finding:?}");
                format!("{} {} {}", finding.level.name(), finding.place, finding.parameter)
            })
            .collect()
    }

    fn with(parameter: &str, value: &str) -> String {
        let lines = SAFE.lines().map(|line| match line.split_once(" =") {
            Some((name, _)) if name == parameter => format!("{parameter} = {value}\n"),
            _ => format!("{line}\n"),
        });
        lines.collect()
    }

    #[test]
    fn each_setting_by_itself() {
        assert_eq!(faults(SAFE, ""), [""; 0]);
        for (parameter, value, fault) in [
            (FORBID, "no", Some("error")),
            (FORBID, "reject", None),
            (FORBID, "yes", None),
            (FORBID, "note", None),
            // Not a value of Postfix's; it would not start.
            (FORBID, "maybe", Some("error")),
            (EXCLUSIONS, "10.20.0.0/16", Some("error")),
            (EXCLUSIONS, "127.0.0.0/8, [::ffff:127.0.0.0]/104 [::1]/128", None),
            (EXCLUSIONS, "127.0.0.0/8 [::1]/128 [fd00::]/8", Some("error")),
            (EXCLUSIONS, "cidr:/etc/postfix/subscribers", Some("error")),
            (PIPELINING, "no", Some("warning")),
            (STRAY, "no", Some("warning")),
        ] {
            let expected = fault.map(|level| format!("{level} main.cf {parameter}"));
            assert_eq!(
                faults(&with(parameter, value), ""),
                expected.into_iter().collect::<Vec<_>>(),
                "{parameter} {value}"
            );
        }
        let restricted = with(PIPELINING, "no")
            .replace("smtpd_data_restrictions =", "smtpd_data_restrictions = a,reject_unauth_pipelining");
        assert_eq!(faults(&restricted, ""), [""; 0]);
    }

    #[test]
    fn an_old_postfix_has_no_defence() {
        let old = "mail_version = 3.7.9\nmynetworks = 10.0.0.0/8\n";
        let findings = check(old, "");
        assert!(findings[0].text.contains("3.7.9") && findings[0].level == Level::Error);
        assert_eq!(findings.iter().map(|finding| finding.level).max(), Some(Level::Error));
        assert!(findings.iter().all(|finding| finding.value.is_none()));
    }

    #[test]
    fn a_service_may_differ() {
        let master =
            "smtp/inet/smtpd_forbid_bare_newline = no\nsmtp/inet/content_filter = x\nsubmission/inet/syslog_name = y\n";
        assert_eq!(faults(SAFE, master), ["error smtp/inet smtpd_forbid_bare_newline"]);
        let remedy = check(SAFE, master).into_iter().rev().find_map(|finding| finding.remedy);
        assert_eq!(remedy.as_deref(), Some("postconf -P 'smtp/inet/smtpd_forbid_bare_newline = normalize'"));
        // Its own setting is the better one.
        assert_eq!(
            faults(&with(FORBID, "no"), "smtp/inet/smtpd_forbid_bare_newline = reject\n"),
            ["error main.cf smtpd_forbid_bare_newline"]
        );
    }
}
