//! How far moves are: what kvmms tells of them beyond their jobs.

use cim::{Instance, Path};

use crate::error::Result;
use crate::inspect::{boolean, number, text};
use crate::session::{NAMESPACE, Session};
use crate::size::Size;
use crate::vendor;

/// How far a job's move is; nothing where the server is no kvmms.
pub(crate) async fn detail(session: &Session, job: &str) -> Result<Option<Instance>> {
    if !session.is_kvmms() {
        return Ok(None);
    }
    let path = Path::class(vendor::MIGRATION_DETAIL)
        .in_namespace(NAMESPACE)
        .key("InstanceID", job);
    match session.client.get(&path).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.fault().is_some_and(|f| f.is_not_found()) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// How far a move is, for a line of progress.
pub(crate) fn words(detail: &Instance) -> String {
    let value = |name: &str| number(detail, name).unwrap_or(0);
    let of = |done: &str, all: &str| format!("{} of {}", Size(value(done)), Size(value(all)));
    let phase = text(detail, "Phase");
    let mut out = vec![phase.clone()];
    match phase.as_str() {
        "copying files" if value("FileTotal") > 0 => out.push(of("FileBytes", "FileTotal")),
        "mirroring disks" if value("DiskTotal") > 0 => out.push(of("DiskBytes", "DiskTotal")),
        "sending memory" if value("MemoryTotal") > 0 => {
            out.push(format!(
                "{} sent, {} of {} left",
                Size(value("MemoryBytes")),
                Size(value("MemoryRemaining")),
                Size(value("MemoryTotal"))
            ));
            out.push(format!(
                "{}/s out, {}/s changed",
                Size(value("Rate")),
                Size(value("DirtyRate"))
            ));
            if let Some(ms) = number(detail, "ExpectedDowntime") {
                out.push(format!("downtime about {ms} ms"));
            }
            if let Some(percent) = number(detail, "Throttle").filter(|p| *p > 0) {
                out.push(format!("guest slowed by {percent}%"));
            }
        }
        _ => {}
    }
    if boolean(detail, "InDoubt") == Some(true) {
        out.push("the destination does not answer; see kvmms migrate resolve".to_owned());
    }
    out.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_what_the_phase_counts() {
        let mut detail = Instance::new(vendor::MIGRATION_DETAIL)
            .with("Phase", "sending memory")
            .with("MemoryTotal", 64u64 << 20)
            .with("MemoryRemaining", 16u64 << 20)
            .with("MemoryBytes", 50u64 << 20)
            .with("Rate", 4u64 << 20)
            .with("DirtyRate", 1u64 << 20)
            .with("ExpectedDowntime", 40u64);
        assert_eq!(
            words(&detail),
            "sending memory, 50 MiB sent, 16 MiB of 64 MiB left, 4 MiB/s out, 1 MiB/s changed, downtime about 40 ms"
        );
        detail.set("Phase", "checking");
        assert_eq!(words(&detail), "checking");
        detail.set("InDoubt", true);
        assert!(words(&detail).contains("migrate resolve"));
    }
}
