//! The log against a model that is a list, under any sequence of operations, restarts and crashes in between.

use proptest::prelude::*;

use super::*;

/// What is done; the numbers are scaled to what the log holds at that point.
#[derive(Debug, Clone)]
enum Step {
    Append { count: u64, bytes: usize },
    Truncate(u8),
    Purge(u8),
    PurgeBeyond(u64),
    Vote,
    Committed(u8),
    Close,
    Kill,
    Crash(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..20u64, 0..200usize).prop_map(|(count, bytes)| Step::Append { count, bytes }),
        2 => any::<u8>().prop_map(Step::Truncate),
        2 => any::<u8>().prop_map(Step::Purge),
        1 => (0..5u64).prop_map(Step::PurgeBeyond),
        2 => Just(Step::Vote),
        2 => any::<u8>().prop_map(Step::Committed),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        1 => any::<u64>().prop_map(Step::Crash),
    ]
}

/// An index of the entries of `state`, or one before them.
fn pick(state: &State, share: u8) -> Option<LogId> {
    let first = state.purged.next_index();
    let at = first + (state.next() - first) * u64::from(share) / 256;
    at.checked_sub(1).and_then(|index| state.id_at(index))
}

struct Tested {
    fs: FaultyFs,
    log: LogStore,
    state: State,
    committed: Option<LogId>,
    term: u64,
}

impl Tested {
    async fn take(&mut self, step: Step) {
        self.term += 1;
        match step {
            Step::Append { count, bytes } => {
                let new = entries(self.term, self.state.next()..self.state.next() + count, bytes);
                new.iter().for_each(|entry| self.state.append(entry.clone()));
                append(&mut self.log, new).await.unwrap();
            }
            Step::Truncate(share) => {
                let after = pick(&self.state, share).max(self.state.purged).max(self.committed);
                self.state.truncate(after);
                self.log.truncate_after(after).await.unwrap();
            }
            Step::Purge(share) => {
                if let Some(upto) = pick(&self.state, share).filter(|id| id.index >= self.state.purged.next_index()) {
                    self.purge(upto).await;
                }
            }
            Step::PurgeBeyond(by) => self.purge(log_id(self.term, self.state.next() + by)).await,
            Step::Vote => {
                self.state.vote = Some(vote(self.term));
                self.log.save_vote(&vote(self.term)).await.unwrap();
            }
            Step::Committed(share) => {
                self.committed = pick(&self.state, share).max(self.committed);
                self.log.save_committed(self.committed).await.unwrap();
            }
            Step::Close => {
                self.log.close().await.unwrap();
                self.reopen(self.fs.kill());
                assert_eq!(self.log.read_committed().await.unwrap(), self.committed);
            }
            Step::Kill => self.restart(self.fs.kill()).await,
            Step::Crash(seed) => self.restart(self.fs.crash(seed)).await,
        }
    }

    async fn purge(&mut self, upto: LogId) {
        self.state.purge(upto);
        self.committed = self.committed.max(Some(upto));
        self.log.save_committed(self.committed).await.unwrap();
        self.log.purge(upto).await.unwrap();
    }

    async fn restart(&mut self, fs: FaultyFs) {
        self.reopen(fs);
        let committed = self.log.read_committed().await.unwrap();
        assert!(committed <= self.committed);
        self.committed = committed;
    }

    fn reopen(&mut self, fs: FaultyFs) {
        self.log = open(&fs).unwrap();
        self.fs = fs;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_what_the_operations_made_of_it(steps in prop::collection::vec(step(), 1..40)) {
        run(async {
            let fs = FaultyFs::new();
            let log = open(&fs).unwrap();
            let mut tested = Tested { fs, log, state: State::default(), committed: None, term: 0 };
            for step in steps {
                tested.take(step).await;
                assert_eq!(State::of(&mut tested.log).await, tested.state);
                assert_eq!(*tested.log.durable().borrow(), tested.state.next());
                let stats = tested.log.stats();
                assert_eq!(stats.last_index, tested.state.last.index());
                assert_eq!(stats.first_index, tested.state.purged.next_index());
                assert_eq!(segment_paths(&tested.fs).len(), stats.segments + 1, "{stats:?}");
            }
        });
    }
}
