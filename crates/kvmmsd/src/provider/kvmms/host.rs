//! Kvmms_Host: the host as the service sees it, with what QEMU says of itself.

use std::path::Path as FilePath;

use async_trait::async_trait;
use cim::{Datetime, Instance, Path};
use msvm::class;
use vmms::machine::Vm;
use vmms::point::Point;
use vmms::{Fault, Features, KvmState};

use crate::object::{Object, What};
use crate::view::{Provider, View};

pub(crate) struct HostDetail;

#[async_trait]
impl Provider for HostDetail {
    fn classes(&self) -> &'static [&'static str] {
        &[class::KVMMS_HOST]
    }

    async fn objects(
        &self,
        view: &View,
        _class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        let object = |instance| Object {
            class: class::KVMMS_HOST,
            keys: vec![("Name", view.host.clone())],
            what: What::fixed(instance),
        };
        // QEMU is asked only where somebody may want to know.
        let blank = object(Instance::new(class::KVMMS_HOST));
        if wanted.is_some_and(|path| !blank.is_named_by(path)) {
            return Ok(Vec::new());
        }
        let features = view.vmms.hypervisor.features().await;
        let mut i = own(view);
        match features {
            Ok(features) => qemu(&mut i, &features),
            Err(error) => {
                let fault = Fault::from(error);
                let why: Vec<String> = fault.chain().into_iter().map(Fault::text).collect();
                i.set("QemuProblem", why.join(": ")).set("KvmUsable", false);
            }
        }
        Ok(vec![object(i)])
    }

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        object.fixed()
    }
}

fn count<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}

fn own(view: &View) -> Instance {
    let vmms = &view.vmms;
    let options = &vmms.options;
    let machines = view.all::<Vm>();
    let running: Vec<_> = machines
        .iter()
        .filter(|vm| vmms.machine(vm.id).is_some())
        .collect();
    let store = vmms.dirs.state.join("kvmms.db");
    let mut i = Instance::new(class::KVMMS_HOST);
    i.set("Caption", "kvmms host")
        .set("Description", "The host of this service")
        .set("ElementName", view.host.as_str())
        .set("ServiceVersion", env!("CARGO_PKG_VERSION"))
        .set("StartTime", Datetime::from(vmms.started))
        .set("Acceleration", format!("{:?}", options.acceleration))
        .set("StateDirectory", vmms.dirs.state.display().to_string())
        .set("RunDirectory", vmms.dirs.run.display().to_string())
        .set("Store", store.display().to_string())
        .set("StoreSize", std::fs::metadata(&store).ok().map(|m| m.len()))
        .set("StateDirectoryFree", free(&vmms.dirs.state))
        .set("Machines", count(&machines))
        .set("RunningMachines", count(&running))
        .set("ReferencePoints", count(&view.all::<Point>()))
        .set("VisibleJobs", count(&view.jobs()))
        .set(
            "MaxLayers",
            u32::try_from(options.max_layers).unwrap_or(u32::MAX),
        )
        .set("HoldTime", Datetime::interval(options.hold_time))
        .set("HoldBytes", options.hold_bytes)
        .set("JobKeepTime", Datetime::interval(options.job_keep))
        .set("TamperingPolicy", options.tampering.word())
        .set("Confinement", options.confinement.level.word())
        .set("ConfinementProblem", options.confinement.problem.clone());
    i
}

/// Bytes a service may still write where `dir` is.
fn free(dir: &FilePath) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

fn qemu(i: &mut Instance, features: &Features) {
    let shown = |path: &FilePath| path.display().to_string();
    let firmware = features.firmware.as_ref();
    i.set("QemuPath", shown(&features.qemu))
        .set("QemuVersion", features.version.to_string())
        .set("KvmUsable", features.kvm.is_usable())
        .set("MachineTypeGeneration1", features.machine_gen1.clone())
        .set("MachineTypeGeneration2", features.machine_gen2.clone())
        .set(
            "MachineTypes",
            features.machine_types.iter().cloned().collect::<Vec<_>>(),
        )
        .set("MaxVirtualProcessors", features.max_vcpus)
        .set("FirmwareCode", firmware.map(|f| shown(&f.code)))
        .set(
            "FirmwareVariables",
            firmware.map(|f| shown(&f.vars_template)),
        )
        .set("Sandbox", features.sandbox);
    if let KvmState::Unusable(why) = &features.kvm {
        i.set("KvmProblem", why.as_str());
    }
}
