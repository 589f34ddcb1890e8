//! Who gets which rate: weighted max-min fairness over paths of several
//! resources, computed exactly by progressive filling (D. Bertsekas,
//! R. Gallager, "Data Networks", 1992, section 6.5.2).
//!
//! ```text
//! level (rate per unit of weight) rises for all flows together
//!   ──▶ next event ──▶ a flow has what it demands:  it stays there
//!         │            a resource is full:          its flows stay there, and
//!         └──────────────────────────────────────── the level is the resource's
//! ```
//!
//! A flow's rate is `min(demand, weight * least level on its path)`, and the
//! levels are all that has to be told to others. Flows of the same path are one
//! group: a resource that fills up stops groups, not flows. Nothing is computed
//! until somebody asks after a change.

mod fill;
#[cfg(test)]
mod tests;

use hashbrown::HashMap;
use mef_packet::BitRate;

/// A line, or a link's own limit, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId(pub u32);

/// A flow, or a flow group, as its owner numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u64);

/// Rate per unit of weight, bit/s; infinite where the resource is not a bottleneck.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Level(pub f64);

impl Level {
    pub const INFINITE: Self = Self(f64::INFINITY);

    pub fn is_bottleneck(self) -> bool {
        self.0.is_finite()
    }
    /// What a flow of this weight gets at this level at most.
    pub fn rate_for(self, weight: u32) -> BitRate {
        let rate = self.0 * f64::from(weight);
        // Saturates: an infinite level is no limit.
        BitRate(rate as u64)
    }
}

/// What a flow asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowSpec {
    /// At least 1; 0 counts as 1.
    pub weight: u32,
    /// `None` for as much as there is.
    pub demand: Option<BitRate>,
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    group: usize,
    /// Where it stands in its group.
    place: usize,
}

/// Flows that share one path.
#[derive(Clone, Debug, Default)]
struct Group {
    /// Sorted, without repetition, as indices of resources.
    path: Vec<usize>,
    members: Vec<(FlowId, FlowSpec)>,
    /// Sum of the weights of all members.
    weight: u64,
    level: f64,
}

#[derive(Clone, Copy, Debug)]
struct Resource {
    /// Bit/s.
    capacity: f64,
    level: f64,
}

/// Max-min allocation of a set of resources among a set of flows.
#[derive(Clone, Debug, Default)]
pub struct Allocator {
    resource_index: HashMap<ResourceId, usize>,
    resources: Vec<Resource>,
    group_index: HashMap<Vec<usize>, usize>,
    groups: Vec<Group>,
    free_groups: Vec<usize>,
    flows: HashMap<FlowId, Flow>,
    stale: bool,
}

impl Allocator {
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what a resource carries. One that was never told a capacity limits nobody.
    pub fn set_capacity(&mut self, resource: ResourceId, capacity: BitRate) {
        let index = self.resource(resource);
        if let Some(r) = self.resources.get_mut(index) {
            let capacity = capacity.0 as f64;
            self.stale |= r.capacity != capacity;
            r.capacity = capacity;
        }
    }

    /// A flow begins, or one that is known takes another path. A resource named twice counts once.
    pub fn flow_added(&mut self, flow: FlowId, path: &[ResourceId], spec: FlowSpec) {
        self.flow_removed(flow);
        let mut path: Vec<usize> = path.iter().map(|&r| self.resource(r)).collect();
        path.sort_unstable();
        path.dedup();
        let group = match self.group_index.get(&path) {
            Some(&group) => group,
            None => {
                let new = Group {
                    path: path.clone(),
                    level: f64::INFINITY,
                    ..Group::default()
                };
                let group = self.free_groups.pop().unwrap_or(self.groups.len());
                match self.groups.get_mut(group) {
                    Some(slot) => *slot = new,
                    None => self.groups.push(new),
                }
                self.group_index.insert(path, group);
                group
            }
        };
        if let Some(g) = self.groups.get_mut(group) {
            self.flows.insert(
                flow,
                Flow {
                    group,
                    place: g.members.len(),
                },
            );
            g.weight += weight_of(&spec);
            g.members.push((flow, spec));
            self.stale = true;
        }
    }

    /// Weight or demand changed. A flow that is not known stays unknown.
    pub fn flow_changed(&mut self, flow: FlowId, spec: FlowSpec) {
        let Some(&Flow { group, place }) = self.flows.get(&flow) else {
            return;
        };
        let Some(g) = self.groups.get_mut(group) else {
            return;
        };
        let Some((_, old)) = g.members.get_mut(place) else {
            return;
        };
        if *old != spec {
            g.weight = g.weight + weight_of(&spec) - weight_of(old);
            *old = spec;
            self.stale = true;
        }
    }

    pub fn flow_removed(&mut self, flow: FlowId) {
        let Some(Flow { group, place }) = self.flows.remove(&flow) else {
            return;
        };
        let Some(g) = self.groups.get_mut(group) else {
            return;
        };
        let (_, spec) = g.members.swap_remove(place);
        g.weight -= weight_of(&spec);
        if let Some(moved) = g
            .members
            .get(place)
            .and_then(|(id, _)| self.flows.get_mut(id))
        {
            moved.place = place;
        }
        if g.members.is_empty() {
            let path = core::mem::take(&mut g.path);
            self.group_index.remove(&path);
            self.free_groups.push(group);
        }
        self.stale = true;
    }

    /// The level of a resource; infinite for one that is unknown or not full.
    pub fn level(&mut self, resource: ResourceId) -> Level {
        self.recompute();
        let index = self.resource_index.get(&resource);
        Level(
            index
                .and_then(|&i| self.resources.get(i))
                .map_or(f64::INFINITY, |r| r.level),
        )
    }

    /// The level of a path: what a flow on it gets per unit of weight, whether or not there is one.
    pub fn path_level(&mut self, path: &[ResourceId]) -> Level {
        path.iter()
            .map(|&r| self.level(r))
            .fold(Level::INFINITE, |a, b| if b < a { b } else { a })
    }

    /// The rate of a flow, rounded down; zero for one that is unknown, `u64::MAX` bit/s for one
    /// that nothing limits.
    pub fn rate(&mut self, flow: FlowId) -> BitRate {
        self.recompute();
        let known = self.flows.get(&flow).and_then(|f| {
            let g = self.groups.get(f.group)?;
            let (_, spec) = g.members.get(f.place)?;
            let fair = Level(g.level).rate_for(spec.weight.max(1));
            Some(spec.demand.map_or(fair, |d| d.min(fair)))
        });
        known.unwrap_or_default()
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    fn resource(&mut self, id: ResourceId) -> usize {
        let next = self.resources.len();
        let index = *self.resource_index.entry(id).or_insert(next);
        if index == next {
            self.resources.push(Resource {
                capacity: f64::INFINITY,
                level: f64::INFINITY,
            });
        }
        index
    }

    fn recompute(&mut self) {
        if self.stale {
            self.stale = false;
            fill::fill(&mut self.resources, &mut self.groups);
        }
    }
}

fn weight_of(spec: &FlowSpec) -> u64 {
    u64::from(spec.weight.max(1))
}
