//! Selections that are resolved by level are answered as the library answers them.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::harness::{Person, Server};

/// The fields of a type, and those that lead to another one. Some are not resolved by level, some fail.
fn fields(of: &str) -> (&'static [&'static str], &'static [(&'static str, &'static str)]) {
    match of {
        "Task" => (
            &[
                "id",
                "title",
                "heading: title",
                "description",
                "status",
                "priority",
                "dueAt",
                "isOverdue",
                "completedAt",
                "version",
                "createdAt",
                "updatedAt",
                "viewerCanUpdate",
                "viewerCanDelete",
                "viewerCanComment",
                "title @include(if: true)",
                "hidden: title @skip(if: true)",
                "... on Node { id }",
                "... @include(if: false) { version }",
                "...Titled",
                "activity(first: 1) { nodes { id } }",
            ],
            &[
                ("project", "Project"),
                ("creator", "User"),
                ("assignee", "User"),
                ("labels", "Label"),
                ("comments", "CommentConnection"),
                ("latest: comments(last: 1)", "CommentConnection"),
                ("none: comments(first: 0)", "CommentConnection"),
                ("... on Task", "Task"),
            ],
        ),
        "Project" => (
            &[
                "id",
                "name",
                "description",
                "status",
                "version",
                "createdAt",
                "updatedAt",
                "viewerCanUpdate",
                "viewerCanDelete",
                "stats { taskCount }",
            ],
            &[
                ("owner", "User"),
                ("labels", "Label"),
                ("tasks", "TaskConnection"),
                (
                    "done: tasks(filter: { status: DONE }, orderBy: { field: PRIORITY, direction: DESC })",
                    "TaskConnection",
                ),
                ("some: tasks(first: $few)", "TaskConnection"),
                ("many: tasks(first: 101)", "TaskConnection"),
            ],
        ),
        "Comment" => (
            &["id", "body", "createdAt", "updatedAt", "isEdited", "viewerCanUpdate", "viewerCanDelete"],
            &[("author", "User"), ("task", "Task")],
        ),
        "Label" => (&["id", "name", "color"], &[("project", "Project")]),
        "User" => (&["id", "username", "displayName", "createdAt", "email"], &[("... on User", "User")]),
        "PageInfo" => (&["hasNextPage", "hasPreviousPage", "startCursor", "endCursor"], &[]),
        "TaskConnection" => (&["totalCount"], &[("nodes", "Task"), ("edges", "TaskEdge"), ("pageInfo", "PageInfo")]),
        "ProjectConnection" => {
            (&["totalCount"], &[("nodes", "Project"), ("edges", "ProjectEdge"), ("pageInfo", "PageInfo")])
        }
        "CommentConnection" => {
            (&["totalCount"], &[("nodes", "Comment"), ("edges", "CommentEdge"), ("pageInfo", "PageInfo")])
        }
        "TaskEdge" => (&["cursor"], &[("node", "Task")]),
        "ProjectEdge" => (&["cursor"], &[("node", "Project")]),
        "CommentEdge" => (&["cursor"], &[("node", "Comment")]),
        other => panic!("{other}"),
    }
}

fn selections(of: &'static str, depth: usize) -> BoxedStrategy<String> {
    let (own, leading) = fields(of);
    let own = subsequence(own, 0..=own.len().min(4));
    let most = if depth == 0 { 0 } else { leading.len().min(2) };
    let leading = subsequence(leading, 0..=most).prop_flat_map(move |leading| {
        let inner = |(field, of)| selections(of, depth - 1).prop_map(move |selection| format!("{field} {selection}"));
        leading.into_iter().map(inner).collect::<Vec<_>>()
    });
    (own, leading)
        .prop_map(|(own, leading)| format!("{{ __typename {} {} }}", own.join(" "), leading.join(" ")))
        .boxed()
}

fn roots(task: &str, project: &str) -> impl Strategy<Value = (String, String)> {
    let roots = vec![
        (format!(r#"task(id: "{task}")"#), "Task"),
        (format!(r#"project(id: "{project}")"#), "Project"),
        ("tasks".to_owned(), "TaskConnection"),
        ("tasks(last: 3, orderBy: { field: DUE_AT })".to_owned(), "TaskConnection"),
        ("projects(first: 2)".to_owned(), "ProjectConnection"),
    ];
    select(roots).prop_flat_map(|(root, of)| (Just(root), selections(of, 5)))
}

/// The data as it was written, and where which errors are.
async fn answer(person: &Person, document: &str) -> (String, Vec<String>) {
    let document = format!("query ($few: Int) {{ {document} }} fragment Titled on Task {{ title }}");
    let answer = person.ask(&document, json!({ "few": 2 })).await;
    let errors = answer.0["errors"].as_array().into_iter().flatten();
    let mut errors: Vec<String> =
        errors.map(|error| json!([error["path"], error["message"], error["extensions"]["code"]]).to_string()).collect();
    errors.sort();
    (answer.0["data"].to_string(), errors)
}

#[test]
fn a_selection_resolved_by_level_is_answered_as_the_library_answers_it() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (people, task, project, _server) = runtime.block_on(async {
        let server = Server::without_jobs().await;
        let (alice, bob) = (server.person("alice").await, server.person("bob").await);
        let (apollo, gemini) = (alice.project("Apollo \"11\"").await, alice.project("Gemini").await);
        let red = alice.label(&apollo, "red").await;
        let due = server.moment(std::time::Duration::from_secs(3_600));
        let more = json!({ "assigneeId": bob.id, "labelIds": [red], "dueAt": due, "description": "a\nb" });
        let task = alice.task(&apollo, "Fly", more).await;
        for (project, title) in [(&apollo, "Land"), (&apollo, "Dock"), (&gemini, "Walk")] {
            alice.task(project, title, json!({ "priority": "HIGH" })).await;
        }
        for number in 0..3 {
            alice.comment(&task, &format!("Soon {number}")).await;
            bob.comment(&task, "\u{2028}Now").await;
        }
        ([alice, bob], task, apollo, server)
    });
    let config = Config { cases: 200, ..Config::default() };
    let compared = TestRunner::new(config).run(&(roots(&task, &project), 0..2_usize), |((root, selection), person)| {
        let person = &people[person];
        let document = format!("it: {root} {selection}");
        // What is asked for in two places is left to the library.
        let left = format!("{document} it: {root} {{ __typename }}");
        let by_library = runtime.block_on(answer(person, &left));
        for time in ["first, validated", "again, known to be valid"] {
            prop_assert_eq!(&runtime.block_on(answer(person, &document)), &by_library, "{}: {}", time, document);
        }
        Ok(())
    });
    compared.unwrap_or_else(|failure| panic!("{failure}"));
}

#[tokio::test]
async fn a_list_shows_of_a_task_what_the_task_shows_itself() {
    let server = Server::without_jobs().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let due = server.moment(std::time::Duration::from_secs(3_600));
    let task = alice.task(&project, "Fly", json!({ "assigneeId": bob.id, "dueAt": due, "description": "a" })).await;
    for status in ["IN_PROGRESS", "DONE"] {
        server.advance(std::time::Duration::from_secs(1));
        alice.mutate("updateTask", json!({ "id": task, "status": status })).await.ok();
    }
    let (own, leading) = fields("Task");
    let leading = leading.iter().map(|(field, of)| match *of {
        "CommentConnection" => format!("{field} {{ nodes {{ body }} }}"),
        "Task" => format!("{field} {{ description version }}"),
        _ => format!("{field} {{ id }}"),
    });
    let again =
        "activity { nodes { ... on StatusChangedEvent { task { description version updatedAt creator { id } } } } }";
    let fields = own.iter().map(ToString::to_string).chain(leading).chain([again.to_owned()]);
    for field in fields.filter(|field| !field.contains("first: 0")) {
        let titled = format!("{{ title {field} }} {}", "fragment Titled on Task { title }");
        let (selection, fragment) = titled.split_once(" fragment").expect("a fragment");
        let fragment = if field.contains("...Titled") { format!("fragment{fragment}") } else { String::new() };
        let itself = format!("query ($id: ID!) {{ task(id: $id) {selection} }} {fragment}");
        let itself = alice.query(&itself, json!({ "id": task })).await["task"].clone();
        for order in ["CREATED_AT", "UPDATED_AT", "DUE_AT", "PRIORITY"] {
            let lists = format!(
                "query ($id: ID!) {{
                    tasks(orderBy: {{ field: {order} }}) {{ nodes {selection} edges {{ cursor node {selection} }} }}
                    project(id: $id) {{ tasks(orderBy: {{ field: {order} }}) {{ edges {{ node {selection} }} }} }}
                }} {fragment}"
            );
            let lists = alice.query(&lists, json!({ "id": project })).await;
            assert_eq!(lists["tasks"]["nodes"][0], itself, "{field} by {order}");
            assert_eq!(lists["tasks"]["edges"][0]["node"], itself, "{field} by {order}");
            assert_eq!(lists["project"]["tasks"]["edges"][0]["node"], itself, "{field} by {order}");
        }
    }
}

#[tokio::test]
async fn what_is_asked_for_in_two_places_is_put_together() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    alice.task(&project, "Fly", json!({})).await;
    let document = "{ tasks { nodes { title } } ...More } fragment More on Query { tasks { nodes { status } } }";
    let data = alice.query(document, Value::Null).await;
    assert_eq!(data, json!({ "tasks": { "nodes": [{ "title": "Fly", "status": "TODO" }] } }));
}
