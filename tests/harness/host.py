"""Operations on a host as a client performs them, over either protocol: machines, disks, reference points, exports, jobs."""
import time
from pathlib import Path

import pywbem

from . import images
from .model import Ref
from .service import wait_until

U8, U16, U32, U64 = pywbem.Uint8, pywbem.Uint16, pywbem.Uint32, pywbem.Uint64

RUNNING, OFF, SHUTTING_DOWN, SAVED, PAUSED = 2, 3, 4, 6, 9
DONE, TERMINATED, KILLED, EXCEPTION = 7, 8, 9, 10
FINAL = {DONE, TERMINATED, KILLED, EXCEPTION, 32768}
LOG, RCT = 1, 2
APPLICATION, CRASH = 1, 2

HARD_DISK = "Microsoft:Hyper-V:Virtual Hard Disk"
DISK_DRIVE = "Microsoft:Hyper-V:Synthetic Disk Drive"
IDE = "Microsoft:Hyper-V:Emulated IDE Controller"
SCSI = "Microsoft:Hyper-V:Synthetic SCSI Controller"


class Refused(Exception):
    """A method answered with a code other than 0 and 4096."""

    def __init__(self, method, result, log=""):
        super().__init__(f"{method} answered {result.value}; the service's log ends with:\n{log}")
        self.code = result.value
        self.result = result


class JobFailed(Exception):
    """A job ended in another state than 7."""

    def __init__(self, job, errors):
        texts = [e.text("Message") for e in errors]
        super().__init__(f"job {job.text('InstanceID')} ended in state {job.num('JobState')}, code {job.num('ErrorCode')}: "
                         f"{job.text('ErrorDescription')} / {texts}")
        self.job = job
        self.errors = errors


class Host:
    def __init__(self, api, service):
        self.api = api
        self.service = service
        self.machines = []
        self._services = {}

    def service_ref(self, class_name):
        if class_name not in self._services:
            found = self.api.instances(class_name)
            assert len(found) == 1, f"{len(found)} instances of {class_name}"
            self._services[class_name] = found[0].ref
        return self._services[class_name]

    def call(self, class_name, method, **params):
        """A method of a singleton service; raises Refused unless it answers 0 or 4096."""
        result = self.api.invoke(self.service_ref(class_name), method, **params)
        if result.value not in (0, 4096):
            raise Refused(f"{class_name}.{method}", result, self.service.tail(8))
        return result

    def job(self, result):
        assert result.value == 4096, f"no job, but {result}"
        assert isinstance(result["Job"], Ref), f"4096 without a job: {result}"
        return result["Job"]

    def wait_job(self, ref, seconds=120):
        """Polls the job until it is final and gives it back."""
        def final():
            job = self.api.get(ref)
            assert 0 <= job.num("PercentComplete") <= 100
            return job if job.num("JobState") in FINAL else None
        return wait_until(final, seconds, f"the end of job {ref}")

    def errors(self, ref):
        """The chain of Msvm_Error of a job, summary first."""
        result = self.api.invoke(ref, "GetErrorEx")
        assert result.value == 0
        found = result["Errors"]
        if found is None:
            return []
        return [self.api.read_embedded(e) for e in (found if isinstance(found, list) else [found])]

    def finish(self, result, seconds=120):
        """Waits for the job behind a result, if there is one. Gives back the final job (or None); raises JobFailed."""
        if result.value == 0:
            return None
        ref = self.job(result)
        job = self.wait_job(ref, seconds)
        if job.num("JobState") != DONE:
            raise JobFailed(job, self.errors(ref))
        assert job.num("ErrorCode") in (0, None) and job.num("PercentComplete") == 100
        return job

    def do(self, class_name, method, **params):
        """Calls and waits. Gives back (result, job)."""
        result = self.call(class_name, method, **params)
        return result, self.finish(result)

    # Disks

    def create_disk(self, path, size, kind=3):
        """A virtual hard disk made by the image service: kind 3 is dynamic, 2 is fixed."""
        setting = self.api.embedded("Msvm_VirtualHardDiskSettingData", Type=U16(kind), Format=U16(3), Path=str(path), MaxInternalSize=U64(size))
        self.do("Msvm_ImageManagementService", "CreateVirtualHardDisk", VirtualDiskSettingData=setting)
        return Path(path)

    # Machines

    def define(self, name, memory=64, **settings):
        setting = self.api.embedded("Msvm_VirtualSystemSettingData", ElementName=name, **settings)
        memory_setting = self.api.embedded("Msvm_MemorySettingData", ResourceType=U16(4), VirtualQuantity=U64(memory))
        result, _ = self.do("Msvm_VirtualSystemManagementService", "DefineSystem", SystemSettings=setting, ResourceSettings=[memory_setting])
        ref = result["ResultingSystem"]
        assert isinstance(ref, Ref) and ref.class_name == "Msvm_ComputerSystem", result
        machine = Machine(self, ref)
        self.machines.append(machine)
        return machine

    def machine_with_disks(self, name, paths, memory=64, bus=IDE):
        machine = self.define(name, memory)
        for slot, path in enumerate(paths):
            machine.attach(path, slot=slot, bus=bus)
        return machine

    def close(self):
        for m in self.machines:
            try:
                if m.state() != OFF:
                    m.request(OFF)
                m.destroy()
            except Exception:  # the machine may be gone with its service; Service.close() ends what is left
                pass


class Machine:
    def __init__(self, host, ref):
        self.host, self.api, self.ref = host, host.api, ref
        self.guid = ref.keys["Name"]

    @property
    def settings(self):
        found = self.api.associators(self.ref, "Msvm_SettingsDefineState", "Msvm_VirtualSystemSettingData")
        assert len(found) == 1, found
        return found[0].ref

    def parts(self, class_name):
        return self.api.associators(self.settings, "Msvm_VirtualSystemSettingDataComponent", class_name)

    def state(self):
        return self.api.get(self.ref).num("EnabledState")

    def request(self, state, seconds=120):
        result = self.api.invoke(self.ref, "RequestStateChange", RequestedState=U16(state))
        if result.value not in (0, 4096):
            raise Refused("Msvm_ComputerSystem.RequestStateChange", result, self.host.service.tail(8))
        return self.host.finish(result, seconds)

    def start(self):
        self.request(RUNNING)
        assert self.state() == RUNNING

    def stop(self):
        self.request(OFF)
        assert self.state() == OFF

    def pause(self):
        self.request(PAUSED)
        assert self.state() == PAUSED

    def resume(self):
        self.request(RUNNING)
        assert self.state() == RUNNING

    def destroy(self):
        self.host.do("Msvm_VirtualSystemManagementService", "DestroySystem", AffectedSystem=self.ref)

    def add(self, *settings):
        result, _ = self.host.do("Msvm_VirtualSystemManagementService", "AddResourceSettings", AffectedConfiguration=self.settings,
                                 ResourceSettings=list(settings))
        found = result.refs("ResultingResourceSettings")
        assert len(found) == len(settings), result
        return found

    def controller(self, kind, number=0):
        """The path of the n-th controller of a kind; a SCSI controller is added when there is none."""
        found = [p for p in self.parts("Msvm_ResourceAllocationSettingData") if p.text("ResourceSubType") == kind]
        if kind == IDE:
            found = [p for p in found if p.text("Address") == str(number)]
        if not found:
            assert kind == SCSI, f"the machine has no {kind} {number}"
            return self.add(self.api.embedded("Msvm_ResourceAllocationSettingData", ResourceType=U16(6), ResourceSubType=SCSI))[0]
        return found[0].ref

    def attach(self, path, slot=0, bus=IDE):
        """A drive with a disk in it; gives back the path of the Msvm_StorageAllocationSettingData."""
        controller = self.controller(bus, slot // 2 if bus == IDE else 0)
        drive, = self.add(self.api.embedded("Msvm_ResourceAllocationSettingData", ResourceType=U16(17), ResourceSubType=DISK_DRIVE,
                                            Parent=controller.text(), AddressOnParent=str(slot % 2 if bus == IDE else slot)))
        disk, = self.add(self.api.embedded("Msvm_StorageAllocationSettingData", ResourceType=U16(31), ResourceSubType=HARD_DISK,
                                           Parent=drive.text(), HostResource=[str(path)]))
        return disk

    def disks(self):
        return self.parts("Msvm_StorageAllocationSettingData")

    def qemu(self):
        found = self.host.service.qemu_pids(self.guid) or self.host.service.qemu_pids(self.guid.lower())
        assert len(found) == 1, f"{len(found)} QEMU processes of {self.guid}"
        return found[0]

    # Reference points

    def points(self):
        return self.api.associators(self.ref, "Msvm_ReferencePointOfVirtualSystem", "Msvm_VirtualSystemReferencePoint")

    def begin_point(self, kind=LOG, consistency=CRASH):
        setting = self.api.embedded("Msvm_VirtualSystemReferencePointSettingData", ConsistencyLevel=U8(consistency))
        return self.host.call("Msvm_VirtualSystemReferencePointService", "CreateReferencePoint", AffectedSystem=self.ref,
                              ReferencePointSettings=setting, ReferencePointType=U16(kind))

    def point(self, kind=LOG, consistency=CRASH):
        """Takes a reference point and gives back its instance, found the way clients find it: through the job."""
        result = self.begin_point(kind, consistency)
        job = self.host.finish(result)
        if job is None:
            return self.api.get(result["ResultingReferencePoint"])
        made = self.api.associators(self.host.job(result), "Msvm_AffectedJobElement", "Msvm_VirtualSystemReferencePoint")
        assert len(made) == 1, f"the job names {len(made)} reference points"
        return made[0]

    def begin_export(self, point, directory, base=None, disks=None):
        setting = self.api.embedded("Msvm_VirtualSystemReferencePointExportSettingData",
                                    BaseReferencePoint=base.ref.text() if base is not None else None, DisksToExport=disks)
        return self.host.call("Msvm_VirtualSystemReferencePointService", "ExportReferencePoint", ReferencePoint=point.ref,
                              ExportDirectory=str(directory), ExportSettingData=setting)

    def export(self, point, directory, base=None, disks=None, seconds=300):
        """Exports and gives back the finished job."""
        return self.host.finish(self.begin_export(point, directory, base, disks), seconds)

    # The boot sector guest and the Linux guest tell on their console how far they are.

    def console(self):
        """All that the machine wrote to its first serial port so far."""
        for path in Path(self.host.service.dir).rglob("*"):
            if path.is_file() and self.guid.lower() in str(path).lower() and ("console" in path.name or "serial" in path.name) \
                    and path.suffix in (".log", ".txt", ""):
                return path.read_text(errors="replace")
        return ""


def copy_guest(image, directory, name="boot.img"):
    """A guest's disk of its own in a directory of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / name
    return images.copy(image, target)


def let_it_write(machine, path, seconds=30):
    """Waits until the boot sector guest has clearly written to the disk whose active file is somewhere beside `path`."""
    directory = Path(path).parent

    def size():
        return sum(p.stat().st_blocks for p in directory.iterdir() if p.is_file()), max(p.stat().st_mtime_ns for p in directory.iterdir())
    before = size()
    wait_until(lambda: size() != before, seconds, f"a write below {directory}")
    time.sleep(0.3)
