//! One of several nodes that start together: joins the cluster that another one has, or founds it, once it is sure that
//! nobody else has or will.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use hexkv_raft_net::{
    NetError, Refusal,
    rpc::{ClusterInfo, PeerRequest, PeerResponse, Plan},
};
use hexkv_store::{entropy, founding::Ballot};
use tokio::time::Instant;

use super::{
    REFUSED_RETRY,
    founding::Attempt,
    rule::{plan_of, quorum, takes_part, votes_planned},
};
use crate::{
    config::{DiscoveryType, NodeName, Target},
    error::Error,
    node::Node,
};

/// Nodes that are numbered are called so, with their index behind it.
const NODE_NAME_STEM: &str = "hex_hub";
/// One question to another node: it is up and answers at once, or it is not there yet.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two looks for the other nodes.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long enough nodes wait for the rest, the planned ones and all whose address is known, before they found a cluster:
/// who is slow may be the one that has one.
const REST_PATIENCE: Duration = Duration::from_secs(5);
/// How long the others leave it to the first of them.
const FIRST_PATIENCE: Duration = Duration::from_secs(10);
/// Shortest and longest pause after an attempt that failed, in milliseconds: whoever tries at the same time draws another one.
const ATTEMPT_PAUSE_MS: std::ops::Range<u64> = 100..600;
/// The same while another node has been agreed to, which is to come back.
const FOUNDER_PAUSE_MS: std::ops::Range<u64> = 1_000..2_000;
/// How often a reason to wait is logged again.
const REMINDER_INTERVAL: Duration = Duration::from_secs(30);

/// What a look at the other nodes gave.
#[derive(Default)]
pub(super) struct Look {
    /// Nodes with a cluster, by address.
    with_cluster: Vec<(String, ClusterInfo)>,
    /// Nodes without one: address by name.
    without: BTreeMap<String, String>,
    /// Known addresses at which nobody answered: whoever is there may have a cluster.
    silent: Vec<String>,
    /// What the resolver did for names that have no address.
    unresolved: Vec<String>,
    /// Where another node has this node's name.
    namesake: Option<String>,
    /// What has to be corrected, or cannot be found.
    problems: Vec<String>,
}

/// What is remembered between two looks.
#[derive(Default)]
pub(super) struct Search {
    /// Since when enough nodes without a cluster answer.
    enough_since: Option<Instant>,
    /// The highest attempt that was heard of.
    seen: Ballot,
    next_attempt: Option<Instant>,
    /// What the last attempt came to, in words.
    attempt_says: Option<String>,
    logged: Option<(String, Instant)>,
}

impl Node {
    /// Looks until this node has a cluster.
    pub(super) async fn find_or_found(self: &Arc<Self>) {
        tracing::info!(
            size = self.config.cluster_size,
            discovery = self.config.discovery.word(),
            "looking for the other nodes"
        );
        let mut search = Search::default();
        loop {
            let look = self.look_for_others().await;
            let pause = if let Some(address) = look.cluster() {
                // Whoever finds a cluster joins it, and founds none.
                match self.join_found(address, &look).await {
                    None => break,
                    Some(why) => search.say(self, why),
                }
                REFUSED_RETRY
            } else {
                match self.found_if_sure(&look, &mut search).await {
                    Ok(true) => break,
                    Ok(false) => LOOK_INTERVAL,
                    Err(e) => {
                        search.attempt_failed(&e);
                        REFUSED_RETRY
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stopping.cancelled() => break,
            }
            if self.identity().cluster_id.is_some() {
                // Somebody let it join by hand.
                break;
            }
        }
        self.set_waiting(None);
    }

    /// None when the node has a cluster now; else why not.
    async fn join_found(self: &Arc<Self>, address: &str, look: &Look) -> Option<String> {
        if look.namesake.is_some() {
            return look.problem();
        }
        match self.join_at(address.to_owned(), false).await {
            Ok(()) => None,
            Err(e) if self.identity().cluster_id.is_some() => {
                tracing::warn!(error = %e, "joined; its role comes later");
                None
            }
            Err(e) => Some(format!("could not join the cluster of {address} yet: {}", e.detail)),
        }
    }

    /// True when this node founded a cluster.
    async fn found_if_sure(self: &Arc<Self>, look: &Look, search: &mut Search) -> Result<bool, Error> {
        let plan = plan_of(&self.config);
        let known = look.without.len() + 1;
        let enough = known >= quorum(&plan);
        search.enough_since = if enough { search.enough_since.or(Some(Instant::now())) } else { None };
        let why = search.attempt_says.clone().filter(|_| enough).or_else(|| look.problem());
        let waits = format!(
            "waits for the other nodes: {known} of {} are there ({}){}{}",
            votes_planned(&plan),
            look.names(&self.name).join(", "),
            look.silence(),
            why.map(|why| format!("; {why}")).unwrap_or_default()
        );
        if !look.unresolved.is_empty() {
            // With times, which are not to make each look a line of the log.
            self.set_waiting(Some(format!("{waits}; {}", look.unresolved.join("; "))));
            search.log(&waits);
        } else {
            search.say(self, waits);
        }
        let may_try = enough && takes_part(&plan, &self.name) && look.namesake.is_none();
        if !may_try || search.next_attempt.is_some_and(|next| Instant::now() < next) {
            return Ok(false);
        }
        let waited = search.enough_since.map_or(Duration::ZERO, |since| since.elapsed());
        let all = (known >= votes_planned(&plan) && look.silent.is_empty()) || waited >= REST_PATIENCE;
        let first = look.is_first(&plan, &self.name) || waited >= FIRST_PATIENCE || self.is_picked_by_itself().await?;
        if !(all && first) {
            return Ok(false);
        }
        let addresses: Vec<String> = look.without.values().cloned().collect();
        let mut pause = ATTEMPT_PAUSE_MS;
        let all_answer = look.silent.is_empty();
        search.attempt_says = match self.attempt_to_found(&addresses, all_answer, &mut search.seen).await? {
            Attempt::Won(ballot) => {
                tracing::info!(nodes = known, "the other nodes agreed that this one founds the cluster");
                let _turn = self.lifecycle.lock().await;
                // They may have waited long for this process, which stood still or waited for its turn.
                if self.is_granted(&addresses, ballot).await? {
                    self.found(search).await;
                    return Ok(true);
                }
                None
            }
            Attempt::Lost => None,
            Attempt::Misconfigured(why) => Some(why),
            Attempt::WaitFor(founder) => {
                pause = FOUNDER_PAUSE_MS;
                Some(format!(
                    "{} was picked to found the cluster, and may have done so: start it. If it is gone for good with its disk and no node has a cluster, stop the nodes that wait, remove their data directories, which hold nothing yet, and start them again",
                    founder.name
                ))
            }
        };
        search.next_attempt = Some(Instant::now() + Duration::from_millis(entropy::random_range(pause)));
        Ok(false)
    }

    /// Founds the cluster, as the others agreed. They wait for this node, so that it goes on until that is done.
    async fn found(&self, search: &mut Search) {
        loop {
            let founded = {
                let mut data = self.data.lock().await;
                self.bootstrap(&mut data).await
            };
            let Err(e) = founded else { return };
            search.complain(self, format!("waits until it can found the cluster, as the other nodes agreed: {e}"));
            tokio::time::sleep(REFUSED_RETRY).await;
        }
    }

    pub(super) async fn look_for_others(&self) -> Look {
        let places = self.naming.places(self.expected_peers()).await;
        let asked = places.addresses.iter().map(|address| async move {
            (address, self.network.request_as_guest(address, PeerRequest::ClusterInfo, ASK_TIMEOUT).await)
        });
        let mut look = Look { problems: places.problems, ..Look::default() };
        for (address, answer) in join_all(asked).await {
            match answer {
                Ok((_, PeerResponse::ClusterInfo(info))) => look.take_in(address, info, &self.name),
                Ok((peer, _)) => {
                    look.problems.push(format!("{peer} at {address} does not say whether it has a cluster"))
                }
                // This node itself, under an address that discovery gave.
                Err(NetError::Refused(Refusal::OwnAddress)) => {}
                Err(e @ NetError::Refused(_)) => look.problems.push(format!("the node at {address}: {e}")),
                Err(e) => {
                    tracing::debug!(address, error = %e, "no answer yet");
                    let unresolved = self.network.dialer().unresolved(address);
                    let why = if unresolved.is_some() { " (its name has no address yet)" } else { "" };
                    look.silent.push(format!("{address}{why}"));
                    look.unresolved.extend(unresolved);
                }
            }
        }
        look
    }

    /// The nodes that are started with this one, where it knows them by name: by their index, and those that are listed.
    pub(crate) fn expected_peers(&self) -> Vec<Target> {
        let mut peers: Vec<Target> =
            self.config.cluster_nodes.iter().filter(|t| t.node != self.config.node_name).cloned().collect();
        // A list of all of them leaves nobody to guess.
        if self.config.discovery == DiscoveryType::Epmd && peers.len() + 1 < self.config.cluster_size as usize {
            let named = |index: u32| {
                NodeName::new(&format!("{NODE_NAME_STEM}{index}"), self.config.node_name.host().clone()).ok()
            };
            let by_index = (1..=self.config.cluster_size).filter(|i| *i != self.config.node_index).filter_map(named);
            let unlisted: Vec<Target> = by_index
                .filter(|name| peers.iter().all(|t| t.node != *name))
                .map(|node| Target { node, port: None })
                .collect();
            peers.extend(unlisted);
        }
        peers
    }
}

impl Look {
    fn take_in(&mut self, address: &str, info: ClusterInfo, me: &str) {
        if info.name == me {
            self.namesake =
                Some(format!("the node at {address} is called {me} too: give each node a NODE_NAME of its own"));
        } else if info.cluster_id.is_some() {
            self.with_cluster.push((address.to_owned(), info));
        } else {
            self.without.insert(info.name, address.to_owned());
        }
    }

    /// Where a cluster is, if there is one. A node that left the others has one of its own and may still be found where they
    /// are, so that of several the one with the most members counts.
    fn cluster(&self) -> Option<&str> {
        let largest = self.with_cluster.iter().min_by_key(|(_, info)| std::cmp::Reverse(info.members.len()));
        largest.map(|(address, _)| address.as_str())
    }

    /// Where a node of cluster `id` is.
    pub(super) fn of_cluster(&self, id: u64) -> Option<&str> {
        self.with_cluster.iter().find(|(_, info)| info.cluster_id == Some(id)).map(|(address, _)| address.as_str())
    }

    fn problem(&self) -> Option<String> {
        self.namesake.as_ref().or(self.problems.first()).cloned()
    }

    fn silence(&self) -> String {
        if self.silent.is_empty() { String::new() } else { format!("; nobody answers at {}", self.silent.join(", ")) }
    }

    fn names(&self, me: &str) -> Vec<String> {
        let mut names: Vec<String> = self.without.keys().cloned().collect();
        names.push(me.to_owned());
        names.sort();
        names
    }

    fn is_first(&self, plan: &Plan, me: &str) -> bool {
        self.without.keys().filter(|name| takes_part(plan, name)).all(|name| name.as_str() > me)
    }
}

impl Search {
    /// Tells, in the log and in answers, what the node waits for.
    pub(super) fn say(&mut self, node: &Node, text: String) {
        self.log(&text);
        node.set_waiting(Some(text));
    }

    fn log(&mut self, text: &str) {
        if self.is_news(text) {
            tracing::info!("{text}");
        }
    }

    /// As [`Self::say`], of what should not be.
    pub(super) fn complain(&mut self, node: &Node, text: String) {
        if self.is_news(&text) {
            tracing::warn!("{text}");
        }
        node.set_waiting(Some(text));
    }

    /// What the node promised could not be stored: others were told nothing.
    fn attempt_failed(&mut self, e: &Error) {
        let says = format!("an attempt to found the cluster failed and is made again: {e}");
        if self.attempt_says.as_ref() != Some(&says) {
            tracing::warn!("{says}");
            self.attempt_says = Some(says);
        }
    }

    fn is_news(&mut self, text: &str) -> bool {
        let news = self.logged.as_ref().is_none_or(|(last, at)| *last != text || at.elapsed() >= REMINDER_INTERVAL);
        if news {
            self.logged = Some((text.to_owned(), Instant::now()));
        }
        news
    }
}
