//! What somebody on the WAN can read, and what he can do: nothing.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::socket::{sendto, socket, AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::byte_exact::exchange;
use crate::lab::{need, wait_for, Background, Lab, Routers, A1, B1};

const SOON: Duration = Duration::from_secs(10);
/// Ethernet, IPv4 without options, UDP.
const ETHERNET: usize = 14;
const UDP: usize = ETHERNET + 20;
const LINK: usize = UDP + 8;
/// Header and tag of a link packet.
const LINK_OVERHEAD: usize = 32;

/// A capture of what comes in at one interface of the WAN's namespace, until it is
/// asked for its frames. (What the emulator sends goes past every capture.)
struct Capture<'a> {
    lab: &'a Lab,
    tcpdump: Background,
    file: std::path::PathBuf,
}

impl<'a> Capture<'a> {
    fn start(lab: &'a Lab, interface: &str) -> Self {
        let file = lab.folder.path().join(format!("{interface}.pcap"));
        let _ = std::fs::remove_file(&file);
        let path = file.to_str().unwrap();
        let args = [
            "-Z", "root", "-i", interface, "-U", "-s", "0", "-B", "65536", "-w", path,
        ];
        let tcpdump = lab.background("wan", "tcpdump", &args);
        wait_for("tcpdump", SOON, || {
            let length = std::fs::metadata(&file).map_or(0, |m| m.len());
            (length >= 24)
                .then_some(())
                .ok_or(format!("{length} bytes"))
        });
        Self { lab, tcpdump, file }
    }

    fn frames(self) -> Vec<Vec<u8>> {
        // What was sent last is on its way to the file.
        self.lab.sh_ok("wan", "sleep 0.3");
        drop(self.tcpdump);
        let bytes = std::fs::read(self.file).unwrap();
        let mut rest = &bytes[24..];
        let mut frames = Vec::new();
        while rest.len() >= 16 {
            let length = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
            let Some(frame) = rest.get(16..16 + length) else {
                break;
            };
            frames.push(frame.to_vec());
            rest = &rest[16 + length..];
        }
        frames
    }
}

#[test]
fn a_capture_of_the_wan_shows_no_payload_and_no_host() {
    need!("tcpdump");
    let lab = Lab::up(Routers::Mef, "rate='100Mbit/s'\nrtt='20ms'\nqueue='1BDP'");
    let mut secret = vec![0; 4096];
    SmallRng::seed_from_u64(3).fill_bytes(&mut secret);
    let payload = secret.repeat(500);
    let captures = [Capture::start(&lab, "a"), Capture::start(&lab, "b")];
    let (ready, listening) = mpsc::channel();
    let address = SocketAddr::from((B1, 7000));
    let server = lab.thread("b1", move || {
        let listener = TcpListener::bind(address).unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        stream.write_all(&got).unwrap();
    });
    listening.recv().unwrap();
    let sent = payload.clone();
    let client = lab.thread("a1", move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    assert!(client.join().unwrap() == payload);
    server.join().unwrap();
    // The same in datagrams.
    let text: String = secret[..200].iter().map(|b| format!("{b:02x}")).collect();
    lab.sh_ok("a1", &format!("ping -c 3 -i 0.1 -p {} $B1", &text[..32]));

    let mut frames = Vec::new();
    for capture in captures {
        let seen = capture.frames();
        let total: usize = seen.iter().map(Vec::len).sum();
        assert!(total > payload.len(), "{total} bytes were captured");
        frames.extend(seen);
    }
    let pieces: HashSet<u64> = (0..4096)
        .map(|i| u64::from_be_bytes(std::array::from_fn(|k| secret[(i + k) % 4096])))
        .collect();
    let hosts = [A1.octets(), B1.octets()];
    let mut host_seen = 0;
    for frame in &frames {
        match &frame[12..14] {
            [0x08, 0x06] => continue,
            [0x08, 0x00] => {}
            other => panic!("a frame of type {other:02x?}"),
        }
        let ends = (&frame[26..30], &frame[30..34]);
        let (a, b) = (&[192, 0, 2, 1][..], &[192, 0, 2, 2][..]);
        assert!(ends == (a, b) || ends == (b, a), "{ends:?}");
        assert_eq!((frame[14], frame[23]), (0x45, 17), "no UDP");
        assert_eq!(
            frame[UDP..UDP + 4],
            [4800u16.to_be_bytes(), 4800u16.to_be_bytes()].concat()
        );
        for eight in frame.windows(8) {
            let eight = eight.first_chunk::<8>().unwrap();
            assert!(
                !pieces.contains(&u64::from_be_bytes(*eight)),
                "payload on the WAN"
            );
        }
        host_seen += frame[LINK..]
            .windows(4)
            .filter(|w| hosts.iter().any(|h| h == w))
            .count();
    }
    // Four given bytes come up by chance in one capture of a few hundred.
    assert!(host_seen <= 1, "{host_seen} addresses of hosts on the WAN");
}

/// Puts frames onto the cable to site b's router.
struct Injector(mpsc::Sender<Vec<u8>>);

impl Injector {
    fn start(lab: &Lab) -> Self {
        let (send, frames) = mpsc::channel::<Vec<u8>>();
        lab.thread("wan", move || {
            let none = SockFlag::empty();
            let raw = socket(AddressFamily::Packet, SockType::Raw, none, None).unwrap();
            let mut links = nix::ifaddrs::getifaddrs().unwrap();
            let b: LinkAddr = links
                .find_map(|i| {
                    (i.interface_name == "b").then(|| i.address?.as_link_addr().copied())?
                })
                .unwrap();
            for frame in frames {
                sendto(raw.as_raw_fd(), &frame, &b, MsgFlags::empty()).unwrap();
            }
        });
        Self(send)
    }
}

/// What the router of site b has counted under `reasons`.
fn counted(lab: &Lab, reasons: &[&str]) -> u64 {
    let drops = lab.status('b').drops;
    reasons.iter().filter_map(|r| drops.get(*r)).sum()
}

/// The frame with other bytes behind its UDP header, lengths and checksum made right.
fn with_payload(frame: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut new = frame[..LINK].to_vec();
    new.extend_from_slice(payload);
    let length = |n: usize| (n as u16).to_be_bytes();
    new[16..18].copy_from_slice(&length(28 + payload.len()));
    new[UDP + 4..UDP + 6].copy_from_slice(&length(8 + payload.len()));
    // Zero: not used (RFC 768).
    new[UDP + 6..LINK].fill(0);
    new[24..26].fill(0);
    let sum: u32 = new[ETHERNET..UDP]
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    new[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    new
}

/// The frame with `change` done to its IP header, whose checksum is right afterwards.
fn with_header(frame: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut new = frame.to_vec();
    change(&mut new[ETHERNET..UDP]);
    let payload = new[LINK..].to_vec();
    with_payload(&new, &payload)
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut new = bytes.to_vec();
    new[bit / 8] ^= 0x80 >> (bit % 8);
    new
}

#[test]
fn forged_frames_are_refused_and_counted_and_disturb_nobody() {
    need!("tcpdump");
    let lab = Lab::up(Routers::Mef, "rate='40Mbit/s'\nrtt='20ms'\nqueue='1BDP'");
    let address = SocketAddr::from((B1, 7000));
    let (ready, listening) = mpsc::channel();
    const BYTES: u64 = 40_000_000;
    let server = lab.thread("b1", move || {
        let listener = TcpListener::bind(address).unwrap();
        ready.send(()).unwrap();
        exchange(listener.accept().unwrap().0, 2, BYTES)
    });
    listening.recv().unwrap();
    let capture = Capture::start(&lab, "a");
    let client = lab.thread("a1", move || {
        exchange(TcpStream::connect(address).unwrap(), 1, BYTES)
    });
    // A transfer is under way, and these are its first packets.
    lab.sh_ok("wan", "sleep 0.7");
    let frames: Vec<Vec<u8>> = capture
        .frames()
        .into_iter()
        .filter(|f| f.len() > LINK + LINK_OVERHEAD && f[26..30] == [192, 0, 2, 1])
        .filter(|f| f[LINK] == 0x14)
        .collect();
    assert!(frames.len() > 500, "{}", frames.len());
    let frame = &frames[100];
    let link = &frame[LINK..];
    let mut random = SmallRng::seed_from_u64(4);
    let injector = Injector::start(&lab);
    let handshakes = || lab.status('b').counters["handshakes"];
    let before_attacks = handshakes();
    // Each must be counted under one of the reasons, and not more often than it was sent.
    let attack = |what: &str, reasons: &[&str], frames: Vec<Vec<u8>>| {
        let before = counted(&lab, reasons);
        let number = frames.len() as u64;
        for frame in frames {
            injector.0.send(frame).unwrap();
        }
        wait_for(what, SOON, || {
            let n = counted(&lab, reasons) - before;
            assert!(n <= number, "{what}: {n} counted of {number} sent");
            (n == number).then_some(()).ok_or_else(|| {
                format!(
                    "{n} of {number} in {reasons:?}; {:?}",
                    lab.status('b').drops
                )
            })
        });
    };
    let on_header = |bits: std::ops::Range<usize>| {
        bits.map(|bit| with_payload(frame, &flipped(link, bit)))
            .collect::<Vec<_>>()
    };
    // Numbers that were never used, so that only the seal can tell.
    let unused = |payload: &[u8], n: u64| {
        let mut new = payload.to_vec();
        let counter = u64::from_be_bytes(new[8..16].try_into().unwrap()) + (1 << 40) + n;
        new[8..16].copy_from_slice(&counter.to_be_bytes());
        new
    };

    let seen = ["open.crypto.replayed", "open.crypto.too_old"];
    attack("replay", &seen, frames[..300].to_vec());
    attack("replay of one", &seen, vec![frame.clone(); 100]);
    attack("version", &["open.crypto.bad_version"], on_header(0..4));
    // One of the four is a hint that a session is unknown, about a session that is.
    attack(
        "type",
        &["open.crypto.unknown_type", "open.crypto.unknown_session"],
        on_header(4..8),
    );
    let sealed = "open.crypto.unauthentic";
    attack(
        "epoch",
        &["open.crypto.bad_epoch", seen[0], sealed],
        on_header(8..16),
    );
    attack("lane", &["open.crypto.unknown_lane"], on_header(16..32));
    attack(
        "session",
        &["open.crypto.unknown_session"],
        on_header(32..64),
    );
    attack("number", &[seen[0], seen[1], sealed], on_header(64..128));
    let short = frames.iter().min_by_key(|f| f.len()).unwrap();
    let short = &short[LINK..];
    let every_bit = (128..short.len() * 8)
        .map(|bit| with_payload(frame, &unused(&flipped(short, bit), bit as u64)))
        .collect();
    attack("every bit of a packet", &[sealed], every_bit);
    let truncated = |lengths: std::ops::Range<usize>| {
        lengths
            .map(|n| with_payload(frame, &unused(link, n as u64)[..n]))
            .collect::<Vec<_>>()
    };
    let cut = "open.crypto.truncated";
    attack("truncated headers", &[cut], truncated(1..16));
    attack("truncated seals", &[cut, sealed], truncated(16..32));
    attack("truncated packets", &[sealed], truncated(32..link.len()));
    let longer = vec![with_payload(
        frame,
        &[&unused(short, 1)[..], &[0; 20]].concat(),
    )];
    attack("lengthened", &[sealed], longer);
    let noise = |random: &mut SmallRng, first: Option<u8>| {
        let mut bytes = vec![0; random.random_range(200..1400)];
        random.fill_bytes(&mut bytes);
        if let Some(first) = first {
            bytes[0] = first;
        }
        with_payload(frame, &bytes)
    };
    let refused = "open.crypto.handshake_refused";
    let other = ["open.crypto.bad_version", "open.crypto.unknown_type"];
    let strange = ["open.crypto.unknown_session", refused, other[0], other[1]];
    let random_bytes = (0..200).map(|_| noise(&mut random, None)).collect();
    attack("random bytes", &strange, random_bytes);
    let random_handshakes = (0..20).map(|_| noise(&mut random, Some(0x11))).collect();
    attack("random initiations", &[refused], random_handshakes);
    let random_answers = (0..20).map(|_| noise(&mut random, Some(0x12))).collect();
    attack("random responses", &strange[..2], random_answers);

    // Below the link.
    let one = |frame: Vec<u8>| vec![frame; 10];
    let mut typed = frame.clone();
    typed[12..14].copy_from_slice(&[0x86, 0xdd]);
    attack("IPv6", &["ingress.ethernet.unsupported_type"], one(typed));
    let mut stranger = frame.clone();
    stranger[..6].copy_from_slice(&[2, 0, 0, 0, 0, 99]);
    attack(
        "another station",
        &["ingress.ethernet.not_for_us"],
        one(stranger),
    );
    let version = with_header(frame, |ip| ip[0] = 0x55);
    attack("IP version", &["ingress.ip.bad_version"], one(version));
    let header = with_header(frame, |ip| ip[0] = 0x44);
    attack(
        "IP header length",
        &["ingress.ip.bad_header_length"],
        one(header),
    );
    attack(
        "IP checksum",
        &["ingress.ip.bad_checksum"],
        (80..96)
            .map(|bit| [&frame[..ETHERNET], &flipped(&frame[ETHERNET..], bit)].concat())
            .collect(),
    );
    let lengths = ["ingress.ip.bad_length", "ingress.wire.truncated"];
    let cut_short = (ETHERNET + 1..LINK + 8)
        .map(|n| frame[..n].to_vec())
        .collect();
    attack("cut frames", &lengths, cut_short);
    let loopback = with_header(frame, |ip| ip[12..16].copy_from_slice(&[127, 0, 0, 1]));
    attack(
        "source loopback",
        &["ingress.ip.martian_source"],
        one(loopback),
    );
    let own = with_header(frame, |ip| ip[12..16].copy_from_slice(&[192, 0, 2, 2]));
    attack(
        "its own address",
        &["ingress.ip.own_address_spoofed"],
        one(own),
    );
    let mut port = frame.clone();
    port[UDP + 3] ^= 1;
    attack("another UDP port", &["ingress.ip.no_listener"], one(port));

    assert!(
        !client.is_finished(),
        "the transfer was over before the attacks were"
    );
    let (sent_a, got_a, number_a) = client.join().unwrap();
    let (sent_b, got_b, number_b) = server.join().unwrap();
    assert_eq!((number_a, number_b), (BYTES, BYTES));
    assert!(
        sent_a == got_b && sent_b == got_a,
        "other bytes than were sent"
    );
    assert_eq!(handshakes(), before_attacks, "the session was disturbed");
}
