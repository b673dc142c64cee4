//! What guests do is told: failures of their disks, ends of their processes, shutdowns they do not hear, on a scripted
//! hypervisor.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hypervisor::fake::{FakeHypervisor, FakeMachine};
use hypervisor::host::Room;
use hypervisor::{ImageFormat, MachineEvent};
use support::{Bench, MIB, options};
use uuid::Uuid;
use vmms::job::{Job, JobState};
use vmms::machine::StateChange;
use vmms::machine::{Asked, Health, Power, RoomOptions, Vm, VmState, spec};
use vmms::{Message, Options};

/// A machine with one disk on a file system whose room the test decides.
struct Guest {
    bench: Bench,
    fake: Arc<FakeHypervisor>,
    vm: Uuid,
    free: Arc<AtomicU64>,
}

async fn guest() -> Guest {
    guest_with(options()).await
}

async fn guest_with(mut options: Options) -> Guest {
    let free = Arc::new(AtomicU64::new(10_000 * MIB));
    let looked = Arc::clone(&free);
    options.room = RoomOptions {
        look: Arc::new(move |_| {
            Some(Room {
                device: 1,
                free: looked.load(Ordering::SeqCst),
                size: 100_000 * MIB,
            })
        }),
        ..RoomOptions::default()
    };
    let fake = Arc::new(FakeHypervisor::new());
    let bench = Bench::on(options, fake.clone()).await;
    let vm = bench
        .machine(&[("a.qcow2", ImageFormat::Qcow2, MIB)])
        .await
        .vm;
    Guest {
        bench,
        fake,
        vm,
        free,
    }
}

impl Guest {
    async fn ended(&self, to: StateChange) -> Job {
        let asked = Asked::default();
        let job = vmms::machine::request_state(&self.bench.vmms, self.vm, to, &asked)
            .await
            .unwrap();
        self.bench.vmms.wait(job).await.unwrap()
    }

    async fn go(&self, to: StateChange) {
        let job = self.ended(to).await;
        assert_eq!(job.state, JobState::Completed, "{:?}", job.faults);
    }

    fn record(&self) -> Arc<Vm> {
        self.bench.vmms.db.get::<Vm>(self.vm).unwrap()
    }

    fn machine(&self) -> Arc<FakeMachine> {
        self.fake.machine(self.vm).unwrap()
    }

    fn drive(&self) -> String {
        spec::drive_id(self.record().disks().next().unwrap().1)
    }

    fn state(&self) -> VmState {
        self.bench.vmms.state_of(&self.record())
    }

    fn health(&self) -> Health {
        self.bench.vmms.health_of(&self.record())
    }

    async fn until(&self, what: &str, reached: impl Fn() -> bool) {
        for _ in 0..3000 {
            if reached() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: {:?}, {:?}", self.state(), self.health());
    }

    /// Ticks until something is so.
    async fn ticking(&self, what: &str, reached: impl Fn() -> bool) {
        for _ in 0..600 {
            self.bench.vmms.tick().await;
            if reached() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{what}: {:?}, {:?}", self.state(), self.health());
    }

    /// The disk of the running guest is full.
    async fn fill(&self) {
        self.free.store(0, Ordering::SeqCst);
        self.machine().set_fails_again(true);
        self.machine().io_error(&self.drive());
        self.until("the guest stands still", || self.health().critical)
            .await;
    }

    fn make_room(&self) {
        self.free.store(10_000 * MIB, Ordering::SeqCst);
        self.machine().set_fails_again(false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_disk_is_full_is_shown_as_standing_still_and_goes_on_when_there_is_room() {
    let g = guest().await;
    g.go(StateChange::Start).await;
    assert_eq!(g.health(), Health::default());
    g.fill().await;
    assert_eq!(g.state(), VmState::PausedByFailure);
    assert_eq!(g.record().power, Power::Running, "it is meant to run");
    let said = g.health().lines.join("\n");
    assert!(
        said.contains("no room") && said.contains("a.qcow2"),
        "{said}"
    );
    // A guest that stands still cannot be asked, and the refusal tells why.
    let refused = vmms::machine::request_state(
        &g.bench.vmms,
        g.vm,
        StateChange::Shutdown,
        &Asked::default(),
    )
    .await
    .expect_err("it stands still");
    assert!(refused.has(Message::GuestLacksRoom), "{refused:?}");
    for _ in 0..60 {
        g.bench.vmms.tick().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(g.fake.script().count("resume"), 1, "there is no room yet");
    g.make_room();
    g.ticking("the guest goes on by itself", || {
        g.state() == VmState::Running
    })
    .await;
    g.ticking("nothing is left of it", || g.health() == Health::default())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resuming_a_guest_without_room_fails_with_the_remedy() {
    let g = guest().await;
    g.go(StateChange::Start).await;
    g.fill().await;
    let job = g.ended(StateChange::Start).await;
    assert_eq!(job.state, JobState::Exception);
    assert_eq!(job.faults[0].message, Message::GuestLacksRoom);
    assert!(job.faults[0].text().contains("a.qcow2"));
    assert_eq!(g.fake.script().count("resume"), 1, "it was not even tried");
    // The file system tells of room (a quota does not show), and the request fails again.
    g.free.store(10_000 * MIB, Ordering::SeqCst);
    let job = g.ended(StateChange::Start).await;
    assert_eq!(job.faults[0].message, Message::GuestLacksRoom);
    assert_eq!(g.state(), VmState::PausedByFailure);
    g.make_room();
    g.go(StateChange::Start).await;
    assert_eq!(g.state(), VmState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_a_user_paused_does_not_go_on_by_itself() {
    let g = guest().await;
    g.go(StateChange::Start).await;
    g.fill().await;
    g.go(StateChange::Pause).await;
    assert_eq!(g.state(), VmState::Paused);
    g.make_room();
    let resumed = g.fake.script().count("resume");
    for _ in 0..60 {
        g.bench.vmms.tick().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(g.fake.script().count("resume"), resumed);
    assert_eq!(g.state(), VmState::Paused);
    g.go(StateChange::Start).await;
    assert_eq!(g.state(), VmState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_does_not_go_on_while_something_holds_the_machine() {
    let g = guest().await;
    g.go(StateChange::Start).await;
    g.fill().await;
    let lock = g.bench.vmms.lock(g.vm).await;
    g.make_room();
    let resumed = g.fake.script().count("resume");
    for _ in 0..60 {
        g.bench.vmms.tick().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(g.fake.script().count("resume"), resumed);
    drop(lock);
    g.ticking("the guest goes on", || g.state() == VmState::Running)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_service_learns_from_qemu_that_a_guest_stands_still() {
    let mut g = guest().await;
    g.go(StateChange::Start).await;
    g.fill().await;
    g.bench.restart().await;
    g.until("it is shown", || g.health().critical).await;
    assert_eq!(g.state(), VmState::PausedByFailure);
    assert!(g.health().lines[0].contains("no room"), "{:?}", g.health());
    g.make_room();
    g.ticking("the guest goes on", || g.state() == VmState::Running)
        .await;
    // What a user paused before the restart stays paused after it.
    g.fill().await;
    g.go(StateChange::Pause).await;
    g.bench.restart().await;
    g.until("it is shown", || g.health().critical).await;
    assert_eq!(g.record().power, Power::Paused);
    assert_eq!(g.state(), VmState::Paused);
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_fails_is_shown_and_only_a_user_resumes() {
    let g = guest().await;
    g.go(StateChange::Start).await;
    g.machine().fail_write(&g.drive(), false);
    g.until("it is shown", || g.health().critical).await;
    assert!(g.health().lines[0].contains("Input/output error"));
    let resumed = g.fake.script().count("resume");
    for _ in 0..60 {
        g.bench.vmms.tick().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(g.fake.script().count("resume"), resumed);
    g.machine().set_fails_again(true);
    let job = g.ended(StateChange::Start).await;
    assert_eq!(job.faults[0].message, Message::GuestDiskFails);
    g.machine().set_fails_again(false);
    g.go(StateChange::Start).await;
    assert_eq!(g.health(), Health::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_the_guest_was_told_of_is_shown_while_it_runs() {
    let g = guest().await;
    g.go(StateChange::Start).await;
    g.machine().emit(MachineEvent::BlockIoError {
        drive: Some(g.drive()),
        node: None,
        write: false,
        action: "report".into(),
        no_space: false,
        reason: "Input/output error".into(),
    });
    g.until("it is shown", || g.health().threatened).await;
    assert_eq!(g.state(), VmState::Running);
    assert!(!g.health().critical);
    assert!(g.health().lines[0].contains("A read of"));
}

#[tokio::test(flavor = "multi_thread")]
async fn too_little_room_is_warned_of_before_the_guest_stands_still() {
    let g = guest().await;
    g.free.store(100 * MIB, Ordering::SeqCst);
    for _ in 0..5 {
        g.bench.vmms.tick().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(g.health(), Health::default(), "a machine that is off");
    let mut g = guest().await;
    g.go(StateChange::Start).await;
    g.free.store(100 * MIB, Ordering::SeqCst);
    g.ticking("it is warned of", || g.health().threatened).await;
    let health = g.health();
    assert!(!health.critical);
    assert!(health.lines[0].contains("100 MiB left"), "{health:?}");
    g.bench.restart().await;
    g.ticking("after a restart as well", || g.health().threatened)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_died_says_how_until_the_next_start() {
    let mut g = guest().await;
    g.go(StateChange::Start).await;
    g.machine().crash(1, "qemu: could not\x1b[2J do it\n");
    g.until("it is off", || g.state() == VmState::Off).await;
    let said = g.health().lines.join("\n");
    assert!(
        said.contains("exit code 1") && said.contains("could not\\x1b[2J do it"),
        "{said}"
    );
    g.bench.restart().await;
    assert_eq!(g.health().lines.join("\n"), said, "it is kept");
    g.go(StateChange::Start).await;
    assert_eq!(g.health(), Health::default());
    g.machine().die(9);
    g.until("it is off", || g.state() == VmState::Off).await;
    let said = g.health().lines.join("\n");
    assert!(said.contains("killed (signal 9)"), "{said}");
    assert!(said.contains("memory"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_switches_itself_off_and_one_that_is_switched_off_leave_no_note() {
    let g = guest().await;
    g.go(StateChange::Start).await;
    g.machine().shut_down();
    g.until("it is off", || g.state() == VmState::Off).await;
    assert_eq!(g.health(), Health::default());
    g.go(StateChange::Start).await;
    g.go(StateChange::Stop).await;
    assert_eq!(g.health(), Health::default());
    g.go(StateChange::Start).await;
    g.go(StateChange::Shutdown).await;
    assert_eq!(g.health(), Health::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_died_while_the_service_was_away_says_so() {
    let mut g = guest().await;
    g.go(StateChange::Start).await;
    // The service that saw it die could not store it any more: only the record of a running machine is left.
    let record = g.record();
    g.machine().die(11);
    g.until("it is off", || g.state() == VmState::Off).await;
    let mut running = (*record).clone();
    running.power = Power::Running;
    running.last_end = None;
    g.bench
        .vmms
        .db
        .change(|draft| {
            draft.put(running);
            Ok(())
        })
        .await
        .unwrap();
    g.bench.restart().await;
    assert_eq!(g.state(), VmState::Off);
    let said = g.health().lines.join("\n");
    assert!(said.contains("ended by itself"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_that_was_asked_for_too_early_is_asked_for_again() {
    let g = guest_with(Options {
        shutdown_again: Duration::from_millis(50),
        ..options()
    })
    .await;
    g.go(StateChange::Start).await;
    let machine = g.machine();
    machine.set_agent(false);
    machine.set_obeys_powerdown(false);
    let asked = Asked::default();
    let job = vmms::machine::request_state(&g.bench.vmms, g.vm, StateChange::Shutdown, &asked)
        .await
        .unwrap();
    // It boots and hears nothing.
    g.until("it is asked again", || {
        g.fake.script().count("powerdown") >= 3
    })
    .await;
    machine.set_obeys_powerdown(true);
    let job = g.bench.vmms.wait(job).await.unwrap();
    assert_eq!(job.state, JobState::Completed, "{:?}", job.faults);
    assert_eq!(g.state(), VmState::Off);
    assert_eq!(g.health(), Health::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_console_stays_within_its_bound_however_much_the_guest_writes() {
    let bound = 4096;
    let mut g = guest_with(Options {
        console_bytes: bound,
        ..options()
    })
    .await;
    g.go(StateChange::Start).await;
    let log = spec::console_log(&g.bench.vmms.dirs, g.vm);
    let length = |path: &std::path::Path| std::fs::metadata(path).map_or(0, |m| m.len());
    // As QEMU does: open for appending all the time.
    let mut guest = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .unwrap();
    for round in 0..3u8 {
        std::io::Write::write_all(&mut guest, &vec![b'a' + round; 100_000]).unwrap();
        g.ticking("the log is cut", || length(&log) <= bound).await;
    }
    let older = hypervisor::console::older(&log);
    assert_eq!(std::fs::read(&older).unwrap(), vec![b'c'; 4096]);
    std::io::Write::write_all(&mut guest, b"and on").unwrap();
    assert_eq!(std::fs::read(&log).unwrap(), b"and on");
    // What was written while no service was there is cut before anything else.
    std::io::Write::write_all(&mut guest, &vec![b'x'; 100_000]).unwrap();
    g.bench.restart().await;
    assert_eq!(length(&log), 0);
    assert_eq!(length(&older), bound);
}
