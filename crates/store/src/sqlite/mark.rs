//! The newest acknowledged revision, noted outside of the database.
//!
//! A database whose log was removed, cut or damaged opens without complaint: SQLite takes what is whole and leaves the rest. Only
//! something beside it can tell that there was more. The note is written and synced after each commit and before its answers go out.
//! So it is never ahead of what is durable; and what it does not count yet was acknowledged to nobody.
//!
//! Two places in the file are written in turn, each with a check sum: a write that the power cut leaves the other.

use super::fault::io_fault;
use crate::{Revision, StoreError};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"KVMMSREV";
const LEN: usize = 40;
/// Each place is in a block of its own.
const PLACES: [u64; 2] = [0, 4096];

/// What a note says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Noted {
    /// Which store it is about.
    pub(super) identity: u64,
    /// The newest revision.
    pub(super) revision: u64,
    turn: u64,
}

/// The open file of notes.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    identity: u64,
    turn: u64,
}

/// Where the notes of a store are.
pub(super) fn path_of(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".revision");
    PathBuf::from(name)
}

fn sum(bytes: &[u8]) -> u64 {
    // FNV-1a: it tells torn and flipped bytes, which is all that is asked of it.
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Noted {
    fn bytes(self) -> [u8; LEN] {
        let mut out = [0; LEN];
        let words = [self.identity, self.revision, self.turn];
        let body = words.iter().flat_map(|w| w.to_le_bytes());
        for (to, from) in out.iter_mut().zip(MAGIC.iter().copied().chain(body)) {
            *to = from;
        }
        let check = sum(out.get(..LEN - 8).unwrap_or_default());
        for (to, from) in out.iter_mut().skip(LEN - 8).zip(check.to_le_bytes()) {
            *to = from;
        }
        out
    }

    fn of(bytes: &[u8; LEN]) -> Option<Self> {
        let word = |n: usize| {
            let at = 8 + n * 8;
            let bytes = bytes.get(at..at + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let noted = Noted {
            identity: word(0)?,
            revision: word(1)?,
            turn: word(2)?,
        };
        (noted.bytes() == *bytes).then_some(noted)
    }
}

/// What was noted; `None` where there is no note at all.
///
/// Errors: [`StoreError::Corrupt`] for a file of notes none of which can be read.
pub(super) fn read(store: &Path) -> Result<Option<Noted>, StoreError> {
    let path = path_of(store);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_fault("read the noted revision", error)),
    };
    let mut found: Option<Noted> = None;
    for place in PLACES {
        let mut bytes = [0; LEN];
        if file.read_exact_at(&mut bytes, place).is_ok()
            && let Some(noted) = Noted::of(&bytes)
            && found.is_none_or(|f| f.turn < noted.turn)
        {
            found = Some(noted);
        }
    }
    if found.is_none() {
        return Err(StoreError::Corrupt {
            path,
            details: "no note of the newest revision in it can be read".to_owned(),
        });
    }
    Ok(found)
}

impl Mark {
    /// Opens the notes of a store, or makes them, and notes `revision`.
    pub(super) fn open(
        store: &Path,
        identity: u64,
        revision: Revision,
    ) -> Result<Self, StoreError> {
        let what = "note the newest revision";
        let io = |error| io_fault(what, error);
        let before = read(store)?;
        let path = path_of(store);
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let new = PathBuf::from(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let opened = match before {
            Some(_) => options.open(&path),
            None => options.create(true).truncate(true).open(&new),
        };
        let mut mark = Mark {
            file: opened.map_err(io)?,
            identity,
            turn: before.map_or(0, |b| b.turn),
        };
        if before.is_none_or(|b| b.identity != identity || b.revision != revision.get()) {
            // Both places.
            mark.note(revision)?;
            mark.note(revision)?;
        }
        if before.is_none() {
            // Under its name only once it is whole: a note that cannot be read keeps the store closed.
            mark.file.sync_all().map_err(io)?;
            std::fs::rename(&new, &path).map_err(io)?;
            super::copies::sync_directory(path.parent().unwrap_or(Path::new(".")))?;
        }
        Ok(mark)
    }

    /// Notes a revision, durably.
    pub(super) fn note(&mut self, revision: Revision) -> Result<(), StoreError> {
        self.turn += 1;
        let noted = Noted {
            identity: self.identity,
            revision: revision.get(),
            turn: self.turn,
        };
        let place = if self.turn.is_multiple_of(2) {
            PLACES[0]
        } else {
            PLACES[1]
        };
        self.file
            .write_all_at(&noted.bytes(), place)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| io_fault("note the newest revision", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_note_leaves_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("s.db");
        assert_eq!(read(&store).unwrap(), None);
        let mut mark = Mark::open(&store, 7, Revision::new(1)).unwrap();
        for n in 2..20 {
            mark.note(Revision::new(n)).unwrap();
            assert_eq!(read(&store).unwrap().map(|n| n.revision), Some(n));
            let place = if mark.turn.is_multiple_of(2) {
                PLACES[0]
            } else {
                PLACES[1]
            };
            let mut whole = [0; LEN];
            mark.file.read_exact_at(&mut whole, place).unwrap();
            for at in 0..LEN {
                let mut torn = whole;
                torn[at] ^= 0x10;
                mark.file.write_all_at(&torn, place).unwrap();
                assert_eq!(read(&store).unwrap().map(|n| n.revision), Some(n - 1));
            }
            mark.file.write_all_at(&whole, place).unwrap();
        }
        drop(mark);
        let again = Mark::open(&store, 7, Revision::new(19)).unwrap();
        assert!(again.turn >= 18, "turns go on");
        std::fs::write(path_of(&store), [0; 9000]).unwrap();
        assert!(matches!(read(&store), Err(StoreError::Corrupt { .. })));
    }
}
