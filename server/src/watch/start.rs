//! How a watch begins on a node.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use hexkv_client::api::Code;
use hexkv_raft_net::rpc::{PeerRequest, PeerResponse, ReadRequest};
use hexkv_store::{NodeId, record::KeyRange};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Watcher,
    hub::{Hub, NotWatched},
    source::{Local, Remote, Source},
};
use crate::{
    core::Core,
    error::Error,
    kv::confirm,
    node::{Node, Position},
    reads::Basis,
};

/// The watches of a node: one hub for each life and role, begun with its first watch.
#[derive(Default)]
pub struct Watches {
    current: Mutex<Option<Current>>,
}

struct Current {
    life: NodeId,
    position: Position,
    hub: Arc<Hub>,
    cancel: CancellationToken,
}

impl Watches {
    /// Ends all watches, because the node's role or state changed; new ones may begin.
    pub fn end(&self) {
        if let Some(current) = self.current.lock().take() {
            current.cancel.cancel();
        }
    }

    /// How many watches there are, and what waits for them, in bytes.
    pub fn stats(&self) -> (usize, u64) {
        self.current.lock().as_ref().map_or((0, 0), |c| (c.hub.watchers(), c.hub.held_bytes()))
    }

    fn hub(&self, node: &Arc<Node>, core: &Arc<Core>, position: Position) -> Result<Arc<Hub>, Error> {
        let mut current = self.current.lock();
        // Whatever changes either of them calls `end` afterwards, which waits for this lock.
        if node.position() != position {
            return Err(closed("this node's part in the cluster changed"));
        }
        if position == Position::Holder
            && let Some(why) = node.divergence()
        {
            return Err(differs(&why));
        }
        if let Some(c) = &*current
            && (c.life, c.position) == (core.id, position)
            && !c.cancel.is_cancelled()
        {
            return Ok(c.hub.clone());
        }
        if let Some(old) = current.take() {
            old.cancel.cancel();
        }
        let source: Arc<dyn Source> = match position {
            Position::Holder => Arc::new(Local(core.state.clone())),
            Position::Standby | Position::Outside => {
                let node: Weak<Node> = Arc::downgrade(node);
                Arc::new(Remote(node))
            }
        };
        let (hub, cancel) = (Hub::new(source), core.cancel.child_token());
        let (dispatched, stopping, cancelled) = (hub.clone(), node.stopping.clone(), cancel.clone());
        core.tasks.spawn(async move {
            tokio::select! {
                () = dispatched.clone().dispatch(cancelled) => {}
                () = stopping.cancelled() => {}
            }
            // The dispatcher closes the hub unless the node stops.
            dispatched.close("this node stops");
        });
        *current = Some(Current { life: core.id, position, hub: hub.clone(), cancel });
        Ok(hub)
    }
}

impl Node {
    /// Watches `range`: from revision `from` on, or, with None, from now on: everything that was acknowledged before
    /// the call is in the state already. Any node serves any watch.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for a revision beyond the next one; 503 when the node cannot find out in `timeout`
    /// where the store stands; [`Code::Overloaded`] beyond [`super::WATCHERS_MAX`] watches. A compacted `from` is no
    /// error here, but the watch's [`super::End`].
    pub async fn watch(
        self: &Arc<Self>,
        range: KeyRange,
        from: Option<u64>,
        timeout: Duration,
    ) -> Result<Watcher, Error> {
        if self.stopping.is_cancelled() {
            return Err(closed("this node stops"));
        }
        let deadline = Instant::now() + timeout;
        let position = self.position();
        let core = self.serving_core()?;
        let wanted = from.map(|from| from.saturating_sub(1));
        let newest = match position {
            Position::Outside => return Err(self.why_no_leader()),
            Position::Standby => self.revision_of_leader(timeout).await?,
            Position::Holder => self.revision_for(&core, wanted, deadline).await?,
        };
        let after = match wanted {
            None => newest,
            Some(after) if after <= newest => after,
            Some(after) => {
                return Err(Error::invalid(format!(
                    "revision {} is in the future: the newest is {newest}, a watch may begin with {} at the latest",
                    after.saturating_add(1),
                    newest + 1
                )));
            }
        };
        self.watches.hub(self, &core, position)?.watch(&range, after).map_err(|why| match why {
            NotWatched::TooMany => Error::new(
                Code::Overloaded,
                format!("this node has {} watches, the most it takes; ask another node", super::WATCHERS_MAX),
            ),
            NotWatched::Closed(why) => closed(&why),
        })
    }

    /// The newest revision, as far as a watch that has everything up to `wanted` needs to know it.
    async fn revision_for(&self, core: &Core, wanted: Option<u64>, deadline: Instant) -> Result<u64, Error> {
        if let Some(why) = self.divergence() {
            return Err(differs(&why));
        }
        let newest = core.state.revision();
        if wanted.is_some_and(|after| after <= newest) {
            return Ok(newest);
        }
        confirm(core, Basis::Quorum, deadline).await?;
        Ok(core.state.revision())
    }

    async fn revision_of_leader(&self, timeout: Duration) -> Result<u64, Error> {
        // Any read tells the revision; this key cannot be large.
        let read = ReadRequest::Get { key: Bytes::from_static(b"\0"), revision: 0 };
        match self.ask_leader(PeerRequest::Read(read), timeout).await? {
            PeerResponse::Read(result) => Ok(result.revision()),
            other => Err(Error::new(Code::Internal, format!("unexpected answer of the leader: {other:?}"))),
        }
    }
}

fn differs(why: &str) -> Error {
    closed(&format!("this node's state differs from the others' ({why})"))
}

fn closed(why: &str) -> Error {
    Error::new(Code::Unavailable, format!("{why}; watch through another node"))
}
