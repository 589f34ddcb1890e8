//! Two whole routers back to back on ports in memory and a virtual clock: what
//! an ordinary IP router owes its neighbours, the link's handshake, and that
//! rubbish on any port is counted and leaves nothing behind.
//!
//! ```text
//!   host A .2 -- lan [router A] wan ==== wire ==== wan [router B] lan -- host B .2
//!        10.1.0.0/24         192.0.2.0/30                   10.2.0.0/24
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod machine;

use std::time::Duration;

use mef_dataplane::drops::{DropReason, Stage};
use mef_packet::wire::ipv4;
use mef_packet::{Buffer, Meta};

use machine::*;

fn settings() -> Settings {
    Settings {
        router: "memory = \"64MiB\"\nengine = \"aes-gcm\"\nopen = \"confirm\"".into(),
        wan: "\"192.0.2.{me}/30\"",
        ..Settings::default()
    }
}

fn ping(src: [u8; 4], dst: [u8; 4], ttl: u8, size: usize) -> Vec<u8> {
    let header = ipv4::Header {
        ttl,
        ..ipv4::Header::new(src.into(), dst.into(), 1)
    };
    ip_with(&header, &echo(1, size))
}

fn syn(src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
    Segment::new((src, 40_000), (dst, 80), SYN).packet()
}

#[test]
fn pings_cross_and_both_routers_answer() {
    let mut w = World::up(settings());
    w.host_sends(0, &ping(A, B, 64, 56));
    w.host_sends(0, &ping(A, ROUTER_A, 64, 56));
    w.host_sends(0, &ping(A, ROUTER_B, 64, 56));
    w.run(ms(100));
    assert_eq!(w.icmp(1), [(A, 8, 0)]);
    let mut answers = w.icmp(0);
    answers.sort_unstable();
    assert_eq!(answers, [(ROUTER_A, 0, 0), (ROUTER_B, 0, 0)]);
    // As large as a host's packets come: in two pieces over the link.
    w.host_sends(0, &ping(A, B, 64, 1472));
    w.run(ms(100));
    assert_eq!(w.icmp(1), [(A, 8, 0)]);
    assert_eq!(w.dropped(), [0, 0]);
}

#[test]
fn what_cannot_go_further_is_counted_once_and_explained() {
    let mut w = World::up(settings());
    w.a_drops(&ping(A, B, 1, 8), Stage::Route, DropReason::TtlExpired);
    assert_eq!(w.icmp(0), [(ROUTER_A, 11, 0)]);
    w.a_drops(
        &ping(A, [203, 0, 113, 9], 64, 8),
        Stage::Route,
        DropReason::NoRoute,
    );
    assert_eq!(w.icmp(0), [(ROUTER_A, 3, 0)]);
    // The second router of a traceroute.
    w.host_sends(0, &ping(A, B, 2, 8));
    w.run(ms(50));
    assert_eq!(w.icmp(0), [(ROUTER_B, 11, 0)]);
    assert_eq!(w.count(1, Stage::Route, DropReason::TtlExpired), 1);
    for martian in [
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [0, 0, 0, 0],
        [255, 255, 255, 255],
    ] {
        w.a_drops(
            &ping(martian, B, 64, 8),
            Stage::Ingress,
            DropReason::MartianSource,
        );
    }
    w.a_drops(
        &ping(ROUTER_A, B, 64, 8),
        Stage::Ingress,
        DropReason::OwnAddressSpoofed,
    );
    w.a_drops(
        &ping(A, [10, 1, 0, 255], 64, 8),
        Stage::Ingress,
        DropReason::MartianDestination,
    );
    assert_eq!(w.icmp(0), []);
    let mut broken = ping(A, B, 64, 8);
    broken[10] ^= 1;
    w.a_drops(&broken, Stage::Ingress, DropReason::BadChecksum);
    // Nobody is there.
    w.host_sends(0, &ping(A, [10, 2, 0, 77], 64, 8));
    w.run(Duration::from_secs(5));
    assert_eq!(w.icmp(0), [(ROUTER_B, 3, 1)]);
    // Not of the prefixes that B grants A.
    w.host_sends(0, &ping([10, 77, 0, 2], B, 64, 8));
    w.run(ms(50));
    assert_eq!(w.count(1, Stage::Open, DropReason::SourceNotAllowed), 1);
}

#[test]
fn a_peer_with_another_key_gets_no_session() {
    let mut w = World::new(Settings {
        key_of_b: 7,
        ..settings()
    });
    w.run(Duration::from_secs(5));
    assert!(!w.is_up(0) && !w.is_up(1));
    w.host_sends(0, &ping(A, B, 64, 8));
    w.run(ms(50));
    assert_eq!(w.count(0, Stage::Carry, DropReason::NoSession), 1);
    assert_eq!(w.icmp(0), [(ROUTER_A, 3, 1)]);
}

#[test]
fn a_restarted_peer_ends_the_flows_and_an_outage_does_not_end_the_link() {
    let mut w = World::up(settings());
    w.host_sends(0, &syn(A, B));
    w.run(ms(100));
    assert_eq!(w.flow_counts(), [1, 1]);
    w.sides[0].inbox.clear();
    w.restart(1, Duration::ZERO);
    w.run(Duration::from_secs(12));
    assert!(w.is_up(0) && w.is_up(1));
    assert_eq!(w.flow_counts(), [0, 0]);
    assert_eq!(w.stray_resets(0), 1);
    w.cut = true;
    w.run(Duration::from_secs(8));
    w.cut = false;
    w.run(Duration::from_secs(6));
    w.sides[1].inbox.clear();
    w.host_sends(0, &ping(A, B, 64, 8));
    w.run(ms(100));
    assert_eq!(w.icmp(1), [(A, 8, 0)]);
}

#[test]
fn rubbish_is_counted_and_leaves_nothing() {
    let mut w = World::up(settings());
    let mut x = 0x1234_5678_9abc_def1u64;
    let mut random = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    let mut real = vec![
        ping(A, B, 64, 300),
        syn(A, B),
        ip(A, [192, 0, 2, 1], 17, &[0; 60]),
    ];
    for p in &mut real {
        *p = from_host(mac(1, 0), p);
    }
    let mut sealed = Vec::new();
    w.host_sends(1, &ping(B, A, 64, 600));
    w.sides[1].router.poll(w.now);
    w.sides[1].wan.take_sent(&mut sealed);
    real.extend(sealed.iter().map(|p| p.buf.bytes().to_vec()));
    for i in 0..20_000u64 {
        let mut f = real[(random() % real.len() as u64) as usize].clone();
        match random() % 3 {
            0 => f.truncate((random() % f.len() as u64) as usize),
            1 => {
                let at = (random() % f.len() as u64) as usize;
                f[at] ^= 1 << (random() % 8);
            }
            _ => {
                f = (0..random() % 200).map(|_| random() as u8).collect();
                if f.len() > 14 {
                    f[..6].copy_from_slice(&mac(1, (i % 2) as u8));
                }
            }
        }
        let s = &w.sides[0];
        let port = if i % 2 == 0 { &s.lan } else { &s.wan };
        inject(port, &f, Meta::default());
        if i % 50 == 0 {
            w.run(ms(1));
        }
    }
    w.run(Duration::from_secs(1));
    assert!(w.sides[0].router.counters().total() > 10_000);
    assert!(w.is_up(0) && w.is_up(1));
    // A SYN whose damage passes is a SYN; nothing else makes state.
    assert!(w.sides[0].router.flow_count() <= 1);
    w.sides[1].inbox.clear();
    w.host_sends(0, &ping(A, B, 64, 8));
    w.run(ms(100));
    assert!(w.icmp(1).contains(&(A, 8, 0)));
}
