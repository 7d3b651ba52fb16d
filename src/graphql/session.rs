//! Sessions, and what a person does about their own account's safety.

use std::borrow::Cow;

use async_graphql::parser::types::Field;
use async_graphql::registry::Registry;
use async_graphql::{
    Context, ContextSelectionSet, ID, InputObject, Json, Object, OutputType, Positioned, Result, ServerResult,
    SimpleObject, Value,
};
use bytes::Bytes;

use super::connection::{Connection, Paging, Tag, Total};
use super::node::{self, Noun};
use super::payload::{UserError, write};
use super::task::user;
use super::user::User;
use super::{Caller, guard};
use crate::App;
use crate::access::{Action, Viewer};
use crate::error::{Error, FaultCode};
use crate::limits::decoding::unmetered;
use crate::limits::{Door, Who};
use crate::store::audit::{self, Origin};
use crate::store::lockout::{self, Attempt};
use crate::store::password::Password;
use crate::store::session as store;
use crate::store::value::Email;
use crate::store::{account, export, user as users};
use crate::time::Timestamp;

/// A session, as the schema shows it.
#[derive(Clone)]
pub struct Session(pub store::Session);

/// One signed-in device: the family of refresh tokens that began with one login. For oneself only.
#[Object]
impl Session {
    /// The object's global id; opaque, and it never changes.
    pub async fn id(&self) -> ID {
        node::encode(Noun::Session, self.0.id)
    }

    /// When it began, with a login.
    async fn created_at(&self) -> Timestamp {
        self.0.created_at
    }

    /// When its tokens were last refreshed.
    async fn last_used_at(&self) -> Timestamp {
        self.0.last_used_at
    }

    /// When it ends unless it is refreshed before. Refreshing does not extend it beyond the server's limit, 90 days
    /// after the login by default.
    async fn expires_at(&self) -> Timestamp {
        self.0.expires_at
    }

    /// The address that the login came from.
    async fn ip_address(&self) -> Option<&str> {
        self.0.ip_address.as_deref()
    }

    /// The address that it was last refreshed from, or that the login came from.
    async fn last_ip_address(&self) -> Option<&str> {
        self.0.last_address()
    }

    /// The program that the login came from, as it called itself.
    async fn user_agent(&self) -> Option<&str> {
        self.0.user_agent.as_deref()
    }

    /// Whether it is the session of this request.
    async fn is_current(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(Caller::of(ctx).viewer()?.session_id == self.0.id)
    }
}

/// A line of the audit log, as the schema shows it.
#[derive(Clone)]
pub struct AuditEntry(pub audit::Entry);

/// Something that happened to an account. For oneself, and ADMIN.
#[Object]
impl AuditEntry {
    /// The entry's identity; opaque.
    async fn id(&self) -> ID {
        node::encode(Noun::AuditEntry, self.0.id)
    }

    /// What happened.
    async fn kind(&self) -> audit::Kind {
        self.0.kind
    }

    /// When.
    async fn occurred_at(&self) -> Timestamp {
        self.0.occurred_at
    }

    /// To whose account; null where the identifier that somebody tried is nobody's.
    async fn user(&self, ctx: &Context<'_>) -> Result<Option<User>> {
        user(ctx, self.0.user_id).await
    }

    /// Who did it, if they were signed in.
    async fn actor(&self, ctx: &Context<'_>) -> Result<Option<User>> {
        user(ctx, self.0.actor_id).await
    }

    /// The address it came from. For what somebody else did, ADMIN only.
    async fn ip_address(&self) -> Option<&str> {
        self.0.ip_address.as_deref()
    }

    /// The program it came from, as it called itself. For what somebody else did, ADMIN only.
    async fn user_agent(&self) -> Option<&str> {
        self.0.user_agent.as_deref()
    }
}

/// One page of the audit log: of one account, or of all.
pub async fn log(ctx: &Context<'_>, user_id: Option<crate::id::Id>, paging: Paging) -> Result<Connection<AuditEntry>> {
    let tag = Tag::new("auditLog", user_id, &(), true);
    let window = paging.window(tag)?;
    let (caller, viewer) = (Caller::of(ctx), *Caller::of(ctx).viewer()?);
    let page = audit::page(&mut caller.app().db.conn().await?, user_id, &window).await?;
    let shown = |entry: audit::Entry| AuditEntry(entry.seen_by(&viewer));
    Ok(Connection::new(tag, Total::Audit(user_id), page, audit::Entry::position, shown))
}

/// A document that is JSON already.
pub struct Written(Bytes);

impl OutputType for Written {
    fn type_name() -> Cow<'static, str> {
        <Json<serde_json::Value> as OutputType>::type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        <Json<serde_json::Value> as OutputType>::create_type_info(registry)
    }

    async fn resolve(&self, _: &ContextSelectionSet<'_>, _: &Positioned<Field>) -> ServerResult<Value> {
        Ok(Value::Binary(self.0.clone()))
    }
}

/// The queries about accounts' safety.
#[derive(Default)]
pub struct SessionQuery;

#[Object]
impl SessionQuery {
    /// What happened to accounts, newest first: logins, failed ones, changes of password, address, role. ADMIN only.
    #[graphql(guard = "guard::May(Action::ManageUsers, ())")]
    async fn audit_log(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "So many from the start: 1–100, default 20.")] first: Option<i32>,
        #[graphql(desc = "Only what comes after this cursor.")] after: Option<String>,
        #[graphql(desc = "So many from the end: 1–100; not together with `first`.")] last: Option<i32>,
        #[graphql(desc = "Only what comes before this cursor.")] before: Option<String>,
        #[graphql(desc = "Only of this user.")] user_id: Option<ID>,
    ) -> Result<Connection<AuditEntry>> {
        let user_id = user_id.map(|id| node::filtered(Noun::User, &id)).transpose()?;
        log(ctx, user_id, Paging::new(first, after, last, before)).await
    }

    /// Everything that is stored of the signed-in user, as one JSON document of up to 64 MiB. Once in an operation, over
    /// HTTP; the server makes one at a time.
    #[graphql(guard = "guard::signed_in")]
    async fn export_viewer_data(&self, ctx: &Context<'_>) -> Result<Written> {
        let caller = Caller::of(ctx);
        let mut conn = caller.app().db.conn().await?;
        // A document may be larger than what an operation may decode, and has a limit of its own.
        let document = unmetered(export::of(&mut conn, caller.viewer()?)).await?;
        drop(conn);
        let (app, who) = (caller.app(), Some(caller.viewer()?.id));
        let (now, origin) = (app.clock.now(), caller.origin());
        app.db.transaction(async |tx| audit::note(tx, now, audit::Kind::DataExported, who, who, &origin).await).await?;
        Ok(Written(document.into()))
    }
}

/// A change of one's own password.
#[derive(InputObject)]
pub struct ChangePasswordInput {
    /// The password now.
    #[graphql(secret)]
    current_password: String,
    /// The password from now on: 8 (or 15, as the server's policy is) to 256 characters, not easy to guess, and neither the
    /// username nor the e-mail address.
    #[graphql(secret)]
    new_password: String,
}

/// What came of `changePassword`.
#[derive(SimpleObject)]
pub struct ChangePasswordPayload {
    /// The account; null if nothing was written.
    viewer: Option<User>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// Which session to end.
#[derive(InputObject)]
pub struct RevokeSessionInput {
    /// Which session.
    id: ID,
}

/// What came of `revokeSession`.
#[derive(SimpleObject)]
pub struct RevokeSessionPayload {
    /// The session that is ended; null if nothing was written.
    revoked_session_id: Option<ID>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// What came of `revokeOtherSessions`.
#[derive(SimpleObject)]
pub struct RevokeOtherSessionsPayload {
    /// How many sessions were ended.
    revoked_count: usize,
}

/// A person wants to leave.
#[derive(InputObject)]
pub struct DeleteViewerInput {
    /// The password, to be sure.
    #[graphql(secret)]
    password: String,
}

/// What came of `deleteViewer`.
#[derive(SimpleObject)]
pub struct DeleteViewerPayload {
    /// The user that is gone; null if nothing was written.
    deleted_user_id: Option<ID>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// Asks for the password once more. Guesses are limited like logins, and lock the session out like an address.
async fn confirm(
    app: &App,
    viewer: &Viewer,
    field: &'static str,
    password: &str,
    origin: &Origin,
) -> crate::error::Result<()> {
    let (now, rule) = (app.clock.now(), app.config.lockout);
    app.limits.admit(Door::Credentials, Who::User(viewer.id), now).await?;
    let mut conn = app.db.conn().await?;
    let verdict = lockout::check(&mut conn, now, &Attempt::session(viewer), rule).await?;
    if let Some(refusal) = verdict.refusal(now) {
        return Err(refusal);
    }
    let credential = account::credential_of(&mut conn, viewer).await?;
    drop(conn);
    let is_right = app.credentials.verify(password, Some(&credential.password_hash)).await?;
    let verdict = account::password_checked(&app.db, now, viewer, is_right, origin, rule).await?;
    match verdict.refusal(now) {
        Some(refusal) => Err(refusal),
        None if is_right => Ok(()),
        None => Err(Error::fault(field, FaultCode::WrongPassword, "The password is not right.")),
    }
}

/// Asks for the password where the e-mail address is to change; whether it was given. The present address needs none: it
/// calls a change off.
pub async fn confirm_email_change(
    app: &App,
    viewer: &Viewer,
    email: &Email,
    password: Option<&str>,
    origin: &Origin,
) -> crate::error::Result<bool> {
    let user = users::any_by_ids(&mut app.db.conn().await?, &[viewer.id]).await?.pop();
    if user.ok_or_else(Error::unauthenticated)?.email == **email {
        app.limits.admit(Door::Credentials, Who::User(viewer.id), app.clock.now()).await?;
        return Ok(false);
    }
    let password = password.ok_or_else(|| Error::Faults(vec![users::password_needed()]))?;
    confirm(app, viewer, "currentPassword", password, origin).await?;
    Ok(true)
}

/// The mutations of sessions and one's own account's safety.
#[derive(Default)]
pub struct SessionMutation;

#[Object]
impl SessionMutation {
    /// Changes the signed-in user's password and ends every other session. After 5 wrong passwords the session gets
    /// LOCKED_OUT for 30 minutes, unless the server is set up otherwise. User errors: WRONG_PASSWORD, WEAK_PASSWORD,
    /// TOO_LONG, INVALID.
    #[graphql(guard = "guard::signed_in")]
    async fn change_password(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The old password and the new one.")] input: ChangePasswordInput,
    ) -> Result<ChangePasswordPayload> {
        let origin = Caller::of(ctx).origin();
        let (viewer, user_errors) = write(ctx, |app, viewer| async move {
            confirm(&app, &viewer, "currentPassword", &input.current_password, &origin).await?;
            let user = users::any_by_ids(&mut app.db.conn().await?, &[viewer.id]).await?.pop();
            let user = user.ok_or_else(Error::unauthenticated)?;
            let (policy, personal) = (app.config.password_policy, [user.email.as_str(), user.username.as_str()]);
            let password = Password::parse("newPassword", &input.new_password, policy, &personal);
            let hash = app.credentials.hash(&password.map_err(|fault| Error::Faults(vec![fault]))?).await?;
            account::change_password(&app.db, app.clock.now(), &viewer, &hash, &origin).await
        })
        .await?;
        Ok(ChangePasswordPayload { viewer: viewer.map(User::from), user_errors })
    }

    /// Ends a session of the signed-in user: its tokens are dead with the next request. User errors: NOT_FOUND.
    #[graphql(guard = "guard::signed_in")]
    async fn revoke_session(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which one.")] input: RevokeSessionInput,
    ) -> Result<RevokeSessionPayload> {
        let origin = Caller::of(ctx).origin();
        let (revoked_session_id, user_errors) = write(ctx, |app, viewer| async move {
            let id = node::named(Noun::Session, &input.id, "id")?;
            if store::revoke(&app.db, app.clock.now(), &viewer, id, &origin).await? {
                Ok(input.id)
            } else {
                Err(Error::not_found("id", "session"))
            }
        })
        .await?;
        Ok(RevokeSessionPayload { revoked_session_id, user_errors })
    }

    /// Ends every session of the signed-in user but the current one.
    #[graphql(guard = "guard::signed_in")]
    async fn revoke_other_sessions(&self, ctx: &Context<'_>) -> Result<RevokeOtherSessionsPayload> {
        let origin = Caller::of(ctx).origin();
        let (count, _) =
            write(
                ctx,
                |app, viewer| async move { store::revoke_others(&app.db, app.clock.now(), &viewer, &origin).await },
            )
            .await?;
        Ok(RevokeOtherSessionsPayload { revoked_count: count.unwrap_or_default() })
    }

    /// Deletes the signed-in user's account, with their projects and all that is in them. Comments and assignments in
    /// other people's projects stay, as those of a deleted user. Wrong passwords lock the session out as in
    /// `changePassword`. User errors: WRONG_PASSWORD, INVALID (for the last ADMIN).
    #[graphql(guard = "guard::signed_in")]
    async fn delete_viewer(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The password, to be sure.")] input: DeleteViewerInput,
    ) -> Result<DeleteViewerPayload> {
        let origin = Caller::of(ctx).origin();
        let (deleted_user_id, user_errors) = write(ctx, |app, viewer| async move {
            confirm(&app, &viewer, "password", &input.password, &origin).await?;
            account::delete(&app.db, app.clock.now(), &viewer).await?;
            Ok(node::encode(Noun::User, viewer.id))
        })
        .await?;
        Ok(DeleteViewerPayload { deleted_user_id, user_errors })
    }
}
