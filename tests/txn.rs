//! Transactions over HTTP, through every node of a cluster.

use hexkv_client::api::Item;
use serde_json::{Value, json};

use crate::harness::{Answer, Cluster, Request, get, json as request_with, put, request};

fn ask(address: &str, wanted: &Request) -> Answer {
    request(address, wanted).expect("an answer")
}

fn txn(address: &str, body: &Value) -> Answer {
    ask(address, &request_with("POST", "/api/txn", body))
}

/// What a transaction that must be carried out answers.
fn done(address: &str, body: &Value) -> Value {
    let answer = txn(address, body);
    assert_eq!(answer.status, 200, "{body}: {answer:?}");
    answer.json()
}

#[test]
fn compare_then_or_else_at_one_revision_through_any_node() {
    let mut cluster = Cluster::start(4);
    for index in 1..=4 {
        let http = cluster.node(index).http.clone();
        let (key, other) = (format!("txn/{index}/a"), format!("txn/{index}/b"));
        let create = json!({
            "compare": [{"key": key, "target": "version", "op": "=", "value": 0}],
            "success": [
                {"op": "put", "key": key, "value": "AP8K", "content_type": "image/x"},
                {"op": "put", "key": other, "text": "text"},
                {"op": "get", "key": key},
                {"op": "list", "prefix": format!("txn/{index}/"), "keys_only": true},
            ],
            "failure": [{"op": "get", "key": key}, {"op": "get", "key": "txn/none"}],
        });
        let created = done(&http, &create);
        assert_eq!(created["succeeded"], true, "{created}");
        let revision = created["revision"].as_u64().expect("a revision");
        assert_eq!(
            created["results"][0],
            json!({"revision": revision, "create_revision": revision, "version": 1}),
            "a put answers as PUT does"
        );
        assert_eq!(created["results"][1], created["results"][0], "one revision for all");
        let item = json!({
            "key": key, "value": "AP8K", "create_revision": revision, "mod_revision": revision, "version": 1,
            "content_type": "image/x",
        });
        assert_eq!(created["results"][2], item, "a get answers the record, with what was written before it");
        let listed = &created["results"][3];
        assert_eq!(
            (&listed["count"], &listed["next"], &listed["revision"]),
            (&2.into(), &Value::Null, &revision.into())
        );
        assert!(listed["items"][0].get("value").is_none(), "{listed}");

        let again = done(&http, &create);
        assert_eq!((&again["succeeded"], &again["revision"]), (&false.into(), &revision.into()), "nothing changed");
        assert_eq!(again["results"], json!([item, null]), "the record, and null for a missing key");
        for reader in 1..=4 {
            let read = ask(&cluster.node(reader).http, &get(&format!("/api/kv/{key}")));
            assert_eq!((read.body.as_slice(), read.etag()), ([0, 255, 10].as_slice(), revision), "on node {reader}");
        }
        let swapped = done(
            &http,
            &json!({
                "compare": [
                    {"key": other, "target": "value", "op": "=", "text": "text"},
                    {"key": key, "target": "mod_revision", "op": "<", "value": revision + 1},
                ],
                "success": [
                    {"op": "delete", "key": key, "prev": true},
                    {"op": "put", "key": other, "text": "", "prev": true},
                    {"op": "delete_range", "start": format!("txn/{index}/c")},
                ],
            }),
        );
        assert_eq!((&swapped["succeeded"], &swapped["revision"]), (&true.into(), &(revision + 1).into()), "{swapped}");
        assert_eq!(swapped["results"][0], json!({"revision": revision + 1, "deleted": 1, "prev": item}));
        assert_eq!(
            (&swapped["results"][1]["version"], &swapped["results"][1]["prev"]["value"]),
            (&2.into(), &"dGV4dA==".into())
        );
        assert_eq!(swapped["results"][2], json!({"revision": revision + 1, "deleted": 0}));
    }
    cluster.wait_holders_agree(3);
}

#[test]
fn a_transaction_that_breaks_off_changes_nothing() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    for i in 0..5 {
        assert_eq!(ask(&http, &put(&format!("/api/kv/big/{i}"), vec![b'x'; 1_500_000])).status, 200);
    }
    let before = cluster.node(1).json("/api/cluster/hash").expect("a hash");
    // Five records of 1.5 MB fill the answer; the put before them was evaluated and must not stay.
    let refused = txn(
        &http,
        &json!({
            "compare": [{"key": "none", "target": "version", "op": ">", "value": 0}],
            "failure": [
                {"op": "put", "key": "half", "text": "done"},
                {"op": "list", "prefix": "big/"},
                {"op": "get", "key": "big/0"},
            ],
        }),
    );
    assert_eq!((refused.status, refused.problem()), (400, "invalid_argument".into()));
    assert!(refused.text().contains("failure[2]: a transaction answers at most"), "{refused:?}");
    let after = cluster.node(1).json("/api/cluster/hash").expect("a hash");
    assert_eq!((&after["revision"], &after["hash"]), (&before["revision"], &before["hash"]), "nothing was changed");
    assert_eq!(ask(&http, &get("/api/kv/half")).status, 404);
}

#[test]
fn bad_transactions_are_refused_by_place_and_change_nothing() {
    let mut cluster = Cluster::start(1);
    let http = cluster.node(1).http.clone();
    ask(&http, &put("/api/kv/k", "v"));
    let before = cluster.node(1).json("/api/cluster/hash").expect("a hash");
    let good = json!({"op": "put", "key": "k", "text": "changed"});
    let long = "k".repeat(4097);
    let success = |op: Value| json!({"success": [good, op]});
    let compare = |compare: Value| json!({"compare": [compare], "success": [good]});
    let table = [
        (success(json!({"op": "put", "key": "", "text": ""})), 400, "invalid_argument", "success[1]: the key is empty"),
        (success(json!({"op": "get", "key": long})), 413, "key_too_large", "success[1]: the key has 4097 bytes"),
        (
            success(json!({"op": "put", "key": "k", "value": "?"})),
            400,
            "invalid_argument",
            "success[1]: \\\"value\\\" is no base64",
        ),
        (
            success(json!({"op": "put", "key": "k", "value": "", "text": ""})),
            400,
            "invalid_argument",
            "success[1]: give",
        ),
        (success(json!({"op": "put", "key": "k"})), 400, "invalid_argument", "success[1]: the put has no value"),
        (success(json!({"op": "put", "key": 7, "text": ""})), 400, "invalid_argument", "success[1]: invalid type"),
        (success(json!({"op": "get", "key": "k", "colour": 1})), 400, "invalid_argument", "success[1]: unknown field"),
        (success(json!({"op": "frob", "key": "k"})), 400, "invalid_argument", "success[1].op: unknown variant"),
        (
            success(json!({"op": "list", "prefix": "a", "start": "b"})),
            400,
            "invalid_argument",
            "success[1]: give prefix",
        ),
        (success(json!({"op": "list", "limit": 10_001})), 400, "invalid_argument", "success[1]: limit is 1..=10000"),
        (success(json!({"op": "delete_range"})), 400, "invalid_argument", "success[1]: name what to delete"),
        (
            success(json!({"op": "put", "key": "k", "text": "x".repeat(1536 * 1024 + 1)})),
            413,
            "value_too_large",
            "success[1]: the value has 1572865 bytes",
        ),
        (
            compare(json!({"key": "", "target": "lease", "op": "=", "value": 0})),
            400,
            "invalid_argument",
            "compare[0]: the key",
        ),
        (
            compare(json!({"key": "k", "target": "version", "op": "~", "value": 0})),
            400,
            "invalid_argument",
            "compare[0]",
        ),
        (
            compare(json!({"key": "k", "target": "version", "op": "=", "text": "1"})),
            400,
            "invalid_argument",
            "compare[0]",
        ),
        (json!({"success": vec![good.clone(); 129]}), 400, "invalid_argument", "success: more than 128"),
        (
            json!({"success": [good], "failure": vec![good.clone(); 129]}),
            400,
            "invalid_argument",
            "failure: more than 128",
        ),
        (json!({"success": [good], "sucess": []}), 400, "invalid_argument", "sucess"),
        (
            json!({"success": vec![json!({"op": "put", "key": "k", "text": "x".repeat(1_048_576)}); 8]}),
            413,
            "value_too_large",
            "success[7]: the transaction has more than 8388608 bytes",
        ),
        (
            json!({"success": [{"op": "put", "key": "k", "text": "x".repeat(16 << 20)}]}),
            413,
            "value_too_large",
            "16777216",
        ),
    ];
    for (body, status, code, says) in table {
        let answer = txn(&http, &body);
        assert_eq!((answer.status, answer.problem().as_str()), (status, code), "{says}: {answer:?}");
        assert!(answer.text().contains(says), "{says:?} is not in {}", answer.text());
    }
    assert_eq!(cluster.node(1).json("/api/cluster/hash").expect("a hash"), before, "nothing was changed");
}

#[test]
fn the_largest_transaction_goes_through_a_follower() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let follower = cluster.other_than(leader);
    let http = cluster.node(follower).http.clone();
    let put = |i: usize| json!({"op": "put", "key": format!("big/{i:03}"), "text": "x".repeat(65_000)});
    let created = done(&http, &json!({"success": (0..128).map(put).collect::<Vec<_>>()}));
    let results = created["results"].as_array().expect("results");
    assert_eq!(results.len(), 128);
    assert!(results.iter().all(|r| r["revision"] == created["revision"]), "one revision for all");
    let counted = done(&http, &json!({"success": [{"op": "list", "prefix": "big/", "count_only": true}]}));
    assert_eq!(counted["results"][0]["count"], 128);
    // A listing that is too long for one answer goes on over GET, at the revision that it shows.
    let first = done(&http, &json!({"success": [{"op": "list", "prefix": "big/", "limit": 100, "keys_only": true}]}));
    let next = first["results"][0]["next"].as_str().expect("more follow").to_owned();
    ask(&http, &crate::harness::delete("/api/kv?prefix=big/"));
    let rest = ask(&http, &get(&format!("/api/kv?prefix=big/&cursor={next}&keys_only=true"))).json();
    assert_eq!((&rest["count"], &rest["items"][0]["key"]), (&28.into(), &"big/100".into()), "{rest}");
    cluster.wait_same_hash(&[1, 2, 3]);
}

#[test]
fn money_moves_between_accounts_and_none_is_lost() {
    let mut cluster = Cluster::start(3);
    let addresses: Vec<String> = (1..=3).map(|i| cluster.node(i).http.clone()).collect();
    const ACCOUNTS: usize = 4;
    const TRANSFERS: usize = 20;
    let opened = (0..ACCOUNTS).map(|i| json!({"op": "put", "key": format!("account/{i}"), "text": "100"}));
    done(&addresses[0], &json!({"success": opened.collect::<Vec<_>>()}));
    let read_all = json!({"success": [{"op": "list", "prefix": "account/"}]});
    let balances = |answer: &Value| -> Vec<(u64, i64)> {
        let items: Vec<Item> = serde_json::from_value(answer["results"][0]["items"].clone()).expect("items");
        let balance = |item: &Item| {
            let value = item.value_bytes().expect("base64").expect("a value");
            std::str::from_utf8(&value).expect("digits").parse().expect("a number")
        };
        items.iter().map(|item| (item.mod_revision, balance(item))).collect()
    };
    let movers: Vec<_> = (0..3)
        .map(|mover| {
            let (address, read_all) = (addresses[mover].clone(), read_all.clone());
            std::thread::spawn(move || {
                let mut moved = 0;
                for round in 0..TRANSFERS {
                    let seen = balances(&done(&address, &read_all));
                    assert_eq!(seen.iter().map(|(_, balance)| balance).sum::<i64>(), 400, "a read of all accounts");
                    let (from, to) = ((mover + round) % ACCOUNTS, (mover + round + 1) % ACCOUNTS);
                    let write = |account: usize, change: i64| {
                        let balance = (seen[account].1 + change).to_string();
                        json!({"op": "put", "key": format!("account/{account}"), "text": balance})
                    };
                    let unchanged = |account: usize| {
                        let (key, revision) = (format!("account/{account}"), seen[account].0);
                        json!({"key": key, "target": "mod_revision", "op": "=", "value": revision})
                    };
                    let answer = done(
                        &address,
                        &json!({
                            "compare": [unchanged(from), unchanged(to)],
                            "success": [write(from, -1), write(to, 1)],
                        }),
                    );
                    moved += usize::from(answer["succeeded"] == true);
                }
                moved
            })
        })
        .collect();
    let moved: usize = movers.into_iter().map(|mover| mover.join().expect("it ended")).sum();
    assert!(moved > 0, "some transfers found both accounts unchanged");
    let at_the_end = balances(&done(&addresses[1], &read_all));
    assert_eq!(at_the_end.iter().map(|(_, balance)| balance).sum::<i64>(), 400);
    cluster.wait_same_hash(&[1, 2, 3]);
}
