//! Limits on mail per recipient and per sender, over a sliding hour. Mails are counted in the
//! database, so that the limits hold across restarts and instances, and by a hash of the mailbox,
//! so that they outlast the account.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::BigInt;

use super::PURGE_BATCH;
use super::mail::MailKind;
use super::value::fold;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::mail_quota;
use crate::db::{Conn, Db, PooledConn};
use crate::error::Result;
use crate::id::Id;
use crate::on;
use crate::time::Timestamp;

/// The period over which mails are counted.
pub const WINDOW: Duration = Duration::from_secs(3_600);
/// Links to one address that anyone can request, or notices of one kind. Links and notices count
/// separately: strangers' requests must not suppress a notice, and account changes must not
/// suppress a link.
pub const ACCOUNT_MAILS: usize = 5;
/// Assignment mails from one sender to one recipient.
pub const ASSIGNMENTS_PER_PAIR: usize = 5;
/// Assignment mails to one recipient.
pub const ASSIGNMENTS_PER_RECIPIENT: usize = 20;
/// Assignment mails from one sender.
pub const ASSIGNMENTS_PER_SENDER: usize = 60;

/// Whether a mail is within the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaDecision {
    /// It was counted under this id.
    Counted(Id),
    /// The limit is reached until this time.
    Full(Timestamp),
}

/// Counts a mail about an account before it is sent.
pub async fn admit_account_mail(
    tx: &mut Conn,
    now: Timestamp,
    kind: MailKind,
    recipient: &str,
) -> Result<QuotaDecision> {
    let recipient = hash(recipient);
    lock(tx, &recipient).await?;
    let recent = || {
        mail_quota::table
            .filter(mail_quota::recipient.eq(&recipient))
            .filter(mail_quota::counted_at.gt(now.minus(WINDOW)))
            .order_by(mail_quota::counted_at.desc())
            .select(mail_quota::counted_at)
            .limit(ACCOUNT_MAILS as i64)
    };
    let recent: Vec<Timestamp> = if kind.is_requested() {
        on!(tx, |c| recent()
            .filter(mail_quota::kind.eq_any([MailKind::VerifyEmail, MailKind::ResetPassword]))
            .load(c)
            .await)?
    } else {
        on!(tx, |c| recent()
            .filter(mail_quota::kind.eq(kind))
            .load(c)
            .await)?
    };
    match recent.get(ACCOUNT_MAILS - 1) {
        Some(oldest) => Ok(QuotaDecision::Full(oldest.plus(WINDOW))),
        None => Ok(QuotaDecision::Counted(
            insert(tx, now, kind, &recipient, None).await?,
        )),
    }
}

/// Counts an assignment mail if it is within the limits of its sender and its recipient; returns
/// whether it is.
pub async fn admit_assignment(
    tx: &mut Conn,
    now: Timestamp,
    sender_id: Id,
    recipient: &str,
) -> Result<bool> {
    let recipient = hash(recipient);
    // Always in this order, and after every row lock, so that two transactions cannot deadlock.
    lock(tx, sender_id.as_bytes()).await?;
    lock(tx, &recipient).await?;
    let concerned = mail_quota::recipient
        .eq(&recipient)
        .or(mail_quota::sender_id.eq(sender_id));
    let rows: Vec<(Vec<u8>, Option<Id>)> = on!(tx, |c| mail_quota::table
        .filter(concerned)
        .filter(mail_quota::counted_at.gt(now.minus(WINDOW)))
        .filter(mail_quota::kind.eq(MailKind::TaskAssigned))
        .select((mail_quota::recipient, mail_quota::sender_id))
        .load(c)
        .await)?;
    let count = |is_counted: &dyn Fn(bool, bool) -> bool| {
        rows.iter()
            .filter(|(to, from)| is_counted(*to == recipient, *from == Some(sender_id)))
            .count()
    };
    let is_full = count(&|to, from| to && from) >= ASSIGNMENTS_PER_PAIR
        || count(&|to, _| to) >= ASSIGNMENTS_PER_RECIPIENT
        || count(&|_, from| from) >= ASSIGNMENTS_PER_SENDER;
    if !is_full {
        insert(tx, now, MailKind::TaskAssigned, &recipient, Some(sender_id)).await?;
    }
    Ok(!is_full)
}

/// Releases a mail that was counted and could not be sent.
pub async fn release(db: &Db, id: Id) -> Result<()> {
    db.transaction(async |tx| {
        on!(tx, |c| diesel::delete(mail_quota::table.find(id))
            .execute(c)
            .await)?;
        Ok(())
    })
    .await
}

/// Deletes a batch of mails older than the period; returns how many.
pub async fn purge_expired(db: &Db, now: Timestamp) -> Result<usize> {
    db.transaction(async |tx| {
        let expired = mail_quota::table.filter(mail_quota::counted_at.le(now.minus(WINDOW)));
        let ids: Vec<Id> = on!(tx, |c| expired
            .select(mail_quota::id)
            .limit(PURGE_BATCH as i64)
            .load(c)
            .await)?;
        let expired = mail_quota::table.filter(mail_quota::id.eq_any(&ids));
        Ok(on!(tx, |c| diesel::delete(expired).execute(c).await)?)
    })
    .await
}

async fn insert(
    tx: &mut Conn,
    now: Timestamp,
    kind: MailKind,
    recipient: &[u8],
    sender_id: Option<Id>,
) -> Result<Id> {
    let id = Id::new();
    let row = (
        mail_quota::id.eq(id),
        mail_quota::recipient.eq(recipient),
        mail_quota::kind.eq(kind),
        mail_quota::sender_id.eq(sender_id),
        mail_quota::counted_at.eq(now),
    );
    on!(tx, |c| diesel::insert_into(mail_quota::table)
        .values(row)
        .execute(c)
        .await)?;
    Ok(id)
}

/// Serializes transactions that count by the same key. SQLite needs no lock: it has one writer.
pub async fn lock(tx: &mut Conn, key: &[u8]) -> Result<()> {
    if let PooledConn::Postgres(c) = &mut tx.pooled {
        let digest = digest(&SHA256, key);
        let number = digest
            .as_ref()
            .iter()
            .take(8)
            .fold(0_i64, |number, byte| number << 8 | i64::from(*byte));
        let lock = sql_query("SELECT pg_advisory_xact_lock($1)").bind::<BigInt, _>(number);
        lock.execute(&mut &**c).await?;
    }
    Ok(())
}

/// The hash of an address without its tag: many mail servers deliver `alice+anything@…` to
/// `alice@…`.
fn hash(address: &str) -> Vec<u8> {
    let folded = fold(address);
    let untagged =
        folded
            .rsplit_once('@')
            .and_then(|(local, domain)| match local.split_once('+') {
                Some((mailbox, _)) if !mailbox.is_empty() => Some(format!("{mailbox}@{domain}")),
                _ => None,
            });
    digest(&SHA256, untagged.as_ref().unwrap_or(&folded).as_bytes())
        .as_ref()
        .to_vec()
}
