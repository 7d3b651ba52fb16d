//! Account e-mails: address verification, canceling an address change, password reset and
//! unsubscribing.
//!
//! Requests that anybody may send get the same response in the same time, whether or not the
//! address has an account. They only queue a mail; the mail job looks the account up later. Mailed
//! links open a page of this server or of the frontend.

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

use super::auth::{AppliedRateLimit, JsonOrForm, device_cookie};
use super::openapi::{DocumentedErrors, ErrorResponses};
use super::problem::Problem;
use crate::App;
use crate::auth::credential::MailToken;
use crate::auth::unsubscribe;
use crate::error::{Error, Result, UserErrorCode};
use crate::id::Id;
use crate::limits::RateLimitBucket;
use crate::network::Client;
use crate::store::audit::ClientInfo;
use crate::store::mail::{self, MailKind};
use crate::store::password::Password;
use crate::store::value::Email;
use crate::store::{account, user};

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(verify_email))
        .routes(routes!(cancel_email_change))
        .routes(routes!(resend_verification))
        .routes(routes!(password_reset))
        .routes(routes!(confirm_password_reset))
        .routes(routes!(unsubscribe_from_assignments))
}

/// Path of the page that cancels an address change, and of the endpoint that its form posts to.
pub const CANCEL_PAGE: &str = "/auth/email-change/cancel";

/// The HTML pages that mailed links open.
pub fn pages() -> Router<Arc<App>> {
    Router::new()
        .route("/auth/verify-email", get(page))
        .route("/auth/password-reset", get(page))
        .route("/auth/unsubscribe", get(page))
        .route(CANCEL_PAGE, get(page))
        .route("/auth/page.js", get(script))
}

/// Confirms that a request was accepted. The same for every address.
#[derive(Serialize, ToSchema)]
struct Accepted {
    /// A message for the user.
    detail: &'static str,
}

fn accepted(detail: &'static str) -> Response {
    (StatusCode::ACCEPTED, Json(Accepted { detail })).into_response()
}

/// The token of a verification link.
#[derive(Deserialize, ToSchema)]
struct Verification {
    /// The token after `#token=` in the link.
    token: String,
}

impl DocumentedErrors for Verification {
    const USER_ERRORS: &[UserErrorCode] = &[UserErrorCode::Invalid, UserErrorCode::Taken];
}

/// Verify an e-mail address
///
/// Confirms the current address of an account, or a requested new address, which then replaces the
/// current one.
#[utoipa::path(
    post,
    tag = "E-mail",
    path = "/auth/verify-email",
    request_body(content((Verification = "application/json"), (Verification = "application/x-www-form-urlencoded"))),
    responses((status = 204, description = "The address is verified."), ErrorResponses<Verification>),
)]
async fn verify_email(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<AppliedRateLimit>,
    JsonOrForm(body): JsonOrForm<Verification>,
) -> Result<StatusCode, Problem> {
    let now = app.clock.now();
    counted
        .admit(&app, RateLimitBucket::Credentials, &client)
        .await?;
    let hash = MailToken::from_input(&body.token).hash();
    account::verify_email(&app.db, now, &hash, &ClientInfo::from(&client)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The address to send a mail to.
#[derive(Deserialize, ToSchema)]
struct Address {
    /// The e-mail address. The response does not reveal whether it has an account.
    #[schema(format = Email, max_length = 254, example = "ada@example.org")]
    email: String,
}

impl DocumentedErrors for Address {
    const USER_ERRORS: &[UserErrorCode] = &[
        UserErrorCode::Blank,
        UserErrorCode::TooLong,
        UserErrorCode::Invalid,
    ];
}

/// The token of a link that cancels an address change.
#[derive(Deserialize, ToSchema)]
struct Cancellation {
    /// The token after `#token=` in the link.
    token: String,
}

impl DocumentedErrors for Cancellation {
    const USER_ERRORS: &[UserErrorCode] = &[UserErrorCode::Invalid];
}

/// Cancel an e-mail address change
///
/// Uses the link that is mailed to the old address when a change is requested. The link is valid
/// for three days and can be used once. The account keeps its old address, or gets it back if the
/// change was confirmed and the old address had been verified. All sessions end, the password
/// becomes unusable, and a link to set a new one is mailed to the old address.
#[utoipa::path(
    post,
    tag = "E-mail",
    path = "/auth/email-change/cancel",
    request_body(content((Cancellation = "application/json"), (Cancellation = "application/x-www-form-urlencoded"))),
    responses((status = 204, description = "The change is canceled."), ErrorResponses<Cancellation>),
)]
async fn cancel_email_change(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<AppliedRateLimit>,
    JsonOrForm(body): JsonOrForm<Cancellation>,
) -> Result<StatusCode, Problem> {
    let now = app.clock.now();
    counted
        .admit(&app, RateLimitBucket::Credentials, &client)
        .await?;
    let change = app
        .credentials
        .verify_email_change(&body.token)
        .ok_or_else(account::invalid_token)?;
    let unusable = app.credentials.unusable_hash()?;
    account::cancel_email_change(&app.db, now, change, &unusable, &ClientInfo::from(&client))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Resend the verification e-mail
///
/// Sends a new link if the address is waiting to be verified.
#[utoipa::path(
    post,
    tag = "E-mail",
    path = "/auth/verify-email/resend",
    request_body(content((Address = "application/json"), (Address = "application/x-www-form-urlencoded"))),
    responses((status = 202, description = "The request was accepted. The response is the same for every address.", body = Accepted), ErrorResponses<Address>),
)]
async fn resend_verification(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<AppliedRateLimit>,
    JsonOrForm(body): JsonOrForm<Address>,
) -> Result<Response, Problem> {
    queue_mail(&app, &counted, &client, MailKind::VerifyEmail, &body.email).await?;
    Ok(accepted(
        "If this address needs to be verified, a message is on its way.",
    ))
}

/// Request a password reset
///
/// Sends a link to set a new password if the address belongs to an account.
#[utoipa::path(
    post,
    tag = "E-mail",
    path = "/auth/password-reset",
    request_body(content((Address = "application/json"), (Address = "application/x-www-form-urlencoded"))),
    responses((status = 202, description = "The request was accepted. The response is the same for every address.", body = Accepted), ErrorResponses<Address>),
)]
async fn password_reset(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<AppliedRateLimit>,
    JsonOrForm(body): JsonOrForm<Address>,
) -> Result<Response, Problem> {
    queue_mail(
        &app,
        &counted,
        &client,
        MailKind::ResetPassword,
        &body.email,
    )
    .await?;
    Ok(accepted(
        "If this address has an account, a message is on its way.",
    ))
}

async fn queue_mail(
    app: &App,
    counted: &AppliedRateLimit,
    client: &Client,
    kind: MailKind,
    email: &str,
) -> Result<()> {
    counted
        .admit(app, RateLimitBucket::Credentials, client)
        .await?;
    let email = Email::parse("email", email).map_err(|fault| Error::UserErrors(vec![fault]))?;
    mail::queue_for_address(&app.db, app.clock.now(), kind, &email).await
}

/// A password reset: the token of the link and the new password.
#[derive(Deserialize, ToSchema)]
struct Confirmation {
    /// The token after `#token=` in the link.
    token: String,
    /// The new password. The rules of registration apply.
    #[schema(format = Password, min_length = 8, max_length = 256, example = "Correct-Horse-7")]
    new_password: String,
    /// Whether to return a `device_token`, for clients that do not keep cookies.
    #[serde(default)]
    #[schema(example = true)]
    issue_device_token: bool,
}

/// Proves that the owner of the account has set the password on this device.
#[derive(Serialize, ToSchema)]
struct KnownDevice {
    /// Send it with the next login, like the `device_token` of a login.
    device_token: String,
}

impl DocumentedErrors for Confirmation {
    const USER_ERRORS: &[UserErrorCode] = &[
        UserErrorCode::Invalid,
        UserErrorCode::TooLong,
        UserErrorCode::WeakPassword,
    ];
}

/// Reset a password
///
/// Sets a new password with the token of a reset link. All sessions of the account end, and the
/// device tokens of earlier logins become invalid. The response sets the cookie of a new one, as
/// login does, so that failed logins by others cannot lock this device out. Send
/// `"issue_device_token": true` to receive it in the body too.
#[utoipa::path(
    post,
    tag = "E-mail",
    path = "/auth/password-reset/confirm",
    request_body(content((Confirmation = "application/json"), (Confirmation = "application/x-www-form-urlencoded"))),
    responses(
        (
            status = 204,
            description = "The password was changed.",
            headers(("Set-Cookie" = String, description = "The device token as a cookie, for browsers.")),
        ),
        (
            status = 200,
            description = "The password was changed, and `issue_device_token` was set.",
            body = KnownDevice,
            headers(("Set-Cookie" = String, description = "The device token as a cookie, for browsers.")),
        ),
        ErrorResponses<Confirmation>,
    ),
)]
async fn confirm_password_reset(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<AppliedRateLimit>,
    JsonOrForm(body): JsonOrForm<Confirmation>,
) -> Result<Response, Problem> {
    let now = app.clock.now();
    counted
        .admit(&app, RateLimitBucket::Credentials, &client)
        .await?;
    let hash = MailToken::from_input(&body.token).hash();
    let owner = account::reset_owner(&mut app.db.conn().await?, now, &hash).await?;
    let (policy, personal) = (
        app.config.password_policy,
        [owner.email.as_str(), owner.username.as_str()],
    );
    let password = Password::parse("new_password", &body.new_password, policy, &personal);
    let password = password.map_err(|fault| Error::UserErrors(vec![fault]))?;
    let password_hash = app.credentials.hash(&password).await?;
    account::reset_password(
        &app.db,
        now,
        &hash,
        &password_hash,
        &ClientInfo::from(&client),
    )
    .await?;
    // The device tokens of earlier logins ended with the old password. Without a new one, strangers
    // who guess would keep the owner out from the first login on.
    let device_token = app
        .credentials
        .device_token(now, Id::new(), owner.id, &password_hash);
    let cookie = [(
        header::SET_COOKIE,
        device_cookie(&app, owner.id, &device_token)?,
    )];
    // A body by default would break clients that expect 204.
    Ok(match body.issue_device_token {
        true => (cookie, Json(KnownDevice { device_token })).into_response(),
        false => (StatusCode::NO_CONTENT, cookie).into_response(),
    })
}

/// An unsubscribe request. Only its token is read.
struct Unsubscription;

impl DocumentedErrors for Unsubscription {
    const READS_BODY: bool = false;
    const USER_ERRORS: &[UserErrorCode] = &[UserErrorCode::Invalid];
}

/// Unsubscribe from assignment e-mails
///
/// The target of the `List-Unsubscribe` header of these mails. Requires no login (RFC 8058): mail
/// clients post `List-Unsubscribe=One-Click`, which is ignored because the link identifies the
/// user. To subscribe again, set `assignmentEmails` with `updateViewer`.
#[utoipa::path(
    post,
    tag = "E-mail",
    path = "/auth/unsubscribe",
    params(("token" = String, Query, description = "The token of the link in the mail.")),
    responses((status = 200, description = "Assignment e-mails are disabled.", body = Accepted), ErrorResponses<Unsubscription>),
)]
async fn unsubscribe_from_assignments(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<AppliedRateLimit>,
    uri: Uri,
) -> Result<Json<Accepted>, Problem> {
    counted.admit(&app, RateLimitBucket::Auth, &client).await?;
    let mut parameters = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let token = parameters
        .find(|(name, _)| name == "token")
        .map(|(_, token)| token);
    let user_id = token.and_then(|token| unsubscribe::verify(&app.config.secret_key, &token));
    let user_id = user_id.ok_or_else(|| {
        Error::user_error("token", UserErrorCode::Invalid, "This link is not valid.")
    })?;
    user::unsubscribe(
        &app.db,
        app.clock.now(),
        user_id,
        &ClientInfo::from(&client),
    )
    .await?;
    Ok(Json(Accepted {
        detail: "You will receive no more e-mails about assignments.",
    }))
}

/// Content security policy of pages with one script of this server and inline styles.
pub const CONTENT_SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);

/// The page that a mailed link opens. Loading it changes nothing, because mail scanners open links
/// too.
async fn page() -> Response {
    (
        [(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY)],
        Html(include_str!("page.html")),
    )
        .into_response()
}

async fn script() -> Response {
    (
        [(header::CONTENT_TYPE, "text/javascript")],
        include_str!("page.js"),
    )
        .into_response()
}
