//! Becoming the founder: asking the other nodes without a cluster, and answering those that ask.

use std::time::Duration;

use futures_util::future::join_all;
use hexkv_client::api::Code;
use hexkv_raft_net::{
    PeerIdentity,
    rpc::{FoundingAnswer, FoundingRequest, PeerError, PeerRequest, PeerResponse, Plan, Verdict},
};
use hexkv_store::{
    StoreError,
    founding::{Ballot, Founder, Promise},
    identity::DataDir,
};

use super::rule::{Choice, Voice, choose, plan_of, quorum, takes_part, votes};
use crate::{
    config::{DiscoveryType, NodeName},
    error::Error,
    node::Node,
};

/// One question; each answer waits for a disk.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Most rounds that an attempt may be ahead of those that a node has heard of: nodes that look for each other make a few attempts a
/// second. One message must not use all rounds up.
const ROUND_LEAP_MAX: u64 = 1 << 32;

/// How long whoever asks waits for this node's data directory: another promise may be on its way to the disk.
const TURN_TIMEOUT: Duration = Duration::from_millis(1500);

/// What came of an attempt to become the founder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Attempt {
    /// Enough nodes agreed, in this attempt: this node, and no other, founds the cluster.
    Won(Ballot),
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
    /// How many of those that were asked said nothing.
    silent: usize,
}

impl Node {
    /// What this node answers to an attempt of node `from`.
    pub async fn answer_founding(
        &self,
        from: &PeerIdentity,
        request: FoundingRequest,
    ) -> Result<PeerResponse, PeerError> {
        check_request(from, &request).map_err(PeerError::Invalid)?;
        let plan = plan_of(&self.config);
        let verdict = if from.name == self.name {
            Verdict::SameName
        } else if request.plan != plan || !takes_part(&plan, &self.name) {
            Verdict::OtherPlan(plan)
        } else {
            let told = tokio::time::timeout(TURN_TIMEOUT, self.say(|promise| agree_within(promise, request))).await;
            let told = told.map_err(|_| PeerError::Unavailable("it changes clusters, or its disk is slow".into()))?;
            let verdict = told.map_err(|e| {
                tracing::error!(error = %e, "a promise to another node could not be stored");
                PeerError::Unavailable(e.to_string())
            })?;
            verdict.unwrap_or(Ok(Verdict::InCluster)).map_err(PeerError::Invalid)?
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

    /// Asks the nodes at `addresses` to agree that this node founds the cluster. `all_answer`: there is no other address at
    /// which a node may be.
    ///
    /// # Errors
    /// This node's own promise cannot be stored.
    pub(super) async fn attempt_to_found(
        &self,
        addresses: &[String],
        all_answer: bool,
        seen: &mut Ballot,
    ) -> Result<Attempt, Error> {
        let plan = plan_of(&self.config);
        let me = Founder { node_id: self.identity().node_id, name: self.name.clone() };
        let own = |granted| Voice { name: self.name.clone(), index: self.index(), granted };
        let (highest, node_id) = (*seen, me.node_id);
        let prepare = move |promise: &mut Promise| {
            let ballot = Ballot { round: promise.promised.max(highest).round + 1, node_id };
            promise.prepare(ballot).map(|granted| (ballot, granted))
        };
        let Some((ballot, granted)) = self.say(prepare).await?.flatten() else { return Ok(Attempt::Lost) };
        let request = FoundingRequest { ballot, plan: plan.clone(), founder: None };
        let mut heard = self.ask_to_found(addresses, &request).await;
        *seen = (*seen).max(heard.overtaken.unwrap_or_default());
        heard.voices.push(own(granted));
        if heard.in_cluster {
            return Ok(Attempt::Lost);
        }
        let all_heard = all_answer && heard.silent == 0;
        match (choose(&me, &plan, &heard.voices, all_heard), heard.problem) {
            (Err(problem), _) | (Ok(Choice::TooFew), Some(problem)) => return Ok(Attempt::Misconfigured(problem)),
            (Ok(Choice::TooFew), None) => return Ok(Attempt::Lost),
            (Ok(Choice::WaitFor(founder)), _) => return Ok(Attempt::WaitFor(founder)),
            (Ok(Choice::Propose), _) => {}
        }
        Ok(if self.is_granted(addresses, ballot).await? { Attempt::Won(ballot) } else { Attempt::Lost })
    }

    /// Asks this node and those at `addresses` to agree to attempt `ballot` of this node, or whether they still do: who
    /// promised more to another one since, or has a cluster, refuses.
    ///
    /// # Errors
    /// This node's own promise cannot be stored.
    pub(super) async fn is_granted(&self, addresses: &[String], ballot: Ballot) -> Result<bool, Error> {
        let plan = plan_of(&self.config);
        let founder = Founder { node_id: ballot.node_id, name: self.name.clone() };
        let me = founder.clone();
        if self.say(move |promise| promise.grant(ballot, me)).await? != Some(true) {
            return Ok(false);
        }
        let request = FoundingRequest { ballot, plan: plan.clone(), founder: Some(founder) };
        let mut heard = self.ask_to_found(addresses, &request).await;
        heard.voices.push(Voice { name: self.name.clone(), index: self.index(), granted: None });
        Ok(heard.agree(&plan))
    }

    /// Changes this node's promise; what came of it is told when the promise is on disk. None when this node has a cluster,
    /// or is joining one.
    async fn say<R: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Promise) -> R + Send + 'static,
    ) -> Result<Option<R>, Error> {
        let data = self.data.clone().lock_owned().await;
        let stored = self.environment.driver.run(move || say(&data, change)).await;
        Ok(stored.map_err(|e| Error::new(Code::Internal, format!("the promise was not stored: {e}")))??)
    }

    async fn ask_to_found(&self, addresses: &[String], request: &FoundingRequest) -> Heard {
        let asked = addresses
            .iter()
            .map(|address| self.network.request_as_guest(address, PeerRequest::Founding(request.clone()), ASK_TIMEOUT));
        let mut heard = Heard::default();
        for answer in join_all(asked).await {
            match answer {
                Ok((_, PeerResponse::Founding(answer))) if is_plausible(&answer, request.ballot) => {
                    heard.take_in(answer, &self.name);
                }
                Ok((peer, other)) => {
                    heard.silent += 1;
                    tracing::debug!(%peer, answer = ?other, "no answer to an attempt to found a cluster");
                }
                Err(e) => {
                    heard.silent += 1;
                    tracing::debug!(error = %e, "no answer to an attempt to found a cluster");
                }
            }
        }
        heard
    }
}

impl Heard {
    /// Whether enough agreed, and nobody has a cluster.
    fn agree(&self, plan: &Plan) -> bool {
        !self.in_cluster && votes(plan, &self.voices).is_ok_and(|votes| votes >= quorum(plan))
    }

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

/// Whether `from` asks for itself.
fn check_request(
    from: &PeerIdentity,
    FoundingRequest { ballot, plan: _, founder }: &FoundingRequest,
) -> Result<(), String> {
    let for_itself = founder.as_ref().is_none_or(|f| f.node_id == from.node_id && f.name == from.name);
    if from.node_id != ballot.node_id || !for_itself {
        return Err("an attempt on behalf of another node".into());
    }
    from.name.parse::<NodeName>().map(|_| ()).map_err(|e| e.to_string())
}

/// Whether `answer` may be one to `asked`: it uses up no rounds, and names nodes.
fn is_plausible(answer: &FoundingAnswer, asked: Ballot) -> bool {
    let ahead = |ballot: &Ballot| ballot.round.saturating_sub(asked.round) > ROUND_LEAP_MAX;
    let is_name = |name: &str| name.parse::<NodeName>().is_ok();
    is_name(&answer.name)
        && match &answer.verdict {
            Verdict::Promised(Some((ballot, founder))) => !ahead(ballot) && is_name(&founder.name),
            Verdict::Overtaken(ballot) => !ahead(ballot),
            Verdict::Promised(None)
            | Verdict::Granted
            | Verdict::InCluster
            | Verdict::OtherPlan(_)
            | Verdict::SameName => true,
        }
}

/// As [`agree`]; refuses an attempt that is further ahead than attempts get.
fn agree_within(promise: &mut Promise, request: FoundingRequest) -> Result<Verdict, String> {
    let (round, promised) = (request.ballot.round, promise.promised.round);
    if round.saturating_sub(promised) > ROUND_LEAP_MAX {
        return Err(format!("attempt {round} is not plausible, the last one was {promised}"));
    }
    Ok(agree(promise, request))
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

/// As [`Node::say`], on the thread that may wait for the disk.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What `promises`, by the index of their nodes, make of `founder`'s attempt.
    fn ask(promises: &mut [(u32, Promise)], founder: &Founder, ballot: Ballot) -> Heard {
        let mut heard = Heard::default();
        for (index, promise) in promises {
            let request = FoundingRequest { ballot, plan: Plan::Indexed(3), founder: Some(founder.clone()) };
            let answer =
                FoundingAnswer { name: format!("n{index}"), index: Some(*index), verdict: agree(promise, request) };
            heard.take_in(answer, &founder.name);
        }
        heard
    }

    #[test]
    fn who_had_won_and_was_replaced_meanwhile_is_told_so_when_it_asks_again() {
        let mut others = [(2, Promise::default()), (3, Promise::default())];
        let old = Founder { node_id: 1, name: "n1".into() };
        let new = Founder { node_id: 9, name: "n1".into() };
        let own = Voice { name: "n1".into(), index: Some(1), granted: None };
        let (first, second) = (Ballot { round: 1, node_id: 1 }, Ballot { round: 2, node_id: 9 });
        for _ in 0..2 {
            let mut heard = ask(&mut others, &old, first);
            heard.voices.push(own.clone());
            assert!(heard.agree(&Plan::Indexed(3)), "asking again changes nothing");
        }
        let mut replaced = ask(&mut others, &new, second);
        replaced.voices.push(own.clone());
        assert!(replaced.agree(&Plan::Indexed(3)));
        let mut heard = ask(&mut others, &old, first);
        heard.voices.push(own);
        assert!(!heard.agree(&Plan::Indexed(3)), "it would found a second cluster");
        assert_eq!(heard.overtaken, Some(second));
    }

    #[test]
    fn rounds_far_ahead_are_refused_and_change_nothing() {
        let mut promise = Promise::default();
        let request =
            |round| FoundingRequest { ballot: Ballot { round, node_id: 9 }, plan: Plan::Indexed(3), founder: None };
        for round in [ROUND_LEAP_MAX + 1, u64::MAX] {
            agree_within(&mut promise, request(round)).unwrap_err();
            assert_eq!(promise, Promise::default());
            let verdict = Verdict::Overtaken(request(round).ballot);
            let answer = FoundingAnswer { name: "n2@h".into(), index: None, verdict };
            assert!(!is_plausible(&answer, Ballot::default()));
        }
        assert_eq!(agree_within(&mut promise, request(ROUND_LEAP_MAX)), Ok(Verdict::Promised(None)));
    }

    #[test]
    fn an_attempt_for_another_node_is_refused() {
        let from = PeerIdentity {
            cluster_id: None,
            node_id: 9,
            incarnation: 1,
            name: "n9@h".into(),
            process: None,
            guest: true,
        };
        let ballot = Ballot { round: 1, node_id: 9 };
        let request = |founder| FoundingRequest { ballot, plan: Plan::Indexed(3), founder };
        check_request(&from, &request(None)).unwrap();
        check_request(&from, &request(Some(Founder { node_id: 9, name: "n9@h".into() }))).unwrap();
        for (node_id, name) in [(8, "n9@h"), (9, "n8@h"), (9, "n9@h\u{1b}[2J")] {
            check_request(&from, &request(Some(Founder { node_id, name: name.into() }))).unwrap_err();
        }
        check_request(&PeerIdentity { node_id: 8, ..from }, &request(None)).unwrap_err();
    }

    #[test]
    fn nobody_founds_beside_a_node_that_has_a_cluster() {
        let mut heard = ask(
            &mut [(2, Promise::default()), (3, Promise::default())],
            &Founder { node_id: 1, name: "n1".into() },
            Ballot { round: 1, node_id: 1 },
        );
        assert!(heard.agree(&Plan::Indexed(3)));
        heard.take_in(FoundingAnswer { name: "n4".into(), index: None, verdict: Verdict::InCluster }, "n1");
        assert!(!heard.agree(&Plan::Indexed(3)));
    }
}
