//! `fasttrack backup`: a consistent copy, taken while the server writes.

use fasttrack::admin::backup;
use fasttrack::db::Location;
use serde_json::json;

use crate::harness::{Database, Server};

#[tokio::test]
async fn backup_during_writes_is_consistent_and_usable() {
    let server = Server::on(Database::sqlite().await, &[]).await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    alice.task(&project, "The first", json!({})).await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (location, copy) = (
        server.database().location(),
        directory.path().join("copy.db"),
    );
    let writing = tokio::spawn({
        let (alice, project) = (alice.clone(), project.clone());
        async move {
            for number in 0.. {
                alice
                    .task(&project, &format!("Task {number}"), json!({}))
                    .await;
            }
        }
    });
    let made = async |file: &str| {
        backup::run(&location, directory.path().join(file))
            .await
            .expect("a copy")
    };
    for file in ["1.db", "2.db", "3.db", "copy.db"] {
        assert!(made(file).await > 0);
    }
    writing.abort();
    let refused = backup::run(&location, copy.clone())
        .await
        .expect_err("an error for an existing file");
    assert!(format!("{refused:?}").contains("already exists"));
    assert_eq!(
        std::fs::read_dir(directory.path()).expect("files").count(),
        4,
        "no temporary file is left"
    );
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(
            std::fs::metadata(&copy)
                .expect("the copy")
                .permissions()
                .mode()
                & 0o077,
            0
        );
    }

    // A task and its event are written in one transaction, so a consistent copy has both or
    // neither.
    let restored = Database::sqlite().await;
    let Location::Sqlite(file) = restored.location() else {
        panic!("SQLite")
    };
    std::fs::rename(&copy, file).expect("the copy replaces the file");
    let rows = restored.rows().await;
    assert!(!rows["tasks"].is_empty());
    assert_eq!(rows["events"].len(), rows["tasks"].len());
    let server = Server::on(restored, &[]).await;
    assert!(server.is_signed_in(alice.token()).await, "sessions too");
}

#[tokio::test]
async fn backup_refuses_a_missing_file_and_postgresql() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let missing = Location::Sqlite(directory.path().join("missing.db"));
    let copy = directory.path().join("copy.db");
    let error = backup::run(&missing, copy.clone())
        .await
        .expect_err("an error for a missing file");
    assert!(format!("{error:?}").contains("no such file"));
    let nowhere = Location::Postgres("postgres://nobody@127.0.0.1:1/nothing".to_owned());
    let error = backup::run(&nowhere, copy).await.expect_err("PostgreSQL");
    assert!(format!("{error:?}").contains("pg_dump"));
    assert_eq!(
        std::fs::read_dir(directory.path()).expect("files").count(),
        0
    );
}
