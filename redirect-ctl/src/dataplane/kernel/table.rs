//! A hash of the kernel: single entries by the library, many at once by [`batch`].

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap as BpfHashMap, Map, MapData},
};

use super::{
    super::Error,
    batch::{self, Position},
    found, not_loaded, system,
};

/// Entries read in one call while listing.
const LIST_BATCH: usize = 4096;

/// Entries read at once.
pub(super) type Batch<K, V> = Vec<(K, V)>;

pub(super) struct Table<K, V> {
    name: &'static str,
    fd: OwnedFd,
    // Reads need no lock in the kernel; the library wants exclusive access to write.
    map: Mutex<BpfHashMap<MapData, K, V>>,
}

impl<K: Pod + Ord, V: Pod> Table<K, V> {
    pub(super) fn take(object: &mut Ebpf, name: &'static str) -> Result<Self, Error> {
        let map = object.take_map(name).ok_or_else(|| Error::Load { reason: format!("no map {name}") })?;
        let (Map::HashMap(data) | Map::LruHashMap(data)) = &map else {
            return Err(Error::Load { reason: format!("map {name} is no hash") });
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|source| Error::System { what: format!("duplicate the descriptor of {name}"), source })?;
        Ok(Self { name, fd, map: Mutex::new(BpfHashMap::try_from(map).map_err(|error| not_loaded(&error))?) })
    }

    pub(super) fn get(&self, key: &K) -> Result<Option<V>, Error> {
        found(self.map().get(key, 0)).map_err(|error| system(&format!("read an entry of {}", self.name), error))
    }

    pub(super) fn set(&self, key: &K, value: &V) -> Result<(), Error> {
        self.map().insert(key, value, 0).map_err(|error| system(&format!("write an entry of {}", self.name), error))
    }

    /// Whether there was anything to remove.
    pub(super) fn remove(&self, key: &K) -> Result<bool, Error> {
        let removed = found(self.map().remove(key));
        Ok(removed.map_err(|error| system(&format!("remove an entry of {}", self.name), error))?.is_some())
    }

    /// The next entries from `position` on, and where to go on; `None` at the end.
    pub(super) fn batch(
        &self,
        position: Option<Position>,
        count: usize,
    ) -> Result<(Batch<K, V>, Option<Position>), Error> {
        batch::look_up(self.fd.as_fd(), position, count)
            .map_err(|source| Error::System { what: format!("read {}", self.name), source })
    }

    pub(super) fn list(&self) -> Result<BTreeMap<K, V>, Error> {
        let mut entries = BTreeMap::new();
        let mut position = None;
        loop {
            let (batch, next) = self.batch(position, LIST_BATCH)?;
            entries.extend(batch);
            match next {
                Some(_) => position = next,
                None => return Ok(entries),
            }
        }
    }

    fn map(&self) -> MutexGuard<'_, BpfHashMap<MapData, K, V>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
