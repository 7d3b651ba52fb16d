//! The number of SQL statements per operation, which must not depend on the size of its lists.

use diesel::sql_types::BigInt;
use diesel_async::RunQueryDsl;
use fasttrack::db::{CommitSignal, PooledConn};
use fasttrack::error::Error;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{PASSWORD, Person, Server, is_postgres};

/// Creates projects, tasks and comments, `size` of each per parent. Tasks refer to different users.
async fn populate(owner: &Person, assignee: &Person, size: usize) {
    let project = async |_| {
        let project = owner.project("Apollo").await;
        let labels = [
            owner.label(&project, "red").await,
            owner.label(&project, "blue").await,
        ];
        for _ in 0..size {
            let task = owner
                .task(
                    &project,
                    "Fly",
                    json!({ "assigneeId": assignee.id, "labelIds": labels }),
                )
                .await;
            owner.comment(&task, "Soon").await;
            for _ in 1..size.min(3) {
                assignee.comment(&task, "Now").await;
            }
        }
    };
    join_all((0..size).map(project)).await;
}

/// The most statements the operation takes in three runs.
async fn statements(server: &Server, reader: &Person, document: &str) -> u64 {
    let mut most = 0;
    for _ in 0..3 {
        // Refresh the cached session first, and invalidate cached profiles, so that the count is
        // deterministic.
        reader.query("{ __typename }", json!({})).await;
        server.app.db.signal(CommitSignal::Profiles);
        let before = server.app.db.statements();
        reader.query(document, json!({})).await;
        most = most.max(server.app.db.statements() - before);
    }
    most
}

/// Operations across every relation, with the maximum number of statements. One fewer is possible
/// when two batches of the same loader coincide.
const OPERATIONS: [(&str, u64); 9] = [
    ("{ viewer { id } }", 1),
    (
        "{ projects(first: 10) { nodes { name tasks(first: 10) { nodes {
            title assignee { username } labels { name } comments(first: 5) { nodes { body author { username } } }
        } } } } }",
        6,
    ),
    ("{ projects { totalCount nodes { owner { username } labels { name } stats { taskCount } } } }", 5),
    ("{ projects { nodes { tasks { totalCount nodes { id } } } } }", 3),
    ("{ tasks(first: 10) { nodes { project { name owner { username } } creator { username } } } }", 4),
    ("{ tasks(first: 10) { nodes { labels { name project { name labels { name } } } } } }", 4),
    ("{ tasks(first: 10) { nodes { comments { totalCount nodes { task { title } author { username } } } } } }", 5),
    (
        "{ tasks(first: 10) { nodes { activity { nodes {
            actor { username } ... on CommentAddedEvent { comment { body } } ... on TaskAssignedEvent { assignee { username } }
        } } } } }",
        5,
    ),
    (
        "{ users(first: 10) { totalCount nodes {
            email stats { assignedTaskCount } projects { totalCount nodes { name } }
            assignedTasks { totalCount nodes { title } }
        } } }",
        8,
    ),
];

#[tokio::test]
async fn statement_count_does_not_grow_with_list_sizes() {
    let server = Server::without_jobs().await;
    let (admin, bob) = (server.admin("admin").await, server.person("bob").await);
    for size in [1, 10] {
        populate(&admin, &bob, size).await;
        for number in 0..size {
            server.person(&format!("user-{size}-{number}")).await;
        }
        for (document, most) in OPERATIONS {
            let taken = statements(&server, &admin, document).await;
            assert!(
                (most - 1..=most).contains(&taken),
                "{taken} instead of {most} statements for {document}"
            );
        }
    }
}

#[tokio::test]
async fn unselected_connections_are_not_read() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    populate(&alice, &alice, 2).await;
    let counted = statements(&server, &alice, "{ tasks { totalCount nodes { id } } }").await;
    let uncounted = statements(&server, &alice, "{ tasks { nodes { id } } }").await;
    // One index scan for the viewer's own projects and one for tasks assigned elsewhere, each
    // counted separately.
    assert_eq!((uncounted, counted), (2, 4));
}

#[tokio::test]
async fn login_statement_count_is_fixed() {
    let server = Server::without_jobs().await;
    server.person("alice").await;
    let login = async |password: &str, status: u16| {
        let before = server.app.db.statements();
        let reply = server
            .post(
                "/auth/login",
                json!({ "username": "alice", "password": password }),
            )
            .await;
        assert_eq!(reply.status, status);
        // BEGIN and COMMIT do not count.
        server.app.db.statements() - before - 2
    };
    login(PASSWORD, 200).await;
    assert_eq!(login(PASSWORD, 200).await, 5);
    login("Wrong-Horse-7", 401).await;
    assert_eq!(
        (login(PASSWORD, 200).await, login(PASSWORD, 200).await),
        (6, 5)
    );
}

#[tokio::test]
async fn filters_do_not_accumulate_prepared_statements() {
    // SQLite does not list its prepared statements.
    if !is_postgres() {
        return;
    }
    // Background jobs would prepare statements on the only connection.
    let server = Server::without_jobs_with(&[("DATABASE_CONNECTIONS", "1")]).await;
    let alice = server.person("alice").await;
    let kept = async || {
        let count = server.run(async |app| {
            let mut conn = app.db.conn().await?;
            let count = diesel::dsl::sql::<BigInt>("SELECT count(*) FROM pg_prepared_statements");
            match &mut conn.pooled {
                PooledConn::Postgres(conn) => {
                    Ok::<i64, Error>(count.get_result(&mut &**conn).await?)
                }
                PooledConn::Sqlite(_) => Ok(0),
            }
        });
        count.await.expect("a count")
    };
    let ask = async |filter: Value| {
        alice
            .query(
                "query ($f: TaskFilter) { tasks(filter: $f) { totalCount nodes { id } } }",
                json!({ "f": filter }),
            )
            .await
    };
    ask(json!({ "unassigned": true })).await;
    let before = kept().await;
    let day = "2026-01-01T00:00:00Z";
    for members in 1..16_u8 {
        let has = |bit: u8| (members & bit != 0).then_some(day);
        ask(json!({ "dueAt": { "gt": has(1), "gte": has(2), "lt": has(4), "lte": has(8) }, "search": "x" })).await;
    }
    assert_eq!(kept().await, before);
}

#[tokio::test]
async fn nodes_are_loaded_in_batches() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let mut ids = vec![
        project.clone(),
        alice.id.clone(),
        alice.label(&project, "red").await,
    ];
    let ask = async |ids: &[String]| {
        server.app.db.signal(CommitSignal::Profiles);
        let before = server.app.db.statements();
        let document = "query ($ids: [ID!]!) { nodes(ids: $ids) { id } }";
        let nodes = alice.query(document, json!({ "ids": ids })).await["nodes"].clone();
        assert_eq!(
            nodes,
            ids.iter().map(|id| json!({ "id": id })).collect::<Value>()
        );
        server.app.db.statements() - before
    };
    ids.push(alice.task(&project, "Fly", json!({})).await);
    let few = ask(&ids).await;
    for _ in 0..20 {
        ids.push(alice.task(&project, "Fly", json!({})).await);
    }
    ids.push(project);
    assert_eq!(ask(&ids).await, few);
}
