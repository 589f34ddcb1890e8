//! What the tests of whole routers have in common. Here: a router as they start it, on two
//! ports in memory, with keys and entropy that come from a number, so that every run is the
//! same. Below: two of them with hosts and a path between them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    unused_imports
)]

pub mod host;
pub mod packets;
pub mod settings;
pub mod world;

use std::path::Path;
use std::time::Duration;

pub use packets::*;
pub use settings::Settings;
pub use world::{Flow, Side, World};

use mef_crypto::PrivateKey;
use mef_dataplane::config::{self, Config, Host};
use mef_dataplane::router::{Router, Seed};
use mef_io::{Caps, MemPort, MemWire};
use mef_packet::Instant;

pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];

/// The machine that router `.0` runs on: has every interface, and the key of that number.
struct Machine(u8);

impl Host for Machine {
    fn interface_exists(&self, _: &str) -> bool {
        true
    }
    fn private_key(&self, _: &Path) -> Result<PrivateKey, String> {
        Ok(PrivateKey::generate([self.0; 32]))
    }
}

/// The public key of router `me`, as configurations have it.
pub fn public_key(me: u8) -> String {
    PrivateKey::generate([me; 32]).public().to_string()
}

pub fn mac(router: u8, port: u8) -> [u8; 6] {
    [2, 0, 0, 0, router, port]
}

/// A port that does nothing by itself.
pub fn caps(router: u8, port: u8, mtu: u16) -> Caps {
    Caps {
        mtu,
        mac: mac(router, port),
        tcp_gso: false,
        udp_gso: false,
        tx_checksum: false,
    }
}

/// A start of a router: no two have the same entropy.
pub fn seed(me: u8, boot_id: u64, initiation_base: u64) -> Seed {
    let mut n = u64::from(me) * 1000 + boot_id * 7919;
    let entropy = move || {
        n += 1;
        let mut e = [0; 32];
        for (i, c) in e.chunks_mut(8).enumerate() {
            // splitmix64
            let x = (n ^ (i as u64) << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let x = (x ^ x >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            c.copy_from_slice(&x.to_be_bytes());
        }
        e
    };
    Seed {
        entropy: Box::new(entropy),
        boot_id,
        initiation_base,
    }
}

/// The configuration of router `me` as it stands in a file.
pub fn parse(me: u8, text: &str) -> Config {
    config::parse(text, Path::new("/etc/mef/r.toml"), &Machine(me))
        .unwrap_or_else(|e| panic!("{e}"))
}

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Router `me` of this configuration, and the wires of its two ports, which hold `depth` frames.
pub fn router(
    now: Instant,
    me: u8,
    text: &str,
    ports: [Caps; 2],
    depth: usize,
    seed: Seed,
) -> (Router<MemPort>, [MemWire; 2]) {
    let config = parse(me, text);
    let [(lan, lan_wire), (wan, wan_wire)] = ports.map(|c| MemPort::detached(c, depth));
    let router = Router::new(now, config, vec![lan, wan], seed).unwrap();
    (router, [lan_wire, wan_wire])
}
