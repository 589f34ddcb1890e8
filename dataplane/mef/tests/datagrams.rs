//! Datagrams, streams and packets in the clear on one line: two links on a
//! virtual wire with a rate and a delay; no crypto, no hosts but a sender that
//! behaves like QUIC's.

#![allow(clippy::unwrap_used)]

mod ends;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::Ipv4Addr;
use std::time::Duration;

use mef_packet::wire::ecn::{self, Ecn};
use mef_packet::wire::ipv4;
use mef_packet::{BitRate, Instant};
use mef_protocol::classes::Class;
use mef_protocol::codec::Setup;
use mef_protocol::line::Departure;
use mef_protocol::link::{DatagramError, DatagramFlow, Event, LinkConfig};

use ends::{config, setup, End, Ref, Rng};

/// Arrival, order, to which end, number, bytes on the line, inner packet, traffic class outside.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flying(
    std::cmp::Reverse<(Instant, u64)>,
    usize,
    u64,
    u64,
    Vec<u8>,
    u8,
);

struct World {
    now: Instant,
    ends: [End; 2],
    rate: BitRate,
    delay: Duration,
    loss: f64,
    /// The wire marks every packet that may be marked.
    marks: bool,
    random: Rng,
    free_at: [Instant; 2],
    queue_max: Duration,
    flying: BinaryHeap<Flying>,
    order: u64,
    /// Stream flows of end 0, with what the other end has read.
    streams: BTreeMap<u32, u64>,
    /// Bytes that left end 0 in the clear, and all that left.
    plain_bytes: u64,
    line_bytes: u64,
    /// Datagrams that came to end 1.
    arrived: Vec<Vec<u8>>,
    /// Traffic classes of packets that carried datagrams.
    outside: BTreeSet<u8>,
}

impl World {
    fn new(mbit: u64, rtt: Duration, mtu: u16) -> Self {
        let now = Instant::from_millis(1000);
        let rate = BitRate::from_mbit(mbit);
        let end = |even| {
            let config = LinkConfig {
                port_mtu: mtu,
                ..config(even, rate, 256 << 20)
            };
            End::new(now, config, 1 << 30)
        };
        let mut w = Self {
            now,
            ends: [end(true), end(false)],
            rate,
            delay: rtt / 2,
            loss: 0.0,
            marks: false,
            random: Rng::new(1),
            free_at: [now; 2],
            queue_max: Duration::ZERO,
            flying: BinaryHeap::new(),
            order: 0,
            streams: BTreeMap::new(),
            plain_bytes: 0,
            line_bytes: 0,
            arrived: Vec::new(),
            outside: BTreeSet::new(),
        };
        for e in &mut w.ends {
            e.link.session_started(now, Some(rtt));
        }
        w.run(Duration::from_secs(2), |_| Instant::FAR_FUTURE);
        assert!(w.ends.iter().all(|e| e.link.is_up()));
        assert_eq!(w.ends[0].link.path_mtu(), mtu);
        w
    }

    fn leave(&mut self, side: usize, bytes: u64) -> Instant {
        let start = self.free_at[side].max(self.now);
        self.queue_max = self.queue_max.max(start.since(self.now));
        self.free_at[side] = start + self.rate.time_for(mef_packet::Bytes(bytes));
        if side == 0 {
            self.line_bytes += bytes;
        }
        self.free_at[side] + self.delay
    }

    /// Lets time pass; `act` does what hosts do and says when it wants to act next.
    fn run(&mut self, time: Duration, mut act: impl FnMut(&mut Self) -> Instant) {
        let until = self.now + time;
        while self.now < until {
            let mut next = act(self).min(until);
            self.feed_streams();
            for side in 0..2 {
                let e = &mut self.ends[side];
                e.link.handle_timeout(self.now, &mut e.pool);
                loop {
                    let mut out = Vec::new();
                    let e = &mut self.ends[side];
                    let mut refs = [Ref(&mut e.link, e.number)];
                    match e.line.poll(self.now, &mut refs, &mut e.pool, &mut out) {
                        Some(Departure::Link(_, packed)) => {
                            let number = e.number;
                            e.number += 1;
                            let at = self.leave(side, packed.line_bytes);
                            if packed.waited.is_some() {
                                self.outside.insert(packed.traffic_class);
                            }
                            let mut class = packed.traffic_class;
                            if self.marks && Ecn::of_class(class).is_capable() {
                                class |= 3;
                            }
                            if self.random.unit() < self.loss {
                                continue;
                            }
                            self.order += 1;
                            let key = std::cmp::Reverse((at, self.order));
                            let bytes = packed.line_bytes;
                            self.flying
                                .push(Flying(key, 1 - side, number, bytes, out, class));
                        }
                        Some(Departure::Plain(packet, _)) => {
                            let bytes = packet.len() as u64 + 14;
                            self.leave(side, bytes);
                            self.plain_bytes += bytes;
                        }
                        None => {
                            next = next.min(e.line.poll_timeout(self.now, &refs));
                            break;
                        }
                    }
                }
            }
            if let Some(f) = self.flying.peek() {
                next = next.min(f.0 .0 .0);
            }
            self.now = next.max(self.now + Duration::from_nanos(1));
            while self.flying.peek().is_some_and(|f| f.0 .0 .0 <= self.now) {
                let f = self.flying.pop().unwrap();
                let e = &mut self.ends[f.1];
                let outer = Ecn::of_class(f.5);
                e.link
                    .handle_marked_packet(self.now, &mut e.pool, f.2, f.3, outer, &f.4)
                    .unwrap();
            }
            self.events();
        }
    }

    fn feed_streams(&mut self) {
        let e = &mut self.ends[0];
        for &flow in self.streams.keys() {
            let room = e.link.write_room(&e.pool, flow);
            if room > 0 {
                e.link.write(&mut e.pool, flow, &vec![7; room]);
            }
        }
    }

    fn events(&mut self) {
        while self.ends[0].link.poll_event().is_some() {}
        let e = &mut self.ends[1];
        while let Some(event) = e.link.poll_event() {
            match event {
                Event::Setup { flow, .. } => e.link.accept(self.now, flow),
                Event::Datagram(bytes) => self.arrived.push(bytes),
                _ => {}
            }
        }
        for (&flow, read) in &mut self.streams {
            loop {
                let n = e.link.peek(flow).len();
                if n == 0 {
                    break;
                }
                *read += n as u64;
                e.link.consume(self.now, &mut e.pool, flow, n);
            }
        }
    }

    fn open_stream(&mut self) {
        let setup = Setup {
            early: true,
            ..setup()
        };
        let flow = self.ends[0].link.open(self.now, setup).unwrap();
        self.streams.insert(flow, 0);
    }

    fn send(&mut self, flow: u32, packet: Vec<u8>) -> Result<(), DatagramError> {
        self.ends[0].link.send_datagram(self.now, of(flow), packet)
    }
}

fn of(id: u32) -> DatagramFlow {
    DatagramFlow {
        id,
        weight: 1000,
        class: Class::Balanced,
    }
}

/// An IP packet of `len` bytes with `sequence` in it.
fn datagram(len: usize, ecn: Ecn, sequence: u64) -> Vec<u8> {
    let mut p = vec![0; len];
    let header = ipv4::Header {
        dscp_ecn: 0x28 | ecn as u8,
        ..ipv4::Header::new(Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(10, 2, 0, 2), 17)
    };
    header.emit(&mut p, len - 20).unwrap();
    for (i, b) in p[28..].iter_mut().enumerate() {
        *b = (i as u64).wrapping_mul(31).wrapping_add(sequence) as u8;
    }
    p[20..28].copy_from_slice(&sequence.to_be_bytes());
    p
}

fn sequence(packet: &[u8]) -> u64 {
    u64::from_be_bytes(packet[20..28].try_into().unwrap())
}

/// Bytes that each of nine streams moves in four seconds beside a tenth flow.
fn shares(tenth: impl Fn(&mut World) -> Instant) -> Vec<u64> {
    let mut w = World::new(100, Duration::from_millis(50), 1500);
    for _ in 0..9 {
        w.open_stream();
    }
    w.run(Duration::from_secs(1), &tenth);
    let before: Vec<u64> = w.streams.values().copied().collect();
    w.arrived.clear();
    w.run(Duration::from_secs(4), &tenth);
    assert!(w.queue_max < Duration::from_millis(3), "{:?}", w.queue_max);
    let after = w.streams.values().take(9);
    after.zip(before).map(|(a, b)| a - b).collect()
}

/// Sends a packet of `flow` every `gap` of virtual time.
fn blast(w: &mut World, gap: Duration, mut send: impl FnMut(&mut World, u64)) -> Instant {
    let n = w.now.as_nanos() / gap.as_nanos() as u64;
    send(w, n);
    Instant::from_nanos((n + 1) * gap.as_nanos() as u64)
}

#[test]
fn a_blast_takes_a_fair_share_and_no_more() {
    // A tenth stream instead of the blast: what is fair.
    let fair: u64 = {
        let started = std::cell::Cell::new(false);
        let shares = shares(|w| {
            if !started.replace(true) {
                w.open_stream();
            }
            Instant::FAR_FUTURE
        });
        shares.iter().sum::<u64>() / 9
    };
    for (ecn, len) in [(Ecn::NotEct, 1250), (Ecn::Ect0, 1500), (Ecn::NotEct, 200)] {
        // Three times the line.
        let gap = BitRate::from_mbit(300).time_for(mef_packet::Bytes(len as u64));
        let got = shares(|w| {
            blast(w, gap, |w, n| {
                let _ = w.send(77, datagram(len, ecn, n));
            })
        });
        let least = *got.iter().min().unwrap();
        println!("{ecn:?}, {len} bytes: {least} of {fair}, {got:?}");
        assert!(least * 100 >= fair * 99, "{least} of {fair}");
    }
}

#[test]
fn packets_in_the_clear_share_the_line_by_weight() {
    let mut w = World::new(100, Duration::from_millis(50), 1500);
    w.open_stream();
    w.open_stream();
    let gap = Duration::from_micros(60);
    let send = |w: &mut World| {
        blast(w, gap, |w, n| {
            let flow = DatagramFlow {
                weight: 2000,
                ..of(5)
            };
            let packet = datagram(1400, Ecn::NotEct, n);
            let _ = w.ends[0].line.send_plain(w.now, flow, packet);
        })
    };
    w.run(Duration::from_secs(2), send);
    let (plain, all) = (w.plain_bytes, w.line_bytes);
    w.run(Duration::from_secs(10), send);
    let share = (w.plain_bytes - plain) as f64 / (w.line_bytes - all) as f64;
    assert!((share - 0.5).abs() < 0.01, "{share}");
    let used = (w.line_bytes - all) as f64 * 8.0 / 10.0 / 100e6;
    assert!(used > 0.985 && used < 1.0, "{used}");
    assert!(w.queue_max < Duration::from_millis(3), "{:?}", w.queue_max);
    // Nothing to send in the clear: the links have it all.
    let all = w.line_bytes;
    w.run(Duration::from_secs(5), |_| Instant::FAR_FUTURE);
    let used = (w.line_bytes - all) as f64 * 8.0 / 5.0 / 100e6;
    assert!(used > 0.98, "{used}");
}

#[test]
fn ethernet_sized_datagrams_cross_links_of_any_size_beside_many_others() {
    for mtu in [1280, 1400, 1500] {
        let mut w = World::new(20, Duration::from_millis(100), mtu);
        for _ in 0..60 {
            w.open_stream();
        }
        w.run(Duration::from_secs(1), |_| Instant::FAR_FUTURE);
        let gap = Duration::from_millis(50);
        let mut sent = 0;
        w.run(Duration::from_secs(5), |w| {
            blast(w, gap, |w, n| {
                if w.now.as_nanos() % gap.as_nanos() as u64 == 0 {
                    w.send(9, datagram(1500, Ecn::Ect1, n)).unwrap();
                    sent += 1;
                }
            })
        });
        w.run(Duration::from_secs(1), |_| Instant::FAR_FUTURE);
        assert!(sent > 90);
        assert_eq!(w.arrived.len(), sent, "mtu {mtu}");
        for p in &w.arrived {
            assert_eq!(*p, datagram(1500, Ecn::Ect1, sequence(p)));
        }
        assert_eq!(w.ends[1].link.datagram_stats().halves_expired, 0);
        assert_eq!(
            w.send(9, datagram(1501, Ecn::Ect1, 0)),
            Err(DatagramError::TooBig)
        );
    }
}

#[test]
fn a_lost_half_costs_its_datagram_and_is_counted() {
    let mut w = World::new(100, Duration::from_millis(100), 1400);
    w.loss = 0.05;
    let mut sent = 0u64;
    let gap = Duration::from_millis(1);
    w.run(Duration::from_secs(10), |w| {
        blast(w, gap, |w, n| {
            if w.now.as_nanos() % gap.as_nanos() as u64 == 0 {
                w.send(9, datagram(1500, Ecn::NotEct, n)).unwrap();
                sent += 1;
            }
        })
    });
    w.run(Duration::from_secs(1), |_| Instant::FAR_FUTURE);
    let expired = w.ends[1].link.datagram_stats().halves_expired;
    let (got, sent) = (w.arrived.len() as f64, sent as f64);
    assert!((got / sent - 0.9025).abs() < 0.01, "{got} of {sent}");
    // Of both halves lost nobody hears.
    assert!((expired as f64 / sent - 0.095).abs() < 0.01, "{expired}");
}

#[test]
fn marks_on_the_way_reach_who_can_see_them() {
    let mut w = World::new(100, Duration::from_millis(20), 1400);
    for (ecn, len) in [(Ecn::Ect0, 200), (Ecn::Ect1, 1500), (Ecn::NotEct, 200)] {
        w.outside.clear();
        w.arrived.clear();
        w.marks = false;
        w.send(1, datagram(len, ecn, 1)).unwrap();
        w.run(Duration::from_millis(50), |_| Instant::FAR_FUTURE);
        assert_eq!(w.arrived, [datagram(len, ecn, 1)]);
        // Class and ECN bits outside are those inside.
        assert_eq!(w.outside, BTreeSet::from([0x28 | ecn as u8]));
        w.marks = true;
        w.send(1, datagram(len, ecn, 2)).unwrap();
        w.run(Duration::from_millis(50), |_| Instant::FAR_FUTURE);
        let expected = if ecn.is_capable() { Ecn::Ce } else { ecn };
        assert_eq!(Ecn::of(&w.arrived[1]), expected);
        assert!(ipv4::View::parse(&w.arrived[1]).is_ok());
    }
    // A mark on what is not capable, which no honest router sets.
    let mut inner = Vec::new();
    let mut b = mef_protocol::codec::Builder::new(&mut inner, 1400);
    let packet = datagram(100, Ecn::NotEct, 3);
    b.push(&mef_protocol::codec::Frame::Datagram {
        flow: 1,
        packet: &packet,
    });
    b.finish();
    let (now, arrived, number) = (w.now, w.arrived.len(), w.ends[0].number);
    let e = &mut w.ends[1];
    e.link
        .handle_marked_packet(now, &mut e.pool, number, 200, Ecn::Ce, &inner)
        .unwrap();
    w.ends[0].number += 1;
    w.events();
    assert_eq!(w.arrived.len(), arrived);
    assert_eq!(w.ends[1].link.datagram_stats().mark_unseen, 1);
    assert_eq!(ecn::traffic_class(&packet), Some(0x28));
}

/// A sender that does what QUIC with CUBIC does (RFC 9002, RFC 9438): slow start, then W(t), one
/// reduction to 0.7 per round trip for losses and marks; paced at 1.25 windows per round trip.
struct Cubic {
    cwnd: f64,
    ssthresh: f64,
    w_max: f64,
    epoch: Instant,
    recovery_until: u64,
    next: u64,
    outstanding: BTreeMap<u64, Instant>,
    acks: BinaryHeap<std::cmp::Reverse<(Instant, u64, bool)>>,
    send_at: Instant,
    lost: u64,
    acked: u64,
}

impl Cubic {
    fn new(now: Instant) -> Self {
        Self {
            cwnd: 10.0,
            ssthresh: f64::MAX,
            w_max: 0.0,
            epoch: now,
            recovery_until: 0,
            next: 0,
            outstanding: BTreeMap::new(),
            acks: BinaryHeap::new(),
            send_at: now,
            lost: 0,
            acked: 0,
        }
    }

    fn reduce(&mut self, now: Instant, about: u64) {
        if about < self.recovery_until {
            return;
        }
        self.recovery_until = self.next;
        self.w_max = self.cwnd;
        self.cwnd = (self.cwnd * 0.7).max(2.0);
        self.ssthresh = self.cwnd;
        self.epoch = now;
    }

    fn act(
        &mut self,
        w: &mut World,
        flow: u32,
        ecn: Ecn,
        back: Duration,
        rtt: Duration,
    ) -> Instant {
        for p in w.arrived.drain(..) {
            let ce = Ecn::of(&p) == Ecn::Ce;
            self.acks
                .push(std::cmp::Reverse((w.now + back, sequence(&p), ce)));
        }
        while let Some(std::cmp::Reverse((at, n, ce))) = self.acks.peek().copied() {
            if at > w.now {
                break;
            }
            self.acks.pop();
            self.acked += 1;
            self.outstanding.remove(&n);
            // Packet threshold of three.
            while let Some((&first, _)) = self.outstanding.first_key_value() {
                if first + 3 > n {
                    break;
                }
                self.outstanding.remove(&first);
                self.lost += 1;
                self.reduce(w.now, first);
            }
            if ce {
                self.reduce(w.now, n);
            } else if self.cwnd < self.ssthresh {
                self.cwnd += 1.0;
            } else {
                let t = w.now.since(self.epoch).as_secs_f64() + rtt.as_secs_f64();
                let k = (self.w_max * 0.3 / 0.4).cbrt();
                let target = 0.4 * (t - k).powi(3) + self.w_max;
                self.cwnd += ((target - self.cwnd) / self.cwnd).clamp(0.0, 0.5);
            }
        }
        let gap = rtt.div_f64(self.cwnd * 1.25);
        while (self.outstanding.len() as f64) < self.cwnd && self.send_at <= w.now {
            let _ = w.send(flow, datagram(1250, ecn, self.next));
            self.outstanding.insert(self.next, w.now);
            self.next += 1;
            self.send_at = self.send_at.max(w.now - gap * 10) + gap;
        }
        let mut at = self.acks.peek().map_or(Instant::FAR_FUTURE, |a| a.0 .0);
        if (self.outstanding.len() as f64) < self.cwnd {
            at = at.min(self.send_at);
        }
        // The last of a flight lost: what is outstanding for very long is.
        if let Some((&n, &sent)) = self.outstanding.first_key_value() {
            if w.now >= sent + rtt * 20 {
                self.outstanding.remove(&n);
                self.lost += 1;
                self.reduce(w.now, n);
            }
            at = at.min(sent + rtt * 20);
        }
        at
    }
}

#[test]
fn quic_like_senders_fill_the_line_and_lose_nothing_where_they_see_marks() {
    for (mbit, ms) in [(100, 200), (20, 100), (50, 20)] {
        for ecn in [Ecn::Ect0, Ecn::NotEct] {
            let rtt = Duration::from_millis(ms);
            let mut w = World::new(mbit, rtt, 1500);
            let mut sender = Cubic::new(w.now);
            let back = rtt / 2 + Duration::from_millis(1);
            // Slow start takes its round trips on any path.
            w.run(rtt * 12, |w| sender.act(w, 3, ecn, back, rtt));
            let (seconds, started) = (20, sender.acked);
            w.run(Duration::from_secs(seconds), |w| {
                sender.act(w, 3, ecn, back, rtt)
            });
            let stats = w.ends[0].link.datagram_stats().queues;
            // What 1250 bytes cost on this line.
            let ceiling = mbit as f64 * 1e6 * 0.995 / (8.0 * (1250.0 + 15.0 + 60.0 + 14.0));
            let got = (sender.acked - started) as f64 / seconds as f64 / ceiling;
            println!(
                "{mbit} Mbit/s, {ms} ms, {ecn:?}: {got:.3} of the line, lost {} of {}, {stats:?}",
                sender.lost, sender.next
            );
            if ecn.is_capable() {
                assert_eq!(sender.lost, 0, "{stats:?}");
                assert!(stats.marked > 0 && stats.delayed == 0);
            }
            assert!(got > 0.93, "{got}");
        }
    }
}

#[test]
fn a_call_in_the_latency_class_crosses_a_crowded_line_and_an_ordinary_one_does_not() {
    let crossed = |class| {
        let mut w = World::new(2, Duration::from_millis(40), 1500);
        for _ in 0..60 {
            w.open_stream();
        }
        w.run(Duration::from_secs(3), |_| Instant::FAR_FUTURE);
        // 80 kbit/s of voice, more than two fair shares of 33.
        let gap = Duration::from_millis(20);
        let (mut sent, mut slowest) = (0u64, Duration::ZERO);
        w.run(Duration::from_secs(5), |w| {
            for p in w.arrived.drain(..) {
                let at = Instant::from_nanos(sequence(&p));
                slowest = slowest.max(w.now.since(at));
            }
            blast(w, gap, |w, _| {
                if w.now.as_nanos() % gap.as_nanos() as u64 == 0 {
                    let flow = DatagramFlow { class, ..of(9) };
                    let packet = datagram(200, Ecn::NotEct, w.now.as_nanos());
                    let _ = w.ends[0].link.send_datagram(w.now, flow, packet);
                    sent += 1;
                }
            })
        });
        (sent, slowest)
    };
    let (sent, slowest) = crossed(Class::Latency);
    println!("latency class: slowest of {sent} took {slowest:?}");
    // The way, and the packet that is just leaving.
    assert!(sent > 240 && slowest < Duration::from_millis(20 + 15));
    let (_, slowest) = crossed(Class::Balanced);
    println!("balanced: slowest took {slowest:?}");
    assert!(slowest > Duration::from_millis(200), "{slowest:?}");
}
