//! Testing instances against a query: apart from the threads that serve everybody, one of a user at a time, within a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cim::Instance;
use cim::wql::{Environment, Select};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vmms::Fault;

/// So many tests of a condition against an instance take no noticeable time.
const QUICK: usize = 500;

/// Where queries are tested.
pub(crate) struct Queries {
    /// How long one may compute.
    within: Duration,
    /// At once.
    all: Arc<Semaphore>,
    /// Of each user one.
    lanes: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// A turn; the lane is tried first, so that those who wait for each other do not keep others waiting.
struct Turn {
    _lane: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Queries {
    pub(crate) fn new(within: Duration) -> Self {
        let at_once = std::thread::available_parallelism().map_or(2, |n| n.get().max(2));
        Queries {
            within,
            all: Arc::new(Semaphore::new(at_once)),
            lanes: Mutex::default(),
        }
    }

    fn lane(&self, user: &str) -> Arc<Semaphore> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever holds a permit or waits for one holds the lane as well.
        lanes.retain(|_, lane| Arc::strong_count(lane) > 1);
        let lane = lanes
            .entry(user.to_owned())
            .or_insert_with(|| Arc::new(Semaphore::new(1)));
        Arc::clone(lane)
    }

    async fn turn(&self, user: &str) -> Option<Turn> {
        // Neither is ever closed.
        let lane = self.lane(user).acquire_owned().await.ok()?;
        let all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Turn {
            _lane: lane,
            _all: all,
        })
    }

    /// What of the candidates a query asks for.
    pub(crate) async fn matching(
        &self,
        user: &str,
        select: &Select,
        candidates: Vec<Instance>,
        environment: &Environment<'_>,
    ) -> Result<Vec<Instance>, Fault> {
        let quick = total_cost(select, candidates.len()) <= QUICK;
        let test = || -> Result<Vec<Instance>, Fault> {
            let begun = Instant::now();
            let total = candidates.len();
            let mut found = Vec::new();
            for (tested, candidate) in candidates.into_iter().enumerate() {
                if begun.elapsed() > self.within {
                    let seconds = self.within.as_secs_f32();
                    return Err(vmms::fault!(QueryTooCostly, tested, total, seconds));
                }
                if select.matches(&candidate, environment) {
                    found.push(select.project(candidate));
                }
            }
            Ok(found)
        };
        if quick {
            return test();
        }
        let _turn = self.turn(user).await;
        match Handle::try_current().map(|h| h.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(test),
            // Without other threads there is nobody to make room for.
            _ => test(),
        }
    }
}

fn total_cost(select: &Select, candidates: usize) -> usize {
    candidates.saturating_mul(select.cost())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cim::wql::Query;

    fn select(text: &str) -> Select {
        match cim::wql::parse(text) {
            Ok(Query::Select(select)) => select,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn environment() -> Environment<'static> {
        Environment {
            schema: msvm::virtualization(),
            host: "h",
            namespace: "root/virtualization/v2",
        }
    }

    fn machines(count: usize, name: &str) -> Vec<Instance> {
        let one = Instance::new("Msvm_ComputerSystem").with("ElementName", name);
        vec![one; count]
    }

    #[tokio::test]
    async fn a_query_that_computes_too_long_ends_with_its_reason() {
        let queries = Queries::new(Duration::ZERO);
        let costly = select("SELECT * FROM Msvm_ComputerSystem WHERE ElementName LIKE '%a%'");
        let env = environment();
        let tested = queries.matching("u", &costly, machines(1000, "a"), &env);
        let fault = tested.await.expect_err("no time");
        assert_eq!(fault.message, vmms::Message::QueryTooCostly);
        let quick = select("SELECT * FROM Msvm_ComputerSystem WHERE ElementName = 'a'");
        let queries = Queries::new(Duration::from_secs(60));
        let found = queries.matching("u", &quick, machines(3, "a"), &env).await;
        assert_eq!(found.expect("matches").len(), 3);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_long_query_leaves_the_threads_to_others() {
        let queries = Arc::new(Queries::new(Duration::from_secs(600)));
        let long = "b".repeat(20_000);
        let text = format!(
            "SELECT * FROM Msvm_ComputerSystem WHERE ElementName LIKE '%{}a%'",
            "_".repeat(900)
        );
        let (started, mut running) = tokio::sync::watch::channel(false);
        let work = tokio::spawn({
            let queries = Arc::clone(&queries);
            async move {
                let _ = started.send(true);
                let env = environment();
                let costly = select(&text);
                let found = queries.matching("u", &costly, machines(60, &long), &env);
                found.await.expect("in time").len()
            }
        });
        running.wait_for(|r| *r).await.expect("started");
        // On the only thread, this would wait for all of it.
        let other = tokio::spawn(async { 1 });
        assert_eq!(other.await.expect("served"), 1);
        assert!(!work.is_finished(), "meanwhile");
        assert_eq!(work.await.expect("ended"), 0);
    }
}
