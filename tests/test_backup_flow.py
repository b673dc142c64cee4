"""What backup programs do, step by step: recovery snapshot, export of it, conversion, changed ranges, removal; and ordinary snapshots."""
from pathlib import Path

import pytest

from harness import images
from harness.host import APPLICATION, CRASH, DONE, U8, U16, JobFailed, Refused, let_it_write
from harness.model import Ref
from test_changes import changes
from test_spine import MIB, running_writer

MANAGEMENT = "Msvm_VirtualSystemManagementService"
SNAPSHOTS = "Msvm_VirtualSystemSnapshotService"
POINTS = "Msvm_VirtualSystemReferencePointService"
SETTINGS = "Msvm_VirtualSystemSettingData"
FULL, DISK, RECOVERY = 2, 3, 32768
ALL, NONE, ONE, BACKUP = 0, 1, 2, 3


def snapshot(machine, kind=RECOVERY, consistency=CRASH, name=None):
    """Takes a snapshot and gives back its settings, found the way clients find them: through the job."""
    setting = machine.api.embedded("Msvm_VirtualSystemSnapshotSettingData", ConsistencyLevel=U8(consistency), ElementName=name)
    result, job = machine.host.do(SNAPSHOTS, "CreateSnapshot", AffectedSystem=machine.ref, SnapshotSettings=setting, SnapshotType=U16(kind))
    assert job.num("JobType") == 70
    made = machine.api.associators(machine.host.job(result), "Msvm_AffectedJobElement", SETTINGS)
    assert len(made) == 1, f"the job names {len(made)} snapshots"
    return made[0]


def export_settings(machine, **changed):
    """The export settings of the machine with what a backup changes in them."""
    template, = machine.api.associators(machine.ref, "Msvm_SystemExportSettingData", "Msvm_VirtualSystemExportSettingData")
    values = {"InstanceID": template.text("InstanceID"), "CopyVmStorage": True, "CopyVmRuntimeInformation": False, **changed}
    return machine.api.embedded("Msvm_VirtualSystemExportSettingData", **values)


def export(machine, directory, **changed):
    result = machine.host.call(MANAGEMENT, "ExportSystemDefinition", ComputerSystem=machine.ref, ExportDirectory=str(directory),
                               ExportSettingData=export_settings(machine, **changed))
    job = machine.host.finish(result, 300)
    assert job.class_name == "Msvm_ConcreteJob" and job.num("JobType") == 62
    return job


def backup(machine, directory, snap, base=None, intent=0):
    return export(machine, directory, CopySnapshotConfiguration=U8(BACKUP), CreateVmExportSubdirectory=False,
                  SnapshotVirtualSystem=snap.ref.text(), DifferentialBackupBase=base.ref.text() if base is not None else None,
                  BackupIntent=U8(intent))


def convert(machine, snap):
    """Gives back the point a snapshot became."""
    result, job = machine.host.do(SNAPSHOTS, "ConvertToReferencePoint", AffectedSnapshot=snap.ref)
    assert job.num("JobType") == 200
    point, = machine.api.associators(machine.host.job(result), "Msvm_AffectedJobElement", "Msvm_VirtualSystemReferencePoint")
    return point


def held_still(machine, disks, target, take):
    """What `take` makes of a machine that is held still, with copies of its disks made by other means at the same instant."""
    machine.pause()
    target.mkdir()
    copies = {d.name: images.freeze(d.parent, target / f"{d.name}.frozen", "raw" if d.suffix == ".img" else "qcow2") for d in disks}
    taken = take()
    machine.resume()
    return taken, copies


def image(directory, stem):
    """The exported image of the disk whose file has that stem."""
    found = sorted((directory / "Virtual Hard Disks").glob(f"{stem}-*.qcow2"))
    assert len(found) == 1, found
    return found[0]


def assert_holds(directory, copies):
    for name, copy in copies.items():
        file = image(directory, Path(name).stem)
        images.check(file)
        images.assert_same(file, copy, "qcow2", "raw")


def snapshots(machine):
    return machine.api.associators(machine.ref, "Msvm_SnapshotOfVirtualSystem", SETTINGS)


def test_a_backup_program_goes_its_whole_way_twice(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "backup")
    first, copies = held_still(machine, [boot, data], scratch / "f1", lambda: snapshot(machine))
    assert first.text("VirtualSystemType") == "Microsoft:Hyper-V:Snapshot:Recovery"
    assert first.text("VirtualSystemIdentifier").lower() == machine.guid.lower()
    disks = machine.api.associators(first.ref, "Msvm_VirtualSystemSettingDataComponent", "Msvm_StorageAllocationSettingData")
    assert [Path(d.texts("HostResource")[0]).name for d in disks] == ["boot.img", "data.qcow2"]
    let_it_write(machine, data)
    backup(machine, scratch / "full", first)
    assert_holds(scratch / "full", copies)

    base = convert(machine, first)
    assert snapshots(machine) == [], "the snapshot disappears"
    assert base.num("ReferencePointType") == 2 and base.num("ConsistencyLevel") == CRASH
    assert base.flag("HasAssociatedData") is False
    ids = dict(zip((i.lower() for i in base.texts("VirtualDiskIdentifiers")), base.texts("ResilientChangeTrackingIdentifiers")))
    assert len(ids) == 2

    let_it_write(machine, data)
    second, copies = held_still(machine, [boot, data], scratch / "f2", lambda: snapshot(machine))
    let_it_write(machine, data)
    backup(machine, scratch / "incremental", second, base)
    assert_holds(scratch / "incremental", copies)
    assert images.backing_of(image(scratch / "incremental", "data")), "it differs from the first"
    newer = convert(machine, second)
    assert [p.ref for p in machine.points()] == [base.ref, newer.ref]

    disk = next(d for d in machine.disks() if d.texts("HostResource")[0].endswith("data.qcow2"))
    assert changes(host, data, ids[disk.text("InstanceID").lower()], 64 * MIB)
    host.do(POINTS, "DestroyReferencePoint", AffectedReferencePoint=base.ref)
    assert [p.ref for p in machine.points()] == [newer.ref]
