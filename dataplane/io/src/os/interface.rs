//! What the kernel knows of a network interface, asked by `ioctl` in the network
//! namespace of the calling thread. See netdevice(7).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// An `ifreq` that names `interface`, all else zero.
///
/// # Errors
/// `InvalidInput` for a name longer than 15 bytes or with a zero byte in it.
pub(super) fn request(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is a byte array and a union of plain integers, arrays and one
    // raw pointer, for all of which zeroes are valid.
    let mut ifr: libc::ifreq = unsafe { std::mem::zeroed() };
    let bytes = interface.as_bytes();
    if bytes.is_empty() || bytes.len() >= ifr.ifr_name.len() || bytes.contains(&0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{interface:?} is no interface name: 1 to 15 bytes, without zero"),
        ));
    }
    for (to, &from) in ifr.ifr_name.iter_mut().zip(bytes) {
        *to = from as libc::c_char;
    }
    Ok(ifr)
}

/// A socket for interface requests, which are about the network namespace that it was made in.
pub(super) fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: creates a descriptor.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just created and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs one of the interface requests on `ifr`.
///
/// # Safety
/// `code` must be a request on an ifreq, and where it uses `ifru_data`, that must
/// point to memory of the size and access that the request needs.
unsafe fn ioctl(code: libc::c_ulong, ifr: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { ioctl_by(control_socket()?.as_fd(), code, ifr) }
}

/// The same by way of a [`control_socket`].
///
/// # Safety
/// As of [`ioctl`].
pub(super) unsafe fn ioctl_by(
    socket: BorrowedFd<'_>,
    code: libc::c_ulong,
    ifr: &mut libc::ifreq,
) -> io::Result<()> {
    // SAFETY: `ifr` is a valid ifreq that lives through the call; the rest is the caller's promise.
    if unsafe { libc::ioctl(socket.as_raw_fd(), code as _, ifr as *mut libc::ifreq) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The kernel's index of an interface.
///
/// # Errors
/// `NotFound` (ENODEV) if there is none of this name in this namespace.
pub fn interface_index(interface: &str) -> io::Result<u32> {
    let name = CString::new(interface)?;
    // SAFETY: `name` is a terminated string that lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Link-layer payload of one packet, bytes.
///
/// # Errors
/// What the kernel says, ENODEV if there is no such interface.
pub fn interface_mtu(interface: &str) -> io::Result<u32> {
    let mut ifr = request(interface)?;
    // SAFETY: SIOCGIFMTU works on the ifreq alone.
    unsafe { ioctl(libc::SIOCGIFMTU as _, &mut ifr)? };
    // SAFETY: SIOCGIFMTU has filled in ifru_mtu, and any bits are an integer.
    Ok(unsafe { ifr.ifr_ifru.ifru_mtu }.unsigned_abs())
}

/// The Ethernet address of an interface.
///
/// # Errors
/// What the kernel says, ENODEV if there is no such interface.
pub fn interface_mac(interface: &str) -> io::Result<[u8; 6]> {
    let mut ifr = request(interface)?;
    // SAFETY: SIOCGIFHWADDR works on the ifreq alone.
    unsafe { ioctl(libc::SIOCGIFHWADDR as _, &mut ifr)? };
    // SAFETY: SIOCGIFHWADDR has filled in ifru_hwaddr, and any bits are a sockaddr.
    let data = unsafe { ifr.ifr_ifru.ifru_hwaddr }.sa_data;
    Ok(std::array::from_fn(|i| data.get(i).map_or(0, |&b| b as u8)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_loopback_interface() {
        assert_eq!(interface_index("lo").unwrap(), 1);
        assert_eq!(interface_mtu("lo").unwrap(), 65536);
        assert_eq!(interface_mac("lo").unwrap(), [0; 6]);
    }

    #[test]
    fn refuses_what_is_no_name_and_misses_what_is_not_there() {
        for bad in ["", "sixteen-bytes-xx", "a\0b"] {
            assert_eq!(
                interface_mtu(bad).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
        }
        let e = interface_mtu("mefio-none").unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ENODEV));
        assert_eq!(
            interface_index("mefio-none").unwrap_err().raw_os_error(),
            Some(libc::ENODEV)
        );
    }
}
