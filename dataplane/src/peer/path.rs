//! Where a peer is: an address counts once a packet sent there was answered
//! from within the session.
//!
//! ```text
//!                 fresh packet from elsewhere              answer
//!   address known ---------------------------> challenged -------> that one counts
//!        ^                                          | no answer to MAX_TRIES
//!        '------------------------------------------'
//! ```
//!
//! Until the answer everything else still goes to the old address, and to the
//! new one at most three times what came from there (as RFC 9000 section 8 has it): a
//! forged source makes this router send to nobody.

use std::net::SocketAddr;
use std::time::Duration;

use mef_packet::Instant;

/// Challenges to one address before it is given up.
const MAX_TRIES: u8 = 5;
/// Bytes that go out for each that came in.
const AMPLIFICATION: u64 = 3;
/// A challenge on the wire: IP, UDP, LINK header, inner header, frame, tag; over IPv6.
const CHALLENGE_BYTES: u64 = 40 + 8 + 32 + 8 + 11;

#[derive(Clone, Copy, Debug)]
struct Candidate {
    address: SocketAddr,
    token: u64,
    received: u64,
    sent: u64,
    tries: u8,
    next: Instant,
}

/// The peer's address, and one that may become it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Path {
    address: Option<SocketAddr>,
    candidate: Option<Candidate>,
}

impl Path {
    pub fn new(address: Option<SocketAddr>) -> Self {
        Self {
            address,
            candidate: None,
        }
    }

    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The peer answered what was sent there.
    pub fn proved(&mut self, address: SocketAddr) {
        self.address = Some(address);
        self.candidate = None;
    }

    /// An authentic packet of `bytes`, newer than all before, came from `from`. `token` is one
    /// that nobody can guess, for the case that it is needed.
    pub fn heard(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: u64,
        token: impl FnOnce() -> u64,
    ) {
        if self.address == Some(from) {
            // Where it was before all the same: the other was a detour, or somebody else's doing.
            self.candidate = None;
            return;
        }
        match &mut self.candidate {
            Some(c) if c.address == from => c.received = c.received.saturating_add(bytes),
            _ => {
                self.candidate = Some(Candidate {
                    address: from,
                    token: token(),
                    received: bytes,
                    sent: 0,
                    tries: 0,
                    next: now,
                })
            }
        }
    }

    /// When a challenge is to be sent.
    pub fn due(&self) -> Option<Instant> {
        self.candidate
            .filter(|c| c.sent + CHALLENGE_BYTES <= c.received.saturating_mul(AMPLIFICATION))
            .map(|c| c.next)
    }

    /// The challenge to send now: whereto, and its token. Another follows after `patience`.
    pub fn challenge(&mut self, now: Instant, patience: Duration) -> Option<(SocketAddr, u64)> {
        if self.due().is_none_or(|t| t > now) {
            return None;
        }
        let c = self.candidate.as_mut()?;
        if c.tries >= MAX_TRIES {
            self.candidate = None;
            return None;
        }
        c.tries += 1;
        c.sent += CHALLENGE_BYTES;
        c.next = now + patience;
        Some((c.address, c.token))
    }

    /// The peer said `token`; the new address, if that was the answer that was waited for.
    pub fn answered(&mut self, token: u64) -> Option<SocketAddr> {
        let c = self.candidate.filter(|c| c.token == token)?;
        self.proved(c.address);
        Some(c.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 4800))
    }
    const PATIENCE: Duration = Duration::from_millis(300);

    #[test]
    fn the_address_changes_with_the_right_answer_only() {
        let now = Instant::from_millis(1);
        let mut p = Path::new(Some(at(1)));
        p.heard(now, at(1), 1500, || {
            panic!("no challenge for a known address")
        });
        assert_eq!(p.due(), None);
        p.heard(now, at(2), 1500, || 7);
        assert_eq!(p.challenge(now, PATIENCE), Some((at(2), 7)));
        assert_eq!(p.challenge(now, PATIENCE), None);
        assert_eq!(p.answered(8), None);
        assert_eq!(p.address(), Some(at(1)));
        assert_eq!(p.answered(7), Some(at(2)));
        assert_eq!((p.address(), p.due()), (Some(at(2)), None));
        assert_eq!(p.answered(7), None);
    }

    #[test]
    fn an_unanswered_address_gets_three_times_its_bytes_at_most() {
        let mut now = Instant::from_millis(1);
        let mut p = Path::new(Some(at(1)));
        p.heard(now, at(2), 100, || 7);
        let mut sent = 0;
        for _ in 0..100 {
            sent += p.challenge(now, PATIENCE).map_or(0, |_| CHALLENGE_BYTES);
            now += PATIENCE;
        }
        assert!((1..=300).contains(&sent), "{sent}");
        // However much comes from there, not for ever.
        p.heard(now, at(2), 1 << 40, || 8);
        let mut tries = 0;
        for _ in 0..100 {
            tries += u8::from(p.challenge(now, PATIENCE).is_some());
            now += PATIENCE;
        }
        assert!(tries <= MAX_TRIES, "{tries}");
        assert_eq!(p.address(), Some(at(1)));
    }

    #[test]
    fn back_at_the_old_address_nothing_is_challenged() {
        let now = Instant::from_millis(1);
        let mut p = Path::new(Some(at(1)));
        p.heard(now, at(2), 1500, || 7);
        p.heard(now, at(1), 1500, || 8);
        assert_eq!(p.due(), None);
        assert_eq!(p.answered(7), None);
    }
}
