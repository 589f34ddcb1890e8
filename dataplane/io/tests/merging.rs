//! Receive offload for UDP against a real kernel: what the other end of a veth sends as
//! single packets arrives in one piece, where it was asked for and GRO is on; and the
//! interface is left as it was found. Needs root; without it the tests say so and pass.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::net::Ipv4Addr;
use std::time::Duration;

use common::Namespace;
use mef_io::os::{
    interface_features, monotonic_now, poll_fds, set_interface_offload, InterfaceFeatures, Offload,
};
use mef_io::{AfPacket, AfPacketOptions, Port};
use mef_packet::wire::{checksum, ethernet, ipv4, udp};
use mef_packet::{Buffer, Checksum, Gso, HeapBuf, Meta, Packet};

const A: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const SIZE: usize = 1400;
const HEADERS: usize = 14 + 20 + 8;
const FEATURE: &str = "rx-udp-gro-forwarding";

/// A UDP super-frame from A to B with this payload.
fn super_frame(payload: &[u8]) -> Packet<HeapBuf> {
    let mut bytes = vec![0; HEADERS];
    bytes.extend_from_slice(payload);
    ethernet::Header {
        dst: [2; 6],
        src: [4; 6],
        ethertype: ethernet::ETHERTYPE_IPV4,
    }
    .emit(&mut bytes)
    .unwrap();
    ipv4::Header::new(A, B, ipv4::PROTOCOL_UDP)
        .emit(&mut bytes[14..], 8 + payload.len())
        .unwrap();
    let ports = udp::Header {
        src_port: 1,
        dst_port: 2,
    };
    ports.emit(&mut bytes[34..], payload.len()).unwrap();
    Packet {
        buf: HeapBuf::from_slice(&bytes),
        meta: Meta {
            gso: Gso::Udp,
            gso_size: SIZE as u16,
            ..Meta::default()
        },
    }
}

/// One port of a veth pair whose sending end cuts everything, and the other.
struct Pair {
    ns: Namespace,
    sender: AfPacket,
    receiver: AfPacket,
}

fn pair(gro: bool, merge_udp: bool) -> Option<Pair> {
    let ns = Namespace::create()?;
    ns.cable("x", &ns, "y");
    let (sender, receiver) = ns.run(move || {
        let cuts = InterfaceFeatures::of("x").unwrap();
        cuts.switch("tx-udp-segmentation", false).unwrap();
        set_interface_offload("y", Offload::Gro, gro).unwrap();
        let options = AfPacketOptions {
            merge_udp,
            ..Default::default()
        };
        let sender = AfPacket::open("x").unwrap();
        (sender, AfPacket::open_with("y", &options).unwrap())
    });
    Some(Pair {
        ns,
        sender,
        receiver,
    })
}

impl Pair {
    /// What of `payload`, sent as one super-frame, arrives in which frames.
    fn cross(&mut self, payload: &[u8]) -> Vec<Packet<HeapBuf>> {
        self.sender.tx(&mut vec![super_frame(payload)]);
        let (start, mut got) = (monotonic_now(), Vec::new());
        let arrived = |got: &[Packet<HeapBuf>]| {
            let size = |p: &Packet<HeapBuf>| p.buf.len() - HEADERS;
            got.iter().map(size).sum::<usize>()
        };
        while arrived(&got) < payload.len() {
            assert!(monotonic_now().since(start) < Duration::from_secs(10));
            let fd = self.receiver.poll_fd().unwrap();
            poll_fds(&[fd], Duration::from_millis(100)).unwrap();
            self.receiver.rx(&mut got, 64);
        }
        got
    }

    fn asked_for(&self) -> bool {
        let active = self.ns.run(|| interface_features("y").unwrap());
        active.iter().any(|f| f == FEATURE)
    }
}

fn bytes_of(got: &[Packet<HeapBuf>]) -> Vec<u8> {
    let payloads = got.iter().map(|p| &p.buf.bytes()[HEADERS..]);
    payloads.flatten().copied().collect()
}

#[test]
fn single_packets_arrive_as_the_super_frame_that_they_were() {
    let Some(mut p) = pair(true, true) else {
        return;
    };
    if !p.receiver.merges_udp().unwrap() {
        eprintln!("skipped: the kernel does not join UDP for packet sockets");
        return;
    }
    assert!(p.asked_for());
    // The last is shorter.
    let payload: Vec<u8> = (0..30 * SIZE + 77).map(|n| ((n * n) >> 3) as u8).collect();
    let got = p.cross(&payload);
    assert!(
        bytes_of(&got) == payload,
        "other bytes, or in another order"
    );
    // The kernel takes what is there: now and then it wakes up in the middle.
    assert!(got.len() <= 4, "{} frames", got.len());
    for packet in got.iter().filter(|p| p.buf.len() > HEADERS + SIZE) {
        assert_eq!((packet.meta.gso, packet.meta.gso_size), (Gso::Udp, 1400));
        let Checksum::Partial { start, offset } = packet.meta.checksum else {
            panic!("{:?}", packet.meta);
        };
        assert_eq!((start, offset), (34, 6));
        let mut whole = packet.buf.bytes().to_vec();
        checksum::complete_partial(&mut whole, start, offset).unwrap();
        let view = udp::View::parse(&whole[34..]).unwrap();
        view.verify_checksum(A, B).unwrap();
    }
    assert_eq!(p.receiver.stats().rx_missed, 0);

    let Pair { ns, receiver, .. } = p;
    drop(receiver);
    let left = ns.run(|| interface_features("y").unwrap());
    assert!(!left.iter().any(|f| f == FEATURE), "not given back");
}

#[test]
fn nothing_is_changed_where_gro_is_off_or_nobody_asked() {
    for (gro, merge) in [(false, true), (true, false)] {
        let Some(mut p) = pair(gro, merge) else {
            return;
        };
        assert!(!p.receiver.merges_udp().unwrap());
        assert!(!p.asked_for(), "GRO {gro}, asked {merge}");
        let payload = [0x5a; 10 * SIZE];
        let got = p.cross(&payload);
        assert_eq!(got.len(), 10, "GRO {gro}, asked {merge}");
        assert!(got.iter().all(|p| p.meta.gso == Gso::None));
    }
}

#[test]
fn what_an_administrator_has_switched_on_stays_on() {
    let Some(ns) = Namespace::create() else {
        return;
    };
    ns.cable("x", &ns, "y");
    let (of, before) = ns.run(|| {
        set_interface_offload("y", Offload::Gro, true).unwrap();
        let of = InterfaceFeatures::of("y").unwrap();
        let before = of.switch(FEATURE, true).is_ok();
        let options = AfPacketOptions {
            merge_udp: true,
            ..Default::default()
        };
        let port = AfPacket::open_with("y", &options).unwrap();
        assert!(!port.merges_udp().unwrap());
        (of, before)
    });
    // Asked from outside of the namespace: it is still about the interface in it.
    let on = of.active().unwrap().iter().any(|f| f == FEATURE);
    assert_eq!(on, before);
}
