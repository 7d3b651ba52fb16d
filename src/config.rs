//! Every setting: one documented field, read from the environment or `.env`. Secrets never print.

mod keys;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Uri};
use lettre::{AsyncSmtpTransport, Tokio1Executor};
use tracing_subscriber::EnvFilter;

use self::keys::keys;
pub use self::keys::{kept_in, write_new};
use crate::db::Location;
use crate::db::postgres::Server;
use crate::error::Error;
use crate::http::persisted::MAX_ID;
use crate::limits::{MIB, Quotas};
use crate::network::Network;
use crate::store::event::Retention;
use crate::store::lockout::Rule;
use crate::time::Timestamp;

const DAY: u64 = 86_400;
/// In seconds, 36,500 days: nothing is to last longer, and databases know no moments as far away as can be written down.
const LONGEST: u64 = 36_500 * DAY;

/// A key that must not appear in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Fewer bytes than this are refused.
    pub const MIN_LENGTH: usize = 32;

    /// Wraps key material.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The key material.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a password must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordPolicy {
    /// At least 8 characters with upper and lower case, a digit and something else.
    Composition,
    /// At least 15 characters of any kind (NIST SP 800-63B).
    Length,
}

/// The cost of hashing a password with argon2id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashCost {
    /// KiB of memory.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

/// How often something may be done in a minute, counted in a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// `/auth` requests that carry a credential, per address.
    pub credentials_per_minute: u32,
    /// Other `/auth` requests, per address.
    pub auth_per_minute: u32,
    /// GraphQL requests, per user, or per address when nobody is signed in.
    pub graphql_per_minute: u32,
    /// Points that GraphQL operations cost, per user, or per address when nobody is signed in.
    pub cost_per_minute: u32,
}

/// What sockets may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// How many one user may have open on one instance.
    pub per_user: usize,
    /// How many operations may run on one of them at once.
    pub subscriptions: usize,
    /// How many subscriptions one user may have on one instance, over all sockets and streams.
    pub subscriptions_per_user: usize,
    /// Whether they take mutations, or queries and subscriptions alone.
    pub mutations: bool,
    /// How long the greeting may take.
    pub init: Duration,
    /// How often a sign of life is asked for.
    pub ping: Duration,
    /// How long a client may take to read what is written.
    pub write: Duration,
}

/// What connections may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// How many there may be.
    pub most: usize,
    /// How many of one address, of IPv6 its /64; a /48 has four times as many. Trusted proxies are exempt.
    pub per_address: usize,
    /// How many requests may be in work at once.
    pub requests: usize,
    /// How many GraphQL operations are executed at once.
    pub operations: usize,
    /// How long a connection may take to bring its first request.
    pub headers: Duration,
    /// How long a body may take to arrive.
    pub body: Duration,
    /// How long a connection may be without a request, and at most for how long a client may take nothing of an answer.
    pub idle: Duration,
}

/// Where traces are told, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct Traces {
    /// The collector's URL for traces.
    pub endpoint: Uri,
    /// Headers of what is sent there; their values may be keys, and do not print.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What the server is called there.
    pub service: String,
    /// How much of what begins here is told, from 0 to 1. What began elsewhere is told if it is told there.
    pub ratio: f64,
}

/// The settings of one server.
#[derive(Clone, Debug)]
pub struct Config {
    /// `DATABASE_URL`: `sqlite://path` (created when missing) or `postgres://user:password@host/database`, with `sslmode`
    /// and `sslrootcert` as [`Server::parse`] reads them. Default `sqlite://fasttrack.db`.
    pub database: Location,
    /// `DATABASE_CONNECTIONS`: how many connections are kept to the database. Default 8.
    pub database_connections: usize,
    /// `LISTEN_ADDR`: address and port to listen on. Default `127.0.0.1:8000`.
    pub listen: SocketAddr,
    /// `METRICS_ADDR`: address and port on which `/metrics` is served, and nothing else; anybody who reaches it may read
    /// it. Default none: it is served nowhere.
    pub metrics: Option<SocketAddr>,
    /// `PUBLIC_URL`: where people reach the server; links in mails begin with it. Default `http://` + `LISTEN_ADDR`.
    pub public_url: String,
    /// `SECRET_KEY`: signs access tokens; at least 32 bytes. Default: made once and kept in `SECRETS_FILE`.
    pub secret_key: Secret,
    /// `REFRESH_SECRET_KEY`: signs refresh tokens; another one. Default: made once and kept in `SECRETS_FILE`.
    pub refresh_secret_key: Secret,
    /// `ACCESS_TOKEN_EXPIRE_MINUTES`: how long an access token is good. Default 15.
    pub access_lifetime: Duration,
    /// `REFRESH_TOKEN_EXPIRE_DAYS`: how long a session lasts without being refreshed. Default 7.
    pub refresh_lifetime: Duration,
    /// `SESSION_MAX_DAYS`: how long a session lasts at most, however often it is refreshed. Default 90.
    pub session_max: Duration,
    /// `REFRESH_GRACE_SECONDS`: how long the token before the current one still gets the same successor, for two tabs
    /// or a lost answer. Default 10.
    pub refresh_grace: Duration,
    /// `PASSWORD_POLICY`: `composition` or `length`. Default `composition`.
    pub password_policy: PasswordPolicy,
    /// `ARGON2_MEMORY_KIB`, `ARGON2_PASSES`, `ARGON2_LANES`: the cost of a password hash. Default 19456, 2, 1.
    pub hash_cost: HashCost,
    /// `CORS_ORIGINS`: browsers' pages and apps' web views that may call the server, comma-separated, such as
    /// `https://app.example.org` or `capacitor://localhost`. Default none.
    pub cors_origins: Vec<String>,
    /// `RATE_LIMIT_ENABLED` with `RATE_LIMIT_CREDENTIALS_PER_MINUTE` (5), `RATE_LIMIT_AUTH_PER_MINUTE` (100) and
    /// `RATE_LIMIT_GRAPHQL_PER_MINUTE` (1200) and `RATE_LIMIT_COST_PER_MINUTE` (6000). Default on.
    pub rate_limits: Option<RateLimits>,
    /// `WS_SOCKETS_PER_USER` (20), `WS_OPERATIONS_PER_SOCKET` (50), `WS_SUBSCRIPTIONS_PER_USER` (200), `WS_MUTATIONS` (on),
    /// `WS_INIT_SECONDS` (3), `WS_PING_SECONDS` (30) and `WS_WRITE_SECONDS` (15).
    pub sockets: Sockets,
    /// `MAX_CONNECTIONS` (10000), `MAX_CONNECTIONS_PER_ADDRESS` (a tenth of those, 100 at least), `MAX_REQUESTS_IN_FLIGHT` (1000), `MAX_OPERATIONS_AT_ONCE` (4 a core on SQLite, 32 on
    /// PostgreSQL), `HEADER_TIMEOUT_SECONDS` (10), `BODY_TIMEOUT_SECONDS` (30) and `KEEP_ALIVE_SECONDS` (75).
    pub connections: Connections,
    /// `DRAIN_SECONDS`: for how long, when the server is told to end, `/readyz` says so before connections are refused;
    /// a little more than the pause between two checks of a load balancer. Default 0.
    pub drain: Duration,
    /// `PERSISTED_QUERIES`: how many documents are kept that clients have sent with their hash (automatic persisted
    /// queries); 0 keeps none. Default 1000.
    pub persisted_queries: usize,
    /// `TRUSTED_DOCUMENTS`: a file of the documents that alone are run, as JSON: `{"id": "query …"}`, or a manifest with
    /// `operations` of `id` and `body`. Default none: any document is run.
    pub trusted_documents: Option<HashMap<String, String>>,
    /// `ALLOWED_HOSTS`: the names under which the server answers, comma-separated, without a port, such as
    /// `tasks.example.org`. Default: any.
    pub allowed_hosts: Vec<String>,
    /// `TRUSTED_PROXIES`: addresses or networks (`10.0.0.0/8`), comma-separated, whose `X-Forwarded-For` is believed.
    /// Default none.
    pub trusted_proxies: Vec<Network>,
    /// `EVENT_RETENTION_DAYS` (7) and `EVENT_RETENTION_COUNT` (10000000): how far back the feed of events goes; what is
    /// past either bound is not told any more. The history of a task stays as long as the task.
    pub event_retention: Retention,
    /// `MAX_PROJECTS_PER_USER` (1000), `MAX_TASKS_PER_PROJECT` (50000) and `MAX_TEXT_MIB_PER_USER` (4096): how much an
    /// account and a project may hold.
    pub quotas: Quotas,
    /// `REDIS_URL`: `redis://host:port`, or `rediss://` for TLS with a verified certificate, where several instances count rate limits together and tell one another of new
    /// events. Default none.
    pub redis_url: Option<Secret>,
    /// `SMTP_URL`: `smtp://…` or `smtps://user:password@host`. Default none: mail is written to the log.
    pub smtp_url: Option<Secret>,
    /// `MAIL_FROM`: the sender of mails. Default `fasttrack <noreply@localhost>`.
    pub mail_from: String,
    /// `VERIFY_EMAIL_URL`: the page that the link to verify an e-mail address opens; the token is added as `#token=…`.
    /// Default: the server's own page under `PUBLIC_URL`.
    pub verify_email_url: String,
    /// `PASSWORD_RESET_URL`: the page that the link to set a new password opens; the token is added as `#token=…`.
    /// Default: the server's own page under `PUBLIC_URL`.
    pub reset_password_url: String,
    /// `REQUIRE_VERIFIED_EMAIL`: whether people must verify their e-mail address before they can log in. Default off.
    pub require_verified_email: bool,
    /// `LOCKOUT_FAILURES` (5) and `LOCKOUT_MINUTES` (30): after so many wrong passwords for one identifier an address
    /// may not try it for so long. Five times as many an hour from all addresses together slow logins down.
    pub lockout: Rule,
    /// `AUDIT_RETENTION_DAYS`: how long the audit log is kept. Default 365.
    pub audit_retention: Duration,
    /// `GRAPHIQL_ENABLED`: whether `/graphiql` is served. Default on.
    pub graphiql: bool,
    /// `DOCS_ENABLED`: whether `/docs` is served, what the `/auth` routes take and answer. Default on.
    pub docs: bool,
    /// `INTROSPECTION_ENABLED`: whether the schema can be asked for. Default on.
    pub introspection: bool,
    /// `LOG_FORMAT`: `text` or `json`. Default `text`.
    pub log_json: bool,
    /// `RUST_LOG`: what is logged, a level or several by module. Default `info`.
    pub log_filter: String,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`: a collector of OpenTelemetry traces that takes OTLP over HTTP, such as
    /// `http://127.0.0.1:4318`; with `OTEL_EXPORTER_OTLP_HEADERS` (none), `OTEL_SERVICE_NAME` (`fasttrack`) and
    /// `OTEL_TRACES_SAMPLER_ARG` (1). Default none: nothing is traced.
    pub traces: Option<Traces>,
}

/// A setting that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {problem}")]
pub struct Invalid {
    name: &'static str,
    problem: String,
}

impl Invalid {
    fn new(name: &'static str, problem: impl Into<String>) -> Self {
        Self { name, problem: problem.into() }
    }
}

/// The names of all settings, as `.env.example` must list them.
pub const NAMES: [&str; 64] = [
    "DATABASE_URL",
    "DATABASE_CONNECTIONS",
    "LISTEN_ADDR",
    "METRICS_ADDR",
    "PUBLIC_URL",
    "SECRET_KEY",
    "REFRESH_SECRET_KEY",
    "SECRETS_FILE",
    "ACCESS_TOKEN_EXPIRE_MINUTES",
    "REFRESH_TOKEN_EXPIRE_DAYS",
    "SESSION_MAX_DAYS",
    "REFRESH_GRACE_SECONDS",
    "PASSWORD_POLICY",
    "ARGON2_MEMORY_KIB",
    "ARGON2_PASSES",
    "ARGON2_LANES",
    "CORS_ORIGINS",
    "RATE_LIMIT_ENABLED",
    "RATE_LIMIT_CREDENTIALS_PER_MINUTE",
    "RATE_LIMIT_AUTH_PER_MINUTE",
    "RATE_LIMIT_GRAPHQL_PER_MINUTE",
    "RATE_LIMIT_COST_PER_MINUTE",
    "PERSISTED_QUERIES",
    "TRUSTED_DOCUMENTS",
    "ALLOWED_HOSTS",
    "WS_SOCKETS_PER_USER",
    "WS_OPERATIONS_PER_SOCKET",
    "WS_SUBSCRIPTIONS_PER_USER",
    "WS_MUTATIONS",
    "WS_INIT_SECONDS",
    "WS_PING_SECONDS",
    "WS_WRITE_SECONDS",
    "MAX_CONNECTIONS",
    "MAX_CONNECTIONS_PER_ADDRESS",
    "MAX_REQUESTS_IN_FLIGHT",
    "MAX_OPERATIONS_AT_ONCE",
    "HEADER_TIMEOUT_SECONDS",
    "BODY_TIMEOUT_SECONDS",
    "KEEP_ALIVE_SECONDS",
    "DRAIN_SECONDS",
    "TRUSTED_PROXIES",
    "EVENT_RETENTION_DAYS",
    "EVENT_RETENTION_COUNT",
    "MAX_PROJECTS_PER_USER",
    "MAX_TASKS_PER_PROJECT",
    "MAX_TEXT_MIB_PER_USER",
    "REDIS_URL",
    "SMTP_URL",
    "MAIL_FROM",
    "VERIFY_EMAIL_URL",
    "PASSWORD_RESET_URL",
    "REQUIRE_VERIFIED_EMAIL",
    "LOCKOUT_FAILURES",
    "LOCKOUT_MINUTES",
    "AUDIT_RETENTION_DAYS",
    "GRAPHIQL_ENABLED",
    "DOCS_ENABLED",
    "INTROSPECTION_ENABLED",
    "LOG_FORMAT",
    "RUST_LOG",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_SAMPLER_ARG",
];

/// Whether a setting is a key, of which nothing may be shown. What is secret in a URL is its password.
pub fn is_secret(name: &str) -> bool {
    name.ends_with("_KEY") || name.ends_with("_TOKEN") || name.ends_with("_PASSWORD") || name.ends_with("_HEADERS")
}

/// Where settings are looked up, by name.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A lookup that keeps what came of it; an empty value counts as none.
struct Source<'a> {
    lookup: Lookup<'a>,
    in_effect: RefCell<BTreeMap<&'static str, String>>,
}

impl<'a> Source<'a> {
    fn new(lookup: Lookup<'a>) -> Self {
        Self { lookup, in_effect: RefCell::default() }
    }

    fn note(&self, name: &'static str, value: impl ToString) {
        self.in_effect.borrow_mut().insert(name, value.to_string());
    }

    fn text(&self, name: &'static str) -> Option<String> {
        debug_assert!(NAMES.contains(&name), "{name} is not in NAMES");
        let value = (self.lookup)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        self.note(name, value.as_deref().unwrap_or_default());
        value
    }

    fn text_or(&self, name: &'static str, default: impl FnOnce() -> String) -> String {
        self.text(name).unwrap_or_else(|| {
            let default = default();
            self.note(name, &default);
            default
        })
    }

    fn parse<T: std::str::FromStr + ToString>(&self, name: &'static str, default: T) -> Result<T, Invalid> {
        match self.text(name) {
            None => {
                self.note(name, default.to_string());
                Ok(default)
            }
            Some(value) => value.parse().map_err(|_| Invalid::new(name, format!("cannot read {value:?}"))),
        }
    }

    fn optional<T: std::str::FromStr>(&self, name: &'static str) -> Result<Option<T>, Invalid> {
        let value = self.text(name);
        value.map(|value| value.parse().map_err(|_| Invalid::new(name, format!("cannot read {value:?}")))).transpose()
    }

    fn list<T: std::str::FromStr>(&self, name: &'static str) -> Result<Vec<T>, Invalid> {
        let text = self.text(name).unwrap_or_default();
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(|item| item.parse().map_err(|_| Invalid::new(name, format!("cannot read {item:?}")))).collect()
    }

    fn positive(&self, name: &'static str, default: u32) -> Result<u32, Invalid> {
        match self.parse(name, default)? {
            0 => Err(Invalid::new(name, "must be at least 1")),
            value => Ok(value),
        }
    }

    /// A while, given in a unit of so many seconds.
    fn span(&self, name: &'static str, default: u32, unit: u64) -> Result<Duration, Invalid> {
        match u64::from(self.positive(name, default)?) * unit {
            seconds if seconds > LONGEST => Err(Invalid::new(name, format!("must be at most {}", LONGEST / unit))),
            seconds => Ok(Duration::from_secs(seconds)),
        }
    }

    fn seconds(&self, name: &'static str, default: u32) -> Result<Duration, Invalid> {
        self.span(name, default, 1)
    }

    fn minutes(&self, name: &'static str, default: u32) -> Result<Duration, Invalid> {
        self.span(name, default, 60)
    }

    fn days(&self, name: &'static str, default: u32) -> Result<Duration, Invalid> {
        self.span(name, default, DAY)
    }

    fn switch(&self, name: &'static str, default: bool) -> Result<bool, Invalid> {
        match self.text(name).map(|value| value.to_ascii_lowercase()).as_deref() {
            None => {
                self.note(name, default);
                Ok(default)
            }
            Some("true" | "1" | "yes" | "on") => Ok(true),
            Some("false" | "0" | "no" | "off") => Ok(false),
            Some(other) => Err(Invalid::new(name, format!("must be true or false, not {other:?}"))),
        }
    }

    fn choice<T>(&self, name: &'static str, default: T, choices: &[(&str, T)]) -> Result<T, Invalid>
    where
        T: Copy + PartialEq,
    {
        let Some(value) = self.text(name) else {
            if let Some((text, _)) = choices.iter().find(|(_, choice)| *choice == default) {
                self.note(name, text);
            }
            return Ok(default);
        };
        let known = choices.iter().find(|(text, _)| *text == value);
        known.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(text, _)| *text).collect();
            Invalid::new(name, format!("must be one of {}, not {value:?}", names.join(", ")))
        })
    }
}

impl Config {
    /// Reads the settings of this process.
    pub fn from_env() -> Result<Self, Invalid> {
        Self::from(&|name| std::env::var(name).ok())
    }

    /// A client of the Redis that instances share, if there is one; nothing is connected yet.
    pub fn redis(&self) -> crate::error::Result<Option<redis::Client>> {
        let open = |url: &Secret| {
            let url = std::str::from_utf8(url.expose()).map_err(Error::internal)?;
            redis::Client::open(url).map_err(Error::internal)
        };
        self.redis_url.as_ref().map(open).transpose()
    }

    /// When a session that began then and is refreshed now ends.
    pub fn session_end(&self, now: Timestamp, created_at: Timestamp) -> Timestamp {
        now.plus(self.refresh_lifetime).min(created_at.plus(self.session_max))
    }

    /// Reads the settings from anything that knows names.
    pub fn from(lookup: Lookup<'_>) -> Result<Self, Invalid> {
        Self::explained(lookup).map(|(config, _)| config)
    }

    /// The same, with the value of each setting in words, secrets too.
    pub fn explained(lookup: Lookup<'_>) -> Result<(Self, BTreeMap<&'static str, String>), Invalid> {
        let source = Source::new(lookup);
        let config = Self::read(&source)?;
        Ok((config, source.in_effect.into_inner()))
    }

    fn read(source: &Source<'_>) -> Result<Self, Invalid> {
        let log_filter = source.text_or("RUST_LOG", || "info".to_owned());
        EnvFilter::try_new(&log_filter).map_err(|error| Invalid::new("RUST_LOG", error.to_string()))?;
        let url = source.text_or("DATABASE_URL", || "sqlite://fasttrack.db".to_owned());
        let database = Location::parse(&url).ok_or_else(|| {
            Invalid::new("DATABASE_URL", "must begin with sqlite:// or postgres:// and name a database")
        })?;
        if let Location::Postgres(url) = &database {
            Server::parse(url).map_err(|error| Invalid::new("DATABASE_URL", error.to_string()))?;
        }
        let listen = source.parse("LISTEN_ADDR", SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)))?;
        let (secret_key, refresh_secret_key) = keys(source, &database)?;
        // SQLite computes in this program: with more at once than the cores can do, each takes longer. PostgreSQL is waited
        // for.
        let at_once = match &database {
            Location::Sqlite(_) => std::thread::available_parallelism().map_or(8, |cores| cores.get() as u32 * 4),
            Location::Postgres(_) => 32,
        };
        let most_connections = source.positive("MAX_CONNECTIONS", 10_000)?;
        let limits = RateLimits {
            credentials_per_minute: source.positive("RATE_LIMIT_CREDENTIALS_PER_MINUTE", 5)?,
            auth_per_minute: source.positive("RATE_LIMIT_AUTH_PER_MINUTE", 100)?,
            graphql_per_minute: source.positive("RATE_LIMIT_GRAPHQL_PER_MINUTE", 1200)?,
            cost_per_minute: source.positive("RATE_LIMIT_COST_PER_MINUTE", 6000)?,
        };
        let public_url = source.text_or("PUBLIC_URL", || format!("http://{listen}"));
        url::Url::parse(&public_url).map_err(|error| Invalid::new("PUBLIC_URL", error.to_string()))?;
        let public_url = public_url.trim_end_matches('/').to_owned();
        let mail_from = source.text_or("MAIL_FROM", || "fasttrack <noreply@localhost>".to_owned());
        mail_from
            .parse::<lettre::message::Mailbox>()
            .map_err(|_| Invalid::new("MAIL_FROM", "must be like `Name <address@example.org>`"))?;
        Ok(Self {
            database,
            database_connections: source.positive("DATABASE_CONNECTIONS", 8)? as usize,
            listen,
            metrics: source.optional("METRICS_ADDR")?,
            secret_key,
            refresh_secret_key,
            access_lifetime: source.minutes("ACCESS_TOKEN_EXPIRE_MINUTES", 15)?,
            refresh_lifetime: source.days("REFRESH_TOKEN_EXPIRE_DAYS", 7)?,
            session_max: source.days("SESSION_MAX_DAYS", 90)?,
            refresh_grace: Duration::from_secs(source.parse("REFRESH_GRACE_SECONDS", 10)?),
            password_policy: source.choice(
                "PASSWORD_POLICY",
                PasswordPolicy::Composition,
                &[("composition", PasswordPolicy::Composition), ("length", PasswordPolicy::Length)],
            )?,
            hash_cost: hash_cost(source)?,
            cors_origins: origins(source)?,
            rate_limits: source.switch("RATE_LIMIT_ENABLED", true)?.then_some(limits),
            sockets: Sockets {
                per_user: source.positive("WS_SOCKETS_PER_USER", 20)? as usize,
                subscriptions: source.positive("WS_OPERATIONS_PER_SOCKET", 50)? as usize,
                subscriptions_per_user: source.positive("WS_SUBSCRIPTIONS_PER_USER", 200)? as usize,
                mutations: source.switch("WS_MUTATIONS", true)?,
                init: source.seconds("WS_INIT_SECONDS", 3)?,
                ping: source.seconds("WS_PING_SECONDS", 30)?,
                write: source.seconds("WS_WRITE_SECONDS", 15)?,
            },
            connections: Connections {
                most: most_connections as usize,
                per_address: source.positive("MAX_CONNECTIONS_PER_ADDRESS", (most_connections / 10).max(100))? as usize,
                requests: source.positive("MAX_REQUESTS_IN_FLIGHT", 1_000)? as usize,
                operations: source.positive("MAX_OPERATIONS_AT_ONCE", at_once)? as usize,
                headers: source.seconds("HEADER_TIMEOUT_SECONDS", 10)?,
                body: source.seconds("BODY_TIMEOUT_SECONDS", 30)?,
                idle: source.seconds("KEEP_ALIVE_SECONDS", 75)?,
            },
            drain: Duration::from_secs(source.parse("DRAIN_SECONDS", 0)?),
            persisted_queries: source.parse("PERSISTED_QUERIES", 1_000)?,
            trusted_documents: trusted_documents(source)?,
            allowed_hosts: source.list("ALLOWED_HOSTS")?,
            trusted_proxies: source.list("TRUSTED_PROXIES")?,
            event_retention: Retention {
                age: source.days("EVENT_RETENTION_DAYS", 7)?,
                count: source.positive("EVENT_RETENTION_COUNT", 10_000_000)?.into(),
            },
            quotas: Quotas {
                projects: source.positive("MAX_PROJECTS_PER_USER", 1_000)?.into(),
                tasks: source.positive("MAX_TASKS_PER_PROJECT", 50_000)?.into(),
                text_bytes: i64::from(source.positive("MAX_TEXT_MIB_PER_USER", 4_096)?) * MIB,
                ..Quotas::default()
            },
            redis_url: service(source, "REDIS_URL", |url| redis::Client::open(url))?,
            smtp_url: service(source, "SMTP_URL", AsyncSmtpTransport::<Tokio1Executor>::from_url)?,
            mail_from,
            verify_email_url: page(source, "VERIFY_EMAIL_URL", &public_url, "/auth/verify-email")?,
            reset_password_url: page(source, "PASSWORD_RESET_URL", &public_url, "/auth/password-reset")?,
            require_verified_email: source.switch("REQUIRE_VERIFIED_EMAIL", false)?,
            lockout: Rule {
                failures: i32::try_from(source.positive("LOCKOUT_FAILURES", 5)?).unwrap_or(i32::MAX),
                duration: source.minutes("LOCKOUT_MINUTES", 30)?,
            },
            audit_retention: source.days("AUDIT_RETENTION_DAYS", 365)?,
            graphiql: source.switch("GRAPHIQL_ENABLED", true)?,
            docs: source.switch("DOCS_ENABLED", true)?,
            introspection: source.switch("INTROSPECTION_ENABLED", true)?,
            log_json: source.choice("LOG_FORMAT", false, &[("text", false), ("json", true)])?,
            log_filter,
            traces: traces(source)?,
            public_url,
        })
    }
}

fn page(source: &Source<'_>, name: &'static str, public_url: &str, path: &str) -> Result<String, Invalid> {
    let url = source.text_or(name, || format!("{public_url}{path}"));
    match url::Url::parse(&url) {
        Ok(parsed) if parsed.fragment().is_none() => Ok(url),
        Ok(_) => Err(Invalid::new(name, "must not have a fragment: the token goes there")),
        Err(error) => Err(Invalid::new(name, error.to_string())),
    }
}

/// The URL of something beside the server, with what reads it there.
fn service<T, E: fmt::Display>(
    source: &Source<'_>,
    name: &'static str,
    read: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<Secret>, Invalid> {
    let Some(url) = source.text(name) else { return Ok(None) };
    read(&url).map_err(|error| Invalid::new(name, error.to_string()))?;
    Ok(Some(Secret::new(url)))
}

fn hash_cost(source: &Source<'_>) -> Result<HashCost, Invalid> {
    let memory_kib = source.positive("ARGON2_MEMORY_KIB", 19_456)?;
    let passes = source.positive("ARGON2_PASSES", 2)?;
    let lanes = source.positive("ARGON2_LANES", 1)?;
    argon2::Params::new(memory_kib, passes, lanes, None).map_err(|error| match error {
        argon2::Error::MemoryTooLittle => {
            Invalid::new("ARGON2_MEMORY_KIB", "must be at least 8 for each of ARGON2_LANES")
        }
        other => Invalid::new("ARGON2_LANES", other.to_string()),
    })?;
    Ok(HashCost { memory_kib, passes, lanes })
}

fn trusted_documents(source: &Source<'_>) -> Result<Option<HashMap<String, String>>, Invalid> {
    let Some(path) = source.text("TRUSTED_DOCUMENTS") else {
        return Ok(None);
    };
    #[derive(serde::Deserialize)]
    struct Listed {
        id: String,
        body: String,
    }
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Manifest {
        Operations { operations: Vec<Listed> },
        Documents(HashMap<String, String>),
    }
    let read = std::fs::read(&path).map_err(|error| error.to_string());
    let read = read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
    let wrong = |error| Invalid::new("TRUSTED_DOCUMENTS", format!("{path}: {error}"));
    let documents: HashMap<String, String> = match read.map_err(wrong)? {
        Manifest::Documents(documents) => documents,
        Manifest::Operations { operations } => operations.into_iter().map(|listed| (listed.id, listed.body)).collect(),
    };
    match documents.keys().find(|id| id.len() > MAX_ID) {
        Some(id) => Err(wrong(format!("the id {id:?} has more than {MAX_ID} bytes"))),
        None => Ok(Some(documents)),
    }
}

fn traces(source: &Source<'_>) -> Result<Option<Traces>, Invalid> {
    let endpoint = source.text("OTEL_EXPORTER_OTLP_ENDPOINT");
    let headers = headers(source)?;
    let service = source.text_or("OTEL_SERVICE_NAME", || "fasttrack".to_owned());
    let name = "OTEL_TRACES_SAMPLER_ARG";
    let ratio = source.parse(name, 1.0)?;
    if !(0.0..=1.0).contains(&ratio) {
        return Err(Invalid::new(name, "must be from 0 to 1"));
    }
    let Some(base) = endpoint else { return Ok(None) };
    let uri = format!("{}/v1/traces", base.trim_end_matches('/')).parse::<Uri>().ok();
    let endpoint = uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.query().is_none());
    let endpoint = endpoint.ok_or_else(|| {
        Invalid::new("OTEL_EXPORTER_OTLP_ENDPOINT", "must be a URL that begins with http:// or https://")
    })?;
    Ok(Some(Traces { endpoint, headers, service, ratio }))
}

/// `name=value`, comma-separated, the values percent-encoded.
fn headers(source: &Source<'_>) -> Result<Vec<(HeaderName, HeaderValue)>, Invalid> {
    let name = "OTEL_EXPORTER_OTLP_HEADERS";
    let text = source.text(name).unwrap_or_default();
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (header, value) = pair.split_once('=')?;
            let value: Vec<u8> = percent_encoding::percent_decode_str(value.trim()).collect();
            let mut value = HeaderValue::from_bytes(&value).ok()?;
            value.set_sensitive(true);
            Some((header.trim().parse().ok()?, value))
        })
        .map(|header| header.ok_or_else(|| Invalid::new(name, "must be like `name=value,other=value`")))
        .collect()
}

fn origins(source: &Source<'_>) -> Result<Vec<String>, Invalid> {
    let list = source.text("CORS_ORIGINS").unwrap_or_default();
    let mut origins = Vec::new();
    for origin in list.split(',').map(str::trim).filter(|origin| !origin.is_empty()) {
        let parsed = url::Url::parse(origin).ok().filter(|url| url.has_host() && origin != "*");
        let parsed = parsed.ok_or_else(|| {
            Invalid::new("CORS_ORIGINS", format!("{origin:?} is no origin like https://app.example.org"))
        })?;
        origins.push(origin_of(&parsed));
    }
    Ok(origins)
}

/// As browsers name it, and the web views in which apps run: their schemes are those of no standard, which makes them
/// all alike, `null`.
fn origin_of(url: &url::Url) -> String {
    let origin = url.origin();
    if origin.is_tuple() {
        return origin.ascii_serialization();
    }
    let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}", url.scheme())
}
