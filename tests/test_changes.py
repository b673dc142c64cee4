"""GetVirtualDiskChanges: the ranges that changed since a point, as backup programs ask for them."""
from pathlib import Path

import pytest

from harness import images
from harness.host import RCT, U64, JobFailed, Refused, let_it_write
from test_exact import frozen_point
from test_spine import MIB, running_writer

IMAGES = "Msvm_ImageManagementService"


def changes(host, path, limit, size):
    """All changed ranges, asked for the way real programs do: whole disk, on from ProcessedByteLength."""
    offset, found = 0, []
    for _ in range(10000):
        if offset >= size:
            return found
        result = host.call(IMAGES, "GetVirtualDiskChanges", Path=str(path), LimitId=limit, TargetSnapshotId="",
                           ByteOffset=U64(offset), ByteLength=U64(size - offset))
        # A job only tells why there is no answer.
        host.finish(result)
        assert result.value == 0, "the answer must be synchronous"
        processed = int(result["ProcessedByteLength"])
        assert processed > 0, "no progress"

        def numbers(name):
            v = result[name]
            return [] if v is None else [int(x) for x in (v if isinstance(v, list) else [v])]
        starts, lengths = numbers("ChangedByteOffsets"), numbers("ChangedByteLengths")
        assert len(starts) == len(lengths)
        found += zip(starts, lengths)
        offset += processed
    raise AssertionError("10000 calls and no end")


def test_the_changes_since_a_point_cover_every_difference_and_not_the_whole_disk(host, guests, scratch):
    machine, boot, data = running_writer(host, guests, scratch, "rct")
    point, before = frozen_point(machine, [boot, data], scratch / "f1", RCT)
    ids = dict(zip((i.lower() for i in point.texts("VirtualDiskIdentifiers")), point.texts("ResilientChangeTrackingIdentifiers")))
    assert len(ids) == 2 and all(ids.values())
    disk = next(d for d in machine.disks() if d.texts("HostResource")[0].endswith("data.qcow2"))
    let_it_write(machine, data)
    machine.pause()
    now = images.freeze(data.parent, scratch / "now")
    found = changes(host, data, ids[disk.text("InstanceID").lower()], 64 * MIB)
    old, new = before["data.qcow2"].read_bytes(), now.read_bytes()
    covered = bytearray(len(new) // 512)
    total = 0
    for start, length in found:
        assert 0 <= start and start + length <= len(new) and length > 0
        total += length
        for sector in range(start // 512, (start + length + 511) // 512):
            covered[sector] = 1
    missed = [at for at in range(0, len(new), 512) if old[at:at + 512] != new[at:at + 512] and not covered[at // 512]]
    assert missed == [], f"{len(missed)} changed sectors are not in the answer"
    assert 0 < total < len(new) // 2


def test_a_point_of_the_second_kind_keeps_no_data(host, guests, scratch):
    machine, _, _ = running_writer(host, guests, scratch, "nodata")
    assert machine.point(RCT).flag("HasAssociatedData") is False


def test_an_unknown_limit_is_an_invalid_parameter(host, guests, scratch):
    machine, _, data = running_writer(host, guests, scratch, "unknown")
    with pytest.raises(Refused) as refused:
        changes(host, data, "no-such-point", 64 * MIB)
    assert refused.value.code in (32773, 32775, 32779)


def test_the_range_may_end_beyond_the_disk(host, guests, scratch):
    machine, _, data = running_writer(host, guests, scratch, "beyond")
    point = machine.point(RCT)
    disk = next(d for d in machine.disks() if d.texts("HostResource")[0].endswith("data.qcow2"))
    ids = dict(zip((i.lower() for i in point.texts("VirtualDiskIdentifiers")), point.texts("ResilientChangeTrackingIdentifiers")))
    result = host.call(IMAGES, "GetVirtualDiskChanges", Path=str(data), LimitId=ids[disk.text("InstanceID").lower()], TargetSnapshotId="",
                       ByteOffset=U64(0), ByteLength=U64(1 << 40))
    assert result.value == 0 and int(result["ProcessedByteLength"]) > 0


def test_a_missing_disk_is_not_found(host):
    with pytest.raises(JobFailed) as refused:
        changes(host, Path("/nowhere/at/all.qcow2"), "x", MIB)
    assert refused.value.job.num("ErrorCode") == 32779
