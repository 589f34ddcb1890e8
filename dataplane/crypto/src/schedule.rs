//! From the two secrets of a handshake to the key of one lane, direction and
//! epoch, by HKDF-SHA256 (RFC 5869). Each lane and direction has a chain that
//! only moves forward: the chain of an epoch gives that epoch's key and the
//! next chain, and is then wiped, so a router taken today cannot read yesterday.
//!
//! ```text
//! raw split ──extract+expand──▶ chain 0 ──expand──▶ chain 1 ──expand──▶ …
//!                                  └▶ key 0 ‖ salt 0   └▶ key 1 ‖ salt 1
//! ```

use ring::hkdf::{KeyType, Prk, Salt, HKDF_SHA256};
use zeroize::Zeroizing;

use crate::engine::{Engine, EngineError, EngineKind, AEAD_KEY_LEN, NONCE_LEN};

/// A secret of 32 bytes, wiped when dropped.
pub(crate) type Secret = Zeroizing<[u8; 32]>;

const EXTRACT_SALT: &[u8] = b"MEF1 lane keys";
const LABEL_CHAIN: &[u8] = b"MEF1 chain";
const LABEL_KEY: &[u8] = b"MEF1 key";
const SALT_LEN: usize = 4;

/// Which way a key's packets travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Direction {
    ToResponder = 0,
    ToInitiator = 1,
}

/// The key of one lane, direction and epoch, and how much of it has been used.
pub(crate) struct EpochKey {
    engine: Box<dyn Engine>,
    salt: [u8; SALT_LEN],
    /// AES blocks that were sealed, or opened, with this key.
    pub(crate) blocks: u64,
}

impl EpochKey {
    pub(crate) fn engine(&self) -> &dyn Engine {
        self.engine.as_ref()
    }

    /// The nonce of packet `counter`.
    pub(crate) fn nonce(&self, counter: u64) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        let (salt, number) = nonce.split_at_mut(SALT_LEN);
        salt.copy_from_slice(&self.salt);
        number.copy_from_slice(&counter.to_be_bytes());
        nonce
    }
}

/// Where the keys of one lane and direction come from, at one epoch.
pub(crate) struct Chain {
    secret: Secret,
    direction: Direction,
    lane: u16,
    epoch: u64,
}

impl Chain {
    /// The chain of epoch 0, from one half of the raw split.
    pub(crate) fn first(
        split: &Secret,
        direction: Direction,
        lane: u16,
    ) -> Result<Self, EngineError> {
        let prk = Salt::new(HKDF_SHA256, EXTRACT_SALT).extract(split.as_slice());
        let secret = expand::<32>(&prk, LABEL_CHAIN, direction, lane, 0)?;
        Ok(Self {
            secret,
            direction,
            lane,
            epoch: 0,
        })
    }

    /// The chain of the epoch after this one.
    pub(crate) fn next(&self) -> Result<Self, EngineError> {
        let epoch = self.epoch.checked_add(1).ok_or(EngineError)?;
        let secret = expand::<32>(&self.prk(), LABEL_CHAIN, self.direction, self.lane, epoch)?;
        Ok(Self {
            secret,
            epoch,
            ..*self
        })
    }

    /// The key of this epoch.
    pub(crate) fn key(&self, engine: EngineKind) -> Result<EpochKey, EngineError> {
        let out = expand::<{ AEAD_KEY_LEN + SALT_LEN }>(
            &self.prk(),
            LABEL_KEY,
            self.direction,
            self.lane,
            self.epoch,
        )?;
        let key = out.first_chunk::<AEAD_KEY_LEN>().ok_or(EngineError)?;
        let salt = *out.last_chunk::<SALT_LEN>().ok_or(EngineError)?;
        Ok(EpochKey {
            engine: engine.with_key(key)?,
            salt,
            blocks: 0,
        })
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    fn prk(&self) -> Prk {
        Prk::new_less_safe(HKDF_SHA256, self.secret.as_slice())
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand<const N: usize>(
    prk: &Prk,
    label: &[u8],
    direction: Direction,
    lane: u16,
    epoch: u64,
) -> Result<Zeroizing<[u8; N]>, EngineError> {
    let (lane, epoch) = (lane.to_be_bytes(), epoch.to_be_bytes());
    let info: [&[u8]; 4] = [label, &[direction as u8], &lane, &epoch];
    let mut out = Zeroizing::new([0; N]);
    let okm = prk.expand(&info, Length(N)).map_err(|_| EngineError)?;
    okm.fill(out.as_mut_slice()).map_err(|_| EngineError)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::hmac;
    use std::collections::HashSet;

    fn hmac_sha256(key: &[u8], data: &[&[u8]]) -> Vec<u8> {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &data.concat())
            .as_ref()
            .to_vec()
    }

    /// The first 32 bytes of HKDF-Expand, from RFC 5869's own definition.
    fn expand_by_hand(prk: &[u8], label: &[u8], direction: u8, lane: u16, epoch: u64) -> Vec<u8> {
        hmac_sha256(
            prk,
            &[
                label,
                &[direction],
                &lane.to_be_bytes(),
                &epoch.to_be_bytes(),
                &[1],
            ],
        )
    }

    #[test]
    fn keys_are_what_rfc5869_makes_of_the_split() {
        let split = Zeroizing::new([0x42; 32]);
        let prk = hmac_sha256(EXTRACT_SALT, &[split.as_slice()]);
        let chain_0 = expand_by_hand(&prk, LABEL_CHAIN, 1, 7, 0);
        let chain_1 = expand_by_hand(&chain_0, LABEL_CHAIN, 1, 7, 1);
        let key_1 = expand_by_hand(&chain_1, LABEL_KEY, 1, 7, 1);

        let chain = Chain::first(&split, Direction::ToInitiator, 7)
            .unwrap()
            .next()
            .unwrap();
        assert_eq!(chain.secret.as_slice(), chain_1);
        let ours = chain.key(EngineKind::Ring).unwrap();
        let by_hand = EngineKind::Ring
            .with_key(&key_1.try_into().unwrap())
            .unwrap();
        let (mut a, mut b) = ([0; 40], [0; 40]);
        let nonce = ours.nonce(0x0102_0304_0506_0708);
        assert_eq!(nonce[4..], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(
            ours.engine().seal(nonce, b"", &mut a),
            by_hand.seal(nonce, b"", &mut b)
        );
        assert_eq!(a, b);
    }

    #[test]
    fn no_two_lanes_directions_or_epochs_share_a_chain() {
        let split = Zeroizing::new([0x42; 32]);
        let mut seen = HashSet::new();
        for direction in [Direction::ToResponder, Direction::ToInitiator] {
            for lane in [0, 1, 2, 255, 256, u16::MAX] {
                let mut chain = Chain::first(&split, direction, lane).unwrap();
                for epoch in 0..300 {
                    assert_eq!(chain.epoch(), epoch);
                    assert!(
                        seen.insert(*chain.secret),
                        "{direction:?} lane {lane} epoch {epoch}"
                    );
                    chain = chain.next().unwrap();
                }
            }
        }
    }
}
