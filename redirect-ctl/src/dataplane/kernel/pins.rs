//! The pins: what keeps programs, maps and links in the kernel while the daemon is away, and how the next daemon finds them.
//!
//! ```text
//! <folder>/maps_<LAYOUT>/<NAME>      what the running program works on
//! <folder>/next_<LAYOUT>/<NAME>      the same while another set of maps takes over; left behind by a crash, it goes at the next start
//! <folder>/programs/<name>           what the links run; to go back to
//! <folder>/links_<netns>/<ifindex>_egress, <ifindex>_ingress_<hook>, sk_lookup
//! ```
//!
//! The library opens whatever is pinned under a name and believes it to be what the program wants, sizes included. So every pin is looked at
//! first: a map is reused if kind, sizes, flags and capacity are those of the object; one of another capacity is copied into a map of the
//! wanted one; any other is left to the program that has it, and made anew. Maps of another [`LAYOUT`] are not even looked at.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use aya::Ebpf;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{FsType, statfs},
};
use redirect_common::{
    address::{V4, V6},
    bucket::{PLACES_V4, PLACES_V6},
    maps::{LAYOUT, names},
    subscriber::{PrefixV4, PrefixV6},
};

use super::{
    super::{Error, Hook},
    buckets,
    sys::{self, Entries, Place, Shape},
};

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FILE_SYSTEM: FsType = FsType(0xcafe_4a11);

const PROGRAMS: &str = "programs";
const SOCKET_LOOKUP: &str = "sk_lookup";

/// Maps that nobody reads after the program's run, and those of the library: every object has its own.
const UNPINNED: &[&str] = &["AYA_", "COPY_", "NEW_", "."];

fn failed(what: &str, path: &Path, source: io::Error) -> Error {
    Error::System { what: format!("{what} {}", path.display()), source }
}

/// What becomes of a map of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The pinned one serves.
    Reused,
    /// The entries of the pinned one are copied.
    Copied,
    /// Nothing is pinned that it could be made of.
    New,
}

/// `found` is what is pinned under the name of the map.
fn origin(wanted: Shape, found: Option<Shape>) -> Origin {
    match found {
        Some(found) if found == wanted => Origin::Reused,
        // What a ring buffer or a socket map holds is of its own time.
        Some(found)
            if Shape { capacity: wanted.capacity, ..found } == wanted && (wanted.is_table() || wanted.is_array()) =>
        {
            Origin::Copied
        }
        Some(_) | None => Origin::New,
    }
}

/// The maps that an object defines and that outlive it.
fn shapes(object: &[u8], capacities: &[(&str, u32)]) -> Result<BTreeMap<String, Shape>, Error> {
    let object = aya_obj::Object::parse(object).map_err(|error| Error::Load { reason: error.to_string() })?;
    let mut shapes = BTreeMap::new();
    for (name, map) in &object.maps {
        if UNPINNED.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let capacity = capacities.iter().find(|(other, _)| other == name).map(|(_, capacity)| *capacity);
        let shape = Shape {
            kind: map.map_type(),
            key_bytes: map.key_size(),
            value_bytes: map.value_size(),
            capacity: capacity.unwrap_or_else(|| map.max_entries()),
            flags: map.map_flags(),
        };
        shapes.insert(name.clone(), shape);
    }
    Ok(shapes)
}

/// What became of the flows of the program before, and where its maps did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inheritance {
    /// Maps that were taken over as they were.
    pub reused: usize,
    /// Maps whose entries were copied into one of another capacity.
    pub copied: usize,
    /// Of [`Inheritance::copied`], entries that found no room.
    pub entries_left_out: u64,
    /// Redirected flows of a program whose maps this one cannot take over.
    pub flows_lost: u64,
}

/// The maps of an object about to be loaded.
pub(super) struct Maps {
    shapes: BTreeMap<String, Shape>,
    origins: BTreeMap<String, Origin>,
    old: BTreeMap<String, OwnedFd>,
    pub(super) inheritance: Inheritance,
}

impl Maps {
    /// Where the library finds the maps that are reused.
    pub(super) fn reused<'s>(&'s self, pins: &'s Pins) -> impl Iterator<Item = (&'s str, PathBuf)> {
        let reused = self.origins.iter().filter(|(_, origin)| **origin == Origin::Reused);
        reused.map(|(name, _)| (name.as_str(), pins.current().join(name)))
    }

    /// Whether the program goes on with the tables of the one before: the flows, and what the daemon says to the packet path.
    pub(super) fn continues(&self) -> bool {
        self.origins.get(names::SETTINGS) == Some(&Origin::Reused)
    }

    fn are_all_reused(&self) -> bool {
        self.origins.values().all(|origin| *origin == Origin::Reused)
    }
}

/// The folder, held by this process alone.
pub struct Pins {
    folder: PathBuf,
    /// Inode number of the network namespace.
    namespace: u64,
    /// Held for its lock.
    _lock: Option<Flock<File>>,
    /// The maps in `next_<LAYOUT>` are to become the current ones.
    next: bool,
}

impl Pins {
    /// Makes the folder if need be. `None` where there is no BPF file system: then there are no pins either.
    pub fn open(folder: &Path) -> Result<Option<Self>, Error> {
        Self::open_with(folder, |folder| lock(folder).map(Some))
    }

    /// Whoever else has them open.
    pub fn open_unlocked(folder: &Path) -> Result<Option<Self>, Error> {
        Self::open_with(folder, |_| Ok(None))
    }

    fn open_with(
        folder: &Path,
        lock: impl FnOnce(&Path) -> Result<Option<Flock<File>>, Error>,
    ) -> Result<Option<Self>, Error> {
        if !is_on_bpf_file_system(folder)? {
            return Ok(None);
        }
        let namespace = namespace()?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|source| failed("create", folder, source))?;
        let lock = lock(folder)?;
        let pins = Self { folder: folder.to_owned(), namespace, _lock: lock, next: false };
        pins.refuse_foreign_links()?;
        for folder in [pins.links(), pins.folder.join(PROGRAMS)] {
            create(&folder)?;
        }
        Ok(Some(pins))
    }

    fn current(&self) -> PathBuf {
        self.folder.join(format!("maps_{LAYOUT}"))
    }

    fn next(&self) -> PathBuf {
        self.folder.join(format!("next_{LAYOUT}"))
    }

    fn links(&self) -> PathBuf {
        self.folder.join(format!("links_{}", self.namespace))
    }

    /// Links of another network namespace are somebody else's, unless that is gone.
    fn refuse_foreign_links(&self) -> Result<(), Error> {
        for folder in list(&self.folder)? {
            if folder == self.links() || !name_of(&folder).starts_with("links_") {
                continue;
            }
            for path in list(&folder)? {
                let place = sys::open_pin(&path).and_then(|link| sys::place(link.as_fd()));
                let lives = !matches!(
                    place.map_err(|source| failed("look at the link", &path, source))?,
                    Place::Xdp { ifindex: 0 } | Place::Tcx { ifindex: 0, .. } | Place::NetworkNamespace { inode: 0 }
                );
                if lives {
                    return Err(Error::Load {
                        reason: format!(
                            "{} is a link of another network namespace; give each a folder of its own (dataplane.pins)",
                            path.display()
                        ),
                    });
                }
            }
            remove_folder(&folder)?;
        }
        Ok(())
    }

    /// Decides what becomes of each map of an object.
    pub(super) fn maps(&self, object: &[u8], capacities: &[(&str, u32)]) -> Result<Maps, Error> {
        // Of a start that did not get far.
        remove_folder(&self.next())?;
        let shapes = shapes(object, capacities)?;
        let mut maps =
            Maps { shapes, origins: BTreeMap::new(), old: BTreeMap::new(), inheritance: Inheritance::default() };
        let current = self.current();
        for (name, wanted) in &maps.shapes {
            let path = current.join(name);
            let old = match sys::open_pin(&path) {
                Ok(old) => Some(old),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(source) => return Err(failed("open", &path, source)),
            };
            let found = old.as_ref().map(|old| sys::shape(old.as_fd())).transpose();
            let found = found.map_err(|source| failed("look at", &path, source))?;
            let origin = origin(*wanted, found);
            match (origin, found) {
                (Origin::Reused, _) => maps.inheritance.reused += 1,
                (Origin::Copied, _) => maps.inheritance.copied += 1,
                (Origin::New, None) => {}
                (Origin::New, Some(found)) => {
                    tracing::warn!(
                        map = name,
                        ?found,
                        ?wanted,
                        "the pinned map is of another layout; it is not taken over"
                    );
                }
            }
            maps.origins.insert(name.clone(), origin);
            maps.old.extend(old.map(|old| (name.clone(), old)));
        }
        maps.inheritance.flows_lost = self.flows_left_behind(&maps)?;
        Ok(maps)
    }

    /// Flows in tables that are not taken over, of this layout or of another.
    fn flows_left_behind(&self, maps: &Maps) -> Result<u64, Error> {
        let mut entries = 0;
        for folder in list(&self.folder)?.into_iter().filter(|folder| name_of(folder).starts_with("maps_")) {
            for name in [names::FLOWS_V4, names::FLOWS_V6] {
                let path = folder.join(name);
                let taken_over = folder == self.current() && maps.origins.get(name) != Some(&Origin::New);
                if taken_over || !path.exists() {
                    continue;
                }
                entries += sys::open_pin(&path)
                    .and_then(|map| count(map.as_fd()))
                    .map_err(|source| failed("count the flows of", &path, source))?;
            }
        }
        // A flow that is rewritten has two, one for each direction.
        Ok(entries.div_ceil(2))
    }

    /// After the object was loaded: copies what is to be copied, and pins what is not.
    pub(super) fn settle(&mut self, object: &Ebpf, maps: &mut Maps) -> Result<(), Error> {
        if maps.are_all_reused() {
            return Ok(());
        }
        let next = self.next();
        create(&next)?;
        self.next = true;
        for (name, map) in object.maps().filter(|(name, _)| maps.shapes.contains_key(*name)) {
            let path = next.join(name);
            map.pin(&path).map_err(|error| Error::Load { reason: format!("pin {}: {error}", path.display()) })?;
        }
        maps.inheritance.entries_left_out = self.copy(maps, false)?;
        Ok(())
    }

    /// Copies the entries of maps that have another capacity now. The second time, only what came between: since then the old ones are out of
    /// use. Returns how many found no room.
    fn copy(&self, maps: &Maps, again: bool) -> Result<u64, Error> {
        let mut left_out = 0;
        for (name, _) in maps.origins.iter().filter(|(_, origin)| **origin == Origin::Copied) {
            let path = self.next().join(name);
            let Some(old) = maps.old.get(name) else { continue };
            let new = sys::open_pin(&path).map_err(|source| failed("open", &path, source))?;
            let (old, new) = (old.as_fd(), new.as_fd());
            let copied = match name.as_str() {
                // Packets change no subscribers, and whoever else did is gone.
                names::HOSTS_V4 | names::HOSTS_V6 | names::PREFIXES_V4 | names::PREFIXES_V6 if again => Ok(0),
                names::HOSTS_V4 => buckets::copy::<V4, PLACES_V4>(old, new),
                names::HOSTS_V6 => buckets::copy::<V6, PLACES_V6>(old, new),
                names::PREFIXES_V4 => buckets::copy::<PrefixV4, PLACES_V4>(old, new),
                names::PREFIXES_V6 => buckets::copy::<PrefixV6, PLACES_V6>(old, new),
                _ => copy(old, new, again),
            };
            left_out += copied.map_err(|source| failed("copy the entries of", &path, source))?;
        }
        Ok(left_out)
    }

    /// The new programs run: what they work on is the current state from here on.
    pub(super) fn commit(&mut self, object: &mut Ebpf, maps: &mut Maps) -> Result<(), Error> {
        if self.next {
            self.copy(maps, true)?;
            remove_folder(&self.current())?;
            let (next, current) = (self.next(), self.current());
            fs::rename(&next, &current).map_err(|source| failed("rename", &next, source))?;
            self.next = false;
        }
        // The old maps go with the last program that has them.
        maps.old.clear();
        for folder in list(&self.folder)? {
            if name_of(&folder).starts_with("maps_") && folder != self.current() {
                remove_folder(&folder)?;
            }
        }
        for (name, program) in object.programs_mut() {
            let (path, beside) = (self.program_path(name), self.folder.join(PROGRAMS).join("next"));
            remove_file(&beside)?;
            match program.pin(&beside) {
                Ok(()) => fs::rename(&beside, &path).map_err(|source| failed("rename", &beside, source))?,
                // One that this kernel does not take.
                Err(aya::pin::PinError::NoFd { .. }) => remove_file(&path)?,
                Err(error) => {
                    return Err(Error::Load { reason: format!("pin {}: {error}", beside.display()) });
                }
            }
        }
        Ok(())
    }

    fn program_path(&self, name: &str) -> PathBuf {
        self.folder.join(PROGRAMS).join(name)
    }

    /// The program that the links run, as of the last commit.
    pub(super) fn old_program(&self, name: &str) -> Option<OwnedFd> {
        sys::open_pin(&self.program_path(name)).ok()
    }

    /// The links to devices of this network namespace, by the device's index. Those of devices that are gone are removed.
    pub(super) fn device_links(&self) -> Result<BTreeMap<u32, DeviceLinks>, Error> {
        let mut devices: BTreeMap<u32, DeviceLinks> = BTreeMap::new();
        for path in list(&self.links())? {
            let Some(name) = LinkName::read(name_of(&path)) else { continue };
            let link = PinnedLink::open(path)?;
            match (name, link.place()?) {
                (LinkName::Egress { ifindex }, Place::Tcx { ifindex: found, ingress: false }) if ifindex == found => {
                    devices.entry(ifindex).or_default().egress = Some(link);
                }
                (LinkName::Ingress { ifindex, hook }, Place::Tcx { ifindex: found, ingress: true })
                    if ifindex == found =>
                {
                    devices.entry(ifindex).or_default().ingress = Some((hook, false, link));
                }
                (LinkName::Ingress { ifindex, hook }, Place::Xdp { ifindex: found }) if ifindex == found => {
                    devices.entry(ifindex).or_default().ingress = Some((hook, true, link));
                }
                // The device has gone.
                _ => link.remove()?,
            }
        }
        Ok(devices)
    }

    /// The link of the program that hands connections to relays' sockets.
    pub(super) fn socket_link(&self) -> Result<Option<PinnedLink>, Error> {
        let path = self.links().join(SOCKET_LOOKUP);
        if !path.exists() {
            return Ok(None);
        }
        let link = PinnedLink::open(path)?;
        match link.place()? {
            Place::NetworkNamespace { inode } if u64::from(inode) == self.namespace => Ok(Some(link)),
            _ => link.remove().map(|()| None),
        }
    }

    pub(super) fn egress_path(&self, ifindex: u32) -> PathBuf {
        self.links().join(LinkName::Egress { ifindex }.to_string())
    }

    pub(super) fn ingress_path(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.links().join(LinkName::Ingress { ifindex, hook }.to_string())
    }

    pub(super) fn socket_path(&self) -> PathBuf {
        self.links().join(SOCKET_LOOKUP)
    }

    /// Whether any program stays where it is when this process ends.
    pub(super) fn hold_links(&self) -> bool {
        list(&self.links()).is_ok_and(|links| !links.is_empty())
    }

    /// Removes everything: links first, and of those the ways in before the ways back.
    pub fn remove_all(self) -> Result<usize, Error> {
        let mut links = 0;
        for ingress in [true, false] {
            for path in list(&self.links())? {
                if ingress == path.to_string_lossy().contains("_egress") {
                    continue;
                }
                remove_file(&path)?;
                links += 1;
            }
        }
        for folder in list(&self.folder)? {
            remove_folder(&folder)?;
        }
        fs::remove_dir(&self.folder).map_err(|source| failed("remove", &self.folder, source))?;
        Ok(links)
    }
}

impl Drop for Pins {
    /// A start that failed leaves what was there.
    fn drop(&mut self) {
        if self.next
            && let Err(error) = remove_folder(&self.next())
        {
            tracing::warn!(%error, "the next start removes it");
        }
    }
}

/// The links of one device.
#[derive(Default)]
pub(super) struct DeviceLinks {
    /// With the hook that was asked for, and whether it is XDP.
    pub(super) ingress: Option<(Hook, bool, PinnedLink)>,
    pub(super) egress: Option<PinnedLink>,
}

/// A link that stays when this process ends.
pub(super) struct PinnedLink {
    fd: OwnedFd,
    path: PathBuf,
}

impl PinnedLink {
    pub(super) fn open(path: PathBuf) -> Result<Self, Error> {
        let fd = sys::open_pin(&path).map_err(|source| failed("open", &path, source))?;
        Ok(Self { fd, path })
    }

    /// Pins a link where none is yet.
    pub(super) fn make(fd: OwnedFd, path: PathBuf) -> Result<Self, Error> {
        sys::pin(fd.as_fd(), &path).map_err(|source| failed("pin", &path, source))?;
        Ok(Self { fd, path })
    }

    fn place(&self) -> Result<Place, Error> {
        sys::place(self.fd.as_fd()).map_err(|source| failed("look at the link", &self.path, source))
    }

    /// Runs another program from the next packet on.
    pub(super) fn update(&self, program: BorrowedFd<'_>, expected: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        sys::update_link(self.fd.as_fd(), program, expected)
            .map_err(|source| failed("replace the program of", &self.path, source))
    }

    /// Detaches the program, as nobody else holds the link.
    pub(super) fn remove(self) -> Result<(), Error> {
        remove_file(&self.path)
    }
}

/// What the file of a link says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkName {
    Egress {
        ifindex: u32,
    },
    Ingress {
        ifindex: u32,
        /// As the operator asked for it.
        hook: Hook,
    },
}

impl LinkName {
    fn read(name: &str) -> Option<Self> {
        let (ifindex, rest) = name.split_once('_')?;
        let ifindex = ifindex.parse().ok()?;
        match rest.split_once('_') {
            None if rest == "egress" => Some(Self::Egress { ifindex }),
            Some(("ingress", hook)) => Some(Self::Ingress { ifindex, hook: hook.parse().ok()? }),
            None | Some(_) => None,
        }
    }
}

impl std::fmt::Display for LinkName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Egress { ifindex } => write!(f, "{ifindex}_egress"),
            Self::Ingress { ifindex, hook } => write!(f, "{ifindex}_ingress_{hook}"),
        }
    }
}

/// Of the nearest folder above that exists.
fn is_on_bpf_file_system(folder: &Path) -> Result<bool, Error> {
    for ancestor in folder.ancestors() {
        match statfs(ancestor) {
            Ok(found) => return Ok(found.filesystem_type() == BPF_FILE_SYSTEM),
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(failed("look at", ancestor, error.into())),
        }
    }
    Ok(false)
}

fn namespace() -> Result<u64, Error> {
    let path = Path::new("/proc/thread-self/ns/net");
    Ok(fs::metadata(path).map_err(|source| failed("look at", path, source))?.ino())
}

fn lock(folder: &Path) -> Result<Flock<File>, Error> {
    let file = File::open(folder).map_err(|source| failed("open", folder, source))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => Error::Load { reason: format!("another redirectd uses {}", folder.display()) },
        other => failed("lock", folder, other.into()),
    })
}

fn create(folder: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(failed("create", folder, source)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What a folder holds; nothing where there is none.
fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed("list", folder, source)),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    paths.map_err(|source| failed("list", folder, source))
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, source)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Our folders hold files only.
fn remove_folder(folder: &Path) -> Result<(), Error> {
    for path in list(folder)? {
        remove_file(&path)?;
    }
    match fs::remove_dir(folder) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("remove", folder, source)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Keys of a map that packets change meanwhile: where the one at hand goes, the kernel begins anew, so there is a bound.
fn rounds_max(shape: Shape) -> u64 {
    u64::from(shape.capacity) * 2
}

fn count(map: BorrowedFd<'_>) -> io::Result<u64> {
    let entries = Entries::of(map)?;
    let max = rounds_max(entries.shape());
    entries.count(max)
}

/// Returns how many entries found no room.
fn copy(old: BorrowedFd<'_>, new: BorrowedFd<'_>, keep_existing: bool) -> io::Result<u64> {
    let mut entries = Entries::of(old)?;
    let (mut rounds, mut left_out) = (0, 0);
    while rounds < rounds_max(entries.shape()) && entries.advance()? {
        rounds += 1;
        left_out += u64::from(!entries.copy_to(new, keep_existing)?);
    }
    Ok(left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    use aya_obj::generated::bpf_map_type;

    const FLOWS: Shape = Shape {
        kind: bpf_map_type::BPF_MAP_TYPE_HASH as u32,
        key_bytes: 12,
        value_bytes: 40,
        capacity: 1_024,
        flags: 0,
    };

    #[test]
    fn a_map_is_reused_only_if_it_is_the_same() {
        assert_eq!(origin(FLOWS, Some(FLOWS)), Origin::Reused);
        assert_eq!(origin(FLOWS, None), Origin::New);
        assert_eq!(origin(FLOWS, Some(Shape { capacity: 2_048, ..FLOWS })), Origin::Copied);
        for other in [
            Shape { kind: bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32, ..FLOWS },
            Shape { key_bytes: 16, ..FLOWS },
            Shape { value_bytes: 48, ..FLOWS },
            Shape { flags: 1, ..FLOWS },
            Shape { value_bytes: 32, capacity: 2_048, ..FLOWS },
        ] {
            assert_eq!(origin(FLOWS, Some(other)), Origin::New, "{other:?}");
        }
        let ring = Shape { kind: bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32, ..FLOWS };
        assert_eq!(origin(ring, Some(Shape { capacity: 1, ..ring })), Origin::New);
    }

    #[test]
    fn the_name_of_a_link_says_what_it_is() {
        for name in [
            LinkName::Egress { ifindex: 7 },
            LinkName::Ingress { ifindex: 12, hook: Hook::Auto },
            LinkName::Ingress { ifindex: 1, hook: Hook::Xdp },
        ] {
            assert_eq!(LinkName::read(&name.to_string()), Some(name));
        }
        for other in ["", "sk_lookup", "7", "7_ingress", "7_ingress_ebpf", "x_egress", "7_egress_auto"] {
            assert_eq!(LinkName::read(other), None, "{other}");
        }
    }

    #[test]
    fn every_map_of_the_object_is_known_and_scratch_is_not_pinned() {
        let shapes = shapes(super::super::OBJECT, &[(names::FLOWS_V4, 77)]).unwrap();
        assert_eq!(shapes[names::FLOWS_V4].capacity, 77);
        for name in [names::SETTINGS, names::SOCKETS, names::EVENTS, names::COUNTERS, names::HALF_OPEN_V6] {
            assert!(shapes.contains_key(name), "{name}");
        }
        assert!(!shapes.keys().any(|name| name.starts_with("COPY_") || name.starts_with("AYA")), "{shapes:?}");
    }
}
