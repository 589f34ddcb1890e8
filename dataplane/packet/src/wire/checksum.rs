//! The Internet checksum (RFC 1071), its incremental update (RFC 1624), and the
//! partial checksums of offloading hosts, where the field holds the sum of the
//! pseudo-header alone until someone sums the rest.

use super::{put, u16_at, WireError};
use core::net::IpAddr;

/// A ones-complement sum of 16-bit big-endian words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    pub const ZERO: Self = Self(0);

    /// Adds `bytes`, which begin at an even offset; an odd last byte is padded with zero.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        // Summed in the machine's byte order, 32 bits at a time: the folded result only
        // has to be swapped (RFC 1071, 2B). 2^32 such words fit into the accumulator.
        let mut acc = 0u64;
        let (words, rest) = bytes.as_chunks_4();
        for w in words {
            acc += u64::from(u32::from_ne_bytes(*w));
        }
        let mut tail = [0u8; 4];
        for (t, r) in tail.iter_mut().zip(rest) {
            *t = *r;
        }
        acc += u64::from(u32::from_ne_bytes(tail));
        self.word(u16::from_be(fold(acc)))
    }
    #[inline]
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }
    #[inline]
    #[must_use]
    pub fn dword(self, dword: u32) -> Self {
        self.word((dword >> 16) as u16).word(dword as u16)
    }
    /// The sum folded to 16 bits: what a partial checksum field holds.
    #[inline]
    pub fn folded(self) -> u16 {
        fold(self.0)
    }
    /// Its complement: what a complete checksum field holds.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.folded()
    }
    /// Whether data summed with its checksum is sound.
    #[inline]
    pub fn is_valid(self) -> bool {
        self.folded() == 0xffff
    }
}

/// `slice::as_chunks`, which the oldest supported compiler does not have.
trait AsChunks4 {
    fn as_chunks_4(&self) -> (impl Iterator<Item = &[u8; 4]>, &[u8]);
}
impl AsChunks4 for [u8] {
    #[inline]
    fn as_chunks_4(&self) -> (impl Iterator<Item = &[u8; 4]>, &[u8]) {
        let chunks = self.chunks_exact(4);
        let rest = chunks.remainder();
        (chunks.filter_map(|c| c.first_chunk()), rest)
    }
}

/// Without a branch: how often there is a carry is as random as what is summed.
#[inline]
const fn fold(sum: u64) -> u16 {
    let (low, carry) = (sum as u32).overflowing_add((sum >> 32) as u32);
    let sum = low.wrapping_add(carry as u32);
    // The upper half of this is the sum of both halves and the carry of the lower ones.
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// Sum of the pseudo-header of an upper-layer protocol over IPv4 (RFC 9293, 3.1) or IPv6 (RFC 8200,
/// 8.1); `len` in bytes, header included. The two differ in the addresses only, as the sum does not
/// see in how many bytes the other fields are written.
#[inline]
pub fn pseudo_header(
    src: impl Into<IpAddr>,
    dst: impl Into<IpAddr>,
    protocol: u8,
    len: usize,
) -> Sum {
    let address = |sum: Sum, a: IpAddr| match a {
        IpAddr::V4(a) => sum.dword(a.to_bits()),
        IpAddr::V6(a) => sum.bytes(&a.octets()),
    };
    address(address(Sum::ZERO, src.into()), dst.into())
        .word(u16::from(protocol))
        .dword(len as u32)
}

/// A complete checksum after one 16-bit word it covers went from `old` to `new` (RFC 1624, equation 3).
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    Sum::ZERO.word(!checksum).word(!old).word(new).checksum()
}

/// As [`update`], for two words.
#[inline]
pub fn update_u32(checksum: u16, old: u32, new: u32) -> u16 {
    Sum::ZERO.word(!checksum).dword(!old).dword(new).checksum()
}

/// What a change to covered bytes does to the checksum over them. A partial
/// checksum (pseudo-header only) needs none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta {
    before: u16,
    after: u16,
}

impl Delta {
    /// From the sums of the changed region before and after.
    pub fn new(before: Sum, after: Sum) -> Self {
        Self {
            before: before.folded(),
            after: after.folded(),
        }
    }
    /// The complete checksum after the change.
    pub fn apply(self, checksum: u16) -> u16 {
        update(checksum, self.before, self.after)
    }
}

/// Completes a partial checksum in software: sums `frame` from `start` on and stores
/// the result at `start + offset`, which holds the pseudo-header's sum.
///
/// # Errors
/// `Truncated` if the field lies outside of the frame; nothing is changed then.
pub fn complete_partial(frame: &mut [u8], start: u16, offset: u16) -> Result<(), WireError> {
    let field = usize::from(start) + usize::from(offset);
    if field + 2 > frame.len() {
        return Err(WireError::Truncated);
    }
    let sum = Sum::ZERO.bytes(frame.get(usize::from(start)..).unwrap_or(&[]));
    // Zero means "none" to UDP; 0xffff is the same sum and valid for every protocol.
    let checksum = match sum.checksum() {
        0 => 0xffff,
        c => c,
    };
    put(frame, field, &checksum.to_be_bytes())
}

/// Verifies data that ends the sum `pseudo` and contains its checksum.
#[inline]
pub(crate) fn verify(pseudo: Sum, data: &[u8]) -> Result<(), WireError> {
    if pseudo.bytes(data).is_valid() {
        Ok(())
    } else {
        Err(WireError::BadChecksum)
    }
}

/// Stores the complete checksum of `data` at `at`, not counting what is there now.
pub(crate) fn fill(pseudo: Sum, data: &mut [u8], at: usize) -> Result<u16, WireError> {
    put(data, at, &[0, 0])?;
    let checksum = pseudo.bytes(data).checksum();
    put(data, at, &checksum.to_be_bytes())?;
    Ok(checksum)
}

/// Applies an incremental update to the field at `at`.
#[inline]
pub(crate) fn update_at(data: &mut [u8], at: usize, old: u16, new: u16) -> Result<(), WireError> {
    let c = update(u16_at(data, at), old, new);
    put(data, at, &c.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;
    use proptest::prelude::*;

    /// RFC 1071, 4.1, word by word.
    fn reference(data: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn rfc1071_example() {
        let sum = Sum::ZERO.bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
        assert_eq!(sum.checksum(), 0x220d);
    }

    #[test]
    fn rfc1624_example_that_equation_2_gets_wrong() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    proptest! {
        #[test]
        fn folds_as_words_are_added(sum in prop_oneof![any::<u64>(), 0..0x4_0000u64, any::<u64>().prop_map(|n| n / 0xffff * 0xffff)]) {
            let mut expected = sum;
            while expected > 0xffff {
                expected = (expected & 0xffff) + (expected >> 16);
            }
            prop_assert_eq!(fold(sum), expected as u16);
        }

        #[test]
        fn agrees_with_the_reference(data: Vec<u8>) {
            prop_assert_eq!(Sum::ZERO.bytes(&data).folded(), reference(&data));
        }

        #[test]
        fn splits_at_any_even_offset(data in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..150) {
            let at = (at * 2).min(data.len() & !1);
            let (a, b) = data.split_at(at);
            prop_assert_eq!(Sum::ZERO.bytes(a).bytes(b).folded(), Sum::ZERO.bytes(&data).folded());
        }

        #[test]
        fn update_equals_recomputation(mut data in prop::collection::vec(any::<u8>(), 2..100), at: prop::sample::Index, new: u16) {
            data.push(1); // a sum of zero occurs only for all-zero data (RFC 1624, 3)
            let at = at.index(data.len() / 2) * 2;
            let (before, old) = (Sum::ZERO.bytes(&data), u16_at(&data, at));
            put(&mut data, at, &new.to_be_bytes()).unwrap();
            if data.iter().any(|&b| b != 0) && at + 1 < data.len() {
                prop_assert_eq!(update(before.checksum(), old, new), Sum::ZERO.bytes(&data).checksum());
            }
        }

        #[test]
        fn completed_partial_checksum_verifies(payload in prop::collection::vec(any::<u8>(), 20..200), head in 0usize..40, src: u32, dst: u32) {
            let (src, dst) = (Ipv4Addr::from_bits(src), Ipv4Addr::from_bits(dst));
            let pseudo = pseudo_header(src, dst, 6, payload.len());
            let mut frame = vec![0xaa; head];
            frame.extend_from_slice(&payload);
            put(&mut frame, head + 16, &pseudo.folded().to_be_bytes()).unwrap();
            complete_partial(&mut frame, head as u16, 16).unwrap();
            prop_assert!(pseudo.bytes(&frame[head..]).is_valid());
        }

        #[test]
        fn partial_outside_of_the_frame_changes_nothing(frame: Vec<u8>, start: u16, offset: u16) {
            let mut changed = frame.clone();
            if complete_partial(&mut changed, start, offset).is_err() {
                prop_assert!(usize::from(start) + usize::from(offset) + 2 > frame.len());
                prop_assert_eq!(changed, frame);
            }
        }
    }
}
