//! Tokens sent by mail, to verify an e-mail address or to reset a password. Each works once, and
//! only its hash is stored. A new token does not revoke older ones: anyone can request one, and
//! must not invalidate the owner's link.

use diesel::deserialize::FromSqlRow;
use diesel::expression::AsExpression;
use diesel::prelude::*;

use super::PURGE_BATCH;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::mail_tokens;
use crate::db::{Conn, Db};
use crate::error::Result;
use crate::id::Id;
use crate::on;
use crate::stored_as_smallint;
use crate::time::Timestamp;

/// What a mailed token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, AsExpression, FromSqlRow)]
#[diesel(sql_type = diesel::sql_types::SmallInt)]
pub enum Purpose {
    /// Proves ownership of an e-mail address.
    VerifyEmail,
    /// Sets a new password.
    ResetPassword,
}
stored_as_smallint!(Purpose { VerifyEmail = 1, ResetPassword = 2 });

/// Stores the hash of a new token.
pub async fn insert(
    tx: &mut Conn,
    user_id: Id,
    purpose: Purpose,
    hash: &[u8],
    email: &str,
    expires_at: Timestamp,
) -> Result<()> {
    let row = (
        mail_tokens::user_id.eq(user_id),
        mail_tokens::purpose.eq(purpose),
        mail_tokens::hash.eq(hash),
        mail_tokens::email.eq(email),
        mail_tokens::expires_at.eq(expires_at),
    );
    on!(tx, |c| diesel::insert_into(mail_tokens::table)
        .values(row)
        .execute(c)
        .await)?;
    Ok(())
}

/// Redeems a valid token: deletes it, and returns its user and e-mail address.
pub async fn redeem(
    tx: &mut Conn,
    now: Timestamp,
    purpose: Purpose,
    hash: &[u8],
) -> Result<Option<(Id, String)>> {
    let good = mail_tokens::table
        .filter(mail_tokens::hash.eq(hash))
        .filter(mail_tokens::purpose.eq(purpose))
        .filter(mail_tokens::expires_at.gt(now));
    Ok(on!(tx, |c| diesel::delete(good)
        .returning((mail_tokens::user_id, mail_tokens::email))
        .get_result(c)
        .await
        .optional())?)
}

/// Revokes a user's tokens for one purpose.
pub async fn revoke(tx: &mut Conn, user_id: Id, purpose: Purpose) -> Result<()> {
    let theirs = mail_tokens::table
        .filter(mail_tokens::user_id.eq(user_id))
        .filter(mail_tokens::purpose.eq(purpose));
    on!(tx, |c| diesel::delete(theirs).execute(c).await)?;
    Ok(())
}

/// Deletes a batch of expired tokens; returns how many.
pub async fn purge_expired(db: &Db, now: Timestamp) -> Result<usize> {
    db.transaction(async |tx| {
        let ended = mail_tokens::table.filter(mail_tokens::expires_at.le(now));
        let hashes: Vec<Vec<u8>> = on!(tx, |c| ended
            .select(mail_tokens::hash)
            .limit(PURGE_BATCH as i64)
            .load(c)
            .await)?;
        let ended = mail_tokens::table.filter(mail_tokens::hash.eq_any(&hashes));
        Ok(on!(tx, |c| diesel::delete(ended).execute(c).await)?)
    })
    .await
}
