//! The records of this domain.

use std::sync::Arc;

use engine::Kinds;
use store::Store;
use uuid::Uuid;

use crate::collection::{Collection, CollectionPoint, CollectionSnapshot};
use crate::job::Job;
use crate::machine::{HostBoot, MachineUser, Vm};
use crate::migration::{Arrival, Host, MigrationService, Permit};
use crate::point::Point;
use crate::snapshot::Snapshot;
use crate::trusted::KnownImage;
use crate::{Fault, Result, fault, guid};

pub use engine::Row;

/// The records in memory, and the one way to change them.
pub type Db = engine::Db<Fault>;
/// Changes being put together.
pub type Draft<'db> = engine::Draft<'db, Fault>;

macro_rules! rows {
    ($($row:ty = $prefix:literal, $missing:ident;)*) => {
        $(impl Row for $row {
            type Fault = Fault;
            const PREFIX: &'static str = $prefix;

            fn id(&self) -> Uuid {
                self.id
            }

            fn missing(id: Uuid) -> Fault {
                fault!($missing, guid(id))
            }
        })*

        fn kinds() -> Kinds<Fault> {
            Kinds::default()$(.and::<$row>())*.and::<Job>()
        }
    };
}

rows! {
    Vm = "vm/", VmNotFound;
    Point = "point/", PointNotFound;
    Collection = "group/", CollectionNotFound;
    CollectionPoint = "group-point/", PointNotFound;
    CollectionSnapshot = "group-snapshot/", SnapshotNotFound;
    Snapshot = "snapshot/", SnapshotNotFound;
    HostBoot = "host-boot/", BootUnknown;
    MachineUser = "machine-user/", VmNotFound;
    KnownImage = "known-image/", ImageMissing;
    Host = "trusted-host/", HostUnknown;
    Permit = "permit/", MoveUnknown;
    Arrival = "arrival/", MoveUnknown;
    MigrationService = "migration-service/", MigrationNetworkNotFound;
}

/// Reads everything that is stored but the history of jobs.
pub(crate) async fn open(store: Arc<dyn Store>) -> Result<Db> {
    Db::open(store, kinds()).await
}
