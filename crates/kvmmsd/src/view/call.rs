//! A method call on its way to a provider and back.

use cim::{Name, Value};
use msvm::ParameterError;
use uuid::Uuid;
use vmms::machine::Asked;
use vmms::{Fault, fault};

use super::House;
use crate::object::Object;

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
    pub(crate) fn started(house: &House, job: Uuid) -> Self {
        let path = house.element_path(&vmms::Element::Job(job));
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

/// Why a method call did not do what it was called for.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The method answers with a return code.
    Fault(Fault),
    /// A parameter does not fit.
    Parameter(ParameterError),
    /// The operation itself fails (no such object, method, class).
    Protocol(wbem::Error),
}

impl From<Fault> for CallError {
    fn from(fault: Fault) -> Self {
        CallError::Fault(fault)
    }
}

impl From<ParameterError> for CallError {
    fn from(error: ParameterError) -> Self {
        CallError::Parameter(error)
    }
}

impl From<wbem::Error> for CallError {
    fn from(error: wbem::Error) -> Self {
        CallError::Protocol(error)
    }
}

/// What answers a method.
pub(crate) type CallResult = Result<Outcome, CallError>;

/// A method that is declared but not served: refused with the documented code and told why.
pub(crate) fn unserved(class: &str, method: &str) -> CallError {
    CallError::Fault(fault!(NotServed, format!("{class}.{method}")))
}
