//! A message that comes in chunks (BDAT, RFC 3030): the client needs no leave to send them and gets an answer to each.
//!
//! ```text
//!            first BDAT                354              octets counted               LAST
//!  Command ------------> AwaitGo ------------> Chunk -------------------> Command, ... ---> Verdict
//!     |                    | refused             | fault, size, gateway lost: swallow the chunk, refuse
//!     `-- out of order     v                     v
//!         `------------> Skip -- octets counted, the answer --> Command
//! ```
//!
//! A chunk that nobody wants is swallowed to its last octet, for those are no commands. After a refused one the
//! transaction is over (section 2: the client must send RSET or start anew), and the gateway never gets its dot.

use std::{mem, time::Instant};

use super::{
    AwaitGo, CHUNK_RECEIVED, Chunks, GATEWAY_LOST, HELLO_FIRST, LINE_ENDINGS, MAIL_FIRST, NO_RECIPIENTS, Phase,
    RCPT_FIRST, Session, Stage, TOO_BIG,
};
use crate::{buffer::Buffer, command::Chunk, limits::TO_GATEWAY_HIGH, record::Cause, reply::Reply};

impl Session {
    pub(super) fn bdat(&mut self, chunk: Chunk, now: Instant) {
        let size_max = self.size_max();
        // Who announces twice the limit will not be read to the end.
        if chunk.octets > size_max.saturating_mul(2) {
            return self.cut(&TOO_BIG, now);
        }
        let Some(transaction) = &mut self.transaction else { return self.skip(chunk.octets, MAIL_FIRST, now) };
        if !self.helo.as_ref().is_some_and(|helo| helo.extended) {
            return self.skip(chunk.octets, HELLO_FIRST, now);
        }
        match (&transaction.stage, transaction.chunks.take(), transaction.accepted, &mut self.link) {
            (Stage::Live, Some(chunks), _, Some(_)) => self.begin_chunk(chunks, chunk, now),
            (_, None, 0, _) if transaction.refusal.is_none() => self.skip(chunk.octets, RCPT_FIRST, now),
            (_, None, 0, _) => {
                self.abandon(Cause::Gateway, now);
                self.skip(chunk.octets, NO_RECIPIENTS, now);
            }
            (Stage::Live, None, _, Some(link)) => {
                link.upstream.data(now);
                self.phase = Phase::AwaitGo(AwaitGo::Chunk(chunk));
            }
            _ => self.conclude(&GATEWAY_LOST, Cause::GatewayLost, 0, chunk.octets, now),
        }
    }

    /// The gateway awaits the text.
    pub(super) fn begin_chunk(&mut self, mut chunks: Box<Chunks>, chunk: Chunk, now: Instant) {
        if chunks.incoming.octets.saturating_add(chunk.octets) > self.size_max() {
            chunks.incoming.refused.get_or_insert((TOO_BIG, Cause::Size));
            self.hangup();
        }
        chunks.incoming.block_rest = self.settings.limits.data_block_octets;
        self.client_deadline = now + self.settings.timeouts.data_block;
        self.phase = Phase::Chunk { chunks, left: chunk.octets, last: chunk.last };
        self.chunk(&[], now);
    }

    /// Swallows `octets` of the client's before it gets this answer.
    pub(super) fn skip(&mut self, octets: u64, reply: Reply, now: Instant) {
        self.client_deadline = now + self.settings.timeouts.data_block;
        self.phase = Phase::Skip { left: octets, block_rest: self.settings.limits.data_block_octets, reply };
        self.chunk(&[], now);
    }

    /// Like `finish`, with an answer that follows the rest of a chunk.
    pub(super) fn conclude(&mut self, reply: &Reply, cause: Cause, octets: u64, rest: u64, now: Instant) {
        self.finish_silently(reply, cause, octets, now);
        self.skip(rest, reply.clone(), now);
    }

    /// Octets of a chunk that wait in `input`, as far as the gateway takes more; whether anything came of it.
    pub(super) fn chunk_from_input(&mut self, now: Instant) -> bool {
        if !matches!(self.phase, Phase::Chunk { .. } | Phase::Skip { .. })
            || self.input.is_empty()
            || self.gateway_out().len() >= TO_GATEWAY_HIGH
        {
            return false;
        }
        let mut input = mem::take(&mut self.input);
        input.take(self.chunk(input.filled(), now));
        self.input = input;
        true
    }

    /// Takes octets of a chunk; returns how many.
    pub(super) fn chunk(&mut self, bytes: &[u8], now: Instant) -> usize {
        match mem::replace(&mut self.phase, Phase::Command) {
            Phase::Chunk { mut chunks, left, last } => {
                let (bytes, left) = part(bytes, left);
                self.spend(&mut chunks.incoming.block_rest, bytes.len() as u64, now);
                self.take_chunk(&mut chunks, bytes, last && left == 0, now);
                if left > 0 {
                    self.phase = Phase::Chunk { chunks, left, last };
                } else {
                    self.end_chunk(chunks, last, now);
                }
                bytes.len()
            }
            Phase::Skip { left, mut block_rest, reply } => {
                let (bytes, left) = part(bytes, left);
                self.spend(&mut block_rest, bytes.len() as u64, now);
                if left > 0 {
                    self.phase = Phase::Skip { left, block_rest, reply };
                } else {
                    self.client_deadline = now + self.settings.timeouts.command;
                    self.answer(&reply, now);
                }
                bytes.len()
            }
            phase => {
                self.phase = phase;
                0
            }
        }
    }

    fn take_chunk(&mut self, Chunks { stuffer, incoming }: &mut Chunks, bytes: &[u8], end: bool, now: Instant) {
        if incoming.refused.is_some() {
            return;
        }
        let write = |out: &mut Buffer| {
            stuffer.text(bytes, |slice| out.extend(slice));
            if end {
                stuffer.end(|slice| out.extend(slice));
            }
        };
        self.pass_on(incoming, end || !bytes.is_empty(), bytes.len(), write, now);
        incoming.octets += bytes.len() as u64;
        incoming.refused = if stuffer.fault().is_some() {
            Some((LINE_ENDINGS, Cause::LineEndings))
        } else {
            incoming.judge(bytes, self.size_max())
        };
        if incoming.refused.is_some() {
            self.hangup();
        }
    }

    fn end_chunk(&mut self, mut chunks: Box<Chunks>, last: bool, now: Instant) {
        let octets = chunks.incoming.octets;
        if let Some((reply, cause)) = chunks.incoming.refused.take() {
            return self.finish(&reply, cause, octets, now);
        }
        self.client_deadline = now + self.settings.timeouts.command;
        if last {
            if let Some(link) = &mut self.link {
                link.upstream.finish(now);
            }
            self.phase = Phase::Verdict { octets };
            self.note_sent(now);
        } else {
            if let Some(transaction) = &mut self.transaction {
                transaction.chunks = Some(chunks);
            }
            self.answer(&CHUNK_RECEIVED, now);
        }
    }
}

/// What of `bytes` belongs to the `left` octets of a chunk, and what is left of it then.
fn part(bytes: &[u8], left: u64) -> (&[u8], u64) {
    let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    (&bytes[..count], left - count as u64)
}
