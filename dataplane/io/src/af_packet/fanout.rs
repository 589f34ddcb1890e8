//! Several sockets on one interface, one for each worker: the kernel asks a small
//! program (PACKET_FANOUT_CBPF, packet(7)) for the number of the socket that gets
//! a frame. It computes [`FlowHash`], so that frames come to the worker that their
//! flow belongs to; what goes over a link, to the worker whose UDP port it is for;
//! and what is no IP packet, to the first.
//!
//! ```text
//!   frame -- UDP to one of the links' ports? --> port - first port
//!       '--- IPv4, IPv6: hash of the 5-tuple --> modulo the number of sockets
//!       '--- else ----------------------------> 0
//! ```
//! A fragment counts without its ports, as only the first has them.

use std::io;

use mef_packet::flow_hash::MULTIPLIERS;
use mef_packet::FlowHash;

use super::socket::Socket;

// linux/if_packet.h
const PACKET_FANOUT: libc::c_int = 18;
const PACKET_FANOUT_DATA: libc::c_int = 22;
const PACKET_FANOUT_CBPF: u32 = 6;
const PACKET_FANOUT_FLAG_UNIQUEID: u32 = 0x2000;
const PACKET_FANOUT_FLAG_IGNORE_OUTGOING: u32 = 0x4000;

/// How an interface's frames are spread over its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steering {
    /// Of the flow hash.
    pub key: u64,
    pub queues: u16,
    /// UDP port of the first worker's links, if there are links on this interface; the others' follow.
    pub links_at: Option<u16>,
}

/// Makes `socket` a member of the group with this number, or with 0 the first of a new one; returns
/// the group. Members are numbered as they join.
///
/// # Errors
/// What the kernel says.
pub(super) fn join(socket: &Socket, group: u16) -> io::Result<u16> {
    let new = if group == 0 {
        PACKET_FANOUT_FLAG_UNIQUEID
    } else {
        0
    };
    // What a socket itself ignores, its group gets: newer kernels know a flag for that, older ones
    // take no notice of it or refuse it, and the filter does in any case.
    let mut outgoing = [op(LOAD_KIND, AD_KIND), jump_if_outgoing(), TAKE, IGNORE];
    socket.set_filter(&mut outgoing)?;
    let kind = PACKET_FANOUT_CBPF | new;
    let ask = |flag| {
        let value = u32::from(group) | (kind | flag) << 16;
        socket.set_packet_option(PACKET_FANOUT, &value)
    };
    ask(PACKET_FANOUT_FLAG_IGNORE_OUTGOING).or_else(|e| match e.raw_os_error() {
        Some(libc::EINVAL) => ask(0),
        _ => Err(e),
    })?;
    Ok(socket.packet_option(PACKET_FANOUT)? as u16)
}

// The filter: what is on its way out is not for the router.
const AD_KIND: u32 = 0xffff_f004;
const LOAD_KIND: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const TAKE: libc::sock_filter = op(libc::BPF_RET | libc::BPF_K, u32::MAX);
const IGNORE: libc::sock_filter = op(libc::BPF_RET | libc::BPF_K, 0);
const PACKET_OUTGOING: u32 = 4;

const fn jump_if_outgoing() -> libc::sock_filter {
    libc::sock_filter {
        jt: 1,
        ..op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, PACKET_OUTGOING)
    }
}

/// Has the group of `socket` steer so from now on.
///
/// # Errors
/// What the kernel says.
pub(super) fn steer(socket: &Socket, steering: &Steering) -> io::Result<()> {
    let mut program = program(steering);
    let fprog = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        filter: program.as_mut_ptr(),
    };
    // `program` outlives the call, which copies it.
    socket.set_program(PACKET_FANOUT_DATA, &fprog)
}

// linux/filter.h: ancillary data, and offsets from the network header.
const AD_PROTOCOL: u32 = 0xffff_f000;
const NET: u32 = 0xfff0_0000;

const fn op(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

/// A program as it is written; jumps lead forward over instructions that are counted.
#[derive(Default)]
struct Program(Vec<libc::sock_filter>);

impl Program {
    fn add(&mut self, code: u32, k: u32) {
        self.0.push(op(code, k));
    }
    fn load(&mut self, size: u32, at: u32) {
        self.add(libc::BPF_LD | size | libc::BPF_ABS, at);
    }
    /// From `at` behind the index register.
    fn load_indexed(&mut self, size: u32, at: u32) {
        self.add(libc::BPF_LD | size | libc::BPF_IND, at);
    }
    fn alu(&mut self, operation: u32, k: u32) {
        self.add(libc::BPF_ALU | operation | libc::BPF_K, k);
    }
    fn store(&mut self, slot: u32) {
        self.add(libc::BPF_ST, slot);
    }
    fn fetch(&mut self, slot: u32) {
        self.add(libc::BPF_LD | libc::BPF_MEM, slot);
    }
    fn fetch_index(&mut self, slot: u32) {
        self.add(libc::BPF_LDX | libc::BPF_MEM, slot);
    }
    fn add_index(&mut self) {
        self.add(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0);
    }
    fn give(&mut self, k: u32) {
        self.add(libc::BPF_RET | libc::BPF_K, k);
    }
    fn give_accumulator(&mut self) {
        // BPF_A, which is not among libc's names.
        self.add(libc::BPF_RET | 0x10, 0);
    }

    /// Skips what `body` writes unless `comparison` with `k` holds.
    fn when(&mut self, comparison: u32, k: u32, body: impl FnOnce(&mut Self)) {
        let at = self.jump(comparison, k);
        body(self);
        let over = self.since(at);
        if let Some(jump) = self.0.get_mut(at) {
            jump.jf = over;
        }
    }
    /// Skips what `body` writes where `comparison` with `k` holds.
    fn unless(&mut self, comparison: u32, k: u32, body: impl FnOnce(&mut Self)) {
        let at = self.jump(comparison, k);
        body(self);
        let over = self.since(at);
        if let Some(jump) = self.0.get_mut(at) {
            jump.jt = over;
        }
    }
    fn jump(&mut self, comparison: u32, k: u32) -> usize {
        self.add(libc::BPF_JMP | comparison | libc::BPF_K, k);
        self.0.len() - 1
    }
    /// Instructions behind the one at `at`; every body here is far shorter than the 255 that a jump spans.
    fn since(&self, at: usize) -> u8 {
        u8::try_from(self.0.len() - at - 1).unwrap_or(u8::MAX)
    }

    /// [`FlowHash`]'s mixing of the accumulator; changes the index.
    fn mix(&mut self) {
        let [a, b] = MULTIPLIERS;
        for (shift, multiplier) in [(16, Some(a)), (15, Some(b)), (16, None)] {
            self.add(libc::BPF_MISC | libc::BPF_TAX, 0);
            self.alu(libc::BPF_RSH, shift);
            self.add(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0);
            if let Some(multiplier) = multiplier {
                self.alu(libc::BPF_MUL, multiplier);
            }
        }
    }

    /// The hash of the flow's end whose address of so many words is at `address`, and whose port lies
    /// in the slot `port`.
    fn end(&mut self, hash: [u32; 2], address: u32, words: u32, port: u32) {
        for word in 0..words {
            self.load(libc::BPF_W, NET + address + 4 * word);
            if word == 0 {
                self.alu(libc::BPF_XOR, hash[0]);
            } else {
                self.fetch_index(SO_FAR);
                self.add(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0);
            }
            self.mix();
            self.store(SO_FAR);
        }
        self.fetch(port);
        self.alu(libc::BPF_XOR, hash[1]);
        self.fetch_index(SO_FAR);
        self.add_index();
        self.mix();
    }

    /// The worker of the packet, whose protocol and ports lie in their slots.
    fn hash(&mut self, hash: [u32; 2], source: u32, words: u32) {
        self.end(hash, source, words, SOURCE_PORT);
        self.store(SOURCE_END);
        self.end(hash, source + 4 * words, words, PORT);
        self.fetch_index(SOURCE_END);
        self.add_index();
        self.fetch_index(PROTOCOL);
        self.add_index();
        self.mix();
        // The kernel divides by the number of sockets.
        self.give_accumulator();
    }

    /// Takes the ports that begin behind the index register, and ends with the worker whose port it is.
    fn ports(&mut self, links_at: Option<u16>, queues: u16) {
        self.load_indexed(libc::BPF_H, NET);
        self.store(SOURCE_PORT);
        self.load_indexed(libc::BPF_H, NET + 2);
        self.store(PORT);
        let Some(first) = links_at else { return };
        self.fetch(PROTOCOL);
        self.when(libc::BPF_JEQ, UDP, |p| {
            p.fetch(PORT);
            p.alu(libc::BPF_SUB, u32::from(first));
            p.unless(libc::BPF_JGE, u32::from(queues), Self::give_accumulator);
        });
    }
}

// Slots of a program's memory.
const PROTOCOL: u32 = 0;
const SOURCE_PORT: u32 = 1;
const PORT: u32 = 2;
const SO_FAR: u32 = 3;
const SOURCE_END: u32 = 4;

const TCP: u32 = 6;
const UDP: u32 = 17;

fn program(s: &Steering) -> Vec<libc::sock_filter> {
    let hash = FlowHash::new(s.key).halves();
    let mut p = Program::default();
    p.alu(libc::BPF_AND, 0);
    p.store(SOURCE_PORT);
    p.store(PORT);
    p.load(libc::BPF_W, AD_PROTOCOL);
    p.when(libc::BPF_JEQ, libc::ETH_P_IP as u32, |p| {
        p.load(libc::BPF_B, NET + 9);
        p.store(PROTOCOL);
        p.load(libc::BPF_H, NET + 6);
        // Neither more fragments nor an offset.
        p.unless(libc::BPF_JSET, 0x3fff, |p| {
            p.load(libc::BPF_B, NET);
            p.alu(libc::BPF_AND, 0xf);
            p.alu(libc::BPF_LSH, 2);
            p.add(libc::BPF_MISC | libc::BPF_TAX, 0);
            ports_of(p, s);
        });
        p.hash(hash, 12, 1);
    });
    p.load(libc::BPF_W, AD_PROTOCOL);
    p.when(libc::BPF_JEQ, libc::ETH_P_IPV6 as u32, |p| {
        p.load(libc::BPF_B, NET + 6);
        p.store(PROTOCOL);
        p.add(libc::BPF_LDX | libc::BPF_IMM, 40);
        ports_of(p, s);
        p.hash(hash, 8, 4);
    });
    p.give(0);
    p.0
}

/// TCP and UDP have ports.
fn ports_of(p: &mut Program, s: &Steering) {
    p.fetch(PROTOCOL);
    // One test for both: where it is neither, nothing is taken.
    p.unless(libc::BPF_JEQ, TCP, |p| {
        p.alu(libc::BPF_XOR, UDP);
        p.when(libc::BPF_JEQ, 0, |p| p.ports(s.links_at, s.queues));
    });
    p.fetch(PROTOCOL);
    p.when(libc::BPF_JEQ, TCP, |p| p.ports(None, s.queues));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_fit_and_their_jumps_stay_inside() {
        for links_at in [None, Some(4800)] {
            let program = program(&Steering {
                key: u64::MAX,
                queues: 32,
                links_at,
            });
            // BPF_MAXINSNS
            assert!(program.len() < 4096);
            let jumps = program.iter().enumerate();
            for (i, op) in jumps.filter(|(_, op)| op.code & 7 == libc::BPF_JMP as u16) {
                let furthest = i + 1 + usize::from(op.jt.max(op.jf));
                assert!(furthest < program.len(), "{i} of {}", program.len());
                assert!(op.jt < u8::MAX && op.jf < u8::MAX, "{i}");
            }
        }
    }
}
