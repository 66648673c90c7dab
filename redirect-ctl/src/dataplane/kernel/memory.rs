//! What the maps cost, as the kernel says.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::{Ebpf, maps::Map};
use redirect_common::{
    bucket::{PLACES_V4, PLACES_V6, capacity},
    maps::names,
};

use super::super::{Error, MapMemory};

/// A descriptor of every map, from before others take them.
pub(super) struct Memory {
    maps: Vec<(String, OwnedFd)>,
}

impl Memory {
    pub(super) fn of(object: &Ebpf) -> Result<Self, Error> {
        let mut maps = Vec::new();
        for (name, map) in object.maps() {
            let (Map::Array(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::PerCpuArray(data)
            | Map::RingBuf(data)
            | Map::SockMap(data)) = map
            else {
                continue;
            };
            let fd = data.fd().as_fd().try_clone_to_owned();
            let fd =
                fd.map_err(|source| Error::System { what: format!("duplicate the descriptor of {name}"), source })?;
            maps.push((name.to_owned(), fd));
        }
        maps.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(Self { maps })
    }

    /// By the maps' names.
    pub(super) fn read(&self) -> Result<Vec<MapMemory>, Error> {
        let read = |(name, fd): &(String, OwnedFd)| {
            of(name, fd.as_fd())
                .map_err(|source| Error::System { what: format!("read the memory of map {name}"), source })
        };
        self.maps.iter().map(read).collect()
    }
}

/// What the map behind a descriptor costs.
pub(super) fn of(name: &str, map: BorrowedFd<'_>) -> io::Result<MapMemory> {
    memory(name, &fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?)
}

/// `bpf_map_show_fdinfo` of the kernel: lines of a name, a colon, a tab and a value.
fn memory(name: &str, fdinfo: &str) -> io::Result<MapMemory> {
    let number = |key: &str| -> io::Result<u64> {
        let line = fdinfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse().ok());
        line.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no {key}")))
    };
    let places = match name {
        names::HOSTS_V4 | names::PREFIXES_V4 => Some(PLACES_V4),
        names::HOSTS_V6 | names::PREFIXES_V6 => Some(PLACES_V6),
        _ => None,
    };
    let entries = number("max_entries")?;
    let capacity = match (places, u32::try_from(entries)) {
        (Some(places), Ok(buckets)) => capacity(buckets, places).into(),
        _ => entries,
    };
    Ok(MapMemory { name: name.to_owned(), capacity, bytes: number("memlock")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_a_map_costs() {
        let text = "pos:\t0\nmap_type:\t1\nmax_entries:\t1024\nmap_flags:\t0x0\nmemlock:\t82432\nmap_id:\t5\n";
        let wanted = MapMemory { name: "A".to_owned(), capacity: 1_024, bytes: 82_432 };
        assert_eq!(memory("A", text).unwrap(), wanted);
        let hosts = MapMemory { name: names::HOSTS_V4.to_owned(), capacity: 1_024 * 7 / 2, bytes: 82_432 };
        assert_eq!(memory(names::HOSTS_V4, text).unwrap(), hosts);
        assert!(memory("A", "pos:\t0\n").is_err());
    }
}
