//! Golden text of the EDN export.

use serde_json::{Value, json};

use super::export;
use crate::history::taken_down::{record, whole};
use crate::history::{Entry, Kind, Mode};

#[test]
fn golden() {
    let mut entries = Vec::new();
    entries.extend(whole(Entry::invoke(0, "cas").key("k").value(json!([null, 1])), Kind::Ok, json!([null, 1])));
    let [read, seen] = whole(Entry::invoke(0, "read").key("k").node("n1"), Kind::Ok, json!(1));
    entries.extend([read, seen.revision(4)]);
    entries.extend(whole(Entry::invoke(0, "read").key("k\"1\"").mode(Mode::Stale), Kind::Ok, Value::Null));
    entries.push(Entry::nemesis("kill leader!").value(json!({"node": "n1", "hard": true})));
    let txn = json!([["r", "x", null], ["append", "x", 1]]);
    entries.extend(whole(
        Entry::invoke(0, "txn").value(txn),
        Kind::Ok,
        json!([["r", "x", [3, 2]], ["append", "x", 1]]),
    ));
    let transfer = json!({"from": "0", "to": "b", "amount": 5});
    entries.extend(whole(Entry::invoke(0, "transfer").value(transfer), Kind::Fail, Value::Null));
    entries.extend(whole(Entry::invoke(0, "read"), Kind::Ok, json!({"0": 5, "007": 1, "b": 9})));
    entries.extend(whole(Entry::invoke(0, "read"), Kind::Ok, json!([1, 2])));
    let [add, unknown] = whole(Entry::invoke(0, "add").value(3), Kind::Info, json!(3));
    entries.extend([add, unknown.error("no answer\nin 2 s")]);
    let expected = r#"{:index 0, :time 7, :type :invoke, :process 0, :f :cas, :value ["k" [nil 1]]}
{:index 1, :time 7, :type :ok, :process 0, :f :cas, :value ["k" [nil 1]]}
{:index 2, :time 7, :type :invoke, :process 0, :f :read, :value ["k" nil], :node "n1"}
{:index 3, :time 7, :type :ok, :process 0, :f :read, :value ["k" 1], :node "n1", :revision 4}
{:index 4, :time 7, :type :invoke, :process 0, :f :stale-read, :value ["k\"1\"" nil]}
{:index 5, :time 7, :type :ok, :process 0, :f :stale-read, :value ["k\"1\"" nil]}
{:index 6, :time 7, :type :info, :process :nemesis, :f :kill-leader!, :value {:hard true, :node "n1"}}
{:index 7, :time 7, :type :invoke, :process 0, :f :txn, :value [[:r "x" nil] [:append "x" 1]]}
{:index 8, :time 7, :type :ok, :process 0, :f :txn, :value [[:r "x" [3 2]] [:append "x" 1]]}
{:index 9, :time 7, :type :invoke, :process 0, :f :transfer, :value {:amount 5, :from 0, :to "b"}}
{:index 10, :time 7, :type :fail, :process 0, :f :transfer, :value nil}
{:index 11, :time 7, :type :invoke, :process 0, :f :read, :value nil}
{:index 12, :time 7, :type :ok, :process 0, :f :read, :value {0 5, "007" 1, "b" 9}}
{:index 13, :time 7, :type :invoke, :process 0, :f :read, :value nil}
{:index 14, :time 7, :type :ok, :process 0, :f :read, :value [1 2]}
{:index 15, :time 7, :type :invoke, :process 0, :f :add, :value 3}
{:index 16, :time 7, :type :info, :process 0, :f :add, :value 3, :error "no answer\nin 2 s"}
"#;
    assert_eq!(export(&record(entries, 7)), expected);
}
