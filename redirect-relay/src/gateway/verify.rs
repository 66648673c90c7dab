//! A gateway tried before it is saved: every stage of a connection, with its time and what it showed, up to MAIL and RSET.
//!
//! Nothing is sent to anybody: the transaction has no recipient. The egress addresses of a gateway that is not saved yet are
//! none of the fleet's, so the first one that fits is used.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    gateway::{
        Encryption, Gateway, OpenError, OpenReason, Pin, Stage,
        dial::{Dial, lost, quit},
        fleet::Fleet,
        guard,
        opening::{Purpose, patience},
        tls::{Tls, fingerprint},
    },
    limits::CERTIFICATE_NAMES_SHOWN,
    reply::ReplyReader,
    stream::Stream,
    x509::{self, Facts},
};

/// One stage of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StageReport {
    pub stage: Stage,
    pub ok: bool,
    pub duration_ms: u64,
    /// What it showed, or why it failed.
    pub text: String,
    /// Of TLS: what the gateway showed, its own certificate first, whether that was believed or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateReport>,
}

/// A certificate as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct CertificateReport {
    /// As `CN=mx.example, O=Example`.
    pub subject: String,
    /// The DNS names and IP addresses that it is for.
    pub names: Vec<String>,
    pub issuer: String,
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub not_before: Timestamp,
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub not_after: Timestamp,
    pub sha256: Pin,
}

impl CertificateReport {
    /// `None`: nobody can read it.
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let Facts { names, subject, issuer, not_before, not_after } = x509::facts(certificate)?;
        let mut names = names;
        names.truncate(CERTIFICATE_NAMES_SHOWN);
        Some(Self { subject, names, issuer, not_before, not_after, sha256: fingerprint(certificate) })
    }
}

/// What came of a verification: the stages in their order. An address that cannot be reached is a stage that failed, and the
/// next address is tried; so a failed stage may be followed by others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VerifyReport {
    /// A message could be sent through the gateway.
    pub ok: bool,
    pub stages: Vec<StageReport>,
}

impl VerifyReport {
    fn note(&mut self, stage: Stage, ok: bool, duration: Duration, text: String) {
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.stages.push(StageReport { stage, ok, duration_ms, text, certificates: Vec::new() });
    }

    fn failed(&mut self, error: &OpenError, duration: Duration) {
        self.note(error.stage, false, duration, error.reason.to_string());
    }
}

impl Fleet {
    pub(crate) async fn verify(&self, gateway: &Gateway, listeners: &[SocketAddr]) -> VerifyReport {
        let mut report = VerifyReport { ok: false, stages: Vec::new() };
        for fault in gateway.check() {
            report.note(Stage::Choice, false, Duration::ZERO, fault.to_string());
        }
        if !report.stages.is_empty() {
            return report;
        }
        let begun = Instant::now();
        let until = begun + self.settings().timeouts.open;
        let addresses = match self.addresses(gateway).await {
            Ok(addresses) => addresses,
            Err(error) => {
                report.failed(&error, begun.elapsed());
                return report;
            }
        };
        let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        report.note(Stage::Dns, true, begun.elapsed(), shown.join(", "));
        let gateway = Arc::new(gateway.clone());
        for address in addresses {
            if let Some(stream) = self.verify_address(&gateway, address, listeners, until, &mut report).await {
                report.ok = true;
                let _ = timeout(self.settings().timeouts.farewell, quit(stream)).await;
                break;
            }
        }
        report
    }

    async fn verify_address(
        &self,
        gateway: &Arc<Gateway>,
        address: SocketAddr,
        listeners: &[SocketAddr],
        until: Instant,
        report: &mut VerifyReport,
    ) -> Option<Stream> {
        let begun = Instant::now();
        let tcp = |reason| OpenError { stage: Stage::Tcp, reason };
        if let Some(reason) = guard::refuse(address, listeners, gateway.allow_local) {
            report.failed(&tcp(reason), begun.elapsed());
            return None;
        }
        let tls = match gateway.encryption {
            Encryption::None => None,
            _ => match Tls::recording(gateway) {
                Ok(tls) => Some(tls),
                Err(error) => {
                    report.note(Stage::Tls, false, begun.elapsed(), error.to_string());
                    return None;
                }
            },
        };
        let listed = &gateway.egress.addresses;
        let egress = listed.iter().find(|egress| egress.address.is_ipv4() == address.is_ipv4());
        if egress.is_none() && !listed.is_empty() {
            report.failed(&tcp(OpenReason::NoEgress), begun.elapsed());
            return None;
        }
        let dial = Dial {
            gateway,
            encryption: gateway.encryption,
            tls: tls.as_ref().map(|(tls, _)| tls),
            address,
            egress,
            hostname: &self.settings().hostname,
            purpose: Purpose::Verify,
            timeouts: &self.settings().timeouts,
            until,
        };
        let mut last = Instant::now();
        let mut note = |stage, duration, text| {
            last = Instant::now();
            report.note(stage, true, duration, text);
        };
        let opened = dial.open(&mut note).await;
        if let Err(error) = &opened {
            report.failed(error, last.elapsed());
        }
        let shown = tls.map_or_else(Vec::new, |(_, chain)| chain.take());
        if !shown.is_empty()
            && let Some(stage) = report.stages.iter_mut().rfind(|stage| stage.stage == Stage::Tls)
        {
            stage.certificates = shown.iter().filter_map(CertificateReport::of).collect();
        }
        let (mut stream, _) = opened.ok()?;
        for (stage, line) in [(Stage::Mail, "MAIL FROM:<>\r\n"), (Stage::Rset, "RSET\r\n")] {
            let begun = Instant::now();
            let until = until.min(begun + patience(stage, &self.settings().timeouts));
            let answer = timeout_at(until, ask(&mut stream, line)).await.unwrap_or(Err(OpenReason::Timeout));
            match answer {
                Ok(text) => report.note(stage, true, begun.elapsed(), text),
                Err(reason) => {
                    report.failed(&OpenError { stage, reason }, begun.elapsed());
                    return None;
                }
            }
        }
        Some(stream)
    }
}

/// One command and its positive reply's text.
async fn ask(stream: &mut Stream, line: &str) -> Result<String, OpenReason> {
    stream.write_all(line.as_bytes()).await.map_err(|error| lost(&error))?;
    stream.flush().await.map_err(|error| lost(&error))?;
    let mut reader = ReplyReader::default();
    let mut scratch = [0; 512];
    loop {
        let octets = match stream.read(&mut scratch).await {
            Ok(0) => return Err(OpenReason::Closed),
            Ok(octets) => octets,
            Err(error) => return Err(lost(&error)),
        };
        let mut piece = &scratch[..octets];
        let Some(reply) = reader.read(&mut piece, |_| {})? else { continue };
        let text = reply.text().to_owned();
        return match reply.code {
            _ if !piece.is_empty() => Err(OpenReason::OutOfTurn),
            200..=299 => Ok(text),
            code @ 400..=599 => Err(OpenReason::Refused { code, text }),
            code => Err(OpenReason::Unexpected(code)),
        };
    }
}
