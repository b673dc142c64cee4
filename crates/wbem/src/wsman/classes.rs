//! Class declarations over WS-Management, as CIM-XML in the body: what PowerShell reads before it builds
//! parameters.

use cim::cimxml::{ClassShape, write_class};
use cim::xml::Writer;
use cim::{Class, Name};

use super::fault::{Fault, Subcode};
use super::ns;
use super::service::{Call, misfit};
use crate::{Operation, Response};

/// What of a class is written.
#[derive(Clone, Debug)]
pub(super) struct Detail {
    local_only: bool,
    qualifiers: bool,
    class_origin: bool,
}

impl Detail {
    pub(super) fn of(call: &Call<'_>) -> Self {
        let on = |name: &str, default: bool| {
            call.message
                .option(name)
                .map_or(default, |v| !v.trim().eq_ignore_ascii_case("false"))
        };
        Detail {
            local_only: !on("IncludeInheritedElements", true),
            qualifiers: on("IncludeQualifiers", true),
            class_origin: on("IncludeClassOrigin", false),
        }
    }

    pub(super) fn write(&self, w: &mut Writer, class: &Class, ancestors: &[Name]) {
        let shape = ClassShape {
            local_only: self.local_only,
            qualifiers: self.qualifiers,
            class_origin: self.class_origin,
            properties: None,
            derivation: Some(ancestors),
        };
        write_class(w, class, &shape);
    }
}

/// The superclasses of a class.
pub(super) fn ancestors(call: &Call<'_>, namespace: &str, class: &Class) -> Vec<Name> {
    let schema = call.service.handler.schema(namespace);
    schema.map_or_else(Vec::new, |s| s.ancestors(class.name.as_str()))
}

pub(super) fn namespace(call: &Call<'_>, named: Option<String>, class: Option<&Name>) -> String {
    named.unwrap_or_else(|| call.default_namespace(class))
}

/// The class the selector `ClassName` names, else the one of the URI.
fn selected(call: &Call<'_>, of_uri: Option<Name>) -> Option<Name> {
    call.message
        .selector("ClassName")
        .map(str::trim)
        .filter(|name| !name.is_empty() && *name != "*")
        .map(|name| name.to_owned().into())
        .or(of_uri)
}

pub(super) async fn get(
    call: &Call<'_>,
    named: Option<String>,
    of_uri: Option<Name>,
) -> Result<String, Fault> {
    let class = selected(call, of_uri).ok_or_else(|| {
        Fault::sender(
            Subcode::InvalidSelectors,
            "The selector ClassName is missing.",
        )
        .detail("InsufficientSelectors")
    })?;
    let namespace = namespace(call, named, Some(&class));
    let operation = Operation::GetClass { class };
    let Response::Classes(found) = call.run(&namespace, operation).await? else {
        return Err(misfit());
    };
    let class = found.first().ok_or_else(misfit)?;
    let ancestors = ancestors(call, &namespace, class);
    Ok(call.respond(
        &format!("{}/GetResponse", ns::TRANSFER),
        |_| {},
        |w| Detail::of(call).write(w, class, &ancestors),
    ))
}

/// All classes, or those below the one named.
pub(super) async fn list(
    call: &Call<'_>,
    namespace: &str,
    of_uri: Option<Name>,
) -> Result<Vec<Class>, Fault> {
    let operation = Operation::EnumerateClasses {
        class: selected(call, of_uri),
        deep: true,
    };
    match call.run(namespace, operation).await? {
        Response::Classes(found) => Ok(found),
        _ => Err(misfit()),
    }
}
