//! Turns, and the rows that come of them.

use anyhow::{Context as _, Result};

use super::{
    Bench,
    site::{Occupant, Site},
};
use crate::{
    report::{Row, Unit},
    turns,
};

/// What each site did in every turn, at the index of the site.
pub(crate) type Samples = Vec<Vec<f64>>;

/// Makes a site for each occupant, unless there are none.
pub(crate) fn set_up(occupants: &[Occupant], make: impl Fn(Occupant) -> Result<Site>) -> Result<Vec<Site>> {
    let names: Vec<_> = occupants.iter().map(|occupant| occupant.name()).collect();
    eprintln!("setting up {}", names.join(", "));
    occupants.iter().map(|occupant| make(*occupant).with_context(|| format!("set {} up", occupant.name()))).collect()
}

/// Measures every site once in every turn.
pub(crate) fn take(
    bench: &Bench<'_>,
    name: &str,
    sites: &mut [Site],
    measure: impl FnMut(&mut Site) -> Result<f64>,
) -> Result<Samples> {
    turns::take(bench.effort.turns, name, sites, |site| site.occupant.name(), measure)
}

/// What disturbs a turn, which is others' use of memory and of the machine below this one, makes it slower and never faster: of so many
/// parts of a turn the fastest counts.
pub(crate) const PARTS: u32 = 4;

pub(crate) fn fastest(mut part: impl FnMut() -> Result<f64>) -> Result<f64> {
    (0..PARTS).try_fold(0.0_f64, |fastest, _| Ok(fastest.max(part()?)))
}

/// A row for each of ours beside each peer, where a site without anything is the peer named `floor`. A second site without anything is
/// beside the first only, in a row that shows the noise.
pub(crate) fn rows(name: &str, unit: Unit, floor: &'static str, sites: &[Site], samples: &Samples) -> Vec<Row> {
    let pairs = |ours: usize, theirs: usize| -> Vec<_> {
        samples[ours].iter().copied().zip(samples[theirs].iter().copied()).collect()
    };
    let among = |accept: &dyn Fn(Occupant) -> bool| -> Vec<usize> {
        (0..sites.len()).filter(|index| accept(sites[*index].occupant)).collect()
    };
    let floors = among(&|occupant| occupant == Occupant::Nothing);
    let mut rows = Vec::new();
    if let [first, second] = floors[..] {
        rows.push(Row::new(&format!("{name}_control"), unit, floor, &pairs(second, first)));
    }
    for ours in among(&Occupant::is_ours) {
        let name = format!("{name}_{}", sites[ours].occupant.name());
        for floor_site in floors.iter().take(1) {
            rows.push(Row::new(&name, unit, floor, &pairs(ours, *floor_site)));
        }
        for theirs in among(&|occupant| occupant.is_peer_of(sites[ours].occupant)) {
            rows.push(Row::new(&name, unit, sites[theirs].occupant.name(), &pairs(ours, theirs)));
        }
    }
    rows
}
