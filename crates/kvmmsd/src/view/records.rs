//! Records as the caller sees them.

use std::sync::Arc;

use uuid::Uuid;
use vmms::collection::{Collection, CollectionPoint, CollectionSnapshot};
use vmms::db::Row;
use vmms::job::Job;
use vmms::machine::Vm;
use vmms::point::Point;
use vmms::snapshot::Snapshot;
use vmms::{Element, Fault, Kind};

use super::View;
use crate::object::{Object, What};

/// A kind of record that clients see as an object.
pub(crate) trait Shown: Row<Fault = Fault> {
    /// What stands behind the object.
    fn what(record: Arc<Self>) -> What;
}

macro_rules! shown {
    ($($record:ident as $what:ident;)*) => {
        $(impl Shown for $record {
            fn what(record: Arc<Self>) -> What {
                What::$what(record)
            }
        })*
    };
}

shown! {
    Vm as Vm;
    Point as Point;
    Snapshot as Snapshot;
    Collection as Collection;
    CollectionPoint as CollectionPoint;
    CollectionSnapshot as CollectionSnapshot;
}

impl View {
    fn sees<T: Shown>(&self, record: &Arc<T>) -> bool {
        self.may_see(&T::what(Arc::clone(record)))
    }

    /// All records of a kind.
    pub(crate) fn all<T: Shown>(&self) -> Vec<Arc<T>> {
        let mut all = self.vmms.db.all::<T>();
        all.retain(|record| self.sees(record));
        all
    }

    /// The record with this identifier.
    pub(crate) fn get<T: Shown>(&self, id: Uuid) -> Result<Arc<T>, Fault> {
        let record = self.vmms.db.get::<T>(id)?;
        if self.sees(&record) {
            Ok(record)
        } else {
            Err(T::missing(id))
        }
    }

    /// The finished snapshot of that id.
    pub(crate) fn snapshot(&self, id: Uuid) -> Option<Arc<Snapshot>> {
        self.get::<Snapshot>(id).ok().filter(|s| s.complete)
    }

    /// The visible jobs, the newest first.
    pub(crate) fn jobs(&self) -> Vec<Job> {
        let jobs = self.vmms.jobs().into_iter();
        jobs.filter_map(|job| self.seen(job)).collect()
    }

    /// A visible job.
    pub(crate) fn job(&self, id: Uuid) -> Option<Job> {
        self.vmms.job(id).ok().and_then(|job| self.seen(job))
    }

    /// A job as it is stored, long after its object has gone.
    pub(crate) async fn past_job(&self, id: Uuid) -> Result<Option<Job>, Fault> {
        match self.vmms.db.past_job(id).await {
            Ok(job) => Ok(self.seen(job)),
            Err(fault) if fault.kind() == Kind::NotFound => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// The newest jobs that are stored, at most so many.
    pub(crate) async fn past_jobs(&self, most: usize) -> Result<Vec<Job>, Fault> {
        let stored = self.vmms.db.newest_history(most).await?.into_iter();
        Ok(stored.filter_map(|job| self.seen(job)).collect())
    }

    /// What is being done to a machine. Whoever sees the machine is told, also of a job that they do not see.
    pub(crate) fn under_way(&self, vm: Uuid) -> Vec<Arc<Job>> {
        let mut jobs = Job::affecting(&self.vmms.db, &Element::Vm(vm));
        jobs.retain(|j| !j.state.is_final());
        jobs
    }

    /// A failure with names beside the identifiers in its arguments, but those of what the caller does not see.
    pub(crate) fn told(&self, fault: &Fault) -> Fault {
        let mut out = vmms::told::named(&self.vmms, fault);
        self.unname(&mut out, fault);
        out
    }

    fn unname(&self, named: &mut Fault, plain: &Fault) {
        for (name, argument) in named.arguments.iter_mut().zip(&plain.arguments) {
            if name != argument && !self.may_name(argument, name) {
                name.clone_from(argument);
            }
        }
        for (named, plain) in named.causes.iter_mut().zip(&plain.causes) {
            self.unname(named, plain);
        }
    }

    /// Whether the caller sees what an identifier was made a name of; machines' disks, points and snapshots are named with them.
    fn may_name(&self, argument: &str, name: &str) -> bool {
        let kinds = [
            Element::Collection,
            Element::CollectionPoint,
            Element::CollectionSnapshot,
            Element::Job,
        ];
        let id = Uuid::parse_str(argument).ok();
        let sees = |element| {
            self.existing(&element)
                .is_none_or(|o| self.may_see(&o.what))
        };
        let machines = self.vmms.db.all::<Vm>();
        let mut hidden = machines.iter().filter(|vm| !self.sees(vm));
        id.is_none_or(|id| kinds.iter().all(|kind| sees(kind(id))))
            && !hidden.any(|vm| name.contains(&vm.name))
    }

    fn seen(&self, job: Job) -> Option<Job> {
        match Object::of_job(job).what {
            what if !self.may_see(&what) => None,
            What::Job(job) => Some(*job),
            _ => None,
        }
    }
}
