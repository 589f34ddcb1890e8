//! The MEF router: how packets travel between hosts and links.
//!
//! `router/pipeline.rs` shows the journey; `config` is where a configuration
//! becomes a value; `daemon` runs a router on this machine.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod drops;
pub mod fib;
pub mod flow_table;
pub mod half_open;
pub mod host_tcp;
pub mod icmp;
pub mod keys_cli;
pub mod metrics;
mod moderation;
pub mod neighbour;
mod outer;
pub mod peer;
pub mod persist;
pub mod pinned;
pub mod ports;
pub mod prefix_table;
pub mod rate;
pub mod reassembly;
pub mod report;
pub mod router;
pub mod show;
pub mod stats;
pub mod troubles;
pub mod workers;
