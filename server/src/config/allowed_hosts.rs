//! `ALLOWED_HOSTS`: names that clients may reach the node by, besides those that it knows by itself.

use std::{fmt, str::FromStr};

use super::name::{Host, NameError};

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    /// `*`
    Any,
    /// `.example.com`, `*.example.com`: all names below it, not itself. With its leading dot, in lower case.
    Below(String),
    /// This host.
    Exactly(Host),
}

/// Hosts that `Host` headers may name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedHosts(Vec<Pattern>);

impl AllowedHosts {
    /// Whether `host`, in lower case and without a port, is among them.
    pub fn allows(&self, host: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            Pattern::Any => true,
            Pattern::Below(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
            Pattern::Exactly(allowed) => allowed.to_string().eq_ignore_ascii_case(host),
        })
    }
}

impl FromStr for AllowedHosts {
    type Err = NameError;

    /// Reads hosts by commas.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let pattern = |text: &str| match text {
            "*" => Ok(Pattern::Any),
            _ => match text.strip_prefix('*').unwrap_or(text).strip_prefix('.') {
                Some(suffix) => Ok(Pattern::Below(format!(".{}", suffix.parse::<Host>()?).to_ascii_lowercase())),
                None => text.parse().map(Pattern::Exactly),
            },
        };
        text.split(',').map(|part| pattern(part.trim())).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for AllowedHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, pattern) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match pattern {
                Pattern::Any => write!(f, "{comma}*")?,
                Pattern::Below(suffix) => write!(f, "{comma}*{suffix}")?,
                Pattern::Exactly(host) => write!(f, "{comma}{host}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_allowed_as_names_below_a_name_or_all() {
        let listed: AllowedHosts = "KV.example.com, *.svc.cluster.local,.Corp,[::1]".parse().unwrap();
        for host in ["kv.example.com", "a.svc.cluster.local", "a.b.corp", "[::1]"] {
            assert!(listed.allows(host), "{host}");
        }
        for host in ["example.com", "xkv.example.com", "svc.cluster.local", ".corp", "corp", "acorp", ""] {
            assert!(!listed.allows(host), "{host}");
        }
        assert!("*".parse::<AllowedHosts>().unwrap().allows("evil.example"));
        assert!(!AllowedHosts::default().allows("localhost"));
        assert_eq!(listed.to_string().parse::<AllowedHosts>().unwrap(), listed);
        for bad in ["", "a,,b", "*a", "a.*.b", "**", "a b", "http://a", "a:80", "."] {
            assert!(bad.parse::<AllowedHosts>().is_err(), "{bad:?}");
        }
    }
}
