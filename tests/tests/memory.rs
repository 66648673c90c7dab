//! What the tables cost, as the kernel says.

use std::collections::BTreeMap;

use redirect_common::maps::{ENTRIES_PER_FLOW, names};
use redirect_ctl::dataplane::{
    Dataplane as _,
    kernel::{Capacities, KernelDataplane},
};

/// A power of two, as the kernel's buckets are: a million costs no more for each.
const CAPACITY: u32 = 1 << 17;

#[test]
fn a_million_subscribers_or_flows_cost_no_more_than_said() {
    let dataplane = KernelDataplane::load(Capacities { flows_max: CAPACITY, subscribers_max: CAPACITY }).unwrap();
    let memory: BTreeMap<_, _> = dataplane.memory().unwrap().into_iter().map(|map| (map.name.clone(), map)).collect();
    let each = |name: &str| memory[name].bytes.div_ceil(memory[name].capacity);
    let two = u64::from(ENTRIES_PER_FLOW);
    // In bytes for one, or MB for a million: what docs/operate.md says, and a little for what does not grow.
    for (what, bytes, most) in [
        ("IPv4 host", each(names::HOSTS_V4), 19),
        ("IPv6 host", each(names::HOSTS_V6), 43),
        ("IPv4 prefix", each(names::PREFIXES_V4), 19),
        ("IPv6 prefix", each(names::PREFIXES_V6), 43),
        ("IPv4 flow", each(names::FLOWS_V4) * two, 226),
        ("IPv6 flow", each(names::FLOWS_V6) * two, 322),
    ] {
        println!("{what}: {bytes} bytes");
        assert!(bytes <= most, "{what}: {bytes}");
    }
}
