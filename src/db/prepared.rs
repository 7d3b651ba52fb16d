//! Which statements are prepared once, and which each time.

use diesel::backend::Backend;
use diesel::dsl::sql;
use diesel::expression::SqlLiteral;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::result::QueryResult;
use diesel::sql_types::Bool;

/// A statement that has one of a few texts. diesel prepares every update anew, because values that are left out change its
/// text; here each text is kept.
#[derive(Debug, Clone, Copy)]
pub struct Prepared<S>(S);

/// See [`Prepared`].
pub const fn prepared<S>(statement: S) -> Prepared<S> {
    Prepared(statement)
}

impl<S> QueryId for Prepared<S> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<DB: Backend, S: QueryFragment<DB>> QueryFragment<DB> for Prepared<S> {
    fn walk_ast<'b>(&'b self, out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.0.walk_ast(out)
    }

    fn is_safe_to_cache_prepared(&self, _: &DB) -> QueryResult<bool> {
        Ok(true)
    }
}

/// True of every row. A statement that has this in it is planned for the values it is sent with, and forgotten: of some
/// there are more texts than a connection could keep, and how rare a value is decides which index leads to its rows.
pub fn planned_anew() -> SqlLiteral<Bool> {
    sql("1 = 1")
}
