//! Members, leadership, health, and nodes that wait for each other.

use std::time::Duration;

use hexkv_client::cluster::HealthCheck;
use hexkv_client::local::LocalCluster;
use hexkv_client::{Client, Error, Options};
use serde_json::{Value, json};

use crate::fake::{Fake, Reaction};

/// A status of a cluster with these members, all up, led by the first.
pub fn status(node: &str, members: &[&str]) -> Value {
    let members: Vec<Value> = members
        .iter()
        .map(|name| {
            json!({"name": name, "id": "1f", "role": "voter", "state": "up", "http": "127.0.0.1:4000",
                   "raft": "127.0.0.1:9100", "version": "0.1.0", "last_contact_ms": 3, "matched_index": 8,
                   "lag_entries": 0})
        })
        .collect();
    json!({"cluster_id": "c1", "node": node, "leader": members[0]["name"], "term": 2, "replication_factor": 3,
           "quorum": true, "members": members, "commit_index": 8, "applied_index": 8, "revision": 5})
}

fn client(fake: &Fake) -> Client {
    Client::new([&fake.endpoint], Options { attempts_max: 1, ..Options::default() }).unwrap()
}

#[tokio::test]
async fn requests_are_those_of_the_api() {
    let fake = Fake::start(|_, request| match request.target.split('?').next().unwrap() {
        "/api/cluster/members" => Reaction::json(200, &json!({"members": status("a", &["a"])["members"]})),
        "/api/cluster/hash" => Reaction::json(200, &json!({"applied_index": 8, "revision": 5, "hash": "00ff"})),
        "/health/ready" => Reaction::json(503, &json!({"status": "unavailable", "reason": "no leader"})),
        "/health" => Reaction::json(200, &json!({"status": "degraded", "reason": "a voter is down"})),
        _ => Reaction::json(200, &status("a", &["a"])),
    })
    .await;
    let client = client(&fake);
    assert_eq!(client.status().await.unwrap().leader_member().unwrap().name, "a");
    assert_eq!(client.members().await.unwrap().len(), 1);
    assert_eq!(client.join("b@127.0.0.1", true).await.unwrap().node, "a");
    client.leave().await.unwrap();
    client.remove_member("b@127.0.0.1").await.unwrap();
    client.transfer_leader("b@127.0.0.1").await.unwrap();
    client.set_replication_factor(5).await.unwrap();
    assert_eq!(client.hash().await.unwrap().hash, "00ff");
    assert_eq!(client.health(HealthCheck::Node).await.unwrap().status, "degraded");
    let not_ready = client.health(HealthCheck::Ready).await;
    assert!(
        matches!(&not_ready, Err(Error::Unavailable { detail, .. }) if detail.contains("no leader")),
        "{not_ready:?}"
    );

    let sent: Vec<String> = fake.seen().iter().map(|seen| format!("{} {}", seen.method, seen.target)).collect();
    assert_eq!(
        sent,
        [
            "GET /api/cluster/status",
            "GET /api/cluster/members",
            "POST /api/cluster/join?timeout=10000ms",
            "POST /api/cluster/leave?timeout=10000ms",
            "DELETE /api/cluster/members/b%40127.0.0.1?timeout=10000ms",
            "POST /api/cluster/transfer-leader?timeout=10000ms",
            "PUT /api/cluster/replication-factor?timeout=10000ms",
            "GET /api/cluster/hash",
            "GET /health",
            "GET /health/ready",
        ]
    );
    let bodies: Vec<Value> = [2, 5, 6].map(|n| serde_json::from_slice(&fake.seen()[n].body).unwrap()).into();
    assert_eq!(bodies[0], json!({"node": "b@127.0.0.1", "discard_local_data": true}));
    assert_eq!(bodies[1..], [json!({"to": "b@127.0.0.1"}), json!({"value": 5})]);
}

/// A local cluster whose node 1 is the fake.
fn local(fake: &Fake) -> LocalCluster {
    let port = fake.endpoint.rsplit_once(':').unwrap().1.parse().unwrap();
    LocalCluster::new(port, 1, 1).unwrap()
}

#[tokio::test]
async fn a_cluster_is_waited_for_until_it_has_formed() {
    let name = LocalCluster::name(1);
    let fake = Fake::start(move |n, request| match (n, request.target.as_str()) {
        (0..6, _) => Reaction::problem(503, "not_in_cluster"),
        (_, "/health/ready") => Reaction::json(200, &json!({"status": "ok"})),
        _ => Reaction::json(200, &status(&name, &[&name])),
    })
    .await;
    let local = local(&fake);
    assert!(!local.cluster_formed(1).await.unwrap());
    assert!(matches!(local.connect_cluster(1).await, Err(Error::Unavailable { .. })));
    let client = local.wait_for_cluster(1, Duration::from_secs(20)).await.unwrap();
    assert_eq!(client.status().await.unwrap().node, LocalCluster::name(1));
    assert!(local.cluster_formed(1).await.unwrap());
    assert_eq!(local.discover_nodes(1).await.unwrap()[0].index, 1);
    assert_eq!(local.cluster_info().await.unwrap().revision, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_finds_and_waits_too() {
    let name = LocalCluster::name(1);
    let fake = Fake::start(move |n, request| match (n, request.target.as_str()) {
        (0..4, "/health/ready") => Reaction::problem(503, "no_leader"),
        (_, "/health/ready") => Reaction::json(200, &json!({"status": "ok"})),
        _ => Reaction::json(200, &status(&name, &[&name])),
    })
    .await;
    let port = fake.endpoint.rsplit_once(':').unwrap().1.to_owned();
    let run = move || {
        ["wait", "discover"].map(|verb| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_client"));
            command.arg(verb).env_clear().env("BASE_HTTP_PORT", &port).env("MAX_CLUSTER_SIZE", "1");
            let output = command.env("CLUSTER_SIZE", "1").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        })
    };
    let [waited, discovered] = tokio::task::spawn_blocking(run).await.unwrap();
    assert_eq!(waited, "a cluster of 1 serves\n");
    assert!(discovered.contains("hex_hub1@127.0.0.1") && discovered.contains(&fake.endpoint), "{discovered}");
    assert!(fake.seen().len() > 4);
}

#[tokio::test]
async fn a_cluster_that_never_forms_is_given_up() {
    let other = LocalCluster::name(2);
    let fake = Fake::start(move |_, request| match request.target.as_str() {
        "/health/ready" => Reaction::json(200, &json!({"status": "ok"})),
        _ => Reaction::json(200, &status(&other, &[&other])),
    })
    .await;
    let result = local(&fake).wait_for_cluster(1, Duration::from_millis(300)).await;
    let says_why = |detail: &str| detail.contains("does not know hex_hub1@127.0.0.1 as a member");
    assert!(matches!(&result, Err(Error::Unavailable { detail, .. }) if says_why(detail)), "{result:?}");
}

#[tokio::test]
async fn sizes_and_ports_out_of_range_are_refused() {
    let cluster = LocalCluster::new(4000, 10, 10).unwrap();
    assert_eq!((cluster.http_port(1), cluster.http_port(3), cluster.raft_port(2)), (4000, 4020, 9110));
    assert_eq!(LocalCluster::name(2), "hex_hub2@127.0.0.1");
    for size in [0, 11] {
        let error = cluster.cluster_formed(size).await.unwrap_err();
        assert!(error.to_string().contains("1..=10"), "{error}");
    }
    for (base, spacing) in [(0, 10), (60_000, 1000), (4000, 0), (4000, 5100)] {
        assert!(matches!(LocalCluster::new(base, spacing, 10), Err(Error::Invalid(_))), "{base} {spacing}");
    }
}
