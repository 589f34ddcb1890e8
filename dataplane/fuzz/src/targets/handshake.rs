//! Handshake messages and sealed packets from anybody: only those that the
//! peer's key made are taken, and each of them once.

use mef_crypto::{Initiator, PrivateKey, Responder, Session, SessionConfig, HEADER_LEN, OVERHEAD};

use super::input::Input;

fn config() -> SessionConfig {
    SessionConfig::default()
}

fn keys() -> [PrivateKey; 2] {
    [PrivateKey::generate([1; 32]), PrivateKey::generate([2; 32])]
}

/// The initiation that the responder of [`messages`] would take.
pub fn initiation() -> (Initiator, Vec<u8>) {
    let [a, b] = keys();
    Initiator::new(&a, &b.public(), 7, 1000, 1, [3; 32], config()).expect("valid keys")
}

fn responder() -> Responder {
    let [a, b] = keys();
    let mut responder = Responder::new(b);
    responder.allow(a.public(), None);
    responder
}

/// Its answer, and the responder's session.
pub fn response(initiation: &[u8]) -> (Session, Vec<u8>) {
    let mut responder = responder();
    let read = responder.read(initiation).expect("a real initiation");
    responder
        .accept(read, 9, [4; 32], config())
        .expect("a fresh initiation")
}

pub fn messages(data: &[u8]) {
    let mut input = Input(data);
    let (first, second) = (input.bytes(), input.0);
    let (mut initiator, real) = initiation();
    let mut responder = responder();
    if let Ok(read) = responder.read(first) {
        assert_eq!(read.peer(), initiator_key());
        let (peer_index, counter) = (read.peer_index(), read.counter());
        let accepted = responder.accept(read, 9, [4; 32], config());
        let (session, _) = accepted.expect("what was just read");
        assert_eq!(session.peer_index(), peer_index);
        // The same once more is a replay.
        assert_eq!(responder.last_counter(initiator_key()), Some(counter));
        assert!(responder.read(first).is_err());
    }
    if initiator.finish(second).is_ok() {
        // Nobody without the responder's key can make one.
        assert_eq!(second, response(&real).1);
    }
}

fn initiator_key() -> &'static mef_crypto::PublicKey {
    static KEY: std::sync::OnceLock<mef_crypto::PublicKey> = std::sync::OnceLock::new();
    KEY.get_or_init(|| keys()[0].public())
}

/// Packets of a session: sealed ones that may be damaged, repeated or cut, and invented ones.
pub fn packets(data: &[u8]) {
    let (mut initiator, first) = initiation();
    let (mut at_b, answer) = response(&first);
    let mut at_a = initiator.finish(&answer).expect("the real answer");
    let mut input = Input(data);
    let mut last: Option<(Vec<u8>, Vec<u8>)> = None;
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        match op % 4 {
            0 | 1 => {
                let text = input.bytes();
                let mut packet = vec![0; text.len() + OVERHEAD];
                packet[HEADER_LEN..HEADER_LEN + text.len()].copy_from_slice(text);
                at_a.seal_in_place(&mut packet).expect("a fresh session");
                let sealed = packet.clone();
                if op & 4 != 0 {
                    let at = usize::from(input.u16()) % packet.len();
                    let flip = input.u8();
                    packet[at] ^= flip;
                    assert!(flip == 0 || at_b.open(&mut packet).is_err());
                    continue;
                }
                let opened = at_b.open(&mut packet).expect("an untouched packet");
                assert_eq!(&packet[opened.payload], text);
                last = Some((sealed, text.to_vec()));
            }
            2 => {
                if let Some((mut sealed, _)) = last.clone() {
                    assert!(at_b.open(&mut sealed).is_err(), "a replay was taken");
                }
            }
            _ => {
                let mut invented = input.bytes().to_vec();
                assert!(at_b.open(&mut invented).is_err());
                assert!(at_a.open(&mut invented).is_err());
            }
        }
    }
}
