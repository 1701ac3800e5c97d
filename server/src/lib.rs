//! A hexkv node: the HTTP API, the way of a change and of a read, membership, and the life of the process.
//!
//! | room | what lives there |
//! |---|---|
//! | [`config`] | flags, environment, file, defaults |
//! | [`run`] | bind, open, form, serve, stop |
//! | [`environment`] | files, network, name servers, clock and threads: real or simulated |
//! | [`node`] | what lasts while cores come and go |
//! | [`core`] | Raft, log and state of one life in one cluster |
//! | [`proposals`], [`admission`] | the way of a change |
//! | [`bodies`] | bodies that are being received |
//! | [`kv`], [`reads`], [`read_rounds`] | the way of a read |
//! | [`formation`], [`membership`], [`reconciler`], [`monitor`], [`moved_members`] | how a cluster forms, changes and is watched |
//! | [`progress`] | how long entries wait, and what follows from it |
//! | [`copies`], [`lost_entries`], [`rebuild`] | copied and rolled-back data directories; coming back as a new member |
//! | [`watch`] | what changed, for whoever follows it |
//! | [`leases`] | who lives how long |
//! | [`coordination`] | locks, elections, the registry |
//! | [`compaction`] | how much history is kept |
//! | [`service`], `peer_proposals` | what other nodes may request, and what they may write |
//! | [`offline`] | data directories from a backup, or from what survived |
//! | [`routes`] | the HTTP API |
//! | [`http_server`] | HTTP connections: their limits, clients that go away, the stop |
//! | [`supervisor`] | the end of the process, in time |
//! | [`starting`] | what the HTTP port answers while the node opens its data |
//! | [`disk`], [`disk_watch`] | room on the disk, and what is refused without |
//! | [`check`] | what the node finds out about itself when asked to |
//! | [`events`] | what happens to the cluster, for whoever follows it |
//! | [`metrics`] | what Prometheus is told |
//! | [`discovery`], [`naming`] | names to addresses |
//! | [`trace`] | one request, followed through the logs |
//! | [`status`], [`error`], [`logging`], [`join_log`] | what is told |

pub mod admission;
pub mod bodies;
pub mod check;
pub mod compaction;
pub mod config;
pub mod coordination;
pub mod copies;
pub mod core;
pub mod discovery;
pub mod disk;
pub mod disk_watch;
pub mod environment;
pub mod error;
pub mod events;
pub mod formation;
pub mod http_server;
pub mod join_log;
pub mod kv;
pub mod leases;
pub mod logging;
pub mod lost_entries;
pub mod membership;
pub mod metrics;
pub mod monitor;
pub mod moved_members;
pub mod naming;
pub mod node;
pub mod offline;
mod peer_proposals;
pub mod progress;
pub mod proposals;
mod proposer;
pub mod read_rounds;
mod reading;
pub mod reads;
pub mod rebuild;
pub mod reconciler;
pub mod routes;
pub mod run;
pub mod service;
pub mod starting;
pub mod status;
pub mod supervisor;
pub mod trace;
pub mod transfers;
pub mod watch;
