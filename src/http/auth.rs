//! Registration, login, token refresh and logout under `/auth`. Bodies are JSON in snake_case or
//! forms; errors are problem documents (RFC 9457) with a stable `code`. Doc comments of handlers
//! and schemas become the OpenAPI document. E-mail verification and password reset are in
//! [`account_email`].

use std::sync::{Arc, OnceLock};

use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Form, Json};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::account_email;
use super::openapi::{DocumentedErrors, ErrorResponses};
use super::problem::Problem;
use crate::App;
use crate::access::Role;
use crate::auth::credential::{self, DEVICE_LIFETIME, RefreshToken, Tokens};
use crate::auth::{self, bearer};
use crate::error::{Code, Error, Result, UserError, UserErrorCode};
use crate::graphql::node::{self, NodeType};
use crate::id::Id;
use crate::limits::{self, ClientKey, RateLimitBucket, RateLimitStatus};
use crate::network::Client;
use crate::store::account::{self, LoginCredential};
use crate::store::audit::ClientInfo;
use crate::store::lockout::{self, PasswordAttempt, Verdict};
use crate::store::password::Password;
use crate::store::session::{self, LoginOutcome, Rotation, Session, VerifiedPassword};
use crate::store::user::{self, User};
use crate::store::value::{DisplayName, Email, UserErrors, Username, fold};
use crate::time::Timestamp;

/// The routes under `/auth`, with their OpenAPI descriptions.
pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(register))
        .routes(routes!(login))
        .routes(routes!(refresh))
        .routes(routes!(logout))
        .merge(account_email::routes())
}

/// The account to create.
#[derive(Deserialize, ToSchema)]
struct Registration {
    /// The e-mail address. It must be unique on the server.
    #[schema(format = Email, max_length = 254, example = "ada@example.org")]
    email: String,
    /// The username. It must be unique without regard to case. Names that look official, such as
    /// `admin`, are reserved.
    #[schema(pattern = "^[A-Za-z0-9_-]{3,50}$", example = "ada")]
    username: String,
    /// The password. The minimum length is 8 or 15 characters, depending on the server settings.
    /// Common passwords are rejected.
    #[schema(format = Password, min_length = 8, max_length = 256, example = "Correct-Horse-7")]
    password: String,
    /// The name that other users see. Defaults to the username.
    #[schema(min_length = 1, max_length = 100)]
    display_name: Option<String>,
}

impl DocumentedErrors for Registration {
    const USER_ERRORS: &[UserErrorCode] = &[
        UserErrorCode::Blank,
        UserErrorCode::TooShort,
        UserErrorCode::TooLong,
        UserErrorCode::Invalid,
        UserErrorCode::WeakPassword,
        UserErrorCode::Taken,
    ];
}

/// The created account.
#[derive(Serialize, ToSchema)]
struct Account {
    /// The global id of the user in the GraphQL API.
    id: String,
    /// The e-mail address.
    email: String,
    /// The username.
    username: String,
    /// The name that other users see.
    display_name: String,
    // The description comes from the type.
    #[schema(inline)]
    role: Role,
    /// Whether the account is active. An inactive account cannot log in.
    is_active: bool,
    /// Whether the e-mail address has been verified.
    email_verified: bool,
    /// When the account was created.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<User> for Account {
    fn from(user: User) -> Self {
        Self {
            id: node::encode(NodeType::User, user.id).to_string(),
            role: user.role,
            email: user.email,
            username: user.username,
            display_name: user.display_name,
            is_active: user.is_active,
            email_verified: user.email_verified,
            created_at: user.created_at,
        }
    }
}

/// Create an account
///
/// Creates an account and sends an e-mail with a link to verify its address.
#[utoipa::path(
    post,
    tag = "Sign-in",
    path = "/auth/register",
    request_body(content((Registration = "application/json"), (Registration = "application/x-www-form-urlencoded"))),
    responses((status = 201, description = "The account was created.", body = Account), ErrorResponses<Registration>),
)]
async fn register(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<AppliedRateLimit>,
    JsonOrForm(body): JsonOrForm<Registration>,
) -> Result<impl IntoResponse, Problem> {
    let now = app.clock.now();
    counted
        .admit(&app, RateLimitBucket::Credentials, &client)
        .await?;
    let account = NewAccount {
        email: &body.email,
        username: &body.username,
        password: &body.password,
        display_name: body.display_name.as_deref(),
        role: Role::User,
        email_verified: false,
    };
    let new = account.check(&app).await?;
    let user = user::create(&app.db, now, &new, &ClientInfo::from(&client)).await?;
    Ok((StatusCode::CREATED, Json(Account::from(user))))
}

/// Input for a new account, not yet validated.
pub struct NewAccount<'a> {
    pub email: &'a str,
    pub username: &'a str,
    pub password: &'a str,
    /// Defaults to the username.
    pub display_name: Option<&'a str>,
    pub role: Role,
    /// Set when the operator creates the account: the address counts as verified, and reserved
    /// usernames are allowed.
    pub email_verified: bool,
}

impl NewAccount<'_> {
    /// Reserved names are left to the operator, the only one to create accounts with a verified
    /// address.
    fn username(&self) -> std::result::Result<Username, UserError> {
        let username = Username::parse("username", self.username)?;
        match username.is_reserved() && !self.email_verified {
            true => Err(Username::reserved("username")),
            false => Ok(username),
        }
    }

    /// Validates all fields, reports every error at once, and hashes the password.
    pub async fn check(&self, app: &App) -> Result<user::NewUser> {
        let mut faults = UserErrors::default();
        let (policy, personal) = (app.config.password_policy, [self.email, self.username]);
        let checked = (
            faults.take(Email::parse("email", self.email)),
            faults.take(self.username()),
            faults.take(Password::parse(
                "password",
                self.password,
                policy,
                &personal,
            )),
        );
        let display_name = self
            .display_name
            .map(|name| faults.take(DisplayName::parse("display_name", name)));
        faults.check()?;
        let (Some(email), Some(username), Some(password)) = checked else {
            return Err(Error::internal("invalid value without an error"));
        };
        let display_name = match display_name.flatten() {
            Some(name) => name,
            // Every valid username is a valid display name.
            None => DisplayName::parse("display_name", &username)
                .map_err(|fault| Error::UserErrors(vec![fault]))?,
        };
        let password_hash = app.credentials.hash(&password).await?;
        let (role, email_verified) = (self.role, self.email_verified);
        Ok(user::NewUser {
            email,
            username,
            display_name,
            password_hash,
            role,
            email_verified,
        })
    }
}

/// A login by e-mail address or username. The OAuth 2.0 password grant (RFC 6749 section 4.3.2)
/// sends either as `username`.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum Login {
    Email {
        /// The e-mail address.
        #[schema(example = "ada@example.org")]
        email: String,
        /// The password.
        #[schema(format = Password, example = "Correct-Horse-7")]
        password: String,
        /// The `device_token` of the last login on this device, if any.
        #[schema(max_length = 75)]
        device_token: Option<String>,
    },
    Username {
        /// The username, or the e-mail address.
        #[schema(example = "ada")]
        username: String,
        /// The password.
        #[schema(format = Password, example = "Correct-Horse-7")]
        password: String,
        /// The `device_token` of the last login on this device, if any.
        #[schema(max_length = 75)]
        device_token: Option<String>,
    },
}

impl DocumentedErrors for Login {
    const CODES: &[Code] = &[
        Code::InvalidCredentials,
        Code::EmailNotVerified,
        Code::LockedOut,
    ];
}

/// Log in
///
/// Starts a session by e-mail address or username. The form of the OAuth 2.0 password grant (RFC
/// 6749 section 4.3.2) is accepted too. A wrong password, an unknown identifier and a disabled
/// account get the same response.
///
/// While many failed logins for one identifier come from many addresses, further logins fail with
/// `LOCKED_OUT` except from known devices and addresses. Send the `device_token` of the last login
/// (browsers send it as a cookie named `fasttrack_device_` and a suffix for the account), or log in
/// from the address of an active session.
#[utoipa::path(
    post,
    tag = "Sign-in",
    path = "/auth/login",
    request_body(content((Login = "application/json"), (Login = "application/x-www-form-urlencoded"))),
    responses(
        (
            status = 200,
            description = "The tokens of the new session.",
            body = Tokens,
            headers(("Set-Cookie" = String, description = "The device token as a cookie, for browsers.")),
        ),
        ErrorResponses<Login>,
    ),
)]
async fn login(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<AppliedRateLimit>,
    headers: HeaderMap,
    JsonOrForm(body): JsonOrForm<Login>,
) -> Result<Response, Problem> {
    let now = app.clock.now();
    counted
        .admit(&app, RateLimitBucket::Credentials, &client)
        .await?;
    let (origin, rule) = (ClientInfo::from(&client), app.config.lockout);
    let (Login::Email {
        email: typed,
        password,
        device_token,
    }
    | Login::Username {
        username: typed,
        password,
        device_token,
    }) = body;
    let identifier = normalize_identifier(&typed);
    loop {
        let found = account::identify(&mut app.db.conn().await?, &identifier).await?;
        let device = found
            .as_ref()
            .and_then(|found| known_device(&app, now, found, &headers, device_token.as_deref()));
        let attempt = PasswordAttempt::login(&identifier, client.address, device);
        let user_id = found.as_ref().map(|credential| credential.user_id);
        let verdict = lockout::check(&mut app.db.conn().await?, now, &attempt, rule).await?;
        if verdict.locked_until.is_some() {
            return Err(login_failure(&verdict, now));
        }
        let is_slow = verdict.slowed_until.is_some();
        let is_known = is_slow && {
            let network = limits::network_text(client.address);
            session::is_used_from(&mut app.db.conn().await?, now, user_id, &network).await?
        };
        let hash = found
            .as_ref()
            .map(|credential| credential.password_hash.as_str());
        // Verify even when the login is going to be rejected: the response time must not reveal
        // whether the account exists.
        let right = app.credentials.verify(&password, hash).await?;
        let admitted = found
            .as_ref()
            .filter(|found| right && found.is_active && (is_known || !is_slow));
        if let Some(found) = admitted {
            if app.config.require_verified_email && !found.email_verified {
                account::record_login_refusal(&app.db, now, found.user_id, &origin).await?;
                return Err(account::email_not_verified().into());
            }
            let login = VerifiedLogin {
                found,
                password: &password,
                device,
                attempt: &attempt,
                is_known,
            };
            match create_session(&app, now, &origin, login).await? {
                Ok(granted) => return Ok(granted),
                // The account changed while the password was hashed. If the change was only a new
                // hash of the same password, the password is still correct.
                Err(LoginOutcome::CredentialsChanged | LoginOutcome::Created) => continue,
                Err(LoginOutcome::LockedOut) => {}
            }
        }
        // Unknown, wrong, disabled and rejected logins get the same response after the same time.
        let verdict =
            account::record_login_failure(&app.db, now, &attempt, user_id, &origin, rule).await?;
        return Err(login_failure(&verdict, now));
    }
}

/// The response to a failed login. It reveals only whether the identifier is locked out.
fn login_failure(verdict: &Verdict, now: Timestamp) -> Problem {
    let wrong = || {
        Error::refused(
            Code::InvalidCredentials,
            "Incorrect e-mail address, username or password.",
        )
    };
    verdict.refusal(now).unwrap_or_else(wrong).into()
}

/// A login with the correct password.
struct VerifiedLogin<'a> {
    found: &'a LoginCredential,
    password: &'a str,
    device: Option<Id>,
    attempt: &'a PasswordAttempt,
    /// Whether it comes from the address of an active session.
    is_known: bool,
}

/// Creates the session, unless the account changed meanwhile.
async fn create_session(
    app: &App,
    now: Timestamp,
    origin: &ClientInfo,
    login: VerifiedLogin<'_>,
) -> Result<std::result::Result<Response, LoginOutcome>> {
    let VerifiedLogin {
        found,
        password,
        device,
        attempt,
        is_known,
    } = login;
    let rehashed = match app.credentials.is_outdated(&found.password_hash) {
        true => Some(app.credentials.rehash(password).await?),
        false => None,
    };
    let session = Session {
        id: Id::new(),
        user_id: found.user_id,
        seed: credential::random()?.to_vec(),
        generation: 0,
        rotated_at: now,
        created_at: now,
        last_used_at: now,
        expires_at: app.config.session_expires_at(now, now),
        revoked_at: None,
        ip_address: origin.ip_address.clone(),
        user_agent: origin.user_agent.clone(),
        last_ip_address: None,
    };
    let verified = VerifiedPassword {
        hash: &found.password_hash,
        rehashed: rehashed.as_deref(),
    };
    match session::create(
        &app.db,
        &session,
        &verified,
        attempt,
        is_known,
        app.config.lockout,
    )
    .await?
    {
        LoginOutcome::Created => {}
        other => return Ok(Err(other)),
    }
    let mut tokens = app.credentials.issue_tokens(now, &session)?;
    let hash = rehashed.as_deref().unwrap_or(&found.password_hash);
    let token =
        app.credentials
            .device_token(now, device.unwrap_or_else(Id::new), found.user_id, hash);
    let cookie = device_cookie(app, found.user_id, &token)?;
    tokens.device_token = Some(token);
    let mut response = token_response(tokens);
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    Ok(Ok(response))
}

/// Name prefix of device cookies. Each account has a cookie of its own, so that several people can
/// share a browser.
const DEVICE_COOKIE_PREFIX: &str = "fasttrack_device_";
/// Maximum number of device cookies to check per login.
const MAX_DEVICE_COOKIES: usize = 20;

/// The device token as a cookie for the `/auth` routes.
pub fn device_cookie(app: &App, user_id: Id, token: &str) -> Result<HeaderValue> {
    let [.., a, b, c, d] = *user_id.as_bytes();
    let suffix = u32::from_be_bytes([a, b, c, d]);
    let age = DEVICE_LIFETIME.as_secs();
    let secure = if app.config.public_url.starts_with("https://") {
        "; Secure"
    } else {
        ""
    };
    let cookie = format!(
        "{DEVICE_COOKIE_PREFIX}{suffix:08x}={token}; Path=/auth; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"
    );
    HeaderValue::from_str(&cookie).map_err(Error::internal)
}

/// The device that the request proves to be known to the account, by `device_token` or by cookie.
fn known_device(
    app: &App,
    now: Timestamp,
    found: &LoginCredential,
    headers: &HeaderMap,
    given: Option<&str>,
) -> Option<Id> {
    let cookies = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let cookies = cookies
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let cookies = cookies
        .filter(|(name, _)| name.starts_with(DEVICE_COOKIE_PREFIX))
        .map(|(_, token)| token);
    given
        .into_iter()
        .chain(cookies.take(MAX_DEVICE_COOKIES))
        .find_map(|token| {
            app.credentials
                .known_device(now, token, found.user_id, &found.password_hash)
        })
}

/// Normalizes a login identifier for the failure counters. PostgreSQL cannot store NUL; its
/// replacement occurs in no account either.
fn normalize_identifier(typed: &str) -> String {
    let typed: String = typed.trim().chars().take(254).collect();
    fold(&typed.replace('\0', "\u{fffd}"))
}

/// A refresh token to exchange.
#[derive(Deserialize, ToSchema)]
struct Refreshing {
    /// The latest refresh token of the session.
    refresh_token: String,
}

impl DocumentedErrors for Refreshing {
    const CODES: &[Code] = &[Code::Unauthenticated];
}

/// Refresh tokens
///
/// Exchanges the refresh token for a new pair of tokens. The old refresh token is invalid
/// afterwards. Within a grace period of seconds it returns the same new pair, for two tabs or a
/// lost response. Later use is treated as theft and ends the session.
#[utoipa::path(
    post,
    tag = "Sign-in",
    path = "/auth/refresh",
    request_body(content((Refreshing = "application/json"), (Refreshing = "application/x-www-form-urlencoded"))),
    responses((status = 200, description = "The new tokens of the session.", body = Tokens), ErrorResponses<Refreshing>),
)]
async fn refresh(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<AppliedRateLimit>,
    JsonOrForm(body): JsonOrForm<Refreshing>,
) -> Result<Response, Problem> {
    let now = app.clock.now();
    counted.admit(&app, RateLimitBucket::Auth, &client).await?;
    let refused = || {
        Error::refused(
            Code::Unauthenticated,
            "The refresh token is not valid. Log in again.",
        )
    };
    let presented = RefreshToken::parse(&body.refresh_token).ok_or_else(refused)?;
    let session = session::find(&mut app.db.conn().await?, presented.session_id)
        .await?
        .ok_or_else(refused)?;
    if !app.credentials.verify_refresh(&session, &presented) {
        return Err(refused().into());
    }
    let (end, grace) = (
        app.config.session_expires_at(now, session.created_at),
        app.config.refresh_grace,
    );
    let origin = ClientInfo::from(&client);
    match session::rotate(
        &app.db,
        now,
        session.id,
        presented.generation,
        end,
        grace,
        &origin,
    )
    .await?
    {
        Rotation::Current(session) => {
            Ok(token_response(app.credentials.issue_tokens(now, &session)?))
        }
        Rotation::Reused => {
            tracing::warn!(session = %session.id, "refresh token reused, session revoked");
            Err(refused().into())
        }
        Rotation::Gone => Err(refused().into()),
    }
}

/// A logout request. It has no body.
struct Logout;

impl DocumentedErrors for Logout {
    const READS_BODY: bool = false;
    const CODES: &[Code] = &[Code::Unauthenticated];
}

/// Log out
///
/// Ends the session. Its access token and refresh token are invalid immediately.
#[utoipa::path(
    post,
    tag = "Sign-in",
    path = "/auth/logout",
    responses((status = 204, description = "The session has ended."), ErrorResponses<Logout>),
    security(("access_token" = [])),
)]
async fn logout(
    State(app): State<Arc<App>>,
    client: Client,
    Extension(counted): Extension<AppliedRateLimit>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let now = app.clock.now();
    counted.admit(&app, RateLimitBucket::Auth, &client).await?;
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(bearer);
    let viewer = auth::authenticate(&app, token.ok_or_else(Error::unauthenticated)?).await?;
    session::revoke(
        &app.db,
        now,
        &viewer,
        viewer.session_id,
        &ClientInfo::from(&client),
    )
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn token_response(tokens: Tokens) -> Response {
    Json(tokens).into_response()
}

/// The rate limit state after a request was counted, for its response headers.
#[derive(Clone, Default)]
pub struct AppliedRateLimit(Arc<OnceLock<RateLimitStatus>>);

impl AppliedRateLimit {
    /// Counts the request against the rate limit of its address. Fails when the limit is exceeded.
    pub async fn admit(&self, app: &App, bucket: RateLimitBucket, client: &Client) -> Result<()> {
        let now = app.clock.now();
        if let Some(quota) = app
            .rate_limiter
            .spend(bucket, ClientKey::address(client.address), 1, now)
            .await?
        {
            // Set once: a request is counted once.
            let _ = self.0.set(quota);
        }
        if bucket == RateLimitBucket::Credentials {
            app.rate_limiter.admit_networks(client.address, now).await?;
        }
        Ok(())
    }

    pub fn quota(&self) -> Option<RateLimitStatus> {
        self.0.get().copied()
    }
}

/// A request body, as JSON or as a form (RFC 6749). Errors become problem documents.
pub struct JsonOrForm<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonOrForm<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> std::result::Result<Self, Problem> {
        let content_type = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let form = content_type
            .is_some_and(|value| value.starts_with("application/x-www-form-urlencoded"));
        if form {
            let Form(body) = Form::from_request(request, state)
                .await
                .map_err(|error| Problem::bad_body(error.status()))?;
            return Ok(Self(body));
        }
        let Json(body) = Json::from_request(request, state)
            .await
            .map_err(|error| Problem::bad_body(error.status()))?;
        Ok(Self(body))
    }
}
