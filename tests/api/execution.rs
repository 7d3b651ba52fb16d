//! Execution of documents as the GraphQL specification defines it, including cases where
//! async-graphql deviates. Each document is sent twice, because a document already known to be
//! valid takes a different code path.

use serde_json::{Value, json};

use crate::harness::{Frame, Person, Server};

async fn start() -> (Server, Person, String) {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    (server, alice, project)
}

/// Sends a document twice and returns the data, which must be the same both times.
async fn twice(person: &Person, document: &str, variables: Value) -> Value {
    let data = person.query(document, variables.clone()).await;
    assert_eq!(person.query(document, variables).await, data, "{document}");
    data
}

const UPDATE: &str =
    "mutation ($id: ID!, $title: String, $description: String, $assigneeId: ID, $dueAt: DateTime) {
    updateTask(input: {
        id: $id, title: $title, description: $description, assigneeId: $assigneeId, dueAt: $dueAt
    }) { task { title description dueAt assignee { id } } userErrors { code field } }
}";

#[tokio::test]
async fn omitted_variable_keeps_the_field_and_null_clears_it() {
    let (server, alice, project) = start().await;
    let due = server.moment(std::time::Duration::from_secs(3_600));
    let more = json!({ "description": "To the moon", "assigneeId": alice.id });
    let task = alice.task(&project, "Fly", more).await;
    for document in [UPDATE.to_owned(), in_fragments(UPDATE)] {
        let told =
            twice(&alice, &document, json!({ "id": task, "dueAt": due })).await["updateTask"]
                .clone();
        assert_eq!(
            (&told["userErrors"], told["task"]["dueAt"].is_string()),
            (&json!([]), true),
            "{told}"
        );
        assert_eq!(told["task"]["title"], "Fly", "{told}");
        assert_eq!(told["task"]["description"], "To the moon", "{told}");
        assert_eq!(told["task"]["assignee"]["id"], alice.id, "{told}");
    }
    let cleared = alice
        .query(UPDATE, json!({ "id": task, "description": null }))
        .await["updateTask"]["task"]
        .clone();
    assert_eq!(
        (&cleared["description"], &cleared["assignee"]["id"]),
        (&Value::Null, &json!(alice.id)),
        "{cleared}"
    );
}

/// The same operation with its root field in a fragment.
fn in_fragments(document: &str) -> String {
    let (head, field) = document.split_once(" {\n").expect("a selection set");
    format!("{head} {{ ...F }} fragment F on Mutation {{ {field}")
}

#[tokio::test]
async fn omitted_variable_uses_the_argument_default_and_is_null_in_a_list() {
    let (_server, alice, project) = start().await;
    for (title, priority) in [("Fly", "HIGH"), ("Land", "LOW")] {
        alice
            .task(&project, title, json!({ "priority": priority }))
            .await;
    }
    // A single root field takes the fast path; two root fields are executed by async-graphql.
    let ordered = "query ($field: TaskOrderField!, $direction: OrderDirection = DESC, $first: Int) {
        tasks(first: $first, orderBy: { field: $field, direction: $direction }) { nodes { title } } more }";
    for more in ["", "projects { totalCount }"] {
        let ordered = ordered.replace("more", more);
        let told = twice(&alice, &ordered, json!({ "field": "PRIORITY" })).await;
        assert_eq!(
            told["tasks"]["nodes"],
            json!([{ "title": "Fly" }, { "title": "Land" }])
        );
        let told = twice(
            &alice,
            &ordered,
            json!({ "field": "PRIORITY", "direction": "ASC" }),
        )
        .await;
        assert_eq!(
            told["tasks"]["nodes"],
            json!([{ "title": "Land" }, { "title": "Fly" }])
        );
    }
    let create = "mutation ($project: ID!, $title: String!, $priority: TaskPriority) {
        createTask(input: { projectId: $project, title: $title, priority: $priority }) { task { priority } } }";
    let told = twice(
        &alice,
        create,
        json!({ "project": project, "title": "Dock" }),
    )
    .await;
    assert_eq!(told["createTask"]["task"]["priority"], "MEDIUM", "{told}");
    let listed = "query ($a: TaskStatus, $b: TaskStatus = TODO) { tasks(filter: { status: [$a, $b] }) { totalCount } }";
    for _ in 0..2 {
        let refused = alice.ask(listed, json!({})).await;
        assert_eq!(
            refused.code(),
            "BAD_USER_INPUT",
            "a null item in [TaskStatus!]: {}",
            refused.0
        );
    }
}

#[tokio::test]
async fn include_and_skip_use_variable_defaults() {
    let (_server, alice, project) = start().await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let document = "query ($id: ID!, $full: Boolean! = true, $less: Boolean = true) {
        task(id: $id) { id title @include(if: $full) status @skip(if: $less) ...F @include(if: $full) } more
    } fragment F on Task { version @skip(if: $less) priority @include(if: $full) }";
    for more in [
        "",
        "projects { totalCount @skip(if: $less) pageInfo { hasNextPage } }",
    ] {
        let document = document.replace("more", more);
        let told = twice(&alice, &document, json!({ "id": task })).await;
        assert_eq!(
            told["task"],
            json!({ "id": task, "title": "Fly", "priority": "MEDIUM" })
        );
        let told = twice(
            &alice,
            &document,
            json!({ "id": task, "full": false, "less": false }),
        )
        .await;
        assert_eq!(told["task"], json!({ "id": task, "status": "TODO" }));
        let refused = alice
            .ask(&document, json!({ "id": task, "less": null }))
            .await;
        assert_eq!(
            refused.codes()[0],
            "GRAPHQL_VALIDATION_FAILED",
            "{}",
            refused.0
        );
    }
}

#[tokio::test]
async fn repeated_mutation_field_is_executed_once() {
    let (_server, alice, project) = start().await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let documents = [
        "mutation ($i: AddCommentInput!, $yes: Boolean! = true) { addComment(input: $i) { comment { body } } ...F }
            fragment F on Mutation {
                addComment(input: $i) @include(if: $yes) { comment { author { id } } userErrors { code } } }",
        "mutation ($i: AddCommentInput!) { addComment(input: $i) { comment { body } }
            ... { addComment(input: $i) { comment { author { id } } } }
            ... on Mutation { addComment(input: $i) { userErrors { code } } } }",
    ];
    let counted = format!("{{ task(id: \"{task}\") {{ comments {{ totalCount }} }} }}");
    let mut count = 0;
    for document in documents {
        for _ in ["first, validated", "again, known to be valid"] {
            let told = alice
                .query(document, json!({ "i": { "taskId": task, "body": "Soon" } }))
                .await;
            let comment = json!({ "body": "Soon", "author": { "id": alice.id } });
            assert_eq!(
                told,
                json!({ "addComment": { "comment": comment, "userErrors": [] } })
            );
            count += 1;
            let told = alice.query(&counted, json!({})).await;
            assert_eq!(told["task"]["comments"]["totalCount"], count, "{document}");
        }
    }
}

#[tokio::test]
async fn a_subscription_selected_in_several_places_returns_all_its_fields() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let document = "subscription ($after: String, $project: ID) { ...F
            ... { events(filter: { projectId: $project }, after: $after) { __typename } } }
        fragment F on Subscription { events(filter: { projectId: $project }, after: $after) { ... on TaskCreatedEvent {
            actor { id } } actor { username } ...G } }
        fragment G on TaskCreatedEvent { task { title } task { status } }";
    let mut told = alice.subscribe(document, json!({})).await;
    alice.task(&project, "Fly", json!({})).await;
    let (actor, task) = (
        json!({ "id": alice.id, "username": "alice" }),
        json!({ "title": "Fly", "status": "TODO" }),
    );
    let event = json!({ "__typename": "TaskCreatedEvent", "actor": actor, "task": task });
    assert_eq!(told.next().await, json!({ "events": event }));
}

#[tokio::test]
async fn conflicting_fields_are_refused_before_execution() {
    let (_server, alice, project) = start().await;
    let (fly, land) = (
        alice.task(&project, "Fly", json!({})).await,
        alice.task(&project, "Land", json!({})).await,
    );
    let fill = |document: &str| document.replace("FLY", &fly).replace("LAND", &land);
    let refused = [
        r#"{ task(id: "FLY") { id } ...F } fragment F on Query { task(id: "LAND") { title } }"#,
        r#"mutation { deleteTask(input: { id: "FLY" }) { deletedTaskId }
            ... on Mutation { deleteTask(input: { id: "LAND" }) { deletedTaskId } } }"#,
        r#"{ task(id: "FLY") { a: title } task(id: "FLY") { a: status } }"#,
        r#"{ task(id: "FLY") { comments(first: 1) { totalCount } ...F } }
            fragment F on Node { ... on Task { comments(first: 2) { pageInfo { endCursor } } } }"#,
        "{ events { nodes { actor { a: username } ... on TaskCreatedEvent { actor { a: displayName } } } } }",
        r#"{ node(id: "FLY") { ... on Task { status } ... on Project { status } } }"#,
        r#"{ node(id: "FLY") { ... on Task { a: labels { id } } ... on Comment { a: author { id } } } }"#,
        r#"{ node(id: "FLY") { ... on Task { a: project { b: createdAt } } ... on Comment { a: author { b: id } } } }"#,
    ];
    for document in refused.map(fill) {
        for _ in 0..2 {
            let answer = alice.ask(&document, json!({})).await;
            assert_eq!(
                answer.code(),
                "GRAPHQL_VALIDATION_FAILED",
                "{document}: {}",
                answer.0
            );
            assert_eq!(answer.0.get("data"), None, "{document}");
        }
    }
    let mut socket = alice.socket().await;
    let document = r#"subscription { events(filter: { types: [TASK_CREATED] }) { id } ... { events { cursor } } }"#;
    socket.subscribe("1", document, json!({})).await;
    let Frame::Message(told) = socket.receive().await else {
        panic!("closed")
    };
    assert_eq!(
        told["payload"][0]["extensions"]["code"], "GRAPHQL_VALIDATION_FAILED",
        "{told}"
    );
    socket
        .subscribe(
            "2",
            "subscription { events @skip(if: true) { id } }",
            json!({}),
        )
        .await;
    let Frame::Message(told) = socket.receive().await else {
        panic!("closed")
    };
    assert_eq!(
        told["payload"][0]["extensions"]["code"], "GRAPHQL_VALIDATION_FAILED",
        "{told}"
    );
    let taken = [
        r#"{ task(id: "FLY") { id } ...F } fragment F on Query { task(id: "FLY") { title } }"#,
        r#"{ node(id: "FLY") { ... on Task { a: title } ... on Project { a: name } ... on Task { a: title } } }"#,
        r#"{ node(id: "FLY") { ... on Task { a: project { b: name } }
            ... on Comment { a: author { b: username } } } }"#,
        r#"{ node(id: "FLY") { ... on Task { a: comments { totalCount } }
            ... on Project { a: tasks { totalCount } } } }"#,
    ];
    for document in taken.map(fill) {
        twice(&alice, &document, json!({})).await;
    }
    let rest = alice.query("{ tasks { totalCount } }", json!({})).await;
    assert_eq!(rest["tasks"]["totalCount"], 2, "nothing was deleted");
}

#[tokio::test]
async fn a_field_that_is_nullable_in_one_place_is_returned_as_null() {
    let server = Server::without_jobs().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": bob.id }))
        .await;
    alice
        .mutate("updateTask", json!({ "id": task, "assigneeId": null }))
        .await
        .ok();
    let document = "{ events(last: 1) { nodes {
        ... on TaskAssignedEvent { task { id } } ... on TaskUnassignedEvent { task { id } taskId } } } }";
    let told = twice(&alice, document, json!({})).await;
    assert_eq!(
        told["events"]["nodes"],
        json!([{ "task": { "id": task }, "taskId": task }])
    );
    let told = twice(&bob, document, json!({})).await;
    assert_eq!(
        told["events"]["nodes"],
        json!([{ "task": null, "taskId": task }]),
        "bob no longer sees it"
    );
}

#[tokio::test]
async fn empty_selection_returns_an_empty_object_and_missing_object_is_null() {
    let (_server, alice, project) = start().await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let gone = alice.task(&project, "Land", json!({})).await;
    alice.mutate("deleteTask", json!({ "id": gone })).await.ok();
    let document = "query ($id: ID!, $full: Boolean! = false) { task(id: $id) {
        ... @include(if: $full) { title } more } }";
    for (more, empty) in [
        ("", json!({ "task": {} })),
        (
            "project { ...F @include(if: $full) }",
            json!({ "task": { "project": {} } }),
        ),
        (
            "activity { nodes { ... on TaskDeletedEvent { task { id } } } }",
            json!({ "task": { "activity": { "nodes": [{}] } } }),
        ),
    ] {
        let fragment = if more.contains("...F") {
            " fragment F on Project { name }"
        } else {
            ""
        };
        let document = document.replace("more", more) + fragment;
        assert_eq!(twice(&alice, &document, json!({ "id": task })).await, empty);
        assert_eq!(
            alice.ask(&document, json!({ "id": gone })).await.data(),
            &json!({ "task": null })
        );
    }
    let node = "query ($id: ID!) { node(id: $id) { ... on Task { title } } }";
    assert_eq!(
        twice(&alice, node, json!({ "id": project })).await,
        json!({ "node": {} })
    );
    assert_eq!(
        twice(&alice, node, json!({ "id": gone })).await,
        json!({ "node": null })
    );
    let nothing = "query ($full: Boolean! = false) { viewer @include(if: $full) { id } }";
    assert_eq!(twice(&alice, nothing, json!({})).await, json!({}));
    let update = "mutation ($id: ID!) {
        updateTask(input: { id: $id, title: \"Land\" }) { ... @skip(if: true) { task { id } } } }";
    assert_eq!(
        twice(&alice, update, json!({ "id": task })).await,
        json!({ "updateTask": {} })
    );
}
