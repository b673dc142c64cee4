"""Machines move between two hosts that only a link joins: each service has a network namespace of its own, and the link is cut.

pywbem asks the one, pypsrp the other.
"""
import json
import time

import pytest

from harness.host import EXCEPTION, OFF, RUNNING, SAVED, TERMINATED, Host, let_it_write
from harness.namespaces import Inside, Link, LongWay, why_not
from harness.service import Service, wait_until
from test_migration import EVERYTHING, Pair, arrived, disk_texts, gone, machine_with_points, migrate, there_and_back

# Slower than the guest writes: it is mirrored for as long as a test likes.
SLOW = {"Bandwidth": 1, "BandwidthUnit": "byte / second * 2^20"}

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "never")


class Apart(Pair):
    """Two services, each in a network namespace of its own."""

    def __init__(self):
        self.link = Link()
        self.alpha, self.beta = (Service(name=name, wrapper=end.wrapper, reach="0.0.0.0")
                                 for name, end in (("alpha", self.link.near), ("beta", self.link.far)))
        self.way = None

    def start(self):
        super().start()
        self.trust(self.alpha, self.beta, self.link.far.address)
        self.trust(self.beta, self.alpha, self.link.near.address)
        return self

    def hosts(self):
        return (Host(Inside(self.link.near, self.alpha.api("cimxml")), self.alpha),
                Host(Inside(self.link.far, self.beta.api("wsman")), self.beta))

    def long_way(self):
        """From now on alpha reaches beta by a way on which everything takes its time that comes after the mirrors of two disks. (Not the
        mirrors: a guest that writes faster than its disks are mirrored never gets further.)"""
        self.way = LongWay(self.link.near, (self.link.far.address, self.beta.migration_port))
        self.trust(self.alpha, self.beta, "127.0.0.1", self.way.port)
        # Its files, its process, the pulse, two disks.
        self.way.fast, self.way.delay = 5, 0.5

    def cut(self):
        if self.way:
            self.way.cut = True
        self.link.cut()

    def mend(self):
        self.link.mend()
        if self.way:
            self.way.cut, self.way.delay = False, 0.0

    def close(self):
        try:
            super().close()
        finally:
            if self.way:
                self.way.close()
            self.link.close()


@pytest.fixture(scope="module")
def apart():
    pair = Apart()
    try:
        yield pair.start()
    finally:
        pair.close()


@pytest.fixture
def own_pair():
    pair = Apart()
    try:
        yield pair.start()
    finally:
        pair.close()


@pytest.fixture
def moving(request):
    made = []

    def of(pair):
        hosts = pair.hosts()
        made.extend(hosts)
        return hosts
    yield of
    for host in made:
        host.close()


def detail(host, job):
    name = job.keys["InstanceID"]
    return next(d for d in host.api.instances("Kvmms_MigrationDetail") if d.text("InstanceID") == name)


def comes_to(host, job, *phases):
    """Until the move is that far. It must not have ended before."""
    def there():
        found = detail(host, job)
        assert host.api.get(job).num("JobState") not in (EXCEPTION, TERMINATED), [e.text("Message") for e in host.errors(job)]
        assert found.text("Phase") != "done", found
        return found.text("Phase") in phases
    wait_until(there, 120, f"the phase {phases}")


def processes(service):
    """The QEMU processes of this service. The images of both lie in one directory here."""
    return service.qemu_pids(str(service.run))


def in_doubt(service):
    return json.loads(service.cli("-o", "json", "migrate", "resolve").stdout)


def machines_there(host, machine):
    return [m for m in host.api.instances("Msvm_ComputerSystem") if m.text("Name").lower() == machine.guid.lower()]


def running_one(host, guests, name):
    machine, _ = machine_with_points(host, guests, host.service.work / name, name)
    return machine, host.service.work / name


@pytest.mark.parametrize("state", [OFF, SAVED, RUNNING], ids=["off", "saved", "running"])
def test_a_machine_moves_over_the_link_is_exported_there_as_a_difference_and_comes_back(moving, apart, guests, state):
    there_and_back(*moving(apart), guests, state)


@pytest.mark.parametrize("phase", ["mirroring disks", "sending memory"])
def test_a_link_that_is_cut_on_the_way_leaves_the_machine_running_here_and_it_moves_later(moving, own_pair, guests, phase):
    alpha, beta = moving(own_pair)
    machine, work = running_one(alpha, guests, "cut")
    if phase == "sending memory":
        own_pair.long_way()
    slow = {} if own_pair.way else SLOW
    job = alpha.job(migrate(alpha, machine, "beta", EVERYTHING, resources=disk_texts(machine, work / "there"), **slow))
    comes_to(alpha, job, phase)
    own_pair.cut()
    ended = alpha.wait_job(job, 120)
    assert ended.num("JobState") == EXCEPTION
    told = [e.text("Message") for e in alpha.errors(job)]
    assert len(told) > 1 and "beta" in json.dumps(told), told
    # It never stood still for good, and writes on while beta cannot be reached.
    assert machine.state() == RUNNING
    let_it_write(machine, work / "data" / "data.qcow2")
    assert machines_there(beta, machine) == []
    own_pair.mend()
    job = alpha.job(migrate(alpha, machine, "beta", EVERYTHING, resources=disk_texts(machine, work / "later")))
    assert alpha.wait_job(job, 300).num("JobState") == 7, [e.text("Message") for e in alpha.errors(job)]
    gone(alpha, machine)
    moved = arrived(beta, machine)
    assert moved.state() == RUNNING and len(moved.points()) == 2
    wait_until(lambda: not processes(own_pair.alpha), 30, "the end of its process at alpha")


def handing_over(moving, pair, guests, name):
    """A machine that runs is about to be handed over; bytes are half a second on their way."""
    alpha, beta = moving(pair)
    machine, work = running_one(alpha, guests, name)
    pair.long_way()
    job = alpha.job(migrate(alpha, machine, "beta", EVERYTHING, resources=disk_texts(machine, work / "there")))
    comes_to(alpha, job, "handed over")
    return alpha, beta, machine, work, job


def stands_still(pair, alpha, machine, job):
    """It says that nobody knows, and does not run here whoever asks."""
    told = wait_until(lambda: in_doubt(pair.alpha), 120, "doubt")
    assert len(told) == 1 and told[0]["to"] == "beta" and told[0]["doubt"], told
    assert detail(alpha, job).flag("InDoubt") is True
    started = pair.alpha.cli("vm", "start", machine.guid, check=False)
    assert started.returncode != 0
    before = written(alpha)
    time.sleep(1)
    assert written(alpha) == before, "the guest at alpha goes on although nobody knows"


def written(host):
    """When the images of this host were last written to."""
    files = [p for p in host.service.work.rglob("*") if p.is_file() and "there" not in p.parts]
    return {str(p): p.stat().st_mtime_ns for p in files}


def test_a_grant_that_did_not_arrive_is_decided_for_here(moving, own_pair, guests):
    alpha, beta, machine, work, job = handing_over(moving, own_pair, guests, "here")
    own_pair.cut()
    stands_still(own_pair, alpha, machine, job)
    assert machines_there(beta, machine) == []
    own_pair.alpha.cli("migrate", "resolve", machine.guid, "--here")
    assert alpha.wait_job(job, 120).num("JobState") == EXCEPTION and alpha.errors(job)
    assert machine.state() == RUNNING
    let_it_write(machine, work / "data" / "data.qcow2")
    own_pair.mend()
    # At beta it waits for a word that never comes; it never ran there, and does not now.
    assert machines_there(beta, machine) == []
    coming = [j for j in beta.api.instances("Msvm_MigrationJob") if j.num("JobState") == 4]
    assert len(coming) == 1
    assert beta.api.invoke(coming[0].ref, "RequestStateChange", RequestedState=4).value in (0, 4096)
    wait_until(lambda: not processes(own_pair.beta), 60, "the end of the process at beta")
    assert machine.state() == RUNNING and in_doubt(own_pair.alpha) == []


def test_an_answer_that_did_not_arrive_is_decided_for_there(moving, own_pair, guests):
    alpha, beta, machine, work, job = handing_over(moving, own_pair, guests, "there")
    wait_until(lambda: machines_there(beta, machine), 60, "the machine at beta")
    own_pair.cut()
    stands_still(own_pair, alpha, machine, job)
    own_pair.alpha.cli("migrate", "resolve", machine.guid, "--there")
    assert alpha.wait_job(job, 120).num("JobState") == 7
    gone(alpha, machine)
    own_pair.mend()
    moved = arrived(beta, machine)
    assert moved.state() == RUNNING and len(moved.points()) == 2
    let_it_write(moved, work / "there" / "data" / "data.qcow2")
    assert processes(own_pair.alpha) == [] and in_doubt(own_pair.alpha) == []


@pytest.mark.parametrize("arrives", [False, True], ids=["grant-lost", "answer-lost"])
def test_a_link_that_is_mended_ends_the_doubt_by_itself(moving, own_pair, guests, arrives):
    alpha, beta, machine, work, job = handing_over(moving, own_pair, guests, "mended")
    if arrives:
        wait_until(lambda: machines_there(beta, machine), 60, "the machine at beta")
    own_pair.cut()
    stands_still(own_pair, alpha, machine, job)
    assert bool(machines_there(beta, machine)) == arrives
    own_pair.mend()
    assert alpha.wait_job(job, 120).num("JobState") == 7, [e.text("Message") for e in alpha.errors(job)]
    gone(alpha, machine)
    moved = arrived(beta, machine)
    assert moved.state() == RUNNING and processes(own_pair.alpha) == []
    let_it_write(moved, work / "there" / "data" / "data.qcow2")
