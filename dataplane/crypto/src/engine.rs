//! The AEAD behind a session: AES-256-GCM (NIST SP 800-38D) from ring, or from
//! the aes-gcm crate as the portable build and the one ring is checked against.
//! An engine holds one key; who calls it never repeats a nonce under it.

use std::fmt;
use std::str::FromStr;

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::Aes256Gcm;
use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_256_GCM};

use crate::TAG_LEN;

/// Length of an AEAD key, bytes.
pub const AEAD_KEY_LEN: usize = 32;
/// Length of an AEAD nonce, bytes.
pub const NONCE_LEN: usize = 12;

/// The engine refused: a forged or damaged packet, or a packet beyond what the cipher can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub struct EngineError;

/// One key of an AEAD cipher.
pub trait Engine: Send + Sync {
    /// Encrypts `data` in place and returns the tag over it and `aad`.
    fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
    ) -> Result<[u8; TAG_LEN], EngineError>;

    /// Checks the tag at the end of `sealed` and decrypts what is before it in place.
    /// After an error the content of `sealed` is unspecified.
    fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        sealed: &mut [u8],
    ) -> Result<(), EngineError>;
}

/// Which implementation a session uses; both ends may differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    #[default]
    Ring,
    AesGcm,
}

impl EngineKind {
    /// An engine with `key`.
    pub fn with_key(self, key: &[u8; AEAD_KEY_LEN]) -> Result<Box<dyn Engine>, EngineError> {
        Ok(match self {
            Self::Ring => Box::new(RingEngine::new(key)?),
            Self::AesGcm => Box::new(AesGcmEngine::new(key)),
        })
    }
}

/// The name in a configuration is of no engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("engine `{0}`: expected `ring` or `aes-gcm`")]
pub struct UnknownEngine(String);

impl FromStr for EngineKind {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<Self, UnknownEngine> {
        match name {
            "ring" => Ok(Self::Ring),
            "aes-gcm" => Ok(Self::AesGcm),
            other => Err(UnknownEngine(other.into())),
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ring => "ring",
            Self::AesGcm => "aes-gcm",
        })
    }
}

/// AES-256-GCM from ring.
pub struct RingEngine(LessSafeKey);

impl RingEngine {
    pub fn new(key: &[u8; AEAD_KEY_LEN]) -> Result<Self, EngineError> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| EngineError)?;
        Ok(Self(LessSafeKey::new(key)))
    }
}

impl Engine for RingEngine {
    fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
    ) -> Result<[u8; TAG_LEN], EngineError> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(aad), data)
            .map_err(|_| EngineError)?;
        tag.as_ref().try_into().map_err(|_| EngineError)
    }

    fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        sealed: &mut [u8],
    ) -> Result<(), EngineError> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0
            .open_in_place(nonce, Aad::from(aad), sealed)
            .map(|_| ())
            .map_err(|_| EngineError)
    }
}

/// AES-256-GCM from the aes-gcm crate; its key schedule is wiped when dropped.
pub struct AesGcmEngine(Aes256Gcm);

impl AesGcmEngine {
    pub fn new(key: &[u8; AEAD_KEY_LEN]) -> Self {
        Self(Aes256Gcm::new(key.into()))
    }
}

impl Engine for AesGcmEngine {
    fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
    ) -> Result<[u8; TAG_LEN], EngineError> {
        let tag = self
            .0
            .encrypt_inout_detached(&nonce.into(), aad, data.into())
            .map_err(|_| EngineError)?;
        Ok(tag.into())
    }

    fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        sealed: &mut [u8],
    ) -> Result<(), EngineError> {
        let (data, tag) = sealed
            .split_last_chunk_mut::<TAG_LEN>()
            .ok_or(EngineError)?;
        let tag = (*tag).into();
        self.0
            .decrypt_inout_detached(&nonce.into(), aad, data.into(), &tag)
            .map_err(|_| EngineError)
    }
}
