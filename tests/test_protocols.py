"""What the two protocols owe their clients beside the methods: classes, queries, paging, authentication, identification."""
import xml.etree.ElementTree as ET

import pytest
import pywbem
import requests
import winrm.protocol
from pypsrp.exceptions import AuthenticationError

from harness.host import U16, Host
from harness.model import NAMESPACE, ApiFault, Ref
from harness.service import PASSWORD, USER
from harness.wsman import WMI, N, local, unwrap

NAMES = [f"many-{n}" for n in range(5)]


@pytest.fixture(scope="module")
def five(service):
    host = Host(service.api("cimxml"), service)
    made = [host.define(name) for name in NAMES]
    yield made
    host.close()


@pytest.fixture
def wsman(service):
    return service.api("wsman")


@pytest.fixture
def cimxml(service):
    return service.api("cimxml")


def names(found):
    return sorted(o.text("ElementName") for o in found if o.text("ElementName") in NAMES)


# Queries, the same over both protocols.

@pytest.mark.parametrize("where, expected", [
    ("Name != __SERVER", NAMES),
    ("ElementName = 'many-3'", ["many-3"]),
    ("ElementName = 'MANY-3'", ["many-3"]),
    ('ElementName = "many-3"', ["many-3"]),
    ("ElementName LIKE 'many-%'", NAMES),
    ("ElementName LIKE 'many-_' AND NOT ElementName = 'many-0'", NAMES[1:]),
    ("ElementName LIKE '%many%' and (EnabledState = 0 or EnabledState = 3 or EnabledState = 32769) ", NAMES),
    ("ElementName LIKE 'many-%' AND EnabledState <> 3", []),
    ("ElementName LIKE 'many-%' AND Caption IS NOT NULL", NAMES),
    ("ElementName >= 'many-4' AND ElementName <= 'many-4'", ["many-4"]),
])
def test_wql_conditions(api, five, where, expected):
    assert names(api.query(f"SELECT * FROM Msvm_ComputerSystem WHERE {where}")) == expected


def test_a_projection_gives_the_asked_properties_and_the_key(api, five):
    found = api.query("select ElementName, EnabledState from Msvm_ComputerSystem where ElementName = 'many-2'")
    assert len(found) == 1 and found[0].num("EnabledState") == 3
    assert found[0]["Description"] is None


def test_a_superclass_finds_its_subclasses(api, five):
    assert names(api.query("SELECT * FROM CIM_ComputerSystem WHERE ElementName LIKE 'many-%'")) == NAMES
    assert names(api.instances("CIM_ComputerSystem")) == NAMES


def test_a_machine_is_found_by_its_path(api, five):
    path = five[0].ref.text("ANYHOST").replace("\\", "\\\\")
    found = api.query(f"SELECT * FROM Msvm_ComputerSystem WHERE __PATH = '{path}'")
    assert [o.ref for o in found] == [five[0].ref]


def test_associations_walk_both_ways(api, five):
    settings = api.associators(five[1].ref, "Msvm_SettingsDefineState", "Msvm_VirtualSystemSettingData")
    assert len(settings) == 1
    back = api.associators(settings[0].ref, "Msvm_SettingsDefineState", "Msvm_ComputerSystem")
    assert [b.ref for b in back] == [five[1].ref]
    assert [r.class_name for r in api.references(five[1].ref, "Msvm_SettingsDefineState")] == ["Msvm_SettingsDefineState"]


def test_a_bare_definition_has_the_devices_of_a_first_generation_machine(api, five):
    settings = api.associators(five[1].ref, "Msvm_SettingsDefineState", "Msvm_VirtualSystemSettingData")[0]
    parts = api.associators(settings.ref, "Msvm_VirtualSystemSettingDataComponent")
    kinds = [p.text("ResourceSubType") for p in parts]
    assert kinds.count("Microsoft:Hyper-V:Emulated IDE Controller") == 2
    classes = {p.class_name for p in parts}
    assert {"Msvm_ProcessorSettingData", "Msvm_MemorySettingData", "Msvm_SerialPortSettingData"} <= classes


def test_the_path_written_by_a_client_comes_back_in_any_spelling(api, five):
    for keys in ({"Name": five[0].guid.lower()}, {"Name": five[0].guid.upper(), "CreationClassName": "msvm_computersystem"}):
        assert api.get(Ref("Msvm_ComputerSystem", keys)).text("ElementName") == NAMES[0]


# WS-Management.

def test_identify_tells_the_protocol(service):
    body = ('<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" xmlns:i="http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd">'
            "<s:Header/><s:Body><i:Identify/></s:Body></s:Envelope>")
    answer = requests.post(f"http://127.0.0.1:{service.wsman_port}/wsman", body, auth=(USER, PASSWORD),
                           headers={"Content-Type": "application/soap+xml;charset=UTF-8"})
    assert answer.status_code == 200
    told = ET.fromstring(answer.content).find(".//{http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd}ProtocolVersion")
    assert told.text == "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"


def test_a_pull_without_a_number_gives_one_item(wsman, five):
    request = ET.Element("{%s}Enumerate" % N["n"])
    uri = WMI + "Msvm_ComputerSystem"
    answer = wsman.wsman.enumerate(uri, resource=request)
    answer = unwrap(answer)
    seen = 0
    context = answer.find("n:EnumerationContext", N)
    while context is not None and context.text:
        pull = ET.Element("{%s}Pull" % N["n"])
        ET.SubElement(pull, "{%s}EnumerationContext" % N["n"]).text = context.text
        answer = wsman.wsman.pull(uri, resource=pull)
        answer = unwrap(answer)
        items = answer.find("n:Items", N)
        assert items is not None and len(items) <= 1
        seen += len(items)
        context = None if answer.find("n:EndOfSequence", N) is not None else answer.find("n:EnumerationContext", N)
    assert seen >= len(NAMES)


def test_the_three_enumeration_modes(wsman, five):
    query = "SELECT * FROM Msvm_ComputerSystem WHERE ElementName LIKE 'many-%'"
    objects = list(wsman.enumerate(WMI + "*", query, mode=None))
    eprs = list(wsman.enumerate(WMI + "*", query, mode="EnumerateEPR"))
    both = list(wsman.enumerate(WMI + "*", query, mode="EnumerateObjectAndEPR"))
    assert len(objects) == len(eprs) == len(both) == len(NAMES)
    assert all(o.tag == f"{{{WMI}Msvm_ComputerSystem}}Msvm_ComputerSystem" for o in objects)
    assert all(local(e) == "EndpointReference" for e in eprs)
    assert all([local(i) for i in b] == ["Msvm_ComputerSystem", "EndpointReference"] for b in both)


def test_an_invented_enumeration_context_is_a_fault(wsman):
    pull = ET.Element("{%s}Pull" % N["n"])
    ET.SubElement(pull, "{%s}EnumerationContext" % N["n"]).text = "uuid:nothing"
    with pytest.raises(ApiFault):
        wsman._call(wsman.wsman.pull, WMI + "Msvm_ComputerSystem", resource=pull)


def test_put_create_and_delete_answer_a_fault(wsman, five):
    from harness.wsman import selectors
    uri = WMI + "Msvm_ComputerSystem"
    body = ET.Element(f"{{{uri}}}Msvm_ComputerSystem")
    for attempt in (lambda: wsman.wsman.put(uri, resource=body, selector_set=selectors(five[0].ref)),
                    lambda: wsman.wsman.create(uri, resource=body),
                    lambda: wsman.wsman.delete(uri, selector_set=selectors(five[0].ref))):
        with pytest.raises(ApiFault):
            wsman._call(attempt)
    assert wsman.get(five[0].ref).text("ElementName") == NAMES[0]


def test_pywinrm_reads_an_instance_too(service, five):
    p = winrm.protocol.Protocol(endpoint=f"http://127.0.0.1:{service.wsman_port}/wsman", transport="basic", username=USER, password=PASSWORD)
    header = p.build_wsman_header("http://schemas.xmlsoap.org/ws/2004/09/transfer/Get", WMI + "Msvm_ComputerSystem")
    header["w:SelectorSet"] = {"w:Selector": [{"@Name": "Name", "#text": five[3].guid}]}
    import xmltodict
    answer = p.send_message(xmltodict.unparse({"env:Envelope": {**{f"@xmlns:{k}": v for k, v in {
        "env": N["s"], "a": N["a"], "w": N["w"], "p": "http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd"}.items()},
        "env:Header": {k: v for k, v in header["env:Header"].items()} | {"w:SelectorSet": header["w:SelectorSet"]} if "env:Header" in header else header,
        "env:Body": {}}}))
    assert NAMES[3].encode() in (answer if isinstance(answer, bytes) else answer.encode())


# CIM-XML.

def test_class_definitions_come_with_keys_and_value_maps(cimxml):
    c = cimxml.conn.GetClass("Msvm_ConcreteJob", LocalOnly=False, IncludeQualifiers=True)
    assert c.properties["InstanceID"].qualifiers["Key"].value is True
    assert "ValueMap" in c.properties["JobState"].qualifiers
    assert c.properties["ErrorDescription"].qualifiers["ModelCorrespondence"].value == ["CIM_Job.ErrorCode"]
    assert {"GetError", "GetErrorEx", "RequestStateChange"} <= set(c.methods)
    assert len(cimxml.conn.EnumerateClassNames(DeepInheritance=True)) > 400


def test_open_and_pull_walk_all_instances(cimxml, five):
    opened = cimxml.conn.OpenEnumerateInstances("Msvm_ComputerSystem", MaxObjectCount=2)
    seen = list(opened.instances)
    while not opened.eos:
        opened = cimxml.conn.PullInstancesWithPath(opened.context, 2)
        assert len(opened.instances) <= 2
        seen += opened.instances
    assert sorted(i["ElementName"] for i in seen if i["ElementName"] in NAMES) == NAMES
    assert len(list(cimxml.conn.IterQueryInstances("WQL", "SELECT * FROM Msvm_ComputerSystem WHERE ElementName = 'many-1'").generator)) == 1


def test_the_namespaces_are_found_through_interop(cimxml):
    server = pywbem.WBEMServer(cimxml.conn)
    assert NAMESPACE in [n.lower() for n in server.namespaces]
    assert server.brand


@pytest.mark.parametrize("call, code", [
    (lambda c: c.GetClass("Msvm_NoSuchClass"), pywbem.CIM_ERR_NOT_FOUND),
    (lambda c: c.EnumerateInstances("Msvm_NoSuchClass"), pywbem.CIM_ERR_INVALID_CLASS),
    (lambda c: c.EnumerateInstances("Msvm_ComputerSystem", namespace="root/nowhere"), pywbem.CIM_ERR_INVALID_NAMESPACE),
    (lambda c: c.ExecQuery("CQL:none", "SELECT"), pywbem.CIM_ERR_QUERY_LANGUAGE_NOT_SUPPORTED),
    (lambda c: c.ExecQuery("WQL", "SELECT FROM WHERE"), pywbem.CIM_ERR_INVALID_QUERY),
    (lambda c: c.PullInstancesWithPath(("nothing", NAMESPACE), 1), pywbem.CIM_ERR_INVALID_ENUMERATION_CONTEXT),
    (lambda c: c.DeleteInstance(pywbem.CIMInstanceName("Msvm_ComputerSystem", {"Name": "x"}, namespace=NAMESPACE)), pywbem.CIM_ERR_NOT_SUPPORTED),
])
def test_cim_errors_carry_their_codes(cimxml, call, code):
    with pytest.raises(pywbem.CIMError) as error:
        call(cimxml.conn)
    assert error.value.status_code == code
    assert error.value.status_description


# Authentication.

def test_wrong_or_missing_credentials_are_401(service):
    for port, path in ((service.wsman_port, "/wsman"), (service.cimxml_port, "/cimom")):
        for auth in (None, (USER, "wrong"), ("nobody", PASSWORD)):
            answer = requests.post(f"http://127.0.0.1:{port}{path}", "<x/>", auth=auth)
            assert answer.status_code == 401
            assert "basic" in answer.headers["WWW-Authenticate"].lower()


def test_the_clients_report_wrong_credentials(service):
    with pytest.raises(AuthenticationError):
        service.api("wsman", password="wrong").instances("Msvm_ComputerSystem")
    with pytest.raises(pywbem.AuthError):
        service.api("cimxml", password="wrong").instances("Msvm_ComputerSystem")


def test_a_viewer_sees_and_changes_nothing(service, five):
    service.tool("user", "add", "onlooker", "--role", "viewer", "--password-stdin", stdin="look but not touch\n")
    for protocol in ("cimxml", "wsman"):
        api = service.api(protocol, "onlooker", "look but not touch")
        assert api.get(five[0].ref).text("ElementName") == NAMES[0]
        try:
            code = api.invoke(five[0].ref, "RequestStateChange", RequestedState=U16(2)).value
        except ApiFault as fault:
            code = fault.code
        assert code not in (0, 4096)
    assert service.api("cimxml").get(five[0].ref).num("EnabledState") == 3
