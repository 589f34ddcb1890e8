//! The delay of the path without a queue: the least of the last ten seconds, or of the
//! last two while the path is found to become longer again and again.
//!
//! Ten seconds also bound what a skew of the two clocks can do (50 ppm are 0.5 ms
//! in that time). Whoever keeps a queue must empty it once in that time, or the
//! queue becomes the base.

use std::collections::VecDeque;

/// Seconds per minimum that is kept.
const BUCKET: f64 = 0.25;
const LONGEST: f64 = 10.0;
const LONGEST_VARYING: f64 = 30.0;
const SHORTEST: f64 = 2.0;
const FLOORS: usize = 6;

#[derive(Clone, Debug)]
pub(super) struct Base {
    /// Start of each bucket and its least delay, newest last.
    least: VecDeque<(f64, f64)>,
    window: f64,
    /// What `window` may grow to.
    longest: f64,
    /// Least delay per ten seconds, for a minute: what others' queues may have covered since.
    floor: VecDeque<(f64, f64)>,
    /// Seconds in which the line delivered nothing: they do not count.
    paused: f64,
}

impl Default for Base {
    fn default() -> Self {
        Self {
            least: VecDeque::new(),
            window: LONGEST,
            longest: LONGEST,
            floor: VecDeque::new(),
            paused: 0.0,
        }
    }
}

impl Base {
    /// A line that varies by itself needs its queue, and emptying it costs: the base of thirty
    /// seconds counts there (50 ppm are 1.5 ms in that time).
    pub fn line_varies(&mut self, varies: bool) {
        self.longest = if varies { LONGEST_VARYING } else { LONGEST };
    }

    /// Nothing could be learnt for so many seconds.
    pub fn pause(&mut self, seconds: f64) {
        self.paused += seconds.max(0.0);
    }

    pub fn learn(&mut self, at: f64, delay: f64) {
        let at = at - self.paused;
        match self.least.back_mut() {
            Some((start, least)) if at - *start < BUCKET => *least = delay.min(*least),
            last => {
                // A path that has stopped changing is trusted for longer again.
                let passed = last.map_or(0.0, |l| at - l.0);
                self.window = (self.window + passed / 4.0).min(self.longest);
                self.least.push_back((at, delay));
            }
        }
        match self.floor.back_mut() {
            Some((start, least)) if at - *start < LONGEST => *least = delay.min(*least),
            _ => self.floor.push_back((at, delay)),
        }
        while self.floor.len() > FLOORS {
            self.floor.pop_front();
        }
        while self.least.len() > 1 && self.least.front().is_some_and(|l| at - l.0 > self.window) {
            self.least.pop_front();
        }
    }

    /// `delay` above the base, seconds.
    pub fn above(&self, delay: f64) -> f64 {
        (delay - self.least()).max(0.0)
    }

    /// `delay` above the least of a minute, seconds.
    pub fn above_floor(&self, delay: f64) -> f64 {
        delay - self.floor.iter().fold(delay, |f, l| f.min(l.1))
    }

    /// The lowest delay remembered.
    pub fn least(&self) -> f64 {
        self.least.iter().fold(f64::INFINITY, |b, l| b.min(l.1))
    }

    /// The path has become longer: `delay` is the base now.
    pub fn replace(&mut self, at: f64, delay: f64) {
        self.least.clear();
        self.learn(at, delay);
        self.window = SHORTEST;
    }

    /// How long no delay within `margin` of the base was seen, as a share of what is remembered.
    pub fn staleness(&self, at: f64, margin: f64) -> f64 {
        let at = at - self.paused;
        let base = self.least() + margin;
        let seen = self.least.iter().rev().find(|l| l.1 <= base);
        seen.map_or(0.0, |l| (at - l.0 - BUCKET) / self.window)
    }
}
