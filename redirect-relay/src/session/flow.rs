//! What a client may do how often, and what becomes of one that does more: a refusal, delays, at last a lock.

use std::{
    task::{Context, Poll},
    time::Instant,
};

use super::{Action, Note, Phase, Session};
use crate::{policy::Lock, quota::Kind, record::Cause, reply::Reply};

pub(super) const OVER_QUOTA: Reply = Reply::new(450, 7, 1, "Too much mail from your address, try again later");
pub(super) const AUTH_OVER_QUOTA: Reply = Reply::new(454, 7, 0, "Too many failed authentications, try again later");
const LOCKED: Reply = Reply::new(421, 7, 0, "Your address is locked for a while");
pub(crate) const CONNECTIONS_OVER_QUOTA: Reply = Reply::new(421, 7, 0, "Too many connections, try again later");
const PLACE_LOST: Reply = Reply::new(421, 7, 0, "Too busy, try again later");

impl Session {
    /// Takes one of a kind; else the command is refused with `reply`, slowly.
    pub(super) fn take_or_refuse(&mut self, kind: Kind, reply: &Reply, now: Instant) -> bool {
        let policy = &self.identity.policy;
        let may = self.account.take(&policy.subscriber_quota, &policy.class_quota, kind, now);
        if !may {
            self.refuse_quota(kind, reply, now);
        }
        may
    }

    /// Whether anything is left of what is charged later.
    pub(super) fn has(&self, kind: Kind, now: Instant) -> bool {
        let policy = &self.identity.policy;
        self.account.has(&policy.subscriber_quota, &policy.class_quota, kind, now)
    }

    /// As [`Session::take_or_refuse`] for what is charged later.
    pub(super) fn has_or_refuse(&mut self, kind: Kind, reply: &Reply, now: Instant) -> bool {
        let may = self.has(kind, now);
        if !may {
            self.refuse_quota(kind, reply, now);
        }
        may
    }

    pub(super) fn charge(&self, kind: Kind, amount: u64, now: Instant) {
        let policy = &self.identity.policy;
        self.account.charge(&policy.subscriber_quota, &policy.class_quota, kind, amount, now);
    }

    pub(super) fn refuse_quota(&mut self, kind: Kind, reply: &Reply, now: Instant) {
        self.actions.push_back(Action::Note(Note::OverQuota(kind)));
        self.slow_down(now);
        self.answer(reply, now);
        if self.strike(now) {
            self.end(&LOCKED, Cause::ClientCut, now);
        }
    }

    /// Notes an abuse; whether it was one too many, and the subscriber is locked for it.
    pub(super) fn strike(&mut self, now: Instant) -> bool {
        let Some(Lock { strikes, duration }) = self.identity.policy.lock else { return false };
        if self.locked || self.account.strike(strikes, now) {
            return false;
        }
        self.locked = true;
        self.actions.push_back(Action::Lock(duration));
        true
    }

    // ---- The tar-pit ----

    /// Keeps what is said to the client from here on, and what it says next, for a while.
    pub(super) fn slow_down(&mut self, now: Instant) {
        let Some(tarpit) = self.identity.policy.tarpit else { return };
        let delay = tarpit.delay(self.delays);
        if delay.is_zero() || self.client_gone {
            return;
        }
        self.delays += 1;
        if !self.is_held() {
            self.sayable = self.to_client.len();
        }
        let place = self.place.take().unwrap_or_else(|| self.places.enter());
        self.place = Some(place);
        self.held_until = Some(now + delay);
    }

    pub(super) const fn is_held(&self) -> bool {
        self.held_until.is_some()
    }

    /// The delay is over.
    pub(super) fn release(&mut self, now: Instant) {
        self.held_until = None;
        self.place = None;
        // While we said nothing and heard nothing, the client could not be in default.
        self.write_deadline = (!self.to_client.is_empty()).then_some(now + self.settings.timeouts.client_write);
        if matches!(self.phase, Phase::Command | Phase::Auth(_)) {
            self.client_deadline = now + self.settings.timeouts.command;
        }
        self.advance(now);
    }

    /// Ready when the place in the tar-pit was lost to another client. Call [`Session::on_place_lost`] then.
    pub(crate) fn poll_place_lost(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.place.as_ref().map_or(Poll::Pending, |place| place.poll_lost(cx))
    }

    pub(crate) fn on_place_lost(&mut self, now: Instant) {
        self.release(now);
        self.actions.push_back(Action::Note(Note::PlaceLost));
        self.end(&PLACE_LOST, Cause::ClientCut, now);
    }
}
