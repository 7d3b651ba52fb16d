//! Migrations of a populated database: data survives each migration down and up again.

use std::collections::BTreeSet;

use fasttrack::db::migrate;
use serde_json::Value;

use crate::harness::{MAIL_WAITS, Rows, Scenario, Server, empty};

/// `rows` reduced to the tables, columns and projections of `like`, because a migration may add
/// some. The data of events is left out: a migration may move it, which the tests of the history
/// check.
fn within(rows: &Rows, like: &Rows) -> Rows {
    let mut rows = rows.clone();
    rows.retain(|table, _| like.contains_key(table));
    for (table, rows) in &mut rows {
        if table == "events" {
            rows.iter_mut()
                .for_each(|event| event.retain(|column, _| column != "data"));
        }
        let known = |name: Option<&Value>| like[table].iter().any(|row| row.get("name") == name);
        rows.retain(|kept| table != "projections" || known(kept.get("name")));
        if let Some(row) = like[table].first() {
            rows.iter_mut()
                .for_each(|kept| kept.retain(|column, _| row.contains_key(column)));
        }
    }
    rows
}

#[tokio::test]
async fn migrations_preserve_data_down_and_up() {
    let server = Server::with(&MAIL_WAITS).await;
    let alice = Scenario::populate(&server).await.alice;
    let database = server.stop().await;
    let full = database.rows().await;
    assert_eq!(
        empty(&full),
        BTreeSet::new(),
        "an empty table proves nothing: fill it in `Life`"
    );

    // Go down one migration further each time, so that each one is reverted once with data in its
    // tables.
    let mut database = database;
    for steps in 1.. {
        let location = database.location();
        let above = database.rows().await;
        for _ in 0..steps {
            migrate::down(&location)
                .await
                .expect("a migration that goes down with data");
        }
        let below = database.rows().await;
        assert_eq!(
            within(&above, &below),
            within(&below, &below),
            "{steps} down"
        );
        assert_eq!(
            migrate::up(&location)
                .await
                .expect("migrations that go up with data"),
            steps
        );
        let again = database.rows().await;
        assert_eq!(
            within(&again, &below),
            within(&below, &below),
            "{steps} down and up"
        );
        assert!(again.keys().eq(full.keys()));
        if below.is_empty() {
            break;
        }
        let server = Server::on(database, &MAIL_WAITS).await;
        assert!(
            server.is_signed_in(alice.token()).await,
            "{steps} down and up"
        );
        database = server.stop().await;
    }
    database.remove().await;
}
