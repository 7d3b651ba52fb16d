//! Which pages may make a browser call: our own and the listed ones.
//!
//! A page of another site can send a "simple request" without being asked (GET, or POST with a form's content type), and
//! open a WebSocket. POST is safe because only `application/json` is read, which a browser asks about first. GET is
//! decided here, and a socket by the `Origin` that every browser names.

use axum::http::{HeaderMap, header};

use super::negotiate::asks_for_graphql;

/// Whether the page that makes the call is ours or listed. Whoever is no browser names none.
pub fn is_known(headers: &HeaderMap, listed: &[String]) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let own = origin.split_once("://").map(|(_, authority)| authority);
    (own.is_some() && own == host) || listed.iter().any(|known| known == origin)
}

/// Whether a GET can be something that a page of another site makes a browser do unasked.
///
/// A browser says where a request comes from (`Sec-Fetch-Site`, which no page can set); what comes from another site
/// passes only if its page is known. Without that header it is a program or an old browser, and that one betrays itself
/// by `Accept-Language`: then `Accept` must name a type of GraphQL's, as no image, script, link or form does.
pub fn is_cross_site_simple(headers: &HeaderMap, listed: &[String]) -> bool {
    if !is_known(headers, listed) {
        return true;
    }
    // With one of these a browser has asked us first.
    if headers.contains_key(header::AUTHORIZATION) || headers.contains_key("graphql-require-preflight") {
        return false;
    }
    match headers.get("sec-fetch-site").map(|site| site.as_bytes()) {
        Some(b"same-origin" | b"none") => false,
        Some(_) => !headers.contains_key(header::ORIGIN),
        None => {
            let program = !headers.contains_key(header::ACCEPT_LANGUAGE) || headers.contains_key("sec-fetch-mode");
            !program && !asks_for_graphql(headers)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect::<HeaderMap>()
    }

    #[test]
    fn pages_of_other_sites_are_told_from_everybody_else() {
        let listed = ["https://app.example.org".to_owned()];
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
            assert!(is_cross_site_simple(&of(simple), &listed), "{simple:?}");
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
            assert!(!is_cross_site_simple(&of(meant), &listed), "{meant:?}");
        }
    }
}
