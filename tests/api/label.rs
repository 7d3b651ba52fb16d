//! Labels: validation, permissions and uniqueness.

use serde_json::{Value, json};

use crate::harness::{Person, Server};

async fn start() -> (Server, Person, String) {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    (server, alice, project)
}

#[tokio::test]
async fn label_name_and_color_are_validated() {
    let (_server, alice, project) = start().await;
    let create = async |name: &str, color: Value| {
        alice
            .mutate(
                "createLabel",
                json!({ "projectId": project, "name": name, "color": color }),
            )
            .await
    };
    let label = create("  Red ", json!("#FF00aa")).await.ok();
    assert_eq!(
        (&label["name"], &label["color"]),
        (&json!("Red"), &json!("#ff00aa"))
    );
    assert_eq!(create("plain", Value::Null).await.ok()["color"], "#808080");
    for (name, color, fault) in [
        ("", "#000000", "name: BLANK"),
        ("a\u{0}", "#000000", "name: INVALID"),
        (&"ü".repeat(51), "#000000", "name: TOO_LONG"),
        ("x", "red", "color: INVALID"),
        ("x", "#12345", "color: INVALID"),
        ("x", "#1234567", "color: INVALID"),
        ("x", "#12345g", "color: INVALID"),
        ("x", "", "color: INVALID"),
    ] {
        assert_eq!(
            create(name, json!(color)).await.faults(),
            [fault],
            "{name:?} {color:?}"
        );
    }
    create(&"ü".repeat(50), Value::Null).await.ok();
}

#[tokio::test]
async fn a_name_is_unique_in_its_project_without_regard_to_case() {
    let (_server, alice, project) = start().await;
    let other = alice.project("Gemini").await;
    let street = alice.label(&project, "Straße").await;
    alice.label(&other, "STRASSE").await;
    let create = json!({ "projectId": project, "name": " STRASSE" });
    assert_eq!(
        alice.mutate("createLabel", create).await.faults(),
        ["name: TAKEN"]
    );
    let road = alice.label(&project, "Road").await;
    let renamed = alice
        .mutate("updateLabel", json!({ "id": road, "name": "straSSe" }))
        .await;
    assert_eq!(renamed.faults(), ["name: TAKEN"]);
    let renamed = alice
        .mutate("updateLabel", json!({ "id": street, "name": "STRASSE" }))
        .await
        .ok();
    assert_eq!(
        renamed["name"], "STRASSE",
        "renaming to another spelling of the same name"
    );
}

#[tokio::test]
async fn absent_field_is_unchanged_and_null_is_refused() {
    let (_server, alice, project) = start().await;
    let label = alice.label(&project, "red").await;
    let left = alice
        .mutate("updateLabel", json!({ "id": label, "color": "#112233" }))
        .await
        .ok();
    assert_eq!(
        (&left["name"], &left["color"]),
        (&json!("red"), &json!("#112233"))
    );
    for field in ["name", "color"] {
        let done = alice
            .mutate("updateLabel", json!({ "id": label, field: null }))
            .await;
        assert_eq!(done.faults(), [format!("{field}: BLANK")]);
    }
}

#[tokio::test]
async fn labels_are_listed_by_name_on_projects_and_tasks() {
    let (_server, alice, project) = start().await;
    let mut ids = Vec::new();
    for name in ["b", "A", "ä", "C"] {
        ids.push(alice.label(&project, name).await);
    }
    let task = alice
        .task(&project, "Fly", json!({ "labelIds": ids }))
        .await;
    let document = "query ($project: ID!, $task: ID!) {
        project(id: $project) { labels { name } }
        task(id: $task) { labels { name project { id } } }
    }";
    let seen = alice
        .query(document, json!({ "project": project, "task": task }))
        .await;
    let names = json!([{ "name": "A" }, { "name": "b" }, { "name": "C" }, { "name": "ä" }]);
    assert_eq!(seen["project"]["labels"], names);
    let of_task = seen["task"]["labels"].as_array().expect("labels").iter();
    assert!(
        of_task
            .clone()
            .all(|label| label["project"]["id"] == project)
    );
    assert_eq!(
        of_task
            .map(|label| json!({ "name": label["name"] }))
            .collect::<Value>(),
        names
    );
}

#[tokio::test]
async fn deleting_a_label_removes_it_from_tasks() {
    let (_server, alice, project) = start().await;
    let label = alice.label(&project, "red").await;
    let task = alice
        .task(&project, "Fly", json!({ "labelIds": [label] }))
        .await;
    assert_eq!(
        alice
            .mutate("deleteLabel", json!({ "id": label }))
            .await
            .ok(),
        label
    );
    assert_eq!(
        alice
            .mutate("deleteLabel", json!({ "id": label }))
            .await
            .faults(),
        ["id: NOT_FOUND"]
    );
    let seen = alice
        .query(
            "query ($id: ID!) { task(id: $id) { labels { id } } }",
            json!({ "id": task }),
        )
        .await;
    assert_eq!(seen["task"]["labels"], json!([]));
}
