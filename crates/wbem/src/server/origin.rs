//! Whom a request means and where it comes from: browsers are kept from reaching the service for a page that somebody else wrote.
//!
//! A page can send requests to any address (cross-site request forgery), and to our own once its name is made to point
//! here (DNS rebinding). Browsers tell of both: `Origin` names the page, `Host` the name that was asked for. No client of ours sends an
//! `Origin`; `Host` is one of our addresses or names.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{HOST, ORIGIN};
use hyper::http::request::Parts;
use hyper::{HeaderMap, StatusCode, Version};

/// Why a request is not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    pub(super) status: StatusCode,
    pub(super) why: String,
}

fn foreign(status: StatusCode, why: impl Into<String>) -> Foreign {
    Foreign {
        status,
        why: why.into(),
    }
}

/// Checks the head of a request that came to `local` (nothing for a local socket); `names` are ours besides its address.
pub(super) fn check(
    head: &Parts,
    local: Option<SocketAddr>,
    names: &[String],
) -> Result<(), Foreign> {
    let asked = asked_for(head)?;
    if let Some(origin) = single(&head.headers, ORIGIN.as_str())? {
        let own = origin.split_once("://").map(|(_, host)| host);
        let same =
            matches!((own, &asked), (Some(own), Some(asked)) if own.eq_ignore_ascii_case(asked));
        if !same {
            let why = format!("requests of the page {:?} are not answered", cut(origin));
            return Err(foreign(StatusCode::FORBIDDEN, why));
        }
    }
    let Some(local) = local else {
        return Ok(());
    };
    let Some(asked) = asked else {
        // Before 1.1 there was no Host, nor are there browsers of that age.
        return match head.version {
            Version::HTTP_10 | Version::HTTP_09 => Ok(()),
            _ => Err(foreign(
                StatusCode::BAD_REQUEST,
                "the request has no Host header",
            )),
        };
    };
    let host = without_port(&asked);
    if is_ours(host, local.ip(), names) {
        return Ok(());
    }
    let why = format!(
        "{:?} is no address or name of this service; the configuration's host_names adds names",
        cut(host)
    );
    Err(foreign(StatusCode::BAD_REQUEST, why))
}

/// The host and port asked for; where the request line names one too, both are the same.
fn asked_for(head: &Parts) -> Result<Option<String>, Foreign> {
    let header = single(&head.headers, HOST.as_str())?;
    let line = head.uri.authority().map(|a| a.as_str());
    match (header, line) {
        (Some(header), Some(line)) if !header.eq_ignore_ascii_case(line) => Err(foreign(
            StatusCode::BAD_REQUEST,
            "the request line and the Host header name different hosts",
        )),
        (header, line) => Ok(header.or(line).map(str::to_owned)),
    }
}

/// A header that may stand once.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Foreign> {
    let mut found = headers.get_all(name).iter();
    let unusable = || {
        foreign(
            StatusCode::BAD_REQUEST,
            format!("the header {name} is not usable"),
        )
    };
    let Some(first) = found.next() else {
        return Ok(None);
    };
    if found.next().is_some() {
        return Err(unusable());
    }
    first
        .to_str()
        .map(|t| Some(t.trim()))
        .map_err(|_| unusable())
}

/// Whether a host a client means to talk to is this one. Clients that know no name say `unspecified`.
pub(super) fn is_meant(host: &str, local: Option<SocketAddr>, names: &[String]) -> bool {
    let host = without_port(host);
    host == "unspecified" || local.is_none_or(|local| is_ours(host, local.ip(), names))
}

fn without_port(asked: &str) -> &str {
    if let Some(rest) = asked.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    asked.split(':').next().unwrap_or(asked)
}

fn is_ours(host: &str, local: IpAddr, names: &[String]) -> bool {
    let local = local.to_canonical();
    if let Ok(address) = host.parse::<IpAddr>() {
        let address = address.to_canonical();
        return address == local || names.iter().any(|n| n.parse() == Ok(address));
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    (local.is_loopback() && host.eq_ignore_ascii_case("localhost"))
        || names.iter().any(|name| host.eq_ignore_ascii_case(name))
}

fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(version: Version, headers: &[(&str, &str)]) -> Result<(), u16> {
        let mut request = hyper::Request::post("/wsman").version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let local = "127.0.0.1:5985".parse().ok();
        let names = ["vmhost".to_owned(), "10.1.2.3".to_owned()];
        check(&head, local, &names).map_err(|f| f.status.as_u16())
    }

    #[test]
    fn only_our_addresses_and_names_are_answered() {
        for host in [
            "127.0.0.1:5985",
            "127.0.0.1",
            "localhost:5985",
            "LOCALHOST",
            "vmhost:1",
            "VMHost.",
            "10.1.2.3:5985",
            "[::ffff:127.0.0.1]:5985",
        ] {
            assert_eq!(asked(Version::HTTP_11, &[("Host", host)]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:5985",
            "10.9.9.9",
            "[::1]:5985",
            "",
            "vmhost.evil.example",
            "127.0.0.1.evil.example",
        ] {
            assert_eq!(
                asked(Version::HTTP_11, &[("Host", host)]),
                Err(400),
                "{host}"
            );
        }
        assert_eq!(asked(Version::HTTP_11, &[]), Err(400));
        assert_eq!(asked(Version::HTTP_10, &[]), Ok(()));
        assert_eq!(
            asked(
                Version::HTTP_11,
                &[("Host", "vmhost"), ("Host", "evil.example")]
            ),
            Err(400)
        );
    }

    #[test]
    fn a_page_of_another_host_is_refused() {
        let host = ("Host", "127.0.0.1:5985");
        let from = |origin| asked(Version::HTTP_11, &[host, ("Origin", origin)]);
        assert_eq!(from("http://127.0.0.1:5985"), Ok(()));
        for origin in [
            "http://evil.example",
            "null",
            "",
            "http://127.0.0.1:8080",
            "http://127.0.0.1:5985.evil.example",
            "file://",
        ] {
            assert_eq!(from(origin), Err(403), "{origin}");
        }
        let local = check(
            &hyper::Request::post("/wsman")
                .header("Origin", "http://evil.example")
                .body(())
                .expect("a request")
                .into_parts()
                .0,
            None,
            &[],
        );
        assert_eq!(
            local.map_err(|f| f.status.as_u16()),
            Err(403),
            "on the local socket too"
        );
    }
}
