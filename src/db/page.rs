//! Keyset pagination, also for many parents in one statement, and comparison with lists of ids.
//!
//! A position is the sort key and the id of a row. The row comparison `(key, id) > (?, ?)` is one
//! index range on both databases. So a page costs the same anywhere in the list, and concurrent
//! inserts and deletes never make a client skip or repeat a row.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use diesel::backend::Backend;
use diesel::expression::{
    AppearsOnTable, Expression, SelectableExpression, ValidGrouping, is_aggregate,
};
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::QueryResult;
use diesel::serialize::ToSql;
use diesel::sql_types::{Bool, HasSqlType};
use diesel::sqlite::Sqlite;

use super::types::sql;
use crate::backend_sql;
use crate::id::Id;
use crate::time::Timestamp;

/// The sort key of a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SortKey {
    /// A time. A missing one is [`Timestamp::MAX`], so it sorts last.
    Time(Timestamp),
    /// Text, compared by bytes.
    Text(String),
    /// The code of an enum, in sort order.
    Rank(i16),
}

/// The position of a row in an ordered list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowPosition {
    pub key: SortKey,
    /// The tiebreaker.
    pub id: Id,
}

/// The requested part of an ordered list: `first`, `last`, `after` and `before` of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PageWindow {
    /// Only rows after this position.
    pub after: Option<RowPosition>,
    /// Only rows before this position.
    pub before: Option<RowPosition>,
    /// Maximum number of rows.
    pub limit: usize,
    /// Takes the last rows instead of the first.
    pub backward: bool,
    /// Reads one extra row, which shows whether there is another page.
    pub detect_more: bool,
}

impl PageWindow {
    /// The number of rows to read, as an SQL `LIMIT`.
    pub fn fetch(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX - 1) + i64::from(self.detect_more)
    }

    /// The number of rows to read, as a length.
    pub fn rows(&self) -> usize {
        self.limit.saturating_add(usize::from(self.detect_more))
    }

    /// Makes a page of the rows read. `rows` may be in any order and come from several ranges.
    pub fn page<T>(
        &self,
        descending: bool,
        mut rows: Vec<T>,
        position: impl Fn(&T) -> RowPosition,
    ) -> Page<T> {
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
            has_next: if self.backward {
                self.before.is_some()
            } else {
                more
            },
            has_previous: if self.backward {
                more
            } else {
                self.after.is_some()
            },
            rows,
        }
    }
}

/// The rows of one page, in the order of the list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    pub rows: Vec<T>,
    /// Forward: whether more rows follow, known only if the window reads the extra row.
    /// Backward: whether `before` was given.
    pub has_next: bool,
    /// Backward: whether more rows precede, known only if the window reads the extra row.
    /// Forward: whether `after` was given.
    pub has_previous: bool,
}

impl<T> Page<T> {
    /// The page with rows that are cheap to clone.
    pub fn into_shared(self) -> Page<Arc<T>> {
        let Self {
            rows,
            has_next,
            has_previous,
        } = self;
        Page {
            rows: rows.into_iter().map(Arc::new).collect(),
            has_next,
            has_previous,
        }
    }
}

/// Groups `rows` by parent.
pub fn group_by_parent<T>(rows: Vec<T>, parent: impl Fn(&T) -> Id) -> HashMap<Id, Vec<T>> {
    let mut groups: HashMap<Id, Vec<T>> = HashMap::new();
    for row in rows {
        groups.entry(parent(&row)).or_default().push(row);
    }
    groups
}

/// The row comparison `(column, id) < (value, position)`, or `>`.
#[derive(Debug, Clone, Copy)]
pub struct KeysetAfter<C, I, V, P> {
    column: C,
    id: I,
    operator: &'static str,
    value: V,
    position: P,
}

/// Selects the rows after a position, or before it if `after` is false.
pub fn keyset_after<C, I, V, P>(
    column: C,
    id: I,
    after: bool,
    value: V,
    position: P,
) -> KeysetAfter<C, I, V::Expression, P::Expression>
where
    C: Expression,
    I: Expression,
    C::SqlType: diesel::sql_types::SqlType + diesel::expression::TypedExpressionType,
    I::SqlType: diesel::sql_types::SqlType + diesel::expression::TypedExpressionType,
    V: diesel::expression::AsExpression<C::SqlType>,
    P: diesel::expression::AsExpression<I::SqlType>,
{
    let operator = if after { " > " } else { " < " };
    KeysetAfter {
        column,
        id,
        operator,
        value: value.as_expression(),
        position: position.as_expression(),
    }
}

impl<C, I, V, P> Expression for KeysetAfter<C, I, V, P> {
    type SqlType = Bool;
}

impl<C, I, V, P, QS> AppearsOnTable<QS> for KeysetAfter<C, I, V, P>
where
    C: AppearsOnTable<QS>,
    I: AppearsOnTable<QS>,
{
}

impl<C, I, V, P, QS> SelectableExpression<QS> for KeysetAfter<C, I, V, P>
where
    C: SelectableExpression<QS>,
    I: SelectableExpression<QS>,
{
}

impl<C, I, V, P> ValidGrouping<()> for KeysetAfter<C, I, V, P> {
    type IsAggregate = is_aggregate::No;
}

impl<C, I, V, P> QueryId for KeysetAfter<C, I, V, P> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<C, I, V, P, DB> QueryFragment<DB> for KeysetAfter<C, I, V, P>
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

/// A query with a literal `LIMIT`. If the limit were a parameter, PostgreSQL would not know its
/// value and plan each call anew instead of keeping a generic plan.
#[derive(Debug, Clone, Copy)]
pub struct LiteralLimit<Q> {
    query: Q,
    limit: i64,
}

/// See [`LiteralLimit`].
pub const fn literal_limit<Q>(query: Q, limit: i64) -> LiteralLimit<Q> {
    LiteralLimit { query, limit }
}

impl<Q: Query> Query for LiteralLimit<Q> {
    type SqlType = Q::SqlType;
}

impl<Q> QueryId for LiteralLimit<Q> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<DB: Backend, Q: QueryFragment<DB>> QueryFragment<DB> for LiteralLimit<Q> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.query.walk_ast(out.reborrow())?;
        out.push_sql(&format!(" LIMIT {}", self.limit));
        Ok(())
    }
}

/// Filters, orders and limits a boxed query by one column of its table and the id. For use in
/// [`on!`](crate::on).
#[macro_export]
macro_rules! keyset {
    ($query:ident, $window:expr, $descending:expr, $order:expr, $table:ident { $($field:pat => $column:ident as $key:ident),+ $(,)? }) => {
        match $order {
            $($field => {
                use diesel::prelude::*;
                use $crate::db::page::{keyset_after, SortKey, RowPosition};
                if let Some(RowPosition { key: SortKey::$key(value), id }) = &$window.after {
                    $query = $query.filter(keyset_after($table::$column, $table::id, !$descending, value.clone(), *id));
                }
                if let Some(RowPosition { key: SortKey::$key(value), id }) = &$window.before {
                    $query = $query.filter(keyset_after($table::$column, $table::id, $descending, value.clone(), *id));
                }
                $query = if $descending != $window.backward {
                    $query.order_by(($table::$column.desc(), $table::id.desc()))
                } else {
                    $query.order_by(($table::$column.asc(), $table::id.asc()))
                };
            })+
        }
        let $query = $crate::db::page::literal_limit($query, $window.fetch());
    };
}

backend_sql! {
    /// The id of the current parent, in a query inside [`lateral`].
    Parent: sql::Uuid,
    postgres "parent.id",
    sqlite "unhex(parent.value)"
}

/// `column = ANY(ids)` with the list as one parameter. So there are two statement texts to prepare:
/// one for a single id, one for any number.
#[derive(Debug, Clone)]
pub struct AnyId<C> {
    column: C,
    ids: Vec<Id>,
    /// The ids as JSON for SQLite, encoded on first use.
    hex: OnceLock<String>,
}

/// Selects the rows whose column is one of these ids.
pub fn any_id<C: Expression>(column: C, ids: &[Id]) -> AnyId<C> {
    AnyId {
        column,
        ids: ids.to_vec(),
        hex: OnceLock::new(),
    }
}

impl<C> Expression for AnyId<C> {
    type SqlType = Bool;
}

impl<C: AppearsOnTable<QS>, QS> AppearsOnTable<QS> for AnyId<C> {}

impl<C: SelectableExpression<QS>, QS> SelectableExpression<QS> for AnyId<C> {}

impl<C> ValidGrouping<()> for AnyId<C> {
    type IsAggregate = is_aggregate::No;
}

impl<C> QueryId for AnyId<C> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<DB, C> QueryFragment<DB> for AnyId<C>
where
    DB: Backend + HasSqlType<sql::Uuid>,
    C: QueryFragment<DB>,
    Id: ToSql<sql::Uuid, DB>,
    Self: AnyParameter<DB>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.column.walk_ast(out.reborrow())?;
        // For a single id PostgreSQL keeps a generic plan; for a list of unknown length it plans
        // each execution.
        if let [id] = self.ids.as_slice() {
            out.push_sql(" = ");
            return out.push_bind_param::<sql::Uuid, _>(id);
        }
        self.push_any(out)
    }
}

/// The comparison with a list in one parameter, by backend.
trait AnyParameter<DB: Backend> {
    fn push_any<'b>(&'b self, out: AstPass<'_, 'b, DB>) -> QueryResult<()>;
}

impl<C> AnyParameter<Pg> for AnyId<C> {
    fn push_any<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(" = ANY(");
        out.push_bind_param::<sql::Array<sql::Uuid>, _>(&self.ids)?;
        out.push_sql(")");
        Ok(())
    }
}

impl<C> AnyParameter<Sqlite> for AnyId<C> {
    fn push_any<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql(" IN (SELECT unhex(value) FROM json_each(");
        out.push_bind_param::<sql::Text, _>(self.hex.get_or_init(|| hex(&self.ids)))?;
        out.push_sql("))");
        Ok(())
    }
}

/// Encodes ids as a JSON array of hexadecimal strings, for SQLite's `json_each` and `unhex`.
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

/// Runs a limited query once per parent in one statement, such as the first 10 tasks per project.
///
/// The query refers to its parent as [`Parent`]. PostgreSQL uses `LATERAL`. SQLite has none, but a
/// correlated subquery in `IN` walks the same index range; for it, `columns` repeats the selection
/// of the query. The rows come back unordered: sort them with [`PageWindow::page`].
#[derive(Debug, Clone)]
pub struct Lateral<S, Q> {
    parents: Vec<Id>,
    /// The ids as JSON for SQLite, encoded on first use.
    hex: OnceLock<String>,
    table: &'static str,
    columns: S,
    query: Q,
}

/// See [`Lateral`].
pub fn lateral<S, Q>(parents: &[Id], table: &'static str, columns: S, query: Q) -> Lateral<S, Q> {
    Lateral {
        parents: parents.to_vec(),
        hex: OnceLock::new(),
        table,
        columns,
        query,
    }
}

impl<S, Q: Query> Query for Lateral<S, Q> {
    type SqlType = Q::SqlType;
}

impl<S, Q> QueryId for Lateral<S, Q> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<S, Q: QueryFragment<Pg>> QueryFragment<Pg> for Lateral<S, Q> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT child.* FROM unnest(");
        out.push_bind_param::<sql::Array<sql::Uuid>, _>(&self.parents)?;
        out.push_sql(") AS parent (id) CROSS JOIN LATERAL (");
        self.query.walk_ast(out.reborrow())?;
        out.push_sql(") AS child");
        Ok(())
    }
}

impl<S: QueryFragment<Sqlite>, Q: QueryFragment<Sqlite>> QueryFragment<Sqlite> for Lateral<S, Q> {
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
