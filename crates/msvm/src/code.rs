//! Return codes of the methods of `root/virtualization/v2`.
//!
//! The numbers from 32768 on are the ones Hyper-V's clients know; the small DMTF codes (1 to 6) are not
//! used by our methods, since clients take 4 for "a job runs".

/// Done; results are in the out parameters and there is no job.
pub const COMPLETED: u32 = 0;
/// DMTF "Not Supported": only from a service's own RequestStateChange, StartService and StopService.
pub const DMTF_NOT_SUPPORTED: u32 = 1;
/// Checked and started: the Job parameter names the job.
pub const JOB_STARTED: u32 = 4096;
/// No better code.
pub const FAILED: u32 = 32768;
/// The caller, or the service on the file, lacks the right.
pub const ACCESS_DENIED: u32 = 32769;
/// The option, value or method is not supported.
pub const NOT_SUPPORTED: u32 = 32770;
/// The status cannot be told. Not sent by us.
pub const STATUS_UNKNOWN: u32 = 32771;
/// Out of time before a job began.
pub const TIMEOUT: u32 = 32772;
/// A parameter is missing, malformed or names the wrong kind of thing.
pub const INVALID_PARAMETER: u32 = 32773;
/// Long exclusive work holds the machine.
pub const IN_USE: u32 = 32774;
/// The machine, point or job is in a state that does not allow this.
pub const INVALID_STATE: u32 = 32775;
/// An embedded instance that cannot be read or is of the wrong class.
pub const INCORRECT_DATA_TYPE: u32 = 32776;
/// The machine's process or the host cannot be reached.
pub const SYSTEM_NOT_AVAILABLE: u32 = 32777;
/// Resources are exhausted.
pub const OUT_OF_MEMORY: u32 = 32778;
/// Image and collection methods: no such file.
pub const FILE_NOT_FOUND: u32 = 32779;
/// InitiateShutdown: the guest cannot be asked yet.
pub const NOT_READY: u32 = 32780;
/// InitiateShutdown: the guest is locked and force was not asked for.
pub const MACHINE_LOCKED: u32 = 32781;
/// InitiateShutdown: it is shutting down already.
pub const SHUTDOWN_IN_PROGRESS: u32 = 32782;
/// CheckSystemCompatibilityInfo: the machine cannot run here.
pub const NOT_COMPATIBLE: u32 = 32784;
/// ValidateVirtualHardDisk: a chain of parents that comes back to itself.
pub const CHAIN_CYCLE: u32 = 32787;
/// FindMountedStorageImageInstance: nothing matches.
pub const OBJECT_NOT_FOUND: u32 = 32789;

/// Words for a return code, `None` for a number that is not above.
pub const fn label(code: u32) -> Option<&'static str> {
    Some(match code {
        COMPLETED => "completed",
        DMTF_NOT_SUPPORTED | NOT_SUPPORTED => "not supported",
        JOB_STARTED => "job started",
        FAILED => "failed",
        ACCESS_DENIED => "access denied",
        STATUS_UNKNOWN => "status unknown",
        TIMEOUT => "timeout",
        INVALID_PARAMETER => "invalid parameter",
        IN_USE => "in use",
        INVALID_STATE => "invalid state",
        INCORRECT_DATA_TYPE => "incorrect data type",
        SYSTEM_NOT_AVAILABLE => "system not available",
        OUT_OF_MEMORY => "out of memory",
        FILE_NOT_FOUND => "file not found",
        NOT_READY => "guest not ready",
        MACHINE_LOCKED => "guest locked",
        SHUTDOWN_IN_PROGRESS => "shutdown in progress",
        NOT_COMPATIBLE => "not compatible",
        CHAIN_CYCLE => "cycle in the chain of parents",
        OBJECT_NOT_FOUND => "object not found",
        _ => return None,
    })
}
