//! Every expression of the Grafana dashboard and of the alerts names metrics and labels that nodes tell.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::Value;

use crate::{
    harness::{Cluster, Events, get, put, request},
    metrics::Page,
};

/// Words of the expressions that are no metrics.
const WORDS: [&str; 13] = [
    "rate",
    "increase",
    "sum",
    "max",
    "min",
    "by",
    "histogram_quantile",
    "label_values",
    "le",
    "job",
    "instance",
    "or",
    "absent",
];
/// Labels that Prometheus itself adds.
const ADDED: [&str; 2] = ["job", "instance"];

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the repository");
    std::fs::read_to_string(root.join("deploy").join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Where something is asked, what, and which labels its text shows besides.
type Asked = (String, String, Vec<String>);

/// What the dashboard asks, by the titles of its panels.
fn panels() -> Vec<Asked> {
    let dashboard: Value = serde_json::from_str(&read("grafana/hexkv.json")).expect("JSON");
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let expression = target["expr"].as_str().expect("an expression").to_owned();
            found.push((title.to_owned(), expression, shown(target["legendFormat"].as_str().expect("a legend"))));
        }
    }
    for variable in
        dashboard["templating"]["list"].as_array().expect("variables").iter().filter(|v| v["type"] == "query")
    {
        found.push(("variable".to_owned(), variable["query"].as_str().expect("a query").to_owned(), Vec::new()));
    }
    found
}

/// The labels in `{{label}}` and `{{ $labels.label }}`.
fn shown(text: &str) -> Vec<String> {
    let inside = text.split("{{").skip(1).filter_map(|rest| rest.split_once("}}"));
    inside.map(|(label, _)| label.trim().trim_start_matches("$labels.").to_owned()).collect()
}

fn alerts() -> Vec<Asked> {
    let text = read("prometheus/alerts.yml");
    let mut name = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(alert) = line.strip_prefix("- alert: ") {
            name = alert.to_owned();
        }
        if let Some(expression) = line.strip_prefix("expr: ") {
            found.push((name.clone(), expression.to_owned(), Vec::new()));
        }
        if let Some(summary) = line.strip_prefix("summary: ") {
            found.last_mut().expect("the expression comes first").2 = shown(summary);
        }
    }
    assert_eq!(found.len(), text.matches("- alert:").count(), "each alert has an expression on one line");
    found
}

/// Where a word of an expression stands.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Open,
    /// In the braces behind a metric.
    Matchers,
    /// A value there.
    Value,
    /// In the parentheses behind `by`.
    Grouping,
    /// In the brackets behind a metric.
    Range,
}

/// The metrics that `expression` names, and the labels that it asks of them.
fn named(expression: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut metrics, mut labels) = (BTreeSet::new(), BTreeSet::new());
    let (mut place, mut last) = (Place::Open, String::new());
    let mut word = String::new();
    for c in expression.chars().chain([' ']) {
        if c.is_ascii_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        if word.starts_with(|first: char| first.is_ascii_alphabetic()) {
            match place {
                Place::Matchers | Place::Grouping => drop(labels.insert(word.clone())),
                Place::Open if !WORDS.contains(&word.as_str()) => drop(metrics.insert(word.clone())),
                Place::Open | Place::Value | Place::Range => {}
            }
            last.clone_from(&word);
        }
        word.clear();
        place = match (place, c) {
            (Place::Open, '{') | (Place::Value, '"') => Place::Matchers,
            (Place::Matchers, '"') => Place::Value,
            (Place::Open, '[') => Place::Range,
            (Place::Open, '(') if last == "by" => Place::Grouping,
            (Place::Matchers, '}') | (Place::Range, ']') | (Place::Grouping, ')') => Place::Open,
            (same, _) => same,
        };
    }
    (metrics, labels)
}

#[test]
fn metrics_and_labels_of_an_expression_are_found() {
    let set = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<BTreeSet<_>>();
    let expression = r#"histogram_quantile(0.99, sum by (le, route) (rate(a_bucket{job=~"$job", status="5xx"}[$__rate_interval]))) > b{x="y"}"#;
    assert_eq!(named(expression), (set(&["a_bucket", "b"]), set(&["le", "route", "job", "status", "x"])));
}

#[test]
fn every_metric_and_label_of_dashboard_and_alerts_is_told_by_a_node() {
    let mut cluster = Cluster::start(2);
    let leader = cluster.leader();
    let http = cluster.node(leader).http.clone();
    assert_eq!(request(&http, &put("/api/kv/k", "v")).expect("an answer").status, 200);
    assert_eq!(request(&http, &get("/api/kv/k")).expect("an answer").status, 200);
    let mut watch = Events::begin(&http, "/api/watch", None);
    watch.must();
    let page = Page::of(cluster.node(leader));
    // By the names of samples: what a node tells, and with which labels.
    let mut told: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::from([("up", BTreeSet::new())]);
    for family in page.0.values() {
        for (name, (labels, _)) in &family.samples {
            told.entry(name).or_default().extend(labels.keys().map(String::as_str));
        }
    }
    let expressions: Vec<Asked> = panels().into_iter().chain(alerts()).collect();
    assert!(expressions.len() >= 40, "{}", expressions.len());
    let mut used = BTreeSet::new();
    for (place, expression, shown) in &expressions {
        let (metrics, mut labels) = named(expression);
        labels.extend(shown.iter().cloned());
        assert!(!metrics.is_empty(), "{place}: {expression} names no metric");
        for metric in &metrics {
            let has = told.get(metric.as_str()).unwrap_or_else(|| panic!("{place}: nobody tells {metric}"));
            for label in labels.iter().filter(|label| !ADDED.contains(&label.as_str()) && *metric != "up") {
                assert!(has.contains(label.as_str()), "{place}: {metric} has no label {label}: {has:?}");
            }
            used.insert(metric.clone());
        }
    }
    assert!(used.len() > 25, "{used:?}");
}
