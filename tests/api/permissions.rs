//! Authorization: every root field and every guarded field of the schema, for each kind of viewer.
//!
//! The tables are compared with the introspection of the running schema. A new root field, or a new
//! field on a type with guarded fields, fails here until its permissions are listed.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{Answer, Frame, Person, Server, Socket, text};

/// Field, usage, and the outcome for each viewer: anonymous, stranger, assignee of the task, owner
/// of the project, ADMIN.
type Row<'a> = (&'a str, &'a str, [&'a str; 5]);

const NO: &str = "UNAUTHENTICATED";
const OFF: &str = "FORBIDDEN";
const WRONG: &str = "currentPassword: WRONG_PASSWORD";

/// Queries: field, selection, outcomes. `none` stands for null or an empty list.
const QUERIES: [Row<'_>; 13] = [
    ("viewer", "viewer { id }", [NO, "ok", "ok", "ok", "ok"]),
    (
        "node",
        "node(id: $task) { id }",
        [NO, "none", "ok", "ok", "ok"],
    ),
    (
        "nodes",
        "nodes(ids: [$task]) { id }",
        [NO, "none", "ok", "ok", "ok"],
    ),
    (
        "user",
        "user(username: \"owner\") { id }",
        [NO, "ok", "ok", "ok", "ok"],
    ),
    ("users", "users { nodes { id } }", [NO, OFF, OFF, OFF, "ok"]),
    (
        "project",
        "project(id: $project) { id }",
        [NO, "none", "ok", "ok", "ok"],
    ),
    (
        "projects",
        "projects { nodes { id } }",
        [NO, "none", "none", "ok", "ok"],
    ),
    (
        "task",
        "task(id: $task) { id }",
        [NO, "none", "ok", "ok", "ok"],
    ),
    (
        "tasks",
        "tasks { nodes { id } }",
        [NO, "none", "ok", "ok", "ok"],
    ),
    (
        "events",
        "events { nodes { id } }",
        [NO, "none", "ok", "ok", "ok"],
    ),
    (
        "auditLog",
        "auditLog { nodes { id } }",
        [NO, OFF, OFF, OFF, "ok"],
    ),
    // `null`, because rate limits are disabled in these tests.
    ("rateLimit", "rateLimit { limit }", ["none"; 5]),
    (
        "exportViewerData",
        "exportViewerData",
        [NO, "ok", "ok", "ok", "ok"],
    ),
];

/// `node` for every type it supports.
const NODES: [(&str, [&str; 5]); 5] = [
    ("user", [NO, "ok", "ok", "ok", "ok"]),
    ("project", [NO, "none", "ok", "ok", "ok"]),
    ("label", [NO, "none", "ok", "ok", "ok"]),
    ("task", [NO, "none", "ok", "ok", "ok"]),
    ("comment", [NO, "none", "ok", "ok", "ok"]),
];

/// Fields of `User`, requested on the owner.
const USER: [Row<'_>; 17] = [
    ("id", "id", [NO, "ok", "ok", "ok", "ok"]),
    ("username", "username", [NO, "ok", "ok", "ok", "ok"]),
    ("displayName", "displayName", [NO, "ok", "ok", "ok", "ok"]),
    ("createdAt", "createdAt", [NO, "ok", "ok", "ok", "ok"]),
    ("email", "email", [NO, OFF, OFF, "ok", "ok"]),
    ("role", "role", [NO, OFF, OFF, "ok", "ok"]),
    ("isActive", "isActive", [NO, OFF, OFF, "ok", "ok"]),
    ("emailVerified", "emailVerified", [NO, OFF, OFF, "ok", "ok"]),
    (
        "assignmentEmails",
        "assignmentEmails",
        [NO, OFF, OFF, "ok", "ok"],
    ),
    ("lastLoginAt", "lastLoginAt", [NO, OFF, OFF, "ok", "ok"]),
    (
        "stats",
        "stats { ownedProjectCount }",
        [NO, OFF, OFF, "ok", "ok"],
    ),
    ("sessions", "sessions { id }", [NO, OFF, OFF, "ok", OFF]),
    (
        "notifications",
        "notifications { nodes { id } }",
        [NO, OFF, OFF, "ok", OFF],
    ),
    ("unreadCount", "unreadCount", [NO, OFF, OFF, "ok", OFF]),
    (
        "securityLog",
        "securityLog { nodes { id } }",
        [NO, OFF, OFF, "ok", "ok"],
    ),
    (
        "projects",
        "projects { nodes { id } }",
        [NO, OFF, OFF, "ok", "ok"],
    ),
    (
        "assignedTasks",
        "assignedTasks { nodes { id } }",
        [NO, OFF, OFF, "ok", "ok"],
    ),
];

/// `viewerCan…` fields. A stranger cannot load the object at all.
const VIEWER_CAN: [(&str, &str, [&str; 5]); 7] = [
    (
        "project",
        "viewerCanUpdate",
        [NO, "none", "false", "true", "true"],
    ),
    (
        "project",
        "viewerCanDelete",
        [NO, "none", "false", "true", "true"],
    ),
    (
        "task",
        "viewerCanUpdate",
        [NO, "none", "true", "true", "true"],
    ),
    (
        "task",
        "viewerCanDelete",
        [NO, "none", "false", "true", "true"],
    ),
    (
        "task",
        "viewerCanComment",
        [NO, "none", "true", "true", "true"],
    ),
    // The owner wrote the comment.
    (
        "comment",
        "viewerCanUpdate",
        [NO, "none", "false", "true", "false"],
    ),
    (
        "comment",
        "viewerCanDelete",
        [NO, "none", "false", "true", "true"],
    ),
];

/// Mutations: field, input with `$noun` in place of ids, outcomes.
const MUTATIONS: [Row<'_>; 18] = [
    (
        "createProject",
        r#"{ "name": "x" }"#,
        [NO, "ok", "ok", "ok", "ok"],
    ),
    (
        "updateProject",
        r#"{ "id": "$project", "name": "x" }"#,
        [NO, "id: NOT_FOUND", OFF, "ok", "ok"],
    ),
    (
        "deleteProject",
        r#"{ "id": "$project" }"#,
        [NO, "id: NOT_FOUND", OFF, "ok", "ok"],
    ),
    (
        "createLabel",
        r#"{ "projectId": "$project", "name": "x" }"#,
        [NO, "projectId: NOT_FOUND", OFF, "ok", "ok"],
    ),
    (
        "updateLabel",
        r#"{ "id": "$label", "name": "x" }"#,
        [NO, "id: NOT_FOUND", OFF, "ok", "ok"],
    ),
    (
        "deleteLabel",
        r#"{ "id": "$label" }"#,
        [NO, "id: NOT_FOUND", OFF, "ok", "ok"],
    ),
    (
        "createTask",
        r#"{ "projectId": "$project", "title": "x" }"#,
        [NO, "projectId: NOT_FOUND", OFF, "ok", "ok"],
    ),
    (
        "updateTask",
        r#"{ "id": "$task", "title": "x" }"#,
        [NO, "id: NOT_FOUND", "ok", "ok", "ok"],
    ),
    (
        "deleteTask",
        r#"{ "id": "$task" }"#,
        [NO, "id: NOT_FOUND", OFF, "ok", "ok"],
    ),
    (
        "addComment",
        r#"{ "taskId": "$task", "body": "x" }"#,
        [NO, "taskId: NOT_FOUND", "ok", "ok", "ok"],
    ),
    // The owner wrote the comment.
    (
        "updateComment",
        r#"{ "id": "$comment", "body": "x" }"#,
        [NO, "id: NOT_FOUND", OFF, "ok", OFF],
    ),
    (
        "deleteComment",
        r#"{ "id": "$comment" }"#,
        [NO, "id: NOT_FOUND", OFF, "ok", "ok"],
    ),
    (
        "updateViewer",
        r#"{ "displayName": "x" }"#,
        [NO, "ok", "ok", "ok", "ok"],
    ),
    (
        "updateUser",
        r#"{ "id": "$user", "isActive": true }"#,
        [NO, OFF, OFF, OFF, "ok"],
    ),
    (
        "revokeSession",
        r#"{ "id": "$user" }"#,
        [
            NO,
            "id: NOT_FOUND",
            "id: NOT_FOUND",
            "id: NOT_FOUND",
            "id: NOT_FOUND",
        ],
    ),
    (
        "markNotificationsRead",
        r#"{ "all": true }"#,
        [NO, "ok", "ok", "ok", "ok"],
    ),
    (
        "changePassword",
        r#"{ "currentPassword": "x", "newPassword": "x" }"#,
        [NO, WRONG, WRONG, WRONG, WRONG],
    ),
    (
        "deleteViewer",
        r#"{ "password": "x" }"#,
        [
            NO,
            "password: WRONG_PASSWORD",
            "password: WRONG_PASSWORD",
            "password: WRONG_PASSWORD",
            "password: WRONG_PASSWORD",
        ],
    ),
];

/// The only mutation without an input.
const REVOKE_OTHERS: &str = "revokeOtherSessions";

/// Subscriptions: whether the viewer receives the event of the scene's task.
const SUBSCRIPTIONS: [Row<'_>; 4] = [
    (
        "taskAssigned",
        "taskAssigned { task { title } }",
        [NO, "none", "ok", "none", "none"],
    ),
    (
        "commentAdded",
        "commentAdded { task { title } }",
        [NO, "none", "ok", "ok", "ok"],
    ),
    (
        "statusChanged",
        "statusChanged { task { title } }",
        [NO, "none", "ok", "ok", "ok"],
    ),
    (
        "events",
        "events { ... on StatusChangedEvent { task { title } } }",
        [NO, "none", "ok", "ok", "ok"],
    ),
];

/// The subscription to the viewer's inbox. It never delivers the viewer's own actions; see
/// `notification`.
const INBOX: &str = "notificationAdded";

/// One person for each column of the tables, in that order.
struct People([Person; 5]);

impl People {
    async fn new(server: &Server) -> Self {
        Self([
            server.nobody(),
            server.person("stranger").await,
            server.person("assignee").await,
            server.person("owner").await,
            server.admin("admin").await,
        ])
    }

    /// Creates a project with an assigned task, a label and a comment by the owner. Returns the ids
    /// by noun.
    async fn scene(&self) -> Value {
        let [_, _, assignee, owner, _] = &self.0;
        let project = owner.project("Apollo").await;
        let task = owner
            .task(&project, "Fly", json!({ "assigneeId": assignee.id }))
            .await;
        let label = owner.label(&project, "red").await;
        let comment = owner.comment(&task, "Soon").await;
        json!({ "user": owner.id, "project": project, "task": task, "label": label, "comment": comment })
    }
}

/// The outcome of a query as one word.
fn outcome(answer: &Answer, value: &Value) -> String {
    let value = if value["nodes"].is_array() {
        &value["nodes"]
    } else {
        value
    };
    match answer.codes().first() {
        Some(code) => (*code).to_owned(),
        None if value
            .as_array()
            .is_some_and(|nodes| nodes.iter().all(Value::is_null))
            || value.is_null() =>
        {
            "none".into()
        }
        None => "ok".into(),
    }
}

async fn fields_of(server: &Server, kind: &str) -> BTreeSet<String> {
    let document = "query ($kind: String!) { __type(name: $kind) { fields { name } } }";
    let found = server
        .nobody()
        .query(document, json!({ "kind": kind }))
        .await;
    found["__type"]["fields"]
        .as_array()
        .expect("fields")
        .iter()
        .map(|field| text(&field["name"]))
        .collect()
}

fn names<'a>(rows: impl IntoIterator<Item = &'a Row<'a>>) -> BTreeSet<String> {
    rows.into_iter()
        .map(|(name, ..)| (*name).to_owned())
        .collect()
}

#[tokio::test]
async fn every_field_has_a_permission_row() {
    let server = Server::start().await;
    assert_eq!(fields_of(&server, "Query").await, names(&QUERIES));
    let mut mutations = names(&MUTATIONS);
    mutations.insert(REVOKE_OTHERS.to_owned());
    assert_eq!(fields_of(&server, "Mutation").await, mutations);
    let mut subscriptions = names(&SUBSCRIPTIONS);
    subscriptions.insert(INBOX.to_owned());
    assert_eq!(fields_of(&server, "Subscription").await, subscriptions);
    assert_eq!(fields_of(&server, "User").await, names(&USER));
    for kind in ["Project", "Label", "Task", "Comment"] {
        let can = |(noun, field, _): &(&str, &str, _)| {
            (*noun == kind.to_lowercase()).then(|| (*field).to_owned())
        };
        let said: BTreeSet<String> = VIEWER_CAN.iter().filter_map(can).collect();
        let fields = fields_of(&server, kind)
            .await
            .into_iter()
            .filter(|field| field.starts_with("viewer"));
        assert_eq!(fields.collect::<BTreeSet<_>>(), said, "{kind}");
    }
}

#[tokio::test]
async fn queries_follow_the_permission_table() {
    let server = Server::start().await;
    let people = People::new(&server).await;
    let scene = people.scene().await;
    for (field, selection, expected) in QUERIES {
        let uses = |noun: &str| selection.contains(&format!("${noun}"));
        let (kind, noun) = if uses("task") {
            ("($task: ID!)", "task")
        } else {
            ("($project: ID!)", "project")
        };
        let kind = if uses(noun) { kind } else { "" };
        for (person, expected) in people.0.iter().zip(expected) {
            let answer = person
                .ask(&format!("query {kind} {{ {selection} }}"), scene.clone())
                .await;
            assert_eq!(
                outcome(&answer, &answer.data()[field]),
                expected,
                "{field} as {}",
                person.username
            );
        }
    }
    for (noun, expected) in NODES {
        for (person, expected) in people.0.iter().zip(expected) {
            let answer = person
                .ask(
                    "query ($id: ID!) { node(id: $id) { id } }",
                    json!({ "id": scene[noun] }),
                )
                .await;
            assert_eq!(
                outcome(&answer, &answer.data()["node"]),
                expected,
                "a {noun} as {}",
                person.username
            );
        }
    }
}

#[tokio::test]
async fn account_fields_are_for_the_user_and_admin() {
    let server = Server::start().await;
    let people = People::new(&server).await;
    people.scene().await;
    for (field, selection, expected) in USER {
        let document = format!("{{ user(username: \"OWNER\") {{ username {selection} }} }}");
        for (person, expected) in people.0.iter().zip(expected) {
            let answer = person.ask(&document, json!({})).await;
            let value = &answer.data()["user"][field];
            let found = outcome(&answer, value);
            // An empty list of assigned tasks counts as readable.
            let found = if value["nodes"].is_array() && found == "none" {
                "ok".to_owned()
            } else {
                found
            };
            assert_eq!(found, expected, "{field} as {}", person.username);
            if expected == OFF {
                assert!(value.is_null());
                assert_eq!(
                    answer.data()["user"]["username"],
                    "owner",
                    "the other fields are still returned"
                );
                assert_eq!(answer.0["errors"][0]["path"], json!(["user", field]));
            }
        }
    }
}

#[tokio::test]
async fn objects_report_the_permissions_of_the_viewer() {
    let server = Server::start().await;
    let people = People::new(&server).await;
    let scene = people.scene().await;
    for (noun, field, expected) in VIEWER_CAN {
        let kind = format!("{}{}", noun[..1].to_uppercase(), &noun[1..]);
        let document =
            format!("query ($id: ID!) {{ node(id: $id) {{ ... on {kind} {{ {field} }} }} }}");
        for (person, expected) in people.0.iter().zip(expected) {
            let answer = person.ask(&document, json!({ "id": scene[noun] })).await;
            let value = &answer.data()["node"][field];
            let found = value
                .as_bool()
                .map_or_else(|| outcome(&answer, value), |can| can.to_string());
            assert_eq!(found, expected, "{noun} {field} as {}", person.username);
        }
    }
}

#[tokio::test]
async fn mutations_follow_the_permission_table() {
    let server = Server::start().await;
    let people = People::new(&server).await;
    for (mutation, input, expected) in MUTATIONS {
        for (person, expected) in people.0.iter().zip(expected) {
            // Each person gets a fresh scene, so that one mutation does not affect the next.
            let mut input = input.to_owned();
            if input.contains('$') {
                for (noun, id) in people.scene().await.as_object().expect("ids") {
                    input = input.replace(&format!("${noun}"), &text(id));
                }
            }
            let input = serde_json::from_str(&input).expect("JSON");
            let done = person.mutate(mutation, input).await.outcome();
            assert_eq!(done, expected, "{mutation} as {}", person.username);
        }
    }
}

/// An instance may cache a viewer for up to a second. Here the cache stays stale, because the
/// second instance does not read the event log.
#[tokio::test]
async fn mutations_use_current_permissions_not_cached_ones() {
    let server = Server::start().await;
    let people = People::new(&server).await;
    let elsewhere = server.beside_without_jobs().await;
    server.admin("demoted").await;
    server.admin("disabled").await;
    let [demoted, disabled] = [
        elsewhere.login("demoted").await,
        elsewhere.login("disabled").await,
    ];
    let ended = elsewhere.login("admin").await;
    let root = &people.0[4];
    root.mutate("updateUser", json!({ "id": demoted.id, "role": "USER" }))
        .await
        .ok();
    root.mutate(
        "updateUser",
        json!({ "id": disabled.id, "isActive": false }),
    )
    .await
    .ok();
    root.ask(
        &format!("mutation {{ {REVOKE_OTHERS} {{ revokedCount }} }}"),
        json!({}),
    )
    .await;
    for (mutation, input, outcomes) in MUTATIONS {
        // Refused before the write: a wrong password, and an id of another type.
        let is_refused = ["changePassword", "deleteViewer", "revokeSession"].contains(&mutation);
        let no_longer = if is_refused { outcomes[1] } else { NO };
        for (person, expected) in [
            (&demoted, outcomes[1]),
            (&disabled, no_longer),
            (&ended, no_longer),
        ] {
            let mut input = input.to_owned();
            if input.contains('$') {
                for (noun, id) in people.scene().await.as_object().expect("ids") {
                    input = input.replace(&format!("${noun}"), &text(id));
                }
            }
            let input = serde_json::from_str(&input).expect("JSON");
            let done = person.mutate(mutation, input).await.outcome();
            assert_eq!(done, expected, "{mutation} as {}", person.username);
        }
    }
    for person in [&disabled, &ended] {
        let answer = person
            .ask(
                &format!("mutation {{ {REVOKE_OTHERS} {{ revokedCount }} }}"),
                json!({}),
            )
            .await;
        assert_eq!(answer.code(), NO, "as {}", person.username);
    }
    elsewhere.stop().await;
}

#[tokio::test]
async fn any_user_can_revoke_their_other_sessions() {
    let server = Server::start().await;
    for person in People::new(&server).await.0 {
        let answer = person
            .ask(
                &format!("mutation {{ {REVOKE_OTHERS} {{ revokedCount }} }}"),
                json!({}),
            )
            .await;
        let expected = if person.access_token.is_some() {
            "ok"
        } else {
            NO
        };
        assert_eq!(
            outcome(&answer, &answer.data()[REVOKE_OTHERS]),
            expected,
            "as {}",
            person.username
        );
    }
}

#[tokio::test]
async fn refused_mutations_write_nothing() {
    let server = Server::start().await;
    let people = People::new(&server).await;
    let [_, stranger, assignee, owner, _] = &people.0;
    let scene = people.scene().await;
    let document = "query ($project: ID!) { project(id: $project) {
        name version updatedAt labels { name } tasks { nodes { title version comments { nodes { body isEdited } } } }
    } events(last: 1) { nodes { id } } }";
    let before = owner.query(document, scene.clone()).await;
    for (mutation, input, expected) in MUTATIONS {
        for (person, expected) in [(stranger, expected[1]), (assignee, expected[2])] {
            if expected == "ok" {
                continue;
            }
            let mut input = input.to_owned();
            for (noun, id) in scene.as_object().expect("ids") {
                input = input.replace(&format!("${noun}"), &text(id));
            }
            person
                .mutate(mutation, serde_json::from_str(&input).expect("JSON"))
                .await;
        }
    }
    assert_eq!(owner.query(document, scene.clone()).await, before);
}

#[tokio::test]
async fn subscriptions_deliver_to_each_role_as_the_table_says() {
    let server = Server::start().await;
    let people = People::new(&server).await;
    for (field, selection, expected) in SUBSCRIPTIONS {
        let selection = selection.replacen(field, &format!("{field}(after: $after)"), 1);
        let document = format!("subscription ($after: String) {{ {selection} }}");
        let selective = document.replace(
            "(after: $after)",
            "(after: $after, filter: { types: [STATUS_CHANGED] })",
        );
        let document = if field == "events" {
            selective
        } else {
            document
        };
        for (person, expected) in people.0.iter().zip(expected) {
            if expected == NO {
                // Anonymous clients are rejected during `connection_init`.
                let mut socket = Socket::open(server.address).await;
                socket.send(json!({ "type": "connection_init" })).await;
                assert_eq!(socket.receive().await, Frame::Closed(Some(4403)), "{field}");
                continue;
            }
            let mut told = person.subscribe(&document, json!({})).await;
            let scene = people.scene().await;
            let owner = &people.0[3];
            owner
                .mutate(
                    "updateTask",
                    json!({ "id": scene["task"], "status": "IN_PROGRESS" }),
                )
                .await
                .ok();
            // An event of their own: it arrives first if the other one is not delivered.
            let own = person.project("Own").await;
            let task = person
                .task(&own, "own", json!({ "assigneeId": person.id }))
                .await;
            person.comment(&task, "own").await;
            person
                .mutate("updateTask", json!({ "id": task, "status": "IN_PROGRESS" }))
                .await
                .ok();
            let title = text(&told.next().await[field]["task"]["title"]);
            let found = if title == "own" { "none" } else { "ok" };
            assert_eq!(found, expected, "{field} as {}", person.username);
        }
    }
}

#[tokio::test]
async fn assignee_sees_only_assigned_tasks_of_a_project() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "bob's", json!({ "assigneeId": bob.id }))
        .await;
    let other = alice
        .task(&project, "alice's", json!({ "assigneeId": alice.id }))
        .await;
    let document = "query ($project: ID!, $task: ID!) {
        project(id: $project) { name owner { username } tasks { totalCount nodes { title } } }
        task(id: $task) { project { tasks { nodes { title project { tasks { nodes { title } } } } } } }
        tasks(filter: { projectId: $project }) { nodes { title } }
    }";
    let seen = bob
        .query(document, json!({ "project": project, "task": task }))
        .await;
    let only = json!({ "nodes": [{ "title": "bob's" }] });
    assert_eq!(
        seen["project"]["tasks"],
        json!({ "totalCount": 1, "nodes": [{ "title": "bob's" }] })
    );
    assert_eq!(seen["project"]["owner"]["username"], "alice");
    assert_eq!(
        seen["task"]["project"]["tasks"]["nodes"][0]["project"]["tasks"],
        only
    );
    assert_eq!(seen["tasks"], only);
    assert_eq!(
        bob.mutate("addComment", json!({ "taskId": other, "body": "x" }))
            .await
            .faults(),
        ["taskId: NOT_FOUND"]
    );

    alice
        .mutate("updateTask", json!({ "id": task, "assigneeId": null }))
        .await
        .ok();
    let seen = bob
        .query(
            "query ($id: ID!) { project(id: $id) { id } }",
            json!({ "id": project }),
        )
        .await;
    assert_eq!(
        seen,
        json!({ "project": null }),
        "without an assigned task, the project is not visible"
    );
}

#[tokio::test]
async fn role_change_takes_effect_with_the_next_request() {
    let server = Server::start().await;
    let (admin, bob) = (server.admin("admin").await, server.person("bob").await);
    let users = "{ users { totalCount } }";
    assert_eq!(bob.ask(users, json!({})).await.code(), "FORBIDDEN");
    admin
        .mutate("updateUser", json!({ "id": bob.id, "role": "ADMIN" }))
        .await
        .ok();
    assert_eq!(bob.query(users, json!({})).await["users"]["totalCount"], 2);
    bob.mutate("updateUser", json!({ "id": admin.id, "role": "USER" }))
        .await
        .ok();
    assert_eq!(admin.ask(users, json!({})).await.code(), "FORBIDDEN");
    bob.mutate("updateUser", json!({ "id": admin.id, "isActive": false }))
        .await
        .ok();
    assert_eq!(
        admin.ask("{ viewer { id } }", json!({})).await.code(),
        "UNAUTHENTICATED"
    );
}
