//! Bytes to frames: lengths are checked here, numbers by whoever uses them.

use std::net::{IpAddr, SocketAddr};

use mef_packet::BitRate;

use crate::classes::Class;

use super::{
    kind, Ack, Frame, FrameError, Hello, Inner, Received, Setup, SpanId, FLAG_DATA, FLAG_REPAIR,
};

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], FrameError> {
        if n > self.0.len() {
            return Err(FrameError::ShortBody);
        }
        let (a, b) = self.0.split_at(n);
        self.0 = b;
        Ok(a)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        self.bytes(N)?.try_into().map_err(|_| FrameError::ShortBody)
    }
    fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(u8::from_be_bytes(self.array()?))
    }
    fn u16(&mut self) -> Result<u16, FrameError> {
        Ok(u16::from_be_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_be_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_be_bytes(self.array()?))
    }
    fn f32(&mut self) -> Result<f32, FrameError> {
        let v = f32::from_be_bytes(self.array()?);
        if v.is_finite() && v >= 0.0 {
            Ok(v)
        } else {
            Err(FrameError::BadValue)
        }
    }
    fn address(&mut self, family: u8) -> Result<SocketAddr, FrameError> {
        let ip = match family {
            4 => IpAddr::from(self.array::<4>()?),
            6 => IpAddr::from(self.array::<16>()?),
            _ => return Err(FrameError::BadValue),
        };
        Ok(SocketAddr::new(ip, self.u16()?))
    }
    fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }
}

/// Splits a decrypted packet into its header and an iterator over its frames. What DATA and REPAIR
/// packets hold comes as a frame, too.
///
/// # Errors
/// `TruncatedHeader` where there are fewer than [`INNER_HEADER`](super::INNER_HEADER) bytes, and what is wrong with DATA or
/// REPAIR; the iterator yields the errors of frames and ends behind the first one.
pub fn parse(packet: &[u8]) -> Result<(Inner, Frames<'_>), FrameError> {
    let mut r = Reader(packet);
    let inner = (|| {
        Ok::<_, FrameError>(Inner {
            flow_group: r.u32()?,
            flags: r.u16()?,
            ttl: r.u8()?,
            frames: r.u8()?,
        })
    })()
    .map_err(|_| FrameError::TruncatedHeader)?;
    let alone = match inner.flags & (FLAG_DATA | FLAG_REPAIR) {
        0 => None,
        _ if inner.frames > 0 => return Err(FrameError::BadValue),
        FLAG_DATA => Some(Frame::Data {
            flow: inner.flow_group,
            offset: r.u64()?,
            payload: r.rest(),
        }),
        FLAG_REPAIR => Some(parse_repair(inner.flow_group, &mut r)?),
        _ => return Err(FrameError::BadValue),
    };
    Ok((
        inner,
        Frames {
            alone,
            rest: r.0,
            left: inner.frames,
        },
    ))
}

fn parse_repair<'a>(flow: u32, r: &mut Reader<'a>) -> Result<Frame<'a>, FrameError> {
    let packed = r.u64()?;
    let span = SpanId {
        base_low: (packed >> 36) as u32,
        symbols: ((packed >> 26) & 0x3ff) as u16 + 1,
        last: (packed & 0x7fff) as u16,
    };
    let index = ((packed >> 15) & 0x7ff) as u16;
    let symbol = r.rest();
    if span.last == 0 || usize::from(span.last) > symbol.len() {
        return Err(FrameError::BadValue);
    }
    Ok(Frame::Repair {
        flow,
        span,
        index,
        symbol,
    })
}

/// Iterator over the frames of a packet.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    alone: Option<Frame<'a>>,
    rest: &'a [u8],
    left: u8,
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, FrameError>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return self.alone.take().map(Ok);
        }
        self.left -= 1;
        let frame = self.take();
        if frame.is_err() {
            self.left = 0;
        }
        Some(frame)
    }
}

impl<'a> Frames<'a> {
    fn take(&mut self) -> Result<Frame<'a>, FrameError> {
        let mut head = Reader(self.rest);
        let (kind, len) = (|| Ok::<_, FrameError>((head.u8()?, head.u16()?)))()
            .map_err(|_| FrameError::TruncatedFrame)?;
        let body = head
            .bytes(usize::from(len))
            .map_err(|_| FrameError::TruncatedFrame)?;
        self.rest = head.0;
        parse_body(kind, body)
    }
}

fn parse_body(kind: u8, body: &[u8]) -> Result<Frame<'_>, FrameError> {
    let mut r = Reader(body);
    Ok(match kind {
        kind::DGRAM => Frame::Datagram {
            flow: r.u32()?,
            packet: r.rest(),
        },
        kind::FRAG => Frame::Fragment {
            id: r.u32()?,
            index: r.u8()?,
            count: r.u8()?,
            bytes: r.rest(),
        },
        kind::SETUP => {
            let flow = r.u32()?;
            let weight = r.f32()?;
            let (flags, dscp) = (r.u8()?, r.u8()?);
            let class = match flags >> 1 & 3 {
                1 => Class::Latency,
                2 => Class::Bulk,
                _ => Class::Balanced,
            };
            let mss = r.u16()?;
            let family = r.u8()?;
            if weight == 0.0 || dscp > 63 {
                return Err(FrameError::BadValue);
            }
            Frame::Setup {
                flow,
                setup: Setup {
                    source: r.address(family)?,
                    destination: r.address(family)?,
                    weight,
                    early: flags & 1 != 0,
                    class,
                    dscp,
                    mss,
                },
            }
        }
        kind::OPENED => Frame::Opened { flow: r.u32()? },
        kind::REFUSED => Frame::Refused {
            flow: r.u32()?,
            code: r.u8()?,
        },
        kind::FIN => Frame::Fin {
            flow: r.u32()?,
            offset: r.u64()?,
        },
        kind::RESET => Frame::Reset {
            flow: r.u32()?,
            offset: r.u64()?,
            code: r.u8()?,
        },
        kind::WINDOW => Frame::Window {
            flow: r.u32()?,
            max_offset: r.u64()?,
            received: r.u64()?,
            read: r.u64()?,
            room: r.u32()?,
            pace: r.u32()?,
        },
        kind::HEARD => Frame::Heard {
            flow: r.u32()?,
            ago_ms: match r.u32()? {
                u32::MAX => None,
                ms => Some(ms),
            },
        },
        kind::GONE => {
            let family = r.u8()?;
            Frame::Gone {
                host: r.address(family)?,
                far: r.address(family)?,
            }
        }
        kind::ACK => {
            let (largest, rx_time_us, delay_us) = (r.u64()?, r.u64()?, r.u32()?);
            let (delivered_bytes, drops, format) = (r.u64()?, r.u32()?, r.u8()?);
            let received = match format {
                0 => Received::Runs(r.rest()),
                1 => Received::Bitmap(r.rest()),
                _ => return Err(FrameError::BadValue),
            };
            Frame::Ack(Ack {
                largest,
                rx_time_us,
                delay_us,
                delivered_bytes,
                drops,
                received,
            })
        }
        kind::HELLO => {
            let version = r.u8()?;
            if version != 1 {
                return Err(FrameError::BadValue);
            }
            let hello = Hello {
                boot_id: r.u64()?,
                workers: r.u16()?,
                hash_key: r.u64()?,
                mtu: r.u16()?,
                line_up: BitRate(r.f32()? as u64),
                line_down: BitRate(r.f32()? as u64),
                link_credit: r.u64()?,
                flow_credit: r.u64()?,
            };
            if hello.mtu < 576 || hello.line_down.0 < 1000 {
                return Err(FrameError::BadValue);
            }
            Frame::Hello(hello)
        }
        kind::PING => Frame::Ping { floor: r.u64()? },
        kind::PATH_CHALLENGE => Frame::PathChallenge { token: r.u64()? },
        kind::PATH_RESPONSE => Frame::PathResponse { token: r.u64()? },
        kind::PROBE => Frame::Probe {
            padding: r.rest().len(),
        },
        kind => Frame::Unknown { kind },
    })
}

/// Takes a variable-length integer off the front; `None` where it is cut short or too long.
pub fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut v = 0u64;
    for shift in (0..64).step_by(7) {
        let (&b, rest) = bytes.split_first()?;
        *bytes = rest;
        v |= u64::from(b & 0x7f).checked_shl(shift)?;
        if b < 0x80 {
            return Some(v);
        }
    }
    None
}
