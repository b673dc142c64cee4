//! What a machine needs of a host, as bytes that one host writes and another reads before anything moves.
//!
//! It is told from the record, and from the process where the machine runs. What only a process at the destination can tell (its
//! processor's features, the places of devices) is compared when a move is checked or begins.

use hypervisor::migration::{Side, Unfit};
use hypervisor::qmp::Version;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::machine::Vm;
use crate::{Fault, Result, Vmms, fault, guid};

/// Before the JSON, so that foreign bytes are told from ours.
const MARK: &[u8] = b"kvmms-compatibility-1\n";
/// No machine needs more bytes to tell.
const LONGEST: usize = 64 << 10;

/// What a machine needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Needs {
    vm: Uuid,
    host: String,
    generation: u8,
    /// Fixed at its first start.
    machine_type: Option<String>,
    version: Version,
    kvm: bool,
    processors: u32,
    /// MiB.
    memory: u64,
    /// Vendor of the processor and words of its features, where it runs.
    #[serde(default)]
    vendor: Option<String>,
    #[serde(default)]
    features: Vec<(String, u32)>,
}

/// One trait of the hardware a machine depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vector {
    /// Which trait: 1 processors, 2 memory in MiB, from 256 on the words of processor features in QEMU's order.
    pub id: u32,
    /// Whether the destination needs at least that much; else at least these bits.
    pub amount: bool,
    /// How much, or which bits.
    pub info: u64,
}

async fn needs(vmms: &Vmms, vm: &Vm) -> Result<Needs> {
    let own = vmms.hypervisor.features().await?;
    let mut needs = Needs {
        vm: vm.id,
        host: vmms.host.clone(),
        generation: vm.generation,
        machine_type: vm.machine_type.clone(),
        version: own.version,
        kvm: own.use_kvm(vmms.options.acceleration)?,
        processors: vm.processor.count,
        memory: vm.memory.quantity,
        vendor: None,
        features: Vec::new(),
    };
    if let Some(machine) = vmms.machine(vm.id) {
        let hardware = machine.hardware().await?;
        needs.kvm = hardware.kvm;
        needs.version = hardware.version;
        needs.vendor = Some(hardware.cpu_vendor);
        let words = hardware.cpu_features.into_iter();
        needs.features = words.map(|f| (f.word, f.bits)).collect();
    }
    Ok(needs)
}

/// What a machine needs, as bytes for [`reasons_against`] of another host.
pub async fn info(vmms: &Vmms, vm: Uuid) -> Result<Vec<u8>> {
    let vm = vmms.db.get::<Vm>(vm)?;
    let needs = needs(vmms, &vm).await?;
    let mut out = MARK.to_vec();
    serde_json::to_writer(&mut out, &needs).map_err(|e| fault!(Internal, e))?;
    Ok(out)
}

/// The same trait by trait.
pub async fn vectors(vmms: &Vmms, vm: Uuid) -> Result<Vec<Vector>> {
    let vm = vmms.db.get::<Vm>(vm)?;
    let needs = needs(vmms, &vm).await?;
    let amount = |id, info| Vector {
        id,
        amount: true,
        info,
    };
    let mut out = vec![
        amount(1, u64::from(needs.processors)),
        amount(2, needs.memory),
    ];
    for (id, (_, bits)) in (256..).zip(&needs.features) {
        out.push(Vector {
            id,
            amount: false,
            info: u64::from(*bits),
        });
    }
    Ok(out)
}

/// Why the machine that these bytes tell of cannot run on this host. Empty: nothing speaks against it so far.
pub async fn reasons_against(vmms: &Vmms, info: &[u8]) -> Result<Vec<Fault>> {
    let unreadable = |why: String| fault!(CompatibilityUnreadable, why);
    if info.len() > LONGEST {
        return Err(unreadable(format!("{} bytes are too many", info.len())));
    }
    let json = info.strip_prefix(MARK);
    let json = json.ok_or_else(|| unreadable("they are not of kvmms".to_owned()))?;
    let needs: Needs = serde_json::from_slice(json).map_err(|e| unreadable(e.to_string()))?;
    let own = vmms.hypervisor.features().await?;
    let here = own.use_kvm(vmms.options.acceleration)?;
    let mut found = Vec::new();
    if let Some(machine_type) = needs.machine_type.clone()
        && !own.machine_types.contains(&machine_type)
    {
        let version = own.version;
        found.push(Unfit::MachineType {
            machine_type,
            version,
        });
    }
    if needs.kvm != here {
        let kvm = if needs.kvm {
            Side::Source
        } else {
            Side::Destination
        };
        found.push(Unfit::Accelerator { kvm });
    }
    if needs.processors > own.max_vcpus {
        let (wanted, most) = (needs.processors, own.max_vcpus);
        found.push(Unfit::Processors { wanted, most });
    }
    if needs.generation == 2 && own.firmware.is_none() {
        found.push(Unfit::Firmware);
    }
    let told = |why: &Unfit| fault!(IncompatibleHost, guid(needs.vm), needs.host, vmms.host, why);
    Ok(found.iter().map(told).collect())
}
