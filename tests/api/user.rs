//! Users: one's own account, others by their handle, and what ADMIN does with them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{PASSWORD, Person, Server, is_postgres};

#[tokio::test]
async fn one_changes_ones_own_names_and_address() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let input = json!({ "displayName": " Alice Moreau ", "username": "Alice-2", "email": "ALICE@example.org" });
    let viewer = alice.mutate("updateViewer", input).await.ok();
    assert_eq!(
        viewer,
        json!({ "id": alice.id, "displayName": "Alice Moreau", "username": "Alice-2", "email": "ALICE@example.org",
                "emailVerified": false })
    );
    let left = alice.mutate("updateViewer", json!({})).await.ok();
    assert_eq!(left, viewer, "an absent field is left alone");
    server.login("ALICE-2").await;
    assert_eq!(alice.query("{ user(username: \"alice\") { id } }", json!({})).await["user"], Value::Null);
}

#[tokio::test]
async fn a_new_name_is_read_at_once_and_on_another_instance_within_a_second() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    alice.task(&project, "Fly", json!({ "assigneeId": bob.id })).await;
    let name = async |reader: &Person| {
        let data = reader.query("{ tasks { nodes { assignee { displayName } } } }", json!({})).await;
        data["tasks"]["nodes"][0]["assignee"]["displayName"].clone()
    };
    assert_eq!(name(&alice).await, "bob");
    bob.mutate("updateViewer", json!({ "displayName": "Bob Moreau" })).await.ok();
    assert_eq!(name(&alice).await, "Bob Moreau");
    if is_postgres() {
        let other = server.beside().await;
        let elsewhere = other.login("alice").await;
        assert_eq!(name(&elsewhere).await, "Bob Moreau");
        bob.mutate("updateViewer", json!({ "displayName": "Bob" })).await.ok();
        other.advance(Duration::from_secs(1));
        assert_eq!(name(&elsewhere).await, "Bob");
        other.stop().await;
    }
    bob.mutate("deleteViewer", json!({ "password": PASSWORD })).await.ok();
    assert_eq!(name(&alice).await, "Deleted user");
}

#[tokio::test]
async fn the_rules_of_signing_up_hold_for_changes_too() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    server.person("bob").await;
    for (field, value, code) in [
        ("displayName", json!(""), "BLANK"),
        ("displayName", json!("ü".repeat(101)), "TOO_LONG"),
        ("displayName", json!("a\u{0}"), "INVALID"),
        ("displayName", Value::Null, "BLANK"),
        ("username", json!("al"), "TOO_SHORT"),
        ("username", json!("a".repeat(51)), "TOO_LONG"),
        ("username", json!("al ice"), "INVALID"),
        ("username", json!("BOB"), "TAKEN"),
        ("username", Value::Null, "BLANK"),
        ("email", json!("x"), "INVALID"),
        ("email", json!("Bob@Example.org"), "TAKEN"),
        ("email", Value::Null, "BLANK"),
    ] {
        let done = alice.mutate("updateViewer", json!({ field: value })).await;
        assert_eq!(done.faults(), [format!("{field}: {code}")], "{value}");
    }
    let both = alice.mutate("updateViewer", json!({ "username": "bob", "email": "bob@example.org" })).await;
    assert_eq!(both.faults(), ["email: TAKEN", "username: TAKEN"]);
    alice.mutate("updateViewer", json!({ "username": "ALICE", "email": "ALICE@example.org" })).await.ok();
}

#[tokio::test]
async fn a_user_is_found_by_handle_without_regard_to_case() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("Bob").await);
    let find = async |name: &str| {
        let document = "query ($name: String!) { user(username: $name) { id } }";
        alice.query(document, json!({ "name": name })).await["user"].clone()
    };
    assert_eq!(find("bOB").await, json!({ "id": bob.id }));
    for name in ["nobody", "", "b%", "bo_", "bob@example.org", "\u{0}", "bob\u{0}"] {
        assert_eq!(find(name).await, Value::Null, "{name:?}");
    }
}

#[tokio::test]
async fn admin_filters_the_users() {
    let server = Server::start().await;
    let admin = server.admin("admin").await;
    let bob = server.person("bob").await;
    server.person("carol").await;
    admin.mutate("updateUser", json!({ "id": bob.id, "isActive": false })).await.ok();
    for (filter, expected) in [
        (json!({}), json!(["admin", "bob", "carol"])),
        (json!({ "role": "ADMIN" }), json!(["admin"])),
        (json!({ "isActive": true }), json!(["admin", "carol"])),
        (json!({ "isActive": false, "role": "USER" }), json!(["bob"])),
        (json!({ "search": "CAROL@" }), json!(["carol"])),
        (json!({ "search": "example.org b" }), json!(["bob"])),
        (json!({ "search": "%" }), json!([])),
    ] {
        let document = "query ($filter: UserFilter) { users(filter: $filter) { totalCount nodes { username } } }";
        let users = admin.query(document, json!({ "filter": filter })).await["users"].clone();
        let names: Value =
            users["nodes"].as_array().expect("nodes").iter().map(|user| user["username"].clone()).collect();
        assert_eq!(names, expected, "{filter}");
        assert_eq!(users["totalCount"], expected.as_array().map_or(0, Vec::len));
    }
}

#[tokio::test]
async fn stats_count_what_a_person_owns_and_has_to_do() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    alice.project("Gemini").await;
    for steps in [&[][..], &["IN_PROGRESS"], &["IN_PROGRESS", "DONE"]] {
        let task = alice.task(&project, "Fly", json!({ "assigneeId": alice.id })).await;
        for status in steps {
            alice.mutate("updateTask", json!({ "id": task, "status": status })).await.ok();
        }
    }
    alice.task(&project, "nobody's", json!({})).await;
    server.advance(Duration::from_secs(86_400 * 3 - 1));
    let document = "{ viewer { stats { ownedProjectCount assignedTaskCount completedTaskCount accountAgeDays } } }";
    let alice = server.login("alice").await;
    assert_eq!(
        alice.query(document, json!({})).await["viewer"]["stats"],
        json!({ "ownedProjectCount": 2, "assignedTaskCount": 3, "completedTaskCount": 1, "accountAgeDays": 2 })
    );
}

#[tokio::test]
async fn admin_cannot_be_given_a_role_that_is_null() {
    let server = Server::start().await;
    let admin = server.admin("admin").await;
    for field in ["role", "isActive"] {
        let done = admin.mutate("updateUser", json!({ "id": admin.id, field: null })).await;
        assert_eq!(done.faults(), [format!("{field}: BLANK")]);
    }
    let done = admin.mutate("updateUser", json!({ "id": "x", "role": "USER" })).await;
    assert_eq!(done.faults(), ["id: NOT_FOUND"]);
}
