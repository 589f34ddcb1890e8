//! Offloads of an interface, read and set as ethtool(8) does it (SIOCETHTOOL).

use super::interface::{control_socket, ioctl_by, request};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;

/// An offload that can be switched on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// TCP segmentation on transmit.
    Tso,
    /// Segmentation on transmit by the kernel, just before the driver.
    Gso,
    /// Joining of received packets.
    Gro,
    /// Checksums on transmit.
    TxChecksum,
    /// Checksums on receive.
    RxChecksum,
}

impl Offload {
    fn set_command(self) -> u32 {
        match self {
            Self::Tso => 0x1f,
            Self::Gso => 0x24,
            Self::Gro => 0x2c,
            Self::TxChecksum => 0x17,
            Self::RxChecksum => 0x15,
        }
    }
}

/// Runs the ethtool command in `words`, which the kernel reads and overwrites.
///
/// # Safety
/// `words` must be as long as the command makes the kernel write.
unsafe fn run(socket: BorrowedFd<'_>, interface: &str, words: &mut [u32]) -> io::Result<()> {
    let mut ifr = request(interface)?;
    ifr.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: `words` lives through the call; its length is the caller's promise.
    unsafe { ioctl_by(socket, SIOCETHTOOL, &mut ifr) }
}

/// Switches `offload` of `interface` on or off.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_ADMIN, `Unsupported` (EOPNOTSUPP) where the
/// device has it fixed, ENODEV if there is no such interface.
pub fn set_interface_offload(interface: &str, offload: Offload, on: bool) -> io::Result<()> {
    let mut value = [offload.set_command(), u32::from(on)];
    // SAFETY: the five set commands take a struct ethtool_value, two words.
    unsafe { run(control_socket()?.as_fd(), interface, &mut value) }
}

/// Names of the offloads that are active now, as `ethtool -k` knows them to the
/// kernel ("tx-tcp-segmentation", "tx-udp-segmentation", ...).
///
/// # Errors
/// ENODEV if there is no such interface, `Unsupported` if it has no such list.
pub fn interface_features(interface: &str) -> io::Result<Vec<String>> {
    InterfaceFeatures::of(interface)?.active()
}

/// The offloads of an interface by their names, for as long as somebody takes care of them: in the
/// network namespace in which this was made, wherever the thread is later.
#[derive(Debug)]
pub struct InterfaceFeatures {
    interface: String,
    control: OwnedFd,
    /// In the kernel's order.
    names: Vec<String>,
}

impl InterfaceFeatures {
    /// Those of `interface` in the calling thread's network namespace.
    ///
    /// # Errors
    /// ENODEV if there is no such interface, `Unsupported` if it has no such list.
    pub fn of(interface: &str) -> io::Result<Self> {
        let control = control_socket()?;
        let mask = (1u64 << ETH_SS_FEATURES).to_ne_bytes();
        let half = |i: usize| {
            u32::from_ne_bytes(std::array::from_fn(|k| {
                mask.get(i * 4 + k).copied().unwrap_or(0)
            }))
        };
        let mut info = [ETHTOOL_GSSET_INFO, 0, half(0), half(1), 0];
        // SAFETY: one bit is set in the mask, so the kernel writes one word behind the four of struct ethtool_sset_info.
        unsafe { run(control.as_fd(), interface, &mut info)? };
        let count = info[4] as usize;
        if count == 0 || count > 4096 {
            return Err(io::ErrorKind::Unsupported.into());
        }

        let mut strings = vec![0u32; 3 + count * ETH_GSTRING_LEN / 4];
        strings[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, info[4]]);
        // SAFETY: room for the three words of struct ethtool_gstrings and `count` names of 32 bytes; the number of
        // features is a constant of the running kernel.
        unsafe { run(control.as_fd(), interface, &mut strings)? };
        let name = |words: &[u32]| {
            let bytes = words.iter().flat_map(|w| w.to_ne_bytes());
            let bytes: Vec<u8> = bytes.take_while(|&b| b != 0).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let names = strings[3..]
            .chunks_exact(ETH_GSTRING_LEN / 4)
            .map(name)
            .collect();
        Ok(Self {
            interface: interface.to_owned(),
            control,
            names,
        })
    }

    /// Names of those that are active now.
    ///
    /// # Errors
    /// ENODEV if the interface is gone.
    pub fn active(&self) -> io::Result<Vec<String>> {
        let blocks = self.names.len().div_ceil(32);
        let mut features = vec![0u32; 2 + blocks * 4];
        features[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
        // SAFETY: room for the two words of struct ethtool_gfeatures and as many blocks of four words as it says.
        unsafe { run(self.control.as_fd(), &self.interface, &mut features)? };
        // Of a block's words (available, requested, active, never changed) the third.
        let is_active = |i: usize| {
            let word = features.get(2 + i / 32 * 4 + 2);
            word.is_some_and(|w| w >> (i % 32) & 1 == 1)
        };
        let named = self.names.iter().enumerate();
        let active = named.filter(|(i, _)| is_active(*i));
        Ok(active.map(|(_, name)| name.clone()).collect())
    }

    /// Asks for the one that is called `name`, or for it to be gone. Whether it is so afterwards is
    /// the device's affair, see [`active`](Self::active).
    ///
    /// # Errors
    /// `PermissionDenied` without CAP_NET_ADMIN, `Unsupported` where the kernel knows no such name,
    /// ENODEV if the interface is gone.
    pub fn switch(&self, name: &str, on: bool) -> io::Result<()> {
        let at = self.names.iter().position(|n| n == name);
        let at = at.ok_or(io::ErrorKind::Unsupported)?;
        let blocks = self.names.len().div_ceil(32);
        let mut request = vec![0u32; 2 + blocks * 2];
        request[..2].copy_from_slice(&[ETHTOOL_SFEATURES, blocks as u32]);
        // A block's words: which bits are meant, and what they are to be.
        if let Some([valid, wanted]) = request
            .get_mut(2 + at / 32 * 2..)
            .and_then(<[u32]>::first_chunk_mut)
        {
            *valid = 1 << (at % 32);
            *wanted = u32::from(on) << (at % 32);
        }
        // SAFETY: the kernel reads the two words of struct ethtool_sfeatures and as many blocks of two
        // words as it says, and writes none.
        unsafe { run(self.control.as_fd(), &self.interface, &mut request) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_segments_tcp_and_a_missing_interface_is_an_error() {
        let features = interface_features("lo").unwrap();
        assert!(
            features.iter().any(|f| f == "tx-tcp-segmentation"),
            "{features:?}"
        );
        assert!(features.iter().any(|f| f == "loopback"), "{features:?}");
        assert_eq!(
            interface_features("mefio-none").unwrap_err().raw_os_error(),
            Some(libc::ENODEV)
        );
        assert!(set_interface_offload("mefio-none", Offload::Gro, false).is_err());
        let of = InterfaceFeatures::of("lo").unwrap();
        let unknown = of.switch("no-such-offload", true).unwrap_err();
        assert_eq!(unknown.kind(), io::ErrorKind::Unsupported);
    }
}
