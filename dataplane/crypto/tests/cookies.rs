//! Initiations under load: who is read, who is asked for a cookie, and that asking amplifies nothing.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::*;
use mef_crypto::cookie::REPLY_LEN;
use mef_crypto::handshake::{INITIATION_COOKIE_LEN, INITIATION_LEN};
use mef_crypto::{Admission, Cookie, Gate, Initiator, Offer, SessionConfig};
use mef_packet::Instant;

fn at(n: u32) -> SocketAddr {
    SocketAddr::from((n.to_be_bytes(), 4800))
}

fn with_cookie(counter: u64, cookie: Option<Cookie>) -> (Initiator, Vec<u8>) {
    let offer = Offer {
        index: INITIATOR_INDEX,
        counter,
        boot_id: BOOT_ID,
        cookie,
    };
    let config = SessionConfig::default();
    Initiator::with_offer(&key(1), &key(2).public(), offer, [7; 32], config).unwrap()
}

/// A gate whose common rate is used up by initiations from forged addresses.
fn loaded(now: Instant) -> Gate {
    let mut gate = Gate::new(now, [1; 32]);
    let (_, forged) = with_cookie(1, None);
    let read = (0..1000)
        .filter(|n| gate.admit(now, at(0x0a00_0000 + n), false, &forged) == Admission::Read)
        .count();
    assert_eq!(read, 50, "the burst of the common rate");
    gate
}

fn asked(admission: Admission) -> Vec<u8> {
    match admission {
        Admission::AskCookie(reply) => reply,
        other => panic!("{other:?}"),
    }
}

#[test]
fn under_load_a_cookie_of_the_own_address_is_what_passes() {
    let mut now = Instant::from_millis(5_000);
    let mut gate = loaded(now);
    now += Duration::from_millis(15);
    let (first, initiation) = with_cookie(2, None);
    let reply = asked(gate.admit(now, at(1), false, &initiation));
    assert_eq!(reply.len(), REPLY_LEN);
    assert!(reply.len() < INITIATION_LEN, "no amplification");
    let cookie = first.cookie(&reply).unwrap();

    let (_, again) = with_cookie(3, Some(cookie));
    assert_eq!(again.len(), INITIATION_COOKIE_LEN);
    // From another address, or port, it proves nothing.
    asked(gate.admit(now, at(2), false, &again));
    let other_port = SocketAddr::from(([0, 0, 0, 1], 4801));
    asked(gate.admit(now, other_port, false, &again));
    assert_eq!(gate.admit(now, at(1), false, &again), Admission::Read);
    let read = responder().read(&again).unwrap();
    assert_eq!(read.counter(), 3);

    // With a cookie, too, there is a rate for each address: 10 at once.
    let passed = (0..100)
        .filter(|_| gate.admit(now, at(1), false, &again) == Admission::Read)
        .count();
    assert_eq!(passed, 9);
    assert_eq!(gate.admit(now, at(1), false, &again), Admission::Refuse);
}

#[test]
fn a_cookie_outlives_one_renewal_of_the_secret_and_not_two() {
    let now = Instant::from_millis(5_000);
    let mut gate = loaded(now);
    let later = now + Duration::from_millis(10);
    let (first, initiation) = with_cookie(2, None);
    let cookie = first
        .cookie(&asked(gate.admit(later, at(1), false, &initiation)))
        .unwrap();
    let (_, again) = with_cookie(3, Some(cookie));
    assert!(!gate.is_stale(now + Duration::from_secs(119)));
    assert!(gate.is_stale(now + Duration::from_secs(120)));
    gate.renew(later, [2; 32]);
    assert_eq!(gate.admit(later, at(1), false, &again), Admission::Read);
    gate.renew(later, [3; 32]);
    asked(gate.admit(later, at(1), false, &again));
}

#[test]
fn a_configured_address_passes_a_flood_from_others() {
    let mut now = Instant::from_millis(5_000);
    let mut gate = loaded(now);
    let (_, forged) = with_cookie(1, None);
    let (_, real) = with_cookie(2, None);
    for _ in 0..30 {
        // 10,000 a second from forged addresses.
        let mut answers = 0;
        for n in 0..10_000 {
            now += Duration::from_micros(100);
            if matches!(
                gate.admit(now, at(n), false, &forged),
                Admission::AskCookie(_)
            ) {
                answers += 1;
            }
        }
        assert!(
            (900..=1100).contains(&answers),
            "{answers} replies a second"
        );
        assert_eq!(gate.admit(now, at(77), true, &real), Admission::Read);
    }
}

#[test]
fn a_reply_that_does_not_name_the_initiation_is_refused() {
    let now = Instant::from_millis(5_000);
    let mut gate = loaded(now);
    let later = now + Duration::from_millis(10);
    let (first, initiation) = with_cookie(2, None);
    let (second, _) = with_cookie(3, None);
    let reply = asked(gate.admit(later, at(1), false, &initiation));
    assert!(second.cookie(&reply).is_err());
    for bit in 0..(16 + 16) * 8 {
        let mut changed = reply.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(first.cookie(&changed).is_err(), "bit {bit}");
    }
    for n in 0..reply.len() {
        assert!(first.cookie(&reply[..n]).is_err());
    }
    assert!(first.cookie(&reply).is_ok());
}

#[test]
fn every_flipped_bit_of_an_initiation_with_a_cookie_is_refused() {
    let (_, initiation) = with_cookie(2, Some([9; 16]));
    for bit in 0..initiation.len() * 8 {
        let mut changed = initiation.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(responder().read(&changed).is_err(), "bit {bit}");
    }
    assert!(responder().read(&initiation).is_ok());
}
