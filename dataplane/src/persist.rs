//! What outlives a restart: a bound above every initiation counter this router
//! has used, and the last counter that it accepted from each peer. Without the
//! first, a clock that was set back locks the router out; without the second, a
//! restarted router would answer recorded initiations once more.
//!
//! One small text file, replaced as a whole by a thread of its own: neither a
//! slow disk nor a full one holds up a packet. What cannot be read or written is
//! said, and the router goes on with the clock.
//!
//! ```text
//! mef-state 1
//! own 1763815000000000000
//! peer <public key> 1763814990123456789
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use mef_crypto::PublicKey;

use crate::troubles::Troubles;

const FILE: &str = "counters";
const HEAD: &str = "mef-state 1";
/// How far ahead of the counter in use the stored one is kept, nanoseconds as the counter: it
/// need not be written more often than this.
const AHEAD: u64 = Duration::from_secs(600).as_nanos() as u64;
/// What could not be written is tried again after as long.
const RETRY: Duration = Duration::from_secs(2);
/// Its name among the troubles.
const TROUBLE: &str = "state";
/// More than 1024 peers need.
const MAX_LEN: u64 = 1 << 20;

/// The counters in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// No initiation of ours had a higher one.
    pub own: u64,
    /// Of the last initiation accepted, by the peer's public key.
    pub peers: BTreeMap<String, u64>,
}

impl Counters {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return None;
        }
        let mut found = Self::default();
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            match *words.as_slice() {
                ["own", n] => found.own = n.parse().ok()?,
                ["peer", key, n] => {
                    found.peers.insert(key.to_owned(), n.parse().ok()?);
                }
                _ => return None,
            }
        }
        Some(found)
    }

    fn text(&self) -> String {
        let mut text = format!("{HEAD}\nown {}\n", self.own);
        for (key, n) in &self.peers {
            text.push_str(&format!("peer {key} {n}\n"));
        }
        text
    }

    pub fn of(&self, peer: &PublicKey) -> Option<u64> {
        self.peers.get(&peer.to_string()).copied()
    }
}

/// Reads the counters in `folder`; none are zero.
///
/// # Errors
/// What reading failed with, or `InvalidData`.
fn read(folder: &Path) -> io::Result<Counters> {
    let path = folder.join(FILE);
    match fs::metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Counters::default()),
        Err(e) => return Err(e),
        Ok(m) if m.len() > MAX_LEN => return Err(io::ErrorKind::InvalidData.into()),
        Ok(_) => {}
    }
    let text = fs::read_to_string(&path)?;
    Counters::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Replaces the file: whoever reads sees the old one or the new one, also after a power cut.
fn write(folder: &Path, counters: &Counters) -> io::Result<()> {
    let (path, fresh) = (folder.join(FILE), folder.join(".counters.new"));
    let mut file = File::create(&fresh)?;
    file.write_all(counters.text().as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, &path)?;
    File::open(folder)?.sync_all()
}

/// Keeps the counters in a folder.
#[derive(Debug)]
pub struct Keeper {
    stored: Counters,
    sender: Option<Sender<Counters>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Reads what there is in `folder`, if one is configured, and starts the thread that writes.
    /// Returns the value that this start's counter begins at, too: at least `clock`, and above all
    /// that was used before.
    pub fn start(folder: Option<&Path>, clock: u64, troubles: &Troubles) -> (Self, u64) {
        let Some(folder) = folder else {
            let none = Self {
                stored: Counters::default(),
                sender: None,
                thread: None,
            };
            return (none, clock);
        };
        let stored = read(folder).unwrap_or_else(|e| {
            tracing::warn!(
                file = %folder.join(FILE).display(),
                "counters of handshakes not read ({e}): the clock is trusted"
            );
            Counters::default()
        });
        let base = clock.max(stored.own.saturating_add(1));
        if stored.own > clock {
            tracing::warn!(
                "the clock is behind the last start's: handshakes go on from the stored counter"
            );
        }
        let (sender, receiver) = mpsc::channel();
        let (path, troubles) = (folder.to_owned(), troubles.clone());
        let thread = std::thread::Builder::new()
            .name("mef-state".into())
            .spawn(move || writer(&path, &receiver, &troubles))
            .ok();
        let mut keeper = Self {
            stored,
            sender: Some(sender),
            thread,
        };
        keeper.used(base, BTreeMap::new());
        (keeper, base)
    }

    /// What is known of the peers.
    pub fn stored(&self) -> &Counters {
        &self.stored
    }

    /// Our counter has come to `own`, and these are the last ones accepted from peers. Cheap: a
    /// file is written every ten minutes, or when a peer's changed, by the other thread.
    pub fn used(&mut self, own: u64, peers: BTreeMap<String, u64>) {
        let Some(sender) = &self.sender else {
            return;
        };
        let bound_is_near = own.saturating_add(AHEAD / 2) > self.stored.own;
        let peers_changed = peers
            .iter()
            .any(|(key, n)| self.stored.peers.get(key) != Some(n));
        if !bound_is_near && !peers_changed {
            return;
        }
        if bound_is_near {
            self.stored.own = own.saturating_add(AHEAD);
        }
        self.stored.peers.extend(peers);
        // The other end is gone only when the thread could not be started.
        let _ = sender.send(self.stored.clone());
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn writer(folder: &Path, receiver: &Receiver<Counters>, troubles: &Troubles) {
    let mut unwritten: Option<Counters> = None;
    loop {
        let next = match &unwritten {
            None => receiver.recv().ok(),
            Some(waits) => match receiver.recv_timeout(RETRY) {
                Ok(newer) => Some(newer),
                Err(RecvTimeoutError::Timeout) => Some(waits.clone()),
                Err(RecvTimeoutError::Disconnected) => None,
            },
        };
        let Some(mut counters) = next else { return };
        while let Ok(newer) = receiver.try_recv() {
            counters = newer;
        }
        match write(folder, &counters) {
            Ok(()) => {
                unwritten = None;
                if troubles.end(TROUBLE) {
                    tracing::info!(folder = %folder.display(), "counters of handshakes are kept again");
                }
            }
            Err(e) => {
                unwritten = Some(counters);
                let folder = folder.display();
                if troubles.begin(TROUBLE, format!("state in {folder} not kept: {e}")) {
                    tracing::warn!(
                        %folder,
                        "counters of handshakes not kept ({e}): all goes on, but a clock that is set back before the next start locks this router out"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u64) -> BTreeMap<String, u64> {
        [("k".to_owned(), n)].into()
    }

    #[test]
    fn a_start_begins_above_all_that_was_used() {
        let dir = tempfile::tempdir().unwrap();
        let (mut keeper, base) = Keeper::start(Some(dir.path()), 1_000, &Troubles::default());
        assert_eq!(base, 1_000);
        keeper.used(base + 5, peer(7));
        drop(keeper);
        // The clock was set back.
        let (keeper, again) = Keeper::start(Some(dir.path()), 10, &Troubles::default());
        assert!(again > base + 5, "{again}");
        assert_eq!(keeper.stored().peers, peer(7));
        drop(keeper);
        let (_, forward) = Keeper::start(Some(dir.path()), again + (1 << 60), &Troubles::default());
        assert_eq!(forward, again + (1 << 60));
    }

    #[test]
    fn what_is_used_stays_below_what_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let (mut keeper, base) = Keeper::start(Some(dir.path()), 1_000, &Troubles::default());
        for step in 0..10_000 {
            let own = base + step * 1_000_000_000;
            keeper.used(own, BTreeMap::new());
            assert!(keeper.stored().own > own);
        }
        let bound = keeper.stored().own;
        drop(keeper);
        assert_eq!(read(dir.path()).unwrap().own, bound);
    }

    #[test]
    fn nothing_stops_without_a_folder_or_with_a_bad_file() {
        let (mut keeper, base) = Keeper::start(None, 77, &Troubles::default());
        keeper.used(80, peer(1));
        assert_eq!(base, 77);
        let gone = Path::new("/nonexistent/folder");
        let (mut keeper, base) = Keeper::start(Some(gone), 77, &Troubles::default());
        keeper.used(80, peer(1));
        assert_eq!(base, 77);
        let dir = tempfile::tempdir().unwrap();
        for text in [
            "",
            "mef-state 2\n",
            "mef-state 1\nown x\n",
            "mef-state 1\nrubbish\n",
        ] {
            fs::write(dir.path().join(FILE), text).unwrap();
            assert!(read(dir.path()).is_err(), "{text:?}");
            assert_eq!(
                Keeper::start(Some(dir.path()), 5, &Troubles::default()).1,
                5
            );
        }
        fs::write(dir.path().join(FILE), vec![b'x'; 2 << 20]).unwrap();
        assert!(read(dir.path()).is_err());
    }

    #[test]
    fn a_full_disk_leaves_the_old_file() {
        // /dev/full takes a file's opening and no byte.
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &Counters {
                own: 5,
                peers: peer(1),
            },
        )
        .unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join(".counters.new")).unwrap();
        assert!(write(
            dir.path(),
            &Counters {
                own: 9,
                peers: peer(2)
            }
        )
        .is_err());
        assert_eq!(
            read(dir.path()).unwrap(),
            Counters {
                own: 5,
                peers: peer(1)
            }
        );
    }
}
