//! What is configured of moves while the service runs.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Result, Vmms, fault};

/// The settings of the migration service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceSettings {
    /// Machines may come and go.
    pub enabled: bool,
    /// How many may move at a time, to and from here.
    pub max_active: u32,
    /// How many may move their disks at a time.
    pub max_active_storage: u32,
    /// 0 CredSSP, 1 Kerberos: shown to clients; hosts prove themselves with certificates.
    pub authentication: u16,
    /// Pack memory by default.
    pub compression: bool,
    /// Over SMB: never.
    pub smb: bool,
    /// Networks that clients named.
    pub networks: Vec<Network>,
}

impl Default for ServiceSettings {
    fn default() -> Self {
        ServiceSettings {
            enabled: true,
            max_active: 2,
            max_active_storage: 2,
            authentication: 1,
            compression: false,
            smb: false,
            networks: Vec::new(),
        }
    }
}

/// A network for moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its identifier.
    pub id: Uuid,
    /// Its number.
    pub subnet: String,
    /// The length of its prefix.
    pub prefix: u8,
    /// Lower ones are preferred.
    pub metric: u32,
    /// Free words.
    pub tags: Vec<String>,
}

/// The settings as they are stored under `migration-settings/<guid>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    pub(crate) id: Uuid,
    pub(crate) settings: ServiceSettings,
}

impl store::Versioned for Stored {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}

/// The settings.
pub fn settings(vmms: &Vmms) -> ServiceSettings {
    let stored = vmms.db.get::<Stored>(Uuid::nil());
    stored.map_or_else(|_| ServiceSettings::default(), |s| s.settings.clone())
}

/// Changes the settings.
///
/// # Errors
/// What `change` says; SMB; the store.
pub async fn set_settings(
    vmms: &Arc<Vmms>,
    change: impl FnOnce(&mut ServiceSettings) -> Result<()> + Send,
) -> Result<()> {
    let now = settings(vmms);
    vmms.db
        .change(|draft| {
            let mut settings = now;
            change(&mut settings)?;
            if settings.smb {
                return Err(fault!(NotServed, "moving machines over SMB"));
            }
            draft.put(Stored {
                id: Uuid::nil(),
                settings,
            });
            Ok(())
        })
        .await
}
