//! The mail queue. A message is queued in the transaction of the change that causes it, with the
//! data for its text. The text, and any token in it, is made when the message is sent.

use std::time::Duration;

use diesel::deserialize::FromSqlRow;
use diesel::dsl::exists;
use diesel::expression::AsExpression;
use diesel::prelude::*;

use super::mail_quota;
use super::value::fold;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::mails;
use crate::db::{CommitSignal, Conn, Db};
use crate::error::Result;
use crate::id::Id;
use crate::on;
use crate::stored_as_smallint;
use crate::time::Timestamp;

/// The kinds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, AsExpression, FromSqlRow)]
#[diesel(sql_type = diesel::sql_types::SmallInt)]
pub enum MailKind {
    /// A task was assigned to the recipient. `data` is its title.
    TaskAssigned,
    /// Asks the recipient to verify the address.
    VerifyEmail,
    /// Someone, perhaps the recipient, requested a password reset for this address.
    ResetPassword,
    /// The password of the recipient's account was changed.
    PasswordChanged,
    /// The address of the recipient's account was changed. `data` is the new one.
    EmailChanged,
    /// A change of the recipient's address was requested. `data` is the change's id and the new
    /// address.
    EmailChangeRequested,
    /// Undoing an e-mail change disabled the password. The message has a link to set a new one.
    PasswordDisabled,
    /// The username of the recipient's account was changed. `data` is the new one.
    UsernameChanged,
}
stored_as_smallint!(MailKind {
    TaskAssigned = 1,
    VerifyEmail = 2,
    ResetPassword = 3,
    PasswordChanged = 4,
    EmailChanged = 5,
    EmailChangeRequested = 6,
    PasswordDisabled = 7,
    UsernameChanged = 8,
});

impl MailKind {
    /// Whether anyone can request it. The others are notices about changes to an account.
    pub const fn is_requested(self) -> bool {
        match self {
            Self::TaskAssigned | Self::VerifyEmail | Self::ResetPassword => true,
            Self::PasswordChanged
            | Self::EmailChanged
            | Self::EmailChangeRequested
            | Self::PasswordDisabled
            | Self::UsernameChanged => false,
        }
    }
}

/// A queued message.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = mails)]
pub struct Mail {
    /// Also the Message-ID, which identifies a message that was sent twice.
    pub id: Id,
    pub kind: MailKind,
    /// The recipient's address. Without a user id it is folded and only identifies the account: the
    /// message goes to the account's own address.
    pub recipient: String,
    /// The account that the message is about. `None` if only an address was given, which may have
    /// no account.
    pub user_id: Option<Id>,
    /// Data for the text; see [`MailKind`].
    pub data: String,
    pub created_at: Timestamp,
    /// The earliest time of the next attempt.
    pub next_attempt_at: Timestamp,
    /// The number of failed attempts.
    pub attempts: i32,
    /// The error of the last failed attempt.
    pub last_error: Option<String>,
}

/// How long other instances leave a message to the one that sends it. Sending takes a fraction of
/// this. If that instance crashes, another one sends it afterwards.
const CLAIM_DURATION: Duration = Duration::from_secs(120);
/// A message is given up after this many attempts, about three days.
const MAX_ATTEMPTS: i32 = 18;
/// Maximum age of a message with a link. The link can be requested again, and what strangers
/// request for an address must not be mailed to it for days.
const LINK_AGE: Duration = Duration::from_secs(12 * 3_600);

impl Mail {
    /// Whether the message is too old to send.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        matches!(self.kind, MailKind::VerifyEmail | MailKind::ResetPassword)
            && now.since(self.created_at) >= LINK_AGE
    }
}

/// Queues a message, in the transaction of the change that causes it.
pub async fn queue(
    tx: &mut Conn,
    now: Timestamp,
    kind: MailKind,
    recipient: &str,
    user_id: Option<Id>,
    data: &str,
) -> Result<()> {
    let mail = Mail {
        id: Id::new(),
        kind,
        recipient: recipient.to_owned(),
        user_id,
        data: data.to_owned(),
        created_at: now,
        next_attempt_at: now,
        attempts: 0,
        last_error: None,
    };
    on!(tx, |c| diesel::insert_into(mails::table)
        .values(&mail)
        .execute(c)
        .await)?;
    tx.signal_on_commit(CommitSignal::Mail);
    Ok(())
}

/// Queues a message to an address that may have no account. A stranger's request costs the same
/// either way.
///
/// At most one message per kind is queued for all spellings of an address. An address of ten
/// letters has a thousand spellings, and each would be mailed separately.
pub async fn queue_for_address(
    db: &Db,
    now: Timestamp,
    kind: MailKind,
    recipient: &str,
) -> Result<()> {
    let recipient = fold(recipient);
    db.transaction(async |tx| {
        // Without the lock, simultaneous requests do not see each other's rows.
        mail_quota::lock(tx, recipient.as_bytes()).await?;
        on!(tx, |c| diesel::delete(mails::table)
            .filter(mails::kind.eq(kind))
            .filter(mails::recipient.eq(&recipient))
            .filter(mails::user_id.is_null())
            .execute(c)
            .await)?;
        queue(tx, now, kind, &recipient, None, "").await
    })
    .await
}

/// Queues the notice about a new username. It replaces a queued one: changes need no password, and
/// there may be hundreds per minute.
pub async fn queue_username_changed(
    tx: &mut Conn,
    now: Timestamp,
    user_id: Id,
    email: &str,
    username: &str,
) -> Result<()> {
    let kind = MailKind::UsernameChanged;
    let earlier = mails::table
        .filter(mails::user_id.eq(user_id))
        .filter(mails::kind.eq(kind));
    on!(tx, |c| diesel::delete(earlier).execute(c).await)?;
    queue(tx, now, kind, email, Some(user_id), username).await
}

/// Claims the next due message, so that no other instance sends it.
///
/// Account mails go before assignments, which anyone can cause in bulk. Verification links go after
/// the other account mails: strangers can request them for any address, and must not delay its
/// owner's reset link. Links that were deferred go after links never tried: thousands that wait for
/// the limit of one recipient must not delay other recipients.
pub async fn claim(db: &Db, now: Timestamp) -> Result<Option<Mail>> {
    let link = || mails::kind.eq_any([MailKind::VerifyEmail, MailKind::ResetPassword]);
    loop {
        let mut conn = db.conn().await?;
        let due: Option<Mail> = on!(conn, |c| mails::table
            .filter(mails::next_attempt_at.le(now))
            .order_by((
                mails::kind.eq(MailKind::TaskAssigned),
                link().and(mails::next_attempt_at.gt(mails::created_at)),
                mails::kind.eq(MailKind::VerifyEmail),
                mails::next_attempt_at,
                mails::id,
            ))
            .select(Mail::as_select())
            .first(c)
            .await
            .optional())?;
        drop(conn);
        let Some(due) = due else { return Ok(None) };
        let claimed = Mail {
            next_attempt_at: now.plus(CLAIM_DURATION),
            ..due.clone()
        };
        let taken = db.transaction(async |tx| {
            let free = diesel::update(mails::table.find(due.id))
                .filter(mails::next_attempt_at.eq(due.next_attempt_at));
            Ok(on!(tx, |c| free
                .set(mails::next_attempt_at.eq(claimed.next_attempt_at))
                .execute(c)
                .await)?)
        });
        // Otherwise another instance has claimed it, and there may be more.
        if taken.await? == 1 {
            return Ok(Some(claimed));
        }
    }
}

/// Whether the claim is still valid and the message is still queued.
pub async fn is_claimed(conn: &mut Conn, mail: &Mail) -> Result<bool> {
    let claimed = mails::table
        .find(mail.id)
        .filter(mails::next_attempt_at.eq(mail.next_attempt_at));
    Ok(on!(conn, |c| diesel::select(exists(claimed))
        .get_result(c)
        .await)?)
}

/// Defers a claimed message.
pub async fn defer(tx: &mut Conn, mail: &Mail, until: Timestamp) -> Result<()> {
    let claimed = mails::table
        .find(mail.id)
        .filter(mails::next_attempt_at.eq(mail.next_attempt_at));
    on!(tx, |c| diesel::update(claimed)
        .set(mails::next_attempt_at.eq(until))
        .execute(c)
        .await)?;
    Ok(())
}

/// Deletes a message that was sent or is obsolete, unless the claim was lost.
pub async fn complete(db: &Db, mail: &Mail) -> Result<()> {
    db.transaction(async |tx| {
        let claimed = mails::table
            .find(mail.id)
            .filter(mails::next_attempt_at.eq(mail.next_attempt_at));
        on!(tx, |c| diesel::delete(claimed).execute(c).await)?;
        Ok(())
    })
    .await
}

/// Defers a message after a failed attempt: for 30 s, doubling up to six hours. Returns false if
/// the message was given up instead.
pub async fn postpone(db: &Db, now: Timestamp, mail: &Mail, reason: &str) -> Result<bool> {
    let attempts = mail.attempts + 1;
    if attempts >= MAX_ATTEMPTS {
        complete(db, mail).await?;
        return Ok(false);
    }
    let doublings = mail.attempts.clamp(0, 10).unsigned_abs();
    let pause = Duration::from_secs(30 << doublings).min(Duration::from_secs(6 * 3_600));
    db.transaction(async |tx| {
        let claimed = mails::table
            .find(mail.id)
            .filter(mails::next_attempt_at.eq(mail.next_attempt_at));
        on!(tx, |c| diesel::update(claimed)
            .set((
                mails::attempts.eq(attempts),
                mails::next_attempt_at.eq(now.plus(pause)),
                mails::last_error.eq(reason),
            ))
            .execute(c)
            .await)?;
        Ok(true)
    })
    .await
}

/// The number of messages that have failed at least three times, and the last error of the newest.
pub async fn failing(conn: &mut Conn) -> Result<(i64, String)> {
    let failing = mails::table.filter(mails::attempts.ge(3));
    let count = on!(conn, |c| failing.count().get_result(c).await)?;
    let newest = failing.order_by(mails::id.desc()).select(mails::last_error);
    let why: Option<Option<String>> = on!(conn, |c| newest.first(c).await.optional())?;
    Ok((count, why.flatten().unwrap_or_default()))
}

/// Deletes the queued messages of an account that is being deleted.
pub async fn delete_for_user(tx: &mut Conn, user_id: Id, email: &str) -> Result<()> {
    let folded = fold(email);
    let theirs = mails::user_id
        .eq(user_id)
        .or(mails::recipient.eq_any([email, &folded]));
    on!(tx, |c| diesel::delete(mails::table.filter(theirs))
        .execute(c)
        .await)?;
    Ok(())
}
