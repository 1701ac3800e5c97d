//! End-to-end tests through the real binaries: each starts nodes as processes of its own, on free ports of
//! 127.0.0.1, in a temporary directory, and ends them again.
#![allow(clippy::unwrap_used)]

mod harness;

mod backup;
mod bad_input;
mod bad_settings;
mod bench;
mod cli;
mod containers;
mod coordination;
mod crash;
mod dashboards;
mod discovery;
mod disk;
mod diverged;
mod doctor;
mod events;
mod faults;
mod healing;
mod idempotency;
mod kubernetes;
mod kv;
mod lease_reads;
mod leases;
mod limits;
mod membership;
mod metrics;
mod mounts;
mod openapi;
mod rebuild;
mod recover;
mod restore;
mod rolling;
mod shell;
mod sizes;
mod tidy;
mod trace;
mod transfer;
mod txn;
mod upgrade;
mod watch;
mod wire;
