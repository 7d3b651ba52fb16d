//! Settings, as read from environment variables.

use std::collections::HashMap;
use std::sync::Barrier;
use std::time::Duration;

use fasttrack::config::{Config, InvalidSetting};
use fasttrack::db::Location;

fn read(settings: &[(&str, &str)]) -> Result<Config, InvalidSetting> {
    let keys = [
        ("SECRET_KEY", "k".repeat(32)),
        ("REFRESH_SECRET_KEY", "r".repeat(32)),
    ];
    let mut values: HashMap<String, String> = keys.map(|(name, key)| (name.to_owned(), key)).into();
    values.extend(
        settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    );
    Config::from(&|name| values.get(name).cloned())
}

#[test]
fn defaults_apply_without_settings() {
    let config = read(&[]).expect("defaults");
    assert_eq!(config.database, Location::Sqlite("fasttrack.db".into()));
    assert_eq!(config.listen.to_string(), "127.0.0.1:8000");
    assert_eq!(config.public_url, "http://127.0.0.1:8000");
    assert_eq!(config.access_lifetime, Duration::from_secs(15 * 60));
    assert_eq!(config.refresh_lifetime, Duration::from_secs(7 * 86_400));
    assert!(config.rate_limits.is_some() && config.cors_origins.is_empty());
    assert!(config.smtp_url.is_none() && config.redis_url.is_none());
}

#[test]
fn empty_value_counts_as_unset() {
    let config = read(&[
        ("LISTEN_ADDR", " "),
        ("RATE_LIMIT_ENABLED", ""),
        ("SMTP_URL", ""),
    ])
    .expect("defaults");
    assert_eq!(config.listen.port(), 8000);
    assert!(config.rate_limits.is_some() && config.smtp_url.is_none());
}

#[test]
fn url_scheme_selects_the_database() {
    for (url, location) in [
        ("sqlite://data/x.db", Location::Sqlite("data/x.db".into())),
        ("sqlite:///var/x.db", Location::Sqlite("/var/x.db".into())),
        (
            "postgres://u:p@host/db",
            Location::Postgres("postgres://u:p@host/db".to_owned()),
        ),
        (
            "postgresql://host/db",
            Location::Postgres("postgresql://host/db".to_owned()),
        ),
    ] {
        assert_eq!(
            read(&[("DATABASE_URL", url)]).expect("a good URL").database,
            location
        );
    }
}

#[test]
fn invalid_setting_is_named_in_the_error() {
    for (name, value) in [
        ("DATABASE_URL", "mysql://host/db"),
        ("DATABASE_URL", "sqlite://"),
        ("DATABASE_URL", "sqlite::memory:"),
        ("DATABASE_CONNECTIONS", "0"),
        ("LISTEN_ADDR", "localhost"),
        ("PUBLIC_URL", "not a url"),
        ("SECRET_KEY", "too short"),
        ("REFRESH_SECRET_KEY", "too short"),
        ("ACCESS_TOKEN_EXPIRE_MINUTES", "0"),
        ("ACCESS_TOKEN_EXPIRE_MINUTES", "-1"),
        ("REFRESH_TOKEN_EXPIRE_DAYS", "a week"),
        ("PASSWORD_POLICY", "none"),
        ("CORS_ORIGINS", "*"),
        ("CORS_ORIGINS", "https://a.example.org, b"),
        ("RATE_LIMIT_ENABLED", "maybe"),
        ("MAIL_FROM", "nobody"),
        ("LOG_FORMAT", "xml"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a key"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ("RUST_LOG", "fasttrack=loud"),
        ("SMTP_URL", "mail.example.org"),
        ("SMTP_URL", "smtp://mail.example.org?tls=maybe"),
        ("REDIS_URL", "127.0.0.1:6379"),
        ("ARGON2_MEMORY_KIB", "7"),
        ("ARGON2_LANES", "16777216"),
        ("REFRESH_TOKEN_EXPIRE_DAYS", "36501"),
        ("EVENT_RETENTION_DAYS", "36501"),
        ("AUDIT_RETENTION_DAYS", "9999999"),
        ("LOCKOUT_MINUTES", "52560001"),
    ] {
        let problem = read(&[(name, value)]).expect_err(value).to_string();
        assert!(problem.starts_with(&format!("{name}: ")), "{problem}");
    }
    let same = "k".repeat(32);
    let problem = read(&[("REFRESH_SECRET_KEY", &same)])
        .expect_err("the same key twice")
        .to_string();
    assert!(problem.contains("SECRET_KEY"), "{problem}");
}

#[test]
fn durations_are_capped_at_a_hundred_years() {
    let config = read(&[
        ("AUDIT_RETENTION_DAYS", "36500"),
        ("LOCKOUT_MINUTES", "52560000"),
    ])
    .expect("good settings");
    let century = Duration::from_secs(36_500 * 86_400);
    assert_eq!(
        (config.audit_retention, config.lockout.duration),
        (century, century)
    );
}

#[test]
fn origins_of_pages_and_apps_are_accepted() {
    let listed = "https://App.Example.org:443/path, capacitor://localhost, Tauri://LocalHost:1420/";
    let config = read(&[("CORS_ORIGINS", listed)]).expect("origins");
    assert_eq!(
        config.cors_origins,
        [
            "https://app.example.org",
            "capacitor://localhost",
            "tauri://localhost:1420"
        ]
    );
}

#[test]
fn otlp_settings_are_read_and_headers_are_not_printed() {
    assert_eq!(
        read(&[("OTEL_SERVICE_NAME", "tasks")])
            .expect("defaults")
            .traces,
        None
    );
    let settings = [
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "https://collector.example.org/otlp/",
        ),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "authorization=Bearer%20hush, x-team = a",
        ),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
    ];
    let traces = read(&settings)
        .expect("good settings")
        .traces
        .expect("a collector");
    assert_eq!(
        traces.endpoint.to_string(),
        "https://collector.example.org/otlp/v1/traces"
    );
    assert_eq!((traces.service.as_str(), traces.ratio), ("fasttrack", 0.25));
    let headers: Vec<_> = traces
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().ok()))
        .collect();
    assert_eq!(
        headers,
        [
            ("authorization", Some("Bearer hush")),
            ("x-team", Some("a"))
        ]
    );
    assert!(!format!("{traces:?}").contains("hush"));
}

#[test]
fn secrets_are_generated_once_private_and_not_printed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("secrets");
    let path = file.to_string_lossy().into_owned();
    let made = || {
        read(&[
            ("SECRET_KEY", ""),
            ("REFRESH_SECRET_KEY", ""),
            ("SECRETS_FILE", &path),
        ])
        .expect("keys")
    };
    let (first, second) = (made(), made());
    assert_eq!(first.secret_key, second.secret_key);
    assert_eq!(first.refresh_secret_key, second.refresh_secret_key);
    assert_ne!(first.secret_key, first.refresh_secret_key);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&file)
            .expect("the file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let kept = std::fs::read_to_string(&file).expect("the file");
    let printed = format!("{first:?}");
    assert!(
        kept.split_whitespace()
            .all(|key| key.len() >= 32 && !printed.contains(key)),
        "{printed}"
    );
}

#[test]
fn concurrent_starts_share_the_same_secrets() {
    const STARTS: usize = 4;
    for _ in 0..50 {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory
            .path()
            .join("secrets")
            .to_string_lossy()
            .into_owned();
        let at_once = Barrier::new(STARTS);
        let start = || {
            at_once.wait();
            let config = read(&[
                ("SECRET_KEY", ""),
                ("REFRESH_SECRET_KEY", ""),
                ("SECRETS_FILE", &path),
            ]);
            config
                .map(|config| (config.secret_key, config.refresh_secret_key))
                .expect("keys")
        };
        let keys: Vec<_> = std::thread::scope(|threads| {
            let starts: Vec<_> = (0..STARTS).map(|_| threads.spawn(start)).collect();
            starts
                .into_iter()
                .map(|start| start.join().expect("a start"))
                .collect()
        });
        assert!(keys.iter().all(|other| *other == keys[0]));
        assert_eq!(
            std::fs::read_dir(directory.path()).expect("files").count(),
            1,
            "no temporary file is left"
        );
    }
}

#[test]
fn trusted_document_with_an_overlong_id_is_rejected() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let path = file.path().to_string_lossy().into_owned();
    let listed = |id: &str| {
        std::fs::write(
            &path,
            serde_json::json!({ id: "{ __typename }" }).to_string(),
        )
        .expect("written");
        read(&[("TRUSTED_DOCUMENTS", &path)])
    };
    assert!(listed(&"x".repeat(128)).is_ok());
    let problem = listed(&"x".repeat(129)).expect_err("a long id").to_string();
    assert!(problem.starts_with("TRUSTED_DOCUMENTS: "), "{problem}");
}
