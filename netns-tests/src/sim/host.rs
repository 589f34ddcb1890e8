//! A simulated host: answers ARP, opens and accepts TCP connections, sends and
//! receives the probe. Super-segments leave and arrive whole, as through a
//! network card with segmentation offload.
//!
//! What it is not: a Linux host. It has no congestion control of its own, so
//! that behind a long access path it sends what the router's window allows.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use mef_dataplane::host_tcp::{
    icmp_flow, rst_for, HostTcp, HostTcpConfig, Role, SegmentMeta, SmoltcpHost, TimeWait,
};
use mef_io::MemWire;
use mef_packet::wire::{arp, ethernet, ipv4, tcp, udp};
use mef_packet::{Buffer, Gso, HeapBuf, Instant, Meta, Packet};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use super::conn::{Conn, Shared};
use crate::load::client::chains;
use crate::load::payload::Blocks;
use crate::load::probe::{self, HEAD};
use crate::load::{
    AgentOutcome, ClientFlow, Finish, FlowSpec, ProbeReceived, ProbeSent, ProbeSpec, ServerSpec,
    Start,
};

/// Room for the longest access path of the topologies at the rate of their lines.
const BUFFER: usize = 4 << 20;
/// First port of clients.
const EPHEMERAL: u16 = 10_000;
const ETHERNET: usize = ethernet::HEADER_LEN;

/// Where a host is, and whom it sends everything to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub address: Ipv4Addr,
    pub mac: [u8; 6],
    pub gateway: [u8; 6],
}

/// (own, far) ends of a connection.
type Key = (SocketAddr, SocketAddr);

/// Flows one after another.
struct Chain {
    /// With the index of each flow's record.
    flows: VecDeque<(FlowSpec, usize)>,
    /// When the first of them starts; `None` while the one before it runs.
    start: Option<Instant>,
}

struct Probe {
    spec: ProbeSpec,
    start: Instant,
    sequence: u64,
}

impl Probe {
    fn interval(&self) -> Duration {
        Duration::from_micros(self.spec.interval_us.max(100))
    }
    fn next(&self) -> Option<Instant> {
        let at = Duration::from_nanos(
            u64::try_from(self.interval().as_nanos())
                .unwrap_or(u64::MAX)
                .saturating_mul(self.sequence),
        );
        (at < Duration::from_millis(self.spec.duration_ms)).then(|| self.start + at)
    }
}

pub(super) struct Host {
    place: Place,
    rng: SmallRng,
    ports: BTreeSet<u16>,
    probe_ports: BTreeSet<u16>,
    conns: BTreeMap<Key, Conn>,
    finished: BTreeMap<Key, TimeWait>,
    next_port: u16,
    chains: Vec<Chain>,
    probes: Vec<Probe>,
    /// Sequence numbers seen, by probe.
    heard: BTreeMap<u64, HashSet<u64>>,
    pauses: BTreeMap<u64, Vec<(Instant, Instant)>>,
    blocks: Blocks,
    inbox: Vec<Packet<HeapBuf>>,
    packet: Vec<u8>,
    next: Option<Instant>,
    pub outcome: AgentOutcome,
}

impl Host {
    pub fn new(name: &str, place: Place, seed: u64) -> Self {
        Self {
            place,
            rng: SmallRng::seed_from_u64(seed),
            ports: BTreeSet::new(),
            probe_ports: BTreeSet::new(),
            conns: BTreeMap::new(),
            finished: BTreeMap::new(),
            next_port: EPHEMERAL,
            chains: Vec::new(),
            probes: Vec::new(),
            heard: BTreeMap::new(),
            pauses: BTreeMap::new(),
            blocks: Blocks::default(),
            inbox: Vec::new(),
            packet: Vec::new(),
            next: None,
            outcome: AgentOutcome {
                name: name.to_owned(),
                ..AgentOutcome::default()
            },
        }
    }

    pub fn address(&self) -> Ipv4Addr {
        self.place.address
    }

    pub fn listen(&mut self, server: &ServerSpec) {
        match server {
            ServerSpec::Tcp { listen } => self.ports.insert(listen.port()),
            ServerSpec::Udp { listen } => self.probe_ports.insert(listen.port()),
        };
    }

    /// Flow `id` sends nothing from one time to the other.
    pub fn pause(&mut self, id: u64, from: Instant, to: Instant) {
        self.pauses.entry(id).or_default().push((from, to));
    }

    /// Takes on flows that count from `origin`.
    pub fn start_flows(&mut self, origin: Instant, flows: &[FlowSpec]) {
        for chain in chains(flows) {
            let first = match chain.first().map(|f| f.start) {
                Some(Start::AtMs(ms) | Start::AfterPreviousMs(ms)) => ms,
                None => continue,
            };
            let mut list = VecDeque::new();
            for flow in chain {
                self.outcome.clients.push(ClientFlow::planned(&flow));
                list.push_back((flow, self.outcome.clients.len() - 1));
            }
            self.chains.push(Chain {
                flows: list,
                start: Some(origin + Duration::from_millis(first)),
            });
        }
        self.next = Some(Instant::ZERO);
    }

    pub fn start_probe(&mut self, origin: Instant, spec: &ProbeSpec) {
        self.outcome.probes_sent.push(ProbeSent {
            id: spec.id,
            packets: 0,
            refused: 0,
        });
        self.probes.push(Probe {
            start: origin + Duration::from_millis(spec.start_ms),
            spec: spec.clone(),
            sequence: 0,
        });
        self.next = Some(Instant::ZERO);
    }

    pub fn stop_probes(&mut self) {
        self.probes.clear();
    }

    /// Whether flows of this host wait or run.
    pub fn is_busy(&self) -> bool {
        self.chains.iter().any(|c| !c.flows.is_empty())
            || self
                .conns
                .values()
                .any(|c| c.chain().is_some() && !c.is_done())
    }

    /// Gives up what has not ended, among the flows that `which` picks by id.
    pub fn give_up(&mut self, now: Instant, which: impl Fn(&FlowSpec) -> bool) {
        let mut shared = Shared {
            now,
            outcome: &mut self.outcome,
            blocks: &self.blocks,
        };
        let mut late = false;
        for chain in &mut self.chains {
            let before = chain.flows.len();
            chain.flows.retain(|(f, _)| !which(f));
            late |= chain.flows.len() < before;
        }
        for conn in self.conns.values_mut() {
            if conn.flow().is_some_and(&which) && !conn.is_done() {
                late = true;
                conn.give_up(&mut shared, "STOPPED");
            }
        }
        if late {
            self.outcome.finish = Finish::Deadline;
        }
        self.next = Some(Instant::ZERO);
    }

    /// When something is to be done without a packet.
    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Does all there is to do at `now`; true if it did anything.
    pub fn poll(&mut self, now: Instant, wire: &MemWire) -> bool {
        let mut inbox = std::mem::take(&mut self.inbox);
        wire.take_sent(&mut inbox);
        if inbox.is_empty() && self.next.is_none_or(|t| t > now) {
            self.inbox = inbox;
            return false;
        }
        let mut touched = BTreeSet::new();
        for packet in inbox.drain(..) {
            self.receive(now, wire, packet.buf.bytes(), &mut touched);
        }
        self.inbox = inbox;
        self.send_probes(now, wire);
        loop {
            for key in self.open(now) {
                touched.insert(key);
            }
            let due = self.conns.iter().filter(|(_, c)| c.next() <= Some(now));
            touched.extend(due.filter(|(_, c)| c.next().is_some()).map(|(k, _)| *k));
            if touched.is_empty() {
                break;
            }
            for key in std::mem::take(&mut touched) {
                self.pump(now, wire, key);
            }
        }
        let starts = self.chains.iter().filter(|c| !c.flows.is_empty());
        let conns = self.conns.values().filter_map(Conn::next);
        let probes = self.probes.iter().filter_map(Probe::next);
        self.next = conns
            .chain(starts.filter_map(|c| c.start))
            .chain(probes)
            .min();
        true
    }

    fn shared(&mut self, now: Instant) -> Shared<'_> {
        Shared {
            now,
            outcome: &mut self.outcome,
            blocks: &self.blocks,
        }
    }

    fn tcp_config(&mut self) -> HostTcpConfig {
        HostTcpConfig {
            rx_buffer: BUFFER,
            tx_buffer: BUFFER,
            local_mtu: 1500,
            isn_seed: self.rng.next_u64(),
            timeout: None,
            // A host tells its peer what happened.
            pardon: false,
        }
    }

    /// Opens the connections whose time has come.
    fn open(&mut self, now: Instant) -> Vec<Key> {
        let mut opened = Vec::new();
        for index in 0..self.chains.len() {
            let Some(chain) = self.chains.get_mut(index) else {
                continue;
            };
            if chain.start.is_none_or(|t| t > now) {
                continue;
            }
            let Some((flow, record)) = chain.flows.pop_front() else {
                chain.start = None;
                continue;
            };
            chain.start = None;
            let local = SocketAddr::new(self.place.address.into(), self.next_port);
            self.next_port = self.next_port.checked_add(1).unwrap_or(EPHEMERAL);
            let remote = flow.target;
            let config = self.tcp_config();
            let pauses = self.pauses.get(&flow.id).cloned().unwrap_or_default();
            match SmoltcpHost::new(now, Role::Active { local, remote }, &config) {
                Ok(tcp) => {
                    let mut shared = self.shared(now);
                    let conn = Conn::client(&mut shared, tcp, flow, record, index, pauses);
                    self.conns.insert((local, remote), conn);
                    opened.push((local, remote));
                }
                Err(e) => self.outcome.errors.push(e.to_string()),
            }
        }
        opened
    }

    /// Lets a connection's application work and sends what comes of it.
    fn pump(&mut self, now: Instant, wire: &MemWire, key: Key) {
        let Some(mut conn) = self.conns.remove(&key) else {
            return;
        };
        let mut packet = std::mem::take(&mut self.packet);
        loop {
            if conn.pump(&mut self.shared(now)) {
                if let Some(chain) = conn.chain().and_then(|i| self.chains.get_mut(i)) {
                    chain.start = match chain.flows.front().map(|(f, _)| f.start) {
                        Some(Start::AfterPreviousMs(ms)) => Some(now + Duration::from_millis(ms)),
                        Some(Start::AtMs(_)) | None => None,
                    };
                }
            }
            let mut sent = false;
            while let Some(meta) = conn.tcp.poll_transmit(now, &mut packet) {
                sent = true;
                self.send_segment(now, wire, &packet, meta);
            }
            if !sent {
                break;
            }
        }
        self.packet = packet;
        if !(conn.is_done() && conn.tcp.state().over()) {
            self.conns.insert(key, conn);
        } else if let Some(record) = conn.tcp.time_wait_record() {
            self.finished.insert(key, record);
        }
    }

    fn send_segment(&mut self, now: Instant, wire: &MemWire, packet: &[u8], segment: SegmentMeta) {
        let meta = Meta {
            rx_time: now,
            gso: match segment.gso_size {
                0 => Gso::None,
                _ => Gso::TcpV4,
            },
            gso_size: segment.gso_size,
            checksum: segment.checksum(ETHERNET as u16, packet),
            ..Meta::default()
        };
        self.send(wire, ethernet::ETHERTYPE_IPV4, packet, meta);
    }

    fn send(&mut self, wire: &MemWire, ethertype: u16, payload: &[u8], meta: Meta) {
        let mut buf = HeapBuf::with_capacity(ETHERNET + payload.len());
        let header = ethernet::Header {
            dst: self.place.gateway,
            src: self.place.mac,
            ethertype,
        };
        if let Some(head) = buf.append(ETHERNET) {
            // There is room.
            let _ = header.emit(head);
        }
        if let Some(rest) = buf.append(payload.len()) {
            rest.copy_from_slice(payload);
        }
        if wire.inject(Packet { buf, meta }).is_err() {
            self.outcome
                .errors
                .push("a frame found the cable full".to_owned());
        }
    }

    fn receive(&mut self, now: Instant, wire: &MemWire, frame: &[u8], touched: &mut BTreeSet<Key>) {
        let Ok((header, payload)) = ethernet::Header::parse(frame) else {
            return;
        };
        if header.dst != self.place.mac && !ethernet::is_multicast(header.dst) {
            return;
        }
        match header.ethertype {
            ethernet::ETHERTYPE_ARP => self.answer_arp(now, wire, payload),
            ethernet::ETHERTYPE_IPV4 => self.receive_ip(now, wire, payload, touched),
            _ => {}
        }
    }

    fn answer_arp(&mut self, now: Instant, wire: &MemWire, payload: &[u8]) {
        let Ok(request) = arp::Packet::parse(payload) else {
            return;
        };
        if request.operation != arp::Operation::Request || request.target_ip != self.place.address {
            return;
        }
        let reply = arp::Packet {
            operation: arp::Operation::Reply,
            sender_mac: self.place.mac,
            sender_ip: self.place.address,
            target_mac: request.sender_mac,
            target_ip: request.sender_ip,
        };
        let mut bytes = [0; arp::LEN];
        if reply.emit(&mut bytes).is_ok() {
            let meta = Meta {
                rx_time: now,
                ..Meta::default()
            };
            self.send(wire, ethernet::ETHERTYPE_ARP, &bytes, meta);
        }
    }

    fn receive_ip(
        &mut self,
        now: Instant,
        wire: &MemWire,
        packet: &[u8],
        touched: &mut BTreeSet<Key>,
    ) {
        let Ok(view) = ipv4::View::parse(packet) else {
            return;
        };
        if view.dst() != self.place.address {
            return;
        }
        match view.protocol() {
            ipv4::PROTOCOL_TCP => {
                let Ok(segment) = tcp::View::parse(view.payload()) else {
                    return;
                };
                let key = (
                    SocketAddr::new(view.dst().into(), segment.dst_port()),
                    SocketAddr::new(view.src().into(), segment.src_port()),
                );
                self.receive_tcp(now, wire, packet, key, segment.flags(), touched);
            }
            ipv4::PROTOCOL_UDP => {
                if let Ok(datagram) = udp::View::parse(view.payload()) {
                    if self.probe_ports.contains(&datagram.dst_port()) {
                        self.hear_probe(now, datagram.payload());
                    }
                }
            }
            ipv4::PROTOCOL_ICMP => {
                if let Some(key) = icmp_flow(packet) {
                    if let Some(conn) = self.conns.get_mut(&key) {
                        // An error about a segment that says nothing new is ignored.
                        let _ = conn.tcp.handle_segment(now, packet);
                        touched.insert(key);
                    }
                }
            }
            _ => {}
        }
    }

    fn receive_tcp(
        &mut self,
        now: Instant,
        wire: &MemWire,
        packet: &[u8],
        key: Key,
        flags: tcp::Flags,
        touched: &mut BTreeSet<Key>,
    ) {
        let whole = SegmentMeta { gso_size: 0 };
        let syn = flags.contains(tcp::Flags::SYN) && !flags.contains(tcp::Flags::ACK);
        if !self.conns.contains_key(&key) {
            if let Some(record) = self.finished.get(&key) {
                if !(syn && record.may_reopen(packet)) {
                    if let Some(answer) = record.answer(packet) {
                        self.send_segment(now, wire, &answer, whole);
                    }
                    return;
                }
                self.finished.remove(&key);
            }
            if syn && self.ports.contains(&key.0.port()) {
                let config = self.tcp_config();
                let role = Role::Passive {
                    local: key.0,
                    remote: key.1,
                };
                match SmoltcpHost::new(now, role, &config) {
                    Ok(tcp) => self.conns.insert(key, Conn::server(tcp)),
                    Err(_) => return,
                };
            } else {
                if let Some(rst) = rst_for(packet) {
                    self.send_segment(now, wire, &rst, whole);
                }
                return;
            }
        }
        if let Some(conn) = self.conns.get_mut(&key) {
            if let Err(e) = conn.tcp.handle_segment(now, packet) {
                self.outcome.errors.push(e.to_string());
            }
            touched.insert(key);
        }
    }

    fn send_probes(&mut self, now: Instant, wire: &MemWire) {
        let mut due = Vec::new();
        for p in &mut self.probes {
            while p.next().is_some_and(|t| t <= now) {
                due.push((p.spec.clone(), p.sequence));
                p.sequence += 1;
            }
        }
        self.probes.retain(|p| p.next().is_some());
        for (spec, sequence) in due {
            let mut payload = vec![0; spec.payload.clamp(HEAD, 1_472)];
            let head = probe::Packet {
                id: spec.id,
                sequence,
                sent_ns: now.as_nanos(),
            };
            head.write(&mut payload);
            let own = self.place.address;
            let IpAddr::V4(to) = spec.target.ip() else {
                continue;
            };
            let mut packet = vec![0; ipv4::HEADER_LEN + udp::HEADER_LEN];
            packet.extend_from_slice(&payload);
            let (ip, datagram) = packet.split_at_mut(ipv4::HEADER_LEN);
            let header = ipv4::Header::new(own, to, ipv4::PROTOCOL_UDP);
            let ports = udp::Header {
                src_port: spec.target.port(),
                dst_port: spec.target.port(),
            };
            let made = header
                .emit(ip, udp::HEADER_LEN + payload.len())
                .and_then(|()| ports.emit(datagram, payload.len()))
                .and_then(|()| udp::fill_checksum(datagram, own, to));
            if let Some(sent) = self
                .outcome
                .probes_sent
                .iter_mut()
                .rev()
                .find(|p| p.id == spec.id)
            {
                sent.packets += 1;
                sent.refused += u64::from(made.is_err());
            }
            let meta = Meta {
                rx_time: now,
                ..Meta::default()
            };
            if made.is_ok() {
                self.send(wire, ethernet::ETHERTYPE_IPV4, &packet, meta);
            }
        }
    }

    fn hear_probe(&mut self, now: Instant, payload: &[u8]) {
        let Some(packet) = probe::Packet::read(payload) else {
            return;
        };
        let list = &mut self.outcome.probes_received;
        let at = list.iter().position(|p| p.id == packet.id);
        let at = at.unwrap_or_else(|| {
            list.push(ProbeReceived {
                id: packet.id,
                ..ProbeReceived::default()
            });
            list.len() - 1
        });
        let Some(record) = list.get_mut(at) else {
            return;
        };
        let new = self
            .heard
            .entry(packet.id)
            .or_default()
            .insert(packet.sequence);
        if !new {
            record.duplicates += 1;
            return;
        }
        let delay = now.as_nanos().saturating_sub(packet.sent_ns) / 1_000;
        record.payload = payload.len() as u64;
        record.sent_ns.push(packet.sent_ns);
        record
            .delay_us
            .push(u32::try_from(delay).unwrap_or(u32::MAX));
    }
}
