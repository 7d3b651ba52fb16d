//! The main job, end to end.

use serde_json::{Value, json};

use crate::harness::{Person, Server, Subscription};

const EVENTS: &str = "subscription ($after: String) {
    events(after: $after) {
        __typename actor { username }
        ... on TaskAssignedEvent { task { title } assignee { username } }
        ... on CommentAddedEvent { comment { body } }
        ... on StatusChangedEvent { from to }
    }
}";

async fn event(events: &mut Subscription) -> Value {
    events.next().await["events"].clone()
}

/// Every door through which somebody might see what is not theirs.
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
        ("updateProject", json!({ "id": project, "name": "Mine" }), "id: NOT_FOUND"),
        ("deleteProject", json!({ "id": project }), "id: NOT_FOUND"),
        ("createLabel", json!({ "projectId": project, "name": "x" }), "projectId: NOT_FOUND"),
        ("createTask", json!({ "projectId": project, "title": "x" }), "projectId: NOT_FOUND"),
        ("updateTask", json!({ "id": task, "title": "x" }), "id: NOT_FOUND"),
        ("deleteTask", json!({ "id": task }), "id: NOT_FOUND"),
        ("addComment", json!({ "taskId": task, "body": "x" }), "taskId: NOT_FOUND"),
        ("updateComment", json!({ "id": comment, "body": "x" }), "id: NOT_FOUND"),
        ("deleteComment", json!({ "id": comment }), "id: NOT_FOUND"),
    ] {
        assert_eq!(stranger.mutate(mutation, input).await.faults(), [fault], "{mutation}");
    }
}

#[tokio::test]
async fn two_people_work_on_a_project_and_a_third_sees_nothing_of_it() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let bob = server.person("bob").await;
    let carol = server.person("carol").await;
    let mut to_bob = bob.subscribe(EVENTS, json!({})).await;
    let mut to_carol = carol.subscribe(EVENTS, json!({})).await;

    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly to the moon", json!({ "assigneeId": bob.id })).await;
    let comment = alice.comment(&task, "Mind the gap").await;
    bob.mutate("updateTask", json!({ "id": task, "status": "IN_PROGRESS" })).await.ok();

    // The task came to Bob with its creation, which he therefore sees as well.
    assert_eq!(event(&mut to_bob).await["__typename"], "TaskCreatedEvent");
    assert_eq!(
        event(&mut to_bob).await,
        json!({ "__typename": "TaskAssignedEvent", "actor": { "username": "alice" },
                "task": { "title": "Fly to the moon" }, "assignee": { "username": "bob" } })
    );
    assert_eq!(
        event(&mut to_bob).await,
        json!({ "__typename": "CommentAddedEvent", "actor": { "username": "alice" },
                "comment": { "body": "Mind the gap" } })
    );
    assert_eq!(
        event(&mut to_bob).await,
        json!({ "__typename": "StatusChangedEvent", "actor": { "username": "bob" },
                "from": "TODO", "to": "IN_PROGRESS" })
    );

    sees_nothing(&carol, &project, &task, &comment).await;
    let own = carol.project("Gemini").await;
    carol.task(&own, "Stay on the ground", json!({})).await;
    assert_eq!(
        event(&mut to_carol).await,
        json!({ "__typename": "TaskCreatedEvent", "actor": { "username": "carol" } }),
        "the first thing Carol hears of is her own"
    );
    alice.comment(&task, "Godspeed").await;
    assert_eq!(event(&mut to_bob).await["comment"]["body"], "Godspeed", "Bob was told everything once");
}
