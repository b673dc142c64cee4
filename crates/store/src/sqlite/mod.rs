//! The engine that lasts: one SQLite file.
//!
//! Write-ahead log with `synchronous=FULL`: what was acknowledged survives the
//! end of the process and of the power. One thread writes and groups what waits
//! into one commit; reads go to a few connections of their own and see every
//! acknowledged change. A lock file beside it keeps other processes out. The
//! newest part of history is also kept in memory, so watches seldom read the file.
//!
//! Leases are kept too. The time a store was closed does not count: at opening,
//! each lease starts its time again.

mod copies;
mod fault;
mod mark;
mod open;
mod reader;
mod writer;

pub use copies::{Copies, Copy, Recovered, copies_in, recover};

use crate::journal::Journal;
use crate::lease::{Leases, check_ttl};
use crate::record::check_key;
use crate::watch::{Batch, Change, History, Place};
use crate::{
    Clock, Lease, LeaseId, MAX_PAGE, Page, Record, Revision, Store, StoreError, Txn, Watch,
};
use async_trait::async_trait;
use open::FileLock;
use reader::Readers;
use rusqlite::InterruptHandle;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use writer::{Done, Job, QUEUE, Work, Writer};

/// From this size on [`Check::Auto`] checks after opening.
const CHECK_LATER_FROM: u64 = 64 * 1024 * 1024;
/// The part of history that is also in memory.
const TAIL_REVISIONS: u64 = 4096;
const TAIL_BYTES: usize = 8 * 1024 * 1024;

/// When the file is checked for damage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Check {
    /// A file up to 64 MiB before it is used; a larger one while it is already
    /// in use. Damage found then stops all changes.
    #[default]
    Auto,
    /// Before it is used: structure, not the indexes' content.
    Quick,
    /// Before it is used, everything. Reads the whole file.
    Full,
    /// Not at all.
    Skip,
}

/// How a [`SqliteStore`] behaves.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// What its leases run on.
    pub clock: Clock,
    /// How many past revisions a watch can go back, at least. More may be there.
    pub history: u64,
    /// How many reads may run at once (1 to 64).
    pub readers: usize,
    /// How long to wait for another program's lock on the file before [`StoreError::Busy`].
    pub busy_timeout: Duration,
    /// When to look for damage.
    pub check: Check,
    /// The file grows no further than this: [`StoreError::DiskFull`].
    pub max_bytes: Option<u64>,
    /// Copies of the file; `None`: none are made.
    pub copies: Option<Copies>,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        SqliteOptions {
            clock: Clock::system(),
            history: 10_000,
            readers: 4,
            busy_timeout: Duration::from_secs(5),
            check: Check::Auto,
            max_bytes: None,
            copies: None,
        }
    }
}

/// Records in one SQLite file.
///
/// Dropping it finishes the changes that were handed over, closes the file and
/// lets other processes in; that may wait for the disk.
pub struct SqliteStore {
    shared: Arc<Shared>,
    leases: Option<Leases>,
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    checker: Option<(InterruptHandle, JoinHandle<()>)>,
    copier: Option<copies::Copier>,
    // Last: other processes stay out until everything above is closed.
    _lock: FileLock,
}

struct Shared {
    path: PathBuf,
    readers: Arc<Readers>,
    live: Mutex<Live>,
    newest: watch::Sender<Revision>,
    broken: OnceLock<String>,
}

/// What the writer tells the readers.
struct Live {
    newest: Revision,
    oldest: Revision,
    tail: Journal,
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn newest(&self) -> Revision {
        self.live().newest
    }

    fn oldest(&self) -> Revision {
        self.live().oldest
    }

    fn publish(
        &self,
        changes: Vec<(Revision, Vec<(Change, usize)>)>,
        newest: Revision,
        oldest: Revision,
    ) {
        {
            let mut live = self.live();
            for (revision, changes) in changes {
                live.tail.push(revision, changes);
            }
            live.newest = newest;
            live.oldest = oldest;
        }
        self.newest.send_replace(newest);
    }

    fn broken(&self) -> Option<String> {
        self.broken.get().cloned()
    }

    /// Takes no more changes from now on. The first reason stays.
    fn break_off(&self, why: String) {
        let _ = self.broken.set(why);
    }
}

impl SqliteStore {
    /// Opens the store at `path`, or creates it (in a directory that exists).
    /// Blocks: on an async thread use `spawn_blocking`.
    ///
    /// Errors: [`StoreError::InUse`] when another process (or this one) has it
    /// open, [`StoreError::Foreign`] for a file that is not a store,
    /// [`StoreError::Behind`] for one that lost what was acknowledged,
    /// [`StoreError::Corrupt`] for a damaged one.
    pub fn open(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let lock = FileLock::take(&path)?;
        let opened = open::open(&path, &options)?;
        let readers = Arc::new(Readers::open(&path, &options)?);
        let history = options.history.max(1);
        let shared = Arc::new(Shared {
            path: path.clone(),
            readers,
            live: Mutex::new(Live {
                newest: opened.revision,
                oldest: opened.oldest,
                tail: Journal::new(opened.revision, TAIL_REVISIONS.min(history), TAIL_BYTES),
            }),
            newest: watch::Sender::new(opened.revision),
            broken: OnceLock::new(),
        });
        let writer = Writer {
            connection: opened.writer,
            mark: opened.mark,
            shared: Arc::clone(&shared),
            history,
        };
        let (jobs, queue) = mpsc::channel(QUEUE);
        let thread = spawn("store-writer", move || writer.run(queue))?;

        let weak = jobs.downgrade();
        let leases = Leases::new(options.clock.clone(), move |id| {
            // Without a queue the store is being closed; the lease ends after the next opening.
            let Some(jobs) = weak.upgrade() else {
                return false;
            };
            let (reply, answer) = oneshot::channel();
            if jobs
                .blocking_send(Job {
                    work: Work::EndLease(id),
                    reply,
                })
                .is_err()
            {
                return false;
            }
            match answer.blocking_recv() {
                Ok(Ok(_)) => true,
                Ok(Err(error)) => {
                    tracing::warn!(lease = %id, %error, "a lease that is over could not be ended");
                    false
                }
                Err(_) => false,
            }
        });
        // From here on dropping `store` cleans up, also when a step below fails.
        let mut store = SqliteStore {
            shared,
            leases: None,
            jobs: Some(jobs),
            writer: Some(thread),
            checker: None,
            copier: None,
            _lock: lock,
        };
        for (id, ttl) in opened.leases {
            leases.add(id, ttl)?;
        }
        store.leases = Some(leases);
        store.copier = copies::Copier::start(&path, &options)?;
        if opened.check_later {
            store.checker = Some(check_later(&path, &options, Arc::downgrade(&store.shared))?);
        }
        Ok(store)
    }

    async fn ask(&self, work: Work) -> Result<Done, StoreError> {
        if let Some(why) = self.shared.broken() {
            return Err(StoreError::ReadOnly { why });
        }
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        jobs.send(Job { work, reply })
            .await
            .map_err(|_| StoreError::Closed)?;
        // Only a panic of the writer drops the answer; then it is not known what became of it.
        answer.await.map_err(|source| StoreError::Indeterminate {
            source: Box::new(source),
        })?
    }

    fn leases(&self) -> Result<&Leases, StoreError> {
        self.leases.as_ref().ok_or(StoreError::Closed)
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        let join = |thread: JoinHandle<()>, name| {
            if thread.join().is_err() {
                tracing::error!(thread = name, "a thread of the store panicked");
            }
        };
        if let Some((interrupt, thread)) = self.checker.take() {
            interrupt.interrupt();
            join(thread, "check");
        }
        self.copier = None;
        // Their thread may wait for the writer, so they go while it still works.
        self.leases = None;
        self.shared.readers.close();
        self.jobs = None;
        if let Some(thread) = self.writer.take() {
            join(thread, "writer");
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|source| StoreError::Engine {
            what: "start a thread",
            source: Box::new(source),
        })
}

/// Checks a large file on a connection of its own while the store is in use.
fn check_later(
    path: &Path,
    options: &SqliteOptions,
    shared: Weak<Shared>,
) -> Result<(InterruptHandle, JoinHandle<()>), StoreError> {
    let connection = reader::connect(path, options)?;
    let interrupt = connection.get_interrupt_handle();
    let path = path.to_owned();
    let thread = spawn("store-check", move || {
        match open::run_check(&path, &connection, "quick_check") {
            Ok(()) => tracing::info!(path = %path.display(), "the store's file is undamaged"),
            Err(error @ (StoreError::Corrupt { .. } | StoreError::Foreign { .. })) => {
                tracing::error!(%error, "the store takes no more changes");
                if let Some(shared) = shared.upgrade() {
                    shared.break_off(error.to_string());
                }
            }
            Err(error) => tracing::warn!(%error, "the check of the store's file did not end"),
        }
    })?;
    Ok((interrupt, thread))
}

/// A revision as SQLite keeps it. 2^63 changes take longer than any disk lasts.
fn sql(revision: Revision) -> i64 {
    i64::try_from(revision.get()).unwrap_or(i64::MAX)
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        check_key(key)?;
        let key = key.to_owned();
        self.shared
            .readers
            .run(move |path, reader| reader::get(path, reader, &key))
            .await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let limit = limit.clamp(1, MAX_PAGE);
        let prefix = prefix.to_owned();
        let after = start_after.map(str::to_owned);
        self.shared
            .readers
            .run(move |path, reader| reader::list(path, reader, &prefix, after.as_deref(), limit))
            .await
    }

    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        match self.ask(Work::Txn(txn.check()?)).await? {
            Done::Revision(revision) => Ok(revision),
            Done::Lease(_) => Err(StoreError::Closed),
        }
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.shared.newest())
    }

    async fn watch(&self, prefix: &str, from: Option<Revision>) -> Result<Watch, StoreError> {
        let (mut newest, oldest) = {
            let live = self.shared.live();
            (live.newest, live.oldest)
        };
        if from.is_some_and(|from| from > newest.next()) {
            // A listing sees a transaction that is committed a moment before it is told.
            newest = newest.max(self.list("", None, 1).await?.revision);
        }
        let from = crate::watch::start(from, newest, oldest)?;
        let shared: Arc<dyn History> = self.shared.clone();
        Ok(Watch::new(
            Arc::downgrade(&shared),
            self.shared.newest.subscribe(),
            prefix,
            from,
        ))
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        check_ttl(ttl)?;
        match self.ask(Work::Grant(ttl)).await? {
            Done::Lease(id) => {
                self.leases()?.add(id, ttl)?;
                Ok(Lease { id, ttl })
            }
            Done::Revision(_) => Err(StoreError::Closed),
        }
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Lease, StoreError> {
        self.leases()?.keep_alive(id)
    }

    async fn revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        let taken = self.leases()?.take(id)?;
        self.ask(Work::EndLease(id)).await?;
        taken.ended();
        Ok(())
    }
}

#[async_trait]
impl History for Shared {
    async fn read(&self, prefix: &str, from: Place, newest: Revision) -> Result<Batch, StoreError> {
        if let Some(batch) = self.live().tail.read(prefix, from, newest) {
            return Ok(batch);
        }
        let prefix = prefix.to_owned();
        self.readers
            .run(move |path, reader| reader::history(path, reader, &prefix, from, newest))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    #[test]
    fn commits_wait_for_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let opened = open::open(
            &directory.path().join("store.db"),
            &SqliteOptions::default(),
        )
        .unwrap();
        let pragma = |name| {
            opened
                .writer
                .pragma_query_value(None, name, |row| row.get(0))
        };
        assert_eq!(pragma("synchronous"), Ok(2), "FULL");
        let mode: String = opened
            .writer
            .pragma_query_value(None, "journal_mode", |row| row.get(0))
            .unwrap();
        assert_eq!(mode, "wal");
    }

    #[tokio::test]
    async fn damage_found_while_in_use_stops_all_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.db");
        let options = SqliteOptions {
            check: Check::Skip,
            ..SqliteOptions::default()
        };
        let checked = |store: &SqliteStore| {
            let shared = Arc::downgrade(&store.shared);
            let (_interrupt, thread) = check_later(&path, &options, shared).unwrap();
            thread.join().unwrap();
            store.shared.broken()
        };
        let put = |n: u32| Txn::new().put(format!("k/{n}"), 1, "x".repeat(2000).into());

        let store = SqliteStore::open(&path, options.clone()).unwrap();
        for n in 0..50 {
            store.txn(put(n)).await.unwrap();
        }
        assert_eq!(checked(&store), None);
        drop(store);
        let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let middle = file.metadata().unwrap().len() / 2 / 4096 * 4096;
        file.seek(SeekFrom::Start(middle)).unwrap();
        file.write_all(&[0xa5; 4 * 4096]).unwrap();

        let store = SqliteStore::open(&path, options.clone()).unwrap();
        assert!(checked(&store).is_some_and(|why| why.contains("is damaged")));
        let refused = store.txn(put(99)).await;
        assert!(matches!(refused, Err(StoreError::ReadOnly { .. })));
    }
}
