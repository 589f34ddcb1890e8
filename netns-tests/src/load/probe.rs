//! The UDP probe: small packets at a steady pace that carry their time of
//! sending; the receiver subtracts it from the kernel's receive time-stamp, so
//! that the one-way delay is the network's and not that of a thread which waits
//! for a busy core.
//!
//! ```text
//! packet: magic 8 | id 8 | sequence 8 | sent_ns 8 | random, to the payload's length
//! ```

use std::collections::{HashMap, HashSet};
use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{recvmsg, setsockopt, sockopt, ControlMessageOwned, MsgFlags, SockaddrIn};
use nix::sys::time::TimeSpec;

use super::conn::unspecified;
use super::payload::Block;
use super::spec::{ProbeReceived, ProbeSpec};
use super::state::{lock, Shared, Slot};
use super::sys;

const MAGIC: [u8; 8] = *b"MEFprob1";
pub(crate) const HEAD: usize = 32;
/// What one receiver keeps, in case somebody else sends here.
const IDS_KEPT: usize = 16;
const SAMPLES_KEPT: usize = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub id: u64,
    pub sequence: u64,
    pub sent_ns: u64,
}

impl Packet {
    pub fn write(self, to: &mut [u8]) {
        let head = [
            MAGIC,
            self.id.to_be_bytes(),
            self.sequence.to_be_bytes(),
            self.sent_ns.to_be_bytes(),
        ];
        for (t, f) in to.iter_mut().zip(head.iter().flatten()) {
            *t = *f;
        }
    }

    pub fn read(from: &[u8]) -> Option<Self> {
        let field = |i: usize| -> Option<[u8; 8]> { from.get(i * 8..i * 8 + 8)?.try_into().ok() };
        (field(0)? == MAGIC).then_some(())?;
        Some(Self {
            id: u64::from_be_bytes(field(1)?),
            sequence: u64::from_be_bytes(field(2)?),
            sent_ns: u64::from_be_bytes(field(3)?),
        })
    }
}

/// Sends the probe, each packet at its own multiple of the interval.
pub fn send(shared: &Shared, spec: &ProbeSpec) {
    let record = shared.probe_sending(spec.id);
    let socket = match UdpSocket::bind((unspecified(&spec.target), 0)) {
        Ok(socket) => socket,
        Err(e) => return shared.error(format!("probe {}: {e}", spec.id)),
    };
    sys::raise_priority();
    let interval_ns = spec.interval_us.max(100) * 1_000;
    let start = shared
        .origin_ns
        .saturating_add(spec.start_ms * 1_000_000)
        .max(sys::now_ns());
    let block = Block::new(spec.id);
    let mut packet = block.head(spec.payload.clamp(HEAD, 1_472)).to_vec();
    for sequence in 0..spec.duration_ms * 1_000_000 / interval_ns {
        if !shared.sleep_until(start.saturating_add(sequence * interval_ns)) {
            break;
        }
        let head = Packet {
            id: spec.id,
            sequence,
            sent_ns: sys::now_ns(),
        };
        head.write(&mut packet);
        let sent = socket.send_to(&packet, spec.target);
        let mut record = lock(&record);
        record.packets += 1;
        record.refused += u64::from(sent.is_err());
    }
}

/// Receives probes until the agent stops.
pub fn receive(shared: &Shared, socket: &UdpSocket) {
    let prepared = socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .and_then(|()| {
            setsockopt(socket, sockopt::ReceiveTimestampns, &true).map_err(std::io::Error::from)
        });
    if let Err(e) = prepared {
        return shared.error(format!("probe receiver: {e}"));
    }
    sys::raise_priority();
    let mut streams: HashMap<u64, (Slot<ProbeReceived>, HashSet<u64>)> = HashMap::new();
    let mut buffer = [0; 2_048];
    let mut control = nix::cmsg_space!(TimeSpec);
    while !shared.stopped() {
        let Some((packet, length, arrived_ns)) = receive_one(socket, &mut buffer, &mut control)
        else {
            continue;
        };
        if !streams.contains_key(&packet.id) && streams.len() >= IDS_KEPT {
            continue;
        }
        let (record, seen) = streams
            .entry(packet.id)
            .or_insert_with(|| (shared.probe_receiving(packet.id), HashSet::new()));
        if seen.len() >= SAMPLES_KEPT {
            continue;
        }
        let mut record = lock(record);
        if !seen.insert(packet.sequence) {
            record.duplicates += 1;
            continue;
        }
        let delay = arrived_ns.saturating_sub(packet.sent_ns) / 1_000;
        record.payload = length;
        record.sent_ns.push(packet.sent_ns);
        record
            .delay_us
            .push(u32::try_from(delay).unwrap_or(u32::MAX));
    }
}

/// One probe packet, its length and its time of arrival on CLOCK_MONOTONIC.
fn receive_one(
    socket: &UdpSocket,
    buffer: &mut [u8],
    control: &mut [u8],
) -> Option<(Packet, u64, u64)> {
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn>(
        socket.as_raw_fd(),
        &mut parts,
        Some(control),
        MsgFlags::empty(),
    )
    .ok()?;
    let now = sys::now_ns();
    let length = message.bytes;
    let waited = message
        .cmsgs()
        .ok()?
        .find_map(|c| match c {
            ControlMessageOwned::ScmTimestampns(t) => {
                let stamp = (t.tv_sec() as u64) * 1_000_000_000 + t.tv_nsec() as u64;
                Some(sys::realtime_ns().saturating_sub(stamp))
            }
            _ => None,
        })
        .unwrap_or(0);
    let packet = Packet::read(buffer.get(..length)?)?;
    Some((packet, length as u64, now.saturating_sub(waited)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packet_survives_the_wire(id: u64, sequence: u64, sent_ns: u64, extra in 0usize..100) {
            let packet = Packet { id, sequence, sent_ns };
            let mut wire = vec![0; HEAD + extra];
            packet.write(&mut wire);
            prop_assert_eq!(Packet::read(&wire), Some(packet));
            prop_assert_eq!(Packet::read(&wire[..HEAD - 1]), None);
        }

        #[test]
        fn strangers_are_ignored(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assume!(!bytes.starts_with(&MAGIC));
            prop_assert_eq!(Packet::read(&bytes), None);
        }
    }
}
