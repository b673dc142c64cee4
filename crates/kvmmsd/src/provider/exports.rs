//! ExportSystemDefinition: from Msvm_VirtualSystemExportSettingData to an order of the domain.

use cim::{Instance, Path};
use msvm::{class, params};
use uuid::Uuid;
use vmms::export::{LiveState, SystemExport};
use vmms::fault;

use super::{expect_class, given, given_bool, given_text, in_settings, point, snapshot};
use crate::view::{Call, CallError, CallResult, Outcome, View};

/// Calls ExportSystemDefinition.
pub(crate) async fn call(view: &View, call: &Call<'_>) -> CallResult {
    let given =
        params::virtual_system_management_service::ExportSystemDefinitionIn::read(call.parameters)?;
    let vm = view
        .vm_reference("ComputerSystem", given.computer_system.as_ref())
        .await?;
    let directory = msvm::required("ExportDirectory", given.export_directory)?;
    let directory = vmms::machine::device::host_path(&directory)?;
    let default = Instance::new(class::MSVM_VIRTUAL_SYSTEM_EXPORT_SETTING_DATA);
    let settings = given.export_setting_data.unwrap_or(default);
    expect_class(
        "ExportSettingData",
        &settings,
        class::MSVM_VIRTUAL_SYSTEM_EXPORT_SETTING_DATA,
    )?;
    let order = order(view, &settings, directory).await?;
    let job = vmms::export::export_system(&view.vmms, vm, order, call.asked).await?;
    Ok(Outcome::started(view, job))
}

async fn order(
    view: &View,
    settings: &Instance,
    directory: std::path::PathBuf,
) -> Result<SystemExport, CallError> {
    let limited = |property: &str, most: u8| -> Result<u8, CallError> {
        match given::<u8>(settings, property)? {
            Some(value) if value > most => Err(fault!(
                InvalidValue,
                property,
                value,
                format!("its values are 0 to {most}")
            )
            .into()),
            value => Ok(value.unwrap_or_default()),
        }
    };
    // Without any settings: the machine alone, as the template says.
    let copy = match given::<u8>(settings, "CopySnapshotConfiguration")? {
        None => 1,
        Some(_) => limited("CopySnapshotConfiguration", 3)?,
    };
    let one = copy >= 2;
    if given_bool(settings, "ExportForLiveMigration") == Some(true) {
        return Err(fault!(NotServed, "ExportForLiveMigration").into());
    }
    if given_bool(settings, "DisableDifferentialOfIgnoredStorage") == Some(true) {
        return Err(fault!(NotServed, "DisableDifferentialOfIgnoredStorage").into());
    }
    let mut snapshot = None;
    if one {
        let text = given_text(settings, "SnapshotVirtualSystem");
        let text =
            text.ok_or_else(|| CallError::from(fault!(MissingValue, "SnapshotVirtualSystem")))?;
        let named =
            snapshot::reference(view, "SnapshotVirtualSystem", Some(&settings_path(text))).await;
        snapshot = Some(in_settings("SnapshotVirtualSystem", text, named)?);
    }
    // A base means something only for a backup.
    let base = match given_text(settings, "DifferentialBackupBase") {
        Some(text) if copy == 3 => Some(in_settings(
            "DifferentialBackupBase",
            text,
            base(view, text).await,
        )?),
        _ => None,
    };
    let excluded: Vec<String> = settings
        .get("ExcludedVirtualHardDisks")
        .items()
        .iter()
        .filter_map(|v| v.as_str().map(disk_id))
        .collect();
    if copy == 0 && !excluded.is_empty() {
        let why = "disks cannot be left out of an export with all snapshots (CopySnapshotConfiguration 0)";
        return Err(fault!(
            InvalidValue,
            "ExcludedVirtualHardDisks",
            excluded.join(", "),
            why
        )
        .into());
    }
    Ok(SystemExport {
        snapshot,
        own: false,
        others: Vec::new(),
        base,
        directory,
        subdirectory: given_bool(settings, "CreateVmExportSubdirectory").unwrap_or(true),
        // One snapshot is always exported with all it has.
        storage: copy == 2 || given_bool(settings, "CopyVmStorage").unwrap_or(true),
        runtime: copy == 2 || given_bool(settings, "CopyVmRuntimeInformation").unwrap_or(true),
        excluded,
        all_snapshots: copy == 0,
        live: match limited("CaptureLiveState", 2)? {
            1 => LiveState::Saved,
            2 => LiveState::Application,
            _ => LiveState::Crash,
        },
        merge: limited("BackupIntent", 1)? == 1,
    })
}

/// A path of settings, or their bare InstanceID.
fn settings_path(text: &str) -> Path {
    Path::parse(text).unwrap_or_else(|_| {
        Path::class(class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA).key("InstanceID", text)
    })
}

/// A path of a disk's settings, or their bare InstanceID: the latter.
fn disk_id(text: &str) -> String {
    let path = Path::parse(text).ok();
    let id = path.as_ref().and_then(|p| p.get_str("InstanceID"));
    id.unwrap_or(text).to_owned()
}

/// The point or the snapshot that a text means.
async fn base(view: &View, text: &str) -> Result<Uuid, CallError> {
    let point = class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT;
    let path = Path::parse(text).unwrap_or_else(|_| Path::class(point).key("InstanceID", text));
    if path.class.is(point) {
        point::point_reference(view, "DifferentialBackupBase", Some(&path)).await
    } else {
        snapshot::reference(view, "DifferentialBackupBase", Some(&path)).await
    }
}
