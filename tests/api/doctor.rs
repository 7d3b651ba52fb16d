//! `fasttrack config check` and `fasttrack doctor`: their findings, their output, and that they
//! change nothing.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::{Command, Output};

use fasttrack::admin::report::{Report, Severity};
use fasttrack::admin::{doctor, settings};
use fasttrack::time::Clock;

use crate::harness::{Database, Mailbox, Server, is_postgres};

const KEYS: [(&str, &str); 2] = [
    ("SECRET_KEY", "one key that is long enough to be one"),
    ("REFRESH_SECRET_KEY", "another one that is long enough too"),
];

fn look_up(values: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
    let values: HashMap<String, String> = KEYS
        .iter()
        .chain(values)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    move |name| values.get(name).cloned()
}

/// Worst level and report of `config check`.
fn checked(values: &[(&str, &str)]) -> (Severity, String) {
    let checked = settings::check(&look_up(values), &BTreeMap::new());
    (checked.report.worst(), checked.report.to_string())
}

/// Worst level and report of `doctor`.
async fn examined(values: &[(&str, &str)]) -> (Severity, String) {
    let lookup = look_up(values);
    let settings::SettingsCheck {
        config, mut report, ..
    } = settings::check(&lookup, &BTreeMap::new());
    doctor::run(
        &config.expect("good settings"),
        &lookup,
        &Clock::system(),
        &mut report,
    )
    .await;
    (report.worst(), report.to_string())
}

fn program(command: &[&str], directory: &Path, settings: &[(&str, &str)]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_fasttrack"));
    program
        .args(command)
        .current_dir(directory)
        .env_clear()
        .envs(settings.iter().copied());
    program.output().expect("a program that runs")
}

#[test]
fn each_setting_is_listed_with_its_source_and_without_secrets() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = "PASSWORD_POLICY=length\nDATABASE_CONNECTIONS=3\nRATE_LIMITS_ENABLED=false\n\
                OTEL_RESOURCE_ATTRIBUTES=team=a\nOTEL_BSP_MAX_QUEUE_SIZE=100\n";
    std::fs::write(directory.path().join(".env"), file).expect("a file");
    let environment = [
        ("DATABASE_URL", "postgres://ada:hush@127.0.0.1/tasks"),
        ("DATABASE_CONNECTIONS", "5"),
        ("SECRET_KEY", "0123456789012345678901234567890123456789"),
    ];
    let told = program(&["config", "check"], directory.path(), &environment);
    let text = String::from_utf8(told.stdout).expect("text");
    assert!(told.status.success(), "{text}");
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    for line in [
        vec![
            "DATABASE_URL",
            "environment",
            "postgres://ada:…@127.0.0.1/tasks",
        ],
        vec!["DATABASE_CONNECTIONS", "environment", "5"],
        vec!["PASSWORD_POLICY", ".env", "length"],
        vec!["SECRET_KEY", "environment", "(40", "bytes)"],
        vec!["REFRESH_SECRET_KEY", "default"],
        vec!["LISTEN_ADDR", "default", "127.0.0.1:8000"],
        vec![
            "VERIFY_EMAIL_URL",
            "default",
            "http://127.0.0.1:8000/auth/verify-email",
        ],
    ] {
        assert!(lines.contains(&line), "{line:?} in {text}");
    }
    for name in fasttrack::config::SETTING_NAMES {
        assert!(
            lines.iter().any(|line| line.first() == Some(&name)),
            "{name}"
        );
    }
    assert!(
        text.contains("RATE_LIMITS_ENABLED in .env is not a setting"),
        "{text}"
    );
    assert_eq!(text.matches("is not a setting").count(), 1, "{text}");
    assert!(
        !text.contains("hush") && !text.contains("0123456789"),
        "{text}"
    );
    assert_eq!(
        std::fs::read_dir(directory.path()).expect("files").count(),
        1,
        "no keys were generated"
    );
}

#[test]
fn every_invalid_setting_is_reported_and_the_program_fails() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let faults = [
        ("LISTEN_ADDR", "here"),
        ("SECRET_KEY", "short"),
        ("LOCKOUT_MINUTES", "0"),
    ];
    for command in [&["config", "check"][..], &["doctor"]] {
        let told = program(command, directory.path(), &faults);
        let text = String::from_utf8(told.stdout).expect("text");
        assert!(!told.status.success());
        for (name, _) in faults {
            assert!(text.contains(&format!("fail  {name}: ")), "{text}");
        }
    }
    let same = [("SECRET_KEY", KEYS[0].1), ("REFRESH_SECRET_KEY", KEYS[0].1)];
    let (worst, text) = checked(&same);
    assert_eq!(
        worst,
        Severity::Fail,
        "an invalid combination of settings: {text}"
    );
}

#[test]
fn risky_combinations_are_warned_about() {
    let remote = ("DATABASE_URL", "postgres://db.example.org/tasks");
    let https = ("PUBLIC_URL", "https://tasks.example.org");
    for (settings, warning) in [
        (
            &[remote, ("SECRET_KEY", "")][..],
            "SECRET_KEY and REFRESH_SECRET_KEY are not both set",
        ),
        (&[remote], "without REDIS_URL"),
        (&[remote], "sslmode=verify-full"),
        (&[("LISTEN_ADDR", "0.0.0.0:80")], "PUBLIC_URL is not set"),
        (
            &[("PUBLIC_URL", "http://tasks.example.org")],
            "sent unencrypted",
        ),
        (&[https], "TRUSTED_PROXIES is empty"),
        (&[https], "ALLOWED_HOSTS is empty"),
        (&[https], "mail is written to the log"),
        (
            &[("METRICS_ADDR", "0.0.0.0:9464")],
            "METRICS_ADDR is not a loopback address",
        ),
        (
            &[("REQUIRE_VERIFIED_EMAIL", "true")],
            "users cannot receive the mail",
        ),
        (
            &[("SMTP_URL", "smtp://mail.example.org")],
            "does not require TLS",
        ),
        (
            &[("SMTP_URL", "smtps://mail.example.org")],
            "MAIL_FROM is not set",
        ),
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")],
            "OTLP over gRPC",
        ),
        (
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel.example.org"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "key=x"),
            ],
            "sent unencrypted",
        ),
        (
            &[("RATE_LIMIT_ENABLED", "off")],
            "RATE_LIMIT_ENABLED is off",
        ),
        (
            &[("ACCESS_TOKEN_EXPIRE_MINUTES", "61")],
            "ACCESS_TOKEN_EXPIRE_MINUTES",
        ),
        (
            &[("TRUSTED_PROXIES", "10.0.0.0/8, 0.0.0.0/0")],
            "TRUSTED_PROXIES contains all addresses",
        ),
        (
            &[("TRUSTED_PROXIES", "::/0")],
            "TRUSTED_PROXIES contains all addresses",
        ),
        (
            &[("TRUSTED_PROXIES", "0.0.0.0/1, 128.0.0.0/1")],
            "TRUSTED_PROXIES contains all addresses",
        ),
        (
            &[("LOCKOUT_FAILURES", "1000000")],
            "the lockout does not prevent",
        ),
        (&[("LOCKOUT_MINUTES", "1")], "the lockout does not prevent"),
        (&[("ARGON2_MEMORY_KIB", "4096")], "ARGON2_MEMORY_KIB"),
    ] {
        let (worst, text) = checked(settings);
        assert_eq!(worst, Severity::Warn, "{settings:?}: {text}");
        assert!(
            text.lines()
                .any(|line| line.starts_with("warn ") && line.contains(warning)),
            "{settings:?}: {text}"
        );
    }
    let careful = [
        (
            "DATABASE_URL",
            "postgres://db.example.org/tasks?sslmode=disable",
        ),
        ("REDIS_URL", "redis://127.0.0.1"),
        https,
        ("TRUSTED_PROXIES", "10.0.0.0/8"),
        ("ALLOWED_HOSTS", "tasks.example.org"),
        ("SMTP_URL", "smtp://mail.example.org?tls=required"),
        ("MAIL_FROM", "tasks@example.org"),
    ];
    let (_, text) = checked(&careful);
    assert_eq!(
        text.matches("warn ").count(),
        1,
        "only of PostgreSQL without TLS: {text}"
    );
    assert_eq!(checked(&[]).0, Severity::Ok);
}

#[tokio::test]
async fn doctor_passes_on_a_healthy_server_and_changes_nothing() {
    let mailbox = Mailbox::open().await;
    let server = Server::start().await;
    server.admin("root").await;
    let before = server.dump().await;
    let (url, listen, smtp) = (
        server.database().url().to_owned(),
        server.address.to_string(),
        mailbox.url(),
    );
    let (worst, text) = examined(&[
        ("DATABASE_URL", &url),
        ("LISTEN_ADDR", &listen),
        ("SMTP_URL", &smtp),
    ])
    .await;
    assert_ne!(worst, Severity::Fail, "{text}");
    let mut findings = vec![
        "migrations are applied",
        "there is an admin",
        "and is ready",
        "SMTP server",
        "no mail keeps failing",
    ];
    findings.extend(if is_postgres() {
        [
            "PostgreSQL 1",
            "fsync is on",
            "log is settled",
            "connections are in use",
            "and of PostgreSQL agree",
        ]
    } else {
        [
            "SQLite 3",
            "quick_check and foreign_key_check find nothing",
            "WAL",
            "are free in",
            "survives a power cut",
        ]
    });
    for finding in findings {
        assert!(
            text.lines()
                .any(|line| line.starts_with("ok ") && line.contains(finding)),
            "{finding} in {text}"
        );
    }
    assert_eq!(server.dump().await, before);
}

#[tokio::test]
async fn doctor_finds_defects() {
    let database = Database::fresh().await;
    let url = database.url().to_owned();
    let found = async |settings: &[(&str, &str)]| {
        let mut all = vec![
            ("DATABASE_URL", url.as_str()),
            ("LISTEN_ADDR", "127.0.0.1:0"),
        ];
        all.extend(settings);
        examined(&all).await
    };
    let fails = |(worst, text): (Severity, String), why: &str| {
        assert_eq!(worst, Severity::Fail, "{text}");
        assert!(
            text.lines()
                .any(|line| line.starts_with("fail ") && line.contains(why)),
            "{why} in {text}"
        );
    };
    let (worst, text) = found(&[]).await;
    assert!(
        worst < Severity::Fail && text.contains("there is no admin"),
        "{text}"
    );
    fails(
        found(&[("REDIS_URL", "redis://127.0.0.1:1")]).await,
        "Redis",
    );
    fails(found(&[("SMTP_URL", "smtp://127.0.0.1:1")]).await, "SMTP");
    let (worst, text) = found(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")]).await;
    assert!(
        worst < Severity::Fail && text.contains("warn  the trace collector: "),
        "{text}"
    );
    let event = "INSERT INTO events (id, kind, occurred_at, data, xid)";
    if is_postgres() {
        let (_, text) = found(&[]).await;
        let most = text
            .split_once(" connections are in use")
            .and_then(|(told, _)| told.rsplit(' ').next());
        let most = most.expect("the maximum number of connections");
        let (_, text) = found(&[("DATABASE_CONNECTIONS", most)]).await;
        assert!(text.contains("fewer than one node needs"), "{text}");
        database
            .execute(&format!(
                "{event} VALUES (gen_random_uuid(), 1, now(), '{{}}', 1::bigint << 60)"
            ))
            .await;
        let (_, text) = found(&[]).await;
        assert!(text.contains("restored from another server"), "{text}");
        let nowhere = "postgres://nobody:hush@127.0.0.1:1/nothing";
        let (worst, text) =
            examined(&[("DATABASE_URL", nowhere), ("LISTEN_ADDR", "127.0.0.1:0")]).await;
        assert!(!text.contains("hush"), "{text}");
        fails((worst, text), "error connecting");
    } else {
        let orphan = "PRAGMA foreign_keys = OFF; INSERT INTO task_labels VALUES (zeroblob(16), zeroblob(16))";
        database.execute(orphan).await;
        fails(
            found(&[]).await,
            "a row of task_labels refers to a missing row of",
        );
    }
    database
        .execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('29990101000000')")
        .await;
    fails(found(&[]).await, "newer version");
    database.remove().await;
}

#[tokio::test]
async fn doctor_accepts_a_missing_database_without_creating_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let url = format!("sqlite://{}", directory.path().join("new.db").display());
    let (worst, text) = examined(&[("DATABASE_URL", &url), ("LISTEN_ADDR", "127.0.0.1:0")]).await;
    assert!(
        worst < Severity::Fail && text.contains("the first start creates it"),
        "{text}"
    );
    assert_eq!(
        std::fs::read_dir(directory.path()).expect("files").count(),
        0
    );
    if let Some(bare) = Database::bare().await {
        let (worst, text) =
            examined(&[("DATABASE_URL", bare.url()), ("LISTEN_ADDR", "127.0.0.1:0")]).await;
        assert!(
            worst < Severity::Fail && text.contains("the first start creates the tables"),
            "{text}"
        );
        assert!(bare.rows().await.is_empty());
        bare.remove().await;
    }
}

#[test]
fn report_level_is_the_worst_finding() {
    let mut report = Report::default();
    assert_eq!(
        (report.worst(), report.to_string()),
        (Severity::Ok, String::new())
    );
    report.check(true, "fine", "not so fine");
    report.warn("hm");
    assert_eq!(report.worst(), Severity::Warn);
    report.fail("no");
    report.ok("yes");
    assert_eq!(
        (report.worst(), report.to_string().as_str()),
        (
            Severity::Fail,
            "ok    fine\nwarn  hm\nfail  no\nok    yes\n"
        )
    );
}
