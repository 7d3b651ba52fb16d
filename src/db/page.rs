//! Keyset paging: where a page begins, how far it reaches, and the same for many parents in one statement.
//!
//! A position is the value that the list is ordered by and the row's id. The row comparison `(value, id) > (?, ?)` is
//! one range of an index on both databases, so a page costs the same wherever it begins, and rows that come or go
//! never make it skip or repeat one.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use diesel::backend::Backend;
use diesel::expression::{AppearsOnTable, Expression, SelectableExpression, ValidGrouping, is_aggregate};
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::QueryResult;
use diesel::serialize::ToSql;
use diesel::sql_types::{Bool, HasSqlType};
use diesel::sqlite::Sqlite;

use super::types::sql;
use crate::id::Id;
use crate::spelled;
use crate::time::Timestamp;

/// The value that a list is ordered by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A moment; a missing one is [`Timestamp::MAX`].
    Time(Timestamp),
    /// Text compared byte by byte.
    Text(String),
    /// A small number that stands for an enum.
    Rank(i16),
}

/// The place of one row in an ordered list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// What the list is ordered by.
    pub key: Key,
    /// The tie-break.
    pub id: Id,
}

/// Which rows of an ordered list are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Only what comes after this place.
    pub after: Option<Position>,
    /// Only what comes before this place.
    pub before: Option<Position>,
    /// How many rows at most.
    pub limit: usize,
    /// Counted from the end of the list.
    pub backward: bool,
    /// Whether one row more than that is read, which tells if there is another page.
    pub tells_more: bool,
}

impl Window {
    /// How many rows are read.
    pub fn fetch(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX - 1) + i64::from(self.tells_more)
    }

    /// The same as a length.
    pub fn rows(&self) -> usize {
        self.limit.saturating_add(usize::from(self.tells_more))
    }

    /// Cuts what was fetched down to the page. `rows` may come in any order, from several ranges of the list.
    pub fn page<T>(&self, descending: bool, mut rows: Vec<T>, position: impl Fn(&T) -> Position) -> Page<T> {
        let reversed = descending != self.backward;
        rows.sort_by_cached_key(&position);
        if reversed {
            rows.reverse();
        }
        let more = rows.len() > self.limit;
        rows.truncate(self.limit);
        if self.backward {
            rows.reverse();
        }
        Page {
            has_next: if self.backward { self.before.is_some() } else { more },
            has_previous: if self.backward { more } else { self.after.is_some() },
            rows,
        }
    }
}

/// The rows of one page, in the order of the list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Whether the list goes on after them, if the window tells. Counted from the end, this is whether a `before` was
    /// given.
    pub has_next: bool,
    /// Whether the list has rows before them, likewise. Counted from the start, this is whether an `after` was given.
    pub has_previous: bool,
}

impl<T> Page<T> {
    /// The page with rows that cost nothing to clone.
    pub fn shared(self) -> Page<Arc<T>> {
        let Self { rows, has_next, has_previous } = self;
        Page { rows: rows.into_iter().map(Arc::new).collect(), has_next, has_previous }
    }
}

/// Sorts `rows` to the parents they belong to.
pub fn by_parent<T>(rows: Vec<T>, parent: impl Fn(&T) -> Id) -> HashMap<Id, Vec<T>> {
    let mut groups: HashMap<Id, Vec<T>> = HashMap::new();
    for row in rows {
        groups.entry(parent(&row)).or_default().push(row);
    }
    groups
}

/// `(column, id) < (value, position)`, or `>`.
#[derive(Debug, Clone, Copy)]
pub struct Beyond<C, I, V, P> {
    column: C,
    id: I,
    operator: &'static str,
    value: V,
    position: P,
}

/// The rows after a position, or before it.
pub fn beyond<C, I, V, P>(
    column: C,
    id: I,
    after: bool,
    value: V,
    position: P,
) -> Beyond<C, I, V::Expression, P::Expression>
where
    C: Expression,
    I: Expression,
    C::SqlType: diesel::sql_types::SqlType + diesel::expression::TypedExpressionType,
    I::SqlType: diesel::sql_types::SqlType + diesel::expression::TypedExpressionType,
    V: diesel::expression::AsExpression<C::SqlType>,
    P: diesel::expression::AsExpression<I::SqlType>,
{
    let operator = if after { " > " } else { " < " };
    Beyond { column, id, operator, value: value.as_expression(), position: position.as_expression() }
}

impl<C, I, V, P> Expression for Beyond<C, I, V, P> {
    type SqlType = Bool;
}

impl<C, I, V, P, QS> AppearsOnTable<QS> for Beyond<C, I, V, P>
where
    C: AppearsOnTable<QS>,
    I: AppearsOnTable<QS>,
{
}

impl<C, I, V, P, QS> SelectableExpression<QS> for Beyond<C, I, V, P>
where
    C: SelectableExpression<QS>,
    I: SelectableExpression<QS>,
{
}

impl<C, I, V, P> ValidGrouping<()> for Beyond<C, I, V, P> {
    type IsAggregate = is_aggregate::No;
}

impl<C, I, V, P> QueryId for Beyond<C, I, V, P> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<C, I, V, P, DB> QueryFragment<DB> for Beyond<C, I, V, P>
where
    DB: Backend,
    C: QueryFragment<DB>,
    I: QueryFragment<DB>,
    V: QueryFragment<DB>,
    P: QueryFragment<DB>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        out.push_sql("(");
        self.column.walk_ast(out.reborrow())?;
        out.push_sql(", ");
        self.id.walk_ast(out.reborrow())?;
        out.push_sql(")");
        out.push_sql(self.operator);
        out.push_sql("(");
        self.value.walk_ast(out.reborrow())?;
        out.push_sql(", ");
        self.position.walk_ast(out.reborrow())?;
        out.push_sql(")");
        Ok(())
    }
}

/// A query with its limit written out: not knowing it, PostgreSQL would find a plan for each call instead of keeping one.
#[derive(Debug, Clone, Copy)]
pub struct Limited<Q> {
    query: Q,
    limit: i64,
}

/// See [`Limited`].
pub const fn limited<Q>(query: Q, limit: i64) -> Limited<Q> {
    Limited { query, limit }
}

impl<Q: Query> Query for Limited<Q> {
    type SqlType = Q::SqlType;
}

impl<Q> QueryId for Limited<Q> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<DB: Backend, Q: QueryFragment<DB>> QueryFragment<DB> for Limited<Q> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.query.walk_ast(out.reborrow())?;
        out.push_sql(&format!(" LIMIT {}", self.limit));
        Ok(())
    }
}

/// Bounds and orders a boxed query by one column of its table and the id, in both arms of `on!`.
#[macro_export]
macro_rules! keyset {
    ($query:ident, $window:expr, $descending:expr, $order:expr, $table:ident { $($field:pat => $column:ident as $key:ident),+ $(,)? }) => {
        match $order {
            $($field => {
                use diesel::prelude::*;
                use $crate::db::page::{beyond, Key, Position};
                if let Some(Position { key: Key::$key(value), id }) = &$window.after {
                    $query = $query.filter(beyond($table::$column, $table::id, !$descending, value.clone(), *id));
                }
                if let Some(Position { key: Key::$key(value), id }) = &$window.before {
                    $query = $query.filter(beyond($table::$column, $table::id, $descending, value.clone(), *id));
                }
                $query = if $descending != $window.backward {
                    $query.order_by(($table::$column.desc(), $table::id.desc()))
                } else {
                    $query.order_by(($table::$column.asc(), $table::id.asc()))
                };
            })+
        }
        let $query = $crate::db::page::limited($query, $window.fetch());
    };
}

spelled! {
    /// The parent that a query inside [`each`] is run for.
    Parent: sql::Uuid,
    postgres "parent.id",
    sqlite "unhex(parent.value)"
}

/// `column = ANY(ids)` with one parameter: a statement for one id and one for any number, each prepared once.
#[derive(Debug, Clone)]
pub struct Among<C> {
    column: C,
    ids: Vec<Id>,
    /// As SQLite reads them, written when it does.
    hex: OnceLock<String>,
}

/// The rows whose column is one of these ids.
pub fn among<C: Expression>(column: C, ids: &[Id]) -> Among<C> {
    Among { column, ids: ids.to_vec(), hex: OnceLock::new() }
}

impl<C> Expression for Among<C> {
    type SqlType = Bool;
}

impl<C: AppearsOnTable<QS>, QS> AppearsOnTable<QS> for Among<C> {}

impl<C: SelectableExpression<QS>, QS> SelectableExpression<QS> for Among<C> {}

impl<C> ValidGrouping<()> for Among<C> {
    type IsAggregate = is_aggregate::No;
}

impl<C> QueryId for Among<C> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<DB, C> QueryFragment<DB> for Among<C>
where
    DB: Backend + HasSqlType<sql::Uuid>,
    C: QueryFragment<DB>,
    Id: ToSql<sql::Uuid, DB>,
    Self: Any<DB>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.column.walk_ast(out.reborrow())?;
        // Of one, PostgreSQL soon keeps the plan; of a list of unknown length it plans anew each time.
        if let [id] = self.ids.as_slice() {
            out.push_sql(" = ");
            return out.push_bind_param::<sql::Uuid, _>(id);
        }
        self.any(out)
    }
}

/// How a database compares with a list in one parameter.
trait Any<DB: Backend> {
    fn any<'b>(&'b self, out: AstPass<'_, 'b, DB>) -> QueryResult<()>;
}

impl<C> Any<Pg> for Among<C> {
    fn any<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(" = ANY(");
        out.push_bind_param::<sql::Array<sql::Uuid>, _>(&self.ids)?;
        out.push_sql(")");
        Ok(())
    }
}

impl<C> Any<Sqlite> for Among<C> {
    fn any<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql(" IN (SELECT unhex(value) FROM json_each(");
        out.push_bind_param::<sql::Text, _>(self.hex.get_or_init(|| hex(&self.ids)))?;
        out.push_sql("))");
        Ok(())
    }
}

/// Ids as SQLite's `json_each` and `unhex` read them.
fn hex(ids: &[Id]) -> String {
    let mut hex = String::with_capacity(ids.len() * 35 + 2);
    hex.push('[');
    for (index, id) in ids.iter().enumerate() {
        hex.push_str(if index == 0 { "\"" } else { ",\"" });
        id.push_hex(&mut hex);
        hex.push('"');
    }
    hex.push(']');
    hex
}

/// Runs a bounded query once for each parent, as one statement: "the first ten of every project".
///
/// Inside of it the parent is [`Parent`]. PostgreSQL has `LATERAL` for this. SQLite has not, but lets a subquery in an
/// `IN` look at the row outside, which walks the same index in the same way; `columns` repeats what the query selects.
/// The rows come back in no order: sort them with [`Window::page`].
#[derive(Debug, Clone)]
pub struct Each<S, Q> {
    parents: Vec<Id>,
    /// As SQLite reads them, written when it does.
    hex: OnceLock<String>,
    table: &'static str,
    columns: S,
    query: Q,
}

/// See [`Each`].
pub fn each<S, Q>(parents: &[Id], table: &'static str, columns: S, query: Q) -> Each<S, Q> {
    Each { parents: parents.to_vec(), hex: OnceLock::new(), table, columns, query }
}

impl<S, Q: Query> Query for Each<S, Q> {
    type SqlType = Q::SqlType;
}

impl<S, Q> QueryId for Each<S, Q> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<S, Q: QueryFragment<Pg>> QueryFragment<Pg> for Each<S, Q> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT child.* FROM unnest(");
        out.push_bind_param::<sql::Array<sql::Uuid>, _>(&self.parents)?;
        out.push_sql(") AS parent (id) CROSS JOIN LATERAL (");
        self.query.walk_ast(out.reborrow())?;
        out.push_sql(") AS child");
        Ok(())
    }
}

impl<S: QueryFragment<Sqlite>, Q: QueryFragment<Sqlite>> QueryFragment<Sqlite> for Each<S, Q> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql("SELECT ");
        self.columns.walk_ast(out.reborrow())?;
        out.push_sql(" FROM json_each(");
        out.push_bind_param::<sql::Text, _>(self.hex.get_or_init(|| hex(&self.parents)))?;
        out.push_sql(") AS parent CROSS JOIN ");
        out.push_identifier(self.table)?;
        out.push_sql(" WHERE ");
        out.push_identifier(self.table)?;
        out.push_sql(".id IN (SELECT id FROM (");
        self.query.walk_ast(out.reborrow())?;
        out.push_sql("))");
        Ok(())
    }
}
