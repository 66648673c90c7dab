//! Headers as they lie on the wire: byte arrays, alignment 1, network byte order.

/// A type that any bytes of its size are a valid value of.
///
/// # Safety
/// The type is `repr(C)` or an array, has alignment 1, no padding, and every bit pattern is valid.
pub unsafe trait Wire: Copy + 'static {}

// SAFETY: a byte.
unsafe impl Wire for u8 {}
// SAFETY: an array adds neither padding nor alignment.
unsafe impl<T: Wire, const N: usize> Wire for [T; N] {}

macro_rules! wire {
    ($($(#[$attribute:meta])* $name:ident, $len:literal { $($(#[$field_attribute:meta])* $field:ident: $type:ty),* $(,)? })*) => { $(
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct $name { $($(#[$field_attribute])* pub $field: $type),* }
        const _: () = assert!(size_of::<$name>() == $len && align_of::<$name>() == 1);
        // SAFETY: repr(C) bytes and byte arrays; size and alignment asserted above.
        unsafe impl Wire for $name {}
    )* };
}

wire! {
    /// IEEE 802.3.
    Ethernet, 14 { destination: [u8; 6], source: [u8; 6], ethertype: [u8; 2] }
    /// IEEE 802.1Q, what follows the tag's own ethertype.
    Vlan, 4 { control: [u8; 2], ethertype: [u8; 2] }
    /// RFC 2516 section 4, in the session stage: `code` is 0, and a PPP protocol number opens the payload.
    Pppoe, 8 { version_type: u8, code: u8, session: [u8; 2], len: [u8; 2], protocol: [u8; 2] }
    /// RFC 791 section 3.1, without options.
    Ipv4, 20 {
        version_ihl: u8, tos: u8, total_len: [u8; 2], id: [u8; 2], fragment: [u8; 2], ttl: u8, protocol: u8, checksum: [u8; 2],
        source: [u8; 4], destination: [u8; 4],
    }
    /// RFC 8200 section 3.
    Ipv6, 40 {
        version_class_flow: [u8; 4], payload_len: [u8; 2], next_header: u8, hop_limit: u8, source: [u8; 16], destination: [u8; 16],
    }
    /// The first eight bytes of an IPv6 extension header (RFC 8200 section 4); `fourth` is "segments left" in a routing header.
    Extension, 8 { next_header: u8, len: u8, third: u8, fourth: u8, rest: [u8; 4] }
    /// RFC 792, RFC 4443: an error, before the packet that it quotes.
    Icmp, 8 { kind: u8, code: u8, checksum: [u8; 2], rest: [u8; 4] }
    /// RFC 9293 section 3.1, without options.
    Tcp, 20 {
        source_port: [u8; 2], destination_port: [u8; 2], sequence: [u8; 4], acknowledgment: [u8; 4], offset: u8, flags: u8,
        window: [u8; 2], checksum: [u8; 2], urgent: [u8; 2],
    }
}

/// A TCP header right behind an IP header.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Plain<I> {
    pub ip: I,
    pub tcp: Tcp,
}

// SAFETY: repr(C); members of alignment 1 leave no padding.
unsafe impl<I: Wire> Wire for Plain<I> {}

/// The end of an IPv4 header: one check of the frame's bounds for both.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Summed<O> {
    pub checksum: [u8; 2],
    pub addresses: [O; 2],
}

// SAFETY: as above.
unsafe impl<O: Wire> Wire for Summed<O> {}

/// Offset of the TCP checksum in the TCP header, in bytes.
pub const TCP_CHECKSUM: usize = 16;

/// Ethertypes (IEEE 802 numbers).
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const IPV6: u16 = 0x86dd;
    pub const VLAN: u16 = 0x8100;
    pub const PPPOE_SESSION: u16 = 0x8864;
    /// Service tag of IEEE 802.1ad.
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// PPP protocol numbers (IANA).
pub mod ppp {
    pub const IPV4: u16 = 0x0021;
    pub const IPV6: u16 = 0x0057;
}

/// Protocol and extension header numbers (IANA).
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMPV4: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION: u8 = 60;
}
