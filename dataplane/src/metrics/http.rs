//! `GET /metrics` over HTTP/1.1, for Prometheus and curl, on threads of its own.
//! Whoever connects has [`TIME`] for a request of at most [`MAX_HEAD`] bytes, and
//! is answered once; a slow one keeps one of [`THREADS`] threads that long.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use socket2::SockRef;

use super::render;
use crate::report::{Asker, Query, Reply};

/// Longest request, up to the empty line.
const MAX_HEAD: usize = 8 << 10;
/// For the request, and again for the answer.
const TIME: Duration = Duration::from_secs(2);
/// How long the router may take to give its counters.
const PATIENCE: Duration = Duration::from_secs(2);
const THREADS: usize = 4;

/// Why no metrics are served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("router.metrics: cannot listen on {address}: {source}; free the port, or set another address of this machine")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("router.metrics: no thread to serve on: {0}")]
    Thread(io::Error),
}

/// The threads behind the address; dropping it ends them.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    listener: Arc<TcpListener>,
    threads: Vec<JoinHandle<()>>,
}

impl MetricsServer {
    /// Listens on `address`; port 0 takes any.
    ///
    /// # Errors
    /// See [`MetricsError`].
    pub fn start(address: SocketAddr, asker: &Asker) -> Result<Self, MetricsError> {
        let listen = |source| MetricsError::Listen { address, source };
        let listener = Arc::new(TcpListener::bind(address).map_err(listen)?);
        let started = SystemTime::now();
        let mut server = Self {
            address: listener.local_addr().map_err(listen)?,
            stop: Arc::new(AtomicBool::new(false)),
            listener: Arc::clone(&listener),
            threads: Vec::new(),
        };
        for _ in 0..THREADS {
            let (listener, stop) = (Arc::clone(&listener), Arc::clone(&server.stop));
            let asker = asker.clone();
            let serve = move || serve(&listener, &stop, &asker, started);
            let thread = std::thread::Builder::new()
                .name("mef-metrics".into())
                .spawn(serve)
                .map_err(MetricsError::Thread)?;
            server.threads.push(thread);
        }
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the threads from accept(), which fails from now on.
        let woken = SockRef::from(&*self.listener)
            .shutdown(Shutdown::Both)
            .is_ok();
        for thread in self.threads.drain(..).filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool, asker: &Asker, started: SystemTime) {
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::Acquire) {
            return;
        }
        match accepted {
            // A client that went away or does not read has only itself to blame.
            Ok((stream, _)) => drop(answer(stream, asker, started)),
            // Out of descriptors, most likely: not to be asked again at once.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// What is said to a client.
struct Response {
    status: &'static str,
    kind: &'static str,
    body: String,
}

fn plain(status: &'static str, body: &str) -> Response {
    Response {
        status,
        kind: "text/plain; charset=utf-8",
        body: format!("{body}\n"),
    }
}

fn answer(mut stream: TcpStream, asker: &Asker, started: SystemTime) -> io::Result<()> {
    let response = match read_head(&mut stream) {
        Ok(Some(head)) => respond(&head, asker, started),
        Ok(None) => plain("431 Request Header Fields Too Large", "request too large"),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
            ) =>
        {
            plain("408 Request Timeout", "no request in time")
        }
        Err(e) => return Err(e),
    };
    let Response { status, kind, body } = response;
    let allow = if status.starts_with("405") {
        "Allow: GET\r\n"
    } else {
        ""
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    write_all(&mut stream, &[head, body].concat())?;
    stream.shutdown(Shutdown::Write)?;
    // Closing with bytes unread would reset the connection before the client has read the answer.
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let _ = stream.take(MAX_HEAD as u64).read_to_end(&mut Vec::new());
    Ok(())
}

/// The request up to its empty line, or `None` where that is too far away.
fn read_head(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let deadline = Instant::now() + TIME;
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => head.extend_from_slice(buffer.get(..n).unwrap_or(&[])),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if head.windows(4).any(|w| w == b"\r\n\r\n") {
            return Ok(Some(head));
        }
        if head.len() > MAX_HEAD {
            return Ok(None);
        }
    }
}

fn write_all(stream: &mut TcpStream, text: &str) -> io::Result<()> {
    let deadline = Instant::now() + TIME;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        match stream.write(rest) {
            Ok(n) => rest = rest.get(n..).unwrap_or(&[]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

fn respond(head: &[u8], asker: &Asker, started: SystemTime) -> Response {
    let line = head.split(|&b| b == b'\r').next().unwrap_or(&[]);
    let Ok(line) = core::str::from_utf8(line) else {
        return plain("400 Bad Request", "not HTTP");
    };
    let words: Vec<&str> = line.split(' ').collect();
    let &[method, target, version] = words.as_slice() else {
        return plain("400 Bad Request", "not HTTP");
    };
    if !version.starts_with("HTTP/1.") {
        return plain("400 Bad Request", "not HTTP/1.1");
    }
    if target.split('?').next() != Some("/metrics") {
        return plain("404 Not Found", "only /metrics is here");
    }
    if method != "GET" {
        return plain("405 Method Not Allowed", "only GET is answered");
    }
    match asker.ask(Query::Metrics, PATIENCE) {
        Ok(Reply::Metrics(sample)) => Response {
            status: "200 OK",
            kind: "text/plain; version=0.0.4; charset=utf-8",
            body: render(&sample, started),
        },
        Ok(_) => plain("500 Internal Server Error", "another answer"),
        Err(e) => plain("503 Service Unavailable", &e.to_string()),
    }
}
