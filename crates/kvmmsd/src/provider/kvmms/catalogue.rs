//! Kvmms_ErrorCatalogue: every failure that can be reported.

use async_trait::async_trait;
use cim::{Instance, Path};
use msvm::class;
use vmms::Fault;
use vmms::Message;

use crate::errors;
use crate::object::{Object, What};
use crate::view::{Provider, View};

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
        what: What::fixed(i),
    }
}

impl Catalogue {
    fn list(&self, _view: &View, _class: &str) -> Vec<Object> {
        Message::ALL.iter().map(|m| object(*m)).collect()
    }

    fn find(&self, _view: &View, _class: &str, path: &Path) -> Vec<Object> {
        // `42` and `kvmms-0042` name the entry as well.
        let id = path.get_str("MessageID").or_else(|| path.get_str(""));
        id.and_then(Message::by_id)
            .map(object)
            .into_iter()
            .collect()
    }
}

#[async_trait]
impl Provider for Catalogue {
    fn classes(&self) -> &'static [&'static str] {
        &[class::KVMMS_ERROR_CATALOGUE]
    }

    async fn objects(
        &self,
        view: &View,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        Ok(match wanted {
            Some(path) => self.find(view, class, path),
            None => self.list(view, class),
        })
    }

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        object.fixed()
    }
}
