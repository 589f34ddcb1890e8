//! Fragments of TCP in any order, overlapping, repeated, late: what comes out
//! whole holds every byte that was taken, where it was said to be, and what
//! waits stays within its bounds.

use std::time::Duration;

use mef_dataplane::reassembly::{Reassembly, MAX_BYTES, MAX_PACKETS};
use mef_packet::wire::{ip, ipv4, ipv6};
use mef_packet::Instant;

use super::input::Input;

/// A fragment with these bytes at `word`'s place of packet `ident`.
fn fragment(six: bool, ident: u8, word: u16, bytes: &[u8]) -> Vec<u8> {
    if six {
        let (src, dst) = ([0x20; 16].into(), [0x21; 16].into());
        let mut p = vec![0; ipv6::HEADER_LEN];
        let header = ipv6::Header::new(src, dst, ipv6::FRAGMENT);
        header.emit(&mut p, 8 + bytes.len()).expect("room");
        // Where it lies stands above the three lowest bits.
        let word = word << 3 | word >> 13 & 1;
        p.extend_from_slice(&[6, 0]);
        p.extend_from_slice(&word.to_be_bytes());
        p.extend_from_slice(&u32::from(ident).to_be_bytes());
        p.extend_from_slice(bytes);
        return p;
    }
    let mut p = vec![0; ipv4::HEADER_LEN];
    let (src, dst) = ([10, 1, 0, 2].into(), [10, 2, 0, 2].into());
    let header = ipv4::Header {
        ident: ident.into(),
        ..ipv4::Header::new(src, dst, 6)
    };
    header.emit(&mut p, bytes.len()).expect("room");
    p[6..8].copy_from_slice(&word.to_be_bytes());
    ipv4::fill_checksum(&mut p).expect("a header");
    p.extend_from_slice(bytes);
    p
}

pub fn fragments(data: &[u8]) {
    let mut input = Input(data);
    let mut now = Instant::from_millis(1000);
    let mut r = Reassembly::default();
    // What was taken of each packet, since when.
    let mut taken: Vec<(bool, u8, usize, Vec<u8>)> = Vec::new();
    for _ in 0..2000 {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        let (six, ident) = (op & 1 != 0, op >> 1 & 3);
        let packet = match op >> 3 {
            0 => {
                now += Duration::from_millis(u64::from(input.u16()));
                r.expire(now);
                // Which packets are begun anew is not known here.
                taken.clear();
                r = if op & 2 != 0 {
                    Reassembly::default()
                } else {
                    r
                };
                continue;
            }
            1 => {
                let _ = r.take(now, input.bytes());
                continue;
            }
            _ => {
                // Two bits of the flags, the place in the lowest 13.
                let word = input.u16() & 0x3fff;
                let len = usize::from(input.u8()) * 8 + usize::from(op >> 6);
                let first = input.u8();
                let bytes: Vec<u8> = (0..len).map(|i| first.wrapping_add(i as u8)).collect();
                let at = usize::from(word & 0x1fff) * 8;
                if word & 0x3fff == 0 {
                    // Not a fragment: does not come here.
                    continue;
                }
                let packet = fragment(six, ident, word, &bytes);
                taken.push((six, ident, at, bytes));
                packet
            }
        };
        match r.take(now, &packet) {
            Ok(None) => {}
            Ok(Some(whole)) => {
                let v = ip::View::parse(&whole).expect("a whole packet");
                assert!(!v.is_fragment() && v.total_len() == whole.len());
                assert_eq!(v.protocol(), 6);
                let all = v.payload();
                // Fragments of it that were taken before time went on are not known any more.
                for (_, _, at, bytes) in taken.iter().filter(|t| (t.0, t.1) == (six, ident)) {
                    assert_eq!(all.get(*at..at + bytes.len()), Some(&bytes[..]));
                }
                taken.retain(|t| (t.0, t.1) != (six, ident));
            }
            Err(_) => taken.retain(|t| (t.0, t.1) != (six, ident)),
        }
        assert!(r.memory() <= MAX_BYTES && r.waiting() <= MAX_PACKETS);
    }
    r.expire(now + Duration::from_secs(60));
    assert_eq!((r.memory(), r.waiting()), (0, 0));
}

/// Three fragments out of order, one of them twice, of either version; then two that overlap.
pub fn seeds() -> Vec<Vec<u8>> {
    let piece = |op: u8, word: u16, eights: u8| {
        let [a, b] = word.to_be_bytes();
        vec![op, a, b, eights, (word & 0x1fff) as u8 * 8]
    };
    let packet = |six: u8| {
        [
            piece(16 | six, 20, 4),
            piece(16 | six, 0x2000, 10),
            piece(16 | six, 0x2000, 10),
            piece(16 | six, 0x2000 | 10, 10),
        ]
        .concat()
    };
    let overlap = [piece(16, 0x2000, 10), piece(16, 0x2000 | 5, 10)].concat();
    vec![packet(0), packet(1), overlap]
}
