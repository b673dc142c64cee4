"""The harness's own reading of paths and embedded instances."""
import pytest

from harness.model import Ref, parse_embedded

DISK = r"Microsoft:5A1B\83F8638B-8DCA-4152-9EDA-2CA8B33039B4\0\0\L"


def test_a_path_is_read_back_as_it_was_written():
    ref = Ref("Msvm_StorageAllocationSettingData", {"InstanceID": DISK})
    assert ref.text("HOST").startswith(r"\\HOST\root\virtualization\v2:Msvm_StorageAllocationSettingData.InstanceID=")
    assert r"5A1B\\83F8" in ref.text()
    assert Ref.parse(ref.text("HOST")) == ref


@pytest.mark.parametrize("text", [r'\\HOST\root\virtualization\v2:A.K="v",L="w"', r'root\virtualization\v2:A.K="v",L="w"', 'a.l="W",k="V"'])
def test_paths_are_the_same_whatever_host_case_and_order(text):
    assert Ref.parse(text) == Ref("A", {"K": "v", "L": "w"})


def test_an_embedded_instance_is_read():
    got = parse_embedded('<INSTANCE CLASSNAME="Msvm_Error"><PROPERTY NAME="Message" TYPE="string"><VALUE>a &lt; b</VALUE></PROPERTY>'
                         '<PROPERTY NAME="OwningEntity" TYPE="string"></PROPERTY>'
                         '<PROPERTY.ARRAY NAME="MessageArguments" TYPE="string"><VALUE.ARRAY><VALUE>x</VALUE><VALUE></VALUE></VALUE.ARRAY></PROPERTY.ARRAY></INSTANCE>')
    assert got.class_name == "Msvm_Error"
    assert got.text("message") == "a < b"
    assert got["OwningEntity"] is None
    assert got.texts("MessageArguments") == ["x", ""]
