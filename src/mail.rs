//! Outgoing mail: written to a queue in the transaction of the change that asks for it, sent by a background job over
//! SMTP, or to the log when no server is configured.

use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use lettre::message::{Mailbox, Message};
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};

use crate::config::Config;
use crate::db::schema::mails;
use crate::db::{Conn, Db};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::on;
use crate::time::{Clock, Timestamp};

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

/// How many messages are taken from the queue at once.
const BATCH: i64 = 20;
/// While one instance sends a message the others leave it alone this long.
const CLAIM: Duration = Duration::from_secs(120);
/// A message that could not be sent in this many attempts, over about three days, is dropped.
const ATTEMPTS: i32 = 16;

/// Sends what is in the queue.
pub struct Mailer {
    from: Mailbox,
    transport: Option<AsyncSmtpTransport<Tokio1Executor>>,
}

impl Mailer {
    /// Over the configured server; without one, into the log.
    pub fn new(config: &Config) -> Result<Self> {
        let transport = match &config.smtp_url {
            None => None,
            Some(url) => {
                let url = std::str::from_utf8(url.expose()).map_err(Error::internal)?;
                let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(url).map_err(Error::internal)?;
                Some(transport.timeout(Some(Duration::from_secs(30))).build())
            }
        };
        Ok(Self { from: config.mail_from.parse().map_err(Error::internal)?, transport })
    }

    /// Sends every message that is due. One that fails is tried again, later each time.
    pub async fn send_due(&self, db: &Db, clock: &Clock) -> Result<()> {
        loop {
            let claimed = claim(db, clock.now()).await?;
            if claimed.is_empty() {
                return Ok(());
            }
            for mail in claimed {
                let sent = self.send(&mail).await;
                settle(db, clock.now(), &mail, sent.err()).await?;
            }
        }
    }

    async fn send(&self, mail: &Mail) -> std::result::Result<(), String> {
        let Some(transport) = &self.transport else {
            tracing::info!(to = mail.recipient, subject = mail.subject, body = mail.body, "mail (no SMTP_URL is set)");
            return Ok(());
        };
        let message = Message::builder()
            .from(self.from.clone())
            .to(mail.recipient.parse().map_err(|error: lettre::address::AddressError| error.to_string())?)
            .message_id(Some(format!("<{}@{}>", mail.id, self.from.email.domain())))
            .subject(&mail.subject)
            .header(lettre::message::header::ContentType::TEXT_PLAIN)
            .body(mail.body.clone())
            .map_err(|error| error.to_string())?;
        transport.send(message).await.map(|_| ()).map_err(|error| error.to_string())
    }
}

/// Takes due messages, so that no other instance sends them meanwhile; a crash gives them back after [`CLAIM`].
async fn claim(db: &Db, now: Timestamp) -> Result<Vec<Mail>> {
    let due = on!(db.conn().await?, |c| mails::table
        .filter(mails::next_attempt_at.le(now))
        .select(diesel::dsl::count_star())
        .first::<i64>(c)
        .await)?;
    if due == 0 {
        return Ok(Vec::new());
    }
    db.transaction(async |tx| {
        let candidates: Vec<Mail> = on!(tx, |c| mails::table
            .filter(mails::next_attempt_at.le(now))
            .order_by((mails::next_attempt_at, mails::id))
            .limit(BATCH)
            .select(Mail::as_select())
            .load(c)
            .await)?;
        let mut claimed = Vec::new();
        for mail in candidates {
            let taken = on!(tx, |c| diesel::update(mails::table.find(mail.id))
                .filter(mails::next_attempt_at.eq(mail.next_attempt_at))
                .set(mails::next_attempt_at.eq(now.plus(CLAIM)))
                .execute(c)
                .await)?;
            if taken == 1 {
                claimed.push(mail);
            }
        }
        Ok(claimed)
    })
    .await
}

async fn settle(db: &Db, now: Timestamp, mail: &Mail, failure: Option<String>) -> Result<()> {
    db.transaction(async |tx| {
        let attempts = mail.attempts + 1;
        match &failure {
            Some(reason) if attempts < ATTEMPTS => {
                tracing::warn!(mail = %mail.id, attempts, reason, "mail could not be sent; it is tried again later");
                // 30 s, doubling up to six hours.
                let pause =
                    Duration::from_secs(30 << attempts.clamp(1, 10).unsigned_abs()).min(Duration::from_secs(21_600));
                on!(tx, |c| diesel::update(mails::table.find(mail.id))
                    .set((
                        mails::attempts.eq(attempts),
                        mails::next_attempt_at.eq(now.plus(pause)),
                        mails::last_error.eq(reason),
                    ))
                    .execute(c)
                    .await)?;
            }
            other => {
                if let Some(reason) = other {
                    tracing::error!(mail = %mail.id, attempts, reason, "mail is given up");
                }
                on!(tx, |c| diesel::delete(mails::table.find(mail.id)).execute(c).await)?;
            }
        }
        Ok(())
    })
    .await
}
