//! Kinds of option values: what text each takes, and what it means.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::{
    allowed_hosts::AllowedHosts,
    choices::Choice,
    name::{Host, NodeName, Target},
};
use crate::logging;

/// Shortest cookie, in bytes: shorter ones are guessed in no time.
pub(super) const COOKIE_BYTES_MIN: usize = 8;
/// A cookie with fewer bytes than this is warned about: a listener that a node connects to, and a reader of multicast announcements,
/// can try all short ones out offline.
pub(super) const COOKIE_BYTES_ADVISED: usize = 16;
/// What makes a cookie.
pub(super) const MAKES_COOKIE: &str = "openssl rand -hex 32";
/// Longest cookie, in bytes.
pub(super) const COOKIE_BYTES_MAX: usize = 1024;

/// Kind of an option's value. Ranges are inclusive.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// A whole number.
    Integer(u64, u64),
    /// A whole number from 1 up to another option's value, which is named here and compared by the resolver.
    UpTo(&'static str),
    /// A size in bytes, with or without a unit.
    Bytes(u64, u64),
    /// Milliseconds; a plain number means them.
    Millis(u64, u64),
    /// A time with its unit; the range is in milliseconds.
    Duration(u64, u64),
    /// One of a few words.
    Word(fn() -> Vec<&'static str>),
    /// `name@host`, or a name that the host is added to.
    NodeName,
    /// A host.
    Host,
    /// An IP address.
    Ip,
    /// An IPv4 address of this machine.
    Ipv4,
    /// An IP address with a port.
    Socket,
    /// An IPv4 multicast address with a port.
    Multicast,
    /// A path.
    Path,
    /// Targets by commas.
    Targets,
    /// Hosts and patterns by commas.
    AllowedHosts,
    /// A log filter.
    Filter,
    /// A text that is never shown.
    Secret,
}

/// The value of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// Of [`Kind::Integer`], [`Kind::UpTo`], [`Kind::Bytes`] in bytes.
    Number(u64),
    /// Of [`Kind::Millis`], [`Kind::Duration`].
    Time(Duration),
    /// Of [`Kind::Ip`], [`Kind::Ipv4`].
    Ip(IpAddr),
    /// Of [`Kind::Socket`], [`Kind::Multicast`].
    Socket(SocketAddr),
    /// Of [`Kind::Host`].
    Host(Host),
    /// Of [`Kind::Path`].
    Path(PathBuf),
    /// Of [`Kind::Targets`].
    Targets(Vec<Target>),
    /// Of [`Kind::AllowedHosts`].
    AllowedHosts(AllowedHosts),
    /// Of all others.
    Text(String),
}

/// The words of a [`Choice`].
pub(super) fn words<C: Choice>() -> Vec<&'static str> {
    C::WORDS.iter().map(|&(word, _)| word).collect()
}

impl Kind {
    /// Reads `text`; None where it is not allowed.
    pub(super) fn parse(self, text: &str) -> Option<Value> {
        let in_range = |number: &u64, (min, max)| (min..=max).contains(number);
        match self {
            Self::Integer(min, max) => parse_digits(text).filter(|n| in_range(n, (min, max))).map(Value::Number),
            Self::UpTo(_) => parse_digits(text).map(Value::Number),
            Self::Bytes(min, max) => parse_bytes(text).filter(|n| in_range(n, (min, max))).map(Value::Number),
            Self::Millis(min, max) => parse_digits(text)
                .map(Duration::from_millis)
                .or_else(|| humantime::parse_duration(text).ok())
                .and_then(|time| {
                    (Duration::from_millis(min)..=Duration::from_millis(max))
                        .contains(&time)
                        .then_some(Value::Time(time))
                }),
            Self::Duration(min, max) => humantime::parse_duration(text)
                .ok()
                .filter(|time| (Duration::from_millis(min)..=Duration::from_millis(max)).contains(time))
                .map(Value::Time),
            Self::Word(words) => words()
                .into_iter()
                .find(|word| word.eq_ignore_ascii_case(text))
                .map(|word| Value::Text(word.to_owned())),
            Self::NodeName => {
                // A host is not known here; any stands in to check the name.
                let full = if text.contains('@') { text.to_owned() } else { format!("{text}@localhost") };
                full.parse::<NodeName>().ok().map(|_| Value::Text(text.to_owned()))
            }
            Self::Host => text.parse().ok().map(Value::Host),
            Self::Ip => {
                let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
                bare.parse().ok().map(Value::Ip)
            }
            Self::Ipv4 => text.parse().ok().map(|address: Ipv4Addr| Value::Ip(address.into())),
            Self::Socket => text.parse().ok().filter(|address: &SocketAddr| address.port() != 0).map(Value::Socket),
            Self::Multicast => text
                .parse()
                .ok()
                .filter(|address: &SocketAddr| address.is_ipv4() && address.ip().is_multicast() && address.port() != 0)
                .map(Value::Socket),
            Self::Path => (!text.is_empty() && !text.contains('\0')).then(|| Value::Path(text.into())),
            Self::Targets => text
                .split(',')
                .map(|target| target.trim().parse().ok())
                .collect::<Option<Vec<Target>>>()
                .map(Value::Targets),
            Self::AllowedHosts => text.parse().ok().map(Value::AllowedHosts),
            Self::Filter => logging::filter(text).ok().map(|_| Value::Text(text.to_owned())),
            Self::Secret => is_cookie(text).then(|| Value::Text(text.to_owned())),
        }
    }

    /// Whether `{hostname}` in the text stands for the machine's name.
    pub(super) fn takes_hostname(self) -> bool {
        matches!(self, Self::NodeName | Self::Host)
    }

    /// The values it takes, in words.
    pub(super) fn allowed(self) -> String {
        match self {
            Self::Integer(min, max) => format!("{min}..={max}"),
            Self::UpTo(limit) => format!("1..={limit}"),
            Self::Bytes(min, max) => {
                format!("{}..={}: bytes, or with KB, MB, GB, KiB, MiB, GiB", format_bytes(min), format_bytes(max))
            }
            Self::Millis(min, max) => format!("{min}..={max} ms: a plain number, or with a unit such as 500ms, 1s"),
            Self::Duration(min, max) => {
                let (min, max) = (Duration::from_millis(min), Duration::from_millis(max));
                format!("{}..={}: with a unit such as 500ms, 5s, 1h", format_time(min), format_time(max))
            }
            Self::Word(words) => words().join(" or "),
            Self::NodeName => {
                "name@host or name: 1 to 64 letters, digits, _ or - before the @; {hostname} is this machine's name"
                    .to_owned()
            }
            Self::Host => {
                "DNS name, IPv4 address, or IPv6 address in brackets; {hostname} is this machine's name".to_owned()
            }
            Self::Ip => "IPv4 or IPv6 address".to_owned(),
            Self::Ipv4 => "IPv4 address".to_owned(),
            Self::Socket => "address:port, an IPv6 address in brackets".to_owned(),
            Self::Multicast => {
                "multicast address and port: 224.0.0.0 to 239.255.255.255, such as 239.255.255.250:45892".to_owned()
            }
            Self::Path => "path".to_owned(),
            Self::Targets => "name@host[:port],name@host[:port],...".to_owned(),
            Self::AllowedHosts => "host,*.domain,...".to_owned(),
            Self::Filter => "filter such as info or warn,hexkv_server=debug".to_owned(),
            Self::Secret => {
                format!(
                    "{COOKIE_BYTES_MIN} to {COOKIE_BYTES_MAX} visible ASCII characters; `{MAKES_COOKIE}` makes some"
                )
            }
        }
    }

    /// What stands for the value in `--help`.
    pub(super) fn placeholder(self) -> &'static str {
        match self {
            Self::Integer(..) | Self::UpTo(_) => "N",
            Self::Bytes(..) => "BYTES",
            Self::Millis(..) => "MS",
            Self::Duration(..) => "TIME",
            Self::Word(_) => "WORD",
            Self::NodeName => "NAME",
            Self::Host => "HOST",
            Self::Ip | Self::Ipv4 => "ADDRESS",
            Self::Socket | Self::Multicast => "ADDRESS:PORT",
            Self::Path => "PATH",
            Self::Targets => "NODES",
            Self::AllowedHosts => "HOSTS",
            Self::Filter => "FILTER",
            Self::Secret => "SECRET",
        }
    }
}

impl Value {
    /// As TOML, in a form that [`Kind::parse`] of `kind` reads back.
    pub(super) fn to_toml(&self, kind: Kind) -> String {
        let quoted = |text: String| toml::Value::String(text).to_string();
        match self {
            Self::Number(number) => number.to_string(),
            Self::Time(time) if matches!(kind, Kind::Millis(..)) && time.subsec_nanos() % 1_000_000 == 0 => {
                time.as_millis().to_string()
            }
            Self::Time(time) => quoted(format_time(*time)),
            Self::Ip(address) => quoted(address.to_string()),
            Self::Socket(address) => quoted(address.to_string()),
            Self::Host(host) => quoted(host.to_string()),
            // Paths come from texts, so nothing is lost.
            Self::Path(path) => quoted(path.display().to_string()),
            Self::Targets(targets) => quoted(targets.iter().map(Target::to_string).collect::<Vec<_>>().join(",")),
            Self::AllowedHosts(hosts) => quoted(hosts.to_string()),
            Self::Text(text) => quoted(text.clone()),
        }
    }
}

/// Whether `text` can be a cookie: something to type, within [`COOKIE_BYTES_MAX`].
pub(super) fn is_cookie(text: &str) -> bool {
    (COOKIE_BYTES_MIN..=COOKIE_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Digits only: `str::parse` would take a sign, too.
fn parse_digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

const BYTE_UNITS: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

/// `1572864`, `1.5MiB`, `2 mb`; None where it is none of these or not a whole number of bytes.
fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    let factor = match unit {
        "" => 1,
        _ => BYTE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() {
        return None;
    }
    let tenths_power = 10u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let fraction_bytes = parse_digits(fraction)?.checked_mul(factor)?;
    if fraction_bytes % tenths_power != 0 {
        return None;
    }
    parse_digits(whole)?.checked_mul(factor)?.checked_add(fraction_bytes / tenths_power)
}

/// In the largest binary unit that divides it.
fn format_bytes(bytes: u64) -> String {
    let unit = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1u64 << 10)]
        .into_iter()
        .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    match unit {
        Some((name, factor)) => format!("{}{name}", bytes / factor),
        None => bytes.to_string(),
    }
}

fn format_time(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_exactly_or_not_at_all() {
        let cases = [
            ("0", Some(0)),
            ("1572864", Some(1_572_864)),
            ("1.5MiB", Some(1_572_864)),
            ("1.50 mib", Some(1_572_864)),
            ("2mb", Some(2_000_000)),
            ("1GiB", Some(1 << 30)),
            ("64KB", Some(64_000)),
            ("7B", Some(7)),
            ("1.5", None),
            ("0.3KiB", None),
            ("", None),
            (".", None),
            ("1.", None),
            (".5MiB", None),
            ("1.2.3MiB", None),
            ("-1", None),
            ("+1", None),
            ("1 TiB", None),
            ("1M", None),
            ("MiB", None),
            ("18446744073709551616", None),
            ("18446744073709551615KiB", None),
            ("0.0000000000000000000000001MiB", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_bytes(text), expected, "{text:?}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_exact_unit() {
        for (bytes, text) in [(1, "1"), (1024, "1KiB"), (1536, "1536"), (8 << 20, "8MiB"), (1 << 40, "1024GiB")] {
            assert_eq!(format_bytes(bytes), text);
            assert_eq!(parse_bytes(text), Some(bytes));
        }
    }

    #[test]
    fn values_read_back_from_their_toml() {
        let cases = [
            (Kind::Integer(0, 9), "7"),
            (Kind::Bytes(0, u64::MAX), "1.5MiB"),
            (Kind::Millis(0, 9_999), "250us"),
            (Kind::Millis(0, 9_999), "1s"),
            (Kind::Duration(0, u64::MAX), "1h 30m"),
            (Kind::Ip, "::1"),
            (Kind::Ip, "[::1]"),
            (Kind::Host, "[::1]"),
            (Kind::Path, "C:\\a \"b\"/c"),
            (Kind::Targets, "a@b, c@d:1"),
            (Kind::Filter, "warn,openraft=debug"),
            (Kind::NodeName, "a"),
        ];
        for (kind, text) in cases {
            let value = kind.parse(text).unwrap_or_else(|| panic!("{text}"));
            let table: toml::Table = format!("v = {}", value.to_toml(kind)).parse().unwrap();
            let back = match &table["v"] {
                toml::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            assert_eq!(kind.parse(&back), Some(value), "{text} became {back}");
        }
    }

    #[test]
    fn the_ends_of_ranges_are_allowed_and_their_neighbours_are_not() {
        let kinds = [
            (Kind::Integer(2, 5), ["2", "5"], ["1", "6"]),
            (Kind::Bytes(1024, 2048), ["1KiB", "2048"], ["1023", "2049B"]),
            (Kind::Millis(10, 1000), ["10", "1s"], ["9", "1001ms"]),
            (Kind::Duration(10, 1000), ["10ms", "1s"], ["9ms", "10"]),
        ];
        for (kind, good, bad) in kinds {
            for text in good {
                assert!(kind.parse(text).is_some(), "{kind:?} {text}");
            }
            for text in bad {
                assert!(kind.parse(text).is_none(), "{kind:?} {text}");
            }
        }
    }
}
