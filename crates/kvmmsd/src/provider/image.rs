//! The methods of Msvm_ImageManagementService.

use cim::Instance;
use hypervisor_format::{format_of, number_of};
use msvm::{class, code, params};
use vmms::image::Image;
use vmms::image::ImageSpec;
use vmms::machine::device::host_path;
use vmms::{fault, guid};

use super::{expect_class, given, given_text};

use crate::view::{Call, CallError, CallResult, Outcome, View, unserved};
use params::image_management_service as p;

/// Format numbers of the API and the formats behind them.
mod hypervisor_format {
    use vmms::ImageFormat;

    /// 2 is VHD; 3 is VHDX, which stands for the native format.
    pub(crate) fn format_of(number: u16) -> Option<ImageFormat> {
        match number {
            2 => Some(ImageFormat::Vpc),
            3 => Some(ImageFormat::Qcow2),
            _ => None,
        }
    }

    /// The number for an image's true format.
    pub(crate) fn number_of(format: &str) -> u16 {
        if format == "vpc" { 2 } else { 3 }
    }
}

/// Calls a method of the service.
pub(crate) async fn call(view: &View, call: &Call<'_>) -> CallResult {
    use msvm::method::ImageManagementService as Method;
    let Ok(method) = call.method.parse() else {
        return Err(unserved(call.target.class, call.method));
    };
    let vmms = &view.vmms;
    match method {
        Method::CreateVirtualHardDisk => {
            let given = p::CreateVirtualHardDiskIn::read(call.parameters)?;
            let instance =
                msvm::required("VirtualDiskSettingData", given.virtual_disk_setting_data)?;
            let job = vmms::image::create(vmms, image_spec(&instance)?, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::ResizeVirtualHardDisk => {
            let given = p::ResizeVirtualHardDiskIn::read(call.parameters)?;
            let path = host_path(&msvm::required("Path", given.path)?)?;
            let size = msvm::required("MaxInternalSize", given.max_internal_size)?;
            Ok(Outcome::started(
                view,
                vmms::image::resize(vmms, &path, size, call.asked).await?,
            ))
        }
        Method::ValidateVirtualHardDisk => {
            let given = p::ValidateVirtualHardDiskIn::read(call.parameters)?;
            let path = host_path(&msvm::required("Path", given.path)?)?;
            Ok(Outcome::started(
                view,
                vmms::image::validate(vmms, &path, call.asked).await?,
            ))
        }
        Method::ConvertVirtualHardDisk => {
            let given = p::ConvertVirtualHardDiskIn::read(call.parameters)?;
            let source = host_path(&msvm::required("SourcePath", given.source_path)?)?;
            let text = msvm::required("VirtualDiskSettingData", given.virtual_disk_setting_data)?;
            let instance = msvm::embedded_instance(&text, "VirtualDiskSettingData")?;
            let job =
                vmms::image::convert(vmms, &source, image_spec(&instance)?, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::GetVirtualHardDiskSettingData => {
            let given = p::GetVirtualHardDiskSettingDataIn::read(call.parameters)?;
            let path = host_path(&msvm::required("Path", given.path)?)?;
            let image = vmms::image::describe(vmms, &path).await?;
            let out = p::GetVirtualHardDiskSettingDataOut {
                setting_data: Some(crate::errors::complete(setting_data(&image))),
                ..p::GetVirtualHardDiskSettingDataOut::code(code::COMPLETED)
            };
            Ok(Outcome::of(out.return_value, out.into_values()))
        }
        Method::GetVirtualHardDiskState => {
            let given = p::GetVirtualHardDiskStateIn::read(call.parameters)?;
            let path = host_path(&msvm::required("Path", given.path)?)?;
            let image = vmms::image::describe(vmms, &path).await?;
            let state = Instance::new(class::MSVM_VIRTUAL_HARD_DISK_STATE)
                .with("Caption", "Virtual Hard Disk State")
                .with("FileSize", image.file_size)
                .with(
                    "InUse",
                    image
                        .attached_to
                        .is_some_and(|vm| vmms.machine(vm).is_some()),
                )
                .with("MinInternalSize", image.size)
                .with("PhysicalSectorSize", 4096u32)
                .with("Alignment", 1u32);
            let out = p::GetVirtualHardDiskStateOut {
                state: Some(crate::errors::complete(state)),
                ..p::GetVirtualHardDiskStateOut::code(code::COMPLETED)
            };
            Ok(Outcome::of(out.return_value, out.into_values()))
        }
        Method::GetVirtualDiskChanges => changes(view, call).await,
        _ => Err(unserved(call.target.class, call.method)),
    }
}

async fn changes(view: &View, call: &Call<'_>) -> CallResult {
    let given = p::GetVirtualDiskChangesIn::read(call.parameters)?;
    let path = host_path(&msvm::required("Path", given.path)?)?;
    let limit = msvm::required("LimitId", given.limit_id)?;
    let offset = given.byte_offset.unwrap_or(0);
    let length = given.byte_length.unwrap_or(u64::MAX);
    if given
        .target_snapshot_id
        .is_some_and(|t| !t.trim().is_empty())
    {
        return Err(fault!(NotServed, "TargetSnapshotId, which is for VHD sets").into());
    }
    let changes = vmms::point::changes(&view.vmms, &path, &limit, offset, length).await?;
    let out = p::GetVirtualDiskChangesOut {
        processed_byte_length: Some(changes.processed),
        changed_byte_offsets: Some(changes.ranges.iter().map(|(offset, _)| *offset).collect()),
        changed_byte_lengths: Some(changes.ranges.iter().map(|(_, length)| *length).collect()),
        ..p::GetVirtualDiskChangesOut::code(code::COMPLETED)
    };
    Ok(Outcome::of(out.return_value, out.into_values()))
}

fn image_spec(instance: &Instance) -> Result<ImageSpec, CallError> {
    expect_class(
        "VirtualDiskSettingData",
        instance,
        class::MSVM_VIRTUAL_HARD_DISK_SETTING_DATA,
    )?;
    let path = given_text(instance, "Path")
        .ok_or_else(|| CallError::from(fault!(MissingValue, "Path")))?;
    let kind = given::<u16>(instance, "Type")?.unwrap_or(3);
    if !matches!(kind, 2..=4) {
        return Err(fault!(
            InvalidValue,
            "Type",
            kind,
            "2 (fixed), 3 (dynamic) and 4 (differencing) exist"
        )
        .into());
    }
    let number = given::<u16>(instance, "Format")?.unwrap_or(3);
    let format = match (
        number,
        number == 3 && path.to_ascii_lowercase().ends_with(".raw"),
    ) {
        (3, true) => vmms::ImageFormat::Raw,
        _ => format_of(number).ok_or_else(|| {
            CallError::from(fault!(
                InvalidValue,
                "Format",
                number,
                "2 (VHD) and 3 (the native format, qcow2) are served"
            ))
        })?,
    };
    let parent = given_text(instance, "ParentPath")
        .map(host_path)
        .transpose()?;
    if (kind == 4) != parent.is_some() {
        return Err(if kind == 4 {
            fault!(MissingValue, "ParentPath").into()
        } else {
            fault!(
                InvalidValue,
                "ParentPath",
                "a path",
                "only differencing disks (type 4) have a parent"
            )
            .into()
        });
    }
    Ok(ImageSpec {
        path: host_path(path)?,
        format,
        fixed: kind == 2,
        size: given(instance, "MaxInternalSize")?.filter(|s| *s != 0),
        parent,
    })
}

fn setting_data(image: &Image) -> Instance {
    let kind: u16 = match (&image.parent, image.fixed) {
        (Some(_), _) => 4,
        (None, true) => 2,
        (None, false) => 3,
    };
    let block = image
        .block_size
        .and_then(|b| u32::try_from(b).ok())
        .unwrap_or(0);
    let mut i = Instance::new(class::MSVM_VIRTUAL_HARD_DISK_SETTING_DATA);
    i.set("InstanceID", format!("Microsoft:{}", guid(image.id)))
        .set("Caption", "Virtual Hard Disk Setting Data")
        .set(
            "Description",
            format!("The native format of this file is {}", image.format),
        )
        .set(
            "ElementName",
            image
                .path
                .file_name()
                .map(|n| n.to_string_lossy().into_owned()),
        )
        .set("Type", kind)
        .set("Format", number_of(&image.format))
        .set("Path", image.path.display().to_string())
        .set(
            "ParentPath",
            image.parent.as_ref().map(|p| p.display().to_string()),
        )
        .set("MaxInternalSize", image.size)
        .set("BlockSize", block)
        .set("LogicalSectorSize", 512u32)
        .set("PhysicalSectorSize", 4096u32)
        .set("VirtualDiskId", guid(image.id));
    i
}
