//! What concerns the router's own start and end.

use std::path::PathBuf;
use std::time::Duration;

use super::{Checked, Validator};
use crate::config::raw::RawRouter;
use crate::config::{parse_time, Adopt};

const DEFAULT_DRAIN: Duration = Duration::from_secs(5);
/// Whoever stops a router wants it to end.
const MAX_DRAIN: Duration = Duration::from_secs(3600);

pub(super) struct Lifecycle {
    pub adopt: Adopt,
    pub drain: Duration,
    pub state: Option<PathBuf>,
}

impl Validator<'_> {
    pub(super) fn lifecycle(&self, raw: &RawRouter) -> Checked<Lifecycle> {
        let adopt = match &raw.adopt {
            Some(text) => self.choice(
                text,
                "router.adopt",
                &[("reset", Adopt::Reset), ("forward", Adopt::Forward)],
            )?,
            None => Adopt::default(),
        };
        let drain = match &raw.drain {
            Some(text) => {
                let time = self.parse(text, "router.drain", parse_time)?;
                if time > MAX_DRAIN {
                    return Err(self.wrong(
                        text,
                        "router.drain",
                        "at most 60min",
                        "shorten it; flows that still run then are reset",
                    ));
                }
                time
            }
            None => DEFAULT_DRAIN,
        };
        let state = match &raw.state {
            Some(text) => Some(self.path(text, "router.state")?),
            None => None,
        };
        Ok(Lifecycle {
            adopt,
            drain,
            state,
        })
    }
}
