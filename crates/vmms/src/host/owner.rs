//! Whose a layer is: a line in its own header, so that it is known wherever the file goes, and whatever becomes of the records.
//!
//! Each state directory has an identifier. It is bound to the file it is kept in: a directory that was copied gets one of its own, and
//! what both may own is taken for another's by both. Then nothing of it is cleaned; it is told.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;
use std::time::UNIX_EPOCH;

use disk::Qcow2Layer;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Fault, Result};

/// The owner's line of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The state directory.
    pub state: Uuid,
    /// The machine it was made for.
    pub vm: Uuid,
    /// The disk.
    pub disk: Uuid,
    /// The layer.
    pub layer: Uuid,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Owner {
            state,
            vm,
            disk,
            layer,
        } = self;
        write!(f, "state={state} machine={vm} disk={disk} layer={layer}")
    }
}

impl FromStr for Owner {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let find = |name: &str| -> Result<Uuid, ()> {
            let found = text.split(' ').find_map(|word| {
                let (key, value) = word.split_once('=')?;
                (key == name).then_some(value)
            });
            found.and_then(|v| v.parse().ok()).ok_or(())
        };
        Ok(Owner {
            state: find("state")?,
            vm: find("machine")?,
            disk: find("disk")?,
            layer: find("layer")?,
        })
    }
}

impl Owner {
    /// That of a new layer of this service.
    pub(crate) fn new(vmms: &crate::Vmms, vm: Uuid, disk: Uuid, layer: Uuid) -> Self {
        Owner {
            state: vmms.identity,
            vm,
            disk,
            layer,
        }
    }

    /// The owner a layer names in its header.
    pub fn of(layer: &Qcow2Layer) -> Option<Self> {
        layer.header().owner.as_deref()?.parse().ok()
    }
}

/// What the file of a state directory's identifier says.
#[derive(Serialize, Deserialize)]
struct Kept {
    id: Uuid,
    /// The file it was written to, which a copy is not.
    inode: u64,
    born: u128,
    /// What a directory that was copied was before.
    #[serde(default)]
    former: Vec<Uuid>,
}

const FILE: &str = "identity";

fn birth(meta: &std::fs::Metadata) -> u128 {
    let created = meta.created().ok();
    let since = created.and_then(|c| c.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |d| d.as_nanos())
}

/// The identifier of a state directory; made where there is none, and made anew where the directory is a copy.
pub(crate) fn state_id(state: &Path) -> Result<Uuid> {
    let path = state.join(FILE);
    let io = |action: &'static str| {
        let path = path.clone();
        move |e: std::io::Error| Fault::io(action, &path, &e)
    };
    let before: Option<Kept> = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).ok(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(io("read")(e)),
    };
    if let Some(kept) = &before {
        let meta = std::fs::metadata(&path).map_err(io("look at"))?;
        if (kept.inode, kept.born) == (meta.ino(), birth(&meta)) {
            return Ok(kept.id);
        }
    }
    let mut new = tempfile_in(state)?;
    let meta = new.1.metadata().map_err(io("look at"))?;
    let mut former = before
        .as_ref()
        .map(|b| b.former.clone())
        .unwrap_or_default();
    former.extend(before.map(|b| b.id));
    let kept = Kept {
        id: Uuid::new_v4(),
        inode: meta.ino(),
        born: birth(&meta),
        former,
    };
    let text = serde_json::to_vec(&kept).map_err(|e| crate::fault!(Internal, e))?;
    std::io::Write::write_all(&mut new.1, &text).map_err(io("write"))?;
    new.1.sync_all().map_err(io("sync"))?;
    std::fs::rename(&new.0, &path).map_err(io("write"))?;
    sync_dir(state)?;
    Ok(kept.id)
}

/// Makes what was created, renamed or removed in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    let file = std::fs::File::open(dir).map_err(|e| Fault::io("open", dir, &e))?;
    file.sync_all().map_err(|e| Fault::io("sync", dir, &e))
}

/// Where a run directory names the state directory whose machine runs there.
pub(crate) fn mark_in(run_dir: &Path) -> std::path::PathBuf {
    run_dir.join("owner")
}

/// Whether the process of a run directory was started by the service of this state directory.
pub(crate) fn is_run_dir_of(state: &Uuid, run_dir: &Path) -> bool {
    let named = std::fs::read_to_string(mark_in(run_dir));
    named.is_ok_and(|text| text.trim() == state.to_string())
}

/// Names the state directory in the run directory of a machine that is about to be started.
pub(crate) fn mark_run_dir(state: &Uuid, run_dir: &Path) -> Result<()> {
    std::fs::create_dir_all(run_dir).map_err(|e| Fault::io("create", run_dir, &e))?;
    let mark = mark_in(run_dir);
    std::fs::write(&mark, format!("{state}\n")).map_err(|e| Fault::io("write", &mark, &e))
}

fn tempfile_in(dir: &Path) -> Result<(std::path::PathBuf, std::fs::File)> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = dir.join(format!("{FILE}.{}", Uuid::new_v4()));
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| Fault::io("create", &path, &e))?;
    Ok((path, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owners_line_reads_back_and_anything_else_is_nobodys() {
        let owner = Owner {
            state: Uuid::from_u128(1),
            vm: Uuid::from_u128(2),
            disk: Uuid::from_u128(3),
            layer: Uuid::from_u128(4),
        };
        assert_eq!(owner.to_string().parse(), Ok(owner));
        for other in ["", "state=1", "somebody else's"] {
            assert!(other.parse::<Owner>().is_err());
        }
    }

    #[test]
    fn a_copied_state_directory_is_another_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        std::fs::create_dir(&one).expect("one");
        std::fs::create_dir(&two).expect("two");
        let first = state_id(&one).expect("an identifier");
        assert_eq!(state_id(&one).ok(), Some(first));
        std::fs::copy(one.join(FILE), two.join(FILE)).expect("a copy");
        let second = state_id(&two).expect("an identifier");
        assert_ne!(first, second);
        assert_eq!(state_id(&two).ok(), Some(second));
        assert_eq!(state_id(&one).ok(), Some(first));
    }
}
