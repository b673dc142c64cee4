//! A domain of nothing but counters: what it takes to have jobs.
#![allow(
    dead_code,
    clippy::allow_attributes,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test takes what it needs; tests may panic"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use engine::{
    Access, Claims, Db, Domain, Engine, Failure, Host, Index, Kinds, Layers, Policy, Recovery, Row,
    Subject, Traits, Trouble, Work,
};
use serde::{Deserialize, Serialize};
use store::{MemoryStore, Store};
use tokio::sync::Semaphore;
use uuid::Uuid;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Fault {
    pub text: String,
    pub cancelled: bool,
    pub causes: Vec<Fault>,
}

impl Fault {
    pub fn new(text: impl ToString) -> Self {
        Fault {
            text: text.to_string(),
            cancelled: false,
            causes: Vec::new(),
        }
    }
}

impl From<store::StoreError> for Fault {
    fn from(error: store::StoreError) -> Self {
        Fault::new(error)
    }
}

impl Failure for Fault {
    fn of(trouble: Trouble<'_>) -> Self {
        Fault {
            cancelled: matches!(trouble, Trouble::Stopped(..)),
            ..Fault::new(format!("{trouble:?}"))
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled
    }

    fn add_cause(&mut self, cause: Self) {
        if !self.causes.contains(&cause) {
            self.causes.push(cause);
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Toys {}

impl Domain for Toys {
    type Host = Shop;
    type Task = Task;
    type Fault = Fault;
    type Element = Uuid;
    type Effect = bool;
    type Class = ();
    type Service = ();
    type Activity = ();
    type Output = u32;

    fn creates(effect: &bool) -> bool {
        *effect
    }
}

pub type Job = engine::Job<Toys>;
pub type Jobs = Engine<Toys>;

/// Counts on one machine, in steps that wait to be let through.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub machine: Uuid,
    pub steps: usize,
    pub resumes: bool,
    /// How often its undo fails.
    pub bad_undos: usize,
    pub writes: bool,
}

impl engine::Task<Toys> for Task {
    fn work(&self) -> &dyn Work<Toys> {
        self
    }
}

#[async_trait]
impl Work<Toys> for Task {
    fn traits(&self) -> Traits<Toys> {
        let recovery = match self.resumes {
            true => Recovery::Resume,
            false => Recovery::Undo,
        };
        Traits::new((), (), 1, "Counting", recovery).suspendable()
    }

    fn claims(&self) -> Claims {
        Claims {
            writes_to: self.writes.then(|| "/toys".into()).into_iter().collect(),
            ..Claims::of_machine(self.machine, Access::Alone, Layers::Kept, &[])
        }
    }

    async fn run(&self, shop: &Arc<Shop>, ctx: &engine::JobContext<Toys>) -> Result<(), Fault> {
        let mut step: usize = ctx.notes().unwrap_or(0);
        while step < self.steps {
            ctx.checkpoint().await?;
            let permit = tokio::select! {
                permit = shop.steps.acquire() => permit.map_err(Fault::new)?,
                stop = ctx.stop_asked() => return Err(stop),
            };
            permit.forget();
            step += 1;
            shop.counted.fetch_add(1, Ordering::Relaxed);
            ctx.note(&step).await?;
            ctx.progress(step as u64, self.steps as u64);
        }
        Ok(())
    }

    async fn undo(&self, shop: &Arc<Shop>, _ctx: &engine::JobContext<Toys>) -> Result<(), Fault> {
        let before = shop.undone.fetch_add(1, Ordering::Relaxed);
        match before < self.bad_undos {
            true => Err(Fault::new("the undo failed")),
            false => Ok(()),
        }
    }
}

/// A record of the toy domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Toy {
    pub id: Uuid,
    pub colour: String,
}

impl store::Versioned for Toy {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}

impl Row for Toy {
    type Fault = Fault;
    const PREFIX: &'static str = "toy/";
    const INDEXES: &'static [Index<Self>] = &[Index::new("colour", |t| vec![t.colour.clone()])];

    fn id(&self) -> Uuid {
        self.id
    }

    fn missing(id: Uuid) -> Fault {
        Fault::new(format!("no toy {id}"))
    }
}

pub struct Shop {
    pub db: Db<Fault>,
    engine: Jobs,
    pub steps: Semaphore,
    pub counted: AtomicUsize,
    pub undone: AtomicUsize,
}

impl Host for Shop {
    type Domain = Toys;

    fn db(&self) -> &Db<Fault> {
        &self.db
    }

    fn engine(&self) -> &Jobs {
        &self.engine
    }

    fn policy(&self) -> Policy<'_> {
        Policy {
            kill_deadline: Duration::from_millis(50),
            keep: Duration::ZERO,
            host: "shop",
        }
    }

    fn machine_of(&self, subject: &Subject) -> Option<Uuid> {
        match subject {
            Subject::Vm(id) => Some(*id),
            Subject::Point(_) => None,
        }
    }

    fn busy(&self, machine: Uuid, job: Uuid, title: &str) -> Fault {
        Fault::new(format!("{machine} has job {job} ({title})"))
    }
}

pub async fn open(store: &Arc<dyn Store>) -> Arc<Shop> {
    let kinds = Kinds::default().and::<Toy>().and::<Job>();
    Arc::new(Shop {
        db: Db::open(Arc::clone(store), kinds).await.unwrap(),
        engine: Engine::default(),
        steps: Semaphore::new(0),
        counted: AtomicUsize::new(0),
        undone: AtomicUsize::new(0),
    })
}

pub fn store() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}
