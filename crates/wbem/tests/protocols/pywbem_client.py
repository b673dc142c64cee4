"""Drives every operation with pywbem, which checks each element and attribute of an answer."""

import sys

import pywbem

url = f"http://127.0.0.1:{sys.argv[1]}"
place = "root/virtualization/v2"
c = pywbem.WBEMConnection(url, ("alice", "correct horse"), default_namespace=place)
system = "Msvm_ComputerSystem"

instances = c.EnumerateInstances(system)
names = c.EnumerateInstanceNames(system)
assert len(instances) == len(names) == 4
first = c.GetInstance(names[0])
assert first["EnabledState"] == 2 and first["OperationalStatus"] == [2, 32768]
assert first["OnTimeInMilliseconds"] == 2**64 - 1
assert first["Settings"]["Notes"] == ["a <b>", ""], "an embedded instance arrives as an object"
assert len(c.EnumerateInstances(system, PropertyList=["Name"])[0].properties) == 1

job = pywbem.CIMInstanceName("Msvm_ConcreteJob", {"InstanceID": "J1"}, namespace=place)
assert len(c.Associators(job, ResultClass=system)) == len(c.AssociatorNames(job)) == 1
assert c.References(job)[0]["AffectingElement"]["InstanceID"] == "J1"
assert len(c.ReferenceNames(job)) == 1
assert len(c.ExecQuery("WQL", f"SELECT * FROM {system} WHERE EnabledState = 2")) == 2

for flags in ({}, {"LocalOnly": False}, {"IncludeQualifiers": False, "IncludeClassOrigin": True}):
    assert c.GetClass(system, **flags).classname == system
assert len(c.EnumerateClasses(DeepInheritance=True, LocalOnly=False)) == 10
assert len(c.EnumerateClassNames()) == 2
assert len(c.EnumerateQualifiers()) > 40 and c.GetQualifier("Key").type == "boolean"

assert len(list(c.IterEnumerateInstances(system, MaxObjectCount=3))) == 4
assert len(list(c.IterEnumerateInstancePaths(system, MaxObjectCount=3))) == 4
assert len(list(c.IterAssociatorInstances(job, MaxObjectCount=3))) == 1
assert len(list(c.IterAssociatorInstancePaths(job, MaxObjectCount=3))) == 1
assert len(list(c.IterReferenceInstances(job, MaxObjectCount=3))) == 1
assert len(list(c.IterReferenceInstancePaths(job, MaxObjectCount=3))) == 1
found = c.IterQueryInstances("WQL", "SELECT * FROM CIM_System", MaxObjectCount=3).generator
assert len(list(found)) == 4
opened = c.OpenEnumerateInstances(system, MaxObjectCount=1)
c.CloseEnumeration(opened.context)

service = c.EnumerateInstanceNames("Msvm_VirtualSystemManagementService")[0]
settings = pywbem.CIMInstance("Msvm_VirtualSystemSettingData", {"ElementName": "new <vm>"})
value, out = c.InvokeMethod(
    "DefineSystem", service, SystemSettings=settings, ResourceSettings=[settings, settings]
)
assert value == 4096 and out["ResultingSystem"]["Name"] == "new <vm>+2"
value, out = c.InvokeMethod("GetErrorEx", job)
assert value == 0 and [e["Message"] for e in out["Errors"]] == ["disk <full>"] * 2
try:
    c.InvokeMethod("Fail", service)
    raise SystemExit("no error came")
except pywbem.CIMError as error:
    assert error.status_code == pywbem.CIM_ERR_FAILED
    assert error.instances[0]["MessageID"] == "KVMMS-0042" and len(error.instances) == 2
for wrong, code in (
    (lambda: c.GetInstance(pywbem.CIMInstanceName("Msvm_ConcreteJob", {"InstanceID": "?"})), 6),
    (lambda: c.EnumerateInstances("Nothing"), 5),
    (lambda: c.EnumerateInstances(system, namespace="root/nowhere"), 3),
    (lambda: c.DeleteInstance(job), 7),
    (lambda: c.CreateInstance(settings), 7),
    (lambda: c.ModifyInstance(instances[0]), 7),
):
    try:
        wrong()
        raise SystemExit(f"no error {code} came")
    except pywbem.CIMError as error:
        assert error.status_code == code, error
try:
    pywbem.WBEMConnection(url, ("alice", "wrong")).EnumerateClassNames()
    raise SystemExit("a wrong password passed")
except pywbem.AuthError:
    pass
