//! `kvmms host` and `kvmms error`.

use cim::Instance;
use msvm::{class, code};
use serde_json::json;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::inspect::{number, some_text, text, texts};
use crate::output::Row;
use crate::report::code_hint;
use crate::session::{Session, quoted};
use crate::vendor;

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
    let machines = systems.len().saturating_sub(usize::from(host.is_some()));
    row = row.number("machines", "Machines", u64::try_from(machines).ok());
    if let Some(own) = own {
        for property in &own.properties {
            let name = property.name.as_str();
            if [
                "Caption",
                "Description",
                "InstanceID",
                "Name",
                "ElementName",
            ]
            .iter()
            .any(|known| property.name.is(known))
            {
                continue;
            }
            let json = crate::inspect::json(&property.value);
            row = row.both(
                name,
                &spaced(name),
                crate::inspect::words(&property.value),
                json,
            );
        }
    }
    session.output.one(&row)
}

/// `QemuVersion` as `Qemu version`.
fn spaced(name: &str) -> String {
    let mut out = String::new();
    let mut before = ' ';
    for c in name.chars() {
        let starts = c.is_ascii_uppercase() && before.is_ascii_lowercase();
        if starts {
            out.push(' ');
        }
        out.push(if starts { c.to_ascii_lowercase() } else { c });
        before = c;
    }
    out
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
    fn property_names_become_words() {
        assert_eq!(spaced("QemuVersion"), "Qemu version");
        assert_eq!(spaced("KVM"), "KVM");
        assert_eq!(spaced("KvmUsable"), "Kvm usable");
    }
}
