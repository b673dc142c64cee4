//! `kvmms cim`.

use clap::Subcommand;

/// Verbs of `cim`.
#[derive(Debug, Subcommand)]
pub(crate) enum CimVerb {
    /// Get one instance
    #[command(after_help = "\
Examples:
  kvmms cim get 'Msvm_ConcreteJob.InstanceID=\"7F2C…\"'")]
    Get {
        /// Its path
        #[arg(value_name = "PATH")]
        path: String,
        /// The namespace
        #[arg(long, default_value = "root/virtualization/v2")]
        namespace: String,
    },
    /// List the instances of a class and its subclasses
    List {
        /// The class
        #[arg(value_name = "CLASS")]
        class: String,
        /// The namespace
        #[arg(long, default_value = "root/virtualization/v2")]
        namespace: String,
    },
    /// Run a WQL query
    #[command(after_help = "\
Examples:
  kvmms cim query \"SELECT Name, EnabledState FROM Msvm_ComputerSystem WHERE EnabledState = 2\"
  kvmms cim query \"ASSOCIATORS OF {Msvm_ConcreteJob.InstanceID='7F2C…'}\"")]
    Query {
        /// The query
        #[arg(value_name = "WQL")]
        query: String,
        /// The namespace
        #[arg(long, default_value = "root/virtualization/v2")]
        namespace: String,
    },
    /// Call a method
    #[command(after_help = "\
Parameters are NAME=VALUE; one given several times is an array. References are paths, embedded
instances are texts in MOF or XML, @FILE reads the value from a file.

Examples:
  kvmms cim invoke 'Msvm_ComputerSystem.Name=\"7F2C…\"' RequestStateChange RequestedState=2
  kvmms cim invoke Msvm_VirtualSystemManagementService DefineSystem \\
      'SystemSettings=instance of Msvm_VirtualSystemSettingData { ElementName = \"a\"; };'")]
    Invoke {
        /// The instance's path, or the class of a service
        #[arg(value_name = "PATH")]
        path: String,
        /// The method
        #[arg(value_name = "METHOD")]
        method: String,
        /// Parameters
        #[arg(value_name = "NAME=VALUE")]
        parameters: Vec<String>,
        /// The namespace
        #[arg(long, default_value = "root/virtualization/v2")]
        namespace: String,
    },
    /// Show the declaration of a class
    Class {
        /// The class
        #[arg(value_name = "CLASS")]
        class: String,
        /// The namespace
        #[arg(long, default_value = "root/virtualization/v2")]
        namespace: String,
    },
}
