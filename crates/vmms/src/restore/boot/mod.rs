//! Booting exports: the proof that what was exported also starts.
//!
//! Each machine of an export is restored into a throw-away machine: an identifier of its own, no network, its disks empty overlays on the
//! exported images, which are opened for reading only. It is no machine of the service: no record, no object, nothing a client could
//! start or change. It is booted, watched until it shows life or the deadline is over, and taken away; what it showed stays with
//! the job. Machines of a collection are booted one after the other, so that the host carries one of them at a time.

mod evidence;
mod machine;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use disk::manifest::{MANIFEST_NAME, Manifest};
use disk::verify::Export;
use engine::{Claims, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use evidence::{BootEvidence, BootedDisk, Sign, SignKind};

use crate::blocking;
use crate::job::{JobContext, Machines, Service, Traits, concrete};
use crate::machine::Asked;
use crate::restore::pick;
use crate::restore::verify::{Proof, chain_of};
use crate::{Effect, Element, Fault, Kind, Result, Use, Vmms, fault};

#[async_trait]
impl Work<Machines> for BootOrder {
    fn traits(&self) -> Traits {
        concrete(
            Service::Management,
            0,
            "Booting restored machines",
            Recovery::Undo,
        )
    }

    fn claims(&self) -> Claims {
        Claims::of_no_machine(&self.members.iter().map(|m| m.vm).collect::<Vec<_>>())
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        undo(vmms, self).await
    }
}

/// Longest time a machine is given.
const MOST_SECONDS: u64 = 24 * 3600;

/// What is booted, and what counts as life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootOrder {
    /// The directory that was named.
    pub directory: PathBuf,
    /// The exports with the throw-away machines made of them.
    pub members: Vec<BootMember>,
    /// Whether machines of a collection whose exports are missing are missed.
    pub whole: bool,
    /// What is waited for.
    pub wanted: Wanted,
}

/// One machine to boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootMember {
    /// The directory with the manifest.
    pub export: PathBuf,
    /// The identifier of the throw-away machine.
    pub vm: Uuid,
}

/// What is waited for. Without a text and without the agent any sign of life counts: the agent's answer at once, else
/// what the console showed when the time is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Seconds each machine is given.
    pub seconds: u64,
    /// A text that has to appear on the first serial port.
    pub text: Option<String>,
    /// Whether the guest's agent has to answer.
    pub agent: bool,
    /// Whether every block is proven before the boot.
    pub prove: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Wanted {
            seconds: 120,
            text: None,
            agent: false,
            prove: true,
        }
    }
}

/// Starts a job that boots one export of each machine in `directory`: that of the point `at` (GUID, name, instant), without it the
/// newest. Refused at once: directories without exports, points that are not there.
pub async fn boot_exports(
    vmms: &Arc<Vmms>,
    directory: &Path,
    at: Option<&str>,
    wanted: Wanted,
    asked: &Asked,
) -> Result<Uuid> {
    if !(1..=MOST_SECONDS).contains(&wanted.seconds) {
        let why = format!("a machine can be given 1 to {MOST_SECONDS} seconds");
        return Err(fault!(
            InvalidValue,
            "the time to wait",
            wanted.seconds,
            why
        ));
    }
    if wanted.text.as_deref().is_some_and(|t| t.trim().is_empty()) {
        let why = "a text to wait for has characters";
        return Err(fault!(InvalidValue, "the text to expect", "empty", why));
    }
    let (trusting, dir) = (Arc::clone(vmms), directory.to_owned());
    let at = at.map(str::to_owned);
    let exports = blocking(move || {
        trusting.may_use(Use::Import, &dir)?;
        let found = pick::of_each_machine(&dir, at.as_deref())?;
        // One machine's own directory, or own point, is meant for itself.
        let own = |e: &PathBuf| {
            at.is_some() || dir.ends_with(machine_of(e)) || dir.join(MANIFEST_NAME).exists()
        };
        let whole = !matches!(found.as_slice(), [one] if own(one));
        Ok((found, whole))
    });
    let (exports, whole) = exports.await?;
    let members = exports.into_iter().map(|export| BootMember {
        export,
        vm: Uuid::new_v4(),
    });
    let order = BootOrder {
        directory: directory.to_owned(),
        members: members.collect(),
        whole,
        wanted,
    };
    let affected = vec![(Element::Image(directory.to_owned()), Effect::Other)];
    vmms.submit(order, asked.submission(affected)).await
}

/// Boots them, one after the other.
pub(crate) async fn run(vmms: &Arc<Vmms>, ctx: &JobContext, order: &BootOrder) -> Result<()> {
    ctx.checkpoint().await?;
    let directory = order.directory.clone();
    ctx.output(|output| output.directory = Some(directory))
        .await?;
    let mut failures = Vec::new();
    let mut bytes = 0;
    for member in &order.members {
        ctx.checkpoint().await?;
        let mut evidence = BootEvidence::default();
        let result = one(vmms, ctx, order, member, &mut bytes, &mut evidence).await;
        let cleared = machine::clear(vmms, member.vm).await;
        let failure = match (result, cleared) {
            (Err(cause), _) if cause.kind() == Kind::Cancelled => return Err(cause),
            (Err(cause), cleared) => Some(cleared.err().into_iter().fold(cause, Fault::caused_by)),
            (Ok(()), cleared) => cleared.err(),
        };
        evidence.ended = evidence::now();
        if let Some(failure) = &failure {
            evidence.failure = failure.chain().iter().map(|f| f.text()).collect();
        }
        let line = evidence.line(&member.export);
        ctx.output(|output| {
            output.bytes_read = bytes;
            output.report.push(line);
            output.boots.push(evidence);
        })
        .await?;
        failures.extend(failure);
    }
    let exports = order.members.iter().filter(|_| order.whole);
    let exports: Vec<PathBuf> = exports.map(|m| m.export.clone()).collect();
    let absent = blocking(move || Ok(absent(&exports))).await?;
    let all = order.members.len() + absent.len();
    for name in absent {
        let why = format!("machine {name} of the collection has no export there");
        ctx.output(|output| output.report.push(why.clone())).await?;
        failures.push(
            fault!(ManifestUnusable, order.directory.display()).caused_by(fault!(Driver, why)),
        );
    }
    if failures.is_empty() {
        return Ok(());
    }
    let shown = order.directory.display();
    let mut failed = fault!(BootFailed, failures.len(), all, shown);
    failed.causes = failures;
    Err(failed)
}

/// The machine an export is of; empty where that cannot be read.
fn machine_of(export: &Path) -> String {
    Manifest::load(export).map_or_else(|_| String::new(), |(m, _)| m.machine.id)
}

/// The machines of collections' points whose exports are not among these: a restored collection is whole or it is not one.
fn absent(exports: &[PathBuf]) -> Vec<String> {
    let manifests: Vec<Manifest> = exports
        .iter()
        .filter_map(|dir| Manifest::load(dir).ok().map(|(m, _)| m))
        .collect();
    let mut out: Vec<String> = Vec::new();
    for machine in manifests
        .iter()
        .filter_map(|m| m.collection.as_ref())
        .flat_map(|c| &c.machines)
    {
        let there = |m: &Manifest| m.machine.id.eq_ignore_ascii_case(&machine.id);
        let name = format!("{} ({})", machine.name, machine.id);
        if !manifests.iter().any(there) && !out.contains(&name) {
            out.push(name);
        }
    }
    out
}

/// Restores, boots and watches one machine. What is known of it is in `evidence`, whatever comes.
async fn one(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    order: &BootOrder,
    member: &BootMember,
    bytes: &mut u64,
    evidence: &mut BootEvidence,
) -> Result<()> {
    evidence.directory = member.export.display().to_string();
    let dir = member.export.clone();
    let chain = blocking(move || chain_of(&dir)).await?;
    evidence.of_chain(&chain);
    if order.wanted.prove {
        let proof = prove(ctx, &chain, *bytes).await?;
        *bytes += proof.bytes;
        if !proof.causes.is_empty() {
            let mut failed = fault!(VerifyFailed, member.export.display());
            failed.causes = proof.causes;
            return Err(failed);
        }
        evidence.proven = true;
    }
    ctx.checkpoint().await?;
    let mut config = machine::restore(vmms, &chain, member.vm, &order.wanted, evidence).await?;
    config.confinement.user = crate::machine::user_of(vmms, member.vm).await?;
    evidence.started = evidence::now();
    let failed = |cause: Fault| match cause.kind() {
        Kind::Cancelled => cause,
        _ => fault!(StartFailed, config.name).caused_by(cause),
    };
    let machine = tokio::select! {
        launched = vmms.hypervisor.launch(&config, hypervisor::Launch::Fresh) => launched.map_err(|e| failed(e.into()))?,
        stop = ctx.stop_asked() => return Err(stop),
    };
    let log = crate::machine::spec::console_log(&vmms.dirs, member.vm);
    let mut watch = watch::Watch::new(&*machine, &log, &order.wanted, evidence);
    machine.resume().await.map_err(|e| failed(e.into()))?;
    let seen = watch.until_alive(ctx).await;
    watch.note_console();
    seen
}

async fn prove(ctx: &JobContext, chain: &[Export], before: u64) -> Result<Proof> {
    let dirs: Vec<PathBuf> = chain.iter().map(|e| e.dir.clone()).collect();
    let (cancel, told) = (ctx.cancel_flag(), ctx.clone());
    blocking(move || {
        let mut proof = Proof::default();
        let progress = |p: disk::Progress| told.progress(before + p.done, before + p.total);
        proof.add(&dirs, &progress, &cancel)?;
        Ok(proof)
    })
    .await
}

/// Takes away what an interrupted or cancelled job left: process, disks, sockets.
pub(crate) async fn undo(vmms: &Arc<Vmms>, order: &BootOrder) -> Result<()> {
    let mut failed = None;
    for member in &order.members {
        if let Err(error) = machine::clear(vmms, member.vm).await {
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Since an instant, in milliseconds.
fn millis(since: SystemTime) -> u64 {
    let passed = since.elapsed().unwrap_or(Duration::ZERO);
    u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
}
