//! The account e-mails' door: verifying an address, and setting a new password without the old one.
//!
//! What a stranger may ask for is answered alike and in the same time whether the address is anybody's: it is only put
//! into the mail queue, and the job that sends mail finds out. Mailed links open a page here, or one of the frontend's.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::address::ClientAddress;
use super::auth::{Body, origin};
use super::problem::Problem;
use crate::App;
use crate::auth::credential::MailToken;
use crate::error::{Error, Result};
use crate::limits::{Door, Who};
use crate::store::account;
use crate::store::mail::{self, Kind};
use crate::store::password::Password;
use crate::store::value::Email;

/// The routes for account e-mails.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/auth/verify-email", get(page).post(verify_email))
        .route("/auth/verify-email/resend", post(resend))
        .route("/auth/password-reset", get(page).post(password_reset))
        .route("/auth/password-reset/confirm", post(confirm))
        .route("/auth/page.js", get(script))
}

/// Says that something was taken on, and nothing else.
#[derive(Serialize)]
struct Accepted {
    detail: &'static str,
}

fn accepted(detail: &'static str) -> Response {
    (StatusCode::ACCEPTED, Json(Accepted { detail })).into_response()
}

#[derive(Deserialize)]
struct Verification {
    token: String,
}

async fn verify_email(
    State(app): State<Arc<App>>,
    ClientAddress(peer): ClientAddress,
    headers: HeaderMap,
    Body(body): Body<Verification>,
) -> Result<StatusCode, Problem> {
    let now = app.clock.now();
    app.limits.admit(Door::Credentials, Who::address(peer), now).await?;
    let hash = MailToken::shown(&body.token).hash();
    account::verify_email(&app.db, now, &hash, &origin(peer, &headers)).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct Address {
    email: String,
}

async fn resend(
    State(app): State<Arc<App>>,
    ClientAddress(peer): ClientAddress,
    Body(body): Body<Address>,
) -> Result<Response, Problem> {
    ask(&app, peer, Kind::VerifyEmail, &body.email).await?;
    Ok(accepted("If this address waits to be verified, a mail is on its way to it."))
}

async fn password_reset(
    State(app): State<Arc<App>>,
    ClientAddress(peer): ClientAddress,
    Body(body): Body<Address>,
) -> Result<Response, Problem> {
    ask(&app, peer, Kind::ResetPassword, &body.email).await?;
    Ok(accepted("If this address has an account, a mail is on its way to it."))
}

async fn ask(app: &App, peer: IpAddr, kind: Kind, email: &str) -> Result<()> {
    let now = app.clock.now();
    app.limits.admit(Door::Credentials, Who::address(peer), now).await?;
    let email = Email::parse("email", email).map_err(|fault| Error::Faults(vec![fault]))?;
    mail::queue_for_address(&app.db, now, kind, &email).await
}

#[derive(Deserialize)]
struct Confirmation {
    token: String,
    new_password: String,
}

async fn confirm(
    State(app): State<Arc<App>>,
    ClientAddress(peer): ClientAddress,
    headers: HeaderMap,
    Body(body): Body<Confirmation>,
) -> Result<StatusCode, Problem> {
    let now = app.clock.now();
    app.limits.admit(Door::Credentials, Who::address(peer), now).await?;
    let hash = MailToken::shown(&body.token).hash();
    let owner = account::reset_owner(&mut app.db.conn().await?, now, &hash).await?;
    let (policy, personal) = (app.config.password_policy, [owner.email.as_str(), owner.username.as_str()]);
    let password = Password::parse("new_password", &body.new_password, policy, &personal);
    let password = password.map_err(|fault| Error::Faults(vec![fault]))?;
    let password_hash = app.credentials.hash(&password).await?;
    account::reset_password(&app.db, now, &hash, &password_hash, &origin(peer, &headers)).await?;
    Ok(StatusCode::NO_CONTENT)
}

const POLICY: HeaderValue = HeaderValue::from_static(
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
