//! The error catalogue: every failure a user can meet, with its number, text, cause, severity and remedy.
//!
//! A number is never reused or given another meaning; arguments are separate from the text, so that a
//! client can match on the number and show its own words.

use serde::{Deserialize, Serialize};

/// What kind of failure it is. The front ends translate a kind into return codes and protocol faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Anything without a kind of its own.
    Failed,
    /// The caller, or the service on a file, lacks a right.
    AccessDenied,
    /// Asked for something that is not served here.
    NotSupported,
    /// Something took too long.
    Timeout,
    /// A value is missing, unknown or out of range.
    InvalidParameter,
    /// Another operation holds the object.
    InUse,
    /// The object's state does not allow it.
    InvalidState,
    /// A value is of another type or class.
    IncorrectType,
    /// The host, a process or a peer does not answer.
    NotAvailable,
    /// Memory, disk space or another resource is used up.
    OutOfResources,
    /// A file that was named does not exist.
    FileNotFound,
    /// An object that was named does not exist.
    NotFound,
    /// The caller cancelled.
    Cancelled,
}

/// How bad a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Worth knowing; the operation succeeded.
    Low,
    /// The operation failed or gave less than asked; nothing else is affected.
    Medium,
    /// A machine, a point or an export is affected.
    High,
    /// Data may be lost without action.
    Fatal,
}

/// What a failure belongs to, after the ErrorType list of CIM_Error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The request or the service itself.
    Software,
    /// A network or a socket.
    Communications,
    /// Files, disks, memory.
    Resource,
    /// Rights.
    Security,
    /// Something not served.
    Unsupported,
}

/// One entry of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The number behind `KVMMS-`.
    pub number: u16,
    /// The kind.
    pub kind: Kind,
    /// The severity.
    pub severity: Severity,
    /// The area.
    pub area: Area,
    /// The text; `{0}`, `{1}` stand for the arguments.
    pub text: &'static str,
    /// The probable cause in a sentence.
    pub cause: &'static str,
    /// What to do about it, one step each.
    pub remedy: &'static [&'static str],
}

macro_rules! catalogue {
    ($( $number:literal $name:ident $kind:ident $severity:ident $area:ident
        $text:literal, $cause:literal, [$($remedy:literal),* $(,)?]; )*) => {
        /// The failures, by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(into = "u16", try_from = "u16")]
        #[expect(missing_docs, reason = "each variant's text, cause and remedy stand in its entry")]
        pub enum Message { $($name),* }

        impl Message {
            /// All failures, in the order of their numbers.
            pub const ALL: &'static [Message] = &[$(Message::$name),*];

            /// The catalogue entry.
            pub const fn entry(self) -> Entry {
                match self {
                    $(Message::$name => Entry {
                        number: $number,
                        kind: Kind::$kind,
                        severity: Severity::$severity,
                        area: Area::$area,
                        text: $text,
                        cause: $cause,
                        remedy: &[$($remedy),*],
                    }),*
                }
            }
        }
    };
}

catalogue! {
    // 1..: objects and parameters
    1 VmNotFound NotFound Medium Software "there is no virtual machine {0}",
        "The machine was deleted, or its identifier is misspelt.", ["List the machines with `kvmms vm list`."];
    2 PointNotFound NotFound Medium Software "there is no reference point {0}",
        "The point was deleted, or its identifier is misspelt.", ["List the points with `kvmms point list`."];
    3 JobNotFound NotFound Low Software "there is no job {0}",
        "The job ended and its time before removal has passed, or its identifier is misspelt.",
        ["Look it up in the history with `kvmms job show`."];
    4 DeviceNotFound NotFound Medium Software "machine {0} has no device or resource {1}",
        "The resource was removed, or its identifier is misspelt.", ["Show the machine with `kvmms vm show`."];
    5 DiskNotFound InvalidParameter Medium Software "machine {0} has no disk {1}",
        "The disk was detached, or its identifier is misspelt.", ["List the disks with `kvmms disk list`."];
    6 InvalidValue InvalidParameter Medium Software "{0} cannot be {1}: {2}",
        "A parameter has a value that is not allowed.", ["Correct the value and call again."];
    7 MissingValue InvalidParameter Medium Software "{0} is required",
        "A required parameter is missing or null.", ["Give the parameter and call again."];
    8 WrongType IncorrectType Medium Software "{0} is not usable: {1}",
        "A parameter is of another class or type than the method takes.", ["Give the class or type the method's page names."];
    9 NotServed NotSupported Medium Unsupported "{0} is not supported by this version of kvmms",
        "The class, method or option exists in the schema but is not served yet.",
        ["See the table in the README for what is served.", "Use the alternative named there, if any."];
    10 NameTaken InvalidParameter Medium Software "{0} {1} exists already",
        "An object with this identifier or path was there before.", ["Choose another, or delete the other one."];
    11 AccessDenied AccessDenied Medium Security "{0} may not {1}",
        "The role of the user does not include this operation.", ["Use an account with the role named, or ask an administrator."];
    12 CollectionNotFound NotFound Medium Software "there is no collection {0}",
        "The collection was deleted, or its identifier is misspelt.", ["List the collections with `kvmms group list`."];
    13 SnapshotNotFound NotFound Medium Software "there is no snapshot {0}",
        "The snapshot was deleted or converted, or its identifier is misspelt.", ["List the snapshots with `kvmms snapshot list`."];
    // 20..: states and conflicts
    20 WrongVmState InvalidState Medium Software "machine {0} is {1}; {2} needs it to be {3}",
        "The machine is in a state that does not allow the operation.", ["Bring the machine into that state and call again."];
    21 AlreadyInState InvalidState Low Software "machine {0} is {1} already",
        "The machine is in the state that was asked for.", ["Nothing needs to be done."];
    22 VmBusy InUse Medium Software "machine {0} is in use by {1}",
        "Another operation that excludes this one is running on the machine.", ["Wait for the other job, or cancel it with `kvmms job cancel`."];
    23 JobFinal InvalidState Low Software "job {0} has ended ({1}) and cannot change any more",
        "The job reached its final state before the request came.", ["Nothing needs to be done."];
    24 JobNotCancellable InvalidState Medium Software "job {0} cannot be cancelled any more",
        "The job has passed the step after which it only goes forward.", ["Wait for it to end."];
    25 JobTransition NotSupported Medium Software "job {0} cannot be {1}",
        "Only exports can be suspended and started again.", ["Wait for the job, or terminate it."];
    26 JobBadRequest InvalidParameter Medium Software "{0} is not a state a job can be asked for",
        "RequestedState takes 2 (start), 3 (suspend), 4 (terminate) or 5 (kill).", ["Use one of these."];
    27 TimeoutNotServed NotSupported Low Unsupported "a timeout for this transition is not supported",
        "TimeoutPeriod was neither null nor zero.", ["Leave TimeoutPeriod out."];
    28 HotPlugRefused InvalidState Medium Software "{0} cannot be changed while machine {1} is running",
        "This kind of device cannot be added, changed or removed while the machine runs.", ["Stop the machine, or use a SCSI controller."];
    // 40..: machines
    40 StartFailed Failed High Software "machine {0} could not be started",
        "QEMU ended before the guest ran.", ["Read the causes below and the machine's log.", "Check the disks and their permissions."];
    41 ProcessEnded Failed High Software "the process of machine {0} ended unexpectedly",
        "QEMU was killed or crashed.", ["Start the machine again: its disks and points are intact.", "Read the machine's log."];
    42 ShutdownTimeout Timeout Medium Software "the guest of machine {0} did not shut down within {1} s",
        "The guest ignores the power button and runs no agent.", ["Shut the guest down from within, or stop the machine hard with `kvmms vm stop`."];
    43 SaveFailed Failed High Software "the state of machine {0} could not be saved",
        "QEMU could not write the state, often for lack of space.", ["Read the causes below.", "Make room, then save again. The machine went on running."];
    44 RestoreFailed Failed High Software "the saved state of machine {0} could not be restored",
        "The state file is damaged or was made by a QEMU this one cannot read.", ["Read the causes below.", "Discard the saved state by stopping the machine, then start it."];
    45 NoFirmware NotAvailable Medium Resource "generation 2 machines need UEFI firmware, which is not installed",
        "No OVMF image was found on this host.", ["Install the package `ovmf`, or use generation 1."];
    46 Hypervisor NotAvailable High Resource "QEMU is not usable on this host",
        "The QEMU system emulator is missing or broken.", ["Install the package `qemu-system-x86`.", "Run `kvmms host show`."];
    47 HostInterrupted Failed Medium Software "{0} was interrupted by a restart of the service",
        "The service ended while the job was running, and this kind of job cannot go on.", ["Start the operation again."];
    48 Cancelled Cancelled Low Software "the operation was {0} by {1}",
        "A client asked for it.", ["Start the operation again when it is wanted."];
    49 Internal Failed High Software "an internal error occurred: {0}",
        "A defect of kvmms.", ["Report it with the service's log of this time."];
    // 60..: images and files
    60 ImageMissing FileNotFound Medium Resource "{0} does not exist",
        "The file was moved or deleted, or its path is misspelt.", ["Check the path on the host that runs kvmmsd."];
    61 PathNotUsable InvalidParameter Medium Software "{0} is not a usable path: {1}",
        "Paths are absolute paths of the Linux host.", ["Give an absolute path such as /var/lib/images/a.qcow2."];
    62 ImageUnreadable Failed High Resource "{0} is not a usable disk image",
        "The file is damaged, encrypted, or of a format that is not served.", ["Check it with `qemu-img check`."];
    63 ImageInUse InUse Medium Resource "{0} is attached to machine {1}",
        "An image can be attached to one machine only.", ["Detach it there first, or make a copy."];
    64 ImageCreate Failed Medium Resource "{0} could not be created",
        "The image tool reported an error.", ["Read the causes below."];
    65 ImageResize Failed Medium Resource "{0} could not be resized",
        "The image tool or QEMU reported an error.", ["Read the causes below."];
    66 ShrinkRefused InvalidParameter Medium Software "{0} has {1} bytes and cannot shrink to {2}",
        "Shrinking would cut off data.", ["Choose a size not below the present one."];
    67 DiskHasPoints InvalidState Medium Software "{0} carries layers of reference points",
        "The base file alone is not the whole disk while points exist.", ["Delete the points first with `kvmms point delete`."];
    68 NoSpace OutOfResources High Resource "there is no space left for {0}",
        "The file system is full.", ["Make room or choose another directory, then start the operation again."];
    69 FileDenied AccessDenied Medium Security "the service may not {0} {1}",
        "The file's owner or mode does not let the service do this.", ["Change the permissions, or choose another place."];
    70 ImageTampered Failed Fatal Resource "{0} was changed by something other than kvmms since {1}",
        "The file was written, replaced or restored behind the service's back.", ["Find out what wrote to it.", "Take a new point and export it in full."];
    71 LayerMissing Failed Fatal Resource "layer {0} of disk {1} is missing",
        "A file beside the disk image was deleted or moved.", ["Put the file back, or restore the disk from an export.", "Or delete the machine with `kvmms vm delete --force`, which says before what is lost."];
    72 ChainTooLong InvalidState Medium Software "disk {0} has {1} layers, {2} are allowed",
        "Too many points keep their content, or too many snapshots are there.", ["Remove the content of points that are no longer needed with `kvmms point remove-data`, or delete snapshots with `kvmms snapshot delete`."];
    // 80..: reference points
    80 PointFailed Failed High Software "reference point {0} of machine {1} could not be created",
        "Read the causes below; the machine runs on as before.", ["Remove the cause and call again."];
    81 AgentAbsent InvalidState Medium Software "the guest agent of machine {0} does not answer",
        "No agent is installed or running in the guest.", ["Install and start qemu-guest-agent in the guest.", "Or ask for a crash-consistent point (ConsistencyLevel 2)."];
    82 FreezeFailed Failed Medium Software "the file systems of machine {0} could not be frozen",
        "The guest agent refused or did not finish in time.", ["Read the causes below.", "Or ask for a crash-consistent point (ConsistencyLevel 2)."];
    83 NoDisks InvalidState Medium Software "machine {0} has no disk to take a point of",
        "The machine has no hard disk, or only read-only ones.", ["Attach a disk first."];
    84 NoAssociatedData InvalidState Medium Software "reference point {0} no longer holds its data",
        "Its data was removed, or its hold ended after the first export.", ["Take a new point and export that one.", "As a base of a later point it is still good."];
    85 BaseNotOlder InvalidState Medium Software "reference point {0} is not older than {1}",
        "A differential export goes from an older point to a newer one.", ["Swap the two, or leave the base out for a full export."];
    86 BaseOfOtherVm InvalidState Medium Software "reference point {0} belongs to machine {1}, not to {2}",
        "Base and point must be of one machine.", ["Choose a base of the same machine."];
    87 BaseWithoutDisk InvalidState Medium Software "base point {0} does not know disk {1}",
        "The disk was attached or replaced after the base point was taken.", ["Leave the base out for a full export, or leave this disk out."];
    88 PointBusy InUse Medium Software "reference point {0} is in use by job {1}",
        "A running export reads the point.", ["Wait for the job, or cancel it."];
    89 LimitIdUnknown InvalidParameter Medium Software "{0} is not a change tracking identifier of {1}",
        "The point was deleted, or the identifier belongs to another disk.", ["Make a full copy, and take a new point to start from."];
    90 RangeOutside InvalidParameter Medium Software "offset {0} lies outside of a disk of {1} bytes",
        "The range asked for begins at or after the end of the disk.", ["Ask for offsets below the size of the disk."];
    91 PointIncomplete InvalidState High Software "reference point {0} was not completed",
        "The service ended while the point was being created.", ["Delete it and take a new one."];
    92 TrackingLost Failed High Software "the changes of disk {0} since point {1} are not known any more",
        "A change map or a layer is damaged or missing.", ["Take a new point and export it in full."];
    93 CommitFailed Failed High Resource "{0} could not be merged into the layer beneath",
        "Writing into the layer beneath failed; nothing is lost, the chain stays as it was.", ["Read the causes below and remove them: merging is tried again by itself."];
    94 DigestMismatch Failed Fatal Resource "{0} differs from its manifest at byte {1}",
        "The file was changed or damaged after the export.", ["Export the point again, or use another copy."];
    95 SnapshotFailed Failed High Software "snapshot {0} of machine {1} could not be created",
        "Read the causes below; the machine goes on as before.", ["Remove the cause and call again."];
    96 SnapshotIsRecovery InvalidState Medium Software "snapshot {0} is a recovery snapshot and cannot be {1}",
        "Recovery snapshots belong to a backup that has not ended.", ["Convert it with ConvertToReferencePoint, then delete the reference point."];
    97 SnapshotNotRecovery InvalidState Medium Software "snapshot {0} is not a recovery snapshot",
        "Only recovery snapshots (SnapshotType 32768) become reference points.", ["Take a recovery snapshot, or a reference point at once."];
    98 SnapshotBusy InUse Medium Software "snapshot {0} is in use by job {1}",
        "A running export reads the snapshot or builds on it.", ["Wait for the job, or cancel it."];
    99 SnapshotOfOtherVm InvalidState Medium Software "snapshot {0} belongs to machine {1}, not to {2}",
        "Snapshot and machine must belong together.", ["Choose a snapshot of the same machine."];
    // 100..: collections
    100 CollectionHasPoints InvalidState Medium Software "collection {0} has reference points or snapshots",
        "They belong to the collection and go with it only when they are deleted themselves.", ["Delete them first with `kvmms point delete --group` and `kvmms snapshot delete --group`."];
    101 NotAMember InvalidParameter Medium Software "{0} is not a member of collection {1}",
        "It was taken out before, or the identifier is misspelt.", ["Show the members with `kvmms group show`."];
    102 CollectionEmpty InvalidState Medium Software "collection {0} has no machines",
        "A point of a collection needs at least one member.", ["Add machines with `kvmms group add`."];
    103 CollectionPointFailed Failed High Software "{0} of {1} machines of collection {2} failed; nothing was changed",
        "Each failed machine is listed below with its own cause; all others went on unharmed.", ["Remove the causes below and call again."];
    104 MemberFailed Failed High Software "machine {0} could not take part",
        "Read the causes below; the machine runs on as before.", ["Remove the cause and call again."];
    105 MemberTooSlow Timeout High Software "machine {0} did not stand still within {1} ms",
        "Its process is overloaded or waits for storage.", ["Check the load and the storage of the host, then call again."];
    106 BaseWithoutMachine InvalidState Medium Software "base point {0} does not know machine {1}",
        "The machine joined the collection after the base point was taken.", ["Leave the base out for a full export."];
    107 NotOfCollection InvalidState Medium Software "collection point {0} belongs to collection {1}, not to {2}",
        "Base and point must be of one collection.", ["Choose a base of the same collection."];
    108 PointOfCollection InvalidState Medium Software "reference point {0} belongs to collection point {1}",
        "The points of a collection's machines stay together: one without the others would be no instant of the collection.", ["Delete the collection point instead."];
    // 110..: exports and imports
    110 ExportFailed Failed High Software "reference point {0} could not be exported to {1}",
        "Read the causes below; nothing was left in the directory.", ["Remove the cause and export again."];
    111 ExportExists InvalidState Medium Software "{0} already holds an export of reference point {1}",
        "The point was exported to this directory before, or another job is doing it.", ["Choose another directory, or remove the old export."];
    112 ExportDirectory Failed Medium Resource "the directory {0} cannot be used for an export",
        "It cannot be created or written.", ["Check the path and its permissions."];
    113 ManifestUnusable Failed High Resource "{0} holds no complete export",
        "The manifest is missing or damaged: the export was not finished, or files were changed.", ["Export again."];
    114 ImportFailed Failed High Software "the export in {0} could not be imported",
        "Read the causes below; no machine was created.", ["Remove the cause and import again."];
    115 ChainIncomplete Failed High Resource "the base export of {0} is not where its manifest says: {1}",
        "A differential export needs the exports it builds on.", ["Put the base export beside it, in the place the manifest names."];
    116 VerifyFailed Failed Fatal Resource "the export in {0} is not what its manifest says",
        "A file was changed or damaged after the export.", ["Export the point again, or use another copy."];
    120 SnapshotIncomplete InvalidState High Software "snapshot {0} was not completed",
        "The service ended while the snapshot was being created.", ["Take a new one."];
    121 ApplyFailed Failed High Software "snapshot {0} could not be applied to machine {1}",
        "Read the causes below; the machine is as it was before.", ["Remove the cause and call again."];
    122 LayersWouldBeLost InvalidState Medium Software "disk {0} is not part of snapshot {1} but carries layers of points",
        "Applying the snapshot would take the disk, and with it those points, out of the machine.", ["Delete the disk's points, or detach the disk, first."];
    123 SystemExportFailed Failed High Software "machine {0} could not be exported to {1}",
        "Read the causes below; nothing was left in the directory.", ["Remove the cause and export again."];
    124 PlannedUnfit InvalidState Medium Software "planned machine {0} does not fit this host: {1} reasons",
        "Each reason is listed below.", ["Change the planned machine, or the host, and call again."];
    125 AdoptFailed Failed Medium Software "reference point {0} could not be taken over by machine {1}",
        "Read the causes below; nothing was changed.", ["Restore the machine from exactly that export first, and do not start it before.", "Or take a new point and export it in full."];
    126 RepairImpossible Failed High Software "the changes of disk {0} since point {1} are not known, and its hashes at that point are not known either",
        "A file of the disk was changed by something other than kvmms, and neither kept hashes nor a complete export of the base point can be read.",
        ["Export the point in full: leave the base out.", "Or put the exports of the base point back where they were, and export again."];
    127 ExportRepaired Failed Low Software "the changed blocks of {0} were found by comparing hashes: {1}",
        "A file of the disk was changed by something other than kvmms. The export is exact; its tracking was not to be trusted.",
        ["Find out what wrote to the file.", "Nothing else needs to be done."];
    128 ExportedWhole Failed Low Software "{0} was exported whole instead of as a difference: {1}",
        "A file of the disk was changed by something other than kvmms. The export is exact and needs no base.",
        ["Find out what wrote to the file.", "Set tampering_policy to repair to have only changed blocks exported."];
    129 AuditImpossible InvalidState Medium Software "reference point {0} cannot be audited against {1}: {2}",
        "A proof needs the content of both points: in layers, or for the older one in an export that is still there.", ["Audit a point before its content is merged, against one that is held or whose exports are where they were written.", "Log-based points keep their content."];
    130 AuditMissed Failed Fatal Software "the change map of disk {0} between points {1} and {2} missed {3} bytes: {4}",
        "The map was damaged, or something wrote to the disk without being tracked: a differential export across these points lacks the change.", ["Export the newer point in full, and discard differential exports that stand on the older one.", "Report it with the job's errors and the map files."];
    131 CleanFailed Failed Medium Resource "{0} findings could not be cleaned",
        "Files could not be deleted, or a process could not be ended; everything else was cleaned.", ["Read the causes below, and check again with `kvmms host check`."];
    132 CollectionNotResumed Failed High Software "{0} of {1} machines of collection {2} could not go on after they were saved for a snapshot",
        "The snapshot is there; a machine named below may still be saved, and nothing of it is lost.", ["Read the causes below, then start the machines that are saved."];
    133 SnapshotOfCollection InvalidState Medium Software "snapshot {0} belongs to snapshot {1} of a collection",
        "The snapshots of a collection's machines stay together: one without the others would be no instant of the collection.", ["Call the same method of the collection's snapshot instead."];
    134 SnapshotImportFailed Failed High Software "the snapshots in {0} could not be imported into planned machine {1}",
        "Read the causes below; the planned machine is as it was.", ["Remove the cause and call again, or realize the machine without snapshots."];
    135 CollectionSnapshotExportFailed Failed High Software "snapshot {0} of a collection could not be exported to {1}",
        "Read the causes below; nothing was left in the directory.", ["Remove the cause and export again."];
    136 PointNotExported InvalidParameter Medium Software "{0} holds no export of point {1}; it holds {2}",
        "The point was never exported to this place, or it is named otherwise there.",
        ["Name one of the points listed, by its GUID, name or instant (UTC).", "Or give the directory that holds its export."];
    137 PointUnclear InvalidParameter Medium Software "{1} means several exports in {0}: {2}",
        "Several exported points have this name or fit this instant.", ["Name the point by its GUID."];
    138 BootFailed Failed High Software "{0} of {1} machines restored from {2} did not come up",
        "Each of them is listed below with its own cause; the machines the exports were made of are not touched.",
        ["Read the causes below, and the console texts in `kvmms job show`.", "Give slow guests more time with --wait."];
    139 NoSignOfLife Timeout High Software "the machine restored from {0} gave no sign of life within {1} s: {2}",
        "Its disks hold nothing that boots, its guest needs more time, or it speaks neither on its first serial port nor by a guest agent.",
        ["Read the console text in `kvmms job show`.", "Give it more time with --wait.", "Let the guest use its first serial port as a console, or install qemu-guest-agent in it."];
    // 140..: what lies beneath
    140 Qmp Failed Medium Software "QEMU refused {0}: {2} ({1})",
        "QEMU's own message tells the cause.", ["Read the causes below, if any, and the machine's log."];
    141 QemuGone NotAvailable High Software "the QEMU process is gone: {0}",
        "QEMU was killed or crashed.", ["Start the machine again."];
    142 Deadline Timeout Medium Software "no answer to {0} within {1}",
        "The process is stopped, overloaded, or waits for storage.", ["Check the host's load and storage."];
    143 Os Failed Medium Resource "{0}: {1} (os error {2})",
        "The operating system refused the call.", ["Remove the cause it names."];
    144 Tool Failed Medium Resource "{0} failed: {1}",
        "The tool's own message tells the cause.", ["Remove the cause it names."];
    145 Block Failed Medium Resource "{0}",
        "The block data plane reported it.", ["Read the causes below."];
    146 Driver Failed Medium Software "{0}",
        "The machine driver reported it.", ["Read the causes below."];
    147 Store Failed Fatal Resource "the state store failed: {0}",
        "The service could not make a change durable, so it was not made.", ["Check the file system of the state directory."];
    148 AgentRefused Failed Medium Software "the guest agent refused {0}: {1}",
        "The agent's own message tells the cause.", ["Look into the guest."];
    149 HostLacks NotSupported Medium Unsupported "not available here: {0}; {1}",
        "This host, or its QEMU, lacks something the request needs.", ["Install what is missing, or ask for something else.", "Run `kvmms host show`."];
    // 150..: restoring
    150 CollectionIncomplete InvalidState Medium Software "{0} does not hold the exports of all machines of the collection's point {1}; missing: {2}",
        "Some machines were left out of the export, or their directories are elsewhere.", ["Bring the missing exports into the directory.", "Or import the machines that are there one by one: `kvmms import`."];
    // 160..: jobs that are told to end
    160 JobEnding InvalidState Low Software "job {0} was told to end and cannot be {1} any more",
        "What it began is being taken back.", ["Wait until it has ended, or kill it."];
    161 ServiceEnding NotAvailable Medium Software "the service is ending and starts nothing new",
        "It was told to stop; jobs under way go on at its next start.", ["Ask again when it has started."];
    162 Overtaken InvalidState Low Software "{0} machine {1} was overtaken by a later request to turn it off",
        "The machine was asked to be turned off while its guest was shutting down; that was carried out.", ["Start the machine if it is to run."];
    163 MachineSilent NotAvailable High Software "the process of machine {0} does not answer",
        "QEMU is stopped, overloaded or waits for storage. It is looked for again and again; nobody touches the machine's files meanwhile.",
        ["Wait, and look at the host's load and storage.", "Or end the process by hand: its number is in qemu.pid in the machine's run directory."];
    // 170..: what an export may touch
    170 PathRefused AccessDenied Medium Security "{0} is not used: {1}",
        "Somebody else could make the name stand for another file: it is a link, no plain file, or lies where others may exchange it.",
        ["Name the place itself instead of a link to it.", "Use a directory that belongs to the user the service runs as and that others cannot write to.", "Or set allow_foreign_directories in the configuration, when everybody who can write there is trusted."];
    171 OutsideRoots AccessDenied Medium Security "{0} lies outside of the directories for {1}: {2}",
        "The configuration names the directories that may be used; without it system directories and the service's own are left alone.",
        ["Choose a directory beneath one of them.", "Or add it to the key in the configuration and start the service again."];
    172 ForeignFile Failed Medium Resource "{0} is there already, and this export did not make it",
        "A file of that name was in the directory before, or somebody put it there meanwhile. It was left as it is.",
        ["Look what it is and move it away, or export into another directory."];
    173 ExportBusy InUse Medium Software "point {0} is being exported to {1} by job {2}",
        "One directory takes each point once, and another job is at it or still takes back what it had written.",
        ["Wait for the job, or cancel it with `kvmms job cancel`."];
    174 ExportLeft Failed High Resource "what the export had written to {0} could not all be deleted",
        "The directory cannot be reached or written to any more.",
        ["Read the causes below.", "Once it can be reached again, `kvmms host check` lists what was left there."];
    // 190..: requests and references
    190 UnknownName InvalidParameter Medium Software "{0} has no {1} {2}",
        "A name is misspelt, or belongs to another class or method. What nobody would read is never passed over.",
        ["Correct the name, or leave it out; `kvmms cim class` shows the names of a class and its methods."];
    191 KeyMissing InvalidParameter Medium Software "a reference to {0} needs its key {1}",
        "Without this key the reference could name any object of the class.", ["Give all keys of the object, as it was enumerated."];
    192 KeyMismatch NotFound Medium Software "there is no {0} with {1} {2}: it is {3}",
        "The keys of the reference do not belong together, so it names no object.", ["Give the keys of the object as it was enumerated."];
    193 ObjectNotFound NotFound Medium Software "there is no object {0}",
        "The object was deleted, or its path is misspelt.", ["Enumerate the class and take the path from there."];
    194 DanglingReference InvalidParameter Medium Software "{0} names nothing that is there: {1}",
        "The object that a setting names was deleted, or its path is misspelt.", ["Give the path of an object that exists, or leave the setting out."];
    195 AmbiguousPath InvalidParameter Medium Software "{0} names {1} objects",
        "Some keys are missing.", ["Give all keys of the object."];
    196 UnprintableName InvalidParameter Medium Software "{0} cannot be {1}: it holds {2} at character {3}",
        "Characters that steer terminals, or turn the direction of text, make one name look like another.",
        ["Leave the character out."];
    197 CollectionExportFailed Failed High Software "{0} of {1} machines failed: {2} of a collection could not be exported to {3}",
        "Each machine that failed is listed below with its own cause; nothing was left in the directory.", ["Remove the causes below and export again."];
    // 200..: what guests and their hosts do
    200 GuestLacksRoom OutOfResources High Resource "machine {0} cannot run: there is no room for what its guest writes to {1}",
        "The file system of the disk, or of the layer on it, is full. The guest stands still and nothing of what it wrote is lost.", ["Make room on that file system: a machine that was running goes on by itself within a minute.", "A machine that was paused is resumed with `kvmms vm resume`."];
    201 GuestDiskFails Failed High Resource "machine {0} cannot run: the storage of {1} fails",
        "The operating system refused what the guest wrote. The guest stands still and nothing of what it wrote is lost.", ["Mend the storage; the causes below name the error.", "Then resume the machine: the request is repeated."];
    202 BootUnknown NotFound Low Software "nothing is known of the host's boot {0}",
        "The service has not been started in it.", ["Nothing needs to be done."];
    203 GuestsStillRun Timeout High Software "{0} of {1} machines did not end within {2} s while the host went down",
        "Something else worked on them, or their processes do not end.", ["Read the causes below.", "Give the machines more time: host_shutdown_seconds, and the stop timeout of the service's unit."];
    204 MachineStillRuns Failed High Software "machine {0} could not be ended",
        "Neither of the ways its settings allow has worked in time.", ["Read the causes below."];
    // 215..: what a person could lose
    215 NewerLayers InvalidState High Resource "{0} is not the whole disk: newer layers lie on it that no machine of this service has: {1}",
        "The image was in use by another service or a machine that is gone; what was written after its points were taken is in the layers.",
        ["Take the layers over together with the image: `kvmms disk adopt-layers`.", "Or end the service that has them, or move them elsewhere if they are not wanted: then the image is what it was at the oldest point."];
    216 LayersNotAdoptable InvalidState High Resource "the layers on {0} cannot be taken over: {1}",
        "Only a line of whole layers that nobody else has can become a disk.", ["Remove the cause and call again; nothing was changed."];
    217 QuarantineUnusable Failed Medium Security "{0} is no directory that only the service can write in",
        "Something of the name of the quarantine is there and is not ours.", ["Look what it is and move it away, then clean again."];
    // 230..: state that lost its end
    230 StoreBehind Failed Fatal Resource "the state store {0} ends at revision {1}, and {2} were acknowledged",
        "Its log was removed, it was cut or damaged, or it was replaced by an older copy. Nothing was changed.",
        ["Put the file and its -wal file back as they were, if you have them.", "Or let `kvmmsd recover` rebuild it from its last copy and from the layers; it keeps what is there now and says what is lost."];
    231 StoreDamaged Failed Fatal Resource "the state store {0} cannot be used: {1}",
        "The file is damaged, or it is no store of kvmms. Nothing was changed.",
        ["Check the disk it lies on.", "Let `kvmmsd recover` rebuild it from its last copy and from the layers; it keeps what is there now and says what is lost."];
    232 StoreExchanged Failed Fatal Resource "the state store {0} is not the one that was here, of which {1} revisions were acknowledged",
        "Another store was put in its place. Nothing was changed.",
        ["Put the right file back, together with its -wal and .revision files.", "Or let `kvmmsd recover` rebuild it."];
    // 240..: images and imports that are not trusted
    240 NotAFile InvalidParameter Medium Security "{0} is {1}, not a file",
        "Images are regular files, or block devices below /dev; what belongs to an export is a regular file below its directory. FIFOs, sockets, character devices, directories and links to devices are not opened.", ["Name the file itself."];
    241 ImageRefused AccessDenied High Security "the image {0} is not opened: {1}",
        "What its header says would make QEMU open other files of this host. A guest can write such a header to its disk, and so can whoever made the image.", ["Do not use the image before you know who wrote its header.", "Where it is yours: copy it on a machine that may be lost, `qemu-img convert -O qcow2`, and use the copy."];
    242 BackingOutside AccessDenied High Security "{0} lies on {1}, which is outside of {2}",
        "The header of an image names the file beneath it, and only files below the directories for images are opened for that.", ["Move the file beneath it there, and let the header name it: `qemu-img rebase -u`.", "Or add its directory to the directories for images in the configuration."];
    243 FormatContradiction InvalidState High Security "{0} was used as {1} before and {2}",
        "The file was replaced by one of another format, or a guest wrote the mark of that format to its disk.", ["Where the file was replaced on purpose, give the new one another name.", "Otherwise do not use it before you know who wrote it."];
    244 ImageLoop InvalidState Medium Security "{0} cannot be opened: {1} lies on itself",
        "The backing files named in the headers form a ring.", ["Name the right file in the header: `qemu-img rebase -u`."];
    245 ExportDamaged Failed Fatal Security "{0} is not what was exported: {1}",
        "The file was changed, exchanged with another one, or damaged after the export.", ["Use another copy of the export.", "See all that is wrong with it: `kvmms verify`."];
    246 ConfigRefused IncorrectType High Security "the configuration {0} is not taken over: {1}",
        "It was changed after the export, or made by something else than kvmms.", ["Use another copy of the export.", "Or make a machine by hand, and attach the exported images to it."];
    // 260..: confinement
    260 MachineUsersSpent OutOfResources Medium Resource "every user from {0} to {1} has been given to a machine",
        "Each machine's QEMU runs as a user of its own, whose number is never given again.", ["Configure another range: `machine_user_first` and `machine_user_count`.", "Or run QEMU as the service's own user: `confinement = \"sandbox\"`."];
    261 MachineUsersUnreadable Failed Medium Software "{0} does not hold a number",
        "The file keeps the next user a machine is given, so that no number is given twice; something else wrote to it.", ["Write into it a number above every uid of the range that any file's access list or owner names.", "Or configure another range: `machine_user_first`."];
    262 MachineUserTaken InUse Medium Resource "the users of machines, {0} to {1}, are not free: {2}",
        "Each machine's QEMU runs as a user that nothing else on the host may be.", ["Configure another range: `machine_user_first` and `machine_user_count`."];
    // 275..: limits of the wire
    275 ConnectionsTaken OutOfResources Medium Communications "{0} may have {1} connections, and has them open",
        "A client opens connections without closing them, or many clients share an address.",
        ["Close connections that are not needed and try again in some seconds.", "Raise max_connections or max_connections_per_address in [limits] of the configuration.", "The local socket, which `kvmms` uses on this host, is not affected."];
    276 TooManyGuesses AccessDenied Medium Security "too many wrong passwords came from here or for this user; none is looked at for {0} s",
        "Somebody guesses a password, or a client goes on with one that was changed.",
        ["Wait that long and use the right one.", "The service's log names user and address of each wrong one.", "On this host `kvmms` needs no password: it uses the local socket."];
    277 PasswordChecksBusy OutOfResources Medium Security "too many passwords wait to be checked",
        "Many clients ask to be let in at once; each check takes memory and time on purpose.",
        ["Try again in a second.", "Raise password_checks in [limits] of the configuration."];
    278 TooManyEnumerations OutOfResources Medium Software "{0} enumerations of {1} are open, and no more may be",
        "Clients open enumerations and do not pull them to their end.",
        ["Pull them to their end or release them; those nobody pulls end by themselves.", "Raise enumerations or enumerations_per_user in [limits] of the configuration."];
    279 EnumerationsTooLarge OutOfResources Medium Software "the open enumerations of {0} would hold {1} MiB, and may hold {2}",
        "Clients open enumerations of much and do not pull them to their end.",
        ["Pull them to their end or release them; those nobody pulls end by themselves.", "Ask for fewer instances, with a WHERE, or for fewer properties.", "Raise enumeration_mib or enumeration_mib_per_user in [limits] of the configuration."];
    280 SlowBody Timeout Low Communications "the body of the request did not come within {0} s",
        "The client stopped sending, or the network between is very slow.",
        ["Send it again.", "Raise body_seconds in [limits] of the configuration."];
    281 QueryTooCostly OutOfResources Medium Software "the query was tested against {0} of {1} instances in {2} s and ended there",
        "It has many or large conditions, or very many instances to test.",
        ["Ask by key, such as Name = '...', or for one class rather than its superclass.", "Raise query_seconds in [limits] of the configuration."];
    // 285..: merges of layers
    // 300: the wire's seams
    300 NotDirectly NotSupported Medium Unsupported "instances of {0} are not {1} directly",
        "What stands behind this class is made, changed and deleted by the methods of a service.",
        ["Call the method instead: for machines DefineSystem, ModifySystemSettings, AddResourceSettings, ModifyResourceSettings, RemoveResourceSettings and DestroySystem of Msvm_VirtualSystemManagementService.", "For points, snapshots, collections and images call the service of that name; a job is ended with its RequestStateChange."];
    // 320..: machines that move between hosts
    320 HostUnreachable NotAvailable High Communications "host {0} cannot be reached at {1}",
        "It is down, its kvmmsd does not listen for other hosts, or something between the two lets nothing through.",
        ["Look whether kvmmsd runs there and listens on that address: `kvmms host list` there. Unless configured it listens on loopback only.", "Look whether its port (6600 unless configured otherwise) is open from here."];
    321 HostSilent Timeout High Communications "host {0} at {1} does not answer: {2} did not come within {3}",
        "It hangs, it has too much to do, or the network between loses what is sent.", ["Try again.", "Look at the log of kvmmsd there."];
    322 HostDistrusts AccessDenied High Security "host {0} does not trust this one, whose fingerprint is {1}",
        "Each of two hosts has to be told to trust the other.", ["Run `kvmms host trust` there with this host's address, and compare the fingerprint."];
    323 HostUnknown NotFound Medium Security "{0} is no host that this one trusts",
        "Machines move only between hosts that were told to trust each other.", ["`kvmms host list` shows those that are trusted.", "Run `kvmms host trust` here and there."];
    324 HostChanged AccessDenied High Security "what answers at {1} is not host {0}: its fingerprint is {2}, not {3}",
        "It was set up anew, its key was changed, or something else answers at its address.",
        ["Compare the fingerprint with what `kvmms host list` shows there.", "Only where they are equal: `kvmms host trust` again."];
    325 LinkBroke NotAvailable High Communications "the link to host {0} broke",
        "The network, or kvmmsd there, went away.", ["Try again: what has arrived is not sent again."];
    326 LinkGarbled Failed High Communications "host {0} says what cannot be understood: {1}",
        "The two services are of versions that do not fit.", ["Use the same version of kvmms on both hosts."];
    327 HostBusy NotAvailable Medium Communications "host {0} has as many links to other hosts as it takes",
        "Many machines move at once.", ["Try again later."];
    328 HostKeyUnusable Failed High Security "the key of this host in {0} cannot be used: {1}",
        "The file is damaged, or the service may not read it.", ["Put the files back from a copy.", "Or remove both: a new pair is made, and every other host has to trust it anew."];
    329 ListenFailed NotAvailable High Communications "it cannot be listened for other hosts at {0}: {1}",
        "Something else uses the port, or the address is none of this host's.", ["Configure another address or port."];
    330 PeerSaid Failed High Software "host {0} says:",
        "What stands below was said by that host, and is about what is there.", ["Follow the remedies below on that host."];
    331 MoveFailed Failed High Software "machine {0} was not moved to {1}",
        "The cause below did not allow it. The machine is here as it was, unless another cause says otherwise.", ["Remove the causes below and try again: what has arrived is not sent again."];
    332 MoveNotServed NotSupported Medium Unsupported "machine {0} cannot be moved so: {1}",
        "This is not served.", ["Do what the text says."];
    333 MovesDisabled NotAvailable Medium Software "host {0} takes no machines of others",
        "Moves are disabled there.", ["Set EnableVirtualSystemMigration of its migration service."];
    334 UnfitThere InvalidState High Resource "machine {0} cannot come to host {1}; reasons: {2}",
        "Each reason stands below.", ["Remove the reasons."];
    335 PlaceTaken InUse High Resource "there is something else at {0}",
        "A file of a machine that comes would take the place of one that is there.", ["Let it go elsewhere: another directory, or another name for the image.", "Where it may be replaced: AllowOverwriteExistingFile."];
    336 MachineThere InUse High Software "there is a machine {0} with the identifier {1} already",
        "It was imported, moved or restored here before.", ["Delete the one that is not wanted."];
    337 MachineComing InUse Medium Software "machine {0} is coming from host {1} already",
        "Another move of it has not ended.", ["Wait for its end, or stop its job."];
    338 NoRoomThere OutOfResources High Resource "there is no room for machine {0} in {1}: {2} bytes are needed and {3} are free",
        "What other machines that come were promised counts as taken.", ["Make room.", "Let the images go elsewhere."];
    339 CargoRefused AccessDenied High Security "what comes with machine {0} is refused: {1}",
        "A source may bring only what belongs to the machine.", ["Use the same version of kvmms on both hosts.", "Where they are: do not trust that host before you know why."];
    340 MoveUnknown NotFound Medium Software "nothing is known of the move {0}",
        "It was never begun here, or it is long over.", ["Start it again."];
    341 MoveEnded InvalidState Medium Software "the move of {0} has ended",
        "It was stopped or failed.", ["Start it again: what has arrived is not sent again."];
    342 MoveStopped Cancelled Medium Software "the move of {0} was ended on host {1} by {2}",
        "Somebody stopped it, or its source gave it up.", ["Start it again if it is wanted."];
    343 SourceSilent Timeout High Communications "host {0}, from which {1} comes, was not heard for {2} s",
        "It, or the network between, went away. The machine is still there.", ["Start the move again: what has arrived is not sent again."];
    344 FileDiffers Failed High Resource "what has arrived at {0} is not what was sent",
        "It was damaged on its way or on the disk, or changed meanwhile.", ["Try again: it is sent anew.", "Where it happens again, check the disk it lies on."];
    345 FileChanged InUse High Resource "{0} changed while it was read",
        "Something else writes to a file of a machine that moves.", ["Find out what writes to it, then try again."];
    346 MachineGranted InvalidState Fatal Software "machine {0} was granted to host {1} and must not run here",
        "Only one of two hosts may run it, and this one has given it up.", ["Look whether it runs there.", "Where that host is lost, or says that it never had it: `kvmms migrate resolve`."];
    347 MoveInDoubt NotAvailable Fatal Communications "nobody knows whether host {0} has the machine: it was granted, and no answer came",
        "The link or the host went away in the moment of the hand-over. The machine stands still here.",
        ["Bring the host or the network back: the move then ends by itself.", "Where that is not possible, look whether the machine runs there, and decide: `kvmms migrate resolve`."];
    348 NotInDoubt InvalidState Low Software "there is nothing to be decided about machine {0}",
        "It does not move, or its move goes on by itself.", ["Nothing needs to be done."];
    349 MemoryOutrun Failed High Resource "the guest changes {0} bytes of its memory in a second and {1} can be sent: it would stand still for {2} ms",
        "It was slowed down as far as that is possible, and still changes its memory faster than it goes over the link.",
        ["Move it when it has less to do, or over a faster link.", "Allow more: a higher Bandwidth, or no CancelIfBlackoutThresholdExceeded."];
    // 350..: what a host lets in
    350 AddressClosed NotAvailable Medium Communications "host {0} takes no machines at {1}: {2}",
        "It was told to take machines over certain networks only, and this address of it is in none of them.",
        ["Reach it at one of the addresses in MigrationServiceListenerIPAddressList there: DestinationIPAddressList, or `kvmms migrate --address`.", "Or add the network there with AddNetworkSettings."];
    351 DiskOutrun Failed High Resource "the guest writes faster than its disks are copied: {0} bytes are still to be copied, and for {1} s it did not become less",
        "What the guest writes to its disks has to reach the other host while it goes on writing.",
        ["Move it when it writes less, or over a faster link.", "Allow more: a higher Bandwidth, or none.", "Or turn it off, or save it: then its files are copied as they are."];
    // 360..: how migration is asked for
    360 MigrationNetworkNotFound NotFound Medium Software "there is no migration network {0}",
        "The network was removed, or its identifier is misspelt.",
        ["List the networks with `kvmms cim list Msvm_VirtualSystemMigrationNetworkSettingData`."];
    361 MigrationNetworkTaken InvalidParameter Medium Software "the migration network {0} is there already",
        "A network with the same subnet and prefix was added before, or stands twice in the list.",
        ["Change the metric of the one that is there with ModifyNetworkSettings, or remove it first."];
    362 TransportRefused NotSupported Medium Unsupported "machines do not move over {0}: {1}",
        "TransportType names a way that exists on Hyper-V only.",
        ["Leave TransportType at 5 (TCP), as the template of the MigrationType has it: what moves is inside TLS with certificates of both hosts.", "Memory is compressed with EnableCompression."];
    363 MoveSettingUnserved NotSupported Medium Unsupported "a move does not honour {0}: {1}",
        "The setting exists in the schema, and moving without it would be something else than was asked for.",
        ["Leave the property out, or null.", "Move the machine first and change it at the destination with ModifySystemSettings and ModifyResourceSettings."];
    364 MigrationOff InvalidState Medium Software "moves are switched off on host {0}",
        "EnableVirtualSystemMigration of the migration service's settings is false, or the service was stopped.",
        ["Switch them on with StartService of Msvm_VirtualSystemMigrationService or with ModifyServiceSettings."];
    365 IncompatibleHost NotSupported Medium Resource "machine {0} of host {1} cannot run on host {2}: {3}",
        "The two hosts differ in something the machine depends on.",
        ["Move it to a host with the same or a newer QEMU, and the same acceleration.", "Or export it here and import it there: imported machines start anew."];
    366 CompatibilityUnreadable InvalidParameter Medium Software "the compatibility information cannot be read: {0}",
        "It was cut off, or made by something else than GetSystemCompatibilityInfo of a kvmms.",
        ["Get it again from the host of the machine and pass the bytes on as they are."];
    // 380: instants and collections
    380 CollectionFull InvalidParameter Medium Software "collection {0} would have {1} machines, and at most {2} fit into one",
        "Whatever is done to an instant of a collection is written down for all its members in one transaction, which holds so many records.", ["Make a second collection, or take machines out that need no common instant with the others: `kvmms group remove`."];
    // 390: Negotiate
    390 TooManyHandshakes AccessDenied Medium Security "a connection may begin {0} handshakes, and this one began more",
        "A client goes on with a wrong password, or begins handshakes and ends none.",
        ["Connect again, with the right password.", "The service's log names user and address of each wrong one."];
    391 RequestUnsealed AccessDenied Medium Security "the request came in the clear over plain HTTP, from a caller who authenticated by Negotiate",
        "Negotiate keeps passwords off the network; what is said afterwards would be open to everybody in between.",
        ["Have the client seal its messages: pypsrp with encryption='auto', pywinrm with message_encryption='auto', WinRM with AllowUnencrypted=false.", "Or use https."];
    392 RequestUnopened AccessDenied Medium Security "the sealed request could not be opened",
        "It was changed, cut or sent twice on its way, or the client seals with the keys of another connection.",
        ["Connect again: each connection has its own keys, and its messages are counted.", "Where that does not help, look for what sits between client and service."];
}

impl From<Message> for u16 {
    fn from(message: Message) -> u16 {
        message.entry().number
    }
}

impl TryFrom<u16> for Message {
    type Error = String;

    fn try_from(number: u16) -> Result<Self, String> {
        let found = Message::ALL
            .iter()
            .copied()
            .find(|m| m.entry().number == number);
        found.ok_or_else(|| format!("the error catalogue has no number {number}"))
    }
}

impl Message {
    /// How many arguments its text has.
    pub const fn arity(self) -> usize {
        let text = self.entry().text.as_bytes();
        let (mut at, mut arity) = (0, 0);
        while at + 2 < text.len() {
            if text[at] == b'{' && text[at + 1].is_ascii_digit() && text[at + 2] == b'}' {
                let argument = (text[at + 1] - b'0') as usize;
                if argument >= arity {
                    arity = argument + 1;
                }
            }
            at += 1;
        }
        arity
    }

    /// The identifier shown to users and kept stable: `KVMMS-0042`.
    pub fn id(self) -> String {
        format!("KVMMS-{:04}", self.entry().number)
    }

    /// The failure with that identifier (`KVMMS-0042`, `42`).
    pub fn by_id(id: &str) -> Option<Message> {
        let digits = id.trim().to_ascii_uppercase();
        let digits = digits.strip_prefix("KVMMS-").unwrap_or(&digits);
        digits.parse::<u16>().ok()?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_ascending_and_every_entry_is_filled() {
        let numbers: Vec<u16> = Message::ALL.iter().map(|m| m.entry().number).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        for message in Message::ALL {
            let entry = message.entry();
            assert!(!entry.remedy.is_empty(), "{message:?} has no remedy");
            assert!(entry.cause.ends_with('.'), "{message:?}");
            assert!(!entry.text.ends_with('.'), "{message:?}");
            assert_eq!(Message::by_id(&message.id()), Some(*message));
        }
    }
}
