//! The log: lines are put together and written to stderr by a thread, so that nobody waits for a terminal or a disk, and mail does not
//! cost a system call for each message.
//!
//! A line is written within [`limits::LOG_DELAY`]; what is left, when [`Log`] is dropped. Lines that find
//! [`limits::LOG_BYTES_MAX`] waiting are lost, and counted.

mod clock;
mod fields;

use std::{
    io::{self, Write},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use tracing_subscriber::fmt::MakeWriter;

pub use self::{clock::Clock, fields::PlainFields};
use crate::limits;

/// Lines lost since the start: of the process, since so is the log.
static LOST: AtomicU64 = AtomicU64::new(0);

pub fn lines_lost() -> u64 {
    LOST.load(Relaxed)
}

#[derive(Debug, Default)]
struct Queue {
    text: Vec<u8>,
    /// The thread waits to be woken.
    idle: bool,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    /// Each statement under the lock leaves the queue whole.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where lines are put.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Shared>);

impl Lines {
    fn put(&self, line: &[u8]) {
        let mut queue = self.0.queue();
        if queue.text.len() + line.len() > limits::LOG_BYTES_MAX {
            LOST.fetch_add(1, Relaxed);
            return;
        }
        queue.text.extend_from_slice(line);
        if std::mem::take(&mut queue.idle) {
            self.0.changed.notify_one();
        }
    }
}

/// A line comes as a whole.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The thread that writes; dropping it writes the rest.
#[derive(Debug)]
pub struct Log {
    lines: Lines,
    thread: Option<JoinHandle<()>>,
}

impl Log {
    /// Errors are those of starting a thread.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("log".to_owned()).spawn(move || write(&of_thread, out))?;
        Ok(Self { lines: Lines(shared), thread: Some(thread) })
    }

    pub fn lines(&self) -> Lines {
        self.lines.clone()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines.0.queue().ended = true;
        self.lines.0.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It has no panic to tell of.
            let _ = thread.join();
        }
    }
}

fn write(shared: &Shared, mut out: impl Write) {
    let mut taken = Vec::new();
    loop {
        let mut queue = shared.queue();
        while queue.text.is_empty() && !queue.ended {
            queue.idle = true;
            queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.idle = false;
        let waits = |queue: &mut Queue| !queue.ended;
        // More lines will come: they are written together.
        let delayed = shared.changed.wait_timeout_while(queue, limits::LOG_DELAY, waits);
        let (mut queue, _) = delayed.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut queue.text, &mut taken);
        let ended = queue.ended;
        drop(queue);
        // Who reads the log may be gone; there is nobody else to tell.
        let _ = out.write_all(&taken).and_then(|()| out.flush());
        taken.clear();
        if ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes what is written when it is let to.
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Let go of, it takes everything.
            let _ = self.0.recv();
            self.1.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nothing_is_lost_at_an_end_and_lines_keep_their_order() {
        let (go, let_go) = mpsc::channel();
        let (written, all) = mpsc::channel();
        let log = Log::start(Slow(let_go, written)).unwrap();
        drop(go);
        let mut expected = String::new();
        for number in 0..1000 {
            let line = format!("{number}\n");
            log.lines().write_all(line.as_bytes()).unwrap();
            expected.push_str(&line);
        }
        drop(log);
        assert_eq!(String::from_utf8(all.iter().flatten().collect()).unwrap(), expected);
    }

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up_and_what_is_lost_is_counted() {
        let (go, let_go) = mpsc::channel();
        let (written, all) = mpsc::channel();
        let log = Log::start(Slow(let_go, written)).unwrap();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        // The thread holds what it has begun to write, and as much may wait.
        let count = 3 * limits::LOG_BYTES_MAX / line.len();
        for _ in 0..count {
            log.lines().write_all(&line).unwrap();
        }
        let lost = usize::try_from(lines_lost()).unwrap();
        assert!(lost >= limits::LOG_BYTES_MAX / line.len(), "{lost} of {count}");
        drop(go);
        drop(log);
        assert_eq!(all.iter().flatten().count(), (count - lost) * line.len(), "whole lines, each written or counted");
    }
}
