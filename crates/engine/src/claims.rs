//! What a job touches, said in one place.
//!
//! Admission, merging, the sweep and the host check read only this. [`Claims`] has no default: a new kind of work does not compile until it has
//! said what it touches.

use std::path::PathBuf;

use uuid::Uuid;

/// What a task works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A machine.
    Vm(Uuid),
    /// A reference point, and with it its machine.
    Point(Uuid),
}

/// How a job takes the machines it works on; who may run beside whom follows from it ([`crate::excludes`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Makes way for everything but its like.
    Background,
    /// Beside everything that leaves its instants alone.
    Shared,
    /// Reads frozen layers only: beside what replaces the present, too.
    Frozen,
    /// Brings the machine into another state: one at a time, but one that has the last word overtakes one that waits.
    State {
        /// Whether it overtakes those that wait.
        last_word: bool,
        /// Whether it waits for a guest that may never answer.
        waits: bool,
    },
    /// Replaces what everything else works on.
    Replaces,
    /// Needs the machine for itself.
    Alone,
    /// The machine comes or goes with it.
    Whole,
}

/// Whether work changes the layers of its machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// It leaves them as they are.
    Kept,
    /// It changes them: the sweep leaves them alone meanwhile.
    Changed,
}

/// Everything a job reads, builds on, writes to and deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The machines, each by itself or by one of its points.
    pub machines: Vec<Subject>,
    /// How it takes them.
    pub access: Access,
    /// Whether it changes their layers.
    pub layers: Layers,
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
    /// Of machines, by themselves or by their points; nothing of them is read, deleted or exported.
    pub fn of(
        machines: Vec<Subject>,
        access: Access,
        layers: Layers,
        others: impl IntoIterator<Item = Uuid>,
    ) -> Self {
        Claims {
            machines,
            access,
            layers,
            reads: Vec::new(),
            builds_on: Vec::new(),
            deletes: Vec::new(),
            drops_data: Vec::new(),
            writes_to: Vec::new(),
            others: others.into_iter().collect(),
        }
    }

    /// Of one machine.
    pub fn of_machine(vm: Uuid, access: Access, layers: Layers, others: &[Uuid]) -> Self {
        Self::of(vec![Subject::Vm(vm)], access, layers, others.to_vec())
    }

    /// Of the machine of a point.
    pub fn of_point(point: Uuid, access: Access, layers: Layers) -> Self {
        Self::of(vec![Subject::Point(point)], access, layers, [])
    }

    /// Of no machine that is there.
    pub fn of_no_machine(others: &[Uuid]) -> Self {
        Self::of(Vec::new(), Access::Shared, Layers::Kept, others.to_vec())
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
