//! The subscriber maps: hosts and prefixes of both families, the lengths of prefixes in use, and the column that counts.

use std::{collections::BTreeMap, io, net::IpAddr, thread};

use aya::{
    Ebpf, Pod,
    maps::{Array, MapData},
};
use ipnet::IpNet;
use redirect_common::{
    address::{Address, V4, V6},
    maps::names,
    policy::Settings,
    subscriber::Subscriber,
};

use super::{
    super::{ClassId, Error, SubscriberChange},
    system,
    table::Table,
    take,
};
use crate::limits;

/// The one entry of the settings map.
pub(super) struct SettingsMap(Array<MapData, Settings>);

impl SettingsMap {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        take(object, names::SETTINGS).map(Self)
    }

    pub(super) fn get(&self) -> Result<Settings, Error> {
        self.0.get(&0, 0).map_err(|error| system("read the settings", error))
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut Settings)) -> Result<(), Error> {
        let mut settings = self.get()?;
        change(&mut settings);
        self.0.set(0, settings, 0).map_err(|error| system("write the settings", error))
    }
}

/// The maps of both families.
pub(super) struct Subscribers {
    v4: Family<V4>,
    v6: Family<V6>,
}

struct Family<A: Address> {
    hosts: Table<A, Subscriber>,
    prefixes: Table<A::Prefix, Subscriber>,
    /// How many entries have a length; that of an address is the hosts'.
    by_length: ByLength,
}

/// A number for each length of a prefix, also for those that only IPv6 has.
type ByLength = [u32; 129];

impl Subscribers {
    /// Takes the maps over, with whatever is in them.
    pub(super) fn take(object: &mut Ebpf, settings: &mut SettingsMap) -> Result<Self, Error> {
        Ok(Self {
            v4: Family::take(object, names::HOSTS_V4, names::PREFIXES_V4, settings)?,
            v6: Family::take(object, names::HOSTS_V6, names::PREFIXES_V6, settings)?,
        })
    }

    /// The subscriber that an address belongs to, found as the programs find it.
    pub(super) fn longest_match(&self, ip: IpAddr, settings: &Settings) -> Result<Option<(IpNet, ClassId)>, Error> {
        match ip {
            IpAddr::V4(ip) => self.v4.longest_match(ip.into(), settings),
            IpAddr::V6(ip) => self.v6.longest_match(ip.into(), settings),
        }
    }

    pub(super) fn list(&self) -> Result<BTreeMap<IpNet, ClassId>, Error> {
        let mut subscribers = BTreeMap::new();
        self.v4.list(&mut subscribers)?;
        self.v6.list(&mut subscribers)?;
        Ok(subscribers)
    }

    /// A few of each kind, whichever come first.
    pub(super) fn some(&self, max: usize) -> Result<Vec<IpNet>, Error> {
        let mut prefixes = self.v4.some(max)?;
        prefixes.extend(self.v6.some(max)?);
        Ok(prefixes)
    }

    pub(super) fn get(&self, prefix: &IpNet) -> Result<Option<ClassId>, Error> {
        let subscriber = match prefix {
            IpNet::V4(net) => self.v4.get(net.network().into(), net.prefix_len())?,
            IpNet::V6(net) => self.v6.get(net.network().into(), net.prefix_len())?,
        };
        Ok(subscriber.map(told))
    }

    pub(super) fn set(&mut self, prefix: &IpNet, class: ClassId, settings: &mut SettingsMap) -> Result<(), Error> {
        let subscriber = Subscriber::new(class);
        match prefix {
            IpNet::V4(net) => self.v4.set(net.network().into(), net.prefix_len(), subscriber, settings),
            IpNet::V6(net) => self.v6.set(net.network().into(), net.prefix_len(), subscriber, settings),
        }
    }

    /// Writes changes into the column that does not count.
    pub(super) fn stage(&mut self, changes: &[SubscriberChange], settings: &mut SettingsMap) -> Result<(), Error> {
        let (v4, v6) = by_family(changes);
        self.v4.stage(&v4, settings)?;
        self.v6.stage(&v6, settings)
    }

    /// Writes changes that the column that counts has into the other one, and removes what is in neither.
    pub(super) fn settle(&mut self, changes: &[SubscriberChange], settings: &mut SettingsMap) -> Result<(), Error> {
        let (v4, v6) = by_family(changes);
        self.v4.settle(&v4, settings)?;
        self.v6.settle(&v6, settings)
    }

    pub(super) fn remove(&mut self, prefix: &IpNet, settings: &mut SettingsMap) -> Result<(), Error> {
        match prefix {
            IpNet::V4(net) => self.v4.remove(net.network().into(), net.prefix_len(), settings),
            IpNet::V6(net) => self.v6.remove(net.network().into(), net.prefix_len(), settings),
        }
    }
}

/// Has the other column count. No packet is being decided by the one that counted once this returns, so that it may be written.
pub(super) fn switch_column(settings: &mut SettingsMap) -> Result<(), Error> {
    // A packet sees what was staged if it sees the switch, on a processor that reorders reads too.
    wait_for_programs();
    settings.change(|settings| settings.column ^= 1)?;
    wait_for_programs();
    Ok(())
}

/// Returns once every program that was running has ended: the kernel runs them within RCU's read-side sections, and this waits for those.
fn wait_for_programs() {
    /// `MEMBARRIER_CMD_GLOBAL` (include/uapi/linux/membarrier.h), which is `synchronize_rcu`.
    const GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes no address.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result != 0 {
        // Not on a kernel with CPUs that have no tick (`nohz_full`).
        thread::sleep(limits::PROGRAM_RUN_MAX);
    }
}

/// What is told of an entry: its class, or 0 where a change of many has left it half-way.
const fn told(subscriber: Subscriber) -> ClassId {
    if subscriber.is_settled() { subscriber.class(0) } else { 0 }
}

impl<A> Family<A>
where
    A: Address + Pod,
    A::Prefix: Pod,
{
    fn take(
        object: &mut Ebpf,
        hosts: &'static str,
        prefixes: &'static str,
        settings: &mut SettingsMap,
    ) -> Result<Self, Error> {
        let (hosts, prefixes) = (Table::take(object, hosts)?, Table::take(object, prefixes)?);
        let mut family = Self { hosts, prefixes, by_length: [0; _] };
        family.count(settings)?;
        Ok(family)
    }

    /// Finds out which lengths are in use.
    fn count(&mut self, settings: &mut SettingsMap) -> Result<(), Error> {
        self.by_length = [0; _];
        self.by_length[usize::from(A::BITS)] = self.hosts.len()?;
        for key in self.prefixes.list()?.into_keys() {
            self.by_length[usize::from(A::of_prefix(key).1)] += 1;
        }
        settings.change(|settings| {
            for len in 0..=A::BITS {
                settings.lengths.set::<A>(len, self.by_length[usize::from(len)] != 0);
            }
        })
    }

    fn longest_match(&self, address: A, settings: &Settings) -> Result<Option<(IpNet, ClassId)>, Error> {
        for len in (0..=A::BITS).rev().filter(|len| settings.lengths.has::<A>(*len)) {
            let class = self.get(address, len)?.map_or(0, |subscriber| subscriber.class(settings.column));
            if class != 0 {
                return Ok(Some((net(address, len)?.trunc(), class)));
            }
        }
        Ok(None)
    }

    fn list(&self, subscribers: &mut BTreeMap<IpNet, ClassId>) -> Result<(), Error> {
        for (address, subscriber) in self.hosts.list()? {
            subscribers.insert(net(address, A::BITS)?, told(subscriber));
        }
        for (key, subscriber) in self.prefixes.list()? {
            let (address, len) = A::of_prefix(key);
            subscribers.insert(net(address, len)?, told(subscriber));
        }
        Ok(())
    }

    fn some(&self, max: usize) -> Result<Vec<IpNet>, Error> {
        let hosts = self.hosts.some(max)?.map(|(address, _)| net(address, A::BITS));
        let prefixes =
            self.prefixes.some(max)?.map(|(key, _)| A::of_prefix(key)).map(|(address, len)| net(address, len));
        hosts.chain(prefixes).collect()
    }

    fn get(&self, address: A, len: u8) -> Result<Option<Subscriber>, Error> {
        if len == A::BITS { self.hosts.get(&address) } else { self.prefixes.get(&address.prefix(len)) }
    }

    fn set(&mut self, address: A, len: u8, subscriber: Subscriber, settings: &mut SettingsMap) -> Result<(), Error> {
        let is_there = self.get(address, len)?.is_some();
        self.use_length(len, settings)?;
        let set = if len == A::BITS {
            self.hosts.set(&address, &subscriber).map_err(full)
        } else {
            self.prefixes.set(&address.prefix(len), &subscriber).map_err(full)
        };
        self.by_length[usize::from(len)] += u32::from(set.is_ok() && !is_there);
        self.spare_length(len, settings)?;
        set
    }

    fn remove(&mut self, address: A, len: u8, settings: &mut SettingsMap) -> Result<(), Error> {
        let was_there =
            if len == A::BITS { self.hosts.remove(&address)? } else { self.prefixes.remove(&address.prefix(len))? };
        if was_there {
            self.by_length[usize::from(len)] -= 1;
        }
        self.spare_length(len, settings)
    }

    fn stage(&mut self, changes: &[Change<A>], settings: &mut SettingsMap) -> Result<(), Error> {
        let idle = settings.get()?.column ^ 1;
        let (mut hosts, mut prefixes) = (Vec::new(), Vec::new());
        let mut new: ByLength = [0; _];
        for (address, len, class) in changes {
            let before = self.get(*address, *len)?;
            let subscriber = before.unwrap_or_default().with_class(idle, class.unwrap_or(0));
            new[usize::from(*len)] += u32::from(before.is_none());
            if *len == A::BITS {
                hosts.push((*address, subscriber));
            } else {
                prefixes.push((address.prefix(*len), subscriber));
            }
        }
        for len in lengths::<A>(&new) {
            self.use_length(len, settings)?;
        }
        if let Err(error) = self.hosts.set_all(&hosts).and_then(|()| self.prefixes.set_all(&prefixes)) {
            // Some are there, and some are not.
            self.count(settings)?;
            return Err(full(error));
        }
        for len in lengths::<A>(&new) {
            self.by_length[usize::from(len)] += new[usize::from(len)];
        }
        Ok(())
    }

    fn settle(&mut self, changes: &[Change<A>], settings: &mut SettingsMap) -> Result<(), Error> {
        let (mut hosts, mut prefixes) = (Vec::new(), Vec::new());
        for (address, len, class) in changes {
            match class {
                Some(class) if *len == A::BITS => hosts.push((*address, Subscriber::new(*class))),
                Some(class) => prefixes.push((address.prefix(*len), Subscriber::new(*class))),
                None => self.remove(*address, *len, settings)?,
            }
        }
        self.hosts.set_all(&hosts).map_err(full)?;
        self.prefixes.set_all(&prefixes).map_err(full)
    }

    /// Packets look for what has a length from before the first one is there,
    fn use_length(&self, len: u8, settings: &mut SettingsMap) -> Result<(), Error> {
        if self.by_length[usize::from(len)] != 0 {
            return Ok(());
        }
        settings.change(|settings| settings.lengths.set::<A>(len, true))
    }

    /// until after the last one is gone.
    fn spare_length(&self, len: u8, settings: &mut SettingsMap) -> Result<(), Error> {
        if self.by_length[usize::from(len)] != 0 {
            return Ok(());
        }
        settings.change(|settings| settings.lengths.set::<A>(len, false))
    }
}

/// A [`SubscriberChange`] of one family.
type Change<A> = (A, u8, Option<ClassId>);

fn by_family(changes: &[SubscriberChange]) -> (Vec<Change<V4>>, Vec<Change<V6>>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (prefix, class) in changes {
        match prefix {
            IpNet::V4(net) => v4.push((net.network().into(), net.prefix_len(), *class)),
            IpNet::V6(net) => v6.push((net.network().into(), net.prefix_len(), *class)),
        }
    }
    (v4, v6)
}

/// The lengths that are counted at all.
fn lengths<A: Address>(counts: &ByLength) -> impl Iterator<Item = u8> + '_ {
    (0..=A::BITS).filter(|len| counts[usize::from(*len)] != 0)
}

/// A table that is full is for the operator to make larger.
fn full(error: Error) -> Error {
    match error {
        Error::System { source, .. }
            if matches!(source.raw_os_error(), Some(libc::E2BIG | libc::ENOMEM | libc::ENOSPC)) =>
        {
            Error::Full { table: "the subscriber table", key: "dataplane.subscribers_max" }
        }
        error => error,
    }
}

pub(super) fn net<A: Address>(address: A, len: u8) -> Result<IpNet, Error> {
    IpNet::new(address.to_ip(), len).map_err(|error| Error::System {
        what: "read a prefix from the kernel".to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, error),
    })
}
