"""A machine of generation 2: UEFI, its variables kept with points, exported, and given to what is restored from them."""
import json
from pathlib import Path

from harness.host import DONE, RUNNING, SCSI, U16
from harness.model import Ref
from harness.service import wait_until
from test_spine import MIB


def test_a_machine_of_generation_2_starts_in_uefi_and_is_restored_with_its_variables(host, scratch):
    disk = host.create_disk(scratch / "d.qcow2", 8 * MIB)
    machine = host.define("uefi", 128, VirtualSystemSubType="Microsoft:Hyper-V:SubType:2")
    machine.attach(disk, bus=SCSI)
    machine.start()
    # The firmware found nothing to boot; on its way there it wrote its variables.
    wait_until(lambda: "BdsDxe" in machine.console(), 120, "the firmware")
    point = machine.point()
    machine.stop()
    job = machine.export(point, scratch / "export")
    assert job.num("JobState") == DONE
    manifest = json.loads((scratch / "export" / machine.guid / "manifest.json").read_text())
    file, = [f for f in manifest["files"] if f["role"] == "firmware-variables"]
    variables = (scratch / "export" / machine.guid / file["path"]).read_bytes()
    assert b"B\0o\0o\0t\0O\0r\0d\0e\0r\0" in variables, "the variables the firmware wrote"
    result, _ = host.do("Kvmms_ExportService", "ImportExport", ExportDirectory=str(scratch / "export"), NewName="again",
                        DiskDirectory=str(scratch / "restored"))
    restored = result["ImportedSystem"]
    assert isinstance(restored, Ref)
    kept = [p for p in Path(host.service.dir).rglob("*firmware-vars*") if restored.keys["Name"].lower() in str(p).lower()]
    assert [p.read_bytes() for p in kept] == [variables]
    host.finish(host.api.invoke(restored, "RequestStateChange", RequestedState=U16(RUNNING)))
    assert host.api.get(restored).num("EnabledState") == RUNNING
    host.finish(host.api.invoke(restored, "RequestStateChange", RequestedState=U16(3)))
    host.do("Msvm_VirtualSystemManagementService", "DestroySystem", AffectedSystem=restored)
