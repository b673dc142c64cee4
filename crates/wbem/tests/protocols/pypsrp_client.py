"""Enumerates, pulls, invokes and fails with pypsrp's WSMan, which compares RelatesTo and reads faults."""

import sys
import xml.etree.ElementTree as ET

from pypsrp.exceptions import AuthenticationError, WSManFaultError
from pypsrp.wsman import SelectorSet, WSMan

port = int(sys.argv[1])
wmi = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/"
wsen = "{http://schemas.xmlsoap.org/ws/2004/09/enumeration}"
wsman = "{http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd}"


def connect(password):
    return WSMan(
        "127.0.0.1", port=port, ssl=False, auth="basic", username="alice", password=password,
        encryption="never",
    )


w = connect("correct horse")
assert w.get_server_config() is not None

body = ET.Element(wsen + "Enumerate")
dialect = "http://schemas.microsoft.com/wbem/wsman/1/WQL"
ET.SubElement(body, wsman + "Filter", Dialect=dialect).text = "SELECT * FROM Msvm_ComputerSystem"
context = w.enumerate(wmi + "*", body).find(f".//{wsen}EnumerationContext")
pulled = 0
while context is not None:
    body = ET.Element(wsen + "Pull")
    ET.SubElement(body, wsen + "EnumerationContext").text = context.text
    answer = w.pull(wmi + "*", body)
    pulled += len(answer.find(f".//{wsen}Items"))
    context = answer.find(f".//{wsen}EnumerationContext")
assert pulled == 4, pulled

uri = wmi + "Msvm_VirtualSystemManagementService"
selectors = SelectorSet()
selectors.add_option("CreationClassName", "Msvm_VirtualSystemManagementService")


def invoke(method, **parameters):
    body = ET.Element(f"{{{uri}}}{method}_INPUT")
    for name, text in parameters.items():
        ET.SubElement(body, f"{{{uri}}}{name}").text = text
    return w.invoke(f"{uri}/{method}", uri, body, selector_set=selectors)


settings = '<INSTANCE CLASSNAME="Msvm_VirtualSystemSettingData"></INSTANCE>'
output = invoke("DefineSystem", SystemSettings=settings)
assert output.find(f".//{{{uri}}}ReturnValue").text == "4096"
assert output.find(f".//{{{uri}}}Job//{wsman}Selector[@Name='InstanceID']").text == "J2"
try:
    invoke("Fail")
    raise SystemExit("no fault came")
except WSManFaultError as fault:
    assert fault.code == 0x80041001 and fault.machine == "HV1" and "as asked for" in fault.reason
try:
    w.delete(uri, selector_set=selectors)
    raise SystemExit("no fault came")
except WSManFaultError as fault:
    assert fault.code == 0x8004100C, fault
try:
    connect("wrong").get(uri, selector_set=selectors)
    raise SystemExit("a wrong password passed")
except AuthenticationError:
    pass
