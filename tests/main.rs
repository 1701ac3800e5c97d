//! End-to-end tests through the real binaries: each starts nodes as processes of its own, on free ports of
//! 127.0.0.1, in a temporary directory, and ends them again.
#![allow(clippy::unwrap_used)]

mod harness;

mod bad_input;
mod bad_settings;
mod bench;
mod cli;
mod containers;
mod coordination;
mod crash;
mod discovery;
mod disk;
mod diverged;
mod faults;
mod healing;
mod idempotency;
mod kubernetes;
mod kv;
mod lease_reads;
mod leases;
mod limits;
mod membership;
mod openapi;
mod shell;
mod sizes;
mod tidy;
mod transfer;
mod txn;
mod watch;
mod wire;
