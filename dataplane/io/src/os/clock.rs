//! The kernel's clocks. The daemon's [`Instant`] is CLOCK_MONOTONIC, which all
//! processes of one machine share whatever network namespace they are in.

use mef_packet::Instant;
use std::time::Duration;

fn read(clock: libc::clockid_t) -> Duration {
    let mut ts = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `ts` is a valid timespec that lives through the call. The call fails
    // only for an unknown clock or a bad address; `ts` then stays zero.
    unsafe { libc::clock_gettime(clock, &mut ts) };
    Duration::new(
        ts.tv_sec.max(0).unsigned_abs(),
        ts.tv_nsec.unsigned_abs() as u32,
    )
}

fn nanos(d: Duration) -> u64 {
    d.as_secs() * 1_000_000_000 + u64::from(d.subsec_nanos())
}

/// Now, by CLOCK_MONOTONIC.
pub fn monotonic_now() -> Instant {
    Instant::from_nanos(nanos(read(libc::CLOCK_MONOTONIC)))
}

/// The processor's time-stamp counter, which counts cycles of a constant rate; nanoseconds
/// where there is none. For measuring pieces of code.
#[inline]
pub fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads a register that user programs may read.
    return unsafe { core::arch::x86_64::_rdtsc() };
    #[cfg(not(target_arch = "x86_64"))]
    return nanos(read(libc::CLOCK_MONOTONIC));
}

/// Nanoseconds since 1970, by CLOCK_REALTIME. It may be set back: for converting
/// time-stamps and for show, never for measuring.
pub fn realtime_nanos() -> u64 {
    nanos(read(libc::CLOCK_REALTIME))
}

/// Processor time that the calling thread has used.
pub fn thread_cpu_time() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Processor time that all threads of this process have used.
pub fn process_cpu_time() -> Duration {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_agrees_with_the_standard_library() {
        let (m0, s0) = (monotonic_now(), std::time::Instant::now());
        while s0.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let passed = monotonic_now().since(m0);
        assert!(passed >= Duration::from_millis(20) && passed < Duration::from_millis(520));
    }

    #[test]
    fn cpu_time_grows_with_work_and_thread_is_within_process() {
        // In this order, so that the process's time spans the thread's.
        let (p0, t0) = (process_cpu_time(), thread_cpu_time());
        while thread_cpu_time() - t0 < Duration::from_millis(5) {
            std::hint::spin_loop();
        }
        let used = process_cpu_time() - p0;
        assert!(used >= Duration::from_millis(5), "{used:?}");
    }
}
