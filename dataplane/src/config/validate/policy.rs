//! A `[[policy]]` table: what it matches, and what it decides.

use mef_protocol::classes::Class;
use toml::Spanned;

use super::{Checked, Text, Validator};
use crate::config::raw::RawPolicy;
use crate::config::{Fallback, Mode, Policy, Protocol};

impl Validator<'_> {
    pub(super) fn policy(&self, raw: &RawPolicy) -> Checked<Policy> {
        let net =
            |text: &Option<Text>, key: &str| text.as_ref().map(|t| self.prefix(t, key)).transpose();
        let protocols = [
            ("tcp", Protocol::Tcp),
            ("udp", Protocol::Udp),
            ("icmp", Protocol::Icmp),
        ];
        let protocol = raw
            .protocol
            .as_ref()
            .map(|t| self.choice(t, "policy.protocol", &protocols))
            .transpose()?;
        let port = |n: &Option<Spanned<i64>>, key: &str| {
            if let Some(n) = n.as_ref().filter(|_| protocol == Some(Protocol::Icmp)) {
                let advice = "remove the port, or match tcp or udp";
                return Err(self.source.error(
                    &n.span(),
                    key,
                    "a port beside protocol = \"icmp\"",
                    "no port, as ICMP has none",
                    advice,
                ));
            }
            Ok(self.number(n.as_ref(), key, 1..=65535)?.map(|n| n as u16))
        };
        let modes = [
            ("split", Mode::Split),
            ("datagram", Mode::Datagram),
            ("plain", Mode::Plain),
        ];
        if let Some(text) = raw.mode.as_ref().filter(|t| t.get_ref() == "steer") {
            return Err(self.wrong(
                text,
                "policy.mode",
                "\"split\", \"datagram\" or \"plain\", as this version steers no flows",
                "take \"datagram\" for TCP that must stay end to end",
            ));
        }
        let mode = raw
            .mode
            .as_ref()
            .map(|t| self.choice(t, "policy.mode", &modes))
            .transpose()?;
        if let (Some(text), Some(Mode::Split), Some(Protocol::Udp | Protocol::Icmp)) =
            (&raw.mode, mode, protocol)
        {
            return Err(self.wrong(
                text,
                "policy.mode",
                "\"datagram\" or \"plain\", as only TCP can be split",
                "change the mode, or match protocol = \"tcp\"",
            ));
        }
        let classes = [
            ("latency", Class::Latency),
            ("balanced", Class::Balanced),
            ("bulk", Class::Bulk),
        ];
        let fallbacks = [("refuse", Fallback::Refuse), ("plain", Fallback::Plain)];
        let fallback = raw.fallback.as_ref();
        let fallback_to = fallback
            .map(|t| self.choice(t, "policy.fallback", &fallbacks))
            .transpose()?;
        if let (Some(text), Some(Mode::Plain)) = (fallback, mode) {
            return Err(self.wrong(
                text,
                "policy.fallback",
                "no fallback beside mode = \"plain\", which needs no peer",
                "remove one of the two",
            ));
        }
        let weight = raw.weight.as_ref();
        if let Some(w) = weight.filter(|w| !(0.01..=1000.0).contains(w.get_ref())) {
            let found = w.get_ref().to_string();
            return Err(self.source.error(
                &w.span(),
                "policy.weight",
                found,
                "a weight from 0.01 to 1000",
                "weights are relative to the default of 1",
            ));
        }
        Ok(Policy {
            source: net(&raw.source, "policy.source")?,
            destination: net(&raw.destination, "policy.destination")?,
            protocol,
            port: port(&raw.port, "policy.port")?,
            source_port: port(&raw.source_port, "policy.source_port")?,
            mode,
            open: self.open(raw.open.as_ref(), "policy.open")?,
            weight: weight.map(|w| *w.get_ref()),
            class: raw
                .class
                .as_ref()
                .map(|t| self.choice(t, "policy.class", &classes))
                .transpose()?,
            fallback: fallback_to,
        })
    }
}
