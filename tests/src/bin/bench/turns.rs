//! Turns: in each, everyone who takes part is measured once.

use anyhow::{Context as _, Result};

/// What each of `sites` gave in every turn, at the index of the site. The order is rotated from turn to turn, and every other turn is
/// reversed.
pub(crate) fn take<S, T>(
    turns: usize,
    name: &str,
    sites: &mut [S],
    occupant: impl Fn(&S) -> &'static str,
    mut measure: impl FnMut(&mut S) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    eprintln!("{name}: {turns} turns of {}", sites.len());
    let mut samples: Vec<_> = sites.iter().map(|_| Vec::new()).collect();
    for turn in 0..turns {
        let mut order: Vec<_> = (0..sites.len()).collect();
        order.rotate_left(turn % sites.len());
        if turn % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let site = &mut sites[index];
            let sample = measure(site).with_context(|| format!("{name}, {}", occupant(site)))?;
            samples[index].push(sample);
        }
    }
    Ok(samples)
}
