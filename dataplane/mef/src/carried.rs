//! What a packet carried that its sender wants to hear of again: nearly always one
//! frame, so that one stands in the packet's record and the others, where there are
//! any, in memory of their own.

/// One frame, as far as its sender wants to hear of it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carried {
    #[default]
    Nothing,
    /// `generation` counts how often these bytes had been declared lost before.
    Data {
        flow: u32,
        offset: u64,
        len: u16,
        generation: u8,
    },
    Repair {
        flow: u32,
        base: u64,
    },
    Setup {
        flow: u32,
    },
    Opened {
        flow: u32,
    },
    Refused {
        flow: u32,
    },
    Fin {
        flow: u32,
    },
    Reset {
        flow: u32,
        code: u8,
    },
    Window {
        flow: u32,
    },
    Hello,
    Ping,
    Probe {
        size: u16,
    },
    Datagram,
}

/// At most this many frames that matter ride in one packet.
pub const MAX_CARRIED: usize = 4;

/// What one packet carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CarriedSet {
    first: Carried,
    more: Option<Box<[Carried; MAX_CARRIED - 1]>>,
}

impl CarriedSet {
    /// Of a packet that nobody asks for.
    pub const NOTHING: Self = Self::one(Carried::Nothing);

    pub const fn one(first: Carried) -> Self {
        Self { first, more: None }
    }

    /// Of `frames` in their order, the first [`MAX_CARRIED`] of them.
    pub fn of(frames: &[Carried]) -> Self {
        let Some((first, rest)) = frames.split_first() else {
            return Self::NOTHING;
        };
        let more = (!rest.is_empty()).then(|| {
            let mut more = Box::new([Carried::Nothing; MAX_CARRIED - 1]);
            for (to, from) in more.iter_mut().zip(rest) {
                *to = *from;
            }
            more
        });
        Self {
            first: *first,
            more,
        }
    }

    pub const fn first(&self) -> Carried {
        self.first
    }

    pub fn iter(&self) -> impl Iterator<Item = Carried> + '_ {
        let more = self.more.iter().flat_map(|m| m.iter());
        let more = more.filter(|c| !matches!(c, Carried::Nothing));
        core::iter::once(self.first).chain(more.copied())
    }

    /// Whether the packet did nothing but ask whether the peer is there.
    pub const fn is_ping(&self) -> bool {
        matches!(self.first, Carried::Ping)
    }

    /// Whether the packet did nothing but probe the path's MTU.
    pub const fn is_probe(&self) -> bool {
        matches!(self.first, Carried::Probe { .. })
    }

    /// Whether nothing follows from its arrival.
    pub const fn arrives_unnoticed(&self) -> bool {
        self.more.is_none()
            && !matches!(
                self.first,
                Carried::Data { .. }
                    | Carried::Repair { .. }
                    | Carried::Fin { .. }
                    | Carried::Reset { .. }
                    | Carried::Probe { .. }
            )
    }
}
