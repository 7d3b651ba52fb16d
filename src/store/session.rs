//! Sessions: one row per login. The row maps a token to its viewer and is also the revocation list:
//! tokens are valid only while their session is.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use diesel::dsl::max;
use diesel::expression::{ValidGrouping, is_aggregate};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sqlite::Sqlite;

use super::PURGE_BATCH;
use super::audit::{self, ClientInfo};
use super::lockout::{self, LockoutPolicy, PasswordAttempt};
use super::user;
use crate::access::{Role, Viewer};
use crate::db::page::any_id;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::{sessions, users};
use crate::db::types::sql;
use crate::db::{Conn, Db, Lock, PooledConn};
use crate::error::{Error, Result};
use crate::events::{self, EventKind, NewEvent};
use crate::id::Id;
use crate::limits;
use crate::time::Timestamp;
use crate::{on, select_locked};

/// One login and its refresh tokens.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = sessions)]
pub struct Session {
    /// The `sid` claim of its tokens.
    pub id: Id,
    pub user_id: Id,
    /// Random. The refresh tokens are derived from it with the server's key.
    pub seed: Vec<u8>,
    /// The number of the valid refresh token.
    pub generation: i32,
    /// When that token was issued.
    pub rotated_at: Timestamp,
    pub created_at: Timestamp,
    /// When it was last refreshed.
    pub last_used_at: Timestamp,
    /// When it ends unless it is refreshed before.
    pub expires_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
    /// The client address at login.
    pub ip_address: Option<String>,
    /// The `User-Agent` header at login.
    pub user_agent: Option<String>,
    /// The client address of the last refresh, once it differs from `ip_address`.
    pub last_ip_address: Option<String>,
}

impl Session {
    /// The client at login.
    pub fn client_info(&self) -> ClientInfo {
        ClientInfo {
            ip_address: self.ip_address.clone(),
            user_agent: self.user_agent.clone(),
        }
    }

    /// The address of the last login or refresh.
    pub fn last_address(&self) -> Option<&str> {
        self.last_ip_address
            .as_deref()
            .or(self.ip_address.as_deref())
    }
}

/// The viewer of a session that is valid at `now`. Reads one row.
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
    Ok(row.map(|(id, role)| Viewer {
        id,
        session_id,
        role,
    }))
}

/// The viewer with their current role. The rows of the user and the session stay locked until the
/// transaction ends: no other transaction can change the role, disable the account or end the
/// session before. Fails with UNAUTHENTICATED if that has happened since the request began.
///
/// Every write of a viewer begins with this. The request's copy of the viewer may be a second old;
/// a write that relied on it could add a change to the log after the right to it ended.
pub async fn lock(tx: &mut Conn, now: Timestamp, viewer: &Viewer) -> Result<Viewer> {
    // The order of the tables is the order of the locks.
    let present = users::table
        .inner_join(sessions::table)
        .filter(sessions::id.eq(viewer.session_id))
        .filter(sessions::revoked_at.is_null())
        .filter(sessions::expires_at.gt(now))
        .filter(users::is_active.eq(true))
        .select((users::id, users::role));
    let rows: Vec<(Id, Role)> = select_locked!(tx, present, Lock::Share)?;
    let (id, role) = rows.into_iter().next().ok_or_else(Error::unauthenticated)?;
    Ok(Viewer {
        id,
        role,
        ..*viewer
    })
}

/// The check of [`lock`] as a condition of a statement: true if the viewer's session is valid and
/// their role unchanged. Neither can change before the statement commits.
#[derive(Clone, Copy, Debug)]
pub struct ViewerUnchanged<'a> {
    viewer: &'a Viewer,
    now: Timestamp,
}

impl<'a> ViewerUnchanged<'a> {
    pub const fn new(viewer: &'a Viewer, now: Timestamp) -> Self {
        Self { viewer, now }
    }
}

impl Expression for ViewerUnchanged<'_> {
    type SqlType = sql::Bool;
}

impl<Tables> AppearsOnTable<Tables> for ViewerUnchanged<'_> {}

impl ValidGrouping<()> for ViewerUnchanged<'_> {
    type IsAggregate = is_aggregate::No;
}

impl QueryId for ViewerUnchanged<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

macro_rules! unchanged {
    ($backend:ty, $lock:literal) => {
        impl QueryFragment<$backend> for ViewerUnchanged<'_> {
            fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, $backend>) -> QueryResult<()> {
                out.push_sql(
                    "EXISTS (SELECT 1 FROM users INNER JOIN sessions ON sessions.user_id = users.id \
                     WHERE sessions.revoked_at IS NULL AND users.is_active AND sessions.id = ",
                );
                out.push_bind_param::<sql::Uuid, _>(&self.viewer.session_id)?;
                out.push_sql(" AND sessions.expires_at > ");
                out.push_bind_param::<sql::Instant, _>(&self.now)?;
                out.push_sql(" AND users.role = ");
                out.push_bind_param::<sql::SmallInt, _>(&self.viewer.role)?;
                out.push_sql($lock);
                Ok(())
            }
        }
    };
}
unchanged!(Pg, " FOR SHARE)");
unchanged!(Sqlite, ")");

/// A password that was verified at a login.
pub struct VerifiedPassword<'a> {
    /// The stored hash that it was verified against.
    pub hash: &'a str,
    /// A new hash of it, if the hashing cost has increased since.
    pub rehashed: Option<&'a str>,
}

/// The outcome of a login with the right password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginOutcome {
    Created,
    /// The password changed during verification, or the account was disabled.
    CredentialsChanged,
    /// Attempts are refused for now.
    LockedOut,
}

/// Creates the session of a login. `is_known` means that the owner has a session from the same
/// network; the limits on networks do not apply then.
pub async fn create(
    db: &Db,
    session: &Session,
    password: &VerifiedPassword<'_>,
    attempt: &PasswordAttempt,
    is_known: bool,
    rule: LockoutPolicy,
) -> Result<LoginOutcome> {
    db.transaction(async |tx| {
        let verdict = lockout::lock(tx, session.created_at, attempt, rule).await?;
        if verdict.locked_until.is_some() || (verdict.slowed_until.is_some() && !is_known) {
            return Ok(LoginOutcome::LockedOut);
        }
        if let Some(hash) = password.rehashed {
            let user = diesel::update(users::table.find(session.user_id))
                .filter(users::password_hash.eq(password.hash));
            on!(tx, |c| user
                .set(users::password_hash.eq(hash))
                .execute(c)
                .await)?;
        }
        if !begin(tx, session, password.rehashed.unwrap_or(password.hash)).await? {
            return Ok(LoginOutcome::CredentialsChanged);
        }
        if verdict.has_failures {
            lockout::clear(tx, attempt).await?;
        }
        let who = Some(session.user_id);
        audit::record(
            tx,
            session.created_at,
            audit::AuditKind::LoggedIn,
            who,
            who,
            &session.client_info(),
        )
        .await?;
        Ok(LoginOutcome::Created)
    })
    .await
}

/// Inserts a session if its user is active and still has this password. It waits for a concurrent
/// password change. A later change waits for this transaction and then ends the session.
async fn begin(tx: &mut Conn, session: &Session, password_hash: &str) -> Result<bool> {
    let columns = (
        sessions::id,
        sessions::user_id,
        sessions::seed,
        sessions::generation,
        sessions::rotated_at,
        sessions::created_at,
        sessions::last_used_at,
        sessions::expires_at,
        sessions::revoked_at,
        sessions::ip_address,
        sessions::user_agent,
    );
    let row = users::table
        .find(session.user_id)
        .filter(users::password_hash.eq(password_hash))
        .filter(users::is_active.eq(true))
        .select((
            session.id.into_sql::<sql::Uuid>(),
            users::id,
            session.seed.as_slice().into_sql::<sql::Binary>(),
            session.generation.into_sql::<sql::Integer>(),
            session.rotated_at.into_sql::<sql::Instant>(),
            session.created_at.into_sql::<sql::Instant>(),
            session.last_used_at.into_sql::<sql::Instant>(),
            session.expires_at.into_sql::<sql::Instant>(),
            session.revoked_at.into_sql::<sql::Nullable<sql::Instant>>(),
            session
                .ip_address
                .as_deref()
                .into_sql::<sql::Nullable<sql::Text>>(),
            session
                .user_agent
                .as_deref()
                .into_sql::<sql::Nullable<sql::Text>>(),
        ));
    let sessions = diesel::insert_into(sessions::table);
    let inserted = match &mut tx.pooled {
        PooledConn::Sqlite(c) => {
            sessions
                .values(row)
                .into_columns(columns)
                .execute(&mut **c)
                .await?
        }
        PooledConn::Postgres(c) => {
            sessions
                .values(row.for_share())
                .into_columns(columns)
                .execute(&mut &**c)
                .await?
        }
    };
    Ok(inserted == 1)
}

/// The last login of each of these users according to their sessions. For users without session
/// rows, see `users.last_login_at`.
pub async fn last_logins(conn: &mut Conn, user_ids: &[Id]) -> Result<HashMap<Id, Timestamp>> {
    let newest: Vec<(Id, Option<Timestamp>)> = on!(conn, |c| sessions::table
        .filter(any_id(sessions::user_id, user_ids))
        .group_by(sessions::user_id)
        .select((sessions::user_id, max(sessions::created_at)))
        .load(c)
        .await)?;
    Ok(newest
        .into_iter()
        .filter_map(|(id, at)| Some((id, at?)))
        .collect())
}

/// The sessions of a user that have not ended, newest first.
pub async fn of_user(conn: &mut Conn, now: Timestamp, user_id: Id) -> Result<Vec<Session>> {
    Ok(on!(conn, |c| sessions::table
        .filter(sessions::user_id.eq(user_id))
        .filter(sessions::revoked_at.is_null())
        .filter(sessions::expires_at.gt(now))
        .order_by((sessions::created_at.desc(), sessions::id.desc()))
        .select(Session::as_select())
        .load(c)
        .await)?)
}

/// Whether a user has a session that has not ended and was created or last refreshed from this
/// network. `None` stands for an unknown identifier: a random id is looked up, so that the answer
/// takes the same time.
pub async fn is_used_from(
    conn: &mut Conn,
    now: Timestamp,
    user_id: Option<Id>,
    network: &str,
) -> Result<bool> {
    let sessions = of_user(conn, now, user_id.unwrap_or_else(Id::new)).await?;
    Ok(sessions.iter().any(|session| {
        let addresses = [
            session.ip_address.as_deref(),
            session.last_ip_address.as_deref(),
        ];
        addresses
            .into_iter()
            .flatten()
            .any(|address| network_of(address).as_deref() == Some(network))
    }))
}

/// The network of a stored address.
fn network_of(address: &str) -> Option<String> {
    address.parse().ok().map(limits::network_text)
}

/// The session with this id, ended or not.
pub async fn find(conn: &mut Conn, id: Id) -> Result<Option<Session>> {
    Ok(on!(conn, |c| sessions::table
        .find(id)
        .select(Session::as_select())
        .first(c)
        .await
        .optional())?)
}

/// The outcome of presenting a refresh token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The session continues with the token of its current generation.
    Current(Session),
    /// The token was replaced earlier: someone else has a copy, so the session was ended.
    Reused,
    /// The session has ended or expired, or its user is disabled.
    Gone,
}

/// Rotates the session from `generation` to the next one, once. Of simultaneous requests one
/// rotates. The others, and a retry within `grace` after a lost response, get the same successor.
/// `expires_at` is when the session ends unless it is refreshed again.
pub async fn rotate(
    db: &Db,
    now: Timestamp,
    id: Id,
    generation: i32,
    expires_at: Timestamp,
    grace: Duration,
    origin: &ClientInfo,
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
                sessions::expires_at.eq(expires_at),
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
        let is_retry =
            session.generation == generation + 1 && now <= session.rotated_at.plus(grace);
        if rotated == 1 || is_retry {
            record_address(tx, now, &session, origin).await?;
            return Ok(Rotation::Current(session));
        }
        end(tx, now, session.user_id, Some(id), None).await?;
        audit::record(
            tx,
            now,
            audit::AuditKind::RefreshReused,
            Some(session.user_id),
            None,
            origin,
        )
        .await?;
        Ok(Rotation::Reused)
    })
    .await
}

/// Stores the address of a refresh, and records it in the audit log if the network changed.
async fn record_address(
    tx: &mut Conn,
    now: Timestamp,
    session: &Session,
    origin: &ClientInfo,
) -> Result<()> {
    let address = origin.ip_address.as_deref();
    if address == session.last_address() {
        return Ok(());
    }
    let row = diesel::update(sessions::table.find(session.id));
    on!(tx, |c| row
        .set(sessions::last_ip_address.eq(address))
        .execute(c)
        .await)?;
    if address.and_then(network_of) == session.last_address().and_then(network_of) {
        return Ok(());
    }
    let who = Some(session.user_id);
    audit::record(tx, now, audit::AuditKind::SessionMoved, who, who, origin).await
}

/// Ends one session of the viewer; returns whether it existed. Its tokens fail from the next
/// request on, and its sockets are closed.
pub async fn revoke(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    id: Id,
    origin: &ClientInfo,
) -> Result<bool> {
    db.transaction(async |tx| {
        user::lock(tx, viewer.id).await?;
        let own = id == viewer.session_id;
        if !own {
            lock(tx, now, viewer).await?;
        }
        let ended = end(tx, now, viewer.id, Some(id), None).await?;
        if ended == 0 {
            return Ok(false);
        }
        let kind = if own {
            audit::AuditKind::LoggedOut
        } else {
            audit::AuditKind::SessionRevoked
        };
        audit::record(tx, now, kind, Some(viewer.id), Some(viewer.id), origin).await?;
        Ok(true)
    })
    .await
}

/// Ends every session of the viewer except the current one; returns how many.
pub async fn revoke_others(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    origin: &ClientInfo,
) -> Result<usize> {
    db.transaction(async |tx| {
        user::lock(tx, viewer.id).await?;
        lock(tx, now, viewer).await?;
        let ended = end(tx, now, viewer.id, None, Some(viewer.session_id)).await?;
        for _ in 0..ended {
            audit::record(
                tx,
                now,
                audit::AuditKind::SessionRevoked,
                Some(viewer.id),
                Some(viewer.id),
                origin,
            )
            .await?;
        }
        Ok(ended)
    })
    .await
}

/// Ends sessions of a user whose row is locked: one, all, or all except one; returns how many.
pub async fn end(
    tx: &mut Conn,
    now: Timestamp,
    user_id: Id,
    only: Option<Id>,
    except: Option<Id>,
) -> Result<usize> {
    let ended: Vec<Id> = on!(tx, |c| {
        let mut lasting = sessions::table
            .filter(sessions::user_id.eq(user_id))
            .filter(sessions::revoked_at.is_null())
            .filter(sessions::expires_at.gt(now))
            .select(sessions::id)
            .into_boxed::<Backend>();
        if let Some(id) = only {
            lasting = lasting.filter(sessions::id.eq(id));
        }
        if let Some(id) = except {
            lasting = lasting.filter(sessions::id.ne(id));
        }
        lasting.load(c).await
    })?;
    let mut events = Vec::new();
    for id in ended {
        let revoked = on!(tx, |c| diesel::update(sessions::table.find(id))
            .filter(sessions::revoked_at.is_null())
            .set(sessions::revoked_at.eq(now))
            .execute(c)
            .await)?;
        if revoked == 1 {
            let event = NewEvent::new(EventKind::SessionEnded, Some(user_id), now);
            events.push(NewEvent {
                owner_id: Some(user_id),
                session_id: Some(id),
                ..event
            });
        }
    }
    if !events.is_empty() {
        events::append(tx, &events).await?;
    }
    Ok(events.len())
}

/// Deletes the sessions of an account that is being deleted.
pub async fn delete_for_user(tx: &mut Conn, user_id: Id) -> Result<()> {
    on!(tx, |c| diesel::delete(
        sessions::table.filter(sessions::user_id.eq(user_id))
    )
    .execute(c)
    .await)?;
    Ok(())
}

/// Deletes a batch of sessions that ended before `before`; returns how many. The last login is
/// copied to the user row first, because it may be the user's only session.
pub async fn purge_expired(db: &Db, before: Timestamp) -> Result<usize> {
    db.transaction(async |tx| {
        let ended = sessions::expires_at
            .lt(before)
            .or(sessions::revoked_at.lt(before));
        let ended: Vec<(Id, Id, Timestamp)> = on!(tx, |c| sessions::table
            .filter(ended)
            .limit(PURGE_BATCH as i64)
            .select((sessions::id, sessions::user_id, sessions::created_at))
            .load(c)
            .await)?;
        let mut logins = BTreeMap::new();
        for (_, user_id, login) in &ended {
            let last = logins.entry(*user_id).or_insert(*login);
            *last = (*last).max(*login);
        }
        for (user_id, last) in logins {
            let earlier = users::last_login_at
                .is_null()
                .or(users::last_login_at.lt(last));
            let user = diesel::update(users::table.find(user_id)).filter(earlier);
            on!(tx, |c| user
                .set(users::last_login_at.eq(last))
                .execute(c)
                .await)?;
        }
        let ids: Vec<Id> = ended.iter().map(|(id, ..)| *id).collect();
        let ended = sessions::table.filter(any_id(sessions::id, &ids));
        Ok(on!(tx, |c| diesel::delete(ended).execute(c).await)?)
    })
    .await
}
