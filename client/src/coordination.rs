//! Locks, elections and the registry.

use std::pin::pin;
use std::time::Duration;

use http::{Method, header};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use crate::answer::decode;
use crate::api::{
    CampaignAnswer, CampaignRequest, Code, ElectionStatus, LockAnswer, LockRequest, LockStatus, RegisterRequest,
    Registration, RegistryAnswer, ReleaseAnswer, RenewRequest, UnregisterAnswer,
};
use crate::client::{Call, Effect};
use crate::encoding::{Query, segment};
use crate::hang_up::HangUp;
use crate::sse::{EventStream, Next, RETRY_PAUSE};
use crate::{Client, Error};

/// How often in its time to live something that is held is renewed.
const RENEWALS_PER_TTL: u32 = 3;

/// How long an answer may take once a wait is given up: nodes end such waits within 5 s.
const GIVE_UP_MAX: Duration = Duration::from_secs(6);

/// Something held by a token that has to be renewed: a lock, or leadership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    path: String,
    /// Renews it and gives it up.
    pub token: String,
    /// Greater than that of every holder before.
    pub fencing_token: u64,
    /// Time to live after each renewal.
    pub ttl: Duration,
    /// Until then nobody else has it, by this machine's clock: counted from before the request that got or renewed it.
    pub until: Instant,
}

impl Client {
    /// Takes the lock `name`, or waits for it as long as the request says. The client's timeout has to be longer.
    ///
    /// # Errors
    /// [`Code::LockHeld`] when it was not free in time; others as in [`Error`]. After [`Error::Indeterminate`] it may
    /// be held until its time to live is over.
    pub async fn lock(&self, name: &str, request: &LockRequest) -> Result<Holding, Error> {
        let path = format!("/api/locks/{}", segment(name));
        let (answer, began): (LockAnswer, _) = self.timed(Method::POST, path.clone(), request).await?;
        self.sure(Holding::new(path, answer.token, answer.fencing_token, answer.ttl_ms, began)).await
    }

    /// As [`Client::lock`], until `stop` completes: then the place in the line is given up, or the lock released when it was
    /// granted at that moment, and the answer is None.
    ///
    /// # Errors
    /// Those of [`Client::lock`]. After `stop` [`Error::Indeterminate`] when no node answers: the lock may be held until its
    /// time to live is over.
    pub async fn lock_unless(
        &self,
        name: &str,
        request: &LockRequest,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Holding>, Error> {
        let path = format!("/api/locks/{}", segment(name));
        let granted = |path, answer: LockAnswer, began| {
            Holding::new(path, answer.token, answer.fencing_token, answer.ttl_ms, began)
        };
        self.hold_unless(path, request, granted, stop).await
    }

    async fn hold_unless<T: DeserializeOwned>(
        &self,
        path: String,
        request: &impl Serialize,
        granted: impl FnOnce(String, T, Instant) -> Holding,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Holding>, Error> {
        let hang_up = HangUp::new();
        let waiting = self.under(&hang_up);
        let mut asked = pin!(waiting.timed(Method::POST, path.clone(), request));
        let mut stop = pin!(stop);
        let answer = tokio::select! {
            answer = &mut asked => Some(answer?),
            () = &mut stop => None,
        };
        if let Some((answer, began)) = answer {
            let holding = granted(path, answer, began);
            return tokio::select! {
                sure = self.sure(holding.clone()) => sure.map(Some),
                () = &mut stop => self.release(&holding).await.map(|()| None),
            };
        }
        hang_up.now();
        match tokio::time::timeout(GIVE_UP_MAX, asked).await {
            Ok(Ok((answer, began))) => self.release(&granted(path, answer, began)).await.map(|()| None),
            // The node gave the place back, or never had the request.
            Ok(Err(error)) => {
                tracing::debug!(%error, "the wait is given up");
                Ok(None)
            }
            Err(_) => {
                let detail = "the wait was given up and no node answers: it may be held until its time to live is over";
                Err(Error::Indeterminate { detail: detail.to_owned() })
            }
        }
    }

    /// A request that waited says little about how much time is left: that is asked for again.
    async fn sure(&self, mut holding: Holding) -> Result<Holding, Error> {
        if Instant::now() + holding.ttl * (RENEWALS_PER_TTL - 1) / RENEWALS_PER_TTL > holding.until {
            self.renew(&mut holding).await?;
        }
        Ok(holding)
    }

    /// Who holds the lock `name`, and who waits.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lock_status(&self, name: &str) -> Result<LockStatus, Error> {
        self.look(format!("/api/locks/{}", segment(name))).await
    }

    /// Stands in the election `name`, and waits for leadership as long as the request says.
    ///
    /// # Errors
    /// As [`Client::lock`].
    pub async fn campaign(&self, name: &str, request: &CampaignRequest) -> Result<Holding, Error> {
        let path = format!("/api/elections/{}", segment(name));
        let (answer, began): (CampaignAnswer, _) = self.timed(Method::POST, path.clone(), request).await?;
        self.sure(Holding::new(path, answer.token, answer.leader.fencing_token, answer.ttl_ms, began)).await
    }

    /// As [`Client::campaign`], until `stop` completes: see [`Client::lock_unless`].
    ///
    /// # Errors
    /// As [`Client::lock_unless`].
    pub async fn campaign_unless(
        &self,
        name: &str,
        request: &CampaignRequest,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Holding>, Error> {
        let path = format!("/api/elections/{}", segment(name));
        let granted = |path, answer: CampaignAnswer, began| {
            Holding::new(path, answer.token, answer.leader.fencing_token, answer.ttl_ms, began)
        };
        self.hold_unless(path, request, granted, stop).await
    }

    /// Who leads in the election `name`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn election(&self, name: &str) -> Result<ElectionStatus, Error> {
        self.look(format!("/api/elections/{}", segment(name))).await
    }

    /// Follows the election `name`. Nothing is sent before the first [`Observer::next`].
    pub fn observe(&self, name: &str) -> Observer {
        let target = format!("/api/elections/{}?watch", segment(name));
        Observer { client: self.clone(), target, told: None, events: None }
    }

    /// Has `holding` for its full time again.
    ///
    /// # Errors
    /// [`Code::NotHolder`] when it is lost. Others leave it as it was: see [`Holding::until`].
    pub async fn renew(&self, holding: &mut Holding) -> Result<(), Error> {
        let request = RenewRequest { token: holding.token.clone() };
        let began = Instant::now();
        let mut call = Call::change(Method::POST, format!("{}/renew", holding.path), body(&request)?);
        call.header(header::CONTENT_TYPE, "application/json")?;
        // Renewing twice is renewing.
        call.effect = Effect::Read;
        self.call(&call).await?;
        holding.until = began + holding.ttl;
        Ok(())
    }

    /// Gives `holding` up.
    ///
    /// # Errors
    /// [`Code::NotHolder`] when it was lost already.
    pub async fn release(&self, holding: &Holding) -> Result<(), Error> {
        let mut query = Query::default();
        query.add("token", &holding.token);
        let call = Call::change(Method::DELETE, query.append_to(&holding.path), Vec::new().into());
        decode::<ReleaseAnswer>(&self.call(&call).await?, Effect::Change).map(|_| ())
    }

    /// Renews `holding` whenever a third of its time is over. Ends when it is lost, or may be: nobody could renew it
    /// until its time was nearly over. What it protects must not be touched any more then.
    pub async fn keep(&self, holding: &mut Holding) -> Error {
        loop {
            let interval = holding.ttl / RENEWALS_PER_TTL;
            tokio::time::sleep(interval).await;
            // One renewal may take as long as the time lasts; the answer may come too late.
            let error = match tokio::time::timeout_at(holding.until, self.renew(holding)).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error,
                Err(_) => Error::Unavailable { detail: "no node renewed it in time".to_owned(), code: None },
            };
            let lost = matches!(error, Error::Rejected { code: Code::NotHolder, .. });
            if lost || Instant::now() + interval >= holding.until {
                return error;
            }
            tracing::debug!(%error, "not renewed; it is tried again");
        }
    }

    /// Registers `name`, or renews it for its owner.
    ///
    /// # Errors
    /// [`Code::NameTaken`] when it is another owner's.
    pub async fn register(&self, name: &str, request: &RegisterRequest) -> Result<Registration, Error> {
        let path = format!("/api/registry/{}", segment(name));
        Ok(self.timed(Method::PUT, path, request).await?.0)
    }

    /// Who has the name `name`; None when nobody has.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn registered(&self, name: &str) -> Result<Option<Registration>, Error> {
        match self.look(format!("/api/registry/{}", segment(name))).await {
            Ok(registration) => Ok(Some(registration)),
            Err(Error::Rejected { code: Code::NotFound, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One page of the registered names, after `after`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn registry(&self, after: Option<&str>) -> Result<RegistryAnswer, Error> {
        let mut query = Query::default();
        if let Some(after) = after {
            query.add("after", after);
        }
        self.look(query.append_to("/api/registry")).await
    }

    /// Takes `name` out; only `owner`'s where one is given.
    ///
    /// # Errors
    /// [`Code::NotFound`] when nobody has it, [`Code::NameTaken`] when another owner has.
    pub async fn unregister(&self, name: &str, owner: Option<&str>) -> Result<(), Error> {
        let mut query = Query::default();
        if let Some(owner) = owner {
            query.add("owner", owner);
        }
        let target = query.append_to(&format!("/api/registry/{}", segment(name)));
        let call = Call::change(Method::DELETE, target, Vec::new().into());
        decode::<UnregisterAnswer>(&self.call(&call).await?, Effect::Change).map(|_| ())
    }

    pub(crate) async fn look<T: DeserializeOwned>(&self, target: String) -> Result<T, Error> {
        decode(&self.call(&Call::read(target)).await?, Effect::Read)
    }

    /// A change with a JSON body; also when it was sent.
    async fn timed<T: DeserializeOwned>(
        &self,
        method: Method,
        path: String,
        request: &impl Serialize,
    ) -> Result<(T, Instant), Error> {
        let mut call = Call::change(method, path, body(request)?);
        call.header(header::CONTENT_TYPE, "application/json")?;
        let began = Instant::now();
        Ok((decode(&self.call(&call).await?, Effect::Change)?, began))
    }
}

/// Who leads, from now on. It goes on by itself, through another endpoint when one fails. Leaders that came and went while
/// it could ask nobody are not told; the order is that of their fencing tokens.
#[derive(Debug)]
pub struct Observer {
    client: Client,
    target: String,
    /// What was told last.
    told: Option<ElectionStatus>,
    events: Option<EventStream>,
}

impl Observer {
    /// Who leads at first, and then each time that this changes; also when nobody leads any more.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when no node could be asked for [`crate::Options::timeout`]; a further call tries on.
    /// Others as [`Error`] says; never [`Error::Indeterminate`].
    pub async fn next(&mut self) -> Result<ElectionStatus, Error> {
        let patience = self.client.options().timeout;
        let mut deadline = Instant::now() + patience;
        loop {
            let events = match &mut self.events {
                Some(events) => events,
                None => match self.client.open(&Call::read(self.target.clone())).await {
                    Ok(response) => self.events.insert(EventStream::new(response)),
                    Err(error @ Error::Unavailable { .. }) if Instant::now() < deadline => {
                        tracing::debug!(%error, "the election cannot be observed yet");
                        tokio::time::sleep(RETRY_PAUSE).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            match events.next().await {
                Ok(Next::Event(event)) if event.name == "leader" => {
                    let status: ElectionStatus = event.body()?;
                    if self.is_news(&status) {
                        self.told = Some(status.clone());
                        return Ok(status);
                    }
                }
                // A comment, or what later versions may say.
                Ok(Next::Event(_)) => {}
                Ok(Next::Ended(why)) => {
                    tracing::debug!(why, "the election is observed elsewhere");
                    self.events = None;
                    // Each stream that began earns a new attempt.
                    deadline = Instant::now() + patience;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => {
                    self.events = None;
                    return Err(error);
                }
            }
        }
    }

    /// A new stream begins with what is so now: that was told before, or is older when its node lags behind.
    fn is_news(&self, status: &ElectionStatus) -> bool {
        let Some(told) = &self.told else { return true };
        let token = |status: &ElectionStatus| status.leader.as_ref().map(|leader| leader.fencing_token);
        status.revision >= told.revision && token(status) != token(told)
    }
}

fn body(request: &impl Serialize) -> Result<bytes::Bytes, Error> {
    let body = serde_json::to_vec(request);
    body.map(Into::into).map_err(|error| Error::Invalid(format!("the request cannot be written as JSON: {error}")))
}

impl Holding {
    fn new(path: String, token: String, fencing_token: u64, ttl_ms: u64, began: Instant) -> Self {
        let ttl = Duration::from_millis(ttl_ms);
        Self { path, token, fencing_token, ttl, until: began + ttl }
    }
}
