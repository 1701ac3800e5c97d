//! Golden text of the Porcupine export.

use serde_json::{Value, json};

use super::{ExportError, export, file_name};
use crate::history::taken_down::{record, whole};
use crate::history::{Entry, Kind, Mode};

#[test]
fn golden() {
    let mut entries = Vec::new();
    entries.extend(whole(Entry::invoke(0, "read").key("a"), Kind::Ok, Value::Null));
    let [write, written] = whole(Entry::invoke(0, "write").key("a").value(4), Kind::Ok, json!(4));
    let [cas, swapped] = whole(Entry::invoke(1, "cas").key("a").value(json!([4, 0])), Kind::Info, Value::Null);
    entries.extend([write, cas, written, swapped]);
    entries.extend(whole(Entry::invoke(0, "read").key("a"), Kind::Ok, json!(0)));
    // Left out: a refusal, a stale read, another workload, the nemesis.
    entries.extend(whole(Entry::invoke(0, "cas").key("a").value(json!([9, 1])), Kind::Fail, Value::Null));
    entries.extend(whole(Entry::invoke(0, "read").key("a").mode(Mode::Stale), Kind::Ok, json!(4)));
    entries.extend(whole(Entry::invoke(0, "add").value(1), Kind::Ok, json!(1)));
    entries.push(Entry::nemesis("kill"));
    // A read without an answer, and an operation without an end.
    entries.extend(whole(Entry::invoke(2, "read").key("a"), Kind::Info, Value::Null));
    entries.push(Entry::invoke(3, "write").key("a").value(7));
    // Another key, where a CAS expects it to be missing: 0 and 2 are in use.
    entries.extend(whole(Entry::invoke(0, "cas").key("b").value(json!([null, 0])), Kind::Ok, json!([null, 0])));
    entries.extend(whole(Entry::invoke(0, "cas").key("b").value(json!([0, 2])), Kind::Ok, json!([0, 2])));
    entries.extend(whole(Entry::invoke(0, "read").key("b"), Kind::Ok, Value::Null));
    let files = export(&record(entries, 0)).unwrap();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["a", "b"]);
    let a = "\
INFO  jepsen.util - 0\t:invoke\t:read\tnil
INFO  jepsen.util - 0\t:ok\t:read\tnil
INFO  jepsen.util - 0\t:invoke\t:write\t4
INFO  jepsen.util - 1\t:invoke\t:cas\t[4 0]
INFO  jepsen.util - 0\t:ok\t:write\t4
INFO  jepsen.util - 1\t:info\t:cas\t:timed-out
INFO  jepsen.util - 0\t:invoke\t:read\tnil
INFO  jepsen.util - 0\t:ok\t:read\t0
INFO  jepsen.util - 2\t:invoke\t:read\tnil
INFO  jepsen.util - 2\t:info\t:read\t:timed-out
INFO  jepsen.util - 3\t:invoke\t:write\t7
";
    assert_eq!(files["a"], a);
    let b = "\
INFO  jepsen.util - 0\t:invoke\t:write\t1
INFO  jepsen.util - 0\t:ok\t:write\t1
INFO  jepsen.util - 0\t:invoke\t:cas\t[1 0]
INFO  jepsen.util - 0\t:ok\t:cas\t[1 0]
INFO  jepsen.util - 0\t:invoke\t:cas\t[0 2]
INFO  jepsen.util - 0\t:ok\t:cas\t[0 2]
INFO  jepsen.util - 0\t:invoke\t:read\tnil
INFO  jepsen.util - 0\t:ok\t:read\t1
";
    assert_eq!(files["b"], b);
}

#[test]
fn values_without_a_form_are_refused() {
    for value in [json!(-1), json!("text"), Value::Null] {
        let events = record(whole(Entry::invoke(0, "write").key("a").value(value.clone()), Kind::Ok, value).into(), 0);
        let error = export(&events).unwrap_err();
        assert!(matches!(error, ExportError::Value { index: 0, .. }), "{error}");
    }
}

#[test]
fn names_of_files_are_apart() {
    assert_eq!(file_name("k-1.a"), "k-1.a.log");
    assert_eq!(file_name("a/b_c"), "a_2fb_5fc.log");
}
