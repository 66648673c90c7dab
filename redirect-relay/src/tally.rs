//! Messages counted by class and gateway.
//!
//! Both are names that the operator gave, so there are few pairs; should there be many all the same, the rest is counted
//! together, for each pair is a time series in somebody's metrics.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    limits::TALLIES_MAX,
    record::{Outcome, Record},
};

/// Counted since the relay was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    pub accepted: u64,
    pub rejected: u64,
    pub deferred: u64,
    pub aborted: u64,
    /// Octets of accepted messages.
    pub octets: u64,
    /// Recipients of accepted messages.
    pub recipients: u64,
    /// Recipients that were refused.
    pub recipients_refused: u64,
    pub duplicate_risk: u64,
    /// Milliseconds from MAIL to the end, of all messages together.
    pub duration_ms: u64,
}

impl Tally {
    /// Messages that ended so.
    pub const fn messages(&self, outcome: Outcome) -> u64 {
        match outcome {
            Outcome::Accepted => self.accepted,
            Outcome::Rejected => self.rejected,
            Outcome::Deferred => self.deferred,
            Outcome::Aborted => self.aborted,
        }
    }

    fn add(&mut self, record: &Record) {
        let of_outcome = match record.outcome {
            Outcome::Accepted => &mut self.accepted,
            Outcome::Rejected => &mut self.rejected,
            Outcome::Deferred => &mut self.deferred,
            Outcome::Aborted => &mut self.aborted,
        };
        *of_outcome += 1;
        if record.outcome == Outcome::Accepted {
            self.octets += record.octets;
            self.recipients += u64::from(record.recipients);
        }
        self.recipients_refused += u64::from(record.recipients_refused);
        self.duplicate_risk += u64::from(record.duplicate_risk);
        self.duration_ms += record.times.end.map_or(0, |end| u64::try_from(end.as_millis()).unwrap_or(u64::MAX));
    }
}

/// Class and gateway; no gateway where none was found.
pub type Pair = (Arc<str>, Option<Arc<str>>);

#[derive(Debug, Default)]
pub(crate) struct Tallies(Mutex<BTreeMap<Pair, Tally>>);

impl Tallies {
    pub(crate) fn add(&self, class: &Arc<str>, record: &Record) {
        let mut tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = (Arc::clone(class), record.gateway.clone());
        let room = tallies.len() < TALLIES_MAX || tallies.contains_key(&pair);
        let pair = if room { pair } else { ("other".into(), None) };
        tallies.entry(pair).or_default().add(record);
    }

    pub(crate) fn snapshot(&self) -> Vec<(Pair, Tally)> {
        let tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.iter().map(|(pair, tally)| (pair.clone(), *tally)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;
    use crate::record::{Cause, GatewayReplies, Times};

    fn record(gateway: Option<&str>, outcome: Outcome) -> Record {
        Record {
            at: Timestamp::UNIX_EPOCH,
            gateway: gateway.map(Into::into),
            egress: None,
            octets: 100,
            octets_declared: None,
            recipients: 2,
            recipients_refused: 1,
            outcome,
            cause: Cause::Gateway,
            reply: None,
            gateway_replies: GatewayReplies::default(),
            encrypted: false,
            authenticated: false,
            client_gone: false,
            duplicate_risk: outcome == Outcome::Deferred,
            times: Times { end: Some(Duration::from_millis(30)), ..Times::default() },
        }
    }

    #[test]
    fn messages_are_counted_by_class_and_gateway() {
        let tallies = Tallies::default();
        let class = Arc::from("guests");
        for outcome in [Outcome::Accepted, Outcome::Accepted, Outcome::Rejected, Outcome::Deferred, Outcome::Aborted] {
            tallies.add(&class, &record(Some("g"), outcome));
        }
        tallies.add(&class, &record(None, Outcome::Deferred));
        let [(none, _), (some, tally)] = &tallies.snapshot()[..] else { panic!("two pairs") };
        assert_eq!((&none.1, some.1.as_deref()), (&None, Some("g")));
        let expected = Tally {
            accepted: 2,
            rejected: 1,
            deferred: 1,
            aborted: 1,
            octets: 200,
            recipients: 4,
            recipients_refused: 5,
            duplicate_risk: 1,
            duration_ms: 150,
        };
        assert_eq!(*tally, expected);
    }

    #[test]
    fn attack_57_labels_do_not_explode() {
        let tallies = Tallies::default();
        let messages = TALLIES_MAX as u64 + 100;
        for i in 0..messages {
            tallies.add(&format!("class-{i}").into(), &record(None, Outcome::Accepted));
        }
        let snapshot = tallies.snapshot();
        assert_eq!(snapshot.len(), TALLIES_MAX + 1);
        assert_eq!(snapshot.iter().map(|(_, tally)| tally.accepted).sum::<u64>(), messages);
    }
}
