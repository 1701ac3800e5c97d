//! What the routes of locks, elections and the registry have in common: names, times, limits.

use std::time::Duration;

use axum::http::Uri;
use hexkv_store::lease::{LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN};

use super::request::key;
use crate::{coordination::check_name, error::Error};

/// Time to live when none is given.
const TTL_DEFAULT: Duration = Duration::from_secs(30);
/// Longest wait for a lock or for leadership.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest owner, candidate or address, in bytes.
const TEXT_BYTES_MAX: usize = 1024;
/// Largest body, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// The name behind `prefix` in the path, before `suffix`.
pub fn name(uri: &Uri, prefix: &str, suffix: &str) -> Result<String, Error> {
    let mut name = key(uri, prefix)?.to_vec();
    name.truncate(name.len() - if name.ends_with(suffix.as_bytes()) { suffix.len() } else { 0 });
    let name = String::from_utf8(name).map_err(|_| Error::invalid("the name is not UTF-8"))?;
    check_name(&name)?;
    Ok(name)
}

/// A time to live, in milliseconds.
pub fn ttl_ms(text: Option<&str>) -> Result<u64, Error> {
    let ttl = time("ttl", text, TTL_DEFAULT)?;
    let ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    if (LEASE_TTL_MS_MIN..=LEASE_TTL_MS_MAX).contains(&ms) {
        return Ok(ms);
    }
    Err(Error::invalid(format!(
        "ttl is {} to {}, not {}",
        humantime::format_duration(Duration::from_millis(LEASE_TTL_MS_MIN)),
        humantime::format_duration(Duration::from_millis(LEASE_TTL_MS_MAX)),
        humantime::format_duration(ttl)
    )))
}

/// How long to wait.
pub fn wait(text: Option<&str>) -> Result<Duration, Error> {
    let wait = time("wait", text, Duration::ZERO)?;
    if wait > WAIT_MAX {
        return Err(Error::invalid(format!("wait is at most {} h; wait again after that", WAIT_MAX.as_secs() / 3600)));
    }
    Ok(wait)
}

fn time(what: &str, text: Option<&str>, default: Duration) -> Result<Duration, Error> {
    let Some(text) = text else { return Ok(default) };
    humantime::parse_duration(text)
        .map_err(|_| Error::invalid(format!("{what} {text:?} is no time; write it like 500ms or 10s")))
}

/// Refuses a text that is too long, or empty where it may not be.
pub fn check_text(what: &str, text: &str, may_be_empty: bool) -> Result<(), Error> {
    if text.is_empty() && !may_be_empty {
        return Err(Error::invalid(format!("{what} is empty")));
    }
    if text.len() > TEXT_BYTES_MAX {
        return Err(Error::invalid(format!("{what} has {} bytes, at most {TEXT_BYTES_MAX} are allowed", text.len())));
    }
    Ok(())
}
