//! CIM-XML: messages of DSP0201 over HTTP (DSP0200) to operations, and answers in strict DTD 2.x back.

mod answer;
mod intrinsic;
mod message;
mod method;
mod parameters;
mod pull;
mod service;

pub(crate) use service::Service;

/// Reads everything of a request that can be read without carrying it out.
pub(crate) fn probe(bytes: &[u8]) {
    let Ok(message) = message::decode(bytes) else {
        return;
    };
    match &message.call {
        message::Call::Intrinsic { at, .. } => parameters::probe(at),
        message::Call::Method { at, .. } => {
            for parameter in &at.children {
                let _ = cim::cimxml::param_value(parameter);
            }
        }
    }
}
