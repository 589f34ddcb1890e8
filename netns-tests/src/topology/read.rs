//! Reads a topology file, applies `--set` overrides, and unfolds its variants.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::check::{self, Bad};
use super::file::{Case, File, WanFile};
use super::Topology;
use crate::wan::WanConfig;

#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    #[error("{}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The message names line, column, key and what was expected.
    #[error("{}: {message}", path.display())]
    Syntax { path: PathBuf, message: String },
    #[error("{}: {key}: found {found}, expected {expected}", path.display())]
    Value {
        path: PathBuf,
        key: String,
        found: String,
        expected: String,
    },
    #[error("{origin}: {message}")]
    Override { origin: String, message: String },
}

/// One of the cases that a topology lists under `[variants]`, or its only one.
#[derive(Clone, Debug)]
pub struct Variant {
    /// For people, `loss 1%, open early`; empty if there is only one.
    pub label: String,
    pub topology: Topology,
    /// Nothing but the routers differs from the variant with this number, so
    /// that transports without MEF routers need not be run again.
    pub same_without_routers: Option<usize>,
}

/// Reads `path`, overrides what `sets` (`key=value`) say, and gives every variant.
///
/// # Errors
/// The file cannot be read, is no TOML, has unknown keys or impossible values.
pub fn read(path: &Path, sets: &[String]) -> Result<Vec<Variant>, TopologyError> {
    read_text(&text_of(path)?, path, sets)
}

/// As [`read`], of a `text` that came from `path`.
///
/// # Errors
/// As [`read`].
pub fn read_text(text: &str, path: &Path, sets: &[String]) -> Result<Vec<Variant>, TopologyError> {
    let syntax = |e: toml::de::Error| TopologyError::Syntax {
        path: path.to_owned(),
        message: e.to_string().trim_end().to_owned(),
    };
    // Typed first: these errors know line and column.
    let file: File = toml::from_str(text).map_err(syntax)?;
    let mut base: Table = toml::from_str(text).map_err(syntax)?;
    let mut lists = file.variants;
    let cases = file.variant;
    base.remove("variants");
    base.remove("variant");
    for set in sets {
        let origin = format!("--set {set}");
        let (key, value) = set.split_once('=').ok_or_else(|| TopologyError::Override {
            origin: origin.clone(),
            message: "expected KEY=VALUE such as wan.loss=0.05".to_owned(),
        })?;
        let (key, value) = (long_key(key.trim()), parse_value(value.trim()));
        lists.retain(|k, _| long_key(k) != key);
        put(&mut base, &key, value, &origin)?;
    }
    let mut variants: Vec<Variant> = Vec::new();
    let mut without_routers: Vec<Table> = Vec::new();
    for case in product(&lists, &cases) {
        let mut table = base.clone();
        let mut origin = path.display().to_string();
        for set in sets {
            origin += &format!(" --set {set}");
        }
        for (key, value) in &case.values {
            origin = format!("{}: variants: {key} = {value}", path.display());
            put(&mut table, &long_key(key), value.clone(), &origin)?;
        }
        let file: File = Value::Table(table.clone())
            .try_into()
            .map_err(|e: toml::de::Error| TopologyError::Override {
                origin,
                message: e.to_string().trim_end().replace('\n', " "),
            })?;
        let topology = checked(path, &file)?;
        table.remove("router");
        let same_without_routers = without_routers.iter().position(|t| *t == table);
        without_routers.push(table);
        variants.push(Variant {
            label: case.labels.join(", "),
            topology,
            same_without_routers,
        });
    }
    Ok(variants)
}

/// Reads a file for `mef lab wan`: a `[wan]` table alone, or a whole topology.
///
/// # Errors
/// As [`read`].
pub fn read_wan(path: &Path) -> Result<WanConfig, TopologyError> {
    let text = text_of(path)?;
    let wan = match toml::from_str::<WanFile>(&text) {
        Ok(file) => file.wan,
        Err(e) => match toml::from_str::<File>(&text) {
            Ok(file) => file.wan,
            Err(_) => {
                return Err(TopologyError::Syntax {
                    path: path.to_owned(),
                    message: e.to_string().trim_end().to_owned(),
                })
            }
        },
    };
    check::wan(&wan, folder(path)).map_err(|b| value_error(path, b))
}

fn text_of(path: &Path) -> Result<String, TopologyError> {
    std::fs::read_to_string(path).map_err(|source| TopologyError::Read {
        path: path.to_owned(),
        source,
    })
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn value_error(path: &Path, b: Bad) -> TopologyError {
    TopologyError::Value {
        path: path.to_owned(),
        key: b.key,
        found: b.found,
        expected: b.expected,
    }
}

fn checked(path: &Path, file: &File) -> Result<Topology, TopologyError> {
    let name = path
        .file_stem()
        .map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    check::topology(&name, file, folder(path)).map_err(|b| value_error(path, b))
}

/// `loss` and `open` are short for the keys that are varied most.
fn long_key(key: &str) -> String {
    match key {
        "loss" | "rtt" | "rate" | "queue" | "mtu" | "jitter" => format!("wan.{key}"),
        "open" | "configured" | "auto" | "engine" | "driver" | "workers" => format!("router.{key}"),
        _ => key.to_owned(),
    }
}

fn parse_value(text: &str) -> Value {
    toml::from_str::<Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Puts `value` at a dotted `key`; numbers in it index arrays, tables appear as needed.
fn put(table: &mut Table, key: &str, value: Value, origin: &str) -> Result<(), TopologyError> {
    let fail = |message: String| TopologyError::Override {
        origin: origin.to_owned(),
        message,
    };
    let (first, rest) = match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            return Ok(());
        }
        Some(parts) => parts,
    };
    let mut at = table
        .entry(first)
        .or_insert_with(|| Value::Table(Table::new()));
    let mut rest = rest;
    while let Value::Array(items) = at {
        let (index, deeper) = rest.split_once('.').unwrap_or((rest, ""));
        let n = items.len();
        at = index
            .parse::<usize>()
            .ok()
            .and_then(|i| items.get_mut(i))
            .ok_or_else(|| {
                fail(format!(
                    "{first} has {n} entries, 0 to {}; found {index:?}",
                    n.max(1) - 1
                ))
            })?;
        rest = deeper;
        if rest.is_empty() {
            *at = value;
            return Ok(());
        }
    }
    match at {
        Value::Table(inner) => put(inner, rest, value, origin),
        other => Err(fail(format!(
            "{first} is {}, not a table",
            other.type_str()
        ))),
    }
}

#[derive(Clone, Default)]
struct Choice {
    labels: Vec<String>,
    values: Vec<(String, Value)>,
}

/// Every combination of the listed values with every case, the cases slowest.
fn product(lists: &BTreeMap<String, Vec<Value>>, cases: &[Case]) -> Vec<Choice> {
    let mut all: Vec<Choice> = cases
        .iter()
        .map(|c| Choice {
            labels: vec![c.label.clone()],
            values: c.set.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        })
        .collect();
    if all.is_empty() {
        all.push(Choice::default());
    }
    for (key, values) in lists.iter().filter(|(_, v)| !v.is_empty()) {
        all = all
            .into_iter()
            .flat_map(|choice| {
                values.iter().map(move |v| {
                    let mut choice = choice.clone();
                    choice.labels.extend(label(key, v));
                    choice.values.push((key.clone(), v.clone()));
                    choice
                })
            })
            .collect();
    }
    all
}

/// For people. The open mode has no part in it: results carry it by itself, and
/// Linux as a router has none.
fn label(key: &str, value: &Value) -> Option<String> {
    let short = key.rsplit('.').next().unwrap_or(key);
    if long_key(key) == "router.open" {
        return None;
    }
    let number = match value {
        Value::Float(f) => Some(*f),
        Value::Integer(i) => Some(*i as f64),
        _ => None,
    };
    Some(match (short, number, value) {
        ("loss" | "duplicate", Some(p), _) => {
            // Rounded to a ten-thousandth of a percent, so that 0.07 is 7% and not 7.000000000000001%.
            format!(
                "{}% {}",
                (p * 1e6).round() / 1e4,
                if short == "loss" {
                    "loss"
                } else {
                    "duplicates"
                }
            )
        }
        (_, _, Value::String(s)) => format!("{short} {s}"),
        _ => format!("{short} {value}"),
    })
}

#[cfg(test)]
mod tests;
