//! The decoders, each with the words its inputs are made of.

use std::path::PathBuf;

mod cim_model;
mod machine;
mod protocol;

/// A decoder and what helps to reach its corners.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also of its corpus.
    pub name: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]),
    /// Longest input worth trying, in bytes.
    pub limit: usize,
    /// A directory of further inputs that another crate keeps, relative to the workspace.
    pub also: Option<&'static str>,
    /// Words its inputs are made of.
    pub dictionary: &'static [&'static str],
}

impl Target {
    /// The directories of its corpus.
    pub fn corpora(&self) -> Vec<PathBuf> {
        let own = crate::home().join("corpus").join(self.name);
        let also = self.also.map(|path| crate::home().join("..").join(path));
        std::iter::once(own).chain(also).collect()
    }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    cim_model::XML,
    cim_model::MOF,
    cim_model::WQL,
    cim_model::EMBEDDED,
    cim_model::PATH,
    cim_model::DATETIME,
    protocol::WSMAN,
    protocol::CIMXML,
    protocol::ANSWER,
    protocol::TOKEN,
    protocol::SEALED,
    machine::QMP,
    machine::NBD,
    machine::QCOW2,
    machine::LOOK,
    machine::MAP,
    machine::MANIFEST,
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
