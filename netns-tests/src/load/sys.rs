//! The operating system as the load tool uses it: clocks, socket options,
//! names of errors.

use std::io;
use std::os::fd::AsRawFd;

use nix::time::{clock_gettime, ClockId};

use super::spec::FlowError;

fn clock_ns(clock: ClockId) -> u64 {
    clock_gettime(clock)
        .map(|t| (t.tv_sec() as u64).saturating_mul(1_000_000_000) + t.tv_nsec() as u64)
        .unwrap_or(0)
}

/// CLOCK_MONOTONIC, ns.
pub fn now_ns() -> u64 {
    clock_ns(ClockId::CLOCK_MONOTONIC)
}

/// CLOCK_REALTIME (which the kernel stamps packets with), ns.
pub fn realtime_ns() -> u64 {
    clock_ns(ClockId::CLOCK_REALTIME)
}

/// CPU time of this process, seconds.
pub fn process_cpu_s() -> f64 {
    clock_ns(ClockId::CLOCK_PROCESS_CPUTIME_ID) as f64 / 1e9
}

/// (segments sent again, smoothed RTT in us) of a TCP socket; zero if the kernel does not say.
pub fn retransmitted_and_rtt(socket: &impl AsRawFd) -> (u64, u64) {
    mef_io::os::tcp_info(socket.as_raw_fd())
        .map(|i| (u64::from(i.total_retrans), u64::from(i.rtt_us)))
        .unwrap_or_default()
}

/// Before the load's threads on the run queue, where the process may: then the
/// probe's times are the network's and not the scheduler's.
pub fn raise_priority() {
    // Without CAP_SYS_NICE the figures are a little noisier; nothing else depends on it.
    let _ = mef_io::os::set_realtime_priority(10);
    let _ = mef_io::os::set_timer_slack_ns(1);
}

/// The errno's name, or the kind of error where there is none.
pub fn flow_error(phase: &str, error: &io::Error) -> FlowError {
    let errno = match error.raw_os_error() {
        Some(code) => format!("{:?}", nix::errno::Errno::from_raw(code)),
        None => format!("{:?}", error.kind()),
    };
    FlowError {
        phase: phase.to_owned(),
        errno,
    }
}
