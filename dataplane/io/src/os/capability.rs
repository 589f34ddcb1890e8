//! What this process may do, so that a refusal can be announced by name before
//! anything is started. See capabilities(7).

/// A capability that the router or its lab needs somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    NetAdmin,
    NetRaw,
    SysAdmin,
    SysNice,
}

impl Cap {
    /// As capabilities(7) and `setcap` write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysNice => "CAP_SYS_NICE",
        }
    }
    fn bit(self) -> u32 {
        match self {
            Self::NetAdmin => 12,
            Self::NetRaw => 13,
            Self::SysAdmin => 21,
            Self::SysNice => 23,
        }
    }
}

/// Whether the calling thread has `cap` in its effective set; `false` also where
/// the set cannot be read.
pub fn has_capability(cap: Cap) -> bool {
    std::fs::read_to_string("/proc/thread-self/status")
        .ok()
        .and_then(|status| effective(&status))
        .is_some_and(|set| set >> cap.bit() & 1 == 1)
}

fn effective(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_effective_set() {
        assert_eq!(
            effective("CapPrm:\tff\nCapEff:\t0000000000003000\n"),
            Some(0x3000)
        );
        assert_eq!(effective("CapPrm:\t00\n"), None);
        assert_eq!(effective("CapEff:\tnothing\n"), None);
    }

    #[test]
    fn has_what_a_raw_socket_needs_exactly_when_one_opens() {
        // SAFETY: creates a descriptor and closes it.
        let opens = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
            fd >= 0 && libc::close(fd) == 0
        };
        assert_eq!(has_capability(Cap::NetRaw), opens);
    }
}
