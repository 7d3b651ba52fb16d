//! Outgoing mail: written to a queue in the transaction of the change that asks for it, sent by a background job over
//! SMTP, or to the log when no server is configured.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use crate::db::Conn;
use crate::db::schema::mails;
use crate::error::Result;
use crate::id::Id;
use crate::on;
use crate::time::Timestamp;

/// A message that waits in the queue.
#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = mails)]
pub struct Mail {
    /// Its id, also its Message-ID, so that a mail sent twice can be recognised.
    pub id: Id,
    /// Whom to.
    pub recipient: String,
    /// The subject line.
    pub subject: String,
    /// Plain text.
    pub body: String,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Not before this moment.
    pub next_attempt_at: Timestamp,
    /// How often it was tried.
    pub attempts: i32,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}

/// Puts a message into the queue, in the transaction of the change that asks for it.
pub async fn queue(tx: &mut Conn, now: Timestamp, recipient: &str, subject: String, body: String) -> Result<()> {
    let mail = Mail {
        id: Id::new(),
        recipient: recipient.to_owned(),
        subject,
        body,
        created_at: now,
        next_attempt_at: now,
        attempts: 0,
        last_error: None,
    };
    on!(tx, |c| diesel::insert_into(mails::table).values(&mail).execute(c).await)?;
    Ok(())
}
