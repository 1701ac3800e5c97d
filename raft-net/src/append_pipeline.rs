//! Log replication to one peer: several AppendEntries on their way at once, their results in order.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use hexkv_store::{
    TypeConfig,
    raft_types::{LogId, Vote},
};
use openraft::{
    EntryPayload, RPCTypes,
    errors::RPCError,
    raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult},
};
use tokio::time::{Instant, Sleep};

use crate::{
    error::NetError,
    frame::{Frame, Kind},
    message::{AppendAnswer, decode_answer},
    raft_check::check_append_answer,
    raft_client::PeerClient,
    request_queue::Call,
    transport::Transport,
};

/// Longest wait for the answer to one AppendEntries. openraft suggests its heartbeat interval, but the answer waits for
/// a sync, and on a busy disk a sync takes longer than that.
pub const APPEND_TIMEOUT: Duration = Duration::from_secs(2);
/// Most AppendEntries on their way to one peer.
pub const APPENDS_IN_FLIGHT_MAX: usize = 16;
/// Most bytes of entries on their way to one peer; a single request may be larger.
pub const APPEND_BYTES_IN_FLIGHT_MAX: usize = 8 * 1024 * 1024;

/// The stream of results. Invariants: `window` holds requests in the order of `input`, whose results are yielded in
/// that order; nothing is yielded after the first conflict, higher vote or error; at most
/// [`APPENDS_IN_FLIGHT_MAX`] requests and, beyond the first, [`APPEND_BYTES_IN_FLIGHT_MAX`] bytes are in the window.
pub(crate) struct AppendPipeline<'s, T: Transport, S> {
    client: &'s PeerClient<T>,
    /// None when openraft has nothing more to send, or nothing more may be sent.
    input: Option<S>,
    window: VecDeque<InFlight>,
    window_bytes: usize,
    /// For the first request of the window.
    timer: Pin<Box<Sleep>>,
}

struct InFlight {
    call: Result<Call, NetError>,
    bytes: usize,
    vote: Vote,
    /// The entry that those sent follow, and the last one of them.
    ends: (Option<LogId>, Option<LogId>),
    /// Index of an entry before those that are sent which the peer acknowledged before: it cannot be missing there.
    acknowledged: Option<u64>,
    asked_at: Instant,
    deadline: Instant,
}

impl<'s, T: Transport, S> AppendPipeline<'s, T, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    pub(crate) fn new(client: &'s PeerClient<T>, input: S) -> Self {
        let timer = Box::pin(tokio::time::sleep(APPEND_TIMEOUT));
        Self { client, input: Some(input), window: VecDeque::new(), window_bytes: 0, timer }
    }

    /// Sends what openraft has, as far as the window allows.
    fn fill(&mut self, cx: &mut Context<'_>) {
        while self.window.len() < APPENDS_IN_FLIGHT_MAX
            && (self.window.is_empty() || self.window_bytes < APPEND_BYTES_IN_FLIGHT_MAX)
            && let Some(input) = &mut self.input
        {
            let Poll::Ready(next) = input.poll_next_unpin(cx) else { return };
            let Some(request) = next else {
                self.input = None;
                return;
            };
            // Before it is sent: what the peer grants by its answer counts from here.
            let asked_at = Instant::now();
            let acknowledged = self.client.acknowledged_before(&request);
            let call = self.client.submit(Kind::Append, &request);
            if call.is_err() {
                // Its error is yielded in its turn, and ends the stream.
                self.input = None;
            }
            let bytes = entry_bytes(&request);
            self.window_bytes += bytes;
            let (vote, deadline) = (request.vote, asked_at + APPEND_TIMEOUT);
            let previous = request.prev_log_id;
            let ends = (previous, request.entries.last().map(|entry| entry.log_id).or(previous));
            self.window.push_back(InFlight { call, bytes, vote, ends, acknowledged, asked_at, deadline });
        }
    }

    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, NetError>>> {
        let Some(first) = self.window.front_mut() else {
            return if self.input.is_none() { Poll::Ready(None) } else { Poll::Pending };
        };
        let call = match &mut first.call {
            Ok(call) => call,
            Err(e) => return Poll::Ready(Some(Err(e.clone()))),
        };
        if let Poll::Ready(answer) = call.poll_answer(cx) {
            return Poll::Ready(Some(answer));
        }
        // Moved lazily: only when it fires too early for the request that is first by now.
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= first.deadline {
                return Poll::Ready(Some(Err(call.time_out())));
            }
            self.timer.as_mut().reset(first.deadline);
        }
        Poll::Pending
    }

    fn end(&mut self) {
        self.input = None;
        self.window.clear();
        self.window_bytes = 0;
    }
}

impl<T: Transport, S> Stream for AppendPipeline<'_, T, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    type Item = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        this.fill(cx);
        let answer = match this.poll_first(cx) {
            Poll::Ready(Some(answer)) => answer,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => return Poll::Pending,
        };
        let mut result = answer.and_then(|frame| decode_answer::<AppendAnswer>("append answer", &frame));
        if let Some(first) = this.window.pop_front() {
            this.window_bytes -= first.bytes;
            let (previous, last) = first.ends;
            result = result.and_then(|answer| {
                let checked = check_append_answer(&answer, &first.vote, previous, last);
                checked.map(|()| answer).map_err(|refusal| this.client.refused_answer(refusal))
            });
            match &result {
                Ok(Ok(matched)) => {
                    this.client.note_grant(&first.vote, first.asked_at);
                    this.client.note_acknowledged(&first.vote, *matched);
                }
                Ok(Err(StreamAppendError::Conflict(_))) => {
                    if let Some(missing) = first.acknowledged {
                        result = Err(this.client.lost_entries(&first.vote, missing));
                    }
                }
                Ok(Err(StreamAppendError::HigherVote(_))) | Err(_) => {}
            }
        }
        if !matches!(result, Ok(Ok(_))) {
            this.end();
        }
        Poll::Ready(Some(result.map_err(|e| this.client.rpc_error(&e, RPCTypes::AppendEntries, APPEND_TIMEOUT))))
    }
}

fn entry_bytes(request: &AppendEntriesRequest<TypeConfig>) -> usize {
    let of_entry = |payload: &EntryPayload<_, _, _>| match payload {
        EntryPayload::Normal(proposal) => hexkv_store::Proposal::size_bytes(proposal),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    };
    request.entries.iter().map(|entry| of_entry(&entry.payload)).sum()
}

#[cfg(test)]
mod tests {
    use std::{io, net::SocketAddr, sync::Arc};

    use futures_util::stream;
    use hexkv_store::driver::Driver;
    use openraft::vote::{RaftLeaderId, RaftVote};
    use tokio::{io::DuplexStream, sync::mpsc};

    use super::*;
    use crate::{
        Cookie, LocalIdentity, Network,
        frame::{FRAME_BYTES_MAX, encode},
        frame_stream::FrameStream,
        handshake,
        transport::{Accepted, Listener},
    };

    /// In-memory streams: the far ends arrive in a channel.
    #[derive(Clone)]
    struct Pipes(mpsc::UnboundedSender<DuplexStream>);
    struct NoListener;

    impl Transport for Pipes {
        type Stream = DuplexStream;
        type Listener = NoListener;
        async fn resolve(&self, _: &str) -> io::Result<Vec<SocketAddr>> {
            Ok(vec![([127, 0, 0, 1], 0).into()])
        }
        async fn connect(&self, _: SocketAddr) -> io::Result<DuplexStream> {
            let (near, far) = tokio::io::duplex(1024 * 1024);
            self.0.send(far).map_err(|_| io::ErrorKind::ConnectionRefused)?;
            Ok(near)
        }
        async fn bind(&self, _: &str) -> io::Result<NoListener> {
            Ok(NoListener)
        }
    }

    impl Listener for NoListener {
        type Stream = DuplexStream;
        async fn accept(&mut self) -> io::Result<Accepted<DuplexStream>> {
            std::future::pending().await
        }
        fn local_addr(&self) -> io::Result<SocketAddr> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn identity(node_id: u64) -> LocalIdentity {
        LocalIdentity { cluster_id: Some(1), node_id, incarnation: 1, name: format!("n{node_id}"), process: node_id }
    }

    fn log_id(index: u64) -> LogId {
        let leader = openraft::type_config::alias::LeaderIdOf::<TypeConfig>::new(1, 1);
        LogId::new(leader.to_committed(), index)
    }

    fn request(index: u64) -> AppendEntriesRequest<TypeConfig> {
        let leader = openraft::type_config::alias::LeaderIdOf::<TypeConfig>::new(1, 1);
        let vote = Vote::from_leader_id(leader, true);
        AppendEntriesRequest { vote, prev_log_id: Some(log_id(index)), entries: vec![], leader_commit: None }
    }

    /// A client with endless requests, and the other side past its handshake.
    async fn peer() -> (PeerClient<Pipes>, mpsc::UnboundedReceiver<DuplexStream>) {
        let (network, rx) = network();
        (client(&network).await, rx)
    }

    fn network() -> (Network<Pipes>, mpsc::UnboundedReceiver<DuplexStream>) {
        let (tx, rx) = mpsc::unbounded_channel();
        (Network::new(Pipes(tx), Arc::new(|| identity(1)), Cookie::new("c"), Driver::Thread), rx)
    }

    async fn client(network: &Network<Pipes>) -> PeerClient<Pipes> {
        let address = hexkv_store::NodeAddress { name: "n2".into(), raft: "n2:1".into() };
        openraft::RaftNetworkFactory::new_client(&mut network.factory(), 2, &address).await
    }

    async fn accept(connections: &mut mpsc::UnboundedReceiver<DuplexStream>) -> FrameStream<DuplexStream> {
        let mut far = FrameStream::new(connections.recv().await.unwrap());
        handshake::respond(&mut far, &identity(2), &Cookie::new("c")).await.unwrap();
        far.set_limit(FRAME_BYTES_MAX);
        far
    }

    async fn answer(far: &mut FrameStream<DuplexStream>, id: u64, answer: AppendAnswer) {
        far.write(encode(id, Kind::Answer, &answer).unwrap()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_of_requests_is_under_way_and_results_keep_their_order() {
        let (client, mut connections) = peer().await;
        let mut results = AppendPipeline::new(&client, stream::iter((0..).map(request)));
        let serve = async {
            let mut far = accept(&mut connections).await;
            let mut ids = Vec::new();
            for _ in 0..APPENDS_IN_FLIGHT_MAX {
                ids.push(far.read().await.unwrap().unwrap().id);
            }
            let quiet = tokio::time::timeout(APPEND_TIMEOUT / 4, far.read()).await;
            assert!(quiet.is_err(), "no more than the window before the first answer");
            for (index, id) in ids.iter().enumerate().rev() {
                answer(&mut far, *id, Ok(Some(log_id(index as u64)))).await;
            }
            far.read().await.unwrap().unwrap();
            far
        };
        let consume = async {
            for index in 0..APPENDS_IN_FLIGHT_MAX as u64 {
                assert_eq!(results.next().await.unwrap().unwrap(), Ok(Some(log_id(index))));
            }
            // Keeps the stream going, so that the next window is sent.
            results.next().await
        };
        tokio::select! {
            _far = serve => {}
            more = consume => panic!("nobody answered the next window, but {more:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_conflict_ends_the_stream_and_leaves_the_connection_usable() {
        let (client, mut connections) = peer().await;
        let serve = async {
            let mut far = accept(&mut connections).await;
            let first = far.read().await.unwrap().unwrap().id;
            answer(&mut far, first, Err(StreamAppendError::Conflict(log_id(7)))).await;
            for id in first + 1..first + APPENDS_IN_FLIGHT_MAX as u64 {
                assert_eq!(far.read().await.unwrap().unwrap().id, id);
                answer(&mut far, id, Ok(None)).await;
            }
            let id = far.read().await.unwrap().unwrap().id;
            answer(&mut far, id, Ok(Some(log_id(3)))).await;
            far
        };
        let consume = async {
            let mut results = AppendPipeline::new(&client, stream::iter((7..).map(request)));
            let first = results.next().await.unwrap().unwrap();
            assert_eq!(first, Err(StreamAppendError::Conflict(log_id(7))));
            assert!(results.next().await.is_none());
            let mut results = AppendPipeline::new(&client, stream::iter([request(3)]));
            assert_eq!(results.next().await.unwrap().unwrap(), Ok(Some(log_id(3))));
            assert!(results.next().await.is_none(), "the input is exhausted");
        };
        tokio::join!(serve, consume);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_come_is_a_timeout_and_a_lost_connection_is_a_network_error() {
        let (client, mut connections) = peer().await;
        let started = Instant::now();
        let serve = async {
            let mut far = accept(&mut connections).await;
            far.read().await.unwrap().unwrap();
            while started.elapsed() < APPEND_TIMEOUT * 2 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                far.write(encode(0, Kind::Alive, &()).unwrap()).await.unwrap();
            }
            // Ends while the second stream waits.
            drop(far);
            let refused = accept(&mut connections).await;
            drop(refused);
        };
        let consume = async {
            let one = || stream::iter([request(3)]).chain(stream::pending());
            let first = AppendPipeline::new(&client, one()).next().await.unwrap();
            assert!(matches!(first, Err(RPCError::Timeout(_))), "{first:?}");
            assert_eq!(started.elapsed().as_secs(), APPEND_TIMEOUT.as_secs());
            tokio::time::sleep_until(started + APPEND_TIMEOUT + APPEND_TIMEOUT / 2).await;
            let second = AppendPipeline::new(&client, one()).next().await.unwrap();
            assert!(matches!(second, Err(RPCError::Network(_))), "{second:?}");
        };
        tokio::select! {
            () = async { serve.await; std::future::pending().await } => {}
            () = consume => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_a_grant_from_when_its_own_request_was_sent() {
        let (network, mut connections) = network();
        let client = client(&network).await;
        let begun = Instant::now();
        let later = Duration::from_millis(300);
        // Both end at the same log id: openraft takes the answer to the first for one to the second, too.
        let second = stream::once(Box::pin(async move {
            tokio::time::sleep(later).await;
            request(3)
        }));
        let mut results = AppendPipeline::new(&client, stream::iter([request(3)]).chain(second));
        let serve = async {
            let mut far = accept(&mut connections).await;
            let first = far.read().await.unwrap().unwrap().id;
            let second = far.read().await.unwrap().unwrap().id;
            answer(&mut far, first, Ok(Some(log_id(3)))).await;
            (far, second)
        };
        let (first, (mut far, second)) = tokio::join!(results.next(), serve);
        assert_eq!(first.unwrap().unwrap(), Ok(Some(log_id(3))));
        assert_eq!(network.granted(2).unwrap().asked_at, begun);
        answer(&mut far, second, Ok(Some(log_id(3)))).await;
        results.next().await.unwrap().unwrap().unwrap();
        assert_eq!(network.granted(2).unwrap(), crate::Grant { term: 1, leader: 1, asked_at: begun + later });
        network.reset();
        assert_eq!(network.granted(2), None, "this node is another one now");
    }

    #[tokio::test(start_paused = true)]
    async fn a_conflict_at_an_acknowledged_entry_is_an_error_and_no_conflict() {
        let (network, mut connections) = network();
        let client = client(&network).await;
        let serve = async {
            let mut far = accept(&mut connections).await;
            for reply in [Ok(Some(log_id(7))), Err(StreamAppendError::Conflict(log_id(7)))] {
                let id = far.read().await.unwrap().unwrap().id;
                answer(&mut far, id, reply).await;
            }
            far
        };
        let consume = async {
            let mut first = AppendPipeline::new(&client, stream::iter([request(7)]));
            first.next().await.unwrap().unwrap().unwrap();
            AppendPipeline::new(&client, stream::iter([request(7)])).next().await.unwrap()
        };
        let (second, _far) = tokio::join!(consume, serve);
        assert!(matches!(second, Err(RPCError::Unreachable(_))), "openraft backs off: {second:?}");
        let lost = network.lost_entries();
        assert_eq!(lost, [crate::LostEntries { node_id: 2, acknowledged: 7, missing: 7 }]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_accepted_grants_nothing() {
        let later = Vote::from_leader_id(openraft::type_config::alias::LeaderIdOf::<TypeConfig>::new(2, 2), false);
        for refusal in [StreamAppendError::Conflict(log_id(7)), StreamAppendError::HigherVote(later)] {
            let (network, mut connections) = network();
            let client = client(&network).await;
            let mut results = AppendPipeline::new(&client, stream::iter([request(7)]));
            let serve = async {
                let mut far = accept(&mut connections).await;
                let id = far.read().await.unwrap().unwrap().id;
                answer(&mut far, id, Err(refusal)).await;
                far
            };
            let (result, _far) = tokio::join!(results.next(), serve);
            result.unwrap().unwrap().unwrap_err();
            assert_eq!(network.granted(2), None);
        }
    }
}
