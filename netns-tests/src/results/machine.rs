//! The facts about the machine that a figure is worth nothing without.

use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    pub cpu: String,
    pub cores: u32,
    pub memory_bytes: u64,
    pub kernel: String,
    /// UTC, RFC 3339.
    pub date: String,
    /// Of the working tree, `-dirty` if it differs; empty outside one.
    pub commit: String,
}

impl Machine {
    /// Reads what this machine says of itself; what it does not say stays empty.
    pub fn facts() -> Self {
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        Self {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, |n| n.get() as u32),
            memory_bytes: field("/proc/meminfo", "MemTotal")
                .and_then(|v| v.trim_end_matches("kB").trim().parse::<u64>().ok())
                .unwrap_or(0)
                * 1024,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .map(|s| s.trim().to_owned())
                .unwrap_or_default(),
            date: rfc3339(seconds),
            commit: commit().unwrap_or_default(),
        }
    }

    /// One line for people: what is known, separated by commas.
    pub fn line(&self) -> String {
        let mut parts = Vec::new();
        if !self.cpu.is_empty() {
            parts.push(self.cpu.clone());
        }
        if self.cores > 0 {
            parts.push(format!("{} cores", self.cores));
        }
        if self.memory_bytes > 0 {
            parts.push(format!(
                "{:.0} GiB",
                self.memory_bytes as f64 / f64::from(1 << 30)
            ));
        }
        if !self.kernel.is_empty() {
            parts.push(format!("Linux {}", self.kernel));
        }
        if !self.commit.is_empty() {
            parts.push(format!("commit {}", self.commit));
        }
        if !self.date.is_empty() {
            parts.push(self.date.clone());
        }
        parts.join(", ")
    }
}

/// The value of the first line `key : value` of a file of /proc.
fn field(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (k, v) = line.split_once(':')?;
        (k.trim() == key).then(|| v.trim().to_owned())
    })
}

fn commit() -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git")
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let hash = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() {
        hash
    } else {
        format!("{hash}-dirty")
    })
}

/// Seconds since 1970 as UTC. The date by the algorithm of Howard Hinnant's
/// "chrono-Compatible Low-Level Date Algorithms" (days to civil).
fn rfc3339(seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (time / 3_600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_893_456_000), "2030-01-01T00:00:00Z");
    }

    #[test]
    fn this_machine_says_what_it_is() {
        let m = Machine::facts();
        assert!(
            m.cores > 0 && m.memory_bytes > 1 << 20 && !m.kernel.is_empty(),
            "{m:?}"
        );
        assert!(m.line().contains("Linux"));
    }
}
