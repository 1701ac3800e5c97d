//! The bank workload: transfers move money, and every read, however old, sees all of it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::tally::Tally;
use super::{Checker, Verdict};
use crate::history::{Event, Operation};

/// The checker `bank`.
#[derive(Debug)]
pub struct Bank;

/// Account -> balance.
pub(super) type Balances = BTreeMap<String, i64>;

/// Money that moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) amount: i64,
}

/// What a transfer was asked to move; None when it makes no sense.
pub(super) fn transfer(value: &Value) -> Option<Transfer> {
    let account = |name: &str| match value.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    Some(Transfer { from: account("from")?, to: account("to")?, amount: value.get("amount")?.as_i64()? })
}

/// What a read of the bank was answered with; None when that makes no sense.
pub(super) fn balances(answer: &Value) -> Option<Balances> {
    answer.as_object()?.iter().map(|(account, balance)| Some((account.clone(), balance.as_i64()?))).collect()
}

/// Whether the event is of this workload, by its name or by what it answers.
pub(super) fn is_bank(event: &Event) -> bool {
    event.key.is_none() && (event.f == "transfer" || (event.f == "read" && event.value.is_object()))
}

impl Checker for Bank {
    fn name(&self) -> &'static str {
        "bank"
    }

    fn about(&self) -> &'static str {
        "every read sees the same accounts, the same total, and no negative balance"
    }

    fn applies(&self, history: &[Event]) -> bool {
        history.iter().any(is_bank)
    }

    fn check(&self, history: &[Event]) -> Verdict {
        let operations = match Tally::operations(self.name(), history) {
            Ok(operations) => operations,
            Err(tally) => return tally.verdict("", Value::Null),
        };
        let mut tally = Tally::new(self.name());
        let mut transfers = 0;
        for operation in operations.iter().filter(|operation| operation.f() == "transfer") {
            transfers += usize::from(operation.is_ok());
            if transfer(&operation.invoke.value).is_none() {
                let message = format!("{} is not a transfer", operation.invoke.value);
                tally.add("malformed", None, message, operation.events(), Value::Null);
            }
        }
        let mut first: Option<(Operation<'_>, Balances)> = None;
        let mut reads = 0;
        for operation in operations.iter().filter(|operation| operation.f() == "read" && operation.key().is_none()) {
            let Some(answer) = operation.answer() else { continue };
            let Some(seen) = balances(answer) else {
                let message = "a read of the bank was answered with something else than balances".into();
                tally.add("malformed", None, message, operation.events(), Value::Null);
                continue;
            };
            reads += 1;
            judge_read(operation, &seen, first.as_ref(), &mut tally);
            first.get_or_insert((*operation, seen));
        }
        let total: i64 = first.iter().flat_map(|(_, seen)| seen.values()).sum();
        if first.is_none() {
            tally.add("no-read", None, "nobody read the balances".into(), Vec::new(), Value::Null);
        }
        let stats = json!({ "transfers": transfers, "reads": reads, "total": total });
        tally.verdict(&format!("{reads} reads see the same total of {total} after {transfers} transfers"), stats)
    }
}

fn judge_read(read: &Operation<'_>, seen: &Balances, first: Option<&(Operation<'_>, Balances)>, tally: &mut Tally) {
    for (account, balance) in seen.iter().filter(|(_, balance)| **balance < 0) {
        let message = format!("account {account} holds {balance}");
        tally.add("negative-balance", None, message, read.events(), json!(seen));
    }
    let Some((other, expected)) = first else { return };
    let events: Vec<u64> = other.events().into_iter().chain(read.events()).collect();
    let detail = json!({ "first": expected, "read": seen });
    if !seen.keys().eq(expected.keys()) {
        let message = "a read sees other accounts than the first read".into();
        tally.add("changed-accounts", None, message, events, detail);
        return;
    }
    let (total, right): (i64, i64) = (seen.values().sum(), expected.values().sum());
    if total != right {
        tally.add("wrong-total", None, format!("a read sees {total} in all, the first saw {right}"), events, detail);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::script::{Script, accepts, rejects};
    use super::Bank;

    fn read(script: &mut Script, balances: Value) -> &mut Script {
        script.invoke(1, "read", None, Value::Null).ok(1, balances)
    }

    fn begun() -> Script {
        let mut script = Script::new();
        read(&mut script, json!({"a": 10, "b": 10})).did(
            0,
            "transfer",
            None,
            json!({"from": "a", "to": "b", "amount": 4}),
        );
        script
    }

    #[test]
    fn the_total_stays() {
        let mut script = begun();
        read(&mut script, json!({"a": 6, "b": 14}));
        assert_eq!(accepts(&Bank, &script).stats["total"], 20);
    }

    #[test]
    fn a_transfer_of_unknown_outcome_may_have_happened_or_not() {
        for seen in [json!({"a": 6, "b": 14}), json!({"a": 0, "b": 20})] {
            let mut script = begun();
            script.invoke(5, "transfer", None, json!({"from": "a", "to": "b", "amount": 6})).info(5);
            read(&mut script, seen);
            accepts(&Bank, &script);
        }
    }

    #[test]
    fn wrong_total() {
        let mut script = begun();
        read(&mut script, json!({"a": 6, "b": 10}));
        assert_eq!(rejects(&Bank, &script, "wrong-total").findings[0].events, [0, 1, 4, 5]);
    }

    #[test]
    fn negative_balance() {
        let mut script = begun();
        read(&mut script, json!({"a": -1, "b": 21}));
        rejects(&Bank, &script, "negative-balance");
    }

    #[test]
    fn changed_accounts() {
        for seen in [json!({"a": 20}), json!({"a": 6, "b": 14, "c": 0})] {
            let mut script = begun();
            read(&mut script, seen);
            rejects(&Bank, &script, "changed-accounts");
        }
    }

    #[test]
    fn no_read() {
        let mut script = Script::new();
        script.did(0, "transfer", None, json!({"from": "a", "to": "b", "amount": 4}));
        rejects(&Bank, &script, "no-read");
    }

    #[test]
    fn malformed() {
        let mut script = begun();
        script.did(0, "transfer", None, json!({"from": "a"}));
        rejects(&Bank, &script, "malformed");
        let mut script = begun();
        read(&mut script, json!({"a": "much"}));
        rejects(&Bank, &script, "malformed");
    }
}
