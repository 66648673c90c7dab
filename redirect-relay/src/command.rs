//! A command line -> [`Command`], or the refusal it earns (RFC 5321 sections 4.1 and 4.3.2).
//!
//! Nothing is repaired: what is not exactly a command is refused. Lines that no mail client sends by mistake (another
//! protocol, a bare CR or LF, a relay's private verbs) also end the session.

use std::mem;

use zeroize::Zeroizing;

use crate::{
    address::{self, AddressError, Recipient, Sender},
    auth::Response,
    dsn::{self, DsnError, Notify, Return},
    limits::{
        ANY_LINE_MAX, AUTH_LINE_MAX, COMMAND_LINE_MAX, DOMAIN_MAX, DSN_MAIL_ROOM, DSN_RCPT_ROOM, MAIL_AUTH_ROOM,
        MAIL_LINE_MAX, PRIORITY_ROOM, SMTPUTF8_ROOM,
    },
    reply::Reply,
    trace::Helo,
};

/// Letters of the longest verb, and one more.
const VERB_MAX: usize = 9;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Hello(Helo),
    Mail(Mail),
    Rcpt(Rcpt),
    Data,
    Bdat(Chunk),
    Starttls,
    Auth(Login),
    Rset,
    Noop,
    Quit,
    Vrfy,
}

/// MAIL with its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mail {
    pub(crate) sender: Sender,
    /// `SIZE=` (RFC 1870), octets. More digits than fit in the number are the largest number.
    pub(crate) size: Option<u64>,
    pub(crate) body: Option<Body>,
    /// RFC 6531: addresses and header fields may hold UTF-8.
    pub(crate) smtputf8: bool,
    /// `RET=` and `ENVID=` (RFC 3461).
    pub(crate) ret: Option<Return>,
    pub(crate) envid: Option<String>,
    /// `MT-PRIORITY=` (RFC 6710).
    pub(crate) priority: Option<i8>,
}

impl Mail {
    /// Whether it has anything that HELO does not allow.
    pub(crate) const fn is_extended(&self) -> bool {
        self.size.is_some()
            || self.body.is_some()
            || self.smtputf8
            || self.ret.is_some()
            || self.envid.is_some()
            || self.priority.is_some()
    }

    /// The message's priority: one that says nothing of it has 0 (RFC 6710 section 4.1).
    pub(crate) fn priority(&self) -> i8 {
        self.priority.unwrap_or(0)
    }
}

/// RCPT with its parameters (RFC 3461).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rcpt {
    pub(crate) recipient: Recipient,
    pub(crate) notify: Option<Notify>,
    pub(crate) orcpt: Option<String>,
}

impl Rcpt {
    /// As [`Mail::is_extended`].
    pub(crate) const fn is_extended(&self) -> bool {
        self.notify.is_some() || self.orcpt.is_some()
    }
}

/// BDAT (RFC 3030): so many octets of message text follow the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) octets: u64,
    pub(crate) last: bool,
}

/// AUTH (RFC 4954 section 4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) mechanism: String,
    /// Base64.
    pub(crate) initial: Option<Response>,
}

/// What was offered to the client beyond what is always offered, and so may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an extension of its own")]
pub(crate) struct Grammar {
    pub(crate) smtputf8: bool,
    pub(crate) dsn: bool,
    pub(crate) priority: bool,
    pub(crate) auth: bool,
}

impl Grammar {
    /// Octets of a line with this verb, its CRLF included: each extension in use has its allowance.
    fn line_max(self, verb: &[u8]) -> usize {
        let room = |offered: bool, room: usize| if offered { room } else { 0 };
        match verb {
            b"MAIL" => {
                MAIL_LINE_MAX
                    + room(self.smtputf8, SMTPUTF8_ROOM)
                    + room(self.dsn, DSN_MAIL_ROOM)
                    + room(self.priority, PRIORITY_ROOM)
                    + room(self.auth, MAIL_AUTH_ROOM)
            }
            b"AUTH" if self.auth => AUTH_LINE_MAX,
            b"RCPT" => COMMAND_LINE_MAX + room(self.dsn, DSN_RCPT_ROOM),
            _ => COMMAND_LINE_MAX,
        }
    }
}

/// `BODY=` (RFC 6152).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    SevenBit,
    EightBitMime,
}

/// The answer to a line that is no acceptable command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reply: Reply,
    /// The session ends with this reply.
    pub(crate) close: bool,
}

const fn refuse(code: u16, subject: u16, detail: u16, text: &'static str) -> Refusal {
    Refusal { reply: Reply::new(code, subject, detail, text), close: false }
}

const fn close(code: u16, subject: u16, detail: u16, text: &'static str) -> Refusal {
    Refusal { reply: Reply::new(code, subject, detail, text), close: true }
}

const NOT_SMTP: Refusal = close(500, 5, 2, "This is an SMTP server");
const LINE_ENDING: Refusal = close(500, 5, 2, "Lines end in CRLF, and contain no CR, LF or NUL");
const TOO_LONG: Refusal = close(500, 5, 2, "Line too long");
/// Also the session's answer to what its client's class does not have.
pub(crate) const NOT_OFFERED: Refusal = refuse(502, 5, 1, "Command not implemented");
const PRIVATE: Refusal = close(502, 5, 1, "Command not accepted from a client");
const UNKNOWN: Refusal = refuse(500, 5, 2, "Command unrecognized");
const SYNTAX: Refusal = refuse(501, 5, 2, "Syntax error");
const ARGUMENTS: Refusal = refuse(501, 5, 4, "Syntax error in arguments");
const EIGHT_BIT: Refusal = refuse(501, 5, 2, "Octets outside ASCII are not accepted");
const EIGHT_BIT_ADDRESS: Refusal = refuse(553, 6, 7, "SMTPUTF8 is not offered, the address must be ASCII");
const BAD_CHUNK: Refusal = close(501, 5, 4, "Not the size of a chunk");
/// Also the session's answer to such a recipient.
pub(crate) const NEEDS_SMTPUTF8: Refusal = refuse(553, 6, 7, "The address needs the parameter SMTPUTF8");
const UNKNOWN_PARAMETER: Refusal = refuse(555, 5, 4, "Parameter not recognized or not implemented");
const DUPLICATE_PARAMETER: Refusal = refuse(501, 5, 4, "Parameter given twice");
const BAD_SENDER: Refusal = refuse(501, 1, 7, "Bad sender address syntax");
const BAD_RECIPIENT: Refusal = refuse(501, 1, 3, "Bad recipient address syntax");
const NO_SOURCE_ROUTE: Refusal = refuse(550, 7, 1, "Source routes are not accepted");
const NO_DETOUR: Refusal = refuse(550, 7, 1, "Relaying through the recipient's server is not accepted");

/// Takes one line off the front of `input`: its length with line end, and what it says. `None`: the line is not whole.
pub(crate) fn next(input: &[u8], grammar: Grammar) -> Option<(usize, Result<Command, Refusal>)> {
    let first = *input.first()?;
    // A TLS ClientHello or other noise need not hold a line end at all, so it is judged by its first octet.
    if !matches!(first, b'\r' | b'\n' | 0 | b' '..=b'~') {
        return Some((input.len(), Err(NOT_SMTP)));
    }
    let Some(end) = memchr::memchr(b'\n', input) else {
        let whole = input.len() >= grammar.line_max(verb(input, &mut [0; VERB_MAX]));
        return whole.then_some((input.len(), Err(TOO_LONG)));
    };
    let length = end + 1;
    Some((length, line(&input[..length], grammar)))
}

/// How many octets may wait for the end of the line that they begin.
pub(crate) fn room(input: &[u8], grammar: Grammar) -> usize {
    grammar.line_max(verb(input, &mut [0; VERB_MAX])).max(ANY_LINE_MAX)
}

/// The client's response to a challenge (RFC 4954 section 4): a line of base64, or "*".
pub(crate) fn response(input: &[u8]) -> Option<(usize, Result<Response, Refusal>)> {
    let Some(end) = memchr::memchr(b'\n', input) else {
        return (input.len() >= AUTH_LINE_MAX).then_some((input.len(), Err(TOO_LONG)));
    };
    let length = end + 1;
    let Some(line) = input[..length].strip_suffix(b"\r\n") else { return Some((length, Err(LINE_ENDING))) };
    if length > AUTH_LINE_MAX {
        return Some((length, Err(TOO_LONG)));
    }
    if line.iter().any(|b| matches!(b, b'\r' | 0)) {
        return Some((length, Err(LINE_ENDING)));
    }
    // What is no text is no base64 either; the exchange says so.
    let text = Zeroizing::new(String::from_utf8(line.to_vec()).unwrap_or_else(|_| "?".to_owned()));
    Some((length, Ok(Response(text))))
}

/// The letters that a line begins with, in upper case; more of them than any verb has are no verb.
fn verb<'v>(line: &[u8], letters: &'v mut [u8; VERB_MAX]) -> &'v [u8] {
    let length = line.iter().take(VERB_MAX).take_while(|octet| octet.is_ascii_alphabetic()).count();
    let verb = &mut letters[..length];
    verb.copy_from_slice(&line[..length]);
    verb.make_ascii_uppercase();
    verb
}

fn line(line: &[u8], grammar: Grammar) -> Result<Command, Refusal> {
    let mut letters = [0; VERB_MAX];
    let verb = verb(line, &mut letters);
    if line.len() > grammar.line_max(verb) {
        return Err(TOO_LONG);
    }
    let line = line.strip_suffix(b"\r\n").ok_or(LINE_ENDING)?;
    if line.iter().any(|b| matches!(b, b'\r' | 0)) {
        return Err(LINE_ENDING);
    }
    if verb.is_empty() && !line.is_empty() {
        return Err(NOT_SMTP);
    }
    let path = matches!(verb, b"MAIL" | b"RCPT");
    let utf8 = grammar.smtputf8 && (path || verb == b"VRFY");
    let rest = match str::from_utf8(&line[verb.len()..]) {
        Ok(rest) if utf8 || rest.is_ascii() => rest,
        Ok(_) if path => return Err(EIGHT_BIT_ADDRESS),
        _ if path && !grammar.smtputf8 => return Err(EIGHT_BIT_ADDRESS),
        _ => return Err(EIGHT_BIT),
    };
    // Nearly every line is ASCII, and told without a look at its characters.
    let plain = rest.bytes().all(|octet| matches!(octet, b' '..=b'~'));
    if !plain && rest.chars().any(char::is_control) {
        return Err(SYNTAX);
    }
    command(verb, rest, grammar)
}

/// `rest` is what follows the verb, without control characters, with the space that should begin it.
fn command(verb: &[u8], rest: &str, grammar: Grammar) -> Result<Command, Refusal> {
    let arguments = rest.trim_matches(' ');
    let separated = rest.is_empty() || rest.starts_with(' ');
    match verb {
        b"GET" | b"POST" | b"PUT" | b"HEAD" | b"CONNECT" | b"OPTIONS" | b"DELETE" | b"PATCH" | b"TRACE" | b"PRI"
        | b"SSH" => Err(NOT_SMTP),
        b"XCLIENT" | b"XFORWARD" | b"PROXY" => Err(PRIVATE),
        // What follows is message text and not commands: where its extent is not known, nothing can follow.
        b"BDAT" if !separated => Err(BAD_CHUNK),
        _ if !separated => Err(UNKNOWN),
        b"EHLO" => hello(arguments, true),
        b"HELO" => hello(arguments, false),
        b"MAIL" => mail(arguments, grammar),
        b"RCPT" => rcpt(arguments, grammar),
        b"BDAT" => bdat(arguments),
        b"STARTTLS" => alone(arguments, Command::Starttls),
        b"AUTH" => auth(arguments),
        b"DATA" => alone(arguments, Command::Data),
        b"RSET" => alone(arguments, Command::Rset),
        b"QUIT" => alone(arguments, Command::Quit),
        b"NOOP" => Ok(Command::Noop),
        b"VRFY" if arguments.is_empty() => Err(ARGUMENTS),
        b"VRFY" => Ok(Command::Vrfy),
        b"EXPN" | b"ETRN" | b"ATRN" | b"TURN" | b"BURL" | b"HELP" | b"SEND" | b"SOML" | b"SAML" => Err(NOT_OFFERED),
        _ => Err(UNKNOWN),
    }
}

fn alone(arguments: &str, command: Command) -> Result<Command, Refusal> {
    if arguments.is_empty() { Ok(command) } else { Err(ARGUMENTS) }
}

/// Any one word will do as a name: clients that are not mail servers say all sorts of things here, and the relay knows
/// them by address. The word is reduced to harmless characters where it is repeated.
fn hello(name: &str, extended: bool) -> Result<Command, Refusal> {
    if name.is_empty() || name.contains(' ') || name.len() > DOMAIN_MAX {
        return Err(ARGUMENTS);
    }
    Ok(Command::Hello(Helo { name: name.to_owned(), extended }))
}

fn mail(arguments: &str, grammar: Grammar) -> Result<Command, Refusal> {
    let path = keyword(arguments, "FROM:").ok_or(SYNTAX)?;
    let (sender, rest) = address::sender(path).map_err(|error| match error {
        AddressError::Syntax => BAD_SENDER,
        AddressError::SourceRoute => NO_SOURCE_ROUTE,
        AddressError::Detour => NO_DETOUR,
    })?;
    let mut mail = Mail { sender, size: None, body: None, smtputf8: false, ret: None, envid: None, priority: None };
    for parameter in parameters(rest, BAD_SENDER)? {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if name.eq_ignore_ascii_case("SIZE") {
            let size = size(value).ok_or(ARGUMENTS)?;
            if mail.size.replace(size).is_some() {
                return Err(DUPLICATE_PARAMETER);
            }
        } else if name.eq_ignore_ascii_case("BODY") {
            let body = match value.to_ascii_uppercase().as_str() {
                "7BIT" => Body::SevenBit,
                "8BITMIME" => Body::EightBitMime,
                _ => return Err(ARGUMENTS),
            };
            if mail.body.replace(body).is_some() {
                return Err(DUPLICATE_PARAMETER);
            }
        } else if grammar.smtputf8 && parameter.eq_ignore_ascii_case("SMTPUTF8") {
            if mem::replace(&mut mail.smtputf8, true) {
                return Err(DUPLICATE_PARAMETER);
            }
        } else if grammar.auth && name.eq_ignore_ascii_case("AUTH") {
            // Who wrote the message is not ours to vouch for: checked, and not passed on (RFC 4954 section 5).
            if value != "<>" && (value.is_empty() || !dsn::is_xtext(value)) {
                return Err(ARGUMENTS);
            }
        } else if grammar.priority && name.eq_ignore_ascii_case("MT-PRIORITY") {
            if mail.priority.replace(priority(value).ok_or(ARGUMENTS)?).is_some() {
                return Err(DUPLICATE_PARAMETER);
            }
        } else if grammar.dsn && name.eq_ignore_ascii_case("RET") {
            if mail.ret.replace(dsn::ret(value)?).is_some() {
                return Err(DUPLICATE_PARAMETER);
            }
        } else if grammar.dsn && name.eq_ignore_ascii_case("ENVID") {
            if mail.envid.replace(dsn::envid(value)?).is_some() {
                return Err(DUPLICATE_PARAMETER);
            }
        } else {
            return Err(UNKNOWN_PARAMETER);
        }
    }
    if !mail.smtputf8 && !mail.sender.is_ascii() {
        return Err(NEEDS_SMTPUTF8);
    }
    Ok(Command::Mail(mail))
}

fn rcpt(arguments: &str, grammar: Grammar) -> Result<Command, Refusal> {
    let path = keyword(arguments, "TO:").ok_or(SYNTAX)?;
    let (recipient, rest) = address::recipient(path).map_err(|error| match error {
        AddressError::Syntax => BAD_RECIPIENT,
        AddressError::SourceRoute => NO_SOURCE_ROUTE,
        AddressError::Detour => NO_DETOUR,
    })?;
    let mut rcpt = Rcpt { recipient, notify: None, orcpt: None };
    for parameter in parameters(rest, BAD_RECIPIENT)? {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let twice = if grammar.dsn && name.eq_ignore_ascii_case("NOTIFY") {
            rcpt.notify.replace(dsn::notify(value)?).is_some()
        } else if grammar.dsn && name.eq_ignore_ascii_case("ORCPT") {
            rcpt.orcpt.replace(dsn::orcpt(value)?).is_some()
        } else {
            return Err(UNKNOWN_PARAMETER);
        };
        if twice {
            return Err(DUPLICATE_PARAMETER);
        }
    }
    Ok(Command::Rcpt(rcpt))
}

/// `BDAT SP chunk-size [SP "LAST"]` (RFC 3030 section 2). A size that no number holds is a size that nobody sends.
fn bdat(arguments: &str) -> Result<Command, Refusal> {
    let (octets, last) = match arguments.split_once(' ') {
        Some((octets, last)) if last.trim_start_matches(' ').eq_ignore_ascii_case("LAST") => (octets, true),
        Some(_) => return Err(BAD_CHUNK),
        None => (arguments, false),
    };
    let octets = size(octets).filter(|octets| *octets < u64::MAX).ok_or(BAD_CHUNK)?;
    Ok(Command::Bdat(Chunk { octets, last }))
}

fn auth(arguments: &str) -> Result<Command, Refusal> {
    let (mechanism, initial) = match arguments.split_once(' ') {
        Some((mechanism, initial)) if !initial.contains(' ') => (mechanism, Some(initial)),
        Some(_) => return Err(ARGUMENTS),
        None => (arguments, None),
    };
    if mechanism.is_empty() {
        return Err(ARGUMENTS);
    }
    let initial = initial.map(|text| Response(Zeroizing::new(text.to_owned())));
    Ok(Command::Auth(Login { mechanism: mechanism.to_owned(), initial }))
}

/// A malformed DSN value is an argument like any other.
impl From<DsnError> for Refusal {
    fn from(_: DsnError) -> Self {
        ARGUMENTS
    }
}

/// Spaces after the colon are not in the grammar, but old clients send them and they can mean nothing else.
fn keyword<'a>(arguments: &'a str, keyword: &str) -> Option<&'a str> {
    let (head, rest) = arguments.split_at_checked(keyword.len())?;
    head.eq_ignore_ascii_case(keyword).then(|| rest.trim_start_matches(' '))
}

/// What follows a path: nothing, or a space before each parameter.
fn parameters(rest: &str, otherwise: Refusal) -> Result<impl Iterator<Item = &str>, Refusal> {
    if !rest.is_empty() && !rest.starts_with(' ') {
        return Err(otherwise);
    }
    Ok(rest.split(' ').filter(|parameter| !parameter.is_empty()))
}

/// `size-value = 1*20DIGIT`; 20 digits may exceed the number, and such a message is too large whatever its size.
fn size(value: &str) -> Option<u64> {
    let digits = (1..=20).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| value.parse().unwrap_or(u64::MAX))
}

/// `priority-value = ( ["-"] NZDIGIT ) / "0"` (RFC 6710 section 6).
fn priority(value: &str) -> Option<i8> {
    let digits = value.strip_prefix('-').unwrap_or(value);
    let well = digits.len() == 1 && digits.as_bytes()[0].is_ascii_digit() && value != "-0";
    if well { value.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Shows a command in short, and a refusal as its code, status and whether it closes.
    fn show_in(input: &[u8], grammar: Grammar) -> String {
        match next(input, grammar) {
            None => "more".into(),
            Some((_, Ok(command))) => match command {
                Command::Hello(helo) => format!("hello {} {}", helo.name, helo.extended),
                Command::Mail(mail) => format!("mail {} {:?} {:?}", mail.sender, mail.size, mail.body),
                Command::Rcpt(rcpt) => format!("rcpt {} {:?} {:?}", rcpt.recipient, rcpt.notify, rcpt.orcpt),
                Command::Bdat(chunk) => format!("bdat {} {}", chunk.octets, chunk.last),
                command => format!("{command:?}").to_lowercase(),
            },
            Some((_, Err(refusal))) => {
                let mut out = crate::buffer::Buffer::default();
                refusal.reply.write(&mut out);
                let text = String::from_utf8_lossy(out.filled()).into_owned();
                let status = text.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ");
                if refusal.close { format!("{status} close") } else { status }
            }
        }
    }

    fn show(input: &[u8]) -> String {
        show_in(input, Grammar::default())
    }

    fn check(line: &str, expected: &str) {
        assert_eq!(show(format!("{line}\r\n").as_bytes()), expected, "{line:?}");
    }

    #[test]
    fn commands() {
        check("EHLO pc", "hello pc true");
        check("helo [192.0.2.1]", "hello [192.0.2.1] false");
        check("MAIL FROM:<>", "mail <> None None");
        check("mail from: <a@b>  size=7 BODY=8bitmime ", "mail <a@b> Some(7) Some(EightBitMime)");
        check("MAIL FROM:<a@b> BODY=7BIT", "mail <a@b> None Some(SevenBit)");
        check("MAIL FROM:<a@b> SIZE=99999999999999999999", "mail <a@b> Some(18446744073709551615) None");
        check("RCPT TO:<a@b>", "rcpt <a@b> None None");
        check("RCPT TO:<PostMaster>", "rcpt <postmaster> None None");
        check("DATA", "data");
        check("DATA ", "data");
        check("rset", "rset");
        check("NOOP whatever", "noop");
        check("QUIT", "quit");
        check("VRFY a", "vrfy");
    }

    #[test]
    fn syntax_errors() {
        check("", "500 5.5.2");
        check("FOO", "500 5.5.2");
        check("DATA<", "500 5.5.2");
        check("EHLO", "501 5.5.4");
        check("EHLO a b", "501 5.5.4");
        check(&format!("EHLO {}", "a".repeat(256)), "501 5.5.4");
        check("DATA x", "501 5.5.4");
        check("QUIT x", "501 5.5.4");
        check("VRFY", "501 5.5.4");
        check("MAIL", "501 5.5.2");
        check("MAIL TO:<a@b>", "501 5.5.2");
        check("MAIL FROM:a@b", "501 5.1.7");
        check("MAIL FROM:<a@b>SIZE=1", "501 5.1.7");
        check("RCPT TO:<a@b>x", "501 5.1.3");
        check("RCPT TO:<>", "501 5.1.3");
        check("NOOP \u{1}", "501 5.5.2");
        check("MAIL FROM:<a\tb@c>", "501 5.5.2");
    }

    #[test]
    fn parameters_that_were_not_offered() {
        check("MAIL FROM:<a@b> SMTPUTF8", "555 5.5.4");
        check("MAIL FROM:<a@b> AUTH=<>", "555 5.5.4");
        check("MAIL FROM:<a@b> SIZE=1 SIZE=1", "501 5.5.4");
        check("MAIL FROM:<a@b> BODY=7BIT BODY=7BIT", "501 5.5.4");
        check("MAIL FROM:<a@b> SIZE=-1", "501 5.5.4");
        check("MAIL FROM:<a@b> SIZE=", "501 5.5.4");
        check("MAIL FROM:<a@b> SIZE=999999999999999999999", "501 5.5.4");
        check("MAIL FROM:<a@b> BODY=BINARYMIME", "501 5.5.4");
        check("RCPT TO:<a@b> NOTIFY=NEVER", "555 5.5.4");
        check("RCPT TO:<a@b> ORCPT=rfc822;a@b", "555 5.5.4");
    }

    #[test]
    fn commands_that_were_not_offered() {
        for line in ["EXPN x", "ETRN x", "TURN", "HELP", "BURL x"] {
            check(line, "502 5.5.1");
        }
        for line in ["XCLIENT ADDR=192.0.2.1", "XFORWARD NAME=x", "PROXY TCP4 a b 1 2"] {
            check(line, "502 5.5.1 close");
        }
    }

    #[test]
    fn chunks() {
        check("BDAT 0", "bdat 0 false");
        check("bdat 86 last", "bdat 86 true");
        check("BDAT 18446744073709551614  LAST ", "bdat 18446744073709551614 true");
        for line in
            ["BDAT", "BDAT x", "BDAT -1", "BDAT +1", "BDAT 1 2", "BDAT 1 LAST x", "BDAT LAST", "BDAT5", "BDAT 0x5"]
        {
            check(line, "501 5.5.4 close");
        }
        check("BDAT 18446744073709551615", "501 5.5.4 close");
        check("BDAT 99999999999999999999 LAST", "501 5.5.4 close");
    }

    const EVERYTHING: Grammar = Grammar { smtputf8: true, dsn: true, priority: true, auth: true };

    #[test]
    fn parameters_that_were_offered() {
        let check = |line: &str, expected: &str| {
            assert_eq!(show_in(format!("{line}\r\n").as_bytes(), EVERYTHING), expected, "{line:?}");
        };
        check("RCPT TO:<a@b> NOTIFY=never", "rcpt <a@b> Some(Never) None");
        check("RCPT TO:<a@b> ORCPT=rfc822;a+2Bb@c", "rcpt <a@b> None Some(\"rfc822;a+2Bb@c\")");
        check("RCPT TO:<a@b> NOTIFY=NEVER NOTIFY=NEVER", "501 5.5.4");
        check("RCPT TO:<a@b> ORCPT=rfc822;a ORCPT=rfc822;a", "501 5.5.4");
        check("RCPT TO:<a@b> ORCPT=rfc822;a+0D+0Ab", "501 5.5.4");
        check("RCPT TO:<a@b> RET=FULL", "555 5.5.4");
        check("MAIL FROM:<a@b> RET=full ENVID=x+3Dy", "mail <a@b> None None");
        check("MAIL FROM:<a@b> RET=some", "501 5.5.4");
        check("MAIL FROM:<a@b> ENVID=", "501 5.5.4");
        check("MAIL FROM:<a@b> ENVID=x+0Dy", "501 5.5.4");
        check("MAIL FROM:<a@b> RET=FULL RET=HDRS", "501 5.5.4");
        check("MAIL FROM:<a@b> ENVID=1 ENVID=2", "501 5.5.4");
        check("MAIL FROM:<\u{3b4}@b> SMTPUTF8", "mail <\u{3b4}@b> None None");
        check("MAIL FROM:<\u{3b4}@b>", "553 5.6.7");
        check("MAIL FROM:<a@b> SMTPUTF8=1", "555 5.5.4");
        check("MAIL FROM:<a@b> SMTPUTF8 SMTPUTF8", "501 5.5.4");
        check("RCPT TO:<\u{3b4}@b>", "rcpt <\u{3b4}@b> None None");
        check("RCPT TO:<a\u{85}@b>", "501 5.5.2");
        assert_eq!(show_in(b"RCPT TO:<\xff@b>\r\n", EVERYTHING), "501 5.5.2");
        check("NOOP \u{3b4}", "501 5.5.2");
        let long = |length: usize| format!("RCPT TO:<a@b>{}", " ".repeat(length - 15));
        check(&long(1048), "rcpt <a@b> None None");
        check(&long(1049), "500 5.5.2 close");
        let long = |length: usize| format!("MAIL FROM:<a@b>{}", " ".repeat(length - 17));
        check(&long(1196), "mail <a@b> None None");
        check(&long(1197), "500 5.5.2 close");
        check("MAIL FROM:<a@b> AUTH=<>", "mail <a@b> None None");
        check("MAIL FROM:<a@b> AUTH=e+3Dmc2@example.com", "mail <a@b> None None");
        check("MAIL FROM:<a@b> AUTH=", "501 5.5.4");
        check("MAIL FROM:<a@b> AUTH=x+0D+0A", "501 5.5.4");
    }

    #[test]
    fn priorities() {
        let priority = |value: &str| {
            let line = format!("MAIL FROM:<a@b> mt-priority={value}\r\n");
            match next(line.as_bytes(), EVERYTHING) {
                Some((_, Ok(Command::Mail(mail)))) => mail.priority,
                other => {
                    assert_eq!(other.unwrap().1, Err(ARGUMENTS), "{value:?}");
                    None
                }
            }
        };
        for value in -9..=9_i8 {
            assert_eq!(priority(&value.to_string()), Some(value));
        }
        for value in ["", "-", "-0", "+1", "00", "10", "-10", "1x", "\u{661}", "--1"] {
            assert_eq!(priority(value), None, "{value:?}");
        }
        let show = |line: &str| show_in(line.as_bytes(), EVERYTHING);
        assert_eq!(show("MAIL FROM:<a@b> MT-PRIORITY\r\n"), "501 5.5.4");
        assert_eq!(show("MAIL FROM:<a@b> MT-PRIORITY=1 MT-PRIORITY=1\r\n"), "501 5.5.4");
        check("MAIL FROM:<a@b> MT-PRIORITY=1", "555 5.5.4");
    }

    #[test]
    fn security_commands() {
        check("STARTTLS", "starttls");
        check("STARTTLS x", "501 5.5.4");
        check("AUTH", "501 5.5.4");
        check("AUTH PLAIN AAAA x", "501 5.5.4");
        let shown = show(b"AUTH PLAIN AGEAYg==\r\n");
        assert!(shown.contains("plain") && !shown.contains("ageayg"), "{shown}");
        let long = |length: usize| format!("AUTH PLAIN {}\r\n", "A".repeat(length - 13));
        assert!(show_in(long(12_288).as_bytes(), EVERYTHING).starts_with("auth"));
        assert_eq!(show_in(long(12_289).as_bytes(), EVERYTHING), "500 5.5.2 close");
        assert_eq!(show(long(513).as_bytes()), "500 5.5.2 close", "nobody has a use for it");
    }

    #[test]
    fn attack_36_responses() {
        let text = |input: &[u8]| {
            response(input).map(|(length, response)| (length, response.map(|response| response.0.to_string()).ok()))
        };
        assert_eq!(text(b"AGEAYg==\r\nQUIT"), Some((10, Some("AGEAYg==".into()))));
        assert_eq!(text(b"*\r\n"), Some((3, Some("*".into()))));
        assert_eq!(text(b"\xff\r\n"), Some((3, Some("?".into()))));
        assert_eq!(text(b"A\n"), Some((2, None)));
        assert_eq!(text(b"A\rB\r\n"), Some((5, None)));
        assert_eq!(text(b"A\r"), None);
        assert_eq!(text(&[b'A'; 12_287]), None);
        assert_eq!(text(&[b'A'; 12_288]), Some((12_288, None)));
        assert_eq!(text(format!("{}\r\n", "A".repeat(12_287)).as_bytes()), Some((12_289, None)));
    }

    #[test]
    fn other_protocols() {
        check("GET / HTTP/1.1", "500 5.5.2 close");
        check("POST / HTTP/1.1", "500 5.5.2 close");
        check("CONNECT a:25 HTTP/1.1", "500 5.5.2 close");
        check("SSH-2.0-x", "500 5.5.2 close");
        check(" EHLO a", "500 5.5.2 close");
        check("{}", "500 5.5.2 close");
        assert_eq!(show(b"\x16\x03\x01\x02"), "500 5.5.2 close", "a ClientHello, before any line end");
        assert_eq!(show(b"\xff"), "500 5.5.2 close");
    }

    #[test]
    fn line_endings() {
        for line in [
            "NOOP\n",
            "NOOP a\nb\r\n",
            "NOOP a\rb\r\n",
            "NOOP\r\r\n",
            "NOOP \0\r\n",
            "\n",
            "\0\r\n",
            "RCPT TO:<a@b\r>\r\n",
        ] {
            assert_eq!(show(line.as_bytes()), "500 5.5.2 close", "{line:?}");
        }
        assert_eq!(show(b"NOOP\r"), "more");
    }

    #[test]
    fn eight_bit_octets() {
        check("MAIL FROM:<\u{e9}@b>", "553 5.6.7");
        check("RCPT TO:<\u{e9}@b>", "553 5.6.7");
        check("EHLO \u{e9}", "501 5.5.2");
        assert_eq!(show(b"RCPT TO:<\xff@b>\r\n"), "553 5.6.7");
    }

    #[test]
    fn lengths() {
        let noop = |length: usize| format!("NOOP {}", "x".repeat(length - 7));
        check(&noop(512), "noop");
        check(&noop(513), "500 5.5.2 close");
        let mail = |length: usize| format!("MAIL FROM:<a@b>{}", " ".repeat(length - 17));
        check(&mail(555), "mail <a@b> None None");
        check(&mail(556), "500 5.5.2 close");
        assert_eq!(show(&[b'A'; 511]), "more");
        assert_eq!(show(&[b'A'; 512]), "500 5.5.2 close");
        assert_eq!(show(format!("MAIL {}", "A".repeat(549)).as_bytes()), "more");
        assert_eq!(show(format!("MAIL {}", "A".repeat(550)).as_bytes()), "500 5.5.2 close");
    }

    proptest! {
        #[test]
        fn any_octets(input in proptest::collection::vec(any::<u8>(), 0..700)) {
            for grammar in [Grammar::default(), EVERYTHING] {
                if let Some((length, _)) = next(&input, grammar) {
                    prop_assert!((1..=input.len()).contains(&length));
                }
            }
        }

        /// A line is judged the same however much of what follows it has arrived.
        #[test]
        fn what_follows_does_not_matter(line in "[A-Z]{0,4}[ :<>@a-z]{0,12}", tail in "[ -~]{0,9}") {
            let whole = format!("{line}\r\n");
            let both = [whole.clone(), format!("{whole}{tail}")].map(|input| next(input.as_bytes(), EVERYTHING));
            prop_assert_eq!(&both[0], &both[1]);
        }
    }
}
