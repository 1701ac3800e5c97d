//! A node that says whatever a test wants: it speaks the wire between nodes, with a cookie or without.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use hexkv_raft_net::{
    Refusal,
    rpc::{ClusterInfo, PeerRequest, PeerResponse},
};
use hexkv_store::codec;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Magic, wire version 4.
const OPENING: &[u8] = b"hexkv/rn\x04\0\0\0";

/// Kinds of frames.
pub mod kind {
    pub const HELLO: u8 = 1;
    pub const CHALLENGE: u8 = 2;
    pub const PROOF: u8 = 3;
    pub const WELCOME: u8 = 4;
    pub const REFUSED: u8 = 5;
    pub const APPEND: u8 = 16;
    pub const VOTE: u8 = 17;
    pub const PRE_VOTE: u8 = 18;
    pub const TRANSFER_LEADER: u8 = 19;
    pub const PEER: u8 = 20;
    pub const SNAPSHOT_OFFER: u8 = 21;
    pub const SNAPSHOT_CHUNK: u8 = 22;
    pub const SNAPSHOT_FINISH: u8 = 23;
    pub const ANSWER: u8 = 32;
    pub const FAILURE: u8 = 33;
    pub const ALIVE: u8 = 34;
}

/// What a connection is for, in the order of the wire.
#[derive(Debug, Clone, Copy, Serialize)]
pub enum Purpose {
    Raft,
    Urgent,
    Snapshot,
    Peer,
    Guest,
}

/// Who the peer says it is.
#[derive(Debug, Clone, Serialize)]
pub struct Claimed {
    pub cluster_id: Option<u64>,
    pub node_id: u64,
    pub incarnation: u64,
    pub process: u64,
    pub name: String,
}

impl Claimed {
    /// A node that is in no cluster.
    pub fn stranger() -> Self {
        Self { cluster_id: None, node_id: 0x5_7a96e4, incarnation: 1, process: 7, name: "stranger@127.0.0.1".into() }
    }
}

/// As the wire has it.
#[derive(Debug, Deserialize)]
enum Failure {
    Refused(Refusal),
    Unavailable(String),
    Failed(String),
}

/// What came back.
#[derive(Debug)]
pub enum Reply {
    Answer(Vec<u8>),
    /// The request failed, with the words of the node.
    Failed(String),
    /// The node ended the connection, with its words.
    Ended(String),
}

impl Reply {
    /// The words of a request that was not carried out.
    pub fn refusal(self) -> String {
        match self {
            Self::Failed(why) | Self::Ended(why) => why,
            Self::Answer(bytes) => panic!("it was answered: {bytes:?}"),
        }
    }

    /// The answer as a `T`.
    pub fn answer<T: serde::de::DeserializeOwned>(self) -> T {
        match self {
            Self::Answer(bytes) => codec::decode("answer", &bytes, ANSWER_BYTES_MAX).unwrap(),
            other => panic!("no answer: {other:?}"),
        }
    }
}

/// A frame as nodes send it: length and checksum in front.
pub fn frame(id: u64, kind: u8, body: &[u8]) -> Vec<u8> {
    let content = [&id.to_le_bytes()[..], &[kind], body].concat();
    let length = (content.len() as u32).to_le_bytes();
    let crc = crc32fast::hash(&[&length[..], &content].concat()).to_le_bytes();
    [&length[..], &crc, &content].concat()
}

/// A connection to the raft port of a node.
pub struct Peer {
    stream: TcpStream,
    next_id: u64,
}

impl Peer {
    /// Connects, and says nothing yet.
    pub fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        Self { stream, next_id: 1 }
    }

    /// Connects, and proves `cookie`.
    ///
    /// # Errors
    /// The refusal.
    pub fn shaken(
        address: &str,
        cookie: &str,
        who: &Claimed,
        purpose: Purpose,
        expected: u64,
    ) -> Result<Self, Refusal> {
        let mut peer = Self::connect(address);
        let (hello, challenge) = peer.open();
        let claim = codec::encode(&(who, purpose, expected));
        let proof = mac(cookie, "initiator", &[&hello, &challenge, &claim]);
        peer.send(0, kind::PROOF, &[&proof[..], &claim].concat());
        match peer.receive().unwrap() {
            (kind::WELCOME, welcome) => {
                let (proof, introduction) = welcome.split_at(32);
                let expected = mac(cookie, "responder", &[&hello, &challenge, &claim, introduction]);
                assert_eq!(proof, expected, "the node proves the cookie, too");
                Ok(peer)
            }
            (kind::REFUSED, body) => Err(codec::decode("refusal", &body, 4096).unwrap()),
            other => panic!("{other:?} in place of a welcome"),
        }
    }

    /// Sends a Hello, and reads the Challenge; gives both.
    pub fn open(&mut self) -> (Vec<u8>, Vec<u8>) {
        let hello = [OPENING, &rand::random::<[u8; 32]>()].concat();
        self.send(0, kind::HELLO, &hello);
        let (kind, challenge) = self.receive().unwrap();
        assert_eq!(kind, kind::CHALLENGE);
        (hello, challenge)
    }

    pub fn send(&mut self, id: u64, kind: u8, body: &[u8]) {
        self.stream.write_all(&frame(id, kind, body)).unwrap();
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next frame: its kind and body.
    pub fn receive(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut prefix = [0; 8];
        self.stream.read_exact(&mut prefix)?;
        let length = u32::from_le_bytes(prefix[..4].try_into().unwrap()) as usize;
        let mut content = vec![0; length];
        self.stream.read_exact(&mut content)?;
        Ok((content[8], content.split_off(9)))
    }

    /// Sends a request and waits for what comes back.
    pub fn ask<T: Serialize>(&mut self, kind: u8, body: &T) -> Reply {
        let id = self.next_id;
        self.next_id += 1;
        self.send(id, kind, &codec::encode(body));
        self.reply()
    }

    pub fn reply(&mut self) -> Reply {
        loop {
            return match self.receive() {
                Ok((kind::ALIVE, _)) => continue,
                Ok((kind::ANSWER, body)) => Reply::Answer(body),
                Ok((kind::FAILURE, body)) => Reply::Failed(match codec::decode("failure", &body, 1 << 20).unwrap() {
                    Failure::Refused(refusal) => refusal.to_string(),
                    Failure::Unavailable(why) | Failure::Failed(why) => why,
                }),
                Ok((kind::REFUSED, body)) => {
                    Reply::Ended(codec::decode::<Refusal>("refusal", &body, 1 << 20).unwrap().to_string())
                }
                Ok(other) => panic!("{other:?}"),
                Err(e) => Reply::Ended(e.to_string()),
            };
        }
    }

    /// Sends a request of the peer API.
    pub fn request(&mut self, request: &PeerRequest) -> Reply {
        self.ask(kind::PEER, request)
    }
}

/// What the node at `address` tells a guest of its cluster.
pub fn cluster_info(address: &str, cookie: &str) -> ClusterInfo {
    let mut guest = Peer::shaken(address, cookie, &Claimed::stranger(), Purpose::Guest, 0).unwrap();
    match guest.request(&PeerRequest::ClusterInfo).answer() {
        PeerResponse::ClusterInfo(info) => info,
        other => panic!("{other:?}"),
    }
}

fn mac(cookie: &str, role: &str, transcript: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(cookie.as_bytes()).unwrap();
    mac.update(format!("hexkv handshake: {role}").as_bytes());
    for part in transcript {
        mac.update(&(part.len() as u64).to_le_bytes());
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}
