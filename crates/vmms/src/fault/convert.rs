//! What lies beneath, translated into the catalogue: nothing of the original text is lost.

use std::error::Error as _;

use super::{Fault, Message};

fn io_of<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut at = Some(error);
    while let Some(current) = at {
        if let Some(io) = current.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        at = current.source();
    }
    None
}

/// The sources of an error as a chain of `message` faults, ending in the operating system's.
fn sources(error: &(dyn std::error::Error + 'static), message: Message) -> Option<Fault> {
    let source = error.source()?;
    if let Some(io) = source.downcast_ref::<std::io::Error>() {
        let code = io
            .raw_os_error()
            .map_or_else(|| "none".to_owned(), |code| code.to_string());
        return Some(Fault::new(
            Message::Os,
            [error.to_string(), io.to_string(), code],
        ));
    }
    let mut fault = Fault::new(message, [source.to_string()]);
    fault.causes.extend(sources(source, message));
    Some(fault)
}

impl From<disk::Error> for Fault {
    fn from(error: disk::Error) -> Self {
        if matches!(error, disk::Error::Cancelled) {
            return Fault::new(Message::Cancelled, ["cancelled", "a client"]);
        }
        if let disk::Error::Refused { path, source } = &error {
            let what = path.display().to_string();
            return Fault::new(Message::PathRefused, [what, source.to_string()]);
        }
        if let disk::Error::Io {
            action,
            path,
            source,
            ..
        } = &error
        {
            let mut fault = Fault::io(action, path, source);
            // The offset stands in the error's own text.
            if let Some(os) = fault.causes.last_mut().filter(|f| f.message == Message::Os) {
                if let Some(first) = os.arguments.first_mut() {
                    *first = error.to_string();
                }
            } else if let Some(first) = fault.arguments.first_mut() {
                *first = error.to_string();
            }
            return fault;
        }
        if let disk::Error::Differs { what, offset } = &error {
            return Fault::new(Message::DigestMismatch, [what.clone(), offset.to_string()]);
        }
        if let disk::Error::Altered { path, why } = &error {
            let shown = path.display().to_string();
            return Fault::new(Message::ExportDamaged, [shown.as_str(), why]);
        }
        if let disk::Error::NotAFile { path, found } = &error {
            let shown = path.display().to_string();
            return Fault::new(Message::NotAFile, [shown.as_str(), found]);
        }
        let mut fault = Fault::new(Message::Block, [error.to_string()]);
        fault.causes.extend(sources(&error, Message::Block));
        fault
    }
}

impl From<hypervisor::Error> for Fault {
    fn from(error: hypervisor::Error) -> Self {
        use hypervisor::Error as E;
        let tail = |log: &str| {
            let log = log.trim();
            if log.is_empty() {
                "it left no message".to_owned()
            } else {
                log.to_owned()
            }
        };
        match &error {
            E::Qmp {
                command,
                class,
                desc,
            } => Fault::new(Message::Qmp, [command.clone(), class.clone(), desc.clone()]),
            E::Timeout { command, after } => {
                Fault::new(Message::Deadline, [command.clone(), format!("{after:?}")])
            }
            E::ProcessGone { log_tail } => Fault::new(Message::QemuGone, [tail(log_tail)]),
            E::StartFailed { status, log_tail } => {
                Fault::new(Message::Tool, [format!("QEMU ({status})"), tail(log_tail)])
            }
            E::Agent { command, desc, .. } => {
                Fault::new(Message::AgentRefused, [command.clone(), desc.clone()])
            }
            E::Image {
                command,
                status,
                stderr,
            } => {
                let mut fault = Fault::new(
                    Message::Tool,
                    [
                        command.clone(),
                        if stderr.trim().is_empty() {
                            status.clone()
                        } else {
                            tail(stderr)
                        },
                    ],
                );
                if stderr.contains("No space left on device") {
                    fault = Fault::new(Message::NoSpace, [command.clone()]).caused_by(fault);
                }
                fault
            }
            E::Io { what, path, source } => Fault::io(what, path, source),
            E::Unsupported { what, remedy } => {
                Fault::new(Message::HostLacks, [what.clone(), remedy.clone()])
            }
            _ => {
                let mut fault = Fault::new(Message::Driver, [error.to_string()]);
                fault.causes.extend(sources(&error, Message::Driver));
                fault
            }
        }
    }
}

impl From<store::StoreError> for Fault {
    fn from(error: store::StoreError) -> Self {
        let shown = |path: &std::path::Path| path.display().to_string();
        match &error {
            store::StoreError::Behind { path, found, known } => {
                return crate::fault!(StoreBehind, shown(path), found, known);
            }
            store::StoreError::Exchanged { path, known } => {
                return crate::fault!(StoreExchanged, shown(path), known);
            }
            store::StoreError::Corrupt { path, details } => {
                return crate::fault!(StoreDamaged, shown(path), details);
            }
            store::StoreError::Foreign { path, why } => {
                return crate::fault!(StoreDamaged, shown(path), why);
            }
            _ => {}
        }
        let full = io_of(&error).is_some_and(|e| e.kind() == std::io::ErrorKind::StorageFull);
        let mut fault = Fault::new(Message::Store, [error.to_string()]);
        fault.causes.extend(
            error
                .source()
                .map(|s| Fault::new(Message::Block, [s.to_string()])),
        );
        if full {
            return Fault::new(Message::NoSpace, ["the state store"]).caused_by(fault);
        }
        fault
    }
}
