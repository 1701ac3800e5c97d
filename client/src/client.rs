//! The client: which endpoint is asked, what is retried, until when.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::api::{Code, Problem};
use crate::endpoint::{Pool, backoff};
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
/// longer than [`Options::timeout`] or sends more than [`Options::attempts_max`] requests.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: Pool,
    transport: Transport,
    options: Options,
}

/// Header of an answer to a read: the store's revision at which it was served.
pub(crate) const STORE_REVISION: &str = "x-hexkv-revision";

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

/// Why an attempt failed, and what may be done about it.
enum Failed {
    /// Settled, or too dangerous to repeat.
    Final(Error),
    /// It may have happened, and can be repeated to find out.
    Unknown { error: Error },
    /// Another endpoint may do better at once; this one rests, for as long as it asked.
    Elsewhere { error: Error, rest: Option<Duration> },
    /// The cluster is overloaded: asking another node at once would not help it.
    Everywhere { error: Error, rest: Option<Duration> },
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
        let transport = Transport::new(options.connect_timeout);
        Ok(Self(Arc::new(Inner { pool: Pool::new(endpoints), transport, options })))
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
        let Inner { pool, options, .. } = &*self.0;
        let deadline = Instant::now() + options.timeout;
        let mut pause = Duration::ZERO;
        let mut attempt = 0;
        let mut before: Option<Error> = None;
        let (key, effect) = call.key_and_effect(options.exactly_once);
        // Once an outcome is unknown, a later refusal that others could have prevented does not settle it.
        let mut unknown: Option<Error> = None;
        loop {
            let pick = pool.pick();
            if let Some(error) = before.take() {
                let wait = pause.max(pick.rest);
                if attempt == options.attempts_max || Instant::now() + wait >= deadline {
                    return Err(unknown.unwrap_or(error));
                }
                tracing::debug!(%error, attempt, wait_ms = wait.as_millis(), "trying again");
                tokio::time::sleep(wait).await;
            }
            attempt += 1;
            match self.attempt(call, (key.as_ref(), effect), pick.index, deadline).await {
                Ok(reply) => {
                    pool.answered(pick.index);
                    return Ok(reply);
                }
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Unknown { error }) => {
                    pool.failed(pick.index, None);
                    unknown = Some(error.clone());
                    (before, pause) = (Some(error), backoff(attempt));
                }
                Err(Failed::Elsewhere { error, rest }) => {
                    pool.failed(pick.index, rest);
                    (before, pause) = (Some(error), Duration::ZERO);
                }
                Err(Failed::Everywhere { error, rest }) => {
                    pool.failed(pick.index, rest);
                    (before, pause) = (Some(error), rest.unwrap_or_else(|| backoff(attempt)));
                }
            }
        }
    }

    /// Sends `call` once, to the endpoint whose turn it is, and gives the answer before its body has come: for answers
    /// that have no end. Whether the endpoint rests is up to the next call.
    pub(crate) async fn open(&self, call: &Call) -> Result<Response<Incoming>, Error> {
        let Inner { pool, transport, options } = &*self.0;
        let pick = pool.pick();
        tokio::time::sleep(pick.rest).await;
        let endpoint = pool.get(pick.index);
        let deadline = Instant::now() + options.timeout;
        match transport.open(call.request(endpoint, None)?, deadline).await {
            Ok(Ok(response)) => {
                pool.answered(pick.index);
                Ok(response)
            }
            Ok(Err(reply)) => match judge(reply, endpoint, Effect::Read) {
                Ok(_) => Err(Error::Unexpected(format!("{endpoint} answers a watch without a stream"))),
                Err(Failed::Final(error)) => Err(error),
                // Nothing is in the dark where nothing is changed.
                Err(Failed::Unknown { error }) => Err(error),
                Err(Failed::Elsewhere { error, rest } | Failed::Everywhere { error, rest }) => {
                    pool.failed(pick.index, rest);
                    Err(error)
                }
            },
            Err(SendError::NotSent(why) | SendError::MaybeSent(why)) => {
                pool.failed(pick.index, None);
                Err(Error::Unavailable { detail: format!("{endpoint} does not answer: {why}"), code: None })
            }
        }
    }

    async fn attempt(
        &self,
        call: &Call,
        (key, effect): (Option<&HeaderValue>, Effect),
        index: usize,
        deadline: Instant,
    ) -> Result<Reply, Failed> {
        let Inner { pool, transport, options } = &*self.0;
        let endpoint = pool.get(index);
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
                pool.failed(index, None);
                let detail = format!("{endpoint} was sent the change and gave no answer: {why}");
                Err(in_the_dark(Error::Indeterminate { detail }, effect))
            }
        }
    }
}

/// A change whose outcome is unknown: one with an idempotency key is sent again.
fn in_the_dark(error: Error, effect: Effect) -> Failed {
    match effect {
        Effect::Once => Failed::Unknown { error },
        Effect::Read | Effect::Change => Failed::Final(error),
    }
}

/// Sorts an answer by what it says about the request.
fn judge(reply: Reply, endpoint: &Endpoint, effect: Effect) -> Result<Reply, Failed> {
    let status = reply.status;
    if status.is_success() || status == StatusCode::NOT_MODIFIED {
        return Ok(reply);
    }
    let rest = reply.retry_after();
    let problem = problem(&reply);
    let unavailable = || Error::Unavailable {
        detail: format!("{endpoint} refused: {}: {}", problem.title, problem.detail),
        code: Some(problem.code),
    };
    let indeterminate = || Error::Indeterminate {
        detail: format!("{endpoint} does not know what became of the change: {}: {}", problem.title, problem.detail),
    };
    Err(match (status, effect) {
        (StatusCode::TOO_MANY_REQUESTS, _) => Failed::Everywhere { error: unavailable(), rest },
        (StatusCode::SERVICE_UNAVAILABLE, _) => Failed::Elsewhere { error: unavailable(), rest },
        (StatusCode::GATEWAY_TIMEOUT, Effect::Read) => Failed::Elsewhere { error: unavailable(), rest },
        (status, Effect::Change | Effect::Once) if status.is_server_error() => in_the_dark(indeterminate(), effect),
        _ => {
            let current_revision = reply.number(header::ETAG.as_str());
            let store_revision = reply.number(STORE_REVISION);
            Failed::Final(Error::Rejected {
                code: problem.code,
                problem: Box::new(problem),
                current_revision,
                store_revision,
            })
        }
    })
}

/// The answer's problem details; made up from the status when there are none that this version understands.
fn problem(reply: &Reply) -> Problem {
    serde_json::from_slice(&reply.body).unwrap_or_else(|_| {
        let code = code_of(reply.status);
        let said: Option<serde_json::Value> = serde_json::from_slice(&reply.body).ok();
        // A health answer gives a reason where problem details give a detail.
        let words = said.as_ref().and_then(|said| said.get("detail").or_else(|| said.get("reason"))?.as_str());
        let detail = words.map(str::to_owned);
        Problem {
            kind: "about:blank".to_owned(),
            title: code.title().to_owned(),
            status: reply.status.as_u16(),
            detail: detail.unwrap_or_else(|| format!("the answer was {}", reply.status)),
            code,
        }
    })
}

/// The kind of problem that a bare status stands for.
fn code_of(status: StatusCode) -> Code {
    match status.as_u16() {
        404 => Code::NotFound,
        405 => Code::MethodNotAllowed,
        410 => Code::Compacted,
        422 => Code::IdempotencyMismatch,
        412 => Code::PreconditionFailed,
        413 => Code::ValueTooLarge,
        429 => Code::Overloaded,
        503 => Code::Unavailable,
        504 => Code::OutcomeUnknown,
        400..=499 => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

/// Reads the JSON body of a successful answer. An unreadable one leaves a change in the dark.
pub(crate) fn decode<T: DeserializeOwned>(reply: &Reply, effect: Effect) -> Result<T, Error> {
    serde_json::from_slice(&reply.body).map_err(|error| {
        let detail = format!("the answer ({}) is not what a hexkv node of this version says: {error}", reply.status);
        match effect {
            Effect::Read => Error::Unexpected(detail),
            Effect::Change | Effect::Once => Error::Indeterminate { detail },
        }
    })
}
