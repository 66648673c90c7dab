//! Internet checksums, updated and not recomputed: RFC 1624, equation 3, `HC' = ~(~HC + ~m + m')`.
//!
//! One's-complement sums do not depend on byte order (RFC 1071 section 2), so words are taken in the machine's own.

/// The sum of `~m + m'` over the words that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// The change of four bytes, as they lie in memory, at an even offset of what the checksum covers.
    #[inline(always)]
    pub const fn of(old: u32, new: u32) -> Self {
        Self(!old as u64 + new as u64)
    }

    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// The sum over four bytes that were zero before, as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Both changes. There is room for 2^15 words, of which no change has more than a few dozen.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The checksum after the change.
    #[inline(always)]
    pub const fn apply(self, checksum: [u8; 2]) -> [u8; 2] {
        let sum = self.0 + !u16::from_ne_bytes(checksum) as u64;
        // Of 48 bits: what is carried in the first two steps is at most one, and the last one carries it.
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        (!((sum + (sum >> 16)) as u16)).to_ne_bytes()
    }

    /// Thirty-two bits that sum to the same, as the kernel's checksum helpers take them.
    #[inline(always)]
    pub const fn folded(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        (sum + (sum >> 32)) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testkit::internet_checksum;

    /// The same by the definition of a one's-complement sum, and zero as 0xffff, since what is not all zero does not sum to zero.
    fn reduced(sum: u64, bits: u32) -> u64 {
        let modulus = (1 << bits) - 1;
        if sum > 0 && sum.is_multiple_of(modulus) { modulus } else { sum % modulus }
    }

    proptest! {
        #[test]
        fn a_sum_is_folded_without_losing_a_carry(
            high in prop::sample::select(vec![0, 1, 2, 0x7fff, 0x8000, 0xfffe, 0xffff]),
            halves in prop::array::uniform2(prop::sample::select(vec![0, 1, 2, 0x7fff, 0x8000, 0xfffe, 0xffff])),
            checksum: u16,
        ) {
            let delta = Delta(high << 32 | halves[0] << 16 | halves[1]);
            prop_assume!(delta.0 < (1 << 48) - 0x1_0000);
            prop_assert_eq!(u64::from(delta.folded()), reduced(delta.0, 32));
            let after = !u16::from_ne_bytes(delta.apply((!checksum).to_ne_bytes()));
            prop_assert_eq!(u64::from(after), reduced(delta.0 + u64::from(checksum), 16));
        }

        #[test]
        fn an_update_equals_a_recomputation(mut bytes in prop::collection::vec(any::<u8>(), 8..64), new in any::<[[u8; 4]; 2]>()) {
            bytes.truncate(bytes.len() & !1);
            let before = internet_checksum(&[&bytes]).to_be_bytes();
            let old = [[bytes[0], bytes[1], bytes[2], bytes[3]], [bytes[4], bytes[5], bytes[6], bytes[7]]].map(u32::from_ne_bytes);
            bytes[..8].copy_from_slice(new.as_flattened());
            let new = new.map(u32::from_ne_bytes);
            let after = Delta::of(old[0], new[0]).and(Delta::of(old[1], new[1])).apply(before);
            // All-zero data is the one case where zero has two forms; no header of ours is all zero.
            prop_assume!(bytes.iter().any(|byte| *byte != 0));
            prop_assert_eq!(u16::from_be_bytes(after), internet_checksum(&[&bytes]));
        }
    }
}
