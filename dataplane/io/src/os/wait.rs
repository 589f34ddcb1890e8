//! Waiting for descriptors with nanosecond resolution (`ppoll`).

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// At most this many descriptors in one [`poll_fds`].
pub const MAX_POLL_FDS: usize = 64;

/// Which of the descriptors given to [`poll_fds`] are ready: bit i for the i-th.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready(pub u64);

impl Ready {
    pub fn any(self) -> bool {
        self.0 != 0
    }
    /// Whether the `index`-th descriptor of the slice is readable, or has an error or hang-up to report.
    pub fn contains(self, index: usize) -> bool {
        index < MAX_POLL_FDS && self.0 >> index & 1 == 1
    }
}

/// Waits until one of `fds` is readable (or has failed) or `timeout` has passed;
/// nothing is ready then. A signal ends the wait early, as if the time had passed.
///
/// # Errors
/// `InvalidInput` for more than [`MAX_POLL_FDS`] descriptors, else what the kernel says.
pub fn poll_fds(fds: &[RawFd], timeout: Duration) -> io::Result<Ready> {
    let mut set = [libc::pollfd {
        fd: -1,
        events: 0,
        revents: 0,
    }; MAX_POLL_FDS];
    let set = set.get_mut(..fds.len()).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "more than 64 descriptors to wait for",
        )
    })?;
    for (p, &fd) in set.iter_mut().zip(fds) {
        (p.fd, p.events) = (fd, libc::POLLIN);
    }
    let ts = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
    };
    // SAFETY: `set` and `ts` live through the call and the count is that of `set`;
    // a null signal mask leaves the mask as it is.
    let n = unsafe {
        libc::ppoll(
            set.as_mut_ptr(),
            set.len() as libc::nfds_t,
            &ts,
            std::ptr::null(),
        )
    };
    if n < 0 {
        let e = io::Error::last_os_error();
        return if e.kind() == io::ErrorKind::Interrupted {
            Ok(Ready::default())
        } else {
            Err(e)
        };
    }
    let mask = set
        .iter()
        .enumerate()
        .filter(|(_, p)| p.revents != 0)
        .fold(0, |m, (i, _)| m | 1 << i);
    Ok(Ready(mask))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    #[test]
    fn tells_which_is_ready_and_keeps_to_the_timeout() {
        let (a, _a2) = UnixStream::pair().unwrap();
        let (b, mut b2) = UnixStream::pair().unwrap();
        let fds = [a.as_raw_fd(), b.as_raw_fd()];
        let t = Instant::now();
        assert!(!poll_fds(&fds, Duration::from_micros(300)).unwrap().any());
        assert!(t.elapsed() >= Duration::from_micros(300));
        b2.write_all(b"x").unwrap();
        let ready = poll_fds(&fds, Duration::from_secs(10)).unwrap();
        assert!(
            !ready.contains(0) && ready.contains(1) && !ready.contains(2) && !ready.contains(64)
        );
        assert!(poll_fds(&[0; 65], Duration::ZERO).is_err());
    }
}
