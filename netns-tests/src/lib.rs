//! The lab: topologies of network namespaces, the WAN between them, the load on
//! them, and what was measured.
#![forbid(unsafe_code)]

pub mod cli;
pub mod frontier;
pub mod gate;
pub mod netns;
pub mod run;
pub mod sim;
pub mod sweep;
pub mod topology;
pub mod wan;

pub mod load;
pub mod report;
pub mod results;
