//! The kinds of resources machines are made of: what pools, capabilities and templates there are.

use msvm::class;
use vmms::machine::Vm;

use crate::object::{MEMORY_ID, Part};
use crate::provider::resource;

/// A kind of resource.
pub(crate) struct Kind {
    /// Names its pool and its templates; the same on every host.
    pub(crate) id: &'static str,
    /// Name for people.
    pub(crate) name: &'static str,
    /// ResourceType.
    pub(crate) ty: u16,
    /// ResourceSubType.
    pub(crate) sub_type: &'static str,
    /// The class of its settings.
    pub(crate) settings: &'static str,
    /// The unit of its quantities.
    pub(crate) units: &'static str,
    /// Least, default and most of it in a machine.
    pub(crate) quantity: [u64; 3],
}

const COUNT: &str = "count";

/// All kinds. Identifiers that Windows hosts use for the same kind are kept where they are known.
pub(crate) static KINDS: &[Kind] = &[
    Kind {
        id: MEMORY_ID,
        name: "Memory",
        ty: 4,
        sub_type: "Microsoft:Hyper-V:Memory",
        settings: class::MSVM_MEMORY_SETTING_DATA,
        units: "byte * 2^20",
        quantity: [32, 1024, 12 * 1024 * 1024],
    },
    Kind {
        id: "B637F346-6A0E-4DEC-AF52-BD70CB80A21D",
        name: "Processor",
        ty: 3,
        sub_type: "Microsoft:Hyper-V:Processor",
        settings: class::MSVM_PROCESSOR_SETTING_DATA,
        units: COUNT,
        quantity: [1, 1, 240],
    },
    device(
        "83F8638B-8DCA-4152-9EDA-2CA8B33039B4",
        "IDE Controller",
        5,
        "Microsoft:Hyper-V:Emulated IDE Controller",
        class::MSVM_RESOURCE_ALLOCATION_SETTING_DATA,
        2,
    ),
    device(
        "BA6163D9-04A1-4D29-B605-72E2FFB1DC7F",
        "SCSI Controller",
        6,
        "Microsoft:Hyper-V:Synthetic SCSI Controller",
        class::MSVM_RESOURCE_ALLOCATION_SETTING_DATA,
        4,
    ),
    device(
        "AD2A5C41-90B5-4C61-8F54-8E3C3E2B9F17",
        "Hard Drive",
        17,
        "Microsoft:Hyper-V:Synthetic Disk Drive",
        class::MSVM_RESOURCE_ALLOCATION_SETTING_DATA,
        260,
    ),
    device(
        "55D6A6E3-0E9C-4C2D-9B9A-6C35B3A0F0D2",
        "DVD Drive",
        16,
        "Microsoft:Hyper-V:Synthetic DVD Drive",
        class::MSVM_RESOURCE_ALLOCATION_SETTING_DATA,
        260,
    ),
    device(
        "8F0D2762-0B00-4E04-AF4F-19010527CB93",
        "Floppy Drive",
        14,
        "Microsoft:Hyper-V:Synthetic Diskette Drive",
        class::MSVM_RESOURCE_ALLOCATION_SETTING_DATA,
        1,
    ),
    device(
        "70BB60D2-A9D3-46AA-B654-3DE53004B4F8",
        "Virtual Hard Disk",
        31,
        "Microsoft:Hyper-V:Virtual Hard Disk",
        class::MSVM_STORAGE_ALLOCATION_SETTING_DATA,
        260,
    ),
    device(
        "2E6F8D4C-6B7B-4F0E-9B0B-3D5E1C0A7A91",
        "Virtual CD/DVD Disk",
        31,
        "Microsoft:Hyper-V:Virtual CD/DVD Disk",
        class::MSVM_STORAGE_ALLOCATION_SETTING_DATA,
        260,
    ),
    device(
        "8E3A359F-559A-4B6A-98A9-1690A6100ED7",
        "Serial Port",
        21,
        "Microsoft:Hyper-V:Serial Port",
        class::MSVM_SERIAL_PORT_SETTING_DATA,
        2,
    ),
    device(
        "6A45335D-4C3A-44B7-B61F-C9808BBDF8ED",
        "Network Adapter",
        10,
        "Microsoft:Hyper-V:Synthetic Ethernet Port",
        class::MSVM_SYNTHETIC_ETHERNET_PORT_SETTING_DATA,
        8,
    ),
    device(
        "72027ECE-E44A-446E-AF2B-8D8C4B8A2279",
        "Ethernet Connection",
        33,
        "Microsoft:Hyper-V:Ethernet Connection",
        class::MSVM_ETHERNET_PORT_ALLOCATION_SETTING_DATA,
        8,
    ),
];

const fn device(
    id: &'static str,
    name: &'static str,
    ty: u16,
    sub_type: &'static str,
    settings: &'static str,
    most: u64,
) -> Kind {
    Kind {
        id,
        name,
        ty,
        sub_type,
        settings,
        units: COUNT,
        quantity: [0, 1, most],
    }
}

/// The kind of a resource of a machine; security settings are of none.
pub(crate) fn of_part(vm: &Vm, part: &Part) -> Option<&'static Kind> {
    let (ty, sub_type) = match part {
        Part::Memory => (4, "Microsoft:Hyper-V:Memory"),
        Part::Processor => (3, "Microsoft:Hyper-V:Processor"),
        Part::Security => return None,
        Part::Device(id) => resource::type_of(&vm.device(id)?.kind),
    };
    KINDS.iter().find(|k| k.ty == ty && k.sub_type == sub_type)
}

/// The kind a pool, capabilities or a template are of: their InstanceID holds its identifier.
pub(crate) fn of_id(instance_id: &str) -> Option<&'static Kind> {
    let rest = instance_id.strip_prefix("Microsoft:")?;
    let rest = rest.strip_prefix("Definition\\").unwrap_or(rest);
    KINDS.iter().find(|k| {
        rest.get(..k.id.len())
            .is_some_and(|id| id.eq_ignore_ascii_case(k.id))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::PROCESSOR_ID;

    #[test]
    fn kinds_have_identifiers_of_their_own_which_lead_back_to_them() {
        for (at, kind) in KINDS.iter().enumerate() {
            assert!(uuid::Uuid::parse_str(kind.id).is_ok(), "{}", kind.id);
            assert!(
                KINDS.iter().skip(at + 1).all(|other| other.id != kind.id),
                "{}",
                kind.id
            );
            let [least, default, most] = kind.quantity;
            assert!(least <= default && default <= most, "{}", kind.name);
            for id in [
                format!("Microsoft:{}", kind.id),
                format!("Microsoft:Definition\\{}\\Default", kind.id),
            ] {
                assert_eq!(of_id(&id).map(|k| k.name), Some(kind.name));
            }
        }
        assert_eq!(
            PROCESSOR_ID.split('\\').next(),
            of_id(&format!("Microsoft:{PROCESSOR_ID}")).map(|k| k.id)
        );
        assert!(of_id("Microsoft:00000000-0000-0000-0000-000000000000").is_none());
    }
}
