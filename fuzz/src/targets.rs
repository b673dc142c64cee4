//! The decoders, each with the words its inputs are made of.

mod cim_model;
mod machine;

/// A decoder and what helps to reach its corners.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also of its corpus.
    pub name: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]),
    /// Longest input worth trying, in bytes.
    pub limit: usize,
    /// Words its inputs are made of.
    pub dictionary: &'static [&'static str],
}

/// All of them.
pub const TARGETS: &[Target] = &[
    cim_model::XML,
    cim_model::MOF,
    cim_model::WQL,
    cim_model::EMBEDDED,
    cim_model::PATH,
    cim_model::DATETIME,
    machine::QMP,
    machine::NBD,
    machine::QCOW2,
    machine::MAP,
    machine::MANIFEST,
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
