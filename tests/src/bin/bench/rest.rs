//! Requests to the daemon's API over one connection that stays open, as an automation's do.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

const PATIENCE: Duration = Duration::from_secs(30);
/// Of an answer's head.
const LINES_MAX: usize = 64;

pub(crate) struct Connection {
    answers: BufReader<UnixStream>,
}

/// What the benchmarks look at; the body has been read.
pub(crate) struct Answer {
    pub(crate) body: Vec<u8>,
    /// Whether the kernel holds the change already.
    pub(crate) applied: bool,
}

impl Connection {
    pub(crate) fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { answers: BufReader::new(stream) })
    }

    pub(crate) fn get(&mut self, target: &str) -> Result<Answer> {
        self.ask("GET", target, "")
    }

    /// The class of one subscriber, as RADIUS tells it, until the kernel holds it.
    pub(crate) fn put(&mut self, address: &str, class: &str) -> Result<()> {
        let body = format!(r#"{{"class":"{class}","source":"radius"}}"#);
        let answer = self.ask("PUT", &format!("/v1/subscribers/{address}"), &body)?;
        ensure!(answer.applied, "the kernel does not hold it: {}", String::from_utf8_lossy(&answer.body));
        Ok(())
    }

    /// Anything but success is an error.
    fn ask(&mut self, method: &str, target: &str, body: &str) -> Result<Answer> {
        let length = body.len();
        let request = format!("{method} {target} HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n{body}");
        self.answers.get_mut().write_all(request.as_bytes())?;
        let (mut status, mut length, mut applied) = (String::new(), None, false);
        self.answers.read_line(&mut status)?;
        for _ in 0..LINES_MAX {
            let mut line = String::new();
            ensure!(self.answers.read_line(&mut line)? > 0, "{method} {target}: no answer");
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = Some(value.trim().parse()?),
                "redirect-applied" => applied = value.trim() == "true",
                _ => {}
            }
        }
        let mut body = vec![0; length.with_context(|| format!("{method} {target}: an answer without a length"))?];
        self.answers.read_exact(&mut body)?;
        ensure!(status.starts_with("HTTP/1.1 200 "), "{method} {target}: {status}{}", String::from_utf8_lossy(&body));
        Ok(Answer { body, applied })
    }
}
