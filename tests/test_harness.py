"""The harness's own reading of paths and embedded instances."""
import pytest

from harness import records
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


def write_records(path, last, disk):
    size = 64 << 20
    with open(path, "wb") as f:
        f.truncate(size)
        for n in range(1, last + 1):
            f.seek(records.mix(n) % records.SLOTS * records.stride_of(size) * records.BLOCK)
            f.write(bytes(records.BLOCK) if n % records.ZERO_EVERY == 0 else records.record(records.BLOCK, n, disk))
        f.seek(size - records.SECTOR)
        tail = last // records.TAIL_EVERY * records.TAIL_EVERY
        f.write(records.record(records.SECTOR, tail, disk) if tail else bytes(records.SECTOR))
    return records.linux_disk(path, disk)


def test_a_record_of_zeros_on_zeros_may_or_may_not_be_there(tmp_path):
    z = records.ZERO_EVERY
    before, after = write_records(tmp_path / "a", z - 1, 1), write_records(tmp_path / "b", z + 1, 0)
    assert (before, before.latest, after, after.latest) == (z - 1, z, z + 1, z + 1)
    records.assert_one_instant(after, before)
    for first, second in [(write_records(tmp_path / "c", z + 2, 0), before), (before, after)]:
        with pytest.raises(AssertionError):
            records.assert_one_instant(first, second)
