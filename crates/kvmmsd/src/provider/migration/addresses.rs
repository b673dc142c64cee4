//! Where this host can be reached by others: the addresses behind a listener on all of them, as the kernel lists them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The addresses that others may use to reach these listeners, each once, those of loopback only where there are no others.
pub(super) fn behind(listeners: &[SocketAddr]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for listener in listeners {
        match listener.ip() {
            IpAddr::V4(own) if own.is_unspecified() => found.extend(v4(&read(FIB))),
            IpAddr::V6(own) if own.is_unspecified() => {
                found.extend(v6(&read(IPV6)));
                found.extend(v4(&read(FIB)));
            }
            own => found.push(own),
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|address| seen.insert(*address));
    if found.iter().any(|a| !a.is_loopback()) {
        found.retain(|a| !a.is_loopback());
    }
    found
}

const FIB: &str = "/proc/net/fib_trie";
const IPV6: &str = "/proc/net/if_inet6";

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

/// The addresses the kernel's routing tables call local.
fn v4(table: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in table.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.trim().parse().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = last
        {
            found.push(IpAddr::V4(address));
        }
    }
    found
}

/// The addresses of interfaces, but those that mean something on one link only.
fn v6(table: &str) -> Vec<IpAddr> {
    let addresses = table.lines().filter_map(|line| {
        let digits = line.split_whitespace().next()?;
        let address = Ipv6Addr::from(u128::from_str_radix(digits, 16).ok()?);
        (!address.is_unicast_link_local()).then_some(IpAddr::V6(address))
    });
    addresses.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
     |-- 192.0.2.7
        /32 host LOCAL
Local:
     |-- 192.0.2.7
        /32 host LOCAL
";

    #[test]
    fn local_addresses_are_read_from_the_routing_tables() {
        let shown: Vec<String> = v4(TABLE).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["127.0.0.1", "192.0.2.7", "192.0.2.7"]);
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
            fe80000000000000021122fffe334455 02 40 20 80     eth0\n\
            20010db8000000000000000000000007 02 40 00 80     eth0\n";
        let shown: Vec<String> = v6(table).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["::1", "2001:db8::7"]);
        assert!(v4("nonsense").is_empty() && v6("nonsense\n\n").is_empty());
    }

    #[test]
    fn an_address_that_is_listened_on_is_told_as_it_is() {
        let one = "127.0.0.1:6600".parse().expect("an address");
        assert_eq!(behind(&[one, one]), [one.ip()]);
        assert!(behind(&[]).is_empty());
        let all = "0.0.0.0:6600".parse().expect("an address");
        assert!(behind(&[all]).iter().all(|a| !a.is_unspecified()));
    }
}
