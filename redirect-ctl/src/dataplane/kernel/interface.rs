//! Attaching the programs to an interface, and choosing the hook.

use std::{
    ffi::{CStr, CString},
    io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd, OwnedFd},
    path::PathBuf,
};

use aya::{
    Ebpf,
    programs::{
        ProgramFd, SchedClassifier, TcAttachType, Xdp,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, qdisc_add_clsact, qdisc_detach_program},
    },
    util::KernelVersion,
};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use redirect_common::{maps::names, parse::Link};
use tracing::{info, warn};

use super::{
    super::{Attachment, Error, Hook, Mode, Role},
    pins::{DeviceLinks, PinnedLink, Pins},
    program,
    sys::{self, Target},
    with_causes,
};

/// Drivers whose packets may reach XDP with a partial checksum, because a local or a virtual sender left it to a device that does not
/// exist. Editing them in XDP corrupts them; tc knows.
const SOFTWARE_DRIVERS: &[&str] = &[
    "802.1Q VLAN Support",
    "bonding",
    "bridge",
    "dummy",
    "hv_netvsc",
    "ifb",
    "macvlan",
    "openvswitch",
    "ppp",
    "team",
    "tun",
    "veth",
    "vif",
    "virtio_net",
    "vmxnet3",
    "vxlan",
];

/// The programs on one interface. Dropping it detaches those that are not pinned: ingress first, so that nothing is redirected whose replies
/// would not come back.
pub(super) struct Attached {
    pub(super) attachment: Attachment,
    pub(super) index: u32,
    ingress: Held,
    egress: Held,
}

/// What keeps a program attached.
enum Held {
    /// Stays when this process ends.
    Pinned(PinnedLink),
    /// Held for its drop.
    Link { _fd: OwnedFd },
    /// Likewise.
    Filter { _link: SchedClassifierLink },
}

impl Held {
    fn detach(self) -> Result<(), Error> {
        match self {
            Self::Pinned(link) => link.remove(),
            Self::Link { .. } | Self::Filter { .. } => Ok(()),
        }
    }

    const fn is_pinned(&self) -> bool {
        matches!(self, Self::Pinned(_))
    }
}

impl Attached {
    /// Whether the interface is still the one that the programs were attached to. Where that cannot be asked, nothing speaks against it.
    pub(super) fn is_alive(&self, name: &str) -> bool {
        match index(name) {
            Ok(index) => index == self.index,
            Err(Error::NoSuchInterface { .. }) => false,
            Err(_) => true,
        }
    }

    /// Takes over what a daemon before this one has attached and pinned; its programs go on until others are put in their place. The name is that of the
    /// interface by now. Where a half is missing the other goes too, and it is `None`.
    pub(super) fn adopt(index: u32, links: DeviceLinks) -> Result<Option<(String, Self)>, Error> {
        let name = nix::net::if_::if_indextoname(index).ok().and_then(|name| name.into_string().ok());
        match (name, links) {
            (Some(name), DeviceLinks { ingress: Some((hook, xdp, ingress)), egress: Some(egress) }) => {
                let mode = if xdp { Mode::Xdp } else { Mode::Tcx };
                let attachment = Attachment { role: Role::Subscriber, hook, mode, restart_safe: true };
                let held = Self { attachment, index, ingress: Held::Pinned(ingress), egress: Held::Pinned(egress) };
                Ok(Some((name, held)))
            }
            (_, DeviceLinks { ingress, egress }) => {
                ingress.map_or(Ok(()), |(_, _, link)| link.remove())?;
                egress.map_or(Ok(()), PinnedLink::remove)?;
                Ok(None)
            }
        }
    }

    /// The pinned links and the names of the programs that belong to them, the way back first.
    pub(super) fn pinned(&self, name: &str) -> Result<Vec<(&PinnedLink, &'static str)>, Error> {
        let kind = kind(name)?;
        let ingress = if self.attachment.mode == Mode::Xdp { names::XDP_INGRESS } else { ingress_program(kind) };
        let held = [(&self.egress, egress_program(kind)), (&self.ingress, ingress)];
        let pinned = held.into_iter().filter_map(|(held, program)| match held {
            Held::Pinned(link) => Some((link, program)),
            Held::Link { .. } | Held::Filter { .. } => None,
        });
        Ok(pinned.collect())
    }

    /// Ingress first.
    pub(super) fn detach(self) -> Result<(), Error> {
        self.ingress.detach()?;
        self.egress.detach()
    }
}

/// Attaches egress before ingress, for the same reason as [`Attached`] drops them the other way round. With `pins` the programs stay where they
/// are when this process ends.
pub(super) fn attach(
    object: &mut Ebpf,
    pins: Option<&Pins>,
    name: &str,
    role: Role,
    hook: Hook,
) -> Result<Attached, Error> {
    let index = index(name)?;
    let driver = driver(name);
    let software = driver.as_deref().is_none_or(|driver| SOFTWARE_DRIVERS.contains(&driver));
    let kind = kind(name)?;

    let egress = attach_tc(object, egress_program(kind), name, false)?;
    let (ingress, mode) = match hook {
        Hook::Tc => (attach_tc(object, ingress_program(kind), name, true)?, tc_mode()),
        Hook::Auto if software => (attach_tc(object, ingress_program(kind), name, true)?, tc_mode()),
        Hook::Auto => match attach_xdp(object, name) {
            Ok(link) => (link, Mode::Xdp),
            Err(error) => {
                info!(interface = name, driver, %error, "no native XDP; using tc");
                (attach_tc(object, ingress_program(kind), name, true)?, tc_mode())
            }
        },
        Hook::Xdp => {
            let link = attach_xdp(object, name)?;
            if software {
                warn!(
                    interface = name,
                    driver,
                    "XDP on a software interface corrupts packets whose checksum was left to it; \
                             switch tx checksum offload off at the sender, or set hook = \"auto\""
                );
            }
            (link, Mode::Xdp)
        }
    };
    // Ingress first: should the process die in between, it goes with it.
    let (ingress, egress) = match pins {
        Some(pins) => (pin(ingress, pins.ingress_path(index, hook))?, pin(egress, pins.egress_path(index))?),
        None => (ingress, egress),
    };
    let restart_safe = ingress.is_pinned() && egress.is_pinned();
    info!(interface = name, driver, %mode, restart_safe, "attached");
    Ok(Attached { attachment: Attachment { role, hook, mode, restart_safe }, index, ingress, egress })
}

/// A filter of clsact cannot be pinned.
fn pin(held: Held, path: PathBuf) -> Result<Held, Error> {
    match held {
        Held::Link { _fd: fd } => PinnedLink::make(fd, path).map(Held::Pinned),
        Held::Pinned(_) | Held::Filter { .. } => Ok(held),
    }
}

/// tcx links exist from Linux 6.6 on; before, a filter of the clsact qdisc does the same.
fn tc_mode() -> Mode {
    match KernelVersion::current() {
        Ok(version) if version < KernelVersion::new(6, 6, 0) => Mode::Clsact,
        Ok(_) | Err(_) => Mode::Tcx,
    }
}

fn attach_xdp(object: &mut Ebpf, name: &str) -> Result<Held, Error> {
    let ifindex = index(name)?;
    let xdp: &mut Xdp = program(object, names::XDP_INGRESS)?;
    let program = xdp.fd().map_err(|error| refused(name, "XDP", &error))?;
    link_to(program, Target::XdpDriver { ifindex }).map_err(|error| refused(name, "XDP", &error))
}

fn link_to(program: &ProgramFd, target: Target<'_>) -> io::Result<Held> {
    sys::create_link(program.as_fd(), target).map(|fd| Held::Link { _fd: fd })
}

const fn ingress_program(link: Link) -> &'static str {
    match link {
        Link::Ethernet => names::TC_INGRESS,
        Link::Ip => names::TC_INGRESS_IP,
    }
}

const fn egress_program(link: Link) -> &'static str {
    match link {
        Link::Ethernet => names::TC_EGRESS,
        Link::Ip => names::TC_EGRESS_IP,
    }
}

fn attach_tc(object: &mut Ebpf, program_name: &str, name: &str, ingress: bool) -> Result<Held, Error> {
    let ifindex = index(name)?;
    let classifier: &mut SchedClassifier = program(object, program_name)?;
    if tc_mode() == Mode::Tcx {
        let program = classifier.fd().map_err(|error| refused(name, "tc", &error))?;
        return link_to(program, Target::Tcx { ifindex, ingress }).map_err(|error| refused(name, "tc", &error));
    }
    match qdisc_add_clsact(name) {
        Ok(()) => {}
        // It is there: for our program of the other direction, or somebody else's.
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => {
            return Err(Error::Interface { name: name.to_owned(), reason: format!("no clsact qdisc: {error}") });
        }
    }
    let hook = if ingress { TcAttachType::Ingress } else { TcAttachType::Egress };
    remove_filters(name, hook, program_name);
    let link = classifier
        .attach_with_options(name, hook, TcAttachOptions::Netlink(NlOptions::default()))
        .and_then(|id| classifier.take_link(id));
    link.map(|link| Held::Filter { _link: link }).map_err(|error| refused(name, "tc", &error))
}

/// A daemon that was killed leaves its filters.
fn remove_filters(name: &str, hook: TcAttachType, program_name: &str) {
    if qdisc_detach_program(name, hook, program_name).is_ok() {
        info!(interface = name, program = program_name, "a filter was left behind; removed");
    }
}

/// Removes the filters that a daemon has left on any interface of a kernel without tcx.
pub(super) fn remove_all_filters() -> Result<(), Error> {
    if tc_mode() == Mode::Tcx {
        return Ok(());
    }
    let failed = |error: Errno| Error::System { what: "list the interfaces".to_owned(), source: error.into() };
    let interfaces = nix::net::if_::if_nameindex().map_err(failed)?;
    for interface in &interfaces {
        let name = interface.name().to_string_lossy();
        for (hook, program) in [
            (TcAttachType::Ingress, names::TC_INGRESS),
            (TcAttachType::Ingress, names::TC_INGRESS_IP),
            (TcAttachType::Egress, names::TC_EGRESS),
            (TcAttachType::Egress, names::TC_EGRESS_IP),
        ] {
            remove_filters(&name, hook, program);
        }
    }
    Ok(())
}

fn refused(name: &str, hook: &str, error: &dyn std::error::Error) -> Error {
    let mut reason = format!("{hook} refused: {}", with_causes(error));
    if reason.contains("EBUSY") || reason.contains("(os error 16)") {
        reason = format!("{reason}; another program holds the hook: see `ip link show {name}`");
    }
    Error::Interface { name: name.to_owned(), reason }
}

fn kind(name: &str) -> Result<Link, Error> {
    link(name).map_err(|source| Error::System { what: format!("ask for the link type of {name}"), source })
}

pub(super) fn index(name: &str) -> Result<u32, Error> {
    nix::net::if_::if_nametoindex(name).map_err(|error| match error {
        Errno::ENODEV => Error::NoSuchInterface { name: name.to_owned() },
        other => Error::System { what: format!("look interface {name} up"), source: other.into() },
    })
}

/// What the interface's frames begin with. Ethernet devices say so, and loopback has an Ethernet header too; PPP, TUN and tunnel devices, of
/// which there are many kinds, have none.
fn link(name: &str) -> io::Result<Link> {
    let mut request = request(name)?;
    ioctl(libc::SIOCGIFHWADDR, &mut request)?;
    // SAFETY: the kernel has just filled this member in, and any bytes are a valid address.
    let kind = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
    Ok(if matches!(kind, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK) { Link::Ethernet } else { Link::Ip })
}

/// The name of the interface's driver; `None` where it tells none.
pub(crate) fn driver(name: &str) -> Option<String> {
    const GET_DRIVER_INFO: u32 = 3;

    // SAFETY: plain integers and arrays, for which zeros are valid.
    let mut info: DriverInfo = unsafe { MaybeUninit::zeroed().assume_init() };
    info.command = GET_DRIVER_INFO;
    // SAFETY: this is what the command takes.
    unsafe { ethtool(name, &mut info) }.ok()?;
    Some(CStr::from_bytes_until_nul(&info.driver).ok()?.to_string_lossy().into_owned())
}

/// `struct ethtool_drvinfo` (include/uapi/linux/ethtool.h).
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware_version: [u8; 32],
    bus_info: [u8; 32],
    expansion_rom_version: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

/// Asks the driver of an interface.
///
/// # Safety
/// `command` is what include/uapi/linux/ethtool.h has for the number in its first member, with room for all that the kernel writes.
pub(crate) unsafe fn ethtool<C>(name: &str, command: &mut C) -> io::Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = std::ptr::from_mut(command).cast();
    ioctl(SIOCETHTOOL, &mut request)
}

/// A request about an interface, all zeros but for the name.
pub(crate) fn request(name: &str) -> io::Result<libc::ifreq> {
    let name = CString::new(name)?;
    // SAFETY: plain integers, arrays and a null pointer, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.as_bytes()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    Ok(request)
}

/// In the network namespace of this process.
pub(crate) fn ioctl(command: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: `request`, and what it points to where the command wants that, live until the call returns and are as large as the kernel
    // expects.
    match unsafe { libc::ioctl(socket.as_raw_fd(), command, std::ptr::from_mut(request)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
