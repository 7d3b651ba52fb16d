//! Domain events: what an event carries (its snapshot), which events a viewer may see, and when
//! events expire. The log itself is in [`crate::events`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use diesel::dsl::{exists, not};
use diesel::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::comment::{self, Comment};
use super::history::{Change, TextExtractor, reference, snapshots};
use super::project::{self, Project};
use super::quota;
use super::task::{self, Task, TaskColumns, TaskStatus};
use super::user::{self, Profile};
use crate::access::Viewer;
use crate::db::columns::Columns;
use crate::db::page::{Parent, any_id, lateral};
use crate::db::rows::RunQueryDsl;
use crate::db::schema::{events, tasks};
use crate::db::{Conn, Db, WithinDeadline};
use crate::error::{Error, Result};
use crate::events::shared_response::SharedResponses;
use crate::events::{
    Event, EventKind, LogPosition, NewEvent, RETENTION_HORIZON, Settled, advance_offset, after,
    before, retention_horizon, settled_end, text,
};
use crate::id::Id;
use crate::time::Timestamp;
use crate::{backend_sql, on};

/// The data of an event besides the ids in its columns: what changed, and the last state of a
/// deleted object. Everything else is read from the current rows. Long texts are stored separately;
/// see [`super::history`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// The task at its deletion. Events written by older versions carry the task after the change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// A deleted comment without its body. Only the comment's row had the body, and it is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<Comment>,
    /// The project after the event. With a deleted task it has no description.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<Project>,
    /// The id of the long description that was taken out of that task or project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Id>,
    /// The status before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<(TaskStatus, TaskStatus)>,
    /// The fields that changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// Users who are newly mentioned in the comment and may see the task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mentions: Vec<Id>,
}

impl Snapshot {
    /// Parses the snapshot of an event. An older form yields an empty snapshot instead of an error.
    pub fn of(event: &Event) -> Self {
        serde_json::from_str(&event.data).unwrap_or_default()
    }

    fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Restores the description that [`Self::text`] refers to.
    pub(super) fn complete(&mut self, text: String) {
        if let Some(task) = &mut self.task {
            task.description = Some(text);
        } else if let Some(project) = &mut self.project {
            project.description = Some(text);
        }
    }
}

/// Builds an event about a task.
pub fn about_task(
    kind: EventKind,
    viewer: &Viewer,
    now: Timestamp,
    task: &Task,
    mut snapshot: Snapshot,
) -> NewEvent {
    let mut extract = TextExtractor::new(task.id, task.owner_id);
    extract.changes(&mut snapshot.changes);
    if kind == EventKind::TaskDeleted {
        let mut last = task.clone();
        snapshot.text = extract.text(&mut last.description);
        snapshot.task = Some(last);
    }
    NewEvent {
        owner_id: Some(task.owner_id),
        project_id: Some(task.project_id),
        task_id: Some(task.id),
        assignee_id: task.assignee_id,
        data: snapshot.json(),
        texts: extract.texts,
        ..NewEvent::new(kind, Some(viewer.id), now)
    }
}

/// Builds the event for the deletion of a task. It carries the project too, which may be deleted
/// later.
pub fn about_deleted_task(
    viewer: &Viewer,
    now: Timestamp,
    task: &Task,
    project: &Project,
) -> NewEvent {
    let project = Project {
        description: None,
        ..project.clone()
    };
    about_task(
        EventKind::TaskDeleted,
        viewer,
        now,
        task,
        Snapshot {
            project: Some(project),
            ..Snapshot::default()
        },
    )
}

/// Builds an event about a comment that newly mentions these users.
pub fn about_comment(
    kind: EventKind,
    viewer: &Viewer,
    now: Timestamp,
    task: &Task,
    comment: &Comment,
    mentions: Vec<Id>,
) -> NewEvent {
    let deleted = || Comment {
        body: String::new(),
        ..comment.clone()
    };
    let comment_snapshot = (kind == EventKind::CommentDeleted).then(deleted);
    let snapshot = Snapshot {
        comment: comment_snapshot,
        mentions,
        ..Snapshot::default()
    };
    NewEvent {
        comment_id: Some(comment.id),
        ..about_task(kind, viewer, now, task, snapshot)
    }
}

/// Builds an event about a project.
pub fn about_project(
    kind: EventKind,
    viewer: &Viewer,
    now: Timestamp,
    project: &Project,
    mut changes: Vec<Change>,
) -> NewEvent {
    let mut extract = TextExtractor::new(project.id, project.owner_id);
    extract.changes(&mut changes);
    let mut project = project.clone();
    let text = if kind == EventKind::ProjectDeleted {
        extract.text(&mut project.description)
    } else {
        reference(&mut project.description)
    };
    NewEvent {
        owner_id: Some(project.owner_id),
        project_id: Some(project.id),
        data: Snapshot {
            project: Some(project),
            text,
            changes,
            ..Snapshot::default()
        }
        .json(),
        texts: extract.texts,
        ..NewEvent::new(kind, Some(viewer.id), now)
    }
}

/// The objects that permissions and fields of an event need, in their current state. They are
/// loaded once for all subscribers.
#[derive(Debug)]
pub struct EventObjects {
    pub snapshot: Arc<Snapshot>,
    /// The current task; `None` if it is deleted.
    pub task: Option<Arc<Task>>,
    /// Responses shared between subscriptions.
    pub answers: SharedResponses,
    related: OnceCell<RelatedObjects>,
}

/// Further objects of an event, loaded when the first subscriber asks for one of them.
#[derive(Debug)]
pub struct RelatedObjects {
    /// The current comment; `None` if it is deleted.
    pub comment: Option<Arc<Comment>>,
    /// The current project of the task. If the task is deleted, the project in the snapshot.
    pub project: Option<Arc<Project>>,
    /// The actor, and the users of the event, the task and the comment.
    pub people: HashMap<Id, Arc<Profile>>,
}

impl EventObjects {
    /// Loads the objects of one event.
    pub async fn for_event(conn: &mut Conn, event: &Event) -> Result<Self> {
        let mut loaded = Self::load(conn, vec![event.clone()], TaskColumns::Full).await?;
        loaded
            .pop()
            .map(|(_, objects)| objects)
            .ok_or_else(|| Error::internal("no objects loaded for an event"))
    }

    /// Loads the objects of many events at once, with these columns of their tasks.
    pub async fn for_events(
        db: &Db,
        events: Vec<Event>,
        columns: TaskColumns,
    ) -> Result<Vec<(Event, Self)>> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        Self::load(&mut db.conn().await?, events, columns).await
    }

    async fn load(
        conn: &mut Conn,
        events: Vec<Event>,
        columns: TaskColumns,
    ) -> Result<Vec<(Event, Self)>> {
        let ids: HashSet<Id> = events.iter().filter_map(|event| event.task_id).collect();
        let mut tasks = HashMap::new();
        if !ids.is_empty() {
            let rows =
                task::select_any_by_ids(conn, &ids.iter().copied().collect::<Vec<_>>(), columns)
                    .await?;
            tasks.extend(rows.into_iter().map(|task| (task.id, Arc::new(task))));
        }
        let gone = ids
            .into_iter()
            .filter(|id| !tasks.contains_key(id))
            .collect();
        let snapshots = snapshots(conn, &events, &gone).await?;
        let with = |(event, snapshot): (Event, Arc<Snapshot>)| {
            let task = event.task_id.and_then(|id| tasks.get(&id).cloned());
            let objects = Self {
                snapshot,
                task,
                answers: SharedResponses::default(),
                related: OnceCell::new(),
            };
            (event, objects)
        };
        Ok(events.into_iter().zip(snapshots).map(with).collect())
    }

    /// The size of the task's description in bytes. Several events may share one task.
    pub fn text_bytes(&self) -> usize {
        let task = self.task.as_deref().or(self.snapshot.task.as_ref());
        task.and_then(|task| task.description.as_deref())
            .map_or(0, str::len)
    }

    /// Loads the further objects of `event`, which must be the event that `self` was loaded for.
    pub async fn related(&self, db: &Db, event: &Event) -> Result<&RelatedObjects> {
        let load = async || {
            let mut conn = db.conn().await?;
            let (mut comment, mut project) = (None, None);
            if let Some(task) = &self.task {
                if let Some(id) = event.comment_id {
                    comment = comment::by_ids(&mut conn, &[id]).await?.pop().map(Arc::new);
                }
                project = project::any_by_ids(&mut conn, &[task.project_id])
                    .await?
                    .pop()
                    .map(Arc::new);
            }
            let project = project.or_else(|| self.snapshot.project.clone().map(Arc::new));
            let mut people = vec![
                event.actor_id,
                event.assignee_id,
                event.previous_assignee_id,
                event.owner_id,
            ];
            people.extend(
                self.task
                    .iter()
                    .flat_map(|task| [task.creator_id, task.assignee_id]),
            );
            people.extend(comment.iter().map(|comment| Some(comment.author_id)));
            let mut people: Vec<Id> = people.into_iter().flatten().collect();
            people.sort_unstable();
            people.dedup();
            let people = user::profiles(&mut conn, &people).await?;
            Ok(RelatedObjects {
                comment,
                project,
                people: people
                    .into_iter()
                    .map(|profile| (profile.id, Arc::new(profile)))
                    .collect(),
            })
        };
        self.related.get_or_try_init(load).await
    }
}

/// Filter for events; the conditions are ANDed.
#[derive(Clone, Debug, Default)]
pub struct EventCriteria {
    pub project_id: Option<Id>,
    pub task_id: Option<Id>,
    /// The kinds to include; an empty list matches nothing.
    pub kinds: Option<Vec<EventKind>>,
    /// The assignee of the task after the event.
    pub assignee_id: Option<Id>,
}

impl EventCriteria {
    /// Whether an event matches the filter.
    pub fn matches(&self, event: &Event) -> bool {
        self.project_id
            .is_none_or(|id| event.project_id == Some(id))
            && self.task_id.is_none_or(|id| event.task_id == Some(id))
            && self
                .kinds
                .as_ref()
                .is_none_or(|kinds| kinds.contains(&event.kind))
            && self
                .assignee_id
                .is_none_or(|id| event.assignee_id == Some(id))
    }
}

/// The requested range of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogRange {
    /// Exclusive lower bound.
    pub after: Option<LogPosition>,
    /// Exclusive upper bound.
    pub before: Option<LogPosition>,
    /// The maximum number of events.
    pub limit: usize,
    /// Whether to start from the end of the range.
    pub backward: bool,
}

/// The columns of events to read. An omitted column reads as empty, so the requested fields must
/// not need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventColumns {
    /// Without `data`.
    Summary,
    Full,
}

impl EventColumns {
    /// The columns in the order of the fields of [`Event`].
    pub(super) const fn expression(self) -> Columns<Event> {
        Columns::new(match self {
            Self::Summary => {
                "events.seq, events.xid, events.id, events.kind, events.occurred_at, events.actor_id, events.owner_id, \
                 events.project_id, events.task_id, events.comment_id, events.assignee_id, events.previous_assignee_id, \
                 events.session_id, ''"
            }
            Self::Full => {
                "events.seq, events.xid, events.id, events.kind, events.occurred_at, events.actor_id, events.owner_id, \
                 events.project_id, events.task_id, events.comment_id, events.assignee_id, events.previous_assignee_id, \
                 events.session_id, events.data"
            }
        })
    }
}

/// Whether a viewer may see an event. `task` is the current task; `None` if it is deleted.
///
/// A user who may see the task now sees its events. After its deletion, the project owner still
/// sees them, and the last assignee sees the deletion. A user who lost a task sees the event that
/// unassigned them, and nothing after it.
pub fn can_see(viewer: &Viewer, event: &Event, task: Option<&Task>) -> bool {
    if event.kind.is_internal() {
        return false;
    }
    viewer.is_admin()
        || event.owner_id == Some(viewer.id)
        || task.is_some_and(|task| task.assignee_id == Some(viewer.id))
        || (event.kind == EventKind::TaskDeleted && event.assignee_id == Some(viewer.id))
        || (event.kind == EventKind::TaskUnassigned
            && event.previous_assignee_id == Some(viewer.id))
}

/// How long events are kept. An event that exceeds either bound expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Maximum age.
    pub age: Duration,
    /// Maximum number of events. Sequence numbers used up by failed writes count too.
    pub count: i64,
}

/// Events that expire in one transaction.
const EXPIRY_BATCH: i64 = 1_000;

/// Advances the retention horizon past expired events, but not past `done`, the position up to
/// which the consumers have read the log. Returns whether there may be more to expire.
///
/// Events of an existing task stay below the horizon, as its history. Those of a deleted task are
/// deleted with the event of its deletion.
pub async fn expire(
    db: &Db,
    retention: Retention,
    now: Timestamp,
    done: LogPosition,
) -> Result<bool> {
    let oldest = now.minus(retention.age);
    db.transaction(async |tx| {
        let (floor, end) = (retention_horizon(tx).await?, settled_end(tx).await?);
        let rows: Vec<ExpiringEvent> = on!(tx, |c| events::table
            .filter(after(floor))
            .order_by((events::xid, events::seq))
            .limit(EXPIRY_BATCH)
            .select(ExpiringEvent::as_select())
            .load(c)
            .await)?;
        let expired: Vec<_> = rows
            .iter()
            .take_while(|event| {
                let past = event.occurred_at < oldest || event.seq <= end.seq - retention.count;
                past && event.position() <= done
            })
            .collect();
        let Some(reached) = expired.last().map(|event| event.position()) else {
            return Ok(false);
        };
        if !advance_offset(tx, RETENTION_HORIZON, floor, reached).await? {
            // Another instance has advanced the horizon.
            return Ok(true);
        }
        let mut tasks: Vec<Id> = expired.iter().filter_map(|event| event.task_id).collect();
        tasks.sort_unstable();
        tasks.dedup();
        let alone: Vec<i64> = expired
            .iter()
            .filter(|event| event.task_id.is_none())
            .map(|event| event.seq)
            .collect();
        let gone = events::table
            .filter(any_id(events::task_id, &tasks))
            .filter(before(LogPosition {
                seq: reached.seq + 1,
                ..reached
            }))
            .filter(not(exists(
                tasks::table.filter(tasks::id.nullable().eq(events::task_id)),
            )));
        on!(tx, |c| diesel::delete(gone).execute(c).await)?;
        on!(tx, |c| diesel::delete(
            events::table.filter(events::seq.eq_any(&alone))
        )
        .execute(c)
        .await)?;
        expire_texts(tx, &expired).await?;
        Ok(expired.len() as i64 == EXPIRY_BATCH)
    })
    .await
}

/// The columns that decide whether an event has expired and what is deleted with it.
#[derive(Queryable, Selectable)]
#[diesel(table_name = events)]
struct ExpiringEvent {
    xid: i64,
    seq: i64,
    id: Id,
    kind: EventKind,
    occurred_at: Timestamp,
    project_id: Option<Id>,
    task_id: Option<Id>,
}

impl ExpiringEvent {
    const fn position(&self) -> LogPosition {
        LogPosition {
            xid: self.xid,
            seq: self.seq,
        }
    }
}

/// Deletes the long texts that no event refers to any more. The texts of a task live as long as the
/// task. A deletion is the last event of its task or project.
async fn expire_texts(tx: &mut Conn, expired: &[&ExpiringEvent]) -> Result<()> {
    let (mut ended, mut projects, mut events) = (Vec::new(), Vec::new(), Vec::new());
    for event in expired {
        match event.kind {
            EventKind::TaskDeleted => ended.extend(event.task_id),
            EventKind::ProjectDeleted => ended.extend(event.project_id),
            EventKind::ProjectUpdated => {
                projects.extend(event.project_id);
                events.push(event.id);
            }
            _ => {}
        }
    }
    if !ended.is_empty() || !events.is_empty() {
        let freed = text::delete_expired(tx, &ended, &projects, &events).await?;
        quota::release(tx, freed).await?;
    }
    Ok(())
}

/// Applies the bounds, order and limit of a range to a boxed query on events, in both arms of
/// `on!`.
macro_rules! in_range {
    ($query:ident, $stretch:expr) => {
        if let Some(position) = $stretch.after {
            $query = $query.filter(after(position));
        }
        if let Some(position) = $stretch.before {
            $query = $query.filter(before(position));
        }
        $query = if $stretch.backward {
            $query.order_by((events::xid.desc(), events::seq.desc()))
        } else {
            $query.order_by((events::xid.asc(), events::seq.asc()))
        };
        $query = $query.limit(i64::try_from($stretch.limit).unwrap_or(i64::MAX));
    };
}

/// A range of at most this many events is scanned, which costs less than a search in each index.
/// Clients that reconnect after a moment ask for such a range.
const SCAN_EVENTS: i64 = 1_000;
/// The bound in transactions for the same range: most transactions write one event or none.
const SCAN_TRANSACTIONS: i64 = 10 * SCAN_EVENTS;

/// A part of the log that a viewer may see and that an index leads to. Parts may overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogPart {
    /// All events.
    Everything,
    /// All that the viewer may see, as a filter: for a range that is short enough to scan.
    Visible,
    /// Events in the viewer's own projects.
    Owned,
    /// Events of tasks that are assigned to the viewer now.
    Assigned,
    /// Deletions of tasks that were assigned to the viewer.
    Deleted,
    /// Events that unassigned a task from the viewer.
    Unassigned,
}

impl LogPart {
    /// The parts that together are what [`can_see`] allows between two positions.
    fn visible_to(viewer: &Viewer, after: LogPosition, before: LogPosition) -> &'static [Self] {
        // Check both numbers: a forged cursor may have one that is near and one that is far away.
        let is_within = |from: i64, to: i64, most| (0..=most).contains(&to.saturating_sub(from));
        let is_short = is_within(after.seq, before.seq, SCAN_EVENTS)
            && is_within(after.xid, before.xid, SCAN_TRANSACTIONS);
        if viewer.is_admin() {
            &[Self::Everything]
        } else if is_short {
            &[Self::Visible]
        } else {
            &[Self::Owned, Self::Assigned, Self::Deleted, Self::Unassigned]
        }
    }
}

backend_sql! {
    /// A task was deleted. Spelled as in the partial index.
    IsDeletion: diesel::sql_types::Bool,
    postgres "events.kind = 3",
    sqlite "events.kind = 3"
}

backend_sql! {
    /// A task was unassigned. Spelled as in the partial index.
    IsUnassignment: diesel::sql_types::Bool,
    postgres "events.kind = 5",
    sqlite "events.kind = 5"
}

/// Restricts a boxed query on events to a part of the log, in both arms of `on!`.
macro_rules! log_part {
    ($query:ident, $part:expr, $viewer:expr) => {
        let theirs = tasks::table
            .filter(tasks::assignee_id.eq($viewer))
            .select(tasks::id.nullable());
        $query = match $part {
            LogPart::Everything => $query,
            // Kinds are parameters here: with literals SQLite would search each of the partial
            // indexes.
            LogPart::Visible => $query.filter(
                events::owner_id
                    .eq($viewer)
                    .or(events::task_id.eq_any(theirs))
                    .or(events::kind
                        .eq(EventKind::TaskDeleted)
                        .and(events::assignee_id.eq($viewer)))
                    .or(events::kind
                        .eq(EventKind::TaskUnassigned)
                        .and(events::previous_assignee_id.eq($viewer))),
            ),
            LogPart::Owned => $query.filter(events::owner_id.eq($viewer)),
            LogPart::Assigned => $query.filter(events::task_id.eq_any(theirs)),
            LogPart::Deleted => $query
                .filter(IsDeletion)
                .filter(events::assignee_id.eq($viewer)),
            LogPart::Unassigned => $query
                .filter(IsUnassignment)
                .filter(events::previous_assignee_id.eq($viewer)),
        };
    };
}

/// The events that a viewer may see, in log order. However much other users write, at most a short
/// range is scanned.
pub async fn page(
    conn: &mut Conn,
    viewer: &Viewer,
    filter: &EventCriteria,
    stretch: LogRange,
    columns: EventColumns,
) -> Result<Vec<Event>> {
    // One upper bound for all parts. Otherwise a client that continues after a later event would
    // miss what settles between two reads.
    let end = settled_end(conn).await?;
    let end = LogPosition {
        seq: end.seq + 1,
        ..end
    };
    let before = stretch.before.map_or(end, |before| before.min(end));
    let stretch = LogRange {
        before: Some(before),
        ..stretch
    };
    let mut rows: Vec<Event> = Vec::new();
    for part in LogPart::visible_to(viewer, stretch.after.unwrap_or_default(), before) {
        rows.extend(on!(conn, |c| {
            let mut query = events::table
                .select(columns.expression())
                .filter(events::kind.lt(EventKind::FIRST_INTERNAL))
                .filter(WithinDeadline)
                .into_boxed::<Backend>();
            log_part!(query, part, viewer.id);
            if let Some(id) = filter.project_id {
                query = query.filter(events::project_id.eq(id));
            }
            if let Some(id) = filter.task_id {
                query = query.filter(events::task_id.eq(id));
            }
            if let Some(kinds) = &filter.kinds {
                query = query.filter(events::kind.eq_any(kinds));
            }
            if let Some(id) = filter.assignee_id {
                query = query.filter(events::assignee_id.eq(id));
            }
            in_range!(query, stretch);
            query.load::<Event>(c).await
        })?);
    }
    rows.sort_by_key(Event::position);
    rows.dedup_by_key(|event| event.seq);
    if stretch.backward {
        rows.drain(..rows.len().saturating_sub(stretch.limit));
    } else {
        rows.truncate(stretch.limit);
    }
    Ok(rows)
}

/// The events of each of these tasks that the viewer may see now. A task's whole history is visible
/// with the task.
pub async fn pages_of_tasks(
    conn: &mut Conn,
    reader: Option<&Viewer>,
    tasks: &[Id],
    stretch: LogRange,
    columns: EventColumns,
) -> Result<HashMap<Id, Vec<Event>>> {
    let mut rows: Vec<Event> = on!(conn, |c| {
        let task = tasks::table.filter(tasks::id.eq(Parent));
        let mut query = events::table
            .select(columns.expression())
            .filter(events::kind.lt(EventKind::FIRST_INTERNAL))
            .filter(Settled)
            .filter(events::task_id.eq(Parent.nullable()))
            .filter(exists(task.filter(task::visible_to(reader))))
            .into_boxed::<Backend>();
        in_range!(query, stretch);
        lateral(tasks, "events", columns.expression(), query)
            .load(c)
            .await
    })?;
    rows.sort_by_key(Event::position);
    let mut groups: HashMap<Id, Vec<Event>> = HashMap::new();
    for event in rows {
        groups
            .entry(event.task_id.unwrap_or(event.id))
            .or_default()
            .push(event);
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use diesel::debug_query;
    use diesel::sqlite::Sqlite;

    use super::*;
    use crate::events::tests::plan;

    #[test]
    fn the_columns_are_those_of_an_event() {
        let plain = |query: String| query.replace('`', "");
        let full =
            plain(debug_query::<Sqlite, _>(&events::table.select(Event::as_select())).to_string());
        let read = |columns: EventColumns| {
            plain(debug_query::<Sqlite, _>(&events::table.select(columns.expression())).to_string())
        };
        assert_eq!(read(EventColumns::Full), full);
        assert_eq!(
            read(EventColumns::Summary),
            full.replace("events.data", "''")
        );
    }

    #[test]
    fn an_index_leads_to_each_part_of_the_log() {
        let place = |seq| LogPosition { xid: 0, seq };
        let stretch = LogRange {
            after: Some(place(7)),
            before: Some(place(9)),
            limit: 9,
            backward: false,
        };
        let plan_of = |part: LogPart, backward: bool| {
            let (stretch, viewer) = (
                LogRange {
                    backward,
                    ..stretch
                },
                Id::new(),
            );
            let mut query = events::table
                .select(Event::as_select())
                .into_boxed::<Sqlite>();
            log_part!(query, part, viewer);
            in_range!(query, stretch);
            plan(query).join("; ")
        };
        for backward in [false, true] {
            for (part, index) in [
                (
                    LogPart::Everything,
                    "INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
                ),
                (
                    LogPart::Owned,
                    "INDEX events_owner (owner_id=? AND xid=? AND seq>? AND seq<?)",
                ),
                (
                    LogPart::Deleted,
                    "INDEX events_deleted (assignee_id=? AND xid=? AND seq>? AND seq<?)",
                ),
                (
                    LogPart::Unassigned,
                    "INDEX events_unassigned (previous_assignee_id=? AND xid=? AND seq>? AND seq<?)",
                ),
            ] {
                assert_eq!(
                    plan_of(part, backward),
                    format!("SEARCH events USING {index}"),
                    "{part:?}"
                );
            }
            let visible = plan_of(LogPart::Visible, backward);
            assert!(
                visible
                    .starts_with("SEARCH events USING INTEGER PRIMARY KEY (rowid>? AND rowid<?); "),
                "{visible}"
            );
            let assigned = plan_of(LogPart::Assigned, backward);
            for step in [
                "INDEX events_task (task_id=? AND xid=? AND seq>? AND seq<?)",
                "COVERING INDEX tasks_assignee_",
            ] {
                assert!(assigned.contains(step), "{assigned}");
            }
        }
        assert_eq!(
            (
                EventKind::TaskDeleted.code(),
                EventKind::TaskUnassigned.code()
            ),
            (3, 5),
            "the migration's indexes contain these codes"
        );
    }
}
