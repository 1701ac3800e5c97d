//! The client: which endpoint is asked, what is retried, until when.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::answer::{Failed, decode, in_the_dark, judge};
use crate::api::ClusterStatus;
use crate::endpoint::{Pool, backoff};
use crate::hang_up::HangUp;
use crate::leader::Leader;
use crate::transport::{Reply, SendError, Transport};
use crate::{Endpoint, Error};

/// Bounds of a client's calls.
#[derive(Debug, Clone)]
pub struct Options {
    /// A call ends after this, retries included.
    pub timeout: Duration,
    /// An attempt to connect ends after this.
    pub connect_timeout: Duration,
    /// A read, or a change with an idempotency key, that is not answered after this is sent to another endpoint, when
    /// there is one.
    pub read_attempt_timeout: Duration,
    /// A request is sent this often at most; 1 switches retries off.
    pub attempts_max: u32,
    /// Changes of keys go with a random `Idempotency-Key` each, unless the caller gives one, and are sent again when
    /// their outcome is unknown: the cluster does them once. Costs the cluster memory for each change.
    pub exactly_once: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
            read_attempt_timeout: Duration::from_secs(3),
            attempts_max: 10,
            exactly_once: false,
        }
    }
}

/// A client of one cluster. Clones share connections and what is known about the endpoints.
///
/// Invariants: a change without an idempotency key is sent again only when it is known that it did not happen (the
/// connection was refused, or a node answered 429 or 503); one with a key, and a read is sent again after any failure that another attempt may cure; no call lasts
/// longer than [`Options::timeout`] or sends more than [`Options::attempts_max`] requests, questions for the leader aside.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: Pool,
    transport: Transport,
    options: Options,
    /// Asked before the endpoints, where the client is one to the leader.
    leader: Option<Leader>,
}

/// Whom an attempt goes to.
#[derive(Debug)]
enum Aim {
    /// The endpoint with this index, after the rest that it still has.
    Listed { index: usize, rest: Duration },
    /// The leader.
    Leader(Endpoint),
}

/// Header of an answer to a read: the store's revision at which it was served.
pub(crate) const STORE_REVISION: &str = "x-hexkv-revision";

/// Where nodes say what they see of their cluster.
pub(crate) const STATUS: &str = "/api/cluster/status";

/// What repeating a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing is changed.
    Read,
    /// It may be done twice.
    Change,
    /// It is a change that nodes do once for each idempotency key, so it needs one.
    Once,
}

/// A request, apart from whom it goes to.
#[derive(Debug)]
pub(crate) struct Call {
    pub method: Method,
    pub target: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Bytes,
    pub effect: Effect,
}

/// Header by which nodes know a change again.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

impl Call {
    /// A request that changes nothing.
    pub fn read(target: String) -> Self {
        Self { method: Method::GET, target, headers: Vec::new(), body: Bytes::new(), effect: Effect::Read }
    }

    /// A request that changes keys: done once where it has an idempotency key.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `key` cannot stand in a header.
    pub fn once(method: Method, target: String, body: Bytes, key: Option<&str>) -> Result<Self, Error> {
        let mut call = Self { effect: Effect::Once, ..Self::change(method, target, body) };
        if let Some(key) = key {
            call.header(IDEMPOTENCY_KEY, key)?;
        }
        Ok(call)
    }

    /// A request that changes something else.
    pub fn change(method: Method, target: String, body: Bytes) -> Self {
        Self { method, target, headers: Vec::new(), body, effect: Effect::Change }
    }

    /// Adds a header.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `value` cannot stand in a header.
    pub fn header(&mut self, name: HeaderName, value: &str) -> Result<(), Error> {
        let value = HeaderValue::from_str(value)
            .map_err(|_| Error::Invalid(format!("{value:?} cannot stand in the header {name}")))?;
        self.headers.push((name, value));
        Ok(())
    }

    /// The key that goes with it, and what repeating it does then. `exactly_once` gives it a key where it has none.
    fn key_and_effect(&self, exactly_once: bool) -> (Option<HeaderValue>, Effect) {
        let has_key = self.headers.iter().any(|(name, _)| *name == IDEMPOTENCY_KEY);
        match self.effect {
            Effect::Once if has_key => (None, Effect::Once),
            Effect::Once if exactly_once => {
                let key = format!("{:032x}", rand::random::<u128>());
                (Some(HeaderValue::try_from(key).expect("hexadecimal digits are a header value")), Effect::Once)
            }
            Effect::Once | Effect::Change => (None, Effect::Change),
            Effect::Read => (None, Effect::Read),
        }
    }

    fn request(&self, endpoint: &Endpoint, key: Option<&HeaderValue>) -> Result<Request<Full<Bytes>>, Error> {
        let mut builder = Request::builder().method(&self.method).uri(format!("{endpoint}{}", self.target));
        for (name, value) in &self.headers {
            builder = builder.header(name, value);
        }
        if let Some(key) = key {
            builder = builder.header(IDEMPOTENCY_KEY, key);
        }
        builder.body(Full::new(self.body.clone())).map_err(|error| Error::Invalid(format!("{}: {error}", self.target)))
    }
}

impl Client {
    /// A client of the cluster that has these endpoints (`http://127.0.0.1:4000` or `127.0.0.1:4000`). Any node
    /// serves any request, so one is enough; more keep the client going when one is down. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no endpoint, or one that cannot be read.
    pub fn new<E>(endpoints: E, options: Options) -> Result<Self, Error>
    where
        E: IntoIterator,
        E::Item: AsRef<str>,
    {
        let endpoints: Result<Vec<Endpoint>, Error> =
            endpoints.into_iter().map(|endpoint| endpoint.as_ref().trim().parse()).collect();
        Self::with_endpoints(endpoints?, options)
    }

    /// The same, of endpoints that are parsed already.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no endpoint, or when no attempt is allowed.
    pub fn with_endpoints(endpoints: Vec<Endpoint>, options: Options) -> Result<Self, Error> {
        if endpoints.is_empty() {
            return Err(Error::Invalid("no endpoint given; for example http://127.0.0.1:4000".to_owned()));
        }
        if options.attempts_max == 0 {
            return Err(Error::Invalid("attempts_max is 0: nothing would ever be sent".to_owned()));
        }
        let transport = Transport::new(options.connect_timeout, None);
        Ok(Self(Arc::new(Inner { pool: Pool::new(endpoints), transport, options, leader: None })))
    }

    /// A client of the same cluster, over the same connections, that asks the leader first: the leader serves without a
    /// further hop. It asks the endpoints who leads, now and then, and anew when the leader fails; while nobody says so it asks
    /// the endpoints themselves. What is repeated, and what never is, stays the same. Questions about the asked node are
    /// answered by the leader; [`Client::join`] and [`Client::leave`] are refused.
    pub fn to_leader(&self) -> Self {
        let Inner { pool, transport, options, leader: _ } = &*self.0;
        let pool = Pool::new(pool.endpoints().cloned().collect());
        let (transport, options) = (transport.clone(), options.clone());
        Self(Arc::new(Inner { pool, transport, options, leader: Some(Leader::unknown()) }))
    }

    /// A client of the same cluster whose requests end by `hang_up`, over connections of its own.
    pub(crate) fn under(&self, hang_up: &HangUp) -> Self {
        let Inner { pool, transport: _, options, leader: _ } = &*self.0;
        let pool = Pool::new(pool.endpoints().cloned().collect());
        let transport = Transport::new(options.connect_timeout, Some(hang_up.clone()));
        Self(Arc::new(Inner { pool, transport, options: options.clone(), leader: None }))
    }

    /// Whether it is a client [to the leader](Self::to_leader).
    pub(crate) fn is_to_leader(&self) -> bool {
        self.0.leader.is_some()
    }

    /// The endpoints, in the order given.
    pub fn endpoints(&self) -> impl ExactSizeIterator<Item = &Endpoint> {
        self.0.pool.endpoints()
    }

    /// The bounds of its calls.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// Runs `call` until it is answered, or until another attempt is unsafe, useless or too late.
    pub(crate) async fn call(&self, call: &Call) -> Result<Reply, Error> {
        let options = &self.0.options;
        let deadline = Instant::now() + options.timeout;
        let mut pause = Duration::ZERO;
        let mut attempt = 0;
        let mut before: Option<Error> = None;
        let (key, effect) = call.key_and_effect(options.exactly_once);
        // Once an outcome is unknown, a later refusal that others could have prevented does not settle it.
        let mut unknown: Option<Error> = None;
        loop {
            let aim = self.aim(deadline).await;
            if let Some(error) = before.take() {
                let wait = pause.max(aim.rest());
                if attempt == options.attempts_max || Instant::now() + wait >= deadline {
                    return Err(unknown.unwrap_or(error));
                }
                tracing::debug!(%error, attempt, wait_ms = wait.as_millis(), "trying again");
                if !self.0.transport.sleep(wait).await {
                    return Err(unknown.unwrap_or(error));
                }
            }
            attempt += 1;
            match self.attempt(call, (key.as_ref(), effect), self.endpoint(&aim), deadline).await {
                Ok(reply) => {
                    self.answered(&aim);
                    return Ok(reply);
                }
                Err(Failed::Final(error)) => {
                    if matches!(error, Error::Indeterminate { .. }) {
                        self.failed(&aim, None);
                    }
                    return Err(error);
                }
                Err(Failed::Unknown { error }) => {
                    self.failed(&aim, None);
                    unknown = Some(error.clone());
                    (before, pause) = (Some(error), backoff(attempt));
                }
                Err(Failed::Elsewhere { error, rest }) => {
                    self.failed(&aim, rest);
                    (before, pause) = (Some(error), Duration::ZERO);
                }
                Err(Failed::Everywhere { error, rest }) => {
                    self.failed(&aim, rest);
                    (before, pause) = (Some(error), rest.unwrap_or_else(|| backoff(attempt)));
                }
            }
        }
    }

    /// Sends `call` once, to the endpoint whose turn it is, and gives the answer before its body has come: for answers
    /// that have no end. Whether the endpoint rests is up to the next call.
    pub(crate) async fn open(&self, call: &Call) -> Result<Response<Incoming>, Error> {
        let Inner { transport, options, .. } = &*self.0;
        let aim = self.aim(Instant::now() + options.timeout).await;
        tokio::time::sleep(aim.rest()).await;
        let endpoint = self.endpoint(&aim);
        let deadline = Instant::now() + options.timeout;
        match transport.open(call.request(endpoint, None)?, deadline).await {
            Ok(Ok(response)) => {
                self.answered(&aim);
                Ok(response)
            }
            Ok(Err(reply)) => match judge(reply, endpoint, Effect::Read) {
                Ok(_) => Err(Error::Unexpected(format!("{endpoint} answers a watch without a stream"))),
                Err(Failed::Final(error)) => Err(error),
                // Nothing is in the dark where nothing is changed.
                Err(Failed::Unknown { error }) => Err(error),
                Err(Failed::Elsewhere { error, rest } | Failed::Everywhere { error, rest }) => {
                    self.failed(&aim, rest);
                    Err(error)
                }
            },
            Err(SendError::NotSent(why) | SendError::MaybeSent(why)) => {
                self.failed(&aim, None);
                Err(Error::Unavailable { detail: format!("{endpoint} does not answer: {why}"), code: None })
            }
        }
    }

    /// Whom the next attempt goes to.
    async fn aim(&self, deadline: Instant) -> Aim {
        let Inner { pool, leader, .. } = &*self.0;
        if let Some(leader) = leader {
            if leader.look_is_due() {
                leader.found(self.look_for_leader(deadline).await);
            }
            if let Some(endpoint) = leader.known() {
                return Aim::Leader(endpoint);
            }
        }
        let pick = pool.pick();
        Aim::Listed { index: pick.index, rest: pick.rest }
    }

    /// Asks one endpoint who leads, if one does not rest.
    async fn look_for_leader(&self, deadline: Instant) -> Option<Endpoint> {
        let pick = self.0.pool.pick();
        if !pick.rest.is_zero() {
            return None;
        }
        let aim = Aim::Listed { index: pick.index, rest: pick.rest };
        let call = Call::read(STATUS.to_owned());
        match self.attempt(&call, (None, Effect::Read), self.endpoint(&aim), deadline).await {
            Ok(reply) => {
                self.answered(&aim);
                let status: ClusterStatus = decode(&reply, Effect::Read).ok()?;
                status.leader_endpoint().ok()
            }
            Err(_) => {
                self.failed(&aim, None);
                None
            }
        }
    }

    fn endpoint<'a>(&'a self, aim: &'a Aim) -> &'a Endpoint {
        match aim {
            Aim::Listed { index, .. } => self.0.pool.get(*index),
            Aim::Leader(endpoint) => endpoint,
        }
    }

    fn answered(&self, aim: &Aim) {
        match aim {
            Aim::Listed { index, .. } => self.0.pool.answered(*index),
            Aim::Leader(_) => {}
        }
    }

    /// Notes a failure; the endpoint rests, for `asked` when it named a time itself.
    fn failed(&self, aim: &Aim, asked: Option<Duration>) {
        match (aim, &self.0.leader) {
            (Aim::Listed { index, .. }, _) => self.0.pool.failed(*index, asked),
            (Aim::Leader(endpoint), Some(leader)) => leader.failed(endpoint),
            (Aim::Leader(endpoint), None) => unreachable!("{endpoint} was aimed at by a client that knows no leader"),
        }
    }

    async fn attempt(
        &self,
        call: &Call,
        (key, effect): (Option<&HeaderValue>, Effect),
        endpoint: &Endpoint,
        deadline: Instant,
    ) -> Result<Reply, Failed> {
        let Inner { transport, options, .. } = &*self.0;
        let request = call.request(endpoint, key).map_err(Failed::Final)?;
        let until = match effect {
            Effect::Read | Effect::Once => deadline.min(Instant::now() + options.read_attempt_timeout),
            Effect::Change => deadline,
        };
        match (transport.send(request, until).await, effect) {
            (Ok(reply), effect) => judge(reply, endpoint, effect),
            (Err(SendError::NotSent(why)), _) | (Err(SendError::MaybeSent(why)), Effect::Read) => {
                let error = Error::Unavailable { detail: format!("{endpoint} does not answer: {why}"), code: None };
                Err(Failed::Elsewhere { error, rest: None })
            }
            (Err(SendError::MaybeSent(why)), effect @ (Effect::Change | Effect::Once)) => {
                let detail = format!("{endpoint} was sent the change and gave no answer: {why}");
                Err(in_the_dark(Error::Indeterminate { detail }, effect))
            }
        }
    }
}

impl Aim {
    /// How long it has to be left alone.
    fn rest(&self) -> Duration {
        match self {
            Self::Listed { rest, .. } => *rest,
            Self::Leader(_) => Duration::ZERO,
        }
    }
}
