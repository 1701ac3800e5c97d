//! Makes connections to other nodes and drives them.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hexkv_store::NodeId;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{Instant, Sleep},
};

use crate::{
    cookie::Cookie,
    dialer::Dialer,
    error::{NetError, Refusal},
    frame::{Frame, FrameError, Kind},
    frame_stream::FrameStream,
    handshake::{self, ANY_NODE, HandshakeError},
    identity::{LocalIdentity, PeerIdentity, Purpose},
    process::{Processes, Seat},
    refusal_log::{RefusalLog, RefusedBy},
    request_queue::RequestQueue,
    transport::Transport,
};

/// Longest time for a handshake, on both sides.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection on which a request waits and nothing at all arrives for this long is taken for dead. The serving side
/// gives a sign of life every [`ALIVE_INTERVAL`] as long as it is at work.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of signs of life while a request is being served.
pub const ALIVE_INTERVAL: Duration = Duration::from_millis(200);
/// A connection without requests is closed by the side that made it after this long, unless it is kept open.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes handed to a connection at once; the rest waits where it can still be given up.
const OUTPUT_BYTES_MAX: usize = 256 * 1024;

/// Looks up where a node is known to listen.
pub(crate) type AddressOf = Arc<dyn Fn(NodeId) -> Option<String> + Send + Sync>;

/// What every connection that this node makes has in common.
pub(crate) struct Connector<T> {
    dialer: Dialer<T>,
    local: Arc<dyn Fn() -> LocalIdentity + Send + Sync>,
    cookie: Cookie,
    refusals: RefusalLog,
    /// Where a node is known to listen.
    address_of: AddressOf,
    pub(crate) processes: Processes,
    /// The last refusal by a member that proved the cookie.
    pub(crate) refused: watch::Sender<Option<Refusal>>,
}

impl<T: Transport> Connector<T> {
    pub(crate) fn new(
        transport: T,
        local: Arc<dyn Fn() -> LocalIdentity + Send + Sync>,
        cookie: Cookie,
        address_of: AddressOf,
    ) -> Self {
        let (refusals, processes, refused) = (RefusalLog::default(), Processes::default(), watch::Sender::new(None));
        Self { dialer: Dialer::new(transport), local, cookie, refusals, address_of, processes, refused }
    }

    /// What makes connections, before any handshake.
    pub(crate) fn dialer(&self) -> &Dialer<T> {
        &self.dialer
    }

    /// Who this node is now.
    pub(crate) fn local(&self) -> LocalIdentity {
        (self.local)()
    }

    /// A connection to `expected` at `address`, past the handshake. A member's process must be the one that acts as it.
    pub(crate) async fn connect(
        &self,
        address: &str,
        purpose: Purpose,
        expected: NodeId,
    ) -> Result<(FrameStream<T::Stream>, PeerIdentity), NetError> {
        let (mut stream, peer) = self.open(address, purpose, expected).await?;
        if purpose != Purpose::Guest
            && let Err(refusal) = self.admit(&peer, address, true).await
        {
            let sent = handshake::refuse(&mut stream, refusal.clone());
            if tokio::time::timeout(HANDSHAKE_TIMEOUT, sent).await.is_err() {
                tracing::debug!(%peer, "the refused side does not read");
            }
            self.refusals.warn(address, RefusedBy::Us, &refusal);
            return Err(NetError::Refused(refusal));
        }
        Ok((stream, peer))
    }

    /// Whether `peer`, which connected from, or was reached at, `address`, may act as its node.
    pub(crate) async fn admit(
        &self,
        peer: &PeerIdentity,
        address: &str,
        dialled: bool,
    ) -> Result<Option<Seat>, Refusal> {
        let known = (self.address_of)(peer.node_id);
        let probe = |at: String| async move {
            let (_, found) = self.open(&at, Purpose::Guest, ANY_NODE).await.ok()?;
            found.process.filter(|_| found.node_id == peer.node_id)
        };
        self.processes.admit(peer, address, dialled, known, probe).await
    }

    /// Logs a refusal after the handshake, and passes on one of this node.
    fn note_refusal(&self, address: &str, by: RefusedBy, refusal: &Refusal) {
        self.refusals.warn(address, by, refusal);
        if by == RefusedBy::Them {
            self.refused.send_replace(Some(refusal.clone()));
        }
    }

    /// A connection past the handshake, whichever process answers.
    async fn open(
        &self,
        address: &str,
        purpose: Purpose,
        expected: NodeId,
    ) -> Result<(FrameStream<T::Stream>, PeerIdentity), NetError> {
        let failed = |e| NetError::connect(address, e);
        let dialed = self.dialer.dial(address).await.map_err(failed)?;
        let mut stream = FrameStream::new(dialed.stream);
        match self.shake_hands(&mut stream, address, purpose, expected).await {
            Ok(peer) => {
                self.dialer.confirm(&dialed.route);
                Ok((stream, peer))
            }
            Err(e) => {
                self.dialer.refute(&dialed.route);
                Err(e)
            }
        }
    }

    async fn shake_hands(
        &self,
        stream: &mut FrameStream<T::Stream>,
        address: &str,
        purpose: Purpose,
        expected: NodeId,
    ) -> Result<PeerIdentity, NetError> {
        let failed = |e| NetError::connect(address, e);
        let timed_out = || failed(io::Error::new(io::ErrorKind::TimedOut, "no handshake in time"));
        let local = self.local();
        let shaken = handshake::initiate(stream, &local, &self.cookie, purpose, expected);
        let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, shaken).await.map_err(|_| timed_out())?;
        match shaken {
            Ok(peer) => Ok(peer),
            Err(HandshakeError::WeRefuse(refusal)) => {
                self.refusals.warn(address, RefusedBy::Us, &refusal);
                Err(NetError::Refused(refusal))
            }
            Err(HandshakeError::TheyRefuse(refusal)) => {
                self.refusals.warn(address, RefusedBy::Them, &refusal);
                Err(NetError::Refused(refusal))
            }
            Err(other) => {
                if let Some(refusal) = other.no_handshake() {
                    self.refusals.warn(address, RefusedBy::Us, &refusal);
                }
                Err(failed(io::Error::new(io::ErrorKind::InvalidData, other)))
            }
        }
    }

    /// Logs what arrived past the handshake where it is no message.
    pub(crate) fn log_senseless(&self, address: &str, error: &FrameError) {
        if error.is_senseless() {
            self.refusals.warn(address, RefusedBy::Us, &Refusal::Senseless(error.to_string()));
        }
    }

    /// Logs that what the node at `address` sent is refused.
    pub(crate) fn log_refused(&self, address: &str, refusal: &Refusal) {
        self.refusals.warn(address, RefusedBy::Us, refusal);
    }

    /// Connects and reconnects as long as `queue` has requests or is kept open, and carries them. Ends when it has none.
    pub(crate) async fn drive(self: Arc<Self>, queue: Arc<RequestQueue>) {
        let retired = queue.retired.clone();
        // Whoever retires the queue fails its requests; here only the connection has to go.
        retired.run_until_cancelled(self.drive_until_idle(&queue)).await;
    }

    async fn drive_until_idle(&self, queue: &RequestQueue) {
        loop {
            wait_to_connect(queue).await;
            let address = queue.address();
            match self.connect(&address, queue.purpose, queue.target).await {
                Ok((stream, peer)) => {
                    tracing::debug!(%peer, address, purpose = ?queue.purpose, "connected");
                    let connected_at = Instant::now();
                    let end = Carrier::new(stream, queue).run().await;
                    tracing::debug!(%peer, address, purpose = ?queue.purpose, %end, "disconnected");
                    if let Some((by, refusal)) = end.refusal() {
                        self.note_refusal(&address, by, &refusal);
                    }
                    queue.disconnected(&end.into_error(), connected_at.elapsed());
                }
                Err(error) => {
                    tracing::debug!(address, purpose = ?queue.purpose, %error, "not connected");
                    queue.contact.note_trouble(error.to_string());
                    queue.connect_failed(&error);
                }
            }
            if queue.release_driver() {
                return;
            }
        }
    }
}

/// Waits out the delay before the next attempt to connect. A request that comes meanwhile shortens it.
async fn wait_to_connect(queue: &RequestQueue) {
    let mut timer = pin!(tokio::time::sleep_until(Instant::now()));
    poll_fn(|cx| {
        let Some(due) = queue.connect_due(cx) else { return Poll::Ready(()) };
        timer.as_mut().reset(due);
        timer.as_mut().poll(cx)
    })
    .await;
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("closed by the other side")]
    Closed,
    #[error("no request for {IDLE_TIMEOUT:?}")]
    Idle,
    #[error("nothing arrived for {STALL_TIMEOUT:?} while a request waited")]
    Stalled,
    #[error("refused: {0}")]
    Refused(Refusal),
    #[error("{0:?} came in place of an answer")]
    Unexpected(Kind),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl End {
    /// The refusal to log, and whose it is.
    fn refusal(&self) -> Option<(RefusedBy, Refusal)> {
        match self {
            Self::Refused(refusal) => Some((RefusedBy::Them, refusal.clone())),
            Self::Unexpected(_) | Self::Frame(_) => self.senseless().map(|refusal| (RefusedBy::Us, refusal)),
            Self::Closed | Self::Idle | Self::Stalled => None,
        }
    }

    /// The refusal of what came, where that made no sense.
    fn senseless(&self) -> Option<Refusal> {
        let senseless = match self {
            Self::Unexpected(_) => true,
            Self::Frame(error) => error.is_senseless(),
            Self::Closed | Self::Idle | Self::Stalled | Self::Refused(_) => false,
        };
        senseless.then(|| Refusal::Senseless(self.to_string()))
    }

    /// What callers whose request was sent are told.
    fn into_error(self) -> NetError {
        match self {
            Self::Closed | Self::Idle | Self::Stalled | Self::Frame(FrameError::Io(_) | FrameError::Cut) => {
                NetError::Closed { sent: true }
            }
            // Said of one frame: others that were sent before it may have been served.
            Self::Refused(Refusal::Senseless(why)) => NetError::Protocol(why),
            Self::Refused(refusal) => NetError::Refused(refusal),
            Self::Unexpected(_) | Self::Frame(_) => NetError::Protocol(self.to_string()),
        }
    }
}

/// Carries requests and answers over one connection. Invariants: `unanswered` is the number of requests handed to the
/// connection minus answers that arrived, given-up requests included, because the other side answers each one; the
/// timer is never later than the next time at which the connection has to be judged.
struct Carrier<'a, S> {
    stream: FrameStream<S>,
    queue: &'a RequestQueue,
    unanswered: usize,
    /// When the other side last showed that it lives, or the first of the unanswered requests was sent.
    last_progress: Instant,
    /// The last write found no room.
    blocked: bool,
    timer: Pin<Box<Sleep>>,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Carrier<'a, S> {
    fn new(stream: FrameStream<S>, queue: &'a RequestQueue) -> Self {
        let now = Instant::now();
        queue.contact.note_connected(now);
        let timer = Box::pin(tokio::time::sleep_until(now + IDLE_TIMEOUT));
        Self { stream, queue, unanswered: 0, last_progress: now, blocked: false, timer }
    }

    async fn run(mut self) -> End {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        match self.poll_progress(cx) {
            Ok(()) => Poll::Pending,
            Err(end) => {
                if let Some(refusal) = end.senseless() {
                    handshake::try_refuse(&mut self.stream, cx, &refusal);
                }
                Poll::Ready(end)
            }
        }
    }

    /// Does what can be done now, and leaves wakers for the rest.
    fn poll_progress(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        self.send(cx)?;
        while let Poll::Ready(frame) = self.stream.poll_frame(cx)? {
            self.receive(frame.ok_or(End::Closed)?)?;
        }
        self.judge(cx)
    }

    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        loop {
            let room = OUTPUT_BYTES_MAX.saturating_sub(self.stream.output_bytes());
            let sent = self.queue.hand_over(cx, room, |frame| self.stream.push(frame));
            let before = self.stream.output_bytes();
            let written = self.stream.poll_write(cx).map_err(FrameError::Io)?;
            let first = sent > 0 && self.unanswered == 0;
            // Buffers of the operating system take small requests also for a dead peer; they take more after they
            // were full only when the peer took some.
            if first || (self.blocked && self.stream.output_bytes() < before) {
                self.last_progress = Instant::now();
            }
            self.unanswered += sent;
            self.blocked = written.is_pending();
            match written {
                Poll::Ready(()) if sent > 0 => {}
                Poll::Ready(()) | Poll::Pending => return Ok(()),
            }
        }
    }

    fn receive(&mut self, frame: Frame) -> Result<(), End> {
        self.last_progress = Instant::now();
        self.queue.contact.note(self.last_progress);
        match frame.kind {
            Kind::Answer | Kind::Failure => {
                self.unanswered = self.unanswered.checked_sub(1).ok_or(End::Unexpected(frame.kind))?;
                self.queue.deliver(frame);
                Ok(())
            }
            Kind::Alive => Ok(()),
            other => Err(handshake::refusal(&frame).map_or(End::Unexpected(other), End::Refused)),
        }
    }

    /// Ends a connection that is dead or not needed.
    fn judge(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        loop {
            let (due, end) = match self.unanswered {
                0 => (self.last_progress + IDLE_TIMEOUT, End::Idle),
                _ => (self.last_progress + STALL_TIMEOUT, End::Stalled),
            };
            // The timer is moved only when it would be late, or when it fires: not for every request.
            if self.timer.deadline() > due {
                self.timer.as_mut().reset(due);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            let now = Instant::now();
            match end {
                End::Idle if now >= due && self.queue.is_kept_open() => self.last_progress = now,
                _ if now >= due => return Err(end),
                _ => {}
            }
            self.timer.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;
    use crate::{contact::Contact, frame, frame::FRAME_BYTES_MAX};

    fn carried() -> (Arc<RequestQueue>, FrameStream<DuplexStream>, FrameStream<DuplexStream>) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (near, mut far) = (FrameStream::new(near), FrameStream::new(far));
        far.set_limit(FRAME_BYTES_MAX);
        (Arc::new(RequestQueue::new(1, Purpose::Peer, Arc::new(Contact::default()))), near, far)
    }

    fn submit(queue: &Arc<RequestQueue>) -> crate::request_queue::Call {
        let id = queue.next_id();
        queue.submit(id, frame::encode(id, Kind::Peer, &id).unwrap(), "here:1").unwrap().0
    }

    #[tokio::test]
    async fn answers_find_their_requests_in_any_order() {
        let (queue, near, mut far) = carried();
        let calls = [submit(&queue), submit(&queue), submit(&queue)];
        let serve = async {
            let mut ids = Vec::new();
            for _ in 0..3 {
                ids.push(far.read().await.unwrap().unwrap().id);
            }
            for id in [ids[2], ids[0], ids[1]] {
                far.write(frame::encode(id, Kind::Answer, &(id * 10)).unwrap()).await.unwrap();
            }
        };
        let answers = async {
            for (call, expected) in calls.into_iter().zip([10u64, 20, 30]) {
                let frame = call.within(Duration::from_secs(5)).await.unwrap();
                assert_eq!(crate::message::decode_answer::<u64>("number", &frame).unwrap(), expected);
            }
        };
        tokio::select! {
            end = Carrier::new(near, &queue).run() => panic!("{end}"),
            _ = async { tokio::join!(serve, answers) } => {}
        }
        assert!(queue.contact.last().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_taken_for_dead_and_a_working_one_is_not() {
        let (queue, near, mut far) = carried();
        let call = submit(&queue);
        let started = Instant::now();
        let working = 10 * ALIVE_INTERVAL;
        let serve = async {
            while started.elapsed() < working {
                tokio::time::sleep(ALIVE_INTERVAL).await;
                far.write(frame::encode(0, Kind::Alive, &()).unwrap()).await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let end = tokio::select! {
            end = Carrier::new(near, &queue).run() => end,
            () = serve => unreachable!("it never ends"),
        };
        assert!(matches!(end, End::Stalled));
        assert!(started.elapsed() >= working + STALL_TIMEOUT, "{:?}", started.elapsed());
        queue.disconnected(&end.into_error(), Duration::ZERO);
        assert!(call.within(STALL_TIMEOUT).await.unwrap_err().maybe_delivered());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_a_large_request_slowly_is_not_taken_for_dead() {
        use tokio::io::AsyncReadExt;
        let (near, mut far) = tokio::io::duplex(1000);
        let queue = Arc::new(RequestQueue::new(1, Purpose::Peer, Arc::new(Contact::default())));
        let id = queue.next_id();
        let request = frame::encode(id, Kind::Peer, &vec![7u8; 20_000]).unwrap();
        let mut left = request.len();
        let (call, _) = queue.submit(id, request, "here:1").unwrap();
        let serve = async {
            let mut part = [0; 1000];
            while left > 0 {
                tokio::time::sleep(STALL_TIMEOUT / 2).await;
                left -= far.read(&mut part).await.unwrap();
            }
            let mut far = FrameStream::new(far);
            far.write(frame::encode(id, Kind::Answer, &()).unwrap()).await.unwrap();
            call.within(STALL_TIMEOUT).await.unwrap();
        };
        tokio::select! {
            end = Carrier::new(FrameStream::new(near), &queue).run() => panic!("{end}"),
            () = serve => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_unless_it_is_kept_open() {
        let (queue, near, far) = carried();
        assert!(queue.keep_open(Some("here:1")), "nothing drives it yet");
        let carried = Carrier::new(near, &queue).run();
        let mut carried = pin!(carried);
        tokio::time::timeout(10 * IDLE_TIMEOUT, &mut carried).await.expect_err("it is kept open");
        assert!(!queue.keep_open(None));
        tokio::time::timeout(2 * IDLE_TIMEOUT, &mut carried).await.expect("it is idle");
        drop(far);
    }

    #[tokio::test]
    async fn a_refusal_in_place_of_answers_is_told_to_all_who_wait() {
        let (queue, near, mut far) = carried();
        let calls = [submit(&queue), submit(&queue)];
        far.write(frame::encode(0, Kind::Refused, &Refusal::TooManyConnections).unwrap()).await.unwrap();
        let end = Carrier::new(near, &queue).run().await;
        queue.disconnected(&end.into_error(), Duration::ZERO);
        for call in calls {
            let error = call.within(Duration::from_secs(5)).await.unwrap_err();
            assert!(matches!(error, NetError::Refused(Refusal::TooManyConnections)), "{error:?}");
        }
    }

    #[tokio::test]
    async fn requests_before_one_that_made_no_sense_may_have_been_served() {
        let (queue, near, mut far) = carried();
        let call = submit(&queue);
        let refusal = Refusal::Senseless("checksum mismatch".into());
        far.write(frame::encode(0, Kind::Refused, &refusal).unwrap()).await.unwrap();
        let end = Carrier::new(near, &queue).run().await;
        assert!(matches!(end.refusal(), Some((RefusedBy::Them, told)) if told == refusal));
        queue.disconnected(&end.into_error(), Duration::ZERO);
        let error = call.within(Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, NetError::Protocol(_)) && error.maybe_delivered(), "{error:?}");
    }

    #[tokio::test]
    async fn an_answer_to_nothing_ends_the_connection() {
        let (queue, near, mut far) = carried();
        far.write(frame::encode(9, Kind::Answer, &()).unwrap()).await.unwrap();
        assert!(matches!(Carrier::new(near, &queue).run().await, End::Unexpected(Kind::Answer) | End::Frame(_)));
    }
}
