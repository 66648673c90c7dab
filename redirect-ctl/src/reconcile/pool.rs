//! Weights become places: which relay stands how often in the pool of a class.

use std::cmp::Reverse;

use redirect_common::policy::POOL_SLOTS;

/// Shares the places of a pool out among `relays`, pairs of number and weight, by largest remainder. Each gets at least one, so one whose
/// weight would earn it less is given that one, and the others share the rest. The same relays make the same pool, in whatever order they
/// come. Without relays the places are 0, which stands for none; beyond [`POOL_SLOTS`] relays the last get nothing.
pub fn pool(relays: &[(u8, u8)]) -> [u8; POOL_SLOTS] {
    let mut large: Vec<(u8, usize)> =
        relays.iter().take(POOL_SLOTS).map(|(relay, weight)| (*relay, usize::from(*weight).max(1))).collect();
    let mut places = POOL_SLOTS;
    let mut shares: Vec<(u8, usize)> = Vec::new();
    loop {
        let total = total(&large);
        let (fair, small): (Vec<_>, Vec<_>) = large.iter().partition(|(_, weight)| weight * places >= total);
        if small.is_empty() {
            break;
        }
        places -= small.len();
        shares.extend(small.into_iter().map(|(relay, _)| (relay, 1)));
        large = fair;
    }
    shares.extend(by_largest_remainder(&large, places));
    shares.sort_unstable();

    let mut pool = [0; POOL_SLOTS];
    let named = shares.iter().flat_map(|(relay, share)| std::iter::repeat_n(*relay, *share));
    for (place, relay) in pool.iter_mut().zip(named) {
        *place = relay;
    }
    pool
}

/// Whole places in proportion to the weights; what is left goes to the largest remainders, of equal ones to the lowest number.
fn by_largest_remainder(relays: &[(u8, usize)], places: usize) -> Vec<(u8, usize)> {
    let total = total(relays).max(1);
    let mut shares: Vec<_> = relays
        .iter()
        .map(|(relay, weight)| (Reverse(weight * places % total), *relay, weight * places / total))
        .collect();
    shares.sort_unstable();
    let left = places - shares.iter().map(|(.., share)| share).sum::<usize>();
    let more = |rank: usize| usize::from(rank < left);
    shares.into_iter().enumerate().map(|(rank, (_, relay, share))| (relay, share + more(rank))).collect()
}

fn total(relays: &[(u8, usize)]) -> usize {
    relays.iter().map(|(_, weight)| weight).sum()
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    fn share(pool: &[u8; POOL_SLOTS], relay: u8) -> usize {
        (0..POOL_SLOTS).filter(|place| pool[*place] == relay).count()
    }

    #[test]
    fn shares_follow_the_weights() {
        for (relays, expected) in [
            (&[][..], &[(0, 32)][..]),
            (&[(7, 1)], &[(7, 32)]),
            (&[(1, 1), (2, 1)], &[(1, 16), (2, 16)]),
            (&[(1, 3), (2, 1)], &[(1, 24), (2, 8)]),
            // 10.67 each: the two lowest numbers get what is left.
            (&[(1, 1), (2, 1), (3, 1)], &[(1, 11), (2, 11), (3, 10)]),
            // 31.68 and 0.32.
            (&[(1, 100), (2, 1)], &[(1, 31), (2, 1)]),
            // 28.83, 2.88 and 0.29: one place for the last, of the 31 others 28.18 and 2.82.
            (&[(1, 100), (2, 10), (3, 1)], &[(1, 28), (2, 3), (3, 1)]),
        ] {
            let pool = pool(relays);
            for (relay, places) in expected {
                assert_eq!(share(&pool, *relay), *places, "relay {relay} of {relays:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_relay_has_its_share_and_nobody_else(
            weights in collection::btree_map(1..64_u8, 1..=100_u8, 0..=16).prop_map(|map| map.into_iter().collect::<Vec<_>>()),
            turn in any::<prop::sample::Index>(),
        ) {
            let pool = pool(&weights);
            let numbers: Vec<u8> = weights.iter().map(|(relay, _)| *relay).collect();
            if weights.is_empty() {
                prop_assert_eq!(pool, [0; POOL_SLOTS]);
                return Ok(());
            }
            prop_assert!(pool.iter().all(|place| numbers.contains(place)), "{:?} in {:?}", pool, weights);
            let total: f64 = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
            let exact = |weight: u8| f64::from(weight) * 32.0 / total;
            // Those who earn less than one place take from the others what they lack.
            let nobody_is_small = weights.iter().all(|(_, weight)| exact(*weight) >= 1.0);
            for (relay, weight) in &weights {
                let places = f64::from(u8::try_from(share(&pool, *relay)).unwrap());
                let exact = exact(*weight);
                prop_assert!(places >= 1.0 && places < exact + 1.0, "{} of {:?}: {} for {}", relay, weights, places, exact);
                prop_assert!(!nobody_is_small || places > exact - 1.0, "{} of {:?}: {} for {}", relay, weights, places, exact);
            }
            // A heavier relay has no fewer places.
            for (relay, weight) in &weights {
                for (other, lighter) in &weights {
                    prop_assert!(weight <= lighter || share(&pool, *relay) >= share(&pool, *other), "{:?}", weights);
                }
            }
            let mut turned = weights.clone();
            turned.rotate_left(turn.index(weights.len()));
            prop_assert_eq!(super::pool(&turned), pool, "the order matters");
        }
    }
}
