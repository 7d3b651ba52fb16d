//! Tasks. Every task belongs to a project and has at most one assignee. Reading and writing single
//! tasks lives here; lists with filters and pages are in [`super::task_list`].

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
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    AsExpression,
    FromSqlRow,
    Serialize,
    Deserialize,
    async_graphql::Enum,
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
    /// Whether a task may change from this status to `next`.
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
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    AsExpression,
    FromSqlRow,
    Serialize,
    Deserialize,
    async_graphql::Enum,
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

#[derive(
    Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable, Serialize, Deserialize,
)]
#[diesel(table_name = tasks, treat_none_as_default_value = false)]
pub struct Task {
    pub id: Id,
    /// Never changes.
    pub project_id: Id,
    /// The owner of the project; copied from its row.
    pub owner_id: Id,
    pub creator_id: Option<Id>,
    pub assignee_id: Option<Id>,
    pub title: String,
    pub description: Option<String>,
    pub status: TaskStatus,
    pub priority: Priority,
    pub due_at: Option<Timestamp>,
    /// When the status became DONE; null in any other status.
    pub completed_at: Option<Timestamp>,
    /// Incremented by each update.
    #[diesel(deserialize_as = OrDefault<i32>)]
    pub version: i32,
    pub created_at: Timestamp,
    #[diesel(deserialize_as = OrDefault<Timestamp>)]
    pub updated_at: Timestamp,
}

/// Which columns of a task are selected, from fewest to most; each variant includes the previous
/// ones. The others are read as null. Use partial columns only for rows that are displayed, never
/// for rows that are written back or recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskColumns {
    /// Enough for most lists: no description, creator, completion time, version and time of the
    /// last update.
    Summary,
    /// All but the description, which can be 40 kB.
    Short,
    Full,
}

impl TaskColumns {
    /// The columns in the order of the fields of [`Task`].
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

/// SQL form of [`Action::SeeTask`]. Queries for data that belongs to a task include this condition,
/// because the task may have been reassigned since the viewer read it.
///
/// `reader` is `None` if the permission was already checked, on the task of an event that is being
/// delivered. The response is then the same for all subscribers, which can share it.
pub(super) fn visible_to(reader: Option<&Viewer>) -> visible {
    let nobody = Id::from_bytes([0; 16]);
    visible(
        reader.map_or(nobody, |viewer| viewer.id),
        reader.is_none_or(Viewer::is_admin),
    )
}

#[diesel::dsl::auto_type]
fn visible(viewer: Id, is_admin: bool) -> _ {
    let is_admin: diesel::dsl::AsExprOf<bool, sql::Bool> = is_admin.into_sql::<sql::Bool>();
    let is_assignee: diesel::dsl::Eq<tasks::assignee_id, Id> = tasks::assignee_id.eq(viewer);
    tasks::owner_id.eq(viewer).or(is_assignee).or(is_admin)
}

/// Returns the tasks with these ids that the viewer may see.
pub async fn by_ids(conn: &mut Conn, viewer: &Viewer, ids: &[Id]) -> Result<Vec<Task>> {
    select_by_ids(conn, viewer, ids, TaskColumns::Full).await
}

/// Like [`by_ids`], with the given columns.
pub async fn select_by_ids(
    conn: &mut Conn,
    viewer: &Viewer,
    ids: &[Id],
    columns: TaskColumns,
) -> Result<Vec<Task>> {
    let mut rows = select_any_by_ids(conn, ids, columns).await?;
    rows.retain(|task| viewer.may(Action::SeeTask, task));
    Ok(rows)
}

/// Returns the tasks with these ids without a permission check. Event delivery uses it and then
/// checks the permissions of many viewers on the same row.
pub async fn any_by_ids(conn: &mut Conn, ids: &[Id]) -> Result<Vec<Task>> {
    select_any_by_ids(conn, ids, TaskColumns::Full).await
}

/// Like [`any_by_ids`], with the given columns.
pub async fn select_any_by_ids(
    conn: &mut Conn,
    ids: &[Id],
    columns: TaskColumns,
) -> Result<Vec<Task>> {
    let found = tasks::table
        .filter(any_id(tasks::id, ids))
        .select(columns.expression());
    Ok(inline_if_few(ids.len(), async { on!(conn, |c| found.load(c).await) }).await?)
}

/// Returns a task that the viewer may see. Otherwise `field` is reported as `NOT_FOUND`.
pub async fn get_visible(
    conn: &mut Conn,
    viewer: &Viewer,
    id: Id,
    field: &'static str,
) -> Result<Task> {
    by_ids(conn, viewer, &[id])
        .await?
        .pop()
        .ok_or_else(|| Error::not_found(field, "task"))
}

/// Returns a task that the viewer may see, locked until the transaction ends, so that permissions
/// and the recipients of its events stay the same until the write is in the event log. Tasks that
/// the viewer may not see are not locked, so nobody can block other people's tasks.
pub async fn lock(tx: &mut Conn, viewer: &Viewer, id: Id, lock: Lock) -> Result<Option<Task>> {
    let task = tasks::table.find(id).filter(visible_to(Some(viewer)));
    let task: Option<Task> = select_locked!(tx, task.select(Task::as_select()), lock)?.pop();
    Ok(task.filter(|task| viewer.may(Action::SeeTask, task)))
}

#[derive(Clone, Debug)]
pub struct NewTask {
    pub project_id: Id,
    pub title: Title,
    pub description: Option<Description>,
    pub priority: Priority,
    pub due_at: Option<Timestamp>,
    pub assignee_id: Option<Id>,
    /// Labels of the same project.
    pub label_ids: Vec<Id>,
}

pub async fn create(db: &Db, now: Timestamp, viewer: &Viewer, new: &NewTask) -> Result<Task> {
    db.inline_transaction(async |tx| {
        let assignee = lock_assignee(tx, viewer, new.assignee_id).await?;
        let viewer = &session::lock(tx, now, viewer).await?;
        // The lock makes archiving and deleting the project wait for this transaction.
        let project = project::lock(
            tx,
            viewer,
            Action::CreateTask,
            new.project_id,
            "projectId",
            Lock::Share,
        )
        .await?;
        if project.status == project::ProjectStatus::Archived {
            let message = "The project is archived and accepts no new tasks.";
            return Err(Error::user_error(
                "projectId",
                UserErrorCode::Archived,
                message,
            ));
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
        let mut events = vec![about_task(
            EventKind::TaskCreated,
            viewer,
            now,
            &task,
            Snapshot::default(),
        )];
        events.extend(assign(tx, now, viewer, &task, assignee.as_ref(), None).await?);
        events::append(tx, &events).await?;
        quota::add_task(tx, db.quotas, &task).await?;
        Ok(task)
    })
    .await
}

/// Changes of an update. `None` leaves a field unchanged; `Some(None)` clears it.
#[derive(Clone, Debug, Default)]
pub struct TaskChanges {
    pub title: Option<Title>,
    pub description: Option<Option<Description>>,
    pub status: Option<TaskStatus>,
    pub priority: Option<Priority>,
    pub due_at: Option<Option<Timestamp>>,
    pub assignee_id: Option<Option<Id>>,
    pub add_label_ids: Vec<Id>,
    pub remove_label_ids: Vec<Id>,
    /// The update fails with `CONFLICT` if the task has another version.
    pub expected_version: Option<i32>,
}

/// Updates a task. Each kind of change appends its own event.
pub async fn update(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    id: Id,
    changes: &TaskChanges,
) -> Result<Task> {
    if let Some(task) = update_in_one_statement(db, now, viewer, id, changes).await? {
        return Ok(task);
    }
    db.inline_transaction(async |tx| {
        let assignee = lock_assignee(tx, viewer, changes.assignee_id.flatten()).await?;
        let viewer = &session::lock(tx, now, viewer).await?;
        let old = lock(tx, viewer, id, Lock::Update)
            .await?
            .ok_or_else(|| Error::not_found("id", "task"))?;
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

/// Optimistic fast path for updates that change only the task's row and append exactly one event.
/// It reads the task without a lock, then updates it and appends the event: on PostgreSQL in a
/// single statement without a transaction, and on SQLite with the writer held for a shorter time.
/// Returns `None` if the update needs more than that, or if the row changed in between; the caller
/// then takes the slow path.
///
/// What the permission check read cannot change in between. The owner of a task never changes. Its
/// assignee changes only together with the version, which the statement compares after locking the
/// row. The statement also locks and compares the viewer's session and role.
async fn update_in_one_statement(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    id: Id,
    changes: &TaskChanges,
) -> Result<Option<Task>> {
    let is_plain = changes.assignee_id.is_none()
        && changes.add_label_ids.is_empty()
        && changes.remove_label_ids.is_empty();
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
        // Changes the text quota, which needs a transaction.
        return Ok(None);
    }
    let row = TaskUpdate::of(&old, &new);
    let is_unchanged = tasks::version
        .eq(old.version)
        .and(session::ViewerUnchanged::new(viewer, now));
    let update = diesel::update(tasks::table.find(id))
        .filter(is_unchanged)
        .set(&row);
    Ok(events::change_and_append(db, update, event)
        .await?
        .then_some(new))
}

/// The changed columns of an update. SQLite rewrites every index on a column that the statement
/// sets, even to the same value.
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

/// The events for an update, except those about the assignee.
fn events_for(
    viewer: &Viewer,
    old: &Task,
    new: &Task,
    labels: Option<(String, String)>,
) -> Vec<NewEvent> {
    let mut events = Vec::new();
    let mut push =
        |kind, snapshot| events.push(about_task(kind, viewer, new.updated_at, new, snapshot));
    let changes = diff(old, new, labels);
    if !changes.is_empty() {
        push(
            EventKind::TaskUpdated,
            Snapshot {
                changes,
                ..Snapshot::default()
            },
        );
    }
    if new.status != old.status {
        push(
            EventKind::StatusChanged,
            Snapshot {
                status: Some((old.status, new.status)),
                ..Snapshot::default()
            },
        );
    }
    events
}

/// Deletes a task with its comments.
pub async fn delete(db: &Db, now: Timestamp, viewer: &Viewer, id: Id) -> Result<()> {
    // Not an inline transaction: the cascade may delete many comments.
    db.transaction(async |tx| {
        let viewer = &session::lock(tx, now, viewer).await?;
        let task = lock(tx, viewer, id, Lock::Delete)
            .await?
            .ok_or_else(|| Error::not_found("id", "task"))?;
        viewer.require(Action::DeleteTask, &task)?;
        let freed =
            quota::size(task.description.as_deref()) + quota::comment_bytes(tx, &[id]).await?;
        on!(tx, |c| diesel::delete(tasks::table.find(id))
            .execute(c)
            .await)?;
        // The project cannot be deleted meanwhile: that would need a lock on this task.
        let project = project::any_by_ids(tx, &[task.project_id]).await?.pop();
        let project = project.ok_or_else(|| Error::internal("task without a project"))?;
        let deletion = about_deleted_task(viewer, now, &task, &project);
        let kept = events::append_with_texts(tx, &[deletion]).await?;
        quota::remove_task(tx, &task, kept - freed).await
    })
    .await
}

/// Tasks of a deleted project that are loaded at once: at most 4 MB of descriptions.
const DELETION_BATCH: usize = 100;

/// Locks every task of a locked project and appends their deletion events. The caller deletes the
/// rows. Returns the change of the owner's text usage in bytes.
pub async fn append_deletions(
    tx: &mut Conn,
    now: Timestamp,
    viewer: &Viewer,
    project: &Project,
) -> Result<i64> {
    let of_project = tasks::table
        .filter(tasks::project_id.eq(project.id))
        .order_by((tasks::created_at, tasks::id));
    let ids: Vec<Id> = select_locked!(tx, of_project.select(tasks::id), Lock::Delete)?;
    let mut growth = 0;
    for ids in ids.chunks(DELETION_BATCH) {
        let batch = tasks::table
            .filter(any_id(tasks::id, ids))
            .order_by((tasks::created_at, tasks::id));
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
        Some(due) if due <= now => Err(Error::user_error(
            "dueAt",
            UserErrorCode::InThePast,
            "Must be in the future.",
        )),
        _ => Ok(()),
    }
}

/// Checks an update and returns the task with the changes applied.
fn apply(old: &Task, changes: &TaskChanges, viewer: &Viewer, now: Timestamp) -> Result<Task> {
    viewer.require(Action::UpdateTask, old)?;
    if changes
        .expected_version
        .is_some_and(|version| version != old.version)
    {
        let message = "The task was changed by another request. Reload it and try again.";
        return Err(Error::user_error(
            "expectedVersion",
            UserErrorCode::Conflict,
            message,
        ));
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
                "The status can change only one step at a time: TODO ↔ IN_PROGRESS ↔ DONE.",
            ));
        }
        new.status = status;
        new.completed_at = (status == TaskStatus::Done).then_some(now);
    }
    Ok(new)
}

/// Loads the new assignee and locks the account until the transaction ends, so that it cannot be
/// disabled or change its e-mail address before the write is committed.
async fn lock_assignee(tx: &mut Conn, viewer: &Viewer, id: Option<Id>) -> Result<Option<User>> {
    match id {
        Some(id) => user::lock_with_viewer(tx, viewer, id).await,
        None => Ok(None),
    }
}

/// Rejects an assignee whose account does not exist or was deleted. A disabled account is rejected
/// only if the viewer may read that account; for others the error would disclose that it is
/// disabled.
fn check_assignee(viewer: &Viewer, id: Option<Id>, assignee: Option<&User>) -> Result<()> {
    let Some(id) = id else { return Ok(()) };
    let assignee = assignee.ok_or_else(|| Error::not_found("assigneeId", "user"))?;
    let refused = |message| {
        Err(Error::user_error(
            "assigneeId",
            UserErrorCode::Invalid,
            message,
        ))
    };
    if assignee.deleted_at.is_some() {
        return refused("This account was deleted.");
    }
    if !assignee.is_active && viewer.may(Action::ReadAccount, &AccountId(id)) {
        return refused("This user is not active.");
    }
    Ok(())
}

/// Returns the events about a new assignee, addressed to the previous one too. Also queues a mail
/// if the assignee is another user who accepts assignment mails, at a verified address, and the
/// viewer's mail quota allows it.
async fn assign(
    tx: &mut Conn,
    now: Timestamp,
    viewer: &Viewer,
    task: &Task,
    assignee: Option<&User>,
    previous: Option<Id>,
) -> Result<Vec<NewEvent>> {
    let mut events = Vec::new();
    let event = |kind| NewEvent {
        previous_assignee_id: previous,
        ..about_task(kind, viewer, now, task, Snapshot::default())
    };
    if previous.is_some() {
        events.push(event(EventKind::TaskUnassigned));
    }
    if let Some(assignee) = assignee {
        events.push(event(EventKind::TaskAssigned));
        if assignee.id != viewer.id
            && assignee.wants_assignment_mail()
            && mail_quota::admit_assignment(tx, now, viewer.id, &assignee.email).await?
        {
            mail::queue(
                tx,
                now,
                mail::MailKind::TaskAssigned,
                &assignee.email,
                Some(assignee.id),
                &task.title,
            )
            .await?;
        }
    }
    Ok(events)
}

/// Adds labels to a task. Fails if one of them is not a label of the task's project; labels that
/// the task already has are ignored.
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
        let row = (
            task_labels::task_id.eq(task.id),
            task_labels::label_id.eq(id),
        );
        let inserted = on!(tx, |c| diesel::insert_into(task_labels::table)
            .values(row)
            .on_conflict_do_nothing()
            .execute(c)
            .await);
        match inserted {
            Err(error) if is_fk_violation(&error) => return Err(missing()),
            other => other?,
        };
    }
    Ok(())
}

/// The label changes of an update, and the names of the task's labels before it.
struct LabelChanges {
    add: Vec<Id>,
    remove: Vec<Id>,
    before: String,
}

impl LabelChanges {
    /// Drops the requested changes that have no effect; `None` if nothing is left.
    async fn plan(tx: &mut Conn, task: &Task, changes: &TaskChanges) -> Result<Option<Self>> {
        if changes.add_label_ids.is_empty() && changes.remove_label_ids.is_empty() {
            return Ok(None);
        }
        let present = super::label::of_task(tx, task.id).await?;
        let is_on = |id: &Id| present.iter().any(|label| label.id == *id);
        let add: Vec<Id> = changes
            .add_label_ids
            .iter()
            .copied()
            .filter(|id| !is_on(id))
            .collect();
        let remove: Vec<Id> = changes
            .remove_label_ids
            .iter()
            .copied()
            .filter(|id| is_on(id) && !changes.add_label_ids.contains(id))
            .collect();
        Ok((!add.is_empty() || !remove.is_empty()).then(|| Self {
            add,
            remove,
            before: label_names(&present),
        }))
    }

    /// Returns the names of the labels before and after.
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
    labels
        .iter()
        .map(|label| label.name.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

fn search(task: &Task) -> String {
    fold(&format!(
        "{}\n{}",
        task.title,
        task.description.as_deref().unwrap_or_default()
    ))
}

fn diff(old: &Task, new: &Task, labels: Option<(String, String)>) -> Vec<Change> {
    let priority = |task: &Task| Some(format!("{:?}", task.priority).to_uppercase());
    let due = |task: &Task| task.due_at.map(|due| due.to_string());
    let (from, to) = labels.unzip();
    changes([
        ("title", Some(old.title.clone()), Some(new.title.clone())),
        (
            "description",
            old.description.clone(),
            new.description.clone(),
        ),
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
        let words = |query: String| {
            query
                .replace(['`', '"'], "")
                .split([' ', ','])
                .map(ToOwned::to_owned)
                .collect::<Vec<_>>()
        };
        let read = |columns: TaskColumns| {
            words(debug_query::<Sqlite, _>(&tasks::table.select(columns.expression())).to_string())
        };
        let full =
            words(debug_query::<Sqlite, _>(&tasks::table.select(Task::as_select())).to_string());
        assert_eq!(read(TaskColumns::Full), full);
        let left_out = |columns: TaskColumns| {
            let read = read(columns);
            assert_eq!(read.len(), full.len());
            let left_out = full.iter().zip(read).filter(|(full, read)| *full != read);
            left_out
                .map(|(full, read)| (full.clone(), read))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            left_out(TaskColumns::Short),
            [("tasks.description".to_owned(), "NULL".to_owned())]
        );
        let left_out = left_out(TaskColumns::Summary);
        assert!(
            left_out.len() == 5 && left_out.iter().all(|(_, read)| read == "NULL"),
            "{left_out:?}"
        );
    }
}
