//! Leases: keys that go when their lease ends.

use bytes::Bytes;
use http::{Method, header};

use crate::answer::decode;
use crate::api::{DeleteAnswer, LeaseAnswer, LeaseListAnswer, LeaseRequest, LeaseStatusAnswer, Ttl};
use crate::client::{Call, Effect};
use crate::encoding::Query;
use crate::{Client, Error};

const LEASES: &str = "/api/leases";

impl Client {
    /// Grants a lease. It lives for `ttl` from when this was sent, at least, and longer while it is kept alive. When the
    /// answer is lost there may be a lease that nobody knows; it ends by itself.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn grant_lease(&self, ttl: Ttl) -> Result<LeaseAnswer, Error> {
        let body = serde_json::to_vec(&LeaseRequest { ttl })
            .map_err(|error| Error::Invalid(format!("the request cannot be written as JSON: {error}")))?;
        let mut call = Call::change(Method::POST, LEASES.to_owned(), body.into());
        call.header(header::CONTENT_TYPE, "application/json")?;
        decode(&self.call(&call).await?, Effect::Change)
    }

    /// Lets a lease live for its full time to live from when this was sent, at least; also under a new leader. It may be
    /// done twice, so it is sent again after any failure that another attempt may cure. A third of the time to live is a
    /// good interval.
    ///
    /// # Errors
    /// See [`Error`]; never [`Error::Indeterminate`]. [`LeaseNotFound`](crate::api::Code::LeaseNotFound) when it ended.
    pub async fn keep_alive(&self, id: u64) -> Result<LeaseAnswer, Error> {
        let target = format!("{LEASES}/{id}/keepalive");
        let call = Call { method: Method::POST, target, headers: Vec::new(), body: Bytes::new(), effect: Effect::Read };
        decode(&self.call(&call).await?, Effect::Read)
    }

    /// Ends a lease, and removes all keys that are attached to it, in one revision.
    ///
    /// # Errors
    /// See [`Error`]; [`LeaseNotFound`](crate::api::Code::LeaseNotFound) when there is no such lease.
    pub async fn revoke_lease(&self, id: u64) -> Result<DeleteAnswer, Error> {
        let call = Call::change(Method::DELETE, format!("{LEASES}/{id}"), Bytes::new());
        decode(&self.call(&call).await?, Effect::Change)
    }

    /// A lease, how long it lives, and the first keys that are attached to it.
    ///
    /// # Errors
    /// See [`Error`]; never [`Error::Indeterminate`].
    pub async fn lease(&self, id: u64) -> Result<LeaseStatusAnswer, Error> {
        decode(&self.call(&Call::read(format!("{LEASES}/{id}"))).await?, Effect::Read)
    }

    /// A page of all leases by id: at most `limit` (the server's default is 1000, its maximum 10000), after the page with
    /// the cursor `next`.
    ///
    /// # Errors
    /// See [`Error`]; never [`Error::Indeterminate`].
    pub async fn leases(&self, limit: Option<u32>, cursor: Option<&str>) -> Result<LeaseListAnswer, Error> {
        let mut query = Query::default();
        if let Some(limit) = limit {
            query.add("limit", &limit.to_string());
        }
        if let Some(cursor) = cursor {
            query.add("cursor", cursor);
        }
        decode(&self.call(&Call::read(query.append_to(LEASES))).await?, Effect::Read)
    }
}
