//! How a span is cut into symbols and blocks: both ends compute it from the
//! span's length and the size of a symbol, nothing of it travels.
//!
//! ```text
//! span     |s0|s1|s2|s3|s4|s5|s6..|     the last symbol is padded with zeros
//! block 0   s0    s2    s4    s6        a span of more than 1024 symbols has
//! block 1      s1    s3    s5           several blocks, interleaved
//! repair   i = 0 1 2 3 ..               i belongs to block i mod B as well
//! ```
//!
//! Blocks bound the time that one encoding holds up pacing; they are interleaved
//! so that a burst of losses spreads over all of them. One block of K symbols has
//! as many repair symbols as the next power of two from 15/32 K + 16 on, which is
//! what the transform behind the code computes in one go: enough for 30% of
//! everything to be lost. Who runs out of them retransmits.

use super::SpanError;
use core::ops::Range;

/// Largest span, in bytes.
pub const MAX_SPAN_BYTES: usize = 64 << 20;
/// Largest span, in symbols.
pub const MAX_SYMBOLS: usize = 32_768;
/// Symbols that are encoded in one go.
pub const MAX_BLOCK: usize = 1024;
const LEAST_REPAIRS: usize = 16;

/// The cut of one span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanLayout {
    span_len: usize,
    symbol_size: usize,
    symbols: usize,
    blocks: usize,
    repairs_per_block: usize,
}

impl SpanLayout {
    /// Checks both numbers, which may come from a peer.
    pub fn new(span_len: usize, symbol_size: usize) -> Result<Self, SpanError> {
        if span_len == 0 || span_len > MAX_SPAN_BYTES {
            return Err(SpanError::SpanLength(span_len));
        }
        if !(2..=65_535).contains(&symbol_size) {
            return Err(SpanError::SymbolSize(symbol_size));
        }
        let symbols = span_len.div_ceil(symbol_size);
        if symbols > MAX_SYMBOLS {
            return Err(SpanError::TooManySymbols(symbols));
        }
        let blocks = symbols.div_ceil(MAX_BLOCK);
        let repairs_per_block =
            (symbols.div_ceil(blocks) * 15 / 32 + LEAST_REPAIRS).next_power_of_two();
        Ok(Self {
            span_len,
            symbol_size,
            symbols,
            blocks,
            repairs_per_block,
        })
    }

    /// Length of the span in bytes.
    pub fn span_len(&self) -> usize {
        self.span_len
    }
    /// Bytes of a data symbol.
    pub fn symbol_size(&self) -> usize {
        self.symbol_size
    }
    /// K: number of data symbols.
    pub fn symbols(&self) -> usize {
        self.symbols
    }
    pub fn blocks(&self) -> usize {
        self.blocks
    }
    /// Number of repair symbols there are, at most 32768.
    pub fn repairs(&self) -> usize {
        self.blocks * self.repairs_per_block
    }
    pub fn repairs_per_block(&self) -> usize {
        self.repairs_per_block
    }
    /// Number of data symbols of a block.
    pub fn symbols_in(&self, block: usize) -> usize {
        self.symbols.saturating_sub(block).div_ceil(self.blocks)
    }
    /// Block of a data symbol.
    pub fn block_of_symbol(&self, symbol: usize) -> usize {
        symbol % self.blocks
    }
    /// Block of a repair symbol.
    pub fn block_of_repair(&self, index: usize) -> usize {
        index % self.blocks
    }
    /// Index on the wire of the `nth` repair symbol of a block.
    pub fn repair_index(&self, block: usize, nth: usize) -> usize {
        nth * self.blocks + block
    }
    /// The data symbol at place `nth` of a block.
    pub fn symbol_at(&self, block: usize, nth: usize) -> usize {
        nth * self.blocks + block
    }
    /// Bytes of the span that a data symbol covers; fewer than a symbol's size for the last.
    pub fn bytes_of(&self, symbol: usize) -> Range<usize> {
        let start = symbol.saturating_mul(self.symbol_size).min(self.span_len);
        start..(start + self.symbol_size).min(self.span_len)
    }
    /// Bytes of a repair symbol: those of a data symbol, made even, because the code works on pairs of bytes.
    pub fn repair_size(&self) -> usize {
        self.symbol_size.next_multiple_of(2)
    }
}
