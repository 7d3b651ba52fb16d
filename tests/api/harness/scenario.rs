//! Populates a server so that no table is empty.

use std::collections::BTreeSet;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use fasttrack::db::schema::mails;
use fasttrack::error::Error;
use fasttrack::{events, on};
use serde_json::json;
use tokio::time::timeout;

use super::{PASSWORD, PATIENCE, Person, Rows, Server};

/// Keeps mail in the queue: nothing listens at this address.
pub(crate) const MAIL_WAITS: [(&str, &str); 1] = [("SMTP_URL", "smtp://127.0.0.1:1")];

/// The main actors of the populated server.
pub(crate) struct Scenario {
    /// Owns a project.
    pub alice: Person,
    /// Is assigned a task and has been notified.
    pub bob: Person,
    /// The id of the task.
    pub task: String,
}

impl Scenario {
    /// Populates a server that was started with [`MAIL_WAITS`].
    pub(crate) async fn populate(server: &Server) -> Self {
        let (alice, bob) = (server.person("alice").await, server.person("bob").await);
        let wrong = json!({ "username": "alice", "password": "Wrong-Horse-7" });
        assert_eq!(server.post("/auth/login", wrong).await.status, 401);
        let project = alice.project("Apollo").await;
        let label = alice.label(&project, "urgent").await;
        let due =
            json!({ "assigneeId": bob.id, "labelIds": [label], "dueAt": "2031-05-01T08:00:00.5Z" });
        let task = alice.task(&project, "Fly", due).await;
        let long = format!("with\nlines {}", "\u{1f680} \\ \t\" '' ü".repeat(30));
        let land = alice
            .task(
                &project,
                "Land: \u{1f680} \\ \t\" '' ü",
                json!({ "description": long }),
            )
            .await;
        alice
            .mutate(
                "updateTask",
                json!({ "id": land, "description": "with\nlines" }),
            )
            .await
            .ok();
        // Changing a verified address queues a mail to it.
        let dave = server.admin("dave").await;
        alice
            .task(&project, "Orbit", json!({ "assigneeId": dave.id }))
            .await;
        alice.comment(&task, "Ready, @bob?").await;
        bob.mutate("updateTask", json!({ "id": task, "status": "IN_PROGRESS" }))
            .await
            .ok();
        let moving = json!({ "email": "dave@example.net", "currentPassword": PASSWORD });
        dave.mutate("updateViewer", moving).await.ok();
        dave.mutate("updateViewer", json!({ "username": "dave-2" }))
            .await
            .ok();
        Self::settle(server).await;
        Self { alice, bob, task }
    }

    /// Waits until the inboxes are up to date and each mail has been attempted once.
    pub(crate) async fn settle(server: &Server) {
        let settled = server.run(async |app| {
            let end = events::settled_end(&mut app.db.conn().await?).await?;
            let mut inbox = app.inbox.subscribe();
            inbox
                .wait_for(|reached| *reached >= end)
                .await
                .expect("a running server");
            loop {
                let mut conn = app.db.conn().await?;
                let untried = mails::table.filter(mails::last_error.is_null()).count();
                let untried: i64 = on!(conn, |c| untried.get_result(c).await)?;
                if untried == 0 {
                    return Result::<(), Error>::Ok(());
                }
            }
        });
        timeout(PATIENCE, settled)
            .await
            .expect("a server without pending work")
            .expect("an answer");
    }
}

/// Names of the tables without rows.
pub(crate) fn empty(rows: &Rows) -> BTreeSet<&str> {
    rows.iter()
        .filter(|(_, rows)| rows.is_empty())
        .map(|(table, _)| table.as_str())
        .collect()
}
