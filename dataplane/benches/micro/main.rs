//! Micro-benchmarks of what every packet costs, without I/O.
//!
//! `cargo bench -p mef-dataplane --bench micro` measures time with criterion. With
//! `count NAME N` it prepares one operation, does it N times and ends: that is what
//! `benches/counts` has valgrind count the instructions of.

#![allow(clippy::unwrap_used, clippy::panic)]

mod work;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["count", name, times] => count(name, times.parse().unwrap()),
        ["names"] => {
            for w in work::ALL {
                println!("{}\t{}", w.name, w.what);
            }
        }
        // As `cargo test --benches` calls it: everything once.
        _ if args.contains(&"--test") => {
            for w in work::ALL {
                (w.prepare)()();
            }
        }
        _ => {
            let mut criterion = Criterion::default()
                .warm_up_time(Duration::from_millis(500))
                .measurement_time(Duration::from_secs(2))
                .configure_from_args();
            for w in work::ALL {
                let mut operation = (w.prepare)();
                criterion.bench_function(w.name, |b| b.iter(&mut operation));
            }
            criterion.final_summary();
        }
    }
}

fn count(name: &str, times: u64) {
    let found = work::ALL.iter().find(|w| w.name == name);
    let mut operation = (found
        .unwrap_or_else(|| panic!("no operation {name}"))
        .prepare)();
    for _ in 0..times {
        operation();
    }
}
