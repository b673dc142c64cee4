"""The test guests and their replay must be right before they may judge anything: here they run on QEMU alone."""
import json
import socket
import subprocess
import time

import pytest

from harness import images, records
from harness.service import wait_until


class Qemu:
    def __init__(self, directory, boot, disks, bus, memory):
        self.console = directory / "console.log"
        self.sockets = directory
        boot_copy = directory / "boot.img"
        images.copy(boot, boot_copy)
        argv = ["qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", "-nodefaults", "-display", "none", "-m", str(memory),
                "-serial", f"file:{self.console}", "-qmp", f"unix:{directory}/qmp,server=on,wait=off",
                "-device", "virtio-serial-pci", "-chardev", f"socket,id=ga,path={directory}/ga,server=on,wait=off",
                "-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0"]
        if bus == "scsi":
            argv += ["-device", "virtio-scsi-pci"]
        if bus == "lsi":
            argv += ["-device", "lsi53c895a"]
        for n, path in enumerate([boot_copy, *disks]):
            fmt = "raw" if path.suffix == ".img" else "qcow2"
            argv += ["-blockdev", json.dumps({"driver": fmt, "node-name": f"d{n}", "file": {"driver": "file", "filename": str(path)}})]
            device = {"ide": f"ide-hd,drive=d{n},bus=ide.{n // 2},unit={n % 2}", "scsi": f"scsi-hd,drive=d{n},lun={n}",
                      "lsi": f"scsi-hd,drive=d{n},scsi-id={n}"}[bus]
            argv += ["-device", device + (",bootindex=0" if n == 0 else "")]
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def said(self, text):
        """Waits for a text on the console. A boot takes some five seconds of a processor, of which a busy host may have little to give."""
        def there():
            # QEMU's end first: what it said last is on the console by then.
            ended = self.process.poll()
            heard = self.console.read_text(errors="replace") if self.console.exists() else ""
            assert text in heard or ended is None, f"QEMU ended with {ended} before '{text}'; its console:\n{heard[-3000:]}"
            return text in heard
        try:
            return wait_until(there, 240, f"'{text}' on the console")
        except TimeoutError as late:
            heard = self.console.read_text(errors="replace") if self.console.exists() else "nothing"
            raise AssertionError(f"{late}; it says:\n{heard[-3000:]}") from late

    def command(self, name):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(f"{self.sockets}/qmp")
            f = s.makefile("rw")
            f.readline()
            for line in ({"execute": "qmp_capabilities"}, {"execute": name}):
                f.write(json.dumps(line) + "\n")
                f.flush()
                while "return" not in json.loads(f.readline()):
                    pass

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def boot(tmp_path):
    started = []

    def start(image, disks, bus="ide", memory=128):
        started.append(Qemu(tmp_path, image, disks, bus, memory))
        return started[-1]
    yield start
    for q in started:
        q.kill()


BOOT_SECTORS = pytest.mark.parametrize("image", ["writer.img", "storm.img"])


@BOOT_SECTORS
def test_the_boot_sector_guest_writes_two_disks_in_lock_step(boot, guests, tmp_path, image):
    data = images.create(tmp_path / "data.img", 64 << 20, "raw")
    qemu = boot(guests / image, [data], memory=32)
    qemu.said("N 00100100")
    qemu.kill()
    first, second = records.writer_disk(tmp_path / "boot.img"), records.writer_disk(data)
    assert first >= 0x100100
    records.assert_one_instant(first, second)


@BOOT_SECTORS
def test_a_single_missing_write_of_the_boot_sector_guest_is_noticed(boot, guests, tmp_path, image):
    data = images.create(tmp_path / "data.img", 64 << 20, "raw")
    qemu = boot(guests / image, [data], memory=32)
    qemu.said("N 00100100")
    qemu.kill()
    best = records.writer_disk(data)
    older = next(n for n in range(best - 1, 0x100000, -1) if records.writer_slot(n) != records.writer_slot(best))
    with open(data, "r+b") as f:
        f.seek(records.writer_at(records.writer_slot(older)))
        f.write(bytes(4096))
    with pytest.raises(AssertionError):
        records.writer_disk(data)


@pytest.mark.parametrize("bus", ["ide", "scsi"])
def test_the_linux_guest_numbers_its_records_and_goes_on_after_a_restart(boot, guests, tmp_path, bus):
    one = images.create(tmp_path / "one.qcow2", (48 << 20) + 3 * 512)
    two = images.create(tmp_path / "two.qcow2", 64 << 20)
    qemu = boot(guests / "linux.img", [one, two], bus)
    qemu.said("records number=")
    qemu.kill()
    qemu.console.unlink()
    seen = records.highest(images.flatten(one, tmp_path / "seen.raw"))
    qemu = boot(guests / "linux.img", [one, two], bus)
    qemu.said("records number=")
    qemu.command("system_powerdown")
    qemu.process.wait(30)
    first = records.linux_disk(images.flatten(one, tmp_path / "one.raw"), 0)
    second = records.linux_disk(images.flatten(two, tmp_path / "two.raw"), 1)
    assert first > seen > 0
    records.assert_one_instant(first, second)


def test_the_agent_of_the_linux_guest_freezes_its_file_system(boot, guests, tmp_path):
    disk = images.create(tmp_path / "one.qcow2", 64 << 20)
    qemu = boot(guests / "linux-ext4.img", [disk])
    qemu.said("wrote file 10")
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(f"{tmp_path}/ga")
        f = s.makefile("rwb")

        def ask(command, **arguments):
            f.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            f.flush()
            return json.loads(f.readline().lstrip(b"\xff"))["return"]
        assert ask("guest-sync-delimited", id=77) == 77
        assert ask("guest-fsfreeze-freeze") == 1
        qemu.command("stop")
        frozen = images.freeze_copy(disk, tmp_path / "frozen.raw")
        qemu.command("cont")
        assert ask("guest-fsfreeze-thaw") == 1
    checked = subprocess.run(["/sbin/e2fsck", "-fn", frozen], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    told = subprocess.run(["/sbin/dumpe2fs", "-h", frozen], capture_output=True, text=True).stdout
    assert "needs_recovery" not in told


def test_a_guest_that_finds_no_disk_says_what_it_found_instead(boot, guests):
    # The firmware boots from a bus the guest has no driver for.
    qemu = boot(guests / "linux.img", [], "lsi")
    qemu.said("guest boot disk none, data disks: none")
    qemu.said("guest sees no disk at all")
    qemu.said("guest has the modules: ")
    qemu.said("guest storage controller ")
    qemu.said("has no driver")
