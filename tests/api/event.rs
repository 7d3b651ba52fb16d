//! The event log, as the `events` query and subscriptions return it.

use std::sync::Arc;
use std::time::Duration;

use fasttrack::events::{self, EventKind, LogPosition, NewEvent};
use fasttrack::graphql::node;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::harness::{Frame, Person, Reply, Server, Socket, Subscription, is_postgres, text};

/// Selects every event type with its own fields.
const EVENTS: &str = "subscription ($after: String, $filter: EventFilter) {
    events(after: $after, filter: $filter) {
        __typename
        ... on TaskCreatedEvent { task { title } }
        ... on TaskUpdatedEvent { task { title } changes { field from to } }
        ... on TaskDeletedEvent { task { title } deletedTaskId }
        ... on TaskAssignedEvent { task { title } assignee { username } previousAssignee { username } }
        ... on TaskUnassignedEvent { gone: task { title } taskId previousAssignee { username } }
        ... on StatusChangedEvent { task { title } from to }
        ... on CommentAddedEvent { task { title } comment { body } }
        ... on CommentUpdatedEvent { task { title } comment { body } }
        ... on CommentDeletedEvent { task { title } last: comment { body } deletedCommentId }
        ... on ProjectUpdatedEvent { project { name } changes { field from to } }
        ... on ProjectDeletedEvent { project { name } deletedProjectId }
    }
}";

async fn event(events: &mut Subscription) -> Value {
    events.next().await["events"].clone()
}

async fn update(person: &Person, task: &str, mut input: Value) {
    input["id"] = task.into();
    person.mutate("updateTask", input).await.ok();
}

#[tokio::test]
async fn each_kind_of_event_has_its_fields() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let mut told = alice.subscribe(EVENTS, json!({})).await;
    let project = alice.project("Apollo").await;
    let label = alice.label(&project, "red").await;
    let fly = json!({ "title": "Fly" });

    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": alice.id }))
        .await;
    assert_eq!(
        event(&mut told).await,
        json!({ "__typename": "TaskCreatedEvent", "task": fly })
    );
    assert_eq!(
        event(&mut told).await,
        json!({ "__typename": "TaskAssignedEvent", "task": fly, "assignee": { "username": "alice" },
                "previousAssignee": null })
    );

    let due = server.moment(Duration::from_secs(60));
    update(
        &alice,
        &task,
        json!({ "description": "x", "priority": "HIGH", "dueAt": due, "addLabelIds": [label] }),
    )
    .await;
    assert_eq!(
        event(&mut told).await,
        json!({ "__typename": "TaskUpdatedEvent", "task": fly, "changes": [
            { "field": "description", "from": null, "to": "x" },
            { "field": "priority", "from": "MEDIUM", "to": "HIGH" },
            { "field": "dueAt", "from": null, "to": due },
            { "field": "labels", "from": "", "to": "red" },
        ] })
    );

    update(
        &alice,
        &task,
        json!({ "status": "IN_PROGRESS", "assigneeId": bob.id }),
    )
    .await;
    assert_eq!(
        event(&mut told).await,
        json!({ "__typename": "StatusChangedEvent", "task": fly, "from": "TODO", "to": "IN_PROGRESS" })
    );
    assert_eq!(
        event(&mut told).await,
        json!({ "__typename": "TaskUnassignedEvent", "gone": fly, "taskId": task,
                "previousAssignee": { "username": "alice" } })
    );
    assert_eq!(
        event(&mut told).await,
        json!({ "__typename": "TaskAssignedEvent", "task": fly, "assignee": { "username": "bob" },
                "previousAssignee": { "username": "alice" } })
    );

    let comment = bob.comment(&task, "Soon").await;
    let body = |body: &str| json!({ "body": body });
    assert_eq!(
        event(&mut told).await,
        json!({ "__typename": "CommentAddedEvent", "task": fly, "comment": body("Soon") })
    );
    bob.mutate("updateComment", json!({ "id": comment, "body": "Now" }))
        .await
        .ok();
    assert_eq!(
        event(&mut told).await,
        json!({ "__typename": "CommentUpdatedEvent", "task": fly, "comment": body("Now") })
    );
    bob.mutate("deleteComment", json!({ "id": comment }))
        .await
        .ok();
    assert_eq!(
        event(&mut told).await,
        json!({ "__typename": "CommentDeletedEvent", "task": fly, "last": body(""), "deletedCommentId": comment })
    );

    alice.mutate("deleteTask", json!({ "id": task })).await.ok();
    assert_eq!(
        event(&mut told).await,
        json!({ "__typename": "TaskDeletedEvent", "task": fly, "deletedTaskId": task })
    );
    alice
        .mutate(
            "updateProject",
            json!({ "id": project, "name": "Gemini", "status": "ARCHIVED" }),
        )
        .await
        .ok();
    assert_eq!(
        event(&mut told).await,
        json!({ "__typename": "ProjectUpdatedEvent", "project": { "name": "Gemini" }, "changes": [
            { "field": "name", "from": "Apollo", "to": "Gemini" },
            { "field": "status", "from": "ACTIVE", "to": "ARCHIVED" },
        ] })
    );
    alice
        .mutate("deleteProject", json!({ "id": project }))
        .await
        .ok();
    assert_eq!(
        event(&mut told).await,
        json!({ "__typename": "ProjectDeletedEvent", "project": { "name": "Gemini" }, "deletedProjectId": project })
    );
}

#[tokio::test]
async fn stream_without_cursor_starts_now() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let mut told = alice
        .subscribe(
            "subscription { commentAdded { comment { body } } }",
            json!({}),
        )
        .await;
    // Only the first event shows that the stream is open; create tasks until one arrives.
    let mut first = 0;
    let came = loop {
        alice.comment(&task, &first.to_string()).await;
        match timeout(Duration::from_millis(50), told.next()).await {
            Ok(came) => break came,
            Err(_) => first += 1,
        }
    };
    let begin: usize = text(&came["commentAdded"]["comment"]["body"])
        .parse()
        .expect("a number");
    for next in begin + 1..=first {
        assert_eq!(
            told.next().await["commentAdded"]["comment"]["body"],
            next.to_string()
        );
    }
    alice.comment(&task, "live").await;
    assert_eq!(told.next().await["commentAdded"]["comment"]["body"], "live");
}

#[tokio::test]
async fn stream_replays_from_a_cursor_and_continues_live() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let start = alice.now().await;
    let subscribe = async || {
        let document = "subscription ($after: String) { commentAdded(after: $after) { id cursor comment { body } } }";
        alice.subscribe(document, json!({ "after": start })).await
    };
    let write = async {
        for number in 0..40 {
            alice.comment(&task, &number.to_string()).await;
        }
    };
    let read = async {
        let mut ids = Vec::new();
        for _ in 0..3 {
            let mut told = subscribe().await;
            for number in 0..40 {
                let event = told.next().await["commentAdded"].clone();
                assert_eq!(event["comment"]["body"], number.to_string());
                ids.push(text(&event["id"]));
            }
        }
        assert_eq!(
            ids[..40],
            ids[40..80],
            "event ids are the same in every stream"
        );
    };
    tokio::join!(write, read);
}

#[tokio::test]
async fn slow_subscriber_catches_up_from_the_log() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    // More events than a subscriber's queue holds, in one transaction.
    for number in 0..150 {
        alice.task(&project, &number.to_string(), json!({})).await;
    }
    let mut told = alice.subscribe(EVENTS, json!({})).await;
    alice
        .mutate("deleteProject", json!({ "id": project }))
        .await
        .ok();
    for number in 0..150 {
        assert_eq!(event(&mut told).await["task"]["title"], number.to_string());
    }
    assert_eq!(event(&mut told).await["__typename"], "ProjectDeletedEvent");
}

#[tokio::test]
async fn a_stream_resumes_from_the_cursor_of_the_last_event() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let document =
        "subscription ($after: String) { commentAdded(after: $after) { cursor comment { body } } }";
    let mut told = alice.subscribe(document, json!({})).await;
    alice.comment(&task, "seen").await;
    let cursor = told.next().await["commentAdded"]["cursor"].clone();
    drop(told);
    alice.comment(&task, "missed").await;
    let mut told = alice.subscribe(document, json!({ "after": cursor })).await;
    alice.comment(&task, "live").await;
    for body in ["missed", "live"] {
        assert_eq!(told.next().await["commentAdded"]["comment"]["body"], body);
    }
}

#[tokio::test]
async fn streams_filter_by_task_project_and_type() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let (project, other) = (alice.project("Apollo").await, alice.project("Gemini").await);
    let task = alice.task(&project, "Fly", json!({})).await;
    let sibling = alice.task(&project, "Land", json!({})).await;
    let elsewhere = alice.task(&other, "Wait", json!({})).await;
    let subscribe = async |field: &str, variables: Value| {
        let document = format!(
            "subscription ($after: String, $task: ID, $project: ID) {{
                {field}(after: $after, taskId: $task, projectId: $project) {{ task {{ title }} }} }}"
        );
        alice.subscribe(&document, variables).await
    };
    let filtered = async |filter: Value| alice.subscribe(EVENTS, json!({ "filter": filter })).await;
    let mut streams = vec![
        (
            subscribe("commentAdded", json!({ "task": task })).await,
            "commentAdded",
            vec!["Fly"],
        ),
        (
            subscribe("commentAdded", json!({ "project": project })).await,
            "commentAdded",
            vec!["Land", "Fly"],
        ),
        (
            subscribe("statusChanged", json!({ "task": task })).await,
            "statusChanged",
            vec!["Fly"],
        ),
        (
            subscribe("statusChanged", json!({ "project": other })).await,
            "statusChanged",
            vec!["Wait"],
        ),
        (
            filtered(json!({ "taskId": task })).await,
            "events",
            vec!["Fly", "Fly"],
        ),
        (
            filtered(json!({ "types": ["STATUS_CHANGED"] })).await,
            "events",
            vec!["Wait", "Land", "Fly"],
        ),
        (
            filtered(json!({ "projectId": project, "types": ["COMMENT_ADDED"] })).await,
            "events",
            vec!["Land", "Fly"],
        ),
    ];
    for task in [&elsewhere, &sibling, &task] {
        alice.comment(task, "x").await;
        update(&alice, task, json!({ "status": "IN_PROGRESS" })).await;
    }
    for (stream, field, titles) in &mut streams {
        for title in titles {
            assert_eq!(
                stream.next().await[*field]["task"]["title"],
                *title,
                "{field}"
            );
        }
    }
    for nothing in [
        json!({ "types": [] }),
        json!({ "taskId": task, "projectId": other }),
    ] {
        let log = "query ($filter: EventFilter) { events(filter: $filter) { nodes { id } } }";
        let log = alice.query(log, json!({ "filter": nothing })).await;
        assert_eq!(log["events"]["nodes"], json!([]), "{nothing}");
    }
    for variables in [
        json!({ "filter": { "taskId": project } }),
        json!({ "filter": { "projectId": task } }),
    ] {
        assert_eq!(
            alice.subscribe(EVENTS, variables).await.end().await,
            "BAD_USER_INPUT"
        );
    }
    assert_eq!(
        subscribe("commentAdded", json!({ "task": project }))
            .await
            .end()
            .await,
        "BAD_USER_INPUT"
    );
    assert_eq!(
        alice
            .subscribe(EVENTS, json!({ "after": "x" }))
            .await
            .end()
            .await,
        "BAD_USER_INPUT"
    );
}

#[tokio::test]
async fn a_former_assignee_gets_the_unassignment_and_nothing_after_it() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let carol = server.person("carol").await;
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": bob.id }))
        .await;
    let mut told = bob.subscribe(EVENTS, json!({})).await;
    let start = bob.now().await;

    update(&alice, &task, json!({ "assigneeId": carol.id })).await;
    alice.comment(&task, "Not for Bob").await;
    update(
        &carol,
        &task,
        json!({ "status": "IN_PROGRESS", "title": "Secret" }),
    )
    .await;
    let last = json!({ "__typename": "TaskUnassignedEvent", "gone": null, "taskId": task,
                       "previousAssignee": { "username": "bob" } });
    assert_eq!(event(&mut told).await, last);
    let own = bob.project("Own").await;
    bob.task(&own, "own", json!({})).await;
    assert_eq!(event(&mut told).await["task"]["title"], "own");

    let mut replayed = bob.subscribe(EVENTS, json!({ "after": start })).await;
    assert_eq!(event(&mut replayed).await, last);
    assert_eq!(event(&mut replayed).await["task"]["title"], "own");
    let log = bob
        .query("{ events { nodes { __typename } } }", json!({}))
        .await;
    assert_eq!(
        log["events"]["nodes"],
        json!([{ "__typename": "TaskUnassignedEvent" }, { "__typename": "TaskCreatedEvent" }]),
        "older events are no longer visible"
    );
    update(&carol, &task, json!({ "assigneeId": bob.id })).await;
    assert_eq!(
        event(&mut told).await["gone"]["title"],
        "Secret",
        "visible again once reassigned"
    );
}

#[tokio::test]
async fn the_log_and_a_stream_have_the_same_events_and_cursors() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let start = alice.now().await;
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": alice.id }))
        .await;
    alice.comment(&task, "Soon").await;
    update(&alice, &task, json!({ "status": "IN_PROGRESS" })).await;
    let log = "query ($task: ID!) {
        events(filter: { taskId: $task }) { edges { cursor node { id cursor __typename } } }
        task(id: $task) { activity { edges { cursor node { id cursor __typename } } } }
    }";
    let log = alice.query(log, json!({ "task": task })).await;
    assert_eq!(log["events"], log["task"]["activity"]);
    let document =
        "subscription ($after: String) { events(after: $after) { id cursor __typename } }";
    let mut told = alice.subscribe(document, json!({ "after": start })).await;
    let edges = log["events"]["edges"].as_array().expect("edges");
    assert_eq!(edges.len(), 4);
    for edge in edges {
        assert_eq!(event(&mut told).await, edge["node"]);
        assert_eq!(edge["cursor"], edge["node"]["cursor"]);
    }
}

#[tokio::test]
async fn a_long_log_and_a_short_one_return_the_same_events() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let (carol, dave) = (server.person("carol").await, server.person("dave").await);
    // Bob owns a task, is assigned to one, both, and later neither.
    let (project, own) = (alice.project("Apollo").await, bob.project("Own").await);
    let assigned = json!({ "assigneeId": bob.id });
    let task = alice.task(&project, "Fly", assigned.clone()).await;
    bob.task(&own, "both", assigned.clone()).await;
    let lost = alice.task(&project, "lost", assigned.clone()).await;
    update(&alice, &lost, json!({ "assigneeId": carol.id })).await;
    let gone = alice.task(&project, "gone", assigned).await;
    alice.mutate("deleteTask", json!({ "id": gone })).await.ok();
    alice.task(&project, "hers", json!({})).await;
    update(&bob, &task, json!({ "status": "IN_PROGRESS" })).await;
    bob.comment(&task, "Soon").await;

    let log =
        "query ($first: Int, $last: Int, $filter: EventFilter) { events(first: $first, last: $last, filter: $filter) {
        edges { cursor node { __typename } } pageInfo { hasNextPage hasPreviousPage }
    } }";
    let told = async || {
        let mut told = Vec::new();
        for person in [&alice, &bob, &carol, &dave] {
            for question in [
                json!({ "first": 100 }),
                json!({ "first": 3 }),
                json!({ "last": 3 }),
                json!({ "filter": { "types": ["TASK_DELETED", "TASK_UNASSIGNED", "TASK_CREATED"] } }),
                json!({ "filter": { "taskId": task } }),
                json!({ "filter": { "projectId": project } }),
            ] {
                told.push(person.query(log, question).await["events"].clone());
            }
        }
        told
    };
    let short = told().await;
    let kinds = |events: &Value| -> Vec<String> {
        let edges = events["edges"].as_array().expect("edges");
        edges
            .iter()
            .map(|edge| text(&edge["node"]["__typename"]).replace("Event", ""))
            .collect()
    };
    assert_eq!(
        kinds(&short[6]),
        [
            "TaskCreated",
            "TaskAssigned",
            "TaskCreated",
            "TaskAssigned",
            "TaskUnassigned",
            "TaskDeleted",
            "StatusChanged",
            "CommentAdded",
        ],
        "what Bob sees"
    );

    // Pretend that the log is long by moving its sequence forward.
    let jump = if is_postgres() {
        "SELECT setval('events_seq_seq', 100000)"
    } else {
        "UPDATE sqlite_sequence SET seq = 100000 WHERE name = 'events'"
    };
    let erin = server.person("erin").await;
    server.database().execute(jump).await;
    let elsewhere = erin.project("Elsewhere").await;
    erin.task(&elsewhere, "unseen", json!({})).await;
    assert_eq!(told().await, short);
}

#[tokio::test]
async fn deletion_event_has_the_last_state_without_relations() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let label = alice.label(&project, "red").await;
    let task = alice
        .task(&project, "Fly", json!({ "labelIds": [label] }))
        .await;
    alice.comment(&task, "Before Bob").await;
    update(&alice, &task, json!({ "assigneeId": bob.id })).await;
    alice.mutate("deleteTask", json!({ "id": task })).await.ok();
    let document = "{ events(last: 1) { nodes { ... on TaskDeletedEvent { task {
        title assignee { username } labels { name } comments { totalCount nodes { body } } activity { nodes { id } }
    } } } } }";
    for person in [&alice, &bob] {
        assert_eq!(
            person.query(document, json!({})).await["events"]["nodes"][0]["task"],
            json!({ "title": "Fly", "assignee": { "username": "bob" }, "labels": [],
                    "comments": { "totalCount": 0, "nodes": [] }, "activity": { "nodes": [] } })
        );
    }
    let documents = "{ events { nodes { __typename ... on CommentAddedEvent { comment { id } task { title } } } } }";
    let nodes = alice.query(documents, json!({})).await["events"]["nodes"].clone();
    assert_eq!(
        nodes[1],
        json!({ "__typename": "CommentAddedEvent", "comment": null, "task": { "title": "Fly" } })
    );
}

/// Asserts that the stream has ended, with or just before its socket.
async fn assert_over(told: &mut Subscription) {
    let end = told.end().await;
    assert!(end == "closed" || end == "UNAUTHENTICATED", "{end}");
}

#[tokio::test]
async fn stream_ends_with_its_session_or_account() {
    let server = Server::start().await;
    let admin = server.admin("admin").await;
    let bob = server.person("bob").await;
    let elsewhere = server.login("bob").await;
    let mut told = bob.subscribe(EVENTS, json!({})).await;
    let mut told_elsewhere = elsewhere.subscribe(EVENTS, json!({})).await;

    assert_eq!(Reply::to(bob.post("/auth/logout")).await.status, 204);
    assert_over(&mut told).await;
    let project = elsewhere.project("Apollo").await;
    elsewhere.task(&project, "Fly", json!({})).await;
    assert_eq!(
        event(&mut told_elsewhere).await["task"]["title"],
        "Fly",
        "the other session is not affected"
    );
    admin
        .mutate("updateUser", json!({ "id": bob.id, "isActive": false }))
        .await
        .ok();
    assert_over(&mut told_elsewhere).await;
}

#[tokio::test]
async fn stream_ends_when_its_admin_is_demoted() {
    let server = Server::start().await;
    let (admin, other) = (server.admin("admin").await, server.admin("other").await);
    let alice = server.person("alice").await;
    let mut told = other.subscribe(EVENTS, json!({})).await;
    let project = alice.project("Apollo").await;
    alice.task(&project, "Fly", json!({})).await;
    assert_eq!(event(&mut told).await["task"]["title"], "Fly");
    admin
        .mutate("updateUser", json!({ "id": other.id, "role": "USER" }))
        .await
        .ok();
    alice.task(&project, "Land", json!({})).await;
    assert_over(&mut told).await;
}

#[tokio::test]
async fn a_socket_ends_with_its_session() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let mut socket = alice.socket().await;
    assert_eq!(Reply::to(alice.post("/auth/logout")).await.status, 204);
    assert_eq!(socket.receive().await, Frame::Closed(Some(4403)));
}

#[tokio::test]
async fn events_of_slow_transactions_are_not_skipped() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let mut told = alice.subscribe(EVENTS, json!({})).await;

    let slow = NewEvent {
        owner_id: node::decode(&alice.id.clone().into()).map(|(_, id)| id),
        project_id: node::decode(&project.clone().into()).map(|(_, id)| id),
        task_id: node::decode(&task.clone().into()).map(|(_, id)| id),
        ..NewEvent::new(EventKind::TaskUpdated, None, server.app.clock.now())
    };
    let (written, finish) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (wrote, may_finish) = (Arc::clone(&written), Arc::clone(&finish));
    let transaction = server.run(async move |app| {
        let work = async |tx: &mut fasttrack::db::Conn| {
            events::append(tx, std::slice::from_ref(&slow)).await?;
            wrote.notify_one();
            may_finish.notified().await;
            Ok(())
        };
        app.db.transaction(work).await
    });
    let meanwhile = async {
        written.notified().await;
        let comment = "mutation ($task: ID!) { addComment(input: { taskId: $task, body: \"x\" }) { comment { id } } }";
        let quick = alice.ask(comment, json!({ "task": task }));
        // SQLite has a single writer: the second change waits for the first.
        if is_postgres() {
            assert!(quick.await.codes().is_empty());
            let log = alice
                .query("{ events(last: 1) { nodes { __typename } } }", json!({}))
                .await;
            assert_eq!(
                log["events"]["nodes"][0]["__typename"], "TaskCreatedEvent",
                "later events wait for earlier ones"
            );
            finish.notify_one();
        } else {
            finish.notify_one();
            assert!(quick.await.codes().is_empty());
        }
    };
    let (done, ()) = tokio::join!(transaction, meanwhile);
    done.expect("a transaction that commits");
    assert_eq!(event(&mut told).await["__typename"], "TaskUpdatedEvent");
    assert_eq!(event(&mut told).await["__typename"], "CommentAddedEvent");
}

#[tokio::test]
async fn several_operations_share_a_socket_and_a_completed_one_is_silent() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let mut socket: Socket = alice.socket().await;
    let document =
        "subscription ($after: String) { commentAdded(after: $after) { comment { body } } }";
    for id in ["a", "b"] {
        socket
            .subscribe(id, document, json!({ "after": alice.now().await }))
            .await;
    }
    let next = |id: &str, body: &str| {
        let data = json!({ "commentAdded": { "comment": { "body": body } } });
        Frame::Message(json!({ "type": "next", "id": id, "payload": { "data": data } }))
    };
    alice.comment(&task, "to both").await;
    let came = [socket.receive().await, socket.receive().await];
    assert!(
        came.contains(&next("a", "to both")) && came.contains(&next("b", "to both")),
        "{came:?}"
    );
    socket.send(json!({ "type": "complete", "id": "a" })).await;
    // Operations on a socket are received in order: the answer shows that the `complete` before it
    // arrived.
    socket
        .subscribe("c", "{ viewer { username } }", json!({}))
        .await;
    let mut answered = false;
    while !answered {
        let frame = socket.receive().await;
        answered = frame == Frame::Message(json!({ "type": "complete", "id": "c" }));
    }
    for body in ["1", "2"] {
        alice.comment(&task, body).await;
        assert_eq!(socket.receive().await, next("b", body));
    }
}

#[tokio::test]
async fn equal_subscriptions_get_only_their_own_personal_fields() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": bob.id }))
        .await;
    let common = "subscription ($after: String) { statusChanged(after: $after) { to actor { username } task { project { name } } } }";
    let own = "subscription ($after: String) { statusChanged(after: $after) { to task { viewerCanDelete viewerCanUpdate } } }";
    let refused = "subscription ($after: String) { statusChanged(after: $after) { to actor { username email } } }";
    let mut listeners = Vec::new();
    for person in [&alice, &bob] {
        let mut streams = Vec::new();
        for document in [common, own, refused] {
            streams.push((
                person.subscribe(document, json!({})).await,
                person.subscribe(document, json!({})).await,
            ));
        }
        listeners.push(streams);
    }
    for to in ["IN_PROGRESS", "DONE"] {
        update(&alice, &task, json!({ "status": to })).await;
        for (streams, is_owner) in listeners.iter_mut().zip([true, false]) {
            let project = json!({ "name": "Apollo" });
            let email = is_owner.then_some("alice@example.org");
            let told = [
                json!({ "to": to, "actor": { "username": "alice" }, "task": { "project": project } }),
                json!({ "to": to, "task": { "viewerCanDelete": is_owner, "viewerCanUpdate": true } }),
                json!({ "to": to, "actor": { "username": "alice", "email": email } }),
            ];
            for ((first, second), told) in streams.iter_mut().zip(told) {
                for stream in [first, second] {
                    let answer = stream.answer().await;
                    assert_eq!(answer["data"]["statusChanged"], told);
                    assert_eq!(
                        answer.get("errors").is_some(),
                        told["actor"].get("email") == Some(&Value::Null)
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn a_cursor_between_visible_events_works_like_any_other() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    alice.task(&project, "Fly", json!({})).await;
    let end = server
        .app
        .cursors
        .decode(&alice.now().await)
        .expect("a place");
    let at = |xid: i64, seq: i64| server.app.cursors.encode(LogPosition { xid, seq });
    let later = [
        at(end.xid + 1, i64::MIN),
        at(end.xid, i64::MAX),
        at(i64::MAX, i64::MAX),
    ];
    let first = alice
        .query("{ events(first: 1) { edges { cursor } } }", json!({}))
        .await;
    let first = &first["events"]["edges"][0]["cursor"];
    let document = "query ($after: String, $before: String) {
        events(after: $after, before: $before) { nodes { __typename } } }";
    let events = async |bounds: Value| {
        let answer = alice.ask(document, bounds.clone()).await;
        let nodes = answer.data()["events"]["nodes"].as_array().map(Vec::len);
        nodes.unwrap_or_else(|| panic!("{bounds}: {}", answer.0))
    };
    let all = events(json!({})).await;
    assert!(all > 0);
    for later in &later {
        let refused = alice.ask(document, json!({ "after": later })).await;
        assert_eq!(refused.code(), "CURSOR_EXPIRED", "it is beyond the end");
        assert_eq!(events(json!({ "before": later })).await, all);
    }
    let end = alice.now().await;
    assert_eq!(events(json!({ "after": end })).await, 0);
    assert_eq!(events(json!({ "after": end, "before": first })).await, 0);
}

#[tokio::test]
async fn a_filter_has_at_most_100_types() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let types = |many: usize| json!({ "filter": { "types": vec!["TASK_CREATED"; many] } });
    let query = "query ($filter: EventFilter) { events(filter: $filter) { nodes { id } } }";
    alice.query(query, types(100)).await;
    assert_eq!(alice.ask(query, types(101)).await.code(), "BAD_USER_INPUT");
    let mut socket = alice.socket().await;
    let stream = "subscription ($filter: EventFilter) { events(filter: $filter) { id } }";
    socket.subscribe("1", stream, types(101)).await;
    let Frame::Message(refused) = socket.receive().await else {
        panic!("closed")
    };
    assert_eq!(
        refused["payload"][0]["extensions"]["code"], "BAD_USER_INPUT",
        "{refused}"
    );
}

#[tokio::test]
async fn the_events_of_what_is_gone_still_have_their_project() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let (first, _second) = (
        alice
            .task(&project, "Fly", json!({ "assigneeId": bob.id }))
            .await,
        alice
            .task(&project, "Land", json!({ "assigneeId": bob.id }))
            .await,
    );
    let fields =
        "__typename ... on TaskDeletedEvent { task { title project { name owner { username } } } }
        ... on TaskCreatedEvent { task { title project { name } } }";
    let mut live = bob
        .subscribe(
            &format!("subscription {{ events {{ {fields} }} }}"),
            json!({}),
        )
        .await;
    alice
        .mutate("deleteTask", json!({ "id": first }))
        .await
        .ok();
    live.next().await;
    alice
        .mutate("deleteProject", json!({ "id": project }))
        .await
        .ok();

    let deleted = |title: &str| {
        let project = json!({ "name": "Apollo", "owner": { "username": "alice" } });
        json!({ "__typename": "TaskDeletedEvent", "task": { "title": title, "project": project } })
    };
    assert_eq!(live.next().await["events"], deleted("Land"));
    let log = format!("{{ events(last: 100) {{ nodes {{ {fields} }} }} }}");
    assert_eq!(
        bob.query(&log, json!({})).await["events"]["nodes"],
        json!([deleted("Fly"), deleted("Land")])
    );
    let all = alice.query(&log, json!({})).await;
    let created = json!({ "title": "Fly", "project": { "name": "Apollo" } });
    assert_eq!(
        all["events"]["nodes"][0],
        json!({ "__typename": "TaskCreatedEvent", "task": created })
    );
}

#[tokio::test]
async fn a_filtered_log_costs_what_a_search_costs() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let cost = async |arguments: &str, variables: Value| {
        let document =
            format!("query ($filter: EventFilter) {{ events{arguments} {{ nodes {{ id }} }} }}");
        let document = if arguments.contains('$') {
            document
        } else {
            document.replace("($filter: EventFilter)", "")
        };
        alice.ask(&document, variables).await.0["extensions"]["cost"].clone()
    };
    let types = json!({ "filter": { "types": ["PROJECT_DELETED"] } });
    assert_eq!(cost("(first: 20)", json!({})).await, 1);
    assert_eq!(cost("(filter: null)", json!({})).await, 1);
    assert_eq!(cost("(filter: $filter)", json!({})).await, 1);
    assert_eq!(cost("(filter: $filter)", types).await, 21);
    assert_eq!(
        cost("(filter: { types: [PROJECT_DELETED] })", json!({})).await,
        21
    );
}
