"""What a person could lose by hand: a name typed short, a file deleted, a clean-up with another service beside, a damaged database."""
import json

import pytest

from harness.service import KVMMS


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
