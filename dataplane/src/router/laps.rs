//! How long the stages take: cycles of the time-stamp counter, read between the
//! stages of a batch and not for every packet. Nothing is read until somebody asks.

use mef_io::os;

/// Parts of a turn of the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lap {
    Rx,
    Ingress,
    Fib,
    /// To a port, a queue or a flow; opening what came over a link is part of it.
    Carry,
    /// Timers, and bytes between links and hosts.
    Flows,
    /// From the queues of lines: packing and sealing.
    Pull,
    Tx,
}

impl Lap {
    pub const ALL: [Self; 7] = [
        Self::Rx,
        Self::Ingress,
        Self::Fib,
        Self::Carry,
        Self::Flows,
        Self::Pull,
        Self::Tx,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rx => "rx",
            Self::Ingress => "ingress",
            Self::Fib => "fib",
            Self::Carry => "carry",
            Self::Flows => "flows",
            Self::Pull => "pull",
            Self::Tx => "tx",
        }
    }
}

/// Cycles by [`Lap`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Laps {
    running: bool,
    since: u64,
    cycles: [u64; Lap::ALL.len()],
}

impl Laps {
    /// What was measured so far; measuring goes on.
    pub(super) fn measure(&mut self) -> Self {
        self.running = true;
        *self
    }

    pub(super) fn start(&mut self) {
        if self.running {
            self.since = os::cycles();
        }
    }

    pub(super) fn end(&mut self, lap: Lap) {
        if self.running {
            let now = os::cycles();
            self.cycles[lap as usize] += now.wrapping_sub(self.since);
            self.since = now;
        }
    }

    /// Name and cycles of each part.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Lap::ALL
            .iter()
            .map(|l| (l.as_str(), self.cycles[*l as usize]))
    }
}
