//! Rate limits: how often an address or a user may do something in a minute, counted in a sliding window.
//!
//! Two counters a key: the running minute, and the one before it weighed by how much of it the window still covers.
//! That bounds the memory and errs by at most what the previous minute was uneven.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::config::RateLimits;
use crate::error::{Code, Error, Result};
use crate::id::Id;
use crate::time::Timestamp;

const WINDOW: i64 = 60_000_000;
const SHARDS: usize = 16;
/// Keys that are kept at most, so that a million addresses cannot fill the memory.
const KEYS_PER_SHARD: usize = 8_192;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Door {
    /// A request that carries a credential.
    Credentials,
    /// Another request under `/auth`.
    Auth,
    /// A GraphQL request.
    Graphql,
}

/// Who is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// Nobody known: the address, an IPv6 one by its /64, which is what one customer gets.
    Address([u8; 8]),
    /// A signed-in user.
    User(Id),
}

impl Who {
    /// The key of an address.
    pub fn address(address: IpAddr) -> Self {
        let mut key = [0; 8];
        match address.to_canonical() {
            IpAddr::V4(v4) => key[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => key.copy_from_slice(&v6.octets()[..8]),
        }
        Self::Address(key)
    }
}

/// The network of an address as text: the address itself, of IPv6 its /64.
pub fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

#[derive(Clone, Copy)]
struct Window {
    minute: i64,
    count: u32,
    previous: u32,
}

/// The counters of this instance.
pub struct Limits {
    limits: Option<RateLimits>,
    hasher: RandomState,
    shards: Vec<Mutex<HashMap<(Door, Who), Window>>>,
}

impl Limits {
    /// With these limits, or none.
    pub fn new(limits: Option<RateLimits>) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect();
        Self { limits, hasher: RandomState::new(), shards }
    }

    /// Counts a request, or refuses it with the time to wait; a refused one does not count.
    pub fn admit(&self, door: Door, who: Who, now: Timestamp) -> Result<()> {
        let Some(limits) = self.limits else {
            return Ok(());
        };
        let limit = match door {
            Door::Credentials => limits.credentials_per_minute,
            Door::Auth => limits.auth_per_minute,
            Door::Graphql => limits.graphql_per_minute,
        };
        let key = (door, who);
        let shard = usize::try_from(self.hasher.hash_one(key)).unwrap_or_default() % SHARDS;
        let mut shard = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        let minute = now.micros().div_euclid(WINDOW);
        if shard.len() >= KEYS_PER_SHARD && !shard.contains_key(&key) {
            shard.retain(|_, window| window.minute + 1 >= minute);
            if shard.len() >= KEYS_PER_SHARD {
                // So many at once is an attack: forgetting all of them is fairer than refusing everybody new.
                shard.clear();
            }
        }
        let window = shard.entry(key).or_insert(Window { minute, count: 0, previous: 0 });
        match minute - window.minute {
            0 => {}
            1 => *window = Window { minute, count: 0, previous: window.count },
            _ => *window = Window { minute, count: 0, previous: 0 },
        }
        let elapsed = now.micros().rem_euclid(WINDOW);
        let carried = i64::from(window.previous) * (WINDOW - elapsed);
        if carried + i64::from(window.count) * WINDOW >= i64::from(limit) * WINDOW {
            // What must run out before one more fits: of the previous minute if that is enough, else all of this one.
            let free_at = if window.count < limit {
                WINDOW - i64::from(limit - window.count) * WINDOW / i64::from(window.previous.max(1))
            } else {
                WINDOW + WINDOW - i64::from(limit) * WINDOW / i64::from(window.count.max(1))
            };
            let micros = u64::try_from(free_at - elapsed).unwrap_or(0);
            return Err(Error::Refused {
                code: Code::RateLimited,
                message: "Too many requests. Try again later.".into(),
                retry_after: Some(Duration::from_micros(micros)),
            });
        }
        window.count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RateLimits = RateLimits { credentials_per_minute: 5, auth_per_minute: 100, graphql_per_minute: 10 };

    fn address(text: &str) -> Who {
        Who::address(text.parse().unwrap())
    }

    #[test]
    fn the_window_slides() {
        let limits = Limits::new(Some(LIMITS));
        let start = Timestamp::from_micros(WINDOW * 1_000 + WINDOW / 2);
        for _ in 0..5 {
            assert!(limits.admit(Door::Credentials, address("192.0.2.1"), start).is_ok());
        }
        let Err(Error::Refused { retry_after: Some(wait), .. }) =
            limits.admit(Door::Credentials, address("192.0.2.1"), start)
        else {
            panic!("not refused")
        };
        assert!(limits.admit(Door::Credentials, address("192.0.2.2"), start).is_ok());
        assert!(limits.admit(Door::Credentials, address("192.0.2.1"), start.plus(wait / 2)).is_err());
        assert!(
            limits.admit(Door::Credentials, address("192.0.2.1"), start.plus(wait + Duration::from_secs(1))).is_ok()
        );
    }

    #[test]
    fn ipv6_counts_by_network_and_mapped_addresses_as_ipv4() {
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:192.0.2.1"), address("192.0.2.1"));
    }

    #[test]
    fn many_addresses_take_bounded_memory() {
        let limits = Limits::new(Some(LIMITS));
        for number in 0..300_000_u32 {
            let who = Who::address(IpAddr::V4(number.into()));
            limits.admit(Door::Auth, who, Timestamp::from_micros(0)).unwrap();
        }
        let kept: usize = limits.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(kept <= SHARDS * KEYS_PER_SHARD, "{kept}");
    }
}
