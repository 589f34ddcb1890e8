//! What a test may set of the two routers and of what is between and behind them.

use std::time::Duration;

use mef_io::Caps;

use super::{caps, public_key};

/// `{me}` in any of the texts is the router's number, `{other}` the other one's.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Keys of `[router]`.
    pub router: String,
    pub lan: &'static str,
    pub wan: &'static str,
    /// Of the line up and down.
    pub rates: [&'static str; 2],
    /// More keys of `[port.line]` of A and of B.
    pub line: [&'static str; 2],
    pub endpoint: &'static str,
    pub prefixes: &'static str,
    /// Whether router B knows where A is.
    pub endpoint_of_a: bool,
    /// The router whose public key A takes for B's.
    pub key_of_b: u8,
    /// Tables behind those, of A and of B.
    pub tables: [String; 2],
    /// What the ports of a router can do.
    pub ports: fn(u8) -> [Caps; 2],
    /// Which hosts there are, by the last byte of their IPv4 addresses.
    pub hosts: fn(u8) -> bool,
    /// One way.
    pub delay: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            router: "memory = \"64MiB\"\nengine = \"aes-gcm\"".into(),
            lan: "\"10.{me}.0.1/24\"",
            wan: "\"192.0.2.{me}/24\"",
            rates: ["100Mbit/s"; 2],
            line: [""; 2],
            endpoint: "192.0.2.{other}:4800",
            prefixes: "\"10.{other}.0.0/24\"",
            endpoint_of_a: true,
            key_of_b: 2,
            tables: Default::default(),
            ports: |me| [0, 1].map(|port| caps(me, port, 1500)),
            hosts: |last| last == 2,
            delay: Duration::ZERO,
        }
    }
}

/// Ports that cut super-segments and sum by themselves.
pub fn offloads(me: u8) -> [Caps; 2] {
    [0, 1].map(|port| Caps {
        tcp_gso: true,
        tx_checksum: true,
        ..caps(me, port, 1500)
    })
}

/// 40 ms between the routers, hosts of all addresses, and ports with offloads.
pub fn over_a_path() -> Settings {
    Settings {
        ports: offloads,
        hosts: |_| true,
        delay: Duration::from_millis(20),
        ..Settings::default()
    }
}

impl Settings {
    /// The file of router `me`.
    pub fn text(&self, me: u8) -> String {
        let other = 3 - me;
        let key = if me == 1 { self.key_of_b } else { other };
        let endpoint = match me == 1 || self.endpoint_of_a {
            true => format!("endpoint = \"{}\"", self.endpoint),
            false => String::new(),
        };
        let of_me = usize::from(me - 1);
        let text = [
            "[router]\nname = \"r{me}\"\nprivate_key = \"r.key\"",
            &self.router,
            "[[port]]\nname = \"lan\"\ninterface = \"eth0\"",
            &format!("addresses = [{}]", self.lan),
            "[[port]]\nname = \"wan\"\ninterface = \"eth1\"\nlisten = 4800",
            &format!("addresses = [{}]", self.wan),
            "[port.line]",
            &format!("up = \"{}\"\ndown = \"{}\"", self.rates[0], self.rates[1]),
            self.line[of_me],
            "[[peer]]\nname = \"other\"\nport = \"wan\"",
            &format!("public_key = \"{}\"", public_key(key)),
            &endpoint,
            &format!("prefixes = [{}]", self.prefixes),
            &self.tables[of_me],
        ];
        let text = text.join("\n");
        text.replace("{me}", &me.to_string())
            .replace("{other}", &other.to_string())
    }
}
