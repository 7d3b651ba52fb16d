//! Migrations of a database that people have used: what is not theirs to change survives them, down and up.

use std::collections::BTreeSet;

use fasttrack::db::migrate;
use serde_json::Value;

use crate::harness::{Life, MAIL_WAITS, Rows, Server, empty};

/// The rows as far as `like` has their tables, columns and places in the log, which a migration may bring along. What an
/// event carries is left out: a migration may keep it elsewhere, which the tests of the history look at.
fn within(rows: &Rows, like: &Rows) -> Rows {
    let mut rows = rows.clone();
    rows.retain(|table, _| like.contains_key(table));
    for (table, rows) in &mut rows {
        if table == "events" {
            rows.iter_mut().for_each(|event| event.retain(|column, _| column != "data"));
        }
        let known = |name: Option<&Value>| like[table].iter().any(|row| row.get("name") == name);
        rows.retain(|kept| table != "projections" || known(kept.get("name")));
        if let Some(row) = like[table].first() {
            rows.iter_mut().for_each(|kept| kept.retain(|column, _| row.contains_key(column)));
        }
    }
    rows
}

#[tokio::test]
async fn every_migration_goes_down_and_up_again_with_data_in_the_tables() {
    let server = Server::with(&MAIL_WAITS).await;
    let alice = Life::lead(&server).await.alice;
    let database = server.stop().await;
    let full = database.rows().await;
    assert_eq!(empty(&full), BTreeSet::new(), "a table with nothing in it shows nothing: use it in `Life`");

    // One further down each time, so that each goes down once with rows in what it has made.
    let mut database = database;
    for steps in 1.. {
        let location = database.location();
        let above = database.rows().await;
        for _ in 0..steps {
            migrate::down(&location).await.expect("a migration that goes down with data");
        }
        let below = database.rows().await;
        assert_eq!(within(&above, &below), within(&below, &below), "{steps} down");
        assert_eq!(migrate::up(&location).await.expect("migrations that go up with data"), steps);
        let again = database.rows().await;
        assert_eq!(within(&again, &below), within(&below, &below), "{steps} down and up");
        assert!(again.keys().eq(full.keys()));
        if below.is_empty() {
            break;
        }
        let server = Server::on(database, &MAIL_WAITS).await;
        assert!(server.is_signed_in(alice.token()).await, "{steps} down and up");
        database = server.stop().await;
    }
    database.remove().await;
}
