//! One device: found or made, configured with what it offers of what is wanted,
//! started, asked for its state, and put away.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use mef_dpdk_sys as sys;

use super::{eal, DpdkOptions};
use crate::device::DeviceName;
use crate::os;
use crate::port::{PortError, PortStats};

/// Descriptors of each queue, adjusted to what the device takes.
const DESCRIPTORS: u16 = 1024;
/// Buffers beyond what the queues hold: in the router, in other ports' queues and in caches.
const SPARE_BUFFERS: u32 = 4096;
/// Room for a frame with MTU 1500 and what a link puts around it.
const LEAST_ROOM: u16 = 2048;
/// Ethernet header with one VLAN tag.
const FRAME_OVERHEAD: u16 = 18;
/// So many packets on all queues, for each of them, must reach every queue.
const RSS_SAMPLE: u64 = 1000;

/// What the device itself does with packets that are sent; the port does the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offloads {
    pub tcp_checksum: bool,
    pub udp_checksum: bool,
    pub tcp_segmentation: bool,
    pub udp_segmentation: bool,
    /// A packet may consist of this many buffers.
    pub segments: u16,
    pub rx_checksum: bool,
}

impl Offloads {
    /// What of `wanted` the device does not do, in words.
    fn missing(self) -> String {
        let list = [
            ("checking checksums", self.rx_checksum),
            ("TCP checksums", self.tcp_checksum),
            ("UDP checksums", self.udp_checksum),
            ("TCP segmentation", self.tcp_segmentation),
            ("UDP segmentation", self.udp_segmentation),
        ];
        let missing: Vec<&str> = list
            .iter()
            .filter(|(_, has)| !has)
            .map(|(w, _)| *w)
            .collect();
        missing.join(", ")
    }
}

/// A cache line of its own for every queue.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Received(AtomicU64);

impl Received {
    /// Called by the one port that has the queue.
    pub fn set(&self, packets: u64) {
        self.0.store(packets, Ordering::Relaxed);
    }
}

/// A device that runs; stopped and given back when dropped.
pub(super) struct Device {
    pub id: u16,
    pub name: DeviceName,
    pub mac: [u8; 6],
    pub mtu: u16,
    pub offloads: Offloads,
    /// Room of a buffer behind its headroom.
    pub room: u16,
    pub pool: NonNull<sys::rte_mempool>,
    /// Packets received, by queue.
    pub received: Vec<Received>,
    /// What the operator is told once.
    pub notes: Vec<String>,
    handle: NonNull<sys::rte_device>,
}

// SAFETY: what the pointers show is DPDK's, lives as long as the device and is
// changed by calls only that DPDK allows from every thread; queues belong to one port each.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// Turns a device's answer into a result.
fn check(name: &DeviceName, what: &'static str, code: i32) -> Result<(), PortError> {
    if code >= 0 {
        return Ok(());
    }
    Err(error(name, what, eal::strerror(code)))
}

fn error(name: &DeviceName, what: &'static str, reason: impl Into<String>) -> PortError {
    PortError::Device {
        name: name.to_string(),
        what,
        reason: reason.into(),
    }
}

fn find(name: &DeviceName) -> Option<u16> {
    let text = CString::new(name.name()).ok()?;
    let mut id = 0;
    // SAFETY: a valid string and a place for the answer.
    (unsafe { sys::rte_eth_dev_get_port_by_name(text.as_ptr(), &mut id) } == 0).then_some(id)
}

/// The port of the device; virtual ones are made, in the calling thread's network namespace.
fn probe(name: &DeviceName) -> Result<u16, PortError> {
    if let Some(interface) = name.interface() {
        os::interface_index(interface).map_err(|_| PortError::NoInterface {
            name: interface.to_owned(),
        })?;
    }
    if find(name).is_some() {
        if let DeviceName::Virtual { .. } = name {
            return Err(error(
                name,
                "making it",
                "there is one of this name already",
            ));
        }
    } else {
        let what = "making it";
        let text = CString::new(name.to_string()).map_err(|e| error(name, what, e.to_string()))?;
        // SAFETY: EAL runs, a valid string.
        let code = unsafe { sys::rte_dev_probe(text.as_ptr()) };
        if code < 0 {
            let reason = match name {
                DeviceName::Pci(address) => format!(
                    "{}; is it bound to vfio-pci? `dpdk-devbind.py -s` shows it, `dpdk-devbind.py -b vfio-pci {address}` binds it",
                    eal::strerror(code)
                ),
                DeviceName::Virtual { .. } => format!("{}; what its driver said is above on stderr", eal::strerror(code)),
            };
            return Err(error(name, what, reason));
        }
    }
    find(name).ok_or_else(|| error(name, "looking for it", "DPDK has no network driver for it"))
}

impl Device {
    /// Opens a device with as many queues each way.
    ///
    /// # Errors
    /// `NoInterface`, or `Device` with the step that failed.
    pub fn open(options: &DpdkOptions, queues: u16, pages: eal::Pages) -> Result<Self, PortError> {
        let name = &options.device;
        let id = probe(name)?;
        // SAFETY: plain data, for which zeroes are valid.
        let mut info: sys::rte_eth_dev_info = unsafe { std::mem::zeroed() };
        // SAFETY: a valid port and a place for the answer.
        check(name, "asking what it offers", unsafe {
            sys::rte_eth_dev_info_get(id, &mut info)
        })?;
        let Some(handle) = NonNull::new(info.device) else {
            return Err(error(name, "asking what it offers", "it has no device"));
        };
        // SAFETY: a valid port.
        let socket = unsafe { sys::rte_eth_dev_socket_id(id) };
        // From here on it is put away when something fails.
        let mut device = Self {
            id,
            name: name.clone(),
            mac: [0; 6],
            mtu: 0,
            offloads: Offloads::default(),
            room: 0,
            pool: NonNull::dangling(),
            received: (0..queues).map(|_| Received::default()).collect(),
            notes: Vec::new(),
            handle,
        };
        if queues > info.max_rx_queues || queues > info.max_tx_queues {
            let most = info.max_rx_queues.min(info.max_tx_queues);
            return Err(error(
                name,
                "giving every worker a queue",
                format!("it has {most} queues, {queues} are needed"),
            ));
        }
        device.configure(options, queues, &info, socket, pages)?;
        Ok(device)
    }

    fn configure(
        &mut self,
        options: &DpdkOptions,
        queues: u16,
        info: &sys::rte_eth_dev_info,
        socket: i32,
        pages: eal::Pages,
    ) -> Result<(), PortError> {
        let (id, name) = (self.id, &options.device);
        let mtu = match (options.mtu, name.interface()) {
            (Some(mtu), _) => mtu,
            // The driver of such a device does not ask its interface.
            (None, Some(interface)) => {
                u16::try_from(os::interface_mtu(interface).unwrap_or(1500)).unwrap_or(u16::MAX)
            }
            (None, None) => 1500,
        };
        let rx = info.rx_offload_capa & sys::SHIM_RX_CHECKSUM;
        let tx = info.tx_offload_capa
            & (sys::SHIM_TX_IPV4_CHECKSUM
                | sys::SHIM_TX_TCP_CHECKSUM
                | sys::SHIM_TX_UDP_CHECKSUM
                | sys::SHIM_TX_TCP_SEGMENTATION
                | sys::SHIM_TX_UDP_SEGMENTATION
                | sys::SHIM_TX_MULTI_SEGMENT);
        let rss = if queues > 1 {
            info.flow_type_rss_offloads & sys::SHIM_RSS_IP_TCP_UDP
        } else {
            0
        };
        // SAFETY: plain data, for which zeroes are valid; then filled in by the shim.
        let conf = unsafe {
            let mut conf: sys::rte_eth_conf = std::mem::zeroed();
            sys::shim_eth_conf(&mut conf, rx, tx, rss);
            conf
        };
        // SAFETY: a valid port and configuration.
        check(name, "configuring it", unsafe {
            sys::rte_eth_dev_configure(id, queues, queues, &conf)
        })?;
        let (mut rx_descriptors, mut tx_descriptors) = (DESCRIPTORS, DESCRIPTORS);
        // SAFETY: a valid port, places for the answers.
        check(name, "sizing its queues", unsafe {
            sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &mut rx_descriptors, &mut tx_descriptors)
        })?;
        self.room = mtu
            .saturating_add(FRAME_OVERHEAD)
            .max(LEAST_ROOM)
            .next_multiple_of(64);
        let held = u32::from(queues) * (u32::from(rx_descriptors) + u32::from(tx_descriptors));
        // One less than a power of two fits the pool's ring best.
        let buffers = (held + SPARE_BUFFERS).next_power_of_two() - 1;
        self.pool = eal::take_pool(name.name(), socket, self.room, buffers)?;
        for queue in 0..queues {
            // SAFETY: a valid port, queue and pool; null asks for the defaults of the configuration.
            check(name, "setting up a receive queue", unsafe {
                sys::rte_eth_rx_queue_setup(
                    id,
                    queue,
                    rx_descriptors,
                    socket as u32,
                    std::ptr::null(),
                    self.pool.as_ptr(),
                )
            })?;
            // SAFETY: as above.
            check(name, "setting up a transmit queue", unsafe {
                sys::rte_eth_tx_queue_setup(
                    id,
                    queue,
                    tx_descriptors,
                    socket as u32,
                    std::ptr::null(),
                )
            })?;
        }
        // Drivers that cannot say so keep 1500, which is then what counts.
        // SAFETY: a valid port.
        let set = mtu == 1500 || unsafe { sys::rte_eth_dev_set_mtu(id, mtu) } == 0;
        self.mtu = if set || name.interface().is_some() {
            mtu
        } else {
            1500
        };
        // SAFETY: a valid port that is configured.
        check(name, "starting it", unsafe { sys::rte_eth_dev_start(id) })?;
        // SAFETY: a valid port. Not every driver can, and those that cannot receive all anyway.
        unsafe { sys::rte_eth_promiscuous_enable(id) };
        // SAFETY: plain data; then filled in.
        let mac = unsafe {
            let mut mac: sys::rte_ether_addr = std::mem::zeroed();
            check(
                name,
                "asking its address",
                sys::rte_eth_macaddr_get(id, &mut mac),
            )?;
            mac
        };
        self.mac = mac.addr_bytes;
        // A device that cuts makes IP headers too.
        let pieces = sys::SHIM_TX_MULTI_SEGMENT | sys::SHIM_TX_IPV4_CHECKSUM;
        let chained = tx & pieces == pieces;
        self.offloads = Offloads {
            tcp_checksum: tx & sys::SHIM_TX_TCP_CHECKSUM != 0,
            udp_checksum: tx & sys::SHIM_TX_UDP_CHECKSUM != 0,
            tcp_segmentation: chained && tx & sys::SHIM_TX_TCP_SEGMENTATION != 0,
            udp_segmentation: chained && tx & sys::SHIM_TX_UDP_SEGMENTATION != 0,
            // Zero means that there is no limit.
            segments: match info.tx_desc_lim.nb_seg_max {
                0 => u16::MAX,
                n => n,
            },
            rx_checksum: rx != 0,
        };
        self.note(pages, queues, rss, mtu);
        Ok(())
    }

    /// Says what is not as fast as it could be.
    fn note(&mut self, pages: eal::Pages, queues: u16, rss: u64, mtu: u16) {
        let missing = self.offloads.missing();
        if !missing.is_empty() {
            self.notes.push(format!(
                "done in software, as the device does not: {missing}"
            ));
        }
        if queues > 1 && rss == 0 {
            self.notes.push(format!(
                "the device does not say how it spreads packets over its {queues} queues"
            ));
        }
        if mtu != self.mtu {
            self.notes.push(format!(
                "its MTU stays at {}, the driver refuses {mtu}",
                self.mtu
            ));
        }
        if pages == eal::Pages::Ordinary {
            self.notes.push(
                "no huge pages, so ordinary memory is used: `sysctl vm.nr_hugepages=256` makes some"
                    .to_owned(),
            );
        }
    }

    /// The device's own counters.
    pub fn stats(&self) -> PortStats {
        // SAFETY: plain data; then filled in, or left at zero by a driver that does not count.
        let s = unsafe {
            let mut s: sys::rte_eth_stats = std::mem::zeroed();
            sys::rte_eth_stats_get(self.id, &mut s);
            s
        };
        PortStats {
            rx_missed: s.imissed,
            rx_errors: s.ierrors,
            rx_no_buffer: s.rx_nombuf,
            tx_dropped: s.oerrors,
            ..PortStats::default()
        }
    }

    /// Whether the link is up, as far as the device says.
    pub fn link_is_up(&self) -> bool {
        let mut speed = 0;
        // SAFETY: a valid port, a place for the answer.
        unsafe { sys::shim_link_is_up(self.id, &mut speed) != 0 }
    }

    /// Queues that got nothing while the others got enough for all.
    pub fn silent_queues(&self) -> Vec<usize> {
        let counts: Vec<u64> = self
            .received
            .iter()
            .map(|r| r.0.load(Ordering::Relaxed))
            .collect();
        silent(&counts)
    }
}

fn silent(counts: &[u64]) -> Vec<usize> {
    let enough = RSS_SAMPLE * counts.len() as u64;
    if counts.iter().sum::<u64>() < enough {
        return Vec::new();
    }
    let queues = counts.iter().enumerate();
    queues.filter(|(_, n)| **n == 0).map(|(i, _)| i).collect()
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: a valid port that no queue uses any more, as they hold this device; its
        // buffers in flight are freed by the driver. Nothing can be done about a failure.
        unsafe {
            sys::rte_eth_dev_stop(self.id);
            if sys::rte_dev_remove(self.handle.as_ptr()) != 0 {
                sys::rte_eth_dev_close(self.id);
            }
        }
        if self.pool != NonNull::dangling() {
            eal::return_pool(self.pool);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_without_packets_is_found_when_there_were_enough_for_all() {
        assert_eq!(silent(&[5000]), [0; 0]);
        assert_eq!(silent(&[1999, 0]), [0; 0]);
        assert_eq!(silent(&[2000, 0]), [1]);
        assert_eq!(silent(&[0, 9000, 1, 0]), [0, 3]);
        assert_eq!(silent(&[2000, 1]), [0; 0]);
    }

    #[test]
    fn what_a_device_lacks_is_named() {
        let all = Offloads {
            tcp_checksum: true,
            udp_checksum: true,
            tcp_segmentation: true,
            udp_segmentation: true,
            segments: 32,
            rx_checksum: true,
        };
        assert_eq!(all.missing(), "");
        let some = Offloads {
            udp_checksum: false,
            tcp_segmentation: false,
            ..all
        };
        assert_eq!(some.missing(), "UDP checksums, TCP segmentation");
    }
}
