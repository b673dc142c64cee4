"""Audits: a change map is proven by reading both instants, by layers and by hashes, while the guest keeps writing."""
import json
import shutil

from harness.host import LOG, RCT, let_it_write
from test_spine import MIB, running_writer

SERVICE = "Kvmms_ExportService"


def audit(host, point, base=None):
    host.do(SERVICE, "AuditReferencePoint", ReferencePoint=point.ref, BaseReferencePoint=base.ref if base else None)


def detail(host, point):
    found = [d for d in host.api.instances("Kvmms_ReferencePointDetail") if d.text("InstanceID") == point.text("InstanceID")]
    return found[0]


def assert_proven(host, point, base, by):
    found = detail(host, point)
    assert found.flag("AuditPassed") is True
    assert found.text("AuditProof") == by
    assert found.text("AuditBase") == base.text("InstanceID")
    assert len(found.texts("AuditDisks")) == 2
    assert found.nums("AuditBytesMissed") == [0, 0]
    assert sum(found.nums("AuditBytesDifferent")) > 0, "the guest wrote between the points"
    for differs, mapped in zip(found.nums("AuditBytesDifferent"), found.nums("AuditBytesInMap")):
        assert by == "hashes" or differs <= mapped
    assert max(found.nums("AuditBytesCompared")) >= 64 * MIB
    assert found.texts("AuditMissedRanges") in ([], None)


def test_the_map_of_a_writing_guest_is_proven_by_layers_and_by_hashes(host, guests, scratch):
    machine, _, data = running_writer(host, guests, scratch, "audit")
    first = machine.point(RCT)
    let_it_write(machine, data)
    second = machine.point(LOG)
    let_it_write(machine, data)
    audit(host, second)
    assert_proven(host, second, first, "layers")
    # Its first export ends the hold of the first point; what is left of it are the hashes of the export.
    machine.export(first, scratch / "out")
    third = machine.point(LOG)
    host.service.cli("point", "remove-data", second.text("InstanceID").split(":")[-1])
    audit(host, third, first)
    assert_proven(host, third, first, "hashes")


def test_a_map_that_is_not_the_right_one_is_caught_on_the_command_line(own_host, guests):
    host = own_host
    scratch = host.service.work / "s"
    scratch.mkdir()
    machine, _, data = running_writer(host, guests, scratch, "caught")
    points = [machine.point(LOG)]
    for _ in range(2):
        let_it_write(machine, data)
        points.append(machine.point(LOG))
    ids = [p.text("InstanceID").split(":")[-1] for p in points]
    newest = ids[-1]
    assert not json.loads(host.service.cli("point", "show", newest, "-o", "json").stdout)["audit"]
    passed = host.service.cli("point", "audit", newest, "--base", ids[0])
    assert "missed nothing" in passed.stdout
    shown = json.loads(host.service.cli("point", "show", newest, "-o", "json").stdout)
    assert shown["auditPassed"] is True and shown["auditProof"] == "layers" and shown["auditBaseId"] == ids[0]

    # The map of the point before, a whole and valid file, in the place of its own.
    nodes = [dict(zip(d.texts("DiskPaths"), d.texts("ChangeTrackingIdentifiers"))) for d in (detail(host, p) for p in points)]
    maps = [next(host.service.state.glob(f"maps/*/{n[str(data)].lower()}.map")) for n in nodes[1:]]
    shutil.copy(maps[0], maps[1])
    caught = host.service.cli("point", "audit", newest, "--base", ids[1], check=False)
    assert caught.returncode == 1 and "KVMMS-0130" in caught.stderr
    shown = json.loads(host.service.cli("point", "show", newest, "-o", "json").stdout)
    assert shown["auditPassed"] is False and shown["auditMissed"]
    assert detail(host, points[-1]).texts("AuditMissedRanges") == shown["auditMissed"]


def test_an_audit_outlives_the_service(own_host, guests):
    scratch = own_host.service.work / "s"
    scratch.mkdir()
    machine, _, data = running_writer(own_host, guests, scratch, "killed")
    first = machine.point(LOG)
    let_it_write(machine, data)
    second = machine.point(LOG)
    result = own_host.call(SERVICE, "AuditReferencePoint", ReferencePoint=second.ref, BaseReferencePoint=first.ref)
    job = own_host.job(result)
    own_host.service.kill()
    own_host.service.start()
    done = own_host.wait_job(job)
    assert done.num("JobState") == 7, own_host.errors(job)
    assert_proven(own_host, second, first, "layers")
