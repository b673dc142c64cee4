//! A service that dies while a guest is frozen: the next one thaws it.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use hypervisor::fake::{FakeHypervisor, FakeMachine, Fault};
use hypervisor::{Hypervisor, ImageFormat, ImageTool, Machine, thaw};
use support::{Bench, MIB, options};
use uuid::Uuid;
use vmms::machine::StateChange;
use vmms::machine::{Asked, spec};
use vmms::point::{Consistency, PointType};

const ONE: [(&str, ImageFormat, u64); 1] = [("a.qcow2", ImageFormat::Qcow2, 4 * MIB)];

async fn until(frozen: bool, machine: &FakeMachine) {
    while machine.guest_frozen(Duration::from_secs(1)).await.unwrap() != frozen {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A service that hangs between freeze and thaw, with the guest's machine.
async fn hanging() -> (Bench, Arc<FakeHypervisor>, Uuid) {
    let fake = Arc::new(FakeHypervisor::with_images(ImageTool::default()));
    let hypervisor: Arc<dyn Hypervisor> = fake.clone();
    let bench = Bench::on(options(), hypervisor).await;
    let bed = bench.machine(&ONE).await;
    let vm = bed.vm;
    bed.state(StateChange::Start).await;
    fake.script().on_next("mark", Fault::Hang);
    let (app, asked) = (Some(Consistency::Application), Asked::default());
    vmms::point::create_point(&bench.vmms, vm, PointType::Log, app, "p", &asked)
        .await
        .unwrap();
    until(true, &fake.machine(vm).unwrap()).await;
    (bench, fake, vm)
}

#[test]
fn a_guest_left_frozen_is_thawed_at_the_next_start() {
    let first = support::runtime();
    let (mut bench, fake, vm) = first.block_on(hanging());
    let run = spec::run_dir(&bench.vmms.dirs, vm);
    assert!(thaw::marked(&run).is_some(), "told to whoever comes after");
    first.shutdown_background();
    support::runtime().block_on(async {
        let machine = fake.machine(vm).unwrap();
        assert!(machine.guest_frozen(Duration::from_secs(1)).await.unwrap());
        bench.restart().await;
        until(false, &machine).await;
        while thaw::marked(&run).is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn no_mark_stays_of_a_guest_that_was_thawed() {
    let (bench, fake, vm) = hanging().await;
    fake.script().release_hangs();
    for job in bench.vmms.jobs() {
        bench.done(job.id).await;
    }
    until(false, &fake.machine(vm).unwrap()).await;
    assert_eq!(thaw::marked(&spec::run_dir(&bench.vmms.dirs, vm)), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_not_frozen_where_nobody_could_stand_by() {
    let fake = Arc::new(FakeHypervisor::with_images(ImageTool::default()));
    let hypervisor: Arc<dyn Hypervisor> = fake.clone();
    let mut options = options();
    options.thaw_watchdog = Some("/nowhere/kvmmsd".into());
    let bench = Bench::on(options, hypervisor).await;
    let bed = bench.machine(&ONE).await;
    bed.state(StateChange::Start).await;
    let (_, job) = bed
        .try_point(PointType::Log, Some(Consistency::Application))
        .await;
    assert!(
        job.faults[0].has(vmms::Message::FreezeFailed),
        "{:#?}",
        job.faults
    );
    assert_eq!(fake.script().count("guest_freeze"), 0);
    assert_eq!(thaw::marked(&spec::run_dir(&bench.vmms.dirs, bed.vm)), None);
}
