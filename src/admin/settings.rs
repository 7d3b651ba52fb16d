//! `fasttrack config check`: every setting in effect with its source, invalid settings, and risky
//! combinations. Reads only the settings, connects to nothing and creates no file.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use url::{Host, Url};

use super::report::Report;
use crate::config::{self, Config, InvalidSetting, Lookup, keys_file};
use crate::db::Location;
use crate::db::postgres::PgConnector;
use crate::network::cover_all_addresses;

/// Placeholders for keys that the first start will generate.
const PLACEHOLDER_KEYS: [(&str, &str); 2] = [
    ("SECRET_KEY", "a key that the first start will generate"),
    (
        "REFRESH_SECRET_KEY",
        "another key that the first start will generate",
    ),
];
/// Minimum cost of a password hash, in passes × KiB, as OWASP recommends for Argon2id.
const MIN_HASH_COST: u64 = 35_840;

/// Maximum password guesses per day from one address for one identifier. With more, the lockout is
/// ineffective.
const MAX_DAILY_GUESSES: u64 = 5_000;
/// Maximum recommended lifetime of an access token: a stolen one works until it expires.
const MAX_ACCESS_LIFETIME: Duration = Duration::from_secs(3_600);

/// The settings and the findings about them.
pub struct SettingsCheck {
    /// The configuration the server would use, if it is valid. Keys that the first start will
    /// generate are placeholders.
    pub config: Option<Config>,
    pub report: Report,
    rows: Vec<(&'static str, String, &'static str)>,
}

impl fmt::Display for SettingsCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value, source) in &self.rows {
            writeln!(f, "{name:<36}{source:<13}{value}")?;
        }
        writeln!(f)?;
        self.report.fmt(f)
    }
}

/// Checks the settings from `lookup`. `file` has the content of `.env`.
pub fn check(lookup: Lookup<'_>, file: &BTreeMap<String, String>) -> SettingsCheck {
    let given = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
    let complete = |name: &str| {
        let stand_in = || {
            PLACEHOLDER_KEYS
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, key)| (*key).to_owned())
        };
        // An existing key file is read, so that a damaged one is found.
        given(name).or_else(|| {
            if keys_are_missing(lookup) {
                stand_in()
            } else {
                None
            }
        })
    };
    let mut report = Report::default();
    let mut faults: Vec<String> = config::SETTING_NAMES
        .into_iter()
        .filter(|name| given(name).is_some())
        .filter_map(|name| read_setting(name, &given).err())
        .map(|fault| fault.to_string())
        .collect();
    let explained = Config::from_with_values(&complete);
    if let (Err(fault), true) = (&explained, faults.is_empty()) {
        faults.push(fault.to_string());
    }
    let is_known = |name: &str| {
        config::SETTING_NAMES.contains(&name)
            || name == "OTEL_RESOURCE_ATTRIBUTES"
            || name.starts_with("OTEL_BSP_")
    };
    for name in file.keys().filter(|name| !is_known(name)) {
        report.warn(format!(
            "{name} in .env is not a setting of this program: check its spelling"
        ));
    }
    let source = |name: &str| match given(name) {
        None => "default",
        Some(value) if file.get(name).is_some_and(|written| *written == value) => ".env",
        Some(_) => "environment",
    };
    let values = explained
        .as_ref()
        .map(|(_, values)| values.clone())
        .unwrap_or_default();
    let rows = config::SETTING_NAMES.into_iter().map(|name| {
        let value = given(name)
            .or_else(|| values.get(name).cloned())
            .unwrap_or_default();
        let value = match (config::is_secret(name), given(name)) {
            (true, Some(key)) => format!("({} bytes)", key.trim().len()),
            (true, None) => String::new(),
            (false, _) => redact_password(&value),
        };
        (name, value, source(name))
    });
    let rows = rows.collect();
    for fault in faults {
        report.fail(fault);
    }
    let config = explained.ok().map(|(config, _)| config);
    if let Some(config) = &config {
        match keys_file(lookup, &config.database) {
            Some(path) if keys_are_missing(lookup) => {
                report.ok(format!("keys will be created in {}", path.display()))
            }
            Some(path) => report.ok(format!("the keys are in {}", path.display())),
            None => report.ok("the keys are set"),
        }
        check_risks(config, lookup, &mut report);
    }
    SettingsCheck {
        config,
        report,
        rows,
    }
}

/// Parses one setting with all others unset, so that every invalid setting is reported, not only
/// the first.
fn read_setting(
    name: &str,
    given: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, InvalidSetting> {
    let lookup = |other: &str| match PLACEHOLDER_KEYS.iter().find(|(known, _)| *known == other) {
        _ if other == name => given(other),
        Some((_, key)) => Some((*key).to_owned()),
        None => None,
    };
    Config::from(&lookup)
}

fn keys_are_missing(lookup: Lookup<'_>) -> bool {
    let url = lookup("DATABASE_URL").unwrap_or_default();
    let database =
        Location::parse(url.trim()).unwrap_or_else(|| Location::Sqlite("fasttrack.db".into()));
    keys_file(lookup, &database).is_some_and(|path| !path.exists())
}

/// A URL without its password; other values unchanged.
///
/// Passwords often contain unencoded reserved characters, so the password ends at the last `@` that
/// can end it.
fn redact_password(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else {
        return value.to_owned();
    };
    let before_query = rest.split('?').next().unwrap_or_default();
    let end = before_query
        .rfind('@')
        .or_else(|| rest.rfind('@'))
        .unwrap_or_default();
    let redacted = match rest[..end].split_once(':') {
        Some((user, _)) => format!("{user}:…{}", &rest[end..]),
        None => rest.to_owned(),
    };
    // libpq also accepts a password in the query.
    let redacted = match redacted.split_once('?') {
        Some((path, query)) => {
            let pairs = query.split('&').map(|pair| {
                if pair.starts_with("password=") {
                    "password=…"
                } else {
                    pair
                }
            });
            format!("{path}?{}", pairs.collect::<Vec<_>>().join("&"))
        }
        None => redacted,
    };
    format!("{scheme}://{redacted}")
}

/// Whether the host of a URL is local.
fn is_local(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        // The URL standard parses IP addresses only for special schemes such as `http`, so others
        // are parsed below.
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => true,
    } || url.host_str().is_some_and(|host| host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())))
}

fn check_risks(config: &Config, lookup: Lookup<'_>, report: &mut Report) {
    let given = |name: &str| lookup(name).is_some_and(|value| !value.trim().is_empty());
    if let Location::Postgres(url) = &config.database {
        if keys_file(lookup, &config.database).is_some() {
            report.warn(
                "SECRET_KEY and REFRESH_SECRET_KEY are not both set: another instance on this PostgreSQL database \
                 could generate its own keys and refuse the tokens of this one",
            );
        }
        if config.rate_limits.is_some() && config.redis_url.is_none() {
            report.warn("without REDIS_URL each instance counts rate limits separately");
        }
        if PgConnector::parse(url).is_ok_and(|server| server.is_unverified()) {
            report.warn(
                "the connection to PostgreSQL leaves this machine and the server is not verified: \
                 add sslmode=verify-full to DATABASE_URL, unless the network is private",
            );
        }
    }
    if let Some(url) = config
        .redis_url
        .as_ref()
        .map(|url| String::from_utf8_lossy(url.expose()).into_owned())
        && url.starts_with("redis://")
        && !is_local(&url)
    {
        report.warn(
            "the connection to Redis leaves this machine unencrypted: use rediss:// in REDIS_URL, unless the network \
             is private",
        );
    }
    let public = !is_local(&config.public_url);
    if !given("PUBLIC_URL") && !config.listen.ip().is_loopback() {
        report.warn(format!(
            "PUBLIC_URL is not set: links in mail start with {}",
            config.public_url
        ));
    } else if public && config.public_url.starts_with("http://") {
        report.warn("PUBLIC_URL starts with http://: passwords and tokens are sent unencrypted. Put TLS in front");
    }
    if config.public_url.starts_with("https://") && config.trusted_proxies.is_empty() {
        report.warn(
            "TRUSTED_PROXIES is empty: all anonymous clients share the rate limit and the lockout of the proxy that \
             terminates TLS",
        );
    }
    if public && config.allowed_hosts.is_empty() {
        report.warn("ALLOWED_HOSTS is empty: the server accepts any host name");
    }
    if config
        .metrics
        .is_some_and(|address| !address.ip().is_loopback())
    {
        report.warn("METRICS_ADDR is not a loopback address: metrics need no authentication, keep its network private");
    }
    match config
        .smtp_url
        .as_ref()
        .map(|url| String::from_utf8_lossy(url.expose()).into_owned())
    {
        None if config.require_verified_email => {
            report.warn("REQUIRE_VERIFIED_EMAIL without SMTP_URL: users cannot receive the mail they need to log in");
        }
        None if public => {
            report.warn("without SMTP_URL mail is written to the log, including its links")
        }
        None => {}
        Some(url) => {
            if url.starts_with("smtp://") && !url.contains("tls=required") && !is_local(&url) {
                report.warn("SMTP_URL does not require TLS: use smtps://, or add ?tls=required");
            }
            if !given("MAIL_FROM") {
                report.warn(format!(
                    "MAIL_FROM is not set: mail is sent from {}",
                    config.mail_from
                ));
            }
        }
    }
    if let Some(traces) = &config.traces {
        let endpoint = traces.endpoint.to_string();
        if traces.endpoint.port_u16() == Some(4317) {
            report.warn("OTEL_EXPORTER_OTLP_ENDPOINT has the port of OTLP over gRPC: OTLP over HTTP usually has 4318");
        }
        if !traces.headers.is_empty() && endpoint.starts_with("http://") && !is_local(&endpoint) {
            report.warn("OTEL_EXPORTER_OTLP_HEADERS are sent unencrypted: use https:// in OTEL_EXPORTER_OTLP_ENDPOINT");
        }
    }
    if config.access_lifetime > MAX_ACCESS_LIFETIME {
        report.warn("ACCESS_TOKEN_EXPIRE_MINUTES is over 60: a stolen access token stays valid for that long");
    }
    if cover_all_addresses(&config.trusted_proxies) {
        report.warn("TRUSTED_PROXIES contains all addresses: any client can forge its address");
    }
    let day = 86_400 * u64::try_from(config.lockout.failures).unwrap_or_default();
    if day / config.lockout.duration.as_secs().max(1) > MAX_DAILY_GUESSES {
        report.warn("LOCKOUT_FAILURES per LOCKOUT_MINUTES is too high: the lockout does not prevent password guessing");
    }
    if config.rate_limits.is_none() {
        report.warn(
            "RATE_LIMIT_ENABLED is off: only the cost of hashing slows down password guessing",
        );
    }
    let cost = config.hash_cost;
    if u64::from(cost.memory_kib) * u64::from(cost.passes) < MIN_HASH_COST {
        report.warn("ARGON2_MEMORY_KIB × ARGON2_PASSES is low: passwords in a stolen database are cheaper to crack");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, redacted) in [
            (
                "postgres://u:p@h:1,i:2/db?sslmode=require",
                "postgres://u:…@h:1,i:2/db?sslmode=require",
            ),
            (
                "postgres://u@h/db?password=p&x=y",
                "postgres://u@h/db?password=…&x=y",
            ),
            (
                "smtps://a%40b:p%40q:r@mail.example.org:465",
                "smtps://a%40b:…@mail.example.org:465",
            ),
            ("redis://:p@h", "redis://:…@h"),
            ("postgres://u:p/q@h/db", "postgres://u:…@h/db"),
            ("postgres://u:p#q@r@h/db?x=y", "postgres://u:…@h/db?x=y"),
            ("postgres://u:p?q@h/db", "postgres://u:…@h/db"),
            (
                "postgres://h/db?password=p&user=a@b",
                "postgres://h/db?password=…&user=a@b",
            ),
            ("redis://h:6379/0", "redis://h:6379/0"),
            ("sqlite://a@b:c.db", "sqlite://a@b:c.db"),
            ("fasttrack <a@b:c>", "fasttrack <a@b:c>"),
        ] {
            assert_eq!(redact_password(url), redacted);
        }
    }
}
