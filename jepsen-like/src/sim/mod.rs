//! Deterministic simulation: real nodes in one thread, on simulated disks, clocks and network, with faults that a seed
//! decides. What the seed decides, repeats exactly.
//!
//! | room | what lives there |
//! |---|---|
//! | [`cli`], [`parent`], [`report`], [`shrink`] | one seed here, many in processes of their own; the failing ones, smaller |
//! | [`plan`], [`fault`] | what a seed decides |
//! | [`run`] | form, storm, heal, judge |
//! | [`cluster`], [`host`], [`environment`], [`links`], [`wires`] | the simulated machines and what is between them |
//! | [`discovery`] | how nodes find each other: name servers, datagrams |
//! | [`nemesis`], `shapes` | faults, and the supervisor that restarts nodes |
//! | `lost_quorum` | the last fault: too many disks are gone, and an operator recovers |
//! | [`workload`], [`request`], [`bank`], [`application`] | clients |
//! | `observe`, [`invariants`], [`seats`], [`progress`] | what is looked at after every step, and what must hold |
//! | [`trace`], `judge` | whether two runs saw the same; whether clients saw what they may |
//!
//! # What is real
//! Everything of the node: server, raft-net, write-ahead log, state machine, snapshots, openraft. Simulated are: sockets
//! (turmoil; a stream whose segment is lost stalls for good, as there are no retransmissions), name servers, multicast (a datagram
//! to every machine), files
//! ([`hexkv_store::fs::FaultyFs`]), wall clocks, threads (work that blocks runs in the task that asks for it), randomness. The
//! engine is the one in memory. Clients call the functions behind the HTTP routes.
//!
//! # What is not
//! Timers of all nodes run alike within a run; drift is had by giving nodes timeouts that differ. A process cannot be
//! paused. Only datagrams are delivered twice: streams do not do that.

pub mod application;
pub mod bank;
pub mod cli;
pub mod cluster;
#[cfg(test)]
mod deposed_tests;
pub mod discovery;
#[cfg(test)]
mod discovery_tests;
pub mod environment;
pub mod fault;
#[cfg(test)]
mod formation_tests;
#[cfg(test)]
mod hop_tests;
pub mod host;
pub mod invariants;
mod judge;
#[cfg(test)]
mod lease_tests;
pub mod links;
mod lost_quorum;
#[cfg(test)]
mod names_tests;
pub mod nemesis;
mod observe;
pub mod parent;
pub mod plan;
pub mod progress;
pub mod report;
pub mod request;
pub mod run;
#[cfg(test)]
mod seat_tests;
pub mod seats;
mod shapes;
pub mod shrink;
pub mod trace;
pub mod wires;
pub mod workload;
