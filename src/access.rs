//! The permission table: pure functions, no I/O.
//!
//! [`allowed`] lists the relations between viewer and object that permit an [`Action`]. Field
//! guards and the transactions in `store` use the same table. An object that the viewer may not see
//! does not exist for them; an action on a visible object that is not permitted is `FORBIDDEN`.

use diesel::deserialize::FromSqlRow;
use diesel::expression::AsExpression;
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::id::Id;
use crate::stored_as_smallint;

/// Role of a user on this server.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    async_graphql::Enum,
    Serialize,
    ToSchema,
    AsExpression,
    FromSqlRow,
)]
#[diesel(sql_type = diesel::sql_types::SmallInt)]
#[serde(rename_all = "UPPERCASE")]
pub enum Role {
    /// Sees and manages all users, projects and tasks.
    Admin,
    /// Sees their own projects and the tasks assigned to them.
    User,
}
stored_as_smallint!(Role { User = 0, Admin = 1 });

/// The authenticated user of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Viewer {
    pub id: Id,
    /// The session of the access token.
    pub session_id: Id,
    /// Read from the database, cached for at most a second; never taken from the token.
    pub role: Role,
}

/// A relation between a viewer and an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Relation {
    /// Any signed-in user.
    Anyone,
    /// The user that is the object, or owns it.
    AccountHolder,
    /// The owner of the project that is or contains the object.
    Owner,
    /// The assignee of the task that is or contains the object.
    Assignee,
    /// The author of the comment.
    Author,
    /// A user with the role ADMIN.
    Admin,
}

/// An action that needs a permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// See a user's username and display name.
    SeeUser,
    /// Read a user's e-mail address, role, active state, statistics, projects and assigned tasks.
    ReadAccount,
    /// List a user's sessions.
    ReadSessions,
    /// Read a user's notifications.
    ReadNotifications,
    /// List all users and change their role or whether they are active.
    ManageUsers,
    /// See a project with its labels and statistics.
    SeeProject,
    /// List every task of a project.
    SeeAllTasks,
    /// Change a project or its labels.
    UpdateProject,
    /// Delete a project with its tasks, labels and comments.
    DeleteProject,
    CreateTask,
    /// See a task with its comments and history.
    SeeTask,
    UpdateTask,
    DeleteTask,
    AddComment,
    /// Change the text of a comment.
    UpdateComment,
    DeleteComment,
}

/// The relations that permit an action; any one is enough.
pub const fn allowed(action: Action) -> &'static [Relation] {
    use Relation::{AccountHolder, Admin, Anyone, Assignee, Author, Owner};
    match action {
        Action::SeeUser => &[Anyone],
        Action::ReadAccount => &[AccountHolder, Admin],
        Action::ReadSessions => &[AccountHolder],
        Action::ReadNotifications => &[AccountHolder],
        Action::ManageUsers => &[Admin],
        Action::SeeProject => &[Owner, Assignee, Admin],
        Action::SeeAllTasks => &[Owner, Admin],
        Action::UpdateProject => &[Owner, Admin],
        Action::DeleteProject => &[Owner, Admin],
        Action::CreateTask => &[Owner, Admin],
        Action::SeeTask => &[Owner, Assignee, Admin],
        Action::UpdateTask => &[Owner, Assignee, Admin],
        Action::DeleteTask => &[Owner, Admin],
        Action::AddComment => &[Owner, Assignee, Admin],
        Action::UpdateComment => &[Author],
        Action::DeleteComment => &[Author, Admin],
    }
}

/// An object on which permissions are checked.
pub trait Resource {
    /// Whether the viewer has this relation to the object. Not called for `Anyone` and `Admin`,
    /// which do not depend on the object.
    fn has_relation(&self, viewer: &Viewer, standing: Relation) -> bool;
}

/// A user's account, known by its id only.
#[derive(Clone, Copy, Debug)]
pub struct AccountId(pub Id);

impl Resource for AccountId {
    fn has_relation(&self, viewer: &Viewer, standing: Relation) -> bool {
        standing == Relation::AccountHolder && self.0 == viewer.id
    }
}

/// The subject of actions without an object.
impl Resource for () {
    fn has_relation(&self, _: &Viewer, _: Relation) -> bool {
        false
    }
}

impl Viewer {
    pub fn is_admin(&self) -> bool {
        self.role == Role::Admin
    }

    /// Whether the table permits the action on this object.
    pub fn may(&self, action: Action, subject: &impl Resource) -> bool {
        allowed(action).iter().any(|standing| match standing {
            Relation::Anyone => true,
            Relation::Admin => self.is_admin(),
            other => subject.has_relation(self, *other),
        })
    }

    /// Fails with `FORBIDDEN` unless the table permits the action on this object. Call it only for
    /// an object that the viewer may see.
    pub fn require(&self, action: Action, subject: &impl Resource) -> Result<()> {
        if self.may(action, subject) {
            Ok(())
        } else {
            Err(Error::forbidden())
        }
    }
}
