//! The wire that smoltcp sees: for the length of one call it holds one packet
//! in and room for one packet out, both lent by the caller, so that nothing is
//! copied or kept between calls.

use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken,
};
use smoltcp::time::Instant;

/// Longest IPv4 packet.
const MTU: usize = 65_535;

pub(super) struct Wire<'a> {
    pub rx: Option<&'a [u8]>,
    pub tx: &'a mut Vec<u8>,
    /// `tx` holds a packet.
    pub sent: bool,
}

pub(super) struct Rx<'a>(&'a [u8]);

pub(super) struct Tx<'a> {
    buf: &'a mut Vec<u8>,
    sent: &'a mut bool,
}

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        // Not cleared first: smoltcp writes every byte of a packet, so a buffer that is used
        // again need not be zeroed again.
        self.buf.resize(len, 0);
        *self.sent = true;
        f(self.buf)
    }
}

impl Device for Wire<'_> {
    type RxToken<'b>
        = Rx<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Tx<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Rx<'_>, Tx<'_>)> {
        let packet = self.rx.take()?;
        Some((
            Rx(packet),
            Tx {
                buf: self.tx,
                sent: &mut self.sent,
            },
        ))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        (!self.sent).then_some(Tx {
            buf: self.tx,
            sent: &mut self.sent,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Tx;
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = MTU;
        caps.checksum = checksum;
        caps
    }
}
