//! Migrations of a database that people have used: what is not theirs to change survives them, down and up.

use std::collections::BTreeSet;

use fasttrack::db::migrate;

use crate::harness::{Life, MAIL_WAITS, Rows, Server, empty};

/// The rows that are on one side alone, in the tables and columns that both have. Of `projections` migrations make and
/// remove rows of their own.
fn differences(one: &Rows, other: &Rows) -> Vec<String> {
    let within = |rows: &Rows, like: &Rows| -> BTreeSet<String> {
        let shared = rows.iter().filter(|(table, _)| *table != "projections" && like.contains_key(*table));
        let rows = shared.flat_map(|(table, rows)| rows.iter().map(move |row| (table, row.clone())));
        let rows = rows.map(|(table, mut row)| {
            if let Some(columns) = like[table].first() {
                row.retain(|column, _| columns.contains_key(column));
            }
            format!("{table}: {row:?}")
        });
        rows.collect()
    };
    within(one, other).symmetric_difference(&within(other, one)).cloned().collect()
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
        assert_eq!(differences(&above, &below), [""; 0], "{steps} down");
        assert_eq!(migrate::up(&location).await.expect("migrations that go up with data"), steps);
        let again = database.rows().await;
        assert_eq!(differences(&again, &below), [""; 0], "{steps} down and up");
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
