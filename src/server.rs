//! The running server: its parts, and the order of shutdown.
//!
//! Shutdown stops new work first and the services it depends on last: `/readyz` fails, new
//! connections are refused, sockets and event streams close so that clients reconnect elsewhere,
//! running requests complete, detached writes complete, then the jobs stop (the tail of the event
//! log among them), the last spans are exported, and the database closes.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::Result;
use crate::{App, graphql, http};

/// Deadline for running requests, sockets and streams on shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// Poll I/O every 7 tasks (tokio's default is 61). A task here is a whole request or SQLite update,
/// about 0.1 ms, so with the default a socket would wait for several of them.
const EVENT_INTERVAL: u32 = 7;

/// Creates the tokio runtime.
pub fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build()
}

/// A running server.
pub struct Server {
    app: Arc<App>,
    /// Stops the public listener.
    closing: CancellationToken,
    http: JoinHandle<()>,
    /// Stops the jobs and the metrics listener.
    stop: CancellationToken,
    jobs: TaskTracker,
    metrics: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts serving the API on `listener` and metrics on `metrics`, and runs `jobs`.
    pub fn start(
        app: &Arc<App>,
        listener: TcpListener,
        metrics: Option<TcpListener>,
        jobs: impl FnOnce(&Arc<App>, &CancellationToken) -> Result<TaskTracker>,
    ) -> Result<Self> {
        let (closing, stop) = (CancellationToken::new(), CancellationToken::new());
        let jobs = jobs(app, &stop)?;
        let router = http::router(app, graphql::schema(app.config.introspection));
        let connections = app.config.connections;
        let (draining, trusted) = (app.draining.clone(), &app.config.trusted_proxies);
        let serve = |listener, router, stop: &CancellationToken| {
            http::serve(
                listener,
                router,
                connections,
                trusted.clone(),
                draining.clone(),
                stop.clone(),
            )
        };
        let http = tokio::spawn(serve(listener, router, &closing));
        let measured = |listener| tokio::spawn(serve(listener, http::metrics_router(app), &stop));
        let metrics = metrics.map(measured);
        jobs.spawn(http::health::monitor(Arc::clone(app), stop.clone()));
        Ok(Self {
            app: Arc::clone(app),
            closing,
            http,
            metrics,
            stop,
            jobs,
        })
    }

    /// Shuts down in order. Returns whether everything completed before the deadline.
    pub async fn shut_down(self) -> bool {
        let Self {
            app,
            closing,
            mut http,
            stop,
            jobs,
            metrics,
        } = self;
        app.draining.cancel();
        tokio::time::sleep(app.config.drain).await;
        closing.cancel();
        let ended = tokio::time::timeout(SHUTDOWN_TIMEOUT, async {
            let served = (&mut http).await;
            app.writes.close();
            app.writes.wait().await;
            served
        });
        let ended = matches!(ended.await, Ok(Ok(())));
        if !ended {
            tracing::warn!("shutdown deadline exceeded, aborting open connections");
            http.abort();
        }
        stop.cancel();
        jobs.wait().await;
        if let Some(metrics) = metrics {
            metrics.abort();
        }
        app.traces.shut_down().await;
        app.db.close().await;
        ended
    }
}
