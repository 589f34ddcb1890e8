//! What several workers answer, as one: counters are added up, of states the
//! worst counts, and what is the same everywhere is the first worker's. Flows are
//! each worker's own, and come page by page from one after the other.

use std::collections::BTreeMap;

use super::{Drop, Link, Page, Port, Query, Reply};
use crate::control::{LinkSnapshot, LinkState, Snapshot};
use crate::metrics::Sample;

/// Bits of a page mark of flows that are the worker's own; those above name the worker.
const OWN_BITS: u32 = 48;
const OWN: u64 = (1 << OWN_BITS) - 1;

impl Query {
    /// The worker that answers this alone, and what it is asked.
    pub(super) fn of_one_worker(self) -> Option<(usize, Self)> {
        match self {
            Self::Flows { from } => {
                let worker = usize::try_from(from >> OWN_BITS).ok()?;
                Some((worker, Self::Flows { from: from & OWN }))
            }
            Self::Routes { .. } | Self::Neighbours { .. } => Some((0, self)),
            _ => None,
        }
    }
}

impl Reply {
    /// One of `workers` has answered: where it goes on is said accordingly.
    pub(super) fn went_to(&mut self, worker: usize, workers: usize) {
        let mark = |worker: usize| (worker as u64) << OWN_BITS;
        if let Self::Flows(page) = self {
            page.next = match page.next {
                Some(next) => Some(mark(worker) | next),
                None => (worker + 1 < workers).then(|| mark(worker + 1)),
            };
        }
    }

    /// What all workers say; `None` without an answer, or where they are of different kinds.
    pub(super) fn of_all(replies: Vec<Self>) -> Option<Self> {
        let mut replies = replies.into_iter();
        let mut all = replies.next()?;
        for reply in replies {
            match (&mut all, reply) {
                (Self::Status(a), Self::Status(b)) => add_status(a, *b),
                (Self::Links(a), Self::Links(b)) => add_links(&mut a.rows, b.rows),
                (Self::Ports(a), Self::Ports(b)) => add_ports(&mut a.rows, b.rows),
                (Self::Drops(a), Self::Drops(b)) => add_drops(a, b),
                (Self::Workers(a), Self::Workers(b)) => a.rows.extend(b.rows),
                (Self::Metrics(a), Self::Metrics(b)) => add_sample(a, *b),
                _ => return None,
            }
        }
        Some(all)
    }
}

/// The worse of two.
fn worse(a: LinkState, b: LinkState) -> LinkState {
    match (a, b) {
        (LinkState::Handshake, _) | (_, LinkState::Handshake) => LinkState::Handshake,
        (LinkState::Silent, _) | (_, LinkState::Silent) => LinkState::Silent,
        _ => LinkState::Up,
    }
}

fn add_status(all: &mut Snapshot, one: Snapshot) {
    all.ready &= one.ready;
    for link in one.links {
        match all.links.iter_mut().find(|l| l.peer == link.peer) {
            Some(a) => {
                *a = LinkSnapshot {
                    state: worse(a.state, link.state),
                    mtu: a.mtu.min(link.mtu),
                    loss: a.loss.max(link.loss),
                    flows: a.flows + link.flows,
                    ..a.clone()
                }
            }
            None => all.links.push(link),
        }
    }
    add_counts(&mut all.drops, one.drops);
    add_counts(&mut all.counters, one.counters);
    all.queue_p99_us = all.queue_p99_us.max(one.queue_p99_us);
    for alarm in one.alarms {
        if !all.alarms.contains(&alarm) {
            all.alarms.push(alarm);
        }
    }
}

fn add_counts(all: &mut BTreeMap<String, u64>, one: BTreeMap<String, u64>) {
    for (name, n) in one {
        *all.entry(name).or_default() += n;
    }
}

fn add_links(all: &mut Vec<Link>, one: Vec<Link>) {
    for b in one {
        let Some(a) = all.iter_mut().find(|a| a.peer == b.peer) else {
            all.push(b);
            continue;
        };
        a.state = worse(a.state, b.state);
        a.rtt_min_us = a.rtt_min_us.min(b.rtt_min_us);
        a.rate_bps = (a.rate_bps + b.rate_bps).min(a.line_bps);
        a.loss = a.loss.max(b.loss);
        a.mtu = a.mtu.min(b.mtu);
        a.capacity_alarm |= b.capacity_alarm;
        a.fallback |= b.fallback;
        a.silent_us = a.silent_us.max(b.silent_us);
        for (sum, n) in [
            (&mut a.split_flows, b.split_flows),
            (&mut a.datagram_flows, b.datagram_flows),
            (&mut a.datagram_queue_bytes, b.datagram_queue_bytes),
            (&mut a.sent_packets, b.sent_packets),
            (&mut a.sent_bytes, b.sent_bytes),
            (&mut a.received_packets, b.received_packets),
            (&mut a.received_bytes, b.received_bytes),
            (&mut a.lost_packets, b.lost_packets),
            (&mut a.spurious_packets, b.spurious_packets),
            (&mut a.repair_packets, b.repair_packets),
            (&mut a.retransmitted_bytes, b.retransmitted_bytes),
            (&mut a.recovered_bytes, b.recovered_bytes),
            (&mut a.expired_datagrams, b.expired_datagrams),
            (&mut a.marked_datagrams, b.marked_datagrams),
            (&mut a.handshakes_started, b.handshakes_started),
            (&mut a.sessions, b.sessions),
            (&mut a.dropped_packets, b.dropped_packets),
        ] {
            *sum += n;
        }
    }
}

fn add_ports(all: &mut [Port], one: Vec<Port>) {
    for (a, b) in all.iter_mut().zip(one) {
        for (sum, n) in [
            (&mut a.received_packets, b.received_packets),
            (&mut a.received_bytes, b.received_bytes),
            (&mut a.missed_packets, b.missed_packets),
            (&mut a.sent_packets, b.sent_packets),
            (&mut a.sent_bytes, b.sent_bytes),
            (&mut a.refused_packets, b.refused_packets),
            (&mut a.lost_credit_bytes, b.lost_credit_bytes),
            (&mut a.dropped_packets, b.dropped_packets),
        ] {
            *sum += n;
        }
    }
}

fn add_drops(all: &mut Page<Drop>, one: Page<Drop>) {
    for b in one.rows {
        let same = |a: &&mut Drop| a.stage == b.stage && a.reason == b.reason;
        match all.rows.iter_mut().find(same) {
            Some(a) => a.packets += b.packets,
            None => all.rows.push(b),
        }
    }
}

fn add_sample(all: &mut Sample, one: Sample) {
    add_status(&mut all.status, one.status);
    add_links(&mut all.links, one.links);
    add_ports(&mut all.ports, one.ports);
    all.drops.merge(&one.drops);
    all.queue_wait.merge(&one.queue_wait);
    all.memory_used.0 += one.memory_used.0;
    all.memory_limit.0 += one.memory_limit.0;
    all.workers.extend(one.workers);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Worker;

    fn link(state: LinkState, sent: u64) -> Link {
        Link {
            peer: "b".into(),
            state,
            sent_packets: sent,
            mtu: 1400 + sent as u16,
            ..Link::default()
        }
    }

    fn page<T>(rows: Vec<T>) -> Page<T> {
        Page {
            router: "a".into(),
            rows,
            next: None,
        }
    }

    #[test]
    fn counters_add_up_and_the_worst_state_counts() {
        let all = Reply::of_all(vec![
            Reply::Links(page(vec![link(LinkState::Up, 3)])),
            Reply::Links(page(vec![link(LinkState::Silent, 4)])),
            Reply::Links(page(vec![])),
        ]);
        let Some(Reply::Links(all)) = all else {
            panic!("{all:?}")
        };
        let [link] = &all.rows[..] else {
            panic!("{all:?}")
        };
        assert_eq!(
            (link.state, link.sent_packets, link.mtu),
            (LinkState::Silent, 7, 1403)
        );

        let status = |ready, n: u64| {
            Reply::Status(Box::new(Snapshot {
                ready,
                drops: [("ingress.ip.bad_checksum".to_owned(), n)].into(),
                alarms: vec!["a disk is full".into(), format!("worker {n}")],
                ..Snapshot::default()
            }))
        };
        let Some(Reply::Status(all)) = Reply::of_all(vec![status(true, 2), status(false, 5)])
        else {
            panic!("no status")
        };
        assert!(!all.ready);
        assert_eq!(all.drops["ingress.ip.bad_checksum"], 7);
        assert_eq!(all.alarms, ["a disk is full", "worker 2", "worker 5"]);

        let drop = |reason: &str, packets| Drop {
            stage: "open".into(),
            reason: reason.into(),
            packets,
        };
        let drops = |rows| Reply::Drops(page(rows));
        let all = Reply::of_all(vec![
            drops(vec![drop("x", 1)]),
            drops(vec![drop("y", 2), drop("x", 3)]),
        ]);
        let Some(Reply::Drops(all)) = all else {
            panic!("{all:?}")
        };
        assert_eq!(all.rows, [drop("x", 4), drop("y", 2)]);
        let worker = |worker| Worker {
            worker,
            ..Worker::default()
        };
        let workers = |n| Reply::Workers(page(vec![worker(n)]));
        let all = Reply::of_all(vec![workers(0), workers(1)]);
        assert!(matches!(all, Some(Reply::Workers(p)) if p.rows.len() == 2));
    }

    #[test]
    fn pages_of_flows_go_on_with_the_next_worker() {
        let first = Query::Flows { from: 0 }.of_one_worker();
        assert_eq!(first, Some((0, Query::Flows { from: 0 })));
        assert_eq!(Query::Links.of_one_worker(), None);
        let answer = |next| {
            Reply::Flows(Page {
                router: String::new(),
                rows: Vec::new(),
                next,
            })
        };
        let next = |worker, next| {
            let mut reply = answer(next);
            reply.went_to(worker, 2);
            let Reply::Flows(page) = reply else {
                panic!("no flows")
            };
            page.next
        };
        let within = next(0, Some(256)).map(|from| Query::Flows { from });
        assert_eq!(
            within.and_then(Query::of_one_worker),
            Some((0, Query::Flows { from: 256 }))
        );
        let beyond = next(0, None).map(|from| Query::Flows { from });
        assert_eq!(
            beyond.and_then(Query::of_one_worker),
            Some((1, Query::Flows { from: 0 }))
        );
        let later = next(1, Some(512)).map(|from| Query::Flows { from });
        assert_eq!(
            later.and_then(Query::of_one_worker),
            Some((1, Query::Flows { from: 512 }))
        );
        assert_eq!(next(1, None), None);
    }
}
