//! Machines move between hosts.
//!
//! ```text
//!  source (depart)                         destination (arrive)
//!  what moves (cargo)      -- Prepare -->  looks, reserves, Arrival::Incoming, a job of its own
//!  files                   -- File ---->   beside their places, proven by their hash, then in place
//!                          -- Settle -->   headers name what lies beneath here; the machine could start
//!  Permit::Granted                         the commit point, before it is told
//!                          -- Grant --->   Arrival::Mine with the machine, its points and snapshots: one transaction
//!  Permit::Gone, cleans    <-- Mine ---
//! ```
//! A machine that runs is settled without the layers it writes to; a process waits for it there (meet), those layers are mirrored and
//! its memory is sent (live) before it is granted.
//!
//! `permit` says who may run when. A move that breaks off leaves what arrived where it is for a day: the next one
//! sends only what is missing. Everything goes over links between hosts that trust each other ([`peer`]); nothing else can be
//! asked over them (`said`).

mod arrive;
mod cargo;
pub mod compatibility;
mod copy;
mod depart;
mod hosts;
mod landing;
mod link;
mod live;
mod look;
mod meet;
mod permit;
mod progress;
mod receive;
mod request;
mod resolve;
mod said;
mod server;
mod settings;

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use peer::{Identity, Listener};

pub use cargo::{Cargo, CargoFile, FileKind};
pub use depart::{Depart, migrate};
pub use hosts::{Host, PORT, fingerprint, forget, hosts, look_at, trust};
pub use look::{Look, PlanReport, check, check_now, plan};
pub use permit::{Arrival, ArrivalState, Landed, Permit, PermitState, arrivals, permits};
pub use progress::{Phase, Progress};
pub use receive::Receive;
pub use request::{MigrationKind, MoveOptions, Request, Shown};
pub use resolve::{Verdict, resolve};
pub use server::{listen, listening, stop_listening};
pub use settings::{MigrationDefaults, MigrationService, Network};

pub(crate) use arrive::{expire, settle_arrivals};
pub(crate) use resolve::{follow_up, may_run};

/// How long hosts wait for each other.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long a source tries to reach a destination again before a move that was not handed over fails.
    pub source: Duration,
    /// How long a destination hears nothing of a machine that was not granted before it gives it up.
    pub destination: Duration,
    /// How long what arrived of a move that broke off is kept for the next one.
    pub kept: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            source: Duration::from_secs(30),
            destination: Duration::from_secs(300),
            kept: Duration::from_secs(24 * 3600),
        }
    }
}

/// What is known of moves in memory only.
#[derive(Default)]
pub(crate) struct Moves {
    identity: Mutex<Option<Identity>>,
    listeners: Mutex<Vec<Listener>>,
    pub(crate) heard: receive::Heard,
    pub(crate) coming: meet::Coming,
}

impl Moves {
    fn identity(&self, load: impl FnOnce() -> crate::Result<Identity>) -> crate::Result<Identity> {
        let mut kept = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(identity) = &*kept {
            return Ok(identity.clone());
        }
        let identity = load()?;
        *kept = Some(identity.clone());
        Ok(identity)
    }

    fn listen(&self, listeners: Vec<Listener>) {
        *self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = listeners;
    }

    fn listening(&self) -> Vec<SocketAddr> {
        let listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.iter().map(Listener::address).collect()
    }
}
