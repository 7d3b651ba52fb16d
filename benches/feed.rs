//! Benchmark of event delivery: subscribers, memory and latency of a server in its own process,
//! over real sockets.
//!
//! ```sh cargo bench --bench feed                                  # 10,000 subscribers, SQLite
//! cargo bench --bench feed -- 2000                          # fewer; each side needs a descriptor
//! per subscriber DATABASE_URL=postgres://… cargo bench --bench feed        # an empty database
//! ```

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{SinkExt, StreamExt};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Failure>;

/// Projects that are deleted one after another with their tasks, with a few subscribers each.
const PROJECTS: usize = 500;
const TASKS: usize = 10;
const LISTENERS: usize = 4;
/// Interval between deletions, which yields 1,100 events per second.
const PACE: Duration = Duration::from_millis(10);

const STREAM: &str = "subscription ($id: ID!) { events(filter: { projectId: $id }) {
    id cursor ... on TaskCreatedEvent { task { id title status } actor { username } }
    ... on TaskDeletedEvent { deletedTaskId task { title } } } }";

struct Server {
    process: Child,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start(directory: &std::path::Path) -> Result<Self> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let database = std::env::var("DATABASE_URL")
            .unwrap_or_else(|_| format!("sqlite://{}", directory.join("fasttrack.db").display()));
        let process = Command::new(env!("CARGO_BIN_EXE_fasttrack"))
            .current_dir(directory)
            .env("DATABASE_URL", database)
            .env("LISTEN_ADDR", address.to_string())
            .env("RATE_LIMIT_ENABLED", "false")
            .env("MAX_CONNECTIONS", "30000")
            .env("MAX_CONNECTIONS_PER_ADDRESS", "30000")
            .env("WS_SOCKETS_PER_USER", "30000")
            .env("WS_SUBSCRIPTIONS_PER_USER", "30000")
            .env("RUST_LOG", "warn")
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self { process, address })
    }

    /// Resident memory in KiB.
    fn memory(&self) -> Result<usize> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// CPU time so far, user and system. The kernel counts it in ticks of 10 ms.
    fn processor(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .ok_or("no fields")?
            .split_whitespace()
            .collect();
        Ok(Duration::from_millis(
            10 * (fields[11].parse::<u64>()? + fields[12].parse::<u64>()?),
        ))
    }
}

#[derive(Clone)]
struct Person {
    http: Client,
    address: SocketAddr,
    token: String,
}

impl Person {
    async fn sign_up(address: SocketAddr) -> Result<Self> {
        let (http, at) = (Client::new(), |path: &str| {
            format!("http://{address}{path}")
        });
        while !http
            .get(at("/readyz"))
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success())
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let name = format!("bench-{}", std::process::id());
        let account = json!({ "email": format!("{name}@example.org"), "username": name, "password": "Correct-Horse-7" });
        http.post(at("/auth/register"))
            .json(&account)
            .send()
            .await?
            .error_for_status()?;
        let login = json!({ "username": name, "password": "Correct-Horse-7" });
        let tokens: Value = http
            .post(at("/auth/login"))
            .json(&login)
            .send()
            .await?
            .error_for_status()?
            .json()
            .await?;
        let token = tokens["access_token"]
            .as_str()
            .ok_or("no token")?
            .to_owned();
        Ok(Self {
            http,
            address,
            token,
        })
    }

    async fn ask(&self, query: &str, variables: Value) -> Result<Value> {
        let request = self
            .http
            .post(format!("http://{}/graphql", self.address))
            .bearer_auth(&self.token);
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

    async fn project(&self, name: &str) -> Result<String> {
        let make = "mutation ($name: String!) { createProject(input: { name: $name }) { project { id } } }";
        let made = self.ask(make, json!({ "name": name })).await?;
        Ok(made["createProject"]["project"]["id"]
            .as_str()
            .ok_or("no project")?
            .to_owned())
    }

    async fn tasks(&self, project: &str, count: usize) -> Result<()> {
        let fields: String = (0..count)
            .map(|n| format!("t{n}: createTask(input: {{ projectId: $id, title: \"{n}\" }}) {{ task {{ id }} }} "))
            .collect();
        self.ask(
            &format!("mutation ($id: ID!) {{ {fields} }}"),
            json!({ "id": project }),
        )
        .await
        .map(|_| ())
    }

    async fn socket(&self) -> Result<WebSocketStream<TcpStream>> {
        let mut request = format!("ws://{}/graphql", self.address).into_client_request()?;
        request
            .headers_mut()
            .insert("sec-websocket-protocol", "graphql-transport-ws".parse()?);
        let stream = TcpStream::connect(self.address).await?;
        let small = WebSocketConfig::default()
            .read_buffer_size(1024)
            .write_buffer_size(0);
        let (mut socket, _) =
            tokio_tungstenite::client_async_with_config(request, stream, Some(small)).await?;
        let greeting = json!({ "type": "connection_init", "payload": { "Authorization": format!("Bearer {}", self.token) } });
        socket.send(Message::text(greeting.to_string())).await?;
        socket.next().await.ok_or("no ack")??;
        Ok(socket)
    }
}

fn subscribe(id: &str, project: &str) -> Message {
    let payload = json!({ "query": STREAM, "variables": { "id": project } });
    Message::text(json!({ "id": id, "type": "subscribe", "payload": payload }).to_string())
}

/// Receives messages from a socket and sends those from `say`.
async fn listen(
    socket: WebSocketStream<TcpStream>,
    mut say: mpsc::Receiver<Message>,
    came: Arc<AtomicUsize>,
    times: mpsc::UnboundedSender<(usize, Instant)>,
    number: usize,
) {
    let (mut out, mut messages) = socket.split();
    loop {
        tokio::select! {
            Some(message) = say.recv() => if out.send(message).await.is_err() { return },
            message = messages.next() => match message {
                Some(Ok(Message::Text(text))) if text.contains("\"type\":\"next\"") => {
                    came.fetch_add(1, Ordering::Relaxed);
                    let _ = times.send((number, Instant::now()));
                }
                Some(Ok(Message::Text(text))) if text.contains("\"type\":\"ping\"") => {
                    let pong = Message::text(r#"{"type":"pong"}"#);
                    if out.send(pong).await.is_err() { return }
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
}

fn quantile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn row(what: &str, figure: impl std::fmt::Display) {
    println!("{what:<64} {figure}");
}

async fn measure(subscribers: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let server = Server::start(directory.path())?;
    let person = Person::sign_up(server.address).await?;
    let everybodys = person.project("everybody's").await?;
    let at_rest = server.memory()?;
    row("memory when idle", format!("{} MB", at_rest / 1024));

    let (came, (times, mut heard)) = (Arc::new(AtomicUsize::new(0)), mpsc::unbounded_channel());
    let mut voices = Vec::new();
    while voices.len() < subscribers {
        let opening: FuturesUnordered<_> = (0..100.min(subscribers - voices.len()))
            .map(|_| person.socket())
            .collect();
        for socket in opening.collect::<Vec<_>>().await {
            let (voice, say) = mpsc::channel(4);
            voice.send(subscribe("1", &everybodys)).await?;
            tokio::spawn(listen(
                socket?,
                say,
                Arc::clone(&came),
                times.clone(),
                voices.len(),
            ));
            voices.push(voice);
        }
    }
    // A subscription without a cursor starts with the first event after it is established, so
    // create events until all subscribers receive one.
    loop {
        came.store(0, Ordering::Relaxed);
        person.tasks(&everybodys, 1).await?;
        let begun = Instant::now();
        while came.load(Ordering::Relaxed) < subscribers && begun.elapsed() < Duration::from_secs(5)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if came.load(Ordering::Relaxed) == subscribers {
            break;
        }
    }
    let memory = server.memory()?;
    row(
        &format!("memory with {subscribers} subscribers"),
        format!("{} MB", memory / 1024),
    );
    row(
        "  per subscriber",
        format!("{:.1} KiB", (memory - at_rest) as f64 / subscribers as f64),
    );

    let before = server.processor()?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let idle = server.processor()? - before;
    row(
        "CPU when idle",
        format!("{:.1} % of a core", idle.as_secs_f64() / 5.0 * 100.0),
    );

    while heard.try_recv().is_ok() {}
    for _ in 0..3 {
        let (sent, before) = (Instant::now(), server.processor()?);
        person.tasks(&everybodys, 1).await?;
        let mut delays = Vec::with_capacity(subscribers);
        while delays.len() < subscribers {
            delays.push(heard.recv().await.ok_or("no subscribers")?.1 - sent);
        }
        delays.sort_unstable();
        let took = server.processor()? - before;
        let spread = format!(
            "p50 {:?}, p99 {:?}, last {:?}; {:.1} µs of server CPU each",
            quantile(&delays, 0.5),
            quantile(&delays, 0.99),
            delays[subscribers - 1],
            took.as_micros() as f64 / subscribers as f64
        );
        row(
            &format!("one event to {subscribers}, since the request"),
            spread,
        );
    }

    let mut projects = Vec::new();
    for number in 0..PROJECTS {
        let project = person.project(&number.to_string()).await?;
        person.tasks(&project, TASKS).await?;
        projects.push(project);
    }
    for (number, voice) in voices.iter().take(PROJECTS * LISTENERS).enumerate() {
        voice
            .send(subscribe("2", &projects[number % PROJECTS]))
            .await?;
    }
    let listeners = voices.len().min(PROJECTS * LISTENERS);
    // Waits for the subscriptions to be established. A fixed pause is good enough for a benchmark.
    tokio::time::sleep(Duration::from_secs(3)).await;
    while heard.try_recv().is_ok() {}
    let (begun, before) = (Instant::now(), server.processor()?);
    let mut pace = tokio::time::interval(PACE);
    let mut deletions = FuturesUnordered::new();
    let delays = tokio::spawn(async move {
        let mut times = Vec::with_capacity(listeners * (TASKS + 1));
        while times.len() < listeners * (TASKS + 1) {
            match tokio::time::timeout(Duration::from_secs(20), heard.recv()).await {
                Ok(Some(time)) => times.push(time),
                _ => break,
            }
        }
        times
    });
    let mut sent = Vec::new();
    for project in projects {
        pace.tick().await;
        sent.push(Instant::now());
        let person = person.clone();
        deletions.push(tokio::spawn(async move {
            let delete =
                "mutation ($id: ID!) { deleteProject(input: { id: $id }) { deletedProjectId } }";
            person.ask(delete, json!({ "id": project })).await
        }));
    }
    while let Some(done) = deletions.next().await {
        done??;
    }
    let took = begun.elapsed();
    let times = delays.await?;
    let mut delays: Vec<Duration> = times
        .iter()
        .map(|(number, time)| *time - sent[number % PROJECTS])
        .collect();
    delays.sort_unstable();
    let events = PROJECTS * (TASKS + 1);
    row(
        &format!(
            "{:.0} events/s, each to {}",
            events as f64 / took.as_secs_f64(),
            listeners / PROJECTS
        ),
        format!(
            "p50 {:?}, p99 {:?}, last {:?}; {} of {} delivered; {:.0} % of a core",
            quantile(&delays, 0.5),
            quantile(&delays, 0.99),
            delays[delays.len() - 1],
            times.len(),
            listeners * (TASKS + 1),
            (server.processor()? - before).as_secs_f64() / took.as_secs_f64() * 100.0
        ),
    );
    row(
        "memory at the end",
        format!("{} MB", server.memory()? / 1024),
    );
    Ok(())
}

fn main() -> Result<()> {
    // Cargo passes `--bench`.
    let subscribers = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(10_000);
    fasttrack::server::runtime()?.block_on(measure(subscribers))
}
