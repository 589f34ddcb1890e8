//! A router with links to two sites behind one line whose capacity nobody told it: one rate for
//! both links, each gets its half, and either has all of it while the other rests.
//!
//! ```text
//!                    mefN-wan
//!  h ── hub ──[a emulator b]──[bridge]──────────────────── s1 ── t1
//!                                 └──[q emulator p]─────── s2 ── t2
//! ```

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mef_crypto::{write_private_key, PrivateKey, PublicKey};
use mef_dataplane::control;
use mef_io::os::{set_interface_offload, Offload};
use mef_lab::netns::Namespaces;

use crate::lab::{mef, need, wait_for, Background, ONE_AT_A_TIME};

/// The line, and the longer way of the second site behind it.
const LINE: &str = "[wan]\nrate='20Mbit/s'\nrtt='40ms'\nqueue='300ms'\n";
const LONGER: &str = "[wan]\nrate='1Gbit/s'\nrtt='60ms'\n";
/// What TCP would have of 20 Mbit/s.
const CEILING: f64 = 20.0 * 1448.0 / 1514.0;

struct Star {
    // In the order they have to go.
    routers: Vec<Background>,
    emulators: Vec<Background>,
    net: Namespaces,
    folder: tempfile::TempDir,
}

fn address(site: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, site as u8 + 1)
}
/// Of the site's host.
fn host(site: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, site as u8 + 1, 1, 2)
}
const ROUTERS: [&str; 3] = ["hub", "s1", "s2"];
const HOSTS: [&str; 3] = ["h", "t1", "t2"];

fn key(folder: &Path, site: usize) -> PublicKey {
    let key = PrivateKey::generate([site as u8 + 7; 32]);
    write_private_key(folder.join(format!("{}.key", ROUTERS[site])), &key).unwrap();
    key.public()
}

fn configuration(folder: &Path, site: usize, keys: &[PublicKey]) -> PathBuf {
    let (name, n) = (ROUTERS[site], site + 1);
    let control = folder.join(format!("{name}.sock"));
    let mut text = format!(
        "[router]\nname = '{name}'\nprivate_key = '{name}.key'\ncontrol = {control:?}\ndrain = '0s'\n\
         [[port]]\nname = 'lan'\ninterface = 'lan'\naddresses = ['10.{n}.1.1/24']\n\
         [[port]]\nname = 'wan'\ninterface = 'wan'\naddresses = ['{}/24']\nlisten = 4800\n\
         [port.line]\nup = 'auto'\ndown = 'auto'\n",
        address(site)
    );
    let peers: &[usize] = if site == 0 { &[1, 2] } else { &[0] };
    for &peer in peers {
        text += &format!(
            "[[peer]]\nname = '{}'\npublic_key = '{}'\nport = 'wan'\nendpoint = '{}:4800'\nprefixes = ['10.{}.1.0/24']\n",
            ROUTERS[peer], keys[peer], address(peer), peer + 1
        );
    }
    let file = folder.join(format!("{name}.toml"));
    std::fs::write(&file, text).unwrap();
    file
}

impl Star {
    fn up() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<&str> = ROUTERS
            .iter()
            .chain(&HOSTS)
            .copied()
            .chain(["wan"])
            .collect();
        let net = Namespaces::create(&names).unwrap();
        for site in 0..3 {
            net.cable((HOSTS[site], "eth0"), (ROUTERS[site], "lan"))
                .unwrap();
            let n = site + 1;
            net.ip(
                HOSTS[site],
                &format!("addr add 10.{n}.1.2/24 dev eth0\nroute add default via 10.{n}.1.1\n"),
            )
            .unwrap();
        }
        for (router, end) in [("hub", "a"), ("s1", "p1"), ("s2", "p2")] {
            net.cable((router, "wan"), ("wan", end)).unwrap();
            let off = || {
                for offload in [Offload::Tso, Offload::Gso, Offload::TxChecksum] {
                    set_interface_offload("wan", offload, false).unwrap();
                }
            };
            net.inside(router, off).unwrap();
        }
        for inner in ["b", "q"] {
            net.cable(("wan", inner), ("wan", &format!("{inner}i")))
                .unwrap();
        }
        net.ip("wan", "link add sw type bridge\nlink set dev sw up\n")
            .unwrap();
        for end in ["bi", "qi", "p1"] {
            net.ip("wan", &format!("link set dev {end} master sw\n"))
                .unwrap();
        }
        let emulate = |name: &str, a: &str, b: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            let mut command = net.command("wan", mef());
            command
                .args(["lab", "wan", "--a", a, "--b", b, "--config"])
                .arg(file);
            Background(
                command
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap(),
            )
        };
        let emulators = vec![
            emulate("line.toml", "a", "b", LINE),
            emulate("longer.toml", "q", "p2", LONGER),
        ];
        let keys: Vec<PublicKey> = (0..3).map(|site| key(folder.path(), site)).collect();
        let start = |site: usize| {
            let file = configuration(folder.path(), site, &keys);
            let mut command = net.command(ROUTERS[site], mef());
            command
                .args(["router", "run", "-c"])
                .arg(file)
                .stdin(Stdio::null());
            Background(command.spawn().unwrap())
        };
        let routers = (0..3).map(start).collect();
        let star = Self {
            routers,
            emulators,
            net,
            folder,
        };
        wait_for("both links", Duration::from_secs(20), || {
            let hub = star.hub().map_err(|e| e.to_string())?;
            let up = hub
                .links
                .iter()
                .filter(|l| l.state == control::LinkState::Up)
                .count();
            if up == 2 {
                Ok(())
            } else {
                Err(format!("{up} are up"))
            }
        });
        star
    }

    fn hub(&self) -> std::io::Result<control::Snapshot> {
        control::query(&self.folder.path().join("hub.sock"), Duration::from_secs(5))
    }

    /// What the host of a site reads, in bytes, for as long as somebody sends.
    fn reads(&self, site: usize) -> Arc<AtomicU64> {
        let count = Arc::new(AtomicU64::new(0));
        let listener = self
            .net
            .inside(HOSTS[site], || {
                TcpListener::bind((host(site), 7000)).unwrap()
            })
            .unwrap();
        let counter = count.clone();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = vec![0; 1 << 16];
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                counter.fetch_add(n as u64, Ordering::Relaxed);
            }
        });
        count
    }

    /// Sends to the host of a site until then, or for as long as that reads.
    fn sends(&self, site: usize, until: Instant) {
        let connect = || TcpStream::connect((host(site), 7000)).unwrap();
        let mut stream = self.net.inside("h", connect).unwrap();
        stream
            .set_write_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        std::thread::spawn(move || {
            let bytes = vec![7; 1 << 16];
            while Instant::now() < until {
                let _ = stream.write(&bytes);
            }
        });
    }
}

/// Mbit/s of each between now and then.
fn rates(counts: &[Arc<AtomicU64>; 2], time: Duration) -> [f64; 2] {
    let read = || [0, 1].map(|i: usize| counts[i].load(Ordering::Relaxed));
    let (before, from) = (read(), Instant::now());
    std::thread::sleep(time);
    let (after, seconds) = (read(), from.elapsed().as_secs_f64());
    [0, 1].map(|i: usize| (after[i] - before[i]) as f64 * 8e-6 / seconds)
}

#[test]
fn two_links_behind_a_line_that_nobody_knows_share_one_rate() {
    need!();
    let _alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut star = Star::up();
    let counts = [star.reads(1), star.reads(2)];
    let second = Duration::from_secs(1);
    let start = Instant::now();
    star.sends(1, start + 20 * second);
    std::thread::sleep(4 * second);
    let alone = rates(&counts, 2 * second);
    star.sends(2, start + 30 * second);
    std::thread::sleep(4 * second);
    let both = rates(&counts, 8 * second);
    let estimates: Vec<_> = star
        .hub()
        .unwrap()
        .links
        .iter()
        .map(|l| (l.peer.clone(), l.estimate.clone()))
        .collect();
    std::thread::sleep((start + 23 * second).saturating_duration_since(Instant::now()));
    let left = rates(&counts, 4 * second);
    drop(star.routers.drain(..));
    let line = star.emulators.remove(0).end();
    println!(
        "alone {alone:.2?}, both {both:.2?}, the other alone {left:.2?}\n{estimates:?}\n{line}"
    );
    let line: serde_json::Value = serde_json::from_str(line.lines().last().unwrap()).unwrap();
    let queue = line["a_to_b"]["queue_p95_us"].as_u64().unwrap();
    assert!(queue < 60_000, "95% of the packets waited up to {queue} us");
    let share = |mbit: f64| mbit / CEILING;
    assert!(share(alone[0]) > 0.9, "{alone:?}");
    assert!(share(both[0] + both[1]) > 0.9, "{both:?}");
    assert!(both.iter().all(|m| share(*m) > 0.4), "{both:?}");
    assert!(share(left[1]) > 0.9, "{left:?}");
}
