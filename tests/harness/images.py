"""Disk images, looked at with qemu-img only: the judge must not be our own code."""
import errno
import json
import struct
import os
import shutil
import subprocess
import time
from pathlib import Path

from .service import wait_until


def qemu_img(*args, check=True):
    done = subprocess.run(["qemu-img", *map(str, args)], capture_output=True, text=True)
    if check:
        assert done.returncode == 0, f"qemu-img {' '.join(map(str, args))}: {done.stderr}{done.stdout}"
    return done


def create(path, size, fmt="qcow2", *options):
    qemu_img("create", "-q", "-f", fmt, *options, path, size)
    return Path(path)


def info(path):
    return json.loads(qemu_img("info", "-U", "--output=json", path).stdout)


def assert_same(a, b, a_format="qcow2", b_format="qcow2"):
    """Both images hold the same bytes and have the same size. How they store zeros may differ."""
    done = qemu_img("compare", "-f", a_format, "-F", b_format, a, b, check=False)
    assert done.returncode == 0, f"{a} and {b} differ: {done.stdout}{done.stderr}"
    sizes = [info(path)["virtual-size"] for path in (a, b)]
    assert sizes[0] == sizes[1], f"{a} has {sizes[0]} bytes, {b} has {sizes[1]}"


def check(path):
    """Fails where the image has errors or leaks."""
    qemu_img("check", "-q", path)


def copy(path, target):
    """Copies a file without filling its holes, which the test guests' disks mostly are."""
    with open(path, "rb") as a, open(target, "wb") as b:
        size, at = os.fstat(a.fileno()).st_size, 0
        b.truncate(size)
        while at < size:
            try:
                at = os.lseek(a.fileno(), at, os.SEEK_DATA)
            except OSError as e:
                if e.errno != errno.ENXIO:
                    raise
                break
            hole = os.lseek(a.fileno(), at, os.SEEK_HOLE)
            a.seek(at)
            b.seek(at)
            while at < hole and (piece := a.read(min(hole - at, 1 << 20))):
                b.write(piece)
                at += len(piece)
            if at < hole:
                break
    return target


def flatten(path, target, fmt="qcow2"):
    """The whole disk as a raw image, through the chain of backing files."""
    qemu_img("convert", "-f", fmt, "-O", "raw", path, target)
    return Path(target)


def copy_standing_still(directory, copies):
    """Copies a directory as it was at one instant: again, until nothing in it changed while it was read."""
    before = None
    def state():
        return sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in directory.iterdir())

    for _ in range(100):
        shutil.rmtree(copies, ignore_errors=True)
        try:
            before = state()
            shutil.copytree(directory, copies, copy_function=copy)
            if state() == before:
                return
        except (FileNotFoundError, shutil.Error):
            pass  # a layer was merged away under the copy
        time.sleep(0.2)
    raise AssertionError(f"{directory} never stood still: {before}")


def one_chain(directory, copies):
    """Copies the files of a disk: the layers among them, and the topmost ones; nothing while a layer that was merged is not deleted yet."""
    copy_standing_still(directory, copies)
    images, backed = {}, set()
    for path in sorted(copies.iterdir()):
        if not path.is_file():
            continue
        with open(path, "rb") as f:
            magic = f.read(4)
        if magic != b"QFI\xfb":
            continue
        found = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", path).stdout)
        images[path.name] = found
        if found.get("backing-filename"):
            backed.add(os.path.basename(found["backing-filename"]))
    tops = [n for n in images if n not in backed]
    return (images, tops) if len(tops) == 1 or not images else None


def freeze(directory, target, base_format="qcow2"):
    """Copies the files of one disk (all that lies in its directory) and gives back the disk as one raw image.

    For a disk of a paused or stopped machine: QEMU has then flushed everything into the files. The top of the chain is the one
    image that no other names as its backing file. The service may be merging layers meanwhile, which moves bytes between the
    files without changing the disk: only a copy during which no file changed counts.
    """
    copies = Path(f"{target}.layers")
    images, tops = wait_until(lambda: one_chain(Path(directory), copies), 60, f"one chain in {directory}")
    if not images:
        tops = [p.name for p in copies.iterdir() if p.is_file()]
        assert len(tops) == 1, f"no chain in {directory}: {tops}"
        flatten(copies / tops[0], target, base_format)
    else:
        for name, found in images.items():
            backing = found.get("backing-filename")
            if backing and os.path.isabs(backing):  # make the copy independent of the original
                qemu_img("rebase", "-u", "-b", copies / os.path.basename(backing), "-F", found.get("backing-filename-format", "qcow2"),
                         copies / name)
        flatten(copies / tops[0], target)
    shutil.rmtree(copies)
    return Path(target)


def backing_of(path):
    return info(path).get("backing-filename")


def freeze_copy(path, target):
    """One image file of a paused machine, without its chain, as a raw image."""
    taken = Path(f"{target}.copy")
    copy(path, taken)
    flatten(taken, target)
    taken.unlink()
    return Path(target)


def write_owner(path, line):
    """Writes a line that says whose a layer is into its header, as kvmms does."""
    with open(path, "r+b") as f:
        head = bytearray(f.read(65536))
        name_at, name_len = struct.unpack(">QI", head[8:20])
        name = bytes(head[name_at:name_at + name_len])
        at = struct.unpack(">I", head[100:104])[0]
        while (kind := struct.unpack(">II", head[at:at + 8]))[0]:
            at += 8 + (kind[1] + 7) // 8 * 8
        text = line.encode()
        new = head[:at] + struct.pack(">II", 0x6b766d73, len(text)) + text + bytes(-len(text) % 8) + bytes(8)
        new[8:16] = struct.pack(">Q", len(new))
        f.seek(0)
        f.write(new + name)


def flip(path, bit=1):
    """Flips one bit of what the guest's disk holds in a qcow2 image, in the last extent of data. Gives back the byte of the disk."""
    extents = json.loads(qemu_img("map", "-f", "qcow2", "--output=json", path).stdout)
    extent = [e for e in extents if e["data"] and e.get("offset") and e["depth"] == 0][-1]
    with open(path, "r+b") as f:
        f.seek(extent["offset"] + extent["length"] // 2)
        byte = f.read(1)[0]
        f.seek(-1, 1)
        f.write(bytes([byte ^ bit]))
    return extent["start"] + extent["length"] // 2
