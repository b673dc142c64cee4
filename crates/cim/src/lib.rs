//! The CIM object model (DMTF DSP0004): values, object paths, instances, class declarations, MOF, WQL, the
//! guarded XML reader and embedded instances.
//!
//! Nothing here does I/O, is asynchronous, or knows a class by name. Names compare without case
//! everywhere; null is a value ([`Value::Null`]). Readers take hostile input: each has bounds on
//! size, depth and count, and answers with an error that says where the input broke.

pub mod cimxml;
mod class;
mod datetime;
pub mod embedded;
#[doc(hidden)]
pub mod fuzz;
mod instance;
pub mod mof;
mod name;
mod path;
mod qualifier;
mod steering;
mod table;
mod value;
pub mod wql;
pub mod xml;

pub use class::{
    Class, Declaration, List, Literal, Method, Qualifier, Schema, Text, has_qualifier, qualifier,
};
pub use datetime::{Datetime, DatetimeError};
pub use instance::{Instance, Property};
pub use name::Name;
pub use path::{Path, PathError, normal_namespace};
pub use qualifier::{QualifierDeclaration, standard_qualifier, standard_qualifiers};
pub use steering::{steers, written_out};
pub use table::{ClassTable, SchemaError};
pub use value::{Type, TypeMismatch, Value};
