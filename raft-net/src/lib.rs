//! Wire between hexkv nodes.
//!
//! | room | what lives there |
//! |---|---|
//! | [`transport`] | byte streams: TCP, and what else implements the trait |
//! | `frame`, `frame_stream` | frames with length, checksum and request id, over a byte stream |
//! | `cookie`, `handshake` | mutual proof of the cookie; who speaks to whom, or why not |
//! | [`network`] | asking: a pool of connections, one for each peer and purpose |
//! | `request_queue`, `connector` | requests that wait; the task that connects and carries them |
//! | `raft_client`, `append_pipeline` | what openraft sends through |
//! | `grant` | what answers to AppendEntries are worth as a lease |
//! | `snapshot_transfer` | snapshots, resumable, both sides |
//! | `listener`, `connection`, `append_feed` | answering: accept, handshake, dispatch |
//! | [`rpc`], `message` | what is said |
//! | `error`, `refusal_log` | what goes wrong, and how often it is logged |

mod append_feed;
mod append_pipeline;
mod connection;
mod connector;
mod contact;
mod cookie;
mod error;
mod frame;
mod frame_stream;
mod grant;
mod handshake;
mod identity;
mod listener;
mod message;
pub mod network;
mod raft_client;
mod refusal_log;
mod request_queue;
pub mod rpc;
mod service;
mod snapshot_transfer;
pub mod transport;

pub use append_pipeline::{APPEND_BYTES_IN_FLIGHT_MAX, APPEND_TIMEOUT, APPENDS_IN_FLIGHT_MAX};
pub use connection::{REQUEST_BYTES_SERVED_MAX, REQUESTS_SERVED_MAX};
pub use connector::{ALIVE_INTERVAL, CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, STALL_TIMEOUT};
pub use cookie::Cookie;
pub use error::{NetError, Refusal};
pub use frame::FRAME_BYTES_MAX;
pub use grant::Grant;
pub use handshake::PROTOCOL_VERSION;
pub use identity::{LocalIdentity, PeerIdentity};
pub use listener::{CONNECTIONS_MAX, HANDSHAKES_MAX, serve};
pub use network::{AddressBook, Network};
pub use raft_client::{PeerClient, PeerFactory};
pub use request_queue::{REQUEST_BYTES_WAITING_MAX, REQUESTS_WAITING_MAX};
pub use service::Service;
