"""Images and exports that somebody made to reach files of the host, or that were damaged: each is refused, and nothing is changed by it.

qemu-img makes the images, so that they are what QEMU would follow.
"""
import json
import os
import shutil
from pathlib import Path

import pytest

from harness import images
from harness.service import Service, wait_until

SECRET = b"nobody may read this " * 50000


@pytest.fixture(scope="module")
def service():
    s = Service()
    try:
        yield s.start()
    finally:
        s.close()


@pytest.fixture
def secret(scratch):
    """A file beside the images' directory, as long as a disk."""
    file = scratch / "secret" / "shadow"
    file.parent.mkdir()
    file.write_bytes(SECRET[:1 << 20])
    yield file
    assert file.read_bytes() == SECRET[:1 << 20], "a file of the host was written to"


@pytest.fixture
def vm(service):
    service.cli("vm", "create", "target", "--memory", "32M")
    yield "target"
    service.cli("vm", "delete", "target", "--force", check=False)


def with_data_file(path, data):
    """A qcow2 image whose data is in a file that is there already."""
    stand_in = path.with_name("d" * (len(str(data)) + 8))
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={stand_in},data_file_raw=on", path, "1M")
    header = path.read_bytes()
    name = str(data).encode().rjust(len(str(stand_in)), b"/")
    assert header.count(str(stand_in).encode()) == 1
    path.write_bytes(header.replace(str(stand_in).encode(), name))
    stand_in.unlink()
    return path


def on(path, backing, fmt):
    images.qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", fmt, path, "1M")
    return path


def hostile(directory, secret):
    directory.mkdir()
    node = json.dumps({"driver": "raw", "file": {"driver": "file", "filename": str(secret)}})
    extents = directory / "extents.vmdk"
    extents.write_text('# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
                       f'RW 2048 FLAT "{secret}" 0\n')
    return {
        "data file": with_data_file(directory / "data.qcow2", secret),
        "json backing": on(directory / "json.qcow2", f"json:{node}", "raw"),
        "absolute backing": on(directory / "absolute.qcow2", "/etc/passwd", "raw"),
        "backing by dots": on(directory / "dots.qcow2", f"../{secret.parent.name}/{secret.name}", "raw"),
        "nbd backing": on(directory / "nbd.qcow2", "nbd://127.0.0.1:9/x", "raw"),
        "nbd backing, old form": on(directory / "nbd2.qcow2", "nbd:127.0.0.1:9", "raw"),
        "http backing": on(directory / "http.qcow2", "http://127.0.0.1:9/x.img", "raw"),
        "vmdk of other files": extents,
    }


def refused(done, *words):
    assert done.returncode != 0, done.stdout
    assert "KVMMS-" in done.stderr and "internal error" not in done.stderr, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    return done.stderr


def disks(service, vm):
    return json.loads(service.cli("-o", "json", "disk", "list", vm).stdout)


def test_no_image_leads_to_a_file_of_the_host(service, scratch, secret, vm):
    before = disks(service, vm)
    for what, image in hostile(scratch / "images", secret).items():
        text = refused(service.cli("disk", "attach", vm, image, check=False), str(image))
        assert "KVMMS-0241" in text or "KVMMS-0242" in text, f"{what}: {text}"
        assert disks(service, vm) == before, what


def test_what_is_no_image_is_refused_at_once(service, scratch, vm):
    os.mkfifo(scratch / "fifo")
    (scratch / "zeros").symlink_to("/dev/zero")
    for path in (scratch / "fifo", scratch / "zeros", scratch, Path("/dev/zero"), Path("/dev/null")):
        refused(service.cli("disk", "attach", vm, path, check=False, timeout=60), "KVMMS-0240")


def test_a_raw_disk_in_which_the_guest_wrote_a_header_stays_raw(service, scratch, secret):
    (scratch / "images").mkdir()
    disk = scratch / "images" / "guest.img"
    images.create(disk, "8M", "raw")
    service.cli("vm", "create", "writes", "--memory", "32M", "--disk", disk)
    try:
        # What the guest could write by itself.
        header = with_data_file(scratch / "images" / "made.qcow2", secret).read_bytes()
        with open(disk, "r+b") as f:
            f.write(header)
        assert images.info(disk)["format"] == "qcow2", "QEMU's own guess is the trap"
        service.cli("vm", "start", "writes")
        service.cli("vm", "stop", "writes")
        service.cli("point", "create", "writes", "--name", "p")
        service.cli("point", "export", "p", "--to", scratch / "out")
        exported, = (scratch / "out").rglob("*.qcow2")
        images.flatten(exported, scratch / "flat.raw")
        assert (scratch / "flat.raw").read_bytes()[:len(header)] == header
        service.cli("point", "delete", "p")
        wait_until(lambda: [p.name for p in disk.parent.glob("guest.img*")] == ["guest.img"], 60, "the merge of its layer")
    finally:
        service.cli("vm", "delete", "writes", "--force")
    # Nobody has it any more; it stays what it was.
    service.cli("vm", "create", "second", "--memory", "32M", "--disk", disk)
    try:
        service.cli("vm", "start", "second")
        service.cli("vm", "stop", "second")
        assert disk.stat().st_size == 8 << 20
        assert json.loads(service.cli("-o", "json", "disk", "show", disk).stdout)["format"] == "raw"
        service.cli("disk", "resize", disk, "16M")
        assert disk.stat().st_size == 16 << 20
    finally:
        service.cli("vm", "delete", "second", "--force")


@pytest.fixture
def export(service, scratch):
    """An export of a machine with two disks of noise."""
    for n in (1, 2):
        (scratch / f"noise{n}").write_bytes(os.urandom(1 << 20))
        images.qemu_img("convert", "-f", "raw", "-O", "qcow2", scratch / f"noise{n}", scratch / f"disk{n}.qcow2")
    service.cli("vm", "create", "source", "--memory", "32M", "--disk", scratch / "disk1.qcow2", "--disk", scratch / "disk2.qcow2")
    service.cli("point", "create", "source", "--name", "p")
    service.cli("point", "export", "p", "--to", scratch / "backup")
    manifest, = (scratch / "backup").rglob("manifest.json")
    yield manifest.parent
    service.cli("vm", "delete", "source", "--force")


def machines(service):
    return sorted(v["id"] for v in json.loads(service.cli("-o", "json", "vm", "list").stdout)), sorted(p.name for p in (service.state / "vm").glob("*"))


def import_refused(service, directory, target):
    before = machines(service)
    text = refused(service.cli("import", directory, "--name", "copy", "--to", target, check=False, timeout=120))
    assert machines(service) == before
    assert not target.exists(), list(target.iterdir())
    return text


def test_flipped_bytes_and_exchanged_disks_are_not_imported(service, scratch, export):
    target = scratch / "new" / "machine"
    whole = {p.relative_to(export): p.stat().st_size for p in export.rglob("*") if p.is_file()}
    assert len(whole) >= 6
    flips = 0
    for name, size in whole.items():
        for place in {size // 3, size // 2, size - 1} if name.suffix != ".qcow2" else {140000, size // 2}:
            copy = scratch / "copy"
            shutil.copytree(export, copy)
            with open(copy / name, "r+b") as f:
                f.seek(place)
                byte = f.read(1)[0]
                f.seek(place)
                f.write(bytes([byte ^ 4]))
            import_refused(service, copy, target)
            assert not target.parent.exists()
            shutil.rmtree(copy)
            flips += 1
    assert flips >= 14
    for ending in ("*.qcow2", "*.map"):
        copy = scratch / "copy"
        shutil.copytree(export, copy)
        one, two = sorted(copy.rglob(ending))
        one.rename(copy / "aside")
        two.rename(one)
        (copy / "aside").rename(two)
        import_refused(service, copy, target)
        shutil.rmtree(copy)
    service.cli("import", export, "--name", "copy", "--to", target)
    try:
        for n in (1, 2):
            images.assert_same(target / f"disk{n}.qcow2", scratch / f"noise{n}", "qcow2", "raw")
    finally:
        service.cli("vm", "delete", "copy", "--force")


def test_links_fifos_and_endless_files_in_an_export_are_not_read(service, scratch, export, secret):
    names = [p.relative_to(export) for p in export.rglob("*") if p.is_file()]
    for name in names:
        for kind in ("fifo", "zeros", "link"):
            copy = scratch / "copy"
            shutil.copytree(export, copy)
            (copy / name).unlink()
            if kind == "fifo":
                os.mkfifo(copy / name)
            else:
                (copy / name).symlink_to("/dev/zero" if kind == "zeros" else secret)
            import_refused(service, copy, scratch / "new")
            refused(service.cli("verify", copy, check=False, timeout=120))
            shutil.rmtree(copy)


def test_a_collection_with_one_damaged_member_is_not_imported_at_all(service, scratch):
    for n in (1, 2):
        (scratch / f"m{n}").mkdir()
        raw = scratch / f"m{n}" / "noise"
        raw.write_bytes(os.urandom(1 << 20))
        images.qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, scratch / f"m{n}" / "d.qcow2")
        service.cli("vm", "create", f"m{n}", "--memory", "32M", "--disk", scratch / f"m{n}" / "d.qcow2")
    service.cli("group", "create", "pair")
    try:
        for n in (1, 2):
            service.cli("group", "add", "pair", f"m{n}")
        service.cli("point", "create", "--group", "pair", "--name", "both")
        service.cli("point", "export", "both", "--group", "pair", "--to", scratch / "backup")
        image = sorted((scratch / "backup").rglob("*.qcow2"))[-1]
        images.flip(image)
        before = machines(service)
        refused(service.cli("group", "import", scratch / "backup", "--name", "copies", "--to", scratch / "new", check=False))
        assert machines(service) == before and not (scratch / "new").exists()
        groups = json.loads(service.cli("-o", "json", "group", "list").stdout)
        assert [g["name"] for g in groups] == ["pair"]
    finally:
        service.cli("point", "delete", "both", "--group", "pair", check=False)
        service.cli("group", "delete", "pair", check=False)
        for n in (1, 2):
            service.cli("vm", "delete", f"m{n}", "--force", check=False)
