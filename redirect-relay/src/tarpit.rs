//! Who abuses the relay is answered slowly. Nobody waits but the client: a timer, no thread, and not even a read.
//!
//! Only so many are kept waiting at one time. When one more comes, the one that has waited longest is sent away: so
//! holding the places gains nothing (attack 56).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// How slowly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Tarpit {
    /// The first delay; each further one of a session is twice as long.
    #[serde(rename = "delay_s", with = "crate::policy::seconds")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub delay: Duration,
    /// The longest. Below 5 min, or clients give up on us as on a dead server (RFC 5321 section 4.5.3.2).
    #[serde(rename = "delay_max_s", with = "crate::policy::seconds")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub delay_max: Duration,
}

impl Tarpit {
    /// The delay of a session that had `earlier` ones.
    pub(crate) fn delay(&self, earlier: u32) -> Duration {
        self.delay.saturating_mul(2_u32.saturating_pow(earlier)).min(self.delay_max)
    }
}

/// The places.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// By age.
    places: BTreeMap<u64, Option<Waker>>,
}

impl Places {
    /// `max` at least 1.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max: max.max(1), held: Mutex::default() })
    }

    /// A place; the oldest one is lost to its holder if there are too many.
    pub(crate) fn enter(self: &Arc<Self>) -> Place {
        let mut held = self.lock();
        let number = held.next;
        held.next += 1;
        let lost = if held.places.len() >= self.max { held.places.pop_first() } else { None };
        held.places.insert(number, None);
        drop(held);
        if let Some((_, Some(waker))) = lost {
            waker.wake();
        }
        Place { places: Arc::clone(self), number }
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().places.len()
    }

    /// Each statement under the lock leaves the map whole.
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One place, given back when it goes.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
}

impl Place {
    /// Ready when it was lost to another.
    pub(crate) fn poll_lost(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.places.lock().places.get_mut(&self.number) {
            None => Poll::Ready(()),
            Some(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap() {
        let tarpit = Tarpit { delay: Duration::from_secs(1), delay_max: Duration::from_secs(20) };
        let delays = [0, 1, 4, 5, 40].map(|earlier| tarpit.delay(earlier).as_secs());
        assert_eq!(delays, [1, 2, 16, 20, 20]);
    }

    #[test]
    fn attack_56_the_oldest_place_is_lost() {
        let places = Places::new(2);
        let mut cx = Context::from_waker(Waker::noop());
        let (first, second) = (places.enter(), places.enter());
        assert!(first.poll_lost(&mut cx).is_pending());
        let third = places.enter();
        assert!(first.poll_lost(&mut cx).is_ready());
        assert!(second.poll_lost(&mut cx).is_pending() && third.poll_lost(&mut cx).is_pending());
        assert_eq!(places.count(), 2);
        drop((first, second, third));
        assert_eq!(places.count(), 0);
    }
}
