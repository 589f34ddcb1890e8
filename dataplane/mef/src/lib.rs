//! The MEF protocol as state machines without sockets, clocks or randomness of
//! their own: everything takes `now`, says what to send when asked, and says
//! when it wants to be asked again.
#![forbid(unsafe_code)]

pub mod allocator;
pub mod aqm;
pub mod auto;
pub mod bucket;
pub mod carried;
pub mod chunks;
pub mod classes;
pub mod codec;
pub mod guard;
pub mod line;
pub mod link;
pub mod loss;
pub mod pmtu;
pub mod ranges;
pub mod received;
pub mod recv_stream;
pub mod repair;
pub mod rtt;
pub mod scheduler;
pub mod send_stream;
pub mod sent;
pub mod wheel;
