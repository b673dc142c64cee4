//! WS-Management (DSP0226 with the WS-CIM binding DSP0227, as Windows speaks it) and CIM-XML (DSP0200, DSP0201):
//! bytes to [`Operation`] and back, a [`server`] of both and a [`client`] of the first.
//!
//! ```text
//! HTTP/1.1 over TCP, TLS, unix socket    server: connections, limits, who calls (auth)
//!        |                  |
//!   wsman (SOAP)      cimxml (MESSAGE)   decode -> Operation -> Handler -> Response -> encode
//!        |                  |
//!        +--- Operation ----+            what the service behind implements: one trait, no class known here
//! ```
//!
//! **Model.** Every request of either protocol becomes one [`Operation`] with its namespace and [`Caller`]; the
//! [`Handler`] answers with a [`Response`] or an [`Error`]. Values keep the type the protocol gave them: CIM-XML
//! types its parameters, WS-Management sends strings. A query runs once; what it found is kept in a context and
//! handed out piece by piece (bounds: [`ContextLimits`]). The instances of a class are made as they are pulled ([`Instances`]).
//!
//! **Errors.** [`Error`] has a CIM status, a sentence, and a chain of error instances. CIM-XML sends it as
//! `ERROR`, WS-Management as a fault with `WSManFault` and `MSFT_WmiError`; both carry the whole chain. What
//! cannot be decoded never reaches the handler. The client gives the fault back as
//! [`client::ClientError::Fault`].
//!
//! **Concurrency.** One task per connection, and one per operation, so that an operation ends although its client
//! left; a panic in it is an internal error of that request only. No lock is held while a handler runs.

pub mod auth;
mod cimxml;
pub mod client;
mod contexts;
mod error;
mod footprint;
#[doc(hidden)]
pub mod fuzz;
mod instances;
mod limit;
mod operation;
mod sealed;
pub mod server;
pub mod tls;
mod wire;
mod wsman;

pub use contexts::ContextLimits;
pub use error::{Error, Status};
pub use footprint::instance as footprint;
pub use instances::Instances;
pub use limit::{Limit, Origin};
pub use operation::{Caller, Handler, Operation, OutParameter, Request, Response, Role, Walk};
