//! Rate limit counters in Redis, shared by all instances. Each request runs one Lua script, which
//! Redis executes atomically.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::ConnectionManager;
use redis::{Client, Script};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

use super::{ClientKey, RateLimitBucket, WINDOW_MICROS, WindowCounter};

/// Timeout of Redis. The local counters are an acceptable substitute for a while.
const REDIS_TIMEOUT: Duration = Duration::from_millis(250);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);
/// Time without any attempt after a failure. Then a single request tries again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Takes the key, the limit and the points. Uses the clock of Redis, which is the same for all
/// instances.
const SCRIPT: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local window = 60000000
local minute = math.floor(now / window)
local elapsed = now % window
local kept = redis.call('HMGET', KEYS[1], 'minute', 'count', 'previous')
local count, previous = tonumber(kept[2]) or 0, tonumber(kept[3]) or 0
local passed = minute - (tonumber(kept[1]) or minute)
if passed == 1 then
  count, previous = 0, count
elseif passed ~= 0 then
  count, previous = 0, 0
end
local limit = tonumber(ARGV[1])
local fits = previous * (window - elapsed) + count * window < limit * window
if fits then
  count = count + tonumber(ARGV[2])
  redis.call('HSET', KEYS[1], 'minute', minute, 'count', count, 'previous', previous)
  redis.call('PEXPIRE', KEYS[1], 120000)
end
return {fits and 1 or 0, count, previous, elapsed}
";

pub(super) struct RedisCounters {
    client: Client,
    connection: OnceCell<ConnectionManager>,
    script: Script,
    /// When Redis is tried again after a failure.
    retry_at: Mutex<Option<Instant>>,
}

impl RedisCounters {
    /// Connects on first use.
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            connection: OnceCell::new(),
            script: Script::new(SCRIPT),
            retry_at: Mutex::new(None),
        }
    }

    /// Counts the points if they fit. Returns whether they did, the window, and how much of the
    /// current minute has passed. Returns `None` if Redis does not answer.
    pub(super) async fn spend(
        &self,
        bucket: RateLimitBucket,
        who: ClientKey,
        limit: u32,
        points: u32,
    ) -> Option<(bool, WindowCounter, i64)> {
        if self.is_unavailable() {
            return None;
        }
        let patience = if self.connection.initialized() {
            REDIS_TIMEOUT
        } else {
            CONNECT_TIMEOUT
        };
        match timeout(patience, self.run_script(&key(bucket, who), limit, points)).await {
            Ok(Ok((fits, count, previous, elapsed))) => {
                if self.retry_at().take().is_some() {
                    tracing::info!("redis available again");
                }
                Some((
                    fits == 1,
                    WindowCounter {
                        minute: 0,
                        count,
                        previous,
                    },
                    elapsed.clamp(0, WINDOW_MICROS),
                ))
            }
            failed => {
                let kind = failed.ok().and_then(Result::err).map(|error| error.kind());
                if self
                    .retry_at()
                    .replace(Instant::now() + RETRY_INTERVAL)
                    .is_none()
                {
                    tracing::warn!(?kind, "redis unavailable, counting rate limits locally");
                }
                None
            }
        }
    }

    pub(super) async fn ping(&self) -> bool {
        let ping = async {
            let connection = self
                .connection
                .get_or_try_init(|| self.client.get_connection_manager())
                .await?;
            redis::cmd("PING").exec_async(&mut connection.clone()).await
        };
        matches!(timeout(CONNECT_TIMEOUT, ping).await, Ok(Ok(())))
    }

    /// Whether Redis must not be tried now. A caller that may try moves the next attempt on, so
    /// that one request tries at a time.
    fn is_unavailable(&self) -> bool {
        let (mut again, now) = (self.retry_at(), Instant::now());
        match *again {
            None => false,
            Some(then) if now < then => true,
            Some(_) => {
                *again = Some(now + RETRY_INTERVAL);
                false
            }
        }
    }

    fn retry_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.retry_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run_script(
        &self,
        key: &str,
        limit: u32,
        points: u32,
    ) -> redis::RedisResult<(i64, u32, u32, i64)> {
        let connection = self
            .connection
            .get_or_try_init(|| self.client.get_connection_manager())
            .await?;
        self.script
            .key(key)
            .arg(limit)
            .arg(points)
            .invoke_async(&mut connection.clone())
            .await
    }
}

fn key(bucket: RateLimitBucket, who: ClientKey) -> String {
    let bucket = bucket.as_str();
    match who {
        ClientKey::Address(network) => format!(
            "fasttrack:limit:{bucket}:a{:016x}",
            u64::from_be_bytes(network)
        ),
        ClientKey::Network(bits, network) => {
            format!(
                "fasttrack:limit:{bucket}:n{bits}:{:016x}",
                u64::from_be_bytes(network)
            )
        }
        ClientKey::User(id) => format!("fasttrack:limit:{bucket}:u{id}"),
        ClientKey::Session(id) => format!("fasttrack:limit:{bucket}:s{id}"),
        ClientKey::Sessions(id) => format!("fasttrack:limit:{bucket}:us{id}"),
    }
}
