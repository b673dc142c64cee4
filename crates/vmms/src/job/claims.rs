//! What a job touches, said in one place.
//!
//! Admission, merging, the sweep and the host check read only this. A claim holds from the moment the job's record is durable until its undo has
//! *finished* ([`Job::claims`]), also across restarts and also for jobs that were killed. [`Claims`] has no
//! default, and [`Task::claims`] no wildcard: a new task does not compile until it has said what it touches.

use std::path::PathBuf;

use uuid::Uuid;

use super::{Job, MemberExport, MemberTask, StateChange, Task, UndoLeft};
use crate::point::Proof;

/// What a task works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A machine.
    Vm(Uuid),
    /// A reference point, and with it its machine.
    Point(Uuid),
}

/// How a job takes the machines it works on; who may run beside whom follows from it ([`super::excludes`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Makes way for everything but its like.
    Background,
    /// Beside everything that leaves its instants alone.
    Shared,
    /// Reads frozen layers only: beside what replaces the present, too.
    Frozen,
    /// Brings the machine into that state.
    State(StateChange),
    /// Replaces what everything else works on.
    Replaces,
    /// Needs the machine for itself.
    Alone,
    /// The machine comes or goes with it.
    Whole,
}

/// Everything a job reads, builds on, writes to and deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The machines, each by itself or by one of its points.
    pub machines: Vec<Subject>,
    /// How it takes them.
    pub access: Access,
    /// Whether it changes their layers: the sweep leaves them alone meanwhile.
    pub layers: bool,
    /// The instants whose content it reads: their layers stay.
    pub reads: Vec<Uuid>,
    /// The instants it builds differences on: they stay.
    pub builds_on: Vec<Uuid>,
    /// The instants it deletes.
    pub deletes: Vec<Uuid>,
    /// The instants whose data it drops.
    pub drops_data: Vec<Uuid>,
    /// The directories it exports to.
    pub writes_to: Vec<PathBuf>,
    /// Whatever else it names or is about to make: machines, instants, collections, disks.
    pub others: Vec<Uuid>,
}

impl Claims {
    /// Of a job that is over.
    fn none() -> Self {
        Claims {
            machines: Vec::new(),
            access: Access::Shared,
            layers: false,
            reads: Vec::new(),
            builds_on: Vec::new(),
            deletes: Vec::new(),
            drops_data: Vec::new(),
            writes_to: Vec::new(),
            others: Vec::new(),
        }
    }

    /// Whether it needs this instant to stay.
    pub fn needs(&self, instant: Uuid) -> bool {
        self.reads.contains(&instant) || self.builds_on.contains(&instant)
    }

    /// Every identifier it names.
    pub fn ids(&self) -> Vec<Uuid> {
        let machines = self.machines.iter().map(|subject| match subject {
            Subject::Vm(id) | Subject::Point(id) => id,
        });
        machines
            .chain(&self.reads)
            .chain(&self.builds_on)
            .chain(&self.deletes)
            .chain(&self.drops_data)
            .chain(&self.others)
            .copied()
            .collect()
    }
}

impl Job {
    /// Whether it has ended and nothing of it is left to be taken back.
    pub fn is_over(&self) -> bool {
        self.state.is_final() && self.undo.is_none()
    }

    /// What it claims now: everything until its undo has finished. Where an undo failed and is tried again, the directory in which
    /// its files are left.
    pub fn claims(&self) -> Claims {
        match (self.state.is_final(), self.undo) {
            (false, _) | (true, Some(UndoLeft::Underway)) => self.task.claims(),
            (true, Some(UndoLeft::Failed)) => Claims {
                writes_to: self.task.claims().writes_to,
                ..Claims::none()
            },
            (true, None) => Claims::none(),
        }
    }
}

fn machines(members: &[MemberTask]) -> Vec<Subject> {
    members.iter().map(|m| Subject::Vm(m.vm)).collect()
}

fn instants(members: &[MemberTask]) -> Vec<Uuid> {
    members.iter().map(|m| m.point).collect()
}

fn with(first: &[Uuid], members: &[MemberTask]) -> Vec<Uuid> {
    [first, &instants(members)].concat()
}

/// The export of instants of a collection.
fn collection_export(
    whole: Uuid,
    base: Option<Uuid>,
    directory: &std::path::Path,
    members: &[MemberExport],
) -> Claims {
    let disks = members.iter().flat_map(|m| m.disks.iter().copied());
    Claims {
        machines: members.iter().map(|m| Subject::Vm(m.vm)).collect(),
        access: Access::Frozen,
        layers: false,
        reads: members.iter().map(|m| m.point).collect(),
        builds_on: members.iter().filter_map(|m| m.base).collect(),
        deletes: Vec::new(),
        drops_data: Vec::new(),
        writes_to: vec![directory.to_owned()],
        others: disks.chain([whole]).chain(base).collect(),
    }
}

impl Task {
    /// What it touches.
    pub fn claims(&self) -> Claims {
        // Of one machine; nothing of it is read, deleted or exported.
        let one = |vm: &Uuid, access, layers, others: &[Uuid]| Claims {
            machines: vec![Subject::Vm(*vm)],
            access,
            layers,
            reads: Vec::new(),
            builds_on: Vec::new(),
            deletes: Vec::new(),
            drops_data: Vec::new(),
            writes_to: Vec::new(),
            others: others.to_vec(),
        };
        // Of several; the same.
        let several = |members: &[MemberTask], access, layers, others: Vec<Uuid>| Claims {
            machines: machines(members),
            access,
            layers,
            reads: Vec::new(),
            builds_on: Vec::new(),
            deletes: Vec::new(),
            drops_data: Vec::new(),
            writes_to: Vec::new(),
            others,
        };
        // Of no machine that is there.
        let elsewhere = |others: Vec<Uuid>| several(&[], Access::Shared, false, others);
        match self {
            Task::ChangeState { vm, to } => one(vm, Access::State(*to), false, &[]),
            Task::DestroyVm { vm } => one(vm, Access::Whole, true, &[]),
            Task::CreatePoint { vm, point, .. } => one(vm, Access::Shared, true, &[*point]),
            Task::DestroyPoint { point } => Claims {
                machines: vec![Subject::Point(*point)],
                layers: true,
                deletes: vec![*point],
                ..elsewhere(Vec::new())
            },
            Task::RemoveData { point } => Claims {
                machines: vec![Subject::Point(*point)],
                layers: true,
                drops_data: vec![*point],
                ..elsewhere(Vec::new())
            },
            Task::ExportPoint {
                point,
                base,
                directory,
                disks,
            } => Claims {
                machines: vec![Subject::Point(*point)],
                access: Access::Frozen,
                layers: false,
                reads: vec![*point],
                builds_on: base.iter().copied().collect(),
                deletes: Vec::new(),
                drops_data: Vec::new(),
                writes_to: vec![directory.clone()],
                others: disks.clone(),
            },
            Task::AuditPoint { point, base, proof } => Claims {
                machines: vec![Subject::Point(*point)],
                access: Access::Frozen,
                reads: match proof {
                    Proof::Layers => vec![*point, *base],
                    Proof::Hashes => vec![*point],
                },
                builds_on: vec![*base],
                ..elsewhere(Vec::new())
            },
            Task::CreateGroupPoint {
                group,
                point,
                members,
                ..
            } => several(
                members,
                Access::Shared,
                true,
                with(&[*group, *point], members),
            ),
            Task::DestroyGroupPoint { point, members } => Claims {
                deletes: instants(members),
                ..several(members, Access::Shared, true, vec![*point])
            },
            Task::RemoveGroupData { point, members } => Claims {
                drops_data: instants(members),
                ..several(members, Access::Shared, true, vec![*point])
            },
            Task::ExportGroupPoint {
                point,
                base,
                directory,
                members,
            } => collection_export(*point, *base, directory, members),
            Task::CreateSnapshot { vm, snapshot, .. } => {
                one(vm, Access::Shared, true, &[*snapshot])
            }
            Task::ApplySnapshot { vm, snapshot } => one(vm, Access::Replaces, true, &[*snapshot]),
            Task::DestroySnapshot { vm, snapshot, .. } => Claims {
                deletes: vec![*snapshot],
                ..one(vm, Access::Shared, true, &[])
            },
            Task::ClearSnapshot { vm, snapshot } => Claims {
                drops_data: vec![*snapshot],
                ..one(vm, Access::Shared, false, &[])
            },
            Task::ConvertSnapshot { vm, snapshot } => Claims {
                deletes: vec![*snapshot],
                ..one(vm, Access::Shared, false, &[])
            },
            Task::CreateGroupSnapshot {
                group,
                snapshot,
                members,
                ..
            } => several(
                members,
                Access::Shared,
                true,
                with(&[*group, *snapshot], members),
            ),
            Task::ApplyGroupSnapshot { snapshot, members } => {
                several(members, Access::Replaces, true, with(&[*snapshot], members))
            }
            Task::DestroyGroupSnapshot { snapshot, members } => Claims {
                deletes: instants(members),
                ..several(members, Access::Shared, true, vec![*snapshot])
            },
            Task::ConvertGroupSnapshot { snapshot, members } => Claims {
                deletes: instants(members),
                ..several(members, Access::Shared, false, vec![*snapshot])
            },
            Task::ExportGroupSnapshot {
                snapshot,
                base,
                directory,
                members,
                merge: _,
            } => collection_export(*snapshot, *base, directory, members),
            Task::ExportSystem { vm, order } => Claims {
                machines: vec![Subject::Vm(*vm)],
                // It may take a snapshot of its own.
                access: Access::Shared,
                layers: false,
                reads: order
                    .snapshot
                    .iter()
                    .chain(&order.others)
                    .copied()
                    .collect(),
                builds_on: order.base.into_iter().collect(),
                deletes: Vec::new(),
                drops_data: Vec::new(),
                writes_to: vec![order.directory.clone()],
                others: Vec::new(),
            },
            Task::Tidy { vm } => one(vm, Access::Background, true, &[]),
            Task::CreateImage(_)
            | Task::ResizeImage { .. }
            | Task::ConvertImage { .. }
            | Task::ValidateImage { .. }
            | Task::CleanHost { .. }
            // Each machine is ended by a job of its own.
            | Task::ShutDownGuests { .. }
            | Task::Refuse { .. }
            | Task::Verify { .. } => elsewhere(Vec::new()),
            Task::Import { vm, .. } => one(vm, Access::Whole, false, &[]),
            Task::ImportGroup { group, members, .. } => {
                let vms = members.iter().map(|m| m.vm);
                elsewhere(vms.chain([*group]).collect())
            }
            Task::ImportSnapshots {
                vm,
                snapshots,
                descends_from,
                ..
            } => {
                let named = snapshots.iter().map(|s| s.snapshot);
                let named: Vec<Uuid> = named.chain(*descends_from).collect();
                one(vm, Access::Alone, true, &named)
            }
            Task::AdoptPoint { vm, point, .. } => one(vm, Access::Alone, false, &[*point]),
            Task::ValidatePlanned { vm } => one(vm, Access::Shared, false, &[]),
            Task::Realize { vm } => one(vm, Access::Alone, false, &[]),
            Task::BootExports(order) => elsewhere(order.members.iter().map(|m| m.vm).collect()),
        }
    }
}
