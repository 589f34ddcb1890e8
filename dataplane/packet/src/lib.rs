//! What every room of the router shares about packets: buffers, the metadata
//! that travels with them, typed views of the wire formats, units and time.
//! Nothing here reads a clock, allocates on the hot path or knows a port.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod buffer;
pub mod flow_hash;
pub mod meta;
pub mod time;
pub mod units;
pub mod wire;

pub use buffer::{Buffer, HeapBuf};
pub use flow_hash::{FlowEnd, FlowHash};
pub use meta::{Checksum, Gso, Meta, Packet, PortId};
pub use time::Instant;
pub use units::{BitRate, Bytes};
