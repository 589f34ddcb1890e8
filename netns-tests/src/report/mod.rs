//! What people see of the results: a table in the terminal and one HTML file
//! that carries its charts, needs nothing from outside and can be sent around.

mod charts;
mod dots;
mod frontier;
mod page;
mod summary;
mod svg;
mod sweep;
mod table;

pub use frontier::svg as frontier_svg;
pub use table::print_table;

use std::io;
use std::path::{Path, PathBuf};

use crate::results::{Results, ResultsError};

/// Writes `index.html` into `dir` (made if it is not there); returns its path.
pub fn write_report(dir: &Path, results: &Results) -> io::Result<PathBuf> {
    write_combined(dir, std::slice::from_ref(results))
}

/// One report of several results, a section each in the order given.
pub fn write_combined(dir: &Path, results: &[Results]) -> io::Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join("index.html");
    std::fs::write(&path, page::page(results))?;
    Ok(path)
}

/// Writes the curves of a sweep as `index.html` into `dir`; returns its path.
pub fn write_sweep(dir: &Path, sweep: &crate::sweep::Sweep) -> io::Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join("index.html");
    std::fs::write(&path, page::sweep_page(sweep))?;
    Ok(path)
}

/// Reads files of `--json`, in the order given; the first that is none is an error.
pub fn read_results<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<Results>, ResultsError> {
    paths.iter().map(|p| Results::read(p.as_ref())).collect()
}

#[cfg(test)]
mod tests;
