//! What the `/auth` routes take and answer, as an OpenAPI 3.1 document at `/docs/openapi.json`, and a page to read and
//! try it at `/docs`.
//!
//! The document is made of the routes themselves: a handler's path and method are read from its annotation by the
//! router too, so that neither has a route that the other has not. What an operation is refused with, its body says by
//! [`Refusals`].

use std::collections::BTreeMap;
use std::marker::PhantomData;

use axum::Router;
use axum::http::header;
use axum::response::Html;
use axum::routing::get;
use bytes::Bytes;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::response::{Response as Answer, ResponseBuilder};
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{IntoResponses, Modify, OpenApi};

use super::recovery::POLICY;
use super::{auth, problem};
use crate::error::{Code, FaultCode};

/// `/docs` and the document.
pub fn routes() -> Router {
    let json = Bytes::from(document());
    let file = |kind: &'static str, file: Bytes| {
        get(async move || ([(header::CONTENT_TYPE, kind)], [(header::CACHE_CONTROL, "no-cache")], file))
    };
    Router::new()
        .route("/docs", get(async || ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(include_str!("docs.html")))))
        .route("/docs/page.js", file("text/javascript", Bytes::from_static(include_bytes!("docs.js"))))
        .route("/docs/openapi.json", file("application/json", json))
}

/// The document in JSON.
pub fn document() -> String {
    let routes = auth::routes().into_openapi();
    let document = Api::openapi().merge_from(routes);
    // What serde writes of these types cannot fail.
    document.to_pretty_json().unwrap_or_default()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "fasttrack: accounts",
        description = "Sign-up, tokens and account mail. Everything else is GraphQL, at `/graphql`.\n\n\
            Bodies are read as `application/json` or as a form, up to 8 KiB. Errors are problem documents (RFC 9457), \
            whose `code` is stable. Every answer has an `X-Request-Id` that finds it in the server's log, and \
            `Cache-Control: no-store`; every one that was counted has `RateLimit-Limit`, `RateLimit-Remaining` and \
            `RateLimit-Reset` (in seconds).",
    ),
    components(schemas(problem::Document<'static>)),
    modifiers(&AccessToken),
)]
struct Api;

struct AccessToken;

impl Modify for AccessToken {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("access_token", SecurityScheme::Http(bearer));
    }
}

/// What an operation is refused with, besides what any may be refused with.
pub trait Refusals {
    /// Whether it reads a body.
    const READS_BODY: bool = true;
    /// Its codes.
    const CODES: &[Code] = &[];
    /// What can be wrong with its fields.
    const FAULTS: &[FaultCode] = &[];
}

/// The problem documents of an operation, by status.
pub struct Refused<T>(PhantomData<T>);

impl<T: Refusals> IntoResponses for Refused<T> {
    fn responses() -> BTreeMap<String, RefOr<Answer>> {
        let mut codes: BTreeMap<u16, Vec<(&str, &str)>> = BTreeMap::new();
        let mut add = |status, code, meaning| codes.entry(status).or_default().push((code, meaning));
        let of_any = [Code::Forbidden, Code::RateLimited, Code::Internal, Code::Unavailable];
        let of_bodies = [Code::BadRequest, Code::PayloadTooLarge, Code::UnsupportedMediaType];
        let of_bodies = of_bodies.iter().filter(|_| T::READS_BODY);
        for code in of_bodies.chain(T::CODES).chain(&of_any) {
            add(code.status(), code.as_str(), code.meaning().trim_start_matches("REST: "));
        }
        if T::READS_BODY {
            add(422, Code::BadRequest.as_str(), "A member is missing or of the wrong type.");
        }
        for fault in T::FAULTS {
            let status = if *fault == FaultCode::Taken { 409 } else { 422 };
            add(status, fault.as_str(), "`errors` says of which field.");
        }
        codes.into_iter().map(|(status, codes)| (status.to_string(), RefOr::T(refusal(status, &codes)))).collect()
    }
}

fn refusal(status: u16, codes: &[(&str, &str)]) -> Answer {
    let description: Vec<String> = codes.iter().map(|(code, meaning)| format!("`{code}`: {meaning}")).collect();
    let code = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(codes.iter().map(|(code, _)| *code)));
    let narrowed = ObjectBuilder::new().property("code", code);
    let schema = AllOfBuilder::new().item(Ref::from_schema_name("Problem")).item(narrowed);
    let content = ContentBuilder::new().schema(Some(schema)).build();
    let answer =
        ResponseBuilder::new().description(description.join("\n\n")).content("application/problem+json", content);
    let header = |kind, description: &str| {
        let schema = ObjectBuilder::new().schema_type(kind);
        HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build()
    };
    match status {
        401 => answer.header("WWW-Authenticate", header(Type::String, "`Bearer`")),
        429 => answer
            .header("RateLimit-Limit", header(Type::Integer, "Requests in a minute."))
            .header("RateLimit-Remaining", header(Type::Integer, "How many are left."))
            .header("RateLimit-Reset", header(Type::Integer, "When there are more, in seconds."))
            .header("Retry-After", header(Type::Integer, "When to try again, in seconds.")),
        503 => answer.header("Retry-After", header(Type::Integer, "When to try again, in seconds.")),
        _ => answer,
    }
    .build()
}
