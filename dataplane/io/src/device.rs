//! The name of a DPDK device as a configuration spells it: a PCI address, or a
//! virtual device with its arguments. Known to every build, so that a program
//! without DPDK can still say what is wrong with a name.

use std::fmt;
use std::str::FromStr;

/// A PCI address such as `0000:01:00.0`, or a virtual device such as `net_af_packet0,iface=eth0`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DeviceName {
    Pci(String),
    Virtual {
        /// With its number, `net_af_packet0`.
        name: String,
        /// In their order, keys with values.
        arguments: Vec<(String, String)>,
    },
}

/// DPDK keeps names in 64 bytes.
const MAX_NAME: usize = 63;

impl DeviceName {
    /// The name under which DPDK knows the device.
    pub fn name(&self) -> &str {
        match self {
            Self::Pci(address) => address,
            Self::Virtual { name, .. } => name,
        }
    }

    /// The Linux interface that a virtual device stands on, such as that of `net_af_packet`.
    pub fn interface(&self) -> Option<&str> {
        match self {
            Self::Pci(_) => None,
            Self::Virtual { name, arguments } => {
                let on_interface =
                    name.starts_with("net_af_packet") || name.starts_with("net_af_xdp");
                arguments
                    .iter()
                    .find(|(key, _)| on_interface && key == "iface")
                    .map(|(_, value)| value.as_str())
            }
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        if let Self::Virtual { arguments, .. } = self {
            for (key, value) in arguments {
                write!(f, ",{key}={value}")?;
            }
        }
        Ok(())
    }
}

/// What a device's name has to look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a PCI address such as \"0000:01:00.0\", or a virtual device such as \"net_af_packet0,iface=eth0\"")]
pub struct DeviceNameError;

fn is_pci(text: &str) -> bool {
    let hex = |s: &str, len: usize| s.len() == len && s.bytes().all(|b| b.is_ascii_hexdigit());
    let mut parts = text.split(':');
    let (domain, bus, rest) = (parts.next(), parts.next(), parts.next());
    let (Some(domain), Some(bus), Some((device, function)), None) = (
        domain,
        bus,
        rest.and_then(|r| r.split_once('.')),
        parts.next(),
    ) else {
        return false;
    };
    hex(domain, 4) && hex(bus, 2) && hex(device, 2) && matches!(function.as_bytes(), [b'0'..=b'7'])
}

impl FromStr for DeviceName {
    type Err = DeviceNameError;

    fn from_str(text: &str) -> Result<Self, DeviceNameError> {
        if is_pci(text) {
            return Ok(Self::Pci(text.to_ascii_lowercase()));
        }
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default();
        let word =
            |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let known = name.starts_with("net_") || name.starts_with("eth_");
        if !known || !word(name) || name.len() > MAX_NAME {
            return Err(DeviceNameError);
        }
        let mut arguments = Vec::new();
        for part in parts {
            let (key, value) = part.split_once('=').ok_or(DeviceNameError)?;
            let odd = |c: char| c.is_whitespace() || c.is_control();
            if !word(&key.replace('-', "_")) || value.is_empty() || value.contains(odd) {
                return Err(DeviceNameError);
            }
            arguments.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self::Virtual {
            name: name.to_owned(),
            arguments,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        for (text, name, interface) in [
            ("0000:01:00.0", "0000:01:00.0", None),
            ("0001:af:1f.7", "0001:af:1f.7", None),
            ("net_null0", "net_null0", None),
            ("net_null1,no-rx=1", "net_null1", None),
            ("net_af_packet0,iface=lan1", "net_af_packet0", Some("lan1")),
            (
                "net_af_xdp1,start_queue=0,iface=eth0",
                "net_af_xdp1",
                Some("eth0"),
            ),
            // A tap's interface is one that the device makes.
            ("net_tap0,iface=t0", "net_tap0", None),
            ("net_ring1,nodeaction=in:0:ATTACH", "net_ring1", None),
        ] {
            let device: DeviceName = text.parse().unwrap();
            assert_eq!(device.to_string(), text);
            assert_eq!((device.name(), device.interface()), (name, interface));
        }
        assert_eq!(
            "0000:AF:00.1".parse(),
            Ok(DeviceName::Pci("0000:af:00.1".into()))
        );
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let long = format!("net_{}", "x".repeat(60));
        for text in [
            "",
            "eth0",
            "01:00.0",
            "0000:01:00",
            "0000:01:00.8",
            "0000:01:00.0:1",
            "0000:1:00.0",
            "net_af_packet0,",
            "net_af_packet0,iface",
            "net_af_packet0,iface=",
            "net_af_packet0,iface=a b",
            "net af",
            "-w",
            &long,
        ] {
            assert_eq!(text.parse::<DeviceName>(), Err(DeviceNameError), "{text}");
        }
    }
}
