//! Receive offload for UDP: a kernel that joins the packets that a device hands it
//! (GRO, `NETIF_F_GRO`) joins UDP packets that are for none of its own sockets only if
//! asked to (`NETIF_F_GRO_UDP_FWD`, "rx-udp-gro-forwarding", Linux 5.12). Packets of
//! one size that came together cross the packet socket in one piece then, as the
//! super-frame that they were sent as, at a third of the kernel's cost.
//!
//! Nothing is delayed by it: what is joined was handed over together by the device.
//! Where GRO is off, or the kernel cannot tell a packet socket of what it joined
//! (before 6.2), nothing is changed.

use crate::os::InterfaceFeatures;
use std::io;

use super::socket::kernel_is_at_least;

const GRO: &str = "rx-gro";
const UDP_FORWARDING: &str = "rx-udp-gro-forwarding";

/// UDP packets are joined because we asked for it; until this is dropped.
pub(super) struct Merging {
    features: InterfaceFeatures,
}

impl Merging {
    /// Asks for it; `None` where there is nothing to ask for: GRO is off, or UDP is joined already.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn ask(interface: &str) -> io::Result<Option<Self>> {
        if !kernel_is_at_least(6, 2) {
            return Ok(None);
        }
        let features = InterfaceFeatures::of(interface)?;
        let has = |active: &[String], name| active.iter().any(|f| f == name);
        let before = features.active()?;
        if !has(&before, GRO) || has(&before, UDP_FORWARDING) {
            return Ok(None);
        }
        features.switch(UDP_FORWARDING, true)?;
        let done = has(&features.active()?, UDP_FORWARDING);
        Ok(done.then_some(Self { features }))
    }
}

impl Drop for Merging {
    fn drop(&mut self) {
        // The interface may be gone, and nobody is left to hear of it.
        let _ = self.features.switch(UDP_FORWARDING, false);
    }
}
