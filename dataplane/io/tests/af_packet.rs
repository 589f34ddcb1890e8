//! The AF_PACKET port against real kernels: hosts in namespaces of their own, and
//! the port between them or opposite to itself on a veth pair. Needs root; without
//! it each test says so and passes.

// Helpers of tests may fail as tests do; clippy knows the tests themselves only.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::Namespace;
use mef_io::os::{self, monotonic_now, poll_fds, Offload};
use mef_io::{AfPacket, AfPacketOptions, Port, PortError, PortStats};
use mef_packet::wire::{ethernet, ipv4, tcp, udp};
use mef_packet::{Buffer, Checksum, Gso, HeapBuf, Meta, Packet};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc};
use std::time::Duration;

type Batch = Vec<Packet<HeapBuf>>;

/// EtherType for experiments, which no kernel sends by itself.
const EXPERIMENTAL: u16 = 0x88b5;
const A: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const PATIENCE: Duration = Duration::from_secs(10);

fn frame(dst: [u8; 6], src: [u8; 6], ethertype: u16, payload: &[u8]) -> Packet<HeapBuf> {
    let mut bytes = vec![0; 14];
    ethernet::Header {
        dst,
        src,
        ethertype,
    }
    .emit(&mut bytes)
    .unwrap();
    bytes.extend_from_slice(payload);
    Packet {
        buf: HeapBuf::from_slice(&bytes),
        meta: Meta::default(),
    }
}

/// Receives until `enough` says so, or fails.
fn receive_until(port: &mut AfPacket, enough: impl Fn(&Batch) -> bool) -> Batch {
    let mut got = Vec::new();
    let start = monotonic_now();
    while !enough(&got) {
        assert!(
            monotonic_now().since(start) < PATIENCE,
            "only {} frames came; {:?}",
            got.len(),
            port.stats()
        );
        poll_fds(&[port.poll_fd().unwrap()], Duration::from_millis(100)).unwrap();
        port.rx(&mut got, 64);
    }
    got
}

/// A veth pair in one namespace with a port at each end.
struct Cable {
    _ns: Namespace,
    x: AfPacket,
    y: AfPacket,
}

impl Cable {
    fn new(
        x_options: AfPacketOptions,
        y_options: AfPacketOptions,
        before: impl FnOnce() + Send + 'static,
    ) -> Option<Self> {
        let ns = Namespace::create()?;
        ns.cable("x", &ns, "y");
        let (x, y) = ns.run(move || {
            before();
            (
                AfPacket::open_with("x", &x_options).unwrap(),
                AfPacket::open_with("y", &y_options).unwrap(),
            )
        });
        Some(Self { _ns: ns, x, y })
    }
}

/// A TCP super-segment of `payload` bytes from A to B, with partial checksum.
fn super_segment(payload: usize, mss: u16) -> Packet<HeapBuf> {
    let mut p = frame(
        [2, 0, 0, 0, 0, 2],
        [2, 0, 0, 0, 0, 1],
        ethernet::ETHERTYPE_IPV4,
        &vec![0x77; 40 + payload],
    );
    let b = p.buf.bytes_mut();
    ipv4::Header::new(A, B, ipv4::PROTOCOL_TCP)
        .emit(&mut b[14..], 20 + payload)
        .unwrap();
    let header = tcp::Header {
        src_port: 1000,
        dst_port: 2000,
        seq: 5,
        flags: tcp::Flags::ACK,
        ..Default::default()
    };
    header.emit(&mut b[34..], &[]).unwrap();
    tcp::fill_partial_checksum(&mut b[34..], A, B, 20 + payload).unwrap();
    p.meta = Meta {
        gso: Gso::TcpV4,
        gso_size: mss,
        checksum: Checksum::Partial {
            start: 34,
            offset: 16,
        },
        ..Meta::default()
    };
    p
}

fn payload_bytes(batch: &Batch) -> usize {
    batch
        .iter()
        .filter_map(|p| ipv4::View::parse(p.buf.bytes().get(14..)?).ok())
        .filter_map(|ip| {
            tcp::View::parse(ip.payload())
                .ok()
                .map(|t| t.payload().len())
        })
        .sum()
}

#[derive(Default, Debug)]
struct Seen {
    largest: usize,
    super_segments: usize,
    partial: usize,
}

/// Carries frames between two ports until told to stop; what it saw from each, and the ports' counts.
fn forward(mut ports: [AfPacket; 2], stop: &AtomicBool) -> ([Seen; 2], [PortStats; 2]) {
    let mut seen = [Seen::default(), Seen::default()];
    let fds = [ports[0].poll_fd().unwrap(), ports[1].poll_fd().unwrap()];
    let mut batch = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        poll_fds(&fds, Duration::from_millis(20)).unwrap();
        for i in 0..2 {
            ports[i].rx(&mut batch, 64);
            for p in &batch {
                seen[i].largest = seen[i].largest.max(p.buf.len());
                if p.meta.gso == Gso::TcpV4 {
                    assert!(
                        p.meta.gso_size > 500 && p.meta.gso_size <= 1460,
                        "{:?}",
                        p.meta
                    );
                    seen[i].super_segments += 1;
                }
                seen[i].partial += usize::from(matches!(p.meta.checksum, Checksum::Partial { .. }));
            }
            ports[1 - i].tx(&mut batch);
            assert!(batch.is_empty());
        }
    }
    (seen, [ports[0].stats(), ports[1].stats()])
}

/// Sends `total` bytes made from `seed` and receives until the peer has finished; hashes of both.
fn exchange(mut stream: TcpStream, seed: u64, total: usize) -> (Vec<u8>, Vec<u8>) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut out = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let (mut state, mut sha, mut left) = (seed, Sha256::new(), total);
        let mut block = vec![0u8; 256 << 10];
        while left > 0 {
            for word in block.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            let n = left.min(block.len());
            sha.update(&block[..n]);
            out.write_all(&block[..n]).unwrap();
            left -= n;
        }
        out.shutdown(Shutdown::Write).unwrap();
        sha.finalize().to_vec()
    });
    let (mut sha, mut block, mut received) = (Sha256::new(), vec![0; 256 << 10], 0);
    loop {
        match stream.read(&mut block).unwrap() {
            0 => break,
            n => {
                sha.update(&block[..n]);
                received += n;
            }
        }
    }
    assert_eq!(received, total);
    (sender.join().unwrap(), sha.finalize().to_vec())
}

#[test]
fn tcp_of_two_hosts_crosses_in_super_segments_both_ways_with_their_offloads_on() {
    let (Some(a), Some(b), Some(router)) = (
        Namespace::create(),
        Namespace::create(),
        Namespace::create(),
    ) else {
        return;
    };
    a.cable("a0", &router, "ra");
    b.cable("b0", &router, "rb");
    a.ip(&["address", "add", "10.9.0.1/24", "dev", "a0"]);
    b.ip(&["address", "add", "10.9.0.2/24", "dev", "b0"]);

    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let (ready, opened) = mpsc::channel();
    let forwarder = router.spawn(move || {
        let ports = [AfPacket::open("ra").unwrap(), AfPacket::open("rb").unwrap()];
        assert!(ports
            .iter()
            .all(|p| p.caps().tcp_gso && p.caps().mtu == 1500));
        ready.send(()).unwrap();
        forward(ports, &told)
    });
    opened.recv().unwrap();

    const TOTAL: usize = 64 << 20;
    let listener = b.run(|| TcpListener::bind((B, 7000)).unwrap());
    let server = std::thread::spawn(move || exchange(listener.accept().unwrap().0, 1, TOTAL));
    let client = a.spawn(|| exchange(TcpStream::connect((B, 7000)).unwrap(), 2, TOTAL));
    let (server, client) = (server.join().unwrap(), client.join().unwrap());
    stop.store(true, Ordering::Relaxed);
    let (seen, stats) = forwarder.join().unwrap();

    assert_eq!(client.0, server.1, "what A sent is what B received");
    assert_eq!(server.0, client.1, "what B sent is what A received");
    assert_ne!(client.0, server.0);
    for s in &seen {
        assert!(
            s.largest > 20_000 && s.super_segments > 100 && s.partial > 100,
            "{seen:?}"
        );
    }
    for s in stats {
        // In pieces of 1448 bytes it would be more than 46000 packets each way.
        assert!(
            s.rx_bytes > TOTAL as u64 && s.tx_bytes > TOTAL as u64 && s.rx_packets < 30_000,
            "{s:?}"
        );
        assert_eq!((s.rx_missed, s.tx_dropped), (0, 0));
    }
}

/// Sends a frame and reads it 30 ms after it arrived: an error if its time is not that of the arrival.
fn sent_and_read_late(c: &mut Cable) -> Result<(), String> {
    let sent_at = monotonic_now();
    c.x.tx(&mut vec![frame(
        ethernet::BROADCAST,
        c.x.caps().mac,
        EXPERIMENTAL,
        &[1; 50],
    )]);
    let ready = poll_fds(&[c.x.poll_fd().unwrap(), c.y.poll_fd().unwrap()], PATIENCE).unwrap();
    assert!(!ready.contains(0) && ready.contains(1));
    let there_at = monotonic_now();
    while monotonic_now().since(there_at) < Duration::from_millis(30) {
        std::hint::spin_loop();
    }
    let got = receive_until(&mut c.y, |b| !b.is_empty());
    assert_eq!((got.len(), got[0].buf.len()), (1, 64));
    let slack = Duration::from_millis(1);
    let at = got[0].meta.rx_time;
    if at + slack >= sent_at && at <= there_at + slack {
        Ok(())
    } else {
        Err(format!(
            "{at:?} is not between {sent_at:?} and {there_at:?}"
        ))
    }
}

#[test]
fn receive_time_is_when_the_kernel_got_it_and_not_when_it_was_read() {
    let Some(mut c) = Cable::new(Default::default(), Default::default(), || ()) else {
        return;
    };
    assert!(c.x.caps().mac != c.y.caps().mac && c.x.caps().mac != [0; 6]);
    // The kernel begins to stamp a moment after the first socket has asked for it.
    let in_time = (0..20).find(|_| sent_and_read_late(&mut c).is_ok());
    assert!(in_time.is_some(), "{:?}", sent_and_read_late(&mut c));
    for _ in 0..3 {
        sent_and_read_late(&mut c).unwrap();
    }
    let mut own = Vec::new();
    assert_eq!(
        c.x.rx(&mut own, 64),
        0,
        "a port does not receive what it sends"
    );
}

#[test]
fn batches_arrive_whole_in_order_and_counted() {
    let Some(mut c) = Cable::new(Default::default(), Default::default(), || ()) else {
        return;
    };
    let sizes: Vec<usize> = (0..200).map(|i| 46 + (i * 37) % 1455).collect();
    let mac = c.x.caps().mac;
    let frames = |c: &mut Cable| -> Batch {
        sizes
            .iter()
            .map(|&n| {
                let mut buf = c.x.alloc(n + 14);
                let model = frame([2; 6], mac, EXPERIMENTAL, &vec![n as u8; n]);
                buf.append(n + 14)
                    .unwrap()
                    .copy_from_slice(model.buf.bytes());
                Packet {
                    buf,
                    meta: Meta::default(),
                }
            })
            .collect()
    };
    // Twice, so that the second round goes through recycled buffers.
    for _ in 0..2 {
        let mut batch = frames(&mut c);
        c.x.tx(&mut batch);
        assert!(batch.is_empty());
        let got = receive_until(&mut c.y, |b| b.len() >= sizes.len());
        for (p, &n) in got.iter().zip(&sizes) {
            assert_eq!(p.buf.len(), n + 14);
            assert!(p.buf.bytes()[14..].iter().all(|&b| b == n as u8));
        }
        for p in got {
            c.y.recycle(p.buf);
        }
    }
    let bytes = 2 * sizes.iter().map(|n| n + 14).sum::<usize>() as u64;
    assert_eq!(
        c.x.stats(),
        PortStats {
            tx_packets: 400,
            tx_bytes: bytes,
            ..Default::default()
        }
    );
    assert_eq!(
        c.y.stats(),
        PortStats {
            rx_packets: 400,
            rx_bytes: bytes,
            ..Default::default()
        }
    );
    let mut got = Vec::new();
    let mut batch = frames(&mut c);
    c.x.tx(&mut batch);
    receive_until(&mut c.y, |b| b.len() == 64);
    assert_eq!(c.y.rx(&mut got, 70), 70, "no more than asked for");
}

#[test]
fn super_segments_and_super_frames_cross_a_veth_whole() {
    let Some(mut c) = Cable::new(Default::default(), Default::default(), || ()) else {
        return;
    };
    c.x.tx(&mut vec![super_segment(60_000, 1448)]);
    let got = receive_until(&mut c.y, |b| !b.is_empty());
    let meta = got[0].meta;
    assert_eq!(
        (got.len(), payload_bytes(&got), meta.gso, meta.gso_size),
        (1, 60_000, Gso::TcpV4, 1448)
    );
    assert_eq!(
        meta.checksum,
        Checksum::Partial {
            start: 34,
            offset: 16
        }
    );

    if c.x.caps().udp_gso {
        const LEN: usize = 44 * 1400;
        let mut p = frame(
            [2; 6],
            [4; 6],
            ethernet::ETHERTYPE_IPV4,
            &vec![0x33; 28 + LEN],
        );
        ipv4::Header::new(A, B, ipv4::PROTOCOL_UDP)
            .emit(&mut p.buf.bytes_mut()[14..], 8 + LEN)
            .unwrap();
        udp::Header {
            src_port: 1,
            dst_port: 2,
        }
        .emit(&mut p.buf.bytes_mut()[34..], LEN)
        .unwrap();
        p.meta = Meta {
            gso: Gso::Udp,
            gso_size: 1400,
            ..Meta::default()
        };
        c.x.tx(&mut vec![p]);
        let got = receive_until(&mut c.y, |b| !b.is_empty());
        assert_eq!(
            (got[0].buf.len(), got[0].meta.gso, got[0].meta.gso_size),
            (42 + LEN, Gso::Udp, 1400)
        );
    }
    assert_eq!((c.x.stats().tx_dropped, c.y.stats().rx_missed), (0, 0));
}

#[test]
fn a_device_that_does_not_segment_gets_wire_packets() {
    let off = || {
        for offload in [Offload::Tso, Offload::Gso, Offload::TxChecksum] {
            os::set_interface_offload("x", offload, false).unwrap();
        }
        os::set_interface_offload("y", Offload::Gro, false).unwrap();
        let features = os::interface_features("x").unwrap();
        assert!(
            !features.iter().any(|f| f == "tx-tcp-segmentation"),
            "{features:?}"
        );
    };
    // Switched off before the port is opened, and after.
    for before in [true, false] {
        let Some(mut c) = Cable::new(Default::default(), Default::default(), move || {
            if before {
                off()
            }
        }) else {
            return;
        };
        if !before {
            c._ns.run(off);
        }
        c.x.tx(&mut vec![super_segment(30_000, 1400)]);
        let got = receive_until(&mut c.y, |b| payload_bytes(b) >= 30_000);
        assert_eq!(
            (got.len(), payload_bytes(&got)),
            (22, 30_000),
            "off before opening: {before}"
        );
        for p in &got {
            assert!(p.meta.gso == Gso::None && p.buf.len() <= 1454);
            let ip = ipv4::View::parse(&p.buf.bytes()[14..]).unwrap();
            tcp::View::parse(ip.payload())
                .unwrap()
                .verify_checksum(A, B)
                .unwrap();
        }
        assert_eq!((c.x.stats().tx_packets, c.x.stats().tx_dropped), (1, 0));
    }
}

#[test]
fn a_host_accepts_partial_checksums_with_and_without_offload_metadata() {
    for vnet_hdr in [true, false] {
        let (Some(host), Some(router)) = (Namespace::create(), Namespace::create()) else {
            return;
        };
        host.cable("h0", &router, "r0");
        host.ip(&["address", "add", "10.9.0.2/24", "dev", "h0"]);
        let socket = host.run(|| UdpSocket::bind((B, 5000)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mac = host.run(|| os::interface_mac("h0").unwrap());
        let options = AfPacketOptions {
            vnet_hdr,
            ..Default::default()
        };
        let mut port = router.run(move || AfPacket::open_with("r0", &options).unwrap());
        assert_eq!(port.caps().tx_checksum, vnet_hdr);

        let datagram = |text: &[u8], spoil: bool, meta: Meta| {
            let mut p = frame(
                mac,
                [2; 6],
                ethernet::ETHERTYPE_IPV4,
                &[&[0; 28], text].concat(),
            );
            let b = p.buf.bytes_mut();
            ipv4::Header::new(A, B, ipv4::PROTOCOL_UDP)
                .emit(&mut b[14..], 8 + text.len())
                .unwrap();
            udp::Header {
                src_port: 1,
                dst_port: 5000,
            }
            .emit(&mut b[34..], text.len())
            .unwrap();
            if meta.checksum == Checksum::Complete {
                udp::fill_checksum(&mut b[34..], A, B).unwrap();
            } else {
                udp::fill_partial_checksum(&mut b[34..], A, B, 8 + text.len()).unwrap();
            }
            b[42] ^= u8::from(spoil);
            p.meta = meta;
            p
        };
        let partial = Meta {
            checksum: Checksum::Partial {
                start: 34,
                offset: 6,
            },
            ..Meta::default()
        };
        port.tx(&mut vec![
            datagram(b"spoilt", true, Meta::default()),
            datagram(b"complete", false, Meta::default()),
            datagram(b"partial", false, partial),
        ]);
        let receive = || {
            let mut b = [0; 100];
            let (n, from) = socket.recv_from(&mut b).unwrap();
            assert_eq!(from.ip(), A);
            String::from_utf8_lossy(&b[..n]).into_owned()
        };
        assert_eq!(
            (receive(), receive()),
            ("complete".into(), "partial".into())
        );
        assert_eq!(port.stats().tx_packets, 3);
    }
}

#[test]
fn what_is_lost_is_counted_on_both_sides() {
    let small = AfPacketOptions {
        rcvbuf: 20_000,
        ..Default::default()
    };
    let Some(mut c) = Cable::new(Default::default(), small, || ()) else {
        return;
    };
    let mac = c.x.caps().mac;
    let many = || -> Batch {
        (0..300)
            .map(|_| frame([2; 6], mac, EXPERIMENTAL, &[7; 1000]))
            .collect()
    };
    c.x.tx(&mut many());
    let (sent, mut got) = (c.x.stats().tx_packets, Vec::new());
    let start = monotonic_now();
    while c.y.stats().rx_missed + got.len() as u64 != sent {
        assert!(monotonic_now().since(start) < PATIENCE, "{:?}", c.y.stats());
        c.y.rx(&mut got, 64);
    }
    assert!(
        !got.is_empty() && c.y.stats().rx_missed > 100,
        "{:?}",
        c.y.stats()
    );

    c.x.tx(&mut vec![
        frame([2; 6], mac, EXPERIMENTAL, &[0; 1501]),
        Packet {
            buf: HeapBuf::default(),
            meta: Meta::default(),
        },
        frame([2; 6], mac, EXPERIMENTAL, &[0; 1500]),
    ]);
    assert_eq!(
        (c.x.stats().tx_packets, c.x.stats().tx_dropped),
        (sent + 1, 2),
        "above the MTU, and empty"
    );
    c._ns.ip(&["link", "set", "x", "down"]);
    c.x.tx(&mut many());
    assert_eq!(c.x.stats().tx_dropped, 302);
    let mut none = Vec::new();
    c.x.rx(&mut none, 64);
    c._ns.ip(&["link", "set", "x", "up"]);
    c.x.tx(&mut vec![frame([2; 6], mac, EXPERIMENTAL, &[9; 99])]);
    receive_until(&mut c.y, |b| b.iter().any(|p| p.buf.len() == 113));
}

#[test]
fn a_missing_interface_is_named() {
    match AfPacket::open("mefio-none") {
        Err(e @ PortError::NoInterface { .. }) => {
            assert!(e.to_string().contains("mefio-none"), "{e}")
        }
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("opened an interface that is not there"),
    }
}
