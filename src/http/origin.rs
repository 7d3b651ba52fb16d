//! Which pages may make a browser call: our own and the listed ones.
//!
//! A page of another site can send a "simple request" without being asked (GET, or POST with a form's content type), and
//! open a WebSocket. An operation by POST is safe because only `application/json` is read, which a browser asks about
//! first. GET is decided here and so is `/auth`, where forms are read, and a socket by the `Origin` that every browser
//! names.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use url::Url;

use super::negotiate::asks_for_graphql;
use crate::config::Config;

/// The name under which the server was asked, with its port.
pub fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let named = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    uri.authority().map(Authority::as_str).or(named)
}

/// Whether the page that makes the call is ours or listed. Whoever is no browser names none.
pub fn is_known(uri: &Uri, headers: &HeaderMap, config: &Config) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    let own = origin.split_once("://").map(|(_, authority)| authority);
    (own.is_some() && own == host(uri, headers))
        || config.cors_origins.iter().any(|known| known == origin)
        || is_public(origin, &config.public_url)
}

/// Whether the server's pages have this origin for those whom a proxy lets in, which may ask under another name.
fn is_public(origin: &str, public_url: &str) -> bool {
    let public = Url::parse(public_url).map(|url| url.origin());
    public.is_ok_and(|public| public.is_tuple() && public.ascii_serialization() == origin)
}

/// Whether a page of another site makes a browser call. A browser says so (`Sec-Fetch-Site`, which no page can set), or
/// names the page.
pub fn is_cross_site(uri: &Uri, headers: &HeaderMap, config: &Config) -> bool {
    match headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
        Some(b"same-origin" | b"none") => false,
        Some(_) => !headers.contains_key(header::ORIGIN) || !is_known(uri, headers, config),
        None => !is_known(uri, headers, config),
    }
}

/// Whether a GET can be something that a page of another site makes a browser do unasked.
///
/// What comes from another site passes only if its page is known. Without `Sec-Fetch-Site` it is a program or an old
/// browser, and that one betrays itself by `Accept-Language`: then `Accept` must name a type of GraphQL's, as no image,
/// script, link or form does.
pub fn is_cross_site_simple(uri: &Uri, headers: &HeaderMap, config: &Config) -> bool {
    if !is_known(uri, headers, config) {
        return true;
    }
    // With one of these a browser has asked us first.
    if headers.contains_key(header::AUTHORIZATION) || headers.contains_key("graphql-require-preflight") {
        return false;
    }
    if headers.contains_key("sec-fetch-site") {
        return is_cross_site(uri, headers, config);
    }
    let program = !headers.contains_key(header::ACCEPT_LANGUAGE) || headers.contains_key("sec-fetch-mode");
    !program && !asks_for_graphql(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect::<HeaderMap>()
    }

    #[test]
    fn pages_of_other_sites_are_told_from_everybody_else() {
        let settings = [
            ("SECRET_KEY", "the key of this test's access tokens"),
            ("REFRESH_SECRET_KEY", "the key of this test's refresh tokens"),
            ("CORS_ORIGINS", "https://app.example.org"),
        ];
        let setting = |name: &str| settings.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
        let config = Config::from(&setting).unwrap();
        let asked = |headers: &[(&'static str, &'static str)]| {
            is_cross_site_simple(&Uri::from_static("/graphql"), &of(headers), &config)
        };
        let (foreign, known) = (("origin", "https://evil.example"), ("origin", "https://app.example.org"));
        let (cross, own) = (("sec-fetch-site", "cross-site"), ("sec-fetch-site", "same-origin"));
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
            &[("host", "localhost:8000"), ("origin", "http://localhost:8000"), own],
        ] {
            assert!(!asked(meant), "{meant:?}");
        }
    }
}
