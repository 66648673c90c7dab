//! What the gateways need beside mail: probes, and an end for connections that nobody uses.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    gateway::dial::quit,
    limits::PROBES_MAX,
    relay::{Directory, Relay},
    stream::Stream,
};

const TICK: Duration = Duration::from_secs(1);

/// Looks after the gateways of `relay` until `shutdown`: one of these runs beside its listeners, and ends after them.
///
/// Each gateway that is not disabled is greeted now and then, if [`Settings`](crate::Settings) say so, up to EHLO, and left with QUIT. What comes of it decides, with
/// what mail meets, whether the gateway is used. Idle connections that are too old are left likewise, at the end all.
pub async fn tend<D: Directory>(relay: Arc<Relay<D>>, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        while tasks.try_join_next().is_some() {}
        let routing = relay.directory.routing();
        for stream in relay.fleet.sweep(&routing) {
            tasks.spawn(leave(stream, relay.settings.timeouts.farewell));
        }
        let Some(interval) = relay.settings.probe_interval else { continue };
        for unit in relay.fleet.due(&routing, interval, PROBES_MAX.saturating_sub(tasks.len())) {
            let relay = Arc::clone(&relay);
            tasks.spawn(async move {
                if let Some(stream) = relay.fleet.probe(&unit, &relay.directory.listeners()).await {
                    leave(stream, relay.settings.timeouts.farewell).await;
                }
            });
        }
    }
    tasks.shutdown().await;
    for stream in relay.fleet.drain() {
        tasks.spawn(leave(stream, relay.settings.timeouts.farewell));
    }
    while tasks.join_next().await.is_some() {}
}

async fn leave(stream: Stream, limit: Duration) {
    let _ = timeout(limit, quit(stream)).await;
}
