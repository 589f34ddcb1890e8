//! The corners of split TCP, each with the RFC that speaks of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod two_routers;

use std::time::Duration;

use mef_dataplane::drops::{DropReason, Stage};
use mef_dataplane::host_tcp::HostTcp;
use two_routers::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// RFC 9293, section 3.10.7.1: a segment of no connection is answered with RST, at a bounded rate.
#[test]
fn unknown_segments_are_answered_with_rst_within_a_rate() {
    let mut w = World::up(Settings::default());
    let stray = |port| Segment::new((A, port), (B, 80), ACK);
    w.host_sends(0, &stray(50_000).packet());
    w.run(ms(5));
    assert_eq!(w.stray_resets(0), 1);
    assert_eq!(w.count(0, Stage::Carry, DropReason::UnknownFlow), 1);
    // A RST is not answered.
    w.host_sends(0, &Segment::new((A, 50_001), (B, 80), RST | ACK).packet());
    w.run(ms(5));
    assert_eq!(w.stray_resets(0), 0);
    for i in 0..40_000u32 {
        w.host_sends(0, &stray((i % 60_000) as u16).packet());
        if i % 500 == 0 {
            w.run(ms(5));
        }
    }
    w.run(ms(50));
    let answered = w.stray_resets(0);
    assert!((9_000..16_000).contains(&answered), "{answered}");
    assert!(w.count(0, Stage::Carry, DropReason::RateLimited) > 20_000);
    assert_eq!(w.sides[0].router.flow_count(), 0);
}

/// `adopt = "forward"`: a connection from before the router goes on as datagrams.
#[test]
fn unknown_segments_are_forwarded_where_that_is_wanted() {
    let mut w = World::up(Settings {
        router: "adopt = \"forward\"".into(),
        ..Settings::default()
    });
    let mut s = Segment::new((A, 50_000), (B, 80), ACK);
    s.payload = b"from before".to_vec();
    w.host_sends(0, &s.packet());
    w.run(ms(50));
    assert_eq!(w.stray_resets(0), 0);
    let got: Vec<_> = w.sides[1].inbox.iter().filter(|p| p[9] == 6).collect();
    assert_eq!(got.len(), 1);
    assert_eq!(&got[0][40..], b"from before");
}

/// RFC 4987: SYNs that nobody means take little, and no place from those that are meant.
#[test]
fn a_flood_of_syns_takes_a_hundredth_of_the_others_goodput_at_most() {
    let flows: Vec<u16> = (0..10).map(|i| 40_000 + i).collect();
    let mut w = World::up(Settings::default());
    let flows: Vec<Flow> = flows.iter().map(|p| w.connect(*p, 80)).collect();
    let payload = [7; 16_384];
    let second = |w: &mut World, syns: u32, at: &mut u32| {
        let until = w.now + Duration::from_secs(1);
        let mut got = 0;
        while w.now < until {
            for f in &flows {
                w.client(*f).write(&payload);
                got += w.server(*f).read(<[u8]>::len);
            }
            for _ in 0..syns / 2000 {
                *at += 1;
                // From many hosts of the site, to hosts that are not there and to one that is.
                let source = [10, 1, 0, 3 + (*at % 200) as u8];
                let to = [10, 2, 0, 2 + (*at % 100) as u8];
                let port = 1024 + (*at % 60_000) as u16;
                let s = Segment::new((source, port), (to, 9), SYN);
                w.host_sends(0, &s.packet());
            }
            w.step();
        }
        got
    };
    let mut at = 0;
    let mut measure = |w: &mut World, seconds, syns| -> usize {
        (0..seconds).map(|_| second(w, syns, &mut at)).sum()
    };
    measure(&mut w, 5, 0);
    let alone = measure(&mut w, 3, 0);
    let flooded = measure(&mut w, 5, 10_000) / 5 * 3;
    let after = measure(&mut w, 3, 0);
    let best = alone.max(after);
    assert!(
        flooded * 100 >= best * 99,
        "{flooded} beside the flood, {alone} before and {after} after it"
    );
    // Somebody who means it gets through meanwhile.
    let mut at = 100_000;
    let mut opened = 0;
    for i in 0..5 {
        let f = w.connect(45_000 + i, 80);
        let start = w.now;
        while w.now.since(start) < ms(500) && !w.client(f).state().established {
            for _ in 0..5 {
                at += 1;
                let source = [10, 1, 0, 3 + (at % 200) as u8];
                let s = Segment::new((source, 1024 + (at % 60_000) as u16), (B, 9), SYN);
                w.host_sends(0, &s.packet());
            }
            w.step();
        }
        opened += u32::from(w.client(f).state().established);
    }
    assert_eq!(opened, 5);
    // All of it is forgotten again.
    w.run(Duration::from_secs(150));
    assert!(
        w.sides[0].router.flow_count() <= 20,
        "{}",
        w.sides[0].router.flow_count()
    );
}
