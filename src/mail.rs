//! Outgoing mail: claims due messages from the queue, composes them, issues their tokens, and sends
//! them via SMTP. Without a configured server, mail is written to the log.
//!
//! The queue has no tokens: a token is issued when its mail is composed, and stored only as a hash.

use std::sync::Arc;
use std::time::Duration;

use lettre::message::header::{Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message, MultiPart};
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};

use crate::App;
use crate::auth::credential::MailToken;
use crate::auth::unsubscribe;
use crate::error::{Error, Result};
use crate::http::account_email::CANCEL_PAGE;
use crate::id::Id;
use crate::store::mail::{self, Mail, MailKind};
use crate::store::mail_quota::{self, QuotaDecision};
use crate::store::token::{self, Purpose};
use crate::store::user;
use crate::store::value::is_deceptive;
use crate::telemetry::UNSENT_MAIL_TARGET;

/// Timeout of one delivery attempt.
const SMTP_TIMEOUT: Duration = Duration::from_secs(30);
/// Lifetime of a token to verify an address or to reset a password.
const VERIFY_LIFETIME: Duration = Duration::from_secs(24 * 3_600);
const RESET_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// The label of the unsubscribe link at the end of an assignment mail.
const UNSUBSCRIBE_TEXT: &str = "Unsubscribe from assignment e-mails";

/// Sends queued mail.
pub struct Mailer {
    app: Arc<App>,
    from: Mailbox,
    transport: Option<AsyncSmtpTransport<Tokio1Executor>>,
}

/// A composed message.
struct OutgoingMail {
    recipient: String,
    /// Constant text, never text from users: recipients and spam filters judge a mail by its
    /// subject.
    subject: &'static str,
    paragraphs: Vec<String>,
    link: Option<String>,
    /// The unsubscribe link, for kinds of mail that have one.
    unsubscribe: Option<String>,
    /// The entry in the mail quota, released if delivery fails.
    quota_entry: Option<Id>,
}

/// What to do with a queued message.
enum MailDecision {
    Send(OutgoingMail),
    /// Keep it in the queue until the mail quota allows it.
    Defer,
    /// Delete it: it has no valid recipient, is too old, or the mail quota is exhausted.
    Drop,
}

/// The token for a message, or what to do without one.
enum TokenOutcome {
    Token {
        recipient: String,
        token: String,
        quota_entry: Id,
    },
    Defer,
    Drop,
}

/// `List-Unsubscribe` (RFC 2369) with a URI that accepts a POST without login (RFC 8058).
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
        // A URI is ASCII. Encoded words would make it invalid for mail clients.
        HeaderValue::dangerous_new_pre_encoded(Self::name(), value.clone(), value)
    }
}

/// `List-Unsubscribe-Post`: announces one-click unsubscription (RFC 8058).
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
    /// Uses the configured SMTP server, or the log if there is none.
    pub fn new(app: Arc<App>) -> Result<Self> {
        let transport = match &app.config.smtp_url {
            None => None,
            Some(url) => {
                let url = std::str::from_utf8(url.expose()).map_err(Error::internal)?;
                let transport =
                    AsyncSmtpTransport::<Tokio1Executor>::from_url(url).map_err(Error::internal)?;
                Some(transport.timeout(Some(SMTP_TIMEOUT)).build())
            }
        };
        Ok(Self {
            from: app.config.mail_from.parse().map_err(Error::internal)?,
            transport,
            app,
        })
    }

    /// Sends every due message. A failed one is retried with growing delays.
    pub async fn send_due(&self) -> Result<()> {
        let (db, clock) = (&self.app.db, &self.app.clock);
        while let Some(mail) = mail::claim(db, clock.now()).await? {
            let letter = match self.compose(&mail).await? {
                MailDecision::Send(letter) => letter,
                MailDecision::Defer => continue,
                MailDecision::Drop => {
                    mail::complete(db, &mail).await?;
                    continue;
                }
            };
            let started = clock.now();
            match self.send(&mail, &letter).await {
                Ok(()) => mail::complete(db, &mail).await?,
                Err(reason) => {
                    if let Some(counted) = letter.quota_entry {
                        mail_quota::release(db, counted).await?;
                    }
                    let kept = mail::postpone(db, started, &mail, &reason).await?;
                    tracing::warn!(mail = %mail.id, reason, kept, "mail delivery failed");
                }
            }
        }
        Ok(())
    }

    /// Composes a message and decides whether to send it.
    async fn compose(&self, mail: &Mail) -> Result<MailDecision> {
        let config = &self.app.config;
        if mail.is_expired(self.app.clock.now()) {
            return Ok(MailDecision::Drop);
        }
        let notice = |subject, paragraphs: [String; 2]| OutgoingMail {
            recipient: mail.recipient.clone(),
            subject,
            paragraphs: paragraphs.into(),
            link: None,
            unsubscribe: None,
            quota_entry: None,
        };
        match mail.kind {
            MailKind::TaskAssigned => {
                let Some(id) = mail.user_id else {
                    return Ok(MailDecision::Drop);
                };
                // The recipient may have unsubscribed or moved while the mail waited.
                let user = user::any_by_ids(&mut self.app.db.conn().await?, &[id])
                    .await?
                    .pop();
                if !user.is_some_and(|user| {
                    user.wants_assignment_mail() && user.email == mail.recipient
                }) {
                    return Ok(MailDecision::Drop);
                }
                let token = unsubscribe::token(&config.secret_key, id);
                let unsubscribe = Some(format!(
                    "{}/auth/unsubscribe?token={token}",
                    config.public_url
                ));
                let paragraphs = [
                    "Someone assigned a task to you. They gave it this title:".to_owned(),
                    quoted(&mail.data),
                ];
                Ok(MailDecision::Send(OutgoingMail {
                    unsubscribe,
                    ..notice("A task was assigned to you", paragraphs)
                }))
            }
            MailKind::VerifyEmail => {
                let paragraphs = [
                    "To verify your e-mail address, open this link. It expires in 24 hours."
                        .to_owned(),
                    "If you did not request this, you can ignore this message.".to_owned(),
                ];
                let letter = notice("Verify your e-mail address", paragraphs);
                self.compose_with_token(
                    mail,
                    Purpose::VerifyEmail,
                    VERIFY_LIFETIME,
                    &config.verify_email_url,
                    letter,
                )
                .await
            }
            MailKind::ResetPassword => {
                let paragraphs = [
                    "To set a new password, open this link. It works once and expires in 30 minutes.".to_owned(),
                    "If you did not request this, ignore this message: your password stays unchanged.".to_owned(),
                ];
                let letter = notice("Set a new password", paragraphs);
                self.compose_with_token(
                    mail,
                    Purpose::ResetPassword,
                    RESET_LIFETIME,
                    &config.reset_password_url,
                    letter,
                )
                .await
            }
            MailKind::PasswordDisabled => {
                let paragraphs = [
                    "The change of your e-mail address was undone, and your password was disabled.".to_owned(),
                    "To set a new password, open this link. It works once and expires in 30 minutes.".to_owned(),
                ];
                let letter = notice("Set a new password", paragraphs);
                self.compose_with_token(
                    mail,
                    Purpose::ResetPassword,
                    RESET_LIFETIME,
                    &config.reset_password_url,
                    letter,
                )
                .await
            }
            MailKind::PasswordChanged => {
                let paragraphs = [
                    "The password of your account was changed, and all other sessions were ended."
                        .to_owned(),
                    "If this was not you, reset your password now and contact your administrator."
                        .to_owned(),
                ];
                self.admit_notice(mail, notice("Your password was changed", paragraphs))
                    .await
            }
            MailKind::UsernameChanged => {
                let paragraphs = [
                    format!("Your account now has the username {}.", one_line(&mail.data)),
                    "If this was not you, end your other sessions, change your password, and take the old username \
                     back. Nobody else can take it for 3 days."
                        .to_owned(),
                ];
                self.admit_notice(mail, notice("Your username was changed", paragraphs))
                    .await
            }
            MailKind::EmailChanged => {
                let paragraphs = [
                    format!("Your account now uses the address {}.", one_line(&mail.data)),
                    "If this was not you, open the link in the message that we sent when the change was requested. It \
                     undoes the change. If you did not receive that message, contact your administrator."
                        .to_owned(),
                ];
                self.admit_notice(mail, notice("Your e-mail address was changed", paragraphs))
                    .await
            }
            MailKind::EmailChangeRequested => match self.email_change(mail) {
                Some((link, paragraphs)) => {
                    let letter = notice("Your e-mail address is about to change", paragraphs);
                    self.admit_notice(
                        mail,
                        OutgoingMail {
                            link: Some(link),
                            ..letter
                        },
                    )
                    .await
                }
                None => Ok(MailDecision::Drop),
            },
        }
    }

    /// The notice to the old address about a requested change, with the link that undoes it.
    fn email_change(&self, mail: &Mail) -> Option<(String, [String; 2])> {
        let (id, wanted) = mail.data.split_once(' ')?;
        let token = self.app.credentials.email_change_token(Id::parse(id)?);
        let wanted = one_line(wanted);
        let paragraphs = [
            format!(
                "Someone who knows your password requested to change the e-mail address of your account to {wanted}. \
                 If this was you, you can ignore this message."
            ),
            "If this was not you, open this link. It undoes the change, ends all sessions, and sends you a link to \
             set a new password. It expires in 3 days."
                .to_owned(),
        ];
        Some((
            link(
                &format!("{}{CANCEL_PAGE}", self.app.config.public_url),
                &token,
            ),
            paragraphs,
        ))
    }

    /// Adds a link with a new token to a composed message.
    async fn compose_with_token(
        &self,
        mail: &Mail,
        purpose: Purpose,
        lifetime: Duration,
        page: &str,
        letter: OutgoingMail,
    ) -> Result<MailDecision> {
        Ok(match self.token(mail, purpose, lifetime).await? {
            TokenOutcome::Token {
                recipient,
                token,
                quota_entry: counted,
            } => {
                let link = Some(link(page, &token));
                MailDecision::Send(OutgoingMail {
                    recipient,
                    link,
                    quota_entry: Some(counted),
                    ..letter
                })
            }
            TokenOutcome::Defer => MailDecision::Defer,
            TokenOutcome::Drop => MailDecision::Drop,
        })
    }

    /// Sends a notice, unless the mail quota of its kind is exhausted.
    async fn admit_notice(&self, mail: &Mail, letter: OutgoingMail) -> Result<MailDecision> {
        let now = self.app.clock.now();
        let admission = self.app.db.transaction(async |tx| {
            mail_quota::admit_account_mail(tx, now, mail.kind, &mail.recipient).await
        });
        Ok(match admission.await? {
            QuotaDecision::Counted(id) => MailDecision::Send(OutgoingMail {
                quota_entry: Some(id),
                ..letter
            }),
            QuotaDecision::Full(_) => MailDecision::Drop,
        })
    }

    /// Issues the token of a message. Returns none if no active account has the address, if the
    /// address is already verified, or if the mail quota is exhausted.
    ///
    /// An address entered by an anonymous client may differ from the account's in case or spelling
    /// and be another mailbox. So it only finds the account, and the mail goes to the address of
    /// the account.
    async fn token(
        &self,
        mail: &Mail,
        purpose: Purpose,
        lifetime: Duration,
    ) -> Result<TokenOutcome> {
        let now = self.app.clock.now();
        let token = MailToken::new()?;
        let hash = token.hash();
        let issued = self.app.db.transaction(async |tx| {
            let id = match mail.user_id {
                Some(id) => Some(id),
                None => user::find_by_email(tx, &mail.recipient)
                    .await?
                    .map(|user| user.id),
            };
            let Some(id) = id else {
                return Ok(Err(TokenOutcome::Drop));
            };
            let Some(user) = user::lock(tx, id).await?.filter(|user| user.is_active) else {
                return Ok(Err(TokenOutcome::Drop));
            };
            // Another transaction that locked the account first may have withdrawn the message.
            if !mail::is_claimed(tx, mail).await? {
                return Ok(Err(TokenOutcome::Drop));
            }
            let recipient = if mail.user_id.is_some() {
                &mail.recipient
            } else {
                &user.email
            };
            if purpose == Purpose::VerifyEmail && user.email_verified && user.email == *recipient {
                return Ok(Err(TokenOutcome::Drop));
            }
            match mail_quota::admit_account_mail(tx, now, mail.kind, recipient).await? {
                QuotaDecision::Counted(counted) => {
                    token::insert(tx, user.id, purpose, &hash, recipient, now.plus(lifetime))
                        .await?;
                    Ok(Ok((recipient.clone(), counted)))
                }
                // Messages to the account's own address are few, so they can wait. Users can
                // request a change to any address, so links for these may be many per address. They
                // are dropped, and their users can request another.
                QuotaDecision::Full(until) if user.email == *recipient => {
                    mail::defer(tx, mail, until).await?;
                    Ok(Err(TokenOutcome::Defer))
                }
                QuotaDecision::Full(_) => Ok(Err(TokenOutcome::Drop)),
            }
        });
        Ok(match issued.await? {
            Ok((recipient, counted)) => TokenOutcome::Token {
                recipient,
                token: token.into_string(),
                quota_entry: counted,
            },
            Err(none) => none,
        })
    }

    async fn send(&self, mail: &Mail, letter: &OutgoingMail) -> std::result::Result<(), String> {
        let Some(transport) = &self.transport else {
            tracing::info!(
                target: UNSENT_MAIL_TARGET,
                to = letter.recipient,
                subject = letter.subject,
                text = letter.text(),
                "mail not sent, SMTP_URL is not set"
            );
            return Ok(());
        };
        let recipient: Mailbox = letter
            .recipient
            .parse()
            .map_err(|_| "invalid recipient address".to_owned())?;
        let mut message = Message::builder()
            .from(self.from.clone())
            .to(recipient)
            .message_id(Some(format!("<{}@{}>", mail.id, self.from.email.domain())))
            .subject(letter.subject);
        if let Some(address) = &letter.unsubscribe {
            message = message.header(ListUnsubscribe(address.clone()));
            // RFC 8058 requires HTTPS for one-click unsubscription.
            if address.starts_with("https://") {
                message = message.header(ListUnsubscribePost);
            }
        }
        let message = message
            .multipart(MultiPart::alternative_plain_html(
                letter.text(),
                letter.html(),
            ))
            .map_err(|error| error.to_string())?;
        // The transport's own timeout covers only the connection setup.
        match tokio::time::timeout(SMTP_TIMEOUT, transport.send(message)).await {
            Ok(sent) => sent.map(|_| ()).map_err(|error| error.to_string()),
            Err(_) => Err("the SMTP server timed out".to_owned()),
        }
    }
}

/// Puts the token in the URL fragment, which browsers do not send, so that it appears in no log.
fn link(page: &str, token: &str) -> String {
    format!("{page}#token={token}")
}

impl OutgoingMail {
    fn text(&self) -> String {
        let mut text = self.paragraphs.join("\n\n");
        if let Some(link) = &self.link {
            text.push_str("\n\n");
            text.push_str(link);
        }
        if let Some(address) = &self.unsubscribe {
            text.push_str(&format!("\n\n{UNSUBSCRIBE_TEXT}:\n{address}"));
        }
        text.push('\n');
        text
    }

    fn html(&self) -> String {
        let mut html = String::from("<!doctype html><html><body>");
        for paragraph in &self.paragraphs {
            html.push_str("<p>");
            html.push_str(&escape_html(paragraph));
            html.push_str("</p>");
        }
        if let Some(link) = &self.link {
            let link = escape_html(link);
            html.push_str(&format!("<p><a href=\"{link}\">{link}</a></p>"));
        }
        if let Some(address) = &self.unsubscribe {
            html.push_str(&format!(
                "<p><a href=\"{}\">{UNSUBSCRIBE_TEXT}</a></p>",
                escape_html(address)
            ));
        }
        html.push_str("</body></html>");
        html
    }
}

/// Maximum length of a text from users in a mail.
const MAX_QUOTE: usize = 200;

/// Reduces a text from users to one line of at most [`MAX_QUOTE`] characters, without characters
/// that hide or reorder text.
fn one_line(text: &str) -> String {
    let visible: String = text
        .chars()
        .map(|c| if is_deceptive(c) { ' ' } else { c })
        .collect();
    let line = visible.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(MAX_QUOTE).collect()
}

/// Like [`one_line`], in quotation marks, which the text cannot close: it must not pass for a text
/// of the server.
fn quoted(text: &str) -> String {
    let is_quote = |c: char| matches!(c, '"' | '\u{201c}'..='\u{201f}' | '\u{ff02}');
    format!("\"{}\"", one_line(text).replace(is_quote, "'"))
}

fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
