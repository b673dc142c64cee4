//! The machine as its guest sees it.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use super::super::machine::QemuMachine;
use crate::error::{Error, Result};
use crate::migration::{FeatureWord, Hardware};
use crate::qmp::codec::{flag, items, number, text};

pub(super) async fn read(machine: &QemuMachine) -> Result<Hardware> {
    let ask = |command: &'static str| machine.execute(command, Value::Null);
    let id = ask("query-uuid").await?;
    let id = text(&id, "UUID").and_then(|id| Uuid::parse_str(id).ok());
    let machine_type = property(machine, "/machine", "type").await?;
    let machine_type = machine_type.as_str().unwrap_or_default();
    let memory = ask("query-memory-size-summary").await?;
    let cpus = ask("query-cpus-fast").await?;
    let first = items(&cpus)
        .first()
        .and_then(|cpu| text(cpu, "qom-path"))
        .unwrap_or_default()
        .to_owned();
    let words = property(machine, &first, "feature-words").await?;
    let vendor = property(machine, &first, "vendor").await?;
    let mut devices = peripherals(machine).await?;
    for bus in items(&ask("query-pci").await?) {
        let place = format!("pci {}", number(bus, "bus").unwrap_or(0));
        pci(bus, &place, &mut devices);
    }
    let migration = ask("query-migrate").await?;
    let blocked = migration.get("blocked-reasons").map(items);
    Ok(Hardware {
        id: id.unwrap_or_default(),
        version: machine.features().version,
        machine_type: machine_type
            .strip_suffix("-machine")
            .unwrap_or(machine_type)
            .to_owned(),
        kvm: flag(&ask("query-kvm").await?, "enabled"),
        memory: number(&memory, "base-memory").unwrap_or(0),
        processors: items(&cpus).len(),
        cpu_vendor: vendor.as_str().unwrap_or_default().to_owned(),
        cpu_features: items(&words).iter().filter_map(feature).collect(),
        devices,
        blocked: blocked
            .unwrap_or_default()
            .iter()
            .filter_map(|reason| reason.as_str().map(str::to_owned))
            .collect(),
    })
}

async fn property(machine: &QemuMachine, path: &str, name: &str) -> Result<Value> {
    let question = json!({ "path": path, "property": name });
    machine.execute("qom-get", question).await
}

fn feature(word: &Value) -> Option<FeatureWord> {
    let leaf = number(word, "cpuid-input-eax")?;
    let sub = number(word, "cpuid-input-ecx")
        .map(|sub| format!(".{sub:X}H"))
        .unwrap_or_default();
    let register = text(word, "cpuid-register")?;
    Some(FeatureWord {
        word: format!("CPUID.{leaf:X}H{sub}.{register}"),
        bits: u32::try_from(number(word, "features")?).ok()?,
    })
}

/// Devices with an id of ours. Where a disk sits on its controller is part of it.
async fn peripherals(machine: &QemuMachine) -> Result<BTreeMap<String, String>> {
    let path = "/machine/peripheral";
    let list = machine.execute("qom-list", json!({ "path": path })).await?;
    let mut found = BTreeMap::new();
    for device in items(&list) {
        let (Some(name), Some(kind)) = (text(device, "name"), text(device, "type")) else {
            continue;
        };
        let Some(kind) = kind
            .strip_prefix("child<")
            .and_then(|k| k.strip_suffix('>'))
        else {
            continue;
        };
        let mut what = kind.to_owned();
        for place in ["parent_bus", "scsi-id", "lun", "unit"] {
            if !kind.starts_with("scsi-") && !kind.starts_with("ide-") {
                break;
            }
            match property(machine, &format!("{path}/{name}"), place).await {
                Ok(value) => what.push_str(&format!(" {place}={value}")),
                // Another kind of disk.
                Err(Error::Qmp { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        found.insert(name.to_owned(), what);
    }
    Ok(found)
}

/// By the way to them, not by bus numbers: the firmware gives those, and it has not run at a destination.
fn pci(bus: &Value, place: &str, found: &mut BTreeMap<String, String>) {
    for device in bus.get("devices").map(items).unwrap_or_default() {
        let at = |name| number(device, name).unwrap_or(0);
        let place = format!("{place}/{:x}.{}", at("slot"), at("function"));
        let id = device.get("id").unwrap_or(&Value::Null);
        let part = |name| number(id, name).unwrap_or(0);
        let name = text(device, "qdev_id").unwrap_or_default();
        let what = format!("{:04x}:{:04x} {name}", part("vendor"), part("device"));
        if let Some(beneath) = device.get("pci_bridge") {
            pci(beneath, &place, found);
        }
        found.insert(place, what.trim_end().to_owned());
    }
}
