//! Representative client requests, run against the router in this process. `tests/allocations.rs`
//! counts their allocations and `benches/requests.rs` measures their time.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request};
use fasttrack::config::Config;
use fasttrack::db::{Location, migrate};
use fasttrack::time::Clock;
use fasttrack::{App, graphql, http};
use serde_json::{Map, Value, json};
use tokio::runtime::{Builder, Runtime};
use tower::Service;

const PASSWORD: &str = "Correct-Horse-7";

/// Name and document of each operation.
pub(crate) const OPERATIONS: [(&str, &str); 5] = [
    ("nothing", "{ __typename }"),
    ("a task", "query ($task: ID!) { task(id: $task) { id title status priority } }"),
    (
        "a page of 50",
        "query ($project: ID!) { tasks(filter: { projectId: $project }, first: 50) {
            edges { cursor node { id title status priority createdAt } } pageInfo { hasNextPage endCursor }
        } }",
    ),
    (
        "a nested page",
        "{ projects(first: 10) { nodes { id name tasks(first: 10) { nodes {
            id title status assignee { displayName } comments(first: 5) { nodes { body author { displayName } } }
        } } } } }",
    ),
    (
        "an update",
        "mutation ($task: ID!, $title: String!) { updateTask(input: { id: $task, title: $title }) {
            task { id title status priority }
        } }",
    ),
];

struct Client {
    runtime: Runtime,
    router: Router,
    token: Option<String>,
}

impl Client {
    fn request(&self, path: &str, body: &Value) -> Request<Body> {
        let request = Request::post(path).header("content-type", "application/json");
        let request = match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        };
        let request = request.extension(ConnectInfo(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))));
        request
            .body(Body::from(body.to_string()))
            .expect("a request")
    }

    fn send(&mut self, request: Request<Body>) -> Bytes {
        self.runtime.block_on(async {
            let answer = self.router.call(request).await.expect("infallible");
            assert!(answer.status().is_success(), "{}", answer.status());
            to_bytes(answer.into_body(), usize::MAX)
                .await
                .expect("a body")
        })
    }

    fn post(&mut self, path: &str, body: &Value) -> Value {
        let request = self.request(path, body);
        serde_json::from_slice(&self.send(request)).unwrap_or_default()
    }

    fn ask(&mut self, query: &str, variables: &Value) -> Value {
        let answer = self.post(
            "/graphql",
            &json!({ "query": query, "variables": variables }),
        );
        assert!(answer.get("errors").is_none(), "{query}: {answer}");
        answer["data"].clone()
    }

    /// Creates a project with `tasks` tasks; each of the first ten has five comments.
    fn populate(&mut self, tasks: usize) -> (Value, Value) {
        let me = self.ask("{ viewer { id } }", &json!({}))["viewer"]["id"].clone();
        let made = self.ask(
            r#"mutation { createProject(input: { name: "Apollo" }) { project { id } } }"#,
            &json!({}),
        );
        let project = made["createProject"]["project"]["id"].clone();
        let mut task = Value::Null;
        for number in 0..tasks {
            let create = "mutation ($project: ID!, $me: ID!, $title: String!) {
                createTask(input: { projectId: $project, assigneeId: $me, title: $title }) { task { id } } }";
            let variables =
                json!({ "project": project, "me": me, "title": format!("Task {number}") });
            task = self.ask(create, &variables)["createTask"]["task"]["id"].clone();
            for _ in 0..if number < 10 { 5 } else { 0 } {
                let comment = r#"mutation ($task: ID!) { addComment(input: { taskId: $task, body: "x" }) { comment { id } } }"#;
                self.ask(comment, &json!({ "task": task }));
            }
        }
        (project, task)
    }
}

fn client(directory: &Path) -> Client {
    let url = format!("sqlite://{}", directory.join("fasttrack.db").display());
    let settings = HashMap::from([
        ("DATABASE_URL", url.as_str()),
        ("SECRET_KEY", "the key of the tests' access tokens"),
        ("REFRESH_SECRET_KEY", "the key of the tests' refresh tokens"),
        ("ARGON2_MEMORY_KIB", "8"),
        ("ARGON2_PASSES", "1"),
        ("RATE_LIMIT_GRAPHQL_PER_MINUTE", "100000"),
        ("RATE_LIMIT_COST_PER_MINUTE", "100000"),
        ("WS_SOCKETS_PER_USER", "1000"),
        ("WS_SUBSCRIPTIONS_PER_USER", "1000"),
    ]);
    let config =
        Config::from(&|name| settings.get(name).map(ToString::to_string)).expect("good settings");
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let router = runtime.block_on(async {
        migrate::up(&Location::parse(&url).expect("a location"))
            .await
            .expect("a database");
        let app = App::open(config, Clock::system()).expect("the parts of the server");
        http::router(&app, graphql::schema(true))
    });
    Client {
        runtime,
        router,
        token: None,
    }
}

/// A server in this process on SQLite with ten projects of tasks, and its only user.
pub(crate) struct Fixture {
    client: Client,
    project: Value,
    task: Value,
    number: usize,
}

impl Fixture {
    /// Creates the server with its database in `directory`.
    pub(crate) fn new(directory: &Path) -> Self {
        let mut client = client(directory);
        let account =
            json!({ "username": "alice", "email": "alice@example.org", "password": PASSWORD });
        client.post("/auth/register", &account);
        let tokens = client.post("/auth/login", &account);
        client.token = tokens["access_token"].as_str().map(ToOwned::to_owned);
        let (mut project, mut task) = (Value::Null, Value::Null);
        for tasks in [10, 10, 10, 10, 10, 10, 10, 10, 10, 60] {
            (project, task) = client.populate(tasks);
        }
        Self {
            client,
            project,
            task,
            number: 0,
        }
    }

    /// Builds the request of an operation, with a different title each time.
    pub(crate) fn request(&mut self, query: &str) -> Request<Body> {
        self.number += 1;
        let title = self.number.to_string().into();
        let long = "\u{1f680}".repeat(10_000).into();
        let all = [
            ("project", self.project.clone()),
            ("task", self.task.clone()),
            ("title", title),
            ("long", long),
        ];
        let named = all
            .into_iter()
            .filter(|(name, _)| query.contains(&format!("${name}")));
        let variables: Map<String, Value> = named
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        self.client.request(
            "/graphql",
            &json!({ "query": query, "variables": variables }),
        )
    }

    /// Opens an event stream. It lasts until the returned body is dropped.
    #[allow(dead_code, reason = "the bench opens no streams")]
    pub(crate) fn open(&mut self, query: &str, variables: &Value) -> Body {
        let mut request = self.client.request(
            "/graphql",
            &json!({ "query": query, "variables": variables }),
        );
        request
            .headers_mut()
            .insert("accept", HeaderValue::from_static("text/event-stream"));
        let answer = self
            .client
            .runtime
            .block_on(async { self.client.router.call(request).await });
        let answer = answer.expect("infallible");
        assert_eq!(
            answer.headers()["content-type"],
            "text/event-stream; charset=utf-8",
            "{}",
            answer.status()
        );
        answer.into_body()
    }

    /// Returns the body of the answer, whether or not it has errors.
    pub(crate) fn ask(&mut self, request: Request<Body>) -> Bytes {
        self.client.send(request)
    }

    /// Returns the body of an answer, which must have no errors.
    pub(crate) fn send(&mut self, request: Request<Body>) -> Bytes {
        let answer = self.ask(request);
        assert!(
            !answer.windows(8).any(|part| part == b"\"errors\""),
            "{}",
            String::from_utf8_lossy(&answer)
        );
        answer
    }
}
