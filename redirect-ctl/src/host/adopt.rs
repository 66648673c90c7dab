//! The listening sockets of a relay that knows nothing of us: found by the relay's endpoint, taken by pidfd, made ready to be steered to.
//!
//! A socket that flows are steered to answers in the name of other servers, for which it needs `IP_TRANSPARENT`. The option is the
//! socket's, so whoever has a copy of its descriptor can set it, and the relay needs no change and no privilege. The copy is given back at
//! once: a listening socket lives for as long as anybody holds it, and one that we held would keep the relay's port when it restarts.
//!
//! Needed: Linux 5.6 (`pidfd_getfd`), and `CAP_SYS_PTRACE` where the relay runs as another user.

use std::{
    fs,
    io::{self, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use super::listening::listening;

/// Why a relay's sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nothing listens on {endpoint} in redirectd's network namespace; start the relay, or correct its address")]
    NothingListens { endpoint: SocketAddr },
    #[error("the relay on {endpoint} takes IPv6 only")]
    Ipv6Only { endpoint: SocketAddr },
    /// The process that listens is hidden from us, or does not let us near.
    #[error(
        "the relay's socket on {endpoint} cannot be taken: {source}; redirectd needs CAP_SYS_PTRACE, or the relay's user"
    )]
    Permission { endpoint: SocketAddr, source: io::Error },
    /// It closed the socket, or ended, while it was looked for.
    #[error("the relay on {endpoint} has just closed its socket")]
    Vanished { endpoint: SocketAddr },
    #[error("cannot {what}: {source}")]
    System { what: String, source: io::Error },
}

impl Error {
    fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { what: what.into(), source: source.into() }
    }
}

/// A listening TCP socket of this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    pub local: SocketAddr,
    /// Tells the socket from every other one.
    pub inode: u64,
}

/// The sockets that take connections to `endpoint`: those bound to its very address, else those bound to every address. Several where the
/// relay has bound each of its processes (`SO_REUSEPORT`).
pub fn listeners(endpoint: SocketAddr) -> Result<Vec<Listener>, Error> {
    // A kernel that cannot be asked has the files.
    let all = match listening() {
        Ok(all) => all,
        Err(_) => listed()?,
    };
    let found = matching(endpoint, &all);
    if found.is_empty() { Err(Error::NothingListens { endpoint }) } else { Ok(found) }
}

fn listed() -> Result<Vec<Listener>, Error> {
    let mut all = Vec::new();
    for file in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        match fs::File::open(file).map(BufReader::new) {
            Ok(table) => {
                read_listeners(table, &mut all).map_err(|source| Error::system(format!("read {file}"), source))?;
            }
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::system(format!("open {file}"), source)),
        }
    }
    Ok(all)
}

/// A copy of the descriptor of `listener`, from whichever process has one.
pub fn take(endpoint: SocketAddr, listener: Listener) -> Result<OwnedFd, Error> {
    let (process, descriptor) = holder(endpoint, listener.inode)?;
    let taken = copy(process, descriptor).map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::Permission { endpoint, source },
        Some(libc::ESRCH | libc::EBADF) => Error::Vanished { endpoint },
        _ => Error::system(format!("copy descriptor {descriptor} of process {process}"), source),
    })?;
    // Between the look and the copy the number may have got another meaning.
    let itself = PathBuf::from(format!("/proc/self/fd/{}", taken.as_raw_fd()));
    if fs::metadata(itself).is_ok_and(|found| found.ino() == listener.inode) {
        Ok(taken)
    } else {
        Err(Error::Vanished { endpoint })
    }
}

/// Lets a listening socket answer in the name of any address, or not any more. Tells whether that was a change.
pub fn set_transparent(endpoint: SocketAddr, socket: &OwnedFd, on: bool) -> Result<bool, Error> {
    let failed = |error: nix::Error| Error::system(format!("set IP_TRANSPARENT on the socket of {endpoint}"), error);
    if endpoint.is_ipv4() && getsockopt(socket, sockopt::Ipv6V6Only).is_ok_and(|only| only) {
        return Err(Error::Ipv6Only { endpoint });
    }
    // One flag for both families; the kernel takes the IPv4 option on IPv6 sockets too.
    let was = getsockopt(socket, sockopt::IpTransparent).map_err(failed)?;
    if was != on {
        setsockopt(socket, sockopt::IpTransparent, &on).map_err(failed)?;
    }
    Ok(was != on)
}

/// The best of three: the very address; every address of the family; every address of both families.
fn matching(endpoint: SocketAddr, listeners: &[Listener]) -> Vec<Listener> {
    let unspecified: IpAddr =
        if endpoint.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    for address in [endpoint.ip(), unspecified, Ipv6Addr::UNSPECIFIED.into()] {
        let fits = |listener: &&Listener| {
            listener.local.port() == endpoint.port() && listener.local.ip().to_canonical() == address
        };
        let found: Vec<_> = listeners.iter().filter(fits).copied().collect();
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

/// Reads the listening sockets of `/proc/net/tcp` or `tcp6` (proc(5)), which come before all others (`tcp_get_idx` in
/// `net/ipv4/tcp_ipv4.c`), so that a router's thousands of connections need not be read.
fn read_listeners(table: impl io::BufRead, listeners: &mut Vec<Listener>) -> io::Result<()> {
    const LISTEN: &str = "0A";
    for line in table.lines().skip(1) {
        let line = line?;
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, state, inode) = (words.next(), words.nth(1), words.nth(5));
        if state != Some(LISTEN) {
            break;
        }
        if let (Some(local), Some(inode)) = (local.and_then(read_address), inode.and_then(|inode| inode.parse().ok())) {
            listeners.push(Listener { local, inode });
        }
    }
    Ok(())
}

/// Reads an address as words of the machine's byte order in hexadecimal digits, a colon, and the port.
fn read_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut octets = [0; 16];
    let words = address.as_bytes().chunks_exact(8);
    for (octets, word) in octets.chunks_exact_mut(4).zip(words.clone()) {
        octets.copy_from_slice(&u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?.to_ne_bytes());
    }
    let ip = match words.len() {
        1 => IpAddr::from(*octets.first_chunk::<4>()?),
        4 => IpAddr::from(octets),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// A process that has the socket, and its number for it.
fn holder(endpoint: SocketAddr, inode: u64) -> Result<(libc::pid_t, RawFd), Error> {
    let wanted = PathBuf::from(format!("socket:[{inode}]"));
    let mut hidden = None;
    let processes = fs::read_dir("/proc").map_err(|source| Error::system("list the processes", source))?;
    for process in processes.flatten() {
        let Some(number) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match descriptor_of(&process.path().join("fd"), &wanted) {
            Ok(Some(descriptor)) => return Ok((number, descriptor)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => hidden = Some(error),
            // It has no such socket, or has ended meanwhile.
            Ok(None) | Err(_) => {}
        }
    }
    Err(match hidden {
        Some(source) => Error::Permission { endpoint, source },
        None => Error::Vanished { endpoint },
    })
}

fn descriptor_of(folder: &Path, wanted: &Path) -> io::Result<Option<RawFd>> {
    for descriptor in fs::read_dir(folder)? {
        let descriptor = descriptor?;
        if fs::read_link(descriptor.path()).is_ok_and(|target| target == wanted) {
            return Ok(descriptor.file_name().to_str().and_then(|name| name.parse().ok()));
        }
    }
    Ok(None)
}

/// A copy of another process's descriptor, closed at exec.
fn copy(process: libc::pid_t, descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers and gives a descriptor that nobody else has.
    let pidfd = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })?;
    // SAFETY: pidfd_getfd(2) takes three integers, of which the first is an open descriptor, and gives one that nobody else has.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), descriptor, 0) })
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(result) {
        // SAFETY: the kernel has just made this descriptor for this process, and nothing else knows it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:09DD 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000000000000000 100 0 0 10 0
   1: 00000000:0019 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0000000000000000 100 0 0 10 0
   2: 0100140A:09DD 0A00140A:C350 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0000000000000000 20 4 30 10 -1
   3: 00000000:001A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4714 1 0000000000000000 100 0 0 10 0
";

    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000001000000:09DD 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 81 1 0000000000000000 100 0 0 10 0
   1: 002000FD000000000000000001000000:09DD 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 82 1 0000000000000000 100 0 0 10 0
";

    fn read(table: &str) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        read_listeners(table.as_bytes(), &mut found).unwrap();
        found.iter().map(|listener| (listener.local.to_string(), listener.inode)).collect()
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn listening_sockets_are_read_and_others_end_the_list() {
        assert_eq!(read(TCP), [("127.0.0.1:2525".to_owned(), 4711), ("0.0.0.0:25".to_owned(), 4712)]);
        assert_eq!(read(TCP6), [("[::1]:2525".to_owned(), 81), ("[fd00:2000::1]:2525".to_owned(), 82)]);
        for nonsense in ["", "header", "header\n", "header\n0: x", "header\n0: 01:zz 0:0 0A 0 0 0 0 0 0", "header\n\n"]
        {
            assert_eq!(read(nonsense), [], "{nonsense:?}");
        }
    }

    #[test]
    fn the_most_specific_sockets_are_meant() {
        let listener = |local: &str, inode| Listener { local: local.parse().unwrap(), inode };
        let all = [
            listener("10.20.0.1:2525", 1),
            listener("0.0.0.0:2525", 2),
            listener("[::]:2525", 3),
            listener("[::]:2526", 4),
            listener("[::ffff:10.20.0.1]:2527", 5),
            listener("0.0.0.0:2528", 6),
            listener("0.0.0.0:2528", 7),
            listener("127.0.0.1:2529", 8),
        ];
        let cases: &[(&str, &[u64])] = &[
            ("10.20.0.1:2525", &[1]),
            ("10.20.0.2:2525", &[2]),
            ("[fd00::1]:2525", &[3]),
            ("10.20.0.1:2526", &[4]),
            ("10.20.0.1:2527", &[5]),
            ("10.20.0.1:2528", &[6, 7]),
            ("127.0.0.1:2529", &[8]),
            ("10.20.0.1:2529", &[]),
            ("[fd00::1]:2528", &[]),
            ("10.20.0.1:25", &[]),
        ];
        for (endpoint, expected) in cases {
            let found = matching(endpoint.parse().unwrap(), &all);
            assert_eq!(found.iter().map(|listener| listener.inode).collect::<Vec<_>>(), *expected, "{endpoint}");
        }
    }
}
