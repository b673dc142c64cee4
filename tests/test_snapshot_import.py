"""ImportSnapshotDefinitions: the snapshots exported with a machine live on at the planned one, and are applied once it is realized."""
import pytest

from harness import images
from harness.host import DONE, OFF, SAVED, U8, JobFailed, Machine, Refused, let_it_write
from harness.model import Ref
from harness.service import Service
from test_backup_flow import (ALL, DISK, FULL, MANAGEMENT, SETTINGS, SNAPSHOTS, export, held_still, snapshot, snapshots)
from test_spine import running_writer


@pytest.fixture(scope="module")
def service():
    """What is imported here was exported here: its memory can be trusted."""
    s = Service(config="import_memory = true\n")
    try:
        yield s.start()
    finally:
        s.close()


def test_snapshots_exported_with_a_machine_are_imported_and_applied(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "travels")
    first, copies = held_still(machine, [boot, data], scratch / "f1", lambda: snapshot(machine, DISK, name="first"))
    let_it_write(machine, data)
    memory = snapshot(machine, FULL, name="memory")
    let_it_write(machine, data)
    machine.stop()
    last = {p.name: images.freeze(p.parent, scratch / f"{p.name}.last", "raw" if p.suffix == ".img" else "qcow2") for p in (boot, data)}
    job = export(machine, scratch / "out", CopySnapshotConfiguration=U8(ALL), CopyVmRuntimeInformation=True)
    assert job.num("JobState") == DONE
    root = scratch / "out" / machine.guid.upper()
    host.service.cli("verify", root)

    result, _ = host.do(MANAGEMENT, "ImportSystemDefinition", SystemDefinitionFile=str(root / "Virtual Machines" / f"{machine.guid.upper()}.json"),
                        SnapshotFolder=str(scratch / "in"), GenerateNewSystemIdentifier=True)
    planned = result["ImportedSystem"]
    assert planned.class_name == "Msvm_PlannedComputerSystem"
    with pytest.raises(JobFailed) as empty:
        host.do(MANAGEMENT, "ImportSnapshotDefinitions", PlannedSystem=planned, SnapshotFolder=str(scratch / "f1"))
    assert empty.value.job.num("ErrorCode") == 32768
    with pytest.raises(Refused) as real:
        host.call(MANAGEMENT, "ImportSnapshotDefinitions", PlannedSystem=machine.ref, SnapshotFolder=str(root / "Snapshots"))
    assert real.value.code == 32775
    result, job = host.do(MANAGEMENT, "ImportSnapshotDefinitions", PlannedSystem=planned, SnapshotFolder=str(root / "Snapshots"))
    assert job.class_name == "Msvm_ConcreteJob" and job.num("JobType") == 60
    imported = result.refs("ImportedSnapshots")
    assert len(imported) == 2
    found = host.api.associators(host.job(result), "Msvm_AffectedJobElement", SETTINGS)
    assert {s.ref for s in found} == set(imported)
    settings = [host.api.get(s) for s in imported]
    assert [s.text("ElementName") for s in settings] == ["first", "memory"]
    assert [s.flag("IsSaved") for s in settings] == [False, True]
    for s in settings:
        assert s.text("VirtualSystemType") == "Microsoft:Hyper-V:Snapshot:Planned"
        assert s.text("VirtualSystemIdentifier").upper() == planned.keys["Name"].upper()
    assert Ref.parse(settings[1].text("Parent")) == imported[0]
    # Those of the machine itself stay what they were.
    assert [s.ref for s in snapshots(machine)] == [first.ref, memory.ref]

    host.do(MANAGEMENT, "RealizePlannedSystem", PlannedSystem=planned)
    other = Machine(host, Ref("Msvm_ComputerSystem", {"CreationClassName": "Msvm_ComputerSystem", "Name": planned.keys["Name"]}))
    host.machines.append(other)
    assert [s.ref for s in snapshots(other)] == imported
    assert all(s.text("VirtualSystemType") == "Microsoft:Hyper-V:Snapshot:Realized" for s in snapshots(other))
    current = host.api.associators(other.ref, "Msvm_MostCurrentSnapshotInBranch")
    assert [s.ref for s in current] == [imported[1]]
    assert other.state() == OFF

    def assert_holds(copies, what):
        export(other, scratch / what, CopySnapshotConfiguration=U8(1), CreateVmExportSubdirectory=False)
        for name, copy in copies.items():
            file, = (scratch / what / "Virtual Hard Disks").glob(f"{name.split('.')[0]}-*.qcow2")
            images.check(file)
            images.assert_same(file, copy, "qcow2", "raw")

    assert_holds(last, "now")
    host.do(SNAPSHOTS, "ApplySnapshot", Snapshot=imported[0])
    assert_holds(copies, "back")
    host.do(SNAPSHOTS, "ApplySnapshot", Snapshot=imported[1])
    assert other.state() == SAVED
    other.start()
    let_it_write(other, scratch / "in" / "data.qcow2")
    other.stop()
    for s in reversed(imported):
        host.do(SNAPSHOTS, "DestroySnapshot", AffectedSnapshot=s)
    assert snapshots(other) == []
