//! Traces: the spans of requests, sent to a collector by OTLP over gRPC.
//!
//! Without an endpoint there is no layer, and a span costs a look at one static. With one, spans wait in a bounded queue for a
//! thread of their own; what does not fit is dropped, so a collector that is dead or slow costs no request anything. It is
//! said once when it cannot be reached, and once when it can again.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use darter_proxy::Adopt;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use crate::config::Tracing;
use crate::exit::{self, Failure};

/// The target of spans that are traces, in all our crates.
pub(crate) const TARGET: &str = "trace";

/// Spans that wait, at most: a few MB.
const QUEUE: usize = 4096;
/// Spans that are sent at once.
const BATCH: usize = 512;
/// How long a span may wait.
const DELAY: Duration = Duration::from_secs(2);
/// How long a collector may take for a batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last batch may take when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Where OpenTelemetry's programs look for their collector.
const ENVIRONMENT: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Traces that are being sent.
#[derive(Debug)]
pub(crate) struct Traces(SdkTracerProvider);

impl Traces {
    /// Begins to send traces where `config` or the environment says; `None`: nobody says so. Must be called within a runtime.
    ///
    /// # Errors
    /// When what is said makes no exporter.
    pub(crate) fn start(config: &Tracing) -> exit::Result<Option<Self>> {
        let Some(endpoint) = endpoint(config)? else { return Ok(None) };
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .with_metadata(metadata(config))
            .build()
            .map_err(|error| Failure::configuration(format!("tracing: {error}")))?;
        let queue = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY)
            .build();
        let exporter = Watched { exporter, endpoint, is_down: AtomicBool::new(false) };
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(queue).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.ratio))))
            .with_resource(Resource::builder().with_service_name(config.service.clone()).build())
            .build();
        Ok(Some(Self(provider)))
    }

    /// What takes spans out of the program.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let layer = tracing_opentelemetry::layer().with_tracer(self.0.tracer("darter"));
        // Where in the source a span is, and on which thread, says nothing to whoever reads traces.
        let layer = layer.with_location(false).with_threads(false).with_target(false);
        layer.with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO))
    }

    /// How the proxy goes on with the traces of its clients (W3C Trace Context).
    pub(crate) fn adopt() -> Adopt {
        let propagator = TraceContextPropagator::new();
        Arc::new(move |span, headers| {
            let parent = propagator.extract(&Headers(headers));
            if parent.span().span_context().is_valid() {
                // Fails only where there is no layer, and then there is no span.
                let _ = span.set_parent(parent);
            }
        })
    }

    /// Sends what waits, for a moment at most.
    pub(crate) async fn stop(self) {
        let flush = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(FLUSH_TIMEOUT));
        // Whether or not it was sent: the process ends.
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, flush).await;
    }
}

fn endpoint(config: &Tracing) -> exit::Result<Option<String>> {
    if let Some(endpoint) = &config.endpoint {
        return Ok(Some(endpoint.clone()));
    }
    let found = ENVIRONMENT.iter().find_map(|name| {
        let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
        Some((name, text))
    });
    let Some((name, text)) = found else { return Ok(None) };
    let endpoint = Tracing::endpoint_of(&text);
    endpoint.map(Some).map_err(|why| Failure::configuration(format!("{name}: {why}")))
}

fn metadata(config: &Tracing) -> MetadataMap {
    let headers = config.headers.iter().filter_map(|(name, value)| {
        let name = http::HeaderName::try_from(name).ok()?;
        let mut value = http::HeaderValue::try_from(value.reveal()).ok()?;
        value.set_sensitive(true);
        Some((name, value))
    });
    MetadataMap::from_headers(headers.collect())
}

/// Headers, as OpenTelemetry reads them.
struct Headers<'a>(&'a http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

// === Watched ===

/// An exporter of which it is said when it begins and when it ceases to fail.
#[derive(Debug)]
struct Watched<E> {
    exporter: E,
    endpoint: String,
    is_down: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let sent = self.exporter.export(batch).await;
        let was_down = self.is_down.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Err(error) if !was_down => {
                tracing::warn!("traces cannot be sent to {}, and are dropped: {error}", self.endpoint);
            }
            Ok(()) if was_down => tracing::info!("traces are sent to {} again", self.endpoint),
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
