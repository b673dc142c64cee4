//! Who may run a machine that moves: one durable record on each side.
//!
//! ```text
//!  source   Here     the machine is this host's, whatever happens
//!           Granted  it is the destination's: never again here without asking, unless the destination says that it gave it up
//!  dest.    Incoming it is not this host's: there is no machine of it here
//!           Mine     it is: written together with the machine itself, in one transaction
//!           Ended    it never will be: no grant is taken any more
//! ```
//! `Granted` is written before it is sent, `Mine` before it is answered. A source that asks and hears `Ended` may take the
//! machine back; one that hears nothing may not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::MigrationKind;
use super::cargo::Cargo;
use super::landing::{Places, part_of};
use crate::disk_tree::Stamp;
use crate::{Fault, Vmms};

/// Whose a machine is that moves away, as its source knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PermitState {
    /// This host's.
    Here,
    /// The destination's.
    Granted,
    /// The destination said that it has it, or a person did; what is left here is being removed.
    Gone,
}

/// A machine that moves away, as it is stored under `permit/<guid of the machine>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Permit {
    /// The machine.
    pub id: Uuid,
    /// The move: the identifier of its first job.
    pub moving: Uuid,
    /// The job that follows it.
    pub job: Uuid,
    /// The name of the destination.
    pub destination: String,
    /// How it moves.
    pub kind: MigrationKind,
    /// Whose it is.
    pub state: PermitState,
    /// It ran when the move began.
    #[serde(default)]
    pub live: bool,
    /// Why nobody knows whether the destination has it.
    #[serde(default)]
    pub doubt: Option<Fault>,
    /// Files that go once it is gone.
    #[serde(default)]
    pub leaves: Vec<PathBuf>,
}

impl store::Versioned for Permit {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}

/// Whose a machine is that comes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ArrivalState {
    /// The source's.
    Incoming,
    /// This host's.
    Mine,
    /// The source's, for ever: it did not come.
    Ended,
}

/// A file that comes, or came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Landed {
    /// Where it is.
    pub path: PathBuf,
    /// It is whole and was proven: the hash of what was sent.
    #[serde(default)]
    pub digest: Option<String>,
    /// What it looked like when it was last touched here.
    #[serde(default)]
    pub stamp: Option<Stamp>,
    /// A file of somebody else's was there, and is used as it is.
    #[serde(default)]
    pub found: bool,
}

/// A machine that comes, as it is stored under `arrival/<guid of the move>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// The move: the identifier of the source's job.
    pub id: Uuid,
    /// The machine.
    pub vm: Uuid,
    /// Its name.
    pub name: String,
    /// The host it comes from.
    pub from: String,
    /// The fingerprint of that host: nobody else may say anything of this move.
    #[serde(default)]
    pub pin: String,
    /// This host's own job.
    #[serde(default)]
    pub job: Option<Uuid>,
    /// Whose it is.
    pub state: ArrivalState,
    /// Since when it is so.
    pub changed: SystemTime,
    /// Why it ended.
    #[serde(default)]
    pub why: Option<Fault>,
    /// What comes. Dropped when it has come or ended.
    #[serde(default)]
    pub cargo: Option<Box<Cargo>>,
    /// Its files, by their names in the cargo.
    #[serde(default)]
    pub files: BTreeMap<String, Landed>,
    /// It runs: a process waits for its memory.
    #[serde(default)]
    pub live: bool,
    /// Files of the same names are replaced.
    #[serde(default)]
    pub overwrite: bool,
    /// Everything is here and could run.
    #[serde(default)]
    pub ready: bool,
    /// Where files of the source are here.
    #[serde(default)]
    pub(crate) places: Places,
    /// What lies here of a move that broke off is kept for the next one until then.
    #[serde(default)]
    pub kept_until: Option<SystemTime>,
}

impl store::Versioned for Arrival {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}

impl Arrival {
    /// The files that are here of it, or will be.
    pub(crate) fn reserves(&self) -> Vec<PathBuf> {
        let files = self.cargo.iter().flat_map(|c| &c.files).map(|f| &f.path);
        let all = files.chain(self.files.values().map(|l| &l.path));
        all.flat_map(|path| [part_of(path), path.clone()]).collect()
    }
}

/// The machines that are being moved away.
pub fn permits(vmms: &Vmms) -> Vec<std::sync::Arc<Permit>> {
    vmms.db.all::<Permit>()
}

/// The machines that are on their way here, and what became of others.
pub fn arrivals(vmms: &Vmms) -> Vec<std::sync::Arc<Arrival>> {
    vmms.db.all::<Arrival>()
}
