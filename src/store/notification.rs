//! Notification inboxes, derived from the event log. [`recipients`] decides who is notified of an
//! event and why. Both the consumer that fills the table and live subscriptions use it.

use diesel::deserialize::FromSqlRow;
use diesel::expression::AsExpression;
use diesel::prelude::*;
use serde::Serialize;

use super::event::Snapshot;
use super::{PURGE_BATCH, session};
use crate::access::Viewer;
use crate::db::page::{Page, PageWindow, RowPosition as Place, SortKey, any_id};
use crate::db::rows::RunQueryDsl;
use crate::db::schema::{notifications, users};
use crate::db::{Conn, Db, Lock, PooledConn, inline_if_few};
use crate::error::{Error, Result};
use crate::events::{self, Event, LogPosition, advance_offset, consumer_offset, settled_after};
use crate::id::Id;
use crate::time::Timestamp;
use crate::{keyset, on, select_locked, stored_as_smallint};

/// Events per read of the log. Small, because an open transaction on PostgreSQL keeps all later
/// events unsettled, so the one that writes notifications must be short.
const EVENT_BATCH: usize = 100;
/// Name of the consumer offset.
const CONSUMER: &str = "notifications";
/// Kinds of events that can notify a user.
pub const NOTIFYING_KINDS: [events::EventKind; 4] = [
    events::EventKind::TaskAssigned,
    events::EventKind::CommentAdded,
    events::EventKind::CommentUpdated,
    events::EventKind::StatusChanged,
];

/// Reason for a notification.
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
    async_graphql::Enum,
)]
#[diesel(sql_type = diesel::sql_types::SmallInt)]
#[graphql(name = "NotificationKind")]
pub enum NotificationKind {
    /// A task was assigned to the user.
    Assigned,
    /// A comment mentions the user as `@username`.
    Mentioned,
    /// A comment was added to a task that is assigned to the user or belongs to one of the user's
    /// projects.
    Commented,
    /// The status changed of a task that is assigned to the user or belongs to one of the user's
    /// projects.
    StatusChanged,
}
stored_as_smallint!(NotificationKind { Assigned = 1, Mentioned = 2, Commented = 3, StatusChanged = 4 });

#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable, Serialize)]
#[diesel(table_name = notifications, treat_none_as_default_value = false)]
pub struct Notification {
    /// The recipient.
    #[serde(skip)]
    pub user_id: Id,
    /// Equals the id of the event; a user has at most one notification of it.
    pub id: Id,
    pub kind: NotificationKind,
    pub occurred_at: Timestamp,
    pub actor_id: Option<Id>,
    pub task_id: Option<Id>,
    pub comment_id: Option<Id>,
    /// See [`LogPosition::xid`].
    #[serde(skip)]
    pub xid: i64,
    /// See [`LogPosition::seq`].
    #[serde(skip)]
    pub seq: i64,
    /// Null while unread.
    pub read_at: Option<Timestamp>,
}

impl Notification {
    fn new(event: &Event, (user_id, kind): (Id, NotificationKind)) -> Self {
        Self {
            user_id,
            id: event.id,
            kind,
            occurred_at: event.occurred_at,
            actor_id: event.actor_id,
            task_id: event.task_id,
            comment_id: event.comment_id,
            xid: event.xid,
            seq: event.seq,
            read_at: None,
        }
    }

    /// The sort key of the notification in its list.
    pub fn position(&self) -> Place {
        Place {
            key: SortKey::Time(self.occurred_at),
            id: self.id,
        }
    }

    /// The position of its event in the log.
    pub const fn event_position(&self) -> LogPosition {
        LogPosition {
            xid: self.xid,
            seq: self.seq,
        }
    }
}

/// Returns the users to notify of an event. Each user gets one notification, for the first reason
/// that applies; the actor gets none.
pub fn recipients(event: &Event, snapshot: &Snapshot) -> Vec<(Id, NotificationKind)> {
    let (owner, assignee) = (event.owner_id, event.assignee_id);
    let mentioned = snapshot
        .mentions
        .iter()
        .map(|id| (*id, NotificationKind::Mentioned));
    let concerned = |kind| {
        [owner, assignee]
            .into_iter()
            .flatten()
            .map(move |id| (id, kind))
    };
    let candidates: Vec<(Id, NotificationKind)> = match event.kind {
        events::EventKind::TaskAssigned => assignee
            .into_iter()
            .map(|id| (id, NotificationKind::Assigned))
            .collect(),
        events::EventKind::CommentAdded => mentioned
            .chain(concerned(NotificationKind::Commented))
            .collect(),
        events::EventKind::CommentUpdated => mentioned.collect(),
        events::EventKind::StatusChanged => concerned(NotificationKind::StatusChanged).collect(),
        _ => Vec::new(),
    };
    let mut recipients: Vec<(Id, NotificationKind)> = Vec::with_capacity(candidates.len());
    for (id, kind) in candidates {
        if event.actor_id != Some(id) && recipients.iter().all(|(other, _)| *other != id) {
            recipients.push((id, kind));
        }
    }
    recipients
}

/// Returns the user's notifications with these ids.
pub async fn by_ids(conn: &mut Conn, user_id: Id, ids: &[Id]) -> Result<Vec<Notification>> {
    Ok(on!(conn, |c| notifications::table
        .filter(notifications::user_id.eq(user_id))
        .filter(any_id(notifications::id, ids))
        .select(Notification::as_select())
        .load(c)
        .await)?)
}

/// Returns one page of a user's notifications, newest first; with `unread`, only unread ones.
/// Unread and read notifications are separate index ranges; without the filter both are read and
/// merged.
pub async fn page(
    conn: &mut Conn,
    user_id: Id,
    unread: bool,
    window: &PageWindow,
) -> Result<Page<Notification>> {
    let stretches: &[bool] = if unread { &[false] } else { &[false, true] };
    let mut rows = Vec::new();
    for is_read in stretches {
        let walk = async {
            on!(conn, |c| {
                let mut query = notifications::table
                    .filter(notifications::user_id.eq(user_id))
                    .filter(notifications::is_read.eq(is_read))
                    .select(Notification::as_select())
                    .into_boxed::<Backend>();
                keyset!(query, window, true, (), notifications { () => occurred_at as Time });
                query.load::<Notification>(c).await
            })
        };
        rows.extend(inline_if_few(window.limit, walk).await?);
    }
    Ok(window.page(true, rows, Notification::position))
}

/// Returns the number of a user's notifications; with `unread`, only of unread ones.
pub async fn count(conn: &mut Conn, user_id: Id, unread: bool) -> Result<i64> {
    Ok(on!(conn, |c| {
        let mut query = notifications::table
            .filter(notifications::user_id.eq(user_id))
            .select(diesel::dsl::count_star())
            .into_boxed::<Backend>();
        if unread {
            query = query.filter(notifications::is_read.eq(false));
        }
        query.first(c).await
    })?)
}

/// Marks the viewer's notifications with these ids as read, or all of them, and returns how many
/// were unread.
pub async fn mark_read(
    db: &Db,
    now: Timestamp,
    viewer: &Viewer,
    ids: Option<&[Id]>,
) -> Result<usize> {
    db.transaction(async |tx| {
        session::lock(tx, now, viewer).await?;
        let unread = notifications::table
            .filter(notifications::user_id.eq(viewer.id))
            .filter(notifications::is_read.eq(false));
        let read = notifications::read_at.eq(now);
        let Some(ids) = ids else {
            return Ok(on!(tx, |c| diesel::update(unread)
                .set(read)
                .execute(c)
                .await)?);
        };
        let found = by_ids(tx, viewer.id, ids).await?;
        if ids.iter().any(|id| found.iter().all(|row| row.id != *id)) {
            return Err(Error::not_found("ids", "notification"));
        }
        let unread = unread.filter(any_id(notifications::id, ids));
        Ok(on!(tx, |c| diesel::update(unread)
            .set(read)
            .execute(c)
            .await)?)
    })
    .await
}

/// Deletes all notifications of a user whose account is being deleted.
pub async fn delete_for_user(tx: &mut Conn, user_id: Id) -> Result<()> {
    let own = notifications::table.filter(notifications::user_id.eq(user_id));
    on!(tx, |c| diesel::delete(own).execute(c).await)?;
    Ok(())
}

/// Deletes a batch of notifications older than `before` and returns how many.
pub async fn purge_older(db: &Db, before: Timestamp) -> Result<usize> {
    db.transaction(async |tx| {
        let old = notifications::table.filter(notifications::occurred_at.lt(before));
        let key = (notifications::occurred_at, notifications::id);
        let keys: Vec<(Timestamp, Id)> = on!(tx, |c| old
            .select(key)
            .limit(PURGE_BATCH as i64)
            .load(c)
            .await)?;
        let (times, ids): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
        // The time bound lets both databases use an index; only one has an index that starts with
        // the id.
        let until = times.into_iter().max().unwrap_or(before);
        let old = notifications::table
            .filter(notifications::occurred_at.le(until))
            .filter(any_id(notifications::id, &ids));
        Ok(on!(tx, |c| diesel::delete(old).execute(c).await)?)
    })
    .await
}

/// Creates the notifications for the next batch of events, starting at `from` or at the consumer
/// offset if another instance has got further. Returns the position reached, and whether there may
/// be more events.
///
/// The transaction that writes the rows also advances the offset, and only if it is unchanged since
/// the log was read. If several instances process the same batch, one succeeds. A partial batch
/// without notifications does not write the offset; the caller keeps the position in memory, and a
/// restart reads the batch again.
pub async fn advance_inboxes(db: &Db, from: LogPosition) -> Result<(LogPosition, bool)> {
    let mut conn = db.conn().await?;
    let offset = consumer_offset(&mut conn, CONSUMER).await?;
    let from = from.max(offset);
    let (events, _) = settled_after(&mut conn, from, EVENT_BATCH).await?;
    drop(conn);
    let reached = events.last().map_or(from, Event::position);
    let more = events.len() == EVENT_BATCH;
    let rows: Vec<Notification> = events
        .iter()
        .filter(|event| NOTIFYING_KINDS.contains(&event.kind))
        .flat_map(|event| {
            let recipients = recipients(event, &Snapshot::of(event)).into_iter();
            recipients
                .map(|recipient| Notification::new(event, recipient))
                .collect::<Vec<_>>()
        })
        .collect();
    if rows.is_empty() && !more {
        return Ok((reached, false));
    }
    if insert_and_advance(db, offset, reached, &rows).await? {
        Ok((reached, more))
    } else {
        Ok((from, true))
    }
}

/// Writes the rows and advances the offset. Returns false, and writes nothing, if another instance
/// has advanced it.
async fn insert_and_advance(
    db: &Db,
    from: LogPosition,
    to: LogPosition,
    rows: &[Notification],
) -> Result<bool> {
    let mut people: Vec<Id> = rows.iter().map(|row| row.user_id).collect();
    people.sort_unstable();
    people.dedup();
    db.transaction(async |tx| {
        if !advance_offset(tx, CONSUMER, from, to).await? {
            return Ok(false);
        }
        // Locks the recipients, so that an account being deleted gets no new notifications.
        let here = users::table
            .filter(any_id(users::id, &people))
            .filter(users::deleted_at.is_null())
            .order_by(users::id)
            .select(users::id);
        let here: Vec<Id> = select_locked!(tx, here, Lock::Share)?;
        let rows: Vec<Notification> = rows
            .iter()
            .filter(|row| here.contains(&row.user_id))
            .cloned()
            .collect();
        match &mut tx.pooled {
            // One statement per row, so that it is prepared only once; all rows in one blocking
            // call.
            PooledConn::Sqlite(c) => {
                let insert = move |conn: &mut SqliteConnection| {
                    rows.iter().try_for_each(|row| {
                        let insert = diesel::insert_into(notifications::table)
                            .values(row)
                            .on_conflict_do_nothing();
                        diesel::RunQueryDsl::execute(insert, conn).map(drop)
                    })
                };
                c.spawn_blocking(insert).await?;
            }
            PooledConn::Postgres(c) => {
                let insert = diesel::insert_into(notifications::table)
                    .values(rows)
                    .on_conflict_do_nothing();
                insert.execute(&mut &**c).await?;
            }
        }
        Ok(true)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTOR: Id = Id::from_bytes([1; 16]);
    const OWNER: Id = Id::from_bytes([2; 16]);
    const ASSIGNEE: Id = Id::from_bytes([3; 16]);
    const ADMIN: Id = Id::from_bytes([4; 16]);

    fn recipients_of(
        kind: events::EventKind,
        owner: Id,
        assignee: Option<Id>,
        mentions: &[Id],
    ) -> Vec<(Id, NotificationKind)> {
        let event = Event {
            seq: 1,
            xid: 0,
            id: ACTOR,
            kind,
            occurred_at: Timestamp::default(),
            actor_id: Some(ACTOR),
            owner_id: Some(owner),
            project_id: None,
            task_id: None,
            comment_id: None,
            assignee_id: assignee,
            previous_assignee_id: None,
            session_id: None,
            data: String::new(),
        };
        super::recipients(
            &event,
            &Snapshot {
                mentions: mentions.to_vec(),
                ..Snapshot::default()
            },
        )
    }

    #[test]
    fn everybody_is_notified_once_and_never_of_their_own_actions() {
        use events::EventKind as On;
        assert_eq!(
            recipients_of(On::TaskAssigned, OWNER, Some(ASSIGNEE), &[]),
            [(ASSIGNEE, NotificationKind::Assigned)]
        );
        assert_eq!(recipients_of(On::TaskAssigned, OWNER, Some(ACTOR), &[]), []);
        assert_eq!(
            recipients_of(
                On::CommentAdded,
                OWNER,
                Some(ASSIGNEE),
                &[ASSIGNEE, ADMIN, ACTOR]
            ),
            [
                (ASSIGNEE, NotificationKind::Mentioned),
                (ADMIN, NotificationKind::Mentioned),
                (OWNER, NotificationKind::Commented)
            ]
        );
        assert_eq!(
            recipients_of(On::CommentAdded, OWNER, Some(OWNER), &[]),
            [(OWNER, NotificationKind::Commented)]
        );
        assert_eq!(
            recipients_of(On::CommentUpdated, OWNER, Some(ASSIGNEE), &[ADMIN]),
            [(ADMIN, NotificationKind::Mentioned)]
        );
        assert_eq!(
            recipients_of(On::StatusChanged, ACTOR, Some(ASSIGNEE), &[]),
            [(ASSIGNEE, NotificationKind::StatusChanged)]
        );
        for kind in [
            On::TaskCreated,
            On::TaskUpdated,
            On::TaskDeleted,
            On::TaskUnassigned,
            On::ProjectDeleted,
        ] {
            assert_eq!(recipients_of(kind, OWNER, Some(ASSIGNEE), &[ADMIN]), []);
            assert!(!NOTIFYING_KINDS.contains(&kind));
        }
    }
}
