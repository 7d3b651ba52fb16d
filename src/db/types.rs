//! Column types that the two databases store differently.
//!
//! [`sql`] re-exports diesel's SQL types and adds `Uuid` and `Instant`: native on PostgreSQL, a
//! blob and integer microseconds on SQLite. `schema.rs` uses them for both. (`Instant` is
//! PostgreSQL's `timestamptz`; under that name `table!` would require its arithmetic, which differs
//! between the two.)

use std::io::Write;

use diesel::backend::Backend;
use diesel::deserialize::{self, FromSql};
use diesel::pg::{Pg, PgValue};
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sqlite::Sqlite;

use crate::id::Id;
use crate::time::Timestamp;

/// The SQL types of `schema.rs`.
pub mod sql {
    pub use diesel::sql_types::*;

    /// `uuid` on PostgreSQL, a 16-byte blob on SQLite.
    #[derive(
        Debug, Clone, Copy, Default, diesel::query_builder::QueryId, diesel::sql_types::SqlType,
    )]
    #[diesel(postgres_type(oid = 2950, array_oid = 2951))]
    #[diesel(sqlite_type(name = "Binary"))]
    pub struct Uuid;

    /// `timestamptz` on PostgreSQL, integer microseconds since 1970 on SQLite.
    #[derive(
        Debug, Clone, Copy, Default, diesel::query_builder::QueryId, diesel::sql_types::SqlType,
    )]
    #[diesel(postgres_type(oid = 1184, array_oid = 1185))]
    #[diesel(sqlite_type(name = "Long"))]
    pub struct Instant;

    impl SqlOrd for Uuid {}
    impl SqlOrd for Instant {}
}

/// PostgreSQL counts microseconds from 2000-01-01.
pub(crate) const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

impl ToSql<sql::Uuid, Pg> for Id {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        out.write_all(self.as_bytes())?;
        Ok(IsNull::No)
    }
}

impl FromSql<sql::Uuid, Pg> for Id {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        Ok(Self::from_bytes(value.as_bytes().try_into()?))
    }
}

impl ToSql<sql::Uuid, Sqlite> for Id {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        out.set_value(self.as_bytes().as_slice());
        Ok(IsNull::No)
    }
}

impl FromSql<sql::Uuid, Sqlite> for Id {
    fn from_sql(mut value: diesel::sqlite::SqliteValue<'_, '_, '_>) -> deserialize::Result<Self> {
        Ok(Self::from_bytes(value.read_blob().try_into()?))
    }
}

impl ToSql<sql::Instant, Pg> for Timestamp {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        let micros = if *self == Self::MAX {
            i64::MAX
        } else {
            self.micros() - POSTGRES_EPOCH_MICROS
        };
        out.write_all(&micros.to_be_bytes())?;
        Ok(IsNull::No)
    }
}

impl FromSql<sql::Instant, Pg> for Timestamp {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        let micros = i64::from_be_bytes(value.as_bytes().try_into()?);
        // PostgreSQL's `infinity` is `i64::MAX`, which saturates to `Timestamp::MAX`.
        Ok(Self::from_micros(
            micros.saturating_add(POSTGRES_EPOCH_MICROS),
        ))
    }
}

impl ToSql<sql::Instant, Sqlite> for Timestamp {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        out.set_value(self.micros());
        Ok(IsNull::No)
    }
}

impl FromSql<sql::Instant, Sqlite> for Timestamp {
    fn from_sql(value: diesel::sqlite::SqliteValue<'_, '_, '_>) -> deserialize::Result<Self> {
        Ok(Self::from_micros(
            <i64 as FromSql<sql::BigInt, Sqlite>>::from_sql(value)?,
        ))
    }
}

/// A column's value, or the default if the column was replaced by a null constant.
#[derive(Debug, diesel::deserialize::FromSqlRow)]
pub struct OrDefault<T>(T);

impl<ST, DB, T> FromSql<ST, DB> for OrDefault<T>
where
    DB: Backend,
    T: FromSql<ST, DB> + Default,
{
    fn from_sql(value: DB::RawValue<'_>) -> deserialize::Result<Self> {
        T::from_sql(value).map(Self)
    }

    fn from_nullable_sql(value: Option<DB::RawValue<'_>>) -> deserialize::Result<Self> {
        value.map_or_else(|| Ok(Self(T::default())), Self::from_sql)
    }
}

impl From<OrDefault<Self>> for i32 {
    fn from(value: OrDefault<Self>) -> Self {
        value.0
    }
}

impl From<OrDefault<Self>> for Timestamp {
    fn from(value: OrDefault<Self>) -> Self {
        value.0
    }
}

/// Stores an enum as a small integer, in sort order.
#[macro_export]
#[doc(hidden)]
macro_rules! stored_as_smallint {
    ($name:ty { $($variant:ident = $value:literal),+ $(,)? }) => {
        impl $name {
            /// The code in the database.
            pub const fn code(self) -> i16 {
                match self { $(Self::$variant => $value),+ }
            }
        }
        impl<DB> diesel::serialize::ToSql<diesel::sql_types::SmallInt, DB> for $name
        where
            DB: diesel::backend::Backend,
            i16: diesel::serialize::ToSql<diesel::sql_types::SmallInt, DB>,
        {
            fn to_sql<'b>(&'b self, out: &mut diesel::serialize::Output<'b, '_, DB>) -> diesel::serialize::Result {
                const CODES: &[i16] = &[$($value),+];
                let code = CODES.iter().find(|code| **code == self.code()).ok_or("a code without a variant")?;
                <i16 as diesel::serialize::ToSql<diesel::sql_types::SmallInt, DB>>::to_sql(code, out)
            }
        }
        impl<DB> diesel::deserialize::FromSql<diesel::sql_types::SmallInt, DB> for $name
        where
            DB: diesel::backend::Backend,
            i16: diesel::deserialize::FromSql<diesel::sql_types::SmallInt, DB>,
        {
            fn from_sql(bytes: DB::RawValue<'_>) -> diesel::deserialize::Result<Self> {
                match <i16 as diesel::deserialize::FromSql<diesel::sql_types::SmallInt, DB>>::from_sql(bytes)? {
                    $($value => Ok(Self::$variant),)+
                    other => Err(format!("{other} is not a {}", stringify!($name)).into()),
                }
            }
        }
    };
}

/// An SQL expression with a different text for each database.
#[macro_export]
#[doc(hidden)]
macro_rules! backend_sql {
    ($(#[$doc:meta])* $name:ident: $sql:ty, postgres $postgres:literal, sqlite $sqlite:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;
        impl diesel::expression::Expression for $name {
            type SqlType = $sql;
        }
        impl<QS> diesel::expression::AppearsOnTable<QS> for $name {}
        impl<QS> diesel::expression::SelectableExpression<QS> for $name {}
        impl diesel::expression::ValidGrouping<()> for $name {
            type IsAggregate = diesel::expression::is_aggregate::Never;
        }
        impl diesel::query_builder::QueryId for $name {
            type QueryId = Self;
        }
        impl diesel::query_builder::QueryFragment<diesel::pg::Pg> for $name {
            fn walk_ast<'b>(
                &'b self,
                mut out: diesel::query_builder::AstPass<'_, 'b, diesel::pg::Pg>,
            ) -> diesel::QueryResult<()> {
                out.push_sql($postgres);
                Ok(())
            }
        }
        impl diesel::query_builder::QueryFragment<diesel::sqlite::Sqlite> for $name {
            fn walk_ast<'b>(
                &'b self,
                mut out: diesel::query_builder::AstPass<'_, 'b, diesel::sqlite::Sqlite>,
            ) -> diesel::QueryResult<()> {
                out.push_sql($sqlite);
                Ok(())
            }
        }
    };
}
