"""Jobs under way: cancelled, killed, suspended, interrupted; and what they leave (nothing)."""
import os
import subprocess
import time

import pytest

from harness import images
from harness.host import DONE, EXCEPTION, KILLED, LOG, TERMINATED, U16, U64, Host, JobFailed
from harness.model import ApiFault
from harness.service import USER, Service, wait_until
from test_spine import MIB

START, SUSPEND, TERMINATE, KILL = 2, 3, 4, 5


def big_machine(host, directory, name, megabytes=1024):
    """A stopped machine with a disk whose export takes a while."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "big.img"
    block = os.urandom(MIB)
    with open(path, "wb") as f:
        for n in range(megabytes):
            f.write(n.to_bytes(8, "little") + block[8:])
    return host.machine_with_disks(name, [path]), path


def ask(host, job, state):
    return host.api.invoke(job, "RequestStateChange", RequestedState=U16(state)).value


@pytest.mark.parametrize("how, end", [(TERMINATE, TERMINATED), (KILL, KILLED)], ids=["terminate", "kill"])
def test_a_cancelled_export_ends_promptly_and_leaves_nothing_behind(host, scratch, how, end):
    machine, _ = big_machine(host, scratch / "d", "cancel")
    point = machine.point(LOG)
    target = scratch / "export"
    ref = host.job(machine.begin_export(point, target))
    assert host.api.get(ref).flag("Cancellable") is True
    assert ask(host, ref, how) in (0, 4096)
    job = host.wait_job(ref, 30)
    assert job.num("JobState") == end
    assert job.num("PercentComplete") < 100
    errors = host.errors(ref)
    assert errors and errors[0].text("Message"), "a terminated job says why it ended"
    # A killed job may leave its clean-up to the recovery path, which comes at once.
    wait_until(lambda: not target.exists() or [p for p in target.rglob("*") if p.is_file()] == [], 30, "the clean-up")
    assert ask(host, ref, how) == 32775, "a job that has ended cannot be cancelled"
    assert machine.export(point, target).num("JobState") == DONE


def test_a_suspended_export_stands_still_until_it_is_started_again(host, scratch):
    machine, path = big_machine(host, scratch / "d", "suspend")
    point = machine.point(LOG)
    ref = host.job(machine.begin_export(point, scratch / "export"))
    assert ask(host, ref, SUSPEND) in (0, 4096)
    wait_until(lambda: host.api.get(ref).num("JobState") == 5, 30, "the suspension")
    assert ask(host, ref, START) in (0, 4096)
    job = host.wait_job(ref)
    assert job.num("JobState") == DONE
    images.assert_same(job.texts("ExportedLogFilePaths")[0], path, "qcow2", "raw")


def test_an_unknown_state_for_a_job_is_refused(host, scratch):
    machine, _ = big_machine(host, scratch / "d", "unknown", 4)
    result = machine.begin_point(LOG)
    host.finish(result)
    assert ask(host, host.job(result), 99) in (4097, 32773, 32775)


def test_an_export_under_way_when_the_service_is_killed_is_finished_or_undone(own_host, own_service):
    work = own_service.work
    machine, path = big_machine(own_host, work / "d", "interrupted")
    point = machine.point(LOG)
    target = work / "export"
    ref = own_host.job(machine.begin_export(point, target))
    own_service.kill()
    own_service.start()
    job = own_host.wait_job(ref)
    if job.num("JobState") == DONE:
        images.assert_same(job.texts("ExportedLogFilePaths")[0], path, "qcow2", "raw")
    else:
        assert job.num("JobState") == EXCEPTION
        assert own_host.errors(ref)[0].text("MessageID").startswith("KVMMS-")
        wait_until(lambda: not list(target.rglob("*.qcow2")), 30, "the clean-up")
    again = machine.export(point, work / "again")
    images.assert_same(again.texts("ExportedLogFilePaths")[0], path, "qcow2", "raw")


@pytest.mark.parametrize("suspended", [True, False], ids=["suspended", "running"])
def test_a_service_that_is_told_to_end_parks_an_export_and_goes_on_with_it(own_host, own_service, suspended):
    work = own_service.work
    machine, path = big_machine(own_host, work / "d", "parked")
    point = machine.point(LOG)
    ref = own_host.job(machine.begin_export(point, work / "export"))
    wait_until(lambda: own_host.api.get(ref).num("PercentComplete") > 0, 60, "the first percent")
    if suspended:
        assert ask(own_host, ref, SUSPEND) in (0, 4096)
    before = own_host.api.get(ref)
    told = time.monotonic()
    assert own_service.stop() == 0
    # A second, on an idle machine; what is refused here is waiting for the work, or for nothing at all.
    assert time.monotonic() - told < 5
    own_service.start()
    parked = own_host.api.get(ref)
    assert parked.num("PercentComplete") >= before.num("PercentComplete")
    if suspended:
        assert parked.num("JobState") == 5
        assert ask(own_host, ref, START) in (0, 4096)
    job = own_host.wait_job(ref)
    assert job.num("JobState") == DONE
    images.assert_same(job.texts("ExportedLogFilePaths")[0], path, "qcow2", "raw")


def test_a_job_that_was_told_to_end_takes_only_kill_and_names_who_asked(host, scratch):
    machine, _ = big_machine(host, scratch / "d", "ending")
    point = machine.point(LOG)
    ref = host.job(machine.begin_export(point, scratch / "export"))
    assert ask(host, ref, SUSPEND) in (0, 4096)
    assert ask(host, ref, TERMINATE) in (0, 4096)
    # It may have ended by now: either way nothing makes it go on.
    for state in (START, SUSPEND, TERMINATE):
        assert ask(host, ref, state) == 32775
    assert host.wait_job(ref, 30).num("JobState") == TERMINATED
    assert USER in host.errors(ref)[0].text("Message")


def test_a_full_disk_fails_the_export_with_the_cause_and_leaves_nothing(host, scratch):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    small = scratch / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small]).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        machine, _ = big_machine(host, scratch / "d", "full", 64)
        point = machine.point(LOG)
        with pytest.raises(JobFailed) as failed:
            machine.export(point, small / "export")
        chain = " ".join(e.text("Message") for e in failed.value.errors)
        assert "o space left" in chain
        assert failed.value.errors[0].text("RecommendedActions")
        assert [p for p in small.rglob("*") if p.is_file()] == []
        assert machine.export(point, scratch / "roomy").num("JobState") == DONE
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_finished_job_outlives_a_restart_of_the_service(own_host, own_service):
    machine, _ = big_machine(own_host, own_service.work / "d", "history", 4)
    result = machine.begin_point(LOG)
    own_host.finish(result)
    own_service.stop()
    own_service.start()
    job = own_host.api.get(own_host.job(result))
    assert job.num("JobState") == DONE
    made = own_host.api.associators(own_host.job(result), "Msvm_AffectedJobElement", "Msvm_VirtualSystemReferencePoint")
    assert len(made) == 1


def test_a_storage_job_names_the_disk_the_machine_and_the_host_it_affects(host, scratch):
    machine, path = big_machine(host, scratch / "d", "storage", 4)
    result = host.api.invoke(host.service_ref("Msvm_ImageManagementService"), "ResizeVirtualHardDisk", Path=str(path), MaxInternalSize=U64(8 * MIB))
    ref = host.job(result)
    assert ref.class_name == "Msvm_StorageJob"
    affected = host.api.associators(ref, "Msvm_AffectedStorageJobElement")
    assert sorted(o.class_name for o in affected) == ["Msvm_ComputerSystem", "Msvm_ComputerSystem", "Msvm_StorageAllocationSettingData"]
    [disk] = [o for o in affected if o.class_name == "Msvm_StorageAllocationSettingData"]
    assert disk.texts("HostResource") == [str(path)]
    assert [o.ref for o in host.api.associators(disk.ref, "Msvm_AffectedStorageJobElement")] == [ref]
    assert host.finish(result).num("JobState") == DONE
    assert os.path.getsize(path) == 8 * MIB


def test_a_job_that_never_was_is_not_found(host):
    ref = host.service_ref("Msvm_VirtualSystemManagementService")
    from harness.model import Ref
    gone = Ref("Msvm_ConcreteJob", {"InstanceID": "00000000-0000-0000-0000-000000000000"})
    for attempt in (lambda: host.api.get(gone), lambda: host.api.invoke(gone, "GetErrorEx")):
        with pytest.raises(ApiFault) as fault:
            attempt()
        assert fault.value.not_found
    assert ref


def test_a_base_that_makes_no_sense_is_refused(host, scratch):
    one, _ = big_machine(host, scratch / "one", "one", 4)
    two, _ = big_machine(host, scratch / "two", "two", 4)
    first, second, foreign = one.point(LOG), one.point(LOG), two.point(LOG)
    from harness.host import Refused
    for point, base in ((first, second), (first, foreign), (first, first)):
        with pytest.raises((Refused, JobFailed)) as refused:
            one.export(point, scratch / "e", base)
        code = refused.value.code if isinstance(refused.value, Refused) else refused.value.job.num("ErrorCode")
        assert code in (32773, 32775)
    assert not (scratch / "e").exists() or not list((scratch / "e").rglob("*.qcow2"))


def test_services_on_one_machine_do_not_meet(api):
    """Two services with their own directories, side by side."""
    other = Service()
    try:
        other.start()
        there = Host(other.api(api.protocol), other)
        machine, _ = big_machine(there, other.work / "d", "apart", 4)
        assert [o.ref for o in api.query(f"SELECT * FROM Msvm_ComputerSystem WHERE Name = '{machine.guid}'")] == []
    finally:
        other.close()
