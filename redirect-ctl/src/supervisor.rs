//! What whoever started the daemon is told of it (`sd_notify(3)`): that it is ready, that it lives, that it stops. Without systemd, nobody.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::reconcile::task::Handle;

pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says that the daemon lives as long as the thread that owns the data plane answers: where that hangs, nothing else is of use.
pub(crate) async fn keep_alive(handle: Handle, stop: CancellationToken) {
    let Some(period) = sd_notify::watchdog_enabled() else { return stop.cancelled().await };
    // As sd_watchdog_enabled(3) recommends.
    let mut ticks = interval((period / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        match stop.run_until_cancelled(timeout(period, handle.answers())).await {
            Some(Ok(true)) => tell(&[NotifyState::Watchdog]),
            Some(Ok(false) | Err(_)) => tracing::error!("the data plane does not answer"),
            None => return,
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell systemd");
    }
}
