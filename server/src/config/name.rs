//! Names of nodes as users type them: `name@host`, and `name@host[:port]` where a node is to be reached.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Longest name before the `@`, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest DNS name, in bytes (RFC 1035 section 2.3.4, without the root label).
pub const HOST_BYTES_MAX: usize = 253;
/// Longest label of a DNS name, in bytes (RFC 1035 section 2.3.4).
const LABEL_BYTES_MAX: usize = 63;

/// Why a name does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The part before the `@`.
    #[error("{0:?} is not a node name: 1 to {NAME_BYTES_MAX} letters, digits, `_` or `-`")]
    Name(String),
    /// The part after the `@`.
    #[error("{0:?} is not a host: a DNS name, an IPv4 address, or an IPv6 address in brackets")]
    Host(String),
    /// No `@`.
    #[error("{0:?} has no host: write name@host")]
    NoHost(String),
    /// The part after the `:`.
    #[error("{0:?} is not a port: 1 to 65535")]
    Port(String),
}

/// A host: DNS name, IPv4 address, or IPv6 address, which is displayed in brackets so that `host:port` can be read back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(String);

impl Host {
    /// The form that resolvers take: an IPv6 address without its brackets.
    pub fn bare(&self) -> &str {
        self.0.trim_start_matches('[').trim_end_matches(']')
    }

    /// Whether only this machine can reach it: `localhost`, 127.0.0.0/8 or `[::1]`.
    pub fn is_loopback(&self) -> bool {
        self.0.eq_ignore_ascii_case("localhost")
            || self.bare().parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Host {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let invalid = || NameError::Host(text.to_owned());
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let address: Ipv6Addr = inner.parse().map_err(|_| invalid())?;
            return Ok(Self(format!("[{address}]")));
        }
        // What looks like an IPv4 address must be one: resolvers read `127.1` and `1` in surprising ways.
        if text.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())) {
            return text.parse::<Ipv4Addr>().map(|address| Self(address.to_string())).map_err(|_| invalid());
        }
        let valid = text.len() <= HOST_BYTES_MAX && text.split('.').all(is_dns_label);
        valid.then(|| Self(text.to_owned())).ok_or_else(invalid)
    }
}

/// Letters, digits, `-` inside; `_` too, since container networks hand out such names.
fn is_dns_label(label: &str) -> bool {
    (1..=LABEL_BYTES_MAX).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Full name of a node, `name@host`.
///
/// ```
/// use hexkv_server::config::NodeName;
/// let name: NodeName = "hex_hub1@127.0.0.1".parse()?;
/// assert_eq!((name.short(), name.host().bare()), ("hex_hub1", "127.0.0.1"));
/// # Ok::<(), hexkv_server::config::NameError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName {
    short: String,
    host: Host,
}

impl NodeName {
    /// Joins the two parts; `short` is checked.
    pub fn new(short: &str, host: Host) -> Result<Self, NameError> {
        let valid = (1..=NAME_BYTES_MAX).contains(&short.len())
            && short.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if !valid {
            return Err(NameError::Name(short.to_owned()));
        }
        Ok(Self { short: short.to_owned(), host })
    }

    /// The part before the `@`.
    pub fn short(&self) -> &str {
        &self.short
    }

    /// The part after the `@`.
    pub fn host(&self) -> &Host {
        &self.host
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.short, self.host)
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (short, host) = text.split_once('@').ok_or_else(|| NameError::NoHost(text.to_owned()))?;
        Self::new(short, host.parse()?)
    }
}

/// A node as users name it when it is to be reached: `name@host`, or `name@host:port` with its raft port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Who.
    pub node: NodeName,
    /// Its raft port, where it was given; discovery finds it otherwise.
    pub port: Option<u16>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.node),
            None => self.node.fmt(f),
        }
    }
}

impl FromStr for Target {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        // The last `:` is the port's, unless it stands inside the brackets of an IPv6 address.
        let split = text.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
        let Some((node, port)) = split else {
            return Ok(Self { node: text.parse()?, port: None });
        };
        let number = port.parse().ok().filter(|&number| number != 0 && !port.starts_with('+'));
        let port = number.ok_or_else(|| NameError::Port(port.to_owned()))?;
        Ok(Self { node: node.parse()?, port: Some(port) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_that_parse_are_displayed_as_they_were_typed() {
        for text in [
            "hex_hub1@127.0.0.1",
            "hex_hub1@127.0.0.1:9100",
            "a-b_C9@localhost",
            "n@node-1.hexkv.default.svc.cluster.local:65535",
            "n@[::1]",
            "n@[fe80::1]:1",
            "n@my_service",
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to_string(), text);
            assert_eq!(target.node.to_string().parse::<NodeName>().unwrap(), target.node);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = "n".repeat(NAME_BYTES_MAX + 1);
        let cases = [
            ("", NameError::NoHost(String::new())),
            ("hub", NameError::NoHost("hub".into())),
            ("@h", NameError::Name(String::new())),
            ("a b@h", NameError::Name("a b".into())),
            ("é@h", NameError::Name("é".into())),
            (&format!("{long}@h"), NameError::Name(long.clone())),
            ("n@", NameError::Host(String::new())),
            ("n@a@b", NameError::Host("a@b".into())),
            ("n@256.1.1.1", NameError::Host("256.1.1.1".into())),
            ("n@127.1", NameError::Host("127.1".into())),
            ("n@-a", NameError::Host("-a".into())),
            ("n@a..b", NameError::Host("a..b".into())),
            ("n@[::g]", NameError::Host("[::g]".into())),
            ("n@::1", NameError::Host(":".into())),
            ("n@h:0", NameError::Port("0".into())),
            ("n@h:+1", NameError::Port("+1".into())),
            ("n@h:65536", NameError::Port("65536".into())),
            ("n@h:", NameError::Port(String::new())),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Target>(), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn loopback_hosts_are_recognised() {
        for (text, loopback) in
            [("localhost", true), ("127.3.2.1", true), ("[::1]", true), ("10.0.0.1", false), ("node1", false)]
        {
            assert_eq!(text.parse::<Host>().unwrap().is_loopback(), loopback, "{text}");
        }
    }
}
