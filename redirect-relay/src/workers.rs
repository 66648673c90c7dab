//! Threads that serve sessions, each with a runtime of its own: what a session waits for wakes the thread that serves it and no other, and no
//! thread takes a session from another.

use std::{
    future::Future,
    io,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use tokio::runtime::{self, Handle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Where sessions are served. Connections to gateways belong to the thread that made them, so this has to outlive
/// [`tend`](crate::tend()).
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    sessions: Arc<AtomicUsize>,
}

/// One of a worker's sessions.
struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Workers {
    /// As many threads as this process may use CPUs.
    ///
    /// # Errors
    ///
    /// The system gives no thread, or no descriptors for its events.
    pub fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let mut all = Self { workers: Vec::with_capacity(count), stop: CancellationToken::new() };
        for number in 0..count {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            all.workers.push(Worker::of(runtime.handle().clone()));
            let stop = all.stop.clone();
            thread::Builder::new().name(format!("relay-{number}")).spawn(move || runtime.block_on(stop.cancelled()))?;
        }
        Ok(all)
    }

    /// No threads: sessions are tasks of this runtime.
    pub fn on(runtime: Handle) -> Self {
        Self { workers: vec![Worker::of(runtime)], stop: CancellationToken::new() }
    }

    /// Has the worker with the fewest sessions run one more.
    pub(crate) fn spawn(&self, tasks: &TaskTracker, session: impl Future<Output = ()> + Send + 'static) {
        let fewest = self.workers.iter().min_by_key(|worker| worker.sessions.load(Relaxed));
        let worker = fewest.expect("there is one at least");
        worker.sessions.fetch_add(1, Relaxed);
        let busy = Busy(Arc::clone(&worker.sessions));
        let session = async {
            let _busy = busy;
            session.await;
        };
        tasks.spawn_on(session, &worker.runtime);
    }
}

impl Worker {
    fn of(runtime: Handle) -> Self {
        Self { runtime, sessions: Arc::default() }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
