//! Ports: where packets enter and leave the router, behind one trait, and the
//! few calls into the operating system that the router and its lab need.
//! The only crate of the data plane with `unsafe` code.

pub mod port;

pub use port::{Caps, Port, PortError, PortStats};
