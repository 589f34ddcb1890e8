//! What remains of a connection after both FINs: enough to acknowledge a
//! repeated FIN (RFC 9293 §3.6.1) and to tell a new connection on the same
//! ports from a late duplicate. A record of a few words, not a socket.

use std::net::SocketAddr;

use super::wire::{parse_tcp, seq_diff, Outgoing, Segment, ACK, RST, SYN};

/// A finished connection. How long it is kept (2 MSL) is the caller's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeWait {
    /// Whom the router stood in for.
    pub local: SocketAddr,
    /// The host.
    pub remote: SocketAddr,
    /// The sequence number after our FIN.
    pub snd_nxt: u32,
    /// The sequence number after the host's FIN.
    pub rcv_nxt: u32,
    /// The time-stamps of the last segments, ours and the host's (RFC 7323), if they were in use:
    /// there are hosts that hear nothing without.
    pub timestamps: Option<(u32, u32)>,
}

impl TimeWait {
    fn segment<'a>(&self, ip_packet: &'a [u8]) -> Option<Segment<'a>> {
        parse_tcp(ip_packet).filter(|s| s.src == self.remote && s.dst == self.local)
    }

    /// The acknowledgement of everything, an IP packet whose TCP checksum is partial.
    pub fn ack(&self) -> Vec<u8> {
        Outgoing {
            // Nothing more is expected, but a zero window would make some hosts probe it.
            window: u16::MAX,
            timestamps: self.timestamps,
            ..Outgoing::new(self.local, self.remote, self.snd_nxt, self.rcv_nxt, ACK)
        }
        .to_packet()
    }

    /// The answer to a segment of this connection: an acknowledgement to whatever takes
    /// sequence space or is a keep-alive, nothing to plain acknowledgements, nor to RST (RFC 1337).
    pub fn answer(&self, ip_packet: &[u8]) -> Option<Vec<u8>> {
        let s = self.segment(ip_packet)?;
        let probes = s.seq_len() > 0 || seq_diff(s.seq, self.rcv_nxt) < 0;
        (!s.has(RST) && probes).then(|| self.ack())
    }

    /// Whether the packet is a SYN that may open a new connection on the same ports: its
    /// sequence number is beyond the old one's (RFC 9293 §3.6.1, MAY-2). The caller then drops the record.
    pub fn may_reopen(&self, ip_packet: &[u8]) -> bool {
        self.segment(ip_packet).is_some_and(|s| {
            s.has(SYN) && !s.has(ACK) && !s.has(RST) && seq_diff(s.seq, self.rcv_nxt) > 0
        })
    }
}
