//! What a running router tells about itself when asked: the questions, and the
//! rows it answers with. Field names are those of `mef show -o json` and of the
//! control socket, and stay as they are; new ones may be added. Times are in
//! microseconds, rates in bit/s, sizes in bytes; counters count since the start.
//!
//! What may be long comes in pages: an answer with `next` goes on where the same
//! question with that number ends, so that thousands of flows do not keep the
//! router from its packets.

mod ask;
mod merge;
mod rows;

pub use ask::{mailbox, mailboxes, AskError, Asker, Mailbox};
pub use rows::{
    Drop, Estimate, Flow, FlowState, Link, Neighbour, NeighbourState, Port, Route, RouteKind,
    Worker,
};

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::control::Snapshot;
use crate::metrics::Sample;

/// Rows in one page.
pub const PAGE: usize = 256;
/// Longest question, bytes.
pub const MAX_QUERY: usize = 256;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query {
    Status,
    Links,
    Ports,
    Drops,
    Workers,
    /// From this page mark on; 0 is the beginning.
    Routes {
        from: u64,
    },
    Neighbours {
        from: u64,
    },
    Flows {
        from: u64,
    },
    /// Everything that the metrics are made of; only asked from inside.
    Metrics,
}

/// Why a line is no question.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error("found {0:?}, expected status, links, ports, drops, workers, routes, neighbours or flows, the last three with the `next` of the page before")]
    Unknown(String),
    #[error("found {0:?}, expected the `next` of the page before, a whole number")]
    Mark(String),
}

impl FromStr for Query {
    type Err = QueryError;

    /// One word, and where the answer comes in pages the mark of the one wanted.
    fn from_str(line: &str) -> Result<Self, QueryError> {
        let shown = |text: &str| text.chars().take(40).collect::<String>();
        let mut words = line.split_ascii_whitespace();
        let what = words.next().unwrap_or("status");
        let mark = words.next();
        let unknown = || QueryError::Unknown(shown(line));
        if words.next().is_some() {
            return Err(unknown());
        }
        let from = match mark {
            None => 0,
            Some(m) => m.parse().map_err(|_| QueryError::Mark(shown(m)))?,
        };
        match (what, mark) {
            ("status", None) => Ok(Self::Status),
            ("links", None) => Ok(Self::Links),
            ("ports", None) => Ok(Self::Ports),
            ("drops", None) => Ok(Self::Drops),
            ("workers", None) => Ok(Self::Workers),
            ("routes", _) => Ok(Self::Routes { from }),
            ("neighbours", _) => Ok(Self::Neighbours { from }),
            ("flows", _) => Ok(Self::Flows { from }),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status => f.write_str("status"),
            Self::Links => f.write_str("links"),
            Self::Ports => f.write_str("ports"),
            Self::Drops => f.write_str("drops"),
            Self::Workers => f.write_str("workers"),
            Self::Routes { from } => write!(f, "routes {from}"),
            Self::Neighbours { from } => write!(f, "neighbours {from}"),
            Self::Flows { from } => write!(f, "flows {from}"),
            Self::Metrics => f.write_str("metrics"),
        }
    }
}

/// One page of rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// `router.name`.
    pub router: String,
    pub rows: Vec<T>,
    /// There is more: ask again with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Reply {
    Status(Box<Snapshot>),
    Links(Page<Link>),
    Ports(Page<Port>),
    Drops(Page<Drop>),
    Workers(Page<Worker>),
    Routes(Page<Route>),
    Neighbours(Page<Neighbour>),
    Flows(Page<Flow>),
    #[serde(skip)]
    Metrics(Box<Sample>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_as_they_are_written() {
        for q in [
            Query::Status,
            Query::Links,
            Query::Ports,
            Query::Drops,
            Query::Workers,
            Query::Routes { from: 0 },
            Query::Neighbours { from: 3 },
            Query::Flows { from: u64::MAX },
        ] {
            assert_eq!(q.to_string().parse(), Ok(q));
        }
        assert_eq!("".parse(), Ok(Query::Status));
        assert_eq!(" flows\r".parse(), Ok(Query::Flows { from: 0 }));
    }

    #[test]
    fn what_is_no_question_is_named() {
        for line in ["flow", "links 3", "flows 1 2", "metrics", "GET / HTTP/1.1"] {
            let refused = line.parse::<Query>().unwrap_err().to_string();
            assert!(
                refused.contains(&format!("{line:?}")) || line.contains("GET"),
                "{refused}"
            );
        }
        assert_eq!(
            "flows -1".parse::<Query>(),
            Err(QueryError::Mark("-1".into()))
        );
        let long = "x".repeat(10_000).parse::<Query>().unwrap_err().to_string();
        assert!(long.len() < 300);
    }
}
