//! The protocol as a whole, over topologies in the simulator: real routers,
//! virtual time. No privileges needed.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use mef_dataplane::control::LinkState;
use mef_lab::report::{print_table, write_report};
use mef_lab::results::{Results, Run};
use mef_lab::sim::{self, SimRequest, Simulation};
use mef_lab::topology::{read, Side, Topology, Variant};

fn variants(name: &str, sets: &[&str]) -> Vec<Variant> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../topologies")
        .join(name);
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    read(&path, &sets).unwrap()
}

fn shipped(name: &str, sets: &[&str]) -> Topology {
    variants(name, sets).remove(0).topology
}

/// A topology that only a test needs.
fn own(text: &str) -> Topology {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.toml");
    std::fs::write(&path, format!("description = 'a test'\n{text}")).unwrap();
    read(&path, &[]).unwrap().remove(0).topology
}

fn simulate(topology: &Topology, seconds: u32) -> Run {
    Simulation::start(topology, seconds, 1).unwrap().finish()
}

/// Nothing went wrong, and every byte that arrived was the one sent.
fn assert_sound(run: &Run) {
    assert_eq!(run.errors, Vec::<String>::new());
    let sound = run.flows.iter().all(|f| f.sha256_ok && f.complete);
    assert!(sound, "{:?}", run.flows);
}

fn fills(name: &str, at_least: f64) {
    let run = simulate(&shipped(name, &[]), 12);
    assert_sound(&run);
    let share = run.goodput_bps / run.ceiling_bps;
    assert!(share >= at_least && share <= 1.01, "{share}");
    // The routers do not use the queue before the line.
    assert!(run.wan.queue_p99_us < 5_000, "{:?}", run.wan);
    assert_eq!((run.wan.queue_drops, run.wan.lateness_p99_us), (0, 0));
    assert!(
        run.probe.p99_us < run.probe_idle.p99_us + 10_000,
        "{:?}",
        run.probe
    );
    assert!(run.probe_idle.p50_us > 100_000 && run.probe_idle.p50_us < 101_000);
}

#[test]
fn a_clean_line_is_filled() {
    fills("clean-200ms.toml", 0.96);
}

#[test]
fn a_line_that_loses_every_hundredth_frame_is_filled() {
    fills("lossy-200ms.toml", 0.96);
}

#[test]
fn a_line_that_loses_every_seventh_frame_is_filled() {
    fills("very-lossy-200ms.toml", 0.94);
}

#[test]
fn shares_are_equal_whatever_the_distance_and_the_order() {
    let run = simulate(&shipped("four-flows.toml", &[]), 12);
    assert_sound(&run);
    assert!(run.jain >= 0.99, "{}: {:?}", run.jain, run.flows);
    let share = run.goodput_bps / run.ceiling_bps;
    assert!(share >= 0.95, "{share}");
}

#[test]
fn shares_follow_the_weights() {
    let topology = own("[wan]\nrate='50Mbit/s'\nrtt='50ms'\n
        [[load]]\nkind='bulk'\n[[load]]\nkind='bulk'\nweight=2\n[[load]]\nkind='bulk'\nweight=4");
    let run = simulate(&topology, 10);
    assert_sound(&run);
    for (flow, weight) in run.flows.iter().zip([1.0, 2.0, 4.0]) {
        let ratio = flow.goodput_bps / (run.goodput_bps * weight / 7.0);
        assert!((ratio - 1.0).abs() < 0.03, "weight {weight}: {ratio}");
    }
}

/// Payload of flow `id` at its receiver from `from` to `to` seconds, bit/s.
fn rate_of(run: &Run, id: u64, from: f64, to: f64) -> f64 {
    let s = &run.series;
    let step = |t: f64| ((t - s.start_s) / s.interval_s).round() as usize;
    let steps = &s.flows[&id][step(from)..step(to)];
    steps.iter().sum::<f64>() / steps.len() as f64
}

#[test]
fn a_flow_that_wakes_takes_its_share_and_leaves_the_line_to_others_while_it_sleeps() {
    let topology = own("[wan]\nrate='50Mbit/s'\nrtt='100ms'\n
        [[load]]\nkind='bulk'\n[[load]]\nkind='bulk'\nstart='200ms'");
    let mut simulation = Simulation::start(&topology, 10, 1).unwrap();
    simulation.pause(2, Duration::from_secs(3), Duration::from_secs(6));
    let run = simulation.finish();
    assert_sound(&run);
    let line = run.ceiling_bps;
    // What it had in its buffers when it fell asleep drains first.
    assert!(
        rate_of(&run, 1, 5.0, 6.0) > 0.94 * line,
        "{:?}",
        run.series.flows
    );
    assert!(
        rate_of(&run, 2, 5.0, 6.0) < 0.001 * line,
        "{:?}",
        run.series.flows
    );
    for id in [1, 2] {
        for (from, to) in [(1.0, 3.0), (6.5, 9.5)] {
            let share = rate_of(&run, id, from, to) / line;
            assert!((share - 0.485).abs() < 0.02, "flow {id}, {from} s: {share}");
        }
    }
}

/// Median times of the 100 kB and of the 1 MB transfers.
fn medians(open: &str) -> (f64, f64) {
    let set = format!("open={open}");
    let topology = shipped("short-flows.toml", &["loss=0.01", &set, "load.0.count=15"]);
    let run = simulate(&topology, 60);
    assert_sound(&run);
    let median = |size: u64| {
        let of = run.flows.iter().filter(|f| f.size == size);
        let mut times: Vec<f64> = of.map(|f| f.seconds).collect();
        times.sort_by(f64::total_cmp);
        assert_eq!(times.len(), 15);
        times[7]
    };
    (median(100_000), median(1_000_000))
}

#[test]
fn short_flows_opened_early_take_half_a_round_trip_and_the_lines_time() {
    let (small, large) = medians("early");
    assert!(small < 0.13 && large < 0.21, "{small} {large}");
}

#[test]
fn short_flows_opened_with_confirmation_take_one_round_trip_more() {
    let (small, large) = medians("confirm");
    assert!(
        small > 0.3 && small < 0.33 && large < 0.41,
        "{small} {large}"
    );
}

#[test]
fn a_line_that_carries_less_than_configured_is_found_out() {
    for (rate, mbit) in [("80Mbit/s", 80.0), ("50Mbit/s", 50.0)] {
        let set = format!("rate={rate}");
        let topology = shipped("wrong-capacity.toml", &[&set]);
        let mut simulation = Simulation::start(&topology, 8, 1).unwrap();
        simulation.advance_to(Duration::from_secs(3));
        let status = simulation.status(Side::A);
        let limit = status.links[0].rate_bps as f64 / 1e6;
        // Now and then it tries a little more.
        assert!(
            limit <= mbit * 1.06 && limit > mbit * 0.9,
            "{rate}: {limit} Mbit/s"
        );
        assert!(
            status
                .alarms
                .iter()
                .any(|a| a.contains("configured 100Mbit/s")),
            "{status:?}"
        );
        let run = simulation.finish();
        let share = run.goodput_bps / run.ceiling_bps;
        assert!(share > 0.9, "{rate}: {share}");
        assert_eq!(run.router.alarms.len(), 1, "{:?}", run.router.alarms);
    }
}

#[test]
fn a_black_hole_is_noticed_and_its_end_too() {
    let topology = own("[wan]\nrate='50Mbit/s'\nrtt='200ms'\n
        [[wan.at]]\nseconds=3\nblackhole=true\n[[wan.at]]\nseconds=8\nblackhole=false\n
        [[load]]\nkind='bulk'");
    let mut simulation = Simulation::start(&topology, 14, 1).unwrap();
    let state = |s: &Simulation| s.status(Side::A).links[0].state;
    simulation.advance_to(Duration::from_millis(2_900));
    assert_eq!(state(&simulation), LinkState::Up);
    // The last acknowledgement comes half a round trip into the hole.
    simulation.advance_to(Duration::from_millis(3_100 + 1_050));
    assert_eq!(state(&simulation), LinkState::Silent);
    simulation.advance_to(Duration::from_millis(8_400));
    assert_eq!(state(&simulation), LinkState::Up);
    let run = simulation.finish();
    assert_sound(&run);
    let goodput = |from: f64, to: f64| {
        let step = |t: f64| ((t - run.series.start_s) / run.series.interval_s).round() as usize;
        let steps = &run.series.goodput_bps[step(from)..step(to)];
        steps.iter().sum::<f64>() / steps.len() as f64
    };
    assert!(goodput(4.0, 8.0) == 0.0, "{:?}", run.series.goodput_bps);
    assert!(
        goodput(9.0, 13.0) > 0.93 * 0.956 * 50e6,
        "{:?}",
        run.series.goodput_bps
    );
}

#[test]
fn a_path_mtu_that_shrinks_stalls_nothing_for_a_second() {
    let topology = variants("underlay-mtu.toml", &[]).remove(4).topology;
    let run = simulate(&topology, 12);
    assert_sound(&run);
    let mut stalled = 0;
    let mut longest = 0;
    // Up to 10 s: the flow ends at 12.
    let steps = ((10.0 - run.series.start_s) / run.series.interval_s) as usize;
    for bps in &run.series.goodput_bps[..steps] {
        stalled = if *bps == 0.0 { stalled + 1 } else { 0 };
        longest = longest.max(stalled);
    }
    assert!(
        longest < 10,
        "{longest} steps of 0.1 s: {:?}",
        run.series.goodput_bps
    );
    assert!(
        run.goodput_bps > 0.85 * run.ceiling_bps,
        "{}",
        run.goodput_bps
    );
}

#[test]
fn equal_seeds_give_equal_results_and_other_seeds_others() {
    let variants = variants("lossy-200ms.toml", &["wan.rate=20Mbit/s", "wan.jitter=2ms"]);
    let json = |seed| {
        let request = SimRequest {
            variants: &variants,
            repeat: 1,
            seconds: Some(4),
            seed,
            command: "mef lab run",
        };
        let results: Results = sim::run(&request).unwrap();
        let table = print_table(&results);
        assert!(table.contains("Mbit/s"), "{table}");
        let dir = tempfile::tempdir().unwrap();
        let page = std::fs::read_to_string(write_report(dir.path(), &results).unwrap()).unwrap();
        assert!(page.contains("lossy-200ms"));
        serde_json::to_string(&results).unwrap()
    };
    let first = json(1);
    assert_eq!(first, json(1));
    assert_ne!(first, json(2));
}

#[test]
fn a_router_that_restarts_leaves_no_connection_hanging() {
    let topology = own("[wan]\nrate='20Mbit/s'\nrtt='100ms'\n
        [[load]]\nkind='bulk'\n[[load]]\nkind='transfer'\nsize='100kB'\nstart='6s'");
    for side in [Side::A, Side::B] {
        let mut simulation = Simulation::start(&topology, 9, 1).unwrap();
        simulation.advance_to(Duration::from_secs(2));
        simulation.restart_router(side).unwrap();
        simulation.advance_to(Duration::from_secs(5));
        for side in [Side::A, Side::B] {
            let status = simulation.status(side);
            assert_eq!(status.links[0].state, LinkState::Up);
            assert_eq!(status.counters["flows"], 0, "{side:?}");
        }
        let outcomes = simulation.outcomes();
        let sender = outcomes.iter().flat_map(|o| &o.clients).find(|c| c.id == 1);
        let receiver = outcomes
            .iter()
            .flat_map(|o| &o.received)
            .find(|r| r.id == 1);
        let mut errors = vec![&sender.unwrap().error];
        if side == Side::A {
            // A receiver beside the router that restarted sends nothing that would be answered.
            errors.push(&receiver.unwrap().error);
        }
        for error in errors {
            assert_eq!(
                error.as_ref().map(|e| e.errno.as_str()),
                Some("ECONNRESET"),
                "{side:?}"
            );
        }
        // And the next connection is carried as ever.
        let run = simulation.finish();
        assert!(
            run.flows[1].complete && run.flows[1].sha256_ok,
            "{:?}",
            run.flows
        );
    }
}

#[test]
fn sixty_megabytes_each_way_through_loss_reordering_and_duplicates_are_whole() {
    let topology = own("[wan]\nrate='200Mbit/s'\nrtt='60ms'\nloss=0.05\njitter='5ms'\nreorder=true\nduplicate=0.02\n
        [[load]]\nkind='transfer'\nsize='60MB'\n[[load]]\nkind='transfer'\nfrom='b1'\nto='a1'\nsize='60MB'");
    let run = simulate(&topology, 15);
    assert_sound(&run);
    assert_eq!(
        run.flows.iter().map(|f| f.bytes).collect::<Vec<_>>(),
        [60_000_000; 2]
    );
    assert!(run.wan.loss > 0.04, "{:?}", run.wan);
}
