//! Several ports on one interface: the kernel's program gives each frame to the
//! worker that [`FlowHash`] names. Needs root; without it the test says so and passes.

// Helpers of tests may fail as tests do; clippy knows the tests themselves only.
#![allow(clippy::unwrap_used, clippy::panic)]

#[allow(dead_code)]
mod common;

use std::net::IpAddr;
use std::time::Duration;

use common::Namespace;
use mef_io::os::{monotonic_now, poll_fds};
use mef_io::{AfPacket, AfPacketOptions, Port, Steering};
use mef_packet::wire::ethernet;
use mef_packet::{Buffer, FlowEnd, FlowHash, HeapBuf, Meta, Packet};

const LINKS: u16 = 4800;
const QUEUES: u16 = 3;

/// An IP packet in a frame: what the program looks at, and as many bytes more.
fn frame(v6: bool, n: u16, protocol: u8, ports: (u16, u16), fragment: bool) -> Packet<HeapBuf> {
    let mut bytes = vec![0; 14];
    let ethertype = if v6 {
        ethernet::ETHERTYPE_IPV6
    } else {
        ethernet::ETHERTYPE_IPV4
    };
    let header = ethernet::Header {
        dst: [0xff; 6],
        src: [2, 0, 0, 0, 0, 9],
        ethertype,
    };
    header.emit(&mut bytes).unwrap();
    let [high, low] = n.to_be_bytes();
    if v6 {
        bytes.extend([0x60, 0, 0, 0, 0, 40, protocol, 64]);
        bytes.extend([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, high, low]);
        bytes.extend([0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    } else {
        // With options, so that the ports are not where they are most of the time.
        let options = usize::from(n % 3);
        let offset = if fragment { 0x20 } else { 0x40 };
        bytes.extend([
            0x45 + options as u8,
            0,
            0,
            60,
            0,
            0,
            offset,
            0,
            64,
            protocol,
        ]);
        bytes.extend([0, 0, 10, 1, high, low, 10, 2, 0, 9]);
        bytes.extend(vec![1; options * 4]);
    }
    bytes.extend(ports.0.to_be_bytes());
    bytes.extend(ports.1.to_be_bytes());
    bytes.extend([0; 36]);
    Packet {
        buf: HeapBuf::from_slice(&bytes),
        meta: Meta::default(),
    }
}

/// The worker that a frame belongs to, read from its bytes.
fn owner(bytes: &[u8], key: u64) -> u32 {
    let v6 = bytes[12..14] == [0x86, 0xdd];
    let (protocol, source, destination, at): (u8, IpAddr, IpAddr, usize) = if v6 {
        let address = |at: usize| <[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap();
        (bytes[20], address(22).into(), address(38).into(), 54)
    } else {
        let address = |at: usize| <[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap();
        let at = 14 + 4 * usize::from(bytes[14] & 0xf);
        (bytes[23], address(26).into(), address(30).into(), at)
    };
    let fragment = !v6 && bytes[20] & 0x3f != 0;
    let ported = [6, 17].contains(&protocol) && !fragment;
    let port = |at: usize| {
        if ported {
            u16::from_be_bytes([bytes[at], bytes[at + 1]])
        } else {
            0
        }
    };
    let (source_port, port) = (port(at), port(at + 2));
    if protocol == 17 && ported && (LINKS..LINKS + QUEUES).contains(&port) {
        return u32::from(port - LINKS);
    }
    let ends = [(source, source_port), (destination, port)];
    let [a, b] = ends.map(|(address, port)| FlowEnd { address, port });
    FlowHash::new(key).worker(a, b, protocol, u32::from(QUEUES))
}

#[test]
fn every_frame_comes_to_the_worker_of_its_flow() {
    let Some(ns) = Namespace::create() else {
        return;
    };
    ns.cable("x", &ns, "y");
    let steering = Steering {
        key: 0x0123_4567_89ab_cdef,
        queues: QUEUES,
        links_at: Some(LINKS),
    };
    let (mut sender, mut ports, mut other) = ns.run(move || {
        let ports = AfPacket::open_queues("y", &AfPacketOptions::default(), steering).unwrap();
        // What leaves past the queueing discipline is seen by nobody.
        let options = AfPacketOptions {
            qdisc_bypass: false,
            ..AfPacketOptions::default()
        };
        let other = AfPacket::open_with("y", &options).unwrap();
        (AfPacket::open("x").unwrap(), ports, other)
    });
    for key in [steering.key, 77] {
        assert!(ports[1].steer(key));
        let mut batch = Vec::new();
        for n in 0..600 {
            let v6 = n % 4 == 3;
            let protocol = [6, 17, 17, 1][usize::from(n / 4 % 4)];
            let port = if n % 5 == 0 { LINKS + n % 7 } else { 443 };
            let fragment = n % 11 == 0;
            batch.push(frame(v6, n, protocol, (20_000 + n, port), fragment));
        }
        let arp = [[0xff; 6], [2, 0, 0, 0, 0, 9]].concat();
        let arp = [&arp[..], &[8, 6], &[0; 46]].concat();
        batch.push(Packet {
            buf: HeapBuf::from_slice(&arp),
            meta: Meta::default(),
        });
        let sent = batch.len();
        sender.tx(&mut batch);
        assert_eq!(sender.stats().tx_dropped, 0);
        let fds: Vec<_> = ports.iter().map(|p| p.poll_fd().unwrap()).collect();
        let (mut counts, start) = ([0; QUEUES as usize], monotonic_now());
        while counts.iter().sum::<usize>() < sent {
            assert!(
                monotonic_now().since(start) < Duration::from_secs(10),
                "{counts:?} of {sent}"
            );
            poll_fds(&fds, Duration::from_millis(100)).unwrap();
            for (worker, port) in ports.iter_mut().enumerate() {
                let mut got = Vec::new();
                port.rx(&mut got, 64);
                for p in got {
                    let bytes = p.buf.bytes();
                    let belongs = if bytes[12..14] == [8, 6] {
                        0
                    } else {
                        owner(bytes, key)
                    };
                    assert_eq!(worker as u32, belongs, "key {key}: {bytes:02x?}");
                    counts[worker] += 1;
                }
            }
        }
        assert!(counts.iter().all(|n| *n > sent / 6), "{counts:?}");
        // What leaves by the interface comes to none of them.
        let mut back = vec![frame(false, 1, 17, (1, 2), false)];
        other.tx(&mut back);
        let mut got = Vec::new();
        poll_fds(&[sender.poll_fd().unwrap()], Duration::from_secs(5)).unwrap();
        assert_eq!(sender.rx(&mut got, 64), 1);
        assert!(ports.iter_mut().all(|p| p.rx(&mut Vec::new(), 64) == 0));
    }
}
