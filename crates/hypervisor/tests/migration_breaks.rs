//! Moves that break off: whatever dies at whatever step, the other side tells the truth, and the guest runs where it may.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use hypervisor::migration::{Address, DiskOffer, Limits, MirrorPhase, Terms, Transfer};
use hypervisor::{
    Error, ErrorKind, ImageFormat, JobControl, Machine, MachineStatus, Migrate, MovePhase,
};
use rustix::process::Signal;
use serde_json::Value;
use support::Running;
use support::moves::{
    Guest, LONG, Relay, Two, phase, plain, receive, send, signal, slow, still_runs, target, until,
};

/// A source that stands still for the hand-over, and its destination.
async fn ready(two: &Two) -> Running {
    let destination = two.destination().await;
    let address = receive(&destination, two.socket("memory.sock")).await;
    send(&two.source, address).await.unwrap();
    destination
}

/// A source that waits for a destination that does not answer, inside the hand-over.
async fn switching(two: &Two, destination: &Running) {
    signal(destination, Signal::STOP);
    // The monitor may hang as well: QEMU writes to a peer that does not read.
    let handing = two.source.switch_over(LONG);
    let ended = tokio::time::timeout(Duration::from_millis(300), handing).await;
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test]
async fn a_destination_that_dies_while_it_is_sent_to_leaves_the_guest_running() {
    let two = Two::shared(Guest::Hog).await;
    let destination = two.destination().await;
    let address = receive(&destination, two.socket("memory.sock")).await;
    let (terms, transfer) = (Terms::default(), Transfer::new());
    let limits = slow();
    let sending = two.source.send(plain(address), &terms, &limits, &transfer);
    let killing = async {
        until(&two.source, MovePhase::Sending).await;
        assert!(
            two.source
                .save_state(&two.bench.path("state"))
                .await
                .is_err()
        );
        destination.kill().await.unwrap();
    };
    let (ended, ()) = tokio::join!(sending, killing);
    assert!(matches!(ended, Err(Error::Migration { .. })), "{ended:?}");
    still_runs(&two).await;
}

#[tokio::test]
async fn a_destination_that_dies_before_or_in_the_hand_over_gives_the_guest_back() {
    for dies_inside in [false, true] {
        let two = Two::shared(Guest::Idle).await;
        let destination = ready(&two).await;
        if dies_inside {
            switching(&two, &destination).await;
        }
        destination.kill().await.unwrap();
        if !dies_inside {
            assert_eq!(phase(&two.source).await, MovePhase::ReadyToSwitch);
        }
        let ended = two.source.switch_over(LONG).await;
        assert!(matches!(ended, Err(Error::Migration { .. })), "{ended:?}");
        still_runs(&two).await;
    }
}

#[tokio::test]
async fn a_destination_that_is_silent_in_the_hand_over_is_given_up_and_the_guest_goes_on() {
    let two = Two::shared(Guest::Idle).await;
    let destination = ready(&two).await;
    switching(&two, &destination).await;
    two.source.cut().await.unwrap();
    two.source.abandon().await.unwrap();
    still_runs(&two).await;
    destination.kill().await.unwrap();
}

#[tokio::test]
async fn a_destination_that_dies_after_the_hand_over_is_replaced_by_the_source_only_when_told() {
    let two = Two::shared(Guest::Writer).await;
    let destination = ready(&two).await;
    two.source.switch_over(LONG).await.unwrap();
    destination.arrived(LONG).await.unwrap();
    destination.kill().await.unwrap();
    assert_eq!(phase(&two.source).await, MovePhase::HandedOver);
    for refused in [two.source.resume().await, two.source.abandon().await] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
    }
    two.source.take_back(true).await.unwrap();
    two.source.take_back(true).await.unwrap();
    still_runs(&two).await;
    two.writes_on().await;
    two.source.quit(LONG).await.unwrap();
    two.records("sda.base", ImageFormat::Raw).await;
}

#[tokio::test]
async fn a_source_that_dies_before_the_hand_over_is_told_by_the_destination() {
    for sends in [true, false] {
        let two = Two::shared(if sends { Guest::Hog } else { Guest::Idle }).await;
        let destination = two.destination().await;
        let address = receive(&destination, two.socket("memory.sock")).await;
        let (terms, transfer) = (Terms::default(), Transfer::new());
        if sends {
            let limits = slow();
            let sending = two.source.send(plain(address), &terms, &limits, &transfer);
            let killing = async {
                until(&two.source, MovePhase::Sending).await;
                two.source.kill().await.unwrap();
            };
            let (ended, ()) = tokio::join!(sending, killing);
            assert_eq!(ended.unwrap_err().kind(), ErrorKind::Gone);
        } else {
            send(&two.source, address).await.unwrap();
            two.source.kill().await.unwrap();
        }
        let error = destination.arrived(LONG).await.unwrap_err();
        assert!(
            matches!(error, Error::Migration { .. } | Error::ProcessGone { .. }),
            "{error}"
        );
        // A QEMU that stays says it itself, one that ended in its last words.
        let told = format!("{error} {}", error.detail().unwrap_or_default());
        assert!(told.contains("failed"), "{told}");
        assert!(destination.resume().await.is_err());
        assert!(destination.take_over(true).await.is_err());
    }
}

#[tokio::test]
async fn a_source_that_dies_after_the_hand_over_is_not_needed_any_more() {
    let two = Two::shared(Guest::Writer).await;
    let destination = ready(&two).await;
    two.source.switch_over(LONG).await.unwrap();
    two.source.kill().await.unwrap();
    destination.arrived(LONG).await.unwrap();
    destination.take_over(true).await.unwrap();
    two.writes_on().await;
    destination.quit(LONG).await.unwrap();
    two.records("sda.base", ImageFormat::Raw).await;
}

#[tokio::test]
async fn a_link_that_breaks_before_the_hand_over_is_done_leaves_the_guest_here() {
    for step in 0..3 {
        let two = Two::layered(if step == 0 { Guest::Hog } else { Guest::Idle }, 1).await;
        let destination = two.destination().await;
        two.mirror(&destination, None).await;
        let (near, far) = (two.bench.path("near.sock"), two.bench.path("far.sock"));
        receive(&destination, Address::Unix(far.clone())).await;
        let relay = Relay::new(&near, &far);
        let (terms, transfer) = (Terms::default(), Transfer::new());
        let link = plain(relay.address.clone());
        if step == 0 {
            let limits = slow();
            let sending = two.source.send(link, &terms, &limits, &transfer);
            let cutting = async {
                until(&two.source, MovePhase::Sending).await;
                relay.cut();
            };
            let (ended, ()) = tokio::join!(sending, cutting);
            assert!(matches!(ended, Err(Error::Migration { .. })), "{ended:?}");
            assert_eq!(phase(&two.source).await, MovePhase::Mirroring);
        } else {
            let limits = Limits::default();
            two.source
                .send(link, &terms, &limits, &transfer)
                .await
                .unwrap();
            two.source.end_mirrors(LONG).await.unwrap();
            if step == 2 {
                switching(&two, &destination).await;
            }
            relay.cut();
            let ended = two.source.switch_over(LONG).await;
            assert!(matches!(ended, Err(Error::Migration { .. })), "{ended:?}");
        }
        two.source.abandon().await.unwrap();
        still_runs(&two).await;
        assert!(two.source.moving().await.unwrap().mirrors.is_empty());
        signal(&destination, Signal::CONT);
        destination.abandon().await.unwrap();
        // Nothing of it is in the way of a point.
        let overlay = two.bench.overlay("sda", "after");
        two.source.freeze_layers(&[overlay]).await.unwrap();
    }
}

#[tokio::test]
async fn a_mirror_whose_peer_is_silent_is_cut_and_the_guest_writes_on() {
    let two = Two::layered(Guest::Writer, 1).await;
    let destination = two.destination().await;
    two.mirror(&destination, None).await;
    signal(&destination, Signal::STOP);
    // The guest's next write waits for the other side, and so does whatever drains.
    let stop = two.source.execute("stop", Value::Null);
    let hangs = tokio::time::timeout(Duration::from_secs(3), stop).await;
    assert!(hangs.is_err(), "the monitor hangs");
    two.source.cut().await.unwrap();
    two.source.abandon().await.unwrap();
    two.source.resume().await.unwrap();
    still_runs(&two).await;
    two.writes_on().await;
    signal(&destination, Signal::CONT);
    destination.abandon().await.unwrap();
    two.source.quit(LONG).await.unwrap();
    two.records("l1.qcow2", ImageFormat::Qcow2).await;
}

#[tokio::test]
async fn a_mirror_is_cancelled_fails_with_its_reason_and_begins_anew() {
    let two = Two::layered(Guest::Idle, 1).await;
    let destination = two.destination().await;
    let control = JobControl::new();
    let nowhere = vec![target(two.socket("nobody.sock"))];
    let refused = two.source.mirror(nowhere, None, None, &control).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Io);
    let offer = DiskOffer {
        address: two.socket("disks.sock"),
        tls: None,
        drives: vec!["sda".into()],
    };
    let address = destination.offer_disks(&offer).await.unwrap();
    support::hmp(
        &two.source,
        "qemu-io -d /machine/peripheral/drive-sda \"write -P 7 1M 8M\"",
    )
    .await;
    let control = Arc::new(JobControl::new());
    let asker = Arc::clone(&control);
    let asking = tokio::spawn(async move {
        while asker.progress().total == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        asker.cancel();
    });
    let slowly = Some(64 << 10);
    let targets = vec![target(address.clone())];
    let ended = two.source.mirror(targets, None, slowly, &control).await;
    asking.await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(phase(&two.source).await, MovePhase::None);

    let control = JobControl::new();
    let targets = || vec![target(address.clone())];
    two.source
        .mirror(targets(), None, None, &control)
        .await
        .unwrap();
    let twice = two.source.mirror(targets(), None, None, &control).await;
    assert_eq!(twice.unwrap_err().kind(), ErrorKind::Conflict);
    destination.kill().await.unwrap();
    support::hmp(
        &two.source,
        "qemu-io -d /machine/peripheral/drive-sda \"write -P 8 1M 64k\"",
    )
    .await;
    let failed = async {
        loop {
            let state = two.source.moving().await.unwrap();
            if state.mirrors.iter().any(|m| m.phase == MirrorPhase::Failed) {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let state = tokio::time::timeout(LONG, failed).await.unwrap();
    assert!(state.mirrors[0].error.is_some(), "{state:?}");
    let told = two.source.tighten(LONG, &control).await.unwrap_err();
    assert!(matches!(told, Error::Job { .. }), "{told}");
    two.source.abandon().await.unwrap();
    still_runs(&two).await;
}

#[tokio::test]
async fn every_step_is_recognised_by_a_service_that_was_killed_meanwhile() {
    let two = Two::layered(Guest::Hog, 1).await;
    let destination = two.destination().await;
    two.mirror(&destination, None).await;
    let Two {
        bench,
        there,
        source,
        ..
    } = two;
    source.forget();
    let again = async |config: &hypervisor::MachineConfig| {
        let found = bench.hypervisor.reattach_qemu(config).await;
        Running::new(found.unwrap().unwrap())
    };
    let source = again(&bench.config).await;
    assert_eq!(phase(&source).await, MovePhase::Mirroring);
    let address = Address::Unix(bench.path("memory.sock"));
    let address = receive(&destination, address).await;

    // Killed while it sends: QEMU goes on, and is watched again.
    let (terms, transfer) = (Terms::default(), Transfer::new());
    let limits = slow();
    {
        let sending = source.send(plain(address), &terms, &limits, &transfer);
        tokio::select! {
            ended = sending => panic!("{ended:?}"),
            () = until(&source, MovePhase::Sending) => {}
        }
    }
    source.forget();
    let source = again(&bench.config).await;
    assert_eq!(phase(&source).await, MovePhase::Sending);
    destination.forget();
    let destination = again(&there).await;
    assert_eq!(phase(&destination).await, MovePhase::Receiving);
    assert!(destination.resume().await.is_err());
    let fast = Limits::default();
    source.limit(&fast).await.unwrap();
    source.follow(&transfer).await.unwrap();

    source.forget();
    let source = again(&bench.config).await;
    assert_eq!(phase(&source).await, MovePhase::ReadyToSwitch);
    assert!(source.resume().await.is_err());
    source.end_mirrors(LONG).await.unwrap();
    source.forget();
    let source = again(&bench.config).await;
    let mirrors = source.moving().await.unwrap().mirrors;
    assert_eq!(mirrors[0].phase, MirrorPhase::Ended, "{mirrors:?}");
    source.switch_over(LONG).await.unwrap();

    source.forget();
    destination.forget();
    let (source, destination) = (again(&bench.config).await, again(&there).await);
    assert_eq!(phase(&source).await, MovePhase::HandedOver);
    until(&destination, MovePhase::Arrived).await;
    source.switch_over(LONG).await.unwrap();
    assert!(source.resume().await.is_err() && destination.resume().await.is_err());
    destination.take_over(false).await.unwrap();
    destination.forget();
    let destination = again(&there).await;
    assert_eq!(phase(&destination).await, MovePhase::None);
    assert_eq!(destination.status().await.unwrap(), MachineStatus::Paused);
    destination.take_over(true).await.unwrap();
    assert_eq!(destination.status().await.unwrap(), MachineStatus::Running);
}
