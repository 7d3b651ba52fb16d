//! Projects: validation, versions, statistics and deletion.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Server, text};

#[tokio::test]
async fn a_project_belongs_to_its_creator() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let now = server.moment(Duration::ZERO);
    let mut project = alice
        .mutate(
            "createProject",
            json!({ "name": "  Apollo ", "description": "To the moon" }),
        )
        .await
        .ok();
    let id = project["id"].take();
    assert_eq!(
        project,
        json!({ "id": null, "name": "Apollo", "description": "To the moon", "status": "ACTIVE", "version": 1,
                "createdAt": now, "updatedAt": now })
    );
    let owner = alice
        .query(
            "query ($id: ID!) { project(id: $id) { owner { username } } }",
            json!({ "id": id }),
        )
        .await;
    assert_eq!(owner["project"]["owner"]["username"], "alice");
}

#[tokio::test]
async fn a_name_has_one_to_a_hundred_and_twenty_characters() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    for (field, value, outcome) in [
        ("name", "ü".repeat(120), "ok"),
        ("name", "ü".repeat(121), "name: TOO_LONG"),
        ("name", " \u{3000}\n".to_owned(), "name: BLANK"),
        ("name", "a\u{0}".to_owned(), "name: INVALID"),
        ("description", "ü".repeat(10_000), "ok"),
        ("description", "ü".repeat(10_001), "description: TOO_LONG"),
        ("description", "\u{0}".to_owned(), "description: INVALID"),
    ] {
        let mut input = json!({ "name": "x" });
        input[field] = value.clone().into();
        let length = value.chars().count();
        assert_eq!(
            alice.mutate("createProject", input).await.outcome(),
            outcome,
            "create {field} {length}"
        );
        let input = json!({ "id": project, field: value });
        assert_eq!(
            alice.mutate("updateProject", input).await.outcome(),
            outcome,
            "update {field} {length}"
        );
    }
}

#[tokio::test]
async fn absent_field_is_unchanged_and_null_clears_it() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let input = json!({ "name": "Apollo", "description": "To the moon" });
    let project = text(&alice.mutate("createProject", input).await.ok()["id"]);
    let left = alice
        .mutate("updateProject", json!({ "id": project, "name": "Gemini" }))
        .await
        .ok();
    assert_eq!(
        (&left["name"], &left["description"]),
        (&json!("Gemini"), &json!("To the moon"))
    );
    let cleared = alice
        .mutate(
            "updateProject",
            json!({ "id": project, "description": null }),
        )
        .await
        .ok();
    assert_eq!(
        (&cleared["name"], &cleared["description"]),
        (&json!("Gemini"), &Value::Null)
    );
    for field in ["name", "status"] {
        let done = alice
            .mutate("updateProject", json!({ "id": project, field: null }))
            .await;
        assert_eq!(done.faults(), [format!("{field}: BLANK")]);
    }
}

#[tokio::test]
async fn each_change_increments_the_version_and_stale_versions_conflict() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let update = async |mut input: Value| {
        input["id"] = json!(project);
        alice.mutate("updateProject", input).await
    };
    assert_eq!(
        update(json!({ "name": "Gemini", "status": "ARCHIVED" }))
            .await
            .ok()["version"],
        2
    );
    assert_eq!(
        update(json!({ "name": "Gemini", "status": "ARCHIVED" }))
            .await
            .ok()["version"],
        2
    );
    assert_eq!(
        update(json!({ "name": "x", "expectedVersion": 1 }))
            .await
            .faults(),
        ["expectedVersion: CONFLICT"]
    );
    assert_eq!(
        update(json!({ "name": "x", "expectedVersion": 2 }))
            .await
            .ok()["version"],
        3
    );
}

#[tokio::test]
async fn stats_count_current_tasks() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    for steps in [&[][..], &[], &["IN_PROGRESS"], &["IN_PROGRESS", "DONE"]] {
        let due = server.moment(Duration::from_secs(60));
        let task = alice.task(&project, "Fly", json!({ "dueAt": due })).await;
        for status in steps {
            alice
                .mutate("updateTask", json!({ "id": task, "status": status }))
                .await
                .ok();
        }
    }
    alice.task(&project, "Some day", json!({})).await;
    alice.project("Empty").await;
    server.advance(Duration::from_secs(61));
    let stats = "{ projects(orderBy: { field: NAME }) { nodes { stats {
        taskCount todoCount inProgressCount doneCount overdueCount
    } } } }";
    assert_eq!(
        alice.query(stats, json!({})).await["projects"]["nodes"],
        json!([
            { "stats": { "taskCount": 5, "todoCount": 3, "inProgressCount": 1, "doneCount": 1, "overdueCount": 3 } },
            { "stats": { "taskCount": 0, "todoCount": 0, "inProgressCount": 0, "doneCount": 0, "overdueCount": 0 } },
        ])
    );
}

#[tokio::test]
async fn deleting_a_project_deletes_its_contents_and_logs_each_task() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let label = alice.label(&project, "red").await;
    let task = alice
        .task(
            &project,
            "Fly",
            json!({ "labelIds": [label], "assigneeId": bob.id }),
        )
        .await;
    let other = alice.task(&project, "Land", json!({})).await;
    let comment = alice.comment(&task, "Soon").await;
    let before = alice.now().await;
    assert_eq!(
        alice
            .mutate("deleteProject", json!({ "id": project }))
            .await
            .ok(),
        project
    );

    let ids = json!({ "ids": [project, label, task, other, comment] });
    let seen = alice
        .query("query ($ids: [ID!]!) { nodes(ids: $ids) { id } }", ids)
        .await;
    assert_eq!(seen["nodes"], json!([null, null, null, null, null]));
    let events = "query ($after: String) { events(after: $after) { nodes {
        __typename
        ... on TaskDeletedEvent { deletedTaskId task { title } }
        ... on ProjectDeletedEvent { deletedProjectId project { name } }
    } } }";
    let fly = json!({ "__typename": "TaskDeletedEvent", "deletedTaskId": task, "task": { "title": "Fly" } });
    let land = json!({ "__typename": "TaskDeletedEvent", "deletedTaskId": other, "task": { "title": "Land" } });
    let gone = json!({ "__typename": "ProjectDeletedEvent", "deletedProjectId": project, "project": { "name": "Apollo" } });
    let told = alice.query(events, json!({ "after": before })).await;
    assert_eq!(told["events"]["nodes"], json!([fly, land, gone]));
    let told = bob.query(events, json!({ "after": before })).await;
    assert_eq!(
        told["events"]["nodes"],
        json!([fly]),
        "the assignee receives the deletion of their task"
    );
}
