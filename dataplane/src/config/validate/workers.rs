//! How many workers a router has, and what does not go with more than one.

use mef_packet::Bytes;

use super::{Checked, Validator, AUTO, MIN_MEMORY};
use crate::config::format_bytes;
use crate::config::raw::RawConfig;

/// Most workers; a link has one lane for each.
const MAX_WORKERS: i64 = 32;

impl Validator<'_> {
    /// To be called when ports and peers are known.
    pub(super) fn workers(&self, raw: &RawConfig, memory: Bytes) -> Checked<u16> {
        let router = raw.router.get_ref();
        let Some(key) = router.workers.as_ref() else {
            return Ok(1);
        };
        let workers = self
            .number(Some(key), "router.workers", 1..=MAX_WORKERS)?
            .unwrap_or(1) as u16;
        if workers == 1 {
            return Ok(1);
        }
        let refuse = |expected: String, advice: &str| {
            Err(self.source.error(
                &key.span(),
                "router.workers",
                workers.to_string(),
                expected,
                advice,
            ))
        };
        let least = Bytes(MIN_MEMORY.0 * u64::from(workers));
        if memory < least {
            return refuse(
                format!("at least {} of memory for them", format_bytes(least)),
                "raise router.memory, or have fewer workers",
            );
        }
        let last = |first: u16| first.checked_add(workers - 1);
        for (port, raw) in self.ports.iter().zip(&raw.port) {
            let line = raw.get_ref().line.as_ref().map(|l| l.get_ref());
            let auto = |l: &super::RawLine| [&l.up, &l.down].iter().any(|r| r.get_ref() == AUTO);
            if line.is_some_and(auto) {
                return refuse(
                    format!(
                        "1, as the line of port {} is of unknown capacity: each worker would estimate it by itself",
                        port.name
                    ),
                    "state the line's capacity, or remove the key",
                );
            }
            if line.is_some() && last(port.listen).is_none() {
                return refuse(
                    format!(
                        "a UDP port for each from `listen` of port {} on, which is {}",
                        port.name, port.listen
                    ),
                    "choose a smaller `listen`, or have fewer workers",
                );
            }
        }
        let beyond = |e: std::net::SocketAddr| last(e.port()).is_none();
        if let Some(peer) = self.peers.iter().find(|p| p.endpoint.is_some_and(beyond)) {
            return refuse(
                format!(
                    "a UDP port for each from the endpoint of peer {} on",
                    peer.name
                ),
                "choose a smaller port there, or have fewer workers",
            );
        }
        Ok(workers)
    }
}
