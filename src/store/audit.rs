//! The audit log of accounts. Each entry is written in the transaction of the change that it
//! records. ADMIN reads all entries, users those about themselves.

use diesel::deserialize::FromSqlRow;
use diesel::expression::AsExpression;
use diesel::prelude::*;
use serde::Serialize;

use super::PURGE_BATCH;
use crate::access::Viewer;
use crate::db::page::{Page, PageWindow, RowPosition, SortKey, any_id};
use crate::db::rows::RunQueryDsl;
use crate::db::schema::audit_entries;
use crate::db::{Conn, Db};
use crate::error::Result;
use crate::id::Id;
use crate::network::Client;
use crate::stored_as_smallint;
use crate::time::Timestamp;
use crate::{keyset, on};

/// Kinds of events in the audit log.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    AsExpression,
    FromSqlRow,
    Serialize,
    async_graphql::Enum,
)]
#[diesel(sql_type = diesel::sql_types::SmallInt)]
#[graphql(name = "AuditKind")]
pub enum AuditKind {
    /// The account was created.
    Registered,
    /// The user logged in.
    LoggedIn,
    /// A login with wrong credentials failed.
    LoginFailed,
    /// Too many wrong passwords: further attempts from this address, device or session are rejected
    /// for a while.
    LockedOut,
    /// The user logged out.
    LoggedOut,
    /// A refresh token was used after it had been replaced. Its session was ended.
    RefreshReused,
    /// A session was ended from another session.
    SessionRevoked,
    /// The user changed the password.
    PasswordChanged,
    /// The password was reset with a link sent by e-mail or by an administrator.
    PasswordReset,
    /// The e-mail address was verified.
    EmailVerified,
    /// The e-mail address was changed.
    EmailChanged,
    /// The role was changed.
    RoleChanged,
    /// The account was disabled.
    Disabled,
    /// The account was enabled again.
    Enabled,
    /// The account was deleted.
    Deleted,
    /// A signed-in session gave a wrong password where the password must be confirmed.
    PasswordCheckFailed,
    /// A change of the e-mail address was requested.
    EmailChangeRequested,
    /// A change of the e-mail address was canceled, or reverted after it was confirmed.
    EmailChangeCanceled,
    /// The username was changed.
    UsernameChanged,
    /// The data of the account was exported.
    DataExported,
    /// A session was refreshed from another network than before.
    SessionMoved,
    /// A login with the correct password was refused because the e-mail address is not verified.
    LoginRefused,
    /// The password was disabled because a change of the e-mail address was canceled with the link
    /// sent to the old address.
    PasswordDisabled,
    /// E-mails about assignments were turned off with the link in one of them.
    Unsubscribed,
}
stored_as_smallint!(AuditKind {
    Registered = 1,
    LoggedIn = 2,
    LoginFailed = 3,
    LockedOut = 4,
    LoggedOut = 5,
    RefreshReused = 6,
    SessionRevoked = 7,
    PasswordChanged = 8,
    PasswordReset = 9,
    EmailVerified = 10,
    EmailChanged = 11,
    RoleChanged = 12,
    Disabled = 13,
    Enabled = 14,
    Deleted = 15,
    PasswordCheckFailed = 16,
    EmailChangeRequested = 17,
    EmailChangeCanceled = 18,
    UsernameChanged = 19,
    DataExported = 20,
    SessionMoved = 21,
    LoginRefused = 22,
    PasswordDisabled = 23,
    Unsubscribed = 24,
});

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientInfo {
    pub ip_address: Option<String>,
    /// The `User-Agent` header, at most 200 characters.
    pub user_agent: Option<String>,
}

impl From<&Client> for ClientInfo {
    fn from(client: &Client) -> Self {
        let program = client
            .user_agent
            .as_ref()
            .and_then(|program| program.to_str().ok());
        Self {
            ip_address: Some(client.address.to_canonical().to_string()),
            user_agent: program.map(|program| program.chars().take(200).collect()),
        }
    }
}

/// An entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable, Serialize)]
#[diesel(table_name = audit_entries)]
pub struct Entry {
    pub id: Id,
    pub kind: AuditKind,
    pub occurred_at: Timestamp,
    /// The account concerned; null after a failed login with an unknown identifier.
    pub user_id: Option<Id>,
    /// The user who did it, if signed in.
    pub actor_id: Option<Id>,
    pub ip_address: Option<String>,
    pub user_agent: Option<String>,
}

impl Entry {
    /// The sort key of the entry in its list.
    pub fn position(&self) -> RowPosition {
        RowPosition {
            key: SortKey::Time(self.occurred_at),
            id: self.id,
        }
    }

    /// Removes the client of an action by another user, unless the viewer is ADMIN.
    pub fn redacted_for(self, viewer: &Viewer) -> Self {
        if viewer.is_admin() || self.actor_id.is_none_or(|actor| actor == viewer.id) {
            return self;
        }
        Self {
            ip_address: None,
            user_agent: None,
            ..self
        }
    }
}

/// Writes an entry, in the transaction of the change.
pub async fn record(
    tx: &mut Conn,
    now: Timestamp,
    kind: AuditKind,
    user_id: Option<Id>,
    actor_id: Option<Id>,
    origin: &ClientInfo,
) -> Result<()> {
    let entry = Entry {
        id: Id::new(),
        kind,
        occurred_at: now,
        user_id,
        actor_id,
        ip_address: origin.ip_address.clone(),
        user_agent: origin.user_agent.clone(),
    };
    on!(tx, |c| diesel::insert_into(audit_entries::table)
        .values(&entry)
        .execute(c)
        .await)?;
    Ok(())
}

/// Returns one page of the log, newest first, of one account or of all.
pub async fn page(
    conn: &mut Conn,
    user_id: Option<Id>,
    window: &PageWindow,
) -> Result<Page<Entry>> {
    let rows = on!(conn, |c| {
        let mut query = audit_entries::table
            .select(Entry::as_select())
            .into_boxed::<Backend>();
        if let Some(id) = user_id {
            query = query.filter(audit_entries::user_id.eq(id));
        }
        keyset!(query, window, true, (), audit_entries { () => occurred_at as Time });
        query.load(c).await
    })?;
    Ok(window.page(true, rows, Entry::position))
}

/// Returns the number of entries of one account or of all.
pub async fn count(conn: &mut Conn, user_id: Option<Id>) -> Result<i64> {
    Ok(on!(conn, |c| {
        let mut query = audit_entries::table
            .select(diesel::dsl::count_star())
            .into_boxed::<Backend>();
        if let Some(id) = user_id {
            query = query.filter(audit_entries::user_id.eq(id));
        }
        query.first(c).await
    })?)
}

/// Deletes all entries about a user whose account is being deleted, and clears the client in
/// entries about the user's actions on other accounts.
pub async fn delete_for_user(tx: &mut Conn, user_id: Id) -> Result<()> {
    on!(tx, |c| diesel::delete(
        audit_entries::table.filter(audit_entries::user_id.eq(user_id))
    )
    .execute(c)
    .await)?;
    let nowhere = (
        audit_entries::ip_address.eq(None::<String>),
        audit_entries::user_agent.eq(None::<String>),
    );
    let done = diesel::update(audit_entries::table.filter(audit_entries::actor_id.eq(user_id)));
    on!(tx, |c| done.set(nowhere).execute(c).await)?;
    Ok(())
}

/// Deletes a batch of entries older than `before` and returns how many.
pub async fn purge_older(db: &Db, before: Timestamp) -> Result<usize> {
    db.transaction(async |tx| {
        let old = audit_entries::table.filter(audit_entries::occurred_at.lt(before));
        let old: Vec<Id> = on!(tx, |c| old
            .select(audit_entries::id)
            .limit(PURGE_BATCH as i64)
            .load(c)
            .await)?;
        let old = audit_entries::table.filter(any_id(audit_entries::id, &old));
        Ok(on!(tx, |c| diesel::delete(old).execute(c).await)?)
    })
    .await
}
