//! Msvm_SnapshotCollection, what else is known of it, and the methods of Msvm_CollectionSnapshotService.

use std::sync::Arc;

use cim::{Instance, Path};
use msvm::{class, params};
use uuid::Uuid;
use vmms::collection::{self, CollectionPoint, CollectionSnapshot, MemberPoint};
use vmms::fault;
use vmms::snapshot::{Snapshot, SnapshotKind};

use super::collection::collection_reference;
use super::collection_instant::{Collected, level, reference};
use super::{expect_class, given, given_bool, given_text, in_settings, snapshot};
use crate::object::{self, Object, What};
use crate::view::{Call, CallError, CallResult, Outcome, View, unserved};

/// SnapshotType of a snapshot of the disks only, from the range that is left to vendors.
const DISK_ONLY: u16 = 32771;

impl Collected for CollectionSnapshot {
    const CLASSES: &'static [&'static str; 2] = &[
        class::MSVM_SNAPSHOT_COLLECTION,
        class::KVMMS_SNAPSHOT_COLLECTION_DETAIL,
    ];
    const PARTS: &'static str = "Snapshots";

    fn object(record: Arc<Self>) -> Object {
        Object::of_collection_snapshot(record)
    }

    fn of(what: &What) -> Option<&Arc<Self>> {
        match what {
            What::CollectionSnapshot(snapshot) => Some(snapshot),
            _ => None,
        }
    }

    fn part(view: &View, member: &MemberPoint) -> Option<Object> {
        let part = view.get::<Snapshot>(member.point).ok();
        part.map(Object::of_snapshot)
    }

    fn whole(part: &What) -> Option<Uuid> {
        match part {
            What::Snapshot(part) => part.collection_snapshot,
            _ => None,
        }
    }

    fn instance(&self, _view: &View, i: &mut Instance) {
        i.set("Caption", "Snapshot Collection").set(
            "Description",
            "Snapshots of the machines of a collection, of one instant",
        );
    }

    fn detail(&self, i: &mut Instance) {
        i.set("Caption", "Snapshot Collection Detail")
            .set("Description", "What is known of a collection's snapshot")
            .set("SnapshotType", kind_number(self.kind))
            .set("ConsistencyLevel", level(self.consistency));
    }
}

fn kind_number(kind: SnapshotKind) -> u16 {
    match kind {
        SnapshotKind::Full => 1,
        SnapshotKind::Recovery => 2,
        SnapshotKind::Disk => DISK_ONLY,
    }
}

/// Calls a method of Msvm_CollectionSnapshotService.
pub(crate) async fn call(view: &View, call: &Call<'_>) -> CallResult {
    use msvm::method::CollectionSnapshotService as Method;
    use params::collection_snapshot_service as p;
    let vmms = &view.vmms;
    let Ok(method) = call.method.parse() else {
        return Err(unserved(call.target.class, call.method));
    };
    match method {
        Method::CreateSnapshot => create(view, call).await,
        Method::ApplySnapshot => {
            let given = p::ApplySnapshotIn::read(call.parameters)?;
            let path = given.snapshot_collection.as_ref();
            let id = reference::<CollectionSnapshot>(view, "SnapshotCollection", path).await?;
            let job = collection::apply_snapshot(vmms, id, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::DestroySnapshot => {
            let given = p::DestroySnapshotIn::read(call.parameters)?;
            let path = given.affected_snapshot_collection.as_ref();
            let id =
                reference::<CollectionSnapshot>(view, "AffectedSnapshotCollection", path).await?;
            let job = collection::destroy_snapshot(vmms, id, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::ConvertToReferencePoint => {
            let given = p::ConvertToReferencePointIn::read(call.parameters)?;
            let path = given.affected_snapshot_collection.as_ref();
            let id =
                reference::<CollectionSnapshot>(view, "AffectedSnapshotCollection", path).await?;
            let job = collection::convert_snapshot(vmms, id, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::ExportSnapshot => export(view, call).await,
        Method::RequestStateChange | Method::StartService | Method::StopService => {
            Err(unserved(call.target.class, call.method))
        }
    }
}

async fn create(view: &View, call: &Call<'_>) -> CallResult {
    use params::collection_snapshot_service as p;
    let read = p::CreateSnapshotIn::read(call.parameters)?;
    let collection = collection_reference(view, "Collection", read.collection.as_ref()).await?;
    let kind = match read.snapshot_type {
        Some(1) | None => SnapshotKind::Full,
        Some(2) => SnapshotKind::Recovery,
        Some(DISK_ONLY) => SnapshotKind::Disk,
        Some(other) => {
            let why = "1 (standard), 2 (recovery) and 32771 (disks only) exist";
            return Err(fault!(InvalidValue, "SnapshotType", other, why).into());
        }
    };
    let (mut consistency, mut name) = (None, String::new());
    if let Some(settings) = &read.snapshot_settings {
        expect_class(
            "SnapshotSettings",
            settings,
            class::MSVM_VIRTUAL_SYSTEM_SNAPSHOT_SETTING_DATA,
        )?;
        consistency = snapshot::wanted(settings)?;
        given_text(settings, "ElementName")
            .unwrap_or_default()
            .clone_into(&mut name);
    }
    let vmms = &view.vmms;
    let (_, job) =
        collection::create_snapshot(vmms, collection, kind, consistency, &name, call.asked).await?;
    Ok(Outcome::started(view, job))
}

async fn export(view: &View, call: &Call<'_>) -> CallResult {
    use params::collection_snapshot_service as p;
    let read = p::ExportSnapshotIn::read(call.parameters)?;
    let path = read.snapshot_collection.as_ref();
    let id = reference::<CollectionSnapshot>(view, "SnapshotCollection", path).await?;
    let directory = msvm::required("ExportDirectory", read.export_directory)?;
    let directory = vmms::machine::device::host_path(&directory)?;
    let (mut base, mut storage, mut merge) = (None, true, false);
    if let Some(settings) = &read.export_setting_data {
        expect_class(
            "ExportSettingData",
            settings,
            class::MSVM_COLLECTION_SNAPSHOT_EXPORT_SETTING_DATA,
        )?;
        storage = given_bool(settings, "CopyVmStorage").unwrap_or(true);
        merge = match given::<u16>(settings, "BackupIntent")? {
            None | Some(1) => false,
            Some(2) => true,
            Some(other) => {
                let known = "1 (preserve the chain) and 2 (merge) exist";
                return Err(fault!(InvalidValue, "BackupIntent", other, known).into());
            }
        };
        if let Some(text) = given_text(settings, "DifferentialBackupBase") {
            let named = base_reference(view, text).await;
            base = Some(in_settings("DifferentialBackupBase", text, named)?);
        }
    }
    let vmms = &view.vmms;
    let job =
        collection::export_snapshot(vmms, id, base, &directory, storage, merge, call.asked).await?;
    Ok(Outcome::started(view, job))
}

/// The collection's point or snapshot that a path means, or a bare CollectionID.
async fn base_reference(view: &View, text: &str) -> Result<Uuid, CallError> {
    const PARAMETER: &str = "DifferentialBackupBase";
    let path = Path::parse(text).unwrap_or_else(|_| {
        let id = object::guid_in(text);
        let of_point = id.is_some_and(|id| view.get::<CollectionPoint>(id).is_ok());
        let class = match of_point {
            true => class::MSVM_REFERENCE_POINT_COLLECTION,
            false => class::MSVM_SNAPSHOT_COLLECTION,
        };
        Path::class(class).key("CollectionID", text)
    });
    if path.class.is(class::MSVM_REFERENCE_POINT_COLLECTION) {
        reference::<CollectionPoint>(view, PARAMETER, Some(&path)).await
    } else {
        reference::<CollectionSnapshot>(view, PARAMETER, Some(&path)).await
    }
}
