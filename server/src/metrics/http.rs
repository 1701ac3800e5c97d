//! Requests and answers, by route. Routes, methods and classes of status are known beforehand, so a request finds its counters
//! without a lock, and nobody can make up label values.

use std::{collections::HashMap, fmt, time::Duration};

use axum::http::{Method, StatusCode};
use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

use super::page::Page;

/// Bounds of the latencies, in seconds.
const LATENCY_BUCKETS: [f64; 15] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// The route of requests for which there is none.
const NO_ROUTE: &str = "none";
/// Methods that are told apart; the last stands for all others.
const METHODS: [&str; 6] = ["GET", "HEAD", "PUT", "POST", "DELETE", "other"];
/// Classes of status.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Requests of all routes.
#[derive(Debug)]
pub struct HttpMetrics {
    routes: HashMap<String, Route>,
    /// Requests for which there is no route.
    none: Route,
    /// Answers of status 429.
    overloaded: Counter,
}

#[derive(Debug)]
struct Route {
    answers: [[Counter; CLASSES.len()]; METHODS.len()],
    seconds: Histogram,
}

impl Default for Route {
    fn default() -> Self {
        Self { answers: Default::default(), seconds: Histogram::new(LATENCY_BUCKETS) }
    }
}

impl Route {
    fn was_asked(&self) -> bool {
        self.answers.iter().flatten().any(|answers| answers.get() > 0)
    }
}

impl HttpMetrics {
    /// Nothing counted yet, for the routes with these templates.
    pub fn new(templates: impl IntoIterator<Item = String>) -> Self {
        let routes = templates.into_iter().map(|template| (template, Route::default())).collect();
        Self { routes, none: Route::default(), overloaded: Counter::default() }
    }

    /// A request for the route with `template` (None = there is no such route) was answered after `took`: the answer's body may
    /// still be sent.
    pub fn note(&self, template: Option<&str>, method: &Method, status: StatusCode, took: Duration) {
        let route = template.and_then(|template| self.routes.get(template)).unwrap_or(&self.none);
        let method = METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1);
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        route.answers[method][class].inc();
        route.seconds.observe(took.as_secs_f64());
        if status == StatusCode::TOO_MANY_REQUESTS {
            self.overloaded.inc();
        }
    }

    pub(super) fn tell(&self, page: &mut Page<'_>) -> fmt::Result {
        let mut routes: Vec<(String, &Route)> =
            self.routes.iter().map(|(template, route)| (template.replace("{*", "{"), route)).collect();
        routes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        routes.push((NO_ROUTE.to_owned(), &self.none));
        let answers = routes.iter().flat_map(|(template, route)| {
            METHODS.iter().zip(&route.answers).flat_map(move |(method, classes)| {
                CLASSES.iter().zip(classes).filter(|(_, answers)| answers.get() > 0).map(move |(class, answers)| {
                    let labels = [
                        ("route", template.clone()),
                        ("method", (*method).to_owned()),
                        ("status", (*class).to_owned()),
                    ];
                    (labels, answers.get() as f64)
                })
            })
        });
        page.counters(
            "hexkv_http_requests",
            "Requests that were answered, by route, method and class of status",
            answers,
        )?;
        page.histograms(
            "hexkv_http_request_duration_seconds",
            "Time from a request's head to its answer's head, waiting that the client asked for included",
            routes.iter().filter(|(_, r)| r.was_asked()).map(|(t, r)| ([("route", t.clone())], &r.seconds)),
        )?;
        page.counter(
            "hexkv_http_overloaded",
            "Requests that were refused with 429 because too much was in flight",
            self.overloaded.get() as f64,
        )
    }
}
