//! The event log in the schema: the types of the `Event` interface, `Query.events` and the
//! subscriptions. The stream behind a subscription is in [`super::event_stream`].

use std::borrow::Cow;
use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Interface, Object, Result, SimpleObject};
use futures_util::Stream;
use futures_util::stream::Empty;

use super::batch::SelectedField;
use super::comment::{self, Comment};
use super::connection::{PageArgs, PageInfo, max_required};
use super::event_stream::{SubscriptionEvent, SubscriptionHandle, follow};
use super::node::{self, NodeType};
use super::notification::Notification;
use super::project::Project;
use super::task::{self, Task, check_lists, user};
use super::text::CountedText;
use super::user::User;
use super::{RequestContext, guard};
use crate::access::Action;
use crate::db::Conn;
use crate::error::Error;
use crate::events::cursor::CursorCodec;
use crate::events::{self as log, EventKind, LogPosition};
use crate::id::Id;
use crate::store::event::{
    self as store, EventColumns, EventCriteria, EventObjects, LogRange, Snapshot, can_see,
};
use crate::store::history::Change;
use crate::store::task::{Task as TaskRow, TaskColumns, TaskStatus};
use crate::time::Timestamp;

/// An event with the rows that its fields are resolved from.
#[derive(Clone)]
pub struct EventView {
    pub event: Arc<log::Event>,
    /// State recorded with the event.
    pub snapshot: Arc<Snapshot>,
    task: Option<Arc<TaskRow>>,
}

impl EventView {
    /// Takes the current row of the task, or the one recorded with the event if the task has been
    /// deleted.
    pub fn new(
        event: &Arc<log::Event>,
        snapshot: &Arc<Snapshot>,
        task: Option<&Arc<TaskRow>>,
    ) -> Self {
        let task = task
            .cloned()
            .or_else(|| snapshot.task.clone().map(Arc::new));
        Self {
            event: Arc::clone(event),
            snapshot: Arc::clone(snapshot),
            task,
        }
    }

    fn task(&self) -> Result<Task> {
        let task = self
            .task
            .clone()
            .ok_or_else(|| Error::internal("event without a task"))?;
        Ok(Task(task))
    }

    fn last_comment(&self) -> Option<Comment> {
        self.snapshot
            .comment
            .clone()
            .map(|row| Comment(Arc::new(row)))
    }

    async fn comment(&self, ctx: &Context<'_>) -> Result<Option<Comment>> {
        let Some(id) = self.event.comment_id else {
            return Ok(None);
        };
        let columns = comment::required_columns(&SelectedField::of(ctx));
        Ok(RequestContext::of(ctx)
            .loaders()?
            .comment(id, columns)
            .await?
            .map(Comment))
    }

    fn changes(&self) -> Vec<FieldChange> {
        let object_id = self.event.object();
        self.snapshot
            .changes
            .iter()
            .map(|change| FieldChange {
                object_id,
                change: change.clone(),
            })
            .collect()
    }

    fn project(&self) -> Result<Project> {
        let project = self
            .snapshot
            .project
            .clone()
            .ok_or_else(|| Error::internal("event without a project"))?;
        Ok(Project(Arc::new(project)))
    }
}

/// Fails with CURSOR_EXPIRED if events after this position have left the log. `floor` is the
/// retention horizon, the oldest position kept.
pub fn check_retained(
    cursors: &CursorCodec,
    floor: LogPosition,
    position: LogPosition,
) -> crate::error::Result<LogPosition> {
    if position < floor {
        Err(Error::CursorExpired {
            oldest: cursors.encode(floor),
        })
    } else {
        Ok(position)
    }
}

/// Fails with CURSOR_EXPIRED unless the log continues from this position. A position beyond the end
/// belongs to a log that has been replaced by an older copy: the client would miss every event
/// until the new log has grown past it.
pub async fn check_cursor(
    conn: &mut Conn,
    cursors: &CursorCodec,
    position: LogPosition,
) -> crate::error::Result<LogPosition> {
    let horizon = log::retention_horizon(conn).await?;
    if position > log::end(conn).await? {
        return Err(Error::CursorExpired {
            oldest: cursors.encode(horizon),
        });
    }
    check_retained(cursors, horizon, position)
}

/// A change of one field. Long texts are loaded when they are selected.
pub struct FieldChange {
    object_id: Option<Id>,
    change: Change,
}

/// A change of one field.
#[Object]
impl FieldChange {
    /// Name of the field in the schema, such as `dueAt`.
    async fn field(&self) -> &str {
        &self.change.field
    }

    /// Previous value as text; null if there was none. Labels are their names, separated by commas.
    async fn from(&self, ctx: &Context<'_>) -> Result<Option<CountedText<Cow<'_, str>>>> {
        self.value(ctx, self.change.from.as_deref(), self.change.from_text)
            .await
    }

    /// New value as text; null if there is none. Labels are their names, separated by commas.
    async fn to(&self, ctx: &Context<'_>) -> Result<Option<CountedText<Cow<'_, str>>>> {
        self.value(ctx, self.change.to.as_deref(), self.change.to_text)
            .await
    }
}

impl FieldChange {
    async fn value<'a>(
        &self,
        ctx: &Context<'_>,
        inline: Option<&'a str>,
        text_id: Option<Id>,
    ) -> Result<Option<CountedText<Cow<'a, str>>>> {
        let (Some(object), Some(id)) = (self.object_id, text_id) else {
            return Ok(inline.map(|text| CountedText(text.into())));
        };
        let text = RequestContext::of(ctx)
            .loaders()?
            .history_text(object, id)
            .await?;
        Ok(text.map(|text| CountedText(text.to_string().into())))
    }
}

/// Declares one type for each kind of event, all with the fields of the interface.
macro_rules! events {
    ($($(#[$doc:meta])* $name:ident { $($fields:tt)* })+) => {
        $(
            $(#[$doc])*
            #[derive(Clone)]
            pub struct $name(EventView);

            $(#[$doc])*
            #[Object]
            impl $name {
                /// Global ID of the event. An event can be delivered again after a reconnect:
                /// handle each ID once.
                pub async fn id(&self) -> ID {
                    node::encode(NodeType::Event, self.0.event.id)
                }

                /// Opaque cursor of the event in the event log. Pass it as `after` to resume after
                /// this event.
                pub async fn cursor(&self, ctx: &Context<'_>) -> String {
                    RequestContext::of(ctx).app().cursors.encode(self.0.event.position())
                }

                /// When the event occurred.
                pub async fn occurred_at(&self) -> Timestamp {
                    self.0.event.occurred_at
                }

                /// The user who made the change. Deleted accounts appear as a user named `Deleted
                /// user`.
                pub async fn actor(&self, ctx: &Context<'_>) -> Result<Option<User>> {
                    user(ctx, self.0.event.actor_id).await
                }

                $($fields)*
            }
        )+

        /// Something that happened, recorded in the same transaction as the change itself.
        #[derive(Clone, Interface)]
        #[graphql(
            field(name = "id", ty = "ID", desc = "Global ID of the event. An event can be delivered again after a reconnect: handle each ID once."),
            field(name = "cursor", ty = "String", desc = "Opaque cursor of the event in the event log. Pass it as `after` to resume after this event."),
            field(name = "occurred_at", ty = "Timestamp", desc = "When the event occurred."),
            field(name = "actor", ty = "Option<User>", desc = "The user who made the change. Deleted accounts appear as a user named `Deleted user`.")
        )]
        pub enum Event {
            $($(#[$doc])* $name($name)),+
        }

        /// The names of the interface and its types.
        const TYPES: &[&str] = &["Event", $(stringify!($name)),+];
    };
}

events! {
    /// A task was created.
    TaskCreatedEvent {
        /// The task in its current state, or in its last state if it has been deleted.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }
    }

    /// Fields of a task changed, except its status and assignee, which have events of their own.
    TaskUpdatedEvent {
        /// The task in its current state, or in its last state if it has been deleted.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }

        /// The changed fields.
        async fn changes(&self) -> Vec<FieldChange> {
            self.0.changes()
        }
    }

    /// A task was deleted, alone or with its project.
    TaskDeletedEvent {
        /// The task in its last state. Its labels and comments have been deleted with it.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }

        /// Global ID of the deleted task.
        async fn deleted_task_id(&self) -> Result<ID> {
            let id = self.0.event.task_id.ok_or_else(|| Error::internal("event without a task"))?;
            Ok(node::encode(NodeType::Task, id))
        }
    }

    /// A task was assigned to a user.
    TaskAssignedEvent {
        /// The task in its current state, or in its last state if it has been deleted.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }

        /// The new assignee. Deleted accounts appear as a user named `Deleted user`.
        async fn assignee(&self, ctx: &Context<'_>) -> Result<Option<User>> {
            user(ctx, self.0.event.assignee_id).await
        }

        /// The previous assignee; null if the task was unassigned. Deleted accounts appear as a
        /// user named `Deleted user`.
        async fn previous_assignee(&self, ctx: &Context<'_>) -> Result<Option<User>> {
            user(ctx, self.0.event.previous_assignee_id).await
        }
    }

    /// A task was taken from its assignee. A previous assignee who loses access to the task
    /// receives this event and no later one.
    TaskUnassignedEvent {
        /// The task in its current state, or in its last state if it has been deleted; null if the
        /// viewer may no longer see it.
        async fn task(&self, ctx: &Context<'_>) -> Result<Option<Task>> {
            let viewer = RequestContext::of(ctx).viewer()?;
            Ok(self.0.task.clone().filter(|task| viewer.may(Action::SeeTask, &**task)).map(Task))
        }

        /// Global ID of the task, available even if the viewer may no longer see it.
        async fn task_id(&self) -> Result<ID> {
            let id = self.0.event.task_id.ok_or_else(|| Error::internal("event without a task"))?;
            Ok(node::encode(NodeType::Task, id))
        }

        /// The previous assignee. Deleted accounts appear as a user named `Deleted user`.
        async fn previous_assignee(&self, ctx: &Context<'_>) -> Result<Option<User>> {
            user(ctx, self.0.event.previous_assignee_id).await
        }
    }

    /// The status of a task changed.
    StatusChangedEvent {
        /// The task in its current state, or in its last state if it has been deleted.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }

        /// Previous status.
        async fn from(&self) -> Result<TaskStatus> {
            Ok(self.0.snapshot.status.ok_or_else(|| Error::internal("event without a status"))?.0)
        }

        /// New status.
        async fn to(&self) -> Result<TaskStatus> {
            Ok(self.0.snapshot.status.ok_or_else(|| Error::internal("event without a status"))?.1)
        }
    }

    /// A comment was added to a task.
    CommentAddedEvent {
        /// The task in its current state, or in its last state if it has been deleted.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }

        /// The comment in its current state; null if it has been deleted.
        async fn comment(&self, ctx: &Context<'_>) -> Result<Option<Comment>> {
            self.0.comment(ctx).await
        }
    }

    /// The text of a comment was edited.
    CommentUpdatedEvent {
        /// The task in its current state, or in its last state if it has been deleted.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }

        /// The comment in its current state; null if it has been deleted.
        async fn comment(&self, ctx: &Context<'_>) -> Result<Option<Comment>> {
            self.0.comment(ctx).await
        }
    }

    /// A comment was deleted.
    CommentDeletedEvent {
        /// The task in its current state, or in its last state if it has been deleted.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }

        /// The deleted comment. Its text is not kept: `body` is empty.
        async fn comment(&self) -> Option<Comment> {
            self.0.last_comment()
        }

        /// Global ID of the deleted comment.
        async fn deleted_comment_id(&self) -> Result<ID> {
            let id = self.0.event.comment_id.ok_or_else(|| Error::internal("event without a comment"))?;
            Ok(node::encode(NodeType::Comment, id))
        }
    }

    /// Fields of a project changed.
    ProjectUpdatedEvent {
        /// The project in its state right after this event.
        async fn project(&self) -> Result<Project> {
            self.0.project()
        }

        /// The changed fields.
        async fn changes(&self) -> Vec<FieldChange> {
            self.0.changes()
        }
    }

    /// A project was deleted. A `TaskDeletedEvent` for each of its tasks comes first.
    ProjectDeletedEvent {
        /// The project in its last state. Its labels and tasks have been deleted with it.
        async fn project(&self) -> Result<Project> {
            self.0.project()
        }

        /// Global ID of the deleted project.
        async fn deleted_project_id(&self) -> Result<ID> {
            let id = self.0.event.project_id.ok_or_else(|| Error::internal("event without a project"))?;
            Ok(node::encode(NodeType::Project, id))
        }
    }
}

impl Event {
    fn of(view: EventView) -> Result<Self> {
        Ok(match view.event.kind {
            EventKind::TaskCreated => TaskCreatedEvent(view).into(),
            EventKind::TaskUpdated => TaskUpdatedEvent(view).into(),
            EventKind::TaskDeleted => TaskDeletedEvent(view).into(),
            EventKind::TaskAssigned => TaskAssignedEvent(view).into(),
            EventKind::TaskUnassigned => TaskUnassignedEvent(view).into(),
            EventKind::StatusChanged => StatusChangedEvent(view).into(),
            EventKind::CommentAdded => CommentAddedEvent(view).into(),
            EventKind::CommentUpdated => CommentUpdatedEvent(view).into(),
            EventKind::CommentDeleted => CommentDeletedEvent(view).into(),
            EventKind::ProjectUpdated => ProjectUpdatedEvent(view).into(),
            EventKind::ProjectDeleted => ProjectDeletedEvent(view).into(),
            EventKind::SessionEnded | EventKind::UserChanged => {
                return Err(Error::internal("internal event delivered to a client").into());
            }
        })
    }
}

/// Types of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum EventType {
    /// A task was created.
    TaskCreated,
    /// Fields of a task changed, except its status and assignee.
    TaskUpdated,
    /// A task was deleted, alone or with its project.
    TaskDeleted,
    /// A task was assigned to a user.
    TaskAssigned,
    /// A task was taken from its assignee.
    TaskUnassigned,
    /// The status of a task changed.
    StatusChanged,
    /// A comment was added to a task.
    CommentAdded,
    /// The text of a comment was edited.
    CommentUpdated,
    /// A comment was deleted.
    CommentDeleted,
    /// Fields of a project changed.
    ProjectUpdated,
    /// A project was deleted.
    ProjectDeleted,
}

impl From<EventType> for EventKind {
    fn from(kind: EventType) -> Self {
        match kind {
            EventType::TaskCreated => Self::TaskCreated,
            EventType::TaskUpdated => Self::TaskUpdated,
            EventType::TaskDeleted => Self::TaskDeleted,
            EventType::TaskAssigned => Self::TaskAssigned,
            EventType::TaskUnassigned => Self::TaskUnassigned,
            EventType::StatusChanged => Self::StatusChanged,
            EventType::CommentAdded => Self::CommentAdded,
            EventType::CommentUpdated => Self::CommentUpdated,
            EventType::CommentDeleted => Self::CommentDeleted,
            EventType::ProjectUpdated => Self::ProjectUpdated,
            EventType::ProjectDeleted => Self::ProjectDeleted,
        }
    }
}

/// Filter for events. Members are combined with AND; an empty list matches nothing. A list of more
/// than 100 items fails with BAD_USER_INPUT.
#[derive(InputObject)]
pub struct EventFilter {
    /// Matches events in this project.
    project_id: Option<ID>,
    /// Matches events of this task.
    task_id: Option<ID>,
    /// Matches events of any of these types.
    types: Option<Vec<EventType>>,
}

fn filter(
    project_id: Option<ID>,
    task_id: Option<ID>,
    kinds: Option<Vec<EventKind>>,
) -> crate::error::Result<EventCriteria> {
    Ok(EventCriteria {
        project_id: project_id
            .map(|id| node::decode_filter(NodeType::Project, &id))
            .transpose()?,
        task_id: task_id
            .map(|id| node::decode_filter(NodeType::Task, &id))
            .transpose()?,
        kinds,
        assignee_id: None,
    })
}

impl EventFilter {
    fn parse(self) -> crate::error::Result<EventCriteria> {
        check_lists(self.types.as_ref().map(Vec::len))?;
        let kinds = self
            .types
            .map(|types| types.into_iter().map(EventKind::from).collect());
        filter(self.project_id, self.task_id, kinds)
    }
}

/// An event in a page of the event log, with its cursor.
#[derive(Clone, SimpleObject)]
pub struct EventEdge {
    /// Opaque cursor of the event in the event log. Pass it as `after` or `before` to continue from
    /// here.
    cursor: String,
    /// The event.
    node: Event,
}

/// A page of the event log.
#[derive(SimpleObject)]
pub struct EventConnection {
    /// Events on this page, each with its cursor.
    edges: Vec<EventEdge>,
    /// Events on this page.
    nodes: Vec<Event>,
    /// Paging information.
    page_info: PageInfo,
}

/// The narrowest set of task columns that serves a selection on a connection of events.
pub fn task_columns(connection: &SelectedField<'_>) -> TaskColumns {
    max_required(
        connection,
        ["EventConnection", "EventEdge"],
        TaskColumns::Summary,
        |event| {
            event.max_over_fields(TYPES, TaskColumns::Summary, |field| match field.name() {
                "task" => task::required_columns(&field),
                _ => TaskColumns::Summary,
            })
        },
    )
}

/// The narrowest set of event columns that serves a selection on a connection of events. An
/// existing task shows its current row, so that its snapshot is read only if it `may_be_gone`.
pub fn required_node_columns(connection: &SelectedField<'_>, may_be_gone: bool) -> EventColumns {
    max_required(
        connection,
        ["EventConnection", "EventEdge"],
        EventColumns::Summary,
        |event| {
            event.max_over_fields(TYPES, EventColumns::Summary, |field| match field.name() {
                "task" if !may_be_gone => EventColumns::Summary,
                "__typename" | "id" | "cursor" | "occurredAt" | "actor" | "assignee"
                | "previousAssignee" | "taskId" | "deletedTaskId" | "deletedCommentId"
                | "deletedProjectId" => EventColumns::Summary,
                _ => EventColumns::Full,
            })
        },
    )
}

/// Parses paging arguments to a range of the log.
pub fn parse_range(cursors: &CursorCodec, paging: &PageArgs) -> crate::error::Result<LogRange> {
    let (limit, backward) = paging.size()?;
    let read = |cursor: &Option<String>| {
        cursor
            .as_deref()
            .map(|cursor| cursors.decode(cursor))
            .transpose()
    };
    Ok(LogRange {
        after: read(&paging.after)?,
        before: read(&paging.before)?,
        limit,
        backward,
    })
}

/// Reads one event more than requested, which shows whether there is another page.
pub fn with_lookahead(stretch: LogRange) -> LogRange {
    LogRange {
        limit: stretch.limit + 1,
        ..stretch
    }
}

/// Removes the additional event that [`with_lookahead`] read. Returns whether there was one.
pub fn trim<T>(events: &mut Vec<T>, stretch: LogRange) -> bool {
    let more = events.len() > stretch.limit;
    if more && stretch.backward {
        events.remove(0);
    } else {
        events.truncate(stretch.limit);
    }
    more
}

/// Builds a page; `more` says whether another one follows in the direction of paging.
pub fn connection(
    events: Vec<EventView>,
    more: bool,
    stretch: LogRange,
    cursors: &CursorCodec,
) -> Result<EventConnection> {
    let mut edges = Vec::with_capacity(events.len());
    for view in events {
        let cursor = cursors.encode(view.event.position());
        edges.push(EventEdge {
            cursor,
            node: Event::of(view)?,
        });
    }
    Ok(EventConnection {
        page_info: PageInfo {
            has_next_page: if stretch.backward {
                stretch.before.is_some()
            } else {
                more
            },
            has_previous_page: if stretch.backward {
                more
            } else {
                stretch.after.is_some()
            },
            start_cursor: edges.first().map(|edge| edge.cursor.clone()),
            end_cursor: edges.last().map(|edge| edge.cursor.clone()),
        },
        nodes: edges.iter().map(|edge| edge.node.clone()).collect(),
        edges,
    })
}

#[derive(Default)]
pub struct EventQuery;

#[Object]
impl EventQuery {
    /// The event log as far as the viewer may see it, oldest first: the same events, order and
    /// cursors as in the subscriptions. It goes back 7 days by default; an older cursor fails with
    /// CURSOR_EXPIRED. An event appears once every transaction that began before it has ended, so
    /// that no event ever appears before one that was already read.
    #[graphql(guard = "guard::require_viewer")]
    async fn events(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Returns the first *n* items (1–100, default 20).")] first: Option<i32>,
        #[graphql(desc = "Returns only items after this cursor.")] after: Option<String>,
        #[graphql(desc = "Returns the last *n* items (1–100). Cannot be combined with `first`.")]
        last: Option<i32>,
        #[graphql(desc = "Returns only items before this cursor.")] before: Option<String>,
        #[graphql(desc = "Returns only events that match this filter.")] filter: Option<
            EventFilter,
        >,
    ) -> Result<EventConnection> {
        let caller = RequestContext::of(ctx);
        let cursors = &caller.app().cursors;
        let stretch = parse_range(cursors, &PageArgs::new(first, after, last, before))?;
        let filter = filter
            .map(EventFilter::parse)
            .transpose()?
            .unwrap_or_default();
        let mut conn = caller.app().db.conn().await?;
        let horizon = log::retention_horizon(&mut conn).await?;
        if let Some(position) = stretch.before {
            check_retained(cursors, horizon, position)?;
        }
        if let Some(position) = stretch.after {
            check_cursor(&mut conn, cursors, position).await?;
        }
        // Events before the retention horizon can still exist as the history of a task, but are not
        // part of the feed.
        let range = LogRange {
            after: Some(stretch.after.unwrap_or(horizon)),
            ..with_lookahead(stretch)
        };
        let field = SelectedField::of(ctx);
        let columns = required_node_columns(&field, true);
        let viewer = caller.viewer()?;
        let mut events = store::page(&mut conn, viewer, &filter, range, columns).await?;
        drop(conn);
        let more = trim(&mut events, stretch);
        let mut loaded =
            EventObjects::for_events(&caller.app().db, events, task_columns(&field)).await?;
        // A task that was taken from the viewer after the events had been read shows what its
        // present assignee sees.
        loaded.retain(|(event, objects)| can_see(viewer, event, objects.task.as_deref()));
        for (_, objects) in &loaded {
            if let (None, Some(project)) = (&objects.task, &objects.snapshot.project) {
                caller.tracked_viewer().add_deleted_project(project.clone());
            }
        }
        let view = |(event, objects): (_, EventObjects)| {
            EventView::new(&Arc::new(event), &objects.snapshot, objects.task.as_ref())
        };
        connection(
            loaded.into_iter().map(view).collect(),
            more,
            stretch,
            cursors,
        )
    }
}

#[derive(Default)]
pub struct EventSubscription;

async fn open<T>(
    ctx: &Context<'_>,
    filter: EventCriteria,
    after: Option<String>,
) -> Result<Empty<Result<T>>> {
    let after = SubscriptionHandle::start_position(ctx, after)?;
    let events = Box::pin(follow(RequestContext::of(ctx), filter, after)).await?;
    Ok(SubscriptionHandle::set_stream(ctx, events))
}

#[async_graphql::Subscription]
impl EventSubscription {
    /// Delivers an event whenever a task is assigned to the viewer.
    #[graphql(guard = "guard::require_viewer")]
    async fn task_assigned(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Resumes after this event cursor. By default the stream starts now.")]
        after: Option<String>,
    ) -> Result<impl Stream<Item = Result<TaskAssignedEvent>> + use<>> {
        let filter = EventCriteria {
            kinds: Some(vec![EventKind::TaskAssigned]),
            assignee_id: Some(RequestContext::of(ctx).viewer()?.id),
            ..EventCriteria::default()
        };
        open(ctx, filter, after).await
    }

    /// Delivers an event whenever a comment is added to a task that the viewer may see.
    #[graphql(guard = "guard::require_viewer")]
    async fn comment_added(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Delivers only events of this task.")] task_id: Option<ID>,
        #[graphql(desc = "Delivers only events in this project.")] project_id: Option<ID>,
        #[graphql(desc = "Resumes after this event cursor. By default the stream starts now.")]
        after: Option<String>,
    ) -> Result<impl Stream<Item = Result<CommentAddedEvent>> + use<>> {
        let filter = filter(project_id, task_id, Some(vec![EventKind::CommentAdded]))?;
        open(ctx, filter, after).await
    }

    /// Delivers an event whenever the status of a task that the viewer may see changes.
    #[graphql(guard = "guard::require_viewer")]
    async fn status_changed(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Delivers only events of this task.")] task_id: Option<ID>,
        #[graphql(desc = "Delivers only events in this project.")] project_id: Option<ID>,
        #[graphql(desc = "Resumes after this event cursor. By default the stream starts now.")]
        after: Option<String>,
    ) -> Result<impl Stream<Item = Result<StatusChangedEvent>> + use<>> {
        let filter = filter(project_id, task_id, Some(vec![EventKind::StatusChanged]))?;
        open(ctx, filter, after).await
    }

    /// Delivers every event that the viewer may see, of all types, on one stream. Notifications
    /// have a subscription of their own, `notificationAdded`.
    #[graphql(guard = "guard::require_viewer")]
    async fn events(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Delivers only events that match this filter.")] filter: Option<
            EventFilter,
        >,
        #[graphql(desc = "Resumes after this event cursor. By default the stream starts now.")]
        after: Option<String>,
    ) -> Result<impl Stream<Item = Result<Event>> + use<>> {
        let filter = filter
            .map(EventFilter::parse)
            .transpose()?
            .unwrap_or_default();
        open(ctx, filter, after).await
    }
}

/// Root of the schema that resolves one delivered event. Its fields have no arguments, because they
/// were applied when the subscription was opened.
pub struct EventRoot;

fn event_view(ctx: &Context<'_>) -> Result<EventView> {
    let SubscriptionEvent { event, objects, .. } = ctx.data_unchecked();
    Ok(EventView::new(
        event,
        &objects.snapshot,
        objects.task.as_ref(),
    ))
}

#[Object(name = "Subscription")]
impl EventRoot {
    async fn task_assigned(&self, ctx: &Context<'_>) -> Result<TaskAssignedEvent> {
        event_view(ctx).map(TaskAssignedEvent)
    }

    async fn comment_added(&self, ctx: &Context<'_>) -> Result<CommentAddedEvent> {
        event_view(ctx).map(CommentAddedEvent)
    }

    async fn status_changed(&self, ctx: &Context<'_>) -> Result<StatusChangedEvent> {
        event_view(ctx).map(StatusChangedEvent)
    }

    async fn events(&self, ctx: &Context<'_>) -> Result<Event> {
        Event::of(event_view(ctx)?)
    }

    async fn notification_added(&self, ctx: &Context<'_>) -> Result<Notification> {
        let SubscriptionEvent { notification, .. } = ctx.data_unchecked();
        notification
            .clone()
            .ok_or_else(|| Error::internal("event without a notification").into())
    }
}
