//! Control over which statements diesel caches as prepared statements.

use diesel::backend::Backend;
use diesel::dsl::sql;
use diesel::expression::SqlLiteral;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::result::QueryResult;
use diesel::sql_types::Bool;

/// Caches an update as a prepared statement. diesel does not, because omitted values change its
/// text; use it for updates with few distinct texts.
#[derive(Debug, Clone, Copy)]
pub struct CachedStatement<S>(S);

/// See [`CachedStatement`].
pub const fn cached<S>(statement: S) -> CachedStatement<S> {
    CachedStatement(statement)
}

impl<S> QueryId for CachedStatement<S> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<DB: Backend, S: QueryFragment<DB>> QueryFragment<DB> for CachedStatement<S> {
    fn walk_ast<'b>(&'b self, out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.0.walk_ast(out)
    }

    fn is_safe_to_cache_prepared(&self, _: &DB) -> QueryResult<bool> {
        Ok(true)
    }
}

/// A condition that is always true and keeps the statement out of the cache.
///
/// The planner then sees the actual values, whose selectivity decides the index, and rare statement
/// texts do not fill the cache.
pub fn uncached() -> SqlLiteral<Bool> {
    sql("1 = 1")
}
