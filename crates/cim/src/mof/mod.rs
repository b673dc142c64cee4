//! MOF, the text form of classes and instances (DSP0004 chapter 7), as far as CIM 2 goes.
//!
//! [`parse`] reads class declarations, instances, qualifier declarations and pragmas. Keywords are
//! taken in any case. It checks the grammar only: whether a superclass exists or a default fits its
//! type is for whoever puts the classes together. Bounded: 16 MiB of text, 16 levels of nesting.

mod lexer;
mod parser;

use crate::{Class, Instance, QualifierDeclaration};

/// What a MOF text declares, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mof {
    /// The classes, each with its own members only.
    pub classes: Vec<Class>,
    /// The instances. Their values have the types the literals suggest: `uint64` or `sint64`, `real64`,
    /// `string`, `boolean`; a schema gives them their declared ones.
    pub instances: Vec<Instance>,
    /// The qualifier declarations.
    pub qualifiers: Vec<QualifierDeclaration>,
    /// Pragmas: name and argument, `("namespace", "root/cimv2")`.
    pub pragmas: Vec<(String, String)>,
}

/// Why a text is no MOF.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} at line {line}, column {column}")]
pub struct MofError {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What was found or expected.
    pub message: String,
}

/// Reads a MOF text.
pub fn parse(text: &str) -> Result<Mof, MofError> {
    parser::Parser::new(text)?.run()
}

const MAX_BYTES: usize = 16 << 20;
const MAX_DEPTH: usize = 16;

#[cfg(test)]
mod tests;
