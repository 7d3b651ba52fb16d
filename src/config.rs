//! The settings, one documented field each, read from the environment or `.env`.
//!
//! Validation happens here, at the start: a running server has a valid [`Config`]. Secrets have no
//! `Display`, and their `Debug` output is redacted.

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
pub use self::keys::{create_private_file, keys_file};
use crate::db::Location;
use crate::db::postgres::PgConnector;
use crate::error::Error;
use crate::http::persisted::MAX_ID;
use crate::limits::{MIB, StorageQuotas};
use crate::network::Network;
use crate::store::event::Retention;
use crate::store::lockout::LockoutPolicy;
use crate::time::Timestamp;

const SECONDS_PER_DAY: u64 = 86_400;
/// Maximum of any period: 36,500 days, in seconds. Larger ones exceed the range of timestamps.
const MAX_SECONDS: u64 = 36_500 * SECONDS_PER_DAY;

/// A key that must not appear in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Minimum length in bytes.
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

/// The requirements for a new password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordPolicy {
    /// At least 8 characters with upper and lower case letters, a digit and a symbol.
    Composition,
    /// At least 15 characters of any kind (NIST SP 800-63B).
    Length,
}

/// The cost of a password hash with Argon2id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashCost {
    /// Memory in KiB.
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
}

/// Rate limits per minute, counted in a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// `/auth` requests that carry a credential or send mail, per address.
    pub credentials_per_minute: u32,
    /// Other `/auth` requests, per address.
    pub auth_per_minute: u32,
    /// GraphQL requests, per user, or per address if anonymous.
    pub graphql_per_minute: u32,
    /// Points of GraphQL operations, per user, or per address if anonymous.
    pub cost_per_minute: u32,
}

/// Limits of WebSockets and event streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketLimits {
    /// Sockets and streams per user and instance.
    pub per_user: usize,
    /// Concurrent operations per socket.
    pub operations_per_socket: usize,
    /// Subscriptions per user and instance, over all sockets and streams.
    pub subscriptions_per_user: usize,
    /// Whether sockets accept mutations.
    pub mutations: bool,
    /// Time until `connection_init` must arrive.
    pub init_timeout: Duration,
    /// Time between two pings.
    pub ping_interval: Duration,
    /// Time for a client to read a message.
    pub write_timeout: Duration,
}

/// Limits of connections and requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Maximum number of connections.
    pub max: usize,
    /// Maximum per IPv4 address or IPv6 /64; four times as many per /48. Trusted proxies are
    /// exempt.
    pub per_address: usize,
    /// Maximum number of requests in flight.
    pub requests: usize,
    /// Maximum number of concurrent GraphQL operations.
    pub operations: usize,
    /// Time for the first request of a connection to arrive.
    pub header_timeout: Duration,
    /// Time for a request body to arrive.
    pub body_timeout: Duration,
    /// Time that a connection may be idle. Also the maximum time that a client may stop reading a
    /// response.
    pub idle_timeout: Duration,
}

/// Where and how traces are exported.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceConfig {
    /// The URL that receives traces.
    pub endpoint: Uri,
    /// Additional request headers. Their values may be secret and are marked sensitive.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The service name in traces.
    pub service: String,
    /// Sampling ratio of traces that start here, from 0 to 1. Others follow their parent's
    /// decision.
    pub ratio: f64,
}

/// The settings of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// `DATABASE_URL`: `sqlite://path` (created if missing) or
    /// `postgres://user:password@host/database`, with `sslmode` and `sslrootcert` as described at
    /// [`PgConnector::parse`]. Default `sqlite://fasttrack.db`.
    pub database: Location,
    /// `DATABASE_CONNECTIONS`: size of the connection pool. Default 8.
    pub database_connections: usize,
    /// `LISTEN_ADDR`: address and port to listen on. Default `127.0.0.1:8000`.
    pub listen: SocketAddr,
    /// `METRICS_ADDR`: address and port of the Prometheus endpoint `/metrics`, which requires no
    /// authentication. Default none: metrics are not served.
    pub metrics: Option<SocketAddr>,
    /// `PUBLIC_URL`: public base URL, with which links in mail start. Default `http://` +
    /// `LISTEN_ADDR`.
    pub public_url: String,
    /// `SECRET_KEY`: signs access tokens and encrypts event cursors. At least 32 bytes. Default:
    /// generated once and stored in `SECRETS_FILE`.
    pub secret_key: Secret,
    /// `REFRESH_SECRET_KEY`: signs refresh tokens. At least 32 bytes, different from `SECRET_KEY`.
    /// Default: generated once and stored in `SECRETS_FILE`.
    pub refresh_secret_key: Secret,
    /// `ACCESS_TOKEN_EXPIRE_MINUTES`: lifetime of an access token. Default 15.
    pub access_lifetime: Duration,
    /// `REFRESH_TOKEN_EXPIRE_DAYS`: lifetime of a session that is not refreshed. Default 7.
    pub refresh_lifetime: Duration,
    /// `SESSION_MAX_DAYS`: lifetime of a session, however often it is refreshed. Default 90.
    pub session_max: Duration,
    /// `REFRESH_GRACE_SECONDS`: how long the previous refresh token still returns the same
    /// successor, which covers concurrent refreshes and lost responses. Default 10.
    pub refresh_grace: Duration,
    /// `PASSWORD_POLICY`: `composition` or `length`. Default `composition`.
    pub password_policy: PasswordPolicy,
    /// `ARGON2_MEMORY_KIB`, `ARGON2_PASSES`, `ARGON2_LANES`: cost of a password hash. Default
    /// 19456, 2, 1.
    pub hash_cost: HashCost,
    /// `CORS_ORIGINS`: other origins whose pages may call the server, comma-separated, such as
    /// `https://app.example.org`, or `capacitor://localhost` for a web view. Default none.
    pub cors_origins: Vec<String>,
    /// `RATE_LIMIT_ENABLED` (on), `RATE_LIMIT_CREDENTIALS_PER_MINUTE` (5),
    /// `RATE_LIMIT_AUTH_PER_MINUTE` (100), `RATE_LIMIT_GRAPHQL_PER_MINUTE` (1200) and
    /// `RATE_LIMIT_COST_PER_MINUTE` (6000).
    pub rate_limits: Option<RateLimits>,
    /// `WS_SOCKETS_PER_USER` (20), `WS_OPERATIONS_PER_SOCKET` (50), `WS_SUBSCRIPTIONS_PER_USER`
    /// (200), `WS_MUTATIONS` (on), `WS_INIT_SECONDS` (3), `WS_PING_SECONDS` (30) and
    /// `WS_WRITE_SECONDS` (15).
    pub sockets: SocketLimits,
    /// `MAX_CONNECTIONS` (10000), `MAX_CONNECTIONS_PER_ADDRESS` (a tenth of it, at least 100),
    /// `MAX_REQUESTS_IN_FLIGHT` (1000), `MAX_OPERATIONS_AT_ONCE` (4 per core on SQLite, 32 on
    /// PostgreSQL), `HEADER_TIMEOUT_SECONDS` (10), `BODY_TIMEOUT_SECONDS` (30) and
    /// `KEEP_ALIVE_SECONDS` (75).
    pub connections: ConnectionLimits,
    /// `DRAIN_SECONDS`: how long `/readyz` reports a shutdown before connections are refused.
    /// Should slightly exceed the health check interval of the load balancer. Default 0.
    pub drain: Duration,
    /// `PERSISTED_QUERIES`: capacity of the cache of automatic persisted queries. 0 disables it.
    /// Default 1000.
    pub persisted_queries: usize,
    /// `TRUSTED_DOCUMENTS`: a JSON file with the only documents that may be executed, as
    /// `{"id": "query …"}` or `{"operations": [{"id", "body"}]}`. Default none: any document may be
    /// executed.
    pub trusted_documents: Option<HashMap<String, String>>,
    /// `ALLOWED_HOSTS`: accepted host names, comma-separated, without a port, such as
    /// `tasks.example.org`. Default: any.
    pub allowed_hosts: Vec<String>,
    /// `TRUSTED_PROXIES`: addresses or networks (`10.0.0.0/8`), comma-separated, whose
    /// `X-Forwarded-For` is trusted. Default none.
    pub trusted_proxies: Vec<Network>,
    /// `EVENT_RETENTION_DAYS` (7) and `EVENT_RETENTION_COUNT` (10000000): retention of the event
    /// feed. Events beyond either bound expire. The history of a task is kept as long as the task.
    pub event_retention: Retention,
    /// `MAX_PROJECTS_PER_USER` (1000), `MAX_TASKS_PER_PROJECT` (50000) and `MAX_TEXT_MIB_PER_USER`
    /// (4096): how much a user and a project may store.
    pub quotas: StorageQuotas,
    /// `REDIS_URL`: `redis://host:port`, or `rediss://host:port` for TLS with a verified
    /// certificate. Instances share rate limits and event hints through it. Default none.
    pub redis_url: Option<Secret>,
    /// `SMTP_URL`: `smtp://…` or `smtps://user:password@host`. Default none: mail is logged.
    pub smtp_url: Option<Secret>,
    /// `MAIL_FROM`: sender of mail. Default `fasttrack <noreply@localhost>`.
    pub mail_from: String,
    /// `VERIFY_EMAIL_URL`: the page that the verification link opens; `#token=…` is appended.
    /// Default: the server's own page under `PUBLIC_URL`.
    pub verify_email_url: String,
    /// `PASSWORD_RESET_URL`: the page that the password reset link opens; `#token=…` is appended.
    /// Default: the server's own page under `PUBLIC_URL`.
    pub reset_password_url: String,
    /// `REQUIRE_VERIFIED_EMAIL`: whether login requires a verified e-mail address. Default off.
    pub require_verified_email: bool,
    /// `LOCKOUT_FAILURES` (5) and `LOCKOUT_MINUTES` (30): failures after which an address is locked
    /// out of an identifier, and for how long. Five times as many failures in an hour from all
    /// addresses together slow down logins with that identifier.
    pub lockout: LockoutPolicy,
    /// `AUDIT_RETENTION_DAYS`: retention of the audit log. Default 365.
    pub audit_retention: Duration,
    /// `GRAPHIQL_ENABLED`: whether `/graphiql` is served. Default on.
    pub graphiql: bool,
    /// `DOCS_ENABLED`: whether `/docs`, the documentation of the `/auth` routes, is served. Default
    /// on.
    pub docs: bool,
    /// `INTROSPECTION_ENABLED`: whether introspection of the schema is allowed. Default on.
    pub introspection: bool,
    /// `LOG_FORMAT`: `text` or `json`. Default `text`.
    pub log_json: bool,
    /// `RUST_LOG`: log filter, a level or levels by module. Default `info`.
    pub log_filter: String,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`: a collector that accepts OpenTelemetry traces via OTLP over
    /// HTTP, such as `http://127.0.0.1:4318`, with `OTEL_EXPORTER_OTLP_HEADERS` (none),
    /// `OTEL_SERVICE_NAME` (`fasttrack`) and `OTEL_TRACES_SAMPLER_ARG` (1). Default none: tracing
    /// is off.
    pub traces: Option<TraceConfig>,
}

/// An invalid setting.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {problem}")]
pub struct InvalidSetting {
    name: &'static str,
    problem: String,
}

impl InvalidSetting {
    fn new(name: &'static str, problem: impl Into<String>) -> Self {
        Self {
            name,
            problem: problem.into(),
        }
    }
}

/// The names of all settings. A test compares them with `.env.example`.
pub const SETTING_NAMES: [&str; 64] = [
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

/// Whether the whole value of a setting is secret. Of URLs, only the password is.
pub fn is_secret(name: &str) -> bool {
    name.ends_with("_KEY")
        || name.ends_with("_TOKEN")
        || name.ends_with("_PASSWORD")
        || name.ends_with("_HEADERS")
}

/// Looks up the value of a setting by name.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A lookup that records the values in effect. An empty value counts as not set.
struct SettingsReader<'a> {
    lookup: Lookup<'a>,
    effective: RefCell<BTreeMap<&'static str, String>>,
}

impl<'a> SettingsReader<'a> {
    fn new(lookup: Lookup<'a>) -> Self {
        Self {
            lookup,
            effective: RefCell::default(),
        }
    }

    fn record(&self, name: &'static str, value: impl ToString) {
        self.effective.borrow_mut().insert(name, value.to_string());
    }

    fn text(&self, name: &'static str) -> Option<String> {
        debug_assert!(
            SETTING_NAMES.contains(&name),
            "{name} is not in SETTING_NAMES"
        );
        let value = (self.lookup)(name)
            .map(|value| value.trim().to_owned())
            .filter(|value| !value.is_empty());
        self.record(name, value.as_deref().unwrap_or_default());
        value
    }

    fn text_or(&self, name: &'static str, default: impl FnOnce() -> String) -> String {
        self.text(name).unwrap_or_else(|| {
            let default = default();
            self.record(name, &default);
            default
        })
    }

    fn parse<T: std::str::FromStr + ToString>(
        &self,
        name: &'static str,
        default: T,
    ) -> Result<T, InvalidSetting> {
        match self.text(name) {
            None => {
                self.record(name, default.to_string());
                Ok(default)
            }
            Some(value) => value
                .parse()
                .map_err(|_| InvalidSetting::new(name, format!("cannot read {value:?}"))),
        }
    }

    fn optional<T: std::str::FromStr>(
        &self,
        name: &'static str,
    ) -> Result<Option<T>, InvalidSetting> {
        let value = self.text(name);
        value
            .map(|value| {
                value
                    .parse()
                    .map_err(|_| InvalidSetting::new(name, format!("cannot read {value:?}")))
            })
            .transpose()
    }

    fn list<T: std::str::FromStr>(&self, name: &'static str) -> Result<Vec<T>, InvalidSetting> {
        let text = self.text(name).unwrap_or_default();
        let items = text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty());
        items
            .map(|item| {
                item.parse()
                    .map_err(|_| InvalidSetting::new(name, format!("cannot read {item:?}")))
            })
            .collect()
    }

    fn positive(&self, name: &'static str, default: u32) -> Result<u32, InvalidSetting> {
        match self.parse(name, default)? {
            0 => Err(InvalidSetting::new(name, "must be at least 1")),
            value => Ok(value),
        }
    }

    /// A period, given in units of `unit` seconds.
    fn duration(
        &self,
        name: &'static str,
        default: u32,
        unit: u64,
    ) -> Result<Duration, InvalidSetting> {
        match u64::from(self.positive(name, default)?) * unit {
            seconds if seconds > MAX_SECONDS => Err(InvalidSetting::new(
                name,
                format!("must be at most {}", MAX_SECONDS / unit),
            )),
            seconds => Ok(Duration::from_secs(seconds)),
        }
    }

    fn seconds(&self, name: &'static str, default: u32) -> Result<Duration, InvalidSetting> {
        self.duration(name, default, 1)
    }

    fn minutes(&self, name: &'static str, default: u32) -> Result<Duration, InvalidSetting> {
        self.duration(name, default, 60)
    }

    fn days(&self, name: &'static str, default: u32) -> Result<Duration, InvalidSetting> {
        self.duration(name, default, SECONDS_PER_DAY)
    }

    fn flag(&self, name: &'static str, default: bool) -> Result<bool, InvalidSetting> {
        match self
            .text(name)
            .map(|value| value.to_ascii_lowercase())
            .as_deref()
        {
            None => {
                self.record(name, default);
                Ok(default)
            }
            Some("true" | "1" | "yes" | "on") => Ok(true),
            Some("false" | "0" | "no" | "off") => Ok(false),
            Some(other) => Err(InvalidSetting::new(
                name,
                format!("must be true or false, not {other:?}"),
            )),
        }
    }

    fn choice<T>(
        &self,
        name: &'static str,
        default: T,
        choices: &[(&str, T)],
    ) -> Result<T, InvalidSetting>
    where
        T: Copy + PartialEq,
    {
        let Some(value) = self.text(name) else {
            if let Some((text, _)) = choices.iter().find(|(_, choice)| *choice == default) {
                self.record(name, text);
            }
            return Ok(default);
        };
        let known = choices.iter().find(|(text, _)| *text == value);
        known.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(text, _)| *text).collect();
            InvalidSetting::new(
                name,
                format!("must be one of {}, not {value:?}", names.join(", ")),
            )
        })
    }
}

impl Config {
    /// Reads the settings of this process.
    pub fn from_env() -> Result<Self, InvalidSetting> {
        Self::from(&|name| std::env::var(name).ok())
    }

    /// A client for the configured Redis, if any. It connects lazily.
    pub fn redis(&self) -> crate::error::Result<Option<redis::Client>> {
        let open = |url: &Secret| {
            let url = std::str::from_utf8(url.expose()).map_err(Error::internal)?;
            redis::Client::open(url).map_err(Error::internal)
        };
        self.redis_url.as_ref().map(open).transpose()
    }

    /// The expiry of a session that was created at `created_at` and is refreshed now.
    pub fn session_expires_at(&self, now: Timestamp, created_at: Timestamp) -> Timestamp {
        now.plus(self.refresh_lifetime)
            .min(created_at.plus(self.session_max))
    }

    /// Reads the settings from any lookup.
    pub fn from(lookup: Lookup<'_>) -> Result<Self, InvalidSetting> {
        Self::from_with_values(lookup).map(|(config, _)| config)
    }

    /// Like [`from`](Self::from), with the value in effect of each setting as text. Includes
    /// secrets.
    pub fn from_with_values(
        lookup: Lookup<'_>,
    ) -> Result<(Self, BTreeMap<&'static str, String>), InvalidSetting> {
        let source = SettingsReader::new(lookup);
        let config = Self::read(&source)?;
        Ok((config, source.effective.into_inner()))
    }

    fn read(source: &SettingsReader<'_>) -> Result<Self, InvalidSetting> {
        let log_filter = source.text_or("RUST_LOG", || "info".to_owned());
        EnvFilter::try_new(&log_filter)
            .map_err(|error| InvalidSetting::new("RUST_LOG", error.to_string()))?;
        let url = source.text_or("DATABASE_URL", || "sqlite://fasttrack.db".to_owned());
        let database = Location::parse(&url).ok_or_else(|| {
            InvalidSetting::new(
                "DATABASE_URL",
                "must start with sqlite:// or postgres:// and name a database",
            )
        })?;
        if let Location::Postgres(url) = &database {
            PgConnector::parse(url)
                .map_err(|error| InvalidSetting::new("DATABASE_URL", error.to_string()))?;
        }
        let listen = source.parse("LISTEN_ADDR", SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)))?;
        let (secret_key, refresh_secret_key) = keys(source, &database)?;
        // SQLite uses the cores of this process, so more concurrency only makes each operation
        // slower. With PostgreSQL, operations mostly wait.
        let default_operations = match &database {
            Location::Sqlite(_) => {
                std::thread::available_parallelism().map_or(8, |cores| cores.get() as u32 * 4)
            }
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
        url::Url::parse(&public_url)
            .map_err(|error| InvalidSetting::new("PUBLIC_URL", error.to_string()))?;
        let public_url = public_url.trim_end_matches('/').to_owned();
        let mail_from = source.text_or("MAIL_FROM", || "fasttrack <noreply@localhost>".to_owned());
        mail_from.parse::<lettre::message::Mailbox>().map_err(|_| {
            InvalidSetting::new("MAIL_FROM", "must be like `Name <address@example.org>`")
        })?;
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
                &[
                    ("composition", PasswordPolicy::Composition),
                    ("length", PasswordPolicy::Length),
                ],
            )?,
            hash_cost: hash_cost(source)?,
            cors_origins: origins(source)?,
            rate_limits: source.flag("RATE_LIMIT_ENABLED", true)?.then_some(limits),
            sockets: SocketLimits {
                per_user: source.positive("WS_SOCKETS_PER_USER", 20)? as usize,
                operations_per_socket: source.positive("WS_OPERATIONS_PER_SOCKET", 50)? as usize,
                subscriptions_per_user: source.positive("WS_SUBSCRIPTIONS_PER_USER", 200)? as usize,
                mutations: source.flag("WS_MUTATIONS", true)?,
                init_timeout: source.seconds("WS_INIT_SECONDS", 3)?,
                ping_interval: source.seconds("WS_PING_SECONDS", 30)?,
                write_timeout: source.seconds("WS_WRITE_SECONDS", 15)?,
            },
            connections: ConnectionLimits {
                max: most_connections as usize,
                per_address: source.positive(
                    "MAX_CONNECTIONS_PER_ADDRESS",
                    (most_connections / 10).max(100),
                )? as usize,
                requests: source.positive("MAX_REQUESTS_IN_FLIGHT", 1_000)? as usize,
                operations: source.positive("MAX_OPERATIONS_AT_ONCE", default_operations)? as usize,
                header_timeout: source.seconds("HEADER_TIMEOUT_SECONDS", 10)?,
                body_timeout: source.seconds("BODY_TIMEOUT_SECONDS", 30)?,
                idle_timeout: source.seconds("KEEP_ALIVE_SECONDS", 75)?,
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
            quotas: StorageQuotas {
                projects: source.positive("MAX_PROJECTS_PER_USER", 1_000)?.into(),
                tasks: source.positive("MAX_TASKS_PER_PROJECT", 50_000)?.into(),
                text_bytes: i64::from(source.positive("MAX_TEXT_MIB_PER_USER", 4_096)?) * MIB,
                ..StorageQuotas::default()
            },
            redis_url: service_url(source, "REDIS_URL", |url| redis::Client::open(url))?,
            smtp_url: service_url(
                source,
                "SMTP_URL",
                AsyncSmtpTransport::<Tokio1Executor>::from_url,
            )?,
            mail_from,
            verify_email_url: page_url(
                source,
                "VERIFY_EMAIL_URL",
                &public_url,
                "/auth/verify-email",
            )?,
            reset_password_url: page_url(
                source,
                "PASSWORD_RESET_URL",
                &public_url,
                "/auth/password-reset",
            )?,
            require_verified_email: source.flag("REQUIRE_VERIFIED_EMAIL", false)?,
            lockout: LockoutPolicy {
                failures: i32::try_from(source.positive("LOCKOUT_FAILURES", 5)?)
                    .unwrap_or(i32::MAX),
                duration: source.minutes("LOCKOUT_MINUTES", 30)?,
            },
            audit_retention: source.days("AUDIT_RETENTION_DAYS", 365)?,
            graphiql: source.flag("GRAPHIQL_ENABLED", true)?,
            docs: source.flag("DOCS_ENABLED", true)?,
            introspection: source.flag("INTROSPECTION_ENABLED", true)?,
            log_json: source.choice("LOG_FORMAT", false, &[("text", false), ("json", true)])?,
            log_filter,
            traces: traces(source)?,
            public_url,
        })
    }
}

fn page_url(
    source: &SettingsReader<'_>,
    name: &'static str,
    public_url: &str,
    path: &str,
) -> Result<String, InvalidSetting> {
    let url = source.text_or(name, || format!("{public_url}{path}"));
    match url::Url::parse(&url) {
        Ok(parsed) if parsed.fragment().is_none() => Ok(url),
        Ok(_) => Err(InvalidSetting::new(
            name,
            "must not have a fragment, because the token is appended as one",
        )),
        Err(error) => Err(InvalidSetting::new(name, error.to_string())),
    }
}

/// The URL of an external service, validated by the client library that will use it.
fn service_url<T, E: fmt::Display>(
    source: &SettingsReader<'_>,
    name: &'static str,
    read: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<Secret>, InvalidSetting> {
    let Some(url) = source.text(name) else {
        return Ok(None);
    };
    read(&url).map_err(|error| InvalidSetting::new(name, error.to_string()))?;
    Ok(Some(Secret::new(url)))
}

fn hash_cost(source: &SettingsReader<'_>) -> Result<HashCost, InvalidSetting> {
    let memory_kib = source.positive("ARGON2_MEMORY_KIB", 19_456)?;
    let passes = source.positive("ARGON2_PASSES", 2)?;
    let lanes = source.positive("ARGON2_LANES", 1)?;
    argon2::Params::new(memory_kib, passes, lanes, None).map_err(|error| match error {
        argon2::Error::MemoryTooLittle => InvalidSetting::new(
            "ARGON2_MEMORY_KIB",
            "must be at least 8 per lane of ARGON2_LANES",
        ),
        other => InvalidSetting::new("ARGON2_LANES", other.to_string()),
    })?;
    Ok(HashCost {
        memory_kib,
        passes,
        lanes,
    })
}

fn trusted_documents(
    source: &SettingsReader<'_>,
) -> Result<Option<HashMap<String, String>>, InvalidSetting> {
    let Some(path) = source.text("TRUSTED_DOCUMENTS") else {
        return Ok(None);
    };
    #[derive(serde::Deserialize)]
    struct DocumentEntry {
        id: String,
        body: String,
    }
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Manifest {
        Operations { operations: Vec<DocumentEntry> },
        Documents(HashMap<String, String>),
    }
    let read = std::fs::read(&path).map_err(|error| error.to_string());
    let read =
        read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
    let wrong = |error| InvalidSetting::new("TRUSTED_DOCUMENTS", format!("{path}: {error}"));
    let documents: HashMap<String, String> = match read.map_err(wrong)? {
        Manifest::Documents(documents) => documents,
        Manifest::Operations { operations } => operations
            .into_iter()
            .map(|listed| (listed.id, listed.body))
            .collect(),
    };
    match documents.keys().find(|id| id.len() > MAX_ID) {
        Some(id) => Err(wrong(format!("the id {id:?} has more than {MAX_ID} bytes"))),
        None => Ok(Some(documents)),
    }
}

fn traces(source: &SettingsReader<'_>) -> Result<Option<TraceConfig>, InvalidSetting> {
    let endpoint = source.text("OTEL_EXPORTER_OTLP_ENDPOINT");
    let headers = headers(source)?;
    let service = source.text_or("OTEL_SERVICE_NAME", || "fasttrack".to_owned());
    let name = "OTEL_TRACES_SAMPLER_ARG";
    let ratio = source.parse(name, 1.0)?;
    if !(0.0..=1.0).contains(&ratio) {
        return Err(InvalidSetting::new(name, "must be from 0 to 1"));
    }
    let Some(base) = endpoint else {
        return Ok(None);
    };
    let uri = format!("{}/v1/traces", base.trim_end_matches('/'))
        .parse::<Uri>()
        .ok();
    let endpoint = uri
        .filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.query().is_none());
    let endpoint = endpoint.ok_or_else(|| {
        InvalidSetting::new(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "must be a URL that starts with http:// or https://",
        )
    })?;
    Ok(Some(TraceConfig {
        endpoint,
        headers,
        service,
        ratio,
    }))
}

/// Parses `name=value` pairs, comma-separated, with percent-encoded values.
fn headers(source: &SettingsReader<'_>) -> Result<Vec<(HeaderName, HeaderValue)>, InvalidSetting> {
    let name = "OTEL_EXPORTER_OTLP_HEADERS";
    let text = source.text(name).unwrap_or_default();
    let pairs = text
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (header, value) = pair.split_once('=')?;
            let value: Vec<u8> = percent_encoding::percent_decode_str(value.trim()).collect();
            let mut value = HeaderValue::from_bytes(&value).ok()?;
            value.set_sensitive(true);
            Some((header.trim().parse().ok()?, value))
        })
        .map(|header| {
            header.ok_or_else(|| InvalidSetting::new(name, "must be like `name=value,other=value`"))
        })
        .collect()
}

fn origins(source: &SettingsReader<'_>) -> Result<Vec<String>, InvalidSetting> {
    let list = source.text("CORS_ORIGINS").unwrap_or_default();
    let mut origins = Vec::new();
    for origin in list
        .split(',')
        .map(str::trim)
        .filter(|origin| !origin.is_empty())
    {
        let parsed = url::Url::parse(origin)
            .ok()
            .filter(|url| url.has_host() && origin != "*");
        let parsed = parsed.ok_or_else(|| {
            InvalidSetting::new(
                "CORS_ORIGINS",
                format!("{origin:?} is not an origin like https://app.example.org"),
            )
        })?;
        origins.push(url_origin(&parsed));
    }
    Ok(origins)
}

/// The origin as browsers send it. The URL standard gives custom schemes, which web views of apps
/// use, the opaque origin `null`, so theirs is built by hand.
fn url_origin(url: &url::Url) -> String {
    let origin = url.origin();
    if origin.is_tuple() {
        return origin.ascii_serialization();
    }
    let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
    let port = url
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    format!("{}://{host}{port}", url.scheme())
}
