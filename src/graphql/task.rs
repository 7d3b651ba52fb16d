//! Tasks.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, MaybeUndefined, Object, Result, SimpleObject};
use futures_util::FutureExt;

use super::comment::{self, Comment};
use super::connection::{Connection, Paging, Tag, Total, needs};
use super::event::EventConnection;
use super::json::Encoded;
use super::label::Label;
use super::level::{ByLevel, Found, Level, Selected, Step};
use super::node::{self, Noun};
use super::payload::{UserError, write};
use super::project::{self, Project};
use super::text::Text;
use super::user::{OrderDirection, User, required};
use super::{Caller, event, guard, loader};
use crate::access::Action;
use crate::db::page::Page;
use crate::error::{Code, Error};
use crate::id::Id;
use crate::own;
use crate::store::comment as store_comment;
use crate::store::task::{self as store, Changes, New, Priority, Status, TaskColumns};
use crate::store::task_list::{self, Filter, List, OrderField, Range, Scope};
use crate::store::value::{Description, Faults, Search, Title};
use crate::time::Timestamp;

/// A task, as the schema shows it.
#[derive(Clone)]
pub struct Task(pub Arc<store::Task>);

/// Something to be done in a project. The project's owner, its assignee and ADMIN see and change it.
#[Object]
impl Task {
    /// The object's global id; opaque, and it never changes.
    pub async fn id(&self) -> ID {
        node::encode(Noun::Task, self.0.id)
    }

    /// What is to be done: 1–200 characters.
    async fn title(&self) -> Text<&str> {
        Text(&self.0.title)
    }

    /// At more length: up to 10,000 characters.
    async fn description(&self) -> Option<Text<&str>> {
        self.0.description.as_deref().map(Text)
    }

    /// How far it is.
    async fn status(&self) -> Status {
        self.0.status
    }

    /// How urgent it is.
    async fn priority(&self) -> Priority {
        self.0.priority
    }

    /// When it should be done.
    async fn due_at(&self) -> Option<Timestamp> {
        self.0.due_at
    }

    /// Whether it is past its due date and not DONE.
    async fn is_overdue(&self, ctx: &Context<'_>) -> bool {
        self.is_late(Caller::of(ctx))
    }

    /// When it became DONE; null unless it is.
    async fn completed_at(&self) -> Option<Timestamp> {
        self.0.completed_at
    }

    /// Grows by one with each change, of its labels too.
    async fn version(&self) -> i32 {
        self.0.version
    }

    /// When it was made.
    async fn created_at(&self) -> Timestamp {
        self.0.created_at
    }

    /// When it last changed.
    async fn updated_at(&self) -> Timestamp {
        self.0.updated_at
    }

    /// The project it is in.
    async fn project(&self, ctx: &Context<'_>) -> Result<Project> {
        let columns = project::columns(&Selected::of(ctx));
        let project = Caller::of(ctx).loaders()?.project(self.0.project_id, columns).await?;
        Ok(Project(project.ok_or_else(|| Error::refused(Code::NotFound, "The project is gone."))?))
    }

    /// Who made it; a user named `Deleted user` when the account is gone.
    async fn creator(&self, ctx: &Context<'_>) -> Result<Option<User>> {
        user(ctx, self.0.creator_id).await
    }

    /// Who is to do it.
    async fn assignee(&self, ctx: &Context<'_>) -> Result<Option<User>> {
        user(ctx, self.0.assignee_id).await
    }

    /// Its labels, by name.
    async fn labels(&self, ctx: &Context<'_>) -> Result<Vec<Label>> {
        let caller = Caller::of(ctx);
        let labels = caller.members(caller.loaders()?.task_labels(self.0.id).await?)?;
        Ok(labels.into_iter().map(Label).collect())
    }

    /// What people wrote about it, oldest first.
    async fn comments(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "So many from the start: 1–100, default 20.")] first: Option<i32>,
        #[graphql(desc = "Only what comes after this cursor.")] after: Option<String>,
        #[graphql(desc = "So many from the end: 1–100; not together with `first`.")] last: Option<i32>,
        #[graphql(desc = "Only what comes before this cursor.")] before: Option<String>,
    ) -> Result<ByLevel<Connection<Comment>>> {
        let window = Arc::new(Paging::new(first, after, last, before).window(comments_tag())?);
        let columns = comment::columns_of_nodes(&Selected::of(ctx));
        let page = Caller::of(ctx).loaders()?.comment_page(self.0.id, window, columns).await?;
        Ok(ByLevel(self.commented(page)))
    }

    /// What happened to this task, oldest first.
    async fn activity(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "So many from the start: 1–100, default 20.")] first: Option<i32>,
        #[graphql(desc = "Only what comes after this cursor.")] after: Option<String>,
        #[graphql(desc = "So many from the end: 1–100; not together with `first`.")] last: Option<i32>,
        #[graphql(desc = "Only what comes before this cursor.")] before: Option<String>,
    ) -> Result<EventConnection> {
        let cursors = &Caller::of(ctx).app().cursors;
        let stretch = event::stretch(cursors, &Paging::new(first, after, last, before))?;
        let columns = event::columns_of_nodes(&Selected::of(ctx), false);
        let events = Caller::of(ctx).loaders()?.activity(self.0.id, event::one_more(stretch), columns).await?;
        let views = events.iter().map(|(event, snapshot)| event::Told::new(event, snapshot, Some(&self.0)));
        event::connection(views.collect(), stretch, cursors)
    }

    /// Whether the viewer may change the task.
    async fn viewer_can_update(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(Caller::of(ctx).may(Action::UpdateTask, &*self.0)?)
    }

    /// Whether the viewer may delete the task.
    async fn viewer_can_delete(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(Caller::of(ctx).may(Action::DeleteTask, &*self.0)?)
    }

    /// Whether the viewer may comment on the task.
    async fn viewer_can_comment(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(Caller::of(ctx).may(Action::AddComment, &*self.0)?)
    }
}

impl Task {
    fn is_late(&self, caller: &Caller) -> bool {
        self.0.status != Status::Done && self.0.due_at.is_some_and(|due| due < caller.app().clock.now())
    }

    fn commented(&self, page: Page<Arc<store_comment::Comment>>) -> Connection<Comment> {
        Connection::new(comments_tag(), Total::Comments(self.0.id), page, |row| row.position(), Comment)
    }
}

/// A cursor is good for the comments of any task: it says when, and which after that.
fn comments_tag() -> Tag {
    Tag::new("Task.comments", None, &(), false)
}

impl Level for Task {
    const IS_NODE: bool = true;

    fn step<'a>(field: &Selected<'a>) -> Option<Step<'a, Self>> {
        Some(match field.name() {
            "id" => own!(|task| Encoded(&node::bytes(Noun::Task, task.0.id))),
            "title" => own!(|task| task.0.title),
            "description" => own!(|task| task.0.description),
            "status" => own!(|task| task.0.status),
            "priority" => own!(|task| task.0.priority),
            "dueAt" => own!(|task| task.0.due_at),
            "isOverdue" => own!(|task, caller| task.is_late(caller)),
            "completedAt" => own!(|task| task.0.completed_at),
            "version" => own!(|task| task.0.version),
            "createdAt" => own!(|task| task.0.created_at),
            "updatedAt" => own!(|task| task.0.updated_at),
            "project" => {
                let columns = project::columns(field);
                let key = move |id| (columns, id);
                field.one(|task: &Self| Some(task.0.project_id), loader::Projects, key, Project, true)?
            }
            "creator" => field.one(|task: &Self| task.0.creator_id, loader::Users, |id| id, User::from, false)?,
            "assignee" => field.one(|task: &Self| task.0.assignee_id, loader::Users, |id| id, User::from, false)?,
            "labels" => field.all(|task: &Self| task.0.id, loader::TaskLabels, Label)?,
            "comments" => {
                let window = Arc::new(Paging::of(field)?.window(comments_tag()).ok()?);
                let columns = comment::columns_of_nodes(field);
                field.found(move |tasks: &[Self], caller| {
                    let key = |task: &Self| ((columns, Arc::clone(&window)), task.0.id);
                    let keys = tasks.iter().map(key).collect::<Vec<_>>();
                    async move {
                        let pages = caller.loaders()?.all::<loader::CommentPages>(keys.iter().cloned()).await?;
                        let pages =
                            tasks.iter().zip(&keys).map(|(task, key)| Some(task.commented(pages.get(key)?.clone())));
                        Found::each(pages)
                    }
                    .boxed()
                })?
            }
            "viewerCanUpdate" => own!(|task, caller| caller.may(Action::UpdateTask, &*task.0)?),
            "viewerCanDelete" => own!(|task, caller| caller.may(Action::DeleteTask, &*task.0)?),
            "viewerCanComment" => own!(|task, caller| caller.may(Action::AddComment, &*task.0)?),
            _ => return None,
        })
    }
}

/// The user with an id that may be none.
pub async fn user(ctx: &Context<'_>, id: Option<Id>) -> Result<Option<User>> {
    match id {
        Some(id) => Ok(Caller::of(ctx).loaders()?.user(id).await?.map(User::from)),
        None => Ok(None),
    }
}

/// A stretch of time; members are ANDed.
#[derive(Clone, InputObject)]
pub struct DateTimeRange {
    /// Later than.
    gt: Option<Timestamp>,
    /// Not earlier than.
    gte: Option<Timestamp>,
    /// Earlier than.
    lt: Option<Timestamp>,
    /// Not later than.
    lte: Option<Timestamp>,
}

impl From<DateTimeRange> for Range {
    fn from(DateTimeRange { gt, gte, lt, lte }: DateTimeRange) -> Self {
        Self { gt, gte, lt, lte }
    }
}

/// Which tasks are asked for. Members are ANDed; an empty list matches nothing.
#[derive(Clone, InputObject)]
pub struct TaskFilter {
    /// Words in title or description, without regard to case; all of them must occur. At most 10 words and 200
    /// characters; `%` and `_` mean themselves.
    search: Option<String>,
    /// In one of these statuses, at most 100.
    status: Option<Vec<Status>>,
    /// Of one of these priorities, at most 100.
    priority: Option<Vec<Priority>>,
    /// In this project.
    project_id: Option<ID>,
    /// Assigned to this user.
    assignee_id: Option<ID>,
    /// Assigned to nobody (true), or to somebody (false).
    unassigned: Option<bool>,
    /// With at least one of these labels, at most 100.
    label_ids: Option<Vec<ID>>,
    /// Past its due date and not DONE (true), or not so (false).
    overdue: Option<bool>,
    /// Due in this stretch of time; tasks without a due date are in none.
    due_at: Option<DateTimeRange>,
    /// Made in this stretch of time.
    created_at: Option<DateTimeRange>,
    /// Last changed in this stretch of time.
    updated_at: Option<DateTimeRange>,
}

/// How long a list in a filter may be.
const MAX_LIST: usize = 100;

/// Refuses a filter with a list that is longer.
pub fn check_lists(lengths: impl IntoIterator<Item = usize>) -> crate::error::Result<()> {
    match lengths.into_iter().any(|length| length > MAX_LIST) {
        true => Err(Error::bad_input("A list in a filter has at most 100 members.")),
        false => Ok(()),
    }
}

impl TaskFilter {
    fn parse(self) -> crate::error::Result<Filter> {
        check_lists([
            self.status.as_ref().map_or(0, Vec::len),
            self.priority.as_ref().map_or(0, Vec::len),
            self.label_ids.as_ref().map_or(0, Vec::len),
        ])?;
        let labels = |ids: Vec<ID>| ids.iter().map(|id| node::filtered(Noun::Label, id)).collect();
        Ok(Filter {
            search: self.search.as_deref().map(Search::parse).transpose()?,
            status: self.status,
            priority: self.priority,
            project_id: self.project_id.map(|id| node::filtered(Noun::Project, &id)).transpose()?,
            assignee_id: self.assignee_id.map(|id| node::filtered(Noun::User, &id)).transpose()?,
            unassigned: self.unassigned,
            label_ids: self.label_ids.map(labels).transpose()?,
            overdue: self.overdue,
            due_at: self.due_at.map(Range::from),
            created_at: self.created_at.map(Range::from),
            updated_at: self.updated_at.map(Range::from),
        })
    }
}

/// The order of a list of tasks.
#[derive(Clone, InputObject)]
pub struct TaskOrder {
    /// What to order by.
    field: OrderField,
    /// Which way round.
    #[graphql(default_with = "OrderDirection::Asc")]
    direction: OrderDirection,
}

/// What of a task is read for what is selected of it. What hangs on it by its id is read for itself, but for its history,
/// which shows the task again.
pub fn columns(task: &Selected<'_>) -> TaskColumns {
    task.greatest(&["Task", "Node"], TaskColumns::Summary, |field| match field.name() {
        "__typename" | "id" | "title" | "status" | "priority" | "dueAt" | "isOverdue" | "createdAt" | "project"
        | "assignee" | "labels" | "comments" | "viewerCanUpdate" | "viewerCanDelete" | "viewerCanComment" => {
            TaskColumns::Summary
        }
        "creator" | "completedAt" | "version" | "updatedAt" => TaskColumns::Short,
        "activity" => event::task_columns(&field),
        _ => TaskColumns::Full,
    })
}

/// What of tasks is read for what is selected of a connection of them.
pub fn columns_of_nodes(connection: &Selected<'_>) -> TaskColumns {
    needs(connection, ["TaskConnection", "TaskEdge"], TaskColumns::Summary, |task| columns(&task))
}

/// The list that a field's arguments ask for, and the tag of its cursors.
pub fn list(
    field: &str,
    parent: Option<Id>,
    scopes: Vec<Scope>,
    paging: &Paging,
    filter: Option<TaskFilter>,
    order_by: Option<TaskOrder>,
    columns: TaskColumns,
) -> crate::error::Result<(Tag, Arc<List>)> {
    let order = order_by.as_ref().map_or(OrderField::CreatedAt, |order| order.field);
    let descending = order_by.is_some_and(|order| order.direction == OrderDirection::Desc);
    let tag = Tag::new(field, parent, &order, descending);
    let filter = filter.map(TaskFilter::parse).transpose()?.unwrap_or_default();
    Ok((tag, Arc::new(List { scopes, filter, order, descending, window: paging.window(tag)?, columns })))
}

/// The page of such a list as a connection.
pub fn connection(tag: Tag, total: Total, page: Page<Arc<store::Task>>, list: &List) -> Connection<Task> {
    Connection::new(tag, total, page, |row| row.position(list.order), Task)
}

/// The queries of tasks.
#[derive(Default)]
pub struct TaskQuery;

#[Object]
impl TaskQuery {
    /// The task with this id; null if there is none for the viewer.
    #[graphql(guard = "guard::signed_in")]
    async fn task(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Its global id.")] id: ID,
    ) -> Result<Option<ByLevel<Task>>> {
        Ok(found(Caller::of(ctx), &Selected::of(ctx), &id).await?.map(ByLevel))
    }

    /// Every task that the viewer may see, by default oldest first: those in their own projects and those assigned to
    /// them; all tasks for ADMIN.
    #[graphql(guard = "guard::signed_in")]
    #[expect(clippy::too_many_arguments, reason = "Relay's paging arguments")]
    async fn tasks(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "So many from the start: 1–100, default 20.")] first: Option<i32>,
        #[graphql(desc = "Only what comes after this cursor.")] after: Option<String>,
        #[graphql(desc = "So many from the end: 1–100; not together with `first`.")] last: Option<i32>,
        #[graphql(desc = "Only what comes before this cursor.")] before: Option<String>,
        #[graphql(desc = "Only these.")] filter: Option<TaskFilter>,
        #[graphql(desc = "In this order.")] order_by: Option<TaskOrder>,
    ) -> Result<ByLevel<Connection<Task>>> {
        let field = Selected::of(ctx);
        let paging = Paging::new(first, after, last, before).shown_by(&field);
        Ok(ByLevel(listed(Caller::of(ctx), &field, &paging, filter, order_by).await?))
    }
}

/// The task with a global id.
pub async fn found(caller: &Caller, field: &Selected<'_>, id: &ID) -> crate::error::Result<Option<Task>> {
    let Some(id) = node::decode_as(Noun::Task, id) else {
        return Ok(None);
    };
    let key = (columns(field), id);
    Ok(caller.loaders()?.root::<loader::Tasks>(key, caller.manner().is_single).await?.map(Task))
}

/// A page of the tasks that the caller may see.
pub async fn listed(
    caller: &Caller,
    field: &Selected<'_>,
    paging: &Paging,
    filter: Option<TaskFilter>,
    order_by: Option<TaskOrder>,
) -> crate::error::Result<Connection<Task>> {
    let scopes = Scope::visible_to(caller.viewer()?);
    let (tag, list) = list("tasks", None, scopes, paging, filter, order_by, columns_of_nodes(field))?;
    let app = caller.app();
    let page = task_list::page(&mut app.db.conn_for(list.reads(1)).await?, &list, app.clock.now()).await?;
    Ok(connection(tag, Total::Tasks(Arc::clone(&list)), page.shared(), &list))
}

/// A task to be made. It begins as TODO.
#[derive(InputObject)]
pub struct CreateTaskInput {
    /// The project it is for.
    project_id: ID,
    /// What is to be done: 1–200 characters after trimming.
    title: String,
    /// At more length: up to 10,000 characters.
    description: Option<String>,
    /// How urgent it is.
    #[graphql(default_with = "Some(Priority::Medium)")]
    priority: Option<Priority>,
    /// When it should be done; must be in the future.
    due_at: Option<Timestamp>,
    /// The user who is to do it. ADMIN gets INVALID for a disabled account; nobody else learns that it is disabled, and
    /// nothing is mailed to it.
    assignee_id: Option<ID>,
    /// Labels of its project, at most 100.
    label_ids: Option<Vec<ID>>,
}

/// What came of `createTask`.
#[derive(SimpleObject)]
pub struct CreateTaskPayload {
    /// The new task; null if nothing was written.
    task: Option<Task>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// What to change of a task. A field that is left out stays as it is, an explicit null clears it.
#[derive(InputObject)]
pub struct UpdateTaskInput {
    /// Which task.
    id: ID,
    /// A new title: 1–200 characters after trimming; cannot be cleared.
    title: MaybeUndefined<String>,
    /// A new description: up to 10,000 characters.
    description: MaybeUndefined<String>,
    /// A new status, one step from the present one: TODO ↔ IN_PROGRESS ↔ DONE; cannot be cleared.
    status: MaybeUndefined<Status>,
    /// A new priority; cannot be cleared.
    priority: MaybeUndefined<Priority>,
    /// A new due date; must be in the future.
    due_at: MaybeUndefined<Timestamp>,
    /// The user who is to do it, or null for nobody. ADMIN gets INVALID for a disabled account; nobody else learns that it
    /// is disabled, and nothing is mailed to it.
    assignee_id: MaybeUndefined<ID>,
    /// Labels of its project to put on, at most 100.
    add_label_ids: Option<Vec<ID>>,
    /// Labels to take off, at most 100.
    remove_label_ids: Option<Vec<ID>>,
    /// Refuse with CONFLICT, and write nothing, when the task has moved on from this version.
    expected_version: Option<i32>,
}

/// What came of `updateTask`.
#[derive(SimpleObject)]
pub struct UpdateTaskPayload {
    /// The task as it is now; null if nothing was written, or if the change took it out of the viewer's sight.
    task: Option<ByLevel<Task>>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

/// Which task to delete.
#[derive(InputObject)]
pub struct DeleteTaskInput {
    /// Which task.
    id: ID,
}

/// What came of `deleteTask`.
#[derive(SimpleObject)]
pub struct DeleteTaskPayload {
    /// The id that is gone; null if nothing was written.
    deleted_task_id: Option<ID>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

fn label_ids(field: &'static str, ids: Option<Vec<ID>>) -> crate::error::Result<Vec<Id>> {
    let ids = ids.unwrap_or_default();
    if ids.len() > MAX_LIST {
        return Err(Error::fault(field, crate::error::FaultCode::TooLong, "At most 100 labels."));
    }
    let mut labels = ids.iter().map(|id| node::named(Noun::Label, id, field)).collect::<Result<Vec<_>, _>>()?;
    labels.sort_unstable();
    labels.dedup();
    Ok(labels)
}

/// The mutations of tasks.
#[derive(Default)]
pub struct TaskMutation;

#[Object]
impl TaskMutation {
    /// Adds a task to a project. The project's owner and ADMIN. User errors: BLANK, TOO_LONG, INVALID, NOT_FOUND,
    /// IN_THE_PAST, ARCHIVED, QUOTA_EXCEEDED.
    #[graphql(guard = "guard::signed_in")]
    async fn create_task(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to make.")] input: CreateTaskInput,
    ) -> Result<CreateTaskPayload> {
        let (task, user_errors) = write(ctx, |app, viewer| async move {
            let project_id = node::named(Noun::Project, &input.project_id, "projectId")?;
            let mut faults = Faults::default();
            let title = faults.take(Title::parse("title", &input.title));
            let description = input.description.map(|text| faults.take(Description::parse("description", &text)));
            faults.check()?;
            let new = New {
                project_id,
                title: title.ok_or_else(|| Error::internal("a title without a fault"))?,
                description: description.flatten(),
                priority: input.priority.unwrap_or(Priority::Medium),
                due_at: input.due_at,
                assignee_id: input.assignee_id.map(|id| node::named(Noun::User, &id, "assigneeId")).transpose()?,
                label_ids: label_ids("labelIds", input.label_ids)?,
            };
            store::create(&app.db, app.clock.now(), &viewer, &new).await
        })
        .await?;
        Ok(CreateTaskPayload { task: task.map(|row| Task(Arc::new(row))), user_errors })
    }

    /// Changes a task. The project's owner, its assignee and ADMIN. User errors: BLANK, TOO_LONG, INVALID, NOT_FOUND,
    /// IN_THE_PAST, INVALID_STATUS_TRANSITION, CONFLICT, QUOTA_EXCEEDED.
    #[graphql(guard = "guard::signed_in")]
    async fn update_task(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to change.")] input: UpdateTaskInput,
    ) -> Result<UpdateTaskPayload> {
        let (task, user_errors) = write(ctx, |app, viewer| async move {
            let id = node::named(Noun::Task, &input.id, "id")?;
            let mut faults = Faults::default();
            let title = required(&mut faults, "title", input.title);
            let changes = Changes {
                title: title.and_then(|title| faults.take(Title::parse("title", &title))),
                description: project::description(&mut faults, input.description),
                status: required(&mut faults, "status", input.status),
                priority: required(&mut faults, "priority", input.priority),
                due_at: nullable(input.due_at),
                assignee_id: match nullable(input.assignee_id) {
                    Some(Some(user)) => Some(Some(node::named(Noun::User, &user, "assigneeId")?)),
                    Some(None) => Some(None),
                    None => None,
                },
                add_label_ids: label_ids("addLabelIds", input.add_label_ids)?,
                remove_label_ids: label_ids("removeLabelIds", input.remove_label_ids)?,
                expected_version: input.expected_version,
            };
            faults.check()?;
            let task = store::update(&app.db, app.clock.now(), &viewer, id, &changes).await?;
            Ok(viewer.may(Action::SeeTask, &task).then_some(task))
        })
        .await?;
        Ok(UpdateTaskPayload { task: task.flatten().map(|row| ByLevel(Task(Arc::new(row)))), user_errors })
    }

    /// Deletes a task with its comments. The project's owner and ADMIN. User errors: NOT_FOUND.
    #[graphql(guard = "guard::signed_in")]
    async fn delete_task(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to delete.")] input: DeleteTaskInput,
    ) -> Result<DeleteTaskPayload> {
        let (deleted_task_id, user_errors) = write(ctx, |app, viewer| async move {
            let id = node::named(Noun::Task, &input.id, "id")?;
            store::delete(&app.db, app.clock.now(), &viewer, id).await?;
            Ok(input.id)
        })
        .await?;
        Ok(DeleteTaskPayload { deleted_task_id, user_errors })
    }
}

fn nullable<T>(value: MaybeUndefined<T>) -> Option<Option<T>> {
    match value {
        MaybeUndefined::Undefined => None,
        MaybeUndefined::Null => Some(None),
        MaybeUndefined::Value(value) => Some(Some(value)),
    }
}
