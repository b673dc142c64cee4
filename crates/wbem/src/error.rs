//! The one error both protocols render.

use cim::Instance;

/// Status codes of DSP0200; the ones this service gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// A general error.
    Failed = 1,
    /// The caller may not do this.
    AccessDenied = 2,
    /// No such namespace.
    InvalidNamespace = 3,
    /// A parameter is missing, unknown, or of the wrong type or value.
    InvalidParameter = 4,
    /// No such class.
    InvalidClass = 5,
    /// No such object.
    NotFound = 6,
    /// The operation is not supported.
    NotSupported = 7,
    /// The object exists already.
    AlreadyExists = 11,
    /// No such property.
    NoSuchProperty = 12,
    /// The type of a value does not fit.
    TypeMismatch = 13,
    /// The query language is unknown.
    QueryLanguageNotSupported = 14,
    /// The query is wrong.
    InvalidQuery = 15,
    /// The method is declared but not served.
    MethodNotAvailable = 16,
    /// No such method.
    MethodNotFound = 17,
    /// The enumeration context is unknown or has expired.
    InvalidEnumerationContext = 21,
    /// The operation took too long.
    OperationTimeout = 22,
    /// A limit of the server.
    LimitExceeded = 27,
}

/// A failed operation: what both protocols need to explain it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The CIM status; WS-Management maps it to a fault subcode and a Windows error code.
    pub status: Status,
    /// One or more sentences for a person.
    pub message: String,
    /// `Msvm_Error` instances, summary first, causes after; may be empty.
    pub chain: Vec<Instance>,
}

impl Error {
    /// An error without a chain.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Error {
            status,
            message: message.into(),
            chain: Vec::new(),
        }
    }
}
