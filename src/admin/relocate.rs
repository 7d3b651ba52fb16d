//! `fasttrack move`: copies a SQLite database to an empty PostgreSQL database. Rows are copied
//! unchanged, with their ids, so sessions, links and cursors remain valid.
//!
//! **No acknowledged write is lost.** The file is locked exclusively: the move refuses to start
//! while a server has it open, and no server can open it until the end. **All or nothing.** The
//! target is written in one transaction, which commits only after each table was read back with the
//! same row count and content.
//!
//! **No table or column is forgotten.** Both come from the catalog of the target, which the same
//! migrations created, and are compared with the file. Each table is one byte stream: rows in key
//! order, in the binary format of PostgreSQL's `COPY`. The same stream is copied and hashed.
//!
//! **Event positions stay valid.** Events from SQLite have transaction id 0 and keep it: below
//! every transaction of PostgreSQL, thus settled, and before all new events. The reverse is
//! impossible: SQLite has no transaction ids, so its new events would sort before the moved ones.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{BufMut, Bytes, BytesMut};
use diesel::connection::{LoadConnection, SimpleConnection};
use diesel::row::{Field, Row};
use diesel::sql_types::{BigInt, Text};
use diesel::sqlite::{SqliteType, SqliteValue};
use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query};
use futures_util::{SinkExt, StreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;
use tokio_postgres::{Client, Transaction};

use crate::config::{Lookup, create_private_file, keys_file};
use crate::db::postgres::PgConnector;
use crate::db::types::POSTGRES_EPOCH_MICROS;
use crate::db::{Location, migrate};
use crate::error::{Error, Result};
use crate::time::Timestamp;

/// Approximate size of a chunk in bytes.
const CHUNK_BYTES: usize = 64 * 1024;
/// Header of the binary `COPY` format: signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Trailer of the binary `COPY` format, in place of a row's field count.
const TRAILER: i16 = -1;

/// The result of a move.
#[derive(Debug)]
pub struct MoveReport {
    /// The tables in the order of copying.
    pub tables: Vec<VerifiedTable>,
    pub elapsed: Duration,
}

/// The row count and hash of a table.
#[derive(Debug, PartialEq, Eq)]
pub struct VerifiedTable {
    pub name: String,
    pub rows: u64,
    /// SHA-256 of the rows in binary `COPY` format, in hexadecimal.
    pub hash: String,
}

impl fmt::Display for MoveReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24}{:>10}  SHA-256 of the rows, identical on both sides",
            "table", "rows"
        )?;
        for VerifiedTable { name, rows, hash } in &self.tables {
            writeln!(f, "{name:<24}{rows:>10}  {hash}")?;
        }
        let rows: u64 = self.tables.iter().map(|table| table.rows).sum();
        let seconds = self.elapsed.as_secs_f64();
        let speed = rows as f64 / seconds.max(0.001);
        write!(
            f,
            "Moved and verified {rows} rows in {seconds:.1} s ({speed:.0} rows/s)."
        )
    }
}

/// Copies everything and verifies the copy.
pub async fn run(from: &Location, to: &Location) -> Result<MoveReport> {
    let (path, url) = match (from, to) {
        (Location::Sqlite(path), Location::Postgres(url)) => (path, url),
        (Location::Sqlite(_), Location::Sqlite(_)) => {
            return fail(
                "to copy an SQLite file use `fasttrack backup`, then put the copy in place",
            );
        }
        (Location::Postgres(_), Location::Postgres(_)) => {
            return fail("to copy a PostgreSQL database use pg_dump and pg_restore");
        }
        (Location::Postgres(_), Location::Sqlite(_)) => {
            return fail(
                "a move is possible only from SQLite to PostgreSQL. PostgreSQL orders events by transaction id, which \
                 SQLite lacks: new events would sort before the moved ones, and clients would miss them",
            );
        }
    };
    let started = Instant::now();
    let mut source = SqliteSource::open(path)?;
    let server = PgConnector::parse(url).map_err(Error::Internal)?;
    migrate::up(to).await?;
    let mut client = server.client().await.map_err(Error::Internal)?;
    let tables = plan_tables(&client, &mut source).await?;
    let tx = client.transaction().await?;
    truncate(&tx, &tables).await?;

    let total = tables
        .iter()
        .map(|table| source.count(&table.name))
        .sum::<Result<u64>>()?;
    // Draws nothing if standard error is not a terminal.
    let bar = ProgressBar::new(total * 2);
    bar.set_style(progress_style());
    let mut moved = Vec::with_capacity(tables.len());
    for table in &tables {
        bar.set_message(format!("writing {}", table.name));
        let (back, sent) = copy_table(&tx, source, table.clone(), &bar).await?;
        source = back;
        moved.push(sent);
    }
    for (table, sent) in tables.iter().zip(&moved) {
        bar.set_message(format!("verifying {}", table.name));
        continue_sequences(&tx, &mut source, table).await?;
        let (counted, arrived) = (
            source.count(&table.name)?,
            read_back(&tx, table, &bar).await?,
        );
        if counted != sent.rows || arrived != *sent {
            return fail(format!(
                "{}: {counted} rows in the file, {} sent, {} received, or their content differs; nothing was moved",
                table.name, sent.rows, arrived.rows
            ));
        }
    }
    tx.commit().await?;
    bar.finish_and_clear();
    // Gives the planner statistics for the first queries.
    client.batch_execute("ANALYZE").await?;
    Ok(MoveReport {
        tables: moved,
        elapsed: started.elapsed(),
    })
}

/// Copies the key file, without which all sessions would end, and returns instructions.
pub fn copy_keys(lookup: Lookup<'_>, from: &Location, to: &Location) -> String {
    let (Some(old), Some(new)) = (keys_file(lookup, from), keys_file(lookup, to)) else {
        return "Keep SECRET_KEY and REFRESH_SECRET_KEY unchanged, and sessions stay valid."
            .to_owned();
    };
    let (old_name, new_name) = (old.display(), new.display());
    if old == new {
        return format!("Keep the keys in {old_name}, and sessions stay valid.");
    }
    match copy_new(&old, &new) {
        Ok(()) => {
            format!("The keys were copied to {new_name}. Keep them there, and sessions stay valid.")
        }
        Err(error) => format!(
            "The keys in {old_name} could not be copied to {new_name}: {error}. Set SECRETS_FILE to their location, or \
             every session ends."
        ),
    }
}

/// Copies a file to a new path with mode 0600. Succeeds if an identical file exists already.
fn copy_new(from: &Path, to: &Path) -> io::Result<()> {
    let keys = std::fs::read(from)?;
    if std::fs::read(to).is_ok_and(|there| there == keys) {
        return Ok(());
    }
    create_private_file(to, &keys)
}

fn fail<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::internal(why.into()))
}

fn progress_style() -> ProgressStyle {
    let style = ProgressStyle::with_template("{bar:32} {percent:>3} % {msg}, {eta} left");
    style.unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ColumnType {
    Uuid,
    Text,
    Binary,
    Instant,
    Bool,
    SmallInt,
    Integer,
    BigInt,
}

impl ColumnType {
    /// Looks up PostgreSQL's name of the type.
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "uuid" => Self::Uuid,
            "text" => Self::Text,
            "bytea" => Self::Binary,
            "timestamptz" => Self::Instant,
            "bool" => Self::Bool,
            "int2" => Self::SmallInt,
            "int4" => Self::Integer,
            "int8" => Self::BigInt,
            _ => return None,
        })
    }

    /// Appends a value in binary `COPY` format, prefixed with its length. `None` if the value does
    /// not fit the type of the column.
    fn encode(self, value: Option<SqliteValue<'_, '_, '_>>, out: &mut BytesMut) -> Option<()> {
        let Some(mut value) = value else {
            out.put_i32(-1);
            return Some(());
        };
        match (self, value.value_type()?) {
            (Self::Text, SqliteType::Text) => push_value(value.read_text().as_bytes(), out)?,
            (Self::Binary, SqliteType::Binary) => push_value(value.read_blob(), out)?,
            (Self::Uuid, SqliteType::Binary) => {
                push_value(<&[u8; 16]>::try_from(value.read_blob()).ok()?, out)?
            }
            (kind, SqliteType::Long) => {
                let number = value.read_long();
                match kind {
                    // `Timestamp::MAX` is PostgreSQL's `infinity`.
                    Self::Instant if number == Timestamp::MAX.micros() => {
                        push_value(&i64::MAX.to_be_bytes(), out)?
                    }
                    Self::Instant => push_value(
                        &number.checked_sub(POSTGRES_EPOCH_MICROS)?.to_be_bytes(),
                        out,
                    )?,
                    Self::Bool => {
                        push_value(&[u8::try_from(number).ok().filter(|bit| *bit < 2)?], out)?
                    }
                    Self::SmallInt => push_value(&i16::try_from(number).ok()?.to_be_bytes(), out)?,
                    Self::Integer => push_value(&i32::try_from(number).ok()?.to_be_bytes(), out)?,
                    Self::BigInt => push_value(&number.to_be_bytes(), out)?,
                    Self::Text | Self::Binary | Self::Uuid => return None,
                }
            }
            _ => return None,
        }
        Some(())
    }
}

fn push_value(bytes: &[u8], out: &mut BytesMut) -> Option<()> {
    out.put_i32(i32::try_from(bytes.len()).ok()?);
    out.put_slice(bytes);
    Some(())
}

/// A table in the catalog of the target.
#[derive(Clone, Debug)]
struct Table {
    name: String,
    columns: Vec<(String, ColumnType)>,
    /// The columns of its primary key.
    key: Vec<String>,
    /// The tables referenced by foreign keys.
    references: Vec<String>,
    /// Columns with a sequence, and its name.
    sequences: Vec<(String, String)>,
}

impl Table {
    fn column_list(&self) -> String {
        comma_separated(self.columns.iter().map(|(name, _)| quote_identifier(name)))
    }

    /// The `ORDER BY` list. SQLite compares text by bytes, so PostgreSQL has to do so, too.
    fn order_by(&self, collate: &str) -> String {
        let kind = |key: &String| {
            self.columns
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, kind)| *kind)
        };
        comma_separated(self.key.iter().map(|key| match kind(key) {
            Some(ColumnType::Text) => format!("{}{collate}", quote_identifier(key)),
            _ => quote_identifier(key),
        }))
    }
}

fn comma_separated(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The applied migrations, on either side.
const MIGRATIONS: &str = "SELECT version AS name FROM __diesel_schema_migrations ORDER BY version";

/// The tables of the file.
const TABLES: &str = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
    AND name <> '__diesel_schema_migrations' ORDER BY name";

/// The tables of the target, without generated columns, which PostgreSQL computes.
const CATALOGUE: &str = "
    SELECT c.relname::text,
        array(SELECT a.attname::text FROM pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
              ORDER BY a.attnum),
        array(SELECT t.typname::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
              ORDER BY a.attnum),
        array(SELECT a.attname::text FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
              JOIN pg_attribute a ON a.attnum = k.attnum
              WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid
              ORDER BY k.place),
        array(SELECT r.relname::text FROM pg_constraint f JOIN pg_class r ON r.oid = f.confrelid
              WHERE f.conrelid = c.oid AND f.contype = 'f' AND f.confrelid <> c.oid)
    FROM pg_class c
    WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND c.relname <> '__diesel_schema_migrations'
    ORDER BY c.relname";

/// The tables to move, each after the tables it references.
async fn plan_tables(client: &Client, source: &mut SqliteSource) -> Result<Vec<Table>> {
    let migrations = client.query(MIGRATIONS, &[]).await?;
    if source.names(MIGRATIONS)?
        != migrations
            .iter()
            .map(|row| row.get(0))
            .collect::<Vec<String>>()
    {
        return fail(
            "the file has another schema version: set DATABASE_URL to it and run `fasttrack migrate`",
        );
    }
    let mut waiting = Vec::new();
    for row in client.query(CATALOGUE, &[]).await? {
        let (name, columns, kinds): (String, Vec<String>, Vec<String>) =
            (row.get(0), row.get(1), row.get(2));
        let mut sequences = Vec::new();
        for column in &columns {
            let sequence = "SELECT pg_get_serial_sequence($1, $2)";
            let sequence = client
                .query_one(sequence, &[&quote_identifier(&name), column])
                .await?;
            if let Some(sequence) = sequence.get(0) {
                sequences.push((column.clone(), sequence));
            }
        }
        let kinds =
            columns.into_iter().zip(kinds).map(|(column, kind)| {
                match ColumnType::from_name(&kind) {
                    Some(kind) => Ok((column, kind)),
                    None => fail(format!(
                        "{name}.{column} has type {kind}, which cannot be moved"
                    )),
                }
            });
        let columns = kinds.collect::<Result<_>>()?;
        waiting.push(Table {
            name,
            columns,
            key: row.get(3),
            references: row.get(4),
            sequences,
        });
    }
    let here: Vec<&str> = waiting.iter().map(|table| table.name.as_str()).collect();
    let there = source.names(TABLES)?;
    if here != there {
        let (there, here) = (there.join(", "), here.join(", "));
        return fail(format!(
            "the tables differ. The file has {there}; the target has {here}"
        ));
    }
    let mut tables: Vec<Table> = Vec::new();
    while !waiting.is_empty() {
        let known = |name: &String| tables.iter().any(|table| table.name == *name);
        let (ready, rest): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .partition(|table| table.references.iter().all(known));
        if ready.is_empty() {
            return fail("foreign keys between the tables form a cycle");
        }
        tables.extend(ready);
        waiting = rest;
    }
    Ok(tables)
}

/// Locks all tables of the target, refuses one with users, and deletes the rows that migrations
/// inserted.
async fn truncate(tx: &Transaction<'_>, tables: &[Table]) -> Result<()> {
    let names = comma_separated(tables.iter().map(|table| quote_identifier(&table.name)));
    tx.batch_execute(&format!(
        "SET LOCAL lock_timeout = '10s'; LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"
    ))
    .await?;
    if tx
        .query_one("SELECT EXISTS (SELECT FROM users)", &[])
        .await?
        .get(0)
    {
        return fail("the target is in use: it has users. Choose an empty database");
    }
    Ok(tx.batch_execute(&format!("TRUNCATE {names}")).await?)
}

/// Copies a table to the target.
async fn copy_table(
    tx: &Transaction<'_>,
    source: SqliteSource,
    table: Table,
    bar: &ProgressBar,
) -> Result<(SqliteSource, VerifiedTable)> {
    // FREEZE spares a later VACUUM. It is allowed because this transaction truncated the table.
    let copy = format!(
        "COPY {} ({}) FROM STDIN (FORMAT binary, FREEZE)",
        quote_identifier(&table.name),
        table.column_list()
    );
    let (chunks, mut received) = mpsc::channel(16);
    let reading = tokio::task::spawn_blocking(move || source.read(&table, &chunks));
    let mut sink = std::pin::pin!(tx.copy_in::<_, Bytes>(&copy).await?);
    while let Some((chunk, rows)) = received.recv().await {
        sink.send(chunk).await?;
        bar.inc(rows);
    }
    // Check for an error of the source first: the copy itself looks complete without the rest.
    let (source, sent) = reading.await.map_err(Error::internal)??;
    let written = sink.finish().await?;
    if written != sent.rows {
        return fail(format!(
            "{}: {} rows sent, {written} written",
            sent.name, sent.rows
        ));
    }
    Ok((source, sent))
}

/// Reads a table back from the target.
async fn read_back(
    tx: &Transaction<'_>,
    table: &Table,
    bar: &ProgressBar,
) -> Result<VerifiedTable> {
    let name = quote_identifier(&table.name);
    let counted: i64 = tx
        .query_one(&format!("SELECT count(*) FROM {name}"), &[])
        .await?
        .get(0);
    let (names, order) = (table.column_list(), table.order_by(" COLLATE \"C\""));
    let copy =
        format!("COPY (SELECT {names} FROM {name} ORDER BY {order}) TO STDOUT (FORMAT binary)");
    let mut stream = std::pin::pin!(tx.copy_out(&copy).await?);
    let mut hash = Context::new(&SHA256);
    while let Some(row) = stream.next().await {
        hash.update(&row?);
        bar.inc(1);
    }
    Ok(VerifiedTable {
        name: table.name.clone(),
        rows: counted.unsigned_abs(),
        hash: hex(hash),
    })
}

/// Sets the sequences to the counters of the file, which can exceed the largest key in use.
async fn continue_sequences(
    tx: &Transaction<'_>,
    source: &mut SqliteSource,
    table: &Table,
) -> Result<()> {
    for (column, sequence) in &table.sequences {
        let reached = source.sequence_value(&table.name)?;
        let set = format!(
            "SELECT setval($1::text::regclass, greatest($2, (SELECT max({}) FROM {}), 1))",
            quote_identifier(column),
            quote_identifier(&table.name)
        );
        tx.query_one(&set, &[sequence, &reached]).await?;
    }
    Ok(())
}

fn hex(hash: Context) -> String {
    hash.finish()
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[derive(QueryableByName)]
struct NumberRow {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

#[derive(QueryableByName)]
struct NameRow {
    #[diesel(sql_type = Text)]
    name: String,
}

/// The SQLite file, locked exclusively.
struct SqliteSource(SqliteConnection);

impl SqliteSource {
    fn open(path: &Path) -> Result<Self> {
        if !path.is_file() {
            return fail(format!("{}: no such file", path.display()));
        }
        let mut conn =
            SqliteConnection::establish(&path.to_string_lossy()).map_err(Error::internal)?;
        // In exclusive mode SQLite opens a write-ahead log only if no other process has the file
        // open.
        let lock = "PRAGMA busy_timeout = 2000; PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE";
        match conn.batch_execute(lock) {
            Ok(()) => Ok(Self(conn)),
            Err(error) if error.to_string().contains("locked") => fail(format!(
                "{} is in use. Stop the server first, so that no write is lost",
                path.display()
            )),
            Err(error) => fail(format!("{}: {error}", path.display())),
        }
    }

    /// The column `name` of a query.
    fn names(&mut self, query: &str) -> Result<Vec<String>> {
        let names: Vec<NameRow> = sql_query(query).load(&mut self.0)?;
        Ok(names.into_iter().map(|row| row.name).collect())
    }

    fn count(&mut self, table: &str) -> Result<u64> {
        let count = format!("SELECT count(*) AS number FROM {}", quote_identifier(table));
        Ok(sql_query(count)
            .get_result::<NumberRow>(&mut self.0)?
            .number
            .unsigned_abs())
    }

    /// The highest key that the table's AUTOINCREMENT counter has assigned.
    fn sequence_value(&mut self, table: &str) -> Result<i64> {
        let reached =
            sql_query("SELECT coalesce(max(seq), 0) AS number FROM sqlite_sequence WHERE name = ?");
        Ok(reached
            .bind::<Text, _>(table)
            .get_result::<NumberRow>(&mut self.0)?
            .number)
    }

    /// Reads a table in binary `COPY` format. Sends chunks with the number of rows in each.
    fn read(
        mut self,
        table: &Table,
        chunks: &mpsc::Sender<(Bytes, u64)>,
    ) -> Result<(Self, VerifiedTable)> {
        let select = format!(
            "SELECT {} FROM {} ORDER BY {}",
            table.column_list(),
            quote_identifier(&table.name),
            table.order_by("")
        );
        let width = i16::try_from(table.columns.len()).map_err(Error::internal)?;
        let (mut rows, mut reported) = (0, 0);
        let mut hash = Context::new(&SHA256);
        let mut out = BytesMut::with_capacity(2 * CHUNK_BYTES);
        out.put_slice(HEADER);
        let mut hand_on = |out: &mut BytesMut, rows: u64| {
            let chunk = out.split().freeze();
            hash.update(&chunk);
            // The receiver reports the cause if it has stopped.
            chunks
                .blocking_send((chunk, rows))
                .map_err(|_| Error::internal("the copy was aborted"))
        };
        for row in self.0.load(sql_query(select))? {
            let row = row?;
            out.put_i16(width);
            for (index, (column, kind)) in table.columns.iter().enumerate() {
                let field = row
                    .get(index)
                    .ok_or_else(|| Error::internal("a row has too few columns"))?;
                if kind.encode(field.value(), &mut out).is_none() {
                    return fail(format!(
                        "{}.{column} of row {} is not a {kind:?}",
                        table.name,
                        rows + 1
                    ));
                }
            }
            rows += 1;
            if out.len() >= CHUNK_BYTES {
                hand_on(&mut out, rows - reported)?;
                reported = rows;
            }
        }
        out.put_i16(TRAILER);
        hand_on(&mut out, rows - reported)?;
        let checked = VerifiedTable {
            name: table.name.clone(),
            rows,
            hash: hex(hash),
        };
        Ok((self, checked))
    }
}
