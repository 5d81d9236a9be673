//! `--metrics HOST:PORT`: Prometheus text of one daemon, read at each scrape.
//!
//! The daemons own the figures; this module only names, groups and serves them.
//! Names, units and meanings are listed in `docs/METRICS.md`.

use anyhow::Context;
use axum::{Router, http::header, routing::get};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge};
use prometheus_client::registry::Registry;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// The content type that Prometheus asks for with this encoding.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// Only rises while the process lives; gets the suffix `_total`.
    Counter(u64),
    Gauge(f64),
}

impl Value {
    fn encode(self, encoder: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Value::Counter(value) => ConstCounter::new(value).encode(encoder),
            Value::Gauge(value) => ConstGauge::new(value).encode(encoder),
        }
    }
}

/// One figure. Samples of one name follow each other and differ in their labels.
#[derive(Clone, Debug)]
pub struct Sample {
    pub name: &'static str,
    pub help: &'static str,
    pub labels: Vec<(&'static str, String)>,
    pub value: Value,
}

impl Sample {
    pub fn counter(name: &'static str, help: &'static str, value: u64) -> Sample {
        Sample { name, help, labels: Vec::new(), value: Value::Counter(value) }
    }

    pub fn gauge(name: &'static str, help: &'static str, value: f64) -> Sample {
        Sample { name, help, labels: Vec::new(), value: Value::Gauge(value) }
    }

    #[must_use]
    pub fn with(mut self, label: &'static str, value: impl Into<String>) -> Sample {
        self.labels.push((label, value.into()));
        self
    }
}

struct Source<F>(F);

impl<F> fmt::Debug for Source<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

impl<F: Fn() -> Vec<Sample> + Send + Sync + 'static> Collector for Source<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let samples = (self.0)();
        for family in samples.chunk_by(|a, b| a.name == b.name) {
            let Some(first) = family.first() else { continue };
            let kind = match first.value {
                Value::Counter(_) => MetricType::Counter,
                Value::Gauge(_) => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(first.name, first.help, None, kind)?;
            // An empty set of labels would be written as `{}`, which not every
            // reader takes.
            if first.labels.is_empty() {
                first.value.encode(metric)?;
                continue;
            }
            for sample in family {
                sample.value.encode(metric.encode_family(&sample.labels)?)?;
            }
        }
        Ok(())
    }
}

/// Serves `read` at `/metrics` from a thread of its own, until the process ends.
/// Returns the bound address.
///
/// # Errors
/// The address cannot be bound.
pub fn serve(
    address: SocketAddr,
    read: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
) -> anyhow::Result<SocketAddr> {
    let what = || format!("cannot serve metrics on {address}: choose another --metrics address");
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Source(read)));
    let registry = Arc::new(registry);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().with_context(what)?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).with_context(what)?;
    let bound = listener.local_addr().with_context(what)?;
    let routes = Router::new().route("/metrics", get(move || async move { page(&registry) }));
    std::thread::Builder::new()
        .name("metrics".into())
        .spawn(move || {
            let served = async { axum::serve(listener, routes).await };
            if let Err(e) = runtime.block_on(served) {
                tracing::warn!("metrics are no longer served: {e}");
            }
        })
        .with_context(what)?;
    Ok(bound)
}

fn page(registry: &Registry) -> ([(header::HeaderName, &'static str); 1], String) {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], encode(registry))
}

fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, registry).is_err() {
        text.push_str("# EOF\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_once_with_all_their_labels() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Source(|| {
            vec![
                Sample::counter("towline_writes", "Writes.", 1).with("volume", "a"),
                Sample::counter("towline_writes", "Writes.", 2).with("volume", "b"),
                Sample::gauge("towline_lag_seconds", "Lag.", 0.5),
            ]
        })));
        let text = encode(&registry);
        assert_eq!(text.matches("# TYPE towline_writes counter").count(), 1, "{text}");
        assert!(text.contains("towline_writes_total{volume=\"a\"} 1\n"), "{text}");
        assert!(text.contains("towline_writes_total{volume=\"b\"} 2\n"), "{text}");
        assert!(text.contains("towline_lag_seconds 0.5\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
