//! The `Task` type, its queries and mutations. Rules and SQL are in `store::task` and
//! `store::task_list`.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, MaybeUndefined, Object, Result, SimpleObject};
use futures_util::FutureExt;

use super::batch::{BatchObject, Batched, ChildObjects, FieldResolver, SelectedField};
use super::comment::{self, Comment};
use super::connection::{Connection, CursorTag, PageArgs, TotalCount, max_required};
use super::event::EventConnection;
use super::json::Base64Text;
use super::label::Label;
use super::node::{self, NodeType};
use super::payload::{UserErrorPayload, run_mutation};
use super::project::{self, Project};
use super::text::CountedText;
use super::user::{OrderDirection, User, required_field};
use super::{RequestContext, event, guard, loader};
use crate::access::Action;
use crate::db::page::Page;
use crate::error::{Code, Error};
use crate::id::Id;
use crate::inline;
use crate::store::comment as store_comment;
use crate::store::task::{self as store, NewTask, Priority, TaskChanges, TaskColumns, TaskStatus};
use crate::store::task_list::{self, Scope, TaskCriteria, TaskList, TaskOrderField, TimeRange};
use crate::store::value::{Description, Search, Title, UserErrors};
use crate::time::Timestamp;

#[derive(Clone)]
pub struct Task(pub Arc<store::Task>);

/// A unit of work in a project. The project's owner, the assignee and ADMIN may see and update it.
#[Object]
impl Task {
    /// Global ID of the object. Opaque; never changes.
    pub async fn id(&self) -> ID {
        node::encode(NodeType::Task, self.0.id)
    }

    /// What needs to be done; 1–200 characters.
    async fn title(&self) -> CountedText<&str> {
        CountedText(&self.0.title)
    }

    /// Details; up to 10,000 characters.
    async fn description(&self) -> Option<CountedText<&str>> {
        self.0.description.as_deref().map(CountedText)
    }

    /// Current status.
    async fn status(&self) -> TaskStatus {
        self.0.status
    }

    /// Priority of the task.
    async fn priority(&self) -> Priority {
        self.0.priority
    }

    /// When the task is due; null without a due date.
    async fn due_at(&self) -> Option<Timestamp> {
        self.0.due_at
    }

    /// Whether the task is past its due date and not DONE.
    async fn is_overdue(&self, ctx: &Context<'_>) -> bool {
        self.is_late(RequestContext::of(ctx))
    }

    /// When the task became DONE; null in any other status.
    async fn completed_at(&self) -> Option<Timestamp> {
        self.0.completed_at
    }

    /// Starts at 1 and increases by 1 with each `updateTask` that changes the task or its labels.
    /// Pass it as `expectedVersion` to detect concurrent updates.
    async fn version(&self) -> i32 {
        self.0.version
    }

    /// When the task was created.
    async fn created_at(&self) -> Timestamp {
        self.0.created_at
    }

    /// When the task or its labels were last updated.
    async fn updated_at(&self) -> Timestamp {
        self.0.updated_at
    }

    /// The project that the task belongs to.
    async fn project(&self, ctx: &Context<'_>) -> Result<Project> {
        let columns = project::required_columns(&SelectedField::of(ctx));
        let project = RequestContext::of(ctx)
            .loaders()?
            .project(self.0.project_id, columns)
            .await?;
        Ok(Project(project.ok_or_else(|| {
            Error::refused(Code::NotFound, "The project no longer exists.")
        })?))
    }

    /// The user who created the task. Deleted accounts appear as a user named `Deleted user`.
    async fn creator(&self, ctx: &Context<'_>) -> Result<Option<User>> {
        user(ctx, self.0.creator_id).await
    }

    /// The user responsible for the task; null if the task is unassigned. Deleted accounts appear
    /// as a user named `Deleted user`.
    async fn assignee(&self, ctx: &Context<'_>) -> Result<Option<User>> {
        user(ctx, self.0.assignee_id).await
    }

    /// Labels of the task, sorted by name.
    async fn labels(&self, ctx: &Context<'_>) -> Result<Vec<Label>> {
        let caller = RequestContext::of(ctx);
        let labels = caller.check_list_size(caller.loaders()?.task_labels(self.0.id).await?)?;
        Ok(labels.into_iter().map(Label).collect())
    }

    /// Comments on the task, oldest first.
    async fn comments(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Returns the first *n* items (1–100, default 20).")] first: Option<i32>,
        #[graphql(desc = "Returns only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "Returns the last *n* items (1–100). Cannot be combined with `first`.")]
        last: Option<i32>,
        #[graphql(desc = "Returns only items before this cursor.")] before: Option<String>,
    ) -> Result<Batched<Connection<Comment>>> {
        let window = Arc::new(PageArgs::new(first, after, last, before).window(comments_tag())?);
        let columns = comment::required_node_columns(&SelectedField::of(ctx));
        let page = RequestContext::of(ctx)
            .loaders()?
            .comment_page(self.0.id, window, columns)
            .await?;
        Ok(Batched(self.comment_connection(page)))
    }

    /// Events of the task, oldest first. They are kept as long as the task.
    async fn activity(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Returns the first *n* items (1–100, default 20).")] first: Option<i32>,
        #[graphql(desc = "Returns only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "Returns the last *n* items (1–100). Cannot be combined with `first`.")]
        last: Option<i32>,
        #[graphql(desc = "Returns only items before this cursor.")] before: Option<String>,
    ) -> Result<EventConnection> {
        let cursors = &RequestContext::of(ctx).app().cursors;
        let stretch = event::parse_range(cursors, &PageArgs::new(first, after, last, before))?;
        let columns = event::required_node_columns(&SelectedField::of(ctx), false);
        let loaders = RequestContext::of(ctx).loaders()?;
        let mut events = loaders
            .activity(self.0.id, event::with_lookahead(stretch), columns)
            .await?;
        let more = event::trim(&mut events, stretch);
        let views = events
            .iter()
            .map(|(event, snapshot)| event::EventView::new(event, snapshot, Some(&self.0)));
        event::connection(views.collect(), more, stretch, cursors)
    }

    /// Whether the viewer may update the task.
    async fn viewer_can_update(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(RequestContext::of(ctx).may(Action::UpdateTask, &*self.0)?)
    }

    /// Whether the viewer may delete the task.
    async fn viewer_can_delete(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(RequestContext::of(ctx).may(Action::DeleteTask, &*self.0)?)
    }

    /// Whether the viewer may comment on the task.
    async fn viewer_can_comment(&self, ctx: &Context<'_>) -> Result<bool> {
        Ok(RequestContext::of(ctx).may(Action::AddComment, &*self.0)?)
    }
}

impl Task {
    fn is_late(&self, caller: &RequestContext) -> bool {
        self.0.status != TaskStatus::Done
            && self
                .0
                .due_at
                .is_some_and(|due| due < caller.app().clock.now())
    }

    fn comment_connection(&self, page: Page<Arc<store_comment::Comment>>) -> Connection<Comment> {
        Connection::new(
            comments_tag(),
            TotalCount::Comments(self.0.id),
            page,
            |row| row.position(),
            Comment,
        )
    }
}

/// The tag names no task: a comment cursor is a time and an id, and valid for the comments of any
/// task.
fn comments_tag() -> CursorTag {
    CursorTag::new("Task.comments", None, &(), false)
}

impl BatchObject for Task {
    const IS_NODE: bool = true;

    fn resolver<'a>(field: &SelectedField<'a>) -> Option<FieldResolver<'a, Self>> {
        Some(match field.name() {
            "id" => inline!(|task| Base64Text(&node::bytes(NodeType::Task, task.0.id))),
            "title" => inline!(|task| task.0.title),
            "description" => inline!(|task| task.0.description),
            "status" => inline!(|task| task.0.status),
            "priority" => inline!(|task| task.0.priority),
            "dueAt" => inline!(|task| task.0.due_at),
            "isOverdue" => inline!(|task, caller| task.is_late(caller)),
            "completedAt" => inline!(|task| task.0.completed_at),
            "version" => inline!(|task| task.0.version),
            "createdAt" => inline!(|task| task.0.created_at),
            "updatedAt" => inline!(|task| task.0.updated_at),
            "project" => {
                let columns = project::required_columns(field);
                let key = move |id| (columns, id);
                field.object_by_id(
                    |task: &Self| Some(task.0.project_id),
                    loader::Projects,
                    key,
                    Project,
                    true,
                )?
            }
            "creator" => field.object_by_id(
                |task: &Self| task.0.creator_id,
                loader::Users,
                |id| id,
                User::from,
                false,
            )?,
            "assignee" => field.object_by_id(
                |task: &Self| task.0.assignee_id,
                loader::Users,
                |id| id,
                User::from,
                false,
            )?,
            "labels" => field.list_by_id(|task: &Self| task.0.id, loader::TaskLabels, Label)?,
            "comments" => {
                let window = Arc::new(PageArgs::from_field(field)?.window(comments_tag()).ok()?);
                let columns = comment::required_node_columns(field);
                field.batch(move |tasks: &[Self], caller| {
                    let key = |task: &Self| ((columns, Arc::clone(&window)), task.0.id);
                    let keys = tasks.iter().map(key).collect::<Vec<_>>();
                    async move {
                        let pages = caller
                            .loaders()?
                            .all::<loader::CommentPages>(keys.iter().cloned())
                            .await?;
                        let pages = tasks.iter().zip(&keys).map(|(task, key)| {
                            Some(task.comment_connection(pages.get(key)?.clone()))
                        });
                        ChildObjects::one_per_parent(pages)
                    }
                    .boxed()
                })?
            }
            "viewerCanUpdate" => inline!(|task, caller| caller.may(Action::UpdateTask, &*task.0)?),
            "viewerCanDelete" => inline!(|task, caller| caller.may(Action::DeleteTask, &*task.0)?),
            "viewerCanComment" => inline!(|task, caller| caller.may(Action::AddComment, &*task.0)?),
            _ => return None,
        })
    }
}

/// Loads the user with this id, if there is an id.
pub async fn user(ctx: &Context<'_>, id: Option<Id>) -> Result<Option<User>> {
    match id {
        Some(id) => Ok(RequestContext::of(ctx)
            .loaders()?
            .user(id)
            .await?
            .map(User::from)),
        None => Ok(None),
    }
}

/// A range of time. Members are combined with AND.
#[derive(Clone, InputObject)]
pub struct DateTimeRange {
    /// After this time.
    gt: Option<Timestamp>,
    /// At or after this time.
    gte: Option<Timestamp>,
    /// Before this time.
    lt: Option<Timestamp>,
    /// At or before this time.
    lte: Option<Timestamp>,
}

impl From<DateTimeRange> for TimeRange {
    fn from(DateTimeRange { gt, gte, lt, lte }: DateTimeRange) -> Self {
        Self { gt, gte, lt, lte }
    }
}

/// Filter for tasks. Members are combined with AND; an empty list matches nothing. A list of more
/// than 100 items fails with BAD_USER_INPUT.
#[derive(Clone, InputObject)]
pub struct TaskFilter {
    /// Matches tasks whose title or description contains all of these words, anywhere and ignoring
    /// case. At most 10 words and 200 characters; `%` and `_` are literal. A search adds 20 points
    /// to the cost of the operation.
    search: Option<String>,
    /// Matches tasks in any of these statuses.
    status: Option<Vec<TaskStatus>>,
    /// Matches tasks with any of these priorities.
    priority: Option<Vec<Priority>>,
    /// Matches tasks in this project.
    project_id: Option<ID>,
    /// Matches tasks assigned to this user.
    assignee_id: Option<ID>,
    /// Matches tasks without an assignee (true) or with one (false).
    unassigned: Option<bool>,
    /// Matches tasks with at least one of these labels.
    label_ids: Option<Vec<ID>>,
    /// Matches tasks that are past their due date and not DONE (true), or all others (false).
    overdue: Option<bool>,
    /// Matches tasks due in this range. Tasks without a due date match no bound.
    due_at: Option<DateTimeRange>,
    /// Matches tasks created in this range.
    created_at: Option<DateTimeRange>,
    /// Matches tasks last updated in this range.
    updated_at: Option<DateTimeRange>,
}

/// Largest number of items in a list of a filter or an input.
const MAX_LIST: usize = 100;

/// Rejects a filter with a list of more than `MAX_LIST` items.
pub fn check_lists(lengths: impl IntoIterator<Item = usize>) -> crate::error::Result<()> {
    match lengths.into_iter().any(|length| length > MAX_LIST) {
        true => Err(Error::bad_input(
            "A list in a filter can have at most 100 items.",
        )),
        false => Ok(()),
    }
}

impl TaskFilter {
    fn parse(self) -> crate::error::Result<TaskCriteria> {
        check_lists([
            self.status.as_ref().map_or(0, Vec::len),
            self.priority.as_ref().map_or(0, Vec::len),
            self.label_ids.as_ref().map_or(0, Vec::len),
        ])?;
        let labels = |ids: Vec<ID>| {
            ids.iter()
                .map(|id| node::decode_filter(NodeType::Label, id))
                .collect()
        };
        Ok(TaskCriteria {
            search: self.search.as_deref().map(Search::parse).transpose()?,
            status: self.status,
            priority: self.priority,
            project_id: self
                .project_id
                .map(|id| node::decode_filter(NodeType::Project, &id))
                .transpose()?,
            assignee_id: self
                .assignee_id
                .map(|id| node::decode_filter(NodeType::User, &id))
                .transpose()?,
            unassigned: self.unassigned,
            label_ids: self.label_ids.map(labels).transpose()?,
            overdue: self.overdue,
            due_at: self.due_at.map(TimeRange::from),
            created_at: self.created_at.map(TimeRange::from),
            updated_at: self.updated_at.map(TimeRange::from),
        })
    }
}

/// Sort order of tasks.
#[derive(Clone, InputObject)]
pub struct TaskOrder {
    /// Field to sort by.
    field: TaskOrderField,
    /// Sort direction.
    #[graphql(default_with = "OrderDirection::Asc")]
    direction: OrderDirection,
}

/// The narrowest set of columns that serves a selection on a task. Related objects are loaded
/// separately, by id; the events of `activity` show the task again and add to the set.
pub fn required_columns(task: &SelectedField<'_>) -> TaskColumns {
    task.max_over_fields(
        &["Task", "Node"],
        TaskColumns::Summary,
        |field| match field.name() {
            "__typename" | "id" | "title" | "status" | "priority" | "dueAt" | "isOverdue"
            | "createdAt" | "project" | "assignee" | "labels" | "comments" | "viewerCanUpdate"
            | "viewerCanDelete" | "viewerCanComment" => TaskColumns::Summary,
            "creator" | "completedAt" | "version" | "updatedAt" => TaskColumns::Short,
            "activity" => event::task_columns(&field),
            _ => TaskColumns::Full,
        },
    )
}

/// The narrowest set of columns that serves a selection on a connection of tasks.
pub fn required_node_columns(connection: &SelectedField<'_>) -> TaskColumns {
    max_required(
        connection,
        ["TaskConnection", "TaskEdge"],
        TaskColumns::Summary,
        |task| required_columns(&task),
    )
}

/// Builds the list that the arguments of a field describe, and the tag of its cursors.
pub fn parse_list(
    field: &str,
    parent: Option<Id>,
    scopes: Vec<Scope>,
    paging: &PageArgs,
    filter: Option<TaskFilter>,
    order_by: Option<TaskOrder>,
    columns: TaskColumns,
) -> crate::error::Result<(CursorTag, Arc<TaskList>)> {
    let order = order_by
        .as_ref()
        .map_or(TaskOrderField::CreatedAt, |order| order.field);
    let descending = order_by.is_some_and(|order| order.direction == OrderDirection::Desc);
    let tag = CursorTag::new(field, parent, &order, descending);
    let filter = filter
        .map(TaskFilter::parse)
        .transpose()?
        .unwrap_or_default();
    Ok((
        tag,
        Arc::new(TaskList {
            scopes,
            filter,
            order,
            descending,
            window: paging.window(tag)?,
            columns,
        }),
    ))
}

/// Wraps a page of this list in a connection.
pub fn connection(
    tag: CursorTag,
    total: TotalCount,
    page: Page<Arc<store::Task>>,
    list: &TaskList,
) -> Connection<Task> {
    Connection::new(tag, total, page, |row| row.position(list.order), Task)
}

#[derive(Default)]
pub struct TaskQuery;

#[Object]
impl TaskQuery {
    /// Looks up a task by global ID. Null if it does not exist or the viewer may not see it.
    #[graphql(guard = "guard::require_viewer")]
    async fn task(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Global ID of the task.")] id: ID,
    ) -> Result<Option<Batched<Task>>> {
        Ok(find(RequestContext::of(ctx), &SelectedField::of(ctx), &id)
            .await?
            .map(Batched))
    }

    /// Tasks that the viewer may see, oldest first by default: those in the viewer's projects and
    /// those assigned to the viewer, or all tasks for ADMIN.
    #[graphql(guard = "guard::require_viewer")]
    #[expect(clippy::too_many_arguments, reason = "Relay's paging arguments")]
    async fn tasks(
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
    ) -> Result<Batched<Connection<Task>>> {
        let field = SelectedField::of(ctx);
        let paging = PageArgs::new(first, after, last, before).for_selection(&field);
        Ok(Batched(
            list_page(RequestContext::of(ctx), &field, &paging, filter, order_by).await?,
        ))
    }
}

/// Loads a task by global ID.
pub async fn find(
    caller: &RequestContext,
    field: &SelectedField<'_>,
    id: &ID,
) -> crate::error::Result<Option<Task>> {
    let Some(id) = node::decode_as(NodeType::Task, id) else {
        return Ok(None);
    };
    let key = (required_columns(field), id);
    Ok(caller
        .loaders()?
        .root::<loader::Tasks>(key, caller.hints().has_single_root)
        .await?
        .map(Task))
}

/// Loads a page of the tasks that the viewer may see.
pub async fn list_page(
    caller: &RequestContext,
    field: &SelectedField<'_>,
    paging: &PageArgs,
    filter: Option<TaskFilter>,
    order_by: Option<TaskOrder>,
) -> crate::error::Result<Connection<Task>> {
    let scopes = Scope::visible_to(caller.viewer()?);
    let (tag, list) = parse_list(
        "tasks",
        None,
        scopes,
        paging,
        filter,
        order_by,
        required_node_columns(field),
    )?;
    let app = caller.app();
    let page = task_list::page(
        &mut app.db.conn_for_rows(list.max_rows_read(1)).await?,
        &list,
        app.clock.now(),
    )
    .await?;
    Ok(connection(
        tag,
        TotalCount::Tasks(Arc::clone(&list)),
        page.into_shared(),
        &list,
    ))
}

/// Input of `createTask`. A new task has the status TODO.
#[derive(InputObject)]
pub struct CreateTaskInput {
    /// The project to add the task to. It must be ACTIVE.
    project_id: ID,
    /// What needs to be done; 1–200 characters after trimming.
    title: String,
    /// Details; up to 10,000 characters.
    description: Option<String>,
    /// Priority of the task.
    #[graphql(default_with = "Some(Priority::Medium)")]
    priority: Option<Priority>,
    /// When the task is due. Must be in the future.
    due_at: Option<Timestamp>,
    /// The user to assign the task to. A deleted account is INVALID. A disabled account is INVALID
    /// for ADMIN only: for anyone else the assignment succeeds without an e-mail, so that it does
    /// not reveal the state of the account.
    assignee_id: Option<ID>,
    /// Labels of the same project; at most 100.
    label_ids: Option<Vec<ID>>,
}

/// Payload of `createTask`.
#[derive(SimpleObject)]
pub struct CreateTaskPayload {
    /// The created task; null if nothing was written.
    task: Option<Task>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

/// Input of `updateTask`. Omitted fields stay unchanged; an explicit null clears a field.
#[derive(InputObject)]
pub struct UpdateTaskInput {
    /// The task to update.
    id: ID,
    /// New title; 1–200 characters after trimming. Cannot be null.
    title: MaybeUndefined<String>,
    /// New description; up to 10,000 characters. Null removes it.
    description: MaybeUndefined<String>,
    /// New status, one step from the current one: TODO ↔ IN_PROGRESS ↔ DONE. Cannot be null.
    status: MaybeUndefined<TaskStatus>,
    /// New priority. Cannot be null.
    priority: MaybeUndefined<Priority>,
    /// New due date. Must be in the future unless it is unchanged. Null removes it.
    due_at: MaybeUndefined<Timestamp>,
    /// The user to assign the task to; null unassigns it. A deleted account is INVALID. A disabled
    /// account is INVALID for ADMIN only: for anyone else the assignment succeeds without an
    /// e-mail, so that it does not reveal the state of the account.
    assignee_id: MaybeUndefined<ID>,
    /// Labels of the same project to add; at most 100.
    add_label_ids: Option<Vec<ID>>,
    /// Labels to remove; at most 100. A label that is also in `addLabelIds` stays.
    remove_label_ids: Option<Vec<ID>>,
    /// Version that the update is based on. If it is not the current version, the update fails with
    /// CONFLICT and writes nothing.
    expected_version: Option<i32>,
}

/// Payload of `updateTask`.
#[derive(SimpleObject)]
pub struct UpdateTaskPayload {
    /// The updated task. Null if nothing was written, or if the viewer may no longer see the task
    /// after the update.
    task: Option<Batched<Task>>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

/// Input of `deleteTask`.
#[derive(InputObject)]
pub struct DeleteTaskInput {
    /// The task to delete.
    id: ID,
}

/// Payload of `deleteTask`.
#[derive(SimpleObject)]
pub struct DeleteTaskPayload {
    /// Global ID of the deleted task; null if nothing was deleted.
    deleted_task_id: Option<ID>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

fn label_ids(field: &'static str, ids: Option<Vec<ID>>) -> crate::error::Result<Vec<Id>> {
    let ids = ids.unwrap_or_default();
    if ids.len() > MAX_LIST {
        return Err(Error::user_error(
            field,
            crate::error::UserErrorCode::TooLong,
            "At most 100 labels.",
        ));
    }
    let mut labels = ids
        .iter()
        .map(|id| node::decode_input(NodeType::Label, id, field))
        .collect::<Result<Vec<_>, _>>()?;
    labels.sort_unstable();
    labels.dedup();
    Ok(labels)
}

#[derive(Default)]
pub struct TaskMutation;

#[Object]
impl TaskMutation {
    /// Creates a task in a project. Allowed for the project's owner and ADMIN. User errors: BLANK,
    /// TOO_LONG, INVALID, NOT_FOUND, IN_THE_PAST, ARCHIVED, QUOTA_EXCEEDED.
    #[graphql(guard = "guard::require_viewer")]
    async fn create_task(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The task to create.")] input: CreateTaskInput,
    ) -> Result<CreateTaskPayload> {
        let (task, user_errors) = run_mutation(ctx, |app, viewer| async move {
            let project_id = node::decode_input(NodeType::Project, &input.project_id, "projectId")?;
            let mut faults = UserErrors::default();
            let title = faults.take(Title::parse("title", &input.title));
            let description = input
                .description
                .map(|text| faults.take(Description::parse("description", &text)));
            faults.check()?;
            let new = NewTask {
                project_id,
                title: title.ok_or_else(|| Error::internal("no title and no user error"))?,
                description: description.flatten(),
                priority: input.priority.unwrap_or(Priority::Medium),
                due_at: input.due_at,
                assignee_id: input
                    .assignee_id
                    .map(|id| node::decode_input(NodeType::User, &id, "assigneeId"))
                    .transpose()?,
                label_ids: label_ids("labelIds", input.label_ids)?,
            };
            store::create(&app.db, app.clock.now(), &viewer, &new).await
        })
        .await?;
        Ok(CreateTaskPayload {
            task: task.map(|row| Task(Arc::new(row))),
            user_errors,
        })
    }

    /// Updates a task. Allowed for the project's owner, the assignee and ADMIN. User errors: BLANK,
    /// TOO_LONG, INVALID, NOT_FOUND, IN_THE_PAST, INVALID_STATUS_TRANSITION, CONFLICT,
    /// QUOTA_EXCEEDED.
    #[graphql(guard = "guard::require_viewer")]
    async fn update_task(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The task and the changes to make.")] input: UpdateTaskInput,
    ) -> Result<UpdateTaskPayload> {
        let (task, user_errors) = run_mutation(ctx, |app, viewer| async move {
            let id = node::decode_input(NodeType::Task, &input.id, "id")?;
            let mut faults = UserErrors::default();
            let title = required_field(&mut faults, "title", input.title);
            let changes = TaskChanges {
                title: title.and_then(|title| faults.take(Title::parse("title", &title))),
                description: project::parse_description(&mut faults, input.description),
                status: required_field(&mut faults, "status", input.status),
                priority: required_field(&mut faults, "priority", input.priority),
                due_at: nullable(input.due_at),
                assignee_id: match nullable(input.assignee_id) {
                    Some(Some(user)) => Some(Some(node::decode_input(
                        NodeType::User,
                        &user,
                        "assigneeId",
                    )?)),
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
        Ok(UpdateTaskPayload {
            task: task.flatten().map(|row| Batched(Task(Arc::new(row)))),
            user_errors,
        })
    }

    /// Deletes a task with its comments. Allowed for the project's owner and ADMIN. User errors:
    /// NOT_FOUND.
    #[graphql(guard = "guard::require_viewer")]
    async fn delete_task(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The task to delete.")] input: DeleteTaskInput,
    ) -> Result<DeleteTaskPayload> {
        let (deleted_task_id, user_errors) = run_mutation(ctx, |app, viewer| async move {
            let id = node::decode_input(NodeType::Task, &input.id, "id")?;
            store::delete(&app.db, app.clock.now(), &viewer, id).await?;
            Ok(input.id)
        })
        .await?;
        Ok(DeleteTaskPayload {
            deleted_task_id,
            user_errors,
        })
    }
}

fn nullable<T>(value: MaybeUndefined<T>) -> Option<Option<T>> {
    match value {
        MaybeUndefined::Undefined => None,
        MaybeUndefined::Null => Some(None),
        MaybeUndefined::Value(value) => Some(Some(value)),
    }
}
