//! Packets in fragments, in any order and with anything done to them.

use proptest::prelude::*;

use mef_packet::wire::segment::fragments;

use super::*;

fn at(ms: u64) -> Instant {
    Instant::from_millis(1000 + ms)
}

fn packet4(ident: u16, source: u8, len: usize) -> Vec<u8> {
    let mut p = vec![0; 20];
    let header = ipv4::Header {
        ident,
        dont_fragment: false,
        ..ipv4::Header::new([10, 1, 0, source].into(), [10, 2, 0, 2].into(), 6)
    };
    header.emit(&mut p, len).unwrap();
    p.extend((0..len).map(|i| (i * 7 + i / 256) as u8));
    p
}

/// The packet, and its fragments of `size` payload bytes, behind a destination-options header.
fn packet6(ident: u32, len: usize, size: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (src, dst) = ("fd00:1::2".parse().unwrap(), "fd00:2::2".parse().unwrap());
    let payload: Vec<u8> = (0..len).map(|i| (i * 3 + i / 256) as u8).collect();
    let options = |next: u8| vec![next, 0, 1, 4, 0, 0, 0, 0];
    let build = |next: u8, rest: &[u8]| {
        let mut p = vec![0; 40];
        let header = ipv6::Header::new(src, dst, ipv6::DESTINATION_OPTIONS);
        header.emit(&mut p, 8 + rest.len()).unwrap();
        p.extend(options(next));
        p.extend_from_slice(rest);
        p
    };
    let mut list = Vec::new();
    for (i, chunk) in payload.chunks(size).enumerate() {
        let more = u16::from((i + 1) * size < len);
        let mut rest = vec![6, 0];
        rest.extend_from_slice(&((i * size) as u16 | more).to_be_bytes());
        rest.extend_from_slice(&ident.to_be_bytes());
        rest.extend_from_slice(chunk);
        list.push(build(ipv6::FRAGMENT, &rest));
    }
    (build(6, &payload), list)
}

proptest! {
    /// Whatever the order, with some of them twice.
    #[test]
    fn a_packet_comes_out_as_it_went_in(
        len in 100usize..6000, mtu in 80usize..1500, six: bool, seed: u64, twice in 0usize..4,
    ) {
        let (whole, mut list) = if six {
            packet6(9, len, (mtu & !7).max(64))
        } else {
            let whole = packet4(9, 2, len);
            let list = fragments(&whole, mtu).unwrap();
            (whole, list)
        };
        prop_assume!(list.len() > 1 && list.len() <= MAX_FRAGMENTS);
        let last = list.len();
        for i in 0..twice {
            list.insert(i % last, list[(i * 5) % last].clone());
        }
        let mut x = seed | 1;
        for i in (1..list.len()).rev() {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            list.swap(i, (x >> 33) as usize % (i + 1));
        }
        let mut r = Reassembly::default();
        let mut got = None;
        for (i, f) in list.iter().enumerate() {
            if let Some(p) = r.take(at(i as u64), f).unwrap() {
                prop_assert!(got.is_none());
                got = Some(p);
            }
        }
        prop_assert_eq!(got.as_deref(), Some(&whole[..]));
        // A repetition behind it waits for what will not come, and is forgotten.
        r.expire(at(0) + 2 * PATIENCE);
        prop_assert_eq!((r.memory(), r.waiting(), r.due()), (0, 0, None));
    }

    #[test]
    fn any_bytes_are_refused_or_kept_within_the_bounds(list in prop::collection::vec(
        (any::<bool>(), prop::collection::vec(any::<u8>(), 0..100)), 0..60,
    )) {
        let mut r = Reassembly::default();
        for (i, (six, mut bytes)) in list.into_iter().enumerate() {
            if let Some(b) = bytes.first_mut() {
                *b = if six { 0x60 } else { 0x45 };
            }
            let _ = r.take(at(i as u64), &bytes);
            prop_assert!(r.memory() <= MAX_BYTES && r.waiting() <= MAX_PACKETS);
        }
    }
}

fn cut(whole: &[u8]) -> Vec<Vec<u8>> {
    fragments(whole, 500).unwrap()
}

#[test]
fn rfc5722_who_overlaps_loses_all_of_the_packet_and_nobody_elses() {
    let whole = packet4(1, 2, 1200);
    let list = cut(&whole);
    assert_eq!(list.len(), 3);
    // The second once more with other bytes, then one that begins in its middle.
    let mut other = list[1].clone();
    other[30] ^= 1;
    let mut inside = list[1].clone();
    inside[6..8].copy_from_slice(&(0x2000u16 | ((480 + 8) / 8)).to_be_bytes());
    for wrong in [other, inside] {
        let mut r = Reassembly::default();
        let neighbour = packet4(2, 2, 1200);
        let neighbours = cut(&neighbour);
        assert_eq!(r.take(at(0), &neighbours[0]), Ok(None));
        assert_eq!(r.take(at(0), &list[0]), Ok(None));
        assert_eq!(r.take(at(0), &list[1]), Ok(None));
        assert_eq!(r.take(at(0), &wrong), Err(Refused::Overlap));
        // Also what would have made it whole, and its first once more.
        assert_eq!(r.take(at(1), &list[2]), Err(Refused::Overlap));
        assert_eq!(r.take(at(1), &list[0]), Err(Refused::Overlap));
        assert_eq!(r.take(at(1), &neighbours[1]), Ok(None));
        assert_eq!(r.take(at(1), &neighbours[2]), Ok(Some(neighbour)));
        assert_eq!((r.memory(), r.waiting()), (0, 1));
        // Later its number is used anew.
        let later = at(0) + PATIENCE;
        for f in &list[..2] {
            assert_eq!(r.take(later, f), Ok(None));
        }
        assert_eq!(r.take(later, &list[2]), Ok(Some(whole.clone())));
    }
}

#[test]
fn impossible_fragments_are_refused() {
    let list = cut(&packet4(1, 2, 1200));
    let changed = |at: usize, bytes: &[u8]| {
        let mut f = list[1].clone();
        f[at..at + bytes.len()].copy_from_slice(bytes);
        f
    };
    // Ends beyond 65,535; a middle one of no multiple of eight bytes; an empty one.
    let beyond = changed(6, &[0x1f, 0xff]);
    let mut uneven = changed(2, &499u16.to_be_bytes());
    uneven.truncate(499);
    let mut empty = changed(2, &20u16.to_be_bytes());
    empty.truncate(20);
    for wrong in [beyond, uneven, empty] {
        let mut r = Reassembly::default();
        assert_eq!(r.take(at(0), &wrong), Err(Refused::Bad));
        assert_eq!(r.memory(), 0);
    }
    // Two that both say that they are the last, and one behind the last.
    let mut r = Reassembly::default();
    assert_eq!(r.take(at(0), &list[2]), Ok(None));
    assert_eq!(r.take(at(0), &changed(6, &[0, 60])), Err(Refused::Overlap));
    let mut r = Reassembly::default();
    let behind = changed(6, &(0x2000u16 | (1600 / 8)).to_be_bytes());
    assert_eq!(r.take(at(0), &behind), Ok(None));
    assert_eq!(r.take(at(0), &list[2]), Err(Refused::Overlap));
}

#[test]
fn rfc3168_a_mark_on_one_fragment_is_on_the_whole_or_drops_it() {
    for (others, expected) in [(Ecn::Ect0, true), (Ecn::NotEct, false)] {
        let mut list = cut(&packet4(1, 2, 1200));
        for (i, f) in list.iter_mut().enumerate() {
            let ecn = if i == 1 { Ecn::Ce } else { others };
            ecn::set(f, ecn).unwrap();
        }
        let mut r = Reassembly::default();
        let results: Vec<_> = list.iter().map(|f| r.take(at(0), f)).collect();
        match &results[2] {
            Ok(Some(p)) => assert!(expected && Ecn::of(p) == Ecn::Ce),
            other => assert!(!expected && *other == Err(Refused::Bad), "{other:?}"),
        }
    }
}

#[test]
fn what_waits_is_bounded_in_time_number_and_bytes() {
    let mut r = Reassembly::default();
    // From one host, only halves: a quarter of the places.
    for ident in 0..1000 {
        r.take(at(0), &cut(&packet4(ident, 2, 1200))[0]).unwrap();
    }
    assert_eq!(r.waiting(), MAX_OF_SOURCE);
    assert_eq!(r.take_dropped(), (0, 1000 - MAX_OF_SOURCE as u64));
    // Another's packet comes through meanwhile.
    let whole = packet4(1, 3, 1200);
    let got: Vec<_> = cut(&whole).iter().map(|f| r.take(at(1), f)).collect();
    assert_eq!(got[2], Ok(Some(whole)));
    // From many hosts, large ones.
    for source in 4..200 {
        for f in fragments(&packet4(7, source, 60_000), 1500)
            .unwrap()
            .iter()
            .skip(1)
        {
            r.take(at(2), f).unwrap();
            assert!(r.memory() <= MAX_BYTES && r.waiting() <= MAX_PACKETS);
        }
    }
    assert!(r.memory() > MAX_BYTES / 2);
    let waits = at(2) + PATIENCE;
    assert!(r.due().unwrap() <= waits);
    r.expire(waits);
    assert_eq!((r.memory(), r.waiting(), r.due()), (0, 0, None));
    assert!(r.take_dropped().0 > 0);
    // Packets that became whole leave nothing behind, however many they are.
    for ident in 0..20_000 {
        let list = fragments(&packet4(ident, 2, 100), 80).unwrap();
        let got: Vec<_> = list.iter().map(|f| r.take(waits, f).unwrap()).collect();
        assert!(got.iter().filter(|p| p.is_some()).count() == 1);
        assert!(r.order.len() <= 4 * MAX_PACKETS + 1);
    }
}
