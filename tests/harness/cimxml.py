"""The CIM-XML side of the harness: pywbem as it comes from PyPI."""
import pywbem

from .model import NAMESPACE, ApiFault, Obj, Ref, Result, parse_embedded


def to_wire(value):
    if isinstance(value, Ref):
        return pywbem.CIMInstanceName(value.class_name, keybindings=value.keys, namespace=NAMESPACE)
    if isinstance(value, list):
        return [to_wire(v) for v in value]
    return value


def from_wire(value):
    if isinstance(value, pywbem.CIMInstanceName):
        return Ref(value.classname, dict(value.keybindings))
    if isinstance(value, pywbem.CIMInstance):
        return to_obj(value)
    if isinstance(value, list):
        return [from_wire(v) for v in value]
    return value


def to_obj(instance):
    ref = from_wire(instance.path) if instance.path is not None else None
    return Obj(instance.classname, {k: from_wire(v) for k, v in instance.items()}, ref)


class CimXml:
    protocol = "cimxml"

    def __init__(self, url, user, password, timeout=120):
        self.conn = pywbem.WBEMConnection(url, (user, password), default_namespace=NAMESPACE, timeout=timeout)

    def _call(self, f, *args, **kwargs):
        try:
            return f(*args, **kwargs)
        except pywbem.CIMError as e:
            raise ApiFault(e.status_code, e.status_description or e.status_code_name, e) from e
        except pywbem.HTTPError as e:
            raise ApiFault(f"HTTP {e.status}", f"{e.reason} {e.cimerror or ''}", e) from e

    def get(self, ref):
        found = self._call(self.conn.GetInstance, to_wire(ref))
        obj = to_obj(found)
        obj.ref = obj.ref or ref
        return obj

    def instances(self, class_name):
        return [to_obj(i) for i in self._call(self.conn.EnumerateInstances, class_name)]

    def query(self, wql):
        return [to_obj(i) for i in self._call(self.conn.ExecQuery, "WQL", wql)]

    def associators(self, ref, assoc_class=None, result_class=None, role=None, result_role=None):
        found = self._call(self.conn.Associators, to_wire(ref), AssocClass=assoc_class, ResultClass=result_class,
                           Role=role, ResultRole=result_role)
        return [to_obj(i) for i in found]

    def references(self, ref, result_class=None, role=None):
        return [to_obj(i) for i in self._call(self.conn.References, to_wire(ref), ResultClass=result_class, Role=role)]

    def invoke(self, ref, method, **params):
        given = []
        for name, value in params.items():
            if value is None:
                continue
            if isinstance(value, list) and value and isinstance(value[0], Ref):
                given.append(pywbem.CIMParameter(name, "reference", value=to_wire(value), is_array=True))
            else:
                given.append((name, to_wire(value)))
        returned, out = self._call(self.conn.InvokeMethod, method, to_wire(ref), given)
        return Result(returned, {k: from_wire(v) for k, v in out.items()})

    @staticmethod
    def embedded(class_name, **properties):
        """The value of a string parameter that carries an instance. Properties that are None are left out."""
        return pywbem.CIMInstance(class_name, {k: to_wire(v) for k, v in properties.items() if v is not None})

    @staticmethod
    def read_embedded(value):
        return value if isinstance(value, Obj) else parse_embedded(value)

    def close(self):
        self.conn.close()
