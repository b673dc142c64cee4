//! Jobs that have vanished from view: under a prefix of their own, so that they do not slow the start of the service.

use std::sync::Arc;

use store::{Txn, Versioned as _};
use uuid::Uuid;

use super::row::key;
use super::table::{Staged, Table, value};
use super::{Db, Place, Row as _, table};
use crate::{Domain, Failure, Job};

/// Where they go.
const HISTORY: &str = "past-job/";
/// Their identifiers again, the newest first: keys begin with how far before the end of time the job was submitted.
const HISTORY_ORDER: &str = "past-job-order/";

fn order_key<D: Domain>(job: &Job<D>) -> String {
    let since = job
        .submitted
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let left = u64::MAX - u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
    format!("{HISTORY_ORDER}{left:020}/{}", job.id)
}

impl<F: Failure> Db<F> {
    /// Moves a job that has vanished from view to the history.
    ///
    /// # Errors
    /// Of the store.
    pub async fn retire<D: Domain<Fault = F>>(&self, job: Uuid) -> Result<(), F> {
        let _one_at_a_time = self.commit.lock().await;
        let Ok(record) = self.get::<Job<D>>(job) else {
            return Ok(());
        };
        let txn = Txn::new()
            .delete(key::<Job<D>>(job))
            .put(
                format!("{HISTORY}{job}"),
                Job::<D>::VERSION,
                value(&*record)?,
            )
            .put(
                order_key(&record),
                Job::<D>::VERSION,
                serde_json::Value::Null,
            );
        let revision = self.store.txn(txn).await?.get();
        let gone = Staged([(job, None)].into());
        let changes = table::<Job<D>>(&self.tables)
            .map(|jobs: &Table<Job<D>>| jobs.publish(gone, &mut Place { revision, n: 0 }));
        self.log.add(changes.unwrap_or_default());
        Ok(())
    }

    fn past<D: Domain<Fault = F>>(&self) -> store::Records<Job<D>> {
        store::Records::new(Arc::clone(&self.store), HISTORY)
    }

    /// Jobs that vanished from view, in pages by identifier.
    ///
    /// # Errors
    /// Of the store.
    pub async fn history<D: Domain<Fault = F>>(
        &self,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Job<D>>, F> {
        let after = after.map(|id| id.to_string());
        let page = self.past().page("", after.as_deref(), limit).await?;
        Ok(page.records.into_iter().map(|r| r.value).collect())
    }

    /// The newest jobs that vanished from view, newest first. Costs as much as it finds, however long the history is.
    ///
    /// # Errors
    /// Of the store.
    pub async fn newest_history<D: Domain<Fault = F>>(
        &self,
        limit: usize,
    ) -> Result<Vec<Job<D>>, F> {
        let records = self.past();
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        while found.len() < limit {
            let page = self
                .store
                .list(HISTORY_ORDER, after.as_deref(), limit - found.len())
                .await?;
            for record in &page.records {
                let id = record.key.rsplit('/').next().unwrap_or_default();
                // Without its record it was pruned just now.
                if let Some(job) = records.get(id).await? {
                    found.push(job.value);
                }
            }
            after = page.records.last().map(|r| r.key.clone());
            if !page.more || after.is_none() {
                break;
            }
        }
        Ok(found)
    }

    /// A job, also one that vanished from view.
    ///
    /// # Errors
    /// That there is none; of the store.
    pub async fn past_job<D: Domain<Fault = F>>(&self, id: Uuid) -> Result<Job<D>, F> {
        if let Ok(job) = self.get::<Job<D>>(id) {
            return Ok((*job).clone());
        }
        let found = self.past().get(&id.to_string()).await?;
        found.map(|r| r.value).ok_or_else(|| Job::<D>::missing(id))
    }
}
