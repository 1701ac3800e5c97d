//! What happens to the cluster, as this node sees it, for whoever follows `/api/cluster/events`.
//!
//! | part | what |
//! |---|---|
//! | [`Events`] | who follows, and what they were told last |
//! | `seen` | the cluster at one moment, and what is new between two of them |
//! | [`watch`](mod@watch) | looks, at changes and at intervals |

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use hexkv_client::api::{EventsEnd, LeaderEvent, MembershipEvent, NodeEvent, ReplicationFactorEvent, StepEvent};
use hexkv_raft_net::rpc::MembershipStep;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use self::seen::{Seen, Told};
use crate::{metrics::Metrics, node::Node};

mod seen;
pub mod watch;

/// Events that wait for one reader at most; one that is further behind is cut off.
pub const EVENTS_QUEUED_MAX: usize = 256;
/// Readers of one node at most. One more takes the place of the one that has read for the longest, which connects again and
/// begins with the state: so no client keeps others out for long.
pub const EVENT_READERS_MAX: usize = 1024;

/// Who follows what happens to the cluster. It outlives cores.
///
/// Invariant: `current.seen` is what a reader knows that was told the state and all events up to `current.id`.
#[derive(Debug)]
pub struct Events {
    current: Mutex<Current>,
    feed: broadcast::Sender<Bytes>,
    places: Arc<Mutex<Places>>,
}

/// The readers in the order in which they came.
///
/// Invariant: at most [`EVENT_READERS_MAX`]; each is one that has not ended, and whose place no other one took.
#[derive(Debug, Default)]
struct Places {
    next_id: u64,
    taken: BTreeMap<u64, CancellationToken>,
}

#[derive(Debug, Default)]
struct Current {
    /// Id of the last event of this process.
    id: u64,
    seen: Option<Seen>,
}

impl Default for Events {
    fn default() -> Self {
        let feed = broadcast::Sender::new(EVENTS_QUEUED_MAX);
        Self { current: Mutex::default(), feed, places: Arc::default() }
    }
}

/// One reader.
#[derive(Debug)]
pub struct Reader {
    /// The state, to be told first.
    pub first: Option<Bytes>,
    /// The events after it.
    pub feed: broadcast::Receiver<Bytes>,
    /// Another reader took its place.
    pub replaced: CancellationToken,
    id: u64,
    places: Arc<Mutex<Places>>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.places.lock().taken.remove(&self.id);
    }
}

impl Events {
    /// How many follow.
    pub fn readers(&self) -> usize {
        self.places.lock().taken.len()
    }

    /// Follows from now on.
    fn follow(&self, time: &str, node: &str) -> Reader {
        let (id, replaced) = self.take_place();
        let current = self.current.lock();
        let first = current.seen.as_ref().map(|seen| encode("state", &seen.as_event(time, node), current.id));
        Reader { first, feed: self.feed.subscribe(), replaced, id, places: self.places.clone() }
    }

    fn take_place(&self) -> (u64, CancellationToken) {
        let mut places = self.places.lock();
        if places.taken.len() >= EVENT_READERS_MAX
            && let Some((_, oldest)) = places.taken.pop_first()
        {
            oldest.cancel();
        }
        let (id, replaced) = (places.next_id, CancellationToken::new());
        places.next_id += 1;
        places.taken.insert(id, replaced.clone());
        (id, replaced)
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
    pub fn follow_events(&self) -> Reader {
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
    use std::collections::VecDeque;

    use super::*;

    fn seen(term: u64) -> Seen {
        Seen { cluster_id: Some(1), leader: Some("a@h".into()), term, replication_factor: 3, ..Seen::default() }
    }

    #[tokio::test]
    async fn a_reader_begins_with_the_state_and_a_slow_one_is_cut_off() {
        let (events, metrics) = (Events::default(), Metrics::default());
        events.take_in("t", "n", |_| seen(1), &metrics);
        let mut reader = events.follow("t", "n");
        assert_eq!(events.readers(), 1);
        let first = String::from_utf8(reader.first.take().expect("a state").to_vec()).unwrap();
        assert!(first.starts_with("event: state\n") && first.ends_with("id: 1\n\n"), "{first}");
        for term in 2..=2 + EVENTS_QUEUED_MAX as u64 {
            events.take_in("t", "n", |_| seen(term), &metrics);
        }
        assert!(matches!(reader.feed.recv().await, Err(broadcast::error::RecvError::Lagged(1))));
        drop(reader);
        assert_eq!(events.readers(), 0);
        let again = events.follow("t", "n").first.take().expect("a state");
        assert!(
            String::from_utf8_lossy(&again).contains(&format!("\"term\":{}", 2 + EVENTS_QUEUED_MAX)),
            "it is level"
        );
    }

    #[test]
    fn one_reader_too_many_replaces_the_oldest_one() {
        let events = Events::default();
        let mut all: VecDeque<Reader> = (0..EVENT_READERS_MAX).map(|_| events.follow("t", "n")).collect();
        for _ in 0..3 {
            all.push_back(events.follow("t", "n"));
            assert!(all[0].replaced.is_cancelled() && !all[1].replaced.is_cancelled());
            assert_eq!(events.readers(), EVENT_READERS_MAX);
            all.pop_front();
            assert_eq!(events.readers(), EVENT_READERS_MAX, "its place was another one's already");
        }
        all.pop_back();
        assert_eq!(events.readers(), EVENT_READERS_MAX - 1);
        all.push_back(events.follow("t", "n"));
        assert!(all.iter().all(|reader| !reader.replaced.is_cancelled()), "there was room");
    }
}
