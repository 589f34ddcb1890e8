//! Split TCP: the host is answered here, its bytes travel as a reliable stream.
//!
//! ```text
//!   host A     ingress edge                link                egress edge     host B
//!   SYN ----> [held: confirm | answered: early] - SETUP ------> SYN --------->
//!                                               <----- OPENED -              <- SYN-ACK
//!         <- SYN-ACK (confirm)
//!   bytes --> HostTcp -> stream ======================> stream -> HostTcp --> bytes
//!   FIN ----> once all is read ----- FIN(offset) -----------> FIN -------------->
//!   RST ----> behind what was read - RESET(offset) ---------> RST, behind those bytes or after 1 s
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use mef_io::Port;
use mef_packet::wire::{ecn, ip, tcp};
use mef_packet::{Buffer, Instant, PortId};
use mef_protocol::chunks::Use;
use mef_protocol::codec::Setup;
use mef_protocol::link::{Event, Opening};
use mef_protocol::send_stream::End as StreamEnd;

use super::pipeline::{dropped, Step, Stop};
use super::route::Classified;
use super::{host_memory, Router};
use crate::config::{OpenMode, PeerId};
use crate::drops::{DropReason, Stage};
use crate::fib::Route;
use crate::flow_table::{FlowKey, SplitFlow};
use crate::half_open::HeldSyn;
use crate::host_tcp::{self, End, Endpoint, HostTcp, HostTcpConfig, Role};
use crate::icmp::IcmpError;

/// Why a flow was refused, on the wire.
mod refusal {
    pub const RST: u8 = 0;
    pub const UNREACHABLE: u8 = 1;
    pub const PROHIBITED: u8 = 2;
    pub const TIMED_OUT: u8 = 3;
    /// The host here opens the same connection: it goes on as datagrams.
    pub const CROSSING: u8 = 4;
}

/// A reset is delivered behind its bytes, but no later than this.
const RESET_PATIENCE: Duration = Duration::from_secs(1);
/// How long a host may leave what was sent to it unacknowledged (RFC 9293's R2 is at least 100 s).
const HOST_PATIENCE: Duration = Duration::from_secs(120);

/// Room for the headers of a segment, and for the longest segment.
const MOST_HEADERS: usize = 128;
const LONGEST_SEGMENT: usize = 65_535;

impl<P: Port> Router<P> {
    pub(super) fn mark(&mut self, index: usize) {
        if let Some(f) = self.flows.get_mut(index) {
            if !f.dirty {
                f.dirty = true;
                self.dirty.push(index);
            }
        }
    }

    fn host_config(&mut self, port: PortId) -> HostTcpConfig {
        let entropy = (self.seed.entropy)();
        let mut seed = [0; 8];
        seed.copy_from_slice(entropy.get(..8).unwrap_or(&[0; 8]));
        HostTcpConfig {
            local_mtu: self.ports.get(usize::from(port.0)).map_or(1500, |p| p.mtu),
            isn_seed: u64::from_be_bytes(seed),
            timeout: Some(HOST_PATIENCE),
            pardon: self.config.port(port).is_none_or(|p| p.pardon_losses),
            rx_buffer: usize::try_from(self.config.host_buffer.0).unwrap_or(usize::MAX),
            tx_buffer: usize::try_from(self.config.host_buffer.0).unwrap_or(usize::MAX),
        }
    }

    /// A TCP packet from a host for a host behind `peer`.
    pub(super) fn carry_split(
        &mut self,
        now: Instant,
        peer: PeerId,
        mut from: Classified<P::Buf>,
    ) -> Step<()> {
        let t = from.tuple;
        let bytes = from.packet.buf.bytes();
        let key = FlowKey {
            host: SocketAddr::new(t.source, t.source_port),
            far: SocketAddr::new(t.destination, t.port),
        };
        let (flags, mss, seq, length) = match ip::View::parse_unverified(bytes) {
            Ok(v) if v.is_fragment() => {
                return dropped(Stage::Carry, DropReason::FragmentUnsupported)
            }
            Ok(v) => match tcp::View::parse(v.payload()) {
                Ok(s) => (s.flags(), mss_of(&s), s.seq(), s.payload().len()),
                Err(e) => return dropped(Stage::Carry, e),
            },
            Err(e) => return dropped(Stage::Carry, e),
        };
        if let Some(index) = self.flows.by_key(&key) {
            let Some(f) = self.flows.get_mut(index) else {
                return Ok(());
            };
            match &mut f.host {
                Some(host) => {
                    let asks =
                        length <= 1 && host.is_just_below_window(seq) && host.is_keep_alive(bytes);
                    if asks && self.holds_keep_alive(now, index) {
                        return Ok(());
                    }
                    let Some(f) = self.flows.get_mut(index) else {
                        return Ok(());
                    };
                    let Some(host) = &mut f.host else {
                        return Ok(());
                    };
                    let at = self.places.get(usize::from(f.peer.0));
                    let lines = &mut self.lines;
                    let link = at
                        .and_then(|&(line, place)| lines.get_mut(line)?.peers.get_mut(place))
                        .filter(|_| f.accepted)
                        .map(|p| &mut p.link);
                    let taken = match link {
                        // What comes in order need not be kept here first.
                        Some(link) => host.handle_segment_into(now, bytes, &mut |bytes| {
                            let room = link.write_room(&self.pool, f.number).min(bytes.len());
                            let part = bytes.get(..room).unwrap_or(&[]);
                            link.write(&mut self.pool, f.number, part)
                        }),
                        None => host.handle_segment(now, bytes),
                    };
                    if taken.is_err() {
                        return dropped(Stage::Carry, DropReason::UnknownFlow);
                    }
                    self.mark(index);
                    self.recycle(from.port, from.packet.buf);
                }
                // A host that gives up while its SYN is held back.
                None if flags.contains(tcp::Flags::RST) => self.close(now, index, true),
                None => return self.syn_again(now, index, from),
            }
            return Ok(());
        }
        let syn = flags.contains(tcp::Flags::SYN)
            && !flags.intersects(tcp::Flags(
                tcp::Flags::ACK.0 | tcp::Flags::RST.0 | tcp::Flags::FIN.0,
            ));
        if let Some(record) = self.flows.time_wait(&key) {
            if !(syn && record.may_reopen(bytes)) {
                if let Some(answer) = record.answer(bytes) {
                    self.send_segment(now, &answer, 0);
                }
                return Err(Stop::Done);
            }
            self.flows.forget_time_wait(&key);
        }
        if !syn {
            self.half_open.take(&key);
            return match self.stray_segment(now, bytes)? {
                true => self.carry_datagram(now, peer, from),
                false => Ok(()),
            };
        }
        // It may have to go on as a datagram.
        Self::complete_checksum(&mut from.packet)?;
        let bytes = from.packet.buf.bytes();
        let dscp = ecn::traffic_class(bytes).unwrap_or(0) >> 2;
        let setup = Setup {
            source: key.host,
            destination: key.far,
            weight: from.treatment.weight as f32,
            early: from.treatment.open == OpenMode::Early,
            mss,
            class: from.treatment.class,
            dscp,
        };
        self.admit_syn(
            now,
            HeldSyn {
                peer,
                port: from.port,
                setup,
                packet: bytes.into(),
            },
        )
    }

    /// Lets the host's SYN, held until now, open its connection.
    pub(super) fn answer_host(&mut self, now: Instant, index: usize) {
        let Some((key, port)) = self.flows.get(index).map(|f| (f.key, f.port)) else {
            return;
        };
        let config = self.host_config(port);
        let Some(f) = self.flows.get_mut(index) else {
            return;
        };
        let Some(syn) = f.syn.take() else { return };
        match Endpoint::new(
            now,
            Role::Passive {
                local: key.far,
                remote: key.host,
            },
            &config,
        ) {
            Ok(mut host) => {
                host.begin_with_window(host_memory::first_window(&self.pool));
                if host.handle_segment(now, &syn).is_err() {
                    self.counters.count(Stage::Carry, DropReason::BadLength);
                }
                if let Some(f) = self.flows.get_mut(index) {
                    f.host = Some(host);
                }
                self.recount(index);
                self.mark(index);
            }
            Err(_) => self.close(now, index, true),
        }
    }

    /// Everything that the links have to tell.
    pub(super) fn take_link_events(&mut self, now: Instant) {
        for id in 0..self.places.len() {
            let id = PeerId(u16::try_from(id).unwrap_or(u16::MAX));
            while let Some(event) = self.peer_mut(id).and_then(|p| p.link.poll_event()) {
                self.counters.at_link(id.0);
                match event {
                    Event::Setup { flow, setup } => self.open_towards_host(now, id, flow, setup),
                    Event::Flow(number) => {
                        if let Some(index) = self.flows.by_number(id, number) {
                            self.mark(index);
                        }
                    }
                    Event::Datagram(mut bytes) => {
                        if let Err(Stop::Drop(stage, reason)) =
                            self.deliver_datagram(now, id, &mut bytes)
                        {
                            self.counters.count(stage, reason);
                        }
                        if let Some(p) = self.peer_mut(id) {
                            p.link.recycle(bytes);
                        }
                    }
                    Event::PeerRestarted { flows } => {
                        for number in flows {
                            if let Some(index) = self.flows.by_number(id, number) {
                                self.tell_gone(now, index);
                                self.reset_host(now, index);
                            }
                        }
                    }
                    Event::AliveAsked { flow } => self.alive_asked(now, id, flow),
                    Event::Heard { flow, ago } => self.far_heard(now, id, flow, ago),
                    Event::Gone { host, far } => self.gone_before(now, id, host, far),
                    Event::Up => {
                        tracing::info!(peer = self.peer_name(id), "link is up");
                        self.learn_lanes(id);
                    }
                    Event::Silent => tracing::warn!(
                        peer = self.peer_name(id),
                        "nothing acknowledged: only probes are sent"
                    ),
                    Event::Resumed => {
                        tracing::info!(peer = self.peer_name(id), "acknowledgements are back")
                    }
                    Event::PathResponse(token) => self.path_answered(now, id, token),
                    Event::PathMtu(mtu) => {
                        tracing::info!(peer = self.peer_name(id), mtu, "path MTU")
                    }
                }
            }
        }
        self.counters.elsewhere();
    }

    pub(super) fn peer_name(&self, id: PeerId) -> &str {
        self.config.peer(id).map_or("?", |p| p.name.as_str())
    }

    /// The peer's host wants a connection to one of ours.
    fn open_towards_host(&mut self, now: Instant, peer: PeerId, number: u32, setup: Setup) {
        let refused = if !self.fib.source_allowed(peer, &setup.source.ip()) {
            Some((DropReason::SourceNotAllowed, refusal::PROHIBITED))
        } else if self.draining.is_some() {
            Some((DropReason::Draining, refusal::UNREACHABLE))
        } else {
            match self.fib.lookup(setup.destination.ip()) {
                Some(Route::Connected { .. } | Route::Via { .. }) => None,
                Some(_) => Some((DropReason::DestinationNotAllowed, refusal::PROHIBITED)),
                None => Some((DropReason::NoRoute, refusal::UNREACHABLE)),
            }
        };
        let port = match self.fib.lookup(setup.destination.ip()) {
            Some(Route::Connected { port } | Route::Via { port, .. }) => port,
            _ => PortId(0),
        };
        let key = FlowKey {
            host: setup.destination,
            far: setup.source,
        };
        if refused.is_none() && self.crosses(now, key) {
            self.with_link(peer, |link, pool| {
                link.refuse(now, pool, number, refusal::CROSSING)
            });
            return;
        }
        if let Some(old) = self.flows.by_key(&key) {
            // The far host uses its port anew: whatever we still had there is over.
            self.reset_host(now, old);
        }
        let config = self.host_config(port);
        let host = match refused {
            Some((reason, code)) => Err((reason, code)),
            None => Endpoint::new(
                now,
                Role::Active {
                    local: setup.source,
                    remote: setup.destination,
                },
                &config,
            )
            .map_err(|_| (DropReason::FrameBadValue, refusal::PROHIBITED)),
        };
        match host {
            Ok(mut host) => {
                host.begin_with_window(host_memory::first_window(&self.pool));
                self.stats.flows_opened += 1;
                let index = self.flows.insert(SplitFlow {
                    key,
                    peer,
                    number,
                    port,
                    host: Some(host),
                    syn: None,
                    syns: 0,
                    dscp: setup.dscp,
                    accepted: false,
                    counted: false,
                    host_closed: false,
                    link_closed: false,
                    reset_at: None,
                    share: Default::default(),
                    alive: Default::default(),
                    dirty: false,
                });
                self.recount(index);
                self.mark(index);
            }
            Err((reason, code)) => {
                self.counters.count(Stage::Carry, reason);
                self.stats.flows_refused += 1;
                self.with_link(peer, |link, pool| link.refuse(now, pool, number, code));
            }
        }
    }

    pub(super) fn with_link<T>(
        &mut self,
        peer: PeerId,
        f: impl FnOnce(&mut mef_protocol::link::Link, &mut mef_protocol::chunks::ChunkPool) -> T,
    ) -> Option<T> {
        let &(line, place) = self.places.get(usize::from(peer.0))?;
        let p = self.lines.get_mut(line)?.peers.get_mut(place)?;
        Some(f(&mut p.link, &mut self.pool))
    }

    /// An ICMP error may be about a segment that a flow of ours sent; true if it was.
    pub(super) fn icmp_into_flow(&mut self, now: Instant, icmp: &[u8]) -> bool {
        let Some((local, remote)) = host_tcp::icmp_flow(icmp) else {
            return false;
        };
        let Some(index) = self.flows.by_key(&FlowKey {
            host: remote,
            far: local,
        }) else {
            return false;
        };
        let taken = self
            .flows
            .get_mut(index)
            .and_then(|f| f.host.as_mut())
            .is_some_and(|h| h.handle_segment(now, icmp).is_ok());
        if taken {
            self.mark(index);
        }
        taken
    }

    pub(super) fn pump_dirty(&mut self, now: Instant) {
        while let Some(index) = self.dirty.pop() {
            if let Some(f) = self.flows.get_mut(index) {
                f.dirty = false;
                self.pump(now, index);
            }
        }
    }

    /// Moves what can be moved between a flow's host and its stream, and sends what that leads to.
    fn pump(&mut self, now: Instant, index: usize) {
        let Some((peer, number)) = self.flows.get(index).map(|f| (f.peer, f.number)) else {
            return;
        };
        let Some(&(line, place)) = self.places.get(usize::from(peer.0)) else {
            return;
        };
        let Some(p) = self
            .lines
            .get_mut(line)
            .and_then(|l| l.peers.get_mut(place))
        else {
            return;
        };
        let (link, pool) = (&mut p.link, &mut self.pool);
        let Some(flow) = self.flows.get_mut(index) else {
            return;
        };
        let view = link.view(number);
        let opening = view.map(|v| v.opening);

        let Some(host) = &mut flow.host else {
            match opening {
                Some(Opening::Open) => self.answer_host(now, index),
                Some(Opening::Refused(code)) => self.refuse_host(now, index, code),
                Some(Opening::Pending) => {}
                None => self.close(now, index, false),
            }
            return;
        };
        if let (Some(Opening::Refused(_)), true) = (opening, flow.accepted) {
            // Answered early, refused later: a reset is all that is left to say.
            host.abort();
        }
        let state = host.state();
        if flow.counted && state.established && matches!(opening, Some(Opening::Open)) {
            flow.counted = false;
            self.half_open.completed(flow.key.host.ip());
        }
        if !flow.accepted {
            if state.established {
                flow.accepted = true;
                link.accept(now, number);
            } else if let Some(end) = state.end {
                let code = match end {
                    End::Refused | End::ResetByPeer | End::Aborted => refusal::RST,
                    End::Unreachable { .. } => refusal::UNREACHABLE,
                    End::TimedOut => refusal::TIMED_OUT,
                };
                link.refuse(now, pool, number, code);
                self.stats.flows_refused += 1;
                self.drain_host(now, index);
                self.remove_flow(now, index, None);
                return;
            }
        }

        // From the host to the link.
        let mut blocked = false;
        host_memory::cap_window(pool, host);
        while host.readable() > 0 {
            let room = link.write_room(pool, number);
            if room == 0 && !link.takes_bytes(number) {
                // The flow was reset: what this host still says interests nobody. Until it has
                // been told it is held back, or it could end in order what nobody received.
                if host.state().end.is_none() || host.read(<[u8]>::len) == 0 {
                    break;
                }
                continue;
            }
            if room == 0 {
                // Where only this flow has to wait, it is told when it may go on.
                blocked = pool.room(Use::Sending) == 0;
                break;
            }
            let mut taken = 0;
            host.read(|bytes| {
                taken = link.write(
                    pool,
                    number,
                    bytes.get(..room.min(bytes.len())).unwrap_or(&[]),
                );
                taken
            });
            if taken == 0 {
                blocked = true;
                break;
            }
        }
        let state = host.state();
        if state.remote_finished && !flow.link_closed {
            flow.link_closed = true;
            link.finish(now, number);
        }

        // From the link to the host.
        while host.writable() > 0 {
            let bytes = link.peek(number);
            if bytes.is_empty() {
                break;
            }
            let room = host_memory::write_room(pool, host).min(bytes.len());
            let n = host.write(bytes.get(..room).unwrap_or(&[]));
            if n == 0 {
                break;
            }
            link.consume(now, pool, number, n);
        }
        link.reader(number, host.host_room(), host.is_read());
        match link
            .view(number)
            .and_then(|v| v.recv_end.map(|e| (e, v.recv_finished)))
        {
            Some((StreamEnd::Finished, true)) if !flow.host_closed => {
                flow.host_closed = true;
                host.finish();
            }
            Some((StreamEnd::Reset(_), finished)) => {
                let since = *flow.reset_at.get_or_insert(now);
                let delivered = finished && host.unacknowledged() == 0;
                if delivered || now.since(since) >= RESET_PATIENCE {
                    host.abort();
                }
            }
            _ => {}
        }
        if link.view(number).is_none() {
            host.abort();
        }
        let state = host.state();
        let timer = match (
            host.poll_timeout(),
            flow.reset_at.map(|t| t + RESET_PATIENCE),
        ) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.tell_heard(now, index);
        self.drain_host(now, index);
        self.recount(index);
        self.flows.set_timer(index, timer);
        if blocked {
            self.blocked.push(index);
        }
        if state.over() {
            self.finish_flow(now, index);
        }
    }

    /// Sends everything that the flow's host endpoint has for the host.
    pub(super) fn drain_host(&mut self, now: Instant, index: usize) {
        let Some((dscp, host)) = self.flows.get(index).map(|f| (f.dscp, f.key.host)) else {
            return;
        };
        let Some((port, next_hop)) = self.next_hop(host.ip()) else {
            // Nobody hears it, but its clocks go on.
            let mut out = core::mem::take(&mut self.scratch);
            let host = self.flows.get_mut(index).and_then(|f| f.host.as_mut());
            if let Some(host) = host {
                while host.poll_transmit(now, &mut out).is_some() {}
            }
            self.scratch = out;
            return;
        };
        loop {
            let Self {
                ports,
                flows,
                scratch,
                ..
            } = self;
            let host = flows.get_mut(index).and_then(|f| f.host.as_mut());
            let (Some(host), Some(p)) = (host, ports.get_mut(usize::from(port.0))) else {
                return;
            };
            // Written where it will leave from: headers and as much as may go in one piece.
            let wanted = MOST_HEADERS.saturating_add(host.unacknowledged());
            let size = wanted.clamp(usize::from(p.mtu), LONGEST_SEGMENT);
            let mut buf = p.port.alloc(size);
            let meta = buf.append_with(scratch, |out| host.append_transmit(now, out));
            let Some(Some(meta)) = meta else {
                if meta.is_none() {
                    self.counters.count(Stage::Tx, DropReason::NoRoom);
                }
                self.recycle(port, buf);
                return;
            };
            if dscp > 0 {
                // Every IP header has room for it.
                let _ = ecn::set_traffic_class(buf.bytes_mut(), dscp << 2);
            }
            self.send_segment_in(now, port, next_hop, buf, meta.gso_size);
        }
    }

    /// The host's connection is over: the link hears how, and the flow goes once nothing is left to read.
    fn finish_flow(&mut self, now: Instant, index: usize) {
        let Some(f) = self.flows.get(index) else {
            return;
        };
        let Some(host) = &f.host else { return };
        let (peer, number, state) = (f.peer, f.number, host.state());
        let record = host.time_wait_record();
        let unread = state.end.is_some() && host.readable() > 0;
        if unread && self.with_link(peer, |link, _| link.takes_bytes(number)) == Some(true) {
            // What came before the reset is still on its way into the stream.
            return;
        }
        if state.end.is_some() {
            self.stats.flows_reset += 1;
            self.with_link(peer, |link, pool| {
                link.reset(now, pool, number, refusal::RST)
            });
        }
        self.with_link(peer, |link, pool| link.release(pool, number));
        self.remove_flow(now, index, record);
    }

    /// The far host refused, or cannot be reached: the SYN that waits is answered so.
    fn refuse_host(&mut self, now: Instant, index: usize, code: u8) {
        let key = self.flows.get(index).map(|f| f.key);
        if code == refusal::CROSSING && key.is_some_and(|k| self.crosses(now, k)) {
            return;
        }
        let Some(f) = self.flows.get_mut(index) else {
            return;
        };
        let (port, syn) = (f.port, f.syn.take().unwrap_or_default());
        self.stats.flows_refused += 1;
        match code {
            refusal::UNREACHABLE | refusal::TIMED_OUT => {
                self.complain(now, port, &syn, IcmpError::HostUnreachable)
            }
            refusal::PROHIBITED => self.complain(now, port, &syn, IcmpError::Prohibited),
            _ => {
                if let Some(rst) = host_tcp::rst_for(&syn) {
                    self.send_segment(now, &rst, 0);
                }
            }
        }
        self.close(now, index, true);
    }

    /// The SYN of a host was sent several times and nothing came back: its host hears so.
    pub(super) fn refuse_unanswered(&mut self, now: Instant, index: usize) {
        self.refuse_host(now, index, refusal::UNREACHABLE);
    }

    /// Ends a flow that has no host endpoint.
    pub(super) fn close(&mut self, now: Instant, index: usize, tell_link: bool) {
        if let Some(f) = self.remove_flow(now, index, None) {
            if tell_link {
                self.with_link(f.peer, |link, pool| {
                    link.reset(now, pool, f.number, refusal::RST)
                });
            }
        }
    }

    /// The far end is gone: the host gets a reset.
    pub(super) fn reset_host(&mut self, now: Instant, index: usize) {
        self.stats.flows_reset += 1;
        if let Some(host) = self.flows.get_mut(index).and_then(|f| f.host.as_mut()) {
            host.abort();
            self.drain_host(now, index);
        } else if let Some(syn) = self.flows.get_mut(index).and_then(|f| f.syn.take()) {
            if let Some(rst) = host_tcp::rst_for(&syn) {
                self.send_segment(now, &rst, 0);
            }
        }
        self.close(now, index, true);
    }
}

fn mss_of(segment: &tcp::View<'_>) -> u16 {
    use mef_packet::wire::tcp_options::TcpOption;
    segment
        .options()
        .find_map(|o| match o {
            Ok(TcpOption::Mss(mss)) => Some(mss),
            _ => None,
        })
        .unwrap_or(536)
}
