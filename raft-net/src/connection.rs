//! Serves one connection: one task reads requests, has them answered and writes the answers.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    append_feed::AppendFeed,
    connector::{ALIVE_INTERVAL, IDLE_TIMEOUT},
    error::{NetError, Refusal},
    frame::{self, Frame, FrameError, Kind},
    frame_stream::FrameStream,
    handshake,
    identity::{LocalIdentity, PeerIdentity, Purpose},
    message::{Failure, decode_body, encode_answer, encode_failure},
    process::Seat,
    refusal_log::{RefusalLog, RefusedBy},
    rpc::{PeerRequest, PeerResponse},
    service::Service,
    snapshot_transfer::Incoming,
};

/// Most requests of one connection that are served at once; beyond, no more are read.
pub const REQUESTS_SERVED_MAX: usize = 512;
/// Bytes of requests of one connection that are served at once, beyond which no more are read.
pub const REQUEST_BYTES_SERVED_MAX: usize = 64 * 1024 * 1024;
/// Bytes of answers that the peer has not taken, beyond which no more requests are read.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A connection without requests is closed after this long; later than the side that made it does, so that no
/// request meets a connection that is just being closed.
const SERVED_IDLE_TIMEOUT: Duration = IDLE_TIMEOUT.saturating_mul(3);
/// The same for a connection for entries, which the side that made it keeps open: to make it again may be impossible when
/// entries have to pass, for example while a firewall drops new connections.
const SERVED_IDLE_TIMEOUT_RAFT: Duration = Duration::from_secs(3600);
/// Time that requests under way have to finish when the node stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// The other side closed it.
    #[error("closed by the other side")]
    Closed,
    /// The other side said why.
    #[error("refused by the other side: {0}")]
    TheyRefuse(Refusal),
    /// This side refused a request and everything after it.
    #[error("refused: {0}")]
    WeRefuse(Refusal),
    /// Nothing was asked for long.
    #[error("no request for long")]
    Idle,
    /// Another process acts as the other side's node.
    #[error("another process acts as the peer's node now")]
    Superseded,
    /// This node stops.
    #[error("this node stops")]
    Shutdown,
    /// A request that does not belong on this connection, or makes no sense.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// Reading or writing failed.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl End {
    /// The refusal to log, and whose it is.
    pub(crate) fn refusal(&self) -> Option<(RefusedBy, Refusal)> {
        match self {
            Self::WeRefuse(refusal) => Some((RefusedBy::Us, refusal.clone())),
            Self::TheyRefuse(refusal) => Some((RefusedBy::Them, refusal.clone())),
            Self::Protocol(_) | Self::Frame(_) => self.senseless().map(|refusal| (RefusedBy::Us, refusal)),
            Self::Closed | Self::Idle | Self::Superseded | Self::Shutdown => None,
        }
    }

    /// The refusal of what came, where that made no sense.
    fn senseless(&self) -> Option<Refusal> {
        match self {
            Self::Protocol(why) => Some(Refusal::Senseless(why.clone())),
            Self::Frame(error) => error.is_senseless().then(|| Refusal::Senseless(error.to_string())),
            Self::Closed | Self::TheyRefuse(_) | Self::WeRefuse(_) | Self::Idle | Self::Superseded | Self::Shutdown => {
                None
            }
        }
    }
}

/// An encoded answer, and the size of its request.
type Answered = (Vec<u8>, usize);

/// Both sides of a connection, and its purpose.
pub(crate) struct Parties {
    /// This node, as it was at the handshake.
    pub(crate) local: LocalIdentity,
    /// The other side.
    pub(crate) peer: PeerIdentity,
    /// What the connection is for.
    pub(crate) purpose: Purpose,
    /// The right of the other side's process to act as its node; None = it is not limited.
    pub(crate) seat: Option<Seat>,
    /// Where the other side connects from, for the log.
    pub(crate) address: String,
}

/// One connection past its handshake.
///
/// Invariants: every request gets exactly one answer; `in_flight` and `bytes_in_flight` are the requests read and not
/// yet answered; AppendEntries go through openraft in the order they came; snapshot messages are served one at a
/// time, in order; no request is served after this node's identity changed, or another process took the peer's place.
pub(crate) struct Connection<I, S: Service> {
    stream: FrameStream<I>,
    pub(crate) service: Arc<S>,
    pub(crate) local: LocalIdentity,
    pub(crate) peer: PeerIdentity,
    purpose: Purpose,
    seat: Option<Seat>,
    address: String,
    refusals: Arc<RefusalLog>,
    pub(crate) incoming: Arc<Incoming>,
    pub(crate) appends: AppendFeed,
    others: FuturesUnordered<BoxFuture<'static, Answered>>,
    in_flight: usize,
    bytes_in_flight: usize,
    /// Set once nothing more is read: the reason, reported when all answers are written.
    ending: Option<End>,
    /// When a frame was last sent, or the first of the requests in flight arrived, whichever is later.
    last_sign_of_life: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<I, S> Connection<I, S>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Service,
{
    pub(crate) fn new(
        stream: FrameStream<I>,
        service: Arc<S>,
        Parties { local, peer, purpose, seat, address }: Parties,
        incoming: Arc<Incoming>,
        refusals: Arc<RefusalLog>,
    ) -> Self {
        let now = Instant::now();
        Self {
            stream,
            service,
            local,
            peer,
            purpose,
            seat,
            address,
            refusals,
            incoming,
            appends: AppendFeed::default(),
            others: FuturesUnordered::new(),
            in_flight: 0,
            bytes_in_flight: 0,
            ending: None,
            last_sign_of_life: now,
            timer: Box::pin(tokio::time::sleep_until(now + SERVED_IDLE_TIMEOUT)),
        }
    }

    /// Serves until the connection ends, and says why it did.
    pub(crate) async fn run(mut self, shutdown: &CancellationToken) -> End {
        let end = {
            let mut stopped = pin!(shutdown.cancelled());
            let mut drain = None;
            poll_fn(|cx| {
                if drain.is_none() && stopped.as_mut().poll(cx).is_ready() {
                    self.ending.get_or_insert(End::Shutdown);
                    drain = Some(Box::pin(tokio::time::sleep(DRAIN_TIMEOUT)));
                }
                if drain.as_mut().is_some_and(|drain| drain.as_mut().poll(cx).is_ready()) {
                    return Poll::Ready(End::Shutdown);
                }
                match self.poll_progress(cx) {
                    Ok(()) => Poll::Pending,
                    Err(end) => {
                        if let Some(refusal) = end.senseless() {
                            handshake::try_refuse(&mut self.stream, cx, &refusal);
                        }
                        Poll::Ready(end)
                    }
                }
            })
            .await
        };
        // Not where answers are left over: a peer that does not take them would never let this end.
        if matches!(end, End::WeRefuse(_) | End::Shutdown)
            && self.stream.output_bytes() == 0
            && let Err(error) = self.stream.finish().await
        {
            tracing::debug!(peer = %self.peer, %error, "the other side did not wait for the end");
        }
        end
    }

    /// Does what can be done now, and leaves wakers for the rest.
    fn poll_progress(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        loop {
            self.collect_answers(cx);
            let all_written = self.stream.poll_write(cx).map_err(FrameError::Io)?.is_ready();
            if self.ending.is_some() {
                if self.in_flight == 0 && all_written {
                    return Err(self.ending.take().unwrap_or(End::Closed));
                }
                return self.keep_alive(cx);
            }
            if !self.may_read() {
                return self.keep_alive(cx);
            }
            match self.stream.poll_frame(cx)? {
                Poll::Ready(frame) => self.dispatch(frame.ok_or(End::Closed)?)?,
                Poll::Pending => return self.keep_alive(cx),
            }
        }
    }

    fn collect_answers(&mut self, cx: &mut Context<'_>) {
        let before = self.in_flight;
        let Self { stream, appends, others, in_flight, bytes_in_flight, .. } = self;
        let mut answer = |frame, request_bytes: usize| {
            stream.push(frame);
            *in_flight -= 1;
            *bytes_in_flight -= request_bytes;
        };
        while let Poll::Ready(Some((frame, request_bytes))) = others.poll_next_unpin(cx) {
            answer(frame, request_bytes);
        }
        appends.poll_answers(cx, answer);
        if self.in_flight < before {
            self.last_sign_of_life = Instant::now();
        }
    }

    fn may_read(&self) -> bool {
        let requests_max = if self.purpose == Purpose::Snapshot { 1 } else { REQUESTS_SERVED_MAX };
        self.in_flight < requests_max
            && self.bytes_in_flight < REQUEST_BYTES_SERVED_MAX
            && self.stream.output_bytes() < ANSWER_BYTES_MAX
    }

    /// Gives signs of life while a request is being served or arrives slowly; ends the connection when none came for
    /// long.
    fn keep_alive(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let at_work = self.in_flight > 0 || self.stream.is_inside_frame();
        let interval = match self.purpose {
            _ if at_work => ALIVE_INTERVAL,
            Purpose::Raft => SERVED_IDLE_TIMEOUT_RAFT,
            Purpose::Peer | Purpose::Urgent | Purpose::Snapshot | Purpose::Guest => SERVED_IDLE_TIMEOUT,
        };
        loop {
            let due = self.last_sign_of_life + interval;
            // Moved only when it would be late, or when it fires: not for every request.
            if self.timer.deadline() > due {
                self.timer.as_mut().reset(due);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            let now = Instant::now();
            if now >= due {
                if !at_work {
                    return Err(End::Idle);
                }
                self.last_sign_of_life = now;
                self.say_alive(cx)?;
            }
            self.timer.as_mut().reset(self.last_sign_of_life + interval);
        }
    }

    fn say_alive(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        // A peer that takes nothing needs no more of them.
        if self.stream.output_bytes() == 0 {
            self.stream.push(frame::encode(0, Kind::Alive, &()).expect("an empty body fits"));
            if self.stream.poll_write(cx).map_err(FrameError::Io)?.is_pending() {
                tracing::trace!(peer = %self.peer, "the other side is slow to read");
            }
        }
        Ok(())
    }

    fn dispatch(&mut self, frame: Frame) -> Result<(), End> {
        if let Some(refusal) = handshake::refusal(&frame) {
            return Err(End::TheyRefuse(refusal));
        }
        if !self.belongs_here(frame.kind) {
            return Err(End::Protocol(format!("{:?} on a connection for {:?}", frame.kind, self.purpose)));
        }
        if self.in_flight == 0 {
            self.last_sign_of_life = Instant::now();
        }
        self.in_flight += 1;
        self.bytes_in_flight += frame.body.len();
        // First Raft, then the identity: see [`Service::raft`].
        let raft = self.service.raft();
        let now = self.service.local();
        if (now.node_id, now.cluster_id) != (self.local.node_id, self.local.cluster_id) {
            self.fail(&frame, &Failure::Refused(Refusal::IdentityChanged));
            self.ending = Some(End::WeRefuse(Refusal::IdentityChanged));
            return Ok(());
        }
        if self.seat.as_ref().is_some_and(Seat::is_lost) {
            // The next connection is refused, or shows that the other process has ended.
            self.fail(&frame, &Failure::Unavailable("another process acts as this node now".into()));
            self.ending = Some(End::Superseded);
            return Ok(());
        }
        let served = match (frame.kind, raft) {
            (Kind::Peer, _) => self.peer_request(&frame),
            (_, Some(raft)) => self.raft_request(&frame, raft),
            (_, None) => {
                self.fail(&frame, &Failure::Unavailable("the node is joining or leaving a cluster".into()));
                Ok(())
            }
        };
        served.map_err(|e| End::Protocol(e.to_string()))
    }

    fn belongs_here(&self, kind: Kind) -> bool {
        match kind {
            Kind::Append => matches!(self.purpose, Purpose::Raft | Purpose::Urgent),
            Kind::Vote | Kind::PreVote | Kind::TransferLeader => self.purpose == Purpose::Urgent,
            Kind::SnapshotOffer | Kind::SnapshotChunk | Kind::SnapshotFinish => self.purpose == Purpose::Snapshot,
            Kind::Peer => matches!(self.purpose, Purpose::Peer | Purpose::Urgent | Purpose::Guest),
            Kind::Hello
            | Kind::Challenge
            | Kind::Proof
            | Kind::Welcome
            | Kind::Refused
            | Kind::Answer
            | Kind::Failure
            | Kind::Alive => false,
        }
    }

    fn peer_request(&mut self, frame: &Frame) -> Result<(), NetError> {
        let Ok(request) = decode_body::<PeerRequest>("peer request", frame) else {
            // The frame is whole: a later version asks what this one does not know. Nothing was done.
            let why = format!("version {} of this node does not know the request", env!("CARGO_PKG_VERSION"));
            self.fail(frame, &Failure::Unavailable(why));
            return Ok(());
        };
        if !request.open_to_guests() && (self.peer.guest || !self.service.is_member(&self.peer)) {
            self.refuse(frame, &Refusal::NotAMember);
            return Ok(());
        }
        let answer = self.service.peer(self.peer.clone(), request);
        self.answer_with(frame, async move { Ok::<PeerResponse, Failure>(answer.await) });
        Ok(())
    }

    /// Serves a request concurrently with others.
    pub(crate) fn answer_with<R: Serialize + 'static>(
        &mut self,
        frame: &Frame,
        answer: impl Future<Output = Result<R, Failure>> + Send + 'static,
    ) {
        let (id, request_bytes) = (frame.id, frame.body.len());
        self.others.push(Box::pin(async move {
            let frame = match answer.await {
                Ok(answer) => encode_answer(id, &answer),
                Err(failure) => encode_failure(id, &failure),
            };
            (frame, request_bytes)
        }));
    }

    /// Refuses a request that was just read, and logs that.
    pub(crate) fn refuse(&mut self, frame: &Frame, refusal: &Refusal) {
        self.refusals.warn(&self.address, RefusedBy::Us, refusal);
        self.service.refused_request(&self.peer, refusal);
        self.fail(frame, &Failure::Refused(refusal.clone()));
    }

    /// Answers a request that was just read with a failure.
    pub(crate) fn fail(&mut self, frame: &Frame, failure: &Failure) {
        self.stream.push(encode_failure(frame.id, failure));
        self.in_flight -= 1;
        self.bytes_in_flight -= frame.body.len();
    }
}
