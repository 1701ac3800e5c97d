//! The hosts that a node answers as.
//!
//! A page may make its own name lead to a node's address (DNS rebinding); to the browser the node is then a part of that site, and only
//! the `Host` header shows it. Addresses cannot be rebound. Names of one label, and those below `.localhost` (RFC 6761), exist in no public
//! zone. All others must belong to a member, or be listed in `ALLOWED_HOSTS`.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::uri::Authority;

use crate::node::Node;

/// The host in `text`, a host with an optional port, in lower case and without the root's dot; None where it is something else.
pub fn parse(text: &[u8]) -> Option<String> {
    split(text).map(|(host, _)| host)
}

/// As [`parse`], with the port. An empty port is the default one (RFC 3986 section 3.2.3).
fn split(text: &[u8]) -> Option<(String, Option<u16>)> {
    let authority = Authority::try_from(text).ok()?;
    let host = authority.host();
    let port = match authority.as_str().strip_prefix(host)? {
        "" | ":" => None,
        port => Some(port.strip_prefix(':').filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))?),
    };
    let port = port.map(str::parse).transpose().ok()?;
    if host.is_empty() {
        return None;
    }
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host = match bracketed.and_then(|inner| inner.parse::<Ipv6Addr>().ok()) {
        Some(address) => format!("[{address}]"),
        None => host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase(),
    };
    Some((host, port))
}

/// Whether `origin` (RFC 6454) is that of pages that are served at `host`, with or without TLS in front.
pub fn is_origin_of(origin: &str, host: &str) -> bool {
    let web = [("http://", 80), ("https://", 443)];
    web.iter().any(|(scheme, default_port)| {
        let at = |text: &str| split(text.as_bytes()).map(|(host, port)| (host, port.unwrap_or(*default_port)));
        origin.strip_prefix(scheme).and_then(at).is_some_and(|origin| at(host) == Some(origin))
    })
}

/// Whether `node` answers as `host`, which [`parse`] gave.
pub fn is_allowed(node: &Node, host: &str) -> bool {
    cannot_be_rebound(host)
        || node.config.allowed_hosts.allows(host)
        || node.config.own_hosts().any(|own| own.bare().eq_ignore_ascii_case(host))
        || node.cluster().members.iter().any(|member| host_of(&member.http).eq_ignore_ascii_case(host))
}

fn cannot_be_rebound(host: &str) -> bool {
    let is_address = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok(),
    };
    is_address || !host.contains(['.', '[']) || host.ends_with(".localhost")
}

/// The host of `host:port`.
fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_an_optional_port() {
        for (text, host) in [
            ("127.0.0.1:4000", "127.0.0.1"),
            ("LocalHost", "localhost"),
            ("hub1.example.com.:80", "hub1.example.com"),
            ("[::1]:4000", "[::1]"),
            ("x:", "x"),
            ("my_service:1", "my_service"),
        ] {
            assert_eq!(parse(text.as_bytes()).as_deref(), Some(host), "{text}");
        }
        for text in [
            "",
            ":4000",
            "a b",
            "a:x",
            "a:+1",
            "a:65536",
            "user@host",
            "a/b",
            "a,b\u{e9}",
            "http://a",
            "[::1",
            "::1",
            "a#b",
            "a?b",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn an_origin_is_compared_with_its_default_port() {
        for (origin, host) in [
            ("http://h:4000", "H:4000"),
            ("http://h", "h:80"),
            ("http://h:80", "h"),
            ("https://h", "h:443"),
            ("https://h", "h"),
            ("http://[::1]:4000", "[0:0::1]:4000"),
        ] {
            assert!(is_origin_of(origin, host), "{origin} of {host}");
        }
        for (origin, host) in [
            ("null", "null"),
            ("http://h:4000", "h:4010"),
            ("https://h", "h:80"),
            ("http://h.evil.example", "h"),
            ("ftp://h", "h"),
            ("http://", ""),
            ("http://h/", "h"),
        ] {
            assert!(!is_origin_of(origin, host), "{origin} of {host}");
        }
    }

    #[test]
    fn names_that_a_site_can_own_are_recognized() {
        for host in ["127.0.0.1", "10.1.2.3", "[::1]", "[2001:db8::1]", "localhost", "hub1", "a.localhost"] {
            assert!(cannot_be_rebound(host), "{host}");
        }
        for host in
            ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "0x7f.1", "127.1", "notlocalhost.x"]
        {
            assert!(!cannot_be_rebound(host), "{host}");
        }
    }
}
