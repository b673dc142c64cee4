"""An export is byte for byte what the disks were at the instant of the point, whatever happened before, since and in between.

The judges are qemu-img and the replay of what the guest writes; never kvmms' own code. Everything runs on a guest that keeps writing.
"""
import os
import signal
from pathlib import Path

import pytest

from harness import images, records
from harness.host import APPLICATION, LOG, OFF, PAUSED, RCT, RUNNING, Refused, copy_guest, let_it_write
from harness.service import wait_until
from test_spine import MIB, running_writer


def exported(machine, job, name):
    """The exported file of the disk whose own file has this name."""
    for disk in machine.disks():
        if Path(disk.texts("HostResource")[0]).name == name:
            wanted = disk.text("InstanceID").lower()
            return dict(zip((i.lower() for i in job.texts("ExportedDisks")), job.texts("ExportedLogFilePaths")))[wanted]
    raise AssertionError(f"no disk {name}")


def frozen_point(machine, disks, target, kind=LOG):
    """A point of a machine that is held still, with copies of its disks taken by other means at the same instant."""
    machine.pause()
    target.mkdir()
    copies = {d.name: images.freeze(d.parent, target / f"{d.name}.frozen", "raw" if d.suffix == ".img" else "qcow2") for d in disks}
    point = machine.point(kind)
    machine.resume()
    return point, copies


def assert_exact(machine, job, copies):
    for name, copy in copies.items():
        file = exported(machine, job, name)
        images.check(file)
        images.assert_same(file, copy, "qcow2", "raw")


@pytest.mark.parametrize("kind", [LOG, RCT], ids=["log", "rct"])
def test_a_full_export_after_more_writes_is_the_disk_of_the_point(host, guests, scratch, kind):
    machine, boot, data = running_writer(host, guests, scratch, "full")
    point, copies = frozen_point(machine, [boot, data], scratch / "frozen", kind)
    let_it_write(machine, data)
    assert_exact(machine, machine.export(point, scratch / "export"), copies)


@pytest.mark.parametrize("kind", [LOG, RCT], ids=["log", "rct"])
def test_a_full_and_its_differentials_are_the_disk_at_each_point(host, guests, scratch, kind):
    machine, boot, data = running_writer(host, guests, scratch, "chain")
    taken, base, jobs = [], None, []
    for n in range(3):
        point, copies = frozen_point(machine, [boot, data], scratch / f"frozen{n}", kind)
        let_it_write(machine, data)
        jobs.append(machine.export(point, scratch / "export", base))
        taken.append((point, copies))
        base = point
    for (_, copies), job in zip(taken, jobs):
        assert_exact(machine, job, copies)
    first, last = (exported(machine, j, "data.qcow2") for j in (jobs[0], jobs[2]))
    assert not images.backing_of(first)
    assert images.backing_of(last) and not os.path.isabs(images.backing_of(last))
    if kind == LOG:  # a log point keeps its data and can be exported again, whole
        assert_exact(machine, machine.export(taken[2][0], scratch / "again"), taken[2][1])
    else:  # a change tracking point is held for its first export only
        with pytest.raises(Refused) as refused:
            machine.export(taken[2][0], scratch / "again")
        assert refused.value.code == 32775


def test_a_differential_against_an_older_point_than_the_last(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "skip")
    points = []
    for n in range(3):
        points.append(frozen_point(machine, [boot, data], scratch / f"frozen{n}"))
        let_it_write(machine, data)
    full = machine.export(points[0][0], scratch / "export")
    job = machine.export(points[2][0], scratch / "export", points[0][0])
    assert job.text("BaseReferencePointId")
    assert_exact(machine, full, points[0][1])
    assert_exact(machine, job, points[2][1])


def test_a_differential_holds_only_what_changed(host, guests, scratch):
    boot = copy_guest(guests / "writer.img", scratch / "boot")
    (scratch / "still").mkdir()
    still = scratch / "still" / "still.qcow2"
    raw = scratch / "still.raw"
    raw.write_bytes(os.urandom(24 * MIB))
    images.qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, still)
    (scratch / "data").mkdir()
    data = host.create_disk(scratch / "data" / "data.qcow2", 64 * MIB)
    machine = host.machine_with_disks("delta", [boot, data, still], memory=32)
    machine.start()
    let_it_write(machine, data)
    first = machine.point(LOG)
    let_it_write(machine, data)
    second = machine.point(LOG)
    machine.export(first, scratch / "export")
    job = machine.export(second, scratch / "export", first)
    file = exported(machine, job, "still.qcow2")
    assert Path(file).stat().st_size < MIB, "nothing changed on this disk"
    images.assert_same(file, raw, "qcow2", "raw")


def test_two_disks_are_exported_as_they_were_at_one_instant(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "lockstep", guest="storm.img")
    for n in range(5):
        point = machine.point(LOG)
        let_it_write(machine, data)
        job = machine.export(point, scratch / f"e{n}")
        numbers = [records.writer_disk(images.flatten(exported(machine, job, name), scratch / f"{n}.{name}"))
                   for name in ("boot.img", "data.qcow2")]
        records.assert_one_instant(*numbers)


@pytest.mark.parametrize("extra", [512, 3 * 512, 65536 - 512], ids=["512", "1536", "65024"])
def test_disk_sizes_that_are_no_multiple_of_a_cluster(host, guests, scratch, extra):
    size = 64 * MIB + extra
    machine, boot, data = running_writer(host, guests, scratch, "odd", size)
    first, copies = frozen_point(machine, [boot, data], scratch / "f1")
    let_it_write(machine, data)
    second, more = frozen_point(machine, [boot, data], scratch / "f2")
    full, differential = machine.export(first, scratch / "e"), machine.export(second, scratch / "e", first)
    assert images.info(exported(machine, full, "data.qcow2"))["virtual-size"] == size
    assert_exact(machine, full, copies)
    assert_exact(machine, differential, more)


def test_a_stopped_machine_is_pointed_and_exported_the_same(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "stopped")
    machine.stop()
    copies = {"boot.img": images.freeze(boot.parent, scratch / "b", "raw"), "data.qcow2": images.freeze(data.parent, scratch / "d")}
    point = machine.point(LOG)
    assert_exact(machine, machine.export(point, scratch / "while-off"), copies)
    machine.start()
    let_it_write(machine, data)
    assert_exact(machine, machine.export(point, scratch / "while-on"), copies)
    later = machine.point(LOG)
    job = machine.export(later, scratch / "while-off", point)
    numbers = [records.writer_disk(images.flatten(exported(machine, job, name), scratch / f"{name}.raw")) for name in copies]
    records.assert_one_instant(*numbers)


def test_the_machine_restarted_between_points_keeps_the_differential_exact(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "restart")
    first, copies = frozen_point(machine, [boot, data], scratch / "f1")
    let_it_write(machine, data)
    machine.stop()
    machine.start()
    let_it_write(machine, data)
    second, more = frozen_point(machine, [boot, data], scratch / "f2")
    full, differential = machine.export(first, scratch / "e"), machine.export(second, scratch / "e", first)
    assert_exact(machine, full, copies)
    assert_exact(machine, differential, more)
    assert images.backing_of(exported(machine, differential, "data.qcow2"))


def test_only_the_disks_asked_for_are_exported(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "some")
    point = machine.point(LOG)
    wanted = next(d.text("InstanceID") for d in machine.disks() if d.texts("HostResource")[0].endswith("data.qcow2"))
    job = machine.export(point, scratch / "e", disks=[wanted])
    assert [i.lower() for i in job.texts("ExportedDisks")] == [wanted.lower()]
    assert len(job.texts("ExportedLogFilePaths")) == 1


# What follows kills things, and so gets a service of its own.

def test_the_service_killed_between_point_and_export(own_host, own_service, guests):
    work = own_service.work
    machine, boot, data = running_writer(own_host, guests, work, "survivor")
    point, copies = frozen_point(machine, [boot, data], work / "f")
    pid = machine.qemu()
    own_service.kill()
    own_service.start()
    assert machine.state() == RUNNING
    assert machine.qemu() == pid, "the machine outlives the service"
    let_it_write(machine, data)
    assert [p.ref for p in machine.points()] == [point.ref]
    job = machine.export(point, work / "e")
    assert_exact(machine, job, copies)


def test_qemu_killed_between_points_leaves_the_differential_exact_and_differential(own_host, own_service, guests):
    work = own_service.work
    machine, boot, data = running_writer(own_host, guests, work, "crashed")
    first, copies = frozen_point(machine, [boot, data], work / "f1")
    full = machine.export(first, work / "e")
    let_it_write(machine, data)
    os.kill(machine.qemu(), signal.SIGKILL)
    wait_until(lambda: machine.state() == OFF, 30, "the machine to be seen as off")
    machine.start()
    let_it_write(machine, data)
    second, more = frozen_point(machine, [boot, data], work / "f2")
    differential = machine.export(second, work / "e", first)
    assert differential.text("BaseReferencePointId"), "it must not have become a full export"
    assert images.backing_of(exported(machine, differential, "data.qcow2"))
    assert_exact(machine, full, copies)
    assert_exact(machine, differential, more)


def test_both_killed_at_once_lose_neither_machine_nor_point(own_host, own_service, guests):
    work = own_service.work
    machine, boot, data = running_writer(own_host, guests, work, "blackout", guest="storm.img")
    point, copies = frozen_point(machine, [boot, data], work / "f")
    let_it_write(machine, data)
    pid = machine.qemu()
    own_service.kill()
    os.kill(pid, signal.SIGKILL)
    own_service.start()
    wait_until(lambda: machine.state() == OFF, 30, "the machine to be seen as off")
    job = machine.export(point, work / "e")
    assert_exact(machine, job, copies)
    machine.start()
    let_it_write(machine, data)


def test_the_service_ended_by_sigterm_leaves_the_machines_running(own_host, own_service, guests):
    machine, _, data = running_writer(own_host, guests, own_service.work, "onward")
    pid = machine.qemu()
    assert own_service.stop(signal.SIGTERM) == 0
    let_it_write(machine, data)
    own_service.start()
    assert machine.state() == RUNNING and machine.qemu() == pid


# The Linux guest: real file systems and the agent.

def linux(host, guests, directory, name, image, sizes):
    boot = copy_guest(guests / image, directory / "boot")
    disks = []
    for n, size in enumerate(sizes):
        (directory / f"d{n}").mkdir()
        disks.append(host.create_disk(directory / f"d{n}" / f"d{n}.qcow2", size))
    machine = host.machine_with_disks(name, [boot, *disks], memory=128)
    machine.start()
    let_it_write(machine, disks[-1], 120)
    return machine, disks


def test_a_linux_guest_with_two_data_disks_is_exported_at_one_instant(host, guests, scratch):
    machine, disks = linux(host, guests, scratch, "linux", "linux.img", [48 * MIB + 1536, 64 * MIB])
    first = machine.point(LOG)
    let_it_write(machine, disks[1])
    second = machine.point(LOG)
    let_it_write(machine, disks[1])
    full, differential = machine.export(first, scratch / "e"), machine.export(second, scratch / "e", first)
    ends = []
    for n, job in enumerate((full, differential)):
        numbers = [records.linux_disk(images.flatten(exported(machine, job, f"d{i}.qcow2"), scratch / f"{n}.{i}"), i) for i in (0, 1)]
        records.assert_one_instant(*numbers)
        ends.append(numbers[0])
    assert 0 < ends[0] < ends[1]


def test_an_application_consistent_point_needs_no_journal_replay(host, guests, scratch):
    import subprocess
    machine, disks = linux(host, guests, scratch, "agent", "linux-ext4.img", [64 * MIB])

    def taken():
        from harness.host import JobFailed
        try:
            return machine.point(RCT, APPLICATION)
        except JobFailed:  # the agent may not answer yet while the guest boots
            return None
    point = wait_until(taken, 90, "an agent that answers")
    assert point.num("ConsistencyLevel") == APPLICATION
    let_it_write(machine, disks[0], 60)  # the file system was thawed
    raw = images.flatten(exported(machine, machine.export(point, scratch / "e"), "d0.qcow2"), scratch / "d0.raw")
    assert subprocess.run(["/sbin/e2fsck", "-fn", raw], capture_output=True).returncode == 0
    told = subprocess.run(["/sbin/dumpe2fs", "-h", raw], capture_output=True, text=True).stdout
    assert "Filesystem features" in told and "needs_recovery" not in told


def test_a_guest_that_shuts_down_is_seen_as_off(host, guests, scratch):
    machine, disks = linux(host, guests, scratch, "bye", "linux.img", [64 * MIB])
    machine.request(4)
    wait_until(lambda: machine.state() == OFF, 60, "the guest's shutdown")
    assert records.linux_disk(images.flatten(disks[0], scratch / "d.raw"), 0) > 0
    assert machine.state() != PAUSED
