//! The elements of CIM-XML (DSP0201 2.x) that stand for values, paths, instances and classes.
//!
//! Both protocols and the text form of embedded instances share them. Reading is lenient: elements
//! are told by their local name, unknown attributes do not matter. Writing follows the DTD to the
//! letter, because clients such as pywbem check every attribute.

mod class;
mod path;
mod read;
mod write;

pub use class::{ClassShape, class, write_class, write_qualifier, write_qualifier_declaration};
pub use path::{
    Target, class_name, namespace, path, write_class_path, write_instance_name,
    write_local_namespace, write_path, write_reference,
};
pub use read::{instance, object_with_path, param_value, property, value, value_in};
pub use write::{
    InstanceShape, write_instance, write_param_value, write_property, write_return_value,
    write_value,
};

use crate::xml::Element;
use crate::{PathError, TypeMismatch};

/// Why an element could not be read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{what} at line {line}, column {column}")]
pub struct CimXmlError {
    /// What is wrong.
    pub what: String,
    /// Line of the element, from 1.
    pub line: u32,
    /// Column of the element, from 1.
    pub column: u32,
    #[source]
    cause: Option<Cause>,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Type(#[from] TypeMismatch),
    #[error(transparent)]
    Path(#[from] PathError),
}

type Read<T> = Result<T, CimXmlError>;

fn error(at: &Element, what: impl Into<String>) -> CimXmlError {
    let (line, column) = at.position;
    CimXmlError {
        what: what.into(),
        line,
        column,
        cause: None,
    }
}

fn caused(at: &Element, what: impl Into<String>, cause: impl Into<Cause>) -> CimXmlError {
    CimXmlError {
        cause: Some(cause.into()),
        ..error(at, what)
    }
}

fn required<'a>(at: &'a Element, attribute: &str) -> Read<&'a str> {
    at.attr(attribute)
        .ok_or_else(|| error(at, format!("{} has no {attribute}", at.local)))
}

#[cfg(test)]
mod tests;
