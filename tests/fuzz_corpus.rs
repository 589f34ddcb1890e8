//! Replays the corpus of the fuzz targets, without a fuzzer: what was found
//! once stays found. `make fuzz` looks for more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "../dataplane/fuzz/src/targets/mod.rs"]
mod targets;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dataplane/fuzz")
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    let stem = |e: fs::DirEntry| e.path().file_stem().unwrap().to_str().unwrap().to_owned();
    entries.map(|e| stem(e.unwrap())).collect()
}

#[test]
fn every_target_has_a_program_a_corpus_and_a_place_in_the_manifest() {
    let all: BTreeSet<String> = targets::TARGETS.iter().map(|t| t.0.to_owned()).collect();
    assert_eq!(names(&folder().join("fuzz_targets")), all);
    assert_eq!(names(&folder().join("corpus")), all);
    let manifest: toml::Table = fs::read_to_string(folder().join("Cargo.toml"))
        .unwrap()
        .parse()
        .unwrap();
    let bins = manifest["bin"].as_array().unwrap();
    let bins: BTreeSet<String> = bins
        .iter()
        .map(|b| b["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(bins, all);
}

#[test]
fn the_corpus_finds_nothing() {
    for (name, target) in targets::TARGETS {
        let mut inputs = targets::seeds::of(name);
        assert!(!inputs.is_empty(), "{name} has no seed");
        let corpus = folder().join("corpus").join(name);
        let mut files: Vec<PathBuf> = fs::read_dir(&corpus)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has no corpus");
        inputs.extend(files.iter().map(|f| fs::read(f).unwrap()));
        inputs.push(Vec::new());
        for (i, data) in inputs.iter().enumerate() {
            let found = std::panic::catch_unwind(|| target(data));
            assert!(found.is_ok(), "{name}: input {i} of {files:?}");
        }
    }
}

/// Writes the seeds to the corpus: `cargo test --test fuzz_corpus -- --ignored`.
#[test]
#[ignore = "writes files"]
fn write_seeds() {
    for (name, _) in targets::TARGETS {
        let corpus = folder().join("corpus").join(name);
        fs::create_dir_all(&corpus).unwrap();
        for (i, seed) in targets::seeds::of(name).iter().enumerate() {
            fs::write(corpus.join(format!("seed-{i}")), seed).unwrap();
        }
    }
}
