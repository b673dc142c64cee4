"""Starts and ends the real `kvmmsd`, and the QEMU processes it leaves behind (they outlive it by design)."""
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from .cimxml import CimXml
from .wsman import WsMan

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
PROFILE = os.environ.get("KVMMS_PROFILE", "debug")
KVMMSD = Path(os.environ.get("KVMMSD", TARGET / PROFILE / "kvmmsd"))
KVMMS = Path(os.environ.get("KVMMS", TARGET / PROFILE / "kvmms"))
GUESTS = Path(os.environ.get("KVMMS_GUEST_DIR", ROOT / ".cache" / "guest"))
USER, PASSWORD = "tester", "correct horse 9"


class Port:
    """A TCP port that no other service of any test on this machine is given until it is closed, also while nobody listens on it.

    It lies below the ports the kernel hands out by itself, to connections among others. Whoever has the name has the port; the kernel
    takes the name back when its process is gone.
    """

    def __init__(self):
        first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        numbers = range(min(10000, first_ephemeral - 5000), first_ephemeral)
        for number in random.sample(numbers, len(numbers)):
            self.name = socket.socket(socket.AF_UNIX)
            try:
                self.name.bind(f"\0kvmms-test-port-{number}")
                with socket.socket() as s:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    s.bind(("127.0.0.1", number))
                self.number = number
                return
            except OSError:
                self.name.close()
        raise RuntimeError(f"no port between {numbers.start} and {numbers.stop} is free")

    def close(self):
        self.name.close()


def processes_naming(text):
    """The ids of processes with this text in their arguments: a scratch directory is in the arguments of no foreign process."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if text.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_until(condition, seconds=60, what="condition"):
    """Polls. The deadline only ends a hanging test: a machine that is busy with others gets five times as long."""
    seconds *= 5
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {seconds} s")
        time.sleep(0.05)


class Service:
    """One `kvmmsd` with its own state directory, run directory and ports; with a name, one that machines can come to, which is
    a host of that name where we may say so, listening for others at `reach`."""

    def __init__(self, config=None, wrapper=(), name=None, reach="127.0.0.1"):
        if not KVMMSD.exists():
            raise FileNotFoundError(f"{KVMMSD} is not built: cargo build -p kvmmsd -p kvmms")
        # Short, because socket paths may have 107 bytes only.
        self.dir = Path(tempfile.mkdtemp(prefix="kvt.", dir=os.environ.get("KVMMS_TEST_DIR")))
        self.state, self.run, self.work = (self.dir / n for n in ("state", "run", "work"))
        self.work.mkdir()
        self.ports = [Port(), Port()] + ([Port()] if name else [])
        self.wsman_port, self.cimxml_port, *others = (p.number for p in self.ports)
        self.migration_port = others[0] if others else None
        self.name, self.reach = name, reach
        if name and os.geteuid() == 0:
            rename = f'echo {name} > /proc/sys/kernel/hostname && exec "$0" "$@"'
            wrapper = [*wrapper, "unshare", "--uts", "sh", "-c", rename]
        self.log = self.dir / "kvmmsd.log"
        self.config = config
        self.wrapper = list(wrapper)
        self.process = None
        self.apis = []
        # URLs of further listeners.
        self.listen = []
        self.tool("user", "add", USER, "--role", "admin", "--password-stdin", stdin=PASSWORD + "\n")

    def tool(self, *args, stdin=None):
        done = subprocess.run([KVMMSD, *args, "--state-dir", self.state], input=stdin, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"kvmmsd {' '.join(args)}: {done.stderr or done.stdout}"
        return done.stdout

    def start(self):
        argv = [*self.wrapper, str(KVMMSD)]
        if self.config is not None:
            path = self.dir / "kvmms.toml"
            path.write_text(self.config)
            argv += ["--config", str(path)]
        argv += ["--state-dir", str(self.state), "--run-dir", str(self.run),
                 "--listen", f"wsman+http://127.0.0.1:{self.wsman_port}", "--listen", f"cimxml+http://127.0.0.1:{self.cimxml_port}"]
        for url in self.listen:
            argv += ["--listen", url]
        if self.migration_port:
            argv += ["--listen", f"migration+tls://{self.reach}:{self.migration_port}"]
        out = self.dir / "stdout"
        with open(out, "wb") as o, open(self.log, "ab") as e:
            self.process = subprocess.Popen(argv, stdout=o, stderr=e, stdin=subprocess.DEVNULL)

        def ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"kvmmsd ended with {self.process.returncode}:\n{self.tail()}")
            return "ready" in out.read_text().splitlines()
        wait_until(ready, 60, f"'ready' of kvmmsd (log {self.log})")
        self.started_with = out.read_text().splitlines()
        return self

    def tail(self, lines=40):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def api(self, protocol, user=USER, password=PASSWORD):
        if protocol == "cimxml":
            made = CimXml(f"http://127.0.0.1:{self.cimxml_port}", user, password)
        else:
            made = WsMan(self.wsman_port, user, password)
        self.apis.append(made)
        return made

    def stop(self, sig=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(sig)
            self.process.wait(30)
        code = self.process.returncode if self.process else None
        self.process = None
        return code

    def kill(self):
        return self.stop(signal.SIGKILL)

    def qemu_pids(self, text=None):
        found = []
        for pid in processes_naming(text or str(self.dir)):
            try:
                name = Path(f"/proc/{pid}/comm").read_text()
            except OSError:
                continue
            if name.startswith("qemu-system"):
                found.append(pid)
        return found

    def close(self):
        for a in self.apis:
            a.close()
        try:
            self.stop()
        finally:
            for port in self.ports:
                port.close()
            for pid in processes_naming(str(self.dir)):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if os.environ.get("KVMMS_KEEP"):
                print(f"kept: {self.dir}")
            else:
                wait_until(lambda: not self.qemu_pids(), 20, "the end of the machines")
                shutil.rmtree(self.dir, ignore_errors=True)

    def cli(self, *args, check=True, timeout=120, **env):
        """Runs `kvmms` against this service through its local socket."""
        full = {**os.environ, "KVMMS_HOST": str(self.run / "kvmms.sock"), **env}
        done = subprocess.run([KVMMS, *map(str, args)], capture_output=True, text=True, timeout=timeout, env=full)
        if check:
            assert done.returncode == 0, f"kvmms {' '.join(map(str, args))} ended with {done.returncode}: {done.stderr}\n{done.stdout}"
        return done
