"""The thread through all rooms, over each protocol: machine, disk, start, point, export, job, error chain, removal."""
import json
from pathlib import Path

import pytest

from harness import images, records
from harness.host import (APPLICATION, DONE, EXCEPTION, LOG, OFF, PAUSED, RCT, RUNNING, U16, JobFailed, copy_guest, let_it_write)
from harness.model import ApiFault, Ref

MIB = 1 << 20


def running_writer(host, guests, directory, name, size=64 * MIB, guest="writer.img"):
    """The boot sector guest on a raw boot disk and a qcow2 data disk, running."""
    boot = copy_guest(guests / guest, directory / "boot")
    (directory / "data").mkdir()
    data = host.create_disk(directory / "data" / "data.qcow2", size)
    machine = host.machine_with_disks(name, [boot, data], memory=32)
    machine.start()
    let_it_write(machine, data)
    return machine, boot, data


def test_a_machine_is_defined_started_paused_stopped_and_destroyed(host, scratch):
    data = host.create_disk(scratch / "d.qcow2", 16 * MIB)
    assert images.info(data)["virtual-size"] == 16 * MIB
    machine = host.machine_with_disks("life", [data])
    seen = host.api.get(machine.ref)
    assert seen.text("ElementName") == "life"
    assert seen.text("Caption") == "Virtual Machine"
    assert seen.text("Description") == "Microsoft Virtual Machine"
    assert seen.num("EnabledState") == OFF
    machine.start()
    assert machine.qemu()
    machine.pause()
    machine.resume()
    machine.stop()
    assert host.service.qemu_pids(machine.guid) == []
    machine.destroy()
    with pytest.raises(ApiFault) as gone:
        host.api.get(machine.ref)
    assert gone.value.not_found
    assert data.exists(), "destroying a machine must not remove its disks"


def test_starting_a_running_machine_answers_invalid_state(host, scratch):
    machine = host.machine_with_disks("twice", [host.create_disk(scratch / "d.qcow2", 4 * MIB)])
    machine.start()
    again = host.api.invoke(machine.ref, "RequestStateChange", RequestedState=U16(2))
    assert again.value == 32775


def test_the_whole_flow_from_point_to_export(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "spine")
    point = machine.point(LOG)
    assert point.num("ReferencePointType") == LOG
    assert point.num("ConsistencyLevel") == 2
    assert point.text("VirtualSystemIdentifier").lower() == machine.guid.lower()
    assert point.flag("HasAssociatedData") is True
    disks = {Path(d.texts("HostResource")[0]).name: d.text("InstanceID") for d in machine.disks()}
    assert {i.lower() for i in point.texts("VirtualDiskIdentifiers")} == {i.lower() for i in disks.values()}
    assert [p.ref for p in machine.points()] == [point.ref]

    let_it_write(machine, data)
    target = scratch / "export"
    job = machine.export(point, target)
    assert job.class_name == "Msvm_VirtualSystemReferencePointExportJob"
    assert job.num("JobState") == DONE
    assert Path(job.text("ExportDirectory")) == target
    assert job.text("VirtualMachineId").lower() == machine.guid.lower()
    assert job.text("ReferencePointId").lower() in point.text("InstanceID").lower()
    assert not job.text("BaseReferencePointId")
    assert {i.lower() for i in job.texts("ExportedDisks")} == {i.lower() for i in disks.values()}
    files = dict(zip((i.lower() for i in job.texts("ExportedDisks")), job.texts("ExportedLogFilePaths")))
    for file in [*files.values(), job.text("ExportedConfigFilePath")]:
        assert Path(file).is_file() and target in Path(file).parents
    numbers = []
    for name in ("boot.img", "data.qcow2"):
        file = files[disks[name].lower()]
        images.check(file)
        numbers.append(records.writer_disk(images.flatten(file, scratch / f"{name}.raw")))
    assert numbers[0] > 0
    records.assert_one_instant(*numbers)
    manifests = list(target.rglob("manifest.json"))
    assert len(manifests) == 1
    json.loads(manifests[0].read_text())


def test_a_job_is_reachable_through_its_associations(host, scratch):
    machine = host.machine_with_disks("linked", [host.create_disk(scratch / "d.qcow2", 4 * MIB)])
    result = machine.begin_point(LOG)
    ref = host.job(result)
    # Before the job can have ended: the associations exist with the reply.
    affected = host.api.associators(ref, "Msvm_AffectedJobElement", "Msvm_ComputerSystem")
    assert [a.ref for a in affected] == [machine.ref]
    owners = host.api.associators(ref, "Msvm_OwningJobElement")
    assert [o.class_name for o in owners] == ["Msvm_VirtualSystemReferencePointService"]
    host.finish(result)
    jobs = host.api.associators(machine.ref, "Msvm_AffectedJobElement", "CIM_ConcreteJob")
    assert ref in [j.ref for j in jobs]
    assert ref in [j.ref for j in host.api.query("SELECT * FROM CIM_ConcreteJob")]


def test_a_successful_job_has_no_errors(host, scratch):
    machine = host.machine_with_disks("fine", [host.create_disk(scratch / "d.qcow2", 4 * MIB)])
    result = machine.begin_point(LOG)
    host.finish(result)
    assert host.errors(host.job(result)) == []
    one = host.api.invoke(host.job(result), "GetError")
    assert one.value == 0 and one["Error"] is None


def test_application_consistency_without_an_agent_fails_with_an_explained_chain(host, guests, scratch):
    machine, _, _ = running_writer(host, guests, scratch, "noagent")
    with pytest.raises(JobFailed) as failed:
        machine.point(RCT, APPLICATION)
    job, errors = failed.value.job, failed.value.errors
    assert job.num("JobState") == EXCEPTION
    assert job.num("ErrorCode") in (32768, 32772, 32775)
    assert job.text("ErrorDescription")
    assert len(errors) >= 1
    for e in errors:
        assert e.class_name == "Msvm_Error"
        assert e.text("Message") and e.text("ErrorSource")
        assert e.text("MessageID").startswith("KVMMS-")
        assert e.num("PerceivedSeverity") is not None and e.num("CIMStatusCode") is not None
    assert errors[0].text("RecommendedActions")
    one = host.api.invoke(job.ref, "GetError")
    assert one.value == 0
    assert host.api.read_embedded(one["Error"]).text("Message") == errors[0].text("Message")
    assert machine.points() == [], "a failed point must leave nothing behind"
    assert machine.state() == RUNNING, "a failed point must not stop the guest"


def test_a_failing_export_explains_what_lies_beneath(host, scratch):
    machine = host.machine_with_disks("blocked", [host.create_disk(scratch / "d.qcow2", 4 * MIB)])
    point = machine.point(LOG)
    (scratch / "file").write_text("in the way")
    with pytest.raises(Exception) as failed:
        machine.export(point, scratch / "file" / "below")
    if isinstance(failed.value, JobFailed):
        chain = " ".join(e.text("Message") for e in failed.value.errors)
        assert str(scratch / "file") in chain
        assert "irectory" in chain
    else:
        assert failed.value.code in (32768, 32769, 32773)
    assert (scratch / "file").read_text() == "in the way"


def test_a_point_goes_with_its_data_and_the_disk_becomes_one_plain_file_again(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "fold")
    first = machine.point(LOG)
    let_it_write(machine, data)
    second = machine.point(LOG)
    let_it_write(machine, data)
    service = "Msvm_VirtualSystemReferencePointService"
    host.do(service, "RemoveAssociatedData", AffectedReferencePoint=first.ref)
    assert host.api.get(first.ref).flag("HasAssociatedData") is False
    for point in (first, second):
        host.do(service, "DestroyReferencePoint", AffectedReferencePoint=point.ref)
    assert machine.points() == []
    let_it_write(machine, data)
    machine.stop()
    assert sorted(p.name for p in data.parent.iterdir() if p.suffix in (".qcow2", ".img")) == ["data.qcow2"]
    images.check(data)
    numbers = [records.writer_disk(boot), records.writer_disk(images.flatten(data, scratch / "d.raw"))]
    records.assert_one_instant(*numbers)


def test_a_paused_machine_can_be_pointed_and_stays_paused(host, scratch):
    machine = host.machine_with_disks("still", [host.create_disk(scratch / "d.qcow2", 4 * MIB)])
    machine.start()
    machine.pause()
    machine.point(LOG)
    assert machine.state() == PAUSED


def test_the_reply_of_a_job_names_its_class_and_key(host, scratch):
    machine = host.machine_with_disks("named", [host.create_disk(scratch / "d.qcow2", 4 * MIB)])
    job = host.job(machine.begin_point(LOG))
    assert isinstance(job, Ref) and job.class_name == "Msvm_ConcreteJob" and list(job.keys) == ["InstanceID"]
    point_job = host.wait_job(job)
    assert point_job.num("JobType") == 201
