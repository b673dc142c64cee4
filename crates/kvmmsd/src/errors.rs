//! The one table from failures of the domain to what clients see: return code, CIM status, `Msvm_Error`.

use cim::{Instance, Path};
use msvm::code;
use vmms::{Area, Element, Fault, Kind, Message, Severity, fault};
use wbem::Status;

use crate::view::{House, View};

/// How a kind of failure is told.
struct Told {
    /// The return value of a method.
    code: u32,
    /// The status of an operation, and of an `Msvm_Error`.
    status: Status,
}

fn told(kind: Kind) -> Told {
    let (code, status) = match kind {
        Kind::Failed => (code::FAILED, Status::Failed),
        Kind::AccessDenied => (code::ACCESS_DENIED, Status::AccessDenied),
        Kind::NotSupported => (code::NOT_SUPPORTED, Status::NotSupported),
        Kind::Timeout => (code::TIMEOUT, Status::OperationTimeout),
        Kind::InvalidParameter => (code::INVALID_PARAMETER, Status::InvalidParameter),
        Kind::InUse => (code::IN_USE, Status::Failed),
        Kind::InvalidState => (code::INVALID_STATE, Status::Failed),
        Kind::IncorrectType => (code::INCORRECT_DATA_TYPE, Status::TypeMismatch),
        Kind::NotAvailable => (code::SYSTEM_NOT_AVAILABLE, Status::Failed),
        Kind::OutOfResources => (code::OUT_OF_MEMORY, Status::LimitExceeded),
        Kind::FileNotFound => (code::FILE_NOT_FOUND, Status::NotFound),
        Kind::NotFound => (code::INVALID_PARAMETER, Status::NotFound),
        Kind::Cancelled => (code::FAILED, Status::Failed),
    };
    Told { code, status }
}

/// The return code of a kind of failure.
pub(crate) fn code_of(kind: Kind) -> u32 {
    told(kind).code
}

/// The return code of a failure.
pub(crate) fn return_code(fault: &Fault) -> u32 {
    told(fault.kind()).code
}

/// The most specific code of a failure: its own, or what lies beneath it says more than "failed". Members of a collection that
/// failed for different reasons have no code in common.
pub(crate) fn specific_code(fault: &Fault) -> u32 {
    let own = return_code(fault);
    if own != code::FAILED || fault.kind() == Kind::Cancelled {
        return own;
    }
    let mut beneath = fault.causes.iter().map(specific_code);
    let members = fault
        .causes
        .iter()
        .filter(|c| c.message == Message::MemberFailed)
        .count();
    let first = beneath.next().unwrap_or(own);
    if members > 1 && beneath.any(|other| other != first) {
        return own;
    }
    first
}

/// A failed operation with its chain of causes, in words the caller may hear.
pub(crate) fn operation_error(view: &View, fault: &Fault) -> wbem::Error {
    anyones_error(view, &view.told(fault))
}

/// A failed operation that names nothing of anybody's.
pub(crate) fn anyones_error(house: &House, fault: &Fault) -> wbem::Error {
    let entry = fault.message.entry();
    let mut chain = Vec::new();
    add_chain(house, fault, &Element::Host, &mut chain);
    wbem::Error {
        status: told(entry.kind).status,
        message: format!(
            "{} [{}]. {}",
            fault.text(),
            fault.message.id(),
            entry.remedy.join(" ")
        ),
        chain,
    }
}

/// A method call that is refused, as a failed operation about an object.
pub(crate) fn refused(view: &View, fault: &Fault, about: &Element) -> wbem::Error {
    wbem::Error {
        chain: chain(view, fault, about),
        ..operation_error(view, fault)
    }
}

/// The `Msvm_Error` instances of a failure: the summary first, then what lies beneath, each about an object. `about` is the one
/// the call was for, or the job's.
pub(crate) fn chain(view: &View, fault: &Fault, about: &Element) -> Vec<Instance> {
    let mut out = Vec::new();
    add_chain(view, &view.told(fault), about, &mut out);
    out
}

/// What has no object of its own is about the object of the failure above it.
fn add_chain(house: &House, fault: &Fault, above: &Element, out: &mut Vec<Instance>) {
    let about = fault.element.as_ref().unwrap_or(above);
    out.push(instance(fault, &source(house, fault, about)));
    for cause in &fault.causes {
        add_chain(house, cause, about, out);
    }
}

/// What a failure is about; what another host said names that host's object.
fn source(house: &House, fault: &Fault, about: &Element) -> Path {
    match &fault.host {
        Some(host) => house.path_on(host, about),
        None => house.element_path(about),
    }
}

fn instance(fault: &Fault, about: &Path) -> Instance {
    let entry = fault.message.entry();
    let status = told(entry.kind).status;
    let mut error = Instance::new(msvm::class::MSVM_ERROR);
    let error_type: u16 = match entry.area {
        Area::Software => 4,
        Area::Communications => 2,
        Area::Resource => 6,
        Area::Security => 7,
        Area::Unsupported => 10,
    };
    let severity: u16 = match entry.severity {
        Severity::Low => 2,
        Severity::Medium => 3,
        Severity::High => 4,
        Severity::Fatal => 5,
    };
    error
        .set("ErrorType", error_type)
        .set("OwningEntity", "kvmms")
        .set("MessageID", fault.message.id())
        .set("Message", fault.text())
        .set("MessageArguments", fault.arguments.clone())
        .set("PerceivedSeverity", severity)
        .set("ProbableCause", probable_cause(entry.kind, entry.area))
        .set("ProbableCauseDescription", entry.cause)
        .set(
            "RecommendedActions",
            entry
                .remedy
                .iter()
                .map(|r| (*r).to_owned())
                .collect::<Vec<_>>(),
        )
        .set("ErrorSourceFormat", 2u16)
        .set("ErrorSource", about.to_string())
        .set("CIMStatusCode", status as u32)
        .set("CIMStatusCodeDescription", format!("{status:?}"));
    complete(error)
}

/// ProbableCause of CIM_Error: the number of its list that says it best.
fn probable_cause(kind: Kind, area: Area) -> u16 {
    const OTHER: u16 = 1;
    const COMMUNICATIONS: u16 = 7;
    const CONFIGURATION: u16 = 8;
    const SOFTWARE: u16 = 47;
    const STORAGE_CAPACITY: u16 = 50;
    const RESOURCE_UNAVAILABLE: u16 = 57;
    const UNAUTHORIZED: u16 = 65;
    const ELEMENT_UNAVAILABLE: u16 = 72;
    const ELEMENT_MISSING: u16 = 73;
    const TIMEOUT: u16 = 111;
    const PROCEDURAL: u16 = 129;
    match (kind, area) {
        (Kind::OutOfResources, _) => STORAGE_CAPACITY,
        (Kind::Timeout, _) => TIMEOUT,
        (Kind::AccessDenied, _) => UNAUTHORIZED,
        (Kind::FileNotFound | Kind::NotFound, _) => ELEMENT_MISSING,
        (Kind::InUse | Kind::NotAvailable, _) => ELEMENT_UNAVAILABLE,
        (Kind::InvalidState | Kind::InvalidParameter | Kind::IncorrectType, _) => PROCEDURAL,
        (Kind::NotSupported, _) => CONFIGURATION,
        (Kind::Cancelled, _) => OTHER,
        (Kind::Failed, Area::Communications) => COMMUNICATIONS,
        (Kind::Failed, Area::Resource) => RESOURCE_UNAVAILABLE,
        (Kind::Failed, _) => SOFTWARE,
    }
}

/// An instance with every property of its class; one that does not fit its class is shown as it is and logged.
pub(crate) fn complete(mut instance: Instance) -> Instance {
    if let Err(error) = msvm::virtualization().complete(&mut instance) {
        tracing::error!(class = %instance.class, %error, "an instance does not fit its class");
    }
    instance
}

/// That a path names nothing.
pub(crate) fn not_found(view: &View, path: &Path) -> wbem::Error {
    operation_error(view, &fault!(ObjectNotFound, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(message: Message) -> Fault {
        Fault::new(message, ["a", "b", "c", "d"])
    }

    #[test]
    fn a_code_is_the_most_specific_that_all_machines_of_a_collection_have_in_common() {
        let member = |cause| of(Message::MemberFailed).caused_by(of(cause));
        let whole = |causes: &[Message]| {
            let begin = of(Message::CollectionExportFailed);
            let fault = causes.iter().fold(begin, |f, c| f.caused_by(member(*c)));
            specific_code(&fault)
        };
        let (state, access) = (Message::NoAssociatedData, Message::PathRefused);
        let of_state = return_code(&of(state));
        let of_access = return_code(&of(access));
        assert!(of_state != of_access && of_state != code::FAILED && of_access != code::FAILED);
        assert_eq!(whole(&[state]), of_state);
        assert_eq!(whole(&[state, state]), of_state);
        assert_eq!(whole(&[state, access]), code::FAILED);
        assert_eq!(whole(&[]), code::FAILED);
        // A code of its own is not looked behind.
        assert_eq!(specific_code(&of(state).caused_by(of(access))), of_state);
    }
}
