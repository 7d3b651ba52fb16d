//! Sessions, the audit log, passwords, data export and account deletion. Logging in and refreshing
//! tokens are REST routes in `http::auth`.

use std::borrow::Cow;

use async_graphql::parser::types::Field;
use async_graphql::registry::Registry;
use async_graphql::{
    Context, ContextSelectionSet, ID, InputObject, Json, Object, OutputType, Positioned, Result,
    ServerResult, SimpleObject, Value,
};
use bytes::Bytes;

use super::connection::{Connection, CursorTag, PageArgs, TotalCount};
use super::node::{self, NodeType};
use super::payload::{UserErrorPayload, run_mutation};
use super::task::user;
use super::user::User;
use super::{RequestContext, guard};
use crate::App;
use crate::access::{Action, Viewer};
use crate::error::{Error, UserErrorCode};
use crate::limits::decode_budget::without_meter;
use crate::store::audit::{self, ClientInfo};
use crate::store::lockout::{self, PasswordAttempt};
use crate::store::password::Password;
use crate::store::session as store;
use crate::store::value::Email;
use crate::store::{account, export, user as users};
use crate::time::Timestamp;

#[derive(Clone)]
pub struct Session(pub store::Session);

/// One signed-in device: the family of refresh tokens that began with one login. Visible to the
/// user only.
#[Object]
impl Session {
    /// Global ID of the object. Opaque; never changes.
    pub async fn id(&self) -> ID {
        node::encode(NodeType::Session, self.0.id)
    }

    /// When the session began, with a login.
    async fn created_at(&self) -> Timestamp {
        self.0.created_at
    }

    /// When the tokens of the session were last refreshed.
    async fn last_used_at(&self) -> Timestamp {
        self.0.last_used_at
    }

    /// When the session ends unless it is refreshed before. Refreshing extends it to at most 90
    /// days after the login by default.
    async fn expires_at(&self) -> Timestamp {
        self.0.expires_at
    }

    /// IP address of the login.
    async fn ip_address(&self) -> Option<&str> {
        self.0.ip_address.as_deref()
    }

    /// IP address of the last refresh, or of the login if there was none.
    async fn last_ip_address(&self) -> Option<&str> {
        self.0.last_address()
    }

    /// `User-Agent` header of the login, cut to 200 characters.
    async fn user_agent(&self) -> Option<&str> {
        self.0.user_agent.as_deref()
    }

    /// Whether this request belongs to the session.
    async fn is_current(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(RequestContext::of(ctx).viewer()?.session_id == self.0.id)
    }
}

#[derive(Clone)]
pub struct AuditEntry(pub audit::Entry);

/// A security event of an account, such as a login. Visible to the user of the account and ADMIN.
#[Object]
impl AuditEntry {
    /// ID of the entry. Opaque; `node` does not accept it.
    async fn id(&self) -> ID {
        node::encode(NodeType::AuditEntry, self.0.id)
    }

    /// Kind of event.
    async fn kind(&self) -> audit::AuditKind {
        self.0.kind
    }

    /// When the event occurred.
    async fn occurred_at(&self) -> Timestamp {
        self.0.occurred_at
    }

    /// The account concerned; null for a login attempt with an identifier that belongs to no
    /// account.
    async fn user(&self, ctx: &Context<'_>) -> Result<Option<User>> {
        user(ctx, self.0.user_id).await
    }

    /// The user who caused the event; null if nobody was signed in. Deleted accounts appear as a
    /// user named `Deleted user`.
    async fn actor(&self, ctx: &Context<'_>) -> Result<Option<User>> {
        user(ctx, self.0.actor_id).await
    }

    /// IP address of the request. If another user caused the event, it is visible to ADMIN only.
    async fn ip_address(&self) -> Option<&str> {
        self.0.ip_address.as_deref()
    }

    /// `User-Agent` header of the request, cut to 200 characters. If another user caused the event,
    /// it is visible to ADMIN only.
    async fn user_agent(&self) -> Option<&str> {
        self.0.user_agent.as_deref()
    }
}

/// Loads a page of the audit log, of one account or of all.
pub async fn audit_log_page(
    ctx: &Context<'_>,
    user_id: Option<crate::id::Id>,
    paging: PageArgs,
) -> Result<Connection<AuditEntry>> {
    let tag = CursorTag::new("auditLog", user_id, &(), true);
    let window = paging.window(tag)?;
    let (caller, viewer) = (RequestContext::of(ctx), *RequestContext::of(ctx).viewer()?);
    let page = audit::page(&mut caller.app().db.conn().await?, user_id, &window).await?;
    let wrap = |entry: audit::Entry| AuditEntry(entry.redacted_for(&viewer));
    Ok(Connection::new(
        tag,
        TotalCount::Audit(user_id),
        page,
        audit::Entry::position,
        wrap,
    ))
}

/// A document that is JSON already, so that it is not parsed and serialized again.
pub struct JsonDocument(Bytes);

impl OutputType for JsonDocument {
    fn type_name() -> Cow<'static, str> {
        <Json<serde_json::Value> as OutputType>::type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        <Json<serde_json::Value> as OutputType>::create_type_info(registry)
    }

    async fn resolve(
        &self,
        _: &ContextSelectionSet<'_>,
        _: &Positioned<Field>,
    ) -> ServerResult<Value> {
        Ok(Value::Binary(self.0.clone()))
    }
}

#[derive(Default)]
pub struct SessionQuery;

#[Object]
impl SessionQuery {
    /// Security events of all accounts, newest first: logins, failed logins, ended sessions and
    /// changes to accounts. Kept for 365 days by default. ADMIN only.
    #[graphql(guard = "guard::RequirePermission(Action::ManageUsers, ())")]
    async fn audit_log(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Returns the first *n* items (1–100, default 20).")] first: Option<i32>,
        #[graphql(desc = "Returns only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "Returns the last *n* items (1–100). Cannot be combined with `first`.")]
        last: Option<i32>,
        #[graphql(desc = "Returns only items before this cursor.")] before: Option<String>,
        #[graphql(desc = "Returns only entries of this user's account.")] user_id: Option<ID>,
    ) -> Result<Connection<AuditEntry>> {
        let user_id = user_id
            .map(|id| node::decode_filter(NodeType::User, &id))
            .transpose()?;
        audit_log_page(ctx, user_id, PageArgs::new(first, after, last, before)).await
    }

    /// Everything stored about the viewer, as one JSON document of at most 64 MiB. Costs 1,000
    /// points. It can be selected once per operation and over HTTP. The server creates one export
    /// at a time; others fail with SERVICE_UNAVAILABLE meanwhile.
    #[graphql(guard = "guard::require_viewer")]
    async fn export_viewer_data(&self, ctx: &Context<'_>) -> Result<JsonDocument> {
        let caller = RequestContext::of(ctx);
        let mut conn = caller.app().db.conn().await?;
        // An export may exceed the decoding budget of an operation; it has its own size limit.
        let document = without_meter(export::export(&mut conn, caller.viewer()?)).await?;
        drop(conn);
        let (app, who) = (caller.app(), Some(caller.viewer()?.id));
        let (now, origin) = (app.clock.now(), caller.client_info());
        app.db
            .transaction(async |tx| {
                audit::record(tx, now, audit::AuditKind::DataExported, who, who, &origin).await
            })
            .await?;
        Ok(JsonDocument(document.into()))
    }
}

/// Input of `changePassword`.
#[derive(InputObject)]
pub struct ChangePasswordInput {
    /// Current password.
    #[graphql(secret)]
    current_password: String,
    /// New password; at most 256 characters. Depending on the server's policy it needs at least 8
    /// characters with upper and lower case letters, a digit and a symbol, or at least 15
    /// characters of any kind. Common passwords, the username and the e-mail address are
    /// WEAK_PASSWORD.
    #[graphql(secret)]
    new_password: String,
}

/// Payload of `changePassword`.
#[derive(SimpleObject)]
pub struct ChangePasswordPayload {
    /// The viewer's account; null if nothing was written.
    viewer: Option<User>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

/// Input of `revokeSession`.
#[derive(InputObject)]
pub struct RevokeSessionInput {
    /// The session to end.
    id: ID,
}

/// Payload of `revokeSession`.
#[derive(SimpleObject)]
pub struct RevokeSessionPayload {
    /// Global ID of the ended session; null if nothing was written.
    revoked_session_id: Option<ID>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

/// Payload of `revokeOtherSessions`.
#[derive(SimpleObject)]
pub struct RevokeOtherSessionsPayload {
    /// Number of sessions that were ended.
    revoked_count: usize,
}

/// Input of `deleteViewer`.
#[derive(InputObject)]
pub struct DeleteViewerInput {
    /// Current password, as confirmation.
    #[graphql(secret)]
    password: String,
}

/// Payload of `deleteViewer`.
#[derive(SimpleObject)]
pub struct DeleteViewerPayload {
    /// Global ID of the deleted user; null if nothing was deleted.
    deleted_user_id: Option<ID>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

/// Verifies the password of a signed-in user again. Attempts are rate-limited like logins; wrong
/// passwords lock the session out as they lock out an address at login.
async fn verify_password(
    app: &App,
    viewer: &Viewer,
    field: &'static str,
    password: &str,
    origin: &ClientInfo,
) -> crate::error::Result<()> {
    let (now, rule) = (app.clock.now(), app.config.lockout);
    app.rate_limiter.admit_session(viewer, now).await?;
    let mut conn = app.db.conn().await?;
    let verdict = lockout::check(&mut conn, now, &PasswordAttempt::session(viewer), rule).await?;
    if let Some(refusal) = verdict.refusal(now) {
        return Err(refusal);
    }
    let credential = account::credential_of(&mut conn, viewer).await?;
    drop(conn);
    let is_right = app
        .credentials
        .verify(password, Some(&credential.password_hash))
        .await?;
    let verdict =
        account::record_password_check(&app.db, now, viewer, is_right, origin, rule).await?;
    match verdict.refusal(now) {
        Some(refusal) => Err(refusal),
        None if is_right => Ok(()),
        None => Err(Error::user_error(
            field,
            UserErrorCode::WrongPassword,
            "The password is incorrect.",
        )),
    }
}

/// Verifies the password before a change of the e-mail address, and returns whether it was
/// verified. The current address, which cancels a pending change, requires none.
pub async fn confirm_email_change(
    app: &App,
    viewer: &Viewer,
    email: &Email,
    password: Option<&str>,
    origin: &ClientInfo,
) -> crate::error::Result<bool> {
    let user = users::any_by_ids(&mut app.db.conn().await?, &[viewer.id])
        .await?
        .pop();
    if user.ok_or_else(Error::unauthenticated)?.email == **email {
        app.rate_limiter
            .admit_session(viewer, app.clock.now())
            .await?;
        return Ok(false);
    }
    let password = password.ok_or_else(|| Error::UserErrors(vec![users::password_required()]))?;
    verify_password(app, viewer, "currentPassword", password, origin).await?;
    Ok(true)
}

#[derive(Default)]
pub struct SessionMutation;

#[Object]
impl SessionMutation {
    /// Changes the viewer's password, ends all other sessions and notifies the viewer by e-mail.
    /// Attempts are rate-limited like logins (RATE_LIMITED). By default, 5 wrong passwords lock the
    /// session out of all password checks for 30 minutes (LOCKED_OUT). User errors: WRONG_PASSWORD,
    /// WEAK_PASSWORD, TOO_LONG, INVALID.
    #[graphql(guard = "guard::require_viewer")]
    async fn change_password(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The current and the new password.")] input: ChangePasswordInput,
    ) -> Result<ChangePasswordPayload> {
        let origin = RequestContext::of(ctx).client_info();
        let (viewer, user_errors) = run_mutation(ctx, |app, viewer| async move {
            verify_password(
                &app,
                &viewer,
                "currentPassword",
                &input.current_password,
                &origin,
            )
            .await?;
            let user = users::any_by_ids(&mut app.db.conn().await?, &[viewer.id])
                .await?
                .pop();
            let user = user.ok_or_else(Error::unauthenticated)?;
            let (policy, personal) = (
                app.config.password_policy,
                [user.email.as_str(), user.username.as_str()],
            );
            let password = Password::parse("newPassword", &input.new_password, policy, &personal);
            let hash = app
                .credentials
                .hash(&password.map_err(|fault| Error::UserErrors(vec![fault]))?)
                .await?;
            account::change_password(&app.db, app.clock.now(), &viewer, &hash, &origin).await
        })
        .await?;
        Ok(ChangePasswordPayload {
            viewer: viewer.map(User::from),
            user_errors,
        })
    }

    /// Ends a session of the viewer; the current one, too. Its tokens are rejected from the next
    /// request and its sockets and streams are closed. User errors: NOT_FOUND.
    #[graphql(guard = "guard::require_viewer")]
    async fn revoke_session(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The session to end.")] input: RevokeSessionInput,
    ) -> Result<RevokeSessionPayload> {
        let origin = RequestContext::of(ctx).client_info();
        let (revoked_session_id, user_errors) = run_mutation(ctx, |app, viewer| async move {
            let id = node::decode_input(NodeType::Session, &input.id, "id")?;
            if store::revoke(&app.db, app.clock.now(), &viewer, id, &origin).await? {
                Ok(input.id)
            } else {
                Err(Error::not_found("id", "session"))
            }
        })
        .await?;
        Ok(RevokeSessionPayload {
            revoked_session_id,
            user_errors,
        })
    }

    /// Ends all sessions of the viewer except the current one.
    #[graphql(guard = "guard::require_viewer")]
    async fn revoke_other_sessions(&self, ctx: &Context<'_>) -> Result<RevokeOtherSessionsPayload> {
        let origin = RequestContext::of(ctx).client_info();
        let (count, _) = run_mutation(ctx, |app, viewer| async move {
            store::revoke_others(&app.db, app.clock.now(), &viewer, &origin).await
        })
        .await?;
        Ok(RevokeOtherSessionsPayload {
            revoked_count: count.unwrap_or_default(),
        })
    }

    /// Deletes the viewer's account with all their projects and the contents of these. Comments and
    /// assignments in other users' projects remain, under the name `Deleted user`. Wrong passwords
    /// lock the session out as for `changePassword`. User errors: WRONG_PASSWORD, INVALID (the last
    /// active ADMIN cannot be deleted).
    #[graphql(guard = "guard::require_viewer")]
    async fn delete_viewer(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The confirmation.")] input: DeleteViewerInput,
    ) -> Result<DeleteViewerPayload> {
        let origin = RequestContext::of(ctx).client_info();
        let (deleted_user_id, user_errors) = run_mutation(ctx, |app, viewer| async move {
            verify_password(&app, &viewer, "password", &input.password, &origin).await?;
            account::delete(&app.db, app.clock.now(), &viewer).await?;
            Ok(node::encode(NodeType::User, viewer.id))
        })
        .await?;
        Ok(DeleteViewerPayload {
            deleted_user_id,
            user_errors,
        })
    }
}
