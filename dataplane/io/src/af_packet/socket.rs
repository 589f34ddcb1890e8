//! The packet socket itself and its options.

use super::AfPacketOptions;
use crate::port::PortError;
use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

// linux/if_packet.h
const SOL_PACKET: libc::c_int = 263;
const PACKET_ADD_MEMBERSHIP: libc::c_int = 1;
const PACKET_STATISTICS: libc::c_int = 6;
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_QDISC_BYPASS: libc::c_int = 20;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_MR_PROMISC: libc::c_ushort = 1;

pub(super) struct Socket {
    fd: OwnedFd,
    /// The kernel's count of drops starts anew whenever it is read.
    missed: Cell<u64>,
}

impl Socket {
    pub fn open(name: &str, index: u32, options: &AfPacketOptions) -> Result<Self, PortError> {
        let os = |what| {
            move |source| PortError::Os {
                name: name.to_owned(),
                what,
                source,
            }
        };
        // Protocol 0: nothing arrives before the socket is bound to its interface.
        // SAFETY: creates a descriptor.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                0,
            )
        };
        if fd < 0 {
            let e = io::Error::last_os_error();
            return Err(match e.kind() {
                io::ErrorKind::PermissionDenied => PortError::NotPermitted {
                    name: name.to_owned(),
                },
                _ => os("opening a packet socket")(e),
            });
        }
        // SAFETY: `fd` was just created and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let socket = Self {
            fd,
            missed: Cell::new(0),
        };

        let on: libc::c_int = 1;
        if options.vnet_hdr {
            socket
                .set(SOL_PACKET, PACKET_VNET_HDR, &on)
                .map_err(os("asking for offload metadata (PACKET_VNET_HDR)"))?;
        }
        socket
            .set(SOL_PACKET, PACKET_IGNORE_OUTGOING, &on)
            .map_err(os(
                "ignoring own frames (PACKET_IGNORE_OUTGOING, Linux 4.20)",
            ))?;
        if options.timestamps {
            socket
                .set(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &on)
                .map_err(os("asking for receive time-stamps"))?;
        }
        socket
            .set_buffer(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, options.rcvbuf)
            .map_err(os("sizing the receive buffer"))?;
        socket
            .set_buffer(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, options.sndbuf)
            .map_err(os("sizing the send buffer"))?;

        // SAFETY: sockaddr_ll is plain integers and arrays of them, for which zeroes are valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as libc::c_ushort;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as libc::c_int;
        // SAFETY: `address` is of the size stated and lives through the call.
        let r = unsafe {
            libc::bind(
                socket.fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if r < 0 {
            return Err(os("binding to it")(io::Error::last_os_error()));
        }
        if options.promiscuous {
            let membership = libc::packet_mreq {
                mr_ifindex: index as libc::c_int,
                mr_type: PACKET_MR_PROMISC,
                mr_alen: 0,
                mr_address: [0; 8],
            };
            socket
                .set(SOL_PACKET, PACKET_ADD_MEMBERSHIP, &membership)
                .map_err(os("making it promiscuous"))?;
        }
        Ok(socket)
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub fn set_qdisc_bypass(&self, on: bool) -> io::Result<()> {
        self.set(SOL_PACKET, PACKET_QDISC_BYPASS, &libc::c_int::from(on))
    }

    /// Frames that did not fit the receive buffer since the socket was opened.
    pub fn missed(&self) -> u64 {
        // struct tpacket_stats: packets, drops.
        let mut stats = [0u32; 2];
        let mut len = size_of_val(&stats) as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes to `stats`; both live through the call.
        let r = unsafe {
            libc::getsockopt(
                self.fd(),
                SOL_PACKET,
                PACKET_STATISTICS,
                stats.as_mut_ptr().cast(),
                &mut len,
            )
        };
        if r == 0 {
            self.missed.set(self.missed.get() + u64::from(stats[1]));
        }
        self.missed.get()
    }

    /// Sets an option of packet sockets that is a number.
    pub fn set_packet_option(&self, option: libc::c_int, value: &u32) -> io::Result<()> {
        self.set(SOL_PACKET, option, value)
    }

    /// Gives the kernel a program, which it copies.
    pub fn set_program(&self, option: libc::c_int, program: &libc::sock_fprog) -> io::Result<()> {
        self.set(SOL_PACKET, option, program)
    }

    /// Takes only frames that `program` lets through.
    pub fn set_filter(&self, program: &mut [libc::sock_filter]) -> io::Result<()> {
        let fprog = libc::sock_fprog {
            len: u16::try_from(program.len()).unwrap_or(0),
            filter: program.as_mut_ptr(),
        };
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &fprog)
    }

    /// The value of such an option.
    pub fn packet_option(&self, option: libc::c_int) -> io::Result<u32> {
        let mut value = 0u32;
        let mut len = size_of_val(&value) as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes to `value`; both live through the call.
        let r = unsafe {
            libc::getsockopt(
                self.fd(),
                SOL_PACKET,
                option,
                (&raw mut value).cast(),
                &mut len,
            )
        };
        if r < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(value)
    }

    fn set<T: Copy>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: the kernel reads the bytes of `value`, which lives through the call. It is
        // one of: c_int, u32, packet_mreq, none with padding, and sock_fprog, of whose
        // padding the kernel makes nothing and whose program lives through the call.
        let r = unsafe {
            libc::setsockopt(
                self.fd(),
                level,
                option,
                (value as *const T).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        if r < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Sizes a buffer, past the system's limit if permitted, else up to it.
    fn set_buffer(&self, force: libc::c_int, plain: libc::c_int, bytes: usize) -> io::Result<()> {
        // The kernel doubles the value.
        let value = libc::c_int::try_from(bytes)
            .unwrap_or(libc::c_int::MAX / 2)
            .min(libc::c_int::MAX / 2);
        match self.set(libc::SOL_SOCKET, force, &value) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                self.set(libc::SOL_SOCKET, plain, &value)
            }
            r => r,
        }
    }
}

/// Whether the running kernel is of version `major.minor` or later.
pub(super) fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_kernel_versions() {
        assert!(kernel_is_at_least(2, 6));
        assert!(!kernel_is_at_least(1000, 0));
    }
}
