//! The search of Wing and Gong (1993) in the form of Lowe (2017): take an operation that no other must precede, go on,
//! step back when nothing fits, and never search a configuration twice. A configuration is which operations were taken
//! and what the register holds.
//!
//! Prunings, each sound:
//! 1. *Dead value.* Do not leave a value that an operation still needs and that nobody is left to write.
//! 2. *Eager read.* A read that fits now is taken now, and if that leads nowhere, nothing else does: a linearization
//!    that takes it later stays one when the read is moved here, since it changes nothing.
//! 3. *Finished value*, only when values are unique. Once nobody needs the present value any more, the choices that led
//!    here are final. By 1, all operations that need a value stand right behind its maker, as one block (a CAS joins
//!    two of them). A block that could be taken as a whole can be moved in front of all that is left: no remaining
//!    operation had to come before any of its own, and blocks do not need each other's values.
//!
//! So with unique values there is at most one open block at a time, its operations are forced, and the search never
//! returns behind a finished one: no memo is needed, and time is linear in the operations times those open at once.

use std::collections::HashSet;

use super::instance::{Entry, Instance, ValueId};

/// Configurations that are kept, at most, for a key whose values repeat (about 100 bytes each). With unique values
/// none is kept.
pub(super) const CONFIGURATIONS_MAX: usize = 2_000_000;

/// What the search found.
#[derive(Debug)]
pub(super) enum Answer {
    Linearizable,
    NotLinearizable(Stuck),
    /// The most configurations that are kept were reached.
    TooLarge,
}

/// How far the search came.
#[derive(Debug, Default)]
pub(super) struct Stuck {
    /// The longest order that was found, of operation numbers.
    pub(super) linearized: Vec<u32>,
    /// Those of which one would have to follow.
    pub(super) blocked: Vec<u32>,
}

/// Searches, keeping `configurations_max` configurations at most, and says how many steps that took.
pub(super) fn search(instance: &Instance, configurations_max: usize) -> (Answer, u64) {
    let mut search = Search::new(instance);
    let answer = search.run(configurations_max);
    (answer, search.steps)
}

/// Ends of the list of entries.
const HEAD: u32 = 0;

#[derive(Debug, Clone, Copy)]
struct Step {
    op: u32,
    state_before: ValueId,
    /// Whether there is no other choice in its place.
    forced: bool,
}

/// Entries are numbered from 1 in a doubly linked list, [`HEAD`] being both its ends.
///
/// Invariants: an operation is in the list, in `needs` and in `makers` exactly when it is not in `taken`; all required
/// operations below `first` are taken; `best` agrees with `taken` in its first `agree` operations.
struct Search<'a> {
    instance: &'a Instance,
    next: Vec<u32>,
    previous: Vec<u32>,
    call: Vec<u32>,
    /// [`HEAD`] for operations of unknown outcome.
    ret: Vec<u32>,
    state: ValueId,
    /// Of each value, how many required operations that are left need it, and how many that are left make it.
    needs: Vec<u32>,
    makers: Vec<u32>,
    remaining: usize,
    taken: Vec<Step>,
    /// Steps below this are final.
    floor: usize,
    done: Vec<u64>,
    first: usize,
    seen: HashSet<Box<[u64]>>,
    best: Stuck,
    agree: usize,
    steps: u64,
}

impl<'a> Search<'a> {
    fn new(instance: &'a Instance) -> Self {
        let ops = instance.ops.len();
        let entries = instance.entries.len() as u32;
        let (mut call, mut ret) = (vec![HEAD; ops], vec![HEAD; ops]);
        for (position, entry) in instance.entries.iter().enumerate() {
            match *entry {
                Entry::Call(op) => call[op as usize] = position as u32 + 1,
                Entry::Return(op) => ret[op as usize] = position as u32 + 1,
            }
        }
        let (mut needs, mut makers) = (vec![0; instance.values], vec![0; instance.values]);
        for (id, op) in instance.ops.iter().enumerate() {
            if let (Some(value), true) = (op.need, id < instance.required) {
                needs[value as usize] += 1;
            }
            if let Some(value) = op.make {
                makers[value as usize] += 1;
            }
        }
        Search {
            instance,
            next: (1..=entries).chain([HEAD]).collect(),
            previous: std::iter::once(entries).chain(0..entries).collect(),
            call,
            ret,
            state: Instance::MISSING,
            needs,
            makers,
            remaining: instance.required,
            taken: Vec::with_capacity(ops),
            floor: 0,
            done: vec![0; ops.div_ceil(64)],
            first: 0,
            seen: HashSet::new(),
            best: Stuck::default(),
            agree: 0,
            steps: 0,
        }
    }

    fn run(&mut self, configurations_max: usize) -> Answer {
        // Where to look for the next choice; HEAD = in a configuration that was just reached.
        let mut cursor = HEAD;
        while self.remaining > 0 {
            if cursor == HEAD
                && let Some(read) = self.fitting_read()
            {
                self.take(read, true);
                continue;
            }
            if self.seen.len() > configurations_max {
                return Answer::TooLarge;
            }
            if self.take_change(cursor) {
                cursor = HEAD;
                continue;
            }
            self.note_dead_end();
            match self.step_back() {
                Some(after) => cursor = after,
                None => return Answer::NotLinearizable(std::mem::take(&mut self.best)),
            }
        }
        Answer::Linearizable
    }

    /// The operation that begins at an entry; None at a return and at the end of the list: what is behind that must
    /// wait.
    fn candidate(&self, entry: u32) -> Option<u32> {
        if entry == HEAD {
            return None;
        }
        match self.instance.entries[entry as usize - 1] {
            Entry::Call(op) => Some(op),
            Entry::Return(_) => None,
        }
    }

    fn fitting_read(&self) -> Option<u32> {
        let mut entry = self.next[HEAD as usize];
        while let Some(id) = self.candidate(entry) {
            let op = self.instance.ops[id as usize];
            if op.make.is_none() && op.need == Some(self.state) {
                return Some(id);
            }
            entry = self.next[entry as usize];
        }
        None
    }

    /// Takes the first change behind `cursor` that leads to a configuration that is not dead and was not searched.
    fn take_change(&mut self, cursor: u32) -> bool {
        let mut entry = self.next[cursor as usize];
        while let Some(id) = self.candidate(entry) {
            if self.leads_on(id) {
                self.take(id, false);
                if self.instance.unique || self.seen.insert(self.configuration()) {
                    return true;
                }
                self.untake();
            }
            entry = self.next[entry as usize];
        }
        false
    }

    /// Whether the operation changes something, fits, and does not leave a dead value behind.
    fn leads_on(&self, id: u32) -> bool {
        let op = self.instance.ops[id as usize];
        let Some(make) = op.make else { return false };
        if op.need.is_some_and(|need| need != self.state) {
            return false;
        }
        let state = self.state as usize;
        let own = u32::from(op.need.is_some() && (id as usize) < self.instance.required);
        make == self.state || self.needs[state] == own || self.makers[state] > 0
    }

    fn take(&mut self, id: u32, forced: bool) {
        let (op, required) = (self.instance.ops[id as usize], (id as usize) < self.instance.required);
        self.taken.push(Step { op: id, state_before: self.state, forced });
        self.steps += 1;
        for entry in [self.call[id as usize], self.ret[id as usize]].into_iter().filter(|entry| *entry != HEAD) {
            let (before, after) = (self.previous[entry as usize], self.next[entry as usize]);
            self.next[before as usize] = after;
            self.previous[after as usize] = before;
        }
        if required {
            self.remaining -= 1;
        }
        if let (Some(need), true) = (op.need, required) {
            self.needs[need as usize] -= 1;
        }
        if let Some(make) = op.make {
            self.makers[make as usize] -= 1;
            self.state = make;
        }
        self.done[id as usize / 64] |= 1 << (id % 64);
        while self.first < self.instance.required && self.done[self.first / 64] & (1 << (self.first % 64)) != 0 {
            self.first += 1;
        }
        if self.instance.unique && self.needs[self.state as usize] == 0 {
            self.floor = self.taken.len();
        }
    }

    fn untake(&mut self) -> Option<Step> {
        if self.taken.len() <= self.floor {
            return None;
        }
        let step = self.taken.pop()?;
        self.agree = self.agree.min(self.taken.len());
        let id = step.op as usize;
        let (op, required) = (self.instance.ops[id], id < self.instance.required);
        for entry in [self.ret[id], self.call[id]].into_iter().filter(|entry| *entry != HEAD) {
            let (before, after) = (self.previous[entry as usize], self.next[entry as usize]);
            self.next[before as usize] = entry;
            self.previous[after as usize] = entry;
        }
        if required {
            self.remaining += 1;
            self.first = self.first.min(id);
        }
        if let (Some(need), true) = (op.need, required) {
            self.needs[need as usize] += 1;
        }
        if let Some(make) = op.make {
            self.makers[make as usize] += 1;
        }
        self.state = step.state_before;
        self.done[id / 64] &= !(1 << (id % 64));
        Some(step)
    }

    /// Steps back to the last choice that has another in its place, and says behind which entry to look for it.
    fn step_back(&mut self) -> Option<u32> {
        loop {
            let step = self.untake()?;
            if !step.forced {
                return Some(self.call[step.op as usize]);
            }
        }
    }

    fn note_dead_end(&mut self) {
        if self.taken.len() < self.best.linearized.len() {
            return;
        }
        self.best.linearized.truncate(self.agree);
        self.best.linearized.extend(self.taken[self.agree..].iter().map(|step| step.op));
        self.agree = self.taken.len();
        self.best.blocked.clear();
        let mut entry = self.next[HEAD as usize];
        while let Some(id) = self.candidate(entry) {
            if (id as usize) < self.instance.required {
                self.best.blocked.push(id);
            }
            entry = self.next[entry as usize];
        }
    }

    /// The configuration: what the register holds, the first required operation that is left, which behind it are
    /// taken, and which of unknown outcome.
    fn configuration(&self) -> Box<[u64]> {
        let required_words = self.instance.required.div_ceil(64);
        let from = self.first / 64;
        let mut to = required_words;
        while to > from && self.done[to - 1] == 0 {
            to -= 1;
        }
        let mut key = vec![u64::from(self.state) << 32 | self.first as u64, to as u64];
        key.extend_from_slice(&self.done[from.min(to)..to]);
        // The word that holds the last required operations and the first others may be in both parts.
        key.extend_from_slice(&self.done[self.instance.required / 64..]);
        key.into_boxed_slice()
    }
}
