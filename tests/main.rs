//! End-to-end tests through the real binaries: each starts nodes as processes of its own, on free ports of
//! 127.0.0.1, in a temporary directory, and ends them again.
#![allow(clippy::unwrap_used)]

mod harness;

mod addresses;
mod availability;
mod backup;
mod bad_input;
mod bad_settings;
mod bench;
mod cli;
mod containers;
mod coordination;
mod copies;
mod crash;
mod dashboards;
mod discovery;
mod disk;
mod diverged;
mod doctor;
mod ending;
mod events;
mod faults;
mod full_disk;
mod gone_clients;
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
mod name_servers;
mod one_client;
mod open_files;
mod openapi;
mod rebuild;
mod recover;
mod restore;
mod rollback;
mod rolling;
mod shell;
mod sizes;
mod slow_bodies;
mod tidy;
mod trace;
mod transfer;
mod txn;
mod upgrade;
mod watch;
mod wire;
mod work;
