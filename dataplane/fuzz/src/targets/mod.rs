//! One function per target. Each takes arbitrary bytes and panics where the
//! code under it breaks a promise: a parser that accepts bytes must be able to
//! write them again, a state machine must stay within its budget, and nothing
//! may panic by itself.

mod direct;
mod handshake;
mod host_tcp;
mod input;
mod link;
mod reassembly;
mod router;
pub mod seeds;
mod text;
mod wire;
mod wire6;

/// A target: its name, which is also that of its corpus folder, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target there is.
pub const TARGETS: &[Target] = &[
    ("ethernet", wire::ethernet_and_arp),
    ("ipv4", wire::ipv4_packet),
    ("tcp", wire::tcp_segment),
    ("udp", wire::udp_datagram),
    ("icmp", wire::icmp_message),
    ("ipv6", wire6::ipv6_packet),
    ("icmpv6", wire6::icmpv6_message),
    ("segment", wire::cutting),
    ("reassembly", reassembly::fragments),
    ("codec", link::frames),
    ("link", link::conversation),
    ("handshake", handshake::messages),
    ("transport", handshake::packets),
    ("host_tcp", host_tcp::endpoint),
    ("icmp_flow", host_tcp::icmp_flow),
    ("router", router::frames),
    ("direct", direct::datagrams),
    ("config", text::config),
    ("control", text::control),
    ("topology", text::topology),
    ("wan_trace", text::wan_trace),
];

/// Runs the target called `name`.
///
/// # Panics
/// If there is none, and where the target finds something.
#[allow(dead_code)] // Not what the replay calls.
pub fn run(name: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|(n, _)| *n == name);
    found.expect("a target of this name").1(data);
}
