//! How a router ends in order: no new flows, time for those that run, then RST
//! for the hosts and word to the peers.
//!
//! ```text
//!  running -- drain() --> draining -- no flow left ---------------------> drained
//!                            '------ time is over: every flow is reset --> saying so --> drained
//! ```

use std::time::Duration;

use mef_io::Port;
use mef_packet::Instant;

use super::Router;

/// How long the last resets have to leave by lines that are busy.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A router that was told to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    /// When what still runs is reset.
    until: Instant,
    /// Everything was reset; what is left to say has until then.
    reset: Option<Instant>,
}

impl<P: Port> Router<P> {
    /// Takes no new flow from now on; those that run may go on for `time`, then they are reset.
    pub fn drain(&mut self, now: Instant, time: Duration) {
        if self.draining.is_none() {
            self.draining = Some(Drain {
                until: now + time,
                reset: None,
            });
            self.neighbours.withdraw();
            tracing::info!(
                flows = self.flows.len(),
                "stopping: no new flows, those that run have {:.1} s",
                time.as_secs_f64()
            );
        }
    }

    /// No flow is left and everybody was told; the router may be dropped.
    pub fn is_drained(&self, now: Instant) -> bool {
        match self.draining {
            None => false,
            Some(Drain {
                reset: Some(until), ..
            }) => now >= until || !self.has_control(),
            Some(_) => self.flows.is_empty(),
        }
    }

    fn has_control(&self) -> bool {
        self.lines
            .iter()
            .flat_map(|l| &l.peers)
            .any(|p| p.link.is_up() && p.link.has_control())
    }

    pub(super) fn drain_timers(&mut self, now: Instant) {
        let Some(Drain { until, reset: None }) = self.draining else {
            return;
        };
        if now < until {
            return;
        }
        let indices: Vec<usize> = self.flows.indices().collect();
        for index in indices {
            self.reset_host(now, index);
        }
        self.draining = Some(Drain {
            until,
            reset: Some(now + LAST_WORDS),
        });
    }

    pub(super) fn drain_due(&self) -> Option<Instant> {
        self.draining.map(|d| d.reset.unwrap_or(d.until))
    }
}
