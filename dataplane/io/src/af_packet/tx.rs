//! Sending in batches (sendmmsg).

use super::messages::{self, BATCH};
use super::socket::Socket;
use super::vnet;
use crate::os;
use crate::port::PortStats;
use mef_packet::wire::checksum;
use mef_packet::{Buffer, Checksum, Gso, HeapBuf, Packet};
use std::io;

/// What sending needs beside the socket.
pub(super) struct Sender {
    vnet_hdr: bool,
    /// Frames go to the driver past the queueing discipline.
    bypass: bool,
    /// Super-segments refused while bypassing.
    refused: u64,
}

impl Sender {
    pub fn new(vnet_hdr: bool, bypass: bool) -> Self {
        Self {
            vnet_hdr,
            bypass,
            refused: 0,
        }
    }

    /// See `Port::tx`; leaves the buffers in `batch`.
    pub fn send(
        &mut self,
        name: &str,
        socket: &Socket,
        stats: &mut PortStats,
        batch: &mut [Packet<HeapBuf>],
    ) {
        for chunk in batch.chunks_mut(BATCH) {
            self.send_batch(name, socket, stats, chunk);
        }
    }

    fn send_batch(
        &mut self,
        name: &str,
        socket: &Socket,
        stats: &mut PortStats,
        batch: &mut [Packet<HeapBuf>],
    ) {
        let mut vnet = [[0u8; vnet::LEN]; BATCH];
        let mut vectors = messages::NO_PARTS;
        let mut headers = messages::empty();
        let mut is_gso = [false; BATCH];
        let mut n = 0;
        for (packet, vnet, vector, header, is_gso) in batch
            .iter_mut()
            .zip(&mut vnet)
            .zip(&mut vectors)
            .zip(&mut headers)
            .zip(&mut is_gso)
            .map(|((((p, n), v), h), g)| (p, n, v, h, g))
        {
            // A frame that cannot be sent leaves an empty message, which the loop below skips.
            n += 1;
            let Some(v) = self.prepare(packet) else {
                continue;
            };
            *vnet = v;
            *is_gso = packet.meta.gso != Gso::None;
            let frame = packet.buf.bytes_mut();
            let vnet = self.vnet_hdr.then_some(vnet);
            let (frame, length) = (frame.as_mut_ptr(), frame.len());
            messages::lead(&mut header.msg_hdr, vector, vnet, frame, length);
        }

        let mut rest = headers.get_mut(..n).unwrap_or(&mut []);
        let mut at = 0;
        while let Some(first) = rest.first() {
            if first.msg_hdr.msg_iovlen == 0 {
                stats.tx_dropped += 1;
                (rest, at) = (rest.get_mut(1..).unwrap_or(&mut []), at + 1);
                continue;
            }
            let run = rest
                .iter()
                .take_while(|h| h.msg_hdr.msg_iovlen != 0)
                .count();
            // SAFETY: the first `run` entries of `rest` point to vectors over `vnet` and the frames
            // of `batch`, all of which live and are left alone until the call returns.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.fd(),
                    rest.as_mut_ptr(),
                    run as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                )
            };
            let done = match usize::try_from(sent) {
                Ok(sent) => {
                    for packet in batch.get(at..at + sent).unwrap_or(&[]) {
                        stats.tx_packets += 1;
                        stats.tx_bytes += packet.buf.len() as u64;
                    }
                    sent
                }
                // The error is about the first that was to go.
                Err(_) => {
                    let e = io::Error::last_os_error().raw_os_error();
                    let again = e == Some(libc::EINTR)
                        || e == Some(libc::ENOBUFS)
                            && is_gso.get(at) == Some(&true)
                            && self.stop_bypass(name, socket);
                    stats.tx_dropped += u64::from(!again);
                    usize::from(!again)
                }
            };
            (rest, at) = (rest.get_mut(done..).unwrap_or(&mut []), at + done);
        }
    }

    /// Brings a frame into the form that the kernel takes; `None` if there is none.
    fn prepare(&self, packet: &mut Packet<HeapBuf>) -> Option<[u8; vnet::LEN]> {
        if packet.buf.is_empty() {
            return None;
        }
        if self.vnet_hdr {
            return vnet::encode(&packet.meta, packet.buf.bytes_mut()).ok();
        }
        if packet.meta.gso != Gso::None {
            return None;
        }
        if let Checksum::Partial { start, offset } = packet.meta.checksum {
            checksum::complete_partial(packet.buf.bytes_mut(), start, offset).ok()?;
        }
        Some([0; vnet::LEN])
    }

    /// A super-segment was refused while bypassing the queueing discipline: if the
    /// device has stopped to segment since it was looked at, goes back behind it.
    fn stop_bypass(&mut self, name: &str, socket: &Socket) -> bool {
        if !self.bypass {
            return false;
        }
        self.refused += 1;
        // A full device refuses too, and looking costs.
        if !self.refused.is_power_of_two()
            || device_segments(name)
            || socket.set_qdisc_bypass(false).is_err()
        {
            return false;
        }
        self.bypass = false;
        true
    }
}

/// Whether the device takes super-segments of TCP and UDP as they are. Where it does
/// not, the kernel cuts them, but only for frames that pass its queueing discipline.
pub(super) fn device_segments(interface: &str) -> bool {
    os::interface_features(interface).is_ok_and(|active| {
        [
            "tx-tcp-segmentation",
            "tx-tcp-ecn-segmentation",
            "tx-udp-segmentation",
        ]
        .iter()
        .all(|wanted| active.iter().any(|f| f == wanted))
    })
}
