//! Outgoing mail: takes what is due from the queue, finds the words, makes the tokens they need, and sends it over SMTP,
//! or to the log when no server is configured.

use std::sync::Arc;
use std::time::Duration;

use lettre::message::{Mailbox, Message, MultiPart};
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};

use crate::App;
use crate::auth::credential::MailToken;
use crate::error::{Error, Result};
use crate::store::mail::{self, Kind, Mail};
use crate::store::token::{self, Purpose};
use crate::store::user;

/// How long one attempt may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a mailed token is good.
const VERIFY: Duration = Duration::from_secs(24 * 3_600);
const RESET: Duration = Duration::from_secs(30 * 60);

/// Sends what is in the queue.
pub struct Mailer {
    app: Arc<App>,
    from: Mailbox,
    transport: Option<AsyncSmtpTransport<Tokio1Executor>>,
}

/// A message: whom to, its paragraphs, and a link to follow.
struct Letter {
    recipient: String,
    subject: String,
    paragraphs: Vec<String>,
    link: Option<String>,
}

impl Mailer {
    /// Over the configured server; without one, into the log.
    pub fn new(app: Arc<App>) -> Result<Self> {
        let transport = match &app.config.smtp_url {
            None => None,
            Some(url) => {
                let url = std::str::from_utf8(url.expose()).map_err(Error::internal)?;
                let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(url).map_err(Error::internal)?;
                Some(transport.timeout(Some(TIMEOUT)).build())
            }
        };
        Ok(Self { from: app.config.mail_from.parse().map_err(Error::internal)?, transport, app })
    }

    /// Sends every message that is due. One that fails is tried again, later each time.
    pub async fn send_due(&self) -> Result<()> {
        let (db, clock) = (&self.app.db, &self.app.clock);
        while let Some(mail) = mail::claim(db, clock.now()).await? {
            let Some(letter) = self.write(&mail).await? else {
                mail::settle(db, &mail).await?;
                continue;
            };
            let begun = clock.now();
            match self.send(&mail, &letter).await {
                Ok(()) => mail::settle(db, &mail).await?,
                Err(reason) => {
                    let kept = mail::postpone(db, begun, &mail, &reason).await?;
                    tracing::warn!(mail = %mail.id, reason, kept, "mail could not be sent");
                }
            }
        }
        Ok(())
    }

    /// Finds the words; none when there is nobody to write to, or nothing left to say.
    async fn write(&self, mail: &Mail) -> Result<Option<Letter>> {
        let config = &self.app.config;
        Ok(match mail.kind {
            Kind::TaskAssigned => Some(Letter {
                recipient: mail.recipient.clone(),
                subject: format!("Assigned to you: {}", mail.data),
                paragraphs: vec!["A task was assigned to you:".to_owned(), mail.data.clone()],
                link: None,
            }),
            Kind::VerifyEmail => {
                self.token(mail, Purpose::VerifyEmail, VERIFY).await?.map(|(recipient, token)| Letter {
                    recipient,
                    subject: "Verify your e-mail address".to_owned(),
                    paragraphs: vec![
                        "Follow this link to show that this address is yours. It is good for 24 hours.".to_owned(),
                        "If you did not ask for it, you can ignore this message.".to_owned(),
                    ],
                    link: Some(link(&config.verify_email_url, &token)),
                })
            }
            Kind::ResetPassword => {
                self.token(mail, Purpose::ResetPassword, RESET).await?.map(|(recipient, token)| Letter {
                    recipient,
                    subject: "Set a new password".to_owned(),
                    paragraphs: vec![
                        "Follow this link to set a new password. It is good for 30 minutes and works once.".to_owned(),
                        "If you did not ask for it, you can ignore this message: your password stays as it is."
                            .to_owned(),
                    ],
                    link: Some(link(&config.reset_password_url, &token)),
                })
            }
            Kind::PasswordChanged => Some(Letter {
                recipient: mail.recipient.clone(),
                subject: "Your password was changed".to_owned(),
                paragraphs: vec![
                    "The password of your account was changed, and every other session was ended.".to_owned(),
                    "If that was not you, set a new password now and tell your administrator.".to_owned(),
                ],
                link: None,
            }),
            Kind::EmailChanged => Some(Letter {
                recipient: mail.recipient.clone(),
                subject: "Your e-mail address was changed".to_owned(),
                paragraphs: vec![
                    format!("Your account now uses the address {}.", mail.data),
                    "If that was not you, tell your administrator.".to_owned(),
                ],
                link: None,
            }),
        })
    }

    /// Makes the token that a message carries, and says where to: none when the address is nobody's, or needs none any
    /// more. What a stranger typed in may be another mailbox than the account's, as case or spelling go, so it finds the
    /// account and the mail goes to the account's own address.
    async fn token(&self, mail: &Mail, purpose: Purpose, lifetime: Duration) -> Result<Option<(String, String)>> {
        let now = self.app.clock.now();
        let token = MailToken::new()?;
        let hash = token.hash();
        let recipient = self.app.db.transaction(async |tx| {
            let id = match mail.user_id {
                Some(id) => Some(id),
                None => user::find_by_email(tx, &mail.recipient).await?.map(|user| user.id),
            };
            let Some(id) = id else { return Ok(None) };
            let Some(user) = user::held(tx, id).await?.filter(|user| user.is_active) else { return Ok(None) };
            // Whoever holds the account and finds no token yet takes the message away.
            if !mail::is_claimed(tx, mail).await? {
                return Ok(None);
            }
            let recipient = if mail.user_id.is_some() { &mail.recipient } else { &user.email };
            if purpose == Purpose::VerifyEmail && user.email_verified && user.email == *recipient {
                return Ok(None);
            }
            token::replace(tx, user.id, purpose, &hash, recipient, now.plus(lifetime)).await?;
            Ok(Some(recipient.clone()))
        });
        Ok(recipient.await?.map(|recipient| (recipient, token.into_string())))
    }

    async fn send(&self, mail: &Mail, letter: &Letter) -> std::result::Result<(), String> {
        let Some(transport) = &self.transport else {
            tracing::info!(
                to = mail.recipient,
                subject = letter.subject,
                text = letter.text(),
                "mail, as no SMTP_URL is set"
            );
            return Ok(());
        };
        let recipient: Mailbox = letter.recipient.parse().map_err(|_| "the address cannot be written to".to_owned())?;
        let message = Message::builder()
            .from(self.from.clone())
            .to(recipient)
            .message_id(Some(format!("<{}@{}>", mail.id, self.from.email.domain())))
            .subject(&letter.subject)
            .multipart(MultiPart::alternative_plain_html(letter.text(), letter.html()))
            .map_err(|error| error.to_string())?;
        // The transport's own timeout is for connecting only.
        match tokio::time::timeout(TIMEOUT, transport.send(message)).await {
            Ok(sent) => sent.map(|_| ()).map_err(|error| error.to_string()),
            Err(_) => Err("the mail server does not answer".to_owned()),
        }
    }
}

/// The token goes behind `#`: browsers do not send that part to any server, so it is in no log.
fn link(page: &str, token: &str) -> String {
    format!("{page}#token={token}")
}

impl Letter {
    fn text(&self) -> String {
        let mut text = self.paragraphs.join("\n\n");
        if let Some(link) = &self.link {
            text.push_str("\n\n");
            text.push_str(link);
        }
        text.push('\n');
        text
    }

    fn html(&self) -> String {
        let mut html = String::from("<!doctype html><html><body>");
        for paragraph in &self.paragraphs {
            html.push_str("<p>");
            html.push_str(&escaped(paragraph));
            html.push_str("</p>");
        }
        if let Some(link) = &self.link {
            let link = escaped(link);
            html.push_str(&format!("<p><a href=\"{link}\">{link}</a></p>"));
        }
        html.push_str("</body></html>");
        html
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
