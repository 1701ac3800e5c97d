//! `client bench` counts what the server counts.

use serde_json::{Value, json};

use crate::cli::client;
use crate::cluster::status;
use crate::fake::{Fake, Reaction};

async fn report(endpoint: &str, arguments: &[&str]) -> Value {
    let output = client(endpoint, &[&["bench", "-o", "json", "--warmup", "0s"], arguments].concat()).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(report: &Value, path: &str) -> u64 {
    report.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {report}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_add_up() {
    let fake = Fake::start(|n, request| match (n % 10, request.method.as_str()) {
        (3, _) => Reaction::problem(429, "overloaded"),
        (7, _) => Reaction::Break,
        (_, "PUT") => Reaction::put(),
        _ => Reaction::record("v"),
    })
    .await;
    let arguments =
        ["--connections", "4", "--keys", "100", "--read-share", "0.5", "--duration", "500ms", "--value-size", "32"];
    let report = report(&fake.endpoint, &arguments).await;
    let seen = fake.seen();
    let errors: u64 = report["errors"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    let (reads, writes) = (number(&report, "/reads/requests"), number(&report, "/writes/requests"));
    assert!(reads > 0 && writes > 0 && errors > 0, "{report}");
    assert_eq!(reads + writes, number(&report, "/all/requests"));
    // The keys are written once beforehand, and again where that was refused.
    let sent_gets = seen.iter().filter(|seen| seen.method == "GET").count() as u64;
    let sent = seen.len() as u64;
    let load_refused = sent - 100 - reads - writes - errors;
    assert!(sent_gets >= reads && load_refused <= 100, "{report}: {sent} requests arrived");
    assert!(number(&report, "/errors/overloaded") > 0 && number(&report, "/errors/connection broke") > 0);
    assert!(number(&report, "/all/p50_us") <= number(&report, "/all/max_us"));
    assert!(seen.iter().all(|seen| seen.target.starts_with("/api/kv/bench/000000")));
    assert!(seen.iter().filter(|seen| seen.method == "PUT").all(|seen| seen.body.len() == 32));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_errors_every_request_is_counted_once() {
    let fake = Fake::start(|_, _| Reaction::put()).await;
    let report = report(&fake.endpoint, &["--connections", "3", "--keys", "10", "--duration", "300ms"]).await;
    assert_eq!(number(&report, "/writes/requests"), fake.seen().len() as u64);
    assert_eq!((number(&report, "/reads/requests"), &report["errors"]), (0, &json!({})));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_goes_where_it_is_told_to() {
    let leader = Fake::start(|_, _| Reaction::put()).await;
    let address = leader.endpoint.trim_start_matches("http://").to_owned();
    let asked = Fake::start(move |_, _| {
        let mut status = status("b", &["a", "b"]);
        status["members"][0]["http"] = json!(address);
        Reaction::json(200, &status)
    })
    .await;
    let arguments = ["--target", "leader", "--connections", "2", "--keys", "10", "--duration", "200ms"];
    report(&asked.endpoint, &arguments).await;
    assert!(!leader.seen().is_empty());
    assert_eq!(asked.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_a_single_success_fails() {
    let arguments = ["bench", "--connections", "2", "--keys", "10", "--warmup", "0s", "--duration", "200ms"];
    let output = client(&Fake::nobody().await, &arguments).await;
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).contains("error not connected"));
}
