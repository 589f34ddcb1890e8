//! Ports: where packets enter and leave the router, behind one trait, and the
//! few calls into the operating system that the router and its lab need.
//! The only crate of the data plane with `unsafe` code.

pub mod af_packet;
pub mod device;
#[cfg(feature = "dpdk")]
pub mod dpdk;
pub mod mem;
pub mod os;
pub mod port;

pub use af_packet::{AfPacket, AfPacketOptions, Steering};
pub use device::{DeviceName, DeviceNameError};
#[cfg(feature = "dpdk")]
pub use dpdk::{DpdkOptions, DpdkPort};
pub use mem::{MemPort, MemWire};
pub use port::{Caps, Port, PortError, PortStats};
