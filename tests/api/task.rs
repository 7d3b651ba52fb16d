//! Tasks: validation, status transitions, versions and deletion.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{MAIL_WAITS, Mutated, PASSWORD, Person, Reply, Server, text};

const MINUTE: Duration = Duration::from_secs(60);

/// A server with a user who owns a project.
async fn start() -> (Server, Person, String) {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    (server, alice, project)
}

async fn create(person: &Person, project: &str, more: Value) -> Mutated {
    let mut input = json!({ "projectId": project, "title": "Fly" });
    for (field, value) in more.as_object().expect("an object") {
        input[field] = value.clone();
    }
    person.mutate("createTask", input).await
}

async fn update(person: &Person, task: &str, more: Value) -> Mutated {
    let mut input = json!({ "id": task });
    for (field, value) in more.as_object().expect("an object") {
        input[field] = value.clone();
    }
    person.mutate("updateTask", input).await
}

#[tokio::test]
async fn new_task_has_defaults() {
    let (server, alice, project) = start().await;
    let now = server.moment(Duration::ZERO);
    let mut task = create(
        &alice,
        &project,
        json!({ "title": " \t Fly to the moon\n" }),
    )
    .await
    .ok();
    assert!(task["id"].take().is_string());
    assert_eq!(
        task,
        json!({
            "id": null, "title": "Fly to the moon", "description": null, "status": "TODO", "priority": "MEDIUM",
            "dueAt": null, "isOverdue": false, "completedAt": null, "version": 1, "createdAt": now, "updatedAt": now,
            "assignee": null, "labels": [],
        })
    );
}

#[tokio::test]
async fn new_task_accepts_every_input_field() {
    let (server, alice, project) = start().await;
    let (red, blue) = (
        alice.label(&project, "red").await,
        alice.label(&project, "Blue").await,
    );
    let due = server.moment(MINUTE);
    let input = json!({
        "description": "With care", "priority": "URGENT", "dueAt": due, "assigneeId": alice.id,
        "labelIds": [red, blue, red],
    });
    let task = create(&alice, &project, input).await.ok();
    assert_eq!(
        (&task["description"], &task["priority"], &task["dueAt"]),
        (&json!("With care"), &json!("URGENT"), &json!(due))
    );
    assert_eq!(task["assignee"]["id"], alice.id);
    assert_eq!(
        task["labels"],
        json!([{ "id": blue, "name": "Blue" }, { "id": red, "name": "red" }])
    );
}

#[tokio::test]
async fn lengths_count_code_points_after_trimming() {
    let (_server, alice, project) = start().await;
    let rocket = "🚀";
    for (field, length, outcome) in [
        ("title", 200, "ok"),
        ("title", 201, "title: TOO_LONG"),
        ("title", 100_000, "title: TOO_LONG"),
        ("title", 0, "title: BLANK"),
        ("description", 10_000, "ok"),
        ("description", 10_001, "description: TOO_LONG"),
        ("description", 0, "ok"),
    ] {
        let text = format!("  {}\n", rocket.repeat(length));
        // Larger documents are refused before execution, with another error.
        if text.len() < 60_000 {
            assert_eq!(
                create(&alice, &project, json!({ field: text }))
                    .await
                    .outcome(),
                outcome,
                "{field} {length}"
            );
        }
    }
    for (field, text) in [("title", "a\u{0}b"), ("description", "a\u{0}b")] {
        assert_eq!(
            create(&alice, &project, json!({ field: text }))
                .await
                .faults(),
            [format!("{field}: INVALID")]
        );
    }
    let both = create(
        &alice,
        &project,
        json!({ "title": "", "description": "\u{0}" }),
    )
    .await;
    assert_eq!(
        both.faults(),
        ["title: BLANK", "description: INVALID"],
        "all fields are reported at once"
    );
}

#[tokio::test]
async fn lone_surrogate_is_bad_user_input() {
    let (_server, alice, project) = start().await;
    for request in [
        format!(
            r#"{{ "query": "mutation {{ createTask(input: {{ projectId: \"{project}\", title: \"\\ud800\" }}) {{ task {{ id }} }} }}" }}"#
        ),
        format!(
            r#"{{ "query": "mutation ($t: String!) {{ createTask(input: {{ projectId: \"{project}\", title: $t }}) {{ task {{ id }} }} }}",
                 "variables": {{ "t": "\ud800" }} }}"#
        ),
    ] {
        let post = alice
            .post("/graphql")
            .header("content-type", "application/json")
            .body(request);
        let reply = Reply::to(post).await;
        assert!(
            reply.status.as_u16() < 500,
            "{} {}",
            reply.status,
            reply.body
        );
        let code = &reply.body["errors"][0]["extensions"]["code"];
        assert!(
            [
                "BAD_REQUEST",
                "GRAPHQL_PARSE_FAILED",
                "GRAPHQL_VALIDATION_FAILED"
            ]
            .contains(&code.as_str().unwrap_or("")),
            "{code}"
        );
    }
    assert_eq!(
        alice.query("{ tasks { totalCount } }", json!({})).await["tasks"]["totalCount"],
        0
    );
}

#[tokio::test]
async fn a_due_date_must_be_in_the_future_when_it_is_set() {
    let (server, alice, project) = start().await;
    let (now, later) = (
        server.moment(Duration::ZERO),
        server.moment(Duration::from_micros(1)),
    );
    assert_eq!(
        create(&alice, &project, json!({ "dueAt": now }))
            .await
            .faults(),
        ["dueAt: IN_THE_PAST"]
    );
    let task = alice.task(&project, "Fly", json!({ "dueAt": later })).await;
    server.advance(MINUTE);
    assert_eq!(
        update(&alice, &task, json!({ "dueAt": now }))
            .await
            .faults(),
        ["dueAt: IN_THE_PAST"]
    );
    let task = update(&alice, &task, json!({ "title": "Fly!", "dueAt": later }))
        .await
        .ok();
    assert_eq!(
        (&task["isOverdue"], &task["dueAt"]),
        (&json!(true), &json!(later)),
        "an unchanged date in the past is accepted"
    );
    for text in [
        "tomorrow",
        "2030-01-01",
        "",
        "2030-01-01T00:00:00",
        "99999-01-01T00:00:00Z",
    ] {
        let answer = create(&alice, &project, json!({ "dueAt": text })).await;
        assert_eq!(answer.code(), "BAD_USER_INPUT", "{text}");
    }
}

#[tokio::test]
async fn timestamps_keep_microseconds_in_utc() {
    let (_server, alice, project) = start().await;
    for (given, kept) in [
        (
            "2031-06-01T10:30:00.123456789+02:00",
            "2031-06-01T08:30:00.123456Z",
        ),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ] {
        let task = create(&alice, &project, json!({ "dueAt": given }))
            .await
            .ok();
        assert_eq!(task["dueAt"], kept);
    }
}

#[tokio::test]
async fn status_changes_one_step_at_a_time() {
    let (server, alice, project) = start().await;
    let statuses = ["TODO", "IN_PROGRESS", "DONE"];
    for (from, start) in statuses.into_iter().enumerate() {
        for (to, end) in statuses.into_iter().enumerate() {
            let task = alice.task(&project, "Fly", json!({})).await;
            for status in &statuses[1..=from] {
                update(&alice, &task, json!({ "status": status }))
                    .await
                    .ok();
            }
            server.advance(Duration::from_secs(1));
            let done = update(&alice, &task, json!({ "status": end })).await;
            if from.abs_diff(to) > 1 {
                assert_eq!(
                    done.faults(),
                    ["status: INVALID_STATUS_TRANSITION"],
                    "{start} to {end}"
                );
                continue;
            }
            let task = done.ok();
            assert_eq!(task["status"], end, "{start} to {end}");
            assert_eq!(task["completedAt"].is_null(), end != "DONE");
            assert_eq!(
                task["version"],
                from + 1 + usize::from(from != to),
                "only actual changes increment the version"
            );
        }
    }
}

#[tokio::test]
async fn a_task_done_late_is_no_longer_overdue() {
    let (server, alice, project) = start().await;
    let task = alice
        .task(&project, "Fly", json!({ "dueAt": server.moment(MINUTE) }))
        .await;
    server.advance(MINUTE);
    let begun = update(&alice, &task, json!({ "status": "IN_PROGRESS" }))
        .await
        .ok();
    assert_eq!(
        begun["isOverdue"], false,
        "not overdue at the exact due time"
    );
    server.advance(Duration::from_micros(1));
    let document =
        "{ tasks { nodes { isOverdue } } projects { nodes { stats { overdueCount } } } }";
    let seen = alice.query(document, json!({})).await;
    assert_eq!(seen["tasks"]["nodes"][0]["isOverdue"], true);
    assert_eq!(seen["projects"]["nodes"][0]["stats"]["overdueCount"], 1);
    let done = update(&alice, &task, json!({ "status": "DONE" }))
        .await
        .ok();
    assert_eq!(
        (&done["isOverdue"], &done["completedAt"]),
        (&json!(false), &json!(server.app.clock.now().to_string()))
    );
}

#[tokio::test]
async fn absent_field_is_unchanged_and_null_clears_it() {
    let (server, alice, project) = start().await;
    let given = json!({ "description": "With care", "dueAt": server.moment(MINUTE), "assigneeId": alice.id });
    let task = alice.task(&project, "Fly", given).await;
    let left = update(&alice, &task, json!({ "title": "Fly!" })).await.ok();
    assert_eq!(
        (&left["description"], &left["dueAt"]),
        (&json!("With care"), &json!(server.moment(MINUTE)))
    );
    assert_eq!(left["assignee"]["id"], alice.id);
    let cleared = update(
        &alice,
        &task,
        json!({ "description": null, "dueAt": null, "assigneeId": null }),
    )
    .await
    .ok();
    assert_eq!(
        (
            &cleared["description"],
            &cleared["dueAt"],
            &cleared["assignee"]
        ),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    for field in ["title", "status", "priority"] {
        assert_eq!(
            update(&alice, &task, json!({ field: null })).await.faults(),
            [format!("{field}: BLANK")]
        );
    }
}

#[tokio::test]
async fn only_actual_changes_increment_the_version() {
    let (server, alice, project) = start().await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let label = alice.label(&project, "red").await;
    server.advance(MINUTE);
    let several = json!({ "title": "Fly!", "priority": "HIGH", "status": "IN_PROGRESS", "assigneeId": alice.id });
    assert_eq!(
        update(&alice, &task, several.clone()).await.ok()["version"],
        2
    );
    assert_eq!(
        update(&alice, &task, json!({ "addLabelIds": [label] }))
            .await
            .ok()["version"],
        3
    );
    let updated_at = server.moment(MINUTE);
    server.advance(MINUTE);
    for same in [
        several,
        json!({}),
        json!({ "addLabelIds": [label] }),
        json!({ "removeLabelIds": [] }),
    ] {
        let task = update(&alice, &task, same).await.ok();
        assert_eq!(
            (&task["version"], &task["updatedAt"]),
            (&json!(3), &json!(updated_at))
        );
    }
    assert_eq!(
        update(&alice, &task, json!({ "removeLabelIds": [label] }))
            .await
            .ok()["version"],
        4
    );
}

#[tokio::test]
async fn an_update_that_expects_another_version_is_a_conflict() {
    let (_server, alice, project) = start().await;
    let task = alice.task(&project, "Fly", json!({})).await;
    assert_eq!(
        update(&alice, &task, json!({ "title": "a", "expectedVersion": 1 }))
            .await
            .ok()["version"],
        2
    );
    for expected in [1, 3, 0, -1] {
        let late = update(
            &alice,
            &task,
            json!({ "title": "b", "expectedVersion": expected }),
        )
        .await;
        assert_eq!(late.faults(), ["expectedVersion: CONFLICT"]);
    }
    assert_eq!(
        update(&alice, &task, json!({})).await.ok()["title"],
        "a",
        "the refused change has no effect"
    );
}

#[tokio::test]
async fn labels_are_those_of_the_tasks_own_project() {
    let (_server, alice, project) = start().await;
    let (red, blue) = (
        alice.label(&project, "red").await,
        alice.label(&project, "blue").await,
    );
    let other = alice.project("Gemini").await;
    let foreign = alice.label(&other, "red").await;
    for wrong in [&foreign, &project, "x"] {
        let created = create(&alice, &project, json!({ "labelIds": [red, wrong] })).await;
        assert_eq!(created.faults(), ["labelIds: NOT_FOUND"]);
    }
    let task = alice
        .task(&project, "Fly", json!({ "labelIds": [red] }))
        .await;
    let added = update(
        &alice,
        &task,
        json!({ "title": "x", "addLabelIds": [blue, foreign] }),
    )
    .await;
    assert_eq!(added.faults(), ["addLabelIds: NOT_FOUND"]);
    let task = update(
        &alice,
        &task,
        json!({ "addLabelIds": [blue], "removeLabelIds": [red, foreign] }),
    )
    .await
    .ok();
    assert_eq!(
        (&task["labels"], &task["title"]),
        (&json!([{ "id": blue, "name": "blue" }]), &json!("Fly"))
    );
    assert_eq!(
        alice.query("{ tasks { totalCount } }", json!({})).await["tasks"]["totalCount"],
        1
    );
}

#[tokio::test]
async fn assignee_must_be_an_existing_user() {
    let (server, alice, project) = start().await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let gone = server.person("gone").await;
    gone.mutate("deleteViewer", json!({ "password": PASSWORD }))
        .await
        .ok();
    // A well-formed id of a user who does not exist.
    let nobody = format!("AQ{}", "A".repeat(21));
    for (assignee, fault) in [
        (gone.id.as_str(), "assigneeId: INVALID"),
        (project.as_str(), "assigneeId: NOT_FOUND"),
        (nobody.as_str(), "assigneeId: NOT_FOUND"),
        ("x", "assigneeId: NOT_FOUND"),
    ] {
        assert_eq!(
            create(&alice, &project, json!({ "assigneeId": assignee }))
                .await
                .faults(),
            [fault]
        );
        let updated = update(
            &alice,
            &task,
            json!({ "title": "x", "assigneeId": assignee }),
        )
        .await;
        assert_eq!(updated.faults(), [fault]);
    }
    let seen = alice
        .query(
            "{ tasks { nodes { title version } } events { nodes { __typename } } }",
            json!({}),
        )
        .await;
    assert_eq!(
        seen["tasks"]["nodes"],
        json!([{ "title": "Fly", "version": 1 }]),
        "nothing was written"
    );
    assert_eq!(
        seen["events"]["nodes"],
        json!([{ "__typename": "TaskCreatedEvent" }])
    );
}

/// Whether an account is active may be known only to its owner and ADMIN.
#[tokio::test]
async fn assigning_a_task_does_not_reveal_whether_the_assignee_is_active() {
    let server = Server::with(&MAIL_WAITS).await;
    let (admin, alice) = (server.admin("admin").await, server.person("alice").await);
    // Both addresses are verified.
    let (active, disabled) = (server.admin("active").await, server.admin("disabled").await);
    admin
        .mutate(
            "updateUser",
            json!({ "id": disabled.id, "isActive": false }),
        )
        .await
        .ok();
    let project = alice.project("Apollo").await;
    let mut answers = Vec::new();
    for (number, assignee) in [&active, &disabled].into_iter().enumerate() {
        let title = format!("for {}", assignee.username);
        let input = json!({ "projectId": project, "title": title, "assigneeId": assignee.id });
        let document = "mutation ($input: CreateTaskInput!) { createTask(input: $input) {
            task { assignee { username } } userErrors { code message }
        } }";
        let answer = alice
            .ask(document, json!({ "input": input }))
            .await
            .0
            .to_string();
        let task = alice.task(&project, "Fly", json!({})).await;
        let updated = update(&alice, &task, json!({ "assigneeId": assignee.id }))
            .await
            .ok();
        let updated = updated["version"].clone();
        let answer = answer
            .split(r#","extensions":{"cost""#)
            .next()
            .expect("an answer");
        answers.push(format!("{answer} {updated}").replace(&assignee.username, "somebody"));
        let expected = if number == 0 {
            "ok"
        } else {
            "assigneeId: INVALID"
        };
        let project = admin.project("Gemini").await;
        assert_eq!(
            create(&admin, &project, json!({ "assigneeId": assignee.id }))
                .await
                .outcome(),
            expected
        );
        let task = admin.task(&project, "Fly", json!({})).await;
        assert_eq!(
            update(&admin, &task, json!({ "assigneeId": assignee.id }))
                .await
                .outcome(),
            expected
        );
    }
    assert_eq!(answers[0], answers[1]);
    let mails = server.database().rows().await["mails"].clone();
    let to = |person: &Person| {
        mails
            .iter()
            .filter(|mail| text(&mail["recipient"]).starts_with(&person.username))
            .count()
    };
    assert!(to(&active) > 0);
    assert_eq!(to(&disabled), 0, "no mail to a disabled account");
}

#[tokio::test]
async fn archived_project_accepts_no_new_tasks_but_updates() {
    let (_server, alice, project) = start().await;
    let task = alice.task(&project, "Fly", json!({})).await;
    alice
        .mutate(
            "updateProject",
            json!({ "id": project, "status": "ARCHIVED" }),
        )
        .await
        .ok();
    assert_eq!(
        create(&alice, &project, json!({})).await.faults(),
        ["projectId: ARCHIVED"]
    );
    update(&alice, &task, json!({ "status": "IN_PROGRESS" }))
        .await
        .ok();
    alice.comment(&task, "Still here").await;
    alice
        .mutate(
            "updateProject",
            json!({ "id": project, "status": "ACTIVE" }),
        )
        .await
        .ok();
    create(&alice, &project, json!({})).await.ok();
}

#[tokio::test]
async fn reassigning_assignee_loses_access() {
    let (server, alice, project) = start().await;
    let (bob, carol) = (server.person("bob").await, server.person("carol").await);
    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": bob.id }))
        .await;
    assert_eq!(
        update(&bob, &task, json!({ "assigneeId": carol.id }))
            .await
            .ok(),
        Value::Null
    );
    assert_eq!(
        update(&bob, &task, json!({ "assigneeId": bob.id }))
            .await
            .faults(),
        ["id: NOT_FOUND"]
    );
    update(&carol, &task, json!({ "status": "IN_PROGRESS" }))
        .await
        .ok();
}

#[tokio::test]
async fn deleting_a_task_deletes_comments_and_label_links() {
    let (_server, alice, project) = start().await;
    let label = alice.label(&project, "red").await;
    let task = alice
        .task(&project, "Fly", json!({ "labelIds": [label] }))
        .await;
    let comment = alice.comment(&task, "Soon").await;
    assert_eq!(
        alice.mutate("deleteTask", json!({ "id": task })).await.ok(),
        task
    );
    assert_eq!(
        alice
            .mutate("deleteTask", json!({ "id": task }))
            .await
            .faults(),
        ["id: NOT_FOUND"]
    );
    let document = "query ($ids: [ID!]!) { nodes(ids: $ids) { id } }";
    let seen = alice
        .query(document, json!({ "ids": [task, comment, label] }))
        .await;
    assert_eq!(seen["nodes"], json!([null, null, { "id": label }]));
}

#[tokio::test]
async fn ids_of_other_types_are_not_found() {
    let (_server, alice, project) = start().await;
    for id in [project.as_str(), alice.id.as_str(), "", "x", "ä\u{0}"] {
        let answer = alice
            .query(
                "query ($id: ID!) { task(id: $id) { id } }",
                json!({ "id": id }),
            )
            .await;
        assert_eq!(answer["task"], Value::Null, "{id:?}");
        assert_eq!(
            update(&alice, id, json!({ "title": "x" })).await.faults(),
            ["id: NOT_FOUND"],
            "{id:?}"
        );
    }
}
