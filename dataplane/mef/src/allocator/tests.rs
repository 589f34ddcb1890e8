use super::*;
use proptest::prelude::*;

fn mbit(m: u64) -> Option<BitRate> {
    Some(BitRate::from_mbit(m))
}

fn allocator(capacities: &[u64], flows: &[(&[u32], u32, Option<BitRate>)]) -> Allocator {
    let mut a = Allocator::new();
    for (i, &c) in capacities.iter().enumerate() {
        a.set_capacity(ResourceId(i as u32), BitRate::from_mbit(c));
    }
    for (i, &(path, weight, demand)) in flows.iter().enumerate() {
        let path: Vec<_> = path.iter().map(|&r| ResourceId(r)).collect();
        a.flow_added(FlowId(i as u64), &path, FlowSpec { weight, demand });
    }
    a
}

fn rates(a: &mut Allocator, n: u64) -> Vec<f64> {
    (0..n).map(|i| a.rate(FlowId(i)).0 as f64 / 1e6).collect()
}

fn near(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-5)
}

#[test]
fn one_line_by_weight() {
    let mut a = allocator(&[70], &[(&[0], 1, None), (&[0], 2, None), (&[0], 4, None)]);
    assert!(near(&rates(&mut a, 3), &[10.0, 20.0, 40.0]));
    assert!((a.level(ResourceId(0)).0 - 10e6).abs() < 1.0);
}

#[test]
fn what_one_does_not_want_the_others_share() {
    let mut a = allocator(
        &[90],
        &[(&[0], 1, mbit(10)), (&[0], 1, None), (&[0], 3, None)],
    );
    assert!(near(&rates(&mut a, 3), &[10.0, 20.0, 60.0]));
    a.flow_changed(
        FlowId(0),
        FlowSpec {
            weight: 1,
            demand: None,
        },
    );
    assert!(near(&rates(&mut a, 3), &[18.0, 18.0, 54.0]));
    a.flow_removed(FlowId(2));
    assert!(near(&rates(&mut a, 2), &[45.0, 45.0]));
    a.set_capacity(ResourceId(0), BitRate::from_mbit(30));
    assert!(near(&rates(&mut a, 2), &[15.0, 15.0]));
}

#[test]
fn the_parking_lot() {
    // One long flow over three lines, one short one on each.
    let mut a = allocator(
        &[10, 20, 30],
        &[
            (&[0, 1, 2], 1, None),
            (&[0], 1, None),
            (&[1], 1, None),
            (&[2], 1, None),
        ],
    );
    assert!(near(&rates(&mut a, 4), &[5.0, 5.0, 15.0, 25.0]));
}

#[test]
fn a_hub_with_one_slow_site() {
    // Uplink 100 to sites with 10 and 1000.
    let mut a = allocator(&[100, 10, 1000], &[(&[0, 1], 1, None), (&[0, 2], 1, None)]);
    assert!(near(&rates(&mut a, 2), &[10.0, 90.0]));
    assert!(!a.level(ResourceId(2)).is_bottleneck());
    assert_eq!(
        a.path_level(&[ResourceId(0), ResourceId(1)]),
        a.level(ResourceId(1))
    );
}

#[test]
fn what_is_unknown_limits_nobody_and_gets_nothing() {
    let mut a = Allocator::new();
    assert_eq!(a.rate(FlowId(1)), BitRate(0));
    assert_eq!(a.level(ResourceId(7)), Level::INFINITE);
    a.flow_added(
        FlowId(1),
        &[ResourceId(7), ResourceId(7)],
        FlowSpec {
            weight: 0,
            demand: None,
        },
    );
    assert_eq!(a.rate(FlowId(1)), BitRate(u64::MAX));
    a.set_capacity(ResourceId(7), BitRate::from_mbit(1));
    assert_eq!(a.rate(FlowId(1)), BitRate::from_mbit(1));
    a.set_capacity(ResourceId(7), BitRate(0));
    assert_eq!(a.rate(FlowId(1)), BitRate(0));
    a.flow_changed(
        FlowId(2),
        FlowSpec {
            weight: 1,
            demand: None,
        },
    );
    a.flow_removed(FlowId(2));
    assert_eq!(a.len(), 1);
}

#[test]
fn thousands_of_flows_are_no_matter() {
    let mut a = Allocator::new();
    for r in 0..50 {
        a.set_capacity(ResourceId(r), BitRate::from_mbit(100 + u64::from(r)));
    }
    for f in 0..20_000u64 {
        let path = [ResourceId((f % 50) as u32), ResourceId((f * 7 % 49) as u32)];
        let demand = (f % 3 == 0).then_some(BitRate(f * 1000));
        a.flow_added(
            FlowId(f),
            &path,
            FlowSpec {
                weight: 1 + (f % 5) as u32,
                demand,
            },
        );
    }
    let start = std::time::Instant::now();
    for f in 0..20_000 {
        a.rate(FlowId(f));
    }
    assert!(
        start.elapsed().as_millis() < 500,
        "computed once, not per question: {:?}",
        start.elapsed()
    );
}

/// Progressive filling in the plainest way: per flow, all constraints, one event at a time.
fn brute_force(capacities: &[f64], flows: &[(Vec<usize>, f64, f64)]) -> Vec<f64> {
    let mut fixed: Vec<Option<f64>> = vec![None; flows.len()];
    while fixed.iter().any(Option::is_none) {
        let mut level = f64::INFINITY;
        for (r, c) in capacities.iter().enumerate() {
            let used: f64 = (0..flows.len())
                .filter(|&f| flows[f].0.contains(&r))
                .filter_map(|f| fixed[f])
                .sum();
            let weight: f64 = (0..flows.len())
                .filter(|&f| fixed[f].is_none() && flows[f].0.contains(&r))
                .map(|f| flows[f].1)
                .sum();
            if weight > 0.0 {
                level = level.min((c - used).max(0.0) / weight);
            }
        }
        for f in (0..flows.len()).filter(|&f| fixed[f].is_none()) {
            level = level.min(flows[f].2 / flows[f].1);
        }
        // Who stops at this level: flows with their demand, flows over a resource that is full.
        let mut stops = vec![];
        for f in (0..flows.len()).filter(|&f| fixed[f].is_none()) {
            let (path, w, d) = &flows[f];
            let full = path.iter().any(|r| {
                let total: f64 = (0..flows.len())
                    .filter(|&g| flows[g].0.contains(r))
                    .map(|g| fixed[g].unwrap_or(level * flows[g].1))
                    .sum();
                total >= capacities[*r] * (1.0 - 1e-9)
            });
            if full || *d <= level * w * (1.0 + 1e-12) {
                stops.push((f, d.min(level * w)));
            }
        }
        assert!(!stops.is_empty());
        for (f, rate) in stops {
            fixed[f] = Some(rate);
        }
    }
    fixed.into_iter().flatten().collect()
}

type Case = (Vec<u64>, Vec<(Vec<u32>, u32, Option<u64>)>);

fn case() -> impl Strategy<Value = Case> {
    (1usize..7).prop_flat_map(|n| {
        let capacities = prop::collection::vec(1u64..1000, n);
        let path =
            prop::collection::btree_set(0..n as u32, 1..=n).prop_map(|s| s.into_iter().collect());
        let flow = (path, 1u32..20, prop::option::of(0u64..300));
        (capacities, prop::collection::vec(flow, 1..25))
    })
}

fn build((capacities, flows): &Case) -> (Allocator, Vec<f64>) {
    let refs: Vec<_> = flows
        .iter()
        .map(|(p, w, d)| (&p[..], *w, d.map(BitRate::from_mbit)))
        .collect();
    let mut a = allocator(capacities, &refs);
    let r = rates(&mut a, flows.len() as u64);
    (a, r)
}

proptest! {
    #[test]
    fn equals_the_plain_solver(case in case()) {
        let (_, got) = build(&case);
        let capacities: Vec<f64> = case.0.iter().map(|&c| c as f64).collect();
        let flows: Vec<_> = case.1.iter().map(|(p, w, d)| {
            let path = p.iter().map(|&r| r as usize).collect();
            (path, f64::from(*w), d.map_or(f64::INFINITY, |d| d as f64))
        }).collect();
        let want = brute_force(&capacities, &flows);
        prop_assert!(near(&got, &want), "{got:?} instead of {want:?}");
    }

    /// Feasible, and every flow has its demand or a full resource on which nobody has more per weight.
    #[test]
    fn is_max_min_fair(case in case()) {
        let (mut a, rates) = build(&case);
        let (capacities, flows) = &case;
        let used: Vec<f64> = (0..capacities.len() as u32)
            .map(|r| flows.iter().zip(&rates).filter(|((p, _, _), _)| p.contains(&r)).map(|(_, x)| x).sum())
            .collect();
        for (u, &c) in used.iter().zip(capacities) {
            prop_assert!(*u <= c as f64 + 1e-5, "{u} of {c}");
        }
        for (i, (path, w, d)) in flows.iter().enumerate() {
            let mine = rates[i] / f64::from(*w);
            let satisfied = d.is_some_and(|d| rates[i] >= d as f64 - 1e-5);
            let bottleneck = path.iter().any(|&r| {
                let full = used[r as usize] >= capacities[r as usize] as f64 - 1e-4;
                let most = flows.iter().zip(&rates).filter(|((p, _, _), _)| p.contains(&r))
                    .map(|((_, w, _), x)| x / f64::from(*w)).fold(0.0, f64::max);
                full && mine >= most - 1e-5
            });
            prop_assert!(satisfied || bottleneck, "flow {i} could have more");
            // And the levels alone say the same.
            let path: Vec<_> = path.iter().map(|&r| ResourceId(r)).collect();
            let told = a.path_level(&path).0 * f64::from(*w) / 1e6;
            let told = d.map_or(told, |d| told.min(d as f64));
            prop_assert!((told - rates[i]).abs() < 1e-5, "{told} {}", rates[i]);
        }
    }

    /// However the flows got here, the result is that of starting with them.
    #[test]
    fn history_does_not_matter(case in case(), order in prop::collection::vec((0usize..25, 0u8..3), 0..60)) {
        let (mut a, want) = build(&case);
        let (_, flows) = &case;
        let spec = |i: usize| FlowSpec { weight: flows[i].1, demand: flows[i].2.map(BitRate::from_mbit) };
        let path = |i: usize| flows[i].0.iter().map(|&r| ResourceId(r)).collect::<Vec<_>>();
        for (i, op) in order {
            let i = i % flows.len();
            let id = FlowId(i as u64);
            match op {
                0 => a.flow_removed(id),
                1 => a.flow_changed(id, FlowSpec { weight: 7, demand: mbit(3) }),
                _ => a.flow_added(id, &path((i + 1) % flows.len()), spec(i)),
            }
            a.rate(id);
        }
        for i in 0..flows.len() {
            a.flow_added(FlowId(i as u64), &path(i), spec(i));
        }
        prop_assert!(near(&rates(&mut a, flows.len() as u64), &want));
    }
}
