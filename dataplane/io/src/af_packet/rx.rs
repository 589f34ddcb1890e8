//! Receiving in batches (recvmmsg) with the kernel's time-stamps.

use super::messages::{self, BATCH};
use super::pool::{Pool, LARGE};
use super::socket::Socket;
use super::vnet;
use crate::os;
use crate::port::PortStats;
use mef_packet::{Checksum, HeapBuf, Instant, Meta, Packet};
use std::io;
use std::time::Duration;

/// Bytes after which the router is to work on what it has: they are still in the cache.
const CACHED: u64 = 256 << 10;
/// A frame up to this long is copied out of the buffer that it landed in.
const SHORT: usize = 2048;
/// Control data of one frame in words: a header and a timespec fit.
const CONTROL: usize = 8;

/// Where frames land.
pub(super) struct Receiver {
    vnet_hdr: bool,
    timestamps: bool,
    headers: Vec<[u8; vnet::LEN]>,
    /// Buffers for the longest frame; pages that none has touched take no memory.
    slots: Vec<HeapBuf>,
    control: Vec<[u64; CONTROL]>,
    /// Frames to ask for in one call: so many that what arrives is still in the cache when it is read.
    at_once: usize,
}

impl Receiver {
    pub fn new(vnet_hdr: bool, timestamps: bool) -> Self {
        Self {
            vnet_hdr,
            timestamps,
            headers: vec![[0; vnet::LEN]; BATCH],
            slots: (0..BATCH).map(|_| HeapBuf::with_capacity(LARGE)).collect(),
            control: vec![[0; CONTROL]; BATCH],
            at_once: BATCH,
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
        let (before, bytes_before) = (out.len(), stats.rx_bytes);
        let mut bytes = 0;
        while out.len() - before < max && bytes < CACHED {
            let want = (max - (out.len() - before)).min(self.at_once);
            let so_far = bytes;
            let got = self.receive_batch(socket, pool, stats, out, want);
            bytes = stats.rx_bytes - bytes_before;
            let of_this = (bytes - so_far).max(1);
            let fit = (got as u64 * CACHED / 2).checked_div(of_this);
            let fit = fit.map_or(BATCH, |n| usize::try_from(n).unwrap_or(BATCH));
            self.at_once = fit.clamp(4, BATCH);
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
        let mut vectors = messages::NO_PARTS;
        let mut headers = messages::empty();
        let landing = self.slots.iter_mut().zip(&mut self.headers);
        let parts = landing.zip(&mut self.control).zip(&mut vectors);
        for ((((slot, vnet), control), vector), header) in parts.zip(&mut headers).take(want) {
            let room = slot.vec_mut().spare_capacity_mut();
            let vnet = self.vnet_hdr.then_some(vnet);
            let (frame, length) = (room.as_mut_ptr().cast(), room.len());
            messages::lead(&mut header.msg_hdr, vector, vnet, frame, length);
            if self.timestamps {
                header.msg_hdr.msg_control = control.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = (CONTROL * 8) as _;
            }
        }
        // SAFETY: `want` is at most BATCH, and as many headers lead to vectors over a vnet header
        // and the unused capacity of a slot, and to CONTROL words, all of which live and are left
        // alone until the call returns.
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
        if n == 0 {
            return 0;
        }
        let (clock, now) = match self.timestamps {
            true => (Some(ClockOffset::read()), Instant::ZERO),
            false => (None, os::monotonic_now()),
        };
        let landing = self.slots.iter_mut().zip(&self.headers);
        for ((h, (slot, vnet)), control) in headers.iter().zip(landing).zip(&self.control).take(n) {
            let stamped =
                |c: &ClockOffset| c.to_monotonic(timestamp(control, h.msg_hdr.msg_controllen));
            let meta = Meta {
                rx_time: clock.as_ref().map_or(now, stamped),
                ..Meta::default()
            };
            let whole = h.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
            let header = self.vnet_hdr.then_some(vnet);
            match describe(h.msg_len as usize, header, meta).filter(|_| whole) {
                Some((length, meta)) => {
                    let buf = take(slot, length, pool);
                    stats.rx_packets += 1;
                    stats.rx_bytes += length as u64;
                    out.push(Packet { buf, meta });
                }
                None => stats.rx_missed += 1,
            }
        }
        n
    }
}

/// Length of the frame of `received` bytes, and what the header in front of it says.
fn describe(
    received: usize,
    header: Option<&[u8; vnet::LEN]>,
    mut meta: Meta,
) -> Option<(usize, Meta)> {
    let Some(header) = header else {
        meta.checksum = Checksum::Complete;
        return Some((received, meta));
    };
    let length = received.checked_sub(vnet::LEN)?;
    vnet::decode(header, &mut meta)?;
    Some((length, meta))
}

/// The frame of `length` bytes that the kernel wrote behind the content of `slot`: a long one in the
/// buffer that it landed in, which another takes the place of, a short one in a small buffer.
fn take(slot: &mut HeapBuf, length: usize, pool: &mut Pool) -> HeapBuf {
    let landed = slot.vec_mut();
    let filled = landed.len() + length.min(landed.capacity() - landed.len());
    // SAFETY: the capacity is not exceeded, and the kernel has written the `length` bytes behind
    // the first `landed.len()`; where that were more than there is room for, it has cut the frame.
    unsafe { landed.set_len(filled) };
    if length > SHORT {
        return std::mem::replace(slot, pool.get(LARGE));
    }
    let mut buf = pool.get(length);
    buf.set(mef_packet::Buffer::bytes(slot));
    slot.reset();
    buf
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
