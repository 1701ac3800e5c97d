//! Committed entries become state.

use std::sync::Arc;

use openraft::EntryPayload;

use super::{
    Shared,
    dedupe::{DedupeChange, DedupeTable},
    evaluate::{Effects, Moment, evaluate},
    hash::StateHash,
    keys,
    leases::{LeaseChange, row_changes},
    stepped_view::SteppedView,
};
use crate::{
    Proposal, StoreError,
    change_log::{ChangeRecord, Replaced},
    codec,
    lease::LeaseRecord,
    outcome::{Outcome, Refusal},
    raft_types::{Entry, StoredMembership},
};

impl Shared {
    /// Applies `entry`, which must follow the last applied one, and makes its effects visible to reads. Blocks only
    /// for what the engine has to read.
    pub(super) fn apply_entry(&self, entry: Entry) -> Result<Outcome, StoreError> {
        let log_id = entry.log_id;
        // Only apply changes what is read here, so nothing moves between this lock and the last.
        let (mut meta, (view, kept)) = {
            let live = self.live.read();
            (live.meta.clone(), SteppedView::new(self, &live))
        };
        let time_ms_before = meta.time_ms;
        assert!(meta.applied < Some(log_id), "entry {log_id} is applied after {:?}", meta.applied);
        let (effects, dedupe) = match entry.payload {
            EntryPayload::Blank => (Effects::none(Outcome::None), DedupeChange::default()),
            EntryPayload::Membership(membership) => {
                meta.membership = Arc::new(StoredMembership::new(Some(log_id), membership));
                (Effects::none(Outcome::None), DedupeChange::default())
            }
            EntryPayload::Normal(proposal) => {
                meta.time_ms = meta.time_ms.max(proposal.time_ms);
                meta.clock.advance(log_id.leader_id.term, proposal.uptime_ms);
                let clock_ms = meta.clock.now_ms();
                let moment = Moment { time_ms: meta.time_ms, term: log_id.leader_id.term };
                evaluate_once(&view, &kept, &proposal, log_id.index, moment, clock_ms)?
            }
        };
        // What they share of the state is changed in place below.
        drop((view, kept));
        let record = effects.changes.map(|changes| {
            meta.revision += 1;
            ChangeRecord { revision: meta.revision, time_ms: meta.time_ms, changes }
        });
        if record.is_some() || !effects.leases.is_empty() {
            meta.hash = hash_after(meta.hash, record.as_ref(), &effects.leases);
        }
        meta.hash = hash_after_dedupe(meta.hash, &dedupe);
        if let Some(directory) = effects.directory {
            meta.directory = Arc::new(directory);
        }
        if let Some(revision) = effects.compacted_revision {
            meta.compacted_revision = revision;
        }
        tracing::debug!(target: "hexkv::apply", log_index = log_id.index, revision = meta.revision, "applied");
        meta.advance(log_id, time_ms_before);
        let writer_has_work = {
            let mut live = self.live.write();
            let was_idle = live.overlay.entries() == 0;
            live.publish(meta, record.map(Arc::new), effects.leases.clone(), dedupe);
            was_idle || live.overlay.fills_a_batch()
        };
        // In between it waits for its batch to fill, and need not be woken to look.
        if writer_has_work {
            self.work.notify_one();
        }
        self.tell_of_leases(&effects.leases);
        Ok(effects.outcome)
    }

    fn tell_of_leases(&self, changes: &[LeaseChange]) {
        if changes.is_empty() {
            return;
        }
        let Some(observer) = self.lease_observer.read().clone() else { return };
        for change in changes {
            match change.new {
                Some(lease) => observer.granted(LeaseRecord { id: change.id, lease }),
                None => observer.ended(change.id),
            }
        }
    }

    /// Tells everyone what was applied since the last call.
    pub(super) fn announce(&self) {
        let (next_index, revision, directory) = {
            let live = self.live.read();
            let directory = (live.meta.directory.clone(), live.meta.membership.clone());
            (live.meta.next_index(), live.meta.revision, directory)
        };
        self.revision_watch.send_if_modified(|newest| std::mem::replace(newest, revision) != revision);
        self.applied_watch.send_if_modified(|applied| std::mem::replace(applied, next_index) != next_index);
        let mut announced = self.announced.lock();
        if !Arc::ptr_eq(&announced.0, &directory.0) || !Arc::ptr_eq(&announced.1, &directory.1) {
            *announced = directory;
            self.directory_watch.send_modify(|changes| *changes += 1);
        }
    }
}

/// As [`evaluate_proposal`]; a change with an idempotency key is evaluated unless its outcome is known.
fn evaluate_once(
    view: &SteppedView<'_>,
    kept: &DedupeTable,
    proposal: &Proposal,
    index: u64,
    moment: Moment,
    clock_ms: u64,
) -> Result<(Effects, DedupeChange), StoreError> {
    match &proposal.idempotency {
        None => Ok((evaluate_proposal(view, proposal, moment)?, DedupeChange::default())),
        Some(asked) => kept.decide(asked, index, clock_ms, || evaluate_proposal(view, proposal, moment)),
    }
}

fn evaluate_proposal(view: &SteppedView<'_>, proposal: &Proposal, moment: Moment) -> Result<Effects, StoreError> {
    match proposal.command() {
        Ok(command) => evaluate(view, &command, moment),
        Err(error) => Ok(Effects::none(Outcome::Refused(Refusal::Undecodable(error.to_string())))),
    }
}

fn hash_after_dedupe(sum: u128, change: &DedupeChange) -> u128 {
    let mut hash = StateHash::new(sum);
    for (long, short) in &change.shortened {
        hash.remove_row(&keys::dedupe(long.index), &codec::encode(&**long));
        hash.add_row(&keys::dedupe(short.index), &codec::encode(&**short));
    }
    for entry in &change.removed {
        hash.remove_row(&keys::dedupe(entry.index), &codec::encode(&**entry));
    }
    if let Some(entry) = &change.added {
        hash.add_row(&keys::dedupe(entry.index), &codec::encode(&**entry));
    }
    hash.sum()
}

fn hash_after(sum: u128, record: Option<&ChangeRecord>, leases: &[LeaseChange]) -> u128 {
    let mut hash = StateHash::new(sum);
    let changes = || record.into_iter().flat_map(|record| &record.changes);
    for change in changes() {
        if let Replaced::Record(old) = &change.old {
            hash.remove(&change.key, old);
        }
        if let Some(new) = &change.new {
            hash.add(&change.key, new);
        }
    }
    for row in row_changes(leases, changes()) {
        if let Some(old) = &row.old {
            hash.remove_row(&row.row, old);
        }
        if let Some(new) = &row.new {
            hash.add_row(&row.row, new);
        }
    }
    hash.sum()
}
