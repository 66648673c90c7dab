//! What is kept of a message for its record, and what who looks on gets to see.

use std::{sync::Arc, time::Instant};

use jiff::Timestamp;

use super::{Action, Note, Session, Transaction};
use crate::{
    record::{Cause, GatewayReplies, Outcome, Record, Status, Times},
    upstream::Event,
    watch::Who,
};

/// A transaction's story so far.
#[derive(Debug)]
pub(super) struct Story {
    at: Timestamp,
    replies: GatewayReplies,
    times: Times,
    /// Recipients that somebody refused.
    pub(super) refused: u32,
}

impl Story {
    pub(super) fn new(at: Timestamp) -> Self {
        Self { at, replies: GatewayReplies::default(), times: Times::default(), refused: 0 }
    }
}

impl Session {
    /// Tells who looks on.
    pub(super) fn tell(&self, who: Who, text: impl FnOnce() -> String) {
        self.voice.say(self.identity.client.get(), &self.identity.class, who, text);
    }

    pub(super) fn note_ready(&mut self, now: Instant) {
        if let Some(transaction) = &mut self.transaction {
            transaction.story.times.gateway_ready = Some(now.saturating_duration_since(transaction.started));
        }
        self.tell(Who::Note, || match &self.link {
            Some(link) => {
                format!("gateway {}{}", link.granted.gateway.name, if link.granted.reused { ", again" } else { "" })
            }
            None => "no gateway".to_owned(),
        });
    }

    pub(super) fn note_sent(&mut self, now: Instant) {
        if let Some(transaction) = &mut self.transaction {
            transaction.story.times.sent = Some(now.saturating_duration_since(transaction.started));
        }
        if self.encrypted && self.link.as_ref().is_some_and(|link| !link.granted.encrypted) {
            self.actions.push_back(Action::Note(Note::Downgrade));
        }
    }

    pub(super) fn note_event(&mut self, event: &Event, now: Instant) {
        self.tell(Who::Gateway, || match event {
            Event::Mail(reply) => format!("{} for MAIL", reply.status()),
            Event::Rcpt(reply) => format!("{} for RCPT", reply.status()),
            Event::Data(reply) => format!("{} for DATA", reply.status()),
            Event::Verdict(reply) => format!("{} for the message", reply.status()),
            Event::Failed(failure) => format!("lost: {failure}"),
        });
        let Some(transaction) = &mut self.transaction else { return };
        let Transaction { story: Story { replies, times, .. }, started, .. } = &mut **transaction;
        let elapsed = now.saturating_duration_since(*started);
        match event {
            Event::Mail(reply) => replies.mail = Some(reply.status()),
            Event::Rcpt(reply) => {
                replies.recipient = Some(reply.status());
                if reply.is_positive() {
                    times.recipient.get_or_insert(elapsed);
                }
            }
            Event::Data(reply) => {
                replies.data = Some(reply.status());
                if reply.code == 354 {
                    times.data = Some(elapsed);
                }
            }
            Event::Verdict(reply) => replies.verdict = Some(reply.status()),
            Event::Failed(_) => {}
        }
    }

    /// Puts a transaction on record.
    pub(super) fn put_on_record(
        &mut self,
        transaction: Transaction,
        (outcome, cause): (Outcome, Cause),
        reply: Option<Status>,
        octets: u64,
        now: Instant,
    ) {
        let Transaction { story, mail, via, accepted, waiting, started, .. } = transaction;
        let Story { at, replies, times, refused } = story;
        // MAIL alone, given up, concerns nobody.
        if accepted == 0 && refused == 0 && waiting.is_empty() {
            return;
        }
        let record = Record {
            at,
            egress: via.as_ref().and_then(|via| via.egress),
            gateway: via.map(|via| via.gateway.name.as_str().into()),
            octets,
            octets_declared: mail.size,
            recipients: accepted,
            recipients_refused: refused,
            outcome,
            cause,
            reply,
            gateway_replies: replies,
            encrypted: self.encrypted,
            authenticated: self.authenticated,
            client_gone: self.client_gone,
            duplicate_risk: cause == Cause::OutcomeUnknown,
            times: Times { end: Some(now.saturating_duration_since(started)), ..times },
        };
        self.tell(Who::Note, || {
            format!("{} because of {}, {octets} octets", record.outcome.as_str(), record.cause.as_str())
        });
        self.actions.push_back(Action::Record(Arc::new(record)));
    }
}
