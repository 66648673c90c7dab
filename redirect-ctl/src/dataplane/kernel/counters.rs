//! The counters of packets, and the places that interfaces have in them.
#![expect(clippy::cast_possible_truncation, reason = "places and classes are below 64")]

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use redirect_common::{
    maps::{
        CLASSES_MAX, COUNTERS_MAX, Count, INTERFACE_COUNTERS_MAX, INTERFACE_INDICES, INTERFACES_MAX, Interface,
        counter_index, interface_counter_index, names,
    },
    reason::Reason,
};

use super::{
    super::{ClassId, Counter, Counters as Rows, Error, InterfaceCounter},
    batch, not_loaded, system, take,
};

pub(super) struct Counters {
    classes: Table,
    interfaces: Table,
    /// Where a packet finds the place of its interface.
    places: Array<MapData, Interface>,
    /// Who has each place; place 0 belongs to all that have none of their own.
    owners: [Owner; INTERFACES_MAX as usize],
    /// What interfaces counted whose places others have by now.
    gone: [Count; Reason::COUNT],
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Owner {
    #[default]
    Nobody,
    /// Its counts are still there.
    Gone,
    Interface {
        ifindex: u32,
        name: String,
    },
}

impl Counters {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            classes: Table::take(object, names::COUNTERS)?,
            interfaces: Table::take(object, names::INTERFACE_COUNTERS)?,
            places: take(object, names::INTERFACES)?,
            owners: Default::default(),
            gone: [Count::default(); Reason::COUNT],
        })
    }

    /// Goes on with the places and counts of a daemon before this one; `attached` are the interfaces that packets come by, by their indices.
    pub(super) fn resume(&mut self, attached: &BTreeMap<u32, String>) -> Result<(), Error> {
        let counts = self.interfaces.read(INTERFACE_COUNTERS_MAX)?;
        for slot in 1..self.owners.len() {
            let counted = Reason::ALL.iter().any(|reason| {
                let index = interface_counter_index(slot as u32, *reason);
                counts[index as usize] != Count::default()
            });
            if counted {
                self.owners[slot] = Owner::Gone;
            }
        }
        for key in 0..INTERFACE_INDICES {
            let place = self.places.get(&key, 0).map_err(|error| system("read the places of interfaces", error))?;
            let slot = place.slot as usize;
            if slot == 0 {
                continue;
            }
            match (attached.get(&place.ifindex), self.owners.get_mut(slot)) {
                (Some(name), Some(owner)) => {
                    *owner = Owner::Interface { ifindex: place.ifindex, name: name.clone() };
                }
                (None, _) | (_, None) => self.set_place(key, Interface::default())?,
            }
        }
        Ok(())
    }

    /// Gives an interface a place of its own before packets come. Where there is none it counts among the others, in place 0.
    pub(super) fn open(&mut self, name: &str, ifindex: u32) -> Result<(), Error> {
        let key = ifindex % INTERFACE_INDICES;
        let taken = self.places.get(&key, 0).map_err(|error| system("read the places of interfaces", error))?;
        let Some(slot) = free(&self.owners).filter(|_| taken.slot == 0) else {
            tracing::info!(interface = name, "no place for counters of its own; it counts among the others");
            return Ok(());
        };
        if self.owners[slot] == Owner::Gone {
            self.empty(slot)?;
        }
        self.set_place(key, Interface { ifindex, slot: slot as u32 })?;
        self.owners[slot] = Owner::Interface { ifindex, name: name.to_owned() };
        Ok(())
    }

    /// Takes the place back after the last packet.
    pub(super) fn close(&mut self, name: &str) -> Result<(), Error> {
        for slot in 0..self.owners.len() {
            let ifindex = match &self.owners[slot] {
                Owner::Interface { ifindex, name: owner } if owner == name => *ifindex,
                Owner::Nobody | Owner::Gone | Owner::Interface { .. } => continue,
            };
            self.owners[slot] = Owner::Gone;
            self.set_place(ifindex % INTERFACE_INDICES, Interface::default())?;
        }
        Ok(())
    }

    /// One system call for each table from Linux 5.13 on, where one for each counter makes 6,000.
    pub(super) fn read(&self) -> Result<Rows, Error> {
        let classes = self.classes.read(COUNTERS_MAX)?;
        let interfaces = self.interfaces.read(INTERFACE_COUNTERS_MAX)?;
        Ok(rows(&classes, &interfaces, &self.owners, &self.gone))
    }

    /// What a place holds is kept before it begins again at zero.
    fn empty(&mut self, slot: usize) -> Result<(), Error> {
        let counts = self.interfaces.read(INTERFACE_COUNTERS_MAX)?;
        for reason in Reason::ALL {
            let index = interface_counter_index(slot as u32, *reason);
            add(&mut self.gone[*reason as usize], counts[index as usize]);
            self.interfaces.empty(index)?;
        }
        Ok(())
    }

    fn set_place(&mut self, key: u32, place: Interface) -> Result<(), Error> {
        self.places.set(key, place, 0).map_err(|error| system("write the places of interfaces", error))
    }
}

/// A place that nobody had before, else one whose owner is gone.
fn free(owners: &[Owner]) -> Option<usize> {
    let first = |wanted: &Owner| (1..owners.len()).find(|slot| owners[*slot] == *wanted);
    first(&Owner::Nobody).or_else(|| first(&Owner::Gone))
}

/// Every packet counts by interface, and again by class where it has one; what is left has none.
fn rows(classes: &[Count], interfaces: &[Count], owners: &[Owner], gone: &[Count]) -> Rows {
    let mut rows = Rows::default();
    let mut by_interface: BTreeMap<(Option<&str>, Reason), Count> = BTreeMap::new();
    for reason in Reason::ALL {
        let mut unclassed = Count::default();
        let others = std::iter::once((None, gone[*reason as usize]));
        let placed = owners.iter().enumerate().map(|(slot, owner)| {
            let name = match owner {
                Owner::Interface { name, .. } => Some(name.as_str()),
                Owner::Nobody | Owner::Gone => None,
            };
            (name, interfaces[interface_counter_index(slot as u32, *reason) as usize])
        });
        for (name, count) in others.chain(placed).filter(|(_, count)| count.packets > 0) {
            add(&mut unclassed, count);
            add(by_interface.entry((name, *reason)).or_default(), count);
        }
        for class in 1..CLASSES_MAX as ClassId {
            let Count { packets, bytes } = classes[counter_index(class, *reason) as usize];
            // Packets come while the counters are read.
            unclassed.packets = unclassed.packets.saturating_sub(packets);
            unclassed.bytes = unclassed.bytes.saturating_sub(bytes);
            if packets > 0 {
                rows.classes.push(Counter { class, reason: *reason, packets, bytes });
            }
        }
        let Count { packets, bytes } = unclassed;
        if packets > 0 {
            rows.classes.push(Counter { class: 0, reason: *reason, packets, bytes });
        }
    }
    rows.classes.sort_by_key(|counter| (counter.class, counter.reason));
    rows.interfaces = by_interface
        .into_iter()
        .map(|((interface, reason), Count { packets, bytes })| InterfaceCounter {
            interface: interface.map(str::to_owned),
            reason,
            packets,
            bytes,
        })
        .collect();
    rows
}

fn add(sum: &mut Count, count: Count) {
    sum.packets += count.packets;
    sum.bytes += count.bytes;
}

/// A per-CPU array of counters: single entries by the library, all of them by [`batch`].
struct Table {
    name: &'static str,
    fd: OwnedFd,
    cpus: usize,
    map: PerCpuArray<MapData, Count>,
}

impl Table {
    fn take(object: &mut Ebpf, name: &'static str) -> Result<Self, Error> {
        let map = object.take_map(name).ok_or_else(|| Error::Load { reason: format!("no map {name}") })?;
        let Map::PerCpuArray(data) = &map else {
            return Err(Error::Load { reason: format!("map {name} is no array of each CPU") });
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|source| Error::System { what: format!("duplicate the descriptor of {name}"), source })?;
        let cpus = nr_cpus().map_err(|(_, source)| Error::System { what: "count the CPUs".to_owned(), source })?;
        Ok(Self { name, fd, cpus, map: PerCpuArray::try_from(map).map_err(|error| not_loaded(&error))? })
    }

    /// The counters of all CPUs together, by index.
    fn read(&self, len: u32) -> Result<Vec<Count>, Error> {
        let counts = batch::per_cpu_array::<Count>(self.fd.as_fd(), len as usize, self.cpus)
            .map_err(|source| Error::System { what: format!("read {}", self.name), source })?;
        let sum = |cpus: &[Count]| {
            let mut sum = Count::default();
            for count in cpus {
                add(&mut sum, *count);
            }
            sum
        };
        Ok(counts.chunks_exact(self.cpus).map(sum).collect())
    }

    fn empty(&mut self, index: u32) -> Result<(), Error> {
        let what = || format!("empty a counter of {}", self.name);
        let zeros = PerCpuValues::try_from(vec![Count::default(); self.cpus]);
        let zeros = zeros.map_err(|source| Error::System { what: what(), source })?;
        self.map.set(index, zeros, 0).map_err(|error| system(&what(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> Owner {
        Owner::Interface { ifindex: 7, name: name.to_owned() }
    }

    #[test]
    fn a_place_that_somebody_left_is_the_last_to_be_given_away() {
        let mut owners = vec![Owner::Nobody, Owner::Gone, owner("lan0"), Owner::Nobody];
        assert_eq!(free(&owners), Some(3));
        owners[3] = owner("lan1");
        assert_eq!(free(&owners), Some(1));
        owners[1] = owner("lan2");
        assert_eq!(free(&owners), None, "place 0 is nobody's own");
    }

    #[test]
    fn packets_of_no_class_are_those_that_no_class_counted() {
        let mut classes = vec![Count::default(); COUNTERS_MAX as usize];
        let mut interfaces = vec![Count::default(); INTERFACE_COUNTERS_MAX as usize];
        let mut gone = vec![Count::default(); Reason::COUNT];
        let count = |packets| Count { packets, bytes: packets * 100 };
        classes[counter_index(3, Reason::ClassBlock) as usize] = count(4);
        for (slot, packets) in [(0, 1), (1, 2), (2, 5)] {
            interfaces[interface_counter_index(slot, Reason::ClassBlock) as usize] = count(packets);
        }
        gone[Reason::ClassBlock as usize] = count(10);
        let mut owners = vec![Owner::default(); INTERFACES_MAX as usize];
        (owners[1], owners[2]) = (owner("lan0"), Owner::Gone);
        let rows = rows(&classes, &interfaces, &owners, &gone);
        let row = |class, packets| Counter { class, reason: Reason::ClassBlock, packets, bytes: packets * 100 };
        assert_eq!(rows.classes, [row(0, 14), row(3, 4)]);
        let row = |interface: Option<&str>, packets| InterfaceCounter {
            interface: interface.map(str::to_owned),
            reason: Reason::ClassBlock,
            packets,
            bytes: packets * 100,
        };
        assert_eq!(rows.interfaces, [row(None, 16), row(Some("lan0"), 2)]);
    }
}
