//! What the benchmarks on DPDK's virtual devices share: rings, ports put together of
//! them, frames, and how cycles are measured and told.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::path::Path;
use std::rc::Rc;

use mef_crypto::PrivateKey;
use mef_dataplane::config::Host;
use mef_dataplane::router::{Router, Seed, BATCH};
use mef_io::dpdk::DpdkBuf;
use mef_io::{Caps, DpdkOptions, DpdkPort, Port, PortStats};
use mef_packet::wire::{arp, ethernet, ipv4, udp};
use mef_packet::{Buffer, Meta, Packet};

/// A ring gives back what was sent to it, so that two can share it.
pub type Device = Rc<RefCell<DpdkPort>>;

/// Receives from one device and sends to another.
pub struct Joined {
    from: Device,
    to: Device,
    mac: [u8; 6],
}

impl Joined {
    /// With an address made of `number`: rings have none.
    pub fn new(from: &Device, to: &Device, number: u8) -> Self {
        Self {
            from: Rc::clone(from),
            to: Rc::clone(to),
            mac: [2, 0, 0, 0, 0x77, number],
        }
    }
}

impl Port for Joined {
    type Buf = DpdkBuf;
    fn rx(&mut self, out: &mut Vec<Packet<DpdkBuf>>, max: usize) -> usize {
        self.from.borrow_mut().rx(out, max)
    }
    fn tx(&mut self, batch: &mut Vec<Packet<DpdkBuf>>) {
        self.to.borrow_mut().tx(batch);
    }
    fn alloc(&mut self, capacity: usize) -> DpdkBuf {
        self.to.borrow_mut().alloc(capacity)
    }
    fn recycle(&mut self, buf: DpdkBuf) {
        self.to.borrow_mut().recycle(buf);
    }
    fn caps(&self) -> Caps {
        Caps {
            mac: self.mac,
            ..self.from.borrow().caps()
        }
    }
    fn stats(&self) -> PortStats {
        let (from, to) = (self.from.borrow().stats(), self.to.borrow().stats());
        PortStats {
            tx_packets: to.tx_packets,
            tx_bytes: to.tx_bytes,
            tx_dropped: to.tx_dropped,
            ..from
        }
    }
    fn poll_fd(&self) -> Option<std::os::fd::RawFd> {
        None
    }
}

pub fn open(device: &str) -> Device {
    let options = DpdkOptions {
        device: device.parse().unwrap(),
        mtu: None,
    };
    let port = DpdkPort::open_all(&[options]).unwrap().remove(0);
    Rc::new(RefCell::new(port))
}

pub fn ring(number: u32) -> Device {
    open(&format!("net_ring{number}"))
}

/// Frees what is sent to it, as a NIC does.
pub fn sink(number: u32) -> Device {
    open(&format!("net_null{number},no-rx=1"))
}

/// A machine that has everything; its key is made of this number.
pub struct Bench(pub u8);

impl Host for Bench {
    fn interface_exists(&self, _: &str) -> bool {
        true
    }
    fn private_key(&self, _: &Path) -> Result<PrivateKey, String> {
        Ok(PrivateKey::generate([self.0; 32]))
    }
}

pub fn seed(number: u8) -> Seed {
    Seed {
        entropy: Box::new(move || [number; 32]),
        boot_id: u64::from(number),
        initiation_base: 1,
    }
}

pub fn put(device: &Device, frames: &[Vec<u8>]) {
    let mut port = device.borrow_mut();
    let mut batch = Vec::with_capacity(frames.len());
    for frame in frames {
        let mut buf = port.alloc(frame.len());
        buf.append(frame.len()).unwrap().copy_from_slice(frame);
        batch.push(Packet {
            buf,
            meta: Meta::default(),
        });
    }
    port.tx(&mut batch);
}

/// A frame with a UDP packet of `size` bytes from its IP header on.
pub fn udp_frame(dst: [u8; 6], from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), size: usize) -> Vec<u8> {
    let mut f = vec![0; 14 + size];
    ethernet::Header {
        dst,
        src: [2, 0, 0, 0, 0, 1],
        ethertype: ethernet::ETHERTYPE_IPV4,
    }
    .emit(&mut f)
    .unwrap();
    ipv4::Header::new(from.0, to.0, ipv4::PROTOCOL_UDP)
        .emit(&mut f[14..], size - 20)
        .unwrap();
    let ports = udp::Header {
        src_port: from.1,
        dst_port: to.1,
    };
    ports.emit(&mut f[34..], size - 28).unwrap();
    f
}

/// A neighbour asks for the router's address: from then on the router knows it.
pub fn arp_request(router: [u8; 6], own: Ipv4Addr, mac: [u8; 6], ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; 60];
    ethernet::Header {
        dst: router,
        src: mac,
        ethertype: ethernet::ETHERTYPE_ARP,
    }
    .emit(&mut frame)
    .unwrap();
    arp::Packet {
        operation: arp::Operation::Request,
        sender_mac: mac,
        sender_ip: ip,
        target_mac: [0; 6],
        target_ip: own,
    }
    .emit(&mut frame[14..])
    .unwrap();
    frame
}

/// Tells the median of cycles per packet of batches; returns it.
pub fn report(what: &str, cycles: &mut [u64]) -> u64 {
    cycles.sort_unstable();
    let at = |q: f64| cycles[((cycles.len() - 1) as f64 * q) as usize];
    println!(
        "{what:<26} {:>6} cycles a packet (10%: {}, 90%: {}; {} batches of {BATCH})",
        at(0.5),
        at(0.1),
        at(0.9),
        cycles.len()
    );
    at(0.5)
}

/// Cycles of the stages of one router, by batch.
pub struct Stages {
    before: mef_dataplane::router::Laps,
    all: Vec<(&'static str, Vec<u64>)>,
}

impl Stages {
    pub fn start<P: Port>(router: &mut Router<P>) -> Self {
        let before = router.laps();
        let all = before.iter().map(|(n, _)| (n, Vec::new())).collect();
        Self { before, all }
    }

    /// A batch is done.
    pub fn note<P: Port>(&mut self, router: &mut Router<P>) {
        let after = router.laps();
        let each = after.iter().zip(self.before.iter());
        for (((_, new), (_, old)), (_, all)) in each.zip(&mut self.all) {
            all.push((new - old) / BATCH as u64);
        }
        self.before = after;
    }

    pub fn report(self) {
        for (name, mut all) in self.all {
            report(&format!("  of these: {name}"), &mut all);
        }
    }
}
