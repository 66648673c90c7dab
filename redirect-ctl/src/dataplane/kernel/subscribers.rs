//! The subscriber maps: hosts and prefixes of both families, the lengths of prefixes in use, and the column that counts.

use std::{collections::BTreeMap, io, net::IpAddr};

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
    super::{ClassId, Error},
    system,
    table::Table,
    take,
};

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
    /// How many entries of `prefixes` have a length.
    by_length: [u32; 128],
}

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

    pub(super) fn remove(&mut self, prefix: &IpNet, settings: &mut SettingsMap) -> Result<(), Error> {
        match prefix {
            IpNet::V4(net) => self.v4.remove(net.network().into(), net.prefix_len(), settings),
            IpNet::V6(net) => self.v6.remove(net.network().into(), net.prefix_len(), settings),
        }
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
        let mut family = Self { hosts, prefixes, by_length: [0; 128] };
        for key in family.prefixes.list()?.into_keys() {
            family.by_length[usize::from(A::of_prefix(key).1)] += 1;
        }
        settings.change(|settings| {
            for len in 0..A::BITS {
                settings.lengths.set::<A>(len, family.by_length[usize::from(len)] != 0);
            }
        })?;
        Ok(family)
    }

    fn longest_match(&self, address: A, settings: &Settings) -> Result<Option<(IpNet, ClassId)>, Error> {
        for len in (0..=A::BITS).rev().filter(|len| *len == A::BITS || settings.lengths.has::<A>(*len)) {
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

    fn get(&self, address: A, len: u8) -> Result<Option<Subscriber>, Error> {
        if len == A::BITS { self.hosts.get(&address) } else { self.prefixes.get(&address.prefix(len)) }
    }

    fn set(&mut self, address: A, len: u8, subscriber: Subscriber, settings: &mut SettingsMap) -> Result<(), Error> {
        if len == A::BITS {
            return self.hosts.set(&address, &subscriber).map_err(full);
        }
        let key = address.prefix(len);
        let is_there = self.prefixes.get(&key)?.is_some();
        self.use_length(len, settings)?;
        let set = self.prefixes.set(&key, &subscriber).map_err(full);
        self.by_length[usize::from(len)] += u32::from(set.is_ok() && !is_there);
        self.spare_length(len, settings)?;
        set
    }

    fn remove(&mut self, address: A, len: u8, settings: &mut SettingsMap) -> Result<(), Error> {
        if len == A::BITS {
            return self.hosts.remove(&address).map(drop);
        }
        if self.prefixes.remove(&address.prefix(len))? {
            self.by_length[usize::from(len)] -= 1;
        }
        self.spare_length(len, settings)
    }

    /// Packets look for prefixes of a length from before the first one is there,
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

fn net<A: Address>(address: A, len: u8) -> Result<IpNet, Error> {
    IpNet::new(address.to_ip(), len).map_err(|error| Error::System {
        what: "read a prefix from the kernel".to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, error),
    })
}
