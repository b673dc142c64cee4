//! How the migration service of this host is set: whether machines move at all, how many at once, over which networks.
//!
//! One record, which exists from the first change on; until then the configuration says everything.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Result, Vmms, fault, guid};

/// The one record's identifier.
const ID: Uuid = Uuid::nil();
/// Most networks that can be kept.
const MOST_NETWORKS: usize = 64;
/// Most moves at once that can be asked for.
const MOST_MOVES: u32 = 64;

/// What holds until somebody changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrationDefaults {
    /// Whether machines move to and from this host.
    pub enabled: bool,
    /// How many machines may be on their way at once.
    pub machines: u32,
    /// How many moves of storage may go on at once.
    pub storages: u32,
    /// Whether memory is compressed where both sides can.
    pub compression: bool,
}

impl Default for MigrationDefaults {
    fn default() -> Self {
        MigrationDefaults {
            enabled: true,
            machines: 2,
            storages: 2,
            compression: true,
        }
    }
}

/// How the migration service is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationService {
    pub(crate) id: Uuid,
    /// Whether machines move to and from this host.
    pub enabled: bool,
    /// How many machines may be on their way at once; others wait.
    pub machines: u32,
    /// How many moves of storage may go on at once; others wait.
    pub storages: u32,
    /// Whether memory is compressed where both sides can and the move does not say otherwise.
    pub compression: bool,
    /// AuthenticationType as clients set it. Kept for them: hosts know each other by their certificates.
    #[serde(default)]
    pub authentication: u32,
    /// The networks machines come in over; none: all.
    #[serde(default)]
    pub networks: Vec<Network>,
}

/// A network machines come in over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its identifier.
    pub id: Uuid,
    /// An address in it; only its first `prefix` bits say anything.
    pub subnet: IpAddr,
    /// How many bits all its addresses have in common.
    pub prefix: u8,
    /// Lower goes first.
    pub metric: u32,
    /// Words of whoever made it.
    #[serde(default)]
    pub tags: Vec<String>,
}

impl store::Versioned for MigrationService {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}

impl Network {
    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (own, other, width) = match (self.subnet, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (u128::from(own.to_bits()), u128::from(other.to_bits()), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits(), other.to_bits(), 128),
            _ => return false,
        };
        let free = u32::from(width - self.prefix.min(width));
        // A prefix of no bits has all addresses; a shift by the whole width is none in Rust.
        own.checked_shr(free) == other.checked_shr(free)
    }

    fn check(&self) -> Result<()> {
        let most = if self.subnet.is_ipv4() { 32 } else { 128 };
        if self.prefix > most {
            let why = format!("an address of this kind has {most} bits");
            return Err(fault!(InvalidValue, "PrefixLength", self.prefix, why));
        }
        if self.tags.len() > 16 {
            let why = "a network has at most 16 tags";
            return Err(fault!(InvalidValue, "Tags", self.tags.len(), why));
        }
        for tag in &self.tags {
            crate::names::check("Tags", tag)?;
        }
        Ok(())
    }
}

impl MigrationService {
    fn of(defaults: MigrationDefaults) -> Self {
        MigrationService {
            id: ID,
            enabled: defaults.enabled,
            machines: defaults.machines,
            storages: defaults.storages,
            compression: defaults.compression,
            authentication: 0,
            networks: Vec::new(),
        }
    }

    /// Whether hosts that reach this one at `local` are let in.
    pub fn admits(&self, local: IpAddr) -> bool {
        self.networks.is_empty() || self.networks.iter().any(|n| n.contains(local))
    }

    /// Of these addresses of the host those that machines may come to, the best first.
    pub fn order(&self, mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        if self.networks.is_empty() {
            return addresses;
        }
        let metric = |address: &IpAddr| {
            let in_these = self.networks.iter().filter(|n| n.contains(*address));
            in_these.map(|n| n.metric).min()
        };
        addresses.retain(|a| metric(a).is_some());
        addresses.sort_by_key(metric);
        addresses
    }

    fn check(&self) -> Result<()> {
        for (property, value) in [
            ("MaximumActiveVirtualSystemMigration", self.machines),
            ("MaximumActiveStorageMigration", self.storages),
        ] {
            if !(1..=MOST_MOVES).contains(&value) {
                let why = format!("it goes from 1 to {MOST_MOVES}");
                return Err(fault!(InvalidValue, property, value, why));
            }
        }
        if self.networks.len() > MOST_NETWORKS {
            let why = format!("a host keeps at most {MOST_NETWORKS}");
            return Err(fault!(
                InvalidValue,
                "NetworkSettings",
                self.networks.len(),
                why
            ));
        }
        for (at, network) in self.networks.iter().enumerate() {
            network.check()?;
            let earlier = self.networks.iter().take(at);
            let same = |n: &&Network| n.prefix == network.prefix && n.contains(network.subnet);
            if earlier.rev().find(same).is_some() {
                let shown = format!("{}/{}", network.subnet, network.prefix);
                return Err(fault!(MigrationNetworkTaken, shown));
            }
        }
        Ok(())
    }
}

impl Vmms {
    /// How the migration service is set.
    pub fn migration_service(&self) -> MigrationService {
        let stored = self.db.get::<MigrationService>(ID);
        stored.map_or_else(
            |_| MigrationService::of(self.options.migration),
            |service| (*service).clone(),
        )
    }

    /// Sets the migration service, durably. What is on its way goes on.
    pub async fn set_migration_service<R: Send>(
        &self,
        change: impl FnOnce(&mut MigrationService) -> Result<R> + Send,
    ) -> Result<R> {
        self.db
            .change(|draft| {
                // Read within the change: two callers do not undo each other.
                let mut service = match draft.get_mut::<MigrationService>(ID) {
                    Ok(service) => service.clone(),
                    Err(_) => MigrationService::of(self.options.migration),
                };
                let done = change(&mut service)?;
                service.check()?;
                draft.put(service);
                Ok(done)
            })
            .await
    }

    /// Adds networks; says their identifiers.
    pub async fn add_migration_networks(&self, mut new: Vec<Network>) -> Result<Vec<Uuid>> {
        self.set_migration_service(|service| {
            for network in &mut new {
                network.id = Uuid::new_v4();
            }
            let ids = new.iter().map(|n| n.id).collect();
            service.networks.append(&mut new);
            Ok(ids)
        })
        .await
    }

    /// Removes networks: all of them or none.
    pub async fn remove_migration_networks(&self, gone: &[Uuid]) -> Result<()> {
        self.set_migration_service(|service| {
            for id in gone {
                let before = service.networks.len();
                service.networks.retain(|n| n.id != *id);
                if service.networks.len() == before {
                    return Err(fault!(MigrationNetworkNotFound, guid(*id)));
                }
            }
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str, metric: u32) -> Network {
        let (subnet, prefix) = text.split_once('/').expect("a prefix");
        Network {
            id: Uuid::new_v4(),
            subnet: subnet.parse().expect("an address"),
            prefix: prefix.parse().expect("a number"),
            metric,
            tags: Vec::new(),
        }
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        let parsed = texts.iter().map(|t| t.parse().expect("an address"));
        parsed.collect()
    }

    #[test]
    fn addresses_lie_in_a_network_by_their_first_bits() {
        let in_it = |net: &str, address: &str| {
            network(net, 0).contains(address.parse().expect("an address"))
        };
        assert!(in_it("10.1.0.0/16", "10.1.255.1"));
        assert!(!in_it("10.1.0.0/16", "10.2.0.1"));
        assert!(in_it("0.0.0.0/0", "192.0.2.1"));
        assert!(!in_it("0.0.0.0/0", "2001:db8::1"));
        assert!(in_it("::/0", "2001:db8::1"));
        assert!(in_it("192.0.2.7/32", "192.0.2.7") && !in_it("192.0.2.7/32", "192.0.2.6"));
        assert!(in_it("10.0.0.0/8", "::ffff:10.9.9.9"));
    }

    #[test]
    fn addresses_are_told_by_metric_and_those_of_no_network_not_at_all() {
        let mut service = MigrationService::of(MigrationDefaults::default());
        let all = addresses(&["192.0.2.1", "10.0.0.1", "10.1.0.1"]);
        assert_eq!(service.order(all.clone()), all);
        service.networks = vec![network("10.0.0.0/16", 20), network("10.1.0.0/16", 10)];
        assert_eq!(
            service.order(all.clone()),
            addresses(&["10.1.0.1", "10.0.0.1"])
        );
        assert!(!service.admits(all[0]) && service.admits(all[1]));
    }

    #[test]
    fn settings_out_of_range_and_a_network_said_twice_are_refused() {
        let good = || MigrationService::of(MigrationDefaults::default());
        assert_eq!(good().check(), Ok(()));
        let mut none = good();
        none.machines = 0;
        assert!(none.check().is_err());
        let mut wide = good();
        wide.networks = vec![network("10.0.0.0/33", 0)];
        assert!(wide.check().is_err());
        let mut twice = good();
        twice.networks = vec![network("10.0.0.0/8", 0), network("10.9.0.0/8", 5)];
        let told = twice.check().map_err(|f| f.message);
        assert_eq!(told, Err(crate::Message::MigrationNetworkTaken));
        let mut within = good();
        within.networks = vec![network("10.0.0.0/8", 0), network("10.9.0.0/16", 5)];
        assert_eq!(within.check(), Ok(()));
    }
}
