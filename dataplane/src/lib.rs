//! The MEF router.
#![forbid(unsafe_code)]
