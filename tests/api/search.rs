//! Filters on tasks and projects, and text search.

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::harness::{Person, Server, is_postgres, text};

const MINUTE: Duration = Duration::from_secs(60);
const STATUSES: [&str; 3] = ["TODO", "IN_PROGRESS", "DONE"];
const PRIORITIES: [&str; 4] = ["LOW", "MEDIUM", "HIGH", "URGENT"];
const WORDS: [&str; 4] = ["red", "Green", "blue", "gree"];

/// A server with varied tasks, and the objects that filters can name.
struct World {
    server: Server,
    alice: Person,
    projects: Vec<String>,
    people: Vec<String>,
    labels: Vec<String>,
    /// Every task as the API returns it.
    tasks: Vec<Value>,
}

impl World {
    async fn new() -> Self {
        let server = Server::start().await;
        let (alice, bob) = (server.person("alice").await, server.person("bob").await);
        let (mut projects, mut labels) = (Vec::new(), Vec::new());
        for name in ["Apollo", "Gemini"] {
            let project = alice.project(name).await;
            for label in ["a", "b"] {
                labels.push(alice.label(&project, label).await);
            }
            projects.push(project);
        }
        let people = vec![alice.id.clone(), bob.id.clone()];
        for index in 0..16_usize {
            server.advance(Duration::from_secs(u64::from(index % 3 == 0)));
            let project = index % 2;
            let own = &labels[project * 2..project * 2 + 2];
            let more = json!({
                "description": WORDS[index % 3],
                "priority": PRIORITIES[index % 4],
                "dueAt": (index % 3 > 0).then(|| server.moment(MINUTE * (index % 4 + 1) as u32)),
                "assigneeId": people.get(index % 3),
                "labelIds": &own[..index / 2 % 3],
            });
            let task = alice
                .task(&projects[project], WORDS[index / 4 % 3], more)
                .await;
            for status in STATUSES.iter().skip(1).take(index / 3 % 3) {
                server.advance(Duration::from_secs(1));
                alice
                    .mutate("updateTask", json!({ "id": task, "status": status }))
                    .await
                    .ok();
            }
        }
        server.advance(MINUTE * 2);
        let document = "{ tasks(first: 100) { nodes {
            id title description status priority dueAt createdAt updatedAt isOverdue
            project { id } assignee { id } labels { id }
        } } }";
        let tasks = alice.query(document, json!({})).await["tasks"]["nodes"]
            .as_array()
            .expect("nodes")
            .clone();
        Self {
            server,
            alice,
            projects,
            people,
            labels,
            tasks,
        }
    }

    /// Ids of the tasks that the server returns.
    async fn found(&self, filter: &Value) -> Vec<String> {
        let document = "query ($filter: TaskFilter) { tasks(first: 100, filter: $filter) { totalCount nodes { id } } }";
        let tasks = self
            .alice
            .query(document, json!({ "filter": filter }))
            .await["tasks"]
            .clone();
        let ids: Vec<String> = tasks["nodes"]
            .as_array()
            .expect("nodes")
            .iter()
            .map(|task| text(&task["id"]))
            .collect();
        assert_eq!(tasks["totalCount"], ids.len());
        ids
    }

    /// Ids of the tasks that it should return.
    fn expected(&self, filter: &Value) -> Vec<String> {
        self.tasks
            .iter()
            .filter(|task| matches(task, filter))
            .map(|task| text(&task["id"]))
            .collect()
    }

    /// Random filters; each member is present about every third time.
    fn filters(&self) -> impl Strategy<Value = Value> + use<> {
        let moments: Vec<String> = (0..6)
            .map(|minute| self.server.moment(MINUTE * minute))
            .collect();
        let moments: Vec<String> = moments
            .into_iter()
            .chain(self.tasks.iter().map(|t| text(&t["createdAt"])))
            .collect();
        let list = |all: &[&str]| {
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            member(subsequence(all.clone(), 0..=all.len()))
        };
        let labels: Vec<&str> = self.labels.iter().map(String::as_str).collect();
        (
            member(select(WORDS.map(str::to_uppercase).to_vec())),
            list(&STATUSES),
            list(&PRIORITIES),
            member(select(self.projects.clone())),
            member(select(self.people.clone())),
            member(any::<bool>()),
            list(&labels),
            member(any::<bool>()),
            (a_range(moments.clone()), a_range(moments.clone()), a_range(moments)),
        )
            .prop_map(|(search, status, priority, project, assignee, unassigned, labels, overdue, ranges)| {
                json!({
                    "search": search, "status": status, "priority": priority, "projectId": project,
                    "assigneeId": assignee, "unassigned": unassigned, "labelIds": labels, "overdue": overdue,
                    "dueAt": ranges.0, "createdAt": ranges.1, "updatedAt": ranges.2,
                })
            })
    }
}

fn member<T: std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    prop::option::weighted(0.3, value)
}

fn a_range(moments: Vec<String>) -> impl Strategy<Value = Option<Value>> {
    let bound = member(select(moments));
    let bounds = prop::array::uniform4(bound);
    member(
        bounds.prop_map(|[gt, gte, lt, lte]| json!({ "gt": gt, "gte": gte, "lt": lt, "lte": lte })),
    )
}

/// Reference implementation of a filter; null is the same as absent.
fn matches(task: &Value, filter: &Value) -> bool {
    let among = |name: &str, value: &Value| {
        filter[name]
            .as_array()
            .is_none_or(|list| list.contains(value))
    };
    let is = |name: &str, value: &Value| filter[name].is_null() || filter[name] == *value;
    let within = |name: &str| {
        let (range, value) = (&filter[name], task[name].as_str());
        let holds = |bound: &str, test: fn(&str, &str) -> bool| {
            range[bound]
                .as_str()
                .is_none_or(|bound| value.is_some_and(|value| test(value, bound)))
        };
        holds("gt", |value, bound| value > bound)
            && holds("gte", |value, bound| value >= bound)
            && holds("lt", |value, bound| value < bound)
            && holds("lte", |value, bound| value <= bound)
    };
    let haystack =
        format!("{} {}", text(&task["title"]), text(&task["description"])).to_lowercase();
    let labelled = filter["labelIds"].as_array().is_none_or(|wanted| {
        let labels = task["labels"].as_array().expect("labels");
        wanted
            .iter()
            .any(|id| labels.iter().any(|label| label["id"] == *id))
    });
    filter["search"]
        .as_str()
        .is_none_or(|word| haystack.contains(&word.to_lowercase()))
        && among("status", &task["status"])
        && among("priority", &task["priority"])
        && is("projectId", &task["project"]["id"])
        && is("assigneeId", &task["assignee"]["id"])
        && is("unassigned", &task["assignee"].is_null().into())
        && labelled
        && is("overdue", &task["isOverdue"])
        && ["dueAt", "createdAt", "updatedAt"].into_iter().all(within)
}

#[test]
fn filters_match_the_reference_implementation() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let world = runtime.block_on(World::new());
    let config = Config {
        cases: 60,
        failure_persistence: None,
        max_shrink_iters: 60,
        ..Config::default()
    };
    let compared = TestRunner::new(config).run(&world.filters(), |filter| {
        prop_assert_eq!(
            runtime.block_on(world.found(&filter)),
            world.expected(&filter)
        );
        Ok(())
    });
    compared.unwrap_or_else(|failure| panic!("{failure}"));
}

#[tokio::test]
async fn each_member_alone_narrows_the_list() {
    let world = World::new().await;
    let start = world.server.moment(MINUTE * 2);
    for filter in [
        json!({ "search": "RED" }),
        json!({ "status": ["DONE"] }),
        json!({ "priority": ["LOW", "URGENT"] }),
        json!({ "projectId": world.projects[0] }),
        json!({ "assigneeId": world.people[1] }),
        json!({ "unassigned": true }),
        json!({ "unassigned": false }),
        json!({ "labelIds": [world.labels[0], world.labels[3]] }),
        json!({ "overdue": true }),
        json!({ "overdue": false }),
        json!({ "dueAt": { "gt": start } }),
        json!({ "dueAt": { "gte": start } }),
        json!({ "dueAt": { "lt": start } }),
        json!({ "dueAt": { "lte": start } }),
    ] {
        let found = world.found(&filter).await;
        assert_eq!(found, world.expected(&filter), "{filter}");
        assert!(
            (1..world.tasks.len()).contains(&found.len()),
            "{filter} finds {}",
            found.len()
        );
    }
    for nothing in [
        json!({ "status": [] }),
        json!({ "priority": [] }),
        json!({ "labelIds": [] }),
    ] {
        assert!(world.found(&nothing).await.is_empty(), "{nothing}");
    }
    for everything in [
        json!({}),
        json!({ "search": "" }),
        json!({ "search": " " }),
        json!({ "dueAt": {} }),
    ] {
        assert_eq!(
            world.found(&everything).await.len(),
            world.tasks.len(),
            "{everything}"
        );
    }
}

#[tokio::test]
async fn a_filter_with_the_id_of_another_type_is_refused() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    for filter in [
        json!({ "projectId": alice.id }),
        json!({ "assigneeId": project }),
        json!({ "labelIds": [project] }),
        json!({ "projectId": "x" }),
        json!({ "labelIds": vec!["x"; 101] }),
    ] {
        let document = "query ($filter: TaskFilter) { tasks(filter: $filter) { nodes { id } } }";
        assert_eq!(
            alice
                .ask(document, json!({ "filter": filter }))
                .await
                .code(),
            "BAD_USER_INPUT",
            "{filter}"
        );
    }
    let document = "query ($owner: ID) { projects(filter: { ownerId: $owner }) { nodes { id } } }";
    assert_eq!(
        alice
            .ask(document, json!({ "owner": project }))
            .await
            .code(),
        "BAD_USER_INPUT"
    );
    let document = "{ tasks(filter: { colour: RED }) { nodes { id } } }";
    assert_eq!(
        alice.ask(document, json!({})).await.code(),
        "GRAPHQL_VALIDATION_FAILED"
    );
}

/// Search text, title, and whether the task is found.
const SEARCHES: [(&str, &str, bool); 24] = [
    ("fly", "Fly to the moon", true),
    ("MOON fly", "Fly to the moon", true),
    ("fly mars", "Fly to the moon", false),
    ("oo", "Fly to the moon", true),
    ("flyto", "Fly to the moon", false),
    ("ÄRGER", "ärger im Büro", true),
    ("ärger", "ÄRGER IM BÜRO", true),
    ("arger", "ärger", false),
    ("straße", "STRASSE", true),
    ("STRASSE", "Straße", true),
    ("σίσυφος", "ΣΊΣΥΦΟΣ", true),
    ("ΣΊΣΥΦΟΣ", "Σίσυφος", true),
    ("Москва", "МОСКВА", true),
    ("東京", "東京タワー", true),
    ("100%", "100% done", true),
    ("100%", "1000 done", false),
    ("%", "nothing of it", false),
    ("a_b", "a_b", true),
    ("a_b", "axb", false),
    ("_", "nothing of it", false),
    ("c\\d", "C\\D", true),
    ("\\", "nothing of it", false),
    ("'", "it's", true),
    ("\"; --", "\"; --", true),
];

#[tokio::test]
async fn a_search_ignores_case_beyond_ascii_and_takes_wildcards_literally() {
    let server = Server::start().await;
    let admin = server.admin("admin").await;
    for (search, there, found) in SEARCHES {
        let project = admin.project(there).await;
        let task = admin
            .task(&project, "x", json!({ "description": there }))
            .await;
        admin
            .mutate("updateViewer", json!({ "displayName": there }))
            .await
            .ok();
        let document = "query ($search: String, $project: ID!) {
            tasks(filter: { search: $search, projectId: $project }) { nodes { id } }
            projects(last: 1, filter: { search: $search }) { nodes { id } }
            users(filter: { search: $search }) { nodes { id } }
        }";
        let seen = admin
            .query(document, json!({ "search": search, "project": project }))
            .await;
        let one = |id: &str| {
            if found {
                json!([{ "id": id }])
            } else {
                json!([])
            }
        };
        assert_eq!(
            seen["tasks"]["nodes"],
            one(&task),
            "{search:?} in {there:?}"
        );
        assert_eq!(
            seen["projects"]["nodes"] == json!([{ "id": project }]),
            found,
            "{search:?} in {there:?}"
        );
        assert_eq!(
            seen["users"]["nodes"],
            one(&admin.id),
            "{search:?} in {there:?}"
        );
    }
}

#[tokio::test]
async fn search_follows_title_changes() {
    let server = Server::start().await;
    let alice = server.person("alice").await;
    let project = alice.project("Apollo").await;
    let task = alice.task(&project, "Before", json!({})).await;
    alice
        .mutate("updateTask", json!({ "id": task, "title": "After" }))
        .await
        .ok();
    alice
        .mutate("updateProject", json!({ "id": project, "name": "After" }))
        .await
        .ok();
    for (search, found) in [("before", 0), ("apollo", 0), ("AFTER", 1)] {
        let document = "query ($search: String) {
            tasks(filter: { search: $search }) { totalCount }
            projects(filter: { search: $search }) { totalCount }
        }";
        let seen = alice.query(document, json!({ "search": search })).await;
        assert_eq!(
            (
                &seen["tasks"]["totalCount"],
                &seen["projects"]["totalCount"]
            ),
            (&json!(found), &json!(found))
        );
    }
}

#[tokio::test]
async fn invalid_search_is_refused() {
    let server = Server::start().await;
    let admin = server.admin("admin").await;
    for search in ["a\u{0}b".to_owned(), "ü".repeat(201), "a ".repeat(11)] {
        for (list, kind) in [
            ("tasks", "TaskFilter"),
            ("projects", "ProjectFilter"),
            ("users", "UserFilter"),
        ] {
            let document = format!(
                "query ($filter: {kind}) {{ {list}(filter: $filter) {{ nodes {{ id }} }} }}"
            );
            let answer = admin
                .ask(&document, json!({ "filter": { "search": search } }))
                .await;
            assert_eq!(answer.code(), "BAD_USER_INPUT", "{list} {search:.10}");
        }
    }
}

/// Creates a project with `tasks` tasks of `letters` letters `a` each.
async fn filled(
    server: &Server,
    person: &Person,
    name: &str,
    tasks: usize,
    letters: usize,
) -> String {
    let project = person.project(name).await;
    let task = person.task(&project, name, json!({})).await;
    let columns = "project_id, owner_id, creator_id, assignee_id, title, description, status, priority, due_at, \
                   completed_at, version, created_at, updated_at";
    let (id, numbers, text) = if is_postgres() {
        (
            "gen_random_uuid()",
            format!("generate_series(1, {tasks})"),
            format!("repeat('a', {letters})"),
        )
    } else {
        let numbers = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {tasks})"
        );
        (
            "randomblob(16)",
            format!("({numbers} SELECT i FROM n)"),
            format!("replace(hex(zeroblob({letters})), '00', 'a')"),
        )
    };
    let insert = format!(
        "INSERT INTO tasks (id, search, {columns}) SELECT {id}, {text}, {columns} FROM tasks, {numbers} AS numbers \
         WHERE title = '{name}'"
    );
    server.database().execute(&insert).await;
    person
        .mutate("deleteTask", json!({ "id": task }))
        .await
        .ok();
    project
}

#[tokio::test]
async fn search_text_is_bounded_and_charged() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    // 20 MB and 10 MB of text.
    let (large, small) = (
        filled(&server, &alice, "Large", 500, 40_000).await,
        filled(&server, &alice, "Small", 250, 40_000).await,
    );
    let ask = async |filter: Value, selected: &str| {
        let document =
            format!("query ($filter: TaskFilter) {{ tasks(filter: $filter) {{ {selected} }} }}");
        alice.ask(&document, json!({ "filter": filter })).await
    };
    for (filter, selected, found) in [
        (json!({ "search": "b" }), "nodes { id }", None),
        (json!({ "search": "a" }), "nodes { id }", Some(20)),
        (json!({ "search": "a" }), "nodes { id } totalCount", None),
        (
            json!({ "search": "b", "projectId": large }),
            "nodes { id }",
            None,
        ),
        (
            json!({ "search": "b", "projectId": small }),
            "nodes { id }",
            Some(0),
        ),
        (
            json!({ "search": "a", "projectId": small }),
            "nodes { id } totalCount",
            Some(20),
        ),
    ] {
        let answer = ask(filter.clone(), selected).await;
        match found {
            Some(found) => {
                let page = answer.0["data"]["tasks"]["nodes"]
                    .as_array()
                    .unwrap_or_else(|| panic!("{filter}: {answer:?}"));
                assert_eq!(page.len(), found, "{filter}");
                let searches = 1 + usize::from(selected.contains("totalCount"));
                assert_eq!(answer.0["extensions"]["cost"], 1 + 20 * searches);
            }
            None => assert_eq!(answer.code(), "DOCUMENT_TOO_COMPLEX", "{filter} {selected}"),
        }
    }
    // Text that one search has paid for but not read is available to other searches of the
    // operation.
    let nested = "query ($s: String) { projects { nodes { tasks(filter: { search: $s }) { nodes { id } totalCount } } } }";
    assert_eq!(
        alice.ask(nested, json!({ "s": "b" })).await.code(),
        "DOCUMENT_TOO_COMPLEX"
    );
    let many: String = (0..11)
        .map(|n| format!("a{n}: tasks(filter: {{ search: \"x\" }}) {{ nodes {{ id }} }} "))
        .collect();
    assert_eq!(
        alice.ask(&format!("{{ {many} }}"), json!({})).await.code(),
        "DOCUMENT_TOO_COMPLEX"
    );
}

#[tokio::test]
async fn a_nested_list_is_searched_for_each_parent() {
    let server = Server::without_jobs().await;
    let (alice, bob) = (server.person("alice").await, server.person("bob").await);
    let mut expected = Vec::new();
    for (name, tasks) in [("Apollo", 4), ("Gemini", 0), ("Mercury", 2)] {
        let project = alice.project(name).await;
        for number in 0..tasks {
            let title = format!("{} {number}", if number % 2 == 0 { "red" } else { "blue" });
            alice
                .task(&project, &title, json!({ "assigneeId": bob.id }))
                .await;
        }
        expected.push(json!({ "name": name, "tasks": { "totalCount": tasks / 2, "nodes":
            (0..tasks).filter(|number| number % 2 == 0).take(1).map(|n| json!({ "title": format!("red {n}") }))
                .collect::<Vec<_>>(),
            "pageInfo": { "hasNextPage": tasks > 2 } } }));
    }
    let nested = "{ projects(orderBy: { field: CREATED_AT, direction: ASC }) { nodes { name
        tasks(first: 1, filter: { search: \"RED\" }, orderBy: { field: CREATED_AT, direction: ASC }) {
            totalCount nodes { title } pageInfo { hasNextPage } } } } }";
    assert_eq!(
        alice.query(nested, json!({})).await["projects"]["nodes"],
        json!(expected)
    );
    let assigned = "{ viewer { assignedTasks(first: 2, filter: { search: \"e\" }) { totalCount nodes { id } } } }";
    let seen = bob.query(assigned, json!({})).await["viewer"]["assignedTasks"].clone();
    assert_eq!(
        (&seen["totalCount"], seen["nodes"].as_array().map(Vec::len)),
        (&json!(6), Some(2))
    );
}

/// CPU time of this process.
#[cfg(unix)]
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A naive search restarts the comparison at each letter and slows down with the length of the
/// word.
#[cfg(unix)]
#[tokio::test]
async fn search_time_does_not_depend_on_word_length() {
    let server = Server::without_jobs().await;
    let alice = server.person("alice").await;
    let project = filled(&server, &alice, "Apollo", 400, 10_000).await;
    let search = async |letters: usize| {
        let filter = json!({ "search": format!("{}b", "a".repeat(letters)), "projectId": project });
        let document = "query ($filter: TaskFilter) { tasks(filter: $filter) { nodes { id } } }";
        let before = processor_time();
        let answer = alice.ask(document, json!({ "filter": filter })).await;
        assert_eq!(answer.0["data"]["tasks"]["nodes"], json!([]), "{answer:?}");
        processor_time() - before
    };
    search(1).await;
    let mut times = [Duration::MAX; 2];
    for _ in 0..3 {
        times = [
            times[0].min(search(9).await),
            times[1].min(search(199).await),
        ];
    }
    assert!(times[1] < times[0] * 5, "{times:?}");
}
