//! Split flows: found by the two hosts' addresses when a segment comes from a
//! host, and by the link's flow number when something comes from the link.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use mef_packet::{Instant, PortId};
use mef_protocol::wheel::Wheel;

use crate::config::PeerId;
use crate::host_tcp::{Endpoint, TimeWait};
use crate::router::HostShare;

/// The host on this side and the one it talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    pub host: SocketAddr,
    pub far: SocketAddr,
}

/// One split flow.
pub struct SplitFlow {
    pub key: FlowKey,
    pub peer: PeerId,
    /// Number on the link.
    pub number: u32,
    /// Where the host is.
    pub port: PortId,
    pub host: Option<Endpoint>,
    /// The host's SYN, held back until the far server has answered (`open = "confirm"`).
    pub syn: Option<Vec<u8>>,
    /// How often the host has sent its SYN.
    pub syns: u8,
    /// DS field of the host that opened the connection.
    pub dscp: u8,
    /// We opened to the host, and have told the link that it answered.
    pub accepted: bool,
    /// Its opening counts among those that are not completed.
    pub counted: bool,
    /// The far host's half has been closed towards the host.
    pub host_closed: bool,
    /// The host's half has been closed towards the link.
    pub link_closed: bool,
    /// A reset came over the link; it is delivered behind its bytes or after a second.
    pub reset_at: Option<Instant>,
    /// What `host` counts for in the memory budget.
    pub share: HostShare,
    /// Whether its hosts are known to be alive.
    pub alive: crate::router::KeepAlive,
    /// Waiting to be pumped.
    pub dirty: bool,
}

impl SplitFlow {
    fn losses_pardoned(&self) -> u64 {
        self.host.as_ref().map_or(0, Endpoint::losses_pardoned)
    }
}

/// How long a finished connection is remembered (2 MSL, as Linux keeps it).
const TIME_WAIT: Duration = Duration::from_secs(60);
/// Most finished connections that are remembered; the oldest give way.
const MAX_TIME_WAIT: usize = 65_536;

/// All split flows of a worker.
#[derive(Default)]
pub struct FlowTable {
    flows: Vec<Option<SplitFlow>>,
    free: Vec<usize>,
    by_key: HashMap<FlowKey, usize>,
    by_number: HashMap<(PeerId, u32), usize>,
    time_wait: HashMap<FlowKey, TimeWait>,
    time_wait_order: VecDeque<(Instant, FlowKey)>,
    /// Losses of hosts that they were not told of, in flows that are over.
    losses_pardoned: u64,
    /// When each wants to be looked at next.
    timers: Wheel,
}

impl FlowTable {
    pub fn insert(&mut self, flow: SplitFlow) -> usize {
        let (key, number) = (flow.key, (flow.peer, flow.number));
        let index = self.free.pop().unwrap_or_else(|| {
            self.flows.push(None);
            self.flows.len() - 1
        });
        if let Some(slot) = self.flows.get_mut(index) {
            *slot = Some(flow);
        }
        self.by_key.insert(key, index);
        self.by_number.insert(number, index);
        self.time_wait.remove(&key);
        index
    }
    pub fn get(&self, index: usize) -> Option<&SplitFlow> {
        self.flows.get(index)?.as_ref()
    }
    pub fn get_mut(&mut self, index: usize) -> Option<&mut SplitFlow> {
        self.flows.get_mut(index)?.as_mut()
    }
    pub fn by_key(&self, key: &FlowKey) -> Option<usize> {
        self.by_key.get(key).copied()
    }
    pub fn by_number(&self, peer: PeerId, number: u32) -> Option<usize> {
        self.by_number.get(&(peer, number)).copied()
    }
    pub fn len(&self) -> usize {
        self.by_key.len()
    }
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
    pub fn indices(&self) -> impl Iterator<Item = usize> + '_ {
        self.flows
            .iter()
            .enumerate()
            .filter(|(_, f)| f.is_some())
            .map(|(i, _)| i)
    }

    /// The flows from slot `start` on, each with its slot.
    pub fn from(&self, start: usize) -> impl Iterator<Item = (usize, &SplitFlow)> + '_ {
        let slots = self.flows.iter().enumerate().skip(start);
        slots.filter_map(|(i, f)| Some((i, f.as_ref()?)))
    }

    /// Takes a flow out; a connection that ended in order leaves its TIME-WAIT record.
    pub fn remove(
        &mut self,
        now: Instant,
        index: usize,
        record: Option<TimeWait>,
    ) -> Option<SplitFlow> {
        let flow = self.flows.get_mut(index)?.take()?;
        self.free.push(index);
        if self.by_key.get(&flow.key) == Some(&index) {
            self.by_key.remove(&flow.key);
        }
        self.by_number.remove(&(flow.peer, flow.number));
        if let Ok(id) = u32::try_from(index) {
            self.timers.cancel(id);
        }
        self.losses_pardoned += flow.losses_pardoned();
        if let Some(record) = record {
            self.expire(now);
            if self.time_wait.len() < MAX_TIME_WAIT {
                self.time_wait.insert(flow.key, record);
                self.time_wait_order.push_back((now + TIME_WAIT, flow.key));
            }
        }
        Some(flow)
    }

    fn expire(&mut self, now: Instant) {
        while let Some((_, key)) = self.time_wait_order.front().filter(|(at, _)| *at <= now) {
            self.time_wait.remove(key);
            self.time_wait_order.pop_front();
        }
    }
    pub fn time_wait(&self, key: &FlowKey) -> Option<&TimeWait> {
        self.time_wait.get(key)
    }
    pub fn forget_time_wait(&mut self, key: &FlowKey) {
        self.time_wait.remove(key);
    }

    /// Losses on the hosts' access that the hosts were not told of, since the start.
    pub fn losses_pardoned(&self) -> u64 {
        let running = self.flows.iter().flatten();
        self.losses_pardoned + running.map(SplitFlow::losses_pardoned).sum::<u64>()
    }

    /// Sets when the flow wants to be looked at next.
    pub fn set_timer(&mut self, index: usize, at: Option<Instant>) {
        let (Some(_), Ok(id)) = (self.get(index), u32::try_from(index)) else {
            return;
        };
        match at {
            Some(at) => self.timers.set(id, at),
            None => self.timers.cancel(id),
        }
    }
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.next()
    }
    /// A flow whose timer has passed; it has none afterwards.
    pub fn pop_due(&mut self, now: Instant) -> Option<usize> {
        self.timers.poll(now).map(|id| id as usize)
    }
}
