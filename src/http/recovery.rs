//! The account e-mails' door: verifying an address, and setting a new password without the old one.
//!
//! What a stranger may ask for is answered alike and in the same time whether the address is anybody's: it is only put
//! into the mail queue, and the job that sends mail finds out. Mailed links open a page here, or one of the frontend's.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Body, Counted};
use super::docs::{Refusals, Refused};
use super::problem::Problem;
use crate::App;
use crate::auth::credential::MailToken;
use crate::auth::unsubscribe;
use crate::error::{Error, FaultCode, Result};
use crate::limits::Door;
use crate::network::Client;
use crate::store::audit::Origin;
use crate::store::mail::{self, Kind};
use crate::store::password::Password;
use crate::store::value::Email;
use crate::store::{account, user};

/// The routes for account e-mails.
pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(verify_email))
        .routes(routes!(cancel_email_change))
        .routes(routes!(resend_verification))
        .routes(routes!(password_reset))
        .routes(routes!(confirm_password_reset))
        .routes(routes!(unsubscribe_from_assignments))
}

/// The page of the server that takes a change of address back, and the path that its form posts to.
pub const CANCEL_PAGE: &str = "/auth/email-change/cancel";

/// The pages that mailed links open, for people.
pub fn pages() -> Router<Arc<App>> {
    Router::new()
        .route("/auth/verify-email", get(page))
        .route("/auth/password-reset", get(page))
        .route("/auth/unsubscribe", get(page))
        .route(CANCEL_PAGE, get(page))
        .route("/auth/page.js", get(script))
}

/// That something was taken on, and nothing else: the same whatever the address is.
#[derive(Serialize, ToSchema)]
struct Accepted {
    /// For a person to read.
    detail: &'static str,
}

fn accepted(detail: &'static str) -> Response {
    (StatusCode::ACCEPTED, Json(Accepted { detail })).into_response()
}

/// A mailed link that was followed.
#[derive(Deserialize, ToSchema)]
struct Verification {
    /// What stands behind `#token=` in the link.
    token: String,
}

impl Refusals for Verification {
    const FAULTS: &[FaultCode] = &[FaultCode::Invalid, FaultCode::Taken];
}

/// Verify an e-mail address
///
/// Proves that an address is one's own, the present one or one to change to, which then takes its place.
#[utoipa::path(
    post,
    tag = "E-mail",
    path = "/auth/verify-email",
    request_body(content((Verification = "application/json"), (Verification = "application/x-www-form-urlencoded"))),
    responses((status = 204, description = "The address is the account's, and verified."), Refused<Verification>),
)]
async fn verify_email(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<Counted>,
    Body(body): Body<Verification>,
) -> Result<StatusCode, Problem> {
    let now = app.clock.now();
    counted.admit(&app, Door::Credentials, &client).await?;
    let hash = MailToken::shown(&body.token).hash();
    account::verify_email(&app.db, now, &hash, &Origin::from(&client)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whom to write to.
#[derive(Deserialize, ToSchema)]
struct Address {
    /// Whether it is anybody's is not told.
    #[schema(format = Email, max_length = 254, example = "ada@example.org")]
    email: String,
}

impl Refusals for Address {
    const FAULTS: &[FaultCode] = &[FaultCode::Blank, FaultCode::TooLong, FaultCode::Invalid];
}

/// The mailed link to take a change of address back, followed.
#[derive(Deserialize, ToSchema)]
struct Cancellation {
    /// What stands behind `#token=` in the link.
    token: String,
}

impl Refusals for Cancellation {
    const FAULTS: &[FaultCode] = &[FaultCode::Invalid];
}

/// Take a change of the e-mail address back
///
/// By the link that is mailed to the old address when a change is asked for, good for three days and once. The account
/// keeps its old address, or has it again if the change was confirmed and the old one had been verified. Every session
/// ends, the password becomes unusable, and a link to set another one is mailed to the old address.
#[utoipa::path(
    post,
    tag = "E-mail",
    path = "/auth/email-change/cancel",
    request_body(content((Cancellation = "application/json"), (Cancellation = "application/x-www-form-urlencoded"))),
    responses((status = 204, description = "The account has its old address."), Refused<Cancellation>),
)]
async fn cancel_email_change(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<Counted>,
    Body(body): Body<Cancellation>,
) -> Result<StatusCode, Problem> {
    let now = app.clock.now();
    counted.admit(&app, Door::Credentials, &client).await?;
    let change = app.credentials.email_change(&body.token).ok_or_else(account::no_such_token)?;
    let unusable = app.credentials.unusable_hash()?;
    account::cancel_email_change(&app.db, now, change, &unusable, &Origin::from(&client)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ask for another link to verify an address
#[utoipa::path(
    post,
    tag = "E-mail",
    path = "/auth/verify-email/resend",
    request_body(content((Address = "application/json"), (Address = "application/x-www-form-urlencoded"))),
    responses((status = 202, description = "The same for any address.", body = Accepted), Refused<Address>),
)]
async fn resend_verification(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<Counted>,
    Body(body): Body<Address>,
) -> Result<Response, Problem> {
    ask(&app, &counted, &client, Kind::VerifyEmail, &body.email).await?;
    Ok(accepted("If this address waits to be verified, a mail is on its way to it."))
}

/// Ask for a link to set a new password
#[utoipa::path(
    post,
    tag = "E-mail",
    path = "/auth/password-reset",
    request_body(content((Address = "application/json"), (Address = "application/x-www-form-urlencoded"))),
    responses((status = 202, description = "The same for any address.", body = Accepted), Refused<Address>),
)]
async fn password_reset(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<Counted>,
    Body(body): Body<Address>,
) -> Result<Response, Problem> {
    ask(&app, &counted, &client, Kind::ResetPassword, &body.email).await?;
    Ok(accepted("If this address has an account, a mail is on its way to it."))
}

async fn ask(app: &App, counted: &Counted, client: &Client, kind: Kind, email: &str) -> Result<()> {
    counted.admit(app, Door::Credentials, client).await?;
    let email = Email::parse("email", email).map_err(|fault| Error::Faults(vec![fault]))?;
    mail::queue_for_address(&app.db, app.clock.now(), kind, &email).await
}

/// A new password for who followed a mailed link.
#[derive(Deserialize, ToSchema)]
struct Confirmation {
    /// What stands behind `#token=` in the link.
    token: String,
    /// As for a new account.
    #[schema(format = Password, min_length = 8, max_length = 256, example = "Correct-Horse-7")]
    new_password: String,
}

impl Refusals for Confirmation {
    const FAULTS: &[FaultCode] = &[FaultCode::Invalid, FaultCode::TooLong, FaultCode::WeakPassword];
}

/// Set a new password
///
/// Ends every session of the account.
#[utoipa::path(
    post,
    tag = "E-mail",
    path = "/auth/password-reset/confirm",
    request_body(content((Confirmation = "application/json"), (Confirmation = "application/x-www-form-urlencoded"))),
    responses((status = 204, description = "The password is set."), Refused<Confirmation>),
)]
async fn confirm_password_reset(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<Counted>,
    Body(body): Body<Confirmation>,
) -> Result<StatusCode, Problem> {
    let now = app.clock.now();
    counted.admit(&app, Door::Credentials, &client).await?;
    let hash = MailToken::shown(&body.token).hash();
    let owner = account::reset_owner(&mut app.db.conn().await?, now, &hash).await?;
    let (policy, personal) = (app.config.password_policy, [owner.email.as_str(), owner.username.as_str()]);
    let password = Password::parse("new_password", &body.new_password, policy, &personal);
    let password = password.map_err(|fault| Error::Faults(vec![fault]))?;
    let password_hash = app.credentials.hash(&password).await?;
    account::reset_password(&app.db, now, &hash, &password_hash, &Origin::from(&client)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The request to get no more assignment mails, which is its token alone.
struct Unsubscription;

impl Refusals for Unsubscription {
    const READS_BODY: bool = false;
    const FAULTS: &[FaultCode] = &[FaultCode::Invalid];
}

/// Unsubscribe from assignment mails
///
/// What `List-Unsubscribe` of such a mail names. Needs no login (RFC 8058): a mail client posts
/// `List-Unsubscribe=One-Click`, which is not read, as the link says everything. `assignmentEmails` of `updateViewer`
/// subscribes again.
#[utoipa::path(
    post,
    tag = "E-mail",
    path = "/auth/unsubscribe",
    params(("token" = String, Query, description = "From the link in the mail.")),
    responses((status = 200, description = "No more of them are sent.", body = Accepted), Refused<Unsubscription>),
)]
async fn unsubscribe_from_assignments(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<Counted>,
    uri: Uri,
) -> Result<Json<Accepted>, Problem> {
    counted.admit(&app, Door::Auth, &client).await?;
    let mut parameters = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let token = parameters.find(|(name, _)| name == "token").map(|(_, token)| token);
    let user_id = token.and_then(|token| unsubscribe::user_of(&app.config.secret_key, &token));
    let user_id = user_id.ok_or_else(|| Error::fault("token", FaultCode::Invalid, "The link is not valid."))?;
    user::unsubscribe(&app.db, user_id).await?;
    Ok(Json(Accepted { detail: "No more assignments are mailed to you." }))
}

/// For a page with one script of this server and its style in it.
pub const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);

/// The page that a mailed link opens. Opening it changes nothing, as programs that look through mail do so too.
async fn page() -> Response {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(include_str!("page.html"))).into_response()
}

async fn script() -> Response {
    ([(header::CONTENT_TYPE, "text/javascript")], include_str!("page.js")).into_response()
}
