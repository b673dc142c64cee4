//! Failures as the domain passes them on: an entry of the catalogue, its arguments, what it is about, and the
//! causes beneath, down to the QMP or operating system error.

mod catalogue;
mod convert;
mod element;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use catalogue::{Area, Entry, Kind, Message, Severity};
pub use element::{Effect, Element};

/// A failure with its causes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// The catalogue entry.
    pub message: Message,
    /// What stands for `{0}`, `{1}`, … in its text.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// The object it is about.
    #[serde(default)]
    pub element: Option<Element>,
    /// The host that said it, where it was not this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// What lies beneath, each with its own causes.
    #[serde(default)]
    pub causes: Vec<Fault>,
}

/// What every fallible function of the domain returns.
pub type Result<T, E = Fault> = std::result::Result<T, E>;

impl Fault {
    /// A failure with arguments.
    pub fn new<I>(message: Message, arguments: I) -> Self
    where
        I: IntoIterator,
        I::Item: ToString,
    {
        let arguments = arguments.into_iter().map(|a| a.to_string()).collect();
        Fault {
            message,
            arguments,
            element: None,
            host: None,
            causes: Vec::new(),
        }
    }

    /// This failure, about `element`.
    pub fn about(mut self, element: impl Into<Element>) -> Self {
        self.element = Some(element.into());
        self
    }

    /// This failure and its causes, as another host said them. What that host had from a third one stays that one's.
    pub fn from_host(mut self, host: &str) -> Self {
        self.host.get_or_insert_with(|| host.to_owned());
        let causes = std::mem::take(&mut self.causes).into_iter();
        self.causes = causes.map(|cause| cause.from_host(host)).collect();
        self
    }

    /// This failure, caused by `cause`.
    pub fn caused_by(mut self, cause: impl Into<Fault>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// The kind of the failure.
    pub fn kind(&self) -> Kind {
        self.message.entry().kind
    }

    /// Whether only looking at files, directories, processes or guests could tell: parameters and records did not.
    pub fn is_about_content(&self) -> bool {
        use Message as M;
        let entry = self.message.entry();
        match self.message {
            // Records say which machine has an image, and that the store is broken is no end of a job: it could not be stored.
            M::ImageInUse | M::Store => false,
            M::NameTaken => self.arguments.first().is_some_and(|a| a.contains("file")),
            M::ShrinkRefused
            | M::TrackingLost
            | M::ExportExists
            | M::ImportFailed
            | M::PointNotExported
            | M::PointUnclear
            | M::CollectionIncomplete
            | M::DigestMismatch
            | M::LayerMissing
            | M::ImageTampered
            | M::QemuGone
            | M::Deadline
            | M::Qmp
            | M::Driver
            | M::AgentRefused => true,
            _ => entry.area == Area::Resource || self.causes.iter().any(Fault::is_about_content),
        }
    }

    /// Whether this failure or a cause of it is `message`.
    pub fn has(&self, message: Message) -> bool {
        self.message == message || self.causes.iter().any(|c| c.has(message))
    }

    /// This failure and all beneath it, each before its causes.
    pub fn chain(&self) -> Vec<&Fault> {
        let mut out = vec![self];
        for cause in &self.causes {
            out.extend(cause.chain());
        }
        out
    }

    /// The text with its arguments filled in.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut rest = self.message.entry().text;
        while let Some((before, after)) = rest.split_once('{') {
            out.push_str(before);
            let Some((index, after)) = after.split_once('}') else {
                break;
            };
            let argument = index
                .parse()
                .ok()
                .and_then(|i: usize| self.arguments.get(i));
            out.push_str(argument.map_or("?", String::as_str));
            rest = after;
        }
        out + rest
    }

    /// An operating system error on a file, told apart by what users can do about it.
    pub fn io(action: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let shown = path.display();
        let os = Fault::new(
            Message::Os,
            [
                format!("{action} {shown}"),
                error.kind().to_string(),
                error
                    .raw_os_error()
                    .map_or_else(|| "none".to_owned(), |code| code.to_string()),
            ],
        );
        match error.kind() {
            Io::NotFound => Fault::new(Message::ImageMissing, [shown]).caused_by(os),
            Io::PermissionDenied | Io::ReadOnlyFilesystem => {
                Fault::new(Message::FileDenied, [action.to_owned(), shown.to_string()])
                    .caused_by(os)
            }
            Io::StorageFull | Io::QuotaExceeded => {
                Fault::new(Message::NoSpace, [shown]).caused_by(os)
            }
            _ => os,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl std::error::Error for Fault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.causes
            .first()
            .map(|c| c as &(dyn std::error::Error + 'static))
    }
}

/// Shorthand: a failure with its arguments, as many as its text has: anything else does not compile.
#[macro_export]
macro_rules! fault {
    ($message:ident $(, $argument:expr)* $(,)?) => {{
        const ARGUMENTS: usize = $crate::count!($($argument),*);
        const {
            assert!($crate::Message::$message.arity() == ARGUMENTS, "the text has another number of arguments");
        }
        $crate::Fault::new($crate::Message::$message, [$($argument.to_string()),*] as [String; ARGUMENTS])
    }};
}

/// Counts its arguments.
#[doc(hidden)]
#[macro_export]
macro_rules! count {
    () => { 0 };
    ($head:expr $(, $tail:expr)*) => { 1 + $crate::count!($($tail),*) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_shows_its_arguments_and_survives_missing_ones() {
        assert_eq!(
            fault!(JobFinal, "J", "completed").text(),
            "job J has ended (completed) and cannot change any more"
        );
        let nothing: [&str; 0] = [];
        let missing = Fault::new(Message::VmNotFound, nothing);
        assert_eq!(missing.text(), "there is no virtual machine ?");
    }

    #[test]
    fn what_another_host_said_stays_its_own_and_old_records_read() {
        let there = fault!(NoSpace, "/x").caused_by(fault!(Os, "write /x", "full", 28));
        let chain = fault!(ExportFailed, "P", "/x").caused_by(there.from_host("beta"));
        let hosts = |f: &Fault| {
            let chain = f.chain().into_iter();
            chain.map(|f| f.host.clone()).collect::<Vec<_>>()
        };
        let beta = || Some("beta".to_owned());
        assert_eq!(hosts(&chain), [None, beta(), beta()]);
        let again = chain.clone().from_host("alpha");
        let alpha = Some("alpha".to_owned());
        assert_eq!(hosts(&again), [alpha, beta(), beta()]);
        let stored = serde_json::to_string(&fault!(NoSpace, "/x")).expect("json");
        assert!(!stored.contains("host"), "{stored}");
        let read: Fault = serde_json::from_str(&stored).expect("a record of before");
        assert_eq!(read.host, None);
    }

    #[test]
    fn a_chain_lists_each_failure_before_its_causes() {
        let fault = fault!(ExportFailed, "P", "/x")
            .caused_by(fault!(NoSpace, "/x").caused_by(fault!(Os, "write /x", "full", 28)));
        let numbers: Vec<u16> = fault.chain().iter().map(|f| f.message.into()).collect();
        assert_eq!(numbers, [110, 68, 143]);
        assert!(fault.has(Message::Os));
        let stored = serde_json::to_string(&fault).expect("json");
        assert_eq!(
            serde_json::from_str::<Fault>(&stored).expect("fault"),
            fault
        );
    }
}
