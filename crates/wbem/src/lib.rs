//! WS-Management (DSP0226 with the WS-CIM binding DSP0227, as Windows speaks it) and CIM-XML (DSP0200, DSP0201):
//! bytes to [`Operation`] and back.

mod error;
mod operation;

pub use error::{Error, Status};
pub use operation::{Caller, Handler, Operation, OutParameter, Request, Response, Role, Walk};
