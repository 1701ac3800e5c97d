//! Becoming the founder: asking the other nodes without a cluster, and answering those that ask.

use std::time::Duration;

use futures_util::future::join_all;
use hexkv_raft_net::{
    PeerIdentity,
    rpc::{FoundingAnswer, FoundingRequest, PeerError, PeerRequest, PeerResponse, Verdict},
};
use hexkv_store::{
    StoreError,
    founding::{Ballot, Founder, Promise},
    identity::DataDir,
};

use super::rule::{Choice, Voice, choose, plan_of, quorum, takes_part, votes};
use crate::{config::DiscoveryType, error::Error, node::Node};

/// One question; each answer waits for a disk.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// What came of an attempt to become the founder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Attempt {
    /// Enough nodes agreed: this node, and no other, founds the cluster.
    Won,
    /// Another node was agreed to before.
    WaitFor(Founder),
    /// Not this time.
    Lost,
    /// It cannot succeed until somebody corrects this.
    Misconfigured(String),
}

/// What the others said.
#[derive(Default)]
struct Heard {
    voices: Vec<Voice>,
    overtaken: Option<Ballot>,
    in_cluster: bool,
    problem: Option<String>,
}

impl Node {
    /// What this node answers to an attempt of node `from`.
    pub fn answer_founding(&self, from: &PeerIdentity, request: FoundingRequest) -> Result<PeerResponse, PeerError> {
        if from.node_id != request.ballot.node_id {
            return Err(PeerError::Invalid("an attempt on behalf of another node".into()));
        }
        let plan = plan_of(&self.config);
        let verdict = if from.name == self.name {
            Verdict::SameName
        } else if request.plan != plan || !takes_part(&plan, &self.name) {
            Verdict::OtherPlan(plan)
        } else {
            let data = self.data.try_lock().map_err(|_| PeerError::Unavailable("it changes clusters".into()))?;
            let told = say(&data, |promise| agree(promise, request)).map_err(|e| {
                tracing::error!(error = %e, "a promise to another node could not be stored");
                PeerError::Unavailable(e.to_string())
            })?;
            told.unwrap_or(Verdict::InCluster)
        };
        let index = self.index();
        Ok(PeerResponse::Founding(FoundingAnswer { name: self.name.clone(), index, verdict }))
    }

    /// With the port mapper every node has an index, if only the first one.
    fn index(&self) -> Option<u32> {
        let has_one = self.config.index_is_set || self.config.discovery == DiscoveryType::Epmd;
        has_one.then_some(self.config.node_index)
    }

    /// Whether this node was the last that it agreed to itself.
    pub(super) async fn is_picked_by_itself(&self) -> Result<bool, Error> {
        let promise = self.data.lock().await.load_promise()?;
        Ok(promise.granted.is_some_and(|(_, founder)| founder.node_id == self.identity().node_id))
    }

    /// Asks the nodes at `addresses` to agree that this node founds the cluster.
    ///
    /// # Errors
    /// This node's own promise cannot be stored.
    pub(super) async fn attempt_to_found(&self, addresses: &[String], seen: &mut Ballot) -> Result<Attempt, Error> {
        let plan = plan_of(&self.config);
        let me = Founder { node_id: self.identity().node_id, name: self.name.clone() };
        let own = |granted| Voice { name: self.name.clone(), index: self.index(), granted };
        let prepared = {
            let data = self.data.lock().await;
            let promised = data.load_promise()?.promised;
            let ballot = Ballot { round: promised.max(*seen).round + 1, node_id: me.node_id };
            say(&data, |promise| promise.prepare(ballot))?.flatten().map(|granted| (ballot, granted))
        };
        let Some((ballot, granted)) = prepared else { return Ok(Attempt::Lost) };
        let request = |founder| FoundingRequest { ballot, plan: plan.clone(), founder };
        let mut heard = self.ask_to_found(addresses, &request(None)).await;
        *seen = (*seen).max(heard.overtaken.unwrap_or_default());
        heard.voices.push(own(granted));
        if heard.in_cluster {
            return Ok(Attempt::Lost);
        }
        match (choose(&me, &plan, &heard.voices), heard.problem) {
            (Err(problem), _) | (Ok(Choice::TooFew), Some(problem)) => return Ok(Attempt::Misconfigured(problem)),
            (Ok(Choice::TooFew), None) => return Ok(Attempt::Lost),
            (Ok(Choice::WaitFor(founder)), _) => return Ok(Attempt::WaitFor(founder)),
            (Ok(Choice::Propose), _) => {}
        }
        let agreed = say(&*self.data.lock().await, |promise| promise.grant(ballot, me.clone()))?;
        if agreed != Some(true) {
            return Ok(Attempt::Lost);
        }
        let mut heard = self.ask_to_found(addresses, &request(Some(me))).await;
        heard.voices.push(own(None));
        let agreed = votes(&plan, &heard.voices).unwrap_or(0);
        Ok(if agreed >= quorum(&plan) { Attempt::Won } else { Attempt::Lost })
    }

    async fn ask_to_found(&self, addresses: &[String], request: &FoundingRequest) -> Heard {
        let asked = addresses
            .iter()
            .map(|address| self.network.request_as_guest(address, PeerRequest::Founding(request.clone()), ASK_TIMEOUT));
        let mut heard = Heard::default();
        for answer in join_all(asked).await {
            match answer {
                Ok((_, PeerResponse::Founding(answer))) => heard.take_in(answer, &self.name),
                Ok((peer, other)) => {
                    tracing::debug!(%peer, answer = ?other, "no answer to an attempt to found a cluster")
                }
                Err(e) => tracing::debug!(error = %e, "no answer to an attempt to found a cluster"),
            }
        }
        heard
    }
}

impl Heard {
    fn take_in(&mut self, FoundingAnswer { name, index, verdict }: FoundingAnswer, me: &str) {
        match verdict {
            Verdict::Promised(granted) => self.voices.push(Voice { name, index, granted }),
            Verdict::Granted => self.voices.push(Voice { name, index, granted: None }),
            Verdict::Overtaken(ballot) => self.overtaken = self.overtaken.max(Some(ballot)),
            Verdict::InCluster => self.in_cluster = true,
            Verdict::OtherPlan(theirs) => {
                self.problem = Some(format!(
                    "{name} plans with other nodes ({theirs:?}) than this one: set CLUSTER_DISCOVERY_TYPE, CLUSTER_SIZE and CLUSTER_NODES to the same on all nodes, and NODE_INDEX on all or none"
                ));
            }
            Verdict::SameName => {
                self.problem = Some(format!("another node is called {me} too: give each node a NODE_NAME of its own"));
            }
        }
    }
}

/// What a promise makes of a request, which is stored before it is told.
fn agree(promise: &mut Promise, request: FoundingRequest) -> Verdict {
    let overtaken = promise.promised;
    match request.founder {
        None => promise.prepare(request.ballot).map_or(Verdict::Overtaken(overtaken), Verdict::Promised),
        Some(founder) => match promise.grant(request.ballot, founder) {
            true => Verdict::Granted,
            false => Verdict::Overtaken(overtaken),
        },
    }
}

/// Changes this node's promise; what came of it is told when the promise is on disk. None when this node has a cluster, or is
/// joining one.
fn say<R>(data: &DataDir, change: impl FnOnce(&mut Promise) -> R) -> Result<Option<R>, StoreError> {
    let identity = data.identity();
    if identity.cluster_id.is_some() || identity.pending_join.is_some() {
        return Ok(None);
    }
    let before = data.load_promise()?;
    let mut promise = before.clone();
    let result = change(&mut promise);
    if promise != before {
        data.store_promise(&promise)?;
    }
    Ok(Some(result))
}
