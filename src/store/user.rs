//! User accounts: profiles, lists and search, sign-up, profile changes and roles. Credentials and
//! account deletion are in [`super::account`], sessions in [`super::session`].

use std::collections::HashMap;
use std::sync::Arc;

use diesel::dsl::exists;
use diesel::prelude::*;

use super::audit::{self, ClientInfo};
use super::search::{Candidate, MAX_CANDIDATES, TextScan, octet_length, scan};
use super::token::Purpose;
use super::value::{DisplayName, Email, Search, Username, fold};
use super::{email_change, mail, session, username_change};
use crate::access::{Action, Role, Viewer};
use crate::db::page::{Page, PageWindow, RowPosition, SortKey, any_id};
use crate::db::rows::RunQueryDsl;
use crate::db::schema::{mail_tokens, mails, projects, tasks, users};
use crate::db::ttl_cache::{CacheStamp, ShortTtlCache};
use crate::db::{CommitSignal, Conn, Db, Lock, WithinDeadline, inline_if_few};
use crate::error::{Error, Result, UserError, UserErrorCode, is_unique_violation};
use crate::events::{self, EventKind, NewEvent};
use crate::id::Id;
use crate::time::Timestamp;
use crate::{keyset, on, select_locked};

/// The part of an account that every signed-in user may see.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = users)]
pub struct Profile {
    pub id: Id,
    /// Unique handle.
    pub username: String,
    /// The name shown to other users.
    pub display_name: String,
    /// When the user signed up.
    pub created_at: Timestamp,
}

/// An account without its credentials.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = users)]
pub struct User {
    pub id: Id,
    pub email: String,
    /// Unique handle.
    pub username: String,
    /// The name shown to other users.
    pub display_name: String,
    pub role: Role,
    /// Whether the user may sign in.
    pub is_active: bool,
    /// Whether the user has confirmed the e-mail address.
    pub email_verified: bool,
    /// The last login among the deleted sessions. Existing sessions have their own `created_at`.
    pub last_login_at: Option<Timestamp>,
    /// When the account was deleted. Its anonymous row remains.
    pub deleted_at: Option<Timestamp>,
    /// When the user signed up.
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Whether the user gets mail about assignments.
    pub assignment_emails: bool,
}

/// Fields by which users can be sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, async_graphql::Enum)]
#[graphql(name = "UserOrderField")]
pub enum UserOrderField {
    /// The time at which the account was created.
    CreatedAt,
    /// The username, ignoring case.
    Username,
}

/// Filter for a list of users; the conditions are ANDed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct UserCriteria {
    /// Words in the username, display name or e-mail address.
    pub search: Option<Search>,
    pub role: Option<Role>,
    /// Whether the user may sign in.
    pub is_active: Option<bool>,
}

/// A filtered list of users and the requested page of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UserList {
    pub filter: UserCriteria,
    pub order: UserOrderField,
    pub descending: bool,
    pub window: PageWindow,
}

impl User {
    /// The part that every signed-in user may see.
    pub fn profile(&self) -> Profile {
        let (username, display_name) = (self.username.clone(), self.display_name.clone());
        Profile {
            id: self.id,
            username,
            display_name,
            created_at: self.created_at,
        }
    }

    /// Whether the user gets mail about assignments: only if the account is active and its address
    /// is verified.
    pub const fn wants_assignment_mail(&self) -> bool {
        self.is_active && self.email_verified && self.assignment_emails
    }

    /// The user's position in a sorted list.
    pub fn position(&self, order: UserOrderField) -> RowPosition {
        let key = match order {
            UserOrderField::CreatedAt => SortKey::Time(self.created_at),
            UserOrderField::Username => SortKey::Text(fold(&self.username)),
        };
        RowPosition { key, id: self.id }
    }
}

macro_rules! narrow {
    ($query:ident, $filter:expr) => {
        $query = $query.filter(users::deleted_at.is_null());
        if let Some(role) = $filter.role {
            $query = $query.filter(users::role.eq(role));
        }
        if let Some(is_active) = $filter.is_active {
            $query = $query.filter(users::is_active.eq(is_active));
        }
    };
}

macro_rules! order {
    ($query:ident, $list:expr, $window:expr) => {
        keyset!($query, $window, $list.descending, $list.order, users {
            UserOrderField::CreatedAt => created_at as Time,
            UserOrderField::Username => username_key as Text,
        });
    };
}

/// Recently read profiles.
#[derive(Default)]
pub struct ProfileCache(ShortTtlCache<Arc<Profile>>);

impl ProfileCache {
    /// The profiles of the users with these ids, at most one second old.
    pub async fn by_ids(
        &self,
        db: &Db,
        now: Timestamp,
        ids: &[Id],
    ) -> Result<HashMap<Id, Arc<Profile>>> {
        let since = CacheStamp::now(db, CommitSignal::Profiles, now);
        let mut found = self.0.get_many(since, ids);
        let missing: Vec<Id> = ids
            .iter()
            .copied()
            .filter(|id| !found.contains_key(id))
            .collect();
        if !missing.is_empty() {
            let rows = profiles(&mut db.conn_for_rows(missing.len()).await?, &missing).await?;
            let rows: Vec<_> = rows
                .into_iter()
                .map(|profile| (profile.id, Arc::new(profile)))
                .collect();
            self.0.insert(since, rows.iter().cloned());
            found.extend(rows);
        }
        Ok(found)
    }
}

/// The profiles of the users with these ids.
pub async fn profiles(conn: &mut Conn, ids: &[Id]) -> Result<Vec<Profile>> {
    let found = users::table.filter(any_id(users::id, ids));
    Ok(inline_if_few(ids.len(), async {
        on!(conn, |c| found.select(Profile::as_select()).load(c).await)
    })
    .await?)
}

/// The accounts of the users with these ids. The caller checks the permission.
pub async fn any_by_ids(conn: &mut Conn, ids: &[Id]) -> Result<Vec<User>> {
    let found = users::table.filter(any_id(users::id, ids));
    Ok(inline_if_few(ids.len(), async {
        on!(conn, |c| found.select(User::as_select()).load(c).await)
    })
    .await?)
}

/// Loads an account and locks its row until the transaction ends: concurrent updates wait, and none
/// is lost.
pub async fn lock(tx: &mut Conn, id: Id) -> Result<Option<User>> {
    Ok(select_locked!(
        tx,
        users::table.find(id).select(User::as_select()),
        Lock::Update
    )?
    .pop())
}

/// Like [`lock`], with all active ADMINs locked too. One statement locks the rows in the order of
/// their ids, so that two transactions cannot deadlock.
pub async fn lock_with_admins(tx: &mut Conn, id: Id) -> Result<(Option<User>, ActiveAdmins)> {
    let admins = users::role.eq(Role::Admin).and(users::is_active.eq(true));
    let rows = users::table
        .filter(users::id.eq(id).or(admins))
        .order_by(users::id);
    let rows: Vec<User> = select_locked!(tx, rows.select(User::as_select()), Lock::Update)?;
    let admins = rows
        .iter()
        .filter(|user| user.role == Role::Admin && user.is_active)
        .map(|user| user.id)
        .collect();
    Ok((
        rows.into_iter().find(|user| user.id == id),
        ActiveAdmins(admins),
    ))
}

/// Loads the account that a write of the viewer depends on. One statement locks both users against
/// changes until the transaction ends, in the order of their ids.
pub async fn lock_with_viewer(tx: &mut Conn, viewer: &Viewer, id: Id) -> Result<Option<User>> {
    let both = users::table
        .filter(users::id.eq(id).or(users::id.eq(viewer.id)))
        .order_by(users::id);
    let both: Vec<User> = select_locked!(tx, both.select(User::as_select()), Lock::Share)?;
    Ok(both.into_iter().find(|user| user.id == id))
}

/// The ids of the active ADMINs, whose rows are locked.
pub struct ActiveAdmins(Vec<Id>);

impl ActiveAdmins {
    /// Fails if there would be no active ADMIN without this one.
    pub fn require_another(&self, without: Id) -> Result<()> {
        if self.0.iter().any(|admin| *admin != without) {
            return Ok(());
        }
        let message = "The last active ADMIN cannot be demoted, disabled or deleted.";
        Err(Error::UserErrors(vec![UserError {
            field: None,
            code: UserErrorCode::Invalid,
            message: message.into(),
        }]))
    }
}

/// Finds a user by username, ignoring case.
pub async fn find_by_username(conn: &mut Conn, username: &str) -> Result<Option<User>> {
    if username.contains('\0') {
        return Ok(None);
    }
    Ok(on!(conn, |c| users::table
        .filter(users::username_key.eq(fold(username)))
        .filter(users::deleted_at.is_null())
        .select(User::as_select())
        .first(c)
        .await
        .optional())?)
}

/// Whether any account exists or has ever existed.
pub async fn exists_any(conn: &mut Conn) -> Result<bool> {
    Ok(on!(conn, |c| diesel::select(exists(
        users::table.select(users::id)
    ))
    .get_result(c)
    .await)?)
}

/// Whether an active ADMIN exists.
pub async fn has_admin(conn: &mut Conn) -> Result<bool> {
    Ok(on!(conn, |c| diesel::select(exists(
        users::table
            .filter(users::role.eq(Role::Admin))
            .filter(users::is_active.eq(true))
    ))
    .get_result(c)
    .await)?)
}

/// Finds a user by e-mail address, ignoring case.
pub async fn find_by_email(conn: &mut Conn, email: &str) -> Result<Option<User>> {
    Ok(on!(conn, |c| users::table
        .filter(users::email_key.eq(fold(email)))
        .select(User::as_select())
        .first(c)
        .await
        .optional())?)
}

/// One page of all users. ADMIN only: the guard on the GraphQL field checks it.
pub async fn page(conn: &mut Conn, list: &UserList) -> Result<Page<User>> {
    let found = search_ids(conn, &list.filter, Some(list)).await?;
    let rows = on!(conn, |c| {
        let mut query = users::table
            .select(User::as_select())
            .into_boxed::<Backend>();
        narrow!(query, list.filter);
        if let Some(ids) = &found {
            query = query.filter(any_id(users::id, ids));
        }
        order!(query, list, list.window);
        query.load(c).await
    })?;
    Ok(list.window.page(list.descending, rows, |user: &User| {
        user.position(list.order)
    }))
}

/// The accounts that a search matches: for a page at most its window, in the order of the list.
/// `None` without a search.
async fn search_ids(
    conn: &mut Conn,
    filter: &UserCriteria,
    list: Option<&UserList>,
) -> Result<Option<Vec<Id>>> {
    let Some(search) = filter.search.as_ref().filter(|search| !search.is_empty()) else {
        return Ok(None);
    };
    let mut candidates: Vec<Candidate> = on!(conn, |c| {
        let candidate = (users::id.nullable(), users::id, octet_length(users::search));
        let mut query = users::table
            .filter(WithinDeadline)
            .select(candidate)
            .into_boxed::<Backend>();
        narrow!(query, filter);
        match list {
            Some(list) => {
                let window = PageWindow {
                    limit: MAX_CANDIDATES,
                    detect_more: true,
                    ..list.window.clone()
                };
                order!(query, list, window);
                query.load(c).await
            }
            None => query.limit(MAX_CANDIDATES as i64 + 1).load(c).await,
        }
    })?;
    candidates
        .iter_mut()
        .for_each(|candidate| candidate.parent = None);
    let limit = list.map_or(usize::MAX, |list| list.window.rows());
    Ok(
        scan!(conn, users, TextScan::new(search, candidates, 1, limit))
            .into_values()
            .next()
            .or_else(|| Some(Vec::new())),
    )
}

/// Every account, ordered by creation time.
pub async fn all(conn: &mut Conn) -> Result<Vec<User>> {
    Ok(on!(conn, |c| users::table
        .filter(users::deleted_at.is_null())
        .order_by((users::created_at, users::id))
        .select(User::as_select())
        .load(c)
        .await)?)
}

/// The number of users in a filtered list.
pub async fn count(conn: &mut Conn, filter: &UserCriteria) -> Result<i64> {
    if let Some(found) = search_ids(conn, filter, None).await? {
        return Ok(found.len() as i64);
    }
    Ok(on!(conn, |c| {
        let mut query = users::table
            .select(diesel::dsl::count_star())
            .into_boxed::<Backend>();
        narrow!(query, filter);
        query.first(c).await
    })?)
}

/// Counters of a user's projects and tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserStatsRow {
    pub owned_projects: i64,
    pub assigned_tasks: i64,
    /// Assigned tasks that are DONE.
    pub completed_tasks: i64,
}

/// The counters of each of these users.
pub async fn stats(
    conn: &mut Conn,
    ids: &[Id],
) -> Result<std::collections::HashMap<Id, UserStatsRow>> {
    use super::task::TaskStatus;
    use diesel::dsl::count_star;
    let owned: Vec<(Id, i64)> = on!(conn, |c| projects::table
        .filter(any_id(projects::owner_id, ids))
        .group_by(projects::owner_id)
        .select((projects::owner_id, count_star()))
        .load(c)
        .await)?;
    let assigned: Vec<(Option<Id>, TaskStatus, i64)> = on!(conn, |c| tasks::table
        .filter(any_id(tasks::assignee_id, ids))
        .group_by((tasks::assignee_id, tasks::status))
        .select((tasks::assignee_id, tasks::status, count_star()))
        .load(c)
        .await)?;
    let mut stats: std::collections::HashMap<Id, UserStatsRow> = std::collections::HashMap::new();
    for (id, count) in owned {
        stats.entry(id).or_default().owned_projects = count;
    }
    for (id, status, count) in assigned {
        let Some(id) = id else { continue };
        let entry = stats.entry(id).or_default();
        entry.assigned_tasks += count;
        if status == TaskStatus::Done {
            entry.completed_tasks = count;
        }
    }
    Ok(stats)
}

/// An account to create. The password is already hashed.
#[derive(Clone, Debug)]
pub struct NewUser {
    pub email: Email,
    pub username: Username,
    /// The name shown to other users.
    pub display_name: DisplayName,
    /// Argon2 hash in PHC string format.
    pub password_hash: String,
    pub role: Role,
    /// Whether the address counts as verified. If not, a verification mail is queued.
    pub email_verified: bool,
}

/// Creates an account.
pub async fn create(db: &Db, now: Timestamp, new: &NewUser, origin: &ClientInfo) -> Result<User> {
    let user = User {
        id: Id::new(),
        email: new.email.to_string(),
        username: new.username.to_string(),
        display_name: new.display_name.to_string(),
        role: new.role,
        is_active: true,
        email_verified: new.email_verified,
        last_login_at: None,
        deleted_at: None,
        created_at: now,
        updated_at: now,
        assignment_emails: true,
    };
    db.transaction(async |tx| {
        check_unique(tx, &user, Some(&new.email), Some(&new.username)).await?;
        let inserted = on!(tx, |c| diesel::insert_into(users::table)
            .values((
                &user,
                UserKeys::of(&user),
                users::password_hash.eq(&new.password_hash)
            ))
            .execute(c)
            .await);
        map_unique_violation(inserted)?;
        if !user.email_verified {
            mail::queue(
                tx,
                now,
                mail::MailKind::VerifyEmail,
                &user.email,
                Some(user.id),
                "",
            )
            .await?;
        }
        audit::record(
            tx,
            now,
            audit::AuditKind::Registered,
            Some(user.id),
            None,
            origin,
        )
        .await?;
        Ok(user.clone())
    })
    .await
}

/// Changes to the viewer's own account; `None` leaves a field unchanged.
#[derive(Clone, Debug, Default)]
pub struct ViewerChanges {
    pub display_name: Option<DisplayName>,
    pub username: Option<Username>,
    /// A new address, which takes effect once its owner has verified it. The current address
    /// cancels a pending change.
    pub email: Option<Email>,
    /// Whether the user gets mail about assignments.
    pub assignment_emails: Option<bool>,
    /// Whether the viewer has just entered their password, which a new address requires.
    pub password_verified: bool,
}

/// Updates the viewer's own account. A new e-mail address takes effect only after verification by
/// mail. The old address gets a link that undoes the change.
pub async fn update_viewer(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    changes: &ViewerChanges,
    origin: &ClientInfo,
) -> Result<User> {
    db.transaction(async |tx| {
        let mut user = lock(tx, viewer.id)
            .await?
            .ok_or_else(Error::unauthenticated)?;
        session::lock(tx, now, viewer).await?;
        if let Some(name) = &changes.display_name {
            user.display_name = name.to_string();
        }
        if let Some(username) = changes
            .username
            .as_ref()
            .filter(|username| ***username != user.username)
        {
            if username.is_reserved() && fold(username) != fold(&user.username) {
                return Err(Error::UserErrors(vec![Username::reserved("username")]));
            }
            if fold(username) != fold(&user.username) {
                username_change::reserve(tx, now, user.id, &user.username).await?;
            }
            user.username = username.to_string();
            mail::queue_username_changed(tx, now, user.id, &user.email, &user.username).await?;
            audit::record(
                tx,
                now,
                audit::AuditKind::UsernameChanged,
                Some(user.id),
                Some(user.id),
                origin,
            )
            .await?;
        }
        user.assignment_emails = changes.assignment_emails.unwrap_or(user.assignment_emails);
        user.updated_at = now;
        let requested = User {
            email: changes.email.as_deref().unwrap_or(&user.email).to_owned(),
            ..user.clone()
        };
        check_unique(
            tx,
            &requested,
            changes.email.as_ref(),
            changes.username.as_ref(),
        )
        .await?;
        if changes.email.is_some() {
            request_email_change(
                tx,
                now,
                &user,
                &requested.email,
                changes.password_verified,
                origin,
            )
            .await?;
        }
        let updated = on!(tx, |c| diesel::update(users::table.find(user.id))
            .set((
                users::display_name.eq(&user.display_name),
                users::username.eq(&user.username),
                users::updated_at.eq(now),
                users::assignment_emails.eq(user.assignment_emails),
                UserKeys::of(&user),
            ))
            .execute(c)
            .await);
        map_unique_violation(updated)?;
        tx.signal_on_commit(CommitSignal::Profiles);
        Ok(user)
    })
    .await
}

/// Disables assignment mails for a user who followed the unsubscribe link in one.
pub async fn unsubscribe(db: &Db, now: Timestamp, id: Id, origin: &ClientInfo) -> Result<()> {
    db.transaction(async |tx| {
        let theirs = users::table.find(id);
        let theirs = theirs
            .filter(users::assignment_emails.eq(true))
            .filter(users::deleted_at.is_null());
        let changed = on!(tx, |c| diesel::update(theirs)
            .set(users::assignment_emails.eq(false))
            .execute(c)
            .await)?;
        // The link works without a login and for years, so only an actual change is recorded.
        if changed == 1 {
            audit::record(
                tx,
                now,
                audit::AuditKind::Unsubscribed,
                Some(id),
                None,
                origin,
            )
            .await?;
        }
        Ok(())
    })
    .await
}

/// Requests verification of another address, or cancels a pending change if the current one is
/// given. A different spelling is a different address: to a mail server it may be another mailbox.
async fn request_email_change(
    tx: &mut Conn,
    now: Timestamp,
    user: &User,
    requested: &str,
    password_verified: bool,
    origin: &ClientInfo,
) -> Result<()> {
    let who = Some(user.id);
    let canceled = cancel_email_change(tx, user).await?;
    if requested != user.email {
        if !password_verified {
            return Err(Error::UserErrors(vec![password_required()]));
        }
        email_change::request(tx, now, user, requested).await?;
        mail::queue(tx, now, mail::MailKind::VerifyEmail, requested, who, "").await?;
        return audit::record(
            tx,
            now,
            audit::AuditKind::EmailChangeRequested,
            who,
            who,
            origin,
        )
        .await;
    }
    if canceled {
        audit::record(
            tx,
            now,
            audit::AuditKind::EmailChangeCanceled,
            who,
            who,
            origin,
        )
        .await?;
    }
    Ok(())
}

/// The user error for an e-mail change without the password.
pub fn password_required() -> UserError {
    let message = "Enter your current password to change the e-mail address.";
    UserError::new("currentPassword", UserErrorCode::Blank, message)
}

/// Sets the account's verified address and cancels a pending change to another one. Returns whether
/// one was pending.
pub async fn set_email(tx: &mut Conn, now: Timestamp, user: &User, email: &str) -> Result<bool> {
    if email_change::is_reserved(tx, now, email, user.id).await? {
        return Err(Error::UserErrors(vec![already_taken("email")]));
    }
    let user = User {
        email: email.to_owned(),
        ..user.clone()
    };
    let updated = on!(tx, |c| diesel::update(users::table.find(user.id))
        .set((
            users::email.eq(&user.email),
            users::email_verified.eq(true),
            users::updated_at.eq(now),
            UserKeys::of(&user)
        ))
        .execute(c)
        .await);
    map_unique_violation(updated)?;
    cancel_email_change(tx, &user).await
}

/// Cancels a pending change to another address: a reader of that mailbox must not take the account
/// with an old link. Returns whether one was pending.
pub async fn cancel_email_change(tx: &mut Conn, user: &User) -> Result<bool> {
    let tokens = mail_tokens::table
        .filter(mail_tokens::user_id.eq(user.id))
        .filter(mail_tokens::purpose.eq(Purpose::VerifyEmail))
        .filter(mail_tokens::email.ne(&user.email));
    let tokens = on!(tx, |c| diesel::delete(tokens).execute(c).await)?;
    let queued = mails::table
        .filter(mails::user_id.eq(user.id))
        .filter(mails::kind.eq(mail::MailKind::VerifyEmail))
        .filter(mails::recipient.ne(&user.email));
    let queued = on!(tx, |c| diesel::delete(queued).execute(c).await)?;
    Ok(tokens + queued > 0)
}

/// Removes all personal data from an account's row. The anonymous row remains.
pub async fn anonymize(tx: &mut Conn, now: Timestamp, user: &User) -> Result<()> {
    // Not derived from the user's id: others know it and could take the resulting name first.
    let name = Id::new();
    let nobody = User {
        email: format!("{name}@deleted.invalid"),
        username: format!("deleted-{name}"),
        display_name: "Deleted user".to_owned(),
        role: Role::User,
        is_active: false,
        email_verified: false,
        last_login_at: None,
        updated_at: now,
        ..user.clone()
    };
    on!(tx, |c| diesel::update(users::table.find(user.id))
        .set((
            users::email.eq(&nobody.email),
            users::username.eq(&nobody.username),
            users::display_name.eq(&nobody.display_name),
            users::role.eq(nobody.role),
            users::is_active.eq(false),
            users::email_verified.eq(false),
            users::last_login_at.eq(None::<Timestamp>),
            users::password_hash.eq(""),
            users::deleted_at.eq(now),
            users::updated_at.eq(now),
            UserKeys {
                search: String::new(),
                ..UserKeys::of(&nobody)
            },
        ))
        .execute(c)
        .await)?;
    tx.signal_on_commit(CommitSignal::Profiles);
    Ok(())
}

/// Changes a user's role or whether they may sign in. It applies to their sessions from the next
/// request on.
pub async fn update(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    id: Id,
    role: Option<Role>,
    is_active: Option<bool>,
    origin: &ClientInfo,
) -> Result<User> {
    db.transaction(async |tx| {
        update_account(tx, now, Some(viewer), id, role, is_active, origin).await
    })
    .await
}

/// Like [`update`], from the command line and without a viewer.
pub async fn update_from_shell(
    db: &Db,
    now: Timestamp,
    id: Id,
    role: Option<Role>,
    is_active: Option<bool>,
) -> Result<User> {
    db.transaction(async |tx| {
        update_account(tx, now, None, id, role, is_active, &ClientInfo::default()).await
    })
    .await
}

async fn update_account(
    tx: &mut Conn,
    now: Timestamp,
    viewer: Option<&Viewer>,
    id: Id,
    role: Option<Role>,
    is_active: Option<bool>,
    origin: &ClientInfo,
) -> Result<User> {
    let (old, admins) = lock_with_admins(tx, id).await?;
    if let Some(viewer) = viewer {
        session::lock(tx, now, viewer)
            .await?
            .require(Action::ManageUsers, &())?;
    }
    let old = old
        .filter(|user| user.deleted_at.is_none())
        .ok_or_else(|| Error::not_found("id", "user"))?;
    let mut user = old.clone();
    user.role = role.unwrap_or(old.role);
    user.is_active = is_active.unwrap_or(old.is_active);
    if user == old {
        return Ok(old);
    }
    let was_admin = old.role == Role::Admin && old.is_active;
    if was_admin && !(user.role == Role::Admin && user.is_active) {
        admins.require_another(id)?;
    }
    let actor = viewer.map(|viewer| viewer.id);
    user.updated_at = now;
    on!(tx, |c| diesel::update(users::table.find(id))
        .set((
            users::role.eq(user.role),
            users::is_active.eq(user.is_active),
            users::updated_at.eq(now)
        ))
        .execute(c)
        .await)?;
    let event = NewEvent {
        owner_id: Some(id),
        ..NewEvent::new(EventKind::UserChanged, actor, now)
    };
    events::append(tx, &[event]).await?;
    if user.role != old.role {
        audit::record(
            tx,
            now,
            audit::AuditKind::RoleChanged,
            Some(id),
            actor,
            origin,
        )
        .await?;
    }
    if user.is_active != old.is_active {
        if !user.is_active {
            session::end(tx, now, id, None, None).await?;
        }
        let kind = if user.is_active {
            audit::AuditKind::Enabled
        } else {
            audit::AuditKind::Disabled
        };
        audit::record(tx, now, kind, Some(id), actor, origin).await?;
    }
    Ok(user)
}

/// Checks both unique names, so that one response reports both. In a race the unique indexes
/// decide.
async fn check_unique(
    tx: &mut Conn,
    user: &User,
    email: Option<&Email>,
    username: Option<&Username>,
) -> Result<()> {
    let others: Vec<(String, String)> = on!(tx, |c| users::table
        .filter(users::id.ne(user.id))
        .filter(
            users::email_key
                .eq(fold(&user.email))
                .or(users::username_key.eq(fold(&user.username)))
        )
        .select((users::email_key, users::username_key))
        .load(c)
        .await)?;
    let mut faults = Vec::new();
    let has = others.iter().any(|(key, _)| *key == fold(&user.email));
    if email.is_some()
        && (has || email_change::is_reserved(tx, user.updated_at, &user.email, user.id).await?)
    {
        faults.push(already_taken("email"));
    }
    // Read after the accounts: a username that is given up in between is found in one of the two.
    let has = others.iter().any(|(_, key)| *key == fold(&user.username));
    if username.is_some()
        && (has
            || username_change::is_reserved(tx, user.updated_at, &user.username, user.id).await?)
    {
        faults.push(already_taken("username"));
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Error::UserErrors(faults))
    }
}

fn map_unique_violation(written: QueryResult<usize>) -> Result<()> {
    match written {
        Err(error) if is_unique_violation(&error) => {
            let diesel::result::Error::DatabaseError(_, info) = &error else {
                return Err(error.into());
            };
            // PostgreSQL reports the constraint, SQLite the column. Both contain the column's name.
            let named = info.constraint_name().unwrap_or_else(|| info.message());
            Err(Error::UserErrors(vec![already_taken(
                if named.contains("username") {
                    "username"
                } else {
                    "email"
                },
            )]))
        }
        other => Ok(other.map(|_| ())?),
    }
}

fn already_taken(field: &'static str) -> UserError {
    let message = if field == "email" {
        "This e-mail address already has an account."
    } else {
        "This username is taken."
    };
    UserError::new(field, UserErrorCode::Taken, message)
}

/// Columns derived from others: unique keys, sort keys and search text.
#[derive(Insertable, AsChangeset)]
#[diesel(table_name = users)]
struct UserKeys {
    email_key: String,
    username_key: String,
    search: String,
}

impl UserKeys {
    fn of(user: &User) -> Self {
        Self {
            email_key: fold(&user.email),
            username_key: fold(&user.username),
            search: fold(&format!(
                "{}\n{}\n{}",
                user.username, user.display_name, user.email
            )),
        }
    }
}
