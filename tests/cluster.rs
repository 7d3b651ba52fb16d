//! End-to-end test of a cluster: three server processes behind HAProxy, sharing one PostgreSQL and
//! one Redis, with 500 subscribers. One process and Redis are killed under load. Every subscriber
//! receives every event exactly once.
//!
//! Needs `TEST_DATABASE_URL=postgres://…`, and `haproxy` and `redis-server` on the PATH. Skipped
//! with a message if one is missing; with `CI` in the environment, a missing program is a failure.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_postgres::NoTls;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use url::Url;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const SUBSCRIBERS: usize = 500;
const WRITERS: usize = 4;
/// Acknowledged writes in total, and the counts at which the faults are injected.
const WRITES: usize = 120;
const KILL_AN_INSTANCE: usize = 20;
const KILL_REDIS: usize = 40;
const START_REDIS: usize = 60;
const START_THE_INSTANCE: usize = 80;
/// Upper bound for every wait; reached only when the test fails.
const PATIENCE: Duration = Duration::from_secs(180);

/// A process that is killed when the test ends.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("a process"),
        )
    }
}

impl Drop for Process {
    /// Sends SIGKILL.
    fn drop(&mut self) {
        self.0.kill().expect("a process that runs");
        self.0.wait().expect("its end");
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .expect("a port")
        .local_addr()
        .expect("an address")
        .port()
}

fn redis(port: u16) -> Process {
    Process::start(Command::new("redis-server").args([
        "--port",
        &port.to_string(),
        "--save",
        "",
        "--appendonly",
        "no",
    ]))
}

fn instance(port: u16, database: &Url, redis: u16) -> Process {
    let key = |name: &str| format!("the {name} key of three instances that are one server");
    Process::start(
        Command::new(env!("CARGO_BIN_EXE_fasttrack"))
            .env("DATABASE_URL", database.as_str())
            .env("REDIS_URL", format!("redis://127.0.0.1:{redis}"))
            .env("LISTEN_ADDR", format!("127.0.0.1:{port}"))
            .env("SECRET_KEY", key("access"))
            .env("REFRESH_SECRET_KEY", key("refresh"))
            .env("RATE_LIMIT_GRAPHQL_PER_MINUTE", "10000000")
            .env("RATE_LIMIT_COST_PER_MINUTE", "10000000")
            .env("WS_SOCKETS_PER_USER", "1000")
            .env("WS_SUBSCRIPTIONS_PER_USER", "1000")
            .env("TRUSTED_PROXIES", "127.0.0.1")
            .env("RUST_LOG", "warn"),
    )
}

fn balancer(directory: &Path, port: u16, instances: &[u16]) -> Process {
    let mut text = format!(
        "defaults\n mode http\n timeout connect 2s\n timeout client 1h\n timeout server 1h\n timeout tunnel 1h\n \
         option redispatch\n retries 3\n option forwardfor\n\
         listen tasks\n bind 127.0.0.1:{port}\n balance roundrobin\n option httpchk GET /readyz\n"
    );
    for (number, instance) in instances.iter().enumerate() {
        writeln!(
            text,
            " server s{number} 127.0.0.1:{instance} check inter 500ms fall 2 rise 1"
        )
        .expect("text");
    }
    let file = directory.join("haproxy.cfg");
    std::fs::write(&file, text).expect("a file");
    Process::start(Command::new("haproxy").arg("-db").arg("-f").arg(&file))
}

#[derive(Clone)]
struct Person {
    http: Client,
    address: SocketAddr,
    token: String,
}

impl Person {
    async fn sign_up(address: SocketAddr) -> Self {
        let http = Client::new();
        let post = async |path: &str, body: Value| loop {
            let answer = http
                .post(format!("http://{address}{path}"))
                .json(&body)
                .send()
                .await;
            match answer.and_then(reqwest::Response::error_for_status) {
                Ok(answer) => break answer.json::<Value>().await.expect("JSON"),
                Err(error)
                    if error
                        .status()
                        .is_some_and(|status| status.is_client_error()) =>
                {
                    panic!("{error}")
                }
                // HAProxy has not marked an instance as up yet.
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        };
        let account = json!({ "email": "alice@example.org", "username": "alice", "password": "Correct-Horse-7" });
        post("/auth/register", account).await;
        let tokens = post(
            "/auth/login",
            json!({ "username": "alice", "password": "Correct-Horse-7" }),
        )
        .await;
        Self {
            http: http.clone(),
            address,
            token: tokens["access_token"].as_str().expect("a token").to_owned(),
        }
    }

    async fn ask(&self, query: &str, variables: Value) -> Result<Value, Failure> {
        let request = self
            .http
            .post(format!("http://{}/graphql", self.address))
            .bearer_auth(&self.token);
        let request = request.timeout(Duration::from_secs(10));
        let answer: Value = request
            .json(&json!({ "query": query, "variables": variables }))
            .send()
            .await?
            .json()
            .await?;
        if answer.get("errors").is_some() {
            Err(answer.to_string().into())
        } else {
            Ok(answer["data"].clone())
        }
    }

    /// Reads events on one connection; returns whether the last one has arrived.
    async fn listen(
        &self,
        project: &str,
        after: &mut String,
        seen: &mut Vec<String>,
        greeted: &watch::Sender<usize>,
    ) -> Result<bool, Failure> {
        let mut request = format!("ws://{}/graphql", self.address).into_client_request()?;
        request
            .headers_mut()
            .insert("sec-websocket-protocol", "graphql-transport-ws".parse()?);
        let (mut socket, _) = connect_async(request).await?;
        let greeting = json!({ "Authorization": format!("Bearer {}", self.token) });
        socket
            .send(Message::text(
                json!({ "type": "connection_init", "payload": greeting }).to_string(),
            ))
            .await?;
        let document = "subscription ($id: ID!, $after: String) {
            events(after: $after, filter: { projectId: $id }) { __typename id cursor } }";
        let payload = json!({ "query": document, "variables": { "id": project, "after": after } });
        socket
            .send(Message::text(
                json!({ "id": "1", "type": "subscribe", "payload": payload }).to_string(),
            ))
            .await?;
        while let Some(message) = socket.next().await {
            let Message::Text(text) = message? else {
                continue;
            };
            let message: Value = serde_json::from_str(&text)?;
            match message["type"].as_str() {
                Some("next") => {
                    let event = &message["payload"]["data"]["events"];
                    seen.push(
                        event["id"]
                            .as_str()
                            .ok_or_else(|| message.to_string())?
                            .to_owned(),
                    );
                    *after = event["cursor"].as_str().ok_or("no cursor")?.to_owned();
                    if event["__typename"] == "ProjectUpdatedEvent" {
                        return Ok(true);
                    }
                }
                Some("connection_ack") => greeted.send_modify(|greeted| *greeted += 1),
                Some("ping") => socket.send(Message::text(r#"{"type":"pong"}"#)).await?,
                Some("error" | "complete") => return Err(message.to_string().into()),
                _ => {}
            }
        }
        Err("closed".into())
    }
}

/// Every event of a project after a cursor, as the `events` query returns it: its id, and the
/// comment's id, if any.
async fn log(person: &Person, project: &str, mut after: Value) -> Vec<(String, Option<String>)> {
    let document = "query ($id: ID!, $after: String) { events(first: 100, after: $after, filter: { projectId: $id }) {
        edges { cursor node { id ... on CommentAddedEvent { comment { id } } } } pageInfo { hasNextPage } } }";
    let mut events = Vec::new();
    loop {
        let page = person
            .ask(document, json!({ "id": project, "after": after }))
            .await
            .expect("a page");
        for edge in page["events"]["edges"].as_array().expect("edges") {
            let id = edge["node"]["id"].as_str().expect("an id").to_owned();
            events.push((
                id,
                edge["node"]["comment"]["id"]
                    .as_str()
                    .map(ToOwned::to_owned),
            ));
            after = edge["cursor"].clone();
        }
        if page["events"]["pageInfo"]["hasNextPage"] != true {
            return events;
        }
    }
}

/// Waits until an instance is ready.
async fn ready(port: u16) {
    let url = format!("http://127.0.0.1:{port}/readyz");
    while !reqwest::get(&url)
        .await
        .is_ok_and(|answer| answer.status().is_success())
    {
        sleep(Duration::from_millis(100)).await;
    }
}

async fn reached(count: &mut watch::Receiver<usize>, number: usize) {
    count
        .wait_for(|reached| *reached >= number)
        .await
        .expect("a sender");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_event_is_lost_when_an_instance_and_redis_are_killed() {
    let server = std::env::var("TEST_DATABASE_URL")
        .ok()
        .filter(|url| url.starts_with("postgres"));
    let Some(server) = server else {
        eprintln!("not run: needs TEST_DATABASE_URL=postgres://…");
        return;
    };
    let installed = |name: &&str| {
        Command::new(name)
            .arg("-v")
            .stdout(Stdio::null())
            .status()
            .is_ok()
    };
    if let Some(missing) = ["haproxy", "redis-server"]
        .into_iter()
        .find(|name| !installed(name))
    {
        assert!(std::env::var("CI").is_err(), "{missing} not found");
        // The test harness captures `eprintln!` of tests that pass, but not this.
        writeln!(
            std::io::stderr(),
            "CLUSTER TEST SKIPPED: {missing} not found"
        )
        .expect("a line");
        return;
    }
    let (client, connection) = tokio_postgres::connect(&server, NoTls)
        .await
        .expect("PostgreSQL");
    tokio::spawn(connection);
    let name = format!("fasttrack_cluster_{}", std::process::id());
    client
        .batch_execute(&format!("CREATE DATABASE {name}"))
        .await
        .expect("a database");
    let mut database: Url = server.parse().expect("a URL");
    database.set_path(&name);
    timeout(PATIENCE, scenario(&database))
        .await
        .expect("in time");
    client
        .batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)"))
        .await
        .expect("an end");
}

async fn scenario(database: &Url) {
    let directory = tempfile::tempdir().expect("a directory");
    let (redis_port, balancer_port) = (free_port(), free_port());
    let ports = [free_port(), free_port(), free_port()];
    let mut redis_process = Some(redis(redis_port));
    // All three start at once on an empty database; one of them runs the migrations.
    let [first, second, third] = ports.map(|port| instance(port, database, redis_port));
    let (mut first, _others) = (Some(first), (second, third));
    // Wait for all instances, so that the balancer gives each a third of the connections.
    for port in ports {
        ready(port).await;
    }
    let _balancer = balancer(directory.path(), balancer_port, &ports);
    let alice = Person::sign_up(SocketAddr::from((Ipv4Addr::LOCALHOST, balancer_port))).await;
    let project = alice
        .ask(
            "mutation { createProject(input: { name: \"x\" }) { project { id } } }",
            json!({}),
        )
        .await;
    let project = project.expect("a project")["createProject"]["project"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let task = "mutation ($id: ID!) { createTask(input: { projectId: $id, title: \"x\" }) { task { id } } }";
    let task = alice
        .ask(task, json!({ "id": project }))
        .await
        .expect("a task");
    let task = task["createTask"]["task"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let start = "{ events(last: 1) { pageInfo { endCursor } } }";
    let start = loop {
        let found =
            alice.ask(start, json!({})).await.expect("the log")["events"]["pageInfo"]["endCursor"]
                .clone();
        if let Some(cursor) = found.as_str() {
            break cursor.to_owned();
        }
    };

    let broken = Arc::new(AtomicUsize::new(0));
    let (greeted, mut greetings) = watch::channel(0);
    let subscribers: Vec<_> = (0..SUBSCRIBERS)
        .map(|_| {
            let (alice, project, broken) = (alice.clone(), project.clone(), Arc::clone(&broken));
            let greeted = greeted.clone();
            let mut after = start.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !alice
                    .listen(&project, &mut after, &mut seen, &greeted)
                    .await
                    .unwrap_or(false)
                {
                    broken.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(100)).await;
                }
                seen
            })
        })
        .collect();
    reached(&mut greetings, SUBSCRIBERS).await;

    let (done, mut writes) = watch::channel(0);
    let done = Arc::new(done);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (alice, task, done) = (alice.clone(), task.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let comment = "mutation ($id: ID!, $body: String!) {
                    addComment(input: { taskId: $id, body: $body }) { comment { id } } }";
                let mut acknowledged = Vec::new();
                for number in 0.. {
                    let body = format!("{writer}-{number}");
                    // A refused or interrupted write may or may not have been committed; only
                    // acknowledged writes count.
                    if let Ok(answer) = alice
                        .ask(comment, json!({ "id": task, "body": body }))
                        .await
                    {
                        let id = answer["addComment"]["comment"]["id"]
                            .as_str()
                            .expect("an id");
                        acknowledged.push(id.to_owned());
                        done.send_modify(|done| *done += 1);
                    }
                    if *done.borrow() >= WRITES {
                        break;
                    }
                }
                acknowledged
            })
        })
        .collect();

    reached(&mut writes, KILL_AN_INSTANCE).await;
    drop(first.take());
    reached(&mut writes, KILL_REDIS).await;
    drop(redis_process.take());
    reached(&mut writes, START_REDIS).await;
    redis_process = Some(redis(redis_port));
    reached(&mut writes, START_THE_INSTANCE).await;
    first = Some(instance(ports[0], database, redis_port));

    let mut acknowledged = HashSet::new();
    for writer in writers {
        acknowledged.extend(writer.await.expect("a writer"));
    }
    let last =
        "mutation ($id: ID!) { updateProject(input: { id: $id, name: \"y\" }) { project { id } } }";
    while alice.ask(last, json!({ "id": project })).await.is_err() {}
    let mut streams = Vec::new();
    for subscriber in subscribers {
        streams.push(subscriber.await.expect("a subscriber"));
    }
    let log = log(&alice, &project, json!(start)).await;
    let ids: Vec<&String> = log.iter().map(|(id, _)| id).collect();
    for stream in &streams {
        assert_eq!(
            stream.iter().collect::<Vec<_>>(),
            ids,
            "every event exactly once, in log order"
        );
    }
    let written: HashSet<&String> = log
        .iter()
        .filter_map(|(_, comment)| comment.as_ref())
        .collect();
    assert!(
        acknowledged.iter().all(|id| written.contains(id)),
        "no acknowledged write is lost"
    );
    let broken = broken.load(Ordering::Relaxed);
    assert!(broken >= SUBSCRIBERS / 6, "only {broken} connections broke");
    drop((first, redis_process));
}
