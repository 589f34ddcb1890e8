//! The server's side of flows: one listener takes flows of every kind, one
//! thread a connection.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::conn::Conn;
use super::header::Header;
use super::payload::Cursor;
use super::spec::{FlowError, FlowKind};
use super::state::{lock, Notice, Shared};
use super::sys;
use super::transfer::{note_sender, receive, send, Limit};

/// How long a connection may take to say what it is.
const HEADER_NS: u64 = 30_000_000_000;

/// Accepts until the agent stops.
pub fn serve(shared: &Arc<Shared>, listener: &TcpListener) {
    if let Err(e) = listener.set_nonblocking(true) {
        shared.error(format!("listener: {e}"));
        return;
    }
    while !shared.stopped() {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if let Err(e) = poll(&mut fds, PollTimeout::from(100u16)) {
            if e != nix::errno::Errno::EINTR {
                shared.error(format!("listener: {e}"));
                return;
            }
        }
        while let Ok((stream, peer)) = listener.accept() {
            let for_thread = Arc::clone(shared);
            let spawned = std::thread::Builder::new()
                .name("served".to_owned())
                .spawn(move || {
                    if let Err(e) = serve_one(&for_thread, stream) {
                        for_thread.error(format!("from {peer}: {} {}", e.phase, e.errno));
                    }
                    for_thread.notify(Notice::ServedEnded);
                });
            if let Err(e) = spawned {
                shared.error(format!("thread for {peer}: {e}"));
            }
        }
    }
}

/// An error is one outside the flow's own record.
fn serve_one(shared: &Shared, stream: TcpStream) -> Result<(), FlowError> {
    stream
        .set_nonblocking(false)
        .map_err(|e| sys::flow_error("accept", &e))?;
    let mut conn = Conn::accepted(stream, shared)?;
    conn.set_deadline(sys::now_ns().saturating_add(HEADER_NS));
    let header = Header::decode(&conn.read_block()?).map_err(|e| FlowError {
        phase: "header".to_owned(),
        errno: e.to_string(),
    })?;
    conn.set_deadline(u64::MAX);
    let mut cursor = Cursor::new(shared.blocks.get(header.seed), header.flow, header.hash);
    match header.kind {
        FlowKind::Bulk | FlowKind::Stream | FlowKind::Transfer => {
            let record = shared.receiving(header.flow, header.kind, header.size, header.connect_ns);
            let result = receive(&mut conn, shared, &mut cursor, &record).and_then(|receipt| {
                conn.write_all(&receipt.encode())?;
                conn.close_write()
            });
            let mut record = lock(&record);
            if let (Err(e), None) = (result, &record.error) {
                record.error = Some(e);
            }
            shared.count(record.error.as_ref());
        }
        FlowKind::Request => {
            if !header.congestion.is_empty() {
                conn.set_congestion(&header.congestion)?;
            }
            let sent = shared.sending(header.flow);
            let result = send(
                &mut conn,
                &[],
                &mut cursor,
                Limit::Bytes(header.size),
                &sent,
            )
            .and_then(|()| conn.close_write())
            // The receipt: after it the retransmissions are final.
            .and_then(|()| conn.read_block().map(|_| ()));
            note_sender(&conn, &sent);
            shared.count(result.as_ref().err());
        }
    }
    Ok(())
}
