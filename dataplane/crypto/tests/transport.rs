//! Transport packets from outside: both ways, over ratchets, and
//! what forging, replaying and cutting them achieves.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use mef_crypto::engine::EngineKind;
use mef_crypto::replay::MIN_WINDOW;
use mef_crypto::{Header, Limits, OpenError, SealError, Session, SessionConfig, OVERHEAD};
use proptest::prelude::*;

/// Opens `packet`, and returns number and plaintext.
fn open(session: &mut Session, packet: &[u8]) -> Result<(u64, Vec<u8>), OpenError> {
    let mut packet = packet.to_vec();
    let opened = session.open(&mut packet)?;
    Ok((opened.counter, packet[opened.payload].to_vec()))
}

/// Sessions of a lane that is not the first.
fn on_lane(lane: u16) -> (Session, Session) {
    let config = SessionConfig {
        lane,
        ..SessionConfig::default()
    };
    sessions_with(config, config)
}

/// A key lasts three packets of 16 bytes (3 blocks each), and stops after twice that.
fn short_lived() -> SessionConfig {
    SessionConfig {
        limits: Limits {
            ratchet_blocks: 9,
            stop_blocks: 18,
        },
        ..SessionConfig::default()
    }
}

fn epoch(packet: &[u8]) -> u8 {
    Header::parse(packet).unwrap().epoch
}

#[test]
fn packets_cross_both_ways_with_numbers_of_each() {
    let (mut a, mut b) = on_lane(3);
    for round in 0..3 {
        assert_eq!(a.next_counter(), round);
        let there = sealed(&mut a, b"there");
        assert_eq!(there.len(), 5 + OVERHEAD);
        assert_eq!(Header::parse(&there).unwrap().lane, 3);
        assert_eq!(open(&mut b, &there).unwrap(), (round, b"there".to_vec()));
        let back = sealed(&mut b, b"and back");
        assert_eq!(open(&mut a, &back).unwrap(), (round, b"and back".to_vec()));
    }
    let empty = sealed(&mut a, b"");
    assert_eq!(open(&mut b, &empty).unwrap(), (3, vec![]));
}

#[test]
fn every_flipped_bit_is_refused_and_changes_nothing() {
    let (mut a, mut b) = on_lane(1);
    let packet = sealed(&mut a, b"forty-two bytes or so of what hosts send..");
    for (bit, flipped) in bit_flips(&packet) {
        assert!(open(&mut b, &flipped).is_err(), "bit {bit}");
    }
    assert!(!b.is_confirmed());
    assert!(open(&mut b, &packet).is_ok());
}

#[test]
fn header_errors_are_told_apart() {
    let (mut a, mut b) = on_lane(1);
    let packet = sealed(&mut a, b"payload");
    for (byte, value, expected) in [
        (0, 0x24, OpenError::BadVersion),
        (0, 0x11, OpenError::UnknownType),
        (0, 0x12, OpenError::UnknownType),
        (0, 0x13, OpenError::UnknownType),
        (1, 1, OpenError::Unauthentic),
        (1, 2, OpenError::BadEpoch),
        (1, 255, OpenError::BadEpoch),
        (3, 0, OpenError::UnknownLane),
        (3, 2, OpenError::UnknownLane),
        (2, 0xff, OpenError::UnknownLane),
        (7, 0, OpenError::UnknownSession),
        (15, 1, OpenError::Unauthentic),
    ] {
        let mut changed = packet.clone();
        changed[byte] = value;
        assert_eq!(
            open(&mut b, &changed),
            Err(expected),
            "byte {byte} = {value}"
        );
    }
    assert!(open(&mut b, &packet).is_ok());
}

#[test]
fn every_truncation_is_refused() {
    let (mut a, mut b) = sessions();
    let packet = sealed(&mut a, &[7; 100]);
    for n in 0..packet.len() {
        let expected = if n < OVERHEAD {
            OpenError::Truncated
        } else {
            OpenError::Unauthentic
        };
        assert_eq!(open(&mut b, &packet[..n]), Err(expected), "{n} bytes");
    }
    assert_eq!(
        open(&mut b, &[&packet[..], &[0]].concat()),
        Err(OpenError::Unauthentic)
    );
    assert!(open(&mut b, &packet).is_ok());
}

#[test]
fn a_packet_opens_once() {
    let (mut a, mut b) = on_lane(1);
    let packets: Vec<_> = (0..10).map(|_| sealed(&mut a, b"data")).collect();
    for i in [3, 0, 9, 4] {
        assert!(open(&mut b, &packets[i]).is_ok());
        assert_eq!(open(&mut b, &packets[i]), Err(OpenError::Replayed));
    }
    let mut moved = packets[1].clone();
    moved[3] = 0;
    assert_eq!(open(&mut b, &moved), Err(OpenError::UnknownLane));
}

#[test]
fn packets_below_the_window_are_too_old() {
    let (mut a, mut b) = sessions();
    let packets: Vec<_> = (0..=MIN_WINDOW).map(|_| sealed(&mut a, b"data")).collect();
    assert!(open(&mut b, &packets[MIN_WINDOW]).is_ok());
    assert_eq!(open(&mut b, &packets[0]), Err(OpenError::TooOld));
    assert!(open(&mut b, &packets[1]).is_ok());
}

#[test]
fn a_forged_packet_does_not_move_the_window() {
    let (mut a, mut b) = sessions();
    let first = sealed(&mut a, b"first");
    let mut forged = sealed(&mut a, b"forged");
    forged[8..16].copy_from_slice(&(u64::MAX - 1).to_be_bytes());
    assert_eq!(open(&mut b, &forged), Err(OpenError::Unauthentic));
    assert!(open(&mut b, &first).is_ok());
}

#[test]
fn a_packet_reflected_to_its_sender_is_refused() {
    let (mut a, _) = sessions();
    let mut packet = sealed(&mut a, b"data");
    assert_eq!(open(&mut a, &packet), Err(OpenError::UnknownSession));
    packet[4..8].copy_from_slice(&INITIATOR_INDEX.to_be_bytes());
    assert_eq!(open(&mut a, &packet), Err(OpenError::Unauthentic));
}

#[test]
fn a_packet_of_another_session_is_refused() {
    let (mut a, _) = sessions();
    let mut responder = responder();
    let (mut pending, initiation) = initiate(2, SessionConfig::default());
    let read = responder.read(&initiation).unwrap();
    let (mut later, response) = responder
        .accept(read, RESPONDER_INDEX, [3; 32], SessionConfig::default())
        .unwrap();
    pending.finish(&response).unwrap();
    let old = sealed(&mut a, b"data");
    assert_eq!(open(&mut later, &old), Err(OpenError::Unauthentic));
}

#[test]
fn too_short_for_an_envelope_is_not_sealed() {
    let (mut a, _) = sessions();
    for n in 0..OVERHEAD {
        assert_eq!(
            a.seal_in_place(&mut vec![0; n]),
            Err(SealError::TooShort(n))
        );
    }
    assert_eq!(a.next_counter(), 0);
}

#[test]
fn keys_ratchet_by_blocks_and_numbers_run_on() {
    let (mut a, mut b) = sessions_with(short_lived(), short_lived());
    // Three packets of three blocks each a key; 300 keys take the 8-bit epoch round.
    for n in 0..900u64 {
        let packet = sealed(&mut a, &[1; 16]);
        assert_eq!(epoch(&packet), (n / 3) as u8);
        assert_eq!(open(&mut b, &packet).unwrap().0, n);
        assert_eq!(open(&mut b, &packet), Err(OpenError::Replayed));
    }
    // The other direction has keys of its own.
    let back = sealed(&mut b, b"back");
    assert_eq!(epoch(&back), 0);
    assert!(open(&mut a, &back).is_ok());
}

#[test]
fn reordering_across_a_ratchet_is_no_loss() {
    let (mut a, mut b) = sessions_with(short_lived(), short_lived());
    let packets: Vec<_> = (0..9).map(|_| sealed(&mut a, &[1; 16])).collect();
    assert!(
        open(&mut b, &packets[3]).is_ok(),
        "the next epoch before the current one"
    );
    assert!(
        open(&mut b, &packets[2]).is_ok(),
        "the previous epoch is kept"
    );
    assert_eq!(open(&mut b, &packets[3]), Err(OpenError::Replayed));
    assert_eq!(open(&mut b, &packets[2]), Err(OpenError::Replayed));
    assert!(open(&mut b, &packets[6]).is_ok());
    assert_eq!(
        open(&mut b, &packets[1]),
        Err(OpenError::BadEpoch),
        "two epochs back"
    );
    assert!(open(&mut b, &packets[5]).is_ok());
}

#[test]
fn an_epoch_out_of_reach_is_refused() {
    let (mut a, mut b) = sessions_with(short_lived(), short_lived());
    let packets: Vec<_> = (0..7).map(|_| sealed(&mut a, &[1; 16])).collect();
    assert_eq!(epoch(&packets[6]), 2);
    assert_eq!(open(&mut b, &packets[6]), Err(OpenError::BadEpoch));
    assert!(open(&mut b, &packets[3]).is_ok());
    assert!(open(&mut b, &packets[6]).is_ok());
}

#[test]
fn a_forged_next_epoch_is_not_adopted() {
    let (mut a, mut b) = sessions_with(short_lived(), short_lived());
    let packets: Vec<_> = (0..6).map(|_| sealed(&mut a, &[1; 16])).collect();
    for counter in 0..5u8 {
        let mut forged = packets[0].clone();
        (forged[1], forged[15]) = (1, counter);
        assert_eq!(open(&mut b, &forged), Err(OpenError::Unauthentic));
        forged[1] = 2;
        assert_eq!(
            open(&mut b, &forged),
            Err(OpenError::BadEpoch),
            "epoch 1 was not adopted"
        );
    }
    for packet in &packets {
        assert!(open(&mut b, packet).is_ok());
    }
}

#[test]
fn a_key_that_is_not_ratcheted_stops_at_both_ends() {
    let never = |stop_blocks| SessionConfig {
        limits: Limits {
            ratchet_blocks: u64::MAX,
            stop_blocks,
        },
        ..SessionConfig::default()
    };
    let (mut a, mut b) = sessions_with(never(18), never(9));
    let mut opened = Vec::new();
    for n in 0..6 {
        let packet = sealed(&mut a, &[1; 16]);
        opened.push(open(&mut b, &packet).map(|(counter, _)| counter));
        assert_eq!(a.next_counter(), n + 1);
    }
    use OpenError::LimitReached as Limit;
    assert_eq!(
        opened,
        [Ok(0), Ok(1), Ok(2), Err(Limit), Err(Limit), Err(Limit)]
    );
    assert_eq!(
        a.seal_in_place(&mut packet(&[1; 16])),
        Err(SealError::LimitReached)
    );
    assert_eq!(a.next_counter(), 6);
}

#[test]
fn forged_packets_do_not_use_up_the_receivers_key() {
    let (mut a, mut b) = sessions_with(short_lived(), short_lived());
    let packet = sealed(&mut a, &[1; 16]);
    let mut forged = packet.clone();
    forged[30] ^= 1;
    for _ in 0..100 {
        assert_eq!(open(&mut b, &forged), Err(OpenError::Unauthentic));
    }
    assert!(open(&mut b, &packet).is_ok());
}

#[test]
fn reasons_are_distinct() {
    let mut reasons: Vec<_> = OpenError::ALL.iter().map(|e| e.reason()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    assert_eq!(reasons.len(), OpenError::ALL.len());
    assert_eq!(OpenError::TooOld.to_string(), "too_old");
}

#[test]
fn nothing_secret_or_plain_is_shown() {
    let (mut a, _) = sessions();
    let text = b"this would be a host's data, sixty bytes or thereabouts of it";
    let packet = sealed(&mut a, text);
    assert!(!packet.windows(8).any(|w| text.windows(8).any(|t| t == w)));
    assert!(format!("{a:?}").starts_with("Session {"));
}

proptest! {
    #[test]
    fn ends_with_different_engines_understand_each_other(
        plaintext in proptest::collection::vec(any::<u8>(), 0..3000),
        packets in 1usize..8,
    ) {
        let with = |engine| SessionConfig { engine, ..short_lived() };
        let (mut a, mut b) = sessions_with(with(EngineKind::Ring), with(EngineKind::AesGcm));
        // Less than the key's limit a packet, so that some runs ratchet and none stops.
        let part = &plaintext[..plaintext.len().min(7 * 16)];
        for n in 0..packets as u64 {
            let there = sealed(&mut a, part);
            prop_assert_eq!(open(&mut b, &there), Ok((n, part.to_vec())));
            let back = sealed(&mut b, part);
            prop_assert_eq!(open(&mut a, &back), Ok((n, part.to_vec())));
        }
    }

    #[test]
    fn any_order_with_loss_and_duplication_delivers_each_packet_at_most_once(
        order in proptest::collection::vec(0usize..200, 1..600),
    ) {
        let (mut a, mut b) = sessions();
        let packets: Vec<_> = (0..200u8).map(|n| sealed(&mut a, &[n; 3])).collect();
        let mut seen = std::collections::HashSet::new();
        for i in order {
            let expected = if seen.insert(i) { Ok((i as u64, vec![i as u8; 3])) } else { Err(OpenError::Replayed) };
            prop_assert_eq!(open(&mut b, &packets[i]), expected);
        }
    }

    #[test]
    fn arbitrary_bytes_never_open(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), shaped: bool) {
        let (_, mut b) = sessions();
        if shaped && bytes.len() >= 16 {
            bytes[..4].copy_from_slice(&[0x14, 0, 0, 0]);
            bytes[4..8].copy_from_slice(&RESPONDER_INDEX.to_be_bytes());
        }
        prop_assert!(open(&mut b, &bytes).is_err());
        prop_assert!(!b.is_confirmed());
    }
}

#[test]
fn a_renewed_session_goes_on_with_the_numbers() {
    let (mut a, mut b) = sessions();
    a.number_from(1_000_000);
    a.number_from(7);
    let mut first = sealed(&mut a, b"renewed");
    assert_eq!(b.open(&mut first).unwrap().counter, 1_000_000);
    assert_eq!(
        b.open(&mut sealed(&mut a, b"next")).unwrap().counter,
        1_000_001
    );
}
