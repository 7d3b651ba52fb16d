//! GraphiQL. The files that `playground/` builds are embedded in the binary.
//!
//! They are stored as gzip and sent unchanged; they are decompressed only for the rare client that
//! does not accept gzip. Brotli is no option, because browsers accept it only over TLS.

use std::borrow::Cow;
use std::io::Read;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use flate2::read::GzDecoder;
use rust_embed::RustEmbed;

/// The built page. Empty if it was not built before the binary.
#[derive(RustEmbed)]
#[folder = "playground/dist"]
#[allow_missing = true]
struct Assets;

const CONTENT_SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     font-src 'self' data:; connect-src 'self' ws: wss:; worker-src 'self' blob:; base-uri 'none'; \
     form-action 'self'; frame-ancestors 'none'",
);

/// Shown if the page was not built.
const FALLBACK: &str = include_str!("graphiql.html");

/// `/graphiql` and its assets. Asset names contain a content hash, so they are cached forever.
pub fn routes() -> Router {
    let asset = async |Path(path): Path<String>, headers: HeaderMap| {
        let file = file(&path, &headers, "public, max-age=31536000, immutable");
        file.unwrap_or_else(|| StatusCode::NOT_FOUND.into_response())
    };
    Router::new()
        .route("/graphiql", get(page))
        .route("/graphiql/", get(page))
        .route("/graphiql/{*path}", get(asset))
}

async fn page(headers: HeaderMap) -> Response {
    let fallback = || {
        (
            [(header::CONTENT_SECURITY_POLICY, FALLBACK_POLICY)],
            Html(FALLBACK),
        )
            .into_response()
    };
    file("index.html", &headers, "no-cache").unwrap_or_else(fallback)
}

/// The fallback page has an inline script and inline styles.
const FALLBACK_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);

fn file(path: &str, headers: &HeaderMap, caching: &'static str) -> Option<Response> {
    let packed = Assets::get(&format!("{path}.gz"))?.data;
    let kind = mime_guess::from_path(path).first_or_octet_stream();
    let about = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_str(kind.as_ref()).ok()?,
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static(caching)),
        (header::VARY, HeaderValue::from_static("accept-encoding")),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    ];
    if !accepts_gzip(headers) {
        let mut unpacked = Vec::new();
        GzDecoder::new(&*packed).read_to_end(&mut unpacked).ok()?;
        return Some((about, unpacked).into_response());
    }
    let packed = match packed {
        Cow::Borrowed(packed) => Bytes::from_static(packed),
        Cow::Owned(packed) => packed.into(),
    };
    Some((about, [(header::CONTENT_ENCODING, "gzip")], packed).into_response())
}

/// Whether `Accept-Encoding` allows gzip (RFC 9110 section 12.5.3). Without the header the response
/// is not compressed, because the client may not decompress it.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let codings = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok());
    codings.flat_map(|value| value.split(',')).any(|coding| {
        let (name, quality) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = quality
            .trim()
            .strip_prefix("q=")
            .is_some_and(|quality| quality.parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            header::ACCEPT_ENCODING,
            HeaderValue::from_str(value).unwrap(),
        )])
    }

    #[test]
    fn gzip_is_sent_to_who_asks_for_it() {
        for asked in ["gzip", "GZIP", "br, gzip", "deflate, gzip;q=0.5, *;q=0"] {
            assert!(accepts_gzip(&accepting(asked)), "{asked}");
        }
        for not in ["", "br", "identity", "gzip;q=0", "gzip; q=0.0, br"] {
            assert!(!accepts_gzip(&accepting(not)), "{not}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }
}
