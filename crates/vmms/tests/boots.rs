//! Booting exports with a scripted hypervisor: what counts as life, what is told of what does not, and that nothing stays.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::fake::{FakeHypervisor, FakeMachine, Fault};
use hypervisor::{Hypervisor, ImageFormat, ImageTool, MachineEvent};
use support::{Bench, MIB, files, options};
use uuid::Uuid;
use vmms::Message;
use vmms::boot::{SignKind, Wanted, boot_exports};
use vmms::job::{Job, JobRequest, JobState, Task};
use vmms::machine::{Asked, spec};
use vmms::point::PointType;

const ONE: [(&str, ImageFormat, u64); 1] = [("a.qcow2", ImageFormat::Qcow2, 4 * MIB)];

struct Scene {
    bench: Bench,
    fake: Arc<FakeHypervisor>,
    directory: PathBuf,
}

/// A machine's point in `out`; whether the machine has an agent's channel.
async fn scene(agent: bool) -> Scene {
    let fake = Arc::new(FakeHypervisor::with_images(ImageTool::default()));
    let hypervisor: Arc<dyn Hypervisor> = fake.clone();
    let bench = Bench::on(options(), hypervisor).await;
    let mut bed = bench.machine(&ONE).await;
    bed.write("a.qcow2", 7, 0, 64 * 1024);
    let edit = |vm: &mut vmms::machine::Vm| {
        vm.settings.guest_agent = agent;
        Ok(())
    };
    vmms::machine::change(&bench.vmms, bed.vm, edit)
        .await
        .unwrap();
    let point = bed.point(PointType::Log).await;
    bed.export(point, None, "out").await;
    let directory = bench.path("out");
    Scene {
        bench,
        fake,
        directory,
    }
}

fn wanted(seconds: u64, agent: bool) -> Wanted {
    Wanted {
        seconds,
        agent,
        ..Wanted::default()
    }
}

impl Scene {
    async fn begin(&self, wanted: Wanted) -> (Uuid, Uuid) {
        let asked = Asked::default();
        let vmms = &self.bench.vmms;
        let job = boot_exports(vmms, &self.directory, None, wanted, &asked)
            .await
            .unwrap();
        match vmms.job(job).unwrap().task {
            Task::BootExports(order) => (job, order.members[0].vm),
            other => panic!("{other:?}"),
        }
    }

    /// The throw-away machine, once it runs.
    async fn machine(&self, vm: Uuid) -> Arc<FakeMachine> {
        loop {
            if let Some(machine) = self.fake.machine(vm) {
                return machine;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn says(&self, vm: Uuid, text: &str) {
        let log = spec::console_log(&self.bench.vmms.dirs, vm);
        std::fs::write(log, text).unwrap();
    }

    async fn end(&self, job: Uuid) -> Job {
        self.bench.vmms.wait(job).await.unwrap()
    }

    fn assert_gone(&self, vm: Uuid) {
        let dirs = &self.bench.vmms.dirs;
        assert!(self.fake.machine(vm).is_none(), "the process is gone");
        assert!(!spec::state_dir(dirs, vm).exists() && !spec::run_dir(dirs, vm).exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_of_the_agent_is_life_and_ends_the_wait() {
    let scene = scene(true).await;
    let before = files(&scene.directory);
    let (job, vm) = scene.begin(wanted(600, true)).await;
    let job = scene.end(job).await;
    assert_eq!(job.state, JobState::Completed, "{:#?}", job.faults);
    let boot = &job.output.boots[0];
    assert_eq!(boot.signs.len(), 1);
    assert_eq!(boot.signs[0].kind, SignKind::Agent);
    assert_eq!(boot.agent.as_ref().unwrap().os_id.as_deref(), Some("fake"));
    assert!(boot.proven && boot.failure.is_empty());
    assert_eq!(files(&scene.directory), before);
    scene.assert_gone(vm);
    // The machine is no machine of the service.
    assert!(scene.bench.vmms.db.get::<vmms::machine::Vm>(vm).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_expected_text_is_found_wherever_reads_cut_it() {
    let scene = scene(false).await;
    let wanted = Wanted {
        seconds: 600,
        text: Some("login:".to_owned()),
        ..Wanted::default()
    };
    let (job, vm) = scene.begin(wanted).await;
    scene.machine(vm).await;
    scene.says(vm, "one log");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!scene.bench.vmms.job(job).unwrap().state.is_final());
    scene.says(vm, "one login: ");
    let job = scene.end(job).await;
    assert_eq!(job.state, JobState::Completed, "{:#?}", job.faults);
    assert_eq!(job.output.boots[0].console, "one login: ");
    scene.assert_gone(vm);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_life_is_told_with_its_reason_and_the_console() {
    for reason in ["agent", "silence", "restarts", "crash", "off"] {
        let scene = scene(false).await;
        for n in 1..100 {
            scene
                .fake
                .script()
                .on("guest_ping", n, Fault::refuse("busy"));
        }
        let (job, vm) = scene.begin(wanted(3, reason == "agent")).await;
        let machine = scene.machine(vm).await;
        if reason != "silence" {
            scene.says(vm, "the kernel said this last\n");
        }
        match reason {
            "restarts" => machine.emit(MachineEvent::Reset { guest: true }),
            "crash" => machine.emit(MachineEvent::GuestCrashed),
            "off" => machine.shut_down(),
            _ => {}
        }
        let job = scene.end(job).await;
        assert_eq!(job.state, JobState::Exception, "{reason}");
        let fault = &job.faults[0];
        assert_eq!(fault.message, Message::BootFailed);
        assert!(fault.has(Message::NoSignOfLife), "{reason}: {fault:#?}");
        let told = fault
            .chain()
            .iter()
            .any(|f| f.text().contains("said this last"));
        assert_eq!(told, reason != "silence", "{reason}: {fault:#?}");
        assert!(!job.output.boots[0].failure.is_empty());
        scene.assert_gone(vm);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_boot_and_a_killed_one_leave_nothing() {
    for kill in [false, true] {
        let scene = scene(false).await;
        let never = Wanted {
            seconds: 600,
            text: Some("never said".to_owned()),
            ..Wanted::default()
        };
        let (job, vm) = scene.begin(never).await;
        scene.machine(vm).await;
        let how = if kill {
            JobRequest::Kill
        } else {
            JobRequest::Terminate
        };
        scene.bench.vmms.request_job_state(job, how).await.unwrap();
        let job = scene.end(job).await;
        assert!(
            matches!(job.state, JobState::Killed | JobState::Terminated),
            "{:?}",
            job.state
        );
        scene.assert_gone(vm);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_waited_for_is_refused_at_once() {
    let scene = scene(false).await;
    let vmms = &scene.bench.vmms;
    let asked = Asked::default();
    let text = |text: &str| Wanted {
        text: Some(text.to_owned()),
        ..Wanted::default()
    };
    for wanted in [wanted(0, false), wanted(1 << 40, false), text(" ")] {
        let refused = boot_exports(vmms, &scene.directory, None, wanted, &asked).await;
        assert_eq!(refused.unwrap_err().message, Message::InvalidValue);
    }
    let usual = Wanted::default();
    let refused = boot_exports(vmms, &scene.directory, Some("none"), usual, &asked).await;
    assert_eq!(refused.unwrap_err().message, Message::PointNotExported);
    let nowhere = scene.bench.path("images");
    let refused = boot_exports(vmms, &nowhere, None, Wanted::default(), &asked).await;
    assert_eq!(refused.unwrap_err().message, Message::ManifestUnusable);
}
