//! Providers: one file for each group of classes, each turning domain objects into instances and method
//! calls into calls of the domain.

use std::sync::Arc;

use async_trait::async_trait;
use cim::{Instance, Name, Path, Value};
use msvm::ParameterError;
use uuid::Uuid;
use vmms::vm::Asked;
use vmms::{Fault, fault};
use wbem::Status;

use crate::Service;
use crate::errors::CallError;
use crate::object::{NAMESPACE, Object};

pub(crate) mod collection;
pub(crate) mod collection_point;
pub(crate) mod collection_snapshot;
mod device;
mod exports;
pub(crate) mod host;
mod image;
mod job;
mod kvmms;
pub(crate) mod links;
mod management;
mod point;
mod resource;
mod services;
mod settings;
pub(crate) mod snapshot;
mod summary;
mod vm;

/// A method call as a provider gets it.
pub(crate) struct Call<'a> {
    /// The object called.
    pub(crate) target: &'a Object,
    /// The method, as the schema spells it.
    pub(crate) method: &'a str,
    /// In parameters.
    pub(crate) parameters: &'a [(Name, Value)],
    /// Who asks.
    pub(crate) asked: &'a Asked,
}

/// What a method answers.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The return value.
    pub(crate) return_value: u32,
    /// Out parameters by name.
    pub(crate) out: Vec<(Name, Value)>,
    /// Why it was refused, for the log.
    pub(crate) fault: Option<Fault>,
}

impl Outcome {
    /// A return value with out parameters.
    pub(crate) fn of(return_value: u32, out: Vec<(Name, Value)>) -> Self {
        Outcome {
            return_value,
            out,
            fault: None,
        }
    }

    /// Checked and started: the job is in the parameter `Job`.
    pub(crate) fn started(service: &Service, job: Uuid) -> Self {
        let path = service.element_path(&vmms::Element::Job(job));
        Outcome::of(msvm::code::JOB_STARTED, vec![("Job".into(), path.into())])
    }

    /// Done, nothing to tell.
    pub(crate) fn done() -> Self {
        Outcome::default()
    }

    /// This outcome with one more out parameter.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.out.push((name.into(), value.into()));
        self
    }
}

/// What answers a method.
pub(crate) type CallResult = Result<Outcome, CallError>;

/// Serves the instances and methods of some classes.
#[async_trait]
pub(crate) trait Provider: Send + Sync {
    /// The namespace.
    fn namespace(&self) -> &'static str {
        NAMESPACE
    }

    /// The concrete classes it serves.
    fn classes(&self) -> &'static [&'static str];

    /// The objects of one of them.
    fn list(&self, service: &Service, class: &str) -> Vec<Object>;

    /// The objects a path names.
    fn find(&self, service: &Service, class: &str, path: &Path) -> Vec<Object> {
        let mut all = self.list(service, class);
        all.retain(|o| o.is_named_by(path));
        all
    }

    /// Objects that have to be asked for first, in the store or elsewhere; with `path` at least those it names. They are
    /// found by reading and by queries, not at the ends of associations.
    async fn fetch(
        &self,
        _service: &Service,
        _class: &str,
        _path: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        Ok(Vec::new())
    }

    /// The properties of an object; keys and what is left out are filled in by the caller.
    fn instance(&self, service: &Service, object: &Object) -> Instance;

    /// Calls a method.
    async fn invoke(&self, _service: &Service, call: Call<'_>) -> CallResult {
        Err(unserved(call.target.class, call.method))
    }
}

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
        Arc::new(collection_point::CollectionPoints),
        Arc::new(collection_snapshot::CollectionSnapshots),
        Arc::new(job::Jobs),
        Arc::new(host::HostInventory),
        Arc::new(host::Counters),
        Arc::new(host::Files),
        Arc::new(host::FileSystems),
        Arc::new(host::Interop),
        Arc::new(host::Pools),
        Arc::new(host::Capabilities),
        Arc::new(host::Network),
        Arc::new(kvmms::Exports),
        Arc::new(kvmms::History),
        Arc::new(kvmms::Catalogue),
        Arc::new(kvmms::HostDetail),
        Arc::new(kvmms::HostChecks),
        Arc::new(kvmms::Disks),
        Arc::new(kvmms::PointDetails),
    ]
}

/// A method that is declared but not served: refused with the documented code and told why.
pub(crate) fn unserved(class: &str, method: &str) -> CallError {
    CallError::Fault(fault!(NotServed, format!("{class}.{method}")))
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

impl Service {
    /// The object a REF parameter names, of that class or below.
    pub(crate) fn reference(
        &self,
        parameter: &str,
        path: &Path,
        class: &str,
    ) -> Result<Object, CallError> {
        let namespace = msvm::virtualization();
        if !cim::Schema::is_a(namespace, path.class.as_str(), class) {
            let why = format!("{} is not a {class}", path.class);
            return Err(fault!(InvalidValue, parameter, path, why).into());
        }
        if path.keys.is_empty() {
            return Err(fault!(InvalidValue, parameter, path, "a reference needs keys").into());
        }
        Ok(self.find(namespace, path)?)
    }

    /// The machine a REF parameter names, by its system or its settings.
    pub(crate) fn vm_reference(
        &self,
        parameter: &str,
        path: Option<&Path>,
    ) -> Result<Uuid, CallError> {
        let path = path.ok_or_else(|| CallError::from(fault!(MissingValue, parameter)))?;
        let class = if path.class.is(msvm::class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA) {
            msvm::class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA
        } else {
            "CIM_ComputerSystem"
        };
        let object = self.reference(parameter, path, class)?;
        object
            .vm()
            .ok_or_else(|| fault!(WrongType, parameter, "the host is not a virtual machine").into())
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
