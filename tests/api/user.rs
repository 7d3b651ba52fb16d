//! Users: the viewer's own account, lookup by username, and administration.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{PASSWORD, Person, Server, is_postgres};
use crate::recovery::start;

#[tokio::test]
async fn viewer_updates_their_names_and_address() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let input = json!({ "displayName": " Alice Moreau ", "username": "Alice-2", "email": "alice@example.org" });
    let viewer = alice.mutate("updateViewer", input).await.ok();
    assert_eq!(
        viewer,
        json!({ "id": alice.id, "displayName": "Alice Moreau", "username": "Alice-2", "email": "alice@example.org",
                "emailVerified": false })
    );
    let left = alice.mutate("updateViewer", json!({})).await.ok();
    assert_eq!(left, viewer, "an absent field is unchanged");
    server.login("ALICE-2").await;
    assert_eq!(
        alice
            .query("{ user(username: \"alice\") { id } }", json!({}))
            .await["user"],
        Value::Null
    );
}

#[tokio::test]
async fn name_change_is_visible_at_once_and_elsewhere_within_a_second() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    alice
        .task(&project, "Fly", json!({ "assigneeId": bob.id }))
        .await;
    let name = async |reader: &Person| {
        let data = reader
            .query(
                "{ tasks { nodes { assignee { displayName } } } }",
                json!({}),
            )
            .await;
        data["tasks"]["nodes"][0]["assignee"]["displayName"].clone()
    };
    assert_eq!(name(&alice).await, "bob");
    bob.mutate("updateViewer", json!({ "displayName": "Bob Moreau" }))
        .await
        .ok();
    assert_eq!(name(&alice).await, "Bob Moreau");
    if is_postgres() {
        let other = server.beside().await;
        let elsewhere = other.login("alice").await;
        assert_eq!(name(&elsewhere).await, "Bob Moreau");
        bob.mutate("updateViewer", json!({ "displayName": "Bob" }))
            .await
            .ok();
        other.advance(Duration::from_secs(1));
        assert_eq!(name(&elsewhere).await, "Bob");
        other.stop().await;
    }
    bob.mutate("deleteViewer", json!({ "password": PASSWORD }))
        .await
        .ok();
    assert_eq!(name(&alice).await, "Deleted user");
}

#[tokio::test]
async fn updates_are_validated_like_sign_up() {
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
        let done = alice
            .mutate(
                "updateViewer",
                json!({ field: value, "currentPassword": PASSWORD }),
            )
            .await;
        assert_eq!(done.faults(), [format!("{field}: {code}")], "{value}");
    }
    let both =
        json!({ "username": "bob", "email": "bob@example.org", "currentPassword": PASSWORD });
    assert_eq!(
        alice.mutate("updateViewer", both).await.faults(),
        ["email: TAKEN", "username: TAKEN"]
    );
    let spelling =
        json!({ "username": "ALICE", "email": "ALICE@example.org", "currentPassword": PASSWORD });
    alice.mutate("updateViewer", spelling).await.ok();
}

#[tokio::test]
async fn user_lookup_ignores_case() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("Bob").await);
    let find = async |name: &str| {
        let document = "query ($name: String!) { user(username: $name) { id } }";
        alice.query(document, json!({ "name": name })).await["user"].clone()
    };
    assert_eq!(find("bOB").await, json!({ "id": bob.id }));
    for name in [
        "nobody",
        "",
        "b%",
        "bo_",
        "bob@example.org",
        "\u{0}",
        "bob\u{0}",
    ] {
        assert_eq!(find(name).await, Value::Null, "{name:?}");
    }
}

#[tokio::test]
async fn admin_filters_the_users() {
    let server = Server::start().await;
    let admin = server.admin("admin").await;
    let bob = server.person("bob").await;
    server.person("carol").await;
    admin
        .mutate("updateUser", json!({ "id": bob.id, "isActive": false }))
        .await
        .ok();
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
        let names: Value = users["nodes"]
            .as_array()
            .expect("nodes")
            .iter()
            .map(|user| user["username"].clone())
            .collect();
        assert_eq!(names, expected, "{filter}");
        assert_eq!(users["totalCount"], expected.as_array().map_or(0, Vec::len));
    }
}

#[tokio::test]
async fn user_stats_count_owned_projects_and_open_tasks() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    alice.project("Gemini").await;
    for steps in [&[][..], &["IN_PROGRESS"], &["IN_PROGRESS", "DONE"]] {
        let task = alice
            .task(&project, "Fly", json!({ "assigneeId": alice.id }))
            .await;
        for status in steps {
            alice
                .mutate("updateTask", json!({ "id": task, "status": status }))
                .await
                .ok();
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
async fn null_role_is_refused() {
    let server = Server::start().await;
    let admin = server.admin("admin").await;
    for field in ["role", "isActive"] {
        let done = admin
            .mutate("updateUser", json!({ "id": admin.id, field: null }))
            .await;
        assert_eq!(done.faults(), [format!("{field}: BLANK")]);
    }
    let done = admin
        .mutate("updateUser", json!({ "id": "x", "role": "USER" }))
        .await;
    assert_eq!(done.faults(), ["id: NOT_FOUND"]);
}

#[tokio::test]
async fn a_display_name_has_no_invisible_or_direction_characters() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let bad = [
        "a\u{7}",
        "a\nb",
        "a\tb",
        "a\u{85}b",
        "a\u{9b}b",
        "a\u{202e}b",
        "a\u{202a}b",
        "a\u{2066}b",
        "a\u{2069}b",
        "a\u{200e}b",
        "a\u{200f}b",
        "a\u{61c}b",
        "a\u{2028}b",
        "a\u{2029}b",
        "a\u{200b}b",
        "a\u{feff}b",
        "a\u{ad}b",
        "a\u{e0041}b",
        "a\u{2060}b",
        "\u{200d}\u{200d}",
        "\u{3164}",
        "\u{2800}",
    ];
    for name in bad {
        let done = alice
            .mutate("updateViewer", json!({ "displayName": name }))
            .await;
        assert_eq!(done.faults(), ["displayName: INVALID"], "{name:?}");
        let body = json!({ "email": "x@example.org", "username": "xyz", "password": PASSWORD, "display_name": name });
        let reply = server.post("/auth/register", body).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.body["errors"][0]["field"]),
            (422, &json!("display_name")),
            "{name:?}"
        );
    }
    // Joiners are regular characters in Persian and in emoji, and right-to-left letters need no
    // control characters.
    for name in [
        "Zoë O’Brien-Łuczak",
        "می\u{200c}خواهم",
        "👩\u{200d}💻 Ada",
        "עדה",
        "阿達",
        "❤\u{fe0f}",
    ] {
        let viewer = alice
            .mutate("updateViewer", json!({ "displayName": name }))
            .await
            .ok();
        assert_eq!(viewer["displayName"], name);
    }
}

#[tokio::test]
async fn reserved_names_can_be_set_only_by_the_operator() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let reserved = [
        "admin",
        "ADMIN",
        "Root",
        "support",
        "deleted",
        "Deleted-user",
        "deleted-1",
        "ad-min",
        "_admin_",
        "administrator",
        "moderator",
        "system",
        "no-reply",
        "postmaster",
        "fasttrack",
    ];
    for name in reserved {
        let done = alice
            .mutate("updateViewer", json!({ "username": name }))
            .await;
        assert_eq!(done.faults(), ["username: INVALID"], "{name}");
        let body = json!({ "email": "x@example.org", "username": name, "password": PASSWORD });
        let reply = server.post("/auth/register", body).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.body["code"]),
            (422, &json!("INVALID")),
            "{name}"
        );
    }
    for name in ["admiral", "rooty", "supporter", "undeleted"] {
        alice
            .mutate("updateViewer", json!({ "username": name }))
            .await
            .ok();
    }
    // A user who already has such a name keeps it, in any spelling.
    let admin = server.admin("admin").await;
    admin
        .mutate("updateViewer", json!({ "username": "Admin" }))
        .await
        .ok();
    admin
        .mutate("updateViewer", json!({ "displayName": "Root" }))
        .await
        .ok();
}

#[tokio::test]
async fn a_new_username_and_an_export_are_audited() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    alice
        .mutate(
            "updateViewer",
            json!({ "username": "ada", "displayName": "Ada" }),
        )
        .await
        .ok();
    alice
        .mutate(
            "updateViewer",
            json!({ "username": "ada", "displayName": "Ada L." }),
        )
        .await
        .ok();
    alice.query("{ exportViewerData }", json!({})).await;
    let document =
        "{ viewer { securityLog(first: 2) { nodes { kind ipAddress actor { username } } } } }";
    let log = alice.query(document, json!({})).await["viewer"]["securityLog"]["nodes"].clone();
    let entry =
        |kind| json!({ "kind": kind, "ipAddress": "127.0.0.1", "actor": { "username": "ada" } });
    assert_eq!(
        log,
        json!([entry("DATA_EXPORTED"), entry("USERNAME_CHANGED")])
    );
}

#[tokio::test]
async fn a_new_username_is_mailed_to_the_owner_and_nobody_takes_the_old_one_for_three_days() {
    let (server, mut mailbox) = start(&[]).await;
    let (alice, bob) = (server.person("Alice").await, server.person("bob").await);
    let links = [mailbox.next().await, mailbox.next().await];
    assert!(
        links
            .iter()
            .all(|mail| mail.subject() == "Verify your e-mail address")
    );
    alice
        .mutate("updateViewer", json!({ "username": "ALICE" }))
        .await
        .ok();
    let mail = mailbox.next().await;
    assert_eq!(
        (mail.to.as_str(), mail.subject()),
        ("Alice@example.org", "Your username was changed")
    );
    alice
        .mutate("updateViewer", json!({ "username": "zed" }))
        .await
        .ok();
    let mail = mailbox.next().await;
    assert!(mail.content.contains("username zed"), "{}", mail.content);

    let squatter = json!({ "email": "x@example.org", "username": "alice", "password": PASSWORD });
    let refused = server.post("/auth/register", squatter.clone()).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["code"]),
        (409, &json!("TAKEN"))
    );
    assert_eq!(refused.body["errors"][0]["field"], "username");
    let taken = async || {
        bob.mutate("updateViewer", json!({ "username": "aLiCe" }))
            .await
            .faults()
    };
    assert_eq!(taken().await, ["username: TAKEN"]);
    let export = alice.query("{ exportViewerData }", json!({})).await["exportViewerData"].clone();
    assert_eq!(export["usernameChanges"][0]["from"], "alice");

    alice
        .mutate("updateViewer", json!({ "username": "alice" }))
        .await
        .ok();
    alice
        .mutate("updateViewer", json!({ "username": "zed" }))
        .await
        .ok();
    server.advance(Duration::from_secs(3 * 86_400 - 1));
    assert_eq!(
        server.post("/auth/register", squatter.clone()).await.status,
        409
    );
    server.advance(Duration::from_secs(1));
    assert_eq!(server.post("/auth/register", squatter).await.status, 201);
}

#[tokio::test]
async fn an_account_reserves_three_former_usernames_the_oldest_first() {
    let server = Server::start().await;
    let (dave, eve) = (server.person("dave").await, server.person("eve").await);
    for number in 1..6 {
        dave.mutate(
            "updateViewer",
            json!({ "username": format!("dave-{number}") }),
        )
        .await
        .ok();
    }
    for (name, outcome) in [
        ("dave", "username: TAKEN"),
        ("dave-1", "username: TAKEN"),
        ("dave-2", "username: TAKEN"),
        ("dave-3", "ok"),
        ("dave-4", "ok"),
        ("dave-5", "username: TAKEN"),
    ] {
        assert_eq!(
            eve.mutate("updateViewer", json!({ "username": name }))
                .await
                .outcome(),
            outcome,
            "{name}"
        );
    }
    dave.mutate("deleteViewer", json!({ "password": PASSWORD }))
        .await
        .ok();
    eve.mutate("updateViewer", json!({ "username": "dave" }))
        .await
        .ok();
}
