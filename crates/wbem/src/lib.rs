//! WS-Management (DSP0226 with the WS-CIM binding DSP0227, as Windows speaks it) and CIM-XML (DSP0200, DSP0201):
//! bytes to [`Operation`] and back.

pub mod auth;
mod cimxml;
pub mod client;
mod contexts;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod operation;
pub mod server;
pub mod tls;
mod wire;
mod wsman;

pub use contexts::ContextLimits;
pub use error::{Error, Status};
pub use operation::{Caller, Handler, Operation, OutParameter, Request, Response, Role, Walk};
