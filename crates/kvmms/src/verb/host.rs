//! `kvmms host` and `kvmms error`.

use std::time::Duration;

use cim::{Instance, Value};
use msvm::{class, code};
use serde_json::json;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::inspect::{boolean, duration, instant, moment, number, some_text, text, texts};
use crate::output::Row;
use crate::report::code_hint;
use crate::session::{Followed, Session, parameters, quoted, service};
use crate::size::span;
use crate::vendor;

/// Ends all machines because the host goes down.
pub(super) async fn shutdown_guests(session: &Session, within: Option<u32>) -> Result<()> {
    session.needs_kvmms("host shutdown-guests")?;
    let path = service(vendor::HOST_SERVICE);
    let within = parameters([("Seconds", within.map_or(Value::Null, Value::from))]);
    let called = session.call(&path, "ShutDownGuests", &within).await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let lines = super::export::job_report(session, called.job.as_ref()).await?;
    let mut line = "All machines have ended; what ran starts again with the host".to_owned();
    for told in &lines {
        line.push_str(&format!("\n  {told}"));
    }
    let row = Row::new().lines("machines", "Machines", lines);
    session.output.done(&line, &row)
}

/// Shows the host.
pub(super) async fn show(session: &Session) -> Result<()> {
    let identity = session.client.identity();
    let mut row = Row::new()
        .text("server", "Server", session.endpoint.to_string())
        .text("vendor", "Product", &identity.vendor)
        .text("version", "Version", &identity.version);
    let own = match session.is_kvmms() {
        true => {
            let wql = format!("SELECT * FROM {}", vendor::HOST);
            session.optional(&wql).await?.pop()
        }
        false => None,
    };
    let systems = session
        .client
        .enumerate(class::MSVM_COMPUTER_SYSTEM)
        .await?;
    let host = systems.iter().find(|i| {
        let name = text(i, "Name");
        Uuid::parse_str(name.trim_matches(['{', '}'])).is_err()
    });
    if let Some(host) = host {
        row = row.text("host", "Host", text(host, "Name"));
    }
    let row = match &own {
        Some(own) => details(row, own),
        None => {
            let machines = systems.len().saturating_sub(usize::from(host.is_some()));
            row.number("machines", "Machines", u64::try_from(machines).ok())
        }
    };
    session.output.one(&row)
}

/// Usable or not, and why not.
fn usable(usable: bool, problem: Option<String>, words: &str) -> String {
    match (usable, problem) {
        (true, _) => words.to_owned(),
        (false, Some(why)) => format!("not usable: {why}"),
        (false, None) => "not usable".to_owned(),
    }
}

/// What a kvmms knows of its host.
fn details(row: Row, own: &Instance) -> Row {
    let problem = some_text(own, "QemuProblem");
    let program = format!("{} ({})", text(own, "QemuVersion"), text(own, "QemuPath"));
    let qemu = usable(problem.is_none(), problem.clone(), &program);
    let kvm = boolean(own, "KvmUsable").unwrap_or(false);
    let kvm_words = usable(kvm, some_text(own, "KvmProblem"), "usable");
    let free = number(own, "StateDirectoryFree");
    let hold = duration(own, "HoldTime").map(|d| d.as_secs());
    let keep = duration(own, "JobKeepTime").map(|d| d.as_secs());
    let seconds = |n: Option<u64>| n.map_or_else(String::new, |n| span(Duration::from_secs(n)));
    let machines = text(own, "Machines");
    let machines = format!(
        "{machines}, {} of them running",
        text(own, "RunningMachines")
    );
    row.maybe(
        "started",
        "Service since",
        instant(own, "StartTime").map(moment),
    )
    .both("qemu", "QEMU", qemu, json!(some_text(own, "QemuVersion")))
    .hidden("qemuPath", json!(some_text(own, "QemuPath")))
    .hidden("qemuProblem", json!(problem))
    .both("kvmUsable", "KVM", kvm_words, json!(kvm))
    .hidden("kvmProblem", json!(some_text(own, "KvmProblem")))
    .text(
        "acceleration",
        "Acceleration",
        text(own, "Acceleration").to_lowercase(),
    )
    .yes("sandbox", "QEMU sandbox", boolean(own, "Sandbox"))
    .both(
        "confinement",
        "Confinement",
        match some_text(own, "ConfinementProblem") {
            Some(why) => format!("{}: {why}", text(own, "Confinement")),
            None => text(own, "Confinement"),
        },
        json!(some_text(own, "Confinement")),
    )
    .maybe(
        "firmware",
        "UEFI firmware",
        some_text(own, "FirmwareCode")
            .or_else(|| Some("none: generation 2 cannot start".to_owned())),
    )
    .text(
        "machineTypeGeneration1",
        "Generation 1",
        text(own, "MachineTypeGeneration1"),
    )
    .text(
        "machineTypeGeneration2",
        "Generation 2",
        text(own, "MachineTypeGeneration2"),
    )
    .hidden("machineTypes", json!(texts(own, "MachineTypes")))
    .number(
        "maxProcessors",
        "Most processors",
        number(own, "MaxVirtualProcessors"),
    )
    .both(
        "machines",
        "Machines",
        machines,
        json!(number(own, "Machines")),
    )
    .hidden("runningMachines", json!(number(own, "RunningMachines")))
    .number("points", "Points", number(own, "ReferencePoints"))
    .number("jobs", "Jobs", number(own, "VisibleJobs"))
    .number("maxLayers", "Most layers", number(own, "MaxLayers"))
    .both("holdSeconds", "RCT points held", seconds(hold), json!(hold))
    .size("holdBytes", "or until grown", number(own, "HoldBytes"))
    .both("jobKeepSeconds", "Jobs kept", seconds(keep), json!(keep))
    .maybe(
        "tamperingPolicy",
        "On tampered disks",
        some_text(own, "TamperingPolicy"),
    )
    .text("runDirectory", "Run directory", text(own, "RunDirectory"))
    .text(
        "stateDirectory",
        "State directory",
        text(own, "StateDirectory"),
    )
    .size("stateDirectoryFree", "Free there", free)
    .text("store", "Store", text(own, "Store"))
    .size("storeSize", "Store size", number(own, "StoreSize"))
}

fn entry(i: &Instance) -> Row {
    Row::new()
        .text("id", "Id", text(i, "MessageID"))
        .text("message", "Message", text(i, "Message"))
        .maybe("cause", "Cause", some_text(i, "ProbableCause"))
        .lines("remedies", "What to do", texts(i, "RecommendedActions"))
        .text("severity", "Severity", text(i, "Severity").to_lowercase())
        .number("returnCode", "Return code", number(i, "ReturnCode"))
}

/// Tells what an error means.
pub(super) async fn explain(session: &Session, wanted: &str) -> Result<()> {
    let wanted = wanted.trim();
    let missing = || Error::NotFound {
        kind: "error",
        text: wanted.to_owned(),
        hint: "kvmms error list shows all of them; return codes are 0, 4096 and 32768 to 32789."
            .to_owned(),
    };
    let digits = wanted.parse::<u32>().ok();
    if let Some(number) = digits.filter(|n| *n == 0 || *n >= 4096) {
        let label = code::label(number).ok_or_else(missing)?;
        let meaning = match number {
            code::COMPLETED => Some("Done; there is no job."),
            code::JOB_STARTED => Some("Checked and started; the Job parameter names the job."),
            other => code_hint(other),
        };
        let row = Row::new()
            .number("code", "Return code", Some(number.into()))
            .text("label", "Name", label)
            .maybe("meaning", "Meaning", meaning.map(str::to_owned));
        return session.output.one(&row);
    }
    session.needs_kvmms("the catalogue of errors")?;
    let id = match digits {
        Some(number) => format!("KVMMS-{number:04}"),
        None => wanted.to_uppercase(),
    };
    let wql = format!(
        "SELECT * FROM {} WHERE MessageID = {}",
        vendor::ERROR_CATALOGUE,
        quoted(&id)
    );
    let found = session.client.query(&wql).await?.pop();
    session.output.one(&entry(&found.ok_or_else(missing)?))
}

/// Lists every error.
pub(super) async fn errors(session: &Session) -> Result<()> {
    session.needs_kvmms("the catalogue of errors")?;
    let mut all = session.client.enumerate(vendor::ERROR_CATALOGUE).await?;
    all.sort_by_key(|i| text(i, "MessageID"));
    let rows: Vec<_> = all
        .iter()
        .map(|i| {
            let row = Row::new().text("id", "Id", text(i, "MessageID")).text(
                "message",
                "Message",
                text(i, "Message"),
            );
            row.hidden("cause", json!(text(i, "ProbableCause")))
                .hidden("remedies", json!(texts(i, "RecommendedActions")))
        })
        .collect();
    session.output.list(&rows, "No errors are known.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_usable_says_why() {
        let host = Instance::new("Kvmms_Host")
            .with("QemuVersion", "10.0.2")
            .with("QemuPath", "/usr/bin/q")
            .with("KvmUsable", false)
            .with("KvmProblem", "no /dev/kvm");
        let json = details(Row::new(), &host).json();
        assert_eq!(json["qemu"], "10.0.2");
        assert_eq!(json["kvmUsable"], false);
        assert_eq!(json["kvmProblem"], "no /dev/kvm");
        assert_eq!(usable(false, Some("x".into()), "fine"), "not usable: x");
        assert_eq!(usable(true, None, "fine"), "fine");
    }
}
