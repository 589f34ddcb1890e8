//! One of several controllers of the same line decides on its rate, the others follow it and go on
//! learning, so that each of them can take over: what is handed on then.

use mef_packet::time::Duration;
use mef_packet::{BitRate, Instant};

use super::compete::Compete;
use super::{AutoRate, State};

/// Seconds in which the least queue is one that stands, and of reports of another link that are surely from
/// within them: what is found is never more than what waited.
const STANDING: f64 = 1.0;
const WITHIN: f64 = 0.1;
/// By so much the delays of two links' packets may differ in the same queue: a base too low is one that no
/// drain ever shows again, one a little too high is mended by the next drain.
const DIFFERENT: f64 = 0.003;
/// So much longer than a round trip a rate is held: about what it took to find out.
const HOLD: f64 = 0.3;
/// Without a report for so long a queue is no longer known.
const SILENT: Duration = Duration::from_millis(60);

/// What a controller hands on to others of the same line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    rate: f64,
    /// That of the last report.
    heard_rate: f64,
    starting: bool,
    careful_until: Instant,
    overflowed: (Option<Instant>, Option<Instant>),
}

impl Course {
    pub fn rate(&self) -> BitRate {
        BitRate((self.rate * 8.0) as u64)
    }
}

impl AutoRate {
    /// Where the controller is, for those that follow it.
    pub(crate) fn course(&self) -> Course {
        Course {
            rate: self.rate,
            heard_rate: self.heard_rate,
            starting: self.state == State::Starting,
            careful_until: self.careful_until,
            overflowed: self.overflowed,
        }
    }

    /// Least queue of late, seconds; none where it is not known any more.
    pub(crate) fn standing(&self, now: Instant) -> f64 {
        if now.since(self.reported) > SILENT {
            return 0.0;
        }
        self.recent_queue(STANDING)
    }

    /// Another controller of the same line decides on its rate: this one goes on learning, so that it can
    /// [lead](Self::lead) when that one no longer does.
    pub(crate) fn follow(&mut self, leader: Course) {
        if !self.led {
            self.led = true;
            self.compete = Compete::default();
            (self.asked, self.drained) = (None, None);
        }
        self.state = if leader.starting {
            State::Starting
        } else {
            State::Following
        };
        self.rate = leader.rate;
    }

    /// Decides on the line's rate again, from where the other one left it, or, where the other one's path is `gone`,
    /// from where that was last heard.
    /// Who waited in the same queue may have learnt its delay without one: `standing` is the other's
    /// [least queue](Self::standing).
    pub(crate) fn lead(&mut self, now: Instant, before: Option<Course>, gone: bool, standing: f64) {
        if !self.led {
            return;
        }
        self.led = false;
        if let Some(at) = self.reports.last().map(|p| p.at) {
            let sure = standing - DIFFERENT;
            let delay = self.reports.least_delay(WITHIN) - sure;
            if sure > 0.0 && delay < self.base.least() {
                self.base.learn(at, delay);
            }
        }
        self.peak = (now, self.mu);
        self.next_drain = now + Duration::from_secs(3);
        if let Some(b) = before {
            self.rate = if gone { b.heard_rate } else { b.rate };
            if gone {
                let until = now + Duration::from_secs_f64(self.lag + HOLD);
                self.held = Some((until, self.rate));
            } else {
                self.mu = self.mu.min(b.rate);
            }
            self.careful_until = b.careful_until;
            self.overflowed = b.overflowed;
        }
    }
}
