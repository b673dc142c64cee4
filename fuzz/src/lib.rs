//! Hostile input for every decoder that reads what strangers send.
//!
//! # Model
//! A [`Target`] is a function over bytes that may do anything but panic, hang, or take all memory.
//! `corpus/NAME/` holds inputs that together reach what was ever reached in it; the tests of this crate
//! replay them, so an ordinary test run covers them. `fuzz/run NAME SECONDS` goes on from there: it
//! builds everything with edge counters (a pass of the compiler back end that the stable toolchain
//! carries), changes inputs of the corpus at random and keeps what reaches something new.
//!
//! # Errors
//! A finding is written to `target/findings/NAME/`. Once the fault is mended it belongs into `corpus/NAME/`.
//!
//! # Concurrency
//! One process looks on while another runs one input after the other: an input that ends the process
//! (stack, memory, time) is found in the file the worker writes before each run.

pub mod coverage;
pub mod mutate;
mod targets;
pub mod work;

pub use targets::{TARGETS, Target, target};

use std::io;
use std::path::{Path, PathBuf};

/// Where this crate's corpora lie.
pub fn home() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The inputs of a directory with their names, in order of the names. A directory that is not there has none.
pub fn inputs(directory: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            found.push((name, std::fs::read(entry.path())?));
        }
    }
    found.sort();
    Ok(found)
}
