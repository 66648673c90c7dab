//! AUTH by bridge: whether a client is who it says, the gateway of its class knows (its credentials are the gateway's own).
//!
//! ```text
//!  Command -- AUTH, responses --> Verifying -- the gateway takes them --> Command: all mail goes by that connection
//!                                     `------- it does not, or none is reached --> Command: 535, or 454
//! ```
//!
//! The connection that the client logged in by is its own: it is kept between messages, routes are not asked, and it goes into
//! no pool. The credentials are gone by then, so another one cannot be made: once it is lost, so is the session.

use std::{sync::Arc, time::Instant};

use super::{Action, Granted, Link, Note, Phase, Session, Verdict};
use crate::{
    auth::{Claim, Credentials},
    gateway::{OpenError, Status},
    record::Cause,
    reply::Reply,
    route::{Routing, Target},
    upstream::Upstream,
};

const BRIDGE_LOST: Reply = Reply::new(421, 4, 2, "The connection to the mail gateway is lost, connect again");

impl Session {
    pub(super) fn bridge(&mut self, credentials: Credentials, allow_unprotected: bool, now: Instant) {
        let Some(introduction) = self.introduction() else { return };
        // That of an earlier message, which may still be busy.
        self.hangup();
        self.phase = Phase::Verifying;
        let claim = Arc::new(Claim { credentials, allow_unprotected });
        let until = now + self.settings.timeouts.open;
        let (introduction, encrypted) = (Box::new(introduction), self.encrypted);
        self.actions.push_back(Action::Bridge { introduction, encrypted, claim, until });
    }

    /// The answer to [`Action::Bridge`].
    pub(crate) fn on_bridged(&mut self, found: Result<(Target, Granted), OpenError>, now: Instant) {
        if !matches!(self.phase, Phase::Verifying) {
            return self.hangup();
        }
        let verdict = match found {
            Ok((target, granted)) => {
                let upstream = Upstream::new(Arc::clone(&self.settings), Arc::clone(&granted.capabilities));
                self.link = Some(Box::new(Link { target: target.clone(), granted, upstream, since: now }));
                self.bridged = Some(target);
                Verdict::Accepted
            }
            Err(error) if error.denies_claim() => Verdict::Refused,
            Err(error) => {
                self.actions.push_back(Action::Note(Note::GatewayUnreachable(error)));
                Verdict::Unavailable
            }
        };
        self.on_verdict(verdict, now);
        self.advance(now);
    }

    /// Ends a session whose mail has no way any more; whether it did.
    pub(super) fn ends_unbridged(&mut self, now: Instant) -> bool {
        let lost = self.bridged.is_some() && self.link.is_none();
        if lost {
            self.end(&BRIDGE_LOST, Cause::GatewayLost, now);
        }
        lost
    }

    /// Gives the client's own connection up if its gateway is to get no more messages.
    pub(super) fn unbridge_if_out_of_service(&mut self, routing: &Routing) {
        let enabled = |link: &Link| {
            let gateway = routing.gateway(&link.granted.gateway.name);
            gateway.is_some_and(|gateway| gateway.status == Status::Enabled)
        };
        if self.bridged.is_some() && self.link.as_deref().is_some_and(|link| !enabled(link)) {
            self.hangup();
        }
    }
}
