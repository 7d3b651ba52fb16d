//! `fasttrack config check`: every setting in effect and where it comes from, what cannot be used, and what each for
//! itself is fine but together is a risk. Looks at nothing but the settings, and makes no file.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use url::{Host, Url};

use super::report::Report;
use crate::config::{self, Config, Invalid, Lookup, kept_in};
use crate::db::Location;
use crate::db::postgres::Server;
use crate::network::have_everything;

/// What stands in for keys that are yet to be made.
const STAND_INS: [(&str, &str); 2] = [
    ("SECRET_KEY", "a key that the first start will make"),
    ("REFRESH_SECRET_KEY", "another one that it will make too"),
];
/// Passes times KiB: less makes guessing passwords cheaper than OWASP advises.
const LEAST_HASH_COST: u64 = 35_840;

/// Wrong passwords that one address may try in a day for one identifier; more is no lockout.
const MOST_GUESSES: u64 = 5_000;
/// Longer than this a stolen access token is good for too long.
const LONGEST_ACCESS: Duration = Duration::from_secs(3_600);

/// The settings, and what there is to say of them.
pub struct Checked {
    /// The settings as the server would have them, if they can be used. A key that is yet to be made is not among them.
    pub config: Option<Config>,
    /// Faults and risks.
    pub report: Report,
    rows: Vec<(&'static str, String, &'static str)>,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value, source) in &self.rows {
            writeln!(f, "{name:<36}{source:<13}{value}")?;
        }
        writeln!(f)?;
        self.report.fmt(f)
    }
}

/// Checks what is looked up; `file` is what `.env` says.
pub fn check(lookup: Lookup<'_>, file: &BTreeMap<String, String>) -> Checked {
    let given = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
    let complete = |name: &str| {
        let stand_in = || STAND_INS.iter().find(|(known, _)| *known == name).map(|(_, key)| (*key).to_owned());
        // Keys that are kept are read, so that a broken file is found; only those that are not there yet are replaced.
        given(name).or_else(|| if keys_are_missing(lookup) { stand_in() } else { None })
    };
    let mut report = Report::default();
    let mut faults: Vec<String> = config::NAMES
        .into_iter()
        .filter(|name| given(name).is_some())
        .filter_map(|name| alone(name, &given).err())
        .map(|fault| fault.to_string())
        .collect();
    let explained = Config::explained(&complete);
    if let (Err(fault), true) = (&explained, faults.is_empty()) {
        faults.push(fault.to_string());
    }
    let is_known = |name: &str| {
        config::NAMES.contains(&name) || name == "OTEL_RESOURCE_ATTRIBUTES" || name.starts_with("OTEL_BSP_")
    };
    for name in file.keys().filter(|name| !is_known(name)) {
        report.warn(format!("{name} in .env is no setting of this program: look for a typing error"));
    }
    let source = |name: &str| match given(name) {
        None => "default",
        Some(value) if file.get(name).is_some_and(|written| *written == value) => ".env",
        Some(_) => "environment",
    };
    let values = explained.as_ref().map(|(_, values)| values.clone()).unwrap_or_default();
    let rows = config::NAMES.into_iter().map(|name| {
        let value = given(name).or_else(|| values.get(name).cloned()).unwrap_or_default();
        let value = match (config::is_secret(name), given(name)) {
            (true, Some(key)) => format!("({} bytes)", key.trim().len()),
            (true, None) => String::new(),
            (false, _) => without_password(&value),
        };
        (name, value, source(name))
    });
    let rows = rows.collect();
    for fault in faults {
        report.fail(fault);
    }
    let config = explained.ok().map(|(config, _)| config);
    if let Some(config) = &config {
        match kept_in(lookup, &config.database) {
            Some(path) if keys_are_missing(lookup) => report.ok(format!("the keys will be made in {}", path.display())),
            Some(path) => report.ok(format!("the keys are in {}", path.display())),
            None => report.ok("the keys are given"),
        }
        risks(config, lookup, &mut report);
    }
    Checked { config, report, rows }
}

/// Reads one setting with all others left out, so that every one that cannot be used is told and not the first alone.
fn alone(name: &str, given: &dyn Fn(&str) -> Option<String>) -> Result<Config, Invalid> {
    let lookup = |other: &str| match STAND_INS.iter().find(|(known, _)| *known == other) {
        _ if other == name => given(other),
        Some((_, key)) => Some((*key).to_owned()),
        None => None,
    };
    Config::from(&lookup)
}

fn keys_are_missing(lookup: Lookup<'_>) -> bool {
    let url = lookup("DATABASE_URL").unwrap_or_default();
    let database = Location::parse(url.trim()).unwrap_or_else(|| Location::Sqlite("fasttrack.db".into()));
    kept_in(lookup, &database).is_some_and(|path| !path.exists())
}

/// A URL without its password; anything else as it is. What a password has of a URL's own signs is not always encoded: it
/// ends at the last `@` that can be its end.
fn without_password(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else { return value.to_owned() };
    let before_query = rest.split('?').next().unwrap_or_default();
    let end = before_query.rfind('@').or_else(|| rest.rfind('@')).unwrap_or_default();
    let shown = match rest[..end].split_once(':') {
        Some((user, _)) => format!("{user}:…{}", &rest[end..]),
        None => rest.to_owned(),
    };
    // libpq takes it there too.
    let shown = match shown.split_once('?') {
        Some((path, query)) => {
            let pairs = query.split('&').map(|pair| if pair.starts_with("password=") { "password=…" } else { pair });
            format!("{path}?{}", pairs.collect::<Vec<_>>().join("&"))
        }
        None => shown,
    };
    format!("{scheme}://{shown}")
}

/// Whether the host of a URL is this machine.
fn is_here(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        // Hosts of schemes that the standard does not know are not read as addresses.
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => true,
    } || url.host_str().is_some_and(|host| host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())))
}

fn risks(config: &Config, lookup: Lookup<'_>, report: &mut Report) {
    let given = |name: &str| lookup(name).is_some_and(|value| !value.trim().is_empty());
    if let Location::Postgres(url) = &config.database {
        if kept_in(lookup, &config.database).is_some() {
            report.warn(
                "PostgreSQL can serve several instances, but SECRET_KEY and REFRESH_SECRET_KEY are not both set: an \
                 instance elsewhere would make its own, and refuse the tokens of this one",
            );
        }
        if config.rate_limits.is_some() && config.redis_url.is_none() {
            report.warn("without REDIS_URL each of several instances counts rate limits for itself");
        }
        if Server::parse(url).is_ok_and(|server| server.is_exposed()) {
            report.warn(
                "the connection to PostgreSQL leaves this machine and its server is not verified: \
                 add sslmode=verify-full to DATABASE_URL, unless the network between is private",
            );
        }
    }
    if let Some(url) = config.redis_url.as_ref().map(|url| String::from_utf8_lossy(url.expose()).into_owned())
        && url.starts_with("redis://")
        && !is_here(&url)
    {
        report.warn(
            "the connection to Redis leaves this machine unencrypted: use rediss:// in REDIS_URL, unless the network \
             between is private",
        );
    }
    let public = !is_here(&config.public_url);
    if !given("PUBLIC_URL") && !config.listen.ip().is_loopback() {
        report.warn(format!("PUBLIC_URL is not set: mailed links begin with {}", config.public_url));
    } else if public && config.public_url.starts_with("http://") {
        report.warn("PUBLIC_URL begins with http://: passwords and tokens travel readable. Put TLS before the server");
    }
    if config.public_url.starts_with("https://") && config.trusted_proxies.is_empty() {
        report.warn(
            "TRUSTED_PROXIES is empty: whoever is not signed in shares the rate limit and the lockout of the proxy that \
             speaks TLS",
        );
    }
    if public && config.allowed_hosts.is_empty() {
        report.warn("ALLOWED_HOSTS is empty: the server answers under any name");
    }
    match config.smtp_url.as_ref().map(|url| String::from_utf8_lossy(url.expose()).into_owned()) {
        None if config.require_verified_email => {
            report.warn("REQUIRE_VERIFIED_EMAIL without SMTP_URL: nobody gets the mail that lets them log in");
        }
        None if public => report.warn("without SMTP_URL mail is written to the log, with the links in it"),
        None => {}
        Some(url) => {
            if url.starts_with("smtp://") && !url.contains("tls=required") && !is_here(&url) {
                report.warn("SMTP_URL does not insist on TLS: use smtps://, or add ?tls=required");
            }
            if !given("MAIL_FROM") {
                report.warn(format!("MAIL_FROM is not set: mail comes from {}", config.mail_from));
            }
        }
    }
    if let Some(traces) = &config.traces {
        let endpoint = traces.endpoint.to_string();
        if traces.endpoint.port_u16() == Some(4317) {
            report.warn("OTEL_EXPORTER_OTLP_ENDPOINT has the port of OTLP over gRPC: over HTTP it is mostly 4318");
        }
        if !traces.headers.is_empty() && endpoint.starts_with("http://") && !is_here(&endpoint) {
            report.warn("OTEL_EXPORTER_OTLP_HEADERS travel readable: OTEL_EXPORTER_OTLP_ENDPOINT begins with http://");
        }
    }
    if config.access_lifetime > LONGEST_ACCESS {
        report.warn("ACCESS_TOKEN_EXPIRE_MINUTES is over 60: a stolen access token is good for that long");
    }
    if have_everything(&config.trusted_proxies) {
        report.warn("TRUSTED_PROXIES has all addresses: any client may claim to come from any address");
    }
    let day = 86_400 * u64::try_from(config.lockout.failures).unwrap_or_default();
    if day / config.lockout.duration.as_secs().max(1) > MOST_GUESSES {
        report.warn("LOCKOUT_FAILURES in LOCKOUT_MINUTES are so many that lockout is off: passwords can be guessed");
    }
    if config.rate_limits.is_none() {
        report.warn("RATE_LIMIT_ENABLED is off: passwords can be guessed as fast as they are hashed");
    }
    let cost = config.hash_cost;
    if u64::from(cost.memory_kib) * u64::from(cost.passes) < LEAST_HASH_COST {
        report.warn("ARGON2_MEMORY_KIB × ARGON2_PASSES is low: a stolen database gives its passwords away sooner");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, shown) in [
            ("postgres://u:p@h:1,i:2/db?sslmode=require", "postgres://u:…@h:1,i:2/db?sslmode=require"),
            ("postgres://u@h/db?password=p&x=y", "postgres://u@h/db?password=…&x=y"),
            ("smtps://a%40b:p%40q:r@mail.example.org:465", "smtps://a%40b:…@mail.example.org:465"),
            ("redis://:p@h", "redis://:…@h"),
            ("postgres://u:p/q@h/db", "postgres://u:…@h/db"),
            ("postgres://u:p#q@r@h/db?x=y", "postgres://u:…@h/db?x=y"),
            ("postgres://u:p?q@h/db", "postgres://u:…@h/db"),
            ("postgres://h/db?password=p&user=a@b", "postgres://h/db?password=…&user=a@b"),
            ("redis://h:6379/0", "redis://h:6379/0"),
            ("sqlite://a@b:c.db", "sqlite://a@b:c.db"),
            ("fasttrack <a@b:c>", "fasttrack <a@b:c>"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }
}
