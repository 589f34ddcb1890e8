//! The control socket: whoever connects writes one line that says what it wants
//! to know ([`Query`]), and gets the answer as one line of JSON, then the end.
//! Whoever asks nothing gets the status. The router answers between two turns
//! and never waits for a reader: connections are served one after the other by a
//! thread of their own, none for longer than [`SERVE`].

mod standing;

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::report::{Asker, Query, MAX_QUERY};

/// Longest time that one reader is served; an answer fits into the socket's buffer, so none needs it.
const SERVE: Duration = Duration::from_secs(1);
/// How long whoever connects may take to say what it wants.
const LISTEN: Duration = Duration::from_millis(100);
/// Connections that wait for their turn; the kernel refuses more.
const BACKLOG: i32 = 16;

/// What the router says about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub name: String,
    /// Every port is open and every link is up.
    pub ready: bool,
    pub links: Vec<LinkSnapshot>,
    /// Packets dropped, by `stage.reason`; those of zero are left out.
    pub drops: BTreeMap<String, u64>,
    /// Time in the queues of the router's lines, microseconds.
    pub queue_p99_us: u64,
    /// Processor time used since the start, seconds.
    pub cpu_s: f64,
    /// What an operator should look at, in words.
    pub alarms: Vec<String>,
    pub counters: BTreeMap<String, u64>,
}

/// One link in a [`Snapshot`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkSnapshot {
    pub peer: String,
    pub state: LinkState,
    pub rtt_us: u64,
    /// Largest IP packet that the path is known to carry, bytes.
    pub mtu: u16,
    /// Share of the packets lost on the way to the peer.
    pub loss: f64,
    /// Rate towards the peer, bit/s.
    pub rate_bps: u64,
    /// On a line of unknown capacity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<crate::report::Estimate>,
    pub flows: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    Up,
    #[default]
    Handshake,
    /// A session, but nothing was heard for long.
    Silent,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{}: a router answers on this control socket already; stop it, or set another router.control", path.display())]
    InUse { path: PathBuf },
    #[error("{}: exists and is no socket; remove it, or set another router.control", path.display())]
    NotASocket { path: PathBuf },
    #[error("{}: cannot {what} the control socket: {source}; check the folder and its permissions", path.display())]
    Os {
        path: PathBuf,
        what: &'static str,
        source: io::Error,
    },
}

pub use standing::Standing;

/// The thread behind the control socket; dropping it ends the thread and removes the socket.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    listener: Arc<UnixListener>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Listens at `path` with mode 0600, after a socket that a dead router left there is removed.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn start(path: &Path, asker: Asker) -> Result<Self, ControlError> {
        remove_stale(path)?;
        let os = |what| {
            move |source| ControlError::Os {
                path: path.to_owned(),
                what,
                source,
            }
        };
        let listener = bind(path).map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => ControlError::InUse {
                path: path.to_owned(),
            },
            _ => os("create")(e),
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let listener = Arc::new(listener);
        let thread = {
            let (listener, stop) = (listener.clone(), stop.clone());
            let serve = move || serve(&listener, &asker, &stop);
            std::thread::Builder::new()
                .name("mef-control".into())
                .spawn(serve)
                .map_err(os("serve"))?
        };
        Ok(Self {
            path: path.to_owned(),
            stop,
            listener,
            thread: Some(thread),
        })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread from accept(), which fails from now on.
        let woken = SockRef::from(&*self.listener)
            .shutdown(Shutdown::Both)
            .is_ok();
        // Nothing is left to be done if it is gone already.
        let _ = fs::remove_file(&self.path);
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), ControlError> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ControlError::Os {
            path: path.to_owned(),
            what: "look at",
            source,
        }),
        Ok(meta) if !meta.file_type().is_socket() => Err(ControlError::NotASocket {
            path: path.to_owned(),
        }),
        Ok(_) => match UnixStream::connect(path) {
            // Refused means that nobody listens any more.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
                .map_err(|source| ControlError::Os {
                    path: path.to_owned(),
                    what: "remove the stale",
                    source,
                }),
            _ => Err(ControlError::InUse {
                path: path.to_owned(),
            }),
        },
    }
}

/// Binds with mode 0600 from the first moment on: the file takes its mode from the socket (unix(7)).
fn bind(path: &Path) -> io::Result<UnixListener> {
    let socket = File::from(OwnedFd::from(Socket::new(
        Domain::UNIX,
        Type::STREAM,
        None,
    )?));
    socket.set_permissions(Permissions::from_mode(0o600))?;
    let socket = Socket::from(OwnedFd::from(socket));
    socket.bind(&SockAddr::unix(path)?)?;
    let listening = fs::set_permissions(path, Permissions::from_mode(0o600))
        .and_then(|()| socket.listen(BACKLOG));
    if let Err(e) = listening {
        let _ = fs::remove_file(path);
        return Err(e);
    }
    Ok(UnixListener::from(OwnedFd::from(socket)))
}

fn serve(listener: &UnixListener, asker: &Asker, stop: &AtomicBool) {
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::Acquire) {
            return;
        }
        match accepted {
            Ok((stream, _)) => {
                // A reader that went away or does not read has only itself to blame.
                let _ = send(&stream, &reply(&stream, asker));
            }
            // Out of descriptors, most likely: not to be asked again at once.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// What goes wrong, as JSON too.
#[derive(Serialize)]
struct Refusal {
    error: String,
}

fn reply(stream: &UnixStream, asker: &Asker) -> String {
    let refusal = |error: &dyn core::fmt::Display| {
        serde_json::to_string(&Refusal {
            error: error.to_string(),
        })
    };
    let json = match question(stream).parse::<Query>() {
        Err(e) => refusal(&e),
        Ok(query) => match asker.ask(query, SERVE) {
            Ok(reply) => serde_json::to_string(&reply),
            Err(e) => refusal(&e),
        },
    };
    json.unwrap_or_default()
}

/// The first line that comes, or what there is of it after [`LISTEN`].
fn question(mut stream: &UnixStream) -> String {
    let deadline = Instant::now() + LISTEN;
    let (mut line, mut buffer) = (Vec::new(), [0; MAX_QUERY]);
    while line.len() < MAX_QUERY && !line.contains(&b'\n') {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            break;
        }
        match stream.read(&mut buffer) {
            Ok(n @ 1..) => line.extend_from_slice(buffer.get(..n).unwrap_or(&[])),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    let end = line.iter().position(|&b| b == b'\n').unwrap_or(line.len());
    String::from_utf8_lossy(line.get(..end).unwrap_or(&[])).into_owned()
}

fn send(mut stream: &UnixStream, text: &str) -> io::Result<()> {
    let deadline = Instant::now() + SERVE;
    let line = [text, "\n"].concat();
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(rest) {
            Ok(n) => rest = rest.get(n..).unwrap_or(&[]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Asks the router whose control socket is at `path` for its snapshot.
///
/// # Errors
/// As [`ask`].
pub fn query(path: &Path, timeout: Duration) -> io::Result<Snapshot> {
    ask(path, Query::Status, timeout)
}

/// Asks the router whose control socket is at `path`; `T` is what the answer to the question is.
///
/// # Errors
/// What connecting or reading failed with, or `InvalidData` for another answer;
/// its text is what the router said where it refused.
pub fn ask<T: serde::de::DeserializeOwned>(
    path: &Path,
    query: Query,
    timeout: Duration,
) -> io::Result<T> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(format!("{query}\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    serde_json::from_str(&text).map_err(|e| {
        let refusal: Result<serde_json::Value, _> = serde_json::from_str(&text);
        match refusal.as_ref().ok().and_then(|v| v["error"].as_str()) {
            Some(error) => io::Error::new(io::ErrorKind::InvalidData, error),
            None => e.into(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{self, mailbox, Page, Reply};

    fn talk(path: &Path, say: &str) -> String {
        let mut text = String::new();
        let mut stream = UnixStream::connect(path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream.write_all(say.as_bytes()).unwrap();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn snapshot() -> Snapshot {
        Snapshot {
            name: "site-a".into(),
            ready: true,
            links: vec![LinkSnapshot {
                peer: "site-b".into(),
                state: LinkState::Up,
                rtt_us: 200_000,
                mtu: 1500,
                ..Default::default()
            }],
            drops: [("ingress.ip.bad_checksum".into(), 3)].into(),
            alarms: vec!["configured 100 Mbit/s, seen 80".into()],
            ..Default::default()
        }
    }

    /// A thread that answers as a router would, until the test ends.
    struct Answering {
        stop: Arc<AtomicBool>,
        thread: Option<JoinHandle<()>>,
    }

    impl Answering {
        fn start(ports: usize) -> (Self, Asker) {
            let (asker, mut mailbox) = mailbox().unwrap();
            let stop = Arc::new(AtomicBool::new(false));
            let until = Arc::clone(&stop);
            let thread = std::thread::spawn(move || {
                while !until.load(Ordering::Relaxed) {
                    let fds = [mailbox.poll_fd()];
                    mef_io::os::poll_fds(&fds, Duration::from_millis(10)).unwrap();
                    mailbox.answer(true, |query| match query {
                        Query::Status => Reply::Status(Box::new(snapshot())),
                        _ => Reply::Ports(Page {
                            router: query.to_string(),
                            rows: vec![report::Port::default(); ports],
                            next: None,
                        }),
                    });
                }
            });
            let thread = Some(thread);
            (Self { stop, thread }, asker)
        }
    }

    impl Drop for Answering {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::Relaxed);
            self.thread.take().unwrap().join().unwrap();
        }
    }

    #[test]
    fn every_question_has_its_answer_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (_router, asker) = Answering::start(1);
        let _server = ControlServer::start(&path, asker).unwrap();
        for _ in 0..20 {
            assert_eq!(query(&path, Duration::from_secs(10)).unwrap(), snapshot());
        }
        // Whoever asks nothing, or ends without a line, is told the status.
        let status = serde_json::to_string(&snapshot()).unwrap() + "\n";
        for say in ["", "\n", "status\nand more"] {
            assert_eq!(talk(&path, say), status);
        }
        let from = 77;
        let page: Page<report::Port> =
            ask(&path, Query::Routes { from }, Duration::from_secs(10)).unwrap();
        assert_eq!((page.router.as_str(), page.rows.len()), ("routes 77", 1));
        let refused = talk(&path, "flow\n");
        assert!(
            refused.starts_with("{\"error\":\"found \\\"flow\\\", expected "),
            "{refused}"
        );
        let long = "x".repeat(4 * MAX_QUERY);
        // What was not read of it may reset the connection behind the answer; the server goes on.
        let mut stream = UnixStream::connect(&path).unwrap();
        let _ = stream.write_all(long.as_bytes());
        drop(stream);
        assert_eq!(query(&path, Duration::from_secs(10)).unwrap(), snapshot());
    }

    #[test]
    fn a_router_that_does_not_answer_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (asker, mailbox) = mailbox().unwrap();
        let _server = ControlServer::start(&path, asker).unwrap();
        drop(mailbox);
        let error = query(&path, Duration::from_secs(10)).unwrap_err();
        assert_eq!(error.to_string(), "the router has ended");
    }

    #[test]
    fn the_snapshot_has_the_agreed_keys() {
        let value = serde_json::to_value(snapshot()).unwrap();
        let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "alarms",
                "counters",
                "cpu_s",
                "drops",
                "links",
                "name",
                "queue_p99_us",
                "ready"
            ]
        );
        let link = value["links"][0].as_object().unwrap();
        let keys: Vec<&String> = link.keys().collect();
        assert_eq!(
            keys,
            ["flows", "loss", "mtu", "peer", "rate_bps", "rtt_us", "state"]
        );
        assert_eq!(link["state"], "up");
    }

    #[test]
    fn only_the_owner_may_connect_and_nothing_stays_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (_router, asker) = Answering::start(1);
        let server = ControlServer::start(&path, asker.clone()).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(server);
        assert!(!path.exists());

        // Ends although nobody can reach it any more.
        let server = ControlServer::start(&path, asker).unwrap();
        fs::remove_file(&path).unwrap();
        drop(server);
    }

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_or_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        // A listener that is dropped leaves its file behind, as a killed router does.
        drop(UnixListener::bind(&path).unwrap());
        let (_router, asker) = Answering::start(1);
        let server = ControlServer::start(&path, asker.clone()).unwrap();
        assert!(matches!(
            ControlServer::start(&path, asker.clone()),
            Err(ControlError::InUse { .. })
        ));
        assert_eq!(query(&path, Duration::from_secs(10)).unwrap(), snapshot());
        drop(server);

        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            ControlServer::start(&path, asker.clone()),
            Err(ControlError::NotASocket { .. })
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let nowhere = dir.path().join("none/a.sock");
        assert!(matches!(
            ControlServer::start(&nowhere, asker),
            Err(ControlError::Os { what: "create", .. })
        ));
    }

    #[test]
    fn a_reader_that_does_not_read_holds_up_nobody_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        // More than any socket buffer takes.
        let (_router, asker) = Answering::start(40_000);
        let _server = ControlServer::start(&path, asker).unwrap();
        let lazy = UnixStream::connect(&path).unwrap();
        (&lazy).write_all(b"ports\n").unwrap();
        assert_eq!(query(&path, Duration::from_secs(10)).unwrap(), snapshot());
        drop(lazy);
    }
}
