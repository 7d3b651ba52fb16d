//! Database connections whose caller is dropped in the middle of a statement or transaction.

use std::pin::pin;

use diesel_async::SimpleAsyncConnection;
use fasttrack::db::{CommitSignal, Conn, Db};
use fasttrack::error::Result;
use fasttrack::on;
use futures_util::poll;
use tokio::sync::Notify;

use crate::harness::{Database, is_postgres};

/// Runs one statement that takes a moment.
async fn linger(conn: &mut Conn) -> Result<()> {
    const SQLITE: &str =
        "WITH RECURSIVE a(b) AS (SELECT 1 UNION ALL SELECT b + 1 FROM a WHERE b < 1000000)
        SELECT count(*) FROM a";
    let statement = if is_postgres() {
        "SELECT pg_sleep(0.3)"
    } else {
        SQLITE
    };
    Ok(on!(conn, |c| c.batch_execute(statement).await)?)
}

fn busy(db: &Db) -> usize {
    db.pools().iter().map(|pool| pool.busy).sum()
}

/// Retries until it succeeds: acquiring a connection times out after a second.
async fn answered<T>(ask: impl AsyncFn() -> Result<T>) -> T {
    loop {
        if let Ok(answer) = ask().await {
            return answer;
        }
    }
}

#[tokio::test]
async fn canceled_statement_keeps_its_connection_until_it_ends() {
    let database = Database::fresh().await;
    let db = Db::open(&database.location(), 1).expect("a database");
    let mut conn = db.conn().await.expect("a connection");
    assert!(
        poll!(pin!(linger(&mut conn))).is_pending(),
        "the statement is running"
    );
    drop(conn);
    assert_eq!(busy(&db), 1, "the connection is still in use");
    let mut conn = answered(async || db.conn().await).await;
    on!(conn, |c| c.batch_execute("SELECT 1").await).expect("an answer");
    drop(conn);
    assert_eq!(busy(&db), 0);
    db.close().await;
    database.remove().await;
}

#[tokio::test]
async fn canceled_transaction_keeps_its_connection_until_its_statement_ends() {
    let database = Database::fresh().await;
    let db = Db::open(&database.location(), 1).expect("a database");
    let begun = Notify::new();
    tokio::select! {
        _ = db.transaction(async |tx| {
            tx.signal_on_commit(CommitSignal::Log);
            begun.notify_one();
            linger(tx).await
        }) => panic!("the transaction ended too early"),
        () = begun.notified() => {}
    }
    assert_eq!(busy(&db), 1, "the connection is still in use");
    answered(async || {
        db.transaction(async |tx| Ok(on!(tx, |c| c.batch_execute("SELECT 1").await)?))
            .await
    })
    .await;
    assert_eq!(
        (busy(&db), db.generation(CommitSignal::Log)),
        (0, 0),
        "the transaction was rolled back"
    );
    db.close().await;
    database.remove().await;
}
