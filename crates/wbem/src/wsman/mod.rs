//! WS-Management: SOAP requests to operations, answers and faults back.

mod classes;
mod enumerate;
pub(crate) mod envelope;
pub(crate) mod epr;
mod fault;
pub(crate) mod instance;
mod invoke;
pub(crate) mod ns;
mod service;
mod transfer;
pub(crate) mod uri;

pub(crate) use fault::Fault;
pub(crate) use service::Service;
