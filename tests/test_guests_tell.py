"""What guests do is told: a full disk, a process that died, a host that goes down, on real machines."""
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import pywbem

from harness.host import copy_guest
from harness.service import Service, wait_until

MIB = 1 << 20


def read(service, *args):
    return json.loads(service.cli("-o", "json", *args).stdout)


def shown(service, name):
    return read(service, "vm", "show", name)


def console(service, name):
    return service.cli("vm", "console", name, "--log").stdout


def records(service, name):
    """The number of the last record the guest told of."""
    return ([0] + [int(n, 16) for n in re.findall(r"N ([0-9A-Fa-f]{8})", console(service, name))])[-1]


def writes_on(service, name):
    seen = records(service, name)
    wait_until(lambda: records(service, name) > seen, 90, f"{name} to write on after record {seen}")


@pytest.fixture
def small(own_service):
    """A file system of 96 MiB, which holds all places the boot sector guest ever writes to (57 MiB) but not much more."""
    where = own_service.work / "small"
    where.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m,mode=700", "kvmms-test", where], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr}")
    yield where
    # Processes have its files open.
    for pid in own_service.qemu_pids():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not own_service.qemu_pids(), 30, "the end of the machines")
    wait_until(lambda: subprocess.run(["umount", where], capture_output=True).returncode == 0, 30, "the small file system to be free")


def test_a_guest_whose_file_system_is_full_says_so_and_goes_on_when_there_is_room(own_service, guests, small):
    service = own_service
    boot = copy_guest(guests / "writer.img", service.work / "boot")
    service.cli("vm", "create", "full", "--memory", "32M", "--disk", boot, "--new-disk", f"{small}/data.qcow2:256M")
    service.cli("vm", "start", "full")
    wait_until(lambda: records(service, "full") > 0, 90, "the guest's first records")
    ballast = small / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 65536)
        except OSError:
            pass
    stands = wait_until(lambda: (lambda m: m if "critical" in m["state"] else None)(shown(service, "full")), 120, "the guest to stand still")
    said = json.dumps(stands)
    assert "no room" in said and "data.qcow2" in said, said
    one = service.api("wsman").instances("Msvm_ComputerSystem")
    machine, = [i for i in one if i.text("ElementName") == "full"]
    assert (machine.num("EnabledState"), machine.num("HealthState")) == (9, 25)
    # Resuming tells why it cannot be, and what to do.
    refused = service.cli("vm", "resume", "full", check=False)
    assert refused.returncode and "room" in refused.stderr and "data.qcow2" in refused.stderr, refused.stderr
    # A restarted service finds it as it is.
    service.kill()
    service.start()
    wait_until(lambda: "critical" in shown(service, "full")["state"], 60, "the restarted service to tell")
    before = records(service, "full")
    ballast.unlink()
    wait_until(lambda: shown(service, "full")["state"] == "running", 120, "the guest to go on by itself")
    wait_until(lambda: records(service, "full") > before, 90, "records after the guest went on")
    assert "no room" not in json.dumps(shown(service, "full"))
    assert "there is room again" in service.log.read_text()
    service.cli("vm", "stop", "full")


def test_a_qemu_that_was_killed_says_how_until_the_next_start(own_service, guests):
    service = own_service
    boot = copy_guest(guests / "writer.img", service.work / "boot")
    service.cli("vm", "create", "dies", "--memory", "32M", "--disk", boot)
    service.cli("vm", "start", "dies")
    pid, = service.qemu_pids()
    os.kill(pid, signal.SIGSEGV)
    wait_until(lambda: shown(service, "dies")["state"] == "off", 60, "the end to be noticed")
    said = json.dumps(shown(service, "dies"))
    assert "signal 11" in said and "segmentation fault" in said, said
    service.kill()
    service.start()
    assert "signal 11" in json.dumps(shown(service, "dies")), "it is kept"
    service.cli("vm", "start", "dies")
    assert "signal 11" not in json.dumps(shown(service, "dies"))
    pid, = service.qemu_pids()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: shown(service, "dies")["state"] == "off", 60, "the end to be noticed")
    said = json.dumps(shown(service, "dies"))
    assert "another process told QEMU to end" in said and "terminating on signal 15" in said, said


def test_machines_end_with_the_host_and_a_plain_end_of_the_service_leaves_them_running(own_service, guests):
    service = own_service
    boots = {name: copy_guest(guests / "writer.img", service.work / name) for name in ("saves", "stops")}
    for name, boot in boots.items():
        service.cli("vm", "create", name, "--memory", "32M", "--disk", boot)
        service.cli("vm", "start", name)
    service.stop()
    assert len(service.qemu_pids()) == 2, "machines keep running"
    service.start()
    api = service.api("wsman")
    for name, action in (("saves", 3), ("stops", 2)):
        setting, = [i for i in api.instances("Msvm_VirtualSystemSettingData") if i.text("ElementName") == name]
        changed = api.embedded("Msvm_VirtualSystemSettingData", InstanceID=setting.text("InstanceID"), AutomaticShutdownAction=pywbem.Uint16(action))
        manager, = api.instances("Msvm_VirtualSystemManagementService")
        assert api.invoke(manager.ref, "ModifySystemSettings", SystemSettings=changed).value in (0, 4096)
    done = service.cli("host", "shutdown-guests", "--within", "60")
    assert "saves: saved" in done.stdout and "stops: switched off" in done.stdout, done.stdout
    assert not service.qemu_pids()
    assert {m["name"]: m["state"] for m in read(service, "vm", "list")} == {"saves": "saved", "stops": "off"}
    service.cli("vm", "start", "saves")
    writes_on(service, "saves")


def test_the_log_of_a_console_is_bounded_and_shows_escapes_as_text(guests):
    service = Service(config="console_mib = 1\n")
    try:
        service.start()
        boot = copy_guest(guests / "writer.img", service.work / "boot")
        service.cli("vm", "create", "talks", "--memory", "32M", "--disk", boot)
        service.cli("vm", "start", "talks")
        wait_until(lambda: records(service, "talks") > 0, 90, "the guest's first records")
        log = next(service.state.rglob("console.log"))
        # What a guest could have written: the file is open in QEMU for appending.
        with open(log, "ab") as file:
            file.write(b"\x1b]0;owned\x07" + b"x" * (3 * MIB) + b"\n")
        wait_until(lambda: log.stat().st_size <= MIB, 60, "the log to be cut")
        older = Path(f"{log}.1")
        assert older.stat().st_size == MIB
        writes_on(service, "talks")
        assert log.stat().st_size < MIB
        with open(log, "ab") as file:
            file.write(b"\x1b[2Jcleared\n")
        said = console(service, "talks")
        assert "\\x1b[2Jcleared" in said and "\x1b" not in said
    finally:
        service.close()
