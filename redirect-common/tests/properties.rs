//! What the fuzz targets check, on the inputs that they begin with.

use std::collections::BTreeSet;

use redirect_common::{
    reason::Reason,
    testkit::properties::{TARGETS, reasons},
};

#[test]
fn hold_for_every_seed() {
    for target in TARGETS {
        for seed in (target.seeds)() {
            (target.check)(&seed);
        }
    }
}

/// Frames of the host can all be edited and are all its own; for a clash, eight ports that nobody could guess have to be taken.
const OUT_OF_REACH: [Reason; 5] =
    [Reason::EditFailed, Reason::ReplyForwarded, Reason::ClashPass, Reason::ClashBlock, Reason::ClashReject];

/// A fuzzer finds what is next to its seeds.
#[test]
fn the_seeds_take_every_way_out() {
    let [_, handle, _] = TARGETS;
    let taken: BTreeSet<_> = (handle.seeds)().iter().flat_map(|seed| reasons(seed)).collect();
    let missing: Vec<_> = Reason::ALL.iter().filter(|reason| !taken.contains(reason)).collect();
    assert!(missing.iter().all(|reason| OUT_OF_REACH.contains(reason)), "{missing:?}");
}
