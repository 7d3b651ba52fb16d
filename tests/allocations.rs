//! Guards the number of allocations per request, as a proxy for its cost that needs no timing, and
//! the memory used by answers that exceed the size limit and by idle subscriptions.
//!
//! Allocations on SQLite's threads are not counted. PostgreSQL is not measured: its driver
//! allocates differently depending on how responses arrive.

mod requests;

use allocation_counter::measure;
use axum::body::Bytes;
use requests::{Fixture, OPERATIONS};
use serde_json::{Value, json};

/// Expected allocations per operation, ±10 %. Lower the number when an operation improves.
const EXPECTED: [u64; OPERATIONS.len()] = [93, 118, 356, 1945, 276];

#[test]
fn allocations_per_request_do_not_change() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut fixture = Fixture::new(directory.path());
    let mut wrong = Vec::new();
    for ((title, query), expected) in OPERATIONS.into_iter().zip(EXPECTED) {
        let counts = (0..10).map(|_| {
            let request = fixture.request(query);
            measure(|| drop(fixture.send(request))).count_total
        });
        // The first runs fill caches.
        let least = counts.min().unwrap_or_default();
        println!("{title}: {least}");
        if least.abs_diff(expected) * 10 > expected {
            wrong.push(format!("{title}: {least} instead of {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Operations whose answers would be many times larger than the data they are built from.
const ENDLESS: [(&str, &str); 4] = [
    (
        "labels in batches",
        "query ($project: ID!) { project(id: $project) {
            labels { project { labels { project { labels { id name color } } } } }
        } }",
    ),
    (
        "labels by async-graphql",
        "query ($project: ID!) { project(id: $project) {
            labels { project { labels { project { labels { id } labels { name } } } } }
        } }",
    ),
    (
        "descriptions in batches",
        "{ tasks(first: 100) { nodes { project { tasks(first: 90) { nodes { project { description } } } } } } }",
    ),
    (
        "descriptions by async-graphql",
        "{ tasks(first: 100) { nodes { project { tasks(first: 90) { nodes { project { description stats { taskCount } } } } } } } }",
    ),
];

#[test]
fn oversized_answers_are_refused_before_they_are_built() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut fixture = Fixture::new(directory.path());
    let create = |number| {
        format!(
            r#"a{number}: createLabel(input: {{ projectId: $project, name: "{number}" }}) {{ label {{ id }} }} "#
        )
    };
    for tens in 0..5 {
        let labels: String = (0..10).map(|one| create(10 * tens + one)).collect();
        let request = fixture.request(&format!("mutation ($project: ID!) {{ {labels} }}"));
        fixture.send(request);
    }
    let describe = "mutation ($project: ID!, $long: String!) {
        updateProject(input: { id: $project, description: $long }) { project { id } } }";
    let request = fixture.request(describe);
    fixture.send(request);
    let mut wrong = Vec::new();
    for (title, query) in ENDLESS {
        let request = fixture.request(query);
        let mut answer = Bytes::new();
        let most = measure(|| answer = fixture.ask(request)).bytes_max;
        println!("{title}: {most}");
        let answer = String::from_utf8_lossy(&answer[..answer.len().min(500)]);
        if !answer.contains("DOCUMENT_TOO_COMPLEX") || most > 24 * 1024 * 1024 {
            wrong.push(format!("{title}: {most} bytes for {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Builds a distinct document and its variables for each number.
type Variant<'a> = &'a dyn Fn(usize) -> (String, Value);

#[test]
fn idle_subscriptions_use_bounded_memory() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut fixture = Fixture::new(directory.path());
    let small = |number: usize| {
        (
            format!("subscription S{number} {{ events {{ id }} }}"),
            json!({}),
        )
    };
    // As many tokens, selections, bytes and undeclared variables as a document may have.
    let large = |number: usize| {
        let fields =
            "... on TaskCreatedEvent { task { id title description createdAt } } ".repeat(130);
        let document = format!("subscription S{number} {{ events {{ id {fields} }} }} #");
        let padding = "x".repeat(16_384 - document.len());
        (
            document + &padding,
            json!({ "unused": vec![json!({ "a": "b" }); 900] }),
        )
    };
    let many = |number: usize| {
        let document = format!(
            "subscription S{number}($search: String, $ids: [ID!]) {{ events {{ ... on TaskCreatedEvent {{ task {{ project {{
                tasks(first: 1, filter: {{ search: $search, labelIds: $ids }}) {{ nodes {{ id }} }} }} }} }} }} }}"
        );
        (
            document,
            json!({ "search": "x".repeat(100), "ids": vec!["x"; 1_900] }),
        )
    };
    let documents: [(&str, Variant<'_>); 3] = [
        ("small", &small),
        ("large", &large),
        ("many variables", &many),
    ];
    for (title, document) in documents {
        let mut open = Vec::with_capacity(1_000);
        let mut add = |numbers: std::ops::Range<usize>| {
            for number in numbers {
                let (query, variables) = document(number);
                open.push(fixture.open(&query, &variables));
            }
        };
        // The first subscriptions fill caches.
        add(0..100);
        let each = measure(|| add(100..150)).bytes_current / 50;
        println!("{title}: {each}");
        assert!(each <= 64 * 1024, "{title}: {each} bytes");
    }
}
