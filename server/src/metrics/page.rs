//! Prometheus' text form, version 0.0.4.

use std::fmt::{self, Write as _};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{MetricType, exemplar::Exemplar, histogram::Histogram},
    registry::Registry,
};

/// Media type of what [`render`] gives.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A sample's labels: name and value.
pub type Labels<const N: usize> = [(&'static str, String); N];

/// The page that is being written. A family is named in full; a counter without its `_total`, which is added.
pub struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// A gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// A gauge that may be unknown.
    pub fn gauge_if(&mut self, name: &str, help: &str, value: Option<f64>) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        value.map_or(Ok(()), |value| family.encode_gauge(&value))
    }

    /// A counter that may be unknown.
    pub fn counter_if(&mut self, name: &str, help: &str, value: Option<f64>) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        value.map_or(Ok(()), |value| family.encode_counter(&value, NO_EXEMPLAR))
    }

    /// A gauge for each set of labels; there may be none.
    pub fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<N>, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// A counter without labels.
    pub fn counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        family.encode_counter(&value, NO_EXEMPLAR)
    }

    /// A counter for each set of labels; there may be none.
    pub fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<N>, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_counter(&value, NO_EXEMPLAR)?;
        }
        Ok(())
    }

    /// A histogram without labels.
    pub fn histogram(&mut self, name: &str, help: &str, values: &Histogram) -> fmt::Result {
        values.encode(self.0.encode_descriptor(name, help, None, MetricType::Histogram)?)
    }

    /// A histogram for each set of labels; there may be none.
    pub fn histograms<'h, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<N>, &'h Histogram)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, values) in samples {
            values.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

const NO_EXEMPLAR: Option<&Exemplar<[(&str, &str); 0], f64>> = None;

struct Filled<F>(F);

impl<F> fmt::Debug for Filled<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Filled")
    }
}

impl<F: Fn(&mut Page<'_>) -> fmt::Result + Send + Sync + 'static> Collector for Filled<F> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)(&mut Page(encoder))
    }
}

/// The page that `fill` writes.
///
/// # Errors
/// Those of `fill`.
pub fn render(fill: impl Fn(&mut Page<'_>) -> fmt::Result + Send + Sync + 'static) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Filled(fill)));
    let mut open_metrics = String::new();
    text::encode_registry(&mut open_metrics, &registry)?;
    in_prometheus_form(&open_metrics)
}

/// OpenMetrics names a counter's family without `_total`, Prometheus' own form with it, like its samples.
fn in_prometheus_form(open_metrics: &str) -> Result<String, fmt::Error> {
    let mut page = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
            continue;
        }
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|typed| typed.split_once(' ')) else {
            writeln!(page, "{line}")?;
            continue;
        };
        let suffix = if kind == "counter" { "_total" } else { "" };
        if let Some((_, text)) = help.take() {
            writeln!(page, "# HELP {name}{suffix} {text}")?;
        }
        writeln!(page, "# TYPE {name}{suffix} {kind}")?;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_help_and_type_under_the_name_of_its_samples() {
        let page = render(|page| {
            page.gauge("a_bytes", "How large", 1.5)?;
            page.counters("b", "How often", [([("kind", "x\"y".to_owned())], 3.0)])?;
            page.counters::<1>("c", "Never", [])?;
            page.counter("d", "Once", 1.0)
        });
        assert_eq!(
            page.expect("written"),
            "# HELP a_bytes How large\n# TYPE a_bytes gauge\na_bytes 1.5\n\
             # HELP b_total How often\n# TYPE b_total counter\nb_total{kind=\"x\\\"y\"} 3.0\n\
             # HELP c_total Never\n# TYPE c_total counter\n\
             # HELP d_total Once\n# TYPE d_total counter\nd_total 1.0\n"
        );
    }

    #[test]
    fn a_histogram_counts_up_to_infinity() {
        let values = Histogram::new([0.1, 1.0]);
        [0.05, 0.5, 5.0].into_iter().for_each(|value| values.observe(value));
        let page = render(move |page| page.histogram("h_seconds", "How long", &values)).expect("written");
        for line in [
            "h_seconds_sum 5.55",
            "h_seconds_count 3",
            "h_seconds_bucket{le=\"0.1\"} 1",
            "h_seconds_bucket{le=\"+Inf\"} 3",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}: {page}");
        }
    }
}
