//! Machines from state to state, and the jobs that bring them there, on a scripted hypervisor.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hypervisor::fake::{FakeHypervisor, Fault as Scripted};
use store::{MemoryStore, Store};
use support::{Bench, options};
use uuid::Uuid;
use vmms::job::{Job, JobRequest, JobState};
use vmms::machine::StateChange;
use vmms::machine::{Asked, NewVm, Power, Settings, Vm, VmState, device::NewDevice};
use vmms::{Kind, Message, Options};

struct Fake {
    bench: Bench,
    fake: Arc<FakeHypervisor>,
    vm: Uuid,
}

async fn fake() -> Fake {
    fake_with(options()).await
}

async fn fake_with(options: Options) -> Fake {
    let fake = Arc::new(FakeHypervisor::new());
    let bench = Bench::on(options, fake.clone()).await;
    let new = NewVm {
        id: None,
        name: "one".to_owned(),
        generation: 1,
        notes: Vec::new(),
        settings: Settings::default(),
    };
    let vm = vmms::machine::define(&bench.vmms, new, |_| Ok(()))
        .await
        .unwrap();
    Fake { bench, fake, vm }
}

impl Fake {
    async fn ask(&self, to: StateChange) -> vmms::Result<Uuid> {
        vmms::machine::request_state(&self.bench.vmms, self.vm, to, &Asked::default()).await
    }

    async fn ended(&self, to: StateChange) -> Job {
        let job = self.ask(to).await.unwrap();
        self.bench.vmms.wait(job).await.unwrap()
    }

    async fn go(&self, to: StateChange) {
        let job = self.ended(to).await;
        assert_eq!(job.state, JobState::Completed, "{:?}", job.faults);
        assert_eq!(job.percent, 100);
    }

    fn state(&self) -> VmState {
        self.bench
            .vmms
            .state_of(&self.bench.vmms.db.get::<Vm>(self.vm).unwrap())
    }

    async fn until(&self, wanted: VmState) {
        for _ in 0..500 {
            if self.state() == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the machine stays {:?} instead of {wanted:?}", self.state());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_goes_through_all_its_states_and_back() {
    let f = fake().await;
    assert_eq!(f.state(), VmState::Off);
    f.go(StateChange::Start).await;
    assert_eq!(f.state(), VmState::Running);
    f.go(StateChange::Pause).await;
    assert_eq!(f.state(), VmState::Paused);
    f.go(StateChange::Start).await;
    assert_eq!(f.state(), VmState::Running);
    f.go(StateChange::Reset).await;
    f.go(StateChange::Save).await;
    assert_eq!(f.state(), VmState::Saved);
    assert!(f.bench.vmms.machine(f.vm).is_none());
    f.go(StateChange::Start).await;
    assert_eq!(f.state(), VmState::Running);
    assert_eq!(f.bench.vmms.db.get::<Vm>(f.vm).unwrap().saved_state, None);
    f.go(StateChange::Stop).await;
    assert_eq!(f.state(), VmState::Off);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_state_does_not_allow_is_refused_at_once_and_changes_nothing() {
    let f = fake().await;
    for to in [
        StateChange::Pause,
        StateChange::Save,
        StateChange::Shutdown,
        StateChange::Reset,
        StateChange::Stop,
    ] {
        let refused = f.ask(to).await.expect_err("a machine that is off");
        assert_eq!(refused.kind(), Kind::InvalidState, "{to:?}");
    }
    f.go(StateChange::Start).await;
    let refused = f
        .ask(StateChange::Start)
        .await
        .expect_err("it runs already");
    assert_eq!(refused.message, Message::AlreadyInState);
    let refused = vmms::machine::destroy(&f.bench.vmms, f.vm, &Asked::default()).await;
    assert_eq!(refused.expect_err("it runs").kind(), Kind::InvalidState);
    assert_eq!(f.state(), VmState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_does_not_start_is_off_and_its_job_tells_the_chain() {
    let f = fake().await;
    f.fake
        .script()
        .on_next("launch", Scripted::refuse("no such device"));
    let job = f.ended(StateChange::Start).await;
    assert_eq!(job.state, JobState::Exception);
    let chain: Vec<Message> = job.faults[0].chain().iter().map(|x| x.message).collect();
    assert_eq!(chain, [Message::StartFailed, Message::Qmp]);
    assert!(job.percent < 100, "100 stands for success");
    assert_eq!(f.state(), VmState::Off);
    f.go(StateChange::Start).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_fails_leaves_the_guest_running() {
    let f = fake().await;
    f.go(StateChange::Start).await;
    f.fake
        .script()
        .on_next("save_state", Scripted::refuse("No space left on device"));
    let job = f.ended(StateChange::Save).await;
    assert_eq!(job.state, JobState::Exception);
    assert!(job.faults[0].has(Message::SaveFailed));
    assert_eq!(f.state(), VmState::Running);
    assert_eq!(f.bench.vmms.db.get::<Vm>(f.vm).unwrap().saved_state, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_leaves_the_machine_off() {
    let f = fake().await;
    f.go(StateChange::Start).await;
    f.fake.machine(f.vm).unwrap().die(9);
    f.until(VmState::Off).await;
    assert_eq!(f.bench.vmms.db.get::<Vm>(f.vm).unwrap().power, Power::Off);
    f.go(StateChange::Start).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hard_stop_overtakes_a_shutdown_that_the_guest_ignores() {
    let f = fake().await;
    f.go(StateChange::Start).await;
    let machine = f.fake.machine(f.vm).unwrap();
    machine.set_agent(false);
    machine.set_obeys_powerdown(false);
    let shutdown = f.ask(StateChange::Shutdown).await.unwrap();
    f.until(VmState::ShuttingDown).await;
    let busy = f
        .ask(StateChange::Save)
        .await
        .expect_err("another change is under way");
    assert!(matches!(busy.kind(), Kind::InUse | Kind::InvalidState));
    f.go(StateChange::Stop).await;
    assert_eq!(
        f.bench.vmms.wait(shutdown).await.unwrap().state,
        JobState::Completed
    );
    assert_eq!(f.state(), VmState::Off);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_the_guest_ignores_ends_in_time_or_when_it_is_cancelled() {
    let quick = Options {
        shutdown_deadline: Duration::from_millis(50),
        ..options()
    };
    let f = fake_with(quick).await;
    f.go(StateChange::Start).await;
    let machine = f.fake.machine(f.vm).unwrap();
    machine.set_agent(false);
    machine.set_obeys_powerdown(false);
    let job = f.ended(StateChange::Shutdown).await;
    assert_eq!(job.faults[0].message, Message::ShutdownTimeout);
    assert_eq!(f.state(), VmState::Running);

    let f = fake().await;
    f.go(StateChange::Start).await;
    let machine = f.fake.machine(f.vm).unwrap();
    machine.set_agent(false);
    machine.set_obeys_powerdown(false);
    for (request, ended) in [
        (JobRequest::Terminate, JobState::Terminated),
        (JobRequest::Kill, JobState::Killed),
    ] {
        let job = f.ask(StateChange::Shutdown).await.unwrap();
        f.until(VmState::ShuttingDown).await;
        f.bench.vmms.request_job_state(job, request).await.unwrap();
        let job = f.bench.vmms.wait(job).await.unwrap();
        assert_eq!(job.state, ended);
        assert_eq!(
            job.faults[0].kind(),
            Kind::Cancelled,
            "a job that was stopped says so"
        );
        f.until(VmState::Running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_job_cannot_be_changed_and_only_exports_can_be_suspended() {
    let f = fake().await;
    let done = f.ended(StateChange::Start).await;
    for request in [
        JobRequest::Terminate,
        JobRequest::Kill,
        JobRequest::Suspend,
        JobRequest::Start,
    ] {
        let refused = f
            .bench
            .vmms
            .request_job_state(done.id, request)
            .await
            .expect_err("final");
        assert_eq!(refused.message, Message::JobFinal);
    }
    let machine = f.fake.machine(f.vm).unwrap();
    machine.set_agent(false);
    machine.set_obeys_powerdown(false);
    let job = f.ask(StateChange::Shutdown).await.unwrap();
    let refused = f
        .bench
        .vmms
        .request_job_state(job, JobRequest::Suspend)
        .await;
    assert_eq!(
        refused.expect_err("not an export").message,
        Message::JobTransition
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_key_of_the_same_user_is_the_same_job() {
    let f = fake().await;
    let asked = |owner: &str| Asked {
        owner: owner.to_owned(),
        request_key: Some("k".to_owned()),
    };
    let first =
        vmms::machine::request_state(&f.bench.vmms, f.vm, StateChange::Start, &asked("alice"))
            .await
            .unwrap();
    f.bench.vmms.wait(first).await.unwrap();
    f.go(StateChange::Stop).await;
    let again =
        vmms::machine::request_state(&f.bench.vmms, f.vm, StateChange::Start, &asked("alice"))
            .await
            .unwrap();
    assert_eq!(again, first, "a retry starts nothing");
    assert_eq!(f.state(), VmState::Off);
    let other =
        vmms::machine::request_state(&f.bench.vmms, f.vm, StateChange::Start, &asked("bob"))
            .await
            .unwrap();
    assert_ne!(other, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_vanishes_from_view_after_its_time_and_stays_in_the_history() {
    let brief = Options {
        job_keep: Duration::from_millis(50),
        ..options()
    };
    let mut f = fake_with(brief).await;
    let job = f.ended(StateChange::Start).await;
    assert!(
        job.vanishes()
            .is_some_and(|at| at > SystemTime::now() - Duration::from_secs(60))
    );
    tokio::time::sleep(Duration::from_millis(80)).await;
    f.bench.vmms.tick().await;
    assert_eq!(
        f.bench.vmms.job(job.id).expect_err("gone").message,
        Message::JobNotFound
    );
    assert_eq!(
        f.bench
            .vmms
            .db
            .past_job::<vmms::job::Machines>(job.id)
            .await
            .unwrap()
            .state,
        JobState::Completed
    );
    assert!(
        f.bench
            .vmms
            .db
            .history::<vmms::job::Machines>(None, 10)
            .await
            .unwrap()
            .iter()
            .any(|j| j.id == job.id)
    );
    let newest: Vec<_> = f
        .bench
        .vmms
        .db
        .newest_history::<vmms::job::Machines>(10)
        .await
        .unwrap()
        .iter()
        .map(|j| j.submitted)
        .collect();
    assert!(
        newest.contains(&job.submitted) && newest.is_sorted_by(|a, b| a >= b),
        "{newest:?}"
    );
    f.bench.restart().await;
    assert!(
        f.bench.vmms.jobs().is_empty(),
        "the history does not come back into view"
    );
    assert!(
        f.bench
            .vmms
            .db
            .past_job::<vmms::job::Machines>(job.id)
            .await
            .is_ok()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_the_service_died_in_is_undone_and_says_so() {
    let mut f = fake().await;
    f.fake.script().on_next("launch", Scripted::Hang);
    let job = f.ask(StateChange::Start).await.unwrap();
    f.until(VmState::Starting).await;
    f.bench.restart().await;
    let job = f.bench.vmms.wait(job).await.unwrap();
    assert_eq!(job.state, JobState::Exception);
    assert_eq!(job.faults[0].message, Message::HostInterrupted);
    assert_eq!(f.state(), VmState::Off);
    f.go(StateChange::Start).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_is_found_again_by_the_next_service() {
    let mut f = fake().await;
    f.go(StateChange::Start).await;
    let pid = f.bench.vmms.machine(f.vm).unwrap().pid();
    f.bench.restart().await;
    assert_eq!(f.state(), VmState::Running);
    assert_eq!(f.bench.vmms.machine(f.vm).unwrap().pid(), pid);
    f.fake.machine(f.vm).unwrap().die(9);
    f.until(VmState::Off).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_machine_is_gone_with_its_jobs_still_to_be_read() {
    let f = fake().await;
    let job = vmms::machine::destroy(&f.bench.vmms, f.vm, &Asked::default())
        .await
        .unwrap();
    assert_eq!(
        f.bench.vmms.wait(job).await.unwrap().state,
        JobState::Completed
    );
    assert_eq!(
        f.bench.vmms.db.get::<Vm>(f.vm).expect_err("gone").kind(),
        Kind::NotFound
    );
    assert!(f.bench.vmms.job(job).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn hardware_cannot_change_under_a_running_guest_but_names_can() {
    let f = fake().await;
    f.go(StateChange::Start).await;
    let refused = vmms::machine::change(&f.bench.vmms, f.vm, |vm| {
        vm.memory.quantity = 64;
        Ok(())
    })
    .await;
    assert_eq!(refused.expect_err("it runs").kind(), Kind::InvalidState);
    vmms::machine::change(&f.bench.vmms, f.vm, |vm| {
        vm.name = "two".to_owned();
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(f.bench.vmms.db.get::<Vm>(f.vm).unwrap().name, "two");
    let nic = vmms::machine::device::add(
        &f.bench.vmms,
        f.vm,
        NewDevice::Nic {
            mac: None,
            guid: None,
        },
        None,
    )
    .await;
    assert_eq!(
        nic.expect_err("not while it runs").message,
        Message::HotPlugRefused
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_settings_are_refused_and_nothing_is_stored() {
    let f = fake().await;
    for edit in [
        (|vm: &mut Vm| vm.memory.quantity = 1) as fn(&mut Vm),
        |vm| vm.processor.count = 0,
        |vm| vm.name = " ".to_owned(),
        |vm| vm.name = "a\nb".to_owned(),
        |vm| vm.settings.boot_order = vec![9],
        |vm| vm.memory.weight = 10_001,
    ] {
        let before = f.bench.vmms.db.get::<Vm>(f.vm).unwrap();
        let refused = vmms::machine::change(&f.bench.vmms, f.vm, |vm| {
            edit(vm);
            Ok(())
        })
        .await;
        assert_eq!(
            refused.expect_err("impossible").kind(),
            Kind::InvalidParameter
        );
        assert_eq!(*f.bench.vmms.db.get::<Vm>(f.vm).unwrap(), *before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_need_a_parent_that_exists_and_a_slot_that_is_free() {
    let f = fake().await;
    let add = |new| vmms::machine::device::add(&f.bench.vmms, f.vm, new, None);
    let missing = add(NewDevice::DiskDrive {
        controller: "nope".to_owned(),
        slot: None,
    })
    .await;
    assert_eq!(
        missing.expect_err("no controller").message,
        Message::DeviceNotFound
    );
    let controller = add(NewDevice::ScsiController).await.unwrap();
    let drive = |slot| NewDevice::DiskDrive {
        controller: controller.clone(),
        slot: Some(slot),
    };
    add(drive(3)).await.unwrap();
    assert_eq!(
        add(drive(3)).await.expect_err("taken").kind(),
        Kind::InvalidParameter
    );
    assert_eq!(
        add(drive(64)).await.expect_err("outside").kind(),
        Kind::InvalidParameter
    );
    let wrong = add(NewDevice::Disk {
        drive: controller.clone(),
        path: "/nowhere/x.qcow2".into(),
        read_only: false,
    })
    .await;
    assert_eq!(wrong.expect_err("no such file").kind(), Kind::FileNotFound);
    let vm = f.bench.vmms.db.get::<Vm>(f.vm).unwrap();
    let id = vm.devices.last().map(|d| d.id.clone()).unwrap();
    vmms::machine::device::remove(&f.bench.vmms, f.vm, &id)
        .await
        .unwrap();
    assert!(
        f.bench
            .vmms
            .db
            .get::<Vm>(f.vm)
            .unwrap()
            .device(&id)
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_cannot_be_made_durable_is_not_made() {
    let fake = Arc::new(FakeHypervisor::new());
    let mut bench = Bench::on(options(), fake).await;
    let flaky = Arc::new(store::FlakyStore::new(Arc::new(MemoryStore::new())));
    bench.restart_on(flaky.clone() as Arc<dyn Store>).await;
    let new = || NewVm {
        id: None,
        name: "one".to_owned(),
        generation: 1,
        notes: Vec::new(),
        settings: Settings::default(),
    };
    let vm = vmms::machine::define(&bench.vmms, new(), |_| Ok(()))
        .await
        .unwrap();
    flaky.arm(store::Calls::Txns, 1, store::Fault::Stop);
    let refused = vmms::machine::define(&bench.vmms, new(), |_| Ok(()))
        .await
        .expect_err("not durable");
    assert_eq!(refused.message, Message::Store);
    let refused =
        vmms::machine::request_state(&bench.vmms, vm, StateChange::Start, &Asked::default()).await;
    assert_eq!(
        refused.expect_err("no record, no job").message,
        Message::Store
    );
    assert_eq!(bench.vmms.db.all::<Vm>().len(), 1);
    assert!(bench.vmms.jobs().is_empty());
}
