//! The few calls into the operating system that the router and its lab need,
//! each behind a safe function: clocks, scheduling, waiting, interfaces, TCP
//! sockets, child processes. Linux only.

mod capability;
mod clock;
mod ethtool;
mod interface;
mod memory;
mod process;
mod tcp;
mod wait;

pub use capability::{has_capability, Cap};
pub use clock::{cycles, monotonic_now, process_cpu_time, realtime_nanos, thread_cpu_time};
pub use ethtool::{interface_features, set_interface_offload, InterfaceFeatures, Offload};
pub use interface::{interface_index, interface_mac, interface_mtu};
pub use memory::advise_huge_pages;
pub use process::{
    set_command_parent_death_signal, set_parent_death_signal, set_realtime_priority,
    set_timer_slack_ns, thread_cpus,
};
pub use tcp::{set_tcp_congestion, tcp_info, TcpInfo};
pub use wait::{poll_fds, Ready, MAX_POLL_FDS};
