//! Lines that change while the load runs, in the simulator: how soon the routers follow.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use mef_lab::report::print_table;
use mef_lab::results::Run;
use mef_lab::sim::{self, SimRequest};
use mef_lab::topology::read;

/// The run of a topology as shipped, and what is printed of it.
fn shipped(name: &str) -> (Run, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../topologies")
        .join(name);
    let variants = read(&path, &[]).unwrap();
    let mut results = sim::run(&SimRequest {
        variants: &variants,
        repeat: 1,
        seconds: None,
        seed: 1,
        command: "",
    })
    .unwrap();
    let text = print_table(&results);
    (results.runs.remove(0), text)
}

/// 100, 20, 60 Mbit/s at 100 ms, and nobody tells the routers: a cold start within ten round
/// trips of connect(), two of which are its own, each step within 1.5 s, a queue above 100 ms for less than a second.
#[test]
fn an_unknown_capacity_that_steps_is_followed() {
    let (run, text) = shipped("step-capacity.toml");
    assert_eq!(run.steps.len(), 3, "{text}");
    // The figures have a grain of 0.1 s, and 0.3 s have to be full.
    assert!(run.steps[0].reached_s.unwrap() <= 1.0 + 0.3, "{text}");
    for step in &run.steps[1..] {
        assert!(step.reached_s.unwrap() <= 1.5, "{text}");
    }
    for step in &run.steps {
        assert!(step.queue_s < 1.0, "{text}");
    }
    assert!(text.contains("20.0 Mbit/s"), "{text}");
}

/// Neither 20 to 500 ms nor 0 to 5% loss matter to a flow over a line of known capacity, though at
/// 500 ms and 5% what a host reads comes in pieces.
#[test]
fn the_goodput_of_a_drone_is_flat() {
    let (run, text) = shipped("drone.toml");
    assert_eq!(run.steps.len(), 10, "{text}");
    for step in &run.steps {
        assert!(step.share >= 0.9, "{text}");
    }
}
