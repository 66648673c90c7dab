//! How far the end of a relay has come, for all of its sessions.
//!
//! A session looks at it whenever it is woken, which for most of them is never the end: that look is at a number, and who
//! is woken by what is settled once. A token or a channel would take a lock that all sessions share, each time.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::sync::{Notify, futures::OwnedNotified};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stage {
    Open,
    /// Begin no transaction.
    Draining,
    /// End the transactions that are open.
    Drained,
    /// Leave whatever is left.
    Over,
}

#[derive(Debug, Default)]
pub(crate) struct Signals {
    stage: AtomicU8,
    told: Arc<Notify>,
}

impl Signals {
    pub(crate) fn stage(&self) -> Stage {
        [Stage::Open, Stage::Draining, Stage::Drained, Stage::Over]
            [usize::from(self.stage.load(Ordering::Acquire)).min(3)]
    }

    /// Stages come in their order.
    pub(crate) fn tell(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
        self.told.notify_waiters();
    }

    /// What `work` comes to, unless `stage` is reached before.
    pub(crate) async fn until<T>(&self, stage: Stage, work: impl Future<Output = T>) -> Option<T> {
        let (mut work, mut listener) = (pin!(work), Listener::new(self));
        poll_fn(|cx| {
            if listener.poll(cx) >= stage {
                return Poll::Ready(None);
            }
            work.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

/// A task that is to be woken when another stage is reached.
pub(crate) struct Listener<'a> {
    signals: &'a Signals,
    notified: Pin<Box<OwnedNotified>>,
    /// Who is woken, and the stage after which.
    listening: Option<(Waker, Stage)>,
}

impl<'a> Listener<'a> {
    pub(crate) fn new(signals: &'a Signals) -> Self {
        Self { signals, notified: Box::pin(Arc::clone(&signals.told).notified_owned()), listening: None }
    }

    /// The stage; the task is woken at the next one.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Stage {
        loop {
            let stage = self.signals.stage();
            if self.listening.as_ref().is_some_and(|(waker, after)| *after == stage && waker.will_wake(cx.waker())) {
                return stage;
            }
            while self.notified.as_mut().poll(cx).is_ready() {
                self.notified.set(Arc::clone(&self.signals.told).notified_owned());
            }
            // It may have gone on between the look and the listening: then it is looked at again.
            self.listening = Some((cx.waker().clone(), stage));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, task::Wake};

    use super::*;

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Counting {
        fn woken(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn each_stage_wakes_whoever_looked_last() {
        let signals = Signals::default();
        let mut listener = Listener::new(&signals);
        let tasks = [Arc::new(Counting::default()), Arc::new(Counting::default())];
        let wakers = tasks.clone().map(Waker::from);
        let mut contexts = wakers.each_ref().map(Context::from_waker);
        for _ in 0..3 {
            assert_eq!(listener.poll(&mut contexts[0]), Stage::Open);
        }
        signals.tell(Stage::Draining);
        assert_eq!([tasks[0].woken(), tasks[1].woken()], [1, 0]);
        assert_eq!(listener.poll(&mut contexts[0]), Stage::Draining);
        // On to another task.
        assert_eq!(listener.poll(&mut contexts[1]), Stage::Draining);
        signals.tell(Stage::Drained);
        assert_eq!([tasks[0].woken(), tasks[1].woken()], [1, 1]);
        assert_eq!(listener.poll(&mut contexts[1]), Stage::Drained);
        signals.tell(Stage::Over);
        assert_eq!(tasks[1].woken(), 2, "every stage, not the first alone");
        assert_eq!(listener.poll(&mut contexts[1]), Stage::Over);
    }

    #[tokio::test]
    async fn work_goes_on_until_the_stage() {
        let signals = Arc::new(Signals::default());
        assert_eq!(signals.until(Stage::Drained, async { 7 }).await, Some(7));
        let stopped = tokio::spawn({
            let signals = Arc::clone(&signals);
            async move { signals.until(Stage::Drained, std::future::pending::<()>()).await }
        });
        tokio::task::yield_now().await;
        signals.tell(Stage::Draining);
        tokio::task::yield_now().await;
        assert!(!stopped.is_finished());
        signals.tell(Stage::Drained);
        assert_eq!(stopped.await.unwrap(), None);
        assert_eq!(signals.until(Stage::Drained, std::future::pending::<()>()).await, None);
    }
}
