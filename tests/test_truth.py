"""What a request is refused for is said: in the chain of its job, or beside its return code; and nothing misspelt is passed over."""
import os
import socket
from contextlib import contextmanager

import pytest
import pywbem
import requests

from conftest import PROTOCOLS
from harness.host import DISK_DRIVE, EXCEPTION, HARD_DISK, IDE, LOG, OFF, SAVED, U8, U16, U64, Host, Machine, Refused, copy_guest
from harness.model import ApiFault, Ref
from harness.service import PASSWORD, USER, Service, wait_until
from test_spine import MIB

POINTS = "Msvm_VirtualSystemReferencePointService"
VSMS = "Msvm_VirtualSystemManagementService"
EXPORT = "Msvm_VirtualSystemReferencePointExportSettingData"


@contextmanager
def own(service):
    """A service with a configuration of its own."""
    try:
        yield service.start()
    finally:
        service.close()


def chain_of(host, result):
    """The errors a refusing answer carries."""
    found = result["KvmmsErrors"]
    assert found is not None, f"a refusal without its reasons: {result}"
    return [host.api.read_embedded(e) for e in (found if isinstance(found, list) else [found])]


def refused(host, class_name, method, **params):
    """The code and the joined messages of a call that must not do anything."""
    with pytest.raises((Refused, ApiFault)) as e:
        host.call(class_name, method, **params)
    if isinstance(e.value, ApiFault):
        return None, f"{e.value.text}"
    chain = chain_of(host, e.value.result)
    assert all(error.text("ErrorSource") for error in chain)
    return e.value.code, " / ".join(error.text("Message") for error in chain)


@pytest.fixture
def two(host, scratch):
    """A machine with two points, and another machine."""
    machine = host.machine_with_disks("one", [host.create_disk(scratch / "d.qcow2", MIB)])
    return machine, machine.point(LOG), machine.point(LOG), host.define("other")


def begin_export(host, point, directory, **settings):
    given = host.api.embedded(EXPORT, **settings)
    return refused(host, POINTS, "ExportReferencePoint", ReferencePoint=point.ref, ExportDirectory=str(directory), ExportSettingData=given)


def test_a_misspelt_property_of_settings_is_refused_by_name_and_nothing_is_exported(host, scratch, two):
    _, first, second, _ = two
    code, text = begin_export(host, second, scratch / "e", BaseReferencePiont=first.ref.text())
    assert code == 32773 and "BaseReferencePiont" in text
    assert not (scratch / "e").exists()


def test_a_misspelt_property_is_refused_by_every_method_that_takes_settings(host, scratch, two):
    machine, point, _, _ = two
    e = host.api.embedded
    for service, method, params in (
            (VSMS, "DefineSystem", {"SystemSettings": e("Msvm_VirtualSystemSettingData", ElementNam="x")}),
            (VSMS, "DefineSystem", {"ResourceSettings": [e("Msvm_MemorySettingData", ResourceType=U16(4), VirtualQantity=U64(64))]}),
            (VSMS, "ModifySystemSettings", {"SystemSettings": e("Msvm_VirtualSystemSettingData", InstanceID=f"Microsoft:{machine.guid}", Nots=["x"])}),
            (POINTS, "CreateReferencePoint", {"AffectedSystem": machine.ref, "ReferencePointSettings":
                                              e("Msvm_VirtualSystemReferencePointSettingData", ConsistencyLvel=U8(2))}),
            ("Msvm_ImageManagementService", "CreateVirtualHardDisk", {"VirtualDiskSettingData": e(
                "Msvm_VirtualHardDiskSettingData", Type=U16(3), Format=U16(3), Path=str(scratch / "x.qcow2"), MaxInternalSiz=U64(MIB))})):
        code, text = refused(host, service, method, **params)
        assert code == 32773 and ("ElementNam" in text or "Qantity" in text or "Nots" in text or "Lvel" in text or "InternalSiz" in text), (method, text)


def test_what_windows_writes_into_an_instance_besides_its_properties_is_taken(host):
    """GetText of WMI adds system properties; libvirt sends a disk as Msvm_ResourceAllocationSettingData."""
    text = ('<INSTANCE CLASSNAME="Msvm_VirtualSystemSettingData"><QUALIFIER NAME="dynamic" TYPE="boolean"><VALUE>TRUE</VALUE></QUALIFIER>'
            '<PROPERTY NAME="__PATH" CLASSORIGIN="___SYSTEM" TYPE="string"><VALUE>x</VALUE></PROPERTY>'
            '<PROPERTY.ARRAY NAME="__DERIVATION" CLASSORIGIN="___SYSTEM" TYPE="string"><VALUE.ARRAY><VALUE>CIM_SettingData</VALUE></VALUE.ARRAY></PROPERTY.ARRAY>'
            '<PROPERTY NAME="ElementName" CLASSORIGIN="CIM_ManagedElement" TYPE="string"><VALUE>with system properties</VALUE></PROPERTY></INSTANCE>')
    result = host.call(VSMS, "DefineSystem", SystemSettings=text)
    made = host.api.get(result["ResultingSystem"])
    assert made.text("ElementName") == "with system properties"
    host.do(VSMS, "DestroySystem", AffectedSystem=result["ResultingSystem"])


def test_an_unknown_parameter_is_refused_by_name(host, two):
    machine, point, _, _ = two
    for service, method, params in ((POINTS, "RemoveAssociatedData", {"AffectedReferencePoint": point.ref, "Forse": True}),
                                    (VSMS, "DestroySystem", {"AffectedSystem": machine.ref, "Froce": True})):
        code, text = refused(host, service, method, **params)
        assert code == 32773 and ("Forse" in text or "Froce" in text)
    job = host.job(host.call(POINTS, "RemoveAssociatedData", AffectedReferencePoint=point.ref))
    assert host.api.invoke(job, "GetErrorEx", Verbose=True).value == 32773


@pytest.mark.parametrize("keys", [
    lambda m, p, o: {"InstanceID": f"Microsoft:{o.guid}\\{p}"},
    lambda m, p, o: {"InstanceID": f"Microsoft:{p}", "VirtualSystemIdentifier": o.guid},
    lambda m, p, o: {"InstanceID": f"Microsoft:{p}", "Nonsense": "x"},
    lambda m, p, o: {"VirtualSystemIdentifier": m.guid},
    lambda m, p, o: {"Name": p},
], ids=["another machine's", "another machine in the second key", "an unknown key", "a missing key", "a wrong key"])
def test_a_reference_whose_keys_do_not_fit_its_point_is_refused(host, two, keys):
    machine, point, second, other = two
    for victim in (point, second):
        guid = victim.text("InstanceID").split(":")[1]
        ref = Ref("Msvm_VirtualSystemReferencePoint", keys(machine, guid, other))
        code, text = refused(host, POINTS, "DestroyReferencePoint", AffectedReferencePoint=ref)
        assert code in (None, 32773) and text
    assert len(machine.points()) == 2


def test_the_keys_that_pages_name_and_older_forms_still_name_a_point(host, two):
    machine, point, _, _ = two
    guid = point.text("InstanceID").split(":")[1]
    for keys in ({"InstanceID": f"Microsoft:{machine.guid}\\{guid}"}, {"InstanceID": f"microsoft:{guid.lower()}"},
                 {"InstanceID": f"Microsoft:{guid}", "VirtualSystemIdentifier": machine.guid}):
        assert host.api.get(Ref("Msvm_VirtualSystemReferencePoint", keys)).text("InstanceID") == point.text("InstanceID")


@pytest.mark.parametrize("keys", [
    lambda g: {"CreationClassName": "Msvm_PlannedComputerSystem", "Name": g},
    lambda g: {"CreationClassName": "Msvm_ComputerSystem"},
    lambda g: {"Name": g, "SystemName": "x"},
    lambda g: {"Name": g, "ElementName": "somebody else"},
    lambda g: {"InstanceID": f"Microsoft:{g}"},
], ids=range(5))
def test_a_reference_whose_keys_do_not_fit_its_machine_is_refused(host, keys):
    machine = host.define("kept")
    code, text = refused(host, VSMS, "DestroySystem", AffectedSystem=Ref("Msvm_ComputerSystem", keys(machine.guid)))
    assert code in (None, 32773) and text
    assert host.api.get(machine.ref).text("ElementName") == "kept"


def test_a_wrong_system_name_of_a_service_is_refused(host):
    good = host.service_ref(POINTS)
    for key in ("SystemName", "SystemCreationClassName", "CreationClassName", "Name"):
        with pytest.raises(ApiFault) as fault:
            host.api.invoke(Ref(POINTS, {**good.keys, key: "elsewhere"}), "RemoveAssociatedData")
        assert fault.value.not_found


@pytest.mark.parametrize("base", ["Microsoft:00000000-0000-0000-0000-00000000000A", "nonsense",
                                  'Msvm_VirtualSystemReferencePoint.InstanceID="Microsoft:00000000-0000-0000-0000-00000000000A"'])
def test_a_base_in_settings_that_names_nothing_is_an_invalid_parameter(host, scratch, two, base):
    _, _, second, _ = two
    code, text = begin_export(host, second, scratch / "e", BaseReferencePoint=base)
    assert code == 32773 and "BaseReferencePoint" in text
    assert not (scratch / "e").exists()


# What only looking can tell is refused in a job.

def failed_job(host, class_name, method, **params):
    """The failed job of a call, with its errors; every one of them is about an object."""
    ref = host.job(host.call(class_name, method, **params))
    job = host.wait_job(ref)
    errors = host.errors(ref)
    assert job.num("JobState") == EXCEPTION and errors and job.text("ErrorDescription")
    assert all(e.text("ErrorSource") and e.text("MessageID") for e in errors)
    one = host.api.invoke(ref, "GetError")["Error"]
    assert host.api.read_embedded(one).text("Message") == errors[0].text("Message")
    return job, errors


def test_content_that_does_not_allow_it_is_refused_in_a_job_with_the_most_specific_code(host, scratch):
    machine = host.define("files")
    here = scratch / "here"
    here.write_text("no image")
    images, e = "Msvm_ImageManagementService", host.api.embedded
    new = e("Msvm_VirtualHardDiskSettingData", Type=U16(3), Format=U16(3), Path=str(here), MaxInternalSize=U64(MIB))
    drive, = machine.add(e("Msvm_ResourceAllocationSettingData", ResourceType=U16(17), ResourceSubType=DISK_DRIVE,
                           Parent=machine.controller(IDE).text(), AddressOnParent="0"))
    gone = str(scratch / "gone.qcow2")
    disk = e("Msvm_StorageAllocationSettingData", ResourceType=U16(31), ResourceSubType=HARD_DISK, Parent=drive.text(), HostResource=[gone])
    for class_name, method, code, params in (
            (images, "CreateVirtualHardDisk", 32773, {"VirtualDiskSettingData": new}),
            (images, "ResizeVirtualHardDisk", 32779, {"Path": gone, "MaxInternalSize": U64(MIB)}),
            (images, "ValidateVirtualHardDisk", 32779, {"Path": gone}),
            (images, "GetVirtualHardDiskSettingData", 32779, {"Path": gone}),
            (VSMS, "AddResourceSettings", 32779, {"AffectedConfiguration": machine.settings, "ResourceSettings": [disk]}),
            (VSMS, "ImportSystemDefinition", None, {"SystemDefinitionFile": str(scratch / "x" / "y" / "z.json")}),
            (POINTS, "ImportReferencePointMetadata", None, {"AffectedSystem": machine.ref, "ConfigFilePath": str(here)}),
            ("Kvmms_ExportService", "VerifyExport", None, {"ExportDirectory": str(scratch)})):
        job, errors = failed_job(host, class_name, method, **params)
        assert job.num("ErrorCode") == code if code else job.num("ErrorCode") > 32767, (method, errors)
        assert job.num("OperationalStatus") == 6
    assert here.read_text() == "no image"
    assert job.class_name != "Msvm_StorageJob"


def test_a_file_smaller_than_asked_for_cannot_shrink_and_a_job_says_so(host, scratch):
    path = host.create_disk(scratch / "d.qcow2", 8 * MIB)
    job, errors = failed_job(host, "Msvm_ImageManagementService", "ResizeVirtualHardDisk", Path=str(path), MaxInternalSize=U64(MIB))
    assert job.class_name == "Msvm_StorageJob" and job.num("ErrorCode") == 32773
    assert errors[0].text("MessageID") == "KVMMS-0066"


def test_a_job_without_faults_has_no_error_and_is_operating_normally(host, two):
    machine, _, _, _ = two
    result = machine.begin_point(LOG)
    job = host.finish(result)
    assert job.nums("OperationalStatus") == [2] and job.num("ErrorCode") == 0
    assert host.api.invoke(job.ref, "GetError")["Error"] is None
    assert host.api.invoke(job.ref, "GetErrorEx")["Errors"] is None


# Names.

@pytest.mark.parametrize("name", ["a\x1b[2Jb", "two\nlines", "prod\u202egpj.exe", "a\u2066b", "\x9b2J"], ids=range(5))
def test_names_that_steer_terminals_are_refused_for_everything_that_has_one(host, scratch, two, name):
    if host.api.protocol == "wsman" and "\x1b" in name:
        pytest.skip("XML has no place for it")
    machine, point, _, _ = two
    e = host.api.embedded
    point_settings = e("Msvm_VirtualSystemReferencePointSettingData", ConsistencyLevel=U8(2), ElementName=name)
    snapshot_settings = e("Msvm_VirtualSystemSnapshotSettingData", ConsistencyLevel=U8(2), ElementName=name)
    for class_name, method, params in (
            (VSMS, "DefineSystem", {"SystemSettings": e("Msvm_VirtualSystemSettingData", ElementName=name)}),
            (VSMS, "ModifySystemSettings", {"SystemSettings": e("Msvm_VirtualSystemSettingData", InstanceID=f"Microsoft:{machine.guid}", ElementName=name)}),
            (POINTS, "CreateReferencePoint", {"AffectedSystem": machine.ref, "ReferencePointSettings": point_settings, "ReferencePointType": U16(1)}),
            ("Msvm_VirtualSystemSnapshotService", "CreateSnapshot", {"AffectedSystem": machine.ref, "SnapshotSettings": snapshot_settings,
                                                                     "SnapshotType": U16(3)}),
            ("Msvm_CollectionManagementService", "DefineCollection", {"Name": name, "Type": U16(0)})):
        try:
            code, text = refused(host, class_name, method, **params)
        except ValueError:
            pytest.skip("the client does not send it")
        assert code in (None, 32773), (method, text)
        assert "\x1b" not in text and "\u202e" not in text
    assert all("\n" not in o.text("ElementName") for o in host.api.instances("Msvm_ComputerSystem"))


# Who asks, and from where.

def post(service, headers, path="/wsman", host="127.0.0.1"):
    port = service.wsman_port if path == "/wsman" else service.cimxml_port
    return requests.post(f"http://{host}:{port}{path}", "<x/>", auth=(USER, PASSWORD), headers=headers, timeout=30).status_code


@pytest.mark.parametrize("path", ["/wsman", "/cimom"])
def test_pages_of_other_hosts_and_names_that_are_not_ours_are_not_answered(service, path):
    port = service.wsman_port if path == "/wsman" else service.cimxml_port
    plain = post(service, {}, path)
    assert plain not in (401, 403)
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{port + 1}", "http://localhost"):
        assert post(service, {"Origin": origin}, path) == 403
    assert post(service, {"Origin": f"http://127.0.0.1:{port}"}, path) == plain
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "169.254.1.1"):
        assert post(service, {"Host": host}, path) == 400
    for host in ("localhost", f"LOCALHOST:{port}", "127.0.0.1", socket.gethostname()):
        assert post(service, {"Host": host}, path) == plain


def test_configured_names_are_answered_too():
    with own(Service('host_names = ["vms.example.org"]\n')) as service:
        assert post(service, {"Host": "vms.example.org:1"}) != 400
        assert post(service, {"Host": "other.example.org"}) == 400


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_viewer_calls_nothing_that_opens_a_path(protocol, scratch):
    with own(Service()) as service:
        service.tool("user", "add", "looker", "--role", "viewer", "--password-stdin", stdin="only looking 1\n")
        viewer = Host(service.api(protocol, "looker", "only looking 1"), service)
        images = viewer.service_ref("Msvm_ImageManagementService")
        for method in ("GetVirtualHardDiskSettingData", "GetVirtualHardDiskState", "ValidateVirtualHardDisk", "GetVirtualDiskChanges"):
            with pytest.raises(ApiFault) as fault:
                viewer.api.invoke(images, method, Path="/etc/shadow")
            assert fault.value.code == 2 or "KVMMS-0011" in fault.value.text
        assert viewer.api.instances("Msvm_ComputerSystem")


# Refusals as faults.

def test_refusals_can_be_faults_whose_detail_has_the_chain(scratch):
    with own(Service('refusals = "fault"\n')) as service:
        for protocol in PROTOCOLS:
            host = Host(service.api(protocol), service)
            with pytest.raises(ApiFault) as fault:
                host.call(VSMS, "DefineSystem", SystemSettings=host.api.embedded("Msvm_VirtualSystemSettingData", ElementNam="x"))
            raw = fault.value.raw
            if protocol == "cimxml":
                assert raw.status_code == pywbem.CIM_ERR_INVALID_PARAMETER
                assert [i.classname for i in raw.instances] == ["Msvm_Error"]
                assert "ElementNam" in raw.instances[0]["Message"] and raw.instances[0]["MessageID"] == "KVMMS-0190"
                assert raw.instances[0]["ErrorSource"] and raw.instances[0]["RecommendedActions"]
            else:
                assert "ElementNam" in raw.provider_fault and raw.provider == "kvmms" and "KVMMS-0190" in raw.reason


def test_an_operation_that_fails_has_its_chain_in_the_fault(host):
    with pytest.raises(ApiFault) as fault:
        host.api.get(Ref("Msvm_ComputerSystem", {"CreationClassName": "Msvm_ComputerSystem", "Name": "00000000-0000-0000-0000-000000000000"}))
    assert fault.value.not_found and "KVMMS-0193" in fault.value.text
    if host.api.protocol == "cimxml":
        error, = fault.value.raw.instances
        assert error["MessageID"] == "KVMMS-0193" and error["ErrorSource"]


def test_the_export_of_a_point_of_a_saved_machine_names_its_memory(host, scratch, guests):
    machine = host.machine_with_disks("saved", [copy_guest(guests / "writer.img", scratch / "d")])
    machine.start()
    machine.request(SAVED)
    point = machine.point(LOG)
    job = machine.export(point, scratch / "e")
    memory = job.texts("ExportedRuntimeFilePath")[0]
    assert memory.endswith(".vmstate") and os.path.getsize(memory) > 0
    result = host.call("Kvmms_ExportService", "VerifyExport", ExportDirectory=str(scratch / "e"))
    host.finish(result)
    # Saved memory counts as code: it is only taken over where that is asked for.
    result = host.call("Kvmms_ExportService", "ImportExport", ExportDirectory=str(scratch / "e"), DiskDirectory=str(scratch / "i"), NewName="again",
                       RestoreMemory=True)
    host.finish(result)
    other = Machine(host, result["ImportedSystem"])
    host.machines.append(other)
    assert other.state() == SAVED, "it goes on from its memory"
    # Of a machine that is off there is none.
    machine.request(OFF)
    after = machine.export(machine.point(LOG), scratch / "off")
    assert not after.text("ExportedRuntimeFilePath")
    # The memory goes with the data of the point.
    host.do(POINTS, "RemoveAssociatedData", AffectedReferencePoint=point.ref)
    wait_until(lambda: not list(host.service.state.rglob("memory.vmstate")), 30, "the removal of the memory")
