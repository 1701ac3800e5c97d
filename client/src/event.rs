//! What happens to the cluster, as it happens.

use std::time::Duration;

use tokio::time::Instant;

use crate::api::{EventsEnd, LeaderEvent, MembershipEvent, NodeEvent, ReplicationFactorEvent, StateEvent, StepEvent};
use crate::client::Call;
use crate::sse::{Event, EventStream, Next, RETRY_PAUSE};
use crate::{Client, Error};

/// What a node tells of its cluster.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ClusterEvent {
    /// The cluster as it is: first, and whenever the events are followed anew.
    State(StateEvent),
    /// A member is heard no longer.
    NodeDown(NodeEvent),
    /// A member is heard again.
    NodeUp(NodeEvent),
    /// Another leader, another term, or none.
    Leader(LeaderEvent),
    /// Members came, went, or changed their roles.
    Membership(MembershipEvent),
    /// Another number of members is to vote.
    ReplicationFactor(ReplicationFactorEvent),
    /// The leader's reconciler took a step, or could not.
    Step(StepEvent),
}

/// The events of a cluster, which go on through another endpoint when one fails, beginning with the state.
#[derive(Debug)]
pub struct ClusterEvents {
    client: Client,
    stream: Option<EventStream>,
    began: bool,
}

impl Client {
    /// Follows what happens to the cluster. Nothing is sent before the first [`ClusterEvents::next`].
    pub fn cluster_events(&self) -> ClusterEvents {
        ClusterEvents { client: self.clone(), stream: None, began: false }
    }
}

impl ClusterEvents {
    /// Whether a node has answered yet.
    pub fn began(&self) -> bool {
        self.began
    }

    /// What comes next.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when no node could be followed for [`crate::Options::timeout`]; a further call tries on. Others as
    /// [`Error`] says.
    pub async fn next(&mut self) -> Result<ClusterEvent, Error> {
        let patience: Duration = self.client.options().timeout;
        let mut deadline = Instant::now() + patience;
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => match self.client.open(&Call::read("/api/cluster/events".to_owned())).await {
                    Ok(response) => {
                        self.began = true;
                        self.stream.insert(EventStream::new(response))
                    }
                    Err(error @ Error::Unavailable { .. }) if Instant::now() < deadline => {
                        tracing::debug!(%error, "the events do not go on yet");
                        tokio::time::sleep(RETRY_PAUSE).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            let ended = match stream.next().await? {
                Next::Event(event) => match told(&event)? {
                    Told::Event(event) => return Ok(event),
                    Told::Nothing => continue,
                    Told::Ended(why) => why,
                },
                Next::Ended(why) => why,
            };
            tracing::debug!(why = ended, "the events go on elsewhere");
            self.stream = None;
            // Each stream that began earns a new attempt.
            deadline = Instant::now() + patience;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

enum Told {
    Event(ClusterEvent),
    /// A comment, or what later versions may say.
    Nothing,
    Ended(String),
}

fn told(event: &Event) -> Result<Told, Error> {
    Ok(Told::Event(match event.name.as_str() {
        "state" => ClusterEvent::State(event.body()?),
        "node_down" => ClusterEvent::NodeDown(event.body()?),
        "node_up" => ClusterEvent::NodeUp(event.body()?),
        "leader" => ClusterEvent::Leader(event.body()?),
        "membership" => ClusterEvent::Membership(event.body()?),
        "replication_factor" => ClusterEvent::ReplicationFactor(event.body()?),
        "step" => ClusterEvent::Step(event.body()?),
        "overflow" | "closed" => return Ok(Told::Ended(event.body::<EventsEnd>()?.reason)),
        _ => return Ok(Told::Nothing),
    }))
}
