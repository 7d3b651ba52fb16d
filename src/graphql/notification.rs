//! Notifications: the inbox of each user. Who is notified of what is decided in
//! `store::notification`.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, Object, Result, SimpleObject};
use futures_util::{Stream, StreamExt};

use super::batch::SelectedField;
use super::comment::{self, Comment};
use super::connection::{Connection, CursorTag, Edge, PageArgs, PageInfo, TotalCount};
use super::event_stream::{SubscriptionEvent, SubscriptionHandle, follow};
use super::node::{self, NodeType};
use super::payload::{UserErrorPayload, run_mutation};
use super::task::{self, Task, user};
use super::user::User;
use super::{RequestContext, guard};
use crate::App;
use crate::error::{Error, UserErrorCode};
use crate::id::Id;
use crate::store::event::EventCriteria;
use crate::store::notification::{self as store, NotificationKind};
use crate::store::user as users;
use crate::time::Timestamp;

#[derive(Clone)]
pub struct Notification(pub Arc<store::Notification>);

/// An entry in the inbox of a user, created from an event that concerns them. Users are not
/// notified of their own actions, and at most once per event. Kept for 90 days. Visible to the user
/// only.
#[Object]
impl Notification {
    /// Global ID of the object. Opaque; never changes.
    pub async fn id(&self) -> ID {
        node::encode(NodeType::Notification, self.0.id)
    }

    /// Reason for the notification. A comment that mentions the viewer creates MENTIONED instead of
    /// COMMENTED.
    async fn kind(&self) -> NotificationKind {
        self.0.kind
    }

    /// When the event occurred.
    async fn created_at(&self) -> Timestamp {
        self.0.occurred_at
    }

    /// When the notification was marked as read; null if it is unread.
    async fn read_at(&self) -> Option<Timestamp> {
        self.0.read_at
    }

    /// Whether the notification is marked as read.
    async fn is_read(&self) -> bool {
        self.0.read_at.is_some()
    }

    /// Opaque cursor of the event in the event log. Pass it as `after` to `notificationAdded`,
    /// `events` or any other subscription to resume after it.
    async fn cursor(&self, ctx: &Context<'_>) -> String {
        RequestContext::of(ctx)
            .app()
            .cursors
            .encode(self.0.event_position())
    }

    /// The user who caused the event. Deleted accounts appear as a user named `Deleted user`.
    async fn actor(&self, ctx: &Context<'_>) -> Result<Option<User>> {
        user(ctx, self.0.actor_id).await
    }

    /// The task concerned, in its current state; null if it has been deleted or the viewer may no
    /// longer see it.
    async fn task(&self, ctx: &Context<'_>) -> Result<Option<Task>> {
        match self.0.task_id {
            Some(id) => {
                let columns = task::required_columns(&SelectedField::of(ctx));
                Ok(RequestContext::of(ctx)
                    .loaders()?
                    .task(id, columns)
                    .await?
                    .map(Task))
            }
            None => Ok(None),
        }
    }

    /// The comment concerned, in its current state; null if there is none, if it has been deleted,
    /// or if the viewer may no longer see it.
    async fn comment(&self, ctx: &Context<'_>) -> Result<Option<Comment>> {
        match self.0.comment_id {
            Some(id) => {
                let columns = comment::required_columns(&SelectedField::of(ctx));
                Ok(RequestContext::of(ctx)
                    .loaders()?
                    .comment(id, columns)
                    .await?
                    .map(Comment))
            }
            None => Ok(None),
        }
    }
}

pub struct NotificationConnection {
    user_id: Id,
    page: Connection<Notification>,
}

/// A page of an inbox, following the Relay Cursor Connections specification.
#[Object]
impl NotificationConnection {
    /// Notifications on this page, each with its cursor.
    async fn edges(&self, ctx: &Context<'_>) -> Result<Vec<Edge<Notification>>> {
        self.page.edges(ctx).await
    }

    /// Notifications on this page.
    async fn nodes(&self, ctx: &Context<'_>) -> Result<Vec<Notification>> {
        self.page.nodes(ctx).await
    }

    /// Paging information.
    async fn page_info(&self, ctx: &Context<'_>) -> Result<PageInfo> {
        self.page.page_info(ctx).await
    }

    /// Number of notifications in the whole list. It requires a separate count; select it only
    /// where it is needed.
    async fn total_count(&self, ctx: &Context<'_>) -> Result<i64> {
        self.page.total_count(ctx).await
    }

    /// Number of unread notifications in the inbox, on this page or not.
    async fn unread_count(&self, ctx: &Context<'_>) -> Result<i64> {
        unread_count(ctx, self.user_id).await
    }
}

/// Loads a page of a user's inbox.
pub async fn list(
    ctx: &Context<'_>,
    user_id: Id,
    paging: PageArgs,
    unread_only: bool,
) -> Result<NotificationConnection> {
    // Both lists are newest first, so that a cursor is valid with and without `unreadOnly`.
    let tag = CursorTag::new("User.notifications", Some(user_id), &(), true);
    let window = paging.window(tag)?;
    let page = store::page(
        &mut RequestContext::of(ctx).app().db.conn().await?,
        user_id,
        unread_only,
        &window,
    )
    .await?;
    let wrap = |row| Notification(Arc::new(row));
    let total = TotalCount::Notifications(user_id, unread_only);
    let page = Connection::new(tag, total, page, store::Notification::position, wrap);
    Ok(NotificationConnection { user_id, page })
}

/// Counts a user's unread notifications.
pub async fn unread_count(ctx: &Context<'_>, user_id: Id) -> Result<i64> {
    Ok(store::count(
        &mut RequestContext::of(ctx).app().db.conn().await?,
        user_id,
        true,
    )
    .await?)
}

/// Input of `markNotificationsRead`. Provide either `ids` or `all: true`.
#[derive(InputObject)]
pub struct MarkNotificationsReadInput {
    /// Notifications to mark as read; at most 100.
    ids: Option<Vec<ID>>,
    /// Whether to mark all notifications as read.
    all: Option<bool>,
}

/// Payload of `markNotificationsRead`.
#[derive(SimpleObject)]
pub struct MarkNotificationsReadPayload {
    /// The viewer, for example to select `unreadCount`; null if nothing was written.
    viewer: Option<User>,
    /// Number of notifications that were unread before; null if nothing was written.
    read_count: Option<usize>,
    /// Validation errors; empty on success.
    user_errors: Vec<UserErrorPayload>,
}

impl MarkNotificationsReadInput {
    /// The ids to mark as read; `None` means all.
    fn parse(self) -> crate::error::Result<Option<Vec<Id>>> {
        let invalid =
            |message: &'static str| Error::user_error("ids", UserErrorCode::Invalid, message);
        match (self.ids, self.all.unwrap_or_default()) {
            (None, true) => Ok(None),
            (Some(ids), false) if ids.len() > super::connection::MAX_PAGE => {
                Err(invalid("At most 100 IDs at once."))
            }
            (Some(ids), false) => ids
                .iter()
                .map(|id| node::decode_input(NodeType::Notification, id, "ids"))
                .collect::<Result<_, _>>()
                .map(Some),
            (None, false) | (Some(_), true) => Err(invalid("Provide either `ids` or `all: true`.")),
        }
    }
}

#[derive(Default)]
pub struct NotificationMutation;

#[Object]
impl NotificationMutation {
    /// Marks notifications of the viewer as read. Notifications that are read already keep their
    /// `readAt`. User errors: NOT_FOUND, INVALID.
    #[graphql(guard = "guard::require_viewer")]
    async fn mark_notifications_read(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The notifications to mark as read.")] input: MarkNotificationsReadInput,
    ) -> Result<MarkNotificationsReadPayload> {
        let (done, user_errors) = run_mutation(ctx, |app, viewer| async move {
            let ids = input.parse()?;
            let count = store::mark_read(&app.db, app.clock.now(), &viewer, ids.as_deref()).await?;
            let user = users::any_by_ids(&mut app.db.conn().await?, &[viewer.id])
                .await?
                .pop();
            Ok((user.ok_or_else(Error::unauthenticated)?, count))
        })
        .await?;
        let (viewer, read_count) = done.map(|(user, count)| (User::from(user), count)).unzip();
        Ok(MarkNotificationsReadPayload {
            viewer,
            read_count,
            user_errors,
        })
    }
}

#[derive(Default)]
pub struct NotificationSubscription;

/// The viewer's notification of an event, if the event concerns them. Waits until it is in the
/// inbox, so that a client that receives it can mark it as read.
async fn notification_for(
    app: &App,
    viewer: Id,
    event: &SubscriptionEvent,
) -> crate::error::Result<Option<Notification>> {
    let recipients = store::recipients(&event.event, &event.objects.snapshot);
    if recipients.into_iter().all(|(id, _)| id != viewer) {
        return Ok(None);
    }
    let position = event.event.position();
    // Fails only if the sender was dropped, and `app` owns it.
    let _ = app
        .inbox
        .subscribe()
        .wait_for(|reached| *reached >= position)
        .await;
    let row = store::by_ids(&mut app.db.conn().await?, viewer, &[event.event.id])
        .await?
        .pop();
    Ok(row.map(|row| Notification(Arc::new(row))))
}

#[async_graphql::Subscription]
impl NotificationSubscription {
    /// Delivers each notification that arrives in the viewer's inbox. With `after` it first replays
    /// notifications of events after that cursor, as far as the event log goes back; `isRead` is
    /// the current state.
    #[graphql(guard = "guard::require_viewer")]
    async fn notification_added(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Resumes after this event cursor. By default the stream starts now.")]
        after: Option<String>,
    ) -> Result<impl Stream<Item = Result<Notification>> + use<>> {
        let after = SubscriptionHandle::start_position(ctx, after)?;
        let (app, viewer) = (
            Arc::clone(RequestContext::of(ctx).app()),
            RequestContext::of(ctx).viewer()?.id,
        );
        let filter = EventCriteria {
            kinds: Some(store::NOTIFYING_KINDS.to_vec()),
            ..EventCriteria::default()
        };
        let events = Box::pin(follow(RequestContext::of(ctx), filter, after)).await?;
        let events = events.filter_map(move |event| {
            let app = Arc::clone(&app);
            async move {
                let mut event = match event {
                    Ok(event) => event,
                    Err(error) => return Some(Err(error)),
                };
                match Box::pin(notification_for(&app, viewer, &event))
                    .await
                    .transpose()?
                {
                    Ok(notification) => {
                        event.notification = Some(notification);
                        Some(Ok(event))
                    }
                    Err(error) => Some(Err(error)),
                }
            }
        });
        Ok(SubscriptionHandle::set_stream(ctx, events))
    }
}
