//! How two nodes find out that they may speak: same protocol, same cookie, and, for members, the same cluster and the
//! very node that was meant.
//!
//! ```text
//! initiator                                        responder
//!   Hello     magic, versions, nonce  ->
//!                                  <-  Challenge  magic, versions, nonce
//!   Proof     HMAC(cookie, "initiator", Hello, Challenge, claim), claim  ->
//!                                  <-  Welcome    HMAC(cookie, "responder", Hello, Challenge, claim, introduction), introduction
//! ```
//! A claim is the introduction of the initiator (cluster, node id, process, name), the purpose of the connection, and the node that
//! it expects. Either side may send a [`Refusal`] instead and close.
//!
//! # What is promised
//! - The initiator proves first. Before its proof the responder sends a nonce and its versions, and nothing that depends on the
//!   cookie or says which node or cluster it is.
//! - The initiator sends who it is together with its proof, not before: a node connects only to addresses that the operator or a
//!   member gave.
//! - The proofs cover both nonces, the versions of both sides, the role, the purpose, the node that was meant, and the introduction of
//!   the initiator; the responder's covers its own introduction, too. A proof sent back to its maker, or used again, is worthless.
//! - Magic and versions come first, in a fixed form, so that every version of the protocol can read them.
//!
//! This authenticates; it does not encrypt: that is a [`crate::transport::Transport`]'s task. The listener that a node connects to can
//! guess a short cookie offline by the node's proof.

use std::task::{Context, Poll};

use hexkv_store::{NodeId, codec};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    cookie::{Cookie, PROOF_BYTES, Role},
    error::Refusal,
    frame::{self, FRAME_BYTES_MAX, Frame, FrameError, HANDSHAKE_FRAME_BYTES_MAX, Kind},
    frame_stream::FrameStream,
    identity::{LocalIdentity, NODE_NAME_BYTES_MAX, PeerIdentity, Purpose},
};

/// The newest version of everything that nodes send each other that this binary speaks.
pub const PROTOCOL_VERSION: u16 = 4;
/// The oldest one. Version 3 sent names and the cluster's id before any proof, and its nodes carry some commands out differently,
/// so that they must not be in one cluster with later ones anyway.
pub const PROTOCOL_VERSION_OLDEST: u16 = 4;
/// The versions that this binary announces.
pub(crate) const SPOKEN: Spoken = Spoken { oldest: PROTOCOL_VERSION_OLDEST, newest: PROTOCOL_VERSION };
/// Node id that stands for any node that listens there.
pub(crate) const ANY_NODE: NodeId = 0;

const MAGIC: [u8; 8] = *b"hexkv/rn";
const PREAMBLE_BYTES: usize = MAGIC.len() + 4;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// This side refuses; the other side was told.
    #[error("{0}")]
    WeRefuse(Refusal),
    /// The other side refuses.
    #[error("{0}")]
    TheyRefuse(Refusal),
    /// What came is no handshake.
    #[error("not a hexkv handshake: {0}")]
    Protocol(String),
    /// The connection ended.
    #[error("the connection ended during the handshake")]
    Closed,
    /// Reading or writing failed.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl HandshakeError {
    /// The refusal to log where what came is no handshake; None where the connection ended or broke.
    pub(crate) fn no_handshake(&self) -> Option<Refusal> {
        let senseless = match self {
            Self::Protocol(_) => true,
            Self::Frame(error) => error.is_senseless(),
            Self::WeRefuse(_) | Self::TheyRefuse(_) | Self::Closed => false,
        };
        senseless.then(|| Refusal::NoHandshake(self.to_string()))
    }
}

/// Random, drawn by each side for each handshake.
type Nonce = [u8; 32];

/// What the initiator says of itself and of the connection.
#[derive(Debug, Serialize, Deserialize)]
struct Claim {
    who: Introduction,
    purpose: Purpose,
    expected: NodeId,
}

/// The versions that a node speaks. Invariant: `oldest <= newest`. Two nodes speak the highest that both know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spoken {
    pub(crate) oldest: u16,
    pub(crate) newest: u16,
}

impl Spoken {
    /// The newest version in the low half, and how many before it are spoken, too, in the high half: a node that speaks
    /// one version only sends its number, as nodes did before there were ranges.
    pub(crate) fn to_wire(self) -> u32 {
        u32::from(self.newest) | u32::from(self.newest - self.oldest) << 16
    }

    /// None for what no node sends.
    pub(crate) fn from_wire(wire: u32) -> Option<Self> {
        let newest = (wire & 0xffff) as u16;
        let oldest = newest.checked_sub((wire >> 16) as u16)?;
        Some(Self { oldest, newest })
    }

    /// The version to speak with a node that sent `theirs`.
    fn common(self, theirs: u32) -> Option<u16> {
        let theirs = Self::from_wire(theirs)?;
        let version = self.newest.min(theirs.newest);
        (version >= self.oldest && version >= theirs.oldest).then_some(version)
    }
}

/// Who a side is.
#[derive(Debug, Serialize, Deserialize)]
struct Introduction {
    cluster_id: Option<u64>,
    node_id: NodeId,
    incarnation: u64,
    process: u64,
    name: String,
}

impl Introduction {
    fn of(local: &LocalIdentity) -> Self {
        Self {
            cluster_id: local.cluster_id,
            node_id: local.node_id,
            incarnation: local.incarnation,
            process: local.process,
            name: local.name.clone(),
        }
    }

    fn into_peer(self, guest: bool) -> PeerIdentity {
        let Self { cluster_id, node_id, incarnation, process, name } = self;
        PeerIdentity { cluster_id, node_id, incarnation, name, process: Some(process), guest }
    }

    /// Refuses what no node is called: names reach logs and terminals.
    fn checked(self) -> Result<Self, HandshakeError> {
        let valid =
            (1..=NODE_NAME_BYTES_MAX).contains(&self.name.len()) && self.name.bytes().all(|b| b.is_ascii_graphic());
        if valid && self.node_id != ANY_NODE {
            return Ok(self);
        }
        Err(HandshakeError::Protocol("it introduces itself with an invalid name or node id".into()))
    }
}

/// The connecting side. `expected` is the node that should listen there, or [`ANY_NODE`].
pub(crate) async fn initiate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut FrameStream<S>,
    local: &LocalIdentity,
    cookie: &Cookie,
    purpose: Purpose,
    expected: NodeId,
) -> Result<PeerIdentity, HandshakeError> {
    let (peer, version) = initiate_speaking(SPOKEN, stream, local, cookie, purpose, expected).await?;
    tracing::trace!(%peer, version, "connected");
    Ok(peer)
}

/// The same, of a binary that speaks `spoken`; also gives the version that both speak.
async fn initiate_speaking<S: AsyncRead + AsyncWrite + Unpin>(
    spoken: Spoken,
    stream: &mut FrameStream<S>,
    local: &LocalIdentity,
    cookie: &Cookie,
    purpose: Purpose,
    expected: NodeId,
) -> Result<(PeerIdentity, u16), HandshakeError> {
    let hello = opening(spoken);
    send(stream, Kind::Hello, &hello).await?;
    let challenge = receive(stream, Kind::Challenge).await?.body;
    let version = match read_opening(spoken, "challenge", &challenge) {
        Ok(version) => version,
        Err(e) => return Err(send_if_refusal(stream, e).await),
    };
    let claim = codec::encode(&Claim { who: Introduction::of(local), purpose, expected });
    let proof = cookie.prove(Role::Initiator, &[&hello, &challenge, &claim]);
    send(stream, Kind::Proof, &[&proof[..], &claim].concat()).await?;
    let welcome = receive(stream, Kind::Welcome).await?.body;
    let (proof, introduction) = split_proof("welcome", &welcome)?;
    if !cookie.verify(Role::Responder, &[&hello, &challenge, &claim, introduction], proof) {
        return Err(refuse(stream, Refusal::WrongCookie).await);
    }
    let who = decode::<Introduction>("welcome", introduction)?.checked()?;
    let guest = purpose == Purpose::Guest;
    if let Some(refusal) = mismatch(local, &who, guest) {
        return Err(refuse(stream, refusal).await);
    }
    if expected != ANY_NODE && who.node_id != expected {
        // As the listening node sees it, which is what the refusal names.
        return Err(refuse(stream, Refusal::WrongNode { ours: who.node_id, expected }).await);
    }
    stream.set_limit(FRAME_BYTES_MAX);
    Ok((who.into_peer(guest), version))
}

/// The listening side.
pub(crate) async fn respond<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut FrameStream<S>,
    local: &LocalIdentity,
    cookie: &Cookie,
) -> Result<(PeerIdentity, Purpose), HandshakeError> {
    let (peer, purpose, version) = respond_speaking(SPOKEN, stream, local, cookie).await?;
    tracing::trace!(%peer, version, "connected");
    Ok((peer, purpose))
}

/// The same, of a binary that speaks `spoken`; also gives the version that both speak.
async fn respond_speaking<S: AsyncRead + AsyncWrite + Unpin>(
    spoken: Spoken,
    stream: &mut FrameStream<S>,
    local: &LocalIdentity,
    cookie: &Cookie,
) -> Result<(PeerIdentity, Purpose, u16), HandshakeError> {
    let hello = receive(stream, Kind::Hello).await?.body;
    let version = match read_opening(spoken, "hello", &hello) {
        Ok(version) => version,
        Err(e) => return Err(send_if_refusal(stream, e).await),
    };
    let challenge = opening(spoken);
    send(stream, Kind::Challenge, &challenge).await?;
    let proved = receive(stream, Kind::Proof).await?.body;
    let (proof, claim) = split_proof("proof", &proved)?;
    if !cookie.verify(Role::Initiator, &[&hello, &challenge, claim], proof) {
        return Err(refuse(stream, Refusal::WrongCookie).await);
    }
    let Claim { who, purpose, expected } = decode("proof", claim)?;
    let who = who.checked()?;
    let guest = purpose == Purpose::Guest;
    if let Some(refusal) = mismatch(local, &who, guest) {
        return Err(refuse(stream, refusal).await);
    }
    if expected != ANY_NODE && expected != local.node_id {
        return Err(refuse(stream, Refusal::WrongNode { ours: local.node_id, expected }).await);
    }
    let introduction = codec::encode(&Introduction::of(local));
    let proof = cookie.prove(Role::Responder, &[&hello, &challenge, claim, &introduction]);
    send(stream, Kind::Welcome, &[&proof[..], &introduction].concat()).await?;
    stream.set_limit(FRAME_BYTES_MAX);
    Ok((who.into_peer(guest), purpose, version))
}

/// What keeps these two nodes apart. Members must be of one cluster, and of a cluster at all.
fn mismatch(local: &LocalIdentity, who: &Introduction, guest: bool) -> Option<Refusal> {
    if who.node_id == local.node_id {
        return Some(Refusal::OwnAddress);
    }
    let same_cluster = local.cluster_id.is_some() && local.cluster_id == who.cluster_id;
    (!guest && !same_cluster).then_some(Refusal::WrongCluster { ours: local.cluster_id, theirs: who.cluster_id })
}

/// The body of a Hello and of a Challenge: magic, versions and a new nonce.
fn opening(spoken: Spoken) -> Vec<u8> {
    let nonce: Nonce = hexkv_store::entropy::random();
    [&MAGIC[..], &spoken.to_wire().to_le_bytes(), &nonce].concat()
}

/// The version to speak with the sender of an opening. That no version is common is told before anything else is read.
fn read_opening(spoken: Spoken, what: &'static str, bytes: &[u8]) -> Result<u16, HandshakeError> {
    let versions = bytes
        .strip_prefix(&MAGIC)
        .and_then(|rest| rest.first_chunk::<4>())
        .ok_or_else(|| HandshakeError::Protocol(format!("the {what} has no magic number")))?;
    let theirs = u32::from_le_bytes(*versions);
    let Some(version) = spoken.common(theirs) else {
        return Err(HandshakeError::WeRefuse(Refusal::WrongVersion { ours: spoken.to_wire(), theirs }));
    };
    match bytes.len() == PREAMBLE_BYTES + size_of::<Nonce>() {
        true => Ok(version),
        false => Err(HandshakeError::Protocol(format!("a {what} of {} bytes", bytes.len()))),
    }
}

/// The proof in front of `bytes`, and what it covers besides the openings.
fn split_proof<'a>(what: &'static str, bytes: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), HandshakeError> {
    bytes
        .split_at_checked(PROOF_BYTES)
        .ok_or_else(|| HandshakeError::Protocol(format!("a {what} of {} bytes", bytes.len())))
}

fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, HandshakeError> {
    codec::decode(what, bytes, HANDSHAKE_FRAME_BYTES_MAX).map_err(|e| HandshakeError::Protocol(e.to_string()))
}

async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut FrameStream<S>,
    kind: Kind,
    body: &[u8],
) -> Result<(), HandshakeError> {
    let frame = frame::encode_with(0, kind, |out| out.extend_from_slice(body))
        .map_err(|bytes| HandshakeError::Protocol(format!("a handshake frame of {bytes} bytes")))?;
    Ok(stream.write(frame).await.map_err(FrameError::Io)?)
}

async fn receive<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut FrameStream<S>,
    expected: Kind,
) -> Result<Frame, HandshakeError> {
    let frame = stream.read().await?.ok_or(HandshakeError::Closed)?;
    if frame.kind == expected {
        return Ok(frame);
    }
    match refusal(&frame) {
        Some(refusal) => Err(HandshakeError::TheyRefuse(refusal)),
        None => Err(HandshakeError::Protocol(format!("{:?} in place of {expected:?}", frame.kind))),
    }
}

/// The refusal that `frame` carries, if it is one.
pub(crate) fn refusal(frame: &Frame) -> Option<Refusal> {
    (frame.kind == Kind::Refused)
        .then(|| codec::decode("refusal", &frame.body, HANDSHAKE_FRAME_BYTES_MAX).ok())
        .flatten()
}

/// Tells the other side that it is refused, and makes the error to return.
pub(crate) async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut FrameStream<S>,
    refusal: Refusal,
) -> HandshakeError {
    let told = send(stream, Kind::Refused, &codec::encode(&refusal)).await;
    let finished = stream.finish().await;
    if told.is_err() || finished.is_err() {
        tracing::debug!(%refusal, "the refused side is gone already");
    }
    HandshakeError::WeRefuse(refusal)
}

/// Tells the other side of an open connection that it is refused, where that can be said at once: nobody waits for one
/// that sends nonsense.
pub(crate) fn try_refuse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut FrameStream<S>,
    cx: &mut Context<'_>,
    refusal: &Refusal,
) {
    let told = frame::encode(0, Kind::Refused, refusal).is_ok_and(|frame| {
        stream.push(frame);
        matches!(stream.poll_write(cx), Poll::Ready(Ok(())))
    });
    if !told {
        tracing::debug!(%refusal, "the refused side is gone, or does not read");
    }
}

/// Sends `error` to the other side where it is a refusal.
async fn send_if_refusal<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut FrameStream<S>,
    error: HandshakeError,
) -> HandshakeError {
    match error {
        HandshakeError::WeRefuse(refusal) => refuse(stream, refusal).await,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;

    fn node(cluster_id: Option<u64>, node_id: NodeId) -> LocalIdentity {
        LocalIdentity { cluster_id, node_id, incarnation: 3, name: format!("n{node_id}@here"), process: node_id * 100 }
    }

    fn pipe() -> (FrameStream<DuplexStream>, FrameStream<DuplexStream>) {
        let (a, b) = tokio::io::duplex(64 * 1024);
        (FrameStream::new(a), FrameStream::new(b))
    }

    type Initiated = Result<PeerIdentity, HandshakeError>;
    type Responded = Result<(PeerIdentity, Purpose), HandshakeError>;

    async fn shake(
        (from, cookie_a): (LocalIdentity, &str),
        (to, cookie_b): (LocalIdentity, &str),
        purpose: Purpose,
        expected: NodeId,
    ) -> (Initiated, Responded) {
        let (mut a, mut b) = pipe();
        let (cookie_a, cookie_b) = (Cookie::new(cookie_a), Cookie::new(cookie_b));
        tokio::join!(initiate(&mut a, &from, &cookie_a, purpose, expected), respond(&mut b, &to, &cookie_b))
    }

    /// Both sides must know the refusal, one because it refuses, the other because it was told.
    fn assert_refused((initiated, responded): (Initiated, Responded), expected: Refusal) {
        match (initiated.unwrap_err(), responded.unwrap_err()) {
            (HandshakeError::WeRefuse(a), HandshakeError::TheyRefuse(b))
            | (HandshakeError::TheyRefuse(a), HandshakeError::WeRefuse(b)) => {
                assert_eq!((&a, &b), (&expected, &expected));
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn members_of_one_cluster_learn_who_the_other_is() {
        let (a, b) = shake((node(Some(9), 1), "c"), (node(Some(9), 2), "c"), Purpose::Urgent, 2).await;
        let (a, (b, purpose)) = (a.unwrap(), b.unwrap());
        assert_eq!((a.node_id, b.node_id), (2, 1));
        assert_eq!((a.name.as_str(), b.incarnation, b.guest), ("n2@here", 3, false));
        assert_eq!(purpose, Purpose::Urgent);
    }

    #[tokio::test]
    async fn both_sides_learn_the_number_of_the_others_process() {
        let (a, b) = shake((node(Some(9), 1), "c"), (node(Some(9), 2), "c"), Purpose::Raft, 2).await;
        assert_eq!((a.unwrap().process, b.unwrap().0.process), (Some(200), Some(100)));
    }

    #[tokio::test]
    async fn a_guest_may_be_of_any_cluster_or_none() {
        for cluster in [None, Some(1), Some(9)] {
            let (a, b) = shake((node(cluster, 1), "c"), (node(Some(9), 2), "c"), Purpose::Guest, ANY_NODE).await;
            assert!(a.is_ok());
            assert!(b.unwrap().0.guest);
        }
    }

    #[tokio::test]
    async fn wrong_cookie() {
        for purpose in [Purpose::Raft, Purpose::Guest] {
            let result = shake((node(Some(9), 1), "c"), (node(Some(9), 2), "d"), purpose, 2).await;
            assert_refused(result, Refusal::WrongCookie);
        }
    }

    #[tokio::test]
    async fn wrong_cluster_or_none() {
        for (theirs, ours) in [(Some(8), Some(9)), (None, Some(9)), (Some(9), None), (None, None)] {
            let result = shake((node(theirs, 1), "c"), (node(ours, 2), "c"), Purpose::Peer, 2).await;
            assert_refused(result, Refusal::WrongCluster { ours, theirs });
        }
    }

    #[tokio::test]
    async fn wrong_node() {
        let result = shake((node(Some(9), 1), "c"), (node(Some(9), 2), "c"), Purpose::Raft, 3).await;
        assert_refused(result, Refusal::WrongNode { ours: 2, expected: 3 });
    }

    #[tokio::test]
    async fn own_address() {
        let result = shake((node(None, 1), "c"), (node(None, 1), "c"), Purpose::Guest, ANY_NODE).await;
        assert_refused(result, Refusal::OwnAddress);
    }

    #[tokio::test]
    async fn wrong_version_is_refused_whatever_follows_it() {
        let (mut a, mut b) = pipe();
        let mut hello = MAGIC.to_vec();
        hello.extend_from_slice(&7u32.to_le_bytes());
        hello.extend_from_slice(b"what only version 7 understands");
        send(&mut a, Kind::Hello, &hello).await.unwrap();
        let (local, cookie) = (node(None, 2), Cookie::new("c"));
        let (told, responded) = tokio::join!(receive(&mut a, Kind::Challenge), respond(&mut b, &local, &cookie));
        let expected = Refusal::WrongVersion { ours: SPOKEN.to_wire(), theirs: 7 };
        assert!(matches!(told, Err(HandshakeError::TheyRefuse(r)) if r == expected));
        assert!(matches!(responded, Err(HandshakeError::WeRefuse(r)) if r == expected));
    }

    /// Two binaries, each of which speaks a range.
    async fn speak(a: (u16, u16), b: (u16, u16)) -> (Result<u16, HandshakeError>, Result<u16, HandshakeError>) {
        let spoken = |(oldest, newest)| Spoken { oldest, newest };
        let (mut from, mut to) = pipe();
        let (one, other, cookie) = (node(Some(9), 1), node(Some(9), 2), Cookie::new("c"));
        let (a, b) = tokio::join!(
            initiate_speaking(spoken(a), &mut from, &one, &cookie, Purpose::Raft, 2),
            respond_speaking(spoken(b), &mut to, &other, &cookie)
        );
        (a.map(|(_, version)| version), b.map(|(_, _, version)| version))
    }

    #[tokio::test]
    async fn neighbouring_releases_speak_the_highest_version_that_both_know() {
        let cases =
            [((4, 4), (4, 4), 4), ((4, 5), (4, 5), 5), ((4, 5), (5, 6), 5), ((4, 4), (3, 5), 4), ((1, 9), (4, 6), 6)];
        for (a, b, expected) in cases {
            for (a, b) in [(a, b), (b, a)] {
                let (a, b) = speak(a, b).await;
                assert_eq!((a.unwrap(), b.unwrap()), (expected, expected));
            }
        }
    }

    #[tokio::test]
    async fn releases_without_a_common_version_refuse_each_other_and_name_both() {
        for (a, b) in [((3, 3), (4, 5)), ((4, 5), (3, 3)), ((1, 2), (4, 4))] {
            let (initiated, responded) = speak(a, b).await;
            let (HandshakeError::TheyRefuse(told), HandshakeError::WeRefuse(refused)) =
                (initiated.unwrap_err(), responded.unwrap_err())
            else {
                panic!("the listening side refuses")
            };
            assert_eq!(told, refused);
            let text = told.to_string();
            for (oldest, newest) in [a, b] {
                let named = if oldest == newest {
                    format!("version {newest}")
                } else {
                    format!("versions {oldest} to {newest}")
                };
                assert!(text.contains(&named), "{text}");
            }
        }
    }

    #[test]
    fn a_node_of_one_version_announces_itself_as_before_there_were_ranges() {
        assert_eq!(Spoken { oldest: 3, newest: 3 }.to_wire(), 3);
        let range = Spoken { oldest: 3, newest: 5 };
        assert_eq!(Spoken::from_wire(range.to_wire()), Some(range));
        assert_eq!(Spoken::from_wire(0x0005_0003), None, "no version is older than 0");
    }

    fn claim_of(who: &LocalIdentity) -> Vec<u8> {
        codec::encode(&Claim { who: Introduction::of(who), purpose: Purpose::Raft, expected: 2 })
    }

    #[tokio::test]
    async fn reflected_proofs_are_worthless() {
        // The attacker knows no cookie: as responder it sends the initiator's own proof back to it.
        let (mut victim, mut attacker) = pipe();
        let (local, cookie) = (node(Some(9), 1), Cookie::new("c"));
        let attack = async {
            receive(&mut attacker, Kind::Hello).await.unwrap();
            send(&mut attacker, Kind::Challenge, &opening(SPOKEN)).await.unwrap();
            let proof = receive(&mut attacker, Kind::Proof).await.unwrap();
            send(&mut attacker, Kind::Welcome, &proof.body).await.unwrap();
        };
        let (result, ()) = tokio::join!(initiate(&mut victim, &local, &cookie, Purpose::Raft, 2), attack);
        assert!(matches!(result, Err(HandshakeError::WeRefuse(Refusal::WrongCookie))));
    }

    #[tokio::test]
    async fn a_recorded_handshake_cannot_be_replayed() {
        let (mut honest, mut listening) = pipe();
        let (local, cookie) = (node(Some(9), 2), Cookie::new("c"));
        let (hello, claim) = (opening(SPOKEN), claim_of(&node(Some(9), 1)));
        let recording = async {
            send(&mut honest, Kind::Hello, &hello).await.unwrap();
            let challenge = receive(&mut honest, Kind::Challenge).await.unwrap();
            let proof = cookie.prove(Role::Initiator, &[&hello, &challenge.body, &claim]);
            let proof = [&proof[..], &claim].concat();
            send(&mut honest, Kind::Proof, &proof).await.unwrap();
            proof
        };
        let (accepted, proof) = tokio::join!(respond(&mut listening, &local, &cookie), recording);
        accepted.unwrap();

        let (mut attacker, mut listening) = pipe();
        let replay = async {
            send(&mut attacker, Kind::Hello, &hello).await.unwrap();
            receive(&mut attacker, Kind::Challenge).await.unwrap();
            send(&mut attacker, Kind::Proof, &proof).await.unwrap();
        };
        let (refused, ()) = tokio::join!(respond(&mut listening, &local, &cookie), replay);
        assert!(matches!(refused, Err(HandshakeError::WeRefuse(Refusal::WrongCookie))));
    }

    #[tokio::test]
    async fn a_claim_or_introduction_that_was_altered_is_refused() {
        let (local, cookie) = (node(Some(9), 2), Cookie::new("c"));
        let (mut attacker, mut listening) = pipe();
        let attack = async {
            let hello = opening(SPOKEN);
            send(&mut attacker, Kind::Hello, &hello).await.unwrap();
            let challenge = receive(&mut attacker, Kind::Challenge).await.unwrap();
            let proof = cookie.prove(Role::Initiator, &[&hello, &challenge.body, &claim_of(&node(Some(9), 1))]);
            send(&mut attacker, Kind::Proof, &[&proof[..], &claim_of(&node(Some(9), 3))].concat()).await.unwrap();
        };
        let (refused, ()) = tokio::join!(respond(&mut listening, &local, &cookie), attack);
        assert!(matches!(refused, Err(HandshakeError::WeRefuse(Refusal::WrongCookie))));

        let (mut initiating, mut attacker) = pipe();
        let attack = async {
            let hello = receive(&mut attacker, Kind::Hello).await.unwrap().body;
            let challenge = opening(SPOKEN);
            send(&mut attacker, Kind::Challenge, &challenge).await.unwrap();
            let proved = receive(&mut attacker, Kind::Proof).await.unwrap().body;
            let (_, claim) = split_proof("proof", &proved).unwrap();
            let of = |id| codec::encode(&Introduction::of(&node(Some(9), id)));
            let proof = cookie.prove(Role::Responder, &[&hello, &challenge, claim, &of(3)]);
            send(&mut attacker, Kind::Welcome, &[&proof[..], &of(2)].concat()).await.unwrap();
        };
        let one = node(Some(9), 1);
        let (refused, ()) = tokio::join!(initiate(&mut initiating, &one, &cookie, Purpose::Raft, 2), attack);
        assert!(matches!(refused, Err(HandshakeError::WeRefuse(Refusal::WrongCookie))));
    }

    #[tokio::test]
    async fn a_stranger_learns_versions_and_a_nonce_only() {
        let (mut stranger, mut listening) = pipe();
        let local = LocalIdentity { cluster_id: Some(0x00c1_u64 << 40), ..node(None, 0x00aa_bbcc_ddee_ff77) };
        let probing = async {
            send(&mut stranger, Kind::Hello, &opening(SPOKEN)).await.unwrap();
            let challenge = receive(&mut stranger, Kind::Challenge).await.unwrap().body;
            send(&mut stranger, Kind::Proof, &[0; 200]).await.unwrap();
            let refused = receive(&mut stranger, Kind::Welcome).await;
            (challenge, refused)
        };
        let cookie = Cookie::new("c");
        let (responded, (challenge, refused)) = tokio::join!(respond(&mut listening, &local, &cookie), probing);
        assert_eq!(challenge.len(), MAGIC.len() + 4 + 32);
        assert!(matches!(refused, Err(HandshakeError::TheyRefuse(Refusal::WrongCookie))));
        assert!(matches!(responded, Err(HandshakeError::WeRefuse(Refusal::WrongCookie))));
    }

    #[tokio::test]
    async fn names_that_no_node_has_are_refused() {
        let long = "n".repeat(NODE_NAME_BYTES_MAX + 1);
        for name in ["", "n\u{1b}[2J@h", "n@h\n2026 ERROR forged", "n h", "\u{e9}@h", &long] {
            let (mut a, mut b) = pipe();
            let named = LocalIdentity { name: name.into(), ..node(Some(9), 1) };
            let (local, cookie) = (node(Some(9), 2), Cookie::new("c"));
            let responded = tokio::select! {
                responded = respond(&mut b, &local, &cookie) => responded,
                initiated = initiate(&mut a, &named, &cookie, Purpose::Raft, 2) => panic!("{initiated:?}"),
            };
            assert!(matches!(responded, Err(HandshakeError::Protocol(_))), "{name:?}: {responded:?}");
        }
    }

    #[tokio::test]
    async fn the_cookie_is_never_on_the_wire() {
        let secret = "a-secret-that-is-easy-to-find";
        let (wire_a, mut middle_a) = tokio::io::duplex(64 * 1024);
        let (wire_b, mut middle_b) = tokio::io::duplex(64 * 1024);
        let (mut a, mut b) = (FrameStream::new(wire_a), FrameStream::new(wire_b));
        let cookie = Cookie::new(secret);
        let (from, to) = (node(Some(9), 1), node(Some(9), 2));
        let shaken = async {
            let both = tokio::join!(initiate(&mut a, &from, &cookie, Purpose::Raft, 2), respond(&mut b, &to, &cookie));
            drop((a, b));
            both
        };
        let spied = async {
            let mut seen = [Vec::new(), Vec::new()];
            spy(&mut middle_a, &mut middle_b, &mut seen).await;
            seen
        };
        let ((initiated, responded), seen) = tokio::join!(shaken, spied);
        initiated.unwrap();
        responded.unwrap();
        for side in seen {
            assert!(side.len() > 2 * 32, "the spy saw the handshake");
            assert!(!side.windows(secret.len()).any(|w| w == secret.as_bytes()));
        }
    }

    async fn spy(a: &mut DuplexStream, b: &mut DuplexStream, seen: &mut [Vec<u8>; 2]) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let (mut from_a, mut from_b) = ([0; 1024], [0; 1024]);
            tokio::select! {
                read = a.read(&mut from_a) => {
                    let Ok(n @ 1..) = read else { return };
                    seen[0].extend_from_slice(&from_a[..n]);
                    b.write_all(&from_a[..n]).await.unwrap();
                }
                read = b.read(&mut from_b) => {
                    let Ok(n @ 1..) = read else { return };
                    seen[1].extend_from_slice(&from_b[..n]);
                    a.write_all(&from_b[..n]).await.unwrap();
                }
            }
        }
    }
}
