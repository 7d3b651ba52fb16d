//! The `User` type, its queries and mutations. Rules and SQL are in `store::user`; sessions and
//! passwords are in [`super::session`].

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object, Result, SimpleObject};

use super::batch::{BatchObject, Batched, FieldResolver, SelectedField};
use super::connection::{Connection, CursorTag, PageArgs, TotalCount};
use super::json::Base64Text;
use super::node::{self, NodeType};
use super::notification::{self, NotificationConnection};
use super::payload::{UserErrorPayload, run_mutation};
use super::project::{self, Project, ProjectFilter, ProjectOrder};
use super::session::{self, AuditEntry, Session};
use super::task::{self, Task, TaskFilter, TaskOrder};
use super::{RequestContext, guard};
use crate::access::{AccountId, Action, Role};
use crate::error::{Error, UserError, UserErrorCode};
use crate::inline;
use crate::store::task_list::{Scope, TaskParent};
use crate::store::user::{
    self as store, Profile, UserCriteria, UserList, UserOrderField, ViewerChanges,
};
use crate::store::value::{DisplayName, Email, Search, UserErrors, Username};
use crate::time::Timestamp;

/// Sort direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Enum)]
pub enum OrderDirection {
    /// Ascending: smallest, oldest or alphabetically first item first.
    Asc,
    /// Descending: largest, newest or alphabetically last item first.
    Desc,
}

/// The public profile, with the full account where it was loaded anyway.
#[derive(Clone)]
pub struct User {
    profile: Arc<Profile>,
    /// Present if the full row was loaded.
    account: Option<Arc<store::User>>,
}

impl From<Arc<Profile>> for User {
    fn from(profile: Arc<Profile>) -> Self {
        Self {
            profile,
            account: None,
        }
    }
}

impl From<Arc<store::User>> for User {
    fn from(account: Arc<store::User>) -> Self {
        Self {
            profile: Arc::new(account.profile()),
            account: Some(account),
        }
    }
}

impl From<store::User> for User {
    fn from(account: store::User) -> Self {
        Arc::new(account).into()
    }
}

impl User {
    /// Loads the full account. Only fields with a guard may call it.
    async fn account(&self, ctx: &Context<'_>) -> Result<Arc<store::User>> {
        if let Some(account) = &self.account {
            return Ok(Arc::clone(account));
        }
        let account = RequestContext::of(ctx)
            .loaders()?
            .account(self.profile.id)
            .await?;
        Ok(account.ok_or_else(|| Error::internal("profile without an account"))?)
    }
}

/// A person with an account. Every signed-in user may read `id`, `username`, `displayName` and
/// `createdAt`. All other fields are visible only to the user and, where noted, to ADMIN; for
/// anyone else they are null, with a FORBIDDEN error at their path.
#[Object]
impl User {
    /// Global ID of the object. Opaque; never changes.
    pub async fn id(&self) -> ID {
        node::encode(NodeType::User, self.profile.id)
    }

    /// Handle of the user: 3–50 of the characters `A–Z a–z 0–9 _ -`, unique ignoring case.
    async fn username(&self) -> &str {
        &self.profile.username
    }

    /// Name to display; 1–100 characters.
    async fn display_name(&self) -> &str {
        &self.profile.display_name
    }

    /// When the account was created.
    async fn created_at(&self) -> Timestamp {
        self.profile.created_at
    }

    /// E-mail address of the account. Visible to the user and ADMIN.
    #[graphql(guard = "guard::RequirePermission(Action::ReadAccount, AccountId(self.profile.id))")]
    async fn email(&self, ctx: &Context<'_>) -> Result<Option<String>> {
        Ok(Some(self.account(ctx).await?.email.clone()))
    }

    /// Role of the user on this server. Visible to the user and ADMIN.
    #[graphql(guard = "guard::RequirePermission(Action::ReadAccount, AccountId(self.profile.id))")]
    async fn role(&self, ctx: &Context<'_>) -> Result<Option<Role>> {
        Ok(Some(self.account(ctx).await?.role))
    }

    /// Whether the user can sign in. Visible to the user and ADMIN.
    #[graphql(guard = "guard::RequirePermission(Action::ReadAccount, AccountId(self.profile.id))")]
    async fn is_active(&self, ctx: &Context<'_>) -> Result<Option<bool>> {
        Ok(Some(self.account(ctx).await?.is_active))
    }

    /// Whether the user has confirmed the e-mail address with the link mailed to it. Visible to the
    /// user and ADMIN.
    #[graphql(guard = "guard::RequirePermission(Action::ReadAccount, AccountId(self.profile.id))")]
    async fn email_verified(&self, ctx: &Context<'_>) -> Result<Option<bool>> {
        Ok(Some(self.account(ctx).await?.email_verified))
    }

    /// Whether an e-mail is sent when a task is assigned to the user. It is sent only to a verified
    /// address. Visible to the user and ADMIN.
    #[graphql(guard = "guard::RequirePermission(Action::ReadAccount, AccountId(self.profile.id))")]
    async fn assignment_emails(&self, ctx: &Context<'_>) -> Result<Option<bool>> {
        Ok(Some(self.account(ctx).await?.assignment_emails))
    }

    /// When the user last logged in; null if never. Visible to the user and ADMIN.
    #[graphql(guard = "guard::RequirePermission(Action::ReadAccount, AccountId(self.profile.id))")]
    async fn last_login_at(&self, ctx: &Context<'_>) -> Result<Option<Timestamp>> {
        let recorded = RequestContext::of(ctx)
            .loaders()?
            .last_login(self.profile.id)
            .await?;
        Ok(recorded.max(self.account(ctx).await?.last_login_at))
    }

    /// Project and task counts of the user. Visible to the user and ADMIN.
    #[graphql(guard = "guard::RequirePermission(Action::ReadAccount, AccountId(self.profile.id))")]
    async fn stats(&self, ctx: &Context<'_>) -> Result<Option<UserStats>> {
        const DAY: u64 = 86_400;
        let caller = RequestContext::of(ctx);
        let stats = caller.loaders()?.user_stats(self.profile.id).await?;
        let age = caller.app().clock.now().since(self.profile.created_at);
        Ok(Some(UserStats {
            owned_project_count: stats.owned_projects,
            assigned_task_count: stats.assigned_tasks,
            completed_task_count: stats.completed_tasks,
            account_age_days: age.as_secs() / DAY,
        }))
    }

    /// Active sessions of the user, newest first. Visible to the user only.
    #[graphql(guard = "guard::RequirePermission(Action::ReadSessions, AccountId(self.profile.id))")]
    async fn sessions(&self, ctx: &Context<'_>) -> Result<Option<Vec<Session>>> {
        let caller = RequestContext::of(ctx);
        let sessions =
            caller.check_list_size(caller.loaders()?.sessions(self.profile.id).await?)?;
        Ok(Some(sessions.into_iter().map(Session).collect()))
    }

    /// Security log of the account, newest first: logins, failed logins, ended sessions and changes
    /// to the account. Kept for 365 days by default. Visible to the user and ADMIN.
    #[graphql(guard = "guard::RequirePermission(Action::ReadAccount, AccountId(self.profile.id))")]
    async fn security_log(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Returns the first *n* items (1–100, default 20).")] first: Option<i32>,
        #[graphql(desc = "Returns only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "Returns the last *n* items (1–100). Cannot be combined with `first`.")]
        last: Option<i32>,
        #[graphql(desc = "Returns only items before this cursor.")] before: Option<String>,
    ) -> Result<Option<Connection<AuditEntry>>> {
        Ok(Some(
            session::audit_log_page(
                ctx,
                Some(self.profile.id),
                PageArgs::new(first, after, last, before),
            )
            .await?,
        ))
    }

    /// Inbox of the user, newest first: assignments, mentions, and comments and status changes on
    /// tasks in the user's projects or assigned to the user. Visible to the user only.
    #[graphql(
        guard = "guard::RequirePermission(Action::ReadNotifications, AccountId(self.profile.id))"
    )]
    async fn notifications(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Returns the first *n* items (1–100, default 20).")] first: Option<i32>,
        #[graphql(desc = "Returns only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "Returns the last *n* items (1–100). Cannot be combined with `first`.")]
        last: Option<i32>,
        #[graphql(desc = "Returns only items before this cursor.")] before: Option<String>,
        #[graphql(desc = "Returns only unread notifications.")] unread_only: Option<bool>,
    ) -> Result<Option<NotificationConnection>> {
        let paging = PageArgs::new(first, after, last, before);
        Ok(Some(
            notification::list(
                ctx,
                self.profile.id,
                paging,
                unread_only.unwrap_or_default(),
            )
            .await?,
        ))
    }

    /// Number of unread notifications. Visible to the user only.
    #[graphql(
        guard = "guard::RequirePermission(Action::ReadNotifications, AccountId(self.profile.id))"
    )]
    async fn unread_count(&self, ctx: &Context<'_>) -> Result<Option<i64>> {
        Ok(Some(
            notification::unread_count(ctx, self.profile.id).await?,
        ))
    }

    /// Projects owned by the user, oldest first by default. Visible to the user and ADMIN.
    #[graphql(guard = "guard::RequirePermission(Action::ReadAccount, AccountId(self.profile.id))")]
    #[expect(clippy::too_many_arguments, reason = "Relay's paging arguments")]
    async fn projects(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Returns the first *n* items (1–100, default 20).")] first: Option<i32>,
        #[graphql(desc = "Returns only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "Returns the last *n* items (1–100). Cannot be combined with `first`.")]
        last: Option<i32>,
        #[graphql(desc = "Returns only items before this cursor.")] before: Option<String>,
        #[graphql(desc = "Returns only projects that match this filter.")] filter: Option<
            ProjectFilter,
        >,
        #[graphql(desc = "Sort order; CREATED_AT ascending by default.")] order_by: Option<
            ProjectOrder,
        >,
    ) -> Result<Option<Batched<Connection<Project>>>> {
        let field = SelectedField::of(ctx);
        let paging = PageArgs::new(first, after, last, before).for_selection(&field);
        let (tag, list) = project::parse_list(
            &field,
            "User.projects",
            Some(self.profile.id),
            &paging,
            filter,
            order_by,
        )?;
        let page = RequestContext::of(ctx)
            .loaders()?
            .project_page(self.profile.id, Arc::clone(&list))
            .await?;
        Ok(Some(Batched(project::connection(
            tag,
            TotalCount::ProjectsOf(self.profile.id, Arc::clone(&list)),
            page,
            &list,
        ))))
    }

    /// Tasks assigned to the user, oldest first by default. Visible to the user and ADMIN.
    #[graphql(guard = "guard::RequirePermission(Action::ReadAccount, AccountId(self.profile.id))")]
    #[expect(clippy::too_many_arguments, reason = "Relay's paging arguments")]
    async fn assigned_tasks(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Returns the first *n* items (1–100, default 20).")] first: Option<i32>,
        #[graphql(desc = "Returns only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "Returns the last *n* items (1–100). Cannot be combined with `first`.")]
        last: Option<i32>,
        #[graphql(desc = "Returns only items before this cursor.")] before: Option<String>,
        #[graphql(desc = "Returns only tasks that match this filter.")] filter: Option<TaskFilter>,
        #[graphql(desc = "Sort order; CREATED_AT ascending by default.")] order_by: Option<
            TaskOrder,
        >,
    ) -> Result<Option<Batched<Connection<Task>>>> {
        let field = SelectedField::of(ctx);
        let paging = PageArgs::new(first, after, last, before).for_selection(&field);
        let columns = task::required_node_columns(&field);
        // `ReadAccount` includes the assigned tasks, so that no further restriction applies.
        let scopes = vec![Scope::Everything];
        let (tag, list) = task::parse_list(
            "User.assignedTasks",
            Some(self.profile.id),
            scopes,
            &paging,
            filter,
            order_by,
            columns,
        )?;
        let page = RequestContext::of(ctx)
            .loaders()?
            .task_page(TaskParent::Assignee, self.profile.id, Arc::clone(&list))
            .await?;
        Ok(Some(Batched(task::connection(
            tag,
            TotalCount::TasksOf(TaskParent::Assignee, self.profile.id, Arc::clone(&list)),
            page,
            &list,
        ))))
    }
}

/// Public fields only. The others have guards, which batch resolution does not run, and are left to
/// async-graphql.
impl BatchObject for User {
    const IS_NODE: bool = true;

    fn resolver<'a>(field: &SelectedField<'a>) -> Option<FieldResolver<'a, Self>> {
        Some(match field.name() {
            "id" => inline!(|user| Base64Text(&node::bytes(NodeType::User, user.profile.id))),
            "username" => inline!(|user| user.profile.username),
            "displayName" => inline!(|user| user.profile.display_name),
            "createdAt" => inline!(|user| user.profile.created_at),
            _ => return None,
        })
    }
}

/// Project and task counts of a user.
#[derive(SimpleObject)]
pub struct UserStats {
    /// Number of projects that the user owns.
    owned_project_count: i64,
    /// Number of tasks assigned to the user, in any status.
    assigned_task_count: i64,
    /// Number of tasks assigned to the user that are DONE.
    completed_task_count: i64,
    /// Age of the account in whole days.
    account_age_days: u64,
}

/// Filter for users. Members are combined with AND.
#[derive(InputObject)]
pub struct UserFilter {
    /// Matches users whose username, display name or e-mail address contains all of these words,
    /// anywhere and ignoring case. At most 10 words and 200 characters; `%` and `_` are literal. A
    /// search adds 20 points to the cost of the operation.
    search: Option<String>,
    /// Matches users with this role.
    role: Option<Role>,
    /// Matches users who can sign in (true) or cannot (false).
    is_active: Option<bool>,
}

/// Sort order of users.
#[derive(InputObject)]
pub struct UserOrder {
    /// Field to sort by.
    field: UserOrderField,
    /// Sort direction.
    #[graphql(default_with = "OrderDirection::Asc")]
    direction: OrderDirection,
}

#[derive(Default)]
pub struct UserQuery;

#[Object]
impl UserQuery {
    /// The signed-in user. Fails with UNAUTHENTICATED without a valid access token.
    #[graphql(guard = "guard::require_viewer")]
    async fn viewer(&self, ctx: &Context<'_>) -> Result<User> {
        let caller = RequestContext::of(ctx);
        let account = caller.loaders()?.account(caller.viewer()?.id).await?;
        Ok(account.ok_or_else(Error::unauthenticated)?.into())
    }

    /// Looks up a user by username, ignoring case, for example to assign a task to them. Null if
    /// there is none.
    #[graphql(guard = "guard::require_viewer")]
    async fn user(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Username.")] username: String,
    ) -> Result<Option<User>> {
        let mut conn = RequestContext::of(ctx).app().db.conn().await?;
        Ok(store::find_by_username(&mut conn, &username)
            .await?
            .map(User::from))
    }

    /// All users, oldest account first by default. ADMIN only.
    #[graphql(guard = "guard::RequirePermission(Action::ManageUsers, ())")]
    #[expect(clippy::too_many_arguments, reason = "Relay's paging arguments")]
    async fn users(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Returns the first *n* items (1–100, default 20).")] first: Option<i32>,
        #[graphql(desc = "Returns only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "Returns the last *n* items (1–100). Cannot be combined with `first`.")]
        last: Option<i32>,
        #[graphql(desc = "Returns only items before this cursor.")] before: Option<String>,
        #[graphql(desc = "Returns only users that match this filter.")] filter: Option<UserFilter>,
        #[graphql(desc = "Sort order; CREATED_AT ascending by default.")] order_by: Option<
            UserOrder,
        >,
    ) -> Result<Connection<User>> {
        let order = order_by
            .as_ref()
            .map_or(UserOrderField::CreatedAt, |order| order.field);
        let descending = order_by.is_some_and(|order| order.direction == OrderDirection::Desc);
        let tag = CursorTag::new("users", None, &order, descending);
        let filter = match filter {
            None => UserCriteria::default(),
            Some(UserFilter {
                search,
                role,
                is_active,
            }) => UserCriteria {
                search: search.as_deref().map(Search::parse).transpose()?,
                role,
                is_active,
            },
        };
        let window = PageArgs::new(first, after, last, before).window(tag)?;
        let list = Arc::new(UserList {
            filter,
            order,
            descending,
            window,
        });
        let page = store::page(&mut RequestContext::of(ctx).app().db.conn().await?, &list).await?;
        let total = TotalCount::Users(Arc::clone(&list));
        Ok(Connection::new(
            tag,
            total,
            page,
            |user| user.position(order),
            User::from,
        ))
    }
}

/// Input of `updateViewer`. Omitted fields stay unchanged.
#[derive(InputObject)]
pub struct UpdateViewerInput {
    /// New display name; 1–100 characters after trimming, without control, bidirectional and
    /// invisible characters. Cannot be null.
    display_name: MaybeUndefined<String>,
    /// New handle: 3–50 of the characters `A–Z a–z 0–9 _ -`, unique ignoring case. Reserved names
    /// such as `admin` are INVALID. The old username stays reserved for the account for three days,
    /// and the viewer is notified by e-mail. Cannot be null.
    username: MaybeUndefined<String>,
    /// New e-mail address; requires `currentPassword`. It replaces the current address once the
    /// link mailed to it has been followed. The current address is notified at once with a link
    /// that reverts the change for three days; if that address was verified, even after the new one
    /// was confirmed. Reverting ends every session and makes the password unusable. Passing the
    /// current address, which requires no password, or setting a new password cancels a pending
    /// change. Requests are rate-limited like logins (RATE_LIMITED). Cannot be null.
    email: MaybeUndefined<String>,
    /// Whether to send an e-mail when a task is assigned to the viewer. The unsubscribe link in
    /// such an e-mail sets it to false. Cannot be null.
    assignment_emails: MaybeUndefined<bool>,
    /// Current password. Required to change `email`, ignored otherwise. Wrong passwords lock the
    /// session out as for `changePassword`.
    #[graphql(secret)]
    current_password: Option<String>,
}

/// Payload of `updateViewer`.
#[derive(SimpleObject)]
pub struct UpdateViewerPayload {
    /// The updated account; null if nothing was written.
    viewer: Option<User>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

/// Input of `updateUser`. Omitted fields stay unchanged.
#[derive(InputObject)]
pub struct UpdateUserInput {
    /// The user to update.
    id: ID,
    /// New role. Cannot be null.
    role: MaybeUndefined<Role>,
    /// Whether the user can sign in. False also ends the user's sessions. Cannot be null.
    is_active: MaybeUndefined<bool>,
}

/// Payload of `updateUser`.
#[derive(SimpleObject)]
pub struct UpdateUserPayload {
    /// The updated user; null if nothing was written.
    user: Option<User>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

/// The value of an input field that can be omitted but not cleared: null is the user error BLANK.
pub fn required_field<T>(
    faults: &mut UserErrors,
    field: &'static str,
    value: MaybeUndefined<T>,
) -> Option<T> {
    match value {
        MaybeUndefined::Undefined => None,
        MaybeUndefined::Value(value) => Some(value),
        MaybeUndefined::Null => {
            faults.push(UserError::new(
                field,
                UserErrorCode::Blank,
                "Cannot be cleared.",
            ));
            None
        }
    }
}

#[derive(Default)]
pub struct UserMutation;

#[Object]
impl UserMutation {
    /// Updates the viewer's own account. Changing `email` requires `currentPassword`, which is
    /// BLANK if it is missing. User errors: BLANK, TOO_SHORT, TOO_LONG, INVALID, TAKEN,
    /// WRONG_PASSWORD.
    #[graphql(guard = "guard::require_viewer")]
    async fn update_viewer(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The changes to make.")] input: UpdateViewerInput,
    ) -> Result<UpdateViewerPayload> {
        let origin = RequestContext::of(ctx).client_info();
        let (viewer, user_errors) = run_mutation(ctx, |app, viewer| async move {
            let mut faults = UserErrors::default();
            let name = required_field(&mut faults, "displayName", input.display_name);
            let username = required_field(&mut faults, "username", input.username);
            let email = required_field(&mut faults, "email", input.email);
            let assignment_emails =
                required_field(&mut faults, "assignmentEmails", input.assignment_emails);
            let mut changes = ViewerChanges {
                password_verified: false,
                display_name: name
                    .and_then(|name| faults.take(DisplayName::parse("displayName", &name))),
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
        Ok(UpdateViewerPayload {
            viewer: viewer.map(User::from),
            user_errors,
        })
    }

    /// Changes a user's role or whether they can sign in. The change applies from the user's next
    /// request. ADMIN only. The last active ADMIN can be neither demoted nor disabled (INVALID).
    /// User errors: BLANK, NOT_FOUND, INVALID.
    #[graphql(guard = "guard::RequirePermission(Action::ManageUsers, ())")]
    async fn update_user(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The user and the changes to make.")] input: UpdateUserInput,
    ) -> Result<UpdateUserPayload> {
        let origin = RequestContext::of(ctx).client_info();
        let (user, user_errors) = run_mutation(ctx, |app, viewer| async move {
            let mut faults = UserErrors::default();
            let role = required_field(&mut faults, "role", input.role);
            let is_active = required_field(&mut faults, "isActive", input.is_active);
            faults.check()?;
            let id = node::decode_input(NodeType::User, &input.id, "id")?;
            store::update(
                &app.db,
                app.clock.now(),
                &viewer,
                id,
                role,
                is_active,
                &origin,
            )
            .await
        })
        .await?;
        Ok(UpdateUserPayload {
            user: user.map(User::from),
            user_errors,
        })
    }
}
