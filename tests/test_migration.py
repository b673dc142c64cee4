"""Machines move between two services, asked for by real clients, word for word as os-win and Microsoft's samples ask.

os-win: template of the MigrationType, listener addresses of both hosts, disks' settings sent back, MigrateVirtualSystemToHost, job.
"""
import base64
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness import images
from harness.host import DONE, EXCEPTION, HARD_DISK, OFF, RUNNING, SAVED, U8, U16, U32, Host, Machine, copy_guest, let_it_write
from harness.model import ApiFault, Ref
from harness.service import Service, wait_until
from test_exact import exported, frozen_point
from test_spine import MIB

SERVICE = "Msvm_VirtualSystemMigrationService"
SETTINGS = "Msvm_VirtualSystemMigrationServiceSettingData"
TEMPLATE = "Msvm_VirtualSystemMigrationSettingData"
NETWORK = "Msvm_VirtualSystemMigrationNetworkSettingData"
LIVE, STORAGE, STAGED, EVERYTHING, DEEP_CHECK = 32768, 32769, 32770, 32771, 32772
SMB, NOT_SUPPORTED, NOT_COMPATIBLE = 32768, 32770, 32784


class Pair:
    """Two services that can reach each other."""

    def __init__(self):
        self.alpha, self.beta = Service(name="alpha"), Service(name="beta")

    def start(self):
        self.alpha.start()
        self.beta.start()
        return self

    def trust(self, own, other, address="127.0.0.1", port=None):
        """`own` trusts `other`, as an administrator does it: by the fingerprint the other shows of itself."""
        listed = json.loads(other.cli("-o", "json", "host", "list").stdout)
        shown = next(h["fingerprint"] for h in listed if h["local"])
        port = port or other.migration_port
        return own.cli("host", "trust", other.name, "--address", address, "--port", port, "--fingerprint", shown)

    def close(self):
        for service in (self.alpha, self.beta):
            service.close()


@pytest.fixture(scope="module")
def strangers():
    """Two hosts of which only alpha trusts the other."""
    pair = Pair()
    try:
        pair.start().trust(pair.alpha, pair.beta)
        yield pair
    finally:
        pair.close()


@pytest.fixture(scope="module")
def friends():
    """Two hosts that trust each other."""
    pair = Pair()
    try:
        pair.start()
        pair.trust(pair.alpha, pair.beta)
        pair.trust(pair.beta, pair.alpha)
        yield pair
    finally:
        pair.close()


def text_of(obj, **changes):
    """What WMI's GetText makes of an instance that was read: every property, with some changed."""
    root = ET.Element("INSTANCE", CLASSNAME=obj.class_name)
    for name, value in {**obj.properties, **changes}.items():
        if isinstance(value, list):
            array = ET.SubElement(root, "PROPERTY.ARRAY", NAME=name, TYPE="string")
            values = ET.SubElement(array, "VALUE.ARRAY")
            for v in value:
                ET.SubElement(values, "VALUE").text = str(v)
        else:
            own = ET.SubElement(root, "PROPERTY", NAME=name, TYPE="string")
            if value is not None:
                ET.SubElement(own, "VALUE").text = str(value).lower() if isinstance(value, bool) else str(value)
    return ET.tostring(root, encoding="unicode")


def template(host, kind, **changes):
    found = host.api.query(f"SELECT * FROM {TEMPLATE} WHERE MigrationType = {kind}")[0]
    return text_of(found, **changes)


def addresses(host):
    return host.api.get(host.service_ref(SERVICE)).texts("MigrationServiceListenerIPAddressList")


def migrate(host, machine, destination, kind=EVERYTHING, method="MigrateVirtualSystemToHost", resources=None, **changes):
    return host.api.invoke(host.service_ref(SERVICE), method, ComputerSystem=machine.ref, DestinationHost=destination,
                           MigrationSettingData=template(host, kind, **changes), NewResourceSettingData=resources)


def disk_texts(machine, directory=None):
    """Every disk's settings: sent back as they were read, or with the image below another directory."""
    texts = []
    for disk in machine.disks():
        if disk.num("ResourceType") == 31 and disk.text("ResourceSubType") == HARD_DISK:
            path = Path(disk.texts("HostResource")[0])
            changes = {"HostResource": [f"{directory}/{path.parent.name}/{path.name}"]} if directory else {}
            texts.append(text_of(disk, **changes))
    return texts


def failed(host, result, seconds=60):
    """A migration job that failed, and its chain."""
    ref = host.job(result)
    assert ref.class_name == "Msvm_MigrationJob"
    job = host.wait_job(ref, seconds)
    assert job.num("JobState") == EXCEPTION, job
    errors = host.errors(ref)
    assert errors and job.num("ErrorCode") >= 32768 and job.text("ErrorDescription")
    first = host.api.read_embedded(host.api.invoke(ref, "GetError")["Error"])
    assert first.text("MessageID") == errors[0].text("MessageID")
    for error in errors:
        assert error.text("Message") and error.texts("RecommendedActions") and error.text("ErrorSource"), error
    return job, errors


@pytest.fixture
def moving(request, friends):
    """A machine's host over one protocol, and the other host over the other."""
    made = []

    def of(first, second="wsman"):
        pair = [Host(friends.alpha.api(first), friends.alpha), Host(friends.beta.api(second), friends.beta)]
        made.extend(pair)
        return pair
    yield of
    for host in made:
        host.close()


# How the service is set

def test_the_service_is_set_and_networks_come_and_go(host):
    ref = host.service_ref(SERVICE)
    found = host.api.associators(ref, "Msvm_ElementSettingData", SETTINGS)
    assert len(found) == 1 and found[0].flag("EnableVirtualSystemMigration") is True
    assert found[0].num("MaximumActiveVirtualSystemMigration") == 2
    # Microsoft's sample reads the settings, changes them and sends them back.
    host.do(SERVICE, "ModifyServiceSettings",
            ServiceSettingData=text_of(found[0], MaximumActiveVirtualSystemMigration=3, AuthenticationType=1))
    changed = host.api.get(found[0].ref)
    assert changed.num("MaximumActiveVirtualSystemMigration") == 3 and changed.num("AuthenticationType") == 1
    setting = host.api.embedded(NETWORK, SubnetNumber="10.20.0.0", PrefixLength=U8(16), Metric=U32(7), Tags=["Microsoft:UserManaged"])
    host.do(SERVICE, "AddNetworkSettings", NetworkSettings=[setting])
    network, = host.api.associators(found[0].ref, "Msvm_VirtualSystemMigrationServiceSettingDataComponent", NETWORK)
    assert (network.text("SubnetNumber"), network.num("PrefixLength"), network.num("Metric")) == ("10.20.0.0", 16, 7)
    assert network.texts("Tags") == ["Microsoft:UserManaged"]
    again = host.api.invoke(ref, "AddNetworkSettings", NetworkSettings=[setting])
    assert again.value == 32773
    host.do(SERVICE, "ModifyNetworkSettings", NetworkSettings=[text_of(network, Metric=1)])
    assert host.api.get(network.ref).num("Metric") == 1
    host.do(SERVICE, "RemoveNetworkSettings", NetworkSettings=[network.ref])
    assert host.api.associators(found[0].ref, None, NETWORK) == []
    host.do(SERVICE, "ModifyServiceSettings", ServiceSettingData=text_of(found[0]))


def test_smb_for_the_service_and_unknown_properties_are_refused(host):
    ref = host.service_ref(SERVICE)
    smb = host.api.embedded(SETTINGS, EnableSmbTransport=True)
    assert host.api.invoke(ref, "ModifyServiceSettings", ServiceSettingData=smb).value == NOT_SUPPORTED
    odd = f'<INSTANCE CLASSNAME="{SETTINGS}"><PROPERTY NAME="Enabled" TYPE="boolean"><VALUE>true</VALUE></PROPERTY></INSTANCE>'
    assert host.api.invoke(ref, "ModifyServiceSettings", ServiceSettingData=odd).value == 32773
    none = host.api.embedded(SETTINGS, MaximumActiveStorageMigration=U32(0))
    assert host.api.invoke(ref, "ModifyServiceSettings", ServiceSettingData=none).value == 32773


def test_a_stopped_service_says_so_and_moves_nothing_until_it_is_started(host, scratch):
    ref = host.service_ref(SERVICE)
    assert host.api.invoke(ref, "StopService").value == 0
    try:
        assert host.api.get(ref).num("EnabledState") == 3
        assert host.api.instances(SETTINGS)[0].flag("EnableVirtualSystemMigration") is False
        machine = host.define("stays")
        _, errors = failed(host, migrate(host, machine, "nowhere"))
        assert "KVMMS-0364" in [e.text("MessageID") for e in errors]
    finally:
        assert host.api.invoke(ref, "StartService").value == 0
    assert host.api.get(ref).num("EnabledState") == 2


def test_there_is_a_template_of_every_type_and_what_a_machine_needs_is_told(host):
    for kind in (LIVE, STORAGE, STAGED, EVERYTHING, DEEP_CHECK):
        found = host.api.query(f"SELECT * FROM {TEMPLATE} WHERE MigrationType = {kind}")
        assert len(found) == 1 and found[0].num("TransportType") == 5
    machine = host.define("needy")
    ref = host.service_ref(SERVICE)
    told = host.api.invoke(ref, "GetSystemCompatibilityInfo", ComputerSystem=machine.ref)
    assert told.value == 0
    # Bytes are numbers over CIM-XML and one text in base 64 over WS-Management.
    told = told["CompatibilityInfo"]
    numbers = isinstance(told, list)
    info = bytes(int(b) for b in told) if numbers else base64.b64decode(told)
    assert b'"processors":1' in info

    def check(data):
        data = [U8(b) for b in data] if numbers else base64.b64encode(data).decode()
        return host.api.invoke(ref, "CheckSystemCompatibilityInfo", CompatibilityInfo=data)
    fits = check(info)
    assert fits.value == 0 and not fits["Reasons"]
    unfit = check(info.replace(b'"processors":1', b'"processors":99999'))
    assert unfit.value == NOT_COMPATIBLE
    reasons = unfit["Reasons"] if isinstance(unfit["Reasons"], list) else [unfit["Reasons"]]
    assert "99999" in host.api.read_embedded(reasons[0]).text("Message")
    vectors = host.api.invoke(ref, "GetSystemCompatibilityVectors", ComputerSystem=machine.ref)
    assert vectors.value == 0 and vectors["CompatibilityVectors"]


# What does not work, and what clients read of it

@pytest.mark.parametrize("protocol", ["cimxml", "wsman"])
def test_every_refusal_is_a_migration_job_that_tells_what_was_asked_for(strangers, protocol):
    host = Host(strangers.alpha.api(protocol), strangers.alpha)
    machine = host.define("asked")
    try:
        job, errors = failed(host, migrate(host, machine, "beta", LIVE, TransportType=SMB))
        assert job.num("ErrorCode") == NOT_SUPPORTED and any("SMB" in e.text("Message") for e in errors)
        assert job.num("MigrationType") == LIVE and job.num("JobType") == 305
        assert job.text("VirtualSystemName").lower() == machine.guid.lower() and job.text("DestinationHost") == "beta"
        job, errors = failed(host, migrate(host, machine, "beta", LIVE, CPUCappingMagnitude=2))
        assert errors[0].text("MessageID") == "KVMMS-0363"
        job, errors = failed(host, migrate(host, machine, "beta", LIVE, Bandwidth=5, BandwidthUnit="furlongs"))
        assert "BandwidthUnit" in errors[0].text("Message")
        # What cannot be read is no job.
        odd = host.api.invoke(host.service_ref(SERVICE), "MigrateVirtualSystemToHost", ComputerSystem=machine.ref, DestinationHost="beta",
                              MigrationSettingData=f'<INSTANCE CLASSNAME="{TEMPLATE}"><PROPERTY NAME="Odd" TYPE="string">'
                                                   '<VALUE>1</VALUE></PROPERTY></INSTANCE>')
        assert odd.value == 32773
        gone = Ref("Msvm_ComputerSystem", {"CreationClassName": "Msvm_ComputerSystem", "Name": "00000000-0000-4000-8000-000000000009"})
        with pytest.raises(ApiFault) as missing:
            host.api.invoke(host.service_ref(SERVICE), "MigrateVirtualSystemToHost", ComputerSystem=gone, DestinationHost="beta",
                            MigrationSettingData=template(host, LIVE))
        assert missing.value.not_found
    finally:
        host.close()


@pytest.mark.parametrize("protocol", ["cimxml", "wsman"])
def test_a_host_that_is_not_known_and_one_that_cannot_be_reached_are_told_apart(strangers, protocol):
    host = Host(strangers.alpha.api(protocol), strangers.alpha)
    machine = host.define("lonely")
    try:
        _, unknown = failed(host, migrate(host, machine, "gamma"))
        assert "gamma" in unknown[0].text("Message") + unknown[-1].text("Message")
        listed = json.loads(strangers.alpha.cli("-o", "json", "host", "list").stdout)
        own = next(h["fingerprint"] for h in listed if h["local"])
        # Nobody listens on port 1; trust it all the same.
        host.api.invoke(host.service_ref("Kvmms_MigrationService"), "TrustHost", Name="delta", Address="127.0.0.1", Port=U16(1),
                        Fingerprint=own)
        job, unreachable = failed(host, migrate(host, machine, "delta", method="CheckVirtualSystemIsMigratable"))
        assert job.num("JobType") == 302
        ids = [e.text("MessageID") for e in unreachable]
        assert ids != [e.text("MessageID") for e in unknown]
        assert any("127.0.0.1" in e.text("Message") for e in unreachable), unreachable
        # pywbem makes True of every boolean out parameter, FALSE among them: asked over WS-Management.
        asked = Host(strangers.alpha.api("wsman"), strangers.alpha)
        at_once = asked.api.invoke(asked.service_ref(SERVICE), "CheckVirtualSystemIsMigratableToHost", ComputerSystem=machine.ref,
                                   DestinationHost="delta", MigrationSettingData=template(asked, EVERYTHING))
        assert at_once.value == 0 and at_once["IsMigratable"] == "false"
        assert machine.state() == OFF
    finally:
        host.api.invoke(host.service_ref("Kvmms_MigrationService"), "ForgetHost", Name="delta")
        host.close()


@pytest.mark.parametrize("protocol", ["cimxml", "wsman"])
def test_a_host_that_does_not_trust_us_is_told_with_what_to_do(strangers, protocol):
    host = Host(strangers.alpha.api(protocol), strangers.alpha)
    machine = host.define("stranger")
    try:
        _, errors = failed(host, migrate(host, machine, "beta"))
        text = json.dumps([[e.text("Message"), e.texts("RecommendedActions")] for e in errors])
        assert "trust" in text, text
    finally:
        host.close()


# Moves

def machine_with_points(host, guests, work, name):
    """A machine whose guest writes, with a chain of two points; exports of both lie in `work/export`."""
    boot = copy_guest(guests / "writer.img", work / "boot")
    (work / "data").mkdir(parents=True)
    data = host.create_disk(work / "data" / "data.qcow2", 64 * MIB)
    machine = host.machine_with_disks(name, [boot, data], memory=32)
    machine.start()
    let_it_write(machine, data)
    taken = []
    for n in range(2):
        taken.append(frozen_point(machine, [boot, data], work / f"frozen{n}"))
        let_it_write(machine, data)
    machine.export(taken[0][0], work / "export")
    machine.export(taken[1][0], work / "export", taken[0][0])
    return machine, taken


def arrived(host, machine):
    """The same machine on the other host."""
    moved = Machine(host, machine.ref)
    host.machines.append(moved)
    assert host.api.get(moved.ref).text("Name").lower() == machine.guid.lower()
    return moved


def gone(host, machine):
    with pytest.raises(ApiFault) as missing:
        host.api.get(machine.ref)
    assert missing.value.not_found
    host.machines.remove(machine)


def move(source, destination, machine, directory, seconds=300):
    """As os-win moves a machine with its disks; gives back the finished job."""
    assert source.api.instances(SETTINGS)[0].flag("EnableVirtualSystemMigration") is True
    assert addresses(source) and addresses(destination)
    name, running = destination.service.name, machine.state() == RUNNING
    result = migrate(source, machine, name, EVERYTHING, resources=disk_texts(machine, directory),
                     DestinationIPAddressList=addresses(destination))
    ref = source.job(result)
    assert ref.class_name == "Msvm_MigrationJob"
    started = source.api.get(ref)
    assert started.num("MigrationType") == EVERYTHING and started.num("JobType") == 306
    job = source.wait_job(ref, seconds)
    assert job.num("JobState") == DONE, [f"{e.text('Message')} @ {e.text('ErrorSource')}" for e in source.errors(ref)]
    assert job.text("VirtualSystemName").lower() == machine.guid.lower() and job.text("DestinationHost") == name
    assert len(job.texts("NewResourceSettingData")) == 2
    gone(source, machine)
    # The job outlives the machine, and tells what was measured.
    assert source.api.get(ref).num("JobState") == DONE
    detail = next(d for d in source.api.instances("Kvmms_MigrationDetail") if d.text("InstanceID") == job.text("InstanceID"))
    assert detail.text("Phase") == "done" and detail.flag("InDoubt") is False and detail.num("FileBytes") > 0
    if running:
        assert detail.num("Downtime") is not None and detail.num("MemoryBytes") > 0 and detail.num("DiskBytes") > 0
    return arrived(destination, machine)


def there_and_back(alpha, beta, guests, state):
    """A machine with a chain of points moves, is exported there as a difference to a point of the other host, and comes back."""
    work = alpha.service.work / f"there-and-back-{state}"
    machine, taken = machine_with_points(alpha, guests, work, f"traveller-{state}")
    if state != RUNNING:
        machine.request(state)
    base = taken[1][0]
    for source, destination, leg in ((alpha, beta, "there"), (beta, alpha, "back")):
        before = {p.text("InstanceID") for p in machine.points()}
        machine = move(source, destination, machine, work / leg)
        assert machine.state() == state
        assert {p.text("InstanceID") for p in machine.points()} == before
        # Its guest goes on, and what it changed is exported against a point that was taken on the other host.
        disks = [work / leg / "boot" / "boot.img", work / leg / "data" / "data.qcow2"]
        if state != RUNNING:
            machine.start()
        let_it_write(machine, disks[1])
        base = next(p for p in machine.points() if p.text("InstanceID") == base.text("InstanceID"))
        point, copies = frozen_point(machine, disks, work / f"frozen-{leg}")
        job = machine.export(point, work / "export", base)
        for name, copy in copies.items():
            file = exported(machine, job, name)
            assert images.backing_of(file), "the export builds on one that was made on the other host"
            images.check(file)
            images.assert_same(file, copy, "qcow2", "raw")
        base = point
        if state != RUNNING:
            machine.request(state)
    assert len(machine.points()) == 4
    assert alpha.service.cli("verify", work / "export").returncode == 0


@pytest.mark.parametrize("state", [OFF, SAVED, RUNNING], ids=["off", "saved", "running"])
def test_a_machine_with_points_moves_is_exported_there_as_a_difference_and_comes_back(moving, guests, state):
    there_and_back(*moving("cimxml", "wsman"), guests, state)


def test_what_is_not_served_yet_is_a_failed_job_with_a_remedy_and_the_machine_goes_on(moving, friends, guests):
    alpha, _ = moving("wsman", "cimxml")
    boot = copy_guest(guests / "writer.img", friends.alpha.work / "not-yet")
    machine = alpha.machine_with_disks("not-yet", [boot], memory=32)
    machine.start()
    for kind in (LIVE, STORAGE, STAGED):
        job, errors = failed(alpha, migrate(alpha, machine, "" if kind == STORAGE else "beta", kind))
        assert job.num("MigrationType") == kind and job.num("ErrorCode") == NOT_SUPPORTED, errors
        assert (job["DestinationHost"] is None) == (kind == STORAGE)
        assert machine.state() == RUNNING
        at_once = alpha.api.invoke(alpha.service_ref(SERVICE), "CheckVirtualSystemIsMigratableToHost", ComputerSystem=machine.ref,
                                   DestinationHost="beta", MigrationSettingData=template(alpha, kind))
        assert at_once.value == 0 and at_once["IsMigratable"] == "false"
    checked = migrate(alpha, machine, "beta", EVERYTHING, method="CheckVirtualSystemIsMigratable",
                      resources=disk_texts(machine, friends.alpha.work / "not-yet-there"))
    assert alpha.finish(checked).num("JobType") == 302 and machine.state() == RUNNING


def test_what_the_other_host_says_names_it(moving, friends, guests):
    alpha, _ = moving("cimxml", "wsman")
    boot = copy_guest(guests / "writer.img", friends.alpha.work / "taken")
    machine = alpha.machine_with_disks("taken", [boot], memory=32)
    # Both hosts are one machine here: at the same path there is the machine's own image, which is not overwritten.
    _, errors = failed(alpha, migrate(alpha, machine, "beta", EVERYTHING, resources=disk_texts(machine)))
    theirs = [e for e in errors if e.text("ErrorSource").lower().startswith("\\\\beta\\")]
    assert theirs and "boot.img" in json.dumps([e.text("Message") for e in theirs]), errors
    assert not errors[0].text("ErrorSource").lower().startswith("\\\\beta\\")
    assert machine.state() == OFF and boot.exists()


def test_the_command_line_tells_the_plan_and_moves(friends, moving, guests):
    alpha, beta = moving("cimxml", "wsman")
    work = friends.alpha.work / "by-hand"
    machine, _ = machine_with_points(alpha, guests, work, "by-hand")
    machine.stop()
    cli = friends.alpha.cli
    shown = json.loads(cli("-o", "json", "host", "list").stdout)
    assert len(shown) == 2 and len({h["fingerprint"] for h in shown}) == 2
    line = ("-o", "json", "migrate", "by-hand", "--to", "beta", "--storage", "--disks-to", work / "new")
    plan = json.loads(cli(*line, "--dry-run").stdout)
    assert plan["fileBytes"] > 0 and plan["points"] == 2 and plan["files"] >= 2
    assert machine.state() == OFF
    cli(*line, "--check")
    told = json.loads(cli(*line).stdout)
    assert told["to"] == "beta" and told["fileBytes"] > 0
    gone(alpha, machine)
    assert arrived(beta, machine).state() == OFF
    assert "known where it is" in cli("migrate", "resolve").stdout
    assert cli("migrate", "by-hand", "--to", "beta", check=False).returncode != 0


def test_a_fingerprint_that_is_another_hosts_trusts_nobody(friends):
    cli = friends.alpha.cli
    port = str(friends.beta.migration_port)
    only = cli("-o", "json", "host", "trust", "elsewhere", "--address", "127.0.0.1", "--port", port)
    shown = json.loads(only.stdout)
    assert shown["trusted"] is False and shown["fingerprint"] != shown["ownFingerprint"]
    bad = cli("host", "trust", "elsewhere", "--address", "127.0.0.1", "--port", port, "--fingerprint", shown["ownFingerprint"], check=False)
    assert bad.returncode != 0 and "another host" in bad.stderr
    assert "elsewhere" not in cli("host", "list").stdout
    good = cli("host", "trust", "elsewhere", "--address", "127.0.0.1", "--port", port, "--fingerprint", shown["fingerprint"])
    assert shown["ownFingerprint"] in good.stdout + good.stderr
    assert "elsewhere" in cli("host", "list").stdout
    cli("host", "forget", "elsewhere")
    assert "elsewhere" not in cli("host", "list").stdout
    assert wait_until(lambda: cli("host", "forget", "elsewhere", check=False).returncode != 0, 10, "a refusal")
