//! The one thread that writes. What waits when it comes round goes into one
//! SQLite transaction, so that many callers share one wait for the disk.

use super::fault::{fault, leaves_doubt};
use super::mark::Mark;
use super::{Shared, sql};
use crate::error::Cause;
use crate::txn::CheckedTxn;
use crate::{Change, ErrorKind, LeaseId, Op, Record, Revision, StoreError};
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Most jobs committed together.
const GROUP: usize = 256;
/// Work waiting for the writer; more callers wait to hand theirs over.
pub(super) const QUEUE: usize = 1024;

/// What the writer is asked to do, and where the answer goes.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) reply: oneshot::Sender<Result<Done, StoreError>>,
}

#[derive(Debug)]
pub(super) enum Work {
    Txn(CheckedTxn),
    Grant(Duration),
    EndLease(LeaseId),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Done {
    Revision(Revision),
    Lease(LeaseId),
}

type Changes = Vec<(Change, usize)>;

/// The writing side of a store.
pub(super) struct Writer {
    pub(super) connection: Connection,
    /// Where the newest revision is noted, outside of the file.
    pub(super) mark: Mark,
    pub(super) shared: Arc<Shared>,
    /// How many past revisions a watch can go back.
    pub(super) history: u64,
}

impl Writer {
    /// Works until every sender is gone and the queue is empty.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(job) = queue.try_recv()
            {
                group.push(job);
            }
            self.serve(group);
        }
        // Readers are closed by now: leave one plain file, without a log beside it.
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(%error, "the store's file was not closed cleanly");
        }
    }

    fn serve(&mut self, group: Vec<Job>) {
        if let Some(why) = self.shared.broken() {
            for job in group {
                answer(job, Err(StoreError::ReadOnly { why: why.clone() }));
            }
            return;
        }
        let works: Vec<&Work> = group.iter().map(|job| &job.work).collect();
        match self.commit(&works) {
            Ok(results) => {
                for (job, result) in group.into_iter().zip(results) {
                    answer(job, result);
                }
            }
            Err(Failure::Doubt(error)) => {
                tracing::error!(%error, "a commit failed on the disk; the store takes no more changes");
                self.shared
                    .break_off(format!("a commit could not be made durable: {error}"));
                answer_all(group, error, |source| StoreError::Indeterminate { source });
            }
            Err(Failure::Nothing(what, error)) => {
                let alone = group.len() == 1;
                match fault(&self.shared.path, what, error) {
                    // The lock was waited for once; not again for each of them.
                    StoreError::Busy { source, .. } => {
                        answer_all(group, source, |source| StoreError::Busy { what, source });
                    }
                    // One of them may be at fault: each gets its own answer.
                    error if !alone => {
                        tracing::warn!(%error, "a group of changes is tried one by one");
                        group.into_iter().for_each(|job| self.serve(vec![job]));
                    }
                    error => {
                        if error.kind() == ErrorKind::Corrupt {
                            self.shared.break_off(error.to_string());
                        }
                        let mut error = Some(error);
                        for job in group {
                            answer(job, Err(error.take().unwrap_or(StoreError::Closed)));
                        }
                    }
                }
            }
        }
    }

    /// Commits all works together; the inner results are refusals and successes.
    fn commit(&mut self, works: &[&Work]) -> Result<Vec<Result<Done, StoreError>>, Failure> {
        let result = self.try_commit(works);
        if result.is_err()
            && !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "a failed transaction could not be rolled back");
            self.shared
                .break_off(format!("a transaction could not be rolled back: {error}"));
        }
        result
    }

    fn try_commit(&mut self, works: &[&Work]) -> Result<Vec<Result<Done, StoreError>>, Failure> {
        let what = "change records";
        let before = self.shared.newest();
        let nothing = |error| Failure::Nothing(what, error);
        self.connection
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(nothing)?;
        let mut revision = before;
        let mut published: Vec<(Revision, Changes)> = Vec::new();
        let mut results = Vec::with_capacity(works.len());
        for work in works {
            let next = revision.next();
            let (result, changes) = match work {
                Work::Txn(txn) => self.txn(txn, next).map_err(nothing)?,
                Work::Grant(ttl) => (self.grant(*ttl).map_err(nothing)?, Vec::new()),
                Work::EndLease(id) => self.end_lease(*id, next).map_err(nothing)?,
            };
            if !changes.is_empty() {
                published.push((next, changes));
                revision = next;
            }
            // A transaction that changed nothing answers with the newest revision.
            results.push(result.map(|done| match done {
                Done::Revision(_) => Done::Revision(revision),
                lease => lease,
            }));
        }
        let oldest = if revision > before {
            self.count(revision).map_err(nothing)?
        } else {
            self.shared.oldest()
        };
        self.connection.execute_batch("COMMIT").map_err(|error| {
            if leaves_doubt(&error) {
                Failure::Doubt(error)
            } else {
                nothing(error)
            }
        })?;
        if revision > before {
            // What was committed is true, whether or not it can be noted; but nothing more is taken that could vanish unseen.
            if let Err(error) = self.mark.note(revision) {
                tracing::error!(%error, "the store takes no more changes");
                self.shared
                    .break_off(format!("the newest revision could not be noted: {error}"));
            }
            self.shared.publish(published, revision, oldest);
        }
        Ok(results)
    }

    /// Notes the newest revision, and drops history that is too old. Returns the oldest kept.
    fn count(&self, revision: Revision) -> Result<Revision, rusqlite::Error> {
        let set = "UPDATE meta SET number = ?2 WHERE name = ?1";
        self.connection
            .prepare_cached(set)?
            .execute(params!["revision", sql(revision)])?;
        let oldest = self.shared.oldest();
        let kept = (revision.get() + 1).saturating_sub(oldest.get());
        // A tenth more than promised, so that not each commit has to delete.
        if kept <= self.history.saturating_add(self.history / 10) {
            return Ok(oldest);
        }
        let oldest = Revision::new(revision.get() + 1 - self.history);
        self.connection
            .prepare_cached("DELETE FROM history WHERE revision < ?1")?
            .execute([sql(oldest)])?;
        self.connection
            .prepare_cached(set)?
            .execute(params!["oldest", sql(oldest)])?;
        Ok(oldest)
    }

    /// Checks first, changes then: a refused transaction has written nothing.
    fn txn(&self, txn: &CheckedTxn, revision: Revision) -> Result<Outcome, rusqlite::Error> {
        for condition in &txn.conditions {
            let current: Option<u64> = self
                .connection
                .prepare_cached("SELECT modified FROM records WHERE key = ?1")?
                .query_row([condition.key()], |row| row.get(0))
                .optional()?;
            if !condition.holds(current.map(Revision::new)) {
                let key = condition.key().to_owned();
                return Ok((Err(StoreError::Conflict { key }), Vec::new()));
            }
        }
        for op in &txn.ops {
            if let Op::Put {
                lease: Some(id), ..
            } = op
                && !self.has_lease(*id)?
            {
                return Ok((Err(StoreError::LeaseLost { id: *id }), Vec::new()));
            }
        }
        let mut changes = Vec::new();
        for (op, text) in txn.ops.iter().zip(&txn.texts) {
            let seq = changes.len();
            match op {
                Op::Put {
                    key,
                    schema,
                    value,
                    lease,
                } => {
                    let created: u64 = self
                        .connection
                        .prepare_cached(
                            "INSERT INTO records (key, schema, value, created, modified, lease) \
                             VALUES (?1, ?2, ?3, ?4, ?4, ?5) ON CONFLICT (key) DO UPDATE SET \
                             schema = ?2, value = ?3, modified = ?4, lease = ?5 RETURNING created",
                        )?
                        .query_row(
                            params![key, schema, text, sql(revision), lease.map(number)],
                            |row| row.get(0),
                        )?;
                    self.connection
                        .prepare_cached("INSERT INTO history VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
                        .execute(params![
                            sql(revision),
                            seq as i64,
                            key,
                            schema,
                            text,
                            created as i64,
                            lease.map(number)
                        ])?;
                    let record = Record {
                        key: key.clone(),
                        schema: *schema,
                        value: value.clone(),
                        create_revision: Revision::new(created),
                        mod_revision: revision,
                        lease: *lease,
                    };
                    changes.push((Change::Put(record), key.len() + text.len()));
                }
                Op::Delete { key } => {
                    let gone = self
                        .connection
                        .prepare_cached("DELETE FROM records WHERE key = ?1")?
                        .execute([key])?;
                    if gone > 0 {
                        changes.push(self.note_deleted(revision, seq, key)?);
                    }
                }
            }
        }
        Ok((Ok(Done::Revision(revision)), changes))
    }

    fn note_deleted(
        &self,
        revision: Revision,
        seq: usize,
        key: &str,
    ) -> Result<(Change, usize), rusqlite::Error> {
        self.connection
            .prepare_cached("INSERT INTO history (revision, seq, key) VALUES (?1, ?2, ?3)")?
            .execute(params![sql(revision), seq as i64, key])?;
        Ok((
            Change::Deleted {
                key: key.to_owned(),
            },
            key.len(),
        ))
    }

    fn has_lease(&self, id: LeaseId) -> Result<bool, rusqlite::Error> {
        self.connection
            .prepare_cached("SELECT 1 FROM leases WHERE id = ?1")?
            .exists([number(id)])
    }

    fn grant(&self, ttl: Duration) -> Result<Result<Done, StoreError>, rusqlite::Error> {
        let millis = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        let id: u64 = self
            .connection
            .prepare_cached("INSERT INTO leases (ttl_ms) VALUES (?1) RETURNING id")?
            .query_row([millis], |row| row.get(0))?;
        Ok(Ok(Done::Lease(LeaseId::new(id))))
    }

    fn end_lease(&self, id: LeaseId, revision: Revision) -> Result<Outcome, rusqlite::Error> {
        let mut keys: Vec<String> = self
            .connection
            .prepare_cached("DELETE FROM records WHERE lease = ?1 RETURNING key")?
            .query_map([number(id)], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        keys.sort_unstable();
        let changes = keys
            .iter()
            .enumerate()
            .map(|(seq, key)| self.note_deleted(revision, seq, key))
            .collect::<Result<_, _>>()?;
        self.connection
            .prepare_cached("DELETE FROM leases WHERE id = ?1")?
            .execute([number(id)])?;
        Ok((Ok(Done::Revision(revision)), changes))
    }
}

type Outcome = (Result<Done, StoreError>, Changes);

/// Why a group was not committed.
enum Failure {
    /// It certainly is not stored.
    Nothing(&'static str, rusqlite::Error),
    /// It may be.
    Doubt(rusqlite::Error),
}

fn number(id: LeaseId) -> i64 {
    i64::try_from(id.get()).unwrap_or(i64::MAX)
}

/// The same failure for all: the first gets its cause, the others its text.
fn answer_all(group: Vec<Job>, cause: impl Into<Cause>, error: impl Fn(Cause) -> StoreError) {
    let cause = cause.into();
    let text = cause.to_string();
    let mut cause = Some(cause);
    for job in group {
        let cause = cause.take().unwrap_or_else(|| text.clone().into());
        answer(job, Err(error(cause)));
    }
}

fn answer(job: Job, result: Result<Done, StoreError>) {
    // The caller may have stopped waiting; what was done stays done.
    let _ = job.reply.send(result);
}
