//! The control socket: whoever connects gets the latest snapshot of the
//! router's counters as one line of JSON, then the end. The router publishes
//! a snapshot a few times a second and never waits for a reader: connections
//! are served one after the other by a thread of their own, none for longer
//! than [`SERVE`].

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

/// Longest time that one reader is served; a snapshot fits into the socket's buffer, so none needs it.
const SERVE: Duration = Duration::from_secs(1);
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

/// Where the router puts its snapshots.
#[derive(Clone, Debug, Default)]
pub struct Publisher(Arc<Mutex<Arc<str>>>);

impl Publisher {
    /// Makes `json` what the next reader gets; the lock is held for a pointer's exchange only.
    pub fn publish_json(&self, json: String) {
        let next: Arc<str> = json.into();
        let last = std::mem::replace(
            &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner),
            next,
        );
        drop(last);
    }

    /// Makes `snapshot` what the next reader gets.
    ///
    /// # Errors
    /// None with the fields as they are; serde's type asks for the possibility.
    pub fn publish(&self, snapshot: &Snapshot) -> Result<(), serde_json::Error> {
        self.publish_json(serde_json::to_string(snapshot)?);
        Ok(())
    }

    fn latest(&self) -> Arc<str> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The thread behind the control socket; dropping it ends the thread and removes the socket.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    publisher: Publisher,
    stop: Arc<AtomicBool>,
    listener: Arc<UnixListener>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Listens at `path` with mode 0600, after a socket that a dead router left there is removed.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn start(path: &Path) -> Result<Self, ControlError> {
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
        let publisher = Publisher::default();
        let stop = Arc::new(AtomicBool::new(false));
        let listener = Arc::new(listener);
        let thread = {
            let (listener, publisher, stop) = (listener.clone(), publisher.clone(), stop.clone());
            let serve = move || serve(&listener, &publisher, &stop);
            std::thread::Builder::new()
                .name("mef-control".into())
                .spawn(serve)
                .map_err(os("serve"))?
        };
        Ok(Self {
            path: path.to_owned(),
            publisher,
            stop,
            listener,
            thread: Some(thread),
        })
    }

    /// A handle for the thread that makes the snapshots.
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
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

fn serve(listener: &UnixListener, publisher: &Publisher, stop: &AtomicBool) {
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::Acquire) {
            return;
        }
        match accepted {
            Ok((stream, _)) => {
                // A reader that went away or does not read has only itself to blame.
                let _ = send(&stream, &publisher.latest());
            }
            // Out of descriptors, most likely: not to be asked again at once.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
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
/// What connecting or reading failed with, or `InvalidData` for an answer that is no snapshot.
pub fn query(path: &Path, timeout: Duration) -> io::Result<Snapshot> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(timeout))?;
    serde_json::from_reader(io::BufReader::new(stream)).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn read(path: &Path) -> String {
        let mut text = String::new();
        let mut stream = UnixStream::connect(path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
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

    #[test]
    fn every_reader_gets_the_latest_snapshot_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let server = ControlServer::start(&path).unwrap();
        assert_eq!(read(&path), "\n");
        server.publisher().publish_json("{\"n\":1}".into());
        assert_eq!(read(&path), "{\"n\":1}\n");
        server.publisher().publish(&snapshot()).unwrap();
        for _ in 0..50 {
            assert_eq!(query(&path, Duration::from_secs(10)).unwrap(), snapshot());
        }
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
        let server = ControlServer::start(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(server);
        assert!(!path.exists());

        // Ends although nobody can reach it any more.
        let server = ControlServer::start(&path).unwrap();
        fs::remove_file(&path).unwrap();
        drop(server);
    }

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_or_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        // A listener that is dropped leaves its file behind, as a killed router does.
        drop(UnixListener::bind(&path).unwrap());
        let server = ControlServer::start(&path).unwrap();
        assert!(matches!(
            ControlServer::start(&path),
            Err(ControlError::InUse { .. })
        ));
        assert_eq!(read(&path), "\n");
        drop(server);

        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            ControlServer::start(&path),
            Err(ControlError::NotASocket { .. })
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let nowhere = dir.path().join("none/a.sock");
        assert!(matches!(
            ControlServer::start(&nowhere),
            Err(ControlError::Os { what: "create", .. })
        ));
    }

    #[test]
    fn a_reader_that_does_not_read_holds_up_nobody_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let server = ControlServer::start(&path).unwrap();
        // More than any socket buffer takes.
        let large = "x".repeat(8 << 20);
        server.publisher().publish_json(large.clone());
        let lazy = UnixStream::connect(&path).unwrap();
        assert_eq!(read(&path).len(), large.len() + 1);
        drop(lazy);
    }
}
