//! Settings below `/proc/sys/net` that the daemon changes for as long as it needs them, and puts back, also after a crash.
//!
//! What was found is written to a file before anything is changed, and the file goes when everything is as it was. It is of use only to the
//! same network namespace of the same boot; a device that vanished took its settings along, and one of the same name later has others.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Why settings are not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} {}: {source}", .path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} holds {value:?}, which is no number", .path.display())]
    NoNumber { path: PathBuf, value: String },
}

impl Error {
    fn file(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { what, path: path.to_owned(), source }
    }
}

/// A setting of a network device, below `net/ipv4/conf/<device>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Key {
    /// Answers ARP requests for addresses that are routed by another device.
    ProxyArp,
    /// Leaves ARP announcements unanswered: a proxy that answers them tells the announcer that its address is taken (RFC 5227).
    DropGratuitousArp,
    /// Whether packets whose source is routed by another device are dropped: no, yes (1), or only where it is not routed at all (2).
    RpFilter,
}

impl Key {
    const ALL: [Self; 3] = [Self::ProxyArp, Self::DropGratuitousArp, Self::RpFilter];

    const fn name(self) -> &'static str {
        match self {
            Self::ProxyArp => "proxy_arp",
            Self::DropGratuitousArp => "drop_gratuitous_arp",
            Self::RpFilter => "rp_filter",
        }
    }

    /// What foreign sources need; `None` where `own` will do. For `rp_filter` the kernel takes the larger of the device's value and that of
    /// all devices, so "loose" is the way out of "strict", and where nothing is filtered nothing must be.
    const fn needed(self, own: u32, of_all: u32) -> Option<u32> {
        match self {
            Self::ProxyArp | Self::DropGratuitousArp if own == 0 => Some(1),
            Self::RpFilter if own != 2 && (own == 1 || of_all == 1) && of_all != 2 => Some(2),
            Self::ProxyArp | Self::DropGratuitousArp | Self::RpFilter => None,
        }
    }
}

/// The settings of this thread's network namespace that are changed at the moment.
pub struct Sysctls {
    file: PathBuf,
    place: Place,
    held: BTreeMap<String, Device>,
}

/// Where the notes hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    boot_id: String,
    network_namespace: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Device {
    index: u32,
    changes: BTreeMap<Key, Change>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    found: u32,
    set: u32,
}

#[derive(Serialize, Deserialize)]
struct Notes {
    #[serde(flatten)]
    place: Place,
    devices: BTreeMap<String, Device>,
}

impl Sysctls {
    /// `file` is where notes are kept. Those of a daemon that crashed are taken over: [`Sysctls::held`] lists its devices.
    pub fn open(file: &Path) -> Result<Self, Error> {
        let place = Place::here()?;
        let held = match fs::read(file) {
            Ok(bytes) => match serde_json::from_slice::<Notes>(&bytes) {
                Ok(notes) if notes.place == place => notes.devices,
                // Another boot, another namespace: those settings are gone.
                Ok(_) => BTreeMap::new(),
                Err(error) => {
                    tracing::error!(file = %file.display(), %error, "notes about changed sysctls cannot be read; they are dropped");
                    BTreeMap::new()
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(Error::file("read", file, source)),
        };
        Ok(Self { file: file.to_owned(), place, held })
    }

    /// The devices whose settings are changed.
    pub fn held(&self) -> impl Iterator<Item = &str> {
        self.held.keys().map(String::as_str)
    }

    /// Sets what foreign sources need on a device, whose index tells it from a later one of the same name. Does nothing where it is so.
    pub fn hold(&mut self, device: &str, index: u32) -> Result<(), Error> {
        if self.held.get(device).is_some_and(|held| held.index != index) {
            self.held.remove(device);
        }
        let before = self.held.get(device).map_or_else(BTreeMap::new, |held| held.changes.clone());
        let mut changes = before.clone();
        let mut due = Vec::new();
        for key in Key::ALL {
            let own = read(&path(device, key))?;
            if let Some(set) = key.needed(own, read(&path("all", key))?) {
                // What was found first is what is put back.
                let found = before.get(&key).map_or(own, |change| change.found);
                changes.insert(key, Change { found, set });
                due.push((key, own, set));
            }
        }
        if changes != before {
            self.held.insert(device.to_owned(), Device { index, changes });
            self.write_notes()?;
        }
        for (key, from, to) in due {
            tracing::info!(interface = device, setting = key.name(), from, to, "sysctl set");
            write(&path(device, key), to)?;
        }
        Ok(())
    }

    /// Puts the settings of a device back as they were found. What somebody has changed since is left as it is. `index` is the device's; none
    /// where there is no such device.
    pub fn release(&mut self, device: &str, index: Option<u32>) -> Result<(), Error> {
        let Some(held) = self.held.get(device) else { return Ok(()) };
        if index == Some(held.index) {
            for (key, change) in &held.changes {
                let path = path(device, *key);
                let own = read(&path)?;
                if own == change.set {
                    tracing::info!(
                        interface = device,
                        setting = key.name(),
                        from = own,
                        to = change.found,
                        "sysctl put back"
                    );
                    write(&path, change.found)?;
                } else if own != change.found {
                    tracing::warn!(
                        interface = device,
                        setting = key.name(),
                        value = own,
                        "somebody changed it; it is left so"
                    );
                }
            }
        }
        self.held.remove(device);
        self.write_notes()
    }

    /// By way of a second file, so that a crash leaves the old notes or the new ones.
    fn write_notes(&self) -> Result<(), Error> {
        if self.held.is_empty() {
            return match fs::remove_file(&self.file) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(Error::file("remove", &self.file, source))
                }
                Ok(()) | Err(_) => Ok(()),
            };
        }
        let notes = Notes { place: self.place.clone(), devices: self.held.clone() };
        let bytes = serde_json::to_vec(&notes).expect("strings and numbers are JSON");
        let beside = self.file.with_added_extension("new");
        let written = File::create(&beside).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        written.map_err(|source| Error::file("write", &beside, source))?;
        fs::rename(&beside, &self.file).map_err(|source| Error::file("replace", &self.file, source))
    }
}

impl Place {
    /// Of the calling thread.
    fn here() -> Result<Self, Error> {
        let boot_id = Path::new("/proc/sys/kernel/random/boot_id");
        let namespace = Path::new("/proc/thread-self/ns/net");
        Ok(Self {
            boot_id: fs::read_to_string(boot_id).map_err(|source| Error::file("read", boot_id, source))?,
            network_namespace: fs::metadata(namespace)
                .map_err(|source| Error::file("look at", namespace, source))?
                .ino(),
        })
    }
}

/// A device's name is one component of a path: `desired::InterfaceName` sees to that.
fn path(device: &str, key: Key) -> PathBuf {
    Path::new("/proc/sys/net/ipv4/conf").join(device).join(key.name())
}

fn read(path: &Path) -> Result<u32, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::file("read", path, source))?;
    text.trim().parse().map_err(|_| Error::NoNumber { path: path.to_owned(), value: text.trim().to_owned() })
}

fn write(path: &Path, value: u32) -> Result<(), Error> {
    fs::write(path, value.to_string()).map_err(|source| Error::file("write", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_filtered_more_than_before() {
        // Own value, that of all devices, what is needed. The larger one counts: 0 off, 1 strict, 2 loose.
        let cases = [
            (0, 0, None),
            (0, 1, Some(2)),
            (1, 0, Some(2)),
            (1, 1, Some(2)),
            (0, 2, None),
            (1, 2, None),
            (2, 0, None),
            (2, 1, None),
            (2, 2, None),
        ];
        for (own, of_all, expected) in cases {
            assert_eq!(Key::RpFilter.needed(own, of_all), expected, "{own} {of_all}");
        }
        assert_eq!(Key::ProxyArp.needed(0, 1), Some(1));
        assert_eq!(Key::ProxyArp.needed(1, 0), None);
    }
}
