//! Comments and their rules.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Person, Server};

async fn start() -> (Server, Person, Person, String) {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly", json!({ "assigneeId": bob.id })).await;
    (server, alice, bob, task)
}

#[tokio::test]
async fn a_comment_has_one_to_five_thousand_characters() {
    let (_server, alice, _, task) = start().await;
    let comment = alice.comment(&task, "x").await;
    for (body, outcome) in [
        ("ü".repeat(5_000), "ok"),
        ("ü".repeat(5_001), "body: TOO_LONG"),
        (" \n\t".to_owned(), "body: BLANK"),
        ("a\u{0}b".to_owned(), "body: INVALID"),
    ] {
        let added = alice.mutate("addComment", json!({ "taskId": task, "body": body })).await;
        assert_eq!(added.outcome(), outcome);
        let updated = alice.mutate("updateComment", json!({ "id": comment, "body": body })).await;
        assert_eq!(updated.outcome(), outcome);
    }
}

#[tokio::test]
async fn an_edited_comment_says_so() {
    let (server, _, bob, task) = start().await;
    let comment = bob.mutate("addComment", json!({ "taskId": task, "body": "  Soon " })).await.ok();
    assert_eq!((&comment["body"], &comment["isEdited"]), (&json!("Soon"), &json!(false)));
    server.advance(Duration::from_secs(1));
    let update = async |body| bob.mutate("updateComment", json!({ "id": comment["id"], "body": body })).await.ok();
    let same = update("Soon").await;
    assert_eq!((&same["isEdited"], &same["updatedAt"]), (&json!(false), &comment["createdAt"]));
    let edited = update("Now").await;
    assert_eq!((&edited["body"], &edited["isEdited"]), (&json!("Now"), &json!(true)));
    assert_eq!(edited["updatedAt"], server.moment(Duration::from_secs(1)));
}

#[tokio::test]
async fn an_author_who_lost_the_task_has_lost_the_comment_too() {
    let (_server, alice, bob, task) = start().await;
    let comment = bob.comment(&task, "Soon").await;
    alice.mutate("updateTask", json!({ "id": task, "assigneeId": null })).await.ok();
    let updated = bob.mutate("updateComment", json!({ "id": comment, "body": "Now" })).await;
    assert_eq!(updated.faults(), ["id: NOT_FOUND"]);
    let seen = bob.query("query ($id: ID!) { node(id: $id) { id } }", json!({ "id": comment })).await;
    assert_eq!(seen, json!({ "node": null }));
}

#[tokio::test]
async fn the_owner_of_the_project_deletes_only_what_they_wrote() {
    let (server, alice, bob, task) = start().await;
    let admin = server.admin("admin").await;
    let (by_bob, by_alice) = (bob.comment(&task, "b").await, alice.comment(&task, "a").await);
    assert_eq!(alice.mutate("deleteComment", json!({ "id": by_bob })).await.code(), "FORBIDDEN");
    assert_eq!(alice.mutate("deleteComment", json!({ "id": by_alice })).await.ok(), by_alice);
    assert_eq!(admin.mutate("deleteComment", json!({ "id": by_bob })).await.ok(), by_bob);
    assert_eq!(admin.mutate("deleteComment", json!({ "id": by_bob })).await.faults(), ["id: NOT_FOUND"]);
}
