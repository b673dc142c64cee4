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

/// Reads everything of a request that can be read without carrying it out.
pub(crate) fn probe(message: &envelope::Message) -> Vec<cim::Instance> {
    let mut read = Vec::new();
    if let Some(uri) = &message.resource_uri {
        let _ = uri::parse(uri, message.selector(epr::NAMESPACE));
    }
    if let Some(fragment) = &message.fragment {
        transfer::probe(fragment);
    }
    if let Some(body) = &message.body {
        enumerate::probe(body);
        for at in std::iter::once(body).chain(&body.children) {
            read.extend(instance::read_properties(at, "Body"));
            let path = epr::read(at).ok();
            read.extend(path.map(|path| cim::Instance {
                path: Some(path),
                ..cim::Instance::new("Reference")
            }));
        }
    }
    read
}
