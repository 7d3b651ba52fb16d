//! Scheduled deletion of expired rows: in batches, and independent of failures in other tables.

use fasttrack::error::Error;
use fasttrack::store::{audit, lockout, mail_quota, notification, session, token};
use tokio::time::timeout;

use crate::harness::{Database, PATIENCE, Server, is_postgres};

/// Inserts 2,500 expired rows into each table; rows that need a user belong to an existing one.
async fn write_old(database: &Database) {
    let (id, old, numbers) = if is_postgres() {
        (
            "gen_random_uuid()",
            "'2020-01-01Z'",
            "SELECT generate_series(1, 2500) AS n",
        )
    } else {
        let numbers = "WITH RECURSIVE a(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM a WHERE n < 2500) SELECT n FROM a";
        ("randomblob(16)", "1577836800000000", numbers)
    };
    let copied = "user_id, seed, generation, rotated_at, created_at, last_used_at";
    let statements = format!(
        "INSERT INTO audit_entries (id, kind, occurred_at) SELECT {id}, 1, {old} FROM ({numbers}) AS numbers;
         INSERT INTO notifications (user_id, id, kind, occurred_at, xid, seq)
             SELECT {id}, {id}, 1, {old}, 0, n FROM ({numbers}) AS numbers;
         INSERT INTO login_failures (identifier, source, failures, failed_at)
             SELECT 'a' || n, 'b' || n, 1, {old} FROM ({numbers}) AS numbers;
         INSERT INTO sessions (id, {copied}, expires_at)
             SELECT {id}, {copied}, {old} FROM sessions, ({numbers}) AS numbers"
    );
    database.execute(&statements).await;
}

#[tokio::test]
async fn purge_deletes_in_bounded_batches() {
    let server = Server::without_jobs().await;
    server.person("alice").await;
    write_old(server.database()).await;
    let dropped = server.run(async |app| {
        let (db, before) = (&app.db, app.clock.now().minus(PATIENCE));
        let mut dropped = Vec::new();
        for _ in 0..4 {
            dropped.push([
                session::purge_expired(db, before).await.expect("done"),
                lockout::purge_expired(db, before).await.expect("done"),
                audit::purge_older(db, before).await.expect("done"),
                notification::purge_older(db, before).await.expect("done"),
            ]);
        }
        dropped
    });
    assert_eq!(dropped.await, [[1_000; 4], [1_000; 4], [500; 4], [0; 4]]);
    assert_eq!(
        server
            .run(async |app| mail_quota::purge_expired(&app.db, app.clock.now()).await)
            .await
            .expect("done"),
        0
    );
    assert_eq!(
        server
            .run(async |app| token::purge_expired(&app.db, app.clock.now()).await)
            .await
            .expect("done"),
        0
    );
}

#[tokio::test]
async fn purge_failure_does_not_block_other_tables() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let known = server
        .run(async |app| audit::count(&mut app.db.conn().await?, None).await)
        .await
        .expect("a count");
    let database = server.stop().await;
    write_old(&database).await;
    let kept = if is_postgres() {
        "CREATE FUNCTION kept() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'kept'; END $$;
         CREATE TRIGGER kept BEFORE DELETE ON sessions FOR EACH ROW EXECUTE FUNCTION kept()"
    } else {
        "CREATE TRIGGER kept BEFORE DELETE ON sessions BEGIN SELECT RAISE(ABORT, 'kept'); END"
    };
    database.execute(kept).await;
    let server = Server::on(database, &[]).await;
    let cleared = server.run(async move |app| {
        while audit::count(&mut app.db.conn().await?, None).await? > known {}
        Result::<(), Error>::Ok(())
    });
    timeout(PATIENCE, cleared)
        .await
        .expect("expired entries are deleted")
        .expect("an answer");
    assert!(server.is_signed_in(alice.token()).await);
}
