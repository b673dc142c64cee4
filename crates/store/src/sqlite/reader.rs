//! Reads: a few connections, each used by one blocking task at a time.

use super::fault::fault;
use super::open::prepare;
use super::{SqliteOptions, sql};
use crate::watch::{Batch, Change, Event, Place};
use crate::{LeaseId, Page, Record, Revision, StoreError};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Most rows of history looked at in one read.
const SCAN: usize = 1024;
/// Most bytes of values in one read, give or take one value.
const SCAN_BYTES: usize = 4 * 1024 * 1024;

/// The read connections.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn open(path: &Path, options: &SqliteOptions) -> Result<Self, StoreError> {
        let count = options.readers.clamp(1, 64);
        let idle = (0..count)
            .map(|_| connect(path, options))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Readers {
            path: path.to_owned(),
            idle: Mutex::new(idle),
            permits: Arc::new(Semaphore::new(count)),
        })
    }

    /// Runs `read` on a connection, off the async threads.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Path, &Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Closed)?;
        let readers = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || {
            let connection = readers.lock().pop().ok_or(StoreError::Closed)?;
            let result = read(&readers.path, &connection);
            if !readers.permits.is_closed() {
                readers.lock().push(connection);
            }
            drop(permit);
            result
        });
        task.await.map_err(|source| StoreError::Engine {
            what: "run a read",
            source: Box::new(source),
        })?
    }

    /// Refuses further reads and closes what is idle.
    pub(super) fn close(&self) {
        self.permits.close();
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that cannot write.
pub(super) fn connect(path: &Path, options: &SqliteOptions) -> Result<Connection, StoreError> {
    let sorted = |error| fault(path, "open a read connection", error);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(sorted)?;
    prepare(&connection, options).map_err(sorted)?;
    Ok(connection)
}

const COLUMNS: &str = "key, schema, value, created, modified, lease";

fn record(path: &Path, row: &Row<'_>) -> Result<Record, StoreError> {
    let sorted = |error| fault(path, "read a record", error);
    let key: String = row.get(0).map_err(sorted)?;
    let schema: u32 = row.get(1).map_err(sorted)?;
    let text = row.get_ref(2).map_err(sorted)?;
    let bytes = text.as_bytes().map_err(|error| sorted(error.into()))?;
    let value = match serde_json::from_slice(bytes) {
        Ok(value) => value,
        Err(source) => {
            return Err(StoreError::Decode {
                key,
                schema,
                source,
            });
        }
    };
    Ok(Record {
        key,
        schema,
        value,
        create_revision: Revision::new(row.get(3).map_err(sorted)?),
        mod_revision: Revision::new(row.get(4).map_err(sorted)?),
        lease: row
            .get::<_, Option<u64>>(5)
            .map_err(sorted)?
            .map(LeaseId::new),
    })
}

pub(super) fn get(
    path: &Path,
    connection: &Connection,
    key: &str,
) -> Result<Option<Record>, StoreError> {
    let sorted = |error| fault(path, "read a record", error);
    let mut statement = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM records WHERE key = ?1"))
        .map_err(sorted)?;
    let mut rows = statement.query([key]).map_err(sorted)?;
    match rows.next().map_err(sorted)? {
        Some(row) => record(path, row).map(Some),
        None => Ok(None),
    }
}

pub(super) fn list(
    path: &Path,
    connection: &Connection,
    prefix: &str,
    start_after: Option<&str>,
    limit: usize,
) -> Result<Page, StoreError> {
    let sorted = |error| fault(path, "list records", error);
    // One transaction: the revision and the records are of the same instant.
    let snapshot = connection.unchecked_transaction().map_err(sorted)?;
    let revision = number(&snapshot, "revision").map_err(sorted)?;
    let (after, relation) = match start_after {
        Some(after) if after >= prefix => (after, ">"),
        _ => (prefix, ">="),
    };
    let mut page = Page {
        records: Vec::new(),
        revision: Revision::new(revision),
        more: false,
    };
    let mut bytes = 0;
    let mut statement = snapshot
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM records WHERE key {relation} ?1 ORDER BY key LIMIT ?2"
        ))
        .map_err(sorted)?;
    let mut rows = statement.query((after, limit as i64 + 1)).map_err(sorted)?;
    while let Some(row) = rows.next().map_err(sorted)? {
        if !begins_with(row.get_ref(0).map_err(sorted)?, prefix) {
            break;
        }
        if page.records.len() == limit || bytes > SCAN_BYTES {
            page.more = true;
            break;
        }
        bytes += row
            .get_ref(2)
            .map_err(sorted)?
            .as_bytes()
            .map_or(0, <[u8]>::len);
        page.records.push(record(path, row)?);
    }
    Ok(page)
}

/// As [`crate::watch::History::read`], from the table.
pub(super) fn history(
    path: &Path,
    connection: &Connection,
    prefix: &str,
    from: Place,
    newest: Revision,
) -> Result<Batch, StoreError> {
    let sorted = |error| fault(path, "read history", error);
    let snapshot = connection.unchecked_transaction().map_err(sorted)?;
    let oldest = Revision::new(number(&snapshot, "oldest").map_err(sorted)?);
    if from.revision < oldest {
        return Err(StoreError::Compacted {
            requested: from.revision,
            oldest,
        });
    }
    let mut statement = snapshot
        .prepare_cached(
            "SELECT key, schema, value, created, revision, lease, seq FROM history \
             WHERE (revision, seq) >= (?1, ?2) AND revision <= ?3 \
             ORDER BY revision, seq LIMIT ?4",
        )
        .map_err(sorted)?;
    let mut rows = statement
        .query((sql(from.revision), from.seq, sql(newest), SCAN as i64))
        .map_err(sorted)?;
    let mut events = Vec::new();
    let (mut seen, mut bytes) = (0, 0);
    let mut last = from;
    while let Some(row) = rows.next().map_err(sorted)? {
        seen += 1;
        last = Place {
            revision: Revision::new(row.get(4).map_err(sorted)?),
            seq: row.get(6).map_err(sorted)?,
        };
        if begins_with(row.get_ref(0).map_err(sorted)?, prefix) {
            let change = match row.get_ref(2).map_err(sorted)? {
                ValueRef::Null => Change::Deleted {
                    key: row.get(0).map_err(sorted)?,
                },
                value => {
                    bytes += value.as_bytes().map_or(0, <[u8]>::len);
                    Change::Put(record(path, row)?)
                }
            };
            events.push(Event {
                revision: last.revision,
                change,
            });
        }
        if bytes > SCAN_BYTES {
            break;
        }
    }
    let ended = seen < SCAN && bytes <= SCAN_BYTES;
    let next = if ended {
        Place::start_of(newest.next())
    } else {
        Place {
            seq: last.seq.saturating_add(1),
            ..last
        }
    };
    Ok(Batch { events, next })
}

fn number(connection: &Connection, name: &str) -> Result<u64, rusqlite::Error> {
    let found = connection
        .prepare_cached("SELECT number FROM meta WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?;
    found.ok_or(rusqlite::Error::QueryReturnedNoRows)
}

fn begins_with(key: ValueRef<'_>, prefix: &str) -> bool {
    key.as_bytes()
        .is_ok_and(|key| key.starts_with(prefix.as_bytes()))
}
