//! TCP options: an iterator over those of a segment, and an emitter. Known by
//! value are those of RFC 9293 (MSS), RFC 7323 (window scale, time-stamps) and
//! RFC 2018 (SACK); known by name those that a split connection must refuse or
//! take out: MD5 (RFC 2385), AO (RFC 5925), MPTCP (RFC 8684), TFO (RFC 7413).

use super::{put, u16_at, u32_at, u8_at, WireError};

pub const END: u8 = 0;
pub const NOP: u8 = 1;
pub const KIND_MSS: u8 = 2;
pub const KIND_WINDOW_SCALE: u8 = 3;
pub const KIND_SACK_PERMITTED: u8 = 4;
pub const KIND_SACK: u8 = 5;
pub const KIND_TIMESTAMPS: u8 = 8;
pub const KIND_MD5: u8 = 19;
pub const KIND_AO: u8 = 29;
pub const KIND_MPTCP: u8 = 30;
pub const KIND_FAST_OPEN: u8 = 34;

/// The most that a header has room for, bytes.
pub const MAX_LEN: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpOption<'a> {
    /// Maximum segment size, bytes.
    Mss(u16),
    /// How many bits the window is shifted by, as sent (above 14 counts as 14).
    WindowScale(u8),
    SackPermitted,
    /// Pairs of 32-bit edges; the length is a multiple of 8.
    Sack(&'a [u8]),
    Timestamps {
        value: u32,
        echo: u32,
    },
    Md5(&'a [u8]),
    Ao(&'a [u8]),
    Mptcp(&'a [u8]),
    /// The cookie; empty when one is asked for.
    FastOpen(&'a [u8]),
    Other {
        kind: u8,
        data: &'a [u8],
    },
}

impl<'a> TcpOption<'a> {
    pub fn kind(&self) -> u8 {
        match self {
            Self::Mss(_) => KIND_MSS,
            Self::WindowScale(_) => KIND_WINDOW_SCALE,
            Self::SackPermitted => KIND_SACK_PERMITTED,
            Self::Sack(_) => KIND_SACK,
            Self::Timestamps { .. } => KIND_TIMESTAMPS,
            Self::Md5(_) => KIND_MD5,
            Self::Ao(_) => KIND_AO,
            Self::Mptcp(_) => KIND_MPTCP,
            Self::FastOpen(_) => KIND_FAST_OPEN,
            Self::Other { kind, .. } => *kind,
        }
    }

    fn parse(kind: u8, data: &'a [u8]) -> Result<Self, WireError> {
        Ok(match (kind, data.len()) {
            (KIND_MSS, 2) => Self::Mss(u16_at(data, 0)),
            (KIND_WINDOW_SCALE, 1) => Self::WindowScale(u8_at(data, 0)),
            (KIND_SACK_PERMITTED, 0) => Self::SackPermitted,
            (KIND_SACK, n) if n % 8 == 0 => Self::Sack(data),
            (KIND_TIMESTAMPS, 8) => Self::Timestamps {
                value: u32_at(data, 0),
                echo: u32_at(data, 4),
            },
            (
                KIND_MSS | KIND_WINDOW_SCALE | KIND_SACK_PERMITTED | KIND_SACK | KIND_TIMESTAMPS,
                _,
            ) => return Err(WireError::BadOption),
            (KIND_MD5, _) => Self::Md5(data),
            (KIND_AO, _) => Self::Ao(data),
            (KIND_MPTCP, _) => Self::Mptcp(data),
            (KIND_FAST_OPEN, _) => Self::FastOpen(data),
            _ => Self::Other { kind, data },
        })
    }

    fn emit(&self, out: &mut [u8]) -> Result<usize, WireError> {
        let mut value = [0u8; 8];
        let data: &[u8] = match self {
            Self::Mss(mss) => {
                put(&mut value, 0, &mss.to_be_bytes())?;
                value.get(..2).unwrap_or(&[])
            }
            Self::WindowScale(shift) => core::slice::from_ref(shift),
            Self::SackPermitted => &[],
            Self::Timestamps { value: v, echo } => {
                put(&mut value, 0, &v.to_be_bytes())?;
                put(&mut value, 4, &echo.to_be_bytes())?;
                &value
            }
            Self::Sack(d) | Self::Md5(d) | Self::Ao(d) | Self::Mptcp(d) | Self::FastOpen(d) => d,
            Self::Other { data, .. } => data,
        };
        let len = data.len() + 2;
        put(
            out,
            0,
            &[
                self.kind(),
                u8::try_from(len).map_err(|_| WireError::NoRoom)?,
            ],
        )?;
        put(out, 2, data)?;
        Ok(len)
    }
}

/// Writes `options` one after the other and pads with NOPs to a multiple of four;
/// returns the length.
///
/// # Errors
/// `NoRoom` if they do not fit `out` or exceed 40 bytes.
pub fn emit(out: &mut [u8], options: &[TcpOption<'_>]) -> Result<usize, WireError> {
    let room = out.len().min(MAX_LEN);
    let out = out.get_mut(..room).ok_or(WireError::NoRoom)?;
    let mut at = 0;
    for option in options {
        at += option.emit(out.get_mut(at..).ok_or(WireError::NoRoom)?)?;
    }
    while at % 4 != 0 {
        put(out, at, &[NOP])?;
        at += 1;
    }
    Ok(at)
}

/// Where an option is: `len` bytes from `at` on, kind and length bytes included.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub kind: u8,
    pub at: usize,
    pub len: usize,
}

/// The options in `bytes`, NOPs skipped, up to the end mark or the first that is malformed.
pub(super) fn spans(bytes: &[u8]) -> impl Iterator<Item = Result<Span, WireError>> + '_ {
    let mut at = 0;
    core::iter::from_fn(move || loop {
        let kind = *bytes.get(at)?;
        match kind {
            END => {
                at = bytes.len();
                return None;
            }
            NOP => at += 1,
            _ => {
                let len = usize::from(bytes.get(at + 1).copied().unwrap_or(0));
                let span = Span { kind, at, len };
                let fits = len >= 2 && at + len <= bytes.len() && (kind != KIND_MSS || len == 4);
                at = if fits { at + len } else { bytes.len() };
                return Some(if fits {
                    Ok(span)
                } else {
                    Err(WireError::BadOption)
                });
            }
        }
    })
}

/// Iterates over the options of a segment, NOPs skipped. A malformed one is
/// reported once, and nothing behind it.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    bytes: &'a [u8],
}

impl<'a> Options<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<TcpOption<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = core::mem::take(&mut self.bytes);
        let span = match spans(bytes).next()? {
            Ok(span) => span,
            Err(e) => return Some(Err(e)),
        };
        let data = bytes.get(span.at + 2..span.at + span.len).unwrap_or(&[]);
        let option = TcpOption::parse(span.kind, data);
        if option.is_ok() {
            self.bytes = bytes.get(span.at + span.len..).unwrap_or(&[]);
        }
        Some(option)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    struct Owned(u8, Vec<u8>);

    impl Owned {
        fn option(&self) -> TcpOption<'_> {
            TcpOption::parse(self.0, &self.1).unwrap()
        }
    }

    fn any_option() -> impl Strategy<Value = Owned> {
        let of = |kind: u8, len: usize| {
            prop::collection::vec(any::<u8>(), len).prop_map(move |d| Owned(kind, d))
        };
        prop_oneof![
            of(KIND_MSS, 2),
            of(KIND_WINDOW_SCALE, 1),
            of(KIND_SACK_PERMITTED, 0),
            of(KIND_SACK, 16),
            of(KIND_TIMESTAMPS, 8),
            of(KIND_MD5, 16),
            of(KIND_AO, 14),
            of(KIND_MPTCP, 10),
            of(KIND_FAST_OPEN, 0),
            of(KIND_FAST_OPEN, 8),
            (35u8..=255, prop::collection::vec(any::<u8>(), 0..12)).prop_map(|(k, d)| Owned(k, d)),
        ]
    }

    proptest! {
        #[test]
        fn parses_what_it_emits(owned in prop::collection::vec(any_option(), 0..5)) {
            let options: Vec<_> = owned.iter().map(Owned::option).collect();
            let size: usize = owned.iter().map(|o| o.1.len() + 2).sum();
            let mut area = [0xee; 44];
            match emit(&mut area, &options) {
                Ok(n) => {
                    prop_assert!(n % 4 == 0 && n <= 40 && n >= size && n < size + 4);
                    let again: Vec<_> = Options::new(&area[..n]).map(Result::unwrap).collect();
                    prop_assert_eq!(again, options);
                }
                Err(e) => prop_assert!(e == WireError::NoRoom && size > 40),
            }
        }

        #[test]
        fn arbitrary_bytes_end_at_the_first_error(bytes in prop::collection::vec(any::<u8>(), 0..=40)) {
            let all: Vec<_> = Options::new(&bytes).collect();
            prop_assert!(all.len() <= 20);
            for option in all.iter().take(all.len().saturating_sub(1)) {
                prop_assert!(option.is_ok());
            }
        }
    }

    #[test]
    fn linux_syn_options() {
        let bytes = [
            2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 1, 3, 3, 7,
        ];
        let all: Vec<_> = Options::new(&bytes).map(Result::unwrap).collect();
        assert_eq!(
            all,
            [
                TcpOption::Mss(1460),
                TcpOption::SackPermitted,
                TcpOption::Timestamps { value: 9, echo: 0 },
                TcpOption::WindowScale(7)
            ]
        );
    }

    #[test]
    fn malformed_options_are_errors_and_end_marks_end() {
        for bad in [
            &[2u8, 4, 5][..],
            &[2],
            &[2, 0, 0, 0],
            &[2, 1],
            &[2, 3, 0],
            &[3, 4, 0, 0],
            &[8, 9, 0, 0, 0, 0, 0, 0, 0],
        ] {
            let all: Vec<_> = Options::new(bad).collect();
            assert_eq!(all, [Err(WireError::BadOption)], "{bad:?}");
        }
        assert_eq!(Options::new(&[1, 1, 0, 2, 4, 5, 5]).count(), 0);
    }
}
