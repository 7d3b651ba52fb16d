//! Concurrent writes: exactly one winner, no lost updates, no partial results.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::{PASSWORD, PATIENCE, Person, Server, text};
use crate::recovery::{start, verify};

/// Counts each outcome.
fn tally(outcomes: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for outcome in outcomes {
        *tally.entry(outcome).or_default() += 1;
    }
    tally
}

fn counts<const N: usize>(expected: [(&str, usize); N]) -> BTreeMap<String, usize> {
    expected
        .into_iter()
        .map(|(outcome, times)| (outcome.to_owned(), times))
        .collect()
}

async fn task(alice: &Person) -> String {
    let project = alice.project("Apollo").await;
    alice.task(&project, "Fly", json!({})).await
}

#[tokio::test]
async fn concurrent_sign_ups_with_one_address_create_one_account() {
    let server = Server::start().await;
    let register = async |number: usize, email: &str, username: &str| {
        let (email, username) = (
            email.replace('#', &number.to_string()),
            username.replace('#', &number.to_string()),
        );
        let body = json!({ "email": email, "username": username, "password": PASSWORD });
        let reply = server.post("/auth/register", body).await;
        format!(
            "{} {}",
            reply.status.as_u16(),
            reply.body["code"].as_str().unwrap_or("-")
        )
    };
    let expected = counts([("201 -", 1), ("409 TAKEN", 7)]);
    let by_email =
        join_all((0..8).map(|number| register(number, "one@example.org", "user-#"))).await;
    assert_eq!(tally(by_email), expected);
    let by_name =
        join_all((0..8).map(|number| register(number, "other-#@example.org", "One"))).await;
    assert_eq!(tally(by_name), expected);
}

#[tokio::test]
async fn concurrent_updates_of_one_version_have_one_winner() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": bob.id }))
        .await;
    let update = async |number: usize| {
        let input = json!({ "id": task, "title": number.to_string(), "expectedVersion": 1 });
        let who = if number.is_multiple_of(2) {
            &alice
        } else {
            &bob
        };
        who.mutate("updateTask", input).await.outcome()
    };
    let done = join_all((0..8).map(update)).await;
    let winner = done
        .iter()
        .position(|outcome| outcome == "ok")
        .expect("one successful write");
    assert_eq!(
        tally(done),
        counts([("ok", 1), ("expectedVersion: CONFLICT", 7)])
    );
    let seen = alice
        .query(
            "{ tasks { nodes { title version } } events { nodes { __typename } } }",
            json!({}),
        )
        .await;
    assert_eq!(
        seen["tasks"]["nodes"],
        json!([{ "title": winner.to_string(), "version": 2 }])
    );
    let told: Vec<_> = seen["events"]["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|event| text(&event["__typename"]))
        .collect();
    assert_eq!(
        told,
        ["TaskCreatedEvent", "TaskAssignedEvent", "TaskUpdatedEvent"]
    );
}

#[tokio::test]
async fn concurrent_updates_without_expected_version_are_all_applied() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let mut labels = Vec::new();
    for number in 0..5 {
        labels.push(alice.label(&project, &number.to_string()).await);
    }
    let mut changes = vec![
        json!({ "title": "Fly!" }),
        json!({ "description": "x" }),
        json!({ "priority": "HIGH" }),
        json!({ "status": "IN_PROGRESS" }),
        json!({ "assigneeId": alice.id }),
    ];
    changes.extend(labels.iter().map(|label| json!({ "addLabelIds": [label] })));
    let update = async |mut input: Value| {
        input["id"] = json!(task);
        alice.mutate("updateTask", input).await.ok()["version"].as_i64()
    };
    let mut versions = join_all(changes.into_iter().map(update)).await;
    versions.sort_unstable();
    assert_eq!(
        versions,
        (2..=11).map(Some).collect::<Vec<_>>(),
        "each change gets its own version"
    );
    let seen = alice.mutate("updateTask", json!({ "id": task })).await.ok();
    assert_eq!(
        (
            &seen["title"],
            &seen["description"],
            &seen["priority"],
            &seen["status"],
            &seen["assignee"]["id"]
        ),
        (
            &json!("Fly!"),
            &json!("x"),
            &json!("HIGH"),
            &json!("IN_PROGRESS"),
            &json!(alice.id)
        )
    );
    assert_eq!(seen["labels"].as_array().map(Vec::len), Some(5));
}

#[tokio::test]
async fn stats_are_exact_under_concurrent_changes() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let work = async |number: usize| {
        let task = alice.task(&project, "Fly", json!({})).await;
        if number % 4 >= 1 {
            alice
                .mutate("updateTask", json!({ "id": task, "status": "IN_PROGRESS" }))
                .await
                .ok();
        }
        if number % 4 >= 2 {
            alice
                .mutate("updateTask", json!({ "id": task, "status": "DONE" }))
                .await
                .ok();
        }
        if number % 4 >= 3 {
            alice.mutate("deleteTask", json!({ "id": task })).await.ok();
        }
    };
    join_all((0..16).map(work)).await;
    let stats =
        "{ projects { nodes { stats { taskCount todoCount inProgressCount doneCount } } } }";
    assert_eq!(
        alice.query(stats, json!({})).await["projects"]["nodes"][0]["stats"],
        json!({ "taskCount": 12, "todoCount": 4, "inProgressCount": 4, "doneCount": 4 })
    );
}

#[tokio::test]
async fn concurrent_labels_of_one_name_create_one() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let create = async |name: &str| {
        alice
            .mutate("createLabel", json!({ "projectId": project, "name": name }))
            .await
            .outcome()
    };
    let done = join_all(["red", "RED", "Red", "rEd", "reD", "red"].map(create)).await;
    assert_eq!(tally(done), counts([("ok", 1), ("name: TAKEN", 5)]));
}

#[tokio::test]
async fn deleting_a_project_in_use_leaves_no_partial_state() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let label = alice.label(&project, "red").await;
    let mut tasks = Vec::new();
    for _ in 0..4 {
        tasks.push(
            alice
                .task(&project, "Fly", json!({ "labelIds": [label] }))
                .await,
        );
    }
    let work = async |number: usize| {
        let task = &tasks[number % 4];
        let (mutation, input) = match number % 5 {
            0 => (
                "createTask",
                json!({ "projectId": project, "title": "x", "labelIds": [label], "assigneeId": alice.id }),
            ),
            1 => ("addComment", json!({ "taskId": task, "body": "x" })),
            2 => (
                "updateTask",
                json!({ "id": task, "removeLabelIds": [label], "assigneeId": alice.id }),
            ),
            3 => (
                "createLabel",
                json!({ "projectId": project, "name": number.to_string() }),
            ),
            _ => (
                "updateTask",
                json!({ "id": task, "addLabelIds": [label], "title": number.to_string() }),
            ),
        };
        if number == 12 {
            alice
                .mutate("deleteProject", json!({ "id": project }))
                .await
                .outcome()
        } else {
            alice.mutate(mutation, input).await.outcome()
        }
    };
    for (outcome, times) in tally(join_all((0..30).map(work)).await) {
        assert!(
            outcome == "ok" || outcome.ends_with(": NOT_FOUND"),
            "{outcome} came {times} times"
        );
    }
    let seen = alice
        .query(
            "{ tasks { totalCount } projects { totalCount } }",
            json!({}),
        )
        .await;
    assert_eq!(
        seen,
        json!({ "tasks": { "totalCount": 0 }, "projects": { "totalCount": 0 } })
    );
    let document =
        "query ($after: String) { events(first: 100, after: $after) { pageInfo { hasNextPage endCursor } nodes {
        __typename ... on TaskCreatedEvent { task { id } } ... on TaskDeletedEvent { deletedTaskId }
    } } }";
    let log = alice.query(document, json!({})).await["events"].clone();
    assert_eq!(log["pageInfo"]["hasNextPage"], false);
    let ids = |kind: &str, id: fn(&Value) -> &Value| {
        let nodes = log["nodes"]
            .as_array()
            .expect("nodes")
            .iter()
            .filter(|event| event["__typename"] == kind);
        let mut ids: Vec<String> = nodes.map(|event| text(id(event))).collect();
        ids.sort_unstable();
        ids
    };
    let created = ids("TaskCreatedEvent", |event| &event["task"]["id"]);
    assert_eq!(
        created,
        ids("TaskDeletedEvent", |event| &event["deletedTaskId"]),
        "each created task has a deletion event"
    );
    let last = log["nodes"]
        .as_array()
        .and_then(|nodes| nodes.last())
        .expect("an event");
    assert_eq!(
        last["__typename"], "ProjectDeletedEvent",
        "no event follows the deletion"
    );
}

#[tokio::test]
async fn the_log_has_the_changes_of_a_task_in_order() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let task = task(&alice).await;
    let work = async |number: usize| {
        for turn in 0..6 {
            let status = if (number + turn).is_multiple_of(2) {
                "IN_PROGRESS"
            } else {
                "TODO"
            };
            alice
                .mutate(
                    "updateTask",
                    json!({ "id": task, "status": status, "title": format!("{number} {turn}") }),
                )
                .await
                .ok();
        }
    };
    join_all((0..4).map(work)).await;
    let document = "query ($task: ID!) { events(first: 100, filter: { taskId: $task }) { nodes {
        ... on StatusChangedEvent { from to } ... on TaskUpdatedEvent { changes { from to } }
    } } }";
    let log = alice.query(document, json!({ "task": task })).await["events"]["nodes"].clone();
    let (mut status, mut title) = (json!("TODO"), json!("Fly"));
    for event in log.as_array().expect("nodes") {
        let (present, change) = if event["from"].is_string() {
            (&mut status, event)
        } else {
            (&mut title, &event["changes"][0])
        };
        if change.is_object() {
            assert_eq!(change["from"], *present, "{log}");
            *present = change["to"].clone();
        }
    }
}

#[tokio::test]
async fn writes_in_one_group_commit_fail_independently() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let write = async |number: usize| {
        let (name, input) = match number % 3 {
            0 => (
                "createTask",
                json!({ "projectId": project, "title": number.to_string() }),
            ),
            1 => (
                "createLabel",
                json!({ "projectId": project, "name": (number % 5).to_string(), "color": "#ff0000" }),
            ),
            _ => (
                "updateTask",
                json!({ "id": task, "title": number.to_string() }),
            ),
        };
        loop {
            let outcome = alice.mutate(name, input.clone()).await.outcome();
            // On a busy machine a user's share of permits may be exhausted; retry these.
            if !["SERVICE_UNAVAILABLE", "RATE_LIMITED"].contains(&outcome.as_str()) {
                break format!("{name} {outcome}");
            }
        }
    };
    let done = timeout(PATIENCE, join_all((0..60).map(write)))
        .await
        .expect("answers before the timeout");
    assert_eq!(
        tally(done),
        counts([
            ("createTask ok", 20),
            ("createLabel ok", 5),
            ("createLabel name: TAKEN", 15),
            ("updateTask ok", 20),
        ])
    );
    let seen = alice.query(
        "{ tasks { totalCount nodes { title version } } events(first: 100) { nodes { id } } }",
        json!({}),
    );
    let seen = seen.await;
    assert_eq!(seen["tasks"]["totalCount"], 21);
    let events = seen["events"]["nodes"].as_array().map(Vec::len);
    assert_eq!(
        events,
        Some(1 + 20 + 20),
        "one event per created task and per changed title"
    );
    assert!(
        seen["tasks"]["nodes"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|task| task["version"] == 21)
    );
}

#[tokio::test]
async fn concurrent_username_changes_have_one_winner() {
    let server = Server::start().await;
    let mut people = Vec::new();
    for number in 0..6 {
        people.push(server.person(&format!("user-{number}")).await);
    }
    let rename = async |person: &Person| {
        person
            .mutate("updateViewer", json!({ "username": "Ada" }))
            .await
            .outcome()
    };
    let done = join_all(people.iter().map(rename)).await;
    assert_eq!(tally(done), counts([("ok", 1), ("username: TAKEN", 5)]));
}

#[tokio::test]
async fn concurrent_label_creation_and_renaming_have_one_winner() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let mut labels = Vec::new();
    for number in 0..4 {
        labels.push(alice.label(&project, &number.to_string()).await);
    }
    let name = async |number: usize| {
        let (mutation, input) = match labels.get(number) {
            Some(label) => ("updateLabel", json!({ "id": label, "name": "Red" })),
            None => (
                "createLabel",
                json!({ "projectId": project, "name": "red" }),
            ),
        };
        alice.mutate(mutation, input).await.outcome()
    };
    let done = join_all((0..8).map(name)).await;
    assert_eq!(tally(done), counts([("ok", 1), ("name: TAKEN", 7)]));
}

#[tokio::test]
async fn concurrent_demotions_and_deletions_keep_one_admin() {
    for round in 0..3 {
        let server = Server::start().await;
        let admins = [
            server.admin("root").await,
            server.admin("ada").await,
            server.admin("grace").await,
        ];
        let demote = async |who: usize, whom: usize| {
            admins[who]
                .mutate(
                    "updateUser",
                    json!({ "id": admins[whom].id, "role": "USER" }),
                )
                .await;
        };
        let leave = async |who: usize| {
            admins[who]
                .mutate("deleteViewer", json!({ "password": PASSWORD }))
                .await;
        };
        tokio::join!(
            demote(0, 1),
            demote(1, 0),
            demote(0, 0),
            demote(1, 1),
            leave(2)
        );
        let mut left = 0;
        for admin in &admins {
            let answer = admin.ask("{ viewer { role } }", json!({})).await;
            left += usize::from(answer.0["data"]["viewer"]["role"] == "ADMIN");
        }
        assert_eq!(left, 1, "round {round}");
    }
}

#[tokio::test]
async fn mutual_demotion_succeeds_once() {
    let server = Server::start().await;
    let (root, one, other) = (
        server.admin("root").await,
        server.admin("ada").await,
        server.admin("grace").await,
    );
    let demote = async |by: &Person, whom: &Person| {
        by.mutate("updateUser", json!({ "id": whom.id, "role": "USER" }))
            .await
            .outcome()
    };
    for _ in 0..10 {
        let done = <[_; 2]>::from(tokio::join!(demote(&one, &other), demote(&other, &one)));
        assert_eq!(tally(done), counts([("ok", 1), ("FORBIDDEN", 1)]));
        for admin in [&one, &other] {
            root.mutate("updateUser", json!({ "id": admin.id, "role": "ADMIN" }))
                .await
                .ok();
        }
    }
}

#[tokio::test]
async fn concurrent_account_changes_are_all_applied() {
    let (server, mut mailbox) = start(&[]).await;
    let root = server.admin("root").await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let (_, _) = (mailbox.next().await, mailbox.next().await);
    let change = async |input: Value| root.mutate("updateUser", input).await.ok();
    for round in 0..10 {
        let (name, username) = (format!("Alice {round}"), format!("alice-{round}"));
        let email = format!("alice-{round}@example.net");
        alice
            .mutate(
                "updateViewer",
                json!({ "email": email, "currentPassword": PASSWORD }),
            )
            .await
            .ok();
        let token = mailbox.next_to(&email).await.token();
        let (shown, renamed, verified) = tokio::join!(
            alice.mutate("updateViewer", json!({ "displayName": name })),
            alice.mutate("updateViewer", json!({ "username": username })),
            verify(&server, &token),
        );
        shown.ok();
        renamed.ok();
        assert_eq!(verified.status, 204);
        mailbox.next().await;
        let seen = alice
            .query("{ viewer { displayName username email } }", json!({}))
            .await["viewer"]
            .clone();
        assert_eq!(
            seen,
            json!({ "displayName": name, "username": username, "email": email }),
            "round {round}"
        );
        server.login(&username).await;
        server.login(&email).await;

        let role = if round % 2 == 0 { "ADMIN" } else { "USER" };
        tokio::join!(
            change(json!({ "id": bob.id, "role": role })),
            change(json!({ "id": bob.id, "isActive": false })),
        );
        let seen = change(json!({ "id": bob.id })).await;
        assert_eq!(
            (&seen["role"], &seen["isActive"]),
            (&json!(role), &json!(false)),
            "round {round}"
        );
        change(json!({ "id": bob.id, "isActive": true })).await;
    }
}

#[tokio::test]
async fn logout_wins_over_concurrent_refreshes() {
    let server = Server::start().await;
    server.person("alice").await;
    for round in 0..5 {
        let alice = server.login("alice").await;
        let refresh = async |_| {
            server
                .post(
                    "/auth/refresh",
                    json!({ "refresh_token": alice.refresh_token }),
                )
                .await
        };
        let logout = async {
            // The logout takes a different place among the refreshes in each round.
            join_all((0..round).map(refresh)).await;
            alice
                .post("/auth/logout")
                .send()
                .await
                .expect("an answer")
                .status()
        };
        let (replies, status) = tokio::join!(join_all((0..6).map(refresh)), logout);
        assert_eq!(status, 204);
        for reply in replies {
            assert!(
                [200, 401].contains(&reply.status.as_u16()),
                "{}",
                reply.body
            );
            if reply.status == 200 {
                let fresh = alice.with_tokens(&reply.body);
                assert!(!server.is_signed_in(fresh.token()).await, "round {round}");
                let again = server
                    .post(
                        "/auth/refresh",
                        json!({ "refresh_token": fresh.refresh_token }),
                    )
                    .await;
                assert_eq!(again.status, 401, "round {round}");
            }
        }
    }
}
