//! Events: what happened, as types of one interface; the log as a connection and as subscriptions.

use std::borrow::Cow;
use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Interface, Object, Result, SimpleObject};
use futures_util::Stream;
use futures_util::stream::Empty;

use super::comment::{self, Comment};
use super::connection::{PageInfo, Paging, needs};
use super::level::Selected;
use super::live::{Happening, Opening, follow};
use super::node::{self, Noun};
use super::notification::Notification;
use super::project::Project;
use super::task::{self, Task, check_lists, user};
use super::text::Text;
use super::user::User;
use super::{Caller, guard};
use crate::access::Action;
use crate::error::Error;
use crate::events::cursor::Cursors;
use crate::events::{self as log, Kind, Position};
use crate::id::Id;
use crate::store::event::{self as store, EventColumns, Filter, Objects, Snapshot, Stretch};
use crate::store::history::Change;
use crate::store::task::{Status, Task as TaskRow, TaskColumns};
use crate::time::Timestamp;

/// An event with what it takes to tell it.
#[derive(Clone)]
pub struct Told {
    /// The event.
    pub event: Arc<log::Event>,
    /// What it carries.
    pub snapshot: Arc<Snapshot>,
    task: Option<Arc<TaskRow>>,
}

impl Told {
    /// Takes the task as it is now; when it is gone, its last picture in this event.
    pub fn new(event: &Arc<log::Event>, snapshot: &Arc<Snapshot>, task: Option<&Arc<TaskRow>>) -> Self {
        let task = task.cloned().or_else(|| snapshot.task.clone().map(Arc::new));
        Self { event: Arc::clone(event), snapshot: Arc::clone(snapshot), task }
    }

    fn task(&self) -> Result<Task> {
        let task = self.task.clone().ok_or_else(|| Error::internal("an event without its task"))?;
        Ok(Task(task))
    }

    fn last_comment(&self) -> Option<Comment> {
        self.snapshot.comment.clone().map(|row| Comment(Arc::new(row)))
    }

    async fn comment(&self, ctx: &Context<'_>) -> Result<Option<Comment>> {
        let Some(id) = self.event.comment_id else {
            return Ok(None);
        };
        let columns = comment::columns(&Selected::of(ctx));
        Ok(Caller::of(ctx).loaders()?.comment(id, columns).await?.map(Comment))
    }

    fn changes(&self) -> Vec<FieldChange> {
        let object_id = self.event.object();
        self.snapshot.changes.iter().map(|change| FieldChange { object_id, change: change.clone() }).collect()
    }

    fn project(&self) -> Result<Project> {
        let project = self.snapshot.project.clone().ok_or_else(|| Error::internal("an event without its project"))?;
        Ok(Project(Arc::new(project)))
    }
}

/// A cursor that still works: nothing that comes after it has left the log, whose oldest place is the floor.
pub fn within(cursors: &Cursors, floor: Position, position: Position) -> crate::error::Result<Position> {
    if position < floor { Err(Error::CursorExpired { oldest: cursors.encode(floor) }) } else { Ok(position) }
}

/// A field that changed. Its long texts are read when they are asked for.
pub struct FieldChange {
    object_id: Option<Id>,
    change: Change,
}

/// A field that changed.
#[Object]
impl FieldChange {
    /// The field's name in the schema.
    async fn field(&self) -> &str {
        &self.change.field
    }

    /// Its value before, as text; null if it had none.
    async fn from(&self, ctx: &Context<'_>) -> Result<Option<Text<Cow<'_, str>>>> {
        self.value(ctx, self.change.from.as_deref(), self.change.from_text).await
    }

    /// Its value after, as text; null if it has none.
    async fn to(&self, ctx: &Context<'_>) -> Result<Option<Text<Cow<'_, str>>>> {
        self.value(ctx, self.change.to.as_deref(), self.change.to_text).await
    }
}

impl FieldChange {
    async fn value<'a>(
        &self,
        ctx: &Context<'_>,
        inline: Option<&'a str>,
        text_id: Option<Id>,
    ) -> Result<Option<Text<Cow<'a, str>>>> {
        let (Some(object), Some(id)) = (self.object_id, text_id) else {
            return Ok(inline.map(|text| Text(text.into())));
        };
        let text = Caller::of(ctx).loaders()?.history_text(object, id).await?;
        Ok(text.map(|text| Text(text.to_string().into())))
    }
}

/// One type for each kind of event, all with the fields of the interface.
macro_rules! events {
    ($($(#[$doc:meta])* $name:ident { $($fields:tt)* })+) => {
        $(
            $(#[$doc])*
            #[derive(Clone)]
            pub struct $name(Told);

            $(#[$doc])*
            #[Object]
            impl $name {
                /// The event's identity: a client that sees it twice knows it by this.
                pub async fn id(&self) -> ID {
                    node::encode(Noun::Event, self.0.event.id)
                }

                /// Opaque position in the event log: pass it as `after` to go on from here.
                pub async fn cursor(&self, ctx: &Context<'_>) -> String {
                    Caller::of(ctx).app().cursors.encode(self.0.event.position())
                }

                /// When it happened.
                pub async fn occurred_at(&self) -> Timestamp {
                    self.0.event.occurred_at
                }

                /// Who did it; a user named `Deleted user` when the account is gone.
                pub async fn actor(&self, ctx: &Context<'_>) -> Result<Option<User>> {
                    user(ctx, self.0.event.actor_id).await
                }

                $($fields)*
            }
        )+

        /// Something that happened, written in the same transaction as the change itself.
        #[derive(Clone, Interface)]
        #[graphql(
            field(name = "id", ty = "ID", desc = "The event's identity: a client that sees it twice knows it by this."),
            field(name = "cursor", ty = "String", desc = "Opaque position in the event log: pass it as `after` to go on from here."),
            field(name = "occurred_at", ty = "Timestamp", desc = "When it happened."),
            field(name = "actor", ty = "Option<User>", desc = "Who did it; a user named `Deleted user` when the account is gone.")
        )]
        pub enum Event {
            $($(#[$doc])* $name($name)),+
        }

        /// The names of the interface and of its types.
        const TYPES: &[&str] = &["Event", $(stringify!($name)),+];
    };
}

events! {
    /// A task came into being.
    TaskCreatedEvent {
        /// The task as it is now; its last picture when it is gone.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }
    }

    /// Fields of a task changed, other than its status and assignee, which have events of their own.
    TaskUpdatedEvent {
        /// The task as it is now; its last picture when it is gone.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }

        /// The fields that changed.
        async fn changes(&self) -> Vec<FieldChange> {
            self.0.changes()
        }
    }

    /// A task is gone, by itself or with its project.
    TaskDeletedEvent {
        /// Its last picture. What hangs on it (labels, comments, history) is gone.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }

        /// The id that is gone.
        async fn deleted_task_id(&self) -> Result<ID> {
            let id = self.0.event.task_id.ok_or_else(|| Error::internal("an event without its task"))?;
            Ok(node::encode(Noun::Task, id))
        }
    }

    /// A task got an assignee.
    TaskAssignedEvent {
        /// The task as it is now; its last picture when it is gone.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }

        /// Who got it.
        async fn assignee(&self, ctx: &Context<'_>) -> Result<Option<User>> {
            user(ctx, self.0.event.assignee_id).await
        }

        /// Who had it before.
        async fn previous_assignee(&self, ctx: &Context<'_>) -> Result<Option<User>> {
            user(ctx, self.0.event.previous_assignee_id).await
        }
    }

    /// A task was taken from its assignee, who is told of it with this last event.
    TaskUnassignedEvent {
        /// The task as it is now, its last picture when it is gone; null for a viewer who may not see it any more.
        async fn task(&self, ctx: &Context<'_>) -> Result<Option<Task>> {
            let viewer = Caller::of(ctx).viewer()?;
            Ok(self.0.task.clone().filter(|task| viewer.may(Action::SeeTask, &**task)).map(Task))
        }

        /// The task's id, also when the viewer may not see it any more.
        async fn task_id(&self) -> Result<ID> {
            let id = self.0.event.task_id.ok_or_else(|| Error::internal("an event without its task"))?;
            Ok(node::encode(Noun::Task, id))
        }

        /// Who had it.
        async fn previous_assignee(&self, ctx: &Context<'_>) -> Result<Option<User>> {
            user(ctx, self.0.event.previous_assignee_id).await
        }
    }

    /// A task changed its status.
    StatusChangedEvent {
        /// The task as it is now; its last picture when it is gone.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }

        /// Its status before.
        async fn from(&self) -> Result<Status> {
            Ok(self.0.snapshot.status.ok_or_else(|| Error::internal("an event without its status"))?.0)
        }

        /// Its status after.
        async fn to(&self) -> Result<Status> {
            Ok(self.0.snapshot.status.ok_or_else(|| Error::internal("an event without its status"))?.1)
        }
    }

    /// Somebody commented on a task.
    CommentAddedEvent {
        /// The task as it is now; its last picture when it is gone.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }

        /// The comment as it is now; null when it is gone.
        async fn comment(&self, ctx: &Context<'_>) -> Result<Option<Comment>> {
            self.0.comment(ctx).await
        }
    }

    /// A comment's text changed.
    CommentUpdatedEvent {
        /// The task as it is now; its last picture when it is gone.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }

        /// The comment as it is now; null when it is gone.
        async fn comment(&self, ctx: &Context<'_>) -> Result<Option<Comment>> {
            self.0.comment(ctx).await
        }
    }

    /// A comment is gone.
    CommentDeletedEvent {
        /// The task as it is now; its last picture when it is gone.
        async fn task(&self) -> Result<Task> {
            self.0.task()
        }

        /// The comment that was deleted. Its text is gone: `body` is empty.
        async fn comment(&self) -> Option<Comment> {
            self.0.last_comment()
        }

        /// The id that is gone.
        async fn deleted_comment_id(&self) -> Result<ID> {
            let id = self.0.event.comment_id.ok_or_else(|| Error::internal("an event without its comment"))?;
            Ok(node::encode(Noun::Comment, id))
        }
    }

    /// Fields of a project changed.
    ProjectUpdatedEvent {
        /// The project as this event left it.
        async fn project(&self) -> Result<Project> {
            self.0.project()
        }

        /// The fields that changed.
        async fn changes(&self) -> Vec<FieldChange> {
            self.0.changes()
        }
    }

    /// A project is gone. Each task that went with it is told as deleted before this.
    ProjectDeletedEvent {
        /// Its last picture. What hangs on it is gone.
        async fn project(&self) -> Result<Project> {
            self.0.project()
        }

        /// The id that is gone.
        async fn deleted_project_id(&self) -> Result<ID> {
            let id = self.0.event.project_id.ok_or_else(|| Error::internal("an event without its project"))?;
            Ok(node::encode(Noun::Project, id))
        }
    }
}

impl Event {
    fn of(told: Told) -> Result<Self> {
        Ok(match told.event.kind {
            Kind::TaskCreated => TaskCreatedEvent(told).into(),
            Kind::TaskUpdated => TaskUpdatedEvent(told).into(),
            Kind::TaskDeleted => TaskDeletedEvent(told).into(),
            Kind::TaskAssigned => TaskAssignedEvent(told).into(),
            Kind::TaskUnassigned => TaskUnassignedEvent(told).into(),
            Kind::StatusChanged => StatusChangedEvent(told).into(),
            Kind::CommentAdded => CommentAddedEvent(told).into(),
            Kind::CommentUpdated => CommentUpdatedEvent(told).into(),
            Kind::CommentDeleted => CommentDeletedEvent(told).into(),
            Kind::ProjectUpdated => ProjectUpdatedEvent(told).into(),
            Kind::ProjectDeleted => ProjectDeletedEvent(told).into(),
            Kind::SessionEnded | Kind::UserChanged => {
                return Err(Error::internal("an internal event").into());
            }
        })
    }
}

/// The kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum EventType {
    /// A task came into being.
    TaskCreated,
    /// Fields of a task changed, other than its status and assignee.
    TaskUpdated,
    /// A task is gone.
    TaskDeleted,
    /// A task got an assignee.
    TaskAssigned,
    /// A task was taken from its assignee.
    TaskUnassigned,
    /// A task changed its status.
    StatusChanged,
    /// Somebody commented on a task.
    CommentAdded,
    /// A comment's text changed.
    CommentUpdated,
    /// A comment is gone.
    CommentDeleted,
    /// Fields of a project changed.
    ProjectUpdated,
    /// A project is gone.
    ProjectDeleted,
}

impl From<EventType> for Kind {
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

/// Which events are asked for. Members are ANDed; an empty list matches nothing.
#[derive(InputObject)]
pub struct EventFilter {
    /// In this project.
    project_id: Option<ID>,
    /// About this task.
    task_id: Option<ID>,
    /// Of these kinds.
    types: Option<Vec<EventType>>,
}

fn filter(project_id: Option<ID>, task_id: Option<ID>, kinds: Option<Vec<Kind>>) -> crate::error::Result<Filter> {
    Ok(Filter {
        project_id: project_id.map(|id| node::filtered(Noun::Project, &id)).transpose()?,
        task_id: task_id.map(|id| node::filtered(Noun::Task, &id)).transpose()?,
        kinds,
        assignee_id: None,
    })
}

impl EventFilter {
    fn parse(self) -> crate::error::Result<Filter> {
        check_lists(self.types.as_ref().map(Vec::len))?;
        let kinds = self.types.map(|types| types.into_iter().map(Kind::from).collect());
        filter(self.project_id, self.task_id, kinds)
    }
}

/// One event on a page.
#[derive(Clone, SimpleObject)]
pub struct EventEdge {
    /// The event's place in the log: pass it as `after` or `before` to go on from here.
    cursor: String,
    /// The event.
    node: Event,
}

/// One page of the event log.
#[derive(SimpleObject)]
pub struct EventConnection {
    /// The events on this page, each with its cursor.
    edges: Vec<EventEdge>,
    /// The events on this page.
    nodes: Vec<Event>,
    /// Where this page stands in the log.
    page_info: PageInfo,
}

/// What of their tasks is read for what is selected of a connection of events.
pub fn task_columns(connection: &Selected<'_>) -> TaskColumns {
    needs(connection, ["EventConnection", "EventEdge"], TaskColumns::Summary, |event| {
        event.greatest(TYPES, TaskColumns::Summary, |field| match field.name() {
            "task" => task::columns(&field),
            _ => TaskColumns::Summary,
        })
    })
}

/// What of events is read for what is selected of a connection of them. Tasks that are there show as they are now; of
/// those that `may_be_gone` the snapshot has the last picture.
pub fn columns_of_nodes(connection: &Selected<'_>, may_be_gone: bool) -> EventColumns {
    needs(connection, ["EventConnection", "EventEdge"], EventColumns::Summary, |event| {
        event.greatest(TYPES, EventColumns::Summary, |field| match field.name() {
            "task" if !may_be_gone => EventColumns::Summary,
            "__typename" | "id" | "cursor" | "occurredAt" | "actor" | "assignee" | "previousAssignee" | "taskId"
            | "deletedTaskId" | "deletedCommentId" | "deletedProjectId" => EventColumns::Summary,
            _ => EventColumns::Full,
        })
    })
}

/// The stretch of the log that paging arguments ask for.
pub fn stretch(cursors: &Cursors, paging: &Paging) -> crate::error::Result<Stretch> {
    let (limit, backward) = paging.size()?;
    let read = |cursor: &Option<String>| cursor.as_deref().map(|cursor| cursors.decode(cursor)).transpose();
    Ok(Stretch { after: read(&paging.after)?, before: read(&paging.before)?, limit, backward })
}

/// One event more than asked for tells whether there is another page.
pub fn one_more(stretch: Stretch) -> Stretch {
    Stretch { limit: stretch.limit + 1, ..stretch }
}

/// The page of the log that was read by a stretch with [`one_more`].
pub fn connection(mut events: Vec<Told>, stretch: Stretch, cursors: &Cursors) -> Result<EventConnection> {
    let more = events.len() > stretch.limit;
    if more && stretch.backward {
        events.remove(0);
    } else {
        events.truncate(stretch.limit);
    }
    let mut edges = Vec::with_capacity(events.len());
    for told in events {
        let cursor = cursors.encode(told.event.position());
        edges.push(EventEdge { cursor, node: Event::of(told)? });
    }
    Ok(EventConnection {
        page_info: PageInfo {
            has_next_page: if stretch.backward { stretch.before.is_some() } else { more },
            has_previous_page: if stretch.backward { more } else { stretch.after.is_some() },
            start_cursor: edges.first().map(|edge| edge.cursor.clone()),
            end_cursor: edges.last().map(|edge| edge.cursor.clone()),
        },
        nodes: edges.iter().map(|edge| edge.node.clone()).collect(),
        edges,
    })
}

/// The queries of the event log.
#[derive(Default)]
pub struct EventQuery;

#[Object]
impl EventQuery {
    /// The event log as the viewer may see it, oldest first: the same events, order and cursors as the subscriptions, as
    /// far back as the feed goes. A cursor that is older gets CURSOR_EXPIRED. An event shows when every change that began
    /// before it is over, so that nothing ever appears in front of what was read.
    #[graphql(guard = "guard::signed_in")]
    async fn events(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "So many from the start: 1–100, default 20.")] first: Option<i32>,
        #[graphql(desc = "Only what comes after this cursor.")] after: Option<String>,
        #[graphql(desc = "So many from the end: 1–100; not together with `first`.")] last: Option<i32>,
        #[graphql(desc = "Only what comes before this cursor.")] before: Option<String>,
        #[graphql(desc = "Only these.")] filter: Option<EventFilter>,
    ) -> Result<EventConnection> {
        let caller = Caller::of(ctx);
        let cursors = &caller.app().cursors;
        let stretch = stretch(cursors, &Paging::new(first, after, last, before))?;
        let filter = filter.map(EventFilter::parse).transpose()?.unwrap_or_default();
        let mut conn = caller.app().db.conn().await?;
        let floor = log::floor(&mut conn).await?;
        for position in [stretch.after, stretch.before].into_iter().flatten() {
            within(cursors, floor, position)?;
        }
        // What is older than the floor may be there still, as the history of a task: it is not in the feed.
        let kept = Stretch { after: Some(stretch.after.unwrap_or(floor)), ..one_more(stretch) };
        let field = Selected::of(ctx);
        let columns = columns_of_nodes(&field, true);
        let events = store::page(&mut conn, caller.viewer()?, &filter, kept, columns).await?;
        drop(conn);
        let loaded = Objects::of_all(&caller.app().db, events, task_columns(&field)).await?.into_iter();
        let views =
            loaded.map(|(event, objects)| Told::new(&Arc::new(event), &objects.snapshot, objects.task.as_ref()));
        connection(views.collect(), stretch, cursors)
    }
}

/// The subscriptions to events.
#[derive(Default)]
pub struct EventSubscription;

async fn open<T>(ctx: &Context<'_>, filter: Filter, after: Option<String>) -> Result<Empty<Result<T>>> {
    let after = Opening::begin(ctx, after)?;
    let happenings = Box::pin(follow(Caller::of(ctx), filter, after)).await?;
    Ok(Opening::leave(ctx, happenings))
}

#[async_graphql::Subscription]
impl EventSubscription {
    /// A task was assigned to the viewer.
    #[graphql(guard = "guard::signed_in")]
    async fn task_assigned(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Begin with what came after this cursor; without it, from now on.")] after: Option<String>,
    ) -> Result<impl Stream<Item = Result<TaskAssignedEvent>> + use<>> {
        let filter = Filter {
            kinds: Some(vec![Kind::TaskAssigned]),
            assignee_id: Some(Caller::of(ctx).viewer()?.id),
            ..Filter::default()
        };
        open(ctx, filter, after).await
    }

    /// A comment was added to a task the viewer may see.
    #[graphql(guard = "guard::signed_in")]
    async fn comment_added(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Only on this task.")] task_id: Option<ID>,
        #[graphql(desc = "Only in this project.")] project_id: Option<ID>,
        #[graphql(desc = "Begin with what came after this cursor; without it, from now on.")] after: Option<String>,
    ) -> Result<impl Stream<Item = Result<CommentAddedEvent>> + use<>> {
        let filter = filter(project_id, task_id, Some(vec![Kind::CommentAdded]))?;
        open(ctx, filter, after).await
    }

    /// A task the viewer may see changed its status.
    #[graphql(guard = "guard::signed_in")]
    async fn status_changed(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Only of this task.")] task_id: Option<ID>,
        #[graphql(desc = "Only in this project.")] project_id: Option<ID>,
        #[graphql(desc = "Begin with what came after this cursor; without it, from now on.")] after: Option<String>,
    ) -> Result<impl Stream<Item = Result<StatusChangedEvent>> + use<>> {
        let filter = filter(project_id, task_id, Some(vec![Kind::StatusChanged]))?;
        open(ctx, filter, after).await
    }

    /// Every event that the viewer may see, of every `EventType`, on one stream; the inbox has `notificationAdded`.
    #[graphql(guard = "guard::signed_in")]
    async fn events(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Only these.")] filter: Option<EventFilter>,
        #[graphql(desc = "Begin with what came after this cursor; without it, from now on.")] after: Option<String>,
    ) -> Result<impl Stream<Item = Result<Event>> + use<>> {
        let filter = filter.map(EventFilter::parse).transpose()?.unwrap_or_default();
        open(ctx, filter, after).await
    }
}

/// What subscribers are told of one event: the root of the schema that answers it. Arguments were heeded when the
/// subscription was opened.
pub struct Telling;

fn told(ctx: &Context<'_>) -> Result<Told> {
    let Happening { event, objects, .. } = ctx.data_unchecked();
    Ok(Told::new(event, &objects.snapshot, objects.task.as_ref()))
}

#[Object(name = "Subscription")]
impl Telling {
    async fn task_assigned(&self, ctx: &Context<'_>) -> Result<TaskAssignedEvent> {
        told(ctx).map(TaskAssignedEvent)
    }

    async fn comment_added(&self, ctx: &Context<'_>) -> Result<CommentAddedEvent> {
        told(ctx).map(CommentAddedEvent)
    }

    async fn status_changed(&self, ctx: &Context<'_>) -> Result<StatusChangedEvent> {
        told(ctx).map(StatusChangedEvent)
    }

    async fn events(&self, ctx: &Context<'_>) -> Result<Event> {
        Event::of(told(ctx)?)
    }

    async fn notification_added(&self, ctx: &Context<'_>) -> Result<Notification> {
        let Happening { notification, .. } = ctx.data_unchecked();
        notification.clone().ok_or_else(|| Error::internal("an event without its notification").into())
    }
}
