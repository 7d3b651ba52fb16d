//! The main use case, end to end.

use serde_json::{Value, json};

use crate::harness::{Person, Server, Subscription};

/// Asserts that no query, mutation or subscription shows a stranger anything.
async fn sees_nothing(stranger: &Person, project: &str, task: &str, comment: &str) {
    let document = "query ($project: ID!, $task: ID!, $comment: ID!, $ids: [ID!]!) {
        project(id: $project) { id }
        task(id: $task) { id }
        node(id: $comment) { id }
        nodes(ids: $ids) { id }
        projects { totalCount nodes { id } }
        tasks { totalCount nodes { id } }
        filtered: tasks(filter: { projectId: $project }) { totalCount nodes { id } }
        events { nodes { id } }
        ofTask: events(filter: { taskId: $task }) { nodes { id } }
    }";
    let ids = [project, task, comment];
    let variables = json!({ "project": project, "task": task, "comment": comment, "ids": ids });
    let none = json!({ "totalCount": 0, "nodes": [] });
    assert_eq!(
        stranger.query(document, variables).await,
        json!({
            "project": null, "task": null, "node": null, "nodes": [null, null, null],
            "projects": none, "tasks": none, "filtered": none, "events": { "nodes": [] }, "ofTask": { "nodes": [] },
        })
    );
    for (mutation, input, fault) in [
        (
            "updateProject",
            json!({ "id": project, "name": "Mine" }),
            "id: NOT_FOUND",
        ),
        ("deleteProject", json!({ "id": project }), "id: NOT_FOUND"),
        (
            "createLabel",
            json!({ "projectId": project, "name": "x" }),
            "projectId: NOT_FOUND",
        ),
        (
            "createTask",
            json!({ "projectId": project, "title": "x" }),
            "projectId: NOT_FOUND",
        ),
        (
            "updateTask",
            json!({ "id": task, "title": "x" }),
            "id: NOT_FOUND",
        ),
        ("deleteTask", json!({ "id": task }), "id: NOT_FOUND"),
        (
            "addComment",
            json!({ "taskId": task, "body": "x" }),
            "taskId: NOT_FOUND",
        ),
        (
            "updateComment",
            json!({ "id": comment, "body": "x" }),
            "id: NOT_FOUND",
        ),
        ("deleteComment", json!({ "id": comment }), "id: NOT_FOUND"),
    ] {
        assert_eq!(
            stranger.mutate(mutation, input).await.faults(),
            [fault],
            "{mutation}"
        );
    }
}

/// One person's streams of the three subscriptions of the main use case.
struct Streams {
    assigned: Subscription,
    commented: Subscription,
    moved: Subscription,
}

impl Streams {
    async fn open(person: &Person) -> Self {
        let subscribe = async |field: &str, selection: &str| {
            let document = format!(
                "subscription ($after: String) {{ {field}(after: $after) {{ {selection} }} }}"
            );
            person.subscribe(&document, json!({})).await
        };
        Self {
            assigned: subscribe(
                "taskAssigned",
                "actor { username } assignee { username } task { title }",
            )
            .await,
            commented: subscribe(
                "commentAdded",
                "actor { username } comment { body } task { title }",
            )
            .await,
            moved: subscribe("statusChanged", "actor { username } from to task { title }").await,
        }
    }

    async fn next(&mut self) -> [Value; 3] {
        [
            self.assigned.next().await["taskAssigned"].clone(),
            self.commented.next().await["commentAdded"].clone(),
            self.moved.next().await["statusChanged"].clone(),
        ]
    }
}

/// The expected events of a task that `owner` assigns and comments on and `assignee` starts.
fn expected_events(title: &str, owner: &str, assignee: &str) -> [Value; 3] {
    let task = json!({ "title": title });
    let (owner, assignee) = (
        json!({ "username": owner }),
        json!({ "username": assignee }),
    );
    [
        json!({ "actor": owner, "assignee": assignee, "task": task }),
        json!({ "actor": owner, "comment": { "body": format!("About {title}") }, "task": task }),
        json!({ "actor": assignee, "from": "TODO", "to": "IN_PROGRESS", "task": task }),
    ]
}

/// Assigns a task, comments on it, and starts it as the assignee. Returns the ids of task and
/// comment.
async fn work(project: &str, title: &str, owner: &Person, assignee: &Person) -> (String, String) {
    let task = owner
        .task(project, title, json!({ "assigneeId": assignee.id }))
        .await;
    let comment = owner.comment(&task, &format!("About {title}")).await;
    assignee
        .mutate("updateTask", json!({ "id": task, "status": "IN_PROGRESS" }))
        .await
        .ok();
    (task, comment)
}

#[tokio::test]
async fn two_users_collaborate_and_a_stranger_sees_nothing() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let carol = server.person("carol").await;
    let mut to_bob = Streams::open(&bob).await;
    let mut to_carol = Streams::open(&carol).await;
    let mut all_to_carol = carol
        .subscribe(
            "subscription ($after: String) { events(after: $after) { actor { username } } }",
            json!({}),
        )
        .await;

    let project = alice.project("Apollo").await;
    let (task, comment) = work(&project, "Fly to the moon", &alice, &bob).await;
    assert_eq!(
        to_bob.next().await,
        expected_events("Fly to the moon", "alice", "bob")
    );
    sees_nothing(&carol, &project, &task, &comment).await;

    // The next event of each stream is about the next task: no duplicates, and nothing about the
    // first task for Carol.
    work(&project, "Walk on it", &alice, &bob).await;
    assert_eq!(
        to_bob.next().await,
        expected_events("Walk on it", "alice", "bob")
    );
    let own = carol.project("Gemini").await;
    work(&own, "Stay on the ground", &carol, &carol).await;
    assert_eq!(
        to_carol.next().await,
        expected_events("Stay on the ground", "carol", "carol")
    );
    assert_eq!(
        all_to_carol.next().await["events"]["actor"]["username"],
        "carol"
    );
}
