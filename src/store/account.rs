//! Account lifecycle: credential checks, redeeming mailed tokens, password changes and account
//! deletion. Profile fields and roles are in [`super::user`], session rows in [`super::session`].

use diesel::prelude::*;

use super::audit::{self, ClientInfo};
use super::email_change;
use super::lockout::{self, LockoutPolicy, PasswordAttempt, Verdict};
use super::mail;
use super::project::{self, Project};
use super::token::{self, Purpose};
use super::user::{self, User};
use super::value::fold;
use super::{notification, session, username_change};
use crate::access::Viewer;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::{
    events as log, history_texts as texts, mail_tokens, projects, user_usage, users,
};
use crate::db::{Conn, Db, Lock};
use crate::error::{Code, Error, Result, UserErrorCode};
use crate::events::{self, EventKind, NewEvent};
use crate::id::Id;
use crate::time::Timestamp;
use crate::{on, select_locked};

/// The stored credential that a login is checked against.
#[derive(Clone, Debug, Queryable)]
pub struct LoginCredential {
    pub user_id: Id,
    /// Argon2 hash in PHC string format.
    pub password_hash: String,
    /// Whether the user may sign in.
    pub is_active: bool,
    /// Whether the user has confirmed the e-mail address.
    pub email_verified: bool,
}

/// Finds the credential for a folded e-mail address or username.
pub async fn identify(conn: &mut Conn, identifier: &str) -> Result<Option<LoginCredential>> {
    Ok(on!(conn, |c| users::table
        .filter(
            users::email_key
                .eq(identifier)
                .or(users::username_key.eq(identifier))
        )
        .filter(users::deleted_at.is_null())
        .select((
            users::id,
            users::password_hash,
            users::is_active,
            users::email_verified
        ))
        .first(c)
        .await
        .optional())?)
}

/// The viewer's credential, for operations that ask for the password again.
pub async fn credential_of(conn: &mut Conn, viewer: &Viewer) -> Result<LoginCredential> {
    Ok(on!(conn, |c| users::table
        .find(viewer.id)
        .select((
            users::id,
            users::password_hash,
            users::is_active,
            users::email_verified
        ))
        .first(c)
        .await)?)
}

/// Counts and records a failed login: a wrong password, an unknown identifier, or any password
/// during a lockout. The response is the same in all three cases.
pub async fn record_login_failure(
    db: &Db,
    now: Timestamp,
    attempt: &PasswordAttempt,
    user_id: Option<Id>,
    origin: &ClientInfo,
    rule: LockoutPolicy,
) -> Result<Verdict> {
    db.transaction(async |tx| {
        audit::record(
            tx,
            now,
            audit::AuditKind::LoginFailed,
            user_id,
            None,
            origin,
        )
        .await?;
        let failure = lockout::count_failure(tx, now, attempt, rule).await?;
        if failure.locks {
            audit::record(tx, now, audit::AuditKind::LockedOut, user_id, None, origin).await?;
        }
        Ok(failure.verdict)
    })
    .await
}

/// Records that a login with the right password was refused because the e-mail address is not
/// verified. It is recorded because someone knows the password.
pub async fn record_login_refusal(
    db: &Db,
    now: Timestamp,
    user_id: Id,
    origin: &ClientInfo,
) -> Result<()> {
    db.transaction(async |tx| {
        audit::record(
            tx,
            now,
            audit::AuditKind::LoginRefused,
            Some(user_id),
            None,
            origin,
        )
        .await
    })
    .await
}

/// Records that a signed-in user entered the password again, right or wrong. The verdict says
/// whether further attempts are locked out.
pub async fn record_password_check(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    is_right: bool,
    origin: &ClientInfo,
    rule: LockoutPolicy,
) -> Result<Verdict> {
    let attempt = PasswordAttempt::session(viewer);
    db.transaction(async |tx| {
        if is_right {
            let verdict = lockout::lock(tx, now, &attempt, rule).await?;
            if verdict.refusal(now).is_none() {
                lockout::clear(tx, &attempt).await?;
            }
            return Ok(verdict);
        }
        let who = Some(viewer.id);
        audit::record(
            tx,
            now,
            audit::AuditKind::PasswordCheckFailed,
            who,
            who,
            origin,
        )
        .await?;
        let failure = lockout::count_failure(tx, now, &attempt, rule).await?;
        if failure.locks {
            audit::record(tx, now, audit::AuditKind::LockedOut, who, who, origin).await?;
        }
        Ok(failure.verdict)
    })
    .await
}

/// The user error for a token that is invalid, used or expired.
pub fn invalid_token() -> Error {
    Error::user_error(
        "token",
        UserErrorCode::Invalid,
        "The token is not valid, was used, or has expired.",
    )
}

/// Redeems a token that proves ownership of an e-mail address, and makes it the account's address.
pub async fn verify_email(db: &Db, now: Timestamp, hash: &[u8], origin: &ClientInfo) -> Result<()> {
    db.transaction(async |tx| {
        let redeemed = token::redeem(tx, now, Purpose::VerifyEmail, hash).await?;
        let (user_id, email) = redeemed.ok_or_else(invalid_token)?;
        let user = user::lock(tx, user_id).await?.ok_or_else(invalid_token)?;
        let canceled = user::set_email(tx, now, &user, &email).await?;
        record_cancellation(tx, now, user_id, canceled, origin).await?;
        if email == user.email {
            return audit::record(
                tx,
                now,
                audit::AuditKind::EmailVerified,
                Some(user_id),
                None,
                origin,
            )
            .await;
        }
        // A reader of the old mailbox must not take the account back with an old token.
        token::revoke(tx, user_id, Purpose::ResetPassword).await?;
        mail::queue(
            tx,
            now,
            mail::MailKind::EmailChanged,
            &user.email,
            Some(user_id),
            &email,
        )
        .await?;
        audit::record(
            tx,
            now,
            audit::AuditKind::EmailChanged,
            Some(user_id),
            None,
            origin,
        )
        .await
    })
    .await
}

/// Undoes an e-mail change through the link mailed to the old address. The account gets the old
/// address back, which the link verifies. The requester knows the password, so it is replaced by an
/// unusable one, every session ends, and a link to set a new password is mailed.
pub async fn cancel_email_change(
    db: &Db,
    now: Timestamp,
    change: Id,
    unusable: &str,
    origin: &ClientInfo,
) -> Result<()> {
    db.transaction(async |tx| {
        let owner = email_change::owner(tx, now, change)
            .await?
            .ok_or_else(invalid_token)?;
        let user = user::lock(tx, owner).await?.ok_or_else(invalid_token)?;
        let change = email_change::take(tx, now, change)
            .await?
            .ok_or_else(invalid_token)?;
        let is_confirmed = user.email != change.email;
        // An unverified old address was never shown to be the owner's. The confirmed new one was.
        if is_confirmed && !change.was_verified {
            return Err(invalid_token());
        }
        user::set_email(tx, now, &user, &change.email).await?;
        let owner = Some(user.id);
        if is_confirmed {
            mail::queue(
                tx,
                now,
                mail::MailKind::EmailChanged,
                &user.email,
                owner,
                &change.email,
            )
            .await?;
            audit::record(tx, now, audit::AuditKind::EmailChanged, owner, None, origin).await?;
        }
        audit::record(
            tx,
            now,
            audit::AuditKind::EmailChangeCanceled,
            owner,
            None,
            origin,
        )
        .await?;
        let user = User {
            email: change.email,
            ..user
        };
        replace_password(tx, now, &user, unusable, None).await?;
        mail::queue(
            tx,
            now,
            mail::MailKind::PasswordDisabled,
            &user.email,
            owner,
            "",
        )
        .await?;
        audit::record(
            tx,
            now,
            audit::AuditKind::PasswordDisabled,
            owner,
            None,
            origin,
        )
        .await
    })
    .await
}

/// Records that a pending e-mail change was canceled, if there was one.
async fn record_cancellation(
    tx: &mut Conn,
    now: Timestamp,
    user_id: Id,
    canceled: bool,
    origin: &ClientInfo,
) -> Result<()> {
    if canceled {
        audit::record(
            tx,
            now,
            audit::AuditKind::EmailChangeCanceled,
            Some(user_id),
            None,
            origin,
        )
        .await?;
    }
    Ok(())
}

/// The owner of a password reset token. Does not redeem the token.
pub async fn reset_owner(conn: &mut Conn, now: Timestamp, hash: &[u8]) -> Result<User> {
    let owner: Option<User> = on!(conn, |c| mail_tokens::table
        .inner_join(users::table)
        .filter(mail_tokens::hash.eq(hash))
        .filter(mail_tokens::purpose.eq(Purpose::ResetPassword))
        .filter(mail_tokens::expires_at.gt(now))
        .filter(mail_tokens::email.eq(users::email))
        .filter(users::is_active.eq(true))
        .select(User::as_select())
        .first(c)
        .await
        .optional())?;
    owner.ok_or_else(invalid_token)
}

/// Redeems a reset token: sets the password, ends every session and unlocks the account's
/// identifiers.
pub async fn reset_password(
    db: &Db,
    now: Timestamp,
    hash: &[u8],
    password_hash: &str,
    origin: &ClientInfo,
) -> Result<()> {
    db.transaction(async |tx| {
        let redeemed = token::redeem(tx, now, Purpose::ResetPassword, hash).await?;
        let (user_id, email) = redeemed.ok_or_else(invalid_token)?;
        let user = user::lock(tx, user_id)
            .await?
            .filter(|user| user.is_active && user.email == email);
        let user = user.ok_or_else(invalid_token)?;
        let canceled = user::set_email(tx, now, &user, &email).await?;
        record_cancellation(tx, now, user_id, canceled, origin).await?;
        replace_password_and_notify(tx, now, &user, password_hash, None, origin).await?;
        audit::record(
            tx,
            now,
            audit::AuditKind::PasswordReset,
            Some(user_id),
            None,
            origin,
        )
        .await
    })
    .await
}

/// Sets the password of any account from the command line.
pub async fn set_password(db: &Db, now: Timestamp, user: &User, password_hash: &str) -> Result<()> {
    db.transaction(async |tx| {
        let user = user::lock(tx, user.id)
            .await?
            .ok_or_else(|| Error::not_found("id", "user"))?;
        let nowhere = ClientInfo::default();
        replace_password_and_notify(tx, now, &user, password_hash, None, &nowhere).await?;
        audit::record(
            tx,
            now,
            audit::AuditKind::PasswordReset,
            Some(user.id),
            None,
            &nowhere,
        )
        .await
    })
    .await
}

/// Changes the viewer's password and ends every other session.
pub async fn change_password(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    password_hash: &str,
    origin: &ClientInfo,
) -> Result<User> {
    db.transaction(async |tx| {
        let user = user::lock(tx, viewer.id)
            .await?
            .ok_or_else(Error::unauthenticated)?;
        session::lock(tx, now, viewer).await?;
        replace_password_and_notify(
            tx,
            now,
            &user,
            password_hash,
            Some(viewer.session_id),
            origin,
        )
        .await?;
        audit::record(
            tx,
            now,
            audit::AuditKind::PasswordChanged,
            Some(user.id),
            Some(user.id),
            origin,
        )
        .await?;
        Ok(user)
    })
    .await
}

/// Replaces the password and notifies the owner by mail.
async fn replace_password_and_notify(
    tx: &mut Conn,
    now: Timestamp,
    user: &User,
    password_hash: &str,
    keep: Option<Id>,
    origin: &ClientInfo,
) -> Result<()> {
    let canceled = replace_password(tx, now, user, password_hash, keep).await?;
    record_cancellation(tx, now, user.id, canceled, origin).await?;
    mail::queue(
        tx,
        now,
        mail::MailKind::PasswordChanged,
        &user.email,
        Some(user.id),
        "",
    )
    .await
}

/// Replaces the password and revokes everything obtained with the old one: sessions except `keep`,
/// reset tokens, and a pending e-mail change. Returns whether an e-mail change was pending.
async fn replace_password(
    tx: &mut Conn,
    now: Timestamp,
    user: &User,
    password_hash: &str,
    keep: Option<Id>,
) -> Result<bool> {
    on!(tx, |c| diesel::update(users::table.find(user.id))
        .set((
            users::password_hash.eq(password_hash),
            users::updated_at.eq(now)
        ))
        .execute(c)
        .await)?;
    session::end(tx, now, user.id, None, keep).await?;
    token::revoke(tx, user.id, Purpose::ResetPassword).await?;
    let canceled = user::cancel_email_change(tx, user).await?;
    lockout::unlock(tx, &[&fold(&user.email), &fold(&user.username)]).await?;
    Ok(canceled)
}

/// Deletes the viewer's account with their projects and personal data. An anonymous row remains as
/// the author of comments and the assignee of tasks in other users' projects.
pub async fn delete(db: &Db, now: Timestamp, viewer: &Viewer) -> Result<()> {
    db.transaction(async |tx| {
        // Deleting may take long. Only the deletion of an ADMIN locks the other ADMINs, whose
        // writes wait for it.
        let (user, admins) = if viewer.is_admin() {
            let (user, admins) = user::lock_with_admins(tx, viewer.id).await?;
            (user, Some(admins))
        } else {
            (user::lock(tx, viewer.id).await?, None)
        };
        let user = user.ok_or_else(Error::unauthenticated)?;
        let viewer = &session::lock(tx, now, viewer).await?;
        if viewer.is_admin() {
            let admins = match admins {
                Some(admins) => admins,
                None => user::lock_with_admins(tx, viewer.id).await?.1,
            };
            admins.require_another(user.id)?;
        }
        let own = projects::table
            .filter(projects::owner_id.eq(user.id))
            .order_by(projects::id);
        let own: Vec<Project> = select_locked!(tx, own.select(Project::as_select()), Lock::Delete)?;
        // The log of these projects is deleted at once. The events of their deletion are delivered,
        // and expire with the retention.
        on!(tx, |c| diesel::delete(
            log::table.filter(log::owner_id.eq(user.id))
        )
        .execute(c)
        .await)?;
        on!(tx, |c| diesel::delete(
            texts::table.filter(texts::owner_id.eq(user.id))
        )
        .execute(c)
        .await)?;
        for project in &own {
            project::remove(tx, now, viewer, project).await?;
        }
        on!(tx, |c| diesel::delete(user_usage::table.find(user.id))
            .execute(c)
            .await)?;
        session::end(tx, now, user.id, None, None).await?;
        lockout::unlock(tx, &[&fold(&user.email), &fold(&user.username)]).await?;
        mail::delete_for_user(tx, user.id, &user.email).await?;
        on!(tx, |c| diesel::delete(
            mail_tokens::table.filter(mail_tokens::user_id.eq(user.id))
        )
        .execute(c)
        .await)?;
        email_change::delete_for_user(tx, user.id).await?;
        username_change::delete_for_user(tx, user.id).await?;
        audit::delete_for_user(tx, user.id).await?;
        user::anonymize(tx, now, &user).await?;
        // After the change of the user row: inserting notifications locks that row and skips
        // deleted users.
        notification::delete_for_user(tx, user.id).await?;
        session::delete_for_user(tx, user.id).await?;
        let event = NewEvent::new(EventKind::UserChanged, Some(user.id), now);
        events::append(
            tx,
            &[NewEvent {
                owner_id: Some(user.id),
                ..event
            }],
        )
        .await?;
        audit::record(
            tx,
            now,
            audit::AuditKind::Deleted,
            Some(user.id),
            Some(user.id),
            &ClientInfo::default(),
        )
        .await
    })
    .await
}

/// The error for a login with the right password and an unverified e-mail address.
pub fn email_not_verified() -> Error {
    Error::refused(
        Code::EmailNotVerified,
        "Verify your e-mail address first: follow the link in the mail we sent.",
    )
}
