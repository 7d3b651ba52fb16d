//! Former usernames, which stay reserved for their account for [`RESERVATION_PERIOD`]. An attacker
//! who renames an account with a stolen token cannot impersonate its owner under the old name, and
//! the owner can take it back.

use std::time::Duration;

use diesel::dsl::exists;
use diesel::prelude::*;

use super::PURGE_BATCH;
use super::value::fold;
use crate::db::page::any_id;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::username_changes;
use crate::db::{Conn, Db};
use crate::error::Result;
use crate::id::Id;
use crate::on;
use crate::time::Timestamp;

/// How long a former username is reserved.
pub const RESERVATION_PERIOD: Duration = Duration::from_secs(3 * 86_400);
/// Former usernames reserved per account. The oldest have priority, because the first is the
/// owner's: many changes neither end its reservation nor reserve names in bulk.
const MAX_RESERVED: i64 = 3;

/// A former username of an account.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = username_changes)]
pub struct UsernameChange {
    pub id: Id,
    pub user_id: Id,
    /// The former username, folded.
    pub username_key: String,
    /// When it was first given up.
    pub changed_at: Timestamp,
    /// When other accounts may take it.
    pub expires_at: Timestamp,
}

/// Reserves a username that an account gives up. The account must be locked.
pub async fn reserve(tx: &mut Conn, now: Timestamp, user_id: Id, username: &str) -> Result<()> {
    let (key, expires_at) = (fold(username), now.plus(RESERVATION_PERIOD));
    let theirs = || username_changes::table.filter(username_changes::user_id.eq(user_id));
    let expired = theirs().filter(username_changes::expires_at.le(now));
    on!(tx, |c| diesel::delete(expired).execute(c).await)?;
    let known = theirs().filter(username_changes::username_key.eq(&key));
    let known = on!(tx, |c| diesel::update(known)
        .set(username_changes::expires_at.eq(expires_at))
        .execute(c)
        .await)?;
    let count: i64 = on!(tx, |c| theirs().count().get_result(c).await)?;
    if known == 0 && count < MAX_RESERVED {
        let row = UsernameChange {
            id: Id::new(),
            user_id,
            username_key: key,
            changed_at: now,
            expires_at,
        };
        on!(tx, |c| diesel::insert_into(username_changes::table)
            .values(&row)
            .execute(c)
            .await)?;
    }
    Ok(())
}

/// Whether a username is reserved for another account.
pub async fn is_reserved(
    conn: &mut Conn,
    now: Timestamp,
    username: &str,
    user_id: Id,
) -> Result<bool> {
    let reserved = username_changes::table
        .filter(username_changes::username_key.eq(fold(username)))
        .filter(username_changes::user_id.ne(user_id))
        .filter(username_changes::expires_at.gt(now));
    Ok(on!(conn, |c| diesel::select(exists(reserved))
        .get_result(c)
        .await)?)
}

/// Deletes the former usernames of an account that is being deleted.
pub async fn delete_for_user(tx: &mut Conn, user_id: Id) -> Result<()> {
    let theirs = username_changes::table.filter(username_changes::user_id.eq(user_id));
    on!(tx, |c| diesel::delete(theirs).execute(c).await)?;
    Ok(())
}

/// Deletes a batch of expired rows; returns how many.
pub async fn purge_expired(db: &Db, now: Timestamp) -> Result<usize> {
    db.transaction(async |tx| {
        let expired = username_changes::table.filter(username_changes::expires_at.le(now));
        let expired = expired
            .select(username_changes::id)
            .limit(PURGE_BATCH as i64);
        let ids: Vec<Id> = on!(tx, |c| expired.load(c).await)?;
        let expired = username_changes::table.filter(any_id(username_changes::id, &ids));
        Ok(on!(tx, |c| diesel::delete(expired).execute(c).await)?)
    })
    .await
}
