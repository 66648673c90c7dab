//! What the daemons of these tests log, all of it.

use std::{
    io,
    sync::{Mutex, OnceLock},
};

use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Keep;

impl io::Write for Keep {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps the log from here on; the function that this returns gives what there is of it by then. The daemons of tests that run at the same
/// time are in it as well.
pub(crate) fn logged() -> impl Fn() -> String {
    static BEGUN: OnceLock<()> = OnceLock::new();
    BEGUN.get_or_init(|| {
        let everything = Targets::new().with_default(tracing::Level::TRACE);
        let keep = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(|| Keep);
        tracing_subscriber::registry().with(everything).with(keep).init();
    });
    || String::from_utf8_lossy(&LINES.lock().unwrap()).into_owned()
}
