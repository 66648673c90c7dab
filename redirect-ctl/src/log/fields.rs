//! The fields of a line of text as `tracing-subscriber` writes them, without styles.
//!
//! Each message that goes through the relay leaves a line of some twenty fields. Asking for each of them which style its name and its
//! equals sign have takes a fifth of the time that the line takes, for styles that nobody sees.

use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, format::Writer},
};

/// More than the fields of a message take.
const USUAL_OCTETS: usize = 768;

/// For a writer that is no terminal.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainFields;

impl<'w> FormatFields<'w> for PlainFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        // Put together in one piece: the writer is behind two pointers, and a line has a hundred pieces.
        let mut visitor = Visitor { line: String::with_capacity(USUAL_OCTETS), begun: false, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result?;
        write_escaped(&mut writer, &visitor.line)
    }
}

struct Visitor {
    line: String,
    begun: bool,
    result: fmt::Result,
}

impl Visitor {
    fn write(&mut self, field: &Field, value: impl FnOnce(&mut String) -> fmt::Result) {
        let name = match field.name().as_bytes() {
            // What `log` tells of its own records stands in the line already.
            [b'l', b'o', b'g', b'.', ..] => return,
            [b'r', b'#', ..] => &field.name()[2..],
            _ => field.name(),
        };
        if self.result.is_ok() {
            if std::mem::replace(&mut self.begun, true) {
                self.line.push(' ');
            }
            if name != "message" {
                self.line.push_str(name);
                self.line.push('=');
            }
            self.result = value(&mut self.line);
        }
    }

    fn push(&mut self, field: &Field, value: &str) {
        self.write(field, |line| {
            line.push_str(value);
            Ok(())
        });
    }
}

impl Visit for Visitor {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            return self.push(field, value);
        }
        self.write(field, |line| {
            if !value.bytes().all(|octet| is_plain(octet) && !matches!(octet, b'"' | b'\\')) {
                return write!(line, "{value:?}");
            }
            for part in ["\"", value, "\""] {
                line.push_str(part);
            }
            Ok(())
        });
    }

    // Each message has some ten numbers.
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, itoa::Buffer::new().format(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, itoa::Buffer::new().format(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, if value { "true" } else { "false" });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.write(field, |line| write!(line, "{value:?}"));
    }
}

const fn is_plain(octet: u8) -> bool {
    matches!(octet, b' '..=b'~')
}

/// Control characters but line ends and tabs are shown by their numbers: a terminal that shows the log must not obey them.
fn write_escaped(out: &mut impl Write, text: &str) -> fmt::Result {
    // Nearly every text, and told without a branch for each character.
    if text.bytes().fold(true, |plain, octet| plain & is_plain(octet)) {
        return out.write_str(text);
    }
    let control = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    for part in text.split_inclusive(control) {
        match part.chars().next_back().filter(|c| control(*c)) {
            Some(last) => {
                out.write_str(&part[..part.len() - last.len_utf8()])?;
                write!(out, "{}", last.escape_default())?;
            }
            None => out.write_str(part)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing::{info, subscriber::with_default};
    use tracing_subscriber::fmt::{MakeWriter, fmt};

    use super::*;

    #[derive(Clone, Default)]
    struct Text(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Text {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Text {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn event() {
        let error: &(dyn std::error::Error + 'static) = &fmt::Error;
        info!(
            subscriber = %"192.0.2.1",
            class = "a \"b\" \u{e4}",
            none = None::<u64>,
            some = Some(7),
            below = -7,
            share = 0.5,
            yes = true,
            r#type = ?"x",
            status = Some(display(450)),
            error,
            "message of {}",
            1
        );
        info!("alone");
        info!(only = 1);
    }

    #[test]
    fn lines_are_as_without_it() {
        let [plain, usual] = [Text::default(), Text::default()];
        let subscriber = || fmt().without_time().with_ansi(false);
        with_default(subscriber().with_writer(plain.clone()).fmt_fields(PlainFields).finish(), event);
        with_default(subscriber().with_writer(usual.clone()).finish(), event);
        let text = |text: Text| String::from_utf8(text.0.lock().unwrap().clone()).unwrap();
        let usual = text(usual);
        assert!(usual.contains("message of 1 subscriber=192.0.2.1 class=\"a"), "{usual}");
        assert_eq!(text(plain), usual);
    }

    #[test]
    fn nothing_obeys_a_line() {
        let mut out = String::new();
        write_escaped(&mut out, "a\u{1b}[2Jb\u{9b}\u{7}\tc\nd\u{e4}\u{7f}").unwrap();
        assert_eq!(out, "a\\u{1b}[2Jb\\u{9b}\\u{7}\tc\nd\u{e4}\\u{7f}");
    }
}
