//! Fault-injection suite of hexkv: runs workloads against a cluster while faults strike, records what clients saw,
//! and judges it.
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`run`] | one run: set up, work, break, heal, judge |
//! | [`schedule`] | which fault strikes when, from the seed |
//! | [`workload`] | what clients do |
//! | [`fault`] | what breaks, how it heals, and the proof that it did break |
//! | [`cluster`] | the server processes |
//! | [`links`] | the network between them |
//! | [`history`] | what clients did and saw, one event a line |
//! | [`checker`] | pure functions from a history to a verdict |
//! | [`report`] | one HTML file a run: verdicts, charts, the failing key's timeline |
//! | [`mutants`] | deliberately broken nodes, which the simulation must find |
//! | [`sim`] | real nodes in a simulated world, decided by a seed |

pub mod checker;
pub mod cli;
pub mod cluster;
pub mod fault;
pub mod history;
pub mod links;
pub mod mutants;
pub mod report;
pub mod run;
pub mod schedule;
pub mod sim;
pub mod workload;
