//! Providers: one file for each group of classes, each turning domain objects into instances and method
//! calls into calls of the domain.

use std::sync::Arc;

use cim::{Instance, Value};
use msvm::ParameterError;
use vmms::collection::{CollectionPoint, CollectionSnapshot};
use vmms::{Fault, fault};
use wbem::Status;

use collection_instant::CollectionInstants;

use crate::view::{CallError, Provider};

mod associations;
mod collection;
mod collection_instant;
mod collection_point;
mod collection_snapshot;
mod device;
mod exports;
pub(crate) mod host;
mod image;
mod job;
mod kvmms;
mod management;
mod migration;
mod point;
mod resource;
mod services;
mod settings;
mod snapshot;
mod summary;
mod vm;

pub(crate) use associations::associations;

/// All providers.
pub(crate) fn all() -> Vec<Arc<dyn Provider>> {
    vec![
        Arc::new(vm::Systems),
        Arc::new(settings::Settings),
        Arc::new(resource::Resources),
        Arc::new(device::Devices),
        Arc::new(services::Services),
        Arc::new(point::Points),
        Arc::new(collection::Collections),
        Arc::new(CollectionInstants::<CollectionPoint>::new()),
        Arc::new(CollectionInstants::<CollectionSnapshot>::new()),
        Arc::new(job::Jobs),
        Arc::new(host::HostInventory),
        Arc::new(host::Counters),
        Arc::new(host::Files),
        Arc::new(host::FileSystems),
        Arc::new(host::Interop),
        Arc::new(host::Pools),
        Arc::new(host::Capabilities),
        Arc::new(host::Network),
        Arc::new(migration::Migrations),
        Arc::new(kvmms::Exports),
        Arc::new(kvmms::History),
        Arc::new(kvmms::Catalogue),
        Arc::new(kvmms::HostDetail),
        Arc::new(kvmms::HostChecks),
        Arc::new(kvmms::Hosts),
        Arc::new(kvmms::Moves),
        Arc::new(kvmms::Disks),
        Arc::new(kvmms::PointDetails),
    ]
}

/// A parameter that does not fit, in the words of the catalogue.
pub(crate) fn parameter_fault(error: &ParameterError) -> Fault {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    match error {
        ParameterError::Missing { parameter } => fault!(MissingValue, parameter),
        ParameterError::Embedded { parameter, .. } => {
            fault!(
                WrongType,
                parameter,
                cause.unwrap_or_else(|| error.to_string())
            )
        }
        ParameterError::Unknown { parameter } => {
            fault!(UnknownName, "the method", "parameter", parameter)
        }
        ParameterError::Property {
            parameter,
            class,
            property,
        } => {
            fault!(
                UnknownName,
                format!("{class} (parameter {parameter})"),
                "property",
                property
            )
        }
        ParameterError::Type { parameter, .. } => {
            fault!(InvalidValue, parameter, "what was sent", error.to_string())
        }
    }
}

/// What a text in settings names. Settings are a parameter: what they name in vain is an invalid one, not an object that is gone.
pub(crate) fn in_settings<T>(
    setting: &str,
    text: &str,
    named: Result<T, CallError>,
) -> Result<T, CallError> {
    match named {
        Err(CallError::Fault(fault)) if fault.kind() == vmms::Kind::NotFound => {
            Err(fault!(DanglingReference, setting, text)
                .caused_by(fault)
                .into())
        }
        other => other,
    }
}

/// That an embedded instance is of that class or below.
pub(crate) fn expect_class(
    parameter: &str,
    instance: &Instance,
    class: &str,
) -> Result<(), CallError> {
    if cim::Schema::is_a(msvm::virtualization(), instance.class.as_str(), class) {
        Ok(())
    } else {
        Err(fault!(
            WrongType,
            parameter,
            format!("{} is not a {class}", instance.class)
        )
        .into())
    }
}

/// A value of an embedded instance in the wanted type; null and absent are both `None`.
pub(crate) fn given<T: TryFrom<i128>>(
    instance: &Instance,
    property: &str,
) -> Result<Option<T>, CallError> {
    let value = instance.get(property);
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(text) if text.trim().is_empty() => return Ok(None),
        other => other.to_text().unwrap_or_default(),
    };
    let number = text
        .trim()
        .parse::<i128>()
        .ok()
        .and_then(|n| T::try_from(n).ok());
    match number {
        Some(number) => Ok(Some(number)),
        None => Err(fault!(
            InvalidValue,
            property,
            format!("{text:?}"),
            "a number in the property's range is needed"
        )
        .into()),
    }
}

/// A boolean of an embedded instance.
pub(crate) fn given_bool(instance: &Instance, property: &str) -> Option<bool> {
    match instance.get(property) {
        Value::Boolean(b) => Some(*b),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// The first text of a string or string array property.
pub(crate) fn given_text<'a>(instance: &'a Instance, property: &str) -> Option<&'a str> {
    instance
        .get(property)
        .items()
        .iter()
        .find_map(Value::as_str)
        .filter(|t| !t.is_empty())
}

/// An internal error of the protocol layer.
pub(crate) fn internal(what: impl std::fmt::Display) -> CallError {
    CallError::Protocol(wbem::Error::new(Status::Failed, what.to_string()))
}
