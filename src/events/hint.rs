//! Hints: an instance that has appended to the log notifies the others, so that they read it at
//! once.
//!
//! Hints are sent via Redis Pub/Sub, or via `NOTIFY` on PostgreSQL without Redis. They are sent
//! after the commit: inside the writing transaction, `NOTIFY` would serialize all writers. Writes
//! close together share one hint. A hint contains only the id of the sender. A lost hint delays
//! events until the next poll.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::{AsyncTypedCommands, Client};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::db::Db;
use crate::error::{Error, Result};
use crate::id::Id;

/// The channel name.
const CHANNEL: &str = "fasttrack_log";
/// Writes within this time share one hint.
const COALESCE_WINDOW: Duration = Duration::from_millis(10);
/// Pause before reconnecting.
const RECONNECT_DELAY: Duration = Duration::from_millis(500);

/// Sends and receives hints for this instance.
pub struct Hints {
    instance: String,
    redis: Option<Client>,
    outgoing: Notify,
    incoming: Notify,
}

impl Hints {
    /// Uses this Redis if there is one. Connects lazily.
    pub fn new(redis: Option<Client>) -> Self {
        Self {
            instance: Id::new().to_string(),
            redis,
            outgoing: Notify::new(),
            incoming: Notify::new(),
        }
    }

    /// Announces that the log has new events.
    pub fn send(&self) {
        self.outgoing.notify_one();
    }

    /// Waits until another instance has announced new events since the last call.
    pub async fn received(&self) {
        self.incoming.notified().await;
    }

    /// Sends and receives until the token is cancelled.
    pub async fn run(self: Arc<Self>, db: Db, stop: CancellationToken) {
        let give = async {
            let mut silent = Backoff::default();
            while let Err(error) = self.send_loop(&db).await {
                silent.wait_after(error).await;
            }
        };
        let hear = async {
            let mut silent = Backoff::default();
            while let Err(error) = self.receive_loop(&db).await {
                silent.wait_after(error).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            ((), ()) = async { tokio::join!(give, hear) } => {}
        }
    }

    /// Returns `Ok` only when there is no channel to send on.
    async fn send_loop(&self, db: &Db) -> Result<()> {
        let mut redis = match &self.redis {
            Some(client) => Some(
                client
                    .get_multiplexed_async_connection()
                    .await
                    .map_err(redis_error)?,
            ),
            None if db.is_postgres() => None,
            None => return Ok(()),
        };
        loop {
            self.outgoing.notified().await;
            match &mut redis {
                Some(redis) => {
                    redis
                        .publish(CHANNEL, &self.instance)
                        .await
                        .map_err(redis_error)?;
                }
                None => db.notify(CHANNEL, &self.instance).await?,
            }
            tokio::time::sleep(COALESCE_WINDOW).await;
        }
    }

    /// Returns `Ok` only when there is no channel to receive on.
    async fn receive_loop(&self, db: &Db) -> Result<()> {
        if let Some(client) = &self.redis {
            let mut messages = client.get_async_pubsub().await.map_err(redis_error)?;
            messages.subscribe(CHANNEL).await.map_err(redis_error)?;
            let mut messages = messages.into_on_message();
            while let Some(message) = messages.next().await {
                self.on_message(message.get_payload_bytes());
            }
        } else if db.is_postgres() {
            let mut conn = db.listen(CHANNEL).await?;
            let mut messages = std::pin::pin!(conn.notifications_stream());
            while let Some(message) = messages.next().await {
                self.on_message(message?.payload.as_bytes());
            }
        } else {
            return Ok(());
        }
        Err(Error::unavailable())
    }

    fn on_message(&self, instance: &[u8]) {
        if instance != self.instance.as_bytes() {
            self.incoming.notify_one();
        }
    }
}

/// Waits before the next attempt and logs the failure once, instead of twice a second while Redis
/// is unavailable.
#[derive(Default)]
struct Backoff(bool);

impl Backoff {
    async fn wait_after(&mut self, error: Error) {
        if !std::mem::replace(&mut self.0, true) {
            let (code, ..) = error.into_client();
            tracing::warn!(
                code = code.as_str(),
                "event hints unavailable, falling back to polling"
            );
        }
        tokio::time::sleep(RECONNECT_DELAY).await;
    }
}

fn redis_error(error: redis::RedisError) -> Error {
    tracing::debug!(kind = ?error.kind(), "Redis is unavailable");
    Error::unavailable()
}
