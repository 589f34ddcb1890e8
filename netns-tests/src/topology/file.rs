//! A topology as it is written: the TOML keys, their types and their defaults.
//! `topologies/README.md` explains each key to people.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::units::{QueueText, RateText, SizeText, TimeText};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub description: String,
    #[serde(default = "default_seconds")]
    pub seconds: u32,
    #[serde(default)]
    pub site: Sites,
    #[serde(default)]
    pub wan: Wan,
    #[serde(default)]
    pub router: Router,
    #[serde(default)]
    pub host: AllHosts,
    #[serde(default)]
    pub load: Vec<Load>,
    #[serde(default)]
    pub probe: Probe,
    #[serde(default)]
    pub variants: BTreeMap<String, Vec<toml::Value>>,
    #[serde(default)]
    pub variant: Vec<Case>,
}

/// A case that is more than one changed value.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    pub label: String,
    #[serde(default)]
    pub set: toml::Table,
}

fn default_seconds() -> u32 {
    15
}

/// A file of `mef lab wan`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WanFile {
    #[serde(default)]
    pub wan: Wan,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Sites {
    pub a: Site,
    pub b: Site,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Site {
    pub host: Vec<Host>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Host {
    pub access_rtt: Option<TimeText>,
    pub access_loss: Option<f64>,
    #[serde(default)]
    pub foreign: bool,
}

/// One file, or several of which the first that exists is taken.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Paths {
    One(String),
    Several(Vec<String>),
}

impl Paths {
    /// The first that exists in `folder`, or the last.
    pub fn first_of(&self, folder: &Path) -> PathBuf {
        let names = match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        };
        let mut paths = names.iter().map(|n| folder.join(n));
        let last = names.last().map(|n| folder.join(n)).unwrap_or_default();
        paths.find(|p| p.exists()).unwrap_or(last)
    }
}

/// What all hosts have in common.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AllHosts {
    pub family: super::Family,
    pub congestion: Option<String>,
}

/// The keys that may stand in `[wan]` for both directions and in
/// `[wan.a_to_b]`, `[wan.b_to_a]` for one. (Serde cannot flatten a struct and
/// refuse unknown keys at once, hence the macro.)
macro_rules! direction_keys {
    ($name:ident { $($(#[$meta:meta])* $extra:ident: $ty:ty,)* }) => {
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $name {
            pub rate: Option<RateText>,
            pub trace: Option<Paths>,
            pub delay: Option<TimeText>,
            pub queue: Option<QueueText>,
            pub loss: Option<f64>,
            pub burst: Option<f64>,
            pub gilbert_elliott: Option<GilbertElliott>,
            pub jitter: Option<TimeText>,
            pub reorder: Option<bool>,
            pub duplicate: Option<f64>,
            pub mtu: Option<u16>,
            $($(#[$meta])* pub $extra: $ty,)*
        }
    };
}

direction_keys!(Direction {});
direction_keys!(Wan {
    rtt: Option<TimeText>,
    a_to_b: Direction,
    b_to_a: Direction,
    at: Vec<At>,
});

impl Wan {
    /// The keys of one direction, its own before the common ones.
    pub fn merged(&self, own: &Direction) -> Direction {
        let own = own.clone();
        // A direction's own rate displaces a common trace and the other way round.
        let own_line = own.rate.is_some() || own.trace.is_some();
        let own_loss = own.gilbert_elliott.is_some();
        Direction {
            rate: own.rate.or(if own_line { None } else { self.rate }),
            trace: own
                .trace
                .or_else(|| if own_line { None } else { self.trace.clone() }),
            delay: own.delay.or(self.delay),
            queue: own.queue.or(self.queue),
            loss: own.loss.or(if own_loss { None } else { self.loss }),
            burst: own.burst.or(if own_loss { None } else { self.burst }),
            gilbert_elliott: own.gilbert_elliott.or(self.gilbert_elliott),
            jitter: own.jitter.or(self.jitter),
            reorder: own.reorder.or(self.reorder),
            duplicate: own.duplicate.or(self.duplicate),
            mtu: own.mtu.or(self.mtu),
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GilbertElliott {
    pub good_to_bad: f64,
    pub bad_to_good: f64,
    #[serde(default)]
    pub loss_good: f64,
    #[serde(default = "one")]
    pub loss_bad: f64,
}

fn one() -> f64 {
    1.0
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Which {
    #[default]
    Both,
    AToB,
    BToA,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct At {
    pub seconds: f64,
    #[serde(default)]
    pub direction: Which,
    pub rate: Option<RateText>,
    pub delay: Option<TimeText>,
    pub loss: Option<f64>,
    pub mtu: Option<u16>,
    pub blackhole: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Router {
    pub family: super::Family,
    pub configured: Option<RateText>,
    pub auto: Option<super::Target>,
    pub open: Option<super::Open>,
    pub memory: Option<SizeText>,
    pub advertise: bool,
    pub more: Option<String>,
    pub engine: Option<super::Engine>,
    pub driver: Option<super::Driver>,
    pub workers: Option<u16>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Load {
    pub kind: super::Kind,
    #[serde(default = "first_of_a")]
    pub from: String,
    #[serde(default = "first_of_b")]
    pub to: String,
    #[serde(default = "single")]
    pub count: u32,
    pub size: Option<SizeText>,
    pub rate: Option<RateText>,
    pub interval: Option<TimeText>,
    pub class: Option<super::Class>,
    #[serde(default)]
    pub sizes: Vec<SizeText>,
    pub start: Option<TimeText>,
    pub gap: Option<TimeText>,
    #[serde(default)]
    pub together: bool,
    pub timeout: Option<TimeText>,
    pub weight: Option<f64>,
    pub open: Option<super::Open>,
    pub congestion: Option<String>,
}

fn single() -> u32 {
    1
}
fn first_of_a() -> String {
    "a1".to_owned()
}
fn first_of_b() -> String {
    "b1".to_owned()
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Probe {
    pub off: bool,
    pub from: Option<String>,
    pub to: Option<String>,
}
