//! Column lists as constant text.
//!
//! diesel builds the text of a statement at each execution, and a literal list is cheaper than one
//! node per column. A list may replace columns by constants, so that unselected values are not
//! read.

use std::marker::PhantomData;

use diesel::backend::Backend;
use diesel::expression::{
    AppearsOnTable, Expression, SelectableExpression, ValidGrouping, is_aggregate,
};
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::{QueryResult, Selectable};

/// A select list for `Row`: one expression per column, in the same order and of the same types.
#[derive(Debug)]
pub struct Columns<Row> {
    text: &'static str,
    row: PhantomData<fn() -> Row>,
}

impl<Row> Columns<Row> {
    /// The text must match the columns of `Row`; the compiler does not check it.
    pub const fn new(text: &'static str) -> Self {
        Self {
            text,
            row: PhantomData,
        }
    }
}

impl<Row> Clone for Columns<Row> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Row> Copy for Columns<Row> {}

impl<Row: Selectable<Pg>> Expression for Columns<Row> {
    type SqlType = <Row::SelectExpression as Expression>::SqlType;
}

impl<Row: Selectable<Pg>, QS> AppearsOnTable<QS> for Columns<Row> where
    Row::SelectExpression: AppearsOnTable<QS>
{
}

impl<Row: Selectable<Pg>, QS> SelectableExpression<QS> for Columns<Row> where
    Row::SelectExpression: SelectableExpression<QS>
{
}

impl<Row> ValidGrouping<()> for Columns<Row> {
    type IsAggregate = is_aggregate::No;
}

impl<Row> QueryId for Columns<Row> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Row, DB: Backend> QueryFragment<DB> for Columns<Row> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        out.push_sql(self.text);
        Ok(())
    }
}
