"""A collection's point is restored whole: new machines, a collection of them, and the disks of one instant; or nothing at all."""
import json
import shutil

import pytest

from harness import images
from harness.host import DONE, EXCEPTION, OFF, RUNNING, U16, Host, JobFailed, Refused
from harness.service import wait_until
from test_collections import Ring, define, disk_id, export, files_of, in_one_instant, take_point
from test_spine import MIB


def begin_import(host, directory, disks, **more):
    return host.call("Kvmms_ExportService", "ImportCollectionExport", ExportDirectory=str(directory), DiskDirectory=str(disks), **more)


def members(host, collection):
    return host.api.associators(collection, "Msvm_CollectedVirtualSystems", "Msvm_ComputerSystem")


def disk_of(host, machine):
    settings, = host.api.associators(machine.ref, "Msvm_SettingsDefineState", "Msvm_VirtualSystemSettingData")
    disk, = host.api.associators(settings.ref, "Msvm_VirtualSystemSettingDataComponent", "Msvm_StorageAllocationSettingData")
    return disk.texts("HostResource")[0]


def discard(host, collection):
    machines = members(host, collection)
    host.do("Msvm_CollectionManagementService", "DestroyCollection", Collection=collection)
    for m in machines:
        host.do("Msvm_VirtualSystemManagementService", "DestroySystem", AffectedSystem=m.ref)


def test_any_point_of_a_collection_of_guests_is_restored_whole_and_starts(host, scratch):
    ring = Ring(host, scratch, 3)
    try:
        collection = define(host, "ring", members=[m.ref for m in ring.machines])
        base, exported = None, []
        for _ in range(3):
            ring.rounds(2)
            point = take_point(host, collection)
            ring.rounds(1)
            files = files_of(export(host, point, scratch / "export", base))
            exported.append((point, [files[disk_id(m, "boot.img").lower()] for m in ring.machines]))
            base = point
    finally:
        ring.stop()
    for n, (point, files) in enumerate(exported):
        # The newest is taken where none is named.
        at = {} if n == len(exported) - 1 else {"Point": point.text("CollectionID")}
        result = begin_import(host, scratch / "export", scratch / f"restored{n}", NewName=f"again{n}", **at)
        assert host.finish(result).num("JobState") == DONE
        restored = result["ImportedCollection"]
        assert host.api.get(restored).text("ElementName") == f"again{n}"
        made = members(host, restored)
        assert sorted(m.text("ElementName") for m in made) == [f"ring{k}-again{n}" for k in range(3)]
        assert not {m.ref for m in made} & {m.ref for m in ring.machines}
        disks = {m.text("ElementName"): disk_of(host, m) for m in made}
        numbers = ring.numbers([disks[f"ring{k}-again{n}"] for k in range(3)])
        assert in_one_instant(numbers) and numbers[0] >= 2 * (n + 1), numbers
        for k, file in enumerate(files):
            images.check(disks[f"ring{k}-again{n}"])
            images.assert_same(disks[f"ring{k}-again{n}"], file, "qcow2", "qcow2")
        if n == 1:
            for m in made:
                host.finish(host.api.invoke(m.ref, "RequestStateChange", RequestedState=U16(2)))
            assert {host.api.get(m.ref).num("EnabledState") for m in made} == {RUNNING}
            for m in made:
                host.finish(host.api.invoke(m.ref, "RequestStateChange", RequestedState=U16(3)))
            assert {host.api.get(m.ref).num("EnabledState") for m in made} == {OFF}
        discard(host, restored)


def pair(host, scratch, megabytes=4):
    machines = []
    for name in ("left", "right"):
        disk = host.create_disk(scratch / f"{name}.qcow2", megabytes * MIB)
        machines.append(host.machine_with_disks(name, [disk]))
    return define(host, "pair", members=[m.ref for m in machines]), machines


def test_a_collection_with_a_machine_missing_is_refused_and_names_it(host, scratch):
    collection, (left, right) = pair(host, scratch)
    point = take_point(host, collection)
    export(host, point, scratch / "export")
    shutil.move(scratch / "export" / right.guid, scratch / "elsewhere")
    with pytest.raises(JobFailed) as refused:
        host.finish(begin_import(host, scratch / "export", scratch / "restored"))
    assert refused.value.job.num("ErrorCode") == 32775
    told = host.service.cli("group", "import", scratch / "export", "--to", scratch / "restored", check=False)
    assert told.returncode != 0 and right.guid in told.stderr and left.guid not in told.stderr
    assert not (scratch / "restored").exists()
    with pytest.raises((Refused, JobFailed)):
        host.finish(begin_import(host, scratch / "export", scratch / "restored", Point="no such point"))
    # A single machine's export is no collection's.
    own = left.point()
    left.export(own, scratch / "single")
    with pytest.raises((Refused, JobFailed)):
        host.finish(begin_import(host, scratch / "single", scratch / "restored"))


def test_an_export_that_is_damaged_restores_no_machine_of_the_collection(host, scratch):
    collection, (left, right) = pair(host, scratch)
    export(host, take_point(host, collection), scratch / "export")
    image = next((scratch / "export" / right.guid).rglob("*.qcow2"))
    image.write_bytes(b"damage" + image.read_bytes()[6:])
    before = {m.ref for m in host.api.instances("Msvm_ComputerSystem")}
    with pytest.raises(JobFailed) as failed:
        host.finish(begin_import(host, scratch / "export", scratch / "restored"))
    assert failed.value.job.num("JobState") == EXCEPTION
    assert right.guid in " ".join(e.text("Message") for e in failed.value.errors)
    assert {m.ref for m in host.api.instances("Msvm_ComputerSystem")} == before
    assert not list((scratch / "restored").rglob("*.qcow2"))


def test_an_import_of_a_collection_under_way_when_the_service_is_killed_is_whole_or_nothing(own_host, own_service):
    work = own_service.work
    machines = []
    for name in ("left", "right"):
        path = work / f"{name}.img"
        with open("/dev/urandom", "rb") as noise, open(path, "wb") as f:
            for _ in range(256):
                f.write(noise.read(MIB))
        machines.append(own_host.machine_with_disks(name, [path]))
    collection = define(own_host, "pair", members=[m.ref for m in machines])
    export(own_host, take_point(own_host, collection), work / "export")
    result = begin_import(own_host, work / "export", work / "restored")
    ref = own_host.job(result)
    wait_until(lambda: own_host.api.get(ref).num("PercentComplete") >= 20 or own_host.api.get(ref).num("JobState") == DONE, 60, "the copy")
    own_service.kill()
    own_service.start()
    job = own_host.wait_job(ref)
    whole = job.num("JobState") == DONE
    assert len(own_host.api.query("SELECT * FROM Msvm_VirtualSystemCollection")) == (2 if whole else 1)
    assert len(own_host.api.query("SELECT * FROM Msvm_ComputerSystem WHERE Name LIKE '________-%'")) == (4 if whole else 2)
    if not whole:
        assert not [p for p in (work / "restored").rglob("*") if p.is_file()]
        again = begin_import(own_host, work / "export", work / "restored")
        assert own_host.finish(again, 300).num("JobState") == DONE


def test_the_command_line_restores_a_collection(service, scratch):
    host = Host(service.api("wsman"), service)
    collection, _ = pair(host, scratch)
    export(host, take_point(host, collection), scratch / "export")
    done = json.loads(service.cli("group", "import", scratch / "export", "--name", "restored", "--to", scratch / "disks", "-o", "json").stdout)
    assert done["name"] == "restored" and sorted(done["members"]) == ["left-restored", "right-restored"]
    assert sorted(p.name for p in (scratch / "disks").iterdir()) == ["left", "right"]
    missing = service.cli("group", "import", scratch / "export", "--at", "tuesday", "--to", scratch / "other", check=False)
    assert missing.returncode != 0 and "tuesday" in missing.stderr
