//! How other threads ask the router's: through a short queue that the router
//! looks into once per turn, and a byte on a socket pair that wakes it.
//!
//! ```text
//!   Asker -- question, where to answer --> Mailbox: Router::report
//!         <---------------- answer ------'
//! ```
//!
//! The router answers one question per turn and makes no text: that is left to
//! who asked.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Query, Reply};

/// Questions that wait at most; those who ask are a few threads, each with one at a time.
const QUEUE: usize = 16;

struct Question {
    query: Query,
    answer: SyncSender<Reply>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    #[error("the router has ended")]
    Gone,
    #[error("too many questions at a time")]
    Busy,
    #[error("the router did not answer in time")]
    TimedOut,
}

/// Asks the router; one clone for each thread that does.
#[derive(Clone, Debug)]
pub struct Asker {
    workers: Vec<Line>,
}

/// To one worker.
#[derive(Clone, Debug)]
struct Line {
    questions: SyncSender<Question>,
    wake: Arc<UnixStream>,
}

/// The router's side.
#[derive(Debug)]
pub struct Mailbox {
    questions: Receiver<Question>,
    wake: UnixStream,
}

/// Both ends.
///
/// # Errors
/// What the system says when it has no more sockets.
pub fn mailbox() -> io::Result<(Asker, Mailbox)> {
    let (line, mailbox) = pair()?;
    let workers = vec![line];
    Ok((Asker { workers }, mailbox))
}

/// One to ask, and a mailbox for each of so many workers.
///
/// # Errors
/// As [`mailbox`].
pub fn mailboxes(workers: u16) -> io::Result<(Asker, Vec<Mailbox>)> {
    let pairs = (0..workers.max(1)).map(|_| pair());
    let pairs = pairs.collect::<io::Result<Vec<_>>>()?;
    let (workers, mailboxes) = pairs.into_iter().unzip();
    Ok((Asker { workers }, mailboxes))
}

fn pair() -> io::Result<(Line, Mailbox)> {
    let (sender, questions) = mpsc::sync_channel(QUEUE);
    let (theirs, ours) = UnixStream::pair()?;
    theirs.set_nonblocking(true)?;
    ours.set_nonblocking(true)?;
    let line = Line {
        questions: sender,
        wake: Arc::new(theirs),
    };
    let mailbox = Mailbox {
        questions,
        wake: ours,
    };
    Ok((line, mailbox))
}

impl Asker {
    /// Waits for the answer to `query`, at most `timeout`; of several workers it is what all of them
    /// say.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn ask(&self, query: Query, timeout: Duration) -> Result<Reply, AskError> {
        let gone = Err(AskError::Gone);
        match (query.of_one_worker(), self.workers.as_slice()) {
            (_, []) => gone,
            (_, [only]) => only.ask(query, timeout),
            (Some((worker, query)), workers) => {
                let Some(line) = workers.get(worker) else {
                    return gone;
                };
                let mut reply = line.ask(query, timeout)?;
                reply.went_to(worker, workers.len());
                Ok(reply)
            }
            (None, workers) => {
                let until = Instant::now() + timeout;
                let mut replies = Vec::new();
                for line in workers {
                    let left = until.saturating_duration_since(Instant::now());
                    replies.push(line.ask(query, left)?);
                }
                Reply::of_all(replies).map_or(gone, Ok)
            }
        }
    }

    /// What wakes each worker when a byte is written to it.
    pub fn bells(&self) -> impl Iterator<Item = Arc<UnixStream>> + '_ {
        self.workers.iter().map(|l| Arc::clone(&l.wake))
    }
}

impl Line {
    fn ask(&self, query: Query, timeout: Duration) -> Result<Reply, AskError> {
        let (answer, answers) = mpsc::sync_channel(1);
        self.questions
            .try_send(Question { query, answer })
            .map_err(|e| match e {
                TrySendError::Full(_) => AskError::Busy,
                TrySendError::Disconnected(_) => AskError::Gone,
            })?;
        // A full socket holds bytes that wake the router as well.
        let _ = (&*self.wake).write(&[1]);
        answers.recv_timeout(timeout).map_err(|e| match e {
            RecvTimeoutError::Timeout => AskError::TimedOut,
            RecvTimeoutError::Disconnected => AskError::Gone,
        })
    }
}

impl Mailbox {
    /// Readable when there is a question.
    pub fn poll_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Answers one question, if there is any, and says whether to look for another at once.
    /// `woken` is whether [`poll_fd`](Self::poll_fd) was readable; without it there is no system call.
    pub fn answer(&mut self, woken: bool, report: impl FnOnce(Query) -> Reply) -> bool {
        if woken {
            // Before the questions are looked at: each is there before its byte is.
            let _ = self.wake.read(&mut [0; 64]);
        }
        let Ok(question) = self.questions.try_recv() else {
            return false;
        };
        // Whoever asked may have stopped waiting.
        drop(question.answer.try_send(report(question.query)));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Page;

    fn links(name: &str) -> Reply {
        Reply::Links(Page {
            router: name.into(),
            ..Page::default()
        })
    }

    #[test]
    fn questions_wake_the_router_and_are_answered_in_order() {
        let (asker, mut mailbox) = mailbox().unwrap();
        let fds = [mailbox.poll_fd()];
        let quiet = mef_io::os::poll_fds(&fds, Duration::ZERO).unwrap();
        assert!(!quiet.any());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let asker = asker.clone();
                std::thread::spawn(move || asker.ask(Query::Links, Duration::from_secs(10)))
            })
            .collect();
        let mut answered = 0;
        while answered < 4 {
            let woken = mef_io::os::poll_fds(&fds, Duration::from_secs(10)).unwrap();
            assert!(woken.any());
            let mut woken = true;
            while mailbox.answer(woken, |q| {
                assert_eq!(q, Query::Links);
                answered += 1;
                links("r")
            }) {
                woken = false;
            }
        }
        for t in threads {
            let reply = t.join().unwrap().unwrap();
            assert!(matches!(reply, Reply::Links(p) if p.router == "r"));
        }
        // The bytes of questions that were seen before them.
        while mailbox.answer(true, |_| unreachable!()) {}
        let quiet = mef_io::os::poll_fds(&fds, Duration::ZERO).unwrap();
        assert!(!quiet.any());
    }

    #[test]
    fn a_router_that_is_gone_or_stuck_is_told_apart() {
        let (asker, mailbox) = mailbox().unwrap();
        let now = Duration::from_millis(1);
        for _ in 0..QUEUE {
            let stuck = asker.ask(Query::Status, now);
            assert!(matches!(stuck, Err(AskError::TimedOut)));
        }
        assert!(matches!(asker.ask(Query::Status, now), Err(AskError::Busy)));
        drop(mailbox);
        assert!(matches!(asker.ask(Query::Status, now), Err(AskError::Gone)));
    }
}
