//! What happens to the cluster, as this node sees it, for whoever follows `/api/cluster/events`.
//!
//! | part | what |
//! |---|---|
//! | [`Events`] | who follows, and what they were told last |
//! | `seen` | the cluster at one moment, and what is new between two of them |
//! | [`watch`](mod@watch) | looks, at changes and at intervals |

use std::sync::Arc;

use bytes::Bytes;
use hexkv_client::api::{EventsEnd, LeaderEvent, MembershipEvent, NodeEvent, ReplicationFactorEvent, StepEvent};
use hexkv_raft_net::rpc::MembershipStep;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};

use self::seen::{Seen, Told};
use crate::{error::Error, metrics::Metrics, node::Node};

mod seen;
pub mod watch;

/// Events that wait for one reader at most; one that is further behind is cut off.
pub const EVENTS_QUEUED_MAX: usize = 256;
/// Readers of one node at most.
pub const EVENT_READERS_MAX: usize = 1024;

/// Who follows what happens to the cluster. It outlives cores.
///
/// Invariant: `current.seen` is what a reader knows that was told the state and all events up to `current.id`.
#[derive(Debug)]
pub struct Events {
    current: Mutex<Current>,
    feed: broadcast::Sender<Bytes>,
    room: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Current {
    /// Id of the last event of this process.
    id: u64,
    seen: Option<Seen>,
}

impl Default for Events {
    fn default() -> Self {
        let room = Arc::new(Semaphore::new(EVENT_READERS_MAX));
        Self { current: Mutex::default(), feed: broadcast::Sender::new(EVENTS_QUEUED_MAX), room }
    }
}

/// One reader.
#[derive(Debug)]
pub struct Reader {
    /// The state, to be told first.
    pub first: Option<Bytes>,
    /// The events after it.
    pub feed: broadcast::Receiver<Bytes>,
    _room: OwnedSemaphorePermit,
}

impl Events {
    /// How many follow.
    pub fn readers(&self) -> usize {
        EVENT_READERS_MAX - self.room.available_permits()
    }

    /// Follows from now on.
    fn follow(&self, time: &str, node: &str) -> Result<Reader, Error> {
        let room = self.room.clone().try_acquire_owned().map_err(|_| {
            let why = format!(
                "{EVENT_READERS_MAX} readers follow the events of this node, the most it takes; ask another node"
            );
            Error::new(hexkv_client::api::Code::Overloaded, why)
        })?;
        let current = self.current.lock();
        let first = current.seen.as_ref().map(|seen| encode("state", &seen.as_event(time, node), current.id));
        Ok(Reader { first, feed: self.feed.subscribe(), _room: room })
    }

    /// Looks, and tells what is new. `look` is given what was seen last; one looks at a time, so nothing older follows.
    fn take_in(&self, time: &str, node: &str, look: impl FnOnce(Option<&Seen>) -> Seen, metrics: &Metrics) {
        let mut current = self.current.lock();
        let seen = look(current.seen.as_ref()).after(current.seen.as_ref());
        let news = match &current.seen {
            Some(before) => before.news(&seen),
            None => vec![Told::State],
        };
        for told in news {
            current.id += 1;
            let id = current.id;
            log(&told, &seen);
            let (time, node) = (time.to_owned(), node.to_owned());
            let event = match told {
                Told::State => encode("state", &seen.as_event(&time, &node), id),
                Told::Down(member) => encode("node_down", &NodeEvent { time, node, member }, id),
                Told::Up(member) => encode("node_up", &NodeEvent { time, node, member }, id),
                Told::Leader { another } => {
                    if another {
                        metrics.leader_changes.inc();
                    }
                    encode("leader", &LeaderEvent { time, node, leader: seen.leader.clone(), term: seen.term }, id)
                }
                Told::Membership { joined, left, changed } => {
                    let members = seen.members();
                    encode("membership", &MembershipEvent { time, node, joined, left, changed, members }, id)
                }
                Told::ReplicationFactor { from, to } => {
                    encode("replication_factor", &ReplicationFactorEvent { time, node, from, to }, id)
                }
            };
            self.send(event);
        }
        current.seen = Some(seen);
    }

    /// Tells a step of the reconciler.
    pub fn step(&self, time: String, node: &str, step: &MembershipStep) {
        let mut current = self.current.lock();
        current.id += 1;
        let body = StepEvent { time, node: node.to_owned(), step: step.step.clone(), refused: step.refused.clone() };
        self.send(encode("step", &body, current.id));
    }

    fn send(&self, event: Bytes) {
        // Nobody follows: nobody is told.
        let _ = self.feed.send(event);
    }
}

impl Node {
    /// Follows what happens to the cluster, as this node sees it: its present state first, where it is known.
    ///
    /// # Errors
    /// [`hexkv_client::api::Code::Overloaded`] beyond [`EVENT_READERS_MAX`] readers.
    pub fn follow_events(&self) -> Result<Reader, Error> {
        let time = self.time();
        // Who is heard is looked at now and then; all else is as of now.
        let look = |before: Option<&Seen>| watch::seen(self, &before.map(Seen::heard).unwrap_or_default());
        self.events.take_in(&time, &self.name, look, &self.metrics);
        self.events.follow(&time, &self.name)
    }

    /// The last event of a stream.
    pub fn events_end(&self, name: &str, reason: &str) -> Bytes {
        let body = EventsEnd { time: self.time(), node: self.name.clone(), reason: reason.to_owned() };
        crate::watch::event_lines(name, &body, b"\n")
    }

    /// This node's wall clock as text.
    pub(crate) fn time(&self) -> String {
        humantime::format_rfc3339_millis(self.environment.clock.now()).to_string()
    }
}

fn encode(name: &str, body: &impl Serialize, id: u64) -> Bytes {
    crate::watch::event_lines(name, body, format!("id: {id}\n\n").as_bytes())
}

fn log(told: &Told, seen: &Seen) {
    match told {
        Told::Down(member) => tracing::warn!(member, "member does not answer"),
        Told::Up(member) => tracing::info!(member, "member is up again"),
        Told::Leader { .. } => match &seen.leader {
            Some(leader) => tracing::info!(leader, term = seen.term, "leader"),
            None => tracing::warn!(term = seen.term, "no leader is known"),
        },
        Told::Membership { joined, left, changed } => {
            tracing::info!(?joined, ?left, ?changed, "the membership changed");
        }
        Told::ReplicationFactor { from, to } => tracing::info!(from, to, "the replication factor changed"),
        Told::State => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(term: u64) -> Seen {
        Seen { cluster_id: Some(1), leader: Some("a@h".into()), term, replication_factor: 3, ..Seen::default() }
    }

    #[tokio::test]
    async fn a_reader_begins_with_the_state_and_a_slow_one_is_cut_off() {
        let (events, metrics) = (Events::default(), Metrics::default());
        events.take_in("t", "n", |_| seen(1), &metrics);
        let mut reader = events.follow("t", "n").expect("there is room");
        assert_eq!(events.readers(), 1);
        let first = String::from_utf8(reader.first.take().expect("a state").to_vec()).unwrap();
        assert!(first.starts_with("event: state\n") && first.ends_with("id: 1\n\n"), "{first}");
        for term in 2..=2 + EVENTS_QUEUED_MAX as u64 {
            events.take_in("t", "n", |_| seen(term), &metrics);
        }
        assert!(matches!(reader.feed.recv().await, Err(broadcast::error::RecvError::Lagged(1))));
        drop(reader);
        assert_eq!(events.readers(), 0);
        let again = events.follow("t", "n").expect("there is room").first.expect("a state");
        assert!(
            String::from_utf8_lossy(&again).contains(&format!("\"term\":{}", 2 + EVENTS_QUEUED_MAX)),
            "it is level"
        );
    }

    #[test]
    fn there_is_room_for_so_many_readers() {
        let events = Events::default();
        let all: Vec<Reader> = (0..EVENT_READERS_MAX).map(|_| events.follow("t", "n").expect("room")).collect();
        assert_eq!(events.follow("t", "n").unwrap_err().code, hexkv_client::api::Code::Overloaded);
        drop(all);
        events.follow("t", "n").expect("room again");
    }
}
