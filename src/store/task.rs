//! Tasks: in a project, perhaps assigned to somebody. The project's owner, the assignee and ADMIN see and change them.

use diesel::deserialize::FromSqlRow;
use diesel::expression::AsExpression;
use diesel::prelude::*;
use serde::{Deserialize, Serialize};

use super::event::{Snapshot, about_deleted_task, about_task};
use super::history::{Change, changes};
use super::project::Project;
use super::user::{self, User};
use super::value::{Description, Title, fold};
use super::{mail, mail_quota, project, quota, session};
use crate::access::{AccountId, Action, Relation, Resource, Viewer};
use crate::db::columns::Columns;
use crate::db::page::any_id;
use crate::db::rows::RunQueryDsl;
use crate::db::schema::{labels, task_labels, tasks};
use crate::db::types::{OrDefault, sql};
use crate::db::{Conn, Db, Lock, cached, inline_if_few};
use crate::error::{Error, Result, UserErrorCode, is_fk_violation};
use crate::events::{self, EventKind, NewEvent};
use crate::id::Id;
use crate::stored_as_smallint;
use crate::time::Timestamp;
use crate::{on, select_locked};

/// Status of a task. It changes one step at a time: TODO ↔ IN_PROGRESS ↔ DONE.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, AsExpression, FromSqlRow, Serialize, Deserialize, async_graphql::Enum,
)]
#[diesel(sql_type = diesel::sql_types::SmallInt)]
#[graphql(name = "TaskStatus")]
pub enum TaskStatus {
    /// Not started.
    Todo,
    /// In progress.
    InProgress,
    /// Completed.
    Done,
}
stored_as_smallint!(TaskStatus { Todo = 0, InProgress = 1, Done = 2 });

impl TaskStatus {
    /// Whether a task may go from this status to that one.
    pub const fn leads_to(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Todo, Self::InProgress)
                | (Self::InProgress, Self::Done | Self::Todo)
                | (Self::Done, Self::InProgress)
        )
    }
}

/// Priority of a task, in ascending order LOW, MEDIUM, HIGH, URGENT.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, AsExpression, FromSqlRow, Serialize, Deserialize, async_graphql::Enum,
)]
#[diesel(sql_type = diesel::sql_types::SmallInt)]
#[graphql(name = "TaskPriority")]
pub enum Priority {
    /// Low priority.
    Low,
    /// Medium priority, the default.
    Medium,
    /// High priority.
    High,
    /// Highest priority.
    Urgent,
}
stored_as_smallint!(Priority { Low = 0, Medium = 1, High = 2, Urgent = 3 });

/// A task.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable, Serialize, Deserialize)]
#[diesel(table_name = tasks, treat_none_as_default_value = false)]
pub struct Task {
    /// Its id.
    pub id: Id,
    /// The project it is in; never changes.
    pub project_id: Id,
    /// The project's owner.
    pub owner_id: Id,
    /// Who made it.
    pub creator_id: Option<Id>,
    /// Who is to do it.
    pub assignee_id: Option<Id>,
    /// What is to be done.
    pub title: String,
    /// At more length.
    pub description: Option<String>,
    /// How far it is.
    pub status: TaskStatus,
    /// How urgent it is.
    pub priority: Priority,
    /// When it should be done.
    pub due_at: Option<Timestamp>,
    /// When it was done.
    pub completed_at: Option<Timestamp>,
    /// Grows by one with each change.
    #[diesel(deserialize_as = OrDefault<i32>)]
    pub version: i32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    #[diesel(deserialize_as = OrDefault<Timestamp>)]
    pub updated_at: Timestamp,
}

/// Which columns of tasks are read. Those that are left out are read as null, and only of rows that are shown, never of
/// rows that are written or recorded. Each holds what the ones before it hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskColumns {
    /// What most lists show: without description, creator, completion, version and the time of the last change, by which
    /// a page of fifty costs an eighth less.
    Summary,
    /// Without the description alone, which may have 40 kB.
    Short,
    /// All of them.
    Full,
}

impl TaskColumns {
    /// In the order of [`Task`].
    pub const fn expression(self) -> Columns<Task> {
        Columns::new(match self {
            Self::Summary => {
                "tasks.id, tasks.project_id, tasks.owner_id, NULL, tasks.assignee_id, tasks.title, \
                 NULL, tasks.status, tasks.priority, tasks.due_at, NULL, NULL, \
                 tasks.created_at, NULL"
            }
            Self::Short => {
                "tasks.id, tasks.project_id, tasks.owner_id, tasks.creator_id, tasks.assignee_id, tasks.title, \
                 NULL, tasks.status, tasks.priority, tasks.due_at, tasks.completed_at, tasks.version, \
                 tasks.created_at, tasks.updated_at"
            }
            Self::Full => {
                "tasks.id, tasks.project_id, tasks.owner_id, tasks.creator_id, tasks.assignee_id, tasks.title, \
                 tasks.description, tasks.status, tasks.priority, tasks.due_at, tasks.completed_at, tasks.version, \
                 tasks.created_at, tasks.updated_at"
            }
        })
    }
}

impl Resource for Task {
    fn has_relation(&self, viewer: &Viewer, standing: Relation) -> bool {
        match standing {
            Relation::Owner => self.owner_id == viewer.id,
            Relation::Assignee => self.assignee_id == Some(viewer.id),
            _ => false,
        }
    }
}

/// Whether the viewer may see a task, as [`Action::SeeTask`] says it, in SQL. What belongs to tasks
/// is read with this condition in the same statement: a task that was read a moment ago may have
/// been taken from the viewer since.
///
/// `reader` is `None` where the right was checked already: on the task of an event that is being
/// delivered. The response is then the same for all subscribers, who can share it.
pub(super) fn visible_to(reader: Option<&Viewer>) -> visible {
    let nobody = Id::from_bytes([0; 16]);
    visible(reader.map_or(nobody, |viewer| viewer.id), reader.is_none_or(Viewer::is_admin))
}

#[diesel::dsl::auto_type]
fn visible(viewer: Id, is_admin: bool) -> _ {
    let is_admin: diesel::dsl::AsExprOf<bool, sql::Bool> = is_admin.into_sql::<sql::Bool>();
    let is_assignee: diesel::dsl::Eq<tasks::assignee_id, Id> = tasks::assignee_id.eq(viewer);
    tasks::owner_id.eq(viewer).or(is_assignee).or(is_admin)
}

/// The tasks among these that the viewer may see.
pub async fn by_ids(conn: &mut Conn, viewer: &Viewer, ids: &[Id]) -> Result<Vec<Task>> {
    select_by_ids(conn, viewer, ids, TaskColumns::Full).await
}

/// The same with these columns.
pub async fn select_by_ids(conn: &mut Conn, viewer: &Viewer, ids: &[Id], columns: TaskColumns) -> Result<Vec<Task>> {
    let mut rows = select_any_by_ids(conn, ids, columns).await?;
    rows.retain(|task| viewer.may(Action::SeeTask, task));
    Ok(rows)
}

/// The tasks with these ids, whoever may see them: for telling events, where the rights of many viewers are asked.
pub async fn any_by_ids(conn: &mut Conn, ids: &[Id]) -> Result<Vec<Task>> {
    select_any_by_ids(conn, ids, TaskColumns::Full).await
}

/// The same with these columns.
pub async fn select_any_by_ids(conn: &mut Conn, ids: &[Id], columns: TaskColumns) -> Result<Vec<Task>> {
    let found = tasks::table.filter(any_id(tasks::id, ids)).select(columns.expression());
    Ok(inline_if_few(ids.len(), async { on!(conn, |c| found.load(c).await) }).await?)
}

/// One task that the viewer sees, or a fault of the field that named it.
pub async fn get_visible(conn: &mut Conn, viewer: &Viewer, id: Id, field: &'static str) -> Result<Task> {
    by_ids(conn, viewer, &[id]).await?.pop().ok_or_else(|| Error::not_found(field, "task"))
}

/// One task that the viewer sees, locked until the transaction ends: who may do what with it, and who receives its events,
/// stays so until the write is in the log. What the viewer does not see is not locked, so nobody can block others' tasks.
pub async fn lock(tx: &mut Conn, viewer: &Viewer, id: Id, lock: Lock) -> Result<Option<Task>> {
    let task = tasks::table.find(id).filter(visible_to(Some(viewer)));
    let task: Option<Task> = select_locked!(tx, task.select(Task::as_select()), lock)?.pop();
    Ok(task.filter(|task| viewer.may(Action::SeeTask, task)))
}

/// A task to be made.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// In this project.
    pub project_id: Id,
    /// What is to be done.
    pub title: Title,
    /// At more length.
    pub description: Option<Description>,
    /// How urgent it is.
    pub priority: Priority,
    /// When it should be done.
    pub due_at: Option<Timestamp>,
    /// Who is to do it.
    pub assignee_id: Option<Id>,
    /// With these labels of its project.
    pub label_ids: Vec<Id>,
}

/// Adds a task to a project.
pub async fn create(db: &Db, now: Timestamp, viewer: &Viewer, new: &NewTask) -> Result<Task> {
    db.inline_transaction(async |tx| {
        let assignee = lock_assignee(tx, viewer, new.assignee_id).await?;
        let viewer = &session::lock(tx, now, viewer).await?;
        // Archiving and deleting the project wait for tasks that are being added.
        let project = project::lock(tx, viewer, Action::CreateTask, new.project_id, "projectId", Lock::Share).await?;
        if project.status == project::ProjectStatus::Archived {
            let message = "The project is archived and takes no new tasks.";
            return Err(Error::user_error("projectId", UserErrorCode::Archived, message));
        }
        check_due(now, new.due_at)?;
        let task = Task {
            id: Id::new(),
            project_id: project.id,
            owner_id: project.owner_id,
            creator_id: Some(viewer.id),
            assignee_id: new.assignee_id,
            title: new.title.to_string(),
            description: new.description.as_ref().map(ToString::to_string),
            status: TaskStatus::Todo,
            priority: new.priority,
            due_at: new.due_at,
            completed_at: None,
            version: 1,
            created_at: now,
            updated_at: now,
        };
        check_assignee(viewer, new.assignee_id, assignee.as_ref())?;
        on!(tx, |c| diesel::insert_into(tasks::table)
            .values((&task, tasks::search.eq(search(&task))))
            .execute(c)
            .await)?;
        add_labels(tx, &task, &new.label_ids, "labelIds").await?;
        let mut events = vec![about_task(EventKind::TaskCreated, viewer, now, &task, Snapshot::default())];
        events.extend(assign(tx, now, viewer, &task, assignee.as_ref(), None).await?);
        events::append(tx, &events).await?;
        quota::add_task(tx, db.quotas, &task).await?;
        Ok(task)
    })
    .await
}

/// What an update changes; `None` is left alone.
#[derive(Clone, Debug, Default)]
pub struct TaskChanges {
    /// A new title.
    pub title: Option<Title>,
    /// A new description, or none.
    pub description: Option<Option<Description>>,
    /// A new status.
    pub status: Option<TaskStatus>,
    /// A new priority.
    pub priority: Option<Priority>,
    /// A new due date, or none.
    pub due_at: Option<Option<Timestamp>>,
    /// Somebody else, or nobody, is to do it.
    pub assignee_id: Option<Option<Id>>,
    /// Labels to put on.
    pub add_label_ids: Vec<Id>,
    /// Labels to take off.
    pub remove_label_ids: Vec<Id>,
    /// Refuse when the task has moved on from this version.
    pub expected_version: Option<i32>,
}

/// Changes a task. Each kind of change is told as an event of its own.
pub async fn update(db: &Db, now: Timestamp, viewer: &Viewer, id: Id, changes: &TaskChanges) -> Result<Task> {
    if let Some(task) = update_in_one_statement(db, now, viewer, id, changes).await? {
        return Ok(task);
    }
    db.inline_transaction(async |tx| {
        let assignee = lock_assignee(tx, viewer, changes.assignee_id.flatten()).await?;
        let viewer = &session::lock(tx, now, viewer).await?;
        let old = lock(tx, viewer, id, Lock::Update).await?.ok_or_else(|| Error::not_found("id", "task"))?;
        let mut new = apply(&old, changes, viewer, now)?;
        let relabelling = LabelChanges::plan(tx, &old, changes).await?;
        if new == old && relabelling.is_none() {
            return Ok(old);
        }
        let is_reassigned = new.assignee_id != old.assignee_id;
        if is_reassigned {
            check_assignee(viewer, new.assignee_id, assignee.as_ref())?;
        }
        new.version += 1;
        new.updated_at = now;
        let row = TaskUpdate::of(&old, &new);
        let update = diesel::update(tasks::table.find(id)).set(&row);
        on!(tx, |c| cached(update).execute(c).await)?;
        let labels = match relabelling {
            Some(relabelling) => Some(relabelling.apply(tx, &old).await?),
            None => None,
        };
        let mut events = events_for(viewer, &old, &new, labels);
        if is_reassigned {
            events.extend(assign(tx, now, viewer, &new, assignee.as_ref(), old.assignee_id).await?);
        }
        let kept = events::append_with_texts(tx, &events).await?;
        let text = (old.description.as_deref(), new.description.as_deref());
        quota::change_text(tx, db.quotas, new.owner_id, text, kept).await?;
        Ok(new)
    })
    .await
}

/// The same for a change of the task alone that is one event, with the task read before anything is locked: what is left
/// is one statement of PostgreSQL without a transaction around it, which is half of the work there, and of SQLite's one
/// writer others wait the shorter. Nothing if it is more than that, or if somebody was faster.
///
/// Nothing of what decides can change between the two. The task's owner never does, its assignee not without its version,
/// which the statement compares once it has the row's lock, with the newest row. The viewer's session and role are locked
/// and compared by the statement too.
async fn update_in_one_statement(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    id: Id,
    changes: &TaskChanges,
) -> Result<Option<Task>> {
    let is_plain =
        changes.assignee_id.is_none() && changes.add_label_ids.is_empty() && changes.remove_label_ids.is_empty();
    if !is_plain {
        return Ok(None);
    }
    let old = get_visible(&mut db.conn_for_rows(1).await?, viewer, id, "id").await?;
    let mut new = apply(&old, changes, viewer, now)?;
    if new == old {
        return Ok(Some(old));
    }
    new.version += 1;
    new.updated_at = now;
    let events = events_for(viewer, &old, &new, None);
    let [event] = events.as_slice() else {
        return Ok(None);
    };
    if new.description != old.description {
        // Counts in a quota.
        return Ok(None);
    }
    let row = TaskUpdate::of(&old, &new);
    let is_unchanged = tasks::version.eq(old.version).and(session::ViewerUnchanged::new(viewer, now));
    let update = diesel::update(tasks::table.find(id)).filter(is_unchanged).set(&row);
    Ok(events::change_and_append(db, update, event).await?.then_some(new))
}

/// What an update writes: what has changed, so that of the indexes too only those are written that it is in (SQLite writes
/// each one that an update names a column of).
#[derive(AsChangeset)]
#[diesel(table_name = tasks)]
struct TaskUpdate<'a> {
    title: Option<&'a str>,
    description: Option<Option<&'a str>>,
    search: Option<String>,
    status: Option<TaskStatus>,
    priority: Option<Priority>,
    due_at: Option<Option<Timestamp>>,
    completed_at: Option<Option<Timestamp>>,
    assignee_id: Option<Option<Id>>,
    version: i32,
    updated_at: Timestamp,
}

impl<'a> TaskUpdate<'a> {
    fn of(old: &'a Task, new: &'a Task) -> Self {
        fn if_changed<T: PartialEq>(old: &T, new: T) -> Option<T> {
            (*old != new).then_some(new)
        }
        let title = if_changed(&old.title.as_str(), new.title.as_str());
        let description = if_changed(&old.description.as_deref(), new.description.as_deref());
        Self {
            title,
            description,
            search: (title.is_some() || description.is_some()).then(|| search(new)),
            status: if_changed(&old.status, new.status),
            priority: if_changed(&old.priority, new.priority),
            due_at: if_changed(&old.due_at, new.due_at),
            completed_at: if_changed(&old.completed_at, new.completed_at),
            assignee_id: if_changed(&old.assignee_id, new.assignee_id),
            version: new.version,
            updated_at: new.updated_at,
        }
    }
}

/// What is told of a change, but for the assignee's.
fn events_for(viewer: &Viewer, old: &Task, new: &Task, labels: Option<(String, String)>) -> Vec<NewEvent> {
    let mut events = Vec::new();
    let mut push = |kind, snapshot| events.push(about_task(kind, viewer, new.updated_at, new, snapshot));
    let changes = diff(old, new, labels);
    if !changes.is_empty() {
        push(EventKind::TaskUpdated, Snapshot { changes, ..Snapshot::default() });
    }
    if new.status != old.status {
        push(EventKind::StatusChanged, Snapshot { status: Some((old.status, new.status)), ..Snapshot::default() });
    }
    events
}

/// Deletes a task with its comments.
pub async fn delete(db: &Db, now: Timestamp, viewer: &Viewer, id: Id) -> Result<()> {
    // Not a brief one: it may have many comments.
    db.transaction(async |tx| {
        let viewer = &session::lock(tx, now, viewer).await?;
        let task = lock(tx, viewer, id, Lock::Delete).await?.ok_or_else(|| Error::not_found("id", "task"))?;
        viewer.require(Action::DeleteTask, &task)?;
        let freed = quota::size(task.description.as_deref()) + quota::comment_bytes(tx, &[id]).await?;
        on!(tx, |c| diesel::delete(tasks::table.find(id)).execute(c).await)?;
        // Its project cannot be deleted before the task, which is locked.
        let project = project::any_by_ids(tx, &[task.project_id]).await?.pop();
        let project = project.ok_or_else(|| Error::internal("task without a project"))?;
        let deletion = about_deleted_task(viewer, now, &task, &project);
        let kept = events::append_with_texts(tx, &[deletion]).await?;
        quota::remove_task(tx, &task, kept - freed).await
    })
    .await
}

/// How many tasks of a project are read at once when it is deleted: 4 MB of the longest ones.
const DELETION_BATCH: usize = 100;

/// Locks every task of a project that is locked itself, and appends that they are deleted, which the transaction goes on
/// to do. Returns by how many bytes the text grows that counts in the quota.
pub async fn append_deletions(tx: &mut Conn, now: Timestamp, viewer: &Viewer, project: &Project) -> Result<i64> {
    let of_project = tasks::table.filter(tasks::project_id.eq(project.id)).order_by((tasks::created_at, tasks::id));
    let ids: Vec<Id> = select_locked!(tx, of_project.select(tasks::id), Lock::Delete)?;
    let mut growth = 0;
    for ids in ids.chunks(DELETION_BATCH) {
        let batch = tasks::table.filter(any_id(tasks::id, ids)).order_by((tasks::created_at, tasks::id));
        let rows: Vec<Task> = on!(tx, |c| batch.select(Task::as_select()).load(c).await)?;
        growth -= quota::comment_bytes(tx, ids).await?;
        let mut deletions = Vec::with_capacity(rows.len());
        for task in &rows {
            growth -= quota::size(task.description.as_deref());
            deletions.push(about_deleted_task(viewer, now, task, project));
        }
        growth += events::append_with_texts(tx, &deletions).await?;
    }
    Ok(growth)
}

fn check_due(now: Timestamp, due_at: Option<Timestamp>) -> Result<()> {
    match due_at {
        Some(due) if due <= now => Err(Error::user_error("dueAt", UserErrorCode::InThePast, "Must be in the future.")),
        _ => Ok(()),
    }
}

/// The task as the viewer wants it to be, if they may.
fn apply(old: &Task, changes: &TaskChanges, viewer: &Viewer, now: Timestamp) -> Result<Task> {
    viewer.require(Action::UpdateTask, old)?;
    if changes.expected_version.is_some_and(|version| version != old.version) {
        let message = "The task has changed meanwhile. Read it again.";
        return Err(Error::user_error("expectedVersion", UserErrorCode::Conflict, message));
    }
    let mut new = old.clone();
    if let Some(title) = &changes.title {
        new.title = title.to_string();
    }
    if let Some(description) = &changes.description {
        new.description = description.as_ref().map(ToString::to_string);
    }
    new.priority = changes.priority.unwrap_or(old.priority);
    if let Some(due_at) = changes.due_at
        && due_at != old.due_at
    {
        check_due(now, due_at)?;
        new.due_at = due_at;
    }
    if let Some(assignee) = changes.assignee_id {
        new.assignee_id = assignee;
    }
    if let Some(status) = changes.status
        && status != old.status
    {
        if !old.status.leads_to(status) {
            return Err(Error::user_error(
                "status",
                UserErrorCode::InvalidStatusTransition,
                "A task goes TODO, IN_PROGRESS, DONE and back one step at a time.",
            ));
        }
        new.status = status;
        new.completed_at = (status == TaskStatus::Done).then_some(now);
    }
    Ok(new)
}

/// Who is to get a task, locked until the transaction ends: nobody disables the account or changes its address meanwhile.
async fn lock_assignee(tx: &mut Conn, viewer: &Viewer, id: Option<Id>) -> Result<Option<User>> {
    match id {
        Some(id) => user::lock_with_viewer(tx, viewer, id).await,
        None => Ok(None),
    }
}

/// Refuses an assignee who is nobody or has left. A disabled account is refused only where the viewer may know that it is
/// disabled; the answer would tell everybody else.
fn check_assignee(viewer: &Viewer, id: Option<Id>, assignee: Option<&User>) -> Result<()> {
    let Some(id) = id else { return Ok(()) };
    let assignee = assignee.ok_or_else(|| Error::not_found("assigneeId", "user"))?;
    let refused = |message| Err(Error::user_error("assigneeId", UserErrorCode::Invalid, message));
    if assignee.deleted_at.is_some() {
        return refused("This account was deleted.");
    }
    if !assignee.is_active && viewer.may(Action::ReadAccount, &AccountId(id)) {
        return refused("This user is not active.");
    }
    Ok(())
}

/// Tells the new assignee, by event and, at an address that is known to be theirs, by mail, and whoever had the task before.
async fn assign(
    tx: &mut Conn,
    now: Timestamp,
    viewer: &Viewer,
    task: &Task,
    assignee: Option<&User>,
    previous: Option<Id>,
) -> Result<Vec<NewEvent>> {
    let mut events = Vec::new();
    let event =
        |kind| NewEvent { previous_assignee_id: previous, ..about_task(kind, viewer, now, task, Snapshot::default()) };
    if previous.is_some() {
        events.push(event(EventKind::TaskUnassigned));
    }
    if let Some(assignee) = assignee {
        events.push(event(EventKind::TaskAssigned));
        if assignee.id != viewer.id
            && assignee.wants_assignment_mail()
            && mail_quota::admit_assignment(tx, now, viewer.id, &assignee.email).await?
        {
            mail::queue(tx, now, mail::MailKind::TaskAssigned, &assignee.email, Some(assignee.id), &task.title).await?;
        }
    }
    Ok(events)
}

/// Puts labels of the task's own project on it that it does not have yet.
async fn add_labels(tx: &mut Conn, task: &Task, ids: &[Id], field: &'static str) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let missing = || Error::not_found(field, "label in the task's project");
    let known: Vec<Id> = on!(tx, |c| labels::table
        .filter(labels::project_id.eq(task.project_id))
        .filter(any_id(labels::id, ids))
        .select(labels::id)
        .load(c)
        .await)?;
    if ids.iter().any(|id| !known.contains(id)) {
        return Err(missing());
    }
    for id in known {
        let row = (task_labels::task_id.eq(task.id), task_labels::label_id.eq(id));
        let inserted =
            on!(tx, |c| diesel::insert_into(task_labels::table).values(row).on_conflict_do_nothing().execute(c).await);
        match inserted {
            Err(error) if is_fk_violation(&error) => return Err(missing()),
            other => other?,
        };
    }
    Ok(())
}

/// Labels that go on and come off in an update, and the names that were on before.
struct LabelChanges {
    add: Vec<Id>,
    remove: Vec<Id>,
    before: String,
}

impl LabelChanges {
    /// What is left of the request when labels that are on already, or are not on anyway, are left out.
    async fn plan(tx: &mut Conn, task: &Task, changes: &TaskChanges) -> Result<Option<Self>> {
        if changes.add_label_ids.is_empty() && changes.remove_label_ids.is_empty() {
            return Ok(None);
        }
        let present = super::label::of_task(tx, task.id).await?;
        let is_on = |id: &Id| present.iter().any(|label| label.id == *id);
        let add: Vec<Id> = changes.add_label_ids.iter().copied().filter(|id| !is_on(id)).collect();
        let remove: Vec<Id> = changes
            .remove_label_ids
            .iter()
            .copied()
            .filter(|id| is_on(id) && !changes.add_label_ids.contains(id))
            .collect();
        Ok((!add.is_empty() || !remove.is_empty()).then(|| Self { add, remove, before: label_names(&present) }))
    }

    /// The names of the labels before and after.
    async fn apply(&self, tx: &mut Conn, task: &Task) -> Result<(String, String)> {
        on!(tx, |c| diesel::delete(task_labels::table)
            .filter(task_labels::task_id.eq(task.id))
            .filter(any_id(task_labels::label_id, &self.remove))
            .execute(c)
            .await)?;
        add_labels(tx, task, &self.add, "addLabelIds").await?;
        let after = super::label::of_task(tx, task.id).await?;
        Ok((self.before.clone(), label_names(&after)))
    }
}

fn label_names(labels: &[super::label::Label]) -> String {
    labels.iter().map(|label| label.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn search(task: &Task) -> String {
    fold(&format!("{}\n{}", task.title, task.description.as_deref().unwrap_or_default()))
}

fn diff(old: &Task, new: &Task, labels: Option<(String, String)>) -> Vec<Change> {
    let priority = |task: &Task| Some(format!("{:?}", task.priority).to_uppercase());
    let due = |task: &Task| task.due_at.map(|due| due.to_string());
    let (from, to) = labels.unzip();
    changes([
        ("title", Some(old.title.clone()), Some(new.title.clone())),
        ("description", old.description.clone(), new.description.clone()),
        ("priority", priority(old), priority(new)),
        ("dueAt", due(old), due(new)),
        ("labels", from, to),
    ])
}

#[cfg(test)]
mod tests {
    use diesel::debug_query;
    use diesel::sqlite::Sqlite;

    use super::*;

    #[test]
    fn the_columns_are_those_of_a_task() {
        let words =
            |query: String| query.replace(['`', '"'], "").split([' ', ',']).map(ToOwned::to_owned).collect::<Vec<_>>();
        let read = |columns: TaskColumns| {
            words(debug_query::<Sqlite, _>(&tasks::table.select(columns.expression())).to_string())
        };
        let full = words(debug_query::<Sqlite, _>(&tasks::table.select(Task::as_select())).to_string());
        assert_eq!(read(TaskColumns::Full), full);
        let left_out = |columns: TaskColumns| {
            let read = read(columns);
            assert_eq!(read.len(), full.len());
            let left_out = full.iter().zip(read).filter(|(full, read)| *full != read);
            left_out.map(|(full, read)| (full.clone(), read)).collect::<Vec<_>>()
        };
        assert_eq!(left_out(TaskColumns::Short), [("tasks.description".to_owned(), "NULL".to_owned())]);
        let left_out = left_out(TaskColumns::Summary);
        assert!(left_out.len() == 5 && left_out.iter().all(|(_, read)| read == "NULL"), "{left_out:?}");
    }
}
