//! Who may do what: the one permission table, pure and without I/O.
//!
//! A viewer stands in some relation to an object ([`Standing`]); [`allowed`] says which relations suffice for an
//! [`Action`]. Guards on fields and the transactions in `store` ask the same table. Without the right to see an object
//! it does not exist for the viewer; what is seen but not permitted is FORBIDDEN.

use diesel::deserialize::FromSqlRow;
use diesel::expression::AsExpression;
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::id::Id;
use crate::stored_as_smallint;

/// What a person is on this server.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, async_graphql::Enum, Serialize, ToSchema, AsExpression, FromSqlRow,
)]
#[diesel(sql_type = diesel::sql_types::SmallInt)]
#[serde(rename_all = "UPPERCASE")]
pub enum Role {
    /// Sees and manages everything.
    Admin,
    /// Sees their own projects and the tasks assigned to them.
    User,
}
stored_as_smallint!(Role { User = 0, Admin = 1 });

/// The signed-in person that a request speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Viewer {
    /// Their user id.
    pub id: Id,
    /// The session whose token was shown.
    pub session_id: Id,
    /// That of the database, remembered for a second at most; never from the token.
    pub role: Role,
}

/// How a viewer stands to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Any signed-in person.
    Anyone,
    /// The user that the object is, or belongs to.
    Oneself,
    /// Owns the project that it is, or is in.
    Owner,
    /// Has the task assigned that it is, or hangs on.
    Assignee,
    /// Wrote it.
    Author,
    /// Has the role ADMIN.
    Admin,
}

/// Everything that needs a right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// See that a user exists, with username and display name.
    SeeUser,
    /// Read a user's e-mail, role, activity, statistics, projects and assigned tasks.
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
    SeeEveryTask,
    /// Change a project or its labels.
    UpdateProject,
    /// Delete a project with all that is in it.
    DeleteProject,
    /// Add a task to a project.
    CreateTask,
    /// See a task with its comments and history.
    SeeTask,
    /// Change a task.
    UpdateTask,
    /// Delete a task.
    DeleteTask,
    /// Write a comment on a task.
    AddComment,
    /// Change a comment's text.
    UpdateComment,
    /// Delete a comment.
    DeleteComment,
}

/// The standings that suffice for an action, any one of them.
pub const fn allowed(action: Action) -> &'static [Standing] {
    use Standing::{Admin, Anyone, Assignee, Author, Oneself, Owner};
    match action {
        Action::SeeUser => &[Anyone],
        Action::ReadAccount => &[Oneself, Admin],
        Action::ReadSessions => &[Oneself],
        Action::ReadNotifications => &[Oneself],
        Action::ManageUsers => &[Admin],
        Action::SeeProject => &[Owner, Assignee, Admin],
        Action::SeeEveryTask => &[Owner, Admin],
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

/// An object that a viewer can stand in a relation to.
pub trait Subject {
    /// Whether the viewer stands so to it; `Anyone` and `Admin` are not its business.
    fn stands(&self, viewer: &Viewer, standing: Standing) -> bool;
}

/// The account of a user, where only its id is at hand.
#[derive(Clone, Copy, Debug)]
pub struct Account(pub Id);

impl Subject for Account {
    fn stands(&self, viewer: &Viewer, standing: Standing) -> bool {
        standing == Standing::Oneself && self.0 == viewer.id
    }
}

/// For actions on no object in particular.
impl Subject for () {
    fn stands(&self, _: &Viewer, _: Standing) -> bool {
        false
    }
}

impl Viewer {
    /// Whether this is an administrator.
    pub fn is_admin(&self) -> bool {
        self.role == Role::Admin
    }

    /// Whether the table allows the action on this object.
    pub fn may(&self, action: Action, subject: &impl Subject) -> bool {
        allowed(action).iter().any(|standing| match standing {
            Standing::Anyone => true,
            Standing::Admin => self.is_admin(),
            other => subject.stands(self, *other),
        })
    }

    /// FORBIDDEN unless the table allows the action on this object, which the viewer sees.
    pub fn require(&self, action: Action, subject: &impl Subject) -> Result<()> {
        if self.may(action, subject) { Ok(()) } else { Err(Error::forbidden()) }
    }
}
