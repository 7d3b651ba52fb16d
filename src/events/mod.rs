//! The event log, a transactional outbox.
//!
//! An event is written in the transaction of its change. Queries, subscriptions and the hub read
//! the log after a position. They read only *settled* events, before which no running transaction
//! can still insert one, so that a reader who moves on never misses an event. Here an event is a
//! kind, ids and a JSON snapshot. Its meaning is defined by its writers in `store` and its readers
//! in `graphql`.

pub mod cursor;
pub mod hint;
pub mod hub;
pub mod shared_response;
pub mod text;

use diesel::deserialize::FromSqlRow;
use diesel::expression::{AsExpression, ValidGrouping, is_aggregate};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sqlite::Sqlite;

use crate::db::rows::RunQueryDsl;
use crate::db::schema::{events, projections};
use crate::db::types::sql;
use crate::db::{CommitSignal, Conn, Db, PooledConn, cached, inline_if_few};
use crate::error::Result;
use crate::id::Id;
use crate::time::Timestamp;
use crate::{backend_sql, on, stored_as_smallint};

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, AsExpression, FromSqlRow)]
#[diesel(sql_type = diesel::sql_types::SmallInt)]
pub enum EventKind {
    TaskCreated,
    /// Fields other than status and assignee changed.
    TaskUpdated,
    TaskDeleted,
    TaskAssigned,
    TaskUnassigned,
    StatusChanged,
    CommentAdded,
    CommentUpdated,
    CommentDeleted,
    ProjectUpdated,
    /// The project was deleted. [`EventKind::TaskDeleted`] events of its tasks precede it.
    ProjectDeleted,
    /// A session ended. Internal.
    SessionEnded,
    /// The role or the active state of a user changed. Internal.
    UserChanged,
}
stored_as_smallint!(EventKind {
    TaskCreated = 1,
    TaskUpdated = 2,
    TaskDeleted = 3,
    TaskAssigned = 4,
    TaskUnassigned = 5,
    StatusChanged = 6,
    CommentAdded = 7,
    CommentUpdated = 8,
    CommentDeleted = 9,
    ProjectUpdated = 10,
    ProjectDeleted = 11,
    SessionEnded = 100,
    UserChanged = 101,
});

impl EventKind {
    /// Kinds from this code on are internal.
    pub const FIRST_INTERNAL: i16 = 100;

    /// Whether the event is for other instances only and never sent to clients.
    pub const fn is_internal(self) -> bool {
        self.code() >= Self::FIRST_INTERNAL
    }
}

/// A position in the log. An event sorts after every event it causally depends on.
///
/// On PostgreSQL events sort by the newest transaction id known when the event was appended, then
/// by row. On SQLite, which has one writer, they sort by row. Each PostgreSQL server has its own
/// count of transactions, so `events_epoch()` is added: a log restored on another server continues
/// after its end (see [`crate::db::migrate`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// The writing transaction, or a newer one that had ended when the event was written. 0 on
    /// SQLite.
    pub xid: i64,
    /// The key of the row.
    pub seq: i64,
}

/// An event as stored in the log.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = events)]
pub struct Event {
    /// See [`LogPosition::seq`].
    pub seq: i64,
    /// See [`LogPosition::xid`].
    pub xid: i64,
    /// Lets clients recognize an event delivered twice.
    pub id: Id,
    pub kind: EventKind,
    pub occurred_at: Timestamp,
    /// The user who made the change.
    pub actor_id: Option<Id>,
    /// The owner of the project; for internal kinds, the user concerned.
    pub owner_id: Option<Id>,
    pub project_id: Option<Id>,
    pub task_id: Option<Id>,
    pub comment_id: Option<Id>,
    /// The assignee of the task after the change.
    pub assignee_id: Option<Id>,
    /// The assignee before the change, if it changed.
    pub previous_assignee_id: Option<Id>,
    /// For [`EventKind::SessionEnded`], the session that ended.
    pub session_id: Option<Id>,
    /// A snapshot at the time of the event, as JSON.
    pub data: String,
}

impl Event {
    pub const fn position(&self) -> LogPosition {
        LogPosition {
            xid: self.xid,
            seq: self.seq,
        }
    }

    /// The object that its long texts belong to: the task, or the project where it is about none.
    pub fn object(&self) -> Option<Id> {
        self.task_id.or(self.project_id)
    }
}

/// An event to be appended. The fields are those of [`Event`].
#[derive(Clone, Debug, Insertable)]
#[diesel(table_name = events, treat_none_as_default_value = false)]
pub struct NewEvent {
    pub id: Id,
    pub kind: EventKind,
    pub occurred_at: Timestamp,
    pub actor_id: Option<Id>,
    pub owner_id: Option<Id>,
    pub project_id: Option<Id>,
    pub task_id: Option<Id>,
    pub comment_id: Option<Id>,
    pub assignee_id: Option<Id>,
    pub previous_assignee_id: Option<Id>,
    pub session_id: Option<Id>,
    pub data: String,
    /// Long texts that it refers to, kept apart with it.
    #[diesel(skip_insertion)]
    pub texts: Vec<text::NewEventText>,
}

impl NewEvent {
    /// An event without a subject. The caller sets the ids and the snapshot.
    pub fn new(kind: EventKind, actor_id: Option<Id>, occurred_at: Timestamp) -> Self {
        Self {
            id: Id::new(),
            kind,
            occurred_at,
            actor_id,
            owner_id: None,
            project_id: None,
            task_id: None,
            comment_id: None,
            assignee_id: None,
            previous_assignee_id: None,
            session_id: None,
            data: "{}".to_owned(),
            texts: Vec::new(),
        }
    }
}

/// Appends events in the transaction of the change.
pub async fn append(tx: &mut Conn, new: &[NewEvent]) -> Result<()> {
    append_with_texts(tx, new).await.map(drop)
}

/// Like [`append`]. Returns by how many bytes the texts in the history have grown.
pub async fn append_with_texts(tx: &mut Conn, new: &[NewEvent]) -> Result<i64> {
    let mut added = 0;
    // One prepared statement per row: more than two rows at a time are rare.
    for event in new {
        on!(tx, |c| diesel::insert_into(events::table)
            .values(event)
            .execute(c)
            .await)?;
        added += text::insert(tx, event.id, &event.texts).await?;
        if event.kind.is_internal() {
            tx.signal_on_commit(CommitSignal::Sessions);
        }
    }
    tx.signal_on_commit(CommitSignal::Log);
    Ok(added)
}

/// Changes a row and appends the event; on PostgreSQL in one statement.
///
/// Returns false, and appends nothing, if no row matches. `change` must have one of a few texts,
/// because the statement is cached as a prepared statement. The event must refer to no long texts.
pub async fn change_and_append<C>(db: &Db, change: C, event: &NewEvent) -> Result<bool>
where
    C: QueryFragment<Pg> + QueryFragment<Sqlite> + Send + Sync,
{
    if !db.is_postgres() {
        let change = cached(&change);
        return db
            .inline_transaction(async |tx| {
                let changed = on!(tx, |c| change.execute(c).await)? > 0;
                if changed {
                    append(tx, std::slice::from_ref(event)).await?;
                }
                Ok(changed)
            })
            .await;
    }
    let changed = match &db.conn().await?.pooled {
        PooledConn::Postgres(conn) => {
            cached(ChangeAndEvent { change, event })
                .execute(&mut &**conn)
                .await?
        }
        PooledConn::Sqlite(_) => 0,
    };
    if changed > 0 {
        db.signal(CommitSignal::Log);
    }
    Ok(changed > 0)
}

struct ChangeAndEvent<'a, C> {
    change: C,
    event: &'a NewEvent,
}

impl<C> QueryId for ChangeAndEvent<'_, C> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<C: QueryFragment<Pg>> QueryFragment<Pg> for ChangeAndEvent<'_, C> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let NewEvent {
            id,
            kind,
            occurred_at,
            data,
            ..
        } = self.event;
        let event = self.event;
        let about = [
            &event.actor_id,
            &event.owner_id,
            &event.project_id,
            &event.task_id,
            &event.comment_id,
            &event.assignee_id,
            &event.previous_assignee_id,
            &event.session_id,
        ];
        out.push_sql("WITH changed AS (");
        self.change.walk_ast(out.reborrow())?;
        out.push_sql(
            " RETURNING 1) INSERT INTO events (id, kind, occurred_at, actor_id, owner_id, project_id, task_id, comment_id, \
             assignee_id, previous_assignee_id, session_id, data) SELECT ",
        );
        out.push_bind_param::<sql::Uuid, _>(id)?;
        out.push_sql(", ");
        out.push_bind_param::<sql::SmallInt, _>(kind)?;
        out.push_sql(", ");
        out.push_bind_param::<sql::Instant, _>(occurred_at)?;
        for id in about {
            out.push_sql(", ");
            out.push_bind_param::<sql::Nullable<sql::Uuid>, _>(id)?;
        }
        out.push_sql(", ");
        out.push_bind_param::<sql::Text, _>(data)?;
        out.push_sql(" FROM changed");
        Ok(())
    }
}

backend_sql! {
    /// True if the event precedes every transaction that may still commit, so no event can appear
    /// before it any more.
    Settled: diesel::sql_types::Bool,
    postgres "events.xid < events_epoch() + pg_snapshot_xmin(pg_current_snapshot())::text::bigint",
    sqlite "events.xid = 0"
}

/// A condition for the events after a position, or before it, in the order `xid, seq`.
#[derive(Debug, Clone, Copy)]
pub struct PositionComparison {
    position: LogPosition,
    operator: &'static str,
    /// The bound for `seq` on SQLite, where `xid` is 0. SQLite can seek to a rowid, but not to a
    /// row value that contains it.
    row: i64,
}

impl PositionComparison {
    const fn new(position: LogPosition, operator: &'static str) -> Self {
        let row = match position.xid {
            0 => position.seq,
            1.. => i64::MAX,
            _ => i64::MIN,
        };
        Self {
            position,
            operator,
            row,
        }
    }
}

/// The events after a position.
pub const fn after(place: LogPosition) -> PositionComparison {
    PositionComparison::new(place, " > ")
}

/// The events before a position.
pub const fn before(place: LogPosition) -> PositionComparison {
    PositionComparison::new(place, " < ")
}

impl Expression for PositionComparison {
    type SqlType = sql::Bool;
}

impl AppearsOnTable<events::table> for PositionComparison {}

impl ValidGrouping<()> for PositionComparison {
    type IsAggregate = is_aggregate::No;
}

impl QueryId for PositionComparison {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl QueryFragment<Pg> for PositionComparison {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("(events.xid, events.seq)");
        out.push_sql(self.operator);
        out.push_sql("(");
        out.push_bind_param::<sql::BigInt, _>(&self.position.xid)?;
        out.push_sql(", ");
        out.push_bind_param::<sql::BigInt, _>(&self.position.seq)?;
        out.push_sql(")");
        Ok(())
    }
}

impl QueryFragment<Sqlite> for PositionComparison {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql("(events.xid = 0 AND events.seq");
        out.push_sql(self.operator);
        out.push_bind_param::<sql::BigInt, _>(&self.row)?;
        out.push_sql(")");
        Ok(())
    }
}

/// Reads settled events after a position, oldest first and including internal ones. The flag is
/// true if the batch ended at an event that is not settled yet.
pub async fn settled_after(
    conn: &mut Conn,
    position: LogPosition,
    limit: usize,
) -> Result<(Vec<Event>, bool)> {
    let read = async {
        on!(conn, |c| events::table
            .filter(after(position))
            .order_by((events::xid, events::seq))
            .limit(i64::try_from(limit).unwrap_or(i64::MAX))
            .select((Event::as_select(), Settled))
            .load(c)
            .await)
    };
    let mut rows: Vec<(Event, bool)> = inline_if_few(limit, read).await?;
    let settled = rows.iter().take_while(|(_, settled)| *settled).count();
    let unsettled = settled < rows.len();
    rows.truncate(settled);
    Ok((
        rows.into_iter().map(|(event, _)| event).collect(),
        unsettled,
    ))
}

/// The position of the newest settled event, or the beginning if there is none.
pub async fn settled_end(conn: &mut Conn) -> Result<LogPosition> {
    let newest = events::table
        .filter(Settled)
        .order_by((events::xid.desc(), events::seq.desc()))
        .select((events::xid, events::seq));
    let end: Option<(i64, i64)> =
        inline_if_few(1, async { on!(conn, |c| newest.first(c).await.optional()) }).await?;
    Ok(end.map_or_else(LogPosition::default, |(xid, seq)| LogPosition { xid, seq }))
}

/// The end of the log. If the newest events have expired, this is the retention horizon.
pub async fn end(conn: &mut Conn) -> Result<LogPosition> {
    Ok(settled_end(conn).await?.max(retention_horizon(conn).await?))
}

/// The offset of a consumer: how far into the log it has read.
pub async fn consumer_offset(conn: &mut Conn, name: &str) -> Result<LogPosition> {
    let place = projections::table
        .find(name)
        .select((projections::xid, projections::seq));
    let (xid, seq) = inline_if_few(1, async { on!(conn, |c| place.first(c).await) }).await?;
    Ok(LogPosition { xid, seq })
}

/// Advances a consumer's offset, in the transaction of the work it covers. Returns false if the
/// offset has moved in the meantime.
pub async fn advance_offset(
    tx: &mut Conn,
    name: &str,
    from: LogPosition,
    to: LogPosition,
) -> Result<bool> {
    let place = projections::table
        .find(name)
        .filter(projections::xid.eq(from.xid))
        .filter(projections::seq.eq(from.seq));
    let moved = (projections::xid.eq(to.xid), projections::seq.eq(to.seq));
    Ok(on!(tx, |c| diesel::update(place).set(moved).execute(c).await)? == 1)
}

/// The name under which the retention horizon is stored.
pub const RETENTION_HORIZON: &str = "floor";

/// The retention horizon: the oldest position to resume from. Every later event is still in the
/// log.
pub async fn retention_horizon(conn: &mut Conn) -> Result<LogPosition> {
    consumer_offset(conn, RETENTION_HORIZON).await
}

#[cfg(test)]
pub(crate) mod tests {
    use diesel::sql_types::Text;
    use diesel::{SqliteConnection, debug_query, sql_query};
    use diesel_migrations::MigrationHarness;

    use super::*;
    use crate::db::migrate;

    #[derive(QueryableByName)]
    struct Step {
        #[diesel(sql_type = Text)]
        detail: String,
    }

    /// SQLite's query plan.
    pub(crate) fn plan(query: impl QueryFragment<Sqlite>) -> Vec<String> {
        let mut conn = SqliteConnection::establish(":memory:").expect("a database");
        conn.run_pending_migrations(migrate::SQLITE)
            .expect("migrations");
        let explain = format!("EXPLAIN QUERY PLAN {}", debug_query::<Sqlite, _>(&query));
        let (explain, _) = explain.split_once(" -- binds").expect("what is bound");
        let steps: Vec<Step> =
            diesel::RunQueryDsl::load(sql_query(explain), &mut conn).expect("a plan");
        steps.into_iter().map(|step| step.detail).collect()
    }

    #[test]
    fn sqlite_seeks_to_a_position_and_reads_on_from_there() {
        let place = LogPosition { xid: 0, seq: 7 };
        let log = || events::table.select(Event::as_select()).limit(9);
        let (forward, backward) = (
            (events::xid, events::seq),
            (events::xid.desc(), events::seq.desc()),
        );
        let to_row = |relation: &str| {
            vec![format!(
                "SEARCH events USING INTEGER PRIMARY KEY (rowid{relation}?)"
            )]
        };
        assert_eq!(
            plan(log().filter(after(place)).order_by(forward)),
            to_row(">")
        );
        assert_eq!(
            plan(
                log()
                    .filter(Settled)
                    .filter(before(place))
                    .order_by(backward)
            ),
            to_row("<")
        );
        assert_eq!(
            plan(log().filter(Settled).order_by(backward)),
            ["SCAN events"]
        );
        let task = events::task_id.eq(Id::new());
        let to_row_of_task =
            "SEARCH events USING INDEX events_task (task_id=? AND xid=? AND seq>?)";
        assert_eq!(
            plan(
                log()
                    .filter(Settled)
                    .filter(after(place))
                    .filter(task)
                    .order_by(forward)
            ),
            [to_row_of_task]
        );
    }

    #[test]
    fn a_position_of_another_database_is_before_or_after_all_of_sqlite() {
        let row = |xid| after(LogPosition { xid, seq: 7 }).row;
        assert_eq!((row(-1), row(0), row(1)), (i64::MIN, 7, i64::MAX));
    }
}
