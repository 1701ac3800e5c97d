//! Wire between hexkv nodes.
//!
//! | room | what lives there |
//! |---|---|
//! | [`transport`] | byte streams: TCP, and what else implements the trait |
//! | [`dialer`], `names` | connecting to names: look-ups, and all their addresses side by side |
//! | `frame`, `frame_stream` | frames with length, checksum and request id, over a byte stream |
//! | `cookie`, `handshake` | mutual proof of the cookie; who speaks to whom, or why not |
//! | `process` | which process acts as each peer: copies of a data directory are refused |
//! | [`network`] | asking: a pool of connections, one for each peer and purpose |
//! | `request_queue`, `connector` | requests that wait; the task that connects and carries them |
//! | `raft_client`, `append_pipeline` | what openraft sends through |
//! | `acknowledged` | what followers acknowledged; those that lost it |
//! | `grant` | what answers to AppendEntries are worth as a lease |
//! | `snapshot_transfer` | snapshots, resumable, both sides |
//! | `listener`, `connection`, `append_feed` | answering: accept, handshake, dispatch |
//! | `raft_request`, `raft_check` | Raft's messages: which are refused before openraft has them |
//! | `peer_text` | texts of other nodes, made safe to show |
//! | [`rpc`], `message` | what is said |
//! | `error`, `refusal_log` | what goes wrong, and how often it is logged |

mod acknowledged;
mod append_feed;
mod append_pipeline;
mod connection;
mod connector;
mod contact;
mod cookie;
pub mod dialer;
mod error;
mod frame;
mod frame_stream;
mod grant;
mod handshake;
mod identity;
mod listener;
mod message;
mod names;
pub mod network;
mod peer_text;
mod process;
mod raft_check;
mod raft_client;
mod raft_request;
mod refusal_log;
mod request_queue;
pub mod rpc;
mod service;
mod snapshot_transfer;
pub mod transport;

pub use acknowledged::LostEntries;
pub use append_pipeline::{APPEND_BYTES_IN_FLIGHT_MAX, APPEND_TIMEOUT, APPENDS_IN_FLIGHT_MAX};
pub use connection::{REQUEST_BYTES_SERVED_MAX, REQUESTS_SERVED_MAX};
pub use connector::{ALIVE_INTERVAL, HANDSHAKE_TIMEOUT, STALL_TIMEOUT};
pub use cookie::Cookie;
pub use dialer::{ADDRESS_BYTES_MAX, CONNECT_TIMEOUT, Dialer, RESOLVE_TIMEOUT, is_address};
pub use error::{NetError, Refusal};
pub use frame::FRAME_BYTES_MAX;
pub use grant::Grant;
pub use handshake::PROTOCOL_VERSION;
pub use identity::{LocalIdentity, NODE_NAME_BYTES_MAX, PeerIdentity};
pub use listener::{CONNECTIONS_MAX, HANDSHAKES_MAX, serve};
pub use network::{AddressBook, Network};
pub use peer_text::PEER_TEXT_BYTES_MAX;
pub use process::{CopiedNode, NodeStart, Seat};
pub use raft_check::{APPEND_ENTRIES_RECEIVED_MAX, TERM_LEAP_MAX};
pub use raft_client::{PeerClient, PeerFactory};
pub use request_queue::{REQUEST_BYTES_WAITING_MAX, REQUESTS_WAITING_MAX};
pub use service::Service;
