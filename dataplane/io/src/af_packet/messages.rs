//! The message headers that recvmmsg and sendmmsg take: of each frame one header, which
//! leads to the vnet header, where the socket has one, and to the frame behind it.

use super::vnet;

/// Frames that one system call takes at most.
pub(super) const BATCH: usize = 64;

/// The parts of one message: vnet header and frame, or the frame alone.
pub(super) type Parts = [libc::iovec; 2];

const NOTHING: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Parts that [`lead`] has to fill.
pub(super) const NO_PARTS: [Parts; BATCH] = [[NOTHING; 2]; BATCH];

/// Headers of messages without any part.
pub(super) fn empty() -> [libc::mmsghdr; BATCH] {
    // SAFETY: mmsghdr is integers and raw pointers, for which zeroes are valid.
    unsafe { std::mem::zeroed() }
}

/// Makes `header` lead to `parts`, and these to `vnet` and to the `length` bytes at `frame`. Whoever
/// passes the header to the kernel sees to it that all of them live until the call returns.
pub(super) fn lead(
    header: &mut libc::msghdr,
    parts: &mut Parts,
    vnet: Option<&mut [u8; vnet::LEN]>,
    frame: *mut u8,
    length: usize,
) {
    let frame = libc::iovec {
        iov_base: frame.cast(),
        iov_len: length,
    };
    header.msg_iovlen = match vnet {
        Some(vnet) => {
            let first = libc::iovec {
                iov_base: vnet.as_mut_ptr().cast(),
                iov_len: vnet.len(),
            };
            *parts = [first, frame];
            2
        }
        None => {
            parts[0] = frame;
            1
        }
    };
    header.msg_iov = parts.as_mut_ptr();
}
