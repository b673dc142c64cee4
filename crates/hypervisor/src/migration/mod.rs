//! Moving a machine between two QEMU processes, which may be on two hosts: the words and the interface.
//!
//! ```text
//!   destination (Launch::Incoming)                  source (runs)
//!   offer_disks  -- writable over NBD   <-------    mirror, tighten          only where storage is not shared
//!   receive      -- listens             <-------    send                     memory; ends with the guest standing still
//!                                                   end_mirrors
//!                                                   -- durable: "switching"
//!   arrived                             <-------    switch_over              nobody runs, nobody has the disks
//!                                                   -- durable: "granted to the other", then sent there
//!   take_over                                       quit
//! ```
//!
//! **Who may run** is decided by the caller's record alone: QEMU's image locks protect nothing on separate disks. This crate
//! keeps the rules that QEMU itself does not: a destination runs only by [`Migrate::take_over`], a source that has handed over
//! only by [`Migrate::take_back`]; [`crate::Machine::resume`] is refused on both.
//!
//! **A source goes on by itself** after whatever fails or is cancelled up to the end of [`Migrate::switch_over`], never after.
//!
//! **After a crash of the service** both processes go on. [`crate::Hypervisor::reattach`] finds them, [`Migrate::moving`] tells how far
//! they are. The marks are QEMU's own: a process keeps its migration capabilities until this crate resets them.
//!
//! **A silent peer** freezes a guest whose mirror waits for it, and QEMU's monitor with the next command that drains.
//! [`Migrate::cut`] works even then (QEMU's `yank`, out of band). Watch the peer by other means, and cut first.
//!
//! Not offered: postcopy (a link that breaks loses the machine), `zero-copy-send` (excludes TLS and compression, needs locked
//! memory), `release-ram` (a source must be able to go on), RDMA, `exec:`.
//!
//! QEMU's documentation: `docs/devel/migration/main.rst`, `docs/interop/live-block-operations.rst`, and the QMP reference of the
//! commands named below.

mod channel;
mod fit;
mod state;
mod transfer;

use std::time::Duration;

use async_trait::async_trait;

pub use self::channel::{
    Address, Channel, Compression, Credentials, Limits, Link, Multifd, Terms, Tls,
};
pub use self::fit::{FeatureWord, Hardware, MigrationFeatures, Unfit};
pub use self::state::{MirrorPhase, MirrorState, MovePhase, MoveState, Side};
pub use self::transfer::{MemoryProgress, Moved, Transfer};

use crate::block::{JobControl, NodeState};
use crate::error::Result;

/// A disk that moves: what the other side must have before [`Migrate::offer_disks`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovingDisk {
    /// The drive.
    pub drive_id: String,
    /// The layers beneath the active one, base first. They do not change while the machine moves: copy them as files, and have them
    /// whole at the destination before its process starts. A write smaller than a cluster is filled up from them.
    pub frozen: Vec<NodeState>,
    /// The active layer. The destination needs a new, empty one of exactly this virtual size above the same layers.
    pub active: NodeState,
    /// Names of dirty bitmaps on the active layer. This service makes none; other tools do. They move with
    /// [`Terms::bitmaps`].
    pub bitmaps: Vec<String>,
}

/// Disks that a destination opens for a mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOffer {
    /// Where its NBD server listens; port 0 lets the system choose.
    pub address: Address,
    /// How it is secured. The same credentials serve the memory.
    pub tls: Option<Tls>,
    /// The drives whose active layers are opened.
    pub drives: Vec<String>,
}

/// A disk of the source and the way to its counterpart.
#[derive(Debug)]
pub struct MirrorTarget {
    /// The drive; it has the same id on both sides.
    pub drive_id: String,
    /// A connection of its own to the destination's NBD server, or to whatever leads there.
    pub channel: Channel,
}

/// What the two ends of a move do.
///
/// Methods may be repeated after an answer was lost, unless they say otherwise. Those of one side are expected one at a time,
/// except [`Migrate::moving`], [`Migrate::limit`] and [`Migrate::cut`].
#[async_trait]
pub trait Migrate: Send + Sync {
    /// The machine as its guest sees it, asked from QEMU, to be compared with that of the other side by
    /// [`Hardware::unfit_for`] **before anything is sent**: QEMU itself takes another CPU or a second processor without a word.
    ///
    /// # Errors
    /// As QEMU says.
    async fn hardware(&self) -> Result<Hardware>;

    /// How far a move is, seen from this process alone. Works on a process found again, and changes nothing.
    ///
    /// # Errors
    /// [`crate::Error::ProcessGone`], [`crate::Error::Timeout`] (with a mirror: the peer may be silent, see [`Migrate::cut`]).
    async fn moving(&self) -> Result<MoveState>;

    /// Disconnects every channel of a move at once, even while the monitor hangs. A mirror fails, a migration that has not been
    /// handed over fails, the guest at the source goes on. Follow it with [`Migrate::abandon`]. Fine if there is no channel.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] where the monitor takes no out-of-band commands.
    async fn cut(&self) -> Result<()>;

    /// Ends a move that was not handed over. At the source everything of it is cancelled and closed, the guest runs as before. A
    /// destination is killed: nothing of it is worth keeping, its active layers least of all, and it must not go on even if it looks
    /// ready, since the source may run. Files of Unix sockets are the caller's to remove. A machine without a part in a move, one that
    /// was taken over too, goes on as it is.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] at a source that has handed over: [`Migrate::take_back`] is another decision.
    async fn abandon(&self) -> Result<()>;

    // The destination.

    /// Opens the active layers of these drives for writing, for [`Migrate::mirror`]; says where. From here on this process has
    /// the locks of those images. What an interrupted attempt opened is closed first.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] unless the process waits for a machine; [`crate::Error::NotFound`] for a drive; [`crate::Error::Io`]
    /// for an address that cannot be listened on; as QEMU says.
    async fn offer_disks(&self, offer: &DiskOffer) -> Result<Address>;

    /// Waits for the machine on that channel; says where (`None` for a stream). Once per process: a failed move needs a new one.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] unless the process waits for a machine and does not do so on a channel yet;
    /// [`crate::Error::Unsupported`] for a Unix address where QEMU has a user of its own; as QEMU says.
    async fn receive(&self, link: Link, terms: &Terms) -> Result<Option<Address>>;

    /// Waits until the machine is here: loaded, standing still, its disks with nobody.
    ///
    /// # Errors
    /// [`crate::Error::Migration`] with what this QEMU says, [`crate::Error::ProcessGone`] with its last words (before QEMU 9.1 it
    /// ends when loading fails), [`crate::Error::Timeout`].
    async fn arrived(&self, within: Duration) -> Result<()>;

    /// Makes the machine that arrived this process's own: closes the disks to the mirror, takes them, and lets the guest run
    /// (`run`) or stand still. **Only with the durable grant of the source.** Fine if it was done.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] unless the machine has arrived; as QEMU says, for example where the source still has the locks.
    async fn take_over(&self, run: bool) -> Result<()>;

    // The source.

    /// The writable disks, with what the destination has to have of each.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] for a disk whose layers QEMU does not tell.
    async fn disks(&self) -> Result<Vec<MovingDisk>>;

    /// Copies the active layers to the destination while the guest runs, and keeps them equal from then on. Answers when all are
    /// equal; the mirrors go on. Progress is in bytes over all disks. While they run QEMU refuses points, merges and resizes of
    /// these disks. If it fails or is cancelled everything of it is closed.
    ///
    /// `max_bandwidth`: bytes per second for each disk; `None` is unlimited.
    ///
    /// # Errors
    /// [`crate::Error::Job`] with QEMU's words, [`crate::Error::Cancelled`], [`crate::Error::Io`] where nobody listens,
    /// [`crate::Error::Conflict`] where mirrors of a move are there already (abandon it first).
    async fn mirror(
        &self,
        targets: Vec<MirrorTarget>,
        tls: Option<&Tls>,
        max_bandwidth: Option<u64>,
        control: &JobControl,
    ) -> Result<()>;

    /// From now on each write of the guest is done only when it is done at the destination too, so that ending the mirrors takes
    /// milliseconds. Call it shortly before [`Migrate::send`]: a silent peer freezes the guest from here on. Before QEMU 8.2 the
    /// mirrors are so from their beginning. Fine if it was done.
    ///
    /// # Errors
    /// [`crate::Error::Job`], [`crate::Error::Cancelled`]; [`crate::Error::Timeout`] where they do not come into step `within`: the
    /// guest writes faster than they copy. Then they run on.
    async fn tighten(&self, within: Duration, control: &JobControl) -> Result<()>;

    /// Sends the memory while the guest runs, until what is left fits into the limit of the downtime; then the guest
    /// stands still, the disks are still here, and this answers ([`MovePhase::ReadyToSwitch`]). Dropped, it goes on in QEMU.
    ///
    /// # Errors
    /// The guest runs on after all of them: [`crate::Error::Migration`] with QEMU's words (those of the destination may say
    /// more), [`crate::Error::Cancelled`], [`crate::Error::Conflict`] where a move is under way, [`crate::Error::Io`] where nobody listens,
    /// [`crate::Error::Unsupported`] for terms this QEMU lacks. Mirrors stay: [`Migrate::abandon`].
    async fn send(
        &self,
        link: Link,
        terms: &Terms,
        limits: &Limits,
        transfer: &Transfer,
    ) -> Result<()>;

    /// Watches a sending that is under way, found after a restart of the service, as [`Migrate::send`] would.
    ///
    /// # Errors
    /// Those of [`Migrate::send`]; [`crate::Error::Conflict`] where nothing is being sent.
    async fn follow(&self, transfer: &Transfer) -> Result<()>;

    /// Changes the limits of a sending under way.
    ///
    /// # Errors
    /// As QEMU says.
    async fn limit(&self, limits: &Limits) -> Result<()>;

    /// Ends the mirrors while the guest stands still: the destination's layers are exactly the disks. Fine if it was done.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] unless [`MovePhase::ReadyToSwitch`]; [`crate::Error::Job`]; [`crate::Error::Timeout`]: the peer is
    /// silent. After an error [`Migrate::abandon`] the move, after a timeout [`Migrate::cut`] it first.
    async fn end_mirrors(&self, within: Duration) -> Result<()>;

    /// Hands the machine over: the rest of the memory and the devices go, the disks are flushed and given up. Afterwards nobody
    /// runs ([`MovePhase::HandedOver`]) until one side is told to. Asked again, it goes on with what QEMU is doing.
    ///
    /// # Errors
    /// [`crate::Error::Migration`] and [`crate::Error::Cancelled`]: it was not handed over, **the guest runs here again; the
    /// destination must be killed** although it may have everything. [`crate::Error::Timeout`]: the destination does not answer, QEMU
    /// goes on waiting; [`Migrate::abandon`] brings the guest back here. [`crate::Error::Conflict`] while mirrors run.
    async fn switch_over(&self, within: Duration) -> Result<Moved>;

    /// Takes a machine back that was handed over and lets it run (or stand still). **Only where the destination's process is
    /// known to be dead and was never told to take over.** Fine if it was done.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] unless it was handed over; as QEMU says, for example where the destination has the locks.
    async fn take_back(&self, run: bool) -> Result<()>;
}
