//! Our endpoint and smoltcp's under one type, so that every test can have
//! either at each end.

use mef_packet::Instant;

use super::super::{
    Endpoint, HostState, HostTcp, HostTcpConfig, Role, SegmentError, SegmentMeta, SmoltcpHost,
    TimeWait,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Own,
    Smoltcp,
}

pub enum AnyHost {
    Own(Box<Endpoint>),
    Smoltcp(Box<SmoltcpHost>),
}

impl Kind {
    pub fn endpoint(self, now: Instant, role: Role, config: &HostTcpConfig) -> AnyHost {
        match self {
            Self::Own => AnyHost::Own(Box::new(Endpoint::new(now, role, config).unwrap())),
            Self::Smoltcp => {
                AnyHost::Smoltcp(Box::new(SmoltcpHost::new(now, role, config).unwrap()))
            }
        }
    }
}

macro_rules! each {
    ($self:ident, $e:ident => $do:expr) => {
        match $self {
            AnyHost::Own($e) => $do,
            AnyHost::Smoltcp($e) => $do,
        }
    };
}

impl HostTcp for AnyHost {
    fn handle_segment(&mut self, now: Instant, ip_packet: &[u8]) -> Result<(), SegmentError> {
        each!(self, e => e.handle_segment(now, ip_packet))
    }
    fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<SegmentMeta> {
        each!(self, e => e.poll_transmit(now, out))
    }
    fn poll_timeout(&self) -> Option<Instant> {
        each!(self, e => e.poll_timeout())
    }
    fn readable(&self) -> usize {
        each!(self, e => e.readable())
    }
    fn read<F: FnOnce(&[u8]) -> usize>(&mut self, f: F) -> usize {
        each!(self, e => e.read(f))
    }
    fn writable(&self) -> usize {
        each!(self, e => e.writable())
    }
    fn write(&mut self, data: &[u8]) -> usize {
        each!(self, e => e.write(data))
    }
    fn unacknowledged(&self) -> usize {
        each!(self, e => e.unacknowledged())
    }
    fn finish(&mut self) {
        each!(self, e => e.finish())
    }
    fn abort(&mut self) {
        each!(self, e => e.abort())
    }
    fn state(&self) -> HostState {
        each!(self, e => e.state())
    }
    fn remote_mss(&self) -> u16 {
        each!(self, e => e.remote_mss())
    }
    fn is_keep_alive(&self, ip_packet: &[u8]) -> bool {
        each!(self, e => e.is_keep_alive(ip_packet))
    }
    fn time_wait_record(&self) -> Option<TimeWait> {
        each!(self, e => e.time_wait_record())
    }
    fn memory(&self) -> usize {
        each!(self, e => e.memory())
    }
}
