//! `kvmms verify --boot`: exports restored into throw-away machines and booted.

use cim::{Instance, Value};
use serde_json::{Value as Json, json};

use super::export::job_report;
use crate::cli::VerifyArgs;
use crate::error::Result;
use crate::inspect::texts;
use crate::output::Row;
use crate::session::{Followed, Session, parameters, service};
use crate::size::Size;
use crate::{vendor, watch};

/// Boots them.
pub(super) async fn run(session: &Session, a: VerifyArgs) -> Result<()> {
    session.needs_kvmms("verify --boot")?;
    let directory = session.host_path(&a.directory)?;
    let text = |text: Option<String>| text.map_or(Value::Null, Value::from);
    let called = session
        .call(
            &service(vendor::EXPORT_SERVICE),
            "BootExports",
            &parameters([
                ("ExportDirectory", directory.as_str().into()),
                ("Point", text(a.at)),
                ("WaitSeconds", a.wait.map_or(Value::Null, Value::from)),
                ("ExpectedText", text(a.expect)),
                ("RequireAgent", a.agent.into()),
                ("SkipProof", a.no_proof.into()),
            ]),
        )
        .await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let told = job_report(session, called.job.as_ref()).await?;
    let boots = match &called.job {
        Some(job) => watch::record(session, &watch::id(job)).await?,
        None => None,
    };
    let boots = boots.as_ref().map(evidence).unwrap_or_default();
    let mut line = format!("what was exported to {directory} boots");
    for told in &told {
        line.push_str(&format!("\n  {told}"));
    }
    let job = called.job.as_ref().map(watch::id);
    if let Some(job) = &job {
        line.push_str(&format!("\n  kvmms job show {job} prints the evidence"));
    }
    let row = Row::new()
        .text("directory", "Directory", &directory)
        .yes("booted", "Booted", Some(true))
        .lines("report", "Report", told)
        .hidden("boots", json!(boots))
        .hidden("job", json!(job));
    session.output.done(&line, &row)
}

/// What machines showed, from the record of a job.
pub(super) fn evidence(record: &Instance) -> Vec<Json> {
    let documents = texts(record, "BootEvidence").into_iter();
    documents
        .filter_map(|text| serde_json::from_str(&text).ok())
        .collect()
}

/// The same for people.
pub(super) fn boots_text(boots: &[Json]) -> String {
    boots.iter().map(one).collect()
}

fn one(boot: &Json) -> String {
    let text = |key: &str| boot.get(key).and_then(Json::as_str).unwrap_or_default();
    let list = |key: &str| {
        boot.get(key)
            .and_then(Json::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let mut out = format!("{} ({})\n", text("name"), text("machine"));
    let mut add = |title: &str, value: String| {
        if !value.is_empty() {
            out.push_str(&format!("  {title}: {value}\n"));
        }
    };
    let name = boot
        .get("pointName")
        .and_then(Json::as_str)
        .unwrap_or("point");
    add(
        "point",
        format!("{name} of {} ({})", text("instant"), text("point")),
    );
    add("export", text("directory").to_owned());
    add("manifest", text("manifest").to_owned());
    for disk in list("disks") {
        let part = |key: &str| disk.get(key).and_then(Json::as_str).unwrap_or_default();
        let bytes = Size(disk.get("bytes").and_then(Json::as_u64).unwrap_or(0));
        add(
            "disk",
            format!("{} {bytes}, {}", part("hash"), part("file")),
        );
    }
    let proven = boot.get("proven").and_then(Json::as_bool) == Some(true);
    let proven = if proven { "yes, every block" } else { "no" };
    add("proven", proven.to_owned());
    add("switched on", text("started").to_owned());
    for sign in list("signs") {
        let kind = sign.get("kind").and_then(Json::as_str).unwrap_or_default();
        let after = sign.get("afterMs").and_then(Json::as_u64).unwrap_or(0);
        add("seen", format!("{kind} after {after} ms"));
    }
    if let Some(agent) = boot.get("agent").and_then(Json::as_object) {
        let told = agent
            .iter()
            .filter_map(|(k, v)| Some(format!("{k} {}", v.as_str()?)));
        add("agent", told.collect::<Vec<_>>().join(", "));
    }
    for left in list("leftOut") {
        add("left out", left.as_str().unwrap_or_default().to_owned());
    }
    for why in list("failure") {
        add(
            "failed",
            why.as_str().unwrap_or_default().replace('\n', "\n    "),
        );
    }
    let console = text("console");
    if !console.trim().is_empty() {
        out.push_str("  console:\n");
        for line in console.lines() {
            out.push_str(&format!("    {line}\n"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_printed_with_hashes_signs_and_the_console() {
        let boot = json!({
            "machine": "G", "name": "web", "point": "P", "pointName": "monday",
            "instant": "2026-11-20T19:00:00Z", "directory": "/b", "manifest": "abc",
            "disks": [{"id": "d", "file": "/b/d.qcow2", "bytes": 1048576, "hash": "def"}],
            "proven": true, "signs": [{"kind": "agent", "afterMs": 4200}],
            "agent": {"os_id": "debian", "kernel": null}, "console": "one\ntwo\n", "failure": []
        });
        let told = boots_text(&[boot]);
        for part in [
            "web (G)\n",
            "point: monday of 2026-11-20T19:00:00Z (P)",
            "manifest: abc",
            "disk: def 1 MiB, /b/d.qcow2",
            "seen: agent after 4200 ms",
            "agent: os_id debian\n",
            "  console:\n    one\n    two\n",
        ] {
            assert!(told.contains(part), "{part:?} in\n{told}");
        }
    }
}
