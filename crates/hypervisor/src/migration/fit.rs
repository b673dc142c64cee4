//! Whether a machine can go from one QEMU to another: told before anything is sent.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::channel::{Compression, Multifd, Terms};
use super::state::Side;
use crate::config::{Generation, MachineConfig};
use crate::probe::Features;
use crate::qmp::Version;

/// What a QEMU has for moves, asked from itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MigrationFeatures {
    /// Names of `query-migrate-capabilities`.
    pub capabilities: BTreeSet<String>,
    /// Several channels can pack with Zstandard.
    pub zstd: bool,
    /// It was built with TLS.
    pub tls: bool,
    /// A destination whose loading failed stays to be asked why (QEMU 9.1).
    pub stays_on_error: bool,
    /// A mirror can begin in the background and become write-blocking later (QEMU 8.2).
    pub job_change: bool,
    /// Disks can be taken and given up without running (QEMU 10.0).
    pub set_active: bool,
}

impl MigrationFeatures {
    /// Without these a move is not safe: see [`crate::migration`].
    pub(crate) const NEEDED: [&'static str; 4] = [
        "events",
        "return-path",
        "pause-before-switchover",
        "late-block-activate",
    ];

    /// Whether it has that capability.
    #[must_use]
    pub fn has(&self, capability: &str) -> bool {
        self.capabilities.contains(capability)
    }

    /// The terms that come nearest to the wishes among those that both ends have. What was left out shows in them.
    #[must_use]
    pub fn agree(&self, other: &Self, wishes: &Terms) -> Terms {
        let both = |capability| self.has(capability) && other.has(capability);
        let multifd = wishes.multifd.filter(|_| both("multifd"));
        let compression = |wanted| match wanted {
            Compression::Zstd if self.zstd && other.zstd => Compression::Zstd,
            _ => Compression::None,
        };
        Terms {
            multifd: multifd.map(|multifd| Multifd {
                compression: compression(multifd.compression),
                ..multifd
            }),
            bitmaps: wishes.bitmaps && both("dirty-bitmaps"),
        }
    }
}

/// Why a machine cannot go, or what is risky about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// The destination's QEMU does not know the machine type.
    #[error("QEMU {version} at the destination does not have the machine type {machine_type}")]
    MachineType {
        /// The type of the machine.
        machine_type: String,
        /// The destination's version.
        version: Version,
    },
    /// The types differ.
    #[error(
        "the machine type is {source_type} at the source and {destination_type} at the destination"
    )]
    OtherMachineType {
        /// At the source.
        source_type: String,
        /// At the destination.
        destination_type: String,
    },
    /// The destination's QEMU is older than the source's. It may work; nobody promises it.
    #[error("QEMU {destination} at the destination is older than QEMU {origin} at the source")]
    Older {
        /// The source's version.
        origin: Version,
        /// The destination's version.
        destination: Version,
    },
    /// One side runs the guest on KVM, the other emulates it.
    #[error("the guest runs on KVM at the {kvm} only")]
    Accelerator {
        /// The side with KVM.
        kvm: Side,
    },
    /// A side lacks a capability that a safe move needs.
    #[error("QEMU at the {side} lacks `{capability}`")]
    Capability {
        /// The side.
        side: Side,
        /// QEMU's name of it.
        capability: String,
    },
    /// A side's QEMU was built without TLS, and TLS is wanted.
    #[error("QEMU at the {side} was built without TLS")]
    Tls {
        /// The side.
        side: Side,
    },
    /// No firmware for a generation 2 machine.
    #[error("there is no UEFI firmware at the destination")]
    Firmware,
    /// More processors than the destination's QEMU offers.
    #[error("the machine has {wanted} processors, the destination allows {most}")]
    Processors {
        /// Of the machine.
        wanted: u32,
        /// Most there.
        most: u32,
    },
    /// The processors' numbers differ.
    #[error("{what} is {origin} at the source and {destination} at the destination")]
    Differs {
        /// What: memory in bytes, processors, processor vendor, machine GUID.
        what: String,
        /// At the source.
        origin: String,
        /// At the destination.
        destination: String,
    },
    /// The guest sees processor features that the destination has not.
    #[error("the destination's processor lacks features the guest may use: {}", missing.join(", "))]
    CpuFeatures {
        /// The words of features with the bits that are missing, for example `CPUID.7H.EBX bits 0x10000`.
        missing: Vec<String>,
    },
    /// A device is on one side only, or in another place.
    #[error("device {device} is {origin} at the source and {destination} at the destination")]
    Device {
        /// Its place or id.
        device: String,
        /// At the source.
        origin: String,
        /// At the destination.
        destination: String,
    },
    /// Something of the machine cannot move at all, in QEMU's words.
    #[error("the machine cannot move: {reason}")]
    Blocked {
        /// QEMU's reason.
        reason: String,
    },
}

impl Unfit {
    /// A warning: it may work.
    #[must_use]
    pub fn is_risk(&self) -> bool {
        matches!(self, Self::Older { .. })
    }

    /// What two hosts show before any process was started. `machine_type` is that of the running machine.
    #[must_use]
    pub fn between(
        config: &MachineConfig,
        machine_type: &str,
        source: &Features,
        destination: &Features,
        tls: bool,
    ) -> Vec<Self> {
        let mut found = Vec::new();
        if !destination.machine_types.contains(machine_type) {
            found.push(Self::MachineType {
                machine_type: machine_type.to_owned(),
                version: destination.version,
            });
        }
        older(source.version, destination.version, &mut found);
        let kvm = |features: &Features| features.use_kvm(config.acceleration).unwrap_or(false);
        accelerators(kvm(source), kvm(destination), &mut found);
        if config.vcpus > destination.max_vcpus {
            found.push(Self::Processors {
                wanted: config.vcpus,
                most: destination.max_vcpus,
            });
        }
        let firmware = |features: &Features| features.firmware.is_some();
        if config.generation == Generation::Gen2 && firmware(source) && !firmware(destination) {
            found.push(Self::Firmware);
        }
        for (side, features) in [(Side::Source, source), (Side::Destination, destination)] {
            let missing = MigrationFeatures::NEEDED
                .into_iter()
                .filter(|capability| !features.migration.has(capability));
            found.extend(missing.map(|capability| Self::Capability {
                side,
                capability: capability.to_owned(),
            }));
            if tls && !features.migration.tls {
                found.push(Self::Tls { side });
            }
        }
        found
    }
}

/// One word of processor features as the guest sees it (`X86CPUFeatureWordInfo`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FeatureWord {
    /// For example `CPUID.7H.0H.EBX`.
    pub word: String,
    /// Its bits.
    pub bits: u32,
}

/// A machine as its guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// The machine's GUID.
    pub id: Uuid,
    /// QEMU's version.
    pub version: Version,
    /// Its versioned machine type.
    pub machine_type: String,
    /// It runs on KVM.
    pub kvm: bool,
    /// Memory in bytes.
    pub memory: u64,
    /// Virtual processors.
    pub processors: usize,
    /// Vendor of the processor, for example `GenuineIntel`.
    pub cpu_vendor: String,
    /// Features of the processor.
    pub cpu_features: Vec<FeatureWord>,
    /// Devices by place: PCI `bus/slot.function` and our own ids.
    pub devices: BTreeMap<String, String>,
    /// Why it cannot move at all, in QEMU's words.
    pub blocked: Vec<String>,
}

impl Hardware {
    /// Why this machine, at the source, cannot become that one, which waits at the destination. Empty: it can.
    #[must_use]
    pub fn unfit_for(&self, destination: &Self) -> Vec<Unfit> {
        let mut found: Vec<Unfit> = self
            .blocked
            .iter()
            .map(|reason| Unfit::Blocked {
                reason: reason.clone(),
            })
            .collect();
        if self.machine_type != destination.machine_type {
            found.push(Unfit::OtherMachineType {
                source_type: self.machine_type.clone(),
                destination_type: destination.machine_type.clone(),
            });
        }
        older(self.version, destination.version, &mut found);
        accelerators(self.kvm, destination.kvm, &mut found);
        let mut differs = |what: &str, origin: String, destination: String| {
            if origin != destination {
                found.push(Unfit::Differs {
                    what: what.to_owned(),
                    origin,
                    destination,
                });
            }
        };
        differs("the GUID", self.id.to_string(), destination.id.to_string());
        differs(
            "the memory in bytes",
            self.memory.to_string(),
            destination.memory.to_string(),
        );
        differs(
            "the number of processors",
            self.processors.to_string(),
            destination.processors.to_string(),
        );
        differs(
            "the vendor of the processor",
            self.cpu_vendor.clone(),
            destination.cpu_vendor.clone(),
        );
        let missing = self.missing_features(destination);
        if !missing.is_empty() {
            found.push(Unfit::CpuFeatures { missing });
        }
        let places: BTreeSet<&String> = self
            .devices
            .keys()
            .chain(destination.devices.keys())
            .collect();
        let of = |devices: &BTreeMap<String, String>, place: &String| {
            devices
                .get(place)
                .cloned()
                .unwrap_or_else(|| "absent".to_owned())
        };
        for place in places {
            let (origin, there) = (of(&self.devices, place), of(&destination.devices, place));
            if origin != there {
                found.push(Unfit::Device {
                    device: place.clone(),
                    origin,
                    destination: there,
                });
            }
        }
        found
    }

    fn missing_features(&self, destination: &Self) -> Vec<String> {
        let there = |word: &str| {
            let found = destination.cpu_features.iter().find(|f| f.word == word);
            found.map_or(0, |feature| feature.bits)
        };
        let lacking = self.cpu_features.iter().filter_map(|feature| {
            let missing = feature.bits & !there(&feature.word);
            (missing != 0).then(|| format!("{} bits {missing:#x}", feature.word))
        });
        lacking.collect()
    }
}

fn older(origin: Version, destination: Version, found: &mut Vec<Unfit>) {
    if (destination.major, destination.minor) < (origin.major, origin.minor) {
        found.push(Unfit::Older {
            origin,
            destination,
        });
    }
}

fn accelerators(source: bool, destination: bool, found: &mut Vec<Unfit>) {
    if source != destination {
        let kvm = if source {
            Side::Source
        } else {
            Side::Destination
        };
        found.push(Unfit::Accelerator { kvm });
    }
}
