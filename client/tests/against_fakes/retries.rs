//! What is sent again, and what never is.

use std::time::{Duration, Instant};

use hexkv_client::api::{Code, TxnOp, TxnRequest};
use hexkv_client::kv::{DeleteOptions, PutOptions, ReadOptions};
use hexkv_client::{Client, Error, Options};

use crate::fake::{Fake, Reaction};

fn client(endpoints: &[&str]) -> Client {
    Client::new(endpoints, Options::default()).unwrap()
}

async fn put(client: &Client) -> Result<u64, Error> {
    client.put("k", "v", &PutOptions::default()).await.map(|answer| answer.revision)
}

async fn get(client: &Client) -> Result<Option<String>, Error> {
    let record = client.get("k", &ReadOptions::default()).await?;
    Ok(record.map(|record| String::from_utf8(record.value.to_vec()).unwrap()))
}

#[tokio::test]
async fn a_write_that_may_have_been_delivered_is_never_repeated() {
    for reaction in [
        Reaction::Break,
        Reaction::problem(504, "outcome_unknown"),
        Reaction::problem(500, "internal"),
        Reaction::json(502, &serde_json::json!("a proxy's words")),
        Reaction::json(200, &serde_json::json!({"not": "a put answer"})),
    ] {
        let told = reaction.clone();
        let fake = Fake::start(move |_, _| told.clone()).await;
        let spare = Fake::start(|_, _| Reaction::put()).await;
        let client = client(&[&fake.endpoint, &spare.endpoint]);
        let result = put(&client).await;
        assert!(matches!(result, Err(Error::Indeterminate { .. })), "{reaction:?}: {result:?}");
        assert_eq!(fake.seen().len(), 1, "{reaction:?}");
        assert_eq!(spare.seen().len(), 0, "{reaction:?}");
    }
}

#[tokio::test]
async fn deletes_and_membership_changes_are_writes_too() {
    let fake = Fake::start(|_, _| Reaction::Break).await;
    let client = client(&[&fake.endpoint]);
    let indeterminate =
        |result: Result<(), Error>| assert!(matches!(result, Err(Error::Indeterminate { .. })), "{result:?}");
    indeterminate(client.delete("k", &DeleteOptions::default()).await.map(drop));
    indeterminate(client.delete_prefix("k").await.map(drop));
    let txn = TxnRequest::default().then(TxnOp::get("k"));
    indeterminate(client.txn(&txn).await.map(drop));
    indeterminate(client.join("hex_hub1@127.0.0.1", false).await.map(drop));
    indeterminate(client.leave().await);
    indeterminate(client.remove_member("hex_hub2@127.0.0.1").await);
    indeterminate(client.transfer_leader("hex_hub2@127.0.0.1").await);
    indeterminate(client.set_replication_factor(3).await);
    assert_eq!(fake.seen().len(), 8);
}

#[tokio::test]
async fn a_write_without_answer_is_given_up_at_the_deadline() {
    let fake = Fake::start(|_, _| Reaction::Silence).await;
    let options = Options { timeout: Duration::from_millis(200), ..Options::default() };
    let client = Client::new([&fake.endpoint], options).unwrap();
    let began = Instant::now();
    assert!(matches!(put(&client).await, Err(Error::Indeterminate { .. })));
    assert!(began.elapsed() >= Duration::from_millis(200) && began.elapsed() < Duration::from_secs(5));
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn a_write_on_a_kept_connection_that_broke_under_it_is_not_repeated() {
    let fake = Fake::start(|n, _| if n == 0 { Reaction::put() } else { Reaction::Break }).await;
    let client = client(&[&fake.endpoint]);
    put(&client).await.unwrap();
    assert!(matches!(put(&client).await, Err(Error::Indeterminate { .. })));
    assert_eq!(fake.seen().len(), 2);
}

#[tokio::test]
async fn a_read_is_repeated_after_any_of_these() {
    for reaction in [Reaction::Break, Reaction::problem(504, "outcome_unknown"), Reaction::problem(503, "no_leader")] {
        let fake = Fake::start(move |n, _| if n < 2 { reaction.clone() } else { Reaction::record("v") }).await;
        assert_eq!(get(&client(&[&fake.endpoint])).await.unwrap().as_deref(), Some("v"));
        assert_eq!(fake.seen().len(), 3);
    }
}

#[tokio::test]
async fn a_read_moves_on_from_a_silent_endpoint() {
    let silent = Fake::start(|_, _| Reaction::Silence).await;
    let fake = Fake::start(|_, _| Reaction::record("v")).await;
    let options = Options { read_attempt_timeout: Duration::from_millis(100), ..Options::default() };
    let client = Client::new([&silent.endpoint, &fake.endpoint], options).unwrap();
    assert_eq!(get(&client).await.unwrap().as_deref(), Some("v"));
    assert_eq!(silent.seen().len(), 1);
}

#[tokio::test]
async fn a_refused_connection_lets_a_write_go_elsewhere() {
    let fake = Fake::start(|_, _| Reaction::put()).await;
    let client = client(&[&Fake::nobody().await, &fake.endpoint]);
    for _ in 0..4 {
        assert_eq!(put(&client).await.unwrap(), 7);
    }
    assert_eq!(fake.seen().len(), 4);
}

#[tokio::test]
async fn a_write_refused_with_503_is_sent_to_another_node() {
    let minority = Fake::start(|_, _| Reaction::problem(503, "no_leader").with("Retry-After", 60)).await;
    let fake = Fake::start(|_, _| Reaction::put()).await;
    let client = client(&[&minority.endpoint, &fake.endpoint]);
    for _ in 0..4 {
        assert_eq!(put(&client).await.unwrap(), 7);
    }
    assert_eq!(minority.seen().len(), 1, "a node that asked for a minute's rest was asked again");
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let overloaded = || Reaction::problem(429, "overloaded").with("Retry-After", 1);
    let fake = Fake::start(move |n, _| if n == 0 { overloaded() } else { Reaction::put() }).await;
    let spare = Fake::start(|_, _| Reaction::put()).await;
    let began = Instant::now();
    assert_eq!(put(&client(&[&fake.endpoint, &spare.endpoint])).await.unwrap(), 7);
    assert!(began.elapsed() >= Duration::from_secs(1), "asked again after {:?}", began.elapsed());
}

#[tokio::test]
async fn a_wait_beyond_the_deadline_is_not_begun() {
    let fake = Fake::start(|_, _| Reaction::problem(429, "overloaded").with("Retry-After", 3600)).await;
    let began = Instant::now();
    let error = put(&client(&[&fake.endpoint])).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { code: Some(Code::Overloaded), .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn attempts_are_bounded() {
    let fake = Fake::start(|_, _| Reaction::problem(503, "not_in_cluster")).await;
    let options = Options { attempts_max: 3, ..Options::default() };
    let error = put(&Client::new([&fake.endpoint], options).unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { code: Some(Code::NotInCluster), .. }), "{error:?}");
    assert_eq!(fake.seen().len(), 3);

    let options = Options { attempts_max: 2, ..Options::default() };
    let error = put(&Client::new([Fake::nobody().await], options).unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { code: None, .. }), "{error:?}");
}

#[tokio::test]
async fn a_refusal_is_final_and_says_why() {
    for (status, code) in [
        (400, Code::InvalidArgument),
        (409, Code::LockHeld),
        (410, Code::Compacted),
        (412, Code::PreconditionFailed),
        (413, Code::ValueTooLarge),
    ] {
        let name = serde_json::to_value(code).unwrap().as_str().unwrap().to_owned();
        let fake = Fake::start(move |_, _| Reaction::problem(status, &name).with("ETag", "\"41\"")).await;
        match put(&client(&[&fake.endpoint])).await.unwrap_err() {
            Error::Rejected { code: got, problem, current_revision, .. } => {
                assert_eq!((got, problem.code, problem.status), (code, code, status));
                assert_eq!((problem.detail.as_str(), current_revision), ("as told", Some(41)));
            }
            other => panic!("{code:?}: {other:?}"),
        }
        assert_eq!(fake.seen().len(), 1);
    }
}

#[tokio::test]
async fn an_unknown_code_still_has_its_kind() {
    let fake = Fake::start(|_, _| Reaction::problem(409, "invented_later")).await;
    let error = put(&client(&[&fake.endpoint])).await.unwrap_err();
    assert!(matches!(&error, Error::Rejected { problem, .. } if problem.detail == "as told"), "{error:?}");
}

#[tokio::test]
async fn what_cannot_be_sent_is_not() {
    let fake = Fake::start(|_, _| Reaction::put()).await;
    let endpoint = fake.endpoint.as_str();
    let one = client(&[endpoint]);
    let bad_header = PutOptions { content_type: Some("a\nb".to_owned()), ..PutOptions::default() };
    for result in [
        one.put("", "v", &PutOptions::default()).await.map(drop),
        one.put("k", "v", &bad_header).await.map(drop),
        client(&[endpoint, endpoint]).join("hex_hub1@127.0.0.1", false).await.map(drop),
        client(&[endpoint, endpoint]).leave().await,
        Client::new(["nonsense"], Options::default()).map(drop),
        Client::new([""; 0], Options::default()).map(drop),
        Client::new([endpoint], Options { attempts_max: 0, ..Options::default() }).map(drop),
    ] {
        assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
    }
    assert!(fake.seen().is_empty());
}

fn exactly_once(endpoints: &[&str]) -> Client {
    let read_attempt_timeout = Duration::from_millis(200);
    Client::new(endpoints, Options { exactly_once: true, read_attempt_timeout, ..Options::default() }).unwrap()
}

fn idempotency_keys(fake: &Fake) -> Vec<String> {
    fake.seen().iter().map(|seen| seen.header("idempotency-key").expect("a key").to_owned()).collect()
}

#[tokio::test]
async fn a_write_with_a_key_is_repeated_under_it_until_its_outcome_is_known() {
    for reaction in [Reaction::Break, Reaction::Silence, Reaction::problem(504, "outcome_unknown")] {
        let fake = Fake::start(move |n, _| if n < 2 { reaction.clone() } else { Reaction::put() }).await;
        assert_eq!(put(&exactly_once(&[&fake.endpoint])).await.unwrap(), 7);
        let keys = idempotency_keys(&fake);
        assert_eq!(keys.len(), 3);
        assert!(keys.iter().all(|key| *key == keys[0] && key.len() == 32), "{keys:?}");
    }
}

#[tokio::test]
async fn each_write_has_a_key_of_its_own_or_the_one_that_is_given() {
    let fake = Fake::start(|_, _| Reaction::put()).await;
    let client = exactly_once(&[&fake.endpoint]);
    put(&client).await.unwrap();
    put(&client).await.unwrap();
    let given = PutOptions { idempotency_key: Some("mine".into()), ..PutOptions::default() };
    client.put("k", "v", &given).await.unwrap();
    let keys = idempotency_keys(&fake);
    assert!(keys[0] != keys[1] && keys[2] == "mine", "{keys:?}");
}

#[tokio::test]
async fn a_write_that_was_unknown_once_stays_unknown_when_the_rest_refuses() {
    let fake = Fake::start(|n, _| if n == 0 { Reaction::Break } else { Reaction::problem(503, "no_leader") }).await;
    let options = Options { exactly_once: true, attempts_max: 3, ..Options::default() };
    let result = put(&Client::new([&fake.endpoint], options).unwrap()).await;
    assert!(matches!(result, Err(Error::Indeterminate { .. })), "{result:?}");
    assert_eq!(fake.seen().len(), 3);
}

#[tokio::test]
async fn a_membership_change_is_not_repeated_whatever_is_asked_of_writes() {
    let fake = Fake::start(|_, _| Reaction::Break).await;
    let result = exactly_once(&[&fake.endpoint]).leave().await;
    assert!(matches!(result, Err(Error::Indeterminate { .. })), "{result:?}");
    assert_eq!(fake.seen().len(), 1);
}
