//! The same routers with ports on DPDK: its `net_af_packet` devices on the lab's
//! interfaces. Shows that packets arrive as they should, not how fast.

use crate::byte_exact::both_ways;
use crate::lab::{need, Lab, Routers};

/// Ends the test, with a message, where the binary has no DPDK.
macro_rules! need_dpdk {
    () => {
        need!();
        if !cfg!(feature = "dpdk") {
            eprintln!("skipped: built without DPDK");
            return;
        }
    };
}

const ON_DPDK: &str = "[router]\ndriver = 'dpdk'";

#[test]
fn random_data_both_ways_over_a_long_lossy_line() {
    need_dpdk!();
    let wan = "rate='100Mbit/s'\nrtt='200ms'\nqueue='1BDP'\nloss=0.01";
    let lab = Lab::up_with(Routers::Mef, wan, ON_DPDK);
    both_ways(&lab, 20_000_000);
    for side in ['a', 'b'] {
        let status = lab.status(side);
        assert!(status.alarms.is_empty(), "{side}: {:?}", status.alarms);
        // Frames for other stations and such are counted too; damage would be ours.
        let damaged = status.drops.keys().find(|k| k.contains("checksum"));
        assert_eq!(damaged, None, "{side}: {:?}", status.drops);
        for port in ["lan1", "wan"] {
            let sent = status.counters.get(&format!("port_{port}_tx_packets"));
            assert!(sent.is_some_and(|n| *n > 1000), "{side} {port}: {sent:?}");
        }
    }
}

#[test]
fn datagrams_of_every_size_and_errors_of_routers() {
    need_dpdk!();
    let wan = "rate='100Mbit/s'\nrtt='20ms'";
    let lab = Lab::up_with(Routers::Mef, wan, ON_DPDK);
    for size in [0, 56, 1000, 1472] {
        lab.sh_ok("a1", &format!("ping -q -c 3 -i 0.2 -W 5 -s {size} $B1"));
    }
    let out = lab.sh("a1", "ping -c 1 -W 5 -t 1 $B1");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("Time to live exceeded"), "{text}");
}
