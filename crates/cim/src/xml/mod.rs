//! XML within bounds: a reader that builds a small tree, and an appender.
//!
//! The reader takes what strangers send. It refuses document type declarations, processing
//! instructions and every entity but the five of XML itself, and stops at the [`Limits`] it is
//! given, so nothing expands and nothing nests without end. Errors carry line and column.
//! Namespaces are resolved while reading (Namespaces in XML 1.0); prefixes stay known for values
//! that are qualified names, such as `xsi:type`.

mod chars;
mod decode;
mod element;
mod place;
mod read;
mod write;

pub use decode::{Encoding, decode};
pub use element::{Attribute, Element};
pub use read::{parse, parse_str};
pub use write::Writer;

/// A document: its root and the encoding it came in, so that the answer can go out in the same.
#[derive(Clone, Debug)]
pub struct Document {
    /// The root element.
    pub root: Element,
    /// How the bytes were encoded.
    pub encoding: Encoding,
}

/// Bounds of one document.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes of the input, before decoding.
    pub bytes: usize,
    /// Deepest nesting of elements; the root is at depth 1.
    pub depth: usize,
    /// Most attributes of one element, namespace declarations included.
    pub attributes: usize,
    /// Most elements of the document.
    pub elements: usize,
    /// Most bytes of text directly inside one element.
    pub text: usize,
}

impl Default for Limits {
    /// 16 MiB, 64 levels, 64 attributes, 400,000 elements, 8 MiB of text.
    fn default() -> Self {
        Limits {
            bytes: 16 << 20,
            depth: 64,
            attributes: 64,
            elements: 400_000,
            text: 8 << 20,
        }
    }
}

/// Why a document was refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason} at line {line}, column {column}")]
pub struct XmlError {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What is wrong.
    pub reason: Reason,
    #[source]
    source: Option<Box<quick_xml::Error>>,
}

/// What is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The bytes are not in an encoding that is understood, or not validly so.
    #[error("{0}")]
    Encoding(&'static str),
    /// A bound of [`Limits`] was passed.
    #[error("too much XML: {0}")]
    Limit(&'static str),
    /// XML that is well-formed but not taken: DOCTYPE, processing instructions, entities.
    #[error("{0} is not accepted")]
    Forbidden(String),
    /// Not well-formed.
    #[error("malformed XML: {0}")]
    Malformed(String),
}

#[cfg(test)]
mod tests;
