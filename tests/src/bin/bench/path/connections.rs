//! Connections that reach the relay, though the client dialled another server.

use std::{
    net::{IpAddr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Result, ensure};
use redirect_common::reason::Reason;
use redirect_ctl::dataplane::Hook;
use redirect_tests::Family;

use super::{
    Bench,
    site::{Floor, Occupant, Peer, RELAY, Site},
    traffic::{self, Connections, Offloads},
    turns,
};
use crate::report::{Row, Unit};

/// Parts of a sustained run.
const SLICES: u32 = 10;
/// For a slice; one that takes longer has come to a standstill.
const SLICE_MAX: Duration = Duration::from_secs(15);

const CONNECTIONS: &str = "redirect_connections";
const SUSTAINED: &str = "redirect_connections_sustained";

/// One connection with all it can carry, and many that carry nothing.
pub(crate) fn redirected(bench: &Bench<'_>) -> Result<Vec<Row>> {
    let bulk = [
        ("redirect_bulk_gso", Offloads::All),
        ("redirect_bulk_mtu", Offloads::Checksums),
        ("redirect_bulk_mtu_checksummed", Offloads::Nothing),
    ];
    let wanted: Vec<_> = bulk.into_iter().filter(|(name, _)| bench.wants(name)).collect();
    let (wants_connections, wants_sustained) = (bench.wants(CONNECTIONS), bench.wants(SUSTAINED));
    if wanted.is_empty() && !wants_connections && !wants_sustained {
        return Ok(Vec::new());
    }
    // The two with XDP come last, because they take part only where every checksum is computed.
    let occupants = [
        Occupant::Nothing,
        Occupant::Nothing,
        Occupant::Redirectd(Hook::Tc),
        Occupant::Peer(Peer::NftRedirect),
        Occupant::Peer(Peer::NftTproxy),
        Occupant::Redirectd(Hook::Xdp),
        Occupant::Floor(Floor::XdpPass),
    ];
    let mut sites = turns::set_up(&occupants, |occupant| Site::for_connections(occupant, bench.cpu))?;
    let mut rows = Vec::new();
    for (name, offloads) in wanted {
        let count = if offloads == Offloads::Nothing { sites.len() } else { sites.len() - 2 };
        let sites = &mut sites[..count];
        sites.iter().try_for_each(|site| traffic::set_offloads(&site.lab, offloads))?;
        let samples = turns::take(bench, name, sites, |site| {
            turns::fastest(|| traffic::bulk(&site.lab.client, server(site), bench.effort.bulk, bench.cpu))
        })?;
        rows.extend(turns::rows(name, Unit::GIGABITS_PER_SECOND, "direct", sites, &samples));
    }
    sites.iter().try_for_each(|site| traffic::set_offloads(&site.lab, Offloads::Nothing))?;
    if wants_connections {
        let samples = turns::take(bench, CONNECTIONS, &mut sites, |site| {
            site.forget_connections()?;
            let count = bench.effort.connections;
            turns::fastest(|| {
                let made = connections(bench, site, count)?;
                ensure!(made.done == count, "{} of {count} connections came about", made.done);
                Ok(made.per_second())
            })
        })?;
        rows.extend(turns::rows(CONNECTIONS, Unit::CONNECTIONS_PER_SECOND, "direct", &sites, &samples));
    }
    if wants_sustained {
        // Of two sites without anything one is enough, and the floor of XDP is known by then.
        let last = sites.len() - 1;
        rows.extend(sustained(bench, &mut sites[1..last])?);
    }
    Ok(rows)
}

/// One long run in each site, slice by slice, until it comes to a standstill.
fn sustained(bench: &Bench<'_>, sites: &mut [Site]) -> Result<Vec<Row>> {
    let slice = bench.effort.sustained / SLICES;
    let (mut totals, mut samples) = (Vec::new(), Vec::new());
    for site in &mut *sites {
        eprintln!("{SUSTAINED}: {SLICES} times {slice}, {}", site.occupant.name());
        site.forget_connections()?;
        let (mut total, mut rates) = (0, Vec::new());
        for _ in 0..SLICES {
            let made = connections(bench, site, slice)?;
            total += made.done;
            rates.push(made.per_second());
            if made.done < slice {
                break;
            }
        }
        if let Some(count @ 1..) = site.counted_by_daemon(Reason::FlowUnpromoted)? {
            eprintln!(
                "{SUSTAINED}: {}: {count} packets found the table of established flows full",
                site.occupant.name()
            );
        }
        totals.push(vec![f64::from(total)]);
        samples.push(rates);
    }
    let mut rows = turns::rows(SUSTAINED, Unit::CONNECTIONS_PER_SECOND, "direct", sites, &samples);
    rows.extend(turns::rows(&format!("{SUSTAINED}_total"), Unit::CONNECTIONS, "direct", sites, &totals));
    Ok(rows)
}

fn connections(bench: &Bench<'_>, site: &mut Site, count: u32) -> Result<Connections> {
    let first = site.connections;
    site.connections += count;
    traffic::connections(&site.lab.client, server(site), first, count, SLICE_MAX, bench.cpu)
}

/// Where a client of the site dials to reach the relay.
fn server(site: &Site) -> SocketAddrV4 {
    match (site.occupant, Family::V4.server()) {
        (Occupant::Nothing | Occupant::Floor(_), _) | (_, IpAddr::V6(_)) => SocketAddrV4::new(RELAY.0, RELAY.1),
        (_, IpAddr::V4(server)) => SocketAddrV4::new(server, 25),
    }
}
