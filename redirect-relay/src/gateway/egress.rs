//! Which of our addresses a connection leaves from.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::gateway::{Egress, Strategy};

/// What is remembered of a gateway's egress addresses, by their place in the list.
#[derive(Debug, Default)]
pub(crate) struct EgressState {
    suspended: Vec<Option<Instant>>,
    next: usize,
}

/// The address for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// None are listed: the kernel's choice.
    Any,
    Listed(usize),
    /// All that could reach the gateway are suspended, or none is of its family.
    None,
}

impl EgressState {
    /// `to`: the gateway's address, whose family counts. `client`: who keeps its address under [`Strategy::Sticky`].
    pub(crate) fn choose(&mut self, egress: &Egress, to: IpAddr, client: Option<IpAddr>, now: Instant) -> Choice {
        if egress.addresses.is_empty() {
            return Choice::Any;
        }
        let fits = |index: &usize| {
            let suspended = self.suspended.get(*index).copied().flatten();
            egress.addresses[*index].address.is_ipv4() == to.is_ipv4() && suspended.is_none_or(|until| until <= now)
        };
        let usable: Vec<usize> = (0..egress.addresses.len()).filter(fits).collect();
        if usable.is_empty() {
            return Choice::None;
        }
        let index = match (egress.strategy, client) {
            (Strategy::OnBlock, _) => usable[0],
            // The address with the highest mark for this client: when one is suspended, only its own clients move.
            (Strategy::Sticky, Some(client)) => usable
                .into_iter()
                .max_by_key(|index| mark(client, egress.addresses[*index].address))
                .expect("one is usable"),
            (Strategy::RoundRobin, _) | (Strategy::Sticky, None) => {
                let index = usable.iter().copied().find(|index| *index >= self.next).unwrap_or(usable[0]);
                self.next = index + 1;
                index
            }
        };
        Choice::Listed(index)
    }

    pub(crate) fn suspend(&mut self, index: usize, time: Duration, now: Instant) {
        if self.suspended.len() <= index {
            self.suspended.resize(index + 1, None);
        }
        self.suspended[index] = Some(now + time);
    }

    /// Whether an address is left out at the moment.
    pub(crate) fn is_suspended(&self, index: usize, now: Instant) -> bool {
        self.suspended.get(index).copied().flatten().is_some_and(|until| now < until)
    }
}

/// A mark that any router gives alike: FNV-1a over both addresses, and a last mixing (splitmix64).
fn mark(client: IpAddr, egress: IpAddr) -> u64 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let all = octets(client).into_iter().chain(octets(egress));
    let hash = all
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| (hash ^ u64::from(octet)).wrapping_mul(0x0000_0100_0000_01b3));
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::EgressAddress;

    const TO: &str = "192.0.2.25";

    fn egress(strategy: Strategy, addresses: &[&str]) -> Egress {
        let address = |text: &&str| EgressAddress { address: text.parse().unwrap(), helo: None };
        Egress { strategy, addresses: addresses.iter().map(address).collect(), ..Egress::default() }
    }

    fn choose(state: &mut EgressState, egress: &Egress, client: &str, now: Instant) -> Choice {
        state.choose(egress, TO.parse().unwrap(), client.parse().ok(), now)
    }

    #[test]
    fn without_a_list_the_kernel_chooses() {
        let choice = choose(&mut EgressState::default(), &Egress::default(), "10.0.0.1", Instant::now());
        assert_eq!(choice, Choice::Any);
    }

    #[test]
    fn round_robin_passes_over_the_suspended_and_the_other_family() {
        let now = Instant::now();
        let egress = egress(Strategy::RoundRobin, &["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"]);
        let mut state = EgressState::default();
        let next = |state: &mut EgressState, now| choose(state, &egress, "10.0.0.1", now);
        let first: Vec<_> = (0..4).map(|_| next(&mut state, now)).collect();
        assert_eq!(first, [0, 2, 3, 0].map(Choice::Listed));
        state.suspend(2, Duration::from_secs(10), now);
        assert!(state.is_suspended(2, now));
        assert_eq!([next(&mut state, now), next(&mut state, now)], [3, 0].map(Choice::Listed));
        let later = now + Duration::from_secs(10);
        assert!(!state.is_suspended(2, later));
        assert_eq!(next(&mut state, later), Choice::Listed(2));
    }

    #[test]
    fn on_block_stays_with_the_first_that_is_left() {
        let now = Instant::now();
        let egress = egress(Strategy::OnBlock, &["192.0.2.1", "192.0.2.2"]);
        let mut state = EgressState::default();
        assert_eq!(choose(&mut state, &egress, "10.0.0.1", now), Choice::Listed(0));
        state.suspend(0, Duration::from_secs(10), now);
        assert_eq!(choose(&mut state, &egress, "10.0.0.1", now), Choice::Listed(1));
        state.suspend(1, Duration::from_secs(5), now);
        assert_eq!(choose(&mut state, &egress, "10.0.0.1", now), Choice::None);
        assert_eq!(choose(&mut state, &egress, "10.0.0.1", now + Duration::from_secs(5)), Choice::Listed(1));
    }

    #[test]
    fn a_client_sticks_and_only_the_clients_of_a_suspended_address_move() {
        let now = Instant::now();
        let egress = egress(Strategy::Sticky, &["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        let mut state = EgressState::default();
        let clients: Vec<_> = (0..=255).map(|host| format!("10.0.0.{host}")).collect();
        let all = |state: &mut EgressState| -> Vec<_> {
            clients.iter().map(|client| choose(state, &egress, client, now)).collect()
        };
        let before = all(&mut state);
        assert_eq!(before, all(&mut state));
        for index in 0..3 {
            let share = before.iter().filter(|choice| **choice == Choice::Listed(index)).count();
            assert!((60..=110).contains(&share), "{index}: {share} of 256");
        }
        state.suspend(1, Duration::from_secs(10), now);
        for (before, after) in before.iter().zip(all(&mut state)) {
            assert_ne!(after, Choice::Listed(1));
            assert!(*before == after || *before == Choice::Listed(1));
        }
    }
}
