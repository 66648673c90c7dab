//! Attaching the programs to an interface, and choosing the hook.

use std::{
    ffi::{CStr, CString},
    io,
    mem::MaybeUninit,
    os::fd::AsRawFd,
};

use aya::{
    Ebpf,
    programs::{
        ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        tc::{SchedClassifierLink, TcError, qdisc_add_clsact},
        xdp::XdpLink,
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
    program, with_causes,
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

/// The programs on one interface. Dropping it detaches them: ingress first, so that nothing is redirected whose replies would not come back.
pub(super) struct Attached {
    pub(super) attachment: Attachment,
    pub(super) index: u32,
    _ingress: Ingress,
    _egress: SchedClassifierLink,
}

/// Held for its drop.
enum Ingress {
    Xdp { _link: XdpLink },
    Tc { _link: SchedClassifierLink },
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
}

/// Attaches egress before ingress, for the same reason as [`Attached`] drops them the other way round.
pub(super) fn attach(object: &mut Ebpf, name: &str, role: Role, hook: Hook) -> Result<Attached, Error> {
    let index = index(name)?;
    let driver = driver(name);
    let software = driver.as_deref().is_none_or(|driver| SOFTWARE_DRIVERS.contains(&driver));

    let link =
        link(name).map_err(|source| Error::System { what: format!("ask for the link type of {name}"), source })?;

    let egress = attach_tc(object, egress_program(link), name, TcAttachType::Egress)?;
    let (ingress, mode) = match hook {
        Hook::Tc => (attach_tc_ingress(object, link, name)?, tc_mode()),
        Hook::Auto if software => (attach_tc_ingress(object, link, name)?, tc_mode()),
        Hook::Auto => match attach_xdp(object, name) {
            Ok(link) => (Ingress::Xdp { _link: link }, Mode::Xdp),
            Err(error) => {
                info!(interface = name, driver, %error, "no native XDP; using tc");
                (attach_tc_ingress(object, link, name)?, tc_mode())
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
            (Ingress::Xdp { _link: link }, Mode::Xdp)
        }
    };
    info!(interface = name, driver, %mode, "attached");
    Ok(Attached { attachment: Attachment { role, hook, mode }, index, _ingress: ingress, _egress: egress })
}

/// tcx links exist from Linux 6.6 on; before, a filter of the clsact qdisc does the same.
fn tc_mode() -> Mode {
    match KernelVersion::current() {
        Ok(version) if version < KernelVersion::new(6, 6, 0) => Mode::Clsact,
        Ok(_) | Err(_) => Mode::Tcx,
    }
}

/// In the driver only: generic XDP runs on socket buffers with partial checksums.
fn attach_xdp(object: &mut Ebpf, name: &str) -> Result<XdpLink, Error> {
    let xdp: &mut Xdp = program(object, names::XDP_INGRESS)?;
    let link = xdp.attach(name, XdpMode::Driver).and_then(|id| xdp.take_link(id));
    link.map_err(|error| refused(name, "XDP", &error))
}

fn attach_tc_ingress(object: &mut Ebpf, link: Link, name: &str) -> Result<Ingress, Error> {
    let program = match link {
        Link::Ethernet => names::TC_INGRESS,
        Link::Ip => names::TC_INGRESS_IP,
    };
    attach_tc(object, program, name, TcAttachType::Ingress).map(|link| Ingress::Tc { _link: link })
}

const fn egress_program(link: Link) -> &'static str {
    match link {
        Link::Ethernet => names::TC_EGRESS,
        Link::Ip => names::TC_EGRESS_IP,
    }
}

fn attach_tc(
    object: &mut Ebpf,
    program_name: &str,
    name: &str,
    hook: TcAttachType,
) -> Result<SchedClassifierLink, Error> {
    if tc_mode() == Mode::Clsact {
        match qdisc_add_clsact(name) {
            Ok(()) => {}
            // It is there: for our program of the other direction, or somebody else's.
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => {
                return Err(Error::Interface { name: name.to_owned(), reason: format!("no clsact qdisc: {error}") });
            }
        }
    }
    let classifier: &mut SchedClassifier = program(object, program_name)?;
    let link = classifier.attach(name, hook).and_then(|id| classifier.take_link(id));
    link.map_err(|error| refused(name, "tc", &error))
}

fn refused(name: &str, hook: &str, error: &ProgramError) -> Error {
    let mut reason = format!("{hook} refused: {}", with_causes(error));
    if reason.contains("EBUSY") || reason.contains("(os error 16)") {
        reason = format!("{reason}; another program holds the hook: see `ip link show {name}`");
    }
    Error::Interface { name: name.to_owned(), reason }
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
    const SIOCETHTOOL: libc::c_ulong = 0x8946;

    // SAFETY: plain integers and arrays, for which zeros are valid.
    let mut info: DriverInfo = unsafe { MaybeUninit::zeroed().assume_init() };
    info.command = GET_DRIVER_INFO;
    let mut request = request(name).ok()?;
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut info).cast();
    ioctl(SIOCETHTOOL, &mut request).ok()?;
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
