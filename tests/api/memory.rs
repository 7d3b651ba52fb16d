//! Memory follows the answer: operations decode only the columns they select, and the total is
//! limited per operation, per user and per process.

use std::collections::BTreeSet;
use std::time::Duration;

use fasttrack::id::Id;
use fasttrack::limits::ClientKey;
use fasttrack::limits::decode_budget::{OWNER_BYTES, PROCESS_BYTES};
use futures_util::future::join_all;
use reqwest::header::ACCEPT;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::{Frame, PATIENCE, Person, Reply, Server, text};

/// The longest description has 10,000 characters, here of four bytes each. A comment may have half
/// as many.
const LONG: usize = 10_000;

fn long(characters: usize) -> String {
    "\u{1f680}".repeat(characters)
}

/// Creates projects with tasks whose descriptions have the maximum length. Returns the task ids.
async fn populate(owner: &Person, projects: usize, tasks: usize) -> Vec<String> {
    let create: String = (0..tasks)
        .map(|number| {
            format!(
                r#"a{number}: createTask(input: {{ projectId: $project, title: "Fly", description: $long }}) {{ task {{ id }} }} "#
            )
        })
        .collect();
    let mut ids = Vec::new();
    for _ in 0..projects {
        let project = text(
            &owner
                .mutate(
                    "createProject",
                    json!({ "name": "Apollo", "description": long(LONG) }),
                )
                .await
                .ok()["id"],
        );
        let document = format!("mutation ($project: ID!, $long: String!) {{ {create} }}");
        let created = owner
            .query(&document, json!({ "project": project, "long": long(LONG) }))
            .await;
        ids.extend(
            created
                .as_object()
                .expect("tasks")
                .values()
                .map(|task| text(&task["task"]["id"])),
        );
    }
    ids
}

/// Bytes that an operation decodes from database rows. The operation must succeed.
async fn decoded(server: &Server, person: &Person, document: &str, variables: Value) -> u64 {
    let before = server.app.rate_limiter.decoding.bytes.get();
    person.query(document, variables).await;
    server.app.rate_limiter.decoding.bytes.get() - before
}

/// Selections of tasks, projects or comments without any long text.
const SHORT: [&str; 18] = [
    "{ projects(first: 100) { nodes { tasks(first: 99) { nodes { version } } } } }",
    "{ projects { edges { node { name tasks { edges { cursor node { id updatedAt } } } } } } }",
    "{ a: projects { nodes { b: tasks { nodes { c: completedAt } } d: tasks(last: 5) { nodes { e: version } } } } }",
    "query { projects { ...P } } fragment P on ProjectConnection { nodes { ...Q } }
     fragment Q on Project { tasks { nodes { ... on Task { version } ...R } } } fragment R on Node { id }",
    "{ projects { nodes { tasks { nodes { version } } } } projects { nodes { tasks { nodes { updatedAt } } } } }",
    "{ tasks(orderBy: { field: UPDATED_AT }) { nodes { creator { username } } } }",
    "{ tasks { nodes { project { name version tasks { nodes { version } } } } } }",
    "{ tasks { nodes { version comments { nodes { id author { username } isEdited } } } } }",
    "{ tasks { nodes { comments { nodes { createdAt task { version project { version } } } } } } }",
    "{ tasks { nodes { labels { name project { version } } } } }",
    "{ tasks { nodes { activity { nodes { id cursor occurredAt actor { username }
       ... on TaskCreatedEvent { task { version } } ... on CommentAddedEvent { task { id } } } } } } }",
    "{ viewer { projects { nodes { version } } assignedTasks { nodes { version } } } }",
    "{ viewer { notifications { nodes { kind task { version } comment { id task { version } } } } } }",
    "{ events { nodes { __typename id occurredAt ... on TaskUnassignedEvent { taskId } } } }",
    "query ($ids: [ID!]!) { nodes(ids: $ids) { id ... on Task { version } ... on Project { description } ... on Comment { body } } }",
    "query ($id: ID!) { node(id: $id) { ... on Task { version comments { nodes { id } } } } }",
    "query ($id: ID!) { task(id: $id) { version project { version } comments { nodes { id } } } }",
    "mutation ($id: ID!) { updateTask(input: { id: $id, priority: HIGH }) {
       task { project { tasks { nodes { version } } } } } }",
];

/// Selections with long texts.
const WITH_DESCRIPTIONS: [&str; 4] = [
    "{ projects(first: 100) { nodes { tasks(first: 99) { nodes { description } } } } }",
    "{ projects { nodes { tasks { nodes { ...T } } } } } fragment T on Task { title d: description }",
    "{ tasks { nodes { activity(first: 1) { nodes { ... on TaskCreatedEvent { task { description } } } } } } }",
    "query ($ids: [ID!]!) { nodes(ids: $ids) { ... on Task { description } } }",
];

#[tokio::test]
async fn long_columns_are_read_only_when_selected() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let tasks = populate(&alice, 3, 5).await;
    let id = &tasks[0];
    alice
        .mutate("updateTask", json!({ "id": id, "assigneeId": bob.id }))
        .await
        .ok();
    for _ in 0..4 {
        let comment = json!({ "taskId": id, "body": long(LONG / 2) });
        bob.mutate("addComment", comment).await.ok();
    }
    let variables = |document: &str| {
        let mut variables = json!({});
        if document.contains("$ids") {
            variables["ids"] = json!(tasks);
        } else if document.contains("$id") {
            variables["id"] = json!(id);
        }
        variables
    };
    for document in SHORT {
        let decoded = decoded(&server, &alice, document, variables(document)).await;
        assert!(decoded < LONG as u64 * 4, "{decoded} bytes for {document}");
    }
    for document in WITH_DESCRIPTIONS {
        let decoded = decoded(&server, &alice, document, variables(document)).await;
        let least = (tasks.len() * LONG * 4) as u64;
        assert!(
            (least..2 * least).contains(&decoded),
            "{decoded} bytes for {document}"
        );
    }
    // Eight concurrent operations decode no more than eight sequential ones.
    let before = server.app.rate_limiter.decoding.bytes.get();
    join_all((0..8).map(|_| alice.query(SHORT[0], json!({})))).await;
    let decoded = server.app.rate_limiter.decoding.bytes.get() - before;
    assert!(decoded < 8 * LONG as u64 * 4, "{decoded} bytes");
    assert_eq!(server.app.rate_limiter.decoding.budget.used(), 0);
}

#[tokio::test]
async fn operation_over_the_row_budget_is_refused() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    for _ in 0..5 {
        populate(&alice, 9, 10).await;
    }
    // 450 tasks of 40 kB each.
    let long = "{ projects(first: 100) { nodes { tasks(first: 99) { nodes { description } } } } }";
    let request = alice
        .post("/graphql")
        .header(ACCEPT, "application/graphql-response+json");
    let reply = Reply::to(request.json(&json!({ "query": long }))).await;
    assert_eq!(reply.status, 422, "{}", reply.body);
    assert_eq!(
        reply.body["errors"][0]["extensions"]["code"],
        "DOCUMENT_TOO_COMPLEX"
    );
    assert_eq!(
        reply.body["errors"][0]["message"],
        "The operation reads more than 16 MiB. Request less data."
    );
    assert!(reply.body.get("data").is_none());
    assert_eq!(server.app.rate_limiter.decoding.budget.used(), 0);
    // The same rows without the long text are within the limit.
    let short = alice
        .query(&long.replace("description", "version"), json!({}))
        .await;
    let tasks = short["projects"]["nodes"]
        .as_array()
        .expect("projects")
        .iter();
    assert_eq!(
        tasks
            .map(|project| project["tasks"]["nodes"].as_array().expect("tasks").len())
            .sum::<usize>(),
        450
    );
}

#[tokio::test]
async fn operations_are_refused_when_the_shared_row_budget_is_used_up() {
    let server = Server::without_jobs().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let tasks = populate(&alice, 1, 5).await;
    populate(&bob, 1, 5).await;
    let long = "{ tasks { nodes { description } } }";
    let budget = &server.app.rate_limiter.decoding.budget;
    let ask = async |person: &Person| {
        Reply::to(person.post("/graphql").json(&json!({ "query": long }))).await
    };
    let hold = |who: ClientKey| budget.reserve(who, OWNER_BYTES).expect("a free budget");

    let own = hold(ClientKey::User(id(&alice)));
    let refused = ask(&alice).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.headers["retry-after"]),
        (503, &"1".parse().expect("a header"))
    );
    assert_eq!(
        refused.body["errors"][0]["extensions"]["code"],
        "SERVICE_UNAVAILABLE"
    );
    assert_eq!(ask(&bob).await.status, 200, "other users are not affected");
    drop(own);
    assert_eq!(ask(&alice).await.status, 200);

    let all: Vec<_> = (0..PROCESS_BYTES / OWNER_BYTES)
        .map(|_| hold(ClientKey::User(Id::new())))
        .collect();
    for person in [&alice, &bob] {
        let refused = ask(person).await;
        assert_eq!(
            (refused.status.as_u16(), &refused.headers["retry-after"]),
            (503, &"1".parse().expect("a header"))
        );
    }
    let mut socket = alice.socket().await;
    socket.subscribe("1", long, json!({})).await;
    let Frame::Message(refused) = socket.receive().await else {
        panic!("no answer")
    };
    assert!(
        refused.to_string().contains("SERVICE_UNAVAILABLE"),
        "{refused}"
    );
    // Small reads and all writes still succeed. A payload object that is too large is null, with an
    // error.
    let renamed = alice
        .mutate("updateTask", json!({ "id": tasks[0], "title": "Land" }))
        .await
        .ok();
    assert_eq!(renamed["title"], "Land");
    let document = "mutation ($id: ID!) { updateTask(input: { id: $id, title: \"Dock\" }) {
        task { title project { tasks { nodes { description } } } } } }";
    let half = alice.ask(document, json!({ "id": tasks[0] })).await;
    assert_eq!(
        (half.data(), half.code()),
        (
            &json!({ "updateTask": { "task": null } }),
            "SERVICE_UNAVAILABLE"
        )
    );
    drop(all);
    assert_eq!(ask(&alice).await.status, 200);
    let titles = alice
        .query("{ tasks { nodes { title } } }", json!({}))
        .await;
    let titles: BTreeSet<String> = titles["tasks"]["nodes"]
        .as_array()
        .expect("tasks")
        .iter()
        .map(|task| text(&task["title"]))
        .collect();
    assert_eq!(
        titles,
        BTreeSet::from(["Dock".to_owned(), "Fly".to_owned()])
    );
    assert_eq!(budget.used(), 0);
}

#[tokio::test]
async fn row_budget_is_released_on_disconnect() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    populate(&alice, 3, 10).await;
    let long = "{ tasks(first: 100) { nodes { description project { tasks(first: 10) { nodes { description } } } } } }";
    for wait in 0..20 {
        let ask = alice
            .post("/graphql")
            .json(&json!({ "query": long }))
            .send();
        let _ = timeout(Duration::from_millis(5 * wait), ask).await;
    }
    let released = async {
        while server.app.rate_limiter.decoding.budget.used() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, released).await.expect("released");
}

fn id(person: &Person) -> Id {
    let id = async_graphql::ID(person.id.clone());
    fasttrack::graphql::node::decode(&id)
        .expect("a global id")
        .1
}
