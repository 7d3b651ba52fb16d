//! Logging and tracing. Metrics are in [`crate::metrics`].
//!
//! Traces use the OpenTelemetry API directly instead of the spans of the log: log spans carry what
//! a log line needs, while traces follow the semantic conventions, log filters must not drop
//! traces, and nothing runs without a collector. Spans wait in a bounded queue for a thread that
//! exports them in batches. When the queue is full or the collector is unavailable, spans are
//! dropped; no request waits for them.

use std::collections::HashMap;
use std::error::Error as _;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, Response, StatusCode};
use axum::response::Response as Answer;
use bytes::Bytes;
use futures_util::future::Either;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{FutureExt, SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Handle;
use tracing_subscriber::EnvFilter;

use crate::config::{self, Config};
use crate::error::{Code, Error, Result};
use crate::id::Id;

/// Timeout of a request to the collector.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for exporting the last spans on shutdown.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum length of a path or operation name in a span, in bytes.
const MAX_ATTRIBUTE_BYTES: usize = 200;
/// Maximum size of a response of the collector, in bytes.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Log target of mails if no mail server is configured.
pub const UNSENT_MAIL_TARGET: &str = "fasttrack::mail::unsent";

/// Starts logging to standard error. Standard output is left to the output of commands.
pub fn init_logging(config: &Config) {
    // Without a mail server the log is the only way to read a mail, so no log level hides it. The
    // more specific directive wins.
    let filter = EnvFilter::new(format!("{},{UNSENT_MAIL_TARGET}=info", config.log_filter));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A line that cannot be written, as on a full disk, is dropped: reporting the error would
    // panic.
    let builder = builder.log_internal_errors(false);
    if config.log_json {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    }
}

/// The trace exporter, if a collector is configured.
pub struct TraceExporter(Option<ActiveTracer>);

struct ActiveTracer {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

impl TraceExporter {
    /// Starts the exporter. Must be called within the runtime that is to send the spans.
    pub fn open(config: Option<&config::TraceConfig>) -> Result<Self> {
        let Some(config) = config else {
            return Ok(Self(None));
        };
        let headers = config.headers.iter();
        let headers: HashMap<String, String> = headers
            .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
            .collect();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(CollectorClient::new(config)?)
            .with_endpoint(config.endpoint.to_string())
            .with_headers(headers)
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|error| Error::internal(format!("traces: {error}")))?;
        let resource = Resource::builder()
            .with_service_name(config.service.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", Id::new().to_string()));
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                config.ratio,
            ))))
            .with_batch_exporter(exporter)
            .build();
        let tracer = provider.tracer("fasttrack");
        Ok(Self(Some(ActiveTracer {
            provider,
            tracer,
            propagator: TraceContextPropagator::new(),
        })))
    }

    /// Starts the span of a request, in the trace of its `traceparent` or in a new one.
    pub fn request_span(&self, request: &Request, route: Option<&str>) -> Option<ActiveSpan> {
        let running = self.0.as_ref()?;
        let headers = request.headers();
        let parent = match has_traceparent(headers) {
            true => running
                .propagator
                .extract_with_context(&Context::new(), &HeaderExtractor(headers)),
            false => Context::new(),
        };
        let method = request.method();
        let known = [
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::OPTIONS,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ]
        .contains(method);
        let method = if known { method.as_str() } else { "_OTHER" };
        let mut attributes = vec![
            KeyValue::new("http.request.method", method.to_owned()),
            KeyValue::new("url.scheme", "http"),
            KeyValue::new("url.path", truncate(request.uri().path())),
            KeyValue::new("network.protocol.version", protocol_version(request)),
        ];
        attributes.extend(route.map(|route| KeyValue::new("http.route", route.to_owned())));
        let name = if known { method } else { "HTTP" };
        let name = route.map_or_else(|| name.to_owned(), |route| format!("{name} {route}"));
        let span = running
            .tracer
            .span_builder(name)
            .with_kind(SpanKind::Server)
            .with_attributes(attributes);
        Some(ActiveSpan(
            parent.with_span(running.tracer.build_with_context(span, &parent)),
        ))
    }

    /// Starts the span of an operation or of opening a subscription: a child of the request span,
    /// or a root span on a socket.
    pub fn operation_span(&self, kind: &'static str, name: Option<&str>) -> Option<ActiveSpan> {
        self.span(kind, Context::current, kind, name)
    }

    /// Starts the span of the response to an event. It is a root span, because any number of
    /// subscriptions may share the response.
    pub fn event_span(&self, kind: &'static str, name: Option<&str>) -> Option<ActiveSpan> {
        self.span("event", Context::new, kind, name)
    }

    fn span(
        &self,
        span: &'static str,
        parent: fn() -> Context,
        kind: &'static str,
        name: Option<&str>,
    ) -> Option<ActiveSpan> {
        let running = self.0.as_ref()?;
        let parent = parent();
        let within = parent.has_active_span();
        let span = running
            .tracer
            .span_builder(span)
            .with_kind(if within {
                SpanKind::Internal
            } else {
                SpanKind::Server
            })
            .with_attributes(operation_attributes(kind, name));
        Some(ActiveSpan(
            parent.with_span(running.tracer.build_with_context(span, &parent)),
        ))
    }

    /// Adds the operation to the span of the current request.
    pub fn set_operation(&self, kind: &'static str, name: Option<&str>) {
        if self.0.is_some() {
            Context::map_current(|context| {
                context
                    .span()
                    .set_attributes(operation_attributes(kind, name))
            });
        }
    }

    /// Exports the remaining spans and shuts down.
    pub async fn shut_down(&self) {
        let Some(running) = &self.0 else { return };
        let provider = running.provider.clone();
        // Blocks on the export thread. Spans that could not be sent are reported in the log.
        drop(
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT))
                .await,
        );
    }
}

/// An open span. It ends when this is dropped.
pub struct ActiveSpan(Context);

impl ActiveSpan {
    pub fn trace_id(&self) -> String {
        self.0.span().span_context().trace_id().to_string()
    }

    /// Records the response of a request.
    pub fn record_response(&self, answer: &Answer, request_id: &str) {
        let (span, status) = (self.0.span(), answer.status());
        span.set_attribute(KeyValue::new(
            "http.response.status_code",
            i64::from(status.as_u16()),
        ));
        // The semantic conventions define header values as lists.
        let id = Value::Array(Array::String(vec![StringValue::from(
            request_id.to_owned(),
        )]));
        span.set_attribute(KeyValue::new("http.response.header.x-request-id", id));
        if status.is_server_error() {
            span.set_attribute(KeyValue::new("error.type", status.as_str().to_owned()));
            span.set_status(Status::error(""));
        }
    }

    /// Records the end of an operation, with the code of its first error if any.
    pub fn record_outcome(&self, failure: Option<Code>) {
        let Some(code) = failure else { return };
        let span = self.0.span();
        span.set_attribute(KeyValue::new("error.type", code.as_str()));
        // A client error is not an error of the server span.
        if StatusCode::from_u16(code.status()).is_ok_and(|status| status.is_server_error()) {
            span.set_status(Status::error(""));
        }
    }
}

/// Runs work within a span, if there is one.
pub async fn in_span<T>(span: Option<&ActiveSpan>, work: impl Future<Output = T>) -> T {
    match span {
        Some(span) => Either::Left(work.with_context(span.0.clone())),
        None => Either::Right(work),
    }
    .await
}

fn operation_attributes(kind: &'static str, name: Option<&str>) -> Vec<KeyValue> {
    let mut attributes = vec![KeyValue::new("graphql.operation.type", kind)];
    attributes.extend(name.map(|name| KeyValue::new("graphql.operation.name", truncate(name))));
    attributes
}

fn truncate(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_ATTRIBUTE_BYTES)].to_owned()
}

fn protocol_version(request: &Request) -> &'static str {
    match request.version() {
        axum::http::Version::HTTP_2 => "2",
        axum::http::Version::HTTP_10 => "1.0",
        _ => "1.1",
    }
}

/// Whether there is exactly one `traceparent` header in W3C format. The library also accepts
/// shorter numbers.
fn has_traceparent(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all("traceparent").iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    let Ok(text) = value.to_str() else {
        return false;
    };
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, length: usize| {
        part.len() == length
            && part
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    // Later versions may append fields to those of version 00.
    matches!(parts[..], [version, trace, parent, flags, ref more @ ..]
        if hex(version, 2) && hex(trace, 32) && hex(parent, 16) && hex(flags, 2) && (version != "00" || more.is_empty()))
}

/// HTTP client for the collector. Runs on the runtime of the server, whatever thread calls it. Logs
/// once when the collector becomes unavailable, and once when it is available again.
#[derive(Debug)]
struct CollectorClient {
    http: HttpsClient,
    runtime: Handle,
    is_unreachable: Arc<AtomicBool>,
}

type HttpsClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

impl CollectorClient {
    fn new(config: &config::TraceConfig) -> Result<Self> {
        let runtime = Handle::try_current().map_err(Error::internal)?;
        Ok(Self {
            http: https_client(config)?,
            runtime,
            is_unreachable: Arc::default(),
        })
    }
}

#[async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(
        &self,
        request: opentelemetry_http::Request<Bytes>,
    ) -> Result<Response<Bytes>, HttpError> {
        let (http, away) = (self.http.clone(), Arc::clone(&self.is_unreachable));
        let sent = self.runtime.spawn(async move {
            let sent = send(&http, request).await;
            let problem = match &sent {
                Ok(answer) if answer.status().is_success() => None,
                Ok(answer) => Some(format!("it responded with {}", answer.status())),
                Err(problem) => Some(problem.clone()),
            };
            match (problem, away.load(Ordering::Relaxed)) {
                (Some(cause), false) => {
                    away.store(true, Ordering::Relaxed);
                    tracing::warn!(cause, "trace collector unavailable, dropping spans");
                }
                (None, true) => {
                    away.store(false, Ordering::Relaxed);
                    tracing::info!("trace collector available again");
                }
                _ => {}
            }
            sent
        });
        Ok(sent.await??)
    }
}

fn https_client(config: &config::TraceConfig) -> Result<HttpsClient> {
    let mut roots = RootCertStore::empty();
    if config.endpoint.scheme_str() == Some("https") {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls
        .map_err(Error::internal)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

async fn send(
    http: &HttpsClient,
    request: axum::http::Request<Bytes>,
) -> Result<Response<Bytes>, String> {
    let sent = async {
        let answer = http.request(request.map(Full::new)).await;
        let (parts, body) = answer
            .map_err(|error| error_with_source(&error))?
            .into_parts();
        let body = Limited::new(body, MAX_RESPONSE_BYTES)
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    };
    tokio::time::timeout(EXPORT_TIMEOUT, sent)
        .await
        .unwrap_or_else(|_| Err("no response".to_owned()))
}

/// Appends the source errors, because the error of the client itself does not state the reason.
fn error_with_source(error: &hyper_util::client::legacy::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

/// Checks that the collector accepts traces. Returns the reason if it does not.
pub async fn check_collector(config: &config::TraceConfig) -> Result<(), String> {
    let mut request = axum::http::Request::post(&config.endpoint)
        .header("content-type", "application/x-protobuf");
    for (name, value) in &config.headers {
        request = request.header(name, value);
    }
    // An export request without spans encodes to zero bytes.
    let request = request
        .body(Bytes::new())
        .map_err(|error| error.to_string())?;
    let http = https_client(config).map_err(|_| "TLS setup failed".to_owned())?;
    let answer = send(&http, request).await?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(format!("it responded with {}", answer.status()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_taken_as_the_w3c_writes_it() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        for (value, good) in [
            (format!("00-{trace}-b7ad6b7169203331-01"), true),
            (
                format!("cc-{trace}-b7ad6b7169203331-01-what-the-future-will-be-like"),
                true,
            ),
            (format!("00-{trace}-b7ad6b7169203331-01-more"), false),
            (format!("00-{trace}-b7ad6b7169203331"), false),
            (format!("00-{trace}-b7ad6b7169203331-1"), false),
            (
                "00-af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
                false,
            ),
            (
                format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()),
                false,
            ),
            (String::new(), false),
        ] {
            let value: axum::http::HeaderValue = value.parse().expect("a value");
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", value.clone());
            assert_eq!(has_traceparent(&headers), good, "{value:?}");
            headers.append("traceparent", value);
            assert!(!has_traceparent(&headers), "ambiguous");
        }
    }
}
