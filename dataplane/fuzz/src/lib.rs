//! The functions that the fuzzer calls; what they check is in each module.
//! `make test` replays the corpus through the same functions without a fuzzer.

pub mod targets;
