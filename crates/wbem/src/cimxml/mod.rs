//! CIM-XML: messages of DSP0201 over HTTP (DSP0200) to operations, and answers in strict DTD 2.x back.

mod answer;
mod intrinsic;
mod message;
mod method;
mod parameters;
mod pull;
mod service;

pub(crate) use service::Service;
