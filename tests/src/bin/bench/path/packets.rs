//! Packets of the generator: those that are nobody's business, and those of subscribers who may not.

use anyhow::{Context as _, Result, ensure};
use redirect_common::{policy::Action, reason::Reason};
use redirect_ctl::dataplane::{Dataplane as _, Hook};

use super::{
    Bench, cpu,
    generator::{Direction, Flows, Generator, SUBSCRIBER_BITS, Stream},
    site::{Floor, Occupant, Peer, Site, device_index, received},
    turns,
};
use crate::report::{Row, Unit};

/// Packets of a turn that are sent before those that count.
const WARM_UP: u32 = 10_000;
/// Packets that may arrive though nobody sent them, because neighbours are looked for, or may not: conntrack drops the second packet of a
/// flow that it meets before it is done with the first.
const STRAY: u64 = 200;
/// Sources of blocked and rejected SYNs, where there are fewer than a million.
const FEW: u32 = 1 << 17;
/// Packets of another port.
pub(crate) fn bystanders(bench: &Bench<'_>) -> Result<Vec<Row>> {
    let scenarios = [
        ("bystander_one_flow", Direction::Out, Flows::One),
        ("bystander_100k_flows", Direction::Out, Flows::Many(100_000)),
        ("bystander_100k_flows_back", Direction::Back, Flows::Many(100_000)),
        ("bystander_new_flows", Direction::Out, Flows::New(1 << SUBSCRIBER_BITS)),
    ];
    let wanted: Vec<_> = scenarios.into_iter().filter(|(name, ..)| bench.wants(name)).collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let ours = [Hook::Xdp, Hook::Tc].map(|hook| Occupant::Dataplane { hook, million: true });
    let peers = [Peer::NftRedirect, Peer::NftRedirectMillion, Peer::NftTproxy, Peer::IpsetRedirectMillion];
    let floors = [Floor::XdpPass, Floor::TcxPass].map(Occupant::Floor);
    let occupants = [&[Occupant::Nothing; 2][..], &ours, &floors, &peers.map(Occupant::Peer)].concat();
    let mut sites = turns::set_up(&occupants, Site::for_packets)?;
    let mut rows = Vec::new();
    for (name, direction, flows) in wanted {
        let stream = Stream { direction, flows, server_port: 443 };
        let samples = turns::take(bench, name, &mut sites, |site| throughput(bench, site, &stream, Fate::Arrive))?;
        rows.extend(turns::rows(name, Unit::PACKETS_PER_SECOND, "none", &sites, &samples));
    }
    Ok(rows)
}

/// SYNs to port 25 that are discarded in silence, or answered with a reset.
pub(crate) fn refused(bench: &Bench<'_>) -> Result<Vec<Row>> {
    let syns = |subscribers| Stream { direction: Direction::Out, flows: Flows::New(subscribers), server_port: 25 };
    let (few, million) = (syns(FEW), syns(1 << SUBSCRIBER_BITS));
    let ours = |million| [Hook::Xdp, Hook::Tc].map(|hook| Occupant::Dataplane { hook, million });
    let with = |ours: [Occupant; 2], peers: &[Peer]| {
        let peers: Vec<_> = peers.iter().copied().map(Occupant::Peer).collect();
        [&ours, &peers[..]].concat()
    };
    let and_floor = |occupants: Vec<Occupant>| [&occupants[..], &[Occupant::Floor(Floor::XdpDrop)]].concat();
    let mut rows = Vec::new();
    for (name, action, stream, occupants) in [
        ("block_syn", Action::Block, &few, and_floor(with(ours(false), &[Peer::NftDrop]))),
        (
            "block_syn_1m",
            Action::Block,
            &million,
            and_floor(with(ours(true), &[Peer::NftDropMillion, Peer::IpsetDropMillion])),
        ),
        ("reject_syn", Action::Reject, &few, with(ours(false), &[Peer::NftReject])),
    ] {
        if !bench.wants(name) {
            continue;
        }
        let mut free = Site::for_packets(Occupant::Nothing)?;
        throughput(bench, &mut free, stream, Fate::Arrive).context("where nobody refuses them")?;
        drop(free);
        let (reason, fate) = match action {
            Action::Reject => (Reason::ClassReject, Fate::Bounce),
            _ => (Reason::ClassBlock, Fate::Vanish),
        };
        let mut sites = turns::set_up(&occupants, Site::for_packets)?;
        for site in &mut sites {
            site.set_action(action)?;
        }
        let samples = turns::take(bench, name, &mut sites, |site| {
            let before = site.counted(reason)?;
            let sample = throughput(bench, site, stream, fate)?;
            let counted = site.counted(reason)?.zip(before).map(|(after, before)| after - before);
            let sent = u64::from(WARM_UP + turns::PARTS * bench.effort.packets);
            ensure!(counted.is_none_or(|counted| counted == sent), "{counted:?} of {sent} left by {}", reason.name());
            Ok(sample)
        })?;
        rows.extend(turns::rows(name, Unit::PACKETS_PER_SECOND, "none", &sites, &samples));
    }
    Ok(rows)
}

/// What has to become of the packets of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Arrive,
    Vanish,
    /// A reset comes back for each.
    Bounce,
}

/// Packets a second that the site takes of a stream. Fails unless all of them meet their fate.
fn throughput(bench: &Bench<'_>, site: &mut Site, stream: &Stream, fate: Fate) -> Result<f64> {
    let (from, to) = match stream.direction {
        Direction::Out => (&site.lab.client, &site.lab.internet),
        Direction::Back => (&site.lab.internet, &site.lab.client),
    };
    site.forget_connections()?;
    if let Some(dataplane) = &mut site.dataplane {
        // Resets are rationed by the second.
        site.second_s += 1;
        dataplane.tick(site.second_s)?;
    }
    let generator = Generator::new(stream, device_index(from, "eth0")?).context("load the generator")?;
    let before = [received(to, "eth0")?, received(from, "eth0")?];
    let rate = from.enter(|| {
        cpu::claim(bench.cpu)?;
        generator.send(WARM_UP).context("send packets")?;
        turns::fastest(|| {
            let nanoseconds = generator.send(bench.effort.packets).context("send packets")?;
            Ok(1e9 / f64::from(u32::try_from(nanoseconds)?))
        })
    })?;
    let arrived = received(to, "eth0")? - before[0];
    let bounced = received(from, "eth0")? - before[1];
    let sent = u64::from(WARM_UP + turns::PARTS * bench.effort.packets);
    let expected = match fate {
        Fate::Arrive => [sent, 0],
        Fate::Vanish => [0, 0],
        Fate::Bounce => [0, sent],
    };
    for (count, expected) in [arrived, bounced].into_iter().zip(expected) {
        ensure!(count.abs_diff(expected) <= STRAY, "of {sent} packets {arrived} arrived and {bounced} came back");
    }
    Ok(rate)
}
