//! While a machine that runs moves between two services, on QEMU, something happens at every single step of either: a service is killed,
//! a QEMU process is killed, the link is cut, a client stops it. At no time do two hosts run the machine; once both can talk exactly one
//! has it, with every byte, both tell why, and nothing of it is left on the other.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hypervisor::{ImageFormat, QemuHypervisor};
use support::hosts::{Hosts, Way, anywhere, trust};
use support::steps::{Side, Stepped, Steps, Strike, Watched};
use support::{Bed, Bench, KIB, MIB, files, options};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use uuid::Uuid;
use vmms::Options;
use vmms::job::{Job, JobRequest, JobState};
use vmms::machine::{Asked, StateChange, Vm, VmState, spec};
use vmms::migration::{self, ArrivalState, Patience};
use vmms::point::{Point, PointType};

const DISKS: [(&str, ImageFormat, u64); 2] = [
    ("a.qcow2", ImageFormat::Qcow2, 4 * MIB),
    ("b.img", ImageFormat::Raw, MIB),
];
/// Only ends what hangs.
const LONG: Duration = Duration::from_secs(180);

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Blow {
    Service(Side),
    Qemu(Side),
    Cut,
    Stop,
}

/// Two hosts, each in a runtime of its own: only its end ends everything the service has going. A third has the link.
struct Lives {
    runtimes: [Runtime; 2],
    link: Runtime,
    way: Way,
    hosts: Hosts,
    steps: Arc<Steps>,
    vm: Uuid,
    disks: BTreeMap<String, Vec<u8>>,
    /// What the disks held at the point.
    copy: (Uuid, BTreeMap<String, Vec<u8>>),
}

fn patient() -> Options {
    Options {
        patience: Patience {
            source: Duration::ZERO,
            destination: Duration::from_secs(4),
            kept: Duration::ZERO,
        },
        ..options()
    }
}

async fn bench(steps: &Arc<Steps>, side: Side) -> Bench {
    let watched = Watched {
        inner: QemuHypervisor::default(),
        steps: Arc::clone(steps),
        side,
    };
    let mut bench = Bench::on(patient(), Arc::new(watched)).await;
    let stepped = Stepped {
        inner: Arc::clone(&bench.store),
        steps: Arc::clone(steps),
        side,
    };
    bench.store = Arc::new(stepped);
    bench.restart().await;
    std::fs::create_dir_all(bench.path("images")).unwrap();
    bench
}

impl Lives {
    fn new(blow: Blow) -> Self {
        let steps = Steps::new(match blow {
            Blow::Service(side) => Some(side),
            _ => None,
        });
        let (here, there, link) = (support::runtime(), support::runtime(), support::runtime());
        let (source, vm, disks, copy) = here.block_on(async {
            let bench = bench(&steps, Side::Source).await;
            let (vm, disks, copy) = {
                let mut bed = bench.machine(&DISKS).await;
                bed.write("a.qcow2", 1, 0, 300 * KIB);
                bed.state(StateChange::Start).await;
                let point = bed.point(PointType::Log).await;
                let copy = (point, bed.disks.clone());
                bed.write("a.qcow2", 2, 100 * KIB, 50 * KIB);
                bed.write("b.img", 3, 512, 64 * KIB);
                bed.flush("a.qcow2");
                bed.flush("b.img");
                (bed.vm, bed.disks.clone(), copy)
            };
            (bench, vm, disks, copy)
        });
        let target = there.block_on(bench(&steps, Side::Destination));
        let lives = Lives {
            runtimes: [here, there],
            way: link.block_on(Way::to(0, i64::MAX)),
            link,
            hosts: Hosts {
                here: source,
                there: target,
            },
            steps,
            vm,
            disks,
            copy,
        };
        lives.meet();
        let [here, there] = [&lives.hosts.here.vmms, &lives.hosts.there.vmms];
        let through = Some(lives.way.port);
        lives.runtimes[0].block_on(trust(here, "there", there, through));
        lives.runtimes[1].block_on(trust(there, "here", here, None));
        lives
    }

    /// Both listen, and the link leads to where that is now.
    fn meet(&self) {
        let services = [&self.hosts.here.vmms, &self.hosts.there.vmms];
        for (runtime, vmms) in self.runtimes.iter().zip(services) {
            runtime.block_on(async {
                if migration::listening(vmms).is_empty() {
                    migration::listen(vmms, &[anywhere()]).await.unwrap();
                }
            });
        }
        let [here, there] = services;
        self.way.leads_to(migration::listening(there)[0].port());
        self.steps.know(here, there);
    }

    /// The service of one side is gone, and starts again.
    fn again(&mut self, side: Side) {
        let runtime = &mut self.runtimes[side as usize];
        std::mem::replace(runtime, support::runtime()).shutdown_timeout(Duration::from_secs(5));
        self.steps.revive(side);
        let bench = match side {
            Side::Source => &mut self.hosts.here,
            Side::Destination => &mut self.hosts.there,
        };
        self.runtimes[side as usize].block_on(bench.restart());
        self.meet();
    }

    fn happens(&mut self, blow: Blow, job: Option<Uuid>) {
        match blow {
            Blow::Service(side) => self.again(side),
            Blow::Qemu(side) => {
                if let Some(pid) = self.steps.pid(side) {
                    kill(pid);
                }
            }
            Blow::Cut => self.way.cut(true),
            Blow::Stop => {
                let vmms = Arc::clone(&self.hosts.here.vmms);
                let job = job.or_else(|| Some(departs(&vmms).first()?.id));
                // It may be too late for that. Whoever stands still may have the records.
                let asked = self.runtimes[0].spawn(async move {
                    if let Some(job) = job {
                        let _ = vmms.request_job_state(job, JobRequest::Terminate).await;
                    }
                });
                self.steps.strike.send_replace(Strike::Over);
                let _ = self.link.block_on(asked);
            }
        }
        self.steps.strike.send_replace(Strike::Over);
    }

    /// Until both sides are done with it. A link that was cut is mended once the source has noticed.
    fn settle(&self, blow: Blow, moving: &JoinHandle<()>) {
        let (here, there) = (&self.hosts.here.vmms, &self.hosts.there.vmms);
        let jobs_end = |vmms: &Arc<vmms::Vmms>| {
            moving.is_finished() && vmms.jobs().iter().all(|j| j.state.is_final())
        };
        if blow == Blow::Cut {
            until("the source notices", || {
                let doubt = migration::permits(here).iter().any(|p| p.doubt.is_some());
                doubt || jobs_end(here)
            });
            if migration::permits(here).iter().any(|p| p.doubt.is_some()) {
                // While nobody can know, it stands still here, whoever asks.
                let job = self.runtimes[0].block_on(async {
                    let asked = Asked::default();
                    let start = StateChange::Start;
                    let job = vmms::machine::request_state(here, self.vm, start, &asked).await;
                    match job {
                        Ok(job) => Some(here.wait(job).await.unwrap()),
                        Err(_) => None,
                    }
                });
                assert!(job.is_none_or(|j| j.state == JobState::Exception));
            }
            self.way.cut(false);
        }
        until("both are done", || {
            let coming = migration::arrivals(there);
            let coming = coming.iter().any(|a| a.state == ArrivalState::Incoming);
            !coming && migration::permits(here).is_empty() && jobs_end(here) && jobs_end(there)
        });
    }

    /// Exactly one has it, whole, and nothing of it is on the other.
    fn look(&self, blow: Blow) {
        assert!(self.steps.wrong().is_empty(), "{:#?}", self.steps.wrong());
        let has = |bench: &Bench| bench.vmms.db.get::<Vm>(self.vm).is_ok();
        let (here, there) = (has(&self.hosts.here), has(&self.hosts.there));
        assert!(here != there, "here {here}, there {there}");
        let owner = if here {
            Side::Source
        } else {
            Side::Destination
        };
        let (own, other) = match owner {
            Side::Source => (&self.hosts.here, &self.hosts.there),
            Side::Destination => (&self.hosts.there, &self.hosts.here),
        };
        let runtime = &self.runtimes[owner as usize];
        self.explained(owner);
        // It runs, unless it was its own process that was killed.
        let state = own.vmms.state_of(&own.vmms.db.get::<Vm>(self.vm).unwrap());
        match blow {
            Blow::Qemu(side) if side == owner => {
                assert!(
                    matches!(state, VmState::Running | VmState::Off),
                    "{state:?}"
                );
            }
            _ => assert_eq!(state, VmState::Running),
        }
        // Nothing of it is on the other, once what was kept for another try is not any more.
        self.runtimes[1 - owner as usize].block_on(other.vmms.tick());
        assert_eq!(processes(other.dir.path()), Vec::<i32>::new());
        for dir in ["images", "state/maps", "state/points", "state/vm"] {
            let left = files(&other.path(dir));
            assert!(left.is_empty(), "{dir}: {left:?}");
        }
        assert!(!spec::run_dir(&other.vmms.dirs, self.vm).exists());
        assert!(other.vmms.db.all::<Point>().is_empty());
        runtime.block_on(async {
            let bed = Bed {
                bench: own,
                vm: self.vm,
                disks: self.disks.clone(),
            };
            let part = bed.export(self.copy.0, None, "look").await;
            bed.assert_exported(&part, &self.copy.1).await;
            if state == VmState::Running {
                bed.state(StateChange::Stop).await;
            }
            bed.assert_present().await;
            for bench in [own, other] {
                let mut found = vmms::check::check_host(&bench.vmms).await.unwrap();
                if blow == Blow::Qemu(owner) {
                    // As after every end of a process by force; they go by themselves.
                    found.retain(|f| f.kind != vmms::check::FindingKind::Socket);
                }
                assert!(found.is_empty(), "{found:#?}");
            }
        });
    }

    /// The jobs of both sides tell where it is, and why.
    fn explained(&self, owner: Side) {
        let departs = departs(&self.hosts.here.vmms);
        let came = departs.iter().any(|j| j.state == JobState::Completed);
        let told: Vec<_> = departs.iter().map(|j| (j.state, texts(j))).collect();
        assert_eq!(came, owner == Side::Destination, "{told:#?}");
        let arrived = incoming(&self.hosts.there.vmms);
        for job in departs.iter().chain(&arrived) {
            let said = texts(job);
            assert_eq!(
                job.state == JobState::Completed,
                said.is_empty(),
                "{said:#?}"
            );
        }
        let here = arrived.iter().any(|j| j.state == JobState::Completed);
        let told: Vec<_> = arrived.iter().map(|j| (j.state, texts(j))).collect();
        assert_eq!(here, owner == Side::Destination, "{told:#?}");
    }
}

fn departs(vmms: &vmms::Vmms) -> Vec<Job> {
    moves(vmms, false)
}

fn incoming(vmms: &vmms::Vmms) -> Vec<Job> {
    moves(vmms, true)
}

fn moves(vmms: &vmms::Vmms, incoming: bool) -> Vec<Job> {
    let of_move = |job: &Job| {
        let progress = job.output.migration.as_ref();
        progress.is_some_and(|p| p.incoming == incoming)
    };
    vmms.jobs().into_iter().filter(of_move).collect()
}

fn texts(job: &Job) -> Vec<String> {
    let chain = job.faults.iter().flat_map(|f| f.chain());
    chain
        .map(|f| format!("{}: {}", f.message.id(), f.text()))
        .collect()
}

fn until(what: &str, mut fact: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !fact() {
        assert!(begun.elapsed() < LONG, "{what}: not within {LONG:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill(pid: i32) {
    let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
    until("the end of a process", || {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        state.map_or(true, |s| {
            s.rsplit(')').next().unwrap().trim().starts_with('Z')
        })
    });
}

/// The machines whose arguments name that directory.
fn processes(dir: &Path) -> Vec<i32> {
    let ours = dir.display().to_string();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|e| e.file_name().to_str()?.parse().ok());
    let named = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains(&ours) && line.starts_with("qemu-system")
            || line.contains(&ours) && line.contains("/qemu-system")
    };
    pids.filter(named).collect()
}

/// A move with a blow at its `nth` step; tells whether the move came to its end before.
fn struck_at(nth: i64, blow: Blow) -> bool {
    let begun = Instant::now();
    let mut lives = Lives::new(blow);
    let (here, there) = (&lives.hosts.here.vmms, &lives.hosts.there.vmms);
    let mut strike = lives.steps.strike.subscribe();
    lives.steps.begin(nth, here, there);
    let (source, request) = (Arc::clone(here), lives.hosts.request(lives.vm));
    let started = Arc::new(std::sync::OnceLock::new());
    let job = Arc::clone(&started);
    let mut moving = lives.runtimes[0].spawn(async move {
        let id = migration::migrate(&source, request, &Asked::default()).await;
        if let Ok(id) = id {
            let _ = job.set(id);
            let _ = source.wait(id).await;
        }
    });
    let target = Arc::clone(there);
    let ended = async {
        let _ = (&mut moving).await;
        // What the destination still has to write down after its answer may be where it happens.
        while incoming(&target).iter().any(|j| !j.state.is_final()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let lived = lives.link.block_on(async {
        tokio::select! {
            _ = strike.wait_for(|s| *s == Strike::Now) => false,
            () = ended => *lives.steps.strike.borrow() == Strike::Waits,
        }
    });
    drop(target);
    if !lived {
        lives.happens(blow, started.get().copied());
    }
    let steps = lives.steps.count.load(std::sync::atomic::Ordering::SeqCst);
    lives.steps.end();
    lives.settle(blow, &moving);
    lives.look(blow);
    let place = lives.steps.place.lock().unwrap().clone();
    let jobs = departs(&lives.hosts.here.vmms);
    let told = jobs.last().map(|j| texts(j).join(" <- "));
    println!(
        "{blow:?} at {nth} of {steps} ({place}): {:?}, {}",
        begun.elapsed(),
        told.unwrap_or_default()
    );
    lived
}

/// Every step is tried with KVMMS_STEP=1; otherwise some, beginning elsewhere for each blow.
fn every_step(blow: Blow, begin: i64) {
    let stride = std::env::var("KVMMS_STEP")
        .ok()
        .and_then(|n| n.parse().ok());
    let stride = stride.unwrap_or(47);
    let from = std::env::var("KVMMS_STEP_FROM")
        .ok()
        .and_then(|n| n.parse().ok());
    let mut nth = from.unwrap_or(begin % stride);
    while !struck_at(nth, blow) {
        nth += stride;
        assert!(nth < 2000, "a move has an end");
    }
}

#[test]
fn a_killed_source_leaves_exactly_one_machine_that_runs() {
    every_step(Blow::Service(Side::Source), 5);
}

#[test]
fn a_killed_destination_leaves_exactly_one_machine_that_runs() {
    every_step(Blow::Service(Side::Destination), 13);
}

#[test]
fn a_killed_process_of_the_source_leaves_exactly_one_machine() {
    every_step(Blow::Qemu(Side::Source), 21);
}

#[test]
fn a_killed_process_of_the_destination_leaves_exactly_one_machine() {
    every_step(Blow::Qemu(Side::Destination), 29);
}

#[test]
fn a_link_that_is_cut_leaves_exactly_one_machine_that_runs() {
    every_step(Blow::Cut, 37);
}

#[test]
fn a_move_that_is_stopped_leaves_exactly_one_machine_that_runs() {
    every_step(Blow::Stop, 45);
}
