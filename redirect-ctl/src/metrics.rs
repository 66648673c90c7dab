//! Prometheus metrics, made when they are asked for: the kernel's counters are the source, nothing is counted twice.
//!
//! Labels have few values (class, reason, verdict, interface, relay). A subscriber's address is never one.

pub mod meters;

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use redirect_relay::{Outcome, Pair, Tally, gateway::GatewayState};

use self::meters::METERS;
use crate::{
    api::{
        AppState,
        error::ApiError,
        reason_counts,
        types::{self, InterfaceCount, Memory, ReasonCount, Relay},
    },
    desired::Time,
    health::HealthState,
    limits, log,
    reconcile::task::Observed,
};

pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A counter of the embedded relay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RelayRow {
    pub(crate) name: &'static str,
    help: &'static str,
    pub(crate) value: u64,
}

/// The relay's counters by name; those of sessions that are open go up and down, the others only up.
pub(crate) fn relay_rows(counters: &redirect_relay::Counters) -> impl Iterator<Item = RelayRow> + use<> {
    let row = |name, help, value| RelayRow { name, help, value };
    [
        row("sessions_active", "Sessions open at the moment", counters.sessions_active),
        row("sessions_opened", "Connections taken, including those refused at once", counters.sessions_opened),
        row("sessions_refused", "Sessions refused because their source has no class", counters.sessions_refused),
        row("sessions_limited", "Sessions refused because too many were open", counters.sessions_limited),
        row("sessions_cut", "Sessions closed for what the client did", counters.sessions_cut),
        row("sessions_tarpitted", "Sessions in the tar-pit at the moment", counters.sessions_tarpitted),
        row("tarpit_lost", "Sessions closed because others needed their place in the tar-pit", counters.tarpit_lost),
        row(
            "sessions_passed_through",
            "Sessions passed through to the server dialled",
            counters.sessions_passed_through,
        ),
        row("handshakes_failed", "TLS handshakes with clients that failed", counters.handshakes_failed),
        row("auth_failures", "AUTHs with wrong credentials", counters.auth_failures),
        row("over_quota", "Commands and connections refused because a quota was used up", counters.over_quota),
        row("quotas_forgotten", "Quotas in use that were forgotten because too many were", counters.quotas_forgotten),
        row("locks", "Subscribers locked for abuse", counters.locks),
        row("messages_accepted", "Messages that the gateway took", counters.messages_accepted),
        row("messages_rejected", "Messages refused for good (5xx)", counters.messages_rejected),
        row("messages_deferred", "Messages refused for the moment (4xx)", counters.messages_deferred),
        row("messages_aborted", "Messages that their client gave up", counters.messages_aborted),
        row("octets_accepted", "Octets of accepted messages", counters.octets_accepted),
        row("duplicate_risk", "Messages whose outcome is unknown", counters.duplicate_risk),
        row("smuggling_refused", "Messages refused for a bare CR, a bare LF or a NUL", counters.smuggling_refused),
        row("trace_lines_lost", "Lines of traces that their reader was too slow for", counters.trace_lines_lost),
        row("downgrades", "Messages that came over TLS and went on in clear", counters.downgrades),
        row(
            "downgrades_refused",
            "Messages that came over TLS and may not go on in clear",
            counters.downgrades_refused,
        ),
        row("client_timeouts", "Waits for a client that ran out", counters.client_timeouts),
        row("gateway_timeouts", "Waits for a gateway that ran out", counters.gateway_timeouts),
        row("gateway_connections", "Connections made to a gateway", counters.gateway_connections),
        row("gateway_failures", "Gateway connections that failed", counters.gateway_failures),
    ]
    .into_iter()
}

/// The text of one scrape.
pub async fn scrape(app: &AppState) -> Result<String, ApiError> {
    let snapshot = app.store.snapshot();
    let counts = app.store.subscriber_counts().await?;
    let tables = &snapshot.tables;
    let observed = app.reconciler.observed();
    let counters = app.reconciler.counters().await?;
    let values = Values {
        reasons: reason_counts(tables, &counters.classes),
        by_interface: counters.interfaces.into_iter().map(InterfaceCount::from).collect(),
        events_dropped: app.watchers.dropped(),
        sse_clients: limits::CHANGE_WATCHERS_MAX.saturating_sub(app.change_watchers.available_permits()) as u64,
        memory: types::memory(&app.reconciler.memory().await?),
        subscribers: tables
            .classes
            .values()
            .map(|class| (class.spec.name.to_string(), counts.get(&class.id).copied().unwrap_or(0)))
            .collect(),
        interfaces: tables.interfaces.keys().map(ToString::to_string).collect(),
        relays: tables.relays.values().map(|relay| Relay::new(relay, &app.health.borrow(), &observed)).collect(),
        observed,
        relay: relay_rows(&app.relay.counters()).collect(),
        gateways: app.relay.gateways(),
        tallies: app.relay.tallies(),
        revision: snapshot.revision,
        pending_s: snapshot
            .standing
            .pending
            .as_ref()
            .map_or(0, |pending| u64::try_from(pending.deadline.seconds - Time::now().seconds).unwrap_or(0)),
        uptime_s: app.started.elapsed().as_secs(),
        flows_capacity: u64::from(app.dataplane.flows_max) * 2,
    };
    let mut registry = Registry::with_prefix("redirect");
    registry.register_collector(Box::new(values));
    METERS.register(&mut registry);
    let mut text = String::new();
    text::encode(&mut text, &registry)
        .map_err(|error| ApiError::new(crate::api::error::Code::Internal, format!("metrics: {error}")))?;
    Ok(text)
}

/// One scrape's values.
#[derive(Debug)]
struct Values {
    reasons: Vec<ReasonCount>,
    by_interface: Vec<InterfaceCount>,
    events_dropped: u64,
    sse_clients: u64,
    memory: Vec<Memory>,
    subscribers: BTreeMap<String, u64>,
    interfaces: Vec<String>,
    relays: Vec<Relay>,
    observed: Observed,
    relay: Vec<RelayRow>,
    gateways: Vec<GatewayState>,
    tallies: Vec<(Pair, Tally)>,
    revision: u64,
    pending_s: u64,
    uptime_s: u64,
    flows_capacity: u64,
}

impl Collector for Values {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let encoder = &mut encoder;
        let observed = &self.observed;
        gauge(encoder, "build_info", "Version of redirectd", &[(&[("version", env!("CARGO_PKG_VERSION"))], 1)])?;
        gauge(encoder, "uptime_seconds", "Time since the start", &[(&[], self.uptime_s)])?;
        self.encode_configuration(encoder)?;
        gauge(
            encoder,
            "reconcile_failing",
            "1 while the kernel does not follow the store, or its upkeep fails",
            &[(&[], u64::from(observed.fault().is_some()))],
        )?;
        counter(
            encoder,
            "full_syncs",
            "Comparisons of the whole configuration with the kernel",
            &[(&[], observed.full_syncs)],
        )?;

        let labels: Vec<_> = self
            .reasons
            .iter()
            .map(|row| {
                [("class", row.class.as_deref().unwrap_or("")), ("reason", &*row.reason), ("verdict", &*row.verdict)]
            })
            .collect();
        let packets: Vec<_> =
            labels.iter().zip(&self.reasons).map(|(labels, row)| (&labels[..], row.packets)).collect();
        counter(encoder, "packets", "Packets by class and reason", &packets)?;
        let bytes: Vec<_> = labels.iter().zip(&self.reasons).map(|(labels, row)| (&labels[..], row.bytes)).collect();
        counter(encoder, "bytes", "Bytes of whole frames by class and reason", &bytes)?;

        self.encode_observations(encoder)?;

        let flows = [
            (&[("state", "half_open")][..], observed.flows.half_open),
            (&[("state", "established")][..], observed.flows.established),
        ];
        gauge(encoder, "flows", "Redirected flows at the last sweep", &flows)?;
        gauge(
            encoder,
            "flows_capacity",
            "Established flows that the tables hold, both families",
            &[(&[], self.flows_capacity)],
        )?;
        counter(encoder, "flows_collected", "Idle flows removed", &[(&[], observed.flows_collected)])?;

        let host = &observed.host;
        gauge(encoder, "foreign_sources", "Foreign sources that have a route", &[(&[], host.foreign_sources as u64)])?;
        let counts = &host.counts;
        counter(encoder, "foreign_sources_learned", "Foreign sources that got a route", &[(&[], counts.learned)])?;
        let forgotten =
            [(&[("reason", "expired")][..], counts.expired), (&[("reason", "unanswered")][..], counts.unanswered)];
        counter(encoder, "foreign_sources_forgotten", "Foreign sources whose route was removed", &forgotten)?;
        let labels: Vec<_> = counts.refused.keys().map(|refusal| [("reason", refusal.name())]).collect();
        let refused: Vec<_> =
            labels.iter().zip(counts.refused.values()).map(|(labels, count)| (&labels[..], *count)).collect();
        counter(encoder, "foreign_sources_refused", "Flows whose source got no route", &refused)?;

        let labels: Vec<_> = self.subscribers.keys().map(|class| [("class", class.as_str())]).collect();
        let rows: Vec<_> =
            labels.iter().zip(self.subscribers.values()).map(|(labels, count)| (&labels[..], *count)).collect();
        gauge(encoder, "subscribers", "Subscribers by class", &rows)?;

        let attached = |name: &String| observed.interfaces.get(name).and_then(|status| status.mode);
        let labels: Vec<_> = self
            .interfaces
            .iter()
            .map(|name| [("interface", name.as_str()), ("mode", attached(name).map_or("", |mode| mode.name()))])
            .collect();
        let rows: Vec<_> = labels
            .iter()
            .zip(&self.interfaces)
            .map(|(labels, name)| (&labels[..], u64::from(attached(name).is_some())))
            .collect();
        gauge(encoder, "interface_attached", "1 where the programs are attached", &rows)?;

        let names: Vec<_> = self.relays.iter().map(|relay| (relay, relay.name.to_string())).collect();
        let labels: Vec<_> = names
            .iter()
            .flat_map(|(relay, name)| {
                let families = [("ipv4", &relay.health.ipv4), ("ipv6", &relay.health.ipv6)];
                let known = families.into_iter().filter_map(|(family, health)| Some((family, health.as_ref()?.state)));
                known.map(|(family, state)| ([("relay", name.as_str()), ("family", family)], state))
            })
            .collect();
        let rows: Vec<_> =
            labels.iter().map(|(labels, state)| (&labels[..], u64::from(*state != HealthState::Down))).collect();
        gauge(encoder, "relay_up", "0 where probes say that the relay is down", &rows)?;
        let labels: Vec<_> = names.iter().map(|(relay, name)| ([("relay", name.as_str())], relay.flows)).collect();
        let rows: Vec<_> = labels.iter().map(|(labels, flows)| (&labels[..], *flows)).collect();
        gauge(encoder, "relay_flows", "Established flows that are rewritten to the relay, at the last sweep", &rows)?;

        for row in &self.relay {
            let name = format!("relay_{}", row.name);
            let goes_down = matches!(row.name, "sessions_active" | "sessions_tarpitted");
            let write = if goes_down { gauge } else { counter };
            write(encoder, &name, row.help, &[(&[], row.value)])?;
        }
        let help = "Lines of the log that were not written because it takes them too slowly";
        counter(encoder, "log_lines_lost", help, &[(&[], log::lines_lost())])?;
        self.encode_gateways(encoder)?;
        self.encode_mail(encoder)
    }
}

impl Values {
    fn encode_configuration(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        gauge(encoder, "config_revision", "Number of the configuration's newest state", &[(&[], self.revision)])?;
        gauge(
            encoder,
            "commit_pending_seconds",
            "Until a commit is taken back that nobody has confirmed; 0 where none waits",
            &[(&[], self.pending_s)],
        )?;
        gauge(
            encoder,
            "config_revision_applied",
            "Number of the state that the kernel holds",
            &[(&[], self.observed.applied)],
        )
    }

    fn encode_gateways(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labels: Vec<_> = self.gateways.iter().map(|state| [("gateway", state.name.as_str())]).collect();
        let rows = |value: fn(&GatewayState) -> u64| -> Vec<_> {
            labels.iter().zip(&self.gateways).map(|(labels, state)| (&labels[..], value(state))).collect()
        };
        gauge(encoder, "gateway_up", "0 where a gateway is out of service", &rows(|state| u64::from(state.up)))?;
        let help = "Connections open to a gateway, idle ones included";
        gauge(encoder, "gateway_connections", help, &rows(|state| state.connections.into()))?;
        let help = "How often mail was kept from a gateway by its limits over time";
        counter(encoder, "gateway_over_quota", help, &rows(|state| state.over_quota))?;
        let help = "Messages under way to a gateway";
        gauge(encoder, "gateway_outstanding", help, &rows(|state| state.outstanding.into()))
    }

    /// Messages by class and gateway.
    fn encode_mail(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labels: Vec<_> = self
            .tallies
            .iter()
            .map(|((class, gateway), _)| [("class", &**class), ("gateway", gateway.as_deref().unwrap_or(""))])
            .collect();
        let outcomes = [Outcome::Accepted, Outcome::Rejected, Outcome::Deferred, Outcome::Aborted];
        let by_outcome: Vec<_> = labels
            .iter()
            .zip(&self.tallies)
            .flat_map(|([class, gateway], (_, tally))| {
                outcomes.map(|outcome| ([*class, *gateway, ("outcome", outcome.as_str())], tally.messages(outcome)))
            })
            .collect();
        let rows: Vec<_> = by_outcome.iter().map(|(labels, value)| (&labels[..], *value)).collect();
        counter(encoder, "mail_messages", "Messages of the embedded relay by class, gateway and outcome", &rows)?;
        let rows = |value: fn(&Tally) -> u64| -> Vec<_> {
            labels.iter().zip(&self.tallies).map(|(labels, (_, tally))| (&labels[..], value(tally))).collect()
        };
        counter(encoder, "mail_octets", "Octets of accepted messages", &rows(|tally| tally.octets))?;
        counter(encoder, "mail_recipients", "Recipients of accepted messages", &rows(|tally| tally.recipients))?;
        let help = "Recipients that were refused";
        counter(encoder, "mail_recipients_refused", help, &rows(|tally| tally.recipients_refused))?;
        counter(
            encoder,
            "mail_duplicate_risk",
            "Messages whose outcome is unknown",
            &rows(|tally| tally.duplicate_risk),
        )?;
        let help = "Milliseconds from MAIL to the end, of all messages together";
        counter(encoder, "mail_duration_milliseconds", help, &rows(|tally| tally.duration_ms))
    }

    /// Counters by interface, events, memory.
    fn encode_observations(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let observed = &self.observed;
        let labels: Vec<_> = self
            .by_interface
            .iter()
            .map(|row| {
                let interface = row.interface.as_deref().unwrap_or("");
                [("interface", interface), ("reason", &*row.reason), ("verdict", &*row.verdict)]
            })
            .collect();
        let rows = |value: fn(&InterfaceCount) -> u64| -> Vec<_> {
            labels.iter().zip(&self.by_interface).map(|(labels, row)| (&labels[..], value(row))).collect()
        };
        let help = "Packets by interface and reason";
        counter(encoder, "interface_packets", help, &rows(|row| row.packets))?;
        let help = "Bytes of whole frames by interface and reason";
        counter(encoder, "interface_bytes", help, &rows(|row| row.bytes))?;

        counter(encoder, "events", "Events that the kernel reported", &[(&[], observed.events.read)])?;
        let lost = [(&[("at", "kernel")][..], observed.events.lost), (&[("at", "queue")][..], self.events_dropped)];
        counter(encoder, "events_lost", "Events not reported, or that a reader was too slow for", &lost)?;

        gauge(encoder, "sse_clients", "Readers of the changes of the configuration", &[(&[], self.sse_clients)])?;

        let labels: Vec<_> = self.memory.iter().map(|row| [("tables", row.tables.as_str())]).collect();
        let rows: Vec<_> = labels.iter().zip(&self.memory).map(|(labels, row)| (&labels[..], row.bytes)).collect();
        gauge(encoder, "memory_bytes", "What the kernel's tables cost", &rows)
    }
}

type Rows<'a> = [(&'a [(&'a str, &'a str)], u64)];

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, rows: &Rows<'_>) -> fmt::Result {
    family(encoder, name, help, MetricType::Gauge, rows)
}

fn counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, rows: &Rows<'_>) -> fmt::Result {
    family(encoder, name, help, MetricType::Counter, rows)
}

fn family(encoder: &mut DescriptorEncoder, name: &str, help: &str, kind: MetricType, rows: &Rows<'_>) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    if let [([], value)] = rows {
        return encode(*value, kind, family);
    }
    for (labels, value) in rows {
        encode(*value, kind, family.encode_family(labels)?)?;
    }
    Ok(())
}

fn encode(value: u64, kind: MetricType, encoder: MetricEncoder<'_>) -> fmt::Result {
    match kind {
        MetricType::Counter => ConstCounter::new(value).encode(encoder),
        _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder),
    }
}
