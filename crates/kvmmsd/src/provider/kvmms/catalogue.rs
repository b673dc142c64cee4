//! Kvmms_ErrorCatalogue: every failure that can be reported.

use std::sync::Arc;

use async_trait::async_trait;
use cim::{Instance, Path};
use msvm::class;
use vmms::Message;

use super::super::Provider;
use crate::Service;
use crate::errors;
use crate::object::{Object, What};

pub(crate) struct Catalogue;

fn object(message: Message) -> Object {
    let entry = message.entry();
    let mut i = Instance::new(class::KVMMS_ERROR_CATALOGUE);
    i.set("InstanceID", message.id())
        .set("Caption", message.id())
        .set("Description", entry.text)
        .set("ElementName", message.id())
        .set("Message", entry.text)
        .set("Name", format!("{message:?}"))
        .set("Severity", format!("{:?}", entry.severity))
        .set("ProbableCause", entry.cause)
        .set(
            "RecommendedActions",
            entry
                .remedy
                .iter()
                .map(|r| (*r).to_owned())
                .collect::<Vec<_>>(),
        )
        .set("ReturnCode", errors::code_of(entry.kind))
        .set("FailureKind", format!("{:?}", entry.kind));
    Object {
        class: class::KVMMS_ERROR_CATALOGUE,
        keys: vec![("MessageID", message.id())],
        what: What::Fixed(Arc::new(i)),
    }
}

#[async_trait]
impl Provider for Catalogue {
    fn classes(&self) -> &'static [&'static str] {
        &[class::KVMMS_ERROR_CATALOGUE]
    }

    fn list(&self, _service: &Service, _class: &str) -> Vec<Object> {
        Message::ALL.iter().map(|m| object(*m)).collect()
    }

    fn find(&self, _service: &Service, _class: &str, path: &Path) -> Vec<Object> {
        // `42` and `kvmms-0042` name the entry as well.
        let id = path.get_str("MessageID").or_else(|| path.get_str(""));
        id.and_then(Message::by_id)
            .map(object)
            .into_iter()
            .collect()
    }

    fn instance(&self, _service: &Service, object: &Object) -> Instance {
        object.fixed()
    }
}
