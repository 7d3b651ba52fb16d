//! The life of an account: what a login is checked against, the tokens that were mailed, a new password, leaving.

use diesel::prelude::*;

use super::audit::{self, Origin};
use super::lockout::{self, Rule};
use super::mail;
use super::project::{self, Project};
use super::token::{self, Purpose};
use super::user::{self, User};
use super::value::fold;
use super::{notification, session};
use crate::access::Viewer;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::{events as log, login_failures, mail_tokens, projects, users};
use crate::db::{Conn, Db, Lock};
use crate::error::{Code, Error, FaultCode, Result};
use crate::events::{self, Kind, NewEvent};
use crate::id::Id;
use crate::time::Timestamp;
use crate::{locked, on};

/// What is known of an identifier that somebody wants to log in by.
#[derive(Clone, Debug)]
pub struct Identified {
    /// Until when its source is locked out from it, if it is.
    pub locked_until: Option<Timestamp>,
    /// Whether wrong passwords are counted, which a right one forgets.
    pub has_failures: bool,
    /// Of the account that it names, if it names one.
    pub credential: Option<Credential>,
}

/// What a login is checked against.
#[derive(Clone, Debug, Queryable)]
pub struct Credential {
    /// Whose it is.
    pub user_id: Id,
    /// argon2, in PHC form.
    pub password_hash: String,
    /// Whether they may sign in.
    pub is_active: bool,
    /// Whether they have shown that mail to the address reaches them.
    pub email_verified: bool,
}

/// What is known of an e-mail or username from this source, in one statement whether it is anybody's or not.
pub async fn identify(conn: &mut Conn, now: Timestamp, identifier: &str, source: &str) -> Result<Identified> {
    let key = fold(identifier);
    let failed = login_failures::table.find((identifier, source));
    let named = users::table
        .filter(users::email_key.eq(&key).or(users::username_key.eq(&key)))
        .filter(users::deleted_at.is_null());
    let query = diesel::select((
        failed.select(login_failures::failures).single_value(),
        failed.select(login_failures::locked_until).single_value(),
        named.select(users::id).single_value(),
        named.select(users::password_hash).single_value(),
        named.select(users::is_active).single_value(),
        named.select(users::email_verified).single_value(),
    ));
    type Row = (Option<i32>, Option<Timestamp>, Option<Id>, Option<String>, Option<bool>, Option<bool>);
    let (failures, locked_until, id, hash, is_active, email_verified): Row = on!(conn, |c| query.get_result(c).await)?;
    let credential = match (id, hash, is_active, email_verified) {
        (Some(user_id), Some(password_hash), Some(is_active), Some(email_verified)) => {
            Some(Credential { user_id, password_hash, is_active, email_verified })
        }
        _ => None,
    };
    let locked_until = locked_until.filter(|until| *until > now);
    Ok(Identified { locked_until, has_failures: failures.is_some(), credential })
}

/// The credential of the viewer, who wants to do something that needs the password again.
pub async fn credential_of(conn: &mut Conn, viewer: &Viewer) -> Result<Credential> {
    Ok(on!(conn, |c| users::table
        .find(viewer.id)
        .select((users::id, users::password_hash, users::is_active, users::email_verified))
        .first(c)
        .await)?)
}

/// Counts and notes a login with a wrong password, or for an identifier that is nobody's.
pub async fn login_failed(
    db: &Db,
    now: Timestamp,
    identifier: &str,
    source: &str,
    user_id: Option<Id>,
    origin: &Origin,
    rule: Rule,
) -> Result<()> {
    db.transaction(async |tx| {
        let locked = lockout::count_failure(tx, now, identifier, source, rule).await?;
        audit::note(tx, now, audit::Kind::LoginFailed, user_id, None, origin).await?;
        if locked {
            audit::note(tx, now, audit::Kind::LockedOut, user_id, None, origin).await?;
        }
        Ok(())
    })
    .await
}

fn no_such_token() -> Error {
    Error::fault("token", FaultCode::Invalid, "The token is not valid, was used, or has expired.")
}

/// Redeems a token that shows that mail to an address reaches its owner; the address becomes the account's.
pub async fn verify_email(db: &Db, now: Timestamp, hash: &[u8], origin: &Origin) -> Result<()> {
    db.transaction(async |tx| {
        let redeemed = token::redeem(tx, now, Purpose::VerifyEmail, hash).await?;
        let (user_id, email) = redeemed.ok_or_else(no_such_token)?;
        let user = user::held(tx, user_id).await?.ok_or_else(no_such_token)?;
        user::set_email(tx, now, &user, &email).await?;
        if fold(&email) == fold(&user.email) {
            return audit::note(tx, now, audit::Kind::EmailVerified, Some(user_id), None, origin).await;
        }
        // Whoever still reads the old address must not be able to take the account back with an old token.
        token::withdraw(tx, user_id, Purpose::ResetPassword).await?;
        mail::queue(tx, now, mail::Kind::EmailChanged, &user.email, Some(user_id), &email).await?;
        audit::note(tx, now, audit::Kind::EmailChanged, Some(user_id), None, origin).await
    })
    .await
}

/// Whose password a mailed token sets anew, without using it up.
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
    owner.ok_or_else(no_such_token)
}

/// Redeems a token that sets the password anew: every session ends, the account is unlocked from everywhere.
pub async fn reset_password(db: &Db, now: Timestamp, hash: &[u8], password_hash: &str, origin: &Origin) -> Result<()> {
    db.transaction(async |tx| {
        let redeemed = token::redeem(tx, now, Purpose::ResetPassword, hash).await?;
        let (user_id, email) = redeemed.ok_or_else(no_such_token)?;
        let user = user::held(tx, user_id).await?.filter(|user| user.is_active && user.email == email);
        let user = user.ok_or_else(no_such_token)?;
        user::set_email(tx, now, &user, &email).await?;
        put_password(tx, now, &user, password_hash, None).await?;
        audit::note(tx, now, audit::Kind::PasswordReset, Some(user_id), None, origin).await
    })
    .await
}

/// Sets the password of any account anew, from the shell.
pub async fn set_password(db: &Db, now: Timestamp, user: &User, password_hash: &str) -> Result<()> {
    db.transaction(async |tx| {
        let user = user::held(tx, user.id).await?.ok_or_else(|| Error::not_found("id", "user"))?;
        put_password(tx, now, &user, password_hash, None).await?;
        audit::note(tx, now, audit::Kind::PasswordReset, Some(user.id), None, &Origin::default()).await
    })
    .await
}

/// Changes the viewer's password and ends every other session.
pub async fn change_password(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    password_hash: &str,
    origin: &Origin,
) -> Result<User> {
    db.transaction(async |tx| {
        let user = user::held(tx, viewer.id).await?.ok_or_else(Error::unauthenticated)?;
        session::lock(tx, now, viewer).await?;
        put_password(tx, now, &user, password_hash, Some(viewer.session_id)).await?;
        audit::note(tx, now, audit::Kind::PasswordChanged, Some(user.id), Some(user.id), origin).await?;
        Ok(user)
    })
    .await
}

/// Sets a password that nothing outlives which was begun without it: no session but the one to keep, no mailed token and
/// no change of address.
async fn put_password(tx: &mut Conn, now: Timestamp, user: &User, password_hash: &str, keep: Option<Id>) -> Result<()> {
    on!(tx, |c| diesel::update(users::table.find(user.id))
        .set((users::password_hash.eq(password_hash), users::updated_at.eq(now)))
        .execute(c)
        .await)?;
    session::end(tx, now, user.id, None, keep).await?;
    token::withdraw(tx, user.id, Purpose::ResetPassword).await?;
    user::keep_email(tx, user).await?;
    lockout::unlock(tx, &[&fold(&user.email), &fold(&user.username)]).await?;
    mail::queue(tx, now, mail::Kind::PasswordChanged, &user.email, Some(user.id), "").await
}

/// Deletes the viewer's account. Their projects go with all that is in them, what is stored of the person goes, and a
/// nameless row stays behind as the author of comments and the assignee of tasks in other people's projects.
pub async fn delete(db: &Db, now: Timestamp, viewer: &Viewer) -> Result<()> {
    db.transaction(async |tx| {
        // What is deleted may be much. Only ADMIN holds the other ADMINs meanwhile, whose writes wait for it.
        let (user, admins) = if viewer.is_admin() {
            let (user, admins) = user::held_with_admins(tx, viewer.id).await?;
            (user, Some(admins))
        } else {
            (user::held(tx, viewer.id).await?, None)
        };
        let user = user.ok_or_else(Error::unauthenticated)?;
        let viewer = &session::lock(tx, now, viewer).await?;
        if viewer.is_admin() {
            let admins = match admins {
                Some(admins) => admins,
                None => user::held_with_admins(tx, viewer.id).await?.1,
            };
            admins.keep_one(user.id)?;
        }
        let own = projects::table.filter(projects::owner_id.eq(user.id)).order_by(projects::id);
        let own: Vec<Project> = locked!(tx, own.select(Project::as_select()), Lock::Delete)?;
        // What the log holds of their projects goes at once; that they were deleted is told, and goes with the retention.
        on!(tx, |c| diesel::delete(log::table.filter(log::owner_id.eq(user.id))).execute(c).await)?;
        for project in &own {
            project::remove(tx, now, viewer, project).await?;
        }
        session::end(tx, now, user.id, None, None).await?;
        lockout::unlock(tx, &[&fold(&user.email), &fold(&user.username)]).await?;
        mail::forget(tx, user.id, &user.email).await?;
        on!(tx, |c| diesel::delete(mail_tokens::table.filter(mail_tokens::user_id.eq(user.id))).execute(c).await)?;
        audit::forget(tx, user.id).await?;
        user::efface(tx, now, &user).await?;
        // After the row was changed: whoever makes notifications holds it until they are made, and makes none after.
        notification::forget(tx, user.id).await?;
        session::forget(tx, user.id).await?;
        let told = NewEvent::new(Kind::UserChanged, Some(user.id), now);
        events::append(tx, &[NewEvent { owner_id: Some(user.id), ..told }]).await?;
        audit::note(tx, now, audit::Kind::Deleted, Some(user.id), Some(user.id), &Origin::default()).await
    })
    .await
}

/// Right password, but the address must be verified first.
pub fn unverified() -> Error {
    Error::refused(Code::EmailNotVerified, "Verify your e-mail address first: follow the link in the mail we sent.")
}
