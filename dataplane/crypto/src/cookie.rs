//! What stands before the handshake, so that a flood of initiations costs
//! little: two X25519 computations are made only for those that may pass.
//! Without load every initiation passes. Under load a source has to show first
//! that it receives what is sent to its address, by a cookie that is a function
//! of that address and kept nowhere; then it has a small rate of its own.
//!
//! ```text
//!  initiation ─▶ configured address, within its rate ────────────────▶ read it
//!                else: the common rate is not used up ───────────────▶ read it
//!                else: with a cookie of this address, within its rate ▶ read it
//!                else: ask for a cookie (48 bytes for 128), within a rate
//! ```
//!
//! The reply names the initiation by its hash: who has not seen that cannot
//! make its sender carry a false cookie. Somebody on the path can, as he can
//! drop the packet.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mef_packet::Instant;
use ring::{digest, hmac};

use crate::handshake::{handshake_header, INITIATION_COOKIE_LEN, INITIATION_LEN};
use crate::header::{Header, PacketType};
use crate::HEADER_LEN;

/// Length of a cookie, bytes.
pub const COOKIE_LEN: usize = 16;
/// Length of a cookie reply, bytes: header, what it answers, the cookie.
pub const REPLY_LEN: usize = HEADER_LEN + 2 * COOKIE_LEN;

/// Proof of an address.
pub type Cookie = [u8; COOKIE_LEN];

/// Secrets live as long; cookies of the current and the last one are good.
const SECRET_LIFE: Duration = Duration::from_secs(120);
/// Initiations that are read from anybody, a second. A core reads some 10,000.
const COMMON: Rate = Rate {
    per_second: 50,
    burst: 50,
};
/// From each address that a peer is configured at or was heard from.
const CONFIGURED: Rate = Rate {
    per_second: 2,
    burst: 8,
};
/// From each address that showed a cookie, and from all of them.
const PROVED: Rate = Rate {
    per_second: 5,
    burst: 10,
};
const PROVED_ALL: Rate = Rate {
    per_second: 500,
    burst: 500,
};
/// Cookie replies: 90 bytes each on Ethernet.
const REPLIES: Rate = Rate {
    per_second: 1000,
    burst: 100,
};
/// Most addresses whose rate is remembered; the oldest give way.
const MAX_SOURCES: usize = 4096;

/// The first bytes of the hash of an initiation, by which a reply names it.
pub(crate) fn echo(initiation: &[u8]) -> Cookie {
    first_bytes(digest::digest(&digest::SHA256, initiation).as_ref())
}

fn first_bytes(bytes: &[u8]) -> Cookie {
    bytes.first_chunk().copied().unwrap_or_default()
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: u32,
    burst: u32,
}

/// A token bucket that is full when made; it keeps time instead of tokens.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: Rate,
    saved: Duration,
    at: Instant,
}

impl Bucket {
    fn new(now: Instant, rate: Rate) -> Self {
        Self {
            rate,
            saved: Self::time(rate, rate.burst),
            at: now,
        }
    }
    fn time(rate: Rate, tokens: u32) -> Duration {
        Duration::from_secs(1) * tokens / rate.per_second.max(1)
    }
    fn take(&mut self, now: Instant) -> bool {
        let full = Self::time(self.rate, self.rate.burst);
        self.saved = (self.saved + now.since(self.at)).min(full);
        self.at = now;
        let left = self.saved.checked_sub(Self::time(self.rate, 1));
        self.saved = left.unwrap_or(self.saved);
        left.is_some()
    }
}

/// Buckets by address, a bounded number of them.
#[derive(Debug)]
struct Sources {
    rate: Rate,
    buckets: HashMap<IpAddr, Bucket>,
    order: VecDeque<IpAddr>,
}

impl Sources {
    fn new(rate: Rate) -> Self {
        Self {
            rate,
            buckets: HashMap::new(),
            order: VecDeque::new(),
        }
    }
    fn take(&mut self, now: Instant, source: IpAddr) -> bool {
        if !self.buckets.contains_key(&source) {
            if self.order.len() >= MAX_SOURCES {
                if let Some(old) = self.order.pop_front() {
                    self.buckets.remove(&old);
                }
            }
            self.order.push_back(source);
        }
        self.buckets
            .entry(source)
            .or_insert_with(|| Bucket::new(now, self.rate))
            .take(now)
    }
}

/// What becomes of an initiation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may be read.
    Read,
    /// Under load: this goes back to its sender instead.
    AskCookie(Vec<u8>),
    /// Under load, and its sender has had its share.
    Refuse,
}

/// Decides which initiations are read.
#[derive(Debug)]
pub struct Gate {
    secrets: [hmac::Key; 2],
    secret_since: Instant,
    common: Bucket,
    configured: Sources,
    proved: Sources,
    proved_all: Bucket,
    replies: Bucket,
}

impl Gate {
    /// `entropy`: 32 bytes from a cryptographic random source.
    pub fn new(now: Instant, entropy: [u8; 32]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &entropy);
        Self {
            secrets: [key.clone(), key],
            secret_since: now,
            common: Bucket::new(now, COMMON),
            configured: Sources::new(CONFIGURED),
            proved: Sources::new(PROVED),
            proved_all: Bucket::new(now, PROVED_ALL),
            replies: Bucket::new(now, REPLIES),
        }
    }

    /// Whether the cookies' secret has lived long enough: [`renew`](Self::renew) it.
    pub fn is_stale(&self, now: Instant) -> bool {
        now.since(self.secret_since) >= SECRET_LIFE
    }

    /// Takes a new secret; cookies of the old one are good until the next time.
    pub fn renew(&mut self, now: Instant, entropy: [u8; 32]) {
        let [current, _] = &self.secrets;
        self.secrets = [hmac::Key::new(hmac::HMAC_SHA256, &entropy), current.clone()];
        self.secret_since = now;
    }

    /// What to do with the initiation in `packet`, which came from `from`; `configured` where that
    /// is an address of a peer.
    pub fn admit(
        &mut self,
        now: Instant,
        from: SocketAddr,
        configured: bool,
        packet: &[u8],
    ) -> Admission {
        // What is no initiation is refused by who reads it, at no cost.
        let length = packet.len();
        if length != INITIATION_LEN && length != INITIATION_COOKIE_LEN {
            return Admission::Read;
        }
        if configured && self.configured.take(now, from.ip()) {
            return Admission::Read;
        }
        if self.common.take(now) {
            return Admission::Read;
        }
        if length == INITIATION_COOKIE_LEN && self.proves(from, packet) {
            let may = self.proved.take(now, from.ip()) && self.proved_all.take(now);
            return if may {
                Admission::Read
            } else {
                Admission::Refuse
            };
        }
        let Ok(header) = Header::parse(packet) else {
            return Admission::Read;
        };
        if !self.replies.take(now) {
            return Admission::Refuse;
        }
        let [secret, _] = &self.secrets;
        let mut reply =
            handshake_header(PacketType::CookieReply, header.lane, header.receiver_index)
                .emit()
                .to_vec();
        reply.extend_from_slice(&echo(packet));
        reply.extend_from_slice(&first_bytes(
            hmac::sign(secret, &address_bytes(from)).as_ref(),
        ));
        Admission::AskCookie(reply)
    }

    fn proves(&self, from: SocketAddr, packet: &[u8]) -> bool {
        let Some(cookie) = packet
            .get(HEADER_LEN..)
            .and_then(|b| b.first_chunk::<COOKIE_LEN>())
        else {
            return false;
        };
        let address = address_bytes(from);
        self.secrets.iter().any(|secret| {
            let right = first_bytes(hmac::sign(secret, &address).as_ref());
            // Compared whole: how many bytes were right must not show in the time it takes.
            right.iter().zip(cookie).fold(0, |d, (a, b)| d | (a ^ b)) == 0
        })
    }
}

fn address_bytes(from: SocketAddr) -> [u8; 18] {
    let mut out = [0; 18];
    let (ip, port) = out.split_at_mut(16);
    let v6 = match from.ip() {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    };
    ip.copy_from_slice(&v6.octets());
    port.copy_from_slice(&from.port().to_be_bytes());
    out
}
