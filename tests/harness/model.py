"""What both protocols carry, in one form: references, instances, method results, faults.

Numbers come as numbers over CIM-XML and as text over WS-Management; `Obj.num`, `Obj.text`, `Obj.flag`, `Obj.texts` and `Obj.nums`
read either.
"""
import re
import xml.etree.ElementTree as ET

NAMESPACE = "root/virtualization/v2"


class ApiFault(Exception):
    """The service answered with a CIM error or a SOAP fault."""

    def __init__(self, code, text, raw=None):
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
        self.raw = raw

    @property
    def not_found(self):
        blob = f"{self.code} {self.text} {self.raw}".lower()
        return self.code == 6 or "80041002" in blob or "2147749890" in blob or "destinationunreachable" in blob


class Ref:
    """A path to an instance: class and keys. Compared without regard to case, as CIM wants it."""

    def __init__(self, class_name, keys):
        self.class_name = class_name
        self.keys = {k: str(v) for k, v in keys.items()}

    @classmethod
    def parse(cls, text):
        """Reads `\\\\HOST\\root\\virtualization\\v2:Class.Key="value",...` and its shorter forms."""
        m = re.match(r'^(?:\\\\[^\\]+\\)?(?:[^:."]*:)?([A-Za-z_]\w*)\.(.*)$', text, re.S)
        if not m:
            raise ValueError(f"no object path: {text!r}")
        keys = {}
        for k, v in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', m.group(2)):
            keys[k] = re.sub(r"\\(.)", r"\1", v)
        return cls(m.group(1), keys)

    def text(self, host="."):
        def quoted(v):
            return '"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"'
        ns = NAMESPACE.replace("/", "\\")
        return f"\\\\{host}\\{ns}:{self.class_name}." + ",".join(f"{k}={quoted(v)}" for k, v in self.keys.items())

    def _folded(self):
        return (self.class_name.lower(), frozenset((k.lower(), v.lower()) for k, v in self.keys.items()))

    def __eq__(self, other):
        return isinstance(other, Ref) and self._folded() == other._folded()

    def __hash__(self):
        return hash(self._folded())

    def __repr__(self):
        return f"Ref({self.text()})"


class Obj:
    """An instance: `obj["Name"]` is the value as the protocol gave it, None where null or absent."""

    def __init__(self, class_name, properties, ref=None):
        self.class_name = class_name
        self.properties = properties
        self._lower = {k.lower(): v for k, v in properties.items()}
        self.ref = ref

    def __getitem__(self, name):
        return self._lower.get(name.lower())

    def __contains__(self, name):
        return name.lower() in self._lower

    def num(self, name):
        v = self[name]
        if isinstance(v, list):
            v = v[0] if v else None
        return None if v is None or v == "" else int(v)

    def text(self, name):
        v = self[name]
        if isinstance(v, list):
            v = v[0] if v else None
        return None if v is None else str(v)

    def flag(self, name):
        v = self[name]
        return None if v is None else (v if isinstance(v, bool) else {"true": True, "false": False}[str(v)])

    def texts(self, name):
        v = self[name]
        if v is None:
            return []
        return [None if x is None else str(x) for x in (v if isinstance(v, list) else [v])]

    def nums(self, name):
        return [int(x) for x in self.texts(name)]

    def __repr__(self):
        shown = {k: v for k, v in self.properties.items() if v is not None}
        return f"{self.class_name}({shown})"


class Result:
    """What a method gave back."""

    def __init__(self, return_value, out):
        self.value = int(return_value)
        self.out = out
        self._lower = {k.lower(): v for k, v in out.items()}

    def __getitem__(self, name):
        return self._lower.get(name.lower())

    def refs(self, name):
        v = self[name]
        if v is None:
            return []
        return [x for x in (v if isinstance(v, list) else [v]) if x is not None]

    def __repr__(self):
        return f"Result({self.value}, {self.out})"


def parse_embedded(text):
    """Reads the text form of an embedded instance. As strict as the strictest known client: NAME first, nothing between tags."""
    root = ET.fromstring(text)
    if root.tag != "INSTANCE":
        raise ValueError(f"not an INSTANCE: {text[:80]}")
    properties = {}
    for p in root:
        if p.tag == "PROPERTY":
            v = p.find("VALUE")
            properties[p.get("NAME")] = None if v is None else (v.text or "")
        elif p.tag == "PROPERTY.ARRAY":
            a = p.find("VALUE.ARRAY")
            properties[p.get("NAME")] = None if a is None else [v.text or "" for v in a.findall("VALUE")]
        elif p.tag == "PROPERTY.REFERENCE":
            properties[p.get("NAME")] = p
    return Obj(root.get("CLASSNAME"), properties)
