//! The table of deadlines, for the time in which this node leads.

use std::{collections::BTreeSet, time::Duration};

use hexkv_store::{
    lease::{LEASE_PAGE_ITEMS_MAX, LeaseObserver, LeaseRecord},
    mutants::{self, Mutant},
    state_machine::State,
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::deadlines::{Deadlines, Extension};

/// The deadlines of all leases, while this node leads.
///
/// Invariants: deadlines count in one term of office only, and begin afresh with each; outside of one the table is
/// empty. In office it holds every lease of the applied state once the office has begun.
#[derive(Debug, Default)]
pub struct Lessor {
    table: Mutex<Table>,
    /// A lease may be due earlier than the one that is waited for.
    sooner: Notify,
    /// Counts what a waiting keepalive waits for.
    settled: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Table {
    /// The term in which deadlines count.
    office: Option<u64>,
    /// While the leases of the state are taken in: those that ended meanwhile.
    loading: Option<BTreeSet<u64>>,
    deadlines: Deadlines,
}

impl Lessor {
    /// Begins an office: every lease of `state` gets its full time to live from now.
    pub(super) async fn begin(&self, term: u64, state: &State) {
        *self.table.lock() =
            Table { office: Some(term), loading: Some(BTreeSet::new()), deadlines: Deadlines::default() };
        let mut after = 0;
        loop {
            let page = state.leases(after, LEASE_PAGE_ITEMS_MAX);
            self.take_in(&page.items);
            match page.items.last() {
                Some(last) if page.more => after = last.id,
                Some(_) | None => break,
            }
            tokio::task::yield_now().await;
        }
        self.table.lock().loading = None;
        self.settle();
    }

    fn take_in(&self, records: &[LeaseRecord]) {
        let now = Instant::now();
        let mut table = self.table.lock();
        let Table { loading, deadlines, .. } = &mut *table;
        let ended = |id: u64| loading.as_ref().is_some_and(|ended| ended.contains(&id));
        for record in records.iter().filter(|record| !ended(record.id)) {
            // Granted since the office began: its time counts already.
            if !deadlines.contains(record.id) {
                deadlines.start(record.id, Duration::from_millis(record.lease.ttl_ms), now);
            }
        }
    }

    /// Ends the office.
    pub(super) fn end(&self) {
        *self.table.lock() = Table::default();
        self.settle();
    }

    /// Lets lease `id` live for its time to live from `from`, in the office of `term`. None while there is no such office.
    pub(super) fn extend(&self, term: u64, id: u64, from: Instant) -> Option<Extension> {
        let mut table = self.table.lock();
        let here = table.office == Some(term) || mutants::active(Mutant::LeaseEndedByFollowerClock);
        (here && table.loading.is_none()).then(|| table.deadlines.extend(id, from))
    }

    /// How long lease `id` lives, where that is known in the office of `term`.
    pub(super) fn remaining(&self, term: u64, id: u64) -> Option<Duration> {
        let table = self.table.lock();
        (table.office == Some(term)).then(|| table.deadlines.remaining(id, Instant::now())).flatten()
    }

    /// The first deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.table.lock().deadlines.next()
    }

    /// See [`Deadlines::take_due`]; nothing outside of the office of `term`.
    pub(super) fn take_due(&self, term: u64, now: Instant, max: usize) -> Vec<u64> {
        let mut table = self.table.lock();
        if table.office == Some(term) { table.deadlines.take_due(now, max) } else { Vec::new() }
    }

    /// See [`Deadlines::put_back`].
    pub(super) fn put_back(&self, ids: &[u64]) {
        self.table.lock().deadlines.put_back(ids);
        self.settle();
    }

    /// Waits until a lease may be due earlier than [`Lessor::next`] said.
    pub(super) async fn sooner(&self) {
        self.sooner.notified().await;
    }

    /// Changes whenever an office begins or ends, or it turns out what became of an ending lease.
    pub(super) fn settled(&self) -> watch::Receiver<u64> {
        self.settled.subscribe()
    }

    fn settle(&self) {
        self.settled.send_modify(|count| *count += 1);
    }
}

impl LeaseObserver for Lessor {
    fn granted(&self, record: LeaseRecord) {
        let sooner = {
            let mut table = self.table.lock();
            if table.office.is_none() {
                return;
            }
            if let Some(ended) = &mut table.loading {
                ended.remove(&record.id);
            }
            let before = table.deadlines.next();
            table.deadlines.start(record.id, Duration::from_millis(record.lease.ttl_ms), Instant::now());
            before != table.deadlines.next()
        };
        if sooner {
            self.sooner.notify_one();
        }
    }

    fn ended(&self, id: u64) {
        let was_ending = {
            let mut table = self.table.lock();
            if let Some(ended) = &mut table.loading {
                ended.insert(id);
            }
            table.deadlines.remove(id)
        };
        if was_ending {
            self.settle();
        }
    }
}

#[cfg(test)]
mod tests {
    use hexkv_store::lease::{Lease, LeaseKind};

    use super::*;

    const TERM: u64 = 7;

    fn record(id: u64) -> LeaseRecord {
        LeaseRecord { id, lease: Lease { ttl_ms: 1_000, granted_ms: 0, kind: LeaseKind::Explicit } }
    }

    fn loading() -> Lessor {
        let lessor = Lessor::default();
        *lessor.table.lock() =
            Table { office: Some(TERM), loading: Some(BTreeSet::new()), deadlines: Deadlines::default() };
        lessor
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_while_an_office_begins_counts() {
        let lessor = loading();
        lessor.granted(record(1));
        lessor.ended(2);
        lessor.ended(3);
        lessor.granted(record(3));
        tokio::time::advance(Duration::from_millis(400)).await;
        lessor.take_in(&[record(1), record(2), record(3), record(4)]);
        let left = |id| lessor.remaining(TERM, id).map(|left| left.as_millis());
        assert_eq!([1, 2, 3, 4].map(left), [Some(600), None, Some(600), Some(1_000)]);
        assert_eq!(lessor.extend(TERM, 1, Instant::now()), None, "not before all leases are known");
        lessor.table.lock().loading = None;
        assert_eq!(lessor.extend(TERM, 1, Instant::now()), Some(Extension::Extended));
        assert_eq!(lessor.extend(TERM, 2, Instant::now()), Some(Extension::Missing));
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_count_in_their_own_office_only() {
        let lessor = loading();
        lessor.table.lock().loading = None;
        lessor.granted(record(1));
        let later = Instant::now() + Duration::from_secs(5);
        assert_eq!(lessor.take_due(TERM + 1, later, 9), [0_u64; 0]);
        assert_eq!(lessor.extend(TERM + 1, 1, later), None);
        assert_eq!(lessor.take_due(TERM, later, 9), [1]);
        let mut settled = lessor.settled();
        assert_eq!(lessor.extend(TERM, 1, later), Some(Extension::Ending));
        lessor.ended(1);
        assert!(settled.has_changed().expect("the lessor lives"), "who waits for the outcome is told");
        settled.mark_unchanged();
        lessor.end();
        lessor.granted(record(2));
        assert_eq!((lessor.next(), lessor.extend(TERM, 2, later)), (None, None), "outside of an office nothing counts");
    }
}
