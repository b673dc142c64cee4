"""Replays what the test guests write, so that the content of a disk is known from the highest number on it.

`linux_disk` is for the records of tests/guest/guest.c, `writer_disk` for those of tests/guest/writer.s.
"""
import os

MASK = (1 << 64) - 1
BLOCK, SECTOR, SLOTS = 4096, 512, 2048
PACED = 1024
ZERO_EVERY, TAIL_EVERY = 37, 16


def mix(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def record(length, number, disk):
    x = mix((number * 31 + disk) & MASK)
    words = [b"KVMMSREC", number.to_bytes(8, "little"), disk.to_bytes(8, "little")]
    for _ in range(24, length, 8):
        x = mix(x)
        words.append(x.to_bytes(8, "little"))
    return b"".join(words)


def stride_of(size):
    return (size - SECTOR) // BLOCK // SLOTS


def highest(path):
    """The highest record number on a raw image."""
    size = os.path.getsize(path)
    best = 0
    with open(path, "rb") as f:
        for slot in range(SLOTS):
            f.seek(slot * stride_of(size) * BLOCK)
            head = f.read(16)
            if head[:8] == b"KVMMSREC":
                best = max(best, int.from_bytes(head[8:], "little"))
    return best


def differences(path, disk, number):
    """Where a raw image differs from one that got exactly the records 1..number, as text; empty when it is exact."""
    size = os.path.getsize(path)
    last = {}
    for n in range(1, number + 1):
        last[mix(n) % SLOTS] = n
    tail = number // TAIL_EVERY * TAIL_EVERY
    tail_at = size // SECTOR * SECTOR - SECTOR
    wrong = []
    with open(path, "rb") as f:
        for slot in range(SLOTS):
            n = last.get(slot, 0)
            want = bytes(BLOCK) if n == 0 or n % ZERO_EVERY == 0 else record(BLOCK, n, disk)
            at = slot * stride_of(size) * BLOCK
            f.seek(at)
            have = f.read(BLOCK)
            if at <= tail_at < at + BLOCK:  # the sector at the end lies in the last slot
                have = have[:tail_at - at]
                want = want[:tail_at - at]
            if have != want:
                wrong.append(f"slot {slot} should hold record {n}")
        f.seek(tail_at)
        if f.read(SECTOR) != (record(SECTOR, tail, disk) if tail else bytes(SECTOR)):
            wrong.append(f"the last sector should hold record {tail}")
    return wrong


class Number(int):
    """The number of the last record on a disk; `latest` where the disk cannot tell it from a later one."""

    latest: int

    def __new__(cls, number, latest=None):
        made = super().__new__(cls, number)
        made.latest = number if latest is None else latest
        return made


def linux_disk(path, disk):
    """The number up to which a raw image holds every record exactly. Raises AssertionError if there is none.

    A record of zeros shows no number, and the write of a record is followed by that of the last sector: the highest number seen and
    the next one are both possible ends. A record of zeros that went where zeros were leaves no trace at all.
    """
    number = highest(path)
    first = differences(path, disk, number)
    if not first:
        unseen = (number + 1) % ZERO_EVERY == 0 and not differences(path, disk, number + 1)
        return Number(number, number + 1 if unseen else None)
    if (number + 1) % ZERO_EVERY == 0 and not differences(path, disk, number + 1):
        return number + 1
    # The guest was stopped between a record and its tail.
    if number % TAIL_EVERY == 0 and first == [f"the last sector should hold record {number}"]:
        return number
    raise AssertionError(f"{path}: {len(first)} places differ from a disk with records 1..{number}: {first[:5]}")


def writer_slot(number):
    return (number * 2654435761 & 0xFFFFFFFF) >> 21


def writer_at(slot):
    return (2048 + 56 * slot) * SECTOR


def writer_disk(path):
    """The number up to which a raw image of the boot sector guest's disk is exact (0: nothing written).

    The BIOS hands a record to an IDE disk sector by sector, so one record may be there in part: the next one, its first sectors.
    """
    held, torn = {}, {}
    with open(path, "rb") as f:
        blocks = []
        for slot in range(SLOTS):
            f.seek(writer_at(slot))
            blocks.append(f.read(BLOCK))
        # Where no slot has anything further on, they are the shorter records of the guest that keeps a pace.
        length = BLOCK if any(b[PACED:].strip(b"\0") for b in blocks) else PACED
        for slot, block in enumerate(blocks):
            sectors = []
            for at in range(0, length, SECTOR):
                n = int.from_bytes(block[at:at + 4], "little")
                assert block[at:at + SECTOR] == n.to_bytes(4, "little") * (SECTOR // 4), f"{path}: slot {slot} has a torn sector"
                assert n == 0 or writer_slot(n) == slot, f"{path}: slot {slot} holds record {n:#x} of another slot"
                sectors.append(n)
            held[slot] = sectors[-1]
            if len(set(sectors)) > 1:
                torn[slot] = sectors
    best = max(held.values())
    for slot, sectors in torn.items():
        done, begun = sectors.index(sectors[-1]), sectors[0]
        assert sectors == [begun] * done + [sectors[-1]] * (len(sectors) - done), f"{path}: slot {slot} holds {sectors}"
        # The record under way at the instant, or the one under way when an earlier run of the guest was ended.
        follows = begun == best + 1 or (begun > best and begun & 0xFFFFF == 1)
        assert follows or begun >> 20 < best >> 20, f"{path}: slot {slot} holds {sectors}, last whole record {best:#x}"
    # Of the guest's last start everything is known: the last record of each slot must be there.
    first = (best >> 20) << 20
    last = {}
    for n in range(first + 1, best + 1):
        last[writer_slot(n)] = n
    for slot, n in last.items():
        assert held[slot] == n, f"{path}: slot {slot} holds {held[slot]:#x}, should hold {n:#x}"
    return best


def assert_one_instant(first, second):
    """The numbers of two disks of one guest, taken at one instant: the second disk is never ahead, and at most one behind."""
    ends = [range(n, getattr(n, "latest", n) + 1) for n in (first, second)]
    fits = any(0 <= a - b <= 1 for a in ends[0] for b in ends[1])
    assert fits, f"not one instant: disk 0 at {first:#x}, disk 1 at {second:#x}"
