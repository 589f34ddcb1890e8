//! From the keys of a file to a [`Topology`]: fills in defaults, checks ranges
//! and names, and says for everything refused what would be right.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mef_packet::{BitRate, Bytes};

use super::file::{At, Direction, File, Which};
use super::units::QueueSize;
use super::{Host, Kind, Load, Router, Side, Topology};
use crate::wan::{Change, DirectionConfig, Line, Loss, Scheduled, Trace, WanConfig};

/// A value that cannot be: where, what was found, what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub key: String,
    pub found: String,
    pub expected: String,
}

fn bad(key: impl Into<String>, found: impl ToString, expected: impl Into<String>) -> Bad {
    Bad {
        key: key.into(),
        found: found.to_string(),
        expected: expected.into(),
    }
}

const FIRST_PORT: u16 = 5201;
/// UDP payload of a full packet, and what a datagram has around it on the line.
const LARGEST_DATAGRAM: u64 = 1472;
const DATAGRAM_OVERHEAD: u64 = 14 + 20 + 8;
const LEAST_INTERVAL: Duration = Duration::from_micros(100);
const DEFAULT_RATE: BitRate = BitRate::from_mbit(100);
const DEFAULT_RTT: Duration = Duration::from_millis(200);
/// No frame on a line is larger: room for a few keeps tiny queues usable.
const SMALLEST_QUEUE: u64 = 2 * 1514;

/// `folder` is where paths in the file start from.
pub(super) fn topology(name: &str, file: &File, folder: &Path) -> Result<Topology, Bad> {
    if !(2..=86_400).contains(&file.seconds) {
        return Err(bad("seconds", file.seconds, "2 to 86400"));
    }
    let mut hosts = Vec::new();
    for (side, site) in [(Side::A, &file.site.a), (Side::B, &file.site.b)] {
        let count = site.host.len().max(1);
        if count > 100 {
            return Err(bad(
                format!("site.{}.host", side.letter()),
                count,
                "at most 100 hosts",
            ));
        }
        for i in 0..count {
            let rtt = site.host.get(i).and_then(|h| h.access_rtt);
            let loss = site.host.get(i).and_then(|h| h.access_loss).unwrap_or(0.0);
            hosts.push(Host {
                name: format!("{}{}", side.letter(), i + 1),
                side,
                number: (i + 1) as u8,
                family: file.host.family,
                access_delay: rtt.map_or(Duration::ZERO, |t| t.0 / 2),
                access_loss: share(format!("site.{}.host.{i}.access_loss", side.letter()), loss)?,
                foreign: site.host.get(i).is_some_and(|h| h.foreign),
            });
            if let Some(h) = hosts.last().filter(|h| h.foreign && rtt.is_some()) {
                return Err(bad(
                    format!("site.{}.host.{i}.access_rtt", side.letter()),
                    format!("{:?} of a foreign host", h.access_delay * 2),
                    "none: it is attached to the WAN itself",
                ));
            }
        }
    }
    let find = |key: String, name: &str| {
        hosts.iter().position(|h| h.name == name).ok_or_else(|| {
            let known: Vec<&str> = hosts.iter().map(|h| h.name.as_str()).collect();
            bad(
                key,
                name,
                format!("a host of this topology: {}", known.join(", ")),
            )
        })
    };
    let mut loads = Vec::new();
    for (i, l) in file.load.iter().enumerate() {
        let key = |k: &str| format!("load.{i}.{k}");
        let from = find(key("from"), &l.from)?;
        let to = find(key("to"), &l.to)?;
        let crosses = match (hosts.get(from), hosts.get(to)) {
            (Some(f), Some(t)) => f.side != t.side,
            _ => false,
        };
        if !crosses {
            return Err(bad(key("to"), &l.to, "a host of the other site"));
        }
        let foreign = |i: usize| hosts.get(i).is_some_and(|h| h.foreign);
        if foreign(from) != foreign(to) {
            return Err(bad(
                key("to"),
                &l.to,
                "a foreign host for a foreign one, as routers know nothing of them",
            ));
        }
        let mut sizes: Vec<Bytes> = l.sizes.iter().map(|s| s.0).collect();
        sizes.extend(l.size.map(|s| s.0));
        let (rate, interval) = pace(i, l, &mut sizes)?;
        match l.kind {
            Kind::Bulk | Kind::Stream if !sizes.is_empty() => {
                return Err(bad(
                    key("size"),
                    "a size",
                    "none: it runs until the end of the run",
                ));
            }
            Kind::Transfer | Kind::Request if sizes.is_empty() => {
                return Err(bad(
                    key("size"),
                    "nothing",
                    "`size = \"100kB\"` or `sizes = [...]`",
                ));
            }
            _ => {}
        }
        if !(1..=10_000).contains(&l.count) || (l.kind.is_endless() && l.count > 100) {
            return Err(bad(
                key("count"),
                l.count,
                "1 to 10000 flows, at most 100 of those that last as long as the run",
            ));
        }
        let weight = l.weight.unwrap_or(1.0);
        if !(0.01..=1000.0).contains(&weight) {
            return Err(bad(key("weight"), weight, "0.01 to 1000"));
        }
        let start = l.start.map_or(Duration::ZERO, |t| t.0);
        if start >= Duration::from_secs(u64::from(file.seconds)) {
            return Err(bad(
                key("start"),
                format!("{start:?}"),
                "less than `seconds`",
            ));
        }
        loads.push(Load {
            kind: l.kind,
            from,
            to,
            count: l.count,
            sizes,
            start,
            gap: l.gap.map_or(Duration::from_millis(50), |t| t.0),
            together: l.together,
            timeout: l.timeout.map(|t| t.0),
            weight,
            open: l.open,
            class: l.class,
            rate,
            interval,
            congestion: l.congestion.clone(),
            port: FIRST_PORT.saturating_add(u16::try_from(i).unwrap_or(u16::MAX)),
        });
    }
    if let (Some(_), Some(rate)) = (file.router.auto, file.router.configured) {
        return Err(bad(
            "router.auto",
            format!("configured = {} bit/s too", rate.0 .0),
            "one of them",
        ));
    }
    let mut topology = Topology {
        name: name.to_owned(),
        description: file.description.trim().to_owned(),
        seconds: file.seconds,
        wan: wan(&file.wan, folder)?,
        router: Router {
            family: file.router.family,
            configured: file.router.configured.map(|r| r.0),
            auto: file.router.auto,
            open: file.router.open.unwrap_or_default(),
            memory: file.router.memory.map(|m| m.0),
            advertise: file.router.advertise,
            more: file.router.more.clone().unwrap_or_default(),
            engine: file.router.engine.unwrap_or_default(),
            driver: file.router.driver.unwrap_or_default(),
            workers: file.router.workers,
        },
        congestion: file.host.congestion.clone(),
        family: file.host.family,
        loads,
        probe: None,
        hosts: Vec::new(),
    };
    if !file.probe.off {
        let host = |key: &str, given: &Option<String>, side: Side| {
            let default = format!("{}1", side.letter());
            find(key.to_owned(), given.as_deref().unwrap_or(&default))
        };
        // The probe goes with the payload: that is the queue it is there to see.
        let with = match topology.loads.first() {
            Some(l) if l.kind == Kind::Request => l.to,
            Some(l) => l.from,
            None => 0,
        };
        let side = hosts.get(with).map_or(Side::A, |h| h.side);
        topology.probe = Some((
            host("probe.from", &file.probe.from, side)?,
            host("probe.to", &file.probe.to, side.other())?,
        ));
    }
    topology.hosts = hosts;
    Ok(topology)
}

/// Payload rate of a stream, time between the datagrams of CBR; fills in the size of the latter.
fn pace(
    i: usize,
    l: &super::file::Load,
    sizes: &mut Vec<Bytes>,
) -> Result<(BitRate, Duration), Bad> {
    let key = |k: &str| format!("load.{i}.{k}");
    let rate = l.rate.map(|r| r.0);
    let none = (BitRate(0), Duration::ZERO);
    match (l.kind, rate, l.interval) {
        (Kind::Stream, Some(rate), None) if rate.0 >= 8_000 => Ok((rate, Duration::ZERO)),
        (Kind::Stream, rate, _) => Err(bad(
            key("rate"),
            rate.map_or("nothing".to_owned(), |r| format!("{} bit/s", r.0)),
            "what the stream's payload takes, at least 8 kbit/s, and no interval",
        )),
        (Kind::Cbr, rate, interval) => {
            if sizes.is_empty() {
                sizes.push(Bytes(LARGEST_DATAGRAM));
            }
            let size = match sizes.as_slice() {
                [one] if (32..=LARGEST_DATAGRAM).contains(&one.0) => one.0,
                _ => {
                    return Err(bad(
                        key("size"),
                        format!("{sizes:?}"),
                        "one size of 32 to 1472 bytes, the payload of a datagram",
                    ))
                }
            };
            let interval = match (rate, interval) {
                (None, Some(t)) => t.0,
                (Some(r), None) if r.0 > 0 => {
                    let bits = (size + DATAGRAM_OVERHEAD) as f64 * 8.0;
                    Duration::from_secs_f64(bits / r.0 as f64)
                }
                _ => {
                    return Err(bad(
                        key("rate"),
                        "both or neither of rate and interval",
                        "one of them",
                    ))
                }
            };
            if !(LEAST_INTERVAL..=Duration::from_secs(10)).contains(&interval) {
                return Err(bad(
                    key("interval"),
                    format!("{interval:?}"),
                    "100 us to 10 s between two datagrams",
                ));
            }
            Ok((BitRate(0), interval))
        }
        (_, None, None) => Ok(none),
        (_, Some(_), _) => Err(bad(key("rate"), "a rate", "none but for stream and cbr")),
        (_, None, Some(_)) => Err(bad(key("interval"), "an interval", "none but for cbr")),
    }
}

pub(super) fn wan(w: &super::file::Wan, folder: &Path) -> Result<WanConfig, Bad> {
    if w.rtt.is_some() && w.delay.is_some() {
        return Err(bad(
            "wan.rtt",
            "rtt and delay",
            "one of them: rtt is twice the delay",
        ));
    }
    let half = w.rtt.map_or(DEFAULT_RTT, |t| t.0) / 2;
    let one = |name: &str, own: &Direction| direction(name, &w.merged(own), half, folder);
    let mut config = WanConfig {
        a_to_b: one("wan.a_to_b", &w.a_to_b)?,
        b_to_a: one("wan.b_to_a", &w.b_to_a)?,
    };
    // Queues in BDP need both delays.
    let rtt = config.rtt();
    config.a_to_b.queue = queue("wan.a_to_b", &w.merged(&w.a_to_b), &config.a_to_b, rtt)?;
    config.b_to_a.queue = queue("wan.b_to_a", &w.merged(&w.b_to_a), &config.b_to_a, rtt)?;
    for (i, at) in w.at.iter().enumerate() {
        let changes = changes(i, at)?;
        if at.direction != Which::BToA {
            config.a_to_b.changes.extend(&changes);
        }
        if at.direction != Which::AToB {
            config.b_to_a.changes.extend(&changes);
        }
    }
    for d in [&mut config.a_to_b, &mut config.b_to_a] {
        d.changes.sort_by_key(|s| s.at);
        let traced = matches!(d.line, Line::Trace(_));
        if traced
            && d.changes
                .iter()
                .any(|s| matches!(s.change, Change::Rate(_)))
        {
            return Err(bad(
                "wan.at.rate",
                "a rate",
                "none where the line follows a trace",
            ));
        }
    }
    Ok(config)
}

fn share(key: String, p: f64) -> Result<f64, Bad> {
    if (0.0..=1.0).contains(&p) {
        Ok(p)
    } else {
        Err(bad(key, p, "a share from 0 to 1"))
    }
}

fn mtu(key: String, mtu: u16) -> Result<u16, Bad> {
    if mtu >= 576 {
        Ok(mtu)
    } else {
        Err(bad(key, mtu, "at least 576"))
    }
}

fn direction(
    name: &str,
    d: &Direction,
    half: Duration,
    folder: &Path,
) -> Result<DirectionConfig, Bad> {
    let key = |k: &str| format!("{name}.{k}");
    let line = match (&d.rate, &d.trace) {
        (Some(_), Some(_)) => {
            return Err(bad(key("rate"), "rate and trace", "one of them"));
        }
        (_, Some(paths)) => {
            let path = paths.first_of(folder);
            let text = std::fs::read_to_string(&path).map_err(|e| {
                bad(
                    key("trace"),
                    format!("{}: {e}", path.display()),
                    "a readable file",
                )
            })?;
            let trace = Trace::parse(&text).map_err(|e| {
                bad(
                    key("trace"),
                    format!("{}: {e}", path.display()),
                    "a Mahimahi trace",
                )
            })?;
            Line::Trace(Arc::new(trace))
        }
        (rate, None) => Line::Rate(rate.map_or(DEFAULT_RATE, |r| r.0)),
    };
    let p = share(key("loss"), d.loss.unwrap_or(0.0))?;
    let loss = match (d.gilbert_elliott, d.burst) {
        (Some(_), Some(_)) => {
            return Err(bad(
                key("burst"),
                "burst and gilbert_elliott",
                "one of them",
            ));
        }
        (Some(g), None) => Loss::GilbertElliott {
            good_to_bad: share(key("gilbert_elliott.good_to_bad"), g.good_to_bad)?,
            bad_to_good: share(key("gilbert_elliott.bad_to_good"), g.bad_to_good)?,
            loss_good: share(key("gilbert_elliott.loss_good"), g.loss_good)?,
            loss_bad: share(key("gilbert_elliott.loss_bad"), g.loss_bad)?,
        },
        (None, Some(length)) => {
            if !(1.0..=10_000.0).contains(&length) || p > 0.5 {
                return Err(bad(
                    key("burst"),
                    length,
                    "1 to 10000 frames, with a loss of at most 0.5",
                ));
            }
            Loss::bursts(p, length)
        }
        (None, None) => Loss::Iid(p),
    };
    Ok(DirectionConfig {
        line,
        delay: d.delay.map_or(half, |t| t.0),
        queue: Bytes(0),
        loss,
        jitter: d.jitter.map_or(Duration::ZERO, |t| t.0),
        reorder: d.reorder.unwrap_or(false),
        duplicate: share(key("duplicate"), d.duplicate.unwrap_or(0.0))?,
        mtu: mtu(key("mtu"), d.mtu.unwrap_or(1500))?,
        changes: Vec::new(),
    })
}

fn queue(name: &str, d: &Direction, config: &DirectionConfig, rtt: Duration) -> Result<Bytes, Bad> {
    let rate = config.line.mean_rate().unwrap_or(DEFAULT_RATE);
    let bytes = match d.queue.map_or(QueueSize::Bdp(1.0), |q| q.0) {
        QueueSize::Bytes(b) => b,
        QueueSize::Time(t) => rate.bytes_in(t),
        QueueSize::Bdp(n) => Bytes((rate.bytes_in(rtt).0 as f64 * n) as u64),
    };
    if bytes.0 > 4 << 30 {
        return Err(bad(
            format!("{name}.queue"),
            format!("{} bytes", bytes.0),
            "at most 4 GiB",
        ));
    }
    Ok(Bytes(bytes.0.max(SMALLEST_QUEUE)))
}

fn changes(i: usize, at: &At) -> Result<Vec<Scheduled>, Bad> {
    let key = |k: &str| format!("wan.at.{i}.{k}");
    if !(0.0..=86_400.0).contains(&at.seconds) {
        return Err(bad(key("seconds"), at.seconds, "0 to 86400"));
    }
    let mut list = Vec::new();
    list.extend(at.rate.map(|r| Change::Rate(r.0)));
    list.extend(at.delay.map(|d| Change::Delay(d.0)));
    if let Some(p) = at.loss {
        list.push(Change::Loss(share(key("loss"), p)?));
    }
    if let Some(m) = at.mtu {
        list.push(Change::Mtu(mtu(key("mtu"), m)?));
    }
    list.extend(at.blackhole.map(Change::Blackhole));
    if list.is_empty() {
        return Err(bad(
            format!("wan.at.{i}"),
            "nothing to change",
            "rate, delay, loss, mtu or blackhole",
        ));
    }
    let at = Duration::from_secs_f64(at.seconds);
    Ok(list
        .into_iter()
        .map(|change| Scheduled { at, change })
        .collect())
}
