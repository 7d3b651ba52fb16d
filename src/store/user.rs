//! People with an account.

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

/// What everyone who is signed in may see of a person.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = users)]
pub struct Profile {
    /// Whose.
    pub id: Id,
    /// The handle that others find them by.
    pub username: String,
    /// The name that others read.
    pub display_name: String,
    /// When they signed up.
    pub created_at: Timestamp,
}

/// A person's account, without what proves that it is theirs.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = users)]
pub struct User {
    /// Its id.
    pub id: Id,
    /// Where mail goes to.
    pub email: String,
    /// The handle that others find them by.
    pub username: String,
    /// The name that others read.
    pub display_name: String,
    /// What they are on this server.
    pub role: Role,
    /// Whether they may sign in.
    pub is_active: bool,
    /// Whether they have shown that mail to the address reaches them.
    pub email_verified: bool,
    /// When they last logged in, of the sessions that are forgotten: the newest of the others tells it for itself.
    pub last_login_at: Option<Timestamp>,
    /// When the account was deleted; a nameless row is left.
    pub deleted_at: Option<Timestamp>,
    /// When they signed up.
    pub created_at: Timestamp,
    /// When the account last changed.
    pub updated_at: Timestamp,
    /// Whether assignments are mailed to them.
    pub assignment_emails: bool,
}

/// Fields to sort users by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, async_graphql::Enum)]
#[graphql(name = "UserOrderField")]
pub enum UserOrderField {
    /// Time of creation.
    CreatedAt,
    /// Username, ignoring case.
    Username,
}

/// Which users are asked for; members are ANDed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct UserCriteria {
    /// Words in username, display name or e-mail.
    pub search: Option<Search>,
    /// With this role.
    pub role: Option<Role>,
    /// Who may sign in, or may not.
    pub is_active: Option<bool>,
}

/// A list of users and the page of it that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UserList {
    /// Which of them.
    pub filter: UserCriteria,
    /// In which order.
    pub order: UserOrderField,
    /// The other way round.
    pub descending: bool,
    /// Which stretch.
    pub window: PageWindow,
}

impl User {
    /// What of it everyone may see.
    pub fn profile(&self) -> Profile {
        let (username, display_name) = (self.username.clone(), self.display_name.clone());
        Profile { id: self.id, username, display_name, created_at: self.created_at }
    }

    /// Whether assignments are mailed to them, at an address that is known to be theirs.
    pub const fn wants_assignment_mail(&self) -> bool {
        self.is_active && self.email_verified && self.assignment_emails
    }

    /// Its place in the order of a list.
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

/// The profiles that were looked at lately.
#[derive(Default)]
pub struct ProfileCache(ShortTtlCache<Arc<Profile>>);

impl ProfileCache {
    /// Those of the users with these ids, as they are or were a second ago.
    pub async fn by_ids(&self, db: &Db, now: Timestamp, ids: &[Id]) -> Result<HashMap<Id, Arc<Profile>>> {
        let since = CacheStamp::now(db, CommitSignal::Profiles, now);
        let mut found = self.0.get_many(since, ids);
        let missing: Vec<Id> = ids.iter().copied().filter(|id| !found.contains_key(id)).collect();
        if !missing.is_empty() {
            let rows = profiles(&mut db.conn_for_rows(missing.len()).await?, &missing).await?;
            let rows: Vec<_> = rows.into_iter().map(|profile| (profile.id, Arc::new(profile))).collect();
            self.0.insert(since, rows.iter().cloned());
            found.extend(rows);
        }
        Ok(found)
    }
}

/// The profiles of the users with these ids.
pub async fn profiles(conn: &mut Conn, ids: &[Id]) -> Result<Vec<Profile>> {
    let found = users::table.filter(any_id(users::id, ids));
    Ok(inline_if_few(ids.len(), async { on!(conn, |c| found.select(Profile::as_select()).load(c).await) }).await?)
}

/// The accounts of the users with these ids, for those who have the right to them.
pub async fn any_by_ids(conn: &mut Conn, ids: &[Id]) -> Result<Vec<User>> {
    let found = users::table.filter(any_id(users::id, ids));
    Ok(inline_if_few(ids.len(), async { on!(conn, |c| found.select(User::as_select()).load(c).await) }).await?)
}

/// The account with this id, held until the transaction ends: a change that comes meanwhile waits, and none is lost.
pub async fn lock(tx: &mut Conn, id: Id) -> Result<Option<User>> {
    Ok(select_locked!(tx, users::table.find(id).select(User::as_select()), Lock::Update)?.pop())
}

/// The same with the active ADMINs, who are held too. All at once, so that of two who hold the same one waits for the
/// other and not each for the other.
pub async fn lock_with_admins(tx: &mut Conn, id: Id) -> Result<(Option<User>, ActiveAdmins)> {
    let admins = users::role.eq(Role::Admin).and(users::is_active.eq(true));
    let rows = users::table.filter(users::id.eq(id).or(admins)).order_by(users::id);
    let rows: Vec<User> = select_locked!(tx, rows.select(User::as_select()), Lock::Update)?;
    let admins = rows.iter().filter(|user| user.role == Role::Admin && user.is_active).map(|user| user.id).collect();
    Ok((rows.into_iter().find(|user| user.id == id), ActiveAdmins(admins)))
}

/// The account with this id, about which a write of the viewer is decided: both are locked against changes until the
/// transaction ends, at once and in the order of their ids.
pub async fn lock_with_viewer(tx: &mut Conn, viewer: &Viewer, id: Id) -> Result<Option<User>> {
    let both = users::table.filter(users::id.eq(id).or(users::id.eq(viewer.id))).order_by(users::id);
    let both: Vec<User> = select_locked!(tx, both.select(User::as_select()), Lock::Share)?;
    Ok(both.into_iter().find(|user| user.id == id))
}

/// The active ADMINs.
pub struct ActiveAdmins(Vec<Id>);

impl ActiveAdmins {
    /// Refuses when there would be none without this one.
    pub fn require_another(&self, without: Id) -> Result<()> {
        if self.0.iter().any(|admin| *admin != without) {
            return Ok(());
        }
        let message = "The last active ADMIN cannot be demoted, disabled or deleted.";
        Err(Error::UserErrors(vec![UserError { field: None, code: UserErrorCode::Invalid, message: message.into() }]))
    }
}

/// The user with that handle, without regard to case.
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

/// Whether there is an account, or there was one.
pub async fn exists_any(conn: &mut Conn) -> Result<bool> {
    Ok(on!(conn, |c| diesel::select(exists(users::table.select(users::id))).get_result(c).await)?)
}

/// Whether anybody may manage the others.
pub async fn has_admin(conn: &mut Conn) -> Result<bool> {
    Ok(on!(conn, |c| diesel::select(exists(
        users::table.filter(users::role.eq(Role::Admin)).filter(users::is_active.eq(true))
    ))
    .get_result(c)
    .await)?)
}

/// The user with that e-mail address.
pub async fn find_by_email(conn: &mut Conn, email: &str) -> Result<Option<User>> {
    Ok(on!(conn, |c| users::table
        .filter(users::email_key.eq(fold(email)))
        .select(User::as_select())
        .first(c)
        .await
        .optional())?)
}

/// One page of all users. Only ADMIN gets here: the guard is on the field.
pub async fn page(conn: &mut Conn, list: &UserList) -> Result<Page<User>> {
    let found = search_ids(conn, &list.filter, Some(list)).await?;
    let rows = on!(conn, |c| {
        let mut query = users::table.select(User::as_select()).into_boxed::<Backend>();
        narrow!(query, list.filter);
        if let Some(ids) = &found {
            query = query.filter(any_id(users::id, ids));
        }
        order!(query, list, list.window);
        query.load(c).await
    })?;
    Ok(list.window.page(list.descending, rows, |user: &User| user.position(list.order)))
}

/// The accounts that a search finds; for a page no more than its window has, in the order of the list. None when nothing is
/// searched for.
async fn search_ids(conn: &mut Conn, filter: &UserCriteria, list: Option<&UserList>) -> Result<Option<Vec<Id>>> {
    let Some(search) = filter.search.as_ref().filter(|search| !search.is_empty()) else { return Ok(None) };
    let mut candidates: Vec<Candidate> = on!(conn, |c| {
        let candidate = (users::id.nullable(), users::id, octet_length(users::search));
        let mut query = users::table.filter(WithinDeadline).select(candidate).into_boxed::<Backend>();
        narrow!(query, filter);
        match list {
            Some(list) => {
                let window = PageWindow { limit: MAX_CANDIDATES, detect_more: true, ..list.window.clone() };
                order!(query, list, window);
                query.load(c).await
            }
            None => query.limit(MAX_CANDIDATES as i64 + 1).load(c).await,
        }
    })?;
    candidates.iter_mut().for_each(|candidate| candidate.parent = None);
    let limit = list.map_or(usize::MAX, |list| list.window.rows());
    Ok(scan!(conn, users, TextScan::new(search, candidates, 1, limit))
        .into_values()
        .next()
        .or_else(|| Some(Vec::new())))
}

/// Every account, in the order of signing up.
pub async fn all(conn: &mut Conn) -> Result<Vec<User>> {
    Ok(on!(conn, |c| users::table
        .filter(users::deleted_at.is_null())
        .order_by((users::created_at, users::id))
        .select(User::as_select())
        .load(c)
        .await)?)
}

/// How many users the same list has on all its pages.
pub async fn count(conn: &mut Conn, filter: &UserCriteria) -> Result<i64> {
    if let Some(found) = search_ids(conn, filter, None).await? {
        return Ok(found.len() as i64);
    }
    Ok(on!(conn, |c| {
        let mut query = users::table.select(diesel::dsl::count_star()).into_boxed::<Backend>();
        narrow!(query, filter);
        query.first(c).await
    })?)
}

/// What a person owns and has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserStatsRow {
    /// Projects they own.
    pub owned_projects: i64,
    /// Tasks assigned to them.
    pub assigned_tasks: i64,
    /// Tasks assigned to them that are DONE.
    pub completed_tasks: i64,
}

/// The statistics of each of these users.
pub async fn stats(conn: &mut Conn, ids: &[Id]) -> Result<std::collections::HashMap<Id, UserStatsRow>> {
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

/// An account to be made; the password is hashed already.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// Where mail goes to.
    pub email: Email,
    /// The handle.
    pub username: Username,
    /// The name that others read.
    pub display_name: DisplayName,
    /// argon2, in PHC form.
    pub password_hash: String,
    /// What they are on this server.
    pub role: Role,
    /// Whether somebody vouches for the address; if not, its owner is asked by mail.
    pub email_verified: bool,
}

/// Makes an account.
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
            .values((&user, UserKeys::of(&user), users::password_hash.eq(&new.password_hash)))
            .execute(c)
            .await);
        map_unique_violation(inserted)?;
        if !user.email_verified {
            mail::queue(tx, now, mail::MailKind::VerifyEmail, &user.email, Some(user.id), "").await?;
        }
        audit::record(tx, now, audit::AuditKind::Registered, Some(user.id), None, origin).await?;
        Ok(user.clone())
    })
    .await
}

/// What an update of one's own account changes; `None` is left alone.
#[derive(Clone, Debug, Default)]
pub struct ViewerChanges {
    /// A new name to show.
    pub display_name: Option<DisplayName>,
    /// A new handle.
    pub username: Option<Username>,
    /// A new address, which holds once its owner has verified it; the present one calls a change off.
    pub email: Option<Email>,
    /// Whether assignments are mailed.
    pub assignment_emails: Option<bool>,
    /// Whether the viewer has just given their password, without which no other address is taken.
    pub password_verified: bool,
}

/// Changes the viewer's own account. A new address is asked to be verified by mail, and holds only then; the old one is
/// sent a link that takes the change back.
pub async fn update_viewer(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    changes: &ViewerChanges,
    origin: &ClientInfo,
) -> Result<User> {
    db.transaction(async |tx| {
        let mut user = lock(tx, viewer.id).await?.ok_or_else(Error::unauthenticated)?;
        session::lock(tx, now, viewer).await?;
        if let Some(name) = &changes.display_name {
            user.display_name = name.to_string();
        }
        if let Some(username) = changes.username.as_ref().filter(|username| ***username != user.username) {
            if username.is_reserved() && fold(username) != fold(&user.username) {
                return Err(Error::UserErrors(vec![Username::reserved("username")]));
            }
            if fold(username) != fold(&user.username) {
                username_change::reserve(tx, now, user.id, &user.username).await?;
            }
            user.username = username.to_string();
            mail::queue_username_changed(tx, now, user.id, &user.email, &user.username).await?;
            audit::record(tx, now, audit::AuditKind::UsernameChanged, Some(user.id), Some(user.id), origin).await?;
        }
        user.assignment_emails = changes.assignment_emails.unwrap_or(user.assignment_emails);
        user.updated_at = now;
        let requested = User { email: changes.email.as_deref().unwrap_or(&user.email).to_owned(), ..user.clone() };
        check_unique(tx, &requested, changes.email.as_ref(), changes.username.as_ref()).await?;
        if changes.email.is_some() {
            request_email_change(tx, now, &user, &requested.email, changes.password_verified, origin).await?;
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

/// Ends assignment mails to a person, who followed the link in one.
pub async fn unsubscribe(db: &Db, now: Timestamp, id: Id, origin: &ClientInfo) -> Result<()> {
    db.transaction(async |tx| {
        let theirs = users::table.find(id);
        let theirs = theirs.filter(users::assignment_emails.eq(true)).filter(users::deleted_at.is_null());
        let changed = on!(tx, |c| diesel::update(theirs).set(users::assignment_emails.eq(false)).execute(c).await)?;
        // The link works without a login and for years. Only what it changes is recorded.
        if changed == 1 {
            audit::record(tx, now, audit::AuditKind::Unsubscribed, Some(id), None, origin).await?;
        }
        Ok(())
    })
    .await
}

/// Has another address verified, or calls a pending change off for the present one. Another spelling is another address:
/// to a mail server it may be another mailbox.
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
        return audit::record(tx, now, audit::AuditKind::EmailChangeRequested, who, who, origin).await;
    }
    if canceled {
        audit::record(tx, now, audit::AuditKind::EmailChangeCanceled, who, who, origin).await?;
    }
    Ok(())
}

/// The fault of a change of address without the password.
pub fn password_required() -> UserError {
    let message = "Give your current password to change the e-mail address.";
    UserError::new("currentPassword", UserErrorCode::Blank, message)
}

/// Sets an account's address, which its owner has verified, and calls a change to another one off; whether one was
/// pending.
pub async fn set_email(tx: &mut Conn, now: Timestamp, user: &User, email: &str) -> Result<bool> {
    if email_change::is_reserved(tx, now, email, user.id).await? {
        return Err(Error::UserErrors(vec![already_taken("email")]));
    }
    let user = User { email: email.to_owned(), ..user.clone() };
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

/// Calls off what asks for another address than the account's: whoever reads it must not take the account by an old link.
/// Whether anything did.
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

/// Takes everything personal out of an account's row, which stays behind nameless.
pub async fn anonymize(tx: &mut Conn, now: Timestamp, user: &User) -> Result<()> {
    // Not of the user's own id, which others know, and could make names of that are taken then.
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
            UserKeys { search: String::new(), ..UserKeys::of(&nobody) },
        ))
        .execute(c)
        .await)?;
    tx.signal_on_commit(CommitSignal::Profiles);
    Ok(())
}

/// Changes a user's role or whether they may sign in; their sessions feel it with the next request.
pub async fn update(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    id: Id,
    role: Option<Role>,
    is_active: Option<bool>,
    origin: &ClientInfo,
) -> Result<User> {
    db.transaction(async |tx| update_account(tx, now, Some(viewer), id, role, is_active, origin).await).await
}

/// The same by whoever runs the server.
pub async fn update_from_shell(
    db: &Db,
    now: Timestamp,
    id: Id,
    role: Option<Role>,
    is_active: Option<bool>,
) -> Result<User> {
    db.transaction(async |tx| update_account(tx, now, None, id, role, is_active, &ClientInfo::default()).await).await
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
        session::lock(tx, now, viewer).await?.require(Action::ManageUsers, &())?;
    }
    let old = old.filter(|user| user.deleted_at.is_none()).ok_or_else(|| Error::not_found("id", "user"))?;
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
        .set((users::role.eq(user.role), users::is_active.eq(user.is_active), users::updated_at.eq(now)))
        .execute(c)
        .await)?;
    let event = NewEvent { owner_id: Some(id), ..NewEvent::new(EventKind::UserChanged, actor, now) };
    events::append(tx, &[event]).await?;
    if user.role != old.role {
        audit::record(tx, now, audit::AuditKind::RoleChanged, Some(id), actor, origin).await?;
    }
    if user.is_active != old.is_active {
        if !user.is_active {
            session::end(tx, now, id, None, None).await?;
        }
        let kind = if user.is_active { audit::AuditKind::Enabled } else { audit::AuditKind::Disabled };
        audit::record(tx, now, kind, Some(id), actor, origin).await?;
    }
    Ok(user)
}

/// Which of the two unique names are taken, both told at once. The unique indexes decide in a race.
async fn check_unique(tx: &mut Conn, user: &User, email: Option<&Email>, username: Option<&Username>) -> Result<()> {
    let others: Vec<(String, String)> = on!(tx, |c| users::table
        .filter(users::id.ne(user.id))
        .filter(users::email_key.eq(fold(&user.email)).or(users::username_key.eq(fold(&user.username))))
        .select((users::email_key, users::username_key))
        .load(c)
        .await)?;
    let mut faults = Vec::new();
    let has = others.iter().any(|(key, _)| *key == fold(&user.email));
    if email.is_some() && (has || email_change::is_reserved(tx, user.updated_at, &user.email, user.id).await?) {
        faults.push(already_taken("email"));
    }
    // After the accounts: a name that is given up meanwhile is seen there or here.
    let has = others.iter().any(|(_, key)| *key == fold(&user.username));
    if username.is_some() && (has || username_change::is_reserved(tx, user.updated_at, &user.username, user.id).await?)
    {
        faults.push(already_taken("username"));
    }
    if faults.is_empty() { Ok(()) } else { Err(Error::UserErrors(faults)) }
}

fn map_unique_violation(written: QueryResult<usize>) -> Result<()> {
    match written {
        Err(error) if is_unique_violation(&error) => {
            let diesel::result::Error::DatabaseError(_, info) = &error else { return Err(error.into()) };
            // PostgreSQL names the constraint, SQLite the column; both have the column's name in them.
            let named = info.constraint_name().unwrap_or_else(|| info.message());
            Err(Error::UserErrors(vec![already_taken(if named.contains("username") { "username" } else { "email" })]))
        }
        other => Ok(other.map(|_| ())?),
    }
}

fn already_taken(field: &'static str) -> UserError {
    let message =
        if field == "email" { "This e-mail address has an account already." } else { "This username is taken." };
    UserError::new(field, UserErrorCode::Taken, message)
}

/// The columns that are made from others: what is unique, searched and ordered by.
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
            search: fold(&format!("{}\n{}\n{}", user.username, user.display_name, user.email)),
        }
    }
}
