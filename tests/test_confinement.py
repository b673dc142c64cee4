"""What a guest that has taken over its QEMU would find: a user that nothing is open to but the machine's own disks."""
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from harness.host import copy_guest
from harness.service import Service, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as another user")


def read(service, *args):
    return json.loads(service.cli("-o", "json", *args).stdout)


@pytest.fixture
def confined(own_service):
    if read(own_service, "host", "show")["confinement"] != "full":
        pytest.skip("no user can be changed on this host")
    return own_service


def machine(service, guests, name):
    boot = copy_guest(guests / "linux-ext4.img", service.work / name)
    boot.chmod(0o600)
    service.cli("vm", "create", name, "--memory", "128M", "--disk", boot, "--new-disk", f"{service.work}/{name}.qcow2:64M")
    service.cli("vm", "start", name)
    return boot


def status(pid):
    return dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)


def entries(*paths):
    return [str(p) for p in paths if "system.posix_acl_access" in os.listxattr(p)]


def as_user(user, *argv):
    return subprocess.run(["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *argv], capture_output=True, text=True)


def test_each_machine_is_a_user_of_its_own_that_can_open_nothing_else(confined, guests):
    confined.work.chmod(0o700)
    boots = [machine(confined, guests, name) for name in ("one", "two")]
    users = []
    for pid in confined.qemu_pids():
        seen = {k: v.split() for k, v in status(pid).items()}
        assert len(set(seen["Uid"] + seen["Gid"])) == 1 and seen["Groups"] == []
        assert seen["CapEff"] == seen["CapPrm"] == seen["CapBnd"] == ["0000000000000000"]
        assert (seen["NoNewPrivs"], seen["Seccomp"]) == (["1"], ["2"])
        users.append(int(seen["Uid"][0]))
    assert len(set(users)) == 2 and all(2080000000 <= u < 2080065536 for u in users), users
    secret = confined.work / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    for user in users:
        assert as_user(user, "cat", secret).returncode != 0
        for path in [confined.state / "kvmms.db", confined.state / "users", *confined.run.rglob("*.sock")]:
            assert as_user(user, "test", "-r", path).returncode != 0, path
        # Of the two boot disks only its own, and no directory's list.
        assert sum(as_user(user, "test", "-w", boot).returncode == 0 for boot in boots) == 1
        assert as_user(user, "ls", confined.work).returncode != 0
        assert as_user(user, "touch", confined.work / "new").returncode != 0


def test_what_a_machine_may_open_is_closed_when_it_ends_however_it_ends(confined, guests):
    service = confined
    service.work.chmod(0o700)
    boot = machine(service, guests, "one")
    paths = [boot, service.work / "one.qcow2", service.work]
    assert entries(*paths) == [str(p) for p in paths]
    service.cli("vm", "stop", "one")
    assert entries(*paths) == [] and oct(boot.stat().st_mode)[-3:] == "600" and oct(service.work.stat().st_mode)[-3:] == "700"
    service.cli("vm", "start", "one")
    # The service dies, then QEMU: the next service closes the files.
    service.kill()
    assert entries(*paths) == [str(p) for p in paths]
    pids = service.qemu_pids()
    for pid in pids:
        os.kill(pid, 9)
    wait_until(lambda: not service.qemu_pids(), 30, "the end of QEMU")
    assert entries(*paths) == [str(p) for p in paths]
    service.start()
    assert entries(*paths) == [] and oct(boot.stat().st_mode)[-3:] == "600"
    # The same user again, and only the service dies: the machine keeps its files.
    service.cli("vm", "start", "one")
    service.kill()
    service.start()
    assert read(service, "vm", "list")[0]["state"].lower() == "running"
    assert entries(*paths) == [str(p) for p in paths]
    service.cli("vm", "stop", "one")
    assert entries(*paths) == []


@pytest.mark.parametrize("level", ["sandbox", "off"])
def test_confinement_can_be_less(guests, level):
    service = Service(config=f'confinement = "{level}"\n')
    try:
        service.start()
        assert read(service, "host", "show")["confinement"] == level
        boot = machine(service, guests, "one")
        (pid,) = service.qemu_pids()
        assert status(pid)["Uid"].split()[0] == "0" and entries(boot) == []
        assert status(pid)["Seccomp"].strip() == {"sandbox": "2", "off": "0"}[level]
    finally:
        service.close()


def test_users_that_somebody_has_are_refused():
    passwd = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
    taken = [int(f[2]) for f in passwd if len(f) > 2 and int(f[2]) >= 65536]
    if not taken:
        pytest.skip("no user of this host has a number in the range that machines could get")
    service = Service(config=f"machine_user_first = {taken[0]}\n")
    try:
        with pytest.raises(RuntimeError, match=re.escape("KVMMS-0262") + "|not free"):
            service.start()
    finally:
        service.close()
