//! Sessions: one row a login. It says who a token speaks for, and it is the list of revoked tokens as well.

use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::value::fold;
use crate::access::{Role, Viewer};
use crate::db::schema::{sessions, users};
use crate::db::{Conn, Db};
use crate::error::Result;
use crate::events::{self, Kind, NewEvent};
use crate::id::Id;
use crate::on;
use crate::time::Timestamp;

/// A login and the refresh tokens that came of it.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = sessions)]
pub struct Session {
    /// Its id, the `sid` of its tokens.
    pub id: Id,
    /// Whose it is.
    pub user_id: Id,
    /// Random; with the server's key it derives the refresh tokens.
    pub seed: Vec<u8>,
    /// Which refresh token is the valid one.
    pub generation: i32,
    /// When that one was given out.
    pub rotated_at: Timestamp,
    /// When it began.
    pub created_at: Timestamp,
    /// When it was last refreshed.
    pub last_used_at: Timestamp,
    /// When it ends unless it is refreshed before.
    pub expires_at: Timestamp,
    /// When it was ended.
    pub revoked_at: Option<Timestamp>,
    /// Where the login came from.
    pub ip_address: Option<String>,
    /// What program it came from, as that said.
    pub user_agent: Option<String>,
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
}

/// The credential of the account with that e-mail or username.
pub async fn credential(conn: &mut Conn, identifier: &str) -> Result<Option<Credential>> {
    // PostgreSQL takes no NUL in a text, and no account has one.
    if identifier.contains('\0') {
        return Ok(None);
    }
    let key = fold(identifier.trim());
    Ok(on!(conn, |c| users::table
        .filter(users::email_key.eq(&key).or(users::username_key.eq(&key)))
        .select((users::id, users::password_hash, users::is_active))
        .first(c)
        .await
        .optional())?)
}

/// Whom a session speaks for, if it still does: one row, read with each request.
pub async fn viewer(conn: &mut Conn, now: Timestamp, session_id: Id) -> Result<Option<Viewer>> {
    let row: Option<(Id, Role)> = on!(conn, |c| sessions::table
        .inner_join(users::table)
        .filter(sessions::id.eq(session_id))
        .filter(sessions::revoked_at.is_null())
        .filter(sessions::expires_at.gt(now))
        .filter(users::is_active.eq(true))
        .select((users::id, users::role))
        .first(c)
        .await
        .optional())?;
    Ok(row.map(|(id, role)| Viewer { id, session_id, role }))
}

/// Begins a session and notes the login.
pub async fn create(db: &Db, session: &Session) -> Result<()> {
    db.transaction(async |tx| {
        on!(tx, |c| diesel::insert_into(sessions::table).values(session).execute(c).await)?;
        on!(tx, |c| diesel::update(users::table.find(session.user_id))
            .set(users::last_login_at.eq(session.created_at))
            .execute(c)
            .await)?;
        Ok(())
    })
    .await
}

/// The session with this id, ended or not.
pub async fn find(conn: &mut Conn, id: Id) -> Result<Option<Session>> {
    Ok(on!(conn, |c| sessions::table.find(id).select(Session::as_select()).first(c).await.optional())?)
}

/// What came of showing a refresh token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The session goes on with the token of this generation.
    Current(Session),
    /// The token was replaced long ago: somebody else has it too, so the session was ended.
    Reused,
    /// There is no such session any more.
    Gone,
}

/// Takes the session from `generation` to the next one, once: of many who try at the same time one does, and the
/// others, like whoever tries again within `grace` because an answer was lost, are given the same successor.
pub async fn rotate(
    db: &Db,
    now: Timestamp,
    id: Id,
    generation: i32,
    lifetime: Duration,
    grace: Duration,
) -> Result<Rotation> {
    db.transaction(async |tx| {
        let rotated = on!(tx, |c| diesel::update(sessions::table.find(id))
            .filter(sessions::generation.eq(generation))
            .filter(sessions::revoked_at.is_null())
            .filter(sessions::expires_at.gt(now))
            .set((
                sessions::generation.eq(generation + 1),
                sessions::rotated_at.eq(now),
                sessions::last_used_at.eq(now),
                sessions::expires_at.eq(now.plus(lifetime)),
            ))
            .execute(c)
            .await)?;
        let session: Option<(Session, bool)> = on!(tx, |c| sessions::table
            .inner_join(users::table)
            .filter(sessions::id.eq(id))
            .filter(sessions::revoked_at.is_null())
            .filter(sessions::expires_at.gt(now))
            .select((Session::as_select(), users::is_active))
            .first(c)
            .await
            .optional())?;
        let Some((session, true)) = session else {
            return Ok(Rotation::Gone);
        };
        if rotated == 1 {
            return Ok(Rotation::Current(session));
        }
        if session.generation == generation + 1 && now <= session.rotated_at.plus(grace) {
            return Ok(Rotation::Current(session));
        }
        end(tx, now, session.user_id, id).await?;
        Ok(Rotation::Reused)
    })
    .await
}

/// Ends a session: its tokens are dead with the next request, its sockets are closed.
pub async fn revoke(db: &Db, now: Timestamp, user_id: Id, id: Id) -> Result<bool> {
    db.transaction(async |tx| end(tx, now, user_id, id).await).await
}

async fn end(tx: &mut Conn, now: Timestamp, user_id: Id, id: Id) -> Result<bool> {
    let ended = on!(tx, |c| diesel::update(sessions::table.find(id))
        .filter(sessions::user_id.eq(user_id))
        .filter(sessions::revoked_at.is_null())
        .set(sessions::revoked_at.eq(now))
        .execute(c)
        .await)?;
    if ended == 1 {
        let told = NewEvent {
            owner_id: Some(user_id),
            session_id: Some(id),
            ..NewEvent::new(Kind::SessionEnded, Some(user_id), now)
        };
        events::append(tx, &[told]).await?;
    }
    Ok(ended == 1)
}

/// Drops sessions that ended before this moment.
pub async fn drop_ended(db: &Db, before: Timestamp) -> Result<usize> {
    db.transaction(async |tx| {
        Ok(on!(tx, |c| diesel::delete(sessions::table)
            .filter(sessions::expires_at.lt(before).or(sessions::revoked_at.lt(before)))
            .execute(c)
            .await)?)
    })
    .await
}
