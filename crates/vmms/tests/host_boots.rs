//! Machines start with the host and end with it, on a scripted hypervisor and a host that boots when the test says so.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hypervisor::fake::{FakeHypervisor, Fault as Scripted};
use support::{Bench, options};
use uuid::Uuid;
use vmms::job::{Job, JobState};
use vmms::machine::StateChange;
use vmms::machine::{Asked, BootOptions, HostBoot, NewVm, Power, Settings, Vm, VmState};
use vmms::{Message, Options};

struct Host {
    bench: Bench,
    fake: Arc<FakeHypervisor>,
    boot: Arc<Mutex<String>>,
    up: Arc<AtomicU64>,
}

async fn host() -> Host {
    host_with(options()).await
}

async fn host_with(mut options: Options) -> Host {
    let boot = Arc::new(Mutex::new("first".to_owned()));
    let up = Arc::new(AtomicU64::new(100));
    let (told, counted) = (Arc::clone(&boot), Arc::clone(&up));
    options.boot = BootOptions {
        id: Arc::new(move || told.lock().unwrap().clone()),
        uptime: Arc::new(move || Duration::from_secs(counted.load(Ordering::SeqCst))),
    };
    let fake = Arc::new(FakeHypervisor::new());
    let bench = Bench::on(options, fake.clone()).await;
    Host {
        bench,
        fake,
        boot,
        up,
    }
}

impl Host {
    async fn machine(&self, name: &str, action: u16, edit: impl FnOnce(&mut Settings)) -> Uuid {
        let mut settings = Settings {
            automatic_startup_action: action,
            ..Settings::default()
        };
        edit(&mut settings);
        let new = NewVm {
            id: None,
            name: name.to_owned(),
            generation: 1,
            notes: Vec::new(),
            settings,
        };
        vmms::machine::define(&self.bench.vmms, new, |_| Ok(()))
            .await
            .unwrap()
    }

    async fn go(&self, vm: Uuid, to: StateChange) -> Job {
        let asked = Asked::default();
        let job = vmms::machine::request_state(&self.bench.vmms, vm, to, &asked)
            .await
            .unwrap();
        self.bench.vmms.wait(job).await.unwrap()
    }

    fn state(&self, vm: Uuid) -> VmState {
        let record = self.bench.vmms.db.get::<Vm>(vm).unwrap();
        self.bench.vmms.state_of(&record)
    }

    /// The host goes down with all that runs, and boots.
    async fn boots(&mut self) {
        let all = self.bench.vmms.db.all::<Vm>();
        // The service saw nothing of it.
        let powers: Vec<(Uuid, Power)> = all.iter().map(|v| (v.id, v.power)).collect();
        let records: Vec<Vm> = all.iter().map(|v| (**v).clone()).collect();
        for (vm, _) in &powers {
            if let Some(machine) = self.fake.machine(*vm) {
                machine.die(9);
                while self.bench.vmms.machine(*vm).is_some()
                    || self.bench.vmms.db.get::<Vm>(*vm).unwrap().power != Power::Off
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
        let change = |draft: &mut vmms::db::Draft<'_>| {
            records.into_iter().for_each(|r| draft.put(r));
            Ok(())
        };
        self.bench.vmms.db.change(change).await.unwrap();
        *self.boot.lock().unwrap() = Uuid::new_v4().to_string();
        self.up.store(10, Ordering::SeqCst);
        self.bench.restart().await;
    }

    /// Ticks until nothing waits that could be started now.
    async fn settles(&self) {
        for _ in 0..20 {
            self.bench.vmms.tick().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            for job in self.bench.vmms.jobs() {
                self.bench.vmms.wait(job.id).await.unwrap();
            }
        }
    }

    fn starts(&self) -> usize {
        self.fake.script().count("launch")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_start_with_the_host_as_their_settings_say_and_never_with_the_service() {
    let mut h = host().await;
    let never = h.machine("never", 2, |_| {}).await;
    let ran = h.machine("ran", 3, |_| {}).await;
    let paused = h.machine("paused", 3, |_| {}).await;
    let stopped = h.machine("stopped", 3, |_| {}).await;
    let always = h.machine("always", 4, |_| {}).await;
    for vm in [never, ran, paused, stopped] {
        h.go(vm, StateChange::Start).await;
    }
    h.go(paused, StateChange::Pause).await;
    h.go(stopped, StateChange::Stop).await;
    let before = h.starts();
    h.bench.restart().await;
    h.settles().await;
    assert_eq!(
        h.starts(),
        before,
        "a restart of the service starts nothing"
    );
    assert_eq!(h.state(always), VmState::Off);

    h.boots().await;
    assert_eq!(h.starts(), before, "requests are answered first");
    assert_eq!(h.state(ran), VmState::Off);
    assert!(h.bench.vmms.waits_to_start(ran));
    h.settles().await;
    for vm in [ran, paused, always] {
        assert_eq!(h.state(vm), VmState::Running);
    }
    for vm in [never, stopped] {
        assert_eq!(h.state(vm), VmState::Off);
    }
    let said = h.bench.vmms.db.get::<Vm>(never).unwrap();
    let said = said.last_end.as_ref().unwrap().text();
    assert!(said.contains("the host went down"), "{said}");

    // Once for each boot: what a user switches off stays off, whatever the service does.
    h.go(always, StateChange::Stop).await;
    h.bench.restart().await;
    h.settles().await;
    assert_eq!(h.state(always), VmState::Off);
    assert_eq!(h.state(ran), VmState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_is_kept_across_restarts_of_the_service() {
    let mut h = host().await;
    let late = h
        .machine("late", 4, |s| s.automatic_startup_delay = 60)
        .await;
    h.boots().await;
    h.settles().await;
    assert_eq!(h.state(late), VmState::Off);
    h.up.store(40, Ordering::SeqCst);
    h.bench.restart().await;
    h.settles().await;
    assert_eq!(h.state(late), VmState::Off, "30 of 60 seconds have passed");
    assert!(h.bench.vmms.waits_to_start(late));
    h.up.store(70, Ordering::SeqCst);
    h.settles().await;
    assert_eq!(h.state(late), VmState::Running);
    assert!(!h.bench.vmms.waits_to_start(late));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_decides_otherwise_while_a_machine_waits_is_obeyed() {
    let mut h = host().await;
    let delay = |s: &mut Settings| s.automatic_startup_delay = 60;
    let used = h.machine("used", 4, delay).await;
    let changed = h.machine("changed", 4, delay).await;
    h.boots().await;
    h.go(used, StateChange::Start).await;
    h.go(used, StateChange::Stop).await;
    vmms::machine::change(&h.bench.vmms, changed, |vm| {
        vm.settings.automatic_startup_action = 2;
        Ok(())
    })
    .await
    .unwrap();
    h.up.store(100, Ordering::SeqCst);
    h.settles().await;
    assert_eq!(h.state(used), VmState::Off);
    assert_eq!(h.state(changed), VmState::Off);
    assert!(!h.bench.vmms.waits_to_start(used));
}

#[tokio::test(flavor = "multi_thread")]
async fn lower_numbers_start_first_and_a_start_that_fails_is_not_repeated() {
    let mut h = host().await;
    let third = h
        .machine("a", 4, |s| s.automatic_startup_sequence = 3)
        .await;
    let first = h
        .machine("b", 4, |s| s.automatic_startup_sequence = 1)
        .await;
    let second = h
        .machine("c", 4, |s| s.automatic_startup_sequence = 2)
        .await;
    let before = h.fake.script().calls().len();
    h.boots().await;
    let nth = h.starts() + 1;
    h.fake
        .script()
        .on("launch", nth, Scripted::refuse("not today"));
    h.settles().await;
    let calls = h.fake.script().calls();
    let launched: Vec<&String> = calls
        .iter()
        .skip(before)
        .filter(|c| c.starts_with("launch"))
        .collect();
    let wanted: Vec<String> = [first, second, third]
        .iter()
        .map(|vm| format!("launch {vm}"))
        .collect();
    assert_eq!(launched, wanted.iter().collect::<Vec<_>>());
    assert_eq!(h.state(first), VmState::Off, "its start has failed");
    assert_eq!(h.state(third), VmState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_the_service_died_in_is_made_by_the_next_service() {
    let mut h = host().await;
    let vm = h.machine("one", 4, |_| {}).await;
    h.boots().await;
    h.fake.script().on_next("launch", Scripted::Hang);
    for _ in 0..100 {
        h.bench.vmms.tick().await;
        if h.state(vm) == VmState::Starting {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    h.bench.restart().await;
    h.settles().await;
    assert_eq!(h.state(vm), VmState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_host_goes_down_machines_end_as_their_settings_say_and_start_with_it_again() {
    let mut h = host().await;
    let action = |n: u16| move |s: &mut Settings| s.automatic_shutdown_action = n;
    let off = h.machine("off", 3, action(2)).await;
    let saved = h.machine("saved", 3, action(3)).await;
    let shut = h.machine("shut", 3, action(4)).await;
    let idle = h.machine("idle", 3, action(4)).await;
    for vm in [off, saved, shut] {
        h.go(vm, StateChange::Start).await;
    }
    let job = vmms::machine::shut_down_guests(&h.bench.vmms, None, &Asked::default())
        .await
        .unwrap();
    let job = h.bench.done(job).await;
    let report = job.output.report.join("\n");
    for line in ["off: switched off", "saved: saved", "shut: shut down"] {
        assert!(report.contains(line), "{report}");
    }
    assert_eq!(h.state(off), VmState::Off);
    assert_eq!(h.state(saved), VmState::Saved);
    assert_eq!(h.state(shut), VmState::Off);
    let asked = h.fake.script();
    assert_eq!((asked.count("quit"), asked.count("save_state")), (1, 1));
    h.settles().await;
    assert_eq!(h.state(shut), VmState::Off, "the host has not booted");

    h.boots().await;
    h.settles().await;
    for vm in [off, saved, shut] {
        assert_eq!(h.state(vm), VmState::Running);
    }
    assert_eq!(h.state(idle), VmState::Off, "it did not run before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_said_to_go_down_twice_still_knows_what_ran() {
    let mut h = host().await;
    let vm = h.machine("one", 3, |_| {}).await;
    let late = h
        .machine("late", 4, |s| s.automatic_startup_delay = 60)
        .await;
    h.boots().await;
    h.go(vm, StateChange::Start).await;
    vmms::machine::change(&h.bench.vmms, late, |vm| {
        vm.settings.automatic_startup_action = 3;
        Ok(())
    })
    .await
    .unwrap();
    for _ in 0..2 {
        let job = vmms::machine::shut_down_guests(&h.bench.vmms, None, &Asked::default())
            .await
            .unwrap();
        h.bench.done(job).await;
    }
    h.up.store(100, Ordering::SeqCst);
    h.settles().await;
    assert_eq!(
        h.state(late),
        VmState::Off,
        "nothing starts while the host goes down"
    );
    h.boots().await;
    h.up.store(100, Ordering::SeqCst);
    h.settles().await;
    assert_eq!(h.state(vm), VmState::Running);
    assert_eq!(
        h.state(late),
        VmState::Running,
        "it was about to be started"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_does_after_the_host_did_not_go_down_counts() {
    let mut h = host().await;
    let vm = h.machine("one", 3, |_| {}).await;
    h.go(vm, StateChange::Start).await;
    let job = vmms::machine::shut_down_guests(&h.bench.vmms, None, &Asked::default())
        .await
        .unwrap();
    h.bench.done(job).await;
    h.go(vm, StateChange::Start).await;
    h.go(vm, StateChange::Stop).await;
    h.boots().await;
    h.settles().await;
    assert_eq!(h.state(vm), VmState::Off);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_in_time_is_switched_off_and_the_report_says_so() {
    let h = host_with(Options {
        shutdown_again: Duration::from_millis(100),
        ..options()
    })
    .await;
    let deaf = h.machine("deaf", 3, |_| {}).await;
    let full = h
        .machine("full", 3, |s| s.automatic_shutdown_action = 3)
        .await;
    let paused = h.machine("paused", 3, |_| {}).await;
    for vm in [deaf, full, paused] {
        h.go(vm, StateChange::Start).await;
    }
    h.go(paused, StateChange::Pause).await;
    let machine = h.fake.machine(deaf).unwrap();
    machine.set_agent(false);
    machine.set_obeys_powerdown(false);
    // Whichever of the two saves comes first fails; the one that was running is shut down then.
    let nth = h.fake.script().count("save_state") + 1;
    let refused = || Scripted::refuse("No space left on device");
    h.fake.script().on("save_state", nth, refused());
    h.fake.script().on("save_state", nth + 1, refused());
    let within = Some(Duration::from_secs(3));
    let job = vmms::machine::shut_down_guests(&h.bench.vmms, within, &Asked::default())
        .await
        .unwrap();
    let job = h.bench.done(job).await;
    let line = |name: &str| {
        let begin = format!("{name}: ");
        let found = job.output.report.iter().find(|l| l.starts_with(&begin));
        found.cloned().unwrap_or_default()
    };
    assert!(line("deaf").contains("switched off"), "{}", line("deaf"));
    assert!(line("full").contains("shut down after"), "{}", line("full"));
    assert!(
        line("paused").contains("switched off"),
        "{}",
        line("paused")
    );
    for vm in [deaf, full, paused] {
        assert_eq!(h.state(vm), VmState::Off);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_cannot_be_ended_fails_the_job_with_its_cause() {
    let h = host().await;
    let vm = h
        .machine("stuck", 3, |s| s.automatic_shutdown_action = 2)
        .await;
    h.go(vm, StateChange::Start).await;
    let nth = h.fake.script().count("quit") + 1;
    h.fake
        .script()
        .on("quit", nth, Scripted::refuse("in the kernel"));
    let within = Some(Duration::from_secs(2));
    let job = vmms::machine::shut_down_guests(&h.bench.vmms, within, &Asked::default())
        .await
        .unwrap();
    let job = h.bench.vmms.wait(job).await.unwrap();
    assert_eq!(job.state, JobState::Exception);
    let fault = &job.faults[0];
    assert!(fault.has(Message::GuestsStillRun) && fault.has(Message::MachineStillRuns));
    assert!(fault.has(Message::Qmp), "{:?}", fault.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_come_later_in_the_start_end_first() {
    let h = host().await;
    let place = |n: u16| move |s: &mut Settings| s.automatic_startup_sequence = n;
    let database = h.machine("database", 3, place(1)).await;
    let front = h.machine("front", 3, place(2)).await;
    for vm in [database, front] {
        h.go(vm, StateChange::Start).await;
    }
    let job = vmms::machine::shut_down_guests(&h.bench.vmms, None, &Asked::default())
        .await
        .unwrap();
    let job = h.bench.done(job).await;
    let order: Vec<&str> = job
        .output
        .report
        .iter()
        .filter_map(|l| l.split(':').next())
        .collect();
    assert_eq!(order, ["front", "database"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_version_that_knew_no_boots_start_only_where_the_host_has_booted_since() {
    let mut h = host().await;
    let vm = h.machine("always", 4, |_| {}).await;
    for (up, wanted) in [(1000, VmState::Off), (0, VmState::Running)] {
        let forget = |draft: &mut vmms::db::Draft<'_>| {
            draft.delete::<HostBoot>(Uuid::nil());
            Ok(())
        };
        h.bench.vmms.db.change(forget).await.unwrap();
        h.up.store(up, Ordering::SeqCst);
        // Instants of the record are told apart from the host's by whole moments.
        tokio::time::sleep(Duration::from_millis(20)).await;
        h.bench.restart().await;
        h.settles().await;
        assert_eq!(h.state(vm), wanted, "{up} s after the boot");
    }
}
