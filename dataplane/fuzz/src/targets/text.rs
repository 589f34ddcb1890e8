//! Files that people write: what is wrong with one is said in one line that
//! names the file, and what is accepted can be worked with.

use std::path::Path;

use mef_crypto::PrivateKey;
use mef_dataplane::config::{self, Host};
use mef_dataplane::report::Query;
use mef_lab::topology;
use mef_lab::wan::trace::Trace;

/// Has every interface and key that a file names.
pub struct AnyMachine;

impl Host for AnyMachine {
    fn interface_exists(&self, _: &str) -> bool {
        true
    }
    fn private_key(&self, _: &Path) -> Result<PrivateKey, String> {
        Ok(PrivateKey::generate([1; 32]))
    }
}

pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match config::parse(text, Path::new("/etc/mef/r.toml"), &AnyMachine) {
        Ok(config) => assert!(!config.ports.is_empty()),
        Err(e) => {
            let e = e.to_string();
            assert!(e.starts_with("/etc/mef/r.toml"), "{e}");
        }
    }
}

/// A question on the control socket.
pub fn control(data: &[u8]) {
    let line = String::from_utf8_lossy(data);
    match line.parse::<Query>() {
        Ok(query) => assert_eq!(query.to_string().parse(), Ok(query)),
        Err(e) => assert!(e.to_string().len() < 400),
    }
}

pub fn topology(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // Traces are read from files: not from whatever name chance comes up with.
    if text.contains("trace") {
        return;
    }
    match topology::read_text(text, Path::new("fuzz.toml"), &[]) {
        Ok(variants) => assert!(!variants.is_empty()),
        Err(e) => assert!(!e.to_string().is_empty()),
    }
}

pub fn wan_trace(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(trace) = Trace::parse(text) {
        let _ = trace.mean_rate();
        let n = trace.first_at_or_after(1_000_000);
        assert!(trace.time_of(n) >= 1_000_000);
        assert!(n == 0 || trace.time_of(n - 1) < 1_000_000);
    }
}
