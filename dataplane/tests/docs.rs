//! What the documentation shows and names is what the router takes and counts.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use mef_crypto::PrivateKey;
use mef_dataplane::config::{self, Host};
use mef_dataplane::drops::{DropReason, Stage};

fn read(path: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(file).unwrap()
}

/// Has every interface and key that a file names.
struct AnyMachine;

impl Host for AnyMachine {
    fn interface_exists(&self, _: &str) -> bool {
        true
    }

    fn private_key(&self, _: &Path) -> Result<PrivateKey, String> {
        Ok(PrivateKey::generate([1; 32]))
    }
}

/// The fenced blocks of TOML, with real keys in the place of their descriptions.
fn examples(text: &str) -> Vec<String> {
    let key = PrivateKey::generate([2; 32]).public();
    let blocks = text
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap());
    let keyed = |block: &str| {
        let lines = block
            .lines()
            .map(|line| match line.starts_with("public_key") {
                true => format!("public_key = \"{key}\"\n"),
                false => format!("{line}\n"),
            });
        lines.collect()
    };
    blocks.map(keyed).collect()
}

#[test]
fn every_configuration_shown_is_valid() {
    for (path, shown) in [("README.md", 2), ("docs/configuration.md", 2)] {
        let examples = examples(&read(path));
        assert_eq!(examples.len(), shown, "{path}");
        for text in examples {
            let parsed = config::parse(&text, Path::new("/etc/mef/router.toml"), &AnyMachine);
            assert!(parsed.is_ok(), "{path}: {}", parsed.unwrap_err());
        }
    }
}

#[test]
fn every_stage_and_reason_of_a_drop_is_explained() {
    let text = read("docs/operating.md");
    let names = Stage::ALL
        .iter()
        .map(|s| s.as_str())
        .chain(DropReason::ALL.iter().map(|r| r.as_str()));
    let missing: Vec<&str> = names
        .filter(|n| !text.contains(&format!("\n| `{n}` | ")))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/operating.md does not explain {missing:?}"
    );
}

#[test]
fn every_metric_is_explained() {
    let source =
        read("dataplane/src/metrics/families.rs") + &read("dataplane/src/metrics/process.rs");
    let text = read("docs/monitoring/README.md");
    let quoted = source.split('"').skip(1).step_by(2);
    let name = |w: &&str| {
        let ours = w.starts_with("mef_") || w.starts_with("process_");
        ours && w.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let names: Vec<&str> = quoted.filter(name).collect();
    assert!(names.len() > 40, "{names:?}");
    let missing: Vec<&&str> = names
        .iter()
        .filter(|n| !text.contains(&format!("\n| `{n}` | ")))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/monitoring/README.md lacks {missing:?}"
    );
}

/// The text of all Rust files under a folder of the workspace.
fn sources(folder: &str, text: &mut String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(folder);
    for entry in std::fs::read_dir(path).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let inside = format!("{folder}/{name}");
        if entry.path().is_dir() {
            sources(&inside, text);
        } else if name.ends_with(".rs") {
            text.push_str(&read(&inside));
        }
    }
}

#[test]
fn every_corner_has_a_document_and_tests_that_there_are() {
    let text = read("docs/protocol.md");
    let corners = text.split("\n## Corners\n").nth(1).unwrap();
    let corners = corners.split("\n## ").next().unwrap();
    let rows: Vec<Vec<&str>> = corners
        .lines()
        .filter(|l| l.starts_with("| "))
        .skip(2)
        .map(|l| l.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    assert!(rows.len() >= 16, "{}", rows.len());
    let mut all = String::new();
    for folder in ["dataplane/tests", "dataplane/src", "tests/real_kernels"] {
        sources(folder, &mut all);
    }
    for row in rows {
        let [corner, what, document, tests] = row[..] else {
            panic!("{row:?} has not four columns");
        };
        assert!(!what.is_empty() && document.starts_with("RFC "), "{corner}");
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{corner} has no test");
        for name in names {
            let is_test = all
                .split("#[test]\n")
                .any(|t| t.trim_start().starts_with(&format!("fn {name}(")));
            assert!(is_test, "{corner}: there is no test {name}");
        }
    }
}
