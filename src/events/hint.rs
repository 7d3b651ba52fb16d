//! Hints: an instance that has written to the log says so to the others, so that they look at once.
//!
//! By Redis Pub/Sub when there is a Redis, else by NOTIFY on PostgreSQL: never inside of a transaction that writes, where
//! it would make all writers wait for one another, but after it, and once for all writes of a moment. A hint carries
//! nothing but who gives it. One that is lost costs the time until the next poll.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::{AsyncTypedCommands, Client};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::db::Db;
use crate::error::{Error, Result};
use crate::id::Id;

/// The name under which hints are given.
const CHANNEL: &str = "fasttrack_log";
/// Writes so close together are one hint.
const MOMENT: Duration = Duration::from_millis(10);
/// After so long a broken connection is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// The hints that this instance gives and hears.
pub struct Hints {
    instance: String,
    redis: Option<Client>,
    given: Notify,
    heard: Notify,
}

impl Hints {
    /// By this Redis if there is one; nothing is connected yet.
    pub fn new(redis: Option<Client>) -> Self {
        Self { instance: Id::new().to_string(), redis, given: Notify::new(), heard: Notify::new() }
    }

    /// Says that there is something new.
    pub fn tell(&self) {
        self.given.notify_one();
    }

    /// Waits until another instance has said so since the last time.
    pub async fn heard(&self) {
        self.heard.notified().await;
    }

    /// Carries hints both ways until the token is cancelled.
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

    /// Ends well only when there is nobody to tell.
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

    /// Ends well only when there is nobody to hear of.
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

/// The wait before the next try, which is announced once: for as long as Redis is away it would be two lines a second.
#[derive(Default)]
struct Silence(bool);

impl Silence {
    async fn after(&mut self, error: Error) {
        if !std::mem::replace(&mut self.0, true) {
            let (code, ..) = error.told();
            tracing::warn!(code = code.as_str(), "no hints of new events for now; they are found by asking");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn away(error: redis::RedisError) -> Error {
    tracing::debug!(kind = ?error.kind(), "Redis is away");
    Error::unavailable()
}
