//! Moves between two hosts that are fakes.

use std::sync::Arc;
use std::time::Duration;

use super::tests::config;
use super::{FakeHypervisor, FakeMachine, Fault};
use crate::config::MachineConfig;
use crate::machine::{Hypervisor, Launch, Machine, MachineStatus};
use crate::migration::{
    Address, Channel, DiskOffer, Limits, Link, Migrate, MirrorTarget, MovePhase, Terms, Transfer,
};
use crate::{ErrorKind, JobControl};

const SOON: Duration = Duration::from_secs(20);

struct Hosts {
    _dir: tempfile::TempDir,
    source: (FakeHypervisor, Arc<FakeMachine>),
    destination: (FakeHypervisor, Arc<FakeMachine>),
    config: MachineConfig,
}

fn anywhere() -> Address {
    Address::Tcp {
        host: "127.0.0.1".into(),
        port: 0,
    }
}

fn plain(channel: impl Into<Channel>) -> Link {
    Link {
        channel: channel.into(),
        tls: None,
    }
}

async fn hosts() -> Hosts {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let start = async |launch| {
        let hypervisor = FakeHypervisor::new();
        hypervisor.launch(&config, launch).await.unwrap();
        let machine = hypervisor.machine(config.id).unwrap();
        (hypervisor, machine)
    };
    let (source, destination) = (start(Launch::Fresh).await, start(Launch::Incoming).await);
    source.1.resume().await.unwrap();
    Hosts {
        _dir: dir,
        source,
        destination,
        config,
    }
}

/// Mirrors the disk and sends the memory.
async fn ready(hosts: &Hosts) {
    let (source, destination) = (&hosts.source.1, &hosts.destination.1);
    let offer = DiskOffer {
        address: anywhere(),
        tls: None,
        drives: vec!["sda".into()],
    };
    let disks = destination.offer_disks(&offer).await.unwrap();
    let target = MirrorTarget {
        drive_id: "sda".into(),
        channel: disks.into(),
    };
    let control = JobControl::new();
    source
        .mirror(vec![target], None, None, &control)
        .await
        .unwrap();
    source.tighten(SOON, &control).await.unwrap();
    let memory = destination
        .receive(plain(anywhere()), &Terms::default())
        .await;
    let link = plain(memory.unwrap().unwrap());
    let (limits, transfer) = (Limits::default(), Transfer::new());
    source
        .send(link, &Terms::default(), &limits, &transfer)
        .await
        .unwrap();
}

async fn phase(machine: &FakeMachine) -> MovePhase {
    machine.moving().await.unwrap().phase
}

#[tokio::test]
async fn a_fake_moves_step_by_step_like_a_real_machine() {
    let hosts = hosts().await;
    let (source, destination) = (&hosts.source.1, &hosts.destination.1);
    assert!(destination.resume().await.is_err());
    assert!(
        source
            .hardware()
            .await
            .unwrap()
            .unfit_for(&destination.hardware().await.unwrap())
            .is_empty()
    );
    assert_eq!(source.disks().await.unwrap()[0].drive_id, "sda");
    ready(&hosts).await;
    assert_eq!(phase(source).await, MovePhase::ReadyToSwitch);
    assert_eq!(
        source.switch_over(SOON).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    source.end_mirrors(SOON).await.unwrap();
    // The answer is lost, and asked for again.
    hosts
        .source
        .0
        .script()
        .on_next("switch_over", Fault::lose_answer(SOON));
    source.switch_over(SOON).await.unwrap_err();
    source.switch_over(SOON).await.unwrap();
    destination.arrived(SOON).await.unwrap();
    assert!(source.resume().await.is_err() && destination.resume().await.is_err());
    let found = hosts
        .destination
        .0
        .reattach(&hosts.config)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.moving().await.unwrap().phase, MovePhase::Arrived);
    found.take_over(true).await.unwrap();
    assert_eq!(destination.status().await.unwrap(), MachineStatus::Running);
    assert_eq!(source.status().await.unwrap(), MachineStatus::Saved);
    source.quit(SOON).await.unwrap();
}

#[tokio::test]
async fn a_fake_goes_on_where_the_other_dies_before_the_hand_over() {
    let hosts = hosts().await;
    let (source, destination) = (&hosts.source.1, &hosts.destination.1);
    ready(&hosts).await;
    source.end_mirrors(SOON).await.unwrap();
    destination.die(9);
    let ended = source.switch_over(SOON).await;
    assert!(
        matches!(ended, Err(crate::Error::Migration { .. })),
        "{ended:?}"
    );
    assert_eq!(source.status().await.unwrap(), MachineStatus::Running);
    source.abandon().await.unwrap();
    assert_eq!(phase(source).await, MovePhase::None);
}

#[tokio::test]
async fn a_fake_is_taken_back_after_the_hand_over_only_when_told() {
    let hosts = hosts().await;
    let (source, destination) = (&hosts.source.1, &hosts.destination.1);
    ready(&hosts).await;
    source.end_mirrors(SOON).await.unwrap();
    source.switch_over(SOON).await.unwrap();
    destination.die(9);
    assert_eq!(
        source.abandon().await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    source.take_back(true).await.unwrap();
    assert_eq!(source.status().await.unwrap(), MachineStatus::Running);
}

#[tokio::test]
async fn a_slow_fake_is_cancelled_and_a_lost_source_is_seen_at_the_destination() {
    let hosts = hosts().await;
    let (source, destination) = (&hosts.source.1, &hosts.destination.1);
    source.set_sends_slowly(true);
    let memory = destination
        .receive(plain(anywhere()), &Terms::default())
        .await;
    let link = plain(memory.unwrap().unwrap());
    let transfer = Transfer::new();
    let (terms, limits) = (Terms::default(), Limits::default());
    let sending = source.send(link, &terms, &limits, &transfer);
    let cancelling = async {
        while phase(source).await != MovePhase::Sending {
            tokio::task::yield_now().await;
        }
        transfer.cancel();
    };
    let (ended, ()) = tokio::join!(sending, cancelling);
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(source.status().await.unwrap(), MachineStatus::Running);
    let told = destination.arrived(SOON).await;
    assert!(
        matches!(told, Err(crate::Error::Migration { .. })),
        "{told:?}"
    );
    destination.abandon().await.unwrap();
    assert!(!destination.is_alive());
}
