"""Files of a disk changed behind the service's back: the points say so, and a differential export does what the policy of the host says.

The judges are qemu-img and copies made by other means. Each policy has a service of its own.
"""
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from conftest import PROTOCOLS
from harness import images
from harness.host import LOG, OFF, RCT, U16, U64, Host, JobFailed, let_it_write
from harness.model import Ref
from harness.service import Service, wait_until
from test_backup_flow import backup, convert, image, snapshot
from test_changes import changes
from test_collections import define, export as export_collection, files_of, take_point
from test_exact import assert_exact, exported, frozen_point
from test_spine import MIB, running_writer

BLOCK = 65536


@pytest.fixture
def serve():
    """Starts services with a policy each."""
    made = []

    def start(policy):
        made.append(Service(config=f'tampering_policy = "{policy}"\n'))
        return made[-1].start()
    yield start
    for s in made:
        s.close()


def still_disk(host, directory, size=24 * MIB):
    """A disk full of noise that the guest leaves alone."""
    directory.mkdir()
    raw = directory.parent / f"{directory.name}.noise"
    raw.write_bytes(os.urandom(size))
    still = directory / "still.qcow2"
    images.qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, still)
    raw.unlink()
    return still


def scribble(path, offset, fmt="qcow2"):
    """Writes 4 KiB into a file as a stranger does."""
    done = subprocess.run(["qemu-io", "-f", fmt, "-c", f"write -P 0x5a {offset} 4096", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def exchange(path, offset):
    """Puts another file in the place of one."""
    copy = path.with_name("elsewhere")
    shutil.copyfile(path, copy)
    scribble(copy, offset)
    os.replace(copy, path)


def prepared(host, guests, work, name, kind=LOG, size=24 * MIB):
    """A machine with a writing guest and a disk of noise, a point of it, and its full export."""
    machine, boot, data = running_writer(host, guests, work, name)
    machine.stop()
    still = still_disk(host, work / "still", size)
    machine.attach(still, slot=2)
    machine.start()
    let_it_write(machine, data)
    first, copies = frozen_point(machine, [boot, data, still], work / "f1", kind)
    full = machine.export(first, work / "e")
    let_it_write(machine, data)
    return machine, [boot, data, still], first, copies, full


def second_point(machine, disks, target, kind=LOG):
    """A point of a stopped machine, with copies of its disks made by other means."""
    target.mkdir()
    copies = {d.name: images.freeze(d.parent, target / f"{d.name}.frozen", "raw" if d.suffix == ".img" else "qcow2") for d in disks}
    return machine.point(kind), copies


def detail(host, point):
    return host.api.get(Ref("Kvmms_ReferencePointDetail", {"InstanceID": point.text("InstanceID")}))


def job_record(host, job):
    return host.api.get(Ref("Kvmms_JobRecord", {"InstanceID": job.text("InstanceID")}))


def warnings(host, job):
    return [e.text("MessageID") for e in host.errors(job.ref)]


def changed_blocks(before, after):
    """How many blocks of 64 KiB differ between two raw images."""
    with open(before, "rb") as a, open(after, "rb") as b:
        count = 0
        while True:
            x, y = a.read(BLOCK), b.read(BLOCK)
            if not x and not y:
                return count
            count += x != y


def assert_small(machine, job, before, after):
    """Of each disk about as much was sent as changed: the blocks, three clusters of tables for each 512 MiB, the header."""
    for name, copy in after.items():
        sent = Path(exported(machine, job, name)).stat().st_size
        blocks = changed_blocks(before[name], copy)
        assert sent <= (blocks * 1.1 + 12) * BLOCK, f"{name}: {blocks} blocks changed, {sent} bytes sent"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("how", [scribble, exchange], ids=["altered", "exchanged"])
def test_repair_makes_an_exact_difference_and_sends_what_changed(serve, guests, protocol, how):
    service = serve("repair")
    host = Host(service.api(protocol), service)
    work = service.work
    machine, disks, first, before, full = prepared(host, guests, work, "repair")
    assert detail(host, first).flag("Trusted") is True and detail(host, first).texts("TrustProblems") == []
    machine.stop()
    how(disks[2], 10 * MIB + 8192)
    told = detail(host, first)
    assert told.flag("Trusted") is False and told.flag("Held") is False
    assert any("cannot be exported" in t and "still.qcow2" in t for t in told.texts("TrustProblems"))
    second, after = second_point(machine, disks, work / "f2")
    assert detail(host, second).flag("Trusted") is True
    assert changed_blocks(before["still.qcow2"], after["still.qcow2"]) == 1
    machine.start()
    job = machine.export(second, work / "e", first)
    assert job.text("BaseReferencePointId"), "it stays a difference"
    assert_exact(machine, full, before)
    assert_exact(machine, job, after)
    assert_small(machine, job, before, after)
    assert "KVMMS-0127" in warnings(host, job)
    assert job.nums("OperationalStatus") == [3] and job.num("ErrorCode") == 0, "done, and there is something to know"
    told = host.api.read_embedded(host.api.invoke(job.ref, "GetError")["Error"])
    assert told.text("MessageID") == "KVMMS-0127" and told.num("PerceivedSeverity") == 2
    assert any("comparing hashes" in d and "still.qcow2 was changed" in d for d in job_record(host, job).texts("Decisions"))
    assert any("comparing hashes" in d for d in detail(host, second).texts("Decisions"))
    manifests = [json.loads(p.read_text()) for p in (work / "e").rglob("manifest.json")]
    decided = [d for m in manifests for d in m.get("decisions", []) if "hashes" in d["decision"]]
    assert len(decided) == 1 and "was changed by something" in decided[0]["reason"]
    service.cli("verify", work / "e")
    # The old point is lost, and says so; what changed since is not answered.
    with pytest.raises(JobFailed) as refused:
        machine.export(first, work / "again")
    assert refused.value.job.num("ErrorCode") == 32768
    shown = json.loads(service.cli("point", "show", first.text("InstanceID").split(":")[-1], "--output", "json").stdout)
    assert shown["trusted"] is False and shown["trustProblems"]
    assert json.loads(service.cli("host", "show", "--output", "json").stdout)["tamperingPolicy"] == "repair"
    # The chain goes on, tracked as ever.
    let_it_write(machine, disks[1])
    third, last = frozen_point(machine, disks, work / "f3")
    job = machine.export(third, work / "e", second)
    assert_exact(machine, job, last)
    assert job_record(host, job).texts("Decisions") == [] and warnings(host, job) == []
    service.cli("verify", work / "e")


def test_full_writes_the_point_whole_and_says_why(serve, guests):
    service = serve("full")
    host = Host(service.api("cimxml"), service)
    machine, disks, first, _, _ = prepared(host, guests, service.work, "full")
    machine.stop()
    scribble(disks[2], MIB)
    second, after = second_point(machine, disks, service.work / "f2")
    job = machine.export(second, service.work / "whole", first)
    assert not job.text("BaseReferencePointId")
    assert_exact(machine, job, after)
    for name in after:
        assert images.backing_of(exported(machine, job, name)) is None
    assert "KVMMS-0128" in warnings(host, job)
    assert any("whole" in d and "still.qcow2 was changed" in d for d in job_record(host, job).texts("Decisions"))
    service.cli("verify", service.work / "whole")


def test_fail_fails_with_the_reason_and_a_killed_qemu_is_no_reason(serve, guests):
    service = serve("fail")
    host = Host(service.api("wsman"), service)
    work = service.work
    machine, disks, first, before, _ = prepared(host, guests, work, "fail")
    os.kill(machine.qemu(), signal.SIGKILL)
    wait_until(lambda: machine.state() == OFF, 30, "the machine to be seen as off")
    assert detail(host, first).flag("Trusted") is True
    second, after = second_point(machine, disks, work / "f2")
    job = machine.export(second, work / "e", first)
    assert_exact(machine, job, after)
    assert_small(machine, job, before, after)
    assert job_record(host, job).texts("Decisions") == []
    scribble(disks[2], MIB)
    third = machine.point(LOG)
    with pytest.raises(JobFailed) as failed:
        machine.export(third, work / "third", second)
    chain = [e.text("MessageID") for e in failed.value.errors]
    assert chain[0] == "KVMMS-0110" and "KVMMS-0092" in chain
    assert any("still.qcow2 was changed" in e.text("Message") for e in failed.value.errors)
    assert not (work / "third").exists()
    machine.export(third, work / "third")


def test_changes_since_a_point_are_not_told_when_tracking_is_lost(serve, guests):
    service = serve("repair")
    host = Host(service.api("cimxml"), service)
    machine, disks, first, _, _ = prepared(host, guests, service.work, "asked", RCT)
    ids = dict(zip((i.lower() for i in first.texts("VirtualDiskIdentifiers")), first.texts("ResilientChangeTrackingIdentifiers")))
    by_name = {Path(d.texts("HostResource")[0]).name: d for d in machine.disks()}
    limit = {name: ids[d.text("InstanceID").lower()] for name, d in by_name.items()}
    machine.stop()
    scribble(disks[2], MIB)
    with pytest.raises(JobFailed) as refused:
        changes(host, disks[2], limit["still.qcow2"], 24 * MIB)
    assert refused.value.job.num("ErrorCode") == 32768
    assert changes(host, disks[1], limit["data.qcow2"], 64 * MIB), "the other disk is not condemned"


def test_a_resize_between_two_points_is_tracked(serve, guests):
    service = serve("fail")
    host = Host(service.api("wsman"), service)
    work = service.work
    machine, disks, first, before, full = prepared(host, guests, work, "resize")
    machine.stop()
    host.do("Msvm_ImageManagementService", "ResizeVirtualHardDisk", Path=str(disks[2]), MaxInternalSize=U64(40 * MIB + 512))
    with pytest.raises(JobFailed):
        host.do("Msvm_ImageManagementService", "ResizeVirtualHardDisk", Path=str(disks[2]), MaxInternalSize=U64(24 * MIB))
    assert detail(host, first).flag("Trusted") is True
    second, after = second_point(machine, disks, work / "f2")
    machine.start()
    job = machine.export(second, work / "e", first)
    assert images.info(exported(machine, job, "still.qcow2"))["virtual-size"] == 40 * MIB + 512
    assert_exact(machine, full, before)
    assert_exact(machine, job, after)
    assert Path(exported(machine, job, "still.qcow2")).stat().st_size < MIB
    assert job_record(host, job).texts("Decisions") == []
    service.cli("verify", work / "e")


def test_a_repair_goes_on_after_the_service_was_killed(serve, guests):
    service = serve("repair")
    host = Host(service.api("cimxml"), service)
    work = service.work
    machine, disks, first, before, _ = prepared(host, guests, work, "killed", size=256 * MIB)
    machine.stop()
    scribble(disks[2], 200 * MIB)
    second, after = second_point(machine, disks, work / "f2", RCT)
    machine.start()
    ref = host.job(machine.begin_export(second, work / "e", first))
    host.api.invoke(ref, "RequestStateChange", RequestedState=U16(3))
    service.kill()
    service.start()
    host = Host(service.api("cimxml"), service)
    host.api.invoke(ref, "RequestStateChange", RequestedState=U16(2))
    job = host.wait_job(ref)
    assert job.num("JobState") == 7, [e.text("Message") for e in host.errors(ref)]
    assert_exact(machine, job, after)
    assert_small(machine, job, before, after)
    assert len(warnings(host, job)) == 1
    service.cli("verify", work / "e")


def test_a_collection_repairs_the_member_that_needs_it(serve, guests):
    service = serve("repair")
    host = Host(service.api("cimxml"), service)
    (service.work / "one").mkdir()
    (service.work / "two").mkdir()
    one, boot, data = running_writer(host, guests, service.work / "one", "one")
    two, _, _ = running_writer(host, guests, service.work / "two", "two")
    one.stop()
    still = still_disk(host, service.work / "one" / "still")
    one.attach(still, slot=2)
    one.start()
    group = define(host, "both", members=[one.ref, two.ref])
    first = take_point(host, group)
    export_collection(host, first, service.work / "e")
    one.stop()
    scribble(still, MIB)
    frozen = images.freeze(still.parent, service.work / "still.frozen")
    second = take_point(host, group)
    job = export_collection(host, second, service.work / "e", first)
    file = next(f for f in files_of(job).values() if "still" in Path(f).name)
    images.check(file)
    images.assert_same(file, frozen, "qcow2", "raw")
    assert Path(file).stat().st_size < MIB
    assert warnings(host, job) == ["KVMMS-0127"]
    assert len(job_record(host, job).texts("Decisions")) == 1
    service.cli("verify", service.work / "e")


def test_the_flow_of_backup_programs_repairs_too(serve, guests):
    service = serve("repair")
    host = Host(service.api("wsman"), service)
    work = service.work
    machine, boot, data = running_writer(host, guests, work, "flow")
    machine.stop()
    still = still_disk(host, work / "still")
    machine.attach(still, slot=2)
    machine.start()
    snap = snapshot(machine)
    backup(machine, work / "full", snap)
    base = convert(machine, snap)
    machine.stop()
    scribble(still, 3 * MIB)
    frozen = images.freeze(still.parent, work / "still.frozen")
    snap = snapshot(machine)
    job = backup(machine, work / "incremental", snap, base)
    file = image(work / "incremental", "still")
    assert images.backing_of(file)
    images.check(file)
    images.assert_same(file, frozen, "qcow2", "raw")
    assert file.stat().st_size < MIB
    assert warnings(host, job) == ["KVMMS-0127"]
    newer = convert(machine, snap)
    assert any("comparing hashes" in d for d in detail(host, newer).texts("Decisions"))
    service.cli("verify", work / "incremental")
