//! The MEF protocol as state machines without sockets, clocks or randomness of
//! their own: everything takes `now`, says what to send when asked, and says
//! when it wants to be asked again.
#![forbid(unsafe_code)]
