//! In which order the gateways of a target are tried: by rank, and within a rank by the group's balance.

use std::cmp::Reverse;

use crate::gateway::Balance;

/// A gateway that may be used at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) rank: u16,
    pub(crate) weight: u16,
    /// Messages under way.
    pub(crate) outstanding: u32,
    /// The credit of smooth weighted round robin; kept between calls.
    pub(crate) credit: i64,
}

/// The indices of `candidates`, the first to be tried first. The credits of its rank are settled as if it will be used.
///
/// Smooth weighted round robin is nginx's: each gains its weight, the richest is taken and pays the sum of the weights. So
/// weights 5, 1, 1 give a a b a c a a, and not a a a a a b c.
pub(crate) fn order(candidates: &mut [Candidate], balance: Balance) -> Vec<usize> {
    let Some(first) = candidates.iter().map(|candidate| candidate.rank).min() else { return Vec::new() };
    let mut sum = 0;
    for candidate in candidates.iter_mut().filter(|candidate| candidate.rank == first) {
        candidate.credit += i64::from(candidate.weight);
        sum += i64::from(candidate.weight);
    }
    let mut indices: Vec<usize> = (0..candidates.len()).collect();
    indices.sort_by_key(|&index| {
        let Candidate { rank, weight, outstanding, credit } = candidates[index];
        // Load in thousandths of a message for each unit of weight; the credit shares out what is equally loaded.
        let load = match balance {
            Balance::RoundRobin => 0,
            Balance::LeastOutstanding => u64::from(outstanding) * 1000 / u64::from(weight.max(1)),
        };
        (rank, load, Reverse(credit))
    });
    if let Some(&taken) = indices.first() {
        candidates[taken].credit -= sum;
    }
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(all: &[(u16, u16, u32)]) -> Vec<Candidate> {
        let candidate = |&(rank, weight, outstanding)| Candidate { rank, weight, outstanding, credit: 0 };
        all.iter().map(candidate).collect()
    }

    fn firsts(all: &[(u16, u16, u32)], balance: Balance, times: usize) -> String {
        let mut candidates = candidates(all);
        let name = |index: usize| char::from(b'a' + u8::try_from(index).unwrap());
        (0..times).map(|_| name(order(&mut candidates, balance)[0])).collect()
    }

    #[test]
    fn weights_are_spread_smoothly() {
        assert_eq!(firsts(&[(0, 5, 0), (0, 1, 0), (0, 1, 0)], Balance::RoundRobin, 14), "aabacaaaabacaa");
        assert_eq!(firsts(&[(0, 1, 0), (0, 1, 0)], Balance::RoundRobin, 6), "ababab");
    }

    #[test]
    fn credits_stay_bounded() {
        let mut candidates = candidates(&[(0, 1000, 0), (0, 1, 0), (1, 7, 0)]);
        for _ in 0..10_000 {
            order(&mut candidates, Balance::RoundRobin);
        }
        assert!(candidates.iter().all(|candidate| candidate.credit.abs() <= 1001), "{candidates:?}");
    }

    #[test]
    fn a_higher_rank_waits() {
        let mut all = candidates(&[(1, 9, 0), (0, 1, 0), (2, 9, 0), (0, 1, 0)]);
        assert_eq!(order(&mut all, Balance::RoundRobin), [1, 3, 0, 2]);
        assert_eq!(order(&mut all, Balance::RoundRobin), [3, 1, 0, 2]);
    }

    #[test]
    fn the_least_loaded_for_its_weight() {
        assert_eq!(firsts(&[(0, 1, 3), (0, 1, 2)], Balance::LeastOutstanding, 3), "bbb");
        assert_eq!(firsts(&[(0, 4, 3), (0, 1, 2)], Balance::LeastOutstanding, 3), "aaa");
        assert_eq!(firsts(&[(0, 2, 2), (0, 1, 1)], Balance::LeastOutstanding, 6), "abaaba");
    }

    #[test]
    fn nobody() {
        assert!(order(&mut [], Balance::RoundRobin).is_empty());
    }
}
