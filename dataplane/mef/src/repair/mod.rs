//! Repair of the end of a transfer without waiting for a round trip: how many
//! repair symbols to send ([`repairs_needed`]) and the erasure code they come
//! from ([`SpanEncoder`], [`SpanDecoder`]).
//!
//! When a flow's queue runs empty, everything unacknowledged becomes one span
//! of K symbols; any K of the symbols sent, data or repair, restore the span.

mod layout;
mod need;
mod span;

pub use layout::{SpanLayout, MAX_BLOCK, MAX_SPAN_BYTES, MAX_SYMBOLS};
pub use need::{repairs_needed, EPSILON};
pub use span::{warm_up, Recovered, SpanDecoder, SpanEncoder};

/// Why a span cannot be coded. All of these are possible from a peer's numbers alone.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum SpanError {
    #[error("span of {0} bytes: must be 1 to {MAX_SPAN_BYTES}")]
    SpanLength(usize),
    #[error("symbol of {0} bytes: must be 2 to 65535")]
    SymbolSize(usize),
    #[error("span of {0} symbols: at most {MAX_SYMBOLS} can be coded, use larger symbols or a shorter span")]
    TooManySymbols(usize),
    #[error("data at {offset}, {len} bytes, is outside of the span of {span_len} bytes")]
    OutsideSpan {
        offset: usize,
        len: usize,
        span_len: usize,
    },
    #[error("repair symbol {index} of {count}: no such symbol in this span")]
    RepairIndex { index: usize, count: usize },
    #[error("repair symbol of {got} bytes in a span whose symbols have {expected}")]
    RepairLength { got: usize, expected: usize },
    #[error("block {block} of {count}: no such block in this span")]
    Block { block: usize, count: usize },
    #[error("erasure code: {0}")]
    Code(#[from] reed_solomon_simd::Error),
}
