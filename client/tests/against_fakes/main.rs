//! The library and the `client` binary against servers that answer as each test tells them to.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
mod cli;
mod cluster;
mod fake;
mod kv;
mod leader;
mod leases;
mod retries;
