//! A set of integers kept as sorted, disjoint, non-touching half-open ranges.
//! Insertions are nearly always at or near the end, so a vector serves.

/// Sorted disjoint ranges `[start, end)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<(u64, u64)>,
}

impl RangeSet {
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
    /// Number of ranges (not of integers).
    pub fn count(&self) -> usize {
        self.ranges.len()
    }
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().copied()
    }
    pub fn first(&self) -> Option<(u64, u64)> {
        self.ranges.first().copied()
    }
    pub fn last(&self) -> Option<(u64, u64)> {
        self.ranges.last().copied()
    }
    /// How many integers the set holds.
    pub fn total(&self) -> u64 {
        self.ranges.iter().map(|(s, e)| e - s).sum()
    }

    /// Index of the first range that ends at or after `x`.
    fn at(&self, x: u64) -> usize {
        // Most look-ups are near the end; walk there before halving.
        match self.ranges.last() {
            Some(&(s, _)) if x >= s => match self.ranges.last() {
                Some(&(_, e)) if e >= x => self.ranges.len() - 1,
                _ => self.ranges.len(),
            },
            _ => self.ranges.partition_point(|&(_, e)| e < x),
        }
    }

    /// Adds `[start, end)`; returns how many integers were new.
    pub fn insert(&mut self, start: u64, end: u64) -> u64 {
        if start >= end {
            return 0;
        }
        let i = self.at(start);
        let (mut s, mut e) = (start, end);
        let mut covered = 0;
        let mut j = i;
        while let Some(&(rs, re)) = self.ranges.get(j) {
            if rs > end {
                break;
            }
            covered += re.min(end).saturating_sub(rs.max(start));
            s = s.min(rs);
            e = e.max(re);
            j += 1;
        }
        if j == i {
            self.ranges.insert(i, (s, e));
        } else {
            if let Some(r) = self.ranges.get_mut(i) {
                *r = (s, e);
            }
            self.ranges.drain(i + 1..j);
        }
        end - start - covered
    }

    /// Removes `[start, end)`.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let i = self.ranges.partition_point(|&(_, e)| e <= start);
        let mut j = i;
        let mut keep: [Option<(u64, u64)>; 2] = [None, None];
        while let Some(&(rs, re)) = self.ranges.get(j) {
            if rs >= end {
                break;
            }
            if rs < start {
                keep[0] = Some((rs, start));
            }
            if re > end {
                keep[1] = Some((end, re));
            }
            j += 1;
        }
        self.ranges.splice(i..j, keep.into_iter().flatten());
    }

    pub fn contains(&self, x: u64) -> bool {
        self.covers(x, x + 1)
    }
    /// Whether all of `[start, end)` is in the set.
    pub fn covers(&self, start: u64, end: u64) -> bool {
        if start >= end {
            return true;
        }
        let i = self.ranges.partition_point(|&(_, e)| e <= start);
        self.ranges
            .get(i)
            .is_some_and(|&(s, e)| s <= start && e >= end)
    }
    /// The parts of `[start, end)` that are not in the set, in order.
    pub fn gaps(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let i = self.ranges.partition_point(|&(_, e)| e <= start);
        let mut at = start;
        let mut rest = self.ranges.get(i..).unwrap_or(&[]).iter();
        std::iter::from_fn(move || {
            while at < end {
                let (s, e) = rest.next().copied().unwrap_or((end, u64::MAX));
                let gap = (at, s.min(end));
                at = e;
                if gap.0 < gap.1 {
                    return Some(gap);
                }
            }
            None
        })
    }
    pub fn clear(&mut self) {
        self.ranges.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set(ops in proptest::collection::vec((any::<bool>(), 0u64..200, 0u64..30), 1..80)) {
            let mut set = RangeSet::new();
            let mut model = BTreeSet::new();
            for (add, start, len) in ops {
                if add {
                    let new = (start..start + len).filter(|x| model.insert(*x)).count() as u64;
                    prop_assert_eq!(set.insert(start, start + len), new);
                } else {
                    for x in start..start + len { model.remove(&x); }
                    set.remove(start, start + len);
                }
                let flat: Vec<u64> = set.iter().flat_map(|(s, e)| s..e).collect();
                prop_assert_eq!(&flat, &model.iter().copied().collect::<Vec<_>>());
                let mut last = None;
                for (s, e) in set.iter() {
                    prop_assert!(s < e);
                    if let Some(l) = last { prop_assert!(s > l); }
                    last = Some(e);
                }
                let gaps: Vec<u64> = set.gaps(10, 150).flat_map(|(s, e)| s..e).collect();
                prop_assert_eq!(gaps, (10..150).filter(|x| !model.contains(x)).collect::<Vec<_>>());
                prop_assert_eq!(set.covers(20, 25), (20..25).all(|x| model.contains(&x)));
            }
        }
    }
}
