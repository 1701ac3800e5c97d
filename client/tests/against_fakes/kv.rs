//! What requests look like on the wire, and what becomes of the answers.

use futures_util::TryStreamExt as _;
use hexkv_client::api::{CompareOp, CompareTarget, TxnOp, TxnRequest, TxnResult};
use hexkv_client::encoding::key_of_path;
use hexkv_client::kv::{Condition, Consistency, DeleteOptions, KeyRange, ListOptions, Order, PutOptions, ReadOptions};
use hexkv_client::{Client, Error, Options};
use serde_json::{Value, json};

use crate::fake::{Fake, Reaction};

fn client(fake: &Fake) -> Client {
    Client::new([&fake.endpoint], Options { attempts_max: 1, ..Options::default() }).unwrap()
}

fn item(key: &str) -> Value {
    json!({"key": key, "value": "aGk=", "create_revision": 1, "mod_revision": 2, "version": 2})
}

#[tokio::test]
async fn a_record_carries_what_the_headers_say() {
    let fake = Fake::start(|_, _| Reaction::record("hi").with("X-Hexkv-Staleness", 12)).await;
    let options = ReadOptions { consistency: Consistency::Stale, min_revision: Some(8), revision: None };
    let record = client(&fake).get("a/b c", &options).await.unwrap().unwrap();
    assert_eq!((record.value.as_ref(), record.content_type.as_deref()), (b"hi".as_slice(), Some("text/plain")));
    assert_eq!((record.mod_revision, record.create_revision, record.version), (6, 5, 2));
    assert_eq!((record.store_revision, record.staleness_ms, record.lease), (9, Some(12), None));
    assert_eq!(fake.seen()[0].target, "/api/kv/a/b%20c?consistency=stale&min_revision=8");
}

#[tokio::test]
async fn a_missing_key_is_an_answer_and_a_missing_route_is_not() {
    let fake = Fake::start(|n, _| Reaction::problem(404, if n < 2 { "key_not_found" } else { "not_found" })).await;
    let client = client(&fake);
    assert_eq!(client.get("k", &ReadOptions::default()).await.unwrap(), None);
    assert_eq!(client.get_item("k", &ReadOptions::default()).await.unwrap(), None);
    assert!(matches!(client.get("k", &ReadOptions::default()).await, Err(Error::Rejected { .. })));
}

#[tokio::test]
async fn a_look_up_says_at_which_revision_a_key_exists_or_is_missing() {
    let fake = Fake::start(|n, _| match n {
        0 => Reaction::record("hi"),
        1 => Reaction::problem(404, "key_not_found").with("X-Hexkv-Revision", 11),
        _ => Reaction::problem(404, "key_not_found"),
    })
    .await;
    let client = client(&fake);
    let found = client.look_up("k", &ReadOptions::default()).await.unwrap();
    assert_eq!((found.record.map(|record| record.mod_revision), found.store_revision), (Some(6), 9));
    let missing = client.look_up("k", &ReadOptions::default()).await.unwrap();
    assert_eq!((missing.record, missing.store_revision), (None, 11));
    assert!(client.look_up("k", &ReadOptions::default()).await.is_err(), "an answer without the revision is none");
}

#[tokio::test]
async fn an_answer_of_something_else_is_no_record() {
    let fake = Fake::start(|_, _| Reaction::json(200, &json!("hello"))).await;
    assert!(matches!(client(&fake).get("k", &ReadOptions::default()).await, Err(Error::Unexpected(_))));
    assert!(matches!(client(&fake).status().await, Err(Error::Unexpected(_))));
}

#[tokio::test]
async fn an_item_is_asked_for_as_json() {
    let fake = Fake::start(|_, _| Reaction::json(200, &item("k"))).await;
    let item = client(&fake).get_item("k", &ReadOptions::default()).await.unwrap().unwrap();
    assert_eq!(item.value_bytes().unwrap().unwrap(), "hi");
    assert_eq!(item.key_bytes().unwrap(), "k");
    assert_eq!(fake.seen()[0].header("accept"), Some("application/json"));
}

#[tokio::test]
async fn conditions_travel_as_headers() {
    let deleted = json!({"revision": 8, "deleted": 1});
    let fake = Fake::start(move |n, _| if n < 2 { Reaction::put() } else { Reaction::json(200, &deleted) }).await;
    let client = client(&fake);
    let mut options = PutOptions { condition: Some(Condition::Revision(41)), ..PutOptions::default() };
    options.content_type = Some("text/html".to_owned());
    options.prev = true;
    client.put("ключ", "v", &options).await.unwrap();
    let absent = PutOptions { condition: Some(Condition::Absent), ..PutOptions::default() };
    client.put("k", vec![0, 255], &absent).await.unwrap();
    let delete = DeleteOptions { condition: Some(Condition::Revision(42)), ..DeleteOptions::default() };
    assert_eq!(client.delete("k", &delete).await.unwrap().deleted, 1);

    let seen = fake.seen();
    assert_eq!((seen[0].method.as_str(), seen[0].header("if-match")), ("PUT", Some("\"41\"")));
    assert_eq!((seen[0].header("content-type"), seen[0].body.as_slice()), (Some("text/html"), b"v".as_slice()));
    let (path, query) = seen[0].target.split_once('?').unwrap();
    assert_eq!((key_of_path(path).unwrap().as_ref(), query), ("ключ", "prev=true"));
    assert_eq!((seen[1].header("if-none-match"), seen[1].body.as_slice()), (Some("*"), [0, 255].as_slice()));
    assert_eq!((seen[2].method.as_str(), seen[2].header("if-match")), ("DELETE", Some("\"42\"")));
}

#[tokio::test]
async fn ranges_travel_as_parameters() {
    let page = json!({"items": [], "count": 3, "next": null, "revision": 9});
    let fake = Fake::start(move |_, _| Reaction::json(200, &page)).await;
    let client = client(&fake);
    let options = ListOptions { limit: Some(5), keys_only: true, order: Order::Descending, ..ListOptions::default() };
    client.list(&KeyRange::Prefix("a&b/".to_owned()), &options).await.unwrap();
    let count = ListOptions { count_only: true, ..ListOptions::default() };
    let range = KeyRange::Between { start: Some("a".to_owned()), end: None };
    assert_eq!(client.list(&range, &count).await.unwrap().count, 3);
    let targets: Vec<String> = fake.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(
        targets,
        ["/api/kv?prefix=a%26b%2F&limit=5&keys_only=true&order=desc", "/api/kv?start=a&count_only=true"]
    );
}

#[tokio::test]
async fn all_pages_are_fetched_by_cursor() {
    let fake = Fake::start(|n, _| {
        let next = (n < 2).then(|| format!("after {n}"));
        let items = [item(&format!("k{n}a")), item(&format!("k{n}b"))];
        Reaction::json(200, &json!({"items": items, "count": 2, "next": next, "revision": 9}))
    })
    .await;
    let client = client(&fake);
    let range = KeyRange::Prefix("k".to_owned());
    let items: Vec<_> = client.list_all(range, ListOptions::default()).try_collect().await.unwrap();
    let keys: Vec<String> = items.into_iter().filter_map(|item| item.key).collect();
    assert_eq!(keys, ["k0a", "k0b", "k1a", "k1b", "k2a", "k2b"]);
    let targets: Vec<String> = fake.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/api/kv?prefix=k", "/api/kv?prefix=k&cursor=after%200", "/api/kv?prefix=k&cursor=after%201"]);
}

#[tokio::test]
async fn a_listing_that_breaks_off_says_so() {
    let page = json!({"items": [item("k")], "count": 1, "next": "more", "revision": 9});
    let fake =
        Fake::start(move |n, _| if n == 0 { Reaction::json(200, &page) } else { Reaction::problem(410, "compacted") })
            .await;
    let client = client(&fake);
    let mut items = std::pin::pin!(client.list_all(KeyRange::Prefix(String::new()), ListOptions::default()));
    assert!(items.try_next().await.unwrap().is_some());
    assert!(matches!(items.try_next().await, Err(Error::Rejected { .. })));
    assert!(items.try_next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_transaction_travels_as_json() {
    let put = json!({"revision": 7, "create_revision": 7, "version": 1});
    let answer = json!({"revision": 7, "succeeded": true, "results": [put, null, {"revision": 7, "deleted": 2}]});
    let fake = Fake::start(
        move |n, _| {
            if n == 0 { Reaction::problem(503, "no_leader") } else { Reaction::json(200, &answer) }
        },
    )
    .await;
    let txn = TxnRequest::default()
        .when("k", CompareTarget::Version(0), CompareOp::Equal)
        .then(TxnOp::put("k", vec![0, 255]))
        .then(TxnOp::get("l"))
        .then(TxnOp::delete_prefix("old/"))
        .otherwise(TxnOp::delete("k"));
    let client = Client::new([&fake.endpoint], Options::default()).unwrap();
    let answer = client.txn(&txn).await.unwrap();
    assert_eq!((answer.revision, answer.succeeded, answer.results.len()), (7, true, 3));
    assert!(matches!(&answer.results[0], TxnResult::Put(put) if put.version == 1), "{answer:?}");
    assert_eq!(answer.results[1], TxnResult::Get(None));
    assert!(matches!(&answer.results[2], TxnResult::Delete(gone) if gone.deleted == 2), "{answer:?}");
    let seen = fake.seen();
    assert_eq!(seen.len(), 2, "a refusal with 503 changed nothing, so it is sent again");
    assert_eq!((seen[1].method.as_str(), seen[1].target.as_str()), ("POST", "/api/txn"));
    assert_eq!(seen[1].header("content-type"), Some("application/json"));
    let expected = json!({
        "compare": [{"key": "k", "target": "version", "op": "=", "value": 0}],
        "success": [
            {"op": "put", "key": "k", "value": "AP8="},
            {"op": "get", "key": "l"},
            {"op": "delete_range", "prefix": "old/"},
        ],
        "failure": [{"op": "delete", "key": "k"}],
    });
    assert_eq!(serde_json::from_slice::<Value>(&seen[1].body).unwrap(), expected);
}

#[tokio::test]
async fn every_consistency_has_its_name_and_others_are_refused_with_all_of_them() {
    let fake = Fake::start(|_, _| Reaction::record("hi")).await;
    let all = [
        (Consistency::Linearizable, ""),
        (Consistency::Lease, "?consistency=lease"),
        (Consistency::Stale, "?consistency=stale"),
    ];
    for (at, (consistency, query)) in all.into_iter().enumerate() {
        assert_eq!(consistency.as_str().parse::<Consistency>().unwrap(), consistency);
        client(&fake).get("k", &ReadOptions { consistency, ..ReadOptions::default() }).await.unwrap();
        assert_eq!(fake.seen()[at].target, format!("/api/kv/k{query}"));
    }
    let refused = "Lease".parse::<Consistency>().unwrap_err().to_string();
    assert!(refused.contains("linearizable, lease or stale"), "{refused}");
}
