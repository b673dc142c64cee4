//! Cleaning what is safe to clean.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use engine::{Claims, Recovery, Work};
use hypervisor::names::RunFiles;
use hypervisor::process::Process;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::known::Opened;
use super::quarantine;
use super::{Finding, FindingKind, Target, check_host};
use crate::job::{JobContext, Machines, Service, Traits, concrete};
use crate::machine::Asked;
use crate::point::{self, Point};
use crate::{Effect, Element, Fault, Result, Vmms, fault};

/// Cleans what nobody needs on the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CleanHost {
    /// Findings of these kinds.
    pub kinds: Vec<FindingKind>,
}

#[async_trait]
impl Work<Machines> for CleanHost {
    fn traits(&self) -> Traits {
        concrete(
            Service::Management,
            0,
            "Cleaning the host",
            Recovery::Resume,
        )
    }

    fn claims(&self) -> Claims {
        Claims::of_no_machine(&[])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, &self.kinds).await
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        // What is clean is clean.
        Ok(())
    }
}

/// Starts a job that cleans what is safe to clean, of these kinds; of all where none is named.
pub async fn clean_host(vmms: &Arc<Vmms>, kinds: &[FindingKind], asked: &Asked) -> Result<Uuid> {
    let kinds: BTreeSet<FindingKind> = match kinds {
        [] => FindingKind::ALL.iter().copied().collect(),
        some => some.iter().copied().collect(),
    };
    let task = CleanHost {
        kinds: kinds.into_iter().collect(),
    };
    let affected = vec![(Element::Host, Effect::Other)];
    vmms.submit(task, asked.submission(affected)).await
}

/// Checks and cleans, again until nothing is left that can be cleaned: a layer becomes free when the one on it is gone.
pub(crate) async fn run(vmms: &Arc<Vmms>, ctx: &JobContext, kinds: &[FindingKind]) -> Result<()> {
    let mut failures: Vec<Fault> = Vec::new();
    let mut tried: BTreeSet<Target> = BTreeSet::new();
    loop {
        ctx.checkpoint().await?;
        let mut findings = check_host(vmms).await?;
        findings.retain(|f| f.safe && kinds.contains(&f.kind) && !tried.contains(&f.target));
        if findings.is_empty() {
            break;
        }
        let total = findings.len() as u64;
        for (done, found) in findings.iter().enumerate() {
            ctx.checkpoint().await?;
            tried.insert(found.target.clone());
            match clean(vmms, found).await {
                Ok(false) => {}
                Ok(true) => {
                    let line = format!("{}: {}: {}", found.kind, found.subject, found.action);
                    let bytes = found.bytes;
                    ctx.output(|output| {
                        output.report.push(line);
                        output.bytes_written += bytes;
                    })
                    .await?;
                }
                Err(error) => failures.push(error),
            }
            ctx.progress(done as u64 + 1, total);
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    let mut failed = fault!(CleanFailed, failures.len()).about(Element::Host);
    failed.causes = failures;
    Err(failed)
}

/// Cleans one finding, after a last look; false where it is none any more.
async fn clean(vmms: &Arc<Vmms>, found: &Finding) -> Result<bool> {
    let again = super::look(vmms).await?;
    if !again.iter().any(|f| f.safe && f.target == found.target) {
        return Ok(false);
    }
    match &found.target {
        Target::Nothing => return Ok(false),
        Target::Files(files, dirs) if found.kind == FindingKind::Socket => delete(files, dirs)?,
        Target::Files(files, dirs) => set_aside(vmms, found, files, dirs)?,
        Target::Hold(point) => crate::merge::end_hold(vmms, *point, None).await?,
        Target::Unfinished(vm) => point::create::forget_unfinished(vmms, *vm, |_| true).await?,
        Target::Point(id) => {
            if vmms.db.get::<Point>(*id).is_ok() {
                let dir = point::point_dir(vmms, *id);
                let files = super::entries(&dir);
                set_aside(vmms, found, &files, &[dir])?;
                point::create::forget(vmms, *id).await?;
            }
        }
        Target::Job(job) => vmms.pick_up(*job),
        Target::Process(dir) => end(dir).await?,
    }
    Ok(true)
}

/// Moves files that no process has open into quarantine.
fn set_aside(vmms: &Vmms, found: &Finding, files: &[PathBuf], dirs: &[PathBuf]) -> Result<()> {
    let opened = Opened::now();
    let free: Vec<PathBuf> = files
        .iter()
        .filter(|f| opened.by(f).is_none())
        .cloned()
        .collect();
    quarantine::put(vmms, found, &free, dirs)
}

fn delete(files: &[PathBuf], dirs: &[PathBuf]) -> Result<()> {
    let opened = Opened::now();
    for file in files {
        if opened.by(file).is_none() {
            point::remove(file)?;
        }
    }
    for dir in dirs {
        // One that others put files into meanwhile stays.
        let _ = std::fs::remove_dir(dir);
    }
    Ok(())
}

/// Ends the process of a run directory, found anew: never another one that has its number by now.
async fn end(dir: &Path) -> Result<()> {
    match Process::find(&RunFiles::new(dir)).map_err(Fault::from)? {
        Some(process) => Ok(process.kill().await?),
        None => Ok(()),
    }
}
