//! Lockout: after too many wrong passwords an address may not try that identifier for a while. Counted by identifier
//! and source together, whether the identifier is anybody's or not, and kept in the database.

use std::time::Duration;

use diesel::prelude::*;

use super::CLEARED;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::login_failures;
use crate::db::{Conn, Db};
use crate::error::Result;
use crate::on;
use crate::time::Timestamp;

/// How many failures lock, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// So many failures, each within the duration of the one before.
    pub failures: i32,
    /// Lock for this long.
    pub duration: Duration,
}

/// Counts a failure; whether it was the one that locks.
pub async fn count_failure(tx: &mut Conn, now: Timestamp, identifier: &str, source: &str, rule: Rule) -> Result<bool> {
    let counted: Option<i32> = on!(tx, |c| diesel::update(login_failures::table.find((identifier, source)))
        .filter(login_failures::failed_at.gt(now.minus(rule.duration)))
        .set((login_failures::failures.eq(login_failures::failures + 1), login_failures::failed_at.eq(now)))
        .returning(login_failures::failures)
        .get_result(c)
        .await
        .optional())?;
    if counted.is_none() {
        let row = (
            login_failures::identifier.eq(identifier),
            login_failures::source.eq(source),
            login_failures::failures.eq(1),
            login_failures::failed_at.eq(now),
        );
        on!(tx, |c| diesel::insert_into(login_failures::table)
            .values(row)
            .on_conflict((login_failures::identifier, login_failures::source))
            .do_update()
            .set((
                login_failures::failures.eq(1),
                login_failures::failed_at.eq(now),
                login_failures::locked_until.eq(None::<Timestamp>),
            ))
            .execute(c)
            .await)?;
    }
    let locks = counted.unwrap_or(1) >= rule.failures;
    if locks {
        on!(tx, |c| diesel::update(login_failures::table.find((identifier, source)))
            .set((login_failures::failures.eq(0), login_failures::locked_until.eq(now.plus(rule.duration))))
            .execute(c)
            .await)?;
    }
    Ok(locks)
}

/// Forgets the failures of this source with this identifier, after a right password.
pub async fn forget(tx: &mut Conn, identifier: &str, source: &str) -> Result<()> {
    on!(tx, |c| diesel::delete(login_failures::table.find((identifier, source))).execute(c).await)?;
    Ok(())
}

/// Unlocks identifiers from everywhere: after the password was set anew by mail.
pub async fn unlock(tx: &mut Conn, identifiers: &[&str]) -> Result<()> {
    let locked = login_failures::table.filter(login_failures::identifier.eq_any(identifiers));
    on!(tx, |c| diesel::delete(locked).execute(c).await)?;
    Ok(())
}

/// Forgets some of the failures that ended before this moment; how many.
pub async fn drop_ended(db: &Db, before: Timestamp) -> Result<usize> {
    db.transaction(async |tx| {
        let old = login_failures::table.filter(login_failures::failed_at.lt(before));
        let key = (login_failures::identifier, login_failures::source);
        let keys: Vec<(String, String)> = on!(tx, |c| old.select(key).limit(CLEARED as i64).load(c).await)?;
        let (identifiers, sources): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
        let old =
            old.filter(login_failures::identifier.eq_any(&identifiers)).filter(login_failures::source.eq_any(&sources));
        Ok(on!(tx, |c| diesel::delete(old).execute(c).await)?)
    })
    .await
}
