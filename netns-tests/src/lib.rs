//! The lab: topologies of network namespaces, the WAN between them, the load on
//! them, and what was measured.
#![forbid(unsafe_code)]
