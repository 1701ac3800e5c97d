//! Leases: what is sent, and what is sent again.

use std::time::Duration;

use hexkv_client::api::{Code, Ttl, TxnOp, TxnPut, TxnRequest};
use hexkv_client::kv::{PutLease, PutOptions};
use hexkv_client::{Client, Error, Options};
use serde_json::{Value, json};

use crate::fake::{Fake, Reaction};

const TTL: Ttl = Ttl(Duration::from_secs(90));

fn client(endpoints: &[&str]) -> Client {
    Client::new(endpoints, Options::default()).unwrap()
}

fn lease() -> Reaction {
    Reaction::json(200, &json!({"id": 7, "ttl": "1m 30s", "ttl_ms": 90_000}))
}

#[tokio::test]
async fn a_keepalive_is_repeated_elsewhere_and_a_grant_is_not() {
    for (reaction, nothing_happened) in [
        (Reaction::Break, false),
        (Reaction::problem(504, "outcome_unknown"), false),
        (Reaction::problem(503, "no_leader"), true),
    ] {
        let told = reaction.clone();
        let fake = Fake::start(move |_, _| told.clone()).await;
        let spare = Fake::start(|_, _| lease()).await;
        let kept = client(&[&fake.endpoint, &spare.endpoint]).keep_alive(7).await.unwrap();
        assert_eq!((kept.id, kept.ttl), (7, TTL));
        let seen = &spare.seen()[0];
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/api/leases/7/keepalive"));
        let granted = client(&[&fake.endpoint, &spare.endpoint]).grant_lease(TTL).await;
        assert_eq!(matches!(granted, Err(Error::Indeterminate { .. })), !nothing_happened, "{reaction:?}: {granted:?}");
    }
}

#[tokio::test]
async fn a_lease_that_ended_is_said_to_be_gone() {
    let fake = Fake::start(|_, _| Reaction::problem(404, "lease_not_found")).await;
    let client = client(&[&fake.endpoint]);
    let gone = |result: Result<(), Error>| {
        assert!(matches!(result, Err(Error::Rejected { code: Code::LeaseNotFound, .. })), "{result:?}");
    };
    gone(client.keep_alive(7).await.map(drop));
    gone(client.lease(7).await.map(drop));
    gone(client.revoke_lease(7).await.map(drop));
    assert_eq!(fake.seen().len(), 3);
}

#[tokio::test]
async fn times_and_leases_travel_as_the_server_reads_them() {
    let fake = Fake::start(|_, request| match request.target.as_str() {
        "/api/leases" => lease(),
        "/api/txn" => Reaction::json(200, &json!({"revision": 1, "succeeded": true, "results": []})),
        _ => Reaction::put(),
    })
    .await;
    let client = client(&[&fake.endpoint]);
    client.grant_lease(TTL).await.unwrap();
    for lease in [PutLease::Id(7), PutLease::Ttl(TTL)] {
        client.put("k", "v", &PutOptions { lease: Some(lease), ..PutOptions::default() }).await.unwrap();
    }
    let put = TxnPut { key: "k".to_owned(), ttl: Some(TTL), ..TxnPut::default() };
    client.txn(&TxnRequest::default().then(TxnOp::Put(put))).await.unwrap();
    let seen = fake.seen();
    let body = |at: usize| serde_json::from_slice::<Value>(&seen[at].body).unwrap();
    assert_eq!(body(0), json!({"ttl": "1m 30s"}));
    assert_eq!(seen[1].target, "/api/kv/k?lease=7");
    assert_eq!(seen[2].target, "/api/kv/k?ttl=1m%2030s");
    assert_eq!(body(3), json!({"success": [{"op": "put", "key": "k", "value": "", "ttl": "1m 30s"}]}));
}
