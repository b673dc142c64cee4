//! Copies of the database, made regularly and before a new version of the program uses it, and the way back from them.
//!
//! A copy is a whole database of its own: written by SQLite under another name, synced, renamed. Few are kept.

use super::fault::{fault, io_fault};
use super::{open, reader};
use crate::{SqliteOptions, StoreError};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where copies go and how many there are.
#[derive(Clone, Debug)]
pub struct Copies {
    /// Their directory; made where it is missing.
    pub directory: PathBuf,
    /// How long after one copy the next is made, if anything has changed.
    pub every: Duration,
    /// How many are kept, the newest; at least one. Of what is older, one of each day for as many days.
    pub keep: usize,
    /// The program's version: where another one made the last copy, one is made before anything changes.
    pub version: String,
}

/// A copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The file.
    pub path: PathBuf,
    /// The newest revision in it, as its name says.
    pub revision: u64,
    /// When it was made: seconds since 1970.
    pub seconds: u64,
}

const PREFIX: &str = "kvmms-";
const SUFFIX: &str = ".db";
const VERSION: &str = "version";
const DAY: u64 = 24 * 3600;

/// The copies in a directory, the newest first.
pub fn copies_in(directory: &Path) -> Result<Vec<Copy>, StoreError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_fault("list the copies", error)),
    };
    let mut found: Vec<Copy> = entries
        .filter_map(|entry| named(entry.ok()?.path()))
        .collect();
    found.sort_by_key(|copy| std::cmp::Reverse((copy.revision, copy.seconds)));
    Ok(found)
}

fn named(path: PathBuf) -> Option<Copy> {
    let name = path.file_name()?.to_str()?;
    let middle = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let (revision, seconds) = middle.split_once('-')?;
    let (revision, seconds) = (revision.parse().ok()?, seconds.parse().ok()?);
    Some(Copy {
        path,
        revision,
        seconds,
    })
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

pub(super) fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    let directory = match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    };
    std::fs::File::open(directory)
        .and_then(|d| d.sync_all())
        .map_err(|error| io_fault("make a file's name durable", error))
}

/// Writes what a connection sees as a database of its own, durably; another file of that name is never overwritten.
pub(super) fn write_whole(
    source: &Path,
    connection: &Connection,
    to: &Path,
) -> Result<(), StoreError> {
    let io = |error| io_fault("copy the store", error);
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let name = partial.to_str().ok_or_else(|| StoreError::Foreign {
        path: partial.clone(),
        why: "its name is no text".to_owned(),
    })?;
    connection
        .execute("VACUUM INTO ?1", [name])
        .map_err(|error| fault(source, "copy the store", error))?;
    let file = std::fs::File::open(&partial).map_err(io)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .map_err(io)?;
    file.sync_all().map_err(io)?;
    std::fs::hard_link(&partial, to).map_err(io)?;
    std::fs::remove_file(&partial).map_err(io)?;
    sync_directory(to.parent().unwrap_or(Path::new(".")))
}

/// Makes a copy, unless the newest one has all that the connection sees; then drops what is too much.
fn make(source: &Path, connection: &Connection, copies: &Copies) -> Result<(), StoreError> {
    let sorted = |error| fault(source, "copy the store", error);
    let number = "SELECT number FROM meta WHERE name = 'revision'";
    let revision: u64 = connection
        .query_row(number, [], |row| row.get(0))
        .map_err(sorted)?;
    let there = copies_in(&copies.directory)?;
    let newest = there.first();
    if newest.is_none_or(|copy| copy.revision != revision) {
        let name = format!("{PREFIX}{revision:012}-{}{SUFFIX}", now());
        write_whole(source, connection, &copies.directory.join(name))?;
    }
    prune(copies)
}

/// Which copies go: those beyond the newest `keep`, but for the newest of each day, of as many days.
fn surplus(all: &[Copy], keep: usize) -> Vec<&Copy> {
    let keep = keep.max(1);
    let mut days: Vec<u64> = Vec::new();
    let older = all.iter().skip(keep);
    older
        .filter(|copy| {
            let day = copy.seconds / DAY;
            let stays = !days.contains(&day) && days.len() < keep;
            if stays {
                days.push(day);
            }
            !stays
        })
        .collect()
}

fn prune(copies: &Copies) -> Result<(), StoreError> {
    let all = copies_in(&copies.directory)?;
    for copy in surplus(&all, copies.keep) {
        std::fs::remove_file(&copy.path).map_err(|error| io_fault("drop an old copy", error))?;
    }
    Ok(())
}

/// Copies before a new version of the program changes anything.
pub(super) fn before_use(path: &Path, options: &SqliteOptions) -> Result<(), StoreError> {
    let Some(copies) = &options.copies else {
        return Ok(());
    };
    let io = |error| io_fault("copy the store", error);
    std::fs::DirBuilder::new()
        .recursive(true)
        .create(&copies.directory)
        .map_err(io)?;
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&copies.directory, private).map_err(io)?;
    let version = copies.directory.join(VERSION);
    let last = std::fs::read_to_string(&version).unwrap_or_default();
    if last.trim() != copies.version {
        make(path, &reader::connect(path, options)?, copies)?;
        // Lost, it costs one more copy.
        std::fs::write(&version, format!("{}\n", copies.version)).map_err(io)?;
    }
    Ok(())
}

/// The thread that makes copies; dropping it ends the thread.
pub(super) struct Copier {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Copier {
    pub(super) fn start(path: &Path, options: &SqliteOptions) -> Result<Option<Self>, StoreError> {
        let Some(copies) = options.copies.clone() else {
            return Ok(None);
        };
        let connection = reader::connect(path, options)?;
        let path = path.to_owned();
        let (stop, stopped) = channel();
        let thread = super::spawn("store-copies", move || {
            while stopped.recv_timeout(copies.every) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = make(&path, &connection, &copies) {
                    tracing::warn!(%error, "the store could not be copied; the next try comes later");
                }
            }
        })?;
        Ok(Some(Copier {
            stop: Some(stop),
            thread: Some(thread),
        }))
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that copies the store panicked");
        }
    }
}

/// What [`recover`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Where the database lies that could not be used.
    pub aside: PathBuf,
    /// What the store was made of: a copy, or what could still be read of the database itself; `None`: of nothing.
    pub source: Option<PathBuf>,
    /// The newest revision in it.
    pub revision: u64,
    /// The newest revision that was known.
    pub known: Option<u64>,
    /// What cannot be used, and why.
    pub unusable: Vec<String>,
}

/// Looks whether a database of ours is whole, and how far it goes.
fn judge(path: &Path, options: &SqliteOptions) -> Result<(Connection, u64), StoreError> {
    let sorted = |error| fault(path, "read a copy", error);
    let connection = Connection::open_with_flags(
        path,
        rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(sorted)?;
    open::prepare(&connection, options).map_err(sorted)?;
    if open::recognise(path, &connection)? {
        return Err(StoreError::Foreign {
            path: path.to_owned(),
            why: "it is empty".to_owned(),
        });
    }
    open::run_check(path, &connection, "integrity_check")?;
    let number = "SELECT number FROM meta WHERE name = 'revision'";
    let revision = connection
        .query_row(number, [], |row| row.get(0))
        .map_err(sorted)?;
    Ok((connection, revision))
}

/// Makes the store at `path` anew: of what is whole and goes furthest among the copies and the database itself. The database that was
/// there is moved aside with all that belongs to it, never changed. Revisions go on after all that were ever known.
///
/// Errors: [`StoreError::InUse`] while a service runs on it; [`StoreError::InvalidTxn`] where nothing is wrong with it.
pub fn recover(path: &Path, copies: &Path) -> Result<Recovered, StoreError> {
    let io = |error| io_fault("recover the store", error);
    let _lock = open::FileLock::take(path)?;
    let options = SqliteOptions::default();
    let mut unusable = Vec::new();
    let noted = super::mark::read(path).unwrap_or_else(|error| {
        unusable.push(error.to_string());
        None
    });
    let directory = path.parent().unwrap_or(Path::new("."));
    let aside = fresh_directory(directory)?;
    // Copied first, judged there, and only then moved: a power cut leaves the database where it was.
    let work = aside.join("work");
    std::fs::create_dir(&work).map_err(io)?;
    let parts: Vec<PathBuf> = ["", "-wal", "-shm", ".revision"]
        .iter()
        .map(|end| {
            let mut name = path.as_os_str().to_owned();
            name.push(end);
            PathBuf::from(name)
        })
        .filter(|part| part.exists())
        .collect();
    let inside = |dir: &Path, part: &Path| dir.join(part.file_name().unwrap_or_default());
    // The shared-memory index is made anew from the log.
    for part in parts
        .iter()
        .filter(|p| !p.to_string_lossy().ends_with("-shm"))
    {
        std::fs::copy(part, inside(&work, part)).map_err(io)?;
    }
    let itself = inside(&work, path);
    let mut best: Option<(Connection, u64, PathBuf)> = None;
    let whole = match itself.exists() {
        true => judge(&itself, &options),
        false => Err(StoreError::Foreign {
            path: path.to_owned(),
            why: "it is not there".to_owned(),
        }),
    };
    match whole {
        Ok((connection, revision)) => {
            if noted.is_some_and(|n| n.revision <= revision) {
                std::fs::remove_dir_all(&aside).map_err(io)?;
                return Err(StoreError::InvalidTxn {
                    why: "the store is whole and ends where it should: nothing is to be recovered"
                        .to_owned(),
                });
            }
            best = Some((connection, revision, path.to_owned()));
        }
        Err(error) => unusable.push(format!("{}: {error}", path.display())),
    }
    for copy in copies_in(copies)? {
        if best.as_ref().is_some_and(|(_, r, _)| *r >= copy.revision) {
            break;
        }
        // Never opened itself: reading writes beside it.
        let read = inside(&work, &copy.path);
        std::fs::copy(&copy.path, &read).map_err(io)?;
        match judge(&read, &options) {
            Ok((connection, revision)) => best = Some((connection, revision, copy.path)),
            Err(error) => unusable.push(format!("{}: {error}", copy.path.display())),
        }
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".recovered");
    let new = PathBuf::from(new);
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let (revision, source) = match best {
        Some((connection, revision, source)) => {
            write_whole(&source, &connection, &new)?;
            go_on_after(
                &new,
                noted.map_or(revision, |n| n.revision.max(revision)),
                noted.map(|n| n.identity),
            )?;
            (revision, Some(source))
        }
        None => (0, None),
    };
    for part in &parts {
        std::fs::hard_link(part, inside(&aside, part)).map_err(io)?;
    }
    sync_directory(&aside)?;
    // A log that lay beside the new database would be taken for its own. The note goes last, and only where it is of no use: until all
    // is done it keeps a service from starting on what is left.
    let gone = |end: &str| {
        parts
            .iter()
            .filter(move |p| p.to_string_lossy().ends_with(end))
            .try_for_each(std::fs::remove_file)
            .map_err(io)
    };
    gone("-wal")?;
    gone("-shm")?;
    sync_directory(directory)?;
    match &source {
        Some(_) => std::fs::rename(&new, path).map_err(io)?,
        None if path.exists() => std::fs::remove_file(path).map_err(io)?,
        None => {}
    }
    sync_directory(directory)?;
    if source.is_none() || noted.is_none() {
        gone(".revision")?;
    }
    std::fs::remove_dir_all(&work).map_err(io)?;
    sync_directory(&aside)?;
    sync_directory(directory)?;
    Ok(Recovered {
        aside,
        source,
        revision,
        known: noted.map(|n| n.revision),
        unusable,
    })
}

/// A directory of its own for what is moved aside.
fn fresh_directory(beside: &Path) -> Result<PathBuf, StoreError> {
    let seconds = now();
    for n in 0..1000 {
        let end = if n == 0 {
            String::new()
        } else {
            format!("-{n}")
        };
        let path = beside.join(format!("damaged-{seconds}{end}"));
        use std::os::unix::fs::DirBuilderExt;
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_fault("make a directory", error)),
        }
    }
    Err(StoreError::InvalidTxn {
        why: format!("there are too many directories damaged-{seconds}"),
    })
}

/// Numbers of revisions never come again: what was lost had them. It takes the place of the store that was noted.
fn go_on_after(path: &Path, known: u64, identity: Option<u64>) -> Result<(), StoreError> {
    let sorted = |error| fault(path, "number the revisions", error);
    let connection = Connection::open(path).map_err(sorted)?;
    let next = i64::try_from(known.saturating_add(1)).unwrap_or(i64::MAX);
    connection
        .execute_batch(&format!(
            "BEGIN IMMEDIATE; DELETE FROM history; UPDATE meta SET number = {next} WHERE name = 'revision'; \
             UPDATE meta SET number = {next} + 1 WHERE name = 'oldest'; COMMIT;"
        ))
        .map_err(sorted)?;
    if let Some(identity) = identity {
        connection
            .execute(
                "INSERT OR REPLACE INTO meta VALUES ('identity', ?1)",
                [identity],
            )
            .map_err(sorted)?;
    }
    connection.close().map_err(|(_, error)| sorted(error))?;
    std::fs::File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|error| io_fault("sync the store", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay_and_one_of_each_day_before() {
        let copy = |revision: u64, hours: u64| Copy {
            path: format!("{revision}").into(),
            revision,
            seconds: hours * 3600,
        };
        // One every six hours for ten days, the newest first.
        let all: Vec<Copy> = (0..40).rev().map(|n| copy(n, n * 6)).collect();
        let gone = surplus(&all, 3);
        assert_eq!(all.len() - gone.len(), 6, "three, and one of three days");
        assert!(gone.iter().all(|c| c.revision < 37));
        assert!(surplus(&all[..3], 3).is_empty());
        assert_eq!(surplus(&all, 0).len(), 38, "one always stays");
    }
}
