//! The lock workload: one holder at a time, ever larger fencing tokens, and a resource that lets nobody in who is late.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::tally::Tally;
use super::{Checker, Verdict};
use crate::history::{Event, Operation, Outcome};

/// The checker `lock`.
#[derive(Debug)]
pub struct Lock;

/// Nanoseconds in a millisecond.
const MS: u64 = 1_000_000;

/// One time that a lock was had, as its holder may believe.
#[derive(Debug)]
struct Holding<'a> {
    acquired: Operation<'a>,
    fencing: u64,
    ttl_ns: u64,
    /// Certainly held from then, in nanoseconds of the history: it was answered.
    from_ns: u64,
    /// Until then: its time to live from when the last request that was answered was sent, or when it began to give it up.
    until_ns: u64,
}

/// What was done with one lock.
#[derive(Debug, Default)]
struct Story<'a> {
    holdings: Vec<Holding<'a>>,
    operations: Vec<Operation<'a>>,
    /// Whether it was asked for in the end, and had.
    last: Option<bool>,
}

impl Checker for Lock {
    fn name(&self) -> &'static str {
        "lock"
    }

    fn about(&self) -> &'static str {
        "no two holders at a time, fencing tokens that only grow, and stale ones refused"
    }

    fn applies(&self, history: &[Event]) -> bool {
        history.iter().any(|event| event.f == "acquire")
    }

    fn check(&self, history: &[Event]) -> Verdict {
        let operations = match Tally::operations(self.name(), history) {
            Ok(operations) => operations,
            Err(tally) => return tally.verdict("", Value::Null),
        };
        let mut tally = Tally::new(self.name());
        let mut stories: BTreeMap<&str, Story<'_>> = BTreeMap::new();
        for operation in &operations {
            let known = matches!(operation.f(), "acquire" | "renew" | "release" | "use");
            let Some(lock) = operation.key().filter(|_| known) else { continue };
            if stories.entry(lock).or_default().take(*operation).is_none() {
                let message = format!("a {} that makes no sense", operation.f());
                tally.add("malformed", Some(lock), message, operation.events(), Value::Null);
            }
        }
        let (mut had, mut stale) = (0, 0);
        for (lock, story) in &mut stories {
            story.believe();
            story.judge_tokens(lock, &mut tally);
            story.judge_overlap(lock, &mut tally);
            story.judge_lost(lock, &mut tally);
            stale += story.judge_uses(lock, &mut tally);
            had += story.holdings.len();
            if story.last == Some(false) {
                let message = format!("{lock} was never free again after everything had healed");
                tally.add("not-free", Some(lock), message, Vec::new(), Value::Null);
            }
        }
        if had == 0 {
            tally.add("nothing-to-judge", None, "nobody had a lock".into(), Vec::new(), Value::Null);
        }
        let stats = json!({ "locks": stories.len(), "holders": had, "stale_refused": stale });
        let good = format!("{had} holders of {} locks, one at a time; {stale} stale tokens refused", stories.len());
        tally.verdict(&good, stats)
    }
}

/// The fencing token that an operation goes with.
fn fencing(operation: &Operation<'_>) -> Option<u64> {
    operation.invoke.value.get("fencing")?.as_u64()
}

fn yes(operation: &Operation<'_>, field: &str) -> Option<bool> {
    operation.answer()?.get(field)?.as_bool()
}

/// When it ended, in nanoseconds.
fn ended_ns(operation: &Operation<'_>) -> u64 {
    operation.completion.map_or(u64::MAX, |event| event.time_ns)
}

impl<'a> Story<'a> {
    /// None when the operation makes no sense.
    fn take(&mut self, operation: Operation<'a>) -> Option<()> {
        if operation.f() == "acquire" {
            if operation.invoke.value.get("last").is_some() {
                self.last = Some(self.last.unwrap_or(false) || operation.is_ok());
            }
            let Some(answer) = operation.answer() else { return Some(()) };
            let ttl_ns = answer.get("ttl_ms")?.as_u64()? * MS;
            self.holdings.push(Holding {
                acquired: operation,
                fencing: answer.get("fencing")?.as_u64()?,
                ttl_ns,
                from_ns: ended_ns(&operation),
                until_ns: operation.invoke.time_ns + ttl_ns,
            });
            return Some(());
        }
        fencing(&operation)?;
        match operation.f() {
            "renew" if operation.is_ok() => yes(&operation, "held").map(drop)?,
            "use" if operation.is_ok() => yes(&operation, "accepted").map(drop)?,
            _ => {}
        }
        self.operations.push(operation);
        Some(())
    }

    /// Works out until when each holder may believe to be one.
    fn believe(&mut self) {
        let place: BTreeMap<u64, usize> = self.holdings.iter().enumerate().map(|(i, h)| (h.fencing, i)).collect();
        let of = |operation: &Operation<'_>| fencing(operation).and_then(|fencing| place.get(&fencing).copied());
        for renew in self.operations.iter().filter(|o| o.f() == "renew" && yes(o, "held") == Some(true)) {
            let Some(i) = of(renew) else { continue };
            let holding = &mut self.holdings[i];
            holding.until_ns = holding.until_ns.max(renew.invoke.time_ns + holding.ttl_ns);
        }
        // Whoever begins to give it up must not count on it any more, whatever comes of it.
        for release in self.operations.iter().filter(|o| o.f() == "release") {
            let Some(i) = of(release) else { continue };
            self.holdings[i].until_ns = self.holdings[i].until_ns.min(release.invoke.time_ns);
        }
    }

    /// What was had later has the larger token.
    fn judge_tokens(&self, lock: &str, tally: &mut Tally) {
        let mut seen: BTreeMap<u64, &Holding<'_>> = BTreeMap::new();
        for holding in &self.holdings {
            if let Some(other) = seen.insert(holding.fencing, holding) {
                let events = other.acquired.events().into_iter().chain(holding.acquired.events()).collect();
                let message = format!("the fencing token {} of {lock} was given twice", holding.fencing);
                tally.add("token-repeated", Some(lock), message, events, Value::Null);
            }
        }
        let answered: Vec<(u64, &Holding<'_>)> =
            self.holdings.iter().filter_map(|holding| Some((holding.acquired.ended()?, holding))).collect();
        for (before, after) in later_and_smaller(&answered, |holding| (holding.acquired.began(), holding.fencing)) {
            let events = before.acquired.events().into_iter().chain(after.acquired.events()).collect();
            let message = format!("{lock} was had with token {} and later with {}", before.fencing, after.fencing);
            tally.add("token-not-larger", Some(lock), message, events, Value::Null);
        }
    }

    fn judge_overlap(&self, lock: &str, tally: &mut Tally) {
        let mut held: Vec<&Holding<'_>> = self.holdings.iter().filter(|h| h.from_ns < h.until_ns).collect();
        held.sort_by_key(|holding| holding.from_ns);
        let mut longest: Option<&Holding<'_>> = None;
        for holding in held {
            if let Some(other) = longest.filter(|other| holding.from_ns < other.until_ns) {
                let events = other.acquired.events().into_iter().chain(holding.acquired.events()).collect();
                let message = format!(
                    "{lock} is held with token {} until {} ms, and with {} from {} ms",
                    other.fencing,
                    other.until_ns / MS,
                    holding.fencing,
                    holding.from_ns / MS
                );
                tally.add("overlap", Some(lock), message, events, Value::Null);
            }
            if longest.is_none_or(|other| holding.until_ns > other.until_ns) {
                longest = Some(holding);
            }
        }
    }

    /// Nobody is told that a lock is lost while it must be held.
    fn judge_lost(&self, lock: &str, tally: &mut Tally) {
        for renew in self.operations.iter().filter(|o| o.f() == "renew" && yes(o, "held") == Some(false)) {
            let holding = self.holdings.iter().find(|holding| Some(holding.fencing) == fencing(renew));
            if let Some(holding) = holding.filter(|holding| ended_ns(renew) < holding.until_ns) {
                let events = holding.acquired.events().into_iter().chain(renew.events()).collect();
                let message = format!("{lock} with token {} was lost before its time was over", holding.fencing);
                tally.add("lost-early", Some(lock), message, events, Value::Null);
            }
        }
    }

    /// The resource lets no smaller token in after a larger one, and refuses nobody who holds the lock. Gives the number
    /// of refusals.
    fn judge_uses(&self, lock: &str, tally: &mut Tally) -> usize {
        let uses = || self.operations.iter().filter(|o| o.f() == "use" && o.outcome() == Outcome::Ok);
        let token = |operation: &Operation<'_>| fencing(operation).expect("those without were refused");
        let accepted: Vec<(u64, &Operation<'_>)> = uses()
            .filter(|operation| yes(operation, "accepted") == Some(true))
            .filter_map(|operation| Some((operation.ended()?, operation)))
            .collect();
        for (before, after) in later_and_smaller(&accepted, |operation| (operation.began(), token(operation))) {
            if token(before) == token(after) {
                continue;
            }
            let events = before.events().into_iter().chain(after.events()).collect();
            let message = format!("{lock} let token {} in, and later {}", token(before), token(after));
            tally.add("stale-accepted", Some(lock), message, events, Value::Null);
        }
        let mut refused = 0;
        for operation in uses().filter(|operation| yes(operation, "accepted") == Some(false)) {
            refused += 1;
            let holding = self.holdings.iter().find(|holding| holding.fencing == token(operation));
            if let Some(holding) = holding.filter(|holding| ended_ns(operation) < holding.until_ns) {
                let events = holding.acquired.events().into_iter().chain(operation.events()).collect();
                let message = format!("{lock} refused token {} while its holder had it", holding.fencing);
                tally.add("holder-refused", Some(lock), message, events, Value::Null);
            }
        }
        refused
    }
}

/// Pairs of which the first ended before the second began, and has no smaller a token. `ended` is (index, item); `of`
/// gives the index of the beginning, and the token.
fn later_and_smaller<'t, T>(ended: &[(u64, &'t T)], of: impl Fn(&T) -> (u64, u64)) -> Vec<(&'t T, &'t T)> {
    let mut by_end: Vec<&(u64, &T)> = ended.iter().collect();
    by_end.sort_by_key(|(end, _)| *end);
    let mut by_begin: Vec<&'t T> = ended.iter().map(|(_, item)| *item).collect();
    by_begin.sort_by_key(|item| of(item).0);
    let (mut next, mut largest): (usize, Option<&'t T>) = (0, None);
    let mut found = Vec::new();
    for item in by_begin {
        let (began, token) = of(item);
        while let Some((_, before)) = by_end.get(next).filter(|(end, _)| *end < began) {
            if largest.is_none_or(|largest| of(before).1 > of(largest).1) {
                largest = Some(before);
            }
            next += 1;
        }
        if let Some(before) = largest.filter(|before| of(before).1 >= token) {
            found.push((before, item));
        }
    }
    found
}

#[cfg(test)]
#[path = "lock_tests.rs"]
mod tests;
