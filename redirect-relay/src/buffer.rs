//! A byte queue: filled at the end, taken from the front, without memory of its own while it is empty and was large.

use zeroize::Zeroize as _;

use crate::limits::{BUFFER_KEPT, BUFFER_LEAST};

#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    taken: usize,
}

impl Buffer {
    /// What has been put in and not been taken.
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Everything that is in memory, taken or not.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> &[u8] {
        &self.bytes
    }

    #[inline]
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    /// Makes room for so many octets, so that what comes in pieces moves nothing.
    #[inline]
    pub(crate) fn reserve(&mut self, room: usize) {
        if room > self.bytes.capacity() - self.bytes.len() {
            self.make_room(room);
        }
    }

    #[cold]
    fn make_room(&mut self, room: usize) {
        // The taken front is only reclaimed here, and only when that makes room: each byte moves at most once per fill.
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        if room > self.bytes.capacity() - self.bytes.len() {
            self.grow(room);
        }
    }

    /// Half a secret may be here already: it must not stay in memory that is given back.
    fn grow(&mut self, room: usize) {
        let mut larger = Vec::with_capacity((self.bytes.len() + room).next_power_of_two().max(BUFFER_LEAST));
        larger.extend_from_slice(&self.bytes);
        self.bytes.zeroize();
        self.bytes = larger;
    }

    pub(crate) fn take(&mut self, count: usize) {
        self.taken += count;
        debug_assert!(self.taken <= self.bytes.len());
        if self.is_empty() {
            self.clear();
        }
    }

    /// Like [`Buffer::take`], and nothing of it stays in memory.
    pub(crate) fn take_secret(&mut self, count: usize) {
        self.bytes[self.taken..self.taken + count].zeroize();
        self.take(count);
    }

    pub(crate) fn clear(&mut self) {
        self.taken = 0;
        self.bytes.clear();
        if self.bytes.capacity() > BUFFER_KEPT {
            self.bytes = Vec::new();
        }
    }
}

/// Formatted text goes straight into the queue.
impl std::fmt::Write for Buffer {
    #[inline]
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.extend(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_the_order_they_came() {
        let mut buffer = Buffer::default();
        buffer.extend(b"abc");
        buffer.take(2);
        buffer.extend(b"def");
        assert_eq!(buffer.filled(), b"cdef");
        buffer.take(4);
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_secret_is_overwritten() {
        let mut buffer = Buffer::default();
        buffer.extend(b"abcdef");
        buffer.take_secret(4);
        assert_eq!(buffer.bytes, b"\0\0\0\0ef");
        assert_eq!(buffer.filled(), b"ef");
    }

    #[test]
    fn an_emptied_large_buffer_holds_no_memory() {
        let mut buffer = Buffer::default();
        buffer.extend(&[0; 4 * BUFFER_KEPT]);
        buffer.take(4 * BUFFER_KEPT);
        assert_eq!(buffer.capacity(), 0);
    }
}
