//! Enumerate, Pull and Release (WS-Enumeration with DSP0226's options).
//!
//! A query runs once, at Enumerate; what it found waits in a context and is written piece by piece.

use std::collections::VecDeque;
use std::time::Duration;

use cim::xml::{Element, Writer};
use cim::{Class, Instance, Name, Value};

use super::classes::{self, Detail};
use super::fault::{Fault, Subcode};
use super::service::{Call, Subject, misfit};
use super::uri::Resource;
use super::{envelope, epr, instance, ns};
use crate::contexts::{self, Held};
use crate::footprint;
use crate::{Error, Instances, Operation, Status, Walk};

/// The most items of one answer.
pub(super) const MAX_BATCH: usize = 32_000;
/// Where the client sets no limit, Windows' own default (bytes).
const DEFAULT_ENVELOPE: usize = 512_000;
/// What an answer may have whatever the client would take (bytes).
const LARGEST_ENVELOPE: usize = 8 << 20;
/// What an answer needs around its items (bytes).
const ENVELOPE_ITSELF: usize = 1_600;

/// What is left of an enumeration.
pub(crate) struct Enumeration {
    items: Items,
    total: usize,
    mode: Mode,
    shape: instance::Shape,
}

impl Held for Enumeration {
    fn bytes(&self) -> usize {
        match &self.items {
            Items::Instances(left) => left.bytes(),
            Items::Classes { bytes, .. } => *bytes,
        }
    }
}

enum Items {
    Instances(Instances),
    Classes {
        left: VecDeque<(Class, Vec<Name>)>,
        detail: Detail,
        /// What those left hold.
        bytes: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Object,
    Epr,
    ObjectAndEpr,
}

impl Enumeration {
    fn left(&self) -> usize {
        match &self.items {
            Items::Instances(left) => left.len(),
            Items::Classes { left, .. } => left.len(),
        }
    }

    /// Writes up to `count` items, as far as they fit `room` bytes; one always fits.
    fn batch(&mut self, count: usize, room: usize) -> String {
        let mut out = String::new();
        let (mode, shape) = (self.mode, &self.shape);
        for _ in 0..count {
            let mut w = Writer::with_capacity(2048);
            match &mut self.items {
                Items::Instances(left) => match left.peek() {
                    Some(item) => write_item(&mut w, item, mode, shape),
                    None => break,
                },
                Items::Classes { left, detail, .. } => match left.front() {
                    Some((class, ancestors)) => detail.write(&mut w, class, ancestors),
                    None => break,
                },
            }
            let item = w.finish();
            if !out.is_empty() && out.len() + item.len() > room {
                break;
            }
            out.push_str(&item);
            match &mut self.items {
                Items::Instances(left) => drop(left.next()),
                Items::Classes { left, bytes, .. } => {
                    let gone = left.pop_front();
                    let gone = gone.map_or(0, |(c, a)| footprint::class(&c, &a));
                    *bytes = bytes.saturating_sub(gone);
                }
            }
        }
        if let Items::Classes { left, .. } = &mut self.items {
            contexts::give_back(left);
        }
        out
    }
}

fn write_item(w: &mut Writer, item: &Instance, mode: Mode, shape: &instance::Shape) {
    let path = |w: &mut Writer| {
        if let Some(path) = &item.path {
            epr::write(w, path, &shape.family);
        }
    };
    match mode {
        Mode::Object => instance::write(w, item, shape),
        Mode::Epr => path(w),
        Mode::ObjectAndEpr => {
            w.open("w:Item");
            instance::write(w, item, shape);
            path(w);
            w.close();
        }
    }
}

fn schema_fault(what: impl Into<String>) -> Fault {
    Fault::sender(Subcode::SchemaValidation, what)
}

fn action(verb: &str) -> String {
    format!("{}/{verb}", ns::ENUMERATION)
}

/// `MaxElements` of either namespace; one where it is left out.
fn max_elements(body: &Element) -> usize {
    [ns::WSMAN, ns::ENUMERATION]
        .iter()
        .find_map(|namespace| body.child(namespace, "MaxElements"))
        .and_then(|e| e.text().parse().ok())
        .unwrap_or(1)
        .clamp(1, MAX_BATCH)
}

fn room(call: &Call<'_>) -> usize {
    call.message
        .max_envelope
        .unwrap_or(DEFAULT_ENVELOPE)
        .min(LARGEST_ENVELOPE)
        .saturating_sub(ENVELOPE_ITSELF)
}

fn total_header(call: &Call<'_>, total: usize) -> impl FnOnce(&mut Writer) {
    let wanted = call.message.wants_total;
    move |w| {
        if wanted {
            w.leaf("w:TotalItemsCountEstimate", &total.to_string());
        }
    }
}

pub(super) async fn enumerate(mut call: Call<'_>) -> Result<String, Fault> {
    let body = call
        .message
        .body
        .take()
        .filter(|b| b.is(ns::ENUMERATION, "Enumerate"))
        .ok_or_else(|| schema_fault("The Body holds no Enumerate."))?;
    let mode = body
        .child(ns::WSMAN, "EnumerationMode")
        .map_or("EnumerateObject", Element::text);
    let mode = match mode {
        "EnumerateObject" => Mode::Object,
        "EnumerateEPR" => Mode::Epr,
        "EnumerateObjectAndEPR" => Mode::ObjectAndEpr,
        other => {
            return Err(Fault::sender(
                Subcode::UnsupportedFeature,
                format!("The enumeration mode {other:?} is not supported."),
            )
            .detail("EnumerationMode"));
        }
    };
    let mut enumeration = match call.resource()? {
        Resource::Classes { namespace, class } => {
            let namespace = classes::namespace(&call, namespace, class.as_ref());
            let found = classes::list(&call, &namespace, class).await?;
            let left = found
                .into_iter()
                .map(|class| {
                    let ancestors = classes::ancestors(&call, &namespace, &class);
                    (class, ancestors)
                })
                .collect::<VecDeque<_>>();
            let bytes = left.iter().map(|(c, a)| footprint::class(c, a)).sum();
            Enumeration {
                total: left.len(),
                items: Items::Classes {
                    left,
                    detail: Detail::of(&call),
                    bytes,
                },
                mode: Mode::Object,
                shape: call.shape(super::uri::Family::CimSchema { namespace }),
            }
        }
        Resource::Instances { .. } => instances(&call, &body, mode).await?,
        Resource::Config => {
            return Err(Fault::sender(
                Subcode::ActionNotSupported,
                "The settings of the server can only be read with Get.",
            ));
        }
    };
    let total = enumeration.total;
    let optimize = body.child(ns::WSMAN, "OptimizeEnumeration").is_some();
    let first = optimize.then(|| enumeration.batch(max_elements(&body), room(&call)));
    let done = optimize && enumeration.left() == 0;
    let context = if done {
        String::new()
    } else {
        let idle = body
            .child(ns::ENUMERATION, "Expires")
            .and_then(|e| envelope::duration(e.text()))
            .filter(|d| *d > Duration::ZERO);
        let opened = call
            .service
            .contexts
            .open(&call.caller.user, idle, enumeration);
        let id = opened.map_err(|limit| Fault::from(call.service.handler.limit(&limit)))?;
        format!("uuid:{id}")
    };
    Ok(call.respond(
        &action("EnumerateResponse"),
        total_header(&call, total),
        |w| {
            w.open("n:EnumerateResponse")
                .leaf("n:EnumerationContext", &context);
            if let Some(items) = &first {
                w.open("w:Items").raw(items).close();
            }
            if done {
                w.empty("w:EndOfSequence");
            }
            w.close();
        },
    ))
}

/// Runs what an Enumerate asks for.
async fn instances(call: &Call<'_>, body: &Element, mode: Mode) -> Result<Enumeration, Fault> {
    let subject = call.subject()?;
    let filter = body
        .child(ns::WSMAN, "Filter")
        .or_else(|| body.child(ns::ENUMERATION, "Filter"));
    let mut selector_filter = None;
    let mut polymorphic = false;
    let operation = match filter {
        None => {
            polymorphic = true;
            Operation::EnumerateInstances {
                class: class_of(&subject)?,
            }
        }
        Some(filter) => {
            let dialect = filter
                .attr("Dialect")
                .or_else(|| filter.attr_ns(ns::WSMAN, "Dialect"))
                .unwrap_or(ns::WQL);
            if dialect.eq_ignore_ascii_case(ns::WQL) {
                Operation::Query {
                    query: cim::wql::parse(&filter.text).map_err(|e| {
                        Error::new(Status::InvalidQuery, format!("{}.", envelope::chain(&e)))
                    })?,
                }
            } else if dialect.eq_ignore_ascii_case(ns::ASSOCIATION_FILTER) {
                association(filter)?
            } else if dialect.eq_ignore_ascii_case(ns::SELECTOR_FILTER) {
                let set = filter
                    .child(ns::WSMAN, "SelectorSet")
                    .ok_or_else(|| schema_fault("The SelectorFilter has no SelectorSet."))?;
                selector_filter = Some(envelope::selectors(set)?);
                Operation::EnumerateInstances {
                    class: class_of(&subject)?,
                }
            } else {
                return Err(Fault::sender(
                    Subcode::FilterDialect,
                    format!("The filter dialect {dialect:?} is not supported; WQL is."),
                ));
            }
        }
    };
    let found = call.run(&subject.namespace, operation).await?.instances();
    let mut found = found.ok_or_else(misfit)?;
    let only = |found: Instances, wanted: &dyn Fn(&Instance) -> bool| {
        Instances::from(found.filter(wanted).collect::<Vec<_>>())
    };
    if let Some(selectors) = selector_filter {
        let fits = |i: &Instance| {
            selectors
                .iter()
                .all(|(name, value)| selected(i, name, value))
        };
        found = only(found, &fits);
    }
    let mut shape = call.shape(subject.family.clone());
    if polymorphic && let Some(asked) = body.child(ns::BINDING, "PolymorphismMode") {
        match asked.text() {
            "IncludeSubClassProperties" => {}
            "None" => {
                let class = class_of(&subject)?;
                found = only(found, &|i| i.class == class);
            }
            "ExcludeSubClassProperties" => {
                let class = class_of(&subject)?;
                let schema = call.service.handler.schema(&subject.namespace);
                shape.base = schema.and_then(|s| s.class(class.as_str())).cloned();
            }
            other => {
                return Err(Fault::sender(
                    Subcode::PolymorphismMode,
                    format!("The polymorphism mode {other:?} is not supported."),
                ));
            }
        }
    }
    if mode != Mode::Object && !found.have_paths() {
        return Err(Fault::sender(
            Subcode::UnsupportedFeature,
            "What this query gives has no endpoint references.",
        )
        .detail("EnumerationMode"));
    }
    Ok(Enumeration {
        total: found.len(),
        items: Items::Instances(found),
        mode,
        shape,
    })
}

fn class_of(subject: &Subject) -> Result<Name, Fault> {
    subject.class.clone().ok_or_else(|| {
        Fault::sender(
            Subcode::CannotProcessFilter,
            "The resource URI names all classes: a filter has to say which.",
        )
    })
}

/// Whether a property has the value a selector names; text compares without case, as in keys.
fn selected(instance: &Instance, name: &Name, wanted: &Value) -> bool {
    let wanted_text = wanted.to_text().unwrap_or_default().to_lowercase();
    let same = |value: &Value| match (value.as_path(), wanted) {
        (Some(path), Value::Reference(wanted)) => path == **wanted,
        _ => value
            .to_text()
            .is_some_and(|text| text.to_lowercase() == wanted_text),
    };
    instance.get(name.as_str()).items().iter().any(same)
}

fn association(filter: &Element) -> Result<Operation, Fault> {
    let (what, associated) = match filter.child(ns::BINDING, "AssociatedInstances") {
        Some(what) => (what, true),
        None => (
            filter
                .child(ns::BINDING, "AssociationInstances")
                .ok_or_else(|| schema_fault("The association filter names no kind."))?,
            false,
        ),
    };
    let object = what
        .child(ns::BINDING, "Object")
        .ok_or_else(|| schema_fault("The association filter has no Object."))?;
    let path = epr::read(object)?;
    let name = |local: &str| {
        what.child(ns::BINDING, local)
            .map(Element::text)
            .filter(|text| !text.is_empty())
            .map(|text| Name::from(text.to_owned()))
    };
    let walk = Walk {
        assoc_class: name("AssociationClassName").filter(|_| associated),
        result_class: name("ResultClassName"),
        role: name("Role"),
        result_role: name("ResultRole").filter(|_| associated),
    };
    Ok(if associated {
        Operation::Associators { path, walk }
    } else {
        Operation::References { path, walk }
    })
}

/// Reads what an Enumerate may hold.
pub(super) fn probe(body: &Element) {
    let _ = max_elements(body);
    for filter in body.children_named(ns::WSMAN, "Filter") {
        let _ = association(filter);
        let _ = cim::wql::parse(&filter.text);
        let _ = filter
            .child(ns::WSMAN, "SelectorSet")
            .map(envelope::selectors);
    }
}

fn context_id(body: &Element) -> Result<&str, Fault> {
    body.child(ns::ENUMERATION, "EnumerationContext")
        .map(Element::text)
        .ok_or_else(|| schema_fault("The Body names no EnumerationContext."))
}

fn unknown_context() -> Fault {
    Fault::receiver(
        Subcode::InvalidContext,
        "The enumeration context is unknown, ended, expired, or being pulled just now.",
    )
}

pub(super) fn pull(call: &Call<'_>) -> Result<String, Fault> {
    let body = call
        .message
        .body
        .as_ref()
        .filter(|b| b.is(ns::ENUMERATION, "Pull"))
        .ok_or_else(|| schema_fault("The Body holds no Pull."))?;
    let contexts = &call.service.contexts;
    let mut taken = contexts
        .take(&call.caller.user, context_id(body)?)
        .ok_or_else(unknown_context)?;
    let mut room = room(call);
    let characters = body
        .child(ns::ENUMERATION, "MaxCharacters")
        .and_then(|e| e.text().parse().ok());
    if let Some(characters) = characters {
        room = room.min(characters);
    }
    let items = taken.state.batch(max_elements(body), room);
    let total = taken.state.total;
    let done = taken.state.left() == 0;
    let id = taken.id;
    if done {
        contexts.end(taken);
    } else {
        contexts.put(taken);
    }
    Ok(
        call.respond(&action("PullResponse"), total_header(call, total), |w| {
            w.open("n:PullResponse");
            if !done {
                w.leaf("n:EnumerationContext", &format!("uuid:{id}"));
            }
            w.open("n:Items").raw(&items).close();
            if done {
                w.empty("n:EndOfSequence");
            }
            w.close();
        }),
    )
}

pub(super) fn release(call: &Call<'_>) -> Result<String, Fault> {
    let body = call
        .message
        .body
        .as_ref()
        .filter(|b| b.is(ns::ENUMERATION, "Release"))
        .ok_or_else(|| schema_fault("The Body holds no Release."))?;
    if !call
        .service
        .contexts
        .close(&call.caller.user, context_id(body)?)
    {
        return Err(unknown_context());
    }
    Ok(call.respond(&action("ReleaseResponse"), |_| {}, |_| {}))
}
