//! The replay window of a lane: which packet numbers have been seen, as a ring
//! of bitmap words (RFC 6479), so that moving the window clears words instead
//! of shifting bits. [`ReplayWindow::check`] before decrypting,
//! [`ReplayWindow::mark`] only after the packet proved authentic.

/// Smallest window a session uses, packets.
pub const MIN_WINDOW: usize = 8192;
/// Largest window a session uses, packets: 512 KiB of bitmap for a lane.
pub const MAX_WINDOW: usize = 1 << 22;

const WORD_BITS: u64 = u64::BITS as u64;

/// Why a packet number is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Replayed,
    TooOld,
}

/// Remembers the packet numbers seen within `size` of the newest one.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// A power of two of words, one more than the window needs at least: the
    /// newest word is only partly in use.
    words: Box<[u64]>,
    size: u64,
    /// One above the highest number seen; zero before the first.
    end: u128,
}

impl ReplayWindow {
    /// A window of `size` packets; of 64 if `size` is less.
    pub fn new(size: usize) -> Self {
        let size = size.max(WORD_BITS as usize);
        let words = (size.div_ceil(WORD_BITS as usize) + 1).next_power_of_two();
        Self {
            words: vec![0; words].into_boxed_slice(),
            size: size as u64,
            end: 0,
        }
    }

    /// The window's size, packets.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether `number` may still be accepted; changes nothing.
    pub fn check(&self, number: u64) -> Result<(), Refused> {
        if u128::from(number) >= self.end {
            return Ok(());
        }
        if u128::from(number) + u128::from(self.size) < self.end {
            return Err(Refused::TooOld);
        }
        match self.words.get(self.slot(number / WORD_BITS)) {
            Some(word) if word & Self::bit(number) == 0 => Ok(()),
            _ => Err(Refused::Replayed),
        }
    }

    /// Remembers that `number` was seen, which [`check`](Self::check) must have allowed;
    /// moves the window if it is the newest. A number below the window is ignored.
    pub fn mark(&mut self, number: u64) {
        if self.check(number) == Err(Refused::TooOld) {
            return;
        }
        let word = number / WORD_BITS;
        if u128::from(number) >= self.end {
            let first_stale =
                u64::try_from(self.end.div_ceil(u128::from(WORD_BITS))).unwrap_or(u64::MAX);
            // However far the window jumps, each word of the ring is cleared once.
            let from = first_stale.max((word + 1).saturating_sub(self.words.len() as u64));
            for stale in from..=word {
                let slot = self.slot(stale);
                if let Some(w) = self.words.get_mut(slot) {
                    *w = 0;
                }
            }
            self.end = u128::from(number) + 1;
        }
        let slot = self.slot(word);
        if let Some(w) = self.words.get_mut(slot) {
            *w |= Self::bit(number);
        }
    }

    fn slot(&self, word: u64) -> usize {
        (word % self.words.len() as u64) as usize
    }

    fn bit(number: u64) -> u64 {
        1 << (number % WORD_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// What the window should do, with all numbers kept.
    #[derive(Default)]
    struct Model {
        seen: HashSet<u64>,
        newest: Option<u64>,
    }

    impl Model {
        fn check(&self, number: u64, size: u64) -> Result<(), Refused> {
            match self.newest {
                Some(newest) if number <= newest && newest - number >= size => Err(Refused::TooOld),
                _ if self.seen.contains(&number) => Err(Refused::Replayed),
                _ => Ok(()),
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_of_all_numbers(
            size in prop_oneof![1usize..200, Just(256), Just(512), 500usize..700],
            start in prop_oneof![Just(0u64), Just(1 << 40), Just(u64::MAX - 5000)],
            steps in proptest::collection::vec((prop_oneof![-70i64..80, -900i64..1000], 1u64..40), 1..300),
        ) {
            let mut window = ReplayWindow::new(size);
            let mut model = Model::default();
            let mut at = start;
            for (step, times) in steps {
                at = at.saturating_add_signed(step);
                for number in (0..times).map_while(|i| at.checked_add(i)) {
                    let expected = model.check(number, window.size());
                    prop_assert_eq!(window.check(number), expected, "number {}", number);
                    if expected.is_ok() {
                        window.mark(number);
                        model.seen.insert(number);
                        model.newest = model.newest.max(Some(number));
                    }
                }
            }
        }
    }

    #[test]
    fn exactly_size_numbers_fit() {
        let mut window = ReplayWindow::new(MIN_WINDOW);
        window.mark(MIN_WINDOW as u64);
        assert_eq!(window.check(0), Err(Refused::TooOld));
        assert_eq!(window.check(1), Ok(()));
        assert_eq!(window.check(MIN_WINDOW as u64), Err(Refused::Replayed));
    }

    #[test]
    fn a_jump_to_the_last_number_forgets_nothing_it_should_keep() {
        let mut window = ReplayWindow::new(128);
        window.mark(3);
        window.mark(u64::MAX);
        assert_eq!(window.check(u64::MAX), Err(Refused::Replayed));
        assert_eq!(window.check(u64::MAX - 127), Ok(()));
        assert_eq!(window.check(u64::MAX - 128), Err(Refused::TooOld));
        assert_eq!(window.check(3), Err(Refused::TooOld));
    }
}
