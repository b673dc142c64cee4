//! Taking an export back: what it created, and nothing else.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use disk::confined::{Dir, Identity};
use disk::manifest::MANIFEST_NAME;
use uuid::Uuid;

use super::{Checkpoint, OwnDir, PREFIX, all_checkpoints, below, split};
use crate::export::layout;
use crate::job::{Job, JobContext};
use crate::{Fault, Result, Vmms, fault};

/// Deletes everything an export created, of one machine or of several, and nothing else.
pub(crate) async fn undo(vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
    let threads = ctx.cancel_flag();
    // A killed job's threads notice it at their next step, and may be in the middle of one.
    let idle = move || {
        threads.wait_until_idle();
        Ok(())
    };
    crate::blocking(idle).await?;
    let Some(all) = ctx.notes::<serde_json::Value>().map(all_checkpoints) else {
        return Ok(());
    };
    let left = crate::blocking(move || {
        let mut left = Vec::new();
        for notes in all.iter().rev() {
            let failed = |cause: Fault| fault!(ExportLeft, notes.root.display()).caused_by(cause);
            left.extend(take_back(notes).map_err(failed)?);
        }
        Ok(left)
    })
    .await?;
    if left.is_empty() {
        return Ok(());
    }
    hand_over(vmms, ctx.job(), left).await
}

/// Deletes what one part created; returns the directories in which there is something of others.
fn take_back(notes: &Checkpoint) -> Result<Vec<OwnDir>> {
    if notes.root.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    let (root, missing) = Dir::open_nearest(&notes.root)?;
    if missing.is_empty() {
        // The manifest first: without it the rest is no export.
        let (manifests, files): (Vec<_>, Vec<_>) = notes
            .created
            .iter()
            .partition(|c| c.path == Path::new(MANIFEST_NAME));
        for own in manifests.into_iter().chain(files) {
            let (parent, name) = split(&own.path)?;
            let Some(dir) = below(&root, parent)? else {
                continue;
            };
            dir.remove(name, &own.identity)?;
            dir.remove(OsStr::new(&own.partial), &own.identity)?;
            if own.path == Path::new(MANIFEST_NAME) {
                dir.sync()?;
            }
        }
        for parent in ["", layout::MACHINES, layout::DISKS] {
            if let Ok(Some(dir)) = below(&root, Path::new(parent)) {
                unnoted(&dir, notes)?;
                dir.sync()?;
            }
        }
    }
    let mut left = Vec::new();
    for own in notes.dirs.iter().rev() {
        let gone = remove_dir(&own.path, &own.identity)? || remove_dir(&own.before, &own.identity)?;
        if !gone
            && Dir::open(&own.path)
                .and_then(|d| d.identity())
                .is_ok_and(|f| f.is(&own.identity))
        {
            left.push(own.clone());
        }
    }
    // What was made before it could be noted lies in the directory that was there then.
    let mut above = notes.root.ancestors().skip(1);
    while let Some(dir) = above.next().filter(|d| d.parent().is_some()) {
        if let Ok(dir) = Dir::open(dir) {
            unnoted(&dir, notes)?;
        }
    }
    Ok(left)
}

/// Deletes what was created under one of our temporary names and never noted.
fn unnoted(dir: &Dir, notes: &Checkpoint) -> Result<()> {
    if notes.token.is_empty() {
        return Ok(());
    }
    let prefix = format!("{PREFIX}{}-", notes.token);
    for name in dir.names()? {
        if !name.to_string_lossy().starts_with(&prefix) {
            continue;
        }
        let Some(found) = dir.look(&name)? else {
            continue;
        };
        if !dir.remove(&name, &found)? {
            empty_tree(dir, &name, &found)?;
        }
    }
    Ok(())
}

/// Deletes directories that hold nothing but directories.
fn empty_tree(dir: &Dir, name: &OsStr, which: &Identity) -> Result<()> {
    let inner = dir.enter(Path::new(name))?;
    for below in inner.names()? {
        if let Some(found) = inner.look(&below)? {
            let _ = empty_tree(&inner, &below, &found);
        }
    }
    dir.remove_dir(name, which)?;
    Ok(())
}

/// Directories that stay because others write below them become theirs, so that the last one to go takes them along.
async fn hand_over(vmms: &Arc<Vmms>, job: Uuid, left: Vec<OwnDir>) -> Result<()> {
    vmms.db
        .change(|draft| {
            for dir in left {
                let heir = draft.all::<Job>().into_iter().find_map(|other| {
                    let alive = other.id != job && !other.is_over();
                    let mut all = all_checkpoints(other.notes.clone());
                    let part = all
                        .iter_mut()
                        .filter(|_| alive)
                        .find(|n| n.root.starts_with(&dir.path))?;
                    // Outermost first.
                    part.dirs.insert(0, dir.clone());
                    Some((other.id, all))
                });
                if let Some((heir, all)) = heir {
                    draft.get_mut::<Job>(heir)?.notes =
                        serde_json::to_value(&all).map_err(|e| fault!(Internal, e))?;
                }
            }
            Ok(())
        })
        .await
}

/// Makes a directory under a temporary name; what a crash left under it goes first.
pub(super) fn fresh_dir(dir: &Dir, temporary: &OsStr) -> Result<Dir> {
    if let Some(left) = dir.look(temporary)? {
        empty_tree(dir, temporary, &left)?;
    }
    Ok(dir.create_dir(temporary)?)
}

/// Deletes a directory if it is this one and empty.
pub(super) fn remove_dir(path: &Path, which: &Identity) -> Result<bool> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(false);
    };
    let (dir, missing) = Dir::open_nearest(parent)?;
    if !missing.is_empty() {
        return Ok(false);
    }
    let gone = dir.remove_dir(name, which)?;
    if gone {
        dir.sync()?;
    }
    Ok(gone)
}
