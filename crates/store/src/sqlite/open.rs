//! Opening a store's file: one process only, the right file, undamaged.

use super::fault::{fault, io_fault};
use super::mark::{self, Mark};
use super::{Check, SqliteOptions, copies};
use crate::{LeaseId, Revision, StoreError};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// "kvms": marks the file as ours.
const APPLICATION_ID: i32 = 0x6b76_6d73;
/// The layout of the tables below.
const FORMAT: i32 = 1;

const TABLES: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, number INTEGER NOT NULL) STRICT;
INSERT INTO meta VALUES ('revision', 0), ('oldest', 1);
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    schema INTEGER NOT NULL,
    value TEXT NOT NULL,
    created INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    lease INTEGER
) STRICT;
CREATE INDEX records_by_lease ON records (lease) WHERE lease IS NOT NULL;
-- One row per change; a value of NULL is a deletion.
CREATE TABLE history (
    revision INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    key TEXT NOT NULL,
    schema INTEGER,
    value TEXT,
    created INTEGER,
    lease INTEGER,
    PRIMARY KEY (revision, seq)
) STRICT;
-- AUTOINCREMENT: the number of an ended lease never comes again.
CREATE TABLE leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_ms INTEGER NOT NULL) STRICT;
";

/// Keeps other processes out while it lives. A file of its own, because closing
/// any other handle of the database file would drop SQLite's own locks on it.
#[derive(Debug)]
pub(super) struct FileLock {
    _file: File,
}

impl FileLock {
    pub(super) fn take(store: &Path) -> Result<Self, StoreError> {
        let what = "take the lock file";
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(lock_path(store))
            .map_err(|error| io_fault(what, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The owner's number is a courtesy; without it the refusal stands.
                let pid = file
                    .read_to_string(&mut text)
                    .ok()
                    .and_then(|_| text.trim().parse().ok());
                return Err(StoreError::InUse {
                    path: store.to_owned(),
                    pid,
                });
            }
            Err(TryLockError::Error(error)) => return Err(io_fault(what, error)),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(|error| io_fault(what, error))?;
        Ok(FileLock { _file: file })
    }
}

fn lock_path(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

/// What the file said when it was opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) writer: Connection,
    pub(super) revision: Revision,
    pub(super) oldest: Revision,
    pub(super) leases: Vec<(LeaseId, Duration)>,
    /// Where the newest revision is noted.
    pub(super) mark: Mark,
    /// The file is large: check it while the store is already in use.
    pub(super) check_later: bool,
}

/// Opens or creates the file. The caller holds its [`FileLock`].
pub(super) fn open(path: &Path, options: &SqliteOptions) -> Result<Opened, StoreError> {
    let sorted = |what| move |error| fault(path, what, error);
    let noted = mark::read(path)?;
    let size = match noted {
        // One that was there is not made anew.
        Some(noted) => std::fs::metadata(path)
            .map_or(0, |m| m.len())
            .max(u64::from(noted.revision == 0)),
        None => 1,
    };
    if let (0, Some(noted)) = (size, noted) {
        return Err(behind(path, 0, noted.revision));
    }
    let size = create(path)?;
    let writer = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(sorted("open the file"))?;
    prepare(&writer, options).map_err(sorted("set up a connection"))?;
    // One that is refused is left as it is: at its end a connection would fold what is whole of the log into the file, and delete the
    // rest.
    let fold =
        |at_end: bool| writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !at_end);
    fold(false).map_err(sorted("set up a connection"))?;
    let fresh = recognise(path, &writer)?;
    if let (true, Some(noted)) = (fresh, noted)
        && noted.revision > 0
    {
        return Err(behind(path, 0, noted.revision));
    }
    let check_later = check(path, &writer, options.check, size)?;
    if let Some(noted) = noted.filter(|_| !fresh) {
        let number = "SELECT number FROM meta WHERE name = 'revision'";
        let found: u64 = writer
            .query_row(number, [], |row| row.get(0))
            .map_err(sorted("read the newest revision"))?;
        if found < noted.revision {
            return Err(behind(path, found, noted.revision));
        }
    }

    let mode: String = writer
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(sorted("switch to write-ahead logging"))?;
    if !mode.eq_ignore_ascii_case("wal") {
        return Err(StoreError::Foreign {
            path: path.to_owned(),
            why: format!("its file system allows no write-ahead log (the mode stays {mode:?})"),
        });
    }
    // FULL: each commit waits for the disk. A job once acknowledged is not lost with the power.
    writer
        .pragma_update(None, "synchronous", "FULL")
        .map_err(sorted("make commits durable"))?;
    if let Some(bytes) = options.max_bytes {
        let page: u64 = writer
            .pragma_query_value(None, "page_size", |row| row.get(0))
            .map_err(sorted("limit the file"))?;
        let pages = i64::try_from(bytes / page.max(1))
            .unwrap_or(i64::MAX)
            .max(1);
        writer
            .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
            .map_err(sorted("limit the file"))?;
    }
    if fresh {
        let script = format!(
            "BEGIN IMMEDIATE; {TABLES} PRAGMA application_id = {APPLICATION_ID}; \
             PRAGMA user_version = {FORMAT}; COMMIT;"
        );
        writer
            .execute_batch(&script)
            .map_err(sorted("create the tables"))?;
    }
    sync_directory(path)?;
    let identity = identity(path, &writer)?;
    if let Some(noted) = noted.filter(|n| n.identity != identity && n.revision > 0) {
        return Err(StoreError::Exchanged {
            path: path.to_owned(),
            known: noted.revision,
        });
    }
    fold(true).map_err(sorted("set up a connection"))?;
    let opened = load(path, writer, check_later, identity, noted)?;
    copies::before_use(path, options)?;
    Ok(opened)
}

fn behind(path: &Path, found: u64, known: u64) -> StoreError {
    StoreError::Behind {
        path: path.to_owned(),
        found,
        known,
    }
}

/// Which store this is: a number of its own that goes along with copies.
fn identity(path: &Path, writer: &Connection) -> Result<u64, StoreError> {
    let sorted = |error| fault(path, "read the store's identity", error);
    writer
        .execute(
            "INSERT OR IGNORE INTO meta VALUES ('identity', random() & 9223372036854775807)",
            [],
        )
        .map_err(sorted)?;
    let number = "SELECT number FROM meta WHERE name = 'identity'";
    writer
        .query_row(number, [], |row| row.get(0))
        .map_err(sorted)
}

/// Makes the file, readable for its owner only, if there is none; says its size.
fn create(path: &Path) -> Result<u64, StoreError> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let file = options
        .open(path)
        .map_err(|error| io_fault("open the file", error))?;
    let meta = file
        .metadata()
        .map_err(|error| io_fault("open the file", error))?;
    if meta.is_file() {
        Ok(meta.len())
    } else {
        Err(StoreError::Foreign {
            path: path.to_owned(),
            why: "it is not a file".to_owned(),
        })
    }
}

/// What every connection needs.
pub(super) fn prepare(
    connection: &Connection,
    options: &SqliteOptions,
) -> Result<(), rusqlite::Error> {
    connection.busy_timeout(options.busy_timeout)?;
    connection.set_prepared_statement_cache_capacity(32);
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)
}

/// Whether the file is empty (true) or a store of ours (false); anything else is refused.
pub(super) fn recognise(path: &Path, connection: &Connection) -> Result<bool, StoreError> {
    let sorted = |error| fault(path, "read the file's header", error);
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let application = number("application_id").map_err(sorted)?;
    let format = number("user_version").map_err(sorted)?;
    let objects: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(sorted)?;
    let foreign = |why: String| {
        Err(StoreError::Foreign {
            path: path.to_owned(),
            why,
        })
    };
    match (application, format) {
        (0, 0) if objects == 0 => Ok(true),
        (APPLICATION_ID, FORMAT) => Ok(false),
        (APPLICATION_ID, newer) if newer > FORMAT => foreign(format!(
            "a newer program wrote it (format {newer}, this program knows {FORMAT})"
        )),
        (APPLICATION_ID, other) => foreign(format!("its format {other} is unknown")),
        _ => foreign("it is a database of another program".to_owned()),
    }
}

/// Checks now, or says that it is to be checked later.
fn check(
    path: &Path,
    connection: &Connection,
    check: Check,
    size: u64,
) -> Result<bool, StoreError> {
    match check {
        Check::Skip => Ok(false),
        Check::Auto if size > super::CHECK_LATER_FROM => Ok(true),
        Check::Auto | Check::Quick => run_check(path, connection, "quick_check").map(|()| false),
        Check::Full => run_check(path, connection, "integrity_check").map(|()| false),
    }
}

/// Runs one of SQLite's checks.
pub(super) fn run_check(
    path: &Path,
    connection: &Connection,
    pragma: &str,
) -> Result<(), StoreError> {
    let sorted = |error| fault(path, "check the file", error);
    let mut findings = Vec::new();
    let mut statement = connection
        .prepare(&format!("PRAGMA {pragma}(5)"))
        .map_err(sorted)?;
    let mut rows = statement.query([]).map_err(sorted)?;
    while let Some(row) = rows.next().map_err(sorted)? {
        let line: String = row.get(0).map_err(sorted)?;
        if line != "ok" {
            findings.push(line);
        }
    }
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'records'";
    let there: i64 = connection
        .query_row(tables, [], |row| row.get(0))
        .map_err(sorted)?;
    if findings.is_empty() && there > 0 {
        // What SQLite does not look into: each value is text in JSON.
        let mut broken = connection
            .prepare("SELECT key FROM records WHERE NOT json_valid(value) LIMIT 5")
            .map_err(sorted)?;
        let mut rows = broken.query([]).map_err(sorted)?;
        while let Some(row) = rows.next().map_err(sorted)? {
            let key: String = row.get(0).map_err(sorted)?;
            findings.push(format!("the content of record {key:?} is damaged"));
        }
    }
    if findings.is_empty() {
        Ok(())
    } else {
        Err(StoreError::Corrupt {
            path: path.to_owned(),
            details: findings.join("; "),
        })
    }
}

/// The name of a new file survives a power cut only once its directory is on disk.
fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| io_fault("make the file's name durable", error))
}

fn load(
    path: &Path,
    writer: Connection,
    check_later: bool,
    identity: u64,
    noted: Option<mark::Noted>,
) -> Result<Opened, StoreError> {
    let sorted = |error| fault(path, "read the newest revision", error);
    let number = |sql: &str| writer.query_row(sql, [], |row| row.get::<_, u64>(0));
    let revision = number("SELECT number FROM meta WHERE name = 'revision'").map_err(sorted)?;
    let oldest = number("SELECT number FROM meta WHERE name = 'oldest'").map_err(sorted)?;
    let last = number("SELECT ifnull(max(revision), 0) FROM history").map_err(sorted)?;
    if last > revision || oldest > revision.saturating_add(1) {
        return Err(StoreError::Corrupt {
            path: path.to_owned(),
            details: format!(
                "it counts {revision} revisions, but history runs from {oldest} to {last}"
            ),
        });
    }
    if let Some(noted) = noted.filter(|n| n.revision > revision) {
        return Err(behind(path, revision, noted.revision));
    }
    let mark = Mark::open(path, identity, Revision::new(revision))?;
    let mut leases = Vec::new();
    {
        let mut statement = writer
            .prepare("SELECT id, ttl_ms FROM leases")
            .map_err(sorted)?;
        let mut rows = statement.query([]).map_err(sorted)?;
        while let Some(row) = rows.next().map_err(sorted)? {
            let id = row.get(0).map_err(sorted)?;
            let ttl = Duration::from_millis(row.get(1).map_err(sorted)?);
            leases.push((LeaseId::new(id), ttl));
        }
    }
    Ok(Opened {
        writer,
        revision: Revision::new(revision),
        oldest: Revision::new(oldest),
        leases,
        mark,
        check_later,
    })
}
