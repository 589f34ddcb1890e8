//! A connection to a host that the test plays, segment by segment.

use std::time::Duration;

use super::super::wire::{parse_tcp, Outgoing, SynOptions, ACK, SYN};
use super::super::{Endpoint, HostTcp, Role};
use super::*;

/// The host's initial sequence number.
pub const IRS: u32 = 1_000_000;
pub const MS: Duration = Duration::from_millis(1);
pub const SEG: u32 = 1460;

/// A connection to a host that the test plays.
pub struct Played {
    pub now: Instant,
    pub tcp: Endpoint,
    /// Our initial sequence number.
    pub iss: u32,
    pub timestamps: bool,
}

impl Played {
    /// Established, with SACK and, if wanted, time-stamps, 20 ms after the SYN-ACK.
    pub fn new(timestamps: bool) -> Self {
        Self::with(timestamps, config(7), 20 * MS)
    }

    /// The same with this configuration and distance.
    pub fn with(timestamps: bool, config: HostTcpConfig, rtt: Duration) -> Self {
        let now = Instant::from_millis(10_000);
        let role = Role::Passive {
            local: SERVER,
            remote: CLIENT,
        };
        let tcp = Endpoint::new(now, role, &config).unwrap();
        let mut p = Self {
            now,
            tcp,
            iss: 0,
            timestamps,
        };
        let syn = Outgoing {
            window: 65_535,
            syn: Some(SynOptions {
                mss: Some(1460),
                window_scale: Some(7),
                sack_permitted: true,
                timestamps: None,
            }),
            timestamps: timestamps.then_some((5000, 0)),
            ..Outgoing::new(CLIENT, SERVER, IRS, 0, SYN)
        };
        p.give(&syn.to_packet());
        let answer = p.take();
        p.iss = parse_tcp(&answer[0]).unwrap().seq;
        p.now += rtt;
        p.ack(0, &[]);
        assert!(p.tcp.state().established);
        p
    }

    pub fn give(&mut self, packet: &[u8]) {
        self.tcp.handle_segment(self.now, packet).unwrap();
    }

    pub fn take(&mut self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut out = Vec::new();
        while let Some(meta) = self.tcp.poll_transmit(self.now, &mut out) {
            all.extend(cut(&out, meta));
        }
        all
    }

    /// What leaves now, as offsets of our stream and lengths.
    pub fn pieces(&mut self) -> Vec<(u32, usize)> {
        self.take()
            .iter()
            .map(|p| {
                let s = parse_tcp(p).unwrap();
                (s.seq.wrapping_sub(self.iss + 1), s.payload.len())
            })
            .collect()
    }

    /// A segment of the host's at an offset of its stream, acknowledging ours up to another.
    pub fn segment(&self, offset: u32, acked: u32, flags: u8) -> Outgoing<'static> {
        let stamp = 5000 + (self.now.as_millis() - 10_000) as u32;
        Outgoing {
            window: 1000,
            timestamps: self.timestamps.then_some((stamp, 0)),
            ..Outgoing::new(
                CLIENT,
                SERVER,
                IRS.wrapping_add(1 + offset),
                self.iss.wrapping_add(1 + acked),
                flags,
            )
        }
    }

    pub fn ack(&mut self, acked: u32, blocks: &[(u32, u32)]) {
        let base = self.iss.wrapping_add(1);
        let blocks: Vec<(u32, u32)> = blocks
            .iter()
            .map(|&(a, b)| (base.wrapping_add(a), base.wrapping_add(b)))
            .collect();
        let mut s = self.segment(0, acked, ACK);
        s.sack = &blocks;
        let packet = s.to_packet();
        self.give(&packet);
    }

    pub fn data(&self, offset: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut s = self.segment(offset, 0, flags);
        s.payload_len = payload.len();
        let mut p = s.to_packet();
        p.extend_from_slice(payload);
        p
    }

    /// Time goes on to the next timer, which is that much away.
    pub fn wait(&mut self) -> Duration {
        let at = self.tcp.poll_timeout().unwrap();
        let waited = at.since(self.now);
        self.now = self.now.max(at);
        waited
    }
}
