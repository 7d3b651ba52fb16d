//! `fasttrack move`: everything in a SQLite file, carried over to an empty PostgreSQL database. Rows arrive as they are,
//! with their ids and keys, so that sessions, links and cursors go on to work there.
//!
//! **Nothing acknowledged is lost**: the file is locked for this process alone, so a server that still has it open stops
//! the move before it begins, and none can open it until the end. **All or nothing**: what is written is one transaction,
//! committed only when every table has been read back and is the same, count and content.
//!
//! **No table or column can be forgotten**: they are read from the catalogue of the target, which the same migrations
//! have made, and compared with those of the file. Both sides of a table are one stream of bytes: rows in the order of
//! their key, in PostgreSQL's binary form. Of it the copy is made, and of it the hashes that are compared.
//!
//! **The log keeps its places.** Events of SQLite are of transaction 0 and stay so: below every transaction of
//! PostgreSQL, therefore settled, and before all that will be written there. The other way round that does not work:
//! SQLite knows no transactions, and its new events would come before the moved ones.

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

use crate::config::{Lookup, kept_in, write_new};
use crate::db::postgres::Server;
use crate::db::types::POSTGRES_EPOCH;
use crate::db::{Location, migrate};
use crate::error::{Error, Result};
use crate::time::Timestamp;

/// About how many bytes are handed on at once.
const CHUNK: usize = 64 * 1024;
/// What PostgreSQL's binary form begins with: its signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What it ends with, in place of a row's count of columns.
const TRAILER: i16 = -1;

/// What was carried over.
#[derive(Debug)]
pub struct Moved {
    /// The tables, in the order in which they were written.
    pub tables: Vec<Checked>,
    /// How long it took.
    pub elapsed: Duration,
}

/// A table that is the same on both sides.
#[derive(Debug, PartialEq, Eq)]
pub struct Checked {
    /// Its name.
    pub name: String,
    /// How many rows it has.
    pub rows: u64,
    /// SHA-256 over its rows.
    pub hash: String,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<24}{:>10}  SHA-256 of the rows, the same on both sides", "table", "rows")?;
        for Checked { name, rows, hash } in &self.tables {
            writeln!(f, "{name:<24}{rows:>10}  {hash}")?;
        }
        let rows: u64 = self.tables.iter().map(|table| table.rows).sum();
        let seconds = self.elapsed.as_secs_f64();
        let speed = rows as f64 / seconds.max(0.001);
        write!(f, "Moved and verified: {rows} rows in {seconds:.1} s, {speed:.0} a second.")
    }
}

/// Carries everything over.
pub async fn run(from: &Location, to: &Location) -> Result<Moved> {
    let (path, url) = match (from, to) {
        (Location::Sqlite(path), Location::Postgres(url)) => (path, url),
        (Location::Sqlite(_), Location::Sqlite(_)) => {
            return refuse("between two SQLite files use `fasttrack backup`, and put the copy in place");
        }
        (Location::Postgres(_), Location::Postgres(_)) => {
            return refuse("between two PostgreSQL databases use pg_dump and pg_restore");
        }
        (Location::Postgres(_), Location::Sqlite(_)) => {
            return refuse(
                "PostgreSQL orders events by transaction, SQLite has none: new events would come before the moved \
                 ones, and no cursor would find them. The move goes from SQLite to PostgreSQL alone",
            );
        }
    };
    let begun = Instant::now();
    let mut source = Source::open(path)?;
    let server = Server::parse(url).map_err(Error::Internal)?;
    migrate::up(to).await?;
    let mut client = server.client().await.map_err(Error::Internal)?;
    let tables = plan(&client, &mut source).await?;
    let tx = client.transaction().await?;
    empty(&tx, &tables).await?;

    let total = tables.iter().map(|table| source.count(&table.name)).sum::<Result<u64>>()?;
    // Nothing is drawn where standard error is no terminal.
    let bar = ProgressBar::new(total * 2);
    bar.set_style(style());
    let mut moved = Vec::with_capacity(tables.len());
    for table in &tables {
        bar.set_message(format!("writing {}", table.name));
        let (back, sent) = send(&tx, source, table.clone(), &bar).await?;
        source = back;
        moved.push(sent);
    }
    for (table, sent) in tables.iter().zip(&moved) {
        bar.set_message(format!("verifying {}", table.name));
        continue_sequences(&tx, &mut source, table).await?;
        let (counted, arrived) = (source.count(&table.name)?, read_back(&tx, table, &bar).await?);
        if counted != sent.rows || arrived != *sent {
            return refuse(format!(
                "{}: {counted} rows in the file, {} sent, {} arrived, or their content differs; nothing was moved",
                table.name, sent.rows, arrived.rows
            ));
        }
    }
    tx.commit().await?;
    bar.finish_and_clear();
    // So that the first queries are planned well.
    client.batch_execute("ANALYZE").await?;
    Ok(Moved { tables: moved, elapsed: begun.elapsed() })
}

/// Has the keys go along, without which every session would end, and says what there is to do.
pub fn carry_keys(lookup: Lookup<'_>, from: &Location, to: &Location) -> String {
    let (Some(old), Some(new)) = (kept_in(lookup, from), kept_in(lookup, to)) else {
        return "Keep SECRET_KEY and REFRESH_SECRET_KEY as they are, and sessions go on.".to_owned();
    };
    let (old_name, new_name) = (old.display(), new.display());
    if old == new {
        return format!("Keep the keys in {old_name}, and sessions go on.");
    }
    match copy_new(&old, &new) {
        Ok(()) => format!("The keys are in {new_name} too: keep them there, or set SECRETS_FILE, and sessions go on."),
        Err(error) => format!(
            "The keys in {old_name} could not be copied to {new_name}: {error}. Have the server find them by SECRETS_FILE, \
             or every session ends."
        ),
    }
}

/// Copies a file to where there is none yet, readable by its owner alone. If the same is there already, that is fine.
fn copy_new(from: &Path, to: &Path) -> io::Result<()> {
    let keys = std::fs::read(from)?;
    if std::fs::read(to).is_ok_and(|there| there == keys) {
        return Ok(());
    }
    write_new(to, &keys)
}

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::internal(why.into()))
}

fn style() -> ProgressStyle {
    let style = ProgressStyle::with_template("{bar:32} {percent:>3} % {msg}, {eta} to go");
    style.unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// How a column is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Uuid,
    Text,
    Binary,
    Instant,
    Bool,
    SmallInt,
    Integer,
    BigInt,
}

impl Kind {
    /// By PostgreSQL's name of the type.
    fn named(name: &str) -> Option<Self> {
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

    /// Writes a value in PostgreSQL's binary form, its length before it; nothing if the column cannot have it.
    fn put(self, value: Option<SqliteValue<'_, '_, '_>>, out: &mut BytesMut) -> Option<()> {
        let Some(mut value) = value else {
            out.put_i32(-1);
            return Some(());
        };
        match (self, value.value_type()?) {
            (Self::Text, SqliteType::Text) => put(value.read_text().as_bytes(), out)?,
            (Self::Binary, SqliteType::Binary) => put(value.read_blob(), out)?,
            (Self::Uuid, SqliteType::Binary) => put(<&[u8; 16]>::try_from(value.read_blob()).ok()?, out)?,
            (kind, SqliteType::Long) => {
                let number = value.read_long();
                match kind {
                    // `infinity` is the largest value on both sides.
                    Self::Instant if number == Timestamp::MAX.micros() => put(&i64::MAX.to_be_bytes(), out)?,
                    Self::Instant => put(&number.checked_sub(POSTGRES_EPOCH)?.to_be_bytes(), out)?,
                    Self::Bool => put(&[u8::try_from(number).ok().filter(|bit| *bit < 2)?], out)?,
                    Self::SmallInt => put(&i16::try_from(number).ok()?.to_be_bytes(), out)?,
                    Self::Integer => put(&i32::try_from(number).ok()?.to_be_bytes(), out)?,
                    Self::BigInt => put(&number.to_be_bytes(), out)?,
                    Self::Text | Self::Binary | Self::Uuid => return None,
                }
            }
            _ => return None,
        }
        Some(())
    }
}

fn put(bytes: &[u8], out: &mut BytesMut) -> Option<()> {
    out.put_i32(i32::try_from(bytes.len()).ok()?);
    out.put_slice(bytes);
    Some(())
}

/// A table as the target's catalogue has it.
#[derive(Clone, Debug)]
struct Table {
    name: String,
    columns: Vec<(String, Kind)>,
    /// The columns of its primary key.
    key: Vec<String>,
    /// The tables that its foreign keys name.
    needs: Vec<String>,
    /// Columns that count by themselves, with their sequences.
    sequences: Vec<(String, String)>,
}

impl Table {
    fn names(&self) -> String {
        list(self.columns.iter().map(|(name, _)| quoted(name)))
    }

    /// The order of the rows. Text is ordered byte by byte on SQLite, and must be on PostgreSQL.
    fn order(&self, collate: &str) -> String {
        let kind = |key: &String| self.columns.iter().find(|(name, _)| name == key).map(|(_, kind)| *kind);
        list(self.key.iter().map(|key| match kind(key) {
            Some(Kind::Text) => format!("{}{collate}", quoted(key)),
            _ => quoted(key),
        }))
    }
}

fn list(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The versions that a database has been brought to, on either side.
const MIGRATIONS: &str = "SELECT version AS name FROM __diesel_schema_migrations ORDER BY version";

/// The tables of the file.
const TABLES: &str = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
    AND name <> '__diesel_schema_migrations' ORDER BY name";

/// The tables of the target. Generated columns are left out: they come by themselves.
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

/// The tables to move, each after those that it refers to.
async fn plan(client: &Client, source: &mut Source) -> Result<Vec<Table>> {
    let migrations = client.query(MIGRATIONS, &[]).await?;
    if source.names(MIGRATIONS)? != migrations.iter().map(|row| row.get(0)).collect::<Vec<String>>() {
        return refuse(
            "the file is of another version than this program: bring it up to date by `fasttrack migrate`, with DATABASE_URL naming it",
        );
    }
    let mut waiting = Vec::new();
    for row in client.query(CATALOGUE, &[]).await? {
        let (name, columns, kinds): (String, Vec<String>, Vec<String>) = (row.get(0), row.get(1), row.get(2));
        let mut sequences = Vec::new();
        for column in &columns {
            let sequence = "SELECT pg_get_serial_sequence($1, $2)";
            let sequence = client.query_one(sequence, &[&quoted(&name), column]).await?;
            if let Some(sequence) = sequence.get(0) {
                sequences.push((column.clone(), sequence));
            }
        }
        let kinds = columns.into_iter().zip(kinds).map(|(column, kind)| match Kind::named(&kind) {
            Some(kind) => Ok((column, kind)),
            None => refuse(format!("{name}.{column} is of the type {kind}, which cannot be moved")),
        });
        let columns = kinds.collect::<Result<_>>()?;
        waiting.push(Table { name, columns, key: row.get(3), needs: row.get(4), sequences });
    }
    let here: Vec<&str> = waiting.iter().map(|table| table.name.as_str()).collect();
    let there = source.names(TABLES)?;
    if here != there {
        let (there, here) = (there.join(", "), here.join(", "));
        return refuse(format!("the file has the tables {there}; the target, which must have the same, {here}"));
    }
    let mut tables: Vec<Table> = Vec::new();
    while !waiting.is_empty() {
        let known = |name: &String| tables.iter().any(|table| table.name == *name);
        let (ready, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|table| table.needs.iter().all(known));
        if ready.is_empty() {
            return refuse("tables refer to each other in a circle");
        }
        tables.extend(ready);
        waiting = rest;
    }
    Ok(tables)
}

/// Keeps everybody else out of the target, and empties it of what the migrations have put in: nobody has used it.
async fn empty(tx: &Transaction<'_>, tables: &[Table]) -> Result<()> {
    let names = list(tables.iter().map(|table| quoted(&table.name)));
    tx.batch_execute(&format!("SET LOCAL lock_timeout = '10s'; LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE")).await?;
    if tx.query_one("SELECT EXISTS (SELECT FROM users)", &[]).await?.get(0) {
        return refuse("the target is in use: it has users. Name an empty database");
    }
    Ok(tx.batch_execute(&format!("TRUNCATE {names}")).await?)
}

/// Writes a table to the target.
async fn send(tx: &Transaction<'_>, source: Source, table: Table, bar: &ProgressBar) -> Result<(Source, Checked)> {
    // Frozen: written in the transaction that has emptied it, no row has to be visited again.
    let copy = format!("COPY {} ({}) FROM STDIN (FORMAT binary, FREEZE)", quoted(&table.name), table.names());
    let (chunks, mut received) = mpsc::channel(16);
    let reading = tokio::task::spawn_blocking(move || source.read(&table, &chunks));
    let mut sink = std::pin::pin!(tx.copy_in::<_, Bytes>(&copy).await?);
    while let Some((chunk, rows)) = received.recv().await {
        sink.send(chunk).await?;
        bar.inc(rows);
    }
    // An error of the source first: without it the copy would look complete.
    let (source, sent) = reading.await.map_err(Error::internal)??;
    let written = sink.finish().await?;
    if written != sent.rows {
        return refuse(format!("{}: {} rows sent, {written} written", sent.name, sent.rows));
    }
    Ok((source, sent))
}

/// What the target has of a table now.
async fn read_back(tx: &Transaction<'_>, table: &Table, bar: &ProgressBar) -> Result<Checked> {
    let name = quoted(&table.name);
    let counted: i64 = tx.query_one(&format!("SELECT count(*) FROM {name}"), &[]).await?.get(0);
    let (names, order) = (table.names(), table.order(" COLLATE \"C\""));
    let copy = format!("COPY (SELECT {names} FROM {name} ORDER BY {order}) TO STDOUT (FORMAT binary)");
    let mut stream = std::pin::pin!(tx.copy_out(&copy).await?);
    let mut hash = Context::new(&SHA256);
    while let Some(row) = stream.next().await {
        hash.update(&row?);
        bar.inc(1);
    }
    Ok(Checked { name: table.name.clone(), rows: counted.unsigned_abs(), hash: hex(hash) })
}

/// New rows are numbered from where the file had come to, also if its last rows are gone.
async fn continue_sequences(tx: &Transaction<'_>, source: &mut Source, table: &Table) -> Result<()> {
    for (column, sequence) in &table.sequences {
        let reached = source.reached(&table.name)?;
        let set = format!(
            "SELECT setval($1::text::regclass, greatest($2, (SELECT max({}) FROM {}), 1))",
            quoted(column),
            quoted(&table.name)
        );
        tx.query_one(&set, &[sequence, &reached]).await?;
    }
    Ok(())
}

fn hex(hash: Context) -> String {
    hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

#[derive(QueryableByName)]
struct Name {
    #[diesel(sql_type = Text)]
    name: String,
}

/// The file, locked: nobody else reads or writes it.
struct Source(SqliteConnection);

impl Source {
    fn open(path: &Path) -> Result<Self> {
        if !path.is_file() {
            return refuse(format!("there is no file {}", path.display()));
        }
        let mut conn = SqliteConnection::establish(&path.to_string_lossy()).map_err(Error::internal)?;
        // In exclusive mode SQLite opens a write-ahead log only if no other process has the file open.
        let lock = "PRAGMA busy_timeout = 2000; PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE";
        match conn.batch_execute(lock) {
            Ok(()) => Ok(Self(conn)),
            Err(error) if error.to_string().contains("locked") => refuse(format!(
                "{} is in use. Stop the server first, so that nothing is written that would be left behind",
                path.display()
            )),
            Err(error) => refuse(format!("{}: {error}", path.display())),
        }
    }

    /// What a query answers in its one column, `name`.
    fn names(&mut self, query: &str) -> Result<Vec<String>> {
        let names: Vec<Name> = sql_query(query).load(&mut self.0)?;
        Ok(names.into_iter().map(|row| row.name).collect())
    }

    fn count(&mut self, table: &str) -> Result<u64> {
        let count = format!("SELECT count(*) AS number FROM {}", quoted(table));
        Ok(sql_query(count).get_result::<Number>(&mut self.0)?.number.unsigned_abs())
    }

    /// The highest number that a table's own counter has given.
    fn reached(&mut self, table: &str) -> Result<i64> {
        let reached = sql_query("SELECT coalesce(max(seq), 0) AS number FROM sqlite_sequence WHERE name = ?");
        Ok(reached.bind::<Text, _>(table).get_result::<Number>(&mut self.0)?.number)
    }

    /// Reads a table in PostgreSQL's binary form, a chunk of so many rows at a time.
    fn read(mut self, table: &Table, chunks: &mpsc::Sender<(Bytes, u64)>) -> Result<(Self, Checked)> {
        let select = format!("SELECT {} FROM {} ORDER BY {}", table.names(), quoted(&table.name), table.order(""));
        let width = i16::try_from(table.columns.len()).map_err(Error::internal)?;
        let (mut rows, mut told) = (0, 0);
        let mut hash = Context::new(&SHA256);
        let mut out = BytesMut::with_capacity(2 * CHUNK);
        out.put_slice(HEADER);
        let mut hand_on = |out: &mut BytesMut, rows: u64| {
            let chunk = out.split().freeze();
            hash.update(&chunk);
            // If nobody receives any more, whoever did has the reason.
            chunks.blocking_send((chunk, rows)).map_err(|_| Error::internal("the copy was broken off"))
        };
        for row in self.0.load(sql_query(select))? {
            let row = row?;
            out.put_i16(width);
            for (index, (column, kind)) in table.columns.iter().enumerate() {
                let field = row.get(index).ok_or_else(|| Error::internal("a row with too few columns"))?;
                if kind.put(field.value(), &mut out).is_none() {
                    return refuse(format!("{}.{column} of row {} is no {kind:?}", table.name, rows + 1));
                }
            }
            rows += 1;
            if out.len() >= CHUNK {
                hand_on(&mut out, rows - told)?;
                told = rows;
            }
        }
        out.put_i16(TRAILER);
        hand_on(&mut out, rows - told)?;
        let checked = Checked { name: table.name.clone(), rows, hash: hex(hash) };
        Ok((self, checked))
    }
}
