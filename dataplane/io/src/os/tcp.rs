//! What the kernel says of a TCP socket (TCP_INFO) and which congestion control it is to use.

use std::io;
use std::os::fd::RawFd;

/// The fields of the kernel's `struct tcp_info` that measurements use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// As in `enum tcp_state`: 1 established, 2 SYN sent, 7 closed ...
    pub state: u8,
    /// Smoothed round-trip time and its variation.
    pub rtt_us: u32,
    pub rttvar_us: u32,
    /// Least round-trip time seen lately; `u32::MAX` before the first sample.
    pub min_rtt_us: u32,
    pub snd_mss: u32,
    pub rcv_mss: u32,
    /// Congestion window, segments.
    pub snd_cwnd: u32,
    /// Sent and not acknowledged, segments.
    pub unacked: u32,
    /// Segments sent again since the start.
    pub total_retrans: u32,
    /// Data segments sent and received.
    pub data_segs_out: u32,
    pub data_segs_in: u32,
    /// Payload acknowledged by the peer, and received in order.
    pub bytes_acked: u64,
    pub bytes_received: u64,
    /// Payload sent, retransmissions included; 0 before Linux 4.19.
    pub bytes_sent: u64,
    /// Payload sent again; 0 before Linux 4.19.
    pub bytes_retrans: u64,
    /// In the send queue and not yet sent, bytes.
    pub notsent_bytes: u32,
    /// Delivery rate that the kernel has measured, bytes/s.
    pub delivery_rate: u64,
    /// Pacing rate, bytes/s; `u64::MAX` when not paced.
    pub pacing_rate: u64,
}

impl TcpInfo {
    /// Reads the kernel's structure; what an older kernel does not give is zero.
    fn from_bytes(b: &[u8]) -> Self {
        let u32_at = |at: usize| {
            b.get(at..at + 4)
                .and_then(|s| s.try_into().ok())
                .map_or(0, u32::from_ne_bytes)
        };
        let u64_at = |at: usize| {
            b.get(at..at + 8)
                .and_then(|s| s.try_into().ok())
                .map_or(0, u64::from_ne_bytes)
        };
        Self {
            state: b.first().copied().unwrap_or(0),
            snd_mss: u32_at(16),
            rcv_mss: u32_at(20),
            unacked: u32_at(24),
            rtt_us: u32_at(68),
            rttvar_us: u32_at(72),
            snd_cwnd: u32_at(80),
            total_retrans: u32_at(100),
            pacing_rate: u64_at(104),
            bytes_acked: u64_at(120),
            bytes_received: u64_at(128),
            notsent_bytes: u32_at(144),
            min_rtt_us: u32_at(148),
            data_segs_in: u32_at(152),
            data_segs_out: u32_at(156),
            delivery_rate: u64_at(160),
            bytes_sent: u64_at(200),
            bytes_retrans: u64_at(208),
        }
    }
}

/// TCP_INFO of a connected TCP socket. (TCP counts the SYN and FIN in `bytes_acked`.)
///
/// # Errors
/// What the kernel says: EBADF, or ENOPROTOOPT for what is no TCP socket.
pub fn tcp_info(fd: RawFd) -> io::Result<TcpInfo> {
    let mut raw = [0u8; 512];
    let mut len = raw.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `raw`; both live through the call.
    let r = unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            raw.as_mut_ptr().cast(),
            &mut len,
        )
    };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(TcpInfo::from_bytes(raw.get(..len as usize).unwrap_or(&raw)))
}

/// Sets the congestion control of a TCP socket, "cubic" or "bbr" for example.
///
/// # Errors
/// `NotFound` (ENOENT) if the kernel does not have it (`modprobe tcp_bbr`; see
/// `/proc/sys/net/ipv4/tcp_available_congestion_control`), `PermissionDenied` if
/// only root may use it.
pub fn set_tcp_congestion(fd: RawFd, algorithm: &str) -> io::Result<()> {
    // SAFETY: the kernel reads `algorithm.len()` bytes from it during the call.
    let r = unsafe {
        libc::setsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_CONGESTION,
            algorithm.as_ptr().cast(),
            algorithm.len() as libc::socklen_t,
        )
    };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    #[test]
    fn counts_what_was_sent_over_loopback() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        set_tcp_congestion(client.as_raw_fd(), "reno").unwrap();
        assert!(set_tcp_congestion(client.as_raw_fd(), "no-such").is_err());
        client.write_all(&[7; 100_000]).unwrap();
        let mut got = vec![0; 100_000];
        server.read_exact(&mut got).unwrap();
        server.write_all(b"seen").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
        let (c, s) = (
            tcp_info(client.as_raw_fd()).unwrap(),
            tcp_info(server.as_raw_fd()).unwrap(),
        );
        assert_eq!((c.state, c.bytes_received), (1, 4));
        assert!((100_000..=100_001).contains(&c.bytes_acked), "{c:?}");
        assert_eq!(c.bytes_sent - c.bytes_retrans, 100_000);
        assert_eq!(s.bytes_received, 100_000);
        assert!(c.rtt_us > 0 && c.snd_mss > 1000 && c.snd_cwnd > 0, "{c:?}");
        assert!(tcp_info(-1).is_err());
    }
}
