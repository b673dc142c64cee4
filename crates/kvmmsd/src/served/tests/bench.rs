//! A service on scripted machines, with machines of both generations that have every kind of device.

use std::path::Path as FilePath;
use std::sync::Arc;

use cim::{Instance, Name, Path};
use uuid::Uuid;
use vmms::collection::CollectionKind;
use vmms::job::JobState;
use vmms::machine::StateChange;
use vmms::machine::device::{NewDevice, add};
use vmms::machine::{Asked, NewVm, Settings};
use vmms::migration::Network;
use vmms::point::{Consistency, PointType};
use vmms::snapshot::SnapshotKind;
use vmms::{Dirs, Vmms};
use wbem::{Caller, Error, Handler as _, Operation, Request, Response, Role, Walk};

use crate::provider;
use crate::rights::{AllSeeing, Gate};
use crate::service::{Refusals, Service};
use crate::view::{House, Provider};

/// The service and its scratch directory.
pub(super) struct Bench {
    pub(super) dir: tempfile::TempDir,
    service: Service,
    pub(super) vmms: Arc<Vmms>,
    /// A running machine of generation 1 with every kind of device and two points.
    pub(super) full: Uuid,
    /// A machine of generation 2 that is off.
    pub(super) bare: Uuid,
}

impl Bench {
    pub(super) async fn new() -> Self {
        let dir = tempfile::tempdir().expect("scratch directory");
        let dirs = Dirs {
            state: dir.path().join("state"),
            run: dir.path().join("run"),
        };
        let vmms = vmms::in_memory(dirs, "HOST".to_owned())
            .await
            .expect("service");
        let network = Network {
            id: Uuid::nil(),
            subnet: std::net::Ipv4Addr::new(192, 0, 2, 0).into(),
            prefix: 24,
            metric: 10,
            tags: vec!["Microsoft:UserManaged".to_owned()],
        };
        let networks = vmms.add_migration_networks(vec![network]);
        networks.await.expect("a network");
        let full = define(&vmms, "full", 1).await;
        let bare = define(&vmms, "bare", 2).await;
        furnish(&vmms, full, dir.path()).await;
        let asked = Asked::default();
        // A snapshot below another one, and applied.
        for name in ["s1", "s2"] {
            let kind = SnapshotKind::Disk;
            let made = vmms::snapshot::create(&vmms, full, kind, None, name, &asked).await;
            let (snapshot, job) = made.expect("snapshot");
            done(&vmms, job).await;
            let applied = vmms::snapshot::apply(&vmms, snapshot, &asked).await;
            done(&vmms, applied.expect("apply")).await;
        }
        let start = vmms::machine::request_state(&vmms, full, StateChange::Start, &asked)
            .await
            .expect("start");
        done(&vmms, start).await;
        for kind in [PointType::Rct, PointType::Log] {
            let made =
                vmms::point::create_point(&vmms, full, kind, Some(Consistency::Crash), "p", &asked)
                    .await;
            done(&vmms, made.expect("point").1).await;
        }
        collect(&vmms, full).await;
        for kind in [SnapshotKind::Disk, SnapshotKind::Recovery] {
            let crash = Some(Consistency::Crash);
            let made = vmms::snapshot::create(&vmms, full, kind, crash, "s", &asked).await;
            done(&vmms, made.expect("snapshot").1).await;
        }
        Bench {
            dir,
            service: service(&vmms, Box::new(AllSeeing)),
            vmms,
            full,
            bare,
        }
    }

    /// The same host with no other providers than these.
    pub(super) fn with(self, providers: Vec<Arc<dyn Provider>>) -> Self {
        let house = House::new(Arc::clone(&self.vmms), Box::new(AllSeeing), providers);
        Bench {
            service: service_of(house),
            ..self
        }
    }

    /// The same host, seen through that gate.
    pub(super) fn through(self, gate: Box<dyn Gate>) -> Self {
        let service = service(&self.vmms, gate);
        Bench { service, ..self }
    }

    /// Whether a class has a provider or stands in the table of associations, and not only a class below it.
    pub(super) fn serves(&self, namespace: &'static msvm::Namespace, class: &str) -> bool {
        let is = |own: &str| own.eq_ignore_ascii_case(class);
        let mut providers = provider::all().into_iter();
        let mut links = provider::associations(namespace).iter();
        providers.any(|p| p.namespace() == namespace.name() && p.classes().iter().any(|c| is(c)))
            || links.any(|a| is(a.class))
    }

    pub(super) async fn ask(
        &self,
        namespace: &str,
        operation: Operation,
    ) -> Result<Response, Error> {
        self.ask_as(Role::Admin, namespace, operation).await
    }

    pub(super) async fn ask_as(
        &self,
        role: Role,
        namespace: &str,
        operation: Operation,
    ) -> Result<Response, Error> {
        let caller = Caller {
            user: "tester".to_owned(),
            role,
        };
        let request = Request {
            namespace: namespace.to_owned(),
            caller,
            request_key: None,
            operation,
        };
        self.service.handle(request).await
    }

    async fn instances(
        &self,
        namespace: &str,
        operation: Operation,
    ) -> Result<Vec<Instance>, Error> {
        match self.ask(namespace, operation).await? {
            Response::Instances(found) => Ok(found),
            Response::Made(found) => Ok(found.collect()),
            other => panic!("{other:?} instead of instances"),
        }
    }

    pub(super) async fn list(&self, namespace: &str, class: &str) -> Vec<Instance> {
        let operation = Operation::EnumerateInstances {
            class: Name::from(class.to_owned()),
        };
        self.instances(namespace, operation).await.expect(class)
    }

    pub(super) async fn get(&self, namespace: &str, path: &Path) -> Result<Instance, Error> {
        let mut found = self
            .instances(namespace, Operation::GetInstance { path: path.clone() })
            .await?;
        Ok(found.pop().expect("one instance"))
    }

    pub(super) async fn query(&self, namespace: &str, text: &str) -> Result<Vec<Instance>, Error> {
        let query = cim::wql::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        self.instances(namespace, Operation::Query { query }).await
    }

    pub(super) async fn references(
        &self,
        namespace: &str,
        path: &Path,
    ) -> Result<Vec<Instance>, Error> {
        self.instances(
            namespace,
            Operation::References {
                path: path.clone(),
                walk: Walk::default(),
            },
        )
        .await
    }

    pub(super) async fn associators(
        &self,
        namespace: &str,
        path: &Path,
    ) -> Result<Vec<Instance>, Error> {
        self.instances(
            namespace,
            Operation::Associators {
                path: path.clone(),
                walk: Walk::default(),
            },
        )
        .await
    }

    pub(super) async fn invoke(&self, path: Path, method: &str) -> Result<Response, Error> {
        self.call(path, method, Vec::new()).await
    }

    pub(super) async fn call(
        &self,
        path: Path,
        method: &str,
        parameters: Vec<(Name, cim::Value)>,
    ) -> Result<Response, Error> {
        let method = Name::from(method.to_owned());
        self.ask(
            crate::object::NAMESPACE,
            Operation::Invoke {
                path,
                method,
                parameters,
            },
        )
        .await
    }
}

fn service_of(house: House) -> Service {
    let within = std::time::Duration::from_secs(60);
    Service::new(house, Refusals::default(), within)
}

fn service(vmms: &Arc<Vmms>, gate: Box<dyn Gate>) -> Service {
    let house = House::new(Arc::clone(vmms), gate, provider::all());
    service_of(house)
}

async fn define(vmms: &Arc<Vmms>, name: &str, generation: u8) -> Uuid {
    let new = NewVm {
        id: None,
        name: name.to_owned(),
        generation,
        notes: vec!["a note".to_owned()],
        settings: Settings::default(),
    };
    vmms::machine::define(vmms, new, |_| Ok(()))
        .await
        .expect("define")
}

async fn furnish(vmms: &Arc<Vmms>, vm: Uuid, dir: &FilePath) {
    let new = |device| add(vmms, vm, device, None);
    let file = |name: &str| {
        let path = dir.join(name);
        let made = std::fs::File::create(&path).and_then(|f| f.set_len(1 << 20));
        made.map(|()| path).expect("image")
    };
    let controller = new(NewDevice::ScsiController).await.expect("controller");
    let drive = NewDevice::DiskDrive {
        controller: controller.clone(),
        slot: None,
    };
    let drive = new(drive).await.expect("drive");
    let disk = NewDevice::Disk {
        drive,
        path: file("a.img"),
        read_only: false,
    };
    new(disk).await.expect("disk");
    let dvd = NewDevice::DvdDrive {
        controller,
        slot: None,
    };
    let drive = new(dvd).await.expect("DVD drive");
    new(NewDevice::Dvd {
        drive,
        path: file("cd.iso"),
    })
    .await
    .expect("DVD");
    let nic = new(NewDevice::Nic {
        mac: None,
        guid: None,
    })
    .await
    .expect("adapter");
    let connection = NewDevice::NicConnection {
        nic,
        switch: Some("NAT".to_owned()),
        enabled: true,
    };
    new(connection).await.expect("connection");
}

/// A collection with the machine, a collection of that collection, and a point and a snapshot of it.
async fn collect(vmms: &Arc<Vmms>, vm: Uuid) {
    let machines =
        vmms::collection::manage::define(vmms, "machines", None, CollectionKind::Machines).await;
    let machines = machines.expect("collection");
    vmms::collection::manage::add(vmms, machines, vm)
        .await
        .expect("member");
    let above =
        vmms::collection::manage::define(vmms, "all", None, CollectionKind::Management).await;
    let above = above.expect("collection");
    vmms::collection::manage::add(vmms, above, machines)
        .await
        .expect("member");
    let (kind, level) = (PointType::Rct, Some(Consistency::Crash));
    let made =
        vmms::collection::create_point(vmms, machines, kind, level, "g", &Asked::default()).await;
    done(vmms, made.expect("point").1).await;
    let (kind, asked) = (SnapshotKind::Disk, Asked::default());
    let made = vmms::collection::create_snapshot(vmms, machines, kind, level, "s", &asked).await;
    done(vmms, made.expect("snapshot").1).await;
}

async fn done(vmms: &Arc<Vmms>, job: Uuid) {
    let job = vmms.wait(job).await.expect("job");
    assert_eq!(
        job.state,
        JobState::Completed,
        "{}: {:?}",
        job.title,
        job.faults
    );
}
