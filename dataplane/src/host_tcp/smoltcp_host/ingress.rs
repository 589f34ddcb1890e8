//! What arrives from the host: what smoltcp gets to see of it and in which
//! form, what is answered here, and what it changed.

use smoltcp::socket::tcp::State;

use super::super::{rst_for, End, SegmentError, TimeWait};
use super::segment::{
    self, seq_diff, Header, Segment, SynOptions, Unreachable, ACK, FIN, IPV4_HEADER, RST, SYN,
    TCP_HEADER,
};
use super::{SmoltcpHost, DEFAULT_MSS};

/// Most payload of a super-segment, bytes: with any headers it stays below 64 KiB.
const SUPER_SEGMENT: u16 = 65_000;
/// Smallest segment size believed, as in Linux (`TCP_MIN_SND_MSS`).
const MIN_MSS: u16 = 48;
/// Smallest next-hop MTU believed from an ICMP message, as in Linux (`min_pmtu`).
const MIN_PATH_MTU: u16 = 552;

impl SmoltcpHost {
    pub(super) fn handle_tcp(&mut self, packet: &[u8], s: &Segment<'_>) {
        if let Some(record) = self.time_wait {
            if let Some(ack) = record.answer(packet) {
                self.reply(ack);
            }
            return;
        }
        if self.end.is_some() {
            if let Some(rst) = rst_for(packet) {
                self.reply(rst);
            }
            return;
        }
        let before = self.socket().state();
        if s.has(SYN) {
            self.handle_syn(before, packet, s);
        } else if s.has(RST) {
            self.handle_rst(before, packet, s);
        } else {
            self.handle_data(packet, s);
        }
        self.note_progress(before, s);
    }

    fn handle_syn(&mut self, before: State, packet: &[u8], s: &Segment<'_>) {
        let opens = match before {
            State::Listen => !s.has(ACK),
            State::SynSent => s.has(ACK) && self.snd_nxt == Some(s.ack),
            _ => false,
        };
        match before {
            _ if s.has(RST) || s.has(FIN) => {}
            _ if opens => {
                let syn = self.rewritten_syn(s);
                self.irs = Some(s.seq);
                if before == State::SynSent {
                    self.window_edge = Some(s.seq.wrapping_add(1 + u32::from(self.syn_window)));
                    if s.syn_options().window_scale.is_none() {
                        self.window_shift = 0;
                    }
                }
                self.feed(&syn);
            }
            // A SYN|ACK for another SYN than ours draws a RST; a crossing SYN is not a case for
            // a split flow, and the host's next one will find another answer.
            State::SynSent => {
                if let Some(rst) = rst_for(packet).filter(|_| s.has(ACK)) {
                    self.reply(rst);
                }
            }
            // The SYN once more: the SYN-ACK goes out again by its timer.
            State::Listen | State::SynReceived => {}
            // RFC 5961 §4.2: the host either has forgotten the connection and resets it on
            // seeing where it stands, or this is not the host.
            _ => self.challenge(),
        }
    }

    fn handle_rst(&mut self, before: State, packet: &[u8], s: &Segment<'_>) {
        match (before, self.rcv_nxt()) {
            (State::SynSent | State::Listen, _) | (_, None) => self.feed(packet),
            // RFC 5961 §3.2: only the exact sequence number resets, so that no byte sent before
            // it is skipped; anything else in the window is asked to prove itself.
            (_, Some(expected)) => {
                let offset = seq_diff(s.seq, expected);
                if offset == 0 {
                    self.feed(packet);
                } else if usize::try_from(offset).is_ok_and(|o| o < self.window(expected)) {
                    self.challenge();
                }
            }
        }
    }

    /// Hands over a segment, cut at the edge of the window. smoltcp would cut it too, but takes
    /// a FIN behind the cut for received, and until its first acknowledgement believes the
    /// window to be what the SYN's unscaled field would be if it were scaled.
    fn handle_data(&mut self, packet: &[u8], s: &Segment<'_>) {
        let Some(expected) = self.rcv_nxt() else {
            return self.feed(packet);
        };
        let window = self.window(expected);
        let offset = i64::from(seq_diff(s.seq, expected));
        let beyond = offset + s.payload_len as i64 - window as i64;
        if beyond <= 0 || s.payload_len == 0 {
            return self.feed(packet);
        }
        let keep = usize::try_from(s.payload_len as i64 - beyond).unwrap_or(0);
        if keep == 0 {
            // A window probe, or a host that does not heed the window.
            self.acknowledge();
        }
        if keep > 0 || offset == 0 {
            let cut = segment::truncated(packet, s, keep);
            self.feed(&cut);
        }
    }

    pub(super) fn handle_unreachable(&mut self, u: &Unreachable) -> Result<(), SegmentError> {
        if (u.src, u.dst) != (self.local, self.remote) {
            return Err(SegmentError::WrongFlow);
        }
        // RFC 5927 §4.1: it must quote a segment in flight. SYN and FIN count one each.
        let in_flight = self.socket().send_queue() as i64 + 2;
        let age = self.snd_nxt.map_or(-1, |n| i64::from(seq_diff(n, u.seq)));
        if age < 1 || age > in_flight || self.end.is_some() {
            return Err(SegmentError::StaleIcmp);
        }
        if u.code == 4 {
            let mtu = u.mtu.max(MIN_PATH_MTU);
            self.send_mss = self.send_mss.min(mtu - (IPV4_HEADER + TCP_HEADER) as u16);
        } else if !self.established {
            self.end = Some(End::Unreachable { code: u.code });
            self.mute = true;
        }
        Ok(())
    }

    /// Reads off the socket what the segment `s` changed.
    fn note_progress(&mut self, before: State, s: &Segment<'_>) {
        let after = self.socket().state();
        match after {
            State::Established | State::FinWait1 => self.established = true,
            State::FinWait2 => self.fin_acknowledged = true,
            State::CloseWait | State::LastAck | State::Closing => {
                self.established = true;
                self.fin_received = true;
            }
            State::TimeWait => {
                self.fin_received = true;
                self.fin_acknowledged = true;
                self.retire();
            }
            State::Closed | State::Listen if s.has(RST) && before != after => {
                self.end = Some(match before {
                    State::SynSent => End::Refused,
                    _ => End::ResetByPeer,
                });
                self.mute = true;
            }
            State::Closed if before == State::LastAck => {
                self.fin_acknowledged = true;
                self.retire();
            }
            _ => {}
        }
        self.close_if_due();
    }

    /// Both FINs are through: the record takes over, because smoltcp would forget unread bytes
    /// at the end of its own TIME-WAIT.
    fn retire(&mut self) {
        if let (Some(rcv_nxt), Some(snd_nxt)) = (self.rcv_nxt(), self.snd_nxt) {
            let (local, remote) = (self.local, self.remote);
            let record = TimeWait {
                local,
                remote,
                snd_nxt,
                rcv_nxt,
                timestamps: None,
            };
            if self.socket().state() == State::TimeWait {
                self.reply(record.ack());
            }
            self.time_wait = Some(record);
        }
        self.mute = true;
    }

    /// The SYN as smoltcp is to see it: a segment size that makes super-segments of whole
    /// segments, the window scale and SACK as offered, no other option and no data.
    fn rewritten_syn(&mut self, s: &Segment<'_>) -> Vec<u8> {
        let offered = s.syn_options();
        self.remote_mss = match offered.mss {
            None | Some(0) => DEFAULT_MSS,
            Some(mss) => mss.max(MIN_MSS),
        };
        self.send_mss = self.remote_mss.min(self.local_mss);
        Header {
            src: s.src,
            dst: s.dst,
            seq: s.seq,
            ack: s.ack,
            flags: s.flags & (SYN | ACK),
            window: s.window,
            syn: SynOptions {
                mss: Some(SUPER_SEGMENT / self.send_mss * self.send_mss),
                ..offered
            },
        }
        .to_packet()
    }
}
