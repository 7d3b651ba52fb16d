//! Rate limits per minute, per address or user, counted in a sliding window. The submodules have
//! the other limits: bytes in memory, bytes decoded from rows, and storage quotas.
//!
//! Each key has two counters: the current minute, and the previous one weighted by the part of it
//! that the window still covers. This bounds memory. The count is exact if the requests of the
//! previous minute were evenly spread.

pub mod byte_budget;
pub mod decode_budget;
pub mod quotas;
mod redis_counters;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::access::Viewer;
use crate::config::RateLimits;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::metrics::Labels;
use crate::time::Timestamp;
use decode_budget::DecodeBudget;
pub use quotas::{MIB, StorageQuotas};
use redis_counters::RedisCounters;

const WINDOW_MICROS: i64 = 60_000_000;
const SHARDS: usize = 16;
/// Maximum number of keys per shard, so that a million addresses cannot exhaust memory.
const KEYS_PER_SHARD: usize = 8_192;

/// What a rate limit applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RateLimitBucket {
    /// Requests with or for a credential: registration, login, password changes, account e-mails.
    Credentials,
    /// Any other request under `/auth`.
    Auth,
    /// A GraphQL request.
    Graphql,
    /// Cost of GraphQL operations, in points.
    Cost,
    /// Cost of the events that are delivered to a user, in points. Others cause events, so these
    /// must not use up what the user has for operations.
    Deliveries,
}

impl RateLimitBucket {
    /// The name in Redis keys and metric labels.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Auth => "auth",
            Self::Graphql => "graphql",
            Self::Cost => "cost",
            Self::Deliveries => "deliveries",
        }
    }
}

/// The owner of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientKey {
    /// An anonymous client: an IPv4 address or an IPv6 /64, the usual size of one customer network.
    Address([u8; 8]),
    /// A network of this prefix length around an IPv6 address.
    Network(u8, [u8; 8]),
    /// A signed-in user.
    User(Id),
    /// A session of a signed-in user.
    Session(Id),
    /// All sessions of a signed-in user together.
    Sessions(Id),
}

/// Credential requests of all sessions of a user, in multiples of those of one session.
const SESSIONS: u32 = 4;

/// Prefix lengths of the networks around an IPv6 address, which one customer may hold entirely,
/// with their limit in multiples of the limit of a /64.
const IPV6_NETWORKS: [(u8, u32); 2] = [(56, 4), (48, 16)];

impl ClientKey {
    /// The owner for an address.
    pub fn address(address: IpAddr) -> Self {
        let mut key = [0; 8];
        match address.to_canonical() {
            IpAddr::V4(v4) => key[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => key.copy_from_slice(&v6.octets()[..8]),
        }
        Self::Address(key)
    }

    /// The owners for the networks around an IPv6 address, smallest first.
    fn enclosing_networks(address: IpAddr) -> impl Iterator<Item = Self> {
        let v6 = match address.to_canonical() {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(u128::from(v6)),
        };
        v6.into_iter().flat_map(|v6| {
            IPV6_NETWORKS.map(|(bits, _)| {
                let [a, b, c, d, e, f, g, h, ..] =
                    (v6 >> (128 - bits) << (128 - bits)).to_be_bytes();
                Self::Network(bits, [a, b, c, d, e, f, g, h])
            })
        })
    }

    /// Multiple of the limit that this owner gets.
    fn multiplier(&self) -> u32 {
        match self {
            Self::Network(bits, _) => IPV6_NETWORKS
                .iter()
                .find(|(known, _)| known == bits)
                .map_or(1, |(_, share)| *share),
            Self::Sessions(_) => SESSIONS,
            Self::Address(_) | Self::User(_) | Self::Session(_) => 1,
        }
    }
}

/// The network of an address as text: the IPv4 address itself, or the IPv6 /64.
pub fn network_text(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

#[derive(Clone, Copy, Default)]
struct WindowCounter {
    minute: i64,
    count: u32,
    previous: u32,
}

impl WindowCounter {
    /// The weighted count, in points times the window length.
    fn weight(&self, elapsed: i64) -> i64 {
        i64::from(self.previous) * (WINDOW_MICROS - elapsed) + i64::from(self.count) * WINDOW_MICROS
    }

    /// Time until one more point fits into a full window.
    fn wait(&self, limit: u32, elapsed: i64) -> Duration {
        // The previous minute must expire as far as needed, or all of it and a part of the current
        // one.
        let free_at = if self.count < limit {
            WINDOW_MICROS
                - i64::from(limit - self.count) * WINDOW_MICROS / i64::from(self.previous.max(1))
        } else {
            WINDOW_MICROS + WINDOW_MICROS
                - i64::from(limit) * WINDOW_MICROS / i64::from(self.count.max(1))
        };
        // At that moment the window is exactly full; one microsecond later a point fits.
        Duration::from_micros(u64::try_from(free_at - elapsed + 1).unwrap_or(1))
    }
}

/// State of a rate limit after a request was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimitStatus {
    /// Points per minute.
    pub limit: u32,
    /// Points used in the window.
    pub used: u32,
    /// Time until the current minute ends and the points used in it begin to expire.
    pub reset: Duration,
}

impl RateLimitStatus {
    fn new(window: WindowCounter, limit: u32, elapsed: i64) -> Self {
        let used = (window.weight(elapsed) + WINDOW_MICROS - 1) / WINDOW_MICROS;
        let reset = Duration::from_micros(u64::try_from(WINDOW_MICROS - elapsed).unwrap_or(0));
        Self {
            limit,
            used: u32::try_from(used).unwrap_or(u32::MAX),
            reset,
        }
    }

    /// Points left.
    pub const fn remaining(&self) -> u32 {
        self.limit.saturating_sub(self.used)
    }
}

/// Rate limit counters, in memory or in Redis.
pub struct RateLimiter {
    limits: Option<RateLimits>,
    hasher: RandomState,
    shards: Vec<Mutex<HashMap<(RateLimitBucket, ClientKey), WindowCounter>>>,
    shared: Option<RedisCounters>,
    /// Rejected requests, by limit.
    pub refused: Family<Labels<1>, Counter>,
    /// Requests counted in memory because Redis did not answer.
    pub local_fallbacks: Counter,
    /// Budget for the bytes that operations decode from rows.
    pub decoding: DecodeBudget,
}

impl RateLimiter {
    /// Creates empty counters. `None` disables the limits; without `redis` they are counted in
    /// memory.
    pub fn new(limits: Option<RateLimits>, redis: Option<redis::Client>) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect();
        Self {
            limits,
            hasher: RandomState::new(),
            shards,
            shared: redis.map(RedisCounters::new),
            refused: Family::default(),
            local_fallbacks: Counter::default(),
            decoding: DecodeBudget::default(),
        }
    }

    /// Counts a request, or rejects it with the time to wait. A rejected request does not count.
    pub async fn admit(
        &self,
        bucket: RateLimitBucket,
        who: ClientKey,
        now: Timestamp,
    ) -> Result<()> {
        self.spend(bucket, who, 1, now).await.map(|_| ())
    }

    /// Counts a request with a credential for the networks around an IPv6 address, because one
    /// customer may have thousands of /64. Call this after the address itself was admitted:
    /// requests rejected there do not count here.
    pub async fn admit_networks(&self, address: IpAddr, now: Timestamp) -> Result<()> {
        for network in ClientKey::enclosing_networks(address) {
            self.admit(RateLimitBucket::Credentials, network, now)
                .await?;
        }
        Ok(())
    }

    /// Counts a request with the password of a signed-in user. A session has a limit of its own, so
    /// that one with a stolen token cannot use up the attempts of the owner's; the limit of all
    /// sessions together keeps many of them from multiplying guesses.
    pub async fn admit_session(&self, viewer: &Viewer, now: Timestamp) -> Result<()> {
        self.admit(
            RateLimitBucket::Credentials,
            ClientKey::Session(viewer.session_id),
            now,
        )
        .await?;
        self.admit(
            RateLimitBucket::Credentials,
            ClientKey::Sessions(viewer.id),
            now,
        )
        .await
    }

    /// Counts points if at least one is left, so an expensive request may overdraw the limit and
    /// delays later ones. Returns the state of the limit, or `None` if there is no limit.
    pub async fn spend(
        &self,
        bucket: RateLimitBucket,
        who: ClientKey,
        points: u32,
        now: Timestamp,
    ) -> Result<Option<RateLimitStatus>> {
        let Some(limits) = self.limits else {
            return Ok(None);
        };
        let limit = match bucket {
            RateLimitBucket::Credentials => limits.credentials_per_minute,
            RateLimitBucket::Auth => limits.auth_per_minute,
            RateLimitBucket::Graphql => limits.graphql_per_minute,
            RateLimitBucket::Cost | RateLimitBucket::Deliveries => limits.cost_per_minute,
        };
        let limit = limit.saturating_mul(who.multiplier());
        let shared = match &self.shared {
            Some(shared) => shared.spend(bucket, who, limit, points).await,
            None => None,
        };
        if shared.is_none() && self.shared.is_some() {
            self.local_fallbacks.inc();
        }
        // If Redis fails, each instance counts alone: too lenient for a while is better than an
        // outage.
        let (fits, window, elapsed) =
            shared.unwrap_or_else(|| self.count((bucket, who), limit, points, now));
        if fits {
            return Ok(Some(RateLimitStatus::new(window, limit, elapsed)));
        }
        self.refused
            .get_or_create(&[("limit", bucket.as_str().into())])
            .inc();
        Err(Error::RateLimited {
            limit,
            retry_after: window.wait(limit, elapsed),
        })
    }

    /// Whether Redis is configured.
    pub const fn uses_redis(&self) -> bool {
        self.shared.is_some()
    }

    /// Whether Redis answers, or `None` if it is not configured.
    pub async fn ping_redis(&self) -> Option<bool> {
        match &self.shared {
            Some(shared) => Some(shared.ping().await),
            None => None,
        }
    }

    fn count(
        &self,
        key: (RateLimitBucket, ClientKey),
        limit: u32,
        points: u32,
        now: Timestamp,
    ) -> (bool, WindowCounter, i64) {
        let shard = usize::try_from(self.hasher.hash_one(key)).unwrap_or_default() % SHARDS;
        let mut shard = self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let minute = now.micros().div_euclid(WINDOW_MICROS);
        if shard.len() >= KEYS_PER_SHARD && !shard.contains_key(&key) {
            shard.retain(|_, window| window.minute + 1 >= minute);
            if shard.len() >= KEYS_PER_SHARD {
                // This many active keys are an attack. Resetting all of them is fairer than
                // rejecting every new client.
                shard.clear();
            }
        }
        let window = shard.entry(key).or_insert(WindowCounter {
            minute,
            count: 0,
            previous: 0,
        });
        match minute - window.minute {
            0 => {}
            1 => {
                *window = WindowCounter {
                    minute,
                    count: 0,
                    previous: window.count,
                }
            }
            _ => {
                *window = WindowCounter {
                    minute,
                    count: 0,
                    previous: 0,
                }
            }
        }
        let elapsed = now.micros().rem_euclid(WINDOW_MICROS);
        let fits = window.weight(elapsed) < i64::from(limit) * WINDOW_MICROS;
        if fits {
            window.count = window.count.saturating_add(points);
        }
        (fits, *window, elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RateLimits = RateLimits {
        credentials_per_minute: 5,
        auth_per_minute: 100,
        graphql_per_minute: 10,
        cost_per_minute: 100,
    };

    fn address(text: &str) -> ClientKey {
        ClientKey::address(text.parse().unwrap())
    }

    #[tokio::test]
    async fn the_window_slides() {
        let limits = RateLimiter::new(Some(LIMITS), None);
        let start = Timestamp::from_micros(WINDOW_MICROS * 1_000 + WINDOW_MICROS / 2);
        for _ in 0..5 {
            assert!(
                limits
                    .admit(RateLimitBucket::Credentials, address("192.0.2.1"), start)
                    .await
                    .is_ok()
            );
        }
        let Err(Error::RateLimited {
            retry_after: wait,
            limit: 5,
        }) = limits
            .admit(RateLimitBucket::Credentials, address("192.0.2.1"), start)
            .await
        else {
            panic!("not refused")
        };
        assert!(
            limits
                .admit(RateLimitBucket::Credentials, address("192.0.2.2"), start)
                .await
                .is_ok()
        );
        assert!(
            limits
                .admit(
                    RateLimitBucket::Credentials,
                    address("192.0.2.1"),
                    start.plus(wait / 2)
                )
                .await
                .is_err()
        );
        assert!(
            limits
                .admit(
                    RateLimitBucket::Credentials,
                    address("192.0.2.1"),
                    start.plus(wait)
                )
                .await
                .is_ok()
        );
    }

    #[test]
    fn ipv6_counts_by_network_and_mapped_addresses_as_ipv4() {
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:192.0.2.1"), address("192.0.2.1"));
    }

    #[tokio::test]
    async fn many_addresses_take_bounded_memory() {
        let limits = RateLimiter::new(Some(LIMITS), None);
        for number in 0..1_000_000_u32 {
            let who = ClientKey::address(IpAddr::V4(number.into()));
            limits
                .admit(RateLimitBucket::Auth, who, Timestamp::from_micros(0))
                .await
                .unwrap();
        }
        let total: usize = limits
            .shards
            .iter()
            .map(|shard| shard.lock().unwrap().len())
            .sum();
        assert!(total <= SHARDS * KEYS_PER_SHARD, "{total}");
    }

    #[tokio::test]
    async fn points_add_up_and_run_out() {
        let limits = RateLimiter::new(Some(LIMITS), None);
        let (who, start) = (
            address("192.0.2.1"),
            Timestamp::from_micros(WINDOW_MICROS * 1_000),
        );
        let standing = limits
            .spend(RateLimitBucket::Cost, who, 70, start)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (standing.limit, standing.used, standing.remaining()),
            (100, 70, 30)
        );
        assert_eq!(standing.reset, Duration::from_secs(60));
        assert_eq!(
            limits
                .spend(RateLimitBucket::Cost, who, 70, start)
                .await
                .unwrap()
                .unwrap()
                .remaining(),
            0
        );
        assert!(
            limits
                .spend(RateLimitBucket::Cost, who, 1, start)
                .await
                .is_err()
        );
        assert!(
            limits
                .spend(
                    RateLimitBucket::Cost,
                    who,
                    1,
                    start.plus(Duration::from_secs(120))
                )
                .await
                .is_ok()
        );
    }

    /// Needs a Redis: `TEST_REDIS_URL=redis://127.0.0.1:6379 cargo test --lib limits`.
    #[tokio::test]
    async fn instances_share_what_is_counted_and_count_alone_when_redis_is_away() {
        let Ok(url) = std::env::var("TEST_REDIS_URL") else {
            return;
        };
        let on =
            |url: &str| RateLimiter::new(Some(LIMITS), Some(redis::Client::open(url).unwrap()));
        let now = Timestamp::from_micros(0);
        let are_shared = async || {
            let (one, other, who) = (on(&url), on(&url), ClientKey::User(Id::new()));
            for _ in 0..5 {
                assert!(one.admit(RateLimitBucket::Graphql, who, now).await.is_ok());
                assert!(
                    other
                        .admit(RateLimitBucket::Graphql, who, now)
                        .await
                        .is_ok()
                );
            }
            one.admit(RateLimitBucket::Graphql, who, now).await.is_err()
                && other
                    .admit(RateLimitBucket::Graphql, who, now)
                    .await
                    .is_err()
        };
        // After one slow answer of Redis, as on a stalled machine, an instance counts alone for a
        // second.
        assert!(are_shared().await || are_shared().await);
        let (away, who) = (on("redis://127.0.0.1:1"), ClientKey::User(Id::new()));
        for _ in 0..10 {
            assert!(away.admit(RateLimitBucket::Graphql, who, now).await.is_ok());
        }
        assert!(
            away.admit(RateLimitBucket::Graphql, who, now)
                .await
                .is_err()
        );
    }
}
