//! How the scheduler treats the calling thread, and how a process ends.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Puts the calling thread under SCHED_FIFO with `priority` 1 (lowest) to 99;
/// its children start under the normal policy.
///
/// # Errors
/// `PermissionDenied` without CAP_SYS_NICE (or an RLIMIT_RTPRIO), `InvalidInput`
/// for a priority outside the range.
pub fn set_realtime_priority(priority: u8) -> io::Result<()> {
    // SAFETY: sched_param is plain integers, for which all zeroes is valid.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = libc::c_int::from(priority);
    // SAFETY: `param` lives through the call; pid 0 is the calling thread.
    check(unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &param)
    })
}

/// How much later than asked the kernel may wake the calling thread, in ns
/// (50 us unless told otherwise; real-time threads have none).
///
/// # Errors
/// None is known for a positive value; what the kernel says.
pub fn set_timer_slack_ns(ns: u32) -> io::Result<()> {
    // SAFETY: this prctl takes one integer and touches no memory of ours.
    check(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, libc::c_ulong::from(ns.max(1))) })
}

/// The CPUs that the calling thread may run on, in rising order.
///
/// # Errors
/// What the kernel says; none is known.
pub fn thread_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: cpu_set_t is plain integers, for which all zeroes is valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size given; pid 0 is the calling thread.
    check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) })?;
    let in_set = |cpu: &usize| {
        // SAFETY: reads one bit of `set`, which has CPU_SETSIZE of them.
        unsafe { libc::CPU_ISSET(*cpu, &set) }
    };
    Ok((0..libc::CPU_SETSIZE as usize).filter(in_set).collect())
}

/// Has the kernel send `signal` to this process when its parent dies. "Parent"
/// is the *thread* that created it: start such children from a thread that lives
/// as long as they should.
///
/// # Errors
/// `InvalidInput` for a number that is no signal.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    let signal = libc::c_ulong::try_from(signal).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: this prctl takes one integer and touches no memory of ours.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) })
}

/// Has the child that `command` starts receive `signal` when the thread that
/// starts it dies (see [`set_parent_death_signal`]). A child whose parent is
/// already gone when it looks does not start.
pub fn set_command_parent_death_signal(command: &mut Command, signal: i32) -> &mut Command {
    let parent = std::process::id();
    // SAFETY: the closure runs between fork and exec and makes two async-signal-safe
    // system calls only; it allocates nothing and takes no lock (an io::Error made
    // from an errno or an ErrorKind does not allocate).
    unsafe {
        command.pre_exec(move || {
            set_parent_death_signal(signal)?;
            if libc::getppid().unsigned_abs() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::{has_capability, Cap};

    #[test]
    fn realtime_priority_is_granted_exactly_when_permitted() {
        let result = std::thread::spawn(|| set_realtime_priority(1))
            .join()
            .unwrap();
        if has_capability(Cap::SysNice) {
            result.unwrap();
        } else if let Err(e) = result {
            assert_eq!(e.kind(), io::ErrorKind::PermissionDenied);
        }
        assert!(std::thread::spawn(|| set_realtime_priority(200))
            .join()
            .unwrap()
            .is_err());
    }

    #[test]
    fn a_thread_may_run_somewhere() {
        let cpus = thread_cpus().unwrap();
        assert!(!cpus.is_empty() && cpus.is_sorted());
    }

    #[test]
    fn timer_slack_is_what_was_set() {
        let slack = std::thread::spawn(|| {
            set_timer_slack_ns(1).unwrap();
            // SAFETY: reads one integer of the calling thread.
            unsafe { libc::prctl(libc::PR_GET_TIMERSLACK) }
        });
        assert_eq!(slack.join().unwrap(), 1);
    }

    #[test]
    fn child_dies_with_the_thread_that_started_it() {
        let child = std::thread::spawn(|| {
            let mut c = Command::new("sleep");
            c.arg("1000");
            set_command_parent_death_signal(&mut c, libc::SIGKILL)
                .spawn()
                .unwrap()
        })
        .join();
        let status = child.unwrap().wait().unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }
}
