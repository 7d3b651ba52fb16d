//! The mail queue: what a message is about, written in the transaction of the change that asks for it. Words, and any
//! token in them, are made when it is sent.

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

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, AsExpression, FromSqlRow)]
#[diesel(sql_type = diesel::sql_types::SmallInt)]
pub enum MailKind {
    /// A task was assigned to the recipient; the detail is its title.
    TaskAssigned,
    /// The recipient is to show that the address is theirs.
    VerifyEmail,
    /// Somebody, perhaps the recipient, wants to set the password of the account with this address anew.
    ResetPassword,
    /// The password of the recipient's account was changed.
    PasswordChanged,
    /// The address of the recipient's account was changed; the detail is the new one.
    EmailChanged,
    /// Another address was asked for for the recipient's account; the detail is the change's id and the new address.
    EmailChangeRequested,
    /// A change of address was taken back, which disabled the password: a link to set a new one.
    PasswordDisabled,
    /// The username of the recipient's account was changed; the detail is the new one.
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
    /// Whether anybody can ask for it. The others are notices of what has happened to an account.
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

/// A message that waits in the queue.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = mails)]
pub struct Mail {
    /// Its id, also its Message-ID, so that one that is sent twice can be recognised.
    pub id: Id,
    /// What it is about.
    pub kind: MailKind,
    /// The address it goes to. Without an account id it is folded and only finds the account: the mail goes to the
    /// account's own address.
    pub recipient: String,
    /// Whose account it is about; none where only an address was given, which may be nobody's.
    pub user_id: Option<Id>,
    /// What its words need to know.
    pub data: String,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Not before this moment.
    pub next_attempt_at: Timestamp,
    /// How often it was tried.
    pub attempts: i32,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}

/// While one instance sends a message, which takes a fraction of it, the others leave it alone this long; a crash gives
/// it back after that.
const CLAIM_DURATION: Duration = Duration::from_secs(120);
/// A message that could not be sent in this many attempts, over about three days, is given up.
const MAX_ATTEMPTS: i32 = 18;
/// Maximum age of a message with a link. It can be requested again, and whatever strangers requested for an address
/// must not be mailed to it for days.
const LINK_AGE: Duration = Duration::from_secs(12 * 3_600);

impl Mail {
    /// Whether it is too old to be sent.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        matches!(self.kind, MailKind::VerifyEmail | MailKind::ResetPassword) && now.since(self.created_at) >= LINK_AGE
    }
}

/// Puts a message into the queue, in the transaction of the change that asks for it.
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
    on!(tx, |c| diesel::insert_into(mails::table).values(&mail).execute(c).await)?;
    tx.signal_on_commit(CommitSignal::Mail);
    Ok(())
}

/// Queues a message to an address that may be nobody's: what is asked by a stranger costs the same either way.
///
/// One message per kind waits, for all spellings that find the same account. An address of ten letters has a thousand
/// spellings, and each would be mailed in its turn.
pub async fn queue_for_address(db: &Db, now: Timestamp, kind: MailKind, recipient: &str) -> Result<()> {
    let recipient = fold(recipient);
    db.transaction(async |tx| {
        // Otherwise simultaneous requests would not see each other's rows.
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

/// Queues the notice of a new username. One waits per account: changes need no password, and there may be hundreds a
/// minute.
pub async fn queue_username_changed(
    tx: &mut Conn,
    now: Timestamp,
    user_id: Id,
    email: &str,
    username: &str,
) -> Result<()> {
    let kind = MailKind::UsernameChanged;
    let earlier = mails::table.filter(mails::user_id.eq(user_id)).filter(mails::kind.eq(kind));
    on!(tx, |c| diesel::delete(earlier).execute(c).await)?;
    queue(tx, now, kind, email, Some(user_id), username).await
}

/// Takes the next due message, so that no other instance sends it meanwhile. What is about accounts goes before
/// assignments, of which anybody can have many sent, and links to verify an address last among it: strangers can have
/// them sent to any address, and must not delay its owner's link to set a password. A link that was put off goes after
/// those never tried: thousands that wait for the limit of one recipient must not delay everybody else's.
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
        let claimed = Mail { next_attempt_at: now.plus(CLAIM_DURATION), ..due.clone() };
        let taken = db.transaction(async |tx| {
            let free = diesel::update(mails::table.find(due.id)).filter(mails::next_attempt_at.eq(due.next_attempt_at));
            Ok(on!(tx, |c| free.set(mails::next_attempt_at.eq(claimed.next_attempt_at)).execute(c).await)?)
        });
        // If not, another instance has it, and there may be more.
        if taken.await? == 1 {
            return Ok(Some(claimed));
        }
    }
}

/// Whether the claim to a message still holds, and nobody has taken the message away.
pub async fn is_claimed(conn: &mut Conn, mail: &Mail) -> Result<bool> {
    let claimed = mails::table.find(mail.id).filter(mails::next_attempt_at.eq(mail.next_attempt_at));
    Ok(on!(conn, |c| diesel::select(exists(claimed)).get_result(c).await)?)
}

/// Has a claimed message wait until a moment.
pub async fn defer(tx: &mut Conn, mail: &Mail, until: Timestamp) -> Result<()> {
    let claimed = mails::table.find(mail.id).filter(mails::next_attempt_at.eq(mail.next_attempt_at));
    on!(tx, |c| diesel::update(claimed).set(mails::next_attempt_at.eq(until)).execute(c).await)?;
    Ok(())
}

/// Takes a message out of the queue, unless the claim to it was lost: it is sent, or has become pointless.
pub async fn complete(db: &Db, mail: &Mail) -> Result<()> {
    db.transaction(async |tx| {
        let claimed = mails::table.find(mail.id).filter(mails::next_attempt_at.eq(mail.next_attempt_at));
        on!(tx, |c| diesel::delete(claimed).execute(c).await)?;
        Ok(())
    })
    .await
}

/// Puts a message back for later, each time longer: 30 s, doubling up to six hours. Whether it is kept at all.
pub async fn postpone(db: &Db, now: Timestamp, mail: &Mail, reason: &str) -> Result<bool> {
    let attempts = mail.attempts + 1;
    if attempts >= MAX_ATTEMPTS {
        complete(db, mail).await?;
        return Ok(false);
    }
    let doublings = mail.attempts.clamp(0, 10).unsigned_abs();
    let pause = Duration::from_secs(30 << doublings).min(Duration::from_secs(6 * 3_600));
    db.transaction(async |tx| {
        let claimed = mails::table.find(mail.id).filter(mails::next_attempt_at.eq(mail.next_attempt_at));
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

/// How many messages could not be sent at the third attempt or later, and why the newest of them could not.
pub async fn failing(conn: &mut Conn) -> Result<(i64, String)> {
    let failing = mails::table.filter(mails::attempts.ge(3));
    let count = on!(conn, |c| failing.count().get_result(c).await)?;
    let newest = failing.order_by(mails::id.desc()).select(mails::last_error);
    let why: Option<Option<String>> = on!(conn, |c| newest.first(c).await.optional())?;
    Ok((count, why.flatten().unwrap_or_default()))
}

/// Forgets what waits for a person who is leaving.
pub async fn delete_for_user(tx: &mut Conn, user_id: Id, email: &str) -> Result<()> {
    let folded = fold(email);
    let theirs = mails::user_id.eq(user_id).or(mails::recipient.eq_any([email, &folded]));
    on!(tx, |c| diesel::delete(mails::table.filter(theirs)).execute(c).await)?;
    Ok(())
}
