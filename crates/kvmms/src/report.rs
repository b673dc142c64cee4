//! An error as it is told: message, causes beneath, what to do.

use std::error::Error as _;

use cim::Instance;
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::inspect::{number, some_text, text, texts};

/// One link of the chain of causes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    message: String,
    id: Option<String>,
    arguments: Vec<String>,
    cause: Option<String>,
    remedies: Vec<String>,
    severity: Option<u64>,
    about: Option<String>,
}

/// An error with everything that is told about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// The kind of failure, for programs.
    kind: &'static str,
    /// What failed.
    message: String,
    /// Why, summary first.
    chain: Vec<Link>,
    /// What to do, beyond the remedies of the chain.
    hints: Vec<String>,
    /// The job it is about.
    job: Option<String>,
    /// The return code, or the code of a fault.
    code: Option<u32>,
}

impl Link {
    fn plain(message: impl Into<String>) -> Self {
        Link {
            message: message.into(),
            ..Link::default()
        }
    }

    /// Reads an `Msvm_Error`.
    pub(crate) fn of(error: &Instance) -> Self {
        Link {
            message: text(error, "Message"),
            id: some_text(error, "MessageID"),
            arguments: texts(error, "MessageArguments"),
            cause: some_text(error, "ProbableCauseDescription"),
            remedies: texts(error, "RecommendedActions"),
            severity: number(error, "PerceivedSeverity"),
            about: some_text(error, "ErrorSource"),
        }
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("message".into(), json!(self.message));
        let fields = [
            ("id", json!(self.id)),
            ("cause", json!(self.cause)),
            ("about", json!(self.about)),
            ("severity", json!(self.severity)),
        ];
        for (key, value) in fields {
            if !value.is_null() {
                object.insert(key.into(), value);
            }
        }
        object.insert("arguments".into(), json!(self.arguments));
        object.insert("remedies".into(), json!(self.remedies));
        Value::Object(object)
    }

    fn line(&self) -> String {
        match &self.id {
            Some(id) => format!("{} [{id}]", self.message),
            None => self.message.clone(),
        }
    }
}

fn chain(errors: &[Instance]) -> Vec<Link> {
    errors.iter().map(Link::of).collect()
}

/// What a return code alone can tell.
pub(crate) fn code_hint(code: u32) -> Option<&'static str> {
    use msvm::code as c;
    Some(match code {
        c::ACCESS_DENIED => {
            "The user's role does not allow it, or the service may not use a file that was named."
        }
        c::NOT_SUPPORTED => "The server does not serve this method, option or value.",
        c::INVALID_PARAMETER => {
            "A value is missing, malformed or out of range. The service's log tells which one."
        }
        c::IN_USE => "Long work holds the object: see kvmms job list, wait for it or cancel it.",
        c::INVALID_STATE => "The object's state does not allow it now: see its `show`.",
        c::INCORRECT_DATA_TYPE => {
            "An instance that was sent along cannot be read or is of another class."
        }
        c::SYSTEM_NOT_AVAILABLE => "The machine's process or the host cannot be reached.",
        c::OUT_OF_MEMORY => "Memory or disk space of the host is used up.",
        c::FILE_NOT_FOUND => {
            "A file that was named does not exist on the server. Paths are those of the server's host."
        }
        c::TIMEOUT => "It took too long before work began. Trying again is safe.",
        c::FAILED => "The service's log tells more.",
        _ => return None,
    })
}

impl Report {
    /// Everything there is to tell about an error.
    pub(crate) fn of(error: &Error) -> Self {
        let mut report = Report {
            message: error.to_string(),
            ..Report::default()
        };
        match error {
            Error::Client(client) => {
                report.kind = "connection";
                if let Some(fault) = client.fault() {
                    report.kind = "fault";
                    report.code = Some(fault.code).filter(|c| *c != 0);
                    report.chain = chain(&fault.chain);
                    // The reason repeats the first link where there is one.
                    if !report.chain.is_empty() {
                        report.message = "the server refused the request".to_owned();
                    }
                }
                report.add_sources(client.source());
                report.hints.extend(client_hint(client));
            }
            Error::Refused {
                code, hint, chain, ..
            } => {
                report.kind = "refused";
                report.code = Some(*code);
                report.chain = self::chain(chain);
                report.hints.extend(hint.clone());
                if chain.is_empty() && hint.is_none() {
                    report.hints.extend(code_hint(*code).map(str::to_owned));
                }
            }
            Error::Job {
                id,
                chain,
                description,
                ..
            } => {
                report.kind = "job";
                report.job = Some(id.clone());
                report.chain = self::chain(chain);
                if chain.is_empty() {
                    let told = description.clone().map(Link::plain);
                    report.chain.extend(told);
                }
            }
            Error::NotFound { hint, .. } => {
                report.kind = "not-found";
                report.hints.push(hint.clone());
            }
            Error::Ambiguous { candidates, .. } => {
                report.kind = "ambiguous";
                report.hints.extend(candidates.iter().cloned());
            }
            Error::Usage(_) => report.kind = "usage",
            Error::Io { .. } => {
                report.kind = "io";
                report.add_sources(error.source());
            }
            Error::Answer(..) => report.kind = "answer",
            Error::Findings(_) => report.kind = "findings",
            Error::Closed => report.kind = "closed",
            Error::Interrupted { job } => {
                report.kind = "interrupted";
                report.job = Some(job.clone());
                report
                    .hints
                    .push(format!("Follow it: kvmms job watch {job}"));
                report
                    .hints
                    .push(format!("Stop it: kvmms job cancel {job}"));
            }
        }
        report
    }

    fn add_sources(&mut self, mut source: Option<&(dyn std::error::Error + 'static)>) {
        while let Some(error) = source {
            self.chain.push(Link::plain(error.to_string()));
            source = error.source();
        }
    }

    /// For people; several lines, each ended.
    pub(crate) fn text(&self) -> String {
        let mut out = format!("error: {}\n", self.message);
        out.push_str(&links_text(&self.chain));
        let mut remedies: Vec<&String> = Vec::new();
        for remedy in self
            .chain
            .iter()
            .flat_map(|l| &l.remedies)
            .chain(&self.hints)
        {
            if !remedies.contains(&remedy) {
                remedies.push(remedy);
            }
        }
        match self.kind {
            "ambiguous" => out.push_str("it could be:\n"),
            _ if remedies.is_empty() => {}
            _ => out.push_str("what to do:\n"),
        }
        for remedy in remedies {
            out.push_str(&format!("  - {remedy}\n"));
        }
        if let (Some(job), "job") = (&self.job, self.kind) {
            out.push_str(&format!("job: {job}\n"));
        }
        let first = self.chain.iter().find_map(|l| l.id.as_ref());
        if let Some(id) = first {
            out.push_str(&format!("more: kvmms error explain {id}\n"));
        }
        out
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({"error": {
            "kind": self.kind,
            "message": self.message,
            "id": self.chain.iter().find_map(|l| l.id.as_ref()),
            "code": self.code,
            "job": self.job,
            "chain": self.chain.iter().map(Link::json).collect::<Vec<_>>(),
            "hints": self.hints,
        }})
    }
}

/// The failure of one machine of a collection, in the service's catalogue.
const MEMBER_FAILED: &str = "KVMMS-0104";

/// A chain of causes, each a step further in.
pub(crate) fn links_text(chain: &[Link]) -> String {
    let mut out = String::new();
    let mut depth = 0;
    for (place, link) in chain.iter().enumerate() {
        // The machines of a collection fail side by side, none because of another.
        depth = match link.id.as_deref() {
            _ if place == 0 => 0,
            Some(MEMBER_FAILED) => 1,
            _ => depth + 1,
        };
        let margin = "  ".repeat(depth + 1);
        let line = link.line().replace('\n', &format!("\n{margin}  "));
        out.push_str(&format!("{margin}because: {line}\n"));
        if let Some(cause) = link.cause.as_ref().filter(|c| **c != link.message) {
            out.push_str(&format!("{margin}  ({cause})\n"));
        }
    }
    out
}

fn client_hint(error: &wbem::client::ClientError) -> Option<String> {
    use wbem::client::ClientError as E;
    let hint = match error {
        E::Connect { at, .. } if at.starts_with('/') => {
            "Is the service running? Start it with kvmmsd, or name another socket with --socket or \
             another host with --host."
        }
        E::Connect { .. } => "Is the address right, and does the service listen there?",
        E::Tls { .. } => {
            "Name the certificate to trust with --ca FILE, or accept any with --insecure."
        }
        E::Unauthorized { user: None, .. } => {
            "Name the user with --user or KVMMS_USER, and a file with the password with \
             --password-file or KVMMS_PASSWORD_FILE."
        }
        E::Unauthorized { .. } => "Check the user's name and the password file.",
        E::InClear { .. } => {
            "Use https, or have the server offer Negotiate (kvmmsd: kvmmsd user add --ntlm); --auth basic sends it nevertheless."
        }
        E::Http { .. } | E::Timeout { .. } | E::Unsealed { .. } => {
            "Whether the request was carried out is not known: look before you repeat it."
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed_job() -> Error {
        let summary = Instance::new("Msvm_Error")
            .with("Message", "The export cannot be written.")
            .with("MessageID", "KVMMS-0042")
            .with("RecommendedActions", vec!["Free space.".to_owned()]);
        let cause = Instance::new("Msvm_Error")
            .with("Message", "write: No space left on device")
            .with("MessageID", "KVMMS-0007")
            .with("ProbableCauseDescription", "The file system is full.")
            .with(
                "RecommendedActions",
                vec![
                    "Free space.".to_owned(),
                    "Use another directory.".to_owned(),
                ],
            );
        Error::Job {
            id: "AB".into(),
            title: "Exporting a reference point".into(),
            outcome: "failed",
            description: Some("not shown".into()),
            chain: vec![summary, cause],
        }
    }

    #[test]
    fn a_failed_job_tells_causes_indented_and_each_remedy_once() {
        assert_eq!(
            Report::of(&failed_job()).text(),
            "error: Exporting a reference point: failed\n\
             \x20 because: The export cannot be written. [KVMMS-0042]\n\
             \x20   because: write: No space left on device [KVMMS-0007]\n\
             \x20     (The file system is full.)\n\
             what to do:\n\
             \x20 - Free space.\n\
             \x20 - Use another directory.\n\
             job: AB\n\
             more: kvmms error explain KVMMS-0042\n"
        );
    }

    #[test]
    fn machines_of_a_collection_fail_side_by_side() {
        let link = |message: &str, id: &str| Link {
            message: message.into(),
            id: Some(id.into()),
            ..Link::default()
        };
        let chain = [
            link("2 of 3", "KVMMS-0103"),
            link("a", "KVMMS-0104"),
            link("full", "KVMMS-0068"),
            link("b", "KVMMS-0104"),
        ];
        assert_eq!(
            links_text(&chain),
            "  because: 2 of 3 [KVMMS-0103]\n    because: a [KVMMS-0104]\n      because: full [KVMMS-0068]\n    because: b [KVMMS-0104]\n"
        );
    }

    #[test]
    fn programs_get_the_same_as_json() {
        let json = Report::of(&failed_job()).json();
        let error = &json["error"];
        assert_eq!(error["id"], "KVMMS-0042");
        assert_eq!(error["job"], "AB");
        assert_eq!(error["chain"][1]["cause"], "The file system is full.");
    }

    #[test]
    fn a_refusal_tells_the_code_with_its_name_and_what_it_means() {
        let text = Report::of(&Error::Refused {
            method: "DestroySystem".into(),
            code: 32775,
            hint: None,
            chain: Vec::new(),
        })
        .text();
        assert!(
            text.starts_with("error: DestroySystem was refused: invalid state (32775)\n"),
            "{text}"
        );
        assert!(text.contains("state does not allow it"), "{text}");
    }

    #[test]
    fn an_ambiguous_name_lists_what_it_could_be() {
        let text = Report::of(&Error::Ambiguous {
            kind: "machine",
            text: "we".into(),
            candidates: vec!["web (1)".into(), "west (2)".into()],
        })
        .text();
        assert_eq!(
            text,
            "error: \"we\" names more than one machine\nit could be:\n  - web (1)\n  - west (2)\n"
        );
    }
}
