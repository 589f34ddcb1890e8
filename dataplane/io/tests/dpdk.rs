//! Ports on DPDK's virtual devices: rings in memory, and veth pairs in namespaces.
#![cfg(feature = "dpdk")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::Namespace;
use mef_io::os::{set_interface_offload, Offload};
use mef_io::{AfPacket, DpdkOptions, DpdkPort, Port};
use mef_packet::wire::{ethernet, ipv4, tcp, udp};
use mef_packet::{Buffer, Checksum, Gso, Meta, Packet};

/// DPDK is one per process, and its devices have names that are unique in it.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn options(device: &str) -> DpdkOptions {
    DpdkOptions {
        device: device.parse().unwrap(),
        mtu: None,
    }
}

fn open(devices: &[&str]) -> Vec<DpdkPort> {
    let all: Vec<DpdkOptions> = devices.iter().map(|d| options(d)).collect();
    DpdkPort::open_all(&all).unwrap()
}

type Batch<P> = Vec<Packet<<P as Port>::Buf>>;

fn packet<P: Port>(port: &mut P, bytes: &[u8], meta: Meta) -> Packet<P::Buf> {
    let mut buf = port.alloc(bytes.len());
    buf.append(bytes.len()).unwrap().copy_from_slice(bytes);
    Packet { buf, meta }
}

fn receive<P: Port>(port: &mut P, count: usize) -> Batch<P> {
    let (mut got, start) = (Vec::new(), Instant::now());
    while got.len() < count && start.elapsed() < Duration::from_secs(10) {
        port.rx(&mut got, 64);
    }
    got
}

const SRC: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const DST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// A TCP segment as a host with offloads hands it over: partial checksum.
fn segment(payload: &[u8]) -> Vec<u8> {
    let len = ipv4::HEADER_LEN + tcp::HEADER_LEN + payload.len();
    let mut f = vec![0; ethernet::HEADER_LEN + len];
    ethernet::Header {
        dst: [2, 0, 0, 0, 0, 2],
        src: [2, 0, 0, 0, 0, 1],
        ethertype: ethernet::ETHERTYPE_IPV4,
    }
    .emit(&mut f)
    .unwrap();
    ipv4::Header::new(SRC, DST, ipv4::PROTOCOL_TCP)
        .emit(&mut f[14..], len - ipv4::HEADER_LEN)
        .unwrap();
    let t = &mut f[34..];
    t[..4].copy_from_slice(&[0x9c, 0x40, 0x14, 0x51]);
    t[4..8].copy_from_slice(&1000u32.to_be_bytes());
    t[12] = 5 << 4;
    t[13] = 0x18;
    t[20..].copy_from_slice(payload);
    tcp::fill_partial_checksum(t, SRC, DST, tcp::HEADER_LEN + payload.len()).unwrap();
    f
}

fn partial(gso_size: u16) -> Meta {
    Meta {
        gso: if gso_size > 0 { Gso::TcpV4 } else { Gso::None },
        gso_size,
        checksum: Checksum::Partial {
            start: 34,
            offset: 16,
        },
        ..Meta::default()
    }
}

/// The payload of a TCP segment whose checksums are right.
fn payload(frame: &[u8]) -> (u32, Vec<u8>) {
    let ip = ipv4::View::parse(&frame[14..]).unwrap();
    let t = tcp::View::parse(ip.payload()).unwrap();
    t.verify_checksum(SRC, DST).unwrap();
    (t.seq(), t.payload().to_vec())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 256) as u8).collect()
}

#[test]
fn a_ring_gives_back_what_was_sent_and_nothing_leaks() {
    let _alone = alone();
    let mut port = open(&["net_ring0"]).remove(0);
    // More packets than the pool has buffers: what is dropped or sent has to come back.
    for round in 0..400u32 {
        let mut batch: Vec<_> = (0..60)
            .map(|i| packet(&mut port, &[(round + i) as u8; 64], Meta::default()))
            .collect();
        drop(batch.split_off(50));
        port.tx(&mut batch);
        assert!(batch.is_empty());
        let got = receive(&mut port, 50);
        assert_eq!(got.len(), 50);
        for (i, p) in got.iter().enumerate() {
            assert_eq!(p.buf.bytes(), [(round + i as u32) as u8; 64]);
        }
        for p in got {
            port.recycle(p.buf);
        }
    }
    let stats = port.stats();
    assert_eq!((stats.tx_packets, stats.rx_packets), (20_000, 20_000));
    assert_eq!((stats.tx_bytes, stats.tx_dropped), (20_000 * 64, 0));
    assert_eq!(port.rx(&mut Vec::new(), 64), 0);
}

#[test]
fn a_buffer_has_headroom_and_knows_its_limits() {
    let _alone = alone();
    let mut port = open(&["net_null0"]).remove(0);
    let mut buf = port.alloc(1500);
    buf.append(1500).unwrap().fill(7);
    buf.prepend(42).unwrap().fill(1);
    assert!(buf.prepend(200).is_none(), "more than the headroom");
    assert_eq!(buf.len(), 1542);
    assert_eq!((buf.bytes()[41], buf.bytes()[42]), (1, 7));
    buf.trim_front(42).unwrap();
    assert!(buf.trim_front(1501).is_none());
    buf.truncate(2000);
    assert_eq!(buf.len(), 1500);
    buf.truncate(10);
    assert_eq!(buf.bytes(), [7; 10]);
    assert!(buf.append(4000).is_none(), "more than the tailroom");
    assert_eq!(buf.len(), 10);
    // What fits into no mbuf gets memory all the same.
    let mut large = port.alloc(60_000);
    assert!(large.append(60_000).is_some() && large.prepend(100).is_some());
}

#[test]
fn an_empty_pool_costs_memory_of_the_heap_and_no_packet() {
    let _alone = alone();
    let mut port = open(&["net_ring1"]).remove(0);
    let hoard: Vec<_> = (0..20_000).map(|_| port.alloc(64)).collect();
    let mut last = port.alloc(64);
    last.append(64).unwrap().fill(9);
    drop(hoard);
    port.tx(&mut vec![Packet {
        buf: last,
        meta: Meta::default(),
    }]);
    let got = receive(&mut port, 1);
    assert_eq!(got[0].buf.bytes(), [9; 64]);
}

#[test]
fn super_segments_and_partial_checksums_are_done_in_software() {
    let _alone = alone();
    let mut port = open(&["net_ring2"]).remove(0);
    assert!(port.notes().iter().any(|n| n.contains("TCP segmentation")));
    let data = pattern(60_000);
    let whole = packet(&mut port, &segment(&data), partial(1448));
    let small = packet(&mut port, &segment(&data[..100]), partial(0));
    let above = packet(&mut port, &vec![0; 1515], Meta::default());
    port.tx(&mut vec![whole, small, above]);
    let got = receive(&mut port, 43);
    let mut at = 0;
    for p in &got[..42] {
        let (seq, bytes) = payload(p.buf.bytes());
        assert_eq!(seq, 1000 + at as u32);
        assert_eq!(bytes, data[at..at + bytes.len()]);
        assert!(p.buf.len() <= 1514);
        at += bytes.len();
    }
    assert_eq!(at, data.len());
    assert_eq!(payload(got[42].buf.bytes()), (1000, data[..100].to_vec()));
    assert_eq!((port.stats().tx_packets, port.stats().tx_dropped), (43, 1));
}

#[test]
fn devices_that_are_not_there_are_named_with_the_reason() {
    let _alone = alone();
    for (device, wanted) in [
        ("net_af_packet9,iface=mef-none", "mef-none"),
        ("net_nosuchdriver0", "net_nosuchdriver0: making it"),
        ("net_null9,size=no", "net_null9"),
    ] {
        let error = DpdkPort::open_all(&[options(device)]).err().unwrap();
        assert!(error.to_string().contains(wanted), "{device}: {error}");
    }
    let twice = [options("net_null8"), options("net_null8")];
    let error = DpdkPort::open_all(&twice).err().unwrap();
    assert!(error
        .to_string()
        .contains("there is one of this name already"));
    // All that failed has been put away.
    open(&["net_null8", "net_null9"]);
}

/// A veth pair whose ends hand over frames as they are on a wire.
fn cable() -> Option<Namespace> {
    let ns = Namespace::create()?;
    ns.cable("x", &ns, "y");
    ns.run(|| {
        for offload in [Offload::Tso, Offload::Gso, Offload::TxChecksum] {
            for interface in ["x", "y"] {
                set_interface_offload(interface, offload, false).unwrap();
            }
        }
    });
    Some(ns)
}

#[test]
fn an_interface_of_linux_carries_frames_both_ways() {
    let _alone = alone();
    let Some(ns) = cable() else { return };
    ns.run(|| {
        let mut port = open(&["net_af_packet0,iface=x"]).remove(0);
        let mut other = AfPacket::open("y").unwrap();
        assert_eq!(port.caps().mac, mef_io::os::interface_mac("x").unwrap());
        assert_eq!(port.caps().mtu, 1500);
        let data = pattern(20_000);
        let whole = packet(&mut port, &segment(&data), partial(1400));
        port.tx(&mut vec![whole]);
        let got = receive(&mut other, 15);
        let bytes: Vec<u8> = got.iter().flat_map(|p| payload(p.buf.bytes()).1).collect();
        assert_eq!(bytes, data);
        let back = packet(&mut other, &segment(&data[..1000]), partial(0));
        other.tx(&mut vec![back]);
        let got = receive(&mut port, 1);
        assert_eq!(payload(got[0].buf.bytes()).1, data[..1000]);
        assert!(port.alarms().is_empty(), "{:?}", port.alarms());
    });
}

#[test]
fn a_link_that_goes_down_is_an_alarm() {
    let _alone = alone();
    let Some(ns) = cable() else { return };
    let name = ns.name.clone();
    ns.run(move || {
        let port = open(&["net_tap0,iface=mefdown"]).remove(0);
        assert!(port.alarms().is_empty(), "{:?}", port.alarms());
        let down = std::process::Command::new("ip")
            .args(["-n", &name, "link", "set", "mefdown", "down"])
            .status();
        assert!(down.unwrap().success());
        let start = Instant::now();
        while port.alarms().is_empty() && start.elapsed() < Duration::from_secs(5) {}
        assert_eq!(port.alarms(), ["net_tap0,iface=mefdown: link is down"]);
    });
}

/// Sends `flows` UDP flows of `each` packets out of interface y.
fn send_flows(other: &mut AfPacket, flows: u16, each: usize) {
    for flow in 0..flows {
        let mut f = vec![0u8; 14 + 28 + 22];
        ethernet::Header {
            dst: [2, 0, 0, 0, 0, 2],
            src: [2, 0, 0, 0, 0, 1],
            ethertype: ethernet::ETHERTYPE_IPV4,
        }
        .emit(&mut f)
        .unwrap();
        ipv4::Header::new(SRC, DST, 17)
            .emit(&mut f[14..], 30)
            .unwrap();
        udp::Header {
            src_port: 1000 + flow,
            dst_port: 9,
        }
        .emit(&mut f[34..], 22)
        .unwrap();
        let mut batch: Vec<_> = (0..each)
            .map(|_| packet(other, &f, Meta::default()))
            .collect();
        other.tx(&mut batch);
    }
}

#[test]
fn flows_are_spread_over_the_queues_and_an_idle_queue_is_told_of() {
    let _alone = alone();
    let Some(ns) = cable() else { return };
    ns.run(|| {
        let device = options("net_af_packet1,iface=x,qpairs=2");
        let mut ports = DpdkPort::open_queues(&device, 2).unwrap();
        let mut other = AfPacket::open("y").unwrap();
        let mut per_queue = [HashSet::new(), HashSet::new()];
        let drain = |ports: &mut Vec<DpdkPort>, per_queue: &mut [HashSet<u16>; 2]| {
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(50) {
                for (port, seen) in ports.iter_mut().zip(per_queue.iter_mut()) {
                    let mut got = Vec::new();
                    port.rx(&mut got, 64);
                    seen.extend(got.iter().map(|p| {
                        let b = p.buf.bytes();
                        u16::from_be_bytes([b[34], b[35]])
                    }));
                }
            }
        };
        for _ in 0..10 {
            send_flows(&mut other, 1, 250);
            drain(&mut ports, &mut per_queue);
        }
        let idle: Vec<_> = ports.iter().flat_map(|p| p.alarms()).collect();
        assert_eq!(idle.len(), 1, "one flow has one queue: {idle:?}");
        assert!(idle[0].contains("receives nothing"), "{idle:?}");
        for _ in 0..4 {
            send_flows(&mut other, 64, 3);
            drain(&mut ports, &mut per_queue);
        }
        assert!(per_queue.iter().all(|q| !q.is_empty()));
        assert!(
            per_queue[0].is_disjoint(&per_queue[1]),
            "a flow stays on its queue"
        );
        assert!(ports.iter().all(|p| p.alarms().is_empty()));
    });
    let error = ns.run(|| {
        DpdkPort::open_queues(&options("net_null7"), 2000)
            .err()
            .unwrap()
    });
    assert!(error.to_string().contains("queues"), "{error}");
}

#[test]
fn a_device_that_segments_and_sums_gets_chains_and_flags() {
    let _alone = alone();
    let Some(ns) = cable() else { return };
    ns.run(|| {
        // The tap does it, as a NIC would; behind it the kernel sees what left.
        let mut port = open(&["net_tap1,iface=meftap"]).remove(0);
        assert!(
            !port.notes().iter().any(|n| n.contains("TCP checksums")),
            "{:?}",
            port.notes()
        );
        let mut other = AfPacket::open("meftap").unwrap();
        let data = pattern(20_000);
        let whole = packet(&mut port, &segment(&data), partial(1400));
        let small = packet(&mut port, &segment(&data[..100]), partial(0));
        port.tx(&mut vec![whole, small]);
        let got = receive(&mut other, 16);
        let bytes: Vec<u8> = got[..15]
            .iter()
            .flat_map(|p| payload(p.buf.bytes()).1)
            .collect();
        assert_eq!(bytes, data);
        assert_eq!(payload(got[15].buf.bytes()).1, data[..100]);
    });
}
