//! Two routers that know each other, and sessions between them.
#![allow(clippy::unwrap_used, dead_code)]

use mef_crypto::{Initiator, PrivateKey, Responder, Session, SessionConfig, HEADER_LEN, TAG_LEN};

pub const INITIATOR_INDEX: u32 = 0x1111_1111;
pub const RESPONDER_INDEX: u32 = 0x2222_2222;
pub const BOOT_ID: u64 = 0xb007;

/// A private key of the test's own, by number.
pub fn key(n: u8) -> PrivateKey {
    PrivateKey::generate([n; 32])
}

/// A responder with key 2 that answers key 1.
pub fn responder() -> Responder {
    let mut responder = Responder::new(key(2));
    responder.allow(key(1).public(), None);
    responder
}

/// An initiation from key 1 to key 2.
pub fn initiate(counter: u64, config: SessionConfig) -> (Initiator, Vec<u8>) {
    let entropy = [counter as u8 ^ 0x5a; 32];
    Initiator::new(
        &key(1),
        &key(2).public(),
        INITIATOR_INDEX,
        counter,
        BOOT_ID,
        entropy,
        config,
    )
    .unwrap()
}

/// A session's two ends, initiator first, each with its own configuration.
pub fn sessions_with(
    initiator: SessionConfig,
    responder_config: SessionConfig,
) -> (Session, Session) {
    let mut responder = responder();
    let (mut pending, initiation) = initiate(1, initiator);
    let read = responder.read(&initiation).unwrap();
    let (b, response) = responder
        .accept(read, RESPONDER_INDEX, [0xa5; 32], responder_config)
        .unwrap();
    (pending.finish(&response).unwrap(), b)
}

pub fn sessions() -> (Session, Session) {
    sessions_with(SessionConfig::default(), SessionConfig::default())
}

/// A packet with `plaintext` in place, ready to be sealed.
pub fn packet(plaintext: &[u8]) -> Vec<u8> {
    [&[0; HEADER_LEN], plaintext, &[0; TAG_LEN]].concat()
}

/// A packet with `plaintext`, sealed.
pub fn sealed(session: &mut Session, plaintext: &[u8]) -> Vec<u8> {
    let mut packet = packet(plaintext);
    session.seal_in_place(&mut packet).unwrap();
    packet
}

/// Every packet that differs from `packet` in one bit, with the bit's number.
pub fn bit_flips(packet: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> + '_ {
    (0..packet.len() * 8).map(|bit| {
        let mut flipped = packet.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        (bit, flipped)
    })
}
