//! Opening the ports that a configuration names, by their driver, and how long a
//! router may sleep when its ports cannot wake it.

use std::time::Duration;

use mef_io::{AfPacket, AfPacketOptions, PortError, Steering};
use mef_packet::Instant;

use crate::config::{Config, Driver};

/// The ports of a router, all of one kind: of each worker, in the order of the configuration.
pub enum Ports {
    AfPacket(Vec<Vec<AfPacket>>),
    #[cfg(feature = "dpdk")]
    Dpdk(Vec<Vec<mef_io::DpdkPort>>),
}

/// Opens all ports; those of Linux interfaces in the calling thread's network namespace. Where there are
/// several workers, frames are spread over them by the flow hash under `key`.
///
/// # Errors
/// The port that cannot be opened and why; none is open then.
pub fn open(config: &Config, key: u64) -> Result<Ports, PortError> {
    let driver = config.ports.first().map(|p| p.driver).unwrap_or_default();
    match driver {
        Driver::AfPacket => open_af_packet(config, key).map(Ports::AfPacket),
        #[cfg(feature = "dpdk")]
        Driver::Dpdk => open_dpdk(config).map(Ports::Dpdk),
        // The configuration was refused before.
        #[cfg(not(feature = "dpdk"))]
        Driver::Dpdk => Err(PortError::Device {
            name: "dpdk".to_owned(),
            what: "opening ports",
            reason: "this program was built without DPDK".to_owned(),
        }),
    }
}

fn open_af_packet(config: &Config, key: u64) -> Result<Vec<Vec<AfPacket>>, PortError> {
    let queues = config.workers.max(1);
    let mut workers: Vec<Vec<AfPacket>> = (0..queues).map(|_| Vec::new()).collect();
    for p in &config.ports {
        let options = AfPacketOptions {
            // What the links measure is measured by the router's own clock.
            timestamps: false,
            // Links send packets of one size. What hosts send would be cut again.
            merge_udp: p.line.is_some() && p.merge_udp,
            ..AfPacketOptions::default()
        };
        let of_workers = if queues == 1 {
            vec![AfPacket::open_with(&p.interface, &options)?]
        } else {
            let links_at = p.line.is_some().then_some(p.listen);
            let steering = Steering {
                key,
                queues,
                links_at,
            };
            AfPacket::open_queues(&p.interface, &options, steering)?
        };
        match of_workers.first().map(AfPacket::merges_udp) {
            Some(Ok(true)) => {
                tracing::info!(port = p.name, "UDP packets are joined on receipt (rx-udp-gro-forwarding), until the router ends");
            }
            Some(Err(e)) => {
                tracing::warn!(
                    port = p.name,
                    "UDP packets are not joined on receipt (rx-udp-gro-forwarding): {e}"
                );
            }
            _ => {}
        }
        for (worker, port) in workers.iter_mut().zip(of_workers) {
            worker.push(port);
        }
    }
    Ok(workers)
}

#[cfg(feature = "dpdk")]
fn open_dpdk(config: &Config) -> Result<Vec<Vec<mef_io::DpdkPort>>, PortError> {
    let options = config
        .ports
        .iter()
        .map(|p| {
            let device = with_queues(&p.interface, config.workers).parse();
            let device = device.map_err(|e: mef_io::DeviceNameError| PortError::Device {
                name: p.interface.clone(),
                what: "expected",
                reason: e.to_string(),
            })?;
            Ok(mef_io::DpdkOptions { device, mtu: p.mtu })
        })
        .collect::<Result<Vec<_>, PortError>>()?;
    let workers = mef_io::DpdkPort::open_workers(&options, config.workers)?;
    let first = workers.iter().take(1).flatten();
    for (port, c) in first.zip(&config.ports) {
        tracing::info!(port = c.name, device = c.interface, "opened with DPDK");
        for note in port.notes() {
            tracing::warn!(port = c.name, "{note}");
        }
    }
    Ok(workers)
}

/// The device as DPDK is to make it: those on interfaces have to be told of their queues.
#[cfg(feature = "dpdk")]
fn with_queues(device: &str, workers: u16) -> String {
    let told = device.contains(",qpairs=") || !device.starts_with("net_af_packet");
    if workers <= 1 || told {
        return device.to_owned();
    }
    format!("{device},qpairs={workers}")
}

/// How long to sleep where ports have to be asked for packets, as those of DPDK: not at
/// all while there is work, then in steps that grow, so that routers share a small
/// machine. A step is shorter than a receive queue takes to fill at the rate that was
/// seen before it.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    busy_at: Instant,
}

/// The first sleep, while packets may be a moment away: 1024 descriptors last 69 us at 14.9 million packets/s.
const SHORT: Duration = Duration::from_micros(50);
/// Without a packet for so long, nothing is in the middle of happening.
const QUIET: Duration = Duration::from_millis(20);
/// The longest sleep: an idle router answers within a millisecond.
const LONG: Duration = Duration::from_micros(500);

impl Backoff {
    /// Nothing has happened before `now`.
    pub fn new(now: Instant) -> Self {
        Self { busy_at: now }
    }

    /// The longest time to sleep at `now`; `busy` if there was work since the last call.
    pub fn limit(&mut self, now: Instant, busy: bool) -> Duration {
        if busy {
            self.busy_at = now;
            return Duration::ZERO;
        }
        if now.since(self.busy_at) < QUIET {
            SHORT
        } else {
            LONG
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeps_grow_when_nothing_comes_and_end_with_work() {
        let mut backoff = Backoff::new(Instant::ZERO);
        let ms = Instant::from_millis;
        assert_eq!(backoff.limit(ms(1), true), Duration::ZERO);
        assert_eq!(backoff.limit(ms(2), false), SHORT);
        assert_eq!(backoff.limit(ms(20), false), SHORT);
        assert_eq!(backoff.limit(ms(21), false), LONG);
        assert!(LONG <= Duration::from_millis(1));
        assert_eq!(backoff.limit(ms(22), true), Duration::ZERO);
        assert_eq!(backoff.limit(ms(23), false), SHORT);
    }
}
