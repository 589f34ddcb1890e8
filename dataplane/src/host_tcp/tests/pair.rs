//! Two endpoints, ours with ours and ours with smoltcp's, over wires that lose,
//! reorder and duplicate: every byte arrives, both ends agree on how it ended, and
//! it takes no longer than the losses justify.

use std::time::Duration;

use proptest::prelude::*;

use super::super::HostTcpConfig;
use super::*;

fn kinds() -> impl Strategy<Value = [Kind; 2]> {
    prop_oneof![
        3 => Just([Kind::Own, Kind::Own]),
        1 => Just([Kind::Own, Kind::Smoltcp]),
        1 => Just([Kind::Smoltcp, Kind::Own]),
    ]
}

#[derive(Clone, Debug)]
struct Case {
    kinds: [Kind; 2],
    v6: bool,
    loss: u64,
    path: Path,
    bytes: [u64; 2],
    read_limit: [usize; 2],
    buffer: usize,
    seed: u64,
    /// The opener's initial sequence number, near the end of the space or not.
    iss: u32,
}

fn case() -> impl Strategy<Value = Case> {
    let path =
        (0u64..30_000, 0u64..20_000, 0u64..100).prop_map(|(delay, jitter, duplicate)| Path {
            delay: Duration::from_micros(100 + delay),
            jitter: Duration::from_micros(jitter),
            duplicate,
            line: None,
        });
    (
        kinds(),
        any::<bool>(),
        prop_oneof![2 => Just(0u64), 4 => 0u64..30, 1 => 30u64..150],
        path,
        [0u64..400_000, 0u64..400_000],
        [
            prop_oneof![3 => Just(usize::MAX), 1 => 1000usize..60_000],
            prop_oneof![3 => Just(usize::MAX), 1 => 1000usize..60_000],
        ],
        prop_oneof![Just(8usize << 10), Just(64 << 10), Just(1 << 20)],
        any::<u64>(),
        prop_oneof![any::<u32>(), u32::MAX - 200_000..u32::MAX],
    )
        .prop_map(
            |(kinds, v6, loss, path, bytes, read_limit, buffer, seed, iss)| Case {
                // smoltcp's wrapper knows IPv4 only.
                v6: v6 && kinds == [Kind::Own, Kind::Own],
                kinds,
                loss,
                path,
                bytes,
                read_limit,
                buffer,
                seed,
                iss,
            },
        )
}

fn run(c: &Case) {
    let config = |seed| HostTcpConfig {
        rx_buffer: c.buffer,
        tx_buffer: c.buffer,
        ..config(seed)
    };
    let ends = if c.v6 {
        [CLIENT6, SERVER6]
    } else {
        [CLIENT, SERVER]
    };
    let mut net = Net::between(c.kinds, ends, [config(c.seed), config(!c.seed)]);
    if let AnyHost::Own(e) = &mut net.sides[0].tcp {
        e.set_initial_sequence(c.iss);
    }
    net.seed(c.seed);
    net.loss = c.loss;
    net.path = c.path;
    for (i, s) in net.sides.iter_mut().enumerate() {
        s.to_send = c.bytes[i];
        s.then_finish = true;
        s.read_limit = c.read_limit[i];
    }
    let own = c.kinds == [Kind::Own, Kind::Own];
    // smoltcp repairs most losses by a timer of a second and more.
    let limit = if own {
        Duration::from_secs(120)
    } else {
        Duration::from_secs(3600)
    };
    net.run(limit, |n| {
        n.states()
            .iter()
            .all(|s| s.over() && s.local_finished && s.remote_finished)
    });
    for (i, s) in net.sides.iter().enumerate() {
        assert_eq!(s.received, c.bytes[1 - i]);
        assert_eq!(s.tcp.state().end, None);
    }
    net.settle();
}

proptest! {

    #[test]
    fn every_byte_arrives_and_both_ends_agree(c in case()) {
        run(&c);
    }
}

/// User and system time of this process.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = &stat[stat.rfind(')').unwrap()..];
    let fields: Vec<u64> = after_name
        .split_whitespace()
        .skip(12)
        .take(2)
        .map(|f| f.parse().unwrap())
        .collect();
    // Ticks of 10 ms.
    Duration::from_millis((fields[0] + fields[1]) * 10)
}

/// Bytes per second of processor time of two endpoints back to back in memory, whole
/// super-segments: `cargo test --release -p mef-dataplane --lib back_to_back -- --ignored
/// --nocapture`.
#[test]
#[ignore = "a measurement"]
fn back_to_back() {
    const BYTES: u64 = 4 << 30;
    let data = vec![7u8; 256 << 10];
    for round in 0..4 {
        for kinds in [[Kind::Own; 2], [Kind::Smoltcp; 2]] {
            let config = HostTcpConfig {
                rx_buffer: 1 << 20,
                tx_buffer: 1 << 20,
                ..config(1)
            };
            let mut net = Net::between(kinds, [CLIENT, SERVER], [config, config]);
            net.connect();
            let Net { sides, mut now, .. } = net;
            let [mut a, mut b] = sides.map(|s| s.tcp);
            let mut out = Vec::new();
            let (mut received, mut packets) = (0u64, 0u64);
            let start = processor_time();
            while received < BYTES {
                while a.writable() > 0 && a.write(&data) > 0 {}
                while a.poll_transmit(now, &mut out).is_some() {
                    packets += 1;
                    b.handle_segment(now, &out).unwrap();
                }
                loop {
                    let n = b.read(|bytes| std::hint::black_box(bytes).len());
                    if n == 0 {
                        break;
                    }
                    received += n as u64;
                }
                now += Duration::from_micros(20);
                while b.poll_transmit(now, &mut out).is_some() {
                    a.handle_segment(now, &out).unwrap();
                }
            }
            let took = processor_time() - start;
            let rate = received as f64 * 8.0 / took.as_secs_f64() / 1e9;
            let size = received / packets;
            println!(
                "round {round}: {:?} {rate:.1} Gbit/s, {size} bytes a packet",
                kinds[0]
            );
        }
    }
}

/// Both ends have lost bytes and have the other's FIN: their acknowledgements carry the
/// number after it, and are in the window (RFC 9293 §3.10.7.4).
#[test]
fn an_acknowledgement_behind_a_fin_counts_while_bytes_before_it_are_missing() {
    run(&Case {
        kinds: [Kind::Own, Kind::Own],
        v6: false,
        loss: 104,
        path: Path {
            delay: Duration::from_micros(24845),
            jitter: Duration::from_micros(9571),
            duplicate: 59,
            line: None,
        },
        bytes: [387369, 380129],
        read_limit: [usize::MAX; 2],
        buffer: 1048576,
        seed: 5882709283068207575,
        iss: 0,
    });
}
