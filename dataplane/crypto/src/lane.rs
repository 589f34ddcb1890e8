//! One lane of a session: the sending half with its packet numbers, the
//! receiving half with its replay window, each with its own keys. A lane is a
//! pair of workers, so its state is touched by one core only.
//!
//! ```text
//! sending:    key e ──limits.ratchet blocks──▶ key e+1       (counters run on)
//!               └─ limits.stop blocks or the last counter ─▶ refuses
//! receiving:  previous e-1 │ current e │ next e+1 (derived on demand)
//!               └── a packet of e+1 authenticates: everything moves up by one ──┘
//! ```

use crate::engine::{EngineError, EngineKind};
use crate::header::Header;
use crate::replay::{Refused, ReplayWindow};
use crate::schedule::{Chain, Direction, EpochKey, Secret};
use crate::session::{Limits, OpenError, SealError, SessionConfig};
use crate::{HEADER_LEN, TAG_LEN};

/// AES blocks a packet costs its key: its plaintext, the mask of the tag, the header.
fn blocks_of(plaintext_len: usize) -> u64 {
    plaintext_len.div_ceil(16) as u64 + 2
}

pub(crate) struct SendLane {
    chain: Chain,
    key: EpochKey,
    next_counter: u64,
    limits: Limits,
    engine: EngineKind,
}

impl SendLane {
    pub(crate) fn new(
        split: &Secret,
        direction: Direction,
        lane: u16,
        config: &SessionConfig,
    ) -> Result<Self, EngineError> {
        let chain = Chain::first(split, direction, lane)?;
        let key = chain.key(config.engine)?;
        Ok(Self {
            chain,
            key,
            next_counter: 0,
            limits: config.limits,
            engine: config.engine,
        })
    }

    pub(crate) fn next_counter(&self) -> u64 {
        self.next_counter
    }

    /// Counters only grow: a smaller one is ignored.
    pub(crate) fn number_from(&mut self, counter: u64) {
        self.next_counter = self.next_counter.max(counter);
    }

    #[cfg(test)]
    pub(crate) fn set_next_counter(&mut self, counter: u64) {
        self.next_counter = counter;
    }

    /// Seals header space ‖ plaintext ‖ tag space in place; `header` says the
    /// receiver and lane, its epoch and counter are filled in here.
    pub(crate) fn seal(&mut self, mut header: Header, packet: &mut [u8]) -> Result<u64, SealError> {
        let too_short = SealError::TooShort(packet.len());
        let (header_space, rest) = packet
            .split_first_chunk_mut::<HEADER_LEN>()
            .ok_or(too_short)?;
        let (plaintext, tag_space) = rest.split_last_chunk_mut::<TAG_LEN>().ok_or(too_short)?;

        // The last number is never used, so that the next one can always be named.
        let counter = self.next_counter;
        let following = counter.checked_add(1).ok_or(SealError::LimitReached)?;
        if self.key.blocks >= self.limits.ratchet_blocks
            && self.limits.ratchet_blocks < self.limits.stop_blocks
        {
            let chain = self.chain.next()?;
            self.key = chain.key(self.engine)?;
            self.chain = chain;
        }
        let used = self.key.blocks.saturating_add(blocks_of(plaintext.len()));
        if used > self.limits.stop_blocks {
            return Err(SealError::LimitReached);
        }

        header.epoch = self.chain.epoch() as u8;
        header.counter = counter;
        let aad = header.emit();
        // Spent before it is used: whatever happens next, this nonce is not taken again.
        self.next_counter = following;
        self.key.blocks = used;
        *tag_space = self
            .key
            .engine()
            .seal(self.key.nonce(counter), &aad, plaintext)?;
        *header_space = aad;
        Ok(counter)
    }
}

pub(crate) struct RecvLane {
    chain: Chain,
    previous: Option<EpochKey>,
    current: EpochKey,
    /// Kept once derived, so that forged packets of the next epoch cost no derivation each.
    next: Option<(Chain, EpochKey)>,
    window: ReplayWindow,
    limits: Limits,
    engine: EngineKind,
}

impl RecvLane {
    pub(crate) fn new(
        split: &Secret,
        direction: Direction,
        lane: u16,
        config: &SessionConfig,
    ) -> Result<Self, EngineError> {
        let chain = Chain::first(split, direction, lane)?;
        Ok(Self {
            previous: None,
            current: chain.key(config.engine)?,
            next: None,
            chain,
            window: ReplayWindow::new(config.window()),
            limits: config.limits,
            engine: config.engine,
        })
    }

    /// Opens a packet of this lane in place; after an error nothing of the lane has
    /// changed and the packet's content is unspecified.
    pub(crate) fn open(&mut self, header: &Header, packet: &mut [u8]) -> Result<(), OpenError> {
        let (aad, sealed) = packet
            .split_first_chunk_mut::<HEADER_LEN>()
            .ok_or(OpenError::Truncated)?;
        let blocks = blocks_of(
            sealed
                .len()
                .checked_sub(TAG_LEN)
                .ok_or(OpenError::Truncated)?,
        );

        let is_next = match header.epoch.wrapping_sub(self.chain.epoch() as u8) {
            0 => false,
            1 => true,
            u8::MAX => false,
            _ => return Err(OpenError::BadEpoch),
        };
        self.window
            .check(header.counter)
            .map_err(|refused| match refused {
                Refused::Replayed => OpenError::Replayed,
                Refused::TooOld => OpenError::TooOld,
            })?;

        let key = if is_next {
            if self.next.is_none() {
                let chain = self.chain.next().map_err(|_| OpenError::BadEpoch)?;
                let key = chain.key(self.engine).map_err(|_| OpenError::BadEpoch)?;
                self.next = Some((chain, key));
            }
            self.next.as_mut().map(|(_, key)| key)
        } else if header.epoch == self.chain.epoch() as u8 {
            Some(&mut self.current)
        } else {
            self.previous.as_mut()
        };
        let key = key.ok_or(OpenError::BadEpoch)?;

        let used = key.blocks.saturating_add(blocks);
        if used > self.limits.stop_blocks {
            return Err(OpenError::LimitReached);
        }
        key.engine()
            .open(key.nonce(header.counter), aad, sealed)
            .map_err(|EngineError| OpenError::Unauthentic)?;

        key.blocks = used;
        self.window.mark(header.counter);
        if is_next {
            if let Some((chain, key)) = self.next.take() {
                self.chain = chain;
                self.previous = Some(std::mem::replace(&mut self.current, key));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::PacketType;
    use zeroize::Zeroizing;

    const HEADER: Header = Header {
        kind: PacketType::Transport,
        epoch: 0,
        lane: 0,
        receiver_index: 1,
        counter: 0,
    };

    #[test]
    fn packet_numbers_end_before_they_wrap() {
        let (split, config) = (Zeroizing::new([1; 32]), SessionConfig::default());
        let mut send = SendLane::new(&split, Direction::ToResponder, 0, &config).unwrap();
        let mut recv = RecvLane::new(&split, Direction::ToResponder, 0, &config).unwrap();
        send.set_next_counter(u64::MAX - 2);
        for expected in [u64::MAX - 2, u64::MAX - 1] {
            let mut packet = [0; 40];
            assert_eq!(send.seal(HEADER, &mut packet), Ok(expected));
            let header = Header::parse(&packet).unwrap();
            assert_eq!(recv.open(&header, &mut packet), Ok(()));
        }
        for _ in 0..2 {
            let mut packet = [0; 40];
            assert_eq!(send.seal(HEADER, &mut packet), Err(SealError::LimitReached));
            assert_eq!(packet, [0; 40], "nothing was sealed");
        }
    }

    #[test]
    fn blocks_count_plaintext_tag_and_header() {
        assert_eq!([0, 1, 16, 17, 1420].map(blocks_of), [2, 3, 3, 4, 91]);
    }
}
