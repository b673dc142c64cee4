//! The schema of `root/virtualization/v2`, and as much of `root/cimv2` and `root/interop` as clients ask for.
//!
//! # Model
//! The MOF in `mof/` is the source: `build/` compiles it into static tables. A [`Namespace`] holds its classes
//! resolved, each with all inherited members, and is what GetClass, WQL and the writers ask
//! ([`cim::Schema`]). From the same MOF come
//! * [`class`] and [`prop`]: the names, so that a misspelt one does not compile;
//! * [`value`]: value maps as open enums (`value::JobState::COMPLETED`);
//! * [`method`]: one enum of method names per concrete class, for a `match` that forgets none;
//! * [`params`]: In and Out structs of every method, read from and turned into CIM values;
//!
//! and by hand [`code`], the return codes the methods share.
//!
//! A new class or method is a change in `mof/` and nothing else here.
//!
//! ```
//! use cim::{Name, Value};
//! use msvm::method::VirtualSystemReferencePointService as Method;
//! use msvm::params::virtual_system_reference_point_service::{ExportReferencePointIn, ExportReferencePointOut};
//! use msvm::{ParameterError, code};
//!
//! fn export(given: &[(Name, Value)]) -> Result<ExportReferencePointOut, ParameterError> {
//!     let given = ExportReferencePointIn::read(given)?;
//!     let directory = msvm::required("ExportDirectory", given.export_directory)?;
//!     Ok(ExportReferencePointOut::code(if directory.starts_with('/') {
//!         code::JOB_STARTED
//!     } else {
//!         code::INVALID_PARAMETER
//!     }))
//! }
//!
//! assert_eq!("exportreferencepoint".parse(), Ok(Method::ExportReferencePoint));
//! let refused = export(&[]).unwrap_err();
//! assert_eq!(refused.return_code(), code::INVALID_PARAMETER);
//! assert_eq!(refused.to_string(), "parameter ExportDirectory is required");
//! ```
//!
//! # Errors
//! [`ParameterError`] (a call does not fit its method) knows the return code it becomes;
//! [`CompletionError`] (an instance does not fit its class) is a mistake of the service.
//!
//! # Concurrency
//! Everything is immutable. A namespace is resolved once, on first use.

pub mod code;
mod method_enum;
mod namespace;
mod open_enum;
mod parameter;

pub use method_enum::UnknownMethod;
pub use namespace::{
    CompletionError, Namespace, cimv2, interop, namespace, namespaces, virtualization,
};
pub use parameter::{FromParameter, IntoParameter, ParameterError, embedded_instance, required};

mod generated {
    include!(concat!(env!("OUT_DIR"), "/schema.rs"));
}
pub use generated::{class, method, params, prop, value};
