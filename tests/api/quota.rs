//! StorageQuotas: how much an account, a project and a task hold, exactly, and what it costs to write it.

use fasttrack::db::migrate;
use fasttrack::error::Error;
use fasttrack::events;
use fasttrack::store::event;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::harness::{Person, Server, text};

/// The bytes that count in the quotas of all accounts together, counted anew.
const TEXT_BYTES: &str = "(SELECT coalesce(sum(octet_length(description)), 0) FROM projects)
    + (SELECT coalesce(sum(octet_length(description)), 0) FROM tasks)
    + (SELECT coalesce(sum(octet_length(body)), 0) FROM comments)
    + (SELECT coalesce(sum(octet_length(body)), 0) FROM history_texts)";

async fn count(server: &Server, query: &str) -> i64 {
    server
        .database()
        .number(&format!("SELECT coalesce(({query}), 0)"))
        .await
}

/// Each counter must be what is counted anew.
async fn assert_exact(server: &Server) {
    for (counter, counted) in [
        ("SELECT sum(text_bytes) FROM user_usage", TEXT_BYTES),
        (
            "SELECT sum(projects) FROM user_usage",
            "SELECT count(*) FROM projects",
        ),
        (
            "SELECT sum(tasks) FROM project_usage",
            "SELECT count(*) FROM tasks",
        ),
        (
            "SELECT sum(comments) FROM task_usage",
            "SELECT count(*) FROM comments",
        ),
        (
            "SELECT sum(text_bytes) FROM task_usage",
            "SELECT sum(octet_length(body)) FROM comments",
        ),
    ] {
        assert_eq!(
            count(server, counter).await,
            count(server, counted).await,
            "{counter}"
        );
    }
}

/// Does all of it, many at the same time: as many as a busy machine bears.
async fn all<T>(work: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    stream::iter(work).buffer_unordered(16).collect().await
}

async fn expire(server: &Server) {
    let expired = server.run(async move |app| {
        let done = events::settled_end(&mut app.db.conn().await?).await?;
        while event::expire(&app.db, app.config.event_retention, app.clock.now(), done).await? {}
        Ok::<_, Error>(())
    });
    expired.await.expect("a feed that expires");
}

#[tokio::test]
async fn a_user_has_so_many_projects_and_a_project_so_many_tasks() {
    let server = Server::with(&[
        ("MAX_PROJECTS_PER_USER", "2"),
        ("MAX_TASKS_PER_PROJECT", "3"),
    ])
    .await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let (first, second) = (alice.project("Apollo").await, alice.project("Gemini").await);
    let create = |name: &str| json!({ "name": name });
    assert_eq!(
        alice
            .mutate("createProject", create("Mercury"))
            .await
            .faults(),
        ["name: QUOTA_EXCEEDED"]
    );
    bob.project("Somebody else's").await;

    for number in 0..3 {
        alice.task(&first, &number.to_string(), json!({})).await;
    }
    let task = json!({ "projectId": first, "title": "One more" });
    assert_eq!(
        alice.mutate("createTask", task.clone()).await.faults(),
        ["projectId: QUOTA_EXCEEDED"]
    );
    let other = alice.task(&second, "Another project", json!({})).await;
    assert_eq!(
        count(&server, "SELECT count(*) FROM tasks").await,
        4,
        "nothing was written"
    );

    let tasks = alice.query(
        "query ($id: ID!) { project(id: $id) { tasks { nodes { id } } } }",
        json!({ "id": first }),
    );
    let gone = tasks.await["project"]["tasks"]["nodes"][0]["id"].clone();
    alice.mutate("deleteTask", json!({ "id": gone })).await.ok();
    alice.mutate("createTask", task).await.ok();
    alice
        .mutate("deleteTask", json!({ "id": other }))
        .await
        .ok();
    alice
        .mutate("deleteProject", json!({ "id": second }))
        .await
        .ok();
    alice.mutate("createProject", create("Mercury")).await.ok();
    assert_exact(&server).await;
}

#[tokio::test]
async fn a_task_has_so_many_comments() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let comment = alice.comment(&task, "The first").await;
    server
        .database()
        .execute("UPDATE task_usage SET comments = comments + 4998")
        .await;
    alice.comment(&task, "The last").await;
    let add = json!({ "taskId": task, "body": "One more" });
    assert_eq!(
        alice.mutate("addComment", add.clone()).await.faults(),
        ["taskId: QUOTA_EXCEEDED"]
    );
    alice
        .mutate("deleteComment", json!({ "id": comment }))
        .await
        .ok();
    alice.mutate("addComment", add).await.ok();
}

#[tokio::test]
async fn an_account_holds_so_much_text() {
    let server = Server::with(&[
        ("MAX_TEXT_MIB_PER_USER", "1"),
        ("EVENT_RETENTION_DAYS", "2"),
    ])
    .await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let long = |number: usize| format!("{number:05}{}", "ä".repeat(9_995));
    let mut tasks = Vec::new();
    while tasks.len() < 1024 * 1024 / (5 + 2 * 9_995) {
        let more = json!({ "description": long(tasks.len()), "assigneeId": bob.id });
        tasks.push(alice.task(&project, "Fly", more).await);
    }
    // Text counts in the quota of the project's owner, no matter who writes it.
    let add = json!({ "taskId": tasks[0], "body": "ä".repeat(5_000) });
    assert_eq!(
        bob.mutate("addComment", add.clone()).await.faults(),
        ["body: QUOTA_EXCEEDED"]
    );
    let task = json!({ "projectId": project, "title": "Land", "description": long(0) });
    assert_eq!(
        alice.mutate("createTask", task.clone()).await.faults(),
        ["description: QUOTA_EXCEEDED"]
    );
    let update = json!({ "id": tasks[0], "description": long(100) });
    assert_eq!(
        bob.mutate("updateTask", update.clone()).await.faults(),
        ["description: QUOTA_EXCEEDED"]
    );
    let describe = json!({ "id": project, "description": long(100) });
    assert_eq!(
        alice.mutate("updateProject", describe).await.faults(),
        ["description: QUOTA_EXCEEDED"]
    );
    let create = json!({ "name": "Gemini", "description": long(100) });
    assert_eq!(
        alice.mutate("createProject", create.clone()).await.faults(),
        ["description: QUOTA_EXCEEDED"]
    );
    bob.mutate("createProject", create).await.ok();
    alice
        .mutate(
            "updateTask",
            json!({ "id": tasks[0], "title": "Short texts are free" }),
        )
        .await
        .ok();

    // What was deleted counts until it leaves the history.
    alice
        .mutate("deleteTask", json!({ "id": tasks[1] }))
        .await
        .ok();
    assert_eq!(
        bob.mutate("updateTask", update.clone()).await.faults(),
        ["description: QUOTA_EXCEEDED"]
    );
    assert_exact(&server).await;
    server.advance(std::time::Duration::from_secs(3 * 86_400));
    expire(&server).await;
    assert_exact(&server).await;
    server
        .login("bob")
        .await
        .mutate("updateTask", update)
        .await
        .ok();
    assert_exact(&server).await;
}

#[tokio::test]
async fn writers_at_the_same_time_never_exceed_a_quota() {
    let settings = [
        ("MAX_TASKS_PER_PROJECT", "25"),
        ("MAX_PROJECTS_PER_USER", "10"),
        ("MAX_TEXT_MIB_PER_USER", "1"),
    ];
    let server = Server::with(&settings).await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let create = async |number: usize| {
        let input = json!({ "projectId": project, "title": number.to_string() });
        alice.mutate("createTask", input).await.outcome()
    };
    assert_eq!(
        all((0..16).map(create)).await,
        ["ok"; 16],
        "the first of a project come at the same time"
    );
    let outcomes = all((0..24).map(create)).await;
    assert_eq!(
        outcomes.iter().filter(|outcome| *outcome == "ok").count(),
        9,
        "{outcomes:?}"
    );
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome == "ok" || outcome == "projectId: QUOTA_EXCEEDED"),
        "{outcomes:?}"
    );

    let create = async |number: usize| {
        alice
            .mutate("createProject", json!({ "name": number.to_string() }))
            .await
            .outcome()
    };
    let outcomes = all((0..20).map(create)).await;
    assert_eq!(
        outcomes.iter().filter(|outcome| *outcome == "ok").count(),
        9,
        "{outcomes:?}"
    );

    let projects = alice
        .query("{ projects(first: 10) { nodes { id } } }", json!({}))
        .await;
    let projects: Vec<String> = projects["projects"]["nodes"]
        .as_array()
        .expect("projects")
        .iter()
        .map(|node| text(&node["id"]))
        .collect();
    let create = async |number: usize| {
        let input = json!({ "projectId": projects[number % 10], "title": "Long", "description": "x".repeat(10_000) });
        alice.mutate("createTask", input).await.outcome()
    };
    let outcomes = all((0..130).map(create)).await;
    let written = count(&server, "SELECT sum(octet_length(description)) FROM tasks").await;
    assert_eq!(
        written, 1_040_000,
        "as many as fit into 1 MiB: {outcomes:?}"
    );
    assert_exact(&server).await;
}

/// What one of many people does, by a number.
async fn act(person: &Person, project: &str, tasks: &[String], number: usize) {
    let long = |length: usize| format!("{} {}", number % 7, "x".repeat(length));
    let task = &tasks[number % tasks.len()];
    let outcome = match number % 9 {
        0 => person
            .mutate(
                "updateTask",
                json!({ "id": task, "description": long(5_000) }),
            )
            .await
            .outcome(),
        1 => person
            .mutate(
                "updateTask",
                json!({ "id": task, "description": long(100) }),
            )
            .await
            .outcome(),
        2 => person
            .mutate("updateTask", json!({ "id": task, "description": null }))
            .await
            .outcome(),
        3 => person
            .mutate(
                "updateProject",
                json!({ "id": project, "description": long(3_000) }),
            )
            .await
            .outcome(),
        4..=6 => person
            .mutate(
                "addComment",
                json!({ "taskId": task, "body": long(number * 3) }),
            )
            .await
            .outcome(),
        7 => person
            .mutate("deleteTask", json!({ "id": task }))
            .await
            .outcome(),
        _ => {
            let input = json!({ "projectId": project, "title": "New", "description": long(700) });
            person.mutate("createTask", input).await.outcome()
        }
    };
    assert!(
        ["ok", "id: NOT_FOUND", "taskId: NOT_FOUND"].contains(&outcome.as_str()),
        "{outcome}"
    );
}

#[tokio::test]
async fn counters_stay_exact_whatever_happens_at_the_same_time() {
    let server = Server::with(&[("EVENT_RETENTION_DAYS", "2")]).await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    for round in 0..3 {
        let mut tasks = Vec::new();
        for number in 0..12 {
            let task = alice
                .task(
                    &project,
                    &number.to_string(),
                    json!({ "description": "y".repeat(400) }),
                )
                .await;
            alice.comment(&task, "To be changed").await;
            tasks.push(task);
        }
        all((0..54).map(|number| act(&alice, &project, &tasks, number * 5 + round))).await;
        // The same comments are changed and deleted at once.
        let comments = "query ($id: ID!) { project(id: $id) { tasks(first: 50) { nodes { comments { nodes { id } } } } } }";
        let found =
            alice.query(comments, json!({ "id": project })).await["project"]["tasks"]["nodes"]
                .clone();
        let ids: Vec<Value> = found
            .as_array()
            .expect("tasks")
            .iter()
            .flat_map(|task| {
                task["comments"]["nodes"]
                    .as_array()
                    .expect("comments")
                    .iter()
                    .map(|node| node["id"].clone())
            })
            .collect();
        let mut changes = Vec::new();
        for (number, id) in ids.iter().take(12).enumerate() {
            for length in [300 + number, 900 - number] {
                changes.push((
                    "updateComment",
                    json!({ "id": id, "body": "z".repeat(length) }),
                ));
            }
            changes.push(("deleteComment", json!({ "id": id })));
        }
        let change = async |(name, input)| alice.mutate(name, input).await.outcome();
        all(changes.into_iter().map(change)).await;
        assert_exact(&server).await;
    }
    let other = alice.project("Gemini").await;
    let task = alice
        .task(
            &other,
            "Goes with it",
            json!({ "description": "y".repeat(5_000) }),
        )
        .await;
    alice.comment(&task, &"y".repeat(1_000)).await;
    alice
        .mutate("deleteProject", json!({ "id": other }))
        .await
        .ok();
    assert_exact(&server).await;
    server.advance(std::time::Duration::from_secs(3 * 86_400));
    expire(&server).await;
    assert_exact(&server).await;

    // A migration counts what is there.
    let database = server.stop().await;
    let before = database.rows().await;
    let mut steps = 0;
    while database.rows().await.contains_key("user_usage") {
        migrate::down(&database.location())
            .await
            .expect("a migration that goes down with data");
        steps += 1;
    }
    assert_eq!(
        migrate::up(&database.location())
            .await
            .expect("migrations that go up with data"),
        steps
    );
    let after = database.rows().await;
    let counted = |rows: &crate::harness::Rows, table: &str| -> Vec<_> {
        rows[table]
            .iter()
            .filter(|row| {
                row.values()
                    .any(|value| value.as_i64().is_some_and(|n| n > 0))
            })
            .cloned()
            .collect()
    };
    for table in ["user_usage", "project_usage", "task_usage"] {
        assert_eq!(counted(&after, table), counted(&before, table), "{table}");
    }
    let server = Server::on(database, &[]).await;
    let alice = server.login("alice").await;
    alice
        .mutate("deleteProject", json!({ "id": project }))
        .await
        .ok();
    assert_eq!(
        count(&server, "SELECT sum(projects) FROM user_usage").await,
        0
    );
    let tables = "SELECT (SELECT count(*) FROM project_usage) + (SELECT count(*) FROM task_usage)";
    assert_eq!(
        count(&server, tables).await,
        0,
        "they go with what they count"
    );
}

#[tokio::test]
async fn a_mutation_costs_what_it_writes() {
    let server = Server::with(&[
        ("RATE_LIMIT_ENABLED", "true"),
        ("RATE_LIMIT_COST_PER_MINUTE", "100"),
    ])
    .await;
    let alice = server.person("alice").await;
    let document = "mutation ($input: CreateProjectInput!) { createProject(input: $input) { userErrors { code } } }";
    let create = async |length: usize| {
        let input = json!({ "name": "Apollo", "description": "ä".repeat(length) });
        alice.ask(document, json!({ "input": input })).await
    };
    assert_eq!(create(1).await.0["extensions"]["cost"], 11);
    assert_eq!(
        create(10_000).await.0["extensions"]["cost"],
        11 + 20_006 / 1_024
    );
    assert_eq!(create(10_000).await.codes(), [""; 0]);
    assert_eq!(
        create(10_000).await.codes(),
        [""; 0],
        "one that finds a point left is executed"
    );
    assert_eq!(create(1).await.codes(), ["RATE_LIMITED"]);
}
