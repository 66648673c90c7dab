//! Foreign sources: which are learned, how long they are remembered, and when nobody more is. Pure; the caller asks the kernel.
//!
//! A misconfigured subscriber keeps the address of the network that it came from. Its packets reach the router, the answers do not find
//! back, because by the routing table that address is somewhere else. So the router remembers the interface that such a source came in
//! by, and has a host route to it for as long as it is in use.
//!
//! ```text
//!            a flow from an address              ARP answers                 no packet for 15 minutes
//!            that is routed elsewhere
//!  unknown ----------------------------> new ----------------> confirmed ----------------------------> unknown
//!                                         |
//!                                         +-- no answer within 5 s: nobody is there, the address was forged --> unknown
//! ```
//! Sources cost an attacker nothing to forge, so their number is bounded and those that answer are never given up for new ones: at the bound
//! the new one is refused, and counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::routing::{Neighbour, Path};
use crate::{dataplane::words, limits};

words! {
    /// Why a source gets no route on the interface that it came in by.
    Refusal {
        /// No address of a single host, or one of this router's.
        NotAHost = "not_a_host",
        /// The address of a mail gateway or a relay.
        Protected = "protected",
        /// The routing table knows where it belongs, by more than a default route.
        RoutedElsewhere = "routed_elsewhere",
        /// Another interface has a host with this address.
        SeenElsewhere = "seen_elsewhere",
        /// As many are remembered as may be.
        Full = "full",
    }
}

/// Destination prefixes shorter than this are a default route, or the halves of one that VPN clients install.
const SPECIFIC_PREFIX_LEN: u8 = 8;

/// What the sources came to since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub learned: u64,
    /// Forgotten after a time without packets.
    pub expired: u64,
    /// Forgotten because nobody with that address answered.
    pub unanswered: u64,
    pub refused: BTreeMap<Refusal, u64>,
}

/// What is known of the source of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquaintance {
    Known,
    /// Whether it may be learned is for [`judge`] to say, which needs the kernel's routes.
    Unknown,
    Refused,
}

/// Whether a source on `device` that the kernel has `path` for may be learned. `Ok(false)`: it is not foreign, answers find back as it is.
pub fn judge(source: Ipv4Addr, device: u32, path: Path, is_protected: bool) -> Result<bool, Refusal> {
    // RFC 1122 section 3.2.1.3: 0/8 is "this network"; RFC 1112 section 4: 240/4 is reserved, its end is the broadcast address.
    let [first, ..] = source.octets();
    if first == 0 || first >= 240 || source.is_loopback() || source.is_multicast() {
        return Err(Refusal::NotAHost);
    }
    match path {
        Path::NotOneHost => Err(Refusal::NotAHost),
        Path::Device { index, .. } if index == device => Ok(false),
        _ if is_protected => Err(Refusal::Protected),
        Path::Device { prefix_len, .. } if prefix_len >= SPECIFIC_PREFIX_LEN => Err(Refusal::RoutedElsewhere),
        Path::None | Path::Device { .. } => Ok(true),
    }
}

/// The foreign sources. Times are seconds of a monotonic clock.
#[derive(Debug, Default)]
pub struct Sources {
    known: BTreeMap<Ipv4Addr, Source>,
    counts: Counts,
}

#[derive(Debug)]
struct Source {
    device: u32,
    confirmed: bool,
    /// A packet came from it or reached it.
    active_s: u32,
    /// When to ask the kernel about it.
    due_s: u32,
}

impl Sources {
    /// Every source, and the interface that it is behind.
    pub fn iter(&self) -> impl Iterator<Item = (Ipv4Addr, u32)> + '_ {
        self.known.iter().map(|(address, source)| (*address, source.device))
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// A flow of `source` came in by `device`.
    pub fn arrived(&mut self, source: Ipv4Addr, device: u32, now_s: u32) -> Acquaintance {
        match self.known.get_mut(&source) {
            Some(known) if known.device == device => {
                known.active_s = now_s;
                Acquaintance::Known
            }
            Some(known) if known.confirmed => {
                self.refuse(Refusal::SeenElsewhere);
                Acquaintance::Refused
            }
            // Who has not answered there may be here.
            Some(_) | None => Acquaintance::Unknown,
        }
    }

    /// Remembers a source that [`judge`] has admitted; tells the interface that it was believed to be behind before, if any.
    pub fn learn(&mut self, source: Ipv4Addr, device: u32, now_s: u32) -> Result<Option<u32>, Refusal> {
        if self.known.len() >= limits::FOREIGN_SOURCES_MAX && !self.known.contains_key(&source) {
            self.refuse(Refusal::Full);
            return Err(Refusal::Full);
        }
        self.counts.learned += 1;
        let due_s = now_s.saturating_add(seconds(limits::FOREIGN_SOURCE_PROBATION));
        let before = self.known.insert(source, Source { device, confirmed: false, active_s: now_s, due_s });
        Ok(before.map(|source| source.device))
    }

    pub fn refuse(&mut self, refusal: Refusal) {
        *self.counts.refused.entry(refusal).or_default() += 1;
    }

    /// The sources that the kernel has to be asked about by now.
    pub fn due(&self, now_s: u32) -> Vec<(Ipv4Addr, u32)> {
        let due = self.known.iter().filter(|(_, source)| source.due_s <= now_s);
        due.map(|(address, source)| (*address, source.device)).collect()
    }

    /// The kernel's answer about a source that was due. `false`: it is forgotten.
    pub fn checked(&mut self, address: Ipv4Addr, neighbour: Option<Neighbour>, now_s: u32) -> bool {
        let Some(source) = self.known.get_mut(&address) else { return false };
        if let Some(neighbour) = neighbour.filter(|neighbour| neighbour.answers) {
            let idle_s = u32::try_from(neighbour.idle.as_secs()).unwrap_or(u32::MAX);
            source.confirmed = true;
            source.active_s = source.active_s.max(now_s.saturating_sub(idle_s));
        }
        source.due_s = source.active_s.saturating_add(seconds(limits::FOREIGN_SOURCE_IDLE_MAX));
        let (forgotten, count) = if source.confirmed {
            (source.due_s <= now_s, &mut self.counts.expired)
        } else {
            (true, &mut self.counts.unanswered)
        };
        if forgotten {
            *count += 1;
            self.known.remove(&address);
        }
        !forgotten
    }

    /// Forgets a source that has no route.
    pub fn forget(&mut self, address: Ipv4Addr) {
        self.known.remove(&address);
    }

    /// Forgets the sources on other interfaces than these.
    pub fn keep_devices(&mut self, devices: &BTreeSet<u32>) {
        self.known.retain(|_, source| devices.contains(&source.device));
    }
}

fn seconds(duration: std::time::Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LAN: u32 = 3;
    const WAN: u32 = 4;
    const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 5);

    fn device(index: u32, prefix_len: u8) -> Path {
        Path::Device { index, prefix_len }
    }

    #[test]
    fn who_is_foreign() {
        let gateway = "198.51.100.25";
        let cases = [
            ("by the default route", "192.168.77.5", device(WAN, 0), Ok(true)),
            ("by half of one", "192.168.77.5", device(WAN, 1), Ok(true)),
            ("without any route", "192.168.77.5", Path::None, Ok(true)),
            ("a subscriber of this interface", "10.20.0.5", device(LAN, 16), Ok(false)),
            ("behind the default route, which is this interface", "192.0.2.1", device(LAN, 0), Ok(false)),
            ("in another interface's subnet", "203.0.113.9", device(WAN, 24), Err(Refusal::RoutedElsewhere)),
            ("at the operator's other site", "10.1.2.3", device(WAN, 8), Err(Refusal::RoutedElsewhere)),
            ("the router's own, or a broadcast address", "10.20.0.1", Path::NotOneHost, Err(Refusal::NotAHost)),
            ("a mail gateway behind the default route", "198.51.100.25", device(WAN, 0), Err(Refusal::Protected)),
            ("nobody", "0.0.0.0", device(WAN, 0), Err(Refusal::NotAHost)),
            ("this network", "0.1.2.3", device(WAN, 0), Err(Refusal::NotAHost)),
            ("loopback", "127.0.0.1", device(WAN, 0), Err(Refusal::NotAHost)),
            ("multicast", "224.0.0.5", device(WAN, 0), Err(Refusal::NotAHost)),
            ("reserved", "240.0.0.1", device(WAN, 0), Err(Refusal::NotAHost)),
            ("everybody", "255.255.255.255", device(WAN, 0), Err(Refusal::NotAHost)),
        ];
        for (what, source, path, expected) in cases {
            assert_eq!(judge(source.parse().unwrap(), LAN, path, source == gateway), expected, "{what}");
        }
    }

    const fn answers(idle_s: u64) -> Neighbour {
        Neighbour { answers: true, idle: Duration::from_secs(idle_s) }
    }

    const SILENT: Neighbour = Neighbour { answers: false, idle: Duration::ZERO };
    const IDLE_MAX_S: u32 = 900;

    fn learned(now_s: u32) -> Sources {
        let mut sources = Sources::default();
        assert_eq!(sources.arrived(GUEST, LAN, now_s), Acquaintance::Unknown);
        assert_eq!(sources.learn(GUEST, LAN, now_s), Ok(None));
        sources
    }

    #[test]
    fn a_source_is_forgotten_after_a_time_without_packets() {
        let mut sources = learned(100);
        assert_eq!(sources.due(104), []);
        assert_eq!(sources.due(105), [(GUEST, LAN)]);
        assert!(sources.checked(GUEST, Some(answers(2)), 105));
        // Not before it could have been idle for long enough.
        assert_eq!(sources.due(103 + IDLE_MAX_S - 1), []);
        let then = 103 + IDLE_MAX_S;
        assert_eq!(sources.due(then), [(GUEST, LAN)]);
        // The last packet was a minute ago.
        assert!(sources.checked(GUEST, Some(answers(60)), then));
        assert_eq!(sources.due(then + IDLE_MAX_S - 61), []);
        // A new flow counts as well, and silence after it does not forget a source that has answered before its time.
        assert_eq!(sources.arrived(GUEST, LAN, then + 10), Acquaintance::Known);
        assert!(sources.checked(GUEST, Some(SILENT), then + IDLE_MAX_S - 60));
        assert!(!sources.checked(GUEST, None, then + IDLE_MAX_S + 10));
        assert!(sources.is_empty());
        assert_eq!(sources.counts(), &Counts { learned: 1, expired: 1, ..Counts::default() });
    }

    #[test]
    fn who_never_answers_is_forgotten_at_once() {
        for nobody in [Some(SILENT), None] {
            let mut sources = learned(100);
            assert!(!sources.checked(GUEST, nobody, 105));
            assert!(sources.is_empty());
            assert_eq!(sources.counts(), &Counts { learned: 1, unanswered: 1, ..Counts::default() });
        }
    }

    #[test]
    fn the_first_who_answers_keeps_the_address() {
        let mut sources = learned(100);
        // It may be here as well as there.
        assert_eq!(sources.arrived(GUEST, WAN, 101), Acquaintance::Unknown);
        assert_eq!(sources.learn(GUEST, WAN, 101), Ok(Some(LAN)));
        assert!(sources.checked(GUEST, Some(answers(0)), 106));
        assert_eq!(sources.arrived(GUEST, LAN, 107), Acquaintance::Refused);
        assert_eq!(sources.iter().collect::<Vec<_>>(), [(GUEST, WAN)]);
        assert_eq!(sources.counts().refused, BTreeMap::from([(Refusal::SeenElsewhere, 1)]));
    }

    #[test]
    fn at_the_bound_the_new_one_is_refused() {
        let mut sources = Sources::default();
        let source = |number: usize| Ipv4Addr::from(0xc0a8_0000 + u32::try_from(number).unwrap());
        for number in 0..limits::FOREIGN_SOURCES_MAX {
            assert_eq!(sources.learn(source(number), LAN, 1), Ok(None));
        }
        let one_more = source(limits::FOREIGN_SOURCES_MAX);
        assert_eq!(sources.learn(one_more, LAN, 1), Err(Refusal::Full));
        assert_eq!(sources.len(), limits::FOREIGN_SOURCES_MAX);
        assert_eq!(sources.counts().refused, BTreeMap::from([(Refusal::Full, 1)]));
        // One that is there may move, and room that is made is taken.
        assert_eq!(sources.learn(source(0), WAN, 2), Ok(Some(LAN)));
        sources.forget(source(1));
        assert_eq!(sources.learn(one_more, LAN, 2), Ok(None));
    }

    #[test]
    fn a_device_takes_its_sources_along() {
        let mut sources = learned(1);
        sources.learn(Ipv4Addr::new(192, 168, 77, 6), WAN, 1).unwrap();
        sources.keep_devices(&BTreeSet::from([WAN]));
        assert_eq!(sources.iter().map(|(_, device)| device).collect::<Vec<_>>(), [WAN]);
    }
}
