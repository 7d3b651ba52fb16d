//! Users.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object, Result, SimpleObject};

use super::connection::{Connection, Paging, Tag, Total};
use super::json::Encoded;
use super::level::{ByLevel, Level, Selected, Step};
use super::node::{self, Noun};
use super::notification::{self, NotificationConnection};
use super::payload::{UserError, write};
use super::project::{self, Project, ProjectFilter, ProjectOrder};
use super::session::{self, AuditEntry, Session};
use super::task::{self, Task, TaskFilter, TaskOrder};
use super::{Caller, guard};
use crate::access::{Account, Action, Role};
use crate::error::{Error, Fault, FaultCode};
use crate::own;
use crate::store::task_list::{Of, Scope};
use crate::store::user::{self as store, Changes, Filter, List, OrderField, Profile};
use crate::store::value::{DisplayName, Email, Faults, Search, Username};
use crate::time::Timestamp;

/// The direction of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Enum)]
pub enum OrderDirection {
    /// Smallest, oldest or first in the alphabet first.
    Asc,
    /// Largest, newest or last in the alphabet first.
    Desc,
}

/// A person with an account. Everyone who is signed in sees username and display name; the rest is for the person
/// themselves and ADMIN.
#[derive(Clone)]
pub struct User {
    profile: Arc<Profile>,
    /// Where the account was read as well.
    account: Option<Arc<store::User>>,
}

impl From<Arc<Profile>> for User {
    fn from(profile: Arc<Profile>) -> Self {
        Self { profile, account: None }
    }
}

impl From<Arc<store::User>> for User {
    fn from(account: Arc<store::User>) -> Self {
        Self { profile: Arc::new(account.profile()), account: Some(account) }
    }
}

impl From<store::User> for User {
    fn from(account: store::User) -> Self {
        Arc::new(account).into()
    }
}

impl User {
    /// What is not for everyone; behind the guards.
    async fn account(&self, ctx: &Context<'_>) -> Result<Arc<store::User>> {
        if let Some(account) = &self.account {
            return Ok(Arc::clone(account));
        }
        let account = Caller::of(ctx).loaders()?.account(self.profile.id).await?;
        Ok(account.ok_or_else(|| Error::internal("a profile without its account"))?)
    }
}

/// A person with an account. Everyone who is signed in sees id, username, display name and when they signed up; anything
/// else is for the person themselves and ADMIN: for others it is null, with a FORBIDDEN error at its path.
#[Object]
impl User {
    /// The object's global id; opaque, and it never changes.
    pub async fn id(&self) -> ID {
        node::encode(Noun::User, self.profile.id)
    }

    /// The handle that others find them by: 3–50 of `A–Z a–z 0–9 _ -`, unique without regard to case.
    async fn username(&self) -> &str {
        &self.profile.username
    }

    /// The name that others read.
    async fn display_name(&self) -> &str {
        &self.profile.display_name
    }

    /// When they signed up.
    async fn created_at(&self) -> Timestamp {
        self.profile.created_at
    }

    /// Where mail goes to. Oneself and ADMIN.
    #[graphql(guard = "guard::May(Action::ReadAccount, Account(self.profile.id))")]
    async fn email(&self, ctx: &Context<'_>) -> Result<Option<String>> {
        Ok(Some(self.account(ctx).await?.email.clone()))
    }

    /// What they are on this server. Oneself and ADMIN.
    #[graphql(guard = "guard::May(Action::ReadAccount, Account(self.profile.id))")]
    async fn role(&self, ctx: &Context<'_>) -> Result<Option<Role>> {
        Ok(Some(self.account(ctx).await?.role))
    }

    /// Whether they may sign in. Oneself and ADMIN.
    #[graphql(guard = "guard::May(Action::ReadAccount, Account(self.profile.id))")]
    async fn is_active(&self, ctx: &Context<'_>) -> Result<Option<bool>> {
        Ok(Some(self.account(ctx).await?.is_active))
    }

    /// Whether they have shown that mail to the address reaches them. Oneself and ADMIN.
    #[graphql(guard = "guard::May(Action::ReadAccount, Account(self.profile.id))")]
    async fn email_verified(&self, ctx: &Context<'_>) -> Result<Option<bool>> {
        Ok(Some(self.account(ctx).await?.email_verified))
    }

    /// Whether assignments are mailed to them, if their address is verified. Oneself and ADMIN.
    #[graphql(guard = "guard::May(Action::ReadAccount, Account(self.profile.id))")]
    async fn assignment_emails(&self, ctx: &Context<'_>) -> Result<Option<bool>> {
        Ok(Some(self.account(ctx).await?.assignment_emails))
    }

    /// When they last logged in. Oneself and ADMIN.
    #[graphql(guard = "guard::May(Action::ReadAccount, Account(self.profile.id))")]
    async fn last_login_at(&self, ctx: &Context<'_>) -> Result<Option<Timestamp>> {
        let told = Caller::of(ctx).loaders()?.last_login(self.profile.id).await?;
        Ok(told.max(self.account(ctx).await?.last_login_at))
    }

    /// What they own and have to do. Oneself and ADMIN.
    #[graphql(guard = "guard::May(Action::ReadAccount, Account(self.profile.id))")]
    async fn stats(&self, ctx: &Context<'_>) -> Result<Option<UserStats>> {
        const DAY: u64 = 86_400;
        let caller = Caller::of(ctx);
        let stats = caller.loaders()?.user_stats(self.profile.id).await?;
        let age = caller.app().clock.now().since(self.profile.created_at);
        Ok(Some(UserStats {
            owned_project_count: stats.owned_projects,
            assigned_task_count: stats.assigned_tasks,
            completed_task_count: stats.completed_tasks,
            account_age_days: age.as_secs() / DAY,
        }))
    }

    /// Their sessions that have not ended, newest first. Oneself only.
    #[graphql(guard = "guard::May(Action::ReadSessions, Account(self.profile.id))")]
    async fn sessions(&self, ctx: &Context<'_>) -> Result<Option<Vec<Session>>> {
        let caller = Caller::of(ctx);
        let sessions = caller.members(caller.loaders()?.sessions(self.profile.id).await?)?;
        Ok(Some(sessions.into_iter().map(Session).collect()))
    }

    /// What happened to their account, newest first. Oneself and ADMIN.
    #[graphql(guard = "guard::May(Action::ReadAccount, Account(self.profile.id))")]
    async fn security_log(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "So many from the start: 1–100, default 20.")] first: Option<i32>,
        #[graphql(desc = "Only what comes after this cursor.")] after: Option<String>,
        #[graphql(desc = "So many from the end: 1–100; not together with `first`.")] last: Option<i32>,
        #[graphql(desc = "Only what comes before this cursor.")] before: Option<String>,
    ) -> Result<Option<Connection<AuditEntry>>> {
        Ok(Some(session::log(ctx, Some(self.profile.id), Paging::new(first, after, last, before)).await?))
    }

    /// What happened that is theirs to know, newest first: what was assigned to them, comments and changes of status on
    /// tasks of theirs, where they were mentioned. Oneself only.
    #[graphql(guard = "guard::May(Action::ReadNotifications, Account(self.profile.id))")]
    async fn notifications(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "So many from the start: 1–100, default 20.")] first: Option<i32>,
        #[graphql(desc = "Only what comes after this cursor.")] after: Option<String>,
        #[graphql(desc = "So many from the end: 1–100; not together with `first`.")] last: Option<i32>,
        #[graphql(desc = "Only what comes before this cursor.")] before: Option<String>,
        #[graphql(desc = "Only those that are not marked as read.")] unread_only: Option<bool>,
    ) -> Result<Option<NotificationConnection>> {
        let paging = Paging::new(first, after, last, before);
        Ok(Some(notification::list(ctx, self.profile.id, paging, unread_only.unwrap_or_default()).await?))
    }

    /// How many of their notifications are not marked as read. Oneself only.
    #[graphql(guard = "guard::May(Action::ReadNotifications, Account(self.profile.id))")]
    async fn unread_count(&self, ctx: &Context<'_>) -> Result<Option<i64>> {
        Ok(Some(notification::unread(ctx, self.profile.id).await?))
    }

    /// The projects they own, by default oldest first. Oneself and ADMIN.
    #[graphql(guard = "guard::May(Action::ReadAccount, Account(self.profile.id))")]
    #[expect(clippy::too_many_arguments, reason = "Relay's paging arguments")]
    async fn projects(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "So many from the start: 1–100, default 20.")] first: Option<i32>,
        #[graphql(desc = "Only what comes after this cursor.")] after: Option<String>,
        #[graphql(desc = "So many from the end: 1–100; not together with `first`.")] last: Option<i32>,
        #[graphql(desc = "Only what comes before this cursor.")] before: Option<String>,
        #[graphql(desc = "Only these.")] filter: Option<ProjectFilter>,
        #[graphql(desc = "In this order.")] order_by: Option<ProjectOrder>,
    ) -> Result<Option<ByLevel<Connection<Project>>>> {
        let field = Selected::of(ctx);
        let paging = Paging::new(first, after, last, before).shown_by(&field);
        let (tag, list) = project::list(&field, "User.projects", Some(self.profile.id), &paging, filter, order_by)?;
        let page = Caller::of(ctx).loaders()?.project_page(self.profile.id, Arc::clone(&list)).await?;
        Ok(Some(ByLevel(project::connection(tag, Total::ProjectsOf(self.profile.id, Arc::clone(&list)), page, &list))))
    }

    /// The tasks assigned to them, by default oldest first. Oneself and ADMIN.
    #[graphql(guard = "guard::May(Action::ReadAccount, Account(self.profile.id))")]
    #[expect(clippy::too_many_arguments, reason = "Relay's paging arguments")]
    async fn assigned_tasks(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "So many from the start: 1–100, default 20.")] first: Option<i32>,
        #[graphql(desc = "Only what comes after this cursor.")] after: Option<String>,
        #[graphql(desc = "So many from the end: 1–100; not together with `first`.")] last: Option<i32>,
        #[graphql(desc = "Only what comes before this cursor.")] before: Option<String>,
        #[graphql(desc = "Only these.")] filter: Option<TaskFilter>,
        #[graphql(desc = "In this order.")] order_by: Option<TaskOrder>,
    ) -> Result<Option<ByLevel<Connection<Task>>>> {
        let field = Selected::of(ctx);
        let paging = Paging::new(first, after, last, before).shown_by(&field);
        let columns = task::columns_of_nodes(&field);
        // Whoever may read the account may see what is assigned to it.
        let scopes = vec![Scope::Everything];
        let (tag, list) =
            task::list("User.assignedTasks", Some(self.profile.id), scopes, &paging, filter, order_by, columns)?;
        let page = Caller::of(ctx).loaders()?.task_page(Of::Assignee, self.profile.id, Arc::clone(&list)).await?;
        Ok(Some(ByLevel(task::connection(
            tag,
            Total::TasksOf(Of::Assignee, self.profile.id, Arc::clone(&list)),
            page,
            &list,
        ))))
    }
}

/// What everyone may see; the rest has guards.
impl Level for User {
    const IS_NODE: bool = true;

    fn step<'a>(field: &Selected<'a>) -> Option<Step<'a, Self>> {
        Some(match field.name() {
            "id" => own!(|user| Encoded(&node::bytes(Noun::User, user.profile.id))),
            "username" => own!(|user| user.profile.username),
            "displayName" => own!(|user| user.profile.display_name),
            "createdAt" => own!(|user| user.profile.created_at),
            _ => return None,
        })
    }
}

/// What a person owns and has to do.
#[derive(SimpleObject)]
pub struct UserStats {
    /// Projects they own.
    owned_project_count: i64,
    /// Tasks assigned to them, in any status.
    assigned_task_count: i64,
    /// Tasks assigned to them that are DONE.
    completed_task_count: i64,
    /// Whole days since they signed up.
    account_age_days: u64,
}

/// Which users are asked for; members are ANDed.
#[derive(InputObject)]
pub struct UserFilter {
    /// Words in username, display name or e-mail, without regard to case; all of them must occur. At most 10 words and
    /// 200 characters; `%` and `_` mean themselves.
    search: Option<String>,
    /// With this role.
    role: Option<Role>,
    /// Who may sign in (true), or may not (false).
    is_active: Option<bool>,
}

/// The order of a list of users.
#[derive(InputObject)]
pub struct UserOrder {
    /// What to order by.
    field: OrderField,
    /// Which way round.
    #[graphql(default_with = "OrderDirection::Asc")]
    direction: OrderDirection,
}

/// The queries of users.
#[derive(Default)]
pub struct UserQuery;

#[Object]
impl UserQuery {
    /// The signed-in user.
    #[graphql(guard = "guard::signed_in")]
    async fn viewer(&self, ctx: &Context<'_>) -> Result<User> {
        let caller = Caller::of(ctx);
        let account = caller.loaders()?.account(caller.viewer()?.id).await?;
        Ok(account.ok_or_else(Error::unauthenticated)?.into())
    }

    /// The user with that handle, without regard to case, to assign a task to; null if there is none.
    #[graphql(guard = "guard::signed_in")]
    async fn user(&self, ctx: &Context<'_>, #[graphql(desc = "The handle.")] username: String) -> Result<Option<User>> {
        let mut conn = Caller::of(ctx).app().db.conn().await?;
        Ok(store::find_by_username(&mut conn, &username).await?.map(User::from))
    }

    /// All users, by default in the order of signing up. ADMIN only.
    #[graphql(guard = "guard::May(Action::ManageUsers, ())")]
    #[expect(clippy::too_many_arguments, reason = "Relay's paging arguments")]
    async fn users(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "So many from the start: 1–100, default 20.")] first: Option<i32>,
        #[graphql(desc = "Only what comes after this cursor.")] after: Option<String>,
        #[graphql(desc = "So many from the end: 1–100; not together with `first`.")] last: Option<i32>,
        #[graphql(desc = "Only what comes before this cursor.")] before: Option<String>,
        #[graphql(desc = "Only these.")] filter: Option<UserFilter>,
        #[graphql(desc = "In this order.")] order_by: Option<UserOrder>,
    ) -> Result<Connection<User>> {
        let order = order_by.as_ref().map_or(OrderField::CreatedAt, |order| order.field);
        let descending = order_by.is_some_and(|order| order.direction == OrderDirection::Desc);
        let tag = Tag::new("users", None, &order, descending);
        let filter = match filter {
            None => Filter::default(),
            Some(UserFilter { search, role, is_active }) => {
                Filter { search: search.as_deref().map(Search::parse).transpose()?, role, is_active }
            }
        };
        let window = Paging::new(first, after, last, before).window(tag)?;
        let list = Arc::new(List { filter, order, descending, window });
        let page = store::page(&mut Caller::of(ctx).app().db.conn().await?, &list).await?;
        let total = Total::Users(Arc::clone(&list));
        Ok(Connection::new(tag, total, page, |user| user.position(order), User::from))
    }
}

/// What to change of one's own account. A field that is left out stays as it is.
#[derive(InputObject)]
pub struct UpdateViewerInput {
    /// A new name to show: 1–100 characters, without control, direction and invisible ones.
    display_name: MaybeUndefined<String>,
    /// A new handle: 3–50 of `A–Z a–z 0–9 _ -`. Names that pass for the server's own, such as `admin`, are INVALID.
    username: MaybeUndefined<String>,
    /// A new address; needs `currentPassword`. It holds once the link in a mail to it was followed; until then the old
    /// one stays. The old one is mailed at once, with a link that takes the change back for three days, also after it
    /// was confirmed; that ends every session and makes the password unusable. The present address calls off a change
    /// and needs no password; a new password calls it off too. Asking is limited like logins.
    email: MaybeUndefined<String>,
    /// Whether assignments are mailed. The link in such a mail sets it to false.
    assignment_emails: MaybeUndefined<bool>,
    /// The password now, to change `email`; anything else ignores it. After 5 wrong ones the session gets LOCKED_OUT for
    /// 30 minutes, as in `changePassword`.
    #[graphql(secret)]
    current_password: Option<String>,
}

/// What came of `updateViewer`.
#[derive(SimpleObject)]
pub struct UpdateViewerPayload {
    /// The account as it is now; null if nothing was written.
    viewer: Option<User>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// What to change of a user. A field that is left out stays as it is.
#[derive(InputObject)]
pub struct UpdateUserInput {
    /// Whom.
    id: ID,
    /// A new role.
    role: MaybeUndefined<Role>,
    /// Whether they may sign in; false ends their sessions.
    is_active: MaybeUndefined<bool>,
}

/// What came of `updateUser`.
#[derive(SimpleObject)]
pub struct UpdateUserPayload {
    /// The user as they are now; null if nothing was written.
    user: Option<User>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// The value of a field that may be left out but not cleared.
pub fn required<T>(faults: &mut Faults, field: &'static str, value: MaybeUndefined<T>) -> Option<T> {
    match value {
        MaybeUndefined::Undefined => None,
        MaybeUndefined::Value(value) => Some(value),
        MaybeUndefined::Null => {
            faults.push(Fault::new(field, FaultCode::Blank, "Cannot be cleared."));
            None
        }
    }
}

/// The mutations of users.
#[derive(Default)]
pub struct UserMutation;

#[Object]
impl UserMutation {
    /// Changes the signed-in user's own account. Another `email` needs `currentPassword`, which is BLANK when it is
    /// missing. User errors: BLANK, TOO_SHORT, TOO_LONG, INVALID, TAKEN, WRONG_PASSWORD.
    #[graphql(guard = "guard::signed_in")]
    async fn update_viewer(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to change.")] input: UpdateViewerInput,
    ) -> Result<UpdateViewerPayload> {
        let origin = Caller::of(ctx).origin();
        let (viewer, user_errors) = write(ctx, |app, viewer| async move {
            let mut faults = Faults::default();
            let name = required(&mut faults, "displayName", input.display_name);
            let username = required(&mut faults, "username", input.username);
            let email = required(&mut faults, "email", input.email);
            let assignment_emails = required(&mut faults, "assignmentEmails", input.assignment_emails);
            let mut changes = Changes {
                password_verified: false,
                display_name: name.and_then(|name| faults.take(DisplayName::parse("displayName", &name))),
                username: username.and_then(|name| faults.take(Username::parse("username", &name))),
                email: email.and_then(|email| faults.take(Email::parse("email", &email))),
                assignment_emails,
            };
            faults.check()?;
            if let Some(email) = &changes.email {
                let password = input.current_password.as_deref();
                changes.password_verified =
                    session::confirm_email_change(&app, &viewer, email, password, &origin).await?;
            }
            store::update_viewer(&app.db, app.clock.now(), &viewer, &changes, &origin).await
        })
        .await?;
        Ok(UpdateViewerPayload { viewer: viewer.map(User::from), user_errors })
    }

    /// Changes a user's role or whether they may sign in; it holds from their next request on. ADMIN only.
    /// The last active ADMIN stays. User errors: BLANK, NOT_FOUND, INVALID.
    #[graphql(guard = "guard::May(Action::ManageUsers, ())")]
    async fn update_user(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to change.")] input: UpdateUserInput,
    ) -> Result<UpdateUserPayload> {
        let origin = Caller::of(ctx).origin();
        let (user, user_errors) = write(ctx, |app, viewer| async move {
            let mut faults = Faults::default();
            let role = required(&mut faults, "role", input.role);
            let is_active = required(&mut faults, "isActive", input.is_active);
            faults.check()?;
            let id = node::named(Noun::User, &input.id, "id")?;
            store::update(&app.db, app.clock.now(), &viewer, id, role, is_active, &origin).await
        })
        .await?;
        Ok(UpdateUserPayload { user: user.map(User::from), user_errors })
    }
}
