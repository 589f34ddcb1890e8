//! The MEF router.
#![forbid(unsafe_code)]

pub mod config;
pub mod drops;
pub mod fib;
pub mod stats;
pub mod host_tcp;
pub mod control;
pub mod icmp;
pub mod keys_cli;
pub mod neighbour;
