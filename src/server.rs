//! The running server: its parts, and the order in which they end.
//!
//! Whoever may still ask is told first and whoever answers goes last, so that nobody is left waiting: `/readyz` says no,
//! connections are refused, sockets and streams are closed for their clients to come back elsewhere, requests in work are
//! answered, writes that nobody waits for are finished, and only then the jobs end (the tail of the event log among
//! them), the last spans are sent and the database is closed.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::Result;
use crate::{App, graphql, http};

/// How long requests in work, sockets and streams may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Sockets are looked at after so many tasks. A task here is a whole request or update of SQLite, a tenth of a
/// millisecond, where tokio counts on far shorter ones: after its 61, what had come would have waited for several. With 32
/// clients that write, 32 others read a tenth to a quarter more by it, and of three times what can be served two fifths more
/// is; readers alone and many subscribers cost the same.
const LOOKS: u32 = 7;

/// What a server runs on.
pub fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().event_interval(LOOKS).build()
}

/// A server that runs.
pub struct Server {
    app: Arc<App>,
    /// Ends the doors.
    closing: CancellationToken,
    doors: JoinHandle<()>,
    /// Ends what works behind them.
    stop: CancellationToken,
    jobs: TaskTracker,
    metrics: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts to answer on the first listener, to tell metrics on the second, and whatever `jobs` starts beside that.
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
            http::serve(listener, router, connections, trusted.clone(), draining.clone(), stop.clone())
        };
        let doors = tokio::spawn(serve(listener, router, &closing));
        let measured = |listener| tokio::spawn(serve(listener, http::measured(app), &stop));
        let metrics = metrics.map(measured);
        jobs.spawn(http::health::monitor(Arc::clone(app), stop.clone()));
        Ok(Self { app: Arc::clone(app), closing, doors, metrics, stop, jobs })
    }

    /// Ends everything, in order; whether all of it ended by itself.
    pub async fn end(self) -> bool {
        let Self { app, closing, mut doors, stop, jobs, metrics } = self;
        app.draining.cancel();
        tokio::time::sleep(app.config.drain).await;
        closing.cancel();
        let ended = tokio::time::timeout(PATIENCE, async {
            let served = (&mut doors).await;
            app.writes.close();
            app.writes.wait().await;
            served
        });
        let ended = matches!(ended.await, Ok(Ok(())));
        if !ended {
            tracing::warn!("what has not ended is cut off");
            doors.abort();
        }
        stop.cancel();
        jobs.wait().await;
        if let Some(metrics) = metrics {
            metrics.abort();
        }
        app.traces.end().await;
        app.db.close().await;
        ended
    }
}
