//! Who holds how much of a router's memory: the two levels of credit.
//!
//! The receiver promises memory once, to the link as a whole. The sender shares
//! it out among its flows, because only it knows which of thousands want some;
//! and the receiver says in WINDOW which flows have a reader, because only it
//! sees the hosts. A flow holds what was sent on it and its host has not taken.
//!
//! ```text
//!  link credit   |------- anyone: 3/8 -------|---- guaranteed, read: 5/8 ----|
//!  a flow may hold the largest of
//!    guaranteed  1/8192 of the credit, 1.5 to 16 KiB: every flow moves
//!    anyone      half of what is left of the first 3/8: no waiting while there is plenty
//!    vouched     what its host has room for, and what its program is known to read in
//!                eight round trips; at most twice what is left
//! ```
//!
//! Readers that stop thus share the first part and their guaranteed bytes. What
//! is left is for those who read: of it nobody can take all, and the more is
//! taken the less is given (dynamic thresholds: A. K. Choudhury, E. L. Hahne,
//! "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998).

use core::time::Duration;

use mef_packet::Instant;

use super::{Control, Flow, Link, PacketError};
use crate::chunks::{ChunkPool, Use};
use crate::recv_stream::StreamError;

/// What every flow may hold of a memory of `total` bytes, as long as there is any.
pub(super) fn guaranteed(total: u64) -> u64 {
    (total / 8192).clamp(1500, 16 * 1024)
}

/// Bytes that a flow may send which holds `holds` bytes of the peer's `total`, of which `free` are
/// left, when the peer vouches for `vouched` bytes.
fn allowance(total: u64, free: u64, holds: u64, vouched: u64) -> u64 {
    let anyone = free.saturating_sub(total / 8 * 5) / 2;
    let read = vouched.min(free.saturating_mul(2));
    let most = guaranteed(total).max(anyone).max(read);
    most.saturating_sub(holds).min(free)
}

/// What the host's program is known to read of a flow.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reader {
    /// Bytes that the host's window has room for.
    room: u64,
    /// More was read than a host takes in whose program does not read.
    proven: bool,
    /// What the peer was told last: the offset read, and how far ahead of it the flow may be.
    said: u64,
    /// Start of the current epoch, the bytes read in it and in the one before.
    since: Instant,
    current: u64,
    before: u64,
}

impl Reader {
    fn read(&mut self, now: Instant, bytes: u64, epoch: Duration) {
        let age = now.since(self.since);
        if age > epoch {
            self.before = if age > epoch * 2 { 0 } else { self.current };
            self.current = 0;
            self.since = now;
        }
        self.current += bytes;
    }
    /// Bytes read in about two round trips.
    fn pace(&self) -> u64 {
        self.current.max(self.before)
    }
    /// Whether the peer should hear that `read` bytes were taken.
    fn is_news(&self, read: u64, total: u64) -> bool {
        read - self.said.min(read) >= (guaranteed(total) / 2).max(self.pace() / 16)
    }
    /// How far ahead of what was read the flow may be: what the host has room for, and what it is
    /// known to read in eight round trips; at most `window` each.
    fn vouched(&self, window: u64) -> [u64; 2] {
        let pace = if self.proven { 4 * self.pace() } else { 0 };
        [self.room.min(window), pace.min(window)]
    }
}

impl Link {
    /// New stream bytes that the link's credit lets a flow send.
    pub(super) fn new_bytes(&self, f: &Flow) -> u64 {
        let total = self.peer.map_or(0, |p| p.link_credit);
        let free = self.stream_credit.saturating_sub(self.stream_sent);
        let holds = f.send.sent().saturating_sub(f.peer_read);
        let room = allowance(total, free, holds, f.vouched);
        // No scraps, if the peer is sure to say when what the flow holds has been read.
        let scrap = room < f.send.unsent().min(self.payload_size() as u64);
        if scrap && holds >= guaranteed(total) / 2 {
            return 0;
        }
        room
    }

    /// How many bytes may wait to be sent: of what cannot be sent yet little is taken from the host.
    pub(super) fn may_wait(&self, pool: &ChunkPool, f: &Flow, ahead: u64) -> u64 {
        let (all, left) = (
            pool.share(Use::Sending) as u64,
            pool.room(Use::Sending) as u64,
        );
        let least = guaranteed(all);
        let fair = if f.proven {
            left / 8
        } else {
            left.saturating_sub(all / 4 * 3) / 16
        };
        let credit = f.send.credit().saturating_sub(f.send.sent());
        least + ahead.min(self.new_bytes(f)).min(credit).min(fair)
    }

    /// What is known of the host's program: its window has room for `room` bytes beyond what was
    /// consumed, and it is `proven` to read.
    pub fn reader(&mut self, flow: u32, room: u64, proven: bool) {
        if let Some(f) = self.flows.get_mut(&flow) {
            f.reader.room = room;
            f.reader.proven = proven;
        }
    }

    /// The host took `n` bytes more.
    pub(super) fn note_read(&mut self, now: Instant, flow: u32, n: u64) {
        let epoch = self.rtt.smoothed().max(Duration::from_millis(5)) * 2;
        let total = self.config.link_credit;
        let Some(f) = self.flows.get_mut(&flow) else {
            return;
        };
        f.reader.read(now, n, epoch);
        let goes_on = !f.recv.is_finished();
        if f.recv.credit_due() || (goes_on && f.reader.is_news(f.recv.read_offset(), total)) {
            self.queue_control(Control::Window(flow));
        }
    }

    /// A flow that has paused since the peer was told last what it read: the next pause may be long.
    pub(super) fn tell_reads(&mut self, now: Instant) {
        let least = guaranteed(self.config.link_credit) / 2;
        let quiet = self.rtt.smoothed() * 2;
        let unsaid = |f: &Flow| {
            f.recv.read_offset().saturating_sub(f.reader.said) >= least
                && !f.recv.is_finished()
                && now.since(f.reader.since) > quiet
        };
        let flows = self.flows.iter().filter(|(_, f)| unsaid(f));
        let mut numbers: Vec<u32> = flows.map(|(n, _)| *n).collect();
        numbers.sort_unstable();
        for n in numbers {
            self.queue_control(Control::Window(n));
        }
    }

    /// For WINDOW: the offset that the host has read, and how far ahead of it the flow may be.
    pub(super) fn say_read(f: &mut Flow, window: u64) -> (u64, u32, u32) {
        f.reader.said = f.recv.read_offset();
        let [room, pace] = f.reader.vouched(window);
        let short = |n| u32::try_from(n).unwrap_or(u32::MAX);
        (f.reader.said, short(room), short(pace))
    }

    /// The peer says so. What comes late says nothing.
    pub(super) fn heard_read(f: &mut Flow, read: u64, room: u32, pace: u32) {
        if read >= f.peer_read {
            f.peer_read = read;
            f.vouched = u64::from(room) + u64::from(pace);
            f.proven = pace > 0;
        }
    }

    /// Counts stream bytes against what the link was promised.
    ///
    /// # Errors
    /// `BeyondCredit` where the peer sends more.
    pub(super) fn count_arrived(&mut self, flow: u32, end: u64) -> Result<(), PacketError> {
        let highest = self.flows.get(&flow).map_or(end, |f| f.recv.arrived());
        let more = end.saturating_sub(highest);
        if self.arrived.saturating_add(more) > self.announced {
            return Err(StreamError::BeyondCredit.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: u64 = 20 << 20;

    /// Lets `n` flows take what they get until nobody gets any more.
    fn fill(free: &mut u64, holds: &mut [u64], vouched: u64) {
        loop {
            let before = *free;
            for h in holds.iter_mut() {
                let n = allowance(TOTAL, *free, *h, vouched).min(50_000);
                *h += n;
                *free -= n;
            }
            if *free == before {
                return;
            }
        }
    }

    #[test]
    fn two_thousand_who_do_not_read_leave_a_third_to_one_who_does() {
        let mut free = TOTAL;
        let mut stalled = vec![0; 2000];
        fill(&mut free, &mut stalled, 0);
        assert!(stalled.iter().all(|h| *h >= guaranteed(TOTAL)));
        assert!(free > TOTAL / 3, "{free}");
        let mut reader = [0];
        fill(&mut free, &mut reader, TOTAL);
        assert!(reader[0] > TOTAL / 5, "{}", reader[0]);
        // When it stops too, the next still gets something.
        let mut next = [0];
        fill(&mut free, &mut next, TOTAL);
        assert!(next[0] > TOTAL / 20, "{}", next[0]);
    }

    #[test]
    fn a_lone_flow_has_much_at_once_and_two_thirds_when_read() {
        let mut free = TOTAL;
        let mut alone = [0];
        fill(&mut free, &mut alone, 0);
        assert!(alone[0] >= TOTAL / 9, "{}", alone[0]);
        fill(&mut free, &mut alone, u64::MAX);
        assert!(alone[0] * 10 > TOTAL * 6 && alone[0] < TOTAL * 3 / 4);
    }

    #[test]
    fn a_pace_is_forgotten() {
        let ms = Duration::from_millis;
        let mut r = Reader {
            proven: true,
            room: 5,
            ..Reader::default()
        };
        let at = Instant::from_millis(1000);
        r.read(at, 1000, ms(100));
        r.read(at + ms(50), 1000, ms(100));
        r.read(at + ms(150), 10, ms(100));
        assert_eq!(r.pace(), 2000);
        assert_eq!(r.vouched(u64::MAX), [5, 8000]);
        assert_eq!(r.vouched(77), [5, 77]);
        r.read(at + ms(900), 10, ms(100));
        assert_eq!(r.pace(), 10);
        r.proven = false;
        assert_eq!(r.vouched(u64::MAX), [5, 0]);
    }
}
