//! CSRF protection: which origins may make a browser send requests. The server's own and the
//! configured ones may.
//!
//! A page of another site can send "simple requests" (GET, or POST with a form content type)
//! without a preflight, and open a WebSocket. A GraphQL POST is safe because it requires
//! `application/json`, which triggers a preflight. This module covers the rest: GET, forms under
//! `/auth`, and WebSockets by the `Origin` that every browser sends.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use url::Url;

use super::negotiate::accepts_graphql;
use crate::config::Config;

/// The requested host, with its port.
pub fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let named = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    uri.authority().map(Authority::as_str).or(named)
}

/// Whether the origin of a request is allowed. Clients other than browsers send no `Origin` and are
/// allowed.
pub fn is_allowed(uri: &Uri, headers: &HeaderMap, config: &Config) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    let own = origin.split_once("://").map(|(_, authority)| authority);
    (own.is_some() && own == host(uri, headers))
        || config.cors_origins.iter().any(|known| known == origin)
        || is_own(origin, &config.public_url)
}

/// Whether this is the origin of `PUBLIC_URL`. A proxy may forward requests under another host
/// name.
fn is_own(origin: &str, public_url: &str) -> bool {
    let public = Url::parse(public_url).map(|url| url.origin());
    public.is_ok_and(|public| public.is_tuple() && public.ascii_serialization() == origin)
}

/// Whether a page of another site makes the browser send this request. `Sec-Fetch-Site`, which
/// pages cannot set, decides if it is present; otherwise `Origin` does.
pub fn is_cross_site(uri: &Uri, headers: &HeaderMap, config: &Config) -> bool {
    match headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
        Some(b"same-origin" | b"none") => false,
        Some(_) => !headers.contains_key(header::ORIGIN) || !is_allowed(uri, headers, config),
        None => !is_allowed(uri, headers, config),
    }
}

/// Whether a GET may be a simple request from a page of another site.
///
/// A cross-site request is allowed only from a known origin. A request without `Sec-Fetch-Site`
/// comes from an old browser or from another client; `Accept-Language` identifies the browser. It
/// must then name a GraphQL media type in `Accept`, as no image, script, link or form does.
pub fn is_cross_site_simple(uri: &Uri, headers: &HeaderMap, config: &Config) -> bool {
    if !is_allowed(uri, headers, config) {
        return true;
    }
    // These headers trigger a preflight in a browser.
    if headers.contains_key(header::AUTHORIZATION)
        || headers.contains_key("graphql-require-preflight")
    {
        return false;
    }
    if headers.contains_key("sec-fetch-site") {
        return is_cross_site(uri, headers, config);
    }
    let program =
        !headers.contains_key(header::ACCEPT_LANGUAGE) || headers.contains_key("sec-fetch-mode");
    !program && !accepts_graphql(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>()
    }

    #[test]
    fn cross_site_pages_are_recognized() {
        let settings = [
            ("SECRET_KEY", "the key of this test's access tokens"),
            (
                "REFRESH_SECRET_KEY",
                "the key of this test's refresh tokens",
            ),
            ("CORS_ORIGINS", "https://app.example.org"),
        ];
        let setting = |name: &str| {
            settings
                .iter()
                .find(|(set, _)| *set == name)
                .map(|(_, value)| (*value).to_owned())
        };
        let config = Config::from(&setting).unwrap();
        let asked = |headers: &[(&'static str, &'static str)]| {
            is_cross_site_simple(&Uri::from_static("/graphql"), &of(headers), &config)
        };
        let (foreign, known) = (
            ("origin", "https://evil.example"),
            ("origin", "https://app.example.org"),
        );
        let (cross, own) = (
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-origin"),
        );
        let browser = ("accept-language", "en");
        for simple in [
            &[cross] as &[_],
            &[cross, ("accept", "application/json")],
            &[("sec-fetch-site", "same-site")],
            &[foreign, cross],
            &[foreign, ("authorization", "Bearer x")],
            &[("origin", "null")],
            &[browser, ("accept", "image/png,*/*")],
        ] {
            assert!(asked(simple), "{simple:?}");
        }
        for meant in [
            &[] as &[_],
            &[own],
            &[known, cross],
            &[("sec-fetch-site", "none"), browser],
            &[cross, ("graphql-require-preflight", "1")],
            &[browser, ("accept", "application/graphql-response+json")],
            &[
                ("host", "localhost:8000"),
                ("origin", "http://localhost:8000"),
                own,
            ],
        ] {
            assert!(!asked(meant), "{meant:?}");
        }
    }
}
