//! Msvm_SnapshotCollection, what else is known of it, and the methods of Msvm_CollectionSnapshotService.

use std::sync::Arc;

use async_trait::async_trait;
use cim::{Datetime, Instance, Path};
use msvm::{class, params};
use uuid::Uuid;
use vmms::Fault;
use vmms::collection::{self, Collection, CollectionPoint, CollectionSnapshot};
use vmms::snapshot::{Snapshot, SnapshotKind};
use vmms::{fault, guid};

use super::collection::collection_reference;
use super::collection_point::{level, point_reference};
use super::{expect_class, given, given_bool, given_text, in_settings, internal, snapshot};
use crate::object::{self, Object, What};
use crate::view::{Call, CallError, CallResult, Outcome, Provider, View, unserved};

pub(crate) struct CollectionSnapshots;

/// SnapshotType of a snapshot of the disks only, from the range that is left to vendors.
const DISK_ONLY: u16 = 32771;

fn of_class(class: &str, snapshot: Arc<CollectionSnapshot>) -> Object {
    if class.eq_ignore_ascii_case(class::KVMMS_SNAPSHOT_COLLECTION_DETAIL) {
        let id = format!("Microsoft:{}", guid(snapshot.id));
        let class = class::KVMMS_SNAPSHOT_COLLECTION_DETAIL;
        Object::with_id(class, id, What::CollectionSnapshot(snapshot))
    } else {
        Object::of_collection_snapshot(snapshot)
    }
}

impl CollectionSnapshots {
    fn list(&self, view: &View, class: &str) -> Vec<Object> {
        let mut all = view.all::<CollectionSnapshot>();
        all.retain(|s| s.complete);
        all.sort_by_key(|s| (s.collection, s.sequence));
        all.into_iter().map(|s| of_class(class, s)).collect()
    }

    fn find(&self, view: &View, class: &str, path: &Path) -> Vec<Object> {
        let keys = ["CollectionID", "InstanceID", ""];
        let id = keys.iter().find_map(|key| path.get_str(key));
        let found = id
            .and_then(object::guid_in)
            .and_then(|id| view.collection_snapshot(id));
        found.map(|s| of_class(class, s)).into_iter().collect()
    }
}

#[async_trait]
impl Provider for CollectionSnapshots {
    fn classes(&self) -> &'static [&'static str] {
        &[
            class::MSVM_SNAPSHOT_COLLECTION,
            class::KVMMS_SNAPSHOT_COLLECTION_DETAIL,
        ]
    }

    async fn objects(
        &self,
        view: &View,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        Ok(match wanted {
            Some(path) => self.find(view, class, path),
            None => self.list(view, class),
        })
    }

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        let What::CollectionSnapshot(snapshot) = &object.what else {
            return Instance::new(object.class);
        };
        if object.class == class::KVMMS_SNAPSHOT_COLLECTION_DETAIL {
            return detail(snapshot);
        }
        let mut i = Instance::new(class::MSVM_SNAPSHOT_COLLECTION);
        i.set("Caption", "Snapshot Collection")
            .set(
                "Description",
                "Snapshots of the machines of a collection, of one instant",
            )
            .set("ElementName", snapshot.name.as_str())
            .set("InstanceID", guid(snapshot.id));
        i
    }
}

fn detail(snapshot: &CollectionSnapshot) -> Instance {
    let members = || snapshot.members.iter();
    let id = |id: Uuid| format!("Microsoft:{}", guid(id));
    let mut i = Instance::new(class::KVMMS_SNAPSHOT_COLLECTION_DETAIL);
    i.set("Caption", "Snapshot Collection Detail")
        .set("Description", "What is known of a collection's snapshot")
        .set("ElementName", snapshot.name.as_str())
        .set("CollectionID", guid(snapshot.id))
        .set("VirtualSystemCollectionId", guid(snapshot.collection))
        .set("SnapshotType", kind_number(snapshot.kind))
        .set("ConsistencyLevel", level(snapshot.consistency))
        .set("Instant", Datetime::from(snapshot.instant))
        .set("Sequence", snapshot.sequence)
        .set("SkewMicroseconds", snapshot.skew_us)
        .set("SkewLimitMicroseconds", snapshot.skew_limit_us)
        .set(
            "VirtualSystemIdentifiers",
            members().map(|m| guid(m.vm)).collect::<Vec<_>>(),
        )
        .set(
            "Snapshots",
            members().map(|m| id(m.point)).collect::<Vec<_>>(),
        )
        .set(
            "PauseMicroseconds",
            members().map(|m| m.pause_us).collect::<Vec<_>>(),
        )
        .set(
            "WasRunning",
            members().map(|m| m.running).collect::<Vec<_>>(),
        );
    i
}

fn kind_number(kind: SnapshotKind) -> u16 {
    match kind {
        SnapshotKind::Full => 1,
        SnapshotKind::Recovery => 2,
        SnapshotKind::Disk => DISK_ONLY,
    }
}

/// The collection's snapshot a REF parameter names.
async fn reference(
    view: &View,
    parameter: &'static str,
    path: Option<&Path>,
) -> Result<Uuid, CallError> {
    let path = path.ok_or_else(|| CallError::from(fault!(MissingValue, parameter)))?;
    let object = view
        .reference(parameter, path, class::MSVM_SNAPSHOT_COLLECTION)
        .await?;
    match object.what {
        What::CollectionSnapshot(snapshot) => Ok(snapshot.id),
        _ => Err(internal(format!(
            "{} is not a snapshot collection",
            path.class
        ))),
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
            let id = reference(view, "SnapshotCollection", path).await?;
            let job = collection::apply_snapshot(vmms, id, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::DestroySnapshot => {
            let given = p::DestroySnapshotIn::read(call.parameters)?;
            let path = given.affected_snapshot_collection.as_ref();
            let id = reference(view, "AffectedSnapshotCollection", path).await?;
            let job = collection::destroy_snapshot(vmms, id, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::ConvertToReferencePoint => {
            let given = p::ConvertToReferencePointIn::read(call.parameters)?;
            let path = given.affected_snapshot_collection.as_ref();
            let id = reference(view, "AffectedSnapshotCollection", path).await?;
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
    let id = reference(view, "SnapshotCollection", path).await?;
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
        point_reference(view, PARAMETER, Some(&path)).await
    } else {
        reference(view, PARAMETER, Some(&path)).await
    }
}

/// A collection's snapshots, oldest first.
pub(crate) fn snapshots_of(view: &View, from: &Object) -> Vec<Object> {
    let What::Collection(collection) = &from.what else {
        return Vec::new();
    };
    let mut all = view.all::<CollectionSnapshot>();
    all.retain(|s| s.collection == collection.id && s.complete);
    all.sort_by_key(|s| s.sequence);
    all.into_iter()
        .map(Object::of_collection_snapshot)
        .collect()
}

/// The collection of a collection's snapshot.
pub(crate) fn collection_of(view: &View, from: &Object) -> Vec<Object> {
    match &from.what {
        What::CollectionSnapshot(snapshot) => {
            let collection = view.get::<Collection>(snapshot.collection).ok();
            collection.map(Object::of_collection).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// The members' snapshots of a collection's snapshot.
pub(crate) fn members_of(view: &View, from: &Object) -> Vec<Object> {
    match &from.what {
        What::CollectionSnapshot(whole) => {
            let found = whole
                .members
                .iter()
                .filter_map(|m| view.get::<Snapshot>(m.point).ok());
            found.map(Object::of_snapshot).collect()
        }
        _ => Vec::new(),
    }
}

/// The collection's snapshot a machine's snapshot belongs to.
pub(crate) fn collected_in(view: &View, from: &Object) -> Vec<Object> {
    let What::Snapshot(part) = &from.what else {
        return Vec::new();
    };
    let found = part
        .collection_snapshot
        .and_then(|id| view.collection_snapshot(id));
    found
        .map(Object::of_collection_snapshot)
        .into_iter()
        .collect()
}
