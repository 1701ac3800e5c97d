//! An invocation and what became of it.

use serde_json::Value;

use super::{Disorder, Event, Kind, Mode, Order, Process};

/// What is known about how an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It happened between its invocation and its completion.
    Ok,
    /// It did not happen and never will.
    Fail,
    /// It happens some time after its invocation, or never. Also an operation without a completion.
    Info,
}

/// An invocation and, when there is one, its completion.
#[derive(Debug, Clone, Copy)]
pub struct Operation<'a> {
    /// Its beginning.
    pub invoke: &'a Event,
    /// Its end; None when the history ends before it.
    pub completion: Option<&'a Event>,
}

impl<'a> Operation<'a> {
    /// How it ended.
    pub fn outcome(&self) -> Outcome {
        match self.completion.map(|event| event.kind) {
            Some(Kind::Ok) => Outcome::Ok,
            Some(Kind::Fail) => Outcome::Fail,
            Some(Kind::Info) | None => Outcome::Info,
            Some(Kind::Invoke) => unreachable!("pair() never takes an invocation for a completion"),
        }
    }

    /// Whether it certainly happened.
    pub fn is_ok(&self) -> bool {
        self.outcome() == Outcome::Ok
    }

    /// Which operation.
    pub fn f(&self) -> &'a str {
        &self.invoke.f
    }

    /// Who.
    pub fn process(&self) -> Process {
        self.invoke.process
    }

    /// The key, for workloads that have one.
    pub fn key(&self) -> Option<&'a str> {
        self.invoke.key.as_deref()
    }

    /// Index of the invocation.
    pub fn began(&self) -> u64 {
        self.invoke.index
    }

    /// Index after which it can no longer take effect; None for an operation of unknown outcome.
    pub fn ended(&self) -> Option<u64> {
        self.completion.filter(|event| event.kind != Kind::Info).map(|event| event.index)
    }

    /// The answer of an operation that happened.
    pub fn answer(&self) -> Option<&'a Value> {
        self.completion.filter(|event| event.kind == Kind::Ok).map(|event| &event.value)
    }

    /// The revision in the answer of an operation that happened.
    pub fn revision(&self) -> Option<u64> {
        self.completion.filter(|event| event.kind == Kind::Ok).and_then(|event| event.revision)
    }

    /// The node that was asked, as far as either event says.
    pub fn node(&self) -> Option<&'a str> {
        self.completion.and_then(|event| event.node.as_deref()).or(self.invoke.node.as_deref())
    }

    /// How a read was asked for.
    pub fn mode(&self) -> Mode {
        self.invoke.mode.or(self.completion.and_then(|event| event.mode)).unwrap_or(Mode::Linearizable)
    }

    /// Indices of its events, for findings.
    pub fn events(&self) -> Vec<u64> {
        std::iter::once(self.began()).chain(self.completion.map(|event| event.index)).collect()
    }
}

/// The operations of the clients, in the order of their invocations.
///
/// Errors: the first event that does not fit, see [`Disorder`].
pub fn pair(history: &[Event]) -> Result<Vec<Operation<'_>>, (u64, Disorder)> {
    let mut order = Order::default();
    let mut operations: Vec<Operation<'_>> = Vec::with_capacity(history.len() / 2 + 1);
    // Where in `operations` the invocation with this index went.
    let mut place = vec![usize::MAX; history.len()];
    for (position, event) in history.iter().enumerate() {
        match order.admit(event).map_err(|disorder| (position as u64, disorder))? {
            Some(invoked) => operations[place[invoked as usize]].completion = Some(event),
            None if event.kind == Kind::Invoke => {
                place[position] = operations.len();
                operations.push(Operation { invoke: event, completion: None });
            }
            None => {}
        }
    }
    Ok(operations)
}
