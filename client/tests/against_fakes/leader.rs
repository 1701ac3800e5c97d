//! A client that asks the leader first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hexkv_client::api::Code;
use hexkv_client::kv::PutOptions;
use hexkv_client::{Client, Error, Options};
use serde_json::{Value, json};

use crate::cluster::status;
use crate::fake::{Fake, Reaction, Seen};

/// Longer than it takes to find a new leader.
const PATIENCE: Duration = Duration::from_secs(20);

/// The status of a cluster whose first member leads and listens at `leader`.
fn led_by(leader: &str) -> Value {
    let mut status = status("b", &["a", "b"]);
    status["members"][0]["http"] = json!(leader.trim_start_matches("http://"));
    status
}

fn to_leader(asked: &Fake) -> Client {
    Client::new([&asked.endpoint], Options::default()).unwrap().to_leader()
}

async fn put(client: &Client) -> Result<u64, Error> {
    client.put("k", "v", &PutOptions::default()).await.map(|answer| answer.revision)
}

fn puts(fake: &Fake) -> usize {
    fake.seen().iter().filter(|seen| seen.method == "PUT").count()
}

fn questions(fake: &Fake) -> usize {
    fake.seen().iter().filter(|seen| asks_who_leads(seen)).count()
}

fn asks_who_leads(seen: &Seen) -> bool {
    seen.target == "/api/cluster/status"
}

/// An endpoint that serves, and says that `leader` leads.
async fn endpoint(leader: String) -> Fake {
    Fake::start(
        move |_, request| {
            if asks_who_leads(request) { Reaction::json(200, &led_by(&leader)) } else { Reaction::put() }
        },
    )
    .await
}

#[tokio::test]
async fn requests_go_to_the_leader_that_the_endpoints_name() {
    let leader = Fake::start(|_, _| Reaction::put()).await;
    let asked = endpoint(leader.endpoint.clone()).await;
    let client = to_leader(&asked);
    for _ in 0..3 {
        put(&client).await.unwrap();
    }
    assert_eq!((puts(&leader), puts(&asked), questions(&asked)), (3, 0, 1));
    let named = Client::new([&asked.endpoint], Options::default()).unwrap().leader().await.unwrap();
    assert_eq!(named.to_string(), leader.endpoint);
}

#[tokio::test]
async fn another_leader_is_found_when_one_fails() {
    let resigned = Arc::new(AtomicBool::new(false));
    let resigned_too = Arc::clone(&resigned);
    let first = Fake::start(move |_, _| match resigned_too.load(Ordering::SeqCst) {
        false => Reaction::put(),
        true => Reaction::problem(503, "no_leader"),
    })
    .await;
    let second = Fake::start(|_, _| Reaction::put()).await;
    let (before, after, over) = (first.endpoint.clone(), second.endpoint.clone(), Arc::clone(&resigned));
    let asked = Fake::start(move |_, request| match (asks_who_leads(request), over.load(Ordering::SeqCst)) {
        (true, false) => Reaction::json(200, &led_by(&before)),
        (true, true) => Reaction::json(200, &led_by(&after)),
        (false, _) => Reaction::put(),
    })
    .await;
    let client = to_leader(&asked);
    put(&client).await.unwrap();
    assert_eq!(puts(&first), 1);
    resigned.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + PATIENCE;
    let mut answered = 1;
    while puts(&second) == 0 {
        assert!(Instant::now() < deadline, "the new leader is not found");
        put(&client).await.unwrap();
        answered += 1;
    }
    assert!(puts(&first) <= 2, "the one that failed is not asked again");
    assert_eq!(puts(&asked) + puts(&second) + 1, answered, "each put was done once");
}

#[tokio::test]
async fn a_change_that_the_leader_may_have_done_is_not_repeated() {
    let leader = Fake::start(|n, _| if n == 0 { Reaction::Break } else { Reaction::put() }).await;
    let asked = endpoint(leader.endpoint.clone()).await;
    let client = to_leader(&asked);
    let result = put(&client).await;
    assert!(matches!(result, Err(Error::Indeterminate { .. })), "{result:?}");
    assert_eq!((puts(&leader), puts(&asked)), (1, 0));
    put(&client).await.unwrap();
    assert_eq!(puts(&leader) + puts(&asked), 2, "the next one is sent once");
}

#[tokio::test]
async fn without_a_leader_that_answers_the_endpoints_serve() {
    let unknown = Fake::start(|_, request| {
        let mut status = led_by("127.0.0.1:1");
        status["leader"] = Value::Null;
        if asks_who_leads(request) { Reaction::json(200, &status) } else { Reaction::put() }
    })
    .await;
    let silent = Fake::start(|_, request| match asks_who_leads(request) {
        true => Reaction::problem(503, "not_in_cluster"),
        false => Reaction::put(),
    })
    .await;
    let gone = endpoint(Fake::nobody().await).await;
    for asked in [&unknown, &silent, &gone] {
        let client = to_leader(asked);
        put(&client).await.unwrap();
        assert_eq!(puts(asked), 1);
        assert!(questions(asked) >= 1);
    }
    let named = Client::new([&unknown.endpoint], Options::default()).unwrap().leader().await;
    assert!(matches!(named, Err(Error::Unavailable { code: Some(Code::NoLeader), .. })), "{named:?}");
}

#[tokio::test]
async fn what_is_said_to_a_certain_node_is_not_said_to_the_leader() {
    let leader = Fake::start(|_, _| Reaction::json(200, &json!({}))).await;
    let asked = endpoint(leader.endpoint.clone()).await;
    let client = to_leader(&asked);
    for refused in [client.join("b@127.0.0.1", true).await.map(drop), client.leave().await] {
        assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    }
    assert!(leader.seen().is_empty() && asked.seen().is_empty());
}
