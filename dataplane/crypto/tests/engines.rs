//! The two AEAD engines against published vectors and against each other.
#![allow(clippy::unwrap_used)]

use mef_crypto::engine::{EngineError, EngineKind};
use mef_crypto::Engine;
use proptest::prelude::*;

const ENGINES: [EngineKind; 2] = [EngineKind::Ring, EngineKind::AesGcm];

fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    unhex(hex).try_into().unwrap()
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
        .collect()
}

/// Test cases 13, 14 and 16 of the GCM specification submitted to NIST (McGrew and Viega, 2005):
/// key, nonce, additional data, plaintext, ciphertext, tag.
#[rustfmt::skip]
const VECTORS: [[&str; 6]; 3] = [
    ["0000000000000000000000000000000000000000000000000000000000000000", "000000000000000000000000",
     "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"],
    ["0000000000000000000000000000000000000000000000000000000000000000", "000000000000000000000000",
     "", "00000000000000000000000000000000", "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919"],
    ["feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888",
     "feedfacedeadbeeffeedfacedeadbeefabaddad2",
     "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
     "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
     "76fc6ece0f4e1768cddf8853bb2d551b"],
];

#[test]
fn published_vectors() {
    for kind in ENGINES {
        for [key, nonce, aad, plaintext, ciphertext, tag] in VECTORS {
            let engine = kind.with_key(&bytes(key)).unwrap();
            let mut data = unhex(plaintext);
            assert_eq!(
                engine.seal(bytes(nonce), &unhex(aad), &mut data).unwrap(),
                bytes(tag),
                "{kind}"
            );
            assert_eq!(data, unhex(ciphertext), "{kind}");
            let mut sealed = unhex(&[ciphertext, tag].concat());
            engine.open(bytes(nonce), &unhex(aad), &mut sealed).unwrap();
            assert_eq!(sealed[..data.len()], unhex(plaintext), "{kind}");
        }
    }
}

#[test]
fn names_are_those_of_the_configuration() {
    for kind in ENGINES {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    let error = "openssl".parse::<EngineKind>().unwrap_err().to_string();
    assert!(
        error.contains("`openssl`") && error.contains("`ring` or `aes-gcm`"),
        "{error}"
    );
}

fn seal(engine: &dyn Engine, nonce: [u8; 12], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let mut sealed = plaintext.to_vec();
    let tag = engine.seal(nonce, aad, &mut sealed).unwrap();
    sealed.extend_from_slice(&tag);
    sealed
}

proptest! {
    #[test]
    fn each_opens_what_the_other_sealed(
        key: [u8; 32],
        nonce: [u8; 12],
        aad in proptest::collection::vec(any::<u8>(), 0..64),
        plaintext in proptest::collection::vec(any::<u8>(), 0..2000),
        flip: proptest::sample::Index,
        bit in 0u8..8,
    ) {
        let [ring, aes_gcm] = ENGINES.map(|kind| kind.with_key(&key).unwrap());
        let sealed = seal(ring.as_ref(), nonce, &aad, &plaintext);
        prop_assert_eq!(&sealed, &seal(aes_gcm.as_ref(), nonce, &aad, &plaintext));
        let mut damaged = sealed.clone();
        damaged[flip.index(sealed.len())] ^= 1 << bit;
        for engine in [&ring, &aes_gcm] {
            let mut opened = sealed.clone();
            prop_assert_eq!(engine.open(nonce, &aad, &mut opened), Ok(()));
            prop_assert_eq!(&opened[..plaintext.len()], &plaintext[..]);
            prop_assert_eq!(engine.open(nonce, &aad, &mut damaged.clone()), Err(EngineError));
        }
    }

    #[test]
    fn less_than_a_tag_is_refused(length in 0usize..16) {
        for kind in ENGINES {
            let engine = kind.with_key(&[1; 32]).unwrap();
            prop_assert_eq!(engine.open([0; 12], b"", &mut vec![0; length]), Err(EngineError));
        }
    }
}
