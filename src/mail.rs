//! Outgoing mail: takes what is due from the queue, finds the words, makes the tokens they need, and sends it over SMTP,
//! or to the log when no server is configured.

use std::sync::Arc;
use std::time::Duration;

use lettre::message::header::{Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message, MultiPart};
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};

use crate::App;
use crate::auth::credential::MailToken;
use crate::auth::unsubscribe;
use crate::error::{Error, Result};
use crate::http::recovery::CANCEL_PAGE;
use crate::id::Id;
use crate::store::mail::{self, Kind, Mail};
use crate::store::mail_quota::{self, Admission};
use crate::store::token::{self, Purpose};
use crate::store::user;
use crate::telemetry::UNSENT_MAIL;

/// How long one attempt may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a mailed token is good.
const VERIFY: Duration = Duration::from_secs(24 * 3_600);
const RESET: Duration = Duration::from_secs(30 * 60);

/// The last line of an assignment mail.
const UNSUBSCRIBE: &str = "Stop mails about assignments";

/// Sends what is in the queue.
pub struct Mailer {
    app: Arc<App>,
    from: Mailbox,
    transport: Option<AsyncSmtpTransport<Tokio1Executor>>,
}

/// A message: whom to, its paragraphs, and a link to follow.
struct Letter {
    recipient: String,
    /// Without any text of a user: it is what people and filters judge a mail by.
    subject: &'static str,
    paragraphs: Vec<String>,
    link: Option<String>,
    /// The link that ends mails of this kind.
    unsubscribe: Option<String>,
    /// What it was counted as, for the limits on mail.
    counted: Option<Id>,
}

/// What becomes of a message in the queue.
enum Decision {
    Send(Letter),
    /// It waits until the limits on mail allow it.
    Defer,
    /// Nobody is to be written to, or too much was written already.
    Drop,
}

/// A token that was made for a message, or none.
enum Issued {
    Token { recipient: String, token: String, counted: Id },
    Defer,
    Drop,
}

/// `List-Unsubscribe` (RFC 2369) with a URI that takes a POST without login (RFC 8058).
#[derive(Clone)]
struct ListUnsubscribe(String);

impl Header for ListUnsubscribe {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("List-Unsubscribe")
    }

    fn parse(text: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self(text.trim_matches(['<', '>']).to_owned()))
    }

    fn display(&self) -> HeaderValue {
        let value = format!("<{}>", self.0);
        // A URI is ASCII, and an encoded word in it is none to a mail client.
        HeaderValue::dangerous_new_pre_encoded(Self::name(), value.clone(), value)
    }
}

/// Says that one POST is enough (RFC 8058).
#[derive(Clone)]
struct ListUnsubscribePost;

impl Header for ListUnsubscribePost {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("List-Unsubscribe-Post")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "List-Unsubscribe=One-Click".to_owned())
    }
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
            let letter = match self.write(&mail).await? {
                Decision::Send(letter) => letter,
                Decision::Defer => continue,
                Decision::Drop => {
                    mail::settle(db, &mail).await?;
                    continue;
                }
            };
            let begun = clock.now();
            match self.send(&mail, &letter).await {
                Ok(()) => mail::settle(db, &mail).await?,
                Err(reason) => {
                    if let Some(counted) = letter.counted {
                        mail_quota::release(db, counted).await?;
                    }
                    let kept = mail::postpone(db, begun, &mail, &reason).await?;
                    tracing::warn!(mail = %mail.id, reason, kept, "mail could not be sent");
                }
            }
        }
        Ok(())
    }

    /// Writes the text of a message, if somebody is to get it.
    async fn write(&self, mail: &Mail) -> Result<Decision> {
        let config = &self.app.config;
        let notice = |subject, paragraphs: [String; 2]| Letter {
            recipient: mail.recipient.clone(),
            subject,
            paragraphs: paragraphs.into(),
            link: None,
            unsubscribe: None,
            counted: None,
        };
        match mail.kind {
            Kind::TaskAssigned => {
                let unsubscribe = mail.user_id.map(|id| {
                    let token = unsubscribe::token(&config.secret_key, id);
                    format!("{}/auth/unsubscribe?token={token}", config.public_url)
                });
                let paragraphs = ["A task was assigned to you:".to_owned(), mail.data.clone()];
                Ok(Decision::Send(Letter { unsubscribe, ..notice("A task was assigned to you", paragraphs) }))
            }
            Kind::VerifyEmail => {
                let paragraphs = [
                    "Follow this link to show that this address is yours. It is good for 24 hours.".to_owned(),
                    "If you did not ask for it, you can ignore this message.".to_owned(),
                ];
                let letter = notice("Verify your e-mail address", paragraphs);
                self.with_token(mail, Purpose::VerifyEmail, VERIFY, &config.verify_email_url, letter).await
            }
            Kind::ResetPassword => {
                let paragraphs = [
                    "Follow this link to set a new password. It is good for 30 minutes and works once.".to_owned(),
                    "If you did not ask for it, you can ignore this message: your password stays unchanged.".to_owned(),
                ];
                let letter = notice("Set a new password", paragraphs);
                self.with_token(mail, Purpose::ResetPassword, RESET, &config.reset_password_url, letter).await
            }
            Kind::PasswordChanged => {
                let paragraphs = [
                    "The password of your account was changed, and every other session was ended.".to_owned(),
                    "If that was not you, set a new password now and tell your administrator.".to_owned(),
                ];
                self.admit_notice(mail, notice("Your password was changed", paragraphs)).await
            }
            Kind::EmailChanged => {
                let paragraphs = [
                    format!("Your account now uses the address {}.", mail.data),
                    "If that was not you, follow the link in the message that we sent when the change was asked for: \
                     it takes the change back. If you got none, tell your administrator."
                        .to_owned(),
                ];
                self.admit_notice(mail, notice("Your e-mail address was changed", paragraphs)).await
            }
            Kind::EmailChangeRequested => match self.email_change(mail) {
                Some((link, paragraphs)) => {
                    let letter = notice("Your e-mail address is about to change", paragraphs);
                    self.admit_notice(mail, Letter { link: Some(link), ..letter }).await
                }
                None => Ok(Decision::Drop),
            },
        }
    }

    /// What the old address reads of a change that was asked for, with the link that takes it back.
    fn email_change(&self, mail: &Mail) -> Option<(String, [String; 2])> {
        let (id, wanted) = mail.data.split_once(' ')?;
        let token = self.app.credentials.email_change_token(Id::parse(id)?);
        let paragraphs = [
            format!(
                "Your account is about to use the address {wanted}, as somebody asked who knows your password. If that \
                 was you, you can ignore this message."
            ),
            "If that was not you, follow this link. It takes the change back, ends every session, and has us mail you a \
             link to set a new password. It is good for 3 days."
                .to_owned(),
        ];
        Some((link(&format!("{}{CANCEL_PAGE}", self.app.config.public_url), &token), paragraphs))
    }

    /// A letter with a link that carries a token.
    async fn with_token(
        &self,
        mail: &Mail,
        purpose: Purpose,
        lifetime: Duration,
        page: &str,
        letter: Letter,
    ) -> Result<Decision> {
        Ok(match self.token(mail, purpose, lifetime).await? {
            Issued::Token { recipient, token, counted } => {
                let link = Some(link(page, &token));
                Decision::Send(Letter { recipient, link, counted: Some(counted), ..letter })
            }
            Issued::Defer => Decision::Defer,
            Issued::Drop => Decision::Drop,
        })
    }

    /// A notice, unless there were too many of its kind.
    async fn admit_notice(&self, mail: &Mail, letter: Letter) -> Result<Decision> {
        let now = self.app.clock.now();
        let admission = self
            .app
            .db
            .transaction(async |tx| mail_quota::admit_account_mail(tx, now, mail.kind, &mail.recipient).await);
        Ok(match admission.await? {
            Admission::Counted(id) => Decision::Send(Letter { counted: Some(id), ..letter }),
            Admission::Full(_) => Decision::Drop,
        })
    }

    /// Makes the token that a message carries, unless the address is nobody's, needs none any more, or has got too many
    /// mails. What a stranger typed in may be another mailbox than the account's, as case or spelling go, so it finds the
    /// account and the mail goes to the account's own address.
    async fn token(&self, mail: &Mail, purpose: Purpose, lifetime: Duration) -> Result<Issued> {
        let now = self.app.clock.now();
        let token = MailToken::new()?;
        let hash = token.hash();
        let issued = self.app.db.transaction(async |tx| {
            let id = match mail.user_id {
                Some(id) => Some(id),
                None => user::find_by_email(tx, &mail.recipient).await?.map(|user| user.id),
            };
            let Some(id) = id else { return Ok(Err(Issued::Drop)) };
            let Some(user) = user::held(tx, id).await?.filter(|user| user.is_active) else {
                return Ok(Err(Issued::Drop));
            };
            // Whoever holds the account and finds no token yet takes the message away.
            if !mail::is_claimed(tx, mail).await? {
                return Ok(Err(Issued::Drop));
            }
            let recipient = if mail.user_id.is_some() { &mail.recipient } else { &user.email };
            if purpose == Purpose::VerifyEmail && user.email_verified && user.email == *recipient {
                return Ok(Err(Issued::Drop));
            }
            match mail_quota::admit_account_mail(tx, now, mail.kind, recipient).await? {
                Admission::Counted(counted) => {
                    token::insert(tx, user.id, purpose, &hash, recipient, now.plus(lifetime)).await?;
                    Ok(Ok((recipient.clone(), counted)))
                }
                // The queue has at most one of these for each address. Of those that belong to accounts it may have
                // any number for one address, and their owners can ask again.
                Admission::Full(until) if mail.user_id.is_none() => {
                    mail::defer(tx, mail, until).await?;
                    Ok(Err(Issued::Defer))
                }
                Admission::Full(_) => Ok(Err(Issued::Drop)),
            }
        });
        Ok(match issued.await? {
            Ok((recipient, counted)) => Issued::Token { recipient, token: token.into_string(), counted },
            Err(none) => none,
        })
    }

    async fn send(&self, mail: &Mail, letter: &Letter) -> std::result::Result<(), String> {
        let Some(transport) = &self.transport else {
            tracing::info!(
                target: UNSENT_MAIL,
                to = letter.recipient,
                subject = letter.subject,
                text = letter.text(),
                "mail, as no SMTP_URL is set"
            );
            return Ok(());
        };
        let recipient: Mailbox = letter.recipient.parse().map_err(|_| "the address cannot be written to".to_owned())?;
        let mut message = Message::builder()
            .from(self.from.clone())
            .to(recipient)
            .message_id(Some(format!("<{}@{}>", mail.id, self.from.email.domain())))
            .subject(letter.subject);
        if let Some(address) = &letter.unsubscribe {
            message = message.header(ListUnsubscribe(address.clone()));
            // One click is for HTTPS alone.
            if address.starts_with("https://") {
                message = message.header(ListUnsubscribePost);
            }
        }
        let message = message
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
        if let Some(address) = &self.unsubscribe {
            text.push_str(&format!("\n\n{UNSUBSCRIBE}:\n{address}"));
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
        if let Some(address) = &self.unsubscribe {
            html.push_str(&format!("<p><a href=\"{}\">{UNSUBSCRIBE}</a></p>", escaped(address)));
        }
        html.push_str("</body></html>");
        html
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
