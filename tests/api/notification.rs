//! The inbox: who is notified about what, reading and marking, and live delivery.

use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use fasttrack::App;
use fasttrack::db::schema::events;
use fasttrack::events::LogPosition;
use fasttrack::on;
use fasttrack::store::notification;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::{PATIENCE, Person, Server, Subscription, text};

const ADDED: &str = "subscription ($after: String) {
    notificationAdded(after: $after) { id cursor kind isRead actor { username } task { title } comment { body } }
}";

/// Waits until the inboxes contain every event written so far.
async fn settled(app: &App) {
    let mut conn = app.db.conn().await.expect("a connection");
    let newest: (i64, i64) = on!(conn, |c| events::table
        .order_by((events::xid.desc(), events::seq.desc()))
        .select((events::xid, events::seq))
        .first(c)
        .await)
    .expect("the end of the log");
    let newest = LogPosition {
        xid: newest.0,
        seq: newest.1,
    };
    let mut inbox = app.inbox.subscribe();
    let reached = timeout(PATIENCE, inbox.wait_for(|reached| *reached >= newest)).await;
    reached
        .expect("inboxes before the timeout")
        .expect("a running server");
}

/// A user's notifications, newest first, each as `KIND by actor: task / comment`.
async fn inbox(server: &Server, person: &Person) -> Vec<String> {
    settled(&server.app).await;
    let document = "{ viewer { notifications(first: 100) {
        nodes { kind actor { username } task { title } comment { body } }
    } } }";
    let answer = person.query(document, json!({})).await;
    answer["viewer"]["notifications"]["nodes"]
        .as_array()
        .expect("notifications")
        .iter()
        .map(line)
        .collect()
}

fn line(notification: &Value) -> String {
    let part = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let (kind, actor) = (
        text(&notification["kind"]),
        part(&notification["actor"]["username"]),
    );
    format!(
        "{kind} by {actor}: {} / {}",
        part(&notification["task"]["title"]),
        part(&notification["comment"]["body"])
    )
}

async fn added(live: &mut Subscription) -> Value {
    live.next().await["notificationAdded"].clone()
}

#[tokio::test]
async fn each_kind_notifies_those_concerned_and_never_the_actor() {
    let server = Server::start().await;
    let root = server.admin("root").await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": bob.id }))
        .await;
    let own = alice
        .task(&project, "Pack", json!({ "assigneeId": alice.id }))
        .await;
    alice
        .mutate("updateTask", json!({ "id": own, "status": "IN_PROGRESS" }))
        .await
        .ok();
    alice.comment(&own, "to myself").await;
    alice.comment(&task, "of Alice").await;
    bob.comment(&task, "of Bob").await;
    bob.mutate("updateTask", json!({ "id": task, "status": "IN_PROGRESS" }))
        .await
        .ok();
    root.mutate("updateTask", json!({ "id": task, "status": "DONE" }))
        .await
        .ok();
    // A changed title is in the event log but notifies nobody.
    bob.mutate("updateTask", json!({ "id": task, "title": "Fly!" }))
        .await
        .ok();

    assert_eq!(
        inbox(&server, &bob).await,
        [
            "STATUS_CHANGED by root: Fly! / -",
            "COMMENTED by alice: Fly! / of Alice",
            "ASSIGNED by alice: Fly! / -"
        ]
    );
    assert_eq!(
        inbox(&server, &alice).await,
        [
            "STATUS_CHANGED by root: Fly! / -",
            "STATUS_CHANGED by bob: Fly! / -",
            "COMMENTED by bob: Fly! / of Bob"
        ]
    );
    assert_eq!(
        inbox(&server, &root).await,
        [""; 0],
        "administrators are not notified about every task"
    );
}

#[tokio::test]
async fn a_mention_notifies_those_who_may_see_the_task_and_replaces_the_comment() {
    let server = Server::start().await;
    let root = server.admin("root").await;
    let (alice, bob, carol) = (
        server.person("alice").await,
        server.person("Bob").await,
        server.person("carol").await,
    );
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Fly", json!({})).await;
    let body = "@Root and @bob, @nobody, @carol; me@root.org";
    let comment = alice.comment(&task, body).await;
    assert_eq!(
        inbox(&server, &root).await,
        [format!("MENTIONED by alice: Fly / {body}")]
    );
    assert_eq!(
        inbox(&server, &bob).await,
        [""; 0],
        "the task is not his yet"
    );

    alice
        .mutate("updateTask", json!({ "id": task, "assigneeId": bob.id }))
        .await
        .ok();
    alice.comment(&task, "@BOB @alice _@bob_").await;
    bob.comment(&task, "@alice!").await;
    assert_eq!(
        inbox(&server, &bob).await,
        [
            "MENTIONED by alice: Fly / @BOB @alice _@bob_",
            "ASSIGNED by alice: Fly / -"
        ]
    );
    assert_eq!(
        inbox(&server, &alice).await,
        ["MENTIONED by Bob: Fly / @alice!"]
    );

    // Users already mentioned in the text were notified; an edit notifies only newly mentioned
    // ones.
    let more = "@root, @bob, @nobody, and again: @bob!";
    let dropped = alice.comment(&task, "a word").await;
    alice
        .mutate("updateComment", json!({ "id": comment, "body": more }))
        .await
        .ok();
    alice
        .mutate(
            "updateComment",
            json!({ "id": dropped, "body": "a word to @root" }),
        )
        .await
        .ok();
    assert_eq!(
        inbox(&server, &root).await,
        [
            "MENTIONED by alice: Fly / a word to @root".to_owned(),
            format!("MENTIONED by alice: Fly / {more}")
        ]
    );
    assert_eq!(
        inbox(&server, &bob).await.len(),
        3,
        "the assignment, the mention, and the comment without a mention"
    );
    assert_eq!(inbox(&server, &carol).await, [""; 0], "a stranger");
}

#[tokio::test]
async fn marking_as_read_updates_the_unread_count() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": bob.id }))
        .await;
    for body in ["one", "two", "three", "four"] {
        alice.comment(&task, body).await;
    }
    bob.comment(&task, "to Alice").await;
    settled(&server.app).await;
    let document = "query ($after: String, $unread: Boolean) { viewer { unreadCount
        notifications(first: 2, after: $after, unreadOnly: $unread) {
            totalCount unreadCount pageInfo { hasNextPage endCursor } nodes { id isRead readAt createdAt }
            edges { node { id comment { body } } }
        }
    } }";
    let page = async |after: Value, unread: Value| {
        let viewer = bob
            .query(document, json!({ "after": after, "unread": unread }))
            .await["viewer"]
            .clone();
        assert_eq!(
            viewer["unreadCount"],
            viewer["notifications"]["unreadCount"]
        );
        viewer["notifications"].clone()
    };
    let bodies = |page: &Value| -> Vec<Value> {
        page["edges"]
            .as_array()
            .expect("edges")
            .iter()
            .map(|edge| edge["node"]["comment"]["body"].clone())
            .collect()
    };
    let first = page(Value::Null, Value::Null).await;
    assert_eq!(
        (&first["totalCount"], &first["unreadCount"]),
        (&json!(5), &json!(5))
    );
    assert_eq!(bodies(&first), ["four", "three"]);
    assert_eq!(
        first["nodes"][0]["createdAt"],
        server.moment(Duration::ZERO)
    );
    assert_eq!(
        (&first["nodes"][0]["isRead"], &first["nodes"][0]["readAt"]),
        (&json!(false), &Value::Null)
    );
    let second = page(first["pageInfo"]["endCursor"].clone(), json!(false)).await;
    assert_eq!(bodies(&second), ["two", "one"]);

    server.advance(Duration::from_secs(60));
    let two = [
        &first["nodes"][1]["id"],
        &second["nodes"][1]["id"],
        &first["nodes"][1]["id"],
    ];
    assert_eq!(
        bob.mutate("markNotificationsRead", json!({ "ids": two }))
            .await
            .ok(),
        2
    );
    assert_eq!(
        bob.mutate("markNotificationsRead", json!({ "ids": two, "all": false }))
            .await
            .ok(),
        0
    );
    let unread = page(Value::Null, json!(true)).await;
    assert_eq!(
        (&unread["totalCount"], &unread["unreadCount"]),
        (&json!(3), &json!(3))
    );
    assert_eq!(bodies(&unread), ["four", "two"]);
    let rest = page(unread["pageInfo"]["endCursor"].clone(), json!(true)).await;
    assert_eq!(
        (bodies(&rest), &rest["pageInfo"]["hasNextPage"]),
        (vec![Value::Null], &json!(false))
    );
    // Read and unread notifications share one order in the unfiltered list.
    let (mut place, mut pages) = (Value::Null, Vec::new());
    while pages.len() < 3 {
        let page = page(place, json!(false)).await;
        assert_eq!(
            (&page["totalCount"], &page["pageInfo"]["hasNextPage"]),
            (&json!(5), &json!(pages.len() < 2))
        );
        pages.push(bodies(&page));
        place = page["pageInfo"]["endCursor"].clone();
    }
    assert_eq!(
        pages.concat(),
        [
            json!("four"),
            json!("three"),
            json!("two"),
            json!("one"),
            Value::Null
        ]
    );
    let node = "query ($id: ID!) { node(id: $id) { ... on Notification { isRead readAt task { title } } } }";
    let read = bob.query(node, json!({ "id": two[0] })).await["node"].clone();
    let moment = server.moment(Duration::from_secs(60));
    assert_eq!(
        read,
        json!({ "isRead": true, "readAt": moment, "task": { "title": "Fly" } })
    );

    // Other users' notifications are neither visible nor markable, and one invalid id does not
    // affect the valid ones.
    assert_eq!(
        alice.query(node, json!({ "id": two[0] })).await["node"],
        Value::Null
    );
    let foreign = text(
        &alice
            .query("{ viewer { notifications { nodes { id } } } }", json!({}))
            .await["viewer"]["notifications"]["nodes"][0]["id"],
    );
    let unread_one = &unread["nodes"][0]["id"];
    let mark = async |input: Value| bob.mutate("markNotificationsRead", input).await.faults();
    assert_eq!(
        mark(json!({ "ids": [unread_one, foreign] })).await,
        ["ids: NOT_FOUND"]
    );
    assert_eq!(
        mark(json!({ "ids": [unread_one, task] })).await,
        ["ids: NOT_FOUND"]
    );
    assert_eq!(
        mark(json!({ "ids": vec![unread_one; 101] })).await,
        ["ids: INVALID"]
    );
    for input in [
        json!({}),
        json!({ "all": false }),
        json!({ "ids": [unread_one], "all": true }),
    ] {
        assert_eq!(mark(input).await, ["ids: INVALID"]);
    }
    let of_bob = "query ($id: ID!) { node(id: $id) { ... on User { unreadCount } } }";
    let root = server.admin("root").await;
    assert_eq!(
        root.ask(of_bob, json!({ "id": bob.id })).await.code(),
        "FORBIDDEN"
    );
    let of_bob =
        "query ($id: ID!) { node(id: $id) { ... on User { notifications { totalCount } } } }";
    assert_eq!(
        alice.ask(of_bob, json!({ "id": bob.id })).await.code(),
        "FORBIDDEN"
    );

    let all = "mutation { markNotificationsRead(input: { all: true }) { readCount viewer { unreadCount } } }";
    let done = bob.query(all, json!({})).await["markNotificationsRead"].clone();
    assert_eq!(
        done,
        json!({ "readCount": 3, "viewer": { "unreadCount": 0 } })
    );
    let left = page(Value::Null, json!(true)).await;
    assert_eq!(
        (&left["totalCount"], &left["nodes"]),
        (&json!(0), &json!([]))
    );
    assert_eq!(
        bob.query(node, json!({ "id": two[0] })).await["node"]["readAt"],
        moment,
        "read before"
    );
    assert_eq!(
        alice.query("{ viewer { unreadCount } }", json!({})).await["viewer"]["unreadCount"],
        1
    );
}

#[tokio::test]
async fn live_and_replayed_notifications_arrive_once_and_are_stored() {
    let server = Server::start().await;
    let (alice, bob, carol) = (
        server.person("alice").await,
        server.person("bob").await,
        server.person("carol").await,
    );
    let start = bob.now().await;
    let mut live = bob.subscribe(ADDED, json!({ "after": start })).await;
    let mut to_carol = carol.subscribe(ADDED, json!({ "after": start })).await;
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": bob.id }))
        .await;
    let first = added(&mut live).await;
    assert_eq!(line(&first), "ASSIGNED by alice: Fly / -");
    assert_eq!(
        bob.mutate("markNotificationsRead", json!({ "ids": [first["id"]] }))
            .await
            .ok(),
        1,
        "at once"
    );
    for number in 0..20 {
        alice.comment(&task, &format!("{number}")).await;
        bob.comment(&task, "his own").await;
    }
    let mut told = Vec::new();
    for number in 0..20 {
        let next = added(&mut live).await;
        assert_eq!(line(&next), format!("COMMENTED by alice: Fly / {number}"));
        told.push(next);
    }

    // Replaying from the start or the middle returns the same ids and cursors, including read
    // notifications.
    let mut replayed = bob.subscribe(ADDED, json!({ "after": start })).await;
    let again = added(&mut replayed).await;
    assert_eq!(
        (&again["id"], &again["isRead"]),
        (&first["id"], &json!(true))
    );
    let mut from_middle = bob
        .subscribe(ADDED, json!({ "after": told[9]["cursor"] }))
        .await;
    for (index, one) in told.iter().enumerate() {
        assert_eq!(added(&mut replayed).await, *one);
        if index > 9 {
            assert_eq!(added(&mut from_middle).await, *one);
        }
    }
    alice
        .mutate("updateTask", json!({ "id": task, "status": "IN_PROGRESS" }))
        .await
        .ok();
    for stream in [&mut live, &mut replayed, &mut from_middle] {
        assert_eq!(
            line(&added(stream).await),
            "STATUS_CHANGED by alice: Fly / -",
            "and on, live"
        );
    }
    assert_eq!(inbox(&server, &bob).await.len(), 22);
    alice
        .task(&project, "Land", json!({ "assigneeId": carol.id }))
        .await;
    assert_eq!(
        line(&added(&mut to_carol).await),
        "ASSIGNED by alice: Land / -",
        "no other notification for her"
    );
    assert_eq!(
        bob.ask(
            "{ viewer { notifications(after: \"x\") { totalCount } } }",
            json!({})
        )
        .await
        .code(),
        "BAD_USER_INPUT"
    );
}

#[tokio::test]
async fn permissions_are_checked_when_a_notification_is_read() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": bob.id }))
        .await;
    let comment = alice.comment(&task, "a secret").await;
    bob.comment(&task, "seen").await;
    alice
        .mutate("deleteComment", json!({ "id": comment }))
        .await
        .ok();
    assert_eq!(
        inbox(&server, &bob).await,
        ["COMMENTED by alice: Fly / -", "ASSIGNED by alice: Fly / -"],
        "a deleted comment"
    );
    alice.comment(&task, "another secret").await;
    alice
        .mutate("updateTask", json!({ "id": task, "assigneeId": null }))
        .await
        .ok();
    let hidden = [
        "COMMENTED by alice: - / -",
        "COMMENTED by alice: - / -",
        "ASSIGNED by alice: - / -",
    ];
    assert_eq!(
        inbox(&server, &bob).await,
        hidden,
        "a task reassigned to someone else"
    );
    assert_eq!(
        inbox(&server, &alice).await,
        ["COMMENTED by bob: Fly / seen"]
    );
    alice
        .mutate("deleteProject", json!({ "id": project }))
        .await
        .ok();
    assert_eq!(
        inbox(&server, &alice).await,
        ["COMMENTED by bob: - / -"],
        "a deleted task"
    );
}

#[tokio::test]
async fn inbox_is_exported_expires_and_is_deleted_with_the_account() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": bob.id }))
        .await;
    server.advance(Duration::from_secs(60));
    let comment = alice.comment(&task, "new").await;
    settled(&server.app).await;
    let export =
        bob.query("{ exportViewerData }", json!({})).await["exportViewerData"]["notifications"]
            .clone();
    assert_eq!(export.as_array().map(Vec::len), Some(2), "{export}");
    assert_eq!(
        (&export[0]["kind"], &export[0]["occurred_at"]),
        (&json!("Assigned"), &json!(server.moment(Duration::ZERO)))
    );
    assert_eq!(
        (&export[1]["kind"], &export[1]["read_at"]),
        (&json!("Commented"), &Value::Null)
    );

    assert_eq!(
        notification::purge_older(&server.app.db, server.app.clock.now())
            .await
            .expect("done"),
        1
    );
    assert_eq!(
        inbox(&server, &bob).await,
        ["COMMENTED by alice: Fly / new"]
    );

    bob.mutate(
        "deleteViewer",
        json!({ "password": crate::harness::PASSWORD }),
    )
    .await
    .ok();
    // The task stays assigned to the anonymized account, which no longer has an inbox.
    alice
        .mutate("updateComment", json!({ "id": comment, "body": "@bob" }))
        .await
        .ok();
    alice.comment(&task, "is anybody there?").await;
    settled(&server.app).await;
    let dump = server.dump().await;
    assert_eq!(
        dump.lines()
            .filter(|line| line.starts_with("notifications"))
            .count(),
        0,
        "{dump}"
    );
}

#[tokio::test]
async fn several_instances_and_a_restart_make_each_notification_once() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": bob.id }))
        .await;
    // Three more consumers next to the server's own job, as other instances would run.
    let stop = tokio_util::sync::CancellationToken::new();
    let others: Vec<_> = (0..3)
        .map(|_| {
            let (app, stop) = (Arc::clone(&server.app), stop.clone());
            tokio::spawn(async move {
                let mut seen = LogPosition::default();
                while !stop.is_cancelled() {
                    (seen, _) = notification::advance_inboxes(&app.db, seen)
                        .await
                        .expect("notifications");
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let comments: Vec<_> = (0..40)
        .map(|number| (number, alice.clone(), task.clone()))
        .collect();
    let comments = comments
        .into_iter()
        .map(|(number, alice, task)| async move {
            alice.comment(&task, &format!("{number}")).await;
        });
    futures_util::future::join_all(comments).await;
    let mut found = inbox(&server, &bob).await;
    assert_eq!(found.len(), 41, "{found:?}");
    stop.cancel();
    for other in others {
        other.await.expect("no panic");
    }
    let server = server.again(&[]).await;
    let bob = server.login("bob").await;
    assert_eq!(inbox(&server, &bob).await, found);
    found.sort();
    found.dedup();
    assert_eq!(found.len(), 41, "each once");
}
