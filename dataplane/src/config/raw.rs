//! The file as it is written: every key with its place in the text, nothing
//! interpreted yet. What TOML or serde refuse (syntax, an unknown or missing
//! key, a value of the wrong type) becomes a [`ConfigError`] here.

use core::ops::Range;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use super::error::{ConfigError, Source};

type Text = Spanned<String>;
type Int = Spanned<i64>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub router: Spanned<RawRouter>,
    #[serde(default)]
    pub port: Vec<Spanned<RawPort>>,
    #[serde(default)]
    pub peer: Vec<Spanned<RawPeer>>,
    #[serde(default)]
    pub route: Vec<Spanned<RawRoute>>,
    #[serde(default)]
    pub policy: Vec<Spanned<RawPolicy>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRouter {
    pub name: Option<Text>,
    pub private_key: Text,
    pub memory: Option<Text>,
    pub host_buffer: Option<Text>,
    pub engine: Option<Text>,
    pub open: Option<Text>,
    pub control: Option<Text>,
    pub metrics: Option<Text>,
    pub realtime: Option<bool>,
    pub adopt: Option<Text>,
    pub drain: Option<Text>,
    pub state: Option<Text>,
    pub workers: Option<Int>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPort {
    pub name: Text,
    pub interface: Option<Text>,
    pub device: Option<Text>,
    pub driver: Option<Text>,
    pub addresses: Spanned<Vec<Text>>,
    pub mtu: Option<Int>,
    pub listen: Option<Int>,
    pub advertise: Option<Spanned<bool>>,
    pub pardon_losses: Option<bool>,
    pub merge_udp: Option<bool>,
    pub line: Option<Spanned<RawLine>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLine {
    pub up: Text,
    pub down: Text,
    pub target: Option<Text>,
    pub overhead: Option<Int>,
    pub dscp: Option<Text>,
    pub burst: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPeer {
    pub name: Text,
    pub public_key: Text,
    pub port: Text,
    pub endpoint: Option<Text>,
    pub prefixes: Spanned<Vec<Text>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoute {
    pub prefix: Text,
    pub via: Text,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPolicy {
    pub source: Option<Text>,
    pub destination: Option<Text>,
    pub protocol: Option<Text>,
    pub port: Option<Int>,
    pub source_port: Option<Int>,
    pub mode: Option<Text>,
    pub open: Option<Text>,
    pub weight: Option<Spanned<f64>>,
    pub class: Option<Text>,
    pub fallback: Option<Text>,
}

pub(super) fn read(text: &str, file: &Path) -> Result<RawConfig, ConfigError> {
    toml::from_str(text).map_err(|e| refused(&Source { text, file }, e.message(), e.span()))
}

/// Turns what the TOML reader says into found, expected and advice.
fn refused(source: &Source<'_>, message: &str, span: Option<Range<usize>>) -> ConfigError {
    let at = span.unwrap_or(0..0);
    let place = Place::of(source.text, at.start);
    if let Some((unknown, accepted)) = message
        .strip_prefix("unknown field `")
        .and_then(|m| m.split_once("`, "))
    {
        // Without a key on its line it is a table's header that is unknown.
        let key = if place.key.is_some() {
            place.full()
        } else {
            place.table.unwrap_or(unknown).to_owned()
        };
        let accepted = accepted.trim_start_matches("expected ");
        return source.error(
            &at,
            key,
            "a key that does not exist here",
            accepted,
            "correct its spelling or remove it",
        );
    }
    if let Some(missing) = message
        .strip_prefix("missing field `")
        .and_then(|m| m.split_once('`'))
        .map(|(k, _)| k)
    {
        // The span is the whole table, so its start is the header that lacks the key.
        let table = place.table.map_or(String::new(), |t| format!("{t}."));
        return source.error(
            &at,
            format!("{table}{missing}"),
            "nothing",
            "this key, which has no default",
            "add it",
        );
    }
    let types = message
        .strip_prefix("invalid type: ")
        .or(message.strip_prefix("invalid value: "));
    if let Some((found, expected)) = types.and_then(|m| m.rsplit_once(", expected ")) {
        let expected = match expected {
            "i64" => "a whole number",
            "f64" => "a number",
            other => other,
        };
        return source.error(&at, place.full(), found, expected, "change its value");
    }
    if message.starts_with("duplicate key") {
        return source.error(
            &at,
            place.full(),
            "a second value for the same key",
            "one value",
            "remove one of the two",
        );
    }
    let key = if place.key.is_some() {
        place.full()
    } else {
        "syntax".to_owned()
    };
    source.error(
        &at,
        key,
        message.replace('\n', ", "),
        "TOML (https://toml.io)",
        "correct the line",
    )
}

/// Where in the text an offset is: its table and its key, as far as the lines show them.
struct Place<'a> {
    table: Option<&'a str>,
    key: Option<&'a str>,
}

impl<'a> Place<'a> {
    fn of(text: &'a str, offset: usize) -> Self {
        let mut place = Place {
            table: None,
            key: None,
        };
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            if start > offset {
                break;
            }
            let trimmed = line.trim();
            if let Some(name) = trimmed
                .strip_prefix('[')
                .filter(|_| !line.starts_with([' ', '\t']))
            {
                let name = name
                    .trim_start_matches('[')
                    .split(']')
                    .next()
                    .unwrap_or_default()
                    .trim();
                place = Place {
                    table: Some(name),
                    key: None,
                };
            } else if let Some((key, _)) = trimmed
                .split_once('=')
                .filter(|_| !trimmed.starts_with(['#', '"']))
            {
                place.key = Some(key.trim());
            }
            start += line.len();
        }
        place
    }

    fn full(&self) -> String {
        match (self.table, self.key) {
            (Some(table), Some(key)) => format!("{table}.{key}"),
            (Some(one), None) | (None, Some(one)) => one.to_owned(),
            (None, None) => "file".to_owned(),
        }
    }
}
