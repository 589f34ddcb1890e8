//! A TCP connection whose every wait ends when the flow's time is over or the
//! agent stops: blocking I/O in slices.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::header::LEN;
use super::spec::{FlowError, FlowSpec};
use super::state::Shared;
use super::sys;

/// How late a waiting thread notices that its time is over.
const SLICE_MS: u16 = 100;

pub struct Conn<'a> {
    stream: TcpStream,
    shared: &'a Shared,
    deadline_ns: u64,
}

fn named(phase: &str, errno: &str) -> FlowError {
    FlowError {
        phase: phase.to_owned(),
        errno: errno.to_owned(),
    }
}

/// Whether an error only means that the slice is over.
fn again(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

impl<'a> Conn<'a> {
    /// An accepted connection.
    pub fn accepted(stream: TcpStream, shared: &'a Shared) -> Result<Self, FlowError> {
        Self::ready(stream, shared, u64::MAX)
    }

    /// Connects as the flow wants it. `on_start` gets the time right before connect().
    pub fn connect(
        spec: &FlowSpec,
        congestion: Option<&str>,
        shared: &'a Shared,
        on_start: impl FnOnce(u64),
    ) -> Result<Self, FlowError> {
        let fail = |e: std::io::Error| sys::flow_error("connect", &e);
        let socket = Socket::new(
            Domain::for_address(spec.target),
            Type::STREAM,
            Some(Protocol::TCP),
        )
        .map_err(fail)?;
        if let Some(name) = congestion {
            socket
                .set_tcp_congestion(name.as_bytes())
                .map_err(|e| sys::flow_error("congestion control", &e))?;
        }
        if spec.source.is_some() || spec.source_port.is_some() {
            // A run may use a port that an earlier one has left in TIME-WAIT.
            socket.set_reuse_address(true).map_err(fail)?;
            let source = spec.source.unwrap_or(unspecified(&spec.target));
            let local = SocketAddr::new(source, spec.source_port.unwrap_or(0));
            socket
                .bind(&SockAddr::from(local))
                .map_err(|e| sys::flow_error("bind", &e))?;
        }
        socket.set_nonblocking(true).map_err(fail)?;
        let start = sys::now_ns();
        on_start(start);
        let deadline_ns = spec
            .timeout_ms
            .map_or(u64::MAX, |ms| start.saturating_add(ms * 1_000_000));
        let pending = match socket.connect(&SockAddr::from(spec.target)) {
            Ok(()) => false,
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => true,
            Err(e) => return Err(fail(e)),
        };
        if pending {
            connected(&socket, shared, deadline_ns)?;
        }
        if let Some(e) = socket.take_error().map_err(fail)? {
            return Err(fail(e));
        }
        socket.set_nonblocking(false).map_err(fail)?;
        Self::ready(socket.into(), shared, deadline_ns)
    }

    fn ready(stream: TcpStream, shared: &'a Shared, deadline_ns: u64) -> Result<Self, FlowError> {
        let fail = |e: std::io::Error| sys::flow_error("setup", &e);
        let slice = Some(Duration::from_millis(u64::from(SLICE_MS)));
        stream.set_read_timeout(slice).map_err(fail)?;
        stream.set_write_timeout(slice).map_err(fail)?;
        // The last, short segment must not wait for an acknowledgement (Nagle).
        stream.set_nodelay(true).map_err(fail)?;
        Ok(Self {
            stream,
            shared,
            deadline_ns,
        })
    }

    /// No wait goes beyond this time of CLOCK_MONOTONIC from now on.
    pub fn set_deadline(&mut self, ns: u64) {
        self.deadline_ns = ns;
    }

    /// Congestion control of this side.
    pub fn set_congestion(&self, name: &str) -> Result<(), FlowError> {
        socket2::SockRef::from(&self.stream)
            .set_tcp_congestion(name.as_bytes())
            .map_err(|e| sys::flow_error("congestion control", &e))
    }

    /// Reads at least a byte, 0 at the end of the stream.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize, FlowError> {
        loop {
            match self.stream.read(into) {
                Ok(n) => return Ok(n),
                Err(e) if again(e.kind()) => over(self.shared, self.deadline_ns, "receive")?,
                Err(e) => return Err(sys::flow_error("receive", &e)),
            }
        }
    }

    /// Reads a header or a receipt.
    pub fn read_block(&mut self) -> Result<[u8; LEN], FlowError> {
        let mut block = [0; LEN];
        let mut have = 0;
        while let Some(rest) = block.get_mut(have..).filter(|r| !r.is_empty()) {
            match self.read(rest)? {
                0 => return Err(named("receive", "SHORT")),
                n => have += n,
            }
        }
        Ok(block)
    }

    /// Writes what fits within a slice; 0 if nothing did.
    pub fn write_some(&mut self, from: &[u8]) -> Result<usize, FlowError> {
        match self.stream.write(from) {
            Ok(n) => Ok(n),
            Err(e) if again(e.kind()) => {
                over(self.shared, self.deadline_ns, "send")?;
                Ok(0)
            }
            Err(e) => Err(sys::flow_error("send", &e)),
        }
    }

    pub fn write_all(&mut self, mut from: &[u8]) -> Result<(), FlowError> {
        while !from.is_empty() {
            let n = self.write_some(from)?;
            from = from.get(n..).unwrap_or_default();
        }
        Ok(())
    }

    /// FIN after what is queued.
    pub fn close_write(&self) -> Result<(), FlowError> {
        self.stream
            .shutdown(Shutdown::Write)
            .map_err(|e| sys::flow_error("close", &e))
    }

    /// RST, whatever is queued.
    pub fn abort(self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    pub fn retransmitted_and_rtt(&self) -> (u64, u64) {
        sys::retransmitted_and_rtt(&self.stream)
    }
}

/// The error that ends a wait whose time is over.
fn over(shared: &Shared, deadline_ns: u64, phase: &str) -> Result<(), FlowError> {
    if shared.stopped() {
        Err(named(phase, "STOPPED"))
    } else if sys::now_ns() >= deadline_ns {
        Err(named(phase, "TIMEOUT"))
    } else {
        Ok(())
    }
}

/// Any own address of the family of `target`.
pub(super) fn unspecified(target: &SocketAddr) -> IpAddr {
    match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Waits for the end of the handshake, however it ends.
fn connected(socket: &Socket, shared: &Shared, deadline_ns: u64) -> Result<(), FlowError> {
    loop {
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut fds, PollTimeout::from(SLICE_MS)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => over(shared, deadline_ns, "connect")?,
            Ok(_) => return Ok(()),
            Err(e) => return Err(sys::flow_error("connect", &e.into())),
        }
    }
}
