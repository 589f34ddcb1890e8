//! Repair in the middle of bulk transfers: which stretch of which flow gets some, and when.
//!
//! ```text
//!  first loss  RTT/8              some will be lost again, repair is worth it
//!   declared  -------> looked at ---------------------------------------------> span: encoded, sent
//!                      ^       | not yet        | not even at RTT/2
//!                      '-RTT/16'                '--> none: losses are sent again as often as it takes
//! ```
//!
//! What is lost again costs the reader a round trip more. Whether repair against
//! that is worth it is computed from the path and not from what a stretch
//! happened to lose: a few stretches without repair undo what it does for the
//! others.

use core::time::Duration;
use std::collections::BTreeSet;

use mef_packet::Instant;

use super::{Link, SendKey};
use crate::repair::repairs_needed;

/// Share of the line that repair may take for each second of round trip.
const WORTH: f64 = 0.07;
/// Expected losses of what was sent again, per round trip, below which the reader seldom waits.
const FEW: f64 = 0.3;
/// Of a stretch with fewer of these the repair would be many symbols for few.
const ENOUGH: f64 = 0.25;
/// Probability with which a stretch may need another round trip.
const DELTA: f64 = 3e-4;
/// Most symbols of a span in the middle: encoded while the line's credit lasts.
const MOST: usize = 512;
/// Symbols that may be covered within a second, all flows together, and how many of these at once:
/// encoding takes 2 microseconds of each, decoding 4.
const PER_SECOND: f64 = 40_000.0;
const AT_ONCE: f64 = 8192.0;
/// Most flows whose stretches are looked at; of so many none has much of the line.
const MAX_TORN: usize = 1024;

/// What becomes of a stretch.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    Repair,
    Wait,
    Pass,
}

/// A stretch of a stream: its symbols, the time in which they were sent, and the path they go by.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    symbols: usize,
    took: Duration,
    rtt: Duration,
    /// Mean loss, and the loss to compute repair for.
    mean: f64,
    loss: f64,
}

impl Stretch {
    fn verdict(&self) -> Verdict {
        let rtt = self.rtt.as_secs_f64().max(1e-3);
        let rtts = (self.took.as_secs_f64() / rtt).max(1e-3);
        // It ends with a loss; as many arrived since as lie between two.
        let symbols = self.symbols as f64 + 1.0 / self.mean.max(1e-3);
        let lost_again = symbols * self.mean * self.mean;
        // Where there is more than fits into one span, each has its part.
        let each = symbols.min(MOST as f64);
        let lost = each * self.mean;
        let repairs = repairs_needed(lost.ceil() as usize, 0, 0, 0, self.loss, DELTA);
        // What repair makes good need not be sent for the third time.
        let net = repairs as f64 - lost * self.mean / (1.0 - self.mean);
        let ripe = rtts >= 0.5 || self.symbols >= MOST;
        if lost_again / rtts < FEW || net > WORTH * rtt * each {
            if ripe {
                Verdict::Pass
            } else {
                Verdict::Wait
            }
        } else if ripe || lost_again >= ENOUGH {
            Verdict::Repair
        } else {
            Verdict::Wait
        }
    }
}

/// Flows of which a stretch is torn, and what may be encoded for them.
#[derive(Debug)]
pub(super) struct Torn {
    flows: BTreeSet<(Instant, u32)>,
    symbols: f64,
    earned: Instant,
}

impl Default for Torn {
    fn default() -> Self {
        Self {
            flows: BTreeSet::new(),
            symbols: AT_ONCE,
            earned: Instant::ZERO,
        }
    }
}

impl Torn {
    /// When there is something to do.
    pub(super) fn due(&self) -> Instant {
        self.flows
            .first()
            .map_or(Instant::FAR_FUTURE, |(at, _)| *at)
    }

    /// Takes `symbols` from what may be encoded.
    fn afford(&mut self, now: Instant, symbols: usize) -> bool {
        let earned = now.since(self.earned).as_secs_f64() * PER_SECOND;
        self.symbols = (self.symbols + earned).min(AT_ONCE);
        self.earned = now;
        let wanted = symbols as f64;
        let fits = wanted <= self.symbols;
        if fits {
            self.symbols -= wanted;
        }
        fits
    }
}

impl Link {
    /// A flow has lost bytes beyond what was looked at.
    pub(super) fn note_torn(&mut self, now: Instant, flow: u32) {
        if self.repairs() && self.torn.flows.len() < MAX_TORN {
            let at = now + self.rtt.smoothed() / 8;
            self.torn.flows.insert((at, flow));
        } else if let Some(f) = self.flows.get_mut(&flow) {
            f.send.pass_middle();
        }
    }

    /// Looks at the stretches that are due.
    pub(super) fn open_middles(&mut self, now: Instant) {
        let (symbol, rtt) = (self.payload_size(), self.rtt.smoothed());
        let (mean, loss) = (self.loss.mean(), self.loss.repair_loss());
        while self.torn.due() <= now {
            let Some((_, id)) = self.torn.flows.pop_first() else {
                return;
            };
            let Some(f) = self.flows.get_mut(&id) else {
                continue;
            };
            let Some(since) = f.send.torn_since() else {
                continue;
            };
            let symbols = f.send.torn_symbols(symbol);
            let stretch = Stretch {
                symbols,
                took: now.since(since),
                rtt,
                mean,
                loss,
            };
            match stretch.verdict() {
                Verdict::Wait => {
                    self.torn.flows.insert((now + rtt / 16, id));
                }
                Verdict::Repair if self.torn.afford(now, symbols) => {
                    f.send.open_middle(symbol, MOST, DELTA);
                    f.send.top_up(loss);
                    self.spanned.insert(id);
                    self.activated.push((SendKey::Stream(id), f.weight));
                }
                _ => f.send.pass_middle(),
            }
        }
    }
}
