"""Collections of machines: members, points of one instant, exports of all or none, failures machine by machine."""
import json
import os
import socket
import subprocess
import threading
import uuid
from pathlib import Path

import pytest

from harness import images, records
from harness.host import (APPLICATION, CRASH, DONE, EXCEPTION, LOG, OFF, PAUSED, RCT, RUNNING, U8, U16, Host, JobFailed, Refused,
                          let_it_write)
from harness.model import ApiFault, Ref
from harness.service import wait_until
from test_spine import MIB, running_writer

MANAGEMENT = "Msvm_CollectionManagementService"
POINTS = "Msvm_CollectionReferencePointService"
OF_MACHINES, OF_COLLECTIONS = 0, 1
GUEST = Path(__file__).parent / "guest" / "relay.s"


def define(host, name, kind=OF_MACHINES, members=()):
    result, _ = host.do(MANAGEMENT, "DefineCollection", Name=name, Type=U16(kind))
    collection = result["DefinedCollection"]
    assert isinstance(collection, Ref), result
    for member in members:
        host.do(MANAGEMENT, "AddMember", Member=member, Collection=collection)
    return collection


def begin_point(host, collection, kind=LOG, consistency=CRASH):
    setting = host.api.embedded("Msvm_CollectionReferencePointSettingData", ConsistencyLevel=U8(consistency))
    return host.call(POINTS, "CreateReferencePoint", Collection=collection, ReferencePointSettings=setting, ReferencePointType=U16(kind))


def take_point(host, collection, kind=LOG, consistency=CRASH):
    """A point of the collection, found the way clients find it: through the job."""
    result = begin_point(host, collection, kind, consistency)
    host.finish(result)
    made = host.api.associators(host.job(result), "Msvm_AffectedJobElement", "Msvm_ReferencePointCollection")
    assert len(made) == 1, made
    return made[0]


def detail(host, point):
    key = f"Microsoft:{point.text('CollectionID')}"
    return host.api.get(Ref("Kvmms_ReferencePointCollectionDetail", {"InstanceID": key}))


def begin_export(host, point, directory, base=None, only=None):
    """`only`: pairs of a machine and its disks' ids, as embedded instances inside the embedded setting."""
    inner = None
    if only is not None:
        inner = []
        for machine, disks in only:
            text = host.api.embedded("Msvm_VirtualMachineToDisks", VirtualMachineId=machine.guid, DisksToExport=disks)
            inner.append(text if isinstance(text, str) else text.tocimxml().toxml())
    setting = host.api.embedded("Msvm_CollectionReferencePointExportSettingData",
                                BaseReferencePointCollection=base.ref.text() if base is not None else None,
                                VirtualMachinesToDisksToExport=inner)
    return host.call(POINTS, "ExportReferencePoint", ReferencePointCollection=point.ref, ExportDirectory=str(directory),
                     ExportSettingData=setting)


def export(host, point, directory, base=None, only=None):
    return host.finish(begin_export(host, point, directory, base, only), 300)


def files_of(job):
    """Exported disk -> file."""
    disks, files = job.texts("ExportedDisks"), job.texts("ExportedLogFilePaths")
    assert len(disks) == len(files)
    return dict(zip((d.lower() for d in disks), files))


def disk_id(machine, name):
    found = [d for d in machine.disks() if Path(d.texts("HostResource")[0]).name == name]
    assert len(found) == 1
    return found[0].text("InstanceID")


def leave_nothing(host, *points):
    for point in points:
        host.do(POINTS, "DestroyReferencePoint", AffectedReferencePointCollection=point.ref)


def test_a_collection_is_defined_named_filled_emptied_and_destroyed(host, scratch):
    machine = host.machine_with_disks("member", [host.create_disk(scratch / "d.qcow2", 4 * MIB)])
    wanted = str(uuid.uuid4()).upper()
    result, _ = host.do(MANAGEMENT, "DefineCollection", Name="first name", Id=wanted, Type=U16(OF_MACHINES))
    collection = result["DefinedCollection"]
    assert collection == Ref("Msvm_VirtualSystemCollection", {"CollectionID": wanted})
    host.do(MANAGEMENT, "AddMember", Member=machine.ref, Collection=collection)
    with pytest.raises(Refused) as twice:
        host.call(MANAGEMENT, "AddMember", Member=machine.ref, Collection=collection)
    assert twice.value.code in (32773, 32775)
    members = host.api.associators(collection, "Msvm_CollectedVirtualSystems", "Msvm_ComputerSystem")
    assert [m.ref for m in members] == [machine.ref]
    above = host.api.associators(machine.ref, "Msvm_CollectedVirtualSystems")
    assert [c.ref for c in above] == [collection]
    links = host.api.references(collection, "Msvm_CollectedVirtualSystems", "Collection")
    assert len(links) == 1
    host.do(MANAGEMENT, "RenameCollection", Collection=collection, NewName="second name")
    assert host.api.get(collection).text("ElementName") == "second name"
    found = host.api.query("SELECT * FROM CIM_CollectionOfMSEs WHERE ElementName = 'second name'")
    assert [f.ref for f in found] == [collection]

    upper = define(host, "upper", OF_COLLECTIONS, [collection])
    assert [c.ref for c in host.api.associators(upper, "Msvm_CollectedCollections", role="Collection")] == [collection]
    assert [c.ref for c in host.api.associators(collection, "Msvm_CollectedCollections", role="Member")] == [upper]
    with pytest.raises(Refused):
        host.call(MANAGEMENT, "AddMember", Member=upper, Collection=upper)
    with pytest.raises(Refused):
        host.call(MANAGEMENT, "AddMember", Member=machine.ref, Collection=upper)
    with pytest.raises(Refused):
        begin_point(host, upper)

    host.do(MANAGEMENT, "RemoveMember", Member=machine.ref, Collection=collection)
    with pytest.raises(Refused):
        host.call(MANAGEMENT, "RemoveMember", Member=machine.ref, Collection=collection)
    host.do(MANAGEMENT, "RemoveMemberById", Member=machine.ref, CollectionId=wanted)
    with pytest.raises(Refused) as empty:
        begin_point(host, collection)
    assert empty.value.code == 32775
    host.do(MANAGEMENT, "DestroyCollection", Collection=collection)
    with pytest.raises(ApiFault) as gone:
        host.api.get(collection)
    assert gone.value.not_found
    assert host.api.associators(upper, "Msvm_CollectedCollections") == []
    host.do(MANAGEMENT, "RemoveMemberById", Member=machine.ref, CollectionId=wanted)
    host.do(MANAGEMENT, "DestroyCollection", Collection=upper)


def test_a_point_of_running_paused_and_stopped_machines_is_exported_whole(host, guests, scratch):
    runs, boot, data = running_writer(host, guests, scratch, "runs")
    (scratch / "still").mkdir()
    still, still_boot, still_data = running_writer(host, guests, scratch / "still", "still")
    still.pause()
    off = host.machine_with_disks("off", [host.create_disk(scratch / "off.qcow2", 4 * MIB)])
    collection = define(host, "mixed", members=[m.ref for m in (runs, still, off)])

    first = take_point(host, collection)
    assert first.num("ReferencePointType") == LOG and first.num("ConsistencyLevel") == CRASH
    assert first.flag("HasAssociatedLog") is True
    assert first.text("VirtualSystemCollectionId") == collection.keys["CollectionID"]
    assert [p.ref for p in host.api.associators(collection, "Msvm_ReferencePointOfVirtualSystemCollection")] == [first.ref]
    own = host.api.associators(first.ref, "Msvm_CollectedReferencePoints", "Msvm_VirtualSystemReferencePoint")
    assert {p.text("VirtualSystemIdentifier") for p in own} == {m.guid for m in (runs, still, off)}
    assert [p.ref for m in (runs, still, off) for p in m.points()] == \
        [next(p.ref for p in own if p.text("VirtualSystemIdentifier") == m.guid) for m in (runs, still, off)]
    assert [c.ref for c in host.api.associators(own[0].ref, "Msvm_CollectedReferencePoints")] == [first.ref]
    assert (runs.state(), still.state(), off.state()) == (RUNNING, PAUSED, OFF)
    known = detail(host, first)
    pauses = dict(zip(known.texts("VirtualSystemIdentifiers"), known.nums("PauseMicroseconds")))
    assert pauses[runs.guid] > 0 and pauses[still.guid] == 0 and pauses[off.guid] == 0
    print(f"pause of the one running machine: {pauses[runs.guid]} us")

    let_it_write(runs, data)
    target = scratch / "export"
    job = export(host, first, target)
    assert job.class_name == "Msvm_CollectionReferencePointExportJob"
    assert job.num("JobState") == DONE and "JobType" not in {k for k, v in job.properties.items() if v is not None}
    assert job.text("CollectionId") == collection.keys["CollectionID"]
    assert job.text("ReferencePointGroupId") == first.text("CollectionID")
    assert not job.text("BaseReferencePointGroupId")
    assert Path(job.text("ExportDirectory")) == target
    machines, configs = job.texts("VirtualMachineId"), job.texts("ExportedConfigFilePaths")
    assert sorted(machines) == sorted(m.guid for m in (runs, still, off))
    assert len(configs) == len(job.texts("ExportedGuestStateFilePaths")) == len(machines)
    for guid, config in zip(machines, configs):
        assert Path(config).is_file() and target / guid in Path(config).parents
        whole = json.loads((target / guid / "manifest.json").read_text())["collection"]
        assert whole["point"] == first.text("CollectionID") and whole["name"] == "mixed"
        assert {m["id"]: m["name"] for m in whole["machines"]} == {runs.guid: "runs", still.guid: "still", off.guid: "off"}
    files = files_of(job)
    assert len(files) == 5
    for machine, boot_disk in ((runs, boot), (still, still_boot)):
        numbers = []
        for name in (boot_disk.name, "data.qcow2"):
            file = files[disk_id(machine, name).lower()]
            assert target / machine.guid in Path(file).parents
            images.check(file)
            numbers.append(records.writer_disk(images.flatten(file, scratch / f"{machine.guid}-{name}.raw")))
        assert numbers[0] > 0
        records.assert_one_instant(*numbers)

    let_it_write(runs, data)
    second = take_point(host, collection)
    job = export(host, second, target, first)
    assert job.text("BaseReferencePointGroupId") == first.text("CollectionID")
    later = files_of(job)
    assert later.keys() == files.keys() and not set(later.values()) & set(files.values())
    for file in later.values():
        assert images.backing_of(file)
        images.check(file)
    whole = images.flatten(later[disk_id(runs, boot.name).lower()], scratch / "later.raw")
    assert records.writer_disk(whole) > 0

    with pytest.raises(Refused) as reversed_base:
        begin_export(host, first, scratch / "reversed", second)
    assert reversed_base.value.code == 32775
    with pytest.raises(Refused) as own_point:
        host.call("Msvm_VirtualSystemReferencePointService", "DestroyReferencePoint", AffectedReferencePoint=runs.points()[0].ref)
    assert own_point.value.code == 32775
    host.do(POINTS, "RemoveAssociatedData", AffectedReferencePointCollection=first.ref)
    assert host.api.get(first.ref).flag("HasAssociatedLog") is False
    assert host.api.get(second.ref).flag("HasAssociatedLog") is True
    with pytest.raises(Refused) as has_points:
        host.call(MANAGEMENT, "DestroyCollection", Collection=collection)
    assert has_points.value.code == 32775
    leave_nothing(host, first, second)
    assert [p for m in (runs, still, off) for p in m.points()] == []
    host.do(MANAGEMENT, "DestroyCollection", Collection=collection)
    still.stop()
    assert sorted(p.name for p in still_data.parent.iterdir()) == ["data.qcow2"]
    images.check(still_data)


def test_only_some_machines_and_disks_are_exported_when_they_are_named(host, scratch):
    one = host.machine_with_disks("one", [host.create_disk(scratch / "a.qcow2", 4 * MIB), host.create_disk(scratch / "b.qcow2", 4 * MIB)])
    two = host.machine_with_disks("two", [host.create_disk(scratch / "c.qcow2", 4 * MIB)])
    other = host.machine_with_disks("other", [host.create_disk(scratch / "d.qcow2", 4 * MIB)])
    collection = define(host, "some", members=[one.ref, two.ref])
    point = take_point(host, collection, RCT)
    wanted = disk_id(one, "b.qcow2")
    job = export(host, point, scratch / "part", only=[(one, [wanted])])
    assert job.texts("VirtualMachineId") == [one.guid]
    assert [d.lower() for d in job.texts("ExportedDisks")] == [wanted.lower()]
    with pytest.raises(Refused) as stranger:
        begin_export(host, point, scratch / "none", only=[(other, None)])
    assert stranger.value.code == 32773
    # What is only partly exported stays exportable.
    job = export(host, point, scratch / "all", only=[(one, None), (two, None)])
    assert len(job.texts("ExportedDisks")) == 3
    leave_nothing(host, point)
    host.do(MANAGEMENT, "DestroyCollection", Collection=collection)


def test_each_failed_machine_of_an_export_has_an_error_of_its_own_and_nothing_is_left(host, scratch):
    machines = []
    for n in range(3):
        (scratch / str(n)).mkdir()
        machines.append(host.machine_with_disks(f"m{n}", [host.create_disk(scratch / str(n) / "d.qcow2", 4 * MIB)]))
    collection = define(host, "broken", members=[m.ref for m in machines])
    point = take_point(host, collection)
    # The frozen layer of two members changes behind the service's back.
    for n in (0, 2):
        with open(scratch / str(n) / "d.qcow2", "ab") as f:
            f.write(b"\0" * 65536)
    with pytest.raises(JobFailed) as failed:
        export(host, point, scratch / "export")
    job, errors = failed.value.job, failed.value.errors
    assert job.num("JobState") == EXCEPTION and job.num("ErrorCode")
    assert errors[0].text("MessageID") == "KVMMS-0197" and errors[0].text("Message").startswith("2 of 3 machines failed")
    members = [e for e in errors if e.text("MessageID") == "KVMMS-0104"]
    # The job's own words are a line for the whole and one for each machine that failed.
    lines = job.text("ErrorDescription").splitlines()
    assert lines[0].startswith("2 of 3 machines failed"), lines
    assert [sum(f"m{n}" in line for line in lines[1:]) for n in range(3)] == [1, 0, 1], lines
    assert {Ref.parse(e.text("ErrorSource")) for e in members} == {machines[0].ref, machines[2].ref}
    for e in errors[1:]:
        assert Ref.parse(e.text("ErrorSource")) in {machines[0].ref, machines[2].ref}
    one = host.api.invoke(job.ref, "GetError")
    assert host.api.read_embedded(one["Error"]).text("Message") == errors[0].text("Message")
    assert not (scratch / "export").exists()
    assert host.api.get(point.ref).flag("HasAssociatedLog") is True


def test_the_directories_of_all_machines_of_an_export_are_looked_at_before_the_first_byte(host, scratch):
    machines = []
    for n in range(3):
        (scratch / str(n)).mkdir()
        machines.append(host.machine_with_disks(f"place{n}", [host.create_disk(scratch / str(n) / "d.qcow2", 4 * MIB)]))
    collection = define(host, "places", members=[m.ref for m in machines])
    point = take_point(host, collection)
    target = scratch / "export"
    target.mkdir()
    for last in machines:
        # Whichever member it is whose place somebody has, nothing of the others is there.
        theirs = target / last.guid.upper() / "Virtual Machines"
        theirs.mkdir(parents=True)
        theirs = theirs / f"{last.guid.upper()}.json"
        theirs.write_text("theirs")
        with pytest.raises(JobFailed) as failed:
            export(host, point, target)
        assert any(str(theirs) in e.text("Message") for e in failed.value.errors), failed.value
        assert [p for p in target.rglob("*") if not p.is_dir()] == [theirs] and theirs.read_text() == "theirs"
        theirs.unlink()
        theirs.parent.rmdir()
        theirs.parent.parent.rmdir()
    export(host, point, target)
    leave_nothing(host, point)
    host.do(MANAGEMENT, "DestroyCollection", Collection=collection)


def test_the_room_that_all_machines_of_an_export_need_together_is_looked_at_before_the_first_byte(host, scratch):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    small = scratch / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m,mode=700", "tmpfs", small]).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        machines = []
        for n in range(2):
            path = scratch / f"room{n}.img"
            path.write_bytes(os.urandom(6 * MIB))
            machines.append(host.machine_with_disks(f"room{n}", [path]))
        collection = define(host, "room", members=[m.ref for m in machines])
        point = take_point(host, collection)
        with pytest.raises(JobFailed) as failed:
            export(host, point, small / "both")
        told = [e.text("Message") for e in failed.value.errors if "bytes needed" in e.text("Message")]
        needed = int(told[0].split("(")[1].split(" bytes needed")[0])
        assert 12 * MIB <= needed < 16 * MIB, told
        # Each of them alone has room: nothing of either was written, so that the first fits afterwards.
        assert [p for p in small.rglob("*") if p.is_file()] == []
        job = export(host, point, small / "one", only=[(machines[0], None)])
        images.assert_same(job.texts("ExportedLogFilePaths")[0], scratch / "room0.img", "qcow2", "raw")
        leave_nothing(host, point)
        host.do(MANAGEMENT, "DestroyCollection", Collection=collection)
    finally:
        subprocess.run(["umount", small], check=True)


def test_application_consistency_fails_with_one_error_for_each_guest_without_an_agent(host, guests, scratch):
    (scratch / "b").mkdir()
    one, _, _ = running_writer(host, guests, scratch, "one")
    two, _, two_data = running_writer(host, guests, scratch / "b", "two")
    off = host.machine_with_disks("off", [host.create_disk(scratch / "off.qcow2", 4 * MIB)])
    collection = define(host, "app", members=[one.ref, two.ref, off.ref])
    with pytest.raises(JobFailed) as failed:
        take_point(host, collection, RCT, APPLICATION)
    errors = failed.value.errors
    assert errors[0].text("MessageID") == "KVMMS-0103"
    assert Ref.parse(errors[0].text("ErrorSource")) == collection
    members = [e for e in errors if e.text("MessageID") == "KVMMS-0104"]
    assert {Ref.parse(e.text("ErrorSource")) for e in members} == {one.ref, two.ref}
    assert one.points() == two.points() == off.points() == []
    assert host.api.associators(collection, "Msvm_ReferencePointOfVirtualSystemCollection") == []
    assert one.state() == two.state() == RUNNING
    let_it_write(two, two_data)


def test_a_deleted_machine_leaves_its_collections_and_their_points(host, scratch):
    one = host.machine_with_disks("one", [host.create_disk(scratch / "a.qcow2", 4 * MIB)])
    two = host.machine_with_disks("two", [host.create_disk(scratch / "b.qcow2", 4 * MIB)])
    collection = define(host, "shrinks", members=[one.ref, two.ref])
    point = take_point(host, collection)
    one.destroy()
    members = host.api.associators(collection, "Msvm_CollectedVirtualSystems")
    assert [m.ref for m in members] == [two.ref]
    own = host.api.associators(point.ref, "Msvm_CollectedReferencePoints")
    assert [p.text("VirtualSystemIdentifier") for p in own] == [two.guid]
    two.destroy()
    with pytest.raises(ApiFault):
        host.api.get(point.ref)
    assert host.api.get(collection).text("ElementName") == "shrinks"
    host.do(MANAGEMENT, "DestroyCollection", Collection=collection)


class Ring:
    """Guests that pass a number on: the host hands N to the first, waits until it says that N is on its disk, hands it to the next,
    and after the last goes on with N + 1. So at any one instant the disks hold n0 >= n1 >= ... >= n0 - 1."""

    def __init__(self, host, directory, count):
        for tool in (["as", "--32", "-o", directory / "relay.o", GUEST], ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary",
                                                                         "-o", directory / "relay.bin", directory / "relay.o"]):
            subprocess.run(tool, check=True)
        self.host, self.machines, self.sockets, self.disks = host, [], [], []
        self.number, self.stopping = 0, threading.Event()
        for n in range(count):
            (directory / str(n)).mkdir()
            disk = directory / str(n) / "boot.img"
            disk.write_bytes((directory / "relay.bin").read_bytes())
            os.truncate(disk, 4 * MIB)
            machine = host.machine_with_disks(f"ring{n}", [disk], memory=32)
            machine.start()
            self.machines.append(machine)
            self.disks.append(disk)
            self.sockets.append(self.connect(machine))
        self.thread = threading.Thread(target=self.turn)
        self.thread.start()

    def connect(self, machine):
        path = self.host.service.run / machine.guid.replace("-", "").lower()[:16] / "com1.sock"
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(60)
        s.connect(str(path))
        return s

    def turn(self):
        while not self.stopping.is_set():
            self.number += 1
            sent = self.number.to_bytes(4, "little")
            for s in self.sockets:
                s.sendall(sent)
                answer = b""
                # What the BIOS prints comes first.
                while not answer.endswith(sent):
                    got = s.recv(64)
                    assert got
                    answer = (answer + got)[-8:]

    def rounds(self, count):
        wanted = self.number + count
        wait_until(lambda: self.number >= wanted or not self.thread.is_alive(), 60, f"round {wanted}")
        assert self.thread.is_alive(), "the ring is broken"

    def numbers(self, files):
        """The highest number on each exported disk."""
        found = []
        for n, file in enumerate(files):
            raw = images.flatten(file, f"{file}.raw").read_bytes()
            highest = 0
            for at in range(2048 * 512, 3072 * 512, 512):
                word = raw[at:at + 4]
                assert raw[at:at + 512] == word * 128, f"guest {n}: a torn sector"
                highest = max(highest, int.from_bytes(word, "little"))
            found.append(highest)
        return found

    def stop(self):
        self.stopping.set()
        self.thread.join(60)
        for s in self.sockets:
            s.close()


def in_one_instant(numbers):
    return all(a >= b for a, b in zip(numbers, numbers[1:])) and numbers[-1] >= numbers[0] - 1


def test_guests_that_pass_a_number_on_are_never_ahead_of_one_another(host, scratch):
    ring = Ring(host, scratch, 4)
    try:
        collection = define(host, "ring", members=[m.ref for m in ring.machines])
        base = None
        for n in range(5):
            ring.rounds(3)
            point = take_point(host, collection, LOG)
            known = detail(host, point)
            print(f"skew {known.num('SkewMicroseconds')} us (at most {known.num('SkewLimitMicroseconds')} us), "
                  f"pauses {known.nums('PauseMicroseconds')} us")
            assert known.num("SkewMicroseconds") <= known.num("SkewLimitMicroseconds")
            assert all(p > 0 for p in known.nums("PauseMicroseconds")) and known.texts("WasRunning").count("false") == 0
            ring.rounds(1)
            files = files_of(export(host, point, scratch / "export", base))
            numbers = ring.numbers([files[disk_id(m, "boot.img").lower()] for m in ring.machines])
            assert numbers[0] >= 3 * (n + 1)
            assert in_one_instant(numbers), numbers
            base = point
        # The judge can tell: points of single machines, one after the other, are not of one instant.
        singles = []
        for machine in ring.machines:
            singles.append(machine.point(LOG))
            ring.rounds(3)
        jobs = [m.export(p, scratch / "single") for m, p in zip(ring.machines, singles)]
        numbers = ring.numbers([files_of(j)[disk_id(m, "boot.img").lower()] for m, j in zip(ring.machines, jobs)])
        assert not in_one_instant(numbers), numbers
    finally:
        ring.stop()


def test_the_command_line_makes_a_collection_takes_exports_shows_and_deletes_its_points(service, scratch):
    host = Host(service.api("cimxml"), service)
    one = host.machine_with_disks("cli one", [host.create_disk(scratch / "a.qcow2", 4 * MIB)])
    host.machine_with_disks("cli two", [host.create_disk(scratch / "b.qcow2", 4 * MIB)])
    one.start()

    def cli(*args):
        return json.loads(service.cli(*args, "-o", "json").stdout)

    made = cli("group", "create", "cli", "cli one", "cli two")
    assert made["members"] == ["cli one", "cli two"]
    assert made["id"] in [g["id"] for g in cli("group", "list")]
    point = cli("point", "create", "--group", "cli", "--name", "first", "--consistency", "crash", "--type", "log")
    assert point["name"] == "first" and point["longestPauseUs"] > 0
    assert point["skewUs"] <= point["skewLimitUs"]
    ran = {m["machine"]: m["running"] for m in point["machines"]}
    assert ran == {"cli one": True, "cli two": False}
    exported = cli("point", "export", "first", "--group", "cli", "--to", scratch / "out")
    assert len(exported["disks"]) == 2 and (scratch / "out" / one.guid / "manifest.json").exists()
    service.cli("verify", scratch / "out" / one.guid)
    cli("point", "create", "--group", "cli", "--name", "second", "--consistency", "crash")
    again = cli("point", "export", "second", "--group", "cli", "--base", "first", "--to", scratch / "out")
    assert again["basePointId"] == point["id"]
    assert [p["name"] for p in cli("point", "list", "--group", "cli")] == ["first", "second"]
    shown = service.cli("point", "show", "first", "--group", "cli").stdout
    assert "STOOD STILL FOR" in shown and "Skew" in shown
    print(shown)
    assert cli("group", "show", "cli")["points"][0]["name"] == "first"
    cli("point", "remove-data", "first", "--group", "cli")
    refused = service.cli("group", "delete", "cli", check=False)
    assert refused.returncode != 0 and "has reference points" in refused.stderr
    for name in ("first", "second"):
        cli("point", "delete", name, "--group", "cli")
    cli("group", "rename", "cli", "renamed")
    assert cli("group", "remove", "renamed", "cli two")["members"] == ["cli one"]
    assert cli("group", "add", "renamed", "cli two")["members"] == ["cli one", "cli two"]
    cli("group", "delete", "renamed")
    assert made["id"] not in [g["id"] for g in cli("group", "list")]
    host.close()
