//! What the log tells about the nouns: the snapshot that each event carries, and the events a viewer may see.

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
    Event, EventKind, LogPosition, NewEvent, RETENTION_HORIZON, Settled, advance_offset, after, before,
    retention_horizon, settled_end, text,
};
use crate::id::Id;
use crate::time::Timestamp;
use crate::{backend_sql, on};

/// What an event carries beside the ids in its columns: what changed, and of what is gone the last picture. The rest is
/// read from the rows as they are. Long texts are kept apart; see [`super::history`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// The task as it was when it was deleted. Events of older versions have the task as they left it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// A comment that was deleted, without its text: that is in the row of the comment alone, and gone with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<Comment>,
    /// The project as the event left it; that of a deleted task without its description.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<Project>,
    /// The long description of that task or project, which is missing in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Id>,
    /// The status before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<(TaskStatus, TaskStatus)>,
    /// The fields that changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// Who is newly mentioned in the comment, of those who may see the task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mentions: Vec<Id>,
}

impl Snapshot {
    /// Reads what an event carries; an older form reads as empty rather than failing.
    pub fn of(event: &Event) -> Self {
        serde_json::from_str(&event.data).unwrap_or_default()
    }

    fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Puts the text that [`Self::text`] refers to back in its place.
    pub(super) fn complete(&mut self, text: String) {
        if let Some(task) = &mut self.task {
            task.description = Some(text);
        } else if let Some(project) = &mut self.project {
            project.description = Some(text);
        }
    }
}

/// An event about a task.
pub fn about_task(kind: EventKind, viewer: &Viewer, now: Timestamp, task: &Task, mut snapshot: Snapshot) -> NewEvent {
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

/// The deletion of a task. It carries the project as well, which may be deleted later.
pub fn about_deleted_task(viewer: &Viewer, now: Timestamp, task: &Task, project: &Project) -> NewEvent {
    let project = Project { description: None, ..project.clone() };
    about_task(EventKind::TaskDeleted, viewer, now, task, Snapshot { project: Some(project), ..Snapshot::default() })
}

/// An event about a comment, which newly mentions these people.
pub fn about_comment(
    kind: EventKind,
    viewer: &Viewer,
    now: Timestamp,
    task: &Task,
    comment: &Comment,
    mentions: Vec<Id>,
) -> NewEvent {
    let deleted = || Comment { body: String::new(), ..comment.clone() };
    let comment_snapshot = (kind == EventKind::CommentDeleted).then(deleted);
    let snapshot = Snapshot { comment: comment_snapshot, mentions, ..Snapshot::default() };
    NewEvent { comment_id: Some(comment.id), ..about_task(kind, viewer, now, task, snapshot) }
}

/// An event about a project.
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
        data: Snapshot { project: Some(project), text, changes, ..Snapshot::default() }.json(),
        texts: extract.texts,
        ..NewEvent::new(kind, Some(viewer.id), now)
    }
}

/// What it takes to tell an event to whoever may see it, loaded once for all of them: the rows that its rights and
/// fields hang on, as they are then.
#[derive(Debug)]
pub struct EventObjects {
    /// What the event carries.
    pub snapshot: Arc<Snapshot>,
    /// The task, unless it is gone.
    pub task: Option<Arc<Task>>,
    /// The answers that subscriptions share.
    pub answers: SharedResponses,
    related: OnceCell<RelatedObjects>,
}

/// What else hangs on an event, loaded when the first subscriber asks for any of it.
#[derive(Debug)]
pub struct RelatedObjects {
    /// The comment, unless it is gone.
    pub comment: Option<Arc<Comment>>,
    /// The project of the task, unless that is gone.
    pub project: Option<Arc<Project>>,
    /// Who did it, and the people of the task and the comment.
    pub people: HashMap<Id, Arc<Profile>>,
}

impl EventObjects {
    /// Loads them.
    pub async fn for_event(conn: &mut Conn, event: &Event) -> Result<Self> {
        let mut loaded = Self::load(conn, vec![event.clone()], TaskColumns::Full).await?;
        loaded.pop().map(|(_, objects)| objects).ok_or_else(|| Error::internal("an event without its objects"))
    }

    /// The same for many events at once, each with its own. Of their tasks these columns are read.
    pub async fn for_events(db: &Db, events: Vec<Event>, columns: TaskColumns) -> Result<Vec<(Event, Self)>> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        Self::load(&mut db.conn().await?, events, columns).await
    }

    async fn load(conn: &mut Conn, events: Vec<Event>, columns: TaskColumns) -> Result<Vec<(Event, Self)>> {
        let ids: HashSet<Id> = events.iter().filter_map(|event| event.task_id).collect();
        let mut tasks = HashMap::new();
        if !ids.is_empty() {
            let rows = task::select_any_by_ids(conn, &ids.iter().copied().collect::<Vec<_>>(), columns).await?;
            tasks.extend(rows.into_iter().map(|task| (task.id, Arc::new(task))));
        }
        let gone = ids.into_iter().filter(|id| !tasks.contains_key(id)).collect();
        let snapshots = snapshots(conn, &events, &gone).await?;
        let with = |(event, snapshot): (Event, Arc<Snapshot>)| {
            let task = event.task_id.and_then(|id| tasks.get(&id).cloned());
            let objects = Self { snapshot, task, answers: SharedResponses::default(), related: OnceCell::new() };
            (event, objects)
        };
        Ok(events.into_iter().zip(snapshots).map(with).collect())
    }

    /// How many bytes the texts of the rows have, of which a task may be one of several events.
    pub fn text_bytes(&self) -> usize {
        let task = self.task.as_deref().or(self.snapshot.task.as_ref());
        task.and_then(|task| task.description.as_deref()).map_or(0, str::len)
    }

    /// What else hangs on the event, which is the one that these are the objects of.
    pub async fn related(&self, db: &Db, event: &Event) -> Result<&RelatedObjects> {
        let load = async || {
            let mut conn = db.conn().await?;
            let (mut comment, mut project) = (None, None);
            if let Some(task) = &self.task {
                if let Some(id) = event.comment_id {
                    comment = comment::by_ids(&mut conn, &[id]).await?.pop().map(Arc::new);
                }
                project = project::any_by_ids(&mut conn, &[task.project_id]).await?.pop().map(Arc::new);
            }
            let project = project.or_else(|| self.snapshot.project.clone().map(Arc::new));
            let mut people = vec![event.actor_id, event.assignee_id, event.previous_assignee_id, event.owner_id];
            people.extend(self.task.iter().flat_map(|task| [task.creator_id, task.assignee_id]));
            people.extend(comment.iter().map(|comment| Some(comment.author_id)));
            let mut people: Vec<Id> = people.into_iter().flatten().collect();
            people.sort_unstable();
            people.dedup();
            let people = user::profiles(&mut conn, &people).await?;
            Ok(RelatedObjects {
                comment,
                project,
                people: people.into_iter().map(|profile| (profile.id, Arc::new(profile))).collect(),
            })
        };
        self.related.get_or_try_init(load).await
    }
}

/// Which events are asked for; members are ANDed.
#[derive(Clone, Debug, Default)]
pub struct EventCriteria {
    /// In this project.
    pub project_id: Option<Id>,
    /// About this task.
    pub task_id: Option<Id>,
    /// Of these kinds; an empty list matches nothing.
    pub kinds: Option<Vec<EventKind>>,
    /// After which this user had the task.
    pub assignee_id: Option<Id>,
}

impl EventCriteria {
    /// The same question asked of one event.
    pub fn matches(&self, event: &Event) -> bool {
        self.project_id.is_none_or(|id| event.project_id == Some(id))
            && self.task_id.is_none_or(|id| event.task_id == Some(id))
            && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&event.kind))
            && self.assignee_id.is_none_or(|id| event.assignee_id == Some(id))
    }
}

/// Which stretch of the log is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogRange {
    /// Only what comes after this place.
    pub after: Option<LogPosition>,
    /// Only what comes before this place.
    pub before: Option<LogPosition>,
    /// How many events at most.
    pub limit: usize,
    /// Counted from the end of the log.
    pub backward: bool,
}

/// Which columns of events are read. What is left out is read as empty, and only of events that are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventColumns {
    /// Without the snapshot.
    Summary,
    /// All of them.
    Full,
}

impl EventColumns {
    /// In the order of [`Event`].
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

/// Whether a viewer may see an event, given its task as it is now (`None` when the task is gone).
///
/// Whoever sees the task now sees its events. When it is gone, its project's owner does, and its last assignee sees
/// that it went. Whoever lost a task sees that it was taken from them, and nothing after it.
pub fn can_see(viewer: &Viewer, event: &Event, task: Option<&Task>) -> bool {
    if event.kind.is_internal() {
        return false;
    }
    viewer.is_admin()
        || event.owner_id == Some(viewer.id)
        || task.is_some_and(|task| task.assignee_id == Some(viewer.id))
        || (event.kind == EventKind::TaskDeleted && event.assignee_id == Some(viewer.id))
        || (event.kind == EventKind::TaskUnassigned && event.previous_assignee_id == Some(viewer.id))
}

/// How far back the feed goes: whatever is past either bound is not told any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// So long.
    pub age: Duration,
    /// So many events; numbers that failed writes used up count as well.
    pub count: i64,
}

/// How many events expire in one transaction.
const EXPIRY_BATCH: i64 = 1_000;

/// Moves the floor of the feed up to what is kept, but not past `done`, the place up to which everything has been made
/// of the log that is made of it. Says whether there may be more to do.
///
/// The events of a task that is there stay below the floor, as its history; those of one that is gone leave with the
/// event of its deletion.
pub async fn expire(db: &Db, retention: Retention, now: Timestamp, done: LogPosition) -> Result<bool> {
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
            // Another instance has done it.
            return Ok(true);
        }
        let mut tasks: Vec<Id> = expired.iter().filter_map(|event| event.task_id).collect();
        tasks.sort_unstable();
        tasks.dedup();
        let alone: Vec<i64> = expired.iter().filter(|event| event.task_id.is_none()).map(|event| event.seq).collect();
        let gone = events::table
            .filter(any_id(events::task_id, &tasks))
            .filter(before(LogPosition { seq: reached.seq + 1, ..reached }))
            .filter(not(exists(tasks::table.filter(tasks::id.nullable().eq(events::task_id)))));
        on!(tx, |c| diesel::delete(gone).execute(c).await)?;
        on!(tx, |c| diesel::delete(events::table.filter(events::seq.eq_any(&alone))).execute(c).await)?;
        expire_texts(tx, &expired).await?;
        Ok(expired.len() as i64 == EXPIRY_BATCH)
    })
    .await
}

/// What of an event says whether it has expired, and what goes with it.
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
        LogPosition { xid: self.xid, seq: self.seq }
    }
}

/// Drops the long texts to which no event refers any more. Those of a task stay as long as the task; a deletion is the
/// last event of its task or project.
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

/// Bounds and orders a boxed query on events, in both arms of `on!`.
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

/// So many events are sooner read through than looked for: it takes a millisecond, and whoever comes back after a moment
/// has no more to read.
const SCAN_EVENTS: i64 = 1_000;
/// So many transactions write hardly more events than that: most write none or one.
const SCAN_TRANSACTIONS: i64 = 10 * SCAN_EVENTS;

/// A part of the log that a viewer may see, which an index leads to. Parts may overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogPart {
    /// All of it.
    Everything,
    /// What of it the viewer sees: for a stretch so short that it is read through.
    Visible,
    /// What happens in the viewer's own projects.
    Owned,
    /// What happened to the tasks that are the viewer's now.
    Assigned,
    /// The deletion of what was the viewer's then.
    Deleted,
    /// That a task was taken from the viewer.
    Unassigned,
}

impl LogPart {
    /// The parts that are together what [`can_see`] allows, of the stretch between two places.
    fn visible_to(viewer: &Viewer, after: LogPosition, before: LogPosition) -> &'static [Self] {
        // Both numbers, as places that clients make up may have one that is near and one that is far away.
        let is_within = |from: i64, to: i64, most| (0..=most).contains(&to.saturating_sub(from));
        let is_short =
            is_within(after.seq, before.seq, SCAN_EVENTS) && is_within(after.xid, before.xid, SCAN_TRANSACTIONS);
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
    /// A task was deleted, in the words of the index.
    IsDeletion: diesel::sql_types::Bool,
    postgres "events.kind = 3",
    sqlite "events.kind = 3"
}

backend_sql! {
    /// A task lost its assignee, in the words of the index.
    IsUnassignment: diesel::sql_types::Bool,
    postgres "events.kind = 5",
    sqlite "events.kind = 5"
}

/// Narrows a boxed query on events to a part of the log, in both arms of `on!`.
macro_rules! log_part {
    ($query:ident, $part:expr, $viewer:expr) => {
        let theirs = tasks::table.filter(tasks::assignee_id.eq($viewer)).select(tasks::id.nullable());
        $query = match $part {
            LogPart::Everything => $query,
            // Kinds are parameters here: with the words of the indexes SQLite would look in each of them.
            LogPart::Visible => $query.filter(
                events::owner_id
                    .eq($viewer)
                    .or(events::task_id.eq_any(theirs))
                    .or(events::kind.eq(EventKind::TaskDeleted).and(events::assignee_id.eq($viewer)))
                    .or(events::kind.eq(EventKind::TaskUnassigned).and(events::previous_assignee_id.eq($viewer))),
            ),
            LogPart::Owned => $query.filter(events::owner_id.eq($viewer)),
            LogPart::Assigned => $query.filter(events::task_id.eq_any(theirs)),
            LogPart::Deleted => $query.filter(IsDeletion).filter(events::assignee_id.eq($viewer)),
            LogPart::Unassigned => $query.filter(IsUnassignment).filter(events::previous_assignee_id.eq($viewer)),
        };
    };
}

/// The events that a viewer may see, in the order of the log. However much others do, no more of it is read than a short
/// stretch.
pub async fn page(
    conn: &mut Conn,
    viewer: &Viewer,
    filter: &EventCriteria,
    stretch: LogRange,
    columns: EventColumns,
) -> Result<Vec<Event>> {
    // One end for all parts: what settled between two of them would be missed by whoever goes on after a later event.
    let end = settled_end(conn).await?;
    let end = LogPosition { seq: end.seq + 1, ..end };
    let before = stretch.before.map_or(end, |before| before.min(end));
    let stretch = LogRange { before: Some(before), ..stretch };
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

/// The events of each of these tasks, of those that the viewer may see. The history of a task goes with it.
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
        lateral(tasks, "events", columns.expression(), query).load(c).await
    })?;
    rows.sort_by_key(Event::position);
    let mut groups: HashMap<Id, Vec<Event>> = HashMap::new();
    for event in rows {
        groups.entry(event.task_id.unwrap_or(event.id)).or_default().push(event);
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
        let full = plain(debug_query::<Sqlite, _>(&events::table.select(Event::as_select())).to_string());
        let read = |columns: EventColumns| {
            plain(debug_query::<Sqlite, _>(&events::table.select(columns.expression())).to_string())
        };
        assert_eq!(read(EventColumns::Full), full);
        assert_eq!(read(EventColumns::Summary), full.replace("events.data", "''"));
    }

    #[test]
    fn an_index_leads_to_each_part_of_the_log() {
        let place = |seq| LogPosition { xid: 0, seq };
        let stretch = LogRange { after: Some(place(7)), before: Some(place(9)), limit: 9, backward: false };
        let plan_of = |part: LogPart, backward: bool| {
            let (stretch, viewer) = (LogRange { backward, ..stretch }, Id::new());
            let mut query = events::table.select(Event::as_select()).into_boxed::<Sqlite>();
            log_part!(query, part, viewer);
            in_range!(query, stretch);
            plan(query).join("; ")
        };
        for backward in [false, true] {
            for (part, index) in [
                (LogPart::Everything, "INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
                (LogPart::Owned, "INDEX events_owner (owner_id=? AND xid=? AND seq>? AND seq<?)"),
                (LogPart::Deleted, "INDEX events_deleted (assignee_id=? AND xid=? AND seq>? AND seq<?)"),
                (LogPart::Unassigned, "INDEX events_unassigned (previous_assignee_id=? AND xid=? AND seq>? AND seq<?)"),
            ] {
                assert_eq!(plan_of(part, backward), format!("SEARCH events USING {index}"), "{part:?}");
            }
            let visible = plan_of(LogPart::Visible, backward);
            assert!(
                visible.starts_with("SEARCH events USING INTEGER PRIMARY KEY (rowid>? AND rowid<?); "),
                "{visible}"
            );
            let assigned = plan_of(LogPart::Assigned, backward);
            for step in
                ["INDEX events_task (task_id=? AND xid=? AND seq>? AND seq<?)", "COVERING INDEX tasks_assignee_"]
            {
                assert!(assigned.contains(step), "{assigned}");
            }
        }
        assert_eq!(
            (EventKind::TaskDeleted.code(), EventKind::TaskUnassigned.code()),
            (3, 5),
            "as the migration has it"
        );
    }
}
