"""What goes wrong around points and exports: each fault is told exactly, leaves nothing behind, and what is left is still exact."""
import os
import shutil
import subprocess
import time

import pytest

from harness import images
from harness.host import DONE, FINAL, LOG, RCT, RUNNING, TERMINATED, JobFailed, Refused, let_it_write
from harness.service import wait_until
from test_exact import assert_exact, frozen_point
from test_jobs import TERMINATE, ask, big_machine
from test_spine import MIB, running_writer

POINTS = "Msvm_VirtualSystemReferencePointService"


def files_below(directory):
    return [p for p in directory.rglob("*") if p.is_file()] if directory.exists() else []


def told(failure):
    """The code of a refusal or of a failed job, and all that was said."""
    if isinstance(failure, Refused):
        return failure.code, str(failure)
    return failure.job.num("ErrorCode"), " ".join(e.text("Message") + " " + " ".join(e.texts("RecommendedActions") or []) for e in failure.errors)


def refused(attempt):
    with pytest.raises((Refused, JobFailed)) as failure:
        attempt()
    return told(failure.value)


def test_a_point_without_its_data_is_refused_and_still_is_an_exact_base(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "nodata")
    first, first_copies = frozen_point(machine, [boot, data], scratch / "frozen1")
    full = machine.export(first, scratch / "export")
    assert_exact(machine, full, first_copies)
    let_it_write(machine, data)
    second, copies = frozen_point(machine, [boot, data], scratch / "frozen2")
    host.do(POINTS, "RemoveAssociatedData", AffectedReferencePoint=first.ref)
    assert host.api.get(first.ref).flag("HasAssociatedData") is False
    code, _ = refused(lambda: machine.export(first, scratch / "again"))
    assert code == 32775
    assert files_below(scratch / "again") == []
    assert_exact(machine, machine.export(second, scratch / "export", first), copies)


@pytest.mark.parametrize("how", ["missing", "cut", "another file"])
def test_a_broken_chain_fails_the_export_by_name_and_nothing_else(host, guests, scratch, how):
    machine, boot, data = running_writer(host, guests, scratch, "broken")
    first = machine.point(LOG)
    let_it_write(machine, data)
    before = set(data.parent.iterdir())
    second = machine.point(LOG)
    let_it_write(machine, data)
    # The layer the guest wrote to between the two points: frozen, beneath the active one, which is the new file.
    active = (set(data.parent.iterdir()) - before).pop()
    layer = max((p for p in data.parent.iterdir() if ".kvmms-" in p.name and p != active), key=lambda p: p.stat().st_mtime_ns)
    machine.stop()
    kept = scratch / "kept"
    shutil.copy2(layer, kept)
    if how == "missing":
        layer.unlink()
    elif how == "cut":
        os.truncate(layer, layer.stat().st_size // 2)
    else:
        layer.write_bytes(os.urandom(layer.stat().st_size))
    code, chain = refused(lambda: machine.export(second, scratch / "export"))
    assert code in (32768, 32775, 32779)
    assert layer.name in chain
    assert files_below(scratch / "export") == []
    assert {p.ref for p in machine.points()} == {first.ref, second.ref}
    # The same bytes with the same times are the same layer: nothing was recorded that a repair by the user could not mend.
    shutil.copy2(kept, layer)
    job = machine.export(second, scratch / "mended")
    assert job.num("JobState") == DONE
    machine.start()


def test_an_export_whose_target_is_taken_away_fails_or_is_whole(host, scratch):
    machine, path = big_machine(host, scratch / "d", "vanish", 384)
    point = machine.point(LOG)
    for n in range(4):
        target = scratch / f"export{n}"
        ref = host.job(machine.begin_export(point, target))
        wait_until(lambda: host.api.get(ref).num("PercentComplete") >= max(1, 10 * n) or host.api.get(ref).num("JobState") in FINAL, 30, "the copy")
        moved = scratch / f"gone{n}"
        os.rename(target, moved)
        shutil.rmtree(moved)
        job = host.wait_job(ref)
        if job.num("JobState") == DONE:
            # It was done before the directory went, and has not begun it anew.
            assert files_below(target) == []
            continue
        errors = host.errors(ref)
        assert errors and str(target) in " ".join(e.text("Message") for e in errors)
        assert files_below(target) == []
    images.assert_same(machine.export(point, scratch / "last").texts("ExportedLogFilePaths")[0], path, "qcow2", "raw")


def test_an_export_onto_a_file_system_that_is_unmounted_never_claims_success(host, scratch):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a file system")
    mount = scratch / "mount"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", mount]).returncode != 0:
        pytest.skip("mounting is not allowed here")
    mounted = True
    try:
        machine, path = big_machine(host, scratch / "d", "unmount", 384)
        point = machine.point(LOG)
        ref = host.job(machine.begin_export(point, mount / "export"))
        wait_until(lambda: host.api.get(ref).num("PercentComplete") >= 5 or host.api.get(ref).num("JobState") in FINAL, 30, "the copy to begin")
        subprocess.run(["umount", "-l", mount], check=True)
        mounted = False
        job = host.wait_job(ref)
        assert job.num("JobState") != DONE, "the files are nowhere"
        assert host.errors(ref)[0].text("MessageID").startswith("KVMMS-")
        assert files_below(mount) == []
        images.assert_same(machine.export(point, scratch / "last").texts("ExportedLogFilePaths")[0], path, "qcow2", "raw")
    finally:
        if mounted:
            subprocess.run(["umount", "-l", mount], check=True)


def test_what_an_export_reads_cannot_be_deleted_under_it(host, scratch):
    machine, path = big_machine(host, scratch / "d", "deleted", 384)
    point = machine.point(LOG)
    base = point
    second = machine.point(LOG)
    ref = host.job(machine.begin_export(second, scratch / "export"))
    for attempt in (lambda: host.do(POINTS, "DestroyReferencePoint", AffectedReferencePoint=second.ref),
                    lambda: host.do(POINTS, "RemoveAssociatedData", AffectedReferencePoint=second.ref),
                    machine.destroy):
        try:
            attempt()
        except (Refused, JobFailed) as failure:
            assert told(failure)[0] in (32774, 32775)
        else:
            assert host.api.get(ref).num("JobState") == DONE, "it was deleted while it was read"
    job = host.wait_job(ref)
    if job.num("JobState") == DONE:
        images.assert_same(job.texts("ExportedLogFilePaths")[0], path, "qcow2", "raw")
    assert base is not None


def test_a_base_that_was_deleted_is_not_found_and_a_full_export_still_works(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "nobase")
    first = machine.point(RCT)
    let_it_write(machine, data)
    second, copies = frozen_point(machine, [boot, data], scratch / "frozen")
    host.do(POINTS, "DestroyReferencePoint", AffectedReferencePoint=first.ref)
    with pytest.raises(Refused) as refused:
        machine.export(second, scratch / "export", first)
    assert refused.value.code == 32773
    assert files_below(scratch / "export") == []
    assert_exact(machine, machine.export(second, scratch / "export"), copies)


def test_an_export_cancelled_at_any_percent_leaves_nothing_and_the_point_whole(host, scratch):
    machine, path = big_machine(host, scratch / "d", "percent", 256)
    point = machine.point(LOG)
    seen = []
    for percent in range(0, 100, 11):
        target = scratch / f"export{percent}"
        ref = host.job(machine.begin_export(point, target))

        def there():
            job = host.api.get(ref)
            return job if job.num("PercentComplete") >= percent or job.num("JobState") in FINAL else None
        while (job := there()) is None:
            time.sleep(0.002)
        answer = ask(host, ref, TERMINATE)
        job = host.wait_job(ref, 30)
        if job.num("JobState") == DONE:
            assert answer == 32775 or job.num("PercentComplete") == 100
            images.assert_same(job.texts("ExportedLogFilePaths")[0], path, "qcow2", "raw")
            shutil.rmtree(target)
            continue
        assert job.num("JobState") == TERMINATED
        seen.append(job.num("PercentComplete"))
        wait_until(lambda: files_below(target) == [], 30, "the clean-up")
    assert len(seen) >= 4, f"only cancelled at {seen}"
    images.assert_same(machine.export(point, scratch / "last").texts("ExportedLogFilePaths")[0], path, "qcow2", "raw")


def test_a_machine_that_is_not_off_keeps_its_points_and_a_deleted_one_takes_them_along(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "goes")
    point = machine.point(LOG)
    code, _ = refused(machine.destroy)
    assert code == 32775
    assert [p.ref for p in machine.points()] == [point.ref]
    assert machine.state() == RUNNING
    machine.stop()
    machine.destroy()
    assert host.api.query(f"SELECT * FROM Msvm_VirtualSystemReferencePoint WHERE InstanceID = '{point.ref.keys['InstanceID']}'") == []
    assert sorted(p.name for p in data.parent.iterdir()) == [data.name], "the disk is one plain file again"
    images.check(data)


def test_points_asked_for_side_by_side_are_all_exact_or_refused(host, guests, scratch):
    """Nobody waits for anybody: several requests at once on one running machine."""
    machine, boot, data = running_writer(host, guests, scratch, "many")
    jobs, refusals = [], []
    for _ in range(6):
        try:
            jobs.append(host.job(machine.begin_point(LOG)))
        except Refused as refusal:
            assert refusal.code in (32774, 32775)
            refusals.append(refusal)
    done = [host.wait_job(j) for j in jobs]
    assert all(j.num("JobState") == DONE for j in done) and jobs
    assert len(machine.points()) == len(jobs)
    for n, point in enumerate(machine.points()):
        for file in machine.export(point, scratch / f"e{n}").texts("ExportedLogFilePaths"):
            images.check(file)
    assert machine.state() == RUNNING
