//! Client library of hexkv.
//!
//! | module | holds |
//! |---|---|
//! | [`api`] | JSON bodies of the HTTP API, shared with the server |
//! | `answer` | what an answer says about the request |
//! | [`client`] | [`Client`]: which endpoint is asked, what is retried, until when |
//! | [`kv`] | keys and values: get, put, delete, list |
//! | [`lease`] | leases: keys that go when their lease ends |
//! | [`txn`] | transactions: several operations at one revision |
//! | [`export`] | all records of a range at one revision, and the file that holds them |
//! | [`import`] | such a file's records back into a cluster |
//! | [`backup`] | the whole store in a file: saved from a serving node, checked without one |
//! | [`coordination`] | locks, elections, the registry |
//! | [`watch`] | what changes, as it happens |
//! | [`cluster`] | members, leadership, health |
//! | [`event`] | what happens to the cluster, as it happens |
//! | [`endpoint`] | addresses of nodes, and which of them are worth asking |
//! | `leader` | which of them leads, for [`Client::to_leader`] |
//! | [`local`] | a cluster on this machine: names and ports by index, waiting for each other |
//! | [`port_holder`] | which process holds a port |
//! | [`encoding`] | keys in paths and query strings |
//! | [`console`] | text for people: escapes, and writes that a closed pipe does not break |
//! | [`error`] | what a failed call says about the store |
//!
//! ```no_run
//! # async fn example() -> Result<(), hexkv_client::Error> {
//! use hexkv_client::kv::{PutOptions, ReadOptions};
//! use hexkv_client::{Client, Options};
//!
//! let client = Client::new(["127.0.0.1:4000", "127.0.0.1:4010"], Options::default())?;
//! client.put("greeting", "hello", &PutOptions::default()).await?;
//! let record = client.get("greeting", &ReadOptions::default()).await?;
//! assert_eq!(record.map(|record| record.value), Some("hello".into()));
//! # Ok(())
//! # }
//! ```

mod answer;
pub mod api;
pub mod backup;
pub mod client;
pub mod cluster;
pub mod console;
pub mod coordination;
pub mod encoding;
pub mod endpoint;
pub mod error;
pub mod event;
pub mod export;
mod hang_up;
pub mod import;
pub mod kv;
mod leader;
pub mod lease;
pub mod local;
mod patience;
pub mod port_holder;
mod sse;
mod transport;
pub mod txn;
pub mod watch;

pub use client::{Client, Options};
pub use endpoint::Endpoint;
pub use error::Error;
