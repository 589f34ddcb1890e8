//! The WAN emulator: [`core`] decides what becomes of each frame, [`run`]
//! moves real frames between two interfaces accordingly.

pub mod config;
pub mod core;
pub mod emulator;
pub mod histogram;
pub mod run;
pub mod stats;
pub mod trace;

pub use config::{Change, DirectionConfig, Line, Loss, Scheduled, WanConfig};
pub use core::{Direction, DropReason, Verdict};
pub use stats::{DirectionSnapshot, Snapshot};
pub use trace::Trace;
