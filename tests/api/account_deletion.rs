//! Account deletion, the export of personal data, and the audit log.

use serde_json::{Value, json};

use crate::harness::{PASSWORD, Reply, Server, text};

async fn kinds(person: &crate::harness::Person, document: &str) -> Vec<String> {
    let answer = person.query(document, json!({})).await;
    let log = answer
        .get("auditLog")
        .unwrap_or_else(|| &answer["viewer"]["securityLog"]);
    log["nodes"]
        .as_array()
        .expect("entries")
        .iter()
        .map(|entry| text(&entry["kind"]))
        .collect()
}

#[tokio::test]
async fn deleting_an_account_removes_everything_personal() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let own = alice.project("Her own").await;
    let own_task = alice
        .task(&own, "for Bob", json!({ "assigneeId": bob.id }))
        .await;
    let project = bob.project("Bob's").await;
    let task = bob
        .task(&project, "for somebody", json!({ "assigneeId": alice.id }))
        .await;
    let comment = alice.comment(&task, "I was here").await;

    let refused = alice
        .mutate("deleteViewer", json!({ "password": "Wrong-Horse-7" }))
        .await;
    assert_eq!(refused.faults(), ["password: WRONG_PASSWORD"]);
    alice
        .mutate("deleteViewer", json!({ "password": PASSWORD }))
        .await
        .ok();

    assert!(!server.is_signed_in(alice.token()).await);
    let document = "query ($task: ID!, $own: ID!, $ownTask: ID!, $comment: ID!) {
        task(id: $task) { assignee { username displayName } }
        project(id: $own) { id }
        ownTask: task(id: $ownTask) { id }
        node(id: $comment) { ... on Comment { body author { displayName } } }
        user(username: \"alice\") { id }
    }";
    let variables = json!({ "task": task, "own": own, "ownTask": own_task, "comment": comment });
    let left = bob.query(document, variables).await;
    assert_eq!(left["task"]["assignee"]["displayName"], "Deleted user");
    assert!(text(&left["task"]["assignee"]["username"]).starts_with("deleted-"));
    assert_eq!(
        left["node"],
        json!({ "body": "I was here", "author": { "displayName": "Deleted user" } })
    );
    assert_eq!(
        (&left["project"], &left["ownTask"], &left["user"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );

    // No trace of her identity is left in the database, and her names are available again.
    let dump = server.dump().await.to_lowercase();
    assert!(!dump.contains("alice"), "{dump}");
    let login = json!({ "username": "alice", "password": PASSWORD });
    assert_eq!(
        server.post("/auth/login", login).await.body["code"],
        "INVALID_CREDENTIALS"
    );
    let newcomer = server.person("alice").await;
    assert_ne!(newcomer.id, alice.id);
    let root = server.admin("root").await;
    let users = root
        .query("{ users { nodes { username } } }", json!({}))
        .await;
    assert_eq!(
        users["users"]["nodes"].as_array().map(Vec::len),
        Some(3),
        "{users}"
    );
}

#[tokio::test]
async fn deleted_names_cannot_be_registered() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = bob.project("Bob's").await;
    bob.task(&project, "for somebody", json!({ "assigneeId": alice.id }))
        .await;
    let export = alice.query("{ exportViewerData }", json!({})).await["exportViewerData"].clone();
    let id = text(&export["account"]["id"]);
    let squatter = |username: String| json!({ "username": username, "email": format!("{id}@deleted.invalid"), "password": PASSWORD });
    let reserved = server
        .post("/auth/register", squatter(format!("deleted-{id}")))
        .await;
    assert_eq!(
        (reserved.status.as_u16(), &reserved.body["code"]),
        (422, &json!("INVALID"))
    );
    assert_eq!(
        server
            .post("/auth/register", squatter("squatter".to_owned()))
            .await
            .status,
        201
    );
    alice
        .mutate("deleteViewer", json!({ "password": PASSWORD }))
        .await
        .ok();

    let left = bob
        .query("{ tasks { nodes { assignee { username } } } }", json!({}))
        .await;
    let username = text(&left["tasks"]["nodes"][0]["assignee"]["username"]);
    for name in [
        username.clone(),
        format!(
            "{}@deleted.invalid",
            username.trim_start_matches("deleted-")
        ),
    ] {
        let reply = server
            .post(
                "/auth/login",
                json!({ "username": name, "password": PASSWORD }),
            )
            .await;
        assert_eq!(
            (reply.status.as_u16(), &reply.body["code"]),
            (401, &json!("INVALID_CREDENTIALS")),
            "{name}"
        );
    }
}

#[tokio::test]
async fn the_address_of_an_admin_is_visible_to_admins_only_and_deleted_with_them() {
    let server = Server::start().await;
    let (root, ada, bob) = (
        server.admin("root").await,
        server.admin("ada").await,
        server.person("bob").await,
    );
    ada.mutate("updateUser", json!({ "id": bob.id, "role": "ADMIN" }))
        .await
        .ok();
    ada.mutate("updateUser", json!({ "id": bob.id, "role": "USER" }))
        .await
        .ok();
    let origin = |entry: &Value| (entry["kind"].clone(), entry["ipAddress"].clone());
    let (address, nowhere) = (json!("127.0.0.1"), Value::Null);
    let document = "{ viewer { securityLog(first: 2) { nodes { kind ipAddress userAgent } } } }";
    let own =
        async || bob.query(document, json!({})).await["viewer"]["securityLog"]["nodes"].clone();
    assert_eq!(
        origin(&own().await[0]),
        (json!("ROLE_CHANGED"), nowhere.clone())
    );
    let here = server.login("bob").await;
    assert_eq!(
        origin(&own().await[0]),
        (json!("LOGGED_IN"), address.clone()),
        "a user sees their own address"
    );
    let export =
        here.query("{ exportViewerData }", json!({})).await["exportViewerData"]["securityLog"]
            .clone();
    for entry in export.as_array().expect("entries") {
        let expected = if entry["kind"] == "RoleChanged" {
            &nowhere
        } else {
            &address
        };
        assert_eq!(entry["ip_address"], *expected, "{entry}");
    }
    let of_bob = async || {
        let document = "query ($id: ID) { auditLog(first: 3, userId: $id) { nodes { kind ipAddress userAgent } } }";
        root.query(document, json!({ "id": bob.id })).await["auditLog"]["nodes"][2].clone()
    };
    assert_eq!(origin(&of_bob().await), (json!("ROLE_CHANGED"), address));
    ada.mutate("deleteViewer", json!({ "password": PASSWORD }))
        .await
        .ok();
    assert_eq!(
        of_bob().await,
        json!({ "kind": "ROLE_CHANGED", "ipAddress": null, "userAgent": null })
    );
}

#[tokio::test]
async fn last_admin_cannot_be_deleted() {
    let server = Server::start().await;
    let root = server.admin("root").await;
    let document = "mutation ($password: String!) {
        deleteViewer(input: { password: $password }) { deletedUserId userErrors { field code } }
    }";
    let answer = root.query(document, json!({ "password": PASSWORD })).await;
    assert_eq!(
        answer["deleteViewer"]["userErrors"],
        json!([{ "field": null, "code": "INVALID" }])
    );
    assert!(server.is_signed_in(root.token()).await);
}

#[tokio::test]
async fn export_contains_all_stored_data() {
    let server = Server::start().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let task = alice
        .task(&project, "Fly", json!({ "assigneeId": bob.id }))
        .await;
    alice.label(&project, "urgent").await;
    bob.comment(&task, "of Bob").await;
    alice.comment(&task, "of Alice").await;
    let export = alice.query("{ exportViewerData }", json!({})).await["exportViewerData"].clone();
    assert_eq!(export["account"]["email"], "alice@example.org");
    assert_eq!(export["projects"][0]["name"], "Apollo");
    assert_eq!(export["tasks"][0]["title"], "Fly");
    assert_eq!(export["labels"][0]["name"], "urgent");
    assert_eq!(export["comments"].as_array().map(Vec::len), Some(1));
    assert_eq!(export["comments"][0]["body"], "of Alice");
    assert_eq!(export["sessions"].as_array().map(Vec::len), Some(1));
    assert!(
        export["securityLog"]
            .as_array()
            .is_some_and(|log| log.len() >= 2)
    );
    let of_bob = bob.query("{ exportViewerData }", json!({})).await["exportViewerData"].to_string();
    assert!(
        of_bob.contains("Fly") && !of_bob.contains("of Alice") && !of_bob.contains("alice@"),
        "{of_bob}"
    );
}

#[tokio::test]
async fn export_of_a_demoted_admin_follows_current_permissions() {
    let server = Server::start().await;
    let (root, ada, alice) = (
        server.admin("root").await,
        server.admin("ada").await,
        server.person("alice").await,
    );
    let project = alice.project("Apollo").await;
    let task = ada.task(&project, "By Ada", json!({})).await;
    let assigned = ada
        .task(&project, "For Ada", json!({ "assigneeId": ada.id }))
        .await;
    ada.comment(&task, "Ada wrote this").await;
    let titles = async || {
        let export = ada.query("{ exportViewerData }", json!({})).await["exportViewerData"].clone();
        assert_eq!(
            export["comments"][0]["body"], "Ada wrote this",
            "her own comments"
        );
        let tasks = export["tasks"].as_array().expect("tasks").iter();
        tasks.map(|task| text(&task["title"])).collect::<Vec<_>>()
    };
    assert_eq!(titles().await, ["By Ada", "For Ada"]);
    root.mutate("updateUser", json!({ "id": ada.id, "role": "USER" }))
        .await
        .ok();
    for task in [&task, &assigned] {
        alice
            .mutate(
                "updateTask",
                json!({ "id": task, "title": "After the demotion" }),
            )
            .await
            .ok();
    }
    assert_eq!(
        titles().await,
        ["After the demotion"],
        "only tasks assigned to her"
    );
    alice
        .mutate("updateTask", json!({ "id": assigned, "assigneeId": null }))
        .await
        .ok();
    assert_eq!(titles().await, [""; 0]);
}

#[tokio::test]
async fn the_audit_log_has_the_address_and_user_agent() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let query = "mutation { revokeOtherSessions { revokedCount } }";
    server.login("alice").await;
    let stolen = alice
        .post("/graphql")
        .header("user-agent", "elsewhere")
        .json(&json!({ "query": query }));
    assert_eq!(
        Reply::to(stolen).await.body["data"]["revokeOtherSessions"]["revokedCount"],
        1
    );
    let last = "{ viewer { securityLog(first: 1) { nodes { kind ipAddress userAgent } } } }";
    let noted = alice.query(last, json!({})).await["viewer"]["securityLog"]["nodes"][0].clone();
    assert_eq!(
        noted,
        json!({ "kind": "SESSION_REVOKED", "ipAddress": "127.0.0.1", "userAgent": "elsewhere" })
    );
}

#[tokio::test]
async fn account_events_are_audited_for_the_user_and_admins() {
    let server = Server::start().await;
    let root = server.admin("root").await;
    let alice = server.person("alice").await;
    let wrong = json!({ "username": "alice", "password": "Wrong-Horse-7" });
    for _ in 0..5 {
        server.post("/auth/login", wrong.clone()).await;
    }
    server
        .post(
            "/auth/login",
            json!({ "username": "nobody", "password": "x" }),
        )
        .await;
    root.mutate("updateUser", json!({ "id": alice.id, "role": "ADMIN" }))
        .await
        .ok();
    root.mutate("updateUser", json!({ "id": alice.id, "role": "USER" }))
        .await
        .ok();
    let input = json!({ "currentPassword": PASSWORD, "newPassword": "Another-Horse-8" });
    alice.mutate("changePassword", input).await.ok();
    alice.post("/auth/logout").send().await.expect("an answer");
    let alice = server.login_with("alice", "Another-Horse-8").await;

    let own = kinds(
        &alice,
        "{ viewer { securityLog(first: 100) { nodes { kind ipAddress } } } }",
    )
    .await;
    let mut expected = vec![
        "LOGGED_IN",
        "LOGGED_OUT",
        "PASSWORD_CHANGED",
        "ROLE_CHANGED",
        "ROLE_CHANGED",
        "LOCKED_OUT",
    ];
    expected.extend(["LOGIN_FAILED"; 5]);
    expected.extend(["LOGGED_IN", "REGISTERED"]);
    assert_eq!(own, expected, "newest first");
    let all = kinds(&root, "{ auditLog(first: 100) { nodes { kind } } }").await;
    assert_eq!(
        all.iter().filter(|kind| *kind == "LOGIN_FAILED").count(),
        6,
        "including unknown accounts"
    );
    let document = "{ auditLog(first: 2) { totalCount pageInfo { hasNextPage } nodes { user { username } actor { username } } } }";
    let page = root.query(document, json!({})).await["auditLog"].clone();
    assert_eq!(page["totalCount"], all.len());
    assert_eq!(page["pageInfo"]["hasNextPage"], true);
    assert_eq!(
        page["nodes"][0],
        json!({ "user": { "username": "alice" }, "actor": { "username": "alice" } })
    );
    assert_eq!(
        alice
            .ask("{ auditLog { totalCount } }", json!({}))
            .await
            .code(),
        "FORBIDDEN"
    );
    let of_alice =
        "query ($id: ID!) { node(id: $id) { ... on User { securityLog { totalCount } } } }";
    let bob = server.person("bob").await;
    assert_eq!(
        bob.ask(of_alice, json!({ "id": alice.id })).await.code(),
        "FORBIDDEN"
    );
    assert_eq!(
        root.query(of_alice, json!({ "id": alice.id })).await["node"]["securityLog"]["totalCount"],
        own.len()
    );
}
