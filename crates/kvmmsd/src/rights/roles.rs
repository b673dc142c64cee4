//! Which role each method of each class needs.
//!
//! The table is total: a method or class that is new in the MOF does not compile until its role is said here. Who may only
//! look names no files: what the service opens for somebody is a deed of the service's, so no method whose parameters
//! name a file or directory is a viewer's.

use msvm::method::Any;
use wbem::Role;

macro_rules! roles {
    ($($class:ident { $($role:ident: $($method:ident),+;)+ })+) => {
        /// The role a method needs.
        pub(crate) fn of(method: Any) -> Role {
            match method {
                $(Any::$class(method) => {
                    use msvm::method::$class as Method;
                    match method {
                        $($(Method::$method)|+ => Role::$role,)+
                    }
                })+
            }
        }
    };
}

roles! {
    AssignableDeviceService {
        Operator: RequestStateChange;
        Admin: DismountAssignableDevice, MountAssignableDevice, StartService, StopService;
    }
    Battery {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    CimCIMXMLCommunicationMechanism {
        Operator: RequestStateChange;
    }
    CimIndicationService {
        Operator: RequestStateChange;
        Admin: StartService, StopService;
    }
    CimObjectManager {
        Operator: RequestStateChange;
        Admin: StartService, StopService;
    }
    CimObjectManagerCommunicationMechanism {
        Operator: RequestStateChange;
    }
    CimWBEMService {
        Operator: RequestStateChange;
        Admin: StartService, StopService;
    }
    CollectionManagementService {
        Operator: RequestStateChange;
        Admin: AddMember, DefineCollection, DestroyCollection, RemoveMember, RemoveMemberById,
            RenameCollection, StartService, StopService;
    }
    CollectionReferencePointExportJob {
        Viewer: GetError, GetErrorEx;
        Operator: RequestStateChange;
        Admin: KillJob;
    }
    CollectionReferencePointService {
        Operator: CreateReferencePoint, DestroyReferencePoint, ExportReferencePoint, RemoveAssociatedData,
            RequestStateChange;
        Admin: StartService, StopService;
    }
    CollectionSnapshotService {
        Operator: ConvertToReferencePoint, CreateSnapshot, ExportSnapshot, RequestStateChange;
        Admin: ApplySnapshot, DestroySnapshot, StartService, StopService;
    }
    ComputerSystem {
        Operator: RequestStateChange;
        Admin: InjectNonMaskableInterrupt, RequestReplicationStateChange, RequestReplicationStateChangeEx,
            SetPowerState;
    }
    ConcreteJob {
        Viewer: GetError, GetErrorEx;
        Operator: RequestStateChange;
        Admin: KillJob;
    }
    CopyFileToGuestJob {
        Viewer: GetError, GetErrorEx;
        Operator: RequestStateChange;
        Admin: KillJob;
    }
    DVDDrive {
        Operator: RequestStateChange;
        Admin: EnableDevice, LockMedia, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    DiskDrive {
        Operator: RequestStateChange;
        Admin: EnableDevice, LockMedia, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    DisketteController {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    DisketteDrive {
        Operator: RequestStateChange;
        Admin: EnableDevice, LockMedia, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    EmulatedEthernetPort {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    EthernetSwitchExtension {
        Operator: RequestStateChange;
    }
    EthernetSwitchPort {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    ExternalEthernetPort {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    ExternalFcPort {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    FcEndpoint {
        Operator: RequestStateChange;
    }
    FcSwitchPort {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    GpuPartition {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    GuestCommunicationService {
        Operator: RequestStateChange;
        Admin: StartService, StopService;
    }
    GuestFileService {
        Operator: RequestStateChange;
        Admin: CopyFilesToGuest, StartService, StopService;
    }
    GuestServiceInterfaceComponent {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    HeartbeatComponent {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    IDEController {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    ImageManagementService {
        Operator: FindMountedStorageImageInstance, GetVHDSetInformation, GetVHDSnapshotInformation,
            GetVirtualDiskChanges, GetVirtualHardDiskSettingData, GetVirtualHardDiskState, RequestStateChange,
            ValidateVirtualHardDisk;
        Admin: AttachVirtualHardDisk, CompactVirtualHardDisk, ConvertVirtualHardDisk,
            ConvertVirtualHardDiskToVHDSet, CreateVirtualFloppyDisk, CreateVirtualHardDisk, DeleteVHDSnapshot,
            MergeVirtualHardDisk, OptimizeVHDSet, ResizeVirtualHardDisk, SetParentVirtualHardDisk,
            SetVHDSnapshotInformation, SetVirtualHardDiskSettingData, StartService, StopService,
            ValidatePersistentReservationSupport;
    }
    InternalEthernetPort {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    Keyboard {
        Operator: RequestStateChange;
        Admin: EnableDevice, IsKeyPressed, OnlineDevice, PressKey, QuiesceDevice, ReleaseKey, Reset,
            RestoreProperties, SaveProperties, SetPowerState, TypeCtrlAltDel, TypeKey, TypeScancodes,
            TypeText;
    }
    KvmmsExportService {
        Operator: AuditReferencePoint, RequestStateChange, VerifyExport;
        Admin: BootExports, ImportCollectionExport, ImportExport, StartService, StopService;
    }
    KvmmsHostService {
        Viewer: CheckHost;
        Operator: RequestStateChange;
        Admin: AdoptLayers, CleanHost, DestroySystemWithLosses, ShutDownGuests, StartService, StopService;
    }
    KvmmsMigrationService {
        Operator: RequestStateChange;
        Admin: ForgetHost, LookAtHost, PlanMigration, ResolveMigration, StartService, StopService,
            TrustHost;
    }
    KvpExchangeComponent {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    LANEndpoint {
        Operator: RequestStateChange;
    }
    LogicalDisk {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    Memory {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    MetricService {
        Operator: RequestStateChange;
        Admin: ControlMetrics, ControlMetricsByClass, ControlSampleTimes, GetMetricValues,
            ModifyServiceSettings, ShowMetrics, ShowMetricsByClass, StartService, StopService;
    }
    MigrationJob {
        Viewer: GetError, GetErrorEx;
        Operator: RequestStateChange;
        Admin: KillJob;
    }
    MountedStorageImage {
        Admin: DetachVirtualHardDisk;
    }
    NumaNode {
        Operator: RequestStateChange;
    }
    PartitionableGpu {
        Operator: RequestStateChange;
        Admin: SetPowerState;
    }
    PciExpress {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    PersistentMemoryController {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    Physical3dGraphicsProcessor {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    PlannedComputerSystem {
        Operator: RequestStateChange;
        Admin: SetPowerState;
    }
    Processor {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    ProcessorPool {
        Admin: CalculatePossibleReserve;
    }
    Ps2Mouse {
        Operator: RequestStateChange;
        Admin: ClickButton, EnableDevice, GetButtonState, OnlineDevice, QuiesceDevice, Reset,
            RestoreProperties, SaveProperties, SetButtonState, SetPowerState, SetRelativePosition,
            SetScrollPosition;
    }
    RdvComponent {
        Operator: RequestStateChange;
        Admin: EnableDevice, EnableEndPoints, OnlineDevice, QuiesceDevice, Reset, RestoreProperties,
            SaveProperties, SetPowerState;
    }
    ReplicationService {
        Viewer: GetSystemCertificates;
        Operator: RequestStateChange;
        Admin: AddAuthorizationEntry, ChangeReplicationModeToPrimary, CommitFailover,
            CreateReplicationRelationship, GetReplicationStatistics, GetReplicationStatisticsEx,
            ImportInitialReplica, InitiateFailback, InitiateFailover, ModifyAuthorizationEntry,
            ModifyReplicationSettings, ModifyServiceSettings, RemoveAuthorizationEntry,
            RemoveReplicationRelationship, RemoveReplicationRelationshipEx, ResetReplicationStatistics,
            ResetReplicationStatisticsEx, Resynchronize, ReverseReplicationRelationship, RevertFailover,
            SetAuthorizationEntry, SetFailoverNetworkAdapterSettings, StartReplication, StartService,
            StopService, TestReplicaSystem, TestReplicationConnection;
    }
    ResourcePoolConfigurationService {
        Operator: RequestStateChange;
        Admin: CreatePool, DeletePool, ModifyPoolResources, ModifyPoolSettings, StartService, StopService;
    }
    S3DisplayController {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    SCSIProtocolController {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    SecurityElement {
        Operator: RequestStateChange;
    }
    SecurityService {
        Operator: RequestStateChange;
        Admin: GetKeyProtector, ModifySecuritySettings, RestoreLastKnownGoodKeyProtector, SetKeyProtector,
            SetSecurityPolicy, StartService, StopService;
    }
    SerialController {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    SerialPort {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    ShutdownComponent {
        Operator: InitiateShutdown, RequestStateChange;
        Admin: EnableDevice, InitiateReboot, OnlineDevice, QuiesceDevice, Reset, RestoreProperties,
            SaveProperties, SetPowerState;
    }
    StorageJob {
        Viewer: GetError, GetErrorEx;
        Operator: RequestStateChange;
        Admin: KillJob;
    }
    Synth3dVideoPool {
        Admin: CalculateVideoMemoryRequirements;
    }
    Synthetic3DDisplayController {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    Synthetic3DService {
        Operator: RequestStateChange;
        Admin: DisableGPUForVirtualization, EnableGPUForVirtualization, ModifyServiceSettings, StartService,
            StopService;
    }
    SyntheticDisplayController {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    SyntheticEthernetPort {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    SyntheticFcPort {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    SyntheticKeyboard {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    SyntheticMouse {
        Operator: RequestStateChange;
        Admin: ClickButton, EnableDevice, GetButtonState, OnlineDevice, QuiesceDevice, Reset,
            RestoreProperties, SaveProperties, SetAbsolutePosition, SetButtonState, SetPowerState,
            SetScrollPosition;
    }
    TPM {
        Operator: RequestStateChange;
        Admin: ChangeOwnerAuth, EnableDevice, OnlineDevice, QuiesceDevice, RequestTPMStateChange, Reset,
            RestoreProperties, SaveProperties, SetPowerState;
    }
    TerminalConnection {
        Operator: RequestStateChange;
    }
    TerminalService {
        Operator: RequestStateChange;
        Admin: GetInteractiveSessionACL, GrantInteractiveSessionAccess, ModifyServiceSettings,
            RevokeInteractiveSessionAccess, StartService, StopService;
    }
    TimeSyncComponent {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    TransparentBridgingService {
        Operator: RequestStateChange;
        Admin: StartService, StopService;
    }
    VLANEndpoint {
        Operator: RequestStateChange;
    }
    VideoHead {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    VirtualEthernetSwitch {
        Operator: RequestStateChange;
        Admin: SetPowerState;
    }
    VirtualEthernetSwitchManagementService {
        Operator: RequestStateChange;
        Admin: AddFeatureSettings, AddResourceSettings, DefineSystem, DestroySystem, ModifyFeatureSettings,
            ModifyResourceSettings, ModifySystemSettings, RemoveFeatureSettings, RemoveResourceSettings,
            StartService, StopService;
    }
    VirtualFcSwitch {
        Operator: RequestStateChange;
        Admin: SetPowerState;
    }
    VirtualSystemManagementService {
        Viewer: FormatError, GetCurrentWwpnFromGenerator, GetSizeOfSystemFiles, GetSummaryInformation,
            GetVirtualSystemThumbnailImage;
        Operator: ExportSystemDefinition, GetDefinitionFileSummaryInformation, RequestStateChange;
        Admin: AddBootSourceSettings, AddFeatureSettings, AddFibreChannelChap, AddGuestServiceSettings,
            AddKvpItems, AddResourceSettings, AddSystemComponentSettings, DefinePlannedSystem, DefineSystem,
            DestroySystem, DiagnoseNetworkConnection, GenerateWwpn, ImportSnapshotDefinitions,
            ImportSystemDefinition, ModifyDiskMergeSettings, ModifyFeatureSettings,
            ModifyGuestServiceSettings, ModifyKvpItems, ModifyResourceSettings, ModifyServiceSettings,
            ModifySystemComponentSettings, ModifySystemSettings, RealizePlannedSystem,
            RemoveBootSourceSettings, RemoveFeatureSettings, RemoveFibreChannelChap,
            RemoveGuestServiceSettings, RemoveKvpItems, RemoveResourceSettings, RemoveSystemComponentSettings,
            SetGuestNetworkAdapterConfiguration, SetInitialMachineConfigurationData, StartService,
            StopService, TestNetworkConnection, UpgradeSystemVersion, ValidatePlannedSystem;
    }
    VirtualSystemMigrationService {
        Viewer: GetSystemCompatibilityInfo, GetSystemCompatibilityVectors;
        Operator: RequestStateChange;
        Admin: AddNetworkSettings, CheckSystemCompatibilityInfo, CheckVirtualSystemIsMigratable,
            CheckVirtualSystemIsMigratableToHost, CheckVirtualSystemIsMigratableToSystem,
            MigrateVirtualSystemToHost, MigrateVirtualSystemToSystem, ModifyNetworkSettings,
            ModifyServiceSettings, RemoveNetworkSettings, StartService, StopService;
    }
    VirtualSystemReferencePointExportJob {
        Viewer: GetError, GetErrorEx;
        Operator: RequestStateChange;
        Admin: KillJob;
    }
    VirtualSystemReferencePointService {
        Operator: CreateReferencePoint, DestroyReferencePoint, ExportReferencePoint, RemoveAssociatedData,
            RequestStateChange;
        Admin: ImportReferencePointMetadata, StartService, StopService;
    }
    VirtualSystemSnapshotService {
        Operator: ConvertToReferencePoint, CreateSnapshot, RequestStateChange;
        Admin: ApplySnapshot, ClearSnapshotState, DestroySnapshot, DestroySnapshotTree, StartService,
            StopService;
    }
    VssComponent {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
    VssService {
        Operator: RequestStateChange;
        Admin: QueryGuestClusterInformation, StartService, StopService;
    }
    WiFiEndpoint {
        Operator: RequestStateChange;
    }
    WiFiPort {
        Operator: RequestStateChange;
        Admin: EnableDevice, OnlineDevice, QuiesceDevice, Reset, RestoreProperties, SaveProperties,
            SetPowerState;
    }
}
