"""The WS-Management side of the harness: the WSMan class of pypsrp as it comes from PyPI.

pypsrp brings transport, headers and fault reading; the bodies of Enumerate, Pull and Invoke are the caller's business and made here.
"""
import xml.etree.ElementTree as ET

import pywbem
from pypsrp.exceptions import WSManFaultError
from pypsrp.wsman import NAMESPACES, SelectorSet, WSMan, WSManAction

from .model import NAMESPACE, ApiFault, Obj, Ref, Result, parse_embedded

WMI = f"http://schemas.microsoft.com/wbem/wsman/1/wmi/{NAMESPACE}/"
WQL = "http://schemas.microsoft.com/wbem/wsman/1/WQL"
N = {"s": NAMESPACES["s"], "a": NAMESPACES["wsa"], "w": NAMESPACES["wsman"], "n": NAMESPACES["wsen"], "xsi": NAMESPACES["xsi"]}
NIL = f"{{{N['xsi']}}}nil"


def q(prefix, name):
    return f"{{{N[prefix]}}}{name}"


def local(element):
    return element.tag.rsplit("}", 1)[-1]


def selectors(ref):
    found = SelectorSet()
    for k, v in ref.keys.items():
        found.add_option(k, v)
    return found


def add_epr(parent, ref):
    ET.SubElement(parent, q("a", "Address")).text = "http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous"
    parameters = ET.SubElement(parent, q("a", "ReferenceParameters"))
    ET.SubElement(parameters, q("w", "ResourceURI")).text = WMI + ref.class_name
    chosen = ET.SubElement(parameters, q("w", "SelectorSet"))
    for k, v in ref.keys.items():
        ET.SubElement(chosen, q("w", "Selector"), Name=k).text = v


def read_epr(element):
    parameters = element.find("a:ReferenceParameters", N)
    if parameters is None:
        return None
    class_name = parameters.find("w:ResourceURI", N).text.rsplit("/", 1)[-1]
    keys = {s.get("Name"): s.text or "" for s in parameters.findall("w:SelectorSet/w:Selector", N) if s.get("Name") != "__cimnamespace"}
    return Ref(class_name, keys)


def read_value(element):
    if element.get(NIL) == "true":
        return None
    if element.find("a:ReferenceParameters", N) is not None:
        return read_epr(element)
    if len(element):
        child = element[0]
        if local(child) in ("Datetime", "Interval", "CIM_DateTime"):
            return child.text
        return read_instance(element)
    return element.text or ""


def read_members(element):
    found = {}
    for child in element:
        name, value = local(child), read_value(child)
        if name in found:
            if not isinstance(found[name], list):
                found[name] = [found[name]]
            found[name].append(value)
        else:
            found[name] = value
    return found


def read_instance(element, ref=None):
    return Obj(local(element), read_members(element), ref)


def unwrap(answer):
    """The one element in the body: pypsrp gives the envelope after some operations and the body's content after others."""
    if local(answer) == "Envelope":
        answer = answer.find("s:Body", N)
    return answer[0] if local(answer) == "Body" else answer


def add_value(body, name, uri, value):
    if value is None:
        return
    if isinstance(value, list):
        for v in value:
            add_value(body, name, uri, v)
        return
    element = ET.SubElement(body, f"{{{uri}}}{name}")
    if isinstance(value, Ref):
        add_epr(element, value)
    elif isinstance(value, bool):
        element.text = "true" if value else "false"
    else:
        element.text = str(value)


class WsMan:
    protocol = "wsman"

    def __init__(self, port, user, password, host="127.0.0.1", ssl=False, cert_validation=True):
        self.wsman = WSMan(host, port=port, username=user, password=password, ssl=ssl, auth="basic",
                           encryption="auto" if ssl else "never", cert_validation=cert_validation, read_timeout=120)

    def _call(self, f, *args, **kwargs):
        try:
            return f(*args, **kwargs)
        except WSManFaultError as e:
            raise ApiFault(e.code, f"{e.reason} {e.provider_fault or ''}".strip(), e) from e

    def get(self, ref):
        body = self._call(self.wsman.get, WMI + ref.class_name, selector_set=selectors(ref))
        return read_instance(unwrap(body), ref)

    def enumerate(self, uri, wql=None, mode="EnumerateObjectAndEPR", optimize=True, most=50, extra=None):
        """All items, in the given mode. Yields the raw elements."""
        request = ET.Element(q("n", "Enumerate"))
        if optimize:
            ET.SubElement(request, q("w", "OptimizeEnumeration"))
            ET.SubElement(request, q("w", "MaxElements")).text = str(most)
        if mode:
            ET.SubElement(request, q("w", "EnumerationMode")).text = mode
        if wql:
            ET.SubElement(request, q("w", "Filter"), Dialect=WQL).text = wql
        if extra is not None:
            request.append(extra)
        answer = self._call(self.wsman.enumerate, uri, resource=request)
        answer = unwrap(answer)
        context = answer.find("n:EnumerationContext", N)
        yield from (i for items in answer.findall("w:Items", N) for i in items)
        done = answer.find("w:EndOfSequence", N) is not None
        while not done:
            assert context is not None and context.text, "neither a context nor the end of the sequence"
            pull = ET.Element(q("n", "Pull"))
            ET.SubElement(pull, q("n", "EnumerationContext")).text = context.text
            if optimize:
                ET.SubElement(pull, q("n", "MaxElements")).text = str(most)
            answer = self._call(self.wsman.pull, uri, resource=pull)
            answer = unwrap(answer)
            yield from (i for items in answer.findall("n:Items", N) for i in items)
            context = answer.find("n:EnumerationContext", N)
            done = answer.find("n:EndOfSequence", N) is not None

    def _objects(self, uri, wql=None):
        found = []
        for item in self.enumerate(uri, wql):
            instance, epr = item[0], item[1]
            found.append(read_instance(instance, read_epr(epr)))
        return found

    def instances(self, class_name):
        return self._objects(WMI + class_name)

    def query(self, wql):
        return self._objects(WMI + "*", wql)

    @staticmethod
    def _braces(ref):
        def quoted(v):
            return "'" + v.replace("\\", "\\\\").replace("'", "\\'") + "'"
        return "{" + ref.class_name + "." + ",".join(f"{k}={quoted(v)}" for k, v in ref.keys.items()) + "}"

    def associators(self, ref, assoc_class=None, result_class=None, role=None, result_role=None):
        where = "".join(f" {k} = {v}" for k, v in (("AssocClass", assoc_class), ("ResultClass", result_class),
                                                   ("Role", role), ("ResultRole", result_role)) if v)
        return self.query(f"ASSOCIATORS OF {self._braces(ref)}" + (" WHERE" + where if where else ""))

    def references(self, ref, result_class=None, role=None):
        where = "".join(f" {k} = {v}" for k, v in (("ResultClass", result_class), ("Role", role)) if v)
        return self.query(f"REFERENCES OF {self._braces(ref)}" + (" WHERE" + where if where else ""))

    def invoke(self, ref, method, **params):
        uri = WMI + ref.class_name
        request = ET.Element(f"{{{uri}}}{method}_INPUT")
        for name, value in params.items():
            add_value(request, name, uri, value)
        answer = self._call(self.wsman.invoke, f"{uri}/{method}", uri, request, selector_set=selectors(ref))
        output = unwrap(answer)
        assert local(output) == f"{method}_OUTPUT", ET.tostring(output)
        out = read_members(output)
        return Result(out.pop("ReturnValue"), out)

    @staticmethod
    def embedded(class_name, **properties):
        """The value of a string parameter that carries an instance. Properties that are None are left out."""
        given = {k: v for k, v in properties.items() if v is not None}
        return pywbem.CIMInstance(class_name, given).tocimxml().toxml()

    @staticmethod
    def read_embedded(value):
        return value if isinstance(value, Obj) else parse_embedded(value)

    def close(self):
        self.wsman.close()


__all__ = ["WMI", "WQL", "WsMan", "WSManAction", "N", "q", "local", "unwrap"]
