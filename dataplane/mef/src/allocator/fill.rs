//! Progressive filling itself.
//!
//! Two kinds of events are taken in the order of their level: demands met,
//! sorted once, and resources filled, in a heap. A resource's filling level can
//! only rise while flows stop below it, so a stale heap entry is put back with
//! its present level when it comes up. Cost: O((D + R) log + G P) for D finite
//! demands, R resources, and G groups with paths of P resources.

use super::{weight_of, Group, Resource};
use core::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

#[derive(Clone, Copy, PartialEq)]
struct Full {
    level: f64,
    resource: usize,
}
impl Eq for Full {}
impl Ord for Full {
    fn cmp(&self, other: &Self) -> Ordering {
        self.level
            .total_cmp(&other.level)
            .then(self.resource.cmp(&other.resource))
    }
}
impl PartialOrd for Full {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What a resource has left for the flows whose rate still rises.
#[derive(Clone, Default)]
struct Left {
    capacity: f64,
    weight: u64,
    groups: Vec<usize>,
}

impl Left {
    fn full_at(&self) -> f64 {
        if self.weight == 0 {
            return f64::INFINITY;
        }
        self.capacity.max(0.0) / self.weight as f64
    }
    fn stop(&mut self, rate: f64, weight: u64) {
        self.capacity -= rate;
        self.weight = self.weight.saturating_sub(weight);
    }
}

/// Sets the level of every resource and group.
pub(super) fn fill(resources: &mut [Resource], groups: &mut [Group]) {
    let mut left: Vec<Left> = resources
        .iter()
        .map(|r| Left {
            capacity: r.capacity,
            ..Left::default()
        })
        .collect();
    for r in resources.iter_mut() {
        r.level = f64::INFINITY;
    }
    // (level at which it is met, group, rate, weight)
    let mut demands = Vec::new();
    // Weight of each group that still rises.
    let mut rising: Vec<u64> = Vec::with_capacity(groups.len());
    for (index, g) in groups.iter_mut().enumerate() {
        g.level = f64::INFINITY;
        rising.push(g.weight);
        for &r in &g.path {
            if let Some(l) = left.get_mut(r) {
                l.weight += g.weight;
                l.groups.push(index);
            }
        }
        for (_, spec) in &g.members {
            if let Some(demand) = spec.demand {
                let (rate, weight) = (demand.0 as f64, weight_of(spec));
                demands.push((rate / weight as f64, index, rate, weight));
            }
        }
    }
    demands.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let mut demands = demands.into_iter().peekable();
    let mut full: BinaryHeap<Reverse<Full>> = left
        .iter()
        .enumerate()
        .filter(|(_, l)| l.weight > 0 && l.capacity.is_finite())
        .map(|(resource, l)| {
            Reverse(Full {
                level: l.full_at(),
                resource,
            })
        })
        .collect();

    loop {
        let next_full = full.peek().map_or(f64::INFINITY, |f| f.0.level);
        // A demand that is met exactly when a resource fills up is met.
        if let Some((_, group, rate, weight)) = demands.next_if(|d| d.0 <= next_full) {
            let stopped = groups.get(group).is_none_or(|g| g.level.is_finite());
            if stopped {
                continue;
            }
            if let Some(w) = rising.get_mut(group) {
                *w = w.saturating_sub(weight);
            }
            stop(&mut left, groups, group, rate, weight);
            continue;
        }
        let Some(Reverse(Full { level, resource })) = full.pop() else {
            break;
        };
        let Some(l) = left.get_mut(resource) else {
            continue;
        };
        if l.weight == 0 {
            continue;
        }
        let now = l.full_at();
        if now > level {
            full.push(Reverse(Full {
                level: now,
                resource,
            }));
            continue;
        }
        if let Some(r) = resources.get_mut(resource) {
            r.level = level;
        }
        for group in core::mem::take(&mut l.groups) {
            let Some(g) = groups.get_mut(group).filter(|g| g.level.is_infinite()) else {
                continue;
            };
            g.level = level;
            let weight = rising.get_mut(group).map_or(0, core::mem::take);
            stop(&mut left, groups, group, level * weight as f64, weight);
        }
    }
}

fn stop(left: &mut [Left], groups: &[Group], group: usize, rate: f64, weight: u64) {
    for &r in groups.get(group).map_or(&[][..], |g| &g.path) {
        if let Some(l) = left.get_mut(r) {
            l.stop(rate, weight);
        }
    }
}
