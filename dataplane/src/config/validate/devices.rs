//! What a port is opened on: a network interface, or a device of DPDK.

use mef_io::DeviceName;
use toml::Spanned;

use super::{Checked, Text, Validator};
use crate::config::raw::RawPort;
use crate::config::{Driver, Port};

impl Validator<'_> {
    /// The driver of a port and what it drives.
    pub(super) fn device(&self, raw: &RawPort) -> Checked<(Driver, String)> {
        let driver = match &raw.driver {
            Some(text) => self.choice(
                text,
                "port.driver",
                &[("af_packet", Driver::AfPacket), ("dpdk", Driver::Dpdk)],
            )?,
            None => Driver::default(),
        };
        let (wanted, other, name) = match driver {
            Driver::AfPacket => (&raw.interface, &raw.device, "interface"),
            Driver::Dpdk => (&raw.device, &raw.interface, "device"),
        };
        if let Some(text) = other {
            let (key, advice) = match driver {
                Driver::AfPacket => (
                    "port.device",
                    "name an interface instead, or add driver = \"dpdk\"",
                ),
                Driver::Dpdk => (
                    "port.interface",
                    "give device = \"net_af_packet0,iface=NAME\" to use an interface through DPDK",
                ),
            };
            let expected = format!("no such key beside driver = \"{}\"", driver.name());
            return Err(self.wrong(text, key, &expected, advice));
        }
        let Some(text) = wanted else {
            let advice = match driver {
                Driver::AfPacket => "add it; `ip link` lists what there is",
                Driver::Dpdk => "add it, such as device = \"0000:01:00.0\"",
            };
            return Err(self.source.error(
                &raw.name.span(),
                format!("port.{name}"),
                "nothing",
                "this key, which has no default",
                advice,
            ));
        };
        match driver {
            Driver::AfPacket => self.interface_name(text),
            Driver::Dpdk => self.device_name(raw, text),
        }
        .map(|name| (driver, name))
    }

    fn interface_name(&self, text: &Text) -> Checked<String> {
        let interface = text.get_ref();
        let odd = |c: char| c.is_whitespace() || c == '/' || c.is_control();
        if interface.is_empty()
            || interface.len() > 15
            || interface.contains(odd)
            || interface.starts_with('.')
        {
            return Err(self.wrong(
                text,
                "port.interface",
                "an interface name of 1 to 15 characters",
                "take one that `ip link` lists",
            ));
        }
        Ok(interface.clone())
    }

    fn device_name(&self, raw: &RawPort, text: &Text) -> Checked<String> {
        if let (Some(driver), false) = (&raw.driver, self.host.has_dpdk()) {
            return Err(self.wrong(
                driver,
                "port.driver",
                "\"af_packet\", as this program was built without DPDK",
                "change it, or build with `cargo build --release`, without --no-default-features",
            ));
        }
        let device: DeviceName = text
            .get_ref()
            .parse()
            .map_err(|e: mef_io::DeviceNameError| {
                let advice = "`dpdk-devbind.py -s` lists PCI devices";
                self.wrong(text, "port.device", &e.to_string(), advice)
            })?;
        Ok(device.to_string())
    }

    /// Every device belongs to one port, and all ports have the same driver: packets go
    /// from port to port in the memory that they were received into.
    pub(super) fn distinct_devices(&self, raw: &[Spanned<RawPort>]) -> Checked<()> {
        let name = |p: &Port| match p.interface.parse::<DeviceName>() {
            Ok(device) if p.driver == Driver::Dpdk => Some(device.name().to_owned()),
            _ => None,
        };
        for (i, (port, raw)) in self.ports.iter().zip(raw).enumerate() {
            let raw = raw.get_ref();
            let before = self.ports.get(..i).unwrap_or(&[]);
            let twice =
                name(port).is_some_and(|n| before.iter().any(|p| name(p).as_ref() == Some(&n)));
            if let (true, Some(text)) = (twice, &raw.device) {
                let advice = "change or remove one of the two";
                let expected = "every device in one port only, virtual ones with a number each";
                return Err(self.wrong(text, "port.device", expected, advice));
            }
            let first = before.first().map_or(port.driver, |p| p.driver);
            if first != port.driver {
                let expected = format!("\"{}\" as on the first port", first.name());
                let advice = "use one driver for all ports; DPDK reaches an interface with device = \"net_af_packet0,iface=NAME\"";
                let text = raw.driver.as_ref().unwrap_or(&raw.name);
                return Err(self.wrong(text, "port.driver", &expected, advice));
            }
        }
        Ok(())
    }

    /// What the machine has to have for the ports.
    pub(super) fn devices(&self, raw: &[Spanned<RawPort>]) -> Checked<()> {
        for (port, raw) in self.ports.iter().zip(raw) {
            let raw = raw.get_ref();
            let device = match port.driver {
                Driver::AfPacket => None,
                Driver::Dpdk => port.interface.parse::<DeviceName>().ok(),
            };
            let interface = match &device {
                None => Some(port.interface.as_str()),
                Some(device) => device.interface(),
            };
            if interface.is_some_and(|i| !self.host.interface_exists(i)) {
                let (text, key) = match &device {
                    None => (&raw.interface, "port.interface"),
                    Some(_) => (&raw.device, "port.device"),
                };
                return Err(self.wrong(
                    text.as_ref().unwrap_or(&raw.name),
                    key,
                    "an interface that exists here",
                    "take one that `ip link` lists, or create it",
                ));
            }
            if let Some(DeviceName::Pci(address)) = &device {
                if !self.host.pci_device_exists(address) {
                    return Err(self.wrong(
                        raw.device.as_ref().unwrap_or(&raw.name),
                        "port.device",
                        "a PCI device that exists here",
                        "`dpdk-devbind.py -s` lists them",
                    ));
                }
            }
        }
        Ok(())
    }
}
