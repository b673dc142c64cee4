"""What a person could lose by hand: a name typed short, a file deleted, a clean-up with another service beside, a damaged database."""
import json
import os
import subprocess
from pathlib import Path

import pytest

from harness.service import KVMMS, KVMMSD, Service


@pytest.fixture(autouse=True, scope="module")
def built():
    assert KVMMS.exists(), f"{KVMMS} is not built: cargo build -p kvmms"


@pytest.fixture
def cli(service):
    names = []

    def run(*args, **kwargs):
        if args[:2] == ("vm", "create"):
            names.append(args[2])
        return service.cli(*args, **kwargs)
    yield run
    for name in names:
        service.cli("vm", "delete", name, "--force", check=False)


def read(cli, *args):
    return json.loads(cli("-o", "json", *args).stdout)


def test_a_machine_that_is_gone_is_not_taken_for_one_whose_name_begins_alike(cli, scratch):
    cli("vm", "create", "prod-db2", "--memory", "64M", "--new-disk", f"{scratch}/d.qcow2:8M")
    guid, = [m["id"] for m in read(cli, "vm", "list") if m["name"] == "prod-db2"]
    for verb in ("delete", "start", "stop"):
        for wanted in ("prod-db", guid[:8], "PROD-DB2"):
            failed = cli("vm", verb, wanted, check=False)
            assert failed.returncode == 1, (verb, wanted)
            assert guid in failed.stderr, "it says what there is"
    assert cli("vm", "show", "prod").returncode == 0, "looking takes a beginning"
    assert [m["state"] for m in read(cli, "vm", "list") if m["id"] == guid] == ["off"]
    cli("vm", "delete", "{" + guid.lower() + "}")


def test_a_point_is_exported_by_its_machine_although_its_default_name_begins_alike(cli, scratch):
    cli("vm", "create", "clash", "--memory", "64M", "--new-disk", f"{scratch}/d.qcow2:8M")
    for _ in range(2):
        cli("point", "create", "clash")
    names = [p["name"] for p in read(cli, "point", "list", "clash")]
    assert len(set(names)) == 2 and all(n != "clash" for n in names)
    newest = read(cli, "point", "list", "clash")[-1]
    exported = read(cli, "point", "export", "clash", "--to", scratch / "out")
    assert exported["pointId"] == newest["id"]
    cli("point", "create", "clash", "--name", "clash")
    failed = cli("point", "export", "clash", "--to", scratch / "more", check=False)
    assert failed.returncode == 1 and "point clash (" in failed.stderr and "machine clash (" in failed.stderr


def layers_beside(image):
    return sorted(p for p in image.parent.iterdir() if ".kvmms-" in p.name and p.is_file())


def test_another_services_layers_are_never_cleaned_and_its_image_is_not_attached_without_them(own_service):
    """Two services, one directory of images: what the one does not know may be the other's live data."""
    service = own_service
    image = service.work / "shared.qcow2"
    service.cli("vm", "create", "owner", "--memory", "64M", "--new-disk", f"{image}:8M")
    service.cli("point", "create", "owner")
    layer, = layers_beside(image)
    other = Service().start()
    try:
        other.cli("vm", "create", "thief", "--memory", "64M", "--new-disk", f"{service.work}/own.qcow2:8M")
        told = json.loads(other.cli("-o", "json", "host", "check", "--clean", "all", check=False).stdout)
        found, = [f for f in told if f["subject"] == str(layer)]
        assert found["cleanable"] is False and "another state directory" in found["why"]
        assert layer.exists()
        refused = other.cli("disk", "attach", "thief", image, check=False)
        assert refused.returncode == 1 and "KVMMS-0215" in refused.stderr and "adopt-layers" in refused.stderr
        assert str(layer) in refused.stderr
        refused = other.cli("disk", "adopt-layers", "thief", image, check=False)
        assert refused.returncode == 1 and "KVMMS-0216" in refused.stderr
        taken = json.loads(other.cli("-o", "json", "disk", "adopt-layers", "thief", image, "--of-others").stdout)
        assert taken["layers"] == [str(layer)]
    finally:
        other.close()


def test_a_machine_with_a_missing_layer_says_what_is_lost_and_goes_by_force(cli, scratch):
    image = scratch / "d.qcow2"
    cli("vm", "create", "broken", "--memory", "64M", "--new-disk", f"{image}:8M", "--new-disk", f"{scratch}/e.qcow2:8M")
    for name in ("one", "two"):
        cli("point", "create", "broken", "--name", name, "--type", "log")
    active = read(cli, "disk", "show", image)["activeFile"]
    Path(active).unlink()
    dry = cli("vm", "delete", "broken", "--dry-run").stdout
    assert active in dry and "point one (" in dry and "point two (" in dry
    failed = cli("vm", "delete", "broken", check=False)
    assert failed.returncode == 1 and str(image) in failed.stderr and "--force" in failed.stderr
    forced = cli("vm", "delete", "broken", "--force")
    assert f"lost: disk {image}" in forced.stdout + forced.stderr
    assert [m for m in read(cli, "vm", "list") if m["name"] == "broken"] == []
    assert image.exists() and len(layers_beside(image)) == 1
    assert layers_beside(scratch / "e.qcow2") == layers_beside(image), "the whole disk is one plain image again"


def refused_start(service):
    done = subprocess.run([KVMMSD, "--state-dir", service.state, "--run-dir", service.run, "--listen", f"wsman+http://127.0.0.1:{service.wsman_port}"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "ready" not in done.stdout
    return done.stderr


@pytest.mark.parametrize("damage", ["log removed", "file cut", "log flipped", "file empty", "file gone"])
def test_a_database_that_lost_its_end_is_refused_and_recovered(damage, tmp_path):
    service = Service().start()
    try:
        image = service.work / "a.qcow2"
        service.cli("vm", "create", "old", "--memory", "64M", "--new-disk", f"{image}:8M")
        service.stop()
        # The next version finds this one's copy missing and makes one.
        (service.state / "copies" / "version").write_text("0\n")
        service.start()
        service.cli("point", "create", "old", "--name", "later")
        service.cli("vm", "create", "new", "--memory", "64M", "--new-disk", f"{service.work}/b.qcow2:8M")
        service.cli("point", "create", "new", "--name", "newer")
        service.kill()
        db, wal = service.state / "kvmms.db", service.state / "kvmms.db-wal"
        assert wal.stat().st_size > 0
        (service.state / "kvmms.db-shm").unlink(missing_ok=True)
        if damage == "log removed":
            wal.unlink()
        elif damage == "log flipped":
            data = bytearray(wal.read_bytes())
            data[len(data) // 2] ^= 1
            wal.write_bytes(data)
        elif damage == "file cut":
            wal.unlink()
            os.truncate(db, 8192)
        elif damage == "file empty":
            wal.unlink()
            os.truncate(db, 0)
        else:
            wal.unlink()
            db.unlink()
        before = db.read_bytes() if db.exists() else None
        told = refused_start(service)
        assert "KVMMS-023" in told and "kvmmsd recover" in told
        assert (db.read_bytes() if db.exists() else None) == before, "nothing was changed"
        report = service.tool("recover")
        aside, = service.state.glob("damaged-*")
        assert str(aside) in report and "lost:" in report
        if before is not None:
            assert (aside / "kvmms.db").read_bytes() == before
        service.start()
        names = {m["name"] for m in json.loads(service.cli("-o", "json", "vm", "list").stdout)}
        assert names == {"old", "new"}
        # Its layer is known again, whether its point is or not.
        assert "layer" not in {f["kind"] for f in json.loads(service.cli("-o", "json", "host", "check", check=False).stdout)}
        for name in names:
            service.cli("point", "create", name)
            service.cli("vm", "delete", name)
        assert layers_beside(image) == []
    finally:
        service.close()
