//! Comments: validation, permissions, and deletion of their text.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Person, Server, is_postgres};

async fn start() -> (Server, Person, Person, String) {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": bob.id }))
        .await;
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
        let added = alice
            .mutate("addComment", json!({ "taskId": task, "body": body }))
            .await;
        assert_eq!(added.outcome(), outcome);
        let updated = alice
            .mutate("updateComment", json!({ "id": comment, "body": body }))
            .await;
        assert_eq!(updated.outcome(), outcome);
    }
}

#[tokio::test]
async fn edited_comment_is_marked_as_edited() {
    let (server, _, bob, task) = start().await;
    let comment = bob
        .mutate("addComment", json!({ "taskId": task, "body": "  Soon " }))
        .await
        .ok();
    assert_eq!(
        (&comment["body"], &comment["isEdited"]),
        (&json!("Soon"), &json!(false))
    );
    server.advance(Duration::from_secs(1));
    let update = async |body| {
        bob.mutate(
            "updateComment",
            json!({ "id": comment["id"], "body": body }),
        )
        .await
        .ok()
    };
    let same = update("Soon").await;
    assert_eq!(
        (&same["isEdited"], &same["updatedAt"]),
        (&json!(false), &comment["createdAt"])
    );
    let edited = update("Now").await;
    assert_eq!(
        (&edited["body"], &edited["isEdited"]),
        (&json!("Now"), &json!(true))
    );
    assert_eq!(edited["updatedAt"], server.moment(Duration::from_secs(1)));
}

#[tokio::test]
async fn deleting_a_comment_removes_its_text() {
    let (server, alice, bob, task) = start().await;
    let (carol, admin) = (server.person("carol").await, server.admin("admin").await);
    let mut live = alice
        .subscribe(
            "subscription ($after: String) { events(after: $after, filter: { types: [COMMENT_DELETED] }) {
                ... on CommentDeletedEvent { comment { body author { username } } deletedCommentId }
            } }",
            json!({}),
        )
        .await;
    let comment = bob.comment(&task, "A first secret for @alice").await;
    bob.mutate(
        "updateComment",
        json!({ "id": comment, "body": "Another secret for @alice" }),
    )
    .await
    .ok();
    let dump = server.dump().await;
    assert!(
        !dump.contains("first secret") && dump.matches("Another secret").count() == 1,
        "only in its row: {dump}"
    );
    bob.mutate("deleteComment", json!({ "id": comment }))
        .await
        .ok();
    let last = json!({ "body": "", "author": { "username": "bob" } });
    assert_eq!(
        live.next().await["events"],
        json!({ "comment": last, "deletedCommentId": comment })
    );
    alice
        .mutate("updateTask", json!({ "id": task, "assigneeId": carol.id }))
        .await
        .ok();

    let events = "nodes { __typename ... on CommentAddedEvent { comment { body } }
        ... on CommentUpdatedEvent { comment { body } } ... on CommentDeletedEvent { comment { body } } }";
    let document = format!(
        "query ($task: ID!) {{ exportViewerData task(id: $task) {{ activity {{ {events} }} }} events {{ {events} }}
            viewer {{ notifications {{ nodes {{ kind comment {{ body }} }} }} }} }}"
    );
    for reader in [&alice, &carol, &admin] {
        let seen = reader
            .query(&document, json!({ "task": task }))
            .await
            .to_string();
        assert!(
            seen.contains("CommentDeletedEvent") && !seen.contains("secret"),
            "{} reads {seen}",
            reader.username
        );
    }
    assert!(!server.dump().await.contains("secret"));
}

#[tokio::test]
async fn migration_removes_comment_texts_from_the_log() {
    let (server, _, bob, task) = start().await;
    let comment = bob.comment(&task, "Soon").await;
    bob.mutate("deleteComment", json!({ "id": comment }))
        .await
        .ok();
    let database = server.database();
    database
        .execute(
            "UPDATE events SET data = '{\"comment\":{\"body\":\"a secret\"},\"mentions\":[]}' WHERE kind IN (7, 8);
             UPDATE events SET data = replace(data, '\"body\":\"\"', '\"body\":\"a secret\"') WHERE kind = 9",
        )
        .await;
    assert_eq!(server.dump().await.matches("a secret").count(), 2);
    database
        .execute(if is_postgres() {
            include_str!("../../migrations/postgres/2026-11-30-000029_comment_texts/up.sql")
        } else {
            include_str!("../../migrations/sqlite/2026-11-30-000029_comment_texts/up.sql")
        })
        .await;
    let dump = server.dump().await;
    assert!(
        !dump.contains("a secret") && dump.contains("mentions"),
        "{dump}"
    );
    let document = "query ($task: ID!) { task(id: $task) { activity { nodes {
        ... on CommentDeletedEvent { comment { body author { username } } deletedCommentId }
    } } } }";
    let seen =
        bob.query(document, json!({ "task": task })).await["task"]["activity"]["nodes"].clone();
    let last = json!({ "body": "", "author": { "username": "bob" } });
    let last = json!({ "comment": last, "deletedCommentId": comment });
    assert!(
        seen.as_array().is_some_and(|events| events.contains(&last)),
        "{seen}"
    );
}

#[tokio::test]
async fn author_without_the_task_cannot_edit_the_comment() {
    let (_server, alice, bob, task) = start().await;
    let comment = bob.comment(&task, "Soon").await;
    alice
        .mutate("updateTask", json!({ "id": task, "assigneeId": null }))
        .await
        .ok();
    let updated = bob
        .mutate("updateComment", json!({ "id": comment, "body": "Now" }))
        .await;
    assert_eq!(updated.faults(), ["id: NOT_FOUND"]);
    let seen = bob
        .query(
            "query ($id: ID!) { node(id: $id) { id } }",
            json!({ "id": comment }),
        )
        .await;
    assert_eq!(seen, json!({ "node": null }));
}

#[tokio::test]
async fn project_owner_deletes_only_their_own_comments() {
    let (server, alice, bob, task) = start().await;
    let admin = server.admin("admin").await;
    let (by_bob, by_alice) = (
        bob.comment(&task, "b").await,
        alice.comment(&task, "a").await,
    );
    assert_eq!(
        alice
            .mutate("deleteComment", json!({ "id": by_bob }))
            .await
            .code(),
        "FORBIDDEN"
    );
    assert_eq!(
        alice
            .mutate("deleteComment", json!({ "id": by_alice }))
            .await
            .ok(),
        by_alice
    );
    assert_eq!(
        admin
            .mutate("deleteComment", json!({ "id": by_bob }))
            .await
            .ok(),
        by_bob
    );
    assert_eq!(
        admin
            .mutate("deleteComment", json!({ "id": by_bob }))
            .await
            .faults(),
        ["id: NOT_FOUND"]
    );
}
