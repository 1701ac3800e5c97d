//! Requests to one peer for one purpose: those that wait to be sent and those that wait for an answer.

use std::{
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use futures_util::FutureExt;
use hexkv_store::{NodeId, entropy};
use parking_lot::Mutex;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{contact::Contact, error::NetError, frame::Frame, identity::Purpose};

/// Most requests of one connection that wait to be sent or for an answer.
pub const REQUESTS_WAITING_MAX: usize = 2048;
/// Most bytes of requests of one connection that wait to be sent.
pub const REQUEST_BYTES_WAITING_MAX: usize = 64 * 1024 * 1024;
/// Delay before the second attempt to connect; doubles up to [`RECONNECT_DELAY_MAX`].
pub(crate) const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(20);
/// Longest delay between two attempts to connect while a request waits.
pub(crate) const RECONNECT_DELAY_MAX: Duration = Duration::from_millis(250);
/// Longest delay between two attempts to connect while no request waits.
const RECONNECT_IDLE_DELAY_MAX: Duration = Duration::from_secs(1);
/// A connection that ended sooner counts as an attempt that failed: the other side may close each one at once.
const CONNECTION_LIFETIME_MIN: Duration = Duration::from_secs(1);

/// Shared by callers and the one task that drives the connection.
///
/// Invariants: a request is in `unsent` or was handed to the connection, never both; it is in `waiting` until it is
/// answered, failed or given up, whichever comes first, and only once; `unsent` keeps the order of submission; a
/// request given up before it was handed over is never sent; at most one driver runs.
pub(crate) struct RequestQueue {
    /// Node that must answer.
    pub(crate) target: NodeId,
    /// What the connection is for.
    pub(crate) purpose: Purpose,
    /// When the node last answered.
    pub(crate) contact: Arc<Contact>,
    /// Cancelled when the connection must not be used any more.
    pub(crate) retired: CancellationToken,
    next_id: AtomicU64,
    state: Mutex<State>,
}

struct State {
    address: String,
    unsent: VecDeque<Unsent>,
    unsent_bytes: usize,
    waiting: BTreeMap<u64, Waiting>,
    driven: bool,
    /// The connection stays open without requests, and is made again when it is lost.
    kept_open: bool,
    connect_failures: u32,
    last_failure: Option<LastFailure>,
    driver: Option<Waker>,
}

/// When an attempt to connect failed, and how long to wait: with requests, and without.
#[derive(Clone, Copy)]
struct LastFailure {
    at: Instant,
    delay: Duration,
    idle_delay: Duration,
}

struct Unsent {
    id: u64,
    frame: Vec<u8>,
}

struct Waiting {
    answer: oneshot::Sender<Result<Frame, NetError>>,
    sent: bool,
}

impl RequestQueue {
    pub(crate) fn new(target: NodeId, purpose: Purpose, contact: Arc<Contact>) -> Self {
        Self {
            target,
            purpose,
            contact,
            retired: CancellationToken::new(),
            next_id: AtomicU64::new(1),
            state: Mutex::new(State {
                address: String::new(),
                unsent: VecDeque::new(),
                unsent_bytes: 0,
                waiting: BTreeMap::new(),
                driven: false,
                kept_open: false,
                connect_failures: 0,
                last_failure: None,
                driver: None,
            }),
        }
    }

    /// An id for the next request.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Queues the encoded request `id`. True when the caller must start a driver.
    pub(crate) fn submit(self: &Arc<Self>, id: u64, frame: Vec<u8>, address: &str) -> Result<(Call, bool), NetError> {
        let (tx, rx) = oneshot::channel();
        let mut state = self.state.lock();
        if self.retired.is_cancelled() {
            return Err(NetError::Closed { sent: false });
        }
        // One request may always wait, whatever its size.
        let too_many_bytes = state.unsent_bytes > 0 && state.unsent_bytes + frame.len() > REQUEST_BYTES_WAITING_MAX;
        if state.waiting.len() >= REQUESTS_WAITING_MAX || too_many_bytes {
            return Err(NetError::Overloaded);
        }
        if state.address != address {
            state.address = address.to_string();
        }
        state.unsent_bytes += frame.len();
        state.unsent.push_back(Unsent { id, frame });
        state.waiting.insert(id, Waiting { answer: tx, sent: false });
        let start = !std::mem::replace(&mut state.driven, true);
        let driver = state.driver.take();
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
        Ok((Call { queue: self.clone(), id, answer: rx, settled: false }, start))
    }

    /// Where the peer listens, as the latest request has it.
    pub(crate) fn address(&self) -> String {
        self.state.lock().address.clone()
    }

    /// Keeps a connection to `address` open also without requests, from now on, or with None no longer. True when the caller
    /// must start a driver.
    pub(crate) fn keep_open(&self, address: Option<&str>) -> bool {
        let mut state = self.state.lock();
        state.kept_open = address.is_some();
        if let Some(address) = address
            && state.address != address
        {
            state.address = address.to_owned();
        }
        let start = state.kept_open && !state.driven && !self.retired.is_cancelled();
        state.driven |= start;
        start
    }

    /// Whether the connection stays open without requests.
    pub(crate) fn is_kept_open(&self) -> bool {
        self.state.lock().kept_open
    }

    /// When the next attempt to connect is due; None = now. Wakes `cx` when that may have changed.
    pub(crate) fn connect_due(&self, cx: &Context<'_>) -> Option<Instant> {
        let mut state = self.state.lock();
        let LastFailure { at, delay, idle_delay } = state.last_failure?;
        let due = at + if state.unsent.is_empty() { idle_delay } else { delay };
        state.driver = Some(cx.waker().clone());
        (Instant::now() < due).then_some(due)
    }

    /// Hands unsent requests to `take` until it has had `bytes_max`, and wakes `cx` when more come. Returns how many.
    pub(crate) fn hand_over(&self, cx: &Context<'_>, bytes_max: usize, mut take: impl FnMut(Vec<u8>)) -> usize {
        let mut state = self.state.lock();
        let State { unsent, unsent_bytes, waiting, driver, .. } = &mut *state;
        let (mut count, mut bytes) = (0, 0);
        while bytes < bytes_max
            && let Some(Unsent { id, frame }) = unsent.pop_front()
        {
            let waiting = waiting.get_mut(&id).expect("an unsent request has a caller who waits for it");
            waiting.sent = true;
            *unsent_bytes -= frame.len();
            bytes += frame.len();
            count += 1;
            take(frame);
        }
        if !driver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *driver = Some(cx.waker().clone());
        }
        count
    }

    /// Delivers an answer; one that nobody waits for any more is dropped.
    pub(crate) fn deliver(&self, frame: Frame) {
        let waiting = self.state.lock().waiting.remove(&frame.id);
        if let Some(waiting) = waiting {
            waiting.answer(Ok(frame));
        }
    }

    /// No connection could be made: every request fails, and the next attempt is put off.
    pub(crate) fn connect_failed(&self, error: &NetError) {
        let failed = {
            let mut state = self.state.lock();
            state.put_off_connecting();
            state.drain()
        };
        for waiting in failed {
            waiting.answer(Err(error.clone()));
        }
    }

    /// The connection ended, `lifetime` after it was made: what was handed to it fails, what was not waits for the next one.
    pub(crate) fn disconnected(&self, error: &NetError, lifetime: Duration) {
        let failed: Vec<Waiting> = {
            let mut state = self.state.lock();
            if lifetime < CONNECTION_LIFETIME_MIN {
                state.put_off_connecting();
            } else {
                (state.connect_failures, state.last_failure) = (0, None);
            }
            let waiting = std::mem::take(&mut state.waiting);
            let (sent, unsent): (BTreeMap<_, _>, BTreeMap<_, _>) = waiting.into_iter().partition(|(_, w)| w.sent);
            state.waiting = unsent;
            sent.into_values().collect()
        };
        for waiting in failed {
            waiting.answer(Err(error.clone()));
        }
    }

    /// Fails all requests, and every later one.
    pub(crate) fn retire(&self) {
        let failed = {
            let mut state = self.state.lock();
            self.retired.cancel();
            state.drain()
        };
        for waiting in failed {
            let sent = waiting.sent;
            waiting.answer(Err(NetError::Closed { sent }));
        }
    }

    /// Lets the driver go if there is nothing to send and the connection is not kept open; the next request starts another
    /// one.
    pub(crate) fn release_driver(&self) -> bool {
        let mut state = self.state.lock();
        let idle = (state.unsent.is_empty() && !state.kept_open) || self.retired.is_cancelled();
        if idle {
            state.driven = false;
            state.driver = None;
        }
        idle
    }

    /// Whether no driver runs.
    pub(crate) fn is_idle(&self) -> bool {
        !self.state.lock().driven
    }

    /// Forgets request `id`. Whether it may have been sent.
    fn give_up(&self, id: u64) -> bool {
        let mut state = self.state.lock();
        let Some(waiting) = state.waiting.remove(&id) else { return true };
        if waiting.sent {
            return true;
        }
        let at = state.unsent.iter().position(|unsent| unsent.id == id);
        let at = at.expect("a request that was not handed over is in the queue");
        if let Some(unsent) = state.unsent.remove(at) {
            state.unsent_bytes -= unsent.frame.len();
        }
        false
    }
}

impl State {
    fn put_off_connecting(&mut self) {
        let doubled = RECONNECT_DELAY_MIN * 2u32.pow(self.connect_failures.min(8));
        let jitter = entropy::random_range(0.5..1.0);
        self.connect_failures = self.connect_failures.saturating_add(1);
        self.last_failure = Some(LastFailure {
            at: Instant::now(),
            delay: doubled.min(RECONNECT_DELAY_MAX).mul_f64(jitter),
            idle_delay: doubled.min(RECONNECT_IDLE_DELAY_MAX).mul_f64(jitter),
        });
    }

    fn drain(&mut self) -> Vec<Waiting> {
        self.unsent.clear();
        self.unsent_bytes = 0;
        std::mem::take(&mut self.waiting).into_values().collect()
    }
}

impl Waiting {
    fn answer(self, answer: Result<Frame, NetError>) {
        if self.answer.send(answer).is_err() {
            tracing::trace!("the caller gave up while its answer arrived");
        }
    }
}

/// A submitted request. Dropping it gives the request up: if it was not sent yet, it never will be.
pub(crate) struct Call {
    queue: Arc<RequestQueue>,
    id: u64,
    answer: oneshot::Receiver<Result<Frame, NetError>>,
    settled: bool,
}

impl Call {
    /// The answer's frame.
    pub(crate) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, NetError>> {
        let received = ready!(self.answer.poll_unpin(cx));
        self.settled = true;
        Poll::Ready(received.unwrap_or(Err(NetError::Closed { sent: true })))
    }

    /// Gives the request up for lack of time.
    pub(crate) fn time_out(&mut self) -> NetError {
        self.settled = true;
        NetError::Timeout { sent: self.queue.give_up(self.id) }
    }

    /// The answer's frame, or a timeout.
    pub(crate) async fn within(mut self, timeout: Duration) -> Result<Frame, NetError> {
        match tokio::time::timeout(timeout, poll_fn(|cx| self.poll_answer(cx))).await {
            Ok(answer) => answer,
            Err(_) => Err(self.time_out()),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.settled {
            self.queue.give_up(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker;

    use super::*;

    fn queue() -> Arc<RequestQueue> {
        Arc::new(RequestQueue::new(1, Purpose::Peer, Arc::new(Contact::default())))
    }

    fn submit(queue: &Arc<RequestQueue>, bytes: usize) -> Result<(Call, bool), NetError> {
        queue.submit(queue.next_id(), vec![0; bytes], "here:1")
    }

    fn hand_over(queue: &RequestQueue, bytes_max: usize) -> usize {
        queue.hand_over(&Context::from_waker(&noop_waker()), bytes_max, |_| ())
    }

    #[tokio::test]
    async fn a_request_given_up_before_it_was_handed_over_is_never_sent() {
        let queue = queue();
        let (mut first, start) = submit(&queue, 10).unwrap();
        assert!(start, "the first request starts the driver");
        let (second, start) = submit(&queue, 10).unwrap();
        assert!(!start);
        assert!(!first.time_out().maybe_delivered());
        drop(second);
        assert_eq!(hand_over(&queue, usize::MAX), 0);
    }

    #[tokio::test]
    async fn what_was_handed_over_counts_as_sent_and_the_rest_waits_for_the_next_connection() {
        let queue = queue();
        let (sent, _) = submit(&queue, 10).unwrap();
        let (unsent, _) = submit(&queue, 10).unwrap();
        assert_eq!(hand_over(&queue, 10), 1);
        queue.disconnected(&NetError::Closed { sent: true }, CONNECTION_LIFETIME_MIN);
        assert!(sent.within(Duration::from_secs(5)).await.unwrap_err().maybe_delivered());
        assert!(!queue.release_driver(), "one request is left");
        assert_eq!(hand_over(&queue, usize::MAX), 1);
        drop(unsent);
        assert!(queue.release_driver());
    }

    #[tokio::test]
    async fn count_and_bytes_are_bounded() {
        let queue = queue();
        let (_big, _) = submit(&queue, REQUEST_BYTES_WAITING_MAX + 1).unwrap();
        assert!(matches!(submit(&queue, 1), Err(NetError::Overloaded)));
        hand_over(&queue, usize::MAX);
        let calls: Vec<_> = (1..REQUESTS_WAITING_MAX).map(|_| submit(&queue, 1).unwrap()).collect();
        assert!(matches!(submit(&queue, 1), Err(NetError::Overloaded)));
        drop(calls);
        submit(&queue, 1).unwrap();
    }

    #[tokio::test]
    async fn a_retired_queue_fails_what_waits_and_what_comes() {
        let queue = queue();
        let (sent, _) = submit(&queue, 10).unwrap();
        hand_over(&queue, usize::MAX);
        let (unsent, _) = submit(&queue, 10).unwrap();
        queue.retire();
        assert!(matches!(sent.within(Duration::from_secs(5)).await, Err(NetError::Closed { sent: true })));
        assert!(matches!(unsent.within(Duration::from_secs(5)).await, Err(NetError::Closed { sent: false })));
        assert!(matches!(submit(&queue, 1), Err(NetError::Closed { sent: false })));
        assert!(queue.release_driver());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_shortens_the_wait_of_a_kept_connection() {
        let queue = queue();
        assert!(queue.keep_open(Some("here:1")), "it needs a driver");
        assert!(!queue.release_driver(), "it is kept open");
        for _ in 0..10 {
            queue.connect_failed(&NetError::Overloaded);
        }
        let failed_at = Instant::now();
        let due = || queue.connect_due(&Context::from_waker(&noop_waker()));
        let idle = due().unwrap() - failed_at;
        assert!(idle > RECONNECT_DELAY_MAX && idle <= RECONNECT_IDLE_DELAY_MAX, "{idle:?}");
        let (_call, start) = submit(&queue, 1).unwrap();
        assert!(!start);
        assert!(due().unwrap() - failed_at <= RECONNECT_DELAY_MAX);
        tokio::time::advance(RECONNECT_DELAY_MAX).await;
        assert_eq!(due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_end_at_once_are_not_made_in_a_loop() {
        let queue = queue();
        let due = || queue.connect_due(&Context::from_waker(&noop_waker()));
        let closed = NetError::Closed { sent: false };
        queue.disconnected(&closed, Duration::from_millis(5));
        assert!(due().is_some());
        queue.disconnected(&closed, CONNECTION_LIFETIME_MIN);
        assert_eq!(due(), None, "one that lasted is made again at once");
    }
}
