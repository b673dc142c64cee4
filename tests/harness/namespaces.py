"""Two network namespaces that only a pair of virtual Ethernet devices joins. Needs root. When what holds them ends, the kernel removes everything."""
import ctypes
import os
import select
import socket
import subprocess
import threading
import time
from contextlib import contextmanager

from .service import wait_until

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


def why_not():
    """Why there can be none here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces of one's own need root"
    tried = subprocess.run(["unshare", "--net", "ip", "link", "add", "a0", "type", "veth", "peer", "name", "b0"], capture_output=True, text=True)
    return tried.stderr.strip() and f"no namespaces joined by a veth pair: {tried.stderr.strip()}"


class Namespace:
    """One of them, with the address it has on the link."""

    def __init__(self, address):
        self.address = address
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self.path = f"/proc/{self.holder.pid}/ns/net"
        own = os.readlink("/proc/self/ns/net")
        wait_until(lambda: os.readlink(self.path) != own, 10, "a network namespace")
        self.wrapper = ["nsenter", f"--net={self.path}"]
        self.ip("link", "set", "lo", "up")

    def ip(self, *args):
        subprocess.run([*self.wrapper, "ip", *args], check=True, timeout=30)

    @contextmanager
    def inside(self):
        """This thread is in it meanwhile: sockets that are made then are of this namespace, for ever."""
        with open("/proc/self/task/%d/ns/net" % threading.get_native_id()) as back, open(self.path) as there:
            enter(there)
            try:
                yield
            finally:
                enter(back)

    def close(self):
        self.holder.kill()
        self.holder.wait()


def enter(namespace):
    if LIBC.setns(namespace.fileno(), CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Inside:
    """A client whose every call is made in a namespace."""

    def __init__(self, namespace, api):
        self.namespace, self.api = namespace, api

    def __getattr__(self, name):
        found = getattr(self.api, name)
        if not callable(found):
            return found

        def call(*args, **kwargs):
            with self.namespace.inside():
                return found(*args, **kwargs)
        return call


class Link:
    """Two namespaces and what joins them."""

    def __init__(self):
        self.near, self.far = Namespace("10.77.0.1"), Namespace("10.77.0.2")
        self.near.ip("link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", str(self.far.holder.pid))
        for end in (self.near, self.far):
            end.ip("addr", "add", f"{end.address}/24", "dev", "wire")
            end.ip("link", "set", "wire", "up")

    def cut(self):
        self.near.ip("link", "set", "wire", "down")

    def mend(self):
        self.near.ip("link", "set", "wire", "up")

    def close(self):
        for end in (self.near, self.far):
            end.close()


class LongWay:
    """A relay in one namespace to a port of the other. After the first few connections the bytes of others take half a second in either
    direction; so a test can cut the link while they are on their way. What is on its way then is lost, as on a wire."""

    def __init__(self, namespace, target):
        self.namespace, self.target = namespace, target
        self.delay, self.fast, self.cut, self.ended = 0.0, 0, False, False
        with namespace.inside():
            self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.accepting = threading.Thread(target=self.accept, daemon=True)
        self.accepting.start()

    def accept(self):
        while not self.ended:
            if not select.select([self.listener], [], [], 0.2)[0]:
                continue
            near, _ = self.listener.accept()
            self.fast -= 1
            delay = 0.0 if self.fast >= 0 else self.delay
            threading.Thread(target=self.relay, args=(near, delay), daemon=True).start()

    def relay(self, near, delay):
        with near:
            if self.cut:
                return
            try:
                with self.namespace.inside():
                    far = socket.create_connection(self.target, 10)
            except OSError:
                return
            with far:
                self.carry(near, far, delay)

    def carry(self, near, far, delay):
        waiting = {near: [], far: []}
        other = {near: far, far: near}
        for end in (near, far):
            end.settimeout(30)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while not (self.cut or self.ended):
                for end in select.select([near, far], [], [], 0.01)[0]:
                    came = end.recv(1 << 16)
                    waiting[end].append((time.monotonic() + delay, came))
                for end, bytes_of in waiting.items():
                    while bytes_of and bytes_of[0][0] <= time.monotonic():
                        came = bytes_of.pop(0)[1]
                        if not came:
                            return
                        other[end].sendall(came)
        except OSError:
            return

    def close(self):
        self.ended = True
        self.accepting.join(10)
        self.listener.close()
