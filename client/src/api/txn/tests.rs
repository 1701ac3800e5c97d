//! What a transaction's body may say, and what is refused with which words.

use serde_json::json;

use super::*;

fn refusal(body: &str) -> String {
    match serde_json::from_str::<TxnRequest>(body) {
        Ok(read) => panic!("{body} was read as {read:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_body_is_read_and_written_again() {
    let body = json!({
        "compare": [
            {"key": "k", "target": "value", "op": "=", "text": "old"},
            {"key": "k", "target": "mod_revision", "op": "<", "value": 18_446_744_073_709_551_615_u64},
            {"key": "k", "target": "lease", "op": "!=", "value": 0},
        ],
        "success": [
            {"op": "put", "key": "k", "value": "AP8=", "content_type": "text/plain", "prev": true},
            {"op": "put", "key": "t", "text": "ü"},
            {"op": "get", "key": "k", "keys_only": true},
            {"op": "list", "prefix": "a/", "limit": 3, "count_only": true, "order": "desc"},
            {"op": "delete", "key": "k", "prev": true},
        ],
        "failure": [{"op": "delete_range", "start": "a", "end": "b"}],
    });
    let read: TxnRequest = serde_json::from_value(body).unwrap();
    assert_eq!(read.compare[0].target, CompareTarget::Value("old".into()));
    assert_eq!((read.compare[1].op, &read.compare[1].target), (CompareOp::Less, &CompareTarget::ModRevision(u64::MAX)));
    let TxnOp::Put(first) = &read.success[0] else { panic!("{read:?}") };
    assert_eq!((first.value.as_ref(), first.prev), ([0, 255].as_slice(), true));
    let TxnOp::Put(second) = &read.success[1] else { panic!("{read:?}") };
    assert_eq!((second.value.as_ref(), second.content_type.as_ref()), ("ü".as_bytes(), None));
    let again: TxnRequest = serde_json::from_str(&serde_json::to_string(&read).unwrap()).unwrap();
    assert_eq!(again, read);
}

#[test]
fn what_makes_no_sense_is_refused_and_says_why() {
    let success = |op: &str| format!(r#"{{"success":[{op}]}}"#);
    let compare = |compare: &str| format!(r#"{{"compare":[{compare}]}}"#);
    for (body, says) in [
        (r#"{"succes":[]}"#.to_owned(), "succes"),
        (r#"{"success":{}}"#.to_owned(), "a list of at most 128"),
        (r#"{"success":[],"success":[]}"#.to_owned(), "duplicate field"),
        (success(r#"{"op":"increment","key":"k"}"#), "increment"),
        (success(r#"{"key":"k"}"#), "op"),
        (success(r#"{"op":"put","key":"k"}"#), "no value"),
        (success(r#"{"op":"put","key":"k","value":"","text":""}"#), "not both"),
        (success(r#"{"op":"put","key":"k","value":"a"}"#), "no base64"),
        (success(r#"{"op":"put","key":"k","value":7}"#), "base64"),
        (success(r#"{"op":"put","key":7,"text":""}"#), "string"),
        (success(r#"{"op":"put","text":""}"#), "key"),
        (success(r#"{"op":"put","key":"k","text":"","colour":"red"}"#), "colour"),
        (success(r#"{"op":"put","key":"k","key":"l","text":""}"#), "duplicate field"),
        (success(r#"{"op":"put","key":"k","text":"","prev":1}"#), "boolean"),
        (success(r#"{"op":"get","key":"k","revision":1}"#), "revision"),
        (success(r#"{"op":"list","limit":-1}"#), "-1"),
        (success(r#"{"op":"list","order":"random"}"#), "random"),
        (success(r#"{"op":"delete_range","key":"k"}"#), "key"),
        (success(r#""get""#), "an object"),
        (success(r#"["get", "k"]"#), "an object"),
        (compare(r#"["k", "version", "=", 0]"#), "an object"),
        (compare(r#"{"key":"k","target":"colour","op":"=","value":1}"#), "colour"),
        (compare(r#"{"key":"k","target":"version","op":"==","value":1}"#), "=="),
        (compare(r#"{"key":"k","target":"version","op":"=","value":-1}"#), "-1"),
        (compare(r#"{"key":"k","target":"version","op":"=","value":1.5}"#), "1.5"),
        (compare(r#"{"key":"k","target":"version","op":"=","value":"MQ=="}"#), "is a number"),
        (compare(r#"{"key":"k","target":"version","op":"=","text":"1"}"#), "\"text\" goes with"),
        (compare(r#"{"key":"k","target":"version","op":"="}"#), "no \"value\""),
        (compare(r#"{"key":"k","target":"value","op":"=","value":1}"#), "base64"),
        (compare(r#"{"key":"k","target":"value","op":"=","value":"YQ==","text":"a"}"#), "not both"),
        (compare(r#"{"key":"k","target":"value","op":"="}"#), "no \"text\""),
        (compare(r#"{"target":"value","op":"=","text":"a"}"#), "key"),
    ] {
        let why = refusal(&body);
        assert!(why.contains(says), "{body}: {says:?} is not in {why:?}");
    }
}

#[test]
fn so_many_operations_and_no_more() {
    let body = |branch: &str, op: &str, count: usize| format!(r#"{{"{branch}":[{}]}}"#, vec![op; count].join(","));
    let get = r#"{"op":"get","key":"k"}"#;
    let compare = r#"{"key":"k","target":"version","op":"=","value":1}"#;
    for (branch, op) in [("success", get), ("failure", get), ("compare", compare)] {
        assert!(serde_json::from_str::<TxnRequest>(&body(branch, op, TXN_OPERATIONS_MAX)).is_ok(), "{branch}");
        assert!(refusal(&body(branch, op, TXN_OPERATIONS_MAX + 1)).contains("more than 128"), "{branch}");
    }
}

#[test]
fn results_are_told_apart_by_their_fields() {
    let item = json!({"key": "k", "value": "aGk=", "create_revision": 1, "mod_revision": 2, "version": 2});
    let results = json!([
        {"revision": 5, "create_revision": 5, "version": 1},
        {"revision": 5, "create_revision": 1, "version": 3, "prev": item},
        item,
        {"key_base64": "/w==", "create_revision": 1, "mod_revision": 2, "version": 2},
        null,
        {"items": [item], "count": 1, "next": null, "revision": 5},
        {"revision": 5, "deleted": 3},
        {"revision": 5, "deleted": 1, "prev": item},
    ]);
    let answer: TxnAnswer =
        serde_json::from_value(json!({"revision": 5, "succeeded": true, "results": results})).unwrap();
    let kinds: Vec<&str> = answer
        .results
        .iter()
        .map(|result| match result {
            TxnResult::Put(_) => "put",
            TxnResult::List(_) => "list",
            TxnResult::Delete(_) => "delete",
            TxnResult::Get(Some(_)) => "found",
            TxnResult::Get(None) => "missing",
        })
        .collect();
    assert_eq!(kinds, ["put", "put", "found", "found", "missing", "list", "delete", "delete"]);
    assert_eq!(serde_json::to_value(&answer).unwrap()["results"], results);
}
