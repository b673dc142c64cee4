"""Application consistency with the real agent: frozen in time and clean, or failed with the reason; and thawed whatever dies."""
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from harness import images
from harness.host import copy_guest
from harness.service import KVMMS, Service, processes_naming, wait_until

FAST = "agent_seconds = 4\n"


def read(service, *args):
    return json.loads(service.cli("-o", "json", *args).stdout)


def console(service, name):
    return service.cli("vm", "console", name, "--log").stdout


def written(service, name):
    """The number of the last file the guest told of."""
    return int(([0] + re.findall(r"guest wrote file (\d+)", console(service, name)))[-1])


def writes_on(service, name):
    seen = written(service, name)
    wait_until(lambda: written(service, name) > seen, 60, f"{name} to write on after file {seen}")


def run_dir(service, name):
    guid = next(m["id"] for m in read(service, "vm", "list") if m["name"] == name)
    return service.run / guid.replace("-", "").lower()[:16]


def guest(service, guests, name, image="linux-ext4.img"):
    boot = copy_guest(guests / image, service.work / name)
    service.cli("vm", "create", name, "--memory", "128M", "--disk", boot, "--new-disk", f"{service.work}/{name}.qcow2:64M")
    service.cli("vm", "start", name)
    return name


def ready(service, *names):
    for name in names:
        wait_until(lambda: written(service, name) >= 10, 180, f"files of {name}")


class Agent:
    """Talks to a guest's agent itself; nobody else can meanwhile."""

    def __init__(self, directory):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(str(directory / "agent.sock"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def ask(self, command):
        token = time.monotonic_ns() % 2**40
        sync = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
        self.socket.sendall(b"\xff" + json.dumps(sync).encode() + b"\n" + json.dumps({"execute": command}).encode() + b"\n")
        held, synced = b"", False
        while True:
            while b"\n" in held:
                line, held = held.split(b"\n", 1)
                try:
                    answer = json.loads(line.rpartition(b"\xff")[2])
                except ValueError:
                    continue
                if synced:
                    return answer["return"]
                synced = answer.get("return") == token
            held += self.socket.recv(4096)


def status(directory):
    with Agent(directory) as agent:
        return agent.ask("guest-fsfreeze-status")


def assert_clean(image, scratch, least):
    """The file system needs no repair and no replay of its journal, and holds what was written before."""
    raw = images.flatten(image, scratch)
    assert subprocess.run(["/sbin/e2fsck", "-fn", raw], capture_output=True).returncode == 0
    assert "needs_recovery" not in subprocess.run(["/sbin/dumpe2fs", "-h", raw], capture_output=True, text=True).stdout
    last = subprocess.run(["/sbin/debugfs", "-R", "cat /last", raw], capture_output=True, text=True).stdout
    assert int(last) >= least
    newest = subprocess.run(["/sbin/debugfs", "-R", f"cat /f{int(last) % 50}", raw], capture_output=True).stdout
    assert newest.startswith(f"file {int(last)}\n".encode())
    return int(last)


@pytest.fixture
def service():
    s = Service(config=FAST)
    try:
        yield s.start()
    finally:
        s.close()


def the_data_disk(directory, name):
    return next(p for p in Path(directory).rglob("*.qcow2") if p.name.startswith(f"{name}-"))


def test_a_collection_is_frozen_at_one_instant_clean_on_every_disk_or_not_at_all(service, guests):
    for name in ("one", "two"):
        guest(service, guests, name)
    ready(service, "one", "two")
    service.cli("group", "create", "shop")
    service.cli("group", "add", "shop", "one", "two")
    before = {name: written(service, name) for name in ("one", "two")}
    service.cli("point", "create", "--group", "shop", "--name", "app", "--consistency", "application", "--type", "log")
    for name in before:
        assert status(run_dir(service, name)) == "thawed"
        assert not (run_dir(service, name) / "frozen").exists()
        writes_on(service, name)
    service.cli("point", "export", "app", "--group", "shop", "--to", service.work / "backup")
    for name, least in before.items():
        assert_clean(the_data_disk(service.work / "backup", name), service.work / f"{name}.raw", least)

    # A member whose agent does not answer in time: its socket is taken by somebody who says nothing.
    with Agent(run_dir(service, "two")):
        failed = service.cli("point", "create", "--group", "shop", "--name", "late", "--consistency", "application", check=False)
        assert failed.returncode != 0 and "KVMMS-0103" in failed.stderr and "KVMMS-0081" in failed.stderr
        assert "two" in failed.stderr and "machine one could not take part" not in failed.stderr
    # A member without agent.
    boot = copy_guest(guests / "writer.img", service.work / "mute")
    service.cli("vm", "create", "mute", "--memory", "32M", "--disk", boot)
    service.cli("vm", "start", "mute")
    wait_until(lambda: "N 0010" in console(service, "mute"), 60, "the third guest")
    service.cli("group", "add", "shop", "mute")
    failed = service.cli("point", "create", "--group", "shop", "--name", "mixed", "--consistency", "application", check=False)
    assert failed.returncode != 0 and "machine mute could not take part" in failed.stderr and "KVMMS-0081" in failed.stderr
    # A single machine whose agent does not answer.
    with Agent(run_dir(service, "one")):
        failed = service.cli("point", "create", "one", "--name", "alone", "--consistency", "application", check=False)
        assert failed.returncode != 0 and "KVMMS-0081" in failed.stderr
    for name in ("one", "two"):
        assert status(run_dir(service, name)) == "thawed"
        writes_on(service, name)
    assert {m["state"] for m in read(service, "vm", "list")} == {"running"}
    assert [p["name"] for p in read(service, "point", "list", "--group", "shop")] == ["app"]
    assert watchdogs(service) == []


def watchdogs(service):
    return [p for p in processes_naming(str(service.run)) if b"thaw-watchdog" in Path(f"/proc/{p}/cmdline").read_bytes()]


def caught(service, name, delay):
    """Stops QEMU a while after a freeze was begun, and kills the service. QEMU's id; None where the guest had thawed already."""
    directory = run_dir(service, name)
    pid, = service.qemu_pids(read(service, "vm", "show", name)["id"].lower())
    asked = subprocess.Popen([KVMMS, "point", "create", name, "--consistency", "application"],
                             env={**os.environ, "KVMMS_HOST": str(service.run / "kvmms.sock")},
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not (directory / "frozen").exists() and asked.poll() is None and time.monotonic() < deadline:
            pass
        time.sleep(delay)
        os.kill(pid, signal.SIGSTOP)
        # The mark goes with the thaw; nothing more can happen to the guest now.
        if (directory / "frozen").exists() and watchdogs(service):
            service.kill()
            return pid
        os.kill(pid, signal.SIGCONT)
        asked.wait(60)
        return None
    finally:
        asked.kill()
        asked.wait()


# A guest takes its time to freeze, and little is left until it thaws: what delay hits that is found by trying.
DELAYS = [0.01 * n for n in range(1, 25)]


def test_a_service_that_dies_for_good_leaves_no_guest_frozen(service, guests):
    guest(service, guests, "left")
    ready(service, "left")
    directory = run_dir(service, "left")
    log = next(service.state.rglob("console.log"))
    for delay in DELAYS:
        pid = caught(service, "left", delay)
        if pid is None:
            continue
        assert (directory / "frozen").exists()
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: not (directory / "frozen").exists(), 60, "the watchdog's thaw")
        wait_until(lambda: not watchdogs(service), 30, "the watchdog's end")
        told = (directory / "thaw.log").read_text()
        assert "the service is gone; thawed" in told
        assert status(directory) == "thawed"
        seen = log.read_text(errors="replace").count("guest wrote file")
        wait_until(lambda: log.read_text(errors="replace").count("guest wrote file") > seen, 60, "the guest to write on, without a service")
        service.start()
        if "thawed 1 file systems" in told:
            break
    else:
        raise AssertionError(f"the guest was never caught frozen:\n{told}")
    print(told)
    assert read(service, "vm", "show", "left")["state"] == "running"
    service.cli("point", "create", "left", "--name", "after", "--consistency", "application")


@pytest.mark.parametrize("watchdog", [False, True], ids=["alone", "beside-the-watchdog"])
def test_a_service_that_comes_back_thaws_what_it_left_frozen(service, guests, watchdog):
    guest(service, guests, "back")
    ready(service, "back")
    directory = run_dir(service, "back")
    for delay in DELAYS:
        pid = caught(service, "back", delay)
        if pid is None:
            continue
        frozen = watchdog
        if not watchdog:
            for p in watchdogs(service):
                os.kill(p, signal.SIGKILL)
        os.kill(pid, signal.SIGCONT)
        if not watchdog:
            frozen = status(directory) == "frozen"
            assert (directory / "frozen").exists(), "nobody was there to thaw it"
        service.start()
        wait_until(lambda: not (directory / "frozen").exists(), 60, "the thaw")
        wait_until(lambda: not watchdogs(service), 30, "the end of watchdogs")
        assert status(directory) == "thawed"
        writes_on(service, "back")
        if frozen:
            break
    else:
        raise AssertionError("the guest was never caught frozen")
    service.cli("point", "create", "back", "--name", "after", "--consistency", "application")
    writes_on(service, "back")
