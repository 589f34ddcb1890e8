//! Two MEF routers between real Linux hosts, in network namespaces: what a host
//! or a stranger on the WAN can see of them. Needs root; skipped, with a message,
//! where a right or a program is missing. `MEF_BIN` names another binary to test,
//! `MEF_LONG=1` makes the transfers long.

// Whatever goes wrong in a test may end it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_input;
mod byte_exact;
mod connections;
mod corners;
mod dpdk;
mod failures;
mod ipv6;
mod lab;
mod many;
mod memory;
mod merging;
mod operate;
mod programs;
mod pulse;
mod quic;
mod random_packets;
mod shares;
mod sites;
mod ssh;
mod star;
mod wire;
mod workers;
