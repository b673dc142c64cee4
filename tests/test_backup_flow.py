"""What backup programs do, step by step: recovery snapshot, export of it, conversion, changed ranges, removal; and ordinary snapshots."""
import json
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


def test_both_intents_of_a_differential_backup(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "intents")
    first = snapshot(machine)
    backup(machine, scratch / "full", first)
    base = convert(machine, first)
    let_it_write(machine, data)
    second, copies = held_still(machine, [boot, data], scratch / "f2", lambda: snapshot(machine))
    backup(machine, scratch / "kept", second, base, intent=0)
    backup(machine, scratch / "merged", second, base, intent=1)
    for directory in ("kept", "merged"):
        assert_holds(scratch / directory, copies)
    assert images.backing_of(image(scratch / "kept", "data"))
    assert images.backing_of(image(scratch / "merged", "data")) is None, "a whole image of its own"


def test_an_application_snapshot_without_an_agent_fails_so_that_tools_fall_back(host, guests, scratch):
    machine, _, data = running_writer(host, guests, scratch, "fallback")
    with pytest.raises(JobFailed) as failed:
        snapshot(machine, consistency=APPLICATION)
    assert failed.value.errors and failed.value.job.text("ErrorDescription")
    assert snapshots(machine) == []
    let_it_write(machine, data)
    assert snapshot(machine, consistency=CRASH)


def test_recovery_snapshots_are_only_converted(host, guests, scratch):
    machine, _, _ = running_writer(host, guests, scratch, "recovery")
    snap = snapshot(machine)
    for method, parameter in (("DestroySnapshot", "AffectedSnapshot"), ("DestroySnapshotTree", "SnapshotSettingData")):
        with pytest.raises(Refused) as refused:
            host.call(SNAPSHOTS, method, **{parameter: snap.ref})
        assert refused.value.code == 32775
    other = snapshot(machine, DISK)
    with pytest.raises(Refused) as refused:
        host.call(SNAPSHOTS, "ConvertToReferencePoint", AffectedSnapshot=other.ref)
    assert refused.value.code == 32775


def test_snapshots_form_a_tree_that_clients_can_walk(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "tree")
    first, copies = held_still(machine, [boot, data], scratch / "f1", lambda: snapshot(machine, DISK, name="first"))
    assert first.text("ElementName") == "first"
    assert first.text("VirtualSystemType") == "Microsoft:Hyper-V:Snapshot:Realized"
    let_it_write(machine, data)
    second = snapshot(machine, DISK, name="second")
    assert [s.ref for s in snapshots(machine)] == [first.ref, second.ref]
    assert Ref.parse(machine.api.get(second.ref).text("Parent")) == first.ref
    renamed = machine.api.embedded(SETTINGS, InstanceID=second.text("InstanceID"), ElementName="new name")
    host.do(MANAGEMENT, "ModifySystemSettings", SystemSettings=renamed)
    assert machine.api.get(second.ref).text("ElementName") == "new name"
    current = machine.api.associators(machine.ref, "Msvm_MostCurrentSnapshotInBranch")
    assert [s.ref for s in current] == [second.ref]
    children = machine.api.associators(first.ref, "Msvm_ParentChildSettingData", role="Antecedent")
    assert [s.ref for s in children] == [second.ref]
    assert machine.api.associators(machine.ref, "Msvm_LastAppliedSnapshot") == []

    with pytest.raises(Refused) as refused:
        host.call(SNAPSHOTS, "ApplySnapshot", Snapshot=first.ref)
    assert refused.value.code == 32775, "not while it runs"
    machine.stop()
    _, job = host.do(SNAPSHOTS, "ApplySnapshot", Snapshot=first.ref)
    assert job.num("JobType") == 71
    assert [s.ref for s in machine.api.associators(machine.ref, "Msvm_LastAppliedSnapshot")] == [first.ref]
    assert [s.ref for s in machine.api.associators(machine.ref, "Msvm_MostCurrentSnapshotInBranch")] == [first.ref]
    # Told by an export of the machine as it is now.
    export(machine, scratch / "now", CopySnapshotConfiguration=U8(NONE), CreateVmExportSubdirectory=False)
    assert_holds(scratch / "now", copies)
    machine.start()
    let_it_write(machine, data)
    third = snapshot(machine, DISK, name="third")
    assert len(machine.api.associators(first.ref, "Msvm_ParentChildSettingData", role="Antecedent")) == 2
    machine.stop()
    _, job = host.do(SNAPSHOTS, "DestroySnapshotTree", SnapshotSettingData=first.ref)
    assert job.num("JobType") == 72 and third and snapshots(machine) == []


def test_an_exported_machine_is_imported_planned_validated_and_realized(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "moved")
    first, copies = held_still(machine, [boot, data], scratch / "f1", lambda: snapshot(machine, DISK))
    job = export(machine, scratch / "out", CopySnapshotConfiguration=U8(ONE), SnapshotVirtualSystem=first.ref.text())
    assert job.num("JobState") == DONE
    machine.stop()
    config, = (scratch / "out" / machine.guid.upper() / "Virtual Machines").glob("????????-*[0-9A-F].json")
    result = host.call(MANAGEMENT, "ImportSystemDefinition", SystemDefinitionFile=str(config), SnapshotFolder=str(scratch / "in"),
                       GenerateNewSystemIdentifier=True)
    host.finish(result)
    planned, = machine.api.associators(host.job(result), "Msvm_AffectedJobElement", "Msvm_PlannedComputerSystem")
    assert planned.ref.keys["Name"].lower() != machine.guid.lower()
    for method, number in (("ValidatePlannedSystem", 140), ("RealizePlannedSystem", 141)):
        result = host.call(MANAGEMENT, method, PlannedSystem=planned.ref)
        assert result.value == 4096
        assert host.finish(result).num("JobType") == number
    realized, = machine.api.associators(host.job(result), "Msvm_AffectedJobElement", "Msvm_ComputerSystem")
    other = type(machine)(host, realized.ref)
    host.machines.append(other)
    for name, copy in copies.items():
        images.assert_same(scratch / "in" / f"{Path(name).stem}.qcow2", copy, "qcow2", "raw")
    other.start()
    assert other.qemu()


def test_a_restored_machine_takes_its_point_over_and_the_chain_goes_on(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "restored")
    first = snapshot(machine)
    backup(machine, scratch / "full", first)
    base = convert(machine, first)
    machine.stop()
    machine.destroy()
    config = scratch / "full" / "Virtual Machines" / f"{machine.guid.upper()}.json"
    result, _ = host.do(MANAGEMENT, "ImportSystemDefinition", SystemDefinitionFile=str(config), SnapshotFolder=str(scratch / "in"),
                        GenerateNewSystemIdentifier=False)
    planned = result["ImportedSystem"]
    assert planned.class_name == "Msvm_PlannedComputerSystem" and planned.keys["Name"].lower() == machine.guid.lower()
    host.do(MANAGEMENT, "RealizePlannedSystem", PlannedSystem=planned)
    _, job = host.do(POINTS, "ImportReferencePointMetadata", AffectedSystem=machine.ref, ConfigFilePath=str(config), RuntimeStateFilePath="")
    assert job.num("JobType") == 209
    assert [p.ref for p in machine.points()] == [base.ref]
    machine.start()
    let_it_write(machine, scratch / "in" / "data.qcow2")
    second, copies = held_still(machine, [], scratch / "f2", lambda: snapshot(machine))
    backup(machine, scratch / "next", second, base)
    machine.stop()
    for stem in ("boot", "data"):
        file = image(scratch / "next", stem)
        images.check(file)
        assert images.backing_of(file)
    assert copies == {}


def test_the_command_line_takes_applies_converts_and_deletes_snapshots(service, scratch):
    def read(*args):
        return json.loads(service.cli("-o", "json", *args).stdout)
    service.cli("vm", "create", "cli-snap", "--memory", "32M", "--new-disk", f"{scratch}/d.qcow2:8M")
    try:
        service.cli("snapshot", "create", "cli-snap", "--type", "disk", "--name", "before")
        service.cli("snapshot", "create", "cli-snap", "--type", "disk", "--name", "after")
        listed = read("snapshot", "list", "cli-snap")
        assert [s["name"] for s in listed] == ["before", "after"]
        assert listed[1]["parentId"].lower() == listed[0]["id"].lower()
        service.cli("snapshot", "apply", "cli-snap/before")
        service.cli("snapshot", "create", "cli-snap", "--type", "recovery", "--name", "backup")
        refused = service.cli("snapshot", "delete", "backup", check=False)
        assert refused.returncode != 0
        service.cli("snapshot", "convert", "backup")
        assert [p["name"] for p in read("point", "list", "cli-snap")] == ["backup"]
        service.cli("snapshot", "delete", "before", "--tree")
        assert read("snapshot", "list", "cli-snap") == []
    finally:
        service.cli("vm", "delete", "cli-snap", "--force", check=False)
