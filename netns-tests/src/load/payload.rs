//! The payload of flows: random, so that nothing on the way can compress it,
//! and known from its seed, so that a receiver compares every byte with what was
//! sent there, also of a flow that was cut off in the middle.
//!
//! One block of random bytes is repeated; each flow begins elsewhere in it. Its
//! length is a prime: no chunk, segment or window that is lost, repeated or
//! swapped as a whole fits the period and goes unnoticed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

/// The largest prime below 4 MiB.
const BLOCK: usize = 4_194_301;

/// The random block of a seed, made once for all flows that share it.
#[derive(Debug)]
pub struct Block(Box<[u8]>);

impl Block {
    pub fn new(seed: u64) -> Arc<Self> {
        let mut bytes = vec![0; BLOCK];
        SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        Arc::new(Self(bytes.into_boxed_slice()))
    }

    /// The first `n` bytes, of which there are always as many as a packet has.
    pub fn head(&self, n: usize) -> &[u8] {
        self.0.get(..n).unwrap_or(&self.0)
    }
}

/// Blocks by seed.
#[derive(Debug, Default)]
pub struct Blocks(Mutex<HashMap<u64, Arc<Block>>>);

/// A peer may name any seed; more blocks than a run can need are not kept.
const KEPT: usize = 16;

impl Blocks {
    pub fn get(&self, seed: u64) -> Arc<Block> {
        let mut blocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = blocks.get(&seed) {
            return Arc::clone(block);
        }
        let block = Block::new(seed);
        if blocks.len() < KEPT {
            blocks.insert(seed, Arc::clone(&block));
        }
        block
    }
}

/// A place in a flow's payload, and the hash of all before it.
#[derive(Debug)]
pub struct Cursor {
    block: Arc<Block>,
    at: usize,
    hash: Option<Sha256>,
}

impl Cursor {
    /// The beginning of the payload of `flow`.
    pub fn new(block: Arc<Block>, flow: u64, hash: bool) -> Self {
        // Odd multiplier: neighbours begin far from each other.
        let at = flow.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (BLOCK as u64);
        Self {
            block,
            at: at as usize,
            hash: hash.then(Sha256::new),
        }
    }

    /// The next bytes of the payload, between 1 and `max`.
    pub fn next(&self, max: u64) -> &[u8] {
        let rest = self.block.0.get(self.at..).unwrap_or_default();
        let n = usize::try_from(max).unwrap_or(usize::MAX).min(rest.len());
        rest.get(..n).unwrap_or_default()
    }

    /// Goes on by `n` bytes of what [`Self::next`] showed.
    pub fn advance(&mut self, n: usize) {
        let rest = self.block.0.get(self.at..).unwrap_or_default();
        let passed = rest.get(..n).unwrap_or(rest);
        if let Some(hash) = &mut self.hash {
            hash.update(passed);
        }
        self.at += passed.len();
        if self.at >= BLOCK {
            self.at = 0;
        }
    }

    /// Takes in what was received here; true if it is what was sent here.
    /// The hash is of what was received.
    pub fn check(&mut self, mut received: &[u8]) -> bool {
        let mut same = true;
        if let Some(hash) = &mut self.hash {
            hash.update(received);
        }
        let hash = self.hash.take();
        while !received.is_empty() {
            let expected = self.next(received.len() as u64);
            let (head, tail) = received.split_at(expected.len());
            same &= head == expected;
            self.advance(head.len());
            received = tail;
        }
        self.hash = hash;
        same
    }

    /// SHA-256 of all before this place, if it was asked for.
    pub fn sha256(&self) -> Option<[u8; 32]> {
        self.hash.as_ref().map(|h| h.clone().finalize().into())
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(cursor: &mut Cursor, n: usize, step: u64) -> Vec<u8> {
        let mut out = Vec::new();
        while out.len() < n {
            let part = cursor.next(step.min((n - out.len()) as u64)).to_vec();
            assert!(!part.is_empty());
            out.extend_from_slice(&part);
            cursor.advance(part.len());
        }
        out
    }

    #[test]
    fn receiver_accepts_what_the_sender_sent_across_the_wrap() {
        let block = Block::new(7);
        let mut sender = Cursor::new(Arc::clone(&block), 3, true);
        let sent = collect(&mut sender, BLOCK + 100_000, 262_144);
        let mut receiver = Cursor::new(block, 3, true);
        assert!(sent.chunks(70_001).all(|c| receiver.check(c)));
        assert_eq!(sender.sha256(), receiver.sha256());
        let plain: [u8; 32] = Sha256::digest(&sent).into();
        assert_eq!(sender.sha256(), Some(plain));
    }

    #[test]
    fn a_flipped_bit_a_gap_and_another_flow_are_noticed() {
        let block = Block::new(7);
        let sent = collect(
            &mut Cursor::new(Arc::clone(&block), 3, false),
            200_000,
            65_536,
        );
        let fresh = || Cursor::new(Arc::clone(&block), 3, false);

        let mut flipped = sent.clone();
        flipped[123_456] ^= 1;
        assert!(!fresh().check(&flipped));

        let gap = [&sent[..1_448], &sent[2_896..]].concat();
        assert!(!fresh().check(&gap));

        assert!(!Cursor::new(Arc::clone(&block), 4, false).check(&sent));
        assert!(!Cursor::new(Block::new(8), 3, false).check(&sent));
        assert!(fresh().check(&sent));
    }
}
