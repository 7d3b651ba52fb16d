//! Equivalence tests: batch execution of a selection returns the same as async-graphql.

use std::cell::Cell;
use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::harness::{Person, Server};

/// Leaf fields of a type, and fields that lead to another type. Some are not executed in batches,
/// and some fail.
fn fields(
    of: &str,
) -> (
    &'static [&'static str],
    &'static [(&'static str, &'static str)],
) {
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
                "...Marked @skip(if: $no)",
                "version @include(if: $no)",
                "createdAt @include(if: $on)",
                "... @skip(if: $on) { status }",
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
            &[
                "id",
                "body",
                "createdAt",
                "updatedAt",
                "isEdited",
                "viewerCanUpdate",
                "viewerCanDelete",
            ],
            &[("author", "User"), ("task", "Task")],
        ),
        "Label" => (&["id", "name", "color"], &[("project", "Project")]),
        "User" => (
            &["id", "username", "displayName", "createdAt", "email"],
            &[("... on User", "User")],
        ),
        "PageInfo" => (
            &["hasNextPage", "hasPreviousPage", "startCursor", "endCursor"],
            &[],
        ),
        "TaskConnection" => (
            &["totalCount", "...Listed"],
            &[
                ("nodes", "Task"),
                ("edges", "TaskEdge"),
                ("pageInfo", "PageInfo"),
                ("... @include(if: $yes)", "TaskConnection"),
            ],
        ),
        "ProjectConnection" => (
            &["totalCount"],
            &[
                ("nodes", "Project"),
                ("edges", "ProjectEdge"),
                ("pageInfo", "PageInfo"),
            ],
        ),
        "CommentConnection" => (
            &["totalCount"],
            &[
                ("nodes", "Comment"),
                ("edges", "CommentEdge"),
                ("pageInfo", "PageInfo"),
            ],
        ),
        "TaskEdge" => (
            &["cursor", "...Edged"],
            &[("node", "Task"), ("... on TaskEdge", "TaskEdge")],
        ),
        "ProjectEdge" => (&["cursor"], &[("node", "Project")]),
        "CommentEdge" => (&["cursor"], &[("node", "Comment")]),
        "Root" => (
            &[],
            &[
                ("task(id: $task)", "History"),
                ("nodes(ids: $ids)", "Any"),
                ("events(last: 20)", "EventConnection"),
                ("tasks", "TaskConnection"),
                ("projects(first: 2)", "ProjectConnection"),
                ("viewer", "Viewer"),
            ],
        ),
        "History" => (
            &["version"],
            &[
                ("activity(last: 20)", "EventConnection"),
                ("... on Task", "Task"),
            ],
        ),
        "Any" => (
            &["id"],
            &[
                ("... on Task", "Task"),
                ("... on Project", "Project"),
                ("... on Comment", "Comment"),
            ],
        ),
        "Viewer" => (
            &["id"],
            &[
                ("projects", "ProjectConnection"),
                ("assignedTasks", "TaskConnection"),
                ("notifications", "NotificationConnection"),
            ],
        ),
        "NotificationConnection" => (&["unreadCount"], &[("nodes", "Notification")]),
        "Notification" => (&["id", "kind"], &[("task", "Task"), ("comment", "Comment")]),
        "EventConnection" => (
            &[],
            &[
                ("nodes", "Event"),
                ("edges", "EventEdge"),
                ("pageInfo", "PageInfo"),
            ],
        ),
        "EventEdge" => (&["cursor"], &[("node", "Event")]),
        "Event" => (
            &[
                "id",
                "cursor",
                "... on TaskCreatedEvent { task { id version } }",
                "... on TaskUpdatedEvent { changes { field from to } }",
                "... on TaskAssignedEvent { assignee { username } task { title } }",
                "... on StatusChangedEvent { from to task { completedAt } }",
                "... on CommentAddedEvent { comment { isEdited task { version } } }",
                "... on CommentDeletedEvent { deletedCommentId comment { body } }",
                "... on TaskDeletedEvent { deletedTaskId task { version } }",
                "... on ProjectUpdatedEvent { project { name } }",
            ],
            &[("actor", "User"), ("... on Event", "Event")],
        ),
        other => panic!("{other}"),
    }
}

fn selections(of: &'static str, depth: usize) -> BoxedStrategy<String> {
    let (own, leading) = fields(of);
    let own = subsequence(own, 0..=own.len().min(4));
    let most = if depth == 0 { 0 } else { leading.len().min(2) };
    let leading = subsequence(leading, 0..=most).prop_flat_map(move |leading| {
        let inner = |(field, of)| {
            selections(of, depth - 1).prop_map(move |selection| format!("{field} {selection}"))
        };
        leading.into_iter().map(inner).collect::<Vec<_>>()
    });
    (own, leading)
        .prop_map(move |(own, leading)| {
            // Placeholders where long texts can be added.
            format!(
                "{{ __typename <{of}> {} {} }}",
                own.join(" "),
                leading.join(" ")
            )
        })
        .boxed()
}

/// Long texts and lists per type, which are read from the database only when selected.
const LONG: [(&str, &str); 4] = [
    ("<Task>", "description version"),
    ("<Project>", "description"),
    ("<Comment>", "body"),
    (
        "<Event>",
        "... on TaskUpdatedEvent { changes { field to } } ... on TaskCreatedEvent { task { description } }",
    ),
];

/// The generated selection, without or with all long fields.
fn expanded(selection: &str, with_long: bool) -> String {
    let mut spelled = String::new();
    let mut pieces = selection.split('<');
    spelled.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let (of, rest) = piece.split_once('>').expect("a mark");
        let long = LONG
            .iter()
            .find(|(mark, _)| with_long && *mark == format!("<{of}>"));
        spelled.push_str(long.map_or("", |(_, long)| long));
        spelled.push_str(rest);
    }
    spelled
}

/// Whether an answer contains all of another one.
fn covers(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part
            .iter()
            .all(|(key, part)| whole.get(key).is_some_and(|whole| covers(whole, part))),
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len()
                && whole
                    .iter()
                    .zip(part)
                    .all(|(whole, part)| covers(whole, part))
        }
        _ => whole == part,
    }
}

fn roots(task: &str, project: &str) -> impl Strategy<Value = (String, String)> {
    let roots = vec![
        (format!(r#"task(id: "{task}")"#), "Task"),
        (format!(r#"project(id: "{project}")"#), "Project"),
        ("task(id: $task)".to_owned(), "Task"),
        ("tasks".to_owned(), "TaskConnection"),
        (
            "tasks(first: $few, filter: $filter) @include(if: $yes)".to_owned(),
            "TaskConnection",
        ),
        (
            "tasks(first: $few) @skip(if: $yes)".to_owned(),
            "TaskConnection",
        ),
        ("tasks(first: $zero)".to_owned(), "TaskConnection"),
        (
            "tasks(last: 3, orderBy: { field: DUE_AT })".to_owned(),
            "TaskConnection",
        ),
        ("projects(first: 2)".to_owned(), "ProjectConnection"),
    ];
    select(roots).prop_flat_map(|(root, of)| (Just(root), selections(of, 5)))
}

/// Fragments and variables that a selection may use.
const FRAGMENTS: [(&str, &str); 4] = [
    ("...Titled", "fragment Titled on Task { title }"),
    ("...Marked", "fragment Marked on Node { id }"),
    (
        "...Edged",
        "fragment Edged on TaskEdge { node { description } }",
    ),
    (
        "...Listed",
        "fragment Listed on TaskConnection { pageInfo { hasNextPage } }",
    ),
];
const VARIABLES: [(&str, &str); 9] = [
    ("$few", "$few: Int = 2"),
    ("$zero", "$zero: Int"),
    ("$yes", "$yes: Boolean!"),
    ("$no", "$no: Boolean = false"),
    ("$on", "$on: Boolean = true"),
    ("$task", "$task: ID!"),
    ("$project", "$project: ID!"),
    ("$filter", "$filter: TaskFilter"),
    ("$ids", "$ids: [ID!]!"),
];

/// A complete document: the selection with the variables and fragments it uses.
fn whole(selection: &str) -> String {
    let named = |names: &[(&str, &str)]| {
        let used = names.iter().filter(|(name, _)| selection.contains(name));
        used.map(|(_, definition)| *definition)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let variables = named(&VARIABLES);
    let variables = if variables.is_empty() {
        variables
    } else {
        format!("query ({variables})")
    };
    format!("{variables} {{ {selection} }} {}", named(&FRAGMENTS))
}

/// The maximum number of errors in an answer. Beyond it, which errors are reported is not
/// deterministic.
const MOST_ERRORS: usize = 10;

/// The data as serialized, and path, message and code of each error.
#[derive(Debug)]
struct Outcome {
    data: String,
    errors: BTreeSet<String>,
    are_all: bool,
}

impl Outcome {
    /// Whether both answers agree. One that reports all errors must include those of the other.
    fn agrees(&self, other: &Self) -> bool {
        let covers = |one: &Self, other: &Self| !one.are_all || other.errors.is_subset(&one.errors);
        self.data == other.data && covers(self, other) && covers(other, self)
    }
}

async fn answer(person: &Person, selection: &str, task: &str) -> Outcome {
    let variables = json!({ "zero": 0, "yes": true, "task": task, "filter": { "priority": ["HIGH", "MEDIUM"] } });
    let answer = person.ask(&whole(selection), variables).await;
    let errors = answer.0["errors"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let told = |error: &Value| {
        json!([error["path"], error["message"], error["extensions"]["code"]]).to_string()
    };
    Outcome {
        data: answer.0["data"].to_string(),
        // The order of errors is not deterministic.
        errors: errors.iter().map(told).collect(),
        are_all: errors.len() < MOST_ERRORS,
    }
}

#[test]
fn batch_execution_matches_async_graphql() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (people, task, project, _server) = runtime.block_on(async {
        let server = Server::without_jobs().await;
        let (alice, bob) = (server.person("alice").await, server.person("bob").await);
        let (apollo, gemini) = (
            alice.project("Apollo \"11\"").await,
            alice.project("Gemini").await,
        );
        let red = alice.label(&apollo, "red").await;
        let due = server.moment(std::time::Duration::from_secs(3_600));
        let more =
            json!({ "assigneeId": bob.id, "labelIds": [red], "dueAt": due, "description": "a\nb" });
        let task = alice.task(&apollo, "Fly", more).await;
        for (project, title) in [(&apollo, "Land"), (&apollo, "Dock"), (&gemini, "Walk")] {
            alice
                .task(project, title, json!({ "priority": "HIGH" }))
                .await;
        }
        for number in 0..3 {
            alice.comment(&task, &format!("Soon {number}")).await;
            bob.comment(&task, "\u{2028}Now").await;
        }
        ([alice, bob], task, apollo, server)
    });
    let config = Config {
        cases: 200,
        ..Config::default()
    };
    let executed = Cell::new(0);
    let compared = TestRunner::new(config).run(
        &(roots(&task, &project), 0..2_usize),
        |((root, selection), person)| {
            let ask = |selection: &str| runtime.block_on(answer(&people[person], selection, &task));
            let selection = expanded(&selection, false);
            let selection = format!("it: {root} {selection}");
            // A root field selected twice is executed by async-graphql.
            let by_library = ask(&format!("{selection} it: {root} {{ __typename }}"));
            for time in ["first, validated", "again, known to be valid"] {
                let by_level = ask(&selection);
                prop_assert!(
                    by_level.agrees(&by_library),
                    "{time}: {selection}: {by_level:?} {by_library:?}"
                );
            }
            executed.set(executed.get() + usize::from(by_library.errors.is_empty()));
            Ok(())
        },
    );
    compared.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(
        executed.get() > 100,
        "{} of 200 selections were executed without an error",
        executed.get()
    );
}

#[test]
fn columns_read_for_one_field_do_not_change_others() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (people, task, ids, _server) = runtime.block_on(async {
        let server = Server::start().await;
        let (alice, bob) = (server.person("alice").await, server.person("bob").await);
        let project = alice
            .mutate(
                "createProject",
                json!({ "name": "Apollo", "description": "a" }),
            )
            .await
            .ok();
        let project = project["id"].as_str().expect("an id").to_owned();
        let task = alice
            .task(
                &project,
                "Fly",
                json!({ "assigneeId": bob.id, "description": "b" }),
            )
            .await;
        let gone = alice
            .task(
                &project,
                "Land",
                json!({ "assigneeId": bob.id, "description": "c" }),
            )
            .await;
        alice
            .mutate(
                "updateTask",
                json!({ "id": task, "description": "d", "status": "IN_PROGRESS" }),
            )
            .await
            .ok();
        bob.mutate("updateTask", json!({ "id": task, "status": "DONE" }))
            .await
            .ok();
        alice
            .mutate("updateTask", json!({ "id": gone, "description": "e" }))
            .await
            .ok();
        let (comment, deleted) = (bob.comment(&task, "f").await, bob.comment(&task, "g").await);
        bob.mutate("deleteComment", json!({ "id": deleted }))
            .await
            .ok();
        alice
            .mutate(
                "updateProject",
                json!({ "id": project, "description": "h" }),
            )
            .await
            .ok();
        alice.mutate("deleteTask", json!({ "id": gone })).await.ok();
        let ids = json!([task, project, comment]);
        ([alice, bob], task, ids, server)
    });
    let config = Config {
        cases: 300,
        ..Config::default()
    };
    let executed = Cell::new(0);
    let compared = TestRunner::new(config).run(
        &(selections("Root", 7), 0..2_usize),
        |(selection, person)| {
            let variables = json!({ "zero": 0, "yes": true, "task": task, "ids": ids, "few": 2 });
            let ask = |with_long: bool| {
                let selection = expanded(&selection, with_long);
                let selection = selection
                    .trim()
                    .trim_start_matches('{')
                    .trim_end_matches('}')
                    .to_owned();
                let answer =
                    runtime.block_on(people[person].ask(&whole(&selection), variables.clone()));
                (selection, answer)
            };
            let ((short, part), (long, all)) = (ask(false), ask(true));
            if !part.data().is_null() && !all.data().is_null() {
                prop_assert!(
                    covers(all.data(), part.data()),
                    "{short}: {part:?}\n{long}: {all:?}"
                );
                executed.set(executed.get() + 1);
            }
            Ok(())
        },
    );
    compared.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(
        executed.get() > 150,
        "of 300 selections {} were executed",
        executed.get()
    );
}

#[tokio::test]
async fn task_is_the_same_in_a_list_and_on_its_own() {
    let server = Server::without_jobs().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let project = alice.project("Apollo").await;
    let due = server.moment(std::time::Duration::from_secs(3_600));
    let task = alice
        .task(
            &project,
            "Fly",
            json!({ "assigneeId": bob.id, "dueAt": due, "description": "a" }),
        )
        .await;
    for status in ["IN_PROGRESS", "DONE"] {
        server.advance(std::time::Duration::from_secs(1));
        alice
            .mutate("updateTask", json!({ "id": task, "status": status }))
            .await
            .ok();
    }
    let (own, leading) = fields("Task");
    let leading = leading.iter().map(|(field, of)| match *of {
        "CommentConnection" => format!("{field} {{ nodes {{ body }} }}"),
        "Task" => format!("{field} {{ description version }}"),
        _ => format!("{field} {{ id }}"),
    });
    let again = "activity { nodes { ... on StatusChangedEvent { task { description version updatedAt creator { id } } } } }";
    let fields = own
        .iter()
        .map(ToString::to_string)
        .chain(leading)
        .chain([again.to_owned()]);
    for field in fields.filter(|field| !field.contains("first: 0")) {
        let selection = format!("{{ title {field} }}");
        let itself = whole(&format!("task(id: $task) {selection}"));
        let itself = alice.query(&itself, json!({ "task": task })).await["task"].clone();
        for order in ["CREATED_AT", "UPDATED_AT", "DUE_AT", "PRIORITY"] {
            let lists = whole(&format!(
                "tasks(orderBy: {{ field: {order} }}) {{ nodes {selection} edges {{ cursor node {selection} }} }}
                 project(id: $project) {{ tasks(orderBy: {{ field: {order} }}) {{ edges {{ node {selection} }} }} }}"
            ));
            let lists = alice.query(&lists, json!({ "project": project })).await;
            assert_eq!(lists["tasks"]["nodes"][0], itself, "{field} by {order}");
            assert_eq!(
                lists["tasks"]["edges"][0]["node"], itself,
                "{field} by {order}"
            );
            assert_eq!(
                lists["project"]["tasks"]["edges"][0]["node"], itself,
                "{field} by {order}"
            );
        }
    }
}

#[tokio::test]
async fn repeated_fields_are_merged() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    alice.task(&project, "Fly", json!({})).await;
    let document = "{ tasks { nodes { title } } ...More } fragment More on Query { tasks { nodes { status } } }";
    let data = alice.query(document, Value::Null).await;
    assert_eq!(
        data,
        json!({ "tasks": { "nodes": [{ "title": "Fly", "status": "TODO" }] } })
    );
}
