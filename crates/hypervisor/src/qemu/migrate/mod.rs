//! Both ends of a move, on a real QEMU.
//!
//! The order of commands and what each state means was tried on QEMU 7.2 and 10.0. What is not obvious:
//! * A destination gets `late-block-activate`, a source `pause-before-switchover` and `return-path`. These capabilities are also the marks
//!   by which a service that comes back knows which end a process is, and are reset when it is none any more.
//! * `cont` on a destination that still loads is accepted and starts the guest when it has loaded; on a source that handed over it
//!   starts the guest a second time. Neither may happen by accident: [`seen::check_may_run`].
//! * A mirror ends with a soft `block-job-cancel`. `job-complete` would put the source onto the destination's disk, `job-cancel`
//!   vouches for nothing.
//! * Nothing is cancelled while the other side may be silent before its connection is cut.

mod cut;
mod hardware;
mod incoming;
mod mirror;
mod mirrors;
mod outgoing;
mod plan;
mod seen;
mod setup;
mod target;
mod undo;
mod wire;

use std::time::Duration;

use async_trait::async_trait;

pub(super) use self::seen::{check_may_run, check_no_move};
pub(super) use self::setup::plain;
#[cfg(any(test, feature = "fake"))]
pub(crate) use self::wire::{connected, listening};

use super::machine::QemuMachine;
use crate::block::JobControl;
use crate::error::Result;
use crate::migration::{
    Address, DiskOffer, Hardware, Limits, Link, Migrate, MirrorTarget, MoveState, Moved,
    MovingDisk, Terms, Tls, Transfer,
};

#[async_trait]
impl Migrate for QemuMachine {
    async fn hardware(&self) -> Result<Hardware> {
        hardware::read(self).await
    }

    async fn moving(&self) -> Result<MoveState> {
        seen::moving(self).await
    }

    async fn cut(&self) -> Result<()> {
        cut::everything(self).await
    }

    async fn abandon(&self) -> Result<()> {
        undo::abandon(self).await
    }

    async fn offer_disks(&self, offer: &DiskOffer) -> Result<Address> {
        target::offer(self, offer).await
    }

    async fn receive(&self, link: Link, terms: &Terms) -> Result<Option<Address>> {
        incoming::receive(self, link, terms).await
    }

    async fn arrived(&self, within: Duration) -> Result<()> {
        incoming::arrived(self, within).await
    }

    async fn take_over(&self, run: bool) -> Result<()> {
        incoming::take_over(self, run).await
    }

    async fn disks(&self) -> Result<Vec<MovingDisk>> {
        plan::disks(self).await
    }

    async fn mirror(
        &self,
        targets: Vec<MirrorTarget>,
        tls: Option<&Tls>,
        max_bandwidth: Option<u64>,
        control: &JobControl,
    ) -> Result<()> {
        mirror::start(self, targets, tls, max_bandwidth, control).await
    }

    async fn tighten(&self, within: Duration, control: &JobControl) -> Result<()> {
        mirror::tighten(self, within, control).await
    }

    async fn send(
        &self,
        link: Link,
        terms: &Terms,
        limits: &Limits,
        transfer: &Transfer,
    ) -> Result<()> {
        outgoing::send(self, link, terms, limits, transfer).await
    }

    async fn follow(&self, transfer: &Transfer) -> Result<()> {
        outgoing::follow(self, transfer).await
    }

    async fn limit(&self, limits: &Limits) -> Result<()> {
        setup::limit(self, limits).await
    }

    async fn end_mirrors(&self, within: Duration) -> Result<()> {
        mirror::end(self, within).await
    }

    async fn switch_over(&self, within: Duration) -> Result<Moved> {
        outgoing::switch_over(self, within).await
    }

    async fn take_back(&self, run: bool) -> Result<()> {
        undo::take_back(self, run).await
    }
}
