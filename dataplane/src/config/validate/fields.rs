//! Single values: one method per kind, each with the one message it can fail with.

use core::ops::{Range, RangeInclusive};
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use toml::Spanned;

use super::{Checked, Text, Validator};
use crate::config::error::ConfigError;
use crate::config::OpenMode;
use crate::fib::{is_martian, is_martian_prefix};

impl Validator<'_> {
    pub(super) fn wrong(
        &self,
        text: &Text,
        key: &str,
        expected: &str,
        advice: &str,
    ) -> ConfigError {
        self.source.error(
            &text.span(),
            key,
            format!("\"{}\"", text.get_ref()),
            expected,
            advice,
        )
    }

    pub(super) fn name(&self, text: &Text, key: &str) -> Checked<String> {
        let name = text.get_ref();
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if (1..=32).contains(&name.len())
            && name.bytes().all(plain)
            && name.parse::<IpAddr>().is_err()
        {
            return Ok(name.clone());
        }
        Err(self.wrong(
            text,
            key,
            "1 to 32 letters, digits, '-', '_' or '.', and no address",
            "choose such a name",
        ))
    }

    pub(super) fn parse<T, E: ToString>(
        &self,
        text: &Text,
        key: &str,
        parse: fn(&str) -> Result<T, E>,
    ) -> Checked<T> {
        parse(text.get_ref())
            .map_err(|e| self.wrong(text, key, &e.to_string(), "write it in one of these forms"))
    }

    pub(super) fn choice<T: Copy>(
        &self,
        text: &Text,
        key: &str,
        choices: &[(&str, T)],
    ) -> Checked<T> {
        choices
            .iter()
            .find(|(name, _)| name == text.get_ref())
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let names: Vec<String> = choices
                    .iter()
                    .map(|(name, _)| format!("\"{name}\""))
                    .collect();
                self.wrong(
                    text,
                    key,
                    &names.join(" or "),
                    "take one of these, in lower case",
                )
            })
    }

    pub(super) fn open(&self, text: Option<&Text>, key: &str) -> Checked<Option<OpenMode>> {
        text.map(|t| {
            self.choice(
                t,
                key,
                &[("confirm", OpenMode::Confirm), ("early", OpenMode::Early)],
            )
        })
        .transpose()
    }

    pub(super) fn number(
        &self,
        n: Option<&Spanned<i64>>,
        key: &str,
        range: RangeInclusive<i64>,
    ) -> Checked<Option<i64>> {
        match n {
            Some(n) if !range.contains(n.get_ref()) => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                Err(self.source.error(
                    &n.span(),
                    key,
                    n.get_ref().to_string(),
                    expected,
                    "change it, or leave it out for the default",
                ))
            }
            n => Ok(n.map(|n| *n.get_ref())),
        }
    }

    pub(super) fn path(&self, text: &Text, key: &str) -> Checked<PathBuf> {
        if text.get_ref().is_empty() || text.get_ref().contains('\0') {
            return Err(self.wrong(
                text,
                key,
                "a path, absolute or relative to this file",
                "give one",
            ));
        }
        Ok(self
            .source
            .file
            .parent()
            .unwrap_or(Path::new(""))
            .join(text.get_ref()))
    }

    pub(super) fn prefix(&self, text: &Text, key: &str) -> Checked<IpNet> {
        let net: IpNet = text.get_ref().parse().map_err(|_| {
            self.wrong(
                text,
                key,
                "a prefix such as \"10.2.0.0/24\" or \"2001:db8:2::/48\"",
                "write address/length; one host is /32 or /128",
            )
        })?;
        if net.trunc() != net {
            let expected = format!("a prefix without host bits, such as \"{}\"", net.trunc());
            return Err(self.wrong(text, key, &expected, "write it so, or lengthen the prefix"));
        }
        if is_martian_prefix(net) {
            let expected = match net {
                IpNet::V4(_) => {
                    "a prefix that can be routed, not 0/8, 127/8, multicast or reserved"
                }
                IpNet::V6(_) => "a prefix that can be routed, not ::/64, link-local or multicast",
            };
            return Err(self.wrong(text, key, expected, "correct or remove it"));
        }
        Ok(net)
    }

    /// An address of the router's own with its network.
    pub(super) fn address(&self, text: &Text) -> Checked<IpNet> {
        let key = "port.addresses";
        let net: IpNet = text
            .get_ref()
            .parse()
            .ok()
            .filter(|net: &IpNet| net.prefix_len() > 0)
            .ok_or_else(|| {
                self.wrong(
                    text,
                    key,
                    "an address with its network's length, such as \"10.1.0.1/24\" or \"2001:db8:1::1/64\"",
                    "write address/length",
                )
            })?;
        let (edge, expected) = match net {
            IpNet::V4(net) => (
                net.prefix_len() < 31
                    && (net.addr() == net.network() || net.addr() == net.broadcast()),
                "an address that a host can have, not a network's first or last, 0/8, 127/8, multicast or reserved",
            ),
            // The first address of a network stands for all of its routers (RFC 4291 section 2.6.1).
            IpNet::V6(net) => (
                net.prefix_len() < 127 && net.addr() == net.network(),
                "an address that a host can have, not a network's first, ::/64, link-local (every port has one by itself) or multicast",
            ),
        };
        if edge || is_martian(net.addr()) {
            return Err(self.wrong(text, key, expected, "choose another address"));
        }
        Ok(net)
    }

    pub(super) fn at_most<T>(&self, tables: &[Spanned<T>], most: usize, key: &str) -> Checked<()> {
        match tables.get(most) {
            Some(t) => {
                let found = format!("{} tables [[{key}]]", tables.len());
                Err(self.source.error(
                    &t.span(),
                    key,
                    found,
                    format!("at most {most}"),
                    "spread them over several routers",
                ))
            }
            None => Ok(()),
        }
    }

    pub(super) fn unique<'t>(
        &self,
        texts: impl Iterator<Item = &'t Text>,
        key: &str,
        expected: &str,
    ) -> Checked<()> {
        let mut seen: HashMap<&str, Range<usize>> = HashMap::new();
        for text in texts {
            if let Some(first) = seen.insert(text.get_ref(), text.span()) {
                let found = format!(
                    "\"{}\" again, first on line {}",
                    text.get_ref(),
                    self.source.line(first.start)
                );
                return Err(self.source.error(
                    &text.span(),
                    key,
                    found,
                    expected,
                    "change or remove one of the two",
                ));
            }
        }
        Ok(())
    }
}
