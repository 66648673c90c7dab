//! The subscriber maps: hosts and prefixes of both families, the lengths of prefixes in use, and the column that counts.

use std::{collections::BTreeMap, io, net::IpAddr, thread};

use aya::{
    Ebpf, Pod,
    maps::{Array, MapData},
};
use ipnet::IpNet;
use redirect_common::{
    address::{Address, V4, V6},
    bucket::{Key, PLACES_V4, PLACES_V6},
    maps::names,
    policy::Settings,
    subscriber::Subscriber,
};

use super::{
    super::{ClassId, Error, SubscriberChange},
    buckets::{Buckets, Full},
    system, take,
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
    v4: Family<V4, PLACES_V4>,
    v6: Family<V6, PLACES_V6>,
}

/// `PLACES` as in [`Buckets`].
struct Family<A: Address<Prefix: Key + Pod> + Key + Pod, const PLACES: usize> {
    hosts: Buckets<A, PLACES>,
    prefixes: Buckets<A::Prefix, PLACES>,
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

    pub(super) fn get(&self, prefix: &IpNet) -> Option<ClassId> {
        let subscriber = match prefix {
            IpNet::V4(net) => self.v4.get(net.network().into(), net.prefix_len()),
            IpNet::V6(net) => self.v6.get(net.network().into(), net.prefix_len()),
        };
        subscriber.map(told)
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
pub(super) fn wait_for_programs() {
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

impl<A: Address<Prefix: Key + Pod> + Key + Pod, const PLACES: usize> Family<A, PLACES> {
    fn take(
        object: &mut Ebpf,
        hosts: &'static str,
        prefixes: &'static str,
        settings: &mut SettingsMap,
    ) -> Result<Self, Error> {
        let (hosts, prefixes) = (Buckets::take(object, hosts)?, Buckets::<A::Prefix, PLACES>::take(object, prefixes)?);
        let mut by_length: ByLength = [0; _];
        by_length[usize::from(A::BITS)] = hosts.entries();
        for (key, _) in prefixes.iter() {
            by_length[usize::from(A::of_prefix(key).1)] += 1;
        }
        settings.change(|settings| {
            for len in 0..=A::BITS {
                settings.lengths.set::<A>(len, by_length[usize::from(len)] != 0);
            }
        })?;
        Ok(Self { hosts, prefixes, by_length })
    }

    fn longest_match(&self, address: A, settings: &Settings) -> Result<Option<(IpNet, ClassId)>, Error> {
        for len in (0..=A::BITS).rev().filter(|len| settings.lengths.has::<A>(*len)) {
            let class = self.get(address, len).map_or(0, |subscriber| subscriber.class(settings.column));
            if class != 0 {
                return Ok(Some((net(address, len)?.trunc(), class)));
            }
        }
        Ok(None)
    }

    fn list(&self, subscribers: &mut BTreeMap<IpNet, ClassId>) -> Result<(), Error> {
        for (address, subscriber) in self.hosts.iter() {
            subscribers.insert(net(address, A::BITS)?, told(subscriber));
        }
        for (key, subscriber) in self.prefixes.iter() {
            let (address, len) = A::of_prefix(key);
            subscribers.insert(net(address, len)?, told(subscriber));
        }
        Ok(())
    }

    fn some(&self, max: usize) -> Result<Vec<IpNet>, Error> {
        let hosts = self.hosts.iter().take(max).map(|(address, _)| net(address, A::BITS));
        let prefixes = self.prefixes.iter().take(max).map(|(key, _)| A::of_prefix(key));
        hosts.chain(prefixes.map(|(address, len)| net(address, len))).collect()
    }

    fn get(&self, address: A, len: u8) -> Option<Subscriber> {
        if len == A::BITS { self.hosts.get(&address) } else { self.prefixes.get(&address.prefix(len)) }
    }

    /// Packets look for what has a length from before the first entry is there, until after the last one is gone. An entry without a class is none.
    fn set(&mut self, address: A, len: u8, subscriber: Subscriber, settings: &mut SettingsMap) -> Result<(), Error> {
        if subscriber == Subscriber::NONE {
            return self.remove(address, len, settings);
        }
        let entries = self.by_length[usize::from(len)];
        if entries == 0 {
            settings.change(|settings| settings.lengths.set::<A>(len, true))?;
        }
        let set = if len == A::BITS {
            self.hosts.set(&address, subscriber)
        } else {
            self.prefixes.set(&address.prefix(len), subscriber)
        };
        match set {
            Ok(is_new) => self.by_length[usize::from(len)] += u32::from(is_new),
            Err(Full) if entries == 0 => settings.change(|settings| settings.lengths.set::<A>(len, false))?,
            Err(Full) => {}
        }
        set.map(drop).map_err(|Full| Error::Full { table: "the subscriber table", key: "dataplane.subscribers_max" })
    }

    fn remove(&mut self, address: A, len: u8, settings: &mut SettingsMap) -> Result<(), Error> {
        let was_there =
            if len == A::BITS { self.hosts.remove(&address) } else { self.prefixes.remove(&address.prefix(len)) };
        if was_there {
            let entries = &mut self.by_length[usize::from(len)];
            *entries -= 1;
            if *entries == 0 {
                settings.change(|settings| settings.lengths.set::<A>(len, false))?;
            }
        }
        Ok(())
    }

    fn stage(&mut self, changes: &[Change<A>], settings: &mut SettingsMap) -> Result<(), Error> {
        let idle = settings.get()?.column ^ 1;
        for (address, len, class) in changes {
            let subscriber = self.get(*address, *len).unwrap_or_default().with_class(idle, class.unwrap_or(0));
            self.set(*address, *len, subscriber, settings)?;
        }
        Ok(())
    }

    fn settle(&mut self, changes: &[Change<A>], settings: &mut SettingsMap) -> Result<(), Error> {
        for (address, len, class) in changes {
            self.set(*address, *len, class.map_or(Subscriber::NONE, Subscriber::new), settings)?;
        }
        Ok(())
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

pub(super) fn net<A: Address>(address: A, len: u8) -> Result<IpNet, Error> {
    IpNet::new(address.to_ip(), len).map_err(|error| Error::System {
        what: "read a prefix from the kernel".to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, error),
    })
}
