//! Proving an export against its manifest, with everything it builds on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use disk::manifest::{MANIFEST_NAME, Manifest};
use disk::verify::{Export, Problem, Verdict, open_exports};
use disk::{Chain, LayerSpec};
use engine::{Claims, Recovery, Work};
use serde::{Deserialize, Serialize};

use crate::blocking;
use crate::export::layout;
use crate::job::{JobContext, Machines, Service, Traits, concrete};
use crate::machine::Asked;
use crate::{Effect, Element, Fault, Kind, Result, Use, Vmms, fault};

/// Proves an export against its manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verify {
    /// The machine directory of the export (the one with the manifest).
    pub directory: PathBuf,
}

#[async_trait]
impl Work<Machines> for Verify {
    fn traits(&self) -> Traits {
        concrete(
            Service::Management,
            0,
            "Verifying an export",
            Recovery::Undo,
        )
    }

    fn claims(&self) -> Claims {
        Claims::of_no_machine(&[])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, &self.directory).await
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        Ok(())
    }
}

/// Longest chain of exports.
const MAX_CHAIN: usize = 4096;

/// How deep below an export directory manifests lie: machine, further point.
const DEPTH: usize = 2;

/// More directories than any export has: what has more is something else.
const MOST_DIRECTORIES: usize = 100_000;

/// Starts a job that proves every export in `directory` and below, each with all it builds on: a directory with a manifest, or
/// an export directory with any number of machines and points. Refused at once where there is no complete export.
pub async fn verify_export(
    vmms: &Arc<Vmms>,
    directory: &Path,
    asked: &Asked,
) -> Result<uuid::Uuid> {
    let directory = directory.to_owned();
    let (own, dir) = (Arc::clone(vmms), directory.clone());
    let found = blocking(move || {
        own.may_use(Use::Import, &dir)?;
        exports_below(&dir)
    });
    if found.await?.is_empty() {
        return Err(fault!(ManifestUnusable, directory.display()));
    }
    let affected = vec![(Element::Image(directory.clone()), Effect::Other)];
    vmms.submit(Verify { directory }, asked.submission(affected))
        .await
}

/// The export that a directory means: the one named if it has a manifest, else the only one below it.
pub(crate) fn find_export(directory: &Path) -> Result<PathBuf> {
    let found = exports_below(directory)?;
    match found.as_slice() {
        [] => Err(fault!(ManifestUnusable, directory.display())),
        [only] => Ok(only.clone()),
        [first, ..] if first == directory => Ok(first.clone()),
        several => {
            let names: Vec<String> = several.iter().map(|d| d.display().to_string()).collect();
            let why = format!(
                "it holds several exports, name one of them: {}",
                names.join(", ")
            );
            Err(fault!(
                InvalidValue,
                "the directory",
                directory.display(),
                why
            ))
        }
    }
}

/// The directories with a manifest, `directory` itself first.
pub(crate) fn exports_below(directory: &Path) -> Result<Vec<PathBuf>> {
    if !directory.is_absolute() {
        return Err(fault!(
            PathNotUsable,
            directory.display(),
            "it is not absolute"
        ));
    }
    std::fs::read_dir(directory).map_err(|e| Fault::io("list", directory, &e))?;
    let mut found = Vec::new();
    let mut level = vec![directory.to_owned()];
    for _ in 0..=DEPTH {
        found.extend(level.iter().filter(|d| has_manifest(d)).cloned());
        let next: Vec<PathBuf> = level.iter().flat_map(|dir| directories_in(dir)).collect();
        if next.len() > MOST_DIRECTORIES {
            let why = format!("an export has at most {MOST_DIRECTORIES} directories below it");
            let shown = directory.display();
            return Err(fault!(InvalidValue, "the directory", shown, why));
        }
        level = next;
    }
    Ok(found)
}

/// Whether there is a manifest in a directory: a file, and no link to one.
pub(crate) fn has_manifest(dir: &Path) -> bool {
    let found = dir.join(MANIFEST_NAME).symlink_metadata();
    found.is_ok_and(|m| m.is_file())
}

/// The directories in a directory, in the order of their names; links are none.
fn directories_in(dir: &Path) -> Vec<PathBuf> {
    let list = std::fs::read_dir(dir).into_iter().flatten();
    let real = list
        .filter_map(std::result::Result::ok)
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    let mut dirs: Vec<PathBuf> = real.map(|e| e.path()).collect();
    dirs.sort();
    dirs
}

/// The exports that the one in `dir` builds on, the full one first, `dir` last.
pub(crate) fn chain_of(dir: &Path) -> Result<Vec<Export>> {
    let mut dirs = vec![dir.to_owned()];
    let mut at = dir.to_owned();
    loop {
        let (manifest, _) =
            Manifest::load(&at).map_err(|e| fault!(ManifestUnusable, at.display()).caused_by(e))?;
        let Some(base) = &manifest.point.base_id else {
            break;
        };
        let found = base_dir(&at, &manifest, base).filter(|d| !dirs.contains(d));
        let Some(found) = found.filter(|_| dirs.len() < MAX_CHAIN) else {
            return Err(fault!(
                ChainIncomplete,
                dir.display(),
                format!("point {base}")
            ));
        };
        dirs.push(found.clone());
        at = found;
    }
    dirs.reverse();
    Ok(open_exports(&dirs)?)
}

/// Where the export of the base is: where the images say, else in the neighbourhood.
fn base_dir(dir: &Path, manifest: &Manifest, base: &str) -> Option<PathBuf> {
    let named = manifest
        .disks
        .iter()
        .filter(|d| d.base_file.is_some())
        .filter_map(|disk| {
            let layer = Chain::open(&[LayerSpec::inside(dir, &disk.file)]).ok()?;
            let named = layer.backing()?.to_owned();
            let image = dir.join(&disk.file);
            let backing = image.parent()?.join(named).canonicalize().ok()?;
            let found = backing.parent()?.parent()?.to_owned();
            // Far away it must be known by its hash: an export that somebody put together could name anybody's.
            let near = dir.parent().and_then(Path::parent).unwrap_or(dir);
            let near = near.canonicalize().ok().filter(|d| d.parent().is_some());
            let is_near = near.is_some_and(|near| found.starts_with(near));
            (is_near || manifest.point.base_manifest.is_some()).then_some(found)
        });
    let around = directories_in;
    // Beside it, above it, below it; and exports of the machine beside its export directory.
    let own = dir.file_name().unwrap_or_default().to_owned();
    let beside = dir.parent().map(around).unwrap_or_default();
    let above = dir.parent().map(Path::to_owned);
    let further = dir
        .parent()
        .and_then(Path::parent)
        .map(around)
        .unwrap_or_default();
    let candidates = named
        .chain(around(dir))
        .chain(above)
        .chain(beside)
        .chain(further.into_iter().map(|d| d.join(&own)));
    layout::find(candidates.collect::<Vec<_>>(), &manifest.machine.id, base)
}

/// Proves the exports.
pub(crate) async fn run(_vmms: &Arc<Vmms>, ctx: &JobContext, directory: &Path) -> Result<()> {
    ctx.checkpoint().await?;
    let dir = directory.to_owned();
    let (cancel, told) = (ctx.cancel_flag(), ctx.clone());
    let proof = blocking(move || prove(&dir, &told, &cancel)).await;
    let proof = proof.map_err(|cause| match cause.kind() {
        Kind::Cancelled => cause,
        _ => fault!(VerifyFailed, directory.display()).caused_by(cause),
    })?;
    ctx.output(|output| {
        output.directory = Some(directory.to_owned());
        output.bytes_read = proof.bytes;
        output.report = proof.report;
    })
    .await?;
    if proof.causes.is_empty() {
        return Ok(());
    }
    let mut failed = fault!(VerifyFailed, directory.display());
    failed.causes = proof.causes;
    Err(failed)
}

/// What was found in all exports together.
#[derive(Default)]
pub(crate) struct Proof {
    pub(crate) bytes: u64,
    pub(crate) report: Vec<String>,
    pub(crate) causes: Vec<Fault>,
}

fn prove(directory: &Path, ctx: &JobContext, cancel: &disk::CancelFlag) -> Result<Proof> {
    let mut proof = Proof::default();
    let mut chains: Vec<Vec<PathBuf>> = Vec::new();
    for dir in exports_below(directory)? {
        match chain_of(&dir) {
            Ok(chain) => chains.push(chain.into_iter().map(|e| e.dir).collect()),
            Err(cause) => {
                proof.report.push(format!("{}: {cause}", dir.display()));
                proof.causes.push(cause);
            }
        }
    }
    // What another one builds on is proven with that one.
    let beneath: Vec<PathBuf> = chains
        .iter()
        .flat_map(|c| c.split_last().map_or(&[][..], |(_, below)| below))
        .cloned()
        .collect();
    chains.retain(|c| c.last().is_some_and(|top| !beneath.contains(top)));
    let mut before = 0;
    for chain in &chains {
        let seen = std::sync::atomic::AtomicU64::new(0);
        let progress = |p: disk::Progress| {
            seen.fetch_max(p.total, std::sync::atomic::Ordering::Relaxed);
            ctx.progress(before + p.done, before + p.total);
        };
        proof.add(chain, &progress, cancel)?;
        before += seen.into_inner();
    }
    Ok(proof)
}

impl Proof {
    /// Proves one chain, base first.
    pub(crate) fn add(
        &mut self,
        chain: &[PathBuf],
        progress: &(dyn Fn(disk::Progress) + Sync),
        cancel: &disk::CancelFlag,
    ) -> Result<()> {
        match disk::verify(chain, progress, cancel) {
            Ok(verdicts) => {
                for verdict in verdicts {
                    let line = line(&verdict);
                    // Two chains may share their first exports.
                    if !self.report.contains(&line) {
                        self.bytes += verdict.bytes;
                        self.report.push(line);
                        self.causes.extend(cause(verdict));
                    }
                }
            }
            Err(error) => {
                let cause = Fault::from(error);
                if cause.kind() == Kind::Cancelled {
                    return Err(cause);
                }
                self.causes.push(cause);
            }
        }
        Ok(())
    }
}

fn line(verdict: &Verdict) -> String {
    let Verdict {
        point,
        what,
        blocks,
        bytes,
        problem,
    } = verdict;
    match problem {
        None => format!("{what} at point {point}: proven, {blocks} blocks, {bytes} bytes"),
        Some(problem) => format!("{what} at point {point}: {problem}"),
    }
}

/// A problem in the words of the catalogue: the file and the first bad byte where they are known.
fn cause(verdict: Verdict) -> Option<Fault> {
    let what = format!("{} at point {}", verdict.what, verdict.point);
    Some(match verdict.problem? {
        Problem::Block { offset, .. } | Problem::Unlisted { offset } => {
            fault!(DigestMismatch, what, offset)
        }
        Problem::Length {
            path,
            expected,
            found,
        } => {
            fault!(DigestMismatch, path.display(), expected.min(found))
        }
        Problem::Unreadable(error) => {
            fault!(Block, format!("{what} cannot be read")).caused_by(error)
        }
        problem => fault!(Block, format!("{what}: {problem}")),
    })
}
