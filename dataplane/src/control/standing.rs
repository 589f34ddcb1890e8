//! The control socket of a router that is to run whatever its disk does: where
//! there is no room for the socket, or the disk fails, the router starts without
//! it, says so among its alarms, and makes it as soon as it can. A path that is
//! wrong or in use is a mistake, and told at once.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{ControlError, ControlServer};
use crate::report::Asker;
use crate::troubles::Troubles;

/// Between two attempts.
const RETRY: Duration = Duration::from_secs(2);
/// Its name among the troubles.
const TROUBLE: &str = "control";

/// The control socket, or the thread that tries to make it; gone when dropped.
#[derive(Debug)]
pub enum Standing {
    Serves(ControlServer),
    Tries {
        /// Its end tells the thread to stop.
        stop: Option<Sender<()>>,
        thread: Option<JoinHandle<()>>,
    },
}

/// Whether an error is of the disk, and may pass.
fn may_pass(e: &ControlError) -> bool {
    let ControlError::Os { source, .. } = e else {
        return false;
    };
    matches!(
        source.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem
    )
}

impl Standing {
    /// Listens at `path`, now or when its disk takes a socket.
    ///
    /// # Errors
    /// [`ControlError`] where time will not help.
    pub fn start(path: &Path, asker: Asker, troubles: &Troubles) -> Result<Self, ControlError> {
        let first = match ControlServer::start(path, asker.clone()) {
            Ok(server) => return Ok(Self::Serves(server)),
            Err(e) if may_pass(&e) => e,
            Err(e) => return Err(e),
        };
        tracing::warn!("{first}: the router runs without it, and tries again");
        troubles.begin(TROUBLE, first.to_string());
        let (stop, stopped) = mpsc::channel::<()>();
        let (path, troubles) = (path.to_owned(), troubles.clone());
        let tries = move || loop {
            match stopped.recv_timeout(RETRY) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return,
            }
            match ControlServer::start(&path, asker.clone()) {
                Ok(_server) => {
                    troubles.end(TROUBLE);
                    tracing::info!(path = %path.display(), "the control socket is there now");
                    let _ = stopped.recv();
                    return;
                }
                Err(e) => {
                    troubles.begin(TROUBLE, e.to_string());
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("mef-control-try".into())
            .spawn(tries);
        Ok(Self::Tries {
            stop: Some(stop),
            thread: thread.ok(),
        })
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        if let Self::Tries { stop, thread } = self {
            drop(stop.take());
            if let Some(thread) = thread.take() {
                let _ = thread.join();
            }
        }
    }
}
