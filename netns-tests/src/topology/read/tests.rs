use super::*;
use crate::topology::{Kind, Open, Side};
use crate::wan::{Change, Line, Loss};
use mef_packet::{BitRate, Bytes};
use std::time::Duration;

fn parse(text: &str, sets: &[&str]) -> Result<Vec<Variant>, TopologyError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("case.toml");
    std::fs::write(&path, text).unwrap();
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    read(&path, &sets)
}

fn one(text: &str) -> Topology {
    parse(text, &[]).unwrap().remove(0).topology
}

fn refused(text: &str, sets: &[&str]) -> String {
    parse(text, sets).unwrap_err().to_string()
}

#[test]
fn what_is_not_said_is_100_mbit_200_ms_and_one_bdp() {
    let t = one("description = 'x'\n[[load]]\nkind = 'bulk'");
    assert_eq!(t.name, "case");
    for d in [&t.wan.a_to_b, &t.wan.b_to_a] {
        assert!(matches!(d.line, Line::Rate(r) if r == BitRate::from_mbit(100)));
        assert_eq!(d.delay, Duration::from_millis(100));
        assert_eq!(d.queue, Bytes(2_500_000));
        assert_eq!((d.loss, d.mtu), (Loss::NONE, 1500));
    }
    assert_eq!(
        t.hosts.iter().map(|h| h.name.as_str()).collect::<Vec<_>>(),
        ["a1", "b1"]
    );
    assert_eq!(t.host("b1").unwrap().address().to_string(), "10.2.1.2");
    assert_eq!((t.loads[0].kind, t.loads[0].port), (Kind::Bulk, 5201));
    assert_eq!(t.probe, Some((0, 1)));
    assert_eq!(
        t.configured(Side::A),
        (BitRate::from_mbit(100), BitRate::from_mbit(100))
    );
}

#[test]
fn a_direction_has_its_own_keys_before_the_common_ones() {
    let t = one("description='x'
        [wan]
        loss = 0.01
        rtt = '60ms'
        queue = '50ms'
        a_to_b = { rate = '40Mbit/s' }
        b_to_a = { rate = '10Mbit/s', loss = 0, jitter = '5ms', reorder = true, burst = 1, delay = '10ms' }
        [[wan.at]]
        seconds = 3
        mtu = 1400
        [[wan.at]]
        seconds = 1.5
        direction = 'b_to_a'
        blackhole = true");
    assert_eq!(t.wan.a_to_b.loss, Loss::Iid(0.01));
    assert_eq!(t.wan.a_to_b.queue, Bytes(250_000));
    assert_eq!(t.wan.b_to_a.queue, Bytes(62_500));
    assert_eq!(t.wan.rtt(), Duration::from_millis(40));
    assert!(t.wan.b_to_a.reorder);
    assert_eq!(t.wan.b_to_a.loss.mean(), 0.0);
    assert_eq!(t.wan.a_to_b.changes.len(), 1);
    // In order of time, whatever the order in the file.
    assert_eq!(t.wan.b_to_a.changes[0].change, Change::Blackhole(true));
    assert_eq!(
        t.configured(Side::B),
        (BitRate::from_mbit(10), BitRate::from_mbit(40))
    );
}

#[test]
fn unknown_keys_are_refused_with_their_place_and_what_is_known() {
    let message = refused("description = 'x'\n[wan]\nlos = 0.01\n", &[]);
    for part in ["case.toml", "line 3", "`los`", "expected", "`loss`"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    for text in [
        "[[load]]\nkind='bulk'\nsiez='1kB'",
        "[site.c]",
        "[router]\nmode=1",
        "[[wan.at]]\nseconds=1\nfoo=2",
    ] {
        assert!(
            refused(&format!("description='x'\n{text}"), &[]).contains("unknown field"),
            "{text}"
        );
    }
}

#[test]
fn wrong_values_are_refused_with_what_was_expected() {
    for (text, key, expected) in [
        ("[wan]\nrate = '100mbps'", "line 3", "100Mbit/s"),
        ("[wan]\nrate = 100", "line 3", "100Mbit/s"),
        ("[wan]\nloss = 1.5", "loss", "0 to 1"),
        ("[wan]\nmtu = 100", "mtu", "576"),
        ("[[load]]\nkind='bulk'\nfrom='a7'", "load.0.from", "a1, b1"),
        ("[[load]]\nkind='bulk'\nto='a1'", "load.0.to", "other site"),
        ("[[load]]\nkind='transfer'", "load.0.size", "size"),
        ("[[load]]\nkind='bulk'\nsize='1kB'", "load.0.size", "none"),
        ("[[load]]\nkind='bulk'\nweight=0.0", "weight", "0.01"),
        ("[[wan.at]]\nseconds=1", "wan.at.0", "blackhole"),
        ("[wan]\ntrace='nowhere'", "trace", "readable"),
        ("[wan]\nrate='1Mbit/s'\ntrace='x'", "rate", "one of them"),
    ] {
        let message = refused(&format!("description='x'\n{text}"), &[]);
        assert!(
            message.contains("case.toml") && message.contains(key),
            "{message}"
        );
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn overrides_replace_values_and_whole_variant_lists() {
    let text = "description='x'\n[[load]]\nkind='bulk'\n[variants]\nloss = [0, 0.01]\nopen = ['confirm', 'early']";
    let all = parse(text, &[]).unwrap();
    let labels: Vec<&str> = all.iter().map(|v| v.label.as_str()).collect();
    assert_eq!(labels, ["0% loss", "0% loss", "1% loss", "1% loss"]);
    assert_eq!(all[3].topology.router.open, Open::Early);
    let same: Vec<_> = all.iter().map(|v| v.same_without_routers).collect();
    assert_eq!(same, [None, Some(0), None, Some(2)]);

    let set = parse(
        text,
        &[
            "wan.loss=0.05",
            "open=early",
            "wan.rate=50Mbit/s",
            "load.0.count=3",
        ],
    )
    .unwrap();
    assert_eq!(set.len(), 1);
    assert_eq!(set[0].topology.wan.a_to_b.loss, Loss::Iid(0.05));
    assert_eq!(set[0].topology.loads[0].count, 3);
    assert!(
        matches!(set[0].topology.wan.b_to_a.line, Line::Rate(r) if r == BitRate::from_mbit(50))
    );

    assert!(refused(text, &["wan.los=0.05"]).contains("unknown field `los`"));
    assert!(refused(text, &["load.4.count=1"]).contains("entries"));
    assert!(refused(text, &["loss"]).contains("KEY=VALUE"));
}

#[test]
fn cases_change_several_values_at_once() {
    let all = parse(
        "description='x'\n[[variant]]\nlabel='small'\nset={'wan.mtu'=1280}\n
         [[variant]]\nlabel='shrinks'\nset={'wan.at'=[{seconds=3, mtu=1400}]}",
        &[],
    )
    .unwrap();
    assert_eq!(all[0].topology.wan.a_to_b.mtu, 1280);
    assert_eq!(
        (
            all[1].label.as_str(),
            all[1].topology.wan.b_to_a.changes.len()
        ),
        ("shrinks", 1)
    );
}

#[test]
fn every_topology_that_comes_with_the_source_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../topologies");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "toml") {
            let all = read(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
            assert!(
                all.iter().all(|v| !v.topology.loads.is_empty()),
                "{}",
                path.display()
            );
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen}");
}
