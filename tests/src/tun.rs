//! A cable between two hosts that carries IP and nothing below it: a TUN device at each end, and threads that carry packets from one to the other
//! (`Documentation/networking/tuntap.rst`).

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Namespace;

/// A packet is no larger.
const PACKET_BYTES_MAX: usize = 65_535;
/// After this time a thread sees that it is to end.
const ROUND_MS: u8 = 100;

mod request {
    // include/uapi/linux/if_tun.h; the argument is a `struct ifreq`, whatever the number says.
    nix::ioctl_write_ptr_bad!(
        set_device,
        nix::request_code_write!(b'T', 202, size_of::<nix::libc::c_int>()),
        nix::libc::ifreq
    );
}

/// Carries packets until it is dropped, and with it go both devices.
pub struct Cable {
    ended: Arc<AtomicBool>,
    carriers: Vec<JoinHandle<()>>,
}

impl Cable {
    /// Lays a cable between new devices of two hosts. They are down and have no address.
    pub fn lay([near, far]: [(&Namespace, &str); 2]) -> Result<Self> {
        let [near, far] = [open(near)?, open(far)?];
        let ended = Arc::new(AtomicBool::new(false));
        let mut carriers = Vec::new();
        for (from, to) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
            let ended = Arc::clone(&ended);
            carriers.push(thread::spawn(move || carry(from, to, &ended)));
        }
        Ok(Self { ended, carriers })
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for carrier in self.carriers.drain(..) {
            // One that has panicked has said why.
            let _ = carrier.join();
        }
    }
}

fn open((host, device): (&Namespace, &str)) -> Result<File> {
    host.enter(|| {
        let file = File::options().read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: a structure of integers and bytes, of which zeros are a value.
        let mut wanted: libc::ifreq = unsafe { std::mem::zeroed() };
        for (at, byte) in wanted.ifr_name.iter_mut().zip(device.bytes()) {
            *at = byte.cast_signed();
        }
        let flags = libc::IFF_TUN | libc::IFF_NO_PI;
        wanted.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("both flags are below 2^15");
        // SAFETY: the request reads one such structure, which lives until it returns.
        unsafe { request::set_device(file.as_raw_fd(), &raw const wanted) }?;
        Ok::<_, io::Error>(file)
    })
    .with_context(|| format!("make the TUN device {device} of {}", host.name()))
}

fn carry(mut from: File, mut to: File, ended: &AtomicBool) {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    while !ended.load(Ordering::Relaxed) {
        let mut ready = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        if !poll(&mut ready, PollTimeout::from(ROUND_MS)).is_ok_and(|ready| ready > 0) {
            continue;
        }
        // While a device is down, neither reading nor writing works, and packets are lost as on any cable.
        if let Ok(length) = from.read(&mut packet) {
            let _ = to.write(&packet[..length]);
        } else {
            thread::sleep(std::time::Duration::from_millis(ROUND_MS.into()));
        }
    }
}
