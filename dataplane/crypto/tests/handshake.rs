//! The handshake from outside: two ends, and what an attacker can do between them.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use mef_crypto::handshake::{INITIATION_LEN, RESPONSE_LEN};
use mef_crypto::{HandshakeError, Header, Initiator, PacketType, Responder, Role, SessionConfig};
use proptest::prelude::*;

#[test]
fn both_ends_agree_on_who_and_where() {
    let mut responder = responder();
    let (mut pending, initiation) = initiate(7, SessionConfig::default());
    assert_eq!(initiation.len(), INITIATION_LEN);
    assert_eq!(
        Header::parse(&initiation).unwrap().kind,
        PacketType::Initiation
    );
    assert_eq!(
        Header::parse(&initiation).unwrap().receiver_index,
        INITIATOR_INDEX
    );

    let read = responder.read(&initiation).unwrap();
    assert_eq!(
        (*read.peer(), read.peer_index()),
        (key(1).public(), INITIATOR_INDEX)
    );
    assert_eq!((read.counter(), read.boot_id()), (7, BOOT_ID));
    assert_eq!(
        responder.last_counter(&key(1).public()),
        None,
        "reading alone remembers nothing"
    );

    let (b, response) = responder
        .accept(read, RESPONDER_INDEX, [0xa5; 32], SessionConfig::default())
        .unwrap();
    assert_eq!(response.len(), RESPONSE_LEN);
    assert_eq!(
        Header::parse(&response).unwrap().receiver_index,
        INITIATOR_INDEX
    );
    assert_eq!(responder.last_counter(&key(1).public()), Some(7));

    let a = pending.finish(&response).unwrap();
    assert_eq!(
        (a.role(), a.local_index(), a.peer_index()),
        (Role::Initiator, INITIATOR_INDEX, RESPONDER_INDEX)
    );
    assert_eq!(
        (b.role(), b.local_index(), b.peer_index()),
        (Role::Responder, RESPONDER_INDEX, INITIATOR_INDEX)
    );
    assert_eq!((*a.peer(), *b.peer()), (key(2).public(), key(1).public()));
    assert_eq!(
        pending.finish(&response).unwrap_err(),
        HandshakeError::Finished
    );
}

#[test]
fn a_session_is_confirmed_by_the_first_packet_that_opens() {
    let (mut a, mut b) = sessions();
    assert!(a.is_confirmed() && !b.is_confirmed());
    let mut forged = sealed(&mut a, b"x");
    forged[20] ^= 1;
    b.open(&mut forged).unwrap_err();
    assert!(!b.is_confirmed());
    b.open(&mut sealed(&mut a, b"x")).unwrap();
    assert!(b.is_confirmed());
}

#[test]
fn neither_identity_nor_counter_is_readable_on_the_wire() {
    let (_, initiation) = initiate(0x0123_4567_89ab_cdef, SessionConfig::default());
    let visible = |needle: &[u8]| initiation.windows(needle.len()).any(|w| w == needle);
    assert!(!visible(key(1).public().as_bytes()));
    assert!(!visible(key(2).public().as_bytes()));
    assert!(!visible(&0x0123_4567_89ab_cdef_u64.to_be_bytes()));
}

#[test]
fn every_flipped_bit_of_an_initiation_is_refused() {
    let mut responder = responder();
    let (_, initiation) = initiate(1, SessionConfig::default());
    for (bit, flipped) in bit_flips(&initiation) {
        let error = responder.read(&flipped).unwrap_err();
        assert!(
            !matches!(error, HandshakeError::Internal(_)),
            "bit {bit}: {error}"
        );
    }
    let read = responder.read(&initiation).unwrap();
    responder
        .accept(read, RESPONDER_INDEX, [0xa5; 32], SessionConfig::default())
        .unwrap();
}

#[test]
fn every_flipped_bit_of_a_response_is_refused_and_the_right_one_still_works() {
    let mut responder = responder();
    let (mut pending, initiation) = initiate(1, SessionConfig::default());
    let read = responder.read(&initiation).unwrap();
    let (mut b, response) = responder
        .accept(read, RESPONDER_INDEX, [0xa5; 32], SessionConfig::default())
        .unwrap();
    for (bit, flipped) in bit_flips(&response) {
        let error = pending.finish(&flipped).unwrap_err();
        assert!(
            !matches!(error, HandshakeError::Internal(_)),
            "bit {bit}: {error}"
        );
    }
    let mut a = pending.finish(&response).unwrap();
    b.open(&mut sealed(&mut a, b"still here")).unwrap();
    a.open(&mut sealed(&mut b, b"here too")).unwrap();
}

#[test]
fn other_lengths_are_refused() {
    let mut responder = responder();
    let (mut pending, initiation) = initiate(1, SessionConfig::default());
    let read = responder.read(&initiation).unwrap();
    let (_, response) = responder
        .accept(read, RESPONDER_INDEX, [0xa5; 32], SessionConfig::default())
        .unwrap();
    let (_, fresh) = initiate(2, SessionConfig::default());
    for n in 0..fresh.len() {
        let error = responder.read(&fresh[..n]).unwrap_err();
        assert_eq!(error.reason(), "handshake_length", "{n} bytes: {error}");
    }
    for n in 0..response.len() {
        let error = pending.finish(&response[..n]).unwrap_err();
        assert_eq!(error.reason(), "handshake_length", "{n} bytes: {error}");
    }
    assert_eq!(
        responder
            .read(&[&fresh[..], &[0]].concat())
            .unwrap_err()
            .reason(),
        "handshake_length"
    );
    assert_eq!(
        pending
            .finish(&[&response[..], &[0]].concat())
            .unwrap_err()
            .reason(),
        "handshake_length"
    );
    assert!(responder.read(&fresh).is_ok() && pending.finish(&response).is_ok());
}

#[test]
fn an_initiation_is_for_one_lane_only() {
    let lane = |lane| SessionConfig {
        lane,
        ..SessionConfig::default()
    };
    let wrong = |expected, found| HandshakeError::UnexpectedLane { expected, found };
    let mut responder = responder();
    let (mut pending, initiation) = initiate(5, lane(2));
    // Recorded, and sent to another worker of the responder.
    let read = responder.read(&initiation).unwrap();
    let error = responder.accept(read, 1, [1; 32], lane(1)).unwrap_err();
    assert_eq!(error, wrong(1, 2));
    assert_eq!(responder.last_counter(&key(1).public()), None);
    // With the lane written over, it is not what the initiator made.
    let mut moved = initiation.clone();
    moved[3] = 1;
    assert_eq!(
        responder.read(&moved).unwrap_err(),
        HandshakeError::Unauthentic
    );

    let read = responder.read(&initiation).unwrap();
    let (mut b, response) = responder.accept(read, 1, [1; 32], lane(2)).unwrap();
    let mut moved = response.clone();
    moved[3] = 0;
    assert_eq!(pending.finish(&moved).unwrap_err(), wrong(2, 0));
    let mut a = pending.finish(&response).unwrap();
    b.open(&mut sealed(&mut a, b"on lane 2")).unwrap();
}

#[test]
fn a_replayed_or_older_initiation_is_refused() {
    let mut responder = responder();
    let config = SessionConfig::default();
    let (_, older) = initiate(4, config);
    let (_, first) = initiate(5, config);
    let (_, newer) = initiate(6, config);

    let twice = responder.read(&first).unwrap();
    let read = responder.read(&first).unwrap();
    responder.accept(read, 1, [1; 32], config).unwrap();
    let replayed = HandshakeError::ReplayedInitiation {
        counter: 5,
        last: 5,
    };
    assert_eq!(
        responder.accept(twice, 2, [2; 32], config).unwrap_err(),
        replayed,
        "read before, accepted after"
    );
    assert_eq!(responder.read(&first).unwrap_err(), replayed);
    assert_eq!(
        responder.read(&older).unwrap_err(),
        HandshakeError::ReplayedInitiation {
            counter: 4,
            last: 5
        }
    );
    assert!(responder.read(&newer).is_ok());
}

#[test]
fn a_restarted_responder_goes_on_from_the_counter_it_stored() {
    let (_, recorded) = initiate(5, SessionConfig::default());
    let mut restarted = Responder::new(key(2));
    restarted.allow(key(1).public(), Some(5));
    assert_eq!(
        restarted.read(&recorded).unwrap_err().reason(),
        "replayed_initiation"
    );
    // A configuration that is loaded again must not open the door.
    restarted.allow(key(1).public(), None);
    assert_eq!(
        restarted.read(&recorded).unwrap_err().reason(),
        "replayed_initiation"
    );
}

#[test]
fn only_configured_peers_are_answered() {
    let config = SessionConfig::default();
    let mut responder = responder();
    let (_, stranger) =
        Initiator::new(&key(3), &key(2).public(), 1, 1, 1, [3; 32], config).unwrap();
    assert_eq!(
        responder.read(&stranger).unwrap_err(),
        HandshakeError::UnknownPeer(key(3).public())
    );

    let (_, initiation) = initiate(1, config);
    let read = responder.read(&initiation).unwrap();
    responder.forget(&key(1).public());
    assert_eq!(
        responder.accept(read, 1, [1; 32], config).unwrap_err(),
        HandshakeError::UnknownPeer(key(1).public())
    );
}

#[test]
fn an_initiation_for_another_key_is_refused() {
    let (_, initiation) = Initiator::new(
        &key(1),
        &key(3).public(),
        1,
        1,
        1,
        [3; 32],
        SessionConfig::default(),
    )
    .unwrap();
    assert_eq!(
        responder().read(&initiation).unwrap_err(),
        HandshakeError::Unauthentic
    );
}

#[test]
fn a_response_to_another_handshake_is_refused() {
    let config = SessionConfig::default();
    let mut responder = responder();
    let (mut first, initiation) = initiate(1, config);
    let (mut second, _) = initiate(2, config);
    let read = responder.read(&initiation).unwrap();
    let (_, response) = responder.accept(read, 1, [1; 32], config).unwrap();
    assert_eq!(
        second.finish(&response).unwrap_err(),
        HandshakeError::Unauthentic
    );
    assert!(first.finish(&response).is_ok());
}

#[test]
fn a_message_sent_back_to_its_sender_is_refused() {
    let config = SessionConfig::default();
    let (mut pending, initiation) = initiate(1, config);
    assert_eq!(
        pending.finish(&initiation).unwrap_err().reason(),
        "unknown_type"
    );
    let mut own = Responder::new(key(1));
    own.allow(key(1).public(), None);
    assert_eq!(
        own.read(&initiation).unwrap_err(),
        HandshakeError::Unauthentic
    );
}

#[test]
fn handshakes_are_a_function_of_their_entropy() {
    let (_, one) = initiate(1, SessionConfig::default());
    let (_, again) = initiate(1, SessionConfig::default());
    let (_, other) = Initiator::new(
        &key(1),
        &key(2).public(),
        INITIATOR_INDEX,
        1,
        BOOT_ID,
        [9; 32],
        SessionConfig::default(),
    )
    .unwrap();
    assert_eq!(one, again);
    assert_ne!(one[16..], other[16..]);
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_no_handshake(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), shape in 0u8..3) {
        // Random bytes hardly ever look like a message; these get past the first checks.
        if shape > 0 {
            bytes.resize(if shape == 1 { INITIATION_LEN } else { RESPONSE_LEN }, 0x42);
            bytes[..16].fill(0);
            bytes[0] = 0x10 | shape;
            bytes[4..8].copy_from_slice(&INITIATOR_INDEX.to_be_bytes());
        }
        let (mut pending, _) = initiate(1, SessionConfig::default());
        prop_assert!(responder().read(&bytes).is_err());
        prop_assert!(pending.finish(&bytes).is_err());
    }
}
