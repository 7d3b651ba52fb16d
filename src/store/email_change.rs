//! Requested e-mail changes. The link mailed to the old address undoes a change for
//! [`UNDO_PERIOD`], even after it was confirmed. `auth` derives the link's token from the row's id.

use std::time::Duration;

use diesel::dsl::exists;
use diesel::prelude::*;

use super::PURGE_BATCH;
use super::mail;
use super::user::User;
use super::value::fold;
use crate::db::page::any_id;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::email_changes;
use crate::db::{Conn, Db};
use crate::error::Result;
use crate::id::Id;
use crate::on;
use crate::time::Timestamp;

/// How long after its request a change can be undone.
pub const UNDO_PERIOD: Duration = Duration::from_secs(3 * 86_400);

/// The address that an account had when a change was requested.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = email_changes)]
pub struct EmailChange {
    /// The link's token is derived from it.
    pub id: Id,
    pub user_id: Id,
    /// The old address.
    pub email: String,
    /// The old address, folded.
    pub email_key: String,
    /// Whether the old address was verified.
    pub was_verified: bool,
    /// When the change was first requested.
    pub requested_at: Timestamp,
    /// When the link expires.
    pub expires_at: Timestamp,
}

/// Records a requested change, and queues the mail to the current address. Another request keeps
/// the links of earlier mails valid.
///
/// Rows are found by the folded address, but to a mail server another spelling may be another
/// mailbox. So another spelling never replaces a verified address: the link in the first mailbox
/// would give the account to the owner of the second.
pub async fn request(tx: &mut Conn, now: Timestamp, user: &User, requested: &str) -> Result<()> {
    let (key, expires_at) = (fold(&user.email), now.plus(UNDO_PERIOD));
    let same = || {
        email_changes::user_id
            .eq(user.id)
            .and(email_changes::email_key.eq(&key))
    };
    // An unverified address may belong to someone else: links mailed to it must not restore
    // another address.
    let unverified = email_changes::was_verified
        .eq(false)
        .and(email_changes::email.ne(&user.email));
    let replaced = same().and(unverified.or(email_changes::expires_at.le(now)));
    on!(tx, |c| diesel::delete(
        email_changes::table.filter(replaced)
    )
    .execute(c)
    .await)?;
    let known: Option<Id> = on!(tx, |c| diesel::update(email_changes::table.filter(same()))
        .set(email_changes::expires_at.eq(expires_at))
        .returning(email_changes::id)
        .get_result(c)
        .await
        .optional())?;
    let id = match known {
        Some(id) => {
            if user.email_verified {
                // No change if the row is verified. If not, its address is the same and may now be
                // verified.
                let known = diesel::update(email_changes::table.find(id));
                on!(tx, |c| known
                    .set(email_changes::was_verified.eq(true))
                    .execute(c)
                    .await)?;
            }
            id
        }
        None => {
            let row = EmailChange {
                id: Id::new(),
                user_id: user.id,
                email: user.email.clone(),
                email_key: key,
                was_verified: user.email_verified,
                requested_at: now,
                expires_at,
            };
            on!(tx, |c| diesel::insert_into(email_changes::table)
                .values(&row)
                .execute(c)
                .await)?;
            row.id
        }
    };
    let detail = format!("{id} {requested}");
    mail::queue(
        tx,
        now,
        mail::MailKind::EmailChangeRequested,
        &user.email,
        Some(user.id),
        &detail,
    )
    .await
}

/// The user whose change this is, if it can still be undone.
pub async fn owner(conn: &mut Conn, now: Timestamp, id: Id) -> Result<Option<Id>> {
    let change = email_changes::table
        .find(id)
        .filter(email_changes::expires_at.gt(now));
    Ok(on!(conn, |c| change
        .select(email_changes::user_id)
        .first(c)
        .await
        .optional())?)
}

/// Deletes and returns a change. All changes requested after it are deleted too.
pub async fn take(tx: &mut Conn, now: Timestamp, id: Id) -> Result<Option<EmailChange>> {
    let change = email_changes::table
        .find(id)
        .filter(email_changes::expires_at.gt(now));
    let taken: Option<EmailChange> = on!(tx, |c| diesel::delete(change)
        .returning(EmailChange::as_select())
        .get_result(c)
        .await
        .optional())?;
    if let Some(change) = &taken {
        let later = email_changes::table
            .filter(email_changes::user_id.eq(change.user_id))
            .filter(email_changes::requested_at.ge(change.requested_at));
        on!(tx, |c| diesel::delete(later).execute(c).await)?;
    }
    Ok(taken)
}

/// Whether an address is reserved for another account, which can still restore it.
pub async fn is_reserved(
    conn: &mut Conn,
    now: Timestamp,
    email: &str,
    user_id: Id,
) -> Result<bool> {
    let reserved = email_changes::table
        .filter(email_changes::email_key.eq(fold(email)))
        .filter(email_changes::user_id.ne(user_id))
        .filter(email_changes::was_verified.eq(true))
        .filter(email_changes::expires_at.gt(now));
    Ok(on!(conn, |c| diesel::select(exists(reserved))
        .get_result(c)
        .await)?)
}

/// Deletes the changes of an account that is being deleted.
pub async fn delete_for_user(tx: &mut Conn, user_id: Id) -> Result<()> {
    on!(tx, |c| diesel::delete(
        email_changes::table.filter(email_changes::user_id.eq(user_id))
    )
    .execute(c)
    .await)?;
    Ok(())
}

/// Deletes a batch of changes that can no longer be undone; returns how many.
pub async fn purge_expired(db: &Db, now: Timestamp) -> Result<usize> {
    db.transaction(async |tx| {
        let expired = email_changes::table.filter(email_changes::expires_at.le(now));
        let ids: Vec<Id> = on!(tx, |c| expired
            .select(email_changes::id)
            .limit(PURGE_BATCH as i64)
            .load(c)
            .await)?;
        let expired = email_changes::table.filter(any_id(email_changes::id, &ids));
        Ok(on!(tx, |c| diesel::delete(expired).execute(c).await)?)
    })
    .await
}
