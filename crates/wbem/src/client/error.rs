//! Why a request failed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use cim::Instance;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address of the server cannot be one.
    #[error("{text:?} is not the address of a server: {why}")]
    Endpoint {
        /// What was given.
        text: String,
        /// What is expected.
        why: &'static str,
    },
    /// No connection.
    #[error("cannot connect to {at}")]
    Connect {
        /// The server.
        at: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A certificate file cannot be used.
    #[error("cannot use the certificates in {}", .path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server's certificate is not trusted, or TLS failed otherwise.
    #[error("no trusted connection to {at}")]
    Tls {
        /// The server.
        at: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke or did not speak HTTP.
    #[error("the connection to {at} failed")]
    Http {
        /// The server.
        at: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("{at} did not answer within {} s", .limit.as_secs_f64())]
    Timeout {
        /// The server.
        at: String,
        /// The time allowed.
        limit: Duration,
    },
    /// The server did not accept the user.
    #[error("{at} did not accept {}; it offers {offered}", .user.as_deref().unwrap_or("a caller without a name"))]
    Unauthorized {
        /// The server.
        at: String,
        /// The user given, if any.
        user: Option<String>,
        /// The ways to authenticate that the server offers.
        offered: String,
    },
    /// The handshake of Negotiate failed, or its keys do not fit.
    #[error("no handshake with {at}")]
    Handshake {
        /// The server.
        at: String,
        /// Why.
        #[source]
        source: ntlm::Refused,
    },
    /// The password would have gone over the network in the clear.
    #[error("{at} does not offer Negotiate, and the password is not sent in the clear")]
    InClear {
        /// The server.
        at: String,
    },
    /// An answer that should have been sealed was not, or not by the server.
    #[error("the answer of {at} is not sealed with the keys of this connection")]
    Unsealed {
        /// The server.
        at: String,
    },
    /// An HTTP status without a fault.
    #[error("{at} answered with HTTP status {status}")]
    Status {
        /// The server.
        at: String,
        /// The status.
        status: u16,
    },
    /// The answer makes no sense.
    #[error("the answer cannot be read: {why}")]
    Answer {
        /// What is wrong with it.
        why: String,
    },
    /// The server refused the request.
    #[error(transparent)]
    Fault(Box<ServerFault>),
}

/// A fault of the server.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{reason}")]
pub struct ServerFault {
    /// What a person reads.
    pub reason: String,
    /// The SOAP subcode, else the code, without prefix: `DestinationUnreachable`, `TimedOut`.
    pub subcode: String,
    /// The Windows error code (an HRESULT or a code of WS-Management); 0 where none was told.
    pub code: u32,
    /// The CIM status, where told.
    pub cim_status: Option<u32>,
    /// The machine that failed, where told.
    pub machine: Option<String>,
    /// The error instances that came with it (`Msvm_Error` of kvmms), summary first.
    pub chain: Vec<Instance>,
}

impl ServerFault {
    /// Whether the object or class asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self.code, 0x8004_1002 | 0x8004_1010 | 0x8033_8000)
            || matches!(self.cim_status, Some(5 | 6))
    }
}

impl ClientError {
    /// The fault, if the server refused the request.
    pub fn fault(&self) -> Option<&ServerFault> {
        match self {
            ClientError::Fault(fault) => Some(fault),
            _ => None,
        }
    }
}
