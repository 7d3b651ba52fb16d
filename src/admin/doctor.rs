//! `fasttrack doctor`: checks the settings and every service they refer to.
//!
//! Each check connects as the server would, reports one line, changes nothing, and times out after
//! a few seconds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::sql_types::Text;
use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query};
use lettre::{AsyncSmtpTransport, Tokio1Executor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_postgres::Client;

use super::backup::check_integrity;
use super::report::Report;
use crate::config::{Config, Lookup, Secret, keys_file};
use crate::db::postgres::PgConnector;
use crate::db::{Db, Location, migrate};
use crate::error::{Error, Result};
use crate::store::{mail, user};
use crate::telemetry;
use crate::time::Clock;

/// Timeout of a check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// Minimum free disk space in bytes.
const MIN_FREE_BYTES: u64 = 1 << 30;
/// A larger write-ahead log, in bytes, indicates that something blocks checkpoints.
const MAX_WAL_BYTES: u64 = 256 << 20;
/// Maximum clock skew in seconds. Beyond it, instances disagree about tokens and lockouts.
const MAX_CLOCK_SKEW_SECONDS: f64 = 2.0;

/// Runs all checks.
pub async fn run(config: &Config, lookup: Lookup<'_>, clock: &Clock, report: &mut Report) {
    if let Some(path) = keys_file(lookup, &config.database) {
        check_permissions(&path, "the keys", report);
    }
    let there = match &config.database {
        Location::Sqlite(path) => check_sqlite(path, report).await,
        Location::Postgres(url) => check_postgres(url, config, clock, report).await,
    };
    match there {
        Ok(true) => {
            if let Err(error) = check_contents(config, report).await {
                report.fail(format!("the database: {}", error_text(error)));
            }
        }
        Ok(false) => {}
        Err(error) => report.fail(format!("the database: {}", error_text(error))),
    }
    check_redis(config, report).await;
    check_smtp(config.smtp_url.as_ref(), report).await;
    check_collector(config, report).await;
    check_port(config.listen, report).await;
}

fn error_text(error: Error) -> String {
    match error {
        Error::Internal(cause) => cause.to_string(),
        other => other.into_client().1.into_owned(),
    }
}

/// Checks that only the owner can read a file.
#[cfg_attr(
    not(unix),
    expect(unused_variables, reason = "file modes exist on Unix only")
)]
fn check_permissions(path: &Path, content: &str, report: &mut Report) {
    #[cfg(unix)]
    if let Ok(metadata) = path.metadata() {
        use std::os::unix::fs::PermissionsExt;
        let mode = metadata.permissions().mode() & 0o777;
        let path = path.display();
        report.check(
            mode & 0o077 == 0,
            format!("only the owner can read {path}"),
            format!(
                "{path} has mode {mode:o}: other users can read {content}. Run `chmod 600 {path}`"
            ),
        );
    }
}

#[derive(QueryableByName)]
struct TextRow {
    #[diesel(sql_type = Text)]
    text: String,
}

/// Checks specific to SQLite. Returns whether the database has tables.
async fn check_sqlite(path: &Path, report: &mut Report) -> Result<bool> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let bytes = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
    let needed = MIN_FREE_BYTES.max(2 * bytes(path));
    check_disk_space(directory, needed, report);
    if !path.exists() {
        report.ok(format!(
            "{} does not exist yet: the first start creates it",
            path.display()
        ));
        return Ok(false);
    }
    check_permissions(path, "the database", report);
    let log = bytes(Path::new(&format!("{}-wal", path.display())));
    if log > MAX_WAL_BYTES {
        report.warn(format!(
            "the write-ahead log has {} MiB: a long-running read blocks checkpoints. Restart the server",
            log >> 20
        ));
    }
    let file = path.to_string_lossy().into_owned();
    let inspected = tokio::task::spawn_blocking(move || inspect_file(&file)).await;
    let (version, mode, found, tables) = inspected.map_err(Error::internal)??;
    report.ok(format!(
        "SQLite {version}, {}, {} KiB",
        path.display(),
        bytes(path) >> 10
    ));
    report.check(
        mode == "wal",
        "journal_mode is WAL and the server uses synchronous = FULL: an acknowledged write survives a power cut",
        format!("journal_mode is {mode}: the next start of the server sets WAL"),
    );
    if found.is_empty() {
        report.ok("quick_check and foreign_key_check find nothing");
    }
    for problem in found {
        report.fail(format!(
            "{problem}. Restore a backup, or recover data with `sqlite3 … .recover`"
        ));
    }
    if !tables {
        report.ok("the file is empty: the first start creates the tables");
    }
    Ok(tables)
}

/// SQLite's version, the journal mode, the problems found, and whether the file has tables.
fn inspect_file(file: &str) -> Result<(String, String, Vec<String>, bool)> {
    let mut conn = SqliteConnection::establish(file).map_err(Error::internal)?;
    conn.batch_execute("PRAGMA busy_timeout = 5000; PRAGMA query_only = ON")?;
    let version: TextRow = sql_query("SELECT sqlite_version() AS text").get_result(&mut conn)?;
    let mode: TextRow =
        sql_query("SELECT journal_mode AS text FROM pragma_journal_mode").get_result(&mut conn)?;
    let tables = sql_query("SELECT name AS text FROM sqlite_schema WHERE name = 'events'");
    let tables: Vec<TextRow> = tables.load(&mut conn)?;
    Ok((
        version.text,
        mode.text,
        check_integrity(&mut conn)?,
        !tables.is_empty(),
    ))
}

#[cfg(unix)]
fn check_disk_space(directory: &Path, needed: u64, report: &mut Report) {
    let Ok(disk) = rustix::fs::statvfs(directory) else {
        return;
    };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let (free, needed, directory) = (free >> 20, needed >> 20, directory.display());
    report.check(
        free >= needed,
        format!("{free} MiB are free in {directory}"),
        format!("only {free} MiB are free in {directory}: {needed} MiB are needed for the file, its log and a copy"),
    );
}

#[cfg(not(unix))]
fn space(_: &Path, _: u64, _: &mut Report) {}

/// Checks specific to PostgreSQL. Returns whether the database has tables.
async fn check_postgres(
    url: &str,
    config: &Config,
    clock: &Clock,
    report: &mut Report,
) -> Result<bool> {
    let server = PgConnector::parse(url).map_err(Error::Internal)?;
    let client = timeout(CHECK_TIMEOUT, server.client()).await;
    let client = client
        .map_err(|_| Error::internal("PostgreSQL does not respond"))?
        .map_err(Error::Internal)?;
    client
        .batch_execute("SET default_transaction_read_only = on; SET statement_timeout = '5s'")
        .await?;
    let setting = async |name: &str| -> Result<String> {
        Ok(client
            .query_one("SELECT coalesce(current_setting($1, true), '')", &[&name])
            .await?
            .get(0))
    };
    let number: i32 = setting("server_version_num").await?.parse().unwrap_or(0);
    let version = setting("server_version").await?;
    if number >= 130_000 {
        report.ok(format!("PostgreSQL {version}"));
    } else {
        report.fail(format!(
            "PostgreSQL {version} is too old: version 13 or newer is required"
        ));
    }
    for (name, loses) in [
        ("fsync", "a power cut can destroy the database"),
        ("full_page_writes", "a power cut can leave torn pages"),
        (
            "synchronous_commit",
            "a power cut can lose the last acknowledged writes",
        ),
    ] {
        let value = setting(name).await?;
        report.check(
            value != "off",
            format!("{name} is {value}"),
            format!("{name} is off: {loses}"),
        );
    }
    let encrypted =
        "SELECT coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)";
    let encrypted: bool = client.query_one(encrypted, &[]).await?.get(0);
    report.ok(if encrypted {
        "the connection is encrypted"
    } else {
        "the connection is not encrypted"
    });
    let (max, used): (i64, i64) = {
        let row = client
            .query_one(
                "SELECT current_setting('max_connections')::bigint - \
                 current_setting('superuser_reserved_connections')::bigint, count(*) FROM pg_stat_activity \
                 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
                &[],
            )
            .await?;
        (row.get(0), row.get(1))
    };
    let needed = Db::connections(config.database_connections) as i64;
    report.check(
        max >= needed,
        format!("{used} of {max} connections are in use"),
        format!("the server allows {max} connections, fewer than one node needs ({needed})"),
    );
    let there = "SELECT extract(epoch FROM clock_timestamp())::float8";
    let (there, here): (f64, f64) = (
        client.query_one(there, &[]).await?.get(0),
        clock.now().micros() as f64 / 1e6,
    );
    report.check(
        (there - here).abs() <= MAX_CLOCK_SKEW_SECONDS,
        "the clocks of this machine and of PostgreSQL agree",
        format!(
            "the clock of PostgreSQL differs by {:.1} seconds: synchronize both machines with NTP",
            there - here
        ),
    );
    check_long_transactions(&client, report).await?;
    let tables: bool = client
        .query_one("SELECT to_regclass('events') IS NOT NULL", &[])
        .await?
        .get(0);
    if !tables {
        report.ok("the database is empty: the first start creates the tables");
    }
    Ok(tables)
}

/// Long transactions: no event newer than the oldest open one is delivered.
async fn check_long_transactions(client: &Client, report: &mut Report) -> Result<()> {
    let open = "SELECT format('session %s (%s)', pid, coalesce(application_name, '')), \
                extract(epoch FROM now() - xact_start)::bigint FROM pg_stat_activity \
                WHERE backend_xid IS NOT NULL AND xact_start < now() - interval '10 seconds' \
                UNION ALL SELECT format('prepared transaction %s', gid), \
                extract(epoch FROM now() - prepared)::bigint FROM pg_prepared_xacts \
                WHERE prepared < now() - interval '10 seconds'";
    let rows = client.query(open, &[]).await?;
    for row in &rows {
        let (who, seconds): (String, i64) = (row.get(0), row.get(1));
        report.warn(format!(
            "{who} has been open for {seconds} seconds: no newer event is delivered until it ends"
        ));
    }
    if rows.is_empty() {
        report.ok("no long-running transactions");
    }
    let broken = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";
    let broken: i64 = client.query_one(broken, &[]).await?.get(0);
    if broken > 0 {
        report.warn(format!("{broken} indexes are invalid: run REINDEX"));
    }
    Ok(())
}

/// Checks that the event log on PostgreSQL is settled and belongs to this server.
async fn check_event_log(url: &str, report: &mut Report) -> Result<()> {
    let client = PgConnector::parse(url)
        .map_err(Error::Internal)?
        .client()
        .await
        .map_err(Error::Internal)?;
    let state = "WITH now AS (SELECT events_epoch() + pg_snapshot_xmin(s)::text::bigint AS horizon, \
                     events_epoch() + pg_snapshot_xmax(s)::text::bigint AS next FROM pg_current_snapshot() AS s), \
                 newest AS (SELECT xid, occurred_at FROM events ORDER BY xid DESC, seq DESC LIMIT 1000) \
                 SELECT count(xid) FILTER (WHERE xid >= horizon), \
                     coalesce(extract(epoch FROM now() - min(occurred_at) FILTER (WHERE xid >= horizon)), 0)::bigint, \
                     coalesce(max(xid) >= min(next), false) \
                 FROM now LEFT JOIN newest ON true";
    let row = client.query_one(state, &[]).await?;
    let (unsettled, seconds, ahead): (i64, i64, bool) = (row.get(0), row.get(1), row.get(2));
    if ahead {
        report.warn("the event log was restored from another server, so no new event is delivered: restart fasttrack");
    } else {
        report.check(
            seconds < 5,
            format!("the event log is settled, {unsettled} events pending"),
            format!(
                "{unsettled} events wait for an open transaction, the oldest for {seconds} seconds"
            ),
        );
    }
    Ok(())
}

/// Checks of the content on either database: migrations, an admin, pending mail.
async fn check_contents(config: &Config, report: &mut Report) -> Result<()> {
    let db = Db::open(&config.database, 1)?;
    let (applied, known) = (
        migrate::applied_versions(&mut db.conn().await?).await?,
        migrate::known_versions()?,
    );
    let pending = known
        .iter()
        .filter(|version| !applied.contains(version))
        .count();
    if applied.iter().any(|version| !known.contains(version)) {
        report.fail("the database belongs to a newer version of fasttrack: use that version");
    } else {
        report.check(
            pending == 0,
            format!("all {} migrations are applied", known.len()),
            format!(
                "{pending} migrations are pending: start the server or run `fasttrack migrate`"
            ),
        );
    }
    if pending > 0 {
        return Ok(());
    }
    if let Location::Postgres(url) = &config.database {
        check_event_log(url, report).await?;
    }
    let mut conn = db.conn().await?;
    let admin =
        "there is no admin: create one with `fasttrack user create --email … --username … --admin`";
    report.check(
        user::has_admin(&mut conn).await?,
        "there is an admin",
        admin,
    );
    match mail::failing(&mut conn).await? {
        (0, _) => report.ok("no mail keeps failing"),
        (count, why) => report.warn(format!(
            "{count} mails have failed three times or more: {why}"
        )),
    }
    Ok(())
}

async fn check_redis(config: &Config, report: &mut Report) {
    let ask = async {
        let Some(client) = config.redis()? else {
            return Ok(false);
        };
        let mut conn = client
            .get_multiplexed_async_connection()
            .await
            .map_err(Error::internal)?;
        redis::cmd("PING")
            .exec_async(&mut conn)
            .await
            .map_err(Error::internal)?;
        Result::Ok(true)
    };
    match timeout(CHECK_TIMEOUT, ask).await {
        Ok(Ok(false)) => {}
        Ok(Ok(true)) => report.ok("Redis responds"),
        Ok(Err(error)) => report.fail(format!("Redis: {}", error_text(error))),
        Err(_) => report.fail("Redis does not respond"),
    }
}

async fn check_smtp(url: Option<&Secret>, report: &mut Report) {
    let Some(url) = url else { return };
    let ask = async {
        let url = std::str::from_utf8(url.expose()).map_err(Error::internal)?;
        let transport =
            AsyncSmtpTransport::<Tokio1Executor>::from_url(url).map_err(Error::internal)?;
        let transport: AsyncSmtpTransport<Tokio1Executor> =
            transport.timeout(Some(CHECK_TIMEOUT)).build();
        transport.test_connection().await.map_err(Error::internal)
    };
    match timeout(CHECK_TIMEOUT, ask).await {
        Ok(Ok(true)) => report.ok("the SMTP server accepts the connection"),
        Ok(Ok(false)) | Err(_) => report.fail("the SMTP server does not respond"),
        Ok(Err(error)) => report.fail(format!("SMTP: {}", error_text(error))),
    }
}

async fn check_collector(config: &Config, report: &mut Report) {
    let Some(traces) = &config.traces else { return };
    match telemetry::check_collector(traces).await {
        Ok(()) => report.ok("the trace collector accepts traces"),
        // Only a warning: the server works without traces.
        Err(problem) => report.warn(format!("the trace collector: {problem}")),
    }
}

async fn check_port(address: SocketAddr, report: &mut Report) {
    match TcpListener::bind(address).await {
        Ok(_) => report.ok(format!("{address} is free: no server is running")),
        Err(_) if is_ready(address).await.is_ok() => {
            report.ok(format!("a server listens on {address} and is ready"))
        }
        Err(error) => report.fail(format!(
            "cannot listen on {address}, and no server is ready there: {error}"
        )),
    }
}

/// Requests `/readyz` from the server on this address.
pub async fn is_ready(mut address: SocketAddr) -> Result<()> {
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() {
            IpAddr::from(Ipv4Addr::LOCALHOST)
        } else {
            IpAddr::from(Ipv6Addr::LOCALHOST)
        };
        address.set_ip(loopback);
    }
    let ask = async {
        let mut socket = TcpStream::connect(address).await?;
        let request =
            format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        socket.take(1024).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = timeout(Duration::from_secs(3), ask).await;
    let answer = answer
        .map_err(|_| Error::internal(format!("{address} does not respond")))?
        .map_err(Error::internal)?;
    if answer.starts_with(b"HTTP/1.1 200 ") {
        Ok(())
    } else {
        Err(Error::internal(format!("{address} is not ready")))
    }
}
