"""Snapshots of collections: one instant, applied as one, converted and exported as one, imported and booted."""
import json

import pytest

from harness import images
from harness.host import CRASH, OFF, PAUSED, RUNNING, SAVED, U8, U16, Host, Machine, Refused, let_it_write
from harness.model import ApiFault, Ref
from harness.service import Service
from test_backup_flow import SETTINGS, assert_holds, held_still, image
from test_collections import MANAGEMENT, Ring, define, in_one_instant
from test_spine import MIB, running_writer

SNAPSHOTS = "Msvm_CollectionSnapshotService"
POINTS = "Msvm_CollectionReferencePointService"
SYSTEMS = "Msvm_VirtualSystemManagementService"
STANDARD, RECOVERY, DISK = 1, 2, 32771
PRESERVE, MERGE = 1, 2


@pytest.fixture(scope="module")
def service():
    """What is imported here was exported here: its memory can be trusted."""
    s = Service(config="import_memory = true\n")
    try:
        yield s.start()
    finally:
        s.close()


def begin(host, collection, kind, consistency=CRASH, **more):
    setting = host.api.embedded("Msvm_VirtualSystemSnapshotSettingData", ConsistencyLevel=U8(consistency), **more)
    return host.call(SNAPSHOTS, "CreateSnapshot", Collection=collection, SnapshotSettings=setting, SnapshotType=U16(kind))


def take(host, collection, kind, consistency=CRASH, **more):
    """A snapshot of the collection, found the way clients find it: through the job."""
    result = begin(host, collection, kind, consistency, **more)
    job = host.finish(result)
    assert job.class_name == "Msvm_ConcreteJob" and job.num("JobType") == 198
    made = host.api.associators(host.job(result), "Msvm_AffectedJobElement", "Msvm_SnapshotCollection")
    assert len(made) == 1, made
    return made[0]


def detail(host, snapshot):
    key = f"Microsoft:{snapshot.text('CollectionID')}"
    return host.api.get(Ref("Kvmms_SnapshotCollectionDetail", {"InstanceID": key}))


def export(host, snapshot, directory, base=None, intent=PRESERVE, storage=True):
    setting = host.api.embedded("Msvm_CollectionSnapshotExportSettingData", CopyVmStorage=storage, BackupIntent=U16(intent),
                                DifferentialBackupBase=base.ref.text() if base is not None else None)
    _, job = host.do(SNAPSHOTS, "ExportSnapshot", SnapshotCollection=snapshot.ref, ExportDirectory=str(directory), ExportSettingData=setting)
    assert job.class_name == "Msvm_ConcreteJob" and job.num("JobType") == 62
    return job


def convert(host, snapshot):
    result, job = host.do(SNAPSHOTS, "ConvertToReferencePoint", AffectedSnapshotCollection=snapshot.ref)
    assert job.num("JobType") == 200
    point, = host.api.associators(host.job(result), "Msvm_AffectedJobElement", "Msvm_ReferencePointCollection")
    return point


def parts(host, snapshot):
    return host.api.associators(snapshot.ref, "Msvm_CollectedSnapshots", SETTINGS)


def of_collection(host, collection):
    return [s.ref for s in host.api.associators(collection, "Msvm_SnapshotOfVirtualSystemCollection", "Msvm_SnapshotCollection")]


def present(machine, path, target):
    """The disk of a stopped machine as it is now, through all its layers."""
    return images.freeze(path.parent, target, "raw" if path.suffix == ".img" else "qcow2")


def test_machines_in_every_state_are_snapshotted_with_memory_and_brought_back(host, guests, scratch):
    runs, boot, data = running_writer(host, guests, scratch, "runs")
    (scratch / "still").mkdir()
    still, _, still_data = running_writer(host, guests, scratch / "still", "still")
    still.pause()
    (scratch / "s").mkdir()
    saved, _, _ = running_writer(host, guests, scratch / "s", "saved")
    saved.request(SAVED)
    off = host.machine_with_disks("off", [host.create_disk(scratch / "off.qcow2", 4 * MIB)])
    machines = (runs, still, saved, off)
    collection = define(host, "mixed", members=[m.ref for m in machines])

    made = take(host, collection, STANDARD, ElementName="before")
    assert made.text("ElementName") == "before"
    assert [m.state() for m in machines] == [RUNNING, PAUSED, SAVED, OFF]
    assert of_collection(host, collection) == [made.ref]
    own = parts(host, made)
    assert {p.text("VirtualSystemIdentifier").upper() for p in own} == {m.guid.upper() for m in machines}
    for part in own:
        assert part.text("VirtualSystemType") == "Microsoft:Hyper-V:Snapshot:Realized"
        assert part.flag("IsSaved") == (part.text("VirtualSystemIdentifier").upper() != off.guid.upper())
        assert [c.ref for c in host.api.associators(part.ref, "Msvm_CollectedSnapshots")] == [made.ref]
    assert [s.ref for s in host.api.associators(runs.ref, "Msvm_SnapshotOfVirtualSystem")] == \
        [p.ref for p in own if p.text("VirtualSystemIdentifier").upper() == runs.guid.upper()]
    known = detail(host, made)
    pauses = dict(zip(known.texts("VirtualSystemIdentifiers"), known.nums("PauseMicroseconds")))
    print(f"a snapshot with memory: the running guest stood still for {pauses[runs.guid]} us")
    assert pauses[runs.guid] > 0 and pauses[off.guid] == 0
    assert known.num("SnapshotType") == STANDARD
    export(host, made, scratch / "export")
    for machine in machines:
        manifest = json.loads((scratch / "export" / machine.guid / "manifest.json").read_text())
        memory = [f for f in manifest["files"] if f["role"] == "runtime-state"]
        assert len(memory) == (machine is not off)
        host.service.cli("verify", scratch / "export" / machine.guid)

    let_it_write(runs, data)
    with pytest.raises(Refused) as running:
        host.call(SNAPSHOTS, "ApplySnapshot", SnapshotCollection=made.ref)
    assert running.value.code == 32775
    with pytest.raises(Refused) as together:
        host.call("Msvm_VirtualSystemSnapshotService", "DestroySnapshot", AffectedSnapshot=own[0].ref)
    assert together.value.code == 32775
    runs.stop()
    still.stop()
    saved.stop()
    assert host.api.get(collection).text("LastApplyTime") is None
    _, job = host.do(SNAPSHOTS, "ApplySnapshot", SnapshotCollection=made.ref)
    assert job.num("JobType") == 71
    assert [m.state() for m in machines] == [SAVED, SAVED, SAVED, OFF]
    last = host.api.get(collection)
    assert {i.upper() for i in last.texts("LastApplyVirtualMachineIds")} == {m.guid.upper() for m in machines}
    assert last.num("LastApplyConsistencyLevel") == CRASH and last.text("LastApplyTime")
    for machine, directory in ((runs, scratch), (still, scratch / "still"), (saved, scratch / "s")):
        for name in ("boot", "data"):
            file = directory / name / ("boot.img" if name == "boot" else "data.qcow2")
            now = present(machine, file, scratch / f"{machine.guid}-{name}.now")
            images.assert_same(image(scratch / "export" / machine.guid, name), now, "qcow2", "raw")
        machine.start()
    let_it_write(runs, data)
    let_it_write(still, still_data)
    with pytest.raises(Refused) as has_snapshots:
        host.call(MANAGEMENT, "DestroyCollection", Collection=collection)
    assert has_snapshots.value.code == 32775
    _, job = host.do(SNAPSHOTS, "DestroySnapshot", AffectedSnapshotCollection=made.ref)
    assert job.num("JobType") == 72
    assert of_collection(host, collection) == []
    with pytest.raises(ApiFault):
        host.api.get(own[0].ref)
    host.do(MANAGEMENT, "DestroyCollection", Collection=collection)


def test_recovery_snapshots_become_points_of_the_collection_and_differ_exactly(host, guests, scratch):
    machines, disks, data = [], [], []
    for name in ("one", "two"):
        (scratch / name).mkdir()
        machine, boot, own = running_writer(host, guests, scratch / name, name)
        machines.append(machine)
        disks.append([boot, own])
        data.append(own)
    collection = define(host, "backup", members=[m.ref for m in machines])

    def held(target, make):
        """What `make` makes while all machines are held still, and copies of their disks."""
        def second():
            taken, copies["two"] = held_still(machines[1], disks[1], scratch / f"{target}-two", make)
            return taken
        copies = {}
        taken, copies["one"] = held_still(machines[0], disks[0], scratch / f"{target}-one", second)
        return taken, copies

    def assert_exported(directory, copies):
        for machine, name in zip(machines, ("one", "two")):
            root = directory / machine.guid
            host.service.cli("verify", root)
            assert_holds(root, copies[name])

    first, copies = held("f1", lambda: take(host, collection, RECOVERY))
    for machine, file in zip(machines, data):
        let_it_write(machine, file)
    export(host, first, scratch / "full")
    assert_exported(scratch / "full", copies)
    with pytest.raises(Refused) as refused:
        host.call(SNAPSHOTS, "DestroySnapshot", AffectedSnapshotCollection=first.ref)
    assert refused.value.code == 32775
    own = parts(host, first)
    with pytest.raises(Refused) as refused:
        host.call("Msvm_VirtualSystemSnapshotService", "ConvertToReferencePoint", AffectedSnapshot=own[0].ref)
    assert refused.value.code == 32775
    base = convert(host, first)
    assert of_collection(host, collection) == []
    with pytest.raises(ApiFault):
        host.api.get(first.ref)
    assert base.num("ReferencePointType") == 2
    members = host.api.associators(base.ref, "Msvm_CollectedReferencePoints", "Msvm_VirtualSystemReferencePoint")
    assert [m.ref for m in members] == [p.ref for machine in sorted(machines, key=lambda m: m.guid) for p in machine.points()]
    assert all(len(m.texts("ResilientChangeTrackingIdentifiers")) == 2 for m in members)

    for machine, file in zip(machines, data):
        let_it_write(machine, file)
    second, copies = held("f2", lambda: take(host, collection, RECOVERY))
    for machine, file in zip(machines, data):
        let_it_write(machine, file)
    export(host, second, scratch / "diff", base)
    export(host, second, scratch / "merged", base, MERGE)
    for directory in ("diff", "merged"):
        assert_exported(scratch / directory, copies)
    for machine in machines:
        assert images.backing_of(image(scratch / "diff" / machine.guid, "data"))
        assert images.backing_of(image(scratch / "merged" / machine.guid, "data")) is None
    newer = convert(host, second)
    with pytest.raises(Refused) as wrong:
        host.call(SNAPSHOTS, "ExportSnapshot", SnapshotCollection=newer.ref, ExportDirectory=str(scratch / "none"))
    assert wrong.value.code in (32773, 32776)
    for point in (base, newer):
        host.do(POINTS, "DestroyReferencePoint", AffectedReferencePointCollection=point.ref)
    assert [m.points() for m in machines] == [[], []]


def test_an_exported_snapshot_of_a_collection_is_imported_and_boots_from_its_memory(host, guests, scratch):
    machines, data = [], []
    for name in ("one", "two"):
        (scratch / name).mkdir()
        machine, _, own = running_writer(host, guests, scratch / name, name)
        machines.append(machine)
        data.append(own)
    collection = define(host, "moved", members=[m.ref for m in machines])
    made = take(host, collection, STANDARD)
    export(host, made, scratch / "out")
    for machine, name in zip(machines, ("one", "two")):
        config = scratch / "out" / machine.guid / "Virtual Machines" / f"{machine.guid}.json"
        target = scratch / "in" / name
        result, _ = host.do(SYSTEMS, "ImportSystemDefinition", SystemDefinitionFile=str(config), SnapshotFolder=str(target),
                            GenerateNewSystemIdentifier=True)
        host.do(SYSTEMS, "RealizePlannedSystem", PlannedSystem=result["ImportedSystem"])
        other = Machine(host, Ref("Msvm_ComputerSystem", {"CreationClassName": "Msvm_ComputerSystem",
                                                          "Name": result["ImportedSystem"].keys["Name"]}))
        host.machines.append(other)
        assert other.state() == SAVED, "it goes on from its memory"
        other.start()
        let_it_write(other, target / "data.qcow2")
    for machine, file in zip(machines, data):
        let_it_write(machine, file)


class Breakable(Ring):
    """A ring that ends quietly when a snapshot with memory takes the guests' processes away."""

    def turn(self):
        try:
            super().turn()
        except (OSError, AssertionError):
            pass


def test_guests_that_pass_a_number_on_are_never_ahead_of_one_another_in_a_snapshot(host, scratch):
    ring = Breakable(host, scratch, 3)
    try:
        collection = define(host, "ring", members=[m.ref for m in ring.machines])
        base = None
        for n, kind in enumerate((DISK, RECOVERY, DISK, STANDARD)):
            ring.rounds(3)
            made = take(host, collection, kind)
            known = detail(host, made)
            print(f"type {kind}: skew {known.num('SkewMicroseconds')} us (at most {known.num('SkewLimitMicroseconds')} us), "
                  f"pauses {known.nums('PauseMicroseconds')} us")
            assert known.num("SkewMicroseconds") <= known.num("SkewLimitMicroseconds")
            assert all(p > 0 for p in known.nums("PauseMicroseconds")) and known.texts("WasRunning").count("false") == 0
            if kind != STANDARD:
                ring.rounds(1)
            target = scratch / f"export{n}"
            export(host, made, target, base)
            numbers = ring.numbers([image(target / m.guid, "boot") for m in ring.machines])
            assert numbers[0] >= 3 * (n + 1)
            assert in_one_instant(numbers), numbers
            base = made
        assert all(m.state() == RUNNING for m in ring.machines)
    finally:
        ring.stop()


def test_what_a_snapshot_cannot_be_is_refused(host, scratch):
    machine = host.machine_with_disks("one", [host.create_disk(scratch / "a.qcow2", 4 * MIB)])
    collection = define(host, "refused", members=[machine.ref])
    for kind, consistency, more, code in ((0, CRASH, {}, 32773), (32768, CRASH, {}, 32773), (STANDARD, 1, {}, 32773),
                                          (RECOVERY, 7, {}, 32773), (RECOVERY, CRASH, {"GuestBackupType": U8(1)}, 32770),
                                          (RECOVERY, CRASH, {"GuestBackupType": U8(9)}, 32773)):
        with pytest.raises(Refused) as refused:
            begin(host, collection, kind, consistency, **more)
        assert refused.value.code == code, (kind, consistency, more)
    made = take(host, collection, DISK, GuestBackupType=U8(2), IgnoreNonSnapshottableDisks=True)
    other = define(host, "other", members=[machine.ref])
    stranger = take(host, other, DISK)
    with pytest.raises(Refused) as refused:
        export(host, stranger, scratch / "none", made)
    assert refused.value.code == 32775
    job = export(host, made, scratch / "config", storage=False)
    manifest = json.loads((scratch / "config" / machine.guid / "manifest.json").read_text())
    assert manifest["disks"] == [] and job.num("JobState") == 7
    for snapshot in (stranger, made):
        host.do(SNAPSHOTS, "DestroySnapshot", AffectedSnapshotCollection=snapshot.ref)
    for group in (collection, other):
        host.do(MANAGEMENT, "DestroyCollection", Collection=group)


def test_the_command_line_takes_applies_converts_exports_and_deletes_snapshots_of_a_collection(service, scratch):
    host = Host(service.api("cimxml"), service)
    one = host.machine_with_disks("snap one", [host.create_disk(scratch / "a.qcow2", 4 * MIB)])
    host.machine_with_disks("snap two", [host.create_disk(scratch / "b.qcow2", 4 * MIB)])

    def cli(*args):
        return json.loads(service.cli(*args, "-o", "json").stdout)

    cli("group", "create", "snaps", "snap one", "snap two")
    made = cli("snapshot", "create", "--group", "snaps", "--name", "first", "--type", "disk", "--consistency", "crash")
    assert made["name"] == "first" and made["type"] == "disk" and len(made["machines"]) == 2
    cli("snapshot", "create", "--group", "snaps", "--name", "second")
    assert [s["name"] for s in cli("snapshot", "list", "--group", "snaps")] == ["first", "second"]
    cli("snapshot", "apply", "first", "--group", "snaps")
    cli("snapshot", "export", "first", "--group", "snaps", "--to", scratch / "out")
    assert (scratch / "out" / one.guid / "manifest.json").exists()
    cli("snapshot", "create", "--group", "snaps", "--name", "backup", "--type", "recovery", "--consistency", "crash")
    cli("snapshot", "export", "backup", "--group", "snaps", "--base", "first", "--to", scratch / "out")
    refused = service.cli("snapshot", "delete", "backup", "--group", "snaps", check=False)
    assert refused.returncode != 0 and "recovery snapshot" in refused.stderr
    cli("snapshot", "convert", "backup", "--group", "snaps")
    assert [p["name"] for p in cli("point", "list", "--group", "snaps")] == ["backup"]
    for name in ("first", "second"):
        cli("snapshot", "delete", name, "--group", "snaps")
    cli("point", "delete", "backup", "--group", "snaps")
    cli("group", "delete", "snaps")
    host.close()
