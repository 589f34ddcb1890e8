//! The erasure code of a span: Reed-Solomon over GF(2^16), O(n log n)
//! (S.-J. Lin, T. Y. Al-Naffouri, Y. S. Han, W.-H. Chung, "Novel Polynomial
//! Basis With Fast Fourier Transform and Its Application to Reed-Solomon
//! Erasure Codes", 2016).
//!
//! Both sides work a block at a time, so that no call holds up pacing for
//! longer than one block takes (of 706 symbols of 1418 bytes: 1 ms to encode, 3 to decode).

use super::{SpanError, SpanLayout};
use core::ops::Range;
use hashbrown::HashMap;
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

/// Builds the code's tables, which otherwise the first span of the process waits for (tens of
/// milliseconds). To be called once at start.
pub fn warm_up() {
    let warm = |_: Range<usize>, out: &mut [u8]| out.fill(1);
    if let Ok(mut encoder) = SpanEncoder::new(4, 2) {
        let first = encoder.repair(0, warm).map(<[u8]>::to_vec);
        if let (Ok(first), Ok(mut decoder)) = (first, SpanDecoder::new(4, 2)) {
            if decoder
                .add_data(0, &[1, 1])
                .and_then(|()| decoder.add_repair(0, &first))
                .is_ok()
            {
                decoder.try_decode();
            }
        }
    }
}

/// Makes the repair symbols of one span. The data stay where they are and are read once per block.
#[derive(Debug)]
pub struct SpanEncoder {
    layout: SpanLayout,
    /// Per block, its repair symbols one after another; empty until encoded.
    repairs: Vec<Vec<u8>>,
}

impl SpanEncoder {
    /// # Errors
    /// If the span is empty, too long, or has too many symbols.
    pub fn new(span_len: usize, symbol_size: usize) -> Result<Self, SpanError> {
        let layout = SpanLayout::new(span_len, symbol_size)?;
        Ok(Self {
            layout,
            repairs: vec![Vec::new(); layout.blocks()],
        })
    }

    pub fn layout(&self) -> &SpanLayout {
        &self.layout
    }

    /// Whether the repair symbols of `block` are there, so that [`repair`](Self::repair) costs nothing.
    pub fn is_encoded(&self, block: usize) -> bool {
        self.repairs.get(block).is_some_and(|r| !r.is_empty())
    }

    /// Encodes the first block that is not yet, if any; false when all are.
    /// `read` copies the bytes of a range of the span, which it must still have.
    ///
    /// # Errors
    /// Only if the code refuses the layout, which it does not for one that was accepted by [`new`](Self::new).
    pub fn encode_next(
        &mut self,
        read: impl FnMut(Range<usize>, &mut [u8]),
    ) -> Result<bool, SpanError> {
        match self.repairs.iter().position(Vec::is_empty) {
            Some(block) => self.encode(block, read).map(|()| true),
            None => Ok(false),
        }
    }

    /// Repair symbol `index`, [`SpanLayout::repair_size`] bytes; encodes its block first if need be.
    ///
    /// # Errors
    /// [`SpanError::RepairIndex`] if the span has no more than `index` repair symbols.
    pub fn repair(
        &mut self,
        index: usize,
        read: impl FnMut(Range<usize>, &mut [u8]),
    ) -> Result<&[u8], SpanError> {
        let missing = SpanError::RepairIndex {
            index,
            count: self.layout.repairs(),
        };
        if index >= self.layout.repairs() {
            return Err(missing);
        }
        let block = self.layout.block_of_repair(index);
        if !self.is_encoded(block) {
            self.encode(block, read)?;
        }
        let size = self.layout.repair_size();
        let at = index / self.layout.blocks() * size;
        self.repairs
            .get(block)
            .and_then(|r| r.get(at..at + size))
            .ok_or(missing)
    }

    fn encode(
        &mut self,
        block: usize,
        mut read: impl FnMut(Range<usize>, &mut [u8]),
    ) -> Result<(), SpanError> {
        let layout = self.layout;
        let count = layout.symbols_in(block);
        let size = layout.repair_size();
        let mut symbol = vec![0; size];
        if count == 1 {
            // Every repair symbol of a single symbol is that symbol.
            let range = layout.bytes_of(layout.symbol_at(block, 0));
            read(
                range.clone(),
                symbol.get_mut(..range.len()).unwrap_or_default(),
            );
            return self.store(block, symbol.repeat(layout.repairs_per_block()));
        }
        let mut encoder = ReedSolomonEncoder::new(count, layout.repairs_per_block(), size)?;
        for nth in 0..count {
            let range = layout.bytes_of(layout.symbol_at(block, nth));
            let (bytes, padding) = symbol.split_at_mut(range.len());
            read(range, bytes);
            padding.fill(0);
            encoder.add_original_shard(&symbol)?;
        }
        let mut out = Vec::with_capacity(layout.repairs_per_block() * size);
        for repair in encoder.encode()?.recovery_iter() {
            out.extend_from_slice(repair);
        }
        self.store(block, out)
    }

    fn store(&mut self, block: usize, repairs: Vec<u8>) -> Result<(), SpanError> {
        let count = self.repairs.len();
        *self
            .repairs
            .get_mut(block)
            .ok_or(SpanError::Block { block, count })? = repairs;
        Ok(())
    }
}

/// A data symbol that was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    pub symbol: usize,
    /// Where its bytes belong in the span.
    pub offset: usize,
    /// Without padding.
    pub bytes: Vec<u8>,
}

/// Restores the missing data symbols of one span. It keeps a copy of the data it was given, and
/// never more repair symbols than it needs: at most twice the span, allocated as bytes arrive.
#[derive(Debug)]
pub struct SpanDecoder {
    layout: SpanLayout,
    data: Vec<u8>,
    known: Vec<bool>,
    /// Parts of symbols that have arrived: disjoint, sorted ranges within the symbol.
    partial: HashMap<usize, Vec<Range<usize>>>,
    blocks: Vec<Block>,
}

#[derive(Clone, Debug, Default)]
struct Block {
    known: usize,
    repairs: Vec<(usize, Vec<u8>)>,
}

impl SpanDecoder {
    /// # Errors
    /// If the span is empty, too long, or has too many symbols: both numbers may come from a peer.
    pub fn new(span_len: usize, symbol_size: usize) -> Result<Self, SpanError> {
        let layout = SpanLayout::new(span_len, symbol_size)?;
        Ok(Self {
            layout,
            data: Vec::new(),
            known: vec![false; layout.symbols()],
            partial: HashMap::new(),
            blocks: vec![Block::default(); layout.blocks()],
        })
    }

    pub fn layout(&self) -> &SpanLayout {
        &self.layout
    }

    /// All of the span is there.
    pub fn is_complete(&self) -> bool {
        (0..self.layout.blocks()).all(|b| self.missing_in(b) == 0)
    }

    /// Data symbols of `block` that are neither received nor restored.
    pub fn missing_in(&self, block: usize) -> usize {
        let known = self.blocks.get(block).map_or(0, |b| b.known);
        self.layout.symbols_in(block).saturating_sub(known)
    }

    /// Data of the span, `offset` bytes from its start, cut in any way, repeated in any way.
    ///
    /// # Errors
    /// [`SpanError::OutsideSpan`], and nothing is taken.
    pub fn add_data(&mut self, offset: usize, bytes: &[u8]) -> Result<(), SpanError> {
        let span_len = self.layout.span_len();
        let outside = SpanError::OutsideSpan {
            offset,
            len: bytes.len(),
            span_len,
        };
        let end = offset
            .checked_add(bytes.len())
            .filter(|&end| end <= span_len)
            .ok_or(outside)?;
        if bytes.is_empty() {
            return Ok(());
        }
        if self.data.is_empty() {
            self.data = vec![0; span_len];
        }
        let size = self.layout.symbol_size();
        for symbol in offset / size..end.div_ceil(size) {
            if self.known.get(symbol).copied().unwrap_or(true) {
                continue;
            }
            let whole = self.layout.bytes_of(symbol);
            let part = whole.start.max(offset)..whole.end.min(end);
            let source = bytes.get(part.start - offset..part.end - offset);
            if let (Some(to), Some(from)) = (self.data.get_mut(part.clone()), source) {
                to.copy_from_slice(from);
            }
            if part == whole
                || self.covers(
                    symbol,
                    part.start - whole.start..part.end - whole.start,
                    whole.len(),
                )
            {
                self.mark_known(symbol);
            }
        }
        Ok(())
    }

    /// A repair symbol. Repeated ones, and those of a block that needs none, are ignored.
    ///
    /// # Errors
    /// If there is no such repair symbol in this span, or it has the wrong length.
    pub fn add_repair(&mut self, index: usize, bytes: &[u8]) -> Result<(), SpanError> {
        let (count, expected) = (self.layout.repairs(), self.layout.repair_size());
        if index >= count {
            return Err(SpanError::RepairIndex { index, count });
        }
        if bytes.len() != expected {
            return Err(SpanError::RepairLength {
                got: bytes.len(),
                expected,
            });
        }
        let block = self.layout.block_of_repair(index);
        let missing = self.missing_in(block);
        let nth = index / self.layout.blocks();
        if let Some(b) = self.blocks.get_mut(block) {
            if b.repairs.len() < missing && b.repairs.iter().all(|&(n, _)| n != nth) {
                b.repairs.push((nth, bytes.to_vec()));
            }
        }
        Ok(())
    }

    /// Restores one block that has become restorable and returns its missing symbols in order;
    /// `None` if there is no such block. To be called until `None`, at once or at leisure.
    pub fn try_decode(&mut self) -> Option<Vec<Recovered>> {
        let block = (0..self.layout.blocks()).find(|&b| {
            let missing = self.missing_in(b);
            missing > 0
                && self
                    .blocks
                    .get(b)
                    .is_some_and(|x| x.repairs.len() >= missing)
        })?;
        let repairs = core::mem::take(&mut self.blocks.get_mut(block)?.repairs);
        let recovered = self.decode(block, &repairs).ok()?;
        for r in &recovered {
            if self.data.is_empty() {
                self.data = vec![0; self.layout.span_len()];
            }
            if let Some(to) = self.data.get_mut(r.offset..r.offset + r.bytes.len()) {
                to.copy_from_slice(&r.bytes);
            }
            self.mark_known(r.symbol);
        }
        Some(recovered)
    }

    fn decode(
        &self,
        block: usize,
        repairs: &[(usize, Vec<u8>)],
    ) -> Result<Vec<Recovered>, SpanError> {
        let layout = &self.layout;
        let (count, size) = (layout.symbols_in(block), layout.repair_size());
        let recovered = |nth: usize, bytes: &[u8]| {
            let symbol = layout.symbol_at(block, nth);
            let range = layout.bytes_of(symbol);
            Recovered {
                symbol,
                offset: range.start,
                bytes: bytes.get(..range.len()).unwrap_or(bytes).to_vec(),
            }
        };
        if count == 1 {
            return Ok(repairs
                .first()
                .map(|(_, bytes)| recovered(0, bytes))
                .into_iter()
                .collect());
        }
        let mut decoder = ReedSolomonDecoder::new(count, layout.repairs_per_block(), size)?;
        let mut symbol = vec![0; size];
        for nth in 0..count {
            let index = layout.symbol_at(block, nth);
            if self.known.get(index).copied().unwrap_or(false) {
                let bytes = self.data.get(layout.bytes_of(index)).unwrap_or_default();
                let (to, padding) = symbol.split_at_mut(bytes.len());
                to.copy_from_slice(bytes);
                padding.fill(0);
                decoder.add_original_shard(nth, &symbol)?;
            }
        }
        for (nth, bytes) in repairs {
            decoder.add_recovery_shard(*nth, bytes)?;
        }
        let restored = decoder.decode()?;
        Ok(restored
            .restored_original_iter()
            .map(|(nth, bytes)| recovered(nth, bytes))
            .collect())
    }

    fn mark_known(&mut self, symbol: usize) {
        let block = self.layout.block_of_symbol(symbol);
        if let (Some(known), Some(b)) = (self.known.get_mut(symbol), self.blocks.get_mut(block)) {
            if !*known {
                *known = true;
                b.known += 1;
                self.partial.remove(&symbol);
                let missing = self.layout.symbols_in(block).saturating_sub(b.known);
                if missing == 0 {
                    b.repairs = Vec::new();
                }
            }
        }
    }

    /// Notes a part of a symbol and says whether all `len` bytes of it are there now.
    fn covers(&mut self, symbol: usize, part: Range<usize>, len: usize) -> bool {
        let parts = self.partial.entry(symbol).or_default();
        let mut merged = part;
        parts.retain(|p| {
            let apart = p.end < merged.start || merged.end < p.start;
            if !apart {
                merged = p.start.min(merged.start)..p.end.max(merged.end);
            }
            apart
        });
        let done = merged == (0..len);
        parts.push(merged);
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repair::{MAX_BLOCK, MAX_SPAN_BYTES, MAX_SYMBOLS};
    use proptest::prelude::*;

    fn random(len: usize, seed: u64) -> Vec<u8> {
        let mut x = seed | 1;
        (0..len)
            .map(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                (x >> 24) as u8
            })
            .collect()
    }

    fn reader(span: &[u8]) -> impl FnMut(Range<usize>, &mut [u8]) + '_ {
        |range, out| out.copy_from_slice(&span[range])
    }

    /// Loses the symbols in `lost`, repairs with the given indices, and checks what comes back.
    fn round_trip(span: &[u8], size: usize, lost: &[usize], repairs: &[usize]) -> Vec<usize> {
        let mut e = SpanEncoder::new(span.len(), size).unwrap();
        let mut d = SpanDecoder::new(span.len(), size).unwrap();
        let layout = *e.layout();
        for s in (0..layout.symbols()).filter(|s| !lost.contains(s)) {
            let range = layout.bytes_of(s);
            d.add_data(range.start, &span[range]).unwrap();
        }
        for &i in repairs {
            let repair = e.repair(i, reader(span)).unwrap().to_vec();
            d.add_repair(i, &repair).unwrap();
            d.add_repair(i, &repair).unwrap();
        }
        let mut restored = vec![];
        while let Some(list) = d.try_decode() {
            assert!(!list.is_empty());
            for r in list {
                assert_eq!(r.bytes, span[layout.bytes_of(r.symbol)]);
                restored.push(r.symbol);
            }
        }
        restored.sort_unstable();
        assert_eq!(d.is_complete(), restored.len() == lost.len());
        restored
    }

    #[test]
    fn one_symbol_is_repaired_by_any_single_repair() {
        let span = random(777, 1);
        for i in 0..16 {
            assert_eq!(round_trip(&span, 1418, &[0], &[i]), [0]);
        }
    }

    #[test]
    fn everything_lost_and_only_repairs_received() {
        let span = random(64 * 1418 - 5, 2);
        let all: Vec<usize> = (0..64).collect();
        let repairs: Vec<usize> = (0..64).collect();
        assert_eq!(round_trip(&span, 1418, &all, &repairs), all);
        assert_eq!(round_trip(&span, 1418, &all, &repairs[1..]), [0usize; 0]);
    }

    #[test]
    fn blocks_are_restored_independently() {
        let symbols = 2 * MAX_BLOCK + 1;
        let span = random(symbols * 10 - 3, 3);
        let layout = SpanLayout::new(span.len(), 10).unwrap();
        assert_eq!(layout.blocks(), 3);
        let lost: Vec<usize> = (symbols - 9..symbols).collect();
        let repairs: Vec<usize> = (0..9).collect();
        assert_eq!(
            round_trip(&span, 10, &lost, &repairs),
            lost,
            "a burst takes as much from every block"
        );
        let first: Vec<usize> = lost.iter().copied().filter(|s| s % 3 == 0).collect();
        assert_eq!(round_trip(&span, 10, &lost, &[0, 3, 6]), first);
    }

    #[test]
    fn blocks_are_of_nearly_equal_size_and_cover_the_span() {
        for symbols in [
            1,
            2,
            MAX_BLOCK - 1,
            MAX_BLOCK,
            MAX_BLOCK + 1,
            2 * MAX_BLOCK + 1,
            7000,
            MAX_SYMBOLS,
        ] {
            let layout = SpanLayout::new(symbols * 2, 2).unwrap();
            let sizes: Vec<usize> = (0..layout.blocks()).map(|b| layout.symbols_in(b)).collect();
            assert_eq!(sizes.iter().sum::<usize>(), symbols);
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            assert!(*sizes.iter().max().unwrap() <= MAX_BLOCK);
            assert!(layout.repairs_per_block() >= sizes.iter().max().unwrap() * 15 / 32 + 16);
            assert!(layout.repairs() <= usize::from(u16::MAX));
            for s in 0..symbols {
                assert!(s / layout.blocks() < layout.symbols_in(layout.block_of_symbol(s)));
            }
        }
    }

    #[test]
    fn encoding_goes_a_block_at_a_time() {
        let span = random(3 * MAX_BLOCK * 4 - 7, 4);
        let mut e = SpanEncoder::new(span.len(), 4).unwrap();
        let mut read = 0;
        let mut calls = 0;
        while e
            .encode_next(|range, out| {
                read += range.len();
                out.copy_from_slice(&span[range]);
            })
            .unwrap()
        {
            calls += 1;
        }
        assert_eq!((calls, read), (3, span.len()));
        let after = e
            .repair(5, |_, _| panic!("the data may be gone by now"))
            .unwrap()
            .to_vec();
        assert_eq!(after.len(), 4);
    }

    #[test]
    fn numbers_of_a_hostile_peer_are_refused() {
        assert_eq!(
            SpanDecoder::new(0, 1000).err(),
            Some(SpanError::SpanLength(0))
        );
        assert_eq!(
            SpanDecoder::new(MAX_SPAN_BYTES + 1, 65_535).err(),
            Some(SpanError::SpanLength(MAX_SPAN_BYTES + 1))
        );
        assert_eq!(
            SpanDecoder::new(usize::MAX, usize::MAX).err(),
            Some(SpanError::SpanLength(usize::MAX))
        );
        for size in [0, 1, 65_536, usize::MAX] {
            assert_eq!(
                SpanDecoder::new(1000, size).err(),
                Some(SpanError::SymbolSize(size))
            );
        }
        assert_eq!(
            SpanDecoder::new(MAX_SYMBOLS * 2 + 1, 2).err(),
            Some(SpanError::TooManySymbols(MAX_SYMBOLS + 1))
        );
        let mut d = SpanDecoder::new(1000, 100).unwrap();
        assert!(d.add_data(usize::MAX, &[1, 2]).is_err());
        assert!(d.add_data(999, &[1, 2]).is_err());
        assert!(d.add_repair(d.layout().repairs(), &[0; 100]).is_err());
        assert!(d.add_repair(usize::MAX, &[0; 100]).is_err());
        assert!(d.add_repair(0, &[0; 101]).is_err());
        assert!(d.try_decode().is_none());
    }

    #[test]
    fn a_warm_up_is_harmless() {
        warm_up();
    }

    proptest! {
        /// Any K of data and repair symbols restore the span; fewer restore nothing wrong.
        #[test]
        fn any_k_symbols_restore(k in 1usize..120, size in 2usize..70, short in 0usize..70, seed in 1u64.., loss in 1u64..100) {
            let span = random(k * size - short % size.min(k * size), seed);
            let layout = SpanLayout::new(span.len(), size).unwrap();
            let rolls = random(2 * k + 16, seed ^ 0x9E37_79B9);
            let mut lost: Vec<usize> = (0..layout.symbols()).filter(|&s| u64::from(rolls[s]) * 100 / 256 < loss).collect();
            lost.truncate(layout.repairs());
            let start = seed as usize % (layout.repairs() - lost.len().min(layout.repairs() - 1));
            let repairs: Vec<usize> = (start..start + lost.len()).collect();
            prop_assert_eq!(round_trip(&span, size, &lost, &repairs), lost.clone());
            if let Some((_, fewer)) = repairs.split_last() {
                prop_assert!(round_trip(&span, size, &lost, fewer).is_empty());
            }
        }

        /// Data may come in pieces that know nothing of symbols, overlapping and out of order.
        #[test]
        fn pieces_of_any_cut_are_put_together(len in 1usize..2000, size in 2usize..100, cuts in prop::collection::vec((0usize..2000, 1usize..300), 0..60), seed in 1u64..) {
            let span = random(len, seed);
            let mut d = SpanDecoder::new(len, size).unwrap();
            let mut have = vec![false; len];
            for (at, n) in cuts {
                let range = at.min(len)..(at + n).min(len);
                have[range.clone()].fill(true);
                d.add_data(range.start, &span[range]).unwrap();
            }
            let layout = *d.layout();
            for s in 0..layout.symbols() {
                prop_assert_eq!(d.known[s], have[layout.bytes_of(s)].iter().all(|&h| h));
            }
            let complete = have.iter().all(|&h| h);
            prop_assert_eq!(d.is_complete(), complete);
            if complete {
                prop_assert_eq!(&d.data, &span);
            }
        }

        #[test]
        fn arbitrary_numbers_never_panic(span_len in any::<usize>(), size in any::<usize>(), small in 0usize..100_000, index in any::<usize>()) {
            for (l, s) in [(span_len, size), (small, size % 70_000), (small * 700, size % 70_000)] {
                if let Ok(mut d) = SpanDecoder::new(l, s) {
                    let _ = d.add_data(index, &[1, 2, 3]);
                    let _ = d.add_repair(index % 70_000, &vec![7; d.layout().repair_size()]);
                    let _ = d.try_decode();
                }
            }
        }
    }
}
