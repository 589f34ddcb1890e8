//! What a split flow costs that has nothing to carry: the memory that a router
//! gives back when it goes, with flows and without.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod machine;

use std::alloc::System;
use std::time::Duration;

use cap::Cap;
use mef_dataplane::host_tcp::HostTcp;

use machine::settings::over_a_path;
use machine::{Flow, World};

#[global_allocator]
static ALLOCATED: Cap<System> = Cap::new(System, usize::MAX);

/// Memory of the router of `side`: what goes when it is replaced by one that has just started.
fn memory_of_flows(w: &mut World, side: usize) -> usize {
    let before = ALLOCATED.allocated();
    w.restart(side, Duration::ZERO);
    before.saturating_sub(ALLOCATED.allocated())
}

/// Opens flows, lets each carry `bytes` to the client, and leaves them alone.
fn idle_flows(w: &mut World, count: u16, bytes: usize) {
    let mut flows: Vec<Flow> = Vec::new();
    for i in 0..count {
        flows.push(w.connect(20_000 + i, 80));
        if i % 10 == 9 {
            w.step();
        }
    }
    let mut left = vec![bytes; flows.len()];
    w.run_until(Duration::from_secs(120), |w| {
        let mut done = true;
        for (f, left) in flows.iter().zip(&mut left) {
            if *left > 0 && w.server(*f).writable() > 0 {
                *left -= w.server(*f).write(&vec![1; *left]);
            }
            while w.client(*f).read(<[u8]>::len) > 0 {}
            done &= *left == 0 && w.server(*f).unacknowledged() == 0;
        }
        done && w.counter(1, "flows") == u64::from(count)
    });
    // Queues that are kept for reuse go after a second.
    for _ in 0..30 {
        w.run(Duration::from_millis(100));
        for f in &flows {
            while w.client(*f).read(<[u8]>::len) > 0 {}
        }
    }
}

#[test]
fn an_idle_flow_costs_less_than_8_kib() {
    const FLOWS: u16 = 4000;
    for bytes in [100, 20_000] {
        let mut w = World::up(over_a_path());
        let none = memory_of_flows(&mut w, 0);
        let mut w = World::up(over_a_path());
        idle_flows(&mut w, FLOWS, bytes);
        let held = [0, 1].map(|side| w.counter(side, "memory_used_bytes"));
        let both = [0, 1].map(|side| memory_of_flows(&mut w, side));
        let each = both.map(|b| b.saturating_sub(none) / usize::from(FLOWS));
        println!("after {bytes} bytes each: {each:?} bytes an idle flow at the routers, of the budget {held:?} in all");
        assert!(each.iter().all(|b| *b <= 8192), "{each:?}");
        // Next to nothing of the budget, which is for bytes.
        assert!(
            held.iter().all(|h| *h <= u64::from(FLOWS) * 512),
            "{held:?}"
        );
        assert!(
            each.iter().all(|b| *b > 500),
            "{each:?}: the measurement is wrong"
        );
    }
}
