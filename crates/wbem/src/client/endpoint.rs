//! Where a server is.

use std::path::PathBuf;

use super::ClientError;

/// Which certificates are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those of the system.
    #[default]
    System,
    /// Those in a PEM file, and no others.
    Ca(PathBuf),
    /// Any. Whoever is in between can read and change everything.
    Insecure,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A local socket.
    Unix(PathBuf),
    /// Plain HTTP.
    Http {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// HTTP over TLS.
    Https {
        /// Host name or address; the certificate has to carry it.
        host: String,
        /// Port.
        port: u16,
        /// Which certificates are trusted.
        trust: Trust,
    },
}

impl Endpoint {
    /// Reads `unix:/path`, a path, `http://host[:port]`, `https://host[:port]`, or `host[:port]` (which
    /// means https). Ports are 5985 and 5986 where none is told; a path after the host must be `/wsman`.
    pub fn parse(text: &str, trust: Trust) -> Result<Endpoint, ClientError> {
        let bad = |why| ClientError::Endpoint {
            text: text.chars().take(200).collect(),
            why,
        };
        let text = text.trim();
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path.is_empty() {
                true => Err(bad("a path was expected after unix:")),
                false => Ok(Endpoint::Unix(path.into())),
            };
        }
        if text.starts_with('/') || text.starts_with("./") {
            return Ok(Endpoint::Unix(text.into()));
        }
        let (tls, rest) = match text.split_once("://") {
            None => (true, text),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some(_) => return Err(bad("http, https or unix was expected")),
        };
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        if !matches!(path.trim_end_matches('/'), "" | "wsman") {
            return Err(bad("only the path /wsman is known"));
        }
        if place.contains('@') {
            return Err(bad("user and password are given apart"));
        }
        let (host, port) = match place.strip_prefix('[') {
            Some(v6) => {
                let (host, after) = v6.split_once(']').ok_or_else(|| bad("] is missing"))?;
                (host, after.strip_prefix(':'))
            }
            None => match place.rsplit_once(':') {
                // More than one colon without brackets: an address of IPv6 alone.
                Some((host, _)) if host.contains(':') => (place, None),
                Some((host, port)) => (host, Some(port)),
                None => (place, None),
            },
        };
        if host.is_empty() {
            return Err(bad("a host was expected"));
        }
        let port = match port {
            None if tls => 5986,
            None => 5985,
            Some(port) => port.parse().map_err(|_| bad("the port is no number"))?,
        };
        let host = host.to_owned();
        Ok(match tls {
            true => Endpoint::Https { host, port, trust },
            false => Endpoint::Http { host, port },
        })
    }

    /// Whether TLS is spoken there.
    pub fn is_tls(&self) -> bool {
        matches!(self, Endpoint::Https { .. })
    }

    /// The host's name or address; a local socket is on this one.
    pub fn host(&self) -> &str {
        match self {
            Endpoint::Unix(_) => "localhost",
            Endpoint::Http { host, .. } | Endpoint::Https { host, .. } => host,
        }
    }

    /// The URL of the service, for the `To` header and for messages.
    pub fn url(&self) -> String {
        let bracketed = |host: &str| match host.contains(':') {
            true => format!("[{host}]"),
            false => host.to_owned(),
        };
        match self {
            Endpoint::Unix(_) => "http://localhost/wsman".to_owned(),
            Endpoint::Http { host, port } => format!("http://{}:{port}/wsman", bracketed(host)),
            Endpoint::Https { host, port, .. } => {
                format!("https://{}:{port}/wsman", bracketed(host))
            }
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Unix(path) => path.display().fmt(f),
            other => f.write_str(other.url().trim_end_matches("/wsman")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_server_is_read() {
        let url = |text: &str| {
            Endpoint::parse(text, Trust::System)
                .expect(text)
                .to_string()
        };
        assert_eq!(url("unix:/run/kvmms.sock"), "/run/kvmms.sock");
        assert_eq!(url("/run/kvmms.sock"), "/run/kvmms.sock");
        assert_eq!(url("host"), "https://host:5986");
        assert_eq!(url("host:5"), "https://host:5");
        assert_eq!(url("http://h/wsman"), "http://h:5985");
        assert_eq!(url("HTTPS://h:1/"), "https://h:1");
        assert_eq!(url("http://[::1]:80"), "http://[::1]:80");
        assert_eq!(url("::1"), "https://[::1]:5986");
        for bad in [
            "",
            "ftp://h",
            "http://h/x",
            "http://u:p@h",
            "h:x",
            "http://[::1",
            "unix:",
        ] {
            assert!(Endpoint::parse(bad, Trust::System).is_err(), "{bad}");
        }
    }
}
