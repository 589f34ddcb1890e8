//! The client's side of flows: chains of flows that start at a time or after
//! each other, one thread a chain.

use super::conn::Conn;
use super::header::{Header, Receipt, LEN};
use super::payload::Cursor;
use super::spec::{ClientFlow, FlowError, FlowKind, FlowSpec, Start};
use super::state::{lock, Shared, Slot};
use super::sys;
use super::transfer::{note_sender, receive, send, Limit};

/// Flows that wait for each other; a flow with a time of its own begins a chain.
pub fn chains(flows: &[FlowSpec]) -> Vec<Vec<FlowSpec>> {
    let mut chains: Vec<Vec<FlowSpec>> = Vec::new();
    for flow in flows {
        match (flow.start, chains.last_mut()) {
            (Start::AfterPreviousMs(_), Some(chain)) => chain.push(flow.clone()),
            _ => chains.push(vec![flow.clone()]),
        }
    }
    chains
}

/// Runs the flows of a chain one after another.
pub fn run_chain(shared: &Shared, chain: &[FlowSpec]) {
    // All are on record from the beginning: one that never started is then seen as such.
    let records: Vec<Slot<ClientFlow>> = chain
        .iter()
        .map(|f| shared.client(ClientFlow::planned(f)))
        .collect();
    for (flow, record) in chain.iter().zip(&records) {
        let start = match flow.start {
            Start::AtMs(ms) => shared.origin_ns.saturating_add(ms * 1_000_000),
            Start::AfterPreviousMs(ms) => sys::now_ns().saturating_add(ms * 1_000_000),
        };
        if !shared.sleep_until(start) {
            return;
        }
        let result = run_flow(shared, flow, record);
        let mut record = lock(record);
        record.end_ns = Some(sys::now_ns());
        record.error = result.err();
        shared.count(record.error.as_ref());
    }
}

fn run_flow(shared: &Shared, flow: &FlowSpec, record: &Slot<ClientFlow>) -> Result<(), FlowError> {
    let block = shared.blocks.get(flow.seed);
    let mut cursor = Cursor::new(block, flow.id, flow.hash);
    let own = flow
        .congestion
        .as_deref()
        .filter(|_| flow.kind != FlowKind::Request);
    let mut conn = Conn::connect(flow, own, shared, |now| lock(record).connect_ns = Some(now))?;
    let connect_ns = {
        let mut record = lock(record);
        record.connected_ns = Some(sys::now_ns());
        record.connect_ns.unwrap_or_default()
    };
    let header = Header {
        kind: flow.kind,
        hash: flow.hash,
        flow: flow.id,
        size: if flow.kind.is_timed() { 0 } else { flow.size },
        connect_ns,
        seed: flow.seed,
        congestion: flow.congestion.clone().unwrap_or_default(),
    };
    let header = header.encode().map_err(|_| FlowError {
        phase: "header".to_owned(),
        errno: "EINVAL".to_owned(),
    })?;
    match flow.kind {
        FlowKind::Bulk | FlowKind::Stream => bulk(conn, flow, &header, &mut cursor, shared, record),
        FlowKind::Transfer => {
            let sent = shared.sending(flow.id);
            let result = send(
                &mut conn,
                &header,
                &mut cursor,
                Limit::Bytes(flow.size),
                &sent,
            )
            .and_then(|()| conn.close_write())
            .and_then(|()| receipt(&mut conn, flow.size));
            note_sender(&conn, &sent);
            lock(record).complete = result.is_ok();
            result
        }
        FlowKind::Request => {
            let received = shared.receiving(flow.id, flow.kind, flow.size, connect_ns);
            conn.write_all(&header)?;
            let receipt = receive(&mut conn, shared, &mut cursor, &received)?;
            if let Some(short) = lock(&received).error.clone() {
                return Err(short);
            }
            lock(record).complete = true;
            // The server waits for it; that it arrives is not part of the flow.
            let _ = conn.write_all(&receipt.encode());
            conn.close_write()
        }
    }
}

fn bulk(
    mut conn: Conn<'_>,
    flow: &FlowSpec,
    header: &[u8; LEN],
    cursor: &mut Cursor,
    shared: &Shared,
    record: &Slot<ClientFlow>,
) -> Result<(), FlowError> {
    let sent = shared.sending(flow.id);
    let connect_ns = lock(record).connect_ns.unwrap_or_default();
    let end = connect_ns.saturating_add(flow.duration_ms * 1_000_000);
    let limit = match flow.kind {
        FlowKind::Stream => Limit::Paced {
            from: connect_ns,
            rate: flow.rate_bps,
            until: end,
        },
        _ => Limit::Until(end),
    };
    let result = send(&mut conn, header, cursor, limit, &sent).and_then(|()| conn.close_write());
    let total = lock(&sent).bytes;
    conn.set_deadline(sys::now_ns().saturating_add(flow.grace_ms * 1_000_000));
    let result = result.and_then(|()| receipt(&mut conn, total));
    note_sender(&conn, &sent);
    match result {
        Ok(()) => {
            lock(record).complete = true;
            Ok(())
        }
        // What is still under way when the grace is over would only prolong the run.
        Err(e) if matches!(e.errno.as_str(), "TIMEOUT" | "STOPPED") => {
            lock(record).cut = true;
            conn.abort();
            Ok(())
        }
        Err(e) => Err(e),
    }
}

/// Waits until the receiver has said that it has all.
fn receipt(conn: &mut Conn<'_>, bytes: u64) -> Result<(), FlowError> {
    let refused = |errno: &str| FlowError {
        phase: "receipt".to_owned(),
        errno: errno.to_owned(),
    };
    let receipt = Receipt::decode(&conn.read_block()?).map_err(|_| refused("HEADER"))?;
    if receipt.bytes == bytes {
        Ok(())
    } else {
        Err(refused("SHORT"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_what_waits_for_each_other() {
        let flow = |id, start| FlowSpec {
            id,
            target: std::net::SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), 1),
            kind: FlowKind::Transfer,
            size: 1,
            rate_bps: 0,
            duration_ms: 0,
            grace_ms: 0,
            start,
            timeout_ms: None,
            congestion: None,
            source: None,
            source_port: None,
            hash: false,
            seed: 0,
        };
        let ids: Vec<Vec<u64>> = chains(&[
            flow(1, Start::AfterPreviousMs(5)),
            flow(2, Start::AfterPreviousMs(5)),
            flow(3, Start::AtMs(0)),
            flow(4, Start::AtMs(9)),
            flow(5, Start::AfterPreviousMs(0)),
        ])
        .iter()
        .map(|c| c.iter().map(|f| f.id).collect())
        .collect();
        assert_eq!(ids, [vec![1, 2], vec![3], vec![4, 5]]);
    }
}
