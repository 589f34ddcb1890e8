//! The operations that are measured, each on input that is always the same.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use mef_crypto::{Initiator, PrivateKey, Responder, Session, SessionConfig, OVERHEAD};
use mef_dataplane::config::{self, Config, FlowTuple};
use mef_dataplane::prefix_table::PrefixTable;
use mef_packet::{BitRate, Bytes, Instant};
use mef_protocol::allocator::{Allocator, FlowId, FlowSpec, ResourceId};
use mef_protocol::carried::{Carried, CarriedSet};
use mef_protocol::chunks::ChunkPool;
use mef_protocol::classes::{Class, ClassScheduler};
use mef_protocol::codec::{put_varint, Received, Setup};
use mef_protocol::link::{Event, Link, LinkConfig, SendKey};
use mef_protocol::sent::SentLedger;

/// Does the operation once.
pub type Operation = Box<dyn FnMut()>;

/// An operation, and how it is made ready.
pub struct Work {
    pub name: &'static str,
    /// What one operation does.
    pub what: &'static str,
    pub prepare: fn() -> Operation,
}

/// Everything that is measured.
pub const ALL: &[Work] = &[
    Work {
        name: "seal",
        what: "seal a packet of 1420 bytes",
        prepare: seal,
    },
    Work {
        name: "seal_open",
        what: "seal and open a packet of 1420 bytes",
        prepare: seal_open,
    },
    Work {
        name: "classify",
        what: "find the policy of a flow among 32",
        prepare: classify,
    },
    Work {
        name: "fib",
        what: "look up an address among 100,000 prefixes",
        prepare: fib,
    },
    Work {
        name: "scheduler",
        what: "pick and charge one of 1,000 flows",
        prepare: scheduler,
    },
    Work {
        name: "water_fill",
        what: "change a demand and fill 1,000 flows over 32 resources anew",
        prepare: water_fill,
    },
    Work {
        name: "ack",
        what: "note 64 packets sent and take in their acknowledgement, one in 32 missing",
        prepare: ack,
    },
    Work {
        name: "bulk",
        what: "64 packets of a stream: written, packed, unpacked, read, acknowledged",
        prepare: bulk,
    },
];

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

fn sessions() -> (Session, Session) {
    let key = |n| PrivateKey::generate([n; 32]);
    let config = SessionConfig::default();
    let mut responder = Responder::new(key(2));
    responder.allow(key(1).public(), None);
    let (mut initiator, first) =
        Initiator::new(&key(1), &key(2).public(), 1, 1, 7, [3; 32], config).unwrap();
    let read = responder.read(&first).unwrap();
    let (b, second) = responder.accept(read, 2, [4; 32], config).unwrap();
    (initiator.finish(&second).unwrap(), b)
}

fn seal() -> Operation {
    let (mut a, _) = sessions();
    let mut packet = vec![0x5a; 1420 + OVERHEAD];
    Box::new(move || {
        a.seal_in_place(&mut packet).unwrap();
    })
}

fn seal_open() -> Operation {
    let (mut a, mut b) = sessions();
    let mut packet = vec![0x5a; 1420 + OVERHEAD];
    Box::new(move || {
        a.seal_in_place(&mut packet).unwrap();
        b.open(&mut packet).unwrap();
    })
}

fn router_config() -> Config {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("router.key");
    mef_dataplane::keys_cli::generate(Some(&key), &mut Vec::new()).unwrap();
    let mut text = String::from(
        "[router]\nprivate_key = \"router.key\"\n\
         [[port]]\nname = \"lan\"\ninterface = \"eth0\"\naddresses = [\"10.1.0.1/24\"]\n",
    );
    for n in 0..32 {
        text += &format!("[[policy]]\nprotocol = \"tcp\"\nsource = \"10.1.0.0/24\"\ndestination = \"10.2.{n}.0/24\"\nport = {}\n", 1000 + n);
    }
    let file = folder.path().join("router.toml");
    std::fs::write(&file, text).unwrap();
    config::load(&file).unwrap()
}

fn classify() -> Operation {
    let config = router_config();
    let mut random = Random(1);
    let flows: Vec<FlowTuple> = (0..256)
        .map(|_| {
            let n = (random.next() % 40) as u8;
            FlowTuple {
                source: Ipv4Addr::new(10, 1, 0, 9).into(),
                destination: Ipv4Addr::new(10, 2, n, 7).into(),
                protocol: 6,
                source_port: 40_000,
                port: 1000 + u16::from(n),
            }
        })
        .collect();
    let mut turn = flows.into_iter().cycle();
    Box::new(move || {
        let flow = turn.next().unwrap();
        std::hint::black_box(config.treatment(&flow));
    })
}

fn fib() -> Operation {
    let mut random = Random(2);
    let prefixes: Vec<(IpNet, Option<u16>)> = (0..100_000u32)
        .map(|n| {
            let length = 16 + (random.next() % 13) as u8;
            let net = Ipv4Net::new(Ipv4Addr::from(random.next() as u32), length).unwrap();
            (IpNet::V4(net.trunc()), Some((n % 64) as u16))
        })
        .collect();
    let table = PrefixTable::new(prefixes);
    let addresses: Vec<IpAddr> = (0..4096)
        .map(|_| Ipv4Addr::from(random.next() as u32).into())
        .collect();
    let mut turn = addresses.into_iter().cycle();
    Box::new(move || {
        std::hint::black_box(table.lookup(turn.next().unwrap()));
    })
}

fn scheduler() -> Operation {
    let now = Instant::from_millis(1);
    let mut scheduler = ClassScheduler::new(now, BitRate::from_mbit(1000));
    let mut random = Random(3);
    for flow in 0..1000u32 {
        let weight = 1 + (random.next() % 4000) as u32;
        scheduler.activate(Class::Balanced, flow, weight);
    }
    Box::new(move || {
        if let Some((class, flow)) = scheduler.pick(now) {
            scheduler.charge(class, flow, Bytes(1514));
        }
    })
}

fn water_fill() -> Operation {
    let mut allocator = Allocator::new();
    let mut random = Random(4);
    for n in 0..32 {
        allocator.set_capacity(
            ResourceId(n),
            BitRate::from_mbit(50 + u64::from(n) * 37 % 100),
        );
    }
    for n in 0..1000 {
        let path = [
            ResourceId((random.next() % 16) as u32),
            ResourceId(16 + (random.next() % 16) as u32),
        ];
        let demand = (n % 3 == 0).then(|| BitRate(random.next() % 3_000_000));
        let weight = 1 + (n % 7) as u32;
        allocator.flow_added(FlowId(n), &path, FlowSpec { weight, demand });
    }
    let mut n = 0;
    Box::new(move || {
        n += 1;
        let demand = Some(BitRate(100_000 + n % 1000 * 1000));
        allocator.flow_changed(FlowId(n * 7 % 1000), FlowSpec { weight: 2, demand });
        std::hint::black_box(allocator.level(ResourceId(3)));
    })
}

fn ack() -> Operation {
    let mut ledger = SentLedger::default();
    let rtt = mef_protocol::rtt::Rtt::default();
    let (mut now, mut number, mut bytes) = (Instant::from_millis(1000), 0, 0);
    let (mut settled, mut report) = (Vec::new(), Vec::new());
    Box::new(move || {
        for _ in 0..64 {
            let carried = CarriedSet::one(Carried::Data {
                flow: 2,
                offset: number * 1400,
                len: 1400,
                generation: 0,
            });
            bytes += 1514;
            ledger.sent(now, number, 1500, bytes, carried, true);
            number += 1;
            now += Duration::from_micros(12);
        }
        // As a bitmap would say it, in runs: 31, a gap of one, 31, a gap, and what came before.
        report.clear();
        for run in [31, 1, 31, 1, 64] {
            put_varint(run, &mut report);
        }
        settled.clear();
        let report = Received::Runs(&report);
        let acked = ledger.on_ack(now, number - 1, &report, 1280, &mut settled);
        assert!(acked.is_some());
        ledger.detect_lost(now, &rtt, &mut settled);
        ledger.settle(|arrived, packets| {
            std::hint::black_box((arrived, packets));
        });
        ledger.forget(now, &rtt);
    })
}

struct End {
    link: Link,
    pool: ChunkPool,
    number: u64,
}

impl End {
    fn new(now: Instant, even: bool) -> Self {
        let rate = BitRate::from_mbit(10_000);
        let config = LinkConfig {
            even_flows: even,
            boot_id: 5 + u64::from(even),
            port_mtu: 1500,
            line_up: rate,
            line_down: rate,
            link_credit: 64 << 20,
            packet_overhead: 60,
            frame_overhead: 14,
        };
        let mut link = Link::new(now, config);
        link.session_started(now, Some(Duration::from_millis(1)));
        Self {
            link,
            pool: ChunkPool::new(256 << 20),
            number: 0,
        }
    }

    /// Hands `packet` of this end, as long as there is one, to the other.
    fn deliver(
        &mut self,
        to: &mut Self,
        now: Instant,
        packet: &mut Vec<u8>,
        flow: Option<u32>,
    ) -> u32 {
        let mut count = 0;
        loop {
            packet.clear();
            let packed = match flow {
                None => self.link.poll_control(now, self.number, packet),
                Some(f) => {
                    let key = SendKey::Stream(f);
                    self.link
                        .poll_flow(now, self.number, key, &mut self.pool, packet)
                }
            };
            let Some(packed) = packed else { return count };
            to.link
                .handle_packet(now, &mut to.pool, self.number, packed.line_bytes, packet)
                .unwrap();
            self.number += 1;
            count += 1;
        }
    }

    fn settle(&mut self, now: Instant) {
        self.link.handle_timeout(now, &mut self.pool);
        while self.link.poll_event().is_some() {}
        while self.link.poll_activated().is_some() {}
    }
}

fn bulk() -> Operation {
    let mut now = Instant::from_millis(1000);
    let (mut a, mut b) = (End::new(now, true), End::new(now, false));
    let mut packet = Vec::new();
    let mut opened = None;
    // HELLO, the path's MTU, a flow.
    for _ in 0..2000 {
        now += Duration::from_micros(500);
        a.deliver(&mut b, now, &mut packet, None);
        b.deliver(&mut a, now, &mut packet, None);
        while let Some(event) = b.link.poll_event() {
            if let Event::Setup { flow, .. } = event {
                b.link.accept(now, flow);
            }
        }
        a.settle(now);
        b.settle(now);
        if opened.is_none() && a.link.is_up() && b.link.is_up() {
            opened = a.link.open(
                now,
                Setup {
                    source: "10.1.0.2:40000".parse().unwrap(),
                    destination: "10.2.0.2:80".parse().unwrap(),
                    weight: 1.0,
                    early: false,
                    mss: 1460,
                    class: Class::Balanced,
                    dscp: 0,
                },
            );
        }
    }
    let flow = opened.unwrap();
    assert_eq!(a.link.path_mtu(), 1500);
    let data = vec![0x5a; 64 * a.link.payload_size()];
    Box::new(move || {
        now += Duration::from_micros(100);
        assert_eq!(a.link.write(&mut a.pool, flow, &data), data.len());
        let sent = a.deliver(&mut b, now, &mut packet, Some(flow));
        assert!((64..70).contains(&sent), "{sent}");
        loop {
            let n = b.link.peek(flow).len();
            if n == 0 {
                break;
            }
            b.link.consume(now, &mut b.pool, flow, n);
        }
        b.deliver(&mut a, now, &mut packet, None);
        a.deliver(&mut b, now, &mut packet, None);
        a.settle(now);
        b.settle(now);
    })
}
