//! Receiving in batches (recvmmsg) with the kernel's time-stamps.

use super::pool::{Pool, LARGE};
use super::socket::Socket;
use super::vnet;
use crate::os;
use crate::port::PortStats;
use mef_packet::{Checksum, HeapBuf, Instant, Meta, Packet};
use std::io;
use std::time::Duration;

/// Frames that one system call takes at most.
const BATCH: usize = 64;
/// A landing slot: header and frame, rounded up to pages.
const SLOT: usize = (vnet::LEN + LARGE).next_multiple_of(4096);
/// Control data of one frame in words: a header and a timespec fit.
const CONTROL: usize = 8;

/// The landing slots.
pub(super) struct Receiver {
    vnet_hdr: bool,
    /// `BATCH` slots of `SLOT` bytes; pages that no long frame has touched take no memory.
    slots: Vec<u8>,
    control: Vec<[u64; CONTROL]>,
}

impl Receiver {
    pub fn new(vnet_hdr: bool) -> Self {
        Self {
            vnet_hdr,
            slots: vec![0; BATCH * SLOT],
            control: vec![[0; CONTROL]; BATCH],
        }
    }

    /// See `Port::rx`.
    pub fn receive(
        &mut self,
        socket: &Socket,
        pool: &mut Pool,
        stats: &mut PortStats,
        out: &mut Vec<Packet<HeapBuf>>,
        max: usize,
    ) -> usize {
        let before = out.len();
        while out.len() - before < max {
            let want = (max - (out.len() - before)).min(BATCH);
            let got = self.receive_batch(socket, pool, stats, out, want);
            if got < want {
                break;
            }
        }
        out.len() - before
    }

    /// One system call; returns how many frames the kernel gave, good or not.
    fn receive_batch(
        &mut self,
        socket: &Socket,
        pool: &mut Pool,
        stats: &mut PortStats,
        out: &mut Vec<Packet<HeapBuf>>,
        want: usize,
    ) -> usize {
        let mut vectors = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: SLOT,
        }; BATCH];
        // SAFETY: mmsghdr is integers and raw pointers, for which zeroes are valid.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        let slots = self.slots.chunks_exact_mut(SLOT);
        let parts = slots.zip(&mut self.control).zip(&mut vectors);
        for (((slot, control), vector), header) in parts.zip(&mut headers).take(want) {
            vector.iov_base = slot.as_mut_ptr().cast();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = (CONTROL * 8) as _;
        }
        // SAFETY: `want` is at most BATCH, and as many headers lead to a vector over a slot of
        // SLOT bytes and to CONTROL words, all of which live and are left alone until the call returns.
        let n = unsafe {
            libc::recvmmsg(
                socket.fd(),
                headers.as_mut_ptr(),
                want as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        if n < 0 {
            // EINVAL: a frame that its header cannot describe; it is gone. Anything else, such
            // as EAGAIN or ENETDOWN, means that there is nothing to be had now.
            let lost = io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL);
            stats.rx_missed += u64::from(lost);
            return 0;
        }
        let n = usize::try_from(n).unwrap_or(0).min(want);
        let clock = ClockOffset::read();
        let slots = self.slots.chunks_exact(SLOT);
        for ((h, slot), control) in headers.iter().zip(slots).zip(&self.control).take(n) {
            let frame = slot
                .get(..h.msg_len as usize)
                .filter(|_| h.msg_hdr.msg_flags & libc::MSG_TRUNC == 0);
            let stamp = timestamp(control, h.msg_hdr.msg_controllen);
            match frame.and_then(|f| self.packet(f, pool, clock.to_monotonic(stamp))) {
                Some(packet) => {
                    stats.rx_packets += 1;
                    stats.rx_bytes += mef_packet::Buffer::len(&packet.buf) as u64;
                    out.push(packet);
                }
                None => stats.rx_missed += 1,
            }
        }
        n
    }

    fn packet(
        &self,
        received: &[u8],
        pool: &mut Pool,
        rx_time: Instant,
    ) -> Option<Packet<HeapBuf>> {
        let mut meta = Meta {
            rx_time,
            ..Meta::default()
        };
        let frame = if self.vnet_hdr {
            let (header, frame) = received.split_first_chunk::<{ vnet::LEN }>()?;
            vnet::decode(header, &mut meta)?;
            frame
        } else {
            meta.checksum = Checksum::Complete;
            received
        };
        let mut buf = pool.get(frame.len());
        buf.set(frame);
        Some(Packet { buf, meta })
    }
}

/// Nanoseconds since 1970 from the control data of one frame (cmsg(3)), if it has a time-stamp.
fn timestamp(control: &[u64; CONTROL], len: usize) -> Option<u64> {
    // struct cmsghdr { size_t len; int level; int type; } and, aligned to a word, the data.
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let mut bytes = [0u8; CONTROL * 8];
    for (b, w) in bytes.chunks_exact_mut(8).zip(control) {
        b.copy_from_slice(&w.to_ne_bytes());
    }
    let int = |at: usize| {
        bytes
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(i32::from_ne_bytes)
    };
    let long = |at: usize| {
        bytes
            .get(at..at + 8)
            .and_then(|b| b.try_into().ok())
            .map(i64::from_ne_bytes)
    };
    let (level, kind) = (int(HEADER - 8)?, int(HEADER - 4)?);
    if len < HEADER + 16 || level != libc::SOL_SOCKET || kind != libc::SO_TIMESTAMPNS {
        return None;
    }
    let (seconds, nanos) = (
        u64::try_from(long(HEADER)?).ok()?,
        u64::try_from(long(HEADER + 8)?).ok()?,
    );
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

/// Both clocks read together: the kernel stamps frames by the clock on the wall.
struct ClockOffset {
    monotonic: Instant,
    realtime: u64,
}

impl ClockOffset {
    /// A thread may lose its processor between the two readings: of a few attempts
    /// the one that took least counts.
    fn read() -> Self {
        let mut best = (
            Duration::MAX,
            Self {
                monotonic: Instant::ZERO,
                realtime: 0,
            },
        );
        for _ in 0..4 {
            let before = os::monotonic_now();
            let realtime = os::realtime_nanos();
            let monotonic = os::monotonic_now();
            let took = monotonic.since(before);
            if took < best.0 {
                best = (
                    took,
                    Self {
                        monotonic,
                        realtime,
                    },
                );
            }
            if took < Duration::from_micros(2) {
                break;
            }
        }
        best.1
    }

    /// A stamp on the monotonic clock; now if it lies in the future, as it may after
    /// the clock on the wall was set back, or if there is none. (Until the kernel has
    /// begun to stamp, milliseconds after the first socket that wants it was opened,
    /// it gives the time of reading.)
    fn to_monotonic(&self, stamp: Option<u64>) -> Instant {
        let age = stamp.map_or(0, |s| self.realtime.saturating_sub(s));
        Instant::from_nanos(self.monotonic.as_nanos().saturating_sub(age))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_move_to_the_monotonic_clock() {
        let clock = ClockOffset {
            monotonic: Instant::from_nanos(5_000),
            realtime: 1_000_000,
        };
        assert_eq!(
            clock.to_monotonic(Some(999_000)),
            Instant::from_nanos(4_000)
        );
        assert_eq!(
            clock.to_monotonic(Some(1_000_500)),
            Instant::from_nanos(5_000)
        );
        assert_eq!(clock.to_monotonic(None), Instant::from_nanos(5_000));
        assert_eq!(clock.to_monotonic(Some(1)), Instant::ZERO);
    }

    #[test]
    fn control_data_without_a_stamp_is_none() {
        let mut control = [0u64; CONTROL];
        assert_eq!(timestamp(&control, 64), None);
        control[0] = 32;
        control[1] = u64::from_ne_bytes({
            let mut b = [0; 8];
            b[..4].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
            b[4..].copy_from_slice(&libc::SO_TIMESTAMPNS.to_ne_bytes());
            b
        });
        (control[2], control[3]) = (3, 7);
        assert_eq!(timestamp(&control, 32), Some(3_000_000_007));
        assert_eq!(timestamp(&control, 31), None);
    }
}
