//! Get, Put, Create and Delete (WS-Transfer), with fragments of an instance.

use cim::Instance;
use cim::xml::Writer;

use super::fault::{Fault, Subcode};
use super::service::{Call, Subject, misfit};
use super::{epr, instance, ns};
use crate::{Operation, Response};

fn action(verb: &str) -> String {
    format!("{}/{verb}", ns::TRANSFER)
}

async fn fetch(call: &Call<'_>, subject: &Subject) -> Result<Instance, Fault> {
    let path = call.path(subject)?;
    let operation = Operation::GetInstance { path };
    let found = call.run(&subject.namespace, operation).await?.instances();
    found.and_then(|mut f| f.next()).ok_or_else(misfit)
}

pub(super) async fn get(call: Call<'_>) -> Result<String, Fault> {
    let subject = call.subject()?;
    let found = fetch(&call, &subject).await?;
    let shape = call.shape(subject.family);
    let Some(fragment) = &call.message.fragment else {
        return Ok(call.respond(
            &action("GetResponse"),
            |_| {},
            |w| instance::write(w, &found, &shape),
        ));
    };
    let wanted = Fragment::parse(fragment)?;
    let property = found.property(wanted.name).ok_or_else(|| {
        Fault::sender(
            Subcode::InvalidParameter,
            format!("{} has no property {}.", found.class, wanted.name),
        )
        .detail("InvalidFragment")
    })?;
    let items = property.value.items();
    let picked = match wanted.index {
        None => property.value.clone(),
        Some(i) => items.get(i - 1).cloned().unwrap_or(cim::Value::Null),
    };
    Ok(call.respond(
        &action("GetResponse"),
        |w| {
            w.open("w:FragmentTransfer")
                .attr("s:mustUnderstand", "true")
                .text(fragment)
                .close();
        },
        |w| {
            w.open("w:XmlFragment")
                .attr("xmlns:xsi", ns::XSI)
                .attr("xmlns:p", &shape.family.class_uri(found.class.as_str()))
                .attr("xmlns:cim", ns::COMMON);
            if wanted.text {
                for item in picked.items() {
                    w.text(&item.to_text().unwrap_or_default());
                }
            } else {
                let tag = format!("p:{}", property.name);
                instance::write_value(w, &tag, &picked, property.ty, &shape.family);
            }
            w.close();
        },
    ))
}

/// A fragment of an instance: a bare property name, or the small XPath clients send.
#[derive(Debug, PartialEq)]
struct Fragment<'a> {
    name: &'a str,
    /// From 1.
    index: Option<usize>,
    text: bool,
}

impl<'a> Fragment<'a> {
    fn parse(path: &'a str) -> Result<Self, Fault> {
        let refused = || {
            let shown: String = path.chars().take(200).collect();
            Fault::sender(
                Subcode::UnsupportedFeature,
                format!(
                    "The fragment {shown:?} is more than a property name, an index and text()."
                ),
            )
            .detail("FragmentLevelAccess")
        };
        let trimmed = path.trim();
        let (rest, text) = match trimmed.strip_suffix("/text()") {
            Some(rest) => (rest, true),
            None => (trimmed, false),
        };
        // `/`, `//`, `./` and the class before the property add nothing: there is one instance.
        let rest = rest.rsplit('/').next().unwrap_or_default();
        let (rest, index) = match rest.strip_suffix(']').and_then(|r| r.split_once('[')) {
            Some((name, index)) => {
                let index: usize = index.trim().parse().map_err(|_| refused())?;
                (name, Some(index).filter(|i| *i > 0))
            }
            None => (rest, None),
        };
        let name = rest.rsplit(':').next().unwrap_or_default();
        let good = |c: char| c.is_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(good) {
            return Err(refused());
        }
        Ok(Fragment { name, index, text })
    }
}

/// Reads a fragment path.
pub(super) fn probe(fragment: &str) {
    let _ = Fragment::parse(fragment);
}

/// The instance in the body.
fn body_instance(call: &Call<'_>, subject: &Subject) -> Result<Instance, Fault> {
    let body =
        call.message.body.as_ref().ok_or_else(|| {
            Fault::sender(Subcode::SchemaValidation, "The Body holds no instance.")
        })?;
    let schema = call.service.handler.schema(&subject.namespace);
    let class = schema.and_then(|s| s.class(&body.local));
    let read = instance::read_properties(body, body.local.clone())?;
    Ok(instance::declared(read, class))
}

pub(super) async fn put(call: Call<'_>) -> Result<String, Fault> {
    let subject = call.subject()?;
    if call.message.fragment.is_some() {
        return Err(Fault::sender(
            Subcode::UnsupportedFeature,
            "Put takes a whole instance, not a fragment.",
        )
        .detail("FragmentLevelAccess"));
    }
    let operation = Operation::ModifyInstance {
        path: call.path(&subject)?,
        instance: body_instance(&call, &subject)?,
    };
    call.run(&subject.namespace, operation).await?;
    let changed = fetch(&call, &subject).await?;
    let shape = call.shape(subject.family);
    Ok(call.respond(
        &action("PutResponse"),
        |_| {},
        |w| instance::write(w, &changed, &shape),
    ))
}

pub(super) async fn create(call: Call<'_>) -> Result<String, Fault> {
    let subject = call.subject()?;
    let mut instance = body_instance(&call, &subject)?;
    if let Some(class) = &subject.class {
        instance.class = class.clone();
    }
    let operation = Operation::CreateInstance { instance };
    match call.run(&subject.namespace, operation).await? {
        Response::Created(path) => Ok(call.respond(
            &action("CreateResponse"),
            |_| {},
            |w: &mut Writer| {
                w.open("x:ResourceCreated");
                epr::write_parts(w, &path, &subject.family);
                w.close();
            },
        )),
        _ => Err(misfit()),
    }
}

pub(super) async fn delete(call: Call<'_>) -> Result<String, Fault> {
    let subject = call.subject()?;
    let path = call.path(&subject)?;
    call.run(&subject.namespace, Operation::DeleteInstance { path })
        .await?;
    Ok(call.respond(&action("DeleteResponse"), |_| {}, |_| {}))
}

/// The settings some clients read to size their messages.
pub(super) fn config(call: &Call<'_>) -> String {
    call.respond(
        &action("GetResponse"),
        |_| {},
        |w| {
            w.open("cfg:Config")
                .attr("xmlns:cfg", ns::MS_CONFIG)
                .leaf("cfg:MaxEnvelopeSizekb", "8192")
                .leaf("cfg:MaxTimeoutms", "4294967295")
                .leaf(
                    "cfg:MaxBatchItems",
                    &super::enumerate::MAX_BATCH.to_string(),
                )
                .close();
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_clients_send_are_read() {
        let read = |path| Fragment::parse(path).expect(path);
        let plain = Fragment {
            name: "Name",
            index: None,
            text: false,
        };
        for path in ["Name", " p:Name ", "/p:Msvm_X/p:Name", "//Name", "./Name"] {
            assert_eq!(read(path), plain, "{path}");
        }
        let second = read("Roles[2]/text()");
        assert_eq!(
            (second.name, second.index, second.text),
            ("Roles", Some(2), true)
        );
        for path in ["", "/", "a[b]", "a[@x='1']", "*", "count(a)"] {
            assert!(Fragment::parse(path).is_err(), "{path}");
        }
    }
}
