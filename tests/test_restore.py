"""A backup counts when it restores: any point of a chain, booted copies with evidence, one file out of an export, a machine straight on one."""
import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from harness import images, records
from harness.host import copy_guest
from harness.service import wait_until

EVIDENCE = "kvmms guest ready"


def read(service, *args, timeout=1000):
    return json.loads(service.cli("-o", "json", *args, timeout=timeout).stdout)


def console(service, name):
    return service.cli("vm", "console", name, "--log").stdout


@pytest.fixture
def vms(service):
    """Makes machines by the command line; deletes them at the end."""
    names = []

    def make(name, *args):
        names.append(name)
        service.cli("vm", "create", name, *map(str, args))
        return name
    yield make
    for name in names:
        service.cli("vm", "delete", name, "--force", check=False)


def writer(service, guests, directory, vms, name):
    boot = copy_guest(guests / "writer.img", directory / name)
    vms(name, "--memory", "32M", "--disk", boot)
    service.cli("vm", "start", name)
    wait_until(lambda: "N 0010" in console(service, name), 60, "the guest's first records")
    return boot


def linux(service, guests, directory, vms, name, image="linux-ext4.img"):
    """The Linux guest with an agent and a data disk."""
    boot = copy_guest(guests / image, directory / f"{name}-boot")
    vms(name, "--memory", "128M", "--disk", boot, "--new-disk", f"{directory}/{name}-data.qcow2:64M")
    service.cli("vm", "start", name)
    wait_until(lambda: "guest wrote file 10" in console(service, name), 120, "files written by the guest")
    return boot


def digest(directory):
    """What all files below a directory hold."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(directory).rglob("*")) if p.is_file()}


def exports(directory):
    """Point GUID -> directory with its manifest."""
    found = {}
    for manifest in Path(directory).rglob("manifest.json"):
        found[json.loads(manifest.read_text())["point"]["id"]] = manifest.parent
    return found


def leftovers(service, known):
    """Directories of machines the service does not know."""
    listed = {p.name for p in (service.state / "vm").glob("*")} - known
    return sorted(listed)


def machine_dirs(service):
    return {p.name for p in (service.state / "vm").glob("*")}


def only_boot(service, job):
    shown = read(service, "job", "show", job)
    assert len(shown["boots"]) == 1, shown
    return shown["boots"][0]


# Any point of a chain.

def test_the_middle_of_three_points_is_restored_exactly_however_it_is_named(service, guests, scratch, vms):
    boot = writer(service, guests, scratch, vms, "chain")
    copies, points, base = {}, {}, None
    for n, name in enumerate(["one", "two", "three"]):
        wait_until(lambda: f"N 00100{n + 1}" in console(service, "chain"), 60, "records")
        service.cli("vm", "pause", "chain")
        copies[name] = images.freeze(boot.parent, scratch / f"{name}.raw", "raw")
        service.cli("point", "create", "chain", "--name", name)
        service.cli("vm", "resume", "chain")
        service.cli("point", "export", name, *(["--base", base] if base else []), "--to", scratch / "backup")
        base = name
    for guid, directory in exports(scratch / "backup").items():
        points[json.loads((directory / "manifest.json").read_text())["point"]["name"]] = (guid, directory)
    assert set(points) == {"one", "two", "three"}
    guid, middle = points["two"]
    instant = json.loads((middle / "manifest.json").read_text())["point"]["instant"]
    newest, top = points["three"][1], scratch / "backup"
    ways = [(newest, guid), (top, "two"), (points["one"][1], instant), (top, guid[:13].lower()), (newest, "TWO")]
    for n, (directory, at) in enumerate(ways):
        target = scratch / f"restored{n}"
        service.cli("import", directory, "--at", at, "--name", f"back{n}", "--to", target)
        try:
            image, = target.iterdir()
            images.check(image)
            assert not images.backing_of(image)
            images.assert_same(image, copies["two"], "qcow2", "raw")
        finally:
            service.cli("vm", "delete", f"back{n}", "--force", check=False)
    for name in ("one", "three"):
        target = scratch / f"restored-{name}"
        service.cli("import", top, "--at", name, "--name", f"back-{name}", "--to", target)
        try:
            images.assert_same(next(target.iterdir()), copies[name], "qcow2", "raw")
        finally:
            service.cli("vm", "delete", f"back-{name}", "--force", check=False)


def test_a_point_that_is_not_there_or_not_clear_is_refused_with_what_there_is(service, scratch, vms):
    vms("pick", "--new-disk", f"{scratch}/d.qcow2:4M")
    for n in range(2):
        service.cli("point", "create", "pick", "--name", "twin")
    ids = [p["id"] for p in read(service, "point", "list", "pick")]
    for n, guid in enumerate(ids):
        service.cli("point", "export", guid, "--to", scratch / "backup" / str(n))
    missing = service.cli("import", scratch / "backup" / "0", "--at", "friday", "--to", scratch / "none", check=False)
    assert missing.returncode != 0 and "KVMMS-0136" in missing.stderr
    assert "twin" in missing.stderr and sum(i in missing.stderr for i in ids) == 1
    (scratch / "backup" / "both").mkdir()
    for n, guid in enumerate(ids):
        machine, = [p for p in (scratch / "backup" / str(n)).iterdir()]
        machine.rename(scratch / "backup" / "both" / str(n))
    unclear = service.cli("import", scratch / "backup" / "both", "--at", "twin", "--to", scratch / "none", check=False)
    assert unclear.returncode != 0 and "KVMMS-0137" in unclear.stderr and all(i in unclear.stderr for i in ids)
    assert not (scratch / "none").exists()


# Booted copies.

def test_an_export_is_booted_without_network_and_without_being_written_to(service, guests, scratch, vms):
    linux(service, guests, scratch, vms, "live")
    service.cli("point", "create", "live", "--name", "first")
    service.cli("point", "export", "first", "--to", scratch / "backup")
    service.cli("point", "create", "live", "--name", "second")
    service.cli("point", "export", "second", "--base", "first", "--to", scratch / "backup")
    before, known = digest(scratch / "backup"), machine_dirs(service)
    machines = read(service, "vm", "list")
    done = read(service, "verify", "--boot", scratch / "backup", "--expect", EVIDENCE, "--agent", "--wait", "900")
    assert done["booted"] is True
    boot = only_boot(service, done["job"])
    assert boot["pointName"] == "second" and boot["exports"] == 2 and boot["proven"] is True
    directory = exports(scratch / "backup")[boot["point"]]
    manifest = json.loads((directory / "manifest.json").read_text())
    assert boot["directory"] == str(directory)
    assert [d["id"] for d in boot["disks"]] == [d["instance_id"] for d in manifest["disks"]]
    assert [d["hash"] for d in boot["disks"]] == [d.get("digest") or d["block_list"]["blake3"] for d in manifest["disks"]]
    assert re.fullmatch("[0-9a-f]{64}", boot["manifest"])
    assert EVIDENCE in boot["console"] and "\x1b" not in boot["console"]
    assert {s["kind"] for s in boot["signs"]} == {"console", "text", "agent"}
    assert boot["agent"]["os_id"] == "kvmms-guest"
    assert digest(scratch / "backup") == before, "the export was written to"
    assert leftovers(service, known) == []
    assert [m["id"] for m in read(service, "vm", "list")] == [m["id"] for m in machines]
    assert read(service, "vm", "show", "live")["state"] == "running"
    text = service.cli("job", "show", done["job"]).stdout
    assert "seen: agent after" in text and EVIDENCE in text and boot["manifest"] in text
    first = read(service, "verify", "--boot", scratch / "backup", "--at", "first", "--expect", EVIDENCE, "--no-proof", "--wait", "900")
    boot = only_boot(service, first["job"])
    assert boot["pointName"] == "first" and boot["exports"] == 1 and boot["proven"] is False


def test_a_machine_that_shows_no_life_fails_the_job_with_what_its_console_said(service, guests, scratch, vms):
    vms("empty", "--memory", "32M", "--new-disk", f"{scratch}/empty.qcow2:8M")
    writer(service, guests, scratch, vms, "quiet")
    for name in ("empty", "quiet"):
        service.cli("point", "create", name, "--name", f"{name}-noon")
        service.cli("point", "export", f"{name}-noon", "--to", scratch / name)
    known = machine_dirs(service)
    failed = service.cli("verify", "--boot", scratch / "empty", "--wait", "2", check=False)
    assert failed.returncode != 0
    assert "KVMMS-0138" in failed.stderr and "KVMMS-0139" in failed.stderr
    failed = service.cli("verify", "--boot", scratch / "quiet", "--wait", "5", "--expect", "login:", check=False)
    assert failed.returncode != 0 and "login:" in failed.stderr
    assert re.search(r"N 00[0-9a-f]{6}", failed.stderr), "the console's last lines"
    job = re.search(r"job: ([0-9A-F-]{36})", failed.stderr).group(1)
    boot = only_boot(service, job)
    assert boot["failure"] and "N 00" in boot["console"]
    failed = service.cli("verify", "--boot", scratch / "quiet", "--wait", "3", "--agent", check=False)
    assert failed.returncode != 0 and "agent" in failed.stderr
    assert leftovers(service, known) == []
    # With nothing demanded, what it wrote counts when the time is over.
    done = read(service, "verify", "--boot", scratch / "quiet", "--wait", "4")
    assert [s["kind"] for s in only_boot(service, done["job"])["signs"]] == ["console"]


def test_a_damaged_export_is_not_booted(service, guests, scratch, vms):
    writer(service, guests, scratch, vms, "hurt")
    service.cli("point", "create", "hurt", "--name", "hurt-noon")
    service.cli("point", "export", "hurt-noon", "--to", scratch / "backup")
    image, = (scratch / "backup").rglob("*.qcow2")
    images.flip(image)
    failed = service.cli("verify", "--boot", scratch / "backup", "--wait", "5", "--expect", "N 00", check=False)
    assert failed.returncode != 0 and "KVMMS-0116" in failed.stderr and "KVMMS-0139" not in failed.stderr


def test_every_machine_of_a_collection_is_booted_and_told_of(service, guests, scratch, vms):
    writer(service, guests, scratch, vms, "good")
    vms("bad", "--memory", "32M", "--new-disk", f"{scratch}/bad.qcow2:8M")
    writer(service, guests, scratch, vms, "fine")
    service.cli("group", "create", "shop")
    try:
        for name in ("good", "bad", "fine"):
            service.cli("group", "add", "shop", name)
        service.cli("point", "create", "--group", "shop", "--name", "all")
        service.cli("point", "export", "all", "--group", "shop", "--to", scratch / "backup")
        failed = service.cli("verify", "--boot", scratch / "backup", "--wait", "20", "--expect", "N 0020", check=False)
        assert failed.returncode != 0 and "1 of 3 machines" in failed.stderr and failed.stderr.count("KVMMS-0139") == 1
        job = re.search(r"job: ([0-9A-F-]{36})", failed.stderr).group(1)
        boots = {b["name"]: b for b in read(service, "job", "show", job)["boots"]}
        assert set(boots) == {"good", "bad", "fine"}
        assert boots["bad"]["failure"] and not boots["good"]["failure"] and not boots["fine"]["failure"]
        assert "N 0020" in boots["good"]["console"] and "N 0020" in boots["fine"]["console"]
        # One machine alone is one machine; the collection without one of its machines is not the collection.
        machine, = [p for p in (scratch / "backup").iterdir() if p.name == boots["good"]["machine"]]
        service.cli("verify", "--boot", machine, "--wait", "90", "--expect", "N 0020", "--no-proof")
        machine.rename(scratch / "elsewhere")
        failed = service.cli("verify", "--boot", scratch / "backup", "--at", "all", "--wait", "20", "--expect", "N 0020", "--no-proof", check=False)
        assert failed.returncode != 0 and "2 of 3 machines" in failed.stderr and "good" in failed.stderr
    finally:
        service.cli("point", "delete", "all", "--group", "shop", check=False)
        service.cli("group", "delete", "shop", check=False)


def begin_boot(service, directory):
    """Starts a boot that cannot succeed, and waits until its machine runs."""
    known = set(service.qemu_pids())
    job = service.cli("--no-wait", "-o", "json", "verify", "--boot", directory, "--expect", "never said", "--wait", "600").stdout
    pid, = wait_until(lambda: set(service.qemu_pids()) - known, 60, "the throw-away machine")
    return re.search("[0-9A-F-]{36}", job).group(0), pid


def test_cancelled_or_killed_nothing_is_left_of_a_boot(own_service, guests):
    service, work = own_service, own_service.work
    copy_guest(guests / "writer.img", work / "boot")
    service.cli("vm", "create", "short", "--memory", "32M", "--disk", work / "boot" / "boot.img")
    service.cli("point", "create", "short", "--name", "p")
    service.cli("point", "export", "p", "--to", work / "backup")
    before, known = digest(work / "backup"), machine_dirs(service)
    for way in ("cancel", "kill job", "kill service"):
        job, pid = begin_boot(service, work / "backup")
        if way == "kill service":
            service.kill()
            assert Path(f"/proc/{pid}").exists(), "the machine outlives the service"
            service.start()
        else:
            service.cli("job", "cancel", job, *(["--kill"] if way == "kill job" else []))
        wait_until(lambda: not Path(f"/proc/{pid}").exists() and not leftovers(service, known), 60, f"{way}: everything gone")
        wait_until(lambda: read(service, "job", "show", job)["state"] in ("cancelled", "killed", "failed"), 30, "the job's end")
        assert service.qemu_pids() == []
        assert digest(work / "backup") == before
    assert [m["name"] for m in read(service, "vm", "list")] == ["short"]


# Parts of an export.

def file_of(number):
    """What the Linux guest writes into its file of that number."""
    out, x = bytearray(f"file {number}\n".encode()), number
    for _ in range(60000 // 8):
        x = records.mix(x)
        out += x.to_bytes(8, "little")
    return bytes(out)


def newest_file(disk):
    """The last file the guest had finished, and its number, read with debugfs out of a raw disk."""
    def cat(path):
        return subprocess.run(["/sbin/debugfs", "-R", f"cat {path}", disk], capture_output=True).stdout
    number = int(cat("/last"))
    return number, cat(f"/f{number % 50}")


def exported_data(directory, name):
    found = {}
    for manifest in Path(directory).rglob("manifest.json"):
        point = json.loads(manifest.read_text())["point"]
        found[point["name"]] = next(p for p in manifest.parent.rglob("*.qcow2") if p.name.startswith(f"{name}-data-")
                                    and p.parent.parent == manifest.parent)
    return found


def test_one_file_is_read_out_of_an_export_and_a_machine_starts_straight_on_one(service, guests, scratch, vms):
    linux(service, guests, scratch, vms, "parts")
    service.cli("point", "create", "parts", "--name", "full", "--consistency", "application")
    service.cli("point", "export", "full", "--to", scratch / "backup")
    seen = console(service, "parts").count("guest wrote file")
    wait_until(lambda: console(service, "parts").count("guest wrote file") > seen + 1, 60, "more files")
    service.cli("point", "create", "parts", "--name", "later", "--consistency", "application")
    service.cli("point", "export", "later", "--base", "full", "--to", scratch / "backup")
    before = digest(scratch / "backup")
    images_of = exported_data(scratch / "backup", "parts")
    numbers = {}
    for point, image in images_of.items():
        copy = images.flatten(image, scratch / f"{point}.raw")
        numbers[point], content = newest_file(copy)
        assert content == file_of(numbers[point]), point
        if os.access("/dev/fuse", os.R_OK | os.W_OK) and os.getuid() == 0:
            assert newest_file_by_fuse(image, scratch / f"{point}.fuse") == (numbers[point], content)
    assert numbers["full"] < numbers["later"]

    disks = []
    for manifest in Path(scratch / "backup").rglob("manifest.json"):
        if json.loads(manifest.read_text())["point"]["name"] == "later":
            for n, image in enumerate(sorted(manifest.parent.glob("Virtual Hard Disks/*.qcow2"), key=lambda p: "data" in p.name)):
                overlay = scratch / f"straight{n}.qcow2"
                images.qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image, overlay)
                disks += ["--disk", overlay]
    assert len(disks) == 4
    vms("straight", "--memory", "128M", *disks)
    service.cli("vm", "start", "straight")
    wait_until(lambda: "guest wrote file" in console(service, "straight"), 120, "the guest that runs on the export")
    first = int(re.search(r"guest wrote file (\d+)", console(service, "straight")).group(1))
    assert first > numbers["later"], "it goes on where the point was"
    service.cli("point", "create", "straight", "--name", "own")
    service.cli("point", "delete", "own")
    service.cli("vm", "stop", "straight")
    assert digest(scratch / "backup") == before, "the export was written to"


def newest_file_by_fuse(image, mountpoint):
    mountpoint.touch()
    name = str(image).replace(",", ",,")
    daemon = subprocess.Popen(["qemu-storage-daemon", "--blockdev", f"driver=qcow2,node-name=d,read-only=on,file.driver=file,file.filename={name}",
                               "--export", f"type=fuse,id=e,node-name=d,mountpoint={mountpoint}"])
    try:
        wait_until(lambda: daemon.poll() is not None or mountpoint.stat().st_size > 0, 30, "the disk as a file")
        assert daemon.poll() is None
        return newest_file(mountpoint)
    finally:
        daemon.terminate()
        daemon.wait(30)
