//! The lease workload: no key goes before its lease's time is over, none stays long after, and all keys of a lease go in
//! one revision.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::tally::Tally;
use super::{Checker, Verdict};
use crate::history::{Event, LEADER, Operation, Outcome, Process};

/// The checker `lease`.
#[derive(Debug)]
pub struct Lease;

/// Nanoseconds in a millisecond.
const MS: u64 = 1_000_000;
/// How long a lease may outlive its time, in milliseconds, beside another full time for each new leader: a leader that is
/// paused or cut off ends nothing until another one leads, and a request that was sent through a paused node may keep a
/// lease alive when the node goes on.
pub const LATE_MS_MAX: u64 = 6_000;

/// One lease.
#[derive(Debug, Default)]
struct Story<'a> {
    ttl_ns: u64,
    /// What was attached, and who did it: the item, and the operation that was acknowledged.
    attached: Vec<(&'a str, Operation<'a>)>,
    /// Acknowledged grants and keepalives, which promise a full time to live from when they were sent.
    kept: Vec<Operation<'a>>,
    /// When the last attempt at keeping it alive ended, in nanoseconds.
    tried_ns: u64,
    revoked: Vec<Operation<'a>>,
    /// What was seen of it: reads, and keepalives that found no lease.
    seen: Vec<Seen<'a>>,
}

/// A look at a lease.
#[derive(Debug)]
struct Seen<'a> {
    operation: Operation<'a>,
    /// The items that are there; None for a keepalive that found no lease.
    present: Option<BTreeSet<&'a str>>,
}

/// What the deletions at the end tell.
#[derive(Debug)]
struct Ends<'a> {
    operation: Operation<'a>,
    /// Item -> the revision that deleted it.
    deleted: BTreeMap<&'a str, u64>,
}

impl Checker for Lease {
    fn name(&self) -> &'static str {
        "lease"
    }

    fn about(&self) -> &'static str {
        "keys live as long as their lease was promised to, go soon after, and all of a lease in one revision"
    }

    fn applies(&self, history: &[Event]) -> bool {
        history.iter().any(|event| event.f == "grant")
    }

    fn check(&self, history: &[Event]) -> Verdict {
        let operations = match Tally::operations(self.name(), history) {
            Ok(operations) => operations,
            Err(tally) => return tally.verdict("", Value::Null),
        };
        let mut tally = Tally::new(self.name());
        let leaders: Vec<u64> = history
            .iter()
            .filter(|event| matches!(event.process, Process::Nemesis(_)) && event.f == LEADER)
            .map(|event| event.time_ns)
            .collect();
        let mut stories: BTreeMap<&str, Story<'_>> = BTreeMap::new();
        let mut ends: Option<Ends<'_>> = None;
        for operation in &operations {
            let fits = match (operation.f(), operation.key()) {
                ("ends", _) => take_ends(operation, &mut ends),
                ("grant" | "attach" | "keepalive" | "revoke" | "look", Some(lease)) => {
                    stories.entry(lease).or_default().take(*operation)
                }
                _ => Some(()),
            };
            if fits.is_none() {
                let message = format!("a {} that makes no sense", operation.f());
                tally.add("malformed", operation.key(), message, operation.events(), Value::Null);
            }
        }
        stories.retain(|_, story| !story.kept.is_empty());
        let (mut ended, mut keys) = (0, 0);
        let with_keys = stories.values().filter(|story| !story.attached.is_empty()).count();
        for (lease, story) in &stories {
            story.judge_early(lease, &mut tally);
            story.judge_late(lease, &leaders, &mut tally);
            story.judge_whole(lease, &mut tally);
            if let Some(ends) = &ends {
                ended += usize::from(story.judge_end(lease, ends, &leaders, &mut tally));
            }
            keys += story.attached.len();
        }
        if ends.is_none() || ended == 0 {
            tally.add("nothing-to-judge", None, "no lease was seen to end".into(), Vec::new(), Value::Null);
        }
        let stats = json!({
            "leases": stories.len(), "with_keys": with_keys, "keys": keys, "ended": ended, "leaders": leaders.len()
        });
        let good = format!("{ended} of {with_keys} leases with keys ended in time, each in one revision; {keys} keys");
        tally.verdict(&good, stats)
    }
}

fn take_ends<'a>(operation: &Operation<'a>, ends: &mut Option<Ends<'a>>) -> Option<()> {
    let Some(answer) = operation.answer() else { return Some(()) };
    let deleted = answer.get("deleted")?.as_object()?.iter();
    let deleted = deleted.map(|(item, revision)| Some((item.as_str(), revision.as_u64()?))).collect::<Option<_>>()?;
    *ends = Some(Ends { operation: *operation, deleted });
    Some(())
}

impl<'a> Story<'a> {
    /// None when the operation makes no sense.
    fn take(&mut self, operation: Operation<'a>) -> Option<()> {
        let asked = &operation.invoke.value;
        let ended_ns = operation.completion.map_or(operation.invoke.time_ns, |event| event.time_ns);
        match operation.f() {
            "grant" => {
                self.ttl_ns = asked.get("ttl_ms")?.as_u64()? * MS;
                self.tried_ns = self.tried_ns.max(ended_ns);
                if operation.is_ok() {
                    self.kept.push(operation);
                    if let Some(item) = asked.get("item").and_then(Value::as_str) {
                        self.attached.push((item, operation));
                    }
                }
            }
            "attach" => {
                let item = asked.get("item")?.as_str()?;
                if operation.is_ok() {
                    self.attached.push((item, operation));
                }
            }
            "keepalive" => {
                self.tried_ns = self.tried_ns.max(ended_ns);
                match operation.answer() {
                    None => {}
                    Some(answer) if answer.get("alive")?.as_bool()? => self.kept.push(operation),
                    Some(_) => self.seen.push(Seen { operation, present: None }),
                }
            }
            "revoke" => {
                if operation.outcome() != Outcome::Fail {
                    self.revoked.push(operation);
                }
            }
            _ => {
                let Some(answer) = operation.answer() else { return Some(()) };
                let present = answer.get("present")?.as_array()?.iter().map(Value::as_str).collect::<Option<_>>()?;
                self.seen.push(Seen { operation, present: Some(present) });
            }
        }
        Some(())
    }

    /// Whether somebody tried to end it before `index`.
    fn revoked_before(&self, index: u64) -> bool {
        self.revoked.iter().any(|revoke| revoke.began() < index)
    }

    /// The items that were attached before `index`.
    fn attached_before(&self, index: u64) -> impl Iterator<Item = &'a str> {
        let attached = self.attached.iter().filter(move |(_, by)| by.ended().is_some_and(|ended| ended < index));
        attached.map(|(item, _)| *item)
    }

    /// Whether the look shows that the lease is over.
    fn is_gone(&self, seen: &Seen<'a>) -> bool {
        match &seen.present {
            None => true,
            Some(present) => self.attached_before(seen.operation.began()).any(|item| !present.contains(item)),
        }
    }

    /// Nothing is gone before its time, and what is gone stays so.
    fn judge_early(&self, lease: &str, tally: &mut Tally) {
        let promise = self.kept.iter().max_by_key(|kept| kept.invoke.time_ns);
        let mut first_gone: Option<&Operation<'a>> = None;
        for seen in &self.seen {
            let operation = &seen.operation;
            if self.is_gone(seen) {
                let at_ns = operation.completion.map_or(u64::MAX, |event| event.time_ns);
                let ended = operation.ended().unwrap_or(u64::MAX);
                let promise = promise.filter(|kept| at_ns < kept.invoke.time_ns + self.ttl_ns);
                if let Some(kept) = promise.filter(|_| !self.revoked_before(ended)) {
                    let message = format!(
                        "{lease} was gone at {} ms, and was promised to live until {} ms",
                        at_ns / MS,
                        (kept.invoke.time_ns + self.ttl_ns) / MS
                    );
                    let events = kept.events().into_iter().chain(operation.events()).collect();
                    tally.add("ended-early", Some(lease), message, events, Value::Null);
                }
                if first_gone.is_none_or(|first| first.ended() > operation.ended()) {
                    first_gone = Some(operation);
                }
            }
        }
        let Some(gone) = first_gone else { return };
        let seen = self.seen.iter().filter(|seen| seen.present.as_ref().is_some_and(|present| !present.is_empty()));
        let attached = self.attached.iter().map(|(_, by)| by);
        let alive = seen.map(|seen| &seen.operation).chain(attached).chain(&self.kept);
        for alive in alive.filter(|alive| gone.ended().is_some_and(|ended| ended < alive.began())) {
            let message = format!("{lease} was gone, and a {} finds it again", alive.f());
            let events = gone.events().into_iter().chain(alive.events()).collect();
            tally.add("came-back", Some(lease), message, events, Value::Null);
        }
    }

    /// Until when it may live at most, as known at `now_ns`.
    fn latest_ns(&self, leaders: &[u64], now_ns: u64) -> u64 {
        let leader = leaders.iter().filter(|at| **at <= now_ns).max().copied().unwrap_or(0);
        self.tried_ns.max(leader) + self.ttl_ns + LATE_MS_MAX * MS
    }

    fn judge_late(&self, lease: &str, leaders: &[u64], tally: &mut Tally) {
        for seen in &self.seen {
            let began_ns = seen.operation.invoke.time_ns;
            let there = seen.present.as_ref().is_some_and(|present| !present.is_empty());
            let latest_ns = self.latest_ns(leaders, began_ns);
            if there && began_ns > latest_ns {
                let (now, latest) = (began_ns / MS, latest_ns / MS);
                let message = format!("{lease} still has keys at {now} ms, and must be gone at {latest} ms");
                tally.add("outlived", Some(lease), message, seen.operation.events(), Value::Null);
            }
        }
    }

    /// One read at one revision shows all keys of a lease, or none.
    fn judge_whole(&self, lease: &str, tally: &mut Tally) {
        for seen in &self.seen {
            let Some(present) = &seen.present else { continue };
            let attached: BTreeSet<&str> = self.attached_before(seen.operation.began()).collect();
            let there = attached.iter().filter(|item| present.contains(*item)).count();
            if there != 0 && there != attached.len() {
                let message = format!("{there} of {} keys of {lease} are there at one revision", attached.len());
                tally.add("torn-end", Some(lease), message, seen.operation.events(), Value::Null);
            }
        }
    }

    /// By the deletions: all at one revision, none missing. Whether it has ended.
    fn judge_end(&self, lease: &str, ends: &Ends<'a>, leaders: &[u64], tally: &mut Tally) -> bool {
        let began = ends.operation.began();
        let revisions: BTreeSet<u64> =
            self.attached.iter().filter_map(|(item, _)| ends.deleted.get(item).copied()).collect();
        let missing: Vec<&str> = self.attached_before(began).filter(|item| !ends.deleted.contains_key(item)).collect();
        let events: Vec<u64> = self.attached.iter().flat_map(|(_, by)| by.events()).chain([began]).collect();
        if revisions.len() > 1 || (!revisions.is_empty() && !missing.is_empty()) {
            let message =
                format!("the keys of {lease} went at revisions {revisions:?}, and {} did not go", missing.len());
            tally.add("torn-end", Some(lease), message, events, Value::Null);
        } else if !missing.is_empty()
            && ends.operation.invoke.time_ns > self.latest_ns(leaders, ends.operation.invoke.time_ns)
        {
            let message = format!("{lease} never ended: {missing:?} are still there");
            tally.add("outlived", Some(lease), message, events, Value::Null);
        }
        revisions.len() == 1
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
