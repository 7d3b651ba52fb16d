//! Relay cursor connections: every list in every order, forward and backward, while rows are added
//! and removed.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::harness::{Answer, Person, Server, text};

const DAY: Duration = Duration::from_secs(86_400);

/// A connection of the schema and its orders.
struct List {
    /// Path from the root to the connection. `$parent` stands for the id of the parent object.
    path: &'static [&'static str],
    /// Type of the `orderBy` argument; `None` if the list has a single order.
    order: Option<&'static str>,
    /// Order fields, each with the field of the node that holds the sort key.
    fields: &'static [(&'static str, &'static str)],
}

const TASK_FIELDS: &[(&str, &str)] = &[
    ("CREATED_AT", "createdAt"),
    ("UPDATED_AT", "updatedAt"),
    ("DUE_AT", "dueAt"),
    ("PRIORITY", "priority"),
];
const PROJECT_FIELDS: &[(&str, &str)] = &[
    ("CREATED_AT", "createdAt"),
    ("UPDATED_AT", "updatedAt"),
    ("NAME", "name"),
];
const USERS: List = List {
    path: &["users"],
    order: Some("UserOrder"),
    fields: &[("CREATED_AT", "createdAt"), ("USERNAME", "username")],
};
const PROJECTS: List = List {
    path: &["projects"],
    order: Some("ProjectOrder"),
    fields: PROJECT_FIELDS,
};
const OWN_PROJECTS: List = List {
    path: &["viewer", "projects"],
    order: Some("ProjectOrder"),
    fields: PROJECT_FIELDS,
};
const TASKS: List = List {
    path: &["tasks"],
    order: Some("TaskOrder"),
    fields: TASK_FIELDS,
};
const ASSIGNED: List = List {
    path: &["viewer", "assignedTasks"],
    order: Some("TaskOrder"),
    fields: TASK_FIELDS,
};
const IN_PROJECT: List = List {
    path: &["project(id: $parent)", "tasks"],
    order: Some("TaskOrder"),
    fields: TASK_FIELDS,
};
const COMMENTS: List = List {
    path: &["task(id: $parent)", "comments"],
    order: None,
    fields: &[("", "createdAt")],
};
const EVENTS: List = List {
    path: &["events"],
    order: None,
    fields: &[("", "occurredAt")],
};
const ACTIVITY: List = List {
    path: &["task(id: $parent)", "activity"],
    order: None,
    fields: &[("", "occurredAt")],
};

/// A list read in one order.
#[derive(Clone, Copy)]
struct ListReading<'a> {
    list: &'a List,
    field: usize,
    descending: bool,
    parent: &'a str,
}

impl ListReading<'_> {
    fn key(&self) -> &'static str {
        self.list.fields[self.field].1
    }

    /// Fetches one page.
    async fn page(&self, reader: &Person, paging: Value) -> Value {
        let answer = self.ask(reader, paging).await;
        assert!(
            answer.codes().is_empty(),
            "{:?} {}: {}",
            self.list.path,
            self.key(),
            answer.0
        );
        let names = self
            .list
            .path
            .iter()
            .map(|step| step.split('(').next().unwrap_or_default());
        names.fold(answer.data().clone(), |value, name| value[name].clone())
    }

    async fn ask(&self, reader: &Person, paging: Value) -> Answer {
        let (kind, order) = match self.list.order {
            Some(kind) => (format!(", $order: {kind}"), ", orderBy: $order"),
            None => (String::new(), ""),
        };
        let parent = if self.list.path[0].contains("$parent") {
            ", $parent: ID!"
        } else {
            ""
        };
        let page = "pageInfo { hasNextPage hasPreviousPage startCursor endCursor }";
        let connection = format!(
            "{}(first: $first, after: $after, last: $last, before: $before{order}) {{
                {page} nodes {{ id {key} }} edges {{ cursor node {{ id }} }}
            }}",
            self.list.path.last().unwrap_or(&""),
            key = self.key(),
        );
        let outer = &self.list.path[..self.list.path.len() - 1];
        let nested = outer
            .iter()
            .rev()
            .fold(connection, |inner, step| format!("{step} {{ {inner} }}"));
        let document = format!(
            "query ($first: Int, $after: String, $last: Int, $before: String{kind}{parent}) {{ {nested} }}"
        );
        let mut variables = paging;
        variables["parent"] = self.parent.into();
        if self.list.order.is_some() {
            let direction = if self.descending { "DESC" } else { "ASC" };
            variables["order"] =
                json!({ "field": self.list.fields[self.field].0, "direction": direction });
        }
        reader.ask(&document, variables).await
    }
}

/// Whether the keys of two adjacent nodes are in order.
fn in_order(key: &str, descending: bool, first: &Value, second: &Value) -> bool {
    let rank = |value: &Value| match key {
        // Fixed width and UTC, so text order is time order. A missing date sorts last.
        "dueAt" => value.as_str().unwrap_or("~").to_owned(),
        "priority" => {
            let rank = ["LOW", "MEDIUM", "HIGH", "URGENT"]
                .iter()
                .position(|name| value == name);
            rank.expect("a priority").to_string()
        }
        "name" | "username" => text(value).to_lowercase(),
        _ => text(value),
    };
    let (first, second) = (rank(&first[key]), rank(&second[key]));
    if descending {
        first >= second
    } else {
        first <= second
    }
}

/// Reads a list to its end, page by page. Returns the ids in list order.
async fn walk(
    reading: ListReading<'_>,
    reader: &Person,
    size: usize,
    backward: bool,
) -> Vec<String> {
    let mut pages: Vec<Vec<String>> = Vec::new();
    let mut cursor = Value::Null;
    loop {
        let paging = if backward {
            json!({ "last": size, "before": cursor })
        } else {
            json!({ "first": size, "after": cursor })
        };
        let page = reading.page(reader, paging).await;
        let edges = page["edges"].as_array().expect("edges");
        let (info, nodes) = (&page["pageInfo"], page["nodes"].as_array().expect("nodes"));
        assert_eq!(
            info["startCursor"],
            edges
                .first()
                .map_or(Value::Null, |edge| edge["cursor"].clone())
        );
        assert_eq!(
            info["endCursor"],
            edges
                .last()
                .map_or(Value::Null, |edge| edge["cursor"].clone())
        );
        for pair in nodes.windows(2) {
            assert!(
                in_order(reading.key(), reading.descending, &pair[0], &pair[1]),
                "{pair:?}"
            );
        }
        pages.push(nodes.iter().map(|node| text(&node["id"])).collect());
        let (more, past, next) = if backward {
            (
                &info["hasPreviousPage"],
                &info["hasNextPage"],
                &info["startCursor"],
            )
        } else {
            (
                &info["hasNextPage"],
                &info["hasPreviousPage"],
                &info["endCursor"],
            )
        };
        assert_eq!(*past, !cursor.is_null());
        if *more == false {
            break;
        }
        assert_eq!(nodes.len(), size, "only the last page may be short");
        cursor = next.clone();
    }
    if backward {
        pages.reverse();
    }
    pages.concat()
}

/// Creates several of each object, many with equal sort keys.
async fn populate(server: &Server, owner: &Person) -> (String, String) {
    for index in 0..4 {
        server.person(["Dora", "dan", "Eve", "fay"][index]).await;
        owner
            .project(["beta", "Alpha", "alpha", "Gamma"][index])
            .await;
    }
    let project = owner.project("Beta").await;
    let mut tasks = Vec::new();
    for index in 0..7_usize {
        if index % 3 == 0 {
            server.advance(Duration::from_secs(1));
        }
        let due = (index % 3 > 0).then(|| server.moment(DAY * (index % 3) as u32));
        let priority = ["HIGH", "LOW", "URGENT", "LOW", "MEDIUM"][index % 5];
        let more = json!({ "dueAt": due, "priority": priority, "assigneeId": owner.id });
        tasks.push(owner.task(&project, "x", more).await);
    }
    server.advance(Duration::from_secs(1));
    let task = tasks.swap_remove(2);
    for index in 0..5 {
        owner.comment(&task, &format!("{index}")).await;
        server.advance(Duration::from_secs(index % 2));
    }
    owner
        .mutate("updateTask", json!({ "id": task, "title": "y" }))
        .await
        .ok();
    (project, task)
}

#[tokio::test]
async fn every_list_reads_the_same_forward_and_backward_in_every_order() {
    let server = Server::start().await;
    let admin = server.admin("admin").await;
    let (project, task) = populate(&server, &admin).await;
    let lists = [
        USERS,
        PROJECTS,
        OWN_PROJECTS,
        TASKS,
        ASSIGNED,
        IN_PROJECT,
        COMMENTS,
        EVENTS,
        ACTIVITY,
    ];
    for list in &lists {
        let parent = if list.path[0].starts_with("project") {
            &project
        } else {
            &task
        };
        for field in 0..list.fields.len() {
            for descending in [false, true] {
                if list.order.is_none() && descending {
                    continue;
                }
                let reading = ListReading {
                    list,
                    field,
                    descending,
                    parent,
                };
                let whole = walk(reading, &admin, 100, false).await;
                assert!(
                    whole.len() >= 5,
                    "{:?} has something to page through",
                    list.path
                );
                assert_eq!(whole.iter().collect::<HashSet<_>>().len(), whole.len());
                assert_eq!(
                    walk(reading, &admin, 2, false).await,
                    whole,
                    "{:?} forward",
                    list.path
                );
                assert_eq!(
                    walk(reading, &admin, 2, true).await,
                    whole,
                    "{:?} backward",
                    list.path
                );
            }
        }
    }
}

#[tokio::test]
async fn tasks_without_a_due_date_come_last_ascending_and_first_descending() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let undated = alice.task(&project, "undated", json!({})).await;
    let late = alice
        .task(
            &project,
            "late",
            json!({ "dueAt": "9999-12-31T23:59:59.999999Z" }),
        )
        .await;
    let soon = alice
        .task(&project, "soon", json!({ "dueAt": server.moment(DAY) }))
        .await;
    for (descending, expected) in [
        (false, [&soon, &late, &undated]),
        (true, [&undated, &late, &soon]),
    ] {
        let reading = ListReading {
            list: &TASKS,
            field: 2,
            descending,
            parent: "",
        };
        assert_eq!(
            walk(reading, &alice, 1, false)
                .await
                .iter()
                .collect::<Vec<_>>(),
            expected
        );
        assert_eq!(
            walk(reading, &alice, 1, true)
                .await
                .iter()
                .collect::<Vec<_>>(),
            expected
        );
    }
}

#[tokio::test]
async fn priorities_are_ordered_by_urgency() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    for priority in ["URGENT", "LOW", "HIGH", "MEDIUM"] {
        alice
            .task(&project, priority, json!({ "priority": priority }))
            .await;
    }
    let document = "{ tasks(orderBy: { field: PRIORITY }) { nodes { title } } }";
    let titles = alice.query(document, json!({})).await["tasks"]["nodes"].clone();
    assert_eq!(
        titles,
        json!([{ "title": "LOW" }, { "title": "MEDIUM" }, { "title": "HIGH" }, { "title": "URGENT" }])
    );
}

#[tokio::test]
async fn the_total_counts_the_whole_list_and_not_the_page() {
    let server = Server::start().await;
    let admin = server.admin("admin").await;
    let (project, task) = populate(&server, &admin).await;
    let document = "query ($project: ID!, $task: ID!) {
        users(first: 1) { totalCount }
        projects(first: 1) { totalCount }
        tasks(first: 1) { totalCount }
        none: tasks(first: 1, filter: { status: [] }) { totalCount }
        project(id: $project) { tasks(first: 1, filter: { priority: [LOW] }) { totalCount } }
        task(id: $task) { comments(first: 1) { totalCount } }
        viewer { assignedTasks(first: 1) { totalCount } projects(first: 1, filter: { search: \"alpha\" }) { totalCount } }
    }";
    assert_eq!(
        admin
            .query(document, json!({ "project": project, "task": task }))
            .await,
        json!({
            "users": { "totalCount": 5 },
            "projects": { "totalCount": 5 },
            "tasks": { "totalCount": 7 },
            "none": { "totalCount": 0 },
            "project": { "tasks": { "totalCount": 3 } },
            "task": { "comments": { "totalCount": 5 } },
            "viewer": { "assignedTasks": { "totalCount": 7 }, "projects": { "totalCount": 2 } },
        })
    );
}

#[tokio::test]
async fn page_size_is_1_to_100_and_first_excludes_last() {
    let server = Server::start().await;
    let admin = server.admin("admin").await;
    let (project, task) = populate(&server, &admin).await;
    for list in [
        USERS,
        PROJECTS,
        OWN_PROJECTS,
        TASKS,
        ASSIGNED,
        IN_PROJECT,
        COMMENTS,
        EVENTS,
        ACTIVITY,
    ] {
        let parent = if list.path[0].starts_with("project") {
            &project
        } else {
            &task
        };
        let reading = ListReading {
            list: &list,
            field: 0,
            descending: false,
            parent,
        };
        for paging in [
            json!({ "first": 0 }),
            json!({ "first": 101 }),
            json!({ "first": -1 }),
            json!({ "last": 0 }),
            json!({ "last": 101 }),
            json!({ "last": -1 }),
            json!({ "first": 1, "last": 1 }),
        ] {
            let answer = reading.ask(&admin, paging.clone()).await;
            assert_eq!(answer.code(), "BAD_USER_INPUT", "{:?} {paging}", list.path);
        }
        reading.page(&admin, json!({ "first": 100 })).await;
        reading.page(&admin, json!({ "last": 1 })).await;
    }
}

#[tokio::test]
async fn a_cursor_of_another_list_or_order_is_refused() {
    let server = Server::start().await;
    let admin = server.admin("admin").await;
    let (project, task) = populate(&server, &admin).await;
    let lists = [
        USERS,
        PROJECTS,
        OWN_PROJECTS,
        TASKS,
        ASSIGNED,
        IN_PROJECT,
        COMMENTS,
        EVENTS,
    ];
    let mut readings = Vec::new();
    for list in &lists {
        let parent = if list.path[0].starts_with("project") {
            &project
        } else {
            &task
        };
        readings.push(ListReading {
            list,
            field: 0,
            descending: false,
            parent,
        });
    }
    for field in 0..TASK_FIELDS.len() {
        readings.push(ListReading {
            list: &TASKS,
            field,
            descending: true,
            parent: "",
        });
    }
    let mut cursors = Vec::new();
    for reading in &readings {
        cursors.push(
            reading.page(&admin, json!({ "first": 1 })).await["pageInfo"]["endCursor"].clone(),
        );
    }
    for (index, reading) in readings.iter().enumerate() {
        for (other, cursor) in cursors.iter().enumerate() {
            let answer = reading
                .ask(&admin, json!({ "last": 1, "before": cursor }))
                .await;
            let expected: &[&str] = if index == other {
                &[]
            } else {
                &["BAD_USER_INPUT"]
            };
            assert_eq!(
                answer.codes(),
                expected,
                "{:?} {:?}",
                reading.list.path,
                readings[other].list.path
            );
        }
        for cursor in ["", "x", "AAAA", "%", "ä"] {
            assert_eq!(
                reading.ask(&admin, json!({ "after": cursor })).await.code(),
                "BAD_USER_INPUT",
                "{cursor:?}"
            );
        }
    }
}

#[tokio::test]
async fn tampered_cursor_is_bad_user_input() {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let server = Server::start().await;
    let admin = server.admin("admin").await;
    let (project, _) = populate(&server, &admin).await;
    for (field, value) in [
        (0, i64::MIN),
        (1, i64::MAX - 1),
        (2, i64::MIN),
        (2, -i64::MAX),
    ] {
        let reading = ListReading {
            list: &IN_PROJECT,
            field,
            descending: false,
            parent: &project,
        };
        let cursor =
            text(&reading.page(&admin, json!({ "first": 1 })).await["pageInfo"]["endCursor"]);
        let mut bytes = URL_SAFE_NO_PAD.decode(cursor).expect("base64");
        let end = bytes.len() - 8;
        bytes[end..].copy_from_slice(&value.to_be_bytes());
        let answer = reading
            .ask(&admin, json!({ "after": URL_SAFE_NO_PAD.encode(bytes) }))
            .await;
        assert_eq!(answer.code(), "BAD_USER_INPUT", "{value}");
    }
}

#[tokio::test]
async fn a_nested_list_is_the_root_list_filtered() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let (project, _) = populate(&server, &alice).await;
    let other = alice.project("Other").await;
    let elsewhere = alice
        .task(&other, "elsewhere", json!({ "assigneeId": alice.id }))
        .await;
    alice.task(&other, "nobody's", json!({})).await;
    let document = "query ($project: ID!, $viewer: ID!, $order: TaskOrder) {
        project(id: $project) { tasks(orderBy: $order) { totalCount nodes { id } } }
        viewer {
            assignedTasks(orderBy: $order) { totalCount nodes { id } }
            projects { totalCount nodes { id } }
        }
        inProject: tasks(orderBy: $order, filter: { projectId: $project }) { totalCount nodes { id } }
        assigned: tasks(orderBy: $order, filter: { assigneeId: $viewer }) { totalCount nodes { id } }
        owned: projects(filter: { ownerId: $viewer }) { totalCount nodes { id } }
    }";
    for (field, _) in TASK_FIELDS {
        for direction in ["ASC", "DESC"] {
            let order = json!({ "field": field, "direction": direction });
            let variables = json!({ "project": project, "viewer": alice.id, "order": order });
            let data = alice.query(document, variables).await;
            assert_eq!(data["project"]["tasks"], data["inProject"], "{order}");
            assert_eq!(data["viewer"]["assignedTasks"], data["assigned"], "{order}");
            assert_eq!(data["viewer"]["projects"], data["owned"]);
            assert!(
                data["assigned"]["nodes"]
                    .as_array()
                    .expect("nodes")
                    .contains(&json!({ "id": elsewhere }))
            );
        }
    }
}

/// A change between two pages.
#[derive(Clone, Debug)]
enum Change {
    Nothing,
    Add(Row),
    Delete(prop::sample::Index),
}

/// Sort keys of a task. They have few values, so that many are equal.
#[derive(Clone, Debug)]
struct Row {
    due: Option<u32>,
    priority: &'static str,
    later: bool,
}

#[derive(Clone, Debug)]
struct Walk {
    rows: Vec<Row>,
    field: usize,
    descending: bool,
    backward: bool,
    /// Page sizes, and the change after each page.
    pages: Vec<(usize, Change)>,
}

fn a_row() -> impl Strategy<Value = Row> {
    let priority = prop::sample::select(vec!["LOW", "MEDIUM", "HIGH", "URGENT"]);
    (prop::option::of(1..3_u32), priority, any::<bool>()).prop_map(|(due, priority, later)| Row {
        due,
        priority,
        later,
    })
}

fn a_walk() -> impl Strategy<Value = Walk> {
    let change = prop_oneof![
        Just(Change::Nothing),
        a_row().prop_map(Change::Add),
        any::<prop::sample::Index>().prop_map(Change::Delete)
    ];
    (
        prop::collection::vec(a_row(), 0..14),
        0..TASK_FIELDS.len(),
        any::<bool>(),
        any::<bool>(),
        prop::collection::vec((1..5_usize, change), 30),
    )
        .prop_map(|(rows, field, descending, backward, pages)| Walk {
            rows,
            field,
            descending,
            backward,
            pages,
        })
}

async fn add(server: &Server, owner: &Person, project: &str, row: &Row) -> String {
    if row.later {
        server.advance(Duration::from_secs(1));
    }
    let due = row.due.map(|days| server.moment(DAY * days));
    owner
        .task(
            project,
            "x",
            json!({ "dueAt": due, "priority": row.priority }),
        )
        .await
}

/// Pages through a list while it changes. Rows that stay are met exactly once; no row is met twice.
async fn walk_through_changes(server: &Server, owner: &Person, walk: &Walk) {
    let project = owner.project("Apollo").await;
    let mut there = Vec::new();
    for row in &walk.rows {
        there.push(add(server, owner, &project, row).await);
    }
    let mut stayed: HashSet<String> = there.iter().cloned().collect();
    let mut met: Vec<Value> = Vec::new();
    let reading = ListReading {
        list: &IN_PROJECT,
        field: walk.field,
        descending: walk.descending,
        parent: &project,
    };
    let mut cursor = Value::Null;
    for (size, change) in walk.pages.iter().cycle() {
        let page = if walk.backward {
            reading
                .page(owner, json!({ "last": size, "before": cursor }))
                .await
        } else {
            reading
                .page(owner, json!({ "first": size, "after": cursor }))
                .await
        };
        let nodes = page["nodes"].as_array().expect("nodes").iter().cloned();
        if walk.backward {
            met.extend(nodes.rev())
        } else {
            met.extend(nodes)
        };
        let (more, next) = if walk.backward {
            ("hasPreviousPage", "startCursor")
        } else {
            ("hasNextPage", "endCursor")
        };
        if page["pageInfo"][more] == false {
            break;
        }
        cursor = page["pageInfo"][next].clone();
        match change {
            Change::Nothing => {}
            Change::Add(row) => there.push(add(server, owner, &project, row).await),
            Change::Delete(_) if there.is_empty() => {}
            Change::Delete(index) => {
                let task = there.swap_remove(index.index(there.len()));
                owner.mutate("deleteTask", json!({ "id": task })).await.ok();
                stayed.remove(&task);
            }
        }
    }
    let mut times: HashMap<String, usize> = HashMap::new();
    for node in &met {
        *times.entry(text(&node["id"])).or_default() += 1;
    }
    assert!(
        times.values().all(|times| *times == 1),
        "a row came twice: {met:?}"
    );
    assert!(
        stayed.iter().all(|task| times.contains_key(task)),
        "a row was skipped: {stayed:?} {met:?}"
    );
    for pair in met.windows(2) {
        assert!(
            in_order(
                reading.key(),
                walk.descending != walk.backward,
                &pair[0],
                &pair[1]
            ),
            "{pair:?}"
        );
    }
}

#[test]
fn paging_is_stable_under_inserts_and_deletes() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (server, alice) = runtime.block_on(async {
        let server = Server::start().await;
        let alice = server.person("alice").await;
        (server, alice)
    });
    let config = Config {
        cases: 12,
        failure_persistence: None,
        max_shrink_iters: 20,
        ..Config::default()
    };
    let walked = TestRunner::new(config).run(&a_walk(), |walk| {
        runtime.block_on(walk_through_changes(&server, &alice, &walk));
        Ok(())
    });
    walked.unwrap_or_else(|failure| panic!("{failure}"));
}
