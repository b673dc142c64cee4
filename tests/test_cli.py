"""The command line against the real service, as scripts use it: JSON, exit codes, errors with their chain."""
import json
import os
import re

import pytest

from harness import images, records
from harness.host import copy_guest
from harness.service import KVMMS, wait_until
from test_spine import MIB


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


def test_a_machine_from_creation_to_deletion(cli, scratch):
    cli("vm", "create", "cli-life", "--memory", "64M", "--new-disk", f"{scratch}/d.qcow2:8M")
    assert images.info(scratch / "d.qcow2")["virtual-size"] == 8 * MIB
    assert [m["name"] for m in read(cli, "vm", "list") if m["name"].startswith("cli-")] == ["cli-life"]
    assert "cli-life" in cli("vm", "list").stdout
    cli("vm", "start", "cli-life")
    assert "running" in json.dumps(read(cli, "vm", "show", "cli-life")).lower()
    again = cli("vm", "start", "cli-life", check=False)
    assert again.returncode in (0, 1) and (again.returncode == 0 or "32775" in again.stderr or "state" in again.stderr.lower())
    cli("vm", "stop", "cli-life")
    cli("vm", "delete", "cli-life")
    assert [m for m in read(cli, "vm", "list") if m["name"] == "cli-life"] == []


def test_export_verify_import_and_the_imported_disks_are_the_same(cli, service, guests, scratch):
    boot = copy_guest(guests / "writer.img", scratch / "boot")
    (scratch / "data").mkdir()
    cli("vm", "create", "cli-trip", "--memory", "32M", "--disk", boot, "--new-disk", f"{scratch}/data/data.qcow2:64M")
    cli("vm", "start", "cli-trip")
    wait_until(lambda: "N 0010" in cli("vm", "console", "cli-trip", "--log").stdout, 60, "the guest's first records")
    cli("point", "create", "cli-trip", "--name", "one")
    wait_until(lambda: "N 001001" in cli("vm", "console", "cli-trip", "--log").stdout, 60, "more records")
    cli("point", "create", "cli-trip", "--name", "two")
    cli("point", "export", "one", "--to", scratch / "backup")
    cli("point", "export", "two", "--base", "one", "--to", scratch / "backup")
    manifests = sorted((scratch / "backup").rglob("manifest.json"), key=lambda p: len(p.parts))
    assert len(manifests) == 2
    differential = manifests[1].parent
    cli("verify", differential)
    cli("import", differential, "--name", "cli-back", "--to", scratch / "restored")
    try:
        numbers = []
        for name in ("boot", "data"):
            found, = [p for p in (scratch / "restored").iterdir() if p.name.startswith(name)]
            exported, = differential.rglob(f"{name}-*.qcow2")
            images.check(found)
            images.assert_same(found, exported)
            numbers.append(records.writer_disk(images.flatten(found, scratch / f"{name}.raw")))
        records.assert_one_instant(*numbers)
        cli("vm", "start", "cli-back")
        wait_until(lambda: "N 0020" in cli("vm", "console", "cli-back", "--log").stdout, 60, "the imported guest")
    finally:
        cli("vm", "delete", "cli-back", "--force", check=False)


def test_an_imported_machine_is_another_one_unless_it_is_asked_to_be_the_same(cli, service, scratch):
    (scratch / "d").mkdir()
    cli("vm", "create", "cli-same", "--new-disk", f"{scratch}/d/d.qcow2:8M", "--nic")
    cli("vm", "set", "cli-same", "--autostart", "on")
    cli("point", "create", "cli-same", "--name", "one")
    cli("point", "export", "one", "--to", scratch / "backup")
    (manifest,) = (scratch / "backup").rglob("manifest.json")

    def identity(name):
        machine, = [m for m in read(cli, "vm", "list") if m["name"] == name]
        nics = read(cli, "cim", "list", "Msvm_SyntheticEthernetPortSettingData")
        settings = read(cli, "cim", "list", "Msvm_VirtualSystemSettingData")
        (nic,) = [n["Address"] for n in nics if n["InstanceID"].startswith(f"Microsoft:{machine['id'].upper()}")]
        (start,) = [s["AutomaticStartupAction"] for s in settings if s["InstanceID"] == f"Microsoft:{machine['id'].upper()}"]
        return nic, start

    was = identity("cli-same")
    try:
        cli("import", manifest.parent, "--name", "cli-other", "--to", scratch / "other")
        cli("import", manifest.parent, "--name", "cli-kept", "--to", scratch / "kept", "--keep-identity")
        other = identity("cli-other")
        assert other[0] != was[0] and other[1] != was[1], (was, other)
        assert identity("cli-kept") == was
    finally:
        for name in ("cli-other", "cli-kept"):
            cli("vm", "delete", name, "--force", check=False)


def test_verify_finds_a_single_flipped_bit_and_says_where(cli, scratch):
    raw = scratch / "d" / "d.img"
    raw.parent.mkdir()
    raw.write_bytes(os.urandom(4 * MIB))
    cli("vm", "create", "cli-flip", "--disk", raw)
    cli("point", "create", "cli-flip", "--name", "flip")
    cli("point", "export", "flip", "--to", scratch / "backup")
    cli("verify", scratch / "backup")
    image, = (scratch / "backup").rglob("*.qcow2")
    images.flip(image)
    failed = cli("verify", scratch / "backup", check=False)
    assert failed.returncode != 0
    disk = json.loads(image.parents[1].joinpath("manifest.json").read_text())["disks"][0]
    assert disk["instance_id"] in failed.stderr
    assert re.search(r"at byte \d+ ", failed.stderr) and "KVMMS-" in failed.stderr


def test_a_failing_job_ends_with_its_chain_and_a_remedy(cli, scratch):
    raw = scratch / "d.img"
    raw.write_bytes(bytes(MIB))
    (scratch / "file").write_text("in the way")
    cli("vm", "create", "cli-fail", "--disk", raw)
    cli("point", "create", "cli-fail", "--name", "stuck")
    failed = cli("point", "export", "stuck", "--to", scratch / "file" / "below", check=False)
    assert failed.returncode != 0 and failed.stdout == ""
    assert str(scratch / "file") in failed.stderr and "irectory" in failed.stderr
    identifier = failed.stderr.split("[KVMMS-")[1][:4]
    told = cli("error", "explain", f"KVMMS-{identifier}").stdout
    assert told.strip()
    as_json = cli("-o", "json", "point", "export", "stuck", "--to", scratch / "file" / "below", check=False)
    assert as_json.returncode != 0
    assert json.loads(as_json.stderr)


def test_what_does_not_exist_is_said_so(cli):
    for args in (("vm", "show", "no-such-machine"), ("point", "export", "no-such-point", "--to", "/nowhere"), ("job", "show", "no-such-job"),
                 ("error", "explain", "KVMMS-9999"), ("cim", "list", "Msvm_NoSuchClass")):
        failed = cli(*args, check=False)
        assert failed.returncode != 0, args
        assert failed.stderr.strip(), args


def test_ambiguous_names_list_their_candidates(cli):
    cli("vm", "create", "cli-twin")
    cli("vm", "create", "cli-twin")
    try:
        failed = cli("vm", "start", "cli-twin", check=False)
        assert failed.returncode != 0
        guids = [m["id"] for m in read(cli, "vm", "list") if m["name"] == "cli-twin"]
        assert len(guids) == 2 and all(g in failed.stderr for g in guids)
    finally:
        for m in read(cli, "vm", "list"):
            if m["name"] == "cli-twin":
                cli("vm", "delete", m["id"], "--force")


def test_a_job_started_without_waiting_is_watched_and_listed(cli, scratch):
    raw = scratch / "d.img"
    raw.write_bytes(os.urandom(MIB))
    cli("vm", "create", "cli-job", "--disk", raw)
    cli("point", "create", "cli-job", "--name", "later")
    job = cli("--no-wait", "point", "export", "later", "--to", scratch / "backup").stdout.strip()
    cli("job", "watch", job)
    assert job in cli("job", "list").stdout
    assert json.loads(cli("-o", "json", "job", "show", job).stdout)
    assert list((scratch / "backup").rglob("manifest.json"))


def test_the_same_commands_work_over_http_with_a_password_file(cli, service, scratch):
    from harness.service import PASSWORD, USER
    secret = scratch / "secret"
    secret.write_text(PASSWORD + "\n")
    remote = {"KVMMS_HOST": f"http://127.0.0.1:{service.wsman_port}/wsman", "KVMMS_USER": USER, "KVMMS_PASSWORD_FILE": str(secret)}
    assert json.loads(cli("-o", "json", "cim", "query", "SELECT * FROM Msvm_ComputerSystem", **remote).stdout)
    secret.write_text("wrong\n")
    failed = cli("vm", "list", check=False, **remote)
    assert failed.returncode != 0 and failed.stderr.strip()


def test_raw_cim_reaches_every_class(cli):
    assert "JobState" in cli("cim", "class", "Msvm_ConcreteJob").stdout
    found = read(cli, "cim", "list", "Msvm_VirtualSystemManagementService")
    assert len(found) == 1


def test_the_host_tells_its_hypervisor(cli):
    told = json.dumps(read(cli, "host", "show")).lower()
    assert "qemu" in told and ("kvm" in told or "emulation" in told)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_come_from_the_same_definition(cli, shell):
    assert "point" in cli("completions", shell).stdout
