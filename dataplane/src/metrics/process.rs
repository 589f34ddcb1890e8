//! What the kernel says of this process, under the names that every Prometheus
//! client library gives it.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use super::text::{Kind, Text};

/// Appends the process's families; what the kernel does not tell reads 0.
pub fn render(text: &mut Text, cpu_s: f64, started: SystemTime) {
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    text.family(
        "process_cpu_seconds_total",
        Kind::Counter,
        "User and system time of the process.",
    )
    .sample(&[], cpu_s);
    text.family(
        "process_resident_memory_bytes",
        Kind::Gauge,
        "Memory of the process that is in RAM.",
    )
    .sample(&[], status_kib("VmRSS:").unwrap_or(0) as f64 * 1024.0);
    text.family(
        "process_open_fds",
        Kind::Gauge,
        "Open descriptors of the process.",
    )
    .sample(&[], open_descriptors() as f64);
    text.family(
        "process_start_time_seconds",
        Kind::Gauge,
        "When the process was started, since 1970.",
    )
    .sample(&[], started.as_secs_f64());
}

fn status_kib(key: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, |d| d.count().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_what_is_asked() {
        assert!(status_kib("VmRSS:").is_some_and(|k| k > 100));
        assert!(open_descriptors() >= 3);
    }
}
