//! A server for one test, and the people who use it.
//!
//! ```ignore
//! let server = Server::start().await;
//! let (alice, bob) = (server.person("alice").await, server.person("bob").await);
//! let mut events = bob.subscribe("subscription ($after: String) { taskAssigned(after: $after) { task { id } } }", json!({})).await;
//! let project = alice.mutate("createProject", json!({ "name": "Apollo" })).await.ok();
//! let input = json!({ "projectId": project["id"], "title": "Fly", "assigneeId": bob.id });
//! let task = alice.mutate("createTask", input).await.ok();
//! assert_eq!(events.next().await["taskAssigned"]["task"]["id"], task["id"]);
//! ```
//!
//! The server runs on threads of its own, as in a separate process. Its clock stands still until
//! the test advances it. When it goes out of scope it shuts down as the program does; a panic in
//! the server, or a part that does not stop, fails the test.

pub(crate) mod contract;
mod database;
mod mailbox;
mod person;
mod program;
mod scenario;
mod socket;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use fasttrack::access::Role;
use fasttrack::config::Config;
use fasttrack::http::auth::NewAccount;
use fasttrack::server;
use fasttrack::store::audit::ClientInfo;
use fasttrack::store::{account, user};
use fasttrack::time::{Clock, Timestamp};
use fasttrack::{App, jobs};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use database::{Database, OpenTransaction, Rows, is_postgres};
pub(crate) use mailbox::{Mail, Mailbox};
pub(crate) use person::{Answer, Mutated, Person, Reply};
pub(crate) use program::{Program, fasttrack};
pub(crate) use scenario::{MAIL_WAITS, Scenario, empty};
pub(crate) use socket::{Frame, Socket, Subscription};

/// The time at which every test starts.
pub(crate) const START: &str = "2030-01-01T12:00:00.000000Z";
/// The password of every account.
pub(crate) const PASSWORD: &str = "Correct-Horse-7";
/// Upper bound for every wait; reached only when the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Differences from the defaults, for speed and isolation.
const SETTINGS: [(&str, &str); 5] = [
    ("SECRET_KEY", "the access token key of the tests"),
    ("REFRESH_SECRET_KEY", "the refresh token key of the tests"),
    ("ARGON2_MEMORY_KIB", "8"),
    ("ARGON2_PASSES", "1"),
    ("RATE_LIMIT_ENABLED", "false"),
];

/// A running server with a database of its own.
pub(crate) struct Server {
    /// The server's shared state.
    pub app: Arc<App>,
    pub address: SocketAddr,
    http: reqwest::Client,
    threads: Handle,
    name: String,
    running: Option<Running>,
}

type StartJobs = fn(&Arc<App>, &CancellationToken) -> fasttrack::error::Result<TaskTracker>;

#[expect(
    clippy::unnecessary_wraps,
    reason = "same signature as the function that starts the jobs"
)]
fn no_jobs(_: &Arc<App>, _: &CancellationToken) -> fasttrack::error::Result<TaskTracker> {
    let none = TaskTracker::new();
    none.close();
    Ok(none)
}

struct Running {
    runtime: Runtime,
    server: server::Server,
    database: Database,
}

impl Server {
    /// Starts a server with default settings.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts a server with settings, named as in the environment.
    pub(crate) async fn with(settings: &[(&str, &str)]) -> Self {
        Self::launch(Database::fresh().await, settings, jobs::start).await
    }

    /// Starts a server without background jobs: no mail, no live events.
    pub(crate) async fn without_jobs() -> Self {
        Self::without_jobs_with(&[]).await
    }

    /// Starts a server without background jobs, with settings.
    pub(crate) async fn without_jobs_with(settings: &[(&str, &str)]) -> Self {
        Self::launch(Database::fresh().await, settings, no_jobs).await
    }

    /// Starts a server on an existing database.
    pub(crate) async fn on(database: Database, settings: &[(&str, &str)]) -> Self {
        Self::launch(database, settings, jobs::start).await
    }

    /// Stops the server and returns its database.
    pub(crate) async fn stop(mut self) -> Database {
        let running = self.running.take().expect("running");
        let (database, ended) = self.end(running).await;
        self.check(&ended);
        database
    }

    /// Restarts the server on the same database, with new settings.
    pub(crate) async fn again(self, settings: &[(&str, &str)]) -> Self {
        Self::on(self.stop().await, settings).await
    }

    /// Starts another instance on the same database. It must be stopped first.
    pub(crate) async fn beside(&self) -> Self {
        let database = self.running.as_ref().expect("running").database.shared();
        Self::launch(database, &[], jobs::start).await
    }

    /// Starts another instance on the same database that does not read the event log. Because its
    /// clock stands still, its cached sessions stay stale. It must be stopped first.
    pub(crate) async fn beside_without_jobs(&self) -> Self {
        let database = self.running.as_ref().expect("running").database.shared();
        Self::launch(database, &[], no_jobs).await
    }

    async fn launch(database: Database, settings: &[(&str, &str)], start_jobs: StartJobs) -> Self {
        let mut values: HashMap<&str, &str> = SETTINGS.into_iter().collect();
        values.insert("DATABASE_URL", database.url());
        values.extend(settings.iter().copied());
        let config =
            Config::from(&|name| values.get(name).map(ToString::to_string)).expect("good settings");
        let clock = Clock::fixed(Timestamp::parse(START).expect("a moment"));
        let name = unique_name();
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(&name)
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let starting = runtime.spawn(async move {
            let app = App::open(config, clock).expect("the application");
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .await
                .expect("a free port");
            let address = listener.local_addr().expect("an address");
            let server = server::Server::start(&app, listener, None, start_jobs).expect("jobs");
            (app, address, server)
        });
        let (app, address, server) = starting.await.expect("a server that starts");
        let threads = runtime.handle().clone();
        let running = Some(Running {
            runtime,
            server,
            database,
        });
        Self {
            app,
            address,
            http: reqwest::Client::new(),
            threads,
            name,
            running,
        }
    }

    /// Signs up a new user and logs in.
    pub(crate) async fn person(&self, username: &str) -> Person {
        let email = format!("{username}@example.org");
        let body = json!({ "email": email, "username": username, "password": PASSWORD });
        // On a slow machine the server may answer 503 although the account was created.
        let (mut status, mut was_refused) = (
            self.post("/auth/register", body.clone()).await.status,
            false,
        );
        while status == 503 {
            was_refused = true;
            status = self.post("/auth/register", body.clone()).await.status;
        }
        assert!(
            status == 201 || (was_refused && status == 409),
            "{username} signs up: {status}"
        );
        self.login(username).await
    }

    /// Creates an administrator, as `fasttrack user create --admin` does, and logs in.
    pub(crate) async fn admin(&self, username: &str) -> Person {
        let (email, handle) = (format!("{username}@example.org"), username.to_owned());
        let made = self.run(async move |app| {
            let account = NewAccount {
                email: &email,
                username: &handle,
                password: PASSWORD,
                display_name: None,
                role: Role::Admin,
                email_verified: true,
            };
            let new = account.check(&app).await?;
            user::create(&app.db, app.clock.now(), &new, &ClientInfo::default()).await
        });
        made.await.expect("a new account");
        self.login(username).await
    }

    /// Runs `work` on the server's own runtime, because database connections belong to it.
    pub(crate) async fn run<T, F>(&self, work: impl FnOnce(Arc<App>) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.threads
            .spawn(work(Arc::clone(&self.app)))
            .await
            .expect("work without a panic")
    }

    /// Logs a user in again.
    pub(crate) async fn login(&self, username: &str) -> Person {
        self.login_with(username, PASSWORD).await
    }

    /// Logs a user in with a given password.
    pub(crate) async fn login_with(&self, username: &str, password: &str) -> Person {
        let reply = self
            .post(
                "/auth/login",
                json!({ "username": username, "password": password }),
            )
            .await;
        assert_eq!(reply.status, 200, "{username} logs in: {}", reply.body);
        let mut person = Person {
            username: username.to_owned(),
            ..self.nobody()
        }
        .with_tokens(&reply.body);
        person.id = text(&person.query("{ viewer { id } }", json!({})).await["viewer"]["id"]);
        person
    }

    /// An anonymous client.
    pub(crate) fn nobody(&self) -> Person {
        Person {
            id: String::new(),
            username: "nobody".to_owned(),
            access_token: None,
            refresh_token: String::new(),
            http: self.http.clone(),
            app: Arc::clone(&self.app),
            threads: self.threads.clone(),
            address: self.address,
        }
    }

    /// Builds a request to this server.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("http://{}{path}", self.address))
    }

    /// Whether an access token is valid.
    pub(crate) async fn is_signed_in(&self, access_token: &str) -> bool {
        let request = self
            .request(Method::POST, "/graphql")
            .bearer_auth(access_token);
        Reply::to(request.json(&json!({ "query": "{ viewer { id } }" })))
            .await
            .body["data"]["viewer"]["id"]
            .is_string()
    }

    /// Posts JSON without a token.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Reply {
        Reply::to(self.request(Method::POST, path).json(&body)).await
    }

    /// The stored password hash of a user.
    pub(crate) async fn stored_hash(&self, username: &str) -> String {
        let username = username.to_owned();
        let identified = self
            .run(async move |app| account::identify(&mut app.db.conn().await?, &username).await);
        identified
            .await
            .expect("an answer")
            .expect("an account")
            .password_hash
    }

    pub(crate) fn database(&self) -> &Database {
        &self.running.as_ref().expect("running").database
    }

    /// The whole database as text.
    pub(crate) async fn dump(&self) -> String {
        self.database().dump().await
    }

    /// Advances the clock.
    pub(crate) fn advance(&self, span: Duration) {
        self.app.clock.advance(span);
    }

    /// The time `after_start` after [`START`], formatted as in the API.
    pub(crate) fn moment(&self, after_start: Duration) -> String {
        Timestamp::parse(START)
            .expect("a moment")
            .plus(after_start)
            .to_string()
    }
}

/// Whether the server ended on its own, or the timeout.
type Ended = Result<bool, tokio::time::error::Elapsed>;

impl Server {
    /// Stops everything and returns the database.
    fn end(&self, running: Running) -> impl Future<Output = (Database, Ended)> + Send + use<> {
        let Running {
            runtime,
            server,
            database,
        } = running;
        let (sender, ended) = tokio::sync::oneshot::channel();
        // On a separate thread, because the test's runtime cannot block on another runtime.
        std::thread::spawn(move || {
            let ended = runtime
                .block_on(async { tokio::time::timeout(PATIENCE, server.shut_down()).await });
            drop(runtime);
            sender
                .send((database, ended))
                .map_err(|_| "no receiver")
                .expect("a receiver");
        });
        async move { ended.await.expect("the end") }
    }

    fn check(&self, ended: &Ended) {
        assert!(
            matches!(ended, Ok(true)),
            "the server did not shut down cleanly: {ended:?}"
        );
        let panics = PANICS.lock().expect("an unpoisoned lock");
        let panics: Vec<&String> = panics
            .iter()
            .filter(|(thread, _)| *thread == self.name)
            .map(|(_, at)| at)
            .collect();
        assert!(panics.is_empty(), "the server panicked: {panics:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        let ended = self.end(running);
        let ended = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let (database, ended) = ended.await;
                database.remove().await;
                ended
            })
        });
        let ended = ended.join();
        if !std::thread::panicking() {
            self.check(&ended.expect("a database that can be removed"));
        }
    }
}

/// Thread name and location of every panic. A server survives panics in its handlers, so tests
/// check this list.
static PANICS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// A unique name for a server's threads.
fn unique_name() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if let (Some(thread), Ok(mut panics)) = (std::thread::current().name(), PANICS.lock()) {
                panics.push((thread.to_owned(), panic.to_string()));
            }
            before(panic);
        }));
    });
    format!("server-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Returns the string in a JSON value.
pub(crate) fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("not a string: {value}"))
        .to_owned()
}
