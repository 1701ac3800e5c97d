//! What the routes of locks, elections and the registry have in common: names, times, limits.

use std::time::Duration;

use axum::http::Uri;
use hexkv_client::api::Ttl;

use super::{lease, request::key};
use crate::{coordination::check_name, error::Error};

/// Time to live when none is given, in milliseconds.
const TTL_MS_DEFAULT: u64 = 30_000;
/// Longest wait for a lock or for leadership.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest owner, candidate or address, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// The name behind `prefix` in the path, before `suffix`.
pub fn name(uri: &Uri, prefix: &str, suffix: &str) -> Result<String, Error> {
    let mut name = key(uri, prefix)?.to_vec();
    name.truncate(name.len() - if name.ends_with(suffix.as_bytes()) { suffix.len() } else { 0 });
    let name = String::from_utf8(name).map_err(|_| Error::invalid("the name is not UTF-8"))?;
    check_name(&name)?;
    Ok(name)
}

/// A time to live, in milliseconds.
pub fn ttl_ms(ttl: Option<Ttl>) -> Result<u64, Error> {
    ttl.map_or(Ok(TTL_MS_DEFAULT), lease::ttl_ms)
}

/// How long to wait.
pub fn wait(text: Option<&str>) -> Result<Duration, Error> {
    let Some(text) = text else { return Ok(Duration::ZERO) };
    let wait = humantime::parse_duration(text)
        .map_err(|_| Error::invalid(format!("wait {text:?} is no time; write it like 500ms or 10s")))?;
    if wait > WAIT_MAX {
        return Err(Error::invalid(format!("wait is at most {} h; wait again after that", WAIT_MAX.as_secs() / 3600)));
    }
    Ok(wait)
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
