//! Bindings to the DPDK that the distribution ships, generated when built, and a
//! shim for what its headers define inline. No safety is added here: that is
//! what the `dpdk` port of `mef-io` is for.
#![no_std]
#![allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    missing_docs,
    clippy::all,
    unnecessary_transmutes
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
