//! Members, leadership, health.

use bytes::Bytes;
use http::Method;
use serde::Serialize;

use crate::answer::decode;
use crate::api::{
    ClusterStatus, Code, ExplainAnswer, HashAnswer, HealthAnswer, JoinRequest, MemberState, MemberStatus,
    MembersAnswer, NodeCheck, ReplicationFactorRequest, TransferLeaderRequest,
};
use crate::client::{Call, Effect, STATUS};
use crate::encoding::{Query, segment};
use crate::{Client, Endpoint, Error};

/// Which question `health` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthCheck {
    /// `/health`: is the node up, in full or in part?
    Node,
    /// `/health/ready`: can it serve linearizable requests now?
    Ready,
}

impl ClusterStatus {
    /// The leader's own entry; `None` when there is no leader.
    pub fn leader_member(&self) -> Option<&MemberStatus> {
        let leader = self.leader.as_ref()?;
        self.members.iter().find(|member| &member.name == leader)
    }

    /// HTTP side of the leader.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with [`Code::NoLeader`] when there is none that is up; [`Error::Invalid`] when its address
    /// cannot be read.
    pub fn leader_endpoint(&self) -> Result<Endpoint, Error> {
        match self.leader_member() {
            Some(leader) if leader.state != MemberState::Down => leader.http.parse(),
            Some(_) | None => {
                let detail = format!("{} knows no leader now: `client status` shows why", self.node);
                Err(Error::Unavailable { detail, code: Some(Code::NoLeader) })
            }
        }
    }
}

impl Client {
    /// The cluster as the asked node sees it.
    ///
    /// # Errors
    /// See [`Error`]; never [`Error::Indeterminate`].
    pub async fn status(&self) -> Result<ClusterStatus, Error> {
        decode(&self.call(&Call::read(STATUS.to_owned())).await?, Effect::Read)
    }

    /// HTTP side of the leader, as the asked node knows it. [`Client::to_leader`] gives a client that follows it.
    ///
    /// # Errors
    /// As [`ClusterStatus::leader_endpoint`] and [`Client::status`].
    pub async fn leader(&self) -> Result<Endpoint, Error> {
        self.status().await?.leader_endpoint()
    }

    /// What the asked node finds out about itself and its way to the others.
    ///
    /// # Errors
    /// See [`Error`]; never [`Error::Indeterminate`].
    pub async fn check(&self) -> Result<NodeCheck, Error> {
        decode(&self.call(&Call::read("/api/cluster/check".to_owned())).await?, Effect::Read)
    }

    /// The members, by name.
    ///
    /// # Errors
    /// See [`Error`]; never [`Error::Indeterminate`].
    pub async fn members(&self) -> Result<Vec<MemberStatus>, Error> {
        let reply = self.call(&Call::read("/api/cluster/members".to_owned())).await?;
        decode::<MembersAnswer>(&reply, Effect::Read).map(|answer| answer.members)
    }

    /// Makes the one node that this client has as endpoint a member of the cluster of `node` (`name@host` or
    /// `name@host:raft-port`); returns when membership is committed. With `discard_local_data` the joining node gives
    /// up the data it has (kept aside on its disk).
    ///
    /// # Errors
    /// [`Error::Invalid`] when the client has several endpoints, or is one to the leader; `has_data`, `name_taken` and `cluster_mismatch` as
    /// [`Error::Rejected`]; else see [`Error`].
    pub async fn join(&self, node: &str, discard_local_data: bool) -> Result<ClusterStatus, Error> {
        self.one_endpoint("join")?;
        let body = JoinRequest { node: node.to_owned(), discard_local_data };
        let call = self.cluster_change(Method::POST, "/api/cluster/join", Some(&body));
        decode(&self.call(&call).await?, Effect::Change)
    }

    /// Makes the one node that this client has as endpoint leave its cluster.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the client has several endpoints, or is one to the leader; `last_member` as [`Error::Rejected`]; else see
    /// [`Error`].
    pub async fn leave(&self) -> Result<(), Error> {
        self.one_endpoint("leave")?;
        let call = self.cluster_change::<()>(Method::POST, "/api/cluster/leave", None);
        self.call(&call).await.map(drop)
    }

    /// What the leader sees of the membership, waits for, and did.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn explain(&self) -> Result<ExplainAnswer, Error> {
        self.look("/api/cluster/explain".to_owned()).await
    }

    /// Removes a member that is dead for good; `name` is its full name.
    ///
    /// # Errors
    /// `not_found` and `last_member` as [`Error::Rejected`]; else see [`Error`].
    pub async fn remove_member(&self, name: &str) -> Result<(), Error> {
        let path = format!("/api/cluster/members/{}", segment(name));
        self.call(&self.cluster_change::<()>(Method::DELETE, &path, None)).await.map(drop)
    }

    /// Makes the voter with the full name `to` the leader.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn transfer_leader(&self, to: &str) -> Result<(), Error> {
        let body = TransferLeaderRequest { to: to.to_owned() };
        let call = self.cluster_change(Method::POST, "/api/cluster/transfer-leader", Some(&body));
        self.call(&call).await.map(drop)
    }

    /// Sets how many voters the cluster aims at.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_replication_factor(&self, value: u32) -> Result<(), Error> {
        let body = ReplicationFactorRequest { value };
        let call = self.cluster_change(Method::PUT, "/api/cluster/replication-factor", Some(&body));
        self.call(&call).await.map(drop)
    }

    /// Hash of the state of the asked node.
    ///
    /// # Errors
    /// See [`Error`]; never [`Error::Indeterminate`].
    pub async fn hash(&self) -> Result<HashAnswer, Error> {
        decode(&self.call(&Call::read("/api/cluster/hash".to_owned())).await?, Effect::Read)
    }

    /// Health of the asked node.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it does not answer, or says that it cannot serve; else see [`Error`].
    pub async fn health(&self, check: HealthCheck) -> Result<HealthAnswer, Error> {
        let path = match check {
            HealthCheck::Node => "/health",
            HealthCheck::Ready => "/health/ready",
        };
        decode(&self.call(&Call::read(path.to_owned())).await?, Effect::Read)
    }

    /// The only endpoint, for what is said to a certain node.
    fn one_endpoint(&self, what: &str) -> Result<&Endpoint, Error> {
        if self.is_to_leader() {
            return Err(Error::Invalid(format!(
                "{what} is about the node it is sent to, and this client asks the leader"
            )));
        }
        let mut endpoints = self.endpoints();
        match (endpoints.next(), endpoints.next()) {
            (Some(only), None) => Ok(only),
            _ => Err(Error::Invalid(format!(
                "{what} is about the node it is sent to, and there are {} endpoints: give only that node's",
                self.endpoints().len()
            ))),
        }
    }

    /// Changes of membership take longer than a server allows by default: it is told how long this client waits.
    fn cluster_change<T: Serialize>(&self, method: Method, path: &str, body: Option<&T>) -> Call {
        let mut query = Query::default();
        query.add("timeout", &format!("{}ms", self.options().timeout.as_millis()));
        let json = body.map(|body| serde_json::to_vec(body).expect("plain structs become JSON"));
        let mut call = Call::change(method, query.append_to(path), json.map(Bytes::from).unwrap_or_default());
        if body.is_some() {
            call.headers.push((http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json")));
        }
        call
    }
}
