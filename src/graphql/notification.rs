//! Notifications: the inbox of each person.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, Object, Result, SimpleObject};
use futures_util::{Stream, StreamExt};

use super::comment::{self, Comment};
use super::connection::{Connection, Edge, PageInfo, Paging, Tag, Total};
use super::level::Selected;
use super::live::{Happening, Opening, follow};
use super::node::{self, Noun};
use super::payload::{UserError, write};
use super::task::{self, Task, user};
use super::user::User;
use super::{Caller, guard};
use crate::App;
use crate::error::{Error, FaultCode};
use crate::id::Id;
use crate::store::event::Filter;
use crate::store::notification::{self as store, Kind};
use crate::store::user as users;
use crate::time::Timestamp;

/// A notification, as the schema shows it.
#[derive(Clone)]
pub struct Notification(pub Arc<store::Notification>);

/// Something that happened and is the viewer's to know: made from the event log for whoever an event concerns, never for
/// whoever did it, and kept for 90 days. There is one for each person and event.
#[Object]
impl Notification {
    /// The object's global id; opaque, and it never changes.
    pub async fn id(&self) -> ID {
        node::encode(Noun::Notification, self.0.id)
    }

    /// Why the viewer is notified. Whoever is mentioned in a comment is told that, and not of the comment again.
    async fn kind(&self) -> Kind {
        self.0.kind
    }

    /// When it happened.
    async fn created_at(&self) -> Timestamp {
        self.0.occurred_at
    }

    /// When it was marked as read; null if it was not.
    async fn read_at(&self) -> Option<Timestamp> {
        self.0.read_at
    }

    /// Whether it was marked as read.
    async fn is_read(&self) -> bool {
        self.0.read_at.is_some()
    }

    /// Opaque position of its event in the event log: pass it as `after` to `notificationAdded`, `events` or any other
    /// subscription to go on from here.
    async fn cursor(&self, ctx: &Context<'_>) -> String {
        Caller::of(ctx).app().cursors.encode(self.0.event_position())
    }

    /// Who did it; a user named `Deleted user` when the account is gone.
    async fn actor(&self, ctx: &Context<'_>) -> Result<Option<User>> {
        user(ctx, self.0.actor_id).await
    }

    /// The task it is about, as it is now; null when it is gone or the viewer may not see it any more.
    async fn task(&self, ctx: &Context<'_>) -> Result<Option<Task>> {
        match self.0.task_id {
            Some(id) => {
                let columns = task::columns(&Selected::of(ctx));
                Ok(Caller::of(ctx).loaders()?.task(id, columns).await?.map(Task))
            }
            None => Ok(None),
        }
    }

    /// The comment it is about, as it is now; null when it is about none, when it is gone, or when the viewer may not see
    /// it any more.
    async fn comment(&self, ctx: &Context<'_>) -> Result<Option<Comment>> {
        match self.0.comment_id {
            Some(id) => {
                let columns = comment::columns(&Selected::of(ctx));
                Ok(Caller::of(ctx).loaders()?.comment(id, columns).await?.map(Comment))
            }
            None => Ok(None),
        }
    }
}

/// A page of an inbox, as the schema shows it.
pub struct NotificationConnection {
    user_id: Id,
    page: Connection<Notification>,
}

/// One page of an inbox, as Relay's cursor connections specification has it.
#[Object]
impl NotificationConnection {
    /// The notifications on this page, each with its cursor.
    async fn edges(&self, ctx: &Context<'_>) -> Result<Vec<Edge<Notification>>> {
        self.page.edges(ctx).await
    }

    /// The notifications on this page.
    async fn nodes(&self, ctx: &Context<'_>) -> Result<Vec<Notification>> {
        self.page.nodes(ctx).await
    }

    /// Where this page stands in the list.
    async fn page_info(&self, ctx: &Context<'_>) -> Result<PageInfo> {
        self.page.page_info(ctx).await
    }

    /// How many notifications the whole list has. Counted only when asked for: leave it out where it is not needed.
    async fn total_count(&self, ctx: &Context<'_>) -> Result<i64> {
        self.page.total_count(ctx).await
    }

    /// How many notifications are not marked as read, on this page or not.
    async fn unread_count(&self, ctx: &Context<'_>) -> Result<i64> {
        unread(ctx, self.user_id).await
    }
}

/// One page of somebody's inbox.
pub async fn list(ctx: &Context<'_>, user_id: Id, paging: Paging, unread_only: bool) -> Result<NotificationConnection> {
    // Newest first, whichever are asked for: a place in one list is a place in the other.
    let tag = Tag::new("User.notifications", Some(user_id), &(), true);
    let window = paging.window(tag)?;
    let page = store::page(&mut Caller::of(ctx).app().db.conn().await?, user_id, unread_only, &window).await?;
    let wrap = |row| Notification(Arc::new(row));
    let total = Total::Notifications(user_id, unread_only);
    let page = Connection::new(tag, total, page, store::Notification::position, wrap);
    Ok(NotificationConnection { user_id, page })
}

/// How many notifications somebody has not marked as read.
pub async fn unread(ctx: &Context<'_>, user_id: Id) -> Result<i64> {
    Ok(store::count(&mut Caller::of(ctx).app().db.conn().await?, user_id, true).await?)
}

/// Which notifications to mark as read: give `ids`, or `all: true`.
#[derive(InputObject)]
pub struct MarkNotificationsReadInput {
    /// These, at most 100.
    ids: Option<Vec<ID>>,
    /// Every one that there is.
    all: Option<bool>,
}

/// What came of `markNotificationsRead`.
#[derive(SimpleObject)]
pub struct MarkNotificationsReadPayload {
    /// Whose they are, to read `unreadCount` from; null if nothing was written.
    viewer: Option<User>,
    /// How many were not marked as read before; null if nothing was written.
    read_count: Option<usize>,
    /// What the caller can put right.
    user_errors: Vec<UserError>,
}

impl MarkNotificationsReadInput {
    /// The rows that are named; nothing for all.
    fn parse(self) -> crate::error::Result<Option<Vec<Id>>> {
        let invalid = |message: &'static str| Error::fault("ids", FaultCode::Invalid, message);
        match (self.ids, self.all.unwrap_or_default()) {
            (None, true) => Ok(None),
            (Some(ids), false) if ids.len() > super::connection::MAX_PAGE => Err(invalid("At most 100 ids at once.")),
            (Some(ids), false) => {
                ids.iter().map(|id| node::named(Noun::Notification, id, "ids")).collect::<Result<_, _>>().map(Some)
            }
            (None, false) | (Some(_), true) => Err(invalid("Give `ids`, or `all: true`.")),
        }
    }
}

/// The mutations of notifications.
#[derive(Default)]
pub struct NotificationMutation;

#[Object]
impl NotificationMutation {
    /// Marks notifications of the signed-in user as read; those that are read already stay as they are. User errors:
    /// NOT_FOUND, INVALID.
    #[graphql(guard = "guard::signed_in")]
    async fn mark_notifications_read(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which ones.")] input: MarkNotificationsReadInput,
    ) -> Result<MarkNotificationsReadPayload> {
        let (done, user_errors) = write(ctx, |app, viewer| async move {
            let ids = input.parse()?;
            let count = store::mark_read(&app.db, app.clock.now(), &viewer, ids.as_deref()).await?;
            let user = users::any_by_ids(&mut app.db.conn().await?, &[viewer.id]).await?.pop();
            Ok((user.ok_or_else(Error::unauthenticated)?, count))
        })
        .await?;
        let (viewer, read_count) = done.map(|(user, count)| (User::from(user), count)).unzip();
        Ok(MarkNotificationsReadPayload { viewer, read_count, user_errors })
    }
}

/// The subscriptions to notifications.
#[derive(Default)]
pub struct NotificationSubscription;

/// What an event is to somebody, if anything, once it is in their inbox: whoever was told of it finds it there.
async fn added(app: &App, viewer: Id, happening: &Happening) -> crate::error::Result<Option<Notification>> {
    let told = store::recipients(&happening.event, &happening.objects.snapshot);
    if told.into_iter().all(|(id, _)| id != viewer) {
        return Ok(None);
    }
    let position = happening.event.position();
    // It fails only when the sender is gone, which `app` holds.
    let _ = app.inbox.subscribe().wait_for(|reached| *reached >= position).await;
    let row = store::by_ids(&mut app.db.conn().await?, viewer, &[happening.event.id]).await?.pop();
    Ok(row.map(|row| Notification(Arc::new(row))))
}

#[async_graphql::Subscription]
impl NotificationSubscription {
    /// Something came into the viewer's inbox. With `after` it begins with what came after that place in the event log,
    /// as far as the log goes back; `isRead` is as it is now.
    #[graphql(guard = "guard::signed_in")]
    async fn notification_added(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Begin with what came after this cursor; without it, from now on.")] after: Option<String>,
    ) -> Result<impl Stream<Item = Result<Notification>> + use<>> {
        let after = Opening::begin(ctx, after)?;
        let (app, viewer) = (Arc::clone(Caller::of(ctx).app()), Caller::of(ctx).viewer()?.id);
        let filter = Filter { kinds: Some(store::KINDS.to_vec()), ..Filter::default() };
        let happenings = Box::pin(follow(Caller::of(ctx), filter, after)).await?;
        let happenings = happenings.filter_map(move |happening| {
            let app = Arc::clone(&app);
            async move {
                let mut happening = match happening {
                    Ok(happening) => happening,
                    Err(error) => return Some(Err(error)),
                };
                match Box::pin(added(&app, viewer, &happening)).await.transpose()? {
                    Ok(notification) => {
                        happening.notification = Some(notification);
                        Some(Ok(happening))
                    }
                    Err(error) => Some(Err(error)),
                }
            }
        });
        Ok(Opening::leave(ctx, happenings))
    }
}
