//! The table and the page of results made by hand.

use super::*;
use crate::results::{Discarded, Flow, Run, Series, Wan};

fn bulk(transport: &str, repeat: u32, mbit: f64) -> Run {
    Run {
        transport: transport.into(),
        repeat,
        open: (transport == "mef").then(|| "confirm".into()),
        loss: 0.01,
        seconds: 15.0,
        tail_seconds: 10.0,
        goodput_bps: mbit * 1e6,
        goodput_from_connect_bps: mbit * 0.9e6,
        ceiling_bps: 94.7e6,
        jain: 1.0,
        probe_p99_us: 101_500,
        probe_idle_p99_us: 100_000,
        flows: vec![Flow {
            id: 1,
            kind: "bulk".into(),
            retransmitted: 12,
            complete: true,
            sha256_ok: true,
            ..Flow::default()
        }],
        wan: Wan {
            offered: 10,
            rtt_us: 200_000,
            queue_p95_us: 310,
            queue_p99_us: 420,
            lateness_p99_us: 80,
            ..Wan::default()
        },
        series: Series {
            interval_s: 0.1,
            goodput_bps: vec![mbit * 1e6; 150],
            queue_us: vec![400; 150],
            probe_us: (0..150).map(|i| (f64::from(i) * 0.1, 101_000)).collect(),
            ..Series::default()
        },
        ..Run::default()
    }
}

fn short(transport: &str, open: Option<&str>, variant: &str, seconds: &[f64]) -> Run {
    Run {
        transport: transport.into(),
        open: open.map(str::to_owned),
        variant: variant.into(),
        flows: (0..)
            .zip(seconds)
            .map(|(id, s)| Flow {
                id,
                kind: "transfer".into(),
                size: 100_000,
                seconds: *s,
                complete: *s > 0.0,
                ..Flow::default()
            })
            .collect(),
        ..Run::default()
    }
}

fn lossy() -> Results {
    let mut runs = Vec::new();
    for (repeat, off) in [(0, 0.0), (1, 1.0), (2, -0.5)] {
        runs.push(bulk("mef", repeat, 93.0 + off));
        runs.push(bulk("cubic", repeat, 0.75 + off / 10.0));
    }
    Results {
        topology: "lossy-200ms".into(),
        description: "what it shows".into(),
        command: "mef lab run topologies/lossy-200ms.toml".into(),
        runs,
        ..Results::default()
    }
}

#[test]
fn the_table_has_medians_and_mef_below_the_others() {
    let table = print_table(&lossy());
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], "lossy-200ms: what it shows");
    assert_eq!(
        lines[1],
        "Two MEF routers carried 93.0 Mbit/s, 98.2% of what the line can carry: 124×\u{a0}CUBIC."
    );
    assert_eq!(
        lines[3],
        "  transport   runs   goodput   of ceiling   from start   queue p95   queue p99   probe p99   resent"
    );
    assert_eq!(
        lines[4],
        "                      Mbit/s            %       Mbit/s          ms          ms         +ms     seg."
    );
    assert_eq!(
        lines[5],
        "  CUBIC          3     0.750          0.8        0.675       0.310       0.420        +1.5       12"
    );
    assert_eq!(
        lines[6],
        "  MEF            3      93.0         98.2         83.7       0.310       0.420        +1.5       12"
    );
}

#[test]
fn short_flows_have_a_column_and_say_what_did_not_arrive() {
    let results = Results {
        topology: "short-flows".into(),
        runs: vec![
            short("cubic", None, "1% loss", &[0.9, 0.7, 0.0, 0.8]),
            short("mef", Some("confirm"), "1% loss", &[0.31, 0.32, 0.33]),
            short("mef", Some("early"), "1% loss", &[0.11, 0.12, 0.13]),
            short("mef", Some("early"), "5% loss", &[0.0, 0.0]),
        ],
        ..Results::default()
    };
    let table = print_table(&results);
    assert!(table.contains("100 kB"), "{table}");
    assert!(table.contains("0.800 (3/4)"), "{table}");
    assert!(
        table.contains("MEF confirm") && table.contains("0.320"),
        "{table}"
    );
    assert!(table.contains("none of 2"), "{table}");
    assert!(table.contains("\n5% loss\n"), "{table}");
    assert!(
        table.contains("At 1% loss: 100 kB took 0.120 s with MEF early, 0.800 s with CUBIC."),
        "{table}"
    );
    assert!(!table.contains("goodput"), "{table}");
}

#[test]
fn the_page_carries_everything_and_fetches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut results = lossy();
    results.discarded.push(Discarded {
        reason: "emulator late by 0.7 ms".into(),
        run: bulk("cubic", 1, 1.0),
    });
    let path = write_report(&dir.path().join("new/report"), &results).unwrap();
    let html = std::fs::read_to_string(path).unwrap();
    for outside in [
        "http:", "https:", "<script", "<link", "<img", "src=", "url(", "@import",
    ] {
        assert!(!html.contains(outside), "{outside}");
    }
    for said in [
        "<figcaption>Goodput",
        "<figcaption>Delivered",
        "<figcaption>Queue",
        "<figcaption>Delay of others",
        "goodput, Mbit/s",
        "time, s",
        "ceiling 94.7",
        "emulator late by 0.7 ms",
        "mef lab run topologies/lossy-200ms.toml",
        "prefers-color-scheme: dark",
    ] {
        assert!(html.contains(said), "{said}");
    }
    assert!(!html.contains("NaN"));
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    assert_eq!(html.matches("<svg").count(), 4);
}

#[test]
fn names_cannot_break_the_page() {
    let mut results = lossy();
    results.topology = "<script>x</script>".into();
    for run in &mut results.runs {
        run.transport = "\"><b>".into();
        run.variant = "<i>".into();
        run.errors = vec!["<u>".into()];
    }
    let html = page::page(&[results]);
    for raw in ["<script>x", "\"><b>", "<B>", "<i>", "<u>"] {
        assert!(!html.contains(raw), "{raw}");
    }
}

#[test]
fn nothing_measured_is_still_a_page_and_a_table() {
    let html = page::page(&[Results::default(), Results::default()]);
    assert!(html.ends_with("</html>\n"));
    assert!(print_table(&Results::default()).contains("transport"));
    let mut results = lossy();
    for run in &mut results.runs {
        run.series = Series::default();
        run.wan = Wan::default();
        run.flows.clear();
        run.ceiling_bps = 0.0;
    }
    assert!(!page::page(&[results]).contains("NaN"));
}

#[test]
fn several_files_make_one_report() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| {
        let path = dir.path().join(format!("{name}.json"));
        let results = Results {
            topology: format!("topology-{name}"),
            ..lossy()
        };
        results.write(&path).unwrap();
        path
    });
    let all = read_results(&paths).unwrap();
    let html = std::fs::read_to_string(write_combined(dir.path(), &all).unwrap()).unwrap();
    assert!(html.find("id=\"t0\"").unwrap() < html.find("id=\"t1\"").unwrap());
    assert!(html.contains("topology-a") && html.contains("topology-b"));

    std::fs::write(&paths[1], "{").unwrap();
    let error = read_results(&paths).unwrap_err().to_string();
    assert!(
        error.contains("b.json") && error.contains("not a result"),
        "{error}"
    );
}
