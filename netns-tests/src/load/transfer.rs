//! Moving a payload over one connection: the half that sends it and the half
//! that receives and accounts for it. Client and server use the same two, the
//! other way round for a request.

use std::sync::atomic::Ordering;

use super::conn::Conn;
use super::header::{Receipt, LEN};
use super::payload::{hex, Cursor};
use super::spec::{FlowError, ReceivedFlow, SentFlow, BUCKET_NS};
use super::state::{lock, Shared, Slot};
use super::sys;

const CHUNK: usize = 256 * 1024;
/// An hour of buckets: what a flow with an impossible clock cannot exceed.
const BUCKETS_KEPT: u64 = 36_000;

/// How much is sent.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    Bytes(u64),
    /// Until this time of CLOCK_MONOTONIC, ns.
    Until(u64),
    /// As much as a source of `rate` bit/s has made since `from`, until `until` (ns).
    Paced {
        from: u64,
        rate: u64,
        until: u64,
    },
}

/// A paced source delivers this often.
const PACE: std::time::Duration = std::time::Duration::from_millis(5);

/// Bytes that a source of `rate` bit/s has made between two times in ns.
pub(crate) fn made(rate: u64, from: u64, now: u64) -> u64 {
    let bits = u128::from(rate) * u128::from(now.saturating_sub(from)) / 1_000_000_000;
    u64::try_from(bits / 8).unwrap_or(u64::MAX)
}

/// Sends `header` (may be empty) and then the payload; the first write carries
/// both, so that a short flow has no extra segment.
pub fn send(
    conn: &mut Conn<'_>,
    header: &[u8],
    cursor: &mut Cursor,
    limit: Limit,
    record: &Slot<SentFlow>,
) -> Result<(), FlowError> {
    let mut sent = 0;
    let left = |sent: u64| match limit {
        Limit::Bytes(n) => n - sent,
        Limit::Until(end) if sys::now_ns() < end => u64::MAX,
        Limit::Until(_) => 0,
        Limit::Paced { from, rate, until } => {
            // At the end what the source has made by then is sent, and no more.
            made(rate, from, sys::now_ns().min(until)).saturating_sub(sent)
        }
    };
    let first = cursor.next(left(0).min((CHUNK - LEN) as u64)).len();
    let mut head = Vec::with_capacity(CHUNK);
    head.extend_from_slice(header);
    head.extend_from_slice(cursor.next(first as u64));
    conn.write_all(&head)?;
    cursor.advance(first);
    sent += first as u64;
    lock(record).bytes = sent;
    loop {
        let most = left(sent).min(CHUNK as u64);
        if most == 0 {
            match limit {
                Limit::Paced { until, .. } if sys::now_ns() < until => {
                    std::thread::sleep(PACE);
                    continue;
                }
                _ => break,
            }
        }
        let n = conn.write_some(cursor.next(most))?;
        cursor.advance(n);
        sent += n as u64;
        lock(record).bytes = sent;
    }
    lock(record).sha256 = cursor.sha256().map(|h| hex(&h));
    Ok(())
}

/// Notes the sending socket's figures.
pub fn note_sender(conn: &Conn<'_>, record: &Slot<SentFlow>) {
    let (retransmitted, rtt_us) = conn.retransmitted_and_rtt();
    let mut record = lock(record);
    record.retransmitted = retransmitted;
    record.rtt_us = rtt_us;
}

/// Receives until the end of the stream and accounts for it in `record`.
pub fn receive(
    conn: &mut Conn<'_>,
    shared: &Shared,
    cursor: &mut Cursor,
    record: &Slot<ReceivedFlow>,
) -> Result<Receipt, FlowError> {
    let mut buffer = vec![0; CHUNK];
    let result = loop {
        match conn.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(n) => {
                let now = sys::now_ns();
                shared.received_bytes.fetch_add(n as u64, Ordering::Relaxed);
                let same = cursor.check(buffer.get(..n).unwrap_or_default());
                let mut record = lock(record);
                account(&mut record, now, n as u64);
                record.payload_ok &= same;
            }
            Err(e) => break Err(e),
        }
    };
    let mut record = lock(record);
    let hash = cursor.sha256();
    record.sha256 = hash.map(|h| hex(&h));
    if let Err(e) = result {
        record.error = Some(e.clone());
        return Err(e);
    }
    // A bulk flow announces no size: the end of the stream is all of it.
    record.complete = record.size == 0 || record.bytes == record.size;
    if !record.complete {
        record.error = Some(FlowError {
            phase: "receive".to_owned(),
            errno: "SHORT".to_owned(),
        });
    }
    Ok(Receipt {
        flow: record.id,
        bytes: record.bytes,
        last_ns: record.last_ns.unwrap_or(0),
        sha256: hash.unwrap_or_default(),
    })
}

pub(crate) fn account(record: &mut ReceivedFlow, now: u64, n: u64) {
    let bucket = now / BUCKET_NS;
    if record.first_ns.is_none() {
        record.first_ns = Some(now);
        record.bucket0 = bucket;
    }
    record.last_ns = Some(now);
    record.bytes += n;
    let index = bucket.saturating_sub(record.bucket0).min(BUCKETS_KEPT) as usize;
    if record.buckets.len() <= index {
        record.buckets.resize(index + 1, 0);
    }
    if let Some(bytes) = record.buckets.get_mut(index) {
        *bytes += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::spec::FlowKind;

    #[test]
    fn bytes_land_in_the_bucket_of_their_arrival() {
        let (sender, _receiver) = std::sync::mpsc::channel();
        let shared = Shared::new(0, sender);
        let slot = shared.receiving(1, FlowKind::Bulk, 0, 0);
        let mut record = lock(&slot);
        account(&mut record, 12 * BUCKET_NS + 5, 100);
        account(&mut record, 13 * BUCKET_NS - 1, 10);
        account(&mut record, 15 * BUCKET_NS, 7);
        assert_eq!(
            (record.bucket0, record.buckets.as_slice()),
            (12, [110, 0, 0, 7].as_slice())
        );
        assert_eq!(record.bytes, 117);
        assert_eq!(record.first_ns, Some(12 * BUCKET_NS + 5));
        assert_eq!(record.last_ns, Some(15 * BUCKET_NS));
    }
}
