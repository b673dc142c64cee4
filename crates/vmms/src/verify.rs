//! Proving an export against its manifest, with everything it builds on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::Qcow2Layer;
use disk::manifest::Manifest;
use disk::verify::{Export, Problem, Verdict, open_exports};

use crate::export::layout;
use crate::job::{JobContext, Task};
use crate::point::tidy::blocking;
use crate::vm::Asked;
use crate::{Effect, Element, Fault, Kind, Result, Vmms, fault};

/// Longest chain of exports.
const MAX_CHAIN: usize = 4096;

/// Starts a job that proves the export in `directory` (the one with the manifest, or the export directory with one
/// machine in it). Refused at once where there is no complete export.
pub async fn verify_export(
    vmms: &Arc<Vmms>,
    directory: &Path,
    asked: &Asked,
) -> Result<uuid::Uuid> {
    let directory = find_export(directory)?;
    let affected = vec![(Element::Image(directory.clone()), Effect::Other)];
    vmms.submit(Task::Verify { directory }, asked.submission(affected))
        .await
}

/// The directory with the manifest: the one named, or the only one in it that has one.
pub(crate) fn find_export(directory: &Path) -> Result<PathBuf> {
    if !directory.is_absolute() {
        return Err(fault!(
            PathNotUsable,
            directory.display(),
            "it is not absolute"
        ));
    }
    let has = |dir: &Path| dir.join(disk::manifest::MANIFEST_NAME).is_file();
    if has(directory) {
        return Ok(directory.to_owned());
    }
    let list = std::fs::read_dir(directory).map_err(|e| Fault::io("list", directory, &e))?;
    let mut found: Vec<PathBuf> = list
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|d| has(d))
        .collect();
    found.sort();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        _ => Err(fault!(ManifestUnusable, directory.display())),
    }
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
            let image = dir.join(&disk.file);
            let layer = Qcow2Layer::open(&image).ok()?;
            let backing = image.parent()?.join(layer.backing()?).canonicalize().ok()?;
            Some(backing.parent()?.parent()?.to_owned())
        });
    let around = |dir: &Path| -> Vec<PathBuf> {
        let list = std::fs::read_dir(dir).into_iter().flatten();
        let mut dirs: Vec<PathBuf> = list
            .filter_map(|e| e.ok().map(|e| e.path()))
            .filter(|p| p.is_dir())
            .collect();
        dirs.sort();
        dirs
    };
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

/// Proves the export.
pub(crate) async fn run(_vmms: &Arc<Vmms>, ctx: &JobContext, directory: &Path) -> Result<()> {
    ctx.checkpoint().await?;
    let dir = directory.to_owned();
    let (cancel, told) = (ctx.cancel_flag(), ctx.clone());
    let verdicts = blocking(move || {
        let dirs: Vec<PathBuf> = chain_of(&dir)?.into_iter().map(|e| e.dir).collect();
        let progress = |p: disk::Progress| told.progress(p.done, p.total);
        Ok(disk::verify(&dirs, &progress, &cancel)?)
    })
    .await
    .map_err(|cause| match cause.kind() {
        Kind::Cancelled => cause,
        _ => fault!(VerifyFailed, directory.display()).caused_by(cause),
    })?;
    let report: Vec<String> = verdicts.iter().map(line).collect();
    ctx.output(|output| {
        output.directory = Some(directory.to_owned());
        output.bytes_read = verdicts.iter().map(|v| v.bytes).sum();
        output.report = report;
    })
    .await?;
    let causes: Vec<Fault> = verdicts.into_iter().filter_map(cause).collect();
    if causes.is_empty() {
        return Ok(());
    }
    let mut failed = fault!(VerifyFailed, directory.display());
    failed.causes = causes;
    Err(failed)
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
        Problem::Length { path, expected, found } => {
            fault!(DigestMismatch, path.display(), expected.min(found))
        }
        Problem::Unreadable(error) => fault!(Block, format!("{what} cannot be read")).caused_by(error),
        problem => fault!(Block, format!("{what}: {problem}")),
    })
}
