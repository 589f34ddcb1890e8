//! Control that waits to be packed: what is due, once each and in order, and
//! what is to be said again a moment later. Everything is found without looking
//! through the queue: thousands of flows have something to say at times.

use std::collections::{BTreeMap, HashSet, VecDeque};

use mef_packet::Instant;

use super::Control;

#[derive(Debug, Default)]
pub(super) struct ControlQueue {
    due: VecDeque<Control>,
    /// What is in `due`, but for HELLO.
    known: HashSet<Control>,
    hello: bool,
    later: BTreeMap<(Instant, u64), Control>,
    /// Keeps those of one moment in order.
    count: u64,
}

impl ControlQueue {
    /// To be said as soon as may be; once, however often it is asked for.
    pub fn now(&mut self, what: Control) {
        if what == Control::Hello {
            self.hello = true;
        } else if self.known.insert(what) {
            self.due.push_back(what);
        }
    }

    /// To be said at a time.
    pub fn at(&mut self, at: Instant, what: Control) {
        self.count += 1;
        self.later.insert((at, self.count), what);
    }

    /// What has become due joins the queue.
    pub fn ripen(&mut self, now: Instant) {
        while let Some(entry) = self.later.first_entry().filter(|e| e.key().0 <= now) {
            let what = entry.remove();
            self.now(what);
        }
    }

    /// The next thing to say.
    pub fn first(&self, hello_only: bool) -> Option<Control> {
        if self.hello {
            return Some(Control::Hello);
        }
        self.due.front().copied().filter(|_| !hello_only)
    }

    /// `what`, which [`first`](Self::first) named, was said.
    pub fn done(&mut self, what: Control) {
        if what == Control::Hello {
            self.hello = false;
        } else if self.due.front() == Some(&what) {
            self.due.pop_front();
            self.known.remove(&what);
        }
    }

    /// When something is due.
    pub fn due(&self, hello_only: bool) -> Instant {
        if self.first(hello_only).is_some() {
            return Instant::ZERO;
        }
        if hello_only {
            let mut hellos = self.later.iter().filter(|(_, c)| **c == Control::Hello);
            return hellos
                .next()
                .map_or(Instant::FAR_FUTURE, |((at, _), _)| *at);
        }
        self.later
            .first_key_value()
            .map_or(Instant::FAR_FUTURE, |((at, _), _)| *at)
    }

    pub fn is_empty(&self) -> bool {
        !self.hello && self.due.is_empty() && self.later.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    #[test]
    fn once_in_order_and_hello_first() {
        let t = Instant::from_millis(10);
        let mut q = ControlQueue::default();
        assert_eq!(q.due(false), Instant::FAR_FUTURE);
        q.now(Control::Setup(2));
        q.now(Control::Window(4));
        q.now(Control::Setup(2));
        q.at(t, Control::Setup(2));
        q.at(t, Control::Hello);
        assert_eq!((q.due(false), q.due(true)), (Instant::ZERO, t));
        let mut said = Vec::new();
        let mut say = |q: &mut ControlQueue, hello_only| {
            while let Some(c) = q.first(hello_only) {
                said.push(c);
                q.done(c);
            }
        };
        say(&mut q, true);
        say(&mut q, false);
        assert_eq!(q.due(false), t);
        q.ripen(t);
        say(&mut q, false);
        let s2 = Control::Setup(2);
        assert_eq!(said, [s2, Control::Window(4), Control::Hello, s2]);
        assert!(q.is_empty());
    }

    #[test]
    fn a_repetition_of_what_still_waits_is_said_once() {
        let mut q = ControlQueue::default();
        for i in 0..10_000 {
            q.now(Control::Window(i));
            q.at(Instant::ZERO + Duration::from_millis(3), Control::Window(i));
        }
        q.ripen(Instant::from_millis(3));
        let mut n = 0;
        while let Some(c) = q.first(false) {
            q.done(c);
            n += 1;
        }
        assert_eq!(n, 10_000);
    }
}
