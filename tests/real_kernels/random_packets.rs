//! Random packets on every port (as isic and its relatives make them): nothing
//! but counted drops and answers, the same memory afterwards, and traffic passes.
//! Ten seconds, or five minutes with `MEF_LONG=1`.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    sendto, socket, AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::lab::{need, wait_for, Lab, Routers};

/// A frame is random from some layer upwards; below it everything is right, so
/// that the router's deeper layers are reached.
struct Random {
    rng: SmallRng,
    to: [u8; 6],
    from: [u8; 6],
    /// Addresses that mean something to the router.
    known: Vec<[u8; 4]>,
}

fn sum(start: u32, bytes: &[u8]) -> u16 {
    let mut s = start;
    for c in bytes.chunks(2) {
        s += u32::from(c[0]) << 8 | u32::from(c.get(1).copied().unwrap_or(0));
    }
    while s > 0xffff {
        s = (s & 0xffff) + (s >> 16);
    }
    !(s as u16)
}

impl Random {
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut b = vec![0; n];
        self.rng.fill_bytes(&mut b);
        b
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_range(0..n) == 0
    }

    fn address(&mut self) -> [u8; 4] {
        if self.one_in(4) {
            return self.rng.random();
        }
        self.known[self.rng.random_range(0..self.known.len())]
    }

    fn port(&mut self) -> u16 {
        let known = [80, 4800, 53, 7000];
        if self.one_in(2) {
            return self.rng.random();
        }
        known[self.rng.random_range(0..known.len())]
    }

    fn frame(&mut self) -> Vec<u8> {
        let to = match self.rng.random_range(0..20) {
            0 => [0xff; 6],
            1 => self.rng.random(),
            _ => self.to,
        };
        let (kind, body): ([u8; 2], Vec<u8>) = match self.rng.random_range(0..16) {
            0 => {
                let n = self.rng.random_range(0..1500);
                (self.rng.random(), self.bytes(n))
            }
            1 => ([0x08, 0x06], self.arp()),
            2 => {
                let n = self.rng.random_range(0..100);
                ([0x86, 0xdd], [vec![0x60], self.bytes(n)].concat())
            }
            _ => ([0x08, 0x00], self.ipv4()),
        };
        let mut frame = [&to[..], &self.from, &kind, &body].concat();
        frame.truncate(1514);
        if self.one_in(20) {
            let n = self.rng.random_range(0..=frame.len());
            frame.truncate(n.max(14));
        }
        frame
    }

    fn arp(&mut self) -> Vec<u8> {
        let operation = if self.one_in(8) {
            self.rng.random()
        } else {
            self.rng.random_range(1..3)
        };
        let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
        body.extend_from_slice(&self.from);
        // Nobody's address: ARP would believe a claim to a host's, which is another kind of attack.
        let site = self.rng.random_range(1..3);
        body.extend_from_slice(&[10, site, 1, self.rng.random_range(100..250)]);
        body.extend_from_slice(&[0; 6]);
        body.extend_from_slice(&self.address());
        if self.one_in(8) {
            let at = self.rng.random_range(0..body.len());
            body[at] = self.rng.random();
        }
        body
    }

    fn ipv4(&mut self) -> Vec<u8> {
        let (src, dst) = (self.address(), self.address());
        let protocol = [6, 6, 6, 17, 17, 1, 1, self.rng.random()][self.rng.random_range(0..8)];
        let body = match protocol {
            6 => self.tcp(src, dst),
            17 => self.udp(),
            1 => self.icmp(),
            _ => {
                let n = self.rng.random_range(0..200);
                self.bytes(n)
            }
        };
        let options = if self.one_in(10) {
            4 * self.rng.random_range(1..11)
        } else {
            0
        };
        let length = 20 + options + body.len();
        let mut p = vec![0x45, self.rng.random(), 0, 0];
        p[0] = 0x40 | (5 + options as u8 / 4);
        p[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        p.extend_from_slice(&self.rng.random::<[u8; 2]>());
        let fragment: [u8; 2] = if self.one_in(10) {
            self.rng.random()
        } else {
            [0x40, 0]
        };
        p.extend_from_slice(&fragment);
        p.push(if self.one_in(10) {
            self.rng.random_range(0..3)
        } else {
            64
        });
        p.extend_from_slice(&[protocol, 0, 0]);
        p.extend_from_slice(&src);
        p.extend_from_slice(&dst);
        let more = self.bytes(options);
        p.extend_from_slice(&more);
        if self.one_in(10) {
            let at = self.rng.random_range(0..p.len());
            p[at] = self.rng.random();
        }
        if !self.one_in(20) {
            let c = sum(0, &p);
            p[10..12].copy_from_slice(&c.to_be_bytes());
        }
        p.extend_from_slice(&body);
        p
    }

    fn tcp(&mut self, src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
        let mut t = Vec::new();
        t.extend_from_slice(&self.port().to_be_bytes());
        t.extend_from_slice(&self.port().to_be_bytes());
        let numbers: [u8; 8] = self.rng.random();
        t.extend_from_slice(&numbers);
        let options = 4 * self.rng.random_range(0..11usize);
        t.push((5 + options as u8 / 4) << 4);
        let usual = [0x02, 0x10, 0x18, 0x11, 0x04, 0x12];
        let flags = self.rng.random_range(0..8);
        t.push(usual.get(flags).copied().unwrap_or(self.rng.random()));
        let rest: [u8; 6] = self.rng.random();
        t.extend_from_slice(&rest);
        let options = self.bytes(options);
        t.extend_from_slice(&options);
        let n = self.rng.random_range(0..600);
        let payload = self.bytes(n);
        t.extend_from_slice(&payload);
        if self.one_in(10) {
            t[12] = self.rng.random();
        }
        if !self.one_in(10) {
            t[16..18].fill(0);
            let head = [&src[..], &dst, &[0, 6], &(t.len() as u16).to_be_bytes()].concat();
            let start = u32::from(!sum(0, &head));
            let c = sum(start, &t);
            t[16..18].copy_from_slice(&c.to_be_bytes());
        }
        t
    }

    fn udp(&mut self) -> Vec<u8> {
        let n = self.rng.random_range(0..1400);
        let mut payload = self.bytes(n);
        if self.one_in(2) && n > 16 {
            // Looks like a packet of a link.
            payload[0] =
                0x10 | [1, 2, 4, self.rng.random_range(0..16)][self.rng.random_range(0..4)];
        }
        let mut u = Vec::new();
        u.extend_from_slice(&self.port().to_be_bytes());
        u.extend_from_slice(&self.port().to_be_bytes());
        let length = if self.one_in(10) {
            self.rng.random()
        } else {
            8 + n as u16
        };
        u.extend_from_slice(&length.to_be_bytes());
        u.extend_from_slice(&[0, 0]);
        u.extend_from_slice(&payload);
        u
    }

    fn icmp(&mut self) -> Vec<u8> {
        let kind = [8, 0, 3, 11, 5, self.rng.random()][self.rng.random_range(0..6)];
        let code = self.rng.random_range(0..16);
        let mut m = vec![kind, code, 0, 0];
        let head: [u8; 4] = self.rng.random();
        m.extend_from_slice(&head);
        if matches!(kind, 3 | 11 | 5) && !self.one_in(4) {
            // About a packet that may have been sent.
            let (src, dst) = (self.address(), self.address());
            let mut quoted = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 63, 6, 0, 0];
            quoted.extend_from_slice(&src);
            quoted.extend_from_slice(&dst);
            quoted.extend_from_slice(&self.port().to_be_bytes());
            quoted.extend_from_slice(&self.port().to_be_bytes());
            let rest: [u8; 4] = self.rng.random();
            quoted.extend_from_slice(&rest);
            m.extend_from_slice(&quoted);
        } else {
            let n = self.rng.random_range(0..200);
            let data = self.bytes(n);
            m.extend_from_slice(&data);
        }
        let c = sum(0, &m);
        m[2..4].copy_from_slice(&c.to_be_bytes());
        m
    }
}

fn address_of(interface: &str) -> LinkAddr {
    let all = nix::ifaddrs::getifaddrs().unwrap();
    let mut links = all
        .filter(|i| i.interface_name == interface)
        .filter_map(|i| i.address);
    links.find_map(|a| a.as_link_addr().copied()).unwrap()
}

/// Sends from `interface` of a namespace to the station `to`, at a rate that leaves the machine some time.
fn sender(
    lab: &Lab,
    namespace: &str,
    interface: &'static str,
    to: [u8; 6],
    known: &[[u8; 4]],
    stop: &Arc<AtomicBool>,
    seed: u64,
) -> std::thread::JoinHandle<u64> {
    let (known, stop) = (known.to_vec(), Arc::clone(stop));
    lab.thread(namespace, move || {
        let raw = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::empty(),
            None::<SockProtocol>,
        )
        .unwrap();
        let link = address_of(interface);
        let from = link.addr().unwrap();
        let rng = SmallRng::seed_from_u64(seed);
        let mut random = Random {
            rng,
            to,
            from,
            known,
        };
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..20 {
                let frame = random.frame();
                // A full queue is no failure of the router's.
                sent +=
                    u64::from(sendto(raw.as_raw_fd(), &frame, &link, MsgFlags::empty()).is_ok());
            }
            std::thread::sleep(Duration::from_millis(4));
        }
        sent
    })
}

fn mac_of(lab: &Lab, namespace: &str, interface: &str) -> [u8; 6] {
    let text = lab.sh_ok(namespace, &format!("ip -o link show {interface}"));
    let at = text.find("link/ether ").unwrap_or_else(|| panic!("{text}")) + 11;
    let mut mac = [0; 6];
    for (byte, pair) in mac.iter_mut().zip(text[at..at + 17].split(':')) {
        *byte = u8::from_str_radix(pair, 16).unwrap();
    }
    mac
}

fn resident(lab: &Lab, router: &str) -> f64 {
    let url = "curl -sS --fail --max-time 10 http://127.0.0.1:9464/metrics";
    let scrape = lab.sh_ok(router, url);
    let line = scrape
        .lines()
        .find_map(|l| l.strip_prefix("process_resident_memory_bytes "));
    line.unwrap().parse().unwrap()
}

#[test]
fn random_packets_on_every_port_are_counted_and_leave_nothing_behind() {
    need!("curl", "ping", "iperf3");
    let long = std::env::var_os("MEF_LONG").is_some_and(|v| v == "1");
    let time = Duration::from_secs(if long { 300 } else { 10 });
    let lab = Lab::up(Routers::Mef, "rate='50Mbit/s'\nrtt='10ms'\nqueue='1BDP'");
    lab.sh_ok("a1", "ping -c 2 -i 0.1 $B1");
    let sites = [
        ("a1", "eth0", "ra", "lan1"),
        ("b1", "eth0", "rb", "lan1"),
        ("wan", "a", "ra", "wan"),
        ("wan", "b", "rb", "wan"),
    ];
    let known = [
        [10, 1, 1, 2],
        [10, 2, 1, 2],
        [10, 1, 1, 1],
        [10, 2, 1, 1],
        [192, 0, 2, 1],
        [192, 0, 2, 2],
        [10, 1, 1, 77],
        [255, 255, 255, 255],
        [224, 0, 0, 1],
        [127, 0, 0, 1],
    ];
    let stop = Arc::new(AtomicBool::new(false));
    let start = |seed: u64| -> Vec<_> {
        let one = |(i, &(from, interface, router, port)): (usize, &(_, _, _, _))| {
            let to = mac_of(&lab, router, port);
            sender(&lab, from, interface, to, &known, &stop, seed + i as u64)
        };
        sites.iter().enumerate().map(one).collect()
    };
    let seed = rand::random();
    eprintln!("seed {seed}");
    let threads = start(seed);
    // What tables and buffers come to in a few seconds is all there will be.
    let until = Instant::now() + time;
    let settled = Instant::now() + time / 2;
    let mut at_half = None;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(200));
        // Both answer throughout.
        let (a, b) = (lab.status('a'), lab.status('b'));
        assert!(a.name == "site-a" && b.name == "site-b");
        if at_half.is_none() && Instant::now() > settled {
            at_half = Some([resident(&lab, "ra"), resident(&lab, "rb")]);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let sent: u64 = threads.into_iter().map(|t| t.join().unwrap()).sum();
    let drops = |side| lab.status(side).drops.values().sum::<u64>();
    let dropped = drops('a') + drops('b');
    eprintln!("{sent} frames sent, {dropped} dropped and counted");
    assert!(sent > 500 * time.as_secs(), "{sent} frames only");
    assert!(dropped > sent / 4, "{dropped} of {sent}");

    let before = at_half.unwrap();
    let after = [resident(&lab, "ra"), resident(&lab, "rb")];
    eprintln!("memory at half time {before:?}, at the end {after:?}");
    for (b, a) in before.iter().zip(after) {
        assert!(a < b * 1.25 + 8e6, "memory grew from {b} to {a}");
    }
    // What hosts want still passes.
    wait_for("the links", Duration::from_secs(30), || {
        let up = lab.status('a').ready && lab.status('b').ready;
        up.then_some(()).ok_or_else(|| "not up".to_owned())
    });
    lab.sh_ok("a1", "ping -c 3 -i 0.2 -w 10 $B1");
    let _server = lab.background("b1", "iperf3", &["-s", "-1"]);
    wait_for("iperf3", Duration::from_secs(20), || {
        let out = lab.sh("a1", "iperf3 -c $B1 -n 2M");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        out.status.success().then_some(()).ok_or(said)
    });
}
