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
const MOMENT: Duration = Duration::from_millis(10);
/// Pause before reconnecting.
const PAUSE: Duration = Duration::from_millis(500);

/// Sends and receives hints for this instance.
pub struct Hints {
    instance: String,
    redis: Option<Client>,
    given: Notify,
    heard: Notify,
}

impl Hints {
    /// Uses this Redis if there is one. Connects lazily.
    pub fn new(redis: Option<Client>) -> Self {
        Self { instance: Id::new().to_string(), redis, given: Notify::new(), heard: Notify::new() }
    }

    /// Announces that the log has new events.
    pub fn tell(&self) {
        self.given.notify_one();
    }

    /// Waits until another instance has announced new events since the last call.
    pub async fn heard(&self) {
        self.heard.notified().await;
    }

    /// Sends and receives until the token is cancelled.
    pub async fn carry(self: Arc<Self>, db: Db, stop: CancellationToken) {
        let give = async {
            let mut silent = Silence::default();
            while let Err(error) = self.give(&db).await {
                silent.after(error).await;
            }
        };
        let hear = async {
            let mut silent = Silence::default();
            while let Err(error) = self.hear(&db).await {
                silent.after(error).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            ((), ()) = async { tokio::join!(give, hear) } => {}
        }
    }

    /// Returns `Ok` only when there is no channel to send on.
    async fn give(&self, db: &Db) -> Result<()> {
        let mut redis = match &self.redis {
            Some(client) => Some(client.get_multiplexed_async_connection().await.map_err(away)?),
            None if db.is_postgres() => None,
            None => return Ok(()),
        };
        loop {
            self.given.notified().await;
            match &mut redis {
                Some(redis) => {
                    redis.publish(CHANNEL, &self.instance).await.map_err(away)?;
                }
                None => db.notify(CHANNEL, &self.instance).await?,
            }
            tokio::time::sleep(MOMENT).await;
        }
    }

    /// Returns `Ok` only when there is no channel to receive on.
    async fn hear(&self, db: &Db) -> Result<()> {
        if let Some(client) = &self.redis {
            let mut messages = client.get_async_pubsub().await.map_err(away)?;
            messages.subscribe(CHANNEL).await.map_err(away)?;
            let mut messages = messages.into_on_message();
            while let Some(message) = messages.next().await {
                self.hear_of(message.get_payload_bytes());
            }
        } else if db.is_postgres() {
            let mut conn = db.listen(CHANNEL).await?;
            let mut messages = std::pin::pin!(conn.notifications_stream());
            while let Some(message) = messages.next().await {
                self.hear_of(message?.payload.as_bytes());
            }
        } else {
            return Ok(());
        }
        Err(Error::unavailable())
    }

    fn hear_of(&self, instance: &[u8]) {
        if instance != self.instance.as_bytes() {
            self.heard.notify_one();
        }
    }
}

/// Waits before the next attempt and logs the failure once, instead of twice a second while Redis
/// is unavailable.
#[derive(Default)]
struct Silence(bool);

impl Silence {
    async fn after(&mut self, error: Error) {
        if !std::mem::replace(&mut self.0, true) {
            let (code, ..) = error.into_client();
            tracing::warn!(code = code.as_str(), "event hints unavailable, falling back to polling");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn away(error: redis::RedisError) -> Error {
    tracing::debug!(kind = ?error.kind(), "Redis is unavailable");
    Error::unavailable()
}
