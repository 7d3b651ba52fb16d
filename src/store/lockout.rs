//! Lockout after wrong passwords, stored in the database. Each failure counts for the identifier
//! that was entered, whether it belongs to an account or not, together with its origin:
//!
//! - The **source** is an address (IPv6 by /64), a device that the owner has logged in from before,
//!   or a signed-in session. A few failures lock the source out of that identifier for a while.
//! - **Networks** are the /56 and the /48 around an IPv6 address, and a global one. Each is a leaky
//!   bucket: while it is full, attempts are refused until one leaks out. Known devices and sessions
//!   have no networks, so that strangers cannot lock the owner out.
//!
//! Counting by identifier and not by account keeps the responses for known and unknown identifiers
//! alike. An account has two identifiers, so guessing at both gets twice the limit.

use std::net::IpAddr;
use std::time::Duration;

use diesel::prelude::*;
use diesel::upsert::excluded;

use super::PURGE_BATCH;
use crate::access::Viewer;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::login_failures;
use crate::db::{Conn, Db, PooledConn};
use crate::error::{Code, Error, Result};
use crate::id::Id;
use crate::limits::network_text;
use crate::on;
use crate::time::Timestamp;

/// How many failures lock, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockoutPolicy {
    /// Failures that lock, each within `duration` of the one before.
    pub failures: i32,
    /// Duration of a lockout.
    pub duration: Duration,
}

/// The time in which a full bucket drains.
const LEAK_TIME: Duration = Duration::from_secs(3_600);
/// Bucket sizes in multiples of [`LockoutPolicy::failures`]. One /48 alone cannot fill the global
/// bucket.
const BUCKET_SIZE_56: i32 = 2;
const BUCKET_SIZE_48: i32 = 3;
const BUCKET_SIZE_GLOBAL: i32 = 5;

/// How long rows are needed after their last failure.
pub fn retention(rule: LockoutPolicy) -> Duration {
    rule.duration.max(LEAK_TIME)
}

/// An attempt to enter a password: for which identifier, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PasswordAttempt {
    identifier: String,
    source: String,
    /// With the size of each bucket in multiples of [`LockoutPolicy::failures`].
    networks: Vec<(String, i32)>,
}

impl PasswordAttempt {
    /// A login from an address, or from a device that the account's owner has logged in from
    /// before.
    pub fn login(identifier: &str, address: IpAddr, device: Option<Id>) -> Self {
        let identifier = identifier.to_owned();
        if let Some(device) = device {
            return Self {
                identifier,
                source: format!("device {device}"),
                networks: Vec::new(),
            };
        }
        let mut networks = vec![("everywhere".to_owned(), BUCKET_SIZE_GLOBAL)];
        if let IpAddr::V6(v6) = address.to_canonical() {
            let [a, b, c, d, ..] = v6.segments();
            networks.push((
                format!("{a:x}:{b:x}:{c:x}:{:x}::/56", d & 0xff00),
                BUCKET_SIZE_56,
            ));
            networks.push((format!("{a:x}:{b:x}:{c:x}::/48"), BUCKET_SIZE_48));
        }
        Self {
            identifier,
            source: network_text(address),
            networks,
        }
    }

    /// A signed-in user who is asked for the password again.
    pub fn session(viewer: &Viewer) -> Self {
        let (identifier, source) = (
            format!("user {}", viewer.id),
            format!("session {}", viewer.session_id),
        );
        Self {
            identifier,
            source,
            networks: Vec::new(),
        }
    }

    fn sources(&self) -> Vec<&str> {
        let mut sources: Vec<&str> = self
            .networks
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        sources.push(&self.source);
        // In a fixed order, so that two transactions cannot deadlock.
        sources.sort_unstable();
        sources
    }

    fn bucket(&self, source: &str, rule: LockoutPolicy) -> Option<i32> {
        let found = self.networks.iter().find(|(name, _)| name == source);
        found.map(|(_, factor)| factor.saturating_mul(rule.failures).max(1))
    }
}

/// Whether an attempt is allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// When the lockout of the source ends.
    pub locked_until: Option<Timestamp>,
    /// When the networks accept the next attempt.
    pub slowed_until: Option<Timestamp>,
    /// Whether failures of the source are counted. The right password clears them.
    pub has_failures: bool,
}

impl Verdict {
    /// The error to return if the attempt is refused.
    pub fn refusal(&self, now: Timestamp) -> Option<Error> {
        let until = self.locked_until.max(self.slowed_until)?;
        Some(Error::Refused {
            code: Code::LockedOut,
            message: "Too many wrong passwords. Try again later, or reset your password by mail."
                .into(),
            retry_after: Some(until.since(now)),
        })
    }
}

/// The counter of one identifier and source.
#[derive(Clone, Debug, Queryable)]
struct FailureCounter {
    source: String,
    failures: i32,
    failed_at: Timestamp,
    locked_until: Option<Timestamp>,
}

impl FailureCounter {
    /// The level of a bucket of this size, and the time from which its next leak counts.
    fn level(&self, now: Timestamp, size: i32) -> (i32, Timestamp) {
        let elapsed = now.since(self.failed_at).as_micros();
        let leaked = elapsed / interval(size).as_micros();
        match i32::try_from(leaked)
            .ok()
            .and_then(|leaked| Some((leaked, self.failures.checked_sub(leaked)?)))
        {
            Some((leaked, level @ 1..)) => (
                level,
                self.failed_at
                    .plus(interval(size).saturating_mul(leaked.unsigned_abs())),
            ),
            _ => (0, now),
        }
    }

    /// Counts a failure of a source; returns whether it locks.
    fn count(&mut self, now: Timestamp, rule: LockoutPolicy) -> bool {
        let is_recent = self.failed_at > now.minus(rule.duration);
        self.failures = if is_recent {
            self.failures.saturating_add(1)
        } else {
            1
        };
        self.failed_at = now;
        self.locked_until = None;
        let locks = self.failures >= rule.failures;
        if locks {
            self.failures = 0;
            self.locked_until = Some(now.plus(rule.duration));
        }
        locks
    }

    /// Adds one attempt to a bucket.
    fn fill(&mut self, now: Timestamp, size: i32) {
        let (level, since) = self.level(now, size);
        self.failures = level.saturating_add(1);
        self.failed_at = since;
    }
}

/// The time in which a bucket of this size leaks one attempt.
fn interval(size: i32) -> Duration {
    (LEAK_TIME / size.max(1).unsigned_abs()).max(Duration::from_micros(1))
}

fn evaluate(
    counters: &[FailureCounter],
    now: Timestamp,
    attempt: &PasswordAttempt,
    rule: LockoutPolicy,
) -> Verdict {
    let mut verdict = Verdict::default();
    for counter in counters {
        match attempt.bucket(&counter.source, rule) {
            None => {
                verdict.has_failures = true;
                verdict.locked_until = counter.locked_until.filter(|until| *until > now);
            }
            Some(size) => {
                let (level, since) = counter.level(now, size);
                if level >= size {
                    verdict.slowed_until =
                        verdict.slowed_until.max(Some(since.plus(interval(size))));
                }
            }
        }
    }
    verdict
}

macro_rules! counters {
    ($attempt:ident, $sources:ident) => {
        login_failures::table
            .filter(login_failures::identifier.eq(&$attempt.identifier))
            .filter(login_failures::source.eq_any(&$sources))
            .order_by(login_failures::source)
            .select((
                login_failures::source,
                login_failures::failures,
                login_failures::failed_at,
                login_failures::locked_until,
            ))
    };
}

/// Whether the attempt is allowed now.
pub async fn check(
    conn: &mut Conn,
    now: Timestamp,
    attempt: &PasswordAttempt,
    rule: LockoutPolicy,
) -> Result<Verdict> {
    let sources = attempt.sources();
    let counters: Vec<FailureCounter> = on!(conn, |c| counters!(attempt, sources).load(c).await)?;
    Ok(evaluate(&counters, now, attempt, rule))
}

/// Like [`check`], with the counter rows locked until the transaction ends, so that simultaneous
/// attempts see each other's failures. It locks nobody out.
pub async fn lock(
    tx: &mut Conn,
    now: Timestamp,
    attempt: &PasswordAttempt,
    rule: LockoutPolicy,
) -> Result<Verdict> {
    Ok(evaluate(
        &load_locked(tx, attempt).await?,
        now,
        attempt,
        rule,
    ))
}

async fn load_locked(tx: &mut Conn, attempt: &PasswordAttempt) -> Result<Vec<FailureCounter>> {
    let sources = attempt.sources();
    Ok(match &mut tx.pooled {
        PooledConn::Sqlite(c) => counters!(attempt, sources).load(&mut **c).await?,
        PooledConn::Postgres(c) => {
            counters!(attempt, sources)
                .for_update()
                .load(&mut &**c)
                .await?
        }
    })
}

/// The outcome of counting a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureOutcome {
    /// If it refuses, the attempt says nothing about the password.
    pub verdict: Verdict,
    /// Whether this failure locks the source out.
    pub locks: bool,
}

/// Counts a failure. While a network refuses attempts, only the source is counted, so that the
/// buckets drain under any number of attempts. Call it last in a transaction: every attempt for the
/// same identifier waits for it.
pub async fn count_failure(
    tx: &mut Conn,
    now: Timestamp,
    attempt: &PasswordAttempt,
    rule: LockoutPolicy,
) -> Result<FailureOutcome> {
    // Insert the rows to lock, in the order of locking.
    let none = attempt
        .sources()
        .into_iter()
        .map(|source| CounterRow::new(attempt, source, now));
    insert(tx, &none.collect::<Vec<_>>()).await?;
    let mut counters = load_locked(tx, attempt).await?;
    let verdict = evaluate(&counters, now, attempt, rule);
    if verdict.locked_until.is_some() {
        return Ok(FailureOutcome {
            verdict,
            locks: false,
        });
    }
    let (mut locks, is_slow) = (false, verdict.slowed_until.is_some());
    for counter in &mut counters {
        match attempt.bucket(&counter.source, rule) {
            None => locks = counter.count(now, rule),
            Some(size) if !is_slow => counter.fill(now, size),
            Some(_) => {}
        }
    }
    let rows = counters
        .iter()
        .filter(|counter| !is_slow || counter.source == attempt.source);
    let rows: Vec<CounterRow<'_>> = rows
        .map(|counter| CounterRow {
            identifier: &attempt.identifier,
            source: &counter.source,
            failures: counter.failures,
            failed_at: counter.failed_at,
            locked_until: counter.locked_until,
        })
        .collect();
    update(tx, &rows).await?;
    Ok(FailureOutcome { verdict, locks })
}

/// A counter row to write.
#[derive(Clone, Copy, Insertable)]
#[diesel(table_name = login_failures)]
struct CounterRow<'a> {
    identifier: &'a str,
    source: &'a str,
    failures: i32,
    failed_at: Timestamp,
    locked_until: Option<Timestamp>,
}

impl<'a> CounterRow<'a> {
    fn new(attempt: &'a PasswordAttempt, source: &'a str, now: Timestamp) -> Self {
        Self {
            identifier: &attempt.identifier,
            source,
            failures: 0,
            failed_at: now,
            locked_until: None,
        }
    }
}

/// Inserts the missing rows, in one round trip on PostgreSQL.
async fn insert(tx: &mut Conn, rows: &[CounterRow<'_>]) -> Result<()> {
    match &mut tx.pooled {
        PooledConn::Sqlite(c) => {
            for row in rows {
                let row = diesel::insert_into(login_failures::table)
                    .values(row)
                    .on_conflict_do_nothing();
                row.execute(&mut **c).await?;
            }
        }
        PooledConn::Postgres(c) => {
            let rows = diesel::insert_into(login_failures::table)
                .values(rows)
                .on_conflict_do_nothing();
            rows.execute(&mut &**c).await?;
        }
    }
    Ok(())
}

/// Updates existing rows, in one round trip on PostgreSQL.
async fn update(tx: &mut Conn, rows: &[CounterRow<'_>]) -> Result<()> {
    let key = (login_failures::identifier, login_failures::source);
    let new = (
        login_failures::failures.eq(excluded(login_failures::failures)),
        login_failures::failed_at.eq(excluded(login_failures::failed_at)),
        login_failures::locked_until.eq(excluded(login_failures::locked_until)),
    );
    match &mut tx.pooled {
        PooledConn::Sqlite(c) => {
            for row in rows {
                let row = diesel::insert_into(login_failures::table)
                    .values(row)
                    .on_conflict(key)
                    .do_update();
                row.set(new).execute(&mut **c).await?;
            }
        }
        PooledConn::Postgres(c) => {
            let rows = diesel::insert_into(login_failures::table)
                .values(rows)
                .on_conflict(key)
                .do_update();
            rows.set(new).execute(&mut &**c).await?;
        }
    }
    Ok(())
}

/// Clears the failures of the attempt's source, after the right password.
pub async fn clear(tx: &mut Conn, attempt: &PasswordAttempt) -> Result<()> {
    let row = login_failures::table.find((&attempt.identifier, &attempt.source));
    on!(tx, |c| diesel::delete(row).execute(c).await)?;
    Ok(())
}

/// Unlocks identifiers for every source, for example after a password reset.
pub async fn unlock(tx: &mut Conn, identifiers: &[&str]) -> Result<()> {
    let locked = login_failures::table.filter(login_failures::identifier.eq_any(identifiers));
    on!(tx, |c| diesel::delete(locked).execute(c).await)?;
    Ok(())
}

/// Deletes a batch of counters whose last failure is before `before`; returns how many.
pub async fn purge_expired(db: &Db, before: Timestamp) -> Result<usize> {
    db.transaction(async |tx| {
        let old = login_failures::table.filter(login_failures::failed_at.lt(before));
        let key = (login_failures::identifier, login_failures::source);
        let keys: Vec<(String, String)> = on!(tx, |c| old
            .select(key)
            .limit(PURGE_BATCH as i64)
            .load(c)
            .await)?;
        let (identifiers, sources): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
        let old = old
            .filter(login_failures::identifier.eq_any(&identifiers))
            .filter(login_failures::source.eq_any(&sources));
        Ok(on!(tx, |c| diesel::delete(old).execute(c).await)?)
    })
    .await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULE: LockoutPolicy = LockoutPolicy {
        failures: 5,
        duration: Duration::from_secs(1_800),
    };

    fn counter(source: &str) -> FailureCounter {
        FailureCounter {
            source: source.to_owned(),
            failures: 0,
            failed_at: Timestamp::default(),
            locked_until: None,
        }
    }

    proptest! {
        #[test]
        fn a_bucket_takes_at_most_twice_its_size_in_any_hour(
            size in 1..200_i32,
            pauses in prop::collection::vec(prop_oneof![Just(0), 0..200_000_000_u64, 0..7_200_000_000_u64], 1..500),
        ) {
            let (mut bucket, mut now, mut taken) = (counter("everywhere"), Timestamp::default(), Vec::new());
            for pause in pauses {
                now = now.plus(Duration::from_micros(pause));
                let (level, _) = bucket.level(now, size);
                if level < size {
                    bucket.fill(now, size);
                    taken.push(now);
                }
            }
            for (number, first) in taken.iter().enumerate() {
                let hour = taken[number..].iter().take_while(|at| at.since(*first) < LEAK_TIME).count();
                prop_assert!(hour <= 2 * size as usize, "{hour} of {size}");
            }
        }

        #[test]
        fn a_full_bucket_says_when_it_takes_the_next_guess(size in 1..200_i32, later in 0..3_600_000_000_u64) {
            let attempt = PasswordAttempt::login("alice", "192.0.2.1".parse().unwrap(), None);
            let rule = LockoutPolicy { failures: size, ..RULE };
            let size = size * BUCKET_SIZE_GLOBAL;
            let mut bucket = counter("everywhere");
            (0..size).for_each(|_| bucket.fill(Timestamp::default(), size));
            let now = Timestamp::default().plus(Duration::from_micros(later));
            let until = evaluate(&[bucket.clone()], now, &attempt, rule).slowed_until;
            let Some(until) = until else { return Ok(()) };
            prop_assert!(until > now && until.since(now) <= interval(size));
            prop_assert_eq!(evaluate(&[bucket], until, &attempt, rule).slowed_until, None);
        }

        #[test]
        fn an_ipv6_address_counts_for_the_networks_around_it(bits: u128) {
            let mine = PasswordAttempt::login("alice", std::net::Ipv6Addr::from(bits | 1 << 127).into(), None);
            for (flipped, shared) in [(0, 4), (63, 4), (64, 3), (71, 3), (72, 2), (79, 2), (80, 1), (126, 1)] {
                let other = std::net::Ipv6Addr::from((bits | 1 << 127) ^ (1 << flipped));
                let other = PasswordAttempt::login("alice", other.into(), None);
                let same = other.sources().into_iter().filter(|source| mine.sources().contains(source)).count();
                prop_assert_eq!(same, shared, "bit {}", flipped);
            }
        }
    }

    #[test]
    fn known_devices_and_sessions_have_no_networks() {
        let address = "2001:db8::1".parse().unwrap();
        let device = PasswordAttempt::login("alice", address, Some(Id::new()));
        assert_eq!(device.sources().len(), 1);
        assert_ne!(
            device,
            PasswordAttempt::login("alice", address, Some(Id::new()))
        );
        assert_eq!(
            PasswordAttempt::login("alice", "::ffff:192.0.2.1".parse().unwrap(), None).sources(),
            ["192.0.2.1", "everywhere"]
        );
    }
}
