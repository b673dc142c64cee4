"""`kvmms host check`: what nobody needs is found through both protocols and cleaned from the command line; a busy host is clean."""
import json
import uuid

import pytest

from harness import images
from harness.host import LOG, RCT, Refused, let_it_write
from test_spine import running_writer

SERVICE = "Kvmms_HostService"


def findings(host):
    found = host.call(SERVICE, "CheckHost")["Findings"]
    if found is None:
        return []
    return [host.api.read_embedded(f) for f in (found if isinstance(found, list) else [found])]


def test_a_busy_host_is_clean_and_an_orphaned_layer_is_found_and_cleaned(own_host, guests):
    scratch = own_host.service.work / "s"
    scratch.mkdir()
    machine, _, data = running_writer(own_host, guests, scratch, "busy")
    first = machine.point(RCT)
    let_it_write(machine, data)
    second = machine.point(LOG)
    machine.export(first, scratch / "out")
    machine.export(second, scratch / "out", base=first)
    assert findings(own_host) == []
    done = own_host.service.cli("host", "check")
    assert "Nothing is amiss" in done.stdout + done.stderr

    orphan = data.with_name(f"{data.name}.kvmms-{uuid.uuid4()}.qcow2")
    images.qemu_img("create", "-q", "-f", "qcow2", "-b", data.name, "-F", "qcow2", orphan, "64M")
    state = json.loads((own_host.service.state / "identity").read_text())["id"]
    images.write_owner(orphan, f"state={state} machine={uuid.uuid4()} disk={uuid.uuid4()} layer={uuid.uuid4()}")
    lookalike = data.with_name(f"{data.name}.kvmms-{uuid.uuid4()}.qcow2")
    lookalike.write_text("a letter")
    found = {f.text("Subject"): f for f in findings(own_host)}
    assert set(found) == {str(orphan), str(lookalike)}
    assert found[str(orphan)].flag("Cleanable") is True and found[str(orphan)].num("Size") > 0
    assert found[str(lookalike)].flag("Cleanable") is False and "not ours" in found[str(lookalike)].text("Reason")
    assert all(f.text("FindingKind") == "layer" and f.text("Action") for f in found.values())

    told = own_host.service.cli("host", "check", "-o", "json", check=False)
    assert told.returncode == 1
    assert {r["subject"] for r in json.loads(told.stdout)} == set(found)
    own_host.service.cli("host", "check", "--clean", "map", check=False)
    assert orphan.exists(), "another kind was asked for"
    cleaned = own_host.service.cli("host", "check", "--clean", "all", check=False)
    assert cleaned.returncode == 1 and str(lookalike) in cleaned.stdout, "what is not ours stays, and is told"
    assert not orphan.exists() and lookalike.exists()
    lookalike.unlink()
    own_host.service.cli("host", "check")
    let_it_write(machine, data)


def test_an_unknown_kind_is_refused_with_the_kinds_there_are(host):
    with pytest.raises(Refused) as refused:
        host.call(SERVICE, "CleanHost", Kinds=["nonsense"])
    assert refused.value.code == 32773
