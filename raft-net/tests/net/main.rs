//! Nodes over real TCP on 127.0.0.1.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod cluster;
mod log;
mod memory;
mod node;
mod proxy;
mod refusals;
mod requests;
