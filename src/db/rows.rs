//! Row decoding on the thread of the statement, within the decoding budget of the request.
//!
//! On SQLite, diesel-async copies each value to move the row to another thread for decoding, about
//! 25 % of the cost of a long list. Here the SQLite thread itself decodes the rows.

use diesel::backend::Backend;
use diesel::connection::LoadConnection;
use diesel::deserialize::FromSqlRow;
use diesel::dsl::Limit;
use diesel::pg::Pg;
use diesel::query_builder::{
    AsQuery, CollectedQuery, MoveableBindCollector, QueryBuilder, QueryFragment, QueryId,
};
use diesel::query_dsl::CompatibleType;
use diesel::query_dsl::methods::LimitDsl;
use diesel::result::Error;
use diesel::row::{Field, Row};
use diesel::sqlite::Sqlite;
use diesel::sqlite::SqliteType;
use diesel::{QueryResult, SqliteConnection};
use diesel_async::methods::ExecuteDsl;
use diesel_async::{AsyncConnectionCore, AsyncPgConnection};
use futures_util::StreamExt;

use super::SqliteConn;
use super::interrupt::check;
use crate::limits::decode_budget::{self, Meter};

/// Replaces diesel-async's trait of the same name on the connections of [`on!`](crate::on).
pub trait RunQueryDsl<Conn>: Sized {
    /// Returns the number of changed rows.
    fn execute<'q>(self, conn: &'q mut Conn) -> impl Future<Output = QueryResult<usize>> + Send
    where
        Conn: AsyncConnectionCore + Send,
        Self: ExecuteDsl<Conn> + Send + 'q,
    {
        diesel_async::RunQueryDsl::execute(self, conn)
    }

    fn load<'q, U>(self, conn: &'q mut Conn) -> impl Future<Output = QueryResult<Vec<U>>> + Send
    where
        Conn: LoadRows<'q, Self, U>,
    {
        conn.load_rows(self)
    }

    /// Returns the first row read, or [`Error::NotFound`].
    fn get_result<'q, U>(self, conn: &'q mut Conn) -> impl Future<Output = QueryResult<U>> + Send
    where
        Conn: LoadRows<'q, Self, U>,
        U: Send,
    {
        let rows = conn.load_rows(self);
        async move { rows.await?.into_iter().next().ok_or(Error::NotFound) }
    }

    /// Returns the first row, with `LIMIT 1`, or [`Error::NotFound`].
    fn first<'q, U>(self, conn: &'q mut Conn) -> impl Future<Output = QueryResult<U>> + Send
    where
        Self: LimitDsl,
        Conn: LoadRows<'q, Limit<Self>, U>,
        U: Send,
    {
        let rows = conn.load_rows(self.limit(1));
        async move { rows.await?.into_iter().next().ok_or(Error::NotFound) }
    }
}

impl<T, Conn> RunQueryDsl<Conn> for T {}

/// A connection that can load the rows of query `Q` as `U`.
pub trait LoadRows<'q, Q, U> {
    fn load_rows(&'q mut self, query: Q) -> impl Future<Output = QueryResult<Vec<U>>> + Send;
}

impl<'a: 'q, 'q, Q, U, ST> LoadRows<'q, Q, U> for &'a AsyncPgConnection
where
    Q: AsQuery + Send + 'q,
    Q::Query: QueryFragment<Pg> + QueryId + Send + 'q,
    Q::SqlType: CompatibleType<U, Pg, SqlType = ST>,
    U: FromSqlRow<ST, Pg> + Send + 'static,
{
    fn load_rows(&'q mut self, query: Q) -> impl Future<Output = QueryResult<Vec<U>>> + Send {
        let (rows, meter) = (
            AsyncConnectionCore::load(self, query),
            decode_budget::current(),
        );
        async move {
            let (mut rows, mut decoded) = (rows.await?, Vec::new());
            while let Some(row) = rows.next().await {
                let row = row?;
                meter_row::<U, _>(meter.as_deref(), || postgres_bytes(&row))?;
                decoded.push(U::build_from_row(&row).map_err(Error::DeserializationError)?);
            }
            Ok(decoded)
        }
    }
}

impl<'q, Q, U, ST> LoadRows<'q, Q, U> for SqliteConn
where
    Q: AsQuery,
    Q::Query: QueryFragment<Sqlite> + QueryId,
    Q::SqlType: CompatibleType<U, Sqlite, SqlType = ST>,
    U: FromSqlRow<ST, Sqlite> + Send + 'static,
{
    fn load_rows(&'q mut self, query: Q) -> impl Future<Output = QueryResult<Vec<U>>> + Send {
        let (query, meter) = (collect_query(&query.as_query()), decode_budget::current());
        self.spawn_blocking(move |conn: &mut SqliteConnection| {
            let query = query?;
            let rows = LoadConnection::load(conn, &query)?;
            let read = |row: QueryResult<_>| {
                check()?;
                let row = row?;
                meter_row::<U, _>(meter.as_deref(), || sqlite_bytes(&row))?;
                U::build_from_row(&row).map_err(Error::DeserializationError)
            };
            rows.map(read).collect()
        })
    }
}

/// Charges a row to the budget before it is decoded: the size of `U` and the bytes of its texts.
fn meter_row<U, F: FnOnce() -> usize>(meter: Option<&Meter>, texts: F) -> QueryResult<()> {
    match meter {
        Some(meter) => {
            let counted = meter.count(size_of::<U>() + texts());
            counted.map_err(|over| Error::DeserializationError(Box::new(over)))
        }
        None => Ok(()),
    }
}

fn postgres_bytes<'r>(row: &impl Row<'r, Pg>) -> usize {
    let field = |index| {
        row.get(index)
            .and_then(|field| field.value().map(|value| value.as_bytes().len()))
    };
    (0..row.field_count()).filter_map(field).sum()
}

fn sqlite_bytes<'r>(row: &impl Row<'r, Sqlite>) -> usize {
    let field = |index| {
        let field = row.get(index)?;
        let mut value = field.value()?;
        // Reading any other type as text would convert it.
        (value.value_type() == Some(SqliteType::Text)).then(|| value.read_text().len())
    };
    (0..row.field_count()).filter_map(field).sum()
}

type Binds =
    <<Sqlite as Backend>::BindCollector<'static> as MoveableBindCollector<Sqlite>>::BindData;

/// The text and parameters of a query, in a form that can move to another thread.
fn collect_query(
    query: &(impl QueryFragment<Sqlite> + QueryId),
) -> QueryResult<CollectedQuery<Binds>> {
    let mut text = <Sqlite as Backend>::QueryBuilder::default();
    query.to_sql(&mut text, &Sqlite)?;
    let mut binds = <Sqlite as Backend>::BindCollector::default();
    query.collect_binds(&mut binds, &mut (), &Sqlite)?;
    Ok(CollectedQuery::new(
        text.finish(),
        query.is_safe_to_cache_prepared(&Sqlite)?,
        binds.moveable(),
    ))
}
