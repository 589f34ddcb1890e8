//! What can be wrong with a configuration, as one message: file, line, key,
//! what was found, what was expected, and what to do.

use core::ops::Range;
use std::path::{Path, PathBuf};

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: cannot read the configuration: {source}; give the path of a readable file with -c", file.display())]
    Read {
        file: PathBuf,
        source: std::io::Error,
    },
    #[error("{}:{line}: {problem}", file.display())]
    Invalid {
        file: PathBuf,
        line: usize,
        problem: Box<Problem>,
    },
    /// The message of the key file says what to do.
    #[error("{}:{line}: router.private_key: {message}", file.display())]
    PrivateKey {
        file: PathBuf,
        line: usize,
        message: String,
    },
}

impl ConfigError {
    /// The line of the file, counted from 1, where there is one.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::Read { .. } => None,
            Self::Invalid { line, .. } | Self::PrivateKey { line, .. } => Some(*line),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: found {found}, expected {expected}; {advice}")]
pub struct Problem {
    /// The key with its table, such as `port.addresses`.
    pub key: String,
    pub found: String,
    pub expected: String,
    /// What to do about it.
    pub advice: String,
}

/// The text that places in it refer to.
pub(super) struct Source<'a> {
    pub text: &'a str,
    pub file: &'a Path,
}

impl Source<'_> {
    /// The line of byte `offset`, counted from 1.
    pub fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().iter().take(offset);
        1 + before.filter(|b| **b == b'\n').count()
    }

    pub fn error(
        &self,
        at: &Range<usize>,
        key: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        advice: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Invalid {
            file: self.file.to_owned(),
            line: self.line(at.start),
            problem: Box::new(Problem {
                key: key.into(),
                found: found.into(),
                expected: expected.into(),
                advice: advice.into(),
            }),
        }
    }
}
