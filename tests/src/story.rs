//! What the captured segments of a connection come to: who did what, in which order. Two means of delivery that are the same to an end
//! host tell it the same stories.
//!
//! Left out is what differs between two runs of one means:
//! - initial sequence numbers: numbers count from the SYN's, those acknowledged from that of the other side;
//! - the values of TCP timestamps, IPv4 identifications and IPv6 flow labels: of a clock, or random;
//! - where segments begin and end, PSH, and windows: segmentation offloads, timing and buffers decide these. The bytes one side says before
//!   the other says something are one event, whatever carried them;
//! - segments that only acknowledge, and repetitions: timing decides these.

use std::{collections::BTreeSet, fmt, net::SocketAddr};

use crate::capture::{Header, Segment, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

/// One connection, or segments of none, as a capture shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Story {
    /// Who dialled whom; of segments without a SYN, whose was the first.
    pub client: SocketAddr,
    pub server: SocketAddr,
    pub events: Vec<Event>,
    /// What stood in the IP headers of each side.
    pub headers: [BTreeSet<Header>; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Client,
    Server,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// SYN, FIN or RST, where in the bytes of its side, and what it acknowledges.
    Flags { by: Side, flags: u8, at: u32, acknowledged: Option<u32>, options: Vec<u8> },
    /// Bytes, by their number and a digest.
    Bytes { by: Side, count: usize, digest: u64 },
}

impl fmt::Debug for Event {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flags { by, flags, at, acknowledged, options } => {
                let names = [(TCP_SYN, "SYN"), (TCP_FIN, "FIN"), (TCP_RST, "RST"), (TCP_ACK, "ACK")];
                let names: Vec<_> = names.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| *name).collect();
                write!(out, "{by:?} {} at {at}", names.join("+"))?;
                if let Some(acknowledged) = acknowledged {
                    write!(out, " of {acknowledged}")?;
                }
                if options.is_empty() { Ok(()) } else { write!(out, " {options:x?}") }
            }
            Self::Bytes { by, count, digest } => write!(out, "{by:?} says {count} bytes {digest:x}"),
        }
    }
}

/// The stories of segments in the order of their capture, sorted by who dialled whom.
#[must_use]
pub fn stories<'a>(segments: impl IntoIterator<Item = &'a Segment>) -> Vec<Story> {
    let mut tellers: Vec<Teller> = Vec::new();
    for segment in segments {
        let known = tellers.iter_mut().rev().find_map(|teller| Some((teller.side_of(segment)?, teller)));
        match known {
            Some((side, teller)) if !teller.is_another(side, segment) => teller.tell(side, segment),
            _ => {
                let mut teller = Teller::new(segment);
                teller.tell(Side::Client, segment);
                tellers.push(teller);
            }
        }
    }
    let mut stories: Vec<_> = tellers.into_iter().map(Teller::finish).collect();
    // Stable: connections that share both ends stay in their order.
    stories.sort_by_key(|story| (story.client, story.server));
    stories
}

struct Teller {
    story: Story,
    /// For each side its initial sequence number, and the number after the last that was told.
    numbers: [Option<(u32, u32)>; 2],
    /// Segments that came before one that they follow.
    early: Vec<(Side, Segment)>,
}

impl Teller {
    fn new(first: &Segment) -> Self {
        let story = Story { client: first.from, server: first.to, events: Vec::new(), headers: Default::default() };
        Self { story, numbers: [None; 2], early: Vec::new() }
    }

    fn side_of(&self, segment: &Segment) -> Option<Side> {
        let (client, server) = (self.story.client, self.story.server);
        match (segment.from, segment.to) {
            ends if ends == (client, server) => Some(Side::Client),
            ends if ends == (server, client) => Some(Side::Server),
            _ => None,
        }
    }

    /// Whether this SYN is that of another connection.
    fn is_another(&self, side: Side, segment: &Segment) -> bool {
        let repeats = self.numbers[side as usize].is_some_and(|(first, _)| first == segment.sequence);
        side == Side::Client && segment.has(TCP_SYN) && !repeats
    }

    fn tell(&mut self, by: Side, segment: &Segment) {
        self.story.headers[by as usize].insert(segment.header);
        let flags = segment.flags & (TCP_SYN | TCP_FIN | TCP_RST);
        if flags == 0 && segment.data.is_empty() {
            return;
        }
        let opens = flags & TCP_SYN != 0;
        // Where there is no SYN the numbers stay as they are.
        let (first, next) = *self.numbers[by as usize].get_or_insert(if opens {
            (segment.sequence, segment.sequence)
        } else {
            (0, segment.sequence)
        });
        let ahead = segment.sequence.wrapping_sub(next).cast_signed();
        if ahead > 0 {
            self.early.push((by, segment.clone()));
            return;
        }
        let old = ahead.unsigned_abs() as usize;
        let data = segment.data.get(old..).unwrap_or_default();
        let mut next = next.wrapping_add(u32::try_from(data.len()).expect("a segment is short"));
        if !data.is_empty() {
            self.say(by, data);
        }
        if flags != 0 {
            let end = segment.sequence.wrapping_add(u32::try_from(segment.data.len()).expect("a segment is short"));
            let acknowledged = segment.has(TCP_ACK).then(|| {
                let (first, _) = self.numbers[1 - by as usize].unwrap_or_default();
                segment.acknowledgment.wrapping_sub(first)
            });
            let options = if opens { without_timestamps(&segment.options) } else { Vec::new() };
            let at = end.wrapping_sub(first);
            let event = Event::Flags { by, flags: segment.flags & (flags | TCP_ACK), at, acknowledged, options };
            if !self.story.events.contains(&event) {
                self.story.events.push(event);
                next = next.wrapping_add(u32::from(flags & (TCP_SYN | TCP_FIN) != 0));
            }
        }
        self.numbers[by as usize] = Some((first, next));
        for (by, segment) in std::mem::take(&mut self.early) {
            self.tell(by, &segment);
        }
    }

    fn say(&mut self, by: Side, data: &[u8]) {
        if !matches!(self.story.events.last(), Some(Event::Bytes { by: before, .. }) if *before == by) {
            self.story.events.push(Event::Bytes { by, count: 0, digest: 0xcbf2_9ce4_8422_2325 });
        }
        if let Some(Event::Bytes { count, digest, .. }) = self.story.events.last_mut() {
            *count += data.len();
            // FNV-1a, which takes no notice of where one piece ends.
            *digest =
                data.iter().fold(*digest, |digest, byte| (digest ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        }
    }

    fn finish(self) -> Story {
        assert!(self.early.is_empty(), "the capture lacks what {:?} follow", self.early);
        self.story
    }
}

/// TCP options with the values of timestamps set to zero (RFC 7323 section 3.2).
fn without_timestamps(options: &[u8]) -> Vec<u8> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const TIMESTAMPS: u8 = 8;
    let mut options = options.to_vec();
    let mut at = 0;
    while let Some(kind) = options.get(at).copied().filter(|kind| *kind != END) {
        let length = if kind == NO_OPERATION { 1 } else { options.get(at + 1).copied().unwrap_or(0).max(2) };
        let end = at + usize::from(length);
        if kind == TIMESTAMPS
            && let Some(values) = options.get_mut(at + 2..end)
        {
            values.fill(0);
        }
        at = end;
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Header;

    /// A segment by its direction, flags, sequence and acknowledgment numbers, and data.
    type Line = (Side, u8, u32, u32, &'static [u8]);

    fn told(lines: &[Line]) -> Vec<Story> {
        let ends: [SocketAddr; 2] = [([10, 0, 0, 1], 4000).into(), ([10, 0, 0, 2], 25).into()];
        let segments = lines.iter().map(|(by, flags, sequence, acknowledgment, data)| Segment {
            from: ends[*by as usize],
            to: ends[1 - *by as usize],
            header: Header { hops: 64, traffic_class: 0, dont_fragment: true },
            sequence: *sequence,
            acknowledgment: *acknowledgment,
            flags: *flags,
            options: vec![8, 10, 1, 2, 3, 4, 5, 6, 7, *by as u8, 1, 3, 3, 7],
            data: data.to_vec(),
            checksum_holds: true,
            checksum_is_left_to_the_device: false,
        });
        stories(&segments.collect::<Vec<_>>())
    }

    use Side::{Client, Server};
    const SYN_ACK: u8 = TCP_SYN | TCP_ACK;
    const FIN_ACK: u8 = TCP_FIN | TCP_ACK;

    const PLAIN: [Line; 8] = [
        (Client, TCP_SYN, 100, 0, b""),
        (Server, SYN_ACK, 900, 101, b""),
        (Client, TCP_ACK, 101, 901, b""),
        (Server, TCP_ACK, 901, 101, b"220 relay"),
        (Client, TCP_ACK, 101, 910, b"QUIT"),
        (Server, TCP_ACK, 910, 105, b"221 bye"),
        (Server, FIN_ACK, 917, 105, b""),
        (Client, TCP_RST, 105, 0, b""),
    ];

    #[test]
    fn everything_has_its_place() {
        let [story] = &told(&PLAIN)[..] else { panic!("one connection") };
        let shown: Vec<_> = story.events.iter().map(|event| format!("{event:?}")).collect();
        let start = |line: usize, start: &str| assert!(shown[line].starts_with(start), "{}", shown[line]);
        start(0, "Client SYN at 0 [8, a, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 7]");
        start(1, "Server SYN+ACK at 0 of 1 [8,");
        start(2, "Server says 9 bytes ");
        start(3, "Client says 4 bytes ");
        start(4, "Server says 7 bytes ");
        start(5, "Server FIN+ACK at 17 of 5");
        start(6, "Client RST at 5");
        assert_eq!(shown.len(), 7);
    }

    #[test]
    fn what_varies_changes_nothing() {
        let plain = told(&PLAIN);
        let after = |line: usize, lines: &[Line]| [&PLAIN[..line], lines, &PLAIN[line..]].concat();
        let other_numbers = PLAIN.map(|(by, flags, sequence, acknowledgment, data)| {
            let [own, other] = if by == Client { [u32::MAX - 103, 7] } else { [7, u32::MAX - 103] };
            let acknowledgment = if flags & TCP_ACK == 0 { 0 } else { acknowledgment.wrapping_add(other) };
            (by, flags, sequence.wrapping_add(own), acknowledgment, data)
        });
        let pieces = [
            &PLAIN[..3],
            &[(Server, TCP_ACK, 901, 101, b"22"), (Server, TCP_ACK, 903, 101, b"0 relay")],
            &PLAIN[4..6],
            &PLAIN[7..],
        ];
        let [.., closing, resetting] = PLAIN;
        let mut swapped = PLAIN;
        swapped.swap(5, 6);
        for (what, lines) in [
            ("initial sequence numbers", other_numbers.to_vec()),
            ("a SYN that is repeated", after(1, &PLAIN[..1])),
            ("data that are repeated", after(5, &PLAIN[3..5])),
            ("more data than are new", after(4, &[(Server, TCP_ACK, 905, 101, b"relay")])),
            ("a probe of a window", after(4, &[(Server, TCP_ACK, 909, 101, b"")])),
            ("a FIN that is repeated", [&PLAIN[..], &[closing]].concat()),
            ("a FIN with the last data", [&PLAIN[..5], &[(Server, FIN_ACK, 910, 105, b"221 bye"), resetting]].concat()),
            ("data that overtake", swapped.to_vec()),
        ] {
            assert_eq!(told(&lines), plain, "{what}");
        }
        let in_pieces = told(&[&pieces[..3].concat()[..], &[closing], pieces[3]].concat());
        assert_eq!(in_pieces, plain, "data in pieces");
    }

    #[test]
    fn what_an_end_host_notices_is_another_story() {
        let plain = told(&PLAIN);
        let with = |line: usize, changed: Line| {
            let mut lines = PLAIN;
            lines[line] = changed;
            lines.to_vec()
        };
        for (what, lines) in [
            ("another byte", with(3, (Server, TCP_ACK, 901, 101, b"220 delay"))),
            ("a FIN elsewhere", with(6, (Server, FIN_ACK, 916, 105, b""))),
            ("a FIN that acknowledges less", with(6, (Server, FIN_ACK, 917, 104, b""))),
            ("a reset that acknowledges", with(7, (Client, TCP_RST | TCP_ACK, 105, 918, b""))),
            ("no reset", PLAIN[..7].to_vec()),
            ("another connection", [&PLAIN[..], &[(Client, TCP_SYN, 4000, 0, b"")]].concat()),
        ] {
            assert_ne!(told(&lines), plain, "{what}");
        }
        assert_eq!(
            told(
                &[&PLAIN[..], &PLAIN.map(|(by, flags, sequence, _, data)| (by, flags, sequence + 1, 0, data))].concat()
            )
            .len(),
            2
        );
    }
}
