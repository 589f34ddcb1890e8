//! What the two ends tell each other of hosts that say nothing: whether a flow's
//! host is alive, and which connections were there before the peer was restarted.
//! All of it is said twice or more and asked again by hosts, so nothing is
//! repeated because a packet was lost.

use core::time::Duration;
use std::net::SocketAddr;

use mef_packet::Instant;

use super::{Control, Event, Link};
use crate::codec::Frame;

/// A restarted peer is told of its connections at once and two times more: there is no answer.
const TELL_AGAIN: Duration = Duration::from_millis(100);
const TELL_LAST: Duration = Duration::from_millis(400);

/// A connection of the peer's life before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone {
    /// When it is told for the last time.
    last: Instant,
    host: SocketAddr,
    far: SocketAddr,
}

impl Link {
    /// Asks the peer when the flow's host on its side was last heard.
    pub fn ask_heard(&mut self, now: Instant, flow: u32) {
        if self.flows.contains_key(&flow) {
            self.control_twice(now, Control::AskHeard(flow));
        }
    }

    /// Tells the peer when the flow's host on this side was last heard.
    pub fn say_heard(&mut self, now: Instant, flow: u32, heard: Instant) {
        if let Some(f) = self.flows.get_mut(&flow) {
            f.heard = Some(heard);
            self.control_twice(now, Control::Heard(flow));
        }
    }

    /// Tells a peer that was restarted of a connection it carried, by its host and ours.
    pub fn tell_gone(&mut self, now: Instant, host: SocketAddr, far: SocketAddr) {
        let id = self.next_gone;
        self.next_gone = self.next_gone.wrapping_add(1);
        let last = now + TELL_LAST;
        self.gone.insert(id, Gone { last, host, far });
        for at in [now, now + TELL_AGAIN, last] {
            self.control.at(at, Control::Gone(id));
        }
    }

    /// What is due of these, as a frame.
    pub(super) fn heard_frame(&mut self, now: Instant, what: Control) -> Option<Frame<'static>> {
        match what {
            Control::AskHeard(flow) => {
                self.flows.get(&flow)?;
                Some(Frame::Heard { flow, ago_ms: None })
            }
            Control::Heard(flow) => {
                let ago = now.since(self.flows.get(&flow)?.heard?);
                let ago_ms = Some(u32::try_from(ago.as_millis()).unwrap_or(u32::MAX));
                Some(Frame::Heard { flow, ago_ms })
            }
            Control::Gone(id) => {
                let &Gone { last, host, far } = self.gone.get(&id)?;
                if now >= last {
                    self.gone.remove(&id);
                }
                Some(Frame::Gone { host, far })
            }
            _ => None,
        }
    }

    pub(super) fn on_heard(&mut self, flow: u32, ago_ms: Option<u32>) {
        if !self.flows.contains_key(&flow) {
            return;
        }
        self.events.push_back(match ago_ms {
            None => Event::AliveAsked { flow },
            Some(ms) => Event::Heard {
                flow,
                ago: Duration::from_millis(ms.into()),
            },
        });
    }
}
