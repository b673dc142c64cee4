//! `kvmms host check`.

use cim::{Instance, Value};

use crate::error::{Error, Result};
use crate::inspect::{boolean, embedded, number, text};
use crate::output::Row;
use crate::session::{Followed, Session, parameters, service};
use crate::vendor;

/// Checks the host, after cleaning what was asked for.
pub(super) async fn run(session: &Session, clean: &[String]) -> Result<()> {
    session.needs_kvmms("host check")?;
    if !clean.is_empty() {
        let all = clean.iter().any(|kind| kind.eq_ignore_ascii_case("all"));
        let kinds = match all {
            true => Value::Null,
            false => clean.to_vec().into(),
        };
        let called = session
            .call(
                &service(vendor::HOST_SERVICE),
                "CleanHost",
                &parameters([("Kinds", kinds)]),
            )
            .await?;
        if let Followed::Left = session.follow(&called).await? {
            return Ok(());
        }
        for line in super::export::job_report(session, called.job.as_ref()).await? {
            session.output.remark(&format!("cleaned {line}"));
        }
    }
    let path = service(vendor::HOST_SERVICE);
    let called = session.call(&path, "CheckHost", &[]).await?;
    let found = embedded(called.invoked.get("Findings"));
    let rows: Vec<Row> = found.iter().map(row).collect();
    session.output.list(&rows, "Nothing is amiss.")?;
    // What lies in quarantine is not amiss: cleaning put it there.
    let is_set_aside = |i: &&Instance| text(i, "FindingKind") == "quarantine";
    match found.len() - found.iter().filter(is_set_aside).count() {
        0 => Ok(()),
        count => Err(Error::Findings(count)),
    }
}

fn row(found: &Instance) -> Row {
    Row::new()
        .text("kind", "Kind", text(found, "FindingKind"))
        .text("subject", "What", text(found, "Subject"))
        .size("bytes", "Size", number(found, "Size"))
        .yes("cleanable", "Cleanable", boolean(found, "Cleanable"))
        .text("why", "Why", text(found, "Reason"))
        .text("action", "Cleaning", text(found, "Action"))
}
