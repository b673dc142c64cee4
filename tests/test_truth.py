"""What a request is refused for is said: in the chain of its job, or beside its return code; and nothing misspelt is passed over."""
import pytest

from harness.host import LOG, U8, U16, U64, Refused
from harness.model import ApiFault, Ref
from test_spine import MIB

POINTS = "Msvm_VirtualSystemReferencePointService"
VSMS = "Msvm_VirtualSystemManagementService"
EXPORT = "Msvm_VirtualSystemReferencePointExportSettingData"


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
