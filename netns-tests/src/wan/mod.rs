//! The WAN emulator: [`core`] decides what becomes of each frame, [`run`]
//! moves real frames between two interfaces accordingly.

pub mod config;
pub mod core;
pub mod histogram;
pub mod trace;

pub use config::{Change, DirectionConfig, Line, Loss, Scheduled, WanConfig};
pub use core::{Direction, DropReason, Verdict};
pub use trace::Trace;

pub(crate) const NAME: &str = "wan";
